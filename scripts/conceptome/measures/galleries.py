"""Galleries of atoms: the crops that activate an atom most, controls beside them, and where in a crop it is active."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from conceptome.errors import DataError
from conceptome.measures.rows import class_name, described_label, seeded
from conceptome.measures.tables import FIT
from conceptome.models.intensity import intensity_features
from conceptome.statistics import RankedCodes, bootstrap_groups, group_codes, interval, permutations

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd

    from conceptome.config.further import Galleries
    from conceptome.measures.space import Space

TABLES = {
    "galleries": {
        **FIT,
        "label": "object",
        "atom": "int64",
        "rank": "int64",
        "best_class": "object",
        "auroc_train": "float64",
        "purity": "float64",
        "low": "float64",
        "high": "float64",
        "null": "float64",
        "null_low": "float64",
        "null_high": "float64",
        "baseline": "float64",
        "baseline_low": "float64",
        "baseline_high": "float64",
        "brightness": "float64",
        "brightness_low": "float64",
        "brightness_high": "float64",
        "brightness_null_low": "float64",
        "brightness_null_high": "float64",
        "n_top": "int64",
        "n_active": "int64",
        "n": "int64",
    },
    "galleries_crops": {
        **FIT,
        "atom": "int64",
        "rank": "int64",
        "kind": "object",
        "position": "int64",
        "sample_id": "object",
        "class": "object",
        "batch": "object",
        "group": "object",
        "code": "float64",
        "pixels": "object",
        "shape": "object",
        "map": "object",
        "patches": "int64",
    },
}


def measure(space: Space, config: Galleries) -> dict[str, list[pd.DataFrame]]:
    """Choose atoms on the training split, and show them on the test split.

    Of every fit the `atoms` atoms with the largest AUROC for a class of the label on TRAINING crops are taken.

    `galleries`: the purity of an atom, the share of its class among the test crops with the largest codes (the upper
    `share` of them), interval by bootstrap over groups; null: the share of the class among all test crops, and the
    interval of as many crops drawn at random. `baseline`: the same purity of one of the crops' intensity features
    (mean or deviation of a channel, up or down), chosen for the class on training crops as the atom was. An atom
    whose purity is no higher has found nothing that brightness alone does not say. `brightness`: Spearman's ρ, on test
    crops, of the code and the crop's mean pixel over all channels: how much of the atom is brightness; interval by
    bootstrap over groups, null: mean pixels permuted, whole groups together. `galleries_crops`: the pixels of the shown
    crops, and their map.

    The map of an atom over a crop is the code of each patch token: the model is run again, every patch token of its
    layer is whitened with the map fitted on the crops' activations (the mean of their tokens) and encoded by itself.
    Where the model has no patch tokens there is no map.

    Raises
    ------
    DataError
        The data set is not of images; the label has no two classes on the training split.
    """
    import pandas as pd

    if space.card["modality"] != "images":
        raise DataError(
            f"measures.galleries needs images, but the data set is of {space.card['modality']}: turn it off"
        )
    described_label(space.obs, space.card, config.label)
    values = space.obs[config.label]
    known = values.notna().to_numpy()
    classes = np.array([class_name(value) for value in values], dtype=object)
    train, test = (np.flatnonzero(known & (space.split == name)) for name in ("train", "test"))
    names = np.unique(classes[train].astype(str))
    if len(names) < 2:
        raise DataError(f"measures.galleries: label '{config.label}' has fewer than two classes on the training split")
    crops = space.dataset.crops()
    bright = np.array([crops[row].mean() for row in test])
    plain = _brightest(crops, classes, names, train, test)
    baseline = {}
    for name, values in plain.items():
        found = purity(
            values, classes[test] == name, space.groups[test], config, seeded(config.seed, "galleries", name)
        )
        baseline[name] = {
            f"baseline{end}": found[key] for end, key in (("", "purity"), ("_low", "low"), ("_high", "high"))
        }
    tokens = _tokens(space) if config.maps else None
    kept: dict[int, np.ndarray] = {}
    atoms, shown = [], []
    for name, seed, dictionary, codes in space.each_fit():
        if config.dictionaries is not None and name not in config.dictionaries:
            continue
        fit = {"dictionary": name, "method": space.methods[name], "seed": seed}
        places = seeded(config.seed, "galleries", name, seed)
        auroc = RankedCodes(codes[train]).auroc(np.stack([classes[train] == each for each in names], axis=1))
        best = np.nan_to_num(auroc, nan=0.0)
        order = np.argsort(-best.max(axis=1), kind="stable")[: config.atoms]
        for rank, atom in enumerate(order, start=1):
            called = str(names[best[atom].argmax()])
            code = codes[:, [atom]][test].toarray().ravel()
            member = classes[test] == called
            atoms.append(
                {
                    **fit,
                    "label": config.label,
                    "atom": atom,
                    "rank": rank,
                    "best_class": called,
                    "auroc_train": best[atom].max(),
                    **purity(code, member, space.groups[test], config, [*places, int(atom)]),
                    **baseline[called],
                    **brightness(code, bright, space.groups[test], config, [*places, int(atom)]),
                    "n_active": int((code != 0).sum()),
                    "n": len(test),
                }
            )
            for kind, rows in _chosen(space, config, code, test, [*places, int(atom)]).items():
                for position, row in enumerate(rows):
                    if tokens is not None and row not in kept:
                        kept[row] = tokens(row)
                    heat = None
                    if row in kept and len(kept[row]):
                        heat = dictionary.encode(kept[row]).to_scipy()[:, [atom]].toarray().ravel()
                    shown.append(
                        {
                            **fit,
                            "atom": atom,
                            "rank": rank,
                            "kind": kind,
                            "position": position,
                            "sample_id": space.obs.index[row],
                            "class": classes[row],
                            "batch": space.obs["batch"].iloc[row],
                            "group": space.groups[row],
                            "code": float(codes[row, atom]),
                            "pixels": np.ascontiguousarray(crops[row], "<u2").tobytes(),
                            "shape": "×".join(map(str, crops[row].shape)),
                            "map": None if heat is None else heat.astype("<f4").tobytes(),
                            "patches": 0 if heat is None else len(heat),
                        }
                    )
    # A model of which no dictionary is shown has empty tables.
    found = {"galleries": atoms, "galleries_crops": shown}
    return {table: [pd.DataFrame(rows)] if rows else [] for table, rows in found.items()}


def _brightest(
    crops: np.ndarray, classes: np.ndarray, names: np.ndarray, train: np.ndarray, test: np.ndarray
) -> dict[str, np.ndarray]:
    """Per class the intensity feature of the largest AUROC on training crops, turned so that it grows: (n test,)."""
    from scipy import sparse

    values = {
        part: np.concatenate([intensity_features(np.asarray(crops[row])[None]) for row in rows])
        for part, rows in (("train", train), ("test", test))
    }
    auroc = RankedCodes(sparse.csr_matrix(values["train"])).auroc(
        np.stack([classes[train] == name for name in names], axis=1)
    )
    strength = np.abs(np.nan_to_num(auroc, nan=0.5) - 0.5)
    best = strength.argmax(axis=0)
    return {
        str(name): values["test"][:, feature] * (1 if auroc[feature, number] >= 0.5 else -1)
        for number, (name, feature) in enumerate(zip(names, best))
    }


def purity(
    code: np.ndarray, member: np.ndarray, groups: np.ndarray, config: Galleries, seed: list[int]
) -> dict[str, float]:
    """Share of a class among the samples with the largest codes, with its interval and its null.

    Parameters
    ----------
    code
        (n,) codes of one atom. Among equal codes the order is that of the samples, shuffled by seed.
    member
        (n,) bool, whether a sample is of the class.
    groups
        (n,) group of each sample, the unit of the bootstrap.
    """
    rng = np.random.default_rng([*seed, 0])
    n_top = max(1, round(config.share * len(code)))
    order = np.lexsort((rng.permutation(len(code)), -code))
    number, _ = group_codes(groups)
    weights = bootstrap_groups(groups, config.bootstraps, [*seed, 1])[:, number[order]]
    # The first n_top of the resampled crops: the last one counts with what is left of n_top.
    before = np.cumsum(weights, axis=1) - weights
    taken = np.clip(n_top - before, 0, weights)
    low, high = interval((taken * member[order]).sum(1) / taken.sum(1), config.confidence)
    null = rng.hypergeometric(member.sum(), (~member).sum(), n_top, size=max(1000, config.permutations)) / n_top
    null_low, null_high = interval(null, config.confidence)
    return {
        "purity": float(member[order[:n_top]].mean()),
        "low": float(low),
        "high": float(high),
        "null": float(member.mean()),
        "null_low": float(null_low),
        "null_high": float(null_high),
        "n_top": n_top,
    }


def brightness(
    code: np.ndarray, bright: np.ndarray, groups: np.ndarray, config: Galleries, seed: list[int]
) -> dict[str, float]:
    """Spearman's ρ of an atom's codes (n,) and the samples' mean pixels (n,), with its interval and its null.

    A bootstrap draw weights the samples, and keeps their ranks. NaN where one of the two does not vary.
    """
    from scipy.stats import rankdata

    x, y = (rankdata(values) - (len(values) + 1) / 2 for values in (code, bright))
    number, names = group_codes(groups)

    def correlation(weights: np.ndarray) -> np.ndarray:
        total = weights.sum(axis=1)
        mean_x, mean_y = weights @ x / total, weights @ y / total
        both = weights @ (x * y) / total - mean_x * mean_y
        spread = (weights @ x**2 / total - mean_x**2) * (weights @ y**2 / total - mean_y**2)
        return np.divide(both, np.sqrt(np.maximum(spread, 0)), out=np.full(len(both), np.nan), where=spread > 1e-12)

    drawn = correlation(bootstrap_groups(groups, config.bootstraps, [*seed, 3])[:, number].astype(np.float64))
    low, high = interval(drawn, config.confidence)
    moved = permutations(y, config.permutations, [*seed, 4], None if len(names) == len(code) else groups)
    length = np.sqrt((x @ x) * (y @ y))
    null = moved @ x / length if length > 0 else np.full(len(moved), np.nan)
    null_low, null_high = interval(null, config.confidence)
    return {
        "brightness": float(x @ y / length) if length > 0 else float("nan"),
        "brightness_low": float(low),
        "brightness_high": float(high),
        "brightness_null_low": float(null_low),
        "brightness_null_high": float(null_high),
    }


def _chosen(
    space: Space, config: Galleries, code: np.ndarray, test: np.ndarray, seed: list[int]
) -> dict[str, np.ndarray]:
    """Rows of the crops with the largest codes, and of controls of the same batches drawn by seed."""
    order = test[np.argsort(-code, kind="stable")]
    top = order[: config.crops]
    batches = space.obs["batch"].astype(str).to_numpy()
    controls = test[space.control[test] & np.isin(batches[test], batches[top])]
    controls = np.setdiff1d(controls if len(controls) else test[space.control[test]], top)
    rng = np.random.default_rng([*seed, 2])
    return {"top": top, "control": rng.permutation(controls)[: config.controls]}


def _tokens(space: Space) -> Callable[[int], np.ndarray] | None:
    """Whitened patch tokens (patches, d) of a crop by its row; None for a model that has none."""
    if space.model is None or not hasattr(space.model[0], "prefix_tokens"):
        return None
    from conceptome.models.vision import token_reader

    config, weights = space.model
    read = token_reader(config, space.dataset, weights, space.threads)

    def whitened(row: int) -> np.ndarray:
        return space.whitening.transform(read(row))

    return whitened
