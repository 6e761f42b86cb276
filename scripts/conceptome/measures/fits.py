"""Fits read from disk one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from conceptome.errors import DataError


class FitFiles(Mapping):
    """(dictionary name, seed) → (Dictionary, Codes), read when looked up and not kept.

    Parameters
    ----------
    fits
        (dictionary name, seed) of every fit.
    dictionaries
        Folder of each dictionary, or a file in it, in the same order.
    codes
        Codes file of each fit, in the same order.

    Raises
    ------
    DataError
        The three do not have one entry per fit.
    """

    def __init__(self, fits: Sequence[Sequence[Any]], dictionaries: Sequence[str], codes: Sequence[str]):
        if not len(fits) == len(dictionaries) == len(codes):
            raise DataError(
                f"{len(fits)} fits need as many dictionaries and codes: got {len(dictionaries)} and {len(codes)}"
            )
        folders = [Path(path) if Path(path).is_dir() else Path(path).parent for path in dictionaries]
        self._paths = {
            (str(name), int(seed)): (folder, Path(path)) for (name, seed), folder, path in zip(fits, folders, codes)
        }

    def __getitem__(self, fit: tuple[str, int]) -> tuple[Any, Any]:
        from conceptome import codes, dictionaries

        folder, path = self._paths[fit]
        return dictionaries.load(folder), codes.load(path)[0]

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)
