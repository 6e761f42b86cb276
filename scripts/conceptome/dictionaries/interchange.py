"""Dictionaries as folders of other libraries, and back: sae-lens (`SAE.load_from_disk`, versions from 6 on).

Such a folder holds cfg.json and sae_weights.safetensors, with W_enc (d, m), W_dec (m, d), b_dec (d,) and what the
architecture adds. Nothing is executed, and nothing is pickled.

| architecture | codes of x, with π = (x − b_dec)·W_enc + b_enc | methods |
|---|---|---|
| topk | ReLU(TopK_k(π)) | topk |
| standard | ReLU(π) | relu_l1, p_annealing |
| jumprelu | ReLU(π) · 1[π > threshold] | jumprelu, batch_topk, matryoshka |
| gated | 1[(x − b_dec)·W_enc + b_gate > 0] · ReLU((x − b_dec)·(W_enc·exp(r_mag)) + b_mag) | gated |
| matching_pursuit | k steps on (x − b_dec) with W_dec, positive correlations only | mp_sae |

A dictionary's atoms have unit length. Where rows of W_dec do not, their lengths move into the codes, so that the
reconstruction stays the same.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from conceptome.activations import from_bfloat16
from conceptome.config.base import validate
from conceptome.config.dictionaries import OPTIONS
from conceptome.dictionaries import METHODS, load
from conceptome.dictionaries.base import Dictionary
from conceptome.errors import ConfigError, DataError
from conceptome.files import atomic_path, read_json, write_json

Arrays = dict[str, np.ndarray]

WEIGHTS, CONFIG = "sae_weights.safetensors", "cfg.json"
# The layout that is written; sae-lens reads layouts without a version as older than 6.
SAE_LENS_VERSION = "6.54.12"
ARCHITECTURES = {
    "topk": "topk",
    "relu_l1": "standard",
    "p_annealing": "standard",
    "jumprelu": "jumprelu",
    "batch_topk": "jumprelu",
    "matryoshka": "jumprelu",
    "gated": "gated",
    "mp_sae": "matching_pursuit",
}
# The method that an architecture is read as, and the tensors that it has besides W_dec and b_dec.
READ_AS = {
    "topk": ("topk", ("W_enc", "b_enc")),
    "standard": ("relu_l1", ("W_enc", "b_enc")),
    "jumprelu": ("jumprelu", ("W_enc", "b_enc", "threshold")),
    "gated": ("gated", ("W_enc", "b_gate", "r_mag", "b_mag")),
    "matching_pursuit": ("mp_sae", ()),
}
# Lengths of decoder rows that differ by no more than rounding count as equal.
ROUNDING = 1e-5


def export(folder: str | Path, out: str | Path, *, to: str = "sae-lens") -> None:
    """Write a saved dictionary as a folder of another library.

    Raises
    ------
    ConfigError
        An unknown library, or a method that the library cannot express.
    DataError
        No finished dictionary in `folder`, or `out` is there already.
    """
    _check_library(to)
    dictionary = load(folder)
    arrays, config = to_sae_lens(dictionary)
    _write(arrays, config, _new_folder(out))


def import_from(folder: str | Path, out: str | Path, *, source: str = "sae-lens") -> None:
    """Save a folder of another library as a dictionary.

    Raises
    ------
    ConfigError
        An unknown library, or an architecture or a setting that no method here has.
    DataError
        Files that are missing, damaged or of other shapes than their configuration says, or `out` is there already.
    """
    _check_library(source)
    dictionary = from_sae_lens(folder)
    dictionary.save(_new_folder(out))


def to_sae_lens(dictionary: Dictionary) -> tuple[Arrays, dict[str, Any]]:
    """Tensors and configuration of the same dictionary in sae-lens.

    Raises
    ------
    ConfigError
        sae-lens has no architecture that gives this method's codes.
    """
    method = dictionary.method
    if method not in ARCHITECTURES:
        raise ConfigError(f"sae-lens has no architecture for method '{method}': it has {', '.join(ARCHITECTURES)}")
    own, architecture = dictionary.parameters, ARCHITECTURES[method]
    m, d = own["atoms"].shape
    arrays = {"W_dec": own["atoms"], "b_dec": own["bias"]}
    further: dict[str, Any] = {}
    if architecture != "matching_pursuit":
        arrays["W_enc"] = own["encoder"].T
    if architecture in ("topk", "standard", "jumprelu"):
        arrays["b_enc"] = own["encoder_bias"]
    if architecture == "topk":
        further = {"k": dictionary.k, "rescale_acts_by_decoder_norm": False}
    if architecture == "jumprelu":
        # BatchTopK has one threshold for all atoms.
        arrays["threshold"] = np.broadcast_to(own["threshold"], (m,))
    if architecture == "gated":
        arrays |= {"b_gate": own["encoder_bias"], "r_mag": own["log_gain"], "b_mag": own["magnitude_bias"]}
    if architecture == "matching_pursuit":
        if not dictionary.card["options"]["nonnegative"]:
            raise ConfigError(
                "sae-lens' matching pursuit takes positive correlations only: train with nonnegative: true"
            )
        further = {"max_iterations": dictionary.k, "residual_threshold": 0.0, "stop_on_duplicate_support": False}
    config = {
        "architecture": architecture,
        "d_in": d,
        "d_sae": m,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        **further,
        "metadata": {"sae_lens_version": SAE_LENS_VERSION, "conceptome_method": method},
    }
    return {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in arrays.items()}, config


def from_sae_lens(folder: str | Path) -> Dictionary:
    """Read a folder that sae-lens saved.

    Raises
    ------
    ConfigError, DataError
        As in `import_from`.
    """
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise DataError(f"{folder} holds no sae-lens autoencoder ({name} is missing)")
    config = read_json(folder / CONFIG)
    architecture = config.get("architecture")
    _check_settings(folder, config)
    method, names = READ_AS[architecture]
    if method not in METHODS:
        raise ConfigError(f"{folder}: dictionary method '{method}' is not known here: use a newer version")
    arrays = _read(folder / WEIGHTS)
    _check_shapes(folder, arrays, config, names)
    parameters = _parameters(folder, arrays, config)
    wanted = {"method": method, "m": config["d_sae"]}
    if architecture == "topk":
        wanted["k"] = config.get("k")
    if architecture == "matching_pursuit":
        wanted |= {"k": config.get("max_iterations") or config["d_in"], "nonnegative": True}
    options = validate(OPTIONS[method], wanted, f"{folder}")
    card = {
        "k": options.budget or config["d_sae"],
        "seed": None,
        "options": options.model_dump(mode="json"),
        "training": {"source": "sae-lens", "architecture": architecture, "metadata": config.get("metadata", {})},
    }
    module, class_name, _ = METHODS[method]
    return getattr(import_module(module), class_name)(parameters, card)


def _check_library(name: str) -> None:
    if name != "sae-lens":
        raise ConfigError(f"'{name}' is not a library that dictionaries are exchanged with: use sae-lens")


def _new_folder(out: str | Path) -> Path:
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} is there already: name another folder, or remove it")
    out.mkdir(parents=True, exist_ok=True)
    return out


def _write(arrays: Arrays, config: dict[str, Any], out: Path) -> None:
    from safetensors.numpy import save_file

    with atomic_path(out / WEIGHTS) as temporary:
        save_file(arrays, temporary)
    write_json(out / CONFIG, config)


def _read(path: Path) -> Arrays:
    """Every tensor as float32; safetensors' own numpy reader has no bfloat16."""
    from safetensors import SafetensorError, deserialize

    readers: dict[str, Callable[[bytes], np.ndarray]] = {
        "F64": lambda data: np.frombuffer(data, "<f8"),
        "F32": lambda data: np.frombuffer(data, "<f4"),
        "F16": lambda data: np.frombuffer(data, "<f2"),
        "BF16": lambda data: from_bfloat16(np.frombuffer(data, "<u2")),
    }
    try:
        tensors = deserialize(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} cannot be read ({error})") from None
    arrays = {}
    for name, tensor in tensors:
        if tensor["dtype"] not in readers:
            raise DataError(f"{path}: {name} is of type {tensor['dtype']}, not a float of 16, 32 or 64 bits")
        array = readers[tensor["dtype"]](bytes(tensor["data"])).reshape(tensor["shape"]).astype(np.float32)
        if not np.isfinite(array).all():
            raise DataError(f"{path}: {name} has NaN or infinite values")
        arrays[name] = array
    return arrays


