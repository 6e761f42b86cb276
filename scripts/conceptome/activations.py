"""The activation store: a folder of row shards that is written as a stream and read memory-mapped.

A store holds `shard-00000.npy` … (rows × d, float32, or bfloat16 as its raw 16 bits), `obs.parquet` (one row per
sample, in the same order) and `card.json`. Where the model goes on from these activations by weights that were trained
here, these are in `decoder.safetensors`. The card is written last: a folder without it is an unfinished store.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from conceptome.errors import DataError
from conceptome.files import atomic_path, read_json, read_parquet, sha256_file, write_json, write_parquet

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 1
DECODER = "decoder.safetensors"
# Finished shards of a store that is not: what an interrupted job goes on from.
UNFINISHED = "unfinished.json"
# Folder in a store's folder: stores of further layers of the same forward pass, named by their number.
LAYERS = "layers"
# numpy has no bfloat16: its 16 bits are kept as unsigned integers.
STORED = {"float32": np.dtype("<f4"), "bfloat16": np.dtype("<u2")}

log = logging.getLogger(__name__)


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Round float32 to bfloat16 (nearest, ties to even) and return its bits as uint16, same shape."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """Widen bfloat16 bits (uint16) to float32 without rounding, same shape."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


class _Finite:
    """Hand batches on as float32 while every value is finite; after the first bad batch only count."""

    def __init__(self, names: list[str] | None):
        self._names = names
        self._bad: np.ndarray | None = None
        self.width: int | None = None

    def pass_on(self, batch: np.ndarray) -> np.ndarray | None:
        """Give the batch as float32, or None once a value was not finite."""
        array = np.asarray(batch)
        if array.ndim != 2:
            raise DataError(f"activations must be rows × dimensions, but a batch has shape {array.shape}")
        if self.width is None:
            self.width = array.shape[1]
            if self.width == 0:
                raise DataError("activations have no dimensions: the model returned arrays of width 0")
        if array.shape[1] != self.width:
            raise DataError(f"a batch has {array.shape[1]} dimensions where the first had {self.width}")
        with np.errstate(over="ignore"):  # a float64 beyond float32's range becomes infinite and is counted below
            array = array.astype(np.float32, copy=False)
        finite = np.isfinite(array)
        if not finite.all():
            seen = np.zeros(self.width, dtype=np.int64) if self._bad is None else self._bad
            self._bad = seen + (~finite).sum(axis=0)
        return array if self._bad is None else None

    def refuse(self) -> None:
        """Raise where anything was counted."""
        if self._bad is not None:
            raise DataError(describe_not_finite(self._bad, self._names))


def describe_not_finite(counts: np.ndarray, names: list[str] | None = None) -> str:
    """One line that names the worst dimension and says how many values are NaN or infinite.

    Parameters
    ----------
    counts
        (d,) number of bad values per dimension, at least one of them positive.
    names
        Names of the dimensions, where they have any.
    """
    worst = int(np.argmax(counts))
    name = f" ('{names[worst]}')" if names else ""
    others = int((counts > 0).sum()) - 1
    more = f"; {others} other dimension(s) hold {int(counts.sum() - counts[worst])}" if others else ""
    return (
        f"activations: dimension {worst}{name} holds {int(counts[worst])} NaN or infinite values{more}; "
        "drop or impute those features or samples"
    )


class _HashingWriter:
    """Write bytes to a file and hash them on the way, so that a shard need not be read again."""

    def __init__(self, handle: BinaryIO):
        self._handle = handle
        self.digest = hashlib.sha256()

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return self._handle.write(data)


