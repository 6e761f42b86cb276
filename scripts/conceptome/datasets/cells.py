"""Single-cell counts: any .h5ad file, and the quality control and normalisation that all cell readers share."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conceptome.datasets import schema
from conceptome.datasets.tables import need_column, suggest
from conceptome.errors import DataError

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from scipy import sparse

    from conceptome.config.datasets import CellsBase, H5ad, QualityControl

logger = logging.getLogger(__name__)


def prepare(config: H5ad, inputs: dict[str, Path], folder: Path) -> None:
    """Read any .h5ad file. See `conceptome.datasets.prepare`."""
    path = inputs["h5ad"]
    where = path.name
    source = schema.read_h5ad(path)
    matrix, var = _matrix(source, config.counts or config.normalised, where)
    symbols, reports = gene_symbols(var, config.gene_symbols, where)
    schema.check_ids(source.obs_names, where)
    frame = source.obs.copy()
    frame.index = frame.index.astype(str)
    # Declared columns are checked before the long work, so that a misspelt name costs a second and not minutes.
    declared = [(config.group, "group"), (config.batch, "batch"), *((name, "label") for name in config.labels)]
    for name, purpose in declared:
        if name is not None:
            need_column(name, frame.columns, purpose, where)
    control = schema.control_mask(frame, config.control, where)
    schema.check_finite(matrix, symbols, where, "remove or impute them before")
    counts = config.counts is not None
    data, kept, counted = from_matrix(config, matrix, symbols, frame.index, counts=counts, where=where)
    obs, card = schema.build(
        config,
        frame.loc[data.obs_names],
        where=where,
        modality="cells",
        unit="cell",
        n_features=data.n_vars,
        control=None if control is None else control[kept],
        control_is=None if config.control is None else schema.control_text(config.control),
        group=config.group,
        batch=config.batch,
        reports={**reports, **counted},
    )
    schema.write(folder, obs, card, data)


def _matrix(source: AnnData, name: str, where: str) -> tuple[sparse.csr_matrix, pd.DataFrame]:
    """Take the matrix called `name` ('X', 'raw' or a layer) as CSR float32, and its var."""
    from scipy import sparse

    if name == "X":
        values, var = source.X, source.var
    elif name == "raw":
        if source.raw is None:
            raise DataError(f"{where}: there is no .raw; {suggest(name, ['X', *source.layers])}")
        values, var = source.raw.X, source.raw.var
    elif name in source.layers:
        values, var = source.layers[name], source.var
    else:
        known = ["X", *(["raw"] if source.raw is not None else []), *source.layers]
        raise DataError(f"{where}: layer '{name}' does not exist; {suggest(name, known)}")
    if values is None:
        raise DataError(f"{where}: .X is empty: name the layer that holds the values (counts or normalised)")
    return sparse.csr_matrix(values, dtype=np.float32), var


def gene_symbols(var: pd.DataFrame, column: str | None, where: str) -> tuple[np.ndarray, dict[str, Any]]:
    """Find the gene symbol of every row of `var`; count rows without one.

    A row without a symbol (empty, or only an Ensembl accession) keeps the name it has in the index and can match no
    gene set.

    Returns
    -------
    symbols : numpy.ndarray
        str, not yet unique.
    reports : dict
        `unknown_gene_symbols`: how many, and the first few.
    """
    import pandas as pd

    index = var.index.astype(str)
    names = index.to_series() if column is None else var[need_column(column, var.columns, "gene symbol", where)]
    symbols = pd.Series(schema.text_column(pd.Series(np.asarray(names, dtype=object))).to_numpy(object))
    missing = symbols.isna() | symbols.fillna("").str.strip().isin(["", "-", "nan", "NA", "None"])
    symbols = symbols.where(~missing, pd.Series(index.to_numpy(object))).astype(str)
    unknown = missing | symbols.str.match(r"ENS[A-Z]*G\d{6,}")
    report = {"n": int(unknown.sum()), "first": [str(name) for name in symbols[unknown].head(5)]}
    return symbols.to_numpy(object), {"unknown_gene_symbols": report}


def unique_genes(
    matrix: sparse.csr_matrix, symbols: np.ndarray, *, counts: bool
) -> tuple[sparse.csr_matrix, np.ndarray, dict[str, Any]]:
    """Make gene symbols unique.

    Counts of rows that share a symbol (several accessions of one gene) are summed, since counts add. Values that are
    already normalised do not add: there the first row keeps the symbol and later ones become 'symbol-1', 'symbol-2' ….

    Parameters
    ----------
    matrix
        n × p, CSR float32.
    symbols
        p names.

    Returns
    -------
    matrix, symbols
        n × p', unique names in order of first appearance.
    reports
        `duplicated_gene_symbols`: symbols, columns, and what was done.
    """
    import pandas as pd
    from scipy import sparse

    codes, unique = pd.factorize(symbols)
    repeated = np.bincount(codes) > 1
    report = {
        "n_symbols": int(repeated.sum()),
        "n_columns": int(repeated[codes].sum()),
        "first": [str(name) for name in unique[repeated][:5]],
        "done": "none",
    }
    if repeated.any() and counts:
        report["done"] = "summed"
        sums = sparse.csr_matrix(
            (np.ones(len(codes), np.float32), (np.arange(len(codes)), codes)), shape=(len(codes), len(unique))
        )
        matrix = sparse.csr_matrix(matrix @ sums)
        symbols = np.asarray(unique, dtype=object)
    elif repeated.any():
        from anndata.utils import make_index_unique

        report["done"] = "made unique by a suffix"
        symbols = make_index_unique(pd.Index(symbols)).to_numpy(object)
    return matrix, symbols, {"duplicated_gene_symbols": report}


def check_counts(matrix: sparse.csr_matrix, symbols: np.ndarray, where: str) -> None:
    """Refuse negative and fractional values where raw counts are asked for.

    Raises
    ------
    DataError
        How many values are wrong, and the first gene that has one.
    """
    for wrong, word in ((matrix.data < 0, "negative"), (matrix.data != np.round(matrix.data), "not whole numbers")):
        if wrong.any():
            first = int(matrix.indices[np.argmax(wrong)])
            raise DataError(
                f"{where}: raw counts are asked for, but {int(wrong.sum())} values are {word} (first in gene "
                f"'{symbols[first]}'): name the layer that holds counts, or set counts to null if they are normalised"
            )


def from_matrix(
    config: CellsBase, matrix: sparse.csr_matrix, symbols: np.ndarray, cells: pd.Index, *, counts: bool, where: str
) -> tuple[AnnData, np.ndarray, dict[str, Any]]:
    """Run the shared quality control and normalisation.

    Parameters
    ----------
    matrix
        n × p, CSR float32: raw counts, or (with `counts` false) log-normalised values.
    symbols
        p gene symbols, possibly repeated.
    cells
        n unique sample ids.

    Returns
    -------
    data : AnnData
        n' × p': `.X` log-normalised CSR float32; `.layers['counts']`; `.var['highly_variable']`.
    kept : numpy.ndarray
        Row numbers of the cells kept, ascending.
    reports : dict
        What was dropped, and the duplicated gene symbols.

    Raises
    ------
    DataError
        Values are no counts where counts are asked for, or no cell or gene passes.
    """
    import pandas as pd
    import scanpy
    from anndata import AnnData

    quality: QualityControl = config.quality_control
    if counts:
        check_counts(matrix, symbols, where)
    matrix, symbols, reports = unique_genes(matrix, symbols, counts=counts)
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    data = AnnData(matrix, obs=pd.DataFrame(index=pd.Index(cells, dtype=object)))
    data.var_names = pd.Index(symbols.astype(str), dtype=object)
    data.obs["row"] = np.arange(data.n_obs)
    before = data.shape
    if counts:
        # Gene and mitochondrial filters are statements about counts; normalised data come filtered by their authors.
        passed = np.diff(data.X.indptr) >= quality.min_genes
        few_genes = int((~passed).sum())
        mitochondrial = 0
        if quality.max_percent_mitochondrial is not None:
            genes = data.var_names.str.upper().str.startswith("MT-")
            if not genes.any():
                raise DataError(
                    f"{where}: max_percent_mitochondrial is set, but no gene name begins with 'MT-': set it to null"
                )
            total = np.asarray(data.X.sum(axis=1)).ravel()
            percent = 100 * np.asarray(data.X[:, genes].sum(axis=1)).ravel() / np.maximum(total, 1)
            high = percent > quality.max_percent_mitochondrial
            mitochondrial = int((passed & high).sum())
            passed &= ~high
        data = data[passed].copy()
        if data.n_obs == 0:
            raise DataError(
                f"{where}: none of {before[0]} cells passes quality control (at least {quality.min_genes} genes): "
                "lower quality_control.min_genes"
            )
        scanpy.pp.filter_genes(data, min_cells=max(1, quality.min_cells))
        if data.n_vars == 0:
            raise DataError(
                f"{where}: none of {before[1]} genes is seen in {quality.min_cells} cells: "
                "lower quality_control.min_cells"
            )
        reports["quality_control"] = {
            "cells": before[0],
            "cells_with_few_genes": few_genes,
            "cells_with_high_mitochondrial_share": mitochondrial,
            "genes": before[1],
            "genes_in_few_cells": before[1] - data.n_vars,
        }
    data = data[schema.draw_subsample(data.n_obs, config)].copy()
    data.layers.clear()
    if counts:
        data.layers["counts"] = data.X.copy()
        scanpy.pp.normalize_total(data, target_sum=quality.target_sum)
        scanpy.pp.log1p(data)
        del data.uns["log1p"]
    highly_variable = np.ones(data.n_vars, bool)
    if quality.n_top_genes < data.n_vars:
        highly_variable = top_genes(data, quality.n_top_genes, counts=counts)
    kept = data.obs["row"].to_numpy()
    result = AnnData(data.X, obs=pd.DataFrame(index=data.obs_names), var=pd.DataFrame(index=data.var_names))
    result.obs_names.name, result.var_names.name = "sample_id", "gene"
    result.var["highly_variable"] = highly_variable
    if counts:
        result.layers["counts"] = data.layers["counts"]
    reports["highly_variable_genes"] = int(highly_variable.sum())
    logger.info("%s: %d of %d cells and %d of %d genes kept", where, *_pairs(result.shape, before))
    return result, kept, reports


def _pairs(after: tuple[int, int], before: tuple[int, int]) -> tuple[int, int, int, int]:
    return after[0], before[0], after[1], before[1]


def top_genes(data: AnnData, n: int, *, counts: bool) -> np.ndarray:
    """Mark the n most variable genes: scanpy's 'seurat' dispersions of log-normalised values.

    Values that may be negative (already scaled) have no dispersion: there the variance ranks the genes.

    Returns
    -------
    numpy.ndarray
        bool per gene.
    """
    import scanpy

    if counts or data.X.min() >= 0:
        return scanpy.pp.highly_variable_genes(data, n_top_genes=n, flavor="seurat", inplace=False)[
            "highly_variable"
        ].to_numpy()
    mean = np.asarray(data.X.mean(axis=0)).ravel()
    variance = np.asarray(data.X.multiply(data.X).mean(axis=0)).ravel() - mean**2
    marked = np.zeros(data.n_vars, bool)
    marked[np.argsort(-variance, kind="stable")[:n]] = True
    return marked
