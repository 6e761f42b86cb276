"""Which of encoder, dictionary and whitening matter at one L0, and where every method stands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from conceptome.config.base import rebuild
from conceptome.config.factorial import Factorial
from conceptome.factorial.effects import AXES, TERMS
from conceptome.factorial.endpoints import ENDPOINTS
from conceptome.figures import captions, style
from conceptome.figures.panels import Drawing, dictionaries, dot_rows, over_seeds, short_title, unique, usable

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

# Endpoints that are drawn; the others are in the tables. FVU is that of raw space, in which whitenings compare.
DRAWN = ("fvu_raw", "balanced_accuracy", "auroc", "f1", "recovery", "stability", "dead")
# Of a data set, the first of these that it has stands for what single atoms say of its biology or truth.
HEADLINE = ("recovery", "f1", "auroc")
NARROW = {
    "fvu_raw": "FVU\n(raw space)",
    "balanced_accuracy": "balanced\naccuracy",
    "auroc": "AUROC of\nbest atom",
    "f1": "F1 of\nbest atom",
    "recovery": "correlation\nof best atom",
    "stability": "MMCS\nof seeds",
    "dead": "dead\natoms",
}
SHORT = {"encoder × dictionary × whitening": "enc. × dict. × whit.", "seed × encoder": "seed × encoder"}
FILL = {"matters": "#0072B2", "does not matter": "white", "unclear": "#9ECAE1", "": "white"}
EDGE = "#0072B2"
MOST = 3.0  # standard deviations: effects of levels are drawn up to here


def draw(tables: Mapping[str, pd.DataFrame], cards: Mapping[str, Mapping[str, Any]]) -> Drawing:
    """Draw the factorial study: shares of the variance; level means; every method of every data set."""
    effects = usable(tables, "factorial_effects", ["dataset", "model", "endpoint", "term", "share"], "factorial")
    summary = usable(tables, "factorial_summary", ["endpoint", "term", "level", "value", "low", "high"], "factorial")
    cells = usable(tables, "factorial", ["dataset", "dictionary", "whitening", "encoder", "value"], "factorial")
    datasets = unique(effects["dataset"])
    config = rebuild(Factorial, cards[datasets[0]]["study"]["factorial"])
    shown = [name for name in DRAWN if name in set(summary["endpoint"])]
    figure = style.new_figure(235)
    parts = figure.subfigures(3, 1, height_ratios=[46, 62, 118])
    drawing = Drawing(figure, "What matters at one L0: encoder, dictionary, whitening, seed")
    letters = style.letters()

    for panel, endpoint in zip(parts[0].subplots(1, len(shown), sharey=True, squeeze=False)[0], shown):
        table = _ordered(summary[(summary["endpoint"] == endpoint) & (summary["level"] == "")])
        single = effects[effects["endpoint"] == endpoint]
        letter = next(letters)
        _shares(panel, table, single, config.matters_above)
        style.mark(panel, letter, NARROW[endpoint])
        drawing.add(letter, table.assign(what="mean over data sets"))
        drawing.add(letter, single.rename(columns={"share": "value"}).assign(what="data set"))
    parts[0].supxlabel("share of the variance over cells (ε²)", fontsize=style.FONT)

    places = [(factor, level) for factor in AXES for level in _names(config, factor)]
    for panel, endpoint in zip(parts[1].subplots(1, len(shown), sharey=True, squeeze=False)[0], shown):
        table = summary[(summary["endpoint"] == endpoint) & (summary["level"] != "")]
        letter = next(letters)
        _levels(panel, table, places)
        style.mark(panel, letter, NARROW[endpoint])
        drawing.add(letter, table.assign(what="level"))
    parts[1].supxlabel("deviation from the mean of all cells, in their standard deviations", fontsize=style.FONT)

    own = cells[(cells["encoder"] == "own") & (cells["whitening"] == config.baseline_whitening)]
    grid = parts[2].subplots(2, len(datasets), squeeze=False, sharey="row")
    for line, endpoints in enumerate((("fvu_raw",), HEADLINE)):
        for panel, data in zip(grid[line], datasets):
            part = _first(own[own["dataset"] == data], endpoints)
            letter = next(letters)
            rows = dictionaries(own)
            table = over_seeds(
                part, ["dataset", "model", "whitening", "dictionary", "method", "endpoint", "label"], "value",
                nulls=True, keep=["n"],
            )  # fmt: skip
            dot_rows(panel, table, "value", rows, seeds=part)
            name, label = part[["endpoint", "label"]].iloc[0]
            panel.set_xlabel(ENDPOINTS[name][0] + (f"\n{label}" if label else ""))
            panel.set_xlim(*_limits(table, fvu=line == 0))
            style.mark(panel, letter, short_title(cards[data], data, part["model"].iloc[0]) if line == 0 else "")
            drawing.add(letter, table, part.drop(columns=["draws"], errors="ignore"))
    style.legend_below(
        figure,
        [
            _handle("matters"),
            _handle("unclear"),
            _handle("does not matter"),
            style.dot_handle("one data set"),
            style.null_handle("null (see caption)"),
        ],
        columns=5,
    )
    drawing.sentences = _sentences(summary, effects, cells, config, shown, cards)
    return drawing


def _ordered(table: pd.DataFrame) -> pd.DataFrame:
    """Sort by the fixed order of terms."""
    order = {name: place for place, name in enumerate(TERMS)}
    return table.sort_values("term", key=lambda column: column.map(order))


def _names(config: Any, factor: str) -> list[str]:
    return list({"encoder": config.encoders, "dictionary": config.dictionaries, "whitening": config.whitenings}[factor])


def _handle(name: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D(
        [], [], marker="o", linestyle="none", color=EDGE, markerfacecolor=FILL[name], markeredgewidth=0.8, label=name
    )


def _interval(axes: Axes, row: Any, y: float, fill: str) -> None:
    """One estimate with its interval, over the interval of its null."""
    if row.null_low == row.null_low:
        axes.plot(
            [row.null_low, row.null_high], [y, y], color=style.NULL_COLOUR, lw=3.2, zorder=1, solid_capstyle="butt"
        )
    axes.plot([row.low, row.high], [y, y], color=EDGE, lw=0.9, zorder=3, solid_capstyle="butt")
    axes.plot(
        [row.value], [y], marker="o", linestyle="none", color=EDGE, markerfacecolor=fill, mew=0.8, ms=3.6, zorder=5
    )


def _shares(axes: Axes, table: pd.DataFrame, single: pd.DataFrame, above: float) -> None:
    """Shares of all terms, one below the other; small dots are single data sets."""
    axes.axvline(above, color=style.REFERENCE_COLOUR, linestyle=":", lw=0.8, zorder=0)
    for y, term in enumerate(TERMS):
        own = single[single["term"] == term]["share"]
        axes.plot(own, [y] * len(own), ".", color="black", ms=2, zorder=4)
        for row in table[table["term"] == term].itertuples():
            _interval(axes, row, y, FILL[row.verdict])
    axes.set_yticks(range(len(TERMS)), [SHORT.get(term, term) for term in TERMS])
    axes.set_ylim(len(TERMS) - 0.5, -0.5)
    axes.set_xlim(-0.12, 1.02)
    axes.set_xticks([0, 0.5, 1], ["0", ".5", "1"])
    axes.grid(axis="y", color="#EEEEEE", lw=0.6)
    axes.set_axisbelow(True)


def _levels(axes: Axes, table: pd.DataFrame, places: list[tuple[str, str]]) -> None:
    """Standardised effects of all levels of all factors."""
    axes.axvline(0, color=style.REFERENCE_COLOUR, linestyle=":", lw=0.8, zorder=0)
    for y, (factor, level) in enumerate(places):
        for row in table[(table["term"] == factor) & (table["level"] == level)].itertuples():
            _interval(axes, row, y, EDGE)
    for y in range(1, len(places)):
        if places[y][0] != places[y - 1][0]:
            axes.axhline(y - 0.5, color=style.NULL_COLOUR, lw=0.6)
    axes.set_yticks(range(len(places)), [_level(factor, level) for factor, level in places])
    axes.set_ylim(len(places) - 0.5, -0.5)
    reach = min(MOST, max(0.5, float(table[["low", "high"]].abs().max().max()) * 1.05)) if len(table) else 1.0
    axes.set_xlim(-reach, reach)


def _level(factor: str, level: str) -> str:
    """What readers call a level: which factor it belongs to shows in its name."""
    if factor == "encoder":
        return f"read by {level}"
    return style.method(level).label if factor == "dictionary" else f"whitening {level}"


def _first(cells: pd.DataFrame, endpoints: tuple[str, ...]) -> pd.DataFrame:
    """Cells of the first of these endpoints that a data set has, and of its first label."""
    own = cells[cells["endpoint"] == next(name for name in endpoints if name in set(cells["endpoint"]))]
    return own[own["label"] == own["label"].iloc[0]]


def _limits(table: pd.DataFrame, *, fvu: bool) -> tuple[float, float]:
    """From the values and their intervals; an FVU beyond the mean's (1) is cut off there, and so is its null."""
    low, high = float(table["low"].min()), float(table["high"].max())
    if not fvu:
        low, high = min(low, float(table["null_low"].min())), max(high, float(table["null_high"].max()))
    low, high = (max(low, 0.0), min(high, 1.05)) if fvu else (low, high)
    reach = 0.05 * max(high - low, 1e-3)
    return low - reach, high + reach


