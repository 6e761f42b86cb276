"""Sparse codes: which atoms each sample uses and how strongly, as a CSR matrix with its obs table.

On disk a code is one Parquet row per sample: its obs columns, and beside them the list columns `indices` (int32, the
active atoms in ascending order) and `values` (float32). The number of atoms m is in the file's metadata.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from conceptome.errors import ConfigError, DataError
from conceptome.files import atomic_path

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

METADATA_KEY = b"conceptome.codes"
SCHEMA_VERSION = 1
# List offsets are 32 bits wide: a row group of this many rows stays far below them at any realistic number of atoms.
ROWS_PER_GROUP = 65_536
ROWS_READ = 8192


class Codes:
    """Codes of n samples over m atoms.

    An atom is active in a sample when its value is not zero; explicit zeros are removed on construction.

    Parameters
    ----------
    matrix
        Anything that scipy.sparse.csr_matrix accepts, shape (n, m).

    Raises
    ------
    DataError
        NaN or infinite values.
    """

    def __init__(self, matrix: sp.spmatrix | np.ndarray):
        csr = sp.csr_matrix(matrix, dtype=np.float32, copy=False)
        if csr.nnz and not np.isfinite(csr.data).all():
            bad = ~np.isfinite(csr.data)
            first = int(csr.indices[bad.argmax()])
            raise DataError(
                f"codes: {int(bad.sum())} values are NaN or infinite, the first at atom {first}; "
                "look for NaN in the activations or a diverged training (lower learning_rate)"
            )
        if not csr.has_canonical_format or (csr.nnz and not csr.data.all()):
            csr = csr.copy()
            csr.sum_duplicates()
            csr.eliminate_zeros()
        self._csr = csr

    @classmethod
    def concatenate(cls, parts: Sequence[Codes]) -> Codes:
        """Stack codes of consecutive samples over the same atoms."""
        if len(parts) == 1:
            return parts[0]
        return cls(sp.vstack([part._csr for part in parts], format="csr"))

    @property
    def shape(self) -> tuple[int, int]:
        """(n samples, m atoms)."""
        return self._csr.shape

    def __len__(self) -> int:
        return self._csr.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> Codes:
        """Codes of some samples: a slice, integer positions or a boolean mask over rows."""
        return Codes(self._csr[rows])

    def to_scipy(self) -> sp.csr_matrix:
        """Return the float32 CSR matrix itself (not a copy), indices sorted, no explicit zeros."""
        return self._csr

    def l0(self) -> np.ndarray:
        """Count the active atoms of each sample, int64 (n,)."""
        return np.diff(self._csr.indptr).astype(np.int64)

    def counts(self) -> np.ndarray:
        """Count the samples in which each atom is active, int64 (m,)."""
        return np.bincount(self._csr.indices, minlength=self.shape[1]).astype(np.int64)

    def firing_rate(self) -> np.ndarray:
        """Share of samples in which each atom is active, float64 (m,); zeros when there are no samples."""
        return self.counts() / max(len(self), 1)

    def maximum(self) -> np.ndarray:
        """Largest value of each atom over the samples, silent samples counting as 0; float32 (m,)."""
        if not len(self):
            return np.zeros(self.shape[1], dtype=np.float32)
        return np.asarray(self._csr.max(axis=0).todense(), dtype=np.float32).ravel()

    def active(self, threshold: float = 0.0) -> sp.csr_matrix:
        """Boolean CSR (n, m): where |value| exceeds `threshold` (0: every value that is not zero)."""
        keep = np.abs(self._csr.data) > threshold
        return _filtered(self._csr, keep, np.ones(int(keep.sum()), dtype=bool))

    def truncate(self, k: int) -> Codes:
        """Keep each sample's k largest values by magnitude; among equals the lower atom stays.

        Raises
        ------
        ConfigError
            k is not positive.
        """
        if k < 1:
            raise ConfigError(f"k must be at least 1 active atom (given: {k})")
        csr = self._csr
        lengths = np.diff(csr.indptr)
        if not len(lengths) or lengths.max() <= k:
            return self
        row = np.repeat(np.arange(len(self)), lengths)
        order = np.lexsort((csr.indices, -np.abs(csr.data), row))
        rank = np.empty(csr.nnz, dtype=np.int64)
        rank[order] = np.arange(csr.nnz) - np.repeat(csr.indptr[:-1], lengths)
        keep = rank < k
        return Codes(_filtered(csr, keep, csr.data[keep]))

    def save(self, path: str | Path, obs: pd.DataFrame) -> None:
        """Write the codes and their obs as Parquet; equal codes and obs give equal bytes.

        Parameters
        ----------
        path
            Target file, written atomically.
        obs
            One row per sample in the same order; the index is kept.

        Raises
        ------
        DataError
            Another number of rows than samples, or an obs column called `indices` or `values`.
        """
        _save(path, [self], obs)


class CodeStream:
    """Codes of consecutive samples that are made block by block while they are saved, and never held all at once.

    Parameters
    ----------
    blocks
        Codes over the same atoms, in the order of the samples.
    """

    def __init__(self, blocks: Iterable[Codes]):
        self._blocks = blocks

    def __iter__(self) -> Iterator[Codes]:
        return iter(self._blocks)

    def save(self, path: str | Path, obs: pd.DataFrame | str | Path) -> None:
        """Write what `Codes.save` writes of all blocks together, byte by byte.

        Parameters
        ----------
        path
            Target file, written atomically.
        obs
            One row per sample, or the Parquet file that holds them, which is then read piece by piece.

        Raises
        ------
        DataError
            As `Codes.save`, or there are no blocks.
        """
        _save(path, self._blocks, obs)


def _save(path: str | Path, blocks: Iterable[Codes], obs: pd.DataFrame | str | Path) -> None:
    """Write consecutive codes and their obs; equal codes and obs give equal bytes, however they are cut."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _obs_groups(obs) as (held, total, pieces):
        clash = {"indices", "values"} & set(held.names)
        if clash:
            raise DataError(f"obs column '{min(clash)}' collides with the codes' own column: rename it in the data set")
        groups = _groups(blocks)
        first = next(groups, None)
        if first is None:
            raise DataError(f"{path}: there are no codes to save")
        fields = [pa.field("indices", pa.list_(pa.int32())), pa.field("values", pa.list_(pa.float32()))]
        own = json.dumps({"m": first.shape[1], "schema_version": SCHEMA_VERSION}, sort_keys=True).encode()
        schema = pa.schema([*held, *fields], metadata={**(held.metadata or {}), METADATA_KEY: own})
        # Values hardly repeat: neither a dictionary of them nor compression is worth its time.
        compression = dict.fromkeys([*held.names, "indices.list.element"], "zstd")
        compression["values.list.element"] = "none"
        options = {"use_dictionary": held.names, "compression": compression}
        done = 0
        with atomic_path(path) as temporary, pq.ParquetWriter(temporary, schema, **options) as writer:
            for codes in itertools.chain([first], groups):
                piece = next(pieces, None)
                done += len(codes)
                if piece is None or piece.num_rows != len(codes):
                    # All are counted, so that the complaint holds the whole number.
                    done += sum(len(more) for more in groups)
                    break
                csr = codes.to_scipy()
                offsets = pa.array(csr.indptr.astype(np.int32))
                lists = [
                    pa.ListArray.from_arrays(offsets, pa.array(values))
                    for values in (csr.indices.astype(np.int32, copy=False), csr.data)
                ]
                columns = [column.combine_chunks() for column in piece.columns]
                writer.write_table(pa.Table.from_arrays([*columns, *lists], schema=schema))
            if done != total:
                raise DataError(f"codes hold {done} samples but obs has {total} rows: pass the obs they belong to")


