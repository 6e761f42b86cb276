"""Dictionaries as sae-lens folders and back: files, shapes, and the codes by sae-lens's documented formulas."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from conceptome.__main__ import main
from conceptome.dictionaries import METHODS, load
from conceptome.dictionaries.interchange import ARCHITECTURES, from_sae_lens, to_sae_lens
from conceptome.errors import ConfigError, DataError

M, D, K = 48, 12, 5
RNG = np.random.default_rng(3)
X = RNG.standard_normal((64, D)).astype(np.float32)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def make(method):
    """A dictionary of this method with random parameters, none of them 0."""
    import importlib

    module, name, _ = METHODS[method]
    parameters = {
        "atoms": unit(RNG.standard_normal((M, D))),
        "encoder": RNG.standard_normal((M, D)),
        "encoder_bias": 0.3 * RNG.standard_normal(M),
        "bias": RNG.standard_normal(D),
    }
    card = {"k": K, "seed": 0, "options": {}, "training": {}}
    if method == "mp_sae":
        parameters = {key: parameters[key] for key in ("atoms", "bias")}
        card["options"]["nonnegative"] = True
    elif method != "topk":
        card["k"] = M
    if method in ("batch_topk", "matryoshka"):
        parameters["threshold"] = np.array([0.7])
    if method == "jumprelu":
        parameters["threshold"] = 0.2 + RNG.random(M)
    if method == "gated":
        parameters |= {"log_gain": 0.2 * RNG.standard_normal(M), "magnitude_bias": 0.2 * RNG.standard_normal(M)}
    return getattr(importlib.import_module(module), name)(parameters, card)


def sae_lens_codes(arrays, config, X):
    """Codes by the formulas that sae-lens documents for its architectures, in float64."""
    w = {name: value.astype(np.float64) for name, value in arrays.items()}
    x = X.astype(np.float64) - w["b_dec"] * config["apply_b_dec_to_input"]
    architecture = config["architecture"]
    if architecture == "matching_pursuit":
        codes = np.zeros((len(x), len(w["W_dec"])))
        for _ in range(config["max_iterations"]):
            scores = np.maximum(x @ w["W_dec"].T, 0)
            best = scores.argmax(axis=1)
            value = scores[np.arange(len(x)), best]
            codes[np.arange(len(x)), best] += value
            x = x - value[:, None] * w["W_dec"][best]
        return codes
    if architecture == "gated":
        magnitude = np.maximum(x @ (w["W_enc"] * np.exp(w["r_mag"])) + w["b_mag"], 0)
        return magnitude * (x @ w["W_enc"] + w["b_gate"] > 0)
    scores = x @ w["W_enc"] + w["b_enc"]
    if architecture == "topk":
        if config["rescale_acts_by_decoder_norm"]:
            scores = scores * np.linalg.norm(w["W_dec"], axis=1)
        order = np.argsort(-scores, axis=1)[:, : config["k"]]
        kept = np.zeros_like(scores)
        np.put_along_axis(kept, order, np.take_along_axis(scores, order, axis=1), axis=1)
        return np.maximum(kept, 0)
    threshold = w["threshold"] if architecture == "jumprelu" else 0.0
    return np.maximum(scores, 0) * (scores > threshold)


def dense(dictionary, X):
    return dictionary.encode(X).to_scipy().toarray()


def close(ours, theirs):
    return np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()


@pytest.mark.parametrize("method", [name for name in ARCHITECTURES if name in METHODS])
def test_the_exported_folder_has_the_same_codes_and_comes_back(method, tmp_path):
    dictionary = make(method)
    dictionary.save(tmp_path / "own")
    assert main(["dictionary", "export", "--to", "sae-lens", str(tmp_path / "own"), str(tmp_path / "theirs")]) == 0
    assert sorted(path.name for path in (tmp_path / "theirs").iterdir()) == ["cfg.json", "sae_weights.safetensors"]
    arrays = load_file(tmp_path / "theirs/sae_weights.safetensors")
    config = json.loads((tmp_path / "theirs/cfg.json").read_text())
    assert (config["d_in"], config["d_sae"], config["dtype"]) == (D, M, "float32")
    assert arrays["W_dec"].shape == (M, D)
    assert arrays["b_dec"].shape == (D,)
    assert ("W_enc" in arrays) == (method != "mp_sae")
    assert all(value.dtype == np.float32 for value in arrays.values())
    theirs = sae_lens_codes(arrays, config, X)
    assert (theirs > 0).sum() > len(X)
    assert close(dense(dictionary, X), theirs)
    assert main(["dictionary", "import", "--from", "sae-lens", str(tmp_path / "theirs"), str(tmp_path / "back")]) == 0
    assert close(dense(load(tmp_path / "back"), X), theirs)


def folder(tmp_path, arrays, **config):
    """An sae-lens folder as its own training leaves it."""
    folder = tmp_path / "folder"
    folder.mkdir()
    base = {
        "architecture": "topk",
        "d_in": D,
        "d_sae": M,
        "k": K,
        "dtype": "float32",
        "apply_b_dec_to_input": True,
        "rescale_acts_by_decoder_norm": False,
        "normalize_activations": "none",
        "metadata": {"sae_lens_version": "6.54.12"},
    }
    save_file({name: value.astype(np.float32) for name, value in arrays.items()}, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(base | config))
    return folder, base | config


def random_arrays(scale=1.0):
    return {
        "W_enc": RNG.standard_normal((D, M)).astype(np.float32),
        "W_dec": (unit(RNG.standard_normal((M, D))) * scale).astype(np.float32),
        "b_enc": (0.3 * RNG.standard_normal(M)).astype(np.float32),
        "b_dec": RNG.standard_normal(D).astype(np.float32),
    }


@pytest.mark.parametrize("subtracted", [True, False])
def test_lengths_of_decoder_rows_move_into_the_codes(tmp_path, subtracted):
    scale = (0.5 + RNG.random(M))[:, None]
    arrays = random_arrays(scale)
    path, config = folder(tmp_path, arrays, apply_b_dec_to_input=subtracted, rescale_acts_by_decoder_norm=True)
    dictionary = from_sae_lens(path)
    theirs = sae_lens_codes(arrays, config, X)
    np.testing.assert_allclose(np.linalg.norm(dictionary.atoms, axis=1), 1, rtol=1e-6)
    assert close(dense(dictionary, X), theirs)
    # sae-lens divides the codes by the lengths again when it decodes.
    reconstruction = (theirs / scale.T) @ arrays["W_dec"] + arrays["b_dec"]
    assert close(dictionary.decode(dictionary.encode(X)), reconstruction)


def test_atoms_of_unequal_length_chosen_without_it_are_refused(tmp_path):
    path, _ = folder(tmp_path, random_arrays((0.5 + RNG.random(M))[:, None]))
    with pytest.raises(ConfigError, match="codes are chosen without them"):
        from_sae_lens(path)


def test_bfloat16_weights_are_read(tmp_path):
    arrays = random_arrays()
    path, _ = folder(tmp_path, arrays)
    bits = {name: (value.view(np.uint32) >> 16).astype("<u2") for name, value in arrays.items()}
    header, data = {}, b""
    for name, value in bits.items():
        header[name] = {"dtype": "BF16", "shape": value.shape, "data_offsets": [len(data), len(data) + value.nbytes]}
        data += value.tobytes()
    text = json.dumps(header).encode()
    (path / "sae_weights.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    cut = (bits["b_enc"].astype(np.uint32) << 16).view(np.float32)
    length = np.linalg.norm((bits["W_dec"].astype(np.uint32) << 16).view(np.float32), axis=1)
    with pytest.raises(ConfigError, match="codes are chosen without them"):
        from_sae_lens(path)
    config = json.loads((path / "cfg.json").read_text()) | {"rescale_acts_by_decoder_norm": True}
    (path / "cfg.json").write_text(json.dumps(config))
    np.testing.assert_allclose(from_sae_lens(path).parameters["encoder_bias"], cut * length, rtol=1e-6)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architecture": "temporal"}, "architecture 'temporal' is not one of"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations is 'layer_norm'"),
        ({"metadata": {"sae_lens_version": "5.9.0"}}, "before version 6"),
        ({"metadata": {}}, "before version 6"),
    ],
)
def test_settings_without_a_counterpart_are_refused(tmp_path, config, message):
    path, _ = folder(tmp_path, random_arrays(), **config)
    with pytest.raises(ConfigError, match=message):
        from_sae_lens(path)


def test_tensors_that_do_not_fit_are_named(tmp_path):
    arrays = random_arrays()
    del arrays["b_enc"]
    arrays["W_enc"] = arrays["W_enc"].T.copy()
    path, _ = folder(tmp_path, arrays)
    with pytest.raises(DataError, match=r"W_enc is \(48, 12\), not \(12, 48\); b_enc is missing, not \(48,\)"):
        from_sae_lens(path)


def test_damaged_and_missing_files_are_one_line(tmp_path, capsys):
    with pytest.raises(DataError, match=r"cfg\.json is missing"):
        from_sae_lens(tmp_path)
    path, _ = folder(tmp_path, random_arrays())
    (path / "sae_weights.safetensors").write_bytes(b"not tensors at all")
    with pytest.raises(DataError, match="cannot be read"):
        from_sae_lens(path)
    assert main(["dictionary", "export", "--to", "sae-lens", str(tmp_path / "none"), str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "out").exists()


def test_an_existing_folder_is_not_overwritten(tmp_path):
    make("topk").save(tmp_path / "own")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").write_text("mine")
    assert main(["dictionary", "export", "--to", "sae-lens", str(tmp_path / "own"), str(tmp_path / "out")]) == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]


def test_a_method_that_sae_lens_lacks_is_refused():
    from conceptome.dictionaries.random_atoms import Random

    own = {"atoms": unit(RNG.standard_normal((M, D))), "bias": np.zeros(D), "gain": np.ones(1)}
    with pytest.raises(ConfigError, match="no architecture for method 'random'"):
        to_sae_lens(Random(own, {"k": K}))
