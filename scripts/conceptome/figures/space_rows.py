"""What the figures of spaces share: one row per (data set, model, whitening), a dot with its interval over its null."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from conceptome.figures import captions, style
from conceptome.figures.panels import Drawing, is_null_model, stand_in, unique, usable

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

Space = tuple[str, str, str]
BOUNDS = ("low", "high", "null", "null_low", "null_high", "n")
COLOUR = style.CONTROL_COLOUR  # those of methods name dictionaries


def spaces(frame: pd.DataFrame) -> list[Space]:
    """Distinct (dataset, model, whitening), data sets and models in their order, raw before whitened."""
    found = list(dict.fromkeys(zip(frame["dataset"], frame["model"], frame["whitening"])))
    order = {pair: number for number, pair in enumerate(dict.fromkeys(space[:2] for space in found))}
    data = {name: number for number, name in enumerate(dict.fromkeys(space[0] for space in found))}
    return sorted(found, key=lambda space: (data[space[0]], order[space[:2]], space[2] != style.RAW))


def label(space: Space, card: Mapping[str, Any]) -> str:
    """Name a space for readers: data set, model (a dagger marks a stand-in), raw or whitened."""
    data, model, whitening = space
    mark = "†" if stand_in(card, model) else ""
    null = " (null model)" if is_null_model(card, model) else ""
    return f"{data} · {model}{mark}{null} · {style.whitening_label(whitening)}"


def space_rows(axes: Axes, table: pd.DataFrame, value: str, names: Sequence[str]) -> None:
    """Draw one row per row of `table` (value, low, high, null, null_low, null_high, whitening), top to bottom."""
    import numpy as np

    for y, row in enumerate(table.to_dict("records")):
        raw = row["whitening"] == style.RAW
        if np.isfinite(row["null_low"]):
            ends = [row["null_low"], row["null_high"]]
            axes.plot(ends, [y, y], color=style.NULL_COLOUR, lw=3.2, zorder=1, solid_capstyle="butt")
        axes.plot([row["null"]], [y], color=style.REFERENCE_COLOUR, marker="|", ms=5, mew=0.9, zorder=2)
        axes.plot([row["low"], row["high"]], [y, y], color=COLOUR, lw=0.9, zorder=3, solid_capstyle="butt")
        fill = "white" if raw else COLOUR
        axes.plot([row[value]], [y], "o", color=COLOUR, markerfacecolor=fill, mew=0.8, zorder=4)
    axes.set_yticks(range(len(table)), list(names))
    axes.set_ylim(len(table) - 0.5, -0.5)
    axes.grid(axis="y", color="#EEEEEE", lw=0.6)
    axes.set_axisbelow(True)


def draw_spaces(
    tables: Mapping[str, pd.DataFrame],
    cards: Mapping[str, Mapping[str, Any]],
    figure: str,
    *,
    value: str,
    split: str,
    titles: Mapping[str, tuple[str, str]],
    title: str,
    explained: str,
    fact: tuple[str, str, int],
    unit: str,
    limits: Mapping[str, tuple[float | None, float | None]],
    null: str,
    null_short: str,
) -> Drawing:
    """Draw a measure of spaces: one panel per value of the column `split`, one row per space.

    Parameters
    ----------
    figure
        Name of the figure, of its table and of the measure.
    value
        Column of the measured value; low, high, null, null_low, null_high and n stand beside it.
    split, titles
        The column that splits rows into panels; for its values the heading and what the axis says.
    title
        Of the figure.
    explained
        What is measured, for the caption.
    fact
        Value of `split` that the caption tells of every space, what it is called there, and its digits.
    unit
        What n counts.
    limits
        Fixed ends of the axes of some panels.
    null, null_short
        What the null is, in a sentence, and in the legend.
    """
    frame = usable(tables, figure, ["dataset", "model", "whitening", split, value, *BOUNDS], figure)
    rows, datasets, kinds = spaces(frame), unique(frame["dataset"]), unique(frame[split])
    page = style.new_figure(24 + 5 * len(rows))
    drawing, letters = Drawing(page, title), style.letters()
    indexed = frame.set_index(["dataset", "model", "whitening", split])
    names = [label(space, cards[space[0]]) for space in rows]
    for panel, kind in zip(page.subplots(1, len(kinds), squeeze=False, sharey=True)[0], kinds):
        table = indexed.loc[[(*space, kind) for space in rows]].reset_index()
        space_rows(panel, table, value, names)
        letter = next(letters)
        heading, axis = titles.get(kind, (kind, value))
        style.mark(panel, letter, heading, wrap=18)
        panel.set_xlabel("\n".join(axis.split(", ")))
        if kind in limits:
            panel.set_xlim(limits[kind])
        drawing.add(letter, table)
    style.legend_below(page, [style.null_handle(f"null: {null_short}")])
    first, called, digits = fact
    facts = captions.several(
        f"{name} {captions.number(row[value], digits)} ({captions.number(row['low'], digits)} to "
        f"{captions.number(row['high'], digits)}; null {captions.number(row['null'], digits)})"
        for name, space in zip(names, rows)
        for row in [indexed.loc[(*space, first)]]
    )
    sizes = captions.several(f"{data} {captions.span(part['n'].tolist())}" for data, part in frame.groupby("dataset"))
    drawing.sentences = [
        f"{explained} n {unit}: {sizes}.",
        f"{called}: {facts}.",
        captions.further_interval(cards, datasets, figure),
        f"Null (grey): {null}",
        *captions.warnings(cards, datasets, dict.fromkeys(space[:2] for space in rows)),
    ]
    return drawing
