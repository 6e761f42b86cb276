"""Every method through the one interface: contracts that hold for all, and complaints."""

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from planted import fvu, mixture

from conceptome.activations import write_store
from conceptome.codes import Codes
from conceptome.config.base import validate
from conceptome.config.dictionaries import OPTIONS
from conceptome.config.models import Whitening as WhiteningConfig
from conceptome.dictionaries import METHODS, fit, fit_many, learn, load
from conceptome.dictionaries.rows import StoreRows, training_rows
from conceptome.errors import ConfigError, DataError
from conceptome.files import write_json
from conceptome.whitening import fit as fit_whitening
from conceptome_kernels import available

X = mixture(n=600, d=12, atoms=16, active=3)[0]
QUICK = {
    "topk": {"m": 24, "k": 4, "steps": 30, "batch_size": 128},
    "icfl": {"m": 24, "rounds": 2, "columns": 2, "steps": 30, "batch_size": 128},
    "random": {"m": 24, "k": 4},
    "batch_topk": {"m": 24, "k": 4, "steps": 30, "batch_size": 128},
    "matryoshka": {"m": 24, "k": 4, "steps": 30, "batch_size": 128},
    "relu_l1": {"m": 24, "steps": 30, "batch_size": 128},
    "p_annealing": {"m": 24, "steps": 30, "batch_size": 128},
    "jumprelu": {"m": 24, "k": 4, "steps": 30, "batch_size": 128},
    "gated": {"m": 24, "steps": 30, "batch_size": 128},
    "pca": {},
    "ica": {},
    "identity": {},
    "mp_sae": {"m": 24, "k": 4, "steps": 30, "batch_size": 128},
    "archetypal": {"m": 24, "k": 4, "steps": 30, "batch_size": 128, "candidates": 40},
    "snmf": {"m": 24, "k": 4, "max_iterations": 40},
    "nmf": {"m": 24, "k": 4, "negatives": "split", "max_iterations": 60},
    "kmeans": {"m": 24, "k": 4},
    "crosscoder": {"m": 24, "k": 4, "steps": 30, "batch_size": 128, "widths": [7, 5]},
    "ksvd": {"m": 24, "k": 4, "steps": 10, "batch_size": 256},
}
SEEDED = set(QUICK) - {"pca", "ica", "identity"}
ALL = pytest.mark.parametrize("name", sorted(METHODS))


@pytest.fixture(scope="module")
def fitted():
    return {name: fit(name, X, seed=1, threads=1, **options) for name, options in QUICK.items()}


@ALL
def test_atoms_are_unit_rows(fitted, name):
    dictionary = fitted[name]
    assert dictionary.atoms.dtype == np.float32
    assert dictionary.atoms.shape == (dictionary.card["m"], 12)
    # Not a square matrix by accident: the columns must NOT be what is normalised.
    np.testing.assert_allclose(np.linalg.norm(dictionary.atoms, axis=1), 1, atol=1e-5)


@ALL
def test_decode_is_codes_times_atoms_plus_bias(fitted, name):
    dictionary = fitted[name]
    codes = dictionary.encode(X)
    expected = codes.to_scipy().toarray().astype(np.float64) @ dictionary.atoms + dictionary.bias
    np.testing.assert_allclose(dictionary.decode(codes), expected, atol=1e-4)
    assert dictionary.decode(codes).dtype == np.float32
    assert codes.l0().max() <= dictionary.k


@ALL
def test_better_than_the_mean(fitted, name):
    dictionary = fitted[name]
    assert fvu(X, dictionary.decode(dictionary.encode(X))) < 0.9


@ALL
def test_round_trip_through_a_folder(fitted, name, tmp_path):
    dictionary = fitted[name]
    dictionary.save(tmp_path)
    again = load(tmp_path)
    assert type(again) is type(dictionary)
    assert again.card == dictionary.card
    assert again.parameters.keys() == dictionary.parameters.keys()
    for key, value in dictionary.parameters.items():
        np.testing.assert_array_equal(again.parameters[key], value)
    assert (again.encode(X).to_scipy() != dictionary.encode(X).to_scipy()).nnz == 0
    assert {path.name for path in tmp_path.iterdir()} == {"card.json", "dictionary.safetensors"}


