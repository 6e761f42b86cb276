"""BatchTopK crosscoder: one dictionary of several models' activations of the same samples (Minder et al. 2025).

Rows hold the models' activations side by side, x = [x¹, x², …] with widths that sum to d ("Overcoming sparsity
artifacts in crosscoders", arXiv 2504.02922). With one part of the encoder and of every atom per model,

    f = ReLU(Σ_m (x^m − b^m)·W^mᵀ + c),   x̂^m = f·D^m + b^m

and of a batch of B rows the B·k largest f_j·Σ_m ‖D^m_j‖ are kept. A row encoded on its own keeps what is above the
running mean of the smallest kept value. Each model is scaled to unit variance per dimension, so that none outweighs the
others by the size of its activations; whole atoms have unit length. Loss, AuxK and the rest are BatchTopK's.

Which atoms belong to one model alone is measured afterwards, by `latent_scaling`: a small part D^m_j does not prove
that model m lacks what the atom stands for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from conceptome.dictionaries.base import check_rows
from conceptome.dictionaries.batch_topk import BatchTopK, BatchTopKTrainer
from conceptome.dictionaries.engine import Active, engine_of
from conceptome.dictionaries.rows import Rows, geometric_median, sample
from conceptome.dictionaries.training import SAMPLE, SAMPLE_ROWS, Progress, measure_scale, random_atoms, train
from conceptome.errors import ConfigError, DataError

if TYPE_CHECKING:
    from conceptome.config.dictionaries import Crosscoder as Options

BLOCK = 2048
# Minder et al. (2025): an atom is specific to one model when it explains this little of the other's error and
# reconstruction, relative to its own model's.
SPECIFIC_ERROR, SPECIFIC_RECONSTRUCTION = 0.2, 0.5


class Crosscoder(BatchTopK):
    """A crosscoder; parameters as BatchTopK's, with threshold (m,) and scales (models,): each model's deviation."""

    method = "crosscoder"

    @property
    def parts(self) -> list[slice]:
        """Columns of each model."""
        return parts(self.card["options"]["widths"])

    @property
    def norms(self) -> np.ndarray:
        """‖D^m_j‖ in units of each model's scale, as shares of their sum over the models: (m, models)."""
        lengths = _norms(self.atoms, self.parts) / self.parameters["scales"]
        return lengths / lengths.sum(axis=1, keepdims=True)

    def _active(self, X: np.ndarray) -> Active:
        return self._scorer.above(X, self.parameters["threshold"])


def parts(widths: list[int]) -> list[slice]:
    """Columns of each model."""
    ends = np.cumsum(widths)
    return [slice(int(end) - width, int(end)) for end, width in zip(ends, widths)]


def _norms(atoms: np.ndarray, columns: list[slice]) -> np.ndarray:
    """Length of every atom's part in each model: (m, models)."""
    return np.stack([np.linalg.norm(atoms[:, each], axis=1) for each in columns], axis=1)


@dataclass(frozen=True)
class _Weighted:
    """An encoder of its own for the selection."""

    parameters: dict[str, np.ndarray]


class CrosscoderTrainer(BatchTopKTrainer):
    """The step of the crosscoder, on rows whose models are not yet scaled alike.

    Parameters
    ----------
    balance
        float32 (d,): what rows are multiplied with.
    """

    options: Options

    def __init__(self, atoms: np.ndarray, bias: np.ndarray, options: Options, balance: np.ndarray):
        super().__init__(atoms, bias, options)
        self.balance = balance
        self.columns = parts(options.widths)

    def step(self, x: np.ndarray, dead: np.ndarray, number: int) -> tuple[float, np.ndarray]:
        """As `training.Trainer` says."""
        return super().step(x * self.balance, dead, number)

    def weights(self) -> np.ndarray:
        """Σ_m ‖D^m_j‖: float32 (m,), between 1 and the root of the number of models."""
        return _norms(self.parameters["atoms"], self.columns).sum(axis=1)

    def choose(self, x: np.ndarray) -> Active:
        """Codes of the batch; the threshold follows the smallest code times weight."""
        weights = self.weights()
        weighted = dict(self.parameters)
        weighted["encoder"] = weighted["encoder"] * weights[:, None]
        weighted["encoder_bias"] = weighted["encoder_bias"] * weights
        active = engine_of(_Weighted(weighted)).largest_of_batch(x, self.options.k)
        self.follow(active, len(x))
        return active.with_values(active.values / weights[active.indices])

    def finished(self, deviation: float) -> dict[str, np.ndarray]:
        """See `AutoencoderTrainer.finished`; scaling is undone model by model, and atoms get unit length again."""
        found = super().finished(deviation)
        atoms = found["atoms"] / self.balance
        lengths = np.linalg.norm(atoms, axis=1)
        return {
            "atoms": atoms / lengths[:, None],
            "encoder": found["encoder"] * self.balance * lengths[:, None],
            "encoder_bias": found["encoder_bias"] * lengths,
            "bias": found["bias"] / self.balance,
            "threshold": found["threshold"] * lengths / self.weights(),
            "scales": np.array([deviation / self.balance[each.start] for each in self.columns]),
        }


