"""Factorisations X ≈ Z·D with codes Z ≥ 0: semi-NMF, whose atoms have either sign, and NMF.

Both read new rows by the codes' own update with the atoms fixed, cut to the k largest and updated again on those. Their
products over all rows are BLAS', whose last digits follow the number of threads: they run on one.
"""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from conceptome.dictionaries.base import Dictionary
from conceptome.dictionaries.kmeans import centroids
from conceptome.dictionaries.rows import Rows, sample
from conceptome.dictionaries.selection import largest
from conceptome.dictionaries.sparse import compact
from conceptome.dictionaries.training import thread_limit
from conceptome.dictionaries.updates import GATHERED
from conceptome.errors import DataError

if TYPE_CHECKING:
    from conceptome.config.dictionaries import NmfDictionary, SnmfDictionary

log = logging.getLogger(__name__)

ROWS, START = 3, 4  # streams of random numbers
TINY = 1e-12  # keeps denominators above 0
RIDGE = 1e-10  # of the mean diagonal of ZᵀZ


class _Factors(Dictionary):
    """Parameters atoms (m, d) and bias (d,)."""

    def _encode(self, X: np.ndarray, k: int) -> sp.csr_matrix:
        return nonnegative_codes(X - self.bias, self.atoms, k, self.card["options"]["code_iterations"])


class Snmf(_Factors):
    """Semi-NMF."""

    method = "snmf"


class Nmf(_Factors):
    """NMF."""

    method = "nmf"


Signs = tuple[np.ndarray, np.ndarray]


def signs(matrix: np.ndarray) -> Signs:
    """Positive and negative part, both ≥ 0: matrix = [·]₊ − [·]₋."""
    return np.maximum(matrix, 0), np.maximum(-matrix, 0)


def multiply(Z: np.ndarray, products: Signs, gram: Signs) -> np.ndarray:
    """One update of codes Z ≥ 0 that never lets ‖X − Z·D‖² rise (Ding, Li and Jordan 2010, eq. 11).

        Z ∘ √( ([X·Dᵀ]₊ + Z·[D·Dᵀ]₋) / ([X·Dᵀ]₋ + Z·[D·Dᵀ]₊) )

    Parameters
    ----------
    Z, products, gram
        Codes (n, m); signs of X·Dᵀ (n, m) and of D·Dᵀ (m, m) or, for systems of a row's own, (n, m, m).
    """
    places = "nj,njk->nk" if gram[0].ndim == 3 else "nj,jk->nk"
    above = products[0] + np.einsum(places, Z, gram[1], optimize=True)
    below = products[1] + np.einsum(places, Z, gram[0], optimize=True)
    return Z * np.sqrt(above / (below + TINY))


