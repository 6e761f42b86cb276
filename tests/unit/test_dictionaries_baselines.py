"""PCA, ICA, random and identity against what is known of them."""

import logging

import numpy as np
import pytest
from planted import fvu, mixture

from conceptome.dictionaries import fit
from conceptome.errors import DataError

RNG = np.random.default_rng(5)


def test_pca_finds_the_axes_in_order():
    axes = np.linalg.qr(RNG.standard_normal((5, 5)))[0]
    X = RNG.standard_normal((4000, 5)) * [5, 3, 2, 1, 0.5] @ axes + 10
    dictionary = fit("pca", X)
    np.testing.assert_allclose(np.abs(dictionary.atoms @ axes.T), np.eye(5), atol=0.1)
    np.testing.assert_allclose(dictionary.bias, X.mean(axis=0), atol=1e-4)
    assert fvu(X, dictionary.decode(dictionary.encode(X))) < 1e-8
    explained = dictionary.card["training"]["explained"]
    np.testing.assert_allclose(explained, np.array([25, 9, 4, 1, 0.25]) / 39.25, atol=0.03)
    assert fit("pca", X, m=2).m == 2


def test_pca_has_no_more_atoms_than_the_rows_span():
    X = RNG.standard_normal((200, 2)) @ RNG.standard_normal((2, 6))
    assert fit("pca", X).m == 2
    with pytest.raises(DataError, match="span 2 directions, fewer than m"):
        fit("pca", X, m=3)
    with pytest.raises(DataError, match="support 2 atoms, fewer than k"):
        fit("pca", X, k=4)


@pytest.mark.parametrize("name", ["pca", "ica"])
def test_small_directions_beside_a_huge_one_count(name):
    X = RNG.laplace(size=(2000, 4)) * [1000, 1, 1, 0.5]
    assert fit(name, X).m == 4


def test_pca_keeps_the_largest_magnitudes():
    X = RNG.standard_normal((500, 6))
    scores = fit("pca", X).encode(X).to_scipy().toarray()
    kept = fit("pca", X, k=2).encode(X).to_scipy().toarray()
    expected = np.where(np.abs(scores) >= np.sort(np.abs(scores), axis=1)[:, -2:-1], scores, 0)
    np.testing.assert_allclose(kept, expected, atol=1e-5)
    assert (kept < 0).any()


def test_ica_unmixes():
    sources = RNG.laplace(size=(5000, 3))
    mixing = np.array([[1, 2, 0], [0.5, 0, 1], [0, 1, 1]])
    X = sources @ mixing
    dictionary = fit("ica", X)
    directions = mixing / np.linalg.norm(mixing, axis=1, keepdims=True)
    assert np.abs(directions @ dictionary.atoms.T).max(axis=1).min() > 0.99
    assert fvu(X, dictionary.decode(dictionary.encode(X))) < 1e-8
    assert dictionary.card["training"]["converged"]


def test_ica_says_when_it_did_not_converge(caplog):
    with caplog.at_level(logging.WARNING):
        dictionary = fit("ica", RNG.standard_normal((400, 8)), max_iterations=1)
    assert not dictionary.card["training"]["converged"]
    assert "did not converge in 1 iterations" in caplog.text


def test_ica_uses_at_most_max_rows():
    assert fit("ica", RNG.laplace(size=(500, 3)), max_rows=100).card["training"]["n_seen"] == 100


def test_identity_is_the_centred_activations():
    X = RNG.standard_normal((50, 4)).astype(np.float32) + 3
    dictionary = fit("identity", X)
    np.testing.assert_array_equal(dictionary.atoms, np.eye(4))
    np.testing.assert_allclose(dictionary.encode(X).to_scipy().toarray(), X - X.mean(axis=0), atol=1e-5)


def test_random_atoms_come_from_the_seed_alone_and_the_gain_fits():
    X, _ = mixture(n=800)
    dictionary = fit("random", X, m=200, k=16, seed=4)
    other = fit("random", 3 * X[:100] + 1, m=200, k=16, seed=4)
    np.testing.assert_array_equal(dictionary.atoms, other.atoms)
    best = fvu(X, dictionary.decode(dictionary.encode(X)))
    for factor in (0.9, 1.1):
        codes = dictionary.encode(X)
        assert fvu(X, dictionary.decode(type(codes)(codes.to_scipy() * np.float32(factor)))) > best
    assert best < 1
