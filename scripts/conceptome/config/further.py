"""The further measures: one model each, off (null) unless a study asks for it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from conceptome.config.base import ConceptLimits, ConceptSources, Evidence, Strict

# Keys that measures of spaces share; types, not a base model, since a base's keys would come first in every dump.
Confidence = Annotated[float, Field(gt=0, lt=1, description="coverage of intervals")]
Folds = Annotated[int, Field(gt=1, description="folds of groups of the jackknife behind the intervals")]
SeedOfSpace = Annotated[int, Field(description="of subsamples, folds and null")]


class Coverage(ConceptSources):
    """Coverage and reconstruction of known concepts by single atoms."""

    permutations: int = Field(20, gt=0, description="permuted labels behind the null")
    thresholds: list[float] = Field(
        [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9],
        min_length=1,
        description="fractions of an atom's largest training code, ascending; one is chosen per concept off test",
    )
    min_precision: float = Field(
        0.95, gt=0, le=1, description="an atom this precise on training samples predicts the concept (reconstruction)"
    )
    min_active: int = Field(
        5, gt=0, description="training samples of the concept on which such an atom must be active: chance is precise"
    )


class SparseProbes(ConceptSources):
    """Probes that may look at few atoms: how many it takes to tell a concept."""

    max_rows: int = Field(4_000, gt=0, description="seeded samples per source of concepts")
    max_concepts: int = Field(12, gt=0, description="concepts per source; rarer ones are left out and listed")
    permutations: int = Field(2, gt=0, description="permuted training labels behind the null, per concept")
    k: list[int] = Field([1, 2, 4, 8, 16], min_length=1, description="atoms that a probe may use")
    selections: list[Literal["mean_difference", "l1", "adaptive"]] = Field(
        ["mean_difference", "l1", "adaptive"],
        min_length=1,
        description="how a concept's atoms are ranked on training samples",
    )
    strength: float = Field(1.0, gt=0, description="inverse penalty C of the probe on the chosen atoms")
    l1_strength: float = Field(0.1, gt=0, description="inverse penalty C of the L1 regression that ranks atoms")
    start: int = Field(
        32, gt=0, description="atoms with the largest mean difference that adaptive thresholding begins with"
    )


class SpaceProbes(Evidence):
    """Linear probes on what lies before, in and beside the codes, and against the number of active atoms."""

    labels: list[str] = Field([], description="label columns; classes on too few groups are left out and listed")
    parts: list[Literal["activations", "whitened", "codes", "reconstruction", "residual"]] = Field(
        ["activations", "whitened", "codes", "reconstruction", "residual"],
        min_length=1,
        description="what is probed; reconstruction and residual are what a dictionary's atoms hold, and what not",
    )
    k: list[int] = Field([1, 2, 4, 8, 16, 32], description="values kept per sample, behind accuracy against sparsity")
    max_rows: int = Field(4_000, gt=0, description="seeded samples per label")
    min_groups_per_class: int = Field(6, gt=0, description="a class on fewer groups is left out and listed")
    min_test_groups_per_class: int = Field(3, gt=0, description="a class on fewer test groups is left out and listed")
    seeds: int = Field(1, gt=0, description="seeds of each dictionary that are probed, the first ones")
    strengths: list[float] = Field(
        [0.01, 0.1, 1.0], min_length=1, description="inverse penalties C, of which validation chooses one"
    )
    permutations: int = Field(2, gt=0, description="permutations of the training labels behind the null")
    max_iterations: int = Field(100, gt=0, description="iterations of the logistic regression")


class Ontology(Strict):
    """Where the parents of a label's classes are read."""

    path: str = Field(description="OBO file of your own, e.g. cl-basic.obo or go-basic.obo")
    relations: list[Literal["is_a", "part_of"]] = Field(
        ["is_a"], min_length=1, description="what makes a term the parent of another"
    )
    terms: dict[str, str] = Field(
        {},
        description="class → identifier (CL:0000624), for classes that are neither an identifier nor a term's name or "
        "exact synonym",
    )


