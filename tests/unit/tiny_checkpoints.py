"""Tiny checkpoints of every adapter with random weights, as they lie on disk, and small data sets of each modality.

A case says how to write the checkpoint, how to configure the adapter, and what the activations of one sample must be,
by an independent reading of the same weights.
"""

from __future__ import annotations

import json
import pickle
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import test_models_esm2 as esm2

LAYERS = 3
SEQUENCES = {"P1": "MKTAYIAKQR", "P2": "MV", "P3": "MSDERLGWCHHNPQIFYTVKAAAAAAGG", "P4": "MLLLSERXB", "P5": "MKK"}
GENES = ["GAPDH", "ACTB", "IFIT1", "ISG15", "CD3E", "CD19", "LYZ", "NKG7", "MS4A1", "unknown1", "unknown2"]
ACCESSIONS = {name: f"ENSG{number:011d}" for number, name in enumerate(GENES[:-2], 1)}
CELLS = 7
CROPS = 5
SIZE = 16


@dataclass
class Cells:
    """Cells with raw counts, as `datasets.load` gives them."""

    counts: np.ndarray
    obs: pd.DataFrame
    card: dict[str, Any] = field(default_factory=lambda: {"modality": "cells"})

    def anndata(self):
        import anndata
        from scipy import sparse

        var = pd.DataFrame(index=GENES)
        adata = anndata.AnnData(sparse.csr_matrix(np.log1p(self.counts)), obs=self.obs[["split"]], var=var)
        adata.layers["counts"] = sparse.csr_matrix(self.counts)
        return adata


@dataclass
class Images:
    """Crops, as `datasets.load` gives them."""

    pixels: np.ndarray
    obs: pd.DataFrame
    card: dict[str, Any] = field(default_factory=lambda: {"modality": "images", "channels": ["DNA", "actin", "ER"]})
    folder: Path = Path("crops")

    def __len__(self) -> int:
        return len(self.obs)

    def crops(self) -> np.ndarray:
        return self.pixels


def proteins(order: list[int] | None = None):
    """Some of the proteins, in some order."""
    names = list(SEQUENCES)
    return esm2.proteins({names[i]: SEQUENCES[names[i]] for i in (range(len(names)) if order is None else order)})


def _obs(names: list[str]) -> pd.DataFrame:
    obs = pd.DataFrame({"control": True, "group": names, "batch": "a", "split": "train"}, index=names)
    return obs.rename_axis("sample_id")


def cells(order: list[int] | None = None) -> Cells:
    """Some of the cells, in some order; no two have as many genes."""
    rng = np.random.default_rng(5)
    counts = rng.integers(1, 50, (CELLS, len(GENES))).astype(np.float32)
    for cell in range(CELLS):
        counts[cell, rng.choice(len(GENES) - 2, size=cell, replace=False)] = 0
    order = list(range(CELLS)) if order is None else order
    return Cells(counts[order], _obs([f"cell{i}" for i in order]))


def images(order: list[int] | None = None) -> Images:
    """Some of the crops, in some order."""
    pixels = np.random.default_rng(6).integers(0, 4000, (CROPS, 3, SIZE, SIZE)).astype(np.uint16)
    order = list(range(CROPS)) if order is None else order
    return Images(pixels[order], _obs([f"crop{i}" for i in order]))


def randomised(model: Any, seed: int = 3) -> Any:
    """Every weight random: biases and norms that start at 0 and 1 would hide mistakes."""
    import torch

    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.3)
            if "norm" in name.lower() and name.endswith("weight"):
                parameter.add_(1.0)
    return model.eval()


def write_esm2(folder: Path) -> dict[str, Any]:
    esm2.write_checkpoint(folder, esm2.make_state(), "safetensors")
    return {"adapter": "esm2", "layer": LAYERS}


def esm2_alone(folder: Path, sample: str, layer: int) -> np.ndarray:
    return esm2.reference(folder, SEQUENCES[sample], layer)


def write_esmc(folder: Path) -> dict[str, Any]:
    from transformers import EsmcConfig, EsmcForMaskedLM

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS, "num_attention_heads": 2}
    randomised(EsmcForMaskedLM(EsmcConfig(**sizes))).save_pretrained(folder)
    return {"adapter": "esmc"}


