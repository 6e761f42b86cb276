# Functions that several rules call, and what all have in common.

# Whatever is installed can change a number, also a package that no script names: with a new lock everything runs again.
LOCK = sha256_file(HERE / "requirements.lock")
WITNESS = ProvenanceFolder(R)
share_checksums(WITNESS)
PARTS = f"{R}/parts/{{dataset}}/{{model}}/{{scatteritem}}"


def code(script, without=()):
    """Digest and files of the code that a rule's script reaches: a change of it, and only that, re-runs the rule."""
    return closure(HERE / "scripts" / script, without=list(without))


def raw(paths):
    """The sha256 of a user's own files (all files of a folder) by path: they count by content, whatever their age."""
    files = [item for path in paths if os.path.exists(path) for item in WITNESS.describe("", path)]
    return {item["path"]: item["sha256"] for item in files}


def parts(wildcards):
    """Stores of the parts of a model's activations; none where one job embeds all samples."""
    found = gather.embed(PARTS, dataset=wildcards.dataset, model=wildcards.model)
    return found if len(found) > 1 and PLAN.scattered(wildcards.dataset, wildcards.model) else []


# Whether jobs go to other machines; which executor it is, Snakemake does not yet know when it reads this file.
ELSEWHERE = workflow.resource_settings.nodes is not None
# There Snakemake runs twice beside the job itself, once to start the step and once in it, with 250 MB each.
SNAKEMAKE_MB = 500 if ELSEWHERE else 0


def memory(megabytes):
    """Memory of a job, twice as much with every further attempt: what was killed for memory is started again with more."""
    return lambda wildcards, attempt: (megabytes + SNAKEMAKE_MB) * 2 ** (attempt - 1)


def minutes(amount):
    """Longest run time of a job, twice as much with every further attempt."""
    return lambda wildcards, attempt: amount * 2 ** (attempt - 1)


def short(name):
    """The group of a short job, so that a cluster gets several as one; None on this machine, which starts each at once."""
    return name if ELSEWHERE else None


def stored(paths):
    """Input files of a user: those on S3 or HTTP (s3://…, https://…) through Snakemake's storage plugins."""
    return [storage(path) if "://" in path else path for path in paths]
