import numpy as np
import pytest
from scipy import sparse
from scipy.stats import mannwhitneyu
from sklearn.metrics import roc_auc_score

from conceptome.statistics import RankedCodes, auroc_matrix, mann_whitney_p, tie_terms


def random_codes(n=80, m=12, seed=0):
    """Sparse codes with ties, negatives, an all-zero atom and a fully dense one."""
    rng = np.random.default_rng(seed)
    dense = np.round(rng.normal(size=(n, m)), 1) * (rng.random((n, m)) < 0.4)
    dense[:, 0] = 0.0
    dense[:, 1] = rng.normal(size=n)
    dense[:, 2] = np.abs(dense[:, 2])
    dense[:, 3] = -np.abs(dense[:, 3])
    return dense


def test_auroc_equals_sklearn_with_ties_zeros_and_negatives():
    dense = random_codes()
    labels = np.random.default_rng(1).random((80, 5)) < 0.3
    expected = [[roc_auc_score(labels[:, c], dense[:, j]) for c in range(5)] for j in range(12)]
    np.testing.assert_allclose(auroc_matrix(sparse.csr_matrix(dense), labels), expected, atol=1e-12)


def test_auroc_with_weights_equals_repeated_samples():
    dense = random_codes(seed=2)
    rng = np.random.default_rng(3)
    labels = rng.random((80, 4)) < 0.4
    weights = rng.multinomial(80, np.full(80, 1 / 80))
    repeated = auroc_matrix(sparse.csr_matrix(np.repeat(dense, weights, axis=0)), np.repeat(labels, weights, axis=0))
    np.testing.assert_allclose(auroc_matrix(sparse.csr_matrix(dense), labels, weights), repeated, atol=1e-12)


def test_auroc_closed_forms():
    codes = sparse.csr_matrix(np.array([[0.0, 1.0, -1.0], [0.0, 2.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    labels = np.array([[True], [True], [False], [False]])
    np.testing.assert_allclose(auroc_matrix(codes, labels)[:, 0], [0.5, 1.0, 0.25])


def test_auroc_is_nan_for_an_empty_or_a_full_class():
    codes = sparse.csr_matrix(random_codes())
    labels = np.stack([np.zeros(80, bool), np.ones(80, bool)], axis=1)
    assert np.isnan(auroc_matrix(codes, labels)).all()


def test_stored_zeros_count_as_zeros():
    stored = sparse.csr_matrix(([0.0, 1.0], ([0, 1], [0, 0])), shape=(4, 1))
    labels = np.array([[False], [True], [False], [True]])
    np.testing.assert_allclose(auroc_matrix(stored, labels), [[0.75]])
    assert tie_terms(stored)[0] == 27 - 3


def test_auroc_of_codes_without_any_nonzero():
    np.testing.assert_allclose(auroc_matrix(sparse.csr_matrix((4, 2)), np.array([1, 0, 0, 1], bool)), 0.5)


def test_auroc_refuses_other_lengths():
    with pytest.raises(ValueError, match="labels have 3 rows, codes 4"):
        auroc_matrix(sparse.csr_matrix((4, 2)), np.ones(3, bool))


@pytest.mark.parametrize("continuity", [True, False])
def test_mann_whitney_p_equals_scipy(continuity):
    dense = random_codes(seed=5)
    label = np.random.default_rng(6).random(80) < 0.3
    ranked = RankedCodes(sparse.csr_matrix(dense))
    p = mann_whitney_p(
        ranked.auroc(label)[:, 0], label.sum(), (~label).sum(), ranked.tie_terms(), continuity=continuity
    )
    expected = [
        mannwhitneyu(dense[label, j], dense[~label, j], method="asymptotic", use_continuity=continuity).pvalue
        for j in range(1, 12)
    ]
    np.testing.assert_allclose(p[1:], expected, rtol=1e-9)
    assert p[0] == 1.0


def test_mann_whitney_p_of_an_empty_class_is_nan():
    assert np.isnan(mann_whitney_p(np.array([np.nan]), 0, 10))


def test_permuted_labels_give_uniform_p():
    rng = np.random.default_rng(7)
    codes = RankedCodes(sparse.random(300, 40, density=0.3, random_state=8, format="csr"))
    labels = np.stack([rng.permutation(300) < 100 for _ in range(25)], axis=1)
    p = mann_whitney_p(codes.auroc(labels), 100, 200, codes.tie_terms()[:, None], continuity=False).ravel()
    for threshold in (0.05, 0.2, 0.5, 0.8):
        assert abs((p < threshold).mean() - threshold) < 0.05
