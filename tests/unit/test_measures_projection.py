import numpy as np
import pandas as pd
import pytest

from conceptome.config.evidence import Measures
from conceptome.measures.projection import axes, projection, shares, spectrum

CONFIG = Measures(bootstraps=100)


def test_axes_are_the_planted_ones_with_a_fixed_sign():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 4)) * [0.1, 5, 0.1, 2] + 30
    found = axes(x)
    np.testing.assert_allclose(found, [[0, 1, 0, 0], [0, 0, 0, 1]], atol=0.05)
    np.testing.assert_array_equal(axes(x), found)
    assert axes(x[:, :1]).shape == (2, 1)


def test_shares_of_variance_have_an_interval_and_a_null():
    rng = np.random.default_rng(5)
    x = rng.normal(size=(500, 4)) * [0.1, 5, 0.1, 2] + 30
    groups = np.repeat(np.arange(50), 10).astype(str)
    found = shares(x, axes(x), groups, CONFIG, white=False)
    assert found["pc1_share"] == pytest.approx(25 / 29, abs=0.03)
    assert found["pc1_share_low"] < 25 / 29 < found["pc1_share_high"]
    assert found["pc2_share_low"] < 4 / 29 < found["pc2_share_high"]
    # Resampled rows, decomposed by hand along the same axes.
    draws = []
    for _ in range(200):
        rows = x[np.arange(500).reshape(50, 10)[rng.integers(0, 50, 50)].ravel()]
        draws.append((rows @ axes(x)[0]).var() / rows.var(axis=0).sum())
    np.testing.assert_allclose(
        [found["pc1_share_low"], found["pc1_share_high"]], np.quantile(draws, [0.025, 0.975]), atol=0.01
    )
    # Of rows alike in all directions the largest share is that of the null; of fixed axes 1 / p.
    flat = rng.normal(size=(400, 100))
    largest = shares(flat, axes(flat), np.arange(400).astype(str), CONFIG, white=False)
    assert largest["pc1_share"] == pytest.approx(largest["pc1_share_null"], rel=0.1)
    fixed = shares(flat, np.eye(2, 100), np.arange(400).astype(str), CONFIG, white=True)
    assert fixed["pc1_share_null"] == 0.01
    assert fixed["pc1_share"] == pytest.approx(0.01, rel=0.2)
    assert np.isnan(shares(flat, axes(flat), np.zeros(400), CONFIG, white=False)["pc1_share_low"])


def described(n, control):
    return pd.DataFrame(
        {"control": control, "group": "g", "batch": "b", "split": "train", "state": "s"},
        index=[f"c{i}" for i in range(n)],
    )


def test_the_controls_give_origin_and_axes_and_labels_are_carried_along():
    rng = np.random.default_rng(1)
    control = np.arange(200) < 100
    x = rng.normal(size=(200, 3)) * [1, 4, 2]
    x[~control] += [500, 30, 0]
    table = projection(x[control], np.arange(100), x, described(200, control), CONFIG)
    assert list(table["sample_id"][:2]) == ["c0", "c1"]
    assert abs(table["pc1"][:100].mean()) < 1e-9
    assert table["pc1"][:100].std() == pytest.approx(x[control, 1].std(ddof=1), rel=0.1)
    assert table["pc1_share"][0] == pytest.approx(16 / 21, abs=0.1)
    assert list(table.columns[-5:]) == ["control", "group", "batch", "split", "state"]


def test_white_controls_are_shown_on_the_first_two_coordinates():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(100, 3)) * [1, 1.001, 1]
    table = projection(x, np.arange(100), x, described(100, True), CONFIG, white=True)
    np.testing.assert_allclose(table[["pc1", "pc2"]], (x - x.mean(axis=0))[:, :2])
    assert table["pc1_share"][0] == pytest.approx(1 / 3, abs=0.1)
    one = projection(x[:, :1], np.arange(100), x[:, :1], described(100, True), CONFIG, white=True)
    assert one["pc1_share"][0] == 1
    assert (one["pc2"] == 0).all()


def test_white_rows_have_the_spectrum_of_the_null_and_others_do_not():
    rng = np.random.default_rng(2)
    white = rng.normal(size=(400, 20))
    groups = np.arange(400).astype(str)
    flat = spectrum(white, groups, CONFIG)
    assert ((flat["eigenvalue"] > flat["null_low"] - 0.1) & (flat["eigenvalue"] < flat["null_high"] + 0.1)).all()
    np.testing.assert_allclose(flat["eigenvalue"], np.linalg.eigvalsh(np.cov(white.T))[::-1], atol=1e-9)
    steep = spectrum(white * np.geomspace(3, 0.1, 20), groups, CONFIG)
    assert steep["low"][0] > steep["null_high"][0]
    assert steep["high"].iloc[-1] < steep["null_low"].iloc[-1]
    np.testing.assert_array_equal(steep["component"], np.arange(1, 21))
    inside = (steep["low"] < steep["eigenvalue"]) & (steep["eigenvalue"] < steep["high"])
    assert inside.all()


def test_one_control_has_no_spectrum():
    assert spectrum(np.ones((1, 3)), np.array(["a"]), CONFIG).empty
