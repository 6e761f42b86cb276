"""How far two dictionaries of one space agree: mean max cosine similarity in both directions, and matched."""

from __future__ import annotations

from itertools import combinations_with_replacement
from typing import TYPE_CHECKING, Any

import numpy as np

from conceptome.errors import DataError
from conceptome.measures.atoms import SIGNLESS, cosines, random_unit
from conceptome.measures.rows import seeded
from conceptome.measures.tables import ESTIMATE, PLACE
from conceptome.statistics import interval

if TYPE_CHECKING:
    import pandas as pd

    from conceptome.config.further import Agreement
    from conceptome.measures.space import Space

TABLES = {
    "agreement": {
        **PLACE,
        "dictionary": "object",
        "method": "object",
        "seed": "int64",
        "other": "object",
        "other_method": "object",
        "other_seed": "int64",
        "mmcs": "float64",
        **ESTIMATE,
        "hungarian": "float64",
        "hungarian_low": "float64",
        "hungarian_high": "float64",
        "hungarian_null": "float64",
        "hungarian_null_high": "float64",
        "shared": "float64",
        "shared_null": "float64",
        "m": "int64",
        "other_m": "int64",
        "d": "int64",
    },
}


def _scores(cosine: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Largest cosine of each row and of each column, and the cosines of an optimal one-to-one matching."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(cosine, maximize=True)
    return cosine.max(axis=1), cosine.max(axis=0), cosine[rows, columns]


def compare(
    a: np.ndarray,
    b: np.ndarray,
    *,
    signless: bool = False,
    shared_cosine: float = 0.7,
    draws: int = 5,
    bootstraps: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
    nulls: dict[tuple[int, int, int, bool], np.ndarray] | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Compare any two dictionaries of the same dimensions.

        MMCS(A → B) = mean_i max_j ⟨A_i, B_j⟩

    which asks whether A's atoms are found in B, and depends on the direction: a large B holds much by chance. Matched
    one to one (Hungarian method) the smaller dictionary's atoms each get a partner of their own.

    Parameters
    ----------
    a, b
        (m, d) and (p, d) unit rows.
    signless
        Compare |cosine|: where either one's signs are arbitrary (PCA, ICA).
    shared_cosine
        Matched atoms above this cosine are shared, as a part of the smaller dictionary.
    draws
        Pairs of random dictionaries (isotropic unit atoms of the same m, p and d) behind the null.
    bootstraps, confidence
        Interval: bootstrap over the atoms whose mean is taken.
    nulls
        Filled with the random scores of each shape, so that they are drawn once.

    Returns
    -------
    forward, backward
        The columns mmcs … shared_null of `TABLES`, A → B and B → A; what is matched is the same in both.

    Raises
    ------
    DataError
        The dictionaries have different dimensions.

    References
    ----------
    Sharkey, Braun and Millidge 2022 (MMCS); Paulo and Belrose 2025 (matching).
    """
    if a.shape[1] != b.shape[1]:
        raise DataError(
            f"dictionaries of {a.shape[1]} and {b.shape[1]} dimensions share no space: compare those of one model and "
            "whitening"
        )
    nulls = {} if nulls is None else nulls
    m, p, d = len(a), len(b), a.shape[1]
    if (m, p, d, signless) not in nulls:
        rng = np.random.default_rng(seeded(seed, "agreement", m, p, d))
        drawn = [
            _scores(cosines(random_unit(m, d, rng), random_unit(p, d, rng), signless=signless)) for _ in range(draws)
        ]
        nulls[m, p, d, signless] = np.array(
            [[ahead.mean(), back.mean(), one.mean(), (one > shared_cosine).mean()] for ahead, back, one in drawn]
        )
    null = nulls[m, p, d, signless]
    *each, matched = _scores(cosines(a, b, signless=signless))
    rng = np.random.default_rng(seeded(seed, "agreement", "bootstrap"))

    def bounds(values: np.ndarray) -> tuple[float, float]:
        low, high = interval(values[rng.integers(0, len(values), (bootstraps, len(values)))].mean(axis=1), confidence)
        return float(low), float(high)

    matched_low, matched_high = bounds(matched)
    common = {
        "hungarian": float(matched.mean()),
        "hungarian_low": matched_low,
        "hungarian_high": matched_high,
        "hungarian_null": float(null[:, 2].mean()),
        "hungarian_null_high": float(interval(null[:, 2], confidence)[1]),
        "shared": float((matched > shared_cosine).mean()),
        "shared_null": float(null[:, 3].mean()),
        "d": d,
    }
    found = []
    for way, (values, sizes) in enumerate(zip(each, ((m, p), (p, m)))):
        low, high = bounds(values)
        null_low, null_high = interval(null[:, way], confidence)
        found.append(
            {
                "mmcs": float(values.mean()),
                "low": low,
                "high": high,
                "null": float(null[:, way].mean()),
                "null_low": float(null_low),
                "null_high": float(null_high),
                **common,
                "m": sizes[0],
                "other_m": sizes[1],
            }
        )
    return found[0], found[1]


def measure(space: Space, config: Agreement) -> dict[str, list[pd.DataFrame]]:
    """Agreement of every two dictionaries of a space, and of each with its own second seed.

    The first seed of one is compared with the second of the other, where there is one: trained methods start from
    their seed, and two that share it agree in all atoms that training left alone. Of two orders of a pair the first
    seed is that of the dictionary that the study names first. Pairs with PCA or ICA are compared by |cosine|.

    Returns
    -------
    dict
        `agreement`: one row per ordered pair, from the atoms of `dictionary` (`seed`) to those of `other`.
    """
    import pandas as pd

    seeds: dict[str, list[int]] = {}
    for name, seed in space.fits:
        seeds.setdefault(name, []).append(seed)
    first = {name: sorted(own)[0] for name, own in seeds.items()}
    wanted = {(name, seed) for name, own in seeds.items() for seed in sorted(own)[:2]}
    atoms = {key: np.asarray(space.fits[key][0].atoms) for key in space.fits if key in wanted}
    found, nulls = [], {}
    for name, other in combinations_with_replacement(first, 2):
        a, b = (name, first[name]), (other, sorted(seeds[other])[:2][-1])
        if a == b:
            continue
        forward, backward = compare(
            atoms[a],
            atoms[b],
            signless=bool({space.methods[name], space.methods[other]} & SIGNLESS),
            shared_cosine=config.shared_cosine,
            draws=config.draws,
            bootstraps=config.bootstraps,
            confidence=config.confidence,
            seed=config.seed,
            nulls=nulls,
        )
        found.append(_key(space, a, b) | forward)
        if name != other:
            found.append(_key(space, b, a) | backward)
    return {"agreement": [pd.DataFrame(found)]}


def _key(space: Space, a: tuple[str, int], b: tuple[str, int]) -> dict[str, Any]:
    """Columns that name an ordered pair of fits."""
    return {
        "dictionary": a[0],
        "method": space.methods[a[0]],
        "seed": a[1],
        "other": b[0],
        "other_method": space.methods[b[0]],
        "other_seed": b[1],
    }


def report(folder: str, other: str) -> dict[str, Any]:
    """Compare two saved dictionaries: what `conceptome dictionary compare` prints.

    Returns
    -------
    dict
        a, b (method, m, d of each), signless, forward and backward as `compare` gives them.

    Raises
    ------
    DataError
        A folder holds no dictionary, or the two have different dimensions.
    """
    from conceptome.dictionaries import load

    one, two = load(folder), load(other)
    signless = bool({one.method, two.method} & SIGNLESS)
    forward, backward = compare(one.atoms, two.atoms, signless=signless)
    described = [{key: each.card[key] for key in ("method", "m", "d")} for each in (one, two)]
    return {"a": described[0], "b": described[1], "signless": signless, "forward": forward, "backward": backward}
