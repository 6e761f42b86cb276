"""The fast code against the float64 specification, over shapes and inputs that hypothesis makes up."""

import numpy as np
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conceptome.dictionaries.pursuit import plan, pursue, solve
from conceptome.dictionaries.selection import largest
from conceptome.dictionaries.sparse import Batch
from conceptome.dictionaries.topk import encode, loss_and_gradients
from conceptome_kernels import reference

SETTINGS = settings(max_examples=40, deadline=None, derandomize=True)
# Halves are exact in float32 and float64, and coarse enough that ties abound.
COARSE = st.integers(-4, 4).map(lambda value: value / 2)


@st.composite
def problems(draw, coarse=None):
    """Draw rows, unit atoms and a budget; some rows may be zero, some atoms may be copies of others."""
    n, d = draw(st.sampled_from([1, 2, 9])), draw(st.integers(1, 8))
    m = draw(st.integers(1, 24))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if coarse if coarse is not None else draw(st.booleans()):
        # Signed unit vectors: every product is exact, so that ties are ties in both precisions.
        X = rng.integers(-4, 5, (n, d)) / 2
        D = np.eye(d)[rng.integers(0, d, m)] * rng.choice([-1.0, 1.0], (m, 1))
    else:
        X = rng.standard_normal((n, d))
        D = rng.standard_normal((m, d))
        D /= np.linalg.norm(D, axis=1, keepdims=True)
    X[rng.random(n) < 0.2] = 0
    k = draw(st.sampled_from(sorted({1, m, draw(st.integers(1, m))})))
    return X.astype(np.float32), D.astype(np.float32), k


def close(actual, expected, scale=1.0):
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5 * max(scale, 1e-30))


@SETTINGS
@given(st.data())
def test_selection_is_exact_with_ties(data):
    n, m = data.draw(st.sampled_from([1, 3, 17])), data.draw(st.sampled_from([1, 2, 37, 256, 700]))
    k = data.draw(st.integers(1, min(m, 40)))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    levels = data.draw(st.sampled_from([1, 2, 50, 10**6]))
    values = (rng.integers(-levels, levels, (n, m)) / 8).astype(np.float32)
    np.testing.assert_array_equal(largest(values, k), reference.select(values, k))


@SETTINGS
@given(problems(), st.integers(0, 2**32 - 1))
def test_topk_codes(problem, seed):
    X, D, k = problem
    rng = np.random.default_rng(seed)
    bias = (rng.integers(-2, 3, D.shape[1]) / 2).astype(np.float32)
    encoder_bias = (rng.integers(-1, 2, len(D)) / 4).astype(np.float32)
    parameters = {"encoder": D, "encoder_bias": encoder_bias, "bias": bias}
    actual = encode({name: torch.from_numpy(each) for name, each in parameters.items()}, torch.from_numpy(X), k).csr
    expected = reference.encode_topk(*(v.astype(np.float64) for v in (X, D, encoder_bias, bias)), k)
    assert actual.has_sorted_indices
    assert np.diff(actual.indptr).max() <= k
    close(actual.toarray(), expected, np.abs(X).max() + 1)


@SETTINGS
@given(problems(coarse=False), st.integers(0, 2**32 - 1))
def test_sparse_products(problem, seed):
    X, D, _ = problem
    rng = np.random.default_rng(seed)
    Z = np.where(rng.random((len(X), len(D))) < 0.4, rng.standard_normal((len(X), len(D))), 0).astype(np.float32)
    batch = Batch(sp.csr_matrix(Z))
    bias = rng.standard_normal(D.shape[1]).astype(np.float32)
    wide = [v.astype(np.float64) for v in (Z, D, bias, X)]
    in_atoms, in_bias, in_codes = reference.decoder_gradient(*wide)
    decoded = batch.decode(torch.from_numpy(D)) + torch.from_numpy(bias)
    close(decoded.numpy(), reference.decode(*wide[:3]), 10)
    error = 2 * (decoded - torch.from_numpy(X))
    close(batch.atom_gradient(error).numpy(), in_atoms, 100)
    close(error.sum(dim=0).numpy(), in_bias, 100)
    close(batch.code_gradient(error, torch.from_numpy(D)).numpy(), in_codes[Z != 0], 100)


