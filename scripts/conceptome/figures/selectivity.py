"""F3: ordered selectivity curves of learned dictionaries, raw against whitened."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from conceptome.figures import captions, style
from conceptome.figures.panels import (
    KEYS,
    Drawing,
    dictionaries,
    is_null_model,
    main_models,
    short_title,
    unique,
    usable,
    whitenings,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

STATISTICS = {"avg": "average selectivity", "max": "max selectivity"}
MARKED = (1, 4, 16, 64)  # ranks whose atoms' own intervals are drawn
REACH = 2.2  # the bars of one rank take up this factor of the rank axis at most
MOST = 4  # dictionaries that one panel holds under all whitenings


def draw(tables: Mapping[str, pd.DataFrame], cards: Mapping[str, Mapping[str, Any]]) -> Drawing:
    """Draw F3: one column per data set and label; rows average and max selectivity."""
    import pandas as pd

    need = [*KEYS, "seed", "label", "atom", "avg", "max", "n"]
    frame = usable(tables, "selectivity", need, "selectivity")
    every = {data: unique(frame.loc[frame["dataset"] == data, "model"]) for data in unique(frame["dataset"])}
    whole, frame = frame, main_models(frame, cards)
    learned = frame[frame["method"].isin(style.LEARNED)]
    frame = learned if len(learned) else frame
    null = tables.get("selectivity_null", pd.DataFrame())
    datasets = unique(frame["dataset"])
    looks = style.looks(dictionaries(frame))
    # Raw and whitened stand beside each other, not in one panel, where a study has many dictionaries.
    columns = [
        (data, label, shown)
        for data, part in frame.groupby("dataset", sort=False)
        for label in unique(part["label"])
        for shown in (
            [whitenings(part)] if part["dictionary"].nunique() <= MOST else [[name] for name in whitenings(part)]
        )
    ]

    per_line = min(len(columns), 4)
    blocks = -(-len(columns) // per_line)
    figure = style.new_figure(14 + 2 * blocks * 43)
    axes = figure.subplots(2 * blocks, per_line, squeeze=False)
    for panel in axes.flat:
        panel.set_axis_off()
    drawing = Drawing(figure, "Ordered selectivity of atoms of learned dictionaries, raw against whitened")
    letters = style.letters()
    facts = []
    for row, (statistic, name) in enumerate(STATISTICS.items()):
        for index, (data, label, shown) in enumerate(columns):
            panel = axes[2 * (index // per_line) + row, index % per_line]
            panel.set_axis_on()
            here = frame[(frame["dataset"] == data) & (frame["label"] == label) & frame["whitening"].isin(shown)]
            table = _ordered(here, statistic)
            band = _band(null, here, label, statistic)
            letter = next(letters)
            _curve(panel, table, band, looks)
            if index % per_line == 0:
                panel.set_ylabel(name)
            panel.set_xlabel("atom rank")
            title = cards[data].get("labels", {}).get(label, {}).get("title") or label
            if shown != whitenings(frame[frame["dataset"] == data]):
                title += f" · {style.whitening_label(shown[0])}"
            style.mark(
                panel,
                letter,
                f"{short_title(cards[data], data, here['model'].iloc[0])}\n{title}".replace("\n", " · ", 1)
                if row == 0
                else "",
            )
            drawing.add(letter, pd.concat([table, band], ignore_index=True) if len(band) else table)
            if statistic == "avg":
                facts.append(f"{data}/{label} " + _above(here, band))
    rows = dictionaries(frame)
    handles = [
        *style.method_handles(rows),
        *style.whitening_handles(whitenings(frame)),
    ]
    if len(null):
        handles.append(style.band_handle("null: permuted labels"))
    style.legend_below(figure, handles)

    sizes = captions.several(f"{d} {captions.span(p['n'].tolist())}" for d, p in frame.groupby("dataset", sort=False))
    drawing.sentences = [
        "Selectivity of each atom for its class, which is chosen on training and validation samples and judged on test "
        "samples; atoms ordered by it (rank on a log scale). "
        "Average: share of the class's samples on which the atom fires minus the share of all other samples; max: "
        "minus "
        f"the share in the next class. Shares, no unit. n test samples: {sizes}.",
        f"Atoms whose interval for average selectivity lies wholly above the highest permuted curve (range of the "
        f"seeds; of permuted labels hardly ever one, for that is the upper bound of the curves' first rank): "
        f"{captions.several(facts)}.",
        captions.interval(cards, datasets)
        + " Bars at ranks "
        + ", ".join(map(str, MARKED))
        + " are the intervals of the atoms at that rank (from the lowest lower to the highest upper bound over seeds); "
        f"a curve is the mean and its band the range of {frame['seed'].nunique()} seed(s).",
        _null_sentence(null, cards, datasets),
        *captions.baselines(cards, whole, "max", ["label"]),
        *captions.notes(cards, datasets),
        *captions.warnings(cards, datasets, dict.fromkeys(zip(frame["dataset"], frame["model"]))),
    ]
    rest = captions.left_out(
        {data: [m for m in names if not is_null_model(cards[data], m)] for data, names in every.items()},
        zip(frame["dataset"], frame["model"]),
    )
    drawing.sentences += [rest] if rest else []
    return drawing


def _ordered(frame: pd.DataFrame, statistic: str) -> pd.DataFrame:
    """Ordered curve of every dictionary: by rank the mean, the range over seeds, and the atoms' interval bounds."""
    frame = frame.sort_values([*KEYS, "seed", statistic], ascending=[True] * 6 + [False], kind="stable").copy()
    frame["rank"] = frame.groupby([*KEYS, "seed"], sort=False).cumcount() + 1
    for bound in ("low", "high"):
        column = f"{statistic}_{bound}"
        frame[bound] = frame[column] if column in frame else float("nan")
    table = (
        frame.groupby([*KEYS, "label", "rank"], sort=False)
        .agg(
            value=(statistic, "mean"),
            seed_low=(statistic, "min"),
            seed_high=(statistic, "max"),
            low=("low", "min"),
            high=("high", "max"),
            n_seeds=(statistic, "size"),
        )
        .reset_index()
    )
    table["statistic"] = statistic
    table["what"] = "curve"
    # Bounds are drawn at a few ranks only; the table holds what is drawn.
    table.loc[~table["rank"].isin(MARKED), ["low", "high"]] = float("nan")
    return table


