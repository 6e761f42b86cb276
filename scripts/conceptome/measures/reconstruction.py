"""How much of the activations a dictionary explains, at several budgets, and which atoms are dead or dense."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from conceptome.measures.rows import seeded
from conceptome.statistics import bootstrap_groups, group_codes, group_folds, interval, jackknife

if TYPE_CHECKING:
    import pandas as pd
    from scipy import sparse

    from conceptome.config.evidence import Measures

FOLDS = 10  # of groups of training samples, which the jackknife of dead atoms leaves out in turn


class Variance:
    """The variance to be explained: total, and per bootstrap draw of groups; made once for all dictionaries.

    Parameters
    ----------
    x
        (n, d) float32 rows to be explained.
    groups
        (n,) the group of each row.
    draws
        (n_draws, n_groups) counts from `bootstrap_groups`, in the group order of `group_codes`.
    """

    def __init__(self, x: np.ndarray, groups: np.ndarray, draws: np.ndarray):
        self.x = x
        self._codes, names = group_codes(groups)
        self._draws = draws.astype(np.float64)
        self._n_groups = len(names)
        wide = x.astype(np.float64)
        self.mean = wide.mean(axis=0)
        # Centred sums of squares: the raw ones lose digits where the mean is many deviations long.
        wide -= self.mean
        sums = np.zeros((self._n_groups, x.shape[1]))
        np.add.at(sums, self._codes, wide)
        squares = np.bincount(self._codes, weights=(wide**2).sum(axis=1), minlength=self._n_groups)
        sizes = np.bincount(self._codes, minlength=self._n_groups)
        self.total = float(squares.sum())
        shift = ((self._draws @ sums) ** 2).sum(axis=1) / (self._draws @ sizes)
        self._total_draws = self._draws @ squares - shift
        self.gram = (wide.T @ wide).astype(np.float64)

    def unexplained(self, reconstructed: np.ndarray) -> tuple[float, np.ndarray]:
        """Fraction of variance unexplained by `reconstructed` (n, d): the estimate, and (n_draws,) draws of it."""
        if self.total <= 0:
            return float("nan"), np.full(len(self._draws), np.nan)
        error = ((self.x - reconstructed).astype(np.float64) ** 2).sum(axis=1)
        per_group = np.bincount(self._codes, weights=error, minlength=self._n_groups)
        with np.errstate(divide="ignore", invalid="ignore"):
            draws = np.where(self._total_draws > 0, self._draws @ per_group / self._total_draws, np.nan)
        return float(error.sum() / self.total), draws

    def unexplained_by_strangers(self, reconstructed: np.ndarray, confidence: float) -> tuple[float, float, float]:
        """FVU when each row is given another row's reconstruction: mean and interval over all permutations, exactly.

        Σ x_i·y_π(i) over uniform permutations π has mean n x̄·ȳ and variance tr(S_x S_y)/(n−1), with S the centred
        Gram matrices (Hoeffding, Annals of Mathematical Statistics 22 (1951), theorem 2); the interval is normal.
        """
        from scipy.stats import norm

        if self.total <= 0 or len(self.x) < 2:
            return float("nan"), float("nan"), float("nan")
        wide = reconstructed.astype(np.float64) - self.mean
        energy = float((wide**2).sum())
        # Centred on the mean of x, so that x̄ is zero and the cross term of the mean vanishes.
        mean = (self.total + energy) / self.total
        wide -= wide.mean(axis=0)
        spread = 2.0 * np.sqrt(max(float(np.sum(self.gram * (wide.T @ wide))), 0.0) / (len(self.x) - 1)) / self.total
        reach = float(norm.ppf(0.5 + confidence / 2.0)) * spread
        return mean, mean - reach, mean + reach


def budgets(trained_k: int, step: int = 1) -> list[int]:
    """Budgets at which to read a dictionary: powers of two times `step` below `trained_k`, and `trained_k`."""
    smaller = []
    k = step
    while k < trained_k:
        smaller.append(k)
        k *= 2
    return [*smaller, trained_k]


def dead_atoms(codes: sparse.csr_matrix, groups: np.ndarray, config: Measures) -> dict[str, float]:
    """Atoms that never fire, with an interval and what as many active atoms would leave silent if atoms were alike.

    - Interval: jackknife over folds of groups. (A bootstrap leaves samples out and adds none: it can only find more
      dead atoms.)
    - Null: every sample keeps its number l of active atoms, but which ones they are is drawn at random. An atom is then
      silent with probability Π (1 − l/m), and the number of silent atoms has this mean times m; it is close to Poisson
      where few are silent, and varies less where many are, so that the interval, of Poisson quantiles, is wide enough.
      A dictionary whose dead atoms exceed it wastes atoms that its budget could have used.

    Parameters
    ----------
    codes
        (n, m) codes of the samples on which atoms are counted.
    groups
        (n,) group of each sample.
    config
        Confidence and seed.

    Returns
    -------
    dict
        dead, dead_low, dead_high, dead_null, dead_null_low, dead_null_high: numbers of atoms; the bounds lie between 0
        and m; the interval is NaN with fewer than two groups.

    References
    ----------
    Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 11. Random allocation with several balls at
    once: Kolchin, Sevast'yanov and Chistyakov, Random Allocations (1978), chapter 7.
    """
    from scipy.stats import poisson

    n, m = codes.shape
    sizes = np.diff(codes.indptr)
    fold = group_folds(groups, FOLDS, seeded(config.seed, "reconstruction", "folds"))
    count = int(fold.max()) + 1 if n else 0
    fires = np.zeros((count, m), dtype=bool)
    for number in range(count):
        fires[number, codes[fold == number].indices] = True
    folds_of = fires.sum(axis=0)
    dead = float((folds_of == 0).sum())
    low = high = float("nan")
    if count > 1:
        left_out = np.array([(folds_of == own).sum() for own in fires], dtype=np.float64)
        low, high = (float(np.clip(bound, 0, m)) for bound in jackknife(dead, left_out, config.confidence))
    # One sample with all atoms active leaves none silent: log 0.
    with np.errstate(divide="ignore"):
        null = float(m * np.exp(np.log1p(-sizes / m).sum()))
    tail = (1.0 - config.confidence) / 2.0
    return {
        "dead": dead,
        "dead_low": low,
        "dead_high": high,
        "dead_null": null,
        "dead_null_low": float(min(poisson.ppf(tail, null), m)),
        "dead_null_high": float(min(poisson.ppf(1.0 - tail, null), m)),
    }


def reconstruction(
    dictionary: Any,
    codes: sparse.csr_matrix,
    *,
    train: np.ndarray,
    groups: np.ndarray,
    test_rows: np.ndarray,
    white: Variance,
    raw: Variance,
    whitening: Any,
    config: Measures,
    k_step: int = 1,
) -> pd.DataFrame:
    """Reconstruction of test rows at several budgets.

    Parameters
    ----------
    dictionary
        A fitted Dictionary (`encode(x, k)`, `decode(codes)`, `card`, `atoms`).
    codes
        (n_all, m) codes of all samples at the trained budget.
    train
        (n_all,) bool: the samples on which dead atoms are counted.
    groups
        (n_all,) group of each sample.
    test_rows
        Indices of the test samples; `white.x` and `raw.x` hold them whitened and as they came.
    whitening
        Its inverse takes reconstructions back to raw space. Where whitening gave rows unit length, the way back is
        lost, and fvu_raw is NaN.
    k_step
        Smallest budget: an ICFL encoder adds this many atoms in each round.

    Returns
    -------
    pandas.DataFrame
        One row per budget: k, trained_k, l0, fvu with interval (bootstrap by group), r2 = 1 − fvu, fvu_raw, fvu_null
        (each row given another row's reconstruction), r2_null = 1 − fvu_null, dead (atoms silent on all training
        samples at the trained budget) with the interval and null of `dead_atoms`, dense (atoms active on more than
        `dense_above` of the test rows at this budget), m, d, n, n_train.

    References
    ----------
    R² = 1 − ‖A − Â‖² / ‖A − Ā‖² as in Fel et al. 2025; FVU = 1 − R².
    """
    import pandas as pd

    m, d = dictionary.atoms.shape
    trained_k = int(dictionary.card.get("k") or m)
    trained = np.flatnonzero(train)
    dead = dead_atoms(codes[trained], groups[trained], config)
    unit_length = bool(whitening.card.get("unit_norm", False))
    rows = []
    for k in budgets(trained_k, k_step):
        at_budget = codes[test_rows] if k == trained_k else dictionary.encode(white.x, k=k).to_scipy()
        decoded = dictionary.decode(_as_codes(at_budget))
        fvu, draws = white.unexplained(decoded)
        low, high = interval(draws, config.confidence)
        if unit_length:
            fvu_raw, raw_draws = float("nan"), np.full(len(draws), np.nan)
        else:
            fvu_raw, raw_draws = raw.unexplained(whitening.inverse_transform(decoded))
        raw_low, raw_high = interval(raw_draws, config.confidence)
        null, null_low, null_high = white.unexplained_by_strangers(decoded, config.confidence)
        firing = np.bincount(at_budget.indices, minlength=m) / max(at_budget.shape[0], 1)
        rows.append(
            {
                "split": "test",
                "k": k,
                "trained_k": trained_k,
                "l0": at_budget.nnz / max(at_budget.shape[0], 1),
                "fvu": fvu,
                "fvu_low": float(low),
                "fvu_high": float(high),
                "r2": 1.0 - fvu,
                "r2_low": 1.0 - float(high),
                "r2_high": 1.0 - float(low),
                "r2_null": 1.0 - null,
                "fvu_raw": fvu_raw,
                "fvu_raw_low": float(raw_low),
                "fvu_raw_high": float(raw_high),
                "fvu_null": null,
                "fvu_null_low": null_low,
                "fvu_null_high": null_high,
                **dead,
                "dense": int((firing > config.dense_above).sum()),
                "m": m,
                "d": d,
                "n": at_budget.shape[0],
                "n_train": len(trained),
            }
        )
    return pd.DataFrame(rows)


def _as_codes(csr: sparse.csr_matrix) -> Any:
    """Wrap a matrix as Codes, which decoders take."""
    from conceptome.codes import Codes

    return Codes(csr)


def group_draws(groups: np.ndarray, config: Measures, seed: list[int]) -> np.ndarray:
    """Bootstrap counts of the groups; with a single group there is no interval, and every draw is NaN."""
    draws = bootstrap_groups(groups, config.bootstraps, seed).astype(np.float64)
    if draws.shape[1] < 2:
        draws[:] = np.nan
    return draws
