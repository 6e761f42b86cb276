import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from images import crops_study

from conceptome.activations import Store, StoreWriter
from conceptome.config.base import rebuild
from conceptome.config.models import Intensity, Model, Onnx, VisionBase
from conceptome.datasets import load, prepare
from conceptome.errors import ConfigError, DataError, SourceError
from conceptome.models import embed
from conceptome.models.vision import (
    channel_rows,
    crop_batches,
    embed_batches,
    fit_scaling,
    patch_tokens,
    pool_tokens,
    resize,
    token_reader,
    views,
)

PATCH, WIDTH, SIZE = 4, 5, 12
LAYER = "tokens"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crops")
    config, inputs, *_ = crops_study(folder)
    prepare(config, inputs, folder / "out")
    return load(folder / "out")


def vision(**options):
    values = {"input_size": SIZE, "input_channels": 2, "mean": [0.5, 0.4], "std": [0.2, 0.1], **options}
    return VisionBase(intensity=Intensity(**values.pop("intensity", {})), **values)


def tiny(path, *, channels=2, size=SIZE, seed=0, extra_input=False):
    """A backbone with random weights as ONNX: patches, a class token, positions; then a head that is cut off."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(seed)
    patches = (size // PATCH) ** 2
    weights = {
        "kernel": rng.normal(size=(WIDTH, channels, PATCH, PATCH)).astype(np.float32) / 10,
        "class": rng.normal(size=(1, 1, WIDTH)).astype(np.float32),
        "positions": rng.normal(size=(1, patches + 1, WIDTH)).astype(np.float32),
        "head": rng.normal(size=(WIDTH, 3)).astype(np.float32),
        "flat": np.array([0, WIDTH, -1], np.int64),
        "zero": np.array([0], np.int64),
        "one": np.array([1], np.int64),
        "tail": np.array([1, WIDTH], np.int64),
    }
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["map"], strides=[PATCH, PATCH]),
        helper.make_node("Reshape", ["map", "flat"], ["columns"]),
        helper.make_node("Transpose", ["columns"], ["patches"], perm=[0, 2, 1]),
        helper.make_node("Shape", ["image"], ["shape"]),
        helper.make_node("Slice", ["shape", "zero", "one"], ["batch"]),
        helper.make_node("Concat", ["batch", "tail"], ["wide"], axis=0),
        helper.make_node("Expand", ["class", "wide"], ["classes"]),
        helper.make_node("Concat", ["classes", "patches"], ["joined"], axis=1),
        helper.make_node("Add", ["joined", "positions"], [LAYER]),
        helper.make_node("MatMul", [LAYER, "head"], ["scores"]),
    ]
    held = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", channels, size, size])]
    if extra_input:
        inputs.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["n"]))
    outputs = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", patches + 1, 3])]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    onnx.save(model, path)
    return weights


def tokens(weights, images):
    """What `tiny` computes, in NumPy: (b, 1 + patches, width)."""
    b, c, h, w = images.shape
    cut = images.reshape(b, c, h // PATCH, PATCH, w // PATCH, PATCH).transpose(0, 2, 4, 1, 3, 5)
    found = cut.reshape(b, -1, c * PATCH * PATCH) @ weights["kernel"].reshape(WIDTH, -1).T
    return np.concatenate([np.repeat(weights["class"], b, 0), found], axis=1) + weights["positions"]


# ---- intensity


def test_percentiles_are_those_of_the_training_controls(dataset):
    config = Intensity(low=1, high=99)
    crops, obs = dataset.crops(), dataset.obs
    reference = crops[(obs["control"] & (obs["split"] == "train")).to_numpy()]
    scaling = fit_scaling(config, dataset, [0, 1])
    for channel in (0, 1):
        low, high = np.percentile(reference[:, channel], [1, 99], method="inverted_cdf")
        assert scaling.shift[0, channel] == low
        assert scaling.scale[0, channel] == high - low
    values = scaling.apply(np.array(crops), np.zeros(len(crops), int))
    assert (values.min(), values.max()) == (0, 1)
    assert values.dtype == np.float32


def test_standardised_by_plate_controls_have_mean_zero_and_deviation_one(dataset):
    config = vision(intensity={"method": "standardize", "low": -50, "high": 50, "reference": "plate_controls"})
    values = np.concatenate(list(crop_batches(config, dataset)))
    for _, rows in dataset.obs.assign(row=range(len(dataset))).query("control").groupby("plate")["row"]:
        np.testing.assert_allclose(values[rows].mean((0, 2, 3)), 0, atol=1e-4)
        np.testing.assert_allclose(values[rows].std((0, 2, 3)), 1, atol=1e-4)
    # Such pixels are not normalised a second time.
    np.testing.assert_array_equal(next(views(config, values)), values)


def test_a_plate_that_is_twice_as_bright_is_the_same_after_its_own_controls(dataset, tmp_path):
    crops = np.array(dataset.crops())
    obs = dataset.obs
    bright = (obs["plate"] == "P2").to_numpy()
    twice = crops.copy()
    twice[bright] *= 2
    own = {"intensity": {"method": "standardize", "low": -9, "high": 9, "reference": "plate_controls"}}

    def values(pixels, **options):
        made = SimpleNamespace(obs=obs, card=dataset.card, crops=lambda: pixels, __len__=None)
        scaling = fit_scaling(vision(**options).intensity, made, [0, 1])
        plates = np.unique(obs["batch"].astype(str), return_inverse=True)[1]
        return scaling.apply(pixels, plates if len(scaling.shift) > 1 else np.zeros(len(obs), int))

    np.testing.assert_allclose(values(twice, **own), values(crops, **own), atol=1e-5)
    assert np.abs(values(twice)[bright] - values(crops)[bright]).mean() > 0.1


@pytest.mark.parametrize("method", ["percentile", "standardize"])
def test_a_crop_by_itself_loses_its_brightness(dataset, method):
    low, high = (1, 99) if method == "percentile" else (-5, 5)
    scaling = fit_scaling(Intensity(method=method, low=low, high=high, reference="crop"), dataset, [0, 1])
    crops = np.array(dataset.crops()[:4])
    zero = np.zeros(4, int)
    np.testing.assert_allclose(scaling.apply(crops * 3, zero), scaling.apply(crops, zero), atol=1e-5)
    flat = scaling.apply(np.full((1, 2, 4, 4), 7, np.uint16), zero[:1])
    assert np.isfinite(flat).all()


def test_log_and_clip_have_their_closed_forms(dataset):
    crops = np.array(dataset.crops()[:3])
    zero = np.zeros(3, int)
    clip = fit_scaling(Intensity(method="clip", low=500, high=1500), dataset, [0, 1]).apply(crops, zero)
    np.testing.assert_allclose(clip, np.clip((crops - 500.0) / 1000, 0, 1), atol=1e-6)
    plain, log = (fit_scaling(Intensity(low=5, high=95, log=log), dataset, [0, 1]) for log in (False, True))
    np.testing.assert_allclose(log.shift, np.log1p(plain.shift))
    np.testing.assert_allclose(log.shift + log.scale, np.log1p(plain.shift + plain.scale))
    with pytest.raises(ValueError, match="percents"):
        Intensity(low=-1)
    with pytest.raises(ValueError, match="below"):
        Intensity(low=60, high=50)


def test_a_plate_without_controls_and_a_flat_channel_are_named(dataset):
    obs = dataset.obs.assign(control=dataset.obs["control"] & (dataset.obs["plate"] != "P1"))
    made = SimpleNamespace(obs=obs, card=dataset.card, crops=dataset.crops)
    with pytest.raises(DataError, match="plate P1 has no control crop"):
        fit_scaling(Intensity(reference="plate_controls"), made, [0])
    flat = SimpleNamespace(obs=dataset.obs, card=dataset.card, crops=lambda: np.full((24, 2, 4, 4), 9, np.uint16))
    with pytest.raises(DataError, match="channel 'actin' is constant"):
        fit_scaling(Intensity(), flat, [1])


# ---- channels, size, tokens


def test_channels_are_chosen_by_name_and_each_has_its_view(dataset):
    config = vision(channels=["actin"], views="each", input_channels=3, mean=[0.0] * 3, std=[1.0] * 3)
    assert channel_rows(config, dataset) == [1]
    batch = next(crop_batches(config, dataset))
    (view,) = views(config, batch)
    assert view.shape == (16, 3, SIZE, SIZE)
    np.testing.assert_array_equal(view[:, 0], view[:, 2])
    with pytest.raises(DataError, match=r"channel 'RNA' is not among those of the data set \(DNA, actin\)"):
        channel_rows(vision(channels=["RNA"]), dataset)
    with pytest.raises(ConfigError, match="reads 3 channels together, but 2 are listed"):
        next(views(vision(input_channels=3, mean=[0.0] * 3, std=[1.0] * 3), np.zeros((1, 2, 4, 4), np.float32)))


def test_both_views_stand_side_by_side_in_the_order_of_obs(dataset):
    config = vision(views="each", input_channels=1, mean=[0.0], std=[1.0], batch_size=5)
    found = np.concatenate(list(embed_batches(config, dataset, lambda view: [view.mean((2, 3))])))
    assert found.shape == (24, 2)
    whole = np.concatenate(list(crop_batches(config, dataset))).mean((2, 3))
    np.testing.assert_allclose(found, whole, atol=1e-6)


def test_chosen_rows_come_in_the_order_asked_for(dataset):
    config = vision(intensity={"reference": "plate_controls"})
    whole = np.concatenate(list(crop_batches(config, dataset)))
    rows = np.array([17, 2, 23])
    np.testing.assert_array_equal(np.concatenate(list(crop_batches(config, dataset, rows))), whole[rows])


def test_resizing_keeps_a_ramp_and_a_constant():
    ramp = np.tile(np.arange(8, dtype=np.float32), (1, 1, 8, 1))
    found = resize(ramp, 16)
    assert found.shape == (1, 1, 16, 16)
    np.testing.assert_allclose(np.diff(found[0, 0, 0, 2:-2]), 0.5, atol=1e-6)
    np.testing.assert_allclose(resize(np.full((1, 2, 30, 20), 3, np.float32), 7), 3, atol=1e-6)


def test_pooling_drops_the_class_token(dataset):
    values = np.arange(2 * 4 * 3, dtype=np.float32).reshape(2, 4, 3)
    np.testing.assert_allclose(pool_tokens(vision(), values), values[:, 1:].mean(1))
    np.testing.assert_allclose(pool_tokens(vision(pool="cls"), values), values[:, 0])
    maps = values.reshape(2, 3, 2, 2)
    np.testing.assert_allclose(pool_tokens(vision(), maps), maps.mean((2, 3)))
    np.testing.assert_array_equal(patch_tokens(vision(), maps)[0, 1], maps[0, :, 0, 1])
    with pytest.raises(ConfigError, match="are no patch tokens after 1"):
        patch_tokens(vision(), values[:, :1])


# ---- ONNX


@pytest.fixture
def backbone(tmp_path):
    pytest.importorskip("onnxruntime")
    return tmp_path / "tiny.onnx", tiny(tmp_path / "tiny.onnx")


def model(path, **options):
    values = {"adapter": "onnx", "path": str(path), "layer": LAYER, "input_size": SIZE, "input_channels": 2}
    return Onnx.model_validate({**values, "mean": [0.5, 0.4], "std": [0.2, 0.1], **options})


def test_activations_are_the_mean_patch_of_the_named_layer(dataset, backbone, tmp_path):
    path, weights = backbone
    config = model(path)
    store = embed(config, dataset, tmp_path / "store")
    images = np.concatenate([next(views(config, batch)) for batch in crop_batches(config, dataset)])
    np.testing.assert_allclose(store.read(), tokens(weights, images)[:, 1:].mean(1), atol=1e-5)
    assert list(store.obs.index) == list(dataset.obs.index)
    assert store.card["layer"] == LAYER
    assert len(store.card["weights_sha256"]["tiny.onnx"]) == 64
    assert any("mean of the patch tokens" in note for note in store.card["notes"])
    first = embed(model(path, pool="cls", batch_size=7), dataset, tmp_path / "class")
    np.testing.assert_allclose(first.read(), tokens(weights, images)[:, 0], atol=1e-5)


def test_a_row_is_the_same_alone_and_in_a_batch(dataset, backbone, tmp_path):
    path, _ = backbone
    alone, together = (embed(model(path, batch_size=size), dataset, tmp_path / str(size)).read() for size in (1, 24))
    np.testing.assert_allclose(alone, together, atol=1e-5)


def test_bfloat16_and_shards_keep_the_rows(dataset, backbone, tmp_path):
    path, _ = backbone
    full = embed(model(path), dataset, tmp_path / "full").read()
    narrow = embed(model(path, dtype="bfloat16", rows_per_shard=5), dataset, tmp_path / "narrow")
    assert len(list((tmp_path / "narrow").glob("shard-*.npy"))) == 5
    np.testing.assert_allclose(narrow.read(), full, rtol=2**-7)


def test_every_tensor_of_the_graph_can_be_a_layer(dataset, backbone, tmp_path):
    path, _ = backbone
    store = embed(model(path, layer="map"), dataset, tmp_path / "map")
    assert store.shape == (24, WIDTH)
    with pytest.raises(ConfigError, match=r"layer 'tokenz' is no tensor of tiny.onnx; did you mean 'tokens'\?"):
        embed(model(path, layer="tokenz"), dataset, tmp_path / "none")


def test_earlier_tensors_come_of_the_same_pass_and_are_numbered(dataset, backbone, tmp_path, monkeypatch):
    path, weights = backbone
    config = model(path, also_layers=["map", "joined"], batch_size=5)
    store = embed(config, dataset, tmp_path / "store")
    assert (store.card["layer"], store.card["layer_number"]) == (LAYER, 3)
    assert list(store.layers()) == [1, 2]
    images = np.concatenate([next(views(config, batch)) for batch in crop_batches(config, dataset)])
    expected = tokens(weights, images)[:, 1:]
    np.testing.assert_allclose(store.read(), expected.mean(1), atol=1e-5)
    for number in (1, 2):  # both lie before the positions are added
        np.testing.assert_allclose(
            store.layers()[number].read(), (expected - weights["positions"][:, 1:]).mean(1), atol=1e-5
        )
        assert "layer_number" not in store.layers()[number].card
    with pytest.raises(ValueError, match="must not repeat a layer"):
        model(path, also_layers=[LAYER])


def test_an_interrupted_run_goes_on_to_the_same_bytes(dataset, backbone, tmp_path, monkeypatch, caplog):
    path, _ = backbone
    config = model(path, also_layers=["map"], batch_size=5, rows_per_shard=4)
    whole = embed(config, dataset, tmp_path / "whole")
    write = StoreWriter.write

    def stopped(self, batch):
        write(self, batch)
        if self.done >= 10 and self.folder.name == "1":
            raise KeyboardInterrupt

    monkeypatch.setattr(StoreWriter, "write", stopped)
    with pytest.raises(KeyboardInterrupt):
        embed(config, dataset, tmp_path / "store", unfinished=tmp_path / "unfinished")
    monkeypatch.setattr(StoreWriter, "write", write)
    with caplog.at_level("INFO"):
        store = embed(config, dataset, tmp_path / "store", unfinished=tmp_path / "unfinished")
    assert "going on from row" in caplog.text
    for name in ("shard-00000.npy", "shard-00005.npy", "layers/1/shard-00003.npy"):
        assert (whole.folder / name).read_bytes() == (store.folder / name).read_bytes(), name


def test_patch_tokens_of_one_crop(dataset, backbone):
    path, weights = backbone
    config = model(path)
    images = np.concatenate([next(views(config, batch)) for batch in crop_batches(config, dataset)])
    read = token_reader(config, dataset, None, 1)
    np.testing.assert_allclose(read(13), tokens(weights, images)[13, 1:], atol=1e-5)


def test_a_missing_damaged_or_unfit_file_is_named(dataset, backbone, tmp_path):
    path, _ = backbone
    with pytest.raises(SourceError, match=r"nowhere.onnx does not exist"):
        embed(model(tmp_path / "nowhere.onnx"), dataset, tmp_path / "out")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(path.read_bytes()[:200])
    with pytest.raises(SourceError, match=r"broken.onnx is not a readable ONNX model") as found:
        embed(model(broken), dataset, tmp_path / "out")
    assert "\n" not in str(found.value)
    tiny(broken, extra_input=True)
    with pytest.raises(ConfigError, match=r"broken.onnx reads 2 inputs \(image, mask\)"):
        embed(model(broken), dataset, tmp_path / "out")
    other = SimpleNamespace(card={"modality": "cells"}, obs=dataset.obs)
    with pytest.raises(DataError, match="model 'onnx' reads images, but the data set is of cells"):
        embed(model(path), other, tmp_path / "out")
    with pytest.raises(ValueError, match="exactly one of"):
        Onnx(adapter="onnx", layer="x")


def test_importing_the_adapters_loads_no_heavy_library():
    import subprocess

    code = "import sys, conceptome.models.onnx_backbone, conceptome.models.cp_measure_features; "
    code += (
        "print([m for m in ('onnx', 'onnxruntime', 'torch', 'skimage', 'cp_measure', 'tifffile') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---- baselines


def test_intensity_features_have_their_closed_form(dataset, tmp_path):
    store = embed(rebuild(Model, {"adapter": "intensity"}), dataset, tmp_path / "store")
    values = np.log1p(dataset.crops().astype(float))
    np.testing.assert_allclose(store.read()[:, :2], values.mean((2, 3)), rtol=1e-6)
    np.testing.assert_allclose(store.read()[:, 2:], values.std((2, 3)), rtol=1e-5)
    assert store.card["dimension_names"] == ["mean of DNA", "mean of actin", "deviation of DNA", "deviation of actin"]


def test_cp_measure_finds_a_planted_nucleus(tmp_path):
    pytest.importorskip("cp_measure")
    from conceptome.models.cp_measure_features import measure_crop, nucleus

    y, x = np.mgrid[:40, :40]
    disc = ((y - 20) ** 2 + (x - 19) ** 2 <= 81).astype(np.uint16)
    image = 200 + 4000 * disc
    image[2:6, 2:6] = 5000
    mask, found = nucleus(image)
    assert found
    np.testing.assert_array_equal(mask, disc)
    values = measure_crop(np.stack([image, image]) / 65535, mask, ["DNA", "actin"], ["sizeshape", "intensity"])
    assert values["Area (nucleus)"] == disc.sum()
    assert values["Intensity_MeanIntensity (nucleus, DNA)"] == pytest.approx(4200 / 65535)
    assert values["Intensity_MeanIntensity (crop, actin)"] == pytest.approx(image.mean() / 65535)
    assert not any("Center" in name or "BoundingBox" in name for name in values)
    mask, found = nucleus(np.full((8, 8), 3, np.uint16))
    assert not found
    assert mask.all()


def test_cp_measure_embeds_finite_varying_features_only(dataset, tmp_path):
    pytest.importorskip("cp_measure")
    config = rebuild(Model, {"adapter": "cp_measure", "nucleus_channel": "DNA", "features": ["intensity"]})
    store = embed(config, dataset, tmp_path / "store")
    values = store.read()
    assert np.isfinite(values).all()
    assert (values.std(0) > 0).all()
    assert len(store.card["dimension_names"]) == store.shape[1]
    assert isinstance(Store(tmp_path / "store").obs, pd.DataFrame)
    wrong = rebuild(Model, {"adapter": "cp_measure", "nucleus_channel": "RNA"})
    with pytest.raises(DataError, match="nucleus_channel 'RNA' is not among the channels"):
        embed(wrong, dataset, tmp_path / "store")
