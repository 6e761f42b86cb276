"""Sources: from a file's name to its verified bytes (mirror, then public address, then a package member)."""

from conceptome.sources.availability import Status, availability, check, first_run_choice
from conceptome.sources.entries import Content, Package, SourceEntry, load_sources, mirrors
from conceptome.sources.retrieval import retrieve

__all__ = [
    "Content",
    "Package",
    "SourceEntry",
    "Status",
    "availability",
    "check",
    "first_run_choice",
    "load_sources",
    "mirrors",
    "retrieve",
]
