"""The compiled encoders against the float64 specification, in every variant that this processor runs."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from conceptome_kernels import reference
from conceptome_kernels.topk import SAMPLE_ROWS, encode_batch_topk, encode_threshold, encode_topk, pack, pack_panels

pytestmark = pytest.mark.usefixtures("variant")
SETTINGS = settings(max_examples=25, deadline=None, derandomize=True)


@st.composite
def problems(draw):
    """Draw rows, an encoder and its biases; coarse ones are exact in float32 and full of ties."""
    n = draw(st.sampled_from([1, 2, 5, 6, 7, 15, 31]))
    d = draw(st.sampled_from([1, 2, 3, 7, 16, 17, 37, 64]))
    m = draw(st.sampled_from([1, 2, 7, 16, 31, 32, 33, 100, 193, 515]))
    scale = draw(st.sampled_from([1.0, 1.0, 1e-30, 1e-41, 1e15]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if draw(st.booleans()):
        X, W = rng.integers(-2, 3, (n, d)) / 2, rng.integers(-1, 2, (m, d)) / 1.0
        c, b, scale = rng.integers(-1, 2, m) / 2, rng.integers(-1, 2, d) / 2, 1.0
    else:
        X, W = rng.standard_normal((n, d)), rng.standard_normal((m, d))
        c, b = rng.standard_normal(m) * scale, rng.standard_normal(d) * scale
    X[rng.random(n) < 0.2] = 0
    return (X * scale).astype(np.float32), *(part.astype(np.float32) for part in (W, c, b))


def widths(m):
    """Draw k: 1, m, or between."""
    return st.one_of(st.just(1), st.just(m), st.integers(1, m), st.integers(1, min(m, 40)))


def wide(*arrays):
    return [array.astype(np.float64) for array in arrays]


def scores_of(X, W, c, b):
    """Float32 scores in the kernels' own order of sums, from codes with k = m and both signs of the encoder."""
    everything = encode_topk(X, W, c, b, len(W))[1]
    negated = encode_topk(X, -W, -c, b, len(W))[1]
    return everything - negated


@SETTINGS
@given(problems(), st.data())
def test_topk_is_the_specification(problem, data):
    X, W, c, b = problem
    k = data.draw(widths(len(W)))
    indices, values = encode_topk(X, W, c, b, k)
    assert indices.dtype == np.int32
    assert values.dtype == np.float32
    assert (np.diff(indices, axis=1) > 0).all()
    assert (values >= 0).all()
    # Exact for the scores that the kernel computes: same support, same rule for ties, same bytes.
    scores = scores_of(X, W, c, b)
    np.testing.assert_array_equal(indices, reference.select(scores, k))
    np.testing.assert_array_equal(values, np.maximum(np.take_along_axis(scores, indices, axis=1), 0))
    # And those scores are the float64 ones within rounding.
    exact = (wide(X)[0] - b) @ wide(W)[0].T + c
    bound = 1e-6 * X.shape[1] * (np.abs(wide(X)[0] - b) @ np.abs(wide(W)[0]).T + np.abs(c)) + 1e-43
    assert (np.abs(scores - exact) <= bound).all()
    # The support is float64's too, up to ties within rounding.
    expected = reference.encode_topk(*wide(X, W, c, b), k)
    codes = np.zeros(scores.shape)
    np.put_along_axis(codes, indices, values.astype(np.float64), axis=1)
    kth = np.sort(exact, axis=1)[:, -k, None]
    assert ((np.abs(codes - expected) <= bound) | (np.abs(exact - kth) <= 2 * bound.max(axis=1, keepdims=True))).all()


@SETTINGS
@given(problems(), st.sampled_from(["none", "zero", "each", "all"]), st.integers(0, 2**32 - 1))
def test_threshold_is_the_specification(problem, kind, seed):
    X, W, c, b = problem
    scores = encode_threshold(X, W, c, b, -np.inf)[2].reshape(len(X), len(W))
    rng = np.random.default_rng(seed)
    threshold = {
        "none": np.inf,
        "zero": 0.0,
        # Some thresholds equal a score: that one is not above it.
        "each": scores[rng.integers(0, len(X), len(W)), np.arange(len(W))],
        "all": -np.inf,
    }[kind]
    indptr, indices, values = encode_threshold(X, W, c, b, threshold, threads=2)
    actual = sp.csr_matrix((values, indices, indptr), shape=scores.shape)
    assert actual.has_canonical_format
    where = scores > threshold
    assert actual.nnz == where.sum()
    np.testing.assert_array_equal(actual.toarray(), np.where(where, scores, 0))
    again = encode_threshold(X, W, c, b, threshold, packed=pack(W), threads=1)
    assert all(left.tobytes() == right.tobytes() for left, right in zip((indptr, indices, values), again))
    np.testing.assert_array_equal(scores, scores_of(X, W, c, b))
    exact = reference.encode_threshold(*wide(X, W, c, b), 0.0)
    if kind == "zero":
        np.testing.assert_allclose(actual.toarray(), exact, rtol=1e-3, atol=1e-4 * np.abs(exact).max() + 1e-42)


