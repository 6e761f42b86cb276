"""The training rows: some rows of an array or a store, whitened, handed out by position."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from conceptome.activations import Store
from conceptome.dictionaries.base import check_rows
from conceptome.errors import DataError
from conceptome.whitening import Whitening

# Above this size the whitened training rows stay in the store and every batch is read and whitened anew.
MEMORY_LIMIT = 512 * 2**20
BLOCK = 8192


class Rows(Protocol):
    """n rows of d float32 values."""

    shape: tuple[int, int]

    def take(self, index: np.ndarray) -> np.ndarray:
        """Rows at the given positions, float32 (len(index), d)."""
        ...


class ArrayRows:
    """Rows in memory."""

    def __init__(self, X: np.ndarray):
        self.X = X
        self.shape = X.shape

    def take(self, index: np.ndarray) -> np.ndarray:
        """Rows at the given positions."""
        return self.X[index]


class StoreRows:
    """Rows of a store too large for memory, whitened as they are read."""

    def __init__(self, store: Store, chosen: np.ndarray, whitening: Whitening | None):
        self.store, self.chosen, self.whitening = store, chosen, whitening
        self.shape = (len(chosen), whitening.card["p"] if whitening else store.shape[1])

    def take(self, index: np.ndarray) -> np.ndarray:
        """Rows at the given positions."""
        X = self.store.read(self.chosen[index])
        return check_rows(self.whitening.transform(X) if self.whitening else X, self.shape[1])


def training_rows(
    source: np.ndarray | Store,
    rows: np.ndarray | None,
    whitening: Whitening | None,
    *,
    memory_limit: int = MEMORY_LIMIT,
) -> Rows:
    """Select and whiten the rows a dictionary is fitted on.

    Parameters
    ----------
    source
        (N, d) array, or a store of that shape.
    rows
        (N,) bool, or None for all.
    whitening
        Applied to the selected rows, or None.
    memory_limit
        Bytes of whitened rows that are kept in memory; a larger store is read batch by batch.

    Raises
    ------
    DataError
        A mask of another shape, no rows selected, NaN or infinite values.
    """
    total = source.shape[0]
    if rows is not None:
        rows = np.asarray(rows)
        if rows.dtype != bool or rows.shape != (total,):
            raise DataError(f"rows must be a boolean mask over {total} samples, not {rows.dtype} of shape {rows.shape}")
    chosen = np.arange(total) if rows is None else np.flatnonzero(rows)
    if not len(chosen):
        raise DataError("there are no training rows: no sample has split 'train'; mend dataset.split or the mask")
    if not isinstance(source, Store):
        X = check_rows(source if rows is None else np.asarray(source)[rows])
        return ArrayRows(check_rows(whitening.transform(X)) if whitening else X)
    streamed = StoreRows(source, chosen, whitening)
    n, width = streamed.shape
    if n * width * 4 > memory_limit:
        return streamed
    X = np.empty((n, width), dtype=np.float32)
    for start in range(0, n, BLOCK):
        X[start : start + BLOCK] = streamed.take(np.arange(start, min(start + BLOCK, n)))
    return ArrayRows(X)


def blocks(rows: Rows, size: int = BLOCK) -> Iterator[np.ndarray]:
    """All rows in order, in blocks."""
    for start in range(0, rows.shape[0], size):
        yield rows.take(np.arange(start, min(start + size, rows.shape[0])))


def sample(rows: Rows, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw at most `size` rows without replacement, in their order."""
    n = rows.shape[0]
    return rows.take(np.arange(n) if n <= size else np.sort(rng.choice(n, size, replace=False)))


def geometric_median(X: np.ndarray, *, iterations: int = 100, tolerance: float = 1e-8) -> np.ndarray:
    """Point with the least summed Euclidean distance to the rows, by Weiszfeld's iteration from the mean.

    Parameters
    ----------
    X
        (n, d) float.

    Returns
    -------
    numpy.ndarray
        float64 (d,).
    """
    X = X.astype(np.float64)
    point = X.mean(axis=0)
    scale = np.sqrt(np.square(X - point).sum(axis=1).mean())
    if scale == 0:
        return point
    for _ in range(iterations):
        # A row exactly at the point would get an infinite weight.
        distance = np.maximum(np.sqrt(np.square(X - point).sum(axis=1)), 1e-12 * scale)
        weight = 1 / distance
        moved = weight @ X / weight.sum()
        if np.linalg.norm(moved - point) < tolerance * scale:
            return moved
        point = moved
    return point
