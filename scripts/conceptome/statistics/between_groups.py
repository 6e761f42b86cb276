"""Tests whose unit is the group: for labels that hold for whole groups (donor, plate, protein)."""

from __future__ import annotations

from itertools import combinations
from math import comb, log

import numpy as np

from conceptome.statistics.tails import LOG_10

EXACT = 5_000  # so many ways to deal a class out to the groups are all tried
REFINED, NEAR = 50_000, 0.05  # up to so many for the atoms whose approximate p is below this
FEW = 14  # groups in which an atom is not as in most (silent, say): all subsets of so many are tried
BLOCK = 256  # atoms compared at once with all of them


def constancy(y: np.ndarray, group: np.ndarray) -> float:
    """How far the group tells the label: Goodman and Kruskal's λ, 1 for a label that is constant in every group.

    λ = (Σ_g max_c n_gc − max_c n_c) / (n − max_c n_c): the share of the errors of guessing the commonest class that
    guessing the group's commonest class avoids. A rare class that lies anywhere has λ = 0, though most groups are
    nearly constant.

    Parameters
    ----------
    y
        (n,) int64, the class of each sample; any value may stand for the samples of no class.
    group
        (n,) int64.

    References
    ----------
    Goodman and Kruskal, Journal of the American Statistical Association 49 (1954).
    """
    y, group = (np.unique(each, return_inverse=True)[1] for each in (y, group))
    counts = np.zeros((group.max(initial=0) + 1, y.max(initial=0) + 1))
    np.add.at(counts, (group, y), 1)
    most = counts.sum(axis=0).max()
    return float((counts.max(axis=1).sum() - most) / (len(y) - most)) if len(y) > most else 0.0


