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


def duration(seconds: float) -> str:
    """Spell a duration for people."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"


class Pace:
    """How fast a loop goes and how long it still takes, since the first time it was asked.

    Parameters
    ----------
    unit, per_step
        What is counted besides steps, and how many of it a step takes, e.g. "rows", 512.
    """

    def __init__(self, unit: str, per_step: float = 1):
        self.unit, self.per_step = unit, per_step
        self._first: tuple[float, float] | None = None

    def __call__(self, done: float, total: float | None) -> str:
        """Say it, e.g. "23,387 rows/s, 2 min 5 s left"; nothing where nothing is known yet."""
        now = time.monotonic()
        self._first = self._first or (done, now)
        steps, seconds = done - self._first[0], now - self._first[1]
        if steps <= 0 or seconds <= 0:
            return ""
        left = f", {duration((total - done) * seconds / steps)} left" if total else ""
        return f"{steps / seconds * self.per_step:,.0f} {self.unit}/s{left}"


class Reporter:
    """Writes `{done, total, description}` to one file, at most twice a second; called with (done, total).

    Parameters
    ----------
    description
        What is being done, e.g. "training, step".
    total
        Number of steps, where it is known beforehand.
    pace
        Where it is given, what it says is written too, as `pace`.
    path
        The file; None: the one that CONCEPTOME_PROGRESS names, and nothing happens where it names none.
    """

    def __init__(
        self,
        description: str,
        total: float | None = None,
        path: str | os.PathLike | None = None,
        *,
        pace: Pace | None = None,
    ):
        path = path or os.environ.get(VARIABLE)
        self.path = Path(path) if path else None
        self.total = total
        self.description = description
        self.pace = pace
        self._next = time.monotonic() + INTERVAL_SECONDS

    def __call__(self, done: float, total: float | None = None) -> None:
        """Say that `done` of `total` is finished."""
        if self.path is None or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + INTERVAL_SECONDS
        total = self.total if total is None else total
        state = {"done": done, "total": total, "description": self.description}
        if self.pace:
            state["pace"] = self.pace(done, total)
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
