from types import SimpleNamespace

import numpy as np
import pytest
from scipy import sparse

from conceptome.config.base import rebuild
from conceptome.config.datasets import Dataset
from conceptome.datasets import kang2018, load, prepare
from conceptome.errors import DataError

GENES = np.array([f"G{number}" for number in range(60)], dtype=object)
TYPES = ("B cells", "T cells")


def planted(n, rng):
    """Two cell types that express different halves of the genes."""
    types = np.array(TYPES, dtype=object)[np.arange(n) % 2]
    rate = np.where((types == TYPES[0])[:, None], np.r_[np.full(30, 5.0), np.full(30, 0.5)], 1.0)
    rate = np.where((types == TYPES[1])[:, None], np.r_[np.full(30, 0.5), np.full(30, 5.0)], rate)
    return rng.poisson(rate).astype(np.float32), types


def dgcmatrix(counts, cells):
    """What rdata makes of R's genes × cells matrix."""
    stored = sparse.csc_matrix(counts.T)
    return SimpleNamespace(
        i=stored.indices, p=stored.indptr, x=stored.data, Dim=np.array(stored.shape), Dimnames=[GENES, cells]
    )


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Replace the R files by planted ones: 40 cells a condition, 100 labelled, 10 of them shared."""
    rng = np.random.default_rng(0)
    counts, types = planted(80, rng)
    labelled, labels = planted(100, rng)
    labelled[:10], labels[:10] = counts[:10], types[:10]
    barcodes = np.array([f"b{number}-1" for number in range(80)], dtype=object)
    labelled_barcodes = np.array([*barcodes[:10], *(f"x{number}-1" for number in range(90))], dtype=object)
    experiment = SimpleNamespace(
        assays=SimpleNamespace(
            data=SimpleNamespace(listData={"counts": dgcmatrix(labelled, labelled_barcodes)}),
        ),
        colData=SimpleNamespace(
            listData={"cluster_id": labels, "group_id": np.array(["ctrl"] * 50 + ["stim"] * 50, dtype=object)}
        ),
    )
    stored = {
        "counts.RData": {
            "pbmc.ctrl": dgcmatrix(counts[:40], barcodes[:40]),
            "pbmc.stim": dgcmatrix(counts[40:], barcodes[40:]),
        },
        "annotated.rda": {"example_sce": experiment},
    }
    monkeypatch.setattr(kang2018, "read_r", lambda path: stored[path.name])
    return stored, types, {"counts": tmp_path / "counts.RData", "annotated": tmp_path / "annotated.rda"}


def config(**keys):
    return rebuild(
        Dataset,
        {
            "reader": "kang2018",
            "title": "t",
            "inputs": {"counts": {"path": "a"}, "annotated": {"path": "b"}},
            "quality_control": {"min_genes": 1, "min_cells": 1, "n_top_genes": 20},
            "labels": {"condition": {}, "cell_type_transferred": {}},
            **keys,
        },
    )


def test_types_are_transferred_and_the_held_out_accuracy_is_told(files, tmp_path):
    _, types, inputs = files
    prepare(config(), inputs, tmp_path / "out")
    dataset = load(tmp_path / "out")
    assert (dataset.obs["cell_type_transferred"].to_numpy() == types).mean() > 0.95
    transfer = dataset.card["reports"]["transfer"]
    assert (transfer["n_train"], transfer["held_out"]["n"], transfer["cross_validated"]["n"]) == (90, 10, 90)
    assert transfer["held_out"]["accuracy_low"] < transfer["held_out"]["accuracy"] <= 1
    assert dataset.obs["control"].tolist() == [True] * 40 + [False] * 40
    assert dataset.obs["batch"].isna().all()
    assert dataset.card["interval_level"] == "cell-level"
    assert dataset.card["batch_is"] is None
    assert any("one thing" in note for note in dataset.card["notes"])


def test_shared_cells_are_kept_out_of_the_training(files):
    stored, _, inputs = files
    matrix, genes, cells, types = kang2018.read_annotated(inputs["annotated"])
    # Wrong labels on the shared cells must not reach the classifier: it stays right, and they count as its errors.
    wrong = types.copy()
    wrong[:10] = np.where(types[:10] == TYPES[0], TYPES[1], TYPES[0])
    mine, _, barcodes = kang2018.read_dgcmatrix(stored["counts.RData"]["pbmc.ctrl"], "x")
    names = np.array([f"control:{barcode}" for barcode in barcodes], dtype=object)
    good, _ = kang2018.transfer_types(mine, GENES, names, matrix, genes, cells, types, 0.0, 0)
    still, report = kang2018.transfer_types(mine, GENES, names, matrix, genes, cells, wrong, 0.0, 0)
    assert good.tolist() == still.tolist()
    assert report["held_out"]["accuracy"] < 0.2


def test_uncertain_cells_get_no_type(files, tmp_path):
    _, _, inputs = files
    prepare(config(min_transfer_probability=1.0), inputs, tmp_path / "out")
    dataset = load(tmp_path / "out")
    without = dataset.card["reports"]["transfer"]["without_type"]
    assert 0 < without == dataset.obs["cell_type_transferred"].isna().sum()


def test_missing_object(files, tmp_path):
    stored, _, inputs = files
    del stored["counts.RData"]["pbmc.stim"]
    with pytest.raises(DataError, match=r"object 'pbmc.stim' is missing"):
        prepare(config(), inputs, tmp_path / "out")


def test_unknown_label_names_the_known_ones(files, tmp_path):
    _, _, inputs = files
    with pytest.raises(DataError, match="did you mean 'cell_type_transferred'"):
        prepare(config(labels={"cell_type": {}}), inputs, tmp_path / "out")


@pytest.mark.parametrize("content", [b"not R", b"\x1f\x8b\x08\x00damaged"])
def test_damaged_r_file(tmp_path, content):
    path = tmp_path / "a.RData"
    path.write_bytes(content)
    with pytest.raises(DataError, match="is not a readable R data file"):
        kang2018.read_r(path)