def _sentences(
    summary: pd.DataFrame,
    effects: pd.DataFrame,
    cells: pd.DataFrame,
    config: Any,
    shown: list[str],
    cards: Mapping[str, Mapping[str, Any]],
) -> list[str]:
    """The caption, computed from the tables."""
    datasets = unique(effects["dataset"])
    shares = summary[summary["level"] == ""]
    facts = []
    for endpoint in shown:
        own = _ordered(shares[(shares["endpoint"] == endpoint) & (shares["verdict"] == "matters")])
        parts = [
            f"{row.term} {captions.number(row.value)} [{captions.number(row.low)}, {captions.number(row.high)}]"
            for row in own.sort_values("value", ascending=False).itertuples()
        ]
        facts.append(f"{ENDPOINTS[endpoint][0]}: {', '.join(parts) or 'nothing surely'}")
    sizes = captions.several(
        f"{data} {captions.count(part['n_cells'].max())} cells (m {int(here['m'].max())}, k {int(here['k'].max())}, "
        f"{int(here['n'].max())} test groups)"
        for data, part, here in (
            (
                data,
                effects[effects["dataset"] == data],
                cells[(cells["dataset"] == data) & (cells["design"] == "factorial") & (cells["unit"] == "group")],
            )
            for data in datasets
        )
    )
    levels = captions.several(_level_of(data, cards[data], config) for data in datasets)
    return [
        f"Above: share of the variance over all cells that each term accounts for ({len(config.encoders)} encoders × "
        f"{len(config.dictionaries)} dictionaries × {len(config.whitenings)} whitenings × "
        f"{int(effects['n_seeds'].max())} seeds at one L0; ε², which is 0 on average where a term does nothing), mean "
        f"over {len(datasets)} data set(s); a term matters where its interval lies above {config.matters_above:g} "
        "(dotted). Middle: mean of each level against all cells. Below: every method by its own encoder, whitening "
        f"{config.baseline_whitening}. Endpoints are those of test samples; FVU is that of raw space after one gain "
        f"per cell; dead atoms and MMCS (seeds' largest cosines) have no label. n: {sizes}.",
        f"What matters: {captions.several(facts)}.",
        f"Intervals: {100 * config.confidence:g} %, bootstrap over seeds and test groups: {levels}; for these data "
        "sets, not for a population of them. Below, over seeds: from the lowest lower to the highest upper bound.",
        "Null (grey): above and middle, levels permuted where the term does nothing "
        f"({config.permutations} permutations, Freedman and Lane; for what is left, seed × encoder or of atoms alone "
        "seed, all cells are permuted, which leaves it everything); below, labels permuted "
        f"({config.null_draws} draws), FVU of another row's reconstruction (beyond the axis where it exceeds 1).",
        *captions.warnings(cards, datasets, dict.fromkeys(zip(effects["dataset"], effects["model"]))),
    ]


def _level_of(dataset: str, card: Mapping[str, Any], config: Any) -> str:
    """Say what is resampled on a data set."""
    unit = card.get("group_is", "group")
    level = card.get("interval_level", f"{unit}-level")
    return f"{dataset} {level} (bootstrap by {unit}, {config.bootstraps} draws)"
