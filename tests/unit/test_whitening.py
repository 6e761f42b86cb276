"""Whitening: identity covariance of controls, inverses, agreement with float64 numpy, refusals."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conceptome.activations import write_store
from conceptome.config.models import Whitening as WhiteningConfig
from conceptome.errors import ConfigError, DataError
from conceptome.files import sha256_file
from conceptome.whitening import ROWS, accumulate, fit, load


def store_of(folder, x, card=None, rows_per_shard=50):
    obs = pd.DataFrame(
        {"control": True, "split": "train"}, index=pd.Index([f"s{i}" for i in range(len(x))], name="sample_id")
    )
    return write_store(folder, [x], obs, card or {}, rows_per_shard=rows_per_shard)


def mixed(n: int, d: int, seed: int, offset: float = 3.0) -> np.ndarray:
    """Correlated rows about a mean that is not zero; the map's condition number stays near 10."""
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.normal(size=(d, d)))[0] for _ in range(2))
    return (rng.normal(size=(n, d)) @ (left * np.linspace(0.3, 3.0, d)) @ right + offset).astype(np.float32)


def some_rows(n: int, seed: int, share: float = 0.6) -> np.ndarray:
    return np.random.default_rng([seed, 1]).random(n) < share


shapes = st.tuples(st.integers(2, 12), st.integers(0, 10_000))


@settings(max_examples=25, deadline=None)
@given(shape=shapes)
def test_controls_have_identity_covariance(tmp_path_factory, shape):
    d, seed = shape
    x = mixed(150, d, seed)
    rows = some_rows(150, seed)
    whitening = fit(store_of(tmp_path_factory.mktemp("s"), x), rows, WhiteningConfig(method="pca"))
    z = whitening.transform(x).astype(np.float64)
    np.testing.assert_allclose(np.cov(z[rows].T).reshape(d, d), np.eye(d), atol=1e-4)
    np.testing.assert_allclose(z[rows].mean(axis=0), 0, atol=1e-4)
    # The map was not fitted on the other rows.
    assert whitening.card["n_fitted"] == rows.sum()


@settings(max_examples=25, deadline=None)
@given(shape=shapes, method=st.sampled_from(["none", "standardize", "pca"]), shrinkage=st.sampled_from([0.0, 0.3]))
def test_inverse_undoes_transform_at_full_rank(tmp_path_factory, shape, method, shrinkage):
    d, seed = shape
    x = mixed(120, d, seed)
    config = WhiteningConfig(method=method, shrinkage=shrinkage if method == "pca" else 0.0)
    whitening = fit(store_of(tmp_path_factory.mktemp("s"), x), some_rows(120, seed), config)
    np.testing.assert_allclose(whitening.inverse_transform(whitening.transform(x)), x, atol=2e-5)


