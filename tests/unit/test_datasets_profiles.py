import gzip

import numpy as np
import pandas as pd
import pytest

from conceptome.config.base import rebuild
from conceptome.config.datasets import Dataset
from conceptome.datasets import load, prepare
from conceptome.errors import DataError

FEATURES = ["Cells_Area", "Cells_Shape", "Nuclei_Area"]


def wells(seed=0, plates=6):
    rng = np.random.default_rng(seed)
    rows = []
    for plate in range(plates):
        for well in range(8):
            compound = ["DMSO", "DMSO", "DMSO", "A", "B", "C", "C", None][well]
            rows.append(
                {
                    "Metadata_Plate": f"P{plate}",
                    "Metadata_Well": f"W{well}",
                    "Metadata_Compound": compound,
                    "Metadata_Class": {"DMSO": "control", "A": "one", "B": "two", "C": "two"}.get(compound),
                    "Metadata_Dose": {"DMSO": np.nan, "A": 0.62, "B": 0.63}.get(compound, 5),
                    "Metadata_Batch": 1.0 if plate < 3 else 2.0,
                }
                | dict(zip(FEATURES, rng.normal(3, 2, 3)))
            )
    return pd.DataFrame(rows)


def config(**keys):
    return rebuild(
        Dataset,
        {
            "reader": "profiles",
            "title": "t",
            "inputs": {"wells": {"path": "x"}},
            "rename": {"Metadata_Plate": "plate", "Metadata_Compound": "compound"},
            "sample_id": ["plate", "Metadata_Well"],
            "control": {"column": "compound", "values": ["DMSO"]},
            "group": "plate",
            "batch": "Metadata_Batch",
            "labels": {"compound": {}, "Metadata_Dose": {"kind": "ordinal"}, "plate": {"role": "technical"}},
            **keys,
        },
    )


def run(tmp_path, table, name="out", **keys):
    path = tmp_path / "wells.csv"
    table.to_csv(path, index=False)
    prepare(config(**keys), {"wells": path}, tmp_path / name)
    return load(tmp_path / name)


def test_table_is_read(tmp_path):
    table = wells()
    dataset = run(tmp_path, table)
    data = dataset.anndata()
    assert data.var_names.tolist() == FEATURES
    assert data.X.dtype == np.float32
    np.testing.assert_allclose(data.X, table[FEATURES].to_numpy(), rtol=1e-6)
    obs = dataset.obs
    assert obs.index[:2].tolist() == ["P0:W0", "P0:W1"]
    assert obs["batch"].unique().tolist() == ["1", "2"]
    assert obs["compound"].iloc[7] is None
    assert np.isnan(obs["Metadata_Dose"].iloc[0])
    assert dataset.card["group_is"] == dataset.card["interval_level"].removesuffix("-level") == "plate"
    assert dataset.card["reports"]["labels"]["compound"]["missing"] == 6


