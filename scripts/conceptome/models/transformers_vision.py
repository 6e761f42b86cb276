"""Vision transformers of transformers: ViT (Phikon), DINOv2 (Phikon-v2), DINOv2 with registers, DINOv3.

A checkpoint is a folder with config.json and the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from conceptome.errors import ConfigError, SourceError
from conceptome.models.base import torch_threads
from conceptome.models.checkpoint import checkpoint_card, find_folder, load_pretrained, read_settings
from conceptome.models.taps import Stack, blocks_needed, chosen_layers
from conceptome.models.vision import channel_rows
from conceptome.models.vision_layers import Opened, check_prefix, vision_notes

if TYPE_CHECKING:
    import torch

    from conceptome.config.models import TransformersVision
    from conceptome.datasets import Dataset
    from conceptome.models.base import Embedding

# model_type in config.json → the class in transformers.
KINDS = {
    "vit": "ViTModel",
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
    "dinov3_vit": "DINOv3ViTModel",
}


def parts(model: torch.nn.Module, kind: str) -> tuple[torch.nn.Module, str, torch.nn.Module]:
    """Give the module that holds the layers, the name they have in it, and the final norm."""
    if kind == "vit":
        return model, "layers", model.layernorm
    if kind == "dinov3_vit":
        return model.model, "layer", model.norm
    return model.encoder, "layer", model.layernorm


def stack_of(model: torch.nn.Module, kind: str, total: int) -> Stack:
    """Where activations are taken."""
    holder, name, final = parts(model, kind)
    blocks = list(getattr(holder, name))
    plain = kind == "vit"
    return Stack(
        blocks=blocks,
        attention=[block.attention if plain else block.layer_scale1 for block in blocks],
        feed_forward=[block.mlp if plain else block.layer_scale2 for block in blocks],
        norms=[block.layernorm_before if plain else block.norm1 for block in blocks],
        final=final if len(blocks) == total else None,
    )


def open_model(config: TransformersVision, weights: Path | None, threads: int) -> Opened:
    """Load a checkpoint down to the layers asked for; see `embed`."""
    import transformers

    folder = find_folder(config, weights, ["config.json"])
    kind = read_settings(folder / "config.json").get("model_type")
    if kind not in KINDS:
        raise SourceError(
            f"{folder / 'config.json'} describes a model of type '{kind}', but model 'transformers_vision' reads "
            f"{', '.join(KINDS)}"
        )
    options = {"add_pooling_layer": False} if kind == "vit" else {}
    with torch_threads(threads):
        model = load_pretrained(getattr(transformers, KINDS[kind]), folder, config.adapter, [kind], **options)
    settings = model.config
    check_prefix(config, 1 + int(getattr(settings, "num_register_tokens", 0) or 0))
    if kind == "vit" and settings.image_size != config.input_size:
        raise ConfigError(
            f"model 'transformers_vision': this ViT reads {settings.image_size} × {settings.image_size} pixels, not "
            f"{config.input_size}: set input_size"
        )
    if settings.num_channels != config.input_channels:
        raise ConfigError(
            f"model 'transformers_vision': this checkpoint reads {settings.num_channels} channels, not "
            f"{config.input_channels}: set input_channels, mean and std"
        )
    holder, name, _ = parts(model, kind)
    total = len(getattr(holder, name))
    layers = chosen_layers(config, total)
    setattr(holder, name, getattr(holder, name)[: blocks_needed(layers, config.site, total)])
    card = checkpoint_card(config, folder, layers, total, vision_notes(config))
    return Opened(lambda x: model(pixel_values=x), stack_of(model, kind, total), layers, card, folder)


def embed(config: TransformersVision, dataset: Dataset, *, threads: int, weights: Path | None) -> Embedding:
    """Run the encoder over every crop; layer 0 is the embedding, i the output of layer i, the last one normalised.

    Raises
    ------
    ConfigError
        The layer does not exist, no weights are declared, or size or tokens are not the model's.
    SourceError
        Files of the checkpoint are missing or unreadable, or are of another model.
    DataError
        The data set is not of images, or its channels do not fit.
    """
    channel_rows(config, dataset)
    return open_model(config, weights, threads).embedding(config, dataset, threads)


def backbone(
    config: TransformersVision, weights: Path | None, threads: int
) -> tuple[Callable[[np.ndarray], np.ndarray], Path]:
    """Open the model for single layers' values; see `vision.token_reader`."""
    return open_model(config, weights, threads).backbone(config, threads)
