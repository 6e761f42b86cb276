"""The Triton kernels against the float64 specification: on a GPU where there is one, else in Triton's interpreter.

The interpreter needs milliseconds for each operation of each program, so shapes are small and examples few.
"""

import os

import benchmark_gpu
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conceptome.config.dictionaries import TopK as TopKOptions
from conceptome.dictionaries import fit
from conceptome.dictionaries.rows import ArrayRows
from conceptome.dictionaries.topk import TorchTrainer
from conceptome.dictionaries.topk import fit as fit_topk
from conceptome.dictionaries.topk_gpu import GpuTrainer
from conceptome_kernels import reference
from conceptome_kernels.training import Rates

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    # Triton asks when its functions are defined.
    os.environ["TRITON_INTERPRET"] = "1"
pytest.importorskip("triton", reason="Triton is not installed: pip install 'conceptome[gpu-test]'")

from conceptome_kernels.gpu import contingency, launch, pursuit, sparse, topk, training  # noqa: E402

pytestmark = pytest.mark.skipif(
    DEVICE == "cpu" and not launch.INTERPRETED, reason="there is no GPU, and Triton was imported to compile"
)
SETTINGS = settings(max_examples=6, deadline=None, derandomize=True)


@pytest.fixture(scope="module", autouse=True)
def dots_as_a_gpu_sums_them():
    """Every element of a product summed by itself, from the first term to the last.

    The interpreter asks NumPy's BLAS, which on some processors sums the columns at a tile's edge in another order
    than those within: equal atoms then have unequal scores, and a Gram matrix is not symmetric.
    """
    with pytest.MonkeyPatch.context() as patch:
        if launch.INTERPRETED:
            from triton.runtime import interpreter

            def create_dot(self, a, b, d, input_precision, max_num_imprecise_acc):
                left, right, total = a.data.astype(d.data.dtype), b.data.astype(d.data.dtype), d.data.copy()
                for i in range(left.shape[-1]):
                    total += left[..., i, None] * right[..., None, i, :]
                return interpreter.TensorHandle(total, d.dtype.scalar)

            patch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)
        yield


def sent(*arrays):
    """Copies on the device."""
    return [torch.from_numpy(np.array(array, order="C")).to(DEVICE) for array in arrays]


def back(*tensors):
    """Arrays of tensors."""
    return [tensor.cpu().numpy() for tensor in tensors]


def wide(*arrays):
    return [array.astype(np.float64) for array in arrays]


def dense(codes, m):
    indices, values = back(*codes)
    assert indices.dtype == np.int32
    assert values.dtype == np.float32
    assert ((indices >= 0) & (indices < m)).all()
    assert (np.diff(indices, axis=1) > 0).all()
    Z = np.zeros((len(indices), m))
    np.put_along_axis(Z, indices.astype(np.int64), values.astype(np.float64), axis=1)
    return Z


def same(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def close(actual, expected, size=None):
    """Within float32 rounding of the largest expected element, or of the given size."""
    size = np.abs(expected).max(initial=0) if size is None else size
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=2e-6 * size + 1e-40)


