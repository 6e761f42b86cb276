"""Iterative codebook feature learning (Donhauser et al. 2025, arXiv 2412.16247): a batched pursuit and its dictionary.

The encoder has no parameters of its own. From r = x − b, each round takes the `columns` atoms with the largest signed
correlation ⟨D_j, r⟩, solves the least squares of r on them, adds the solution to the codes (an atom may be taken again
in a later round: its values add up) and subtracts the fit from r. With the codes fixed, D and b follow the gradient of
Σ‖x − z·D − b‖²; atoms are kept at unit length, and of two atoms with a cosine above `reset_cosine` one starts anew.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from conceptome.dictionaries.pursuit import PursuitDictionary, gram_of, plan, pursue_rows
from conceptome.dictionaries.rows import Rows
from conceptome.dictionaries.training import (
    Adam,
    Progress,
    measure_scale,
    normalise,
    project_gradient,
    random_atoms,
    train,
)

if TYPE_CHECKING:
    from conceptome.config.dictionaries import Icfl as Options

RESETS = 4
# No atom starts anew in the last part of training, where the learning rate no longer lets it settle.
LAST_RESET = 0.75


class Icfl(PursuitDictionary):
    """An ICFL dictionary; parameters atoms (m, d), bias (d,)."""

    method = "icfl"

    def _encode(self, X: np.ndarray, k: int) -> sp.csr_matrix:
        rounds = plan(k, self.card["options"]["columns"])
        return pursue_rows(X - self.bias, self.atoms, rounds, self.gram(len(rounds))).csr


def near_duplicates(atoms: np.ndarray, cosine: float, block: int = 2048) -> np.ndarray:
    """Atoms to start anew: of every pair above `cosine` the later one, unless its partner already starts anew.

    Parameters
    ----------
    atoms
        (m, d) unit rows.

    Returns
    -------
    numpy.ndarray
        int64 positions, ascending.
    """
    pairs = []
    for start in range(0, len(atoms), block):
        close = atoms[start : start + block] @ atoms.T > cosine
        first, second = np.nonzero(close)
        first = first + start
        pairs.append(np.stack([first, second], axis=1)[first < second])
    gone: set[int] = set()
    for first, second in np.concatenate(pairs):
        if int(first) not in gone:
            gone.add(int(second))
    return np.array(sorted(gone), dtype=np.int64)


class _Trainer:
    shares = True

    def __init__(self, atoms: np.ndarray, bias: np.ndarray, options: Options, seed: int):
        self.options, self.resets = options, 0
        self.m, d = atoms.shape
        self.variance = float(d)
        self.rng = np.random.default_rng([seed, RESETS])
        self.atoms, self.bias = atoms, bias
        self.optimiser = Adam({"atoms": atoms, "bias": bias})

    def state(self) -> dict[str, np.ndarray]:
        generator = json.dumps(self.rng.bit_generator.state).encode()
        return {"resets": np.array(self.resets), "generator": np.frombuffer(generator, dtype=np.uint8)}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        self.resets = int(state["resets"])
        self.rng.bit_generator.state = json.loads(state["generator"].tobytes())

    def step(self, x: np.ndarray, dead: np.ndarray, number: int) -> tuple[float, np.ndarray]:
        options, atoms, bias = self.options, self.atoms, self.bias
        centred = x - bias
        codes = pursue_rows(centred, atoms, [options.columns] * options.rounds, gram_of(atoms, len(x), options.rounds))
        residual = centred - codes.csr @ atoms
        size = len(x) * self.variance
        error = residual * np.float32(-2 / size)
        in_atoms = codes.by_atom @ error
        project_gradient(atoms, in_atoms)
        self.optimiser.step({"atoms": in_atoms, "bias": error.sum(axis=0)})
        normalise(atoms)
        if (number + 1) % options.reset_every == 0 and number + 1 <= LAST_RESET * options.steps:
            self._reset(near_duplicates(atoms, options.reset_cosine))
        return float(np.vdot(residual, residual)) / size, codes.counts

    def _reset(self, which: np.ndarray) -> None:
        """Give some atoms a random direction and no memory of past gradients."""
        if not len(which):
            return
        self.resets += len(which)
        fresh = self.rng.standard_normal((len(which), self.atoms.shape[1]))
        self.atoms[which] = fresh / np.linalg.norm(fresh, axis=1, keepdims=True)
        for moment in self.optimiser.moments["atoms"]:
            moment[which] = 0


def fit(
    rows: Rows, options: Options, seed: int, progress: Progress | None = None, **loop: Any
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Fit on training rows; return the arrays and the card's `training` part."""
    scale = measure_scale(rows, seed, lambda X: X.mean(axis=0))
    trainer = _Trainer(
        random_atoms(options.m, rows.shape[1], seed),
        (scale.centre / scale.deviation).astype(np.float32),
        options,
        seed,
    )
    training = train(trainer, rows, options, seed=seed, deviation=scale.deviation, progress=progress, **loop)
    bias = trainer.bias * np.float32(scale.deviation)
    return {"atoms": trainer.atoms, "bias": bias}, {**training, "resets": trainer.resets}
