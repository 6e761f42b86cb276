"""Fits read from disk one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conceptome.codes import CodeFiles, Codes
from conceptome.errors import DataError

if TYPE_CHECKING:
    from conceptome.dictionaries import Dictionary


class FitFiles(CodeFiles):
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
        super().__init__(fits, codes)
        folders = [Path(path) if Path(path).is_dir() else Path(path).parent for path in dictionaries]
        self._folders = dict(zip(self._paths, folders))

    def __getitem__(self, fit: tuple[str, int]) -> tuple[Dictionary, Codes]:
        from conceptome import dictionaries

        return dictionaries.load(self._folders[fit]), super().__getitem__(fit)
