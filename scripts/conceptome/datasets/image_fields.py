"""Fields of view (TIFF, OME-TIFF, OME-Zarr), named by a table in the manner of LoadData and cut into crops."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from conceptome.datasets import images, schema
from conceptome.datasets.image_files import read_planes
from conceptome.datasets.profiles import sample_ids
from conceptome.datasets.tables import need_column, read_table
from conceptome.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

    from conceptome.config.datasets import Cropping, ImageFields


def prepare(config: ImageFields, inputs: dict[str, Path], folder: Path) -> None:
    """Read fields of view and cut them. See `conceptome.datasets.prepare`.

    Samples are crops in the order of the table, then from top left to bottom right (tiles) or in the order of the
    objects' table; `crop` is a crop's number within its field, and its middle is kept as `x` and `y` (pixels, from 0).
    """
    import pandas as pd

    where = inputs["load_data"].name
    table = images.metadata(config, read_table(inputs["load_data"]), where)
    table["field"] = field_names(config, table, where)
    if table["field"].duplicated().any():
        name = table.loc[table["field"].duplicated(), "field"].iloc[0]
        raise DataError(f"{where}: field '{name}' ({', '.join(config.field)}) occurs more than once: one row per field")
    objects = read_objects(config, inputs["objects"], set(table["field"])) if "objects" in inputs else None
    fields = _Fields(config, table, inputs["load_data"].parent, where)
    with images.scratch(folder) as held:
        places = _cut_all(fields, objects, held, where)
        crops = np.memmap(held, fields.dtype, "r", shape=(len(places), *fields.shape))
        frame = table.iloc[places["row"]].reset_index(drop=True)
        frame = pd.concat([frame, places[["x", "y", "crop"]]], axis=1)
        frame.index = sample_ids(config, frame, where) + ":" + frame["crop"].astype(str)
        kept = schema.draw_subsample(len(frame), config)
        frame = frame.iloc[kept]
        obs, card = images.build(config, frame, where=where, shape=fields.shape, reports=fields.reports())
        for name in ("field", "crop", "x", "y"):
            obs[name] = frame[name].to_numpy()
        card["notes"] += fields.notes()
        images.write(folder, obs, card, images.blocks(crops, kept), fields.shape, crops.dtype.name)


def _cut_all(fields: _Fields, objects: dict[str, np.ndarray] | None, held: IO[bytes], where: str) -> pd.DataFrame:
    """Cut every field, one in memory at a time, and put the crops one after the other into a file.

    Returns
    -------
    pandas.DataFrame
        One row per crop: row of the table, x and y of its middle, number within its field.
    """
    import pandas as pd

    cropping = fields.config.cropping
    parts = []
    for row, name in enumerate(fields.table["field"]):
        image = fields.read(row)
        centres = tile_centres(image.shape[1:], cropping) if objects is None else objects.get(name, _NONE)
        inside = within(centres, image.shape[1:], cropping.size)
        fields.left_out += int((~inside).sum())
        centres = centres[inside]
        held.write(cut(image, centres, cropping.size).tobytes())
        own = {"row": np.full(len(centres), row), "x": centres[:, 1], "y": centres[:, 0]}
        parts.append(pd.DataFrame({**own, "crop": np.arange(len(centres))}))
    held.flush()
    places = pd.concat(parts, ignore_index=True)
    if places.empty:
        raise DataError(f"{where}: no crop of {cropping.size} pixels fits into any field: choose a smaller size")
    return places


_NONE = np.empty((0, 2))


class _Fields:
    """Reads one field after the other, and counts what was met on the way."""

    def __init__(self, config: ImageFields, table: pd.DataFrame, folder: Path, where: str):
        self.config, self.folder, self.where = config, folder, where
        self.left_out = self.saturated = 0
        self.digest = hashlib.sha256()
        self.dtype: np.dtype | None = None
        self.columns = [_Columns.of(config, channel, table, where) for channel in config.channels]
        self.table = table
        self.illuminated = [c.channel for c in self.columns if c.illumination is not None]
        self._functions: dict[Path, np.ndarray] = {}

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every crop."""
        return len(self.config.channels), self.config.cropping.size, self.config.cropping.size

    def reports(self) -> dict[str, Any]:
        """What was counted on the way."""
        return {
            "fields": len(self.table),
            "images_sha256": self.digest.hexdigest(),
            "left_out_at_edge": self.left_out,
            "illumination": self.illuminated,
            "saturated_by_illumination": self.saturated,
        }

    def notes(self) -> list[str]:
        """What a reader of the card must know."""
        told = []
        if self.left_out:
            told.append(f"{self.left_out} objects lie too near to an edge for a crop, and were left out.")
        if self.illuminated:
            told.append(
                f"Illumination functions of {', '.join(self.illuminated)} were applied ({self.config.illumination}); "
                f"values are rounded to the images' bits, {self.saturated} pixels beyond them."
            )
        return told

    def read(self, row: int) -> np.ndarray:
        """Read all channels of one field, corrected: (channels, h, w) in the images' type.

        Raises
        ------
        DataError
            A channel's file is missing or unreadable, or channels differ in size or bit depth.
        """
        record = self.table.iloc[row]
        held: dict[Path, np.ndarray] = {}
        planes = []
        for position, columns in enumerate(self.columns):
            path = columns.path(record, self.folder, self.where)
            if path not in held:
                held[path] = read_planes(path)
                self.digest.update(path.name.encode() + held[path].tobytes())
            plane = self._plane(record, columns, held[path], position, path)
            images.check_image(plane[None], 1, self.dtype, f"image {path}")
            self.dtype = plane.dtype
            if planes and plane.shape != planes[0].shape:
                raise DataError(
                    f"image {path} is {plane.shape[0]} × {plane.shape[1]} pixels, the field's first channel "
                    f"{planes[0].shape[0]} × {planes[0].shape[1]}: channels of one field must have one size"
                )
            planes.append(self._correct(record, columns, plane))
        return np.stack(planes)

    def _plane(self, record: pd.Series, columns: _Columns, held: np.ndarray, position: int, path: Path) -> np.ndarray:
        """Choose a channel's plane of its file: the declared one, the only one, or that of the channel's position."""
        if columns.plane is not None:
            number = int(record[columns.plane])
            if not 0 <= number < len(held):
                raise DataError(f"image {path} has {len(held)} planes, but {columns.plane} asks for {number} (from 0)")
            return held[number]
        if len(held) == 1:
            return held[0]
        if len(held) != len(self.config.channels):
            raise DataError(
                f"image {path} holds {len(held)} channels, but dataset.channels names {len(self.config.channels)}: "
                f"mend one of them, or give a column {self.config.plane_column.format(channel=columns.channel)}"
            )
        return held[position]

    def _correct(self, record: pd.Series, columns: _Columns, plane: np.ndarray) -> np.ndarray:
        """Apply the illumination function, if there is one, and round to the image's bits."""
        if columns.illumination is None:
            return plane
        path = columns.below(str(record[columns.illumination]), record, self.folder)
        if path not in self._functions:
            self._functions[path] = read_illumination(path)
            self.digest.update(path.name.encode() + self._functions[path].tobytes())
        function = self._functions[path]
        if function.shape != plane.shape:
            raise DataError(
                f"illumination function {path} is {function.shape[0]} × {function.shape[1]}, the image "
                f"{plane.shape[0]} × {plane.shape[1]}"
            )
        if self.config.illumination == "divide":
            if not (function > 0).all():
                raise DataError(f"illumination function {path} is not positive everywhere: it cannot be divided by")
            corrected = plane / function
        else:
            corrected = plane - function
        corrected = np.rint(corrected)
        largest = np.iinfo(plane.dtype).max
        self.saturated += int(((corrected < 0) | (corrected > largest)).sum())
        return np.clip(corrected, 0, largest).astype(plane.dtype)


