"""What the exports share: names of files and jobs that hold anywhere, the sources, and the code as it ran."""

from __future__ import annotations

import io
import subprocess
import tarfile
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from conceptome.config.base import validate
from conceptome.errors import DataError
from conceptome.files import read_json
from conceptome.provenance.closure import repository
from conceptome.provenance.history import Artifact, History, Job

# What it takes to run again, beside LICENSE and CITATION.cff.
CODE = (
    "Makefile", "README.md", "Snakefile", "config", "envs", "kernels", "pyproject.toml", "requirements.lock", "rules",
    "scripts",
)  # fmt: skip


def base(history: History) -> str:
    """The arcp URI of a results folder: an identity that does not depend on where the folder lies.

    Source: Soiland-Reyes, The Archive and Package (arcp) URI scheme, draft-soilandreyes-arcp-03.
    """
    return f"arcp://uuid,{uuid.uuid5(uuid.NAMESPACE_URL, history.identity)}/"


def below_results(history: History, path: str) -> str:
    """Spell a recorded path with the results folder called results/, wherever and however it was configured."""
    recorded = Path(history.recorded_results)
    if Path(path).is_relative_to(recorded):
        return (Path("results") / Path(path).relative_to(recorded)).as_posix()
    return path.lstrip("/")


def address(history: History, item: Artifact) -> str:
    """URI of one version of a file: its path, and its digest where another version lies there now."""
    current = history.outputs.get(item.path)
    version = "" if current and current[1].sha256 == item.sha256 else f"?sha256={item.sha256}"
    return f"{base(history)}{quote(below_results(history, item.path))}{version}"


def checked(history: History, item: Artifact) -> Path:
    """Give the file that a record describes, after comparing its bytes.

    Raises
    ------
    DataError
        It is not there or was changed since it was recorded.
    """
    path = history.locate(item.path)
    if not path.is_file():
        raise DataError(f"{path}: recorded, but missing: run the workflow again before exporting")
    found = history.folder.sha256(path)
    if found != item.sha256:
        raise DataError(f"{path}: changed since it was recorded (sha256 {found[:12]}…, recorded {item.sha256[:12]}…)")
    return path


def iso(seconds: float) -> str:
    """ISO 8601, UTC, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True)
class Source:
    """A published file: its address, and what config/sources.yaml said of it when it was retrieved."""

    address: str
    name: str
    sha256: str
    size: int
    licence: str
    citation: str
    description: str
    stand_in: str | None
    redistribute: bool = True


def sources(job: Job) -> Iterator[Source]:
    """The published files that a job retrieved; for all but the rules of retrieval, none.

    Raises
    ------
    ConfigError
        The entry in the record is none of config/sources.yaml: it was altered.
    """
    from conceptome.sources.entries import SourceEntry

    entry = (job.record.get("parameters") or {}).get("entry")
    if not isinstance(entry, Mapping):
        return
    read = validate(SourceEntry, dict(entry), f"{job.path}, parameter entry")
    for name, content in sorted(read.contents().items()):
        # A package URL (https://github.com/package-url/purl-spec) where there is no other address.
        uri = content.url or f"pkg:pypi/{read.package.name}@{read.package.version}#{quote(content.member)}"
        yield Source(
            uri, content.published_name(name), content.sha256, content.size,
            read.licence, read.citation, read.description, read.stand_in, read.redistribute,
        )  # fmt: skip


def withheld(history: History) -> dict[str, list[Source]]:
    """Outputs that show samples which may not be passed on: path as recorded → the sources whose terms forbid it.

    These are the tables of `SHOWS_SAMPLES` and the images of the figures of that name, where a file that was retrieved
    with `redistribute: false` is among what they rest on. Numbers drawn in such a figure stay.
    """
    from conceptome.measures.registry import SHOWS_SAMPLES

    tables = {f"{table}.parquet" for names in SHOWS_SAMPLES.values() for table in names}
    figures = {f"figure_{name}" for name in SHOWS_SAMPLES}
    found: dict[str, list[Source]] = {}
    for path, (job, item) in history.outputs.items():
        shown = item.media_type.startswith("image/") if job.rule in figures else Path(path).name in tables
        if shown:
            kept = [source for each in history.chain(job) for source in sources(each) if not source.redistribute]
            if kept:
                found[path] = kept
    return found


def last_success(history: History) -> Job:
    """The job that finished last.

    Raises
    ------
    DataError
        None succeeded.
    """
    done = [job for job in history.jobs.values() if job.status == "success"]
    if not done:
        raise DataError(f"{history.folder.results}: no job succeeded yet: nothing to export")
    return done[-1]


def facts(history: History, workflow: str | None) -> dict[str, Any]:
    """What the front door wrote down about a workflow run; empty where Snakemake was started by itself."""
    path = history.folder.workflows / f"{workflow}.json"
    return read_json(path) if workflow and path.is_file() else {}


def code_files(job: Job) -> list[str]:
    """Files of the code that a job reached."""
    return list((job.record.get("code") or {}).get("files") or [])


def distributions(history: History, job: Job) -> dict[str, str]:
    """Name → version of what was installed when a job ran; empty where its list is gone."""
    path = history.folder.environments / f"{job.record.get('environment')}.json"
    if not path.is_file():
        return {}
    read = read_json(path)
    if isinstance(read, dict):
        return {item["name"]: item["version"] for item in read["distributions"]}
    return dict(item.split("==", 1) for item in read)  # schema version 1


def repository_files(commit: str | None) -> dict[str, bytes]:
    """Read the code, configuration and lock as they were at a commit (None: as they are; there was no git).

    Raises
    ------
    DataError
        The commit is not in this checkout.
    """
    root = repository()
    if commit is None:
        found = (file for path in CODE for file in _files(root / path))
        return {file.relative_to(root).as_posix(): file.read_bytes() for file in found}
    command = ["git", "-C", str(root), "archive", "--format=tar", commit, "--", *CODE]
    done = subprocess.run(command, capture_output=True)
    if done.returncode:
        raise DataError(f"commit {commit[:12]} of the run is not in {root}: fetch it (git fetch), then export again")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        return {item.name: archive.extractfile(item).read() for item in archive if item.isfile()}


def configuration(facts: Mapping[str, Any]) -> dict[str, Path]:
    """Configuration and study files of a run: name in an export → where they lie. None where only Snakemake ran."""
    root = repository()
    studies = [f"config/studies/{study}.yaml" for study in facts.get("studies", [])]
    paths = [root / name for name in ([facts["configuration"]] if "configuration" in facts else []) + studies]
    return {
        path.relative_to(root).as_posix() if path.is_relative_to(root) else f"config/{path.name}": path
        for path in paths
    }


def untracked(facts: Mapping[str, Any], known: Iterable[str]) -> dict[str, Path]:
    """The files of `configuration` that are not among the `known` names, those of the commit."""
    known = set(known)
    return {name: path for name, path in configuration(facts).items() if name not in known and path.is_file()}


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    return [path] if path.is_file() else []