@st.composite
def encoders(draw):
    """Rows, an encoder, its biases and k; coarse ones are exact in float32 and full of ties."""
    n = draw(st.sampled_from([1, 2, 5]))
    d = draw(st.sampled_from([1, 3, 16, 37, 65]))
    m = draw(st.sampled_from([1, 2, 31, 33, 129, 300]))
    scale = draw(st.sampled_from([1.0, 1.0, 1e-30, 1e-41, 1e15]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if draw(st.booleans()):
        X, W = rng.integers(-2, 3, (n, d)) / 2, rng.integers(-1, 2, (m, d)) / 1.0
        c, b, scale = rng.integers(-1, 2, m) / 2, rng.integers(-1, 2, d) / 2, 1.0
    else:
        X, W = rng.standard_normal((n, d)), rng.standard_normal((m, d))
        c, b = rng.standard_normal(m) * scale, rng.standard_normal(d) * scale
    X[rng.random(n) < 0.2] = 0
    k = draw(st.sampled_from(sorted({1, min(m, 7), min(m, 33)})))
    return *((X * scale).astype(np.float32), *(part.astype(np.float32) for part in (W, c, b))), k


def check_selection(X, W, c, b, k, packed):
    """Exact for the scores that are returned, and these are float64's within rounding."""
    given_ = sent(X, W, c, b)
    indices, values = codes = topk.encode_topk(*given_, k, packed=topk.pack(given_[1]) if packed else None)
    Z = dense(codes, len(W))
    indices, values = back(indices, values)
    exact = (wide(X)[0] - b) @ wide(W)[0].T + c
    bound = 1e-6 * X.shape[1] * (np.abs(wide(X)[0] - b) @ np.abs(wide(W)[0]).T + np.abs(c)) + 1e-43
    chosen = np.take_along_axis(exact, indices.astype(np.int64), axis=1)
    assert (values >= 0).all()
    assert (np.abs(values - np.maximum(chosen, 0)) <= np.take_along_axis(bound, indices.astype(np.int64), 1)).all()
    expected = reference.encode_topk(*wide(X, W, c, b), k)
    kth = np.sort(exact, axis=1)[:, -k, None]
    assert ((np.abs(Z - expected) <= bound) | (np.abs(exact - kth) <= 2 * bound.max(axis=1, keepdims=True))).all()
    return indices, values


def all_scores(X, W, c, b):
    """Float32 scores in the kernels' own order of sums."""
    return topk.encode_threshold(*sent(X, W, c, b), -np.inf)[2].cpu().numpy().reshape(len(X), len(W))


@SETTINGS
@given(encoders())
def test_topk_is_the_specification(problem):
    X, W, c, b, k = problem
    indices, values = check_selection(X, W, c, b, k, packed=False)
    scores = all_scores(X, W, c, b)
    np.testing.assert_array_equal(indices, reference.select(scores, k))
    np.testing.assert_array_equal(values, np.maximum(np.take_along_axis(scores, indices, axis=1), 0))


@SETTINGS
@given(encoders())
def test_topk_by_way_of_bfloat16_is_the_specification(problem):
    check_selection(*problem, packed=True)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["near ties", "spikes", "long atom", "tiny rows", "equal atoms", "one tile", "huge"])
def test_topk_where_a_tile_or_the_screen_could_err(kind, packed):
    rng = np.random.default_rng(11)
    n, m, d, k = 3, 700, 21, 20
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
        X *= 10.0 ** np.array([[-42], [-30], [0]])
    elif kind == "equal atoms":
        W = np.tile(W[:1], (m, 1))
    elif kind == "one tile":
        # All that a row takes lies in one tile, which gives fewer keys than that at first.
        c[128:256] = 100
    else:
        X[1] *= 1e30
    indices, _ = check_selection(*(part.astype(np.float32) for part in (X, W, c, b)), k, packed)
    if kind == "equal atoms":
        assert (indices == np.arange(k)).all()
    if kind == "one tile":
        assert ((indices >= 128) & (indices < 256)).all()


def test_all_scores_equal_the_lower_columns_win():
    X, W, b = sent(np.zeros((2, 3), np.float32), np.ones((300, 3), np.float32), np.zeros(3, np.float32))
    for level in (0.0, -0.0, 2.0, -1.0):
        for packed in (None, topk.pack(W)):
            c = torch.full((300,), level, device=DEVICE)
            indices, values = topk.encode_topk(X, W, c, b, 40, packed=packed)
            np.testing.assert_array_equal(indices.cpu(), np.tile(np.arange(40), (2, 1)))
            assert (values == max(level, 0)).all()


def test_a_row_s_codes_do_not_depend_on_its_company():
    rng = np.random.default_rng(2)
    X, W, c, b = sent(*(rng.standard_normal(shape).astype(np.float32) for shape in ((70, 20), (150, 20), 150, 20)))
    whole = topk.encode_topk(X, W, c, b, 9)
    assert same(whole, topk.encode_topk(X, W, c, b, 9))
    assert same([part[66:67] for part in whole], topk.encode_topk(X[66:67].contiguous(), W, c, b, 9))


@SETTINGS
@given(encoders(), st.sampled_from(["none", "zero", "each", "all"]))
def test_threshold_is_the_specification(problem, kind):
    X, W, c, b, _ = problem
    given_ = sent(X, W, c, b)
    n, m = len(X), len(W)
    np.testing.assert_array_equal(topk.encode_threshold(*given_, -np.inf)[1].cpu(), np.tile(np.arange(m), n))
    scores = all_scores(X, W, c, b)
    rng = np.random.default_rng(1)
    # Some thresholds equal a score: that one is not above it.
    each = scores[rng.integers(0, n, m), np.arange(m)]
    threshold = {"none": np.inf, "zero": 0.0, "each": sent(each)[0], "all": -np.inf}[kind]
    indptr, indices, values = back(*topk.encode_threshold(*given_, threshold))
    assert (indptr.dtype, indices.dtype, values.dtype) == (np.int64, np.int32, np.float32)
    above = scores > (each if kind == "each" else threshold)
    np.testing.assert_array_equal(indptr, np.concatenate([[0], np.cumsum(above.sum(axis=1))]))
    np.testing.assert_array_equal(indices, np.nonzero(above)[1])
    np.testing.assert_array_equal(values, scores[above])
    exact = (wide(X)[0] - b) @ wide(W)[0].T + c
    np.testing.assert_allclose(scores, exact, rtol=1e-3, atol=1e-4 * np.abs(exact).max() + 1e-42)


@st.composite
def decoders(draw, sizes=(1, 2, 31, 33)):
    """Rows, codes with empty places, atoms (as many as one of the sizes) and a bias."""
    n, d = draw(st.sampled_from([1, 2, 7])), draw(st.sampled_from([1, 3, 17, 64, 100]))
    m = draw(st.sampled_from(sizes))
    k = draw(st.sampled_from(sorted({1, m, min(m, 9)})))
    scale = draw(st.sampled_from([1.0, 1.0, 1e-15, 1e15]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    indices = reference.select(rng.random((n, m)), k).astype(np.int32)
    values = np.maximum(rng.standard_normal((n, k)), 0).astype(np.float32) * np.float32(scale)
    X = (rng.standard_normal((n, d)) * scale).astype(np.float32)
    X[rng.random(n) < 0.2] = 0
    atoms = rng.standard_normal((m, d))
    atoms = (atoms / np.linalg.norm(atoms, axis=1, keepdims=True)).astype(np.float32)
    return X, indices, values, atoms, (rng.standard_normal(d) * scale).astype(np.float32)


@SETTINGS
@given(decoders())
def test_decode_and_residual(problem):
    X, _, values, atoms, bias = problem
    x, *codes = sent(*problem)
    Z = dense(codes[:2], len(atoms))
    expected = reference.decode(Z, *wide(atoms, bias))
    size = np.abs(X).max() + np.abs(bias).max() + values.sum(axis=1).max()
    close(*back(sparse.decode(*codes)), expected, size)
    residual, squares, gradient = sparse.decode_residual(x, *codes, scale=0.5)
    close(*back(residual), wide(X)[0] - expected, size)
    np.testing.assert_allclose(squares.cpu(), (wide(*back(residual))[0] ** 2).sum(axis=1), rtol=1e-6)
    assert same(sparse.decode_residual(x, *codes), (residual, squares))
    assert same([gradient], [sparse.code_gradient(residual, *codes[:3], scale=0.5)])
    in_codes = np.where(Z != 0, 0.5 * wide(*back(residual))[0] @ wide(atoms)[0].T, 0)
    close(dense([codes[0], gradient], len(atoms)), in_codes, size * np.sqrt(X.shape[1]))
    close(*back(sparse.column_sums(x)), wide(X)[0].sum(axis=0))


@SETTINGS
@given(decoders())
def test_backward(problem):
    X, indices, values, atoms, bias = problem
    inputs, error = X - bias, X[::-1].copy()
    arguments = sent(error, indices, values, atoms, inputs)
    results = sparse.sparse_backward(*arguments)
    assert same(results, sparse.sparse_backward(*arguments))
    Z = dense(arguments[1:3], len(atoms))
    in_codes = np.where(Z != 0, wide(error)[0] @ wide(atoms)[0].T, 0)
    in_atoms, in_encoder, in_encoder_bias = back(*results[:3])
    actual = dense([arguments[1], results[3]], len(atoms))
    close(actual, in_codes, np.abs(error).max() * np.sqrt(len(error[0])))
    in_w, in_c = reference.encoder_gradient(actual, wide(inputs)[0], 0.0)
    close(in_atoms, Z.T @ wide(error)[0])
    close(in_encoder, in_w)
    close(in_encoder_bias, in_c)


def test_gradients_are_autograds():
    """Of the loss of a TopK autoencoder, in float64, dense."""
    rng = np.random.default_rng(5)
    X, atoms, W, c, b = (
        rng.standard_normal(shape).astype(np.float32) for shape in ((9, 19), (57, 19), (57, 19), 57, 19)
    )
    x, *rest = sent(X, atoms, W, c, b)
    indices, values = topk.encode_topk(x, *rest[1:], 6)
    error, squares = sparse.decode_residual(x, indices, values, rest[0], rest[3])
    found = sparse.sparse_backward(-2 * error, indices, values, rest[0], x - rest[3])
    x, D, encoder, bias = (torch.from_numpy(part).double().requires_grad_() for part in (X, atoms, W, c))
    scores = (x - torch.from_numpy(b)) @ encoder.T + bias
    mask = torch.zeros_like(scores).scatter_(1, indices.cpu().long(), 1)
    loss = (x - torch.relu(scores * mask) @ D - torch.from_numpy(b)).square().sum()
    loss.backward()
    assert float(squares.sum()) == pytest.approx(float(loss.detach()), rel=1e-5)
    for actual, leaf in zip(found, (D, encoder, bias)):
        close(actual.cpu().numpy(), leaf.grad.numpy())


@SETTINGS
@given(decoders(sizes=(1, 2, 5)), st.booleans(), st.integers(0, 2**32 - 1))
def test_update(problem, with_aux, seed):
    X, indices, values, atoms, bias = problem
    X, values, bias = X / max(np.abs(X).max(), 1e-30), values / max(values.max(initial=0), 1e-30), bias * 0
    m, d = atoms.shape
    rng = np.random.default_rng(seed)
    state = [atoms, rng.standard_normal((m, d)), rng.standard_normal(m)]
    state = [[value, 0.1 * rng.standard_normal(value.shape), 0.1 * rng.random(value.shape)] for value in state]
    state = [[part.astype(np.float32) for part in each] for each in state]
    rates = Rates(0.9, 0.999, 0.01, 1e-3)
    numbers = (rates.keep_first, rates.keep_second, rates.size, rates.epsilon)
    inputs = X - bias

    def part(order, scale):
        error, *codes = sent(X[order], indices, values, atoms)
        gradient = sparse.code_gradient(error, *codes, scale=scale)
        return training.Part(sparse.by_atom(*codes[:2], gradient, m), error, scale), gradient.cpu().numpy()

    terms = [part(slice(None, None, -1), -0.5), *([part(slice(None), 0.25)] if with_aux else [])]
    Z = np.zeros((len(X), m))
    np.put_along_axis(Z, indices.astype(np.int64), values.astype(np.float64), axis=1)
    in_atoms = sum(Z.T @ (term.scale * wide(*back(term.error))[0]) for term, _ in terms)
    in_codes = np.zeros(Z.shape)
    for _, gradient in terms:
        np.put_along_axis(in_codes, indices.astype(np.int64), _at(in_codes, indices) + gradient, axis=1)
    in_encoder, in_encoder_bias = reference.encoder_gradient(in_codes, wide(inputs)[0], 0.0)
    expected = [
        *reference.update_atoms(*wide(*state[0]), in_atoms, *numbers),
        *reference.adam(*wide(*state[1]), in_encoder, *numbers),
        *reference.adam(*wide(*state[2]), in_encoder_bias, *numbers),
    ]
    in_bias = -in_encoder_bias @ wide(state[1][0])[0]
    outcomes = []
    for _ in range(2):
        moved = [training.Moved(*sent(*each)) for each in state]
        packed = topk.pack(moved[1].value)
        through = training.update(
            terms[0][0], terms[1][0] if with_aux else None, sent(inputs)[0], *moved, packed, rates
        )
        outcomes.append([*(getattr(each, name) for each in moved for name in ("value", "first", "second")), through])
        again = topk.pack(moved[1].value)
        assert same((packed.rounded, packed.length, packed.error), (again.rounded, again.length, again.error))
    assert same(*outcomes)
    *arrays, through = back(*outcomes[0])
    np.testing.assert_allclose(through, in_bias, rtol=1e-3, atol=1e-4 * np.abs(in_encoder_bias).sum() + 1e-30)
    for array, wanted in zip(arrays, expected, strict=True):
        np.testing.assert_allclose(array, wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(arrays[0], axis=1), 1, rtol=1e-5)


def _at(Z, indices):
    return np.take_along_axis(Z, indices.astype(np.int64), axis=1)


@st.composite
def pursuits(draw):
    """Rows, unit atoms, k and a Gram budget; some rows are zero, some atoms copies, some products exact."""
    n, d = draw(st.sampled_from([1, 5])), draw(st.sampled_from([1, 2, 8, 33]))
    m = draw(st.sampled_from([1, 2, 24, 31, 33, 130]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if draw(st.booleans()):
        X = rng.integers(-4, 5, (n, d)) / 2
        D = np.eye(d)[rng.integers(0, d, m)] * rng.choice([-1.0, 1.0], (m, 1))
    else:
        X, D = rng.standard_normal((n, d)), rng.standard_normal((m, d))
        D /= np.linalg.norm(D, axis=1, keepdims=True)
    X[rng.random(n) < 0.2] = 0
    X *= draw(st.sampled_from([1.0, 1.0, 1e15, 1e-15, 1e-30]))
    k = draw(st.sampled_from(sorted({1, min(m, 5), min(m, 3)})))
    return X.astype(np.float32), D.astype(np.float32), k, draw(st.sampled_from([0, pursuit.GRAM_BUDGET]))


def agree(actual, expected, X, D):
    """What is left is as small as the reference's; most rows' codes are the same (near-ties may fall otherwise)."""
    scale = np.linalg.norm(X.astype(np.float64), axis=1)
    left, best = (np.linalg.norm(X - Z @ D, axis=1) for Z in (actual, expected))
    alike = (np.abs(actual - expected) <= 1e-2 * (scale[:, None] + np.abs(expected))).all(axis=1)
    assert (left[alike] <= best[alike] + 2e-3 * scale[alike]).all()
    assert (left <= best + 0.5 * scale).all()
    assert alike.mean() >= 0.5


@SETTINGS
@given(pursuits(), st.integers(1, 6))
def test_icfl(problem, columns):
    X, D, _, budget = problem
    rounds = [min(columns, len(D))] * 2 + [1]
    actual = dense(pursuit.icfl_pursuit(*sent(X, D), rounds, gram_budget=budget), len(D))
    agree(actual, reference.icfl_pursuit(*wide(X, D), 0.0, rounds)[0], X, D)


@SETTINGS
@given(pursuits(), st.booleans())
def test_matching_pursuit(problem, nonnegative):
    X, D, k, budget = problem
    arguments = {"gram_budget": budget, "nonnegative": nonnegative}
    actual = dense(pursuit.matching_pursuit(*sent(X, D), k, **arguments), len(D))
    agree(actual, reference.matching_pursuit(*wide(X, D), 0.0, k, nonnegative), X, D)
    assert not nonnegative or (actual >= 0).all()


@SETTINGS
@given(pursuits())
def test_orthogonal_matching_pursuit(problem):
    X, D, k, budget = problem
    actual = dense(pursuit.orthogonal_matching_pursuit(*sent(X, D), k, gram_budget=budget), len(D))
    agree(actual, reference.orthogonal_matching_pursuit(*wide(X, D), 0.0, k), X, D)


@pytest.mark.parametrize("budget", [0, pursuit.GRAM_BUDGET])
def test_ties_dependent_atoms_and_repeats(budget):
    D = np.repeat(np.eye(2, dtype=np.float32), 40, axis=0)
    X = np.array([[1.0, 3.0], [2.0, 2.0]], dtype=np.float32)
    indices, values = pursuit.matching_pursuit(*sent(X, D), 2, gram_budget=budget)
    assert indices.tolist() == [[0, 40], [0, 40]]
    assert values.tolist() == [[1, 3], [2, 2]]
    assert pursuit.orthogonal_matching_pursuit(*sent(X, D), 2, gram_budget=budget)[0].tolist() == [[0, 40], [0, 40]]
    rng = np.random.default_rng(6)
    D = np.repeat(rng.standard_normal((3, 20)), 4, axis=0)
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    D, X = D.astype(np.float32), rng.standard_normal((3, 20)).astype(np.float32)
    arguments = sent(X, D)
    codes = pursuit.icfl_pursuit(*arguments, [4, 4, 4], gram_budget=budget)
    assert same(codes, pursuit.icfl_pursuit(*arguments, [4, 4, 4], gram_budget=budget))
    expected, _ = reference.icfl_pursuit(*wide(X, D), 0.0, [4, 4, 4])
    np.testing.assert_allclose(dense(codes, 12) @ D, expected @ D, atol=2e-3)
    Z = dense(pursuit.orthogonal_matching_pursuit(*arguments, 12, gram_budget=budget), 12)
    best = np.linalg.lstsq(wide(D)[0].T, wide(X)[0].T, rcond=1e-3)[0].T
    np.testing.assert_allclose(Z @ D, best @ D, atol=1e-4)
    assert (np.count_nonzero(Z, axis=1) == 3).all()


def test_gram_matrix():
    D = np.random.default_rng(7).standard_normal((131, 77)).astype(np.float32)
    gram = pursuit.gram_matrix(*sent(D))
    np.testing.assert_allclose(gram.cpu(), wide(D)[0] @ wide(D)[0].T, rtol=1e-4, atol=1e-4)
    assert torch.equal(gram, gram.T)


@SETTINGS
@given(st.integers(1, 30), st.sampled_from([1, 2, 5]), st.sampled_from([1, 3, 17]), st.integers(1, 20), st.booleans())
def test_tables_of_many_thresholds(n, m, c, t, shared):
    rng = np.random.default_rng(n * m * c * t)
    Z = (rng.integers(-3, 4, (n, m)) / 2).astype(np.float32)
    labels = rng.random((n, c)) < 0.4
    thresholds = np.sort(np.round(rng.random((1 if shared else m, t)) * 4) / 4, axis=1).astype(np.float32)
    columns, rows = np.nonzero(Z.T)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(columns, minlength=m))])
    arguments = (indptr, rows.astype(np.int32), Z.T[columns, rows], labels, thresholds[0] if shared else thresholds)
    actual = back(*contingency.contingency(*sent(*arguments)))
    expected = reference.contingency(Z, labels, np.broadcast_to(thresholds, (m, t)))
    np.testing.assert_array_equal(actual[0], expected[0])
    np.testing.assert_array_equal(actual[1], expected[1])


def test_training_takes_the_steps_of_the_cpu():
    """AuxK and a restored state included."""
    rng = np.random.default_rng(3)
    m, d, k = 14, 9, 3
    atoms = rng.standard_normal((m, d)).astype(np.float32)
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    first = {
        "atoms": atoms,
        "encoder": atoms.copy(),
        "encoder_bias": np.zeros(m, np.float32),
        "bias": 0.1 * rng.standard_normal(d).astype(np.float32),
    }
    options = TopKOptions(method="topk", m=m, k=k, k_aux=2, aux_coefficient=0.5)
    mine, theirs, restored = (
        new({name: value.copy() for name, value in first.items()}, options, *where)
        for new, where in ((GpuTrainer, [DEVICE]), (TorchTrainer, []), (GpuTrainer, [DEVICE]))
    )
    for number in range(2):
        x, dead = rng.standard_normal((5, d)).astype(np.float32), rng.random(m) < 0.3
        outcomes = []
        for trainer in (mine, theirs):
            trainer.optimiser.learning_rate = 0.01
            outcomes.append(trainer.step(x, dead, number))
        assert outcomes[0][0] == pytest.approx(outcomes[1][0], rel=1e-4)
        np.testing.assert_array_equal(outcomes[0][1], outcomes[1][1])
    mine.state()
    for name, value in theirs.parameters.items():
        # Adam gives a gradient that is all rounding the size of any other.
        near = np.abs(mine.parameters[name] - value) <= 1e-4
        assert near.mean() > 0.99, name
    for name, value in mine.parameters.items():
        restored.parameters[name][...] = value
        for moment, saved in zip(restored.optimiser.moments[name], mine.optimiser.moments[name]):
            moment[...] = saved
    restored.optimiser.steps = mine.optimiser.steps
    restored.optimiser.learning_rate = 0.01
    restored.restore({})
    assert mine.step(x, dead, 2)[0] == restored.step(x, dead, 2)[0]
    for trainer in (mine, restored):
        trainer.state()
    for name, value in mine.parameters.items():
        assert value.tobytes() == restored.parameters[name].tobytes()


def test_fit_takes_its_parameters_from_the_device():
    X = np.random.default_rng(4).standard_normal((20, 4)).astype(np.float32)
    options = TopKOptions(method="topk", m=6, k=2, steps=3, batch_size=4)
    # Not "cpu", which stands for the CPU's own kernels.
    on_device, on_cpu = (fit_topk(ArrayRows(X), options, 0, device=device) for device in (f"{DEVICE}:0", "cpu"))
    assert on_device[1]["device"] == f"{DEVICE}:0"
    assert on_device[1]["fvu"] == pytest.approx(on_cpu[1]["fvu"], rel=1e-3)
    for name, value in on_cpu[0].items():
        np.testing.assert_allclose(on_device[0][name], value, atol=1e-3, err_msg=name)


@pytest.mark.skipif(DEVICE == "cpu", reason="there is no GPU")
def test_fit_on_a_gpu():
    X = np.random.default_rng(4).standard_normal((2000, 32)).astype(np.float32)
    one, other = (fit("topk", X, m=64, k=8, steps=100, batch_size=256, device=DEVICE) for _ in range(2))
    assert one.parameters["atoms"].tobytes() == other.parameters["atoms"].tobytes()
    on_cpu = fit("topk", X, m=64, k=8, steps=100, batch_size=256)
    assert one.card["training"]["fvu"] == pytest.approx(on_cpu.card["training"]["fvu"], rel=0.02)


def test_the_benchmark_s_works_run(monkeypatch):
    monkeypatch.setattr(benchmark_gpu, "ROUNDS", 2)
    works = benchmark_gpu.works(benchmark_gpu.Setting(d=12, m=40, k=3, rows=4), DEVICE)
    for name, work in works.items():
        assert work.bound(benchmark_gpu.Peaks(1e12, 1e13, 1e11)) > 0
        if not name.endswith("torch.compile"):
            work.call()


def test_empty_batches():
    W, c, b = sent(np.ones((5, 3), np.float32), np.zeros(5, np.float32), np.zeros(3, np.float32))
    X = torch.zeros((0, 3), device=DEVICE)
    for packed in (None, topk.pack(W)):
        assert [part.shape for part in topk.encode_topk(X, W, c, b, 2, packed=packed)] == [(0, 2), (0, 2)]
    assert [part.tolist() for part in topk.encode_threshold(X, W, c, b, 0.0)] == [[0], [], []]
    indices, values = torch.zeros((0, 2), dtype=torch.int32, device=DEVICE), torch.zeros((0, 2), device=DEVICE)
    assert sparse.decode(indices, values, W, b).shape == (0, 3)
    assert [part.shape for part in sparse.decode_residual(X, indices, values, W, b)] == [(0, 3), (0,)]
    *in_parameters, in_codes = sparse.sparse_backward(X, indices, values, W, X)
    assert not any(part.any() for part in in_parameters)
    assert in_codes.shape == (0, 2)
    for codes in (
        pursuit.icfl_pursuit(X, W, [2]),
        pursuit.matching_pursuit(X, W, 2),
        pursuit.orthogonal_matching_pursuit(X, W, 2),
    ):
        assert [part.shape for part in codes] == [(0, 2), (0, 2)]


def test_what_is_not_finite_is_refused():
    rng = np.random.default_rng(0)
    X, W, c, b = sent(*(rng.standard_normal(shape).astype(np.float32) for shape in ((4, 9), (30, 9), 30, 9)))

    def spoilt(tensor, value):
        tensor = tensor.clone()
        tensor.view(-1)[tensor.numel() // 2] = value
        return tensor

    for value in (np.nan, np.inf):
        with pytest.raises(ValueError, match="X holds NaN or infinite"):
            topk.encode_topk(spoilt(X, value), W, c, b, 4)
        with pytest.raises(ValueError, match="encoder_bias holds NaN or infinite"):
            topk.encode_topk(X, W, spoilt(c, value), b, 4)
        with pytest.raises(ValueError, match=r"^bias holds NaN or infinite"):
            topk.encode_threshold(X, W, c, spoilt(b, value), 0.0)
        with pytest.raises(ValueError, match="residual holds NaN or infinite"):
            pursuit.matching_pursuit(spoilt(X, value), W, 1)
    with pytest.raises(FloatingPointError, match="scores hold NaN"):
        topk.encode_topk(X, spoilt(W, np.nan), c, b, 4)
    with pytest.raises(FloatingPointError, match="scores hold NaN"):
        topk.encode_topk(X, spoilt(W, np.nan), c, b, 4, packed=topk.pack(spoilt(W, np.nan)))
    with pytest.raises(FloatingPointError, match="scores hold NaN"):
        topk.encode_threshold(X, spoilt(W, np.nan), c, b, np.inf)
    with pytest.raises(ValueError, match="threshold holds NaN"):
        topk.encode_threshold(X, W, c, b, spoilt(c, np.nan))


def test_wrong_arguments_are_named():
    X, W, c, b = sent(*(np.ones(shape, np.float32) for shape in ((4, 3), (5, 3), 5, 3)))
    for arguments, error, message in (
        ((X.double(), W, c, b, 2), TypeError, "X must be float32, not float64"),
        ((X[:, :2].contiguous(), W, c, b, 2), ValueError, "bias must have shape 2"),
        ((X, W[:4], c, b, 2), ValueError, "encoder must have shape 5 × 3, not 4 × 3"),
        ((X, W, c, b, 6), ValueError, "k must lie between 1 and 5, not 6"),
        ((X[::2], W, c, b, 2), ValueError, "X must be contiguous"),
        ((X, W.cpu().numpy(), c, b, 2), TypeError, "encoder must be a torch tensor"),
        ((X, W.to("meta"), c, b, 2), ValueError, "encoder must be on .*, not on meta"),
    ):
        with pytest.raises(error, match=message):
            topk.encode_topk(*arguments)
    indices, values = torch.zeros((4, 1), dtype=torch.int32, device=DEVICE), torch.ones((4, 1), device=DEVICE)
    with pytest.raises(ValueError, match="indices must lie between 0 and 4"):
        sparse.decode(indices + 5, values, W, b)
    with pytest.raises(ValueError, match="values must have shape 4 × 1"):
        sparse.decode(indices, values[:2], W, b)
    with pytest.raises(ValueError, match="inputs must have shape 4 × 3"):
        sparse.sparse_backward(X, indices, values, W, X[:2])
    with pytest.raises(ValueError, match="at least one round"):
        pursuit.icfl_pursuit(X, W, [])
    with pytest.raises(ValueError, match="gram must have shape 5 × 5"):
        pursuit.matching_pursuit(X, W, 1, gram=W)
    labels = torch.ones((4, 1), dtype=torch.bool, device=DEVICE)
    indptr, rows = torch.tensor([0, 1], device=DEVICE), torch.zeros(1, dtype=torch.int32, device=DEVICE)
    with pytest.raises(ValueError, match="thresholds must ascend"):
        contingency.contingency(indptr, rows, values[0], labels, -b[:1])
    with pytest.raises(ValueError, match="rows must lie between 0 and 3"):
        contingency.contingency(indptr, rows + 4, values[0], labels, b[:1])
