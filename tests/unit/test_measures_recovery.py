import numpy as np
import pytest
from scipy import sparse

from conceptome.config.evidence import Measures
from conceptome.measures.recovery import Hidden, correlations, recovery

CONFIG = Measures(bootstraps=100, recovery_permutations=8)
N = 1000


def make_hidden(values, activations, names=None):
    split = np.array(["train", "train", "train", "validation", "test"])[np.arange(N) % 5]
    names = names or [f"program:{i}" for i in range(values.shape[1])]
    return Hidden(names, values, activations, split, np.arange(N).astype(str), CONFIG)


def test_correlations_equal_numpy_for_sparse_and_dense():
    codes = sparse.random(200, 7, density=0.3, random_state=0, format="csr")
    codes.data[::3] *= -1
    variables = np.random.default_rng(1).normal(5, 2, size=(200, 4))
    expected = np.corrcoef(codes.toarray().T, variables.T)[:7, 7:]
    np.testing.assert_allclose(correlations(codes, variables), expected, atol=1e-12)
    np.testing.assert_allclose(correlations(codes.toarray(), variables), expected, atol=1e-12)


def test_constant_atoms_and_variables_correlate_with_nothing():
    codes = np.stack([np.full(50, 3.3), np.arange(50.0)], axis=1)
    variables = np.stack([np.arange(50.0), np.full(50, 0.1)], axis=1)
    np.testing.assert_allclose(correlations(codes, variables), [[0, 0], [1, 0]], atol=1e-12)


@pytest.mark.parametrize("density", [0.1, 0.9])
def test_a_planted_atom_is_found_and_noise_stays_in_the_null_band(density):
    rng = np.random.default_rng(2)
    values = rng.normal(size=(N, 3))
    codes = sparse.random(N, 30, density=density, random_state=3, format="csr").tolil()
    codes[:, 11] = -2.0 * values[:, [0]]
    table = recovery(codes.tocsr(), make_hidden(values, values[:, :2]), CONFIG)
    planted = table.iloc[0]
    assert planted["atom"] == 11
    assert planted["recovered"]
    np.testing.assert_allclose(planted[["best_correlation", "low", "high"]].to_numpy(float), 1.0, atol=1e-5)
    assert not table["recovered"][1:].any()
    assert (table["best_correlation"][1:] <= table["null_high"][1:] + 0.05).all()
    assert (table["null"] < 0.2).all()
    np.testing.assert_allclose(table["completeness_r2"][:2], 1.0, atol=1e-6)
    assert table["completeness_r2"][2] < 0.1
    assert table["completeness_null"].max() < 0.1


def test_the_atom_is_chosen_off_test():
    """An atom that follows the variable on test rows only must not be picked."""
    rng = np.random.default_rng(4)
    values = rng.normal(size=(N, 1))
    test = np.arange(N) % 5 == 4
    cheat = np.where(test, values[:, 0], rng.normal(size=N))
    honest = values[:, 0] + rng.normal(size=N)
    table = recovery(sparse.csr_matrix(np.stack([cheat, honest], axis=1)), make_hidden(values, values), CONFIG)
    assert table["atom"][0] == 1
    assert 0.5 < table["low"][0] < table["best_correlation"][0] < table["high"][0] < 0.9


def test_a_partly_held_variable_has_the_r2_of_its_noise():
    rng = np.random.default_rng(5)
    values = rng.normal(size=(N, 1))
    table = recovery(sparse.csr_matrix((N, 2)), make_hidden(values, values + rng.normal(size=(N, 1)), ["tf:2"]), CONFIG)
    assert table["layer"][0] == "tf"
    assert table["completeness_r2"][0] == pytest.approx(0.5, abs=0.12)
    assert table["completeness_low"][0] < 0.5 < table["completeness_high"][0]
    assert table["best_correlation"][0] == 0.0
