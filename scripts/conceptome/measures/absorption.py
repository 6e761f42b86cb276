"""Splitting and absorption (Chanin et al. 2024) over hierarchies of known concepts in place of first letters."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from conceptome.datasets.ontology import families, find_terms, read_ontology
from conceptome.errors import DataError
from conceptome.measures.concept_labels import ConceptLabels, f1_of, from_label, from_residues, row_means
from conceptome.measures.logistic import fit_logistic, l1_weights
from conceptome.measures.probes import scaled
from conceptome.measures.rows import SPLITS, choose_rows, class_name, described_label, seeded
from conceptome.measures.tables import FIT
from conceptome.statistics import bootstrap_groups, group_codes, interval, permutations

if TYPE_CHECKING:
    import pandas as pd
    from scipy import sparse

    from conceptome.config.further import Absorption
    from conceptome.dictionaries import Dictionary
    from conceptome.measures.space import Space

logger = logging.getLogger(__name__)

_BOUNDS = {name: "float64" for name in ("low", "high", "null", "null_low", "null_high")}
_ANY = {name: "float64" for name in ("any", "any_low", "any_high")}
TABLES: dict[str, dict[str, str]] = {
    "absorption": {
        **FIT,
        "source": "object",
        "statistic": "object",
        "absorbed": "float64",
        **_BOUNDS,
        **_ANY,
        "split": "float64",
        "n_concepts": "int64",
        "n": "int64",
        "n_groups_test": "int64",
    },
    "absorption_parents": {
        **FIT,
        "source": "object",
        "parent": "object",
        "n_children": "int64",
        "probe_f1": "float64",
        "main": "object",
        "split": "int64",
        "f1_one": "float64",
        "f1_split": "float64",
        "silent": "float64",
        "absorbed": "float64",
        **_BOUNDS,
        **_ANY,
        "n": "int64",
    },
}


@dataclass(frozen=True)
class Hierarchy:
    """Parents of one source, and for each sample which child of a parent it has.

    Attributes
    ----------
    labels
        The parents as concepts.
    child
        (n, p) int64: the child of parent p that a sample has, −1 where it has none or not the parent.
    children
        Per parent the names of its children.
    """

    labels: ConceptLabels
    child: np.ndarray
    children: list[list[str]]

    def keep(self, columns: list[int], reasons: list[str]) -> Hierarchy:
        """Only the parents of these columns."""
        labels = self.labels.keep(np.asarray(columns, dtype=np.int64), reasons)
        return Hierarchy(labels, self.child[:, columns], [self.children[i] for i in columns])


def _numbered(values: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Number the values of wanted samples in sorted order; −1 elsewhere and where a value is missing."""
    known = wanted & (values != "")
    names, number = np.unique(values[known], return_inverse=True)
    child = np.full(len(values), -1, dtype=np.int64)
    child[known] = number
    return child, [str(name) for name in names]


def _text(space: Space, label: str, rows: np.ndarray) -> np.ndarray:
    """Values of a label as class names, '' where missing."""
    described_label(space.obs, space.card, label)
    values = space.obs[label].iloc[rows]
    return np.array(
        ["" if missing else class_name(value) for value, missing in zip(values, values.isna())], dtype=object
    )


def _labelled(space: Space, label: str, config: Absorption) -> tuple[np.ndarray, np.ndarray]:
    """Samples that have a label, (n,) int64, at most `config.max_rows`, and the class of each, (n,) str objects."""
    there = space.obs[label].notna().to_numpy() if label in space.obs else np.ones(len(space.obs), dtype=bool)
    rows = choose_rows(there, config.max_rows, seeded(config.seed, "absorption", label))
    return rows, _text(space, label, rows)


