"""What a dictionary method is given."""

from __future__ import annotations

import math
from functools import reduce
from operator import or_
from typing import Annotated, Literal

from pydantic import Field, model_validator

from conceptome.config.base import Strict


class DictionaryBase(Strict):
    """Keys that every method shares. m = number of atoms (None: the method's natural number), k = L0 budget."""

    m: int | None = Field(None, gt=0, description="number of atoms; null: the method's natural number")
    k: int | None = Field(None, gt=0, description="largest number of active atoms per sample (L0); null: all")
    encoder: Literal["own", "topk", "mp", "omp", "icfl"] = Field(
        "own",
        description="what turns activations into codes once the atoms are learned: the method's own encoder, TopK on "
        "the atoms, matching pursuit, orthogonal matching pursuit, or ICFL's rounds",
    )
    encoder_k: int | None = Field(
        None, gt=0, description="active atoms per sample of an encoder that is not the method's own; null: k"
    )
    encoder_columns: int = Field(4, gt=0, description="atoms per round of the encoder icfl")

    @model_validator(mode="after")
    def _k_fits(self) -> DictionaryBase:
        if self.m is not None and self.k is not None and self.m < self.k:
            raise ValueError(f"m ({self.m} atoms) must be at least k ({self.k} active atoms): raise m or lower k")
        if self.encoder_k is not None and self.encoder == "own":
            raise ValueError("encoder_k is for an encoder that is not the method's own: set encoder too, or k instead")
        if self.m is not None and self.encoder_k is not None and self.m < self.encoder_k:
            raise ValueError(f"m ({self.m} atoms) must be at least encoder_k ({self.encoder_k}): raise m or lower it")
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

    m: int = Field(512, gt=0, description="number of atoms")
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
    # Left out of what is written down while it says nothing, so that fits from before this key stay as they are.
    processes: int = Field(
        1,
        gt=0,
        description="processes that train it together, each on its part of every batch (torch.distributed); digits "
        "depend on their number",
        exclude_if=lambda number: number == 1,
    )
    adam_beta2: float = Field(
        0.999,
        gt=0,
        lt=1,
        description="decay of Adam's second moment; 0.97 lets rates be higher in trainings of some hundred steps",
        exclude_if=lambda decay: decay == 0.999,
    )
    checkpoint_every: int = Field(500, gt=0, description="steps between checkpoints, where there is a place for them")
    checkpoint_seconds: float = Field(20, ge=0, description="shortest time from one checkpoint to the next")

    @model_validator(mode="after")
    def _shared(self) -> TrainedBase:
        if self.batch_size % self.processes:
            raise ValueError(f"'batch_size' ({self.batch_size}) must be a multiple of 'processes' ({self.processes})")
        return self

    @property
    def scaled_learning_rate(self) -> float:
        """Peak rate at this m."""
        return self.learning_rate * (self.reference_m / self.m) ** 0.5


class AlongAtoms(TrainedBase):
    """Keys of the methods whose encoder starts along the atoms."""

    encoder_scale: float = Field(
        1.0,
        gt=0,
        description="length of the encoder's rows at the start, along unit atoms; below 1 the codes of many atoms, "
        "which overlap, do not overshoot, and directions turn faster",
        exclude_if=lambda length: length == 1.0,
    )


class AuxK(TrainedBase):
    """Keys of the methods whose dead atoms are revived by AuxK (Gao et al. 2024)."""

    k_aux: int = Field(64, gt=0, description="dead atoms that AuxK lets reconstruct the residual")
    aux_coefficient: float = Field(1 / 32, ge=0, description="weight of AuxK in the loss")


class AverageL0(TrainedBase):
    """Keys of the methods whose k is an average over samples."""

    @property
    def budget(self) -> int:
        """All: k is an average, and a sample may have more."""
        return self.m


class TopK(AlongAtoms, AuxK):
    """TopK sparse autoencoder (Gao et al. 2024)."""

    method: Literal["topk"]
    k: int = Field(32, gt=0, description="active atoms per sample")
    learning_rate: float = Field(3e-3, gt=0, description="peak rate at m = reference_m")
    device: str = Field(
        "cpu",
        pattern=r"^(cpu|cuda(:\d+)?)$",
        description="where it trains: 'cpu', or 'cuda', for which the job asks for a GPU; digits depend on it",
        exclude_if=lambda device: device == "cpu",
    )

    @model_validator(mode="after")
    def _one_process_on_a_gpu(self) -> TopK:
        if self.device != "cpu" and self.processes > 1:
            raise ValueError(
                f"'processes' ({self.processes}) and 'device' ({self.device}) do not go together: drop one"
            )
        return self


