"""Tests whose unit is the group: against scipy's exact permutation test, its own brute force, and by calibration."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np
import pytest
from scipy import sparse, stats

from conceptome.statistics import RankedCodes, between_groups_log10_p, common_class, constancy
from conceptome.statistics.between_groups import _beta_log10_p, _kurtosis


def test_few_groups_are_dealt_out_in_all_ways():
    rng = np.random.default_rng(0)
    values, label = rng.standard_normal((4, 9)), np.arange(9) < 3
    found = 10 ** between_groups_log10_p(values, label[:, None])[:, 0]
    for row, p in zip(values, found):
        dealt = np.array([row[list(way)].mean() for way in combinations(range(9), 3)]) - row.mean()
        own = row[label].mean() - row.mean()
        assert p == pytest.approx(np.mean(np.abs(dealt) >= abs(own) - 1e-12))


def test_two_classes_of_equal_size_agree_with_scipy():
    rng = np.random.default_rng(1)
    values, label = rng.standard_normal(10), np.arange(10) % 2 == 0

    def difference(a, b, axis):
        return a.mean(axis=axis) - b.mean(axis=axis)

    theirs = stats.permutation_test(
        (values[label], values[~label]), difference, vectorized=True, n_resamples=np.inf, axis=0
    )
    assert 10 ** between_groups_log10_p(values[None], label[:, None])[0, 0] == pytest.approx(theirs.pvalue)


def test_many_groups_agree_with_counted_permutations_even_where_most_are_silent():
    rng = np.random.default_rng(2)
    groups, label = 40, np.arange(40) < 8
    silent = np.zeros(groups)
    silent[[0, 1, 2, 3, 20, 30]] = rng.gamma(2, 1, 6)
    plain = rng.standard_normal(groups) + 0.9 * label
    values = np.stack([plain, silent, np.exp(plain / 2)])
    values -= values.mean(axis=1, keepdims=True)
    found = 10 ** between_groups_log10_p(values, label[:, None])[:, 0]
    drawn = np.argsort(rng.random((100_000, groups)), axis=1)[:, :8]
    for row, p in zip(values, found):
        counted = (np.abs(row[drawn].mean(axis=1)) >= abs(row[label].mean()) - 1e-12).mean()
        assert p == pytest.approx(counted, rel=0.3)
        assert 0.001 < counted < 0.2
    # Six groups in which an atom is active: its p is exact, and so are those counted but for their number.
    assert found[1] == pytest.approx(
        (np.abs(values[1][drawn].mean(axis=1)) >= abs(values[1][label].mean()) - 1e-12).mean(), rel=0.1
    )


def test_where_there_are_some_thousand_ways_a_small_p_is_exact():
    rng = np.random.default_rng(6)
    label = np.arange(24) < 5
    values = np.stack([np.exp(rng.standard_normal(24) + 1.2 * label), rng.standard_normal(24)])
    found = 10 ** between_groups_log10_p(values, label[:, None])[:, 0]
    ways = np.array(list(combinations(range(24), 5)))
    counted = [
        np.mean(np.abs(row[ways].mean(axis=1)) >= abs(row[label].mean()) - 1e-12)
        for row in values - values.mean(axis=1, keepdims=True)
    ]
    assert found[0] == pytest.approx(counted[0])
    assert counted[0] < 0.05 < counted[1]
    assert found[1] == pytest.approx(counted[1], rel=0.1)


def test_without_excess_kurtosis_it_is_the_t_test():
    rng = np.random.default_rng(4)
    label = np.arange(200) % 2 == 0
    values = rng.standard_normal((20, 200)) + np.linspace(0, 2.5, 20)[:, None] * label
    theirs = stats.ttest_ind(values[:, label], values[:, ~label], axis=1).pvalue
    np.testing.assert_allclose(
        between_groups_log10_p(values, label[:, None])[:, 0], np.log10(theirs), rtol=0.06, atol=0.02
    )


def test_the_tail_of_the_beta_distribution_in_logarithms():
    squared = np.array([0.0, 1e-9, 0.01, 0.3, 0.9, 1 - 1e-9])
    for kurtosis in (-2.0, 0.0, 40.0):
        found = _beta_log10_p(squared, np.full(6, kurtosis), 24)
        mean, second = 1 / 23, 3 / 575 + 22 * 21 / (24 * 25 * 23**3) * kurtosis
        both = mean * (1 - mean) / (second - mean**2) - 1
        theirs = stats.beta.sf(squared, mean * both, (1 - mean) * both)
        np.testing.assert_allclose(10**found, theirs, rtol=1e-6, atol=1e-4)
    # In a million ways p = 0 cannot be told from 10^-300; in logarithms it can.
    far = _beta_log10_p(np.array([1 - 1e-6]), np.zeros(1), 400)
    assert -1200 < far[0] < -1000


def test_moments_of_the_squared_correlation_are_those_of_all_ways():
    rng = np.random.default_rng(5)
    x, label = np.exp(rng.standard_normal(10)), np.arange(10) < 3
    x = (x - x.mean()) / np.linalg.norm(x - x.mean())
    y = label - 0.3
    y /= np.linalg.norm(y)
    squares = [(np.isin(np.arange(10), way) - 0.3) @ x for way in combinations(range(10), 3)]
    squares = np.square(squares) / np.square(label - 0.3).sum()
    assert squares.mean() == pytest.approx(1 / 9)
    second = 3 / 99 + 8 * 7 / (10 * 11 * 9**3) * _kurtosis(x) * _kurtosis(y)
    assert np.square(squares).mean() == pytest.approx(second)


def test_p_is_not_below_one_in_all_ways_and_nothing_is_no_evidence():
    label = np.arange(30) < 3
    values = np.stack([label.astype(float), np.ones(30)])
    labels = np.column_stack([label, np.ones(30, dtype=bool), np.zeros(30, dtype=bool)])
    found = 10 ** between_groups_log10_p(values, labels)
    assert found[0, 0] == pytest.approx(1 / 4060)
    wide = np.arange(30) < 15
    assert between_groups_log10_p(wide[None].astype(float), wide[:, None])[0, 0] == pytest.approx(
        -np.log10(comb(30, 15))
    )
    assert (found[1] == 1).all()
    assert (found[:, 1:] == 1).all()


def test_constancy_and_common_class_by_hand():
    group = np.repeat([0, 1, 2, 3], 10)
    y = np.repeat([0, 1, 0, 1], 10)
    assert constancy(y, group) == 1.0
    y[[0, 1, 10]] = [1, 1, 0]
    # 19 samples are of class 1 or 21, and guessing by group makes 3 errors in place of 19.
    assert constancy(y, group) == pytest.approx(1 - 3 / 19)
    assert list(common_class(y, group)) == [0, 1, 0, 1]
    # A rare class that lies anywhere: most groups are nearly constant, yet they say nothing of it.
    rare = np.tile([-1] * 9 + [0], 4)
    assert constancy(rare, group) == 0.0
    assert constancy(np.zeros(40), group) == 0.0


def test_group_means_are_those_of_midranks():
    rng = np.random.default_rng(3)
    codes = np.round(rng.standard_normal((50, 6)) * (rng.random((50, 6)) < 0.5), 1)
    group = rng.permutation(np.arange(50) % 7)
    ranks = stats.rankdata(codes, axis=0) - 0.5
    by_hand = np.stack([ranks[group == g].mean(axis=0) for g in range(7)], axis=1)
    np.testing.assert_allclose(RankedCodes(sparse.csr_matrix(codes)).group_means(group), by_hand)
