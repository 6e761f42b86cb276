"""Encoders with a dense product: the k largest scores of each row, or all scores above a threshold.

Scores are (x − b)·Wᵀ + c in float32. The selection is exact for those scores, and no rows × atoms array is formed.
"""

from __future__ import annotations

import numpy as np

from conceptome_kernels import checks
from conceptome_kernels.loader import call

# What the encoders return: see Status in cpu/product.h.
ROWS_NOT_FINITE, SCORES_NAN = 1, 2
LINE = 16  # float32 per cache line


def pack(encoder: np.ndarray, *, threads: int | None = None, out: np.ndarray | None = None) -> np.ndarray:
    """Lay the encoder out as `encode_topk` reads it.

    Parameters
    ----------
    encoder
        float32 (m, d).
    out
        An earlier result for an encoder of this shape, to be overwritten.

    Returns
    -------
    numpy.ndarray
        Opaque float32, of use only to the variant of the kernels that made it.

    Raises
    ------
    TypeError, ValueError
        A wrong type or shape, or an array that is not contiguous.
    """
    m, d = checks.array("encoder", encoder, (None, None)).shape
    packed = _aligned(packed_size(m, d)) if out is None else checks.array("out", out, (packed_size(m, d),))
    call("conceptome_pack", encoder, m, d, packed, checks.threads(threads))
    return packed


def pack_panels(encoder: np.ndarray, *, threads: int | None = None) -> np.ndarray:
    """Lay the encoder out as `encode_threshold` reads it: as `pack` does for `encode_topk`."""
    m, d = checks.array("encoder", encoder, (None, None)).shape
    packed = _aligned(call("conceptome_panels_size", m, d))
    call("conceptome_pack_panels", encoder, m, d, packed, checks.threads(threads))
    return packed


def packed_size(m: int, d: int) -> int:
    """Length of `pack(encoder)` for an encoder (m, d)."""
    return call("conceptome_packed_size", m, d)


def _aligned(size: int) -> np.ndarray:
    """Empty float32 (size,) that starts with a cache line, so that no vector of it straddles two."""
    whole = np.empty(size + LINE, dtype=np.float32)
    skip = -(whole.ctypes.data // whole.itemsize) % LINE
    return whole[skip : skip + size]


def encode_topk(
    X: np.ndarray,
    encoder: np.ndarray,
    encoder_bias: np.ndarray,
    bias: np.ndarray,
    k: int,
    *,
    packed: np.ndarray | None = None,
    threads: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """ReLU(TopK_k((x − b)·Wᵀ + c)).

    Parameters
    ----------
    X
        float32 (n, d).
    encoder
        W, float32 (m, d).
    encoder_bias, bias
        c, float32 (m,); b, float32 (d,).
    k
        1 ≤ k ≤ m.
    packed
        `pack(encoder)`, where it is at hand: packing costs about as much as encoding a few dozen rows.

    Returns
    -------
    indices, values
        int32 (n, k), the columns of the k largest scores, ascending, the lower column where scores are equal; and
        float32 (n, k), the scores, 0 for those below 0.

    Raises
    ------
    TypeError, ValueError
        A wrong type, shape or k, an array that is not contiguous, NaN or infinite values in X, encoder_bias or bias.
    FloatingPointError
        NaN among the scores: the encoder holds NaN, or products overflow.
    """
    m, threads = _encoder(X, encoder_bias, bias, threads)
    n, d = X.shape
    checks.array("encoder", encoder, (m, d))
    packed = pack(encoder, threads=threads) if packed is None else checks.array("packed", packed, (packed_size(m, d),))
    k = checks.count("k", k, 1, m)
    indices, values = np.empty((n, k), dtype=np.int32), np.empty((n, k), dtype=np.float32)
    if n:
        arguments = (X, n, d, packed, encoder, encoder_bias, bias, m, k, indices, values, threads)
        _raise(call("conceptome_encode_topk", *arguments))
    return indices, values


def encode_threshold(
    X: np.ndarray,
    encoder: np.ndarray | None,
    encoder_bias: np.ndarray,
    bias: np.ndarray,
    threshold: np.ndarray | float,
    *,
    packed: np.ndarray | None = None,
    threads: int | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All scores (x − b)·Wᵀ + c that lie above their atom's threshold, as the arrays of a CSR matrix (n, m).

    With a threshold of 0 these are the codes of a ReLU encoder, and what BatchTopK chooses from; with one per atom,
    those of JumpReLU.

    Parameters
    ----------
    threshold
        One number, or float32 (m,); −inf keeps all scores, inf none.
    packed
        `pack_panels(encoder)`; then the encoder may be None. The others are as in `encode_topk`.

    Returns
    -------
    indptr, indices, values
        int64 (n + 1,); int32 and float32 (nnz,), columns ascending in each row.

    Raises
    ------
    TypeError, ValueError, FloatingPointError
        As in `encode_topk`; NaN among the thresholds.
    """
    m, threads = _encoder(X, encoder_bias, bias, threads)
    n, d = X.shape
    if packed is None:
        packed = pack_panels(checks.array("encoder", encoder, (m, d)), threads=threads)
    checks.array("packed", packed, (call("conceptome_panels_size", m, d),))
    if np.ndim(threshold) == 0:
        threshold = np.full(m, threshold, dtype=np.float32)
    if np.isnan(checks.array("threshold", threshold, (m,))).any():
        raise ValueError("threshold holds NaN")
    indptr, handle = np.zeros(n + 1, dtype=np.int64), np.zeros(1, dtype=np.int64)
    if n:
        arguments = (X, n, d, packed, encoder_bias, bias, m, threshold, indptr, handle, threads)
        _raise(call("conceptome_encode_threshold", *arguments))
    indices, values = np.empty(indptr[-1], dtype=np.int32), np.empty(indptr[-1], dtype=np.float32)
    if n:
        call("conceptome_fetch", int(handle[0]), indices, values)
    return indptr, indices, values


def _encoder(X: np.ndarray, encoder_bias: np.ndarray, bias: np.ndarray, threads: int | None) -> tuple[int, int]:
    """Check what every encoder takes; give m and the number of threads."""
    _, d = checks.array("X", X, (None, None)).shape
    (m,) = checks.array("encoder_bias", encoder_bias, (None,)).shape
    checks.finite("encoder_bias", encoder_bias)
    checks.finite("bias", checks.array("bias", bias, (d,)))
    if not d or not m:
        raise ValueError(f"encoder must have atoms and dimensions, not {m} × {d}")
    return m, checks.threads(threads)


def _raise(status: int) -> None:
    if status == ROWS_NOT_FINITE:
        raise ValueError("X holds NaN or infinite values")
    if status == SCORES_NAN:
        raise FloatingPointError("scores hold NaN")
