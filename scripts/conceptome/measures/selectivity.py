"""Selectivity of atoms for classes (Donhauser et al. 2025), with intervals and a permuted-label null."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from conceptome.measures.rows import Classes, seeded
from conceptome.statistics import bootstrap_groups, group_codes, interval, permutations
from conceptome_kernels import available

if TYPE_CHECKING:
    import pandas as pd
    from scipy import sparse

    from conceptome.config.evidence import Measures

# Atoms are taken in blocks so that the counts of one under all permutations and draws stay small.
_BLOCK = 256


def activity(codes: sparse.csr_matrix, train: np.ndarray, dense_active: int) -> tuple[sparse.csr_matrix, str]:
    """Say where each atom is active.

    An atom is active where its code is not zero. Where practically all codes are non-zero (PCA, ICA, raw neurons
    without a budget) that rule says nothing; there an atom is active in its two tails, beyond the α and 1−α quantiles
    of the training samples, with α such that about `dense_active` atoms are active per sample, as Donhauser et al.
    binarise their feature baseline.

    Parameters
    ----------
    codes
        (n, m) codes.
    train
        (n,) bool: the samples on which quantiles are taken.

    Returns
    -------
    active, rule
        (n, m) bool CSR, and 'nonzero' or 'tails'.
    """
    from scipy import sparse

    n, m = codes.shape
    if codes.nnz < 0.9 * n * m or m <= dense_active:
        return (codes != 0).tocsr(), "nonzero"
    alpha = dense_active / m / 2.0
    dense = codes.toarray()
    low, high = np.quantile(dense[train], [alpha, 1.0 - alpha], axis=0)
    return sparse.csr_matrix((dense < low) | (dense > high)), "tails"


def _statistics(hits: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute avg(f,i) and max(f,i) for all classes: hits (…, C, m) active samples per class, sizes (…, C) samples."""
    sizes = sizes[..., None].astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        inside = hits / sizes
        outside = (hits.sum(axis=-2, keepdims=True) - hits) / (sizes.sum(axis=-2, keepdims=True) - sizes)
    known = np.where(np.isnan(inside), -np.inf, inside)
    ordered = np.sort(known, axis=-2)
    top, second = ordered[..., -1:, :], ordered[..., -2:-1, :]
    # The largest of the others: the second largest for the class that is largest itself.
    others = np.where(known == top, np.where((known == top).sum(axis=-2, keepdims=True) > 1, top, second), top)
    # A bootstrap draw may miss all other classes: then there is nothing to compare with.
    return inside - outside, inside - np.where(np.isinf(others), np.nan, others)


def _take(values: np.ndarray, best: np.ndarray) -> np.ndarray:
    """Values (…, C, m) at class best (…, m)."""
    return np.take_along_axis(values, best[..., None, :], axis=-2)[..., 0, :]


def _summation(rows: np.ndarray, n_rows: int) -> sparse.csr_matrix:
    """Build the (n_rows, n) 0/1 matrix whose product with (n, m) sums the samples that share an entry of rows (n,)."""
    from scipy import sparse

    n = len(rows)
    return sparse.csr_matrix((np.ones(n, dtype=np.float32), (rows, np.arange(n))), shape=(n_rows, n))


class _Labellings:
    """Counts active samples per class under many labellings (P, n) at once."""

    def __init__(self, labels: np.ndarray, n_classes: int):
        from scipy import sparse

        n_labellings, n = labels.shape
        # A class of a labelling is a label of its own, and each sample has one per labelling.
        label_of = labels + n_classes * np.arange(n_labellings)[:, None]
        self._sizes = np.bincount(label_of.ravel(), minlength=n_labellings * n_classes).reshape(-1, n_classes)
        if available():
            self._labels = np.zeros((n, self._sizes.size), dtype=bool)
            self._labels[np.arange(n), label_of] = True
        else:
            self._labels = sparse.vstack([_summation(labelling, n_classes) for labelling in labels]).tocsr()

    def __call__(self, active: sparse.csc_matrix) -> tuple[np.ndarray, np.ndarray]:
        """Hits (P, C, m) and class sizes (P, C) for activity (n, m)."""
        if available():
            from conceptome_kernels.contingency import contingency

            codes = active.indptr.astype(np.int64), active.indices.astype(np.int32), active.data.astype(np.float32)
            hits = contingency(*codes, self._labels, np.zeros(1, dtype=np.float32))[1][:, 0].T
        else:
            hits = (self._labels @ active).toarray()
        return hits.reshape(*self._sizes.shape, -1), self._sizes


