"""Gated sparse autoencoder (Rajamanoharan et al. 2024, arXiv 2404.16014).

    gate π = (x − b)·Wᵀ + c,   magnitude μ = exp(r) ⊙ ((x − b)·Wᵀ) + h,   z = 1[π > 0] ⊙ ReLU(μ),   x̂ = z·D + b

    loss = Σ‖x̂ − x‖² / V + λ · mean over rows of Σ_j ReLU(π_j) + Σ‖ReLU(π)·D̄ + b̄ − x‖² / V,   V = Σ‖x − mean‖²

The bars mean that D and b are held fixed there: the third term teaches the gate alone. Since the penalty lies on the
gate and not on the codes, it does not shrink them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from conceptome.dictionaries.autoencoder import Autoencoder, AutoencoderTrainer, Loss, learn
from conceptome.dictionaries.engine import Active, Term
from conceptome.dictionaries.rows import Rows
from conceptome.dictionaries.training import Progress

if TYPE_CHECKING:
    from conceptome.config.dictionaries import Gated as Options


class Gated(Autoencoder):
    """A gated sparse autoencoder; its own parameters are log_gain r and magnitude_bias h, both (m,).

    The gate's bias c is `encoder_bias`.
    """

    method = "gated"

    def _active(self, X: np.ndarray) -> Active:
        gate = self._scorer.above(X, 0.0)
        return magnitudes(gate, self.parameters)


def magnitudes(gate: Active, parameters: dict[str, np.ndarray]) -> Active:
    """Codes of open gates, and only the positive ones."""
    places = gate.indices
    product = gate.values - parameters["encoder_bias"][places]
    values = np.exp(parameters["log_gain"][places]) * product + parameters["magnitude_bias"][places]
    return gate.with_values(values).where(values > 0)


class GatedTrainer(AutoencoderTrainer):
    """The step of the gated autoencoder."""

    options: Options
    shares = True
    lengths = ("bias", "encoder_bias", "magnitude_bias")

    def further_parameters(self) -> dict[str, np.ndarray]:
        """The magnitudes' gain and bias."""
        return {name: np.zeros(self.m, dtype=np.float32) for name in ("log_gain", "magnitude_bias")}

    def loss(self, x: np.ndarray, centred: np.ndarray, dead: np.ndarray, number: int) -> Loss:
        """See `AutoencoderTrainer.loss`."""
        gate = self.engine.above(x, 0.0)
        active = magnitudes(gate, self.parameters)
        main, squared = self.reconstruction(x, active)
        frozen, _ = self.reconstruction(x, gate)
        penalty = np.float32(self.options.l1_coefficient / (len(x) * self.unit))
        # Scale 0: the atoms do not feel this term.
        aux = Term(gate, frozen.gradient + penalty, frozen.error, 0.0)
        gain = np.exp(self.parameters["log_gain"])[active.indices]
        others = {
            "encoder_bias": gate.sums(self.m, aux.gradient),
            "magnitude_bias": active.sums(self.m, main.gradient),
            # exp(r)·(x − b)·Wᵀ is the magnitude without its bias.
            "log_gain": active.sums(
                self.m, main.gradient * (active.values - self.parameters["magnitude_bias"][active.indices])
            ),
        }
        main = Term(active, main.gradient * gain, main.error, main.scale)
        return Loss(main, aux, squared, main.in_bias, others)


def fit(
    rows: Rows, options: Options, seed: int, progress: Progress | None = None, **loop: Any
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Fit on training rows; return the arrays and the card's `training` part."""
    return learn(GatedTrainer, rows, options, seed, progress, **loop)
