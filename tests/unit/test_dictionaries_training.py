"""Training that goes on where it was killed, and the order in which rows are seen."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from planted import mixture

from conceptome.activations import write_store
from conceptome.config.models import Whitening as WhiteningConfig
from conceptome.dictionaries import fit
from conceptome.dictionaries.batches import Batches, Order
from conceptome.dictionaries.checkpoint import Checkpoint
from conceptome.dictionaries.rows import ArrayRows, StoreRows, chunk_rows, sample, training_rows
from conceptome.whitening import fit as fit_whitening

# 1.5 MiB of rows: more than a buffer of 1 MiB holds.
X = mixture(n=6000, d=64)[0]
OFTEN = {"checkpoint_every": 4, "checkpoint_seconds": 0}
METHODS = {
    "topk": {"m": 64, "k": 4, "steps": 60, "batch_size": 256, "dead_after": 1000, "k_aux": 8},
    "icfl": {"m": 64, "rounds": 2, "columns": 2, "steps": 60, "batch_size": 256, "reset_every": 5, "reset_cosine": 0.4},
}
SMALL_BUFFER = {"buffer_mb": 1}

# Trains and saves; dies by its own hand at the named moment: "step:7", or "before:3" or "after:3" the third renaming.
SCRIPT = """
import json, logging, os, signal, sys
import numpy as np
from conceptome.activations import Store
from conceptome.dictionaries import fit, training

data, folder, output, name, options, moment = sys.argv[1:]
logging.basicConfig(level=logging.INFO)
calls = {"step": 0, "before": 0, "after": 0}

def reached(what):
    calls[what] += 1
    if moment == f"{what}:{calls[what]}":
        os.kill(os.getpid(), signal.SIGKILL)

def count(loop, *arguments, plain=training.Loop.count):
    reached("step")
    plain(loop, *arguments)

def replace(*arguments, plain=os.replace):
    reached("before")
    plain(*arguments)
    reached("after")

training.Loop.count, os.replace = count, replace
fit(name, Store(data), seed=3, threads=1, checkpoint=folder, **json.loads(options)).save(output)
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    obs = pd.DataFrame({"split": "train"}, index=pd.Index([f"s{i}" for i in range(len(X))], name="sample_id"))
    return write_store(tmp_path_factory.mktemp("store"), [X], obs, {"model": "test"}, rows_per_shard=2500)


def run(store, folder, output, name, options, moment="never"):
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, (store.folder, folder, output)), name, json.dumps(options), moment],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        text=True,
        capture_output=True,
    )


@pytest.mark.parametrize("name", sorted(METHODS))
@pytest.mark.parametrize("buffer", [{}, SMALL_BUFFER], ids=["whole", "streamed"])
def test_killed_and_started_again_gives_the_same_bytes(store, tmp_path, name, buffer):
    options = METHODS[name] | OFTEN | buffer
    fit(name, store, seed=3, threads=1, **options).save(tmp_path / "uninterrupted")
    expected_step = 0
    # Died in mid-step; before and after a checkpoint took its name; within the second epoch; in the very last step.
    for moment, left_at in (("step:7", 4), ("before:2", 8), ("after:5", 28), ("step:32", 56)):
        done = run(store, tmp_path / "state", tmp_path / "killed", name, options, moment)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert ("going on from step" in done.stderr) == (expected_step > 0)
        assert f"going on from step {expected_step} of" in done.stderr or not expected_step
        expected_step = left_at
    assert not (tmp_path / "killed").exists()
    done = run(store, tmp_path / "state", tmp_path / "killed", name, options)
    assert done.returncode == 0, done.stderr
    assert "going on from step 56 of" in done.stderr
    for file in ("dictionary.safetensors", "card.json"):
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "uninterrupted" / file).read_bytes()
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["seed3.safetensors"]


def test_a_checkpoint_of_something_else_is_left_alone_with_a_line(tmp_path, caplog):
    options = METHODS["topk"] | OFTEN
    first = fit("topk", X, seed=0, threads=1, checkpoint=tmp_path, **options)
    written = (tmp_path / "seed0.safetensors").read_bytes()
    same = fit("topk", X, seed=0, threads=1, checkpoint=tmp_path, **options | {"checkpoint_every": 7})
    assert not caplog.records
    np.testing.assert_array_equal(same.atoms, first.atoms)
    assert (tmp_path / "seed0.safetensors").read_bytes() == written
    for other in ({"learning_rate": 1e-3}, {"steps": 61}):
        again = fit("topk", X, seed=0, threads=1, checkpoint=tmp_path, **options | OFTEN | other)
        expected = fit("topk", X, seed=0, threads=1, **options | OFTEN | other)
        np.testing.assert_array_equal(again.atoms, expected.atoms)
        assert "is of other options, another seed or other data" in caplog.text
        caplog.clear()
    moved = fit("topk", X + 1, seed=0, threads=1, checkpoint=tmp_path, **options)
    assert "other data" in caplog.text
    np.testing.assert_array_equal(moved.atoms, fit("topk", X + 1, seed=0, threads=1, **options).atoms)
    caplog.clear()
    (tmp_path / "seed0.safetensors").write_bytes(b"short")
    again = fit("topk", X, seed=0, threads=1, checkpoint=tmp_path, **options)
    assert "cannot be read" in caplog.text
    np.testing.assert_array_equal(again.atoms, first.atoms)


