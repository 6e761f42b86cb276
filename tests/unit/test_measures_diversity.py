import numpy as np
import pandas as pd
import pytest
from further_space import fitted, observations, space, tables
from scipy import sparse

from conceptome.config.further import Diversity
from conceptome.errors import DataError
from conceptome.measures import diversity
from conceptome.measures.atoms import random_unit
from conceptome.statistics import jackknife

CONFIG = Diversity(babel=[1, 2, 4], max_rows=400, draws=4)
N = 360


def found(table, statistic, r=0, dictionary="topk", seed=0):
    rows = table.query("statistic == @statistic and r == @r and dictionary == @dictionary and seed == @seed")
    assert len(rows) == 1
    return rows.iloc[0]


def measured(fits, n=N, groups=60, config=CONFIG):
    X = np.zeros((n, 8))
    return tables(diversity, space(X, observations(n, groups), fits), config)["diversity"]


def independent(m, rate, rng, n=N):
    return (rng.random((n, m)) < rate) * rng.gamma(2, 1, (n, m))


def test_an_orthonormal_basis_is_as_diverse_as_can_be():
    rng = np.random.default_rng(0)
    table = measured({("topk", s): (fitted(np.eye(8)[rng.permutation(8)]), independent(8, 0.3, rng)) for s in (0, 1)})
    for statistic in ("stable_rank", "effective_rank"):
        row = found(table, statistic)
        assert row["value"] == row["low"] == row["high"] == pytest.approx(8)
        assert row["value"] > row["null_high"]
    for r in (1, 2, 4):
        row = found(table, "babel", r)
        assert row["value"] == row["low"] == row["high"] == pytest.approx(0)
        assert row["null_low"] > 0


def test_copies_are_found_out():
    rng = np.random.default_rng(1)
    copies = np.repeat(random_unit(4, 8, rng), 6, axis=0)
    table = measured({("topk", 0): (fitted(copies), independent(24, 0.2, rng))})
    assert found(table, "babel", 4)["value"] == pytest.approx(4)
    assert found(table, "babel", 4)["value"] > found(table, "babel", 4)["null_high"]
    row = found(table, "effective_rank")
    assert row["value"] <= 4 < row["null_low"]
    assert row["low"] < row["value"] < row["high"]
    # One seed: a maximum over atoms has no interval.
    assert np.isnan(found(table, "babel", 1)["low"])


def test_random_atoms_lie_at_their_null():
    rng = np.random.default_rng(2)
    config = Diversity(babel=[1, 4], draws=40)
    table = measured(
        {("random", 0): (fitted(random_unit(24, 8, rng), "random"), np.eye(24)[:, :24].repeat(15, 0))}, config=config
    )
    for statistic, r in (("stable_rank", 0), ("effective_rank", 0), ("babel", 1), ("babel", 4)):
        row = found(table, statistic, r, "random")
        assert row["null_low"] - 0.15 * row["null"] < row["value"] < row["null_high"] + 0.15 * row["null"]


