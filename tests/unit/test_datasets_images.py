import io
import tarfile

import numpy as np
import pandas as pd
import pytest
from images import CHANNELS, crops_study, fields, fields_study

from conceptome.datasets import load, outputs, prepare
from conceptome.datasets.image_fields import files, tile_centres, within
from conceptome.datasets.images import batches
from conceptome.errors import DataError

pytest.importorskip("tifffile")
pytest.importorskip("zarr")


def prepared(config, inputs, folder):
    prepare(config, inputs, folder)
    return load(folder)


# ---- crops that others cut


def test_crops_keep_their_pixels_and_their_row(tmp_path):
    config, inputs, table, crops = crops_study(tmp_path, sha256_column="sha256")
    dataset = prepared(config, inputs, tmp_path / "out")
    stored = dataset.crops()
    assert stored.dtype == np.uint16
    np.testing.assert_array_equal(stored, crops)
    assert list(dataset.obs.index) == [f"{r.plate}:{r.field}:{r.cell}" for r in table.itertuples()]
    assert dataset.card["modality"] == "images"
    assert dataset.card["channels"] == CHANNELS
    assert dataset.card["crop_shape"] == [2, 12, 12]
    assert {path.name for path in dataset.folder.iterdir()} == set(outputs("image_crops"))
    np.testing.assert_array_equal(np.concatenate(list(batches(dataset, 7))), crops)


def test_whole_plates_are_held_out_and_fields_are_the_groups(tmp_path):
    config, inputs, *_ = crops_study(tmp_path)
    dataset = prepared(config, inputs, tmp_path / "out")
    assert dict(zip(dataset.obs["plate"], dataset.obs["split"])) == {"P0": "train", "P1": "validation", "P2": "test"}
    assert dataset.card["group_is"] == "field"
    assert any("Whole values of plate are held out" in note for note in dataset.card["notes"])


def test_treatment_that_sits_in_one_well_is_said_to_be_confounded(tmp_path):
    config, inputs, table, _ = crops_study(tmp_path)
    card = prepared(config, inputs, tmp_path / "out").card
    assert card["confounded"] == [{"label": "compound", "with": "well"}, {"label": "dose", "with": "well"}]
    assert any(note.startswith("CONFOUNDED") and "B02" in note for note in card["notes"])
    # The same labels dealt over the wells are not.
    table["well"] = ["B02", "B03"] * 12
    table.loc[table["plate"] == "P1", ["compound", "dose"]] = ["DMSO", 0]
    table["field"] = table["field"] + "-" + table["well"]
    table.to_csv(tmp_path / "cells.csv", index=False)
    card = prepared(config, inputs, tmp_path / "again").card
    assert card["confounded"] == []
    assert any("Controls only: P1 (plate)" in note for note in card["notes"])


def test_two_readings_have_the_same_bytes(tmp_path):
    config, inputs, *_ = crops_study(tmp_path, subsample=15)
    for name in ("one", "two"):
        prepare(config, inputs, tmp_path / name)
    for name in outputs("image_crops"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert len(load(tmp_path / "one")) == 15


def repack(path, change):
    """Write the archive again with `change(name, array)` in place of each array; None leaves it out."""
    with tarfile.open(path) as archive:
        held = {m.name: np.load(io.BytesIO(archive.extractfile(m).read())) for m in archive if m.isfile()}
    with tarfile.open(path, "w:xz") as archive:
        for name, array in held.items():
            changed = change(name, array)
            if changed is not None:
                content = io.BytesIO()
                np.save(content, changed)
                member = tarfile.TarInfo(name)
                member.size = content.tell()
                archive.addfile(member, io.BytesIO(content.getvalue()))


def one(name, array, value):
    return value if name == "data/c03.npy" else array


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda n, a: one(n, a, None), r"lacks 1 files that the table names, first 'data/c03.npy'"),
        (lambda n, a: one(n, a, a[..., :1]), r"c03.npy holds 1 channels, but dataset.channels names 2"),
        (lambda n, a: one(n, a, a.astype("uint8")), r"npy holds (uint8|uint16) pixels where the images before it hold"),
        (lambda n, a: a.astype("float32"), r"holds float32 pixels; uint8 or uint16 are read"),
        (lambda n, a: one(n, a, a[:5]), r"pixels where the crops before it are"),
    ],
)
def test_a_wrong_crop_is_named(tmp_path, change, message):
    config, inputs, *_ = crops_study(tmp_path)
    repack(inputs["crops"], change)
    with pytest.raises(DataError, match=message) as found:
        prepare(config, inputs, tmp_path / "out")
    assert "\n" not in str(found.value)
    assert not (tmp_path / "out" / "card.json").exists()


