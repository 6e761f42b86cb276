"""Crops of single cells that others cut: an archive of arrays, and a table that says what each is."""

from __future__ import annotations

import hashlib
import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from conceptome.datasets import images, schema
from conceptome.datasets.image_files import read_bytes
from conceptome.datasets.profiles import sample_ids
from conceptome.datasets.tables import need_column, read_table
from conceptome.errors import DataError

if TYPE_CHECKING:
    from conceptome.config.datasets import ImageCrops


def prepare(config: ImageCrops, inputs: dict[str, Path], folder: Path) -> None:
    """Read an archive of crops and its table. See `conceptome.datasets.prepare`."""
    archive, where = inputs["crops"], inputs["table"].name
    table = images.metadata(config, read_table(inputs["table"]), where)
    files = schema.text_column(table[need_column(config.file_column, table.columns, "file", where)])
    if files.isna().any() or files.duplicated().any():
        raise DataError(f"{where}: column '{config.file_column}' must name every crop once")
    table.index = sample_ids(config, table, where)
    schema.check_ids(table.index, where)
    kept = schema.draw_subsample(len(table), config)
    files, table = files.iloc[kept], table.iloc[kept]
    prefix = f"{config.folder.strip('/')}/" if config.folder else ""
    rows = {prefix + name: row for row, name in enumerate(files)}
    digests = None
    if config.sha256_column is not None:
        digests = list(table[need_column(config.sha256_column, table.columns, "sha256", where)].astype(str))
    with images.scratch(folder) as held:
        crops = read_crops(config, archive, rows, digests, held)
        reports = {"files": len(rows), "checked": digests is not None}
        obs, card = images.build(config, table, where=where, shape=crops.shape[1:], reports=reports)
        written = images.blocks(crops, np.arange(len(crops)))
        images.write(folder, obs, card, written, crops.shape[1:], crops.dtype.name)


def read_crops(
    config: ImageCrops, archive: Path, rows: dict[str, int], digests: list[str] | None, held: IO[bytes]
) -> np.ndarray:
    """Read the crops of an archive, each into its row.

    Parameters
    ----------
    rows
        Path inside the archive → row of the result.
    digests
        sha256 of each file, by row; None: they are not checked.
    held
        File that the crops are put into, so that they need not fit into memory.

    Returns
    -------
    numpy.ndarray
        (n, channels, h, w), uint8 or uint16, mapped to `held`.

    Raises
    ------
    DataError
        A file is missing, damaged, not what its sha256 says, or of another shape, channel count or bit depth.
    """
    crops: np.ndarray | None = None
    seen = np.zeros(len(rows), bool)
    for path, content in members(archive):
        if path not in rows:
            continue
        row, name = rows[path], f"{archive.name}, {path}"
        if digests is not None and hashlib.sha256(content).hexdigest() != digests[row]:
            raise DataError(f"{name} is not the file whose sha256 the table gives: supply the archive again")
        image = read_bytes(content, name)
        if image.ndim == 2:
            image = image[None]
        elif config.axes == "yxc":
            image = np.moveaxis(image, -1, 0)
        images.check_image(image, len(config.channels), None if crops is None else crops.dtype, name)
        if crops is None:
            crops = np.memmap(held, image.dtype, "w+", shape=(len(rows), *image.shape))
        if image.shape != crops.shape[1:]:
            raise DataError(
                f"{name} is {image.shape[1]} × {image.shape[2]} pixels where the crops before it are "
                f"{crops.shape[2]} × {crops.shape[3]}: crops of one data set must have one size"
            )
        crops[row], seen[row] = image, True
    if not seen.all():
        missing = [path for path, row in rows.items() if not seen[row]]
        raise DataError(f"{archive.name} lacks {len(missing)} files that the table names, first '{missing[0]}'")
    assert crops is not None
    return crops


def members(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Read an archive from one end to the other: path and content of each file.

    Raises
    ------
    DataError
        It is missing, damaged, cut short, or neither tar nor zip.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                for name in opened.namelist():
                    yield name, opened.read(name)
        else:
            with tarfile.open(archive, "r|*") as opened:
                for member in opened:
                    if member.isfile():
                        handle = opened.extractfile(member)
                        yield member.name, (handle or io.BytesIO()).read()
    except FileNotFoundError:
        raise DataError(f"cannot read {archive}: No such file or directory") from None
    except (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, OSError) as error:
        raise DataError(f"{archive} is a damaged or truncated archive ({error}): supply the file again") from None
