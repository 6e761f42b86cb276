"""MP-SAE and K-SVD: their updates against what they specify, and what they find."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from planted import fvu, mean_maximum_cosine, mixture

from conceptome.config.dictionaries import OPTIONS
from conceptome.dictionaries import fit
from conceptome.dictionaries.encoders import matching_pursuit, orthogonal_matching_pursuit
from conceptome.dictionaries.ksvd import update_at_once, update_in_turn
from conceptome.dictionaries.mp_sae import Trainer, unrolled
from conceptome.dictionaries.training import random_atoms
from conceptome.dictionaries.updates import worst_explained
from conceptome.errors import ConfigError, DataError

X, TRUTH = mixture()
LEARNED = {
    "mp_sae": {"m": 64, "k": 4, "steps": 200, "batch_size": 256},
    "ksvd": {"m": 64, "k": 4, "steps": 60},
}
BOTH = pytest.mark.parametrize("name", sorted(LEARNED))


@pytest.fixture(scope="module")
def learned():
    return {name: fit(name, X, seed=0, threads=1, **options) for name, options in LEARNED.items()}


@BOTH
def test_planted_atoms_are_found(learned, name):
    dictionary = learned[name]
    assert mean_maximum_cosine(dictionary.atoms, TRUTH) > 0.95
    assert mean_maximum_cosine(random_atoms(64, 32, 0), TRUTH) < 0.6
    assert fvu(X, dictionary.decode(dictionary.encode(X))) < 0.05


@BOTH
def test_without_a_compiler_the_same_is_learned(name, learned, monkeypatch):
    monkeypatch.setenv("CONCEPTOME_KERNELS", "torch")
    plain = fit(name, X, seed=0, threads=1, **LEARNED[name])
    cosines = (plain.atoms * learned[name].atoms).sum(axis=1)
    assert np.mean(np.abs(cosines) > 0.99) > 0.7
    np.testing.assert_allclose(plain.card["training"]["fvu"], learned[name].card["training"]["fvu"], rtol=0.2)


@BOTH
def test_size_and_place_of_the_activations_do_not_matter(learned, name):
    moved = fit(name, 1000 * X + 500, seed=0, threads=1, **LEARNED[name])
    assert mean_maximum_cosine(moved.atoms, learned[name].atoms) > 0.95


@BOTH
def test_every_step_of_the_pursuit_reduces_the_residual(learned, name):
    dictionary = learned[name]
    left = [np.linalg.norm(X - dictionary.decode(dictionary.encode(X, k=k)), axis=1) for k in range(1, 5)]
    for before, after in pairwise(left):
        assert (after <= before + 1e-4).all()
        assert after.mean() < before.mean()


@BOTH
def test_bytes_do_not_depend_on_threads(name):
    wide, _ = mixture(n=300, d=200, atoms=300, active=40)
    options = {"m": 250, "k": 48, "steps": 4, "batch_size": 256, "dead_after": 300}
    one, two = (fit(name, wide, threads=threads, **options) for threads in (1, 2))
    assert one.atoms.tobytes() == two.atoms.tobytes()
    assert one.encode(wide).to_scipy().data.tobytes() == two.encode(wide).to_scipy().data.tobytes()


@pytest.mark.parametrize(("name", "codes"), [("ksvd", "signed"), ("mp_sae", "signed"), ("mp_sae", "nonnegative")])
def test_signs(name, codes):
    options = {"nonnegative": codes == "nonnegative"} if name == "mp_sae" else {}
    dictionary = fit(name, X, threads=1, **LEARNED[name] | {"steps": 20}, **options)
    matrix = dictionary.encode(X).to_scipy()
    assert (matrix.data.min() > 0) == (codes == "nonnegative")
    # An atom whose sign is free points to where its codes are.
    assert np.asarray(matrix.sum(axis=0)).min() >= -0.05 * np.abs(matrix).sum(axis=0).max()


@pytest.mark.parametrize("nonnegative", [True, False])
@pytest.mark.parametrize("k", [1, 3, 9])
def test_gradient_through_the_unrolled_steps_is_autograd_s(nonnegative, k):
    rng = np.random.default_rng(k)
    # Few dimensions: atoms overlap, and are taken again.
    atoms = random_atoms(9, 4, 1).astype(np.float64)
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    centred = rng.standard_normal((50, 4))
    centred[7] = 0
    D, r = torch.from_numpy(atoms).requires_grad_(), torch.from_numpy(centred).requires_grad_()
    left = r
    picks = []
    for _ in range(k):
        scores = left @ D.T
        chosen = (scores if nonnegative else scores.abs()).argmax(dim=1)
        values = scores[torch.arange(50), chosen]
        keep = (values if nonnegative else values.abs()).detach() > 1e-5 * r.detach().norm(dim=1)
        picks.append((chosen, torch.where(keep, values, 0).detach()))
        left = torch.where(keep[:, None], left - values[:, None] * D[chosen], left)
    (0.3 * left.square().sum()).backward()
    codes = matching_pursuit(centred.astype(np.float32), atoms.astype(np.float32), k, nonnegative=nonnegative)
    # The codes' values play no part, only their places.
    found = unrolled(centred, codes, atoms, k, scale=0.3, nonnegative=nonnegative)
    assert k < 9 or max(len({int(pick[row]) for pick, value in picks if value[row]}) for row in range(50)) < k
    np.testing.assert_allclose(found.residual, left.detach(), atol=1e-9)
    np.testing.assert_allclose(found.in_atoms, D.grad, atol=1e-9)
    np.testing.assert_allclose(found.in_centred, r.grad, atol=1e-9)


def test_blocks_of_rows_add_up(monkeypatch):
    atoms, centred = random_atoms(40, 16, 0), X[:100, :16] - X[:, :16].mean(axis=0)
    codes = matching_pursuit(centred, atoms, 5, nonnegative=True)
    whole = unrolled(centred, codes, atoms, 5, scale=1.0, nonnegative=True)
    monkeypatch.setattr("conceptome.dictionaries.mp_sae.GATHERED", 16 * 5 * 30)
    parts = unrolled(centred, codes, atoms, 5, scale=1.0, nonnegative=True)
    for one, other in zip(whole, parts):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)


def coded(seed=0, n=80, d=10, m=30, k=3):
    rng = np.random.default_rng(seed)
    atoms = random_atoms(m, d, seed)
    rows = rng.standard_normal((n, d)).astype(np.float32)
    codes = orthogonal_matching_pursuit(rows, atoms, k)
    return rows, atoms, codes, rows - codes @ atoms


def test_an_atom_alone_becomes_the_first_singular_vector_of_its_rows():
    rows, atoms, codes, residual = coded(n=200, m=1, k=1)
    for _ in range(60):
        update_in_turn(atoms, codes, residual, 1.0)
        codes = orthogonal_matching_pursuit(rows, atoms, 1)
        residual = rows - codes @ atoms
    first = np.linalg.svd(rows.astype(np.float64))[2][0]
    assert abs(first @ atoms[0]) > 0.999


@pytest.mark.parametrize("update", [update_in_turn, update_at_once])
def test_an_update_only_gains(update):
    rows, atoms, codes, residual = coded()
    before, was = np.square(residual).sum(), atoms.copy()
    update(atoms, codes, residual, 0.5)
    # With the best codes on the same support, the moved atoms leave less.
    left = 0.0
    for row in range(len(rows)):
        support = atoms[codes[row].indices].astype(np.float64)
        z = np.linalg.lstsq(support.T, rows[row], rcond=None)[0]
        left += np.square(rows[row] - z @ support).sum()
    assert left < before
    np.testing.assert_allclose(np.linalg.norm(atoms, axis=1), 1, atol=1e-5)
    unused = np.diff(codes.tocsc().indptr) == 0
    np.testing.assert_array_equal(atoms[unused], was[unused])


def test_in_turn_keeps_the_residual_true():
    _, atoms, codes, residual = coded()
    before = float(np.square(residual).sum())
    update_in_turn(atoms, codes, residual, 1.0)
    assert float(np.square(residual).sum()) < before


def test_both_updates_learn():
    for update in ("sequential", "parallel"):
        assert mean_maximum_cosine(fit("ksvd", X, m=64, k=4, steps=60, update=update, threads=1).atoms, TRUTH) > 0.95


def test_worst_explained_rows_in_order():
    residual = np.array([[0, 1], [3, 4], [0, 0], [2, 0]], dtype=np.float32)
    np.testing.assert_allclose(worst_explained(residual, 2), [[0.6, 0.8], [1, 0]], atol=1e-6)
    assert len(worst_explained(residual, 9)) == 3


@BOTH
def test_atoms_that_nothing_uses_start_anew(name):
    crowded = mixture(atoms=60)[0]
    # Atoms far from the data: with one step each, nothing but a restart brings them back.
    options = {"m": 256, "k": 1, "steps": 40, "batch_size": 64, "dead_after": 128, "threads": 1}
    with_restarts = fit(name, crowded, **options).card["training"]
    without = fit(name, crowded, **options | {"dead_after": 10**6}).card["training"]
    assert with_restarts["restarts"] > 0
    assert without["restarts"] == 0
    assert with_restarts["fvu"] < without["fvu"]


def test_the_state_of_a_trainer_goes_round():
    options = OPTIONS["mp_sae"](method="mp_sae", m=9, k=2)
    trainer = Trainer({"atoms": random_atoms(9, 4, 0), "bias": np.zeros(4, dtype=np.float32)}, options)
    trainer.restarts = 5
    other = Trainer({"atoms": random_atoms(9, 4, 0), "bias": np.zeros(4, dtype=np.float32)}, options)
    other.restore(trainer.state())
    assert other.restarts == 5


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mp_sae", {"m": 4, "k": 5}, r"m \(4 atoms\) must be at least k"),
        ("ksvd", {"m": 4, "k": 5}, r"m \(4 atoms\) must be at least k"),
        ("ksvd", {"update": "both"}, "'update'"),
        ("ksvd", {"learning_rate": 1.5}, "'learning_rate'"),
        ("ksvd", {"k": 33}, r"k \(33\) exceeds the activations' 32 dimensions"),
        ("mp_sae", {"nonnegativ": True}, "did you mean 'nonnegative'"),
    ],
)
def test_complaints(name, options, message):
    with pytest.raises(ConfigError, match=message):
        fit(name, X, **options)


def test_divergence_is_said():
    with pytest.raises(DataError, match=r"diverged at step .* lower learning_rate"):
        fit("mp_sae", X, m=16, k=2, steps=60, learning_rate=1e38, threads=1)