def _check_settings(folder: Path, config: dict[str, Any]) -> None:
    """Refuse what would change codes and has no counterpart here."""
    version = config.get("sae_lens_version") or config.get("metadata", {}).get("sae_lens_version")
    if not version or int(str(version).split(".")[0]) < 6:
        raise ConfigError(f"{folder} was saved by sae-lens before version 6: load and save it with a newer one")
    if config.get("architecture") not in READ_AS:
        raise ConfigError(f"{folder}: architecture '{config.get('architecture')}' is not one of {', '.join(READ_AS)}")
    for key in ("normalize_activations", "reshape_activations"):
        if config.get(key, "none") != "none":
            raise ConfigError(
                f"{folder}: {key} is '{config[key]}': fold it into the weights and save again, or drop it"
            )
    if config["architecture"] != "matching_pursuit":
        return
    if config.get("residual_threshold", 0.0) > 0 or config.get("stop_on_duplicate_support", True):
        raise ConfigError(
            f"{folder}: its pursuit may stop early, which has no counterpart here: save it with residual_threshold 0 "
            "and stop_on_duplicate_support false"
        )


def _check_shapes(folder: Path, arrays: Arrays, config: dict[str, Any], names: tuple[str, ...]) -> None:
    """Refuse other tensors than the architecture has, or other shapes than the configuration says."""
    d, m = config["d_in"], config["d_sae"]
    wide = {"W_enc": (d, m), "W_dec": (m, d), "b_dec": (d,)}
    wanted = {name: wide.get(name, (m,)) for name in ("W_dec", "b_dec", *names)}
    found = {name: value.shape for name, value in arrays.items()}
    if found != wanted:
        differ = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        said = "; ".join(
            f"{name} is {found.get(name, 'missing')}, not {wanted.get(name, 'expected')}" for name in differ
        )
        raise DataError(f"{folder / WEIGHTS} does not fit its configuration: {said}")


