"""Adapters that read a table: profiles, pca, scvi, autoencoder; and the registry."""

from __future__ import annotations

import itertools
import logging
import os
from dataclasses import dataclass
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from conceptome.config.base import rebuild
from conceptome.config.models import Model
from conceptome.errors import ConfigError, DataError
from conceptome.files import sha256_file
from conceptome.models import MODELS, embed


@dataclass
class FakeDataset:
    """The part of a data set that models read."""

    data: anndata.AnnData
    obs: pd.DataFrame
    card: dict[str, Any]

    def anndata(self) -> anndata.AnnData:
        return self.data


def make_obs(n: int) -> pd.DataFrame:
    split = np.array(["train", "train", "train", "validation", "test"], dtype=object)[np.arange(n) % 5]
    names = pd.Index([f"s{i}" for i in range(n)], name="sample_id")
    return pd.DataFrame({"control": np.arange(n) % 2 == 0, "group": names, "split": split}, index=names)


def wells(n: int = 60, d: int = 6, seed: int = 0) -> FakeDataset:
    x = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32) * np.arange(1, d + 1, dtype=np.float32)
    obs = make_obs(n)
    data = anndata.AnnData(x, obs=pd.DataFrame(index=obs.index), var=pd.DataFrame(index=[f"f{j}" for j in range(d)]))
    return FakeDataset(data, obs, {"modality": "wells"})


