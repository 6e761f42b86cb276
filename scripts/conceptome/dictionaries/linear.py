"""Baselines with a linear encoder: principal axes, independent components, raw neurons.

z = (x − b)·Eᵀ cut to the k values of largest magnitude, x̂ = z·D + b. Values keep their sign.
"""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from conceptome.dictionaries.base import Dictionary
from conceptome.dictionaries.rows import Rows, blocks, sample
from conceptome.dictionaries.selection import largest
from conceptome.errors import DataError
from conceptome.whitening import accumulate

if TYPE_CHECKING:
    from conceptome.config.dictionaries import IcaDictionary, IdentityDictionary, PcaDictionary

log = logging.getLogger(__name__)

SAMPLE = 3


class _Linear(Dictionary):
    """Parameters atoms (m, d), bias (d,) and, unless it equals atoms, encoder (m, d)."""

    def _encode(self, X: np.ndarray, k: int) -> sp.csr_matrix:
        values = (X - self.bias) @ self.parameters.get("encoder", self.atoms).T
        if k == self.m:
            columns, picked = np.tile(np.arange(k, dtype=np.int32), (len(X), 1)), values
        else:
            columns = largest(np.abs(values), k)
            picked = np.take_along_axis(values, columns, axis=1)
        indptr = np.arange(0, columns.size + 1, columns.shape[1])
        return sp.csr_matrix((picked.ravel(), columns.ravel(), indptr), shape=values.shape)


class Pca(_Linear):
    """Principal axes."""

    method = "pca"


class Ica(_Linear):
    """Independent components: atoms are the normalised columns of the mixing matrix."""

    method = "ica"


class Identity(_Linear):
    """Raw neurons, centred."""

    method = "identity"


def _fix_signs(rows: np.ndarray) -> np.ndarray:
    """±1 per row that makes its entry of largest magnitude positive."""
    return np.where(rows[np.arange(len(rows)), np.abs(rows).argmax(axis=1)] < 0, -1.0, 1.0)[:, None]


def _rank(variances: np.ndarray, mean: np.ndarray) -> int:
    """Directions whose deviation is more than float32 rounding of the activations can make up."""
    size = max(np.sqrt(max(variances.max(), 0)), np.abs(mean).max())
    return int((np.sqrt(np.maximum(variances, 0)) > len(variances) * np.finfo(np.float32).eps * size).sum())


def fit_pca(rows: Rows, options: PcaDictionary, seed: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Principal axes of the training rows, all with variance unless m asks for fewer; float64, one pass."""
    n, d = rows.shape
    moments = accumulate(blocks(rows), d, full=True)
    variances, axes = np.linalg.eigh(moments.scatter / max(n - 1, 1))
    variances, axes = variances[::-1], axes[:, ::-1].T
    rank = _rank(variances, moments.mean)
    if not rank:
        raise DataError(f"pca: all {n} training rows are the same: there is no variance to explain")
    m = options.m or rank
    if m > rank:
        raise DataError(f"pca: {n} training rows span {rank} directions, fewer than m ({m}): lower m, or leave it out")
    axes = axes[:m]
    explained = np.maximum(variances[:m], 0) / np.maximum(variances, 0).sum()
    training = {"n_rows": n, "n_seen": n, "explained": [round(float(value), 8) for value in explained]}
    return {"atoms": axes * _fix_signs(axes), "bias": moments.mean}, training


def fit_ica(rows: Rows, options: IcaDictionary, seed: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Independent components by FastICA (Hyvärinen & Oja 2000) on at most max_rows seeded training rows."""
    from sklearn.decomposition import FastICA
    from sklearn.exceptions import ConvergenceWarning

    X = sample(rows, options.max_rows, np.random.default_rng([seed, SAMPLE]))
    # Centred in float64; the iterations themselves are as good in float32 and take half the time.
    mean = X.mean(axis=0, dtype=np.float64)
    X = (X - mean).astype(np.float32)
    wide = X.astype(np.float64)
    rank = _rank(np.linalg.eigvalsh(wide.T @ wide / len(X)), mean)
    del wide
    if not rank:
        raise DataError(f"ica: all {len(X)} training rows looked at are the same: there is nothing to separate")
    m = options.m or rank
    if m > rank:
        raise DataError(
            f"ica: {len(X)} training rows span {rank} directions, fewer than m ({m}): lower m, or leave it out"
        )
    model = FastICA(
        m, whiten="unit-variance", whiten_solver="svd", max_iter=options.max_iterations, tol=1e-3, random_state=seed
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(X)
    converged = not any(issubclass(item.category, ConvergenceWarning) for item in caught)
    if not converged:
        log.warning("ica did not converge in %d iterations: raise max_iterations", options.max_iterations)
    mixing = model.mixing_.T
    length = np.linalg.norm(mixing, axis=1, keepdims=True) * _fix_signs(mixing)
    training = {
        "n_rows": rows.shape[0],
        "n_seen": len(X),
        "converged": converged,
        "iterations": int(model.n_iter_),
    }
    return {"atoms": mixing / length, "encoder": model.components_ * length, "bias": mean + model.mean_}, training


def fit_identity(rows: Rows, options: IdentityDictionary, seed: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """One atom per dimension, centred on the training mean."""
    n, d = rows.shape
    mean = accumulate(blocks(rows), d, full=False).mean
    return {"atoms": np.eye(d), "bias": mean}, {"n_rows": n, "n_seen": n}
