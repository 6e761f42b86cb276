"""The null of a learned dictionary: random unit atoms behind a TopK encoder, without torch."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

import conceptome_kernels
from conceptome.dictionaries.base import Dictionary
from conceptome.dictionaries.rows import Rows, sample
from conceptome.dictionaries.selection import largest
from conceptome.dictionaries.sparse import Packed, compact

if TYPE_CHECKING:
    from conceptome.config.dictionaries import RandomDictionary

ATOMS, SAMPLE = 1, 3
SAMPLE_ROWS = 8192


class Random(Dictionary):
    """z = gain · ReLU(TopK_k((x − b)·Dᵀ)); parameters atoms (m, d), bias (d,), gain (1,)."""

    method = "random"

    @cached_property
    def _packed(self) -> Packed:
        return Packed(self.atoms, np.zeros(self.m, dtype=np.float32), self.bias)

    def _encode(self, X: np.ndarray, k: int) -> sp.csr_matrix:
        if conceptome_kernels.available():
            indices, picked = self._packed.encode(X, k)
            return compact(indices, picked * self.parameters["gain"], self.m)
        values = (X - self.bias) @ self.atoms.T
        columns = largest(values, k)
        picked = np.maximum(np.take_along_axis(values, columns, axis=1), 0) * self.parameters["gain"]
        indptr = np.arange(0, columns.size + 1, columns.shape[1])
        return sp.csr_matrix((picked.ravel(), columns.ravel(), indptr), shape=values.shape)


def fit(rows: Rows, options: RandomDictionary, seed: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Draw the atoms; fit the mean and one gain.

    Overlapping random atoms explain the same part of x several times over, so that raw projections overshoot. The one
    gain with the least squared error keeps this null from being worse than reconstructing the mean.
    """
    d = rows.shape[1]
    atoms = np.random.default_rng([seed, ATOMS]).standard_normal((options.m, d))
    atoms = (atoms / np.linalg.norm(atoms, axis=1, keepdims=True)).astype(np.float32)
    X = sample(rows, SAMPLE_ROWS, np.random.default_rng([seed, SAMPLE]))
    parameters = {"atoms": atoms, "bias": X.mean(axis=0, dtype=np.float64), "gain": np.ones(1)}
    raw = Random(parameters, {"k": options.k})
    fit_part = raw.decode(raw.encode(X)).astype(np.float64) - raw.bias
    energy = np.square(fit_part).sum()
    gain = float((fit_part * (X - raw.bias)).sum() / energy) if energy else 1.0
    return {**parameters, "gain": np.array([gain])}, {"n_rows": rows.shape[0], "n_seen": len(X), "gain": gain}