def fit(
    rows: Rows, options: Options, seed: int, progress: Progress | None = None, **loop: Any
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Fit on training rows; return the arrays and the card's `training` part.

    Raises
    ------
    ConfigError
        The widths do not sum to the rows' dimensions.
    DataError
        One model's activations are all the same.
    """
    d = rows.shape[1]
    if sum(options.widths) != d:
        raise ConfigError(
            f"dictionary 'crosscoder': widths {options.widths} sum to {sum(options.widths)}, but the activations have "
            f"{d} dimensions: give each model's width, in the order of the columns"
        )
    scale = measure_scale(rows, seed, geometric_median)
    X = sample(rows, SAMPLE_ROWS, np.random.default_rng([seed, SAMPLE])).astype(np.float64)
    balance = np.empty(d, dtype=np.float32)
    for number, each in enumerate(parts(options.widths)):
        deviation = np.sqrt(np.square(X[:, each] - X[:, each].mean(axis=0)).mean())
        if deviation <= 1e-7 * np.abs(X[:, each]).max():
            raise DataError(f"crosscoder: the activations of model {number + 1} are the same in all training rows")
        balance[each] = scale.deviation / deviation
    bias = (scale.centre / scale.deviation * balance).astype(np.float32)
    trainer = CrosscoderTrainer(random_atoms(options.m, d, seed), bias, options, balance)
    training = train(trainer, rows, options, seed=seed, deviation=scale.deviation, progress=progress, **loop)
    return trainer.finished(scale.deviation), training


@dataclass(frozen=True)
class LatentScaling:
    """How strongly each atom's code is present in each model.

    Attributes
    ----------
    error, reconstruction
        β, float64 (m, models): the least-squares factor with which f_j·v_j explains what a model's reconstruction
        leaves without atom j, and that reconstruction. NaN where the atom is silent.
    """

    error: np.ndarray
    reconstruction: np.ndarray

    def ratios(self, of: int, to: int) -> tuple[np.ndarray, np.ndarray]:
        """ν of error and of reconstruction, (m,) each: model `of` relative to model `to`."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.error[:, of] / self.error[:, to], self.reconstruction[:, of] / self.reconstruction[:, to]

    def specific(self, to: int, *, than: int) -> np.ndarray:
        """Atoms of model `to` that model `than` lacks: ν_error < 0.2 and ν_reconstruction < 0.5, bool (m,)."""
        error, reconstruction = self.ratios(than, to)
        return (error < SPECIFIC_ERROR) & (reconstruction < SPECIFIC_RECONSTRUCTION)


def latent_scaling(
    dictionary: Crosscoder, X: np.ndarray, owner: int, *, direction: Literal["decoder", "best"] = "decoder"
) -> LatentScaling:
    """Measure each atom's presence in each model (Minder et al. 2025, "latent scaling").

        β_j = ⟨v_j, Yᵀ·f_j⟩ / (‖v_j‖²·‖f_j‖²),   Y = x^m − x̂^m + f_j·D^m_j (error), or x̂^m − b^m (reconstruction)

    Parameters
    ----------
    X
        (n, d) rows as the dictionary was fitted on.
    owner
        Number of the model whose atoms are asked about, from 0.
    direction
        decoder: v_j = D_j^owner in every model, for models of one space (a network before and after further training).
        best: in each model the direction that fits best, v ∝ Yᵀ·f_j, in units of its scale, for models whose spaces
        cannot be compared; β is then ‖Yᵀ·f_j‖ / (‖f_j‖²·‖D_j^owner‖), and never negative.

    Raises
    ------
    ConfigError
        No model of that number; direction "decoder" for models of different widths.
    """
    columns, widths = dictionary.parts, dictionary.card["options"]["widths"]
    if not 0 <= owner < len(columns):
        raise ConfigError(f"latent_scaling: owner must lie between 0 and {len(columns) - 1} (given: {owner})")
    if direction == "decoder" and len(set(widths)) > 1:
        raise ConfigError(
            f"latent_scaling: models of widths {widths} share no space: use direction='best' instead of 'decoder'"
        )
    X = check_rows(X, dictionary.card["d"])
    m, d = dictionary.atoms.shape
    atoms = dictionary.atoms.astype(np.float64)
    energy, of_error, of_reconstruction = np.zeros(m), np.zeros((m, d)), np.zeros((m, d))
    for at in range(0, len(X), BLOCK):
        block = X[at : at + BLOCK].astype(np.float64)
        codes = dictionary.encode(X[at : at + BLOCK], encoder="own").to_scipy().astype(np.float64)
        decoded = codes @ atoms
        energy += np.asarray(codes.multiply(codes).sum(axis=0)).ravel()
        of_error += codes.T @ (block - dictionary.bias - decoded)
        of_reconstruction += codes.T @ decoded
    of_error += energy[:, None] * atoms
    scales = dictionary.parameters["scales"].astype(np.float64)
    own = atoms[:, columns[owner]]
    squared = np.square(own).sum(axis=1)

    def factor(fitted: np.ndarray, model: int) -> np.ndarray:
        part = fitted[:, columns[model]]
        if direction == "decoder":
            return (part * own).sum(axis=1) / (squared * energy)
        relative = np.linalg.norm(part, axis=1) / scales[model]
        return relative / (np.sqrt(squared) / scales[owner] * energy)

    with np.errstate(divide="ignore", invalid="ignore"):
        error, reconstruction = (
            np.stack([factor(fitted, model) for model in range(len(columns))], axis=1)
            for fitted in (of_error, of_reconstruction)
        )
    error[energy == 0] = reconstruction[energy == 0] = np.nan
    return LatentScaling(error, reconstruction)
