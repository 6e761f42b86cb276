"""How codes are measured and enriched."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from conceptome.config.base import Strict


class Measures(Strict):
    """Which measures run, and their settings."""

    bootstraps: int = Field(200, gt=0, description="bootstrap draws (by group) behind every interval")
    permutations: int = Field(50, gt=0, description="label permutations behind every null")
    confidence: float = Field(0.95, gt=0, lt=1)
    seed: int = 0
    selectivity: list[str] = Field([], description="label columns")
    probes: list[str] = Field([], description="label columns; classes on too few groups are left out and listed")
    min_groups_per_class: int = Field(6, gt=0)
    probe_max_rows: int = Field(20_000, gt=0)
    recovery: bool = Field(False, description="compare codes with the hidden variables of simulated data")
    dense_above: float = Field(0.5, description="an atom active on more than this share of samples is dense")


class Enrichment(Strict):
    """Which enrichments run, and their settings."""

    labels: list[str] = Field([], description="label columns: AUROC and odds ratio per atom × class")
    gene_sets: list[str] = Field([], description="GMT sources, by name in config/sources.yaml")
    min_genes: int = Field(10, gt=0, description="smallest gene set, counted within the background")
    max_genes: int = Field(500, gt=0)
    residues: bool = False
    residue_thresholds: list[float] = Field([0.0, 0.15, 0.5, 0.6, 0.8], description="fractions of an atom's maximum")
    min_f1: float = 0.5
    bootstraps: int = Field(200, gt=0)
    permutations: int = Field(50, gt=0)
    confidence: float = Field(0.95, gt=0, lt=1)
    seed: int = 0
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
]
