"""What single-cell models that read genes share: counts under the model's gene names, rows of cells or of genes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from conceptome.errors import DataError
from conceptome.models.base import table

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from scipy import sparse

    from conceptome.config.models import CellModel
    from conceptome.datasets import Dataset

# A copy of a gene's name that the reader made unique, and an accession's version.
SUFFIX = re.compile(r"^(ENS[A-Z]*G\d{6,})\.\d+$")


def read_counts(dataset: Dataset, adapter: str) -> tuple[AnnData, sparse.csr_matrix]:
    """Cells of a data set and their raw counts (n × genes).

    Raises
    ------
    DataError
        The data set is not of cells, or has no raw counts.
    """
    if dataset.card["modality"] != "cells":
        raise DataError(f"model '{adapter}' reads single cells, but the data set is of {dataset.card['modality']}")
    adata = table(dataset, adapter)
    if "counts" not in adata.layers:
        raise DataError(
            f"model '{adapter}' reads raw counts, and this data set has none: declare them (dataset.counts)"
        )
    return adata, adata.layers["counts"]


def match_genes(
    names: list[str], token_of: Callable[[str], int | None], adapter: str
) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Find the model's token of each gene; genes of one token are to be summed.

    Returns
    -------
    gather : scipy.sparse.csr_matrix
        (genes, tokens found) of 0 and 1: counts @ gather are counts by token.
    tokens : numpy.ndarray
        int64, ascending.

    Raises
    ------
    DataError
        No gene is known to the model.
    """
    from scipy import sparse

    found = [token_of(SUFFIX.sub(r"\1", name)) for name in names]
    rows = np.array([row for row, token in enumerate(found) if token is not None], dtype=np.int64)
    if not len(rows):
        raise DataError(
            f"none of the data set's {len(names)} genes (first '{names[0]}') is in the vocabulary of model "
            f"'{adapter}': name genes by symbol (dataset.gene_symbols) or Ensembl accession"
        )
    tokens, column = np.unique(np.array([found[row] for row in rows], dtype=np.int64), return_inverse=True)
    gather = sparse.csr_matrix((np.ones(len(rows), np.float32), (rows, column)), shape=(len(names), len(tokens)))
    return gather, tokens


def gene_obs(dataset: Dataset, rows: np.ndarray, genes: Callable[[int], list[str]]) -> pd.DataFrame:
    """One row per gene of a cell, in the order of its tokens: the cell's columns, `gene` and `token`, from 1 on.

    Parameters
    ----------
    rows
        (n,) tokens of each cell.
    genes
        Position of a cell → its genes.
    """
    obs = dataset.obs.iloc[np.repeat(np.arange(len(rows)), rows)].copy()
    obs["token"] = np.concatenate([np.arange(1, count + 1) for count in rows])
    obs["gene"] = [name for cell in range(len(rows)) for name in genes(cell)]
    obs.index = (obs.index.astype(str) + ":" + obs["token"].astype(str)).rename("sample_id")
    return obs


def pool_note(config: CellModel, special: str) -> str:
    """What an activation is, for the card."""
    return {
        "mean": f"one row per cell: the mean of its genes; {special}",
        "cls": "one row per cell: its class token",
        "tokens": f"one row per gene of a cell; {special}",
    }[config.pool]


def nonempty(lengths: np.ndarray, dataset: Dataset, adapter: str) -> None:
    """Refuse cells of which no gene is known to the model.

    Raises
    ------
    DataError
        The first such cell and their number.
    """
    empty = np.flatnonzero(lengths == 0)
    if len(empty):
        raise DataError(
            f"{len(empty)} cell(s) have no counts in genes that model '{adapter}' knows, first "
            f"'{dataset.obs.index[empty[0]]}': leave them out (dataset.quality_control)"
        )


def inverse(tokens: Mapping[str, int]) -> dict[int, str]:
    """Token → name."""
    return {token: name for name, token in tokens.items()}
