"""Accuracy and intrinsic dimension against layer, with the layer chosen on validation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from conceptome.figures import captions, style
from conceptome.figures.panels import Drawing, stand_in, unique, usable

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

ACCURACY = [
    f"{split}{part}"
    for split in ("validation", "test")
    for part in ("", "_low", "_high", "_null", "_null_low", "_null_high")
]
NEEDED = ["dataset", "model", "whitening", "layer", "chosen", "label", "criterion", *ACCURACY]
NEEDED += ["n_validation", "n_test"]
DIMENSION = ["dimension", "low", "high", "null", "null_low", "null_high", "n"]
CRITERIA = {"best": "the highest", "earliest": "the earliest layer within the interval of the highest"}


def draw(tables: Mapping[str, pd.DataFrame], cards: Mapping[str, Mapping[str, Any]]) -> Drawing:
    """Draw one row per (data set, model): a panel per label, and the intrinsic dimension."""
    frame = usable(tables, "layers", NEEDED, "layers")
    dimensions = usable(tables, "layers_dimension", ["dataset", "model", "layer", "chosen", *DIMENSION], "layers")
    # Layers are compared as the model gives them: every whitening of a model has the same rows.
    frame = frame.drop_duplicates(["dataset", "model", "layer", "label"])
    dimensions = dimensions.drop_duplicates(["dataset", "model", "layer"])
    pairs = list(dict.fromkeys(zip(frame["dataset"], frame["model"])))
    most = max(frame[(frame["dataset"] == d) & (frame["model"] == m)]["label"].nunique() for d, m in pairs) + 1
    figure = style.new_figure(14 + 42 * len(pairs))
    axes = figure.subplots(len(pairs), most, squeeze=False)
    drawing = Drawing(figure, "Accuracy and intrinsic dimension against layer")
    letters = style.letters()
    facts = []
    for row, (data, model) in zip(axes, pairs):
        here = frame[(frame["dataset"] == data) & (frame["model"] == model)]
        found = unique(here["label"])
        place = f"{data} · {model}{'†' if stand_in(cards[data], model) else ''}"
        taken = int(here.loc[here["chosen"], "layer"].iloc[0])
        for panel, label in zip(row, found):
            table = here[here["label"] == label].sort_values("layer")
            _accuracy(panel, table)
            letter = next(letters)
            style.mark(panel, letter, f"{place}\n{label}")
            panel.set_ylabel("balanced accuracy")
            drawing.add(letter, table)
            best = table[table["chosen"]].iloc[0]
            facts.append(
                f"{data} {model} {label} layer {taken} {captions.number(best['test'])} "
                f"({captions.number(best['test_low'])} to {captions.number(best['test_high'])}; null "
                f"{captions.number(best['test_null'])}; n {int(best['n_test'])})"
            )
        panel = row[len(found)]
        table = dimensions[(dimensions["dataset"] == data) & (dimensions["model"] == model)].sort_values("layer")
        _band(panel, table, "null_low", "null_high", style.NULL_COLOUR)
        panel.plot(table["layer"], table["null"], color=style.REFERENCE_COLOUR, lw=0.8, ls=":")
        panel.errorbar(
            table["layer"],
            table["dimension"],
            [table["dimension"] - table["low"], table["high"] - table["dimension"]],
            color=style.SERIES[0],
            lw=0.9,
            marker="o",
            ms=3,
        )
        panel.axvline(taken, color=style.CONTROL_COLOUR, lw=0.8, ls="--")
        letter = next(letters)
        style.mark(panel, letter, f"{place}\nintrinsic dimension")
        panel.set_ylabel("dimensions (TwoNN)")
        panel.set_ylim(bottom=0)
        drawing.add(letter, table)
        for panel in row[: len(found) + 1]:
            panel.set_xlabel("layer")
            panel.xaxis.get_major_locator().set_params(integer=True)
        for panel in row[len(found) + 1 :]:
            panel.set_axis_off()
    handles = [
        style.line_handle("validation", style.SERIES[0], "-"),
        style.line_handle("test", style.SERIES[1], "-"),
        style.line_handle("chosen layer", style.CONTROL_COLOUR, "--"),
        style.band_handle("null"),
    ]
    style.legend_below(figure, handles)
    rule = CRITERIA[str(frame["criterion"].iloc[0])]
    drawing.sentences = [
        "How much a linear probe reads from each layer of one model, and how many dimensions its activations fill. The "
        f"layer (dashed) was chosen by {rule} mean accuracy over biological labels on VALIDATION groups; the test "
        "accuracy of the other layers is shown, and nothing was chosen by it. Validation accuracy is optimistic, since "
        "the penalty was chosen on it too.",
        f"Chosen, on test groups: {captions.several(facts)}.",
        captions.further_interval(cards, unique(frame["dataset"]), "layers", "bootstrap")
        + " Dimension: jackknife over groups. n samples of the dimension: "
        + captions.several(f"{d} {captions.span(part['n'].tolist())}" for d, part in dimensions.groupby("dataset"))
        + "; n on validation: "
        + captions.several(
            f"{d} {captions.span(part['n_validation'].tolist())}" for d, part in frame.groupby("dataset")
        )
        + ".",
        "Null (grey): the same probe trained on permuted labels, on test groups (on validation: columns "
        "validation_null); for the dimension, Gaussian samples of the same number and the same covariance.",
        *captions.notes(cards, unique(frame["dataset"])),
        *captions.warnings(cards, unique(frame["dataset"]), dict.fromkeys(pairs)),
    ]
    return drawing


def _band(panel: Axes, table: pd.DataFrame, low: str, high: str, colour: str) -> None:
    panel.fill_between(table["layer"], table[low], table[high], color=colour, alpha=0.4, lw=0)


def _accuracy(panel: Axes, table: pd.DataFrame) -> None:
    """Both splits with their intervals, the null of the test split, and the chosen layer."""
    _band(panel, table, "test_null_low", "test_null_high", style.NULL_COLOUR)
    panel.plot(table["layer"], table["test_null"], color=style.REFERENCE_COLOUR, lw=0.8, ls=":")
    for split, colour in (("validation", style.SERIES[0]), ("test", style.SERIES[1])):
        ends = [table[split] - table[f"{split}_low"], table[f"{split}_high"] - table[split]]
        panel.errorbar(table["layer"], table[split], ends, color=colour, lw=0.9, marker="o", ms=3)
    panel.axvline(int(table.loc[table["chosen"], "layer"].iloc[0]), color=style.CONTROL_COLOUR, lw=0.8, ls="--")
