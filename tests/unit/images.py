"""Small image data sets for the tests: archives of crops, and fields in every format that is read."""

import hashlib
import io
import tarfile

import numpy as np
import pandas as pd

from conceptome.config.base import rebuild
from conceptome.config.datasets import Dataset

CHANNELS = ["DNA", "actin"]


def crops_study(folder, *, n=24, size=12, dtype="uint16", seed=0, **options):
    """Write crops (rows, columns, channels) as .npy in a tar.xz with a table: (config, inputs, table, crops cyx)."""
    rng = np.random.default_rng(seed)
    plate = np.arange(n) % 3
    field = np.arange(n) % 12
    treated = (np.arange(n) // 12 % 2).astype(bool)
    crops = rng.integers(100, 2000, (n, size, size, len(CHANNELS))).astype(dtype)
    rows = []
    with tarfile.open(folder / "crops.tar.xz", "w:xz") as archive:
        for number in rng.permutation(n):
            held = io.BytesIO()
            np.save(held, crops[number])
            member = tarfile.TarInfo(f"data/c{number:02d}.npy")
            member.size = held.tell()
            archive.addfile(member, io.BytesIO(held.getvalue()))
    for number in range(n):
        held = io.BytesIO()
        np.save(held, crops[number])
        rows.append(
            {
                "file": f"c{number:02d}.npy",
                "plate": f"P{plate[number]}",
                "well": "B03" if treated[number] else "B02",
                "field": f"P{plate[number]}-{int(treated[number])}-{field[number]}",
                "cell": number,
                "compound": "drug" if treated[number] else "DMSO",
                "dose": 5.0 * treated[number],
                "sha256": hashlib.sha256(held.getvalue()).hexdigest(),
            }
        )
    table = pd.DataFrame(rows)
    table.to_csv(folder / "cells.csv", index=False)
    values = {
        "reader": "image_crops",
        "title": "made up",
        "inputs": {"crops": {"path": "crops.tar.xz"}, "table": {"path": "cells.csv"}},
        "channels": CHANNELS,
        "folder": "data",
        "sample_id": ["plate", "field", "cell"],
        "control": {"column": "compound", "values": ["DMSO"]},
        "group": "field",
        "split_by": "plate",
        "split_plan": {"train": ["P0"], "validation": ["P1"], "test": ["P2"]},
        "batch": "plate",
        "position": "well",
        "labels": {
            "compound": {"kind": "categorical", "role": "biological"},
            "dose": {"kind": "ordinal", "role": "biological"},
            "plate": {"kind": "categorical", "role": "technical"},
        },
        **options,
    }
    inputs = {"crops": folder / "crops.tar.xz", "table": folder / "cells.csv"}
    return rebuild(Dataset, values), inputs, table, np.moveaxis(crops, -1, 1)


def write_zarr(path, image, version=2):
    """Write (channels, h, w) as OME-Zarr: 0.4 is on Zarr 2, 0.5 on Zarr 3."""
    import zarr

    group = zarr.open_group(path, mode="w", zarr_format=version)
    array = group.create_array("0", shape=image[None, :, None].shape, chunks=(1, 1, 1, 8, 8), dtype=image.dtype)
    array[:] = image[None, :, None]
    names = [{"name": name, "type": kind} for name, kind in zip("tczyx", ("time", "channel", *["space"] * 3))]
    described = [{"version": "0.4" if version == 2 else "0.5", "axes": names, "datasets": [{"path": "0"}]}]
    group.attrs.update({"multiscales": described} if version == 2 else {"ome": {"multiscales": described}})


def fields(folder, kind="tiff", *, shape=(20, 30), n=4, dtype="uint16", seed=1):
    """Write fields of one kind and their LoadData table: images (n, channels, h, w) and the table."""
    import tifffile

    images = np.random.default_rng(seed).integers(1, 4000, (n, len(CHANNELS), *shape)).astype(dtype)
    rows = []
    for number, image in enumerate(images):
        row = {"Metadata_Plate": f"P{number % 3}", "Metadata_Well": f"A0{number % 3}", "Metadata_Site": number}
        for channel, plane in zip(CHANNELS, image):
            if kind == "tiff":
                row[f"FileName_Orig{channel}"] = f"f{number}_{channel}.tif"
                row[f"PathName_Orig{channel}"] = "images"
                (folder / "images").mkdir(exist_ok=True)
                tifffile.imwrite(folder / "images" / f"f{number}_{channel}.tif", plane, compression="zlib")
            else:
                row[f"FileName_Orig{channel}"] = f"f{number}.{'ome.tif' if kind == 'ome-tiff' else 'ome.zarr'}"
        if kind == "ome-tiff":
            tifffile.imwrite(folder / f"f{number}.ome.tif", image, metadata={"axes": "CYX"}, photometric="minisblack")
        if kind.startswith("ome-zarr"):
            write_zarr(folder / f"f{number}.ome.zarr", image, int(kind[-1]))
        rows.append(row)
    table = pd.DataFrame(rows)
    table.to_csv(folder / "load_data.csv", index=False)
    return images, table


def fields_study(folder, **options):
    """Configuration of fields of view and its inputs."""
    values = {
        "reader": "image_fields",
        "title": "made up",
        "inputs": {"load_data": {"path": "load_data.csv"}},
        "channels": CHANNELS,
        "rename": {"Metadata_Plate": "plate", "Metadata_Well": "well", "Metadata_Site": "site"},
        "sample_id": ["plate", "well", "site"],
        "field": ["plate", "well", "site"],
        "cropping": {"by": "tile", "size": 10},
        "batch": "plate",
        **options,
    }
    config = rebuild(Dataset, values)
    return config, {name: folder / item.path for name, item in config.inputs.items()}
