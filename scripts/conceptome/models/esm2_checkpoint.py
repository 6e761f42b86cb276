"""Checkpoints of ESM-2: finding, checking and loading an encoder and its vocabulary, without running code from them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conceptome.errors import ConfigError, DataError, SourceError
from conceptome.models.checkpoint import find_folder, read_tensors, weight_files
from conceptome.models.taps import Stack

if TYPE_CHECKING:
    import torch

    from conceptome.config.models import Esm2

NEEDED = "a checkpoint folder needs config.json, vocab.txt and weights"
HUB_FILES = ["config.json", "vocab.txt"]
# What a checkpoint may hold beside the encoder: heads, the pooler, and buffers that are computed or unused.
BESIDE = re.compile(
    r"(pooler|contact_head|lm_head|classifier)\."
    r"|embeddings\.(position_ids|position_embeddings\.weight)$"
    r"|(encoder\.layer\.(\d+|\*)\.attention\.self\.)?rotary_embeddings\.inv_freq$"
)
LAYER = re.compile(r"encoder\.layer\.(\d+)\.")
FREQUENCIES = "rotary_embeddings.inv_freq"
# The language-model head: each tensor's shape in the width d of the encoder and the number t of tokens.
HEAD = "lm_head."
HEAD_SHAPES = {
    "dense.weight": "dd",
    "dense.bias": "d",
    "layer_norm.weight": "d",
    "layer_norm.bias": "d",
    "decoder.weight": "td",
    "bias": "t",
}
FINAL_NORM = "encoder.emb_layer_norm_after."


@dataclass(frozen=True)
class Vocabulary:
    """Tokens in the order of vocab.txt, and the token of each letter (−1 where there is none), indexed by its byte."""

    tokens: list[str]
    of_letter: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, token: str) -> int:
        return self.tokens.index(token)

    def encode(self, name: str, sequence: str) -> np.ndarray:
        """Tokens of a sequence, int64 (length + 2), between the start and end tokens.

        Raises
        ------
        DataError
            A letter has no token, or the sequence is empty.
        """
        if not sequence:
            raise DataError(f"protein '{name}' has an empty sequence")
        letters = np.frombuffer(sequence.encode("latin-1", errors="replace"), dtype=np.uint8)
        tokens = self.of_letter[letters]
        if (tokens < 0).any():
            position = int(np.argmax(tokens < 0))
            raise DataError(
                f"protein '{name}' has {int((tokens < 0).sum())} letter(s) that ESM-2's vocabulary does not know, "
                f"first '{sequence[position]}' at position {position + 1}: drop the protein "
                "(dataset.non_standard_residues) or mend the sequence"
            )
        return np.concatenate([[self["<cls>"]], tokens, [self["<eos>"]]])


def read_vocabulary(folder: Path) -> Vocabulary:
    """Read vocab.txt: one token per line.

    Raises
    ------
    SourceError
        It is missing or lacks a special token.
    """
    path = folder / "vocab.txt"
    if not path.exists():
        raise SourceError(f"model 'esm2': {path} is missing; {NEEDED}")
    tokens = path.read_text(encoding="utf-8").split()
    absent = [token for token in ("<cls>", "<pad>", "<eos>") if token not in tokens]
    if absent:
        raise SourceError(f"{path} lacks the token {absent[0]}: it is not ESM-2's vocabulary")
    of_letter = np.full(256, -1, dtype=np.int64)
    for number, token in enumerate(tokens):
        # Gap and insertion marks are tokens too, but no residues.
        if len(token) == 1 and token.isalpha():
            of_letter[ord(token)] = number
    return Vocabulary(tokens, of_letter)


def find_weights(config: Esm2, weights: Path | None) -> Path:
    """Folder of the checkpoint; see `checkpoint.find_folder`."""
    return find_folder(config, weights, HUB_FILES)


def load_encoder(folder: Path, layer: int, vocabulary: Vocabulary) -> tuple[torch.nn.Module, int]:
    """Load the first `layer` blocks of an ESM-2 encoder; return it in evaluation mode with the number of all blocks.

    With all of them comes the final layer norm.

    Every weight of the full encoder must be in the checkpoint and nothing unknown beside it: a renamed or missing
    tensor is an error, never a randomly initialised layer.

    Raises
    ------
    ConfigError
        The layer does not exist.
    SourceError
        config.json is missing or not that of an ESM-2 model, or the weights are not those of its encoder.
    """
    import torch
    from transformers import EsmConfig, EsmModel

    settings = _read_config(folder)
    total = settings["num_hidden_layers"]
    if layer > total:
        raise ConfigError(f"model 'esm2': layer {layer} does not exist; this checkpoint has layers 0 to {total}")
    if settings["vocab_size"] != len(vocabulary):
        raise SourceError(f"{folder}: config.json has {settings['vocab_size']} tokens, vocab.txt {len(vocabulary)}")
    full = EsmConfig(**settings)
    full._attn_implementation = "sdpa"
    with torch.device("meta"):
        expected = {name: p.shape for name, p in EsmModel(full, add_pooling_layer=False).named_parameters()}
    expected = {name: shape for name, shape in expected.items() if not BESIDE.match(name)}
    state = _read_encoder(folder, expected, layer, total)

    full.num_hidden_layers = max(layer, 1)  # a model without any block cannot be built: blocks are cut off below
    with torch.random.fork_rng(devices=[]):
        model = EsmModel(full, add_pooling_layer=False)
    model.encoder.layer = model.encoder.layer[:layer]
    model.contact_head = None
    if layer < total:
        model.encoder.emb_layer_norm_after = None  # the hidden state itself is wanted, as between two blocks
    state.setdefault(FREQUENCIES, model.state_dict()[FREQUENCIES])  # computed where the checkpoint has none
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise SourceError(f"{folder}: weights do not fit config.json ({str(error).splitlines()[-1].strip()})") from None
    return model.float().eval(), total


def number_of_layers(folder: Path) -> int:
    """Number of all blocks of a checkpoint's encoder.

    Raises
    ------
    SourceError
        config.json is missing or not that of an ESM-2 model.
    """
    return int(_read_config(folder)["num_hidden_layers"])


def read_head(folder: Path, model: torch.nn.Module, vocabulary: Vocabulary) -> dict[str, torch.Tensor] | None:
    """Read the language-model head of a checkpoint, or None where it has none.

    The projection on tokens is the embedding's own matrix where the checkpoint holds no copy of it.

    Raises
    ------
    SourceError
        A part of the head is missing or has another shape.
    """
    state: dict[str, torch.Tensor] = {}
    for path in weight_files(folder):
        state |= read_tensors(path, HEAD, lambda name: name in HEAD_SHAPES)[1]
    embedding = model.embeddings.word_embeddings.weight.detach()
    if "dense.weight" not in state:
        return None
    state.setdefault("decoder.weight", embedding)
    width, tokens = embedding.shape[1], len(vocabulary)
    for name, shape in HEAD_SHAPES.items():
        expected = tuple({"d": width, "t": tokens}[letter] for letter in shape)
        if name not in state:
            raise SourceError(f"{folder}: the checkpoint's language-model head lacks '{HEAD}{name}': fetch it again")
        if tuple(state[name].shape) != expected:
            raise SourceError(f"{folder}: '{HEAD}{name}' has shape {tuple(state[name].shape)}, not {expected}")
    return {name: tensor.float() for name, tensor in state.items()}


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.exists():
        raise SourceError(f"model 'esm2': {path} is missing; {NEEDED}")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise SourceError(f"{path} is not valid JSON: fetch it again") from None
    if settings.get("model_type") != "esm" or settings.get("position_embedding_type") != "rotary":
        raise SourceError(f"{path} does not describe an ESM-2 model (model_type esm with rotary positions)")
    if settings.get("is_folding_model"):
        raise SourceError(f"{path} describes ESMFold; give the checkpoint of its ESM-2 encoder")
    return {key: value for key, value in settings.items() if key not in ("torch_dtype", "dtype", "architectures")}


def _usual(name: str) -> str:
    """Name of a weight in the model; transformers 5 writes norms under names that were given up long ago."""
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def _read_encoder(folder: Path, expected: dict[str, Any], layer: int, total: int) -> dict[str, torch.Tensor]:
    """Read what the first `layer` of `total` blocks need, once it is certain that the whole encoder is there."""

    def needed(name: str) -> bool:
        block = LAYER.match(name)
        if block is not None:
            return int(block.group(1)) < layer
        return layer == total or not name.startswith(FINAL_NORM)

    seen: set[str] = set()
    state: dict[str, torch.Tensor] = {}
    for path in weight_files(folder):
        # A model with a head keeps its encoder under the prefix 'esm.'; a bare encoder has no prefix.
        names, tensors = read_tensors(
            path, "esm.", lambda name: needed(_usual(name)) and (_usual(name) in expected or FREQUENCIES in name)
        )
        seen |= set(map(_usual, names))
        state |= {_usual(name): tensor for name, tensor in tensors.items()}
    missing = sorted(set(expected) - seen)
    if missing:
        raise SourceError(
            f"{folder}: the checkpoint lacks {len(missing)} encoder weight(s), first '{missing[0]}': "
            "it is not the model that config.json describes"
        )
    unknown = sorted(name for name in seen - set(expected) if not BESIDE.match(name))
    if unknown:
        raise SourceError(
            f"{folder}: the checkpoint holds {len(unknown)} weight(s) that config.json does not explain, first "
            f"'{unknown[0]}'"
        )
    # Older checkpoints keep a copy of the rotary frequencies in every block, all equal.
    frequencies = [state.pop(name) for name in sorted(state) if FREQUENCIES in name]
    for name, tensor in state.items():
        if tensor.shape != expected[name]:
            raise SourceError(
                f"{folder}: weight '{name}' has shape {tuple(tensor.shape)}, but config.json asks for "
                f"{tuple(expected[name])}"
            )
    return state | ({FREQUENCIES: frequencies[0]} if frequencies else {})


def shuffle(model: torch.nn.Module, seed: int) -> None:
    """Permute the entries within every weight tensor, in place: same value distributions, no structure.

    Each tensor's permutation depends on the seed and its name only, so that the null of a layer does not change with
    the number of layers loaded.
    """
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            rng = np.random.default_rng([seed, *name.encode()])
            order = torch.from_numpy(rng.permutation(parameter.numel()))
            parameter.copy_(parameter.flatten()[order].view_as(parameter))


def stack_of(model: torch.nn.Module) -> Stack:
    """Where activations are taken from an encoder that has all its blocks, or the first ones."""
    blocks = list(model.encoder.layer)
    return Stack(
        blocks=blocks,
        attention=[block.attention.output.dense for block in blocks],
        feed_forward=[block.output.dense for block in blocks],
        norms=[block.attention.LayerNorm for block in blocks],
        final=model.encoder.emb_layer_norm_after,
    )
