"""Decoding, gradients and the fused update against the float64 specification, in every variant."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conceptome_kernels import reference
from conceptome_kernels.sparse import (
    by_atom,
    by_atom_csr,
    code_gradient,
    code_gradient_csr,
    column_sums,
    decode,
    decode_residual,
    decode_residual_csr,
    sparse_backward,
)
from conceptome_kernels.topk import encode_topk, pack
from conceptome_kernels.training import Moved, Part, Rates, update

pytestmark = pytest.mark.usefixtures("variant")
SETTINGS = settings(max_examples=25, deadline=None, derandomize=True)


@st.composite
def problems(draw):
    """Draw rows, codes with empty places, atoms and a bias."""
    n = draw(st.sampled_from([1, 2, 7, 40]))
    d = draw(st.sampled_from([1, 3, 16, 17, 63, 64, 100, 335, 400]))
    m = draw(st.sampled_from([1, 2, 31, 33, 150]))
    k = draw(st.sampled_from(sorted({1, m, draw(st.integers(1, m))})))
    scale = draw(st.sampled_from([1.0, 1.0, 1e-15, 1e15]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    indices = reference.select(rng.random((n, m)), k).astype(np.int32)
    values = np.maximum(rng.standard_normal((n, k)), 0).astype(np.float32) * np.float32(scale)
    X = (rng.standard_normal((n, d)) * scale).astype(np.float32)
    atoms = rng.standard_normal((m, d))
    atoms = (atoms / np.linalg.norm(atoms, axis=1, keepdims=True)).astype(np.float32)
    bias = (rng.standard_normal(d) * scale).astype(np.float32)
    return X, indices, values, atoms, bias


@st.composite
def ragged_problems(draw):
    """Draw rows, CSR codes with any number per row, some of them 0, atoms and a bias."""
    X, _, _, atoms, bias = draw(problems())
    n, m = len(X), len(atoms)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    share = draw(st.sampled_from([0.0, 0.1, 0.5, 1.0])) * rng.choice([0.0, 0.3, 1.0], (n, 1))
    rows, columns = np.nonzero(rng.random((n, m)) < share)
    indptr = np.searchsorted(rows, np.arange(n + 1))
    values = np.maximum(rng.standard_normal(len(rows)) + 0.5, 0).astype(np.float32) * max(np.abs(X).max(), 1e-20)
    return X, indptr.astype(np.int64), columns.astype(np.int32), values.astype(np.float32), atoms, bias


def dense(indices, values, m):
    Z = np.zeros((len(indices), m))
    np.put_along_axis(Z, indices.astype(np.int64), values.astype(np.float64), axis=1)
    return Z


def close(actual, expected, size=None):
    """Within float32 rounding of the largest expected element, or of the given size."""
    size = np.abs(expected).max(initial=0) if size is None else size
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=2e-6 * size + 1e-40)


def wide(*arrays):
    return [array.astype(np.float64) for array in arrays]


def same(left, right):
    return all(a.tobytes() == b.tobytes() for a, b in zip(left, right, strict=True))


@SETTINGS
@given(problems())
def test_decode_and_residual(problem):
    X, indices, values, atoms, bias = problem
    Z = dense(indices, values, len(atoms))
    expected = reference.decode(Z, *wide(atoms, bias))
    size = np.abs(X).max() + np.abs(bias).max() + values.sum(axis=1).max()
    close(decode(indices, values, atoms, bias), expected, size)
    residual, squares = decode_residual(X, indices, values, atoms, bias)
    close(residual, wide(X)[0] - expected, size)
    np.testing.assert_allclose(squares, (wide(residual)[0] ** 2).sum(axis=1), rtol=1e-5)
    together = decode_residual(X, indices, values, atoms, bias, scale=0.5)
    assert same(together, (residual, squares, code_gradient(residual, indices, values, atoms, scale=0.5)))
    close(column_sums(X), wide(X)[0].sum(axis=0))


@SETTINGS
@given(ragged_problems(), st.integers(0, 2**32 - 1))
def test_csr_codes(problem, seed):
    X, indptr, indices, values, atoms, bias = problem
    m = len(atoms)
    Z = sp.csr_matrix((values, indices, indptr), shape=(len(X), m))
    exact = Z.astype(np.float64).toarray()
    size = np.abs(X).max() + np.abs(bias).max() + exact.sum(axis=1).max()
    codes = (indptr, indices, values)
    residual, squares, gradient = decode_residual_csr(X, *codes, atoms, bias, scale=0.5, threads=1)
    close(residual, wide(X)[0] - reference.decode(exact, *wide(atoms, bias)), size)
    np.testing.assert_allclose(squares, (wide(residual)[0] ** 2).sum(axis=1), rtol=1e-5)
    rows = np.repeat(np.arange(len(X)), np.diff(indptr))
    expected = np.where(values != 0, 0.5 * (wide(residual)[0] @ wide(atoms)[0].T)[rows, indices], 0)
    close(gradient, expected, np.abs(residual).max() * np.sqrt(X.shape[1]))
    assert same(decode_residual_csr(X, *codes, atoms, bias, scale=0.5, threads=2), (residual, squares, gradient))
    assert same(decode_residual_csr(X, *codes, atoms, bias), (residual, squares))
    weights = np.random.default_rng(seed).standard_normal(len(values)).astype(np.float32)
    found = by_atom_csr(*codes, weights, m)
    active = values != 0
    order = np.lexsort((rows[active], indices[active]))
    np.testing.assert_array_equal(found.offsets, np.searchsorted(indices[active][order], np.arange(m + 1)))
    np.testing.assert_array_equal(found.rows, rows[active][order])
    np.testing.assert_array_equal(found.values, values[active][order])
    np.testing.assert_array_equal(found.gradient, weights[active][order])


@SETTINGS
@given(problems())
def test_csr_and_fixed_width_give_the_same_bytes(problem):
    X, indices, values, atoms, bias = problem
    n, k = indices.shape
    fixed = decode_residual(X, indices, values, atoms, bias, scale=-2.0)
    codes = (np.arange(n + 1, dtype=np.int64) * k, indices.ravel(), values.ravel())
    assert same(fixed, decode_residual_csr(X, *codes, atoms, bias, scale=-2.0))
    for threads in (1, 2):
        assert fixed[2].tobytes() == code_gradient_csr(fixed[0], *codes, atoms, scale=-2.0, threads=threads).tobytes()
    left = by_atom(indices, values, fixed[2], len(atoms))
    right = by_atom_csr(*codes, fixed[2].ravel(), len(atoms))
    assert same(vars(left).values(), vars(right).values())


@SETTINGS
@given(problems())
def test_backward(problem):
    X, indices, values, atoms, bias = problem
    m, inputs = len(atoms), X - bias
    error = X[::-1].copy()
    Z = dense(indices, values, m)
    in_atoms, in_encoder, in_encoder_bias, in_codes = sparse_backward(error, indices, values, atoms, inputs)
    expected = np.where(Z != 0, wide(error)[0] @ wide(atoms)[0].T, 0)
    close(dense(indices, in_codes, m), expected, np.abs(error).max() * np.sqrt(len(error[0])))
    in_w, in_c = reference.encoder_gradient(dense(indices, in_codes, m), wide(inputs)[0], 0.0)
    close(in_atoms, Z.T @ wide(error)[0])
    close(in_encoder, in_w)
    close(in_encoder_bias, in_c, np.abs(in_codes).sum())


@SETTINGS
@given(problems())
def test_bytes_depend_neither_on_threads_nor_on_company(problem):
    X, indices, values, atoms, bias = problem
    results = [
        (
            decode(indices, values, atoms, bias, threads=threads),
            *decode_residual(X, indices, values, atoms, bias, threads=threads),
            *sparse_backward(X, indices, values, atoms, X - bias, threads=threads),
            column_sums(X, threads=threads),
        )
        for threads in (1, 2)
    ]
    assert same(*results)
    alone = decode_residual(X[-1:].copy(), indices[-1:].copy(), values[-1:].copy(), atoms, bias)
    assert same(alone, [part[-1:] for part in results[0][1:3]])


def test_gradients_are_autograds():
    """Of the loss of a TopK autoencoder, in float64, dense."""
    rng = np.random.default_rng(5)
    X, atoms, W = (rng.standard_normal(shape).astype(np.float32) for shape in ((23, 19), (57, 19), (57, 19)))
    c, b = rng.standard_normal(57).astype(np.float32), rng.standard_normal(19).astype(np.float32)
    indices, values = encode_topk(X, W, c, b, 6)
    error, squares = decode_residual(X, indices, values, atoms, b)
    in_atoms, in_encoder, in_encoder_bias, _ = sparse_backward(-2 * error, indices, values, atoms, X - b)
    x, D, encoder, bias = (torch.from_numpy(part).double().requires_grad_() for part in (X, atoms, W, c))
    scores = (x - torch.from_numpy(b)) @ encoder.T + bias
    mask = torch.zeros_like(scores).scatter_(1, torch.from_numpy(indices.astype(np.int64)), 1)
    loss = (x - torch.relu(scores * mask) @ D - torch.from_numpy(b)).square().sum()
    loss.backward()
    assert squares.sum() == pytest.approx(float(loss.detach()), rel=1e-5)
    for actual, leaf in ((in_atoms, D), (in_encoder, encoder), (in_encoder_bias, bias)):
        close(actual, leaf.grad.numpy())


@SETTINGS
@given(problems(), st.booleans(), st.integers(0, 2**32 - 1))
def test_update(problem, with_aux, seed):
    X, indices, values, atoms, bias = problem
    X, values, bias = X / max(np.abs(X).max(), 1e-30), values / max(values.max(initial=0), 1e-30), bias * 0
    n, (m, d) = len(X), atoms.shape
    rng = np.random.default_rng(seed)
    state = {"atoms": atoms, "encoder": rng.standard_normal((m, d)), "encoder_bias": rng.standard_normal(m)}
    state = {
        name: Moved(
            value.astype(np.float32),
            0.1 * rng.standard_normal(value.shape).astype(np.float32),
            0.1 * rng.random(value.shape).astype(np.float32),
        )
        for name, value in state.items()
    }
    rates = Rates(0.9, 0.999, 0.01, 1e-3)
    numbers = (rates.keep_first, rates.keep_second, rates.size, rates.epsilon)
    inputs = X - bias

    def part(order, scale):
        error = X[order].copy()
        gradient = code_gradient(error, indices, values, atoms, scale=scale)
        return Part(by_atom(indices, values, gradient, m), error, scale), gradient

    terms = [part(slice(None, None, -1), -0.5)]
    if with_aux:
        terms.append(part(slice(None), 0.25))
    Z = dense(indices, values, m)
    in_atoms = sum(Z.T @ (term.scale * wide(term.error)[0]) for term, _ in terms)
    in_codes = sum(dense(indices, gradient, m) for _, gradient in terms)
    in_encoder, in_encoder_bias = reference.encoder_gradient(in_codes, wide(inputs)[0], 0.0)
    expected = [
        *reference.update_atoms(*wide(*_parts(state["atoms"])), in_atoms, *numbers),
        *reference.adam(*wide(*_parts(state["encoder"])), in_encoder, *numbers),
        *reference.adam(*wide(*_parts(state["encoder_bias"])), in_encoder_bias, *numbers),
    ]
    in_bias = -in_encoder_bias @ wide(state["encoder"].value)[0]
    outcomes = []
    for threads in (1, 2):
        copies = {name: Moved(*(array.copy() for array in _parts(moved))) for name, moved in state.items()}
        packed = pack(copies["encoder"].value)
        actual = update(
            terms[0][0], terms[1][0] if with_aux else None, inputs, *copies.values(), packed, rates, threads=threads
        )
        arrays = [array for moved in copies.values() for array in _parts(moved)]
        outcomes.append([*arrays, packed, actual])
        assert same([packed], [pack(copies["encoder"].value)])
        np.testing.assert_allclose(actual, in_bias, rtol=1e-3, atol=1e-5 * n * np.abs(in_encoder_bias).sum() + 1e-30)
        for array, wanted in zip(arrays, expected, strict=True):
            np.testing.assert_allclose(array, wanted, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(copies["atoms"].value, axis=1), 1, rtol=1e-5)
    assert same(*outcomes)


def _parts(moved):
    return moved.value, moved.first, moved.second


def test_empty_batches():
    indices, values = np.zeros((0, 2), np.int32), np.zeros((0, 2), np.float32)
    atoms, bias, X = np.ones((4, 3), np.float32), np.zeros(3, np.float32), np.zeros((0, 3), np.float32)
    assert decode(indices, values, atoms, bias).shape == (0, 3)
    assert [part.shape for part in decode_residual(X, indices, values, atoms, bias)] == [(0, 3), (0,)]
    codes = (np.zeros(1, np.int64), indices[:, 0], values[:, 0])
    shapes = [part.shape for part in decode_residual_csr(X, *codes, atoms, bias, scale=1.0)]
    assert shapes == [(0, 3), (0,), (0,)]
    assert by_atom_csr(*codes, values[:, 0], 4).offsets.tolist() == [0] * 5
    in_atoms, in_encoder, in_encoder_bias, in_codes = sparse_backward(X, indices, values, atoms, X)
    assert not in_atoms.any()
    assert not in_encoder.any()
    assert not in_encoder_bias.any()
    assert in_codes.shape == (0, 2)


def test_wrong_arguments_are_named():
    indices, values = np.zeros((2, 1), np.int32), np.ones((2, 1), np.float32)
    atoms, bias, X = np.ones((4, 3), np.float32), np.zeros(3, np.float32), np.zeros((2, 3), np.float32)
    for arguments, error, message in (
        ((indices.astype(np.int64), values, atoms, bias), TypeError, "indices must be int32"),
        ((indices, values[:1], atoms, bias), ValueError, "values must have shape 2 × 1"),
        ((indices + np.int32(4), values, atoms, bias), ValueError, "indices must lie between 0 and 3"),
        ((indices - np.int32(1), values, atoms, bias), ValueError, "indices must lie between 0 and 3"),
        ((indices, values, atoms.T, bias), ValueError, "atoms must be contiguous"),
        ((indices, values, atoms, bias[:2]), ValueError, "bias must have shape 3"),
    ):
        with pytest.raises(error, match=message):
            decode(*arguments)
    with pytest.raises(ValueError, match="X must have shape 2 × 3"):
        decode_residual(X[:1], indices, values, atoms, bias)
    with pytest.raises(ValueError, match="error must have shape 2 × 3"):
        sparse_backward(X[:1], indices, values, atoms, X)
    with pytest.raises(ValueError, match="inputs must have shape 2 × 3"):
        sparse_backward(X, indices, values, atoms, X[:1])
    indptr, indices, values = np.array([0, 1, 1]), indices[:1, 0], values[:1, 0]
    for codes, error, message in (
        ((indptr.astype(np.int32), indices, values), TypeError, "indptr must be int64"),
        ((indptr[:0], indices, values), ValueError, "indptr must rise from 0 to the 1 indices"),
        ((indptr + 1, indices, values), ValueError, "indptr must rise from 0"),
        ((np.array([0, 2, 1]), indices, values), ValueError, "indptr must rise from 0"),
        ((indptr, indices, values[:0]), ValueError, "values must have shape 1"),
        ((indptr, indices + np.int32(4), values), ValueError, "indices must lie between 0 and 3"),
    ):
        with pytest.raises(error, match=message):
            decode_residual_csr(X, *codes, atoms, bias)
        with pytest.raises(error, match=message):
            by_atom_csr(*codes, values, 4)
    with pytest.raises(ValueError, match="X must have shape 2 × 3"):
        decode_residual_csr(X[:1], indptr, indices, values, atoms, bias)
    with pytest.raises(ValueError, match="gradient must have shape 1"):
        by_atom_csr(indptr, indices, values, values[:0], 4)
