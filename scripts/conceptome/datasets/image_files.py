"""Opening one image file: TIFF, OME-TIFF, OME-Zarr or a NumPy array, with one clear line for whatever is wrong."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from conceptome.errors import DataError


def read_bytes(content: bytes, name: str) -> np.ndarray:
    """Decode the content of a NumPy (.npy) or TIFF file; no pickled objects.

    Raises
    ------
    DataError
        It is neither, or is damaged.
    """
    try:
        if content.startswith(b"\x93NUMPY"):
            return np.load(io.BytesIO(content), allow_pickle=False)
        import tifffile

        return tifffile.imread(io.BytesIO(content))
    except ImportError:
        raise
    except Exception as error:  # tifffile and numpy raise many kinds for a damaged file
        reason = str(error).split("\n")[0] or type(error).__name__
        raise DataError(f"{name} is not a readable image ({reason}): supply the file again") from None


def read_planes(path: Path) -> np.ndarray:
    """Read an image file as planes.

    Returns
    -------
    numpy.ndarray
        (planes, h, w) in the type of the file; a plane is a channel. Other axes (time, z) must have length 1.

    Raises
    ------
    DataError
        The file is missing, unreadable, cut short, or has several times or z planes.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"image {path} does not exist: mend the path in the table, or supply the file")
    try:
        image, axes = _zarr(path) if path.is_dir() else _tiff(path)
    except (ImportError, DataError):
        raise
    except Exception as error:
        reason = str(error).split("\n")[0] or type(error).__name__
        raise DataError(f"image {path} is unreadable or truncated ({reason}): supply the file again") from None
    return _to_planes(image, axes, path)


def _tiff(path: Path) -> tuple[np.ndarray, str]:
    import tifffile

    with tifffile.TiffFile(path) as file:
        series = file.series[0]
        # A file cut short opens well, and its missing strips would be read as zeros.
        end = max(
            (offset + count for page in series.pages for offset, count in zip(page.dataoffsets, page.databytecounts)),
            default=0,
        )
        if end > path.stat().st_size:
            raise DataError(
                f"image {path} is truncated ({path.stat().st_size:,} bytes, {end:,} needed): supply the file again"
            )
        return series.asarray(), series.axes.replace("S", "C").replace("I", "C").replace("Q", "C")


def _zarr(path: Path) -> tuple[np.ndarray, str]:
    """Read the largest resolution of an OME-Zarr image (0.4 or 0.5)."""
    import zarr

    group = zarr.open_group(path, mode="r")
    attributes = dict(group.attrs)
    described = attributes.get("ome", attributes).get("multiscales")
    if not described:
        raise DataError(f"image {path} is no OME-Zarr image (no 'multiscales'): name the folder of one field")
    first = described[0]
    axes = "".join(axis if isinstance(axis, str) else axis["name"] for axis in first.get("axes", "tczyx"))
    array = group[first["datasets"][0]["path"]]
    # A missing chunk of an array reads as its fill value: a copy that was cut short would pass for dark pixels.
    if array.nchunks_initialized < array.nchunks:
        raise DataError(
            f"image {path} lacks {array.nchunks - array.nchunks_initialized} of {array.nchunks} chunks: supply it "
            "again, or, if they are empty and were left out on purpose, write them (write_empty_chunks)"
        )
    return np.asarray(array[:]), axes.upper()


def _to_planes(image: np.ndarray, axes: str, path: Path) -> np.ndarray:
    """Order axes as channel, row, column; every other axis must have length 1."""
    if image.ndim != len(axes) or "Y" not in axes or "X" not in axes:
        raise DataError(f"image {path} has axes {axes} and shape {image.shape}: rows and columns cannot be told")
    for axis in axes:
        if axis not in "CYX" and image.shape[axes.index(axis)] != 1:
            raise DataError(
                f"image {path} has {image.shape[axes.index(axis)]} planes along {axis}: project or select them before"
            )
    for axis in [axis for axis in axes if axis not in "CYX"]:
        image, axes = np.take(image, 0, axes.index(axis)), axes.replace(axis, "", 1)
    if axes.count("C") > 1:
        raise DataError(f"image {path} has two axes of channels ({axes}): split it before")
    if "C" not in axes:
        image, axes = image[None], "C" + axes
    return np.transpose(image, [axes.index(axis) for axis in "CYX"])