def alone(model: Any, ids: list[int], layer: int, skip: tuple[int, int]) -> np.ndarray:
    """A sequence by itself through a model of transformers, as it numbers its hidden states."""
    import torch

    tokens = torch.tensor([ids])
    with torch.inference_mode():
        found = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), output_hidden_states=True)
    assert len(found.hidden_states) == LAYERS + 1
    return found.hidden_states[layer][0, skip[0] : tokens.shape[1] - skip[1]].numpy()


def esmc_alone(folder: Path, sample: str, layer: int) -> np.ndarray:
    from transformers import EsmcModel
    from transformers.models.esmc.tokenization_esmc import SEQUENCE_VOCAB

    ids = [0, *map(SEQUENCE_VOCAB.index, SEQUENCES[sample]), 2]
    return alone(EsmcModel.from_pretrained(folder).eval(), ids, layer, (1, 1))


BERT_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"ACDEFGHIKLMNPQRSTVWY"]


def write_protein_bert(folder: Path) -> dict[str, Any]:
    """As AntiBERTy: letters of 20 amino acids, and heads beside the encoder."""
    from transformers import BertConfig, BertForMaskedLM

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(BERT_TOKENS), max_position_embeddings=40, pad_token_id=0, **sizes)
    randomised(BertForMaskedLM(config)).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(BERT_TOKENS), encoding="utf-8")
    return {"adapter": "protein_bert"}


def protein_bert_alone(folder: Path, sample: str, layer: int) -> np.ndarray:
    from transformers import BertModel

    ids = [BERT_TOKENS.index(letter) if letter in BERT_TOKENS else 1 for letter in SEQUENCES[sample]]
    model = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    return alone(model, [2, *ids, 3], layer, (1, 1))


PIECES = ["<pad>", "</s>", "<unk>", *(f"▁{letter}" for letter in "ALGVSREDTIPKFQNYMHWCXBOUZ")]


def sentencepiece(pieces: list[str]) -> bytes:
    """A SentencePiece model of these pieces: the fields that matter, and some that must be passed over."""
    import struct

    def field_of(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, len(content)]) + content

    def piece(text: str) -> bytes:
        score = bytes([2 << 3 | 5]) + struct.pack("<f", -1.0)
        return field_of(1, field_of(1, text.encode()) + score + bytes([3 << 3, 1]))

    return b"".join(map(piece, pieces)) + field_of(2, field_of(3, b"unigram"))


def write_protein_t5(folder: Path) -> dict[str, Any]:
    from transformers import T5Config, T5EncoderModel

    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": LAYERS, "num_heads": 2, "vocab_size": 28}
    randomised(T5EncoderModel(T5Config(**sizes))).save_pretrained(folder)
    (folder / "spiece.model").write_bytes(sentencepiece(PIECES))
    return {"adapter": "protein_t5"}


def protein_t5_alone(folder: Path, sample: str, layer: int) -> np.ndarray:
    from transformers import T5EncoderModel

    rare = str.maketrans("UZOB", "XXXX")
    ids = [*(PIECES.index(f"▁{letter}") for letter in SEQUENCES[sample].translate(rare)), PIECES.index("</s>")]
    return alone(T5EncoderModel.from_pretrained(folder).eval(), ids, layer, (0, 1))


def write_unirep(folder: Path) -> dict[str, Any]:
    """A stack of three, as the authors' of 64 and 256 units are of four."""
    rng = np.random.default_rng(7)
    folder.mkdir(parents=True)
    units, width = 32, 10
    np.save(folder / "embed_matrix:0.npy", rng.normal(size=(26, width)).astype(np.float32))
    for layer in range(LAYERS):
        shapes = {"wx": (width, 4 * units), "wh": (units, 4 * units), "wmx": (width, units), "wmh": (units, units)}
        shapes |= {"b": (4 * units,), "gx": (4 * units,), "gh": (4 * units,), "gmx": (units,), "gmh": (units,)}
        for part, shape in shapes.items():
            path = folder / f"rnn_mlstm_stack_mlstm_stack{layer}_mlstm_stack{layer}_{part}:0.npy"
            np.save(path, rng.normal(size=shape).astype(np.float32))
        width = units
    return {"adapter": "unirep"}


