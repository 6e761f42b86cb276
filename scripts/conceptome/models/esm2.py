"""ESM-2 (Lin et al. 2023, doi:10.1126/science.ade2574): one activation per residue, from one layer of any size.

A checkpoint is a local folder with config.json, vocab.txt and the weights (model.safetensors or pytorch_model.bin,
whole or in parts with an index). Only the layers up to the one asked for are loaded and run.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from conceptome.errors import DataError
from conceptome.files import sha256_file
from conceptome.models.base import Embedding, torch_threads
from conceptome.models.esm2_checkpoint import (
    Vocabulary,
    find_weights,
    load_encoder,
    origin,
    read_vocabulary,
    shuffle,
    weight_files,
)

if TYPE_CHECKING:
    import torch

    from conceptome.config.models import Esm2
    from conceptome.datasets import Dataset

log = logging.getLogger(__name__)

# Batches are formed within windows of this many times tokens_per_batch, so that proteins of like length meet while the
# output still streams in the data set's order.
WINDOW = 16


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
    if dataset.card["modality"] != "proteins":
        raise DataError(f"model 'esm2' reads protein sequences, but the data set is of {dataset.card['modality']}")
    folder = find_weights(config, weights)
    vocabulary = read_vocabulary(folder)
    sequences = dataset.sequences()
    _check_residues(dataset, sequences)
    tokens = {name: vocabulary.encode(name, sequence) for name, sequence in sequences.items()}
    with torch_threads(threads):
        model, total = load_encoder(folder, config.layer, vocabulary)
        if config.shuffle_weights:
            shuffle(model, config.seed)
    notes = ["one row per residue; start and end tokens dropped"]
    if config.layer == total:
        notes.append("last layer: after the final layer norm")
    if config.shuffle_weights:
        notes.append(f"NULL MODEL: the entries of every weight tensor are permuted (seed {config.seed})")
    card = {
        "layer": config.layer,
        "n_layers": total,
        "stand_in": config.stand_in,
        "weights": origin(config, folder),
        "weights_sha256": {path.name: sha256_file(path) for path in weight_files(folder)},
        "notes": notes,
    }
    batches = _hidden_states(model, list(tokens.values()), vocabulary, config.tokens_per_batch, threads)
    return Embedding(batches, card)


def _check_residues(dataset: Dataset, sequences: dict[str, str]) -> None:
    """Refuse obs that are not the residues of the sequences, protein by protein and position by position."""
    lengths = np.array([len(sequence) for sequence in sequences.values()], dtype=np.int64)
    obs = dataset.obs
    agree = len(obs) == lengths.sum()
    if agree:
        position = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths) + 1
        agree = bool(
            (obs["protein"].to_numpy() == np.repeat(np.array(list(sequences), dtype=object), lengths)).all()
            and (obs["position"].to_numpy() == position).all()
        )
    if not agree:
        raise DataError(
            f"the {len(obs)} rows of obs.parquet are not the {int(lengths.sum())} residues of sequences.fasta in "
            "order: prepare the data set again"
        )


def micro_batches(lengths: list[int], tokens_per_batch: int) -> Iterator[list[list[int]]]:
    """Cut proteins into windows, and each window into batches of like length.

    Parameters
    ----------
    lengths
        Tokens of each protein, in order.
    tokens_per_batch
        Largest number of tokens, padding included, in a batch; a longer protein is a batch of its own.

    Yields
    ------
    list of list of int
        The batches of one window: positions of proteins. Windows follow each other in order.
    """
    window: list[int] = []
    held = 0
    for index, length in enumerate(lengths):
        if window and held + length > WINDOW * tokens_per_batch:
            yield _split(window, lengths, tokens_per_batch)
            window, held = [], 0
        window.append(index)
        held += length
    if window:
        yield _split(window, lengths, tokens_per_batch)


def _split(window: list[int], lengths: list[int], tokens_per_batch: int) -> list[list[int]]:
    batches: list[list[int]] = []
    longest = 0
    for index in sorted(window, key=lambda i: (-lengths[i], i)):
        if not batches or (len(batches[-1]) + 1) * longest > tokens_per_batch:
            batches.append([])
            longest = lengths[index]
        batches[-1].append(index)
    return batches


def _hidden_states(
    model: torch.nn.Module, tokens: list[np.ndarray], vocabulary: Vocabulary, tokens_per_batch: int, threads: int
) -> Iterator[np.ndarray]:
    """Yield float32 (residues, d) per window, in the order of `tokens`."""
    import torch

    pad = vocabulary["<pad>"]
    done = reported = 0
    with torch_threads(threads):
        for batches in micro_batches([len(t) for t in tokens], tokens_per_batch):
            found: dict[int, np.ndarray] = {}
            for batch in batches:
                longest = max(len(tokens[index]) for index in batch)
                ids = torch.full((len(batch), longest), pad, dtype=torch.int64)
                for row, index in enumerate(batch):
                    ids[row, : len(tokens[index])] = torch.from_numpy(tokens[index])
                with torch.inference_mode():
                    states = model(input_ids=ids, attention_mask=(ids != pad).long()).last_hidden_state.numpy()
                for row, index in enumerate(batch):
                    found[index] = states[row, 1 : len(tokens[index]) - 1]
                done += len(batch)
                if done * 10 // len(tokens) > reported:
                    reported = done * 10 // len(tokens)
                    log.info("esm2: %d of %d proteins", done, len(tokens))
            yield np.concatenate([found[index] for index in sorted(found)])
