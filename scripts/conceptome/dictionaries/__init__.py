"""Dictionaries: fit one by name, load one from its folder.

Only fitting or encoding with `topk` and `icfl` imports torch, and only where there are no compiled kernels.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conceptome.config.base import validate
from conceptome.config.dictionaries import OPTIONS, DictionaryBase
from conceptome.dictionaries.base import Dictionary, read
from conceptome.dictionaries.encoders import check_budget
from conceptome.errors import ConfigError, DataError
from conceptome_kernels import available

if TYPE_CHECKING:
    from conceptome.activations import Store
    from conceptome.codes import Codes
    from conceptome.dictionaries.training import Progress
    from conceptome.whitening import Whitening

__all__ = ["METHODS", "Dictionary", "fit", "learn", "load"]

# method → (module, class, function that fits)
METHODS: dict[str, tuple[str, str, str]] = {
    "topk": ("conceptome.dictionaries.topk", "TopK", "fit"),
    "icfl": ("conceptome.dictionaries.icfl", "Icfl", "fit"),
    "pca": ("conceptome.dictionaries.linear", "Pca", "fit_pca"),
    "ica": ("conceptome.dictionaries.linear", "Ica", "fit_ica"),
    "identity": ("conceptome.dictionaries.linear", "Identity", "fit_identity"),
    "random": ("conceptome.dictionaries.random_atoms", "Random", "fit"),
    "batch_topk": ("conceptome.dictionaries.batch_topk", "BatchTopK", "fit"),
    "matryoshka": ("conceptome.dictionaries.batch_topk", "Matryoshka", "fit_matryoshka"),
    "relu_l1": ("conceptome.dictionaries.relu", "ReluL1", "fit"),
    "p_annealing": ("conceptome.dictionaries.relu", "PAnnealing", "fit_p_annealing"),
    "jumprelu": ("conceptome.dictionaries.jumprelu", "JumpRelu", "fit"),
    "gated": ("conceptome.dictionaries.gated", "Gated", "fit"),
    "mp_sae": ("conceptome.dictionaries.mp_sae", "MpSae", "fit"),
    "ksvd": ("conceptome.dictionaries.ksvd", "Ksvd", "fit"),
    "archetypal": ("conceptome.dictionaries.archetypal", "Archetypal", "fit"),
    "snmf": ("conceptome.dictionaries.factorisation", "Snmf", "fit_snmf"),
    "nmf": ("conceptome.dictionaries.factorisation", "Nmf", "fit_nmf"),
    "kmeans": ("conceptome.dictionaries.kmeans", "KMeans", "fit"),
    "crosscoder": ("conceptome.dictionaries.crosscoder", "Crosscoder", "fit"),
}
TRAINED = (
    "topk",
    "icfl",
    "batch_topk",
    "matryoshka",
    "relu_l1",
    "p_annealing",
    "jumprelu",
    "gated",
    "mp_sae",
    "ksvd",
    "archetypal",
    "crosscoder",
)


# What cannot exceed the number of dimensions.
LIMITED = {"pca": ("m", "k"), "ica": ("m", "k"), "identity": ("m", "k"), "ksvd": ("k",)}


def fit(
    name: str,
    X_or_store: np.ndarray | Store,
    *,
    m: int | None = None,
    k: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    device: str = "cpu",
    rows: np.ndarray | None = None,
    whitening: Whitening | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Dictionary:
    """Fit a dictionary.

    Parameters
    ----------
    name
        Method: a key of `METHODS`.
    X_or_store
        (n, d) activations, or a store of them.
    m, k
        Number of atoms and largest number of active ones; None: the method's default.
    seed
        Of atoms, batch order and samples. Equal inputs, seed and `threads=1` give equal bytes.
    threads
        Of torch and BLAS while fitting; None: as they are.
    device
        "cpu".
    rows
        (n,) bool: the training rows; None: all.
    whitening
        Applied to the rows as they are read. `encode` then takes whitened activations.
    progress
        For the methods in `TRAINED`: called with (steps done, steps).
    options
        The method's own keys, as in `conceptome.config.dictionaries`.

    Raises
    ------
    ConfigError
        An unknown method, key or device, a wrong type, m < k, m < rounds × columns, k > d where it matters.
    DataError
        No training rows, NaN or infinite values, no variance, diverged training.
    """
    if name not in METHODS:
        raise ConfigError(f"dictionary method '{name}' is not known; choose one of {', '.join(METHODS)}")
    if device != "cpu":
        raise ConfigError(f"device '{device}' is not supported by dictionary method '{name}'; use device='cpu'")
    from conceptome.dictionaries.rows import training_rows
    from conceptome.dictionaries.training import thread_limit

    given = {key: value for key, value in {"m": m, "k": k}.items() if value is not None}
    config = validate(OPTIONS[name], {"method": name, **given, **options}, f"dictionary '{name}'")
    d = whitening.card["p"] if whitening is not None else X_or_store.shape[-1]
    _check_width(config, d)
    if config.m is not None:
        _encoder_budget(config, config.budget or config.m, config.m, d)
    module, class_name, function = METHODS[name]
    module = importlib.import_module(module)
    extra = {"progress": progress} if name in TRAINED else {}
    with thread_limit(threads, with_torch=needs_torch(name)):
        selected = training_rows(X_or_store, rows, whitening)
        parameters, training = getattr(module, function)(selected, config, seed, **extra)
    if not all(np.isfinite(value).all() for value in parameters.values()):
        raise DataError(f"dictionary '{name}': the fit ended in NaN or infinite values: lower learning_rate")
    width = len(parameters["atoms"])
    budget = config.budget or width
    if budget > width:
        raise DataError(f"dictionary '{name}': the data support {width} atoms, fewer than k ({budget}): lower k")
    k = _encoder_budget(config, budget, width, d)
    options = config.model_dump(mode="json")
    card = {"k": k, "own_k": budget, "seed": seed, "options": options, "training": training}
    return getattr(module, class_name)(parameters, card)


def learn(
    name: str,
    store: Store,
    whitening: Whitening,
    *,
    rows: np.ndarray,
    seeds: Sequence[int],
    threads: int | None = None,
    progress: Progress | None = None,
    memory_limit: int = 512 * 2**20,
    **options: Any,
) -> Iterator[tuple[Dictionary, Codes]]:
    """Fit one dictionary with each seed on some rows of a store, and encode all of its rows.

    The store is read and whitened once where that fits `memory_limit` bytes, and otherwise anew for every seed.

    Parameters
    ----------
    rows
        (n,) bool: the training rows.
    progress
        For the methods in `TRAINED`: called with (steps done, steps) over all seeds together.
    options
        The method's keys, m and k among them.

    Yields
    ------
    Dictionary, Codes
        For each seed in turn: the dictionary, and the codes of all n rows.
    """
    from conceptome.codes import Codes
    from conceptome.dictionaries.training import thread_limit

    n, p = store.shape[0], whitening.card["p"]
    with thread_limit(threads, with_torch=needs_torch(name)):
        whole = None
        if n * p * 4 <= memory_limit:
            whole = np.empty((n, p), dtype=np.float32)
            for start, block in zip(range(0, n, 8192), store.batches(8192), strict=True):
                whole[start : start + 8192] = whitening.transform(block)
        source, map_ = (store, whitening) if whole is None else (whole, None)
        for number, seed in enumerate(seeds):
            told = _one_of(progress, number, len(seeds)) if progress else None
            dictionary = fit(
                name, source, rows=rows, whitening=map_, seed=seed, threads=threads, progress=told, **options
            )
            if whole is not None:
                codes = dictionary.encode(whole)
            else:
                codes = Codes.concatenate([dictionary.encode(whitening.transform(X)) for X in store.batches(8192)])
            yield dictionary, codes


def needs_torch(name: str) -> bool:
    """Whether fitting this method runs on torch: it is trained, and there are no compiled kernels."""
    return name in TRAINED and not available()


def _one_of(progress: Progress, number: int, total: int) -> Progress:
    """Progress of the fit `number` as a part of `total` fits."""
    return lambda done, steps: progress(number * steps + done, total * steps)


def _check_width(config: Any, d: int) -> None:
    """Refuse more atoms or active atoms than dimensions, where a method cannot have them."""
    for key in LIMITED.get(config.method, ()):
        value = getattr(config, key)
        if value is not None and value > d:
            raise ConfigError(
                f"dictionary '{config.method}': {key} ({value}) exceeds the activations' {d} dimensions: lower {key}"
            )
    if config.method == "identity" and config.m not in (None, d):
        raise ConfigError(f"dictionary 'identity' has one atom per dimension ({d}), not m = {config.m}: leave m out")


def _encoder_budget(config: DictionaryBase, budget: int, m: int, d: int) -> int:
    """Active atoms of the configured encoder; refuse a number that it cannot give before anything is trained."""
    if config.encoder == "own":
        return budget
    k = config.encoder_k or config.k or budget
    try:
        check_budget(config.encoder, k, m, d, config.encoder_columns)
    except ConfigError as error:
        raise ConfigError(f"dictionary '{config.method}': {error}, or set encoder_k") from None
    return k


def load(folder: str | Path) -> Dictionary:
    """Read a saved dictionary of any method.

    Raises
    ------
    DataError
        No finished dictionary there, another schema, or a method this version does not know.
    """
    parameters, card = read(folder)
    if card["method"] not in METHODS:
        raise DataError(f"{folder} holds a dictionary of unknown method '{card['method']}': use a newer version")
    module, class_name, _ = METHODS[card["method"]]
    return getattr(importlib.import_module(module), class_name)(parameters, card)