def cells(n: int = 130, genes: int = 30, seed: int = 0) -> FakeDataset:
    """Counts of two cell types: genes 0–9 mark the second one."""
    rng = np.random.default_rng(seed)
    rate = np.full((n, genes), 1.5)
    rate[n // 2 :, :10] = 8.0
    counts = sparse.csr_matrix(rng.poisson(rate).astype(np.float32))
    obs = make_obs(n)
    data = anndata.AnnData(counts.copy(), obs=pd.DataFrame(index=obs.index))
    data.X.data = np.log1p(data.X.data)
    data.layers["counts"] = counts
    data.var["highly_variable"] = np.arange(genes) < 20
    return FakeDataset(data, obs, {"modality": "cells"})


def model(adapter: str, **options):
    return rebuild(Model, {"adapter": adapter, **options})


def same_bytes(a, b) -> bool:
    names = sorted(path.name for path in a.iterdir())
    assert names == sorted(path.name for path in b.iterdir())
    return all(sha256_file(a / name) == sha256_file(b / name) for name in names)


def test_every_configured_adapter_has_a_module():
    from conceptome.config.models import Model

    adapters = {member.model_fields["adapter"].annotation.__args__[0] for member in Model.__args__[0].__args__}
    assert adapters == set(MODELS)


def test_profiles_are_the_features(tmp_path):
    data = wells()
    store = embed(model("profiles", rows_per_shard=25), data, tmp_path / "a", threads=1)
    np.testing.assert_array_equal(store.read(), data.data.X)
    assert store.card["dimension_names"] == [f"f{j}" for j in range(6)]
    assert len(store.card["shards"]) == 3
    pd.testing.assert_frame_equal(store.obs, data.obs)


def test_profiles_with_nan_name_the_feature(tmp_path):
    data = wells()
    data.data.X[[3, 7], 2] = np.nan
    with pytest.raises(DataError, match=r"dimension 2 \('f2'\) holds 2 NaN or infinite"):
        embed(model("profiles"), data, tmp_path / "a", threads=1)


@pytest.mark.parametrize("adapter", ["profiles", "pca", "scvi", "autoencoder", "dgd"])
def test_proteins_are_no_table(tmp_path, adapter):
    data = wells()
    data.card["modality"] = "proteins"
    with pytest.raises(DataError, match="data set is of proteins"):
        embed(model(adapter), data, tmp_path / "a", threads=1)


def test_table_and_obs_must_agree(tmp_path):
    data = wells()
    data.obs = data.obs.iloc[::-1]
    with pytest.raises(DataError, match="differ"):
        embed(model("profiles"), data, tmp_path / "a", threads=1)


@pytest.mark.parametrize("make", [wells, cells])
def test_pca_is_fitted_on_the_training_split(tmp_path, make):
    data = make()
    store = embed(model("pca", n_components=3), data, tmp_path / "a", threads=1)
    x = data.data.X.toarray() if sparse.issparse(data.data.X) else data.data.X
    if "highly_variable" in data.data.var:
        x = x[:, data.data.var["highly_variable"].to_numpy()]
    x = x.astype(np.float64)
    train = (data.obs["split"] == "train").to_numpy()
    centred = x - x[train].mean(axis=0)
    axes = np.linalg.svd(centred[train], full_matrices=False)[2][:3]
    expected = centred @ axes.T
    got = store.read()
    np.testing.assert_allclose(got * np.sign((got * expected).sum(axis=0)), expected, atol=1e-4)
    embed(model("pca", n_components=3), make(), tmp_path / "b", threads=1)
    assert same_bytes(tmp_path / "a", tmp_path / "b")


def test_pca_sign_does_not_depend_on_the_data_sign(tmp_path):
    data, mirrored = wells(), wells()
    mirrored.data.X *= -1
    a = embed(model("pca", n_components=3), data, tmp_path / "a", threads=1).read()
    b = embed(model("pca", n_components=3), mirrored, tmp_path / "b", threads=1).read()
    np.testing.assert_allclose(a, -b, atol=1e-4)  # the axes, with the largest loading positive, are the same


def test_pca_of_too_many_components(tmp_path):
    with pytest.raises(DataError, match="7 components cannot be had from 36 training samples × 6 features"):
        embed(model("pca", n_components=7), wells(), tmp_path / "a", threads=1)


@pytest.mark.parametrize("adapter", ["pca", "autoencoder"])
def test_fitted_models_refuse_nan(tmp_path, adapter):
    data = wells()
    data.data.X[[3, 7], 2] = np.inf
    with pytest.raises(DataError, match=r"features: column 2 \('f2'\) holds 2 NaN or infinite"):
        embed(model(adapter), data, tmp_path / "a", threads=1)


def test_empty_training_split(tmp_path):
    data = wells()
    data.obs["split"] = "test"
    with pytest.raises(DataError, match="training split, which is empty"):
        embed(model("pca", n_components=2), data, tmp_path / "a", threads=1)


@pytest.mark.parametrize("depth", [2, 4, 6])
def test_autoencoder_learns_a_low_rank_table_and_repeats(tmp_path, depth):
    data = wells(300, 8)
    rng = np.random.default_rng(1)
    hidden = rng.poisson(2.0, size=(300, 3))
    data.data.X = (hidden @ rng.normal(size=(3, 8))).astype(np.float32)
    config = model("autoencoder", width=6, depth=depth, epochs=100, batch_size=32, learning_rate=5e-3)
    store = embed(config, data, tmp_path / "a", threads=1)
    assert store.shape == (300, 6)
    assert store.read().min() >= 0
    assert store.card["training"]["r2_train"] > 0.9
    assert store.card["training"]["n"] == 180
    if depth == 2:
        embed(config, data, tmp_path / "b", threads=1)
        assert same_bytes(tmp_path / "a", tmp_path / "b")
        other = embed(config.model_copy(update={"seed": 1}), data, tmp_path / "c", threads=1)
        assert not np.allclose(other.read(), store.read())


@pytest.mark.parametrize("depth", [2, 4, 6])
def test_autoencoder_has_depth_linear_maps_from_width_to_width(depth):
    from torch import nn

    from conceptome.models.autoencoder import build

    encoder, decoder = build(100, 5, depth)
    shapes = [(m.in_features, m.out_features) for m in [*encoder, *decoder] if isinstance(m, nn.Linear)]
    assert len(shapes) == depth
    assert shapes[0][0] == 100
    assert shapes[-1][1] == 100
    assert shapes[depth // 2 - 1][1] == 5
    assert all(a[1] == b[0] for a, b in itertools.pairwise(shapes))
    assert isinstance(encoder[-1], nn.ReLU)
    assert isinstance(decoder[-1], nn.Linear)


def test_autoencoder_ignores_the_test_split(tmp_path):
    data, changed = wells(), wells()
    test = (data.obs["split"] == "test").to_numpy()
    changed.data.X[test] += 5
    config = model("autoencoder", width=3, epochs=3)
    a = embed(config, data, tmp_path / "a", threads=1).read()
    b = embed(config, changed, tmp_path / "b", threads=1).read()
    np.testing.assert_array_equal(a[~test], b[~test])
    assert not np.allclose(a[test], b[test])


def test_autoencoder_leaves_the_global_generator_alone(tmp_path):
    import torch

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    embed(model("autoencoder", width=3, epochs=1), wells(), tmp_path / "a", threads=1)
    assert torch.equal(torch.rand(3), expected)


SCVI = {"n_hidden": 16, "n_latent": 4, "max_epochs": 6, "batch_size": 32}


def test_scvi_repeats_and_tells_cell_types_apart(tmp_path, monkeypatch, caplog, capfd):
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO)
    data = cells()
    store = embed(model("scvi", **SCVI), data, tmp_path / "a", threads=1)
    embed(model("scvi", **SCVI), cells(), tmp_path / "b", threads=1)
    assert same_bytes(tmp_path / "a", tmp_path / "b")
    assert store.shape == (130, 16)
    assert store.read().min() >= 0  # after the activation function
    training = store.card["training"]
    assert training["n"] == 78
    assert training["n_genes"] == 20
    assert training["epochs"] == 6
    assert training["final_elbo"] < training["elbo"][0][1]
    a, b = store.read(slice(0, 65)), store.read(slice(65, 130))
    between = np.abs(a.mean(axis=0) - b.mean(axis=0)) / np.sqrt(a.var(axis=0) + b.var(axis=0) + 1e-6)
    assert between.max() > 2
    # Nothing but the stores is left behind, and progress goes through our own logger only.
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]
    assert "scvi: epoch 6 of 6" in caplog.text
    captured = capfd.readouterr()
    assert "GPU" not in captured.out + captured.err + caplog.text
    assert "it/s" not in captured.out + captured.err


