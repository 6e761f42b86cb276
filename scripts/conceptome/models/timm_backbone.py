"""Any timm model, from a folder as the hub has it: config.json and model.safetensors or pytorch_model.bin."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conceptome.errors import ConfigError, SourceError
from conceptome.models.base import torch_threads
from conceptome.models.checkpoint import checkpoint_card, find_folder, read_settings, read_tensors, weight_files
from conceptome.models.taps import Stack, blocks_needed, chosen_layers
from conceptome.models.timm_import import import_timm
from conceptome.models.vision import channel_rows
from conceptome.models.vision_layers import Opened, check_prefix, vision_notes

if TYPE_CHECKING:
    import torch

    from conceptome.config.models import Timm
    from conceptome.datasets import Dataset
    from conceptome.models.base import Embedding


def load_model(folder: Path) -> tuple[torch.nn.Module, dict[str, Any]]:
    """Build the model that config.json names, without its classifier, and load every weight of it.

    Returns
    -------
    model : torch.nn.Module
        In evaluation mode and float32.
    settings : dict
        config.json.

    Raises
    ------
    SourceError
        A file is missing or unreadable, the architecture is unknown, or weights are missing or unknown.
    """
    import torch

    timm = import_timm()
    settings = read_settings(folder / "config.json", ["architecture"])
    files = weight_files(folder)
    options = {key: value for key, value in settings.get("model_args", {}).items() if key != "num_classes"}
    try:
        with torch.random.fork_rng(devices=[]):
            model = timm.create_model(settings["architecture"], pretrained=False, num_classes=0, **options)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SourceError(
            f"{folder / 'config.json'}: timm cannot build '{settings['architecture']}' ({reason})"
        ) from None
    state: dict[str, torch.Tensor] = {}
    for path in files:
        state |= read_tensors(path)[1]
    expected = model.state_dict()
    classifier = settings.get("pretrained_cfg", {}).get("classifier") or "head"
    heads = tuple(f"{name}." for name in ([classifier] if isinstance(classifier, str) else classifier))
    missing = sorted(set(expected) - set(state))
    unknown = sorted(name for name in set(state) - set(expected) if not name.startswith(heads))
    if missing or unknown:
        what, names = ("lacks", missing) if missing else ("holds unexplained", unknown)
        raise SourceError(f"{folder}: the checkpoint {what} {len(names)} weight(s), first '{names[0]}'")
    for name, tensor in expected.items():
        if tensor.shape != state[name].shape:
            raise SourceError(
                f"{folder}: weight '{name}' has shape {tuple(state[name].shape)}, but config.json asks for "
                f"{tuple(tensor.shape)}"
            )
    model.load_state_dict({name: state[name] for name in expected})
    return model.float().eval(), settings


def open_model(config: Timm, weights: Path | None, threads: int) -> Opened:
    """Load a checkpoint down to the layers asked for; see `embed`."""
    from torch import nn

    folder = find_folder(config, weights, ["config.json"])
    with torch_threads(threads):
        model, settings = load_model(folder)
    told = vision_notes(config)
    features = nn.Identity()
    rows = getattr(model, "blocks", None)
    has_row = isinstance(rows, nn.Sequential | nn.ModuleList) and all(hasattr(block, "norm1") for block in rows)
    if has_row:
        total = len(rows)
        layers = chosen_layers(config, total)
        check_prefix(config, int(getattr(model, "num_prefix_tokens", 0)))
        kept = nn.Sequential(*rows[: blocks_needed(layers, config.site, total)])
        model.blocks = kept
        blocks = list(kept)
        stack = Stack(
            blocks=blocks,
            attention=[getattr(block, "ls1", None) or block.attn for block in blocks],
            feed_forward=[getattr(block, "ls2", None) or block.mlp for block in blocks],
            norms=[block.norm1 for block in blocks],
            final=model.norm if len(blocks) == total else None,
        )
    else:
        total = 1
        layers = chosen_layers(config, total)
        if layers != [1] or config.site != "hidden":
            raise ConfigError(
                f"model 'timm': '{settings['architecture']}' has no row of blocks: it has layer 1, site hidden, alone"
            )
        told.append("features before pooling")
        stack = Stack(blocks=[features], attention=[], feed_forward=[])
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if size is not None and not getattr(model, "dynamic_img_size", False) and set(size) != {config.input_size}:
        raise ConfigError(
            f"model 'timm': this checkpoint reads {size[0]} × {size[1]} pixels, not {config.input_size}: set input_size"
        )
    reads = settings.get("model_args", {}).get("in_chans", 3)
    if reads != config.input_channels:
        raise ConfigError(
            f"model 'timm': this checkpoint reads {reads} channels, not {config.input_channels}: set input_channels, "
            "mean and std"
        )
    own = settings.get("pretrained_cfg", {})
    if any(name in own and list(own[name]) != getattr(config, name) for name in ("mean", "std")):
        told.append(f"the checkpoint's own mean and std are {own.get('mean')} and {own.get('std')}")
    card = checkpoint_card(config, folder, layers, total, told)

    def call(x: torch.Tensor) -> object:
        values = model.forward_features(x)
        if has_row:
            return values
        # Maps are (b, d, h, w) for pooling, whichever way the model lays them out.
        return features(values if "NHWC" not in str(getattr(model, "output_fmt", "")) else values.permute(0, 3, 1, 2))

    return Opened(call, stack, layers, card, folder)


def embed(config: Timm, dataset: Dataset, *, threads: int, weights: Path | None) -> Embedding:
    """Run the model over every crop; layer 0 is the embedding, i the output of block i, the last one normalised.

    A model without a row of blocks (a convolutional one) has one layer, 1: the features before its pooling.

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


def backbone(config: Timm, weights: Path | None, threads: int) -> tuple[Callable[[np.ndarray], np.ndarray], Path]:
    """Open the model for single layers' values; see `vision.token_reader`."""
    return open_model(config, weights, threads).backbone(config, threads)
