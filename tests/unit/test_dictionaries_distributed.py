"""Gradients that are formed: cut to length, and averaged over two processes."""

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pandas as pd
import psutil
import pytest
from planted import mixture

import conceptome_kernels
from conceptome.activations import write_store
from conceptome.config.dictionaries import OPTIONS
from conceptome.config.models import Whitening as WhiteningConfig
from conceptome.dictionaries import fit, learn, load
from conceptome.dictionaries.distributed import Alone, Group, main
from conceptome.dictionaries.topk import ExplicitTrainer, KernelTrainer, TorchTrainer, new_trainer
from conceptome.dictionaries.training import Adam, random_atoms
from conceptome.errors import ConfigError, DataError
from conceptome.whitening import fit as fit_whitening

FILES = ("dictionary.safetensors", "card.json")
X = mixture()[0]
KERNELS = pytest.mark.skipif(not conceptome_kernels.available(), reason="no compiled kernels")
# Atoms die and AuxK works: its loss is divided by the residual of all processes' rows.
OPTION = {"m": 70, "k": 4, "steps": 120, "batch_size": 200, "dead_after": 600, "k_aux": 7, "aux_coefficient": 0.5}


def trainer_of(kind, m=45, d=13, **options):
    atoms = random_atoms(m, d, seed=0)
    parameters = {
        "atoms": atoms,
        "encoder": atoms.copy(),
        "encoder_bias": np.linspace(-0.1, 0.1, m, dtype=np.float32),
        "bias": np.linspace(-1, 1, d, dtype=np.float32),
    }
    made = kind(parameters, OPTIONS["topk"](method="topk", m=m, k=5, k_aux=3, aux_coefficient=0.5, **options))
    made.optimiser.learning_rate, made.optimiser.clip = 1e-3, options.get("gradient_clip")
    return made


@KERNELS
@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("dead", [[], [3], list(range(45))])
def test_explicit_steps_are_those_of_torch(dead, clip):
    rng = np.random.default_rng(1)
    silent = np.isin(np.arange(45), dead)
    kernels, plain = (trainer_of(kind, gradient_clip=clip) for kind in (ExplicitTrainer, TorchTrainer))
    for number in range(3):
        x = rng.standard_normal((37, 13)).astype(np.float32)
        fvu, fired = kernels.step(x, silent, number)
        expected_fvu, expected_fired = plain.step(x, silent, number)
        assert fvu == pytest.approx(expected_fvu, rel=1e-5)
        np.testing.assert_array_equal(fired, expected_fired)
        for name, value in plain.parameters.items():
            np.testing.assert_allclose(kernels.parameters[name], value, rtol=1e-3, atol=2e-5, err_msg=name)
            for ours, theirs in zip(kernels.optimiser.moments[name], plain.optimiser.moments[name]):
                np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-6 * np.abs(theirs).max(), err_msg=name)
                ours[...] = theirs
            kernels.parameters[name][...] = value
        kernels.restore(kernels.state())


def test_gradients_are_cut_to_their_common_length():
    adam = Adam({"a": np.zeros(2), "b": np.zeros(1)})
    adam.clip = 1.3
    adam.step({"a": np.array([3.0, 4.0]), "b": np.array([12.0])})
    # Length 13: all are divided by ten; after one step the first moment holds a tenth of that.
    np.testing.assert_allclose(adam.moments["a"][0], [0.03, 0.04])
    np.testing.assert_allclose(adam.moments["b"][0], [0.12])
    adam.step({"a": np.array([0.1, 0.0]), "b": np.array([0.0])})
    np.testing.assert_allclose(adam.moments["a"][0], [0.9 * 0.03 + 0.1 * 0.1, 0.9 * 0.04])
    with pytest.raises(ConfigError, match="forms no gradients, which gradient_clip would need"):
        adam.advance()


