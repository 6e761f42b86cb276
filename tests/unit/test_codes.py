"""Codes: what is active, what is kept, and a Parquet file that gives back what was written."""

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp

from conceptome.codes import ROWS_PER_GROUP, Codes, load
from conceptome.errors import ConfigError, DataError

DENSE = np.array([[0, 2, -1, 0], [0, 0, 0, 0], [3, 0.5, 0, 0]], dtype=np.float32)


def obs_of(n):
    return pd.DataFrame(
        {"control": np.arange(n) % 2 == 0, "group": [None if i == 1 else f"g{i}" for i in range(n)]},
        index=pd.Index([f"s{i}" for i in range(n)], name="sample_id"),
    )


def random_csr(n, m, k, seed=0):
    rng = np.random.default_rng(seed)
    start = rng.integers(0, m - 2 * k, n)
    columns = np.sort((start[:, None] + 2 * np.arange(k)[None]) % m, axis=1)
    return sp.csr_matrix(
        (rng.gamma(2, 1, n * k).astype(np.float32), columns.ravel(), np.arange(0, n * k + 1, k)), shape=(n, m)
    )


def test_summaries():
    codes = Codes(DENSE)
    assert codes.shape == (3, 4)
    np.testing.assert_array_equal(codes.l0(), [2, 0, 2])
    np.testing.assert_array_equal(codes.counts(), [1, 2, 1, 0])
    np.testing.assert_allclose(codes.firing_rate(), [1 / 3, 2 / 3, 1 / 3, 0])
    np.testing.assert_array_equal(codes.maximum(), [3, 2, 0, 0])
    np.testing.assert_array_equal(codes.active().toarray(), DENSE != 0)
    np.testing.assert_array_equal(codes.active(0.6).toarray(), np.abs(DENSE) > 0.6)


def test_explicit_zeros_and_duplicates_are_not_active():
    codes = Codes(sp.csr_matrix((np.array([0.0, 1, 2, 3]), [0, 3, 1, 3], [0, 4]), shape=(1, 4)))
    np.testing.assert_array_equal(codes.to_scipy().indices, [1, 3])
    np.testing.assert_array_equal(codes.to_scipy().data, [2, 4])


def test_the_given_matrix_is_left_alone():
    given = sp.csr_matrix((np.array([0.0, 1], dtype=np.float32), [0, 1], [0, 2]), shape=(1, 2))
    Codes(given)
    assert given.nnz == 2


def test_rows_and_concatenation():
    codes = Codes(DENSE)
    both = Codes.concatenate([codes[:1], codes[np.array([False, True, True])]])
    np.testing.assert_array_equal(both.to_scipy().toarray(), DENSE)


def test_truncate_keeps_the_largest_magnitudes_and_the_lower_of_equals():
    codes = Codes(np.array([[1, -3, 2, 0], [2, 2, 2, 1], [0, 0, 5, 0]]))
    np.testing.assert_array_equal(codes.truncate(2).to_scipy().toarray(), [[0, -3, 2, 0], [2, 2, 0, 0], [0, 0, 5, 0]])
    assert codes.truncate(4) is codes
    with pytest.raises(ConfigError, match="at least 1"):
        codes.truncate(0)


def test_not_finite_is_refused_by_atom():
    with pytest.raises(DataError, match="2 values are NaN or infinite, the first at atom 1"):
        Codes(np.array([[0, np.nan, np.inf]]))


def test_round_trip_and_equal_bytes(tmp_path):
    obs = obs_of(3)
    for name in ("a", "b"):
        Codes(DENSE).save(tmp_path / f"{name}.parquet", obs)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    codes, read = load(tmp_path / "a.parquet")
    np.testing.assert_array_equal(codes.to_scipy().toarray(), DENSE)
    pd.testing.assert_frame_equal(read, obs)
    table = pq.read_table(tmp_path / "a.parquet")
    assert table.column("indices").to_pylist() == [[1, 2], [], [0, 1]]
    assert str(table.schema.field("indices").type) == "list<element: int32>"
    assert str(table.schema.field("values").type) == "list<element: float>"


def test_no_samples(tmp_path):
    Codes(np.zeros((0, 5))).save(tmp_path / "c.parquet", obs_of(0))
    codes, obs = load(tmp_path / "c.parquet")
    assert codes.shape == (0, 5)
    assert len(obs) == 0
    assert codes.maximum().shape == (5,)


def test_many_rows_in_several_row_groups(tmp_path):
    csr = random_csr(100_000, 1024, 32)
    assert len(csr.indptr) > ROWS_PER_GROUP
    codes, obs = Codes(csr), obs_of(csr.shape[0])
    codes.save(tmp_path / "c.parquet", obs)
    read, _ = load(tmp_path / "c.parquet")
    assert (read.to_scipy() != csr).nnz == 0


def test_complaints(tmp_path):
    with pytest.raises(DataError, match="3 samples but obs has 2 rows"):
        Codes(DENSE).save(tmp_path / "c.parquet", obs_of(2))
    with pytest.raises(DataError, match="'values' collides"):
        Codes(DENSE).save(tmp_path / "c.parquet", obs_of(3).assign(values=1))
    assert not list(tmp_path.iterdir())
    with pytest.raises(DataError, match="cannot be read"):
        load(tmp_path / "missing.parquet")
    obs_of(3).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(DataError, match="holds no codes"):
        load(tmp_path / "other.parquet")