def _parameters(folder: Path, arrays: Arrays, config: dict[str, Any]) -> Arrays:
    """Parameters of the same dictionary here, decoder rows brought to unit length."""
    architecture = config["architecture"]
    length = np.linalg.norm(arrays["W_dec"].astype(np.float64), axis=1)
    if not (length > 0).all():
        raise DataError(f"{folder}: {int((length == 0).sum())} rows of W_dec are zero, and an atom needs a direction")
    equal = np.ptp(length) <= ROUNDING * length.max()
    chosen_by_score = architecture == "topk" and not config.get("rescale_acts_by_decoder_norm", False)
    if (chosen_by_score and not equal) or (architecture == "matching_pursuit" and abs(length - 1).max() > ROUNDING):
        raise ConfigError(
            f"{folder}: rows of W_dec have lengths from {length.min():.3g} to {length.max():.3g}, and its codes are "
            "chosen without them: atoms of unit length would choose others"
        )
    bias = arrays["b_dec"]
    subtracted = config.get("apply_b_dec_to_input", True)
    parameters = {"atoms": arrays["W_dec"] / length[:, None], "bias": bias}
    if architecture == "matching_pursuit":
        # Without the bias at the input, sae-lens adds none at the output either.
        return {name: value.astype(np.float32) for name, value in parameters.items()} | (
            {} if subtracted else {"bias": np.zeros_like(bias)}
        )
    encoder = arrays["W_enc"].T.astype(np.float64)
    # What the bias adds to every score when it is subtracted here and was not there.
    shift = 0.0 if subtracted else encoder @ bias
    parameters["encoder"] = encoder * length[:, None]
    if architecture == "gated":
        gain = np.exp(arrays["r_mag"].astype(np.float64))
        parameters |= {
            "encoder_bias": (arrays["b_gate"] + shift) * length,
            "log_gain": arrays["r_mag"],
            "magnitude_bias": (arrays["b_mag"] + gain * shift) * length,
        }
    else:
        parameters["encoder_bias"] = (arrays["b_enc"] + shift) * length
    if architecture == "jumprelu":
        parameters["threshold"] = arrays["threshold"] * length
    return {name: value.astype(np.float32) for name, value in parameters.items()}