class StoreWriter:
    """Write activations as they arrive; never more than one batch in memory.

    Parameters
    ----------
    folder
        Where the store goes; an older store there is replaced.
    obs
        (n rows) one per sample, index `sample_id`.
    card
        What the model says of itself; `dimension_names`, if there, names the d dimensions in complaints.
        Shape, dtype and the sha256 of every shard are added.
    dtype
        "float32" or "bfloat16".
    rows_per_shard
        Rows in each shard but the last.
    digest
        Of all that the activations depend on. An unfinished store of the same digest in the folder is gone on with: its
        finished shards stay where they are what was written, and `missing` names the others. None: begin anew.

    Attributes
    ----------
    total
        Number of rows that the store is to hold.

    Raises
    ------
    DataError
        An unknown dtype, or no samples.
    """

    def __init__(
        self,
        folder: str | Path,
        obs: pd.DataFrame,
        card: Mapping[str, Any],
        *,
        dtype: str = "float32",
        rows_per_shard: int,
        digest: str | None = None,
    ):
        self.folder, self._obs, self._card = Path(folder), obs, dict(card)
        if dtype not in STORED:
            raise DataError(f"activations cannot be stored as '{dtype}'; choose one of {', '.join(STORED)}")
        self.dtype, self._rows_per_shard, self._digest = dtype, rows_per_shard, digest
        self.total = len(obs)
        if self.total == 0:
            raise DataError(f"activations for {self.folder.name}: there are no samples to store")
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob(".*.partial.*"):  # of a killed writer
            leftover.unlink(missing_ok=True)
        self._finite = _Finite(self._card.get("dimension_names"))
        self._shards: dict[int, dict[str, Any]] = self._intact_shards()
        # The card goes first, so that at no moment a card vouches for shards that are being replaced.
        _clear(self.folder, keep={shard["file"] for shard in self._shards.values()})
        self._seen = self.done
        self._row = 0
        self._open: ExitStack | None = None
        self._left = 0
        self._writer: _HashingWriter | None = None

    def _intact_shards(self) -> dict[int, dict[str, Any]]:
        """Shards of an unfinished store of the same digest that are what was written, by number."""
        try:
            state = read_json(self.folder / UNFINISHED) if self._digest is not None else {}
        except (OSError, ValueError):
            return {}
        if not state or state.get("digest") != self._digest:
            return {}
        numbers = {_shard_name(number): number for number in range(-(-self.total // self._rows_per_shard))}
        kept: dict[int, dict[str, Any]] = {}
        for shard in state["shards"]:
            path = self.folder / shard["file"]
            if shard["file"] not in numbers:
                continue
            if not path.exists() or sha256_file(path) != shard["sha256"]:
                log.warning("%s is not the file that was written: its rows are computed again", path)
                continue
            kept[numbers[shard["file"]]] = shard
            self._finite.width = state["width"]
        return kept

    @property
    def done(self) -> int:
        """Rows in finished shards."""
        return sum(shard["rows"] for shard in self._shards.values())

    def missing(self) -> list[int]:
        """Numbers of the shards that are still to be written."""
        return [number for number in range(-(-self.total // self._rows_per_shard)) if number not in self._shards]

    def discard(self, numbers: Iterable[int]) -> None:
        """Give up these shards, where they are there."""
        for number in numbers:
            shard = self._shards.pop(number, None)
            if shard is not None:
                (self.folder / shard["file"]).unlink()
                self._seen -= shard["rows"]

    def go_to(self, row: int) -> None:
        """Write from this row on, the first of a shard that is missing."""
        self._row = row

    def write(self, batch: np.ndarray) -> None:
        """Take the next (rows, d) array, of any float type, in the order of obs.

        Raises
        ------
        DataError
            Another number of dimensions than before, or more rows than samples.
        """
        held = self._finite.pass_on(batch)
        self._seen += len(batch)
        while held is not None and len(held):
            if self._open is None:
                if self._row >= self.total:
                    break  # counted above, and refused at the end with the full number
                self._begin_shard()
            piece, held = held[: self._left], held[self._left :]
            values = to_bfloat16(piece) if self.dtype == "bfloat16" else piece
            self._writer.write(np.ascontiguousarray(values, dtype=STORED[self.dtype]).data)
            self._left -= len(piece)
            if self._left == 0:
                self._end_shard()

    def _begin_shard(self) -> None:
        self._left = min(self._rows_per_shard, self.total - self._row)
        self._open = ExitStack()
        name = _shard_name(self._row // self._rows_per_shard)
        temporary = self._open.enter_context(atomic_path(self.folder / name))
        self._writer = _HashingWriter(self._open.enter_context(open(temporary, "wb")))  # noqa: SIM115 the stack closes it
        header = {
            "descr": STORED[self.dtype].str,
            "fortran_order": False,
            "shape": (self._left, self._finite.width),
        }
        np.lib.format.write_array_header_1_0(self._writer, header)

    def _end_shard(self) -> None:
        self._open.close()
        self._open = None
        rows, number = min(self._rows_per_shard, self.total - self._row), self._row // self._rows_per_shard
        self._shards[number] = {"file": _shard_name(number), "rows": rows, "sha256": self._writer.digest.hexdigest()}
        self._row += rows
        if self._digest is not None:
            state = {"digest": self._digest, "shards": self._in_order(), "width": self._finite.width}
            write_json(self.folder / UNFINISHED, state)

    def _in_order(self) -> list[dict[str, Any]]:
        return [self._shards[number] for number in sorted(self._shards)]

    def finish(self, decoder: Mapping[str, np.ndarray] | None = None) -> Store:
        """Write what remains, the card last.

        Parameters
        ----------
        decoder
            Named arrays of what the model makes of these activations; the card gets their file's sha256.

        Raises
        ------
        DataError
            NaN or infinite values (the dimension and the count are named), or a number of rows that differs from
            `obs`.
        """
        self._finite.refuse()
        if self._seen == 0:
            raise DataError(f"activations for {self.folder.name}: there are no samples to store")
        if self._seen != self.total:
            raise DataError(f"the model returned {self._seen} rows of activations for {self.total} samples")
        write_parquet(self.folder / "obs.parquet", self._obs)
        kept = {}
        if decoder is not None:
            from safetensors.numpy import save_file

            with atomic_path(self.folder / DECODER) as temporary:
                save_file({name: np.ascontiguousarray(value) for name, value in decoder.items()}, temporary)
            kept["decoder_sha256"] = sha256_file(self.folder / DECODER)
        full = (
            self._card
            | kept
            | {
                "schema_version": SCHEMA_VERSION,
                "shape": [self.total, self._finite.width],
                "dtype": self.dtype,
                "shards": self._in_order(),
                "obs_sha256": sha256_file(self.folder / "obs.parquet"),
            }
        )
        (self.folder / UNFINISHED).unlink(missing_ok=True)
        write_json(self.folder / "card.json", full)
        return Store(self.folder)

    def abandon(self, *, keep: bool = False) -> None:
        """Leave nothing half-written; `keep`: the finished shards stay for the next attempt with the same digest."""
        if self._open is not None:
            stack, self._open = self._open, None
            # What atomic_path sees is an error, so that it removes its file and renames nothing.
            with suppress(InterruptedError), stack:
                raise InterruptedError
        if not keep or self._digest is None:
            _clear(self.folder)


def _shard_name(number: int) -> str:
    return f"shard-{number:05d}.npy"


def write_store(
    folder: str | Path,
    batches: Iterable[np.ndarray],
    obs: pd.DataFrame,
    card: Mapping[str, Any],
    *,
    dtype: str = "float32",
    rows_per_shard: int,
    decoder: Mapping[str, np.ndarray] | None = None,
) -> Store:
    """Write activations as they arrive; never more than one batch in memory.

    Parameters
    ----------
    batches
        Arrays (rows, d) of any float type, in the order of `obs`.
    folder, obs, card, dtype, rows_per_shard
        As for `StoreWriter`.
    decoder
        As for `StoreWriter.finish`.

    Raises
    ------
    DataError
        NaN or infinite values (the dimension and the count are named), no samples, or a number of rows that differs
        from `obs`. Nothing half-written is left in the folder.
    """
    writer = StoreWriter(folder, obs, card, dtype=dtype, rows_per_shard=rows_per_shard)
    try:
        for batch in batches:
            writer.write(batch)
        return writer.finish(decoder)
    except BaseException:
        writer.abandon()
        raise


def _clear(folder: Path, keep: Container[str] = ()) -> None:
    shards = [path for path in sorted(folder.glob("shard-*.npy")) if path.name not in keep]
    named = [folder / name for name in ("card.json", "obs.parquet", DECODER)]
    for path in [*named, *([] if keep else [folder / UNFINISHED]), *shards]:
        path.unlink(missing_ok=True)


class Store:
    """Read an activation store.

    Attributes
    ----------
    shape
        (n, d): samples, dimensions.
    dtype
        How values are stored: "float32" or "bfloat16". They are always handed out as float32.
    card
        The content of card.json.
    obs
        One row per sample, in the order of the activations.

    Raises
    ------
    DataError
        There is no finished store in the folder.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not (self.folder / "card.json").exists():
            raise DataError(f"{self.folder} holds no finished activation store (card.json is missing): embed again")
        self.card: dict[str, Any] = read_json(self.folder / "card.json")
        self.shape: tuple[int, int] = tuple(self.card["shape"])
        self.dtype: str = self.card["dtype"]
        for shard in self.card["shards"]:
            # A card is data from anywhere: it must not lead to files outside of its folder.
            if Path(shard["file"]).name != shard["file"]:
                raise DataError(
                    f"{self.folder / 'card.json'} names the shard {shard['file']!r}, which is no name of a file in its "
                    "folder: refused; embed again"
                )
        self._starts = np.concatenate([[0], np.cumsum([shard["rows"] for shard in self.card["shards"]])])

    def __len__(self) -> int:
        return self.shape[0]

    @cached_property
    def obs(self) -> pd.DataFrame:
        """One row per sample, index `sample_id`."""
        return read_parquet(self.folder / "obs.parquet")

    def columns(self, names: Sequence[str]) -> pd.DataFrame:
        """Some columns of `obs` under a plain number, text as categories: little memory for very many samples.

        Raises
        ------
        DataError
            obs has no such column.
        """
        import pyarrow.parquet as pq

        path = self.folder / "obs.parquet"
        with pq.ParquetFile(path) as file:
            table = file.read(list(names), use_threads=False, use_pandas_metadata=False).replace_schema_metadata(None)
        for name in names:
            if name not in table.column_names:
                raise DataError(f"{path} has no column '{name}': prepare the data set and embed again")
        return table.to_pandas(strings_to_categorical=True, self_destruct=True)

    def layers(self) -> dict[int, Store]:
        """Stores of further layers of the same forward pass, by number, in order; none where none were asked for."""
        found = [path for path in (self.folder / LAYERS).glob("*") if path.name.isdigit()]
        return {int(path.name): Store(path) for path in sorted(found, key=lambda path: int(path.name))}

    def decoder(self) -> dict[str, np.ndarray]:
        """Named arrays of what the model makes of these activations further on.

        Raises
        ------
        DataError
            The store holds none, or its file cannot be read.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        if "decoder_sha256" not in self.card:
            raise DataError(f"{self.folder} holds no decoder: embed again, or read the activations themselves")
        try:
            return load_file(self.folder / DECODER)
        except (OSError, SafetensorError) as error:
            raise DataError(f"{self.folder / DECODER} cannot be read ({error}): embed again") from None

    def _shard(self, number: int) -> np.ndarray:
        path = self.folder / self.card["shards"][number]["file"]
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(f"activation shard {path} cannot be read ({error}): embed again") from None

    def _decode(self, stored: np.ndarray) -> np.ndarray:
        # np.array copies: callers may write into what they get, the map stays untouched.
        return from_bfloat16(np.asarray(stored)) if self.dtype == "bfloat16" else np.array(stored, dtype=np.float32)

    def batches(self, rows: int = 8192) -> Iterator[np.ndarray]:
        """Iterate over all activations in order: float32 (rows, d), fewer rows in the last batch."""
        for start in range(0, len(self), rows):
            yield self.read(slice(start, start + rows))

    def read(self, index: slice | np.ndarray | list[int] | None = None) -> np.ndarray:
        """Read some rows.

        Parameters
        ----------
        index
            A slice, integer positions in any order, a boolean mask of n entries, or None for all rows.

        Returns
        -------
        numpy.ndarray
            float32 (n', d), in the order of `index`.
        """
        n, width = self.shape
        if index is None:
            index = slice(None)
        if isinstance(index, slice):
            start, stop, step = index.indices(n)
            if step == 1:
                return self._read_range(start, max(start, stop))
            index = np.arange(start, stop, step)
        index = np.asarray(index)
        if index.dtype == bool:
            if index.shape != (n,):
                raise IndexError(f"a mask over {n} rows is needed, not one of shape {index.shape}")
            index = np.flatnonzero(index)
        index = index.astype(np.int64, copy=False)
        if len(index) and (index.min() < -n or index.max() >= n):
            raise IndexError(f"row {int(index.min() if index.min() < -n else index.max())} is not among {n} rows")
        index = np.where(index < 0, index + n, index)
        out = np.empty((len(index), width), dtype=np.float32)
        which = np.searchsorted(self._starts, index, side="right") - 1
        for number in np.unique(which):
            at = np.flatnonzero(which == number)
            out[at] = self._decode(self._shard(number)[index[at] - self._starts[number]])
        return out

    def _read_range(self, start: int, stop: int) -> np.ndarray:
        out = np.empty((stop - start, self.shape[1]), dtype=np.float32)
        for number in range(len(self._starts) - 1):
            low, high = max(start, self._starts[number]), min(stop, self._starts[number + 1])
            if low < high:
                local = slice(low - self._starts[number], high - self._starts[number])
                out[low - start : high - start] = self._decode(self._shard(number)[local])
        return out

    def verify(self) -> None:
        """Compare every file with the sha256 in the card.

        Raises
        ------
        DataError
            A shard, obs.parquet or the decoder is missing or is not what was written.
        """
        expected = {shard["file"]: shard["sha256"] for shard in self.card["shards"]}
        expected["obs.parquet"] = self.card["obs_sha256"]
        if "decoder_sha256" in self.card:
            expected[DECODER] = self.card["decoder_sha256"]
        for name, digest in expected.items():
            path = self.folder / name
            if not path.exists():
                raise DataError(f"{path} is missing: embed again")
            if sha256_file(path) != digest:
                raise DataError(f"{path} is not the file that was written (its sha256 differs): embed again")
