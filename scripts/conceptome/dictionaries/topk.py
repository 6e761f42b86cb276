"""TopK sparse autoencoder (Gao et al. 2024, "Scaling and evaluating sparse autoencoders", arXiv 2406.04093).

    z = ReLU(TopK_k((x − b)·Wᵀ + c)),   x̂ = z·D + b

with unit rows of D, W initialised to `encoder_scale`·D, and b to the geometric median of the training rows. The loss is
Σ‖x̂ − x‖² / Σ‖x − mean‖² plus `aux_coefficient` times the AuxK loss: dead atoms reconstruct the residual from their own
k_aux largest scores, normalised by the residual. Gradients are written out by hand, so that each touches only the
active atoms. A step runs on the compiled kernels where there are any, and on torch otherwise: the same mathematics.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

import conceptome_kernels
from conceptome.dictionaries.base import Dictionary
from conceptome.dictionaries.distributed import Alone, current
from conceptome.dictionaries.rows import Rows, geometric_median
from conceptome.dictionaries.sparse import Batch, Packed, Scores, compact, largest_positive_on_torch
from conceptome.dictionaries.training import (
    Adam,
    Progress,
    measure_scale,
    normalise,
    project_gradient,
    random_atoms,
    train,
)
from conceptome_kernels.sparse import by_atom, column_sums, decode_residual, sparse_backward
from conceptome_kernels.topk import encode_topk, pack
from conceptome_kernels.training import Moved, Part, Rates, update

if TYPE_CHECKING:
    import torch

    from conceptome.config.dictionaries import TopK as Options
    from conceptome.dictionaries.topk_gpu import GpuTrainer

    Tensors = dict[str, torch.Tensor]


# Rows whose scores are formed at once on torch: they stay in the cache while the largest are chosen.
BLOCK_ROWS = 512


class TopK(Dictionary):
    """A TopK sparse autoencoder; parameters atoms (m, d), encoder (m, d), encoder_bias (m,), bias (d,)."""

    method = "topk"

    @cached_property
    def _packed(self) -> Packed:
        return Packed(*(self.parameters[name] for name in ("encoder", "encoder_bias", "bias")))

    def _encode(self, X: np.ndarray, k: int) -> sp.csr_matrix:
        if conceptome_kernels.available():
            return compact(*self._packed.encode(X, k), self.m)
        import torch

        with torch.inference_mode():
            own = {name: torch.from_numpy(value) for name, value in self.parameters.items()}
            return encode(own, torch.from_numpy(X), k).csr


def encode(parameters: Tensors, x: torch.Tensor, k: int) -> Batch:
    """ReLU(TopK_k((x − b)·Wᵀ + c)) on torch: the one dense product of a step, never formed for all rows at once.

    Parameters
    ----------
    parameters
        encoder (m, d), encoder_bias (m,), bias (d,).
    x
        (B, d) rows.
    k
        All positive scores where there are fewer atoms.
    """
    score = Scores(parameters["encoder"], parameters["encoder_bias"])
    k = min(k, len(parameters["encoder"]))
    blocks = [largest_positive_on_torch(score(rows), k) for rows in (x - parameters["bias"]).split(BLOCK_ROWS)]
    return Batch(sp.vstack(blocks, format="csr"))


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
    group: Alone | None = None,
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
    group
        Processes with other rows of the same batch: AuxK is normalised by the residual of all of them.
    """
    import torch

    atoms, encoder, bias = parameters["atoms"], parameters["encoder"], parameters["bias"]
    size = len(x)
    codes = encode(parameters, x, k)
    residual = x - bias - codes.decode(atoms)
    squared = float(residual.square().sum())
    error = residual * (-2 / (size * variance))
    in_atoms, in_encoder, in_encoder_bias, in_bias = _backward(codes, error, x, atoms, encoder, bias)
    in_bias = in_bias + error.sum(dim=0)
    shared = squared if group is None else float(group.mean(np.float64(squared)))
    if aux_coefficient > 0 and dead is not None and dead.any() and shared > 0:
        columns = torch.from_numpy(np.flatnonzero(dead))
        revived = encode(
            {"encoder": encoder[columns], "encoder_bias": parameters["encoder_bias"][columns], "bias": bias}, x, k_aux
        )
        # The residual is the target and carries no gradient of its own.
        aux_error = (revived.decode(atoms[columns]) - residual) * (2 * aux_coefficient / shared)
        aux = _backward(revived, aux_error, x, atoms[columns], encoder[columns], bias)
        in_atoms[columns] += aux[0]
        in_encoder[columns] += aux[1]
        in_encoder_bias[columns] += aux[2]
        in_bias = in_bias + aux[3]
    gradients = {"atoms": in_atoms, "encoder": in_encoder, "encoder_bias": in_encoder_bias, "bias": in_bias}
    return Loss(squared / (size * variance), gradients, codes.counts)


