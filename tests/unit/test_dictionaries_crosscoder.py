"""The crosscoder finds what two models share and what one of them has alone; latent scaling tells them apart."""

import numpy as np
import pytest
from planted import fvu

from conceptome.config.dictionaries import OPTIONS
from conceptome.dictionaries import fit, load
from conceptome.dictionaries.crosscoder import Crosscoder, CrosscoderTrainer, latent_scaling, parts
from conceptome.dictionaries.training import random_atoms
from conceptome.errors import ConfigError, DataError
from conceptome_kernels import available

SHARED, ALONE = 16, 6
OPTIONS_ = {"m": 48, "k": 4, "steps": 500, "batch_size": 256}
SIZES = {48: (1, 1), 51: (1, 100)}  # of the two models' activations, by their width together
KINDS = np.repeat(["both", "first", "second"], [SHARED, ALONE, ALONE])


def paired(widths, *, same, n=4000, seed=0):
    """Rows of two models side by side, and the planted atoms' unit parts in each: X (n, d), [(28, w₁), (28, w₂)]."""
    rng = np.random.default_rng(seed)
    total = len(KINDS)
    first, second = (rng.standard_normal((total, width)) for width in widths)
    if same:
        second = first.copy()
    first, second = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (first, second))
    first[KINDS == "second"] = 0
    second[KINDS == "first"] = 0
    columns = np.argsort(rng.random((n, total)), axis=1)[:, :4]
    Z = np.zeros((n, total))
    np.put_along_axis(Z, columns, rng.gamma(4, 0.5, (n, 4)) + 0.3, axis=1)
    blocks = [
        size * (Z @ part + 0.02 * rng.standard_normal((n, part.shape[1])) + rng.standard_normal(part.shape[1]))
        for size, part in zip(SIZES.get(sum(widths), (1, 1)), (first, second))
    ]
    return np.concatenate(blocks, axis=1).astype(np.float32), [first, second]


def found(dictionary, truth):
    """For each planted atom the learned one nearest to it, and its cosine; each model in units of its scale."""
    scales = np.repeat(dictionary.parameters["scales"], [part.shape[1] for part in truth])
    learned = dictionary.atoms / scales
    learned /= np.linalg.norm(learned, axis=1, keepdims=True)
    # What is planted is stated before the models' sizes: parts of one length, but for models of unlike variance.
    sizes = dictionary.parameters["scales"] / dictionary.parameters["scales"][0] / np.array(SIZES[len(scales)])
    whole = np.concatenate([part / size for part, size in zip(truth, sizes)], axis=1)
    whole /= np.linalg.norm(whole, axis=1, keepdims=True)
    cosines = whole @ learned.T
    return cosines.argmax(axis=1), cosines.max(axis=1)


@pytest.fixture(scope="module")
def together():
    X, truth = paired((24, 24), same=True)
    return X, truth, fit("crosscoder", X, widths=[24, 24], threads=1, **OPTIONS_)


def test_shared_and_specific_atoms_are_found(together):
    X, truth, dictionary = together
    which, cosines = found(dictionary, truth)
    assert cosines.mean() > 0.93
    assert fvu(X, dictionary.decode(dictionary.encode(X))) < 0.12
    share = dictionary.norms[which, 0]
    assert np.abs(share[KINDS == "both"] - 0.5).max() < 0.2
    assert share[KINDS == "first"].min() > 0.8
    assert share[KINDS == "second"].max() < 0.2


def test_latent_scaling_tells_them_apart(together):
    X, truth, dictionary = together
    which, _ = found(dictionary, truth)
    scaling = latent_scaling(dictionary, X, owner=1)
    specific = scaling.specific(1, than=0)[which]
    assert specific[KINDS == "second"].all()
    assert not specific[KINDS == "both"].any()
    first = latent_scaling(dictionary, X, owner=0).specific(0, than=1)[which]
    assert first[KINDS == "first"].all()
    assert not first[KINDS == "both"].any()
    error, reconstruction = scaling.ratios(0, 1)
    assert np.abs(error[which][KINDS == "both"] - 1).max() < 0.3
    assert np.abs(reconstruction[which][KINDS == "both"] - 1).max() < 0.5
    np.testing.assert_allclose(scaling.error[which][KINDS == "both"], 1, atol=0.3)


def test_a_part_that_was_only_shrunk_is_no_proof(together):
    """An atom of both models whose part in the first is taken away: its norm says specific, latent scaling does not."""
    X, truth, dictionary = together
    which, _ = found(dictionary, truth)
    victim = which[0]
    parameters = {name: value.copy() for name, value in dictionary.parameters.items()}
    parameters["atoms"][victim, :24] = 0
    length = np.linalg.norm(parameters["atoms"][victim])
    parameters["atoms"][victim] /= length
    for name in ("encoder", "encoder_bias", "threshold"):
        parameters[name][victim] *= length
    shrunk = Crosscoder(parameters, dictionary.card)
    assert shrunk.norms[victim, 0] == 0
    scaling = latent_scaling(shrunk, X, owner=1)
    assert not scaling.specific(1, than=0)[victim]
    assert scaling.ratios(0, 1)[0][victim] > 0.6


