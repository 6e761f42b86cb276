"""The script learn, run as Snakemake runs it."""

import runpy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_job import fake_job

from conceptome.activations import write_store
from conceptome.codes import load as load_codes
from conceptome.config.models import Whitening
from conceptome.dictionaries import load
from conceptome.whitening import fit

SCRIPT = Path(__file__).parents[2] / "scripts" / "learn.py"


@pytest.fixture
def results(tmp_path):
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(
        {"control": True, "split": ["train"] * 150 + ["test"] * 50, "label": "x"},
        index=pd.Index([f"s{i}" for i in range(200)], name="sample_id"),
    )
    folder = tmp_path / "results"
    X = rng.standard_normal((200, 6)).astype(np.float32)
    store = write_store(folder / "activations", [X], obs, {"model": "test"}, rows_per_shard=64)
    config = Whitening(method="pca", n_components=5)
    fit(store, (obs["split"] == "train").to_numpy(), config).save(folder / "whitening")
    return folder


def run(results, dictionary, seeds, name):
    seed_folders = [results / name / f"seed{seed}" for seed in seeds]
    job = fake_job(
        results.parent,
        rule="learn",
        inputs={
            "activations": str(results / "activations"),
            "whitening": str(results / "whitening" / "whitening.safetensors"),
        },
        params={"dictionary": dictionary, "seeds": seeds, "checkpoints": str(results / "checkpoints" / name)},
    )
    # Snakemake keeps a named list of files as a stretch of its one list.
    for output, file in (
        ("dictionaries", "dictionary.safetensors"),
        ("cards", "card.json"),
        ("codes", "codes.parquet"),
    ):
        start = len(job.output)
        job.output.extend(str(folder / file) for folder in seed_folders)
        job.output._set_name(output, start, end=len(job.output))
    runpy.run_path(str(SCRIPT), {"snakemake": job})
    return seed_folders


def test_every_seed_writes_its_dictionary_and_codes_of_all_rows_twice_alike(results):
    dictionary = {"method": "icfl", "m": 8, "k": None, "rounds": 2, "columns": 1, "steps": 10, "batch_size": 64}
    first, second = (run(results, dictionary, [0, 3], name) for name in ("a", "b"))
    for one, other, seed in zip(first, second, [0, 3]):
        for file in ("dictionary.safetensors", "card.json", "codes.parquet"):
            assert (one / file).read_bytes() == (other / file).read_bytes()
        assert load(one).card["seed"] == seed
        assert load(one).card["training"]["n_rows"] == 150
        codes, obs = load_codes(one / "codes.parquet")
        assert codes.shape == (200, 8)
        assert list(obs.columns) == ["control", "split", "label"]
        assert obs.index[-1] == "s199"


def test_a_failed_job_leaves_the_states_of_its_trainings_and_the_next_one_takes_them_up(results, monkeypatch):
    from conceptome.codes import Codes

    dictionary = {
        "method": "icfl", "m": 8, "k": None, "rounds": 2, "columns": 1, "steps": 10, "batch_size": 64,
        "checkpoint_every": 4, "checkpoint_seconds": 0,
    }  # fmt: skip
    expected = run(results, dictionary, [0, 3], "a")
    assert not list(results.glob("checkpoints/**/*.safetensors"))

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Codes, "save", full_disk)
        with pytest.raises(SystemExit):
            run(results, dictionary, [0, 3], "b")
    kept = sorted(path.name for path in (results / "checkpoints" / "b").iterdir())
    assert kept == ["seed0.previous.safetensors", "seed0.safetensors"]
    again = run(results, dictionary, [0, 3], "b")
    for one, other in zip(expected, again, strict=True):
        for file in ("dictionary.safetensors", "card.json", "codes.parquet"):
            assert (one / file).read_bytes() == (other / file).read_bytes()
    assert not (results / "checkpoints" / "b").exists()


def test_one_line_for_a_mistake(results, capfd):
    with pytest.raises(SystemExit) as error:
        run(results, {"method": "pca", "k": 9}, [0], "c")
    assert error.value.code == 1
    lines = [line for line in capfd.readouterr().err.splitlines() if line]
    assert len(lines) == 1
    assert "k (9) exceeds the activations' 5 dimensions" in lines[0]
