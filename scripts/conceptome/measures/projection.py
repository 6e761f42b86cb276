"""Activations in two dimensions, and the spectrum of held-out controls: before and after whitening."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from conceptome.measures.rows import seeded
from conceptome.statistics import bootstrap_groups, group_codes, interval

if TYPE_CHECKING:
    import pandas as pd

    from conceptome.config.evidence import Measures

# obs columns that every data set has; all others are labels.
RESERVED = ("control", "group", "batch", "split")


def axes(x: np.ndarray) -> np.ndarray:
    """First two principal axes of rows x (n, p), (2, p): largest loading positive; with p = 1 the second is zero."""
    centred = x.astype(np.float64) - x.mean(axis=0, dtype=np.float64)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    chosen = vectors[:, np.argsort(-values, kind="stable")[:2]].T
    chosen *= np.sign(chosen[np.arange(len(chosen)), np.abs(chosen).argmax(axis=1)])[:, None]
    return chosen if len(chosen) > 1 else np.vstack([chosen, np.zeros_like(chosen)])


def shares(
    controls: np.ndarray, directions: np.ndarray, groups: np.ndarray, config: Measures, *, white: bool
) -> dict[str, float]:
    """Give the share of the controls' variance along each of two directions, with interval and null.

    Parameters
    ----------
    controls
        (n, p) rows.
    directions
        (2, p) unit vectors.
    groups
        (n,) their groups; the interval resamples them, and holds the directions fixed.
    white
        Whether the directions were fixed beforehand, not chosen to have the largest variance.

    Returns
    -------
    dict
        pc1_share, pc1_share_low, pc1_share_high, pc1_share_null, and so on for pc2. Null: rows alike in all directions,
        1 / p along one that was fixed, (1 + √(p / n))² / p (the upper edge; at most 1) along the largest.

    References
    ----------
    Marchenko and Pastur 1967 (the edge).
    """
    from scipy.sparse import csr_array

    n, p = controls.shape
    centred = controls.astype(np.float64) - controls.mean(axis=0, dtype=np.float64)
    along, whole = (centred @ directions.T) ** 2, (centred**2).sum(axis=1)
    value = along.sum(axis=0) / max(float(whole.sum()), 1e-300)
    low = high = np.full(2, np.nan)
    code, names = group_codes(groups)
    if len(names) > 1:
        weights = bootstrap_groups(groups, config.bootstraps, seeded(config.seed, "shares")).astype(np.float64)
        onto = csr_array((np.ones(n), (code, np.arange(n))), shape=(len(names), n))
        sums = [weights @ (onto @ each) for each in (centred, along, whole[:, None], np.ones((n, 1)))]
        mean = sums[0] / sums[3]
        drawn = (sums[1] / sums[3] - (mean @ directions.T) ** 2) / np.maximum(
            sums[2] / sums[3] - (mean**2).sum(axis=1, keepdims=True), 1e-300
        )
        low, high = interval(drawn, config.confidence)
    null = 1 / p if white else min((1 + np.sqrt(p / n)) ** 2 / p, 1.0)
    found = {}
    for axis in (0, 1):
        name = f"pc{axis + 1}_share"
        found |= {
            name: float(value[axis]), f"{name}_low": float(low[axis]), f"{name}_high": float(high[axis]),
            f"{name}_null": null if axis < p else 0.0,
        }  # fmt: skip
    return found


def projection(
    controls: np.ndarray,
    groups: np.ndarray,
    x: np.ndarray,
    obs: pd.DataFrame,
    config: Measures,
    *,
    white: bool = False,
) -> pd.DataFrame:
    """Project samples on the first two principal axes of the controls.

    Controls that were whitened have the same variance in every direction, and no principal axes of their own; there
    the first two whitened coordinates are shown, which are the same two axes of the controls before whitening.

    Parameters
    ----------
    controls
        (n', p) training controls: their mean is the origin.
    groups
        (n',) their groups.
    x
        (n, p) samples to project, described by `obs` (index sample_id).
    white
        Whether the coordinates are whitened principal components, in order of their variance before whitening.

    Returns
    -------
    pandas.DataFrame
        sample_id, pc1, pc2, the `shares` of the controls' variance along each, control, group, batch, split, and every
        other column of obs.
    """
    import pandas as pd

    origin = controls.mean(axis=0, dtype=np.float64)
    directions = np.eye(2, controls.shape[1]) if white else axes(controls)
    points = (x.astype(np.float64) - origin) @ directions.T
    table = pd.DataFrame(
        {
            "sample_id": obs.index.astype(str).to_numpy(),
            "pc1": points[:, 0],
            "pc2": points[:, 1],
            **shares(controls, directions, groups, config, white=white),
        }
    )
    for column in RESERVED:
        table[column] = obs[column].to_numpy() if column in obs else None
    for column in obs.columns:
        if column not in table:
            table[column] = obs[column].to_numpy()
    return table


def _covariance(x: np.ndarray) -> np.ndarray:
    """Covariance (p, p) of rows x (n, p) float64."""
    centred = x - x.mean(axis=0)
    return centred.T @ centred / max(len(x) - 1, 1)


def spectrum(x: np.ndarray, groups: np.ndarray, config: Measures) -> pd.DataFrame:
    """Eigenvalues of the covariance of test controls: flat if the whitening holds on samples it has not seen.

    A finite sample of perfectly white data has no flat spectrum either; `null` is the spectrum of Gaussian rows of
    equal variance in all directions, of the same number and the same total variance, averaged over draws.

    Parameters
    ----------
    x
        (n, p) test controls.
    groups
        (n,) their groups. The interval resamples them and takes the variance along the eigenvector, held fixed:
        decomposing every resample anew would push large eigenvalues up and small ones down.

    Returns
    -------
    pandas.DataFrame
        component (1-based), eigenvalue (squared units of the activations; unitless when whitened), low, high, null,
        null_low, null_high, n; no rows when there are fewer than two test controls.

    References
    ----------
    Marchenko and Pastur 1967 (the null's limit).
    """
    import pandas as pd

    if len(x) < 2:
        return pd.DataFrame()
    x = x.astype(np.float64)
    n, p = x.shape
    values, vectors = np.linalg.eigh(_covariance(x))
    values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
    code, names = group_codes(groups)
    if len(names) > 1:
        weights = bootstrap_groups(groups, config.bootstraps, seeded(config.seed, "spectrum"))[:, code].astype(float)
        total = weights.sum(axis=1, keepdims=True)
        scores = (x - x.mean(axis=0)) @ vectors
        variances = weights @ scores**2 / total - (weights @ scores / total) ** 2
        low, high = interval(variances * total / np.maximum(total - 1.0, 1.0), config.confidence)
    else:
        low = high = np.full(p, np.nan)
    rng = np.random.default_rng(seeded(config.seed, "spectrum", "null"))
    null = np.stack([np.linalg.eigvalsh(_covariance(rng.normal(size=(n, p))))[::-1] for _ in range(20)])
    null = np.maximum(null, 0.0) * values.mean()
    null_low, null_high = interval(null, config.confidence)
    return pd.DataFrame(
        {
            "component": np.arange(1, p + 1),
            "eigenvalue": values,
            "low": low,
            "high": high,
            "null": null.mean(axis=0),
            "null_low": null_low,
            "null_high": null_high,
            "n": n,
        }
    )