def unirep_alone(folder: Path, sample: str, layer: int) -> np.ndarray:
    """Letter by letter in double precision."""
    order = "MRHKDESTNQCUGPAVIFYWLOX"
    codes = [24, *(order.index("X" if letter in "BJZ" else letter) + 1 for letter in SEQUENCES[sample])]
    x = np.load(folder / "embed_matrix:0.npy").astype(np.float64)[codes]
    sigmoid = lambda v: 1 / (1 + np.exp(-v))  # noqa: E731
    for number in range(layer):
        beginning = folder / f"rnn_mlstm_stack_mlstm_stack{number}_mlstm_stack{number}_"
        part = {
            name: np.load(f"{beginning}{name}:0.npy").astype(np.float64) for name in ("b", "gx", "gh", "gmx", "gmh")
        }
        for name in ("wx", "wh", "wmx", "wmh"):
            w = np.load(f"{beginning}{name}:0.npy").astype(np.float64)
            part[name] = w / np.linalg.norm(w, axis=0) * part[f"g{name[1:]}"]
        h = c = np.zeros(part["wmh"].shape[0])
        states = []
        for step in x:
            m = (step @ part["wmx"]) * (h @ part["wmh"])
            i, f, o, u = np.split(step @ part["wx"] + m @ part["wh"] + part["b"], 4)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(u)
            h = sigmoid(o) * np.tanh(c)
            states.append(h)
        x = np.array(states)
    return x[1:].astype(np.float32)


def write_geneformer(folder: Path) -> dict[str, Any]:
    from transformers import BertConfig, BertForMaskedLM

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS, "num_attention_heads": 2}
    config = BertConfig(vocab_size=4 + len(ACCESSIONS), max_position_embeddings=10, pad_token_id=0, **sizes)
    randomised(BertForMaskedLM(config)).save_pretrained(folder)
    tokens = {"<pad>": 0, "<mask>": 1, "<cls>": 2, "<eos>": 3}
    tokens |= {accession: number for number, accession in enumerate(reversed(ACCESSIONS.values()), 4)}
    # The authors' medians are numpy scalars.
    medians = {accession: np.float64(1 + number) for number, accession in enumerate(ACCESSIONS.values())}
    for name, value in (("token_dictionary", tokens), ("gene_median_dictionary", medians)):
        (folder / f"{name}_gc104M.pkl").write_bytes(pickle.dumps(value))
    (folder / "gene_name_id_dict_gc104M.pkl").write_bytes(pickle.dumps(ACCESSIONS))
    return {"adapter": "geneformer"}


def geneformer_alone(folder: Path, sample: str, layer: int) -> np.ndarray:
    """Mean over genes, ranked in plain Python."""
    from transformers import BertModel

    counts = cells().counts[int(sample.removeprefix("cell"))].astype(np.float64)
    tokens = pickle.loads((folder / "token_dictionary_gc104M.pkl").read_bytes())
    names = list(ACCESSIONS)
    values = {name: counts[GENES.index(name)] / counts.sum() * 10_000 / (1 + i) for i, name in enumerate(names)}
    ranked = sorted(
        (name for name in names if values[name] > 0), key=lambda name: (-values[name], tokens[ACCESSIONS[name]])
    )
    ids = [2, *(tokens[ACCESSIONS[name]] for name in ranked[:8]), 3]
    model = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    return alone(model, ids, layer, (1, 1)).mean(axis=0, keepdims=True)


VOCABULARY = {"<pad>": 9, "<cls>": 10, "<eoc>": 11} | {name: number for number, name in enumerate(GENES[:-2])}


