"""Encoders with a dense product: each row's k largest scores, a batch's n·k largest, or all above a threshold.

Scores are (x − b)·Wᵀ + c in float32. The selection is exact for those scores, and no rows × atoms array is formed.
"""

from __future__ import annotations

import numpy as np

from conceptome_kernels import checks
from conceptome_kernels.loader import call

# What the encoders return: see Status in cpu/product.h.
ROWS_NOT_FINITE, SCORES_NAN = 1, 2
LINE = 16  # float32 per cache line
# BatchTopK's first thresholds are what would let this many times n·k scores of a sample of rows pass.
SLACK = (1.5, 4.0)
SAMPLE_ROWS = 128


def pack(encoder: np.ndarray, *, threads: int | None = None, out: np.ndarray | None = None) -> np.ndarray:
    """Lay the encoder out as the encoders read it.

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
    """Lay the encoder out in float32 panels, which `encode_threshold` can read too: the better choice for dense codes."""
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
    packed = _packed(encoder, m, d, packed, threads)
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
        `pack(encoder)`: fastest where few scores pass. Or `pack_panels(encoder)`; then the encoder may be None, and
        scores may differ in their last digits, being summed in another order. The others are as in `encode_topk`.

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
    d = X.shape[1]
    panels = call("conceptome_panels_size", m, d)
    # The two layouts differ in size, unless they are one and the same.
    if packed is not None and (encoder is None or np.shape(packed) == (panels,)):
        encoder, packed = None, checks.array("packed", packed, (panels,))
    else:
        packed = _packed(encoder, m, d, packed, threads)
    if np.ndim(threshold) == 0:
        threshold = np.full(m, threshold, dtype=np.float32)
    if np.isnan(checks.array("threshold", threshold, (m,))).any():
        raise ValueError("threshold holds NaN")
    return _above(X, packed, encoder, encoder_bias, bias, threshold, -1, threads)


def encode_batch_topk(
    X: np.ndarray,
    encoder: np.ndarray,
    encoder_bias: np.ndarray,
    bias: np.ndarray,
    k: int,
    *,
    packed: np.ndarray | None = None,
    threads: int | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """BatchTopK (Bussmann et al. 2024, arXiv 2412.06410): of all scores of a batch, the n·k largest positive ones.

    Parameters
    ----------
    k
        Codes per row on average, 1 ≤ k ≤ m. The others are as in `encode_topk`.

    Returns
    -------
    indptr, indices, values
        int64 (n + 1,); int32 and float32 (nnz,), columns ascending in each row. nnz is n·k, or the number of positive
        scores where there are fewer; of equal scores those in the lower row stay, then those in the lower column.
    threshold
        The smallest value kept where n·k are; 0 where all positive scores are.

    Raises
    ------
    TypeError, ValueError, FloatingPointError
        As in `encode_topk`.
    """
    m, threads = _encoder(X, encoder_bias, bias, threads)
    n, d = X.shape
    packed = _packed(encoder, m, d, packed, threads)
    k = checks.count("k", k, 1, m)
    # Whatever is above a threshold that lets n·k scores pass includes the n·k largest: an estimate is good enough.
    sample = np.ascontiguousarray(X[np.linspace(0, n - 1, min(n, SAMPLE_ROWS)).astype(np.int64)])
    found = encode_topk(sample, encoder, encoder_bias, bias, min(m, 4 * k), packed=packed, threads=threads)[1].ravel()
    for slack in (*SLACK, None):
        place = None if slack is None else found.size - int(slack * k * len(sample)) - 1
        low = 0.0 if place is None or place < 0 else float(np.partition(found, place)[place])
        thresholds = np.full(m, low, dtype=np.float32)
        indptr, indices, values = _above(X, packed, encoder, encoder_bias, bias, thresholds, n * k, threads)
        if len(values) == n * k or low == 0:
            break
    return indptr, indices, values, float(values.min()) if n and len(values) == n * k else 0.0


def _packed(encoder: np.ndarray, m: int, d: int, packed: np.ndarray | None, threads: int) -> np.ndarray:
    """Check the encoder, and the packed one or make it."""
    checks.array("encoder", encoder, (m, d))
    return pack(encoder, threads=threads) if packed is None else checks.array("packed", packed, (packed_size(m, d),))


def _above(
    X: np.ndarray,
    packed: np.ndarray,
    encoder: np.ndarray | None,
    encoder_bias: np.ndarray,
    bias: np.ndarray,
    thresholds: np.ndarray,
    most: int,
    threads: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores above their atom's threshold (m,), all (`most` = −1) or the largest, as the arrays of a CSR matrix."""
    (n, d), m = X.shape, len(thresholds)
    indptr, handle = np.zeros(n + 1, dtype=np.int64), np.zeros(1, dtype=np.int64)
    if n:
        arguments = (X, n, d, packed, encoder, encoder_bias, bias, m, thresholds, most, indptr, handle, threads)
        _raise(call("conceptome_encode_threshold", *arguments))
    indices, values = np.empty(indptr[-1], dtype=np.int32), np.empty(indptr[-1], dtype=np.float32)
    if n:
        call("conceptome_fetch", int(handle[0]), n, indptr, indices, values)
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
