"""Cause and isolation (RAVEL, Huang et al. 2024): edit a few atoms, and see which labels of a sample change."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from conceptome.errors import DataError
from conceptome.measures.concept_labels import row_means
from conceptome.measures.rows import Classes, classes_of, seeded
from conceptome.measures.tables import FIT
from conceptome.statistics import bootstrap_groups, group_codes, interval

if TYPE_CHECKING:
    import pandas as pd
    from scipy import sparse

    from conceptome.config.further import Isolation
    from conceptome.dictionaries import Dictionary
    from conceptome.measures.space import Space

logger = logging.getLogger(__name__)

_BOUNDS = {name: "float64" for name in ("low", "high", "null", "null_low", "null_high")}
TABLES: dict[str, dict[str, str]] = {
    "isolation": {
        **FIT,
        "source": "object",
        "statistic": "object",
        "score": "float64",
        **_BOUNDS,
        "k": "int64",
        "n_pairs": "int64",
        "n": "int64",
        "n_groups_test": "int64",
    },
    "isolation_pairs": {
        **FIT,
        "source": "object",
        "from_class": "object",
        "to_class": "object",
        "k": "int64",
        "atoms": "object",
        "cause": "float64",
        "isolation": "float64",
        "null_cause": "float64",
        "null_isolation": "float64",
        "n": "int64",
    },
}
SCORES = ("cause", "isolation", "mean")
# Random atoms are drawn from this many atoms whose frequency is nearest to that of the atom they stand for.
NEAREST = 10


class _Reader:
    """A fixed linear probe of one label on (whitened) activations."""

    def __init__(self, x: np.ndarray, classes: Classes, strength: float):
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        train = classes.part("train")
        deviation = x[train].std(axis=0)
        factor = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=deviation > 1e-9 * deviation.max())
        model = LogisticRegression(C=strength, class_weight="balanced", tol=1e-3, max_iter=200)
        with warnings.catch_warnings():
            # A probe that is a little short of its optimum is as fixed as any.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit((x[train] - x[train].mean(axis=0)) * factor, classes.y[train])
        weights, intercept = model.coef_, model.intercept_
        if len(classes.names) == 2:
            weights, intercept = np.concatenate([0 * weights, weights]), np.concatenate([0 * intercept, intercept])
        self.weights = weights * factor
        self.intercept = intercept - self.weights @ x[train].mean(axis=0)

    def logits(self, x: np.ndarray) -> np.ndarray:
        """Logits (n, classes) of activations (n, d)."""
        return x @ self.weights.T + self.intercept


@dataclass(frozen=True)
class _Target:
    """One label to be edited: its classes, activations, readers of all labels, and the samples that are edited.

    `edited` holds, for validation and for test, (ordered pair of classes → positions in `classes.rows`).
    """

    classes: Classes
    pairs: list[tuple[int, int]]
    own: int
    logits: list[np.ndarray]
    readers: list[_Reader]
    edited: dict[str, list[np.ndarray]]


def _targets(space: Space, config: Isolation) -> list[_Target]:
    """Fit the readers, and list what can be edited: samples whose class the reader recognises before the edit."""
    if len(config.labels) < 2:
        raise DataError("isolation needs at least two labels: one that is edited and others that should stay")
    every = [classes_of(space, config, label, "isolation") for label in config.labels]
    for classes in every:
        if len(classes.names) < 2:
            raise DataError(
                f"isolation: fewer than two classes of '{classes.label}' are left "
                f"({'; '.join(classes.excluded) or 'none has enough groups'}): take another label"
            )
    readers = [_Reader(space.white(classes.rows).astype(np.float64), classes, config.strength) for classes in every]
    targets = []
    for own, classes in enumerate(every):
        x = space.white(classes.rows).astype(np.float64)
        logits = [reader.logits(x) for reader in readers]
        known = logits[own].argmax(axis=1) == classes.y
        counts = np.bincount(classes.y[classes.part("train")], minlength=len(classes.names))
        c = range(len(classes.names))
        pairs = sorted(((a, b) for a in c for b in c if a != b), key=lambda pair: (-counts[list(pair)].min(), pair))
        edited: dict[str, list[np.ndarray]] = {"validation": [], "test": []}
        kept = []
        for a, b in pairs:
            parts = {name: np.flatnonzero(classes.part(name) & known & (classes.y == a)) for name in edited}
            if len(kept) < config.max_pairs and all(len(part) for part in parts.values()):
                kept.append((a, b))
                for name, part in parts.items():
                    edited[name].append(part)
        if not kept:
            raise DataError(f"isolation: the probe of '{classes.label}' recognises no class off training samples")
        if len(kept) < len(pairs):
            logger.info("isolation: %d of %d pairs of classes of %s are edited", len(kept), len(pairs), classes.label)
        targets.append(_Target(classes, kept, own, logits, readers, edited))
    return targets


def matched_atoms(atoms: np.ndarray, rate: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw for each atom another one, not among them, whose firing rate is near: (k,) int64.

    With fewer other atoms than are asked for, all of them.
    """
    others = np.setdiff1d(np.arange(len(rate)), atoms)
    drawn: list[int] = []
    for atom in atoms:
        left = np.setdiff1d(others, drawn)
        if not len(left):
            break
        near = left[np.argsort(np.abs(rate[left] - rate[atom]), kind="stable")[:NEAREST]]
        drawn.append(int(rng.choice(near)))
    return np.array(drawn, dtype=np.int64)


