"""Reading and writing files so that a half-written one never carries its final name."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary path beside `path` and rename it onto `path` on success.

    The temporary file is removed when the block raises (a full disk, Ctrl-C, a bad input), so that only complete
    files are ever seen under their final name. The suffix is kept, since some writers choose a format by it; the rest
    of its name is that of no other process, also on another machine that writes to the same file system.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}-{os.urandom(4).hex()}.partial{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sha256_file(path: str | os.PathLike, chunk: int = 1 << 20) -> str:
    """Hex sha256 of a file, read in chunks."""
    with open(path, "rb") as handle:
        digest = hashlib.sha256()
        while block := handle.read(chunk):
            digest.update(block)
    return digest.hexdigest()


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write JSON with sorted keys, so that equal values give equal bytes."""
    with atomic_path(path) as temporary:
        temporary.write_text(
            json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
        )


def read_json(path: str | os.PathLike) -> Any:
    """Read one JSON value."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def write_parquet(path: str | os.PathLike, frame: pd.DataFrame) -> None:
    """Write a table as Parquet (zstd, float columns as they are); equal tables give equal bytes."""
    with atomic_path(path) as temporary:
        frame.to_parquet(temporary, compression="zstd", engine="pyarrow")


def read_parquet(path: str | os.PathLike, columns: list[str] | None = None) -> pd.DataFrame:
    """Read a Parquet table."""
    import pandas as pd

    return pd.read_parquet(path, columns=columns, engine="pyarrow")
