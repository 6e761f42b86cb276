"""What adapters share: their return type, the table they read, their training rows, torch's threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from conceptome.activations import describe_not_finite
from conceptome.errors import DataError

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from anndata import AnnData
    from scipy.sparse import csr_matrix

    from conceptome.config.models import Esm2, Layered
    from conceptome.datasets import Dataset

ROWS = 4096


@dataclass(frozen=True)
class Embedding:
    """What an adapter returns: a stream of (rows, d) arrays in the order of obs, and what the model says of itself.

    Attributes
    ----------
    batches
        Arrays (rows, d); with `also`, (1 + number of further layers, rows, d), the layer itself first.
    decoder
        For a model that was trained here: the arrays of what it makes of these activations further on.
    obs
        One row per activation where these are not the samples of the data set (a protein's mean, a cell's genes).
    also
        Further layers of the same forward pass.
    from_row
        The batches from a row on, the same bits as in the whole stream: what an interrupted job goes on with.
    """

    batches: Iterable[np.ndarray]
    card: dict[str, Any]
    decoder: dict[str, np.ndarray] | None = None
    obs: pd.DataFrame | None = None
    also: tuple[int, ...] = ()
    from_row: Callable[[int], Iterable[np.ndarray]] | None = None


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Run torch on this many threads inside the block."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def computing(config: Esm2 | Layered) -> AbstractContextManager:
    """Give the context in which a model runs: as it is, or its matrix products in bfloat16 (`compute: bfloat16`).

    Norms, softmax and the residual stream stay in float32 there: that is torch's own choice of operations.
    """
    if config.compute == "float32":
        return nullcontext()
    import torch

    return torch.autocast("cpu", dtype=torch.bfloat16)


def adam(parameters: list[torch.nn.Parameter], learning_rate: float) -> Callable[[], None]:
    """A step of Adam that clears the gradients it used; making a torch.optim.Adam would import a compiler."""
    import torch
    from torch.optim.adam import adam as step

    moments = [[torch.zeros_like(p) for p in parameters] for _ in range(2)]
    steps = [torch.zeros(()) for _ in parameters]
    rates = {"lr": learning_rate, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0}

    def move() -> None:
        with torch.no_grad():
            gradients = [p.grad for p in parameters]
            step(parameters, gradients, *moments, [], steps, amsgrad=False, maximize=False, **rates)
        for p in parameters:
            p.grad = None

    return move


def table(dataset: Dataset, adapter: str) -> AnnData:
    """Return the samples × features table of a data set, in the order of its obs.

    Raises
    ------
    DataError
        The data set is of proteins or images and has no such table, or its table and its obs disagree.
    """
    if dataset.card["modality"] == "proteins":
        raise DataError(f"model '{adapter}' reads a table of features, but the data set is of proteins; use esm2")
    if dataset.card["modality"] == "images":
        raise DataError(f"model '{adapter}' reads a table of features, but the data set is of images; use onnx")
    adata = dataset.anndata()
    if list(adata.obs_names) != list(dataset.obs.index):
        raise DataError(f"model '{adapter}': the rows of X.h5ad and of obs.parquet differ; prepare the data set again")
    return adata


def training_rows(dataset: Dataset, adapter: str) -> np.ndarray:
    """(n,) bool: samples of the training split, the only ones a model is fitted on.

    Raises
    ------
    DataError
        The training split is empty.
    """
    rows = (dataset.obs["split"] == "train").to_numpy()
    if not rows.any():
        raise DataError(f"model '{adapter}' is fitted on the training split, which is empty: mend dataset.split")
    return rows


def variable_genes(adata: AnnData) -> np.ndarray:
    """(n_features,) bool: the highly variable genes where the data set marks them, else all features."""
    if "highly_variable" in adata.var:
        return adata.var["highly_variable"].to_numpy(dtype=bool)
    return np.ones(adata.n_vars, dtype=bool)


def need_counts(adata: AnnData, adapter: str) -> None:
    """Refuse a data set without raw counts.

    Raises
    ------
    DataError
        There is no layer `counts`.
    """
    if "counts" not in adata.layers:
        raise DataError(
            f"model '{adapter}' is trained on raw counts, and this data set has none: declare them (dataset.counts), "
            "or use model 'pca'"
        )


def training_counts(adata: AnnData, dataset: Dataset, adapter: str) -> tuple[csr_matrix, np.ndarray, dict[str, int]]:
    """Counts of the variable genes, and the training cells that have any.

    Returns
    -------
    counts (n, n_genes) float32; positions of the training cells; their number, that of the genes, and that of training
    cells without any count, which cannot be trained on, only encoded: models of counts take the logarithm of a total

    Raises
    ------
    DataError
        Fewer than two training cells have counts.
    """
    genes = variable_genes(adata)
    counts = adata.layers["counts"][:, genes].astype(np.float32)
    rows = training_rows(dataset, adapter)
    empty = np.asarray(counts.sum(axis=1)).ravel() == 0
    chosen = np.flatnonzero(rows & ~empty)
    if len(chosen) < 2:
        raise DataError(f"model '{adapter}' needs at least 2 training cells with counts; there are {len(chosen)}")
    sizes = {"n": len(chosen), "n_genes": int(genes.sum()), "n_without_counts": int((rows & empty).sum())}
    return counts, chosen, sizes


def dense(block: Any) -> np.ndarray:
    """Turn a sparse or dense block of rows into a dense float32 array."""
    return np.asarray(block.toarray() if hasattr(block, "toarray") else block, dtype=np.float32)


def dense_batches(matrix: Any, rows: int = ROWS) -> Iterator[np.ndarray]:
    """Iterate over a sparse or dense matrix as dense float32 (rows, d) arrays."""
    for start in range(0, matrix.shape[0], rows):
        yield dense(matrix[start : start + rows])


def refuse_not_finite(matrix: Any, names: list[str]) -> None:
    """Refuse NaN and infinite input before a model is fitted on it.

    Raises
    ------
    DataError
        One line with the feature and the count.
    """
    bad = np.zeros(matrix.shape[1], dtype=np.int64)
    for block in dense_batches(matrix):
        bad += (~np.isfinite(block)).sum(axis=0)
    if bad.any():
        raise DataError(describe_not_finite(bad, names).replace("activations: dimension", "features: column"))