@KERNELS
def test_the_fused_step_is_taken_unless_gradients_are_needed():
    def chosen(**options):
        atoms = np.eye(4, dtype=np.float32)
        parameters = {"atoms": atoms, "encoder": atoms.copy(), "encoder_bias": atoms[0].copy(), "bias": atoms[0].copy()}
        return type(new_trainer(parameters, OPTIONS["topk"](method="topk", m=4, k=2, **options), "cpu"))

    assert chosen() is KernelTrainer
    assert chosen(gradient_clip=1.0) is ExplicitTrainer


CUT = {
    "topk": {"k": 4},
    "icfl": {"rounds": 2, "columns": 2},
    "batch_topk": {"k": 4},
    "matryoshka": {"k": 4},
    "relu_l1": {},
    "p_annealing": {},
    "jumprelu": {"k": 4},
    "gated": {},
    "crosscoder": {"k": 4, "widths": [20, X.shape[1] - 20]},
}


@pytest.mark.parametrize("method", CUT)
def test_clipping_from_the_configuration(method):
    options = {"m": 32, **CUT[method]}
    free, wide, tight = (
        fit(method, X[:1000], threads=1, steps=20, batch_size=128, gradient_clip=clip, **options)
        for clip in (None, 1e6, 1e-12)
    )
    np.testing.assert_allclose(wide.atoms, free.atoms, atol=1e-4)
    # So short a gradient is lost beside Adam's epsilon: the atoms stay where they began.
    started = random_atoms(32, X.shape[1], 0)
    assert np.abs(tight.atoms - started).max() < 0.1 * np.abs(free.atoms - started).max()


def test_one_process_alone_changes_nothing():
    x = np.arange(6.0)
    assert Alone().part(x) is x
    assert Alone().mean(x) is x


def test_started_without_torchrun_it_says_so(capsys, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert main(["topk", "nowhere", "nowhere"]) == 1
    assert "started by torchrun" in capsys.readouterr().err


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    obs = pd.DataFrame({"split": "train"}, index=pd.Index([f"s{i}" for i in range(len(X))], name="sample_id"))
    return write_store(tmp_path_factory.mktemp("store"), [X], obs, {"model": "test"}, rows_per_shard=1500)


def in_two_processes(method, store, output, options, *more):
    return subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1",
            "--nproc-per-node", "2", "--max-restarts", "1", "-m", "conceptome.dictionaries.distributed",
            method, str(store.folder),
            str(output), *(part for key, value in options.items() for part in ("--option", f"{key}={value}")), *more,
        ],
        env={
            **os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1",
            # Restarted processes otherwise look for each other at the addresses of their predecessors.
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        },
        text=True, capture_output=True, timeout=300,
    )  # fmt: skip


SHARING = {
    "topk": OPTION,
    "icfl": {"m": 64, "rounds": 2, "columns": 2},
    "relu_l1": {"m": 64},
    "p_annealing": {"m": 64},
    "jumprelu": {"m": 64, "k": 4},
    "gated": {"m": 64},
}


@pytest.mark.parametrize(
    "method", [name if name == "topk" else pytest.param(name, marks=pytest.mark.slow) for name in SHARING]
)
def test_two_processes_give_the_curve_of_one(store, tmp_path, method):
    options = {"steps": 120, "batch_size": 200, **SHARING[method]}
    done = in_two_processes(method, store, tmp_path / "two", options)
    assert done.returncode == 0, done.stderr
    one, two = fit(method, store, threads=1, **options), load(tmp_path / "two")
    ours, theirs = two.card["training"]["curve"], one.card["training"]["curve"]
    assert ours["step"] == theirs["step"]
    assert ours["learning_rate"] == theirs["learning_rate"]
    np.testing.assert_allclose(ours["fvu"], theirs["fvu"], rtol=2e-3)
    np.testing.assert_allclose(ours["l0"], theirs["l0"], rtol=2e-3)
    np.testing.assert_allclose(ours["dead"], theirs["dead"], atol=2)
    assert np.mean((two.atoms * one.atoms).sum(axis=1) > 0.999) > 0.9
    if method == "topk":
        assert max(theirs["dead"]) > 0


