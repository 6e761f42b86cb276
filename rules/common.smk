# Functions that several rules call.


def code(script, without=()):
    """Digest and files of the code that a rule's script reaches: a change of it, and only that, re-runs the rule."""
    return closure(HERE / "scripts" / script, without=list(without))
