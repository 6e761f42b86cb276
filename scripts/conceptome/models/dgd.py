"""A deep generative decoder trained here on the data set's counts: latents without an encoder, under a mixture.

Schuster and Krogh 2023 (doi:10.1093/bioinformatics/btad497); multiDGD is the same for several kinds of counts
(Schuster et al. 2024). Every cell's latent is a parameter of its own, found by maximising p(x | z) p(z): a negative
binomial around the decoder's shares of the cell's total, and a mixture of Gaussians. Two things differ from the
authors' code. The prior over the mixture counts once, not once per cell. And when the decoder is trained, the latents
of ALL cells are found anew with it fixed, so that cells of the training split differ from others in nothing but that.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conceptome.errors import DataError
from conceptome.models.base import (
    Embedding,
    adam,
    dense,
    dense_batches,
    need_counts,
    table,
    torch_threads,
    training_counts,
)

if TYPE_CHECKING:
    import torch

    from conceptome.config.models import Dgd
    from conceptome.datasets import Dataset

log = logging.getLogger(__name__)

# Cells whose latents are found together; they do not depend on each other.
ROWS = 256
# Sharpness of the boundary of the ball that holds the means of the mixture (the authors' default).
SHARPNESS = 5.0


class Mixture:
    """Gaussians with diagonal covariance over the latent space, and the prior over their parameters.

    Attributes
    ----------
    mean
        (components, d): within a ball of soft boundary.
    precision
        (components, d), logarithm of 1 / variance: near that of a ball shared out among the components.
    weight
        (components,), before a softmax.
    """

    def __init__(self, components: int, width: int, radius: float, generator: torch.Generator):
        import torch

        direction = torch.randn(components, width, generator=generator)
        length = radius * torch.rand(components, 1, generator=generator) ** (1 / width)
        self.radius = radius
        self.expected = -2 * math.log(0.2 * radius)
        self.mean = (direction / direction.norm(dim=1, keepdim=True) * length).requires_grad_()
        self.precision = torch.full((components, width), self.expected).requires_grad_()
        self.weight = torch.zeros(components).requires_grad_()

    def parameters(self) -> list[torch.Tensor]:
        """What training moves."""
        return [self.mean, self.precision, self.weight]

    def log_density(self, z: torch.Tensor) -> torch.Tensor:
        """Give log p(z) of latents (n, d), (n,): the weighted Gaussians."""
        import torch

        square = ((z[:, None] - self.mean) ** 2 * self.precision.exp()).sum(-1)
        constant = self.precision.sum(-1) - z.shape[1] * math.log(2 * math.pi)
        return torch.logsumexp(torch.log_softmax(self.weight, 0) + 0.5 * (constant - square), dim=1)

    def log_prior(self) -> torch.Tensor:
        """Give log p of means and precisions, up to a constant; any weights are as likely (Dirichlet, α = 1)."""
        import torch

        beyond = torch.nn.functional.softplus(SHARPNESS * (self.mean.norm(dim=1) / self.radius - 1)).sum()
        return -beyond - 0.5 * ((self.precision - self.expected) ** 2).sum()


def log_counts(x: torch.Tensor, log_mean: torch.Tensor, log_r: torch.Tensor, whole: bool = True) -> torch.Tensor:
    """Give log p of counts (n, genes) under negative binomials of mean exp(log_mean) and dispersion exp(log_r), (n,).

    Parameters
    ----------
    whole
        False leaves out what does not depend on the mean.
    """
    import torch

    value = x * log_mean - (x + log_r.exp()) * torch.logaddexp(log_mean, log_r)
    if whole:
        r = log_r.exp()
        value = value + torch.lgamma(x + r) - torch.lgamma(r) - torch.lgamma(x + 1) + r * log_r
    return value.sum(dim=1)


def embed(config: Dgd, dataset: Dataset, *, threads: int, weights: Path | None) -> Embedding:
    """Train on the training split, and find the latent of every cell with the decoder fixed: (n, n_latent).

    Raises
    ------
    DataError
        The data set has no raw counts, no training cell has any, or training diverged.
    """
    adata = table(dataset, "dgd")
    need_counts(adata, "dgd")
    counts, chosen, sizes = training_counts(adata, dataset, "dgd")
    with torch_threads(threads):
        model, summary = _train(config, dense(counts[chosen]))
    summary |= sizes
    card = {
        "layer": f"latent (width {config.n_latent})",
        "training": summary,
        "notes": [
            f"trained on {len(chosen)} cells of the training split × {sizes['n_genes']} genes; latents of all cells "
            f"found with the decoder fixed ({config.latent_steps} steps)"
        ],
    }
    return Embedding(_latents(config, model, counts, threads), card)


class Decoder:
    """From latents to the logarithm of shares of counts, with the mixture and the dispersions it was trained with."""

    def __init__(self, config: Dgd, counts: np.ndarray):
        import torch
        from torch import nn

        generator = torch.Generator().manual_seed(config.seed)
        widths = [config.n_latent, *[config.n_hidden] * config.n_layers]
        with torch.random.fork_rng(devices=[]):  # initial weights come from torch's global generator
            torch.manual_seed(config.seed)
            hidden = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]
            self.network = nn.Sequential(*hidden, nn.Linear(widths[-1], counts.shape[1]))
        # It starts from the mean share of each gene, which every latent would otherwise have to learn.
        share = (counts.sum(axis=0, dtype=np.float64) + 1) / (counts.sum(dtype=np.float64) + counts.shape[1])
        with torch.no_grad():
            self.network[-1].bias.copy_(torch.from_numpy(np.log(share)))
        self.log_r = torch.zeros(counts.shape[1]).requires_grad_()
        self.mixture = Mixture(config.n_components, config.n_latent, config.radius, generator)

    def log_mean(self, z: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        """Expected counts (n, genes) of latents (n, d) and totals (n, 1), as logarithms."""
        import torch

        return torch.log_softmax(self.network(z), dim=1) + total.clamp(min=1).log()

    def parameters(self) -> list[torch.Tensor]:
        """What training moves but the mixture."""
        return [*self.network.parameters(), self.log_r]


def _train(config: Dgd, counts: np.ndarray) -> tuple[Decoder, dict[str, Any]]:
    """Train decoder, mixture and the training cells' latents together; a latent moves once per pass."""
    import torch

    data = torch.from_numpy(counts)
    total = data.sum(dim=1, keepdim=True)
    model = Decoder(config, counts)
    z = torch.zeros(len(data), config.n_latent, requires_grad=True)
    move = adam(model.parameters(), config.learning_rate)
    move_mixture = adam(model.mixture.parameters(), config.latent_learning_rate)
    move_latents = adam([z], config.latent_learning_rate)
    order = torch.Generator().manual_seed(config.seed)
    # Latents that all start at 0 would have nothing to tell them apart by but their own gradients' sizes.
    with torch.no_grad():
        z.normal_(std=0.1, generator=order)
    every = max(1, config.epochs // 10)
    losses: list[list[float]] = []
    for epoch in range(1, config.epochs + 1):
        sums = 0.0
        for batch in torch.randperm(len(data), generator=order).split(config.batch_size):
            found = log_counts(data[batch], model.log_mean(z[batch], total[batch]), model.log_r)
            joint = found.sum() + model.mixture.log_density(z[batch]).sum()
            loss = -joint - model.mixture.log_prior() * len(batch) / len(data)
            loss.backward()
            move()
            move_mixture()
            sums += loss.item()
        move_latents()
        if epoch % every == 0 or epoch == config.epochs:
            losses.append([epoch, sums / len(data)])
            log.info("dgd: epoch %d of %d, loss %.4g", epoch, config.epochs, losses[-1][1])
    if not np.isfinite(losses[-1][1]):
        raise DataError("model 'dgd': training diverged (NaN loss); check the counts, or lower model.learning_rate")
    for parameter in (*model.parameters(), *model.mixture.parameters()):
        parameter.requires_grad_(False)
    share = torch.softmax(model.mixture.weight, 0)
    return model, {"epochs": config.epochs, "loss": losses, "weights": [round(float(w), 4) for w in share]}


def _latents(config: Dgd, model: Decoder, counts: Any, threads: int) -> Iterator[np.ndarray]:
    """Maximise p(x | z) p(z) over the latents of all cells, each from the component's mean that explains it best."""
    import torch

    with torch_threads(threads):
        for block in dense_batches(counts, ROWS):
            x = torch.from_numpy(block)
            total = x.sum(dim=1, keepdim=True)

            def joint(z: torch.Tensor, x: torch.Tensor = x, total: torch.Tensor = total) -> torch.Tensor:
                found = log_counts(x, model.log_mean(z, total), model.log_r, whole=False)
                return found + model.mixture.log_density(z)

            with torch.no_grad():
                starts = [mean.expand(len(x), -1) for mean in model.mixture.mean]
                best = torch.stack([joint(start) for start in starts]).argmax(dim=0)
            z = model.mixture.mean[best].clone().requires_grad_()
            move = adam([z], config.latent_learning_rate)
            for _ in range(config.latent_steps):
                (-joint(z).sum()).backward()
                move()
            yield z.detach().numpy()
