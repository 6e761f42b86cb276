"""The null of a learned dictionary: random unit atoms behind a TopK encoder, without torch."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from conceptome.dictionaries.base import Dictionary
from conceptome.dictionaries.encoders import Projection
from conceptome.dictionaries.rows import Rows, sample
from conceptome.dictionaries.training import SAMPLE, SAMPLE_ROWS, random_atoms

if TYPE_CHECKING:
    from conceptome.config.dictionaries import RandomDictionary


class Random(Dictionary):
    """z = gain · ReLU(TopK_k((x − b)·Dᵀ)); parameters atoms (m, d), bias (d,), gain (1,)."""

    method = "random"

    @cached_property
    def _projection(self) -> Projection:
        return Projection(self.atoms, self.bias)

    def _encode(self, X: np.ndarray, k: int) -> sp.csr_matrix:
        return self._projection.encode(X, k) * self.parameters["gain"][0]


def fit(rows: Rows, options: RandomDictionary, seed: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Draw the atoms; fit the mean and one gain.

    Overlapping random atoms explain the same part of x several times over, so that raw projections overshoot. The one
    gain with the least squared error keeps this null from being worse than reconstructing the mean.
    """
    atoms = random_atoms(options.m, rows.shape[1], seed)
    X = sample(rows, SAMPLE_ROWS, np.random.default_rng([seed, SAMPLE]))
    parameters = {"atoms": atoms, "bias": X.mean(axis=0, dtype=np.float64), "gain": np.ones(1)}
    raw = Random(parameters, {"k": options.k})
    fit_part = raw.decode(raw.encode(X)).astype(np.float64) - raw.bias
    energy = np.square(fit_part).sum()
    gain = float((fit_part * (X - raw.bias)).sum() / energy) if energy else 1.0
    return {**parameters, "gain": np.array([gain])}, {"n_rows": rows.shape[0], "n_seen": len(X), "gain": gain}
