"""Foundation models: one adapter per file, each turning a data set into activations.

An adapter is a function `embed(config, dataset, *, threads, weights) -> Embedding` in a module of its own; its name
stands in `MODELS`, its options are a pydantic model in `conceptome.config.models`. Heavy libraries are imported when
the adapter runs, not before.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conceptome.activations import LAYERS, Store, StoreWriter
from conceptome.errors import ConceptomeError, ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import numpy as np
    import pandas as pd

    from conceptome.config.models import Model
    from conceptome.datasets import Dataset
    from conceptome.models.base import Embedding

__all__ = ["MODELS", "SCATTERED", "embed", "gather"]

log = logging.getLogger(__name__)

# Key of a part's card: which samples of the data set it holds.
PART = "part"

MODELS: dict[str, str] = {
    "autoencoder": "conceptome.models.autoencoder:embed",
    "channel_agnostic_mae": "conceptome.models.channel_agnostic_mae:embed",
    "cp_measure": "conceptome.models.cp_measure_features:embed",
    "dgd": "conceptome.models.dgd:embed",
    "esm2": "conceptome.models.esm2:embed",
    "esmc": "conceptome.models.esmc:embed",
    "geneformer": "conceptome.models.geneformer:embed",
    "intensity": "conceptome.models.intensity:embed",
    "onnx": "conceptome.models.onnx_backbone:embed",
    "pca": "conceptome.models.pca:embed",
    "profiles": "conceptome.models.profiles:embed",
    "protein_bert": "conceptome.models.protein_bert:embed",
    "protein_t5": "conceptome.models.protein_t5:embed",
    "scgpt": "conceptome.models.scgpt:embed",
    "scvi": "conceptome.models.scvi:embed",
    "timm": "conceptome.models.timm_backbone:embed",
    "transformers_vision": "conceptome.models.transformers_vision:embed",
    "unirep": "conceptome.models.unirep:embed",
}
# Adapters whose weights are ready, so that they can begin at any row: the others are fitted here, by one job.
SCATTERED = (
    "channel_agnostic_mae",
    "esm2",
    "esmc",
    "geneformer",
    "protein_t5",
    "scgpt",
    "timm",
    "transformers_vision",
    "unirep",
)


def embed(
    config: Model,
    dataset: Dataset,
    folder: str | Path,
    *,
    threads: int = 1,
    weights: Path | None = None,
    unfinished: str | Path | None = None,
    part: tuple[int, int] | None = None,
) -> Store:
    """Compute a model's activations of every sample and write them as a store, streaming.

    Parameters
    ----------
    config
        One entry of a study's `models`.
    dataset
        A prepared data set.
    folder
        Where the activation store goes.
    threads
        Threads of the numerical libraries. Bytes repeat for a given number of threads.
    weights
        Folder with a checkpoint, or its file, for adapters whose weights are a source.
    unfinished
        Folder where shards are gathered until all are there. What an interrupted call leaves in it, the next one with
        the same model, weights and samples goes on from, to the same bytes; None: in `folder`, and always from the
        first row. Models that are trained here begin anew either way.
    part
        (i, N), i from 1 to N: only the i-th of N runs of neighbouring samples, for `gather`. What is computed together
        is a matter of the data set alone, and so the bits of a row do not depend on N.

    Returns
    -------
    Store
        n samples in the order of `dataset.obs` × d dimensions. Its card holds adapter, layer, options, stand_in,
        weights_sha256, training and notes. Further layers (`also_layers`) are stores in its folder `layers`.

    Raises
    ------
    ConfigError
        The adapter or layer is unknown, its weights are not declared, or a part is asked of a model that is trained
        here.
    SourceError
        Weights are missing or are not those of the declared model.
    DataError
        The data set is not of the kind the model reads, or the activations are not finite.
    """
    from threadpoolctl import threadpool_limits

    if config.adapter not in MODELS:
        raise ConfigError(f"model adapter '{config.adapter}' is unknown; known adapters: {', '.join(MODELS)}")
    module, name = MODELS[config.adapter].split(":")
    adapter = getattr(importlib.import_module(module), name)
    options = config.model_dump(mode="json", exclude={"adapter", "path", "dictionaries"})
    with threadpool_limits(limits=threads):
        embedding = adapter(config, dataset, threads=threads, weights=weights)
        card = {
            "adapter": config.adapter,
            "layer": None,
            "options": options,
            "stand_in": None,
            "weights_sha256": None,
            "training": None,
            "notes": [],
        } | embedding.card
        obs = dataset.obs if embedding.obs is None else embedding.obs
        where = Path(folder)
        digest, first = None, 0
        if part is not None:
            if embedding.from_row is None:
                raise ConfigError(f"model adapter '{config.adapter}' is fitted here and has no parts: embed it whole")
            first, last = bounds(len(obs), *part)
            own = embedding.obs is not None
            card = card | {PART: {"first": first, "last": last, "total": len(obs), "own_obs": own}}
            obs = obs.iloc[first:last]
        if unfinished is not None and embedding.from_row is not None:
            where, digest = Path(unfinished), _digest(config, card, obs, threads)
        store = _write(embedding, where, obs, card, config, digest, first)
        if where != Path(folder):
            shutil.rmtree(folder, ignore_errors=True)
            shutil.move(where, folder)
            store = Store(folder)
    log.info("%s: activations of %d samples × %d dimensions", config.adapter, *store.shape)
    return store


def bounds(n: int, i: int, parts: int) -> tuple[int, int]:
    """First sample of the i-th of some parts of n samples, and the one after its last.

    Raises
    ------
    ConfigError
        More parts than samples, or no such part.

    >>> [bounds(10, i, 3) for i in (1, 2, 3)]
    [(0, 3), (3, 6), (6, 10)]
    """
    if not 1 <= i <= parts:
        raise ConfigError(f"there is no part {i} of {parts}")
    if parts > n:
        raise ConfigError(f"{n} samples cannot be cut into {parts} parts: lower `scatter`")
    return n * (i - 1) // parts, n * i // parts


def gather(config: Model, parts: Sequence[str | Path], folder: str | Path, obs: pd.DataFrame) -> Store:
    """Write the parts of an embedding as the store that one job would have written, byte by byte.

    Parameters
    ----------
    config
        The model's entry, as `embed` had it.
    parts
        Stores that `embed` wrote with `part` 1, 2, …, N, in this order.
    folder
        Where the whole store goes.
    obs
        The samples of the data set.

    Raises
    ------
    DataError
        A part is not there, is not what was written (its folder and file are named), or belongs elsewhere.
    """
    stores = [_part(path) for path in parts]
    cards = [dict(store.card) for store in stores]
    at = 0
    for path, card in zip(parts, cards, strict=True):
        span = card[PART]
        if span["first"] != at or span["total"] != cards[0][PART]["total"]:
            raise DataError(f"{path} does not go on where the part before it ends: {_again(path)}")
        at = span["last"]
    if at != cards[0][PART]["total"]:
        raise DataError(f"the {len(parts)} parts hold {at} of {cards[0][PART]['total']} samples: embed the others")
    if cards[0][PART]["own_obs"]:
        import pandas as pd

        obs = pd.concat([store.obs for store in stores])
    shutil.rmtree(Path(folder) / LAYERS, ignore_errors=True)
    further = list(stores[0].layers())
    for layer in further:
        _join([store.layers()[layer] for store in stores], Path(folder) / LAYERS / str(layer), obs, config)
    return _join(stores, Path(folder), obs, config)


def _part(path: str | Path) -> Store:
    """One part, all of its files looked at."""
    try:
        store = Store(path)
        for each in (store, *store.layers().values()):
            each.verify()
    except DataError as error:
        raise DataError(f"{str(error).removesuffix(': embed again')}: {_again(path)}") from None
    if PART not in store.card:
        raise DataError(f"{path} is no part of an embedding: {_again(path)}")
    return store


def _again(path: str | Path) -> str:
    return f"delete {path} and run again, it alone is then made anew"


def _join(stores: Sequence[Store], folder: Path, obs: pd.DataFrame, config: Model) -> Store:
    added = (PART, "schema_version", "shape", "dtype", "shards", "obs_sha256")
    card = {key: value for key, value in stores[0].card.items() if key not in added}
    writer = StoreWriter(folder, obs, card, dtype=config.dtype, rows_per_shard=config.rows_per_shard)
    try:
        for store in stores:
            for batch in store.batches():
                writer.write(batch)
        return writer.finish()
    except BaseException:
        writer.abandon()
        raise


def _write(
    embedding: Embedding,
    folder: Path,
    obs: pd.DataFrame,
    card: dict[str, Any],
    config: Model,
    digest: str | None,
    first: int,
) -> Store:
    """Write the layer's store and those of further layers: the shards that are not there yet.

    `first` is the row of the whole data set that the store begins with.
    """
    size = config.rows_per_shard
    options = {"dtype": config.dtype, "rows_per_shard": size, "digest": digest}
    for path in (folder / LAYERS).glob("*"):
        if digest is None or path.name not in map(str, embedding.also):
            shutil.rmtree(path)
    writers = [StoreWriter(folder, obs, card, **options)]
    shared = {key: value for key, value in card.items() if key != "layer_number"}
    writers += [StoreWriter(folder / LAYERS / str(n), obs, shared | {"layer": n}, **options) for n in embedding.also]
    # One forward pass gives all layers: a shard that one of them lacks is written for all.
    missing = sorted({number for writer in writers for number in writer.missing()})
    for writer in writers:
        writer.discard(missing)
    if missing and len(missing) * size < len(obs):
        log.info("%s: going on from row %d of %d", config.adapter, missing[0] * size, len(obs))
    whole = first + len(obs) if PART not in card else card[PART]["total"]
    try:
        for start, stop in _runs(missing):
            for writer in writers:
                writer.go_to(start * size)
            begin, end = first + start * size, first + min(stop * size, len(obs))
            batches = embedding.from_row(begin) if begin else embedding.batches
            # What a model gives beyond the last sample is for the writer to refuse.
            for batch in batches if end == whole else _first_rows(batches, end - begin):
                for writer, values in zip(writers, batch if embedding.also else [batch], strict=True):
                    writer.write(values)
        for writer in writers[1:]:
            writer.finish()
        return writers[0].finish(embedding.decoder)
    except BaseException as error:
        # Bad input stays bad; only what was stopped from outside is worth going on with.
        for writer in writers:
            writer.abandon(keep=not isinstance(error, ConceptomeError))
        raise


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Runs of neighbouring numbers, ascending: the first, and the one after the last.

    >>> list(_runs([0, 1, 4, 6, 7]))
    [(0, 2), (4, 5), (6, 8)]
    """
    start = None
    for position, number in enumerate(numbers):
        start = number if start is None else start
        if position + 1 == len(numbers) or numbers[position + 1] != number + 1:
            yield start, number + 1
            start = None


def _first_rows(batches: Iterable[np.ndarray], rows: int) -> Iterator[np.ndarray]:
    """The first rows of a stream of (…, rows, d) arrays; no more of it is computed than they need."""
    for batch in batches:
        yield batch[..., :rows, :]
        rows -= batch.shape[-2]
        if rows <= 0:
            return


def _digest(config: Model, card: dict[str, Any], obs: pd.DataFrame, threads: int) -> str:
    """Of all that the activations depend on but the code."""
    settings = [config.model_dump(mode="json", exclude={"path"}), card, threads, list(map(str, obs.index))]
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
