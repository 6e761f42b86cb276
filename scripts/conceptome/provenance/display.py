"""What Snakemake says, understood line by line, and what a person gets to see of it."""

from __future__ import annotations

import json
import re
import sys
import textwrap
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from conceptome.progress import duration

if TYPE_CHECKING:
    from rich.progress import Progress

_TOTAL = re.compile(r"^total\s+(\d+)$")
_RULE = re.compile(r"^(?:local)?(?:rule|checkpoint) (\w+):$")
_FINISHED = re.compile(r"^Finished jobid: (\d+)")
_STEPS = re.compile(r"^(\d+) of (\d+) steps")
# Indented where the job is one of a group.
_FAILED = re.compile(r"^ *Error in rule (\w+):$")
_AGAIN = re.compile(r"^Trying to restart job (\d+)\.$")
# What a scheduler says of a job that it ended: TIMEOUT, OUT_OF_MEMORY, NODE_FAIL …
_SCHEDULER = re.compile(r"^SLURM-job '(\S+)' failed, SLURM status is: '(\w+)'")
_COUNT = re.compile(r"^(\w+)\s+(\d+)$")
_LOG_NOTE = re.compile(r"\s*\(check log file\(s\).*\)$")

LAST_LINES = 12


@dataclass
class RunningJob:
    """A job as Snakemake announces it."""

    rule: str
    identity: str = ""
    wildcards: dict[str, str] = field(default_factory=dict)
    log: str = ""
    reason: str = ""
    started: float = field(default_factory=time.monotonic)

    @property
    def title(self) -> str:
        """Rule and wildcard values."""
        return f"{self.rule} {'/'.join(self.wildcards.values())}".strip()


class SnakemakeOutput:
    """Reads Snakemake's terminal output (version 9) line by line and keeps what it means.

    Attributes
    ----------
    total, done
        Number of steps in all, and finished. None before Snakemake has said.
    running
        Announced and not finished jobs by Snakemake's job id.
    counts
        Rule → number of jobs, from the job statistics.
    errors
        One-line errors of our own jobs and of the configuration.
    failed
        (title, log file, what the scheduler said or "") of each failed job that is not started again.
    notes
        Lines that the ingest step leaves for the reader.
    """

    def __init__(self):
        self.total: int | None = None
        self.done = 0
        self.running: dict[str, RunningJob] = {}
        self.counts: dict[str, int] = {}
        self.errors: list[str] = []
        self.failed: list[tuple[str, str, str]] = []
        self.notes: list[str] = []
        self.nothing_to_do = False
        self.locked = False
        self.last: deque[str] = deque(maxlen=LAST_LINES)
        self._failures: list[str] = []
        self._block: RunningJob | None = None
        self._failing = False
        self._in_statistics = False

    def feed(self, line: str) -> RunningJob | None:
        """Take one line; gives the job that has just finished, if the line says so."""
        text = line.rstrip()
        if text:
            self.last.append(text)
        if self._block is not None:
            if text.startswith("    "):
                self._detail(self._block, text.strip())
                return None
            self._close_block()
        if self._in_statistics:
            if match := _COUNT.match(text):
                self.counts[match[1]] = int(match[2])
            self._in_statistics = bool(text)
        if match := _TOTAL.match(text):
            self.total = int(match[1])
            self.counts.pop("total", None)
        elif match := _RULE.match(text):
            self._block, self._failing = RunningJob(match[1]), False
        elif match := _FAILED.match(text):
            self._block, self._failing = RunningJob(match[1]), True
        elif match := _AGAIN.match(text):
            if match[1] in self._failures:
                position = self._failures.index(match[1])
                del self._failures[position], self.failed[position]
        elif match := _FINISHED.match(text):
            return self.running.pop(match[1], None)
        elif match := _STEPS.match(text):
            self.done, self.total = int(match[1]), int(match[2])
        elif text == "Job stats:":
            self._in_statistics = True
        elif text.startswith("Nothing to be done"):
            self.nothing_to_do = True
        elif "Directory cannot be locked" in text or "LockException" in text:
            self.locked = True
        elif text.startswith("error: "):
            self.errors.append(text)
        elif text.startswith("provenance: "):
            self.notes.append(text)
        return None

    def _detail(self, job: RunningJob, text: str) -> None:
        key, _, value = text.partition(": ")
        if key == "jobid":
            job.identity = value
            if not self._failing:
                # Known at once: the line that would show the announcement to be complete may be minutes away.
                self.running[value] = job
        elif key == "wildcards":
            job.wildcards = dict(pair.split("=", 1) for pair in value.split(", ") if "=" in pair)
        elif key == "log":
            job.log = _LOG_NOTE.sub("", value)
        elif key == "message" and (match := _SCHEDULER.match(value)):
            job.reason = f"SLURM ended job {match[1]}: {match[2]}"

    def _close_block(self) -> None:
        job, self._block = self._block, None
        if job is not None and self._failing:
            known = self.running.pop(job.identity, job)
            self.failed.append((known.title, job.log or known.log, job.reason))
            self._failures.append(job.identity)

    def close(self) -> None:
        """Say that the output has ended."""
        self._close_block()


