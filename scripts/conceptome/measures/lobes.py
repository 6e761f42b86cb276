"""Lobes: whether atoms that fire together also point in like directions."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from conceptome.measures.multidimensional import cluster_atoms
from conceptome.measures.rows import choose_rows, seeded
from conceptome.measures.tables import ESTIMATE, FIT
from conceptome.statistics import group_codes, interval, jackknife_groups

if TYPE_CHECKING:
    import pandas as pd
    from scipy import sparse

    from conceptome.config.further import Lobes
    from conceptome.measures.space import Space

logger = logging.getLogger(__name__)

TABLES: dict[str, dict[str, str]] = {
    "lobes": {
        **FIT,
        "clusters": "int64",
        "ami": "float64",
        **ESTIMATE,
        "p": "float64",
        "n_atoms": "int64",
        "n": "int64",
        "unit": "object",
    },
    "lobes_atoms": {
        **FIT,
        "clusters": "int64",
        "atom": "int64",
        "lobe": "int64",
        "bundle": "int64",
        "rate": "float64",
        "x": "float64",
        "y": "float64",
    },
}


DENSE = 2**26  # entries of the largest indicator that is held dense


def phi(active: sparse.spmatrix) -> np.ndarray:
    """Phi coefficient of every pair of columns of a boolean matrix (n, m): (m, m) float64, 0 for constant columns.

    φ = (n·n₁₁ − n₁·n₂) / √(n₁(n − n₁)·n₂(n − n₂)): the correlation of two indicators.

    References
    ----------
    Yule, Journal of the Royal Statistical Society 75 (1912).
    """
    from scipy import sparse

    n, m = active.shape
    if n < 2**24 and n * m <= DENSE:
        # Counts this small are exact in float32, and a dense product is fast where many atoms fire.
        indicator = active.toarray().astype(np.float32)
        together = (indicator.T @ indicator).astype(np.float64)
    else:
        indicator = sparse.csr_matrix(active, dtype=np.float64)
        together = (indicator.T @ indicator).toarray()
    count = np.diag(together)
    deviation = np.sqrt(count * (n - count))
    scale = np.outer(deviation, deviation)
    return np.divide(n * together - np.outer(count, count), scale, out=np.zeros_like(scale), where=scale > 0)


def co_occurrence_clusters(association: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """Spectral clusters of atoms by their phi coefficients (m, m), affinity (1 + φ)/2: (m,) int64."""
    from sklearn.cluster import SpectralClustering

    method = SpectralClustering(clusters, affinity="precomputed", assign_labels="cluster_qr", random_state=seed)
    return method.fit_predict((1.0 + np.clip(association, -1.0, 1.0)) / 2.0).astype(np.int64)


def _within_strata(labels: np.ndarray, rate: np.ndarray, strata: int, draws: int, seed: list[int]) -> np.ndarray:
    """Permute labels (m,) among atoms of like firing rate: (draws, m)."""
    rng = np.random.default_rng(seed)
    band = np.minimum(np.argsort(np.argsort(rate, kind="stable"), kind="stable") * strata // len(rate), strata - 1)
    order = np.argsort(band, kind="stable")
    permuted = np.empty((draws, len(labels)), dtype=labels.dtype)
    for row in permuted:
        row[order] = labels[np.lexsort((rng.random(len(labels)), band))]
    return permuted


def _units(codes: sparse.csr_matrix, space: Space, config: Lobes) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Which atom fires in which unit, (u, m) bool, and the group of each unit (u,)."""
    from scipy import sparse

    from conceptome.measures.selectivity import activity

    every = np.ones(len(space.split), dtype=bool)
    rows = every.nonzero()[0]
    if config.unit == "sample":
        rows = choose_rows(every, config.max_rows, seeded(config.seed, "lobes"))
    active, _ = activity(codes[rows], space.split[rows] == "train", config.dense_active)
    active, groups = sparse.csr_matrix(active, dtype=np.float64), space.groups[rows]
    if config.unit == "sample":
        return active != 0, groups
    number, names = group_codes(groups)
    member = sparse.csr_matrix((np.ones(len(rows)), (number, np.arange(len(rows)))), shape=(len(names), len(rows)))
    return (member @ active) != 0, names


