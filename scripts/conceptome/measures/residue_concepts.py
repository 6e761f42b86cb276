"""Annotated residues as concepts, and atoms in units of their largest code: what measures and enrichment share."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from conceptome.errors import DataError
from conceptome.measures.rows import SPLITS
from conceptome.statistics import permutations

if TYPE_CHECKING:
    import pandas as pd
    from scipy import sparse

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Proteins:
    """The residues of one split, in order, and what is annotated on them.

    Attributes
    ----------
    rows
        (n,) int64, positions of the residues in obs, proteins one after the other.
    starts
        (P + 1,) int64, where each protein begins in `rows`.
    residues
        (n, c) bool CSR: residues of each concept.
    domains
        (n, D) bool CSR: residues of each domain (one annotation of one concept).
    concept
        (D,) int64, the concept of each domain, ascending.
    protein
        (D,) int64, the protein of each domain.
    group
        (P,) object, the unit of independence of each protein.
    whole
        The concepts that cover whole proteins, with each protein in place of a residue; None without such concepts.
        Their columns in `residues` are empty.
    """

    rows: np.ndarray
    starts: np.ndarray
    residues: sparse.csr_matrix
    domains: sparse.csr_matrix
    concept: np.ndarray
    protein: np.ndarray
    group: np.ndarray
    whole: Proteins | None = None

    @property
    def lengths(self) -> np.ndarray:
        """(P,) residues per protein."""
        return np.diff(self.starts)

    def owner(self) -> np.ndarray:
        """(n,) int64, the protein of each residue."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    def n_domains(self) -> np.ndarray:
        """(c,) int64, domains of each concept that does not cover whole proteins."""
        return np.bincount(self.concept, minlength=self.residues.shape[1])

    def moved(self, seed: list[int]) -> Proteins:
        """Shift all annotations around their proteins, and deal those of whole proteins to others, by group."""
        source = np.argsort(shifted(self.starts, 1, seed)[0])
        whole = self.whole
        if whole is not None:
            dealt = permutations(np.arange(len(self.group)), 1, seed, groups=self.group)[0]
            whole = replace(whole, residues=whole.residues[dealt], domains=whole.domains[dealt])
        return replace(self, residues=self.residues[source], domains=self.domains[source], whole=whole)


@dataclass(frozen=True)
class Concepts:
    """Concepts that occur often enough, and the residues of every split.

    Attributes
    ----------
    names, types, notes
        Concept: an annotation type, or "type|note"; notes are None for whole types.
    kinds
        'segment', 'point' or 'protein'.
    n_proteins
        (c,) int64, proteins with the concept, over all splits.
    parts
        train, validation, test → residues.
    """

    names: list[str]
    types: list[str]
    notes: list[str | None]
    kinds: list[str]
    n_proteins: np.ndarray
    parts: dict[str, Proteins]


