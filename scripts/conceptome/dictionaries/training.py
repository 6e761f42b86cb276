"""The training loop that every learned dictionary shares: batch order, learning rate, dead atoms, the curve."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from conceptome.config.dictionaries import TrainedBase
from conceptome.dictionaries.rows import Rows, sample
from conceptome.errors import DataError
from conceptome_kernels import share_openmp

log = logging.getLogger(__name__)

LOG_EVERY = 50
WARM_UP = 0.05
WARM_DOWN = 0.5
# Streams of one seed that must not share random numbers; not 0, since numpy seeds [s, 0] and s alike.
ATOMS, ORDER, SAMPLE = 1, 2, 3
SAMPLE_ROWS = 8192

Progress = Callable[[int, int], None]


@contextmanager
def thread_limit(threads: int | None, *, with_torch: bool) -> Iterator[None]:
    """Run the block with this many threads in BLAS, kernels, and torch where it is used; then restore them.

    None leaves them as they are.
    """
    if threads is None:
        yield
        return
    from threadpoolctl import threadpool_limits

    if not with_torch:
        # The limit reaches only what is loaded by now.
        share_openmp()
        with threadpool_limits(threads):
            yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with threadpool_limits(threads):
            yield
    finally:
        torch.set_num_threads(before)


def batch_order(n: int, batch_size: int, seed: int) -> Iterator[np.ndarray]:
    """Endless positions (batch_size,), drawn epoch after epoch without replacement.

    A batch may straddle two epochs; with fewer rows than batch_size every batch is one epoch of n rows.
    """
    rng = np.random.default_rng([seed, ORDER])
    size = min(batch_size, n)
    held = np.zeros(0, dtype=np.int64)
    while True:
        while len(held) < size:
            held = np.concatenate([held, rng.permutation(n)])
        yield held[:size]
        held = held[size:]


def rate(step: int, steps: int) -> float:
    """Factor of the learning rate: linear warm-up over 5 % of the steps, linear warm-down over the last half."""
    up = (step + 1) / max(1.0, WARM_UP * steps)
    down = (steps - step) / max(1.0, WARM_DOWN * steps)
    return min(1.0, up, down)


def random_atoms(m: int, d: int, seed: int) -> np.ndarray:
    """Random unit rows, float32 (m, d)."""
    atoms = np.random.default_rng([seed, ATOMS]).standard_normal((m, d))
    return (atoms / np.linalg.norm(atoms, axis=1, keepdims=True)).astype(np.float32)


@dataclass(frozen=True)
class Scale:
    """Centre (d,) and root mean squared distance from the mean per dimension, of a seeded sample of training rows."""

    centre: np.ndarray
    deviation: float


def measure_scale(rows: Rows, seed: int, centre: Callable[[np.ndarray], np.ndarray]) -> Scale:
    """Centre and scale that training divides out, so that one learning rate serves activations of any size."""
    X = sample(rows, SAMPLE_ROWS, np.random.default_rng([seed, SAMPLE])).astype(np.float64)
    deviation = math.sqrt(np.square(X - X.mean(axis=0)).mean())
    # Rounding of constant activations leaves a deviation in their last digits, not exactly 0.
    if deviation <= 1e-7 * np.abs(X).max():
        raise DataError(f"all {len(X)} training rows looked at are the same: there is no variance to explain")
    return Scale(centre(X), deviation)


def project_gradient(atoms: np.ndarray, gradient: np.ndarray) -> None:
    """Remove, in place, the part of each atom's gradient that only changes its length (Gao et al. 2024)."""
    gradient -= np.einsum("md,md->m", gradient, atoms)[:, None] * atoms


def normalise(atoms: np.ndarray) -> None:
    """Give every atom (m, d) unit length, in place."""
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)