class Icfl(TrainedBase):
    """Iterative codebook feature learning (Donhauser et al. 2025)."""

    method: Literal["icfl"]
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


class BatchTopK(AlongAtoms, AverageL0, AuxK):
    """BatchTopK sparse autoencoder (Bussmann et al. 2024)."""

    method: Literal["batch_topk"]
    k: int = Field(32, gt=0, description="active atoms per sample, on average")
    learning_rate: float = Field(3e-3, gt=0, description="peak rate at m = reference_m")


class Matryoshka(BatchTopK):
    """Matryoshka BatchTopK sparse autoencoder (Bussmann et al. 2025)."""

    method: Literal["matryoshka"]
    prefixes: list[Annotated[float, Field(gt=0, le=1)]] = Field(
        [1 / 16, 1 / 8, 1 / 4, 1 / 2, 1],
        min_length=1,
        description="ascending shares of the atoms that reconstruct on their own; the last is 1",
    )

    @property
    def prefix_ends(self) -> list[int]:
        """Number of atoms of each prefix, at least 1."""
        return sorted({max(1, round(share * self.m)) for share in self.prefixes})

    @model_validator(mode="after")
    def _prefixes_ascend(self) -> Matryoshka:
        if self.prefixes != sorted(set(self.prefixes)) or self.prefixes[-1] != 1:
            raise ValueError(f"prefixes must ascend to 1, as in [0.25, 0.5, 1] (given: {self.prefixes})")
        return self


class ReluL1(AlongAtoms):
    """ReLU sparse autoencoder with an L1 penalty on its codes (Bricken et al. 2023)."""

    method: Literal["relu_l1"]
    l1_coefficient: float = Field(0.1, ge=0, description="weight λ of the penalty, for rows of unit length")
    penalty_warm_up: float = Field(0.05, ge=0, le=1, description="share of the steps over which λ rises from 0")


class PAnnealing(ReluL1):
    """ReLU sparse autoencoder with an Lp penalty, p annealed from 1 (Karvonen et al. 2024)."""

    method: Literal["p_annealing"]
    p_end: float = Field(0.2, gt=0, le=1, description="exponent at the end")
    anneal_start: float = Field(0.2, ge=0, le=1, description="share of the steps after which p falls")
    anneal_steps: int = Field(10, gt=0, description="number of equal steps in which p falls from 1 to p_end")

    def exponent(self, number: int) -> float:
        """Exponent p at a gradient step."""
        share = (number / self.steps - self.anneal_start) / max(1 - self.anneal_start, 1e-9)
        done = min(max(math.ceil(share * self.anneal_steps), 0), self.anneal_steps)
        return 1 - (1 - self.p_end) * done / self.anneal_steps


class JumpRelu(AlongAtoms, AverageL0):
    """JumpReLU sparse autoencoder with a target L0 (Rajamanoharan et al. 2024)."""

    method: Literal["jumprelu"]
    k: int = Field(32, gt=0, description="active atoms per sample, on average: what the penalty aims at")
    l0_coefficient: float = Field(1.0, ge=0, description="weight λ of the penalty (L0 / k − 1)²")
    threshold: float = Field(0.05, gt=0, description="every atom's threshold at the start, for rows of unit length")
    bandwidth: float = Field(0.05, gt=0, description="width ε of the gradient in thresholds, for rows of unit length")


class Gated(AlongAtoms):
    """Gated sparse autoencoder (Rajamanoharan et al. 2024)."""

    method: Literal["gated"]
    l1_coefficient: float = Field(0.15, ge=0, description="weight λ of the gate's penalty, for rows of unit length")


class MpSae(TrainedBase):
    """Sparse autoencoder with a matching-pursuit encoder, trained end to end (Costa et al. 2025)."""

    method: Literal["mp_sae"]
    k: int = Field(32, gt=0, description="steps of the pursuit; L0 is at most k")
    nonnegative: bool = Field(
        True, description="steps take the largest correlation while it is positive, not the largest magnitude"
    )
    steps: int = Field(400, gt=0, description="gradient steps")
    learning_rate: float = Field(1e-2, gt=0, description="peak rate at m = reference_m")


class Ksvd(TrainedBase):
    """K-SVD (Aharon et al. 2006; Rubinstein et al. 2008) on mini-batches: OMP codes, atoms fitted to their rows."""

    method: Literal["ksvd"]
    k: int = Field(16, gt=0, description="active atoms per sample")
    update: Literal["sequential", "parallel"] = Field(
        "sequential", description="fit atoms one after another, or all at once (faster where m or d is large)"
    )
    steps: int = Field(100, gt=0, description="batches")
    batch_size: int = Field(1024, gt=0, description="rows per batch")
    learning_rate: float = Field(
        0.5, gt=0, le=1, description="share of the way that an atom goes to its fit, at the peak, whatever m"
    )

    @property
    def scaled_learning_rate(self) -> float:
        """The share does not depend on m."""
        return self.learning_rate

    @model_validator(mode="after")
    def _no_gradients(self) -> Ksvd:
        for name in ("gradient_clip", "adam_beta2"):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"ksvd follows no gradients: leave {name} out")
        return self