@ALL
def test_same_seed_same_bytes_other_seed_other_atoms(fitted, name, tmp_path):
    fitted[name].save(tmp_path / "a")
    fit(name, X, seed=1, threads=1, **QUICK[name]).save(tmp_path / "b")
    for file in ("card.json", "dictionary.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    if name in SEEDED:
        other = fit(name, X, seed=2, threads=1, **QUICK[name])
        assert not np.array_equal(other.atoms, fitted[name].atoms)


@ALL
def test_smaller_budgets_fit_worse(fitted, name):
    dictionary = fitted[name]
    values = [fvu(X, dictionary.decode(dictionary.encode(X, k=k))) for k in (1, 2, 4)]
    assert values[0] > values[1] > values[2]
    assert dictionary.encode(X, k=2).l0().max() <= 2


@ALL
def test_rows_outside_the_mask_do_not_count(fitted, name):
    options = QUICK[name]
    mask = np.zeros(1200, dtype=bool)
    mask[::2] = True
    both = np.empty((1200, 12), dtype=np.float32)
    both[::2], both[1::2] = X, 1e6
    masked = fit(name, both, seed=1, threads=1, rows=mask, **options)
    for key, value in fitted[name].parameters.items():
        np.testing.assert_array_equal(masked.parameters[key], value)


@ALL
def test_few_rows_and_a_batch_larger_than_they_are(name):
    options = QUICK[name] | ({"batch_size": 4096, "steps": 5} if "steps" in QUICK[name] else {})
    dictionary = fit(name, X[:9], threads=1, **options)
    assert np.isfinite(dictionary.decode(dictionary.encode(X))).all()


@ALL
def test_no_rows_give_no_codes(fitted, name):
    assert fitted[name].encode(X[:0]).shape == (0, fitted[name].m)


@ALL
def test_complaints_about_rows(fitted, name):
    options = QUICK[name]
    with pytest.raises(DataError, match="no training rows"):
        fit(name, X, rows=np.zeros(len(X), dtype=bool), **options)
    with pytest.raises(DataError, match="boolean mask over 600 samples"):
        fit(name, X, rows=np.ones(3, dtype=bool), **options)
    bad = X.copy()
    bad[3:5, 7] = np.nan
    with pytest.raises(DataError, match="dimension 7 holds 2 NaN or infinite"):
        fit(name, bad, **options)
    with pytest.raises(DataError, match="dimension 7 holds 2 NaN or infinite"):
        fitted[name].encode(bad)
    with pytest.raises(DataError, match="12 dimensions"):
        fitted[name].encode(X[:, :5])
    with pytest.raises(DataError, match="do not fit a dictionary"):
        fitted[name].decode(Codes(np.ones((2, 3))))
    with pytest.raises(ConfigError, match="k must lie between 1 and"):
        fitted[name].encode(X, k=fitted[name].k + 1)
    with pytest.raises(ConfigError, match="k must lie between 1 and"):
        fitted[name].encode(X, k=0)


@pytest.mark.parametrize("name", ["topk", "icfl", "pca", "ica"])
def test_constant_rows_have_nothing_to_explain(name):
    with pytest.raises(DataError, match="the same"):
        fit(name, np.full((50, 4), 3.3), **QUICK[name])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("topk", {"m": 4, "k": 5}, r"m \(4 atoms\) must be at least k \(5"),
        ("random", {"m": 4, "k": 5}, r"m \(4 atoms\) must be at least k \(5"),
        ("icfl", {"m": 4, "rounds": 3, "columns": 2}, r"must be at least rounds × columns \(6\)"),
        ("icfl", {"m": 40, "k": 7}, r"k must be rounds × columns = 32"),
        ("pca", {"k": 13}, r"k \(13\) exceeds the activations' 12 dimensions"),
        ("pca", {"m": 13}, r"m \(13\) exceeds the activations' 12 dimensions"),
        ("ica", {"k": 13}, r"k \(13\) exceeds"),
        ("identity", {"k": 13}, r"k \(13\) exceeds"),
        ("identity", {"m": 5}, r"one atom per dimension \(12\)"),
        ("topk", {"stepz": 5}, r"unknown key 'stepz'; did you mean 'steps'"),
        ("topk", {"steps": "many"}, r"'steps'"),
        ("topk", {"device": "quantum"}, r"device 'quantum' is not supported"),
        ("topk", {"device": "cuda:99"}, r"device 'cuda:99' is not there"),
        ("icfl", {"device": "cuda"}, r"device 'cuda' is not supported"),
        ("topk", {"adam_beta2": 1.0}, r"'adam_beta2'"),
        ("ksvd", {"adam_beta2": 0.9}, r"ksvd follows no gradients: leave adam_beta2 out"),
        ("ksvd", {"gradient_clip": 1.0}, r"ksvd follows no gradients: leave gradient_clip out"),
        ("topk", {"encoder_scale": 0}, r"'encoder_scale'"),
        ("topp", {}, r"'topp' is not known; choose one of"),
    ],
)
def test_complaints_about_options(name, options, message):
    with pytest.raises(ConfigError, match=message):
        fit(name, X, **options)


def test_a_device_of_the_configuration_is_looked_for_where_it_trains():
    validate(OPTIONS["topk"], {"method": "topk", "device": "cuda"}, "here no GPU is needed")
    with pytest.raises(ConfigError, match=r"device 'cuda:99' is not there"):
        fit_many([("topk", {"m": 24, "k": 4, "device": "cuda:99"}, 0)], X)
    with pytest.raises(ConfigError, match="do not go together"):
        validate(OPTIONS["topk"], {"method": "topk", "device": "cuda", "processes": 2}, "topk")
    with pytest.raises(ConfigError, match="'device'"):
        validate(OPTIONS["topk"], {"method": "topk", "device": "quantum"}, "topk")
    assert "device" not in fit("topk", X, **QUICK["topk"]).card["options"]


