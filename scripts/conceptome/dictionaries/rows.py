"""The training rows: some rows of an array or a store, whitened, handed out by position or in chunks.

A chunk holds the chosen ones of a fixed number of neighbouring rows of the source. A store is whitened chunk by chunk
wherever it is read: the last digits of a matrix product depend on how many rows go through it together, and so the rows
are the same bytes whether they are kept in memory or read again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from conceptome.activations import Store
from conceptome.dictionaries.base import check_rows
from conceptome.errors import DataError
from conceptome.whitening import Whitening

# Above this size the whitened training rows stay in the store and are read again in every epoch.
MEMORY_LIMIT = 512 * 2**20
BLOCK = 8192
# A chunk takes about this many bytes, so that a disk reads it in one go.
CHUNK_BYTES = 2**20
# From more rows than this, a sample is drawn as whole chunks: scattered rows would cost a pass over the source.
SCATTERED_BYTES = 256 * 2**20


class Rows(Protocol):
    """n rows of d float32 values.

    Attributes
    ----------
    starts
        int64 (chunks + 1,): chunk i holds the positions from starts[i] to starts[i + 1].
    """

    shape: tuple[int, int]
    starts: np.ndarray

    def take(self, index: np.ndarray) -> np.ndarray:
        """Rows at the given positions, float32 (len(index), d)."""
        ...


def chunk_rows(width: int) -> int:
    """Rows of the source per chunk for rows of this width: a power of two from 16 to 512."""
    return max(16, min(512, 1 << max(CHUNK_BYTES // (4 * width), 1).bit_length() - 1))


def chunk_starts(chosen: np.ndarray, width: int) -> np.ndarray:
    """Where each chunk begins among the chosen rows (ascending), and where the last one ends."""
    cuts = np.flatnonzero(np.diff(chosen // chunk_rows(width))) + 1
    return np.concatenate([[0], cuts, [len(chosen)]]).astype(np.int64)


def positions_of(starts: np.ndarray, chunks: np.ndarray) -> np.ndarray:
    """All positions of some chunks, in their order."""
    return np.concatenate([np.arange(starts[chunk], starts[chunk + 1]) for chunk in chunks])


class ArrayRows:
    """Rows in memory.

    Parameters
    ----------
    X
        float32 (n, d).
    chosen
        (n,): which rows of a larger source they are, or None: all.
    """

    def __init__(self, X: np.ndarray, chosen: np.ndarray | None = None):
        self.X = X
        self.shape = X.shape
        self.starts = chunk_starts(np.arange(len(X)) if chosen is None else chosen, X.shape[1])

    def take(self, index: np.ndarray) -> np.ndarray:
        """Rows at the given positions."""
        return self.X[index]


class StoreRows:
    """Rows of a store too large for memory, whitened as they are read."""

    def __init__(self, store: Store, chosen: np.ndarray, whitening: Whitening | None):
        self.store, self.chosen, self.whitening = store, chosen, whitening
        self.shape = (len(chosen), whitening.card["p"] if whitening else store.shape[1])
        self.starts = chunk_starts(chosen, self.shape[1])

    def take(self, index: np.ndarray) -> np.ndarray:
        """Rows at the given positions; quick where many of them share a chunk."""
        wanted, size = self.chosen[index], chunk_rows(self.shape[1])
        out = np.empty((len(wanted), self.shape[1]), dtype=np.float32)
        order = np.argsort(wanted, kind="stable")
        ordered = wanted[order]
        cuts = np.flatnonzero(np.diff(ordered // size)) + 1
        for places in np.split(order, cuts) if len(order) else []:
            first = int(wanted[places[0]]) // size * size
            block = self.store.read(slice(first, first + size))
            if self.whitening:
                block = self.whitening.transform(block)
            out[places] = block[wanted[places] - first]
        return check_rows(out)


def whitened(store: Store, whitening: Whitening, rows: int = BLOCK) -> Iterator[np.ndarray]:
    """All rows of a store in order, whitened: float32 blocks of `rows` rows, fewer in the last."""
    everything = StoreRows(store, np.arange(len(store)), whitening)
    return blocks(everything, rows)


def training_rows(
    source: np.ndarray | Store,
    rows: np.ndarray | None,
    whitening: Whitening | None,
    *,
    memory_limit: int = MEMORY_LIMIT,
) -> ArrayRows | StoreRows:
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
        Bytes of whitened rows that are kept in memory; a larger store is read chunk by chunk.

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
        return ArrayRows(check_rows(whitening.transform(X)) if whitening else X, chosen)
    streamed = StoreRows(source, chosen, whitening)
    n, width = streamed.shape
    if n * width * 4 > memory_limit:
        return streamed
    X = np.empty((n, width), dtype=np.float32)
    for first, last in zip(streamed.starts[:-1], streamed.starts[1:]):
        X[first:last] = streamed.take(np.arange(first, last))
    return ArrayRows(X, chosen)


def blocks(rows: Rows, size: int = BLOCK) -> Iterator[np.ndarray]:
    """All rows in order, in blocks."""
    for start in range(0, rows.shape[0], size):
        yield rows.take(np.arange(start, min(start + size, rows.shape[0])))


def sample(rows: Rows, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw at most `size` rows without replacement, in their order: of very many rows, those of random chunks."""
    n, width = rows.shape
    if n <= size:
        return rows.take(np.arange(n))
    if n * width * 4 <= SCATTERED_BYTES:
        return rows.take(np.sort(rng.choice(n, size, replace=False)))
    chunks = rng.permutation(len(rows.starts) - 1)
    enough = int(np.searchsorted(np.cumsum(np.diff(rows.starts)[chunks]), size)) + 1
    positions = positions_of(rows.starts, np.sort(chunks[:enough]))
    return rows.take(np.sort(rng.choice(positions, size, replace=False)))


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
