"""Intrinsic dimension of the activations of every space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from conceptome.figures.space_rows import draw_spaces

if TYPE_CHECKING:
    import pandas as pd

    from conceptome.figures.panels import Drawing

TITLES = {
    "TwoNN": ("TwoNN\n(two distances)", "dimensions"),
    "MLE": ("MLE\n(many distances)", "dimensions"),
    "ESS": ("ESS\n(angles)", "dimensions"),
}


def draw(tables: Mapping[str, pd.DataFrame], cards: Mapping[str, Mapping[str, Any]]) -> Drawing:
    """Draw one panel per estimator; rows are spaces."""
    return draw_spaces(
        tables,
        cards,
        "intrinsic_dimension",
        value="dimension",
        split="estimator",
        titles=TITLES,
        title="Intrinsic dimension of the activations",
        explained="How many numbers it takes to describe where a sample lies among its neighbours, whatever the number "
        "of coordinates that the model gives it. Three estimates that err in different ways: from the ratio of the "
        "distances to the two nearest neighbours (TwoNN), from many distances (MLE), from the angles between "
        "neighbours (ESS).",
        fact=("TwoNN", "TwoNN", 1),
        unit="distinct samples",
        limits=dict.fromkeys(TITLES, (0.0, None)),
        null="Gaussian samples of the same number and the same covariance. Activations left of it are curved or "
        "clumped; level with it, they fill the directions in which they vary.",
        null_short="Gaussian samples with the same covariance",
    )
