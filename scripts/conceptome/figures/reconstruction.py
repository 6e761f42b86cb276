"""F2: reconstruction against sparsity, with dead atoms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from conceptome.figures import captions, style
from conceptome.figures.panels import (
    KEYS,
    Drawing,
    dictionaries,
    dot_rows,
    is_null_model,
    main_models,
    over_seeds,
    short_title,
    unique,
    usable,
    whitenings,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

FLOOR = 0.02  # a dictionary with all its axes reaches 0, which a log scale cannot show


def draw(tables: Mapping[str, pd.DataFrame], cards: Mapping[str, Mapping[str, Any]]) -> Drawing:
    """Draw F2: one line per data set: FVU in each of its spaces (raw, whitened), and dead atoms."""
    frame = usable(tables, "reconstruction", [*KEYS, "seed", "k", "l0", "fvu", "dead", "m", "n"], "reconstruction")
    every = {data: unique(frame.loc[frame["dataset"] == data, "model"]) for data in unique(frame["dataset"])}
    frame = main_models(frame, cards)
    datasets = unique(frame["dataset"])
    shown = whitenings(frame)
    rows = dictionaries(frame)
    curves = over_seeds(
        frame.rename(columns={"fvu_low": "low", "fvu_high": "high", "fvu_null": "null"}),
        [*KEYS, "k"],
        "fvu",
        keep=["l0"],
        nulls=True,
    )
    dead = _dead(frame)

    looks = style.looks(rows)
    heights = {data: 11 + max(32.0, 6 + 4.2 * len(dictionaries(frame[frame["dataset"] == data]))) for data in datasets}
    figure = style.new_figure(14 + sum(heights.values()))
    parts = figure.subfigures(len(datasets), 1, squeeze=False, height_ratios=list(heights.values()))[:, 0]
    drawing = Drawing(figure, "Reconstruction against sparsity, and dead atoms")
    letters = style.letters()
    for page, data in zip(parts, datasets):
        own, table = frame[frame["dataset"] == data], curves[curves["dataset"] == data]
        spaces = whitenings(own)
        line = page.subplots(1, len(spaces) + 1, squeeze=False)[0]
        limits = _limits(table)
        for number, (panel, whitening) in enumerate(zip(line, spaces)):
            part, seeds = (each[each["whitening"] == whitening] for each in (table, own))
            letter = next(letters)
            _curves(panel, part, seeds, looks, limits, number == 0)
            heading = (
                "" if number else short_title(cards[data], data, part["model"].iloc[0]).replace("\n", " · ") + "\n"
            )
            style.mark(panel, letter, heading + style.whitening_label(whitening))
            drawing.add(letter, part, seeds[[*KEYS, "seed", "k", "l0", "fvu"]])
        line[0].set_ylabel("FVU (test)")
        panel, letter, part = line[-1], next(letters), dead[dead["dataset"] == data]
        seeds = _dead_by_seed(own)[[*KEYS, "seed", "dead", "m", "dead_percent"]]
        dot_rows(panel, part, "dead_percent", dictionaries(own), seeds=seeds, looks=looks)
        reach = part[[name for name in ("high", "null_high") if name in part]].max().max()
        most = min(max(10.0, float(reach)), 100.0)
        panel.set_xlim(-0.05 * most, 1.06 * most)
        panel.set_xlabel("dead atoms (%)")
        style.mark(panel, letter)
        drawing.add(letter, part, seeds)
    handles = [
        *style.method_handles(rows),
        *style.whitening_handles(shown, markers=True),
        style.line_handle("null: codes of other samples", style.REFERENCE_COLOUR, ":"),
        *([style.null_handle("null: as many active atoms at random")] if "null" in dead else []),
    ]
    style.legend_below(figure, handles, columns=5)

    best = captions.several(_summary(curves, data) for data in datasets)
    sizes = captions.several(
        f"{data} {captions.span(rows_['n'].tolist())}" for data, rows_ in frame.groupby("dataset", sort=False)
    )
    drawing.sentences = [
        "Fraction of variance unexplained (FVU; no unit, log scale) of test samples against the mean number of active "
        "atoms (L0, log scale) at several inference budgets, in the space in which the dictionary was trained (raw or "
        f"whitened). n test samples: {sizes}. Values below {FLOOR} lie under the frame.",
        f"Lowest FVU of a learned dictionary: {best}.",
        "On the right: atoms that never fire on training samples, per cent of all atoms, at the trained budget"
        + _dead_sizes(frame)
        + "; "
        + ("bars: jackknife over groups, " if "dead_low" in frame else "bars and ")
        + "ticks: seeds."
        + (
            " Null (grey): atoms left silent where every sample has as many active atoms, drawn at random."
            if "null" in dead
            else ""
        ),
        captions.interval(cards, datasets) + " " + captions.seeds_sentence(frame["seed"].nunique()),
        "Null (dotted): FVU when each sample is given another sample's codes; 1 is what the mean alone reaches.",
        *captions.warnings(cards, datasets, dict.fromkeys(zip(frame["dataset"], frame["model"]))),
    ]
    rest = captions.left_out(
        {data: [m for m in names if not is_null_model(cards[data], m)] for data, names in every.items()},
        zip(frame["dataset"], frame["model"]),
    )
    drawing.sentences += [rest] if rest else []
    return drawing


def _limits(curves: pd.DataFrame) -> tuple[float, float]:
    """One FVU range for all spaces of a data set."""
    bottom = max(FLOOR, 0.8 * float(curves["low"].clip(lower=FLOOR).min()))
    tops = [curves["high"].max(), 1.0] + ([curves["null"].max()] if "null" in curves else [])
    return bottom, 1.2 * float(max(tops))


def _curves(
    axes: Axes,
    table: pd.DataFrame,
    seeds: pd.DataFrame,
    looks: Mapping[tuple[str, str], style.Method],
    limits: tuple[float, float],
    labelled: bool,
) -> None:
    """FVU against L0: mean over seeds with its band, thin lines for seeds, dotted null."""
    for (dictionary, _), look in looks.items():
        part = table[table["dictionary"] == dictionary].sort_values("l0")
        if part.empty:
            continue
        own = seeds[seeds["dictionary"] == dictionary]
        if own["seed"].nunique() > 1:
            for _, one in own.groupby("seed"):
                one = one.sort_values("l0")
                axes.plot(one["l0"], one["fvu"], color=look.colour, lw=0.4, alpha=0.6, zorder=2)
        axes.fill_between(part["l0"], part["low"], part["high"], color=look.colour, alpha=0.18, lw=0, zorder=1)
        axes.plot(part["l0"], part["fvu"], color=look.colour, marker=look.marker, ms=2.6, mew=0, zorder=3)
        if "null" in part:
            axes.plot(part["l0"], part["null"], color=look.colour, linestyle=":", lw=0.8, zorder=1)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=10)
    axes.set_ylim(limits)
    axes.axhline(1.0, color=style.NULL_COLOUR, lw=0.6, zorder=0)
    _decades(axes, limits)
    if not labelled:
        axes.set_yticklabels([])
    low, high = float(table["l0"].min()), float(table["l0"].max())
    axes.set_xlim(low / 1.2, high * 1.2)
    style.plain_log(axes.xaxis, 2, (low / 1.2, high * 1.2))
    axes.set_xlabel("L0 (active atoms)")


def _decades(axes: Axes, limits: tuple[float, float]) -> None:
    """Ticks at 1, 2 and 5 of every decade: an FVU axis spans about two."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    ticks = [tick for tick in (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10) if limits[0] <= tick <= limits[1]]
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _dead_by_seed(frame: pd.DataFrame) -> pd.DataFrame:
    """Dead share per seed at the largest budget, which is the trained one."""
    rows = frame.loc[frame.groupby([*KEYS, "seed"], sort=False, dropna=False)["k"].idxmax()].copy()
    rows["dead_percent"] = 100 * rows["dead"] / rows["m"]
    kept = [*KEYS, "seed", "dead", "m", "dead_percent"]
    for name in ("low", "high", "null", "null_low", "null_high"):
        if f"dead_{name}" in rows:
            rows[name] = 100 * rows[f"dead_{name}"] / rows["m"]
            kept.append(name)
    return rows[[*kept, "n_train"] if "n_train" in rows else kept]