@SETTINGS
@given(problems())
def test_panels_give_the_same_scores_up_to_rounding(problem):
    X, W, c, b = problem
    scores = encode_threshold(X, W, c, b, -np.inf)[2]
    panels = encode_threshold(X, None, c, b, -np.inf, packed=pack_panels(W))[2]
    size = 1e-6 * X.shape[1] * (np.abs(wide(X)[0] - b) @ np.abs(wide(W)[0]).T + np.abs(c)) + 1e-43
    assert (np.abs(scores - panels) <= size.ravel()).all()
    again = encode_threshold(X, W, c, b, -np.inf, packed=pack_panels(W))[2]
    assert panels.tobytes() == again.tobytes()


@SETTINGS
@given(problems(), st.data())
def test_batch_topk_is_the_specification(problem, data):
    X, W, c, b = problem
    k = data.draw(widths(len(W)))
    scores = encode_threshold(X, W, c, b, -np.inf)[2].reshape(len(X), len(W))
    indptr, indices, values, threshold = encode_batch_topk(X, W, c, b, k, threads=1)
    actual = sp.csr_matrix((values, indices, indptr), shape=scores.shape)
    assert actual.has_canonical_format
    chosen = reference.select_batch(scores, k)
    assert actual.nnz == chosen.sum()
    np.testing.assert_array_equal(actual.toarray(), np.where(chosen, scores, 0))
    assert threshold == (values.min() if actual.nnz == len(X) * k else 0)
    again = encode_batch_topk(X, W, c, b, k, packed=pack(W), threads=2)
    assert all(left.tobytes() == right.tobytes() for left, right in zip((indptr, indices, values), again))
    exact = reference.encode_batch_topk(*wide(X, W, c, b), k)
    size = 1e-6 * X.shape[1] * (np.abs(wide(X)[0] - b) @ np.abs(wide(W)[0]).T + np.abs(c)).max() + 1e-43
    # Up to ties within rounding, which may be on either side of the threshold.
    assert (
        (np.abs(actual.toarray() - exact) <= size) | (np.abs(exact + actual.toarray() - threshold) <= 3 * size)
    ).all()


@pytest.mark.parametrize("kind", ["alike", "few rows have all", "sample misleads", "all equal", "few positive"])
def test_batch_topk_of_many_rows(kind):
    """More rows than the sample that the first threshold comes from, which may be far off."""
    rng = np.random.default_rng(4)
    n, m, d, k = 1500, 300, 24, 7
    X, W = rng.standard_normal((n, d)).astype(np.float32), rng.standard_normal((m, d)).astype(np.float32)
    c, b = rng.standard_normal(m).astype(np.float32), np.zeros(d, np.float32)
    if kind == "few rows have all":
        X *= np.where(np.arange(n) % 100 == 50, 100, 0.01).astype(np.float32)[:, None]
    elif kind == "sample misleads":
        sample = np.linspace(0, n - 1, SAMPLE_ROWS).astype(np.int64)
        X[sample] *= 1000
    elif kind == "all equal":
        X, W, c = X * 0, W, np.ones_like(c)
    elif kind == "few positive":
        c -= 20
    scores = encode_threshold(X, W, c, b, -np.inf)[2].reshape(n, m)
    for threads in (1, 2):
        indptr, indices, values, threshold = encode_batch_topk(X, W, c, b, k, threads=threads)
        chosen = reference.select_batch(scores, k)
        expected = sp.csr_matrix(np.where(chosen, scores, 0))
        np.testing.assert_array_equal(indptr, expected.indptr)
        np.testing.assert_array_equal(indices, expected.indices)
        np.testing.assert_array_equal(values, expected.data)
        assert threshold == (0 if kind == "few positive" else expected.data.min())


