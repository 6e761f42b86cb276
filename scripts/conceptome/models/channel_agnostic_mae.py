"""Channel-agnostic masked autoencoders of microscopy (Kraus et al. 2024, arXiv 2404.10242), OpenPhenom among them.

A checkpoint is a folder with config.json and model.safetensors; the encoder alone is read. Its shape follows from the
weights, so that no code comes from the checkpoint. Every channel is cut into patches by one projection, all patches of
all channels make one sequence, and positions repeat from channel to channel.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from conceptome.errors import ConfigError, SourceError
from conceptome.models.base import torch_threads
from conceptome.models.checkpoint import checkpoint_card, find_folder, read_tensors, weight_files
from conceptome.models.taps import Stack, blocks_needed, chosen_layers
from conceptome.models.timm_import import import_timm
from conceptome.models.vision import channel_rows
from conceptome.models.vision_layers import Opened, check_prefix, vision_notes

if TYPE_CHECKING:
    import torch

    from conceptome.config.models import ChannelAgnosticMae, VisionModel
    from conceptome.datasets import Dataset
    from conceptome.models.base import Embedding

ENCODER = "encoder.vit_backbone."
BLOCK = re.compile(r"blocks\.(\d+)\.")


def load_encoder(folder: Path) -> torch.nn.Module:
    """Build the encoder that the weights are of, in evaluation mode and float32.

    The module has the checkpoint's own names and gives hidden states (b, 1 + channels × patches, d), the class token
    first, of standardised images (b, channels, size, size).

    Raises
    ------
    SourceError
        A file is missing or unreadable, or holds no such encoder.
    """
    import torch
    from torch import nn

    state: dict[str, torch.Tensor] = {}
    for path in weight_files(folder):
        names, tensors = read_tensors(path)
        state |= {name.removeprefix(ENCODER): tensor for name, tensor in tensors.items() if name.startswith(ENCODER)}
    needed = ["cls_token", "pos_embed", "patch_embed.proj.weight", "norm.weight", "blocks.0.q_norm.weight"]
    absent = [name for name in needed if name not in state]
    if absent:
        raise SourceError(f"{folder}: the checkpoint lacks '{ENCODER}{absent[0]}': it is no channel-agnostic MAE")
    width, channels, patch, _ = state["patch_embed.proj.weight"].shape
    depth = 1 + max(int(found.group(1)) for name in state if (found := BLOCK.match(name)))
    hidden = state["blocks.0.mlp_bias"].shape[0] if "blocks.0.mlp_bias" in state else 0
    heads = width // state["blocks.0.q_norm.weight"].shape[0]
    if channels != 1 or not hidden:
        raise SourceError(f"{folder}: the encoder projects {channels} channels at once: it is no channel-agnostic MAE")
    import_timm()
    from timm.models.vision_transformer import ParallelScalingBlock

    class Encoder(nn.Module):
        """Patches of every channel, positions, parallel blocks, a norm."""

        def __init__(self):
            super().__init__()
            self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
            self.pos_embed = nn.Parameter(torch.zeros_like(state["pos_embed"]))
            self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(1, width, patch, stride=patch)})
            self.blocks = nn.ModuleList(
                ParallelScalingBlock(
                    width, heads, mlp_ratio=hidden / width, qkv_bias=False, qk_norm=True, init_values=1e-4
                )
                for _ in range(depth)
            )
            self.norm = nn.LayerNorm(width, eps=1e-6)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            b = len(images)
            patches = self.patch_embed["proj"](images.flatten(0, 1)[:, None]).flatten(2).transpose(1, 2)
            tokens = patches.reshape(b, -1, width)
            x = torch.cat([self.cls_token.expand(b, -1, -1), tokens], dim=1) + self.pos_embed[:, : 1 + tokens.shape[1]]
            for block in self.blocks:
                x = block(x)
            return self.norm(x)

    with torch.random.fork_rng(devices=[]):
        model = Encoder()
    found = model.load_state_dict(state, strict=False)
    if found.missing_keys or found.unexpected_keys:
        what, names = ("lacks", found.missing_keys) if found.missing_keys else ("has unknown", found.unexpected_keys)
        raise SourceError(f"{folder}: the encoder {what} {len(names)} weight(s), first '{ENCODER}{names[0]}'")
    return model.float().eval()


def check_positions(model: torch.nn.Module, channels: int, size: int) -> int:
    """Patches of a channel, if the positions of the checkpoint are those of so many and of so many channels.

    Raises
    ------
    ConfigError
        The size is no multiple of a patch, positions are of another size, or there are too many channels.
    """
    import torch

    patch = model.patch_embed["proj"].kernel_size[0]
    patches = (size // patch) ** 2
    positions = model.pos_embed[0, 1:]
    fits = size % patch == 0 and len(positions) % max(patches, 1) == 0
    if not fits or not torch.equal(positions[:patches], positions[-patches:]):
        raise ConfigError(
            f"model 'channel_agnostic_mae': positions of this checkpoint are not those of {size} × {size} pixels in "
            f"patches of {patch}: set input_size (OpenPhenom: 256)"
        )
    if channels * patches > len(positions):
        raise ConfigError(
            f"model 'channel_agnostic_mae': {channels} channels are listed, but this checkpoint reads at most "
            f"{len(positions) // patches}"
        )
    return patches


def open_model(config: ChannelAgnosticMae, weights: Path | None, threads: int) -> Opened:
    """Load a checkpoint down to the layers asked for; see `embed`."""
    import torch

    if config.site in ("attention", "feed_forward"):
        raise ConfigError(
            "model 'channel_agnostic_mae': attention and feed-forward run side by side and are added together: take "
            "'site: residual'"
        )
    folder = find_folder(config, weights, ["config.json"])
    with torch_threads(threads):
        model = load_encoder(folder)
    check_prefix(config, 1)
    patches = check_positions(model, config.input_channels, config.input_size)
    total = len(model.blocks)
    layers = chosen_layers(config, total)
    model.blocks = model.blocks[: blocks_needed(layers, config.site, total)]
    blocks = list(model.blocks)
    stack = Stack(
        blocks=blocks,
        attention=[],
        feed_forward=[],
        norms=[block.in_norm for block in blocks],
        final=model.norm if len(blocks) == total else None,
    )
    card = checkpoint_card(
        config, folder, layers, total, [*vision_notes(config), "every channel of a crop standardised by itself"]
    )

    def pool(config: VisionModel, values: np.ndarray) -> np.ndarray:
        if config.pool == "cls":
            return values[:, 0]
        tokens = values[:, 1:].reshape(len(values), -1, patches, values.shape[2])
        means = tokens.mean(axis=2)
        return means.reshape(len(values), -1) if config.channelwise else means.mean(axis=1)

    return Opened(lambda x: model(torch.nn.functional.instance_norm(x)), stack, layers, card, folder, pool)


def embed(config: ChannelAgnosticMae, dataset: Dataset, *, threads: int, weights: Path | None) -> Embedding:
    """Run the encoder over every crop; layer 0 is the embedding, i the output of block i, the last one normalised.

    Whatever the intensity handling, the model standardises every channel of every crop, as it was trained; what
    `intensity` clips stays clipped. Attention and feed-forward of a block run side by side and are added together, so
    that there are the sites hidden, residual and normalised.

    Raises
    ------
    ConfigError
        The layer or site does not exist, no weights are declared, or size or channels are not the model's.
    SourceError
        Files of the checkpoint are missing or unreadable, or are of another model.
    DataError
        The data set is not of images, or its channels do not fit.
    """
    channel_rows(config, dataset)
    return open_model(config, weights, threads).embedding(config, dataset, threads)


def backbone(
    config: ChannelAgnosticMae, weights: Path | None, threads: int
) -> tuple[Callable[[np.ndarray], np.ndarray], Path]:
    """Open the model for single layers' values; see `vision.token_reader`."""
    return open_model(config, weights, threads).backbone(config, threads)
