"""How spread atoms are (Babel function), and stability against diversity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from conceptome.figures import captions, style
from conceptome.figures.dots import closing, intervals
from conceptome.figures.panels import (
    KEYS,
    Drawing,
    dictionaries,
    main_models,
    need,
    null_ticks,
    over_seeds,
    short_title,
    unique,
    usable,
    whitenings,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


def draw(tables: Mapping[str, pd.DataFrame], cards: Mapping[str, Mapping[str, Any]]) -> Drawing:
    """One column per data set: Babel function over r, then the joint front of stability and effective rank."""
    import pandas as pd

    columns = [*KEYS, "seed", "statistic", "r", "value", "low", "high", "null", "null_low", "null_high", "m", "d"]
    every = usable(tables, "diversity", columns, "diversity")
    frame = main_models(every, cards)
    datasets = unique(frame["dataset"])
    keys = [*KEYS, "statistic", "r"]
    table = over_seeds(frame, keys, "value", keep=["m", "d", "n"], nulls=True)
    stability = tables.get("stability", pd.DataFrame())
    fronts = _fronts(table, stability) if len(stability) else table.iloc[:0]
    looks = style.looks(dictionaries(frame))
    lines = 2 if len(fronts) else 1
    figure = style.new_figure(20 + 45 * lines)
    axes = figure.subplots(lines, len(datasets), squeeze=False)
    drawing, letters = Drawing(figure, "Diversity of atoms, and stability beside it"), style.letters()
    for number, data in enumerate(datasets):
        part = table[(table["dataset"] == data) & (table["statistic"] == "babel")].dropna(subset="value")
        letter = next(letters)
        _babel(axes[0, number], part, looks)
        style.mark(
            axes[0, number],
            letter,
            short_title(cards[data], data, table.loc[table["dataset"] == data, "model"].iloc[0]),
        )
        drawing.add(letter, part)
    axes[0, 0].set_ylabel("Babel function μ₁(r)")
    for number, data in enumerate(datasets if len(fronts) else []):
        part = fronts[fronts["dataset"] == data]
        if part.empty:
            axes[1, number].set_axis_off()
            continue
        letter = next(letters)
        _front(axes[1, number], part, looks)
        style.mark(axes[1, number], letter)
        drawing.add(letter, part)
    if len(fronts):
        axes[1, 0].set_ylabel("mean matched cosine")
    handles = [
        *style.method_handles(dictionaries(frame)),
        *style.whitening_handles(whitenings(frame)),
        style.band_handle("null: random unit atoms"),
    ]
    style.legend_below(figure, handles)
    sizes = captions.several(
        f"{data} {captions.span(part['m'].tolist())} atoms of {captions.span(part['d'].tolist())} dimensions"
        for data, part in frame.groupby("dataset", sort=False)
    )
    drawing.sentences = [
        "Babel function: the largest sum of absolute cosines of one atom with r others (r = 1: coherence); lower is "
        "more spread. Below: mean matched cosine of two seeds against effective rank (exponential of the entropy of "
        "the singular values, in units of dimensions): near-duplicate atoms buy stability and cost rank, so that a "
        f"good dictionary lies high and right. n: {sizes}.",
        f"Coherence and ranks: {captions.several(_facts(table, data) for data in datasets)}.",
        intervals(
            cards,
            datasets,
            "diversity",
            "the Babel function from the lowest to the highest seed, effective rank by a jackknife over blocks of "
            "atoms, matched cosine by a bootstrap over atoms",
        )
        + " "
        + captions.seeds_sentence(frame["seed"].nunique()),
        "Null (grey; effective rank: ticks on the axis): random unit atoms of the same number and dimension. For the "
        "use of atoms together (table, not drawn: effective rank of co-activation, connectivity) codes permuted within "
        "each atom.",
        *closing(cards, frame, every),
    ]
    return drawing


def _babel(axes: Axes, part: pd.DataFrame, looks: Mapping[tuple[str, str], style.Method]) -> None:
    """Curves over r with the range of seeds, over the null's band."""
    band = part.groupby("r")[["null_low", "null_high"]].agg({"null_low": "min", "null_high": "max"})
    axes.fill_between(
        band.index, band["null_low"], band["null_high"], color=style.NULL_COLOUR, alpha=0.6, lw=0, zorder=0
    )
    for (whitening, *pair), own in part.groupby(["whitening", "dictionary", "method"], sort=False):
        own, look = own.sort_values("r"), looks[tuple(pair)]
        line = style.whitening_line(whitening)
        axes.plot(own["r"], own["value"], color=look.colour, linestyle=line, marker=look.marker, ms=2.5)
        axes.fill_between(own["r"], own["low"], own["high"], color=look.colour, alpha=0.2, lw=0)
    axes.set_xscale("log", base=2)
    style.plain_log(axes.xaxis, 2, (float(part["r"].min()), float(part["r"].max())))
    axes.set_xlabel("r (atoms)")
    axes.set_ylim(bottom=-0.03 * float(part["value"].max() or 1))


