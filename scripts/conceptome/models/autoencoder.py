"""The ReLU autoencoder of Schuster's simulations (arXiv 2410.11468), trained here; activations of its latent layer."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conceptome.models.base import (
    Embedding,
    adam,
    dense,
    dense_batches,
    refuse_not_finite,
    table,
    torch_threads,
    training_rows,
    variable_genes,
)

if TYPE_CHECKING:
    import torch

    from conceptome.config.models import Autoencoder
    from conceptome.datasets import Dataset

log = logging.getLogger(__name__)

# A ReLU unit that starts out silent on most samples may never wake, and a latent layer of two then has width one. On
# input of unit deviation this bias starts every unit active on about two thirds of the samples; of larger ones units
# that hardly ever rest come out, which makes the autoencoder a linear one.
START_BIAS = 0.25


def layer_widths(n_features: int, width: int, depth: int) -> list[int]:
    """Widths from the input to the latent layer: depth/2 linear maps, geometrically spaced.

    >>> layer_widths(2000, 20, 4)
    [2000, 200, 20]
    """
    return [round(v) for v in np.geomspace(n_features, width, depth // 2 + 1)]


def build(n_features: int, width: int, depth: int) -> tuple[torch.nn.Sequential, torch.nn.Sequential]:
    """Build the encoder (Linear, ReLU per map) and the mirrored decoder (its last map linear): `depth` maps in all."""
    from torch import nn

    def hidden(a: int, b: int) -> list[nn.Module]:
        linear = nn.Linear(a, b)
        nn.init.constant_(linear.bias, START_BIAS)
        return [linear, nn.ReLU()]

    widths = layer_widths(n_features, width, depth)
    encoder = [module for a, b in pairwise(widths) for module in hidden(a, b)]
    decoder = [module for a, b in pairwise(widths[:0:-1]) for module in hidden(a, b)]
    return nn.Sequential(*encoder), nn.Sequential(*decoder, nn.Linear(widths[1], n_features))


def embed(config: Autoencoder, dataset: Dataset, *, threads: int, weights: Path | None) -> Embedding:
    """Train on the training split with Adam on the squared error and return the latent layer after its ReLU.

    Input is centred per feature and divided by ONE deviation: the linear maps could absorb that, so the model and its
    loss are those on raw values, only better conditioned.

    Raises
    ------
    DataError
        NaN or infinite features, no training samples.
    """
    adata = table(dataset, "autoencoder")
    used = variable_genes(adata)
    matrix = adata.X if used.all() else adata.X[:, used]
    refuse_not_finite(matrix, [str(name) for name in adata.var_names[used]])
    rows = training_rows(dataset, "autoencoder")
    training = dense(matrix[np.flatnonzero(rows)])
    mean = training.mean(axis=0, dtype=np.float64).astype(np.float32)
    scale = np.float32(training.std(axis=0, dtype=np.float64).mean()) or np.float32(1)
    with torch_threads(threads):
        encoder, summary = _train(config, (training - mean) / scale)
    summary |= {"n": len(training), "n_features": matrix.shape[1]}
    card = {
        "layer": f"latent (width {config.width})",
        "training": summary,
        "notes": [f"trained on {len(training)} samples of the training split"],
    }
    return Embedding(_encode(encoder, matrix, mean, scale, threads), card)


def _train(config: Autoencoder, X: np.ndarray) -> tuple[torch.nn.Sequential, dict[str, Any]]:
    import torch

    data = torch.from_numpy(X)
    with torch.random.fork_rng(devices=[]):  # initial weights come from torch's global generator: leave it as it was
        torch.manual_seed(config.seed)
        encoder, decoder = build(X.shape[1], config.width, config.depth)
    order = torch.Generator().manual_seed(config.seed)
    move = adam([*encoder.parameters(), *decoder.parameters()], config.learning_rate)
    every = max(1, config.epochs // 10)
    losses: list[list[float]] = []
    for epoch in range(1, config.epochs + 1):
        total = 0.0
        for batch in torch.randperm(len(data), generator=order).split(config.batch_size):
            x = data[batch]
            loss = torch.nn.functional.mse_loss(decoder(encoder(x)), x)
            loss.backward()
            move()
            total += loss.item() * len(batch)
        if epoch % every == 0 or epoch == config.epochs:
            losses.append([epoch, total / len(data)])
            log.info("autoencoder: epoch %d of %d, squared error %.4g", epoch, config.epochs, losses[-1][1])
    with torch.inference_mode():
        residual = sum(float(((decoder(encoder(x)) - x) ** 2).sum(dtype=torch.float64)) for x in data.split(4096))
        latent = torch.cat([encoder(x) for x in data.split(4096)])
    variance = float((data.double() - data.double().mean(dim=0)).pow(2).sum())
    return encoder, {
        "epochs": config.epochs,
        "loss": losses,
        "r2_train": 1 - residual / variance if variance > 0 else None,
        "dead_units": int((latent.amax(dim=0) == 0).sum()),
    }


def _encode(
    encoder: torch.nn.Sequential, matrix: Any, mean: np.ndarray, scale: np.float32, threads: int
) -> Iterator[np.ndarray]:
    import torch

    with torch_threads(threads), torch.inference_mode():
        for block in dense_batches(matrix):
            yield encoder(torch.from_numpy((block - mean) / scale)).numpy()