def test_scvi_latent_is_what_the_library_calls_latent(tmp_path):
    from conceptome.models.scvi import _encode, _train

    data = cells()
    counts = data.data.layers["counts"][:, :20]
    fitted, _ = _train(model("scvi", **SCVI), counts, 1)
    ours = np.concatenate(list(_encode(fitted, "latent", counts, 1)))
    np.testing.assert_allclose(ours, fitted.get_latent_representation(), atol=1e-5)
    assert embed(model("scvi", **SCVI, layer="latent"), data, tmp_path / "a", threads=1).shape == (130, 4)


def test_scvi_is_not_trained_on_cells_without_counts(tmp_path):
    data = cells()
    counts = data.data.layers["counts"].tolil()
    counts[0] = 0
    data.data.layers["counts"] = counts.tocsr()
    store = embed(model("scvi", **{**SCVI, "max_epochs": 1}), data, tmp_path / "a", threads=1)
    assert store.card["training"]["n_without_counts"] == 1
    assert store.card["training"]["n"] == 77


def test_scvi_when_the_last_batch_is_a_single_cell(tmp_path):
    config = model("scvi", **{**SCVI, "max_epochs": 1, "batch_size": 77})
    assert embed(config, cells(), tmp_path / "a", threads=1).shape == (130, 16)


def test_scvi_without_counts(tmp_path):
    with pytest.raises(DataError, match="trained on raw counts, and this data set has none"):
        embed(model("scvi"), wells(), tmp_path / "a", threads=1)


def test_scvi_without_variable_genes(tmp_path):
    data = cells()
    del data.data.var["highly_variable"]
    with pytest.raises(DataError, match="highly variable genes"):
        embed(model("scvi"), data, tmp_path / "a", threads=1)


DGD = {"adapter": "dgd", "n_latent": 4, "n_components": 3, "n_hidden": 16, "epochs": 300, "latent_steps": 150}


def told_apart(x: np.ndarray, data: FakeDataset) -> float:
    """AUROC on other splits of the direction between the means of the training cells of both types."""
    from scipy.stats import mannwhitneyu

    second = np.arange(len(x)) >= len(x) // 2
    train = (data.obs["split"] == "train").to_numpy()
    score = x @ (x[train & second].mean(0) - x[train & ~second].mean(0))
    a, b = score[~train & second], score[~train & ~second]
    return mannwhitneyu(a, b).statistic / (len(a) * len(b))


