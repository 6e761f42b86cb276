import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from conceptome.config.base import rebuild
from conceptome.config.datasets import Dataset, Split
from conceptome.datasets import assign_splits, load, prepare
from conceptome.errors import DataError

QUALITY = {"min_genes": 3, "min_cells": 2, "n_top_genes": 10}


def counts_of(n=40, p=25, seed=0):
    return np.random.default_rng(seed).poisson(2.0, (n, p)).astype(np.float32)


def write(path, counts, *, ids=None, symbols=None, layer="counts"):
    n, p = counts.shape
    obs = pd.DataFrame(
        {
            "donor": [f"d{row // 2 % 4}" for row in range(n)],
            "treatment": ["none", "drug"] * (n // 2),
            "age": [20.0 + row % 3 for row in range(n)],
        },
        index=ids or [f"cell{row}" for row in range(n)],
    )
    var = pd.DataFrame({"symbol": symbols or [f"G{column}" for column in range(p)]}, index=[f"v{c}" for c in range(p)])
    data = anndata.AnnData(sparse.csr_matrix(counts), obs=obs, var=var)
    data.layers[layer] = data.X.copy()
    data.write_h5ad(path)
    return path


def config(**keys):
    return rebuild(
        Dataset,
        {
            "reader": "h5ad",
            "title": "t",
            "inputs": {"h5ad": {"path": "x.h5ad"}},
            "counts": "counts",
            "gene_symbols": "symbol",
            "control": {"column": "treatment", "values": ["none"]},
            "group": "donor",
            "quality_control": QUALITY,
            "labels": {"treatment": {}, "donor": {"role": "technical"}},
            **keys,
        },
    )


def run(tmp_path, path, name="out", **keys):
    prepare(config(**keys), {"h5ad": path}, tmp_path / name)
    return load(tmp_path / name)


def test_counts_are_filtered_and_normalised(tmp_path):
    counts = counts_of()
    counts[3] = 0
    counts[3, :2] = 1  # two genes: below min_genes
    counts[:, 7] = 0
    counts[5, 7] = 4  # seen in one cell: below min_cells
    dataset = run(tmp_path, write(tmp_path / "a.h5ad", counts))
    data = dataset.anndata()
    assert data.shape == (39, 24)
    assert "cell3" not in dataset.obs.index
    assert "G7" not in data.var_names
    assert data.X.dtype == data.layers["counts"].dtype == np.float32
    raw = np.delete(np.delete(counts, 3, 0), 7, 1)
    np.testing.assert_array_equal(data.layers["counts"].toarray(), raw)
    np.testing.assert_allclose(data.X.toarray(), np.log1p(1e4 * raw / raw.sum(1, keepdims=True)), rtol=1e-5)
    assert data.var["highly_variable"].sum() == 10
    assert (dataset.obs.index == data.obs_names).all()
    quality = dataset.card["reports"]["quality_control"]
    assert (quality["cells_with_few_genes"], quality["genes_in_few_cells"]) == (1, 1)


def test_obs_and_card(tmp_path):
    dataset = run(tmp_path, write(tmp_path / "a.h5ad", counts_of()))
    obs, card = dataset.obs, dataset.card
    assert obs.columns.tolist() == ["control", "group", "batch", "split", "treatment", "donor"]
    assert obs["control"].tolist() == (obs["treatment"] == "none").tolist()
    assert obs["batch"].isna().all()
    assert obs.groupby("group")["split"].nunique().max() == 1
    assert (card["modality"], card["simulated"], card["n_samples"], card["n_features"]) == ("cells", False, 40, 25)
    assert (card["group_is"], card["interval_level"], card["batch_is"]) == ("donor", "donor-level", None)
    assert card["labels"]["donor"] == {"kind": "categorical", "role": "technical", "title": "donor"}
    assert card["reports"]["labels"]["treatment"]["classes"]["drug"] == {"samples": 20, "groups": 4}


def test_twice_written_is_byte_identical(tmp_path):
    path = write(tmp_path / "a.h5ad", counts_of())
    run(tmp_path, path, "one")
    run(tmp_path, path, "two")
    for name in ("X.h5ad", "obs.parquet", "card.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_normalised_values_are_taken_as_they_are(tmp_path):
    values = np.log1p(counts_of())
    dataset = run(tmp_path, write(tmp_path / "a.h5ad", values), counts=None)
    np.testing.assert_array_equal(dataset.anndata().X.toarray(), values)
    assert not dataset.anndata().layers


def test_without_control_a_seeded_share_serves_and_is_named(tmp_path):
    dataset = run(tmp_path, write(tmp_path / "a.h5ad", counts_of()), control=None)
    assert dataset.obs["control"].sum() == 8
    assert "seeded random 20%" in dataset.card["control_is"]
    assert any("no biological reference" in note for note in dataset.card["notes"])


def test_subsample(tmp_path):
    dataset = run(tmp_path, write(tmp_path / "a.h5ad", counts_of()), subsample=25)
    assert len(dataset) == 25
    assert dataset.anndata().obs_names.tolist() == dataset.obs.index.tolist()


def test_repeated_symbols_are_summed_for_counts(tmp_path):
    counts = counts_of()
    symbols = [f"G{column}" for column in range(25)]
    symbols[9] = "G4"
    dataset = run(tmp_path, write(tmp_path / "a.h5ad", counts, symbols=symbols))
    layer = dataset.anndata()[:, "G4"].layers["counts"].toarray().ravel()
    np.testing.assert_array_equal(layer, counts[:, 4] + counts[:, 9])
    report = dataset.card["reports"]["duplicated_gene_symbols"]
    assert report == {"n_symbols": 1, "n_columns": 2, "first": ["G4"], "done": "summed"}


def test_repeated_symbols_get_a_suffix_for_normalised_values(tmp_path):
    symbols = [f"G{column}" for column in range(25)]
    symbols[9] = "G4"
    dataset = run(tmp_path, write(tmp_path / "a.h5ad", np.log1p(counts_of()), symbols=symbols), counts=None)
    assert dataset.anndata().var_names[9] == "G4-1"
    assert dataset.card["reports"]["duplicated_gene_symbols"]["done"] == "made unique by a suffix"


def test_unknown_symbols_are_counted(tmp_path):
    symbols = [f"G{column}" for column in range(25)]
    symbols[2], symbols[3] = "", "ENSG00000012345"
    dataset = run(tmp_path, write(tmp_path / "a.h5ad", counts_of(), symbols=symbols))
    assert dataset.card["reports"]["unknown_gene_symbols"] == {"n": 2, "first": ["v2", "ENSG00000012345"]}
    assert "v2" in dataset.anndata().var_names


def bad_value(value):
    counts = counts_of()
    counts[4, 6] = value
    return counts


@pytest.mark.parametrize(
    ("counts", "keys", "message"),
    [
        (counts_of(), {"labels": {"treatmnt": {}}}, "label column 'treatmnt' does not exist; did you mean 'treatment'"),
        (counts_of(), {"control": {"column": "treat", "values": ["none"]}}, "control column 'treat' does not exist"),
        (counts_of(), {"control": {"column": "treatment", "values": ["non"]}}, "no control rows.*did you mean 'none'"),
        (counts_of(), {"group": "doner"}, "group column 'doner' does not exist; did you mean 'donor'"),
        (counts_of(), {"counts": "count"}, "layer 'count' does not exist; did you mean 'counts'"),
        (
            counts_of(),
            {"gene_symbols": "symbols"},
            "gene symbol column 'symbols' does not exist; did you mean 'symbol'",
        ),
        (bad_value(np.nan), {}, "1 NaN or infinite values in 1 columns, most in 'G6'"),
        (bad_value(np.inf), {}, "1 NaN or infinite values in 1 columns, most in 'G6'"),
        (bad_value(-1), {}, "raw counts are asked for, but 1 values are negative .first in gene 'G6'"),
        (bad_value(0.5), {}, "raw counts are asked for, but 1 values are not whole numbers .first in gene 'G6'"),
        (counts_of(), {"quality_control": {"min_genes": 99}}, "none of 40 cells passes quality control"),
        (
            counts_of(),
            {"quality_control": {**QUALITY, "max_percent_mitochondrial": 5.0}},
            "no gene name begins with 'MT-'",
        ),
        (counts_of(), {"labels": {"treatment": {"kind": "numeric"}}}, "'treatment' is declared numeric.*'none'"),
    ],
)
def test_bad_input_gets_one_clear_line(tmp_path, counts, keys, message):
    path = write(tmp_path / "a.h5ad", counts)
    with pytest.raises(DataError, match=message) as caught:
        run(tmp_path, path, **keys)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "card.json").exists()


def test_repeated_sample_ids(tmp_path):
    ids = [f"cell{row}" for row in range(40)]
    ids[7] = "cell3"
    with pytest.warns(UserWarning, match="not unique"):
        path = write(tmp_path / "a.h5ad", counts_of(), ids=ids)
    with pytest.raises(DataError, match=r"1 sample ids occur more than once .first: 'cell3'"):
        run(tmp_path, path)


@pytest.mark.parametrize("damage", ["truncated", "text", "absent"])
def test_damaged_file(tmp_path, damage):
    path = write(tmp_path / "a.h5ad", counts_of())
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage == "text":
        path.write_text("no HDF5")
    else:
        path.unlink()
    with pytest.raises(DataError, match=r"a\.h5ad") as caught:
        run(tmp_path, path)
    assert "\n" not in str(caught.value)


def test_mitochondrial_filter(tmp_path):
    counts = counts_of()
    counts[2, 0] = 500
    symbols = ["MT-ND1", *(f"G{column}" for column in range(1, 25))]
    path = write(tmp_path / "a.h5ad", counts, symbols=symbols)
    dataset = run(tmp_path, path, quality_control={**QUALITY, "max_percent_mitochondrial": 50.0})
    assert "cell2" not in dataset.obs.index
    assert dataset.card["reports"]["quality_control"]["cells_with_high_mitochondrial_share"] == 1


def test_no_control_in_the_training_split(tmp_path):
    # Controls that make up one whole group fall into one split; where that is not the training one, it is said.
    data = anndata.read_h5ad(write(tmp_path / "a.h5ad", counts_of()))
    data.obs["treatment"] = ["none" if donor == "d0" else "drug" for donor in data.obs["donor"]]
    data.write_h5ad(tmp_path / "a.h5ad")
    groups = pd.Series(["d0", "d1", "d2", "d3"])
    seeds = {assign_splits(groups, Split(seed=seed))[0]: seed for seed in range(20)}
    assert len(run(tmp_path, tmp_path / "a.h5ad", split={"seed": seeds["train"]})) == 40
    with pytest.raises(DataError, match="none of the 10 controls is in the training split"):
        run(tmp_path, tmp_path / "a.h5ad", "other", split={"seed": seeds["test"]})
