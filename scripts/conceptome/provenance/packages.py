"""Installed distributions: whether they are those of a recorded environment, and whether their files are as installed.

Read off the installers' dist-info folders; nothing is imported. A distribution's RECORD lists sha256 and size of each
of its files, so that its own digest stands for all of them. Files without a digest there (RECORD itself, compiled .pyc)
are not judged, nor are files that no RECORD lists.

Source of the format: https://packaging.python.org/en/latest/specifications/recording-installed-packages/
"""

from __future__ import annotations

import base64
import csv
import hashlib
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from conceptome.files import atomic_path, sha256_file
from conceptome.provenance.findings import Finding, short
from conceptome.provenance.folder import ProvenanceFolder, fingerprint


@dataclass(frozen=True)
class Distribution:
    """One installed distribution: name (normalised), version, its dist-info folder."""

    name: str
    version: str
    path: Path

    @property
    def record(self) -> str | None:
        """The sha256 of its RECORD; None where the installer wrote none."""
        path = self.path / "RECORD"
        return sha256_file(path) if path.is_file() else None


def normalise(name: str) -> str:
    """Spell a distribution's name in the one canonical way."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed() -> dict[str, Distribution]:
    """Distributions that this interpreter imports from, by name; where two have one name, the first on the path."""
    found: dict[str, Distribution] = {}
    for folder in map(Path, sys.path):
        if folder.name in ("site-packages", "dist-packages") and folder.is_dir():
            for item in sorted(os.listdir(folder)):
                stem, _, kind = item.rpartition(".")
                if kind in ("dist-info", "egg-info"):
                    name, _, version = stem.removesuffix(".egg").partition("-")
                    found.setdefault(normalise(name), Distribution(normalise(name), version, folder / item))
    return found


def differences(recorded: Iterable[Mapping[str, str | None]], here: Mapping[str, Distribution]) -> Iterator[Finding]:
    """Compare a recorded environment's distributions with those installed here (more of them do not matter)."""
    for item in recorded:
        name, version = normalise(item["name"]), item["version"]
        present = here.get(name)
        if present is None:
            yield Finding("package", name, f"{name} {version} made results, and is not installed here", version)
        elif present.version != version:
            message = f"{name} {version} made results, and {present.version} is installed here"
            yield Finding("package", str(present.path), message, version, present.version)
        elif item["record"] is not None and present.record != item["record"]:
            message = (
                f"{name} {version} is another build than the one that made results: "
                f"its RECORD has sha256 {short(present.record)}, recorded was {short(item['record'])}"
            )
            yield Finding("package", str(present.path / "RECORD"), message, item["record"], present.record)


def altered(distribution: Distribution, folder: ProvenanceFolder, *, cold: bool = False) -> list[Finding]:
    """Compare a distribution's files with its RECORD.

    Files found unaltered once are trusted as long as inode, size, mtime and ctime of all of them stay; `cold` reads
    them again.
    """
    try:
        with open(distribution.path / "RECORD", encoding="utf-8", newline="") as handle:
            rows = [row for row in csv.reader(handle) if len(row) == 3 and row[1].startswith("sha256=")]
    except OSError:
        return []
    base = os.fspath(distribution.path.parent)
    marks: list[tuple | None] = []
    for name, _, _ in rows:
        try:
            marks.append(fingerprint(os.path.join(base, name)))
        except OSError:
            marks.append(None)
    key = hashlib.sha256(repr((distribution.record, marks)).encode()).hexdigest()
    entry = folder.hashes / "packages" / key
    if not cold and entry.exists():
        return []
    findings = [
        finding
        for (name, digest, _), mark in zip(rows, marks)
        if (finding := _compare(distribution, Path(base, name), digest.removeprefix("sha256="), mark)) is not None
    ]
    if not findings:
        # The cache is a convenience: an auditor's copy may be read-only.
        with suppress(OSError), atomic_path(entry) as temporary:
            temporary.write_text(distribution.name, encoding="utf-8")
    return findings


def _compare(owner: Distribution, path: Path, expected: str, mark: tuple | None) -> Finding | None:
    if mark is None:
        return Finding("package", str(path), f"missing, though {owner.name} {owner.version} installed it")
    digest = base64.urlsafe_b64encode(bytes.fromhex(sha256_file(path))).decode().rstrip("=")
    if digest == expected:
        return None
    message = f"altered since {owner.name} {owner.version} was installed: sha256 (base64) {digest}, RECORD: {expected}"
    return Finding("package", str(path), message, expected, digest)