def test_dgd_finds_cell_types_in_cells_it_was_not_trained_on(tmp_path):
    data = cells()
    store = embed(rebuild(Model, DGD), data, tmp_path / "a")
    assert store.shape == (130, 4)
    assert told_apart(store.read(), data) > 0.9
    losses = [loss for _, loss in store.card["training"]["loss"]]
    assert losses[-1] < losses[0]
    assert sum(store.card["training"]["weights"]) == pytest.approx(1, abs=1e-3)
    again = embed(rebuild(Model, DGD), data, tmp_path / "b")
    assert again.read().tobytes() == store.read().tobytes()
    # Genes dealt anew to every cell leave no types to find.
    rng = np.random.default_rng(0)
    dealt = data.data.layers["counts"].toarray()
    data.data.layers["counts"] = sparse.csr_matrix(rng.permuted(dealt, axis=0))
    assert told_apart(embed(rebuild(Model, DGD), data, tmp_path / "c").read(), data) < 0.8


def test_dgd_is_trained_on_the_training_split_and_cells_do_not_see_each_other(tmp_path):
    quick = DGD | {"epochs": 10, "latent_steps": 10}
    first, other = cells(), cells()
    test = np.flatnonzero(first.obs["split"] == "test")
    counts = other.data.layers["counts"].tolil()
    counts[test[0]] = 7
    other.data.layers["counts"] = counts.tocsr()
    a, b = (embed(rebuild(Model, quick), data, tmp_path / str(n)).read() for n, data in enumerate((first, other)))
    kept = np.arange(len(a)) != test[0]
    np.testing.assert_allclose(a[kept], b[kept], atol=1e-5)
    assert np.abs(a[test[0]] - b[test[0]]).max() > 1e-3


def test_dgd_densities_are_those_of_scipy():
    torch = pytest.importorskip("torch")
    from scipy import stats

    from conceptome.models.dgd import Mixture, log_counts

    generator = torch.Generator().manual_seed(0)
    mixture = Mixture(3, 2, 2.0, generator)
    with torch.no_grad():
        mixture.weight.copy_(torch.tensor([0.0, 1.0, 2.0]))
        mixture.precision.normal_(generator=generator)
    z = torch.randn(5, 2, generator=generator)
    share = torch.softmax(mixture.weight, 0).detach().numpy()
    parts = [
        stats.multivariate_normal(mean, np.diag(np.exp(-precision))).pdf(z.numpy())
        for mean, precision in zip(mixture.mean.detach().numpy(), mixture.precision.detach().numpy())
    ]
    np.testing.assert_allclose(mixture.log_density(z).detach().numpy(), np.log(share @ np.array(parts)), atol=1e-5)
    x, mean, r = torch.tensor([[0.0, 3.0, 7.0]]), torch.tensor([[0.5, 2.0, 9.0]]), torch.tensor([1.0, 2.0, 0.5])
    expected = stats.nbinom.logpmf(x.numpy(), r.numpy(), (r / (r + mean)).numpy()).sum()
    assert log_counts(x, mean.log(), r.log()).item() == pytest.approx(expected, abs=1e-4)
    # What is left out of the short form does not depend on the mean.
    short = [log_counts(x, m.log(), r.log(), whole=False).item() for m in (mean, 2 * mean)]
    whole = [log_counts(x, m.log(), r.log()).item() for m in (mean, 2 * mean)]
    assert short[0] - short[1] == pytest.approx(whole[0] - whole[1], abs=1e-4)


def test_dgd_without_counts(tmp_path):
    with pytest.raises(DataError, match="model 'dgd' is trained on raw counts, and this data set has none"):
        embed(rebuild(Model, DGD), wells(), tmp_path / "out")


def test_unknown_layer():
    with pytest.raises(Exception, match="encoder"):
        model("scvi", layer="decoder")


def test_unknown_adapter(tmp_path):
    config = model("profiles").model_copy(update={"adapter": "unheard_of"})
    with pytest.raises(ConfigError, match="'unheard_of' is unknown; known adapters: autoencoder"):
        embed(config, wells(), tmp_path / "a", threads=1)


def test_bfloat16_is_passed_on(tmp_path):
    store = embed(model("profiles", dtype="bfloat16"), wells(), tmp_path / "a", threads=1)
    assert store.dtype == "bfloat16"
    np.testing.assert_allclose(store.read(), wells().data.X, rtol=1 / 256)
