"""Codes against dose: the atoms that follow an ordinal label, judged on samples they were not chosen on."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from conceptome.errors import DataError
from conceptome.measures.rows import choose_rows, class_name, seeded
from conceptome.measures.tables import FIT
from conceptome.statistics import RankedCodes, bootstrap_groups, group_codes, interval, monotone_association

if TYPE_CHECKING:
    import pandas as pd
    from scipy import sparse

    from conceptome.config.further import DoseCurves
    from conceptome.measures.space import Space

TABLES = {
    "dose_curves": {
        **FIT,
        "label": "object",
        "atom": "int64",
        "name": "object",
        "rank": "int64",
        "dose": "float64",
        "mean": "float64",
        "low": "float64",
        "high": "float64",
        "null": "float64",
        "null_low": "float64",
        "null_high": "float64",
        "n_groups": "int64",
        "n": "int64",
    },
    "dose_curves_atoms": {
        **FIT,
        "label": "object",
        "atom": "int64",
        "name": "object",
        "rank": "int64",
        "effect_train": "float64",
        "effect": "float64",
        "low": "float64",
        "high": "float64",
        "null": "float64",
        "null_low": "float64",
        "null_high": "float64",
        "auroc": "float64",
        "auroc_low": "float64",
        "auroc_high": "float64",
        "control_auroc": "float64",
        "control_auroc_high": "float64",
        "control_pairs": "int64",
        "n_active": "int64",
        "n": "int64",
    },
}


def measure(space: Space, config: DoseCurves) -> dict[str, list[pd.DataFrame]]:
    """Follow a label's dose through the codes of each fit.

    Of every fit the `atoms` atoms with the largest |Spearman's ρ| between code and dose on the TRAINING split are
    taken; all that is reported of them comes from the test split.

    `dose_curves`: mean code at each dose, interval by bootstrap over groups; null: the mean and interval of the same
    number of whole groups' codes after groups' doses are permuted. `dose_curves_atoms`: ρ (null: permuted labels, whole
    groups together); the AUROC of the highest dose against the controls of the same batches, above one half; and beside
    it the null of control against control: the same AUROC between the controls of every two batches (median and
    largest), in which there is nothing but what sets two batches apart.

    Raises
    ------
    DataError
        The label is not an ordinal or numeric column of the data set, or has one value on the training or test split.
    """
    import pandas as pd

    described = space.card.get("labels", {}).get(config.label)
    if described is None or described["kind"] == "categorical":
        raise DataError(
            f"measures.dose_curves: label '{config.label}' is not an ordinal or numeric label of the data set: declare "
            "it under dataset.labels"
        )
    doses = space.obs[config.label].to_numpy(np.float64)
    known = np.isfinite(doses)
    train, test = (
        choose_rows(known & (space.split == name), config.max_rows, seeded(config.seed, "dose_curves", name))
        for name in ("train", "test")
    )
    for name, rows in (("training", train), ("test", test)):
        if len(np.unique(doses[rows])) < 2:
            raise DataError(f"measures.dose_curves: '{config.label}' has fewer than two values on the {name} split")
    names = space.store.card.get("dimension_names")
    level = np.unique(doses[train], return_inverse=True)[1].astype(np.float64)
    curves, atoms = [], []
    for name, seed, _, codes in space.each_fit():
        learned = RankedCodes(codes[train]).spearman(level)[:, 0]
        order = np.argsort(-np.abs(np.nan_to_num(learned)), kind="stable")[: config.atoms]
        chosen = codes[:, order].tocsr()
        places = seeded(config.seed, "dose_curves", name, seed)
        table = monotone_association(
            chosen[test],
            doses[test],
            space.groups[test],
            bootstraps=config.bootstraps,
            permutations=config.permutations,
            confidence=config.confidence,
            seed=places,
        )
        fit = {"dictionary": name, "method": space.methods[name], "seed": seed, "label": config.label}
        # The identity's atoms are the model's own dimensions, which may have names.
        own = names if names and space.methods[name] == "identity" and len(names) == codes.shape[1] else None
        called = [own[atom] if own else str(atom) for atom in order]
        table = table.drop(columns=["p"]).assign(
            **fit, atom=order, name=called, rank=np.arange(1, len(order) + 1), effect_train=learned[order]
        )
        atoms.append(table.join(pd.DataFrame(_against_controls(space, config, chosen, doses, test, places))))
        curve = _curves(chosen[test].toarray(), doses[test], space.groups[test], config, places)
        position = curve.pop("position").to_numpy()
        curves.append(
            curve.assign(**fit, atom=order[position], name=np.array(called, object)[position], rank=position + 1)
        )
    return {"dose_curves": curves, "dose_curves_atoms": atoms}


def _curves(
    codes: np.ndarray, doses: np.ndarray, groups: np.ndarray, config: DoseCurves, seed: list[int]
) -> pd.DataFrame:
    """Mean code (n, atoms) at each dose, with its interval and its null, one row per dose and atom (`position`)."""
    import pandas as pd

    # A group may hold several doses (a plate does): what is drawn and permuted is a group's samples of one dose.
    units = np.array([f"{group}|{class_name(dose)}" for group, dose in zip(groups, doses)], dtype=object)
    number, names = group_codes(units)
    sums = np.zeros((len(names), codes.shape[1]))
    np.add.at(sums, number, codes)
    sizes = np.bincount(number, minlength=len(names)).astype(np.float64)
    dose_of = np.array([doses[number == unit][0] for unit in range(len(names))])
    rng = np.random.default_rng([*seed, 3])
    rows = []
    for dose in np.unique(doses):
        here = np.flatnonzero(dose_of == dose)
        low = high = np.full(codes.shape[1], np.nan)
        if len(here) > 1:
            weights = bootstrap_groups(here, config.bootstraps, [*seed, 4])
            drawn = (weights @ sums[here]) / (weights @ sizes[here])[:, None]
            low, high = interval(drawn, config.confidence)
        dealt = [rng.permutation(len(names))[: len(here)] for _ in range(config.permutations)]
        null = np.stack([sums[units_].sum(0) / sizes[units_].sum() for units_ in dealt])
        null_low, null_high = interval(null, config.confidence)
        rows.append(
            pd.DataFrame(
                {
                    "position": np.arange(codes.shape[1]),
                    "dose": dose,
                    "mean": sums[here].sum(0) / sizes[here].sum(),
                    "low": low,
                    "high": high,
                    "null": null.mean(0),
                    "null_low": null_low,
                    "null_high": null_high,
                    "n_groups": len(here),
                    "n": int(sizes[here].sum()),
                }
            )
        )
    return pd.concat(rows, ignore_index=True)


def _against_controls(
    space: Space, config: DoseCurves, codes: sparse.csr_matrix, doses: np.ndarray, test: np.ndarray, seed: list[int]
) -> dict[str, np.ndarray]:
    """AUROC of the highest dose against controls of the same batches, and of controls against controls, per atom."""
    m = codes.shape[1]
    found = {name: np.full(m, np.nan) for name in ("auroc", "auroc_low", "auroc_high", "control_auroc")}
    batches = space.obs["batch"].astype(object).where(space.obs["batch"].notna(), "").astype(str).to_numpy()
    highest = test[doses[test] == doses[test].max()]
    controls = test[space.control[test] & np.isin(batches[test], np.unique(batches[highest]))]
    # A control that is counted as the highest dose is no control of it.
    controls = np.setdiff1d(controls, highest)
    if len(controls):
        rows = np.concatenate([highest, controls])
        is_high = np.isin(rows, highest)
        ranked = RankedCodes(codes[rows])
        auroc = ranked.auroc(is_high)[:, 0]
        found["auroc"] = above_half(auroc)
        number, names = group_codes(space.groups[rows])
        if len(names) > 1:
            weights = bootstrap_groups(space.groups[rows], config.bootstraps, [*seed, 5])
            draws = ranked.auroc_draws(is_high, weights[:, number])[:, :, 0]
            # The direction is the estimate's in every draw: turned draw by draw, chance would look like an effect.
            low, high = interval(np.where(auroc < 0.5, 1 - draws, draws), config.confidence)
            found["auroc_low"], found["auroc_high"] = low, high
    pairs = []
    control = np.flatnonzero(space.control)
    for one, other in combinations(np.unique(batches[control]), 2):
        rows = control[np.isin(batches[control], [one, other])]
        pairs.append(above_half(RankedCodes(codes[rows]).auroc(batches[rows] == one)[:, 0]))
    if pairs:
        found["control_auroc"] = np.median(pairs, axis=0)
    found["control_auroc_high"] = np.max(pairs, axis=0) if pairs else np.full(m, np.nan)
    return {**found, "control_pairs": np.full(m, len(pairs))}


def above_half(auroc: np.ndarray) -> np.ndarray:
    """Turn an AUROC below one half around: how well a code separates, in either direction."""
    return np.maximum(auroc, 1 - auroc)
