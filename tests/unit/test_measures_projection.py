import numpy as np
import pandas as pd
import pytest

from conceptome.config.evidence import Measures
from conceptome.measures.projection import axes, projection, spectrum

CONFIG = Measures(bootstraps=100)


def test_axes_are_the_planted_ones_with_a_fixed_sign():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 4)) * [0.1, 5, 0.1, 2] + 30
    found, shares = axes(x)
    np.testing.assert_allclose(found, [[0, 1, 0, 0], [0, 0, 0, 1]], atol=0.05)
    np.testing.assert_allclose(shares, [25 / 29, 4 / 29], atol=0.03)
    np.testing.assert_array_equal(axes(x)[0], found)
    one, share = axes(x[:, :1])
    assert one.shape == (2, 1)
    assert share[1] == 0


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
    table = projection(x[control], x, described(200, control))
    assert list(table["sample_id"][:2]) == ["c0", "c1"]
    assert abs(table["pc1"][:100].mean()) < 1e-9
    assert table["pc1"][:100].std() == pytest.approx(x[control, 1].std(ddof=1), rel=0.1)
    assert table["pc1_share"][0] == pytest.approx(16 / 21, abs=0.1)
    assert list(table.columns[-5:]) == ["control", "group", "batch", "split", "state"]


def test_white_controls_are_shown_on_the_first_two_coordinates():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(100, 3)) * [1, 1.001, 1]
    table = projection(x, x, described(100, True), white=True)
    np.testing.assert_allclose(table[["pc1", "pc2"]], (x - x.mean(axis=0))[:, :2])
    assert table["pc1_share"][0] == pytest.approx(1 / 3, abs=0.1)
    one = projection(x[:, :1], x[:, :1], described(100, True), white=True)
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
