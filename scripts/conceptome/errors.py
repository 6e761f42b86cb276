"""The errors a user can mend: one clear line each (what, where, how to mend it)."""


class ConceptomeError(Exception):
    """Base of every error that is reported as one line, with a non-zero exit and no traceback."""

    def __init__(self, message: str):
        super().__init__(" ".join(str(message).split()))


class ConfigError(ConceptomeError):
    """The configuration is wrong: an unknown key, a wrong type, an impossible combination."""


class SourceError(ConceptomeError):
    """A source file could not be retrieved or is not the file that was asked for."""


class DataError(ConceptomeError):
    """The data contradict what was declared or what a method needs."""
