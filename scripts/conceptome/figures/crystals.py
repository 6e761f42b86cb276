"""Crystals: whether a step between two classes, or their atoms, is the same beside every class of another label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from conceptome.figures import captions, style
from conceptome.figures.panels import (
    KEYS,
    Drawing,
    dictionaries,
    dot_rows,
    label_title,
    main_models,
    over_seeds,
    short_title,
    unique,
    usable,
    whitenings,
)
from conceptome.figures.space_rows import label, space_rows, spaces

if TYPE_CHECKING:
    import pandas as pd

NEEDED = ["dataset", "model", "whitening", "points", "dictionary", "method", "seed", "shape", "step", "beside"]
NEEDED += ["projection", "silhouette", "low", "high", "null", "null_low", "null_high", "p", "random_high"]
NEEDED += ["n_relations", "n_columns", "n_steps", "n"]
FIT = ["dictionary", "method", "seed"]
TITLES = {"none": "all directions", "LDA": "shared directions (LDA)"}
MARKERS = "os^Dv<>Ph*Xd"


def draw(tables: Mapping[str, pd.DataFrame], cards: Mapping[str, Mapping[str, Any]]) -> Drawing:
    """Draw silhouettes of class means of all spaces and pairs, without and with the projection; below, those of atoms.

    At the bottom are the steps between class means themselves.
    """
    import pandas as pd

    every = usable(tables, "crystals", NEEDED, "crystals")
    every = every[every["shape"] == "parallelogram"]
    # A row of class means owes nothing to a dictionary, and so names none.
    frame = every[every["points"] == "classes"].drop(columns=FIT)
    atoms = _first_pair(every[(every["points"] == "atoms") & (every["projection"] == "LDA")], cards)
    steps = tables.get("crystals_steps", pd.DataFrame())
    keys = [
        (space, *pair)
        for space in spaces(frame)
        for pair in dict.fromkeys(
            (row["step"], row["beside"])
            for row in frame.to_dict("records")
            if (row["dataset"], row["model"], row["whitening"]) == space
        )
    ]
    firsts = _first_pairs(frame, cards) if len(steps) else []
    of = dictionaries(atoms) if len(atoms) else []
    heights = [9 + 6.5 * len(keys)] + [10 + 4.5 * len(of)] * bool(of) + [50] * bool(firsts)
    figure = style.new_figure(20 + sum(heights))
    parts = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    drawing = Drawing(figure, "Steps between classes: the same beside every class of another label?")
    letters = style.letters()
    indexed = frame.set_index(["dataset", "model", "whitening", "step", "beside", "projection"])
    names = [
        f"{label(space, cards[space[0]])}\n{label_title(cards[space[0]], step)} beside "
        f"{label_title(cards[space[0]], beside)}"
        for space, step, beside in keys
    ]
    for panel, projection in zip(parts[0].subplots(1, 2, sharey=True), TITLES):
        table = indexed.loc[[(*space, *pair, projection) for space, *pair in keys]].reset_index()
        space_rows(panel, table, "silhouette", names)
        panel.axvline(0, color=style.REFERENCE_COLOUR, lw=0.5, zorder=0)
        panel.set_xlim(-1.05, 1.05)
        letter = next(letters)
        style.mark(panel, letter, TITLES[projection])
        panel.set_xlabel("silhouette (1: same step everywhere)")
        drawing.add(letter, table)
    if of:
        summary = over_seeds(atoms, [*KEYS, "step", "beside"], "silhouette", keep=["random_high"], nulls=True)
        shown = unique(atoms["dataset"])
        for panel, data in zip(parts[1].subplots(1, len(shown), squeeze=False, sharey=True)[0], shown):
            here, seeds = (each[each["dataset"] == data] for each in (summary, atoms))
            dot_rows(panel, here, "silhouette", of, seeds=seeds)
            panel.axvline(0, color=style.REFERENCE_COLOUR, lw=0.5, zorder=0)
            panel.set_xlim(-1.05, 1.05)
            letter = next(letters)
            style.mark(panel, letter, f"atoms, {short_title(cards[data], data, here['model'].iloc[0])}")
            panel.set_xlabel("silhouette after LDA")
            drawing.add(letter, here, seeds[[*KEYS, "seed", "silhouette"]])
    if firsts:
        for panel, key in zip(parts[-1].subplots(1, len(firsts), squeeze=False)[0], firsts):
            names_of = ["dataset", "model", "whitening", "step", "beside"]
            part = steps[(steps[names_of] == list(key)).all(axis=1) & (steps["projection"] == "LDA")]
            letter = next(letters)
            # One relation and its reverse have one shared direction: the classes beside stand below one another.
            single = not part["y"].any()
            if single:
                part = part.drop(columns="y")
            beside = {name: place for place, name in enumerate(unique(part["column"]))}
            for number, (relation, points) in enumerate(part.groupby("relation", sort=False)):
                colour = style.SERIES[number % len(style.SERIES)]
                marker = MARKERS[number % len(MARKERS)]
                y = points["column"].map(beside) if single else points["y"]
                panel.plot(points["x"], y, marker, ms=3, mew=0, alpha=0.85, color=colour, label=relation)
            style.mark(panel, letter, f"{key[0]}: {label_title(cards[key[0]], key[3])}")
            panel.set_xlabel("step along the shared direction" if single else "step, shared direction 1")
            if single:
                panel.axvline(0, color=style.REFERENCE_COLOUR, lw=0.5, zorder=0)
                panel.set_yticks(range(len(beside)), list(beside) if len(beside) <= 16 else [])
                panel.set_ylim(len(beside) - 0.5, -0.5)
            else:
                panel.plot([0], [0], "+", color=style.REFERENCE_COLOUR, ms=5, mew=0.8)
                panel.set_ylabel("shared direction 2")
            if part["relation"].nunique() <= 4:
                panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=1 if len(firsts) > 2 else 2)
            drawing.add(letter, part)
    handles = [*style.whitening_handles(whitenings(frame), markers=True)]
    style.legend_below(figure, [*handles, style.null_handle("null: pairs permuted")])
    of_atoms = captions.several(
        f"{data} {captions.span(part['n_steps'].tolist())} steps between atoms"
        for data, part in (atoms.groupby("dataset", sort=False) if of else ())
    )
    facts = captions.several(
        f"{space[0]}/{space[1]} {style.whitening_label(space[2])}, {step} beside {beside}: "
        + ", ".join(
            f"{captions.number(row['silhouette'])} [{captions.number(row['low'])}, {captions.number(row['high'])}] "
            f"{'after' if projection == 'LDA' else 'before'} LDA (null {captions.number(row['null'])}, "
            f"p {captions.number(row['p'], 3)})"
            for projection in TITLES
            for row in [indexed.loc[(*space, step, beside, projection)]]
        )
        for space, step, beside in keys
    )
    sizes = captions.several(
        f"{data} {captions.span(part['n'].tolist())} samples, {captions.span(part['n_steps'].tolist())} steps, "
        f"{captions.span(part['n_columns'].tolist())} classes beside"
        for data, part in frame.groupby("dataset", sort=False)
    )
    datasets = unique(frame["dataset"])
    drawing.sentences = [
        "A step is the difference of two class means, such as stimulated minus control, taken beside each class of "
        "another label, such as each cell type. The silhouette says whether steps of one kind are the "
        "same vector (1), or "
        "no more alike than steps of different kinds (0 or below). Directions in which classes differ for "
        "other reasons "
        "can hide it; a linear discriminant analysis (LDA), learned beside some classes and judged beside the others, "
        f"projects them away. n: {sizes}.",
        f"Silhouette: {facts}.",
        *(["Middle: decoder atoms in the place of class means, of each pair of classes the atom that stands for it, "
           f"after LDA (first model and pair of labels; {of_atoms}); a dictionary with fewer atoms than pairs of "
           "classes is left out. " + captions.seeds_sentence(atoms["seed"].nunique()) + " Atoms drawn at random from "
           "the same dictionary are a second null (column random_high in the table: the upper end of its interval).",
           ] if of else []),
        *(["Below: every step after LDA as a point, in directions learned without its own class, one "
           "colour per kind of "
           "step; the cross or line is no step at all. Units are those of the within-step spread."] if firsts else []),
        captions.further_interval(cards, datasets, "crystals", "bootstrap"),
        "Null (grey): classes permuted beside each class of the other label, so that points stay and pairs do not; all "
        "other pairings where they are few, which bounds p from below.",
        *captions.warnings(cards, datasets, dict.fromkeys(zip(frame["dataset"], frame["model"]))),
    ]  # fmt: skip
    return drawing


def _first_pair(atoms: pd.DataFrame, cards: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Of each data set the rows of the first model and of its first pair of labels: a fixed choice."""
    if atoms.empty:
        return atoms
    atoms = main_models(atoms, cards)
    first = atoms.groupby("dataset", sort=False)[["step", "beside"]].transform("first")
    return atoms[(atoms[["step", "beside"]] == first).all(axis=1)]


def _first_pairs(frame: pd.DataFrame, cards: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Of each data set the first pair on the first model, whitened where it can be: a fixed choice."""
    chosen = []
    for _, part in main_models(frame, cards).groupby("dataset", sort=False):
        shown = whitenings(part)
        row = part[part["whitening"] == shown[min(1, len(shown) - 1)]].iloc[0]
        chosen.append(tuple(row[key] for key in ("dataset", "model", "whitening", "step", "beside")))
    return chosen
