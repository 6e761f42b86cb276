"""What every adapter of a checkpoint promises, on a tiny checkpoint with random weights in its real on-disk format."""

from __future__ import annotations

import logging
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from tiny_checkpoints import CASES, LAYERS, Case

from conceptome.activations import Store, StoreWriter
from conceptome.config.base import rebuild
from conceptome.config.models import Model
from conceptome.errors import ConfigError, SourceError
from conceptome.files import sha256_file
from conceptome.models import embed

torch = pytest.importorskip("torch")

TOLERANCE = 1e-5
NO_TIMM = "timm is not installed: its models cannot be built; it is in requirements.lock"
needs_timm = pytest.mark.skipif(find_spec("timm") is None, reason=NO_TIMM)
MARKED = [
    pytest.param(case, id=case.name, marks=needs_timm if case.name in ("timm", "channel_agnostic_mae") else ())
    for case in CASES
]
# A recurrent model has no halves of a layer, and parallel blocks add theirs together.
WITHOUT_HALVES = ("unirep", "channel_agnostic_mae")
every = pytest.mark.parametrize("case", MARKED)
# Four kinds of vision transformer share one adapter: one of them stands for what does not depend on the kind.
one_each = pytest.mark.parametrize(
    "case", [each for each in MARKED if each.values[0].name not in ("vit", "dinov2_with_registers", "dinov3_vit")]
)
residual = pytest.mark.parametrize(
    "case", [each for each in MARKED if each.values[0].pre_norm and each.values[0].name not in WITHOUT_HALVES]
)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """Each case's folder and options, written once."""
    made: dict[str, tuple[Path, dict]] = {}

    def get(case: Case) -> tuple[Path, dict]:
        if case.name not in made:
            folder = tmp_path_factory.mktemp("checkpoints") / case.name
            made[case.name] = folder, case.write(folder)
        return made[case.name]

    return get


@pytest.fixture
def run(checkpoints, tmp_path):
    """Embed some samples, and give the store."""
    count = iter(range(1000))

    def go(case: Case, order=None, folder=None, unfinished=None, to=None, **options) -> Store:
        where, own = checkpoints(case)
        config = rebuild(Model, own | {"path": str(folder or where)} | options)
        return embed(config, case.data(order), to or tmp_path / str(next(count)), threads=1, unfinished=unfinished)

    return go


@every
def test_every_layer_is_what_the_model_itself_gives(case, checkpoints, run):
    folder, _ = checkpoints(case)
    others = [layer for layer in range(case.first_layer, LAYERS + 1) if layer != LAYERS]
    store = run(case, layer=LAYERS, also_layers=others)
    assert store.card["layer"] == LAYERS
    assert store.card["n_layers"] == LAYERS
    assert list(store.layers()) == others
    for layer, found in {LAYERS: store, **store.layers()}.items():
        expected = np.concatenate([case.alone(folder, sample, layer) for sample in case.samples])
        assert np.abs(expected).max() > 0.05
        assert found.shape == expected.shape
        assert found.card["layer"] == layer
        scale = max(1.0, float(np.abs(expected).max()))
        np.testing.assert_allclose(found.read() / scale, expected / scale, atol=TOLERANCE, err_msg=f"layer {layer}")
        found.verify()


@one_each
def test_a_layer_alone_is_as_among_others(case, run):
    together = run(case, layer=2, also_layers=[1])
    np.testing.assert_allclose(run(case, layer=1).read(), together.layers()[1].read(), atol=1e-6)
    np.testing.assert_allclose(run(case, layer=2).read(), together.read(), atol=1e-6)


@one_each
def test_without_a_layer_the_last_one(case, run):
    if case.name == "esm2":
        return  # its layer has always been 3 by default
    np.testing.assert_array_equal(run(case).read(), run(case, layer=LAYERS).read())


