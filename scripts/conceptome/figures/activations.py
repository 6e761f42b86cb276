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
    models,
    need,
    unique,
    usable,
    whitenings,
)

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.axes import Axes

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
    facts, drawn = [], []
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
            style.mark(panel, letter, f"{title}\n{style.whitening_label(whitening)}".strip())
            panel.set_xlabel("PC 1 of controls")
            panel.set_ylabel("PC 2 of controls")
            drawing.add(letter, part)
            if colour_by == "control" and whitening == shown[0]:
                facts.append(
                    f"{data} ({model}): {captions.count(len(part))} points drawn, "
                    f"{captions.count((part['colour'] == 'control').sum())} controls"
                )
        for panel in line[len(shown) :]:
            panel.set_axis_off()
        _legend(line[0], points_colours(here, colour_by))
        if colour_by == "control" and len(spectrum):
            need(spectrum, "spectrum", ["component", "eigenvalue", "n"])
            part = spectrum[(spectrum["dataset"] == data) & (spectrum["model"] == model)]
            if len(part):
                panel = line[len(shown)]
                panel.set_axis_on()
                letter = next(letters)
                table = _with_reference(part)
                _spectrum(panel, table)
                style.mark(panel, letter, "spectrum of test controls")
                drawing.add(letter, table)
                facts.append(f"{data} spectrum: {captions.count(part['n'].iloc[0])} test controls")
    drawing.sentences = [
        "Projections: seeded samples on the first two principal axes of the controls of that space (raw or whitened), "
        "coloured by control against the rest and, where a technical batch label exists, by batch. "
        f"{captions.count(outside)} extreme points lie outside the frames. n: {captions.several(facts)}.",
        "Spectrum: eigenvalues of the covariance of TEST controls, which the whitening (fitted on training controls) "
        "has not seen; units of variance, log scales. Null: the grey line is what n independent samples with exactly "
        "unit covariance give (Marchenko-Pastur quantiles); a whitening that generalises follows it. "
        "The figure shows samples and spectra themselves: no interval (no confidence level) applies.",
        *captions.warnings(cards, datasets, dict.fromkeys(drawn)),
    ]
    rest = captions.left_out(
        {data: [m for m in names if not is_null_model(cards[data], m)] for data, names in every.items()}, drawn
    )
    drawing.sentences += [rest] if rest else []
    return drawing


def _batches(points: pd.DataFrame, cards: Mapping[str, Mapping[str, Any]], data: str) -> list[str]:
    """Column to colour by in the extra row: 'batch', where it is a declared technical label with two values or more."""
    labels = cards[data].get("labels", {})
    rows = points[points["dataset"] == data]
    technical = labels.get("batch", {}).get("role") == "technical"
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


def _legend(axes: Axes, colours: dict[str, str]) -> None:
    from matplotlib.lines import Line2D

    if len(colours) > len(style.SERIES):
        return
    handles = [
        Line2D([], [], marker="o", ms=3, linestyle="none", color=colour, label=name) for name, colour in colours.items()
    ]
    axes.legend(handles=handles, loc="best", handletextpad=0.1, borderpad=0.1, labelspacing=0.2)


def marchenko_pastur(d: int, n: int) -> np.ndarray:
    """Sorted eigenvalues expected of the covariance of n independent samples with unit covariance.

    Parameters
    ----------
    d
        Dimensions.
    n
        Samples; with n < d, d − n eigenvalues are zero and are left out.

    Returns
    -------
    (min(d, n),) float64, descending: quantiles of the Marchenko-Pastur law (Marchenko and Pastur 1967) at the ranks'
    midpoints.
    """
    import numpy as np

    ratio = d / n
    low, high = (1 - np.sqrt(ratio)) ** 2, (1 + np.sqrt(ratio)) ** 2
    # x = middle − half·cos(t) takes the square-root edges out of the density, which may diverge at 0.
    angle = np.linspace(0, np.pi, 4097)
    x = (low + high) / 2 - (high - low) / 2 * np.cos(angle)
    weight = np.sin(angle) ** 2 / np.maximum(x, 1e-12)
    cumulative = np.concatenate([[0.0], np.cumsum((weight[1:] + weight[:-1]) / 2)])
    kept = min(d, n)
    ranks = 1 - (np.arange(kept) + 0.5) / kept
    return np.interp(ranks, cumulative / cumulative[-1], x)


def _with_reference(rows: pd.DataFrame) -> pd.DataFrame:
    """Add the Marchenko-Pastur eigenvalues to the observed ones (per whitening: it may keep fewer dimensions)."""
    import pandas as pd

    parts = []
    for _, part in rows.groupby("whitening", sort=False):
        part = part.sort_values("eigenvalue", ascending=False)
        table = part[["dataset", "model", "whitening", "eigenvalue", "n"]].copy()
        table["component"] = range(1, len(part) + 1)
        expected = marchenko_pastur(len(part), int(part["n"].iloc[0]))
        table["null"] = pd.Series(expected, index=table.index[: len(expected)])
        parts.append(table)
    return pd.concat(parts)


def _spectrum(axes: Axes, table: pd.DataFrame) -> None:
    """Eigenvalues by rank, raw dashed and whitened solid, over the reference for exactly unit covariance."""
    shown = whitenings(table)
    positive = table[table["eigenvalue"] > 0]
    for whitening in shown:
        part = positive[positive["whitening"] == whitening]
        axes.plot(
            part["component"],
            part["eigenvalue"],
            color=style.REFERENCE_COLOUR if whitening == style.RAW else style.METHODS["icfl"].colour,
            linestyle=style.whitening_line(whitening),
            label=style.whitening_label(whitening),
        )
    reference = table[table["whitening"] == shown[-1]]
    axes.plot(
        reference["component"], reference["null"], color=style.NULL_COLOUR, lw=2.6, zorder=1, label="unit covariance"
    )
    axes.set_xscale("log", base=10)
    axes.set_yscale("log", base=10)
    low = max(float(positive["eigenvalue"].min()), float(positive["eigenvalue"].max()) * 1e-6)
    low, high = 0.6 * min(low, 0.5), 1.6 * max(float(positive["eigenvalue"].max()), 2.0)
    axes.set_ylim(low, high)
    style.plain_log(axes.yaxis, 10, (low, high))
    style.plain_log(axes.xaxis, 10, (1, float(table["component"].max())))
    axes.set_xlabel("component")
    axes.set_ylabel("variance")
    axes.legend(loc="best", labelspacing=0.2)