def write_scgpt(folder: Path) -> dict[str, Any]:
    """Names as the fast attention writes them, with heads beside the encoder."""
    import torch

    folder.mkdir(parents=True)
    args = {"embsize": 32, "nheads": 2, "d_hid": 48, "nlayers": LAYERS, "n_layers_cls": 3, "dropout": 0.2}
    (folder / "args.json").write_text(json.dumps(args | {"pad_token": "<pad>", "pad_value": -2}))
    (folder / "vocab.json").write_text(json.dumps(VOCABULARY))
    generator = torch.Generator().manual_seed(3)
    shapes = {"encoder.embedding.weight": (12, 32), "flag_encoder.weight": (2, 32), "decoder.fc.0.weight": (32, 32)}
    shapes |= {"value_encoder.linear1.weight": (32, 1), "value_encoder.linear1.bias": (32,)}
    shapes |= {"value_encoder.linear2.weight": (32, 32), "value_encoder.linear2.bias": (32,)}
    norms = ["encoder.enc_norm", "value_encoder.norm"]
    for layer in range(LAYERS):
        at = f"transformer_encoder.layers.{layer}."
        shapes |= {f"{at}self_attn.Wqkv.weight": (96, 32), f"{at}self_attn.Wqkv.bias": (96,)}
        shapes |= {f"{at}self_attn.out_proj.weight": (32, 32), f"{at}self_attn.out_proj.bias": (32,)}
        shapes |= {f"{at}linear1.weight": (48, 32), f"{at}linear1.bias": (48,)}
        shapes |= {f"{at}linear2.weight": (32, 48), f"{at}linear2.bias": (32,)}
        norms += [f"{at}norm1", f"{at}norm2"]
    shapes |= {f"{norm}.{part}": (32,) for norm in norms for part in ("weight", "bias")}
    state = {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for norm in norms:
        state[f"{norm}.weight"] += 1
    torch.save(state, folder / "best_model.pt")
    return {"adapter": "scgpt"}


def scgpt_alone(folder: Path, sample: str, layer: int) -> np.ndarray:
    """The class token through PyTorch's own encoder layer; few genes have no ties, so that bins are not drawn."""
    import torch
    from torch import nn
    from torch.nn.functional import layer_norm, linear, relu

    state = torch.load(folder / "best_model.pt", weights_only=True)
    counts = cells().counts[int(sample.removeprefix("cell"))][: len(ACCESSIONS)]
    genes = np.flatnonzero(counts)
    edges = np.quantile(counts[genes].astype(np.float64), np.linspace(0, 1, 50))
    low, high = np.digitize(counts[genes], edges), np.digitize(counts[genes], edges, right=True)
    rng = np.random.default_rng([0, zlib.crc32(sample.encode())])
    bins = np.ceil(rng.random(len(genes)) * (high - low) + low)
    ids = torch.tensor([[10, *genes]])
    values = torch.tensor([[-2.0, *bins]], dtype=torch.float32)
    norm = lambda x, name: layer_norm(x, (32,), state[f"{name}.weight"], state[f"{name}.bias"])  # noqa: E731
    x = norm(state["encoder.embedding.weight"][ids], "encoder.enc_norm")
    hidden = relu(linear(values[..., None], state["value_encoder.linear1.weight"], state["value_encoder.linear1.bias"]))
    hidden = linear(hidden, state["value_encoder.linear2.weight"], state["value_encoder.linear2.bias"])
    x = x + norm(hidden, "value_encoder.norm")
    for number in range(layer):
        block = nn.TransformerEncoderLayer(32, 2, 48, 0.2, batch_first=True).eval()
        at = f"transformer_encoder.layers.{number}."
        own = {name.removeprefix(at): value for name, value in state.items() if name.startswith(at)}
        block.load_state_dict({name.replace("Wqkv.", "in_proj_"): value for name, value in own.items()})
        x = block(x)
    return x[:, 0].detach().numpy()


INTENSITY = {"method": "clip", "low": 0.0, "high": 4000.0}
VISION = {"intensity": INTENSITY, "input_size": SIZE, "batch_size": 2}


def pixels_of(sample: str) -> Any:
    """What a model is given of a crop: from 0 to 4,000 to 0 and 1, and normalised."""
    import torch

    crop = images().pixels[int(sample.removeprefix("crop"))].astype(np.float32) / 4000
    mean, std = (np.array(v, np.float32)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    return torch.from_numpy((crop - mean) / std)[None]


def write_transformers_vision(kind: str) -> Callable[[Path], dict[str, Any]]:
    def write(folder: Path) -> dict[str, Any]:
        import transformers

        stem, model = {
            "vit": ("ViT", "ViTModel"),
            "dinov2": ("Dinov2", "Dinov2Model"),
            "dinov2_with_registers": ("Dinov2WithRegisters", "Dinov2WithRegistersModel"),
            "dinov3_vit": ("DINOv3ViT", "DINOv3ViTModel"),
        }[kind]
        sizes = {"hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "image_size": SIZE}
        sizes |= {"patch_size": 8, "intermediate_size": 48}
        registers = {"dinov2_with_registers": 4, "dinov3_vit": 4}.get(kind, 0)
        if registers:
            sizes["num_register_tokens"] = registers
        config = getattr(transformers, f"{stem}Config")(**sizes)
        randomised(getattr(transformers, model)(config)).save_pretrained(folder)
        return {"adapter": "transformers_vision", **VISION, "prefix_tokens": 1 + registers}

    return write


def transformers_vision_alone(folder: Path, sample: str, layer: int) -> np.ndarray:
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        found = model(pixel_values=pixels_of(sample), output_hidden_states=True)
    states = found.last_hidden_state if layer == LAYERS else found.hidden_states[layer]
    prefix = 1 + (getattr(model.config, "num_register_tokens", 0) or 0)
    return states[:, prefix:].mean(dim=1).numpy()


def write_timm(folder: Path) -> dict[str, Any]:
    from safetensors.torch import save_file

    from conceptome.models.timm_import import import_timm

    arguments = {
        "img_size": SIZE,
        "patch_size": 8,
        "embed_dim": 32,
        "depth": LAYERS,
        "num_heads": 2,
        "init_values": 0.5,
    }
    model = randomised(import_timm().create_model("vit_tiny_patch16_224", num_classes=5, **arguments))
    folder.mkdir(parents=True)
    settings = {"architecture": "vit_tiny_patch16_224", "num_classes": 5, "model_args": arguments}
    own = {"classifier": "head", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    (folder / "config.json").write_text(json.dumps(settings | {"pretrained_cfg": own}))
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    return {"adapter": "timm", **VISION}


def timm_alone(folder: Path, sample: str, layer: int) -> np.ndarray:
    """Through timm's own list of intermediate layers."""
    import torch
    from safetensors.torch import load_file

    from conceptome.models.timm_import import import_timm

    settings = json.loads((folder / "config.json").read_text())
    model = import_timm().create_model(settings["architecture"], num_classes=5, **settings["model_args"]).eval()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    x = pixels_of(sample)
    with torch.inference_mode():
        if layer == 0:
            states = model.norm_pre(model._pos_embed(model.patch_embed(x)))[:, 1:]
        else:
            last = layer == LAYERS
            states = model.get_intermediate_layers(x, n=[layer - 1], norm=last)[0]
    return states.mean(dim=1).numpy()


def write_channel_agnostic_mae(folder: Path) -> dict[str, Any]:
    """As the authors write it: PyTorch's own format, all under `state_dict`, in a file called .safetensors."""
    import torch

    from conceptome.models.timm_import import import_timm

    import_timm()
    from timm.models.vision_transformer import ParallelScalingBlock

    torch.manual_seed(0)
    parts = torch.nn.ModuleDict(
        {
            "patch_embed": torch.nn.ModuleDict({"proj": torch.nn.Conv2d(1, 32, 8, stride=8)}),
            "blocks": torch.nn.ModuleList(
                ParallelScalingBlock(32, 2, qk_norm=True, qkv_bias=False, init_values=1e-4) for _ in range(LAYERS)
            ),
            "norm": torch.nn.LayerNorm(32, eps=1e-6),
        }
    )
    state = {f"encoder.vit_backbone.{name}": value for name, value in randomised(parts).state_dict().items()}
    generator = torch.Generator().manual_seed(4)
    position = torch.randn((1, 4, 32), generator=generator)
    state["encoder.vit_backbone.cls_token"] = torch.randn((1, 1, 32), generator=generator)
    state["encoder.vit_backbone.pos_embed"] = torch.cat([torch.zeros(1, 1, 32), position.repeat(1, 6, 1)], dim=1)
    state["decoder.mask_token"] = torch.zeros(1, 1, 16)
    folder.mkdir(parents=True)
    torch.save({"state_dict": state}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "MAE", "mask_ratio": 0.75}))
    return {"adapter": "channel_agnostic_mae", **VISION}


def channel_agnostic_mae_alone(folder: Path, sample: str, layer: int) -> np.ndarray:
    """Channel after channel, as the paper describes it."""
    import torch
    from timm.models.vision_transformer import ParallelScalingBlock

    with open(folder / "model.safetensors", "rb") as handle:
        state = torch.load(handle, weights_only=True)["state_dict"]
    state = {k.removeprefix("encoder.vit_backbone."): v for k, v in state.items() if k.startswith("encoder.")}
    x = pixels_of(sample)
    x = (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), keepdim=True, unbiased=False) + 1e-5).sqrt()
    tokens = []
    for channel in range(3):
        maps = torch.nn.functional.conv2d(
            x[:, [channel]], state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=8
        )
        tokens.append(maps.flatten(2).transpose(1, 2) + state["pos_embed"][:, 1:5])
    hidden = torch.cat([state["cls_token"], *tokens], dim=1)
    for number in range(layer):
        block = ParallelScalingBlock(32, 2, qk_norm=True, qkv_bias=False, init_values=1e-4).eval()
        at = f"blocks.{number}."
        block.load_state_dict({k.removeprefix(at): v for k, v in state.items() if k.startswith(at)})
        hidden = block(hidden)
    if layer == LAYERS:
        hidden = torch.nn.functional.layer_norm(hidden, (32,), state["norm.weight"], state["norm.bias"], 1e-6)
    return hidden[:, 1:].mean(dim=1).detach().numpy()


