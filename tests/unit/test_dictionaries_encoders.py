"""Encoders that read any dictionary: against the specification, and exchanged between dictionaries."""

from itertools import pairwise

import numpy as np
import pytest
from planted import fvu, mixture

from conceptome.config.base import rebuild
from conceptome.config.dictionaries import Dictionary as Options
from conceptome.dictionaries import fit, load
from conceptome.dictionaries.encoders import ENCODERS, encode, matching_pursuit
from conceptome.dictionaries.pursuit import plan
from conceptome.errors import ConfigError, DataError
from conceptome_kernels import available, reference

X, TRUTH = mixture(n=700, d=12, atoms=20, active=3)
ATOMS, BIAS = TRUTH.astype(np.float32), X.mean(axis=0)
COMPILED = pytest.param(True, marks=pytest.mark.skipif(not available(), reason="no compiled kernels"))
PATHS = pytest.mark.parametrize("kernels", [COMPILED, False])
ALL = pytest.mark.parametrize("encoder", ENCODERS)


@pytest.fixture
def path(kernels, monkeypatch):
    if not kernels:
        monkeypatch.setenv("CONCEPTOME_KERNELS", "torch")


def specified(encoder, x, atoms, bias, k, columns):
    x, atoms, bias = (value.astype(np.float64) for value in (x, atoms, bias))
    if encoder == "topk":
        return reference.encode_topk(x, atoms, np.zeros(len(atoms)), bias, k)
    if encoder == "mp":
        return reference.matching_pursuit(x, atoms, bias, k)
    if encoder == "omp":
        return reference.orthogonal_matching_pursuit(x, atoms, bias, k)
    return reference.icfl_pursuit(x, atoms, bias, plan(k, columns))[0]


@PATHS
@ALL
@pytest.mark.parametrize("k", [1, 4, 8])
def test_codes_are_those_of_the_specification(path, encoder, k):
    rows = X[:60]
    codes = encode(encoder, rows, ATOMS, BIAS, k, columns=2).toarray()
    expected = specified(encoder, rows, ATOMS, BIAS, k, 2)
    same = np.abs(codes - expected).max(axis=1) < 1e-3 * np.abs(expected).max()
    # Near-ties may be decided either way in float32.
    assert same.mean() > 0.95
    assert ((codes != 0).sum(axis=1) <= k).all()


@PATHS
def test_many_rows_and_atoms_that_depend_on_each_other(path, monkeypatch):
    monkeypatch.setattr("conceptome.dictionaries.encoders.ROWS", 100)
    monkeypatch.setattr("conceptome.dictionaries.encoders.ROWS_ORTHOGONAL", 30)
    twice = np.concatenate([ATOMS, ATOMS[:7], -ATOMS[:3]])
    for encoder in ("mp", "omp"):
        codes = encode(encoder, X[:250], twice, BIAS, 6).toarray()
        expected = specified(encoder, X[:250], twice, BIAS, 6, 1)
        decoded, right = codes @ twice, expected @ twice
        assert (np.abs(decoded - right).max(axis=1) < 1e-3 * np.abs(right).max()).mean() > 0.95
        assert np.isfinite(codes).all()


@PATHS
def test_rows_of_zeros_have_no_codes(path):
    rows = np.broadcast_to(BIAS, (3, 12)).copy()
    for encoder in ENCODERS:
        assert encode(encoder, rows, ATOMS, BIAS, 4, columns=2).nnz == 0
        assert encode(encoder, rows[:0], ATOMS, BIAS, 4, columns=2).shape == (0, 20)


@PATHS
def test_nonnegative_matching_pursuit(path):
    centred = X[:60] - BIAS
    codes = matching_pursuit(centred, ATOMS, 5, nonnegative=True)
    expected = reference.matching_pursuit(X[:60].astype(float), ATOMS.astype(float), BIAS.astype(float), 5, True)
    assert (np.abs(codes.toarray() - expected).max(axis=1) < 1e-3).mean() > 0.95
    assert codes.data.min() > 0


