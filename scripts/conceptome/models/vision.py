"""What vision adapters share: from a crop's 8 or 16 bits to a model's input, and from its tokens to activations."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from conceptome.datasets.images import batches
from conceptome.errors import ConfigError, DataError

if TYPE_CHECKING:
    from conceptome.config.models import Intensity, VisionBase
    from conceptome.datasets import Dataset

log = logging.getLogger(__name__)

LEVELS = 1 << 16


def embed_batches(
    config: VisionBase,
    dataset: Dataset,
    forward: Callable[[np.ndarray], Sequence[np.ndarray]],
    start: int = 0,
) -> Iterator[np.ndarray]:
    """Run a model over the crops of a data set.

    Parameters
    ----------
    forward
        float32 (b, input_channels, size, size), at most `config.batch_size` of them → a float (b, d) for each layer.
    start
        First row wanted. Batches are those of the whole stream, so that bits do not depend on it.

    Yields
    ------
    numpy.ndarray
        float32 (rows, d), or (layers, rows, d) of more than one layer, in the order of obs; with `views: each`, the
        channels' activations side by side.
    """
    n = len(dataset.obs)
    done = start - start % config.batch_size
    reported = done * 10 // max(n, 1)
    for crops in crop_batches(config, dataset, np.arange(done, n) if done else None):
        found = [forward(view) for view in views(config, crops)]
        block = np.stack([np.concatenate(layer, axis=1).astype(np.float32) for layer in zip(*found, strict=True)])
        block = block[:, max(start - done, 0) :]
        done += len(crops)
        yield block[0] if len(block) == 1 else block
        if done * 10 // n > reported:
            reported = done * 10 // n
            log.info("%d of %d crops", done, n)


def token_reader(
    config: VisionBase, dataset: Dataset, weights: Path | None, threads: int
) -> Callable[[int], np.ndarray]:
    """Open a vision model for the patch tokens of single crops.

    An adapter that has tokens offers `backbone(config, weights, threads) -> (run, path)`, where run maps float32
    (b, input_channels, size, size) to the values of the layer.

    Returns
    -------
    callable
        Row of obs → float32 (patches, d), row of patches after row; with `views: each` the channels side by side. No
        patches, (0, 0), for a layer that has none.
    """
    from conceptome.models import MODELS

    module = importlib.import_module(MODELS[config.adapter].split(":")[0])
    if not hasattr(module, "backbone"):
        return lambda row: np.empty((0, 0), np.float32)
    run, _ = module.backbone(config, weights, threads)

    def read(row: int) -> np.ndarray:
        batch = next(crop_batches(config, dataset, np.array([row]), scaling=scaling))
        values = [np.asarray(run(view), np.float32) for view in views(config, batch)]
        if values[0].ndim == 2:
            return np.empty((0, 0), np.float32)
        return np.concatenate([patch_tokens(config, value)[0] for value in values], axis=1)

    scaling = fit_scaling(config.intensity, dataset, channel_rows(config, dataset))
    return read


def crop_batches(
    config: VisionBase, dataset: Dataset, index: np.ndarray | None = None, scaling: Scaling | None = None
) -> Iterator[np.ndarray]:
    """Iterate over crops as the model's input values, before channels become input channels.

    Parameters
    ----------
    index
        Row numbers to give, in this order; None: all rows in the order of obs.
    scaling
        What `fit_scaling` found before; None: it is found here.

    Yields
    ------
    numpy.ndarray
        float32 (rows, channels, input_size, input_size): the listed channels, by the study's intensity handling,
        resized. At most `config.batch_size` rows; one batch is in memory.

    Raises
    ------
    DataError
        The data set is not of images, lacks a listed channel, or has no reference pixels.
    """
    channels = channel_rows(config, dataset)
    scaling = scaling or fit_scaling(config.intensity, dataset, channels)
    plates = _plates(config.intensity, dataset)
    if index is None:
        stored: Iterator[np.ndarray] = batches(dataset, config.batch_size)
        rows = np.arange(len(dataset))
    else:
        crops = dataset.crops()
        rows = np.asarray(index)
        stored = (np.array(crops[rows[i : i + config.batch_size]]) for i in range(0, len(rows), config.batch_size))
    start = 0
    for batch in stored:
        at = plates[rows[start : start + len(batch)]]
        yield resize(scaling.apply(batch[:, channels], at), config.input_size)
        start += len(batch)


def views(config: VisionBase, batch: np.ndarray) -> Iterator[np.ndarray]:
    """Turn channels into a model's input channels and normalise them.

    Parameters
    ----------
    batch
        float32 (rows, channels, size, size), from `crop_batches`.

    Yields
    ------
    numpy.ndarray
        float32 (rows, input_channels, size, size): one for `together`, one per channel for `each`.

    Raises
    ------
    ConfigError
        `together`, but the number of channels is not the model's.
    """
    if config.views == "together" and batch.shape[1] != config.input_channels:
        raise ConfigError(
            f"the model reads {config.input_channels} channels together, but {batch.shape[1]} are listed: choose them "
            "with 'channels', or take 'views: each'"
        )
    single = [batch] if config.views == "together" else [batch[:, [c]] for c in range(batch.shape[1])]
    shape = (1, config.input_channels, 1, 1)
    mean, std = (np.array(values, np.float32).reshape(shape) for values in (config.mean, config.std))
    for view in single:
        if config.views == "each":
            view = np.repeat(view, config.input_channels, axis=1)
        # Standardised pixels have the controls' mean 0 and deviation 1 already.
        yield view if config.intensity.method == "standardize" else (view - mean) / std


def pool_tokens(config: VisionBase, values: np.ndarray) -> np.ndarray:
    """Turn a layer's values into one activation per image: tokens (b, t, d), maps (b, d, h, w), or vectors (b, d).

    Raises
    ------
    ConfigError
        The values have another number of axes, or there is no patch token.
    """
    if values.ndim == 2:
        return values
    if config.pool == "cls" and values.ndim == 3:
        return values[:, 0]
    return patch_tokens(config, values).mean(axis=1)


def patch_tokens(config: VisionBase, values: np.ndarray) -> np.ndarray:
    """Return the patch tokens of a layer, row of patches after row: (b, patches, d).

    Raises
    ------
    ConfigError
        The layer has no tokens.
    """
    if values.ndim == 4:
        return values.reshape(*values.shape[:2], -1).transpose(0, 2, 1)
    if values.ndim != 3 or values.shape[1] <= config.prefix_tokens:
        raise ConfigError(
            f"layer {getattr(config, 'layer', None)} gives values of shape {values.shape}, which are no patch tokens "
            f"after {config.prefix_tokens}: choose another layer, or mend prefix_tokens"
        )
    return values[:, config.prefix_tokens :]


def resize(images: np.ndarray, size: int) -> np.ndarray:
    """Resize square or rectangular images to size × size: bilinear, with smoothing where they shrink.

    Parameters
    ----------
    images
        float32 (rows, channels, h, w).
    """
    import torch

    if images.shape[2:] == (size, size):
        return images
    mode = {"mode": "bilinear", "align_corners": False, "antialias": True}
    return torch.nn.functional.interpolate(torch.from_numpy(images), (size, size), **mode).numpy()


def channel_rows(config: VisionBase, dataset: Dataset) -> list[int]:
    """Positions of the listed channels among those of the data set.

    Raises
    ------
    DataError
        The data set is not of images, or has no such channel.
    """
    if dataset.card["modality"] != "images":
        raise DataError(f"model '{config.adapter}' reads images, but the data set is of {dataset.card['modality']}")
    known = dataset.card["channels"]
    for name in config.channels or ():
        if name not in known:
            raise DataError(f"channel '{name}' is not among those of the data set ({', '.join(known)})")
    return [known.index(name) for name in config.channels or known]


@dataclass(frozen=True)
class Scaling:
    """Maps pixels to (pixel − shift) / scale, clipped: per plate and channel, or by each crop's own pixels.

    `shift` and `scale` are (plates, channels) float64 of the (logarithmic) pixel values; None: the crop's own.
    """

    config: Intensity
    shift: np.ndarray | None
    scale: np.ndarray | None

    def apply(self, batch: np.ndarray, plates: np.ndarray) -> np.ndarray:
        """Scale a batch (rows, channels, h, w) of pixels, rows of the given plates, to float32 of the same shape."""
        config = self.config
        values = batch.astype(np.float32)
        if config.log:
            np.log1p(values, out=values)
        if self.shift is None or self.scale is None:
            if config.method == "standardize":
                shift, scale = values.mean((2, 3)), values.std((2, 3))
            else:
                shift, high = np.percentile(values, [config.low, config.high], axis=(2, 3))
                scale = high - shift
            # A crop of one value has nothing to show: it becomes zeros, not a division by zero.
            scale = np.where(scale > 0, scale, 1)
        else:
            shift, scale = self.shift[plates], self.scale[plates]
        values = (values - shift[:, :, None, None].astype(np.float32)) / scale[:, :, None, None].astype(np.float32)
        low, high = (config.low, config.high) if config.method == "standardize" else (0.0, 1.0)
        return np.clip(values, low, high, out=values)


def fit_scaling(config: Intensity, dataset: Dataset, channels: list[int]) -> Scaling:
    """Find each channel's limits, or mean and deviation, over the reference pixels, in one pass of exact histograms.

    Raises
    ------
    DataError
        There is no reference crop (for a plate), or a channel is constant over the reference.
    """
    if config.method == "clip":
        limits = np.full((1, len(channels)), config.low), np.full((1, len(channels)), config.high - config.low)
        return Scaling(config, *limits)
    if config.reference == "crop":
        return Scaling(config, None, None)
    plates = _plates(config, dataset)
    reference = dataset.obs["control"].to_numpy(bool)
    if config.reference == "training_controls":
        reference = reference & (dataset.obs["split"] == "train").to_numpy()
    counts = np.zeros((plates.max() + 1, len(channels), LEVELS), np.int64)
    crops = dataset.crops()
    for row in np.flatnonzero(reference):
        for position, channel in enumerate(channels):
            counts[plates[row], position] += np.bincount(crops[row, channel].ravel(), minlength=LEVELS)
    names = sorted(dataset.obs["batch"].astype(str).unique())
    levels = np.arange(LEVELS, dtype=np.float64)
    if config.log:
        levels = np.log1p(levels)
    shift, scale = np.empty(counts.shape[:2]), np.empty(counts.shape[:2])
    for plate, position in np.ndindex(counts.shape[:2]):
        held = counts[plate, position]
        of = f"plate {names[plate]}" if config.reference == "plate_controls" else "the training split"
        if not held.any():
            raise DataError(
                f"intensity.reference {config.reference}: {of} has no control crop: choose another reference"
            )
        if config.method == "standardize":
            shift[plate, position] = (levels * held).sum() / held.sum()
            variance = ((levels - shift[plate, position]) ** 2 * held).sum() / held.sum()
            scale[plate, position] = np.sqrt(variance)
        else:
            # The smallest pixel value that at least so many percent of the pixels do not exceed.
            below = np.cumsum(held)
            low, high = (
                levels[np.searchsorted(below, max(percent / 100 * below[-1], 1))]
                for percent in (config.low, config.high)
            )
            shift[plate, position], scale[plate, position] = low, high - low
        if not scale[plate, position] > 0:
            name = dataset.card["channels"][channels[position]]
            raise DataError(f"channel '{name}' is constant over the controls of {of}: its intensity cannot be scaled")
    return Scaling(config, shift, scale)


def _plates(config: Intensity, dataset: Dataset) -> np.ndarray:
    """Position of every crop's plate among those of the data set, (n,) int; all zero where plates do not count."""
    if config.reference != "plate_controls" or config.method == "clip":
        return np.zeros(len(dataset.obs), np.int64)
    plates = dataset.obs["batch"]
    if plates.isna().any():
        raise DataError("intensity.reference plate_controls needs dataset.batch, the column of the plate")
    return np.unique(plates.astype(str), return_inverse=True)[1].astype(np.int64)
