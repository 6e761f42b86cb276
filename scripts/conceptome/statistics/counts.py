"""Counts of atoms by label that are summed block by block: integers, so that they merge exactly in any order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

import conceptome_kernels
from conceptome.codes import Codes
from conceptome.errors import DataError


@dataclass(frozen=True)
class Counts:
    """How many samples have a label, exceed an atom's thresholds, and both.

    Attributes
    ----------
    n
        Samples.
    labelled
        int64 (c,): samples of each label.
    thresholds
        float32 (m, t), ascending and not negative.
    active, both
        int64 (m, t) and (m, t, c).
    """

    n: int
    labelled: np.ndarray
    thresholds: np.ndarray
    active: np.ndarray
    both: np.ndarray

    def join(self, other: Counts) -> Counts:
        """Counts over the samples of both.

        Raises
        ------
        DataError
            They were counted at other thresholds, or for other labels.
        """
        if not np.array_equal(self.thresholds, other.thresholds) or self.labelled.shape != other.labelled.shape:
            raise DataError("counts of other thresholds or labels cannot be added: count all blocks with the same ones")
        return Counts(
            self.n + other.n,
            self.labelled + other.labelled,
            self.thresholds,
            self.active + other.active,
            self.both + other.both,
        )


def count(codes: Codes, labels: np.ndarray, thresholds: np.ndarray) -> Counts:
    """Count one block of samples.

    Parameters
    ----------
    codes
        n samples over m atoms.
    labels
        bool (n, c).
    thresholds
        float32 (m, t) per atom, ascending and not negative: a silent sample never exceeds one.
    """
    labels = np.ascontiguousarray(labels, dtype=bool)
    thresholds = np.ascontiguousarray(thresholds, dtype=np.float32)
    columns = codes.to_scipy().tocsc()
    parts = (columns.indptr.astype(np.int64), columns.indices.astype(np.int32), columns.data)
    if conceptome_kernels.available():
        from conceptome_kernels.contingency import contingency

        active, both = contingency(*parts, labels, thresholds)
    else:
        active, both = _plain(columns, labels, thresholds)
    return Counts(len(codes), labels.sum(axis=0, dtype=np.int64), thresholds, active, both)


def _plain(columns, labels: np.ndarray, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As the kernel counts."""
    m, t = thresholds.shape
    atom = np.repeat(np.arange(m), np.diff(columns.indptr))
    active, both = np.zeros((m, t), dtype=np.int64), np.zeros((m, t, labels.shape[1]), dtype=np.int64)
    for number in range(t):
        above = columns.data > thresholds[atom, number]
        active[:, number] = np.bincount(atom[above], minlength=m)
        np.add.at(both[:, number], atom[above], labels[columns.indices[above]])
    return active, both


def count_all(blocks: Iterable[tuple[Codes, np.ndarray]], thresholds: np.ndarray) -> Counts:
    """Count (codes, labels) block by block, one of them in memory at a time.

    Raises
    ------
    DataError
        There are no blocks.
    """
    total: Counts | None = None
    for codes, labels in blocks:
        found = count(codes, labels, thresholds)
        total = found if total is None else total.join(found)
    if total is None:
        raise DataError("there are no codes to count")
    return total


def peaks(blocks: Iterable[Codes]) -> np.ndarray:
    """Largest value of each atom over all blocks, silent samples counting as 0: float32 (m,).

    Raises
    ------
    DataError
        There are no blocks.
    """
    largest: np.ndarray | None = None
    for codes in blocks:
        found = codes.maximum()
        largest = found if largest is None else np.maximum(largest, found)
    if largest is None:
        raise DataError("there are no codes to take the largest values of")
    return largest
