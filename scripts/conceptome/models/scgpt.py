"""scGPT (Cui et al. 2024, doi:10.1038/s41592-024-02201-0): a cell as pairs of gene and binned expression.

A checkpoint is the authors' folder: args.json, vocab.json (name → token) and best_model.pt. Their package needs old
versions of its libraries, so that the encoder is rebuilt here from the weights; what tells that it is the same is the
comparison with PyTorch's own encoder layer in the tests.
"""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conceptome.errors import SourceError
from conceptome.models.base import Embedding, torch_threads
from conceptome.models.checkpoint import checkpoint_card, find_folder, read_dictionary, read_settings, read_tensors
from conceptome.models.gene_tokens import gene_obs, inverse, match_genes, nonempty, pool_note, read_counts
from conceptome.models.sequences import Sequences, tapped_batches
from conceptome.models.taps import Stack, blocks_needed, chosen_layers

if TYPE_CHECKING:
    import torch

    from conceptome.config.models import Scgpt
    from conceptome.datasets import Dataset

FILES = ("args.json", "vocab.json", "best_model.pt")
# What a checkpoint holds beside the encoder: heads and the embedding of a flag of its generative training.
BESIDE = re.compile(r"(flag_encoder|decoder|cls_decoder|mvc_decoder|grad_reverse_discriminator|bn|sim|batch_encoder)\.")
# The value encoder was trained with values cut off here.
LARGEST_VALUE = 512.0