def _fronts(table: pd.DataFrame, stability: pd.DataFrame) -> pd.DataFrame:
    """Effective rank of each dictionary beside the mean matched cosine of its seeds."""
    need(stability, "stability", [*KEYS, "mean_cosine", "low", "high", "null_low", "null_high"])
    rank = table[table["statistic"] == "effective_rank"][[*KEYS, "value", "low", "high", "null", "n_seeds", "m", "d"]]
    rank = rank.rename(columns={"value": "effective_rank", "low": "rank_low", "high": "rank_high", "null": "rank_null"})
    spec = {
        "mean_cosine": ("mean_cosine", "mean"),
        "low": ("low", "min"),
        "high": ("high", "max"),
        "null_low": ("null_low", "min"),
        "null_high": ("null_high", "max"),
        "n_pairs": ("mean_cosine", "size"),
    }
    pairs = stability.groupby(KEYS, sort=False).agg(**spec).reset_index()
    return rank.merge(pairs, on=KEYS)


def _front(axes: Axes, part: pd.DataFrame, looks: Mapping[tuple[str, str], style.Method]) -> None:
    """Stability against effective rank, both with intervals."""
    low, high = float(part["null_low"].min()), float(part["null_high"].max())
    axes.axhspan(low, max(high, low + 0.004), color=style.NULL_COLOUR, alpha=0.6, lw=0, zorder=0)
    for row in part.itertuples():
        look = looks[row.dictionary, row.method]
        axes.plot([row.effective_rank] * 2, [row.low, row.high], color=look.colour, lw=0.9, zorder=2)
        axes.plot([row.rank_low, row.rank_high], [row.mean_cosine] * 2, color=look.colour, lw=0.9, zorder=2)
        fill = style.whitening_fill(row.whitening, look.colour)
        axes.plot(
            [row.effective_rank], [row.mean_cosine], look.marker, color=look.colour, markerfacecolor=fill, zorder=3
        )
    null_ticks(axes, part["rank_null"])
    axes.set_ylim(-0.02, 1.05)
    axes.set_yticks([0, 0.5, 1])
    axes.set_xlabel("effective rank")
    axes.locator_params(axis="x", nbins=4)


def _facts(table: pd.DataFrame, data: str) -> str:
    """Coherence, effective rank, rank of co-activation and connectivity of the learned dictionaries in words."""
    here, parts = table[table["dataset"] == data], []
    names = {
        "effective_rank": "effective rank",
        "code_effective_rank": "of co-activation",
        "connectivity": "connectivity",
    }
    for (name, method, whitening), own in here.groupby(["dictionary", "method", "whitening"], sort=False):
        if method not in style.LEARNED:
            continue
        told = []
        for statistic, r, label in [("babel", 1, "coherence"), *((key, 0, text) for key, text in names.items())]:
            rows = own[(own["statistic"] == statistic) & (own["r"] == r)]
            if len(rows):
                row = rows.iloc[0]
                digits = 2 if statistic in ("babel", "connectivity") else 1
                bounds = f"[{captions.number(row['low'], digits)}, {captions.number(row['high'], digits)}]"
                null = captions.number(row["null"], digits)
                told.append(f"{label} {captions.number(row['value'], digits)} {bounds} (null {null})")
        parts.append(f"{style.dictionary_label(name, method)} {style.whitening_label(whitening)} " + ", ".join(told))
    return f"{data}: " + (", ".join(parts) or "no learned dictionary")
