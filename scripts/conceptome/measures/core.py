"""The measures of every run, in one job: each with an interval and a null, each table written even without rows."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conceptome.errors import DataError
from conceptome.measures.probes import probe
from conceptome.measures.projection import projection, spectrum
from conceptome.measures.reconstruction import Variance, group_draws, reconstruction
from conceptome.measures.recovery import Hidden, recovery
from conceptome.measures.rows import choose_classes, choose_rows, seeded
from conceptome.measures.selectivity import activity, selectivity
from conceptome.measures.stability import Fitted, stability
from conceptome.measures.tables import TABLES, write

if TYPE_CHECKING:
    import pandas as pd
    from scipy import sparse

    from conceptome.config.evidence import Measures

logger = logging.getLogger(__name__)


class _Bench:
    """What all dictionaries of one (data set, model, whitening) share: rows, classes, variances, truth."""

    def __init__(self, dataset: Any, store: Any, whitening: Any, config: Measures):
        self.config = config
        self.whitening = whitening
        self.card = dataset.card
        self.obs = store.obs
        self.split = self.obs["split"].astype(str).to_numpy()
        self.groups = self.obs["group"].astype(str).to_numpy()
        self.control = self.obs["control"].to_numpy(dtype=bool)
        self.train, test = self.split == "train", self.split == "test"
        for name, mask in (("train", self.train), ("test", test)):
            if not mask.any():
                raise DataError(f"no sample is in the {name} split of the activations: check dataset.split")

        self.test_rows = choose_rows(test, config.max_rows, seeded(config.seed, "test"))
        groups = self.groups[self.test_rows]
        draws = group_draws(groups, config, seeded(config.seed, "reconstruction"))
        raw = store.read(self.test_rows)
        self.raw = Variance(raw, groups, draws)
        self.white = Variance(whitening.transform(raw), groups, draws)

        self.selectivity = [self._classes(label, config.selectivity_max_rows) for label in config.selectivity]
        self.probes = [self._classes(label, config.probe_max_rows) for label in config.probes]
        for classes in self.selectivity:
            if len(classes.names) < 2:
                left_out = "; ".join(classes.excluded)
                logger.warning("selectivity: fewer than two classes of %s are left (%s)", classes.label, left_out)
        self.hidden, self.hidden_rows = None, np.zeros(0, dtype=np.int64)
        if config.recovery:
            truth = dataset.truth()
            if truth is None:
                raise DataError("measures.recovery is on, but the data set carries no hidden variables: turn it off")
            rows = choose_rows(np.ones(len(self.split), dtype=bool), 2 * config.max_rows, seeded(config.seed, "truth"))
            missing = ~self.obs.index.isin(truth.index)
            if missing.any():
                raise DataError(f"{int(missing.sum())} samples of the activations have no row in truth.parquet")
            values = truth.loc[self.obs.index[rows]].to_numpy(dtype=np.float64)
            self.hidden_rows = rows
            self.hidden = Hidden(
                [str(name) for name in truth.columns],
                values,
                store.read(rows),
                self.split[rows],
                self.groups[rows],
                config,
            )

    def _classes(self, label: str, max_rows: int):
        return choose_classes(
            self.obs,
            self.card,
            label,
            min_groups=self.config.min_groups_per_class,
            min_test_groups=self.config.min_test_groups_per_class,
            max_rows=max_rows,
            seed=seeded(self.config.seed, "classes", label),
        )

    def tables(self, dictionary: Any, codes: sparse.csr_matrix) -> dict[str, list[pd.DataFrame]]:
        """Everything that is measured on one fit alone."""
        options = dictionary.card.get("options") or {}
        found = {
            "reconstruction": [
                reconstruction(
                    dictionary,
                    codes,
                    train=self.train,
                    groups=self.groups,
                    test_rows=self.test_rows,
                    white=self.white,
                    raw=self.raw,
                    whitening=self.whitening,
                    config=self.config,
                    k_step=int(options.get("columns") or 1),
                )
            ],
            "selectivity": [],
            "selectivity_null": [],
            "probes": [
                probe(codes[classes.rows], classes, self.config, str(self.card.get("group_is", "group")))
                for classes in self.probes
            ],
            "recovery": [],
        }
        for classes in self.selectivity:
            if len(classes.names) < 2:
                continue
            active, rule = activity(codes[classes.rows], classes.part("train"), self.config.dense_active)
            table, null = selectivity(active, rule, classes, self.config)
            found["selectivity"].append(table)
            found["selectivity_null"].append(null)
        if self.hidden is not None:
            found["recovery"].append(recovery(codes[self.hidden_rows], self.hidden, self.config))
        return found


def _mark(codes: sparse.csr_matrix, atoms: np.ndarray) -> tuple:
    """Mark a fit, so that deterministic methods (PCA, identity) are measured once, not once per seed.

    Checksums, not cryptographic digests: dense codes take hundreds of megabytes, and nobody forges them.
    """
    parts = (atoms, codes.indptr, codes.indices, codes.data)
    return codes.nnz, *(zlib.crc32(np.ascontiguousarray(part)) for part in parts)


def measure(
    dataset: Any,
    store: Any,
    whitening: Any,
    fits: Mapping[tuple[str, int], tuple[Any, Any]],
    config: Measures,
    folder: Path,
    *,
    place: Mapping[str, str] | None = None,
) -> None:
    """Measure all dictionaries on one (data set, model, whitening) and write one table per measure.

    Parameters
    ----------
    dataset
        The prepared data set (card, truth).
    store
        The model's activations (n, d) with their obs.
    whitening
        The fitted whitening.
    fits
        (dictionary name, seed) → (Dictionary, Codes of all n samples). Each entry is looked up once, in order, and
        only its atoms are kept: a mapping that loads on access keeps one fit in memory at a time.
    config
        Which measures run, and their settings.
    folder
        Where the tables of `tables.TABLES` are written, as {table}.parquet.
    place
        dataset, model, whitening for the columns of these names; by default the last three parts of `folder`.

    Raises
    ------
    DataError
        Codes and activations differ in their number of samples; a label is missing or numeric; an empty split.
    """
    folder = Path(folder)
    place = dict(zip(("dataset", "model", "whitening"), folder.parts[-3:])) if place is None else dict(place)
    bench = _Bench(dataset, store, whitening, config)
    frames: dict[str, list[pd.DataFrame]] = {name: [] for name in TABLES}
    kept: dict[tuple[str, int], Fitted] = {}
    methods: dict[str, str] = {}
    seen: dict[tuple[str, tuple], dict[str, list[pd.DataFrame]]] = {}
    for name, seed in fits:
        dictionary, codes = fits[name, seed]
        matrix = codes.to_scipy()
        if matrix.shape != (store.shape[0], dictionary.atoms.shape[0]):
            raise DataError(
                f"codes of dictionary {name}, seed {seed}, are {matrix.shape[0]} × {matrix.shape[1]}, but there are "
                f"{store.shape[0]} samples and {dictionary.atoms.shape[0]} atoms: encode them again"
            )
        methods[name] = str(dictionary.card["method"])
        kept[name, seed] = Fitted.of(dictionary)
        key = (name, _mark(matrix, kept[name, seed].atoms))
        if key not in seen:
            seen[key] = bench.tables(dictionary, matrix)
        for table, parts in seen[key].items():
            frames[table] += [part.assign(dictionary=name, method=methods[name], seed=seed) for part in parts]
        logger.info("measured %s, seed %d", name, seed)

    pairs, matched = stability(kept, methods, config)
    frames["stability"], frames["stability_atoms"] = [pairs], [matched]
    every = np.ones(len(bench.split), dtype=bool)
    shown = choose_rows(every, config.max_rows, seeded(config.seed, "projection"))
    # The rows on which a whitening is fitted; a data set without training controls is centred on all training samples.
    fitted = bench.control & bench.train
    fitted = choose_rows(fitted if fitted.any() else bench.train, config.max_rows, seeded(config.seed, "axes"))
    frames["activations"] = [
        projection(
            whitening.transform(store.read(fitted)),
            bench.groups[fitted],
            whitening.transform(store.read(shown)),
            bench.obs.iloc[shown],
            config,
            white=whitening.card.get("method") == "pca",
        )
    ]
    unseen = choose_rows(bench.control & (bench.split == "test"), config.max_rows, seeded(config.seed, "spectrum"))
    if len(unseen):
        frames["spectrum"] = [spectrum(whitening.transform(store.read(unseen)), bench.groups[unseen], config)]
    for table in TABLES:
        write(table, frames[table], place, folder)
