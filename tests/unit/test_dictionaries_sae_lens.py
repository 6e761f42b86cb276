"""The interchange against sae-lens itself, in an environment of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from test_dictionaries_interchange import D, K, M, X, close, dense, make

from conceptome.dictionaries import METHODS, load
from conceptome.dictionaries.interchange import ARCHITECTURES, READ_AS, export, import_from
from conceptome.provenance.closure import repository

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

EXPORTED = [name for name in ARCHITECTURES if name in METHODS]
SAVED = {
    name: {"d_in": D, "d_sae": M}
    | {
        "topk": {"k": K, "rescale_acts_by_decoder_norm": True},
        "matching_pursuit": {"max_iterations": K, "residual_threshold": 0.0, "stop_on_duplicate_support": False},
    }.get(name, {})
    for name, (method, _) in READ_AS.items()
    if method in METHODS
}


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """Python of an environment with sae-lens, made from envs/peers.txt unless `make benchmark` has left one."""
    root = repository()
    if (root / ".venv-peers" / ".complete").exists():
        return root / ".venv-peers" / "bin" / "python"
    folder = tmp_path_factory.mktemp("peers") / "venv"
    setup = ["bash", str(root / "scripts/setup_tools.sh"), sys.executable, str(folder), "envs/peers.txt", "first"]
    made = subprocess.run(setup, capture_output=True, text=True)
    if made.returncode:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), "sae-lens"]
        if subprocess.run(pip, capture_output=True).returncode:
            pytest.skip("pip cannot reach the package index, which has sae-lens")
        pytest.fail(f"envs/peers.txt cannot be installed: {made.stderr[-2000:]}")
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def exchanged(python, tmp_path_factory):
    """Where sae-lens has loaded every exported dictionary and saved autoencoders of its own; and where ours are."""
    base, own = tmp_path_factory.mktemp("exchanged"), tmp_path_factory.mktemp("own")
    np.save(base / "rows.npy", X)
    (base / "saved.json").write_text(json.dumps(SAVED))
    for method in EXPORTED:
        make(method).save(own / method)
        export(own / method, base / "exported" / method)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [str(python), str(Path(__file__).with_name("sae_lens_side.py")), str(base)],
        capture_output=True,
        text=True,
        env=environment | {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"},
    )
    assert not done.returncode, done.stderr[-2000:]
    return base, own


@pytest.mark.parametrize("method", EXPORTED)
def test_sae_lens_loads_an_exported_dictionary_with_the_same_codes(method, exchanged):
    base, own = exchanged
    dictionary = load(own / method)
    found = np.load(base / "exported" / f"{method}.npz")
    assert str(found["kind"]).lower() == ARCHITECTURES[method].replace("_", "") + "sae"
    assert (found["codes"] > 0).sum() > len(X)
    assert close(dense(dictionary, X), found["codes"])
    assert close(dictionary.decode(dictionary.encode(X)), found["reconstruction"])


@pytest.mark.parametrize("architecture", SAVED)
def test_what_sae_lens_saves_has_the_same_codes_here(architecture, exchanged, tmp_path):
    base, _ = exchanged
    import_from(base / "saved" / architecture, tmp_path / "own")
    dictionary = load(tmp_path / "own")
    found = np.load(base / "saved" / f"{architecture}.npz")
    # Decoder rows have any length there, which the codes take over. TopK's are already in units of it.
    rows = load_file(base / "saved" / architecture / "sae_weights.safetensors")["W_dec"]
    lengths = 1.0 if architecture == "topk" else np.linalg.norm(rows, axis=1)
    assert (found["codes"] > 0).sum() > len(X)
    assert close(dense(dictionary, X), found["codes"] * lengths)
    assert close(dictionary.decode(dictionary.encode(X)), found["reconstruction"])