class Absorption(ConceptLimits):
    """Splitting and absorption of parent concepts, given which concepts are children of which."""

    nested: list[list[str]] = Field(
        [],
        description="pairs [label, finer label]: each class of the first is a parent, the classes of the second that "
        "its samples have are its children",
    )
    parents: dict[str, dict[str, list[str]]] = Field(
        {},
        description="label → parent → classes of the label that are its children: a table of an ontology's parents",
    )
    ontologies: dict[str, Ontology] = Field(
        {},
        description="label → ontology: each term above two classes of the label or more, but not above all, is a "
        "parent",
    )
    residues: bool = Field(False, description="proteins: annotation types are parents, their notes are children")
    permutations: int = Field(20, gt=0, description="permutations of the children behind the null")
    min_f1_gain: float = Field(0.03, gt=0, lt=1, description="a further atom that raises F1 by this much is a split")
    max_split: int = Field(6, gt=0, description="main atoms of a parent at most")
    min_cosine: float = Field(0.025, description="cosine of an absorbing atom with the parent's probe at least")
    min_share: float = Field(0.4, gt=0, le=1, description="share of the probe's projection that it carries at least")
    min_probe_f1: float = Field(
        0.3, ge=0, le=1, description="a parent whose probe reaches less on validation is left out and listed"
    )
    strength: float = Field(1.0, gt=0, description="inverse penalty C of the probes on activations and on chosen atoms")
    l1_strength: float = Field(0.1, gt=0, description="inverse penalty C of the L1 regression that ranks atoms")


class Identifiability(ConceptSources):
    """How well atoms and known variables are matched one to one."""

    permutations: int = Field(10, ge=2, description="permutations of the variables' rows behind the null")
    max_rows: int = Field(6_000, gt=0, description="seeded samples per source of concepts")
    draws: int = Field(30, gt=0, description="bootstrap draws behind disentanglement, which needs all pairs anew")
    thresholds: list[float] = Field(
        [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9],
        min_length=1,
        description="fractions of an atom's largest training code, ascending, of soft identifiability",
    )


class Monosemanticity(ConceptSources):
    """How alike the samples are on which an atom is active."""

    permutations: int = Field(20, gt=0, description="permuted labels behind the null")
    min_active: int = Field(10, gt=0, description="atoms active on fewer test samples are left out and counted")


class Isolation(Evidence):
    """Whether editing a few atoms changes one label of a sample, and leaves the others."""

    labels: list[str] = Field(
        [], description="label columns, at least two: each in turn is edited, the others should stay"
    )
    max_rows: int = Field(4_000, gt=0, description="seeded samples per label")
    min_groups_per_class: int = Field(6, gt=0, description="a class on fewer groups is left out and listed")
    min_test_groups_per_class: int = Field(3, gt=0, description="a class on fewer test groups is left out and listed")
    k: list[int] = Field([1, 2, 4, 8, 16], min_length=1, description="atoms edited, of which validation chooses one")
    max_pairs: int = Field(20, gt=0, description="ordered pairs of classes per label, the most frequent ones first")
    permutations: int = Field(10, gt=0, description="random sets of atoms, matched in frequency, behind the null")
    strength: float = Field(1.0, gt=0, description="inverse penalty C of the fixed probes on activations")


class Diversity(Evidence):
    """How spread the atoms of a dictionary are, and how they are used together."""

    babel: list[Annotated[int, Field(gt=0)]] = Field(
        [1, 2, 4, 8, 16], min_length=1, description="numbers r of atoms in the Babel function; r = 1 is the coherence"
    )
    max_rows: int = Field(4_000, gt=0, description="seeded samples behind the co-activation of atoms")
    blocks: int = Field(10, gt=1, description="blocks of atoms, or of groups, that the jackknife leaves out in turn")
    draws: int = Field(5, gt=1, description="random dictionaries, or permuted codes, behind each null")