@one_each
def test_a_sample_alone_is_as_in_a_batch(case, run):
    """The shortest but one stands among longer ones, with more padding than content."""
    together = run(case)
    of = "protein" if "protein" in together.obs else None
    names = together.obs[of].to_numpy() if of else together.obs.index.to_numpy()
    for number in (1, len(case.samples) - 1):
        alone = run(case, [number]).read()
        scale = max(1.0, float(np.abs(alone).max()))
        np.testing.assert_allclose(together.read(names == case.samples[number]) / scale, alone / scale, atol=TOLERANCE)


@one_each
def test_rows_follow_the_data_set(case, run):
    forward, backward = run(case), run(case, list(reversed(range(len(case.samples)))))
    assert list(forward.obs.index) != list(backward.obs.index)
    order = forward.obs.index.get_indexer(backward.obs.index)
    np.testing.assert_allclose(backward.read(), forward.read(order), atol=TOLERANCE)


@one_each
def test_bfloat16_is_float32_rounded(case, run):
    full, half = run(case).read(), run(case, dtype="bfloat16").read()
    np.testing.assert_allclose(half, full, rtol=2**-8, atol=1e-30)
    assert not np.array_equal(half, full)


@one_each
def test_computing_in_bfloat16_is_near_float32(case, run):
    """Products in half width round to 8 bits: what they add up to is off by some percent, and by no more."""
    full, half = run(case), run(case, compute="bfloat16")
    assert "compute" not in full.card["options"]
    assert half.card["options"]["compute"] == "bfloat16"
    full, half = full.read(), half.read()
    off = np.linalg.norm(half - full) / np.linalg.norm(full)
    assert 1e-5 < off < 0.08


