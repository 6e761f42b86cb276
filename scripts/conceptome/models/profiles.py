"""The features themselves as activations: CellProfiler's, or a table that already is a model's embedding."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from conceptome.models.base import Embedding, dense_batches, table

if TYPE_CHECKING:
    from conceptome.config.models import ProfileFeatures
    from conceptome.datasets import Dataset


def embed(config: ProfileFeatures, dataset: Dataset, *, threads: int, weights: Path | None) -> Embedding:
    """Pass the table of features on unchanged, as float32 (n, number of features)."""
    adata = table(dataset, "profiles")
    return Embedding(dense_batches(adata.X), {"layer": "features", "dimension_names": list(map(str, adata.var_names))})