def test_a_changed_file_and_a_truncated_archive_are_named(tmp_path):
    config, inputs, *_ = crops_study(tmp_path, sha256_column="sha256")
    repack(inputs["crops"], lambda n, a: one(n, a, a + 1))
    with pytest.raises(DataError, match=r"c03.npy is not the file whose sha256 the table gives"):
        prepare(config, inputs, tmp_path / "out")
    content = inputs["crops"].read_bytes()
    inputs["crops"].write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="damaged or truncated archive"):
        prepare(config, inputs, tmp_path / "out")


def test_a_plan_that_forgets_or_invents_a_plate_is_refused(tmp_path):
    plan = {"train": ["P0"], "validation": ["P1"], "test": ["P9"]}
    config, inputs, *_ = crops_study(tmp_path, split_plan=plan)
    with pytest.raises(DataError, match=r"split_plan.test names 'P9', which no sample has \(P0, P1, P2\)"):
        prepare(config, inputs, tmp_path / "out")
    config, inputs, *_ = crops_study(tmp_path, group="plate", split_by="cell", split_plan=None)
    with pytest.raises(DataError, match=r"values of split_by 'cell', and would stand on two sides"):
        prepare(config, inputs, tmp_path / "out")


# ---- fields of view


@pytest.mark.parametrize("kind", ["tiff", "ome-tiff", "ome-zarr2", "ome-zarr3"])
def test_every_format_gives_the_same_tiles(tmp_path, kind):
    images, _ = fields(tmp_path, kind)
    config, inputs = fields_study(tmp_path)
    dataset = prepared(config, inputs, tmp_path / "out")
    crops = dataset.crops()
    assert crops.dtype == np.uint16
    assert crops.shape == (4 * 6, 2, 10, 10)
    np.testing.assert_array_equal(
        crops[:6], [images[0][:, y : y + 10, x : x + 10] for y in (0, 10) for x in (0, 10, 20)]
    )
    assert list(dataset.obs["field"].iloc[[0, 6]]) == ["P0:A00:0", "P1:A01:1"]
    assert dataset.obs.index[7] == "P1:A01:1:1"
    assert dataset.card["reports"]["fields"] == 4


def test_crops_around_centroids(tmp_path):
    images, _ = fields(tmp_path)
    objects = pd.DataFrame(
        {
            "Metadata_Plate": "P0",
            "Metadata_Well": "A00",
            "Metadata_Site": [0, 0, 0, 3],
            "x": [12.4, 1, 20, 7],
            "y": [9.6, 9, 15, 8],
        }
    )
    objects.to_csv(tmp_path / "objects.csv", index=False)
    names = {"load_data": {"path": "load_data.csv"}, "objects": {"path": "objects.csv"}}
    config, inputs = fields_study(tmp_path, inputs=names, cropping={"by": "centroid", "size": 8}, control_fraction=1.0)
    dataset = prepared(config, inputs, tmp_path / "out")
    np.testing.assert_array_equal(dataset.crops()[0], images[0][:, 6:14, 8:16])
    np.testing.assert_array_equal(dataset.crops()[2], images[3][:, 4:12, 3:11])
    assert len(dataset) == 3
    assert dataset.card["reports"]["left_out_at_edge"] == 1
    assert any("1 objects lie too near to an edge" in note for note in dataset.card["notes"])
    objects.assign(Metadata_Site=9).to_csv(tmp_path / "objects.csv", index=False)
    with pytest.raises(DataError, match="fields are not in the table of images, first 'P0:A00:9'"):
        prepare(config, inputs, tmp_path / "out")


def test_illumination_is_applied_and_bits_are_kept(tmp_path):
    images, table = fields(tmp_path)
    function = np.linspace(0.5, 2, 600).reshape(20, 30)
    np.save(tmp_path / "images" / "illum.npy", function)
    table.assign(FileName_IllumDNA="illum.npy").to_csv(tmp_path / "load_data.csv", index=False)
    config, inputs = fields_study(tmp_path)
    dataset = prepared(config, inputs, tmp_path / "out")
    expected = np.rint(images[0, 0] / function).clip(0, 65535).astype(np.uint16)
    np.testing.assert_array_equal(dataset.crops()[0, 0], expected[:10, :10])
    np.testing.assert_array_equal(dataset.crops()[0, 1], images[0, 1, :10, :10])
    assert dataset.card["reports"]["illumination"] == ["DNA"]
    assert tmp_path / "images" / "illum.npy" in files(config, tmp_path / "load_data.csv")
    np.save(tmp_path / "images" / "illum.npy", function - 1)
    with pytest.raises(DataError, match=r"illum.npy is not positive everywhere"):
        prepare(config, inputs, tmp_path / "out")
    np.save(tmp_path / "images" / "illum.npy", function[:4])
    with pytest.raises(DataError, match=r"illum.npy is 4 × 30, the image 20 × 30"):
        prepare(config, inputs, tmp_path / "out")