def _groups(blocks: Iterable[Codes]) -> Iterator[Codes]:
    """Cut consecutive codes into pieces of ROWS_PER_GROUP rows; codes of no samples are one piece of no rows."""
    held: list[Codes] = []
    rows = 0
    given = False
    for block in blocks:
        held.append(block)
        rows += len(block)
        if rows < ROWS_PER_GROUP:
            continue
        whole = Codes.concatenate(held)
        for start in range(0, rows - ROWS_PER_GROUP + 1, ROWS_PER_GROUP):
            yield whole[start : start + ROWS_PER_GROUP]
            given = True
        left = rows % ROWS_PER_GROUP
        held, rows = ([whole[len(whole) - left :]] if left else []), left
    if held and (rows or not given):
        yield Codes.concatenate(held)


@contextmanager
def _obs_groups(obs: pd.DataFrame | str | Path) -> Iterator[tuple[pa.Schema, int, Iterator[pa.Table]]]:
    """Schema, number of rows, and the rows in pieces of ROWS_PER_GROUP (one piece of none where there are none)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not isinstance(obs, str | Path):
        named = obs if obs.index.name is not None else obs.rename_axis("sample_id")
        table = pa.Table.from_pandas(named, preserve_index=True)
        starts = range(0, max(len(obs), 1), ROWS_PER_GROUP)
        yield table.schema, len(obs), (table.slice(start, ROWS_PER_GROUP) for start in starts)
        return
    with pq.ParquetFile(obs) as file:

        def pieces() -> Iterator[pa.Table]:
            held = file.schema_arrow.empty_table()
            for batch in _batches(file, ROWS_PER_GROUP, None):
                held = pa.concat_tables([held, pa.Table.from_batches([batch], schema=file.schema_arrow)])
                while held.num_rows >= ROWS_PER_GROUP:
                    yield held.slice(0, ROWS_PER_GROUP).unify_dictionaries()
                    held = held.slice(ROWS_PER_GROUP)
            if held.num_rows or not file.metadata.num_rows:
                yield held.unify_dictionaries()

        yield file.schema_arrow, file.metadata.num_rows, pieces()


def _filtered(csr: sp.csr_matrix, keep: np.ndarray, data: np.ndarray) -> sp.csr_matrix:
    """CSR with only the stored entries that `keep` (nnz,) marks, and `data` as their values."""
    indptr = np.concatenate([[0], np.cumsum(keep)])[csr.indptr]
    return sp.csr_matrix((data, csr.indices[keep], indptr), shape=csr.shape)


def load(path: str | Path) -> tuple[Codes, pd.DataFrame]:
    """Read codes and their obs.

    Returns
    -------
    Codes, pandas.DataFrame
        n samples over m atoms, and the n rows of obs under their index.

    Raises
    ------
    DataError
        The file is missing or is not a file of codes.
    """
    with _opened(path) as file:
        obs = [name for name in file.schema_arrow.names if name not in ("indices", "values")]
        return _read(file), file.read(columns=obs, use_threads=False).to_pandas()


def load_codes(path: str | Path) -> Codes:
    """Read codes without their obs; raises as `load`."""
    with _opened(path) as file:
        return _read(file)


def stream(path: str | Path, columns: Sequence[str] = (), rows: int = ROWS_PER_GROUP) -> Iterator[tuple[Codes, Any]]:
    """Read codes piece by piece.

    Parameters
    ----------
    columns
        Columns of obs that are wanted beside them.
    rows
        Of a piece; fewer where a row group of the file (ROWS_PER_GROUP rows) ends.

    Yields
    ------
    Codes, pyarrow.Table
        Consecutive samples, and those columns of them.

    Raises
    ------
    DataError
        As `load`.
    """
    import pyarrow as pa

    with _opened(path) as file:
        m = json.loads(file.schema_arrow.metadata[METADATA_KEY])["m"]
        for batch in _batches(file, rows, ["indices", "values", *columns]):
            indptr = np.concatenate([[0], np.cumsum(batch.column("indices").value_lengths())]).astype(np.int64)
            held = (batch.column("values").flatten().to_numpy(), batch.column("indices").flatten().to_numpy(), indptr)
            yield Codes(sp.csr_matrix(held, shape=(batch.num_rows, m))), pa.Table.from_batches([batch]).select(columns)


def _batches(file: pq.ParquetFile, rows: int, columns: list[str] | None) -> Iterator[pa.RecordBatch]:
    """Rows in order, one row group after the other: a reader of all groups keeps the bytes of those it is done with."""
    for group in range(file.metadata.num_row_groups):
        yield from file.iter_batches(rows, row_groups=[group], columns=columns, use_threads=False)


@contextmanager
def _opened(path: str | Path) -> Iterator[pq.ParquetFile]:
    """Open a file of codes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            if METADATA_KEY not in (file.schema_arrow.metadata or {}):
                raise DataError(f"{path} is Parquet but holds no codes (no '{METADATA_KEY.decode()}' in its metadata)")
            yield file
    except (FileNotFoundError, pa.ArrowInvalid) as error:
        raise DataError(f"{path} cannot be read as a file of codes ({error}): learn again") from None


