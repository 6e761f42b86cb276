"""Checkpoints: where their weights come from, and how they are read without running code from them."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conceptome.errors import ConfigError, SourceError
from conceptome.files import sha256_file
from conceptome.models.taps import described

if TYPE_CHECKING:
    import torch

    from conceptome.config.models import Checkpoint, Esm2

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
# What plain dictionaries of numbers may hold beside Python's own types.
PLAIN = frozenset(
    {
        ("numpy", "dtype"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy._core.multiarray", "scalar"),
        ("collections", "OrderedDict"),
    }
)


def origin(config: Checkpoint | Esm2, folder: Path) -> dict[str, str | None]:
    """Where the weights came from, for the card; of a local path only the folder's name."""
    if config.hub is not None:
        return {"hub": config.hub, "revision": config.revision}
    return {"source": config.source} if config.source is not None else {"path": folder.name}


def find_folder(config: Checkpoint | Esm2, weights: Path | None, files: Sequence[str]) -> Path:
    """Folder of the checkpoint: the one retrieved for the source, a local one, or a download from the hub.

    Parameters
    ----------
    files
        Patterns of the files beside the weights, for the hub.

    Raises
    ------
    ConfigError
        No weights are declared, or a hub model has no revision.
    SourceError
        The weights were not retrieved, there is no such folder, or the hub cannot be reached.
    """
    name = config.adapter
    if weights is not None or config.path is not None:
        folder = Path(weights if weights is not None else config.path)
        if not folder.is_dir():
            raise SourceError(f"model '{name}': there is no folder {folder}: model.path names the checkpoint's folder")
        return folder
    if config.hub is not None:
        return _from_hub(config, files)
    if config.source is not None:
        raise SourceError(f"model '{name}': the weights of source '{config.source}' were not retrieved")
    raise ConfigError(f"model '{name}' needs weights: give one of source, path and hub")


def _from_hub(config: Checkpoint | Esm2, files: Sequence[str]) -> Path:
    """Download a pinned revision of a hub model; safetensors where there are any, else the .bin."""
    if config.revision is None:
        raise ConfigError(
            f"model '{config.adapter}': hub '{config.hub}' needs a revision (a commit), so that its weights stay fixed"
        )
    from huggingface_hub import snapshot_download

    def fetch(patterns: list[str]) -> Path:
        try:
            return Path(snapshot_download(config.hub, revision=config.revision, allow_patterns=patterns))
        except Exception as error:  # the hub client raises many kinds; all mean that the weights are not there
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise SourceError(
                f"model '{config.adapter}': '{config.hub}' at revision {config.revision} cannot be had from the hub "
                f"({reason}); download it elsewhere and give the folder as model.path"
            ) from None

    folder = fetch([*files, "*model*.safetensors", "*model.safetensors.index.json"])
    if list(folder.rglob("*model*.safetensors")):
        return folder
    return fetch([*files, "*pytorch_model*.bin", "*pytorch_model.bin.index.json"])


def weight_files(folder: Path, names: Sequence[str] = WEIGHTS) -> list[Path]:
    """Files that hold a checkpoint's weights: one file, or the parts that its index names.

    Raises
    ------
    SourceError
        None are there, or a part is missing.
    """
    for name in names:
        if (folder / name).exists():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.exists():
            parts = sorted(set(read_settings(index)["weight_map"].values()))
            outside = [part for part in parts if Path(part).name != part]
            if outside:
                raise SourceError(
                    f"{folder / index.name} names {outside[0]!r}, which is no name of a file there: refused"
                )
            missing = [part for part in parts if not (folder / part).exists()]
            if missing:
                raise SourceError(f"{folder}: {index.name} names {missing[0]}, which is not there")
            return [folder / part for part in parts]
    raise SourceError(f"{folder} holds no weights: {' or '.join(names)} is needed")


def digests(files: Iterable[Path]) -> dict[str, str]:
    """Name → sha256, for the card."""
    return {path.name: sha256_file(path) for path in files}


def checkpoint_card(
    config: Checkpoint | Esm2,
    folder: Path,
    layers: Sequence[int],
    total: int,
    notes: list[str],
    files: Iterable[Path] | None = None,
) -> dict[str, Any]:
    """What the card of activations says of the checkpoint they come from: layer and site, origin, digests, notes.

    `files` are those that decide the activations; None: the checkpoint's weight files.
    """
    return {
        **described(config, layers, total),
        "stand_in": config.stand_in,
        "weights": origin(config, folder),
        "weights_sha256": digests(weight_files(folder) if files is None else files),
        "notes": notes,
    }


