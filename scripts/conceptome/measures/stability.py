"""Whether two seeds find the same atoms: optimal matching by cosine, with coherence beside it."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from conceptome.measures.rows import seeded
from conceptome.statistics import interval

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from conceptome.config.evidence import Measures

# The sign of a principal or independent component is arbitrary.
SIGNLESS = frozenset({"pca", "ica"})


def match(a: np.ndarray, b: np.ndarray, *, signless: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Match the atoms of two dictionaries one to one so that the summed cosine is largest.

    Parameters
    ----------
    a, b
        (m, d) unit rows each.
    signless
        Compare |cosine|.

    Returns
    -------
    partner, cosine
        (m,) int64 which row of `b` each row of `a` is matched with, and (m,) float64 their cosine.

    References
    ----------
    Paulo and Belrose 2025 (seed stability by Hungarian matching); scipy's linear_sum_assignment.
    """
    from scipy.optimize import linear_sum_assignment

    cosine = a.astype(np.float64) @ b.astype(np.float64).T
    cosine = np.abs(cosine) if signless else cosine
    rows, partner = linear_sum_assignment(cosine, maximize=True)
    return partner, cosine[rows, partner]


def coherence(atoms: np.ndarray) -> float:
    """Largest |cosine| between two different atoms of (m, d) unit rows; NaN for a single atom."""
    if len(atoms) < 2:
        return float("nan")
    cosine = np.abs(atoms.astype(np.float64) @ atoms.astype(np.float64).T)
    np.fill_diagonal(cosine, 0.0)
    return float(cosine.max())


def random_matches(m: int, d: int, *, signless: bool, config: Measures) -> np.ndarray:
    """Draw the matched cosines of pairs of random dictionaries (isotropic unit atoms): (stability_draws, m) float64."""
    rng = np.random.default_rng(seeded(config.seed, "stability", m, d))
    matched = []
    for _ in range(config.stability_draws):
        a, b = rng.normal(size=(2, m, d))
        a /= np.linalg.norm(a, axis=1, keepdims=True)
        b /= np.linalg.norm(b, axis=1, keepdims=True)
        matched.append(match(a, b, signless=signless)[1])
    return np.stack(matched)


def stability(
    atoms: Mapping[tuple[str, int], np.ndarray], methods: Mapping[str, str], config: Measures
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Stability of each dictionary over all pairs of its seeds.

    The identity dictionary is left out: its atoms are the same by definition. The random dictionary stays in: it is
    an empirical null beside the computed one (`null`: isotropic random unit atoms of the same m and d, matched the
    same way). Stability means little without diversity (near-duplicate atoms match anything), so the larger
    coherence of the two seeds stands beside it. Dead atoms are matched like all others.

    Parameters
    ----------
    atoms
        (dictionary, seed) → (m, d) unit rows.
    methods
        dictionary → method; PCA and ICA are compared by |cosine|, since their signs are arbitrary.

    Returns
    -------
    pairs, matched
        One row per pair of seeds (interval: bootstrap over atoms), and one row per atom of the first seed. `seed` is
        the first seed of the pair; `null_cosine` is one draw of the null, atom by atom.

    References
    ----------
    Paulo and Belrose 2025; Fel et al. 2025 (stability beside coherence).
    """
    import pandas as pd

    pairs, matched = [], []
    nulls: dict[tuple[int, int, bool], np.ndarray] = {}
    seeds: dict[str, list[int]] = {}
    for name, seed in atoms:
        seeds.setdefault(name, []).append(seed)
    for name, own in seeds.items():
        if methods[name] == "identity":
            continue
        signless = methods[name] in SIGNLESS
        coherences = {seed: coherence(atoms[name, seed]) for seed in own} if len(own) > 1 else {}
        for seed_a, seed_b in combinations(sorted(own), 2):
            a, b = atoms[name, seed_a], atoms[name, seed_b]
            m, d = a.shape
            partner, cosine = match(a, b, signless=signless)
            if (m, d, signless) not in nulls:
                nulls[m, d, signless] = random_matches(m, d, signless=signless, config=config)
            null = nulls[m, d, signless]
            null_low, null_high = interval(null.mean(axis=1), config.confidence)
            rng = np.random.default_rng(seeded(config.seed, "stability", "bootstrap", seed_a, seed_b))
            draws = cosine[rng.integers(0, m, size=(config.bootstraps, m))]
            low, high = interval(draws.mean(axis=1), config.confidence)
            shared_low, shared_high = interval((draws > config.shared_cosine).mean(axis=1), config.confidence)
            key = {"dictionary": name, "method": methods[name], "seed": seed_a, "seed_a": seed_a, "seed_b": seed_b}
            pairs.append(
                {
                    **key,
                    "mean_cosine": float(cosine.mean()),
                    "low": float(low),
                    "high": float(high),
                    "shared": float((cosine > config.shared_cosine).mean()),
                    "shared_low": float(shared_low),
                    "shared_high": float(shared_high),
                    "null": float(null.mean()),
                    "null_low": float(null_low),
                    "null_high": float(null_high),
                    "coherence": max(coherences[seed_a], coherences[seed_b]),
                    "m": m,
                }
            )
            columns = {"atom": np.arange(m), "partner": partner, "cosine": cosine, "null_cosine": null[0]}
            matched.append(pd.DataFrame({**key, **columns}))
    return pd.DataFrame(pairs), pd.concat(matched, ignore_index=True) if matched else pd.DataFrame()