@one_each
def test_an_interrupted_run_goes_on_from_its_shards(case, run, tmp_path, monkeypatch, caplog):
    options = {"rows_per_shard": 2, case.batches: 1, "layer": 2, "also_layers": [1]}
    whole = run(case, to=tmp_path / "whole", **options)
    write, calls = StoreWriter.write, []

    def stopped(self, batch):
        write(self, batch)
        calls.append(len(batch))
        if self.done >= 4 and self.folder.name == "1":  # the further layer is ahead of, or level with, the layer itself
            raise KeyboardInterrupt

    monkeypatch.setattr(StoreWriter, "write", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(case, to=tmp_path / "store", unfinished=tmp_path / "unfinished", **options)
    assert not (tmp_path / "store" / "card.json").exists()
    first = sum(calls)
    monkeypatch.setattr(StoreWriter, "write", lambda self, batch: (calls.append(len(batch)), write(self, batch))[1])
    with caplog.at_level(logging.INFO):
        store = run(case, to=tmp_path / "store", unfinished=tmp_path / "unfinished", **options)
    assert "going on from row" in caplog.text
    assert sum(calls) - first < 2 * len(whole.obs)
    assert not (tmp_path / "unfinished").exists()
    names = sorted(path.relative_to(whole.folder) for path in whole.folder.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(store.folder) for path in store.folder.rglob("*") if path.is_file())
    for name in names:
        assert sha256_file(whole.folder / name) == sha256_file(store.folder / name), name


@one_each
def test_other_settings_do_not_go_on(case, run, tmp_path, monkeypatch, caplog):
    write = StoreWriter.write
    options = {"rows_per_shard": 1, case.batches: 1}

    def stopped(self, batch):
        write(self, batch)
        raise KeyboardInterrupt

    monkeypatch.setattr(StoreWriter, "write", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(case, unfinished=tmp_path / "unfinished", layer=2, **options)
    monkeypatch.setattr(StoreWriter, "write", write)
    with caplog.at_level(logging.INFO):
        store = run(case, unfinished=tmp_path / "unfinished", layer=1, **options)
    assert "going on" not in caplog.text
    np.testing.assert_array_equal(store.read(), run(case, layer=1, **options).read())


@residual
def test_what_the_halves_add_makes_the_residual_stream(case, run):
    at = {site: run(case, layer=2, site=site).read() for site in ("attention", "feed_forward", "residual")}
    before = run(case, layer=1, site="residual").read()
    np.testing.assert_allclose(before + at["attention"] + at["feed_forward"], at["residual"], atol=2e-4, rtol=1e-4)
    assert np.abs(at["attention"]).max() > 1e-2
    assert np.abs(at["feed_forward"]).max() > 1e-2


@residual
def test_the_last_layer_is_normalised_as_hidden_state_and_not_as_residual(case, run):
    hidden, plain, normed = (run(case, layer=LAYERS, site=site).read() for site in ("hidden", "residual", "normalised"))
    np.testing.assert_allclose(hidden, normed, atol=1e-6)
    assert np.abs(hidden - plain).max() > 0.05
    store = run(case, layer=1, site="normalised")
    assert store.card["site"] == "normalised"
    assert np.abs(store.read() - run(case, layer=1).read()).max() > 0.01
    np.testing.assert_allclose(run(case, layer=1, site="residual").read(), run(case, layer=1).read(), atol=1e-6)


@pytest.mark.parametrize("case", [case for case in CASES if not case.pre_norm], ids=lambda case: case.name)
def test_hidden_states_that_are_normalised_already(case, run):
    with pytest.raises(ConfigError, match="normalised already"):
        run(case, site="normalised")
    np.testing.assert_array_equal(run(case, site="residual").read(), run(case).read())
    assert np.abs(run(case, site="attention").read() - run(case).read()).max() > 0.01


@one_each
def test_layers_that_are_not_there(case, run):
    with pytest.raises(ConfigError, match=f"layer 9 does not exist; this checkpoint has layers 0 to {LAYERS}"):
        run(case, layer=9)
    with pytest.raises(ValueError, match="must not repeat a layer"):
        run(case, layer=1, also_layers=[1])
    if case.name not in ("unirep", "channel_agnostic_mae"):
        with pytest.raises(ConfigError, match="layer 0 is the embedding and has no attention"):
            run(case, layer=0, site="attention")


@pytest.fixture
def copy(checkpoints, tmp_path):
    def make(case: Case) -> Path:
        return Path(shutil.copytree(checkpoints(case)[0], tmp_path / "copy"))

    return make


def one_line(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


@one_each
def test_a_missing_file_is_named(case, run, copy):
    folder = copy(case)
    for name in (*case.files, case.weights):
        kept = (folder / name).read_bytes()
        (folder / name).unlink()
        with pytest.raises(SourceError) as error:
            run(case, folder=folder)
        told = one_line(error)
        stem = name.removesuffix("_gc104M.pkl")
        assert stem in told, told
        (folder / name).write_bytes(kept)
    run(case, folder=folder)
    with pytest.raises(SourceError, match="there is no folder"):
        run(case, folder=folder / "elsewhere")


@one_each
def test_truncated_weights(case, run, copy):
    path = copy(case) / case.weights
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(SourceError, match="cannot be read") as error:
        run(case, folder=path.parent)
    one_line(error)


@one_each
def test_weights_of_another_model(case, run, copy):
    """One tensor too few is an error, never a layer of random numbers."""
    path = copy(case) / case.weights
    if path.suffix == ".npy":
        np.save(path, np.load(path)[:-1])
    else:
        from safetensors.torch import load_file, save_file

        zipped = path.read_bytes()[:2] == b"PK"
        if zipped:
            with open(path, "rb") as handle:
                state = torch.load(handle, weights_only=True)
        else:
            state = load_file(path)
        inner = state.get("state_dict", state)
        names = [name for name in inner if "1." in name and name.endswith("weight") and inner[name].ndim == 2]
        del inner[next(name for name in names if "layer" in name or "block" in name)]
        if zipped:
            torch.save(state, path)
        else:
            save_file(inner, path, metadata={"format": "pt"})
    with pytest.raises(SourceError, match=r"lacks|shape") as error:
        run(case, folder=path.parent)
    one_line(error)
