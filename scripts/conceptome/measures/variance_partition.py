"""How much of each atom's variance is biology, batch, plate, donor …, and which atoms are technical."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import permutations as orders_of
from math import factorial
from typing import TYPE_CHECKING, Any

import numpy as np

from conceptome.errors import DataError
from conceptome.measures.rows import choose_rows, described_label, seeded
from conceptome.measures.tables import ESTIMATE, FIT
from conceptome.statistics import bootstrap_groups, group_codes, interval, permutations

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from scipy import sparse

    from conceptome.config.further import VariancePartition
    from conceptome.measures.space import Space

TABLES = {
    "variance_partition": {
        **FIT,
        "atom": "int64",
        "source": "object",
        "role": "object",
        "share": "float64",
        **ESTIMATE,
        "unique": "float64",
        "classes": "int64",
        "n": "int64",
    },
    "variance_partition_atoms": {
        **FIT,
        "atom": "int64",
        "biological": "float64",
        "biological_low": "float64",
        "biological_high": "float64",
        "technical_share": "float64",
        "technical_low": "float64",
        "technical_high": "float64",
        "technical_null_high": "float64",
        "residual": "float64",
        "technical": "bool",
        "n_active": "int64",
        "n": "int64",
    },
    "variance_partition_mean": {
        **FIT,
        "source": "object",
        "role": "object",
        "share": "float64",
        **ESTIMATE,
        "atoms": "int64",
        "technical_atoms": "int64",
        "n": "int64",
    },
}
ROLES = ("biological", "technical")
# Schema columns that may be named as sources; they say how samples were handled.
HANDLING = ("group", "batch")
# Of a unit-diagonal pivot: below this a class is told by the others (a plate's batch), and adds nothing.
ALIASED = 1e-4


@dataclass(frozen=True)
class Source:
    """One label as a source of variance: its class in every sample; a missing label is a class of its own."""

    name: str
    role: str
    codes: np.ndarray
    classes: int

    def between(self, groups: np.ndarray) -> bool:
        """Whether it is the same in all samples of a group (n,), and groups share its classes."""
        pairs = len(np.unique(np.stack([self.codes, groups]), axis=1).T)
        count = len(np.unique(groups))
        return pairs == count and self.classes < count


def find_sources(obs: pd.DataFrame, card: Mapping[str, Any], names: Sequence[str]) -> list[Source]:
    """Look up the columns `names` of some samples' obs.

    Raises
    ------
    DataError
        A column that is missing or numeric, has one class, or a class per sample.
    """
    import pandas as pd

    found = []
    for name in names:
        declared = name in card.get("labels", {})
        role = "technical"
        if declared or name not in HANDLING:
            role = str(described_label(obs, card, name).get("role", "biological"))
        codes = pd.factorize(obs[name], sort=False, use_na_sentinel=False)[0]
        classes = int(codes.max()) + 1 if len(codes) else 0
        if not 1 < classes < len(codes):
            raise DataError(
                f"measures.variance_partition: source '{name}' has {classes} class(es) in {len(codes)} samples: a "
                "source needs at least two, and samples that share them; take it out of sources"
            )
        found.append(Source(name, role, codes.astype(np.int64), classes))
    return found


class Partition:
    """The linear model of some sources, and what it explains.

    With R²(S) the share of variance that the classes of the sources S explain together, adjusted for chance

        R²_adj(S) = 1 − (1 − R²(S))·(n − 1)/(n − rank(S) − 1)

    (unbiased, and 0 on average for labels that say nothing), a source's share is its mean gain over all orders in which
    the p sources can enter,

        share_i = Σ_{S ∌ i} |S|!·(p − |S| − 1)!/p! · (R²_adj(S ∪ i) − R²_adj(S)),

    so that shares and residual sum to one, whatever the sources have in common. The unique share is the gain of a
    source that enters last. Sources may be nested (a plate lies in one batch) and unbalanced.

    Parameters
    ----------
    sources
        The sources, of the same n samples.

    References
    ----------
    Lindeman, Merenda and Gold 1980 (averaging over orders); Peres-Neto et al. 2006 (adjusted R² in variation
    partitioning); Hoffman and Schadt 2016 (variancePartition: the question asked of genes).
    """

    def __init__(self, sources: Sequence[Source]):
        from scipy import sparse

        self.sources = list(sources)
        self.n = n = len(sources[0].codes)
        self._ends = np.cumsum([1, *(source.classes for source in sources)])
        columns = np.stack([np.zeros(n, dtype=np.int64), *(s.codes + at for s, at in zip(sources, self._ends))], axis=1)
        indptr = np.arange(n + 1) * columns.shape[1]
        self.design = sparse.csr_matrix((np.ones(columns.size), columns.ravel(), indptr), shape=(n, self._ends[-1]))

    @cached_property
    def orders(self) -> list[tuple[int, ...]]:
        """Orders of the sources whose beginnings are all subsets."""
        kept, seen = [], set()
        for order in orders_of(range(len(self.sources))):
            beginnings = {frozenset(order[:length]) for length in range(1, len(order) + 1)}
            if beginnings - seen:
                kept.append(order)
                seen |= beginnings
        return kept

    @cached_property
    def _weights(self) -> tuple[np.ndarray, np.ndarray]:
        """What turns R² of all subsets (bit masks) into shares and unique shares: (p, 2^p) each."""
        p = len(self.sources)
        share, unique = np.zeros((p, 2**p)), np.zeros((p, 2**p))
        for own in range(p):
            for mask in range(2**p):
                if mask >> own & 1:
                    continue
                size = mask.bit_count()
                weight = factorial(size) * factorial(p - size - 1) / factorial(p)
                share[own, mask | 1 << own] += weight
                share[own, mask] -= weight
            whole = 2**p - 1
            unique[own, whole], unique[own, whole ^ 1 << own] = 1.0, -1.0
        return share, unique

    def factors(self, weights: np.ndarray | None = None) -> list[np.ndarray]:
        """Cholesky factors of the weighted normal equations, one per order."""
        from scipy.linalg import cholesky

        weighted = self.design if weights is None else self.design.multiply(weights[:, None]).tocsr()
        gram = (self.design.T @ weighted).toarray()
        # Classes that others tell, and those not drawn, have no pivot of their own: this one keeps their part at 0.
        gram[np.diag_indices_from(gram)] += 1e-10 * self.n
        return [cholesky(gram[np.ix_(columns, columns)], lower=True) for columns in self._columns]

    @cached_property
    def _columns(self) -> list[np.ndarray]:
        """Columns of the design in each order, the intercept first."""
        blocks = [np.arange(start, stop) for start, stop in zip(self._ends[:-1], self._ends[1:])]
        return [np.concatenate([[0], *(blocks[number] for number in order)]) for order in self.orders]

    @cached_property
    def _ranks(self) -> np.ndarray:
        """Free classes of every subset of sources, (2^p,)."""
        ranks = np.zeros(2 ** len(self.sources))
        for order, factor in zip(self.orders, self.factors()):
            free = np.square(np.diagonal(factor)) > ALIASED
            at, mask = 1, 0
            for number in order:
                at += self.sources[number].classes
                mask |= 1 << number
                ranks[mask] = free[1:at].sum()
        return ranks

    def explained(
        self, codes: sparse.spmatrix | np.ndarray, factors: list[np.ndarray], weights: np.ndarray | None = None
    ) -> np.ndarray:
        """R²_adj of every subset: codes (n, m) → (2^p, m) float64, by bit mask; NaN for an atom that does not vary."""
        from scipy import sparse
        from scipy.linalg import solve_triangular

        if sparse.issparse(codes):
            weighted = codes if weights is None else codes.multiply(weights[:, None]).tocsr()
            products = (self.design.T @ weighted).toarray()
            squares = np.asarray(weighted.multiply(codes).sum(axis=0)).ravel()
        else:
            weighted = codes if weights is None else codes * weights[:, None]
            products = self.design.T @ weighted
            squares = np.einsum("ij,ij->j", weighted, codes)
        count = self.n if weights is None else weights.sum()
        total = squares - products[0] ** 2 / count
        total = np.where(total > 1e-9 * np.maximum(squares, 1e-300), total, np.nan)
        found = np.zeros((2 ** len(self.sources), products.shape[1]))
        for order, columns, factor in zip(self.orders, self._columns, factors):
            parts = np.square(solve_triangular(factor, products[columns], lower=True, check_finite=False))
            at, mask, sum_of_squares = 1, 0, np.zeros(products.shape[1])
            for number in order:
                stop = at + self.sources[number].classes
                sum_of_squares = sum_of_squares + parts[at:stop].sum(axis=0)
                at, mask = stop, mask | 1 << number
                found[mask] = sum_of_squares / total
        spare = self.n - self._ranks[:, None] - 1
        adjusted = 1.0 - (1.0 - found) * (self.n - 1) / spare
        return np.where(np.isnan(total), np.nan, adjusted)

    def shares(self, explained: np.ndarray) -> np.ndarray:
        """(2^p, m) → share of each source, (p, m)."""
        return self._weights[0] @ explained

    def unique(self, explained: np.ndarray) -> np.ndarray:
        """(2^p, m) → what each source explains beyond all others, (p, m)."""
        return self._weights[1] @ explained

    @property
    def usable(self) -> bool:
        """Whether samples are left to tell the residual."""
        return bool(self.n - self._ranks.max() - 1 > 0)


def _with_totals(shares: np.ndarray, roles: Sequence[str]) -> np.ndarray:
    """Append the sums over biological and over technical sources, and the residual: (…, p, m) → (…, p + 3, m)."""
    sums = [shares[..., [role == own for own in roles], :].sum(axis=-2, keepdims=True) for role in ROLES]
    residual = 1.0 - shares.sum(axis=-2, keepdims=True)
    return np.concatenate([shares, *sums, residual], axis=-2)


def _shifted(draws: np.ndarray, value: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval of draws (B, …), moved by the bootstrap's bias: samples drawn twice look explained."""
    low, high = interval(draws, confidence)
    bias = draws.mean(axis=0) - value
    return low - bias, high - bias


