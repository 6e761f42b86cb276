"""The compiled pursuits against the float64 specification and against the torch path."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import conceptome_kernels
from conceptome.dictionaries import fit
from conceptome.dictionaries.pursuit import plan, pursue, pursue_rows
from conceptome.errors import DataError
from conceptome_kernels import loader, pursuit, reference

pytestmark = pytest.mark.skipif(not conceptome_kernels.available(), reason="no compiled kernels here")
SETTINGS = settings(max_examples=40, deadline=None, derandomize=True)
VARIANTS = loader.supported()


@st.composite
def problems(draw):
    """Rows, unit atoms, a Gram budget and a variant; some rows are zero, some atoms copies, some products exact."""
    n, d = draw(st.sampled_from([1, 2, 9, 60])), draw(st.sampled_from([1, 2, 3, 7, 8, 33, 200]))
    m = draw(st.sampled_from([1, 2, 5, 24, 31, 33, 64, 130, 1100]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if draw(st.booleans()):
        X = rng.integers(-4, 5, (n, d)) / 2
        D = np.eye(d)[rng.integers(0, d, m)] * rng.choice([-1.0, 1.0], (m, 1))
    else:
        X = rng.standard_normal((n, d))
        D = rng.standard_normal((m, d))
        D /= np.linalg.norm(D, axis=1, keepdims=True)
    X[rng.random(n) < 0.2] = 0
    X *= draw(st.sampled_from([1.0, 1.0, 1e15, 1e-15, 1e-30]))
    k = draw(st.sampled_from(sorted({1, m, draw(st.integers(1, m))})))
    budget = draw(st.sampled_from([0, pursuit.GRAM_BUDGET]))
    return X.astype(np.float32), D.astype(np.float32), min(k, 40), budget, draw(st.sampled_from(VARIANTS))


def dense(codes, m):
    indices, values = codes
    assert indices.dtype == np.int32
    assert values.dtype == np.float32
    assert (indices >= 0).all()
    assert (indices < m).all()
    assert (np.diff(indices, axis=1) > 0).all()
    assert np.isfinite(values).all()
    Z = np.zeros((len(indices), m))
    np.put_along_axis(Z, indices.astype(np.int64), values, axis=1)
    return Z


def agree(actual, expected, X, D):
    """What is left is as small as the reference's; most rows' codes are the same (near-ties may fall otherwise)."""
    scale = np.linalg.norm(X.astype(np.float64), axis=1)
    left, best = (np.linalg.norm(X - Z @ D, axis=1) for Z in (actual, expected))
    same = (np.abs(actual - expected) <= 1e-2 * (scale[:, None] + np.abs(expected))).all(axis=1)
    assert (left[same] <= best[same] + 2e-3 * scale[same]).all()
    assert (left <= best + 0.5 * scale).all()
    assert same.mean() >= 0.5 or len(X) < 9


def run(function, *arguments, variant, **options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(loader.VARIABLE, variant)
        first = function(*arguments, threads=1, **options)
        second = function(*arguments, threads=2, **options)
        rows = [function(arguments[0][i : i + 1], *arguments[1:], threads=1, **options) for i in (0, -1) if i >= 0]
    for one, other in zip(first, second):
        assert one.tobytes() == other.tobytes()
    assert rows[0][0].tobytes() == first[0][:1].tobytes()
    assert rows[0][1].tobytes() == first[1][:1].tobytes()
    return first


@SETTINGS
@given(problems(), st.integers(1, 6))
def test_icfl(problem, columns):
    X, D, k, budget, variant = problem
    rounds = plan(k, min(columns, len(D)))
    actual = dense(run(pursuit.icfl_pursuit, X, D, rounds, gram_budget=budget, variant=variant), len(D))
    expected, _ = reference.icfl_pursuit(X.astype(np.float64), D.astype(np.float64), 0.0, rounds)
    agree(actual, expected, X, D)


@SETTINGS
@given(problems(), st.booleans())
def test_matching_pursuit(problem, nonnegative):
    X, D, k, budget, variant = problem
    actual = run(pursuit.matching_pursuit, X, D, k, nonnegative=nonnegative, gram_budget=budget, variant=variant)
    expected = reference.matching_pursuit(X.astype(np.float64), D.astype(np.float64), 0.0, k, nonnegative)
    actual = dense(actual, len(D))
    agree(actual, expected, X, D)
    assert not nonnegative or (actual >= 0).all()


@SETTINGS
@given(problems())
def test_orthogonal_matching_pursuit(problem):
    X, D, k, budget, variant = problem
    actual = dense(run(pursuit.orthogonal_matching_pursuit, X, D, k, gram_budget=budget, variant=variant), len(D))
    expected = reference.orthogonal_matching_pursuit(X.astype(np.float64), D.astype(np.float64), 0.0, k)
    agree(actual, expected, X, D)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("budget", [0, pursuit.GRAM_BUDGET])
def test_icfl_equals_the_torch_path(variant, budget, monkeypatch):
    monkeypatch.setenv(loader.VARIABLE, variant)
    rng = np.random.default_rng(3)
    D = rng.standard_normal((700, 96)).astype(np.float32)
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    X = (rng.standard_normal((300, 700)) * (rng.random((300, 700)) < 0.02)).astype(np.float32) @ D
    actual = dense(pursuit.icfl_pursuit(X, D, [5, 5, 5, 3], gram_budget=budget), 700)
    expected = pursue(torch.from_numpy(X), torch.from_numpy(D), [5, 5, 5, 3]).csr.toarray()
    same = ((actual != 0) == (expected != 0)).all(axis=1)
    assert same.mean() > 0.98
    np.testing.assert_allclose(actual[same], expected[same], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_exact_rows_are_found_and_zero_rows_stay_empty(variant, monkeypatch):
    monkeypatch.setenv(loader.VARIABLE, variant)
    D = np.linalg.qr(np.random.default_rng(1).standard_normal((6, 6)))[0].astype(np.float32)
    X = np.stack([np.zeros(6), 2 * D[3], D[1] - 3 * D[4]]).astype(np.float32)
    for codes in (
        pursuit.matching_pursuit(X, D, 3),
        pursuit.orthogonal_matching_pursuit(X, D, 3),
    ):
        Z = dense(codes, 6)
        np.testing.assert_allclose(Z @ D, X, atol=1e-5)
        assert (Z[0] == 0).all()
        assert np.count_nonzero(np.abs(Z[2]) > 1e-4) == 2


def test_ties_go_to_the_lower_column():
    D = np.repeat(np.eye(2, dtype=np.float32), 40, axis=0)
    X = np.array([[1.0, 3.0], [2.0, 2.0]], dtype=np.float32)
    for budget in (0, pursuit.GRAM_BUDGET):
        indices, values = pursuit.matching_pursuit(X, D, 2, gram_budget=budget)
        assert indices.tolist() == [[0, 40], [0, 40]]
        assert values.tolist() == [[1, 3], [2, 2]]
        indices, values = pursuit.orthogonal_matching_pursuit(X, D, 2, gram_budget=budget)
        assert indices.tolist() == [[0, 40], [0, 40]]


def test_a_wide_round_and_a_narrow_one():
    rng = np.random.default_rng(5)
    D = rng.standard_normal((400, 300)).astype(np.float32)
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    X = rng.standard_normal((4, 300)).astype(np.float32)
    for rounds in ([150, 3], [3, 150]):
        expected, _ = reference.icfl_pursuit(X.astype(np.float64), D.astype(np.float64), 0.0, rounds)
        for budget in (0, pursuit.GRAM_BUDGET):
            codes = pursuit.icfl_pursuit(X, D, rounds, gram_budget=budget)
            np.testing.assert_allclose(dense(codes, 400), expected, rtol=1e-3, atol=1e-3)


def test_dependent_atoms_do_not_blow_up():
    rng = np.random.default_rng(6)
    D = np.repeat(rng.standard_normal((3, 20)), 4, axis=0)
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    D, X = D.astype(np.float32), rng.standard_normal((5, 20)).astype(np.float32)
    exact = [array.astype(np.float64) for array in (X, D)]
    Z = dense(pursuit.icfl_pursuit(X, D, [4, 4, 4]), 12)
    expected, _ = reference.icfl_pursuit(*exact, 0.0, [4, 4, 4])
    np.testing.assert_allclose(Z @ D, expected @ exact[1], atol=2e-3)
    assert np.abs(Z).max() < 20
    Z = dense(pursuit.orthogonal_matching_pursuit(X, D, 12), 12)
    best = np.linalg.lstsq(exact[1].T, exact[0].T, rcond=1e-3)[0].T
    np.testing.assert_allclose(Z @ D, best @ exact[1], atol=1e-4)
    assert (np.count_nonzero(Z, axis=1) == 3).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_codes_do_not_depend_on_the_screen(variant, monkeypatch):
    monkeypatch.setenv(loader.VARIABLE, variant)
    rng = np.random.default_rng(10)
    D = rng.standard_normal((900, 70)).astype(np.float32)
    # Near copies: their correlations differ by less than a screen's error.
    D[450:] = D[:450] + np.float32(1e-5) * rng.standard_normal((450, 70), dtype=np.float32)
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    X = rng.standard_normal((40, 70)).astype(np.float32)
    for function, size in (
        (pursuit.matching_pursuit, 20),
        (pursuit.orthogonal_matching_pursuit, 20),
        (pursuit.icfl_pursuit, [4] * 5),
    ):
        expected = function(X, D, size, gram_budget=0)
        for gram in (pursuit.gram_matrix(D), pursuit.compact_gram(D), None):
            for one, other in zip(function(X, D, size, gram=gram), expected):
                assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("budget", [0, pursuit.GRAM_BUDGET])
def test_matching_pursuit_takes_the_largest_of_all_correlations(variant, budget, monkeypatch):
    monkeypatch.setenv(loader.VARIABLE, variant)
    rng = np.random.default_rng(11)
    D = rng.standard_normal((2000, 64)).astype(np.float32)
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    X = rng.standard_normal((30, 64)).astype(np.float32)
    codes = [dense(pursuit.matching_pursuit(X, D, k, gram_budget=budget), len(D)) for k in range(1, 13)]
    residual = X.astype(np.float64)
    for before, after in zip([np.zeros_like(codes[0]), *codes], codes):
        correlations = np.abs((X - before @ D) @ D.T)
        moved = after != before
        assert (moved.sum(axis=1) == 1).all()
        # Within the rounding of a float32 product nothing larger was passed over.
        lost = correlations.max(axis=1) - correlations[moved]
        assert (lost <= 1e-6 * np.linalg.norm(residual, axis=1)).all()


@pytest.mark.parametrize("m", [1, 31, 131, 300])
@pytest.mark.parametrize("variant", VARIANTS)
def test_compact_gram(variant, m, monkeypatch):
    monkeypatch.setenv(loader.VARIABLE, variant)
    D = np.random.default_rng(12).standard_normal((m, 77)).astype(np.float32)
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    gram = pursuit.compact_gram(D, threads=1)
    assert gram.dtype == np.int16
    np.testing.assert_allclose(gram / np.diag(gram).mean(), D @ D.T, atol=5e-5)
    assert (gram == gram.T).all()
    assert gram.tobytes() == pursuit.compact_gram(D, threads=2).tobytes()


@pytest.mark.parametrize("m", [1, 31, 131, 300])
@pytest.mark.parametrize("variant", VARIANTS)
def test_gram_matrix(variant, m, monkeypatch):
    monkeypatch.setenv(loader.VARIABLE, variant)
    D = np.random.default_rng(7).standard_normal((m, 77)).astype(np.float32)
    gram = pursuit.gram_matrix(D, threads=1)
    np.testing.assert_allclose(gram, D.astype(np.float64) @ D.T.astype(np.float64), rtol=1e-4, atol=1e-4)
    assert (gram == gram.T).all()
    assert gram.tobytes() == pursuit.gram_matrix(D, threads=2).tobytes()


def test_no_rows_give_no_codes():
    D = np.eye(3, dtype=np.float32)
    for indices, values in (
        pursuit.icfl_pursuit(np.zeros((0, 3), np.float32), D, [2]),
        pursuit.matching_pursuit(np.zeros((0, 3), np.float32), D, 2),
        pursuit.orthogonal_matching_pursuit(np.zeros((0, 3), np.float32), D, 2),
    ):
        assert indices.shape == values.shape == (0, 2)


def test_refusals_name_the_argument():
    D, X = np.eye(3, dtype=np.float32), np.ones((2, 3), np.float32)
    with pytest.raises(TypeError, match="residual must be float32"):
        pursuit.icfl_pursuit(X.astype(np.float64), D, [1])
    with pytest.raises(ValueError, match="residual must have shape"):
        pursuit.icfl_pursuit(X[:, :2], D, [1])
    with pytest.raises(ValueError, match="residual holds NaN"):
        pursuit.icfl_pursuit(np.full((1, 3), np.nan, np.float32), D, [1])
    with pytest.raises(ValueError, match="rounds must lie between 1 and 3, not 4"):
        pursuit.icfl_pursuit(X, D, [1, 4])
    with pytest.raises(ValueError, match="at least one round"):
        pursuit.icfl_pursuit(X, D, [])
    with pytest.raises(ValueError, match="k must lie between 1 and 3"):
        pursuit.orthogonal_matching_pursuit(X, D, 4)
    with pytest.raises(ValueError, match="gram must have shape 3 × 3"):
        pursuit.matching_pursuit(X, D, 1, gram=np.eye(2, dtype=np.float32))


def test_icfl_dictionaries_encode_alike_with_and_without_kernels(monkeypatch):
    rng = np.random.default_rng(8)
    X = rng.standard_normal((300, 24)).astype(np.float32)
    fitted = fit("icfl", X, m=64, rounds=3, columns=2, steps=40, batch_size=128, threads=1)
    codes = fitted.encode(X).to_scipy().toarray()
    assert (fitted.encode(X[7:8]).to_scipy().toarray()[0] == codes[7]).all()
    monkeypatch.setenv(loader.VARIABLE, loader.TORCH)
    expected = fitted.encode(X).to_scipy().toarray()
    same = (np.abs(codes - expected) <= 1e-4 * (1 + np.abs(expected))).all(axis=1)
    assert same.mean() > 0.98


def test_training_that_meets_nan_says_so():
    with pytest.raises(FloatingPointError, match="pursuit: NaN"):
        pursue_rows(np.full((1, 2), np.nan, np.float32), np.eye(2, dtype=np.float32), [1], None)
    with pytest.raises(DataError, match="training diverged"):
        fit("icfl", np.random.default_rng(9).standard_normal((50, 4)), m=8, rounds=2, columns=1, learning_rate=1e30)
