"""JumpReLU sparse autoencoder (Rajamanoharan et al. 2024, arXiv 2407.14435) with a target L0.

    π = (x − b)·Wᵀ + c,   z_j = π_j where π_j > θ_j, else 0

    loss = Σ‖x̂ − x‖² / Σ‖x − mean‖² + λ · (L0 / k − 1)²,   L0 = mean over rows of the number of active codes

Each atom has a threshold θ_j = exp(log_threshold_j). The loss is a step function of it; in place of its derivative
stands the straight-through estimator with a rectangle of width ε (the paper's equations 11 and 12):

    ∂z_j/∂θ_j := −(θ_j / ε) · 1[|π_j − θ_j| < ε/2],     ∂1[π_j > θ_j]/∂θ_j := −(1 / ε) · 1[|π_j − θ_j| < ε/2]

Scores follow the gradient of active codes, as if the threshold were fixed. The squared form of the penalty is how the
paper trains to a given L0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from conceptome.dictionaries.autoencoder import Autoencoder, AutoencoderTrainer, Loss, learn
from conceptome.dictionaries.engine import Active
from conceptome.dictionaries.rows import Rows
from conceptome.dictionaries.training import Progress

if TYPE_CHECKING:
    from conceptome.config.dictionaries import JumpRelu as Options


class JumpRelu(Autoencoder):
    """A JumpReLU sparse autoencoder; its own parameter is threshold (m,)."""

    method = "jumprelu"

    def _active(self, X: np.ndarray) -> Active:
        return self._scorer.above(X, self.parameters["threshold"])


class JumpReluTrainer(AutoencoderTrainer):
    """The step of JumpReLU."""

    options: Options
    shares = True

    def further_parameters(self) -> dict[str, np.ndarray]:
        """The thresholds' logarithms."""
        return {"log_threshold": np.full(self.m, np.log(self.options.threshold * self.unit), dtype=np.float32)}

    def loss(self, x: np.ndarray, centred: np.ndarray, dead: np.ndarray, number: int) -> Loss:
        """See `AutoencoderTrainer.loss`."""
        width = np.float32(self.options.bandwidth * self.unit)
        threshold = np.exp(self.parameters["log_threshold"])
        seen = self.engine.above(x, threshold - width / 2)
        above = threshold[seen.indices]
        active = seen.where(seen.values > above)
        main, squared = self.reconstruction(x, active)
        near = seen.where(np.abs(seen.values - above) < width / 2)
        in_code = self.engine.code_gradient(main.error, near, main.scale)
        # The two estimators, times θ for the gradient in log θ.
        theta = threshold[near.indices]
        l0 = float(self.optimiser.group.mean(np.float64(len(active.values) / len(x))))
        by_place = in_code * theta + self.penalty_slope(l0) / len(x)
        in_log = near.sums(self.m, -theta / width * by_place)
        return Loss(main, None, squared, main.in_bias, {"log_threshold": in_log})

    def penalty_slope(self, l0: float) -> float:
        """Derivative of λ · (L0 / k − 1)² in L0."""
        return 2 * self.options.l0_coefficient * (l0 / self.options.k - 1) / self.options.k

    def finished(self, deviation: float) -> dict[str, np.ndarray]:
        """See `AutoencoderTrainer.finished`."""
        parameters = super().finished(deviation)
        parameters["threshold"] = np.exp(parameters.pop("log_threshold")) * np.float32(deviation)
        return parameters


def fit(
    rows: Rows, options: Options, seed: int, progress: Progress | None = None, **loop: Any
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Fit on training rows; return the arrays and the card's `training` part."""
    return learn(JumpReluTrainer, rows, options, seed, progress, **loop)