class TorchTrainer:
    """The step on torch, where there is no compiler."""

    shares = True

    def __init__(self, parameters: dict[str, np.ndarray], options: Options):
        self.options = options
        self.m, d = parameters["atoms"].shape
        self.variance = float(d)
        self.parameters = parameters
        self.optimiser = Adam(parameters, epsilon=6.25e-10)

    def state(self) -> dict[str, np.ndarray]:
        """As `training.Trainer` says: nothing."""
        return {}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """As `training.Trainer` says."""

    def step(self, x: np.ndarray, dead: np.ndarray, number: int) -> tuple[float, np.ndarray]:
        """As `training.Trainer` says."""
        import torch

        options, atoms = self.options, self.parameters["atoms"]
        with torch.inference_mode():
            loss = loss_and_gradients(
                {name: torch.from_numpy(value) for name, value in self.parameters.items()},
                torch.from_numpy(x),
                options.k,
                variance=self.variance,
                dead=dead,
                k_aux=options.k_aux,
                aux_coefficient=options.aux_coefficient,
                group=self.optimiser.group,
            )
        gradients = {name: value.numpy() for name, value in loss.gradients.items()}
        project_gradient(atoms, gradients["atoms"])
        self.optimiser.step(gradients)
        normalise(atoms)
        return loss.fvu, loss.fired


class KernelTrainer(TorchTrainer):
    """The step on compiled kernels; its bytes do not depend on the number of threads."""

    def __init__(self, parameters: dict[str, np.ndarray], options: Options):
        super().__init__(parameters, options)
        self.packed = pack(parameters["encoder"])
        # x − b of the last batch: kept, since fresh memory costs as much as the difference itself.
        self.inputs = np.empty((0, parameters["bias"].size), dtype=np.float32)

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """As `training.Trainer` says."""
        pack(self.parameters["encoder"], out=self.packed)

    def step(self, x: np.ndarray, dead: np.ndarray, number: int) -> tuple[float, np.ndarray]:
        """As `training.Trainer` says."""
        options = self.options
        encoder, encoder_bias, bias = (self.parameters[name] for name in ("encoder", "encoder_bias", "bias"))
        if not (np.isfinite(encoder_bias).all() and np.isfinite(bias).all()):
            raise FloatingPointError("the biases are not finite")
        indices, values = encode_topk(x, encoder, encoder_bias, bias, options.k, packed=self.packed)
        size = len(x) * self.variance
        if self.inputs.shape != x.shape:
            self.inputs = np.empty_like(x)
        main, squares = self._part(x, indices, values, bias, -2 / size, self.inputs)
        residual, squared = main.error, float(squares.sum())
        aux = None
        if options.aux_coefficient > 0 and dead.any() and squared > 0:
            columns = np.flatnonzero(dead)
            k = min(options.k_aux, len(columns))
            indices, values = encode_topk(x, encoder[columns], encoder_bias[columns], bias, k)
            indices = columns[indices].astype(np.int32)
            # The residual is the target and carries no gradient of its own.
            scale = -2 * options.aux_coefficient / squared
            aux, _ = self._part(residual, indices, values, np.zeros_like(bias), scale)
        step, root = self.optimiser.advance()
        # The kernel leaves the root out of √second / root + epsilon: both sides of the fraction are multiplied by it.
        rates = Rates(*self.optimiser.betas, step * root, self.optimiser.epsilon * root)
        learned = (
            Moved(self.parameters[name], *self.optimiser.moments[name]) for name in ("atoms", "encoder", "encoder_bias")
        )
        in_bias = update(main, aux, self.inputs, *learned, self.packed, rates) + main.scale * column_sums(residual)
        self.optimiser.move("bias", in_bias.astype(np.float32), step, root)
        return squared / size, np.diff(main.codes.offsets)

    def _part(
        self,
        X: np.ndarray,
        indices: np.ndarray,
        values: np.ndarray,
        bias: np.ndarray,
        scale: float,
        inputs: np.ndarray | None = None,
    ) -> tuple[Part, np.ndarray]:
        """One term of the loss, whose gradient in z·D is scale · (X − b − z·D); and the rows' squared residuals.

        X − b is written to `inputs` where they are given.
        """
        atoms = self.parameters["atoms"]
        error, squares, gradient = decode_residual(X, indices, values, atoms, bias, scale=scale, inputs=inputs)
        return Part(by_atom(indices, values, gradient, self.m), error, scale), squares