def test_complaints_about_folders(tmp_path, fitted):
    with pytest.raises(DataError, match="no finished dictionary"):
        load(tmp_path)
    fitted["pca"].save(tmp_path)
    (tmp_path / "dictionary.safetensors").write_bytes(b"short")
    with pytest.raises(DataError, match="cannot be read"):
        load(tmp_path)
    write_json(tmp_path / "card.json", fitted["pca"].card | {"schema_version": 99})
    with pytest.raises(DataError, match="schema 99"):
        load(tmp_path)


def test_the_card_says_what_was_fitted(fitted):
    card = fitted["topk"].card
    assert (card["method"], card["m"], card["d"], card["k"], card["seed"]) == ("topk", 24, 12, 4, 1)
    assert card["options"]["steps"] == 30
    assert card["training"]["n_seen"] == 30 * 128
    assert card["training"]["curve"]["step"] == [30]
    assert card["training"]["fvu"] == card["training"]["curve"]["fvu"][-1]
    assert fitted["ica"].card["training"]["converged"] in (True, False)


@pytest.fixture(scope="module")
def store_and_whitening(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    obs = pd.DataFrame({"split": "train", "control": True}, index=[f"s{i}" for i in range(len(X))])
    store = write_store(folder, [X], obs.rename_axis("sample_id"), {"model": "test"}, rows_per_shard=250)
    return store, fit_whitening(store, np.ones(len(X), dtype=bool), WhiteningConfig(method="pca", n_components=8))


def test_a_store_is_whitened_on_the_way(store_and_whitening):
    store, whitening = store_and_whitening
    rows = np.arange(len(X)) % 3 > 0
    streamed = fit("topk", store, rows=rows, whitening=whitening, threads=1, **QUICK["topk"])
    direct = fit("topk", whitening.transform(X[rows]), threads=1, **QUICK["topk"])
    assert streamed.card["d"] == 8
    np.testing.assert_allclose(streamed.atoms, direct.atoms, atol=1e-5)


def test_a_store_beyond_the_memory_limit_gives_the_same_rows(store_and_whitening):
    store, whitening = store_and_whitening
    kept, read = (training_rows(store, None, whitening, memory_limit=limit) for limit in (2**30, 10))
    assert isinstance(read, StoreRows)
    index = np.array([599, 0, 250, 251, 3])
    np.testing.assert_allclose(kept.take(index), read.take(index), atol=1e-6)


@pytest.mark.parametrize("limit", [2**30, 10])
def test_learn_gives_every_seed_and_every_row(store_and_whitening, limit):
    store, whitening = store_and_whitening
    rows = np.arange(len(X)) < 400
    seen = []
    fits = list(
        learn(
            "topk", store, whitening, rows=rows, seeds=[3, 5], threads=1, memory_limit=limit,
            progress=lambda done, total: seen.append((done, total)), **QUICK["topk"],
        )
    )  # fmt: skip
    assert seen == [(30, 60), (60, 60)]
    assert [dictionary.card["seed"] for dictionary, _ in fits] == [3, 5]
    for dictionary, codes in fits:
        assert codes.shape == (600, 24)
        expected = dictionary.encode(whitening.transform(X)).to_scipy()
        np.testing.assert_allclose(codes.to_scipy().toarray(), expected.toarray(), atol=1e-4)


def test_baselines_do_not_import_torch():
    script = (
        "import sys, numpy as np\n"
        "from conceptome.dictionaries import fit\n"
        "X = np.random.default_rng(0).standard_normal((50, 6))\n"
        "for name in ('pca', 'ica', 'random', 'identity'):\n"
        "    fit(name, X, threads=1, **({'m': 8, 'k': 2} if name == 'random' else {})).encode(X)\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, env={"PYTHONPATH": ":".join(sys.path)})


@pytest.mark.skipif(not available(), reason="no compiled kernels")
def test_compiled_kernels_do_without_torch():
    names = ("mp_sae", "ksvd", "archetypal", "crosscoder", "snmf", "nmf", "kmeans")
    script = (
        "import sys, numpy as np\n"
        "from conceptome.dictionaries import fit\n"
        "X = np.random.default_rng(0).standard_normal((60, 12))\n"
        f"for name, options in {[(name, QUICK[name]) for name in names]}:\n"
        "    dictionary = fit(name, X, threads=1, **options)\n"
        "    for encoder in ('own', 'topk', 'mp', 'omp', 'icfl'):\n"
        "        dictionary.encode(X, k=2, encoder=encoder)\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, env={**os.environ, "PYTHONPATH": ":".join(sys.path)})
