"""The layout that the figures of agreement with known concepts share: a panel per data set and source of concepts.

Each panel has one row per dictionary: a dot with its interval over the band of its null.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from conceptome.config.evidence import Measures
from conceptome.figures import captions, style
from conceptome.figures.panels import (
    KEYS,
    Drawing,
    dictionaries,
    dot_rows,
    main_models,
    over_seeds,
    rows_of_lines,
    short_title,
    unique,
    usable,
    whitenings,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

SOURCES = {"hidden": "hidden variables", "residues": "annotated residues"}


def source_title(card: Mapping[str, Any], source: str) -> str:
    """What readers call a source of concepts: the label's title, hidden variables, annotated residues."""
    return SOURCES.get(source) or card.get("labels", {}).get(source, {}).get("title") or source


def interval_sentence(cards: Mapping[str, Mapping[str, Any]], datasets: Sequence[str], measure: str) -> str:
    """Say what the intervals of a further measure are: confidence, resampled unit, draws of its own section."""
    parts = []
    for dataset in datasets:
        card = cards[dataset]
        measures = Measures.model_validate(card.get("study", {}).get("measures", {}))
        chosen = getattr(measures, measure) or measures
        unit = card.get("group_is", "group")
        level = card.get("interval_level", f"{unit}-level")
        parts.append(
            f"{dataset} {100 * chosen.confidence:g} %, {level} (bootstrap by {unit}, {chosen.bootstraps} draws)"
        )
    return "Intervals: " + captions.several(parts) + "."


def draw_rows(
    tables: Mapping[str, pd.DataFrame],
    cards: Mapping[str, Mapping[str, Any]],
    figure: str,
    *,
    value: str,
    title: str,
    axis: str,
    split: str,
    names: Mapping[str, str],
    explained: Sequence[str],
    null: str,
    null_short: str,
    beside: str | None = None,
    beside_short: str = "",
) -> Drawing:
    """Draw one panel per data set (its first model), source of concepts and value of the column `split`.

    Parameters
    ----------
    figure
        Name of the figure, of its table and of the measure.
    value
        Column of the measured value; low, high, null, null_low, null_high stand beside it.
    title, axis
        Of the figure; of the horizontal axes.
    split, names
        The column that splits a source's rows into panels, and what readers call its values; other values of that
        column get no panel.
    explained
        Sentences of the caption that say what is measured.
    null, null_short
        What the null is, in a sentence, and in the legend.
    beside, beside_short
        A column drawn as crosses beside the dots, and its name in the legend.
    """
    keep = [name for name in (beside, "n", "n_concepts", "n_groups_test") if name]
    frame = usable(
        tables, figure, [*KEYS, "seed", "source", split, value, "low", "high", "null", "null_low", "n"], figure
    )
    frame = main_models(frame[frame[split].isin(list(names))], cards)
    datasets = unique(frame["dataset"])
    table = over_seeds(frame, [*KEYS, "source", split], value, keep=keep, nulls=True)
    panels = [
        (data, source, part)
        for data in datasets
        for source in unique(table.loc[table["dataset"] == data, "source"])
        for part in names
        if len(table[(table["dataset"] == data) & (table["source"] == source) & (table[split] == part)])
    ]
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    shown = [
        table[(table["dataset"] == data) & (table["source"] == source) & (table[split] == part)]
        for data, source, part in panels
    ]
    looks = style.looks(dictionaries(frame))
    rows = rows_of_lines(shown, columns)
    heights = [21 + 4.6 * len(line) for line in rows]
    page = style.new_figure(14 + sum(heights))
    axes = page.subplots(lines, columns, squeeze=False, height_ratios=heights)
    drawing = Drawing(page, title)
    facts, sizes = [], []
    for number, (letter, panel, (data, source, part), here) in enumerate(
        zip(style.letters(), axes.flat, panels, shown)
    ):
        of = {pair: looks[pair] for pair in rows[number // columns]}
        single = frame[(frame["dataset"] == data) & (frame["source"] == source) & (frame[split] == part)]
        dot_rows(panel, here, value, list(of), seeds=single, looks=looks)
        if beside:
            _crosses(panel, here, beside, of)
        panel.set_xlabel(axis)
        if panel not in axes[:, 0]:
            panel.set_yticklabels([])
        head = short_title(cards[data], data, here["model"].iloc[0]).replace("\n", " · ")
        style.mark(panel, letter, f"{head}\n{source_title(cards[data], source)} · {names[part]}", wrap=36)
        drawing.add(letter, here, single[[*KEYS, "source", split, "seed", value]])
        best = here.loc[here[value].idxmax()]
        facts.append(
            f"{data}/{source}/{names[part]} {captions.number(best[value])} "
            f"[{captions.number(best['low'])}, {captions.number(best['high'])}], null {captions.number(best['null'])} "
            f"({style.dictionary_label(best['dictionary'], best['method'])}, "
            f"{style.whitening_label(best['whitening'])})"
        )
        concepts = f", {captions.count(here['n_concepts'].max())} concepts" if "n_concepts" in here else ""
        sizes.append(f"{data}/{source} {captions.count(here['n'].max())}{concepts}")
    for panel in axes.flat[len(panels) :]:
        panel.set_axis_off()
    handles = [*style.whitening_handles(whitenings(table), markers=True), style.null_handle(f"null: {null_short}")]
    if beside:
        handles.append(_cross_handle(beside_short))
    style.legend_below(page, handles)
    drawing.sentences = [
        *explained,
        f"n: {captions.several(dict.fromkeys(sizes))}.",
        f"Highest mean per panel: {captions.several(facts)}.",
        interval_sentence(cards, datasets, figure)
        + " Small ticks are seeds. "
        + captions.seeds_sentence(frame["seed"].nunique()),
        null,
        *captions.notes(cards, datasets),
        *captions.warnings(cards, datasets, dict.fromkeys(zip(frame["dataset"], frame["model"]))),
    ]
    every = {data: unique(rows_["model"]) for data, rows_ in tables[figure].groupby("dataset", sort=False)}
    rest = captions.left_out(every, zip(frame["dataset"], frame["model"]))
    drawing.sentences += [rest] if rest else []
    return drawing


def _crosses(axes: Axes, table: pd.DataFrame, column: str, looks: Mapping[tuple[str, str], style.Method]) -> None:
    """Mark a second value of each row of `dot_rows` with a cross."""
    import numpy as np

    shown = whitenings(table)
    offsets = dict(zip(shown, np.linspace(-0.2, 0.2, len(shown)) if len(shown) > 1 else [0.0]))
    for position, ((dictionary, _), look) in enumerate(looks.items()):
        own = table[table["dictionary"] == dictionary]
        axes.plot(
            own[column],
            [position + offsets[whitening] for whitening in own["whitening"]],
            "x",
            color=look.colour,
            ms=3,
            mew=0.6,
            zorder=4,
        )


def _cross_handle(label: str) -> Any:
    """Legend entry of the crosses."""
    from matplotlib.lines import Line2D

    return Line2D([], [], color=style.REFERENCE_COLOUR, marker="x", linestyle="none", ms=3, mew=0.6, label=label)