@SETTINGS
@given(problems(), st.integers(0, 2**32 - 1))
def test_topk_gradients_are_autograds(problem, seed):
    X, D, k = problem
    rng = np.random.default_rng(seed)
    dead = rng.random(len(D)) < 0.5
    parameters = {
        "atoms": torch.from_numpy(D),
        "encoder": torch.from_numpy((D + 0.1 * rng.standard_normal(D.shape)).astype(np.float32)),
        "encoder_bias": torch.from_numpy((0.1 * rng.standard_normal(len(D))).astype(np.float32)),
        "bias": torch.from_numpy((0.1 * rng.standard_normal(D.shape[1])).astype(np.float32)),
    }
    given_loss = loss_and_gradients(
        parameters, torch.from_numpy(X), k, variance=2.0, dead=dead, k_aux=3, aux_coefficient=0.5
    )
    leaves = {name: value.double().requires_grad_() for name, value in parameters.items()}
    value = dense_loss(leaves, torch.from_numpy(X).double(), k, 2.0, torch.from_numpy(dead), 3, 0.5)
    value.backward()
    for name, leaf in leaves.items():
        expected = np.zeros(leaf.shape) if leaf.grad is None else leaf.grad.numpy()
        close(given_loss.gradients[name].numpy(), expected, max(1.0, np.abs(expected).max()))


def dense_loss(parameters, x, k, variance, dead, k_aux, aux_coefficient):
    """The loss of the paper written densely, for autograd."""
    preactivations = (x - parameters["bias"]) @ parameters["encoder"].T + parameters["encoder_bias"]

    def kept(values, count):
        mask = torch.zeros_like(values)
        mask.scatter_(1, torch.from_numpy(reference.select(values.detach().numpy(), min(count, values.shape[1]))), 1)
        return torch.relu(values * mask)

    residual = x - (kept(preactivations, k) @ parameters["atoms"] + parameters["bias"])
    squared = residual.square().sum()
    loss = squared / (len(x) * variance)
    if dead.any():
        revived = kept(preactivations[:, dead], k_aux) @ parameters["atoms"][dead]
        loss = loss + aux_coefficient * (revived - residual.detach()).square().sum() / squared.detach()
    return loss


@SETTINGS
@given(problems(), st.integers(1, 4), st.booleans())
def test_pursuit(problem, columns, with_gram):
    X, D, k = problem
    columns = min(columns, len(D))
    rounds = plan(min(k, 12), columns)
    bias = np.full(D.shape[1], 0.5, dtype=np.float32)
    atoms = torch.from_numpy(D)
    batch = pursue(torch.from_numpy(X - bias), atoms, rounds, atoms @ atoms.T if with_gram else None)
    expected, norms = reference.icfl_pursuit(*(v.astype(np.float64) for v in (X, D, bias)), rounds)
    actual = batch.csr.toarray()
    # A near-tie may be broken differently in float32: what is left of the row must still be as small.
    left = np.linalg.norm(X - bias - actual @ D, axis=1)
    scale = np.linalg.norm(X - bias, axis=1)
    assert (left <= norms[-1] + 2e-3 * scale + 1e-6).all()
    same = (np.abs(actual - expected) <= 1e-2 * (1 + np.abs(expected))).all(axis=1)
    assert same.mean() >= 0.5
    assert (np.diff(norms, axis=0) <= 1e-9 * scale + 1e-12).all()


@SETTINGS
@given(st.integers(1, 6), st.integers(0, 2**32 - 1), st.booleans())
def test_small_systems_are_solved_even_when_singular(size, seed, duplicate):
    rng = np.random.default_rng(seed)
    D = rng.standard_normal((5, size, 8))
    if duplicate and size > 1:
        D[2, 1] = D[2, 0]
    D /= np.linalg.norm(D, axis=2, keepdims=True)
    target = rng.standard_normal((5, 8))
    gram, right = D @ D.transpose(0, 2, 1), np.einsum("bld,bd->bl", D, target)
    z = solve(torch.from_numpy(gram), torch.from_numpy(right)).numpy()
    assert np.isfinite(z).all()
    for i in range(5):
        best = np.linalg.lstsq(D[i].T, target[i], rcond=None)[0]
        assert np.linalg.norm(target[i] - z[i] @ D[i]) <= np.linalg.norm(target[i] - best @ D[i]) + 1e-4


def test_pursuit_of_zero_rows_and_exact_rows_is_short():
    D = np.linalg.qr(np.random.default_rng(1).standard_normal((6, 6)))[0].astype(np.float32)
    X = np.stack([np.zeros(6), 2 * D[3], D[1] + 3 * D[4]]).astype(np.float32)
    csr = pursue(torch.from_numpy(X), torch.from_numpy(D), [2, 2, 2]).csr
    assert np.diff(csr.indptr)[0] == 0
    assert csr[1, 3] == np.float32(2) or abs(csr[1, 3] - 2) < 1e-5
    assert np.abs(csr[1].toarray()).sum() < 2 + 1e-4
    close(csr.toarray() @ D, X, 3)
