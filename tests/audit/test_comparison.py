"""Files that should hold the same: what counts as equal, as a difference of numbers, and as another content."""

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

from conceptome.provenance.comparison import TOLERANCE, compare

VALUES = np.array([1.0, -250.0, np.nan, 3.5])
NEAR = VALUES + np.array([0.0, 250 * TOLERANCE / 2, 0.0, 0.0])
FAR = VALUES + np.array([0.0, 0.0, 0.0, 250 * TOLERANCE * 2])


def write_npy(path, values):
    np.save(path, values)


def write_parquet(path, values):
    pd.DataFrame({"atom": range(len(values)), "auroc": values}).to_parquet(path)


def write_csv(path, values):
    pd.DataFrame({"atom": [f"a{i}" for i in range(len(values))], "auroc": values}).to_csv(path, index=False)


def write_safetensors(path, values):
    save_file({"decoder": values, "order": np.arange(4)}, path)


def write_h5ad(path, values):
    import anndata

    anndata.AnnData(np.array([values, values]), obs=pd.DataFrame({"cell_type": ["B", "NK"]}, index=["x", "y"])).write(
        path
    )


WRITERS = {
    "npy": write_npy,
    "parquet": write_parquet,
    "csv": write_csv,
    "safetensors": write_safetensors,
    "h5ad": write_h5ad,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_numbers_are_compared_within_the_tolerance(tmp_path, kind):
    paths = [tmp_path / f"{name}.{kind}" for name in ("one", "same", "near", "far")]
    for path, values in zip(paths, (VALUES, VALUES, NEAR, FAR)):
        WRITERS[kind](path, values)
    one, same, near, far = paths
    assert compare(one, same) is None
    assert compare(one, near).within_tolerance
    assert compare(one, near).largest == pytest.approx(TOLERANCE / 2, rel=1e-3)
    assert not compare(one, far).within_tolerance
    assert compare(one, far).largest == pytest.approx(TOLERANCE * 2, rel=1e-3)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_number_that_becomes_nan_is_no_small_difference(tmp_path, kind):
    one, two = tmp_path / f"one.{kind}", tmp_path / f"two.{kind}"
    WRITERS[kind](one, VALUES)
    WRITERS[kind](two, np.where(VALUES == 1.0, np.nan, VALUES))
    assert compare(one, two).largest is None


def test_what_is_no_number_must_be_equal(tmp_path):
    frames = {
        "one": pd.DataFrame({"atom": [1, 2], "label": ["B", "NK"]}),
        "label": pd.DataFrame({"atom": [1, 2], "label": ["B", "T"]}),
        "count": pd.DataFrame({"atom": [1, 3], "label": ["B", "NK"]}),
        "longer": pd.DataFrame({"atom": [1, 2, 3], "label": ["B", "NK", "T"]}),
        "column": pd.DataFrame({"atom": [1, 2], "name": ["B", "NK"]}),
    }
    for name, frame in frames.items():
        frame.to_parquet(tmp_path / f"{name}.parquet")
    found = {name: compare(tmp_path / "one.parquet", tmp_path / f"{name}.parquet") for name in frames}
    assert found.pop("one") is None
    assert {name: item.largest for name, item in found.items()} == dict.fromkeys(found)
    assert found["label"].where == "column label: 1 of 2 values differ"
    assert "name" in found["column"].where


def test_numbers_in_a_text_count_and_digests_do_not(tmp_path):
    def text(name, number, digest="a", word="loss"):
        path = tmp_path / f"{name}.json"
        path.write_text(f'{{"{word}": {number}, "k": 8, "sha256": "{digest * 64}"}}')
        return path

    one = text("one", 0.25)
    assert compare(one, text("near", 0.2500001, digest="b")).within_tolerance
    assert not compare(one, text("far", 0.26)).within_tolerance
    assert compare(one, text("word", 0.25, word="cost")).largest is None
    assert compare(one, text("sign", -0.25)).largest == pytest.approx(2.0)


def test_pictures_are_compared_by_brightness(tmp_path):
    from PIL import Image

    dark = np.zeros((4, 4, 3), dtype=np.uint8)
    Image.fromarray(dark).save(tmp_path / "one.png")
    Image.fromarray(dark).save(tmp_path / "stored.png", compress_level=0)
    dark[1, 1] = 51
    Image.fromarray(dark).save(tmp_path / "spot.png")
    Image.fromarray(dark[:3]).save(tmp_path / "smaller.png")
    assert compare(tmp_path / "one.png", tmp_path / "stored.png").largest == 0
    assert compare(tmp_path / "one.png", tmp_path / "spot.png").largest == pytest.approx(0.2)
    assert compare(tmp_path / "one.png", tmp_path / "smaller.png").largest is None


def test_a_pickle_in_an_array_file_is_refused_and_not_executed(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    np.save(tmp_path / "one.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    np.save(tmp_path / "two.npy", np.zeros(1))
    assert compare(tmp_path / "one.npy", tmp_path / "two.npy").largest is None
    assert not (tmp_path / "executed").exists()


def test_a_format_without_a_rule_is_said_to_have_none(tmp_path):
    (tmp_path / "one.bin").write_bytes(b"1")
    (tmp_path / "two.bin").write_bytes(b"2")
    assert compare(tmp_path / "one.bin", tmp_path / "two.bin").where == "no rule to compare .bin files"
