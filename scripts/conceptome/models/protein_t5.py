"""T5 encoders of proteins: ProtT5 (Elnaggar et al. 2021, arXiv 2007.06225) and Ankh (arXiv 2301.06568).

A checkpoint is a folder as the hub has it: config.json, the weights, and the vocabulary as spiece.model (ProtT5) or
tokenizer.json (Ankh). Decoders, where a checkpoint has one, are left aside.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from conceptome.errors import SourceError
from conceptome.models.base import torch_threads
from conceptome.models.checkpoint import checkpoint_card, find_folder, load_pretrained, read_settings
from conceptome.models.proteins import Letters, embed_proteins, notes, read_proteins, tokenised
from conceptome.models.taps import Stack, blocks_needed, chosen_layers

if TYPE_CHECKING:
    import torch

    from conceptome.config.models import ProteinT5
    from conceptome.datasets import Dataset
    from conceptome.models.base import Embedding

# Rare amino acids that both models were trained to read as X.
RARE = "UZOB"
WORD = "▁"


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A protobuf varint and the place after it."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Numbers and contents of a protobuf message's length-delimited fields; others are passed over."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 2:
            length, at = _varint(data, at)
            yield key >> 3, data[at : at + length]
            at += length
        elif kind == 0:
            _, at = _varint(data, at)
        else:
            at += {1: 8, 5: 4}[kind]


def read_pieces(folder: Path) -> list[str]:
    """Pieces of the vocabulary in the order of their tokens.

    Raises
    ------
    SourceError
        There is no vocabulary, or it cannot be read.
    """
    if (folder / "tokenizer.json").exists():
        settings = read_settings(folder / "tokenizer.json", ["model"])
        vocabulary = settings["model"].get("vocab", [])
        if isinstance(vocabulary, dict):
            return sorted(vocabulary, key=vocabulary.__getitem__)
        return [piece for piece, *_ in vocabulary]
    path = folder / "spiece.model"
    if not path.exists():
        raise SourceError(f"{folder} holds no vocabulary: spiece.model or tokenizer.json is needed")
    try:
        # ModelProto.pieces is field 1, SentencePiece.piece field 1 of it.
        return [
            next(content for number, content in _fields(piece) if number == 1).decode()
            for number, piece in _fields(path.read_bytes())
            if number == 1
        ]
    except (IndexError, KeyError, StopIteration, UnicodeDecodeError):
        raise SourceError(f"{path} cannot be read as a SentencePiece model: fetch it again") from None


def read_letters(folder: Path) -> Letters:
    """Amino acids before </s>; rare ones are read as X.

    Raises
    ------
    SourceError
        The vocabulary is missing, or is not one of amino acids.
    """
    pieces = {piece: number for number, piece in enumerate(read_pieces(folder))}
    tokens: dict[str, int] = {}
    for letter in "ACDEFGHIKLMNPQRSTVWYX":
        found = pieces.get(WORD + letter, pieces.get(letter))
        if found is None:
            raise SourceError(
                f"the vocabulary in {folder} has no piece for amino acid '{letter}': it is not a protein T5"
            )
        tokens[letter] = found
    absent = [token for token in ("<pad>", "</s>") if token not in pieces]
    if absent:
        raise SourceError(f"the vocabulary in {folder} lacks '{absent[0]}': it is not that of a T5")
    tokens |= dict.fromkeys(RARE, tokens["X"])
    return Letters(tokens, [], [pieces["</s>"]], pieces["<pad>"])


def stack_of(encoder: torch.nn.Module, total: int) -> Stack:
    """Where activations are taken."""
    blocks = list(encoder.block)
    return Stack(
        blocks=blocks,
        attention=[block.layer[0].SelfAttention for block in blocks],
        feed_forward=[block.layer[-1].DenseReluDense for block in blocks],
        norms=[block.layer[0].layer_norm for block in blocks],
        final=encoder.final_layer_norm if len(blocks) == total else None,
    )


def embed(config: ProteinT5, dataset: Dataset, *, threads: int, weights: Path | None) -> Embedding:
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
    from transformers import T5EncoderModel

    proteins = read_proteins(dataset, "protein_t5")
    folder = find_folder(config, weights, ["config.json", "spiece.model", "tokenizer.json"])
    sequences = tokenised(proteins, read_letters(folder), "protein_t5")
    with torch_threads(threads):
        model = load_pretrained(T5EncoderModel, folder, "protein_t5", ["t5"])
    total = len(model.encoder.block)
    layers = chosen_layers(config, total)
    model.encoder.block = model.encoder.block[: blocks_needed(layers, config.site, total)]
    card = checkpoint_card(config, folder, layers, total, notes(config.pool))
    return embed_proteins(dataset, config, model, stack_of(model.encoder, total), layers, sequences, card, threads)
