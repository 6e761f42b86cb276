"""TopK sparse autoencoder (Gao et al. 2024, "Scaling and evaluating sparse autoencoders", arXiv 2406.04093).

    z = ReLU(TopK_k((x − b)·Wᵀ + c)),   x̂ = z·D + b

with unit rows of D, W initialised to D, and b to the geometric median of the training rows. The loss is
Σ‖x̂ − x‖² / Σ‖x − mean‖² plus `aux_coefficient` times the AuxK loss: dead atoms reconstruct the residual from their own
k_aux largest scores, normalised by the residual. Gradients are written out by hand, so that each touches only the
active atoms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from conceptome.dictionaries.base import Dictionary
from conceptome.dictionaries.rows import Rows, geometric_median
from conceptome.dictionaries.sparse import Batch
from conceptome.dictionaries.training import Adam, Progress, measure_scale, project_gradient, random_atoms, train

if TYPE_CHECKING:
    import torch

    from conceptome.config.dictionaries import TopK as Options

    Tensors = dict[str, torch.Tensor]


class TopK(Dictionary):
    """A TopK sparse autoencoder; parameters atoms (m, d), encoder (m, d), encoder_bias (m,), bias (d,)."""

    method = "topk"

    def _encode(self, X: np.ndarray, k: int) -> sp.csr_matrix:
        import torch

        with torch.inference_mode():
            own = {name: torch.from_numpy(value) for name, value in self.parameters.items()}
            return Batch.of_positive(scores(own, torch.from_numpy(X)), k).csr


def scores(parameters: Tensors, x: torch.Tensor) -> torch.Tensor:
    """Scores of all atoms before selection: (x − b)·Wᵀ + c, (B, m). The one dense product of a step."""
    import torch

    return torch.addmm(parameters["encoder_bias"], x - parameters["bias"], parameters["encoder"].T)


@dataclass(frozen=True)
class Loss:
    """Value and gradients of one batch."""

    fvu: float
    gradients: Tensors
    fired: np.ndarray


def _backward(
    codes: Batch, error: torch.Tensor, x: torch.Tensor, atoms: torch.Tensor, encoder: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients in atoms, encoder, encoder_bias, and in bias through the encoder, of a loss with gradient `error`."""
    code_gradient = codes.code_gradient(error, atoms)
    encoder_bias = codes.atom_sums(code_gradient)
    return (
        codes.atom_gradient(error),
        codes.atom_gradient(x - bias, code_gradient),
        encoder_bias,
        -(encoder_bias @ encoder),
    )


def loss_and_gradients(
    parameters: Tensors,
    x: torch.Tensor,
    k: int,
    *,
    variance: float,
    dead: np.ndarray | None = None,
    k_aux: int = 1,
    aux_coefficient: float = 0.0,
) -> Loss:
    """Loss of one batch and its gradient in every parameter.

    Parameters
    ----------
    parameters
        atoms, encoder, encoder_bias, bias.
    x
        (B, d) rows.
    variance
        Mean ‖x − mean‖² of the training rows.
    dead
        (m,) bool: atoms that AuxK revives, or None.
    """
    import torch

    atoms, encoder, bias = parameters["atoms"], parameters["encoder"], parameters["bias"]
    size = len(x)
    dense = scores(parameters, x)
    codes = Batch.of_positive(dense, k)
    residual = x - bias - codes.decode(atoms)
    squared = float(residual.square().sum())
    error = residual * (-2 / (size * variance))
    in_atoms, in_encoder, in_encoder_bias, in_bias = _backward(codes, error, x, atoms, encoder, bias)
    in_bias = in_bias + error.sum(dim=0)
    if aux_coefficient > 0 and dead is not None and dead.any() and squared > 0:
        columns = torch.from_numpy(np.flatnonzero(dead))
        revived = Batch.of_positive(dense[:, columns].contiguous(), k_aux)
        # The residual is the target and carries no gradient of its own.
        aux_error = (revived.decode(atoms[columns]) - residual) * (2 * aux_coefficient / squared)
        aux = _backward(revived, aux_error, x, atoms[columns], encoder[columns], bias)
        in_atoms[columns] += aux[0]
        in_encoder[columns] += aux[1]
        in_encoder_bias[columns] += aux[2]
        in_bias = in_bias + aux[3]
    gradients = {"atoms": in_atoms, "encoder": in_encoder, "encoder_bias": in_encoder_bias, "bias": in_bias}
    return Loss(squared / (size * variance), gradients, codes.fired)


class _Trainer:
    def __init__(self, parameters: dict[str, np.ndarray], options: Options):
        import torch

        self.options = options
        self.m, d = parameters["atoms"].shape
        self.variance = float(d)
        self.parameters = {name: torch.from_numpy(value) for name, value in parameters.items()}
        self.optimiser = Adam(self.parameters, epsilon=6.25e-10)

    def step(self, x: torch.Tensor, dead: np.ndarray, number: int) -> tuple[float, np.ndarray]:
        import torch

        options = self.options
        with torch.no_grad():
            loss = loss_and_gradients(
                self.parameters,
                x,
                options.k,
                variance=self.variance,
                dead=dead,
                k_aux=options.k_aux,
                aux_coefficient=options.aux_coefficient,
            )
            atoms = self.parameters["atoms"]
            project_gradient(atoms, loss.gradients["atoms"])
            self.optimiser.step(loss.gradients)
            atoms /= atoms.norm(dim=1, keepdim=True)
        return loss.fvu, loss.fired


def fit(
    rows: Rows, options: Options, seed: int, progress: Progress | None = None
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Fit on training rows; return the arrays and the card's `training` part."""
    scale = measure_scale(rows, seed, geometric_median)
    atoms = random_atoms(options.m, rows.shape[1], seed)
    trainer = _Trainer(
        {
            "atoms": atoms,
            "encoder": atoms.copy(),
            "encoder_bias": np.zeros(options.m, dtype=np.float32),
            "bias": (scale.centre / scale.deviation).astype(np.float32),
        },
        options,
    )
    training = train(
        trainer,
        rows,
        steps=options.steps,
        batch_size=options.batch_size,
        learning_rate=options.scaled_learning_rate,
        dead_after=options.dead_after,
        seed=seed,
        deviation=scale.deviation,
        progress=progress,
    )
    parameters = {name: value.numpy() for name, value in trainer.parameters.items()}
    # Codes are as long as the activations: undo the scaling in the two biases, the only parameters that carry it.
    for name in ("bias", "encoder_bias"):
        parameters[name] = parameters[name] * np.float32(scale.deviation)
    return parameters, training
