"""Opening text and tables, with one clear line for whatever is wrong with the file."""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from conceptome.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

GZIP_MAGIC = b"\x1f\x8b"


@contextmanager
def open_text(path: Path) -> Iterator[IO[str]]:
    """Open a UTF-8 text file, plain or gzip (told by its first bytes, not by its name).

    Raises
    ------
    DataError
        The file does not exist, is not text, or its gzip stream is damaged or cut short (also when that only shows
        while the block reads).
    """
    path = Path(path)
    try:
        with open(path, "rb") as raw:
            packed = raw.read(2) == GZIP_MAGIC
            raw.seek(0)
            if path.name.endswith(".gz") and not packed:
                raise DataError(f"{path} is named .gz but is not a gzip file: supply the file again, or rename it")
            binary = gzip.GzipFile(fileobj=raw) if packed else raw
            with io.TextIOWrapper(binary, encoding="utf-8-sig", newline=None) as text:
                yield text
    except UnicodeDecodeError:
        raise DataError(f"{path} is not a UTF-8 text file") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is a damaged or truncated gzip file ({error}): supply the file again") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None


def read_table(path: Path, separator: str | None = None, *, quoted: bool = True) -> pd.DataFrame:
    """Read one table: .parquet, .tsv or .txt (tab), anything else as .csv (comma); text may be gzipped.

    Parameters
    ----------
    separator
        Of the columns of a text table; None: told by the file's name.
    quoted
        False: a quotation mark is a character like any other.

    Raises
    ------
    DataError
        The file cannot be read, is damaged, holds no rows, or has a column name twice.
    """
    import pandas as pd

    path = Path(path)
    if path.name.endswith(".parquet"):
        try:
            frame = pd.read_parquet(path, engine="pyarrow")
        except FileNotFoundError:
            raise DataError(f"cannot read {path}: No such file or directory") from None
        except Exception as error:  # pyarrow raises a dozen kinds for a damaged file
            raise DataError(f"{path} is not a readable Parquet file: {error}") from None
        # A named index is a column that pandas moved aside; an unnamed one is row numbers.
        frame = frame.reset_index(drop=frame.index.names == [None])
    else:
        if separator is None:
            separator = "\t" if path.name.removesuffix(".gz").endswith((".tsv", ".txt")) else ","
        quoting = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
        with open_text(path) as text:
            names = next(csv.reader(text, delimiter=separator, quoting=quoting), [])
        repeated = [name for name in dict.fromkeys(names) if names.count(name) > 1]
        if repeated:
            raise DataError(f"{path}: column '{repeated[0]}' occurs {names.count(repeated[0])} times: keep one")
        try:
            with open_text(path) as text:
                frame = pd.read_csv(text, sep=separator, quoting=quoting, low_memory=False)
        except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
            raise DataError(f"{path} is not a readable table: {error}") from None
    if frame.empty:
        raise DataError(f"{path} holds no rows")
    frame.columns = [str(name) for name in frame.columns]
    return frame


def suggest(name: str, known: Iterable[str], limit: int = 8) -> str:
    """End of an error line: the nearest known name, or the first few known names."""
    known = [str(item) for item in known]
    folded = {item.lower(): item for item in reversed(known)}
    close = difflib.get_close_matches(str(name).lower(), list(folded), n=1, cutoff=0.6)
    if close:
        return f"did you mean '{folded[close[0]]}'?"
    shown = ", ".join(known[:limit]) + (f" and {len(known) - limit} more" if len(known) > limit else "")
    return f"there are: {shown or 'none'}"


def need_column(name: str, columns: Iterable[str], purpose: str, where: str) -> str:
    """Return `name` if it is among `columns`.

    Raises
    ------
    DataError
        It is not; the line says for which purpose it was wanted, where, and the nearest name.
    """
    columns = [str(column) for column in columns]
    if name not in columns:
        raise DataError(f"{where}: {purpose} column '{name}' does not exist; {suggest(name, columns)}")
    return name
