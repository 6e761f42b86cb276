"""Tests, corrections, bootstraps and nulls: written once, used by measures and enrichment."""

from conceptome.statistics.between_groups import between_groups_log10_p, common_class, constancy
from conceptome.statistics.contingency import contingency_tables, fisher_log10_p, fisher_p, odds_ratio
from conceptome.statistics.jackknife import group_folds, jackknife_groups
from conceptome.statistics.monotone import monotone_association
from conceptome.statistics.multiplicity import benjamini_hochberg, benjamini_hochberg_log10
from conceptome.statistics.rank import RankedCodes, auroc_matrix, mann_whitney_p, mann_whitney_z, tie_terms
from conceptome.statistics.resampling import bootstrap_groups, group_codes, interval, jackknife, permutations
from conceptome.statistics.tails import hypergeometric_log10_sf, normal_log10_p, student_log10_p

__all__ = [
    "RankedCodes",
    "auroc_matrix",
    "benjamini_hochberg",
    "benjamini_hochberg_log10",
    "between_groups_log10_p",
    "bootstrap_groups",
    "common_class",
    "constancy",
    "contingency_tables",
    "fisher_log10_p",
    "fisher_p",
    "group_codes",
    "group_folds",
    "hypergeometric_log10_sf",
    "interval",
    "jackknife",
    "jackknife_groups",
    "mann_whitney_p",
    "mann_whitney_z",
    "monotone_association",
    "normal_log10_p",
    "odds_ratio",
    "permutations",
    "student_log10_p",
    "tie_terms",
]
