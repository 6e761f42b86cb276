"""UniRep (Alley et al. 2019, doi:10.1038/s41592-019-0598-1): a multiplicative LSTM over amino acids.

A checkpoint is the folder that the authors give out: one .npy per array, `embed_matrix:0.npy` and
`rnn_mlstm_mlstm_wx:0.npy` … of the model of 1,900 units, `rnn_mlstm_stack_mlstm_stack0_mlstm_stack0_wx:0.npy` … of
the stacks of 64 and 256.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from conceptome.errors import ConfigError, SourceError
from conceptome.models.base import Embedding, computing
from conceptome.models.checkpoint import checkpoint_card, find_folder
from conceptome.models.proteins import Letters, notes, pooled_obs, read_proteins, tokenised
from conceptome.models.sequences import run
from conceptome.models.taps import chosen_layers

if TYPE_CHECKING:
    import torch

    from conceptome.config.models import Unirep
    from conceptome.datasets import Dataset

ORDER = "MRHKDESTNQCUGPAVIFYWLOX"
START = 24
PARTS = ("wx", "wh", "wmx", "wmh", "b", "gx", "gh", "gmx", "gmh")


def letters() -> Letters:
    """Amino acids after the start token, from 1 on; 0 is padding, and B, J and Z are read as X."""
    tokens = {letter: number for number, letter in enumerate(ORDER, 1)}
    return Letters(tokens | dict.fromkeys("BJZ", tokens["X"]), [START], [], 0)


def _array(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False).astype(np.float32)
    except FileNotFoundError:
        raise SourceError(f"{path} is missing: a checkpoint of UniRep is a folder of its .npy files") from None
    except (OSError, ValueError) as error:
        raise SourceError(f"{path} cannot be read as an array ({type(error).__name__}): fetch it again") from None


def weight_names(folder: Path) -> list[str]:
    """Beginnings of the names of each layer's arrays: one of 1,900 units, or those of a stack."""
    single = "rnn_mlstm_mlstm_"
    if (folder / f"{single}wx:0.npy").exists():
        return [single]
    stack = [f"rnn_mlstm_stack_mlstm_stack{i}_mlstm_stack{i}_" for i in range(len(list(folder.glob("*_wx:0.npy"))))]
    return stack or [single]  # of an empty folder, the first file that is missed is named


class Mlstm:
    """One layer, its weight normalisation carried out once.

    References
    ----------
    Krause et al. 2016 (arXiv 1609.07959), the multiplicative LSTM; the gates are in the order i, f, o, u.
    """

    def __init__(self, folder: Path, beginning: str, width: int):
        import torch

        arrays = {part: _array(folder / f"{beginning}{part}:0.npy") for part in PARTS}
        self.units = arrays["wmh"].shape[0]
        expected = {"wx": (width, 4 * self.units), "wh": (self.units, 4 * self.units), "wmx": (width, self.units)}
        for part, shape in expected.items():
            if arrays[part].shape != shape:
                raise SourceError(
                    f"{folder / f'{beginning}{part}:0.npy'} has shape {arrays[part].shape}, not {shape}: the files "
                    "are of different models"
                )
        for part in ("wx", "wh", "wmx", "wmh"):
            length = np.sqrt(np.maximum((arrays[part] ** 2).sum(axis=0), 1e-12))
            arrays[part] = arrays[part] / length * arrays[f"g{part[1:]}"]
        self.wx, self.wh, self.wmx, self.wmh, self.b = (torch.from_numpy(arrays[part]) for part in PARTS[:5])

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Hidden states (b, t, units) of inputs (b, t, width)."""
        import torch

        h = c = x.new_zeros(len(x), self.units)
        gates, factors = x @ self.wx + self.b, x @ self.wmx
        out = x.new_empty(len(x), x.shape[1], self.units)
        for t in range(x.shape[1]):
            i, f, o, u = (gates[:, t] + (factors[:, t] * (h @ self.wmh)) @ self.wh).chunk(4, dim=1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(u)
            h = torch.sigmoid(o) * torch.tanh(c)
            out[:, t] = h
        return out


def embed(config: Unirep, dataset: Dataset, *, threads: int, weights: Path | None) -> Embedding:
    """Run the layers over every protein; layer 0 is the embedding of letters, i the hidden states of layer i.

    A residue's activation has read the protein up to it. The mean over a protein (`pool: mean`) is over its residues;
    that of the authors' `get_rep` counts the start token too.

    Raises
    ------
    ConfigError
        The layer does not exist, or no weights are declared.
    SourceError
        An array is missing, unreadable, or of another model.
    DataError
        The data set is not of proteins, or a sequence holds a letter that the vocabulary does not.
    """
    import torch

    sequences = tokenised(read_proteins(dataset, "unirep"), letters(), "unirep")
    folder = find_folder(config, weights, ["*.npy"])
    embedding = torch.from_numpy(_array(folder / "embed_matrix:0.npy"))
    stack: list[Mlstm] = []
    for beginning in weight_names(folder):
        stack.append(Mlstm(folder, beginning, stack[-1].units if stack else embedding.shape[1]))
    total = len(stack)
    layers = chosen_layers(config, total)
    if len({embedding.shape[1] if layer == 0 else stack[layer - 1].units for layer in layers}) > 1:
        raise ConfigError("model 'unirep': layer 0 has another width than the others: embed it as a model of its own")
    card = checkpoint_card(
        config,
        folder,
        layers,
        total,
        [*notes(config.pool), "hidden states of a recurrent model: a residue has seen those before it"],
        files=sorted(folder.glob("*.npy")),
    )

    def forward(inputs: list[torch.Tensor], mask: torch.Tensor) -> list[torch.Tensor]:
        states = [embedding[inputs[0]]]
        with computing(config):
            for layer in stack[: max(layers)]:
                states.append(layer(states[-1]))
        return [states[layer] for layer in layers]

    def batches(start: int = 0) -> Iterator[np.ndarray]:
        return run(
            sequences,
            forward,
            pool=config.pool,
            tokens_per_batch=config.tokens_per_batch,
            threads=threads,
            name="unirep",
            start=start,
        )

    return Embedding(batches(), card, obs=pooled_obs(dataset, config.pool), also=tuple(layers[1:]), from_row=batches)
