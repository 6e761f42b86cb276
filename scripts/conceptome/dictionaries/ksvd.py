"""K-SVD dictionary learning (Aharon et al. 2006), approximate as in Rubinstein et al. 2008, on mini-batches.

A batch is encoded by orthogonal matching pursuit. Then each atom that it uses is fitted to the rows that use it, with
all other atoms and codes as they are: with g the atom's codes in those rows and E = R + g·D_j what the other atoms
leave of them, one power iteration for the first singular vectors of E gives

    d = Eᵀ·g / ‖Eᵀ·g‖,   g ← E·d,   R ← E − g·d.

Taken one after another (`update: sequential`), each atom sees what those before it have changed, as in the sources;
`parallel` fits all to the same R (Irofti and Dumitrescu 2015, arXiv 1509.05054), in one sparse product. Since a batch
is not the whole data, an atom goes only the share `learning_rate` of the way to d, which falls to 0 over the last half
of the steps. An atom that is silent for `dead_after` samples starts anew as the residual of the row explained worst,
as in Aharon et al. In the end atoms are turned so that their codes sum to more than 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from conceptome.dictionaries.encoders import orthogonal_matching_pursuit
from conceptome.dictionaries.pursuit import PursuitDictionary, gram_of
from conceptome.dictionaries.rows import Rows, sample
from conceptome.dictionaries.training import SAMPLE, SAMPLE_ROWS, Progress, measure_scale, random_atoms, train
from conceptome.dictionaries.updates import Restarts, orient, worst_explained

if TYPE_CHECKING:
    from conceptome.config.dictionaries import Ksvd as Options


class Ksvd(PursuitDictionary):
    """A K-SVD dictionary; parameters atoms (m, d), bias (d,)."""

    method = "ksvd"

    def _encode(self, X: np.ndarray, k: int) -> sp.csr_matrix:
        return orthogonal_matching_pursuit(X - self.bias, self.atoms, k, gram=self.gram(k))


class Shares:
    """In the optimiser's place: atoms that go `learning_rate` of the way to where they are told, without moments."""

    def __init__(self, parameters: dict[str, np.ndarray]):
        self.parameters = parameters
        self.moments: dict[str, tuple] = {name: () for name in parameters}
        self.learning_rate = 0.0
        self.steps = 0


def update_in_turn(atoms: np.ndarray, codes: sp.csr_matrix, residual: np.ndarray, share: float) -> None:
    """Move atoms one after another, each with its codes (Rubinstein et al. 2008, algorithm 5); all in place.

    Parameters
    ----------
    atoms
        float32 (m, d) unit rows; changed.
    codes
        (B, m) CSR.
    residual
        (B, d): what the codes leave; becomes what the new atoms and codes leave.
    share
        0 … 1 of the way to the fitted atom.
    """
    by_atom = codes.tocsc()
    for j in np.flatnonzero(np.diff(by_atom.indptr)):
        places = slice(by_atom.indptr[j], by_atom.indptr[j + 1])
        rows, g = by_atom.indices[places], by_atom.data[places]
        left = residual[rows] + g[:, None] * atoms[j]
        atoms[j] = _moved(atoms[j], g @ left, share)
        residual[rows] = left - np.outer(left @ atoms[j], atoms[j])


def update_at_once(atoms: np.ndarray, codes: sp.csr_matrix, residual: np.ndarray, share: float) -> None:
    """Move all atoms, in place, each as if the others stood still (Irofti and Dumitrescu 2015); as `update_in_turn`."""
    by_atom = codes.T.tocsr()
    used = np.flatnonzero(np.diff(by_atom.indptr))
    energy = np.asarray(by_atom.multiply(by_atom).sum(axis=1)).ravel()[used]
    fitted = by_atom[used] @ residual + energy[:, None].astype(np.float32) * atoms[used]
    atoms[used] = _moved(atoms[used], fitted, share)


def _moved(atoms: np.ndarray, targets: np.ndarray, share: float) -> np.ndarray:
    """Unit vectors (…, d) between atoms and the directions of `targets`; an atom itself where that has no length."""
    between = (1 - share) * atoms + share * _unit(targets, atoms)
    return _unit(between, atoms)


def _unit(vectors: np.ndarray, instead: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.where(lengths > 0, vectors / np.where(lengths > 0, lengths, 1), instead)


class Trainer(Restarts):
    """The step: orthogonal matching pursuit on the compiled kernels where there are any, the update in numpy."""

    def __init__(self, atoms: np.ndarray, bias: np.ndarray, options: Options):
        self.options = options
        self.atoms, self.bias = atoms, bias
        self.m, d = atoms.shape
        self.variance = float(d)
        self.optimiser = Shares({"atoms": atoms})
        self.update = update_in_turn if options.update == "sequential" else update_at_once

    def step(self, x: np.ndarray, dead: np.ndarray, number: int) -> tuple[float, np.ndarray]:
        """As `training.Trainer` says."""
        centred, share, k = x - self.bias, self.optimiser.learning_rate, self.options.k
        codes = orthogonal_matching_pursuit(centred, self.atoms, k, gram=gram_of(self.atoms, len(x), k))
        residual = centred - codes @ self.atoms
        unexplained = float(np.square(residual, dtype=np.float64).sum()) / (len(x) * self.variance)
        fired = np.bincount(codes.indices, minlength=self.m) > 0
        which = np.flatnonzero(dead & ~fired)
        fresh = worst_explained(residual, len(which)) if share and len(which) else residual[:0]
        self.update(self.atoms, codes, residual, share)
        which = which[: len(fresh)]
        self.atoms[which] = fresh
        self.restarts += len(which)
        fired[which] = True
        self.optimiser.steps += 1
        return unexplained, fired


def fit(
    rows: Rows, options: Options, seed: int, progress: Progress | None = None, **loop: Any
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Fit on training rows; return the arrays and the card's `training` part."""
    scale = measure_scale(rows, seed, lambda X: X.mean(axis=0))
    atoms = random_atoms(options.m, rows.shape[1], seed)
    trainer = Trainer(atoms, (scale.centre / scale.deviation).astype(np.float32), options)
    training = train(trainer, rows, options, seed=seed, deviation=scale.deviation, progress=progress, **loop)
    bias = scale.centre.astype(np.float32)
    X = sample(rows, SAMPLE_ROWS, np.random.default_rng([seed, SAMPLE])) - bias
    orient(atoms, orthogonal_matching_pursuit(X, atoms, options.k, gram=gram_of(atoms, len(X), options.k)))
    return {"atoms": atoms, "bias": bias}, {**training, "restarts": trainer.restarts}
