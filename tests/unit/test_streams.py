"""Covariance, encoding and counts in blocks: whoever works on a block, the merged result is the same bytes."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse as sp

import conceptome.codes as codes_module
import conceptome.whitening as whitening
from conceptome.activations import write_store
from conceptome.codes import Codes, CodeStream, load, stream
from conceptome.config.base import rebuild
from conceptome.config.models import Whitening
from conceptome.dictionaries import learn
from conceptome.errors import DataError
from conceptome.files import sha256_file
from conceptome.statistics.counts import Counts, _plain, count, count_all, peaks

N, D = 3000, 6


@pytest.fixture(scope="module")
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def obs():
    number = np.arange(N)
    frame = pd.DataFrame(
        {
            "split": np.where(number % 5 == 0, "test", "train"),
            "control": number % 3 == 0,
            "group": pd.Categorical([f"g{i}" for i in number % 7]),
            "dose": np.where(number % 11 == 0, np.nan, number / 7),
            "note": np.where(number % 13 == 0, None, "some"),
            "empty": np.full(N, None, dtype=object),
            "plate": number.astype(np.int32),
        },
        index=pd.Index([f"s{i}" for i in number], name="sample_id"),
    )
    frame["late"] = pd.Categorical(np.where(number > 2500, "b", "a"), categories=["c", "b", "a"], ordered=True)
    return frame


@pytest.fixture(scope="module")
def store(tmp_path_factory, obs):
    X = np.random.default_rng(1).standard_normal((N, D)).astype(np.float32) @ np.diag(np.arange(1, D + 1)) + 50
    return write_store(tmp_path_factory.mktemp("store"), [X], obs, {"model": "simulated"}, rows_per_shard=700)


@pytest.fixture(scope="module")
def sparse(rng):
    matrix = sp.random(N, 40, 0.1, "csr", rng=rng, dtype=np.float32)
    matrix.data -= 0.2
    return Codes(matrix)


def shares(blocks: int, workers: int) -> list[list[int]]:
    return [list(range(worker, blocks, workers)) for worker in range(workers)]


@pytest.mark.parametrize("full", [True, False])
def test_covariance_does_not_depend_on_who_sums_which_block(store, monkeypatch, full):
    monkeypatch.setattr(whitening, "ROWS", 64)
    monkeypatch.setattr(whitening, "BLOCK", 256)
    chosen = np.flatnonzero((store.columns(["split"])["split"] == "train").to_numpy())
    number = -(-len(chosen) // 256)
    found = []
    for workers in (1, 3, 7):
        partials = {}
        for share in reversed(shares(number, workers)):
            partials |= {block: whitening.block_moments(store, chosen, block, full=full) for block in share}
        found.append(whitening.merge(partials[block] for block in range(number)))
    X = store.read(chosen).astype(np.float64)
    centred = X - X.mean(axis=0)
    for moments in found:
        assert moments.n == len(chosen)
        assert moments.mean.tobytes() == found[0].mean.tobytes()
        assert moments.scatter.tobytes() == found[0].scatter.tobytes()
    np.testing.assert_allclose(found[0].mean, X.mean(axis=0), rtol=1e-12)
    expected = centred.T @ centred
    np.testing.assert_allclose(found[0].scatter, expected if full else np.diagonal(expected), rtol=1e-9, atol=1e-7)


def test_a_fit_is_the_merged_blocks(store, monkeypatch):
    config = rebuild(Whitening, {"method": "pca"})
    rows = whitening.fitted_rows(store.columns(["split", "control"]), config)
    np.testing.assert_array_equal(rows, whitening.fitted_rows(store.obs, config))
    one = whitening.fit(store, rows, config)
    monkeypatch.setattr(whitening, "BLOCK", 128)
    several = whitening.fit(store, rows, config)
    np.testing.assert_allclose(several.forward, one.forward, rtol=1e-6, atol=1e-9)
    assert several.card["n_fitted"] == one.card["n_fitted"] == int(rows.sum())


def test_columns_are_those_of_obs(store, obs):
    found = store.columns(["late", "dose", "split"])
    assert list(found.columns) == ["late", "dose", "split"]
    assert found["split"].astype(str).tolist() == obs["split"].tolist()
    np.testing.assert_array_equal(found["dose"].to_numpy(), obs["dose"].to_numpy())
    with pytest.raises(DataError, match="no column 'nothing'"):
        store.columns(["nothing"])


@pytest.mark.parametrize("cuts", [[N], [1, 500, 501, 2048, N], [*range(97, N, 97), N]])
def test_streamed_codes_are_the_bytes_of_saved_ones(store, sparse, obs, tmp_path, monkeypatch, cuts):
    monkeypatch.setattr(codes_module, "ROWS_PER_GROUP", 512)
    sparse.save(tmp_path / "whole.parquet", store.obs)
    expected = sha256_file(tmp_path / "whole.parquet")
    blocks = [sparse[start:stop] for start, stop in zip([0, *cuts], cuts)]
    for name, held in (("frame", store.obs), ("file", store.folder / "obs.parquet")):
        CodeStream(iter(blocks)).save(tmp_path / f"{name}.parquet", held)
        assert sha256_file(tmp_path / f"{name}.parquet") == expected
    found, frame = load(tmp_path / "file.parquet")
    assert (found.to_scipy() != sparse.to_scipy()).nnz == 0
    pd.testing.assert_frame_equal(frame, store.obs)


def test_a_stream_holds_a_piece_and_not_the_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(codes_module, "ROWS_PER_GROUP", 512)

    def peak(groups):
        n = 512 * groups
        obs = pd.DataFrame({"plate": np.zeros(n, dtype=np.int8)}, index=pd.RangeIndex(n, name="sample_id"))
        obs.to_parquet(tmp_path / "obs.parquet")
        rng = np.random.default_rng(0)
        blocks = (Codes(rng.random((256, 200), dtype=np.float32)) for _ in range(2 * groups))
        tracemalloc.start()
        CodeStream(blocks).save(tmp_path / "codes.parquet", tmp_path / "obs.parquet")
        arrow = []
        for codes, _ in stream(tmp_path / "codes.parquet", rows=512):
            assert len(codes) == 512
            arrow.append(pa.total_allocated_bytes())
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return np.array([found, max(arrow)])

    peak(2)  # what is loaded once
    assert (peak(24) < 1.5 * peak(6)).all()


@pytest.mark.parametrize("extra", [-600, -1, 1, 600])
def test_a_stream_of_another_length_is_refused(store, sparse, tmp_path, monkeypatch, extra):
    monkeypatch.setattr(codes_module, "ROWS_PER_GROUP", 512)
    blocks = [sparse, sparse[:extra]] if extra > 0 else [sparse[: N + extra]]
    with pytest.raises(DataError, match=f"codes hold {N + extra} samples but obs has {N} rows"):
        CodeStream(blocks).save(tmp_path / "codes.parquet", store.folder / "obs.parquet")
    assert not list(tmp_path.iterdir())


def test_learning_streams_the_codes_of_a_large_store(store, tmp_path):
    config = rebuild(Whitening, {"method": "pca"})
    rows = whitening.fitted_rows(store.obs, config)
    fitted = whitening.fit(store, rows, config)
    train = (store.obs["split"] == "train").to_numpy()
    options = {"rows": train, "seeds": [0, 1], "threads": 1, "m": 24, "k": 3, "steps": 20, "batch_size": 64}
    small = learn("topk", store, fitted, **options)
    large = learn("topk", store, fitted, memory_limit=1000, stream=True, **options)
    for seed, ((one, held), (other, streamed)) in enumerate(zip(small, large, strict=True)):
        assert isinstance(streamed, CodeStream)
        held.save(tmp_path / "held", store.obs)
        streamed.save(tmp_path / "streamed", store.folder / "obs.parquet")
        assert one.atoms.tobytes() == other.atoms.tobytes()
        assert sha256_file(tmp_path / "held") == sha256_file(tmp_path / "streamed"), seed


def test_counts_of_blocks_add_up_exactly(store, sparse, obs, tmp_path):
    sparse.save(tmp_path / "codes.parquet", store.obs)
    names = sorted(obs["group"].unique())
    labels = np.array([obs["group"] == name for name in names]).T
    largest = peaks(codes for codes, _ in stream(tmp_path / "codes.parquet", rows=333))
    np.testing.assert_array_equal(largest, sparse.maximum())
    thresholds = np.maximum(largest, 0)[:, None] * np.array([0, 0.25, 0.5], dtype=np.float32)
    whole = count(sparse, labels, thresholds)
    dense = sparse.to_scipy().toarray()
    for t in range(3):
        above = dense > thresholds[:, t]
        np.testing.assert_array_equal(whole.active[:, t], above.sum(axis=0))
        np.testing.assert_array_equal(whole.both[:, t], above.T.astype(int) @ labels)

    def blocks(rows):
        for codes, table in stream(tmp_path / "codes.parquet", ["group"], rows):
            group = table.column("group").to_pandas()
            yield codes, np.array([group == name for name in names]).T

    for rows in (N, 1000, 429):
        found = count_all(blocks(rows), thresholds)
        assert found.n == N
        for name in ("labelled", "active", "both"):
            np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))
    plain = _plain(sparse.to_scipy().tocsc(), labels, thresholds)
    np.testing.assert_array_equal(plain[0], whole.active)
    np.testing.assert_array_equal(plain[1], whole.both)


def test_counts_at_other_thresholds_are_not_added(sparse):
    labels = np.ones((N, 1), dtype=bool)
    one, other = (count(sparse, labels, np.full((40, 1), value, dtype=np.float32)) for value in (0.1, 0.2))
    assert isinstance(one, Counts)
    with pytest.raises(DataError, match="other thresholds"):
        one.join(other)
    with pytest.raises(DataError, match="no codes"):
        count_all([], np.zeros((1, 1)))
    with pytest.raises(DataError, match="no codes"):
        peaks([])
