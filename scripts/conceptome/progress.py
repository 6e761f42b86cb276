"""How far a long stage has come, for whoever watches: a small file, named by an environment variable.

The library calls `track`, or passes a `Reporter` as a progress hook, wherever it loops for long; it costs nothing
unless a job set CONCEPTOME_PROGRESS.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

VARIABLE = "CONCEPTOME_PROGRESS"
INTERVAL_SECONDS = 0.5


class Reporter:
    """Writes `{done, total, description}` to one file, at most twice a second; called with (done, total).

    Parameters
    ----------
    description
        What is being done, e.g. "training, step".
    total
        Number of steps, where it is known beforehand.
    path
        The file; None: the one that CONCEPTOME_PROGRESS names, and nothing happens where it names none.
    """

    def __init__(self, description: str, total: float | None = None, path: str | os.PathLike | None = None):
        path = path or os.environ.get(VARIABLE)
        self.path = Path(path) if path else None
        self.total = total
        self.description = description
        self._next = time.monotonic() + INTERVAL_SECONDS

    def __call__(self, done: float, total: float | None = None) -> None:
        """Say that `done` of `total` is finished."""
        if self.path is None or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + INTERVAL_SECONDS
        state = {"done": done, "total": self.total if total is None else total, "description": self.description}
        temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}.partial")
        # A watcher's comfort must never stop the work: a full disk or a removed folder is no reason to fail here.
        with suppress(OSError):
            temporary.write_text(json.dumps(state), encoding="utf-8")
            os.replace(temporary, self.path)


def track(iterable: Iterable[T], total: float | None = None, description: str = "") -> Iterator[T]:
    """Yield the items of `iterable` and report how many were taken.

    Parameters
    ----------
    total
        Number of items; None: `len(iterable)` where it has one, else unknown.
    description
        What is being done, e.g. "training, step".
    """
    if total is None and hasattr(iterable, "__len__"):
        total = len(iterable)
    reporter = Reporter(description, total)
    for done, item in enumerate(iterable):
        reporter(done)
        yield item
