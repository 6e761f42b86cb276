"""Principal components of normalised expression or features, fitted on the training split: the baseline model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conceptome.errors import DataError
from conceptome.models.base import Embedding, dense_batches, refuse_not_finite, table, training_rows, variable_genes

if TYPE_CHECKING:
    from conceptome.config.models import Pca
    from conceptome.datasets import Dataset

# An exact eigendecomposition of the features' covariance up to here; iterative (seeded start) beyond.
MAX_EXACT = 5000


def embed(config: Pca, dataset: Dataset, *, threads: int, weights: Path | None) -> Embedding:
    """Project every sample on the first components of the training split.

    Highly variable genes are used where the data set marks them. The sign of a component is fixed: its largest loading
    is positive.

    Raises
    ------
    DataError
        More components than training samples or features; NaN or infinite features.
    """
    from sklearn.decomposition import PCA

    adata = table(dataset, "pca")
    used = variable_genes(adata)
    matrix = adata.X if used.all() else adata.X[:, used]
    names = [str(name) for name in adata.var_names[used]]
    refuse_not_finite(matrix, names)
    training = matrix[np.flatnonzero(training_rows(dataset, "pca"))].astype(np.float64)
    n, d = training.shape
    if config.n_components > min(n - 1, d):
        raise DataError(
            f"model 'pca': {config.n_components} components cannot be had from {n} training samples × {d} features; "
            f"n_components can be at most {min(n - 1, d)}"
        )
    solver = "covariance_eigh" if d <= MAX_EXACT else "arpack"
    model = PCA(config.n_components, svd_solver=solver, random_state=config.seed).fit(training)
    largest = np.argmax(np.abs(model.components_), axis=1)
    signs = np.sign(model.components_[np.arange(len(largest)), largest])
    components = model.components_ * signs[:, None]
    card = {
        "layer": f"components 1–{config.n_components}",
        "training": {
            "n": n,
            "n_features": d,
            "solver": solver,
            "explained_variance_ratio": model.explained_variance_ratio_.tolist(),
        },
        "notes": [f"fitted on {n} training samples × {d} features"],
    }
    return Embedding(_project(matrix, model.mean_, components), card)


def _project(matrix: Any, mean: np.ndarray, components: np.ndarray) -> Iterator[np.ndarray]:
    for block in dense_batches(matrix):
        yield ((block - mean) @ components.T).astype(np.float32)