def _from_table(
    space: Space,
    label: str,
    rows: np.ndarray,
    values: np.ndarray,
    parents: Mapping[str, tuple[list[str], list[str]]],
) -> tuple[ConceptLabels, list[tuple[np.ndarray, list[str]]]]:
    """Parents, each given with the classes that it covers and those of them that are children."""
    members = np.stack([np.isin(values, names) for names, _ in parents.values()], axis=1)
    labels = ConceptLabels(label, list(parents), rows, members, space.groups[rows], space.split[rows], [])
    return labels, [_numbered(values, np.isin(values, children)) for _, children in parents.values()]


def hierarchies(space: Space, config: Absorption) -> list[Hierarchy]:
    """Collect the parents that have at least two children frequent enough, per source.

    A child stays when at least `config.min_positives` training and as many test samples have it; a parent stays with
    two such children, and enough samples with and without it in every split. What is left out is logged.

    Raises
    ------
    DataError
        A label or a class is missing; an ontology cannot be read or knows no parent of the classes; no parent is left.
    """
    found = []
    for pair in config.nested:
        if len(pair) != 2:
            raise DataError(f"absorption.nested: {pair} is not a pair [label, finer label]: give two columns")
        labels = from_label(space, pair[0], config)
        fine = _text(space, pair[1], labels.rows)
        parts = [_numbered(fine, labels.members[:, i]) for i in range(len(labels.names))]
        found.append((labels, parts))
    for label, parents in config.parents.items():
        rows, values = _labelled(space, label, config)
        missing = sorted({child for names in parents.values() for child in names} - set(values))
        if missing:
            raise DataError(f"absorption.parents: label '{label}' has no class {', '.join(missing)}: correct the names")
        found.append(_from_table(space, label, rows, values, {name: (own, own) for name, own in parents.items()}))
    for label, ontology in config.ontologies.items():
        rows, values = _labelled(space, label, config)
        graph = read_ontology(ontology.path, ontology.relations)
        try:
            terms, unknown = find_terms(graph, sorted(set(values)), ontology.terms)
        except DataError as error:
            raise DataError(f"absorption.ontologies.{label}: {error}") from None
        if unknown:
            logger.info("absorption: no term of %s for classes of %s: %s", ontology.path, label, "; ".join(unknown))
        parents = families(graph, terms)
        if not parents:
            raise DataError(
                f"absorption.ontologies.{label}: of {len(terms)} classes that {ontology.path} knows no two share a "
                "parent that others lack: give 'terms' for the classes, or 'relations' with part_of"
            )
        found.append(_from_table(space, label, rows, values, parents))
    if config.residues:
        labels = from_residues(space, config)
        whole = [i for i, name in enumerate(labels.names) if "|" not in name]
        parts = []
        for i in whole:
            own = [j for j, name in enumerate(labels.names) if name.startswith(f"{labels.names[i]}|")]
            child = np.full(len(labels.rows), -1, dtype=np.int64)
            # A residue with two notes of one type has no child of its own.
            single = labels.members[:, own].sum(axis=1) == 1 if own else np.zeros(len(child), dtype=bool)
            child[single] = labels.members[np.ix_(single, own)].argmax(axis=1) if own else -1
            parts.append((child, [labels.names[j] for j in own]))
        found.append((labels.keep(np.array(whole, dtype=np.int64)), parts))

    kept = []
    for labels, parts in found:
        tree = _frequent(
            Hierarchy(labels, np.stack([child for child, _ in parts], axis=1), [n for _, n in parts]), config
        )
        if tree.labels.excluded:
            logger.info("absorption: of %s left out are %s", labels.source, "; ".join(tree.labels.excluded))
        if tree.labels.names:
            kept.append(tree)
    if not kept:
        raise DataError(
            "absorption: no parent has two children that are frequent enough: name 'nested', 'parents' or "
            "'ontologies', ask for 'residues', or lower min_positives"
        )
    return kept


