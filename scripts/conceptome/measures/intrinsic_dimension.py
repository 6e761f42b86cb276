"""Intrinsic dimension of activations: how many coordinates a sample's neighbourhood needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from conceptome.errors import DataError
from conceptome.measures.rows import choose_rows, seeded
from conceptome.measures.tables import ESTIMATE, PLACE
from conceptome.statistics import interval, jackknife_groups

if TYPE_CHECKING:
    import pandas as pd

    from conceptome.config.further import IntrinsicDimension
    from conceptome.measures.space import Space

TABLES: dict[str, dict[str, str]] = {
    "intrinsic_dimension": {
        **PLACE,
        "estimator": "object",
        "dimension": "float64",
        **ESTIMATE,
        "d": "int64",
        "n": "int64",
    }
}
ESTIMATORS = ("TwoNN", "MLE", "ESS")


def neighbours(x: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Distances and indices of the k nearest other rows of x (n, d): (n, k) float64 and (n, k) int64.

    Rows must not repeat: a distance of zero has no logarithm.
    """
    from sklearn.neighbors import NearestNeighbors

    index = NearestNeighbors(n_neighbors=k + 1).fit(x)
    distance, place = index.kneighbors(x)
    return distance[:, 1:], place[:, 1:]


def two_nn(distance: np.ndarray, discarded: float) -> float:
    """Slope through the origin of −log(1 − F(μ)) on log μ, μ the ratio of the second to the first distance.

    Parameters
    ----------
    distance
        (n, ≥ 2) distances to the nearest neighbours, ascending.
    discarded
        Share of the largest ratios left out of the fit, where the empirical F is least certain.

    References
    ----------
    Facco, d'Errico, Rodriguez and Laio, Scientific Reports 7 (2017), equations 4 and 5 and the algorithm after them.
    """
    log = np.sort(np.log(distance[:, 1] / distance[:, 0]))
    share = np.arange(1, len(log) + 1) / len(log)
    kept = slice(0, max(int(len(log) * (1.0 - discarded)), 1))
    x, y = log[kept], -np.log1p(-np.minimum(share[kept], 1.0 - 0.5 / len(log)))
    return float((x @ y) / (x @ x))


def levina_bickel(distance: np.ndarray) -> float:
    """Maximum-likelihood dimension from k neighbours, inverses averaged over samples.

    1/m̂ = mean over samples of Σ_{j<k} log(T_k/T_j) / (k − 2), which removes the estimate's bias at finite k.

    Parameters
    ----------
    distance
        (n, k) distances to the nearest neighbours, ascending.

    References
    ----------
    Levina and Bickel, NIPS 2004, equation 8 (with k − 2); MacKay and Ghahramani's comment (2005): average inverses.
    """
    logs = np.log(distance[:, -1:] / distance[:, :-1])
    return float((distance.shape[1] - 2) / logs.sum(axis=1).mean())


def simplex_skewness(x: np.ndarray, place: np.ndarray) -> float:
    """Expected simplex skewness: how close to orthogonal two neighbours look from their centre.

    In each neighbourhood, over pairs of neighbours seen from their mean, Σ ‖u‖‖v‖ sin(u, v) / Σ ‖u‖‖v‖ is compared
    with what it is in a ball of dimension d, Γ(d/2)² / (Γ((d+1)/2)·Γ((d−1)/2)), with linear interpolation between whole
    d; the mean over neighbourhoods is taken of the skewness.

    Parameters
    ----------
    x
        (n, p) rows.
    place
        (n, k) indices of the neighbours of each.

    References
    ----------
    Johnsson, Soneson and Fontes, IEEE TPAMI 37 (2015), the estimator of version a with simplices of dimension one.
    """
    first, second = np.triu_indices(place.shape[1], 1)
    skewness = 0.0
    for row in place:
        local = x[row] - x[row].mean(axis=0)
        gram = local @ local.T
        square = np.diag(gram)
        product = square[first] * square[second]
        area = np.sqrt(np.maximum(product - gram[first, second] ** 2, 0.0))
        skewness += area.sum() / np.sqrt(product).sum() / len(place)
    dimensions = np.arange(1, max(x.shape[1], 2) + 2)
    return float(np.interp(skewness, ball_skewness(dimensions), dimensions))


