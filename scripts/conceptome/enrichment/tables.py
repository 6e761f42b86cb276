"""The columns of every enrichment table, and how one is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from conceptome.measures.tables import FIT, stack

if TYPE_CHECKING:
    import pandas as pd

TEXT, WHOLE, REAL, TRUTH = "object", "int64", "float64", "bool"


def _tests(*names: str) -> dict[str, str]:
    """Columns p and q of one test or several, with log10 of both."""
    return {f"{column}{name}": REAL for name in names for column in ("p", "log10_p", "q", "log10_q")}


# The tests that stand beside the permuted codes.
_BESIDE = {
    **_tests("_naive", "_camera", "_ora"),
    "inter_gene_correlation": REAL,
    "ora_overlap": WHOLE,
    "ora_odds": REAL,
    "ora_odds_low": REAL,
    "ora_odds_high": REAL,
    "ora_genes": WHOLE,
}

TABLES: dict[str, dict[str, str]] = {
    "labels": {
        **FIT,
        "atom": WHOLE,
        "label": TEXT,
        "role": TEXT,
        "term": TEXT,
        "auroc": REAL,
        "low": REAL,
        "high": REAL,
        "odds_ratio": REAL,
        "odds_low": REAL,
        "odds_high": REAL,
        "log_odds": REAL,
        "log_odds_low": REAL,
        "log_odds_high": REAL,
        "active_rule": TEXT,
        **_tests("", "_fisher"),
        "null_auroc": REAL,
        "n_active": WHOLE,
        "n_term": WHOLE,
        "unit": TEXT,
        "n_groups": WHOLE,
        "n": WHOLE,
        "split": TEXT,
    },
    "label_trends": {
        **FIT,
        "atom": WHOLE,
        "label": TEXT,
        "role": TEXT,
        "statistic": TEXT,
        "effect": REAL,
        "low": REAL,
        "high": REAL,
        **_tests(""),
        "null": REAL,
        "null_low": REAL,
        "null_high": REAL,
        "n_levels": WHOLE,
        "n_active": WHOLE,
        "n_groups": WHOLE,
        "n": WHOLE,
        "split": TEXT,
    },
    "perturbations": {
        **FIT,
        "atom": WHOLE,
        "label": TEXT,
        "role": TEXT,
        "term": TEXT,
        "effect": REAL,
        "low": REAL,
        "high": REAL,
        **_tests(""),
        "null_effect": REAL,
        "matched_on": TEXT,
        "n_blocks": WHOLE,
        "n_groups": WHOLE,
        "n_active": WHOLE,
        "n_term": WHOLE,
        "n_control": WHOLE,
        "n_unmatched": WHOLE,
        "n": WHOLE,
        "split": TEXT,
    },
    "gene_sets": {
        **FIT,
        "atom": WHOLE,
        "collection": TEXT,
        "term": TEXT,
        "effect": REAL,
        "low": REAL,
        "high": REAL,
        "z": REAL,
        "correlation": REAL,
        **_tests(""),
        **_BESIDE,
        "null_effect": REAL,
        "effect_selection": REAL,
        "top_term": TRUTH,
        "n_significant": WHOLE,
        "cluster": WHOLE,
        "representative": TRUTH,
        "n_genes": WHOLE,
        "n_overlap": WHOLE,
        "background": WHOLE,
        "top_genes": TEXT,
        "n_active": WHOLE,
        "n_atoms": WHOLE,
        "n": WHOLE,
        "split": TEXT,
    },
    "gene_sets_best": {
        **FIT,
        "collection": TEXT,
        "term": TEXT,
        "term_rank": WHOLE,
        "atom": WHOLE,
        "sign": WHOLE,
        "effect": REAL,
        "low": REAL,
        "high": REAL,
        "z": REAL,
        **_tests(""),
        **_BESIDE,
        "null": REAL,
        "null_low": REAL,
        "null_high": REAL,
        "effect_selection": REAL,
        "top_term": TRUTH,
        "correlation": REAL,
        "correlation_low": REAL,
        "correlation_high": REAL,
        "correlation_null": REAL,
        "correlation_null_low": REAL,
        "correlation_null_high": REAL,
        "auroc_control": REAL,
        "auroc_control_low": REAL,
        "auroc_control_high": REAL,
        "auroc_control_null": REAL,
        "n_genes": WHOLE,
        "n_overlap": WHOLE,
        "background": WHOLE,
        "n_atoms": WHOLE,
        "n": WHOLE,
        "split": TEXT,
    },
    "gene_programmes": {
        **FIT,
        "atom": WHOLE,
        "direction": TEXT,
        "rank": WHOLE,
        "gene": TEXT,
        "effect": REAL,
        "low": REAL,
        "high": REAL,
        **_tests(""),
        "null_effect": REAL,
        "effect_selection": REAL,
        "n_active": WHOLE,
        "background": WHOLE,
        "n": WHOLE,
        "split": TEXT,
    },
    "residues": {
        **FIT,
        "atom": WHOLE,
        "sign": WHOLE,
        "concept": TEXT,
        "type": TEXT,
        "note": TEXT,
        "kind": TEXT,
        "threshold": REAL,
        "precision": REAL,
        "recall": REAL,
        "f1_validation": REAL,
        "f1": REAL,
        "low": REAL,
        "high": REAL,
        "p": REAL,
        "q": REAL,
        "null_f1": REAL,
        "null_low": REAL,
        "null_high": REAL,
        "best_of_concept": TRUTH,
        "n_domains_test": WHOLE,
        "n_residues_test": WHOLE,
        "n_proteins_test": WHOLE,
        "n_groups_test": WHOLE,
        "n_proteins": WHOLE,
        "n_atoms": WHOLE,
        "n_concepts": WHOLE,
        "n": WHOLE,
        "split": TEXT,
    },
    "residue_structure": {
        **FIT,
        "atom": WHOLE,
        "sign": WHOLE,
        "near": REAL,
        "low": REAL,
        "high": REAL,
        "null": REAL,
        "null_low": REAL,
        "null_high": REAL,
        "p": REAL,
        "q": REAL,
        "n_proteins": WHOLE,
        "n_groups": WHOLE,
        "n_atoms": WHOLE,
        "n": WHOLE,
        "split": TEXT,
    },
    "residue_counts": {
        **FIT,
        "what": TEXT,
        "split_by": TEXT,
        "count": WHOLE,
        "low": REAL,
        "high": REAL,
        "null": REAL,
        "null_low": REAL,
        "null_high": REAL,
        "n_null": WHOLE,
        "n_concepts": WHOLE,
        "n_proteins": WHOLE,
        "n_groups": WHOLE,
        "n_atoms": WHOLE,
        "n": WHOLE,
        "min_f1": REAL,
        "min_proteins": WHOLE,
        "split": TEXT,
    },
}


def assemble(table: str, frames: Iterable[pd.DataFrame], place: Mapping[str, str]) -> pd.DataFrame:
    """Stack the frames of one table in its column order and types; without frames, an empty table with its columns.

    Parameters
    ----------
    table
        A key of `TABLES`.
    frames
        Any number of frames.
    place
        dataset, model and whitening: constant columns.
    """
    columns = TABLES[table]
    return stack(columns, frames, place)[list(columns)].astype(columns)


def write(table: str, frames: Iterable[pd.DataFrame], place: Mapping[str, str], folder: Path) -> None:
    """Write `assemble(...)` to folder/{table}.parquet."""
    from conceptome.files import write_parquet

    write_parquet(Path(folder) / f"{table}.parquet", assemble(table, frames, place))


def headline(folder: Path) -> dict[str, float]:
    """Summarise written tables in a few numbers, averaged over seeds: 'dictionary/measure' → value.

    Atom–class pairs, atom–term pairs with q < 0.05, and concepts found (table `residue_counts`); tables without rows
    are absent.
    """
    from conceptome.files import read_parquet

    found = {}
    for table in ("labels", "gene_sets"):
        frame = read_parquet(Path(folder) / f"{table}.parquet", columns=["dictionary", "seed", "q"])
        counts = (frame["q"] < 0.05).groupby([frame["dictionary"], frame["seed"]]).sum()
        for dictionary, value in counts.groupby("dictionary").mean().items():
            found[f"{dictionary}/{table}_significant"] = float(value)
    frame = read_parquet(Path(folder) / "residue_counts.parquet", columns=["dictionary", "what", "count"])
    for dictionary, value in frame[frame["what"] == "concepts"].groupby("dictionary")["count"].mean().items():
        found[f"{dictionary}/concepts_found"] = float(value)
    return found
