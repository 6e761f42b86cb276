"""Mean and standard deviation of each channel of a crop: the baseline that knows brightness and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from conceptome.datasets.images import batches
from conceptome.errors import DataError
from conceptome.models.base import Embedding

if TYPE_CHECKING:
    from conceptome.config.models import IntensityFeatures
    from conceptome.datasets import Dataset


def embed(config: IntensityFeatures, dataset: Dataset, *, threads: int, weights: Path | None) -> Embedding:
    """Measure every crop's mean and deviation per channel: float32 (n, 2 · channels), of log(1 + pixel).

    The logarithm keeps a difference of brightness of the same size whatever the exposure of a plate.

    Raises
    ------
    DataError
        The data set is not of images.
    """
    if dataset.card["modality"] != "images":
        raise DataError(f"model 'intensity' reads images, but the data set is of {dataset.card['modality']}")
    names = [f"{what} of {channel}" for what in ("mean", "deviation") for channel in dataset.card["channels"]]
    card = {
        "layer": "features",
        "dimension_names": names,
        "notes": ["brightness alone, of log(1 + pixel): a baseline for every other model of these images"],
    }
    return Embedding(_features(dataset), card)


def _features(dataset: Dataset) -> Iterator[np.ndarray]:
    yield from map(intensity_features, batches(dataset))


def intensity_features(crops: np.ndarray) -> np.ndarray:
    """Means of all channels, then deviations, of log(1 + pixel): crops (n, c, h, w) → float32 (n, 2 · c)."""
    values = np.log1p(crops.astype(np.float64))
    return np.concatenate([values.mean((2, 3)), values.std((2, 3))], axis=1).astype(np.float32)
