"""Two files that should hold the same: equal bytes, or how far their numbers lie apart."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conceptome.files import sha256_file

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

# Largest difference that other instructions may explain, as a share of the largest absolute value of the same column,
# tensor or data set; of a number in a text: of itself (of FLOOR, where it is smaller); of a picture: of full light.
TOLERANCE = 1e-3
FLOOR = 1e-3

_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\w.]*\w)")
# A digest in a text follows from other bytes, which are compared themselves.
_DIGEST = re.compile(r"\b[0-9a-f]{64}\b")


@dataclass(frozen=True)
class Difference:
    """How two files differ.

    Attributes
    ----------
    largest
        Largest difference of two numbers as a share of their scale (see `TOLERANCE`); None where numbers are not all.
    where
        The column, tensor or data set of it, or what differs besides numbers.
    """

    largest: float | None
    where: str

    @property
    def within_tolerance(self) -> bool:
        """Whether numbers alone differ, by no more than TOLERANCE."""
        return self.largest is not None and self.largest <= TOLERANCE


class _Unlike(Exception):
    """Something other than the value of a number differs."""


def compare(first: Path, second: Path) -> Difference | None:
    """Compare two files; None: the same bytes.

    Formats: parquet, csv, npy, safetensors, h5ad (every data set in it), png (brightness), and json, svg, md, txt, tsv
    as text with numbers in it, where 64-digit hexadecimal digests do not count. Nothing in a file is executed.
    """
    if sha256_file(first) == sha256_file(second):
        return None
    read = _READERS.get(first.suffix)
    if read is None:
        return Difference(None, f"no rule to compare {first.suffix or 'such'} files")
    largest, where = 0.0, "stored differently, with equal values"
    try:
        for name, a, b in read(first, second):
            found = _numbers(name, a, b)
            if found > largest:
                largest, where = found, name
    except _Unlike as unlike:
        return Difference(None, str(unlike))
    except (ValueError, OSError, KeyError, TypeError) as error:
        return Difference(None, f"cannot be read: {' '.join(str(error).split())[:200]}")
    return Difference(largest, where)


def _numbers(name: str, a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference of two arrays as a share of their largest absolute value."""
    import numpy as np

    if a.shape != b.shape or a.dtype != b.dtype:
        raise _Unlike(f"{name}: {a.dtype} {a.shape} became {b.dtype} {b.shape}")
    if a.dtype.kind not in "fc":
        count = int(np.sum(a != b))
        if count:
            raise _Unlike(f"{name}: {count} of {a.size} values differ")
        return 0.0
    a, b = (
        a.astype(np.float64 if a.dtype.kind == "f" else a.dtype),
        b.astype(np.float64 if b.dtype.kind == "f" else b.dtype),
    )
    finite = np.isfinite(a)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not np.isfinite(b[finite]).all():
        raise _Unlike(f"{name}: values that are no finite numbers differ")
    if not finite.any():
        return 0.0
    scale = float(np.abs(a[finite]).max())
    apart = float(np.abs(a[finite] - b[finite]).max())
    return apart / scale if scale else (0.0 if apart == 0 else float("inf"))


def _same_keys(what: str, a: Any, b: Any) -> list:
    if list(a) != list(b):
        raise _Unlike(f"other {what}: {', '.join(sorted({*map(str, a)} ^ {*map(str, b)})) or 'in another order'}")
    return list(a)


Pairs = Iterator[tuple[str, Any, Any]]