def choose_concepts(obs: pd.DataFrame, annotations: pd.DataFrame, min_proteins: int) -> Concepts:
    """Find the concepts that enough proteins of each split carry.

    A "type|note" that covers all annotations of its type is the type itself, and is not counted a second time.

    Parameters
    ----------
    obs
        One row per residue: protein, position (1-based), group, split.
    annotations
        protein, type, note, start, end (1-based, inclusive).
    min_proteins
        Proteins with the concept in each of train, validation and test.

    Raises
    ------
    DataError
        A column is missing; an annotation lies beyond the residues; a split has no protein; no concept is left.
    """
    import pandas as pd

    for column in ("protein", "position", "group", "split"):
        if column not in obs:
            raise DataError(
                f"residues: obs has no column '{column}': prepare the proteins again, or embed residues (pool: tokens)"
            )
    protein = obs["protein"].astype(str).to_numpy()
    position = obs["position"].to_numpy(dtype=np.int64)
    split = obs["split"].astype(str).to_numpy()
    number_of, proteins = pd.factorize(protein)
    # One number per (protein, position): a look-up by pairs of text and number would cost more than all counts.
    span = int(max(position.max(), annotations["end"].max())) + 1
    place = number_of * span + position
    by_place = np.argsort(place, kind="stable")

    table = annotations[annotations["protein"].astype(str).isin(proteins)].reset_index(drop=True)
    of_protein = pd.Series(split[np.unique(number_of, return_index=True)[1]], index=proteins)
    table = table.assign(split=table["protein"].astype(str).map(of_protein))
    whole = table.assign(concept=table["type"].astype(str), name=None)
    noted = table[table["note"].notna() & (table["note"].astype(str) != "")]
    noted = noted.assign(concept=noted["type"].astype(str) + "|" + noted["note"].astype(str), name=noted["note"])
    same = noted.groupby("concept")["type"].size() == noted.groupby("concept")["type"].first().map(
        table.groupby("type").size()
    )
    noted = noted[~noted["concept"].map(same).astype(bool)]
    every = pd.concat([whole, noted], ignore_index=True)
    carriers = every.groupby(["concept", "split"])["protein"].nunique().unstack(fill_value=0)
    carriers = carriers.reindex(columns=list(SPLITS), fill_value=0)
    names = sorted(carriers.index[(carriers >= min_proteins).all(axis=1)])
    logger.info("residues: %d of %d concepts have %d proteins in every split", len(names), len(carriers), min_proteins)
    if not names:
        raise DataError(
            f"residues: no annotation is carried by {min_proteins} proteins in each of train, validation and test: "
            "give more proteins or lower enrichment.min_proteins"
        )
    every = every[every["concept"].isin(names)]
    number = {name: i for i, name in enumerate(names)}
    first = every.drop_duplicates("concept").set_index("concept")
    kinds = _kinds(every, pd.Series(protein).value_counts()).reindex(names)
    group = obs["group"].astype(str).to_numpy(dtype=object)

    parts = {}
    for part in SPLITS:
        rows = np.flatnonzero(split == part)
        if not len(rows):
            raise DataError(f"residues: no protein is in the {part} split: check dataset.split")
        changes = np.flatnonzero(protein[rows][1:] != protein[rows][:-1]) + 1
        starts = np.concatenate([[0], changes, [len(rows)]]).astype(np.int64)
        order = {name: i for i, name in enumerate(protein[rows[starts[:-1]]])}
        if len(order) != len(starts) - 1:
            raise DataError(
                "residues: the residues of a protein are not in consecutive rows: prepare the proteins again"
            )
        domains = every[every["split"] == part]
        domains = domains.assign(number=domains["concept"].map(number))
        # Two databases of evidence may annotate the very same stretch twice: one domain.
        domains = domains.drop_duplicates(["number", "protein", "start", "end"])
        domains = domains.sort_values(["number", "protein", "start", "end"], kind="stable")
        length = (domains["end"] - domains["start"] + 1).to_numpy(dtype=np.int64)
        column = np.repeat(np.arange(len(domains)), length)
        offset = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
        at = pd.Index(proteins).get_indexer(domains["protein"].astype(str))[column] * span
        at += domains["start"].to_numpy(dtype=np.int64)[column] + offset
        found = by_place[np.minimum(np.searchsorted(place[by_place], at), len(place) - 1)]
        lost = np.flatnonzero(place[found] != at)
        if len(lost):
            name, missing = domains["protein"].iloc[column[lost[0]]], at[lost[0]] % span
            raise DataError(
                f"residues: an annotation of protein '{name}' covers position {missing}, which has no residue"
            )
        local = np.searchsorted(rows, found)
        concept = domains["number"].to_numpy(dtype=np.int64)
        carrier = domains["protein"].astype(str).map(order).to_numpy(dtype=np.int64)
        own = {"rows": rows, "starts": starts, "group": group[rows[starts[:-1]]]}
        covers = (kinds == "protein").to_numpy()[concept]
        at_residue = ~covers[column]
        whole = None
        if covers.any():
            each = {"rows": np.arange(len(order)), "starts": np.arange(len(order) + 1), "group": own["group"]}
            places, kept = carrier[covers], np.flatnonzero(covers)
            whole = _proteins(each, places, np.arange(len(kept)), concept[kept], carrier[kept], len(names))
        kept = np.flatnonzero(~covers)
        renumbered = np.cumsum(~covers) - 1
        part_of = renumbered[column[at_residue]]
        found_here = _proteins(own, local[at_residue], part_of, concept[kept], carrier[kept], len(names))
        parts[part] = replace(found_here, whole=whole)
    return Concepts(
        names=names,
        types=[str(first.loc[name, "type"]) for name in names],
        notes=[None if first.loc[name, "name"] is None else str(first.loc[name, "name"]) for name in names],
        kinds=list(kinds),
        n_proteins=carriers.loc[names].sum(axis=1).to_numpy(dtype=np.int64),
        parts=parts,
    )


