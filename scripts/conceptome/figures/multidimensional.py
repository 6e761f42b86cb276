"""Multi-dimensional features: planes of clusters of atoms, ranked, drawn, and compared with labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from conceptome.figures import captions, style
from conceptome.figures.panels import KEYS, Drawing, headline, label_title, main_models, short_title, unique, usable

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

NEEDED = [*KEYS, "seed", "rank", "cluster", "plane", "score", "low", "high", "null", "null_low", "null_high"]
NEEDED += ["separability", "mixture", "q", "n_atoms", "n"]
FIRST = 8  # planes shown
MAP = "viridis"


def draw(tables: Mapping[str, pd.DataFrame], cards: Mapping[str, Mapping[str, Any]]) -> Drawing:
    """Draw one column per data set; rows: scores of planes, samples in the first, labels."""
    import pandas as pd

    frame = main_models(usable(tables, "multidimensional", NEEDED, "multidimensional"), cards)
    points = tables.get("multidimensional_points", pd.DataFrame())
    labels = tables.get("multidimensional_labels", pd.DataFrame())
    datasets = unique(frame["dataset"])
    ones = {data: headline(frame[frame["dataset"] == data]) for data in datasets}
    fits = {data: tuple(one[[*KEYS, "seed"]].iloc[0]) for data, one in ones.items()}
    followed = _of(labels, fits)
    told = followed[followed["correlation"].notna()] if len(followed) else followed
    heights = [34] + [46] * bool(len(points)) + [26] * bool(len(told))
    figure = style.new_figure(22 + sum(heights))
    axes = iter(figure.subplots(len(heights), len(datasets), squeeze=False, height_ratios=heights))
    drawing = Drawing(figure, "Two-dimensional features: planes that no two separate directions explain")
    letters = style.letters()
    for number, (panel, data) in enumerate(zip(next(axes), datasets)):
        table = ones[data].sort_values("rank").head(FIRST)
        _ranked(panel, table)
        letter = next(letters)
        fit = dict(zip([*KEYS, "seed"], fits[data]))
        name = style.dictionary_label(fit["dictionary"], fit["method"])
        style.mark(panel, letter, f"{short_title(cards[data], data, fit['model'])}\n{name}")
        panel.set_xlabel("plane, by rank")
        if not number:
            panel.set_ylabel("score (1 − M)·S (nats)")
        drawing.add(letter, table)
    if len(points):
        for panel, data in zip(next(axes), datasets):
            part = _of(points, {data: fits[data]})
            letter = next(letters)
            shade = part["shade"].notna().any()
            shown = panel.scatter(
                part["x"],
                part["y"],
                s=4,
                lw=0,
                c=part["shade"] if shade else style.REST_COLOUR,
                cmap=MAP if shade else None,
            )
            panel.set_xlabel("component 1 (SD)")
            panel.set_ylabel("component 2 (SD)")
            if shade:
                figure.colorbar(
                    shown,
                    ax=panel,
                    orientation="horizontal",
                    label=label_title(cards[data], part["shade_label"].iloc[0]),
                    aspect=30,
                )
            style.mark(panel, letter, f"first plane of {data}")
            drawing.add(letter, part)
    if len(told):
        for panel, data in zip(next(axes), datasets):
            part = told[told["dataset"] == data].reset_index(drop=True)
            if part.empty:
                panel.set_axis_off()
                continue
            letter = next(letters)
            _labels(panel, part, [label_title(cards[data], name) for name in part["label"]])
            style.mark(panel, letter)
            drawing.add(letter, part)
    handles = [style.null_handle("null: independent features; label shuffled")]
    style.legend_below(figure, handles)

    sizes = captions.several(
        f"{data} {captions.span(one['n'].tolist())} samples with the cluster active, of validation and test; "
        f"{len(one)} planes"
        for data, one in ones.items()
    )
    facts = captions.several(
        f"{data} {captions.number(row['score'])} [{captions.number(row['low'])}, {captions.number(row['high'])}] "
        f"(S {captions.number(row['separability'])}, M {captions.number(row['mixture'])}, "
        f"null {captions.number(row['null'])}, {int(row['n_atoms'])} atoms)"
        for data, one in ones.items()
        for row in [one.sort_values("rank").iloc[0]]
    )
    follows = captions.several(
        f"{row['dataset']} {label_title(cards[row['dataset']], row['label'])} "
        f"{captions.number(row['correlation'])} ({captions.number(row['low'])} to "
        f"{captions.number(row['high'])}; null {captions.number(row['null_low'])} to "
        f"{captions.number(row['null_high'])})"
        for row in told.to_dict("records")
    )
    lacking = followed[followed["excluded"].fillna("") != ""].to_dict("records") if len(followed) else []
    drawing.sentences = [
        "Atoms that point alike are clustered, and what a cluster alone reconstructs is drawn in planes. "
        "A plane is one "
        "two-dimensional feature, such as a circle, when no rotation makes its two coordinates "
        "independent (S, the least "
        "mutual information in nats, is large) and samples do not lie on one line at a time (M, the largest share of "
        f"samples in a thin slab, is small). Planes are ranked by (1 − M)·S less its null. n: {sizes}.",
        f"First plane: {facts}.",
        *(["Middle: samples in the first plane, in standard deviations of each component."] if len(points) else []),
        *(["Last row: Spearman correlation of a label with what position in a plane predicts of it, the "
           "plane chosen on "
           f"training samples and judged on the others: {follows}."] if len(told) else []),
        *[f"{row['dataset']}: {row['label']} is not shown, since {row['excluded']}." for row in lacking],
        captions.further_interval(cards, datasets, "multidimensional")
        + " Labels: bootstrap in place of the jackknife. One seed of one dictionary is shown; all are in the table.",
        "Null (grey): samples of which every atom is an independent one-dimensional feature, with the same codes "
        "permuted "
        "over samples, decoded and encoded again, clustered and scored alike; for labels, the label permuted by group.",
        *captions.warnings(cards, datasets, dict.fromkeys(zip(frame["dataset"], frame["model"]))),
    ]  # fmt: skip
    return drawing


def _of(table: pd.DataFrame, fits: Mapping[str, tuple]) -> pd.DataFrame:
    """Rows of a table that belong to the chosen fits."""
    import pandas as pd

    if table.empty:
        return table
    chosen = pd.DataFrame(list(fits.values()), columns=[*KEYS, "seed"])
    return table.merge(chosen, on=[*KEYS, "seed"])


def _ranked(axes: Axes, table: pd.DataFrame) -> None:
    """Score of the first planes with interval, over the null."""
    for row in table.to_dict("records"):
        x = row["rank"]
        axes.plot([x, x], [row["null_low"], row["null_high"]], color=style.NULL_COLOUR, lw=3.2, solid_capstyle="butt")
        axes.plot([x], [row["null"]], color=style.REFERENCE_COLOUR, marker="_", ms=4, mew=0.8)
        axes.plot([x, x], [row["low"], row["high"]], color=style.method(row["method"]).colour, lw=0.9)
        axes.plot([x], [row["score"]], "o", color=style.method(row["method"]).colour)
    axes.set_xticks(list(table["rank"]))
    axes.set_ylim(bottom=min(0.0, float(table["low"].min())))


def _labels(axes: Axes, table: pd.DataFrame, names: list[str]) -> None:
    """Correlation of labels with their best plane, with interval, over the null."""
    for y, row in enumerate(table.to_dict("records")):
        axes.plot([row["null_low"], row["null_high"]], [y, y], color=style.NULL_COLOUR, lw=3.2, solid_capstyle="butt")
        axes.plot([row["null"]], [y], color=style.REFERENCE_COLOUR, marker="|", ms=4, mew=0.8)
        axes.plot([row["low"], row["high"]], [y, y], color=style.method(row["method"]).colour, lw=0.9)
        axes.plot([row["correlation"]], [y], "o", color=style.method(row["method"]).colour)
    axes.set_yticks(range(len(table)), [name.replace("cell cycle: ", "") for name in names])
    axes.set_ylim(len(table) - 0.5, -0.5)
    axes.set_xlabel("correlation (Spearman)")
