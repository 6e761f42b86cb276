"""Which concepts two models share, and which belong to one alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from conceptome.figures import captions, style
from conceptome.figures.dots import Dots, closing, draw_dots, intervals
from conceptome.figures.panels import Drawing, need, short_title, unique, usable

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

PANELS = {"shared": "shared by both", "own": "this model's own", "other": "the other model's own"}
COLOURS = {"shared": "#56B4E9", "own": "#D55E00", "other": "#009E73"}
# ν of atoms that one model lacks altogether in the other direction is unbounded.
LARGEST = 2.0
SPACES = ("error", "reconstruction")


def draw(tables: Mapping[str, pd.DataFrame], cards: Mapping[str, Mapping[str, Any]]) -> Drawing:
    """Share of crosscoder atoms of each kind per other model; below, ν of error and reconstruction atom by atom."""
    import pandas as pd

    columns = ["dataset", "model", "whitening", "other", "kind", "value", "low", "high", "null", "atoms", "n"]
    every = usable(tables, "latent_scaling", columns, "latent_scaling")
    # Whitenings play no part, and one pair of models is drawn once, from the model that the study names first.
    frame = every.drop_duplicates(["dataset", "model", "other", "kind"])
    pair = [(data, *sorted(names)) for data, *names in zip(frame["dataset"], frame["model"], frame["other"])]
    frame = frame.assign(pair=pair).drop_duplicates(["pair", "kind"]).drop(columns="pair")
    frame = frame.assign(dictionary=frame["other"], method="model")
    panels, shown = [], []
    atoms = tables.get("latent_scaling_atoms", pd.DataFrame())
    if len(atoms):
        names = [f"nu_{what}{part}" for what in SPACES for part in ("", "_low", "_high", "_null_high")]
        need(atoms, "latent_scaling_atoms", ["dataset", "model", "other", "kind", *names])
    for data, model in dict.fromkeys(zip(frame["dataset"], frame["model"])):
        here = frame[(frame["dataset"] == data) & (frame["model"] == model)]
        for kind, heading in PANELS.items():
            part = here[here["kind"] == kind].reset_index(drop=True)
            panels.append(Dots(heading, "share of atoms", "value", part, whole=True))
        for other in unique(here["other"]) if len(atoms) else []:
            where = (atoms["dataset"] == data) & (atoms["model"] == model) & (atoms["other"] == other)
            part = atoms[where & (atoms["whitening"] == here["whitening"].iloc[0])]
            part = part.dropna(subset=["nu_error", "nu_reconstruction"])
            if len(part):
                shown.append(part.assign(**{name: part[name].clip(upper=LARGEST) for name in names}))
    drawing, letters, axes = draw_dots(
        "Concepts that two models share", panels, cards, "null: permuted pairs", more=len(shown), height=46
    )
    for panel, letter, part in zip(axes, letters, shown):
        _scatter(panel, part)
        data, model, other = (part[name].iloc[0] for name in ("dataset", "model", "other"))
        style.mark(panel, letter, f"{short_title(cards[data], data)}\n{other} relative to {model}", wrap=38)
        drawing.add(letter, part)
    told = captions.several(
        f"{row.dataset} {row.model} with {row.other}, {PANELS[row.kind]} {captions.number(row.value)} "
        f"[{captions.number(row.low)}, {captions.number(row.high)}] (null {captions.number(row.null)})"
        for row in frame.itertuples()
    )
    sizes = captions.several(
        f"{data} {captions.count(part['n'].max())} test samples, {captions.count(part['atoms'].max())} atoms that fire"
        for data, part in frame.groupby("dataset", sort=False)
    )
    drawing.sentences = [
        "Atoms of a crosscoder of two models, sorted by latent scaling: ν is how strongly an atom's code is present in "
        "the other model relative to this one (no unit), in the error without the atom and in the reconstruction. An "
        "atom is one model's own where the other's ν is below 0.2 (error) and 0.5 (reconstruction). Below: ν atom by "
        f"atom with its intervals, larger values at {LARGEST:g}; blue shared, orange this model's own, green the "
        f"other's; grey: up to where ν reaches in crosscoders of the null. n: {sizes}.",
        f"Shares of atoms: {told}.",
        intervals(cards, unique(frame["dataset"]), "latent_scaling"),
        "Activations are taken as the models give them: whitenings play no part, and one is drawn. "
        "Null (grey): crosscoders of samples that do not belong together.",
        *closing(cards, frame),
    ]
    return drawing


def _scatter(axes: Axes, part: pd.DataFrame) -> None:
    """ν of reconstruction against ν of error, with intervals and the thresholds, over the null."""
    reach = part[["nu_error_null_high", "nu_reconstruction_null_high"]].iloc[0].tolist()
    if reach[0] == reach[0]:
        axes.fill_between([0, reach[0]], 0, reach[1], color=style.NULL_COLOUR, alpha=0.4, lw=0, zorder=0)
    for kind, colour in COLOURS.items():
        own = part[part["kind"] == kind]
        between = {"color": colour, "lw": 0.4, "alpha": 0.35, "zorder": 1}
        axes.hlines(own["nu_reconstruction"], own["nu_error_low"], own["nu_error_high"], **between)
        axes.vlines(own["nu_error"], own["nu_reconstruction_low"], own["nu_reconstruction_high"], **between)
        axes.scatter(own["nu_error"], own["nu_reconstruction"], s=6, color=colour, lw=0)
    axes.plot([0.2, 0.2], [0, 0.5], color=style.REFERENCE_COLOUR, linestyle=":", lw=0.8)
    axes.plot([0, 0.2], [0.5, 0.5], color=style.REFERENCE_COLOUR, linestyle=":", lw=0.8)
    axes.set_xlabel("ν of error")
    axes.set_ylabel("ν of reconstruction")