@dataclass(frozen=True)
class Case:
    """One adapter."""

    name: str
    write: Callable[[Path], dict[str, Any]]
    data: Callable[[list[int] | None], Any]
    alone: Callable[[Path, str, int], np.ndarray]
    samples: tuple[str, ...]
    files: tuple[str, ...]
    weights: str
    pre_norm: bool = True
    first_layer: int = 0
    batches: str = "tokens_per_batch"


_proteins, _cells, _crops = (tuple(names) for names in (SEQUENCES, cells().obs.index, images().obs.index))
CASES = [
    Case("esm2", write_esm2, proteins, esm2_alone, _proteins, ("config.json", "vocab.txt"), "model.safetensors"),
    Case("esmc", write_esmc, proteins, esmc_alone, _proteins, ("config.json",), "model.safetensors"),
    Case(
        "protein_bert",
        write_protein_bert,
        proteins,
        protein_bert_alone,
        _proteins,
        ("config.json", "vocab.txt"),
        "model.safetensors",
        pre_norm=False,
    ),
    Case(
        "protein_t5",
        write_protein_t5,
        proteins,
        protein_t5_alone,
        _proteins,
        ("config.json", "spiece.model"),
        "model.safetensors",
    ),
    Case(
        "unirep",
        write_unirep,
        proteins,
        unirep_alone,
        _proteins,
        ("embed_matrix:0.npy", "rnn_mlstm_stack_mlstm_stack2_mlstm_stack2_gmh:0.npy"),
        "rnn_mlstm_stack_mlstm_stack0_mlstm_stack0_wh:0.npy",
        first_layer=1,
    ),
    Case(
        "geneformer",
        write_geneformer,
        cells,
        geneformer_alone,
        _cells,
        ("config.json", "token_dictionary_gc104M.pkl", "gene_median_dictionary_gc104M.pkl"),
        "model.safetensors",
        pre_norm=False,
    ),
    Case(
        "scgpt",
        write_scgpt,
        cells,
        scgpt_alone,
        _cells,
        ("args.json", "vocab.json"),
        "best_model.pt",
        pre_norm=False,
    ),
    Case("timm", write_timm, images, timm_alone, _crops, ("config.json",), "model.safetensors", batches="batch_size"),
    *(
        Case(
            kind,
            write_transformers_vision(kind),
            images,
            transformers_vision_alone,
            _crops,
            ("config.json",),
            "model.safetensors",
            batches="batch_size",
        )
        for kind in ("vit", "dinov2", "dinov2_with_registers", "dinov3_vit")
    ),
    Case(
        "channel_agnostic_mae",
        write_channel_agnostic_mae,
        images,
        channel_agnostic_mae_alone,
        _crops,
        (),
        "model.safetensors",
        batches="batch_size",
    ),
]
