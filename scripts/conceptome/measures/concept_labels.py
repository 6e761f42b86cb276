"""Known concepts as binary labels of samples, and what predictions of them are worth.

The one place where classes of a label, hidden variables of a simulation and annotations of residues become concepts
that either hold or do not, and the one judge (F1, balanced accuracy, bootstrap by group) of predictions of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from conceptome.errors import DataError
from conceptome.measures.residue_concepts import Scale, above, choose_concepts
from conceptome.measures.rows import SPLITS, choose_rows, classes_of, seeded
from conceptome.statistics import bootstrap_groups, group_codes, permutations
from conceptome_kernels import available

if TYPE_CHECKING:
    import pandas as pd
    from scipy import sparse

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ConceptLabels:
    """Binary concepts of one source on the samples where they are defined.

    Attributes
    ----------
    source
        The label's column, 'hidden' (variables of a simulation) or 'residues' (annotations).
    names
        c concept names.
    rows
        (n,) int64 sorted indices of the samples.
    members
        (n, c) bool: whether the concept holds for the sample.
    groups, split
        (n,) group and split of these samples.
    excluded
        Concepts left out, each with the reason.
    """

    source: str
    names: list[str]
    rows: np.ndarray
    members: np.ndarray
    groups: np.ndarray
    split: np.ndarray
    excluded: list[str]

    def part(self, *splits: str) -> np.ndarray:
        """Where (bool mask over `rows`) the split is one of `splits`."""
        return np.isin(self.split, splits)

    def keep(self, columns: np.ndarray, reasons: list[str] | None = None) -> ConceptLabels:
        """Only the concepts of these columns."""
        names = [self.names[i] for i in columns]
        excluded = [*self.excluded, *(reasons or [])]
        return ConceptLabels(self.source, names, self.rows, self.members[:, columns], self.groups, self.split, excluded)

    def shuffled(self, n: int, seed: list[int]) -> np.ndarray:
        """Draw permutations of the samples within splits, moving whole groups: (n, n_samples) int64 positions.

        `members[order]` are labels that keep how often and how clustered concepts are, and which go together.
        """
        orders = np.empty((n, len(self.rows)), dtype=np.int64)
        for name in SPLITS:
            here = np.flatnonzero(self.part(name))
            if len(here):
                orders[:, here] = permutations(here, n, [*seed, SPLITS.index(name)], self.groups[here])
        return orders


def from_label(space: Any, label: str, config: Any) -> ConceptLabels:
    """Each class of a categorical or ordinal label against the others.

    Raises
    ------
    DataError
        The column is missing or numeric.
    """
    classes = classes_of(space, config, label, "concepts")
    members = classes.y[:, None] == np.arange(len(classes.names))
    return ConceptLabels(
        label, list(classes.names), classes.rows, members, classes.groups, classes.split, list(classes.excluded)
    )


def binarised(values: np.ndarray, train: np.ndarray, quantile: float) -> np.ndarray:
    """Say where each variable is present: the larger of two values, or above a quantile of its training samples.

    Parameters
    ----------
    values
        (n, v) float64.
    train
        (n,) bool.
    quantile
        Between 0 and 1; a variable that is zero more often than that is present wherever it is above zero.

    Returns
    -------
    numpy.ndarray
        (n, v) bool.
    """
    low, high = values[train].min(axis=0), values[train].max(axis=0)
    two_valued = ((values[train] == low) | (values[train] == high)).all(axis=0)
    return values > np.where(two_valued, low, np.quantile(values[train], quantile, axis=0))


def from_truth(space: Any, config: Any) -> ConceptLabels:
    """Hidden variables of a simulation, binarised at `config.hidden_quantile` of the training samples.

    Raises
    ------
    DataError
        The data set carries no hidden variables, or samples without them.
    """
    truth = space.dataset.truth()
    if truth is None:
        raise DataError("concepts from hidden variables: the data set carries none: turn 'hidden' off")
    missing = ~space.obs.index.isin(truth.index)
    if missing.any():
        raise DataError(f"{int(missing.sum())} samples of the activations have no row in truth.parquet: prepare again")
    rows = choose_rows(np.ones(len(space.obs), dtype=bool), config.max_rows, seeded(config.seed, "concepts", "hidden"))
    values = truth.loc[space.obs.index[rows]].to_numpy(dtype=np.float64)
    split = space.split[rows]
    members = binarised(values, split == "train", config.hidden_quantile)
    return ConceptLabels("hidden", [str(name) for name in truth], rows, members, space.groups[rows], split, [])


def from_residues(space: Any, config: Any) -> ConceptLabels:
    """Annotations of residues: the concepts that enrichment of residues looks at, residue by residue.

    Raises
    ------
    DataError
        The data set holds no annotations, or none is carried by enough proteins.
    """
    concepts = choose_concepts(space.obs, space.dataset.annotations(), config.min_proteins)
    every = choose_rows(np.ones(len(space.obs), dtype=bool), config.max_rows, seeded(config.seed, "concepts", "rows"))
    members = np.zeros((len(every), len(concepts.names)), dtype=bool)
    for part in concepts.parts.values():
        at = np.searchsorted(part.rows, every)
        at[at == len(part.rows)] = 0
        here = part.rows[at] == every
        members[here] = part.residues[at[here]].toarray()
    return ConceptLabels("residues", list(concepts.names), every, members, space.groups[every], space.split[every], [])


def concept_labels(space: Any, config: Any) -> list[ConceptLabels]:
    """Collect the concepts that a section asks for, one entry per source; sources without any are left out.

    A concept stays when, in each split, at least `config.min_positives` samples have it and as many have not; at most
    `config.max_concepts` per source stay, those that most training samples have. What is left out is logged.

    Parameters
    ----------
    space
        The dictionaries' space: obs, split, groups, card, dataset.
    config
        labels, hidden, residues and the limits of `ConceptSources`.

    Raises
    ------
    DataError
        A source is missing; no concept is left in any of them.
    """
    found = [from_label(space, label, config) for label in config.labels]
    found += [from_truth(space, config)] if config.hidden else []
    found += [from_residues(space, config)] if config.residues else []
    kept = []
    for labels in found:
        counts = np.array([labels.members[labels.part(name)].sum(axis=0) for name in SPLITS])
        sizes = np.array([labels.part(name).sum() for name in SPLITS])[:, None]
        enough = (np.minimum(counts, sizes - counts) >= config.min_positives).all(axis=0)
        reasons = [
            f"{name} (fewer than {config.min_positives} samples with or without it in a split)"
            for name, stays in zip(labels.names, enough)
            if not stays
        ]
        columns = np.flatnonzero(enough)
        frequent = columns[np.argsort(-counts[0, columns], kind="stable")]
        columns, rarer = np.sort(frequent[: config.max_concepts]), frequent[config.max_concepts :]
        reasons += [f"{labels.names[i]} (rarer than {config.max_concepts} others)" for i in rarer]
        labels = labels.keep(columns, reasons)
        if labels.excluded:
            logger.info("concepts of %s: left out are %s", labels.source, "; ".join(labels.excluded))
        if len(labels.names):
            kept.append(labels)
    if not kept:
        asked = [*config.labels, *(["hidden"] if config.hidden else []), *(["residues"] if config.residues else [])]
        raise DataError(
            f"no concept of {', '.join(asked) or 'any source'} is frequent enough: name labels, hidden or residues, "
            "or lower min_positives, min_proteins or min_groups_per_class"
        )
    return kept


class Judge:
    """Scores of predictions for binary concepts, as estimates and over bootstrap draws of the samples' groups.

    Parameters
    ----------
    members
        (n, c) bool truth.
    groups
        (n,) group of each sample.
    bootstraps, seed
        Draws, and their seed.
    """

    def __init__(self, members: np.ndarray, groups: np.ndarray, bootstraps: int, seed: list[int]):
        from scipy import sparse

        self.members = members
        code, names = group_codes(groups)
        self.n, self.n_groups = len(groups), len(names)
        self._draws = bootstrap_groups(groups, bootstraps, seed).astype(np.float64)
        self._sum = sparse.csr_matrix((np.ones(self.n), (code, np.arange(self.n))), shape=(self.n_groups, self.n))
        self._sizes = np.bincount(code, minlength=self.n_groups).astype(np.float64)[:, None]

    def __call__(
        self, predicted: np.ndarray, members: np.ndarray | None = None
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Score predictions (n, c) bool against `members` (by default the truth given on construction).

        Returns
        -------
        dict
            'f1' and 'balanced_accuracy' → (c,) estimates and (B, c) draws; NaN in draws that miss a side of the
            concept, and in all draws when there is a single group.
        """
        members = self.members if members is None else members
        true = self._sum @ (predicted & members).astype(np.float64)
        on, positive = self._sum @ predicted.astype(np.float64), self._sum @ members.astype(np.float64)
        estimate = self._scores(true.sum(axis=0), on.sum(axis=0), positive.sum(axis=0), float(self.n))
        draws = self._scores(*(self._draws @ part for part in (true, on, positive, self._sizes)))
        for name in draws:
            if self.n_groups < 2:
                draws[name][:] = np.nan
        return {name: (estimate[name], draws[name]) for name in estimate}

    @staticmethod
    def _scores(true, on, positive, total) -> dict[str, np.ndarray]:
        """F1 and balanced accuracy from counts of true positives, predictions, positives, samples."""
        return {
            "f1": f1_of(true, on, positive),
            "balanced_accuracy": balanced_accuracy_of(true, on, positive, total),
        }


