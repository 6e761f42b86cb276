"""Gene sets: GMT files, and which genes of the data each set holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from conceptome.errors import DataError

if TYPE_CHECKING:
    from scipy import sparse


def read_gmt(path: str | Path) -> dict[str, list[str]]:
    """Read a GMT file: one set per line, tab-separated name, description, gene symbols.

    Weights after a comma (`GENE,1.0`, as some exports carry) are dropped, and repeated symbols kept once. A name that
    occurs twice is told apart by its description.

    Returns
    -------
    dict
        Set name → gene symbols, in the order of the file.

    Raises
    ------
    DataError
        A line has no gene, two sets cannot be told apart, the file is empty or no text.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise DataError(
            f"{path.name} is not a text file: give a GMT file (name, description, genes; by tabs)"
        ) from None
    sets: dict[str, list[str]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, *rest = line.rstrip("\n").split("\t")
        genes = [gene.split(",")[0].strip() for gene in rest[1:]]
        genes = list(dict.fromkeys(gene for gene in genes if gene))
        name = name.strip()
        if not name or not genes:
            raise DataError(f"{path.name}, line {number}: a GMT line is name, description, genes, separated by tabs")
        if name in sets:
            name = f"{name} ({rest[0].strip()})"
        if name in sets:
            raise DataError(f"{path.name}, line {number}: the set '{name}' occurs twice: give each set one name")
        sets[name] = genes
    if not sets:
        raise DataError(f"{path.name} holds no gene set")
    return sets


@dataclass(frozen=True)
class SetIndex:
    """Gene sets as rows over the background's genes.

    Attributes
    ----------
    collection, term
        (s,) str, whose set it is and its name.
    members
        (s, G) float32 CSR indicator.
    n_genes, n_overlap
        (s,) int64, genes of the set in the file, and in the background.
    """

    collection: np.ndarray
    term: np.ndarray
    members: sparse.csr_matrix
    n_genes: np.ndarray
    n_overlap: np.ndarray

    def __len__(self) -> int:
        return len(self.term)


def index_sets(
    gene_sets: Mapping[str, Mapping[str, Sequence[str]]], background: Sequence[str], min_genes: int, max_genes: int
) -> SetIndex:
    """Place gene sets on the background and keep those of a testable size.

    Parameters
    ----------
    gene_sets
        Collection → set name → gene symbols.
    background
        (G,) unique symbols: the genes against which a set is tested.
    min_genes, max_genes
        Bounds on the genes of a set within the background.

    Raises
    ------
    DataError
        A collection shares fewer than `min_genes` symbols with the background: another kind of identifier.
    """
    from scipy import sparse

    place = {gene: position for position, gene in enumerate(background)}
    collections, terms, sizes, overlaps, columns = [], [], [], [], []
    for collection, sets in gene_sets.items():
        union = {gene for genes in sets.values() for gene in genes}
        if len(union & place.keys()) < min_genes:
            example = next(iter(background), "none")
            raise DataError(
                f"gene sets {collection}: {len(union & place.keys())} of {len(union)} symbols are among the "
                f"{len(place)} expressed genes (e.g. '{example}'): the data need gene symbols "
                "of the same species (dataset.gene_symbols names their column)"
            )
        for term, genes in sets.items():
            found = sorted(place[gene] for gene in genes if gene in place)
            if min_genes <= len(found) <= max_genes:
                collections.append(collection)
                terms.append(term)
                sizes.append(len(genes))
                overlaps.append(len(found))
                columns.append(found)
    indptr = np.concatenate([[0], np.cumsum(overlaps)]).astype(np.int64)
    indices = np.concatenate([*columns, []]).astype(np.int64)
    members = sparse.csr_matrix(
        (np.ones(len(indices), dtype=np.float32), indices, indptr), shape=(len(terms), len(place))
    )
    return SetIndex(
        np.array(collections, dtype=object),
        np.array(terms, dtype=object),
        members,
        np.array(sizes, dtype=np.int64),
        np.array(overlaps, dtype=np.int64),
    )