@settings(max_examples=25, deadline=None)
@given(shape=shapes, shrinkage=st.sampled_from([0.0, 0.05, 1.0]), share=st.sampled_from([0.3, 1.0]))
def test_agrees_with_float64_numpy(tmp_path_factory, shape, shrinkage, share):
    d, seed = shape
    x = mixed(140, d, seed)
    rows = some_rows(140, seed)
    p = max(1, int(share * d))
    config = WhiteningConfig(method="pca", n_components=p, shrinkage=shrinkage, floor=0.0)
    whitening = fit(store_of(tmp_path_factory.mktemp("s"), x), rows, config)
    x64 = x[rows].astype(np.float64)
    covariance = np.cov(x64.T).reshape(d, d)
    covariance = (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / d * np.eye(d)
    if shrinkage < 1:
        values, vectors = np.linalg.eigh(covariance)
        values, vectors = values[::-1][:p], vectors[:, ::-1][:, :p]
        expected = ((x.astype(np.float64) - x64.mean(axis=0)) @ vectors) / np.sqrt(values)
        signs = np.sign(np.sum(expected * whitening.transform(x), axis=0))
        np.testing.assert_allclose(whitening.transform(x), expected * signs, atol=1e-4)
        np.testing.assert_allclose(whitening.card["eigenvalues"], values, rtol=1e-9)
    else:  # every direction is scaled alike
        np.testing.assert_allclose(whitening.card["eigenvalues"], np.trace(covariance) / d, rtol=1e-9)


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6), offset=st.sampled_from([0.0, 1e4]))
def test_streamed_moments_are_those_of_the_whole(sizes, offset):
    x = np.random.default_rng(sum(sizes)).normal(size=(sum(sizes) + 2, 4)) + offset
    edges = np.concatenate([[0], np.cumsum(sizes), [len(x)]])
    moments = accumulate((x[a:b] for a, b in itertools.pairwise(edges)), 4, full=True)
    assert moments.n == len(x)
    np.testing.assert_allclose(moments.mean, x.mean(axis=0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(moments.covariance, np.cov(x.T), rtol=1e-8, atol=1e-8)
    diagonal = accumulate(iter([x]), 4, full=False)
    np.testing.assert_allclose(diagonal.variances, x.var(axis=0, ddof=1), rtol=1e-8)


def test_more_rows_than_one_batch(tmp_path):
    x = mixed(ROWS + 100, 3, 0)
    whitening = fit(store_of(tmp_path, x), np.ones(len(x), dtype=bool), WhiteningConfig(method="pca"))
    np.testing.assert_allclose(np.cov(whitening.transform(x).T.astype(np.float64)), np.eye(3), atol=1e-4)


def test_standardize(tmp_path):
    x = mixed(200, 6, 1)
    rows = some_rows(200, 1)
    z = fit(store_of(tmp_path, x), rows, WhiteningConfig(method="standardize")).transform(x)[rows].astype(np.float64)
    np.testing.assert_allclose(z.std(axis=0, ddof=1), 1, atol=1e-5)
    assert np.abs(np.corrcoef(z.T) - np.eye(6)).max() > 0.1  # correlations stay


def test_none_is_the_identity_and_still_reports_the_mean(tmp_path):
    x = mixed(80, 4, 2, offset=10.0)
    whitening = fit(store_of(tmp_path, x), np.ones(80, dtype=bool), WhiteningConfig(method="none"))
    np.testing.assert_array_equal(whitening.transform(x), x)
    x64 = x.astype(np.float64)
    expected = np.linalg.norm(x64.mean(axis=0)) / np.linalg.norm(x64.std(axis=0, ddof=1))
    assert whitening.card["mean_to_deviation"] == pytest.approx(expected)
    no_controls = fit(store_of(tmp_path, x), np.zeros(80, dtype=bool), WhiteningConfig(method="none"))
    assert no_controls.card["mean_to_deviation"] == pytest.approx(expected)
    assert "no control samples" in no_controls.card["fitted_on"]


def test_eigenvector_signs_are_fixed(tmp_path):
    x = mixed(100, 5, 3)
    whitening = fit(store_of(tmp_path, x), np.ones(100, dtype=bool), WhiteningConfig(method="pca"))
    largest = np.argmax(np.abs(whitening.forward), axis=0)
    assert (whitening.forward[largest, np.arange(5)] > 0).all()
    values = whitening.card["eigenvalues"]
    assert values == sorted(values, reverse=True)


def test_unit_norm_keeps_the_direction_and_loses_the_length(tmp_path):
    x = mixed(100, 5, 4)
    rows = np.ones(100, dtype=bool)
    plain = fit(store_of(tmp_path, x), rows, WhiteningConfig(method="pca"))
    unit = fit(store_of(tmp_path, x), rows, WhiteningConfig(method="pca", unit_norm=True))
    z, u = plain.transform(x), unit.transform(x)
    np.testing.assert_allclose(np.linalg.norm(u, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(u * np.linalg.norm(z, axis=1, keepdims=True), z, atol=1e-5)
    at_mean = unit.transform(unit.mean[None].astype(np.float64))
    assert np.isfinite(at_mean).all()


def test_floor_lifts_small_eigenvalues(tmp_path):
    x = mixed(100, 4, 5)
    x = np.concatenate([x, x[:, :1] + x[:, 1:2]], axis=1)  # one dimension is the sum of two others
    store, rows = store_of(tmp_path, x), np.ones(100, dtype=bool)
    whitening = fit(store, rows, WhiteningConfig(method="pca", floor=1e-3))
    values = whitening.card["eigenvalues"]
    assert whitening.card["n_floored"] == 1
    assert values[-1] == pytest.approx(1e-3 * values[0])
    assert np.abs(whitening.transform(x)).max() < 10


def test_saved_is_loaded_with_equal_bytes(tmp_path):
    x = mixed(100, 5, 6)
    store, rows = store_of(tmp_path / "s", x), some_rows(100, 6)
    config = WhiteningConfig(method="pca", n_components=3, shrinkage=0.01, unit_norm=True)
    for name in ("a", "b"):
        fit(store, rows, config).save(tmp_path / name)
    for name in ("whitening.safetensors", "card.json"):
        assert sha256_file(tmp_path / "a" / name) == sha256_file(tmp_path / "b" / name)
    back = load(tmp_path / "a")
    np.testing.assert_array_equal(back.transform(x), fit(store, rows, config).transform(x))
    assert back.card["p"] == 3
    assert back.unit_norm


def test_no_control_rows(tmp_path):
    store = store_of(tmp_path, mixed(30, 4, 0))
    for method in ("standardize", "pca"):
        with pytest.raises(DataError, match="control samples of the training split, and there are none"):
            fit(store, np.zeros(30, dtype=bool), WhiteningConfig(method=method))


@pytest.mark.parametrize(("n", "components"), [(4, None), (3, 3)])
def test_fewer_controls_than_components_asks_for_shrinkage(tmp_path, n, components):
    store = store_of(tmp_path, mixed(30, 4, 0))
    rows = np.arange(30) < n
    with pytest.raises(DataError, match=f"{n} control samples .*shrinkage above 0"):
        fit(store, rows, WhiteningConfig(method="pca", n_components=components))
    assert fit(store, rows, WhiteningConfig(method="pca", n_components=components, shrinkage=0.1)).card["n_fitted"] == n


def test_more_components_than_dimensions(tmp_path):
    with pytest.raises(ConfigError, match=r"n_components \(5\) exceeds the activations' 4 dimensions"):
        fit(store_of(tmp_path, mixed(30, 4, 0)), np.ones(30, dtype=bool), WhiteningConfig(method="pca", n_components=5))


def test_zero_deviation_names_the_dimension(tmp_path):
    x = mixed(30, 4, 0)
    x[:20, 2] = 0.1
    store = store_of(tmp_path, x, {"dimension_names": list("abcd")})
    with pytest.raises(DataError, match=r"dimension 2 \('c'\) has zero deviation"):
        fit(store, np.arange(30) < 20, WhiteningConfig(method="standardize"))


def test_no_variance_at_all(tmp_path):
    store = store_of(tmp_path, np.ones((30, 3), dtype=np.float32))
    with pytest.raises(DataError, match="no variance to scale"):
        fit(store, np.ones(30, dtype=bool), WhiteningConfig(method="pca", shrinkage=0.1))


def test_rank_deficient_without_floor_or_shrinkage(tmp_path):
    x = mixed(30, 3, 0)
    x[:, 2] = x[:, 0]
    with pytest.raises(DataError, match="only 2 of the 3 components"):
        fit(store_of(tmp_path, x), np.ones(30, dtype=bool), WhiteningConfig(method="pca", floor=0.0))


def test_nan_is_refused(tmp_path):
    x = mixed(30, 3, 0)
    store = store_of(tmp_path, x)
    whitening = fit(store, np.ones(30, dtype=bool), WhiteningConfig(method="pca"))
    x[4, 1] = np.nan
    with pytest.raises(DataError, match="dimension 1 holds 1 NaN"):
        whitening.transform(x)
    with pytest.raises(DataError, match="dimension 1 holds 1 NaN"):
        accumulate(iter([x]), 3, full=True)


def test_shape_of_another_model(tmp_path):
    whitening = fit(store_of(tmp_path, mixed(30, 3, 0)), np.ones(30, dtype=bool), WhiteningConfig(method="pca"))
    with pytest.raises(DataError, match="fitted on 3 dimensions"):
        whitening.transform(np.zeros((2, 4)))
    with pytest.raises(DataError, match="takes 3 dimensions"):
        whitening.inverse_transform(np.zeros((2, 4)))


def test_an_unfinished_whitening_is_no_whitening(tmp_path):
    with pytest.raises(DataError, match=r"card\.json is missing"):
        load(tmp_path)
