"""The columns of every evidence table, and how one is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

PLACE = {"dataset": "object", "model": "object", "whitening": "object"}
FIT = {**PLACE, "dictionary": "object", "method": "object", "seed": "int64"}

# An estimate's interval, and its null with the null's own interval.
ESTIMATE = dict.fromkeys(("low", "high", "null", "null_low", "null_high"), "float64")

# The columns of two fits that are compared, but for what names them.
PAIR: dict[str, str] = {
    "mean_cosine": "float64",
    "low": "float64",
    "high": "float64",
    "shared": "float64",
    "shared_low": "float64",
    "shared_high": "float64",
    "null": "float64",
    "null_low": "float64",
    "null_high": "float64",
    "shared_null": "float64",
    "shared_null_high": "float64",
    "matched_on": "object",
    "encoder_cosine": "float64",
    "agree": "float64",
    **{
        f"{name}{part}": "float64"
        for name in ("coherence", "stable_rank", "effective_rank")
        for part in ("", "_null", "_null_low", "_null_high")
    },
    "m": "int64",
    "k": "int64",
}

TABLES: dict[str, dict[str, str]] = {
    "reconstruction": {
        **FIT,
        "split": "object",
        "k": "int64",
        "trained_k": "int64",
        "l0": "float64",
        "fvu": "float64",
        "fvu_low": "float64",
        "fvu_high": "float64",
        "r2": "float64",
        "r2_low": "float64",
        "r2_high": "float64",
        "r2_null": "float64",
        "fvu_raw": "float64",
        "fvu_raw_low": "float64",
        "fvu_raw_high": "float64",
        "fvu_null": "float64",
        "fvu_null_low": "float64",
        "fvu_null_high": "float64",
        "dead": "int64",
        "dead_low": "float64",
        "dead_high": "float64",
        "dead_null": "float64",
        "dead_null_low": "float64",
        "dead_null_high": "float64",
        "dense": "int64",
        "m": "int64",
        "d": "int64",
        "n": "int64",
        "n_train": "int64",
    },
    "selectivity": {
        **FIT,
        "label": "object",
        "role": "object",
        "atom": "int64",
        "best_class": "object",
        "avg": "float64",
        "avg_low": "float64",
        "avg_high": "float64",
        "best_class_max": "object",
        "max": "float64",
        "max_low": "float64",
        "max_high": "float64",
        "n": "int64",
        "n_active": "int64",
        "active_rule": "object",
    },
    "selectivity_null": {
        **FIT,
        "label": "object",
        "statistic": "object",
        "rank": "int64",
        "low": "float64",
        "median": "float64",
        "high": "float64",
    },
    "probes": {
        **FIT,
        "label": "object",
        "role": "object",
        "balanced_accuracy": "float64",
        **ESTIMATE,
        "chance": "float64",
        "n_classes": "int64",
        "n_train": "int64",
        "n_test": "int64",
        "n_groups_test": "int64",
        "strength": "float64",
        "excluded": "object",
        "group_is": "object",
    },
    "stability": {
        **PLACE,
        "dictionary": "object",
        "method": "object",
        "seed": "int64",
        "seed_a": "int64",
        "seed_b": "int64",
        **PAIR,
    },
    "stability_atoms": {
        **FIT,
        "seed_a": "int64",
        "seed_b": "int64",
        "atom": "int64",
        "partner": "int64",
        "cosine": "float64",
        "shared": "bool",
        "null_cosine": "float64",
    },
    "recovery": {
        **FIT,
        "variable": "object",
        "layer": "object",
        "atom": "int64",
        "best_correlation": "float64",
        **ESTIMATE,
        "completeness_r2": "float64",
        "completeness_low": "float64",
        "completeness_high": "float64",
        "completeness_null": "float64",
        "recovered": "bool",
        "n": "int64",
    },
    "activations": {
        **PLACE,
        "sample_id": "object",
        "pc1": "float64",
        "pc2": "float64",
        **{f"pc{axis}_share{part}": "float64" for axis in (1, 2) for part in ("", "_low", "_high", "_null")},
        "control": "bool",
        "group": "object",
        "batch": "object",
        "split": "object",
    },
    "spectrum": {
        **PLACE,
        "component": "int64",
        "eigenvalue": "float64",
        **ESTIMATE,
        "n": "int64",
    },
}


def stack(columns: Iterable[str], frames: Iterable[pd.DataFrame], place: Mapping[str, str]) -> pd.DataFrame:
    """Stack frames and add the constant columns `place`; without frames, an empty one with these columns."""
    import pandas as pd

    frames = [frame for frame in frames if len(frame)]
    stacked = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(columns))
    for name, value in place.items():
        stacked[name] = pd.Series([value] * len(stacked), index=stacked.index, dtype="object")
    return stacked


def assemble(
    table: str, columns: Mapping[str, str], frames: Iterable[pd.DataFrame], place: Mapping[str, str]
) -> pd.DataFrame:
    """Stack the frames of one table in its column order and types; without frames, an empty table with its columns.

    Parameters
    ----------
    table
        Its name, for the message.
    columns
        Column → dtype. Columns beyond those listed (labels) are kept, after the listed ones.
    frames
        Any number of frames.
    place
        dataset, model and whitening: constant columns.
    """
    stacked = stack(columns, frames, place)
    missing = [name for name in columns if name not in stacked]
    if missing:
        raise ValueError(f"table {table} lacks columns {', '.join(missing)}")
    extra = [name for name in stacked if name not in columns]
    return stacked[[*columns, *extra]].astype(columns)


def write(table: str, frames: Iterable[pd.DataFrame], place: Mapping[str, str], folder: Path) -> None:
    """Write `assemble(...)` to folder/{table}.parquet."""
    from conceptome.files import write_parquet

    write_parquet(folder / f"{table}.parquet", assemble(table, TABLES[table], frames, place))


def headline(folder: Path) -> dict[str, float]:
    """Summarise written tables in a few numbers, averaged over seeds: 'dictionary/measure' → value.

    fvu (trained budget, test), balanced_accuracy of each probed label, mean_cosine of seed pairs, recovered (share of
    the hidden variables); measures that were not made are absent.
    """
    from conceptome.files import read_parquet

    fvu = read_parquet(folder / "reconstruction.parquet")
    probes = read_parquet(folder / "probes.parquet").dropna(subset="balanced_accuracy")
    probes["measure"] = "balanced_accuracy/" + probes["label"]
    parts = (
        (fvu[fvu["k"] == fvu["trained_k"]].assign(measure="fvu"), "fvu"),
        (probes, "balanced_accuracy"),
        (read_parquet(folder / "stability.parquet").assign(measure="mean_cosine"), "mean_cosine"),
        (read_parquet(folder / "recovery.parquet").assign(measure="recovered"), "recovered"),
    )
    found = {}
    for frame, column in parts:
        for (dictionary, measure), value in frame.groupby(["dictionary", "measure"])[column].mean().items():
            found[f"{dictionary}/{measure}"] = float(value)
    return found
