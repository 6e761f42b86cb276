import numpy as np
import pytest
from scipy import sparse
from scipy.stats import fisher_exact
from statsmodels.stats.contingency_tables import Table2x2

from conceptome.statistics import contingency_tables, fisher_p, odds_ratio


def example(seed=0, n=60, m=7, c=4):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, m)) * (rng.random((n, m)) < 0.4), rng.random((n, c)) < 0.4


def test_tables_count_what_a_loop_counts():
    dense, labels = example()
    weights = np.random.default_rng(1).integers(0, 4, 60)
    for w in (None, weights):
        tables = contingency_tables(sparse.csr_matrix(dense), labels, w)
        ones = np.ones(60) if w is None else w
        for j in range(7):
            for c in range(4):
                active, has = dense[:, j] != 0, labels[:, c]
                expected = [[ones[a & h].sum() for h in (has, ~has)] for a in (active, ~active)]
                np.testing.assert_array_equal(tables[j, c], expected)


def test_many_draws_at_once_are_each_draw():
    dense, labels = example()
    weights = np.random.default_rng(2).integers(0, 3, (4, 60))
    tables = contingency_tables(sparse.csr_matrix(dense), labels, weights)
    for draw in range(4):
        np.testing.assert_array_equal(tables[draw], contingency_tables(sparse.csr_matrix(dense), labels, weights[draw]))


def test_stored_zeros_are_silent():
    stored = sparse.csr_matrix(([0.0, 1.0], ([0, 1], [0, 0])), shape=(3, 1))
    assert contingency_tables(stored, np.ones((3, 1), bool))[0, 0, 0, 0] == 1


def test_odds_ratio_closed_form_and_statsmodels():
    tables = np.array([[[10, 0], [0, 10]], [[5, 5], [5, 5]], [[3, 7], [20, 11]]])
    odds, low, high = odds_ratio(tables, 0.9)
    np.testing.assert_allclose(odds[:2], [21.0**2, 1.0])
    reference = Table2x2(tables[2] + 0.5, shift_zeros=False)
    np.testing.assert_allclose([odds[2], low[2], high[2]], [reference.oddsratio, *reference.oddsratio_confint(0.1)])


@pytest.mark.parametrize("alternative", ["greater", "less"])
def test_fisher_equals_scipy(alternative):
    tables = contingency_tables(*(lambda d, y: (sparse.csr_matrix(d), y))(*example(2)))
    expected = [[fisher_exact(t, alternative=alternative).pvalue for t in row] for row in tables.astype(int)]
    np.testing.assert_allclose(fisher_p(tables, alternative), expected, rtol=1e-9)


def test_fisher_two_sided_doubles_and_refuses_other_words():
    tables = np.array([[8, 2], [1, 9]])
    np.testing.assert_allclose(fisher_p(tables, "two-sided"), 2 * fisher_exact(tables, alternative="greater").pvalue)
    assert fisher_p(np.array([[5, 5], [5, 5]]), "two-sided") == 1.0
    with pytest.raises(ValueError, match="alternative"):
        fisher_p(tables, "bigger")
