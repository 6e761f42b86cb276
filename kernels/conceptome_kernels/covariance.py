"""Mean and scatter of a stream of rows, summed in float64, compiled (kernels/cpu/covariance.cpp).

`conceptome.whitening` sums by BLAS instead: on one thread of AVX-512 this takes 0.6 of BLAS' time at 100 dimensions,
0.7 at 320, but 1.1 at 640 and 1.3 at 1,280, where it matters. This one also reads bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from conceptome_kernels import checks
from conceptome_kernels.loader import call


class Scatter:
    """Rows seen so far: their number `n`, `mean` (d,) float64 and scatter.

    Each block is centred by its own mean, so that a large common mean costs no digits, and joined to what came before
    by the pairwise update of Chan, Golub and LeVeque (1983). The same blocks give the same bytes on any number of
    threads.

    Parameters
    ----------
    d
        Dimensions, at least 1.
    threads
        None for torch's, or OpenMP's, current number.
    """

    def __init__(self, d: int, *, threads: int | None = None):
        self.d = checks.count("d", d, 1, 2**20)
        self.n, self.mean, self._threads = 0, np.zeros(d), checks.threads(threads)
        stride = call("covariance_stride", d)
        self._sums = np.zeros((stride, stride))

    def add(self, block: np.ndarray) -> None:
        """Add rows.

        Parameters
        ----------
        block
            (rows, d) float32, or bfloat16 stored as uint16.

        Raises
        ------
        TypeError, ValueError
            Another type or shape, not contiguous, or NaN or infinite values.
        """
        half = isinstance(block, np.ndarray) and block.dtype == np.uint16
        rows = len(checks.array("block", block, (None, self.d), np.uint16 if half else np.float32))
        if not rows:
            return
        if half:
            # All ones in the exponent: infinite or NaN.
            if ((block & 0x7F80) == 0x7F80).any():
                raise ValueError("block holds NaN or infinite values")
        else:
            checks.finite("block", block)
        mean = np.empty(self.d)
        if call("covariance_block", block, int(half), rows, self.d, mean, self._sums, self._threads):
            raise MemoryError("covariance: not enough memory for its packed rows")
        delta, total = mean - self.mean, self.n + rows
        self._sums[: self.d, : self.d] += (self.n * rows / total) * np.outer(delta, delta)
        self.mean += delta * (rows / total)
        self.n = total

    @property
    def scatter(self) -> np.ndarray:
        """Σ(x−μ)(x−μ)ᵀ, symmetric float64 (d, d)."""
        upper = np.triu(self._sums[: self.d, : self.d])
        return upper + np.triu(upper, 1).T


def covariance(blocks: Iterable[np.ndarray], *, threads: int | None = None) -> tuple[int, np.ndarray, np.ndarray]:
    """Mean and scatter of a stream of blocks of rows.

    Parameters
    ----------
    blocks
        At least one array (rows, d), float32 or bfloat16 stored as uint16.
    threads
        None for torch's, or OpenMP's, current number.

    Returns
    -------
    n, mean, scatter
        Number of rows, float64 (d,), float64 (d, d); divide the scatter by n − 1 for the covariance.

    Raises
    ------
    TypeError, ValueError
        No blocks; or see `Scatter.add`.
    """
    stream: Scatter | None = None
    for block in blocks:
        if stream is None:
            stream = Scatter(block.shape[1] if np.ndim(block) == 2 else 1, threads=threads)
        stream.add(block)
    if stream is None:
        raise ValueError("blocks must hold at least one block")
    return stream.n, stream.mean, stream.scatter