def _frequent(tree: Hierarchy, config: Absorption) -> Hierarchy:
    """Drop rare children, then parents with fewer than two, or that hardly any sample has or lacks."""
    labels, least = tree.labels, config.min_positives
    train, test = labels.part("train"), labels.part("test")
    child, children, columns, reasons = tree.child.copy(), [], [], []
    for p, names in enumerate(tree.children):
        counts = [np.bincount(child[part & (child[:, p] >= 0), p], minlength=len(names)) for part in (train, test)]
        enough = np.flatnonzero(np.minimum(*counts) >= least)
        number = np.full(len(names) + 1, -1, dtype=np.int64)
        number[enough] = np.arange(len(enough))
        child[:, p] = number[child[:, p]]
        children.append([names[i] for i in enough])
        sizes = [(labels.members[labels.part(s), p].sum(), (~labels.members[labels.part(s), p]).sum()) for s in SPLITS]
        if len(enough) < 2:
            reasons.append(f"{labels.names[p]} ({len(enough)} frequent children)")
        elif min(map(min, sizes)) < least:
            reasons.append(f"{labels.names[p]} (fewer than {least} samples with or without it in a split)")
        else:
            columns.append(p)
    if len(columns) > config.max_concepts:
        order = sorted(columns, key=lambda p: -labels.members[train, p].sum())
        reasons += [f"{labels.names[p]} (rarer than others)" for p in order[config.max_concepts :]]
        columns = sorted(order[: config.max_concepts])
    return Hierarchy(labels, child, children).keep(columns, reasons)


class _Truth:
    """What all fits share for one hierarchy: activations, the parents' probes, their true positives on test."""

    def __init__(self, space: Space, tree: Hierarchy, config: Absorption):
        labels = tree.labels
        self.x = space.white(labels.rows).astype(np.float64)
        train, validation, test = (labels.part(name) for name in SPLITS)
        deviation = self.x[train].std(axis=0)
        factor = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=deviation > 1e-9 * deviation.max())
        inputs = (self.x - self.x[train].mean(axis=0)) * factor
        directions, columns, reasons, self.probe_f1, positives = [], [], [], [], []
        for p, name in enumerate(labels.names):
            y = labels.members[:, p]
            weights, intercept = fit_logistic(inputs[train], y[train], config.strength)
            scores = inputs @ weights + intercept
            says = scores > best_cut(scores[train], y[train])
            score = float(_f1(says[validation], y[validation]))
            direction = weights * factor
            length = np.linalg.norm(direction)
            hits = np.flatnonzero(test & y & says)
            if score < config.min_probe_f1 or length == 0 or not len(hits):
                reasons.append(f"{name} (the activations' probe reaches F1 {score:.2f} on validation)")
                continue
            columns.append(p)
            directions.append(direction / length)
            self.probe_f1.append(float(_f1(says[test], y[test])))
            positives.append(hits)
        if reasons:
            logger.info("absorption: of %s left out are %s", labels.source, "; ".join(reasons))
        self.tree = tree.keep(columns, reasons)
        self.directions, self.positives = directions, positives
        labels = self.tree.labels
        code, names = group_codes(labels.groups[test])
        self.group = np.full(len(labels.rows), -1, dtype=np.int64)
        self.group[test] = code
        self.n_groups = len(names)
        self.draws = bootstrap_groups(labels.groups[test], config.bootstraps, seeded(config.seed, "absorption"))
        self.shuffled = [self._children_permuted(p, config) for p in range(len(labels.names))]

    def _children_permuted(self, p: int, config: Absorption) -> np.ndarray:
        """Children of a parent dealt out anew among its samples, within splits: (permutations, n) int64."""
        labels, child = self.tree.labels, self.tree.child[:, p]
        moved = np.tile(child, (config.permutations, 1))
        for i, part in enumerate(SPLITS):
            here = np.flatnonzero(labels.part(part) & (child >= 0))
            if len(here):
                seed = [*seeded(config.seed, "absorption", "children", labels.names[p]), i]
                moved[:, here] = permutations(child[here], config.permutations, seed, labels.groups[here])
        return moved


