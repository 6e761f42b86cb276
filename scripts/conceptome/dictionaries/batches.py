"""The order in which training sees its rows: batches out of a shuffle buffer, each row once per epoch.

Rows that fit the buffer are shuffled as a whole, in an order of the dictionary's own seed. Of more rows, each epoch fills
the buffer with random chunks (1 MiB of neighbouring rows or less) until all have had their turn, and draws the batches
of each filling at random; this order depends on `order_seed` and not on the dictionary's, so that several dictionaries
can share one pass. The order depends on the number and width of the rows and on the configuration alone: not on where
the rows lie, nor on the number of threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from conceptome.config.dictionaries import TrainedBase
from conceptome.dictionaries.rows import ArrayRows, Rows, positions_of

# Stream of random numbers of the order; not 0, since numpy seeds [s, 0] and s alike.
ORDER = 2


@dataclass(frozen=True)
class Order:
    """What the order depends on, besides the rows.

    Attributes
    ----------
    batch_size, buffer_mb, seed
        Rows per batch; MiB of rows that are shuffled at a time; of the order.
    """

    batch_size: int
    buffer_mb: int
    seed: int

    @classmethod
    def of(cls, rows: Rows, options: TrainedBase, seed: int) -> Order:
        """The order in which a dictionary of this seed sees these rows."""
        own = fits_buffer(rows, options.buffer_mb)
        return cls(options.batch_size, options.buffer_mb, seed if own else options.order_seed)


def fits_buffer(rows: Rows, buffer_mb: int) -> bool:
    """Whether all rows can be shuffled as a whole."""
    n, width = rows.shape
    return n * width * 4 <= buffer_mb * 2**20


@dataclass(frozen=True)
class Filling:
    """What fills the buffer once: positions ascending, and the order in which they are drawn from it.

    Attributes
    ----------
    generator
        State of the generator at the start of the epoch.
    number
        Of the filling within its epoch.
    """

    generator: dict[str, Any]
    number: int
    positions: np.ndarray
    drawn: np.ndarray


def fillings(rows: Rows, order: Order, generator: dict[str, Any] | None = None) -> Iterator[Filling]:
    """Endless fillings, epoch after epoch, from the epoch that starts with this state of the generator."""
    rng = np.random.default_rng([order.seed, ORDER])
    if generator is not None:
        rng.bit_generator.state = generator
    n, width = rows.shape
    while True:
        state = rng.bit_generator.state
        if fits_buffer(rows, order.buffer_mb):
            yield Filling(state, 0, np.arange(n), rng.permutation(n))
            continue
        chunks = rng.permutation(len(rows.starts) - 1)
        sizes = np.diff(rows.starts)[chunks]
        # A filling takes chunks until it is full, and so at most one chunk more than the buffer was said to hold.
        room = max(1, order.buffer_mb * 2**20 // (4 * width))
        filled = (np.cumsum(sizes) - sizes) // room
        for number, part in enumerate(np.split(chunks, np.flatnonzero(np.diff(filled)) + 1)):
            positions = positions_of(rows.starts, np.sort(part))
            yield Filling(state, number, positions, rng.permutation(len(positions)))


class Batches:
    """Endless batches of rows, float32 (min(batch_size, n), d); a batch may straddle two fillings, or two epochs.

    Where rows are read from a store, the next filling is read by a thread while training works on this one.

    Parameters
    ----------
    state
        What `state` gave: go on from there.
    """

    def __init__(self, rows: Rows, order: Order, state: dict[str, Any] | None = None):
        self.rows, self.size = rows, min(order.batch_size, rows.shape[0])
        self._fillings = fillings(rows, order, state and state["generator"])
        # Rows in memory are their own buffer.
        self._reader = None if isinstance(rows, ArrayRows) else ThreadPoolExecutor(1, "reader")
        if state:
            for _ in range(state["filling"]):
                next(self._fillings)
        self._next: Future | None = None
        self._fill()
        self.offset = state["offset"] if state else 0

    def state(self) -> dict[str, Any]:
        """Position in the order, JSON-able."""
        return {"generator": self._filling.generator, "filling": self._filling.number, "offset": self.offset}

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> np.ndarray:
        parts, missing = [], self.size
        while missing:
            if self.offset == len(self._filling.drawn):
                self._fill()
            drawn = self._filling.drawn[self.offset : self.offset + missing]
            filled = self._held
            parts.append(self.rows.take(self._filling.positions[drawn]) if filled is None else filled[drawn])
            self.offset += len(drawn)
            missing -= len(drawn)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def close(self) -> None:
        """Stop reading ahead."""
        if self._reader is not None:
            self._reader.shutdown(wait=True, cancel_futures=True)

    def _fill(self) -> None:
        """Take the next filling into the buffer."""
        self._held = None
        self.offset = 0
        if self._reader is None:
            self._filling = next(self._fillings)
            return
        read = self._next or self._read()
        self._filling, self._held = read.result()
        self._next = self._read()

    def _read(self) -> Future:
        filling = next(self._fillings)
        return self._reader.submit(lambda: (filling, self.rows.take(filling.positions)))
