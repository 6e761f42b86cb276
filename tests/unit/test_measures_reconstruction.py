import numpy as np
import pytest
from scipy import sparse

from conceptome.config.evidence import Measures
from conceptome.measures.reconstruction import Variance, budgets, dead_atoms, group_draws

CONFIG = Measures(bootstraps=200)


def make_variance(n=300, d=5, n_groups=30, seed=0):
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(n, d)) + 20).astype(np.float32)
    groups = rng.integers(0, n_groups, n).astype(str)
    draws = group_draws(groups, CONFIG, [0])
    return x, groups, draws, Variance(x, groups, draws)


def test_the_mean_explains_nothing_and_the_truth_everything():
    x, _, _, variance = make_variance()
    assert variance.unexplained(np.broadcast_to(x.mean(axis=0), x.shape))[0] == pytest.approx(1.0, abs=1e-5)
    fvu, draws = variance.unexplained(x)
    assert fvu == 0.0
    np.testing.assert_array_equal(draws, 0.0)


def test_an_error_of_known_size():
    x, _, _, variance = make_variance()
    half = x - np.sqrt(0.5) * (x - x.mean(axis=0))
    assert variance.unexplained(half)[0] == pytest.approx(0.5, rel=1e-4)


def test_draws_equal_those_of_repeated_rows():
    x, groups, draws, variance = make_variance()
    reconstructed = x + np.random.default_rng(1).normal(size=x.shape).astype(np.float32)
    _, found = variance.unexplained(reconstructed)
    names = np.unique(groups)
    for draw in (0, 7):
        rows = np.concatenate(
            [np.repeat(np.flatnonzero(groups == name), int(count)) for name, count in zip(names, draws[draw])]
        )
        wide = x[rows].astype(float)
        expected = ((wide - reconstructed[rows]) ** 2).sum() / ((wide - wide.mean(axis=0)) ** 2).sum()
        assert found[draw] == pytest.approx(expected, rel=1e-4)


def test_strangers_equal_permutations_of_rows():
    x, _, _, variance = make_variance(n=60)
    reconstructed = x + 0.3 * np.random.default_rng(2).normal(size=x.shape).astype(np.float32)
    mean, low, high = variance.unexplained_by_strangers(reconstructed, 0.95)
    rng = np.random.default_rng(3)
    shuffled = [variance.unexplained(reconstructed[rng.permutation(60)])[0] for _ in range(2000)]
    assert mean == pytest.approx(np.mean(shuffled), abs=0.01)
    np.testing.assert_allclose([low, high], np.quantile(shuffled, [0.025, 0.975]), atol=0.03)


def test_one_group_gives_an_estimate_without_an_interval():
    x = np.random.default_rng(4).normal(size=(50, 3)).astype(np.float32)
    groups = np.array(["g"] * 50)
    fvu, draws = Variance(x, groups, group_draws(groups, CONFIG, [0])).unexplained(0.5 * x)
    assert 0 < fvu < 1
    assert np.isnan(draws).all()


def test_constant_rows_have_no_variance_to_explain():
    x = np.ones((10, 2), np.float32)
    groups = np.arange(10).astype(str)
    variance = Variance(x, groups, group_draws(groups, CONFIG, [0]))
    assert np.isnan(variance.unexplained(x)[0])
    assert np.isnan(variance.unexplained_by_strangers(x, 0.95)[0])


def test_budgets_are_powers_of_two_steps_and_the_trained_one():
    assert budgets(32) == [1, 2, 4, 8, 16, 32]
    assert budgets(50) == [1, 2, 4, 8, 16, 32, 50]
    assert budgets(32, 4) == [4, 8, 16, 32]
    assert budgets(1) == [1]
    assert budgets(3, 4) == [3]


def chosen_at_random(n, m, k, rng):
    """Codes of k active atoms per sample, drawn at random."""
    indices = rng.permuted(np.tile(np.arange(m), (n, 1)), axis=1)[:, :k]
    return sparse.csr_matrix((np.ones(n * k), indices.ravel(), np.arange(n + 1) * k), shape=(n, m))


def test_the_null_of_dead_atoms_is_that_of_atoms_drawn_at_random():
    rng = np.random.default_rng(5)
    n, m, k = 60, 80, 3
    groups = np.arange(n) % 20
    drawn = [dead_atoms(chosen_at_random(n, m, k, rng), groups, CONFIG) for _ in range(300)]
    dead = np.array([each["dead"] for each in drawn])
    null = drawn[0]["dead_null"]
    # In closed form m (1 − k/m)^n, and its interval holds at least the share of draws that it promises.
    assert null == pytest.approx(m * (1 - k / m) ** n)
    assert abs(dead.mean() - null) < 4 * dead.std() / np.sqrt(len(dead))
    assert np.mean((dead >= drawn[0]["dead_null_low"]) & (dead <= drawn[0]["dead_null_high"])) >= CONFIG.confidence


def test_atoms_that_never_fire_exceed_the_null():
    rng = np.random.default_rng(6)
    codes = sparse.hstack([chosen_at_random(400, 20, 4, rng), sparse.csr_matrix((400, 20))]).tocsr()
    found = dead_atoms(codes, np.arange(400) % 40, CONFIG)
    assert found["dead"] == found["dead_low"] == found["dead_high"] == 20
    assert found["dead_null_high"] == 0
    # An atom of one group is dead without it: the count is less sure.
    rare = codes.tolil()
    rare[np.arange(400) % 40 == 0, 20:25] = 1.0
    found = dead_atoms(rare.tocsr(), np.arange(400) % 40, CONFIG)
    assert found["dead"] == 15
    assert 0 <= found["dead_low"] < 15 < found["dead_high"] <= 40
    assert np.isnan(dead_atoms(codes, np.zeros(400), CONFIG)["dead_low"])
    # Dense codes leave no atom silent.
    assert dead_atoms(sparse.csr_matrix(np.ones((5, 3))), np.arange(5), CONFIG)["dead_null_high"] == 0