def _read(file: pq.ParquetFile) -> Codes:
    """Fill the arrays of the matrix batch by batch: dense codes are large, and are held only once."""
    groups = [file.metadata.row_group(group) for group in range(file.metadata.num_row_groups)]
    # An empty list counts as one value here: at least as many as there are.
    room = sum(group.column(group.num_columns - 1).num_values for group in groups)
    indices, values = np.empty(room, dtype=np.int32), np.empty(room, dtype=np.float32)
    indptr = np.zeros(file.metadata.num_rows + 1, dtype=np.int64)
    row = at = 0
    for batch in _batches(file, ROWS_READ, ["indices", "values"]):
        found, lengths = batch.column("indices").flatten(), batch.column("indices").value_lengths()
        indices[at : at + len(found)], values[at : at + len(found)] = found, batch.column("values").flatten()
        indptr[row + 1 : row + 1 + len(lengths)] = lengths
        row, at = row + len(lengths), at + len(found)
    m = json.loads(file.schema_arrow.metadata[METADATA_KEY])["m"]
    return Codes(sp.csr_matrix((values[:at], indices[:at], np.cumsum(indptr)), shape=(len(indptr) - 1, m)))


class CodeFiles(Mapping):
    """(dictionary name, seed) → Codes, read when looked up and not kept.

    Parameters
    ----------
    fits
        (dictionary name, seed) of every fit.
    codes
        Codes file of each fit, in the same order.

    Raises
    ------
    DataError
        The two do not have one entry per fit.
    """

    def __init__(self, fits: Sequence[Sequence[Any]], codes: Sequence[str | Path]):
        if len(fits) != len(codes):
            raise DataError(f"{len(fits)} fits need as many codes files: got {len(codes)}")
        self._paths = {(str(name), int(seed)): Path(path) for (name, seed), path in zip(fits, codes)}

    def __getitem__(self, fit: tuple[str, int]) -> Codes:
        return load_codes(self._paths[fit])

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)