def common_class(y: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Commonest class of each group (number 0 … G − 1), of equally common ones the first: (G,) int64."""
    names, code = np.unique(y, return_inverse=True)
    counts = np.zeros((group.max() + 1, len(names)))
    np.add.at(counts, (group, code), 1)
    return names[counts.argmax(axis=1)]


def between_groups_log10_p(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """log10 of the p of a permutation test of the mean over groups with a label against the others.

    The statistic is the square of r, the correlation over groups of an atom's values with the class; its null deals the
    class out to the groups in every possible way. (Ordered by r², both tails count as they are: where values are
    skewed, as codes are, twice the smaller tail would count a long tail twice.) Where there are at most `EXACT` ways,
    all are tried, and up to `REFINED` for the atoms whose p may matter; for these too where all but `FEW` groups have
    one value, as those in which an atom is silent. Otherwise r² is a beta variable with its exact mean, 1/(G − 1), and
    second moment,

        E[r⁴] = 3/(G² − 1) + (G − 2)(G − 3) / (G(G + 1)(G − 1)³) · k₄k₂⁻²(values) · k₄k₂⁻²(class),

    k being Fisher's k-statistics, and p is at least one in all ways. Values and classes without excess kurtosis give
    the t-test of the groups' means.

    Parameters
    ----------
    values
        (m, G) float64, one value of each atom per group: the mean rank of its samples, say.
    labels
        (G, c) bool.

    Returns
    -------
    numpy.ndarray
        (m, c) float64; 0 (p = 1) where an atom has one value only, or a class all groups or none: no evidence.

    References
    ----------
    Pitman, Supplement to the Journal of the Royal Statistical Society 4 (1937), "The correlation coefficient test":
    moments of r under permutation, and the beta distribution.
    """
    values = np.asarray(values, dtype=np.float64)
    n_groups = values.shape[1]
    found = np.zeros((len(values), labels.shape[1]))
    centred = values - values.mean(axis=1, keepdims=True)
    spread = np.sqrt(np.square(centred).sum(axis=1))
    flat = spread <= 1e-9 * np.maximum(np.abs(values).max(axis=1, initial=0.0), 1e-300) * np.sqrt(n_groups)
    unit = np.divide(centred, spread[:, None], out=np.zeros_like(centred), where=~flat[:, None])
    for column, label in enumerate(labels.T):
        size = int(label.sum())
        ways = comb(n_groups, size)
        if size in (0, n_groups) or n_groups < 3:
            continue
        if ways <= EXACT:
            found[:, column] = _exact_log10_p(unit, label, ways)
            continue
        deviation = label - size / n_groups
        deviation /= np.linalg.norm(deviation)
        log10_p = _beta_log10_p(
            np.minimum(np.square(unit @ deviation), 1.0), _kurtosis(unit) * _kurtosis(deviation), n_groups
        )
        found[:, column] = np.maximum(log10_p, -log(ways) / LOG_10)
        near = np.flatnonzero(log10_p < np.log10(NEAR))
        if len(near) and ways <= REFINED:
            found[near, column] = _exact_log10_p(unit[near], label, ways)
            continue
        for atom in near:
            exact = _few_log10_p(unit[atom], label)
            found[atom, column] = found[atom, column] if exact is None else exact
    found[flat] = 0.0
    return found


def _kurtosis(unit: np.ndarray) -> np.ndarray:
    """k₄/k₂² of rows (…, n) of mean 0 and length 1."""
    n = unit.shape[-1]
    k4 = n / ((n - 1) * (n - 2) * (n - 3)) * ((n + 1) * (unit**4).sum(axis=-1) - 3 * (n - 1) / n)
    return k4 * (n - 1) ** 2


def _beta_log10_p(squared: np.ndarray, kurtosis: np.ndarray, n: int) -> np.ndarray:
    """log10 P(r² ≥ squared) of the beta distribution with the moments of r² under permutation: (m,)."""
    from scipy.special import betainc, betaln, hyp2f1

    mean = 1.0 / (n - 1)
    second = 3.0 / (n**2 - 1) + (n - 2) * (n - 3) / (n * (n + 1) * (n - 1) ** 3) * kurtosis
    both = mean * (1.0 - mean) / np.maximum(second - mean**2, 1e-12) - 1.0
    a, b = mean * both, (1.0 - mean) * both
    # The tail of r² is that of y = 1 − r² from below.
    y = np.maximum(1.0 - squared, 1e-300)
    p = betainc(b, a, y)
    # Where p underflows: y^b (1 − y)^a / (b B(a, b)) · ₂F₁(a + b, 1; b + 1; y), in logarithms.
    far = p < 1e-290
    log_p = np.log(np.where(far, 1.0, p))
    a, b, y = a[far], b[far], y[far]
    log_p[far] = b * np.log(y) + a * np.log1p(-y) - np.log(b) - betaln(a, b) + np.log(hyp2f1(a + b, 1.0, b + 1.0, y))
    return log_p / LOG_10


def _exact_log10_p(unit: np.ndarray, label: np.ndarray, ways: int) -> np.ndarray:
    """log10 of the share of ways in which the sum lies as far from its mean, 0, or farther: (m,), at most 0."""
    size = int(label.sum())
    chosen = np.fromiter((i for way in combinations(range(len(label)), size) for i in way), dtype=np.int64)
    dealt = np.zeros((ways, len(label)))
    dealt[np.repeat(np.arange(ways), size), chosen] = 1.0
    found = np.empty(len(unit))
    for start in range(0, len(unit), BLOCK):
        part = unit[start : start + BLOCK]
        own, null = np.abs(part[:, label].sum(axis=1))[:, None], np.abs(part @ dealt.T)
        # Equal sums may differ by rounding.
        found[start : start + BLOCK] = (null >= own - 1e-9).mean(axis=1)
    return np.log10(found)


def _few_log10_p(unit: np.ndarray, label: np.ndarray) -> float | None:
    """As `_exact_log10_p`, of one atom (G,) that has one value in all groups but `FEW`; None where there are more.

    Which of these few groups are of the class decides the sum; the ways to fill it up with the others are counted.
    """
    from scipy.special import gammaln

    values, place, counts = np.unique(unit.round(9), return_inverse=True, return_counts=True)
    most = int(counts.argmax())
    few = unit[place != most]
    rest, size = len(unit) - len(few), int(label.sum())
    if len(few) > FEW:
        return None
    sums, sizes = np.zeros(1), np.zeros(1, dtype=np.int64)
    for value in few:
        sums, sizes = np.concatenate([sums, sums + value]), np.concatenate([sizes, sizes + 1])
    filled = size - sizes
    possible = (filled >= 0) & (filled <= rest)
    sums, filled = sums[possible] + filled[possible] * values[most], filled[possible]
    log_ways = gammaln(rest + 1) - gammaln(filled + 1) - gammaln(rest - filled + 1)
    weights = np.exp(log_ways - log_ways.max())
    share = weights[np.abs(sums) >= abs(unit[label].sum()) - 1e-7].sum() / weights.sum()
    return float(np.log10(share))
