"""Eigenvalue slope: how fast variance falls from one principal direction to the next, in activations and in atoms."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from conceptome.measures.rows import choose_rows, seeded
from conceptome.measures.tables import ESTIMATE, FIT, PLACE
from conceptome.statistics import interval, jackknife_groups

if TYPE_CHECKING:
    import pandas as pd

    from conceptome.config.further import EigenvalueSlope
    from conceptome.measures.space import Space

_SLOPE = {
    "slope": "float64",
    **ESTIMATE,
    "r2": "float64",
    "ranks": "int64",
    "d": "int64",
    "n": "int64",
}
TABLES: dict[str, dict[str, str]] = {
    "eigenvalue_slope": {**FIT, **_SLOPE},
    "eigenvalue_slope_activations": {**PLACE, **_SLOPE},
}


def eigenvalues(x: np.ndarray) -> np.ndarray:
    """Positive eigenvalues of the covariance of rows x (n, d), descending; at most min(n − 1, d)."""
    centred = x - x.mean(axis=0)
    # The smaller of the two products has the same positive eigenvalues.
    product = centred.T @ centred if x.shape[1] <= len(x) else centred @ centred.T
    values = np.linalg.eigvalsh(product)[::-1] / max(len(x) - 1, 1)
    values = values[: min(len(x) - 1, x.shape[1])]
    return values[values > 1e-10 * max(values[0], 1e-300)] if len(values) else values


def power_law(values: np.ndarray, ranks: int) -> tuple[float, float]:
    """Slope of log λ_k on log k over the first `ranks` eigenvalues by least squares, and the R² of the line.

    Returns
    -------
    slope, r2
        slope is −α for λ_k ∝ k^−α; NaN with fewer than three eigenvalues.
    """
    y = np.log(values[:ranks])
    if len(y) < 3:
        return np.nan, np.nan
    x = np.log(np.arange(1, len(y) + 1))
    x, y = x - x.mean(), y - y.mean()
    slope = float(x @ y / (x @ x))
    return slope, float((x @ y) ** 2 / (x @ x) / max(y @ y, 1e-300))


def slope_row(x: np.ndarray, groups: np.ndarray, config: EigenvalueSlope, *words: object) -> dict[str, float]:
    """Slope of one cloud of points x (n, d) with its interval and null; `words` name its randomness."""
    x = x.astype(np.float64)
    values = eigenvalues(x)
    ranks = max(int(config.fitted * len(values)), min(3, len(values)))
    slope, r2 = power_law(values, ranks)
    low, high = jackknife_groups(
        lambda rows: power_law(eigenvalues(x[rows]), ranks)[0],
        groups,
        slope,
        folds=config.folds,
        confidence=config.confidence,
        seed=seeded(config.seed, "eigenvalue_slope", "folds", *words),
    )
    rng = np.random.default_rng(seeded(config.seed, "eigenvalue_slope", "null", *words))
    null = [power_law(eigenvalues(rng.normal(size=x.shape)), ranks)[0] for _ in range(config.null_draws)]
    null_low, null_high = interval(null, config.confidence)
    return {
        "slope": slope,
        "low": float(low),
        "high": float(high),
        "null": float(np.mean(null)),
        "null_low": float(null_low),
        "null_high": float(null_high),
        "r2": r2,
        "ranks": ranks,
        "d": x.shape[1],
        "n": len(x),
    }


def measure(space: Space, config: EigenvalueSlope) -> dict[str, list[pd.DataFrame]]:
    """Fit a power law to the eigenvalues of the activations and of the atoms of every dictionary.

    A slope of 0 is a round cloud, a steep one a cloud that few directions hold. The line is fitted to the first share
    `fitted` of the ranks, on logarithmic axes; R² says whether it is a line at all. Null: isotropic Gaussian clouds of
    the same number of points and dimensions, whose sample eigenvalues fall too. Intervals: jackknife over groups of
    samples, or over atoms.

    References
    ----------
    Li, Michaud, Baek, Engels, Sun and Tegmark, "The Geometry of Concepts: Sparse Autoencoder Feature Structure"
    (arXiv 2410.19750, Entropy 2025), section 5 (the galaxy scale).
    """
    import pandas as pd

    rows = choose_rows(np.ones(len(space.split), dtype=bool), config.max_rows, seeded(config.seed, "eigenvalue_slope"))
    activations = slope_row(space.white(rows), space.groups[rows], config, "activations")
    of_atoms = []
    seen: dict[bytes, dict[str, float]] = {}
    for name, seed, dictionary, _ in space.each_fit():
        atoms = np.asarray(dictionary.atoms)
        # Deterministic methods give the same atoms for every seed.
        key = atoms.tobytes()
        if key not in seen:
            seen[key] = slope_row(atoms, np.arange(len(atoms)), config, name)
        of_atoms.append({**seen[key], "dictionary": name, "method": space.methods[name], "seed": seed})
    return {
        "eigenvalue_slope": [pd.DataFrame(of_atoms)] if of_atoms else [],
        "eigenvalue_slope_activations": [pd.DataFrame([activations])],
    }