def measure(space: Space, config: VariancePartition) -> dict[str, list[pd.DataFrame]]:
    """Partition the variance of every atom's code over sources (see `Partition`).

    Codes enter as they are, silent samples as 0, over samples of all splits: labels take no part in fitting a
    dictionary. Intervals: bootstrap by group, moved by its bias. Null: codes permuted against all labels; samples are
    exchanged freely for a source that varies within groups or is the group itself, and whole groups for one that many
    groups share (a batch of plates), since samples of one group resemble each other without it.

    An atom is `technical` when the lower bound of its technical share (all technical sources together) lies above the
    upper bound of its biological share and above its own null. At 95 % two bounds that part are rarer than one in a
    hundred atoms without a difference; an atom that is part batch and part biology is not flagged, and neither is one
    whose batch and biology cannot be told apart, since sources share what they explain in common.

    Returns
    -------
    dict
        `variance_partition`: per atom and source; beside the sources "all biological", "all technical" and
        "residual". `variance_partition_atoms`: per atom with the flag. `variance_partition_mean`: means over the atoms
        of a fit that vary. NaN where an atom does not vary.

    Raises
    ------
    DataError
        A source that is missing, numeric, or has no classes that samples share; more classes than samples.
    """
    rows = choose_rows(
        np.ones(len(space.groups), dtype=bool), config.max_rows, seeded(config.seed, "variance_partition")
    )
    obs = space.obs.iloc[rows]
    sources = find_sources(obs, space.card, config.sources)
    groups, _ = group_codes(space.groups[rows])
    partition = Partition(sources)
    if not partition.usable:
        raise DataError(
            f"measures.variance_partition: the classes of {', '.join(config.sources)} are as many as the {len(rows)} "
            "samples: take one out of sources"
        )
    bench = Bench(partition, groups, config)
    tables: dict[str, list[pd.DataFrame]] = {name: [] for name in TABLES}
    for name, seed, _, matrix in space.each_fit():
        for table, frame in bench.tables(matrix[rows]).items():
            tables[table].append(frame.assign(dictionary=name, method=space.methods[name], seed=seed))
    return tables