def _band(null: pd.DataFrame, here: pd.DataFrame, label: str, statistic: str) -> pd.DataFrame:
    """Envelope of the permuted-label curves of the dictionaries drawn: lowest low and highest high by rank."""
    import pandas as pd

    if null.empty:
        return pd.DataFrame(columns=["rank", "low", "median", "high"])
    rows = null[
        (null["dataset"] == here["dataset"].iloc[0])
        & (null["model"] == here["model"].iloc[0])
        & (null["label"] == label)
        & (null["statistic"] == statistic)
        & null["dictionary"].isin(here["dictionary"])
        & null["whitening"].isin(here["whitening"])
    ]
    # The null counts ranks from 0, the plot from 1.
    rows = rows.assign(rank=rows["rank"] - rows["rank"].min() + 1)
    band = rows.groupby("rank").agg(low=("low", "min"), median=("median", "mean"), high=("high", "max")).reset_index()
    return band.assign(
        dataset=here["dataset"].iloc[0],
        model=here["model"].iloc[0],
        label=label,
        statistic=statistic,
        what="null of permuted labels",
    )


def _curve(axes: Axes, table: pd.DataFrame, band: pd.DataFrame, looks: Mapping[tuple[str, str], style.Method]) -> None:
    """Ordered curves over the permuted-label band."""
    import numpy as np

    if len(band):
        axes.fill_between(band["rank"], band["low"], band["high"], color=style.NULL_COLOUR, alpha=0.6, lw=0, zorder=1)
    groups = list(table.groupby(["whitening", "dictionary", "method"], sort=False))
    # Bars of one rank stand beside each other, clear of those of the next.
    apart = min(1.045, REACH ** (1 / max(len(groups) - 1, 1)))
    for index, ((whitening, *pair), part) in enumerate(groups):
        look = looks[tuple(pair)]
        colour = look.colour
        axes.fill_between(part["rank"], part["seed_low"], part["seed_high"], color=colour, alpha=0.2, lw=0, zorder=2)
        marked = np.flatnonzero(part["rank"].isin(MARKED))
        axes.plot(
            part["rank"],
            part["value"],
            color=colour,
            linestyle=style.whitening_line(whitening),
            marker=look.marker,
            ms=2.5,
            mew=0,
            markevery=marked.tolist(),
            zorder=3,
        )
        bars = part.dropna(subset=["low", "high"])
        x = bars["rank"] * apart ** (index - (len(groups) - 1) / 2)
        axes.vlines(x, bars["low"], bars["high"], color=colour, lw=0.7, zorder=2)
    axes.axhline(0, color=style.REFERENCE_COLOUR, lw=0.5, zorder=0)
    axes.set_xscale("log", base=10)
    highest = float(table["rank"].max())
    axes.set_xlim(0.75, highest * 1.1)
    style.plain_log(axes.xaxis, 10, (0.75, highest * 1.1))
    lowest = min(0.0, float(table["seed_low"].min()), float(band["low"].min()) if len(band) else 0.0)
    axes.set_ylim(lowest - 0.03, 1.02 * max(float(table[["seed_high", "high"]].max().max()), 0.1))


def _above(here: pd.DataFrame, band: pd.DataFrame) -> str:
    """Count atoms whose lower bound lies above the null's first rank, per dictionary and whitening."""
    if band.empty or "avg_low" not in here:
        return "no null"
    bar = float(band["high"].max())
    parts = []
    for (dictionary, name), whitening in [(p, w) for p in dictionaries(here) for w in whitenings(here)]:
        part = here[(here["dictionary"] == dictionary) & (here["whitening"] == whitening)]
        if part.empty:
            continue
        counts = part.groupby("seed")["avg_low"].apply(lambda low: int((low > bar).sum()))
        label = style.dictionary_label(dictionary, name)
        parts.append(f"{label} {style.whitening_label(whitening)} {captions.span(counts.tolist())}")
    return ", ".join(parts)


def _null_sentence(null: pd.DataFrame, cards: Mapping[str, Mapping[str, Any]], datasets: list[str]) -> str:
    """Say what the band is."""
    if null.empty:
        return "Null: no permuted-label band was measured."
    draws = captions.several(
        f"{data} {captions.settings(cards[data], 'measures').permutations}"
        f" ({100 * captions.settings(cards[data], 'measures').confidence:g} %)"
        for data in datasets
    )
    return (
        "Null (grey): the same ordered curve under permuted labels, envelope over the dictionaries drawn; "
        f"permutations (central share): {draws}. It is ordered just as the curves are, so ordering alone cannot "
        "exceed it."
    )
