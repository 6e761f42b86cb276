"""How close atoms lie to real samples."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from conceptome.errors import DataError
from conceptome.measures.atoms import SIGNLESS, random_unit
from conceptome.measures.rows import choose_rows, seeded
from conceptome.measures.tables import ESTIMATE, FIT
from conceptome.statistics import interval

if TYPE_CHECKING:
    import pandas as pd

    from conceptome.config.further import Plausibility
    from conceptome.measures.space import Space

TABLES = {
    "plausibility": {
        **FIT,
        "ood": "float64",
        **ESTIMATE,
        "shuffled": "float64",
        "shuffled_low": "float64",
        "shuffled_high": "float64",
        "implausible": "float64",
        "m": "int64",
        "d": "int64",
        "n": "int64",
    },
    "plausibility_atoms": {
        **FIT,
        "atom": "int64",
        "plausibility": "float64",
        "null_high": "float64",
        "nearest": "object",
        "split": "object",
        "group": "object",
        "n_active": "int64",
    },
}


def directions(X: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Unit rows of X (n, d) seen from a centre (d,), float64; a row at the centre has no direction and is zero."""
    found = X.astype(np.float64) - centre
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    return np.divide(found, lengths, out=np.zeros_like(found), where=lengths > 0)


def nearest(atoms: np.ndarray, samples: np.ndarray, *, signless: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Sample nearest to each atom: position (m,) int64 and cosine (m,) float64.

    Parameters
    ----------
    atoms, samples
        (m, d) and (n, d) unit rows.
    signless
        Compare |cosine|.
    """
    best, where = np.full(len(atoms), -np.inf), np.zeros(len(atoms), dtype=np.int64)
    for at in range(0, len(samples), 4096):
        cosine = atoms.astype(np.float64) @ samples[at : at + 4096].T
        cosine = np.abs(cosine) if signless else cosine
        found = cosine.argmax(axis=1)
        values = cosine[np.arange(len(atoms)), found]
        where = np.where(values > best, found + at, where)
        best = np.maximum(best, values)
    return where, best


def shuffled(X: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Permute each dimension of X (n, d) over the samples: dimensions keep their values and lose each other."""
    return rng.permuted(X, axis=0)


def measure(space: Space, config: Plausibility) -> dict[str, list[pd.DataFrame]]:
    """Plausibility of atoms: the cosine of each with the real sample that it is most alike.

        OOD = 1 − (1/m) Σ_i max_j ⟨D_i, A_j⟩

    where A_j are test samples, whitened as the dictionary's rows were, minus their mean over training samples, scaled
    to unit length: atoms are directions from the centre of the data, and a cosine does not grow with a sample's length.
    (On raw activations far from zero, uncentred samples are all alike, and every atom near their mean looks plausible.)
    The largest of n cosines grows with n and falls with d: values compare at equal n and d, beside their nulls.

    Nulls: `null`, isotropic random unit atoms against the same samples; `shuffled`, the atoms themselves against
    samples whose dimensions are permuted independently, real one by one and implausible together. Interval: bootstrap
    over atoms. `implausible`: share of atoms whose nearest sample is no nearer than the upper bound of a random atom.

    Returns
    -------
    dict
        `plausibility`: one row per fit. `plausibility_atoms`: one per atom, with the nearest of the test samples.

    Raises
    ------
    DataError
        All test samples lie at the centre.

    References
    ----------
    Fel et al. 2025 (OOD score; the text gives neither centring nor normalisation of A).
    """
    import pandas as pd

    rows = choose_rows(space.split == "test", config.max_rows, seeded(config.seed, "plausibility"))
    train = choose_rows(space.split == "train", config.max_rows, seeded(config.seed, "plausibility", "centre"))
    centre = space.white(train).mean(axis=0, dtype=np.float64)
    X = space.white(rows)
    samples = directions(X, centre)
    if not samples.any():
        raise DataError("measures.plausibility: all test samples have the same activations, so none has a direction")
    obs, d = space.obs.iloc[rows], X.shape[1]
    mixed = [
        directions(shuffled(X, np.random.default_rng(seeded(config.seed, "plausibility", "shuffled", draw))), centre)
        for draw in range(config.draws)
    ]
    nulls: dict[tuple[int, bool], np.ndarray] = {}
    pooled, atoms_found = [], []
    for name, seed, dictionary, codes in space.each_fit():
        atoms, signless = np.asarray(dictionary.atoms), space.methods[name] in SIGNLESS
        m = len(atoms)
        if (m, signless) not in nulls:
            rng = np.random.default_rng(seeded(config.seed, "plausibility", m, d))
            nulls[m, signless] = np.stack(
                [nearest(random_unit(m, d, rng), samples, signless=signless)[1] for _ in range(config.draws)]
            )
        null = nulls[m, signless]
        where, value = nearest(atoms, samples, signless=signless)
        against = np.array([1.0 - nearest(atoms, each, signless=signless)[1].mean() for each in mixed])
        rng = np.random.default_rng(seeded(config.seed, "plausibility", "bootstrap", name, seed))
        drawn = 1.0 - value[rng.integers(0, m, size=(config.bootstraps, m))].mean(axis=1)
        (low, high), (null_low, null_high), (shuffled_low, shuffled_high) = (
            interval(each, config.confidence) for each in (drawn, 1.0 - null.mean(axis=1), against)
        )
        one_high = float(interval(null.ravel(), config.confidence)[1])
        key = {"dictionary": name, "method": space.methods[name], "seed": seed}
        pooled.append(
            {
                **key,
                "ood": float(1.0 - value.mean()),
                "low": float(low),
                "high": float(high),
                "null": float(1.0 - null.mean()),
                "null_low": float(null_low),
                "null_high": float(null_high),
                "shuffled": float(against.mean()),
                "shuffled_low": float(shuffled_low),
                "shuffled_high": float(shuffled_high),
                "implausible": float((value <= one_high).mean()),
                "m": m,
                "d": d,
                "n": len(rows),
            }
        )
        atoms_found.append(
            pd.DataFrame(
                {
                    **key,
                    "atom": np.arange(m),
                    "plausibility": value,
                    "null_high": one_high,
                    "nearest": obs.index.to_numpy()[where],
                    "split": obs["split"].astype(str).to_numpy()[where],
                    "group": obs["group"].astype(str).to_numpy()[where],
                    "n_active": np.bincount(codes.indices, minlength=m),
                }
            )
        )
    return {"plausibility": [pd.DataFrame(pooled)], "plausibility_atoms": atoms_found}