class Bench:
    """What all fits share: factors of the bootstrap draws, and permutations.

    Parameters
    ----------
    partition
        The model of the sources, of n samples.
    groups
        (n,) int64 group of each sample, from 0.
    config
        Draws, permutations, confidence, seed.
    """

    def __init__(self, partition: Partition, groups: np.ndarray, config: VariancePartition):
        self.partition, self.config = partition, config
        self.sources = partition.sources
        self.roles = [source.role for source in self.sources]
        drawn = bootstrap_groups(groups, config.bootstraps, seeded(config.seed, "variance_partition", "bootstrap"))
        self.weights = drawn[:, groups].astype(np.float64)
        self.factors = partition.factors()
        self.drawn = [partition.factors(weights) for weights in self.weights]
        between = [source.between(groups) for source in self.sources]
        totals = [any(own for own, mine in zip(between, self.roles) if mine == role) for role in ROLES]
        self.between = np.array([*between, *totals, any(between)])
        seed = seeded(config.seed, "variance_partition", "null")
        everyone = np.arange(partition.n)
        self.free = permutations(everyone, config.permutations, seed)
        self.whole = permutations(everyone, config.permutations, seed, groups) if self.between.any() else self.free

    def _parts(self, codes: Any, factors: list[np.ndarray], weights: np.ndarray | None = None) -> np.ndarray:
        """Shares of sources, totals and residual, (p + 3, m)."""
        return _with_totals(self.partition.shares(self.partition.explained(codes, factors, weights)), self.roles)

    def tables(self, codes: sparse.csr_matrix) -> dict[str, pd.DataFrame]:
        """All tables of one fit's codes (n, m)."""
        import pandas as pd

        confidence = self.config.confidence
        active = np.bincount(codes.indices, minlength=codes.shape[1])
        codes = codes.astype(np.float64)
        codes = codes.toarray() if codes.nnz > 0.3 * codes.shape[0] * codes.shape[1] else codes
        explained = self.partition.explained(codes, self.factors)
        unique = self.partition.unique(explained)
        value = _with_totals(self.partition.shares(explained), self.roles)
        draws = np.stack([self._parts(codes, factors, w) for factors, w in zip(self.drawn, self.weights)])
        free = np.stack([self._parts(codes[order], self.factors) for order in self.free])
        whole = free
        if self.between.any():
            whole = np.stack([self._parts(codes[order], self.factors) for order in self.whole])
        null = np.where(self.between[:, None], whole, free)
        low, high = _shifted(draws, value, confidence)
        null_low, null_high = interval(null, confidence)

        p, m = len(self.sources), codes.shape[1]
        names = [source.name for source in self.sources] + ["all biological", "all technical", "residual"]
        roles = [*self.roles, *ROLES, "residual"]
        lacking = np.array([role in ROLES and role not in self.roles for role in roles])
        for each in (value, low, high, null_low, null_high):
            each[lacking] = np.nan
        null[:, lacking] = np.nan
        long = pd.DataFrame(
            {
                "atom": np.tile(np.arange(m), p + 3),
                "source": np.repeat(names, m),
                "role": np.repeat(roles, m),
                "share": value.ravel(),
                "low": low.ravel(),
                "high": high.ravel(),
                "null": null.mean(axis=0).ravel(),
                "null_low": null_low.ravel(),
                "null_high": null_high.ravel(),
                "unique": np.concatenate([unique.ravel(), np.full(3 * m, np.nan)]),
                "classes": np.repeat([*(source.classes for source in self.sources), 0, 0, 0], m),
                "n": self.partition.n,
            }
        )
        biological, technical, residual = p, p + 1, p + 2
        flag = (low[technical] > high[biological]) & (low[technical] > null_high[technical])
        atoms = pd.DataFrame(
            {
                "atom": np.arange(m),
                "biological": value[biological],
                "biological_low": low[biological],
                "biological_high": high[biological],
                "technical_share": value[technical],
                "technical_low": low[technical],
                "technical_high": high[technical],
                "technical_null_high": null_high[technical],
                "residual": value[residual],
                "technical": flag,
                "n_active": active,
                "n": self.partition.n,
            }
        )
        varies = ~np.isnan(value[residual])
        # A draw without the samples on which an atom is active leaves it out of that draw's mean.
        mean = value[:, varies].mean(axis=1) if varies.any() else np.full(p + 3, np.nan)
        mean_low, mean_high = _shifted(_mean(draws[:, :, varies]), mean, confidence)
        null_mean = _mean(null[:, :, varies])
        mean_null_low, mean_null_high = interval(null_mean, confidence)
        means = pd.DataFrame(
            {
                "source": names,
                "role": roles,
                "share": mean,
                "low": mean_low,
                "high": mean_high,
                "null": null_mean.mean(axis=0),
                "null_low": mean_null_low,
                "null_high": mean_null_high,
                "atoms": int(varies.sum()),
                "technical_atoms": int(flag.sum()),
                "n": self.partition.n,
            }
        )
        return {
            "variance_partition": long,
            "variance_partition_atoms": atoms,
            "variance_partition_mean": means[~lacking],
        }


def _mean(draws: np.ndarray) -> np.ndarray:
    """Mean over atoms (B, p, m) → (B, p), leaving out NaN."""
    count = (~np.isnan(draws)).sum(axis=2)
    return np.divide(np.nansum(draws, axis=2), count, out=np.full(count.shape, np.nan), where=count > 0)
