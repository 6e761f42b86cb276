"""The further measures: those that a study asks for by a section of its own, `measures.<name>`.

A further measure has one name for its configuration section, its module here, its rule (`measure_<name>`), its figure
and its first table. Its module holds `TABLES` (table → column → dtype) and `measure(space, config)`, which gives the
frames of each table.
"""

from __future__ import annotations

# Measure → the tables that it writes; the first one decides from which data sets its figure is drawn.
MEASURES: dict[str, tuple[str, ...]] = {
    "coverage": ("coverage", "coverage_concepts"),
    "sparse_probes": ("sparse_probes", "sparse_probes_concepts"),
    "space_probes": ("space_probes", "space_probes_sparsity"),
    "absorption": ("absorption", "absorption_parents"),
    "identifiability": ("identifiability", "identifiability_concepts"),
    "monosemanticity": ("monosemanticity", "monosemanticity_atoms"),
    "isolation": ("isolation", "isolation_pairs"),
    "diversity": ("diversity",),
    "data_stability": ("data_stability",),
    "agreement": ("agreement",),
    "plausibility": ("plausibility", "plausibility_atoms"),
    "families": ("families", "families_members"),
    "latent_scaling": ("latent_scaling", "latent_scaling_atoms"),
    "model_similarity": ("model_similarity",),
    "variance_partition": ("variance_partition_mean", "variance_partition", "variance_partition_atoms"),
    "multidimensional": ("multidimensional", "multidimensional_labels", "multidimensional_points"),
    "intrinsic_dimension": ("intrinsic_dimension",),
    "lobes": ("lobes", "lobes_atoms"),
    "crystals": ("crystals", "crystals_steps"),
    "eigenvalue_slope": ("eigenvalue_slope", "eigenvalue_slope_activations"),
    "spread": ("spread",),
    "dose_curves": ("dose_curves", "dose_curves_atoms"),
    "galleries": ("galleries", "galleries_crops"),
    "layers": ("layers", "layers_dimension"),
}

# Measures that run the model again on some samples: their rule is given its options and weights.
MODEL_READERS: tuple[str, ...] = ("galleries",)

# Tables that hold samples themselves (pixels), by measure; the figure of that name draws them. What may not be passed
# on as data may not be passed on in these: exports leave them out (`provenance.published.withheld`).
SHOWS_SAMPLES: dict[str, tuple[str, ...]] = {"galleries": ("galleries_crops",)}