class DataStability(Evidence):
    """Dictionaries fitted on two disjoint halves of the training groups, matched."""

    dictionaries: list[str] = Field(min_length=1, description="which of the study's dictionaries are fitted again")
    repeats: int = Field(1, gt=0, description="random halvings")
    steps: int | None = Field(None, gt=0, description="most gradient steps of a fit; null: as the dictionary says")
    max_rows: int = Field(20_000, gt=0, description="seeded training samples that are halved")
    shared_cosine: float = Field(0.7, gt=0, lt=1, description="atoms of two fits above this cosine are shared")
    stability_draws: int = Field(5, gt=0, description="pairs of random dictionaries behind the null")


class VariancePartition(Evidence):
    """Shares of each atom's variance that belong to labels."""

    sources: list[str] = Field(
        min_length=1,
        max_length=6,
        description="label columns, biological and technical; also group and batch, which are technical",
    )
    max_rows: int = Field(20_000, gt=0, description="seeded samples of all splits")
    bootstraps: int = Field(100, gt=0, description="bootstrap draws (by group) behind every interval")
    permutations: int = Field(20, gt=0, description="permuted codes behind the null")


class Agreement(Evidence):
    """Mean max cosine similarity between every two dictionaries of a space."""

    draws: int = Field(5, gt=0, description="pairs of random dictionaries behind the null")
    shared_cosine: float = Field(0.7, gt=0, lt=1, description="matched atoms above this cosine are shared")


class Plausibility(Evidence):
    """Distance of atoms from real samples."""

    max_rows: int = Field(4_000, gt=0, description="seeded samples of the test split")
    draws: int = Field(5, gt=0, description="draws of random directions, and of shuffled samples, behind the nulls")


class Families(Evidence):
    """Trees of atoms that occur together."""

    threshold: float = Field(
        0.1, ge=0, le=1, description="smallest normalised co-occurrence of two atoms that are joined"
    )
    min_size: int = Field(3, gt=1, description="fewest atoms of a family")
    min_samples: int = Field(10, gt=0, description="samples on which an atom must be active to be looked at")
    max_rows: int = Field(20_000, gt=0, description="seeded samples of all splits")
    permutations: int = Field(5, gt=0, description="codes permuted within each atom behind the null")
    blocks: int = Field(16, gt=1, description="blocks of groups that the bootstrap draws")
    bootstraps: int = Field(20, gt=0, description="bootstrap draws (of blocks of groups) behind every interval")


class LatentScaling(Evidence):
    """Which atoms of a crosscoder of two models belong to one of them alone."""

    models: list[str] = Field(min_length=1, description="the study's other models, of the same samples")
    m: int = Field(64, gt=0, description="atoms of the crosscoder")
    k: int = Field(8, gt=0, description="active atoms per sample, on average")
    steps: int = Field(600, gt=0, description="gradient steps")
    batch_size: int = Field(256, gt=0, description="rows per step")
    max_rows: int = Field(8_000, gt=0, description="seeded samples that it is fitted on, and judged on (test)")
    bootstraps: int = Field(30, gt=0, description="bootstrap draws (by group) behind every interval")
    permutations: int = Field(2, gt=0, description="crosscoders of permuted pairs of samples behind the null")


class ModelSimilarity(Evidence):
    """How alike two models see the same samples."""

    models: list[str] = Field(min_length=1, description="the study's other models, of the same samples")
    anchors: int = Field(64, gt=1, description="seeded training samples that others are told by")
    max_rows: int = Field(1_000, gt=3, description="seeded test samples")
    blocks: int = Field(10, gt=1, description="blocks of groups that the jackknife leaves out in turn")
    permutations: int = Field(20, gt=0, description="permuted pairs of samples behind the null")