@pytest.mark.parametrize("suffix", [".csv.gz", ".parquet", ".tsv"])
def test_formats_agree(tmp_path, suffix):
    table = wells()
    path = tmp_path / f"wells{suffix}"
    if suffix == ".parquet":
        table.to_parquet(path)
    else:
        table.to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")
    prepare(config(), {"wells": path}, tmp_path / "other")
    run(tmp_path, table)
    for name in ("X.h5ad", "obs.parquet"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_declared_metadata_and_ignored_columns(tmp_path):
    table = wells().assign(note="text")
    columns = [name for name in table if name.startswith("Metadata_")]
    dataset = run(
        tmp_path, table, metadata_prefix="none", metadata_columns=columns, ignore_columns=["note", "Cells_Shape"]
    )
    assert dataset.anndata().var_names.tolist() == ["Cells_Area", "Nuclei_Area"]


def test_standardised_on_training_controls_only(tmp_path):
    dataset = run(tmp_path, wells(), transform="standardize")
    rows = (dataset.obs["control"] & (dataset.obs["split"] == "train")).to_numpy()
    values = dataset.anndata().X
    np.testing.assert_allclose(values[rows].mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(values[rows].std(0), 1, atol=1e-5)
    assert np.abs(values[~rows].mean(0)).max() > 0.01


def test_constant_features_are_left_out_and_named(tmp_path):
    table = wells()
    table.loc[table["Metadata_Compound"] == "DMSO", "Cells_Shape"] = 7.0
    dataset = run(tmp_path, table, transform="standardize")
    assert dataset.card["reports"]["constant_features"] == ["Cells_Shape"]
    assert dataset.anndata().var_names.tolist() == ["Cells_Area", "Nuclei_Area"]


def test_values_that_mean_one_thing_are_joined(tmp_path):
    dataset = run(tmp_path, wells(), replace={"Metadata_Dose": [{"values": [0.62, 0.63], "by": 0.625}]})
    assert sorted(dataset.obs["Metadata_Dose"].dropna().unique()) == [0.625, 5.0]


def test_classes_of_a_single_compound_are_marked_but_not_the_controls(tmp_path):
    dataset = run(tmp_path, wells(), labels={"Metadata_Class": {"instances": "compound"}})
    assert dataset.card["labels"]["Metadata_Class"]["single_instance_classes"] == ["one"]
    assert any("single compound: one." in note for note in dataset.card["notes"])


def test_classes_in_a_single_batch_are_listed(tmp_path):
    table = wells()
    table.loc[(table["Metadata_Compound"] == "A") & (table["Metadata_Batch"] == 2), "Metadata_Compound"] = "B"
    dataset = run(tmp_path, table)
    assert dataset.card["reports"]["labels"]["compound"]["single_batch_classes"] == ["A"]


def test_tables_are_stacked_in_order(tmp_path):
    table = wells()
    table.iloc[20:].to_csv(tmp_path / "a.csv", index=False)
    table.iloc[:20].to_csv(tmp_path / "b.csv", index=False)
    stacked = config(inputs={"second": {"path": "a"}, "first": {"path": "b"}})
    prepare(stacked, {"second": tmp_path / "a.csv", "first": tmp_path / "b.csv"}, tmp_path / "out")
    dataset = load(tmp_path / "out")
    assert dataset.obs.index[0] == "P2:W4"
    assert dataset.card["reports"]["rows_per_input"] == {"second": 28, "first": 20}


def test_row_numbers_name_samples_when_nothing_else_does(tmp_path):
    assert run(tmp_path, wells(), sample_id=None).obs.index[:3].tolist() == ["0", "1", "2"]


def test_twice_written_is_byte_identical(tmp_path):
    run(tmp_path, wells(), "one")
    run(tmp_path, wells(), "two")
    for name in ("X.h5ad", "obs.parquet", "card.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def changed(**columns):
    return wells().assign(**columns)


def with_cell(row, column, value):
    table = wells()
    table[column] = table[column].astype(object) if isinstance(value, str) else table[column]
    table.loc[row, column] = value
    return table


@pytest.mark.parametrize(
    ("table", "keys", "message"),
    [
        (wells(), {"labels": {"compond": {}}}, "label column 'compond' does not exist; did you mean 'compound'"),
        (wells(), {"control": {"column": "kind", "values": [1]}}, "control column 'kind' does not exist"),
        (wells(), {"control": {"column": "compound", "values": ["dmso"]}}, "no control rows.*did you mean 'DMSO'"),
        (wells(), {"ignore_columns": ["Cells_Aera"]}, "ignore_columns column 'Cells_Aera'.*did you mean 'Cells_Area'"),
        (wells(), {"sample_id": ["plate"]}, "6 sample ids occur more than once .first: 'P0'"),
        (with_cell(3, "Cells_Shape", np.nan), {}, "1 NaN or infinite values in 1 columns, most in 'Cells_Shape'"),
        (with_cell(3, "Cells_Shape", np.inf), {}, "1 NaN or infinite values in 1 columns, most in 'Cells_Shape'"),
        (with_cell(3, "Cells_Shape", "n/a?"), {}, "neither metadata nor numeric, first 'Cells_Shape'.*'n/a\\?'"),
        (changed(note="x"), {}, "1 columns are neither metadata nor numeric, first 'note'"),
        (wells(), {"metadata_prefix": "Meta_"}, "no column begins with 'Meta_'"),
        (wells(), {"replace": {"Metadata_Dose": [{"values": [0.64], "by": 1}]}}, "never holds 0.64"),
        (wells(), {"labels": {"compound": {"instances": "drug"}}}, "instances column 'drug' does not exist"),
        (wells(plates=2), {}, "at least 3 groups, there are 2"),
        (wells().iloc[:0], {}, "holds no rows"),
    ],
)
def test_bad_input_gets_one_clear_line(tmp_path, table, keys, message):
    with pytest.raises(DataError, match=message) as caught:
        run(tmp_path, table, **keys)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "card.json").exists()


@pytest.mark.parametrize("damage", ["truncated", "flipped", "plain"])
def test_corrupt_gzip(tmp_path, damage):
    path = tmp_path / "wells.csv.gz"
    packed = gzip.compress(wells().to_csv(index=False).encode(), mtime=0)
    middle = len(packed) // 2
    content = {
        "truncated": packed[:middle],
        "flipped": packed[:middle] + bytes([packed[middle] ^ 255]) + packed[middle + 1 :],
        "plain": b"a,b\n1,2\n",
    }[damage]
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"wells\.csv\.gz is") as caught:
        prepare(config(), {"wells": path}, tmp_path / "out")
    assert "gzip" in str(caught.value)


def test_tables_with_different_columns(tmp_path):
    wells().to_csv(tmp_path / "a.csv", index=False)
    wells().rename(columns={"Cells_Area": "Area"}).to_csv(tmp_path / "b.csv", index=False)
    stacked = config(inputs={"a": {"path": "a"}, "b": {"path": "b"}})
    with pytest.raises(DataError, match=r"2 in one only.: 'Area' is in 'b'"):
        prepare(stacked, {"a": tmp_path / "a.csv", "b": tmp_path / "b.csv"}, tmp_path / "out")


def test_column_twice(tmp_path):
    (tmp_path / "a.csv").write_text("Metadata_Plate,x,x\nP,1,2\n")
    with pytest.raises(DataError, match="column 'x' occurs 2 times"):
        prepare(config(), {"wells": tmp_path / "a.csv"}, tmp_path / "out")


def test_corrupt_parquet(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match="is not a readable Parquet file"):
        prepare(config(), {"wells": tmp_path / "a.parquet"}, tmp_path / "out")
