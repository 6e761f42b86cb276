"""MP-SAE: a sparse autoencoder whose encoder is matching pursuit (Costa et al. 2025, arXiv 2506.03093).

    r_0 = x − b;   for t = 1 … k:   j = argmax_j ⟨D_j, r_{t−1}⟩,   a_t = ⟨D_j, r_{t−1}⟩,   r_t = r_{t−1} − a_t·D_j

with z the sum of a_t at the atoms chosen (one may be taken again) and x̂ = z·D + b, so that r_k = x − x̂. Encoder and
decoder share the unit rows of D. D and b follow the gradient of ‖r_k‖² through all k steps, as in the source: each step
counts as the projection r_t = (I − D_j·D_jᵀ)·r_{t−1} along the atom that it chose, and only the choice has no gradient.
With g_t = ∂L/∂r_t and h_t = ⟨g_t, D_j⟩ for the atom j of step t,

    ∂L/∂D_j gains −(h_t·r_{t−1} + a_t·g_t),   g_{t−1} = g_t − h_t·D_j,   ∂L/∂b = −Σ g_0.

The authors' library suggests an auxiliary loss that draws unused atoms towards residuals. Here an atom that is silent
for `dead_after` samples starts anew as the residual of a row that the batch explained worst.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from conceptome.dictionaries.encoders import DONE, matching_pursuit
from conceptome.dictionaries.pursuit import PursuitDictionary, gram_of
from conceptome.dictionaries.rows import Rows, sample
from conceptome.dictionaries.training import (
    SAMPLE,
    SAMPLE_ROWS,
    Adam,
    Progress,
    measure_scale,
    normalise,
    project_gradient,
    random_atoms,
    train,
)
from conceptome.dictionaries.updates import GATHERED, Restarts, orient, worst_explained

if TYPE_CHECKING:
    from conceptome.config.dictionaries import MpSae as Options

# No atom starts anew in the last part of training, where the learning rate no longer lets it settle.
LAST_RESTART = 0.75


class MpSae(PursuitDictionary):
    """An MP-SAE; parameters atoms (m, d), bias (d,)."""

    method = "mp_sae"

    def _encode(self, X: np.ndarray, k: int) -> sp.csr_matrix:
        nonnegative = self.card["options"]["nonnegative"]
        return matching_pursuit(X - self.bias, self.atoms, k, nonnegative=nonnegative, gram=self.gram(k))


class Unrolled(NamedTuple):
    """What a pursuit leaves, and the gradients of scale · Σ‖r_k‖² in the atoms and in x − b."""

    residual: np.ndarray
    in_atoms: np.ndarray
    in_centred: np.ndarray


def unrolled(
    centred: np.ndarray, codes: sp.csr_matrix, atoms: np.ndarray, k: int, *, scale: float, nonnegative: bool
) -> Unrolled:
    """Gradient of scale · Σ‖r_k‖² through the k steps of matching pursuit.

    The codes say which atoms a row took, not in which order: the pursuit is run again among those atoms alone, where it
    takes the same steps. All it needs there is their small Gram matrix.

    Parameters
    ----------
    centred, atoms
        float (B, d) rows x − b; unit rows (m, d).
    codes
        (B, m) CSR of `matching_pursuit(centred, atoms, k)`.
    """
    in_atoms = np.zeros_like(atoms)
    residual, in_centred = np.empty_like(centred), np.empty_like(centred)
    width = int(np.diff(codes.indptr).max(initial=1)) or 1
    size = max(1, GATHERED // (width * atoms.shape[1]))
    for at in range(0, len(centred), size):
        part = slice(at, at + size)
        found = _unrolled_block(centred[part], codes[part], atoms, k, scale, nonnegative, width)
        residual[part], in_centred[part] = found.residual, found.in_centred
        in_atoms += found.in_atoms
    return Unrolled(residual, in_atoms, in_centred)


def _unrolled_block(
    centred: np.ndarray, codes: sp.csr_matrix, atoms: np.ndarray, k: int, scale: float, nonnegative: bool, width: int
) -> Unrolled:
    n, rows = len(centred), np.arange(len(centred))
    lengths = np.diff(codes.indptr)
    places = np.arange(width) < lengths[:, None]
    support = np.zeros((n, width), dtype=np.int64)
    support[places] = codes.indices
    chosen = atoms[support] * places[:, :, None]
    gram = chosen @ chosen.transpose(0, 2, 1)
    correlations = (chosen @ centred[:, :, None])[:, :, 0]
    floor = DONE * np.linalg.norm(centred, axis=1)
    steps: list[tuple[np.ndarray, np.ndarray]] = []
    taken = np.zeros_like(correlations)
    for _ in range(k):
        scores = correlations if nonnegative else np.abs(correlations)
        place = scores.argmax(axis=1)
        value = np.where(scores[rows, place] > floor, correlations[rows, place], 0)
        correlations = correlations - value[:, None] * gram[rows, place]
        taken[rows, place] += value
        steps.append((place, value))
    residual = centred - (taken[:, None, :] @ chosen)[:, 0]
    # Backwards: `toward` is ⟨g_t, D⟩ at the chosen atoms, and r_{t−1} and g_t are written in their terms.
    in_residual = (2 * scale) * residual
    toward = (2 * scale) * correlations
    before, after = taken, np.zeros_like(taken)
    mixed = np.zeros((n, width, width), dtype=centred.dtype)
    for place, value in reversed(steps):
        pull = np.where(value != 0, toward[rows, place], 0)
        toward = toward - pull[:, None] * gram[rows, place]
        before[rows, place] -= value
        mixed[rows, place] += pull[:, None] * before + value[:, None] * after
        after[rows, place] += pull
    total = np.zeros_like(taken)
    for place, value in steps:
        total[rows, place] += value
    m = len(atoms)
    in_atoms = _by_atom(support, np.ones_like(total), m, each=True) @ (mixed @ chosen).reshape(n * width, -1)
    in_atoms -= _by_atom(support, after, m) @ centred
    in_atoms -= _by_atom(support, total, m) @ in_residual
    return Unrolled(residual, in_atoms, in_residual - (after[:, None, :] @ chosen)[:, 0])


def _by_atom(support: np.ndarray, values: np.ndarray, m: int, *, each: bool = False) -> sp.csr_matrix:
    """Sparse (m, B) with values (B, width) at their atoms; `each`: (m, B·width), a column for every place."""
    n, width = support.shape
    columns = np.arange(n * width) if each else np.repeat(np.arange(n), width)
    size = n * width if each else n
    return sp.csr_matrix((values.ravel(), (support.ravel(), columns)), shape=(m, size))


class Trainer(Restarts):
    """The step: pursuit on the compiled kernels where there are any, gradient in numpy."""

    def __init__(self, parameters: dict[str, np.ndarray], options: Options):
        self.options = options
        self.m, d = parameters["atoms"].shape
        self.variance = float(d)
        self.parameters = parameters
        self.optimiser = Adam(parameters)

    def step(self, x: np.ndarray, dead: np.ndarray, number: int) -> tuple[float, np.ndarray]:
        """As `training.Trainer` says."""
        options, atoms, bias = self.options, self.parameters["atoms"], self.parameters["bias"]
        centred = x - bias
        gram = gram_of(atoms, len(x), options.k)
        codes = matching_pursuit(centred, atoms, options.k, nonnegative=options.nonnegative, gram=gram)
        size = len(x) * self.variance
        through = unrolled(centred, codes, atoms, options.k, scale=1 / size, nonnegative=options.nonnegative)
        project_gradient(atoms, through.in_atoms)
        self.optimiser.step({"atoms": through.in_atoms, "bias": -through.in_centred.sum(axis=0)})
        normalise(atoms)
        fired = np.bincount(codes.indices, minlength=self.m) > 0
        if dead.any() and number + 1 <= LAST_RESTART * options.steps:
            fired |= self._restart(np.flatnonzero(dead & ~fired), through.residual)
        return float(np.square(through.residual, dtype=np.float64).sum()) / size, fired

    def _restart(self, which: np.ndarray, residual: np.ndarray) -> np.ndarray:
        """Give dead atoms a direction that was explained badly; tell which, since they count as alive from now."""
        fresh = worst_explained(residual, len(which))
        which = which[: len(fresh)]
        self.restarts += len(which)
        self.parameters["atoms"][which] = fresh
        for moment in self.optimiser.moments["atoms"]:
            moment[which] = 0
        return np.isin(np.arange(self.m), which)


def fit(
    rows: Rows, options: Options, seed: int, progress: Progress | None = None, **loop: Any
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Fit on training rows; return the arrays and the card's `training` part."""
    from threadpoolctl import threadpool_limits

    scale = measure_scale(rows, seed, lambda X: X.mean(axis=0))
    atoms = random_atoms(options.m, rows.shape[1], seed)
    trainer = Trainer({"atoms": atoms, "bias": (scale.centre / scale.deviation).astype(np.float32)}, options)
    # On some processors BLAS sums in another order with another number of threads; its products are small here, one for
    # each row, and gain little from a second. The kernels keep theirs.
    with threadpool_limits(1, user_api="blas"):
        training = train(trainer, rows, options, seed=seed, deviation=scale.deviation, progress=progress, **loop)
    bias = trainer.parameters["bias"] * np.float32(scale.deviation)
    if not options.nonnegative:
        X = sample(rows, SAMPLE_ROWS, np.random.default_rng([seed, SAMPLE])) - bias
        orient(atoms, matching_pursuit(X, atoms, options.k, gram=gram_of(atoms, len(X), options.k)))
    return {"atoms": atoms, "bias": bias}, {**training, "restarts": trainer.restarts}