class Multidimensional(Strict):
    """Multi-dimensional features: planes in which a cluster of atoms is neither separable nor a mixture."""

    dictionaries: list[str] | None = Field(None, description="dictionaries to look at; null: all")
    labels: list[str] = Field([], description="ordinal labels (dose, time) that a plane may follow")
    cell_cycle: bool = Field(False, description="cells: whether a plane follows the S and G2/M scores of the cells")
    min_cell_cycle_genes: int = Field(
        20, gt=0, description="genes of each of the two lists that must be present; with fewer, no score is made"
    )
    clusters: int = Field(16, gt=1, description="clusters of atoms (spectral, by the angle between atoms)")
    components: int = Field(3, gt=1, description="principal components of a cluster; neighbours in order are a plane")
    epsilon: float = Field(0.1, gt=0, lt=1, description="width of the slab of the mixture index, in RMS")
    max_rows: int = Field(1_000, gt=0, description="seeded samples of each of the two parts, fitting and held out")
    min_active: int = Field(
        100, gt=0, description="samples on which a cluster must be active in each part; others are left out"
    )
    shown: int = Field(500, gt=0, description="samples kept of the first plane of each fit, for the figure")
    null: Literal["encoded", "codes"] = Field(
        "encoded",
        description="codes: every atom's codes permuted on their own; encoded: these decoded and encoded again, since "
        "atoms compete",
    )
    features: int = Field(
        3,
        ge=0,
        description="clusters, at most, that are set apart as features, one by one, before the rest is tested again",
    )
    permutations: int = Field(20, ge=10, description="draws of independent features, or of a label, behind each null")
    folds: int = Field(10, gt=1, description="folds of groups of the jackknife behind the intervals of the scores")
    bootstraps: int = Field(200, gt=0, description="bootstrap draws (by group) behind the intervals of the labels")
    confidence: Confidence = 0.95
    seed: int = Field(0, description="of subsamples, shuffles, folds and draws")


class IntrinsicDimension(Strict):
    """Intrinsic dimension of the activations."""

    max_rows: int = Field(2_000, gt=50, description="seeded samples")
    neighbours: int = Field(20, gt=3, description="nearest neighbours of the likelihood and the simplex estimates")
    discarded: float = Field(0.1, ge=0, lt=1, description="share of the largest distance ratios that TwoNN leaves out")
    null_draws: int = Field(5, gt=0, description="Gaussian samples behind the null")
    folds: Folds = 20
    confidence: Confidence = 0.95
    seed: SeedOfSpace = 0


class Layers(Evidence):
    """Accuracy and intrinsic dimension against layer; the layer is chosen on validation."""

    labels: list[str] = Field([], min_length=1, validate_default=True, description="label columns that are probed")
    models: list[str] = Field([], description="other models of the data set, each one a further layer of this one's")
    criterion: Literal["best", "earliest"] = Field(
        "best",
        description="best: the highest mean validation accuracy over biological labels; earliest: the lowest layer "
        "within the interval of the highest",
    )
    max_rows: int = Field(4_000, gt=0, description="seeded samples per label")
    min_groups_per_class: int = Field(6, gt=0, description="a class on fewer groups is left out and listed")
    min_test_groups_per_class: int = Field(3, gt=0, description="a class on fewer test groups is left out and listed")
    strengths: list[float] = Field(
        [0.01, 0.1, 1.0], min_length=1, description="inverse penalties C, of which validation chooses one"
    )
    permutations: int = Field(2, gt=0, description="permutations of the training labels behind the null")
    max_iterations: int = Field(100, gt=0, description="iterations of the logistic regression")
    dimension_rows: int = Field(2_000, gt=50, description="seeded samples behind the intrinsic dimension")
    discarded: float = Field(0.1, ge=0, lt=1, description="share of the largest distance ratios that TwoNN leaves out")
    null_draws: int = Field(2, gt=0, description="Gaussian samples behind the null of the dimension")
    folds: int = Field(10, gt=1, description="folds of groups of the jackknife behind the dimension's intervals")


class Spread(Strict):
    """Spread of the activations over their space."""

    max_rows: int = Field(2_000, gt=50, description="seeded samples")
    null_draws: int = Field(5, gt=0, description="isotropic Gaussian samples behind the null")
    folds: Folds = 20
    confidence: Confidence = 0.95
    seed: SeedOfSpace = 0


