"""Correction for many tests."""

from __future__ import annotations

import numpy as np


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """Adjust p values so that a threshold on them bounds the false discovery rate.

    Parameters
    ----------
    p
        p values of one family, float, any shape; NaN marks a test that was not made and stays NaN.

    Returns
    -------
    numpy.ndarray
        q values, float64, the shape of `p`; NaN entries do not count towards the number of tests.

    Raises
    ------
    ValueError
        A p value lies outside [0, 1].

    References
    ----------
    Benjamini and Hochberg, Journal of the Royal Statistical Society B 57 (1995), procedure (1).
    """
    from scipy.stats import false_discovery_control

    p = np.asarray(p, dtype=np.float64)
    q = np.full(p.shape, np.nan)
    made = ~np.isnan(p)
    if made.any():
        q[made] = false_discovery_control(p[made], method="bh")
    return q
