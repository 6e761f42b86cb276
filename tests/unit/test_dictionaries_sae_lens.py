"""The interchange against sae-lens itself, in an environment of its own."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_dictionaries_interchange import D, K, M, X, close, dense, make

from conceptome.dictionaries import METHODS, load
from conceptome.dictionaries.base import Dictionary
from conceptome.dictionaries.interchange import ARCHITECTURES, READ_AS, export, import_from
from conceptome.provenance.closure import repository

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="session")
def sae_lens(tmp_path_factory):
    """Run sae_lens_side.py; makes the environment from envs/peers.txt unless `make benchmark` has left one."""
    root = repository()
    python = root / ".venv-peers" / "bin" / "python"
    if not (root / ".venv-peers" / ".complete").exists():
        folder = tmp_path_factory.mktemp("peers") / "venv"
        setup = ["bash", str(root / "scripts/setup_peers.sh"), sys.executable, str(folder), "sae-lens"]
        made = subprocess.run(setup, capture_output=True, text=True)
        python = folder / "bin" / "python"
        if made.returncode:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), "sae-lens"]
            if subprocess.run(pip, capture_output=True).returncode:
                pytest.skip("pip cannot reach the package index, which has sae-lens")
            pytest.fail(f"envs/peers.txt cannot be installed: {made.stderr[-2000:]}")

    def run(*arguments):
        command = [str(python), str(Path(__file__).with_name("sae_lens_side.py")), *map(str, arguments)]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        environment |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert not done.returncode, done.stderr[-2000:]

    return run


def theirs(sae_lens, folder: Path, tmp_path: Path) -> dict[str, np.ndarray]:
    """Codes and reconstruction of X by sae-lens."""
    np.save(tmp_path / "rows.npy", X)
    sae_lens("encode", folder, tmp_path / "rows.npy", tmp_path / "codes.npz")
    return dict(np.load(tmp_path / "codes.npz"))


def same(dictionary: Dictionary, found: dict[str, np.ndarray], lengths: np.ndarray | float = 1.0) -> None:
    assert (found["codes"] > 0).sum() > len(X)
    assert close(dense(dictionary, X), found["codes"] * lengths)
    assert close(dictionary.decode(dictionary.encode(X)), found["reconstruction"])


@pytest.mark.parametrize("method", [name for name in ARCHITECTURES if name in METHODS])
def test_sae_lens_loads_an_exported_dictionary_with_the_same_codes(method, tmp_path, sae_lens):
    dictionary = make(method)
    dictionary.save(tmp_path / "own")
    export(tmp_path / "own", tmp_path / "theirs")
    found = theirs(sae_lens, tmp_path / "theirs", tmp_path)
    assert str(found["kind"]).lower() == ARCHITECTURES[method].replace("_", "") + "sae"
    same(dictionary, found)


@pytest.mark.parametrize("architecture", [name for name, (method, _) in READ_AS.items() if method in METHODS])
def test_what_sae_lens_saves_has_the_same_codes_here(architecture, tmp_path, sae_lens):
    sae_lens("save", tmp_path / "theirs", architecture, D, M, K)
    import_from(tmp_path / "theirs", tmp_path / "own")
    found = theirs(sae_lens, tmp_path / "theirs", tmp_path)
    from safetensors.numpy import load_file

    # Decoder rows of any length: the codes take it over. TopK's are already in units of it.
    rows = load_file(tmp_path / "theirs/sae_weights.safetensors")["W_dec"]
    lengths = 1.0 if architecture == "topk" else np.linalg.norm(rows, axis=1)
    same(load(tmp_path / "own"), found, lengths)
