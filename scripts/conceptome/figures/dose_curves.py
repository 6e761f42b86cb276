"""Dose curves: the codes of the atoms that follow a dose, beside what permuted doses and controls alone give."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from conceptome.figures import captions, style
from conceptome.figures.panels import (
    KEYS,
    Drawing,
    dictionaries,
    is_null_model,
    label_title,
    need,
    short_title,
    unique,
    usable,
    whitenings,
)

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = 3


def draw(tables: Mapping[str, pd.DataFrame], cards: Mapping[str, Mapping[str, Any]]) -> Drawing:
    """One row of panels per data set, model and dictionary; one panel per atom, first seed."""
    columns = ["seed", "label", "atom", "name", "rank", "dose", "mean", "low", "high", "null", "null_low", "null_high"]
    every = usable(tables, "dose_curves", [*KEYS, *columns, "n", "n_groups"], "dose_curves")
    scores = tables.get("dose_curves_atoms")
    if scores is not None and len(scores):
        need(
            scores, "dose_curves_atoms", [*KEYS, "seed", "atom", "effect", "low", "high", "auroc", "control_auroc_high"]
        )
    rows = _rows(every[every["rank"] <= COLUMNS], cards)
    figure = style.new_figure(16 + 37 * len(rows))
    axes = figure.subplots(len(rows), COLUMNS, squeeze=False)
    drawing = Drawing(figure, "Codes against dose")
    letters, facts = style.letters(), []
    for line, part in zip(axes, rows):
        first = part.iloc[0]
        for place, rank in zip(line, range(1, COLUMNS + 1)):
            atom = part[part["rank"] == rank].sort_values("dose")
            if atom.empty:
                place.remove()
                continue
            letter = next(letters)
            _curve(place, atom, style.method(first["method"]).colour)
            score = _score(scores, atom.iloc[0])
            which = style.dictionary_label(first["dictionary"], first["method"])
            head = (
                f"{short_title(cards[first['dataset']], first['dataset'], first['model'])}\n" if rank == 1 else "\n\n"
            )
            style.mark(place, letter, f"{head}{which}, {atom['name'].iloc[0]}{_told(score)}")
            place.set_xlabel(label_title(cards[first["dataset"]], first["label"]))
            if rank == 1:
                place.set_ylabel("mean code")
            drawing.add(letter, atom)
        facts.append(_fact(part, scores))
    style.legend_below(figure, [style.dot_handle("mean over test samples"), style.band_handle("null: permuted doses")])
    datasets = unique(every["dataset"])
    sizes = captions.several(
        f"{data} {captions.span(every.loc[every['dataset'] == data, 'n'].tolist())} test samples in "
        f"{captions.span(every.loc[every['dataset'] == data, 'n_groups'].tolist())} groups per dose"
        for data in datasets
    )
    drawn = [(part["dataset"].iloc[0], part["model"].iloc[0]) for part in rows]
    drawing.sentences = [
        "Mean code (the activations' own units) at each dose on test samples, of the atoms with the largest "
        "Spearman's ρ, in absolute value, with the dose on training samples; dose 0 is the control. "
        f"First seed. n: {sizes}.",
        f"Spearman's ρ of code and dose on test samples, and AUROC of the highest dose against controls of the same "
        f"batches: {captions.several(facts)}.",
        captions.further_interval(cards, datasets, "dose_curves", "bootstrap")
        + " A dose on one group has no interval.",
        "Null (grey): the doses of whole groups permuted. Null of control against control: the largest AUROC with "
        "which the same atom tells the controls of two batches apart, where there is no treatment.",
        *captions.notes(cards, datasets),
        *captions.warnings(cards, datasets, dict.fromkeys(drawn)),
    ]
    return drawing


def _rows(frame: pd.DataFrame, cards: Mapping[str, Mapping[str, Any]]) -> list[pd.DataFrame]:
    """One part per data set, model and dictionary: headline whitening, learned dictionaries (or the only one)."""
    parts = []
    for data in unique(frame["dataset"]):
        own = frame[frame["dataset"] == data]
        for model in unique(own["model"]):
            if is_null_model(cards[data], model):
                continue
            here = own[own["model"] == model]
            # The most processed whitening, as in every detailed panel: by name, never by outcome.
            names = whitenings(here)
            here = here[here["whitening"] == ("pca" if "pca" in names else names[-1])]
            shown = [pair for pair in dictionaries(here) if pair[1] in style.LEARNED] or dictionaries(here)[:1]
            for dictionary, _ in shown:
                fit = here[here["dictionary"] == dictionary]
                parts.append(fit[fit["seed"] == fit["seed"].min()])
    return parts


def _curve(axes: Any, atom: pd.DataFrame, colour: str) -> None:
    """Draw one atom: mean code at each dose with its interval, over the null's band; doses at equal distances."""
    x = np.arange(len(atom))
    axes.fill_between(x, atom["null_low"], atom["null_high"], color=style.NULL_COLOUR, alpha=0.6, lw=0, zorder=1)
    axes.plot(x, atom["null"], color=style.REFERENCE_COLOUR, lw=0.7, ls=":", zorder=2)
    axes.vlines(x, atom["low"], atom["high"], color=colour, lw=0.9, zorder=3)
    axes.plot(x, atom["mean"], color=colour, marker="o", zorder=4)
    axes.set_xticks(x, [f"{dose:g}" for dose in atom["dose"]])


def _score(scores: pd.DataFrame | None, atom: pd.Series) -> pd.Series | None:
    """The row of the atoms' table that belongs to a curve."""
    if scores is None or scores.empty:
        return None
    own = scores
    for key in (*KEYS, "seed", "atom"):
        own = own[own[key] == atom[key]]
    return None if own.empty else own.iloc[0]


def _told(score: pd.Series | None) -> str:
    """Second line of a panel's title: ρ with its interval."""
    if score is None:
        return ""
    low, high = captions.number(score["low"]), captions.number(score["high"])
    return f"\nρ {captions.number(score['effect'])} [{low}, {high}]"


def _fact(part: pd.DataFrame, scores: pd.DataFrame | None) -> str:
    """What a row of panels shows, in numbers."""
    first = part.iloc[0]
    told = []
    for _, atom in part.drop_duplicates("atom").iterrows():
        score = _score(scores, atom)
        if score is not None:
            told.append(
                f"{atom['name']} ρ {captions.number(score['effect'])} ({captions.number(score['low'])} to "
                f"{captions.number(score['high'])}; null {captions.number(score['null_low'])} to "
                f"{captions.number(score['null_high'])}), AUROC {captions.number(score['auroc'])} "
                f"({captions.number(score['auroc_low'])} to {captions.number(score['auroc_high'])}; control against "
                f"control up to {captions.number(score['control_auroc_high'])} in {int(score['control_pairs'])} pairs)"
            )
    which = style.dictionary_label(first["dictionary"], first["method"])
    return f"{first['dataset']}/{first['model']} {style.whitening_label(first['whitening'])} {which}: {', '.join(told)}"
