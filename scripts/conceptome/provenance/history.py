"""What the records say, read together: which job wrote a file, and from what. Every audit command asks here."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from conceptome.config.evidence import FIGURES
from conceptome.errors import DataError
from conceptome.files import read_json
from conceptome.provenance import ledger
from conceptome.provenance.folder import ProvenanceFolder

# What every record has had since the first version, also that of a job that never ended.
ESSENTIAL = ("job", "rule", "wildcards", "started")


@dataclass(frozen=True)
class Artifact:
    """One file as a record names it: path as recorded, sha256, size in bytes, IANA media type."""

    name: str
    path: str
    sha256: str
    size: int
    media_type: str


@dataclass(frozen=True)
class Job:
    """One job: its record (the start record where it was killed) and the file that holds it."""

    record: Mapping[str, Any]
    path: Path

    @property
    def name(self) -> str:
        """Name of the job, unique within a results folder; names sort by time."""
        return self.record["job"]

    @property
    def rule(self) -> str:
        """The rule that it ran."""
        return self.record["rule"]

    @property
    def status(self) -> str:
        """One of success, failure, interrupted, crashed (it has no final record)."""
        return self.record.get("status", "crashed")

    @cached_property
    def inputs(self) -> list[Artifact]:
        """What it read, one per file."""
        return [_artifact(item) for item in self.record.get("inputs") or []]

    @cached_property
    def outputs(self) -> list[Artifact]:
        """What it wrote, one per file."""
        return [_artifact(item) for item in self.record.get("outputs") or []]

    @property
    def target(self) -> str:
        """An output to ask Snakemake for this job by: files of a folder that it writes as a whole are none."""
        return next((item for item in self.outputs if item.name == "listing"), self.outputs[0]).path

    @property
    def title(self) -> str:
        """Rule and wildcards, for people."""
        wildcards = ", ".join(f"{key}={value}" for key, value in self.record["wildcards"].items())
        return f"{self.rule} ({wildcards})" if wildcards else self.rule


def _artifact(item: Mapping[str, Any]) -> Artifact:
    kind = item.get("media_type", "application/octet-stream")
    return Artifact(item["name"], item["path"], item["sha256"], item["size"], kind)


class History:
    """The records of a results folder.

    Parameters
    ----------
    results
        The results folder; it may be a copy that lies elsewhere than where the run happened.

    Raises
    ------
    DataError
        There is no such folder, it holds no records, or a record is no JSON.
    """

    def __init__(self, results: str | os.PathLike):
        self.folder = ProvenanceFolder(results)
        if not self.folder.records.is_dir():
            raise DataError(f"{results}: no records of a run here; name the folder with --results")
        self.jobs: dict[str, Job] = {}
        order = self._order()
        # By the ledger first, which a clock that was set back does not confuse, then by name, that is by time.
        for name, (start, final) in sorted(
            self.folder.jobs().items(), key=lambda item: (order.get(item[0], len(order)), item[0])
        ):
            path = final or start
            try:
                record = read_json(path)
                if lacking := [key for key in ESSENTIAL if key not in record]:
                    raise ValueError(f"it lacks {', '.join(lacking)}")
                self.jobs[name] = Job(record, path)
            except (TypeError, ValueError) as error:
                raise DataError(f"{path}: not a record ({error}): it was altered") from None
        # Of all records, also after `only`: a file has one address, whatever part of the history an export tells.
        self.identity = next(iter(self.jobs), "")

    def only(self, jobs: Iterable[Job]) -> History:
        """A history of the same folder that knows no other jobs."""
        part, names = copy.copy(self), {job.name for job in jobs}
        for name in ("recorded_results", "outputs", "_writers"):
            part.__dict__.pop(name, None)
        part.jobs = {name: job for name, job in self.jobs.items() if name in names}
        return part

    def _order(self) -> dict[str, int]:
        """Job → the number of the ledger entry that names it; nothing where the ledger cannot be read."""
        try:
            entries = ledger.entries(self.folder.results)
            return {
                item["job"]: number
                for number, entry in enumerate(entries)
                for kind in ("crashed", "records")
                for item in entry[kind]
            }
        except (DataError, KeyError, TypeError):
            return {}

    @cached_property
    def recorded_results(self) -> str:
        """The results folder as the records spell it (relative to the folder that the run worked in)."""
        named = [job.record["results"] for job in self.jobs.values() if "results" in job.record]
        # Version 1 of the record did not name it, but the log, which lies in it.
        logs = [log for job in self.jobs.values() if (log := job.record.get("log")) and "/logs/" in log]
        return [str(self.folder.results), *(log.partition("/logs/")[0] for log in logs), *named][-1]

    def locate(self, path: str) -> Path:
        """Where a recorded path lies now: below this results folder, or beside it as in the run's working folder."""
        recorded = Path(self.recorded_results)
        if Path(path).is_relative_to(recorded):
            return self.folder.results / Path(path).relative_to(recorded)
        if recorded.is_absolute() or Path(path).is_absolute():
            return Path(path)
        here = self.folder.results.absolute()
        for _ in recorded.parts:
            here = here.parent
        return here / path

    def spell(self, path: str | os.PathLike) -> str:
        """Spell a path as records do: the inverse of `locate` for files of the results folder."""
        whole, results = Path(os.path.abspath(path)), Path(os.path.abspath(self.folder.results))
        if whole.is_relative_to(results):
            return (Path(self.recorded_results) / whole.relative_to(results)).as_posix()
        return Path(path).as_posix()

    @cached_property
    def outputs(self) -> dict[str, tuple[Job, Artifact]]:
        """Each path that a successful job wrote, with the last such job: what should lie there now."""
        return {item.path: (job, item) for job in self.jobs.values() if job.status == "success" for item in job.outputs}

    @cached_property
    def _writers(self) -> dict[tuple[str, str], list[Job]]:
        found: dict[tuple[str, str], list[Job]] = {}
        for job in self.jobs.values():
            if job.status == "success":
                for item in job.outputs:
                    found.setdefault((item.path, item.sha256), []).append(job)
        return found

    def producer(self, item: Artifact, before: Job | None = None) -> Job | None:
        """The last job (that ended before `before` began) which wrote these bytes to this path; None: a raw input."""
        writers = self._writers.get((item.path, item.sha256), [])
        earlier = [job for job in writers if before is None or job.record["ended"] <= before.record["started"]]
        # With a clock set back no writer may look early enough: then any writer of these bytes tells more than none.
        return (earlier or writers or [None])[-1]

    def holders(self, sha256: str) -> list[tuple[Job, Artifact]]:
        """Every (job, output) with these bytes, whatever the path: for files that were copied or mailed."""
        return [
            (job, item)
            for job in self.jobs.values()
            if job.status == "success"
            for item in job.outputs
            if item.sha256 == sha256
        ]

    def with_recipe(self, recipe: str) -> list[Job]:
        """Jobs with this recipe digest, in order of time."""
        return [job for job in self.jobs.values() if job.record.get("recipe") == recipe]

    def chain(self, job: Job) -> list[Job]:
        """The job and all jobs that its inputs come from, each after those it read from; no job twice."""
        order: dict[str, Job] = {}
        self._visit(job, order)
        return list(order.values())

    def _visit(self, job: Job, order: dict[str, Job]) -> None:
        if job.name in order:
            return
        for source in self.sources(job):
            self._visit(source, order)
        order[job.name] = job

    def sources(self, job: Job) -> Iterator[Job]:
        """Jobs whose outputs this one read, each once."""
        seen: set[str] = set()
        for item in job.inputs:
            source = self.producer(item, job)
            if source is not None and source.name != job.name and source.name not in seen:
                seen.add(source.name)
                yield source

    def installed(self, job: Job) -> dict[str, tuple[str, str | None]] | None:
        """Distributions of a job's environment: name → (version, sha256 of its RECORD); None where no list is kept."""
        try:
            content = read_json(self.folder.environments / f"{job.record.get('environment')}.json")
        except (OSError, ValueError):
            return None
        if isinstance(content, Mapping):
            return {item["name"]: (item["version"], item.get("record")) for item in content["distributions"]}
        # Version 1 of the record listed name==version.
        return {name: (version, None) for name, _, version in (item.partition("==") for item in content)}

    def workflows(self) -> dict[str | None, list[Job]]:
        """Jobs by the workflow run they belong to, in order of time."""
        found: dict[str | None, list[Job]] = {}
        for job in self.jobs.values():
            found.setdefault(job.record.get("workflow"), []).append(job)
        return found

    def find(self, target: str) -> tuple[Job, Artifact]:
        """Find the job that wrote what `target` names, and the file meant.

        Parameters
        ----------
        target
            A path of an output, or a figure: F3 (its number in `conceptome.config.FIGURES`) or selectivity.

        Raises
        ------
        DataError
            No successful job wrote it.
        """
        path = self.spell(target)
        if path in self.outputs:
            return self.outputs[path]
        name = target
        if target[:1] in "Ff" and target[1:].isdigit() and 0 < int(target[1:]) <= len(FIGURES):
            name = FIGURES[int(target[1:]) - 1]
        found = [pair for path, pair in self.outputs.items() if path.endswith(f"/figures/{name}/{name}.svg")]
        if not found:
            raise DataError(
                f"{target}: no record of {self.folder.results} names it: give a figure (F1 to F{len(FIGURES)}, "
                f"{', '.join(FIGURES)}) or the path of a file that a job wrote"
            )
        return max(found, key=lambda pair: pair[0].name)
