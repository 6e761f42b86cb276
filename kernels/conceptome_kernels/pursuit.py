"""Pursuits: greedy sparse codes of centred rows over unit atoms, compiled (kernels/cpu/pursuit.cpp).

All functions take rows that are already centred (residual = x − b) and return codes of fixed width: `indices`
(n, width) int32, ascending and unique in each row, and `values` (n, width) float32; places that a pursuit left unused
have value 0 and some index that is not taken. The specifications are in `conceptome_kernels.reference`.

With the Gram matrix D·Dᵀ a round costs one pass over a row's correlations; it takes 4·m² bytes. Without it the
residuals of a block of rows are multiplied with all atoms anew in each round. Both are exact up to float32 rounding of
the correlations.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from conceptome_kernels import checks
from conceptome_kernels.loader import call

GRAM_BUDGET = 256 * 2**20  # bytes that a Gram matrix may take unless the caller says otherwise
ICFL, MATCHING, MATCHING_NONNEGATIVE = 0, 1, 2


def gram_matrix(atoms: np.ndarray, *, threads: int | None = None) -> np.ndarray:
    """D·Dᵀ, float32 (m, m), each entry summed in the same order whatever the number of threads.

    Raises
    ------
    TypeError, ValueError
        `atoms` is not a contiguous, finite float32 array (m, d).
    """
    checks.finite("atoms", checks.array("atoms", atoms, (None, None)))
    threads = checks.threads(threads)
    return _gram(atoms, _packed(atoms, threads), threads)


def icfl_pursuit(
    residual: np.ndarray,
    atoms: np.ndarray,
    rounds: Sequence[int],
    *,
    gram: np.ndarray | None = None,
    gram_budget: int = GRAM_BUDGET,
    threads: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Codes of iterative codebook feature learning (Donhauser et al. 2025, arXiv 2412.16247).

    Each round takes the atoms of largest signed correlation with the residual, solves the least squares of the residual
    on them, adds the solution to the codes (an atom may be taken again) and subtracts the fit.

    Parameters
    ----------
    residual
        (n, d) float32 centred rows.
    atoms
        (m, d) float32 unit rows.
    rounds
        Number of atoms taken in each round, each between 1 and m.
    gram
        (m, m) float32 of `gram_matrix(atoms)`; None computes it for this call if it fits `gram_budget`.
    gram_budget
        Bytes that a Gram matrix computed here may take; 0 for none.
    threads
        None for torch's, or OpenMP's, current number.

    Returns
    -------
    indices, values
        (n, min(Σ rounds, m)) int32 and float32.

    Raises
    ------
    TypeError, ValueError
        An argument is of another type or shape, not contiguous, not finite, or out of range.
    """
    m = _checked(residual, atoms, gram)
    columns = np.array([checks.count("rounds", each, 1, m) for each in rounds], dtype=np.int32)
    if not len(columns):
        raise ValueError("rounds must name at least one round")
    return _rounds(residual, atoms, columns, ICFL, gram, gram_budget, threads)


