"""Galleries: the crops that activate an atom most, controls beside them, and where in each crop the atom is active."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from conceptome.figures import captions, style
from conceptome.figures.panels import (
    KEYS,
    Drawing,
    dictionaries,
    main_models,
    need,
    unique,
    usable,
    whitenings,
)

if TYPE_CHECKING:
    import pandas as pd

# Channels of a crop as blue, green and red: nuclei are blue by custom, and stand first in most image sets.
COLOURS = (2, 1, 0)
# Percentiles of a crop's own pixels that are drawn black and full.
OWN_SCALE = (1.0, 99.8)
ATOMS = 3


def draw(tables: Mapping[str, pd.DataFrame], cards: Mapping[str, Mapping[str, Any]]) -> Drawing:
    """One row per atom of each learned dictionary of the first model: purity, top crops, controls, maps below."""
    columns = ["seed", "atom", "rank", "best_class", "purity", "low", "high", "null", "null_low", "null_high"]
    columns += ["baseline", "baseline_low", "baseline_high", "label", "brightness", "n_top", "n"]
    every = usable(tables, "galleries", [*KEYS, *columns], "galleries")
    crops = usable(
        tables, "galleries_crops", [*KEYS, "seed", "atom", "kind", "position", "class", "code", "pixels"], "galleries"
    )
    frame = main_models(every, cards)
    shown = _shown(frame)
    pieces = [(row, _of(crops, row)) for _, row in shown.iterrows()]
    mapped = any((part["patches"] > 0).any() for _, part in pieces)
    across = max(len(part) for _, part in pieces)
    figure = style.new_figure(18 + len(pieces) * (44 if mapped else 28))
    grid = figure.add_gridspec(len(pieces) * (2 if mapped else 1), across + 1, width_ratios=[1.3, *([1] * across)])
    drawing = Drawing(figure, "Galleries of atoms")
    room = int(105 / (across + 1.3))  # letters that fit above a crop
    for number, (letter, (row, part)) in enumerate(zip(style.letters(), pieces)):
        line = number * (2 if mapped else 1)
        _purity(figure.add_subplot(grid[line, 0]), row, letter)
        drawing.add(letter, row.to_frame().T.infer_objects())
        drawing.add(letter, part.drop(columns=["pixels", "map"], errors="ignore"))
        largest = max((_map(each).max() for each in part.itertuples() if each.patches), default=0.0)
        if largest > 0:
            _scale(figure.add_subplot(grid[line + 1, 0]), largest)
        for column, (each, name) in enumerate(zip(part.itertuples(), part["class"]), start=1):
            axes = figure.add_subplot(grid[line, column])
            axes.imshow(own_scale(pixels(each)), interpolation="nearest")
            # Over the first crop of either kind: what it and those to its right are.
            head = {"top": "largest codes", "control": "controls"}[each.kind] if each.position == 0 else ""
            axes.set_title(f"{head}\n{shortened(str(name), room)}\n{each.code:.2g}", pad=1.5, loc="center")
            axes.set_axis_off()
            if each.patches:
                _heat(figure.add_subplot(grid[line + 1, column]), each, largest)
    handles = [
        style.dot_handle("purity"),
        style.null_handle("null: random crops"),
        style.line_handle("baseline: one intensity feature", "black", "-"),
    ]
    style.legend_below(figure, handles)
    datasets = unique(shown["dataset"])
    facts = captions.several(
        f"{row.dataset}/{row.model} {style.whitening_label(row.whitening)} "
        f"{style.dictionary_label(row.dictionary, row.method)} atom {row.atom} ({row.best_class}) purity "
        f"{captions.number(row.purity)} ({captions.number(row.low)} to {captions.number(row.high)}; null "
        f"{captions.number(row.null)}, {captions.number(row.null_low)} to {captions.number(row.null_high)}; "
        f"intensity {captions.number(row.baseline)}, {captions.number(row.baseline_low)} to "
        f"{captions.number(row.baseline_high)}), "
        f"correlation of code and brightness {captions.number(row.brightness)}{_bounds(row)}"
        for row in shown.itertuples()
    )
    sizes = captions.several(
        f"{row.dataset} the {row.n_top} of {captions.count(row.n)} test crops with the largest codes"
        for row in shown.drop_duplicates("dataset").itertuples()
    )
    channels = captions.several(
        f"{data}: " + ", ".join(f"{name} {colour}" for name, colour in zip(cards[data].get("channels", []), NAMES))
        for data in datasets
        if cards[data].get("channels")
    )
    drawing.sentences = [
        "Test crops with the largest codes of an atom, and controls of the same batches, drawn by seed. Each is "
        f"scaled by its own pixels ({OWN_SCALE[0]:g} to {OWN_SCALE[1]:g} percent), so that brightness cannot be "
        "compared between crops; above each its class and its code. Atoms: the largest AUROC for a class on training "
        f"crops; first seed.{f' Channels: {channels}.' if channels else ''}",
        f"Purity (no unit): share of the atom's class among the test crops with the largest codes. n: {sizes}. "
        f"{facts}.",
        *(
            [
                "Below each crop the code of each patch token, from white (0) to the largest of the row: the model was "
                "run again and each token, whitened as the crops' means are, encoded by itself. A token sees the whole "
                "crop through attention, so the map says where the model keeps the atom, not what a patch holds."
            ]
            if mapped
            else []
        ),
        captions.further_interval(cards, datasets, "galleries", "bootstrap"),
        "Null (grey): the share of the class among as many test crops drawn at random. Baseline (black): the purity "
        "of one intensity feature (mean or deviation of a channel), chosen on training crops as the atom was; an atom "
        "that is not above it has found no more than brightness. Correlation with brightness: "
        "Spearman's ρ of the code and the mean pixel of a test crop; near 1 in size, an atom says little beyond it; "
        "null: mean pixels permuted, whole groups together.",
        *captions.notes(cards, datasets),
        *captions.warnings(cards, datasets, dict.fromkeys(zip(shown["dataset"], shown["model"]))),
    ]
    return drawing


NAMES = ("blue", "green", "red")


def shortened(name: str, most: int) -> str:
    """Cut a name to a number of letters.

    >>> shortened("a very long name of a class", 14)
    'a very long n…'
    """
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _bounds(row: Any) -> str:
    """Interval and null of the correlation with brightness, where the table has them."""
    if not hasattr(row, "brightness_low"):
        return ""
    names = ("low", "high", "null_low", "null_high")
    low, high, null_low, null_high = (captions.number(getattr(row, f"brightness_{name}")) for name in names)
    return f" ({low} to {high}; null {null_low} to {null_high})"


def _shown(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of the learned dictionaries under the headline whitening, first seed, first atoms: never by outcome."""
    import pandas as pd

    parts = []
    for data in unique(frame["dataset"]):
        own = frame[frame["dataset"] == data]
        names = whitenings(own)
        own = own[own["whitening"] == ("pca" if "pca" in names else names[-1])]
        pairs = [pair for pair in dictionaries(own) if pair[1] in style.LEARNED] or dictionaries(own)[:1]
        for dictionary, _ in pairs:
            fit = own[own["dictionary"] == dictionary]
            parts.append(fit[(fit["seed"] == fit["seed"].min()) & (fit["rank"] <= ATOMS)])
    return pd.concat(parts, ignore_index=True)


