"""Atoms against labels, on test samples: AUROC and odds per class, and monotone association of ordinal ones."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from conceptome.measures.rows import choose_rows, class_name, described_label, seeded
from conceptome.statistics import (
    RankedCodes,
    benjamini_hochberg_log10,
    between_groups_log10_p,
    bootstrap_groups,
    common_class,
    constancy,
    contingency_tables,
    fisher_log10_p,
    group_codes,
    interval,
    mann_whitney_z,
    monotone_association,
    normal_log10_p,
    odds_ratio,
    permutations,
)

if TYPE_CHECKING:
    import pandas as pd
    from scipy import sparse

    from conceptome.config.evidence import Enrichment

logger = logging.getLogger(__name__)

# Bootstrap draws whose tables are counted by one product: what is held stays small beside the codes.
DRAWS = 32


@dataclass(frozen=True)
class Label:
    """One label on the test samples that have it.

    Attributes
    ----------
    name, role
        Column of obs; biological or technical.
    rows
        (n,) int64, the samples (positions in obs), sorted.
    groups
        (n,) str, their groups.
    y
        (n,) int64, which class each is in; -1 for classes that are too small: they count as "others".
    names
        The classes that are tested.
    """

    name: str
    role: str
    rows: np.ndarray
    groups: np.ndarray
    y: np.ndarray
    names: list[str]

    def indicator(self, y: np.ndarray | None = None) -> np.ndarray:
        """(n, c) bool: which class each sample is in; `y` replaces the labels (a permutation)."""
        return (self.y if y is None else y)[:, None] == np.arange(len(self.names))


@dataclass(frozen=True)
class Ordinal:
    """One ordinal label on the test samples that have it.

    Attributes
    ----------
    name, role
        Column of obs; biological or technical.
    rows
        (n,) int64, the samples (positions in obs), sorted.
    groups
        (n,) str, their groups.
    values
        (n,) float64, dose, time or another ordered number.
    """

    name: str
    role: str
    rows: np.ndarray
    groups: np.ndarray
    values: np.ndarray


def p_values(log10_p: np.ndarray, name: str = "") -> dict[str, np.ndarray]:
    """Columns of one test whose rows are one family: p and q in float64, and log10 of both."""
    log10_q = benjamini_hochberg_log10(log10_p)
    return {
        f"p{name}": 10.0**log10_p,
        f"log10_p{name}": log10_p,
        f"q{name}": 10.0**log10_q,
        f"log10_q{name}": log10_q,
    }


def choose_ordinal(obs: pd.DataFrame, card: Mapping[str, Any], config: Enrichment) -> list[Ordinal]:
    """Take the configured labels that the card calls ordinal on the test samples; one value only is no order.

    Raises
    ------
    DataError
        A label is missing from obs, or numeric without an order that the card declares.
    """
    chosen = []
    for name in config.labels:
        described = described_label(obs, card, name)
        if described.get("kind") != "ordinal":
            continue
        test = (obs["split"] == "test").to_numpy() & obs[name].notna().to_numpy()
        rows = choose_rows(test, config.max_rows, seeded(config.seed, "labels", name))
        values = obs[name].to_numpy(dtype=np.float64)[rows]
        if len(np.unique(values)) < 2:
            logger.info("labels: %s not tested: it has one value on test samples", name)
            continue
        groups = obs["group"].astype(str).to_numpy()[rows]
        chosen.append(Ordinal(name, str(described.get("role", "biological")), rows, groups, values))
    return chosen


def enrich_trends(codes: sparse.csr_matrix, labels: Sequence[Ordinal], config: Enrichment) -> pd.DataFrame:
    """Monotone association of every atom with every ordinal label, over the test samples that have it.

    Effect, interval, null and p as in `statistics.monotone_association`: the configured statistic (Spearman's ρ unless
    a study says otherwise), a bootstrap over groups, labels permuted with whole groups together; q: Benjamini-Hochberg
    over all atoms × labels.

    Parameters
    ----------
    codes
        (N, m) codes of all samples. Atoms that are silent on the samples of a label have no rows for it.

    Returns
    -------
    pandas.DataFrame
        The columns of table `label_trends`, without dataset … seed.
    """
    import pandas as pd

    frames = []
    for label in labels:
        part = codes[label.rows]
        tested = np.flatnonzero(np.diff(part.tocsc().indptr) > 0)
        if not len(tested):
            continue
        found = monotone_association(
            part[:, tested],
            label.values,
            label.groups,
            bootstraps=config.bootstraps,
            permutations=config.permutations,
            confidence=config.confidence,
            seed=seeded(config.seed, "labels", label.name, "trend"),
            statistic=config.trend,
        )
        # A dense atom with one value on these samples has no ranks.
        found = found.assign(
            atom=tested[found["atom"]],
            label=label.name,
            role=label.role,
            statistic=config.trend,
            n_levels=len(np.unique(label.values)),
            n_groups=len(np.unique(label.groups)),
            split="test",
        )
        frames.append(found[found["effect"].notna()])
    if not frames:
        return pd.DataFrame()
    table = pd.concat(frames, ignore_index=True)
    with np.errstate(divide="ignore"):
        return table.assign(**p_values(np.log10(table["p"].to_numpy())))


def choose(obs: pd.DataFrame, card: Mapping[str, Any], config: Enrichment) -> list[Label]:
    """Take the configured labels that have classes on the test samples; ordinal ones are for `choose_ordinal`.

    Raises
    ------
    DataError
        A label is missing from obs or numeric.
    """
    import pandas as pd

    chosen = []
    for name in config.labels:
        described = described_label(obs, card, name)
        if described.get("kind") == "ordinal":
            continue
        test = (obs["split"] == "test").to_numpy() & obs[name].notna().to_numpy()
        rows = choose_rows(test, config.max_rows, seeded(config.seed, "labels", name))
        values = obs[name].iloc[rows]
        codes, found = pd.factorize(values, sort=True)
        counts = np.bincount(codes, minlength=len(found))
        kept = np.flatnonzero((counts >= config.min_class_samples) & (counts < len(rows)))
        if len(kept) < len(found):
            few = ", ".join(f"{found[i]} ({counts[i]})" for i in range(len(found)) if i not in set(kept))
            logger.info("labels: classes of %s not tested (test samples): %s", name, few)
        number = np.full(len(found) + 1, -1, dtype=np.int64)
        number[kept] = np.arange(len(kept))
        if len(kept):
            chosen.append(
                Label(
                    name=name,
                    role=str(described.get("role", "biological")),
                    rows=rows,
                    groups=obs["group"].astype(str).to_numpy()[rows],
                    y=number[codes],
                    names=[class_name(found[i]) for i in kept],
                )
            )
    return chosen


def _unit(y: np.ndarray, group: np.ndarray, config: Enrichment) -> str:
    """Say what the tests of a label count, 'group' or 'sample'; groups of one sample are samples."""
    if config.label_unit != "auto":
        return config.label_unit
    single = len(np.unique(group)) == len(group)
    return "group" if not single and constancy(y, group) >= config.constant_above else "sample"


def enrich_labels(
    codes: sparse.csr_matrix, labels: Sequence[Label], train: np.ndarray, config: Enrichment
) -> pd.DataFrame:
    """AUROC and odds of every atom for every class against the other test samples.

    Intervals are percentiles of a bootstrap over groups. What is tested, `unit`, is the sample or the group. Samples: p
    is that of the two-sided Mann-Whitney test with ties, on how large the code is; p_fisher that of Fisher's exact
    test, on whether the atom is active; both take samples as independent. For a label that is (nearly) constant in each
    group that is false: a plate's wells say the same thing many times over. Its p compares groups, by their
    commonest class (`between_groups_log10_p`): the mean rank of the code in the group, and for p_fisher the share of
    the group's samples on which the atom is active. q and q_fisher:
    Benjamini-Hochberg over all atoms × classes of all labels. `null_auroc` is the quantile, at
    `config.confidence`, of the most extreme AUROC over all atoms (0.5 + the largest distance from 0.5) when labels are
    permuted, whole groups together: what the best of this many atoms reaches by chance.

    Parameters
    ----------
    codes
        (N, m) codes of all samples. Atoms that are silent on the samples of a label have no rows for it.
    labels
        From `choose`.
    train
        (N,) bool: the samples on which the tails of dense codes are cut, for odds ratios.

    Returns
    -------
    pandas.DataFrame
        The columns of table `labels`, without dataset … seed.

    References
    ----------
    Mann and Whitney 1947; Haldane 1956 (one half added to every cell of the odds ratio); Fisher 1922, Journal of the
    Royal Statistical Society 85.
    """
    import pandas as pd

    from conceptome.measures.selectivity import activity

    frames = []
    trained = np.flatnonzero(train)
    for label in labels:
        part = codes[label.rows]
        tested = np.flatnonzero(np.diff(part.tocsc().indptr) > 0)
        if not len(tested):
            continue
        part = part[:, tested]
        ranked = RankedCodes(part)
        truth = label.indicator()
        auroc = ranked.auroc(truth)
        # The tails are cut on training samples; these rows are test samples, so both go in together.
        fitted = choose_rows(train, config.max_rows, seeded(config.seed, "tails")) if len(trained) else trained
        both = np.concatenate([fitted, label.rows])
        active, rule = activity(codes[both][:, tested], np.arange(len(both)) < len(fitted), config.dense_active)
        active = active[len(fitted) :]
        tables = contingency_tables(active, truth)
        odds, _, _ = odds_ratio(tables)
        number, _ = group_codes(label.groups)
        unit = _unit(label.y, number, config)
        counts = bootstrap_groups(label.groups, config.bootstraps, seeded(config.seed, "labels", label.name, "draws"))
        drawn = np.empty((config.bootstraps, *auroc.shape), dtype=np.float32)
        drawn_odds = np.empty_like(drawn)
        for start in range(0, len(counts), DRAWS):
            weights = counts[start : start + DRAWS][:, number]
            drawn[start : start + DRAWS] = ranked.auroc_draws(truth, weights)
            drawn_odds[start : start + DRAWS] = odds_ratio(contingency_tables(active, truth, weights))[0]
        low, high = interval(drawn, config.confidence)
        odds_low, odds_high = interval(drawn_odds, config.confidence)
        # Groups of one sample are exchangeable as they are; otherwise whole groups move.
        groups = None if len(np.unique(number)) == len(number) else label.groups
        seed = seeded(config.seed, "labels", label.name, "null")
        permuted = [label.indicator(y) for y in permutations(label.y, config.permutations, seed, groups)]
        distance = np.abs(ranked.auroc(np.concatenate(permuted, axis=1)) - 0.5)
        extreme = np.nanmax(distance, axis=0).reshape(config.permutations, len(label.names))
        null = 0.5 + np.quantile(extreme, config.confidence, axis=0)
        positive = truth.sum(axis=0)
        if unit == "group":
            of_group = label.indicator(common_class(label.y, number))
            log10_p = between_groups_log10_p(ranked.group_means(number), of_group)
            log10_p_active = between_groups_log10_p(
                RankedCodes((active != 0).astype(np.float32)).group_means(number), of_group
            )
        else:
            score = mann_whitney_z(auroc, positive, len(truth) - positive, ranked.tie_terms()[:, None])
            log10_p, log10_p_active = normal_log10_p(score), fisher_log10_p(tables)
        m, c = auroc.shape
        frames.append(
            pd.DataFrame(
                {
                    "atom": np.repeat(tested, c),
                    "label": label.name,
                    "role": label.role,
                    "term": np.tile(label.names, m),
                    "auroc": auroc.ravel(),
                    "low": low.ravel(),
                    "high": high.ravel(),
                    "odds_ratio": odds.ravel(),
                    "odds_low": odds_low.ravel(),
                    "odds_high": odds_high.ravel(),
                    "log_odds": np.log(odds).ravel(),
                    "log_odds_low": np.log(odds_low).ravel(),
                    "log_odds_high": np.log(odds_high).ravel(),
                    "active_rule": rule,
                    "log10_p": log10_p.ravel(),
                    "log10_p_fisher": log10_p_active.ravel(),
                    "null_auroc": np.tile(null, m),
                    "n_active": np.repeat(np.diff(part.tocsc().indptr), c),
                    "n_term": np.tile(positive, m),
                    "unit": unit,
                    "n_groups": int(number.max()) + 1,
                    "n": len(truth),
                    "split": "test",
                }
            )
        )
    if not frames:
        return pd.DataFrame()
    table = pd.concat(frames, ignore_index=True)
    for name in ("", "_fisher"):
        table = table.assign(**p_values(table[f"log10_p{name}"].to_numpy(), name))
    return table
