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


def superpositions(kind, n=6000, d=32, noise=0.02, seed=5):
    """Rows (n, d) float32 and the unit atoms (48, d) they are made of, with one trait that real features have.

    plain: each row activates 4 atoms at random. tree: 16 parents with 2 children each, and a child is active only
    where its parent is. correlated: atoms come in pairs, active together in 3 of 4 rows. heavy: the frequency of an
    atom falls as 1/√rank, and values are log-normal.
    """
    rng = np.random.default_rng([seed, 78])
    D = rng.standard_normal((48, d))
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    strength = rng.gamma(4, 0.5, (n, 48)) + 0.3

    def choose(number, columns, weights=1.0):
        chosen = np.zeros((n, columns), dtype=bool)
        keys = rng.random((n, columns)) ** (1 / (np.ones(columns) * weights))
        np.put_along_axis(chosen, np.argsort(-keys, axis=1)[:, :number], True, axis=1)
        return chosen

    if kind == "plain":
        active = choose(4, 48)
    elif kind == "tree":
        parents, child = choose(2, 16), rng.integers(0, 3, (n, 16))  # no child, the first, the second
        active = np.concatenate([parents, parents & (child == 1), parents & (child == 2)], axis=1)
    elif kind == "correlated":
        pairs, lone, second = choose(3, 24), rng.random((n, 24)) < 0.25, rng.random((n, 24)) < 0.5
        active = np.concatenate([pairs & ~(lone & second), pairs & ~(lone & ~second)], axis=1)
    elif kind == "heavy":
        active = choose(4, 48, 1 / np.sqrt(np.arange(1, 49)))
        strength = rng.lognormal(0, 0.7, active.shape)
    else:
        raise ValueError(kind)
    X = np.where(active, strength, 0) @ D + noise * rng.standard_normal((n, d)) + rng.standard_normal(d)
    return X.astype(np.float32), D