def _frames(a: pd.DataFrame, b: pd.DataFrame) -> Pairs:
    import numpy as np

    if len(a) != len(b):
        raise _Unlike(f"{len(a)} rows became {len(b)}")
    if not a.index.equals(b.index):
        raise _Unlike("the index differs")
    for name in _same_keys("columns", a.columns, b.columns):
        one, two = a[name], b[name]
        if one.dtype != two.dtype:
            raise _Unlike(f"column {name}: {one.dtype} became {two.dtype}")
        if one.dtype.kind in "fc":
            yield f"column {name}", one.to_numpy(), two.to_numpy()
        elif len(one) and isinstance(one.iloc[0], np.ndarray):
            if [len(row) for row in one] != [len(row) for row in two]:
                raise _Unlike(f"column {name}: lists of other lengths")
            yield f"column {name}", np.concatenate(list(one)), np.concatenate(list(two))
        elif not one.equals(two):
            raise _Unlike(
                f"column {name}: {int((one.astype(str) != two.astype(str)).sum())} of {len(one)} values differ"
            )


def _parquet(first: Path, second: Path) -> Pairs:
    import pandas as pd

    return _frames(pd.read_parquet(first), pd.read_parquet(second))


def _csv(first: Path, second: Path) -> Pairs:
    import pandas as pd

    return _frames(pd.read_csv(first), pd.read_csv(second))


def _npy(first: Path, second: Path) -> Pairs:
    import numpy as np

    yield "array", np.load(first, allow_pickle=False), np.load(second, allow_pickle=False)


def _safetensors(first: Path, second: Path) -> Pairs:
    from safetensors.numpy import load_file

    a, b = load_file(first), load_file(second)
    for name in _same_keys("tensors", sorted(a), sorted(b)):
        yield f"tensor {name}", a[name], b[name]


def _hdf5(first: Path, second: Path) -> Pairs:
    import h5py
    import numpy as np

    def contents(handle: h5py.File) -> dict[str, Any]:
        found: dict[str, Any] = {}
        handle.visititems(lambda name, item: found.__setitem__(name, item))
        return found

    with h5py.File(first) as one, h5py.File(second) as two:
        a, b = contents(one), contents(two)
        for name in _same_keys("data sets", a, b):
            if {key: str(value) for key, value in a[name].attrs.items()} != {
                key: str(value) for key, value in b[name].attrs.items()
            }:
                raise _Unlike(f"{name}: its attributes differ")
            if isinstance(a[name], h5py.Dataset):
                yield f"data set {name}", np.asarray(a[name][()]), np.asarray(b[name][()])


def _png(first: Path, second: Path) -> Pairs:
    import numpy as np
    from PIL import Image

    with Image.open(first) as one, Image.open(second) as two:
        a, b = (np.asarray(image.convert("RGBA"), dtype=np.float64) / 255 for image in (one, two))
    if a.shape != b.shape:
        raise _Unlike(f"{a.shape[1]} × {a.shape[0]} pixels became {b.shape[1]} × {b.shape[0]}")
    # Full brightness is the scale, also of a dark picture.
    white = np.ones(1)
    yield "pixels", np.concatenate([a.ravel(), white]), np.concatenate([b.ravel(), white])


def _text(first: Path, second: Path) -> Pairs:
    import numpy as np

    a, b = (_DIGEST.sub("digest", path.read_text(encoding="utf-8")) for path in (first, second))
    words = [_NUMBER.split(text) for text in (a, b)]
    if words[0] != words[1]:
        other = next((pair for pair in zip(*words) if pair[0] != pair[1]), ("", "more of it"))
        raise _Unlike(f"the text differs: {json.dumps(other[0][-40:])} became {json.dumps(other[1][-40:])}")
    one, two = (np.array([float(number) for number in _NUMBER.findall(text)]) for text in (a, b))
    scale = np.maximum(np.maximum(np.abs(one), np.abs(two)), FLOOR)
    # Every number has its own scale: shares are compared with 1.
    yield "numbers in the text", np.append(one / scale, 1.0), np.append(two / scale, 1.0)


_READERS: dict[str, Callable[[Path, Path], Pairs]] = {
    ".parquet": _parquet,
    ".csv": _csv,
    ".npy": _npy,
    ".safetensors": _safetensors,
    ".h5ad": _hdf5,
    ".h5": _hdf5,
    ".png": _png,
    **dict.fromkeys((".json", ".svg", ".md", ".txt", ".tsv"), _text),
}