def test_a_missing_channel_file_a_cut_one_and_another_depth_are_named(tmp_path):
    import tifffile

    _, table = fields(tmp_path)
    config, inputs = fields_study(tmp_path)
    path = tmp_path / "images" / "f2_actin.tif"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"f2_actin.tif is (unreadable or )?truncated"):
        prepare(config, inputs, tmp_path / "out")
    tifffile.imwrite(path, np.zeros((20, 30), np.uint8))
    with pytest.raises(DataError, match=r"f2_actin.tif holds uint8 pixels where the images before it hold uint16"):
        prepare(config, inputs, tmp_path / "out")
    tifffile.imwrite(path, np.zeros((20, 29), np.uint16))
    with pytest.raises(DataError, match=r"f2_actin.tif is 20 × 29 pixels, the field's first channel 20 × 30"):
        prepare(config, inputs, tmp_path / "out")
    path.unlink()
    with pytest.raises(DataError, match=r"f2_actin.tif does not exist"):
        prepare(config, inputs, tmp_path / "out")
    table.assign(FileName_Origactin=[*table["FileName_Origactin"][:3], None]).to_csv(inputs["load_data"], index=False)
    path.write_bytes(content)
    with pytest.raises(DataError, match="field 'P0:A00:3' names no file for channel 'actin'"):
        prepare(config, inputs, tmp_path / "out")
    table.drop(columns="FileName_Origactin").to_csv(inputs["load_data"], index=False)
    with pytest.raises(DataError, match="channel 'actin' column 'FileName_Origactin' does not exist"):
        prepare(config, inputs, tmp_path / "out")


def test_planes_are_chosen_by_column_and_counted(tmp_path):
    images, table = fields(tmp_path, "ome-tiff")
    table.assign(Frame_OrigDNA=1, Frame_Origactin=0).to_csv(tmp_path / "load_data.csv", index=False)
    config, inputs = fields_study(tmp_path)
    crops = prepared(config, inputs, tmp_path / "out").crops()
    np.testing.assert_array_equal(crops[0], images[0, ::-1, :10, :10])
    table.assign(Frame_OrigDNA=2, Frame_Origactin=0).to_csv(tmp_path / "load_data.csv", index=False)
    with pytest.raises(DataError, match="has 2 planes, but Frame_OrigDNA asks for 2"):
        prepare(config, inputs, tmp_path / "out")
    table.to_csv(tmp_path / "load_data.csv", index=False)
    config, inputs = fields_study(tmp_path, channels=["DNA"])
    with pytest.raises(DataError, match=r"f0.ome.tif holds 2 channels, but dataset.channels names 1"):
        prepare(config, inputs, tmp_path / "out")


def test_an_image_in_zarr_without_a_chunk_is_refused(tmp_path):
    fields(tmp_path, "ome-zarr2")
    next(
        path for path in sorted((tmp_path / "f1.ome.zarr" / "0").rglob("*")) if path.is_file() and path.name[0] != "."
    ).unlink()
    config, inputs = fields_study(tmp_path)
    with pytest.raises(DataError, match=r"f1.ome.zarr lacks 1 of \d+ chunks"):
        prepare(config, inputs, tmp_path / "out")
    (tmp_path / "f0.ome.zarr" / ".zattrs").write_text("{}")
    with pytest.raises(DataError, match=r"f0.ome.zarr is no OME-Zarr image"):
        prepare(config, inputs, tmp_path / "out")


def test_centroids_need_objects(tmp_path):
    with pytest.raises(Exception, match="centroid needs the input 'objects'"):
        fields_study(tmp_path, cropping={"by": "centroid", "size": 8})


def test_tiles_lie_wholly_in_the_image():
    from conceptome.config.datasets import Cropping

    cropping = Cropping(size=5, stride=3)
    centres = tile_centres((11, 8), cropping)
    assert len(centres) == 3 * 2
    assert within(centres, (11, 8), 5).all()
    np.testing.assert_array_equal(
        within(np.array([[2.0, 2.0], [1.4, 2.0], [8.0, 5.0], [9.0, 5.0]]), (11, 8), 5), [1, 0, 1, 0]
    )
