"""Products that touch only the active atoms: decode, residual, gradients.

Codes have a fixed width: `indices` int32 (n, k), ascending in each row, and `values` float32 (n, k); a place whose
value is 0 is empty. Functions named `_csr` take the arrays of a CSR matrix instead: `indptr` int64 (n + 1,),
`indices` int32 (nnz,) and `values` float32 (nnz,). Every element of a result is summed by one thread, in one order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from conceptome_kernels import checks
from conceptome_kernels.loader import call


def decode(
    indices: np.ndarray, values: np.ndarray, atoms: np.ndarray, bias: np.ndarray, *, threads: int | None = None
) -> np.ndarray:
    """z·D + b.

    Parameters
    ----------
    indices, values
        Codes (n, k).
    atoms, bias
        D, float32 (m, d); b, float32 (d,).

    Returns
    -------
    numpy.ndarray
        float32 (n, d).

    Raises
    ------
    TypeError, ValueError
        A wrong type or shape, an array that is not contiguous, an index that is no atom's.
    """
    m, d = checks.array("atoms", atoms, (None, None)).shape
    checks.array("bias", bias, (d,))
    n, k = checks.codes(indices, values, m)
    out = np.empty((n, d), dtype=np.float32)
    call("conceptome_decode", indices, values, n, k, atoms, d, bias, out, checks.threads(threads))
    return out


def decode_residual(
    X: np.ndarray,
    indices: np.ndarray,
    values: np.ndarray,
    atoms: np.ndarray,
    bias: np.ndarray,
    *,
    scale: float | None = None,
    threads: int | None = None,
) -> tuple[np.ndarray, ...]:
    """Residual x − b − z·D and its squared length.

    Parameters
    ----------
    X
        float32 (n, d). The others are as in `decode`.
    scale
        Where it is given, `code_gradient` of the residual comes third, at about half its price.

    Returns
    -------
    residual, squares, and gradient where asked for
        float32 (n, d); float64 (n,); float32 (n, k).

    Raises
    ------
    TypeError, ValueError
        As in `decode`.
    """
    m, d = checks.array("atoms", atoms, (None, None)).shape
    checks.array("bias", bias, (d,))
    n, k = checks.codes(indices, values, m)
    checks.array("X", X, (n, d))
    residual, squares = np.empty((n, d), dtype=np.float32), np.empty(n)
    gradient = None if scale is None else np.empty((n, k), dtype=np.float32)
    arguments = (X, indices, values, n, k, atoms, d, bias, residual, squares, float(scale or 0), gradient)
    call("conceptome_decode_residual", *arguments, checks.threads(threads))
    return (residual, squares) if gradient is None else (residual, squares, gradient)


def decode_residual_csr(
    X: np.ndarray,
    indptr: np.ndarray,
    indices: np.ndarray,
    values: np.ndarray,
    atoms: np.ndarray,
    bias: np.ndarray,
    *,
    scale: float | None = None,
    threads: int | None = None,
) -> tuple[np.ndarray, ...]:
    """Residual x − b − z·D of CSR codes and its squared length: `decode_residual` for any number of codes per row.

    Returns
    -------
    residual, squares, and gradient where asked for
        float32 (n, d); float64 (n,); float32 (nnz,).

    Raises
    ------
    TypeError, ValueError
        As in `decode_residual`; an indptr that does not rise from 0 to nnz.
    """
    m, d = checks.array("atoms", atoms, (None, None)).shape
    checks.array("bias", bias, (d,))
    n, nnz = checks.csr_codes(indptr, indices, values, m)
    checks.array("X", X, (n, d))
    residual, squares = np.empty((n, d), dtype=np.float32), np.empty(n)
    gradient = None if scale is None else np.empty(nnz, dtype=np.float32)
    arguments = (X, indptr, indices, values, n, atoms, d, bias, residual, squares, float(scale or 0), gradient)
    call("conceptome_decode_residual_csr", *arguments, checks.threads(threads))
    return (residual, squares) if gradient is None else (residual, squares, gradient)


def code_gradient(
    error: np.ndarray,
    indices: np.ndarray,
    values: np.ndarray,
    atoms: np.ndarray,
    *,
    scale: float = 1.0,
    threads: int | None = None,
) -> np.ndarray:
    """Gradient in the codes, scale · e·D_jᵀ at the active places, 0 elsewhere.

    Parameters
    ----------
    error
        float32 (n, d): with `scale`, the gradient of the loss in z·D. The others are as in `decode`.

    Returns
    -------
    numpy.ndarray
        float32 (n, k).

    Raises
    ------
    TypeError, ValueError
        As in `decode`.
    """
    m, d = checks.array("atoms", atoms, (None, None)).shape
    n, k = checks.codes(indices, values, m)
    checks.array("error", error, (n, d))
    gradient = np.empty((n, k), dtype=np.float32)
    arguments = (error, float(scale), indices, values, n, k, atoms, d, gradient)
    call("conceptome_code_gradient", *arguments, checks.threads(threads))
    return gradient


def code_gradient_csr(
    error: np.ndarray,
    indptr: np.ndarray,
    indices: np.ndarray,
    values: np.ndarray,
    atoms: np.ndarray,
    *,
    scale: float = 1.0,
    threads: int | None = None,
) -> np.ndarray:
    """Gradient in CSR codes, float32 (nnz,): `code_gradient` for any number of codes per row.

    Raises
    ------
    TypeError, ValueError
        As in `code_gradient`; an indptr that does not rise from 0 to nnz.
    """
    m, d = checks.array("atoms", atoms, (None, None)).shape
    n, nnz = checks.csr_codes(indptr, indices, values, m)
    checks.array("error", error, (n, d))
    gradient = np.empty(nnz, dtype=np.float32)
    arguments = (error, float(scale), indptr, indices, values, n, atoms, d, gradient)
    call("conceptome_code_gradient_csr", *arguments, checks.threads(threads))
    return gradient


@dataclass(frozen=True)
class ByAtom:
    """Active codes sorted by atom, rows ascending: atom j's are the places offsets[j] to offsets[j + 1].

    Attributes
    ----------
    offsets
        int64 (m + 1,).
    rows, values, gradient
        int32, float32 and float32 (active codes,): row, value, and gradient of the loss in the code.
    """

    offsets: np.ndarray
    rows: np.ndarray
    values: np.ndarray
    gradient: np.ndarray


def by_atom(indices: np.ndarray, values: np.ndarray, gradient: np.ndarray, m: int) -> ByAtom:
    """Sort codes and their gradients by atom (a counting sort).

    Parameters
    ----------
    indices, values
        Codes (n, k) over m atoms.
    gradient
        float32 (n, k), as `code_gradient` gives it.

    Raises
    ------
    TypeError, ValueError
        A wrong type or shape, an array that is not contiguous, an index that is no atom's.
    """
    n, k = checks.codes(indices, values, m)
    checks.array("gradient", gradient, (n, k))
    return _sorted("conceptome_sort", (indices, values, gradient, n, k, m), n * k, m)


def by_atom_csr(indptr: np.ndarray, indices: np.ndarray, values: np.ndarray, gradient: np.ndarray, m: int) -> ByAtom:
    """Sort CSR codes and their gradients (nnz,) by atom: `by_atom` for any number of codes per row.

    Raises
    ------
    TypeError, ValueError
        As in `by_atom`; an indptr that does not rise from 0 to nnz.
    """
    n, nnz = checks.csr_codes(indptr, indices, values, m)
    checks.array("gradient", gradient, (nnz,))
    return _sorted("conceptome_sort_csr", (indptr, indices, values, gradient, n, m), nnz, m)


def _sorted(function: str, arguments: tuple, places: int, m: int) -> ByAtom:
    """Have one of the kernels sort that many places."""
    offsets, rows = np.empty(m + 1, dtype=np.int64), np.empty(places, dtype=np.int32)
    values, gradient = np.empty(places, dtype=np.float32), np.empty(places, dtype=np.float32)
    active = call(function, *arguments, offsets, rows, values, gradient)
    return ByAtom(offsets, rows[:active], values[:active], gradient[:active])


def sparse_backward(
    error: np.ndarray,
    indices: np.ndarray,
    values: np.ndarray,
    atoms: np.ndarray,
    inputs: np.ndarray,
    *,
    threads: int | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of a loss through x̂ = z·D + b and z = ReLU(TopK(inputs·Wᵀ + c)).

    Parameters
    ----------
    error
        float32 (n, d): gradient of the loss in x̂.
    indices, values
        Codes (n, k).
    atoms
        D, float32 (m, d).
    inputs
        What the encoder was applied to, x − b, float32 (n, d).

    Returns
    -------
    in_atoms, in_encoder, in_encoder_bias, in_codes
        float32 (m, d), (m, d), (m,) and (n, k); the last 0 where a place is empty.

    Raises
    ------
    TypeError, ValueError
        A wrong type or shape, an array that is not contiguous, an index that is no atom's.
    """
    threads = checks.threads(threads)
    in_codes = code_gradient(error, indices, values, atoms, threads=threads)
    (m, d), n = atoms.shape, len(indices)
    checks.array("inputs", inputs, (n, d))
    codes = by_atom(indices, values, in_codes, m)
    in_atoms, in_encoder = np.empty((m, d), dtype=np.float32), np.empty((m, d), dtype=np.float32)
    in_encoder_bias = np.empty(m, dtype=np.float32)
    places = (codes.offsets, codes.rows, codes.values, codes.gradient)
    results = (in_atoms, in_encoder, in_encoder_bias)
    call("conceptome_atom_gradients", error, inputs, d, m, *places, *results, threads)
    return in_atoms, in_encoder, in_encoder_bias, in_codes


def column_sums(X: np.ndarray, *, threads: int | None = None) -> np.ndarray:
    """Sums of float32 X (n, d) over its rows: float64 (d,), the same bytes for any number of threads."""
    n, d = checks.array("X", X, (None, None)).shape
    sums = np.empty(d)
    call("conceptome_column_sums", X, n, d, sums, checks.threads(threads))
    return sums
