"""Figures of dots with intervals over nulls: one panel per data set and quantity, one row per dictionary."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from conceptome.figures import captions, style
from conceptome.figures.panels import (
    KEYS,
    Drawing,
    dictionaries,
    dot_rows,
    is_null_model,
    rows_of_lines,
    short_title,
    unique,
    whitenings,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Dots:
    """One panel.

    Attributes
    ----------
    heading
        Second line of its title.
    axis
        What the x axis says.
    value
        Column that is drawn.
    table
        One row per dictionary and whitening: KEYS, `value`, low, high, null, null_low, null_high.
    seeds
        Values of single seeds, drawn as ticks; None: none.
    whole
        Whether the axis reaches from 0 to 1 (shares).
    """

    heading: str
    axis: str
    value: str
    table: pd.DataFrame
    seeds: pd.DataFrame | None = None
    whole: bool = False

    @property
    def place(self) -> tuple[str, str]:
        """Data set and model."""
        return self.table["dataset"].iloc[0], self.table["model"].iloc[0]


def draw_dots(
    title: str,
    panels: Sequence[Dots],
    cards: Mapping[str, Mapping[str, Any]],
    null: str,
    *,
    columns: int = 3,
    more: int = 0,
    height: float = 0.0,
) -> tuple[Drawing, Iterable[str], list[Axes]]:
    """Draw the panels, `columns` beside each other.

    Parameters
    ----------
    null
        Legend entry of the null.
    more
        Panels that the caller draws below, in lines of their own.
    height
        Height of one such line, in mm.

    Returns
    -------
    drawing, letters, axes
        The drawing, the letters that are left, and the axes of the caller's panels.
    """
    import pandas as pd
    from matplotlib.ticker import MaxNLocator

    looks = style.looks(dictionaries(pd.concat([panel.table for panel in panels])))
    columns = min(columns, max(len(panels), more))
    rows = rows_of_lines([panel.table for panel in panels], columns)
    lines, below = len(rows), -(-more // columns) if more else 0
    heights = [17 + 4.6 * len(line) for line in rows] + [height] * below
    figure = style.new_figure(14 + sum(heights))
    grid = figure.subplots(lines + below, columns, squeeze=False, height_ratios=heights)
    drawing, letters = Drawing(figure, title), style.letters()
    for number, panel in enumerate(panels):
        axes, letter = grid[number // columns, number % columns], next(letters)
        dot_rows(axes, panel.table, panel.value, rows[number // columns], seeds=panel.seeds, looks=looks)
        if number % columns:
            axes.set_yticklabels([])
        axes.set_xlabel(panel.axis)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        if panel.whole:
            axes.set_xlim(-0.02, 1.02)
        data, model = panel.place
        head = short_title(cards[data], data, model).replace("\n", " · ")
        style.mark(axes, letter, f"{head}\n{panel.heading}", wrap=38)
        seeds = None
        if panel.seeds is not None:
            seeds = panel.seeds[[*KEYS, "seed", panel.value]]
        drawing.add(letter, panel.table, seeds)
    for number in range(len(panels), lines * columns):
        grid[number // columns, number % columns].set_axis_off()
    own = list(grid[lines:].flat)
    for axes in own[more:]:
        axes.set_axis_off()
    table = pd.concat([panel.table for panel in panels])
    style.legend_below(figure, [*style.whitening_handles(whitenings(table), markers=True), style.null_handle(null)])
    return drawing, letters, own[:more]


def range_of(panel: Dots, row: Any) -> str:
    """One dictionary's value with its interval and its null, in words."""
    null = f" (null {captions.number(row.null)})" if hasattr(row, "null") else ""
    return (
        f"{style.dictionary_label(row.dictionary, row.method)} {style.whitening_label(row.whitening)} "
        f"{captions.number(getattr(row, panel.value))} [{captions.number(row.low)}, {captions.number(row.high)}]{null}"
    )


def facts(panels: Iterable[Dots]) -> str:
    """The learned dictionaries' values of every panel in words."""
    parts = []
    for panel in panels:
        told = [range_of(panel, row) for row in panel.table.itertuples() if row.method in style.LEARNED]
        data, model = panel.place
        parts.append(f"{data}/{model} {panel.heading} " + (", ".join(told) or "no learned dictionary"))
    return captions.several(parts)


def intervals(
    cards: Mapping[str, Mapping[str, Any]], datasets: Sequence[str], section: str, what: str | None = None
) -> str:
    """Say what the intervals of a further measure are: confidence, and what is resampled (None: groups)."""
    parts = []
    for data in datasets:
        card, chosen = cards[data], settings(cards[data], section)
        told = f"{data} {100 * chosen.confidence:g} %"
        if what is None:
            unit = card.get("group_is", "group")
            level = card.get("interval_level", f"{unit}-level")
            told += f", {level} (bootstrap by {unit}, {chosen.bootstraps} draws)"
        parts.append(told)
    return f"Intervals: {captions.several(parts)}" + (f", {what}." if what else ".")


def settings(card: Mapping[str, Any], section: str) -> Any:
    """Settings of a further measure; where a card has none, its defaults."""
    from conceptome.config.base import Evidence

    return getattr(captions.settings(card, "measures"), section, None) or Evidence()


def closing(
    cards: Mapping[str, Mapping[str, Any]], frame: pd.DataFrame, every: pd.DataFrame | None = None
) -> list[str]:
    """Last sentences of a caption: warnings, and what was measured but is not drawn (`every` minus `frame`)."""
    drawn = dict.fromkeys(zip(frame["dataset"], frame["model"]))
    sentences = captions.warnings(cards, unique(frame["dataset"]), drawn)
    if every is not None:
        models = {
            data: [
                name
                for name in unique(every.loc[every["dataset"] == data, "model"])
                if not is_null_model(cards[data], name)
            ]
            for data in unique(every["dataset"])
        }
        rest = captions.left_out(models, drawn)
        sentences += [rest] if rest else []
    return sentences