class _Editor:
    """Edits of one fit for one target: what the readers say after atoms were set to another class's mean."""

    def __init__(self, dictionary: Dictionary, codes: sparse.csr_matrix, target: _Target):
        train = target.classes.part("train")
        y = target.classes.y[train]
        part = codes[np.flatnonzero(train)]
        self._codes = codes.tocsc()
        self._target = target
        self._effects = [dictionary.atoms.astype(np.float64) @ reader.weights.T for reader in target.readers]
        c = len(target.classes.names)
        self.means = np.stack([np.asarray(part[y == i].mean(axis=0)).ravel() for i in range(c)])
        square = np.asarray(part.multiply(part).mean(axis=0)).ravel()
        self._deviation = np.sqrt(np.maximum(square - np.asarray(part.mean(axis=0)).ravel() ** 2, 1e-30))
        self.rate = np.asarray((part != 0).mean(axis=0)).ravel()

    def ranked(self, a: int, b: int) -> np.ndarray:
        """Atoms by how far the means of two classes lie apart on training samples, in units of their deviation."""
        return np.argsort(-np.abs(self.means[a] - self.means[b]) / self._deviation, kind="stable")

    def __call__(self, atoms: np.ndarray, pair: tuple[int, int], rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Cause and isolation, (n,) each, of editing `atoms` of the samples `rows` from one class to another.

        x′ = x + Σ_j (μ_bj − z_j) D_j: what the dictionary leaves out of x stays as it is.
        """
        target = self._target
        change = self.means[pair[1], atoms] - self._codes[:, atoms][rows].toarray()
        cause, stays = np.zeros(0), []
        for label, (before, effect) in enumerate(zip(target.logits, self._effects)):
            after = (before[rows] + change @ effect[atoms]).argmax(axis=1)
            if label == target.own:
                cause = (after == pair[1]).astype(np.float64)
            else:
                stays.append(after == before[rows].argmax(axis=1))
        return cause, np.mean(stays, axis=0)


def isolation(
    dictionary: Dictionary, codes: sparse.csr_matrix, target: _Target, config: Isolation
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Measure whether editing k atoms changes one label of a sample, and only that.

    For each ordered pair of classes (a, b) of the label: the k atoms whose mean codes differ most between a and b on
    training samples (as a sparse probe chooses them; k is at most half of the atoms) are set to their mean in b, in
    samples of class a that fixed linear probes on activations recognise. The edit is decoded, x′ = x + (z′ − z) D, and
    the probes are asked again.

    cause: share of samples now read as b. isolation: share of samples whose other labels read as before, mean over the
    other labels. mean: of the two. All three are means over pairs; k is the one with the largest mean on
    validation samples, the scores are those of test samples.

    Interval: bootstrap of test groups. Null: as many random atoms, each of nearly the frequency of the one it stands
    for, edited in the same way; its band spans draws. Random atoms change little: their isolation is high.

    The source trains on pairs of prompts with known values of both attributes and reads the model's output; here the
    reader is a probe, and the value to change to is a class's mean.

    Parameters
    ----------
    codes
        (N, m) codes of all samples.
    target
        The label to edit.

    Returns
    -------
    summary, pairs
        One row per statistic; one row per pair. Columns as in `TABLES` without those of the fit.

    References
    ----------
    Huang et al., ACL 2024 (arXiv 2402.17700), RAVEL: cause, isolation and their mean (Disentangle score).
    """
    import pandas as pd

    classes = target.classes
    editor = _Editor(dictionary, codes[classes.rows], target)
    # Of more than half of the atoms no equal number of others could be drawn for the null.
    sizes = sorted({min(k, max(codes.shape[1] // 2, 1)) for k in config.k})
    ranked = [editor.ranked(*pair) for pair in target.pairs]

    def on_validation(k: int) -> float:
        found = [
            [part.mean() for part in editor(order[:k], pair, rows)]
            for order, pair, rows in zip(ranked, target.pairs, target.edited["validation"])
        ]
        return float(np.mean(found))

    k = sizes[int(np.argmax([on_validation(size) for size in sizes]))]
    test = np.flatnonzero(classes.part("test"))
    group, names = group_codes(classes.groups[test])
    of_sample = np.full(len(classes.rows), -1, dtype=np.int64)
    of_sample[test] = group
    draws = bootstrap_groups(classes.groups[test], config.bootstraps, seeded(config.seed, "isolation")).astype(float)

    values, drawn, null, rows = [], [], [], []
    for number, (order, pair, edited) in enumerate(zip(ranked, target.pairs, target.edited["test"])):
        found = np.stack(editor(order[:k], pair, edited))
        found = np.concatenate([found, found.mean(axis=0, keepdims=True)])
        at = of_sample[edited]
        total = draws @ np.bincount(at, minlength=len(names))
        sums = np.stack([draws @ np.bincount(at, weights=each, minlength=len(names)) for each in found])
        drawn.append(np.divide(sums, total, out=np.full(sums.shape, np.nan), where=total > 0))
        rng = np.random.default_rng([*seeded(config.seed, "isolation", "null", classes.label), number])
        chance = []
        for _ in range(config.permutations):
            random = matched_atoms(order[:k], editor.rate, rng)
            lucky = np.stack(editor(random, pair, edited)).mean(axis=1)
            chance.append([*lucky, lucky.mean()])
        values.append(found.mean(axis=1))
        null.append(chance)
        rows.append(
            {
                "from_class": classes.names[pair[0]],
                "to_class": classes.names[pair[1]],
                "k": k,
                "atoms": " ".join(map(str, order[:k])),
                "cause": values[-1][0],
                "isolation": values[-1][1],
                "null_cause": float(np.mean(chance, axis=0)[0]),
                "null_isolation": float(np.mean(chance, axis=0)[1]),
                "n": len(edited),
            }
        )
    over_pairs = np.mean(null, axis=0)
    summary = []
    for i, name in enumerate(SCORES):
        spread = row_means(np.stack([each[i] for each in drawn], axis=1))
        if len(names) < 2:
            spread[:] = np.nan
        low, high = interval(spread, config.confidence)
        null_low, null_high = interval(over_pairs[:, i], config.confidence)
        summary.append(
            {
                "statistic": name,
                "score": float(np.mean([each[i] for each in values])),
                "low": float(low),
                "high": float(high),
                "null": float(over_pairs[:, i].mean()),
                "null_low": float(null_low),
                "null_high": float(null_high),
            }
        )
    edited = np.unique(np.concatenate(target.edited["test"]))
    size = {"source": classes.label, "k": k, "n_pairs": len(rows), "n": len(edited), "n_groups_test": len(names)}
    return pd.DataFrame(summary).assign(**size), pd.DataFrame(rows).assign(source=classes.label)


def measure(space: Space, config: Isolation) -> dict[str, list[pd.DataFrame]]:
    """Measure cause and isolation of every fit for every label.

    Raises
    ------
    DataError
        Fewer than two labels; a label is missing, numeric, or without two classes that can be read.
    """
    targets = _targets(space, config)
    found: dict[str, list[pd.DataFrame]] = {name: [] for name in TABLES}
    for name, seed, dictionary, codes in space.each_fit():
        for target in targets:
            for table, frame in zip(TABLES, isolation(dictionary, codes, target, config)):
                found[table].append(frame.assign(dictionary=name, method=space.methods[name], seed=seed))
    return found