class Adam:
    """Adam (Kingma and Ba 2015, arXiv 1412.6980, algorithm 1) on gradients that are given, not traced.

    torch.optim imports its compiler when the first optimiser is made, which takes longer than many a fit.

    Parameters
    ----------
    parameters
        Name → array, changed in place.
    epsilon
        Added to the root of the second moment.

    Attributes
    ----------
    learning_rate
        Set before each step.
    moments
        Name → (first, second) moment, each of the parameter's shape and dtype.
    """

    def __init__(self, parameters: dict[str, np.ndarray], epsilon: float = 1e-8, betas: tuple = (0.9, 0.999)):
        self.parameters, self.epsilon, self.betas = parameters, epsilon, betas
        self.learning_rate = 0.0
        self.steps = 0
        self.moments = {name: (np.zeros_like(value), np.zeros_like(value)) for name, value in parameters.items()}

    def advance(self) -> tuple[float, float]:
        """Begin a step: give the size and the root of `move`, both corrected for the moments' start at 0."""
        self.steps += 1
        beta1, beta2 = self.betas
        return self.learning_rate / (1.0 - beta1**self.steps), math.sqrt(1.0 - beta2**self.steps)

    def move(self, name: str, gradient: np.ndarray, size: float, root: float) -> None:
        """Move one parameter: value −= size · first / (√second / root + epsilon)."""
        beta1, beta2 = self.betas
        value, (first, second) = self.parameters[name], self.moments[name]
        first += (1.0 - beta1) * (gradient - first)
        second *= beta2
        second += (1.0 - beta2) * np.square(gradient)
        denominator = np.sqrt(second)
        denominator /= root
        denominator += self.epsilon
        value -= size * first / denominator

    def step(self, gradients: dict[str, np.ndarray]) -> None:
        """Move every parameter by its gradient."""
        size, root = self.advance()
        for name in self.parameters:
            self.move(name, gradients[name], size, root)


class Trainer(Protocol):
    """One method's state and its step."""

    m: int
    optimiser: Adam

    def step(self, x: np.ndarray, dead: np.ndarray, number: int) -> tuple[float, np.ndarray]:
        """Take one step on scaled rows (B, d); return Σ‖x̂−x‖² / Σ‖x−mean‖² and which atoms fired, bool (m,).

        Raises
        ------
        FloatingPointError
            Training diverged.
        """
        ...


def train(
    trainer: Trainer,
    rows: Rows,
    options: TrainedBase,
    *,
    seed: int,
    deviation: float,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run the loop.

    Parameters
    ----------
    trainer
        The method; its optimiser's learning rate is set before each step.
    rows
        Training rows; divided by `deviation` before each step.
    options
        steps, batch_size, learning_rate, and dead_after: an atom silent for that many samples counts as dead.
    progress
        Called with (steps done, steps) every 50 steps and at the end.

    Returns
    -------
    dict
        The curve (step, fvu averaged since the last logged step, dead), n_rows, n_seen, learning_rate: for the card.
    """
    steps, learning_rate, dead_after = options.steps, options.scaled_learning_rate, options.dead_after
    silent = np.zeros(trainer.m, dtype=np.int64)
    curve: dict[str, list] = {"step": [], "fvu": [], "dead": []}
    recent: list[float] = []
    seen = 0
    order = batch_order(rows.shape[0], options.batch_size, seed)
    for number in range(steps):
        x = rows.take(next(order)) / np.float32(deviation)
        trainer.optimiser.learning_rate = learning_rate * rate(number, steps)
        try:
            fvu, fired = trainer.step(x, silent >= dead_after, number)
        except FloatingPointError:
            fvu = math.nan
        if not math.isfinite(fvu):
            raise DataError(f"training diverged at step {number + 1}: lower learning_rate (now {learning_rate:g})")
        silent += len(x)
        silent[fired] = 0
        seen += len(x)
        recent.append(fvu)
        if (number + 1) % LOG_EVERY == 0 or number + 1 == steps:
            dead = int((silent >= dead_after).sum())
            curve["step"].append(number + 1)
            curve["fvu"].append(round(float(np.mean(recent)), 6))
            curve["dead"].append(dead)
            recent.clear()
            log.info(
                "step %d of %d: fvu %.4f, dead atoms %d of %d", number + 1, steps, curve["fvu"][-1], dead, trainer.m
            )
            if progress:
                progress(number + 1, steps)
    return {
        "curve": curve,
        "fvu": curve["fvu"][-1],
        "dead": curve["dead"][-1],
        "dead_after": dead_after,
        "n_rows": rows.shape[0],
        "n_seen": seen,
        "batch_size": min(options.batch_size, rows.shape[0]),
        "learning_rate": learning_rate,
        "deviation": deviation,
    }
