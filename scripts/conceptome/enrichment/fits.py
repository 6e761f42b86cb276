"""Codes read from disk one fit at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from conceptome.errors import DataError


class CodeFiles(Mapping):
    """(dictionary name, seed) → Codes, read when looked up and not kept.

    Parameters
    ----------
    fits
        (dictionary name, seed) of every fit.
    codes
        Codes file of each fit, in the same order.

    Raises
    ------
    DataError
        The two do not have one entry per fit.
    """

    def __init__(self, fits: Sequence[Sequence[Any]], codes: Sequence[str | Path]):
        if len(fits) != len(codes):
            raise DataError(f"{len(fits)} fits need as many codes files: got {len(codes)}")
        self._paths = {(str(name), int(seed)): Path(path) for (name, seed), path in zip(fits, codes)}

    def __getitem__(self, fit: tuple[str, int]) -> Any:
        from conceptome import codes

        return codes.load(self._paths[fit])[0]

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)
