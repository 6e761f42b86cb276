"""Lobes: whether atoms that fire together point alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from conceptome.figures import captions, style
from conceptome.figures.panels import (
    KEYS,
    Drawing,
    dictionaries,
    dot_rows,
    headline,
    main_models,
    over_seeds,
    short_title,
    unique,
    usable,
    whitenings,
)

if TYPE_CHECKING:
    import pandas as pd

NEEDED = [*KEYS, "seed", "clusters", "ami", "low", "high", "null", "null_low", "null_high", "n_atoms", "n", "unit"]


def draw(tables: Mapping[str, pd.DataFrame], cards: Mapping[str, Mapping[str, Any]]) -> Drawing:
    """Draw one column per data set; rows: agreement per dictionary, atoms of one dictionary coloured by lobe."""
    import pandas as pd

    frame = main_models(usable(tables, "lobes", NEEDED, "lobes"), cards)
    most = frame.groupby("dataset")["clusters"].transform("min")
    frame = frame[frame["clusters"] == most]
    atoms = tables.get("lobes_atoms", pd.DataFrame())
    datasets, of = unique(frame["dataset"]), dictionaries(frame)
    summary = over_seeds(frame, KEYS, "ami", nulls=True)
    lines = 1 + bool(len(atoms))
    heights = [10 + 4.5 * len(of)] + [50] * (lines - 1)
    figure = style.new_figure(24 + sum(heights))
    axes = figure.subplots(lines, len(datasets), squeeze=False, height_ratios=heights)
    drawing = Drawing(figure, "Atoms that fire together, and whether they point alike")
    letters = style.letters()
    for index, (panel, data) in enumerate(zip(axes[0], datasets)):
        here, seeds = summary[summary["dataset"] == data], frame[frame["dataset"] == data]
        dot_rows(panel, here, "ami", of, seeds=seeds)
        letter = next(letters)
        style.mark(panel, letter, short_title(cards[data], data, here["model"].iloc[0]))
        panel.set_xlabel("agreement (AMI)")
        if index:
            panel.set_yticklabels([])
        drawing.add(letter, here, seeds[[*KEYS, "seed", "ami"]])
    shown = []
    for panel, data in zip(axes[1] if lines > 1 else [], datasets):
        one = headline(frame[frame["dataset"] == data])
        part = atoms.merge(one[[*KEYS, "seed", "clusters"]], on=[*KEYS, "seed", "clusters"])
        letter = next(letters)
        name = style.dictionary_label(one["dictionary"].iloc[0], one["method"].iloc[0])
        shown.append(f"{data} {name}, {style.whitening_label(one['whitening'].iloc[0])}")
        for lobe, points in part.groupby("lobe"):
            colour = style.SERIES[int(lobe) % len(style.SERIES)]
            panel.plot(points["x"], points["y"], "o", ms=2.6, mew=0, alpha=0.8, color=colour)
        panel.set_xticks([])
        panel.set_yticks([])
        panel.set_xlabel("direction of atoms, component 1")
        panel.set_ylabel("component 2")
        style.mark(panel, letter, name)
        drawing.add(letter, part)
    handles = [
        *style.whitening_handles(whitenings(frame), markers=True),
        style.null_handle("null: permuted among atoms of like firing rate"),
    ]
    style.legend_below(figure, handles)
    sizes = captions.several(
        f"{data} {captions.span(part['n_atoms'].tolist())} atoms, {captions.span(part['n'].tolist())} "
        f"{cards[data].get('group_is', 'group') if part['unit'].iloc[0] == 'group' else 'sample'}s, "
        f"{int(part['clusters'].iloc[0])} clusters"
        for data, part in frame.groupby("dataset", sort=False)
    )
    facts = captions.several(
        f"{data} "
        + ", ".join(
            f"{style.dictionary_label(row.dictionary, row.method)} {style.whitening_label(row.whitening)} "
            f"{captions.number(row.ami)} [{captions.number(row.low)}, {captions.number(row.high)}] "
            f"(null up to {captions.number(row.null_high)})"
            for row in part.itertuples()
        )
        for data, part in summary.groupby("dataset", sort=False)
    )
    drawing.sentences = [
        "Atoms are clustered twice: by firing in the same samples (phi coefficient; the clusters are "
        "called lobes), and "
        "by pointing in like directions. Above: adjusted mutual information of the two clusterings, 0 by "
        "chance, 1 when "
        f"they are the same. n: {sizes}.",
        f"Agreement: {facts}.",
        *([f"Below: atoms of one dictionary ({captions.several(shown)}) along the two main components of "
           "their directions, "
           "coloured by lobe: colours in patches mean that atoms that fire together lie together. No unit."]
          if shown else []),
        captions.further_interval(cards, datasets, "lobes")
        + " The variance over atoms (bootstrap) is added. "
        + captions.seeds_sentence(frame["seed"].nunique()),
        "Null (grey): clusters by direction permuted among atoms that fire about equally often.",
        *captions.warnings(cards, datasets, dict.fromkeys(zip(frame["dataset"], frame["model"]))),
    ]  # fmt: skip
    return drawing
