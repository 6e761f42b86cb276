"""ReLU sparse autoencoders with a penalty on the codes: L1, and Lp with p annealed from 1 towards 0.

    z = ReLU((x − b)·Wᵀ + c),   loss = Σ‖x̂ − x‖² / Σ‖x − mean‖² + λ · mean over rows of Σ_j z_j^p

- relu_l1 (Bricken et al. 2023, "Towards monosemanticity", with the changes of Anthropic's April 2024 update): p = 1;
  atoms have unit length, so that codes cannot shrink while atoms grow; λ rises from 0 over the first steps.
- p_annealing (Karvonen et al. 2024, arXiv 2408.00113): the same until `anneal_start`, then p falls in equal steps to
  p_end. As p becomes p', λ is multiplied by Σ z^p / Σ z^p', so that the penalty keeps its size. Where p < 1 its slope
  has no bound as z falls to 0; z + FLOOR stands for z there, for rows of unit length.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from conceptome.dictionaries.autoencoder import Autoencoder, AutoencoderTrainer, Loss, learn
from conceptome.dictionaries.engine import Active, Term
from conceptome.dictionaries.rows import Rows
from conceptome.dictionaries.training import Progress

if TYPE_CHECKING:
    from conceptome.config.dictionaries import PAnnealing as PAnnealingOptions
    from conceptome.config.dictionaries import ReluL1 as Options

FLOOR = 1e-2


class ReluL1(Autoencoder):
    """A ReLU sparse autoencoder."""

    method = "relu_l1"

    def _active(self, X: np.ndarray) -> Active:
        return self._scorer.above(X, 0.0)


class PAnnealing(ReluL1):
    """A ReLU sparse autoencoder trained with an annealed penalty."""

    method = "p_annealing"


class ReluL1Trainer(AutoencoderTrainer):
    """The step of relu_l1."""

    options: Options
    shares = True

    def loss(self, x: np.ndarray, centred: np.ndarray, dead: np.ndarray, number: int) -> Loss:
        """See `AutoencoderTrainer.loss`."""
        active = self.engine.above(x, 0.0)
        main, squared = self.reconstruction(x, active)
        gradient = main.gradient + self.penalty_gradient(active.values, len(x), number)
        main = Term(active, gradient.astype(np.float32), main.error, main.scale)
        return Loss(main, None, squared, main.in_bias)

    def penalty_gradient(self, values: np.ndarray, size: int, number: int) -> np.ndarray | float:
        """Gradient of the penalty in the active codes (nnz,) of `size` rows."""
        return self.options.l1_coefficient * self.warm_up(number) / (size * self.unit)

    def warm_up(self, number: int) -> float:
        """Factor of λ at this step."""
        return min(1.0, (number + 1) / max(1.0, self.options.penalty_warm_up * self.options.steps))


class PAnnealingTrainer(ReluL1Trainer):
    """The step of p_annealing."""

    options: PAnnealingOptions

    def __init__(self, atoms: np.ndarray, bias: np.ndarray, options: PAnnealingOptions):
        super().__init__(atoms, bias, options)
        self.p, self.coefficient = 1.0, options.l1_coefficient

    def penalty_gradient(self, values: np.ndarray, size: int, number: int) -> np.ndarray | float:
        """See `ReluL1Trainer.penalty_gradient`."""
        values = values / np.float32(self.unit) + np.float32(FLOOR)
        p = self.options.exponent(number)
        if p != self.p:
            sums = np.array([(values**each).sum(dtype=np.float64) for each in (self.p, p)])
            before, after = self.optimiser.group.mean(sums)
            if after:
                self.coefficient *= float(before / after)
            self.p = p
        return self.coefficient * self.warm_up(number) * p * values ** (p - 1) / (size * self.unit)

    def state(self) -> dict[str, np.ndarray]:
        """The exponent and λ, (2,)."""
        return {"penalty": np.array([self.p, self.coefficient])}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """See `AutoencoderTrainer.restore`."""
        super().restore(state)
        self.p, self.coefficient = (float(value) for value in state["penalty"])


def fit(
    rows: Rows, options: Options, seed: int, progress: Progress | None = None, **loop: Any
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Fit relu_l1 on training rows; return the arrays and the card's `training` part."""
    return learn(ReluL1Trainer, rows, options, seed, progress, **loop)


def fit_p_annealing(
    rows: Rows, options: PAnnealingOptions, seed: int, progress: Progress | None = None, **loop: Any
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Fit p_annealing, as `fit` does."""
    return learn(PAnnealingTrainer, rows, options, seed, progress, **loop)
