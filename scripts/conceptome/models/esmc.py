"""ESM-C, or ESM Cambrian (EvolutionaryScale 2024), in transformers' format: config.json and model.safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from conceptome.models.base import torch_threads
from conceptome.models.checkpoint import checkpoint_card, find_folder, load_pretrained
from conceptome.models.proteins import Letters, embed_proteins, notes, read_proteins, tokenised
from conceptome.models.taps import Stack, blocks_needed, chosen_layers

if TYPE_CHECKING:
    import torch

    from conceptome.config.models import Esmc
    from conceptome.datasets import Dataset
    from conceptome.models.base import Embedding

# One vocabulary for all checkpoints: its order is in their weights.
TOKENS = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-|", "<mask>"]


def letters() -> Letters:
    """Amino acids between <cls> and <eos>; marks of gaps and breaks are no residues."""
    tokens = {token: number for number, token in enumerate(TOKENS) if len(token) == 1 and token.isalpha()}
    return Letters(tokens, [TOKENS.index("<cls>")], [TOKENS.index("<eos>")], TOKENS.index("<pad>"))


def stack_of(model: torch.nn.Module, total: int) -> Stack:
    """Where activations are taken; what a half of a layer adds is divided by the model's residual scale."""
    blocks = list(model.layers)
    return Stack(
        blocks=blocks,
        attention=[block.self_attn for block in blocks],
        feed_forward=[block.mlp for block in blocks],
        norms=[block.input_layernorm for block in blocks],
        final=model.norm if len(blocks) == total else None,
        scale=1.0 / blocks[0].scaling_factor,
    )


def embed(config: Esmc, dataset: Dataset, *, threads: int, weights: Path | None) -> Embedding:
    """Run the encoder over every protein; layer 0 is the embedding, i the output of block i, the last one normalised.

    Raises
    ------
    ConfigError
        The layer does not exist, or no weights are declared.
    SourceError
        Files of the checkpoint are missing or unreadable, or are of another model.
    DataError
        The data set is not of proteins, or a sequence holds a letter that the vocabulary does not.
    """
    from transformers import EsmcModel

    sequences = tokenised(read_proteins(dataset, "esmc"), letters(), "esmc")
    folder = find_folder(config, weights, ["config.json"])
    with torch_threads(threads):
        model = load_pretrained(EsmcModel, folder, "esmc", ["esmc"])
    total = len(model.layers)
    layers = chosen_layers(config, total)
    model.layers = model.layers[: blocks_needed(layers, config.site, total)]
    card = checkpoint_card(config, folder, layers, total, notes(config.pool))
    return embed_proteins(dataset, config, model, stack_of(model, total), layers, sequences, card, threads)