@PATHS
@pytest.mark.parametrize("encoder", ["mp", "omp", "icfl"])
def test_pursuits_only_gain_by_more_steps(path, encoder):
    left = []
    for k in range(1, 9):
        codes = encode(encoder, X, ATOMS, BIAS, k, columns=1)
        left.append(np.linalg.norm(X - BIAS - codes @ ATOMS, axis=1))
    for before, after in pairwise(left):
        assert (after <= before + 1e-4).all()
        assert after.mean() < before.mean()


def test_least_squares_fit_better_than_projections():
    unexplained = {
        encoder: fvu(X, encode(encoder, X, ATOMS, BIAS, 3, columns=1) @ ATOMS + BIAS) for encoder in ENCODERS
    }
    assert unexplained["omp"] < unexplained["mp"] < unexplained["topk"]


@pytest.fixture(scope="module")
def learned():
    return fit("topk", X, m=24, k=4, steps=60, batch_size=128, threads=1)


@ALL
def test_a_learned_dictionary_is_read_by_any_encoder(learned, encoder):
    codes = learned.encode(X, k=7, encoder=encoder)
    expected = encode(encoder, X, learned.atoms, learned.bias, 7, columns=4)
    assert (codes.to_scipy() != expected).nnz == 0
    assert learned.encode(X, encoder=encoder).l0().max() <= 4
    assert learned.decode(codes).shape == X.shape


def test_own_is_the_default(learned):
    assert learned.encoder == "own"
    own = learned.encode(X).to_scipy()
    assert (learned.encode(X, encoder="own").to_scipy() != own).nnz == 0


def test_dictionaries_that_differ_only_in_the_encoder(learned, tmp_path):
    other = fit("topk", X, m=24, k=4, steps=60, batch_size=128, threads=1, encoder="omp", encoder_k=6)
    for name, value in learned.parameters.items():
        np.testing.assert_array_equal(other.parameters[name], value)
    other.save(tmp_path)
    other = load(tmp_path)
    assert (other.encoder, other.k, other.own_k) == ("omp", 6, 4)
    expected = learned.encode(X, k=6, encoder="omp").to_scipy()
    assert (other.encode(X).to_scipy() != expected).nnz == 0
    assert (other.encode(X, encoder="own").to_scipy() != learned.encode(X).to_scipy()).nnz == 0
    with pytest.raises(ConfigError, match="between 1 and the 4 of this topk dictionary"):
        other.encode(X, k=6, encoder="own")


def test_icfl_takes_the_columns_it_is_told():
    other = fit("pca", X, k=6, encoder="icfl", encoder_columns=3)
    expected = encode("icfl", X, other.atoms, other.bias, 6, columns=3)
    assert (other.encode(X).to_scipy() != expected).nnz == 0


def test_the_configuration_knows_the_keys():
    options = rebuild(Options, {"method": "icfl", "encoder": "mp", "encoder_k": 8})
    assert (options.encoder, options.encoder_k, options.budget) == ("mp", 8, 32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": "best"}, "'encoder'"),
        ({"encoder_k": 3}, "encoder_k is for an encoder that is not the method's own"),
        ({"encoder": "mp", "encoder_k": 25}, r"m \(24 atoms\) must be at least encoder_k \(25\)"),
        ({"encoder": "omp", "encoder_k": 13}, "dictionary 'topk'.*no more than d = 12 atoms are independent"),
        ({"encoder": "icfl", "encoder_columns": 13}, "13 columns per round exceed the 24 atoms or 12 dimensions"),
    ],
)
def test_complaints_about_options(options, message):
    with pytest.raises(ConfigError, match=message) as error:
        fit("topk", X, m=24, k=4, steps=10**6, **options)
    assert "\n" not in str(error.value)


def test_complaints_when_encoding(learned):
    with pytest.raises(ConfigError, match="encoder 'best' is not known; choose one of own, topk"):
        learned.encode(X, encoder="best")
    with pytest.raises(ConfigError, match="k must lie between 1 and the 24 atoms"):
        learned.encode(X, k=25, encoder="mp")
    with pytest.raises(ConfigError, match="k must lie between 1 and the 24 atoms"):
        learned.encode(X, k=0, encoder="topk")
    with pytest.raises(DataError, match="12 dimensions"):
        learned.encode(X[:, :5], encoder="mp")