@pytest.mark.parametrize("level", [0.0, 2.5, 6.0, 30.0])
def test_thresholds_that_many_or_few_scores_exceed(level):
    """Whether a score is found in a tile, alone or through a screen, it is the same."""
    rng = np.random.default_rng(8)
    n, m, d = 411, 611, 53
    X, W = rng.standard_normal((n, d)).astype(np.float32), rng.standard_normal((m, d)).astype(np.float32)
    X[rng.random(n) < 0.1] *= 1e-20
    X[7] = 1e13
    c, b = rng.standard_normal(m).astype(np.float32), rng.standard_normal(d).astype(np.float32)
    indptr, indices, values = encode_threshold(X, W, c, b, level, threads=2)
    scores = encode_topk(X, W, c, b, m)[1]
    expected = sp.csr_matrix(np.where(scores > level, scores, 0))
    np.testing.assert_array_equal(indptr, expected.indptr)
    np.testing.assert_array_equal(indices, expected.indices)
    np.testing.assert_array_equal(values, expected.data)


@SETTINGS
@given(problems(), st.data())
def test_bytes_depend_neither_on_threads_nor_on_company(problem, data):
    X, W, c, b = problem
    k = data.draw(widths(len(W)))
    packed = pack(W)
    one = encode_topk(X, W, c, b, k, packed=packed, threads=1)
    for threads in (2, 3):
        again = encode_topk(X, W, c, b, k, threads=threads)
        assert all(left.tobytes() == right.tobytes() for left, right in zip(one, again))
    row = data.draw(st.integers(0, len(X) - 1))
    alone = encode_topk(X[row : row + 1].copy(), W, c, b, k)
    assert all(left.tobytes() == right[row : row + 1].tobytes() for left, right in zip(alone, one))


def test_many_rows_in_several_blocks():
    rng = np.random.default_rng(3)
    X, W = rng.standard_normal((701, 50)).astype(np.float32), rng.standard_normal((1500, 50)).astype(np.float32)
    c, b = rng.standard_normal(1500).astype(np.float32), rng.standard_normal(50).astype(np.float32)
    indices, values = encode_topk(X, W, c, b, 17, threads=2)
    exact = (X - b).astype(np.float64) @ W.T.astype(np.float64) + c
    chosen = reference.select(exact, 17)
    assert (indices == chosen).all(axis=1).mean() > 0.99
    np.testing.assert_allclose(values.sum(axis=1), np.take_along_axis(exact, chosen, axis=1).sum(axis=1), rtol=1e-4)


@pytest.mark.parametrize("kind", ["near ties", "spikes", "long atom", "tiny rows", "huge bias", "equal atoms", "zero"])
def test_exact_where_a_screen_could_err(kind):
    """Scores that differ by a few roundings, and vectors that integers of 16 bits cannot follow closely."""
    rng = np.random.default_rng(11)
    n, m, d, k = 23, 1000, 45, 20
    X, W, c, b = rng.standard_normal((n, d)), rng.standard_normal((m, d)), np.zeros(m), np.zeros(d)
    if kind == "near ties":
        W = W[rng.integers(0, 30, m)] * (1 + 1e-6 * rng.standard_normal((m, 1)))
    elif kind == "spikes":
        X[:, 7] *= 1e6
        W[::5, 3] *= 1e5
    elif kind == "long atom":
        W[17] *= 1e7
        W[400] *= 1e-9
    elif kind == "tiny rows":
        X *= 10.0 ** rng.integers(-42, 15, (n, 1))
    elif kind == "huge bias":
        c = rng.standard_normal(m) * 1e6
        c[5] = 1e31
    elif kind == "equal atoms":
        W = np.tile(W[:1], (m, 1))
    else:
        X, W = X * (np.arange(n) % 2)[:, None], W * (np.arange(m) % 3 > 0)[:, None]
    X, W, c, b = (part.astype(np.float32) for part in (X, W, c, b))
    scores = scores_of(X, W, c, b)
    indices, values = encode_topk(X, W, c, b, k)
    np.testing.assert_array_equal(indices, reference.select(scores, k))
    np.testing.assert_array_equal(values, np.maximum(np.take_along_axis(scores, indices, axis=1), 0))


def test_rows_of_falling_and_rising_scores():
    """Every score, or none after the first, passes the bar."""
    c = np.linspace(1, 2, 2000, dtype=np.float32)
    X, W, b = np.zeros((3, 4), np.float32), np.zeros((2000, 4), np.float32), np.zeros(4, np.float32)
    for bias in (c, c[::-1].copy()):
        indices, values = encode_topk(X, W, bias, b, 9)
        np.testing.assert_array_equal(indices, reference.select(np.tile(bias, (3, 1)), 9))
        np.testing.assert_array_equal(values[0], bias[indices[0]])


