"""F9: recovery of hidden variables in simulated data, against completeness."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from conceptome.figures import captions, style
from conceptome.figures.panels import (
    KEYS,
    Drawing,
    dictionaries,
    in_blocks,
    models,
    null_ticks,
    short_title,
    unique,
    usable,
    whitenings,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

SCATTERED = ("icfl", "topk", "identity", "random")
FEW = 40  # with this many variables or fewer, every interval can be seen


def draw(tables: Mapping[str, pd.DataFrame], cards: Mapping[str, Mapping[str, Any]]) -> Drawing:
    """Draw F9: one column per data set and model; rows best |r| against completeness, counts above thresholds."""
    import pandas as pd

    need = [*KEYS, "seed", "variable", "layer", "best_correlation", "completeness_r2"]
    frame = usable(tables, "recovery", need, "recovery")
    frame = pd.concat(
        [
            rows[rows["model"].isin(models(rows, cards[data])) & (rows["whitening"] == whitenings(rows)[0])]
            for data, rows in frame.groupby("dataset", sort=False)
        ]
    )
    datasets = unique(frame["dataset"])
    columns = list(dict.fromkeys(zip(frame["dataset"], frame["model"])))
    rows = dictionaries(frame)
    looks = style.looks(rows)
    blocks = in_blocks(columns)
    figure = style.new_figure(18 + 2 * 45 * len(blocks))
    parts = figure.subfigures(len(blocks), 1, squeeze=False)[:, 0]
    drawing = Drawing(figure, "Recovery of hidden variables against completeness (SIMULATED data)")
    letters = style.letters()
    variables = _variables(frame)
    facts = []
    has_null = "completeness_null" in frame
    figure.suptitle("SIMULATED data", fontsize=style.FONT)
    bars = {data: captions.settings(cards[data], "measures").recovered_above for data in datasets}
    recovered = ", ".join(f"{value:g}" for value in sorted(set(bars.values())))
    for page, block in zip(parts, blocks):
        axes = page.subplots(2, len(block), squeeze=False, sharey="row")
        for panel, (data, model) in zip(axes[0], block):
            here = variables[(variables["dataset"] == data) & (variables["model"] == model)]
            part = here[here["method"].isin(SCATTERED)]
            part = part if len(part) else here
            letter = next(letters)
            _scatter(panel, part, looks)
            title = short_title({**cards[data], "simulated": True}, data, model)
            style.mark(panel, letter, title, wrap=110 // len(block))
            panel.set_xlabel("completeness (R²)")
            drawing.add(letter, part)
        axes[0, 0].set_ylabel("best |r| of an atom")
        for panel, (data, model) in zip(axes[1], block):
            here = variables[(variables["dataset"] == data) & (variables["model"] == model)]
            table = _counts(here)
            letter = next(letters)
            _count_curves(panel, table, bars[data], looks)
            style.mark(panel, letter)
            panel.set_xlabel("threshold on |r|")
            drawing.add(letter, table)
            facts.append(f"{data}/{model} " + _facts(here, bars[data]))
        axes[1, 0].set_ylabel("share of variables\nat or above threshold")
    handles = [
        *style.method_handles(rows),
        style.line_handle("best linear readout, √R²", "black", "--"),
        style.band_handle("null: permuted"),
    ]
    style.legend_below(figure, handles)

    sizes = captions.several(
        f"{data} {captions.count(part['variable'].nunique())} variables"
        + (f", {captions.span(part['n'].tolist())} test samples" if "n" in part else "")
        for data, part in frame.groupby("dataset", sort=False)
    )
    drawing.sentences = [
        "SIMULATED data with planted truth. Above: for every hidden variable absolute correlation with the code of "
        "its best "
        "atom, "
        "chosen on training and validation samples (test; mean over seeds), against completeness, the R² (test) with "
        "which a linear regression from "
        "the activations reads the variable. The dashed line √R² is the correlation of that readout: what the model "
        "holds bounds what a code could show that is linear in the activations. Sparse codes are not (only the "
        "strongest atoms fire), so a variable can lie above it. Below: share of variables whose best absolute r "
        "reaches a threshold. "
        f"Correlations and R² have no unit. n: {sizes}.",
        f"Variables recovered (absolute r > {recovered} on average over seeds), completeness (median R²) beside: "
        f"{captions.several(facts)}.",
        captions.interval(cards, datasets)
        + f" Bars (panels with at most {FEW} variables) and bands (below) use the bounds of each variable. "
        + captions.seeds_sentence(frame["seed"].nunique()),
        "Null (grey): the same with the hidden variables permuted over samples; above its band over all variables, "
        "below "
        "its upper bound."
        + (" Tick on the axis of R²: the largest mean R² of a permuted variable." if has_null else ""),
        "Drawn as points: "
        + ", ".join(style.method(name).label for name in SCATTERED if name in set(frame["method"]))
        + "; all dictionaries below.",
        *[
            text
            for text in captions.warnings(cards, datasets, dict.fromkeys(columns))
            if not text.startswith("SIMULATED")
        ],
    ]
    return drawing


def _variables(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per dictionary and hidden variable: mean over seeds, outermost bounds."""
    spec = {
        "best_correlation": ("best_correlation", "mean"),
        "completeness_r2": ("completeness_r2", "mean"),
        "n_seeds": ("best_correlation", "size"),
    }
    bounds = (("low", "min"), ("high", "max"), ("null_low", "min"), ("null_high", "max"))
    bounds += (("completeness_low", "mean"), ("completeness_high", "mean"), ("completeness_null", "mean"))
    for column, how in bounds:
        if column in frame:
            spec[column] = (column, how)
    table = frame.groupby([*KEYS, "layer", "variable"], sort=False).agg(**spec).reset_index()
    for bound in ("low", "high"):
        if bound not in table:
            table[bound] = float("nan")
    return table


