"""Checks at the boundary: what reaches a kernel is contiguous, of the right type and shape, and finite.

Every message names the argument.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Sequence

import numpy as np

from conceptome_kernels.loader import call


def array(name: str, value: np.ndarray, shape: Sequence[int | None], dtype: type = np.float32) -> np.ndarray:
    """Return `value` if it is a C-contiguous array of this type and shape; None in the shape stands for any length.

    Raises
    ------
    TypeError
        Not a numpy array, or of another type.
    ValueError
        Of another shape, or not contiguous.
    """
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name} must be a numpy array, not {type(value).__name__}")
    if value.dtype != dtype:
        raise TypeError(f"{name} must be {np.dtype(dtype).name}, not {value.dtype.name}")
    fits = value.ndim == len(shape) and all(want in (None, have) for want, have in zip(shape, value.shape))
    if not fits:
        wanted = " × ".join("any" if want is None else str(want) for want in shape)
        raise ValueError(f"{name} must have shape {wanted}, not {' × '.join(map(str, value.shape)) or 'none'}")
    if not value.flags.c_contiguous:
        raise ValueError(f"{name} must be contiguous: use numpy.ascontiguousarray")
    return value


def finite(name: str, value: np.ndarray) -> np.ndarray:
    """Return `value` if it holds neither NaN nor infinity.

    Raises
    ------
    ValueError
        It does.
    """
    # A sum is finite only if all its terms are; it may overflow on finite ones, which the slower look then tells.
    with np.errstate(over="ignore", invalid="ignore"):
        suspicious = not np.isfinite(value.sum(dtype=np.float64))
    if suspicious and not np.isfinite(value).all():
        raise ValueError(f"{name} holds NaN or infinite values")
    return value


def codes(indices: np.ndarray, values: np.ndarray, m: int) -> tuple[int, int]:
    """Return n and k of fixed-width codes over m atoms.

    Raises
    ------
    TypeError, ValueError
        Not int32 and float32 (n, k), or an index that is no atom's.
    """
    n, k = array("indices", indices, (None, None), np.int32).shape
    array("values", values, (n, k))
    if indices.size and not 0 <= indices.min() <= indices.max() < m:
        raise ValueError(f"indices must lie between 0 and {m - 1}")
    return n, k


def csr_codes(indptr: np.ndarray, indices: np.ndarray, values: np.ndarray, m: int) -> tuple[int, int]:
    """Return n and nnz of CSR codes over m atoms.

    Raises
    ------
    TypeError, ValueError
        Not int64 (n + 1,), int32 (nnz,) and float32 (nnz,), an indptr that does not rise from 0 to nnz, or an index
        that is no atom's.
    """
    (ends,) = array("indptr", indptr, (None,), np.int64).shape
    (nnz,) = array("indices", indices, (None,), np.int32).shape
    array("values", values, (nnz,))
    if not ends or indptr[0] != 0 or indptr[-1] != nnz or (np.diff(indptr) < 0).any():
        raise ValueError(f"indptr must rise from 0 to the {nnz} indices")
    if nnz and not 0 <= indices.min() <= indices.max() < m:
        raise ValueError(f"indices must lie between 0 and {m - 1}")
    return ends - 1, nnz


def count(name: str, value: int, low: int, high: int) -> int:
    """Return `value` as int if low ≤ value ≤ high.

    Raises
    ------
    TypeError
        Not an integer.
    ValueError
        Out of range.
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, not {type(value).__name__}") from None
    if not low <= number <= high:
        raise ValueError(f"{name} must lie between {low} and {high}, not {number}")
    return number


def threads(value: int | None) -> int:
    """Number of threads to use: the one given, else torch's where torch is imported, else OpenMP's own.

    Raises
    ------
    TypeError, ValueError
        Not an integer, or not between 1 and 4,096.
    """
    if value is not None:
        return count("threads", value, 1, 4096)
    torch = sys.modules.get("torch")
    if torch is not None:
        return torch.get_num_threads()
    return call("conceptome_threads")
