"""Encoders that need nothing but atoms and a bias, so that any dictionary can be read by any of them.

With r = x − b and unit rows D_j of the dictionary:

- `topk`: z = ReLU(TopK_k(r·Dᵀ)), one look at all atoms.
- `mp`: matching pursuit (Mallat and Zhang 1993). k times, the atom with the largest |⟨D_j, r⟩| gets that correlation
  added to its code, and r loses the projection. An atom may be taken again.
- `omp`: orthogonal matching pursuit (Pati et al. 1993). As mp, but after each choice the codes of all atoms taken are
  the least squares of x − b on them. No atom is taken twice, nor one that depends on those taken.
- `icfl`: rounds of several atoms (Donhauser et al. 2025), see `conceptome.dictionaries.pursuit`.

How much of a dictionary's merit is its encoder's is measured by exchanging one and keeping the other.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np
import scipy.sparse as sp

import conceptome_kernels
from conceptome.dictionaries.sparse import Packed, compact, largest_positive
from conceptome.errors import ConfigError

ENCODERS = ("topk", "mp", "omp", "icfl")
ROWS = 2048  # rows per block
# Without compiled kernels orthogonal matching pursuit holds the chosen atoms of a block, rows × k × d.
ROWS_ORTHOGONAL = 256
# As in conceptome_kernels.reference.
DONE = 1e-5
PIVOT = 1e-4


def check_budget(encoder: str, k: int, m: int, d: int, columns: int) -> None:
    """Refuse a number of active atoms that an encoder cannot give.

    Raises
    ------
    ConfigError
        An unknown encoder; k not between 1 and m; for omp, k beyond d; for icfl, columns beyond m or d.
    """
    if encoder not in ENCODERS:
        raise ConfigError(f"encoder '{encoder}' is not known; choose one of own, {', '.join(ENCODERS)}")
    if not 1 <= k <= m:
        raise ConfigError(f"encoder '{encoder}': k must lie between 1 and the {m} atoms (given: {k})")
    if encoder == "omp" and k > d:
        raise ConfigError(f"encoder 'omp': no more than d = {d} atoms are independent (k given: {k}): lower k")
    if encoder == "icfl" and columns > min(m, d):
        raise ConfigError(
            f"encoder 'icfl': {columns} columns per round exceed the {m} atoms or {d} dimensions: lower encoder_columns"
        )


def encode(
    encoder: str, X: np.ndarray, atoms: np.ndarray, bias: np.ndarray, k: int, *, columns: int = 1
) -> sp.csr_matrix:
    """Codes of activations over atoms, whatever learned them.

    Parameters
    ----------
    encoder
        topk, mp, omp or icfl.
    X, atoms, bias
        float32 (n, d), unit rows (m, d), (d,); finite.
    k
        Number of atoms (topk, omp), of steps (mp), or of atoms over all rounds (icfl).
    columns
        For icfl: atoms taken in each round; the last round takes what is left of k.

    Returns
    -------
    scipy.sparse.csr_matrix
        float32 (n, m), at most k values in each row.

    Raises
    ------
    ConfigError
        As `check_budget`.
    """
    (m, d), n = atoms.shape, len(X)
    check_budget(encoder, k, m, d, columns)
    if not n:
        return sp.csr_matrix((0, m), dtype=np.float32)
    block = _encoder(encoder, atoms, bias, k, columns, n)
    parts = [block(X[at : at + ROWS]) for at in range(0, n, ROWS)]
    return parts[0] if len(parts) == 1 else sp.vstack(parts, format="csr")


def _encoder(
    encoder: str, atoms: np.ndarray, bias: np.ndarray, k: int, columns: int, n: int
) -> Callable[[np.ndarray], sp.csr_matrix]:
    """Prepare what the blocks of n rows share: the packed atoms, or their Gram matrix."""
    if encoder == "topk":
        projection = Projection(atoms, bias)
        return lambda X: projection.encode(X, k)
    from conceptome.dictionaries.pursuit import gram_of, plan, pursue_rows

    rounds = plan(k, columns if encoder == "icfl" else 1)
    gram = gram_of(atoms, n, len(rounds))
    if encoder == "icfl":
        return lambda X: pursue_rows(X - bias, atoms, rounds, gram).csr
    pursuit = matching_pursuit if encoder == "mp" else orthogonal_matching_pursuit
    return lambda X: pursuit(X - bias, atoms, k, gram=gram)


class Projection:
    """ReLU(TopK_k((x − b)·Dᵀ)), prepared for many calls.

    Parameters
    ----------
    atoms, bias
        float32 (m, d) and (d,); they must not change afterwards.
    """

    def __init__(self, atoms: np.ndarray, bias: np.ndarray):
        self.atoms, self.bias = atoms, bias

    @cached_property
    def _packed(self) -> Packed:
        return Packed(self.atoms, np.zeros(len(self.atoms), dtype=np.float32), self.bias)

    def encode(self, X: np.ndarray, k: int) -> sp.csr_matrix:
        """Codes of float32 rows (n, d): CSR (n, m)."""
        if conceptome_kernels.available():
            return compact(*self._packed.encode(X, k), len(self.atoms))
        return largest_positive((X - self.bias) @ self.atoms.T, k)


def matching_pursuit(
    residual: np.ndarray, atoms: np.ndarray, k: int, *, nonnegative: bool = False, gram: np.ndarray | None = None
) -> sp.csr_matrix:
    """Take k steps of matching pursuit on centred rows.

    Parameters
    ----------
    residual, atoms
        float32 (n, d): x − b; unit rows (m, d).
    nonnegative
        Take the largest correlation while it is positive, instead of the largest magnitude.
    gram
        `gram_of` the atoms, or None: correlations are then taken anew in every step.

    Raises
    ------
    FloatingPointError
        NaN or infinite values: training diverged.
    """
    _finite(residual, atoms)
    if conceptome_kernels.available():
        from conceptome_kernels.pursuit import matching_pursuit as compiled

        given = {"nonnegative": nonnegative, "gram": gram, "gram_budget": 0}
        return compact(*compiled(residual, atoms, k, **given), len(atoms))
    rows = np.arange(len(residual))
    floor = DONE * np.linalg.norm(residual, axis=1)
    correlations = residual @ atoms.T
    picked = np.empty((len(residual), k), dtype=np.int64)
    values = np.empty((len(residual), k), dtype=np.float32)
    for step in range(k):
        if step and gram is None:
            residual = residual - values[:, step - 1, None] * atoms[picked[:, step - 1]]
            correlations = residual @ atoms.T
        elif step:
            correlations -= values[:, step - 1, None] * gram[picked[:, step - 1]]
        scores = correlations if nonnegative else np.abs(correlations)
        picked[:, step] = scores.argmax(axis=1)
        values[:, step] = correlations[rows, picked[:, step]]
        values[scores[rows, picked[:, step]] <= floor, step] = 0
    codes = _from_places(picked, values, len(atoms))
    codes.sum_duplicates()
    codes.eliminate_zeros()
    return codes


def orthogonal_matching_pursuit(
    residual: np.ndarray, atoms: np.ndarray, k: int, *, gram: np.ndarray | None = None
) -> sp.csr_matrix:
    """Take k steps of orthogonal matching pursuit on centred rows.

    Parameters
    ----------
    residual, atoms, gram
        As in `matching_pursuit`.
    k
        1 ≤ k ≤ m.

    Raises
    ------
    FloatingPointError
        NaN or infinite values: training diverged.
    """
    _finite(residual, atoms)
    if conceptome_kernels.available():
        from conceptome_kernels.pursuit import orthogonal_matching_pursuit as compiled

        return compact(*compiled(residual, atoms, k, gram=gram, gram_budget=0), len(atoms))
    blocks = range(0, len(residual), ROWS_ORTHOGONAL)
    parts = [_orthogonal_block(residual[at : at + ROWS_ORTHOGONAL], atoms, k) for at in blocks]
    return sp.vstack(parts, format="csr") if parts else sp.csr_matrix((0, len(atoms)), dtype=np.float32)


def _orthogonal_block(rows: np.ndarray, atoms: np.ndarray, k: int) -> sp.csr_matrix:
    """Take one atom at a time for all rows; where a row has taken few, the rest of its system is the identity."""
    n = len(rows)
    floor = DONE * np.linalg.norm(rows, axis=1)
    closed = np.zeros((n, len(atoms)), dtype=bool)
    picked, taken = np.zeros((n, k), dtype=np.int64), np.zeros(n, dtype=np.int64)
    chosen = np.zeros((n, k, rows.shape[1]))
    system = np.broadcast_to(np.eye(k), (n, k, k)).copy()
    values = np.zeros((n, k))
    residual = rows
    open_ = np.arange(n)
    while len(open_):
        scores = np.where(closed[open_], 0, np.abs(residual[open_] @ atoms.T))
        best = scores.argmax(axis=1)
        going = scores[np.arange(len(open_)), best] > floor[open_]
        open_, best = open_[going], best[going]
        closed[open_, best] = True
        with_taken = np.einsum("nkd,nd->nk", chosen[open_], atoms[best])
        # The Schur complement of the new atom is the last pivot of the Cholesky factorisation with it.
        pivot = 1 - np.einsum("nk,nk->n", with_taken, _solve(system[open_], with_taken))
        independent = pivot >= PIVOT
        at, new = open_[independent], best[independent]
        place = taken[at]
        system[at, place, :] = system[at, :, place] = with_taken[independent]
        system[at, place, place] = 1
        picked[at, place], chosen[at, place] = new, atoms[new]
        taken[at] += 1
        values[at] = _solve(system[at], np.einsum("nkd,nd->nk", chosen[at], rows[at]))
        residual = residual.copy()
        residual[at] = rows[at] - np.einsum("nk,nkd->nd", values[at], chosen[at])
        open_ = open_[taken[open_] < k]
    values[np.arange(k) >= taken[:, None]] = 0
    codes = _from_places(picked, values.astype(np.float32), len(atoms))
    codes.eliminate_zeros()
    codes.sort_indices()
    return codes


def _solve(systems: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Solve n systems (n, k, k) with one right side (n, k) each."""
    return np.linalg.solve(systems, right[:, :, None])[:, :, 0]


def _from_places(picked: np.ndarray, values: np.ndarray, m: int) -> sp.csr_matrix:
    indptr = np.arange(0, picked.size + 1, picked.shape[1])
    return sp.csr_matrix((values.ravel(), picked.ravel(), indptr), shape=(len(picked), m))


def _finite(residual: np.ndarray, atoms: np.ndarray) -> None:
    if not (np.isfinite(residual).all() and np.isfinite(atoms).all()):
        raise FloatingPointError("pursuit: NaN or infinite values")