def _dead(frame: pd.DataFrame) -> pd.DataFrame:
    """Dead share over seeds, with outermost bounds and the null's."""
    return over_seeds(_dead_by_seed(frame), KEYS, "dead_percent", keep=["dead", "m", "n_train"], nulls=True)


def _dead_sizes(frame: pd.DataFrame) -> str:
    """Numbers of training samples on which atoms were counted."""
    if "n_train" not in frame:
        return ""
    told = captions.several(
        f"{data} {captions.span(rows['n_train'].tolist())}" for data, rows in frame.groupby("dataset", sort=False)
    )
    return f" (n training samples: {told})"


def _summary(curves: pd.DataFrame, data: str) -> str:
    """Best learned dictionary of a data set, per whitening."""
    rows = curves[(curves["dataset"] == data) & curves["method"].isin(style.LEARNED)]
    if rows.empty:
        return f"{data} none"
    parts = []
    for whitening in whitenings(rows):
        part = rows[rows["whitening"] == whitening]
        row = part.loc[part["fvu"].idxmin()]
        parts.append(
            f"{style.whitening_label(whitening)} {style.dictionary_label(row['dictionary'], row['method'])} "
            f"{captions.number(row['fvu'])} [{captions.number(row['low'])}, {captions.number(row['high'])}] "
            + (f"(null {captions.number(row['null'])}) " if "null" in row else "")
            + f"at L0 {captions.number(row['l0'], 1)}"
        )
    return f"{data} " + ", ".join(parts)
