"""How codes are measured and enriched."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from conceptome.config import further
from conceptome.config.base import Evidence


class Measures(Evidence):
    """Which measures run, and their settings."""

    max_rows: int = Field(
        4_000, gt=0, description="seeded rows behind reconstruction (of the test split), projection, spectrum, recovery"
    )
    selectivity: list[str] = Field([], description="label columns")
    selectivity_max_rows: int = Field(20_000, gt=0, description="seeded rows behind selectivity")
    probes: list[str] = Field([], description="label columns; classes on too few groups are left out and listed")
    min_groups_per_class: int = Field(6, gt=0, description="a class on fewer groups is left out and listed")
    min_test_groups_per_class: int = Field(
        3, gt=0, description="a class on fewer groups of the test split is left out and listed: nothing to judge it by"
    )
    probe_max_rows: int = Field(20_000, gt=0, description="seeded rows behind probes")
    probe_strengths: list[float] = Field(
        [0.001, 0.01, 0.1, 1.0], min_length=1, description="inverse penalties C, of which validation chooses one"
    )
    probe_permutations: int = Field(5, gt=0, description="permutations of the training labels behind the probes' null")
    probe_max_iterations: int = Field(100, gt=0, description="iterations of the logistic regression")
    shared_cosine: float = Field(0.7, gt=0, lt=1, description="atoms of two seeds above this cosine are shared")
    stability_draws: int = Field(5, gt=0, description="pairs of random dictionaries behind the null of stability")
    recovery: bool = Field(False, description="compare codes with the hidden variables of simulated data")
    recovery_permutations: int = Field(5, gt=0, description="permutations of the truth's rows behind its null")
    recovered_above: float = Field(0.95, gt=0, lt=1, description="a variable with |r| above this is recovered")
    dense_above: float = Field(0.5, description="an atom active on more than this share of samples is dense")
    coverage: further.Coverage | None = Field(
        None, description="coverage and reconstruction of known concepts by single atoms"
    )
    sparse_probes: further.SparseProbes | None = Field(
        None, description="probes that may look at k atoms, for known concepts"
    )
    space_probes: further.SpaceProbes | None = Field(
        None, description="linear probes on activations, codes, reconstruction and residual, and against sparsity"
    )
    absorption: further.Absorption | None = Field(
        None, description="splitting and absorption of parent concepts by atoms of their children"
    )
    identifiability: further.Identifiability | None = Field(
        None, description="one-to-one matching of atoms and known variables, disentanglement, soft identifiability"
    )
    monosemanticity: further.Monosemanticity | None = Field(
        None, description="how alike, by known concepts, the samples are on which an atom is active"
    )
    isolation: further.Isolation | None = Field(
        None, description="whether editing atoms changes one label of a sample and leaves the others"
    )
    diversity: further.Diversity | None = Field(
        None, description="how spread atoms are: coherence, Babel function, ranks, connectivity; null: off"
    )
    data_stability: further.DataStability | None = Field(
        None, description="atoms of dictionaries fitted on two halves of the training groups; null: off"
    )
    variance_partition: further.VariancePartition | None = Field(
        None, description="how much of each atom's variance is biology, batch, plate, donor …; null: off"
    )
    agreement: further.Agreement | None = Field(
        None, description="mean max cosine similarity between all dictionaries of a space; null: off"
    )
    plausibility: further.Plausibility | None = Field(
        None, description="how close atoms lie to real samples; null: off"
    )
    families: further.Families | None = Field(
        None, description="families of atoms that occur together, as trees; null: off"
    )
    latent_scaling: further.LatentScaling | None = Field(
        None, description="atoms of a crosscoder that belong to one of two models alone; null: off"
    )
    model_similarity: further.ModelSimilarity | None = Field(
        None, description="CKA and relative representations of two models; null: off"
    )
    multidimensional: further.Multidimensional | None = Field(
        None, description="planes in which a cluster of atoms is one two-dimensional feature; null: off"
    )
    intrinsic_dimension: further.IntrinsicDimension | None = Field(
        None, description="intrinsic dimension of the activations; null: off"
    )
    lobes: further.Lobes | None = Field(None, description="whether atoms that fire together point alike; null: off")
    crystals: further.Crystals | None = Field(
        None, description="whether the step between two classes is the same beside others; null: off"
    )
    eigenvalue_slope: further.EigenvalueSlope | None = Field(
        None, description="power-law slope of the eigenvalues of activations and of atoms; null: off"
    )
    spread: further.Spread | None = Field(None, description="spread of the activations over their space; null: off")
    dose_curves: further.DoseCurves | None = Field(
        None, description="codes against the dose of an ordinal label, and controls against controls; null: off"
    )
    galleries: further.Galleries | None = Field(
        None, description="images: the crops that activate an atom most, beside controls, and token maps; null: off"
    )
    layers: further.Layers | None = Field(
        None, description="accuracy and intrinsic dimension against layer, one chosen on validation; null: off"
    )


class Enrichment(Evidence):
    """Which enrichments run, and their settings."""

    labels: list[str] = Field(
        [],
        description="label columns, on test samples: AUROC and odds per atom × class; monotone association for ordinal "
        "labels",
    )
    label_unit: Literal["auto", "group", "sample"] = Field(
        "auto",
        description="what the tests of a label's classes count; auto: groups, for a label that is constant in them",
    )
    constant_above: float = Field(
        0.8,
        gt=0,
        le=1,
        description="a label is constant in groups where knowing the group avoids this share of the errors of guessing "
        "its class (Goodman and Kruskal's lambda)",
    )
    trend: Literal["spearman", "kendall", "jonckheere"] = Field(
        "spearman",
        description="monotone association of ordinal labels: Spearman's rho, Kendall's tau-b, or Jonckheere and "
        "Terpstra's statistic from -1 to 1 (Somers' D)",
    )
    perturbations: list[str] = Field(
        [],
        description="label columns whose classes are compared with control samples of the same group, or batch, where "
        "that holds controls",
    )
    min_class_samples: int = Field(10, gt=0, description="classes with fewer test samples are left out and logged")
    max_rows: int = Field(20_000, gt=0, description="seeded test samples behind the labels' table")
    gene_sets: list[str] = Field([], description="GMT sources, by name in config/sources.yaml")
    own_gene_sets: dict[str, str] = Field(
        {}, description="GMT files of your own (transcription factors, ligands, …): name of the collection → path"
    )
    ontology: str | None = Field(
        None,
        description="an OBO file of your own, e.g. go-basic.obo: of an atom's terms, one and its ancestors are "
        "redundant; null: shared genes alone decide",
    )
    redundant_above: float = Field(
        0.35, gt=0, lt=1, description="gene sets of one atom with a larger kappa of their genes are redundant"
    )
    min_genes: int = Field(10, gt=0, description="smallest gene set, counted within the background")
    max_genes: int = Field(500, gt=0, description="largest gene set, counted within the background")
    min_cells: int = Field(
        5, gt=0, description="cells that must express a gene of the background, and on which a tested atom is active"
    )
    max_cells: int = Field(4_000, gt=0, description="seeded cells per split behind the gene sets")
    null_draws: int = Field(
        256, ge=50, description="permuted codes, per stratum of firing rate, that calibrate the gene set test"
    )
    gene_set_bootstraps: int = Field(
        30, ge=10, description="bootstrap draws behind the standard error of a gene set's effect"
    )
    ora_genes: int = Field(
        100, gt=0, description="genes most associated with an atom, up or down, that over-representation looks at"
    )
    programme_genes: int = Field(10, gt=0, description="genes kept per atom's programme in each direction")
    max_terms: int = Field(10, gt=0, description="gene sets kept per atom and collection (of those with q < 0.05)")
    top_terms: int = Field(
        12, gt=0, description="gene sets per collection whose best atom is shown for all dictionaries"
    )
    residues: bool = Field(False, description="proteins: precision, recall and F1 of atoms for annotated concepts")
    residue_thresholds: list[float] = Field(
        [0.0, 0.15, 0.5, 0.6, 0.8], min_length=1, description="fractions of an atom's maximum on training residues"
    )
    min_proteins: int = Field(3, gt=0, description="proteins with the concept in EACH of train, validation and test")
    min_f1: float = Field(0.5, ge=0, le=1, description="pairs above this F1 on validation are kept and tested")
    count_min_proteins: int = Field(
        10, gt=0, description="proteins, over all splits, with a concept that is counted among those found"
    )
    count_permutations: int = Field(
        20, gt=0, description="shifts of all annotations behind the null of the number of concepts found"
    )
    structures: str | None = Field(
        None,
        description="folder of PDB or mmCIF files named after proteins (P12345.pdb, AF-P12345-F1-model_v4.cif.gz): "
        "test which atoms are active near their strongest residue in space; null: no such test",
    )
    structure_radius: float = Field(6.0, gt=0, description="Å between Cα atoms of residues that are near in space")
    structure_separation: int = Field(2, ge=0, description="residues at most so far apart in sequence do not count")
    structure_peak: float = Field(
        0.6, ge=0, lt=1, description="share of an atom's maximum that it must exceed in a protein that counts"
    )
    dictionaries: list[str] | None = Field(None, description="dictionaries to enrich; null: all")


FigureName = Literal[
    "activations",
    "reconstruction",
    "selectivity",
    "probes",
    "labels",
    "gene_sets",
    "residues",
    "stability",
    "recovery",
    "perturbations",
    "coverage",
    "sparse_probes",
    "space_probes",
    "absorption",
    "identifiability",
    "monosemanticity",
    "isolation",
    "diversity",
    "data_stability",
    "agreement",
    "plausibility",
    "families",
    "variance_partition",
    "latent_scaling",
    "model_similarity",
    "multidimensional",
    "intrinsic_dimension",
    "spread",
    "lobes",
    "crystals",
    "eigenvalue_slope",
    "explanations",
    "steering",
    "factorial",
    "dose_curves",
    "galleries",
    "layers",
]
FIGURES: tuple[str, ...] = FigureName.__args__
