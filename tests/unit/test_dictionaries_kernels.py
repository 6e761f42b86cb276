"""The TopK dictionary on compiled kernels and on torch: the same mathematics."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import mixture

import conceptome_kernels
from conceptome.config.dictionaries import OPTIONS
from conceptome.dictionaries import fit, load
from conceptome.dictionaries.sparse import Scores, largest_positive, largest_positive_on_torch
from conceptome.dictionaries.topk import KernelTrainer, TorchTrainer
from conceptome.dictionaries.training import random_atoms
from conceptome_kernels.topk import pack

X, _ = mixture()
SETTINGS = {"m": 70, "k": 4, "steps": 50, "batch_size": 200, "dead_after": 600, "k_aux": 7}

pytestmark = pytest.mark.skipif(not conceptome_kernels.available(), reason="no compiled kernels")


def trainer_of(kind, d=13, m=45, **options):
    atoms = random_atoms(m, d, seed=0)
    parameters = {
        "atoms": atoms,
        "encoder": atoms.copy(),
        "encoder_bias": np.linspace(-0.1, 0.1, m, dtype=np.float32),
        "bias": np.linspace(-1, 1, d, dtype=np.float32),
    }
    made = kind(parameters, OPTIONS["topk"](method="topk", m=m, k=5, k_aux=3, **options))
    made.optimiser.learning_rate = 1e-3
    return made


@given(
    st.integers(0, 12), st.sampled_from([1, 2, 30, 300]), st.integers(1, 40), st.booleans(), st.integers(0, 2**32 - 1)
)
@settings(max_examples=60, deadline=None)
def test_torch_chooses_what_numpy_does(n, m, k, coarse, seed):
    """Coarse scores are full of ties, which torch alone would settle in any way."""
    k = min(k, m)
    rng = np.random.default_rng(seed)
    scores = (rng.integers(-2, 3, (n, m)) if coarse else rng.standard_normal((n, m))).astype(np.float32)
    ours, expected = largest_positive_on_torch(torch.from_numpy(scores), k), largest_positive(scores, k)
    for name in ("indptr", "indices", "data"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(expected, name))


def test_torch_chooses_nothing_among_nan():
    scores = torch.zeros(2, 9)
    scores[1, 3] = torch.nan
    with pytest.raises(FloatingPointError, match="NaN"):
        largest_positive_on_torch(scores, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [0, 1, 70])
def test_scores_on_torch(n, dtype):
    generator = torch.Generator().manual_seed(0)
    x, encoder, bias = (torch.randn(shape, generator=generator, dtype=dtype) for shape in ((n, 21), (45, 21), (45,)))
    scores = Scores(encoder, bias)
    assert scores.onednn == (dtype == torch.float32 and torch.backends.mkldnn.is_available())
    found = scores(x)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, x.double() @ encoder.double().T + bias.double(), atol=1e-5)


@pytest.mark.parametrize("method", ["topk", "batch_topk", "relu_l1", "jumprelu", "gated"])
def test_an_encoder_starts_along_the_atoms_at_its_length(method):
    """A training of one step without a rate leaves the start as it was."""
    options = {"m": 40, "steps": 1, "batch_size": 100, "learning_rate": 1e-12}
    for scale in (1.0, 0.25):
        dictionary = fit(method, X, encoder_scale=scale, **options)
        np.testing.assert_allclose(dictionary.parameters["encoder"], scale * dictionary.atoms, atol=1e-6)


@pytest.mark.parametrize("dead", [[], [3], list(range(20)), list(range(45))])
def test_steps_are_those_of_torch(dead):
    """One step at a time: each starts from the same state, so that no near-tie can add up."""
    rng = np.random.default_rng(1)
    silent = np.isin(np.arange(45), dead)
    kernels, plain = (trainer_of(kind, aux_coefficient=0.5) for kind in (KernelTrainer, TorchTrainer))
    for number in range(5):
        x = rng.standard_normal((37, 13)).astype(np.float32)
        fvu, fired = kernels.step(x, silent, number)
        expected_fvu, expected_fired = plain.step(x, silent, number)
        assert fvu == pytest.approx(expected_fvu, rel=1e-5)
        np.testing.assert_array_equal(fired, expected_fired)
        for name, value in plain.parameters.items():
            np.testing.assert_allclose(kernels.parameters[name], value, rtol=1e-3, atol=2e-5, err_msg=name)
            for ours, theirs in zip(kernels.optimiser.moments[name], plain.optimiser.moments[name]):
                np.testing.assert_allclose(
                    ours, theirs, rtol=1e-3, atol=1e-6 * float(np.abs(theirs).max()), err_msg=name
                )
                ours[...] = theirs
            kernels.parameters[name][...] = value
        pack(kernels.parameters["encoder"], out=kernels.packed)


def test_curves_and_atoms_are_those_of_torch(monkeypatch):
    # A rate at which some atoms die, so that AuxK has work.
    kernels = fit("topk", X, threads=1, learning_rate=5e-3, **SETTINGS)
    monkeypatch.setenv("CONCEPTOME_KERNELS", "torch")
    plain = fit("topk", X, threads=1, learning_rate=5e-3, **SETTINGS)
    assert max(plain.card["training"]["curve"]["dead"]) > 0
    np.testing.assert_allclose(
        kernels.card["training"]["curve"]["fvu"], plain.card["training"]["curve"]["fvu"], rtol=1e-3
    )
    cosines = (kernels.atoms * plain.atoms).sum(axis=1)
    assert np.mean(cosines > 0.999) > 0.9
    assert kernels.card["options"] == plain.card["options"]


@pytest.mark.parametrize("method", ["topk", "random"])
def test_codes_are_those_of_torch_and_numpy(method, monkeypatch, tmp_path):
    options = SETTINGS if method == "topk" else {"m": 70, "k": 4}
    fitted = fit(method, X, threads=1, **options)
    fitted.save(tmp_path)
    codes = [fitted.encode(X).to_scipy(), fitted.encode(X[:, :], k=2).to_scipy()]
    for name in ("generic", "torch"):
        monkeypatch.setenv("CONCEPTOME_KERNELS", name)
        for again in (fitted, load(tmp_path)):
            others = [again.encode(X).to_scipy(), again.encode(X, k=2).to_scipy()]
            for ours, theirs in zip(codes, others):
                difference = np.abs((ours - theirs).toarray())
                assert (difference.max(axis=1) < 1e-4 * np.abs(theirs).max()).mean() > 0.99


@pytest.mark.parametrize("method", ["topk", "random"])
def test_bytes_do_not_depend_on_threads(method):
    options = SETTINGS if method == "topk" else {"m": 70, "k": 4}
    one, two = (fit(method, X, threads=threads, **options) for threads in (1, 2))
    if method == "topk":
        assert all(one.parameters[name].tobytes() == two.parameters[name].tobytes() for name in one.parameters)
    before = torch.get_num_threads()
    try:
        seen = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            codes = one.encode(X).to_scipy()
            seen.append((codes.indices.tobytes(), codes.data.tobytes()))
    finally:
        torch.set_num_threads(before)
    assert seen[0] == seen[1]
