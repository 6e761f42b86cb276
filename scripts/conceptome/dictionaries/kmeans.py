"""k-means as a dictionary: its atoms are centroids about the mean, at unit length.

A sample's code is the centroid it is nearest to (its cluster) with the length that fits best, so L0 is 1; for k > 1,
the k nearest centroids with their joint least squares: x − b ≈ Σ_j z_j·D_j over them. `lengths` has the centroids'
own.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from conceptome.dictionaries.base import Dictionary
from conceptome.dictionaries.rows import Rows, sample
from conceptome.dictionaries.selection import largest
from conceptome.errors import DataError

if TYPE_CHECKING:
    from conceptome.config.dictionaries import KMeansDictionary

CANDIDATES = 5  # a stream of random numbers beside those of training.py
RIDGE = 1e-6  # centroids may lie in one direction


class KMeans(Dictionary):
    """k-means; parameters atoms (m, d), lengths (m,), bias (d,)."""

    method = "kmeans"

    def _encode(self, X: np.ndarray, k: int) -> sp.csr_matrix:
        centred, lengths = X - self.bias, self.parameters["lengths"]
        products = centred @ self.atoms.T
        # ‖x − c‖² = ‖x‖² − 2·(⟨x, c⟩ − ‖c‖²/2)
        nearest = largest(products * lengths - np.square(lengths) / 2, k)
        chosen = self.atoms[nearest].astype(np.float64)
        system = chosen @ chosen.transpose(0, 2, 1) + RIDGE * np.eye(k)
        right = np.take_along_axis(products, nearest, axis=1).astype(np.float64)
        values = np.linalg.solve(system, right[:, :, None])[:, :, 0]
        indptr = np.arange(0, nearest.size + 1, k)
        return sp.csr_matrix((values.ravel(), nearest.ravel(), indptr), shape=products.shape)


def centroids(X: np.ndarray, count: int, seed: int) -> np.ndarray:
    """At most `count` k-means centroids of rows (n, d), by scikit-learn's mini-batches: float32 (≤ count, d)."""
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    count = min(count, len(np.unique(X, axis=0)))
    state = int(np.random.default_rng([seed, CANDIDATES]).integers(2**31))
    model = MiniBatchKMeans(count, batch_size=max(1024, 2 * count), n_init=1, max_iter=20, random_state=state)
    with warnings.catch_warnings():
        # Fewer clusters than asked for is no mistake here: duplicates among centroids do no harm.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(X)
    return model.cluster_centers_.astype(np.float32)


def fit(rows: Rows, options: KMeansDictionary, seed: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Centroids of at most max_rows seeded training rows; one at the mean itself has no direction and is left out."""
    X = sample(rows, options.max_rows, np.random.default_rng([seed, CANDIDATES]))
    mean = X.mean(axis=0, dtype=np.float64).astype(np.float32)
    if np.abs(X - mean).max() <= 1e-6 * np.abs(X).max():
        raise DataError(f"kmeans: all {len(X)} training rows looked at are the same: there is nothing to cluster")
    found = centroids(X - mean, options.m, seed)
    lengths = np.linalg.norm(found, axis=1)
    kept = lengths > 1e-6 * lengths.max()
    parameters = {"atoms": found[kept] / lengths[kept, None], "lengths": lengths[kept], "bias": mean}
    return parameters, {"n_rows": rows.shape[0], "n_seen": len(X)}
