"""Training that goes on where it was killed, and the order in which rows are seen."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from planted import mixture

from conceptome.activations import write_store
from conceptome.config.models import Whitening as WhiteningConfig
from conceptome.dictionaries import fit, fit_many, learn
from conceptome.dictionaries.batches import Batches, Order
from conceptome.dictionaries.checkpoint import Checkpoint
from conceptome.dictionaries.rows import ArrayRows, StoreRows, chunk_rows, sample, training_rows
from conceptome.errors import ConfigError, DataError
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
# At "asked:7" it asks itself to end, as a scheduler does.
SCRIPT = """
import json, logging, os, signal, sys
import numpy as np
from conceptome.activations import Store
from conceptome.dictionaries import fit, training

data, folder, output, name, options, moment = sys.argv[1:]
logging.basicConfig(level=logging.INFO)
calls = {"step": 0, "before": 0, "after": 0}
asked = int(moment.removeprefix("asked:")) if moment.startswith("asked:") else 0

def reached(what):
    calls[what] += 1
    if moment == f"{what}:{calls[what]}":
        os.kill(os.getpid(), signal.SIGKILL)

def count(loop, *arguments, plain=training.Loop.count):
    reached("step")
    if calls["step"] == asked:
        os.kill(os.getpid(), signal.SIGTERM)
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


@pytest.mark.parametrize(
    ("name", "buffer"),
    [("topk", {}), ("topk", SMALL_BUFFER), ("icfl", SMALL_BUFFER)],
    ids=["topk", "topk streamed", "icfl streamed"],
)
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
    assert {path.name for path in (tmp_path / "state").iterdir()} == {"seed3.safetensors", "seed3.previous.safetensors"}


def test_a_training_that_is_asked_to_end_writes_its_state_first(store, tmp_path):
    # No state is due in 60 steps: the one that the next training goes on from was written because of the signal.
    options = METHODS["topk"] | {"checkpoint_every": 1000}
    fit("topk", store, seed=3, threads=1, **options).save(tmp_path / "uninterrupted")
    done = run(store, tmp_path / "state", tmp_path / "asked", "topk", options, "asked:7")
    assert done.returncode == -signal.SIGTERM, done.stderr
    assert "stopped at step 7" in done.stderr
    assert not (tmp_path / "asked").exists()
    done = run(store, tmp_path / "state", tmp_path / "asked", "topk", options)
    assert "going on from step 7 of" in done.stderr
    for file in ("dictionary.safetensors", "card.json"):
        assert (tmp_path / "asked" / file).read_bytes() == (tmp_path / "uninterrupted" / file).read_bytes()


def test_all_of_a_shared_pass_end_when_asked(store, tmp_path):
    """And whoever would have taken SIGTERM gets it afterwards: the job's record, say."""

    class Told(Exception):
        pass

    def tell(number, frame):
        raise Told

    def ask(done, steps):
        if done == 100:
            os.kill(os.getpid(), signal.SIGTERM)

    options = METHODS["topk"] | {"steps": 100} | OFTEN
    fits = [("topk", options, seed) for seed in (0, 1)]
    before = signal.signal(signal.SIGTERM, tell)
    try:
        with pytest.raises(Told):
            fit_many(fits, store, threads=1, memory_limit=10, checkpoint=tmp_path, progress=ask)
    finally:
        signal.signal(signal.SIGTERM, before)
    again = fit_many(fits, store, threads=1, memory_limit=10, checkpoint=tmp_path)
    for one, other in zip(again, fit_many(fits, store, threads=1, memory_limit=10), strict=True):
        np.testing.assert_array_equal(one.atoms, other.atoms)


