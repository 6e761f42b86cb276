"""F8: how far seeds find the same atoms, beside coherence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from conceptome.config.dictionaries import SEEDLESS
from conceptome.figures import captions, style
from conceptome.figures.panels import (
    KEYS,
    Drawing,
    dictionaries,
    in_blocks,
    is_null_model,
    main_models,
    need,
    null_ticks,
    short_title,
    unique,
    usable,
    whitenings,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


def draw(tables: Mapping[str, pd.DataFrame], cards: Mapping[str, Mapping[str, Any]]) -> Drawing:
    """Draw F8: one column per data set; rows distribution of matched cosines, mean cosine against coherence."""
    import pandas as pd

    columns = [*KEYS, "seed_a", "seed_b", "mean_cosine", "low", "high", "shared", "null", "coherence", "m"]
    frame = usable(tables, "stability", columns, "stability")
    every = {data: unique(frame.loc[frame["dataset"] == data, "model"]) for data in unique(frame["dataset"])}
    frame = main_models(frame[~frame["method"].isin(SEEDLESS)], cards)
    atoms = tables.get("stability_atoms", pd.DataFrame())
    if len(atoms):
        need(atoms, "stability_atoms", [*KEYS, "atom", "cosine"])
        atoms = atoms.merge(frame[KEYS].drop_duplicates(), on=KEYS)
    datasets = unique(frame["dataset"])
    summary = _summary(frame)
    widths = _widths(summary)
    rows = dictionaries(frame)
    looks = style.looks(rows)
    blocks = in_blocks(datasets)
    lines = [(2 if len(atoms) else 1) + bool(widths["dataset"].isin(block).any()) for block in blocks]
    figure = style.new_figure(16 + 43 * sum(lines))
    parts = figure.subfigures(len(blocks), 1, squeeze=False, height_ratios=lines)[:, 0]
    drawing = Drawing(figure, "Stability of atoms over seeds, beside coherence")
    letters = style.letters()
    for page, block, number in zip(parts, blocks, lines):
        axes = page.subplots(number, len(block), squeeze=False, sharey="row")
        if len(atoms):
            for panel, data in zip(axes[0], block):
                here = frame[frame["dataset"] == data]
                table = _exceedance(atoms[atoms["dataset"] == data])
                null = _null(atoms[atoms["dataset"] == data], here)
                letter = next(letters)
                _curves(panel, table, null, captions.settings(cards[data], "measures").shared_cosine, looks)
                style.mark(panel, letter, short_title(cards[data], data, here["model"].iloc[0]), wrap=110 // len(block))
                drawing.add(letter, pd.concat([table, null], ignore_index=True))
                panel.set_xlabel("cosine of matched atoms")
            axes[0, 0].set_ylabel("share of atoms above")
        front = axes[1 if len(atoms) else 0]
        for panel, data in zip(front, block):
            table = summary[summary["dataset"] == data]
            letter = next(letters)
            _against_coherence(panel, table, looks)
            heading = "" if len(atoms) else short_title(cards[data], data, table["model"].iloc[0])
            style.mark(panel, letter, heading, wrap=110 // len(block))
            drawing.add(letter, table)
            panel.set_xlabel("coherence")
        front[0].set_ylabel("mean matched cosine")
        labelled = True
        drawn = widths[widths["dataset"].isin(block)]
        reach = drawn[["shared_high", "shared_null_high"]].max().max() if len(drawn) else 0.0
        top = min(1.03, max(0.2, 1.2 * float(reach)))
        for panel, data in zip(axes[-1], block if widths["dataset"].isin(block).any() else []):
            table = widths[widths["dataset"] == data]
            if table.empty:
                panel.set_axis_off()
                continue
            letter = next(letters)
            _by_size(panel, table, looks, top)
            panel.set_ylim(-0.03 * top, top)
            if labelled:
                panel.set_ylabel("shared atoms")
                panel.tick_params(labelleft=True)
            labelled = False
            style.mark(panel, letter)
            drawing.add(letter, table)
    handles = [
        *style.method_handles(rows),
        *style.whitening_handles(whitenings(frame)),
        style.band_handle("null: random unit atoms"),
    ]
    style.legend_below(figure, handles)

    pairs = frame.groupby("dataset", sort=False).apply(
        lambda part: part[["seed_a", "seed_b"]].drop_duplicates().shape[0], include_groups=False
    )
    sizes = captions.several(
        f"{data} {captions.span(part['m'].tolist())} atoms, {pairs[data]} seed pair(s)"
        for data, part in frame.groupby("dataset", sort=False)
    )
    thresholds = {captions.settings(cards[data], "measures").shared_cosine for data in datasets}
    shared = ", ".join(f"{value:g}" for value in sorted(thresholds))
    drawing.sentences = [
        "Atoms of two seeds are matched one to one (Hungarian method) by cosine. Above: share of matched pairs with at "
        f"least that cosine, all seed pairs together; from the dotted line on ({shared}) an atom counts as shared. "
        "Below: "
        "mean matched cosine against coherence (largest absolute cosine between two atoms of one dictionary): "
        "near-duplicate "
        f"atoms can buy stability, so a good dictionary lies high and left. Cosines have no unit. n: {sizes}.",
        f"Mean cosine and shared atoms: {captions.several(_facts(summary, data) for data in datasets)}.",
        _interval(cards, datasets),
        *_how_matched(frame, len(widths) > 0),
        "Null (grey): random unit atoms of the same number and dimension, matched in the same way (above: its largest "
        "curve over the dictionaries drawn; below: its mean, and ticks on the axis for its coherence). PCA and neurons "
        "have no seed and are not drawn.",
        *captions.warnings(cards, datasets, dict.fromkeys(zip(frame["dataset"], frame["model"]))),
    ]
    rest = captions.left_out(
        {data: [m for m in names if not is_null_model(cards[data], m)] for data, names in every.items()},
        zip(frame["dataset"], frame["model"]),
    )
    drawing.sentences += [rest] if rest else []
    return drawing


def _how_matched(frame: pd.DataFrame, widths: bool) -> list[str]:
    """Say which methods must agree in their encoder too, and what the last row of panels is."""
    sentences = []
    if "matched_on" in frame:
        both = unique(frame.loc[frame["matched_on"] == "decoder and encoder", "dictionary"])
        alone = [name for name in unique(frame["dictionary"]) if name not in both]
        sentences.append(
            "An atom is shared when its cosine is above the threshold and matching by encoder gives the same partner"
            + (f" ({', '.join(both)})" if both else "")
            + (f"; without a linear encoder of their own, matched by atoms alone: {', '.join(alone)}" if alone else "")
            + "."
        )
    if widths:
        sentences.append(
            "Last row: shared atoms by the number of atoms m, one line per method and k; where m is the same, by k."
        )
    return sentences


def _widths(summary: pd.DataFrame) -> pd.DataFrame:
    """Rows of the methods that a study holds at several m or k."""
    if "k" not in summary:
        return summary.iloc[:0]
    keys = ["dataset", "model", "whitening", "method"]
    several = summary.groupby(keys)[["m", "k"]].transform("nunique").max(axis=1) > 1
    return summary[several].sort_values("m", kind="stable")


def _by_size(axes: Axes, table: pd.DataFrame, looks: Mapping[tuple[str, str], style.Method], top: float) -> None:
    """Shared atoms over m (a line per method, whitening and k) or, at one m, over k; grey, what random atoms share."""
    by = "m" if table["m"].nunique() > 1 else "k"
    table = table.sort_values(by, kind="stable")
    null = table.groupby(by)["shared_null_high"].max()
    axes.fill_between(null.index, 0, null, color=style.NULL_COLOUR, alpha=0.6, lw=0, zorder=0)
    keys = ["whitening", "method", *(["k"] if by == "m" else [])]
    labels: dict[float, str] = {}
    for names, own in table.groupby(keys, sort=False, dropna=False):
        whitening, method = names[:2]
        line, colour = style.whitening_line(whitening), style.method(method).colour
        # A method may hold several dictionaries of one size: the line joins their means.
        mean = own.groupby(by)["shared"].mean()
        axes.plot(mean.index, mean, color=colour, linestyle=line, lw=0.9)
        for row in own.itertuples():
            look, x = looks[row.dictionary, row.method], getattr(row, by)
            fill = style.whitening_fill(whitening, look.colour)
            axes.plot([x], [row.shared], marker=look.marker, color=look.colour, markerfacecolor=fill, ms=3)
            axes.plot([x] * 2, [row.shared_low, row.shared_high], color=look.colour, lw=0.9)
        if by == "m" and names[2] == names[2]:
            labels.setdefault(float(own.iloc[-1]["shared"]), f"k {names[2]:g}")
    right = float(table[by].max())
    if by == "m":
        _beside(axes, labels, right, 0.13 * top)
    axes.set_xscale("log", base=2)
    low = float(table[by].min())
    style.plain_log(axes.xaxis, 2, (0.7 * low, 1.6 * right), most=4)
    axes.set_xlim(0.8 * low, (1.6 if by == "m" else 1.25) * right)
    axes.set_xlabel("m (atoms)" if by == "m" else "k (active atoms)")


def _beside(axes: Axes, labels: Mapping[float, str], x: float, apart: float) -> None:
    """Write labels to the right of x, each as near to its height as leaves room for those below it."""
    lowest = 0.0
    for height, label in sorted(labels.items()):
        lowest = max(height, lowest)
        axes.annotate(label, (x, lowest), xytext=(5, 0), textcoords="offset points", va="center")
        lowest += apart


def _interval(cards: Mapping[str, Mapping[str, Any]], datasets: list[str]) -> str:
    """Say what the bars are: the resampled unit is the atom, not the sample."""
    parts = []
    for data in datasets:
        chosen = captions.settings(cards[data], "measures")
        parts.append(f"{data} {100 * chosen.confidence:g} %")
    return (
        f"Intervals: {captions.several(parts)}, atom-level (bootstrap over matched atoms), from the lowest lower to "
        "the "
        "highest upper bound over seed pairs; coherence is a maximum, and its bar the range of the pairs."
    )


def _share_above(cosine: pd.Series, steps: object) -> object:
    """Share of cosines that reach each step."""
    import numpy as np

    ordered = np.sort(cosine.to_numpy())
    return 1 - np.searchsorted(ordered, steps, side="left") / len(ordered)


def _exceedance(atoms: pd.DataFrame) -> pd.DataFrame:
    """Share of matched atoms with at least each cosine, per dictionary, all seed pairs together."""
    import numpy as np
    import pandas as pd

    parts = []
    for keys, part in atoms.groupby(KEYS, sort=False):
        steps = np.unique(np.round(np.quantile(part["cosine"], np.linspace(0, 1, 101)), 6))
        curve = {"cosine": steps, "share": _share_above(part["cosine"].round(6), steps), "what": "matched atoms"}
        parts.append(pd.DataFrame({**dict(zip(KEYS, keys)), **curve}))
    return pd.concat(parts, ignore_index=True)


def _null(atoms: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    """Curve of the null: at each cosine the largest share over the dictionaries drawn.

    Tables without the null of single atoms give its mean as a step.
    """
    import numpy as np
    import pandas as pd

    steps = np.round(np.linspace(0, 1, 101), 2)
    if "null_cosine" in atoms:
        curves = [_share_above(part["null_cosine"], steps) for _, part in atoms.groupby(KEYS, sort=False)]
        share = np.max(curves, axis=0)
    else:
        share = (steps <= frame["null"].max()).astype(float)
    place = {name: frame[name].iloc[0] for name in ("dataset", "model")}
    return pd.DataFrame({**place, "cosine": steps, "share": share, "what": "null"})


def _curves(
    axes: Axes,
    table: pd.DataFrame,
    null: pd.DataFrame,
    shared: float,
    looks: Mapping[tuple[str, str], style.Method],
) -> None:
    """Exceedance curves over the null's."""
    axes.fill_between(null["cosine"], 0, null["share"], color=style.NULL_COLOUR, alpha=0.6, lw=0, zorder=0)
    axes.axvline(shared, color=style.REFERENCE_COLOUR, linestyle=":", lw=0.8, zorder=1)
    for number, ((whitening, *pair), part) in enumerate(
        table.groupby(["whitening", "dictionary", "method"], sort=False)
    ):
        look = looks[tuple(pair)]
        axes.plot(
            part["cosine"],
            part["share"],
            color=look.colour,
            linestyle=style.whitening_line(whitening),
            marker=look.marker,
            ms=2.5,
            mew=0,
            markevery=(5 + 3 * (number % 5), 25),
            zorder=2,
        )
    axes.set_xlim(min(0.0, float(table["cosine"].min())), 1.02)
    axes.set_ylim(-0.02, 1.03)
    axes.set_xticks([0, 0.5, 1])


