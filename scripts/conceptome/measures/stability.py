"""Whether two fits find the same atoms: optimal matching by cosine, with diversity beside it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from conceptome.measures.atoms import (
    SIGNLESS,
    coherence,
    effective_rank,
    match,
    random_unit,
    squared_singular_values,
    stable_rank,
)
from conceptome.measures.rows import seeded
from conceptome.statistics import interval

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from conceptome.dictionaries import Dictionary


class Settings(Protocol):
    """The settings that a comparison of fits needs: those of `Measures`, and of data_stability."""

    bootstraps: int
    confidence: float
    seed: int
    shared_cosine: float
    stability_draws: int


@dataclass(frozen=True)
class Fitted:
    """What stability keeps of a fit.

    Attributes
    ----------
    atoms
        (m, d) unit rows.
    encoder
        (m, d) unit rows of the method's own linear encoder; None where codes do not come from one.
    k
        Active atoms per sample, at most or on average.
    """

    atoms: np.ndarray
    encoder: np.ndarray | None = None
    k: int = 0

    @classmethod
    def of(cls, dictionary: Dictionary) -> Fitted:
        """Keep atoms and encoder of a dictionary."""
        options = dictionary.card.get("options") or {}
        k = options.get("k") or dictionary.card.get("k") or len(dictionary.atoms)
        return cls(np.asarray(dictionary.atoms), dictionary.encoder_rows, int(k))


@dataclass(frozen=True)
class Spread:
    """Diversity of one dictionary."""

    coherence: float
    stable_rank: float
    effective_rank: float

    @classmethod
    def of(cls, atoms: np.ndarray) -> Spread:
        """Measure (m, d) unit rows."""
        squares = squared_singular_values(atoms)
        return cls(coherence(atoms), stable_rank(squares), effective_rank(np.sqrt(squares)))


def less_diverse(a: Spread, b: Spread) -> tuple[float, float, float]:
    """Of two dictionaries the larger coherence, the smaller stable rank and the smaller effective rank."""
    return max(a.coherence, b.coherence), min(a.stable_rank, b.stable_rank), min(a.effective_rank, b.effective_rank)


@dataclass(frozen=True)
class Matched:
    """The atoms of two fits, matched.

    Attributes
    ----------
    partner, cosine
        (m,) the atom of the second fit that each of the first is matched with by its decoder, and their cosine.
    encoder_cosine
        (m,) cosine of the atoms' encoders with those of the atoms that matching by encoder gives; None without.
    agree
        (m,) bool: both matchings give the same partner; all True where there is one only.
    """

    partner: np.ndarray
    cosine: np.ndarray
    encoder_cosine: np.ndarray | None
    agree: np.ndarray

    def shared(self, above: float) -> np.ndarray:
        """(m,) bool: both matchings agree, and the cosine is above the threshold."""
        return self.agree & (self.cosine > above)

    @classmethod
    def of(cls, a: Fitted, b: Fitted, *, signless: bool) -> Matched:
        """Match by decoder and, where both have one, by encoder."""
        partner, cosine = match(a.atoms, b.atoms, signless=signless)
        if a.encoder is None or b.encoder is None:
            return cls(partner, cosine, None, np.ones(len(partner), dtype=bool))
        by_encoder, encoder_cosine = match(a.encoder, b.encoder, signless=signless)
        return cls(partner, cosine, encoder_cosine, by_encoder == partner)


@dataclass(frozen=True)
class Drawn:
    """Pairs of random dictionaries of one shape, matched.

    Attributes
    ----------
    cosine, agree
        (draws, m) cosines of matched atoms, float64, and whether both matchings agree, bool.
    spreads
        (draws, 3) coherence, stable rank and effective rank of the less diverse dictionary of each pair.
    """

    cosine: np.ndarray
    agree: np.ndarray
    spreads: np.ndarray


class Nulls:
    """Matchings of random dictionaries (isotropic unit atoms, and encoders where there are some), drawn once per shape.

    Parameters
    ----------
    config
        Draws and seed.
    """

    def __init__(self, config: Settings):
        self._config = config
        self._drawn: dict[tuple[int, int, bool, bool], Drawn] = {}

    def of(self, m: int, d: int, *, signless: bool, encoder: bool) -> Drawn:
        """`stability_draws` pairs of random dictionaries of m atoms in d dimensions.

        A random dictionary's encoder is independent of its atoms: agreement by chance, not by tied weights.
        """
        key = (m, d, signless, encoder)
        if key not in self._drawn:
            rng = np.random.default_rng(seeded(self._config.seed, "stability", m, d))
            cosine, agree, spreads = [], [], []
            for _ in range(self._config.stability_draws):
                parts = [random_unit(m, d, rng) for _ in range(4 if encoder else 2)]
                a, b = Fitted(parts[0], *parts[2:3]), Fitted(parts[1], *parts[3:])
                found = Matched.of(a, b, signless=signless)
                cosine.append(found.cosine)
                agree.append(found.agree)
                spreads.append(less_diverse(Spread.of(a.atoms), Spread.of(b.atoms)))
            self._drawn[key] = Drawn(np.stack(cosine), np.stack(agree), np.array(spreads))
        return self._drawn[key]


def random_matches(m: int, d: int, *, signless: bool, config: Settings) -> np.ndarray:
    """Draw the matched cosines of pairs of random dictionaries (isotropic unit atoms): (stability_draws, m) float64."""
    return Nulls(config).of(m, d, signless=signless, encoder=False).cosine


def compare_fits(
    a: Fitted,
    b: Fitted,
    *,
    signless: bool,
    spreads: tuple[Spread, Spread],
    nulls: Nulls,
    config: Settings,
    seed: list[int],
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Compare two fits: the columns `tables.PAIR` of their row, and those of their atoms.

    Of the two dictionaries the less diverse one counts (`less_diverse`), in the null as in the fits.
    """
    m, d = a.atoms.shape
    found = Matched.of(a, b, signless=signless)
    shared = found.shared(config.shared_cosine)
    random = nulls.of(m, d, signless=signless, encoder=found.encoder_cosine is not None)
    null = random.cosine
    null_low, null_high = interval(null.mean(axis=1), config.confidence)
    null_shared = (random.agree & (null > config.shared_cosine)).mean(axis=1)
    drawn = np.random.default_rng(seed).integers(0, m, size=(config.bootstraps, m))
    low, high = interval(found.cosine[drawn].mean(axis=1), config.confidence)
    shared_low, shared_high = interval(shared[drawn].mean(axis=1), config.confidence)
    row = {
        "mean_cosine": float(found.cosine.mean()),
        "low": float(low),
        "high": float(high),
        "shared": float(shared.mean()),
        "shared_low": float(shared_low),
        "shared_high": float(shared_high),
        "null": float(null.mean()),
        "null_low": float(null_low),
        "null_high": float(null_high),
        "shared_null": float(null_shared.mean()),
        "shared_null_high": float(null_shared.max()),
        "matched_on": "decoder" if found.encoder_cosine is None else "decoder and encoder",
        "encoder_cosine": float("nan") if found.encoder_cosine is None else float(found.encoder_cosine.mean()),
        "agree": float("nan") if found.encoder_cosine is None else float(found.agree.mean()),
        "m": m,
        "k": a.k,
    }
    low, high = interval(random.spreads, config.confidence)
    names = ("coherence", "stable_rank", "effective_rank")
    for name, value, drawn, *bounds in zip(names, less_diverse(*spreads), random.spreads.T, low, high):
        row |= {name: value, f"{name}_null": float(drawn.mean())}
        row |= {f"{name}_null_{end}": float(bound) for end, bound in zip(("low", "high"), bounds)}
    columns = {
        "atom": np.arange(m),
        "partner": found.partner,
        "cosine": found.cosine,
        "shared": shared,
        "null_cosine": null[0],
    }
    return row, columns


