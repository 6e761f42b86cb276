"""Which layer to take: accuracy and intrinsic dimension against layer, the layer chosen on validation alone."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from conceptome.config.evidence import Measures
from conceptome.errors import DataError
from conceptome.measures.intrinsic_dimension import neighbours, two_nn
from conceptome.measures.probes import Judge, penalty_path, scaled
from conceptome.measures.rows import Classes, choose_rows, classes_of, seeded
from conceptome.measures.tables import PLACE
from conceptome.statistics import interval, jackknife_groups, permutations

if TYPE_CHECKING:
    import pandas as pd

    from conceptome.activations import Store
    from conceptome.config.further import Layers
    from conceptome.measures.space import Space

log = logging.getLogger(__name__)

# Options in which two layers of one model may differ.
NOT_THE_MODEL = ("layer", "also_layers", "dtype", "rows_per_shard")
_SCORES = {
    f"{split}{part}": "float64"
    for split in ("validation", "test")
    for part in ("", "_low", "_high", "_null", "_null_low", "_null_high")
}
TABLES: dict[str, dict[str, str]] = {
    "layers": {
        **PLACE,
        "layer": "int64",
        "chosen": "bool",
        "label": "object",
        "role": "object",
        **_SCORES,
        "strength": "float64",
        "chance": "float64",
        "n_classes": "int64",
        "n_train": "int64",
        "n_validation": "int64",
        "n_test": "int64",
        "n_groups_validation": "int64",
        "n_groups_test": "int64",
        "excluded": "object",
        "group_is": "object",
        "criterion": "object",
        "d": "int64",
    },
    "layers_dimension": {
        **PLACE,
        "layer": "int64",
        "chosen": "bool",
        "dimension": "float64",
        "low": "float64",
        "high": "float64",
        "null": "float64",
        "null_low": "float64",
        "null_high": "float64",
        "d": "int64",
        "n": "int64",
    },
}


def same_model(a: Store, b: Store) -> bool:
    """Whether two stores are of the same weights and options but for the layer: a shuffled model is another one."""

    def of(store: Store) -> tuple:
        options = {key: value for key, value in store.card.get("options", {}).items() if key not in NOT_THE_MODEL}
        return store.card.get("adapter"), options, store.card.get("weights_sha256")

    return of(a) == of(b)


def stores(space: Space) -> dict[int, Store]:
    """Activations by layer: those of the model, of the further layers beside it, and of the other models named.

    Raises
    ------
    DataError
        A layer is no number, or is there twice.
    """
    beside = getattr(space.store, "layers", dict)
    named = [(name, store) for name, store in space.others.items() if same_model(space.store, store)]
    each = [(space.place["model"], space.store), *((str(n), store) for n, store in beside().items()), *named]
    found: dict[int, Any] = {}
    for name, store in each if len(each) > 1 else ():
        # A graph's layer is a tensor's name; its number is told beside it.
        layer = store.card.get("layer_number", store.card.get("layer"))
        if not isinstance(layer, int):
            raise DataError(f"measure 'layers': the activations of '{name}' are of layer {layer!r}, which is no number")
        if layer in found:
            raise DataError(
                f"measure 'layers': layer {layer} is there twice: take '{name}' out of measures.layers.models"
            )
        found[layer] = store
    return dict(sorted(found.items()))


def curve(x: np.ndarray, classes: Classes, config: Layers, group_is: str) -> dict[str, Any]:
    """Balanced accuracy of a linear probe on validation and on test groups, each with interval and null.

    The penalty is chosen on validation; nothing is chosen on test.

    Parameters
    ----------
    x
        (n, d) activations of the label's samples.
    """
    train = classes.part("train")
    parts = {name: classes.part(name) for name in ("validation", "test")}
    n_classes = len(classes.names)
    row: dict[str, Any] = {
        "label": classes.label,
        "role": classes.role,
        **dict.fromkeys([*_SCORES, "strength"], np.nan),
        "chance": 1.0 / n_classes if n_classes else np.nan,
        "n_classes": n_classes,
        "n_train": int(train.sum()),
        **{f"n_{name}": int(mask.sum()) for name, mask in parts.items()},
        **{f"n_groups_{name}": len(np.unique(classes.groups[mask])) for name, mask in parts.items()},
        "excluded": "; ".join(classes.excluded),
        "group_is": group_is,
        "d": x.shape[1],
    }
    if n_classes < 2:
        return row
    settings = Measures(seed=config.seed, probe_max_iterations=config.max_iterations)
    values = scaled(_sparse(x), train)
    y = classes.y[train]
    judges = {
        name: Judge(
            classes.y[mask], classes.groups[mask], n_classes, config.bootstraps, seeded(config.seed, "layers", name)
        )
        for name, mask in parts.items()
    }
    strengths = sorted(config.strengths)
    scores = []
    for model in penalty_path(values[train], y, strengths, settings):
        scores.append({name: judges[name](model.predict(values[mask])) for name, mask in parts.items()})
    best = int(np.argmax([score["validation"][0] for score in scores]))
    row["strength"] = strengths[best]
    nulls: dict[str, list[tuple[float, np.ndarray]]] = {name: [] for name in parts}
    drawn = permutations(y, config.permutations, seeded(config.seed, "layers", "permutation"), classes.groups[train])
    for labels in drawn:
        model = next(penalty_path(values[train], labels, strengths[best : best + 1], settings))
        for name, mask in parts.items():
            nulls[name].append(judges[name](model.predict(values[mask])))
    for name in parts:
        estimate, draws = scores[best][name]
        low, high = interval(draws, config.confidence)
        null_low, null_high = interval(np.concatenate([spread for _, spread in nulls[name]]), config.confidence)
        row |= {name: estimate, f"{name}_low": float(low), f"{name}_high": float(high)}
        row |= {f"{name}_null": float(np.mean([value for value, _ in nulls[name]]))}
        row |= {f"{name}_null_low": float(null_low), f"{name}_null_high": float(null_high)}
    return row


def _sparse(x: np.ndarray) -> Any:
    from scipy import sparse

    return sparse.csr_matrix(x)


def choose(table: pd.DataFrame, criterion: str) -> int:
    """Layer of the best mean validation accuracy over biological labels, or the earliest that is as good.

    Parameters
    ----------
    table
        Rows per layer and label, of `curve`. No test number is looked at.
    criterion
        best: the highest mean (the lowest layer among equals); earliest: the lowest layer whose mean is not below the
        mean lower bound of the best one's.

    Raises
    ------
    DataError
        No biological label has two classes on validation groups.
    """
    rows = table[(table["role"] == "biological") & table["validation"].notna()]
    if rows.empty:
        raise DataError(
            "measure 'layers': no biological label has two classes to choose a layer by: see measures.layers.labels "
            "and min_groups_per_class"
        )
    means = rows.groupby("layer")[["validation", "validation_low"]].mean().sort_index()
    best = int(means["validation"].idxmax())
    if criterion == "best":
        return best
    low = means.loc[best, "validation_low"]
    bound = low if np.isfinite(low) else means.loc[best, "validation"]
    return int(means.index[means["validation"] >= bound][0])


def dimension(x: np.ndarray, groups: np.ndarray, config: Layers, layer: int) -> dict[str, Any]:
    """TwoNN of rows x (n, d), as in the measure `intrinsic_dimension`: exact repeats left out, Gaussian null."""
    _, kept = np.unique(x, axis=0, return_index=True)
    kept = np.sort(kept)
    x, groups = x[kept], groups[kept]
    if len(x) < 3 * config.folds:
        raise DataError(
            f"measure 'layers': layer {layer} has {len(x)} distinct samples, too few for an intrinsic dimension in "
            f"{config.folds} folds: lower measures.layers.folds"
        )

    def estimate(rows: np.ndarray) -> np.ndarray:
        return np.array([two_nn(neighbours(rows, 2)[0], config.discarded)])

    value = estimate(x)
    low, high = jackknife_groups(
        lambda chosen: estimate(x[chosen]),
        groups,
        value,
        folds=config.folds,
        confidence=config.confidence,
        seed=seeded(config.seed, "layers", "folds"),
    )
    rng = np.random.default_rng(seeded(config.seed, "layers", "null", layer))
    _, strength, axes = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    root = strength[:, None] / np.sqrt(len(x)) * axes
    null = np.concatenate([estimate(rng.normal(size=(len(x), len(root))) @ root) for _ in range(config.null_draws)])
    null_low, null_high = interval(null, config.confidence)
    return {
        "layer": layer,
        "dimension": float(value[0]),
        "low": float(low[0]),
        "high": float(high[0]),
        "null": float(null.mean()),
        "null_low": float(null_low),
        "null_high": float(null_high),
        "d": x.shape[1],
        "n": len(x),
    }


def measure(space: Space, config: Layers) -> dict[str, list[pd.DataFrame]]:
    """Probe every layer's activations, choose one on validation, and estimate each one's intrinsic dimension.

    Balanced accuracy of class-balanced logistic regressions on the activations as the model gives them (each dimension
    scaled by its deviation): on validation groups, by which the layer is chosen, and on test groups, which no choice
    looks at. That of validation is optimistic, since the penalty is chosen on it as well; the test accuracy of the
    chosen layer is the one to report.

    Parameters
    ----------
    space
        One space per model. Layers come from `also_layers` of the model and from `config.models`.

    A model of which a single layer was stored (`also_layers` is empty, and no other model named is of its weights and
    options), or which `config.models` names itself, gives no rows.

    Raises
    ------
    DataError
        A label is missing or numeric, or no label to choose by is left.

    References
    ----------
    Valeriani et al. 2023 (arXiv 2302.00294): intrinsic dimension against layer. Facco et al. 2017: TwoNN.
    """
    import pandas as pd

    every = {} if space.place["model"] in config.models else stores(space)
    if not every:
        log.warning("layers: %s has no further layers here, so that there is no curve of it", space.place["model"])
        return {}
    group_is = str(space.card.get("group_is", "group"))
    chosen = [classes_of(space, config, label, "classes") for label in config.labels]
    rows = choose_rows(
        np.ones(len(space.split), dtype=bool), config.dimension_rows, seeded(config.seed, "layers", "dimension")
    )
    found, dimensions = [], []
    for layer, store in every.items():
        found += [{"layer": layer, **curve(store.read(each.rows), each, config, group_is)} for each in chosen]
        dimensions.append(dimension(store.read(rows).astype(np.float64), space.groups[rows], config, layer))
    table = pd.DataFrame(found).assign(criterion=config.criterion)
    layer = choose(table, config.criterion)
    return {
        "layers": [table.assign(chosen=table["layer"] == layer)],
        "layers_dimension": [pd.DataFrame(dimensions).assign(chosen=lambda frame: frame["layer"] == layer)],
    }
