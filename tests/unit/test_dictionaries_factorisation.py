"""Semi-NMF, NMF and k-means against what is known of them."""

import logging
from itertools import pairwise

import numpy as np
import pytest
from planted import fvu, mean_maximum_cosine, mixture

from conceptome.dictionaries import fit, load
from conceptome.dictionaries.factorisation import multiply, nonnegative_codes, semi_nmf, signs
from conceptome.dictionaries.training import random_atoms, thread_limit
from conceptome.errors import ConfigError, DataError

X, TRUTH = mixture(n=2000, atoms=16, active=3)
RNG = np.random.default_rng(3)


@pytest.mark.parametrize("name", ["snmf", "nmf", "kmeans"])
def test_planted_atoms_are_found(name):
    options = {"negatives": "split"} if name == "nmf" else {}
    dictionary = fit(name, X, m=20, k=4, threads=1, **options)
    assert mean_maximum_cosine(dictionary.atoms, TRUTH) > 0.85
    assert mean_maximum_cosine(random_atoms(20, 32, 0), TRUTH) < 0.5
    assert fvu(X, dictionary.decode(dictionary.encode(X))) < 0.15


def test_the_objective_of_semi_nmf_never_rises():
    rows = (X[:300] - X.mean(axis=0)).astype(np.float64)
    Z = RNG.random((300, 20)) + 0.1
    atoms, codes, objective = semi_nmf(rows, Z, keep=1.0, iterations=80, tolerance=0)
    assert len(objective) == 80
    for before, after in pairwise(objective):
        assert after <= before * (1 + 1e-9)
    assert objective[-1] < 0.2 * objective[0]
    assert codes.min() >= 0
    np.testing.assert_allclose(np.linalg.norm(atoms, axis=1), 1)
    np.testing.assert_allclose(objective[-1], np.square(rows - codes @ atoms).sum())
    # In float32 as well, but for rounding.
    told = fit("snmf", X, m=20, threads=1).card["training"]["objective"]
    assert all(after <= before * 1.001 for before, after in pairwise(told))


def test_one_update_of_the_codes_lowers_the_error_and_keeps_zeros():
    rows, atoms = RNG.standard_normal((50, 6)), RNG.standard_normal((9, 6))
    Z = RNG.random((50, 9))
    Z[:, 4] = 0
    for _ in range(20):
        moved = multiply(Z, signs(rows @ atoms.T), signs(atoms @ atoms.T))
        assert np.square(rows - moved @ atoms).sum() <= np.square(rows - Z @ atoms).sum()
        Z = moved
    assert not Z[:, 4].any()


def test_semi_nmf_stops_at_a_relative_change():
    rows = X[:300] - X.mean(axis=0)
    for factor in (1, 1000):
        _, _, objective = semi_nmf(factor * rows, RNG.random((300, 5)) + 0.1, keep=1.0, iterations=500, tolerance=1e-3)
        assert 2 < len(objective) < 500
        assert objective[-2] - objective[-1] < 1e-3 * objective[-2]


def test_atoms_keep_a_share_of_their_entries():
    dictionary = fit("snmf", X, m=12, k=4, keep=0.25, threads=1)
    assert (np.count_nonzero(dictionary.atoms, axis=1) == 8).all()
    np.testing.assert_allclose(np.linalg.norm(dictionary.atoms, axis=1), 1, atol=1e-5)


def test_codes_are_those_of_nonnegative_least_squares():
    from scipy.optimize import nnls

    atoms = random_atoms(6, 12, 0)
    rows = RNG.standard_normal((40, 12)).astype(np.float32)
    expected = np.array([nnls(atoms.T.astype(np.float64), row)[0] for row in rows])
    np.testing.assert_allclose(nonnegative_codes(rows, atoms, 6, 3000).toarray(), expected, atol=2e-2)
    few = nonnegative_codes(rows, atoms, 2, 3000)
    assert np.diff(few.indptr).max() <= 2
    for row in range(40):
        support = few[row].indices
        best = nnls(atoms[support].T.astype(np.float64), rows[row])[0] if len(support) else []
        np.testing.assert_allclose(few[row].data, best, atol=2e-2)


def test_blocks_of_rows_do_not_matter(monkeypatch):
    atoms, rows = random_atoms(20, 12, 0), X[:50, :12].copy()
    whole = nonnegative_codes(rows, atoms, 3, 50).toarray()
    monkeypatch.setattr("conceptome.dictionaries.factorisation.GATHERED", 9 * 7)
    np.testing.assert_allclose(nonnegative_codes(rows, atoms, 3, 50).toarray(), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["snmf", "nmf"])