@thread_limit(1, with_torch=False)
def nonnegative_codes(X: np.ndarray, atoms: np.ndarray, k: int, iterations: int) -> sp.csr_matrix:
    """Codes Z ≥ 0 of centred rows over fixed atoms, at most k in a row: CSR (n, m).

    Parameters
    ----------
    X, atoms
        float32 (n, d); unit rows (m, d).
    iterations
        Updates among all atoms, and again among the k largest.
    """
    gram = atoms @ atoms.T
    size = max(1, GATHERED // k**2) if k < len(atoms) else max(1, len(X))
    blocks = (X[at : at + size] for at in range(0, max(1, len(X)), size))
    return sp.vstack([_block_codes(block, atoms, gram, k, iterations) for block in blocks], format="csr")


def _block_codes(X: np.ndarray, atoms: np.ndarray, gram: np.ndarray, k: int, iterations: int) -> sp.csr_matrix:
    products, among = X @ atoms.T, signs(gram)
    given = signs(products)
    # A code that starts at 0 stays there: all start alike, at a row's share.
    Z = np.broadcast_to(np.linalg.norm(X, axis=1, keepdims=True) / len(atoms), products.shape)
    for _ in range(iterations):
        Z = multiply(Z, given, among)
    columns = largest(Z, k)
    Z = np.take_along_axis(Z, columns, axis=1)
    if k < len(atoms):
        given = signs(np.take_along_axis(products, columns, axis=1))
        among = signs(gram[columns[:, :, None], columns[:, None, :]])
        for _ in range(iterations):
            Z = multiply(Z, given, among)
    # What the updates have all but removed would be 0 in the limit.
    smallest = 1e-6 * Z.max(axis=1, initial=0, keepdims=True)
    Z = np.where(smallest < Z, Z, 0)
    return compact(columns, Z.astype(np.float32), len(atoms))


def semi_nmf(
    X: np.ndarray, Z: np.ndarray, *, keep: float, iterations: int, tolerance: float
) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """Semi-NMF X ≈ Z·D with Z ≥ 0, from given codes.

    In turn: D = (ZᵀZ + εI)⁻¹·ZᵀX, of which each atom keeps its share `keep` of entries with the largest magnitude;
    atoms to unit length, their lengths to the codes; `multiply`.

    Parameters
    ----------
    X, Z
        (n, d); (n, m), positive.
    keep
        1 keeps all entries; then the objective never rises.
    tolerance
        The last iteration is the one that lowers the objective by less than this share of it.

    Returns
    -------
    atoms, Z, objective
        Unit rows (m, d); codes (n, m); ‖X − Z·D‖² after each iteration.
    """
    d, m = X.shape[1], Z.shape[1]
    entries = max(1, round(keep * d))
    objective: list[float] = []
    atoms = np.zeros((m, d), dtype=X.dtype)
    for _ in range(iterations):
        gram = (Z.T @ Z).astype(np.float64)
        gram[np.diag_indices(m)] += RIDGE * np.trace(gram) / m + TINY
        atoms = np.linalg.solve(gram, (Z.T @ X).astype(np.float64)).astype(X.dtype)
        if entries < d:
            kept = largest(np.abs(atoms), entries)
            sparse = np.zeros_like(atoms)
            np.put_along_axis(sparse, kept, np.take_along_axis(atoms, kept, axis=1), axis=1)
            atoms = sparse
        lengths = np.linalg.norm(atoms, axis=1)
        atoms /= np.maximum(lengths, TINY)[:, None]
        Z = multiply(Z * lengths, signs(X @ atoms.T), signs(atoms @ atoms.T))
        objective.append(float(np.square(X - Z @ atoms, dtype=np.float64).sum()))
        if len(objective) > 1 and objective[-2] - objective[-1] < tolerance * objective[-2]:
            break
    return atoms, Z, objective


def _seen(rows: Rows, limit: int, seed: int, method: str) -> np.ndarray:
    X = sample(rows, limit, np.random.default_rng([seed, ROWS]))
    if np.ptp(X, axis=0).max() <= 1e-6 * np.abs(X).max():
        raise DataError(f"{method}: all {len(X)} training rows looked at are the same: there is nothing to factorise")
    return X


@thread_limit(1, with_torch=False)
def fit_snmf(rows: Rows, options: SnmfDictionary, seed: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Semi-NMF of at most max_rows seeded training rows about their mean (Shafran et al. 2025; Ding et al. 2010).

    Codes start as the indicators of k-means clusters plus 0.2, as in Ding et al.
    """
    X = _seen(rows, options.max_rows, seed, "snmf")
    mean = X.mean(axis=0, dtype=np.float64).astype(np.float32)
    X = X - mean
    centres = centroids(X, options.m, seed)
    nearest = (X @ centres.T - np.square(centres).sum(axis=1) / 2).argmax(axis=1)
    # With fewer clusters than atoms the others start at random, so that no two are alike.
    Z = np.random.default_rng([seed, START]).random((len(X), options.m), dtype=np.float32)
    Z[:, : len(centres)] = 0
    Z[np.arange(len(X)), nearest] = 1
    Z += np.float32(0.2)
    atoms, _, objective = semi_nmf(
        X, Z, keep=options.keep, iterations=options.max_iterations, tolerance=options.tolerance
    )
    used = np.linalg.norm(atoms, axis=1) > 0.5
    training = {
        "n_rows": rows.shape[0],
        "n_seen": len(X),
        "iterations": len(objective),
        "converged": len(objective) < options.max_iterations,
        "objective": [round(value / float(np.square(X, dtype=np.float64).sum()), 8) for value in objective],
    }
    return {"atoms": atoms[used], "bias": mean}, training


@thread_limit(1, with_torch=False)
def fit_nmf(rows: Rows, options: NmfDictionary, seed: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """NMF (Lee and Seung 1999) of at most max_rows seeded training rows, by scikit-learn's coordinate descent.

    With `negatives: split`, what is factorised are the positive and the negative parts of the rows about their mean,
    [x₊, x₋] ≈ Z·[P, N] with all non-negative, and the atoms are P − N. Otherwise the bias is 0.
    """
    from sklearn.decomposition import NMF
    from sklearn.exceptions import ConvergenceWarning

    X = _seen(rows, options.max_rows, seed, "nmf")
    d = X.shape[1]
    bias = np.zeros(d, dtype=np.float32)
    if options.negatives == "split":
        bias = X.mean(axis=0, dtype=np.float64).astype(np.float32)
        X = np.concatenate([np.maximum(X - bias, 0), np.maximum(bias - X, 0)], axis=1)
    elif (X < 0).any():
        raise DataError(
            f"nmf: {int((X < 0).sum())} of {X.size} training values are negative: set negatives to 'split', which "
            "takes their positive and negative parts apart, leave whitening out, or use snmf"
        )
    model = NMF(
        options.m, init="random", solver="cd", max_iter=options.max_iterations, tol=options.tolerance, random_state=seed
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(X)
    converged = not any(issubclass(item.category, ConvergenceWarning) for item in caught)
    if not converged:
        log.warning("nmf did not converge in %d iterations: raise max_iterations", options.max_iterations)
    parts = model.components_
    atoms = parts[:, :d] - parts[:, d:] if options.negatives == "split" else parts
    lengths = np.linalg.norm(atoms, axis=1)
    used = lengths > 1e-6 * lengths.max()
    training = {
        "n_rows": rows.shape[0],
        "n_seen": len(X),
        "iterations": int(model.n_iter_),
        "converged": converged,
    }
    return {"atoms": atoms[used] / lengths[used, None], "bias": bias}, training
