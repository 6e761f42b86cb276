import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.stats import kendalltau, skew, somersd, spearmanr

from conceptome.errors import DataError
from conceptome.statistics import RankedCodes, benjamini_hochberg, monotone_association
from conceptome.statistics.monotone import STATISTICS

FEW = {"bootstraps": 50, "permutations": 50, "confidence": 0.95, "seed": 0}


def sparse_codes(n, m, seed, rate=0.3):
    rng = np.random.default_rng(seed)
    return np.round(rng.normal(size=(n, m)), 1) * (rng.random((n, m)) < rate)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(4, 40), levels=st.integers(2, 6), rate=st.floats(0.05, 1.0), seed=st.integers(0, 10_000))
def test_effect_is_scipys_spearman_with_ties_zeros_and_negatives(n, levels, rate, seed):
    dense = sparse_codes(n, 4, seed, rate)
    values = np.random.default_rng(seed + 1).integers(0, levels, n).astype(float)
    with np.errstate(all="ignore"), pytest.warns() if _flat(dense, values) else _nothing():
        expected = [spearmanr(column, values).statistic for column in dense.T]
    found = RankedCodes(sparse.csr_matrix(dense)).spearman(values)[:, 0]
    np.testing.assert_allclose(found, expected, atol=1e-9)


def _flat(dense, values):
    return len(np.unique(values)) == 1 or any(len(np.unique(column)) == 1 for column in dense.T)


def _nothing():
    from contextlib import nullcontext

    return nullcontext()


@settings(max_examples=40, deadline=None)
@given(n=st.integers(4, 40), levels=st.integers(2, 6), rate=st.floats(0.05, 1.0), seed=st.integers(0, 10_000))
def test_kendall_and_jonckheere_are_scipys_with_ties_zeros_and_negatives(n, levels, rate, seed):
    dense = sparse_codes(n, 4, seed, rate)
    values = np.random.default_rng(seed + 1).integers(0, levels, n).astype(float)
    ranked = RankedCodes(sparse.csr_matrix(dense))
    tau, pairs = ranked.kendall(values)[:, 0], ranked.jonckheere(values)[:, 0]
    np.testing.assert_allclose(tau, [kendalltau(column, values).statistic for column in dense.T], atol=1e-9)
    for column, found in zip(dense.T, pairs):
        if len(np.unique(column)) == 1 or len(np.unique(values)) == 1:
            assert np.isnan(found)
        else:
            assert found == pytest.approx(somersd(values, column).statistic, abs=1e-9)


def test_jonckheere_by_hand():
    # Levels 1, 2, 3 with codes {0, 2}, {1}, {2, 3}: of the 8 pairs between levels 6 rise, 1 falls, 1 is tied.
    codes, values = sparse.csr_matrix(np.array([[0.0], [2.0], [1.0], [2.0], [3.0]])), np.array([1, 1, 2, 3, 3])
    assert RankedCodes(codes).jonckheere(values)[0, 0] == pytest.approx(5 / 8)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), statistic=st.sampled_from(STATISTICS))
def test_weights_are_repeated_samples(seed, statistic):
    dense = sparse_codes(30, 5, seed)
    rng = np.random.default_rng(seed)
    values, weights = rng.integers(0, 3, 30).astype(float), rng.multinomial(30, np.full(30, 1 / 30))
    repeated = RankedCodes(sparse.csr_matrix(np.repeat(dense, weights, axis=0)))
    repeated = getattr(repeated, statistic)(np.repeat(values, weights))
    weighted = getattr(RankedCodes(sparse.csr_matrix(dense)), statistic)(values, weights)
    np.testing.assert_allclose(weighted, repeated, atol=1e-9)


def test_p_of_kendall_is_that_of_its_normal_limit_and_of_jonckheere():
    rng = np.random.default_rng(6)
    dense = np.abs(sparse_codes(200, 30, 6, 0.6))
    values = rng.integers(0, 4, 200).astype(float)
    dense[:, :10] += 0.06 * values[:, None]
    settings = {**FEW, "bootstraps": 1, "permutations": 400}
    tables = {
        name: monotone_association(sparse.csr_matrix(dense), values, np.arange(200), **settings, statistic=name)
        for name in ("kendall", "jonckheere")
    }
    theirs = np.array([kendalltau(column, values, method="asymptotic").pvalue for column in dense.T])
    np.testing.assert_allclose(np.log10(tables["kendall"]["p"]), np.log10(theirs), atol=0.1, rtol=0.15)
    np.testing.assert_allclose(tables["kendall"]["p"], tables["jonckheere"]["p"], rtol=1e-9)
    with pytest.raises(ValueError, match="statistic must be one of"):
        monotone_association(sparse.csr_matrix(dense), values, np.arange(200), **settings, statistic="pearson")


@pytest.mark.parametrize("statistic", ["kendall", "jonckheere"])
def test_other_statistics_find_the_dose_response_and_nothing_else(statistic):
    table = monotone_association(*planted(0), **FEW, statistic=statistic)
    assert set(np.flatnonzero(benjamini_hochberg(table["p"].to_numpy()) < 0.05)) == {0, 1}
    assert table["low"][0] > table["null_high"][0]
    assert table["high"][1] < table["null_low"][1]


