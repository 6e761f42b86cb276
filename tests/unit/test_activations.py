"""The activation store: streaming, shards, types, order, refusals."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conceptome.activations import Store, from_bfloat16, to_bfloat16, write_store
from conceptome.errors import DataError
from conceptome.files import sha256_file


def make_obs(n: int) -> pd.DataFrame:
    return pd.DataFrame(
        {"control": np.arange(n) % 2 == 0, "split": ["train"] * n},
        index=pd.Index([f"s{i}" for i in range(n)], name="sample_id"),
    )


def values(n: int = 23, d: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def chunks(x: np.ndarray, sizes=(3, 0, 7, 1, 12)) -> list[np.ndarray]:
    edges = np.concatenate([[0], np.cumsum(sizes)])
    assert edges[-1] == len(x)
    return [x[a:b] for a, b in itertools.pairwise(edges)]


@pytest.mark.parametrize("rows_per_shard", [1, 4, 23, 100])
def test_what_is_written_is_read(tmp_path, rows_per_shard):
    x = values()
    store = write_store(tmp_path / "a", chunks(x), make_obs(23), {"adapter": "t"}, rows_per_shard=rows_per_shard)
    assert store.shape == (23, 5)
    assert store.card["adapter"] == "t"
    assert len(store.card["shards"]) == -(-23 // rows_per_shard)
    np.testing.assert_array_equal(store.read(), x)
    np.testing.assert_array_equal(np.concatenate(list(store.batches(6))), x)
    assert [len(b) for b in store.batches(6)] == [6, 6, 6, 5]
    pd.testing.assert_frame_equal(store.obs, make_obs(23))
    store.verify()


@settings(max_examples=40, deadline=None)
@given(index=st.lists(st.integers(-23, 22), max_size=30), step=st.sampled_from([1, 2, -1, -3]))
def test_any_index_agrees_with_numpy(tmp_path_factory, index, step):
    x = values()
    store = write_store(tmp_path_factory.mktemp("s"), [x], make_obs(23), {}, rows_per_shard=4)
    np.testing.assert_array_equal(store.read(np.array(index, dtype=int)), x[np.array(index, dtype=int)])
    np.testing.assert_array_equal(store.read(slice(None, None, step)), x[::step])
    mask = np.isin(np.arange(23), index)
    np.testing.assert_array_equal(store.read(mask), x[mask])


def test_read_rows_may_be_written_into(tmp_path):
    store = write_store(tmp_path / "a", [values()], make_obs(23), {}, rows_per_shard=9)
    first = store.read(slice(0, 3))
    first[:] = 0
    assert store.read(slice(0, 3)).any()


def test_index_out_of_range(tmp_path):
    store = write_store(tmp_path / "a", [values()], make_obs(23), {}, rows_per_shard=9)
    with pytest.raises(IndexError):
        store.read([23])
    with pytest.raises(IndexError):
        store.read(np.ones(22, dtype=bool))


def test_bfloat16_rounds_to_nearest_as_torch_does(tmp_path):
    torch = pytest.importorskip("torch")
    x = values(200, 7) * np.float32(10) ** np.arange(-3, 4, dtype=np.float32)
    expected = torch.from_numpy(x).to(torch.bfloat16).to(torch.float32).numpy()
    np.testing.assert_array_equal(from_bfloat16(to_bfloat16(x)), expected)
    store = write_store(tmp_path / "a", [x], make_obs(200), {}, dtype="bfloat16", rows_per_shard=64)
    assert store.dtype == "bfloat16"
    assert np.load(tmp_path / "a" / "shard-00000.npy").dtype == np.uint16
    assert store.read().dtype == np.float32
    np.testing.assert_array_equal(store.read(), expected)


def test_equal_inputs_give_equal_bytes(tmp_path):
    x = values()
    for name, sizes in (("a", (23,)), ("b", (3, 0, 7, 1, 12))):
        write_store(tmp_path / name, chunks(x, sizes), make_obs(23), {"n": 1}, rows_per_shard=10)
    for path in sorted((tmp_path / "a").iterdir()):
        assert sha256_file(path) == sha256_file(tmp_path / "b" / path.name), path.name


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_is_refused_with_dimension_and_count(tmp_path, bad):
    x = values()
    x[2, 3] = x[20, 3] = x[21, 1] = bad
    with pytest.raises(DataError, match=r"dimension 3 holds 2 NaN or infinite values; 1 other dimension\(s\) hold 1"):
        write_store(tmp_path / "a", chunks(x), make_obs(23), {}, rows_per_shard=10)
    assert not list((tmp_path / "a").iterdir())


def test_not_finite_names_the_feature(tmp_path):
    x = values(3, 2).astype(np.float64)
    x[0, 1] = 1e300  # finite, but not as float32
    card = {"dimension_names": ["Nuclei_Area", "Cells_Area"]}
    with pytest.raises(DataError, match=r"dimension 1 \('Cells_Area'\) holds 1 NaN"):
        write_store(tmp_path / "a", [x], make_obs(3), card, rows_per_shard=10)


@pytest.mark.parametrize("n", [22, 24])
def test_rows_must_match_obs(tmp_path, n):
    with pytest.raises(DataError, match=f"23 rows of activations for {n} samples"):
        write_store(tmp_path / "a", [values()], make_obs(n), {}, rows_per_shard=10)


def test_no_samples(tmp_path):
    with pytest.raises(DataError, match="no samples"):
        write_store(tmp_path / "a", [], make_obs(0), {}, rows_per_shard=10)


def test_batches_of_different_width(tmp_path):
    with pytest.raises(DataError, match="4 dimensions where the first had 5"):
        write_store(tmp_path / "a", [values(), values(3, 4)], make_obs(26), {}, rows_per_shard=10)


def test_an_interrupted_store_is_no_store(tmp_path):
    write_store(tmp_path / "a", [values()], make_obs(23), {}, rows_per_shard=10)

    def interrupted():
        yield values(15)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_store(tmp_path / "a", interrupted(), make_obs(23), {}, rows_per_shard=10)
    with pytest.raises(DataError, match=r"card\.json is missing"):
        Store(tmp_path / "a")
    # A run after the interruption gives the bytes of an uninterrupted one.
    write_store(tmp_path / "a", [values()], make_obs(23), {}, rows_per_shard=10)
    write_store(tmp_path / "b", [values()], make_obs(23), {}, rows_per_shard=10)
    assert sha256_file(tmp_path / "a" / "card.json") == sha256_file(tmp_path / "b" / "card.json")


def test_a_smaller_store_leaves_no_old_shards(tmp_path):
    write_store(tmp_path / "a", [values()], make_obs(23), {}, rows_per_shard=5)
    write_store(tmp_path / "a", [values()], make_obs(23), {}, rows_per_shard=20)
    assert [p.name for p in sorted((tmp_path / "a").glob("*.npy"))] == ["shard-00000.npy", "shard-00001.npy"]


def test_verify_sees_a_changed_byte(tmp_path):
    store = write_store(tmp_path / "a", [values()], make_obs(23), {}, rows_per_shard=10)
    path = tmp_path / "a" / "shard-00001.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"shard-00001\.npy is not the file"):
        store.verify()


def test_a_truncated_shard_is_one_clear_line(tmp_path):
    store = write_store(tmp_path / "a", [values()], make_obs(23), {}, rows_per_shard=30)
    path = tmp_path / "a" / "shard-00000.npy"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match="cannot be read"):
        store.read()