def _f1(says: np.ndarray, y: np.ndarray) -> np.ndarray:
    """F1 of predictions (n,) bool for (n,) bool; 0 without a positive."""
    return np.nan_to_num(f1_of((says & y).sum(), says.sum(), y.sum()))


def best_cut(scores: np.ndarray, y: np.ndarray) -> float:
    """Cut above which scores (n,) tell y (n,) bool with the highest F1: balanced probes overrate rare concepts."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    true = np.cumsum(y[order])
    f1 = 2.0 * true / (np.arange(1, len(y) + 1) + y.sum())
    # A cut lies between two different scores.
    f1[:-1][ranked[:-1] == ranked[1:]] = -1.0
    at = int(f1.argmax())
    below = ranked[at + 1] if at + 1 < len(ranked) else ranked[at] - 1.0
    return float((ranked[at] + below) / 2.0)


def main_atoms(
    x: np.ndarray | sparse.csr_matrix, y: np.ndarray, train: np.ndarray, validation: np.ndarray, config: Absorption
) -> tuple[np.ndarray, list[float]]:
    """Atoms that stand for a concept: one, or as many as it is split into.

    Atoms are ranked by an L1 regression on training samples, those first that are active at least as often with the
    concept as without: an atom that tells it by being silent does not stand for it. As long as a probe on one more of
    them raises F1 on validation samples by at least `config.min_f1_gain`, the concept counts as split over one more.
    An atom that stands in for the parent on a frequent child thus counts as a part of a split, not as an absorber.

    Parameters
    ----------
    x
        (n, m) scaled codes.
    y
        (n,) bool.

    Returns
    -------
    atoms, f1
        (k,) int64, and F1 on validation with 1, …, k atoms.
    """
    part, own = x[np.flatnonzero(train)], y[train]
    active = part != 0
    more = np.asarray(active[own].mean(axis=0) >= active[~own].mean(axis=0)).ravel()
    # np.lexsort: first by whether the atom is active with the concept, then by its weight.
    order = np.lexsort((-l1_weights(part, own, config.l1_strength), ~more))[: config.max_split]
    columns = x[:, order]
    columns = columns.toarray() if hasattr(columns, "toarray") else columns
    reached: list[float] = []
    for k in range(1, len(order) + 1):
        weights, intercept = fit_logistic(columns[train, :k], y[train], config.strength)
        scores = columns[:, :k] @ weights + intercept
        cut = best_cut(scores[train], y[train])
        score = float(_f1(scores[validation] > cut, y[validation]))
        if reached and score - reached[-1] < config.min_f1_gain:
            break
        reached.append(score)
    return order[: len(reached)], reached


def absorbers(
    codes: sparse.csr_matrix,
    projection: np.ndarray,
    main: np.ndarray,
    atoms: np.ndarray,
    direction: np.ndarray,
    config: Absorption,
) -> tuple[np.ndarray, np.ndarray]:
    """Atom that absorbs a concept in each sample.

    Parameters
    ----------
    codes
        (n, m) codes of samples that have the concept.
    projection
        (n,) projection of their activations, less the dictionary's bias, on the probe's unit direction.
    main
        (k,) atoms that stand for the concept.
    atoms, direction
        (m, d) unit rows, and the (d,) unit direction of the probe.

    Returns
    -------
    absorber, silent
        (n,) int64: the atom, −1 where none absorbs; (n,) bool: all main atoms are silent.
    """
    cosine = atoms.astype(np.float64) @ direction
    silent = np.asarray((codes[:, main] != 0).sum(axis=1)).ravel() == 0
    carried = codes.astype(np.float64).multiply(cosine[None, :]).tocsr()
    absorber = np.full(codes.shape[0], -1, dtype=np.int64)
    for row in np.flatnonzero(silent & (projection > 0)):
        values = carried.data[carried.indptr[row] : carried.indptr[row + 1]]
        if not len(values):
            continue
        at = int(values.argmax())
        atom = carried.indices[carried.indptr[row] + at]
        if cosine[atom] >= config.min_cosine and values[at] >= config.min_share * projection[row]:
            absorber[row] = atom
    return absorber, silent


class _OfOwnChild:
    """Which samples were absorbed by an atom of their own child, for the children as they are or dealt out anew.

    Parameters
    ----------
    active
        (l, m) bool: where atoms are active on the samples `learn` that have a child, off test.
    learn, positives
        (l,) and (t,) int64 samples: those, and the true positives on test.
    absorber
        (t,) int64 atom that absorbed each true positive, −1 where none did.
    """

    def __init__(
        self, active: sparse.csr_matrix, learn: np.ndarray, positives: np.ndarray, absorber: np.ndarray, n_children: int
    ):
        # The atoms that absorb at all are few: how often only they are active is counted.
        self._atoms, self._which = np.unique(absorber[absorber >= 0], return_inverse=True)
        self._active = active[:, self._atoms].toarray().astype(np.float64)
        self._learn, self._positives, self._absorber, self._n_children = learn, positives, absorber, n_children

    def __call__(self, child: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(t,) bool absorbed by an atom of the own child, and (t,) bool has a child: `child` is of all samples."""
        of = child[self._learn]
        share = np.stack([self._active[of == c].mean(axis=0) for c in range(self._n_children)])
        own = child[self._positives]
        hit = np.zeros(len(own), dtype=bool)
        at = self._absorber >= 0
        hit[at] = share.argmax(axis=0)[self._which] == own[at]
        return hit, own >= 0