def f1_of(true: np.ndarray, on: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """F1 = 2 TP / (predicted + positive); NaN where there is no positive."""
    true, on, positive = np.broadcast_arrays(*(np.asarray(part, dtype=np.float64) for part in (true, on, positive)))
    return np.divide(2.0 * true, on + positive, out=np.full(true.shape, np.nan), where=positive > 0)


def balanced_accuracy_of(true, on, positive, total) -> np.ndarray:
    """Mean of sensitivity and specificity; NaN where one side has no sample."""
    parts = np.broadcast_arrays(*(np.asarray(part, dtype=np.float64) for part in (true, on, positive, total)))
    true, on, positive, total = parts
    negative = total - positive
    with np.errstate(divide="ignore", invalid="ignore"):
        value = 0.5 * (true / positive + (negative - (on - true)) / negative)
    return np.where((positive > 0) & (negative > 0), value, np.nan)


@dataclass(frozen=True)
class Signed:
    """Codes in units of each atom's largest training value, negative codes as atoms of their own.

    Attributes
    ----------
    atom, sign
        (a,) int64: which atom, and +1 or −1.
    values
        (n, a) float32 CSC of positive values.
    """

    atom: np.ndarray
    sign: np.ndarray
    values: sparse.csc_matrix

    @classmethod
    def of(cls, codes: sparse.csr_matrix, train: np.ndarray) -> Signed:
        """Split and scale codes (n, m) by what they reach on training samples (n,) bool."""
        scale = Scale.of(codes[np.flatnonzero(train)])
        return cls(scale.atom, scale.sign, scale.apply(codes).tocsc())


def rows_of(values: sparse.csc_matrix, rows: np.ndarray) -> sparse.csc_matrix:
    """Samples `rows` (n,) bool of values by atom, by atom again: once per split, since both ways cost a copy."""
    part = values.tocsr()[np.flatnonzero(rows)].tocsc()
    part.sort_indices()
    return part


def threshold_counts(
    part: sparse.csc_matrix, members: np.ndarray, thresholds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Count the samples on which each atom exceeds each threshold, and those of them that have a concept.

    Parameters
    ----------
    part
        (n, a) positive values by atom, from `rows_of`.
    members
        (n, c) bool.
    thresholds
        (t,) ascending, not negative.

    Returns
    -------
    on, true
        (a, t) and (a, t, c) int64.
    """
    if available():
        from conceptome_kernels.contingency import contingency

        return contingency(
            part.indptr.astype(np.int64),
            part.indices.astype(np.int32),
            part.data.astype(np.float32),
            np.ascontiguousarray(members),
            np.asarray(thresholds, dtype=np.float32),
        )
    on = np.empty((part.shape[1], len(thresholds)), dtype=np.int64)
    true = np.empty((*on.shape, members.shape[1]), dtype=np.int64)
    for i, threshold in enumerate(np.asarray(thresholds, dtype=np.float32)):
        active = above(part, threshold)
        on[:, i] = np.diff(active.indptr)
        true[:, i] = np.rint(active.T @ members.astype(np.float32))
    return on, true


def at_threshold(part: sparse.csc_matrix, atom: np.ndarray, threshold: np.ndarray) -> np.ndarray:
    """Where the chosen atom of each concept exceeds its threshold: (n, c) bool on the samples of `part` (n, a)."""
    return part[:, atom].toarray() > threshold.astype(np.float32)


def row_means(draws: np.ndarray) -> np.ndarray:
    """Mean of each row over what is not NaN; NaN where all is."""
    known = ~np.isnan(draws)
    total = known.sum(axis=1)
    return np.divide(np.where(known, draws, 0.0).sum(axis=1), total, out=np.full(len(draws), np.nan), where=total > 0)


def take(
    space: Any,
    config: Any,
    tables: Iterable[str],
    measured: Callable[[sparse.csr_matrix, ConceptLabels, Any], Iterable[pd.DataFrame]],
) -> dict[str, list[pd.DataFrame]]:
    """Measure every fit for every source of concepts.

    Parameters
    ----------
    tables
        Names of the tables, in the order in which `measured` gives their frames.
    measured
        Codes (n, m), labels and configuration → one frame per table.

    Raises
    ------
    DataError
        A source of concepts is missing, or none of its concepts is frequent enough.
    """
    sources = concept_labels(space, config)
    found: dict[str, list[pd.DataFrame]] = {name: [] for name in tables}
    for name, seed, _, codes in space.each_fit():
        for labels in sources:
            for table, frame in zip(found, measured(codes, labels, config)):
                found[table].append(frame.assign(dictionary=name, method=space.methods[name], seed=seed))
    return found
