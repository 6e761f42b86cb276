"""What readers of images share: the store of crops, its iterator, and what treatment is confounded with."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from conceptome.datasets import schema
from conceptome.datasets.profiles import replace_values
from conceptome.datasets.tables import need_column
from conceptome.errors import DataError
from conceptome.files import atomic_path

if TYPE_CHECKING:
    import pandas as pd

    from conceptome.config.datasets import ImagesBase

# Sixteen bits, or eight, as the camera gave them: nothing is rescaled before a model asks for it.
DTYPES = ("uint8", "uint16")


def batches(dataset: schema.Dataset, rows: int = 64) -> Iterator[np.ndarray]:
    """Iterate over the crops of a data set in the order of its obs.

    Parameters
    ----------
    rows
        Crops per batch; the last may hold fewer.

    Yields
    ------
    numpy.ndarray
        (rows, channels, h, w), uint8 or uint16 as in the images. Only one batch is in memory.

    Raises
    ------
    DataError
        The data set is not of images, or its crops are not those of its obs.
    """
    crops = dataset.crops()
    if len(crops) != len(dataset.obs):
        raise DataError(
            f"{dataset.folder} holds {len(crops)} crops for {len(dataset.obs)} samples: prepare the data set again"
        )
    for start in range(0, len(crops), rows):
        yield np.array(crops[start : start + rows])


@contextmanager
def scratch(folder: Path) -> Iterator[IO[bytes]]:
    """Give a nameless file beside the data set, for crops whose number or order is not known yet."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as held:
        yield held


def blocks(crops: np.ndarray, rows: np.ndarray, size: int = 256) -> Iterator[np.ndarray]:
    """Give chosen rows of mapped crops in order, `size` of them in memory at a time."""
    for start in range(0, len(rows), size):
        yield np.array(crops[rows[start : start + size]])


def metadata(config: ImagesBase, table: pd.DataFrame, where: str) -> pd.DataFrame:
    """Rename the columns of a table and replace recorded values, as the study declares.

    Raises
    ------
    DataError
        A declared column or value does not exist.
    """
    for name in config.rename:
        need_column(name, table.columns, "renamed", where)
    table = table.rename(columns=config.rename)
    for name, rules in config.replace.items():
        need_column(name, table.columns, "replace", where)
        for rule in rules:
            table[name] = replace_values(table[name], rule.values, rule.by, where)
    return table


def check_image(image: np.ndarray, channels: int, dtype: np.dtype | None, name: str) -> None:
    """Refuse an image (channels, h, w) with the wrong channels or bits.

    Parameters
    ----------
    dtype
        Type of the images before it; None for the first.
    name
        Of its file, for the error line.

    Raises
    ------
    DataError
        Which file, what it holds, what was expected.
    """
    if image.ndim != 3:
        raise DataError(f"{name} has {image.ndim} axes of shape {image.shape}, not channel, row and column")
    if len(image) != channels:
        raise DataError(f"{name} holds {len(image)} channels, but dataset.channels names {channels}: mend one of them")
    if image.dtype.name not in DTYPES:
        raise DataError(f"{name} holds {image.dtype.name} pixels; uint8 or uint16 are read: convert the images")
    if dtype is not None and image.dtype != dtype:
        raise DataError(
            f"{name} holds {image.dtype.name} pixels where the images before it hold {dtype.name}: images of one data "
            "set must have one bit depth"
        )


def build(
    config: ImagesBase, frame: pd.DataFrame, *, where: str, shape: tuple[int, int, int], reports: dict[str, Any]
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Build obs and card of a data set of crops, and say what its treatments are confounded with.

    Parameters
    ----------
    frame
        One row per crop, index = sample ids.
    shape
        channels, height and width of every crop.
    """
    control = schema.control_mask(frame, config.control, where)
    notes = []
    if config.split_by is not None:
        notes.append(
            f"Whole values of {config.split_by} are held out; intervals resample "
            f"{config.group or 'crop'}s within them, and so say nothing about another {config.split_by}."
        )
    confounded = confounding(config, frame, control, where)
    notes += [item["note"] for item in confounded]
    obs, card = schema.build(
        config,
        frame,
        where=where,
        modality="images",
        unit="crop",
        n_features=int(np.prod(shape)),
        control=control,
        control_is=None if config.control is None else schema.control_text(config.control),
        group=config.group,
        split_by=config.split_by,
        plan=None if config.split_plan is None else config.split_plan.model_dump(),
        batch=config.batch,
        notes=notes,
        reports=reports,
    )
    card["channels"] = list(config.channels)
    card["crop_shape"] = list(shape)
    card["confounded"] = [{key: item[key] for key in ("label", "with")} for item in confounded if "label" in item]
    return obs, card


def confounding(
    config: ImagesBase, frame: pd.DataFrame, control: np.ndarray | None, where: str
) -> list[dict[str, str]]:
    """Say which biological labels cannot be told from the position on the plate, and which batches hold controls only.

    A label is confounded with the position if no position holds two of its classes: the position then says the class.

    Returns
    -------
    list of dict
        `note` (a sentence); for a confounded label also `label` and `with` (the column of positions).
    """
    found: list[dict[str, str]] = []
    if config.position is not None:
        position = schema.text_column(frame[need_column(config.position, frame.columns, "position", where)])
        for name, label in config.labels.items():
            if label.role != "biological" or name == config.position:
                continue
            values = schema.text_column(frame[need_column(name, frame.columns, "label", where)])
            classes = values.groupby(position).nunique()
            if values.nunique() > 1 and (classes <= 1).all():
                places = position.groupby(values).unique()
                listed = "; ".join(
                    f"{value}: {', '.join(sorted(held)[:4])}" for value, held in list(places.items())[:6]
                )
                note = (
                    f"CONFOUNDED: no {config.position} holds two classes of '{name}', on any "
                    f"{config.batch or 'plate'} ({listed}). What is said of '{name}' cannot be told from an effect of "
                    f"the position of the {config.position}."
                )
                found.append({"note": note, "label": name, "with": config.position})
    if config.batch is not None and control is not None:
        batch = schema.text_column(frame[need_column(config.batch, frame.columns, "batch", where)])
        only = [
            str(value) for value, rows in batch.groupby(batch) if control[frame.index.get_indexer(rows.index)].all()
        ]
        if only:
            found.append(
                {
                    "note": f"Controls only: {', '.join(only)} ({config.batch}). Differences between the controls of "
                    f"two {config.batch}s are the null of control against control: they are technical."
                }
            )
    return found


def write(
    folder: Path,
    obs: pd.DataFrame,
    card: dict[str, Any],
    crops: Iterable[np.ndarray],
    shape: tuple[int, ...],
    dtype: str,
) -> None:
    """Write obs, card and the crops as they arrive; equal values give equal bytes.

    Parameters
    ----------
    crops
        Blocks (rows, channels, h, w), together n rows in the order of obs.
    shape
        channels, height and width.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    card["pixel_dtype"] = dtype
    stored = np.dtype(dtype).newbyteorder("<")
    with atomic_path(folder / "crops.npy") as temporary, open(temporary, "wb") as handle:
        header = {"descr": stored.str, "fortran_order": False, "shape": (len(obs), *shape)}
        np.lib.format.write_array_header_1_0(handle, header)
        for block in crops:
            handle.write(np.ascontiguousarray(block, dtype=stored).data)
    schema.write(folder, obs, card)
