import numpy as np
import pytest
from scipy import sparse

from conceptome.config.evidence import Measures
from conceptome.measures.probes import probe, scaled
from conceptome.measures.rows import Classes

CONFIG = Measures(bootstraps=100, probe_permutations=5)


def make_classes(y, n_groups=30, names=("a", "b", "c"), excluded=()):
    groups = np.arange(len(y)) % n_groups
    split = np.array(["train", "train", "train", "validation", "test"])[groups % 5]
    return Classes(
        label="state",
        role="biological",
        rows=np.arange(len(y)),
        y=np.asarray(y),
        names=list(names),
        groups=groups.astype(str),
        split=split,
        excluded=list(excluded),
    )


def sparse_noise(n, m, seed, density=0.15):
    return sparse.random(n, m, density=density, random_state=seed, format="csr", dtype=np.float32)


def test_separable_classes_are_read_perfectly():
    y = np.random.default_rng(0).choice(3, size=600, p=[0.6, 0.3, 0.1])
    codes = sparse.csr_matrix(np.eye(3, dtype=np.float32)[y])
    row = probe(codes, make_classes(y), CONFIG, "plate").iloc[0]
    assert row["balanced_accuracy"] == row["low"] == row["high"] == 1.0
    assert row["null_high"] < 0.8
    assert (row["n_classes"], row["n_train"], row["n_test"], row["n_groups_test"]) == (3, 360, 120, 6)
    assert row["group_is"] == "plate"
    assert row["chance"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("density", [0.15, 1.0])
def test_noise_lies_within_the_null_band_around_chance(density):
    """A 95 % band must hold most of 20 noises; allow for the few permutations behind each."""
    inside = 0
    for seed in range(20):
        y = np.random.default_rng(seed).choice(3, size=600, p=[0.5, 0.3, 0.2])
        classes = make_classes(y, n_groups=100)
        row = probe(sparse_noise(600, 10, seed, density), classes, CONFIG, "plate").iloc[0]
        assert row["null_low"] < 1 / 3 < row["null_high"]
        assert row["low"] <= row["balanced_accuracy"] <= row["high"]
        inside += row["null_low"] <= row["balanced_accuracy"] <= row["null_high"]
    assert inside >= 17


def test_balance_protects_the_rare_class():
    """A majority vote has plain accuracy .9 and balanced accuracy .5; a weak signal must do better than that."""
    rng = np.random.default_rng(3)
    y = (rng.random(1500) < 0.1).astype(int)
    codes = sparse.csr_matrix(((rng.normal(size=(1500, 1)) + 2 * y[:, None]) > 1).astype(np.float32))
    row = probe(codes, make_classes(y, names=("often", "rare")), CONFIG, "plate").iloc[0]
    assert row["balanced_accuracy"] > 0.7
    assert row["low"] > 0.6


def test_a_signal_that_holds_in_training_groups_only_is_not_read_in_test_groups():
    rng = np.random.default_rng(4)
    y = rng.integers(0, 2, 900)
    classes = make_classes(y, names=("a", "b"))
    signal = np.where(classes.part("test"), rng.integers(0, 2, 900), y)
    row = probe(sparse.csr_matrix(np.eye(2)[signal]), classes, CONFIG, "plate").iloc[0]
    assert abs(row["balanced_accuracy"] - 0.5) < 0.12


def test_the_penalty_is_chosen_on_validation():
    """Many noise atoms and one weak one: the strongest penalty wins, and test labels play no part in it."""
    rng = np.random.default_rng(5)
    y = rng.integers(0, 2, 500)
    noise = rng.normal(size=(500, 300))
    codes = sparse.csr_matrix(np.hstack([noise, y[:, None] * 2.0 + rng.normal(size=(500, 1))]))
    config = Measures(bootstraps=20, probe_permutations=1, probe_strengths=[100.0, 1e-3])
    classes = make_classes(y, names=("a", "b"))
    row = probe(codes, classes, config, "plate").iloc[0]
    other = make_classes(np.where(classes.part("test"), 1 - y, y), names=("a", "b"))
    assert row["strength"] == probe(codes, other, config, "plate").iloc[0]["strength"] == 1e-3


def test_with_fewer_than_two_classes_the_row_says_who_is_missing():
    classes = make_classes(np.zeros(100, int), names=("a",), excluded=["b (2 groups)", "c (1 group)"])
    row = probe(sparse_noise(100, 5, 0), classes, CONFIG, "plate").iloc[0]
    assert np.isnan(row["balanced_accuracy"])
    assert row["excluded"] == "b (2 groups); c (1 group)"


def test_atoms_are_scaled_by_their_training_deviation_without_filling_in_zeros():
    codes = sparse_noise(400, 10, 6)
    codes = (codes @ sparse.diags(10.0 ** np.arange(-5, 5))).tolil()
    codes[:, 3] = 0
    codes[:, 4] = 0
    codes[399, 4] = 7.0
    codes = codes.tocsr()
    train = np.arange(400) < 300
    x = scaled(codes, train)
    assert sparse.issparse(x)
    deviation = x[:300].toarray().std(axis=0)
    np.testing.assert_allclose(np.delete(deviation, [3, 4]), 1.0, rtol=1e-4)
    assert x[:, [3, 4]].nnz == 0 or np.abs(x[:, [3, 4]].toarray()).max() == 0


def test_dense_codes_come_back_centred():
    codes = sparse.csr_matrix(np.random.default_rng(7).normal(50, 3, size=(200, 4)))
    x = scaled(codes, np.arange(200) < 100)
    np.testing.assert_allclose(x[:100].mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(x[:100].std(axis=0), 1, atol=1e-9)