def _of(crops: pd.DataFrame, row: pd.Series) -> pd.DataFrame:
    """The crops of one atom: top first, then controls."""
    own = crops
    for key in (*KEYS, "seed", "atom"):
        own = own[own[key] == row[key]]
    need(own, "galleries_crops", ["shape", "map", "patches"])
    return (
        own.assign(order=own["kind"].map({"top": 0, "control": 1}))
        .sort_values(["order", "position"])
        .drop(columns="order")
    )


def pixels(row: Any) -> np.ndarray:
    """A crop's pixels as they were stored: (channels, h, w) uint16."""
    return np.frombuffer(row.pixels, "<u2").reshape([int(length) for length in row.shape.split("×")])


def own_scale(crop: np.ndarray) -> np.ndarray:
    """A crop as red, green and blue in [0, 1], (h, w, 3), each channel scaled by its own percentiles.

    One channel is drawn in grey; of more than three the first three are drawn.
    """
    low, high = (np.percentile(crop, percent, axis=(1, 2), keepdims=True) for percent in OWN_SCALE)
    scaled = np.clip((crop - low) / np.maximum(high - low, 1), 0, 1)
    image = np.zeros((*crop.shape[1:], 3))
    if len(crop) == 1:
        return image + scaled[0][..., None]
    for channel, colour in zip(scaled, COLOURS):
        image[..., colour] = channel
    return image


def _map(row: Any) -> np.ndarray:
    """Codes of a crop's patches, (patches,) float32."""
    return np.frombuffer(row.map, "<f4")


def _heat(axes: Any, row: Any, largest: float) -> None:
    """Draw the code of each patch over the whole crop, on one scale per atom."""
    side = int(np.sqrt(row.patches))
    codes = _map(row)[: side * side].reshape(side, side)
    axes.imshow(codes, cmap="Greys", vmin=0, vmax=max(largest, 1e-12), interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(True)


def _scale(axes: Any, largest: float) -> None:
    """Draw the scale of a row's maps: white is 0, black the row's largest code of a token."""
    axes.set_axis_off()
    inset = axes.inset_axes((0.1, 0.55, 0.8, 0.14))
    inset.imshow(np.linspace(0, 1, 64)[None], cmap="Greys", aspect="auto", extent=(0, largest, 0, 1))
    inset.set_yticks([])
    inset.set_xticks([0, largest], ["0", f"{largest:.2g}"])
    inset.set_title("code of a token", loc="center", pad=1.5)
    for spine in inset.spines.values():
        spine.set_visible(True)


def _purity(axes: Any, row: pd.Series, letter: str) -> None:
    """Draw the purity of one atom with its interval over the null's."""
    colour = style.method(row["method"]).colour
    axes.plot([0, 0], [row["null_low"], row["null_high"]], color=style.NULL_COLOUR, lw=4, solid_capstyle="butt")
    axes.plot([0], [row["null"]], color=style.REFERENCE_COLOUR, marker="_", ms=6, mew=0.8)
    axes.plot([0, 0], [row["low"], row["high"]], color=colour, lw=1)
    axes.plot([0], [row["purity"]], color=colour, marker="o")
    axes.plot([0.4, 0.4], [row["baseline_low"], row["baseline_high"]], color="black", lw=0.9)
    axes.plot([0.32, 0.48], [row["baseline"], row["baseline"]], color="black", lw=0.9)
    axes.set_xlim(-1, 1)
    axes.set_ylim(-0.05, 1.05)
    axes.set_xticks([])
    axes.set_yticks([0, 1])
    which = style.dictionary_label(row["dictionary"], row["method"])
    style.mark(axes, letter, f"{which} {row['atom']}")
    axes.set_xlabel(f"purity for\n{row['best_class']}")