def absorption(
    dictionary: Dictionary, codes: sparse.csr_matrix, truth: _Truth, config: Absorption
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Measure in how many samples of a parent concept an atom of their child stands in for the parent's own.

    A logistic probe on the (whitened) activations, cut where its F1 on training samples is highest, is the parent's
    ground truth, with unit direction p. The parent's main atoms are chosen by `main_atoms` (their number is `split`). A
    test sample that has the parent, and that the probe recognises, is absorbed if all main atoms are silent and the
    active atom j with the largest projection z_j ⟨D_j, p⟩ has ⟨D_j, p⟩ ≥ `min_cosine` and carries at least `min_share`
    of the sample's projection ⟨x − b, p⟩.

    `any` is the share of such samples. `absorbed` counts those only whose absorbing atom is, by how often it is active
    on the children of the parent off test, an atom of the very child that the sample has; samples without a
    frequent child do not count. That is what absorption claims, and it has a null: the children dealt out anew among
    the samples of the parent, within splits, whole groups moved. Interval: bootstrap of test groups. Codes that are
    never zero (PCA, neurons) have no silent atoms and cannot absorb; the random dictionary is the other null.

    Parameters
    ----------
    codes
        (N, m) codes of all samples.
    truth
        Hierarchy, probes and true positives.

    Returns
    -------
    summary, parents
        Mean over parents, and one row per parent. Columns as in `TABLES` without those of the fit.

    References
    ----------
    Chanin et al. 2024, "A is for Absorption" (arXiv 2409.14507); SAEBench (Karvonen et al. 2025) for the thresholds.
    There the concepts are first letters, and there is no null.
    """
    import pandas as pd

    tree = truth.tree
    labels = tree.labels
    codes = codes[labels.rows]
    train, validation, test = (labels.part(name) for name in SPLITS)
    x = scaled(codes, train)
    rows, all_draws, all_any, all_null = [], [], [], []
    for p, name in enumerate(labels.names):
        y, direction, positives = labels.members[:, p], truth.directions[p], truth.positives[p]
        main, reached = main_atoms(x, y, train, validation, config)
        projection = (truth.x[positives] - dictionary.bias) @ direction
        absorber, silent = absorbers(codes[positives], projection, main, dictionary.atoms, direction, config)

        learn = np.flatnonzero(~test & (tree.child[:, p] >= 0))
        of_own = _OfOwnChild(codes[learn] != 0, learn, positives, absorber, len(tree.children[p]))
        group = truth.group[positives]
        value, draws = _rate(*of_own(tree.child[:, p]), group, truth)
        some, any_draws = _rate(absorber >= 0, np.ones(len(positives), dtype=bool), group, truth)
        null = np.array([_rate(*of_own(child), group, truth)[0] for child in truth.shuffled[p]])
        rows.append(
            {
                "parent": name,
                "n_children": len(tree.children[p]),
                "probe_f1": truth.probe_f1[p],
                "main": " ".join(map(str, main)),
                "split": len(main),
                "f1_one": reached[0],
                "f1_split": reached[-1],
                "silent": float(silent.mean()),
                "absorbed": value,
                **_bounds(draws, "", config),
                "null": float(null.mean()),
                **_bounds(null, "null_", config),
                "any": some,
                **_bounds(any_draws, "any_", config),
                "n": int((tree.child[positives, p] >= 0).sum()),
            }
        )
        all_draws.append(draws)
        all_any.append(any_draws)
        all_null.append(null)
    table = pd.DataFrame(rows).assign(source=labels.source)
    null = np.stack(all_null).mean(axis=0)
    summary = {
        "source": labels.source,
        "statistic": "absorbed",
        "absorbed": float(table["absorbed"].mean()),
        **_bounds(row_means(np.stack(all_draws, axis=1)), "", config),
        "null": float(null.mean()),
        **_bounds(null, "null_", config),
        "any": float(table["any"].mean()),
        **_bounds(row_means(np.stack(all_any, axis=1)), "any_", config),
        "split": float(table["split"].mean()),
        "n_concepts": len(table),
        "n": int(table["n"].sum()),
        "n_groups_test": truth.n_groups,
    }
    return pd.DataFrame([summary]), table


def _rate(hit: np.ndarray, counts: np.ndarray, group: np.ndarray, truth: _Truth) -> tuple[float, np.ndarray]:
    """Share of counted samples that are hit, and over bootstrap draws of groups (B,)."""
    of = np.bincount(group[counts], minlength=truth.n_groups).astype(np.float64)
    hits = np.bincount(group[counts & hit], minlength=truth.n_groups).astype(np.float64)
    total = truth.draws @ of
    draws = np.divide(truth.draws @ hits, total, out=np.full(len(total), np.nan), where=total > 0)
    if truth.n_groups < 2:
        draws[:] = np.nan
    return float(hits.sum() / of.sum()) if of.sum() else float("nan"), draws


def _bounds(draws: np.ndarray, prefix: str, config: Absorption) -> dict[str, float]:
    """Interval of draws under the columns' names."""
    low, high = interval(draws, config.confidence)
    return {f"{prefix}low": float(low), f"{prefix}high": float(high)}


def measure(space: Space, config: Absorption) -> dict[str, list[pd.DataFrame]]:
    """Measure splitting and absorption of every fit over every hierarchy.

    Raises
    ------
    DataError
        A label or class is missing; no parent has two frequent children, or no parent can be read from activations.
    """
    truths = [_Truth(space, tree, config) for tree in hierarchies(space, config)]
    truths = [truth for truth in truths if truth.tree.labels.names]
    if not truths:
        raise DataError(
            f"absorption: no parent's probe on activations reaches F1 {config.min_probe_f1:g} on validation: lower "
            "min_probe_f1, or take other parents"
        )
    found: dict[str, list[pd.DataFrame]] = {name: [] for name in TABLES}
    for name, seed, dictionary, codes in space.each_fit():
        for truth in truths:
            for table, frame in zip(TABLES, absorption(dictionary, codes, truth, config)):
                found[table].append(frame.assign(dictionary=name, method=space.methods[name], seed=seed))
    return found
