"""Coverage and reconstruction of known concepts by single atoms (Karvonen et al. 2024), chosen off test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from conceptome.measures.concept_labels import (
    ConceptLabels,
    Judge,
    Signed,
    at_threshold,
    f1_of,
    row_means,
    rows_of,
    take,
    threshold_counts,
)
from conceptome.measures.rows import seeded
from conceptome.measures.tables import ESTIMATE, FIT
from conceptome.statistics import interval

if TYPE_CHECKING:
    import pandas as pd
    from scipy import sparse

    from conceptome.config.further import Coverage
    from conceptome.measures.space import Space

TABLES: dict[str, dict[str, str]] = {
    "coverage": {
        **FIT,
        "source": "object",
        "statistic": "object",
        "f1": "float64",
        **ESTIMATE,
        "in_sample": "float64",
        "n_concepts": "int64",
        "n": "int64",
        "n_groups_test": "int64",
    },
    "coverage_concepts": {
        **FIT,
        "source": "object",
        "concept": "object",
        "statistic": "object",
        "atom": "int64",
        "sign": "int64",
        "threshold": "float64",
        "n_atoms": "int64",
        "f1": "float64",
        **ESTIMATE,
        "in_sample": "float64",
        "n_positive": "int64",
        "n": "int64",
    },
}


def _best(on: np.ndarray, true: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Best (atom, threshold) by F1 for each concept: on (a, t), true (a, t, c), positive (c,) → index, index, F1."""
    f1 = f1_of(true, on[:, :, None], positive).reshape(-1, true.shape[2])
    flat = np.nan_to_num(f1, nan=-1.0).argmax(axis=0)
    atom, threshold = np.unravel_index(flat, on.shape)
    return atom, threshold, f1[flat, np.arange(f1.shape[1])]