def selectivity(
    active: sparse.csr_matrix, rule: str, classes: Classes, config: Measures
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Measure the selectivity of every atom for its best class, and the ordered curves of permuted labels.

    avg(f,i) = P(active|i) − P(active|not i); max(f,i) = P(active|i) − max over j≠i of P(active|j). An atom's class
    is the one with the largest statistic on train and validation samples (chosen apart for avg and for max); the
    values are those of test samples, so that picking the best of many classes does not flatter them. The null does
    the same with permuted labels, moving whole groups.

    Parameters
    ----------
    active
        (n, m) bool, rows as in `classes.rows`.
    rule
        What `activity` called its rule.
    classes
        The label's samples and kept classes.

    Returns
    -------
    table, null
        Columns as in `tables.TABLES`: one row per atom; one row per statistic and rank (0 = the largest value).

    References
    ----------
    Donhauser et al., ICML 2025 (arXiv 2412.16247), selectivity scores.
    """
    import pandas as pd

    n_classes, m = len(classes.names), active.shape[1]
    choose, test = np.flatnonzero(~classes.part("test")), np.flatnonzero(classes.part("test"))
    real, shuffled = {}, {}
    for part, rows in (("choose", choose), ("test", test)):
        y = classes.y[rows]
        seed = seeded(config.seed, "selectivity", part)
        real[part] = _Labellings(y[None], n_classes)
        shuffled[part] = _Labellings(permutations(y, config.permutations, seed, classes.groups[rows]), n_classes)
    # Samples of one group and class are interchangeable to a bootstrap by group: sum them first.
    group, group_names = group_codes(classes.groups[test])
    cell, cell_of = np.unique(group * n_classes + classes.y[test], return_inverse=True)
    draws = bootstrap_groups(classes.groups[test], config.bootstraps, seeded(config.seed, "selectivity", "bootstrap"))
    cell_weights = draws[:, cell // n_classes].astype(np.float32)
    cell_sum = _summation(cell_of, len(cell))
    of_class = [np.flatnonzero(cell % n_classes == c) for c in range(n_classes)]
    cell_sizes = np.bincount(cell_of, minlength=len(cell)).astype(np.float32)
    size_draws = np.stack([cell_weights[:, own] @ cell_sizes[own] for own in of_class], axis=1)

    tables, nulls = [], {"avg": [], "max": []}
    names = np.array(classes.names, dtype=object)
    columns = [active[rows].tocsc() for rows in (choose, test)]
    for start in range(0, m, _BLOCK):
        learn, judge = (part[:, start : start + _BLOCK] for part in columns)
        avg, peak = (values[0] for values in _statistics(*real["choose"](learn)))
        best, best_max = np.nanargmax(avg, axis=0), np.nanargmax(peak, axis=0)
        avg, peak = (values[0] for values in _statistics(*real["test"](judge)))

        cell_hits = (cell_sum @ judge).toarray()
        hit_draws = np.stack([cell_weights[:, own] @ cell_hits[own] for own in of_class], axis=1)
        avg_draws, peak_draws = _statistics(hit_draws, size_draws)
        reach = {}
        for name, values, chosen in (("avg", avg_draws, best), ("max", peak_draws, best_max)):
            picked = _take(values, np.broadcast_to(chosen, (len(values), len(chosen))))
            if len(group_names) < 2:
                picked = np.full_like(picked, np.nan)
            reach[name] = interval(picked, config.confidence)
        tables.append(
            pd.DataFrame(
                {
                    "label": classes.label,
                    "role": classes.role,
                    "atom": np.arange(start, start + judge.shape[1]),
                    "best_class": names[best],
                    "avg": _take(avg, best),
                    "avg_low": reach["avg"][0],
                    "avg_high": reach["avg"][1],
                    "best_class_max": names[best_max],
                    "max": _take(peak, best_max),
                    "max_low": reach["max"][0],
                    "max_high": reach["max"][1],
                    "n": len(test),
                    "n_active": np.diff(judge.indptr).astype(np.int64),
                    "active_rule": rule,
                }
            )
        )
        learned = _statistics(*shuffled["choose"](learn))
        judged = _statistics(*shuffled["test"](judge))
        for name, learn_null, judge_null in zip(("avg", "max"), learned, judged):
            nulls[name].append(_take(judge_null, np.nanargmax(learn_null, axis=-2)))

    curves = []
    for name, values in nulls.items():
        ordered = -np.sort(-np.concatenate(values, axis=1), axis=1)
        low, high = interval(ordered, config.confidence)
        curves.append(
            pd.DataFrame(
                {
                    "label": classes.label,
                    "statistic": name,
                    "rank": np.arange(m),
                    "low": low,
                    "median": np.median(ordered, axis=0),
                    "high": high,
                }
            )
        )
    return pd.concat(tables, ignore_index=True), pd.concat(curves, ignore_index=True)