def read_tensors(
    path: Path, prefix: str = "", wanted: Callable[[str], bool] = lambda name: True
) -> tuple[set[str], dict[str, torch.Tensor]]:
    """All names in a weight file, without `prefix`, and the tensors that are wanted; never runs code from the file.

    Some tools write PyTorch's own format under the name .safetensors, and some put all tensors under `state_dict`,
    `model` or `model_state_dict`: both are read.

    Raises
    ------
    SourceError
        The file is truncated, corrupt, or holds more than tensors.
    """
    import torch

    def select(keys: Iterable[str], get: Callable[[str], torch.Tensor]) -> tuple[set[str], dict[str, torch.Tensor]]:
        names = {key.removeprefix(prefix): key for key in keys}
        return set(names), {name: get(key) for name, key in names.items() if wanted(name)}

    try:
        with open(path, "rb") as handle:
            zipped = handle.read(2) == b"PK"
        if path.suffix == ".safetensors" and not zipped:
            from safetensors import safe_open

            with safe_open(path, framework="pt") as handle:
                return select(handle.keys(), handle.get_tensor)
        with open(path, "rb") as handle:  # of a path, the reader would go by its suffix
            state = torch.load(handle, map_location="cpu", weights_only=True)
        for nested in ("state_dict", "model_state_dict", "model"):
            if isinstance(state.get(nested), dict):
                state = state[nested]
        return select(state, state.__getitem__)
    except Exception as error:  # safetensors, zipfile and the unpickler each have their own errors for a bad file
        raise SourceError(
            f"{path} cannot be read as weights ({type(error).__name__}): it is truncated, corrupt, or not a plain "
            "checkpoint; fetch it again"
        ) from None


def read_settings(path: Path, needed: Sequence[str] = ()) -> dict[str, Any]:
    """Read a checkpoint's JSON file.

    Raises
    ------
    SourceError
        It is missing, is not JSON, or lacks a needed key.
    """
    if not path.exists():
        raise SourceError(f"{path} is missing: a checkpoint of this model needs it")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise SourceError(f"{path} is not valid JSON: fetch it again") from None
    absent = [key for key in needed if key not in settings]
    if absent:
        raise SourceError(f"{path} lacks '{absent[0]}': it is not this model's file")
    return settings


class _PlainUnpickler(pickle.Unpickler):
    """Reads dictionaries of strings and numbers, and calls nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in PLAIN:
            raise pickle.UnpicklingError(f"{module}.{name} is no plain value")
        return super().find_class(module, name)


def read_dictionary(path: Path) -> dict[str, Any]:
    """Read a dictionary from JSON, or from a pickle of plain values alone.

    Raises
    ------
    SourceError
        It cannot be read, is no dictionary, or the pickle holds more than plain values.
    """
    try:
        raw = path.read_bytes()
        value = json.loads(raw) if path.suffix == ".json" else _PlainUnpickler(io.BytesIO(raw)).load()
    except Exception as error:  # a damaged pickle raises nearly anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SourceError(f"{path} cannot be read as a dictionary of plain values ({reason}): fetch it again") from None
    if not isinstance(value, dict) or not value:
        raise SourceError(f"{path} holds no dictionary: fetch it again")
    return value


def load_pretrained(model: Any, folder: Path, adapter: str, kinds: Sequence[str], **options: Any) -> Any:
    """Load a model of transformers from a local folder, in evaluation mode and float32.

    Every weight must be there: a missing or differently shaped one is an error, never a randomly initialised layer.
    Weights beyond the model (heads, decoders) are left aside. Code in the folder is never run.

    Parameters
    ----------
    model
        A class of transformers.
    kinds
        `model_type` in config.json that this adapter reads.

    Raises
    ------
    SourceError
        Files are missing or unreadable, or are of another model.
    """
    import torch
    from transformers.utils import logging as transformers_logging

    settings = read_settings(folder / "config.json")
    if settings.get("model_type") not in kinds:
        raise SourceError(
            f"{folder / 'config.json'} describes a model of type '{settings.get('model_type')}', but model "
            f"'{adapter}' reads {' or '.join(kinds)}"
        )
    weight_files(folder)
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        with torch.random.fork_rng(devices=[]):
            loaded, found = model.from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,
                weights_only=True,
                output_loading_info=True,
                dtype=torch.float32,
                **options,
            )
    except Exception as error:  # each reader has its own errors for a bad file
        reason = next((line for line in str(error).splitlines() if line.strip()), "")
        raise SourceError(
            f"{folder} cannot be read as a checkpoint ({type(error).__name__}: {reason}): it is truncated, corrupt, or "
            "not what config.json describes; fetch it again"
        ) from None
    finally:
        transformers_logging.set_verbosity(level)
    missing, differing = sorted(map(str, found["missing_keys"])), sorted(map(str, found["mismatched_keys"]))
    if missing or differing:
        what = f"lacks {len(missing)} weight(s), first '{missing[0]}'" if missing else f"does not fit: {differing[0]}"
        raise SourceError(f"{folder}: the checkpoint {what}: it is not the model that config.json describes")
    return loaded.eval()
