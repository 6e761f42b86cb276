"""How spread the atoms of a dictionary are, and how they are used together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from conceptome.errors import DataError
from conceptome.measures.atoms import babel, effective_rank, random_unit, stable_rank
from conceptome.measures.rows import choose_rows, seeded
from conceptome.measures.tables import FIT
from conceptome.statistics import group_codes, interval, jackknife

if TYPE_CHECKING:
    import pandas as pd
    from scipy import sparse

    from conceptome.config.further import Diversity
    from conceptome.measures.space import Space

TABLES = {
    "diversity": {
        **FIT,
        "statistic": "object",
        "r": "int64",
        "value": "float64",
        "low": "float64",
        "high": "float64",
        "interval": "object",
        "null": "float64",
        "null_low": "float64",
        "null_high": "float64",
        "null_is": "object",
        "m": "int64",
        "k": "int64",
        "d": "int64",
        "n": "int64",
    },
}
RANDOM, PERMUTED = "random unit atoms", "codes permuted within each atom"


@dataclass(frozen=True)
class Estimate:
    """A statistic and its values with one block after the other left out, (blocks,)."""

    value: float
    left_out: np.ndarray


def ranks(atoms: np.ndarray, blocks: int, rng: np.random.Generator | None = None) -> dict[str, Estimate]:
    """Stable rank and effective rank of (m, d) unit rows; the jackknife leaves out blocks of atoms.

        stable rank = ‖D‖_F² / ‖D‖₂²;   effective rank = exp(−Σ p_i·log p_i), p_i = σ_i / Σ σ

    Parameters
    ----------
    rng
        Deals atoms to blocks. None: no jackknife.

    References
    ----------
    Fel et al. 2025; Roy and Vetterli 2007.
    """
    atoms = atoms.astype(np.float64)
    m, d = atoms.shape
    wide = m < d
    whole = atoms @ atoms.T if wide else atoms.T @ atoms
    parts = [] if rng is None else equal_blocks(m, blocks, rng)
    grams = [whole]
    for part in parts:
        rest = np.delete(np.arange(m), part)
        grams.append(whole[np.ix_(rest, rest)] if wide else whole - atoms[part].T @ atoms[part])
    squares = [np.maximum(np.linalg.eigvalsh(gram)[::-1], 0.0) for gram in grams]
    found = {
        "stable_rank": [stable_rank(each) for each in squares],
        "effective_rank": [effective_rank(np.sqrt(each)) for each in squares],
    }
    return {name: Estimate(values[0], np.array(values[1:])) for name, values in found.items()}


def equal_blocks(m: int, blocks: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Deal m atoms to blocks of equal size; a remainder is in none, since a larger block would read as variation."""
    blocks = min(blocks, m)
    return np.split(rng.permutation(m)[: m // blocks * blocks], blocks)


def coactivation(codes: sparse.csr_matrix, block: np.ndarray, blocks: int) -> np.ndarray:
    """ZᵀZ of the samples of each block: codes (n, m), block (n,) number of each sample's block: (blocks, m, m)."""
    dense = codes.nnz > 0.1 * codes.shape[0] * codes.shape[1]
    found = np.empty((blocks, codes.shape[1], codes.shape[1]), dtype=np.float64)
    for number in range(blocks):
        part = codes[block == number].astype(np.float64)
        part = part.toarray() if dense else part
        product = part.T @ part
        found[number] = product if dense else product.toarray()
    return found


def usage(parts: np.ndarray, *, left_out: bool = True) -> dict[str, Estimate]:
    """Connectivity and effective rank of the co-activation matrix.

        connectivity = 1 − ‖ZᵀZ‖₀ / m²  (the share of pairs of atoms that never meet; an atom that fires meets itself);
        effective rank of ZᵀZ as in `ranks`

    Connectivity falls as samples are added: compare at equal n only.

    Parameters
    ----------
    parts
        (blocks, m, m) `coactivation` of each block.
    left_out
        Also leave out each block in turn.

    References
    ----------
    Fel et al. 2025 (connectivity); Costa et al. 2025 (effective rank of co-activation).
    """
    import torch  # MKL gives the eigenvalues in half of OpenBLAS's time

    whole = parts.sum(axis=0)
    # Signed products can cancel over blocks, but two atoms that met in one have met.
    meets = parts != 0
    times = meets.sum(axis=0)
    m = len(whole)
    left = range(len(parts)) if left_out else ()

    def rank(gram: np.ndarray) -> float:
        used = np.flatnonzero(np.diagonal(gram))
        # Atoms that are silent on these samples add eigenvalues of 0, which count for nothing.
        part = gram if len(used) == m else gram[np.ix_(used, used)]
        return effective_rank(np.maximum(torch.linalg.eigvalsh(torch.from_numpy(part)).numpy(), 0.0))

    return {
        "code_effective_rank": Estimate(rank(whole), np.array([rank(whole - parts[number]) for number in left])),
        "connectivity": Estimate(
            1.0 - float((times > 0).sum()) / m**2,
            np.array([1.0 - float((times > meets[number]).sum()) / m**2 for number in left]),
        ),
    }


def permuted(codes: sparse.csc_matrix, rng: np.random.Generator) -> sparse.csr_matrix:
    """Permute codes (n, m) within each atom: what an atom does stays, whom it meets is chance."""
    from scipy import sparse

    n = codes.shape[0]
    indices = [rng.choice(n, size=length, replace=False) for length in np.diff(codes.indptr)]
    indices = np.concatenate(indices) if indices else np.zeros(0, dtype=np.int64)
    return sparse.csc_matrix((codes.data, indices, codes.indptr), shape=codes.shape).tocsr()


class _Nulls:
    """Random dictionaries of each shape, measured once."""

    def __init__(self, config: Diversity):
        self._config, self._drawn = config, {}

    def of(self, m: int, d: int) -> dict[tuple[str, int], np.ndarray]:
        """(statistic, r) → (draws,) values on random unit atoms."""
        if (m, d) not in self._drawn:
            rng = np.random.default_rng(seeded(self._config.seed, "diversity", m, d))
            drawn: dict[tuple[str, int], list[float]] = {}
            for _ in range(self._config.draws):
                atoms = random_unit(m, d, rng)
                for name, found in ranks(atoms, self._config.blocks).items():
                    drawn.setdefault((name, 0), []).append(found.value)
                for r, value in zip(self._config.babel, babel(atoms, self._config.babel)):
                    drawn.setdefault(("babel", r), []).append(value)
            self._drawn[m, d] = {key: np.array(values) for key, values in drawn.items()}
        return self._drawn[m, d]


def measure(space: Space, config: Diversity) -> dict[str, list[pd.DataFrame]]:
    """Diversity of every fit: Babel function, ranks, connectivity.

    - `babel` (r = 1: coherence): a maximum has no interval over atoms; the bar spans the seeds of the dictionary
      (`interval` = seeds), and is missing with one seed.
    - `stable_rank`, `effective_rank`: jackknife over blocks of atoms.
    - `code_effective_rank`, `connectivity`: of the codes of at most `max_rows` samples; jackknife over blocks of
      groups.

    Nulls: random unit atoms of the same m and d for what is said of atoms; codes permuted within each atom for what is
    said of their use. The spectrum of the null of ranks is that of a random dictionary, not of an orthonormal basis.

    Returns
    -------
    dict
        `diversity`: one row per fit, statistic and r (0 but for the Babel function).

    Raises
    ------
    DataError
        Fewer than two groups of samples.
    """
    import pandas as pd

    rows = choose_rows(np.ones(len(space.groups), dtype=bool), config.max_rows, seeded(config.seed, "diversity"))
    groups, names = group_codes(space.groups[rows])
    if len(names) < 2:
        raise DataError("measures.diversity needs samples of at least two groups: check dataset.group")
    blocks = min(config.blocks, len(names))
    dealt = np.empty(len(names), dtype=np.int64)
    order = np.random.default_rng(seeded(config.seed, "diversity", "groups")).permutation(len(names))
    dealt[order] = np.arange(len(names)) % blocks
    block = dealt[groups]
    nulls, frames = _Nulls(config), []
    for name, seed, dictionary, matrix in space.each_fit():
        atoms = np.asarray(dictionary.atoms)
        m, d = atoms.shape
        codes = matrix[rows]
        rng = np.random.default_rng(seeded(config.seed, "diversity", "blocks", name, seed))
        estimates = {(key, 0): (found, RANDOM, "atoms") for key, found in ranks(atoms, config.blocks, rng).items()}
        used = usage(coactivation(codes, block, blocks))
        estimates |= {(key, 0): (found, PERMUTED, "groups") for key, found in used.items()}
        for r, value in zip(config.babel, babel(atoms, config.babel)):
            estimates["babel", r] = Estimate(float(value), np.zeros(0)), RANDOM, "seeds"
        drawn = dict(nulls.of(m, d))
        csc, shuffled = codes.tocsc(), []
        for _ in range(config.draws):
            # Within one block: nothing is left out of a null.
            mixed = coactivation(permuted(csc, rng), np.zeros(len(rows), dtype=np.int64), 1)
            shuffled.append({key: found.value for key, found in usage(mixed, left_out=False).items()})
        drawn |= {(key, 0): np.array([each[key] for each in shuffled]) for key in used}
        found = []
        for (statistic, r), (estimate, null_is, unit) in estimates.items():
            low, high = float("nan"), float("nan")
            if len(estimate.left_out) > 1:
                low, high = jackknife(estimate.value, estimate.left_out, config.confidence)
            null = drawn[statistic, r]
            null_low, null_high = interval(null, config.confidence)
            found.append(
                {
                    "statistic": statistic,
                    "r": r,
                    "value": estimate.value,
                    "low": float(low),
                    "high": float(high),
                    "interval": unit,
                    "null": float(null.mean()),
                    "null_low": float(null_low),
                    "null_high": float(null_high),
                    "null_is": null_is,
                    "m": m,
                    "k": int((dictionary.card.get("options") or {}).get("k") or dictionary.card.get("k") or m),
                    "d": d,
                    "n": len(rows) if unit == "groups" else m,
                }
            )
        frames.append(pd.DataFrame(found).assign(dictionary=name, method=space.methods[name], seed=seed))
    return {"diversity": [over_seeds(pd.concat(frames, ignore_index=True))] if frames else []}


def over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """Let the interval of what has none within a fit span the seeds of its dictionary."""
    table = table.copy()
    spans = table["interval"] == "seeds"
    by = table[spans].groupby(["dictionary", "r"])["value"]
    several = by.transform("size") > 1
    table.loc[spans, "low"] = by.transform("min").where(several)
    table.loc[spans, "high"] = by.transform("max").where(several)
    return table
