"""Dictionaries: fit one by name, load one from its folder.

Only fitting or encoding with the trained methods imports torch, and only where there are no compiled kernels.
"""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conceptome.config.base import validate
from conceptome.config.dictionaries import OPTIONS, TrainedBase
from conceptome.dictionaries.base import Dictionary, read
from conceptome.dictionaries.encoders import check_budget
from conceptome.errors import ConfigError, DataError
from conceptome_kernels import available

if TYPE_CHECKING:
    from conceptome.activations import Store
    from conceptome.codes import Codes, CodeStream
    from conceptome.config.dictionaries import DictionaryBase
    from conceptome.dictionaries.checkpoint import Checkpoint
    from conceptome.dictionaries.rows import ArrayRows, Rows, StoreRows
    from conceptome.dictionaries.training import Progress
    from conceptome.whitening import Whitening

__all__ = ["METHODS", "Dictionary", "fit", "fit_many", "learn", "load"]

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
TRAINED = tuple(name for name in METHODS if issubclass(OPTIONS[name], TrainedBase))
ON_GPU = ("topk",)

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
    checkpoint: str | Path | None = None,
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
        Number of atoms, and of active ones (the method's options say whether at most or on average); None: the
        method's default.
    seed
        Of atoms, batch order and samples. Equal inputs, seed and `threads=1` give equal bytes.
    threads
        Of torch and BLAS while fitting; None: as they are.
    device
        "cpu"; for topk also a GPU as torch names it, "cuda" or "cuda:1": training runs there.
    rows
        (n,) bool: the training rows; None: all.
    whitening
        Applied to the rows as they are read. `encode` then takes whitened activations.
    progress
        For trained methods: called with (steps done, steps).
    checkpoint
        For trained methods: a folder where `seed{seed}.safetensors` holds the state of the training, written every
        `checkpoint_every` steps. Where one is found, of the same options, seed and data, training goes on from it, and
        the result is the same bytes as without the interruption. It stays there: remove it once it is not needed.
    options
        The method's own keys, as in `conceptome.config.dictionaries`.

    Raises
    ------
    ConfigError
        An unknown method, key or device, a wrong type, m < k, m < rounds × columns, k > d where it matters.
    DataError
        No training rows, NaN or infinite values, no variance, diverged training.
    """
    if device != "cpu":
        _check_device(name, device)
    from conceptome.dictionaries.rows import training_rows
    from conceptome.dictionaries.training import thread_limit

    given = {key: value for key, value in {"m": m, "k": k}.items() if value is not None}
    given |= {"device": device} if device != "cpu" else {}
    one = _Fit.of(name, given | options, seed, _width(X_or_store, whitening), progress, checkpoint)
    with thread_limit(threads, with_torch=needs_torch(name)):
        return one.run(training_rows(X_or_store, rows, whitening))


def fit_many(
    fits: Sequence[tuple[str, Mapping[str, Any], int]],
    X_or_store: np.ndarray | Store,
    *,
    threads: int | None = None,
    rows: np.ndarray | None = None,
    whitening: Whitening | None = None,
    progress: Progress | None = None,
    checkpoint: str | Path | None = None,
    memory_limit: int = 512 * 2**20,
) -> list[Dictionary]:
    """Fit several dictionaries (seeds, methods, k, m, penalties) on the same rows, which are read and whitened once.

    Rows within `memory_limit` bytes are kept, and one dictionary is fitted after the other. Of a larger store, all
    trained dictionaries that share batch_size, buffer_mb and order_seed take one pass together. Either way each is the
    same bytes as `fit` gives for it alone.

    Parameters
    ----------
    fits
        (method, options, seed) of each.
    progress
        Called with (steps done, steps) of all trainings together.
    checkpoint
        As in `fit`; the states of the fit at position i lie in its folder `{i}`.

    Raises
    ------
    ConfigError, DataError
        As in `fit`, for the first that fails.
    """
    from conceptome.dictionaries.rows import training_rows
    from conceptome.dictionaries.training import thread_limit

    width, told = _width(X_or_store, whitening), _Together(progress)
    prepared = [
        _Fit.of(name, options, seed, width, told.part(), Path(checkpoint) / str(number) if checkpoint else None)
        for number, (name, options, seed) in enumerate(fits)
    ]
    told.steps = [getattr(one.config, "steps", 0) for one in prepared]
    with thread_limit(threads, with_torch=any(needs_torch(one.name) for one in prepared)):
        return _fit_all(prepared, training_rows(X_or_store, rows, whitening, memory_limit=memory_limit), threads)


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
    checkpoint: str | Path | None = None,
    stream: bool = False,
    **options: Any,
) -> Iterator[tuple[Dictionary, Codes | CodeStream]]:
    """Fit one dictionary with each seed on some rows of a store, and encode all of its rows.

    The store is read and whitened once where that fits `memory_limit` bytes. Otherwise all seeds are trained in one
    pass over it (see `fit_many`), and it is read again to be encoded. Either way gives the same bytes.

    Parameters
    ----------
    rows
        (n,) bool: the training rows.
    progress
        For trained methods: called with (steps done, steps) over all seeds together.
    checkpoint
        As in `fit`; the states are removed when the last seed is done with.
    stream
        Give the codes of a store beyond `memory_limit` as a stream, which is made while it is saved: before the next
        seed is asked for.
    options
        The method's keys, m and k among them.

    Yields
    ------
    Dictionary, Codes
        For each seed in turn: the dictionary, and the codes of all n rows.
    """
    from conceptome.codes import Codes, CodeStream
    from conceptome.dictionaries.rows import BLOCK, training_rows, whitened
    from conceptome.dictionaries.training import thread_limit

    n, p, told = store.shape[0], whitening.card["p"], _Together(progress)
    prepared = [_Fit.of(name, options, seed, p, told.part(), checkpoint) for seed in seeds]
    told.steps = [getattr(one.config, "steps", 0) for one in prepared]
    fits_memory = n * p * 4 <= memory_limit
    with thread_limit(threads, with_torch=needs_torch(name)):
        if getattr(prepared[0].config, "processes", 1) > 1:
            for one in prepared:
                dictionary = _in_processes(one, store, whitening, rows, threads or 1)
                encoded = (dictionary.encode(X) for X in whitened(store, whitening))
                yield (
                    dictionary,
                    CodeStream(encoded) if stream and not fits_memory else Codes.concatenate(list(encoded)),
                )
        elif fits_memory:
            whole = np.empty((n, p), dtype=np.float32)
            for number, block in enumerate(whitened(store, whitening)):
                whole[number * BLOCK : (number + 1) * BLOCK] = block
            selected = training_rows(whole, rows, None)
            for one in prepared:
                dictionary = one.run(selected)
                yield dictionary, dictionary.encode(whole)
        else:
            for dictionary in _fit_all(
                prepared, training_rows(store, rows, whitening, memory_limit=memory_limit), threads
            ):
                encoded = (dictionary.encode(X) for X in whitened(store, whitening))
                yield dictionary, CodeStream(encoded) if stream else Codes.concatenate(list(encoded))
    for one in prepared:
        if one.checkpoint:
            one.checkpoint.remove()


@dataclass(frozen=True)
class _Fit:
    """One dictionary to be fitted, its options checked."""

    name: str
    config: Any
    seed: int
    progress: Progress | None
    checkpoint: Checkpoint | None

    @classmethod
    def of(
        cls,
        name: str,
        options: Mapping[str, Any],
        seed: int,
        d: int,
        progress: Progress | None,
        checkpoint: str | Path | None,
    ) -> _Fit:
        from conceptome.dictionaries.checkpoint import Checkpoint

        if name not in METHODS:
            raise ConfigError(f"dictionary method '{name}' is not known; choose one of {', '.join(METHODS)}")
        config = validate(OPTIONS[name], {"method": name, **options}, f"dictionary '{name}'")
        if _device(config) != "cpu":
            _check_device(name, _device(config))
        _check_width(config, d)
        if config.m is not None:
            _encoder_budget(config, config.budget or config.m, config.m, d)
        kept = Checkpoint(Path(checkpoint) / f"seed{seed}.safetensors") if checkpoint and name in TRAINED else None
        return cls(name, config, seed, progress, kept)

    def run(self, rows: Rows) -> Dictionary:
        """Fit on these rows."""
        from conceptome.dictionaries.checkpoint import until_saved
        from conceptome.dictionaries.distributed import current

        module, class_name, function = METHODS[self.name]
        module = importlib.import_module(module)
        extra = {"progress": self.progress, "checkpoint": self.checkpoint} if self.name in TRAINED else {}
        if _device(self.config) != "cpu":
            extra["device"] = self.config.device
        # Several processes take their steps together: one that stops by itself would leave the others waiting.
        with until_saved([self.checkpoint] if current().size == 1 else []):
            parameters, training = getattr(module, function)(rows, self.config, self.seed, **extra)
        if not all(np.isfinite(value).all() for value in parameters.values()):
            raise DataError(f"dictionary '{self.name}': the fit ended in NaN or infinite values: lower learning_rate")
        width = len(parameters["atoms"])
        budget = self.config.budget or width
        if budget > width:
            raise DataError(
                f"dictionary '{self.name}': the data support {width} atoms, fewer than k ({budget}): lower k"
            )
        k = _encoder_budget(self.config, budget, width, rows.shape[1])
        options = self.config.model_dump(mode="json")
        card = {"k": k, "own_k": budget, "seed": self.seed, "options": options, "training": training}
        return getattr(module, class_name)(parameters, card)


def _in_processes(one: _Fit, store: Store, whitening: Whitening, rows: np.ndarray, threads: int) -> Dictionary:
    """Fit by several processes; `threads` are those of all of them together."""
    import tempfile

    from conceptome.dictionaries.distributed import launch

    processes = one.config.processes
    # Not where the defaults stand: what a method's options leave out stays left out in each process.
    options = one.config.model_dump(mode="json", exclude={"method"}, exclude_unset=True)
    with tempfile.TemporaryDirectory(prefix="conceptome-") as scratch:
        kept = one.checkpoint.path.parent if one.checkpoint else Path(scratch)
        folder = kept / f"processes{one.seed}"
        folder.mkdir(parents=True, exist_ok=True)
        dictionary = load(
            launch(
                one.name,
                options,
                store,
                whitening,
                rows=rows,
                seed=one.seed,
                processes=processes,
                threads=max(1, threads // processes),
                folder=folder,
            )
        )
        shutil.rmtree(folder)
        return dictionary


def _fit_all(fits: Sequence[_Fit], rows: ArrayRows | StoreRows, threads: int | None) -> list[Dictionary]:
    """Fit all of them, in one pass those that see the rows of a store in the same order."""
    from conceptome.dictionaries.batches import Order, in_turns
    from conceptome.dictionaries.checkpoint import until_saved
    from conceptome.dictionaries.distributed import current
    from conceptome.dictionaries.rows import StoreRows

    # The position stands for what is fitted alone.
    groups: dict[Any, list[int]] = {}
    for position, one in enumerate(fits):
        # Processes must not take the trainings of a pass in different turns.
        shares = isinstance(rows, StoreRows) and one.name in TRAINED and current().size == 1
        groups.setdefault(Order.of(rows, one.config, one.seed) if shares else position, []).append(position)
    fitted = {}
    for order, members in groups.items():
        tasks = [fits[position].run for position in members]
        if len(tasks) == 1:
            results = [tasks[0](rows)]
        else:
            with until_saved(fits[position].checkpoint for position in members):
                results = in_turns(rows, order, tasks, threads)
        fitted |= dict(zip(members, results, strict=True))
    return [fitted[position] for position in range(len(fits))]


class _Together:
    """Progress of several trainings as one."""

    def __init__(self, progress: Progress | None):
        self.progress, self.done, self.steps = progress, [], []

    def part(self) -> Progress | None:
        """Progress of the next training."""
        if self.progress is None:
            return None
        number = len(self.done)
        self.done.append(0)

        def tell(done: int, steps: int) -> None:
            self.done[number] = done
            self.progress(sum(self.done), sum(self.steps))

        return tell


def _width(source: np.ndarray | Store, whitening: Whitening | None) -> int:
    return whitening.card["p"] if whitening is not None else source.shape[-1]


def _device(config: Any) -> str:
    """Where a method trains."""
    return getattr(config, "device", "cpu")


def _check_device(name: str, device: str) -> None:
    """Refuse a device that the method cannot use, or that is not there."""
    if name not in ON_GPU or device.partition(":")[0] != "cuda":
        raise ConfigError(f"device '{device}' is not supported by dictionary method '{name}'; use device='cpu'")
    from conceptome.dictionaries.topk_gpu import check_device

    check_device(device)


def needs_torch(name: str) -> bool:
    """Whether fitting this method runs on torch: it is trained, and there are no compiled kernels."""
    return name in TRAINED and not available()


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