def matching_pursuit(
    residual: np.ndarray,
    atoms: np.ndarray,
    k: int,
    *,
    gram: np.ndarray | None = None,
    nonnegative: bool = False,
    gram_budget: int = GRAM_BUDGET,
    threads: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Codes of k steps of matching pursuit (Mallat and Zhang 1993; as an encoder: Costa et al. 2025, MP-SAE).

    Each step takes the atom whose correlation with the residual is largest in magnitude (`nonnegative`: largest, and
    positive), adds the correlation to its code and subtracts the projection; an atom may be taken again.

    Parameters
    ----------
    residual, atoms, gram, gram_budget, threads
        As in `icfl_pursuit`.
    k
        Number of steps, at least 1.
    nonnegative
        Take positive correlations only.

    Returns
    -------
    indices, values
        (n, min(k, m)) int32 and float32.

    Raises
    ------
    TypeError, ValueError
        As in `icfl_pursuit`.
    """
    _checked(residual, atoms, gram)
    columns = np.ones(checks.count("k", k, 1, 2**20), dtype=np.int32)
    rule = MATCHING_NONNEGATIVE if nonnegative else MATCHING
    return _rounds(residual, atoms, columns, rule, gram, gram_budget, threads)


def orthogonal_matching_pursuit(
    residual: np.ndarray,
    atoms: np.ndarray,
    k: int,
    *,
    gram: np.ndarray | None = None,
    gram_budget: int = GRAM_BUDGET,
    threads: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Codes of orthogonal matching pursuit with k atoms (Pati et al. 1993; Rubinstein et al. 2008, Batch-OMP).

    Each step takes the atom whose correlation with the residual is largest in magnitude and solves the least squares
    of the row on all atoms taken. An atom that depends on those taken (Cholesky pivot below 1e-4) is passed over.

    Parameters
    ----------
    residual, atoms, gram, gram_budget, threads
        As in `icfl_pursuit`.
    k
        Number of atoms, between 1 and m.

    Returns
    -------
    indices, values
        (n, k) int32 and float32.

    Raises
    ------
    TypeError, ValueError
        As in `icfl_pursuit`.
    """
    m = _checked(residual, atoms, gram)
    k = checks.count("k", k, 1, m)
    threads = checks.threads(threads)
    indices, values = _empty(len(residual), k)
    if len(residual):
        packed = _packed(atoms, threads)
        gram = _within_budget(atoms, packed, gram, gram_budget, threads)
        n, d = residual.shape
        _run("pursuit_orthogonal", residual, n, atoms, packed, gram, m, d, k, indices, values, threads)
    return indices, values


def _rounds(
    residual: np.ndarray,
    atoms: np.ndarray,
    columns: np.ndarray,
    rule: int,
    gram: np.ndarray | None,
    gram_budget: int,
    threads: int | None,
) -> tuple[np.ndarray, np.ndarray]:
    (n, d), m = residual.shape, len(atoms)
    threads = checks.threads(threads)
    width = min(int(columns.sum()), m)
    indices, values = _empty(n, width)
    if n:
        packed = _packed(atoms, threads)
        gram = _within_budget(atoms, packed, gram, gram_budget, threads)
        places = (columns, len(columns), rule, width, indices, values)
        _run("pursuit_rounds", residual, n, atoms, packed, gram, m, d, *places, threads)
    return indices, values


def _checked(residual: np.ndarray, atoms: np.ndarray, gram: np.ndarray | None) -> int:
    """Check what all pursuits take; return m."""
    m, d = checks.array("atoms", atoms, (None, None)).shape
    checks.finite("atoms", atoms)
    if not m:
        raise ValueError("atoms must have at least one row")
    checks.finite("residual", checks.array("residual", residual, (None, d)))
    if gram is not None:
        checks.array("gram", gram, (m, m))
    return m


def _empty(n: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    return np.empty((n, width), dtype=np.int32), np.empty((n, width), dtype=np.float32)


def _packed(atoms: np.ndarray, threads: int) -> np.ndarray:
    m, d = atoms.shape
    packed = np.empty(call("pursuit_packed_size", m, d), dtype=np.float32)
    call("pursuit_pack", atoms, m, d, packed, threads)
    return packed


def _gram(atoms: np.ndarray, packed: np.ndarray, threads: int) -> np.ndarray:
    m, d = atoms.shape
    gram = np.empty((m, m), dtype=np.float32)
    _run("pursuit_gram", atoms, packed, m, d, gram, threads)
    return gram


def _within_budget(
    atoms: np.ndarray, packed: np.ndarray, gram: np.ndarray | None, gram_budget: int, threads: int
) -> np.ndarray | None:
    """Return the given Gram matrix, or one computed here if it fits the budget, else None."""
    if gram is None and 4 * len(atoms) ** 2 <= gram_budget:
        return _gram(atoms, packed, threads)
    return gram


def _run(name: str, *arguments: np.ndarray | int | None) -> None:
    if call(name, *arguments):
        raise MemoryError(f"{name}: not enough memory for the work space of its threads")