def ball_skewness(dimensions: np.ndarray) -> np.ndarray:
    """Expected |sin| of the angle of two random directions in each dimension: 0 for 1, towards 1 for many."""
    from scipy.special import gammaln

    d = np.asarray(dimensions, dtype=np.float64)
    safe = np.maximum(d, 2.0)
    value = np.exp(2.0 * gammaln(safe / 2.0) - gammaln((safe + 1.0) / 2.0) - gammaln((safe - 1.0) / 2.0))
    return np.where(d < 2.0, 0.0, value)


def estimates(x: np.ndarray, config: IntrinsicDimension) -> np.ndarray:
    """The estimators of `ESTIMATORS` on rows x (n, d) without repeats: (3,) float64."""
    distance, place = neighbours(x, config.neighbours)
    # A quarter of the neighbourhoods says enough of the angles, which cost most.
    some = slice(None, None, 4)
    return np.array([two_nn(distance, config.discarded), levina_bickel(distance), simplex_skewness(x, place[some])])


def measure(space: Space, config: IntrinsicDimension) -> dict[str, list[pd.DataFrame]]:
    """Estimate the intrinsic dimension of the (whitened) activations in three ways.

    TwoNN and MLE read it off distances, ESS off angles; they err differently, so they are given side by side. All
    underestimate high dimensions at finite n, and a null tells by how much: Gaussian samples of the same number and the
    same covariance. Activations below their null are curved or clumped; level with it, they fill the dimensions that
    their covariance has. Exact repeats (the same residue in the same sequence) are left out.
    Intervals: jackknife over groups, since a bootstrap would give samples their own copies as neighbours.

    Raises
    ------
    DataError
        Too few distinct samples for the neighbours asked for.

    References
    ----------
    See `two_nn`, `levina_bickel`, `simplex_skewness`.
    """
    import pandas as pd

    every = np.ones(len(space.split), dtype=bool)
    rows = choose_rows(every, config.max_rows, seeded(config.seed, "intrinsic_dimension"))
    x = space.white(rows).astype(np.float64)
    _, kept = np.unique(x, axis=0, return_index=True)
    kept = np.sort(kept)
    x, groups = x[kept], space.groups[rows][kept]
    if len(x) < 3 * config.neighbours:
        raise DataError(
            f"intrinsic dimension: {len(x)} distinct samples are too few for {config.neighbours} neighbours: "
            "lower measures.intrinsic_dimension.neighbours"
        )
    value = estimates(x, config)
    low, high = jackknife_groups(
        lambda chosen: estimates(x[chosen], config),
        groups,
        value,
        folds=config.folds,
        confidence=config.confidence,
        seed=seeded(config.seed, "intrinsic_dimension", "folds"),
    )
    rng = np.random.default_rng(seeded(config.seed, "intrinsic_dimension", "null"))
    # Square root of the covariance by singular values, which also serves directions without any variance.
    _, strength, axes = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    root = strength[:, None] / np.sqrt(len(x)) * axes
    null = np.stack([estimates(rng.normal(size=(len(x), len(root))) @ root, config) for _ in range(config.null_draws)])
    null_low, null_high = interval(null, config.confidence)
    table = pd.DataFrame(
        {
            "estimator": list(ESTIMATORS),
            "dimension": value,
            "low": low,
            "high": high,
            "null": null.mean(axis=0),
            "null_low": null_low,
            "null_high": null_high,
            "d": x.shape[1],
            "n": len(x),
        }
    )
    return {"intrinsic_dimension": [table]}
