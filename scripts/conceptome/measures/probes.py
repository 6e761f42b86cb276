"""Linear probes: what a class-balanced logistic regression reads from the codes of unseen groups."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

from conceptome.measures.rows import Classes, seeded
from conceptome.statistics import bootstrap_groups, group_codes, interval, permutations

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd
    from scipy import sparse
    from sklearn.linear_model import LogisticRegression

    from conceptome.config.evidence import Measures


def scaled(codes: sparse.csr_matrix, train: np.ndarray) -> sparse.csr_matrix | np.ndarray:
    """Divide each atom by its deviation on the training samples; atoms that are constant there become zero.

    Sparse codes are not centred, which would fill them in; codes that are mostly non-zero come back as a centred
    dense array, which changes nothing but the speed of the solver, since the intercept is free.
    """
    from scipy import sparse

    if codes.nnz > 0.3 * codes.shape[0] * codes.shape[1]:
        dense = codes.toarray().astype(np.float64)
        mean, deviation = dense[train].mean(axis=0), dense[train].std(axis=0)
        varies = deviation > 1e-6 * np.maximum(np.abs(mean), 1e-12)
        return np.where(varies, (dense - mean) / np.where(varies, deviation, 1.0), 0.0)
    part = codes[np.flatnonzero(train)].astype(np.float64)
    mean = np.asarray(part.mean(axis=0)).ravel()
    square = np.asarray(part.multiply(part).mean(axis=0)).ravel()
    deviation = np.sqrt(np.maximum(square - mean**2, 0.0))
    varies = deviation > 1e-6 * np.maximum(np.abs(mean), 1e-12)
    factor = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=varies)
    return (codes.astype(np.float64) @ sparse.diags(factor)).tocsr()


def penalty_path(x, y: np.ndarray, strengths: list[float], config: Measures) -> Iterator[LogisticRegression]:
    """Fit class-balanced logistic regressions (L2 penalty, lbfgs) from strong to weak penalty, each from the last.

    The same object is yielded each time: predict with it before asking for the next.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(
        class_weight="balanced", solver="lbfgs", tol=1e-3, max_iter=config.probe_max_iterations, warm_start=True
    )
    for strength in strengths:
        with warnings.catch_warnings():
            # A weak penalty on separable data has no finite optimum worth waiting for; validation judges the result.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.set_params(C=strength).fit(x, y)
        yield model


class Judge:
    """Balanced accuracy on given samples, as an estimate and over bootstrap draws of their groups."""

    def __init__(self, y: np.ndarray, groups: np.ndarray, n_classes: int, bootstraps: int, seed: list[int]):
        self._y = y
        self._n_classes = n_classes
        self._group, names = group_codes(groups)
        self.n_groups = len(names)
        self._draws = bootstrap_groups(groups, bootstraps, seed)
        self._cell = self._group * n_classes + y
        self._sizes = self._tally(np.ones(len(y)))

    def _tally(self, weights: np.ndarray) -> np.ndarray:
        counts = np.bincount(self._cell, weights=weights, minlength=self.n_groups * self._n_classes)
        return counts.reshape(self.n_groups, self._n_classes)

    def __call__(self, predicted: np.ndarray) -> tuple[float, np.ndarray]:
        """Balanced accuracy of predicted classes, and that of each draw."""
        correct = self._tally((predicted == self._y).astype(np.float64))
        with np.errstate(divide="ignore", invalid="ignore"):
            recall = correct.sum(axis=0) / self._sizes.sum(axis=0)
            draws = (self._draws @ correct) / (self._draws @ self._sizes)
        # A class that a draw missed does not count in that draw; every draw holds at least one class.
        draws = np.nanmean(draws, axis=1)
        if self.n_groups < 2:
            draws[:] = np.nan
        return float(np.nanmean(recall)), draws


def probe(codes: sparse.csr_matrix, classes: Classes, config: Measures, group_is: str) -> pd.DataFrame:
    """Balanced accuracy of a linear probe on held-out groups, with its null.

    The probe is trained on the training split; its penalty is chosen by balanced accuracy on the validation split
    (the strongest penalty among equals) and then frozen; the accuracy is that of the test split. Splits share no
    group. The interval is a bootstrap of test groups. The null is the same probe trained on permuted labels (whole
    groups moved), its band spans permutations and bootstrap draws.

    Parameters
    ----------
    codes
        (n, m) codes, rows as in `classes.rows`.
    classes
        The label's samples and kept classes.
    group_is
        What a group is (plate, donor, cell…): the level at which the interval holds.

    Returns
    -------
    pandas.DataFrame
        One row, columns as in `tables.TABLES`; with fewer than two classes left its numbers are NaN.

    References
    ----------
    Donhauser et al., ICML 2025 (arXiv 2412.16247), class-balanced logistic regression across experiments.
    """
    import pandas as pd

    train, validation, test = (classes.part(name) for name in ("train", "validation", "test"))
    n_classes = len(classes.names)
    row = {
        "label": classes.label,
        "role": classes.role,
        **dict.fromkeys(("balanced_accuracy", "low", "high", "null", "null_low", "null_high", "strength"), np.nan),
        "chance": 1.0 / n_classes if n_classes else np.nan,
        "n_classes": n_classes,
        "n_train": int(train.sum()),
        "n_test": int(test.sum()),
        "n_groups_test": len(np.unique(classes.groups[test])),
        "excluded": "; ".join(classes.excluded),
        "group_is": group_is,
    }
    if n_classes < 2:
        return pd.DataFrame([row])

    x = scaled(codes, train)
    x_train, x_validation, x_test = x[train], x[validation], x[test]
    y_train = classes.y[train]
    on_validation = Judge(classes.y[validation], classes.groups[validation], n_classes, 1, seeded(config.seed, "probe"))
    on_test = Judge(
        classes.y[test], classes.groups[test], n_classes, config.bootstraps, seeded(config.seed, "probe", "bootstrap")
    )
    strengths = sorted(config.probe_strengths)
    scores, predictions = [], []
    for model in penalty_path(x_train, y_train, strengths, config):
        scores.append(on_validation(model.predict(x_validation))[0])
        predictions.append(model.predict(x_test))
    chosen = int(np.argmax(scores))
    estimate, draws = on_test(predictions[chosen])
    low, high = interval(draws, config.confidence)

    null, null_draws = [], []
    shuffled = permutations(
        y_train, config.probe_permutations, seeded(config.seed, "probe", "permutation"), classes.groups[train]
    )
    for labels in shuffled:
        value, spread = on_test(
            next(penalty_path(x_train, labels, strengths[chosen : chosen + 1], config)).predict(x_test)
        )
        null.append(value)
        null_draws.append(spread)
    null_low, null_high = interval(np.concatenate(null_draws), config.confidence)
    row |= {
        "balanced_accuracy": estimate,
        "low": float(low),
        "high": float(high),
        "null": float(np.mean(null)),
        "null_low": float(null_low),
        "null_high": float(null_high),
        "strength": strengths[chosen],
    }
    return pd.DataFrame([row])