def test_a_batch_that_cannot_be_shared_is_refused():
    group = object.__new__(Group)
    group.rank, group.size = 1, 2
    np.testing.assert_array_equal(group.part(np.arange(6)), [3, 4, 5])
    with pytest.raises(ConfigError, match="batches of 5 rows cannot be shared by 2 processes: mend batch_size"):
        group.part(np.arange(5))


def test_a_method_that_does_not_share_what_it_learns_is_refused(monkeypatch):
    two = Alone()
    two.size = 2
    monkeypatch.setattr("conceptome.dictionaries.training.current", lambda: two)
    with pytest.raises(ConfigError, match="'ksvd' is trained by one process"):
        fit("ksvd", X[:500], m=32, k=4, steps=2)


def test_as_many_processes_as_the_configuration_asks_for():
    with pytest.raises(ConfigError, match=r"asks for 2 processes and has 1: learn it by the workflow"):
        fit("topk", X[:500], m=32, k=4, steps=2, processes=2)
    with pytest.raises(ConfigError, match=r"'batch_size' .* must be a multiple of 'processes'"):
        fit("topk", X[:500], m=32, k=4, batch_size=33, processes=2)
    assert "processes" not in fit("topk", X[:500], m=32, k=4, steps=2).card["options"]


def killed_once(state):
    """Wait for the checkpoint, then kill one of the processes of a training; gives a list that gets its number."""
    killed = []

    def kill_one():
        while not state.exists():
            time.sleep(0.01)
        mark = {"conceptome.dictionaries.distributed", "torch.distributed.run"}
        found = [
            process
            for process in psutil.Process().children(recursive=True)
            if {"conceptome.dictionaries.distributed"} == set(process.cmdline()) & mark
        ]
        found[0].kill()
        killed.append(found[0].pid)

    threading.Thread(target=kill_one, daemon=True).start()
    return killed


@pytest.mark.slow
def test_learning_by_two_processes_survives_the_death_of_one(store, tmp_path):
    options = OPTION | {"steps": 400, "checkpoint_every": 20, "checkpoint_seconds": 0, "processes": 2}
    fitted = fit_whitening(store, np.ones(len(X), dtype=bool), WhiteningConfig(method="pca"))
    killed = killed_once(tmp_path / "again" / "processes0" / "seed0.safetensors")
    made = []
    for name in ("again", "whole"):
        rows = np.arange(len(X)) % 5 > 0
        [(dictionary, codes)] = learn(
            "topk", store, fitted, rows=rows, seeds=[0], threads=2, checkpoint=tmp_path / name, **options
        )
        dictionary.save(tmp_path / f"{name}.dictionary")
        assert not (tmp_path / name).exists()
        assert dictionary.card["options"]["processes"] == 2
        made.append([(tmp_path / f"{name}.dictionary" / file).read_bytes() for file in FILES])
        made[-1].append(codes.to_scipy().toarray().tobytes())
    assert killed
    assert made[0] == made[1]


def test_what_a_process_complains_of_is_the_error(store, tmp_path, monkeypatch):
    whitening = fit_whitening(store, np.ones(len(X), dtype=bool), WhiteningConfig(method="none"))
    told = [sys.executable, "-c", "import sys; sys.exit('error: lower learning_rate')"]
    started = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda command, **rest: started(told, **rest))
    with pytest.raises(DataError, match=r"^lower learning_rate$"):
        list(
            learn(
                "topk", store, whitening, rows=np.ones(len(X), dtype=bool), seeds=[0], checkpoint=tmp_path / "state",
                processes=2, **OPTION,
            )
        )  # fmt: skip


@pytest.mark.slow
def test_a_process_that_is_killed_is_started_again_and_the_bytes_are_the_same(store, tmp_path):
    options = OPTION | {"steps": 400, "checkpoint_every": 20, "checkpoint_seconds": 0}
    assert in_two_processes("topk", store, tmp_path / "whole", options).returncode == 0
    state = tmp_path / "state" / "seed0.safetensors"
    killed = killed_once(state)
    done = in_two_processes("topk", store, tmp_path / "again", options, "--checkpoint", str(tmp_path / "state"))
    assert killed
    assert done.returncode == 0, done.stderr
    for file in FILES:
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
