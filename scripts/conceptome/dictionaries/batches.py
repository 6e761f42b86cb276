"""The order in which training sees its rows: batches out of a shuffle buffer, each row once per epoch.

Rows that fit the buffer are shuffled as a whole, in an order of the dictionary's own seed. Of more rows, each epoch
fills the buffer with random chunks (1 MiB of neighbouring rows or less) until all have had their turn, and draws the
batches of each filling at random; this order depends on `order_seed` and not on the dictionary's own, so that several
dictionaries can share one pass. The order depends on which rows there are, on their width and on the configuration
alone: not on where the rows lie, nor on the number of threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
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


class SharedRows:
    """Rows for one of several trainings that take one pass over them together: see `in_turns`."""

    def __init__(self, shared: _Pass):
        self._shared = shared
        self.shape, self.starts, self.take = shared.rows.shape, shared.rows.starts, shared.rows.take

    def batches(self, number: int, state: dict[str, Any] | None) -> _Seat:
        """Batches of the shared pass, from batch `number` on, where a stream of its own had this state."""
        return _Seat(self._shared, number, state)


class _Seat:
    """What one training sees of a pass."""

    def __init__(self, shared: _Pass, number: int, state: dict[str, Any] | None):
        self._shared, self._number, self._state = shared, number, state

    def __next__(self) -> np.ndarray:
        batch = self._shared.batch(self._number, self._state)
        self._number += 1
        return batch

    def state(self) -> dict[str, Any]:
        # The pass stays at a batch until every training is done with it.
        return self._shared.batches.state()

    def close(self) -> None:
        """The pass closes when all are done."""


class _GivenUp(Exception):
    """Another training of the pass failed."""


class _Pass:
    """A stream of batches that goes on when every training wants the next one; whoever holds `turn` is at work."""

    def __init__(self, rows: Rows, order: Order, members: int):
        self.rows, self.order, self.turn = rows, order, threading.Condition()
        self.batches: Batches | None = None
        self.error: Exception | None = None
        self._members, self._failed = members, False
        self._number, self._batch = -1, np.zeros(0)
        # Thread → the batch it wants, and the state of the stream before that.
        self._wanted: dict[int, tuple[int, dict[str, Any] | None]] = {}

    def batch(self, number: int, state: dict[str, Any] | None) -> np.ndarray:
        """Wait for a batch, and leave the turn to others meanwhile."""
        self._wanted[threading.get_ident()] = (number, state)
        self._advance()
        self.turn.wait_for(lambda: self._failed or self._number == number)
        if self._failed:
            raise _GivenUp
        return self._batch

    def leave(self, *, failed: bool) -> None:
        """Go on without this training; if it failed, the others end too."""
        self._wanted.pop(threading.get_ident(), None)
        self._members -= 1
        self._failed |= failed
        self._advance()

    def fail(self) -> None:
        """End all trainings at their next batch."""
        with self.turn:
            self._failed = True
            self.turn.notify_all()

    def _advance(self) -> None:
        ahead = [wanted for wanted in self._wanted.values() if wanted[0] > self._number]
        if self._members and len(ahead) == self._members and not self._failed:
            number, state = min(ahead, key=lambda wanted: wanted[0])
            try:
                if self.batches is None or number > self._number + 1:
                    self.close()
                    self.batches = Batches(self.rows, self.order, state)
                self._batch, self._number = next(self.batches), number
            except Exception as error:
                # Whoever happens to be at work here may be done with its own training.
                self.error, self._failed = error, True
        self.turn.notify_all()

    def close(self) -> None:
        """Stop reading ahead."""
        if self.batches is not None:
            self.batches.close()


def in_turns(
    rows: Rows, order: Order, tasks: Sequence[Callable[[SharedRows], Any]], threads: int | None = None
) -> list[Any]:
    """Run several trainings on one pass over the rows, each batch being given to each of them in turn.

    Each training is ordinary code in a thread of its own, but only one of them runs at any moment: it hands over when
    it waits for the next batch. What each computes depends on nothing but its own batches.

    Parameters
    ----------
    tasks
        Called with the rows; they train in this very order, from any batch on.
    threads
        Of BLAS and kernels within each training; None: as they are.

    Returns
    -------
    list
        What the tasks returned.

    Raises
    ------
    Exception
        What the first of them raised, or reading the rows; the others have ended then.
    """
    from threadpoolctl import threadpool_limits

    shared = _Pass(rows, order, len(tasks))
    results: list[Any] = [None] * len(tasks)
    errors: list[BaseException] = []

    def work(number: int) -> None:
        with shared.turn:
            if threads is not None:
                # OpenMP counts threads per thread that calls it; the caller's limit ends with the caller's block.
                threadpool_limits(threads)
            failed = True
            try:
                results[number] = tasks[number](SharedRows(shared))
                failed = False
            except _GivenUp:
                pass
            except BaseException as error:
                errors.append(error)
            finally:
                shared.leave(failed=failed)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(len(tasks))]
    for worker in workers:
        worker.start()
    try:
        for worker in workers:
            worker.join()
    except BaseException:
        shared.fail()
        raise
    finally:
        for worker in workers:
            worker.join()
        shared.close()
    if shared.error:
        raise shared.error
    if errors:
        raise errors[0]
    return results


def batches_of(rows: Rows, order: Order, number: int, state: dict[str, Any] | None) -> Batches | _Seat:
    """Batches from batch `number` on, where the stream had this state (None: its start)."""
    return rows.batches(number, state) if isinstance(rows, SharedRows) else Batches(rows, order, state)
