"""What the sparse autoencoders besides TopK share: the encoder's scores, the step, the scale.

    π = (x − b)·Wᵀ + c,   z = f(π) ≥ 0,   x̂ = z·D + b

with unit rows of D, W initialised to `encoder_scale`·D, and b to the geometric median of the training rows. A method
says which places are active and what the loss is; its gradients are written out by hand, so that each touches only the
active atoms.

Training rows are scaled to unit variance per dimension. Penalties, thresholds and bandwidths are stated for rows whose
mean squared length is 1, that is, in units of √d: one value serves activations of any size and width.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp

from conceptome.config.dictionaries import AlongAtoms
from conceptome.dictionaries.base import Dictionary
from conceptome.dictionaries.engine import Active, Scorer, Term, engine_of, gradients
from conceptome.dictionaries.rows import Rows, geometric_median
from conceptome.dictionaries.training import (
    Adam,
    Progress,
    measure_scale,
    normalise,
    project_gradient,
    random_atoms,
    train,
)


class Autoencoder(Dictionary):
    """A sparse autoencoder; parameters atoms (m, d), encoder (m, d), encoder_bias (m,), bias (d,), and its method's."""

    @cached_property
    def _scorer(self) -> Scorer:
        return Scorer(*(self.parameters[name] for name in ("encoder", "encoder_bias", "bias")))

    def _encode(self, X: np.ndarray, k: int) -> sp.csr_matrix:
        return self._active(X).largest_of_rows(k).csr(self.m)

    @abstractmethod
    def _active(self, X: np.ndarray) -> Active:
        """All codes of one block of rows, each independent of the other rows."""


@dataclass(frozen=True)
class Loss:
    """A batch's loss, with all that the update needs.

    Attributes
    ----------
    main, aux
        Its terms.
    squared
        Σ‖x̂ − x‖².
    in_bias
        Gradient in b as a part of x̂, float64 (d,).
    others
        Gradients in further parameters.
    inputs
        x − b with as many rows as the terms; None: that of the batch.
    """

    main: Term
    aux: Term | None
    squared: float
    in_bias: np.ndarray
    others: dict[str, np.ndarray] = field(default_factory=dict)
    inputs: np.ndarray | None = None


