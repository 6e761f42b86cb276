"""How much of the atoms' variance is biology and how much is technical, and which atoms are flagged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from conceptome.figures import captions, style
from conceptome.figures.dots import Dots, closing, draw_dots, facts, intervals
from conceptome.figures.panels import (
    KEYS,
    Drawing,
    headline,
    main_models,
    need,
    over_seeds,
    short_title,
    unique,
    usable,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

TOTALS = {"all biological": "biology", "all technical": "technical"}
FLAGGED = "#D55E00"


def draw(tables: Mapping[str, pd.DataFrame], cards: Mapping[str, Mapping[str, Any]]) -> Drawing:
    """Mean shares of biological and technical sources per dictionary; below, atom by atom for one dictionary."""
    import pandas as pd

    columns = [*KEYS, "seed", "source", "role", "share", "low", "high", "null", "atoms", "technical_atoms", "n"]
    every = usable(tables, "variance_partition_mean", columns, "variance_partition")
    frame = main_models(every, cards)
    datasets = unique(frame["dataset"])
    panels = []
    for data in datasets:
        for source, heading in TOTALS.items():
            part = frame[(frame["dataset"] == data) & (frame["source"] == source)]
            if len(part):
                keep = ["atoms", "technical_atoms", "n"]
                table = over_seeds(part, [*KEYS, "source"], "share", keep=keep, nulls=True)
                panels.append(Dots(heading, "mean share of variance", "share", table, part))
    atoms = tables.get("variance_partition_atoms", pd.DataFrame())
    shown = []
    if len(atoms):
        shares = [f"{name}_{bound}" for name in ("biological", "technical") for bound in ("low", "high")]
        need(
            atoms,
            "variance_partition_atoms",
            [*KEYS, "seed", "atom", "biological", "technical_share", *shares, "technical_null_high", "technical"],
        )
        for data in datasets:
            model = frame.loc[frame["dataset"] == data, "model"].iloc[0]
            here = atoms[(atoms["dataset"] == data) & (atoms["model"] == model)].dropna(
                subset=["biological", "technical_share"]
            )
            if len(here):
                shown.append(headline(here))
    title = "Variance of codes: biology, technical sources, and the atoms that are technical"
    drawing, letters, axes = draw_dots(
        title, panels, cards, "null: permuted codes", columns=2, more=len(shown), height=46
    )
    for panel, letter, part in zip(axes, letters, shown):
        _atoms(panel, part)
        data, model = part["dataset"].iloc[0], part["model"].iloc[0]
        label = style.dictionary_label(part["dictionary"].iloc[0], part["method"].iloc[0])
        whitening = style.whitening_label(part["whitening"].iloc[0])
        head = short_title(cards[data], data, model).replace("\n", " · ")
        style.mark(panel, letter, f"{head}\natoms of {label} {whitening}", wrap=38)
        drawing.add(letter, part)
    sizes = captions.several(
        f"{data} {captions.count(part['n'].max())} samples" for data, part in frame.groupby("dataset", sort=False)
    )
    flagged = frame[frame["source"] == "residual"]
    flags = captions.several(
        f"{data} "
        + ", ".join(
            f"{style.dictionary_label(name, method)} {style.whitening_label(whitening)} "
            f"{captions.number(own['technical_atoms'].mean(), 1)} "
            f"({captions.span(own['technical_atoms'].tolist())}) of {captions.number(own['atoms'].mean(), 0)}"
            for (name, method, whitening), own in part.groupby(["dictionary", "method", "whitening"], sort=False)
            if method in style.LEARNED
        )
        for data, part in flagged.groupby("dataset", sort=False)
    )
    which = captions.several(
        f"{data} " + ", ".join(f"{name} ({role})" for name, role in dict.fromkeys(zip(part["source"], part["role"])))
        for data, part in frame[~frame["source"].isin([*TOTALS, "residual"])].groupby("dataset", sort=False)
    )
    drawing.sentences = [
        "Share (no unit) of the variance of an atom's code that belongs to a source: the mean gain in adjusted R² over "
        "all orders in which the sources enter a linear model (0 on average for labels that say nothing). Above: mean "
        f"over the atoms that vary. Sources: {which}. n: {sizes}.",
        f"Mean shares: {facts(panels)}.",
        "Below: each atom of one dictionary (the fixed choice of all figures), with its intervals; grey: up to where "
        "the technical share of permuted codes reaches in the median atom; an atom is technical (orange) when the "
        "lower bound of its technical share lies above the upper bound of its biological share and above its null. "
        "Technical atoms, mean over seeds (range of the seeds; of codes that know nothing of the sources hardly ever "
        f"one, for both bounds are those of {_confidence(cards, datasets)} intervals): {flags}.",
        intervals(cards, datasets, "variance_partition")
        + " Draws are moved by the bootstrap's bias. "
        + captions.seeds_sentence(frame["seed"].nunique()),
        "Null (grey): codes permuted against the labels; whole groups move where groups share a class of the source.",
        *captions.notes(cards, datasets),
        *closing(cards, frame, every),
    ]
    return drawing


def _confidence(cards: Mapping[str, Mapping[str, Any]], datasets: list[str]) -> str:
    """Confidence of the intervals that an atom's flag rests on."""
    return " or ".join(
        dict.fromkeys(
            f"{100 * captions.further(cards[data], 'variance_partition').confidence:g} %" for data in datasets
        )
    )


def _atoms(axes: Axes, part: pd.DataFrame) -> None:
    """Technical against biological share, one dot per atom with its intervals, over the null's upper bound."""
    bounds = part["technical_null_high"].dropna()
    if len(bounds):
        axes.axhspan(
            min(0.0, float(part["technical_share"].min())),
            float(bounds.median()),
            color=style.NULL_COLOUR,
            alpha=0.4,
            lw=0,
        )
    for flag, colour in ((False, style.REST_COLOUR), (True, FLAGGED)):
        own = part[part["technical"] == flag]
        if len(own):
            between = {"color": colour, "lw": 0.4, "alpha": 0.35, "zorder": 1}
            axes.hlines(own["technical_share"], own["biological_low"], own["biological_high"], **between)
            axes.vlines(own["biological"], own["technical_low"], own["technical_high"], **between)
            axes.scatter(own["biological"], own["technical_share"], s=5, color=colour, lw=0, zorder=3 if flag else 2)
    axes.axline((0, 0), slope=1, color=style.REFERENCE_COLOUR, linestyle=":", lw=0.8)
    axes.set_xlabel("biological share")
    axes.set_ylabel("technical share")