def _scatter(axes: Axes, table: pd.DataFrame, looks: Mapping[tuple[str, str], style.Method]) -> None:
    """Best |r| against completeness; intervals where there are few variables; the readout's own correlation dashed."""
    import numpy as np

    few = table["variable"].nunique() <= FEW
    x = table["completeness_r2"].clip(lower=0)
    if {"null_low", "null_high"} <= set(table):
        low, high = float(table["null_low"].min()), float(table["null_high"].max())
        axes.axhspan(low, high, color=style.NULL_COLOUR, alpha=0.6, lw=0, zorder=0)
    if "completeness_null" in table:
        # One mark for all variables: the largest R² that a permuted one reaches on average.
        null_ticks(axes, table["completeness_null"].clip(lower=0).agg(["max"]))
    line = np.linspace(0, 1, 101)
    axes.plot(line, np.sqrt(line), color="black", linestyle="--", lw=0.8, zorder=1)
    for dictionary, name in reversed(dictionaries(table)):
        part = table[table["dictionary"] == dictionary]
        look = looks[dictionary, name]
        if few:
            axes.vlines(x[part.index], part["low"], part["high"], color=look.colour, lw=0.6, alpha=0.7, zorder=2)
            if {"completeness_low", "completeness_high"} <= set(part):
                ends = part[["completeness_low", "completeness_high"]].clip(lower=0)
                axes.hlines(
                    part["best_correlation"],
                    ends["completeness_low"],
                    ends["completeness_high"],
                    color=look.colour,
                    lw=0.4,
                    alpha=0.5,
                    zorder=2,
                )
        axes.plot(
            x[part.index],
            part["best_correlation"],
            linestyle="none",
            marker=look.marker,
            color=look.colour,
            ms=3.2 if few else 2.0,
            alpha=0.9 if few else 0.55,
            mew=0,
            zorder=3,
            rasterized=not few,
        )
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(-0.02, 1.03)
    axes.set_xticks([0, 0.5, 1])


