import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from conceptome.statistics import benjamini_hochberg, bootstrap_groups, group_codes, interval, permutations


def test_benjamini_hochberg_equals_statsmodels_and_keeps_nan_and_shape():
    p = np.random.default_rng(0).random((6, 5)) ** 3
    p[2, 3] = np.nan
    q = benjamini_hochberg(p)
    made = ~np.isnan(p)
    assert q.shape == p.shape
    assert np.isnan(q[2, 3])
    np.testing.assert_allclose(q[made], multipletests(p[made], method="fdr_bh")[1])


def test_benjamini_hochberg_closed_form():
    np.testing.assert_allclose(benjamini_hochberg([0.01, 0.02, 0.03, 0.04]), [0.04] * 4)
    assert np.isnan(benjamini_hochberg([np.nan])).all()
    assert benjamini_hochberg([]).shape == (0,)


def test_benjamini_hochberg_refuses_what_is_no_p_value():
    with pytest.raises(ValueError, match="0 and 1"):
        benjamini_hochberg([0.5, 1.5])


def test_bootstrap_draws_whole_groups_and_repeats():
    groups = np.array(["b", "a", "b", "c"])
    counts = bootstrap_groups(groups, 500, 3)
    assert counts.shape == (500, 3)
    assert (counts.sum(axis=1) == 3).all()
    np.testing.assert_array_equal(counts, bootstrap_groups(groups, 500, 3))
    assert not np.array_equal(counts, bootstrap_groups(groups, 500, 4))
    codes, names = group_codes(groups)
    assert list(names) == ["a", "b", "c"]
    assert list(codes) == [1, 0, 1, 2]


def test_bootstrap_by_group_covers_the_mean_where_one_by_sample_does_not():
    """Ten samples per group share their group's value, so an interval by sample is far too narrow."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 10)
    covered = {"group": 0, "sample": 0}
    for trial in range(100):
        values = np.repeat(rng.normal(size=20), 10)
        for name, unit in (("group", groups), ("sample", np.arange(200))):
            weights = bootstrap_groups(unit, 200, trial)[:, group_codes(unit)[0]]
            low, high = interval(weights @ values / weights.sum(axis=1), 0.95)
            covered[name] += low <= 0 <= high
    assert covered["group"] >= 85
    assert covered["sample"] <= 65


def test_interval_is_the_percentiles_and_leaves_nan_out():
    draws = np.stack([np.arange(101.0), np.full(101, np.nan), np.arange(101.0)], axis=1)
    draws[::2, 2] = np.nan
    low, high = interval(draws, 0.9)
    np.testing.assert_allclose([low[0], high[0]], [5, 95])
    assert np.isnan([low[1], high[1]]).all()
    np.testing.assert_allclose([low[2], high[2]], [5.9, 94.1], atol=0.1)
    np.testing.assert_allclose(interval(np.arange(101.0)[None], 0.9, axis=1)[0], [5])


def test_permutations_keep_the_counts_and_repeat():
    labels = np.array(["x"] * 30 + ["y"] * 10)
    for groups in (None, np.repeat(np.arange(8), 5)):
        permuted = permutations(labels, 20, 1, groups)
        assert ((permuted == "y").sum(axis=1) == 10).all()
        np.testing.assert_array_equal(permuted, permutations(labels, 20, 1, groups))
        assert (permuted != labels).any(axis=1).mean() > 0.7


def test_permutations_move_whole_groups():
    """A label that is constant in groups of equal size stays so."""
    groups = np.tile(np.arange(10), 4)
    labels = groups % 2
    for permuted in permutations(labels, 20, 0, groups):
        assert all(len(set(permuted[groups == g])) == 1 for g in range(10))


def test_a_design_that_repeats_in_each_group_does_not_line_up_with_itself():
    groups = np.repeat(np.arange(40), 10)
    labels = np.tile(np.arange(10) < 3, 40)
    agreement = np.mean(permutations(labels, 50, 0, groups) == labels)
    assert abs(agreement - (0.3**2 + 0.7**2)) < 0.03


def test_permutations_over_single_samples_are_uniform():
    where = permutations(np.arange(5), 4000, 0, np.arange(5))
    for position in range(5):
        np.testing.assert_allclose(np.bincount(where[:, position]) / 4000, 0.2, atol=0.03)
