# Functions that several rules call, and what all have in common.

# Whatever is installed can change a number, also a package that no script names: with a new lock everything runs again.
LOCK = sha256_file(HERE / "requirements.lock")
WITNESS = ProvenanceFolder(R)


def code(script, without=()):
    """Digest and files of the code that a rule's script reaches: a change of it, and only that, re-runs the rule."""
    return closure(HERE / "scripts" / script, without=list(without))


def raw(paths):
    """The sha256 of a user's own files (all files of a folder) by path: they count by content, whatever their age."""
    files = [item for path in paths if os.path.exists(path) for item in WITNESS.describe("", path)]
    return {item["path"]: item["sha256"] for item in files}
