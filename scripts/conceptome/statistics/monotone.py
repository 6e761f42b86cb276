"""Monotone association of codes with an ordinal label: dose, time, stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from conceptome.errors import DataError
from conceptome.statistics.rank import RankedCodes
from conceptome.statistics.resampling import bootstrap_groups, group_codes, interval
from conceptome.statistics.resampling import permutations as permuted_labels

if TYPE_CHECKING:
    import pandas as pd
    from scipy import sparse

STATISTICS = ("spearman", "kendall", "jonckheere")


def monotone_association(
    codes: sparse.csr_matrix,
    values: np.ndarray,
    groups: np.ndarray,
    *,
    bootstraps: int,
    permutations: int,
    confidence: float,
    seed: int | list[int],
    statistic: str = "spearman",
) -> pd.DataFrame:
    """Monotone association of every atom with an ordinal label, with ties, by group.

    The statistic is Spearman's ρ, Kendall's τ_b, or Jonckheere and Terpstra's on a scale from −1 to 1. The last two
    count pairs of samples: they tell how often the higher value has the larger code, however far apart the two are,
    and differ in the denominator alone, so that they have one p.

    The p value compares the correlation with permuted labels, whole groups together (`statistics.permutations`). So
    few permutations as are affordable for thousands of atoms say nothing of small p values by counting; they give the
    mean and the standard deviation of the permutation distribution, and its skewness has a closed form:
    skewness(atom's ranks) · skewness(label's ranks) · √(n − 1) / (n − 2), that of Spearman's ρ, to which the others are
    equal in the first order of n. The standardised correlation is turned into
    a normal deviate by the Wilson-Hilferty transformation for that skewness, and its two-sided p is that of Student's t
    with permutations − 1 degrees of freedom, which pays for a standard deviation that was estimated.

    Parameters
    ----------
    codes
        (n, m) sparse codes; zeros, stored or not, are one block of ties.
    values
        (n,) float, the ordinal label; only its order counts.
    groups
        (n,) group of each sample, the unit of the bootstrap and of the permutations. Where every sample is its own
        group, samples are permuted freely.
    bootstraps, permutations
        Number of bootstrap draws behind low and high, and of permuted labels behind p and null; at least 10
        permutations.
    confidence
        Coverage of the intervals.
    seed
        Seed of both.
    statistic
        'spearman', 'kendall' or 'jonckheere'; the last two cost as many times more as the label has levels.

    Returns
    -------
    pandas.DataFrame
        One row for each of the m atoms: atom, effect (the statistic), low, high (NaN with fewer than two groups), p,
        null, null_low, null_high (mean and interval of the permuted effects), n, n_active. An atom with one value only
        has NaN in all but its counts.

    Raises
    ------
    DataError
        The three inputs differ in length, or a value is NaN.
    ValueError
        Fewer than 10 permutations, or another statistic.

    References
    ----------
    Kendall, Rank Correlation Methods (1970), chapters 3 to 5 (ties; moments under permutation). Jonckheere, Biometrika
    41 (1954). Mielke and Berry,
    Permutation Methods (2007), chapter 2 (Pearson type III). Wilson and Hilferty, PNAS 17 (1931).
    """
    import pandas as pd
    from scipy.stats import rankdata, skew
    from scipy.stats import t as student

    values, groups = np.asarray(values, dtype=np.float64), np.asarray(groups)
    n, m = codes.shape
    if not len(values) == len(groups) == n:
        raise DataError(f"monotone association: {n} codes, {len(values)} values, {len(groups)} groups: give one each")
    if np.isnan(values).any():
        raise DataError(f"monotone association: {int(np.isnan(values).sum())} values are NaN: leave those samples out")
    if permutations < 10:
        raise ValueError(f"monotone association needs at least 10 permutations, not {permutations}")
    if statistic not in STATISTICS:
        raise ValueError(f"statistic must be one of {', '.join(STATISTICS)}, not {statistic!r}")
    ranked = RankedCodes(codes)
    associated = getattr(ranked, statistic)
    order = np.unique(values, return_inverse=True)[1].astype(np.float64)
    effect = associated(order)[:, 0]

    number, names = group_codes(groups)
    low = high = np.full(m, np.nan)
    if len(names) > 1:
        weights = bootstrap_groups(groups, bootstraps, _stream(seed, 0))
        low, high = interval(np.stack([associated(order, each[number])[:, 0] for each in weights]), confidence)

    # Groups of one sample are exchangeable as they are; otherwise whole groups move.
    shuffled = permuted_labels(order, permutations, _stream(seed, 1), groups if len(names) < n else None)
    null = associated(shuffled.T).T
    null_low, null_high = interval(null, confidence)
    mean, deviation = null.mean(axis=0), null.std(axis=0, ddof=1)
    # One more draw from the same distribution differs from the estimated mean by this much.
    deviation = deviation * np.sqrt(1.0 + 1.0 / permutations)
    score = np.divide(effect - mean, deviation, out=np.full(m, np.nan), where=deviation > 1e-12)
    skewness = ranked.skewness() * float(skew(rankdata(order))) * np.sqrt(n - 1) / (n - 2) if n > 2 else np.zeros(m)
    p = 2.0 * student.sf(np.abs(wilson_hilferty(score, skewness)), permutations - 1)
    # A label that permutation cannot change (all of one group, or one value in each) is no evidence.
    p = np.where(np.isnan(effect), np.nan, np.where(np.isnan(score), 1.0, p))
    return pd.DataFrame(
        {
            "atom": np.arange(m),
            "effect": effect,
            "low": low,
            "high": high,
            "p": p,
            "null": mean,
            "null_low": null_low,
            "null_high": null_high,
            "n": n,
            "n_active": np.asarray((codes != 0).sum(axis=0)).ravel(),
        }
    )


def _stream(seed: int | list[int], which: int) -> list[int]:
    """One of two independent streams of a seed."""
    return [*(seed if isinstance(seed, list) else [seed]), which]


def wilson_hilferty(score: np.ndarray, skewness: np.ndarray) -> np.ndarray:
    """Normal deviates of standardised Pearson type III variates; skewness near 0: as they are.

    References
    ----------
    Wilson and Hilferty, PNAS 17 (1931).
    """
    skewed = np.abs(skewness) > 1e-3
    bend = np.where(skewed, skewness, 1.0)
    # Beyond the finite end of the distribution nothing is more extreme: the base stays at zero.
    base = np.maximum(1.0 + bend * score / 2.0, 0.0)
    return np.where(skewed, 6.0 / bend * (np.cbrt(base) - 1.0) + bend / 6.0, score)
