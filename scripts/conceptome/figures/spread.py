"""Spread of the activations of every space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from conceptome.figures.space_rows import draw_spaces

if TYPE_CHECKING:
    import pandas as pd

    from conceptome.figures.panels import Drawing

TITLES = {
    "participation ratio": ("participation ratio", "directions in use"),
    "eigenvalue early enrichment": ("early enrichment", "0 even, 1 one direction"),
    "Vasicek ratio MSE": ("Vasicek ratio MSE", "0 even and normal"),
    "average cosine": ("average cosine", "0 around the origin"),
}


def draw(tables: Mapping[str, pd.DataFrame], cards: Mapping[str, Mapping[str, Any]]) -> Drawing:
    """Draw one panel per statistic; rows are spaces."""
    return draw_spaces(
        tables,
        cards,
        "spread",
        value="value",
        split="statistic",
        titles=TITLES,
        title="Spread of the activations over their space",
        explained="How evenly the samples use the coordinates that the model gives them. Participation ratio: number "
        "of directions that hold the variance. Early enrichment: how far the variance is gathered in the first "
        "directions, 0 to 1. Vasicek ratio MSE: how far the directions' distributions are from equally wide normal "
        "ones. Both are the measures recommended by Marbut et al. (2023). Average cosine: what is often reported "
        "instead; it mostly says where the mean lies.",
        fact=("eigenvalue early enrichment", "Early enrichment", 2),
        unit="samples",
        limits={"eigenvalue early enrichment": (-0.03, 1.03)},
        null="isotropic Gaussian samples of the same number and dimension, which is what an evenly used space looks "
        "like in a sample of this size.",
        null_short="round Gaussian cloud, same n and d",
    )