def _summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean over seed pairs, bounds from the lowest lower to the highest upper."""
    spec = {
        "mean_cosine": ("mean_cosine", "mean"),
        "low": ("low", "min"),
        "high": ("high", "max"),
        "shared": ("shared", "mean"),
        "coherence": ("coherence", "mean"),
        "coherence_low": ("coherence", "min"),
        "coherence_high": ("coherence", "max"),
        "null": ("null", "mean"),
        "m": ("m", "mean"),
        "n_pairs": ("mean_cosine", "size"),
    }
    more = {"null_low": "min", "null_high": "max", "k": "mean"}
    more |= {"coherence_null": "mean", "coherence_null_low": "min", "coherence_null_high": "max"}
    more |= {"shared_low": "min", "shared_high": "max", "shared_null": "mean", "shared_null_high": "max"}
    for column, how in more.items():
        if column in frame:
            spec[column] = (column, how)
    return frame.groupby(KEYS, sort=False).agg(**spec).reset_index()


def _against_coherence(axes: Axes, table: pd.DataFrame, looks: Mapping[tuple[str, str], style.Method]) -> None:
    """Mean cosine with its interval against coherence; open markers raw, filled whitened."""
    low = table["null_low"].min() if "null_low" in table else table["null"].min()
    high = table["null_high"].max() if "null_high" in table else table["null"].max()
    axes.axhspan(low, max(high, low + 0.004), color=style.NULL_COLOUR, alpha=0.6, lw=0, zorder=0)
    if "coherence_null" in table:
        null_ticks(axes, table["coherence_null"])
    for row in table.itertuples():
        look = looks[row.dictionary, row.method]
        ends = [row.coherence_low, row.coherence_high]
        axes.plot(ends, [row.mean_cosine] * 2, color=look.colour, lw=0.9, zorder=2)
        axes.plot([row.coherence] * 2, [row.low, row.high], color=look.colour, lw=0.9, zorder=2)
        axes.plot(
            [row.coherence],
            [row.mean_cosine],
            linestyle="none",
            marker=look.marker,
            color=look.colour,
            markerfacecolor=style.whitening_fill(row.whitening, look.colour),
            mew=0.8,
            ms=4,
            zorder=3,
        )
    axes.set_xlim(-0.03, 1.05)
    axes.set_ylim(-0.02, 1.06)
    axes.set_xticks([0, 0.5, 1])


def _facts(summary: pd.DataFrame, data: str) -> str:
    """Stability of every dictionary of a data set in words."""
    here = summary[summary["dataset"] == data]
    parts = [
        f"{style.dictionary_label(row.dictionary, row.method)} {style.whitening_label(row.whitening)} "
        f"{captions.number(row.mean_cosine)} [{captions.number(row.low)}, {captions.number(row.high)}] "
        f"(null {captions.number(row.null)}), "
        f"{captions.number(100 * row.shared, 0)} % shared{_bounds(row)}"
        for row in here.itertuples()
        if row.method in style.LEARNED
    ]
    return f"{data} " + (", ".join(parts) or "no learned dictionary")


def _bounds(row: Any) -> str:
    """Interval and null of the share of shared atoms, and coherence with its null, where the table has them."""
    told = ""
    if hasattr(row, "shared_low") and hasattr(row, "shared_null"):
        low, high, null = (
            captions.number(100 * value, 0) for value in (row.shared_low, row.shared_high, row.shared_null)
        )
        told += f" [{low}, {high}] (null {null})"
    if hasattr(row, "coherence_null"):
        told += f", coherence {captions.number(row.coherence)} (null {captions.number(row.coherence_null)})"
    return told