def test_codes_are_not_negative_and_more_of_them_explain_more(name):
    options = {"negatives": "split"} if name == "nmf" else {}
    dictionary = fit(name, X, m=20, k=None, threads=1, **options)
    values = [fvu(X, dictionary.decode(dictionary.encode(X, k=k))) for k in (1, 2, 4, 8)]
    assert all(after < before for before, after in pairwise(values))
    assert dictionary.encode(X).to_scipy().data.min() > 0


def test_nmf_of_activations_that_are_not_negative():
    parts = np.abs(RNG.standard_normal((5, 12))) * (RNG.random((5, 12)) < 0.4)
    parts[:, :5] += np.eye(5)
    rows = (RNG.random((1500, 5)) < 0.4) * RNG.gamma(3, 1, (1500, 5)) @ parts
    dictionary = fit("nmf", rows, m=5, k=5, threads=1, max_iterations=1000)
    assert dictionary.atoms.min() >= 0
    assert not dictionary.bias.any()
    assert mean_maximum_cosine(dictionary.atoms, parts / np.linalg.norm(parts, axis=1, keepdims=True)) > 0.95
    assert fvu(rows, dictionary.decode(dictionary.encode(rows))) < 0.05


def test_nmf_refuses_negative_activations():
    with pytest.raises(DataError, match=r"nmf: \d+ of 64000 training values are negative: set negatives to") as error:
        fit("nmf", X, m=5, k=2)
    assert "\n" not in str(error.value)


def test_nmf_says_when_it_did_not_converge(caplog):
    with caplog.at_level(logging.WARNING):
        dictionary = fit("nmf", X, m=20, k=4, negatives="split", max_iterations=2)
    assert not dictionary.card["training"]["converged"]
    assert "did not converge in 2 iterations" in caplog.text


def test_a_code_of_kmeans_is_the_cluster_with_its_best_length(tmp_path):
    dictionary = fit("kmeans", X, m=10, threads=1)
    assert dictionary.k == 1
    codes = dictionary.encode(X).to_scipy()
    centres = dictionary.parameters["lengths"][:, None] * dictionary.atoms + dictionary.bias
    distances = np.linalg.norm(X[:, None].astype(np.float64) - centres, axis=2)
    clear = np.diff(np.sort(distances, axis=1)[:, :2], axis=1)[:, 0] > 1e-4
    assert (np.diff(codes.indptr) == 1).all()
    np.testing.assert_array_equal(codes.indices[clear], distances.argmin(axis=1)[clear])
    expected = ((X - dictionary.bias) * dictionary.atoms[codes.indices]).sum(axis=1)
    np.testing.assert_allclose(codes.data, expected, rtol=1e-3, atol=1e-3)
    dictionary.save(tmp_path)
    assert (load(tmp_path).encode(X).to_scipy() != codes).nnz == 0


def test_the_nearest_centroids_with_their_least_squares():
    dictionary = fit("kmeans", X, m=10, k=3, threads=1)
    row = (X[:1] - dictionary.bias).astype(np.float64)
    codes = dictionary.encode(X[:1]).to_scipy()
    best = np.linalg.lstsq(dictionary.atoms[codes.indices].T.astype(np.float64), row[0], rcond=None)[0]
    np.testing.assert_allclose(codes.data, best, atol=1e-3)
    centres = dictionary.parameters["lengths"][:, None] * dictionary.atoms
    assert set(codes.indices) == set(np.linalg.norm(row - centres, axis=1).argsort()[:3])


@pytest.mark.parametrize("name", ["snmf", "nmf", "kmeans"])
def test_constant_rows_have_nothing_to_explain(name):
    with pytest.raises(DataError, match="the same"):
        fit(name, np.full((50, 4), 3.3), m=3, k=1)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("snmf", {"m": 4, "k": 5}, r"m \(4 atoms\) must be at least k"),
        ("snmf", {"keep": 0.0}, "'keep'"),
        ("nmf", {"negatives": "shift"}, "'negatives'"),
        ("kmeans", {"m": 4, "k": 5}, r"m \(4 atoms\) must be at least k"),
    ],
)
def test_complaints_about_options(name, options, message):
    with pytest.raises(ConfigError, match=message):
        fit(name, X, **options)


@pytest.mark.parametrize("name", ["snmf", "nmf"])
def test_bytes_do_not_depend_on_the_threads_of_blas(name):
    rows = RNG.standard_normal((3000, 160)).astype(np.float32)
    options = {"negatives": "split"} if name == "nmf" else {}
    seen = []
    for threads in (1, 2):
        dictionary = fit(name, rows, m=64, k=8, threads=threads, max_iterations=4, code_iterations=4, **options)
        with thread_limit(threads, with_torch=False):
            codes = dictionary.encode(rows).to_scipy()
        seen.append([dictionary.atoms.tobytes(), codes.indices.tobytes(), codes.data.tobytes()])
    assert seen[0] == seen[1]