def _precise(
    on: np.ndarray, true: np.ndarray, thresholds: np.ndarray, config: Coverage
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which atoms are precise for which concept, each from its lowest precise threshold on: atom, concept, threshold.

    Where an atom exceeds a threshold it exceeds all lower ones, so the lowest precise one marks all that any marks.
    """
    enough = (true >= config.min_precision * on[:, :, None]) & (true >= config.min_active)
    atom, concept = np.nonzero(enough.any(axis=1))
    return atom, concept, thresholds[enough.argmax(axis=1)[atom, concept]]


def _any_of(
    part: sparse.csc_matrix, atom: np.ndarray, concept: np.ndarray, threshold: np.ndarray, c: int
) -> np.ndarray:
    """Where any of a concept's atoms exceeds its threshold: (n, c) bool on the samples of `part` (n, a)."""
    from scipy import sparse

    if not len(atom):
        return np.zeros((part.shape[0], c), dtype=bool)
    chosen = part[:, atom]
    chosen.data = (chosen.data > np.repeat(threshold.astype(np.float32), np.diff(chosen.indptr))).astype(np.float32)
    owner = sparse.csr_matrix((np.ones(len(atom), np.float32), (np.arange(len(atom)), concept)), shape=(len(atom), c))
    return (chosen @ owner).toarray() > 0


def coverage(codes: sparse.csr_matrix, labels: ConceptLabels, config: Coverage) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Measure how well single atoms tell known concepts, on samples of groups that had no say in the choice.

    With f_i the code of atom i and φ_{i,t} = 1[f_i > t · max f_i] (the maximum over training samples; where codes are
    signed, the negated atom is an atom of its own):

    coverage = mean over concepts g of F1(φ_{i,t}, g), with i and t those of the highest F1 on training and validation
    samples, F1 that of test samples. reconstruction = mean over concepts of the F1 with which the concept is predicted
    to hold wherever any atom exceeds a threshold at which its training precision for the concept is at least
    `config.min_precision`.

    In the source, i and t maximise the F1 that is reported: `in_sample` is that optimistic number, on test samples (for
    reconstruction: the F1 of training samples). Interval: bootstrap of test groups. Null: everything once more with
    the concepts' rows permuted within splits, whole groups moved; its band spans permutations.

    Parameters
    ----------
    codes
        (N, m) codes of all samples.
    labels
        Concepts of one source.

    Returns
    -------
    summary, concepts
        One row per statistic; one row per concept and statistic. Columns as in `TABLES`, without those of the fit.

    References
    ----------
    Karvonen et al., NeurIPS 2024 (arXiv 2408.00113), section 4: board reconstruction and coverage.
    """
    import pandas as pd

    codes = codes[labels.rows]
    train, test = labels.part("train"), labels.part("test")
    choose = ~test
    thresholds = np.sort(np.asarray(config.thresholds, dtype=np.float64))
    signed = Signed.of(codes, train)
    c = len(labels.names)
    judge = Judge(labels.members[test], labels.groups[test], config.bootstraps, seeded(config.seed, "coverage"))
    orders = labels.shuffled(config.permutations, seeded(config.seed, "coverage", "null"))
    if not len(signed.atom):
        return pd.DataFrame(), pd.DataFrame()
    on_choose, on_train, on_test = (rows_of(signed.values, part) for part in (choose, train, test))

    def one(members: np.ndarray) -> dict[str, tuple[np.ndarray, ...]]:
        """Choose off test; predictions of the test samples, and which atoms predict."""
        on, true = threshold_counts(on_choose, members[choose], thresholds)
        atom, at, _ = _best(on, true, members[choose].sum(axis=0))
        predicted = at_threshold(on_test, atom, thresholds[at])
        on, true = threshold_counts(on_train, members[train], thresholds)
        precise = _precise(on, true, thresholds, config)
        return {
            "coverage": (predicted, signed.atom[atom], signed.sign[atom], thresholds[at], np.ones(c, dtype=np.int64)),
            "reconstruction": (
                _any_of(on_test, *precise, c),
                np.full(c, -1),
                np.zeros(c, dtype=np.int64),
                np.full(c, np.nan),
                np.bincount(precise[1], minlength=c),
                precise,
            ),
        }

    found = one(labels.members)
    null: dict[str, list[np.ndarray]] = {name: [] for name in found}
    for order in orders:
        members = labels.members[order]
        for name, parts in one(members).items():
            null[name].append(judge(parts[0], members[test])["f1"][0])

    on, true = threshold_counts(on_test, labels.members[test], thresholds)
    optimistic = {"coverage": _best(on, true, labels.members[test].sum(axis=0))[2]}
    predicted = _any_of(on_train, *found["reconstruction"][5], c)
    whole = Judge(labels.members[train], np.zeros(int(train.sum())), 1, seeded(config.seed, "coverage"))
    optimistic["reconstruction"] = whole(predicted)["f1"][0]

    rows, summary = [], []
    positive = labels.members[test].sum(axis=0)
    for name, parts in found.items():
        value, draws = judge(parts[0])["f1"]
        low, high = interval(draws, config.confidence)
        chance = np.stack(null[name])
        null_low, null_high = interval(chance, config.confidence)
        rows.append(
            pd.DataFrame(
                {
                    "source": labels.source,
                    "concept": labels.names,
                    "statistic": name,
                    "atom": parts[1],
                    "sign": parts[2],
                    "threshold": parts[3],
                    "n_atoms": parts[4],
                    "f1": value,
                    "low": low,
                    "high": high,
                    "null": chance.mean(axis=0),
                    "null_low": null_low,
                    "null_high": null_high,
                    "in_sample": optimistic[name],
                    "n_positive": positive,
                    "n": judge.n,
                }
            )
        )
        # A draw that misses a concept's samples leaves that concept out of its mean.
        mean_low, mean_high = interval(row_means(draws), config.confidence)
        chance = chance.mean(axis=1)
        chance_low, chance_high = interval(chance, config.confidence)
        summary.append(
            {
                "source": labels.source,
                "statistic": name,
                "f1": float(value.mean()),
                "low": float(mean_low),
                "high": float(mean_high),
                "null": float(chance.mean()),
                "null_low": float(chance_low),
                "null_high": float(chance_high),
                "in_sample": float(np.mean(optimistic[name])),
                "n_concepts": c,
                "n": judge.n,
                "n_groups_test": judge.n_groups,
            }
        )
    return pd.DataFrame(summary), pd.concat(rows, ignore_index=True)


def measure(space: Space, config: Coverage) -> dict[str, list[pd.DataFrame]]:
    """Measure coverage and reconstruction of every fit for every source of concepts.

    Raises
    ------
    DataError
        A source of concepts is missing, or none of its concepts is frequent enough.
    """
    return take(space, config, TABLES, coverage)
