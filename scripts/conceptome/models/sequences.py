"""Running an encoder over ragged sequences: batches of like length, activations in the order of the data set."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from conceptome.models.base import computing, torch_threads
from conceptome.models.taps import tapped

if TYPE_CHECKING:
    import torch

    from conceptome.config.models import CellModel, Esm2, ProteinModel
    from conceptome.models.taps import Stack

log = logging.getLogger(__name__)

# Batches are formed within windows of this many times tokens_per_batch, so that sequences of like length meet while
# the output still streams in the data set's order.
WINDOW = 16


def micro_batches(lengths: Sequence[int], tokens_per_batch: int) -> Iterator[list[list[int]]]:
    """Cut sequences into windows, and each window into batches of like length.

    Parameters
    ----------
    lengths
        Tokens of each sequence, in order.
    tokens_per_batch
        Largest number of tokens, padding included, in a batch; a longer sequence is a batch of its own.

    Yields
    ------
    list of list of int
        The batches of one window: positions of sequences. Windows follow each other in order.
    """
    window: list[int] = []
    held = 0
    for index, length in enumerate(lengths):
        if window and held + length > WINDOW * tokens_per_batch:
            yield _split(window, lengths, tokens_per_batch)
            window, held = [], 0
        window.append(index)
        held += length
    if window:
        yield _split(window, lengths, tokens_per_batch)


def _split(window: list[int], lengths: Sequence[int], tokens_per_batch: int) -> list[list[int]]:
    batches: list[list[int]] = []
    longest = 0
    for index in sorted(window, key=lambda i: (-lengths[i], i)):
        if not batches or (len(batches[-1]) + 1) * longest > tokens_per_batch:
            batches.append([])
            longest = lengths[index]
        batches[-1].append(index)
    return batches


def padding(lengths: Sequence[int], tokens_per_batch: int) -> float:
    """Share of padding among the tokens of all batches.

    >>> padding([10, 10, 5], 20)
    0.0
    """
    run = sum(
        len(batch) * max(lengths[i] for i in batch)
        for batches in micro_batches(lengths, tokens_per_batch)
        for batch in batches
    )
    return 1.0 - sum(lengths) / run


@dataclass(frozen=True)
class Sequences:
    """Token sequences, made when they are needed.

    Attributes
    ----------
    lengths
        Tokens of each, special ones included.
    encode
        Position → arrays of that length: one per input of the model.
    padding
        What each input is padded with.
    skip
        Special tokens before and after, which no activation comes from.
    """

    lengths: Sequence[int]
    encode: Callable[[int], Sequence[np.ndarray]]
    padding: Sequence[float]
    skip: tuple[int, int]

    def rows(self, pool: str) -> np.ndarray:
        """Activations that each sequence gives, (n,) int64: one per token that is no special one, or a single one."""
        kept = np.asarray(self.lengths, dtype=np.int64) - sum(self.skip)
        return kept if pool == "tokens" else np.ones_like(kept)


def run(
    sequences: Sequences,
    forward: Callable[[list[torch.Tensor], torch.Tensor], list[torch.Tensor]],
    *,
    pool: str,
    tokens_per_batch: int,
    threads: int,
    name: str,
    start: int = 0,
) -> Iterator[np.ndarray]:
    """Run a model over all sequences.

    Parameters
    ----------
    forward
        Padded inputs (b, t) and the mask (b, t) of true tokens → one (b, t, d) per layer.
    pool
        tokens: a row per token; mean: the mean of a sequence's tokens; cls: the state of its first token, itself a
        special one.
    start
        First row wanted. Batches are those of the whole stream, so that bits do not depend on it.

    Yields
    ------
    numpy.ndarray
        float32 (rows, d) per window, or (layers, rows, d) of more than one layer, in the order of the sequences.
    """
    import torch

    before, after = sequences.skip
    rows = sequences.rows(pool)
    done = reported = row = 0
    with torch_threads(threads):
        for batches in micro_batches(sequences.lengths, tokens_per_batch):
            members = sorted(index for batch in batches for index in batch)
            held = int(rows[members].sum())
            done += len(members)
            if row + held <= start:
                row += held
                continue
            found: dict[int, np.ndarray] = {}
            for batch in batches:
                longest = max(sequences.lengths[index] for index in batch)
                arrays = [sequences.encode(index) for index in batch]
                inputs = [
                    torch.from_numpy(_padded([values[i] for values in arrays], longest, pad))
                    for i, pad in enumerate(sequences.padding)
                ]
                lengths = np.array([sequences.lengths[index] for index in batch])
                mask = torch.from_numpy(np.arange(longest) < lengths[:, None])
                with torch.inference_mode():
                    layers = [layer.float() for layer in forward(inputs, mask)]
                    # A single layer is handed on as it lies in memory.
                    states = (layers[0][None] if len(layers) == 1 else torch.stack(layers)).numpy()
                for position, index in enumerate(batch):
                    part = states[:, position, before : sequences.lengths[index] - after]
                    if pool == "mean":
                        part = part.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
                    elif pool == "cls":
                        part = states[:, position, :1]
                    found[index] = part
            block = found[members[0]] if len(members) == 1 else np.concatenate([found[i] for i in members], axis=1)
            block = block[:, max(start - row, 0) :]
            row += held
            yield block[0] if len(block) == 1 else block
            if done * 10 // len(rows) > reported:
                reported = done * 10 // len(rows)
                log.info("%s: %d of %d sequences", name, done, len(rows))


def _padded(arrays: Sequence[np.ndarray], length: int, value: float) -> np.ndarray:
    """Arrays under each other, filled up on the right: (number, length)."""
    if len(arrays) == 1:
        return arrays[0][None]
    out = np.full((len(arrays), length), value, dtype=arrays[0].dtype)
    for row, array in enumerate(arrays):
        out[row, : len(array)] = array
    return out


def tapped_batches(
    sequences: Sequences,
    call: Callable[[list[torch.Tensor], torch.Tensor], object],
    stack: Stack,
    layers: Sequence[int],
    config: Esm2 | ProteinModel | CellModel,
    threads: int,
) -> Callable[[int], Iterator[np.ndarray]]:
    """Give the function that runs a model and hands out its activations from a row on.

    Parameters
    ----------
    call
        Runs the model on padded inputs and their mask; what it returns does not matter.
    """

    def batches(start: int = 0) -> Iterator[np.ndarray]:
        with tapped(stack, layers, config.site, config.adapter) as collect:

            def forward(inputs: list[torch.Tensor], mask: torch.Tensor) -> list[torch.Tensor]:
                with computing(config):
                    call(inputs, mask)
                return collect()

            yield from run(
                sequences,
                forward,
                pool=config.pool,
                tokens_per_batch=config.tokens_per_batch,
                threads=threads,
                name=config.adapter,
                start=start,
            )

    return batches