class Archetypal(AuxK):
    """Relaxed archetypal TopK autoencoder: atoms are mixtures of centroids, within a bound (Fel et al. 2025)."""

    method: Literal["archetypal"]
    k: int = Field(32, gt=0, description="active atoms per sample")
    candidates: int = Field(512, gt=0, description="k-means centroids that atoms are mixed from")
    candidate_rows: int = Field(50_000, gt=0, description="seeded training rows that the centroids are taken from")
    delta: float = Field(
        0.1, ge=0, description="how far from a mixture an atom may lie, in root mean square lengths of the candidates"
    )
    start_seed: int | None = Field(
        None,
        description="one seed of candidates and first mixtures for all fits, which then agree before they learn, as in "
        "the source (arXiv 2606.02061); null: the dictionary's own",
    )


class SnmfDictionary(DictionaryBase):
    """Semi-NMF (Shafran et al. 2025; Ding et al. 2010): codes are non-negative, atoms have either sign."""

    method: Literal["snmf"]
    m: int = Field(64, gt=0, description="number of atoms")
    k: int | None = Field(16, gt=0, description="largest number of active atoms per sample; null: all")
    keep: float = Field(
        1.0, gt=0, le=1, description="share of its entries that an atom keeps; the source keeps 0.01 of MLP neurons"
    )
    max_iterations: int = Field(200, gt=0, description="iterations at most")
    tolerance: float = Field(1e-4, ge=0, description="stop when an iteration lowers the error by less than this share")
    max_rows: int = Field(10_000, gt=0, description="seeded training rows that it is fitted on")
    code_iterations: int = Field(100, gt=0, description="updates of the codes when rows are encoded")


class NmfDictionary(DictionaryBase):
    """Non-negative matrix factorisation of activations that are non-negative, or of their two signs apart."""

    method: Literal["nmf"]
    m: int = Field(64, gt=0, description="number of atoms")
    k: int | None = Field(16, gt=0, description="largest number of active atoms per sample; null: all")
    negatives: Literal["refuse", "split"] = Field(
        "refuse", description="negative activations: refuse them, or factorise positive and negative parts side by side"
    )
    max_iterations: int = Field(400, gt=0, description="iterations at most")
    tolerance: float = Field(1e-4, ge=0, description="scikit-learn's stopping tolerance")
    max_rows: int = Field(10_000, gt=0, description="seeded training rows that it is fitted on")
    code_iterations: int = Field(100, gt=0, description="updates of the codes when rows are encoded")


class KMeansDictionary(DictionaryBase):
    """k-means: centroids about the mean at unit length; a sample's code is its nearest one, or its k nearest."""

    method: Literal["kmeans"]
    m: int = Field(512, gt=0, description="number of centroids")
    k: int = Field(1, gt=0, description="nearest centroids in a code, by joint least squares")
    max_rows: int = Field(50_000, gt=0, description="seeded training rows that it is fitted on")


class Crosscoder(BatchTopK):
    """BatchTopK crosscoder of several models' activations side by side (Minder et al. 2025)."""

    method: Literal["crosscoder"]
    widths: list[Annotated[int, Field(gt=0)]] = Field(
        min_length=2, description="dimensions of each model, in the order of the columns; they sum to all"
    )


# Methods whose atoms do not depend on a seed: they are fitted once.
SEEDLESS = ("pca", "identity")

OPTIONS: dict[str, type[DictionaryBase]] = {
    "topk": TopK,
    "icfl": Icfl,
    "pca": PcaDictionary,
    "ica": IcaDictionary,
    "random": RandomDictionary,
    "identity": IdentityDictionary,
    "batch_topk": BatchTopK,
    "matryoshka": Matryoshka,
    "relu_l1": ReluL1,
    "p_annealing": PAnnealing,
    "jumprelu": JumpRelu,
    "gated": Gated,
    "mp_sae": MpSae,
    "ksvd": Ksvd,
    "archetypal": Archetypal,
    "snmf": SnmfDictionary,
    "nmf": NmfDictionary,
    "kmeans": KMeansDictionary,
    "crosscoder": Crosscoder,
}

Dictionary = Annotated[reduce(or_, OPTIONS.values()), Field(discriminator="method")]
