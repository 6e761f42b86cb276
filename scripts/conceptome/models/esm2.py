"""ESM-2 (Lin et al. 2023, doi:10.1126/science.ade2574): one activation per residue, from any layers of any size.

A checkpoint is a local folder with config.json, vocab.txt and the weights (model.safetensors or pytorch_model.bin,
whole or in parts with an index). Only the layers up to the highest one asked for are loaded and run.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from conceptome.models.base import torch_threads
from conceptome.models.checkpoint import checkpoint_card
from conceptome.models.esm2_checkpoint import (
    find_weights,
    load_encoder,
    number_of_layers,
    read_vocabulary,
    shuffle,
    stack_of,
)
from conceptome.models.proteins import embed_proteins, notes, read_proteins
from conceptome.models.sequences import Sequences
from conceptome.models.taps import blocks_needed, chosen_layers

if TYPE_CHECKING:
    from conceptome.config.models import Esm2
    from conceptome.datasets import Dataset
    from conceptome.models.base import Embedding


def embed(config: Esm2, dataset: Dataset, *, threads: int, weights: Path | None) -> Embedding:
    """Run the encoder up to `config.layer` over every protein and return its residues' hidden states.

    Layer 0 is the embedding, layer i the residual stream after block i; the last layer is taken after the final layer
    norm, as in the published representations. The start and end tokens are dropped: row by row the activations are
    the residues of `dataset.obs`.

    Raises
    ------
    ConfigError
        The layer does not exist, or no weights are declared.
    SourceError
        Files of the checkpoint are missing or unreadable, or do not hold the encoder that config.json describes.
    DataError
        The data set is not of proteins, its obs and sequences disagree, or a sequence holds a letter that the
        vocabulary does not.
    """
    sequences = read_proteins(dataset, "esm2")
    folder = find_weights(config, weights)
    vocabulary = read_vocabulary(folder)
    tokens = [vocabulary.encode(name, sequence) for name, sequence in sequences.items()]
    total = number_of_layers(folder)
    layers = chosen_layers(config, total)
    with torch_threads(threads):
        model, _ = load_encoder(folder, blocks_needed(layers, config.site, total), vocabulary)
        if config.shuffle_weights:
            shuffle(model, config.seed)
    told = notes(config.pool)
    if config.site == "hidden" and total in layers:
        told.append("last layer: after the final layer norm")
    if config.shuffle_weights:
        told.append(f"NULL MODEL: the entries of every weight tensor are permuted (seed {config.seed})")
    card = checkpoint_card(config, folder, layers, total, told)

    encoded = Sequences([len(t) for t in tokens], lambda index: (tokens[index],), (vocabulary["<pad>"],), (1, 1))
    return embed_proteins(dataset, config, model, stack_of(model), layers, encoded, card, threads)
