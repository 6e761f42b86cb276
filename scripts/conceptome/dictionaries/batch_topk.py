"""BatchTopK and Matryoshka BatchTopK sparse autoencoders.

Bussmann et al. 2024, arXiv 2412.06410: of a batch of B rows, the B·k largest positive scores (x − b)·Wᵀ + c are codes,
so that rows share a budget of k atoms on average. A row encoded on its own has no batch: its codes are the scores above
one threshold, the running mean of the smallest score that was kept. The loss is Σ‖x̂ − x‖² / Σ‖x − mean‖², plus AuxK as
in TopK.

Bussmann et al. 2025, arXiv 2503.17547: Matryoshka sums the first term over nested prefixes of the atoms. x is to be
reconstructed from the first few atoms alone, from some more, and from all, so that early atoms stay general. The B·k
codes are chosen once, among all atoms.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from conceptome.dictionaries.autoencoder import Autoencoder, AutoencoderTrainer, Loss, learn
from conceptome.dictionaries.engine import Active, Term
from conceptome.dictionaries.rows import Rows
from conceptome.dictionaries.training import Progress

if TYPE_CHECKING:
    from conceptome.config.dictionaries import BatchTopK as Options
    from conceptome.config.dictionaries import Matryoshka as MatryoshkaOptions

# Share of the threshold that each further batch leaves as it is.
KEEP = 0.99


class BatchTopK(Autoencoder):
    """A BatchTopK sparse autoencoder; its own parameter is threshold (1,)."""

    method = "batch_topk"

    def _active(self, X: np.ndarray) -> Active:
        return self._scorer.above(X, float(self.parameters["threshold"][0]))


class Matryoshka(BatchTopK):
    """A Matryoshka BatchTopK sparse autoencoder."""

    method = "matryoshka"


class BatchTopKTrainer(AutoencoderTrainer):
    """The step of BatchTopK."""

    options: Options

    def __init__(self, atoms: np.ndarray, bias: np.ndarray, options: Options):
        super().__init__(atoms, bias, options)
        self.threshold: float | None = None

    def loss(self, x: np.ndarray, centred: np.ndarray, dead: np.ndarray, number: int) -> Loss:
        """See `AutoencoderTrainer.loss`."""
        active = self.choose(x)
        main, squared = self.reconstruction(x, active)
        return Loss(main, self.auxk(x, main.error, squared, dead), squared, main.in_bias)

    def choose(self, x: np.ndarray) -> Active:
        """Codes of the batch; the threshold follows the smallest."""
        active = self.engine.largest_of_batch(x, self.options.k)
        self.follow(active, len(x))
        return active

    def follow(self, active: Active, size: int) -> None:
        """Let the threshold follow the smallest of a batch's codes."""
        # With fewer positive scores than places, all of them are kept.
        smallest = float(active.values.min()) if len(active.values) == size * self.options.k else 0.0
        before = smallest if self.threshold is None else self.threshold
        self.threshold = KEEP * before + (1 - KEEP) * smallest

    def state(self) -> dict[str, np.ndarray]:
        """The running threshold, (1,), or none before the first step."""
        return {"threshold": np.array([] if self.threshold is None else [self.threshold])}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """See `AutoencoderTrainer.restore`."""
        super().restore(state)
        self.threshold = float(state["threshold"][0]) if len(state["threshold"]) else None

    def finished(self, deviation: float) -> dict[str, np.ndarray]:
        """See `AutoencoderTrainer.finished`."""
        threshold = np.array([(self.threshold or 0.0) * deviation], dtype=np.float32)
        return {**super().finished(deviation), "threshold": threshold}


class MatryoshkaTrainer(BatchTopKTrainer):
    """The step of Matryoshka BatchTopK."""

    options: MatryoshkaOptions

    def loss(self, x: np.ndarray, centred: np.ndarray, dead: np.ndarray, number: int) -> Loss:
        """See `AutoencoderTrainer.loss`.

        With r_p the residual of prefix p, an atom feels the sum of r_p over the prefixes that hold it. So each
        segment between two prefixes has an error of its own: its codes and errors are stacked below each other.
        """
        ends = self.options.prefix_ends
        stacked = stack(self.choose(x), ends)
        size, d = x.shape
        errors = self.engine.decode(stacked).reshape(len(ends), size, d)
        before = centred
        for part in errors:
            before = np.subtract(before, part, out=part)
        residual = errors[-1].copy()
        for late, early in pairwise(errors[::-1]):
            early += late
        scale = -2 / (size * self.variance)
        in_bias = scale * errors[0].sum(axis=0, dtype=np.float64)
        errors = errors.reshape(-1, d)
        main = Term(stacked, self.engine.code_gradient(errors, stacked, scale), errors, scale)
        squared = float(np.square(residual, dtype=np.float64).sum())
        aux = self.auxk(x, residual, squared, dead)
        if aux is not None:
            aux = lengthen(aux, len(errors))
        return Loss(main, aux, squared, in_bias, inputs=np.tile(centred, (len(ends), 1)))


def stack(active: Active, ends: list[int]) -> Active:
    """Put the codes of each segment of atoms into rows of their own: (B, m) becomes (segments · B, m).

    Parameters
    ----------
    ends
        Ascending ends of the segments, the last of them m.
    """
    size = len(active.indptr) - 1
    segments = np.searchsorted(ends, active.indices, side="right")
    rows = segments * size + active.rows
    order = np.argsort(rows, kind="stable")
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(ends) * size))])
    return Active(indptr, active.indices[order], active.values[order])


def lengthen(term: Term, n: int) -> Term:
    """Add rows without codes to a term until it has n."""
    active, missing = term.active, n - len(term.error)
    indptr = np.concatenate([active.indptr, np.full(missing, active.indptr[-1])])
    error = np.concatenate([term.error, np.zeros((missing, term.error.shape[1]), dtype=np.float32)])
    return Term(Active(indptr, active.indices, active.values), term.gradient, error, term.scale)


def fit(
    rows: Rows, options: Options, seed: int, progress: Progress | None = None
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Fit BatchTopK on training rows; return the arrays and the card's `training` part."""
    return learn(BatchTopKTrainer, rows, options, seed, progress)


def fit_matryoshka(
    rows: Rows, options: MatryoshkaOptions, seed: int, progress: Progress | None = None
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Fit Matryoshka BatchTopK, as `fit` does."""
    return learn(MatryoshkaTrainer, rows, options, seed, progress)
