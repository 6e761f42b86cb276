"""Pursuits: greedy sparse codes of centred rows over unit atoms, compiled (kernels/cpu/pursuit.cpp).

All functions take rows that are already centred (residual = x − b) and return codes of fixed width: `indices`
(n, width) int32, ascending and unique in each row, and `values` (n, width) float32; places that a pursuit left unused
have value 0 and some index that is not taken. The specifications are in `conceptome_kernels.reference`.

What a step takes is decided by float32 products of atoms with the row's float32 residual, the lower column where they
are equal. They are computed for few atoms only: a screen with a proven error bound leaves out those that cannot be
chosen. The codes are the same bytes whatever the screen, hence with and without a Gram matrix.

With the Gram matrix D·Dᵀ a step costs one pass over a row's screened correlations. As 16-bit integers
(`compact_gram`, 2·m² bytes) it is read in half the time that float32 takes. Without it the residuals of a block of rows
are multiplied with all atoms anew in each round.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from conceptome_kernels import checks
from conceptome_kernels.loader import call

GRAM_BUDGET = 256 * 2**20  # bytes that a Gram matrix may take unless the caller says otherwise
ICFL, MATCHING, MATCHING_NONNEGATIVE = 0, 1, 2
FLOATS, INTEGERS = 0, 1  # how atoms are packed for products, and what a Gram matrix holds


def gram_matrix(atoms: np.ndarray, *, threads: int | None = None) -> np.ndarray:
    """D·Dᵀ, float32 (m, m), each entry summed in the same order whatever the number of threads.

    Raises
    ------
    TypeError, ValueError
        `atoms` is not a contiguous, finite float32 array (m, d).
    """
    return _gram_of(atoms, np.float32, threads)


def compact_gram(atoms: np.ndarray, *, threads: int | None = None) -> np.ndarray:
    """D·Dᵀ rounded to 16-bit integers, int16 (m, m), for the argument `gram` of the pursuits with the same atoms.

    Raises
    ------
    TypeError, ValueError
        `atoms` is not a contiguous, finite float32 array (m, d).
    """
    return _gram_of(atoms, np.int16, threads)


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
        (m, m) of `compact_gram(atoms)` or `gram_matrix(atoms)`; None computes the former for this call if it fits
        `gram_budget` and there are rows enough to make up for it.
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
    return _pursue("pursuit_orthogonal", residual, atoms, (k,), k, k, gram, gram_budget, threads)


def _rounds(
    residual: np.ndarray,
    atoms: np.ndarray,
    columns: np.ndarray,
    rule: int,
    gram: np.ndarray | None,
    gram_budget: int,
    threads: int | None,
) -> tuple[np.ndarray, np.ndarray]:
    width = min(int(columns.sum()), len(atoms))
    plan = (columns, len(columns), rule, width)
    return _pursue("pursuit_rounds", residual, atoms, plan, len(columns), width, gram, gram_budget, threads)


def _pursue(
    name: str,
    residual: np.ndarray,
    atoms: np.ndarray,
    plan: tuple[np.ndarray | int, ...],
    rounds: int,
    width: int,
    gram: np.ndarray | None,
    gram_budget: int,
    threads: int | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Run one of the exported pursuits with its own arguments `plan`."""
    (n, d), m = residual.shape, len(atoms)
    threads = checks.threads(threads)
    indices, values = np.empty((n, width), dtype=np.int32), np.empty((n, width), dtype=np.float32)
    if not n:
        return indices, values
    # A Gram matrix costs as much as m / 2 products of a row with all atoms, and spares one for each row and round.
    if gram is None and 2 * m**2 <= gram_budget and 2 * n * rounds > m:
        gram = _gram(atoms, np.int16, threads)
    entries = INTEGERS if gram is not None and gram.dtype == np.int16 else FLOATS
    packed = _packed(atoms, INTEGERS, threads)
    places = (*plan, indices, values, threads)
    _run(name, residual, n, atoms, packed, INTEGERS, gram, entries, m, d, *places)
    return indices, values


def _checked(residual: np.ndarray, atoms: np.ndarray, gram: np.ndarray | None) -> int:
    """Check what all pursuits take; return m."""
    m, d = checks.array("atoms", atoms, (None, None)).shape
    checks.finite("atoms", atoms)
    if not m:
        raise ValueError("atoms must have at least one row")
    checks.finite("residual", checks.array("residual", residual, (None, d)))
    if gram is not None:
        compact = isinstance(gram, np.ndarray) and gram.dtype == np.int16
        checks.array("gram", gram, (m, m), np.int16 if compact else np.float32)
    return m


def _packed(atoms: np.ndarray, source: int, threads: int) -> np.ndarray:
    m, d = atoms.shape
    packed = np.empty(call("pursuit_packed_size", m, d, source), dtype=np.float32)
    call("pursuit_pack", atoms, m, d, packed, source, threads)
    return packed


def _gram_of(atoms: np.ndarray, dtype: type, threads: int | None) -> np.ndarray:
    checks.finite("atoms", checks.array("atoms", atoms, (None, None)))
    return _gram(atoms, dtype, checks.threads(threads))


def _gram(atoms: np.ndarray, dtype: type, threads: int) -> np.ndarray:
    m, d = atoms.shape
    gram, entries = np.empty((m, m), dtype=dtype), INTEGERS if dtype == np.int16 else FLOATS
    _run("pursuit_gram", atoms, _packed(atoms, FLOATS, threads), m, d, gram, entries, threads)
    return gram


def _run(name: str, *arguments: np.ndarray | int | None) -> None:
    if call(name, *arguments):
        raise MemoryError(f"{name}: not enough memory for the work space of its threads")