def test_all_scores_equal_the_lower_columns_win():
    X, W, b = np.zeros((2, 3), np.float32), np.ones((700, 3), np.float32), np.zeros(3, np.float32)
    for level in (0.0, -0.0, 2.0, -1.0):
        indices, values = encode_topk(X, W, np.full(700, level, np.float32), b, 40)
        np.testing.assert_array_equal(indices, np.tile(np.arange(40), (2, 1)))
        assert (values == max(level, 0)).all()


def test_empty_batches():
    W, c, b = np.ones((5, 3), np.float32), np.zeros(5, np.float32), np.zeros(3, np.float32)
    indices, values = encode_topk(np.zeros((0, 3), np.float32), W, c, b, 2)
    assert indices.shape == values.shape == (0, 2)
    indptr, indices, values = encode_threshold(np.zeros((0, 3), np.float32), W, c, b, 0.0)
    assert indptr.tolist() == [0]
    assert indices.shape == values.shape == (0,)
    indptr, indices, values, threshold = encode_batch_topk(np.zeros((0, 3), np.float32), W, c, b, 2)
    assert indptr.tolist() == [0]
    assert indices.shape == values.shape == (0,)
    assert threshold == 0


def test_what_is_not_finite_is_refused():
    rng = np.random.default_rng(0)
    X, W = rng.standard_normal((40, 9)).astype(np.float32), rng.standard_normal((90, 9)).astype(np.float32)
    c, b = np.zeros(90, np.float32), np.zeros(9, np.float32)

    def spoilt(array, value):
        array = array.copy()
        array.flat[len(array.flat) // 2] = value
        return array

    for value in (np.nan, np.inf, -np.inf):
        with pytest.raises(ValueError, match="X holds NaN or infinite"):
            encode_topk(spoilt(X, value), W, c, b, 4)
        with pytest.raises(ValueError, match="encoder_bias holds NaN or infinite"):
            encode_topk(X, W, spoilt(c, value), b, 4)
        with pytest.raises(ValueError, match=r"^bias holds NaN or infinite"):
            encode_topk(X, W, c, spoilt(b, value), 4)
    with pytest.raises(FloatingPointError, match="scores hold NaN"):
        encode_topk(X, spoilt(W, np.nan), c, b, 4)
    with pytest.raises(FloatingPointError, match="scores hold NaN"):
        encode_threshold(X, spoilt(W, np.nan), c, b, np.inf)
    with pytest.raises(FloatingPointError, match="scores hold NaN"):
        encode_batch_topk(X, spoilt(W, np.nan), c, b, 4)
    with pytest.raises(ValueError, match="X holds NaN or infinite"):
        encode_batch_topk(spoilt(X, np.nan), W, c, b, 4)
    with pytest.raises(ValueError, match="threshold holds NaN"):
        encode_threshold(X, W, c, b, spoilt(c, np.nan))


def test_wrong_arguments_are_named():
    X, W = np.zeros((4, 3), np.float32), np.ones((5, 3), np.float32)
    c, b = np.zeros(5, np.float32), np.zeros(3, np.float32)
    for arguments, error, message in (
        ((X.astype(np.float64), W, c, b, 2), TypeError, "X must be float32"),
        ((X[:, :2].copy(), W, c, b, 2), ValueError, "bias must have shape 2"),
        ((X, W[:4], c, b, 2), ValueError, "encoder must have shape 5 × 3, not 4 × 3"),
        ((X, W, c, b, 6), ValueError, "k must lie between 1 and 5, not 6"),
        ((X, W, c, b, 0), ValueError, "k must lie between 1 and 5, not 0"),
        ((X[::2], W, c, b, 2), ValueError, "X must be contiguous"),
        ((X, None, c, b, 2), TypeError, "encoder must be a numpy array"),
    ):
        with pytest.raises(error, match=message):
            encode_topk(*arguments)
        with pytest.raises(error, match=message):
            encode_batch_topk(*arguments)
    with pytest.raises(TypeError, match="encoder must be a numpy array"):
        encode_threshold(X, None, c, b, 0.0)
    with pytest.raises(ValueError, match="threads must lie"):
        encode_topk(X, W, c, b, 2, threads=0)
    with pytest.raises(ValueError, match="packed must have shape"):
        encode_topk(X, W, c, b, 2, packed=np.zeros(3, np.float32))