class AutoencoderTrainer(ABC):
    """A step of gradient descent on one method's loss.

    Parameters
    ----------
    atoms, bias
        Where training starts, float32 (m, d) and (d,), for scaled rows.
    options
        The method's.
    """

    # Parameters as long as the activations, which training scales.
    lengths: ClassVar[tuple[str, ...]] = ("bias", "encoder_bias")

    def __init__(self, atoms: np.ndarray, bias: np.ndarray, options: AlongAtoms):
        self.options = options
        self.m, d = atoms.shape
        self.variance, self.unit = float(d), math.sqrt(d)
        self.parameters = {
            "atoms": atoms,
            "encoder": atoms * np.float32(options.encoder_scale),
            "encoder_bias": np.zeros(self.m, dtype=np.float32),
            "bias": bias,
            **self.further_parameters(),
        }
        self.optimiser = Adam(self.parameters, epsilon=6.25e-10)
        self.engine = engine_of(self.optimiser)

    def further_parameters(self) -> dict[str, np.ndarray]:
        """What the method learns besides atoms, encoder and the two biases."""
        return {}

    @abstractmethod
    def loss(self, x: np.ndarray, centred: np.ndarray, dead: np.ndarray, number: int) -> Loss:
        """Loss of scaled rows x (B, d), and of the same less b, at step `number`."""

    def step(self, x: np.ndarray, dead: np.ndarray, number: int) -> tuple[float, np.ndarray]:
        """As `training.Trainer` says."""
        if not all(np.isfinite(value).all() for value in self.parameters.values() if value.ndim == 1):
            raise FloatingPointError("a parameter is not finite")
        centred = x - self.parameters["bias"]
        loss = self.loss(x, centred, dead, number)
        inputs = centred if loss.inputs is None else loss.inputs
        # One pass where nobody needs the gradients.
        explicit = self.optimiser.clip is not None or self.optimiser.group.size > 1
        (self._explicit if explicit else self._fused)(loss, inputs)
        fired = np.bincount(loss.main.active.indices, minlength=self.m)
        return loss.squared / (len(x) * self.variance), fired

    def _fused(self, loss: Loss, inputs: np.ndarray) -> None:
        """Move all parameters, without forming the gradients in atoms and encoder."""
        step = self.optimiser.advance()
        others = dict(loss.others)
        through = self.engine.update(loss.main, loss.aux, inputs, step, others.pop("encoder_bias", None))
        others["bias"] = (through + loss.in_bias).astype(np.float32)
        for name, gradient in others.items():
            self.optimiser.move(name, gradient, *step)

    def _explicit(self, loss: Loss, inputs: np.ndarray) -> None:
        """Move all parameters by gradients that can be cut, and averaged over processes."""
        atoms, encoder = self.parameters["atoms"], self.parameters["encoder"]
        in_atoms, in_encoder, in_encoder_bias = gradients(loss.main, loss.aux, inputs, self.m)
        project_gradient(atoms, in_atoms)
        # Not a BLAS product, whose last digits depend on the number of threads.
        in_bias = loss.in_bias - np.einsum("m,md->d", in_encoder_bias, encoder)
        own = {"atoms": in_atoms, "encoder": in_encoder, "encoder_bias": in_encoder_bias}
        self.optimiser.step({**own, "bias": in_bias.astype(np.float32), **loss.others})
        normalise(atoms)
        self.engine.repack()

    def reconstruction(self, x: np.ndarray, active: Active) -> tuple[Term, float]:
        """Σ‖x̂ − x‖² / Σ‖x − mean‖² of codes: the term, whose gradient is that in the codes; and Σ‖x̂ − x‖²."""
        scale = -2 / (len(x) * self.variance)
        error, squares, gradient = self.engine.reconstruct(x, active, self.parameters["bias"], scale)
        return Term(active, gradient, error, scale), float(squares.sum())

    def auxk(self, x: np.ndarray, residual: np.ndarray, squared: float, dead: np.ndarray) -> Term | None:
        """AuxK (Gao et al. 2024): dead atoms reconstruct the residual from their k_aux largest scores."""
        k_aux, coefficient = self.options.k_aux, self.options.aux_coefficient
        if not (coefficient > 0 and dead.any() and squared > 0):
            return None
        columns = np.flatnonzero(dead)
        active = self.engine.largest(x, columns, min(k_aux, len(columns)))
        # The residual is the target and carries no gradient of its own.
        scale = -2 * coefficient / squared
        error, _, gradient = self.engine.reconstruct(residual, active, np.zeros_like(self.parameters["bias"]), scale)
        return Term(active, gradient, error, scale)

    def state(self) -> dict[str, np.ndarray]:
        """What the trainer keeps besides the optimiser's parameters, moments and steps."""
        return {}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Take up a `state` after the optimiser was restored."""
        self.engine.repack()

    def finished(self, deviation: float) -> dict[str, np.ndarray]:
        """The dictionary's arrays, for activations that are not scaled."""
        # Codes are as long as the activations: undo the scaling in all that is added to or compared with them.
        factor = np.float32(deviation)
        return {name: value * factor if name in self.lengths else value for name, value in self.parameters.items()}


def learn(
    kind: type[AutoencoderTrainer],
    rows: Rows,
    options: AlongAtoms,
    seed: int,
    progress: Progress | None,
    **loop: Any,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Fit on training rows; return the arrays and the card's `training` part. `loop` goes on to `training.train`."""
    scale = measure_scale(rows, seed, geometric_median)
    bias = (scale.centre / scale.deviation).astype(np.float32)
    trainer = kind(random_atoms(options.m, rows.shape[1], seed), bias, options)
    training = train(trainer, rows, options, seed=seed, deviation=scale.deviation, progress=progress, **loop)
    return trainer.finished(scale.deviation), training
