"""Whether two halves of the data give the same atoms."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from conceptome.config.dictionaries import SEEDLESS
from conceptome.errors import ConfigError, DataError
from conceptome.measures.atoms import SIGNLESS
from conceptome.measures.diversity import ranks
from conceptome.measures.rows import choose_rows, seeded
from conceptome.measures.stability import Fitted, Nulls, Spread, compare_fits
from conceptome.measures.tables import FIT, PAIR
from conceptome.statistics import group_codes, jackknife

if TYPE_CHECKING:
    import pandas as pd

    from conceptome.config.further import DataStability
    from conceptome.dictionaries import Dictionary
    from conceptome.measures.space import Space

logger = logging.getLogger(__name__)

BLOCKS = 10  # of atoms, which the jackknife of effective rank leaves out in turn

TABLES = {
    "data_stability": {
        **FIT,
        "repeat": "int64",
        "differs": "object",
        "seed_a": "int64",
        "seed_b": "int64",
        **PAIR,
        "effective_rank_low": "float64",
        "effective_rank_high": "float64",
        "n_a": "int64",
        "n_b": "int64",
        "groups_a": "int64",
        "groups_b": "int64",
    },
}


def halves(groups: np.ndarray, seed: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Split samples into two halves with no group in both.

    Parameters
    ----------
    groups
        (n,) the group of each sample.

    Returns
    -------
    a, b
        int64 positions, sorted; the number of groups differs by one at most.

    Raises
    ------
    DataError
        Fewer than two groups.
    """
    codes, names = group_codes(groups)
    if len(names) < 2:
        raise DataError("measures.data_stability needs training samples of at least two groups: check dataset.group")
    first = np.zeros(len(names), dtype=bool)
    first[np.random.default_rng(seed).permutation(len(names))[: len(names) // 2]] = True
    return np.flatnonzero(first[codes]), np.flatnonzero(~first[codes])


def again(dictionary: Dictionary, X: np.ndarray, seed: int, steps: int | None) -> Dictionary:
    """Fit a dictionary of the same method and options on the rows X (n, d), in at most `steps` gradient steps."""
    from conceptome.dictionaries import fit

    options: dict[str, Any] = {key: value for key, value in dictionary.card["options"].items() if key != "method"}
    if steps is not None and "steps" in options:
        options["steps"] = min(options["steps"], steps)
    return fit(dictionary.card["method"], X, seed=seed, **options)


def measure(space: Space, config: DataStability) -> dict[str, list[pd.DataFrame]]:
    """Stability of dictionaries over disjoint halves of the training groups.

    Of each halving three dictionaries are fitted: on half a with two seeds, and on half b with the first seed. Their
    pairs differ in the seed alone, in the data alone, and in both (`differs`). A trained method starts from its seed:
    where only the data differ, atoms that training left where they were agree for no other reason. What counts is the
    pair that differs in both, beside the one that differs in the seed alone.

    Matching, null (random unit atoms) and diversity are those of `stability`; intervals are bootstraps over atoms, for
    effective rank jackknives over blocks of them (of the less diverse dictionary).
    Options, whitening and rows are those of the study, but for `steps` and `max_rows`.

    Returns
    -------
    dict
        `data_stability`: one row per dictionary, halving and pair. `seed` is the first seed of the pair.

    Raises
    ------
    ConfigError
        A dictionary that the study does not have, or one whose atoms are fixed.
    DataError
        Training samples of fewer than two groups.

    References
    ----------
    Paulo and Belrose 2025 (matching); Fel et al. 2025 (stability beside diversity).
    """
    import pandas as pd

    first = {name: seed for name, seed in reversed(list(space.fits))}
    for name in config.dictionaries:
        if name not in first:
            raise ConfigError(
                f"measures.data_stability: no dictionary '{name}' in this study (there are {', '.join(first)})"
            )
        if space.methods[name] in ("identity", "random"):
            raise ConfigError(
                f"measures.data_stability: the atoms of '{name}' do not come from data: take it out of dictionaries"
            )
    rows = choose_rows(space.split == "train", config.max_rows, seeded(config.seed, "data_stability"))
    X, groups, nulls, found = space.white(rows), space.groups[rows], Nulls(config), []
    for repeat in range(config.repeats):
        sides = halves(groups, seeded(config.seed, "data_stability", "halves", repeat))
        sizes = [(len(side), len(np.unique(groups[side]))) for side in sides]
        for name in config.dictionaries:
            method, seed = space.methods[name], first[name]
            other = seed + 1
            pairs = {"seed": ((0, seed), (0, other)), "data": ((0, seed), (1, seed)), "both": ((0, other), (1, seed))}
            if method in SEEDLESS:
                pairs = {"data": pairs["data"]}
            dictionary, _ = space.fits[name, seed]
            wanted = dict.fromkeys(fit for pair in pairs.values() for fit in pair)
            fits = {
                (side, number): Fitted.of(again(dictionary, X[sides[side]], number, config.steps))
                for side, number in wanted
            }
            spreads = {key: Spread.of(fitted.atoms) for key, fitted in fits.items()}
            rank_of = {
                key: ranks(fitted.atoms, BLOCKS, np.random.default_rng(seeded(config.seed, "data_stability", "blocks")))
                for key, fitted in fits.items()
            }
            for differs, (a, b) in pairs.items():
                row, _ = compare_fits(
                    fits[a],
                    fits[b],
                    signless=method in SIGNLESS,
                    spreads=(spreads[a], spreads[b]),
                    nulls=nulls,
                    config=config,
                    seed=seeded(config.seed, "data_stability", "bootstrap", name, repeat, differs),
                )
                rank = min((rank_of[key]["effective_rank"] for key in (a, b)), key=lambda estimate: estimate.value)
                rank_low, rank_high = jackknife(rank.value, rank.left_out, config.confidence)
                found.append(
                    {
                        "dictionary": name,
                        "method": method,
                        "seed": a[1],
                        "repeat": repeat,
                        "differs": differs,
                        "seed_a": a[1],
                        "seed_b": b[1],
                        **row,
                        "effective_rank_low": float(rank_low),
                        "effective_rank_high": float(rank_high),
                        "n_a": sizes[a[0]][0],
                        "n_b": sizes[b[0]][0],
                        "groups_a": sizes[a[0]][1],
                        "groups_b": sizes[b[0]][1],
                    }
                )
            logger.info("fitted %s on two halves, halving %d", name, repeat)
    return {"data_stability": [pd.DataFrame(found)]}
