"""Which samples and which classes a measure looks at."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from conceptome.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

    from conceptome.measures.space import Space


SPLITS = ("train", "validation", "test")


class ClassSettings(Protocol):
    """The settings by which a measure chooses classes and their samples."""

    min_groups_per_class: int
    min_test_groups_per_class: int
    max_rows: int
    seed: int


def seeded(seed: int, *words: object) -> list[int]:
    """Derive a seed for one use of randomness, named by words: independent streams from one configured seed."""
    return [seed, *(zlib.crc32(str(word).encode()) for word in words)]


def choose_rows(mask: np.ndarray, cap: int, seed: list[int]) -> np.ndarray:
    """Choose at most `cap` of the rows where `mask` (n,) holds, without replacement: sorted int64 indices."""
    rows = np.flatnonzero(mask)
    if len(rows) <= cap:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, size=cap, replace=False))


@dataclass(frozen=True)
class Classes:
    """The samples of one label's kept classes.

    Attributes
    ----------
    label, role
        Column name; biological or technical.
    rows
        (n,) int64 indices of the samples, sorted.
    y
        (n,) int64, which class each of these samples is in.
    names
        Class names, sorted; `y` indexes them.
    groups, split
        (n,) group and split of these samples.
    excluded
        Classes left out, each with the reason.
    """

    label: str
    role: str
    rows: np.ndarray
    y: np.ndarray
    names: list[str]
    groups: np.ndarray
    split: np.ndarray
    excluded: list[str]

    def part(self, *splits: str) -> np.ndarray:
        """Where (bool mask over `rows`) the split is one of `splits`."""
        return np.isin(self.split, splits)


def _natural(value: Any) -> tuple:
    """Sort key: numbers by size, before words in alphabetical order."""
    try:
        return (0, float(value), str(value))
    except ValueError:
        return (1, 0.0, str(value))


def class_name(value: Any) -> str:
    """Class name to show: 24 rather than 24.0."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def described_label(obs: pd.DataFrame, card: Mapping[str, Any], label: str) -> Mapping[str, Any]:
    """What the data set's card says of a label that is to have classes: kind, role, title.

    Raises
    ------
    DataError
        The column is missing or numeric.
    """
    described = card.get("labels", {}).get(label)
    if described is None or label not in obs:
        known = ", ".join(sorted(card.get("labels", {}))) or "none"
        raise DataError(f"label '{label}' is not in the data set (labels: {known}); declare it under dataset.labels")
    if described.get("kind") == "numeric":
        raise DataError(
            f"label '{label}' is numeric, but selectivity, probes and enrichment need classes: declare it categorical "
            "or ordinal, or take it out of measures and enrichment"
        )
    return described


def _groups(count: int) -> str:
    return f"{count} group{'s' if count != 1 else ''}"


def choose_classes(
    obs: pd.DataFrame,
    card: Mapping[str, Any],
    label: str,
    *,
    min_groups: int,
    min_test_groups: int,
    max_rows: int,
    seed: list[int],
) -> Classes:
    """Keep the classes of a label that can be learned on some groups and judged on others.

    A class stays when it occurs in at least `min_groups` groups, in every split, and in at least `min_test_groups`
    groups of the test split; the others are listed as excluded, and their samples, like samples without a label, are
    left out.

    Parameters
    ----------
    obs
        One row per sample, with `group`, `split` and the label.
    card
        The data set's card; `card["labels"][label]` gives kind and role.
    max_rows
        At most this many samples, drawn with `seed` before the classes are counted in each split.

    Raises
    ------
    DataError
        The column is missing or numeric.
    """
    import pandas as pd

    described = described_label(obs, card, label)
    values = obs[label]
    present = values.notna().to_numpy()
    rows = choose_rows(present, max_rows, seed)
    groups = obs["group"].astype(str).to_numpy()
    split = obs["split"].astype(str).to_numpy()
    # Codes follow first appearance, and a missing label is coded -1; classes are put into natural order.
    codes, found = pd.factorize(values)
    order = sorted(range(len(found)), key=lambda position: _natural(found[position]))
    n_groups = pd.Series(groups[present]).groupby(codes[present]).nunique()
    places = pd.DataFrame({"class": codes[rows], "split": split[rows], "group": groups[rows]}).drop_duplicates()
    per_split = places.groupby(["class", "split"]).size().unstack(fill_value=0).reindex(columns=SPLITS, fill_value=0)
    excluded, kept = [], []
    for position in order:
        name, count = class_name(found[position]), n_groups[position]
        found_in = dict(per_split.loc[position]) if position in per_split.index else dict.fromkeys(SPLITS, 0)
        absent = [part for part in SPLITS if not found_in[part]]
        if count < min_groups:
            excluded.append(f"{name} ({_groups(count)})")
        elif absent:
            excluded.append(f"{name} (not in {' and '.join(absent)})")
        elif found_in["test"] < min_test_groups:
            excluded.append(f"{name} ({_groups(found_in['test'])} in test)")
        else:
            kept.append(position)
    number = np.full(len(found) + 1, -1, dtype=np.int64)
    number[kept] = np.arange(len(kept))
    rows = rows[number[codes[rows]] >= 0]
    return Classes(
        label=label,
        role=described.get("role", "biological"),
        rows=rows,
        y=number[codes[rows]],
        names=[class_name(found[position]) for position in kept],
        groups=groups[rows],
        split=split[rows],
        excluded=excluded,
    )


def classes_of(space: Space, config: ClassSettings, label: str, word: str) -> Classes:
    """Keep the classes of a label of `space` under a measure's own settings (`choose_classes`).

    Parameters
    ----------
    config
        The measure's section of the configuration.
    word
        Names the use of randomness in the seed of the samples drawn: measures of one word look at the same samples.

    Raises
    ------
    DataError
        The column is missing or numeric.
    """
    return choose_classes(
        space.obs,
        space.card,
        label,
        min_groups=config.min_groups_per_class,
        min_test_groups=config.min_test_groups_per_class,
        max_rows=config.max_rows,
        seed=seeded(config.seed, word, label),
    )