def _counts(table: pd.DataFrame) -> pd.DataFrame:
    """Share of variables at or above each threshold: by estimate, by lower and upper bound; readout and null beside."""
    import numpy as np
    import pandas as pd

    thresholds = np.round(np.linspace(0, 1, 101), 2)

    def share(values: pd.Series) -> np.ndarray:
        known = values.dropna().to_numpy()
        return np.array([(known >= t).mean() for t in thresholds]) if len(known) else np.full(len(thresholds), np.nan)

    parts = []
    for keys, part in table.groupby(KEYS, sort=False):
        names = dict(zip(KEYS, keys))
        curve = {"threshold": thresholds, "share": share(part["best_correlation"])}
        curve |= {"low": share(part["low"]), "high": share(part["high"])}
        parts.append(pd.DataFrame({**names, "what": "dictionary", **curve, "n_variables": len(part)}))
    one = table.drop_duplicates("variable")
    base = {name: table[name].iloc[0] for name in ("dataset", "model", "whitening")}
    readout = share(np.sqrt(one["completeness_r2"].clip(lower=0)))
    parts.append(pd.DataFrame({**base, "what": "readout", "threshold": thresholds, "share": readout}))
    if "null_high" in table:
        null = share(table.groupby("variable")["null_high"].max())
        parts.append(pd.DataFrame({**base, "what": "null", "threshold": thresholds, "share": null}))
    return pd.concat(parts, ignore_index=True)


def _count_curves(
    axes: Axes, table: pd.DataFrame, recovered: float, looks: Mapping[tuple[str, str], style.Method]
) -> None:
    """Exceedance of |r| per dictionary, with the bounds' band for learned dictionaries, readout and null."""
    null = table[table["what"] == "null"]
    axes.fill_between(null["threshold"], 0, null["share"], color=style.NULL_COLOUR, alpha=0.6, lw=0, zorder=0)
    readout = table[table["what"] == "readout"]
    axes.plot(readout["threshold"], readout["share"], color="black", linestyle="--", lw=0.8, zorder=2)
    curves = table[table["what"] == "dictionary"]
    for number, (dictionary, name) in enumerate(reversed(dictionaries(curves))):
        part = curves[curves["dictionary"] == dictionary]
        look = looks[dictionary, name]
        if name in style.LEARNED:
            axes.fill_between(
                part["threshold"], part["low"], part["high"], color=look.colour, alpha=0.15, lw=0, zorder=1
            )
        axes.plot(
            part["threshold"],
            part["share"],
            color=look.colour,
            lw=1.0,
            zorder=3,
            drawstyle="steps-post",
            marker=look.marker,
            ms=2.5,
            mew=0,
            markevery=(4 + 4 * (number % 6), 25),
        )
    axes.axvline(recovered, color=style.REFERENCE_COLOUR, linestyle=":", lw=0.8, zorder=0)
    axes.set_xlim(0, 1.02)
    axes.set_ylim(-0.02, 1.03)
    axes.set_xticks([0, 0.5, 1])


def _facts(table: pd.DataFrame, recovered: float) -> str:
    """Variables recovered per dictionary: by estimate, by lower and upper bound, and by the null's upper bound."""
    total = table["variable"].nunique()
    parts = []
    for dictionary, name in dictionaries(table):
        rows = table[table["dictionary"] == dictionary]
        number, low, high = (int((rows[column] > recovered).sum()) for column in ("best_correlation", "low", "high"))
        null = f"; null {int((rows['null_high'] > recovered).sum())}" if "null_high" in rows else ""
        parts.append(f"{style.dictionary_label(dictionary, name)} {number} ({low} to {high}{null})")
    one = table.drop_duplicates("variable")
    middle = captions.number(one["completeness_r2"].median())
    if "completeness_null" in one:
        low, high, null = (captions.number(one[f"completeness_{end}"].median()) for end in ("low", "high", "null"))
        middle += f" ({low} to {high}; null {null})"
    return f"{', '.join(parts)} of {total} (R² {middle})"
