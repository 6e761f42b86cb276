"""A BERT encoder of proteins: AntiBERTy (Ruffolo et al. 2021, arXiv 2112.07782), ProtBert (Elnaggar et al. 2021).

A checkpoint is a folder with config.json (`model_type: bert`), vocab.txt and weights; heads are left aside.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from conceptome.errors import DataError, SourceError
from conceptome.models.base import torch_threads
from conceptome.models.checkpoint import checkpoint_card, find_folder, load_pretrained, weight_files
from conceptome.models.geneformer import stack_of
from conceptome.models.proteins import Letters, embed_proteins, notes, read_proteins, tokenised
from conceptome.models.taps import blocks_needed, chosen_layers

if TYPE_CHECKING:
    from conceptome.config.models import ProteinBert
    from conceptome.datasets import Dataset
    from conceptome.models.base import Embedding

FILES = ["config.json", "vocab.txt"]
# Rare amino acids, which ProtBert was trained to read as X; AntiBERTy has no X and reads them as its unknown token.
RARE = "UZOBX"


def read_vocabulary(folder: Path) -> Letters:
    """Read vocab.txt, one token per line: capital letters between [CLS] and [SEP].

    Raises
    ------
    SourceError
        It is missing or lacks a special token.
    """
    path = folder / "vocab.txt"
    if not path.exists():
        raise SourceError(f"{path} is missing: a checkpoint of this model needs {', '.join(FILES)} and weights")
    number = {token: place for place, token in enumerate(path.read_text(encoding="utf-8").split())}
    absent = [token for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]") if token not in number]
    if absent:
        raise SourceError(f"{path} lacks the token {absent[0]}: it is not a vocabulary of BERT's")
    tokens = {token: place for token, place in number.items() if len(token) == 1 and token.isupper()}
    unknown = tokens.get("X", number["[UNK]"])
    tokens = {letter: tokens.get(letter, unknown) for letter in (*tokens, *RARE)}
    return Letters(tokens, [number["[CLS]"]], [number["[SEP]"]], number["[PAD]"])


def embed(config: ProteinBert, dataset: Dataset, *, threads: int, weights: Path | None) -> Embedding:
    """Run the encoder over every protein; layer 0 is the embedding, i the output of block i.

    Raises
    ------
    ConfigError
        The layer does not exist, or no weights are declared.
    SourceError
        Files of the checkpoint are missing or unreadable, or are of another model.
    DataError
        The data set is not of proteins, or a protein is longer than the model reads or holds an unknown letter.
    """
    from transformers import BertModel

    proteins = read_proteins(dataset, "protein_bert")
    folder = find_folder(config, weights, FILES)
    letters = read_vocabulary(folder)
    sequences = tokenised(proteins, letters, "protein_bert")
    with torch_threads(threads):
        model = load_pretrained(BertModel, folder, "protein_bert", ["bert"], add_pooling_layer=False)
    if model.config.vocab_size <= max(letters.tokens.values()):
        raise SourceError(f"{folder / 'vocab.txt'} has tokens beyond the {model.config.vocab_size} of the model")
    most = model.config.max_position_embeddings - len(letters.before) - len(letters.after)
    longest = max(proteins, key=lambda name: len(proteins[name]), default=None)
    if longest is not None and len(proteins[longest]) > most:
        raise DataError(
            f"protein '{longest}' has {len(proteins[longest])} residues, but the model reads {most} at most: set "
            "dataset.max_length"
        )
    total = len(model.encoder.layer)
    layers = chosen_layers(config, total)
    model.encoder.layer = model.encoder.layer[: blocks_needed(layers, config.site, total)]
    files = [*weight_files(folder), folder / "vocab.txt"]
    card = checkpoint_card(config, folder, layers, total, notes(config.pool), files=files)
    return embed_proteins(dataset, config, model, stack_of(model), layers, sequences, card, threads)