def build(settings: dict[str, Any], n_tokens: int) -> torch.nn.Module:
    """Build the encoder with the checkpoint's own names: gene and value embeddings and a post-norm transformer."""
    import torch
    from torch import nn

    width, heads, hidden = settings["embsize"], settings["nheads"], settings["d_hid"]

    class Attention(nn.Module):
        """Multi-head self-attention under the names of torch.nn.MultiheadAttention."""

        def __init__(self):
            super().__init__()
            self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
            self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
            self.out_proj = nn.Linear(width, width)

        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            b, t, _ = x.shape
            projected = nn.functional.linear(x, self.in_proj_weight, self.in_proj_bias)
            q, k, v = projected.view(b, t, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
            mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
            return self.out_proj(mixed.transpose(1, 2).reshape(b, t, width))

    class Layer(nn.Module):
        """Attention and feed-forward, each normalised after its residual sum."""

        def __init__(self):
            super().__init__()
            self.self_attn = Attention()
            self.linear1, self.linear2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            x = self.norm1(x + self.self_attn(x, mask))
            return self.norm2(x + self.linear2(torch.relu(self.linear1(x))))

    class Genes(nn.Module):
        """Embedding of genes."""

        def __init__(self):
            super().__init__()
            self.embedding, self.enc_norm = nn.Embedding(n_tokens, width), nn.LayerNorm(width)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.enc_norm(self.embedding(ids))

    class Values(nn.Module):
        """Embedding of binned expression."""

        def __init__(self):
            super().__init__()
            self.linear1, self.linear2 = nn.Linear(1, width), nn.Linear(width, width)
            self.norm = nn.LayerNorm(width)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = torch.relu(self.linear1(x[..., None].clamp(max=LARGEST_VALUE)))
            return self.norm(self.linear2(hidden))

    class Encoder(nn.Module):
        """The part of scGPT that makes embeddings."""

        def __init__(self):
            super().__init__()
            self.encoder, self.value_encoder = Genes(), Values()
            self.transformer_encoder = nn.ModuleDict({"layers": nn.ModuleList(Layer() for _ in range(n_layers))})

        def forward(self, ids: torch.Tensor, values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            x = self.encoder(ids) + self.value_encoder(values)
            for layer in self.transformer_encoder["layers"]:
                x = layer(x, mask)
            return x

    n_layers = settings["nlayers"]
    with torch.device("meta"):
        return Encoder()


def load_encoder(folder: Path, n_tokens: int) -> torch.nn.Module:
    """Load the whole encoder of a checkpoint, in evaluation mode and float32.

    Raises
    ------
    SourceError
        A file is missing or unreadable, the model is of a kind that is not read, or weights are missing or unknown.
    """
    settings = read_settings(folder / "args.json", ["embsize", "nheads", "d_hid", "nlayers"])
    style = settings.get("input_emb_style", "continuous")
    if style != "continuous" or settings.get("pre_norm") or settings.get("domain_spec_batchnorm"):
        raise SourceError(
            f"{folder / 'args.json'} describes a scGPT of another build (input_emb_style {style}, pre_norm "
            f"{settings.get('pre_norm')}, domain_spec_batchnorm {settings.get('domain_spec_batchnorm')}): not read"
        )
    path = folder / FILES[-1]
    if not path.exists():
        raise SourceError(f"{path} is missing: a checkpoint of scGPT needs {', '.join(FILES)}")
    model = build(settings, n_tokens)
    expected = {name: tensor.shape for name, tensor in model.named_parameters()}
    _, state = read_tensors(path)
    # A checkpoint of the fast attention has one projection under another name.
    state = {name.replace("self_attn.Wqkv.", "self_attn.in_proj_"): tensor for name, tensor in state.items()}
    missing = sorted(set(expected) - set(state))
    if missing:
        raise SourceError(f"{path} lacks {len(missing)} encoder weight(s), first '{missing[0]}': it is not scGPT's")
    unknown = sorted(name for name in set(state) - set(expected) if not BESIDE.match(name))
    if unknown:
        raise SourceError(
            f"{path} holds {len(unknown)} weight(s) that args.json does not explain, first '{unknown[0]}'"
        )
    for name, shape in expected.items():
        if state[name].shape != shape:
            raise SourceError(
                f"{path}: weight '{name}' has shape {tuple(state[name].shape)}, but args.json and vocab.json ask for "
                f"{tuple(shape)}"
            )
    model.load_state_dict({name: state[name].float() for name in expected}, assign=True)
    return model.eval()


def binned(values: np.ndarray, n_bins: int, rng: np.random.Generator) -> np.ndarray:
    """Bin a cell's positive values by their own quantiles, into 1 … n_bins − 1; values that span bins are drawn.

    Parameters
    ----------
    values
        (n,) positive.

    References
    ----------
    Cui et al. 2024, value binning; ties are spread evenly, as in the authors' code.
    """
    edges = np.quantile(values, np.linspace(0, 1, n_bins - 1))
    low, high = np.digitize(values, edges), np.digitize(values, edges, right=True)
    return np.ceil(rng.random(len(values)) * (high - low) + low)


class Binned:
    """Cells as tokens of their expressed genes and binned values, after a class token.

    Draws (ties between bins, genes of cells that are too long) come from the seed and the cell's own name, so that a
    cell is read alike in every data set and batch.
    """

    def __init__(self, config: Scgpt, dataset: Dataset, tokens: dict[str, int], pad_value: float):
        adata, counts = read_counts(dataset, "scgpt")
        gather, self._genes = match_genes(
            list(map(str, adata.var_names)), lambda gene: tokens.get(gene) if gene[:1] != "<" else None, "scgpt"
        )
        self.n_known = int(gather.sum())
        self._counts = (counts @ gather).tocsr()
        self._counts.eliminate_zeros()
        self._counts.sort_indices()
        self._names = list(map(str, dataset.obs.index))
        self._config, self._class, self._pad_value = config, tokens["<cls>"], pad_value
        self._symbol = inverse(tokens)
        kept = np.diff(self._counts.indptr)
        nonempty(kept, dataset, "scgpt")
        self.sampled = int((kept > config.max_length - 1).sum())
        self._kept = np.minimum(kept, config.max_length - 1)
        self._padding = tokens["<pad>"]

    def _cell(self, cell: int) -> tuple[np.ndarray, np.ndarray]:
        low, high = self._counts.indptr[cell : cell + 2]
        genes, values = self._genes[self._counts.indices[low:high]], self._counts.data[low:high].astype(np.float64)
        rng = np.random.default_rng([self._config.seed, zlib.crc32(self._names[cell].encode())])
        bins = binned(values, self._config.bins, rng)
        if len(genes) > self._kept[cell]:
            chosen = np.sort(rng.choice(len(genes), size=self._kept[cell], replace=False))
            genes, bins = genes[chosen], bins[chosen]
        return genes, bins

    def encode(self, cell: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens (int64) and values (float32) of a cell."""
        genes, bins = self._cell(cell)
        return (
            np.concatenate([[self._class], genes]).astype(np.int64),
            np.concatenate([[self._pad_value], bins]).astype(np.float32),
        )

    def symbols(self, cell: int) -> list[str]:
        """Names of a cell's genes in their order."""
        return [self._symbol[token] for token in self._cell(cell)[0]]

    def sequences(self) -> Sequences:
        """All cells."""
        return Sequences((self._kept + 1).tolist(), self.encode, (self._padding, self._pad_value), (1, 0))


def stack_of(model: torch.nn.Module) -> Stack:
    """Where activations are taken; norms come after each residual sum."""
    blocks = list(model.transformer_encoder["layers"])
    return Stack(
        blocks=blocks,
        attention=[block.self_attn for block in blocks],
        feed_forward=[block.linear2 for block in blocks],
    )


def embed(config: Scgpt, dataset: Dataset, *, threads: int, weights: Path | None) -> Embedding:
    """Run the encoder over every cell; layer 0 is the sum of gene and value embeddings, i the output of layer i.

    The authors scale a cell's embedding to unit length; here that is left to `whitening.unit_norm`.

    Raises
    ------
    ConfigError
        The layer does not exist, or no weights are declared.
    SourceError
        Files of the checkpoint are missing or unreadable, or are of another model.
    DataError
        The data set is not of cells, has no raw counts, or no gene of the model's.
    """
    folder = find_folder(config, weights, FILES)
    if not (folder / "vocab.json").exists():
        raise SourceError(f"{folder / 'vocab.json'} is missing: a checkpoint of scGPT needs {', '.join(FILES)}")
    tokens = {name: int(token) for name, token in read_dictionary(folder / "vocab.json").items()}
    absent = [token for token in ("<pad>", "<cls>") if token not in tokens]
    if absent:
        raise SourceError(f"{folder / 'vocab.json'} lacks the token {absent[0]}: it is not scGPT's vocabulary")
    settings = read_settings(folder / "args.json")
    with torch_threads(threads):
        model = load_encoder(folder, max(tokens.values()) + 1)
    cells = Binned(config, dataset, tokens, float(settings.get("pad_value", -2)))
    stack = model.transformer_encoder["layers"]
    total = len(stack)
    layers = chosen_layers(config, total)
    model.transformer_encoder["layers"] = stack[: blocks_needed(layers, config.site, total)]
    told = [pool_note(config, "class token dropped"), f"{cells.n_known} genes of the data set are in the vocabulary"]
    if cells.sampled:
        told.append(f"of {cells.sampled} cells with more than {config.max_length - 1} genes a seeded sample was read")
    card = checkpoint_card(config, folder, layers, total, told, files=(folder / name for name in FILES))
    sequences = cells.sequences()
    batches = tapped_batches(
        sequences, lambda inputs, mask: model(*inputs, mask), stack_of(model), layers, config, threads
    )
    obs = gene_obs(dataset, sequences.rows("tokens"), cells.symbols) if config.pool == "tokens" else None
    return Embedding(batches(0), card, obs=obs, also=tuple(layers[1:]), from_row=batches)
