"""What a dictionary method is given."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from conceptome.config.base import Strict


class DictionaryBase(Strict):
    """Keys that every method shares. m = number of atoms (None: the method's natural number), k = L0 budget."""

    m: int | None = Field(None, gt=0, description="number of atoms; null: the method's natural number")
    k: int | None = Field(None, gt=0, description="largest number of active atoms per sample (L0); null: all")

    @model_validator(mode="after")
    def _k_fits(self) -> DictionaryBase:
        if self.m is not None and self.k is not None and self.m < self.k:
            raise ValueError(f"m ({self.m} atoms) must be at least k ({self.k} active atoms): raise m or lower k")
        return self

    @property
    def budget(self) -> int | None:
        """Largest number of active atoms per sample; None: all."""
        return self.k


class TrainedBase(DictionaryBase):
    """Keys of the methods that are trained by gradient steps.

    Activations are centred and scaled to unit variance per dimension for training, so learning_rate does not depend on
    their size. It follows the 1/√m law of Gao et al. (2024): the rate used is learning_rate · √(reference_m / m).
    """

    steps: int = Field(1000, gt=0, description="gradient steps")
    batch_size: int = Field(512, gt=0, description="rows per step")
    learning_rate: float = Field(5e-3, gt=0, description="peak rate at m = reference_m")
    reference_m: int = Field(1024, gt=0, description="number of atoms at which learning_rate holds")
    dead_after: int = Field(30_000, gt=0, description="an atom silent for this many samples is dead")
    warm_up: float = Field(0.05, ge=0, le=1, description="share of the steps over which the rate rises from 0")
    warm_down: float = Field(0.5, ge=0, le=1, description="share of the steps, the last ones, over which it falls to 0")
    gradient_clip: float | None = Field(
        None, gt=0, description="longest gradient of a step, over all parameters together; null: gradients are not cut"
    )
    buffer_mb: int = Field(
        256, gt=0, description="MiB of rows that are shuffled at a time; of more rows, random pieces fill it in turn"
    )
    order_seed: int = Field(
        0,
        ge=0,
        description="of the order of rows beyond buffer_mb; rows that fit follow the dictionary's own seed",
    )
    checkpoint_every: int = Field(500, gt=0, description="steps between checkpoints, where there is a place for them")
    checkpoint_seconds: float = Field(20, ge=0, description="shortest time from one checkpoint to the next")

    @property
    def scaled_learning_rate(self) -> float:
        """Peak rate at this m."""
        return self.learning_rate * (self.reference_m / self.m) ** 0.5


class TopK(TrainedBase):
    """TopK sparse autoencoder (Gao et al. 2024)."""

    method: Literal["topk"]
    m: int = Field(512, gt=0, description="number of atoms")
    k: int = Field(32, gt=0, description="active atoms per sample")
    k_aux: int = Field(64, gt=0, description="dead atoms that AuxK lets reconstruct the residual")
    aux_coefficient: float = Field(1 / 32, ge=0, description="weight of AuxK in the loss")


class Icfl(TrainedBase):
    """Iterative codebook feature learning (Donhauser et al. 2025)."""

    method: Literal["icfl"]
    m: int = Field(512, gt=0, description="number of atoms")
    rounds: int = Field(8, gt=0, description="rounds of the pursuit")
    columns: int = Field(4, gt=0, description="atoms taken per round; L0 is at most rounds × columns")
    steps: int = Field(400, gt=0, description="gradient steps of the dictionary")
    learning_rate: float = Field(1e-2, gt=0, description="peak rate at m = reference_m")
    reset_every: int = Field(100, gt=0, description="steps between searches for near-duplicate atoms")
    reset_cosine: float = Field(0.9, gt=0, le=1, description="above this cosine one of two atoms starts anew")
    k: int | None = Field(None, gt=0, description="set by rounds × columns; give it only to state it")

    @property
    def budget(self) -> int:
        """Rounds × columns."""
        return self.rounds * self.columns

    @model_validator(mode="after")
    def _rounds_times_columns(self) -> Icfl:
        budget = self.budget
        if self.k is not None and self.k != budget:
            raise ValueError(f"k must be rounds × columns = {budget}: drop k or change them")
        if self.m < budget:
            raise ValueError(f"m ({self.m} atoms) must be at least rounds × columns ({budget}): raise m or lower them")
        return self


class PcaDictionary(DictionaryBase):
    """Principal axes as atoms; codes are scores cut to the k largest magnitudes (k null: all)."""

    method: Literal["pca"]


class IcaDictionary(DictionaryBase):
    """Independent components (FastICA) as atoms; codes cut to the k largest magnitudes (k null: all)."""

    method: Literal["ica"]
    max_iterations: int = Field(200, gt=0, description="iterations of FastICA")
    max_rows: int = Field(10_000, gt=0, description="seeded training rows that it is fitted on")


class RandomDictionary(DictionaryBase):
    """Random unit atoms, TopK encoder: the null of a learned dictionary."""

    method: Literal["random"]
    m: int = Field(512, gt=0, description="number of atoms")
    k: int = Field(32, gt=0, description="active atoms per sample")


class IdentityDictionary(DictionaryBase):
    """One atom per dimension: the raw neurons; codes cut to the k largest magnitudes (k null: all)."""

    method: Literal["identity"]


Dictionary = Annotated[
    TopK | Icfl | PcaDictionary | IcaDictionary | RandomDictionary | IdentityDictionary, Field(discriminator="method")
]

# Methods whose atoms do not depend on a seed: they are fitted once.
SEEDLESS = ("pca", "identity")

OPTIONS: dict[str, type[DictionaryBase]] = {
    "topk": TopK,
    "icfl": Icfl,
    "pca": PcaDictionary,
    "ica": IcaDictionary,
    "random": RandomDictionary,
    "identity": IdentityDictionary,
}