def test_no_checkpoint_where_training_is_short(tmp_path):
    fit("topk", X, threads=1, checkpoint=tmp_path, **METHODS["topk"], checkpoint_every=4)
    assert not list(tmp_path.iterdir())
    Checkpoint(tmp_path / "none" / "a.safetensors").remove()


def test_a_checkpoint_keeps_arrays_of_any_shape(tmp_path):
    checkpoint = Checkpoint(tmp_path / "a" / "x.safetensors")
    arrays = {"scalar": np.array(3), "turned": np.arange(6.0).reshape(2, 3).T, "empty": np.zeros((0, 2), np.float32)}
    checkpoint.write("d", arrays, {"wide": 2**127 + 1, "tiny": 1e-300})
    found, state = checkpoint.read("d")
    assert state == {"wide": 2**127 + 1, "tiny": 1e-300}
    for name, value in arrays.items():
        assert found[name].shape == value.shape
        np.testing.assert_array_equal(found[name], value)
    assert checkpoint.read("e") is None
    checkpoint.remove()
    assert not (tmp_path / "a").exists()


def numbered(n, d=64):
    """Rows whose first value is their position."""
    rows = np.zeros((n, d), dtype=np.float32)
    rows[:, 0] = np.arange(n)
    return ArrayRows(rows)


@pytest.mark.parametrize("n", [10, 6000])
def test_every_row_is_seen_once_per_epoch(n):
    batches = Batches(numbered(n), Order(batch_size=4, buffer_mb=1, seed=0))
    seen = np.concatenate([next(batches)[:, 0] for _ in range(n // 2)])
    for epoch in (seen[:n], seen[n:]):
        assert np.sort(epoch).tolist() == list(range(n))
    assert seen[:n].tolist() != seen[n:].tolist()


def test_a_batch_is_never_larger_than_an_epoch():
    batches = Batches(numbered(3), Order(batch_size=100, buffer_mb=1, seed=0))
    assert np.sort(next(batches)[:, 0]).tolist() == [0, 1, 2]


def test_rows_beyond_the_buffer_are_mixed_from_far_away():
    batches = Batches(numbered(40_000), Order(batch_size=256, buffer_mb=1, seed=0))
    size = chunk_rows(64)
    chunks = [len(np.unique(next(batches)[:, 0] // size)) for _ in range(100)]
    # A filling of 4,096 rows holds 8 chunks of 512; a batch of 256 rows must come from all of them.
    assert size == 512
    assert min(chunks) >= 8
    first, other = (
        np.concatenate([next(made)[:, 0] for _ in range(20)])
        for made in (Batches(numbered(40_000), Order(256, 1, seed)) for seed in (0, 1))
    )
    assert first.tolist() != other.tolist()


@pytest.mark.parametrize("steps", [0, 1, 15, 16, 24, 100])
def test_the_order_goes_on_from_any_batch(steps):
    rows, order = numbered(6000), Order(batch_size=256, buffer_mb=1, seed=5)
    whole = Batches(rows, order)
    for _ in range(steps):
        next(whole)
    again = Batches(rows, order, json.loads(json.dumps(whole.state())))
    for _ in range(60):
        np.testing.assert_array_equal(next(whole), next(again))


@pytest.fixture(scope="module")
def whitening(store):
    return fit_whitening(store, np.ones(len(X), dtype=bool), WhiteningConfig(method="pca", n_components=60))


@pytest.mark.parametrize("buffer_mb", [1, 8])
def test_rows_from_memory_and_from_the_store_are_the_same_bytes_in_the_same_order(store, whitening, buffer_mb):
    chosen = np.random.default_rng(0).random(len(X)) < 0.8
    kept, read = (training_rows(store, chosen, whitening, memory_limit=limit) for limit in (2**30, 10))
    assert isinstance(kept, ArrayRows)
    assert isinstance(read, StoreRows)
    index = np.random.default_rng(1).integers(0, chosen.sum(), 300)
    assert kept.take(index).tobytes() == read.take(index).tobytes()
    ours, theirs = (Batches(rows, Order(256, buffer_mb, 0)) for rows in (kept, read))
    for _ in range(50):
        assert next(ours).tobytes() == next(theirs).tobytes()
    theirs.close()


def test_a_sample_of_very_many_rows_is_a_sample_of_chunks(monkeypatch):
    rows = numbered(40_000)
    few = sample(rows, 2000, np.random.default_rng(0))[:, 0]
    assert len(np.unique(few // 512)) > 70
    monkeypatch.setattr("conceptome.dictionaries.rows.SCATTERED_BYTES", 2**20)
    chunked = sample(rows, 2000, np.random.default_rng(0))[:, 0]
    assert len(np.unique(chunked)) == 2000
    assert (np.diff(chunked) > 0).all()
    assert 4 <= len(np.unique(chunked // 512)) <= 5
