"""Seeded draws and the split of groups into train, validation and test."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from conceptome.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

    from conceptome.config.datasets import Split

SPLITS = ("train", "validation", "test")


def stream(seed: int, purpose: str) -> np.random.Generator:
    """Give the random stream of one purpose.

    Every purpose (split, control, subsample …) draws from its own stream, so that adding a draw of one kind changes
    no draw of another.
    """
    return np.random.default_rng([seed, zlib.crc32(purpose.encode())])


def assign_splits(groups: pd.Series, split: Split, strata: pd.DataFrame | None = None) -> pd.Series:
    """Assign whole groups to train, validation and test.

    The draw depends on the set of group names and the seed, not on the order of the rows.

    Parameters
    ----------
    groups
        Group (unit of independence) of every sample, length n.
    split
        Fractions of groups and the seed.
    strata
        Optional groups × concepts table of bool, indexed by group name. Groups are then dealt so that every concept
        is spread over the three splits in proportion, rarest concept first (iterative stratification, Sechidis,
        Tsoumakas and Vlahavas 2011).

    Returns
    -------
    pandas.Series
        'train', 'validation' or 'test' per sample, index of `groups`.

    Raises
    ------
    DataError
        There are fewer than three groups, or a sample has no group.
    """
    if groups.isna().any():
        raise DataError(f"{int(groups.isna().sum())} samples have no group: the split needs one for every sample")
    names = np.array(sorted(set(groups.astype(str))), dtype=object)
    if len(names) < 3:
        raise DataError(
            f"a split by group needs at least 3 groups, there are {len(names)} ({', '.join(names)}): "
            "choose a finer 'group' column, or none"
        )
    rng = stream(split.seed, "split")
    n_validation = max(1, round(split.validation * len(names)))
    n_test = min(max(1, round(split.test * len(names))), len(names) - n_validation - 1)
    sizes = {"train": len(names) - n_validation - n_test, "validation": n_validation, "test": n_test}
    order = names[rng.permutation(len(names))]
    if strata is None:
        dealt = np.repeat(np.array(SPLITS, dtype=object), [sizes[name] for name in SPLITS])
    else:
        dealt = _stratify(strata.reindex(order, fill_value=False).to_numpy(bool), sizes)
    return groups.astype(str).map(dict(zip(order, dealt))).astype(object).rename("split")


def planned_splits(units: pd.Series, plan: Mapping[str, Sequence[str]], where: str) -> pd.Series:
    """Assign whole units to the splits that a study names for them.

    Parameters
    ----------
    units
        Unit (plate, say) of every sample, length n.
    plan
        train, validation, test → its units.

    Returns
    -------
    pandas.Series
        'train', 'validation' or 'test' per sample, index of `units`.

    Raises
    ------
    DataError
        A unit is in no split or in two, or a split names a unit that does not exist.
    """
    named = [(str(unit), split) for split in SPLITS for unit in plan.get(split, ())]
    dealt = dict(named)
    known = set(units.astype(str))
    for unit, split in named:
        if dealt[unit] != split:
            raise DataError(f"{where}: split_plan puts '{unit}' into {dealt[unit]} and {split}: choose one")
        if unit not in known:
            raise DataError(
                f"{where}: split_plan.{split} names '{unit}', which no sample has ({', '.join(sorted(known))})"
            )
    left = sorted(known - set(dealt))
    if left:
        raise DataError(f"{where}: split_plan leaves out '{left[0]}'" + f" and {len(left) - 1} more" * (len(left) > 1))
    return units.astype(str).map(dealt).astype(object).rename("split")


def _stratify(member: np.ndarray, sizes: dict[str, int]) -> np.ndarray:
    """Deal groups (rows of `member`, bool groups × concepts, in random order) to splits of the given sizes."""
    n = len(member)
    fractions = np.array([sizes[name] for name in SPLITS], float) / n
    room = np.array([sizes[name] for name in SPLITS], float)
    # How much of each concept a split still lacks, in proportion to the split's size.
    lack = np.repeat(member.sum(0)[:, None].astype(float), 3, axis=1)
    dealt = np.full(n, -1)
    open_rows = np.ones(n, bool)
    while True:
        left = member[open_rows].sum(0)
        if not left.any():
            break
        concept = int(np.argmin(np.where(left > 0, left, n + 1)))
        for row in np.flatnonzero(open_rows & member[:, concept]):
            # The split that lacks most of this concept, then of all of the group's concepts; a full one takes nothing.
            all_lack = (lack[member[row]] / member[:, member[row]].sum(0)[:, None]).sum(0)
            best = max(
                range(3), key=lambda s: (room[s] > 0, round(lack[concept, s], 9), round(all_lack[s], 9), room[s])
            )
            dealt[row] = best
            open_rows[row] = False
            room[best] -= 1
            lack[member[row], best] -= 1 / fractions[best]
    rest = np.flatnonzero(open_rows)
    dealt[rest] = np.repeat(np.arange(3), room.astype(int))
    return np.array(SPLITS, dtype=object)[dealt]
