"""Power-law slope of the eigenvalues of activations and atoms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from conceptome.figures import captions, style
from conceptome.figures.panels import (
    KEYS,
    Drawing,
    dictionaries,
    dot_rows,
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

VALUES = ["slope", "low", "high", "null", "null_low", "null_high", "n"]


def draw(tables: Mapping[str, pd.DataFrame], cards: Mapping[str, Mapping[str, Any]]) -> Drawing:
    """Draw the slopes of the activations of all spaces, and below those of the atoms, one panel per data set."""
    frame = usable(tables, "eigenvalue_slope", [*KEYS, "seed", *VALUES], "eigenvalue_slope")
    every = usable(
        tables, "eigenvalue_slope_activations", ["dataset", "model", "whitening", *VALUES], "eigenvalue_slope"
    )
    atoms = main_models(frame, cards)
    datasets, rows, of = unique(atoms["dataset"]), spaces(every), dictionaries(atoms)
    heights = [6 + 5 * len(rows), 8 + 4.5 * len(of)]
    figure = style.new_figure(26 + sum(heights))
    above, below = figure.subfigures(2, 1, height_ratios=heights)
    drawing = Drawing(figure, "Power-law slope of the eigenvalues")
    letters = style.letters()
    table = every.set_index(["dataset", "model", "whitening"]).loc[rows].reset_index()
    panel = above.subplots()
    space_rows(panel, table, "slope", [label(space, cards[space[0]]) for space in rows])
    letter = next(letters)
    style.mark(panel, letter, "activations")
    panel.set_xlabel("slope of eigenvalue on rank (log–log; 0: round cloud)")
    drawing.add(letter, table)
    summary = over_seeds(atoms, KEYS, "slope", nulls=True)
    axes = below.subplots(1, len(datasets), squeeze=False, sharey=True)[0]
    for panel, data in zip(axes, datasets):
        here, seeds = summary[summary["dataset"] == data], atoms[atoms["dataset"] == data]
        dot_rows(panel, here, "slope", of, seeds=seeds)
        letter = next(letters)
        style.mark(panel, letter, f"atoms, {short_title(cards[data], data, here['model'].iloc[0])}")
        panel.set_xlabel("slope (log–log)")
        drawing.add(letter, here, seeds[[*KEYS, "seed", "slope"]])
    handles = [
        *style.whitening_handles(whitenings(atoms), markers=True),
        style.null_handle("null: round Gaussian cloud"),
    ]
    style.legend_below(figure, handles)
    sizes = captions.several(f"{data} {captions.span(part['n'].tolist())}" for data, part in every.groupby("dataset"))
    counts = captions.several(f"{data} {captions.span(part['n'].tolist())}" for data, part in atoms.groupby("dataset"))
    facts = captions.several(
        f"{label(space, cards[space[0]])} {captions.number(row['slope'])} "
        f"[{captions.number(row['low'])}, {captions.number(row['high'])}] (null {captions.number(row['null'])})"
        for space, row in zip(rows, table.to_dict("records"))
    )
    drawing.sentences = [
        "Variance along the k-th principal direction falls as a power of k; the slope of that fall on logarithmic axes "
        "is shown. Near the null the cloud is round; the further left, the fewer directions hold it. "
        f"n samples behind the activations: {sizes}; n atoms: {counts}.",
        f"Activations: {facts}.",
        captions.further_interval(cards, unique(every["dataset"]), "eigenvalue_slope")
        + " Atoms: jackknife over atoms. "
        + captions.seeds_sentence(atoms["seed"].nunique()),
        "Null (grey): isotropic Gaussian clouds with as many points and dimensions, whose sample eigenvalues fall too.",
        *captions.warnings(cards, unique(every["dataset"]), dict.fromkeys(space[:2] for space in rows)),
    ]
    return drawing
