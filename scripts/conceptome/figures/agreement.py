"""How far every two dictionaries of a space agree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from conceptome.figures import captions, style
from conceptome.figures.dots import closing, intervals
from conceptome.figures.panels import KEYS, Drawing, dictionaries, main_models, short_title, unique, usable, whitenings

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


def draw(tables: Mapping[str, pd.DataFrame], cards: Mapping[str, Mapping[str, Any]]) -> Drawing:
    """One column per data set, the whitened space before the raw one: heat maps of MMCS and of its null."""
    need = ["seed", "other", "other_method", "mmcs", "low", "high", "null", "null_low", "null_high", "m", "d"]
    every = usable(tables, "agreement", [*KEYS, *need], "agreement")
    frame = main_models(every, cards)
    datasets = unique(frame["dataset"])
    rows = dictionaries(frame)
    order = {name: number for number, (name, _) in enumerate(rows)}
    # The null below; of a single data set beside.
    beside = len(datasets) == 1
    figure = style.new_figure(14 + (1 if beside else 2) * (16 + 5.2 * len(rows)))
    axes = figure.subplots(1, 2, squeeze=False).T if beside else figure.subplots(2, len(datasets), squeeze=False)
    drawing, letters, parts = Drawing(figure, "Mean max cosine similarity between dictionaries"), style.letters(), []
    for data in datasets:
        here = frame[frame["dataset"] == data]
        shown = whitenings(here)
        parts.append(here[here["whitening"] == shown[min(1, len(shown) - 1)]])
    image = None
    bounds = {"mmcs": ["null", "null_low", "null_high"], "null": ["mmcs", "low", "high"]}
    for line, (column, what) in enumerate((("mmcs", ""), ("null", ", null"))):
        left_out = bounds[column]
        for number, part in enumerate(parts):
            panel, letter, data = axes[line, number], next(letters), part["dataset"].iloc[0]
            image = _heat(panel, part, column, order, [style.dictionary_label(*row) for row in rows])
            if number or (beside and line):
                panel.set_yticklabels([])
            whitening = style.whitening_label(part["whitening"].iloc[0])
            head = short_title(cards[data], data, part["model"].iloc[0]).replace("\n", " · ")
            style.mark(panel, letter, f"{head}\n{whitening}{what}", wrap=34)
            drawing.add(letter, part.drop(columns=left_out))
    figure.colorbar(image, ax=list(axes[-1] if beside else axes[:, -1]), label="MMCS", shrink=0.6)
    sizes = captions.several(
        f"{part['dataset'].iloc[0]} {captions.span(part['m'].tolist())} atoms of {captions.span(part['d'].tolist())} "
        "dimensions"
        for part in parts
    )
    facts = captions.several(f"{part['dataset'].iloc[0]} {_facts(part)}" for part in parts)
    drawing.sentences = [
        "Mean over a row dictionary's atoms of the largest cosine with an atom of the column's (no unit): whether what "
        "the row knows is found in the column. On the diagonal two seeds of one method. Pairs have different seeds, "
        f"since trained methods that start alike agree where training changed nothing. n: {sizes}.",
        f"Learned dictionaries: {facts}.",
        intervals(cards, datasets, "agreement", "atom-level (bootstrap over the row's atoms; in the table)"),
        f"Null ({'right' if beside else 'below'}): random unit atoms of the same numbers and dimension; a larger "
        "column holds more by chance.",
        *closing(cards, frame, every),
    ]
    return drawing


def _heat(axes: Axes, part: pd.DataFrame, column: str, order: Mapping[str, int], labels: list[str]) -> Any:
    """Heat map of `column`, rows and columns in the order of methods; pairs that were not made stay white."""
    import numpy as np

    grid = np.full((len(order), len(order)), np.nan)
    for row in part.itertuples():
        if row.other in order:
            grid[order[row.dictionary], order[row.other]] = getattr(row, column)
    image = axes.pcolormesh(np.arange(len(order)), np.arange(len(order)), grid, cmap="viridis", vmin=0, vmax=1)
    axes.set_xticks(range(len(order)), labels, rotation=90)
    axes.set_yticks(range(len(order)), labels)
    axes.invert_yaxis()
    axes.set_aspect("equal")
    return image


def _facts(part: pd.DataFrame) -> str:
    """MMCS of pairs of learned dictionaries in words."""
    told = [
        f"{style.dictionary_label(row.dictionary, row.method)} in "
        f"{style.dictionary_label(row.other, row.other_method)} "
        f"{captions.number(row.mmcs)} [{captions.number(row.low)}, {captions.number(row.high)}] "
        f"(null {captions.number(row.null)})"
        for row in part.itertuples()
        if row.method in style.LEARNED and row.other_method in style.LEARNED
    ]
    return ", ".join(told) or "no learned dictionaries"