@dataclass(frozen=True)
class _Columns:
    """The columns of a table that lead to one channel's pixels."""

    channel: str
    file: str
    folder: str | None
    plane: str | None
    illumination: str | None

    @staticmethod
    def of(config: ImageFields, channel: str, table: pd.DataFrame, where: str) -> _Columns:
        """Find a channel's columns; only that of the file must be there."""

        def held(pattern: str) -> str | None:
            name = pattern.format(channel=channel)
            return name if name in table.columns else None

        file = need_column(config.file_column.format(channel=channel), table.columns, f"channel '{channel}'", where)
        return _Columns(
            channel,
            file,
            held(config.folder_column),
            held(config.plane_column),
            held(config.illumination_column),
        )

    def path(self, record: pd.Series, folder: Path, where: str) -> Path:
        """The channel's file in one row of the table.

        Raises
        ------
        DataError
            The row names none.
        """
        value = schema.as_text(record[self.file])
        if not value:
            raise DataError(
                f"{where}: field '{record['field']}' names no file for channel '{self.channel}' ({self.file})"
            )
        return self.below(value, record, folder)

    def below(self, file: str, record: pd.Series, folder: Path) -> Path:
        """A file's path: below its folder column where there is one, and below the table's folder."""
        own = schema.as_text(record[self.folder]) if self.folder else None
        return folder / (own or "") / file