def measure(space: Space, config: Lobes) -> dict[str, list[pd.DataFrame]]:
    """Compare clusters of atoms that fire together with clusters of atoms that point alike.

    Clusters by co-occurrence (lobes): spectral, affinity (1 + φ)/2. Clusters by direction: spectral, affinity one less
    the angle in units of π. Their adjusted mutual information (AMI) is 0 by chance and 1 when they are the same. Atoms
    that fire, or are silent, on too few units are left out. Null: the clusters by direction permuted over atoms of like
    firing rate, since frequent atoms co-occur whatever they mean. p: one-sided, by Student's t from mean and standard
    deviation of the null. Intervals: jackknife over groups of samples, clusters by co-occurrence made anew each time,
    and a bootstrap over atoms, their variances added; NaN with a single group.

    References
    ----------
    Li, Michaud, Baek, Engels, Sun and Tegmark, "The Geometry of Concepts" (arXiv 2410.19750, Entropy 2025), section 4
    (the brain scale). Vinh, Epps and Bailey, JMLR 11 (2010): AMI.
    """
    import pandas as pd
    from scipy.stats import norm
    from scipy.stats import t as student
    from sklearn.metrics import adjusted_mutual_info_score

    rows, atoms_of = [], []
    for name, seed, dictionary, codes in space.each_fit():
        if config.dictionaries is not None and name not in config.dictionaries:
            continue
        keys = {"dictionary": name, "method": space.methods[name], "seed": seed}
        active, groups = _units(codes, space, config)
        count = np.asarray(active.sum(axis=0)).ravel()
        kept = np.flatnonzero((count >= config.min_active) & (count <= active.shape[0] - config.min_active))
        active, rate = active[:, kept].tocsr(), count[kept] / active.shape[0]
        atoms = np.asarray(dictionary.atoms, dtype=np.float64)[kept]
        numbers = [clusters for clusters in config.clusters if len(kept) >= 2 * clusters]
        if not numbers:
            logger.warning("lobes: %s, seed %d: %d atoms are too few", name, seed, len(kept))
            continue
        bundles = [cluster_atoms(atoms, clusters, config.seed) for clusters in numbers]

        def lobes(active: sparse.csr_matrix, numbers: list[int] = numbers) -> list[np.ndarray]:
            association = phi(active)
            return [co_occurrence_clusters(association, clusters, config.seed) for clusters in numbers]

        def agreement(found: list[np.ndarray], bundles: list[np.ndarray] = bundles) -> list[float]:
            return [adjusted_mutual_info_score(lobe, bundle) for lobe, bundle in zip(found, bundles)]

        whole = lobes(active)
        values = agreement(whole)
        bounds = jackknife_groups(
            lambda chosen, active=active, lobes=lobes, agreement=agreement: agreement(lobes(active[chosen])),
            groups,
            values,
            folds=config.folds,
            confidence=config.confidence,
            seed=seeded(config.seed, "lobes", "folds"),
        )
        centred = atoms - atoms.mean(axis=0)
        _, _, axes = np.linalg.svd(centred, full_matrices=False)
        axes = axes[:2] * np.sign(axes[[0, 1], np.abs(axes[:2]).argmax(axis=1)])[:, None]
        place = centred @ axes.T
        for clusters, lobe, bundle, value, high in zip(numbers, whole, bundles, values, bounds[1]):
            words = seeded(config.seed, "lobes", name, seed, clusters)
            moved = _within_strata(bundle, rate, config.strata, config.permutations, words)
            picked = np.random.default_rng([*words, 1]).integers(0, len(kept), (config.bootstraps, len(kept)))
            drawn = [adjusted_mutual_info_score(lobe[each], bundle[each]) for each in picked]
            # Clusters that no fold changes leave the jackknife without variance, however few the atoms.
            reach = np.hypot(high - value, norm.ppf(0.5 + config.confidence / 2.0) * np.std(drawn, ddof=1))
            null = np.array([adjusted_mutual_info_score(lobe, each) for each in moved])
            null_low, null_high = interval(null, config.confidence)
            deviation = max(null.std(ddof=1) * np.sqrt(1.0 + 1.0 / len(null)), 1e-12)
            rows.append(
                keys
                | {
                    "clusters": clusters,
                    "ami": value,
                    "low": float(value - reach),
                    "high": float(value + reach),
                    "null": null.mean(),
                    "null_low": float(null_low),
                    "null_high": float(null_high),
                    "p": float(student.sf((value - null.mean()) / deviation, len(null) - 1)),
                    "n_atoms": len(kept),
                    "n": active.shape[0],
                    "unit": config.unit,
                }
            )
            atoms_of.append(
                pd.DataFrame(
                    {
                        "clusters": clusters,
                        "atom": kept,
                        "lobe": lobe,
                        "bundle": bundle,
                        "rate": rate,
                        "x": place[:, 0],
                        "y": place[:, 1],
                    }
                ).assign(**keys)
            )
    return {"lobes": [pd.DataFrame(rows)] if rows else [], "lobes_atoms": atoms_of}