def steps_of(progress: Path, workflow: str) -> dict[tuple[str, tuple], dict[str, Any]]:
    """How far each running job has come inside itself, by rule and wildcards: {done, total, description}."""
    found = {}
    for path in progress.glob("*.job.json"):
        # Jobs end, and take their files away, while we look.
        with suppress(OSError, ValueError, KeyError):
            job = json.loads(path.read_text(encoding="utf-8"))
            if job["workflow"] != workflow:
                continue
            steps = path.with_name(path.name.replace(".job.json", ".steps.json"))
            key = (job["rule"], tuple(sorted((name, str(value)) for name, value in job["wildcards"].items())))
            found[key] = json.loads(steps.read_text(encoding="utf-8"))
    return found


class PlainView:
    """One line per finished job: for logs and pipes."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def __enter__(self) -> PlainView:
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.flush()

    def say(self, text: str) -> None:
        """Print one line."""
        print(text, file=self.stream, flush=True)

    def finished(self, output: SnakemakeOutput, job: RunningJob) -> None:
        """Report a finished job."""
        total = output.total if output.total is not None else "?"
        self.say(f"[{output.done + 1}/{total}] {job.title} ({duration(time.monotonic() - job.started)})")

    def refresh(self, output: SnakemakeOutput, steps: dict) -> None:
        """Plain text cannot be redrawn."""


class LiveView:
    """Bars that move: all steps on top, below them each running job with its own bar where it reports steps."""

    def __init__(self):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self.console = Console()
        self.progress: Progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
        )
        self.overall = self.progress.add_task("[bold]preparing", total=None, count="")
        self.tasks: dict[str, Any] = {}

    def __enter__(self) -> LiveView:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def say(self, text: str) -> None:
        """Print one line above the bars."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def finished(self, output: SnakemakeOutput, job: RunningJob) -> None:
        """Report a finished job; the bars show it already."""

    def refresh(self, output: SnakemakeOutput, steps: dict) -> None:
        """Redraw."""
        if output.total is not None:
            self.progress.update(
                self.overall,
                description="[bold]all steps",
                completed=output.done,
                total=output.total,
                count=f"{output.done} of {output.total}",
            )
        for identity in [item for item in self.tasks if item not in output.running]:
            self.progress.remove_task(self.tasks.pop(identity))
        for identity, job in list(output.running.items()):
            if identity not in self.tasks:
                self.tasks[identity] = self.progress.add_task(f"  {job.title}", total=None, count="")
            state = steps.get((job.rule, tuple(sorted(job.wildcards.items()))))
            if state:
                total = state["total"]
                of = f" of {total:g}" if total else ""
                count = f"{state['description']} {state['done']:g}{of}".strip()
                count += f" ({state['pace']})" if state.get("pace") else ""
                self.progress.update(self.tasks[identity], completed=state["done"], total=total, count=count)


def view() -> PlainView | LiveView:
    """Bars on a terminal, plain lines elsewhere."""
    return LiveView() if sys.stdout.isatty() else PlainView(sys.stdout)


def printer() -> tuple[int, Callable[..., None]]:
    """Give the terminal's width (80 where there is none) and a function that prints one paragraph wrapped to it.

    The function takes the text, `indent` (columns), `style` (of rich) and `hang` (more columns from the second line
    on). Words that are too long, such as addresses and paths, stay whole, so that they can be copied.
    """
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, emoji=False)

    def say(text: str = "", indent: int = 0, style: str = "", hang: int = 0) -> None:
        first, rest = " " * indent, " " * (indent + hang)
        lines = textwrap.wrap(
            text,
            console.width,
            initial_indent=first,
            subsequent_indent=rest,
            break_on_hyphens=False,
            break_long_words=False,
        )
        for line in lines or [""]:
            console.print(Text(line, style=style), soft_wrap=True)

    return console.width, say