def files(config: ImageFields, load_data: Path) -> list[Path]:
    """Every image and illumination function that a table names, once each, in order.

    Raises
    ------
    DataError
        A channel has no column.
    """
    table = images.metadata(config, read_table(load_data), load_data.name)
    table["field"] = field_names(config, table, load_data.name)
    found: dict[Path, None] = {}
    for channel in config.channels:
        columns = _Columns.of(config, channel, table, load_data.name)
        for _, record in table.iterrows():
            found[columns.path(record, load_data.parent, load_data.name)] = None
            if columns.illumination is not None:
                found[columns.below(str(record[columns.illumination]), record, load_data.parent)] = None
    return list(found)


def field_names(config: ImageFields, table: pd.DataFrame, where: str) -> list[str]:
    """Join the columns that name a field by ':'."""
    parts = [schema.text_column(table[need_column(name, table.columns, "field", where)]) for name in config.field]
    return [":".join(str(value) for value in values) for values in zip(*parts)]


def read_objects(config: ImageFields, path: Path, fields: set[str]) -> dict[str, np.ndarray]:
    """Read centroids: field → (objects, 2) float64 of row and column, in the table's order.

    Raises
    ------
    DataError
        A column is missing, a centroid is no number, or a field is not among those of the images.
    """
    table = images.metadata(config, read_table(path), path.name) if not config.rename else _renamed(config, path)
    names = np.array(field_names(config, table, path.name), dtype=object)
    unknown = sorted(set(names) - fields)
    if unknown:
        raise DataError(f"{path.name}: {len(unknown)} fields are not in the table of images, first '{unknown[0]}'")
    axes = []
    for column in (config.cropping.y, config.cropping.x):
        values = schema.numeric_column(table[need_column(column, table.columns, "centroid", path.name)], path.name)
        if values.isna().any():
            raise DataError(f"{path.name}: centroid column '{column}' is empty in {int(values.isna().sum())} rows")
        axes.append(values.to_numpy())
    centres = np.column_stack(axes)
    return {name: centres[names == name] for name in dict.fromkeys(names)}


def _renamed(config: ImageFields, path: Path) -> pd.DataFrame:
    """Read the objects' table with those renamed columns that it has: it need not have the images' other columns."""
    return read_table(path).rename(columns=config.rename)


def read_illumination(path: Path) -> np.ndarray:
    """Read an illumination function, .npy or TIFF: (h, w) float64.

    Raises
    ------
    DataError
        It is missing, unreadable, has several planes, or holds values that are not finite.
    """
    from conceptome.datasets.image_files import read_bytes

    if not path.exists():
        raise DataError(f"illumination function {path} does not exist: mend the path in the table, or supply the file")
    function = np.squeeze(np.asarray(read_bytes(path.read_bytes(), f"illumination function {path}"), np.float64))
    if function.ndim != 2 or not np.isfinite(function).all():
        raise DataError(f"illumination function {path} must be one plane of finite numbers (shape {function.shape})")
    return function


def tile_centres(shape: tuple[int, int], cropping: Cropping) -> np.ndarray:
    """Middles of the tiles that lie wholly in an image: (tiles, 2) float64 of row and column, row after row."""
    stride, size = cropping.stride or cropping.size, cropping.size
    rows, columns = (np.arange(0, length - size + 1, stride) + size // 2 for length in shape)
    return np.stack(np.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2).astype(np.float64)


def within(centres: np.ndarray, shape: tuple[int, int], size: int) -> np.ndarray:
    """Which crops lie wholly in the image, (n,) bool."""
    corners = np.rint(centres).astype(int) - size // 2
    return ((corners >= 0) & (corners + size <= np.array(shape))).all(1)


def cut(image: np.ndarray, centres: np.ndarray, size: int) -> np.ndarray:
    """Cut crops around centres (row, column): (n, channels, size, size) in the image's type."""
    corners = np.rint(centres).astype(int) - size // 2
    crops = [image[:, y : y + size, x : x + size] for y, x in corners]
    return np.stack(crops) if crops else np.empty((0, len(image), size, size), image.dtype)
