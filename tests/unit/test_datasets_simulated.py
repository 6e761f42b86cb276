import numpy as np
import pytest

from conceptome.config.base import rebuild
from conceptome.config.datasets import Dataset
from conceptome.datasets import load, outputs, prepare


def run(tmp_path, reader, name="out", **keys):
    prepare(rebuild(Dataset, {"reader": reader, "title": "t", **keys}), {}, tmp_path / name)
    return load(tmp_path / name)


def layer(truth, name):
    return truth[[column for column in truth if column.split(":")[0] == name]].to_numpy()


def test_small(tmp_path):
    dataset = run(tmp_path, "simulated_small", n_samples=3000)
    truth, data = dataset.truth(), dataset.anndata()
    activity, accessibility, factor = (layer(truth, name) for name in ("activity", "accessibility", "tf"))
    np.testing.assert_array_equal(factor, activity * accessibility)
    np.testing.assert_array_equal(data.X, factor @ data.varm["weights"].T)
    np.testing.assert_allclose(activity.mean(0), 2, atol=0.15)
    np.testing.assert_allclose(accessibility.mean(0), [0.5, 0.1, 0.9], atol=0.04)
    assert np.linalg.matrix_rank(data.varm["weights"]) == 3
    assert truth.index.tolist() == dataset.obs.index.tolist()
    assert dataset.card["simulated"] is True
    assert dataset.card["modality"] == "simulated"
    assert "seeded random" in dataset.card["control_is"]
    assert "SIMULATED" in dataset.card["notes"][0]


def test_large(tmp_path):
    keys = {"n_samples": 1200, "n_programs": 30, "n_genes": 80, "n_cell_types": 6}
    labels = {"labels": {"cell_type": {}, "batch": {"role": "technical"}}}
    dataset = run(tmp_path, "simulated_large", **keys, **labels)
    truth, data = dataset.truth(), dataset.anndata()
    program, shifted, active = (layer(truth, name) for name in ("program", "program_in_batch", "program_in_cell"))
    batch = dataset.obs["batch"].astype(int).to_numpy()
    noise = shifted - program - batch[:, None]
    np.testing.assert_allclose(noise.std(), 0.1, atol=0.005)
    assert abs(noise.mean()) < 0.005
    np.testing.assert_allclose(program.mean(0), 1 + 0.1 * np.arange(30), atol=0.3)
    for kind in dataset.obs["cell_type"].unique():
        rows = (dataset.obs["cell_type"] == kind).to_numpy()
        ratio = active[rows] / shifted[rows]
        assert ((ratio == 0).all(0) | (ratio == 1).all(0)).all()
    np.testing.assert_allclose(data.X, active @ data.varm["weights"].T, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(layer(truth, "batch").argmax(1), batch)
    assert layer(truth, "cell_type").sum(1).tolist() == [1.0] * 1200
    assert dataset.card["batch_is"] == "batch"


def test_hierarchy(tmp_path):
    keys = {"n_samples": 800, "n_dimensions": 256, "n_parents": 10, "n_children": 4, "n_active": 2, "noise": 0.0}
    dataset = run(tmp_path, "simulated_hierarchy", sibling_cosine=0.6, **keys)
    truth, data = dataset.truth(), dataset.anndata()
    directions = data.varm["weights"].T
    parent, child = directions[:10], directions[10:].reshape(10, 4, 256)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose((child * parent[:, None]).sum(-1), 0, atol=1e-6)
    siblings = np.einsum("pcd,pkd->pck", child, child)[:, *np.triu_indices(4, 1)]
    np.testing.assert_allclose(siblings.mean(), 0.6, atol=0.03)
    strength, detail = layer(truth, "parent"), layer(truth, "child").reshape(-1, 10, 4)
    assert ((strength > 0).sum(1) == 2).all()
    np.testing.assert_array_equal((detail > 0).sum(2), strength > 0)
    np.testing.assert_allclose(data.X, truth.to_numpy() @ directions, rtol=1e-4, atol=1e-4)
    assert "Costa" in dataset.card["notes"][0]


@pytest.mark.parametrize("reader", ["simulated_small", "simulated_large", "simulated_hierarchy"])
def test_repeats_by_seed(tmp_path, reader):
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        run(tmp_path, reader, name, n_samples=200, seed=seed)
    for name in outputs(reader):
        first = (tmp_path / "one" / name).read_bytes()
        assert first == (tmp_path / "two" / name).read_bytes()
    assert (tmp_path / "one" / "X.h5ad").read_bytes() != (tmp_path / "three" / "X.h5ad").read_bytes()
