"""A contestant's process: it builds what it is asked for, works while it is timed, and says how much it did.

Requests come as lines of JSON on standard input and are answered on what was standard output; whatever a library prints
goes to standard error. Only numpy is needed here: the same file serves Conceptome's environment and the peers'.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Reconstruct = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
# Rows of one call when quality is measured.
EVALUATED = 1024


@dataclass(frozen=True)
class Setting:
    """Sizes of one comparison: dimensions, atoms, active atoms per row, rows per batch; learning rate and steps."""

    d: int
    m: int
    k: int
    batch: int
    rate: float | None = None
    steps: int = 100_000
    rounds: tuple[int, ...] = ()


@dataclass
class Built:
    """What is timed: `call` works once and returns the number of rows; `arrays` are data, parameters and moments."""

    call: Callable[[], int]
    arrays: int = 0


@dataclass
class Learned:
    """A dictionary being learned.

    `step` trains on rows (B, d); `reconstruct` gives x̂ (n, d) and active places (n, m); `parameters` is their number.
    """

    step: Callable[[np.ndarray], Any]
    parameters: int
    reconstruct: Reconstruct | None = None


def cycle(X: np.ndarray, size: int) -> Callable[[], np.ndarray]:
    """Batches of `size` consecutive rows, over and over."""
    starts = list(range(0, len(X) - size + 1, size)) or [0]
    state = {"at": -1}

    def take() -> np.ndarray:
        state["at"] = (state["at"] + 1) % len(starts)
        start = starts[state["at"]]
        return X[start : start + size]

    return take


def training(learned: Learned, X: np.ndarray, size: int) -> Built:
    """Training steps over the rows; parameters have two moments each."""
    take = cycle(X, size)

    def call() -> int:
        x = take()
        learned.step(x)
        return len(x)

    return Built(call, X.nbytes + 12 * learned.parameters)


def encoding(encode: Callable[[np.ndarray], Any], X: np.ndarray, size: int) -> Built:
    """Encoding of `size` rows at a time."""
    take = cycle(X, size)

    def call() -> int:
        x = take()
        encode(x)
        return len(x)

    return Built(call, X.nbytes)


def anonymous() -> int:
    """Anonymous memory of this process in bytes."""
    with open("/proc/self/status", encoding="ascii") as handle:
        return next(int(line.split()[1]) * 1024 for line in handle if line.startswith("RssAnon"))


def quality(reconstruct: Reconstruct, train: np.ndarray, test: np.ndarray) -> dict[str, float]:
    """FVU and L0 of the test rows; atoms that fire on no training row."""
    fired, squares, count = None, 0.0, 0
    for at in range(0, len(train), EVALUATED):
        active = reconstruct(train[at : at + EVALUATED])[1].any(axis=0)
        fired = active if fired is None else fired | active
    for at in range(0, len(test), EVALUATED):
        rows = test[at : at + EVALUATED]
        x_hat, active = reconstruct(rows)
        squares += float(np.square(rows - x_hat, dtype=np.float64).sum())
        count += int(active.sum())
    total = float(np.square(test - test.mean(axis=0), dtype=np.float64).sum())
    return {"fvu": squares / total, "l0": count / len(test), "dead": int((~fired).sum())}


def learning(make: Callable[[np.ndarray, Setting], Learned]) -> Callable[..., dict[str, float]]:
    """Training on the rows in a given order of batches, and its quality."""

    def learn(X: np.ndarray, test: np.ndarray, order: np.ndarray, setting: Setting) -> dict[str, float]:
        learned = make(X, setting)
        for index in order:
            learned.step(X[index])
        return quality(learned.reconstruct, X, test)

    return learn


Works = dict[str, Callable[..., Any]]


def serve(offer: Callable[[], Works], threads: Callable[[int], None]) -> None:
    """Answer requests until standard input ends.

    Parameters
    ----------
    offer
        Imports the library and tells what this contestant can do. "train …" makes a `Learned` and "encode …" a `Built`,
        both of (rows, setting); "learn …" is as `learning` makes it, and is made so where there is none.
    threads
        Sets the number of threads.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(value: dict[str, Any]) -> None:
        print(json.dumps(value), file=answers, flush=True)

    try:
        works = offer()
        learned = {name.replace("train", "learn"): learning(make) for name, make in works.items() if "train" in name}
        works = {**learned, **works}
    except Exception as error:
        traceback.print_exc()
        answer({"error": one_line(error)})
        return
    answer({"works": list(works)})
    built: Built | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "build":
                built = None
                gc.collect()
                ctypes.CDLL(None).malloc_trim(0)
                threads(request["threads"])
                before = anonymous()
                X, setting = np.load(request["data"]), Setting(**request["setting"])
                made = works[request["work"]](X, setting)
                built = training(made, X, setting.batch) if isinstance(made, Learned) else made
                del made
                answer({"before": before, "arrays": built.arrays})
            elif request["do"] == "round":
                rows, start, processor = 0, time.perf_counter(), time.process_time()
                while not rows or time.perf_counter() - start < request["seconds"]:
                    rows += built.call()
                took = {"seconds": time.perf_counter() - start, "processor": time.process_time() - processor}
                answer({"rows": rows, **took, "peak": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss})
            elif request["do"] == "drop":
                built = None
                gc.collect()
                ctypes.CDLL(None).malloc_trim(0)
                answer({})
            elif request["do"] == "learn":
                built = None
                threads(request["threads"])
                X, test, order = (np.load(request[name]) for name in ("train", "test", "order"))
                start = time.perf_counter()
                found = works[request["work"]](X, test, order, Setting(**request["setting"]))
                answer({**found, "seconds": round(time.perf_counter() - start, 1)})
        except Exception as error:
            traceback.print_exc()
            answer({"error": one_line(error)})


def one_line(error: Exception) -> str:
    """What went wrong, for the page."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
