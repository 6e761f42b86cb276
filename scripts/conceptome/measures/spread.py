"""Spread of activations: how evenly they use the space that they live in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from conceptome.errors import DataError
from conceptome.measures.rows import choose_rows, seeded
from conceptome.measures.tables import ESTIMATE, PLACE
from conceptome.statistics import interval, jackknife_groups

if TYPE_CHECKING:
    import pandas as pd

    from conceptome.config.further import Spread
    from conceptome.measures.space import Space

TABLES: dict[str, dict[str, str]] = {
    "spread": {
        **PLACE,
        "statistic": "object",
        "value": "float64",
        **ESTIMATE,
        "d": "int64",
        "n": "int64",
    }
}
STATISTICS = ("participation ratio", "eigenvalue early enrichment", "Vasicek ratio MSE", "average cosine")


def participation_ratio(eigenvalues: np.ndarray) -> float:
    """(Σλ)² / Σλ²: d when all d variances λ are equal, 1 when one direction holds everything.

    References
    ----------
    Gao and Ganguli, Current Opinion in Neurobiology 32 (2015); Bun, Bouchaud and Potters for its use as a rank.
    """
    return float(eigenvalues.sum() ** 2 / (eigenvalues**2).sum())


def early_enrichment(eigenvalues: np.ndarray) -> float:
    """Area between the cumulative eigenvalues and the diagonal, as a share of the triangle above the diagonal.

    With λ descending, C_k = Σ_{i≤k} λ_i and T = C_d: EEE = trapezoid over k = 1 … d of (C_k − kT/d), divided by d·T/2.
    0 when variance is the same in all directions; (d − 1)²/d², towards 1, when one direction holds everything.

    References
    ----------
    Marbut, McKinney-Bock and Wheeler, ICML 2023 (arXiv 2212.08172), eigenvalue early enrichment.
    """
    ordered = np.sort(eigenvalues)[::-1]
    d, total = len(ordered), ordered.sum()
    above = np.cumsum(ordered) - np.arange(1, d + 1) * total / d
    return float(np.trapezoid(above) / (d * total / 2.0))


def vasicek_ratio_mse(scores: np.ndarray) -> float:
    """Mean squared distance from 1 of exp(H_i) / √(2πe), H_i the Vasicek entropy of each principal component.

    The components are scaled together to a mean variance of 1; √(2πe) is exp(entropy) of a standard normal. 0 for an
    isotropic Gaussian; mean (1 − √λ_i)² for a Gaussian with variances λ_i of mean 1, hence 2 − 2/√d when one
    direction holds everything; larger than that of the same spectrum when components are not normal.

    Parameters
    ----------
    scores
        (n, d) centred coordinates along the principal components.

    References
    ----------
    Marbut, McKinney-Bock and Wheeler, ICML 2023 (arXiv 2212.08172), Vasicek ratio MSE; Vasicek, JRSS B 38 (1976):
    the entropy from spacings, with window ⌊√n + 1/2⌋ as in scipy. Code published with the paper scales to the total
    variance of a drawn normal sample, which is d in expectation; here it is d.
    """
    from scipy.stats import differential_entropy

    scaled = scores / np.sqrt(scores.var(axis=0).mean())
    with np.errstate(divide="ignore"):
        entropy = differential_entropy(scaled, axis=0, method="vasicek")
    return float(((1.0 - np.exp(entropy) / np.sqrt(2.0 * np.pi * np.e)) ** 2).mean())


def average_cosine(x: np.ndarray) -> float:
    """Mean cosine of two different rows of x (n, d): 0 around the origin, 1 in one direction.

    References
    ----------
    Ethayarajh, EMNLP 2019. Marbut et al. show that it says where the mean lies rather than how data spread; it stands
    here for comparison with what others report.
    """
    length = np.linalg.norm(x, axis=1)
    unit = x[length > 0] / length[length > 0, None]
    n = len(unit)
    return float((np.square(unit.sum(axis=0)).sum() - n) / (n * (n - 1)))


def statistics(x: np.ndarray) -> np.ndarray:
    """The statistics of `STATISTICS` on rows x (n, d): (4,) float64."""
    centred = x - x.mean(axis=0)
    eigenvalues, axes = np.linalg.eigh(centred.T @ centred / (len(x) - 1))
    eigenvalues = np.maximum(eigenvalues, 0.0)
    return np.array(
        [
            participation_ratio(eigenvalues),
            early_enrichment(eigenvalues),
            vasicek_ratio_mse(centred @ axes),
            average_cosine(x),
        ]
    )


def measure(space: Space, config: Spread) -> dict[str, list[pd.DataFrame]]:
    """Measure how evenly the (whitened) activations use their space.

    The eigenvalue early enrichment and the Vasicek ratio MSE are the two measures that Marbut et al. recommend: they
    can be compared between models of different dimension. The null is what full use of the space looks like at this n
    and d: isotropic Gaussian samples (a finite sample has no flat spectrum). Intervals: jackknife over groups, since a
    bootstrap's repeats are spacings of zero.

    Raises
    ------
    DataError
        The activations do not vary.

    References
    ----------
    See the functions of the single statistics.
    """
    import pandas as pd

    every = np.ones(len(space.split), dtype=bool)
    rows = choose_rows(every, config.max_rows, seeded(config.seed, "spread"))
    x = space.white(rows).astype(np.float64)
    if not x.var(axis=0).sum() > 0:
        raise DataError("spread: the activations are the same for all samples, so their spread is not defined")
    value = statistics(x)
    low, high = jackknife_groups(
        lambda chosen: statistics(x[chosen]),
        space.groups[rows],
        value,
        folds=config.folds,
        confidence=config.confidence,
        seed=seeded(config.seed, "spread", "folds"),
    )
    rng = np.random.default_rng(seeded(config.seed, "spread", "null"))
    null = np.stack([statistics(rng.normal(size=x.shape)) for _ in range(config.null_draws)])
    null_low, null_high = interval(null, config.confidence)
    table = pd.DataFrame(
        {
            "statistic": list(STATISTICS),
            "value": value,
            "low": low,
            "high": high,
            "null": null.mean(axis=0),
            "null_low": null_low,
            "null_high": null_high,
            "d": x.shape[1],
            "n": len(x),
        }
    )
    return {"spread": [table]}
