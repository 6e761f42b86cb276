"""Layers of vision transformers: any of them, at one site, in one forward pass over the crops of a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conceptome.errors import ConfigError
from conceptome.models.base import Embedding, computing, torch_threads
from conceptome.models.taps import Stack, tapped
from conceptome.models.vision import embed_batches, pool_tokens

if TYPE_CHECKING:
    import torch

    from conceptome.config.models import VisionModel
    from conceptome.datasets import Dataset


@dataclass(frozen=True)
class Opened:
    """A vision model with its weights.

    Attributes
    ----------
    call
        Runs the model on float32 (b, input_channels, size, size); what it returns does not matter.
    stack, layers
        Where activations are taken; the layer and further ones.
    card
        Entries of the activation card.
    folder
        Of the checkpoint.
    pool
        A layer's values → (b, d).
    """

    call: Callable[[torch.Tensor], object]
    stack: Stack
    layers: Sequence[int]
    card: dict[str, Any]
    folder: Path
    pool: Callable[[VisionModel, np.ndarray], np.ndarray] = pool_tokens

    def embedding(self, config: VisionModel, dataset: Dataset, threads: int) -> Embedding:
        """Activations of every crop."""
        batches = layered_batches(config, dataset, self, threads)
        return Embedding(batches(0), self.card, also=tuple(self.layers[1:]), from_row=batches)

    def backbone(self, config: VisionModel, threads: int) -> tuple[Callable[[np.ndarray], np.ndarray], Path]:
        """Give what maps float32 (b, input_channels, size, size) to the layer's values, and the checkpoint."""

        def run(view: np.ndarray) -> np.ndarray:
            import torch

            with torch_threads(threads), tapped(self.stack, self.layers[:1], config.site, config.adapter) as collect:
                with torch.inference_mode(), computing(config):
                    self.call(torch.from_numpy(np.ascontiguousarray(view, dtype=np.float32)))
                return collect()[0].float().numpy()

        return run, self.folder


def layered_batches(
    config: VisionModel, dataset: Dataset, model: Opened, threads: int
) -> Callable[[int], Iterator[np.ndarray]]:
    """Give the function that runs a model over the crops and hands out its activations from a row on.

    Returns
    -------
    callable
        First row wanted → float32 (rows, d) per batch, or (layers, rows, d) of more than one layer, in the order of
        obs. Batches are those of the whole stream, so that bits do not depend on the first row.
    """

    def batches(start: int = 0) -> Iterator[np.ndarray]:
        import torch

        with torch_threads(threads), tapped(model.stack, model.layers, config.site, config.adapter) as collect:

            def forward(view: np.ndarray) -> list[np.ndarray]:
                with torch.inference_mode(), computing(config):
                    model.call(torch.from_numpy(np.ascontiguousarray(view, dtype=np.float32)))
                    return [model.pool(config, values.float().numpy()) for values in collect()]

            yield from embed_batches(config, dataset, forward, start)

    return batches


def check_prefix(config: VisionModel, tokens: int) -> None:
    """Refuse another number of tokens before the patches than the model has.

    Raises
    ------
    ConfigError
        With the right number.
    """
    if config.prefix_tokens != tokens:
        raise ConfigError(
            f"model '{config.adapter}': this checkpoint puts {tokens} token(s) before the patches (class, registers), "
            f"not {config.prefix_tokens}: set prefix_tokens to {tokens}"
        )


def vision_notes(config: VisionModel) -> list[str]:
    """How crops became activations, for the card."""
    intensity = config.intensity
    return [
        "mean of the patch tokens" if config.pool == "mean" else "class token",
        f"pixels: {intensity.method} {intensity.low:g} to {intensity.high:g}{', log' if intensity.log else ''}, "
        f"reference {intensity.reference}; crops resized to {config.input_size} × {config.input_size}",
    ]
