"""What every measure of one (data set, model, whitening) reads."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conceptome.errors import DataError
from conceptome.measures.registry import MEASURES
from conceptome.measures.tables import assemble

if TYPE_CHECKING:
    import pandas as pd
    from scipy import sparse

    from conceptome.dictionaries import Dictionary

logger = logging.getLogger(__name__)


class Space:
    """The samples, activations, whitening and fits of one (data set, model, whitening).

    Parameters
    ----------
    dataset
        The prepared data set (card, and what else it holds: truth, expression, annotations, sequences).
    store
        The model's activations (n, d) with their obs.
    whitening
        The fitted whitening.
    fits
        (dictionary name, seed) → (Dictionary, Codes of all n samples), read when looked up.
    methods
        Dictionary name → method.
    place
        dataset, model, whitening: names for the columns of the tables.
    others
        Other models of the data set, by name: their stores. Only for a measure whose section names them (`models`).
    model
        The model's options and the folder or file of its weights (None: it has none). Only for a measure that runs the
        model again (`registry.MODEL_READERS`).
    threads
        Threads of whatever a measure computes.

    Raises
    ------
    DataError
        A split without samples; another model that is not of the same samples in the same order.
    """

    def __init__(
        self,
        dataset: Any,
        store: Any,
        whitening: Any,
        fits: Mapping[tuple[str, int], tuple[Any, Any]],
        methods: Mapping[str, str],
        place: Mapping[str, str],
        others: Mapping[str, Any] | None = None,
        model: tuple[Any, Path | None] | None = None,
        threads: int = 1,
    ):
        self.dataset, self.store, self.whitening, self.fits = dataset, store, whitening, fits
        self.methods, self.place = dict(methods), dict(place)
        self.model, self.threads = model, threads
        self.card: Mapping[str, Any] = dataset.card
        self.obs: pd.DataFrame = store.obs
        self.others = dict(others or {})
        for name, other in self.others.items():
            if not other.obs.index.equals(self.obs.index):
                raise DataError(
                    f"models '{name}' and '{place['model']}' do not have the same samples in the same order, so that "
                    "they cannot be compared: embed both again"
                )
        for name in ("train", "validation", "test"):
            if not (self.split == name).any():
                raise DataError(f"no sample is in the {name} split of the activations: check dataset.split")

    @cached_property
    def split(self) -> np.ndarray:
        """train, validation or test of every sample, (n,) object."""
        return self.obs["split"].astype(str).to_numpy()

    @cached_property
    def groups(self) -> np.ndarray:
        """Unit of independence of every sample, (n,) object."""
        return self.obs["group"].astype(str).to_numpy()

    @cached_property
    def control(self) -> np.ndarray:
        """Which samples are controls, (n,) bool."""
        return self.obs["control"].to_numpy(dtype=bool)

    def raw(self, rows: np.ndarray) -> np.ndarray:
        """Activations of `rows` (r,) as the model gave them: (r, d) float32."""
        return self.store.read(rows)

    def white(self, rows: np.ndarray) -> np.ndarray:
        """Whitened activations of `rows` (r,), in which dictionaries live: (r, components) float32."""
        return self.whitening.transform(self.store.read(rows))

    def each_fit(self) -> Iterator[tuple[str, int, Dictionary, sparse.csr_matrix]]:
        """Give dictionary name, seed, Dictionary and codes (n, m) of one fit after the other; none is kept.

        Raises
        ------
        DataError
            The codes of a fit are not of these samples or not over its atoms.
        """
        for name, seed in self.fits:
            dictionary, codes = self.fits[name, seed]
            matrix = codes.to_scipy()
            if matrix.shape != (self.store.shape[0], dictionary.atoms.shape[0]):
                raise DataError(
                    f"codes of dictionary {name}, seed {seed}, are {matrix.shape[0]} × {matrix.shape[1]}, but there "
                    f"are {self.store.shape[0]} samples and {dictionary.atoms.shape[0]} atoms: encode them again"
                )
            yield name, seed, dictionary, matrix
            logger.info("measured %s, seed %d", name, seed)


def measure(name: str, space: Space, config: Any, folder: Path) -> None:
    """Take one further measure of a space and write its tables, {table}.parquet, into `folder`.

    Parameters
    ----------
    name
        A key of `registry.MEASURES`.
    config
        The measure's section of the configuration.

    Raises
    ------
    DataError
        What the measure refuses.
    """
    from conceptome.files import write_parquet

    module = import_module(f"conceptome.measures.{name}")
    found = module.measure(space, config)
    for table in MEASURES[name]:
        frame = assemble(table, module.TABLES[table], found.get(table, []), space.place)
        write_parquet(Path(folder) / f"{table}.parquet", frame)
