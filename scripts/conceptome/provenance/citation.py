"""Who and under which licence: CITATION.cff, the only place that names authors. Nobody is made up."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conceptome.config.run import read_yaml
from conceptome.errors import DataError
from conceptome.provenance.closure import repository


@dataclass(frozen=True)
class Author:
    """A person (family and given name) or a group, as CITATION.cff has it."""

    name: str
    person: bool
    orcid: str | None = None
    affiliation: str | None = None


@dataclass(frozen=True)
class Citation:
    """What CITATION.cff says."""

    title: str
    authors: tuple[Author, ...]
    licence: str
    content: dict[str, Any]


def citation(path: Path | None = None) -> Citation:
    """Read CITATION.cff (default: the repository's).

    Raises
    ------
    ConfigError, DataError
        The file is missing or no YAML; title, licence or authors are not there.
    """
    path = path or repository() / "CITATION.cff"
    content = read_yaml(path)
    for key in ("title", "license", "authors"):
        if not content.get(key):
            raise DataError(f"{path}: no {key}: add it; an export invents neither people nor licences")
    return Citation(content["title"], tuple(_author(item) for item in content["authors"]), content["license"], content)


def _author(item: dict[str, Any]) -> Author:
    person = "family-names" in item
    name = ", ".join(item[key] for key in ("family-names", "given-names") if key in item) if person else item["name"]
    return Author(name, person, item.get("orcid"), item.get("affiliation"))
