"""Classic CellProfiler features from the same pixels, by cp_measure (Muñoz et al. 2025, arXiv:2507.01163).

A crop brings no segmentation. The nucleus is what Otsu's threshold of one channel finds nearest to the middle of the
crop; shape is measured of it, everything else of it and of the whole crop, in every channel.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from conceptome.datasets.images import batches
from conceptome.errors import DataError
from conceptome.models.base import Embedding, dense_batches

if TYPE_CHECKING:
    from conceptome.config.models import CpMeasure
    from conceptome.datasets import Dataset

log = logging.getLogger(__name__)

SHAPE = ("sizeshape", "zernike")
# Where an object lies in a crop says how it was cut, not what the cell looks like.
POSITIONS = ("Center", "BoundingBox", "Location", "Object_Number")


def embed(config: CpMeasure, dataset: Dataset, *, threads: int, weights: Path | None) -> Embedding:
    """Measure every crop: float32 (n, features), pixels over the largest value of their bits.

    Features that are not finite in some crop, and those constant over all, are left out and counted in the card.

    Raises
    ------
    DataError
        The data set is not of images, or has no such channel; no feature is left.
    """
    if dataset.card["modality"] != "images":
        raise DataError(f"model 'cp_measure' reads images, but the data set is of {dataset.card['modality']}")
    channels = dataset.card["channels"]
    if config.nucleus_channel not in channels:
        raise DataError(f"nucleus_channel '{config.nucleus_channel}' is not among the channels ({', '.join(channels)})")
    names: list[str] = []
    rows, whole, reported = [], 0, 0
    largest = np.iinfo(dataset.card["pixel_dtype"]).max
    for batch in batches(dataset):
        for crop in batch:
            mask, found = nucleus(crop[channels.index(config.nucleus_channel)])
            whole += not found
            values = measure_crop(crop.astype(np.float64) / largest, mask, channels, config.features)
            names = names or list(values)
            rows.append(np.fromiter(values.values(), np.float64, len(values)))
        if len(rows) * 10 // len(dataset) > reported:
            reported = len(rows) * 10 // len(dataset)
            log.info("cp_measure: %d of %d crops", len(rows), len(dataset))
    table = np.stack(rows)
    finite = np.isfinite(table).all(0)
    constant = np.zeros(len(names), bool)
    constant[finite] = table[:, finite].std(0) <= 1e-12 * np.maximum(1, np.abs(table[:, finite].mean(0)))
    kept = finite & ~constant
    if not kept.any():
        raise DataError("cp_measure: no feature is finite in all crops and varies over them: check the images")
    card = {
        "layer": "features",
        "dimension_names": [name for name, keep in zip(names, kept) if keep],
        "notes": [
            f"{int(kept.sum())} of {len(names)} features; left out: {int((~finite).sum())} not finite in some crop, "
            f"{int(constant.sum())} constant",
            f"no segmentation came with the crops: the nucleus is Otsu's of {config.nucleus_channel}; in {whole} crops "
            "none was found, and the whole crop was measured in its place",
        ],
        "training": {"crops_without_nucleus": whole},
    }
    return Embedding(dense_batches(table[:, kept]), card)


def nucleus(image: np.ndarray) -> tuple[np.ndarray, bool]:
    """Find the nucleus: the object above Otsu's threshold that is nearest to the middle.

    Returns
    -------
    mask : numpy.ndarray
        (h, w) int, 1 on the nucleus; 1 everywhere where none of at least 20 pixels was found.
    found : bool
        Whether there was one.
    """
    from skimage.filters import threshold_otsu
    from skimage.measure import label, regionprops

    if image.min() < image.max():
        middle = (np.array(image.shape) - 1) / 2
        regions = [region for region in regionprops(label(image > threshold_otsu(image))) if region.area >= 20]
        if regions:
            best = min(regions, key=lambda region: np.linalg.norm(region.coords - middle, axis=1).min())
            mask = np.zeros(image.shape, np.int64)
            mask[tuple(best.coords.T)] = 1
            return mask, True
    return np.ones(image.shape, np.int64), False


def measure_crop(crop: np.ndarray, mask: np.ndarray, channels: list[str], families: list[str]) -> dict[str, float]:
    """Measure one crop (channels, h, w) float64 in [0, 1] with its nucleus (h, w): feature → value."""
    from cp_measure.bulk import get_core_measurements

    measurements = get_core_measurements()
    everything = np.ones_like(mask)
    values: dict[str, float] = {}
    with warnings.catch_warnings():
        # Features of tiny or flat objects divide by zero; those that end up not finite are left out and counted.
        warnings.simplefilter("ignore")
        for family in families:
            measure = measurements[family]
            if family in SHAPE:
                values |= _named("nucleus", measure(mask, crop[0]))
                continue
            for channel, pixels in zip(channels, crop):
                values |= _named(f"nucleus, {channel}", measure(mask, pixels))
                values |= _named(f"crop, {channel}", measure(everything, pixels))
    return values


def _named(of: str, found: dict[str, np.ndarray]) -> dict[str, float]:
    """Give the features of one object their names, positions left out."""
    return {
        f"{name} ({of})": float(np.ravel(value)[0])
        for name, value in found.items()
        if not any(position in name for position in POSITIONS)
    }
