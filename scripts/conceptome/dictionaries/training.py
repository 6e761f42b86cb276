"""The training loop that every learned dictionary shares: batch order, learning rate, dead atoms, the curve."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from conceptome.config.dictionaries import TrainedBase
from conceptome.dictionaries.batches import Batches, Order, batches_of
from conceptome.dictionaries.checkpoint import Checkpoint, Stopped, digest_of
from conceptome.dictionaries.distributed import Alone, current
from conceptome.dictionaries.rows import Rows, sample
from conceptome.errors import ConfigError, DataError
from conceptome.progress import Pace
from conceptome_kernels import share_openmp

log = logging.getLogger(__name__)

LOG_EVERY = 50
# Streams of one seed that must not share random numbers (2: the order); not 0, since numpy seeds [s, 0] and s alike.
ATOMS, SAMPLE = 1, 3
SAMPLE_ROWS = 8192
CACHED = 2**15  # values of an array that are worked on at once: 128 KiB of float32

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


def rate(step: int, steps: int, warm_up: float, warm_down: float) -> float:
    """Factor of the learning rate: linear rise over the first share of the steps, linear fall over the last share."""
    up = (step + 1) / max(1.0, warm_up * steps)
    down = (steps - step) / max(1.0, warm_down * steps)
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
    for part in _cached(atoms):
        gradient[part] -= np.einsum("md,md->m", gradient[part], atoms[part])[:, None] * atoms[part]


def normalise(atoms: np.ndarray) -> None:
    """Give every atom (m, d) unit length, in place."""
    for part in _cached(atoms):
        atoms[part] /= np.linalg.norm(atoms[part], axis=1, keepdims=True)


def _cached(array: np.ndarray) -> Iterator[slice]:
    """Give runs of rows whose intermediate results stay in the cache: fresh memory costs more than the arithmetic."""
    size = max(1, CACHED * len(array) // max(1, array.size))
    return (slice(at, at + size) for at in range(0, len(array), size))


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
    clip
        Longest gradient of a step, over all parameters together; None: any length.
    group
        Processes that average their gradients.
    betas
        Decay of the two moments.
    moments
        Name → (first, second) moment, each of the parameter's shape and dtype.
    """

    def __init__(self, parameters: dict[str, np.ndarray], epsilon: float = 1e-8, betas: tuple = (0.9, 0.999)):
        self.parameters, self.epsilon, self.betas = parameters, epsilon, betas
        self.learning_rate = 0.0
        self.clip: float | None = None
        self.group = Alone()
        self.steps = 0
        self.moments = {name: (np.zeros_like(value), np.zeros_like(value)) for name, value in parameters.items()}

    def advance(self) -> tuple[float, float]:
        """Begin a step that never forms its gradients: give the size and the root of `move`.

        Raises
        ------
        ConfigError
            Gradients are to be cut or averaged.
        """
        if self.clip is not None or self.group.size > 1:
            asked = "several processes" if self.clip is None else "gradient_clip"
            raise ConfigError(f"this method's compiled step forms no gradients, which {asked} would need: leave it out")
        return self._begin()

    def _begin(self) -> tuple[float, float]:
        """Size and root, both corrected for the moments' start at 0."""
        self.steps += 1
        beta1, beta2 = self.betas
        return self.learning_rate / (1.0 - beta1**self.steps), math.sqrt(1.0 - beta2**self.steps)

    def move(self, name: str, gradient: np.ndarray, size: float, root: float) -> None:
        """Move one parameter: value −= size · first / (√second / root + epsilon)."""
        beta1, beta2 = self.betas
        for part in _cached(gradient):
            value, (first, second) = self.parameters[name][part], (moment[part] for moment in self.moments[name])
            first += (1.0 - beta1) * (gradient[part] - first)
            second *= beta2
            second += (1.0 - beta2) * np.square(gradient[part])
            denominator = np.sqrt(second)
            denominator /= root
            denominator += self.epsilon
            value -= size * first / denominator

    def step(self, gradients: dict[str, np.ndarray]) -> None:
        """Move every parameter by its gradient, averaged over the group and cut to length."""
        gradients = {name: self.group.mean(gradient) for name, gradient in gradients.items()}
        if self.clip is not None:
            # Not a BLAS product, whose last digits depend on the number of threads.
            squares = [np.einsum("i,i->", flat, flat, dtype=np.float64) for flat in map(np.ravel, gradients.values())]
            length = math.sqrt(sum(squares))
            if length > self.clip:
                gradients = {name: gradient * (self.clip / length) for name, gradient in gradients.items()}
        size, root = self._begin()
        for name in self.parameters:
            self.move(name, gradients[name], size, root)