def test_models_of_other_widths_and_sizes():
    X, truth = paired((20, 31), same=False)
    dictionary = fit("crosscoder", X, widths=[20, 31], threads=1, **OPTIONS_)
    which, cosines = found(dictionary, truth)
    assert cosines.mean() > 0.85
    for columns in dictionary.parts:
        decoded = dictionary.decode(dictionary.encode(X))
        assert fvu(X[:, columns], decoded[:, columns]) < 0.2
    specific = latent_scaling(dictionary, X, owner=1, direction="best").specific(1, than=0)[which]
    assert specific[KINDS == "second"].mean() > 0.8
    assert not specific[KINDS == "both"].any()
    with pytest.raises(ConfigError, match=r"models of widths \[20, 31\] share no space: use direction='best'"):
        latent_scaling(dictionary, X, owner=1)
    with pytest.raises(ConfigError, match="owner must lie between 0 and 1"):
        latent_scaling(dictionary, X, owner=2, direction="best")


def test_scaling_of_one_atom_by_hand():
    rng = np.random.default_rng(0)
    atoms = np.array([[0.6, 0, 0.8, 0], [0, 1, 0, 0]])
    X = rng.gamma(2, 1, (200, 2)) @ np.array([[3, 0, 4, 0], [0, 0.5, 0, 0]]) + 0.1 * rng.standard_normal((200, 4))
    card = {"k": 2, "own_k": 2, "options": {"widths": [2, 2]}, "seed": 0}
    parameters = {
        "atoms": atoms, "encoder": atoms, "encoder_bias": np.zeros(2), "bias": np.zeros(4),
        "threshold": np.zeros(2), "scales": np.ones(2),
    }  # fmt: skip
    dictionary = Crosscoder(parameters, card)
    scaling = latent_scaling(dictionary, X, owner=0)
    X = X.astype(np.float32).astype(np.float64)
    f = dictionary.encode(X).to_scipy().toarray().astype(np.float64)
    decoded = f @ atoms
    for model in (0, 1):
        for atom in (0, 1):
            v, columns = atoms[atom, :2], slice(2 * model, 2 * model + 2)
            left = X[:, columns] - decoded[:, columns] + np.outer(f[:, atom], atoms[atom, columns])
            for Y, beta in ((left, scaling.error), (decoded[:, columns], scaling.reconstruction)):
                flat = np.outer(f[:, atom], v).ravel()
                expected = np.linalg.lstsq(flat[:, None], Y.ravel(), rcond=None)[0][0]
                assert beta[atom, model] == pytest.approx(expected, abs=1e-6)


def trainer():
    options = OPTIONS["crosscoder"](method="crosscoder", m=30, k=3, widths=[5, 4])
    return CrosscoderTrainer(random_atoms(30, 9, 0), np.zeros(9, dtype=np.float32), options, np.ones(9, np.float32))


@pytest.mark.parametrize("kernels", [True, False])
def test_what_is_kept_is_the_largest_times_the_decoder_s_lengths(kernels, monkeypatch):
    if not kernels:
        monkeypatch.setenv("CONCEPTOME_KERNELS", "torch")
    elif not available():
        pytest.skip("no compiled kernels")
    made = trainer()
    x = np.random.default_rng(1).standard_normal((40, 9)).astype(np.float32)
    active = made.choose(x)
    scores = np.maximum(x @ made.parameters["encoder"].T, 0)
    atoms = made.parameters["atoms"]
    weights = np.linalg.norm(atoms[:, :5], axis=1) + np.linalg.norm(atoms[:, 5:], axis=1)
    smallest = np.sort((scores * weights).ravel())[-40 * 3]
    expected = np.where(scores * weights >= smallest, scores, 0)
    np.testing.assert_allclose(active.csr(30).toarray(), expected, atol=1e-5)
    assert made.threshold == pytest.approx(smallest, rel=1e-4)
    # The weights matter: without them other places are kept.
    plain = scores >= np.sort(scores.ravel())[-40 * 3]
    assert (plain != (expected > 0)).any()


def test_codes_do_not_depend_on_the_rows_beside_them(together, tmp_path):
    X, _, dictionary = together
    dictionary.save(tmp_path)
    again = load(tmp_path)
    whole, alone = dictionary.encode(X[:20]).to_scipy().toarray(), again.encode(X[7:8]).to_scipy().toarray()
    np.testing.assert_allclose(alone[0], whole[7], atol=1e-5)
    assert 2 < dictionary.encode(X).l0().mean() < 6


def test_the_state_goes_round():
    one, other = trainer(), trainer()
    one.choose(np.random.default_rng(1).standard_normal((40, 9)).astype(np.float32))
    other.restore(one.state())
    assert other.threshold == one.threshold
    assert parts([2, 3]) == [slice(0, 2), slice(2, 5)]


def test_complaints():
    X, _ = paired((6, 6), same=False, n=50)
    with pytest.raises(ConfigError, match=r"widths \[6, 5\] sum to 11, but the activations have 12 dimensions"):
        fit("crosscoder", X, m=20, k=2, widths=[6, 5])
    with pytest.raises(ConfigError, match="'widths'"):
        fit("crosscoder", X, m=20, k=2)
    with pytest.raises(ConfigError, match="'widths'"):
        fit("crosscoder", X, m=20, k=2, widths=[12])
    X[:, 6:] = 3
    with pytest.raises(DataError, match="activations of model 2 are the same in all training rows"):
        fit("crosscoder", X, m=20, k=2, widths=[6, 6])