def stability(
    fits: Mapping[tuple[str, int], Fitted], methods: Mapping[str, str], config: Settings
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Stability of each dictionary over all pairs of its seeds.

    Atoms are matched one to one by their cosine, and again by that of their encoders where the codes come from a
    linear encoder of the method's own. An atom is shared when both matchings agree and the atoms' cosine is above
    `shared_cosine`. Methods without such an encoder (pursuits, PCA, ICA; any method read by another encoder) are
    matched by their atoms alone, which `matched_on` says: their share is held to less.

    The identity dictionary is left out: its atoms are the same by definition. The random dictionary stays in: it is
    an empirical null beside the computed one (`null`: isotropic random unit atoms of the same m and d, matched the
    same way). Stability means little without diversity (near-duplicate atoms match anything), so coherence, stable
    rank and effective rank of the less diverse of the two seeds stand beside it, their nulls those of the same random
    dictionaries. Dead atoms are matched like all others.

    Parameters
    ----------
    fits
        (dictionary, seed) → atoms and encoder.
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
    nulls = Nulls(config)
    seeds: dict[str, list[int]] = {}
    for name, seed in fits:
        seeds.setdefault(name, []).append(seed)
    for name, own in seeds.items():
        if methods[name] == "identity" or len(own) < 2:
            continue
        spreads = {seed: Spread.of(fits[name, seed].atoms) for seed in own}
        for seed_a, seed_b in combinations(sorted(own), 2):
            row, columns = compare_fits(
                fits[name, seed_a],
                fits[name, seed_b],
                signless=methods[name] in SIGNLESS,
                spreads=(spreads[seed_a], spreads[seed_b]),
                nulls=nulls,
                config=config,
                seed=seeded(config.seed, "stability", "bootstrap", seed_a, seed_b),
            )
            key = {"dictionary": name, "method": methods[name], "seed": seed_a, "seed_a": seed_a, "seed_b": seed_b}
            pairs.append(key | row)
            matched.append(pd.DataFrame({**key, **columns}))
    return pd.DataFrame(pairs), pd.concat(matched, ignore_index=True) if matched else pd.DataFrame()