class Trainer(Protocol):
    """One method's state and its step.

    A trainer with `shares = True` averages whatever it learns over the processes of a data-parallel training; the
    others refuse to be one of several.
    """

    m: int
    optimiser: Adam

    def step(self, x: np.ndarray, dead: np.ndarray, number: int) -> tuple[float, np.ndarray]:
        """Take one step on scaled rows (B, d).

        Returns
        -------
        fvu, fired
            Σ‖x̂−x‖² / Σ‖x−mean‖²; in how many rows each atom fired, int (m,), or only whether it did, bool (m,): the
            curve then says nothing of L0.

        Raises
        ------
        FloatingPointError
            Training diverged.
        """
        ...

    def state(self) -> dict[str, np.ndarray]:
        """What the trainer keeps beyond the optimiser's parameters, moments and steps; {} where that is nothing."""
        ...

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Take what `state` gave, after the parameters were changed in place."""
        ...


@dataclass
class Loop:
    """What the loop keeps from step to step.

    Attributes
    ----------
    done, seen
        Steps and rows so far.
    silent
        (m,) rows since each atom last fired.
    recent
        Sums since the last logged step: fvu, active codes per row, steps.
    curve
        One entry per logged step.
    """

    silent: np.ndarray
    done: int = 0
    seen: int = 0
    recent: list[float] = field(default_factory=lambda: [0.0, 0.0, 0])
    curve: dict[str, list] = field(
        default_factory=lambda: {name: [] for name in ("step", "fvu", "dead", "l0", "learning_rate")}
    )

    def count(self, fvu: float, fired: np.ndarray, rows: int) -> None:
        """Note one step."""
        self.silent += rows
        self.silent[fired > 0] = 0
        self.done += 1
        self.seen += rows
        active = math.nan if fired.dtype == bool else float(fired.sum()) / rows
        self.recent = [total + value for total, value in zip(self.recent, (fvu, active, 1))]

    def note(self, dead: int, learning_rate: float) -> None:
        """Add a point to the curve: means since the last one."""
        fvu, active, steps = self.recent
        self.recent = [0.0, 0.0, 0]
        values = (self.done, round(fvu / steps, 6), dead, round(active / steps, 3), float(f"{learning_rate:.6g}"))
        for name, value in zip(self.curve, values):
            # JSON has no NaN.
            self.curve[name].append(None if value != value else value)


def train(
    trainer: Trainer,
    rows: Rows,
    options: TrainedBase,
    *,
    seed: int,
    deviation: float,
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
) -> dict[str, Any]:
    """Run the loop; in several processes at once where `distributed` says so.

    Parameters
    ----------
    trainer
        The method; its optimiser's learning rate is set before each step.
    rows
        Training rows; divided by `deviation` before each step.
    options
        steps, batch_size, learning_rate, warm_up, warm_down, gradient_clip, adam_beta2, buffer_mb, order_seed,
        checkpoint_every and checkpoint_seconds; dead_after: an atom silent for that many samples counts as dead.
    progress
        Called with (steps done, steps) every 50 steps and at the end.
    checkpoint
        Where the state is kept every `checkpoint_every` steps, and where an earlier one of the same training is taken
        up: the result is the same, bit by bit, whenever the training was interrupted. The last state stays there. Once
        its `stop` is set, the state is written after the step and `Stopped` raised.

    Returns
    -------
    dict
        The curve (step; fvu and l0 averaged since the last logged step; dead; learning_rate), n_rows, n_seen,
        learning_rate and more: for the card.
    """
    steps, dead_after = options.steps, options.dead_after
    optimiser, order = trainer.optimiser, Order.of(rows, options, seed)
    optimiser.clip, optimiser.group = options.gradient_clip, current()
    if isinstance(optimiser, Adam):
        optimiser.betas = (optimiser.betas[0], options.adam_beta2)
    group = optimiser.group
    if group.size > 1 and not getattr(trainer, "shares", False):
        raise ConfigError(f"dictionary '{options.method}' is trained by one process: start it without torchrun")
    if options.processes not in (1, group.size):
        raise ConfigError(
            f"dictionary '{options.method}' asks for {options.processes} processes and has {group.size}: learn it by "
            "the workflow or `learn`, or start as many by torchrun"
        )
    loop, position = Loop(np.zeros(trainer.m, dtype=np.int64)), None
    saving = _Saving(checkpoint, trainer, loop, rows, options, seed, deviation) if checkpoint else None
    if saving:
        position = saving.resume()
    batches = batches_of(rows, order, loop.done, position) if loop.done < steps else None
    pace = Pace("rows", min(options.batch_size, rows.shape[0]))
    pace(loop.done, steps)
    try:
        while loop.done < steps:
            batch = next(batches)
            x = group.part(batch) / np.float32(deviation)
            optimiser.learning_rate = options.scaled_learning_rate * rate(
                loop.done, steps, options.warm_up, options.warm_down
            )
            try:
                fvu, fired = _of_all(group, *trainer.step(x, loop.silent >= dead_after, loop.done))
            except FloatingPointError:
                fvu = math.nan
            if not math.isfinite(fvu):
                raise DataError(
                    f"training diverged at step {loop.done + 1}: "
                    f"lower learning_rate (now {options.scaled_learning_rate:g})"
                )
            loop.count(fvu, fired, len(batch))
            if loop.done % LOG_EVERY == 0 or loop.done == steps:
                loop.note(int((loop.silent >= dead_after).sum()), optimiser.learning_rate)
                _say(loop.curve, steps, trainer.m, pace(loop.done, steps))
                if progress:
                    progress(loop.done, steps)
            if saving and group.rank == 0:
                saving.step(batches)
                if checkpoint.stop.is_set():
                    raise Stopped
    finally:
        if batches:
            batches.close()
    return {
        "curve": loop.curve,
        "fvu": loop.curve["fvu"][-1],
        "dead": loop.curve["dead"][-1],
        "l0": loop.curve["l0"][-1],
        "dead_after": dead_after,
        "n_rows": rows.shape[0],
        "n_seen": loop.seen,
        "batch_size": min(options.batch_size, rows.shape[0]),
        "learning_rate": options.scaled_learning_rate,
        "deviation": deviation,
    }


def _of_all(group: Alone, fvu: float, fired: np.ndarray) -> tuple[float, np.ndarray]:
    """What `Trainer.step` returns, over the rows of all processes."""
    if group.size == 1:
        return fvu, fired
    means = group.mean(np.concatenate([[fvu], fired]))
    counts = np.rint(means[1:] * group.size)
    return float(means[0]), counts > 0 if fired.dtype == bool else counts.astype(np.int64)


def _say(curve: dict[str, list], steps: int, m: int, pace: str) -> None:
    step, fvu, dead = (curve[name][-1] for name in ("step", "fvu", "dead"))
    pace = pace and f"; {pace}"
    log.info("step %d of %d: fvu %.4f, dead atoms %d of %d%s", step, steps, fvu, dead, m, pace)


class _Saving:
    """Keeps the state of one training in a checkpoint, and takes it up again."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        trainer: Trainer,
        loop: Loop,
        rows: Rows,
        options: TrainedBase,
        seed: int,
        deviation: float,
    ):
        self.checkpoint, self.trainer, self.loop, self.options = checkpoint, trainer, loop, options
        settings = {
            "options": options.model_dump(mode="json", exclude={"checkpoint_every", "checkpoint_seconds"}),
            "trainer": type(trainer).__name__,
            "seed": seed,
            "shape": list(rows.shape),
            "deviation": deviation,
        }
        # The first parameters hold what was measured of the data.
        self.digest = digest_of(settings, trainer.optimiser.parameters)
        self.written = time.monotonic()

    def resume(self) -> dict[str, Any] | None:
        """Take up an earlier state; return its position in the order, or None where there is none."""
        found = self.checkpoint.read(self.digest)
        if found is None:
            return None
        arrays, state = found
        optimiser = self.trainer.optimiser
        for name, value in optimiser.parameters.items():
            value[...] = arrays[f"parameter.{name}"]
            for number, moment in enumerate(optimiser.moments[name]):
                moment[...] = arrays[f"moment{number}.{name}"]
        optimiser.steps = state["optimiser_steps"]
        self.trainer.restore(
            {name.removeprefix("own."): value for name, value in arrays.items() if name.startswith("own.")}
        )
        self.loop.silent[...] = arrays["silent"]
        for name in ("done", "seen", "recent", "curve"):
            setattr(self.loop, name, state[name])
        log.info("going on from step %d of %s", self.loop.done, self.checkpoint.origin)
        return state["position"]

    def step(self, batches: Batches) -> None:
        """After a step: write, if it is time to."""
        if self.checkpoint.stop.is_set():
            self._write(batches)
            log.info("stopped at step %d: the state is in %s", self.loop.done, self.checkpoint.path)
            return
        due = self.loop.done % self.options.checkpoint_every == 0 or self.loop.done == self.options.steps
        if due and time.monotonic() - self.written >= self.options.checkpoint_seconds:
            self._write(batches)

    def _write(self, batches: Batches) -> None:
        optimiser = self.trainer.optimiser
        arrays = {"silent": self.loop.silent}
        for name, value in optimiser.parameters.items():
            arrays[f"parameter.{name}"] = value
            arrays |= {f"moment{number}.{name}": moment for number, moment in enumerate(optimiser.moments[name])}
        arrays |= {f"own.{name}": value for name, value in self.trainer.state().items()}
        state = {name: getattr(self.loop, name) for name in ("done", "seen", "recent", "curve")}
        state |= {"optimiser_steps": optimiser.steps, "position": batches.state()}
        self.checkpoint.write(self.digest, arrays, state)
        self.written = time.monotonic()
