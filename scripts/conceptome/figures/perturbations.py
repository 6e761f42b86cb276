"""Perturbations: the best atom of each against controls of its own plates, and of each ordinal label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from conceptome.figures import captions, style
from conceptome.figures.panels import (
    KEYS,
    Drawing,
    dataset_title,
    headline,
    is_null_model,
    label_title,
    main_models,
    need,
    unique,
    usable,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

Q = 0.05
ROWS = 20
TRENDS = {"spearman": "Spearman's ρ", "kendall": "Kendall's τ", "jonckheere": "Jonckheere's D"}
MATCHED = {"group": "the same group", "batch": "the same batch", "none": "anywhere"}


def draw(tables: Mapping[str, pd.DataFrame], cards: Mapping[str, Mapping[str, Any]]) -> Drawing:
    """Draw per data set the best atom of every perturbation, and of every ordinal label where there are any."""
    import pandas as pd

    columns = ["seed", "atom", "label", "term", "effect", "low", "high", "q", "null_effect", "n_term", "n_control"]
    frame = usable(tables, "perturbations", [*KEYS, *columns, "matched_on", "n_unmatched"], "perturbations")
    trends = tables.get("label_trends", pd.DataFrame())
    if len(trends):
        columns = ["seed", "atom", "label", "statistic", "effect", "low", "high", "q", "null_low", "n"]
        need(trends, "label_trends", [*KEYS, *columns])
    every = {data: unique(frame.loc[frame["dataset"] == data, "model"]) for data in unique(frame["dataset"])}
    whole, frame = frame, main_models(frame, cards)
    datasets = unique(frame["dataset"])
    chosen = {data: _best(headline(frame[frame["dataset"] == data]), ["label", "term"]) for data in datasets}
    heights = [max(3, len(rows)) for rows in chosen.values()]

    figure = style.new_figure(24 + sum(16 + 5.0 * height for height in heights))
    axes = figure.subplots(len(datasets), 2, squeeze=False, width_ratios=[1.5, 1], height_ratios=heights)
    drawing = Drawing(figure, "Perturbations against controls, and ordinal labels")
    letters = style.letters()
    facts = []
    for (side, beside), data in zip(axes, datasets):
        rows = chosen[data]
        first = rows.iloc[0]
        letter = next(letters)
        rows = rows.assign(null_low=1.0 - rows["null_effect"], null_high=rows["null_effect"])
        _draw_rows(side, rows, [f"{row.term} ({row.n_term}:{row.n_control})" for row in rows.itertuples()], 0.5)
        side.set_xlabel("AUROC of the code, class against control")
        which = f"{style.dictionary_label(first['dictionary'], first['method'])}, " + style.whitening_label(
            first["whitening"]
        )
        style.mark(
            side, letter, f"{dataset_title(cards[data], data, first['model'])}\n{which}, seed {int(first['seed'])}"
        )
        drawing.add(letter, rows)
        places = ", ".join(sorted({MATCHED[each] for each in rows["matched_on"]}))
        found = int(((rows["q"] < Q) & ((rows["effect"] - 0.5).abs() > rows["null_effect"] - 0.5)).sum())
        fact = (
            f"{data}: n = {captions.span(rows['n_term'].tolist())} samples per class, controls from {places}; "
            f"{found} of {len(rows)} classes have an atom with q < {Q} beyond the null "
            f"({int(rows['n_unmatched'].sum())} samples without controls are left out)"
        )
        own = _same_fit(trends, first)
        if own.empty:
            beside.remove()
        else:
            own = _best(own, ["label"])
            letter = next(letters)
            _draw_rows(
                beside, own, [f"{label_title(cards[data], row.label)} ({row.n})" for row in own.itertuples()], 0.0
            )
            beside.set_xlabel(f"{TRENDS[own['statistic'].iloc[0]]} with the label")
            style.mark(beside, letter, "ordinal labels")
            drawing.add(letter, own)
            fact += f"; {int((own['q'] < Q).sum())} of {len(own)} ordinal labels have an atom with q < {Q}"
        facts.append(fact)
    handles = [
        style.dot_handle(f"filled: q < {Q}"),
        style.band_handle("null: permuted labels", alpha=1.0),
    ]
    style.legend_below(figure, handles)
    alpha = captions.settings(cards[datasets[0]], "enrichment").confidence
    trend = " or ".join(TRENDS[name] for name in unique(trends["statistic"])) if len(trends) else TRENDS["spearman"]
    drawing.sentences = [
        "For every perturbation the atom whose code tells it best, up or down, from controls of the same block, its "
        "number beside the interval; in brackets samples of the class and controls. AUROC (no unit) within blocks, "
        "weighted by 1/(N + 1); q: blocked rank-sum test (van Elteren), Benjamini-Hochberg over all atoms × classes. "
        f"For ordinal labels {trend} (no unit) over the samples that have the label (their number in brackets); q: "
        f"labels permuted with whole groups, Benjamini-Hochberg over all atoms × labels. {captions.several(facts)}.",
        captions.interval(cards, datasets, "enrichment")
        + " The atom was picked on the same samples, so its estimate leans high: compare it with the null.",
        f"Null (grey bars): for perturbations up to the {100 * alpha:g} % quantile of the most extreme AUROC over all "
        "atoms when class and control are permuted within blocks; for ordinal labels the "
        f"{100 * alpha:g} % interval of this one atom under permuted labels.",
        *captions.baselines(cards, whole, "effect", ["label", "term"], 0.5),
        *captions.notes(cards, datasets),
        *captions.warnings(cards, datasets, dict.fromkeys(zip(frame["dataset"], frame["model"]))),
    ]
    rest = captions.left_out(
        {data: [m for m in names if not is_null_model(cards[data], m)] for data, names in every.items()},
        zip(frame["dataset"], frame["model"]),
    )
    drawing.sentences += [rest] if rest else []
    return drawing


def _same_fit(trends: pd.DataFrame, first: pd.Series) -> pd.DataFrame:
    """Rows of the trends that belong to the fit that is drawn."""
    if trends.empty:
        return trends
    own = trends
    for key in (*KEYS, "seed"):
        own = own[own[key] == first[key]]
    return own


def _best(frame: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Row of the smallest q, then largest effect, for each of `by`: at most `ROWS`, those with most samples."""
    neutral = 0.5 if "term" in by else 0.0
    frame = frame.assign(distance=(frame["effect"] - neutral).abs())
    frame = frame.sort_values(["q", "distance", "atom"], ascending=[True, False, True], kind="stable")
    frame = frame.drop_duplicates(by).sort_values(by, kind="stable")
    if len(frame) > ROWS:
        frame = frame.nlargest(ROWS, "n_term").sort_values(by, kind="stable")
    return frame.drop(columns="distance").reset_index(drop=True)


