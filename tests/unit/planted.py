"""Sparse mixtures of known atoms."""

import numpy as np


def mixture(n=4000, d=32, atoms=48, active=4, noise=0.02, seed=11):
    """Rows (n, d) float32 with a mean far from zero, and the unit atoms (atoms, d) they are made of."""
    rng = np.random.default_rng([seed, 77])
    D = rng.standard_normal((atoms, d))
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    columns = np.argsort(rng.random((n, atoms)), axis=1)[:, :active]
    Z = np.zeros((n, atoms))
    np.put_along_axis(Z, columns, rng.gamma(4, 0.5, (n, active)) + 0.3, axis=1)
    X = Z @ D + noise * rng.standard_normal((n, d)) + 2 * rng.standard_normal(d)
    return X.astype(np.float32), D


def mean_maximum_cosine(found, truth):
    """MMCS: over true atoms, the mean of the best cosine with a found one."""
    return float((truth @ found.T).max(axis=1).mean())


def fvu(X, reconstruction):
    """Fraction of variance unexplained."""
    return float(np.square(X - reconstruction).sum() / np.square(X - X.mean(axis=0)).sum())