def test_atoms_that_avoid_each_other_are_less_connected_than_chance():
    rng = np.random.default_rng(3)
    # Two sets of four atoms, never used together: of 64 pairs 32 meet.
    side = np.arange(N) % 2
    codes = independent(8, 0.5, rng) * (np.arange(8)[None, :] // 4 == side[:, None])
    table = measured({("topk", 0): (fitted(np.eye(8)), codes)})
    row = found(table, "connectivity")
    assert row["value"] == 0.5
    assert row["value"] > row["null_high"]
    assert row["n"] == N
    chance = measured({("topk", 0): (fitted(np.eye(8)), independent(8, 0.5, rng))})
    assert found(chance, "connectivity")["value"] == found(chance, "connectivity")["null"] == 0.0


def test_atoms_used_together_have_a_lower_rank_than_chance():
    rng = np.random.default_rng(4)
    family = np.repeat(independent(2, 0.3, rng), 4, axis=1)
    row = found(measured({("topk", 0): (fitted(np.eye(8)), family)}), "code_effective_rank")
    assert row["value"] <= 2.0001
    assert row["low"] <= row["value"] <= row["high"] < row["null_low"]


def test_coactivation_is_the_same_sparse_and_dense_and_in_blocks():
    rng = np.random.default_rng(5)
    codes, block = independent(12, 0.05, rng), np.arange(N) % 3
    parts = diversity.coactivation(sparse.csr_matrix(codes), block, 3)
    np.testing.assert_allclose(parts.sum(axis=0), codes.T @ codes)
    dense = rng.normal(size=(N, 5))
    np.testing.assert_allclose(
        diversity.coactivation(sparse.csr_matrix(dense), block, 3)[1], dense[1::3].T @ dense[1::3]
    )


def test_rank_of_use_in_closed_form():
    # Four atoms that never meet, on 1, 2, 3 and 4 samples, beside two silent ones: eigenvalues 1 to 4.
    used = np.repeat(np.arange(4), [1, 2, 3, 4])
    codes = sparse.csr_matrix(np.eye(6)[used])
    found = diversity.usage(diversity.coactivation(codes, np.arange(10) % 2, 2))
    share = np.array([0.1, 0.2, 0.3, 0.4])
    assert found["code_effective_rank"].value == pytest.approx(np.exp(-(share * np.log(share)).sum()))
    assert found["connectivity"].value == 1 - 4 / 36
    for left_out, rows in zip(found["code_effective_rank"].left_out, (np.arange(1, 10, 2), np.arange(0, 10, 2))):
        share = np.bincount(used[rows]) / 5
        share = share[share > 0]
        assert left_out == pytest.approx(np.exp(-(share * np.log(share)).sum()))


def test_leaving_blocks_out_is_measuring_the_rest():
    rng = np.random.default_rng(6)
    codes, block = independent(6, 0.3, rng), np.arange(N) % 4
    estimates = diversity.usage(diversity.coactivation(sparse.csr_matrix(codes), block, 4))
    for number in range(4):
        rest = diversity.usage(diversity.coactivation(sparse.csr_matrix(codes[block != number]), np.zeros(270, int), 1))
        for name, estimate in estimates.items():
            assert estimate.left_out[number] == pytest.approx(rest[name].value)


def test_permuting_keeps_each_atom_and_breaks_company():
    rng = np.random.default_rng(7)
    codes = np.repeat(independent(1, 0.3, rng), 3, axis=1)
    mixed = diversity.permuted(sparse.csc_matrix(codes), rng).toarray()
    np.testing.assert_allclose(np.sort(mixed, axis=0), np.sort(codes, axis=0))
    assert np.corrcoef(mixed[:, 0], mixed[:, 1])[0, 1] < 0.3


def test_the_bar_of_a_maximum_spans_the_seeds():
    rng = np.random.default_rng(8)
    table = measured({("topk", s): (fitted(random_unit(12, 8, rng)), independent(12, 0.3, rng)) for s in (0, 1, 2)})
    rows = table.query("statistic == 'babel' and r == 2")
    assert (rows["low"] == rows["value"].min()).all()
    assert (rows["high"] == rows["value"].max()).all()


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(9).normal(size=40)
    left_out = (values.sum() - values) / 39
    low, high = jackknife(values.mean(), left_out, 0.95)
    from scipy.stats import t

    expected = t.ppf(0.975, 39) * values.std(ddof=1) / np.sqrt(40)
    assert high - values.mean() == values.mean() - low == pytest.approx(expected)


def test_the_same_inputs_give_the_same_table():
    rng = np.random.default_rng(10)
    fits = {("topk", 0): (fitted(random_unit(12, 8, rng)), independent(12, 0.3, rng))}
    pd.testing.assert_frame_equal(measured(fits), measured(fits))


def test_one_group_is_refused():
    obs = observations(12, 6).assign(group="g")
    with pytest.raises(DataError, match="at least two groups"):
        diversity.measure(space(np.zeros((12, 2)), obs, {}), CONFIG)
