"""TopK and ICFL find what was planted, and do what their papers say."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from planted import fvu, mean_maximum_cosine, mixture

from conceptome.config.dictionaries import OPTIONS
from conceptome.dictionaries import fit
from conceptome.dictionaries.icfl import near_duplicates
from conceptome.dictionaries.pursuit import plan, pursue
from conceptome.dictionaries.rows import geometric_median
from conceptome.dictionaries.topk import loss_and_gradients
from conceptome.dictionaries.training import rate
from conceptome.errors import DataError

X, TRUTH = mixture()
LEARNED = {
    "topk": {"m": 64, "k": 4, "steps": 500, "batch_size": 256},
    "icfl": {"m": 64, "rounds": 4, "columns": 1, "steps": 250, "batch_size": 256},
}


@pytest.fixture(scope="module")
def learned():
    return {name: fit(name, X, seed=0, threads=1, **options) for name, options in LEARNED.items()}


@pytest.mark.parametrize("name", sorted(LEARNED))
def test_planted_atoms_are_found(learned, name):
    dictionary = learned[name]
    untrained = fit("random", X, m=64, k=4)
    assert mean_maximum_cosine(dictionary.atoms, TRUTH) > 0.9
    assert mean_maximum_cosine(untrained.atoms, TRUTH) < 0.6
    assert fvu(X, dictionary.decode(dictionary.encode(X))) < 0.15
    assert dictionary.card["training"]["curve"]["fvu"][0] > dictionary.card["training"]["fvu"]


@pytest.mark.parametrize("name", sorted(LEARNED))
def test_size_and_place_of_the_activations_do_not_matter(learned, name):
    moved = fit(name, 1000 * X + 500, seed=0, threads=1, **LEARNED[name])
    assert mean_maximum_cosine(moved.atoms, learned[name].atoms) > 0.97
    np.testing.assert_allclose(moved.card["training"]["fvu"], learned[name].card["training"]["fvu"], rtol=0.3)


@pytest.mark.parametrize("method", ["topk", "icfl"])
def test_more_active_atoms_explain_more(method):
    values = []
    for k in (1, 2, 4):
        budget = {"k": k} if method == "topk" else {"rounds": k, "columns": 1}
        dictionary = fit(method, X, m=64, steps=100, batch_size=256, threads=1, **budget)
        values.append(fvu(X, dictionary.decode(dictionary.encode(X))))
    assert values[0] > values[1] > values[2]


def test_codes_of_topk_are_positive_and_of_icfl_may_be_signed(learned):
    assert learned["topk"].encode(X).to_scipy().data.min() > 0
    several = fit("icfl", X, m=64, rounds=1, columns=6, steps=20, threads=1)
    assert several.encode(X).to_scipy().data.min() < 0


def tensors(seed=0, m=12, d=6):
    rng = np.random.default_rng(seed)
    atoms = rng.standard_normal((m, d))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    values = {"atoms": atoms, "encoder": atoms.copy(), "encoder_bias": np.zeros(m), "bias": np.zeros(d)}
    return {name: torch.from_numpy(value.astype(np.float32)) for name, value in values.items()}


def test_auxk_sends_gradient_to_the_encoder_of_dead_atoms_and_of_no_other():
    parameters = tensors()
    dead = np.zeros(12, dtype=bool)
    dead[[2, 7, 9]] = True
    # Pushed so far down that they are never among the k: without AuxK nothing reaches them.
    parameters["encoder_bias"][[2, 7, 9]] = -100
    x = torch.from_numpy(np.random.default_rng(1).standard_normal((64, 6)).astype(np.float32))

    def gradients(coefficient):
        # AuxK scores are taken without that push, so that dead atoms have something to say.
        return loss_and_gradients(
            parameters, x, 3, variance=6.0, dead=dead, k_aux=2, aux_coefficient=coefficient
        ).gradients

    assert all(float(gradients(0.0)[name][dead].abs().sum()) == 0 for name in ("encoder", "atoms", "encoder_bias"))
    parameters["encoder_bias"][[2, 7, 9]] = 0
    parameters["encoder"][[2, 7, 9]] *= 0.05
    without, with_aux = gradients(0.0), gradients(1.0)
    for name in ("encoder", "atoms", "encoder_bias"):
        change = (with_aux[name] - without[name]).reshape(12, -1).abs().sum(dim=1).numpy()
        assert (change[dead] > 1e-6).all()
        np.testing.assert_allclose(change[~dead], 0, atol=1e-7)


def test_auxk_revives_dead_atoms():
    # Nearly as many planted atoms as learned ones, and a rate that kills many: revived atoms find work.
    crowded = mixture(atoms=200)[0]
    options = {"m": 256, "k": 4, "steps": 400, "batch_size": 256, "dead_after": 4000, "learning_rate": 2e-2}
    with_aux, without = (
        fit("topk", crowded, threads=1, aux_coefficient=coefficient, **options).card["training"]
        for coefficient in (1 / 32, 0.0)
    )
    assert without["dead"] > 50
    assert with_aux["dead"] < 0.75 * without["dead"]
    assert with_aux["fvu"] < 0.95 * without["fvu"]


def test_every_round_of_the_pursuit_reduces_the_residual(learned):
    atoms = torch.from_numpy(learned["icfl"].atoms)
    centred = torch.from_numpy(X[:200] - learned["icfl"].bias)
    left = [centred.norm(dim=1)]
    for rounds in range(1, 6):
        left.append((centred - pursue(centred, atoms, [2] * rounds).decode(atoms)).norm(dim=1))
    for before, after in pairwise(left):
        assert (after <= before + 1e-4).all()
        assert after.mean() < before.mean()


def test_an_atom_picked_again_adds_up():
    # Three atoms 120° apart in the plane, one at a time: the residual comes back to the first.
    angles = np.deg2rad([0, 120, -120])
    atoms = torch.from_numpy(np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32))
    x = torch.tensor([[1.0, 1.0]])
    counts = [pursue(x, atoms, [1] * rounds) for rounds in (1, 40)]
    assert counts[0].csr.nnz == 1
    assert counts[1].csr.nnz <= 3
    np.testing.assert_allclose(counts[1].decode(atoms), x, atol=1e-2)


def test_selection_is_by_signed_correlation():
    atoms = torch.eye(3)
    assert pursue(torch.tensor([[-5.0, 1.0, 0.5]]), atoms, [1]).csr.indices.tolist() == [1]


def test_plan_of_smaller_budgets():
    assert plan(32, 4) == [4] * 8
    assert plan(6, 4) == [4, 2]
    assert plan(1, 4) == [1]


def test_near_duplicates_leave_one_of_each_cluster():
    atoms = np.array([[1, 0], [0, 1], [1, 0], [1, 0], [-1, 0]], dtype=np.float32)
    for block in (2, 100):
        assert near_duplicates(atoms, 0.9, block).tolist() == [2, 3]
    # A chain a–b–c whose ends are far apart: only the middle goes.
    angles = np.deg2rad([0, 20, 40])
    chain = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    assert near_duplicates(chain, 0.9).tolist() == [1]


def test_duplicates_are_reset_during_training():
    rng = np.random.default_rng(0)
    line = rng.standard_normal((500, 1)) * np.ones((1, 3)) + 0.01 * rng.standard_normal((500, 3))
    options = {"m": 12, "rounds": 2, "columns": 1, "steps": 100, "reset_every": 10, "threads": 1}
    assert fit("icfl", line, **options).card["training"]["resets"] > 0
    assert fit("icfl", line, reset_cosine=1.0, **options).card["training"]["resets"] == 0


def test_geometric_median_ignores_a_far_minority():
    rng = np.random.default_rng(0)
    cloud = rng.standard_normal((200, 3)) + 5
    cloud[:20] = 1e4
    assert np.abs(geometric_median(cloud) - 5).max() < 0.5
    assert np.abs(cloud.mean(axis=0) - 5).max() > 100
    # Fermat point of an equilateral triangle: its centre.
    triangle = np.array([[0, 0], [1, 0], [0.5, np.sqrt(3) / 2]])
    np.testing.assert_allclose(geometric_median(triangle), triangle.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(geometric_median(np.full((4, 2), 7.0)), 7)


def test_learning_rate_warms_up_down_and_follows_the_number_of_atoms():
    factors = [rate(step, 100, warm_up=0.05, warm_down=0.5) for step in range(100)]
    assert max(factors) == 1
    assert factors[0] < 0.5
    assert factors[-1] < 0.05
    assert [rate(step, 4, warm_up=0, warm_down=0) for step in range(4)] == [1, 1, 1, 1]
    small, large = (OPTIONS["topk"](method="topk", m=m, k=4).scaled_learning_rate for m in (256, 1024))
    assert small == pytest.approx(2 * large)


def test_divergence_is_said():
    with pytest.raises(DataError, match=r"diverged at step .* lower learning_rate"):
        fit("topk", X, m=16, k=2, steps=60, learning_rate=1e30, threads=1)