def _kinds(annotations: pd.DataFrame, lengths: pd.Series) -> pd.Series:
    """Say what the annotations of each concept mark: single residues, whole proteins, or stretches."""
    import pandas as pd

    length = annotations["end"] - annotations["start"] + 1
    is_whole = length == annotations["protein"].astype(str).map(lengths)
    table = annotations.assign(point=length == 1, whole=is_whole).groupby("concept")[["point", "whole"]].all()
    return pd.Series(np.select([table["point"], table["whole"]], ["point", "protein"], "segment"), index=table.index)


def _proteins(
    own: dict[str, np.ndarray],
    places: np.ndarray,
    domain: np.ndarray,
    concept: np.ndarray,
    protein: np.ndarray,
    n_concepts: int,
) -> Proteins:
    """Build `Proteins` from the place (row) and the domain of every annotated residue."""
    from scipy import sparse

    n = own["starts"][-1]
    true = np.ones(len(places), dtype=bool)
    residues = sparse.csr_matrix((true, (places, concept[domain])), shape=(n, n_concepts))
    residues.data[:] = True
    domains = sparse.csr_matrix((true, (places, domain)), shape=(n, len(concept)))
    return Proteins(**own, residues=residues, domains=domains, concept=concept, protein=protein)


@dataclass(frozen=True)
class Scale:
    """Atoms in units of their maximum on training residues.

    If any training code is negative (raw neurons, PCA, ICA, signed sparse codes), the negated atoms follow as further
    atoms; those without a positive value on the training residues are left out.

    Attributes
    ----------
    atom, sign
        (a,) int64: which atom, and +1 or −1.
    top
        (a,) float32: the largest value on the training residues.
    """

    atom: np.ndarray
    sign: np.ndarray
    top: np.ndarray

    @classmethod
    def of(cls, train: sparse.csr_matrix) -> Scale:
        """Take the maxima of training codes (n, m)."""
        # A column that holds no zero at all cannot tell: only values beyond zero are of use.
        highest, lowest = np.zeros((2, train.shape[1]), dtype=train.dtype)
        np.maximum.at(highest, train.indices, train.data)
        np.minimum.at(lowest, train.indices, train.data)
        up, down = np.flatnonzero(highest > 0), np.flatnonzero(lowest < 0)
        return cls(
            np.concatenate([up, down]),
            np.repeat(np.array([1, -1]), [len(up), len(down)]),
            np.concatenate([highest[up], -lowest[down]]).astype(np.float32),
        )

    def apply(self, codes: sparse.csr_matrix) -> sparse.csc_matrix:
        """Scale codes (n, m): (n, a) float32 of their positive values."""
        from scipy import sparse

        values = codes.tocsc()
        parts = []
        for sign in (1, -1):
            own = self.sign == sign
            # Slicing copies: where all atoms stay, as in dense codes, it would only cost memory.
            chosen = values if own.sum() == values.shape[1] else values[:, self.atom[own]]
            keep = chosen.data > 0 if sign > 0 else chosen.data < 0
            indptr = np.concatenate([[0], np.cumsum(keep)])[chosen.indptr]
            data = chosen.data[keep] * np.repeat((sign / self.top[own]).astype(np.float32), np.diff(indptr))
            parts.append(sparse.csc_matrix((data, chosen.indices[keep], indptr), shape=(codes.shape[0], own.sum())))
        return sparse.hstack(parts, format="csc")


def above(values: sparse.csc_matrix, threshold: float) -> sparse.csc_matrix:
    """Where (n, a) positive values exceed a threshold ≥ 0: float32 indicator."""
    from scipy import sparse

    keep = values.data > threshold
    indptr = np.concatenate([[0], np.cumsum(keep)])[values.indptr]
    return sparse.csc_matrix((np.ones(int(keep.sum()), np.float32), values.indices[keep], indptr), shape=values.shape)


def shifted(starts: np.ndarray, n: int, seed: list[int]) -> np.ndarray:
    """Draw circular shifts within proteins: (n_draws, n_residues) int64, where each residue goes to."""
    rng = np.random.default_rng(seed)
    lengths = np.diff(starts)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    within = np.arange(starts[-1]) - starts[owner]
    # From 1 on: a shift of nothing is the observation itself, not its null.
    offsets = np.stack([rng.integers(np.minimum(1, lengths - 1), lengths) for _ in range(n)])
    return starts[owner] + (within - offsets[:, owner]) % lengths[owner]
