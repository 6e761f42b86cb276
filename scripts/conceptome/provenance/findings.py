"""What an audit finds: one file, and what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One difference.

    Attributes
    ----------
    kind
        What was compared: file, link, ledger, record, clock, source, mlflow, signature; code or package for results
        that are as recorded, but which the code and packages here would perhaps not give again.
    path
        The file, as one finds it from here.
    message
        The difference, in one line.
    recorded, found
        The two values that differ (sha256, or whatever was compared), where there are two.
    """

    kind: str
    path: str
    message: str
    recorded: str | None = None
    found: str | None = None

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


def short(sha256: str | None) -> str:
    """Begin of a digest, for people."""
    return f"{sha256[:12]}…" if sha256 else "none"
