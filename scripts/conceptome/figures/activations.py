"""F1: activations before and after whitening, and the spectrum of held-out controls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from conceptome.figures import captions, style
from conceptome.figures.panels import (
    Drawing,
    dataset_title,
    is_null_model,
    main_models,
    need,
    unique,
    usable,
    whitenings,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

BOUNDS, NULL = ("low", "high"), ("null", "null_low", "null_high")
EDGE = 0.005  # share of points beyond each side of the frame: a few outliers would shrink the rest to a blot


def draw(tables: Mapping[str, pd.DataFrame], cards: Mapping[str, Mapping[str, Any]]) -> Drawing:
    """Draw F1: one row per data set (and one more by batch), columns raw, whitened, spectrum."""
    import pandas as pd

    points = usable(tables, "activations", ["dataset", "model", "whitening", "pc1", "pc2", "control"], "activations")
    every = {data: unique(points.loc[points["dataset"] == data, "model"]) for data in unique(points["dataset"])}
    points = main_models(points, cards)
    spectrum = tables.get("spectrum", pd.DataFrame())
    # Before and after needs both; data sets with a single whitening are drawn only when no data set has two.
    both = [data for data, rows in points.groupby("dataset", sort=False) if rows["whitening"].nunique() > 1]
    datasets = both or unique(points["dataset"])
    points = points[points["dataset"].isin(datasets)]
    rows = [(data, column) for data in datasets for column in ("control", *_batches(points, cards, data))]
    n_columns = max(points[points["dataset"] == data]["whitening"].nunique() for data in datasets) + 1

    figure = style.new_figure(8 + 43 * len(rows))
    axes = figure.subplots(len(rows), n_columns, squeeze=False)
    drawing = Drawing(figure, "Activations before and after whitening with controls")
    letters = style.letters()
    outside = 0
    facts, drawn, shares = [], [], []
    for line, (data, colour_by) in zip(axes, rows):
        here = points[points["dataset"] == data]
        model = here["model"].iloc[0]
        drawn.append((data, model))
        shown = whitenings(here)
        for panel, whitening in zip(line, shown):
            part = _table(here[here["whitening"] == whitening], colour_by)
            letter = next(letters)
            outside += _projection(panel, part, colour_by)
            title = dataset_title(cards[data], data, model) if whitening == shown[0] else ""
            style.mark(panel, letter, f"{title}\n{style.whitening_label(whitening)}".strip(), wrap=48)
            source = here[here["whitening"] == whitening]
            for axis, label in ((1, panel.set_xlabel), (2, panel.set_ylabel)):
                share = f" ({100 * source[f'pc{axis}_share'].iloc[0]:.0f} %)" if f"pc{axis}_share" in source else ""
                label(f"PC {axis}{share}")
            if colour_by == "control" and "pc1_share_low" in source:
                shares.append(f"{data} {style.whitening_label(whitening)} {_shares(source.iloc[0])}")
            drawing.add(letter, part)
            if colour_by == "control" and whitening == shown[0]:
                facts.append(
                    f"{data} ({model}): {captions.count(len(part))} points drawn, "
                    f"{captions.count((part['colour'] == 'control').sum())} controls"
                )
        for panel in line[len(shown) :]:
            panel.set_axis_off()
        _legend(line[0], points_colours(here, colour_by), "" if colour_by == "control" else f"{colour_by} ")
        if colour_by == "control" and len(spectrum):
            need(spectrum, "spectrum", ["component", "eigenvalue", "n"])
            part = spectrum[(spectrum["dataset"] == data) & (spectrum["model"] == model)]
            if len(part):
                panel = line[len(shown)]
                panel.set_axis_on()
                letter = next(letters)
                columns = ["dataset", "model", "whitening", "component", "eigenvalue", "n"]
                columns += [name for name in (*BOUNDS, *NULL) if name in part]
                table = part[columns].copy()
                # Only the last whitening is held against the null.
                table.loc[table["whitening"] != shown[-1], [name for name in NULL if name in table]] = float("nan")
                _spectrum(panel, table)
                style.mark(panel, letter, "spectrum of test controls")
                drawing.add(letter, table)
                facts.append(f"{data} spectrum: {captions.count(part['n'].iloc[0])} test controls")
    drawing.sentences = [
        "Projections: seeded samples on the first two principal axes (share of variance in brackets) of the training "
        "samples in that space, raw or whitened; coloured by control against the rest and, where a technical batch "
        "label "
        f"exists, by batch. {captions.count(outside)} extreme points lie outside the frames. n: "
        f"{captions.several(facts)}.",
        f"Shares of the training controls' variance along the axes, with interval: {captions.several(shares)}; null: "
        "as many rows alike in all directions (upper edge of Marchenko and Pastur; along fixed, whitened axes 1 in p).",
        "Spectrum: eigenvalues (variance, log scales) of the covariance of TEST controls, which the whitening, fitted "
        "on training controls, has not seen. A whitening that holds on them is flat near 1 (dotted), as flat as the "
        "null; one that overfits its controls bends away from it.",
        "Null (grey): the spectrum of as many independent samples with the same total variance, alike in all "
        "directions.",
        captions.interval(cards, datasets) + " They belong to shares and eigenvalues (band); points have none.",
        *captions.notes(cards, datasets),
        *captions.warnings(cards, datasets, dict.fromkeys(drawn)),
    ]
    single = [data for data in every if data not in datasets]
    if single:
        drawing.sentences.append(f"No panel, since only one whitening was run: {', '.join(single)}.")
    rest = captions.left_out(
        {data: [m for m in every[data] if not is_null_model(cards[data], m)] for data in datasets}, drawn
    )
    drawing.sentences += [rest] if rest else []
    return drawing


def _shares(row: pd.Series) -> str:
    """Both shares of variance with interval and null, in per cent."""
    texts = []
    for axis in (1, 2):
        value, low, high, null = (100 * row[f"pc{axis}_share{part}"] for part in ("", "_low", "_high", "_null"))
        bounds = f"[{low:.0f}, {high:.0f}]" if low == low else "(one group: no interval)"
        texts.append(f"PC {axis} {value:.0f} % {bounds} (null {null:.1f} %)")
    return ", ".join(texts)


def _batches(points: pd.DataFrame, cards: Mapping[str, Mapping[str, Any]], data: str) -> list[str]:
    """Column to colour by in the extra row: 'batch', where it is a declared technical label with two values or more."""
    labels = cards[data].get("labels", {})
    rows = points[points["dataset"] == data]
    name = cards[data].get("batch_is") or "batch"
    technical = labels.get(name, {}).get("role") == "technical"
    return ["batch"] if technical and "batch" in rows and rows["batch"].nunique() > 1 else []


def _table(rows: pd.DataFrame, colour_by: str) -> pd.DataFrame:
    """Return the points of one panel, in a seeded order so that no class hides another."""
    import numpy as np

    table = rows[["dataset", "model", "whitening", "sample_id", "pc1", "pc2"]].copy()
    if colour_by == "control":
        table["colour"] = np.where(rows["control"].astype(bool), "control", "rest")
    else:
        table["colour"] = rows[colour_by].astype(str)
    return table.iloc[np.random.default_rng(0).permutation(len(table))].reset_index(drop=True)


def points_colours(rows: pd.DataFrame, colour_by: str) -> dict[str, str]:
    """Colour of each class of a projection panel."""
    if colour_by == "control":
        return {"control": style.CONTROL_COLOUR, "rest": style.REST_COLOUR}
    values = sorted(rows[colour_by].dropna().astype(str).unique())
    return {value: style.SERIES[index % len(style.SERIES)] for index, value in enumerate(values)}


def _projection(axes: Axes, table: pd.DataFrame, colour_by: str) -> int:
    """Scatter of one panel; returns how many points the frame leaves outside."""
    import numpy as np

    colours = points_colours(table.rename(columns={"colour": colour_by}), colour_by)
    size = float(np.clip(3000 / max(len(table), 1), 0.8, 6.0))
    axes.scatter(
        table["pc1"],
        table["pc2"],
        s=size,
        c=table["colour"].map(colours).fillna(style.NULL_COLOUR).tolist(),
        alpha=0.55,
        linewidths=0,
        rasterized=True,
    )
    inside = np.ones(len(table), dtype=bool)
    for column, limit in (("pc1", axes.set_xlim), ("pc2", axes.set_ylim)):
        low, high = np.quantile(table[column], [EDGE, 1 - EDGE])
        pad = 0.08 * (high - low) or 1.0
        limit(low - pad, high + pad)
        inside &= table[column].between(low - pad, high + pad).to_numpy()
    axes.locator_params(nbins=4)
    return int((~inside).sum())


def _legend(axes: Axes, colours: dict[str, str], before: str) -> None:
    from matplotlib.lines import Line2D

    if len(colours) > len(style.SERIES):
        return
    handles = [
        Line2D([], [], marker="o", ms=3, linestyle="none", color=colour, label=f"{before}{name}")
        for name, colour in colours.items()
    ]
    axes.legend(handles=handles, loc="best", handletextpad=0.1, borderpad=0.1, labelspacing=0.2)


def _spectrum(axes: Axes, table: pd.DataFrame) -> None:
    """Eigenvalues by rank, raw dashed and whitened solid, with intervals, over the null of the last whitening."""
    shown = whitenings(table)
    colours = dict(zip(shown, (style.REFERENCE_COLOUR, style.METHODS["icfl"].colour, style.METHODS["topk"].colour)))
    largest = float(table["eigenvalue"].max())
    # A rank-deficient spectrum ends in zeros, which a log scale cannot show.
    table = table[table["eigenvalue"] > 1e-7 * largest]
    for whitening in shown:
        part = table[table["whitening"] == whitening].sort_values("component")
        colour = colours.get(whitening, style.REFERENCE_COLOUR)
        if set(BOUNDS) <= set(part):
            axes.fill_between(part["component"], part["low"], part["high"], color=colour, alpha=0.25, lw=0, zorder=2)
        line = style.whitening_line(whitening)
        label = style.whitening_label(whitening)
        axes.plot(part["component"], part["eigenvalue"], color=colour, linestyle=line, label=label, zorder=3)
    if set(NULL) <= set(table):
        null = table[table["whitening"] == shown[-1]].sort_values("component")
        axes.fill_between(
            null["component"], null["null_low"], null["null_high"], color=style.NULL_COLOUR, lw=0, zorder=1
        )
        axes.plot(null["component"], null["null"], color=style.NULL_COLOUR, lw=2.6, zorder=1, label="null: isotropic")
    axes.axhline(1.0, color=style.REFERENCE_COLOUR, linestyle=":", lw=0.8, zorder=0)
    axes.set_xscale("log", base=10)
    axes.set_yscale("log", base=10)
    low, high = 0.6 * min(float(table["eigenvalue"].min()), 0.5), 1.6 * max(largest, 2.0)
    axes.set_ylim(low, high)
    style.plain_log(axes.yaxis, 10, (low, high))
    style.plain_log(axes.xaxis, 10, (1, float(table["component"].max())))
    axes.set_xlabel("component")
    axes.set_ylabel("variance")
    axes.legend(loc="best", labelspacing=0.2)