class EigenvalueSlope(Strict):
    """Power-law slope of the eigenvalues of activations and of atoms."""

    max_rows: int = Field(4_000, gt=50, description="seeded samples behind the slope of the activations")
    fitted: float = Field(0.5, gt=0, le=1, description="share of the ranks, from the first on, behind the line")
    null_draws: int = Field(10, gt=0, description="isotropic Gaussian clouds behind the null")
    folds: int = Field(20, gt=1, description="folds of groups, or of atoms, of the jackknife behind the intervals")
    confidence: Confidence = 0.95
    seed: SeedOfSpace = 0


class Lobes(Strict):
    """Lobes: whether atoms that fire together point in like directions."""

    dictionaries: list[str] | None = Field(None, description="dictionaries to look at; null: all")
    clusters: list[int] = Field([4, 8], min_length=1, description="numbers of clusters, each measured on its own")
    unit: Literal["sample", "group"] = Field(
        "sample", description="atoms co-occur when both fire in one sample, or anywhere in one group (a protein)"
    )
    max_rows: int = Field(4_000, gt=0, description="seeded samples behind the co-occurrence; of unit group all count")
    min_active: int = Field(10, gt=0, description="units on which an atom must fire, and must be silent, to count")
    strata: int = Field(5, gt=0, description="bands of firing rate within which the null permutes clusters")
    permutations: int = Field(50, ge=10, description="permuted clusters behind the null")
    folds: Folds = 5
    bootstraps: int = Field(50, gt=1, description="draws of atoms, whose variance is added to that of the jackknife")
    confidence: Confidence = 0.95
    dense_active: int = Field(32, gt=0, description="as measures.dense_active, for codes that are never zero")
    seed: int = Field(0, description="of subsamples, clusters, folds and null")


class Crystals(Strict):
    """Crystals: whether the step between two classes, or their atoms, is the same beside classes of another label."""

    pairs: list[Annotated[list[str], Field(min_length=2, max_length=2)]] = Field(
        [], description="[label of the step, label beside which it is taken], such as [condition, cell_type]"
    )
    dictionaries: list[str] | None = Field(
        None, description="dictionaries whose atoms are points too, beside the class means; null: all"
    )
    max_rows: int = Field(20_000, gt=0, description="seeded samples")
    min_samples: int = Field(5, gt=0, description="samples that a class mean must rest on")
    min_columns: int = Field(4, gt=2, description="classes of the second label beside which a step must be seen")
    max_relations: int = Field(12, gt=1, description="steps looked at; of more, those beside most classes")
    column_folds: int = Field(5, gt=1, description="folds of the second label's classes: each is judged by the others")
    shrinkage: float = Field(0.1, ge=0, le=1, description="of the discriminant analysis' within-step covariance")
    permutations: int = Field(50, ge=10, description="permuted pairings behind the null")
    bootstraps: int = Field(50, gt=0, description="bootstrap draws (by group) behind the intervals")
    confidence: Confidence = 0.95
    seed: int = Field(0, description="of subsamples, folds, draws, pairings and random atoms")


class DoseCurves(Evidence):
    """Codes against the dose of an ordinal label, of the atoms that follow it most on the training split."""

    label: str = Field(description="ordinal or numeric label column (dose, time)")
    atoms: int = Field(3, gt=0, description="atoms per fit: the largest |Spearman's rho| on the training split")
    max_rows: int = Field(20_000, gt=0, description="seeded samples per split")


class Galleries(Evidence):
    """The crops that activate an atom most, with controls beside them and the activation of each patch of a crop."""

    label: str = Field(description="categorical label column by which atoms are chosen and crops described")
    atoms: int = Field(3, gt=0, description="atoms per fit: the largest AUROC for a class on the training split")
    crops: int = Field(6, gt=0, description="test crops shown per atom, those with the largest codes")
    controls: int = Field(3, ge=0, description="test controls shown beside them, drawn by seed, from the same batches")
    share: float = Field(
        0.05, gt=0, lt=1, description="of the test crops, those with the largest codes, behind the purity of an atom"
    )
    dictionaries: list[str] | None = Field(None, description="dictionaries that are shown; null: all")
    maps: bool = Field(True, description="run the model again on the shown crops and encode each patch token")
