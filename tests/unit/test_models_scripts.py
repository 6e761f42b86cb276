"""The scripts embed and whiten, run as Snakemake runs them, up to the one error line of a bad input."""

from __future__ import annotations

import runpy
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from fake_job import fake_job

from conceptome.activations import Store
from conceptome.files import write_json, write_parquet
from conceptome.whitening import load

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def data(tmp_path) -> Path:
    """A prepared data set of 40 wells × 3 features, written by hand; every second well is a control."""
    folder = tmp_path / "results" / "data" / "tiny"
    folder.mkdir(parents=True)
    index = pd.Index([f"w{i}" for i in range(40)], name="sample_id")
    obs = pd.DataFrame({"control": np.arange(40) % 2 == 0, "split": ["train"] * 30 + ["test"] * 10}, index=index)
    x = np.random.default_rng(0).normal(2.0, 3.0, size=(40, 3)).astype(np.float32)
    anndata.AnnData(x, obs=pd.DataFrame(index=index)).write_h5ad(folder / "X.h5ad")
    write_parquet(folder / "obs.parquet", obs)
    write_json(folder / "card.json", {"modality": "wells"})
    return folder


def run_embed(tmp_path: Path, data: Path, model: dict) -> Path:
    out = tmp_path / "results" / "activations" / "tiny" / "m"
    job = fake_job(
        tmp_path,
        rule="embed",
        outputs={"activations": str(out)},
        params={"model": model},
    )
    # Snakemake keeps a named list of files as a stretch of its one list.
    for name, files in (("dataset", ["card.json", "obs.parquet", "X.h5ad"]), ("weights", [])):
        start = len(job.input)
        job.input.extend(str(data / file) for file in files)
        job.input._set_name(name, start, end=len(job.input))
    runpy.run_path(str(SCRIPTS / "embed.py"), {"snakemake": job})
    return out


def run_whiten(tmp_path: Path, store: Path, whitening: dict) -> Path:
    out = tmp_path / "results" / "whitening" / "tiny" / "m" / "w"
    job = fake_job(
        tmp_path,
        inputs={"activations": str(store)},
        outputs={"tensors": str(out / "whitening.safetensors"), "card": str(out / "card.json")},
        params={"whitening": whitening},
    )
    runpy.run_path(str(SCRIPTS / "whiten.py"), {"snakemake": job})
    return out


def test_wells_to_whitened_activations(tmp_path, data):
    folder = run_embed(tmp_path, data, {"adapter": "profiles"})
    store = Store(folder)
    assert store.shape == (40, 3)
    whitening = load(run_whiten(tmp_path, folder, {"method": "pca"}))
    fitted = (store.obs["control"] & (store.obs["split"] == "train")).to_numpy()
    assert whitening.card["n_fitted"] == fitted.sum() == 15
    np.testing.assert_allclose(np.cov(whitening.transform(store.read(fitted)).T), np.eye(3), atol=1e-4)


def test_counts_that_are_not_there_are_one_line(tmp_path, data, capfd):
    with pytest.raises(SystemExit) as stopped:
        run_embed(tmp_path, data, {"adapter": "scvi"})
    assert stopped.value.code == 1
    error = capfd.readouterr().err.strip()
    assert "trained on raw counts, and this data set has none" in error
    assert "Traceback" not in error


def test_too_few_controls_are_one_line(tmp_path, data, capfd):
    obs = pd.read_parquet(data / "obs.parquet")
    obs["control"] = np.arange(40) < 3
    write_parquet(data / "obs.parquet", obs)
    folder = run_embed(tmp_path, data, {"adapter": "profiles"})
    with pytest.raises(SystemExit) as stopped:
        run_whiten(tmp_path, folder, {"method": "pca"})
    assert stopped.value.code == 1
    assert "set whitening.shrinkage above 0" in capfd.readouterr().err
