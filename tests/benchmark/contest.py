"""Contestants as processes that live through the whole run, timed in turn."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from worker import Setting

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
START_SECONDS = 300.0
# A contestant's first call of a work may also have to make a large Gram matrix.
CALL_SECONDS = 180.0
WATCH_SECONDS = 0.01
# Threads of the contestant before may still spin.
PAUSE_SECONDS = 0.02
# From here on one call is warm-up enough.
SLOW_SECONDS = 5.0
# A contestant whose turns last longer than this in all gets fewer, but two.
TURNS_SECONDS = 12.0


class LostError(Exception):
    """A contestant cannot go on; the message says why in one line."""


@dataclass
class Result:
    """Rows per second of each round, and memory growth in bytes; or why there are none.

    Beside them what the timed rounds took together, in seconds of the clock (`wall`) and of all processors, and the
    most memory (`peak`, bytes) that the process has ever held: its libraries, and what it did before, included.
    """

    rates: list[float] = field(default_factory=list)
    growth: int | None = None
    reason: str = ""
    wall: float = 0.0
    processor: float = 0.0
    peak: int = 0

    @property
    def median(self) -> float:
        """Median of the rounds."""
        return float(np.median(self.rates)) if self.rates else float("nan")


class Contestant:
    """One process and its pipe."""

    def __init__(self, name: str, python: Path, script: str, argument: str, logs: Path, **environment: str):
        self.name, self.python, self.script, self.argument = name, python, script, argument
        self.log = logs / f"{''.join(c if c.isalnum() else '_' for c in name)}.log"
        self.environment = environment
        self.process: subprocess.Popen | None = None
        self.works: list[str] = []

    def start(self, threads: int) -> None:
        """Start the process unless it runs; it imports its library meanwhile."""
        if self.process is not None or not self.python.exists():
            return
        self.works = []
        number = str(threads)
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": number,
            "MKL_NUM_THREADS": number,
            "OPENBLAS_NUM_THREADS": number,
            "PYTHONPATH": os.pathsep.join(str(ROOT / each) for each in ("scripts", "kernels")),
            "HF_HUB_OFFLINE": "1",
            "WANDB_MODE": "disabled",
            **self.environment,
        }
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [self.python, HERE / self.script, self.argument],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                cwd=HERE,
            )

    def offers(self, work: str) -> bool:
        """Whether it can do a work; waits for it to be ready.

        Raises
        ------
        LostError
            It did not start: why, in one line.
        """
        if self.process is None:
            raise LostError("its environment is missing")
        if self.works:
            return work in self.works
        told, _ = self._receive(START_SECONDS)
        if "error" in told:
            self.stop()
            raise LostError(told["error"])
        self.works = told["works"]
        return work in self.works

    def ask(self, limit: float = CALL_SECONDS, watch: bool = False, **request: Any) -> tuple[dict[str, Any], int]:
        """Send a request; return its answer, and with `watch` the most anonymous memory meanwhile.

        Raises
        ------
        LostError
            The request failed, took too long, or ended the process.
        """
        try:
            self.process.stdin.write((json.dumps(request) + "\n").encode())
            self.process.stdin.flush()
        except OSError:
            raise LostError(self._epitaph()) from None
        answer, most = self._receive(limit, watch)
        if "error" in answer:
            raise LostError(answer["error"])
        return answer, most

    def _receive(self, seconds: float, watch: bool = False) -> tuple[dict[str, Any], int]:
        deadline, most = time.monotonic() + seconds, 0
        while True:
            ready, _, _ = select.select([self.process.stdout], [], [], WATCH_SECONDS if watch else 1.0)
            if watch:
                most = max(most, self.memory())
            if ready:
                line = self.process.stdout.readline()
                if not line:
                    raise LostError(self._epitaph())
                return json.loads(line), most
            if time.monotonic() > deadline:
                self.stop(kill=True)
                raise LostError(f"no answer within {seconds:.0f} s")

    def memory(self) -> int:
        """Anonymous memory in bytes; 0 once it has ended."""
        try:
            lines = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii").splitlines()
        except OSError:
            return 0
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)

    def _epitaph(self) -> str:
        """Why the process ended."""
        code = self.process.wait(30)
        self.process = None
        if code < 0:
            return f"killed by signal {-code}" + (" (out of memory?)" if code == -9 else "")
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if self.log.exists() else []
        return (lines[-1] if lines else f"ended with code {code}")[:200]

    def stop(self, kill: bool = False) -> None:
        """End the process."""
        if self.process is None:
            return
        if kill:
            self.process.kill()
        else:
            self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None


def compete(
    work: str,
    contestants: Sequence[Contestant],
    setting: Setting,
    data: Path,
    *,
    threads: int,
    rounds: int,
    seconds: float,
    works: dict[str, str] | None = None,
) -> dict[str, Result]:
    """Time one work: every contestant builds and warms up, then they take turns, each round beginning with another.

    Parameters
    ----------
    rounds, seconds
        Number of turns of each, and how long a turn lasts at least; a turn is at least one call. One that is slow gets
        fewer turns, at least two.
    works
        Contestant → its own name for the work, where it has one.
    """
    results: dict[str, Result] = {}
    present: list[Contestant] = []
    turns: dict[str, int] = {}
    for contestant in contestants:
        contestant.start(threads)
    for contestant in contestants:
        result = results[contestant.name] = Result()
        own = (works or {}).get(contestant.name, work)
        try:
            if not contestant.offers(own):
                result.reason = "does not offer this"
                continue
            request = {"work": own, "data": str(data), "setting": asdict(setting), "threads": threads}
            built, _ = contestant.ask(do="build", **request)
            # The warm-up makes the moments, and is where memory is watched.
            done, most = contestant.ask(do="round", seconds=0.0, watch=True)
            again = 0
            if done["seconds"] < SLOW_SECONDS:
                done, again = contestant.ask(do="round", seconds=0.0, watch=True)
            turns[contestant.name] = max(2, min(rounds, int(TURNS_SECONDS / max(done["seconds"], seconds))))
            result.growth = max(most, again) - built["before"] - built["arrays"]
            present.append(contestant)
        except LostError as lost:
            result.reason = str(lost)
    for number in range(rounds):
        first = number % max(1, len(present))
        for contestant in present[first:] + present[:first]:
            if results[contestant.name].reason or number >= turns[contestant.name]:
                continue
            time.sleep(PAUSE_SECONDS)
            try:
                done, _ = contestant.ask(do="round", seconds=seconds)
                result = results[contestant.name]
                result.rates.append(done["rows"] / done["seconds"])
                result.wall, result.processor = result.wall + done["seconds"], result.processor + done["processor"]
                result.peak = max(result.peak, done["peak"])
            except LostError as lost:
                results[contestant.name].reason = str(lost)
    for contestant in present:
        if contestant.process is not None:
            try:
                contestant.ask(do="drop")
            except LostError as lost:
                print(f"{contestant.name}: {lost}", file=sys.stderr)
    return results