def test_skewness_of_ranks_is_scipys():
    from scipy.stats import rankdata

    dense = sparse_codes(50, 6, 3)
    expected = skew(rankdata(dense, axis=0), axis=0)
    np.testing.assert_allclose(RankedCodes(sparse.csr_matrix(dense)).skewness(), expected, atol=1e-9)


def planted(seed, groups=30, each=4, m=40):
    """Codes of which atom 0 rises and atom 1 falls with the dose; every group has all doses, and its own level."""
    rng = np.random.default_rng(seed)
    n = groups * each
    dose = np.tile(np.arange(each), groups).astype(float)
    group = np.repeat([f"plate{i}" for i in range(groups)], each)
    dense = np.maximum(rng.normal(size=(n, m)) + np.repeat(rng.normal(size=(groups, m)), each, axis=0), 0.0)
    dense[:, 0] = np.maximum(dose + rng.normal(size=n), 0.0)
    dense[:, 1] = np.maximum(3 - dose + rng.normal(size=n), 0.0)
    return sparse.csr_matrix(dense), dose, group


def test_planted_dose_response_is_found_with_its_sign_and_nothing_else():
    codes, dose, group = planted(0)
    table = monotone_association(codes, dose, group, **FEW)
    assert list(table) == ["atom", "effect", "low", "high", "p", "null", "null_low", "null_high", "n", "n_active"]
    assert set(np.flatnonzero(benjamini_hochberg(table["p"].to_numpy()) < 0.05)) == {0, 1}
    assert table["low"][0] > 0.5
    assert table["high"][1] < -0.5
    assert (table["low"] <= table["effect"]).mean() > 0.9
    assert (table["effect"] <= table["high"]).mean() > 0.9
    assert table["null"].abs().max() < 0.1
    assert table["null_high"][0] < table["effect"][0]
    assert (table["n_active"] == np.asarray((codes != 0).sum(axis=0)).ravel()).all()


@pytest.mark.parametrize(
    ("rate", "weights", "statistic"),
    [
        (0.02, None, "spearman"),
        (0.3, None, "spearman"),
        (0.02, [0.9, 0.05, 0.05], "spearman"),
        (0.3, [0.02, 0.18, 0.8], "spearman"),
        (0.02, [0.9, 0.05, 0.05], "kendall"),
    ],
)
def test_labels_without_effect_are_discovered_no_more_often_than_promised(rate, weights, statistic):
    found = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        codes = sparse.csr_matrix(np.abs(sparse_codes(300, 100, seed, rate)))
        dose = rng.choice(3, size=300, p=weights).astype(float)
        group = np.array([f"s{i}" for i in range(300)])
        p = monotone_association(codes, dose, group, **{**FEW, "bootstraps": 1, "seed": seed}, statistic=statistic)
        p = p["p"].to_numpy()
        found += bool((benjamini_hochberg(p) < 0.05).any())
    assert found <= 60 * 0.105


def test_a_label_that_is_constant_in_each_group_counts_groups_not_samples():
    rng = np.random.default_rng(5)
    group = np.repeat([f"donor{i}" for i in range(8)], 50)
    dose = np.repeat(rng.permutation(8), 50).astype(float)
    level = np.repeat(rng.normal(size=(8, 200)), 50, axis=0)
    codes = sparse.csr_matrix(np.maximum(level + 0.1 * rng.normal(size=(400, 200)), 0.0))
    p = monotone_association(codes, dose, group, **FEW)["p"].to_numpy()
    naive = np.array([spearmanr(column, dose).pvalue for column in codes.toarray().T])
    assert np.mean(p < 0.05) < 0.12 < 0.5 < np.mean(naive < 0.05)


def test_silent_atoms_one_group_and_bad_input():
    codes = sparse.csr_matrix(np.array([[0.0, 1.0], [0.0, 2.0], [0.0, 3.0], [0.0, 0.0]]))
    table = monotone_association(codes, np.array([1.0, 2.0, 3.0, 0.0]), np.array(["a"] * 4), **FEW)
    assert np.isnan(table.loc[0, ["effect", "p", "low"]].astype(float)).all()
    assert table["effect"][1] == pytest.approx(1.0)
    assert np.isnan(table["low"][1])
    with pytest.raises(DataError, match="NaN"):
        monotone_association(codes, np.array([1.0, np.nan, 3.0, 0.0]), np.array(["a"] * 4), **FEW)
    with pytest.raises(DataError, match="give one each"):
        monotone_association(codes, np.ones(3), np.array(["a"] * 4), **FEW)


def test_equal_inputs_give_equal_tables():
    first, again = (monotone_association(*planted(1), **FEW) for _ in range(2))
    assert first.equals(again)


def test_a_moderate_effect_in_one_of_many_atoms_is_found_with_power():
    found = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        codes = np.abs(sparse_codes(300, 100, seed, 0.2))
        dose = rng.integers(0, 4, 300).astype(float)
        # The atom fires more often as the dose rises, from a tenth to a half of the samples.
        codes[:, 0] = (rng.random(300) < 0.1 + 0.4 * dose / 3) * rng.gamma(2.0, 1.0, 300)
        group = np.array([f"s{i}" for i in range(300)])
        p = monotone_association(sparse.csr_matrix(codes), dose, group, **{**FEW, "bootstraps": 1})["p"].to_numpy()
        found += benjamini_hochberg(p)[0] < 0.05
    assert found >= 16
