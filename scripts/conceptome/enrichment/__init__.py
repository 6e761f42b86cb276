"""What atoms stand for: labels, perturbations, gene sets, residues; each with an interval, a null and a corrected p."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conceptome.datasets.ontology import read_ontology
from conceptome.enrichment.gene_sets import GeneSets
from conceptome.enrichment.gmt import read_gmt
from conceptome.enrichment.labels import choose, choose_ordinal, enrich_labels, enrich_trends
from conceptome.enrichment.perturbations import choose_perturbations, enrich_perturbations
from conceptome.enrichment.residues import enrich_residues
from conceptome.enrichment.structures import near_in_space, read_structures
from conceptome.enrichment.tables import TABLES, headline, write
from conceptome.errors import DataError
from conceptome.measures.residue_concepts import choose_concepts
from conceptome.progress import track

if TYPE_CHECKING:
    import networkx as nx
    import pandas as pd
    from scipy import sparse

    from conceptome.config.evidence import Enrichment

__all__ = ["TABLES", "enrich", "headline", "read_gmt", "read_ontology"]

logger = logging.getLogger(__name__)


def _mark(codes: sparse.csr_matrix) -> tuple:
    """Mark codes, so that deterministic methods (PCA, identity) are enriched once, not once per seed."""
    parts = (codes.indptr, codes.indices, codes.data)
    return codes.shape, codes.nnz, *(zlib.crc32(np.ascontiguousarray(part)) for part in parts)


def enrich(
    dataset: Any,
    obs: pd.DataFrame,
    fits: Mapping[tuple[str, int], Any],
    config: Enrichment,
    folder: Path,
    *,
    gene_sets: Mapping[str, Mapping[str, list[str]]] | None = None,
    structures: Iterable[str | Path] = (),
    ontology: nx.DiGraph | None = None,
    methods: Mapping[str, str] | None = None,
    place: Mapping[str, str] | None = None,
) -> None:
    """Enrich all dictionaries of one (data set, model, whitening) and write one table per kind of enrichment.

    A weight-shuffled model is no special case: its codes go through the same call, and its tables lie beside.

    Parameters
    ----------
    dataset
        The prepared data set (card, and expression or annotations).
    obs
        One row per sample, in the order of the codes: control, group, split, labels.
    fits
        (dictionary name, seed) → Codes of all samples. Each is looked up once, in order.
    config
        Which enrichments run, and their settings.
    folder
        Where the tables of `tables.TABLES` are written, as {table}.parquet: all of them, empty where nothing applies.
    gene_sets
        Collection → set name → gene symbols, for single cells.
    structures
        PDB or mmCIF files named after proteins; without any, no atom is tested in space.
    ontology
        Parents of the sets' terms, from `read_ontology`, or None.
    methods
        Dictionary name → method; by default the name itself.
    place
        dataset, model, whitening for the columns of these names; by default the last three parts of `folder`.

    Raises
    ------
    DataError
        Codes and samples differ in number; a label is missing or numeric; gene sets or residues are asked for where the
        data hold no genes or no proteins.
    """
    folder = Path(folder)
    place = dict(zip(("dataset", "model", "whitening"), folder.parts[-3:])) if place is None else dict(place)
    methods = dict(methods or {})
    modality = str(dataset.card["modality"])
    if gene_sets and modality != "cells":
        raise DataError(f"enrichment.gene_sets needs single cells, but the data set holds {modality}: leave it empty")
    if config.residues and modality != "proteins":
        raise DataError(f"enrichment.residues needs proteins, but the data set holds {modality}: turn it off")
    if not (obs["split"] == "test").any():
        raise DataError("no sample is in the test split: check dataset.split")
    labels, ordinal = choose(obs, dataset.card, config), choose_ordinal(obs, dataset.card, config)
    comparisons = choose_perturbations(obs, dataset.card, config)
    groups = obs["group"].astype(str).to_numpy()
    genes = None
    if gene_sets:
        data = dataset.anndata()
        if not obs.index.equals(data.obs_names):
            raise DataError(
                "gene sets: expression and codes are not of the same samples in the same order: embed again"
            )
        genes = GeneSets(data, obs, gene_sets, config, ontology)
    concepts = choose_concepts(obs, dataset.annotations(), config.min_proteins) if config.residues else None
    structures = list(structures)
    places = read_structures(structures, obs) if structures else None
    train = (obs["split"] == "train").to_numpy()

    frames: dict[str, list[pd.DataFrame]] = {name: [] for name in TABLES}
    seen: dict[tuple, dict[str, pd.DataFrame]] = {}
    for name, seed in track(fits, description="enrichment, dictionary"):
        if config.dictionaries is not None and name not in config.dictionaries:
            continue
        codes = fits[name, seed].to_scipy()
        if codes.shape[0] != len(obs):
            raise DataError(
                f"codes of dictionary {name}, seed {seed}, have {codes.shape[0]} rows, but there are {len(obs)} "
                "samples: encode them again"
            )
        mark = _mark(codes)
        if mark not in seen:
            seen[mark] = {
                "labels": enrich_labels(codes, labels, train, config),
                "label_trends": enrich_trends(codes, ordinal, config),
                "perturbations": enrich_perturbations(codes, comparisons, groups, config),
            }
            if concepts is not None:
                found, counts = enrich_residues(codes, concepts, config)
                split_by = dataset.card.get("split_by", "protein")
                seen[mark] |= {"residues": found, "residue_counts": counts.assign(split_by=split_by)}
            if places is not None:
                seen[mark]["residue_structure"] = near_in_space(codes, obs, places, config)
        for table, frame in seen[mark].items():
            frames[table].append(frame.assign(dictionary=name, seed=seed))
        if genes is not None:
            genes.add((name, seed), codes, mark)
        logger.info("enriched %s, seed %d", name, seed)
    if genes is not None:
        frames |= genes.run()
    for table, found in frames.items():
        found = [each.assign(method=each["dictionary"].map(lambda key: methods.get(key, key))) for each in found]
        write(table, found, place, folder)