def _draw_rows(axes: Axes, rows: pd.DataFrame, names: list[str], neutral: float) -> None:
    """One atom per row: effect with interval over its null, filled where q is small."""
    from matplotlib.ticker import MaxNLocator

    look = style.method(rows["method"].iloc[0])
    for y, row in enumerate(rows.itertuples()):
        axes.hlines(y, row.null_low, row.null_high, color=style.NULL_COLOUR, lw=3.2, zorder=1)
        axes.hlines(y, row.low, row.high, color=look.colour, lw=0.9, zorder=2)
        axes.plot(
            [row.effect],
            [y],
            marker=look.marker,
            linestyle="none",
            color=look.colour,
            markerfacecolor=look.colour if row.q < Q else "white",
            mew=0.8,
            zorder=3,
        )
        right = row.effect if row.high != row.high else row.high
        axes.annotate(
            str(row.atom), (right, y), (3, 0), textcoords="offset points", va="center", fontsize=style.SMALL_FONT
        )
    axes.axvline(neutral, color=style.REFERENCE_COLOUR, linestyle=":", lw=0.8, zorder=0)
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="y", color="#EEEEEE", lw=0.6)
    axes.set_axisbelow(True)
    axes.margins(x=0.16)
    # A last tick at the very edge would reach over the page.
    axes.xaxis.set_major_locator(MaxNLocator(4, prune="upper"))
