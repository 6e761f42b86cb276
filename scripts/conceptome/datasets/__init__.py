"""Readers of raw data, to one schema: `prepare` writes a data set, `load` opens it."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from conceptome.datasets.schema import Dataset, load
from conceptome.datasets.splits import assign_splits

if TYPE_CHECKING:
    from conceptome.config.datasets import DatasetBase

__all__ = ["Dataset", "assign_splits", "load", "outputs", "prepare"]

READERS = {
    "h5ad": "cells",
    "image_crops": "image_crops",
    "image_fields": "image_fields",
    "kang2018": "kang2018",
    "profiles": "profiles",
    "proteins": "proteins",
    "simulated_small": "simulated",
    "simulated_large": "simulated",
    "simulated_hierarchy": "simulated",
}


def outputs(reader: str) -> list[str]:
    """Names of the files that a reader writes."""
    images = ["crops.npy"]
    own = {
        "proteins": ["annotations.parquet", "sequences.fasta"],
        "image_crops": images,
        "image_fields": images,
    }.get(reader, ["X.h5ad"])
    truth = ["truth.parquet"] if READERS[reader] == "simulated" else []
    return ["card.json", "obs.parquet", *own, *truth]


def prepare(config: DatasetBase, inputs: dict[str, Path], folder: Path) -> None:
    """Read raw files and write one prepared data set.

    Parameters
    ----------
    config
        The `dataset` section of a study; its `reader` says which reader to use.
    inputs
        Input name (as in `config.inputs`) → local file.
    folder
        Where to write: obs.parquet, card.json, and X.h5ad, crops.npy, or sequences.fasta and
        annotations.parquet; truth.parquet for simulations. Equal inputs and configuration give equal bytes.

    Raises
    ------
    DataError
        The data contradict the configuration; one line says what, where and how to mend it.
    """
    module = importlib.import_module(f"conceptome.datasets.{READERS[config.reader]}")
    module.prepare(config, {name: Path(path) for name, path in inputs.items()}, Path(folder))