@pytest.mark.parametrize("harm", ["a bit is flipped", "cut short"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(tmp_path, caplog, harm):
    def damage(path):
        content = bytearray(path.read_bytes())
        content[-5] ^= 1
        path.write_bytes(content[: -100 if harm == "cut short" else None])

    def train():
        caplog.clear()
        with caplog.at_level("INFO"):
            dictionary = fit("topk", X, seed=3, threads=1, checkpoint=tmp_path, **METHODS["topk"] | OFTEN)
        np.testing.assert_array_equal(dictionary.atoms, uninterrupted.atoms)
        return caplog.text

    uninterrupted = fit("topk", X, seed=3, threads=1, **METHODS["topk"])
    last, previous = (tmp_path / f"seed3{word}.safetensors" for word in ("", ".previous"))
    train()
    damage(last)
    said = train()
    assert f"checkpoint {last} cannot be read" in said
    assert f"going on from step 56 of {previous}" in said
    # The good one was not displaced by the damaged one.
    last.unlink()
    assert f"going on from step 56 of {previous}" in train()
    damage(last)
    damage(previous)
    said = train()
    assert f"checkpoint {last} cannot be read" in said
    assert f"checkpoint {previous} cannot be read" in said
    assert "training starts anew" in said
    assert "going on from" not in said


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


@pytest.mark.parametrize("buffer", [{}, SMALL_BUFFER], ids=["whole", "streamed"])
def test_all_seeds_are_the_same_bytes_from_memory_and_in_one_pass_over_the_store(store, whitening, buffer, tmp_path):
    rows, options = np.arange(len(X)) % 7 > 0, METHODS["topk"] | OFTEN | buffer
    told = []
    for name, limit in (("kept", 2**30), ("read", 10)):
        fits = learn(
            "topk", store, whitening, rows=rows, seeds=[4, 2], threads=1, memory_limit=limit,
            progress=lambda done, steps: told.append((done, steps)), checkpoint=tmp_path / "state", **options,
        )  # fmt: skip
        for dictionary, codes in fits:
            dictionary.save(tmp_path / name / str(dictionary.card["seed"]))
            codes.save(tmp_path / name / str(dictionary.card["seed"]) / "codes.parquet", store.obs)
        assert not (tmp_path / "state").exists()
    for seed in ("4", "2"):
        for file in ("dictionary.safetensors", "card.json", "codes.parquet"):
            assert (tmp_path / "kept" / seed / file).read_bytes() == (tmp_path / "read" / seed / file).read_bytes()
    assert (tmp_path / "read" / "4" / "card.json").read_bytes() != (tmp_path / "read" / "2" / "card.json").read_bytes()
    assert max(told) == (120, 120)


SEVERAL = [
    ("topk", METHODS["topk"] | SMALL_BUFFER, 1),
    ("topk", METHODS["topk"] | SMALL_BUFFER | {"k": 2, "m": 32, "steps": 30}, 1),
    ("pca", {}, 0),
    ("icfl", METHODS["icfl"] | SMALL_BUFFER | {"steps": 90}, 5),
    ("topk", METHODS["topk"] | SMALL_BUFFER | {"batch_size": 200}, 1),
]


def counted_reads(monkeypatch):
    reads = []
    monkeypatch.setattr(
        StoreRows, "take", lambda rows, index, plain=StoreRows.take: (reads.append(len(index)), plain(rows, index))[1]
    )
    return reads


def test_several_dictionaries_share_a_pass_and_each_is_as_if_alone(store, whitening, monkeypatch):
    together = fit_many(SEVERAL, store, whitening=whitening, threads=1, memory_limit=10)
    monkeypatch.setattr("conceptome.dictionaries.rows.MEMORY_LIMIT", 10)
    for dictionary, (name, options, seed) in zip(together, SEVERAL, strict=True):
        alone = fit(name, store, whitening=whitening, seed=seed, threads=1, **options)
        assert dictionary.card == alone.card
        for key, value in alone.parameters.items():
            np.testing.assert_array_equal(dictionary.parameters[key], value)


def test_the_pass_is_read_once(store, whitening, monkeypatch):
    reads = counted_reads(monkeypatch)
    one, *_ = SEVERAL
    fit_many([one], store, whitening=whitening, threads=1, memory_limit=10)
    alone = len([size for size in reads if size > 1000])
    reads.clear()
    fit_many([(one[0], one[1], seed) for seed in range(4)], store, whitening=whitening, threads=1, memory_limit=10)
    # Each seed looks at a sample of its own first.
    assert len([size for size in reads if size > 1000]) == alone + 3


def test_a_shared_pass_goes_on_from_different_steps(store, tmp_path):
    fits = [SEVERAL[0], SEVERAL[1], SEVERAL[3]]
    often = [(name, options | OFTEN, seed) for name, options, seed in fits]
    expected = fit_many(often, store, threads=1, memory_limit=10)
    stopped = []

    def stop(done, steps):
        stopped.append(done)
        if done > 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_many(often, store, threads=1, memory_limit=10, checkpoint=tmp_path, progress=stop)
    # One of them starts over, one is at its end, and one in the middle.
    (tmp_path / "0" / "seed1.safetensors").unlink()
    again = fit_many(often, store, threads=1, memory_limit=10, checkpoint=tmp_path)
    for ours, theirs in zip(again, expected, strict=True):
        assert ours.card == theirs.card
        np.testing.assert_array_equal(ours.atoms, theirs.atoms)


def test_one_that_fails_ends_all_with_its_own_line(store):
    wild = ("topk", METHODS["topk"] | SMALL_BUFFER | {"learning_rate": 1e30}, 1)
    with pytest.raises(DataError, match="diverged at step"):
        fit_many([SEVERAL[0], wild, SEVERAL[3]], store, threads=1, memory_limit=10)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("reader")]
    with pytest.raises(ConfigError, match="'topp' is not known"):
        fit_many([SEVERAL[0], ("topp", {}, 1)], store)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("reads", [2, 4, 6])
def test_rows_that_cannot_be_read_end_all(store, monkeypatch, reads):
    left = [reads]

    def take(rows, index, plain=StoreRows.take):
        left[0] -= 1
        if left[0] < 0:
            raise DataError("the shard is gone")
        return plain(rows, index)

    monkeypatch.setattr(StoreRows, "take", take)
    with pytest.raises(DataError, match="the shard is gone"):
        fit_many([SEVERAL[0], SEVERAL[1], SEVERAL[3]], store, threads=1, memory_limit=10)


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


STREAM = """
import json, sys
from conceptome.activations import Store
from conceptome.dictionaries import fit

def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) / 2**10 for line in lines if line.startswith("RssAnon"))

peak = []
store = Store(sys.argv[1])
fit("topk", store, m=512, k=8, steps=int(sys.argv[2]), batch_size=4096, threads=1,
    progress=lambda done, steps: peak.append(anonymous()))
print(json.dumps(max(peak)))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc/self/status to read memory from")
def test_four_gigabytes_are_trained_on_in_one(tmp_path):
    n, d = 2**22, 256
    if shutil.disk_usage(tmp_path).free < 1.5 * n * d * 4:
        pytest.skip("less than 6 GB of disk are free for a store of 4 GB")
    rng = np.random.default_rng(0)
    block = rng.standard_normal((2**16, d), dtype=np.float32)
    obs = pd.DataFrame({"split": "train"}, index=pd.Index(np.arange(n).astype(str), name="sample_id"))
    write_store(tmp_path, (block + np.float32(i) for i in range(n // len(block))), obs, {}, rows_per_shard=2**18)
    # The buffer is filled six times, and so as much is read as memory is allowed.
    command = [sys.executable, "-c", STREAM, str(tmp_path), str(400)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert 256 < json.loads(done.stdout) < 1024