class ExplicitTrainer(KernelTrainer):
    """The step on compiled kernels with gradients that are formed: they can be cut, and averaged over processes."""

    def step(self, x: np.ndarray, dead: np.ndarray, number: int) -> tuple[float, np.ndarray]:
        """As `training.Trainer` says."""
        options, group = self.options, self.optimiser.group
        atoms, encoder, encoder_bias, bias = (
            self.parameters[name] for name in ("atoms", "encoder", "encoder_bias", "bias")
        )
        if not (np.isfinite(encoder_bias).all() and np.isfinite(bias).all()):
            raise FloatingPointError("the biases are not finite")
        indices, values = encode_topk(x, encoder, encoder_bias, bias, options.k, packed=self.packed)
        residual, squares = decode_residual(x, indices, values, atoms, bias)
        size, squared, inputs = len(x) * self.variance, float(squares.sum()), x - bias
        error = residual * np.float32(-2 / size)
        in_atoms, in_encoder, in_encoder_bias, _ = sparse_backward(error, indices, values, atoms, inputs)
        shared = float(group.mean(np.float64(squared)))
        if options.aux_coefficient > 0 and dead.any() and shared > 0:
            columns = np.flatnonzero(dead)
            revived = encode_topk(x, encoder[columns], encoder_bias[columns], bias, min(options.k_aux, len(columns)))
            missed, _ = decode_residual(residual, *revived, atoms[columns], np.zeros_like(bias))
            # The residual is the target and carries no gradient of its own.
            missed *= np.float32(-2 * options.aux_coefficient / shared)
            aux = sparse_backward(missed, *revived, atoms[columns], inputs)
            for whole, part in zip((in_atoms, in_encoder, in_encoder_bias), aux):
                whole[columns] += part
        # Not a BLAS product, whose last digits depend on the number of threads.
        in_bias = column_sums(error) - np.einsum("m,md->d", in_encoder_bias, encoder)
        project_gradient(atoms, in_atoms)
        self.optimiser.step(
            {"atoms": in_atoms, "encoder": in_encoder, "encoder_bias": in_encoder_bias, "bias": in_bias}
        )
        normalise(atoms)
        pack(encoder, out=self.packed)
        return squared / size, np.bincount(indices[values != 0], minlength=self.m)


def new_trainer(parameters: dict[str, np.ndarray], options: Options, device: str) -> TorchTrainer | GpuTrainer:
    """Choose what takes the steps: Triton on a GPU; on the CPU compiled kernels, or torch where there are none."""
    if device != "cpu":
        from conceptome.dictionaries.topk_gpu import GpuTrainer

        return GpuTrainer(parameters, options, device)
    if not conceptome_kernels.available():
        return TorchTrainer(parameters, options)
    # One pass where nobody needs the gradients.
    explicit = options.gradient_clip is not None or current().size > 1
    return (ExplicitTrainer if explicit else KernelTrainer)(parameters, options)


def fit(
    rows: Rows,
    options: Options,
    seed: int,
    progress: Progress | None = None,
    device: str = "cpu",
    **loop: Any,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Fit on training rows; return the arrays and the card's `training` part."""
    scale = measure_scale(rows, seed, geometric_median)
    atoms = random_atoms(options.m, rows.shape[1], seed)
    trainer = new_trainer(
        {
            "atoms": atoms,
            "encoder": atoms * np.float32(options.encoder_scale),
            "encoder_bias": np.zeros(options.m, dtype=np.float32),
            "bias": (scale.centre / scale.deviation).astype(np.float32),
        },
        options,
        device,
    )
    training = train(trainer, rows, options, seed=seed, deviation=scale.deviation, progress=progress, **loop)
    if device != "cpu":
        training["device"] = device
    # A GPU's parameters come back only when asked for.
    trainer.state()
    parameters = dict(trainer.parameters)
    # Codes are as long as the activations: undo the scaling in the two biases, the only parameters that carry it.
    for name in ("bias", "encoder_bias"):
        parameters[name] = parameters[name] * np.float32(scale.deviation)
    return parameters, training
