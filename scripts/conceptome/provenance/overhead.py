"""What a finished run spent on Snakemake and on starting jobs: the time in which a job could have run, from records.

A job is ready when all that it reads is there and enough cores are free; it begins when its record says so. What lies
between is the scheduler, the start of a process and the libraries that a script loads before its record. Cores that are
idle because no job is ready are no overhead: that is the shape of the workflow.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from conceptome.errors import DataError
from conceptome.files import read_json
from conceptome.provenance.folder import ProvenanceFolder

# A job that begins this long after another ended may have taken its core, however the two clocks were rounded.
TICK = 1e-3


@dataclass(frozen=True)
class Overhead:
    """Core seconds of one run.

    Attributes
    ----------
    workflow
        The run.
    jobs, cores
        Jobs that ended well; largest number of threads that ran at one time.
    wall_seconds
        From the start of the run to its end.
    working
        In jobs: Σ (end − start) · threads.
    first
        Before the first job: the configuration is read, the graph of jobs is built.
    starting
        Between the moment at which a job was ready and its start, for all but the first.
    last
        After the last job.
    waiting
        The rest: no job was ready.
    """

    workflow: str
    jobs: int
    cores: int
    wall_seconds: float
    working: float
    first: float
    starting: float
    last: float
    waiting: float

    @property
    def share(self) -> float:
        """Overhead as a share of the cores' time."""
        return (self.first + self.starting + self.last) / (self.cores * self.wall_seconds)

    def __str__(self) -> str:
        whole = self.cores * self.wall_seconds
        parts = (
            ("in jobs", self.working),
            ("before the first job", self.first),
            ("starting jobs", self.starting),
            ("after the last job", self.last),
            ("no job was ready", self.waiting),
        )
        head = (
            f"run {self.workflow}: {self.jobs} jobs in {self.wall_seconds:.0f} s on {self.cores} cores; "
            f"Snakemake and start-up: {100 * self.share:.1f} % of the cores' time"
        )
        return "\n".join(
            [head, *(f"  {name:22} {value:8.0f} s  {100 * value / whole:5.1f} %" for name, value in parts)]
        )


def overhead(results: str | Path, workflow: str | None = None) -> Overhead:
    """Measure one run, or the newest that ended well.

    Raises
    ------
    DataError
        No such run has ended well, or it has no records.
    """
    folder = ProvenanceFolder(results)
    runs = [read_json(path) for path in sorted(folder.workflows.glob("*.json"))]
    runs = [run for run in runs if run.get("exit_code") == 0 and workflow in (None, run["id"])]
    if not runs:
        raise DataError(
            f"{results} holds no run{f' {workflow}' if workflow else ''} that ended well: `conceptome run` makes one"
        )
    run = runs[-1]
    records = [read_json(path) for path in sorted(folder.records.glob("*.final.json"))]
    return measure(run, [each for each in records if each["workflow"] == run["id"] and each["status"] == "success"])


def measure(run: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> Overhead:
    """Measure a run of which these are the jobs' final records.

    Raises
    ------
    DataError
        There are no jobs.
    """
    if not records:
        raise DataError(f"run {run['id']} has no records of jobs")
    jobs = sorted(records, key=lambda record: record["started"])
    made = {item["path"]: job["ended"] for job in jobs for item in job["outputs"]}
    changes = sorted(
        [(job["ended"], -job["threads"]) for job in jobs] + [(job["started"], job["threads"]) for job in jobs]
    )
    running, busy = 0, [(run["started"], 0)]
    for time, change in changes:
        running += change
        busy.append((time, running))
    cores = max(count for _, count in busy)
    starting = first = 0.0
    for job in jobs:
        there = max((made.get(item["path"], run["started"]) for item in job["inputs"]), default=run["started"])
        # The last moment at which too many cores were taken for this job.
        free = run["started"]
        for (_, count), (until, _) in itertools.pairwise(busy):
            if until > job["started"] + TICK:
                break
            if count + job["threads"] > cores:
                free = until
        delay = max(0.0, job["started"] - max(there, free, run["started"])) * job["threads"]
        if max(there, free) <= run["started"]:
            first += delay
        else:
            starting += delay
    wall = run["ended"] - run["started"]
    working = sum((job["ended"] - job["started"]) * job["threads"] for job in jobs)
    last = (run["ended"] - max(job["ended"] for job in jobs)) * cores
    return Overhead(
        workflow=run["id"],
        jobs=len(jobs),
        cores=cores,
        wall_seconds=wall,
        working=working,
        first=first,
        starting=starting,
        last=last,
        waiting=cores * wall - working - first - starting - last,
    )


def command(arguments: argparse.Namespace) -> int:
    """Print what `conceptome overhead` is asked for; gives the exit code."""
    found = overhead(arguments.results, arguments.run)
    print(json.dumps(asdict(found) | {"share": found.share}) if arguments.json else found)
    return 0
