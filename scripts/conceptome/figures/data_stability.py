"""Whether two halves of the data give the same atoms, beside diversity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from conceptome.figures import captions, style
from conceptome.figures.dots import Dots, closing, draw_dots, facts, intervals
from conceptome.figures.panels import (
    KEYS,
    Drawing,
    dictionaries,
    main_models,
    null_ticks,
    short_title,
    unique,
    usable,
)

if TYPE_CHECKING:
    import pandas as pd

DIFFERS = {"seed": "other seed, same half", "data": "other half, same seed", "both": "other half and seed"}


def draw(tables: Mapping[str, pd.DataFrame], cards: Mapping[str, Mapping[str, Any]]) -> Drawing:
    """One panel per data set and pair of fits; below, the pair that differs in both against effective rank."""
    columns = [*KEYS, "differs", "mean_cosine", "low", "high", "null", "effective_rank", "coherence", "m", "n_a", "n_b"]
    every = usable(tables, "data_stability", columns, "data_stability")
    frame = main_models(every, cards)
    datasets = unique(frame["dataset"])
    panels, fronts = [], []
    for data in datasets:
        for differs, heading in DIFFERS.items():
            part = frame[(frame["dataset"] == data) & (frame["differs"] == differs)]
            if len(part):
                shown = _over_halvings(part).drop(columns=["rank_low", "rank_high", "rank_null"], errors="ignore")
                panels.append(Dots(heading, "mean matched cosine", "mean_cosine", shown))
        part = frame[(frame["dataset"] == data) & (frame["differs"] == "both")]
        if len(part):
            fronts.append(_over_halvings(part))
    drawing, letters, axes = draw_dots(
        "Stability of atoms over halves of the data, beside diversity",
        panels,
        cards,
        "null: random unit atoms",
        more=len(fronts),
        height=44,
    )
    looks = style.looks(dictionaries(frame))
    for panel, letter, table in zip(axes, letters, fronts):
        for row in table.itertuples():
            look = looks[row.dictionary, row.method]
            panel.plot([row.effective_rank] * 2, [row.low, row.high], color=look.colour, lw=0.9, zorder=2)
            if hasattr(row, "rank_low"):
                panel.plot([row.rank_low, row.rank_high], [row.mean_cosine] * 2, color=look.colour, lw=0.9, zorder=2)
            fill = style.whitening_fill(row.whitening, look.colour)
            panel.plot([row.effective_rank], [row.mean_cosine], look.marker, color=look.colour, markerfacecolor=fill)
        panel.axhspan(table["null_low"].min(), table["null_high"].max(), color=style.NULL_COLOUR, alpha=0.6, lw=0)
        if "rank_null" in table:
            null_ticks(panel, table["rank_null"])
        panel.set_ylim(-0.02, 1.05)
        panel.set_yticks([0, 0.5, 1])
        panel.set_xlabel("effective rank")
        panel.locator_params(axis="x", nbins=4)
        panel.set_ylabel("mean matched cosine")
        data, model = table["dataset"].iloc[0], table["model"].iloc[0]
        style.mark(panel, letter, short_title(cards[data], data, model).replace("\n", " · "), wrap=38)
        drawing.add(letter, table)
    sizes = captions.several(
        f"{data} {captions.span(part['m'].tolist())} atoms, halves of {captions.count(part['n_a'].iloc[0])} and "
        f"{captions.count(part['n_b'].max())} samples"
        for data, part in frame.groupby("dataset", sort=False)
    )
    drawing.sentences = [
        "Dictionaries fitted on two halves of the training groups, matched one to one by cosine (no unit). A trained "
        "method starts from its seed, so that atoms which training leaves alone agree where only the data differ: what "
        f"counts is the pair that differs in both, beside the one that differs in the seed alone. n: {sizes}.",
        f"Mean matched cosine: {facts(panels)}.",
        "Below: the pair that differs in both against the effective rank of the less diverse dictionary; a good "
        f"dictionary lies high and right: {captions.several(_ranks(table) for table in fronts) or 'none'}.",
        intervals(
            cards, datasets, "data_stability", "atom-level (bootstrap over matched atoms; effective rank: jackknife)"
        ),
        "Null (grey; below, effective rank: ticks on the axis): random unit atoms of the same number and dimension, "
        "matched in the same way.",
        *closing(cards, frame, every),
    ]
    return drawing


def _over_halvings(part: pd.DataFrame) -> pd.DataFrame:
    """Mean over halvings, bounds from the lowest lower to the highest upper."""
    spec = {
        "mean_cosine": ("mean_cosine", "mean"),
        "low": ("low", "min"),
        "high": ("high", "max"),
        "shared": ("shared", "mean"),
        "null": ("null", "mean"),
        "null_low": ("null_low", "min"),
        "null_high": ("null_high", "max"),
        "effective_rank": ("effective_rank", "mean"),
        "coherence": ("coherence", "mean"),
        "m": ("m", "mean"),
        "n_halvings": ("mean_cosine", "size"),
    }
    bounds = {"rank_low": ("effective_rank_low", "min"), "rank_high": ("effective_rank_high", "max")}
    bounds |= {"rank_null": ("effective_rank_null", "mean"), "n": ("n_a", "min")}
    spec |= {name: how for name, how in bounds.items() if how[0] in part}
    return part.groupby([*KEYS, "differs"], sort=False).agg(**spec).reset_index()


def _ranks(table: pd.DataFrame) -> str:
    """Effective ranks in words, with interval and null where the table has them."""
    told = []
    for row in table.itertuples():
        bounds = ""
        if hasattr(row, "rank_null"):
            low, high, null = (captions.number(value, 1) for value in (row.rank_low, row.rank_high, row.rank_null))
            bounds = f" [{low}, {high}] (null {null})"
        name = f"{style.dictionary_label(row.dictionary, row.method)} {style.whitening_label(row.whitening)}"
        told.append(f"{name} {captions.number(row.effective_rank, 1)}{bounds}")
    return f"{table['dataset'].iloc[0]} effective rank " + ", ".join(told)
