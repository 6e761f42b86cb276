"""F4: what a linear probe reads from the codes: biology should go up, batch down."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from conceptome.figures import captions, style
from conceptome.figures.panels import (
    KEYS,
    Drawing,
    dictionaries,
    dot_rows,
    models,
    over_seeds,
    rows_of_lines,
    short_title,
    unique,
    usable,
    whitenings,
)

if TYPE_CHECKING:
    import pandas as pd


def draw(tables: Mapping[str, pd.DataFrame], cards: Mapping[str, Mapping[str, Any]]) -> Drawing:
    """Draw F4: one panel per data set, model and label; biological labels first, technical labels last."""
    import pandas as pd

    need = [*KEYS, "seed", "label", "role", "balanced_accuracy", "chance", "n_test"]
    frame = usable(tables, "probes", need, "probes")
    kept = []
    for data, rows in frame.groupby("dataset", sort=False):
        kept.append(rows[rows["model"].isin(models(rows, cards[data]))])
    frame = pd.concat(kept)
    datasets = unique(frame["dataset"])
    keep = ["chance", "n_test", "n_train", "n_groups_test", "n_classes"]
    table = over_seeds(frame, [*KEYS, "label", "role"], "balanced_accuracy", keep=keep, nulls=True)
    panels = list(dict.fromkeys(zip(table["role"], table["dataset"], table["model"], table["label"])))
    panels.sort(key=lambda item: item[0] == "technical")

    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    shown = [
        table[(table["dataset"] == data) & (table["model"] == model) & (table["label"] == label)]
        for _, data, model, label in panels
    ]
    looks = style.looks(dictionaries(frame))
    rows = rows_of_lines(shown, columns)
    heights = [17 + 4.6 * len(line) for line in rows]
    figure = style.new_figure(12 + sum(heights))
    axes = figure.subplots(lines, columns, squeeze=False, sharex=False, height_ratios=heights)
    drawing = Drawing(figure, "Linear probes on codes: biological labels (higher is better), technical labels (lower)")
    facts, sizes = [], []
    for number, (letter, panel, (role, data, model, label), part) in enumerate(
        zip(style.letters(), axes.flat, panels, shown)
    ):
        raw = frame[(frame["dataset"] == data) & (frame["model"] == model) & (frame["label"] == label)]
        dot_rows(panel, part, "balanced_accuracy", rows[number // columns], seeds=raw, looks=looks)
        chance = float(part["chance"].iloc[0])
        panel.axvline(chance, color=style.REFERENCE_COLOUR, linestyle=":", lw=0.8, zorder=0)
        lowest = min(chance, float(part[["low", *({"null_low"} & set(part))]].min().min()))
        panel.set_xlim(max(0.0, lowest - 0.05), 1.02)
        panel.set_xlabel("balanced accuracy (test)")
        if panel not in axes[:, 0]:
            panel.set_yticklabels([])
        title = cards[data].get("labels", {}).get(label, {}).get("title") or label
        arrow = "technical ↓" if role == "technical" else "biology ↑"
        head = short_title(cards[data], data, model).replace("\n", " · ")
        style.mark(panel, letter, f"{head}\n{title} · {arrow}", wrap=40)
        drawing.add(letter, part, raw[[*KEYS, "label", "role", "seed", "balanced_accuracy"]])
        best = part.loc[part["balanced_accuracy"].idxmax()]
        facts.append(
            f"{data}/{model}/{label} {captions.number(best['balanced_accuracy'])} "
            f"[{captions.number(best['low'])}, {captions.number(best['high'])}], null {captions.number(best['null'])} "
            f"({style.dictionary_label(best['dictionary'], best['method'])}, "
            f"{style.whitening_label(best['whitening'])}; "
            f"{captions.count(part['n_classes'].iloc[0])} classes)"
        )
        groups = f" in {captions.count(part['n_groups_test'].iloc[0])} groups" if "n_groups_test" in part else ""
        sizes.append(f"{data}/{label} {captions.count(part['n_test'].iloc[0])}{groups}")
    for panel in axes.flat[len(panels) :]:
        panel.set_axis_off()
    handles = [
        *style.whitening_handles(whitenings(table), markers=True),
        style.null_handle("null: permuted labels"),
        style.line_handle("chance"),
    ]
    style.legend_below(figure, handles)

    excluded = _excluded(frame)
    drawing.sentences = [
        "Balanced accuracy (no unit; 1 is perfect) of a class-balanced logistic regression on the codes, trained on "
        "training groups, the penalty chosen on validation, reported on test groups. 'neurons' are the activations "
        "themselves. A dictionary that keeps biology and loses batch moves right in panels marked ↑ and left in panels "
        f"marked ↓. n test samples: {captions.several(dict.fromkeys(sizes))}.",
        f"Highest mean per panel: {captions.several(facts)}.",
        captions.interval(cards, datasets)
        + " Small ticks are seeds. "
        + captions.seeds_sentence(frame["seed"].nunique()),
        "Null (grey): the same probe trained on permuted labels, with its interval; dotted line: chance, 1 / number of "
        "classes.",
    ]
    if excluded:
        drawing.sentences.append(f"Classes left out, too few groups: {excluded}.")
    drawing.sentences += captions.notes(cards, datasets)
    drawing.sentences += captions.warnings(cards, datasets, dict.fromkeys(zip(frame["dataset"], frame["model"])))
    return drawing


def _excluded(frame: pd.DataFrame) -> str:
    """Classes that a probe left out, per data set and label."""
    if "excluded" not in frame:
        return ""
    rows = frame[frame["excluded"].fillna("").astype(str).str.len() > 0]
    pairs = rows[["dataset", "label", "excluded"]].drop_duplicates()
    return captions.several(f"{row.dataset}/{row.label} {row.excluded}" for row in pairs.itertuples())
