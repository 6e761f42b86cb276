"""Folders and zip archives for others: complete or absent, and the same bytes for the same content."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conceptome.errors import DataError
from conceptome.files import atomic_path, sha256_file

EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip archive can hold


@contextmanager
def new_package(out: str | os.PathLike) -> Iterator[Path]:
    """Give an empty folder to fill; it becomes the folder `out`, or the archive where `out` ends in .zip.

    Raises
    ------
    DataError
        `out` exists.
    """
    out = Path(out)
    if out.exists():
        raise DataError(f"{out} exists: remove it, or name another folder or .zip")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
        folder = Path(temporary) / "package"
        folder.mkdir()
        yield folder
        if out.suffix == ".zip":
            write_zip(folder, out)
        else:
            os.rename(folder, out)


def write_zip(folder: Path, out: Path) -> None:
    """Write the files of a folder as a zip archive: in order of path, without times and owners."""
    files = sorted((path.relative_to(folder).as_posix(), path) for path in folder.rglob("*") if path.is_file())
    with atomic_path(out) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, path in files:
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3  # Unix, whatever the machine
            entry.external_attr = 0o100644 << 16
            entry.file_size = path.stat().st_size
            with path.open("rb") as source, archive.open(entry, "w") as target:
                shutil.copyfileobj(source, target, 1 << 20)


def write_and_tell(
    arguments: argparse.Namespace, write: Callable[[], Mapping[str, int]], out: Path, label: str, **facts: Any
) -> None:
    """Write something for others and say what it holds: `write` gives the numbers, `facts` go into the JSON answer.

    Raises
    ------
    DataError
        `out` could not be written.
    """
    try:
        numbers = write()
    except OSError as error:
        raise DataError(f"{out} could not be written: {error.strerror or error}") from None
    told = {"command": arguments.command, "clean": True, "findings": [], **facts, "path": str(out), **numbers}
    if out.is_file():
        told["sha256"] = sha256_file(out)
    if arguments.json:
        print(json.dumps(told))
    else:
        print(f"{label}: {out} ({', '.join(f'{count} {name}' for name, count in numbers.items())})")
