"""`conceptome reproduce`: run the chain of a file again, in a clean folder, from raw bytes, and compare every output.

Nothing of the results folder is trusted but its records: the code is the recorded commit (with the recorded difference
to it), the packages are the recorded ones or those of the recorded lock, the configuration is the one the run resolved
to, and sources are retrieved anew.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from io import BytesIO
from pathlib import Path
from typing import Any

from conceptome.errors import ConceptomeError, DataError
from conceptome.files import read_json, sha256_file
from conceptome.provenance.comparison import TOLERANCE, compare
from conceptome.provenance.configuration import kept, write_as_files
from conceptome.provenance.environment import RECORDED_VARIABLES
from conceptome.provenance.environment import environment as describe_environment
from conceptome.provenance.folder import RESULTS_VARIABLE, ProvenanceFolder, digest, new_workflow
from conceptome.provenance.history import Artifact, History, Job
from conceptome.provenance.run import (
    DEFAULT,
    INTERRUPTED,
    Choice,
    Request,
    checkout,
    environment,
    snakemake_command,
    watch,
)
from conceptome.sources import mirrors
from conceptome.sources.entries import MIRROR_VARIABLE

_HEX = re.compile(r"[0-9a-f]{40,64}")
# The checkout itself: its code is compared file by file, and its RECORD holds the path of its folder.
OURS = "conceptome"
NEEDED = ("results", "code", "commit", "environment", "lock", "machine", "blas", "kernels")


def _features(record: Mapping[str, Any]) -> Any:
    return sorted(record["machine"]["features"])


def _library(record: Mapping[str, Any]) -> Any:
    return record["machine"]["system"].rpartition("(")[2].rstrip(")")


# Why bytes may differ though the recipe is the same: what is compared, and what it does. Without one of these, a byte
# that differs is a failure.
REASONS: dict[str, tuple[Callable[[Mapping[str, Any]], Any], str]] = {
    "processor": (_features, "kernels and linear algebra choose other instructions, which add in another order"),
    "kernels": (lambda record: record["kernels"], "compiled by another compiler, or another variant of them ran"),
    "linear algebra": (lambda record: record["blas"], "another library or architecture adds in another order"),
    "C library": (_library, "its mathematical functions may round the last digit otherwise"),
    "Python": (lambda record: record["python"], "another interpreter"),
}


def command(arguments: argparse.Namespace) -> int:
    """Run `conceptome reproduce`; gives the exit code."""
    with redirect_stdout(sys.stderr):
        report = reproduce(arguments.results, arguments.target, arguments.directory, arguments.cores)
    if arguments.json:
        print(json.dumps(report, ensure_ascii=False))
    else:
        show(report)
    return 0 if report["clean"] else 1


def reproduce(
    results: str | os.PathLike, target: str, directory: str | None = None, cores: str = "all"
) -> dict[str, Any]:
    """Run the chain of one file again and compare every output of every job in it.

    Parameters
    ----------
    results
        The results folder.
    target
        A figure (F3) or the path of an output.
    directory
        New or empty folder to work in, which is kept; None: a temporary one.
    cores
        Number of cores, or "all".

    Returns
    -------
    The report: clean, findings, files (path, rule, verdict, sha256 recorded and reproduced, largest difference,
    reason), commit, environment, reasons, seconds.

    Raises
    ------
    ConceptomeError
        The records do not say enough, code, packages or raw bytes cannot be had, or the run fails.
    """
    started = time.monotonic()
    history = History(results)
    job, item = history.find(target)
    chain = history.chain(job)
    _check_records(chain)
    if Path(history.recorded_results).is_absolute() or ".." in Path(history.recorded_results).parts:
        raise DataError(
            f"the run wrote to {history.recorded_results}: only a results folder below the folder of a run moves"
        )
    raw = _raw(history, chain)
    configuration = kept(history.folder, job.record["workflow"])
    newest = max(chain, key=lambda one: one.record["started"])
    with _place(directory) as place:
        code, work = place / "code", place / "work"
        commit = _check_out(history, newest, code)
        python, packages = _interpreter(history, chain, newest, code, place)
        _check_code(chain, newest, code, python)
        work.mkdir()
        copied = [_copy(history, raw_item, work, place) for raw_item in raw]
        write_as_files(configuration, code / "config")
        _run(job.target, newest, code, work, python, cores, history.recorded_results)
        again = History(work / history.recorded_results)
        files, reasons = _compare(history, chain, again, work)
    findings = [f"{file['path']}: {file['verdict']}: {file['detail']}" for file in files if not _good(file)]
    return {
        "command": "reproduce",
        "clean": not findings,
        "findings": findings,
        "target": item.path,
        "job": job.name,
        "jobs": len(chain),
        "commit": commit,
        "packages": packages,
        "raw": copied,
        "tolerance": TOLERANCE,
        "reasons": reasons,
        "files": files,
        "directory": str(place) if directory else None,
        "seconds": round(time.monotonic() - started, 1),
    }


def _good(file: Mapping[str, Any]) -> bool:
    return file["verdict"] in ("identical", "within tolerance")


def show(report: Mapping[str, Any]) -> None:
    """Print the report for people."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    counts: dict[str, int] = {}
    for file in report["files"]:
        counts[file["verdict"]] = counts.get(file["verdict"], 0) + 1
        if file["verdict"] != "identical":
            style = "yellow" if _good(file) else "bold red"
            console.print(f"{file['verdict']}: {file['path']}", style=style, markup=False)
            console.print(f"  {file['detail']}", markup=False)
    for name, why in report["reasons"].items():
        console.print(f"{name}: {why}", markup=False)
    console.print(f"code: commit {report['commit']}", markup=False)
    console.print(f"packages: {report['packages']}", markup=False)
    if report["directory"]:
        console.print(f"kept: {report['directory']}", markup=False)
    sums = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    console.print(
        f"{report['target']} {'comes out again' if report['clean'] else 'does NOT come out again'}: "
        f"{report['jobs']} jobs, {len(report['files'])} files: {sums} ({report['seconds']:.0f} s)",
        style="green" if report["clean"] else "bold red",
        markup=False,
    )


def _check_records(chain: list[Job]) -> None:
    for job in chain:
        lacking = [key for key in NEEDED if key not in job.record]
        if lacking:
            raise DataError(
                f"{job.path}: records of an earlier version do not say enough ({', '.join(lacking)}): run again"
            )


def _raw(history: History, chain: list[Job]) -> list[Artifact]:
    """Give the inputs that no job wrote, each once: raw bytes."""
    found: dict[str, Artifact] = {}
    for job in chain:
        for item in job.inputs:
            if history.producer(item, job) is not None:
                continue
            if Path(item.path).is_relative_to(history.recorded_results):
                raise DataError(
                    f"{item.path}: read by {job.title}, and no record says who wrote these bytes (sha256 "
                    f"{item.sha256}): the chain is broken; `conceptome verify` says more"
                )
            if found.setdefault(item.path, item).sha256 != item.sha256:
                raise DataError(f"{item.path}: raw input that changed between the jobs of this chain: run them again")
    return list(found.values())


@contextmanager
def _place(directory: str | None) -> Iterator[Path]:
    """Give the folder to work in; a temporary one goes at the end."""
    if directory is not None:
        place = Path(directory).resolve()
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise DataError(f"--directory {directory} is not empty: name a new folder")
        place.mkdir(parents=True, exist_ok=True)
        yield place
        return
    place = Path(tempfile.mkdtemp(prefix="conceptome-reproduce-")).resolve()
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _check_out(history: History, newest: Job, code: Path) -> str:
    """Write the recorded commit, with the recorded difference to it, into the folder `code`; gives its name."""
    commit, patch = newest.record["commit"]["id"], newest.record["commit"]["diff"]
    if commit is None:
        raise DataError(
            f"{newest.title}: its record names no commit (it ran outside of a git checkout): its code cannot be had"
        )
    root = checkout()
    if not _HEX.fullmatch(commit) or _git(root, "cat-file", "-e", f"{commit}^{{commit}}").returncode:
        raise DataError(
            f"commit {commit}, which made {newest.title}, is not in the repository {root}: fetch it, or go to the "
            "checkout that has it"
        )
    archive = _git(root, "archive", "--format=tar", commit)
    with tarfile.open(fileobj=BytesIO(archive.stdout)) as tar:
        tar.extractall(code, filter="data")
    if patch is None:
        if newest.record["commit"]["dirty"]:
            raise DataError(
                f"{newest.title} ran with changes to commit {commit} that were not kept: its code cannot be had"
            )
        return commit
    path = history.folder.diffs / f"{patch}.diff"
    if not _HEX.fullmatch(patch) or not path.is_file() or sha256_file(path) != patch:
        raise DataError(f"{path}: the recorded difference to commit {commit} is missing or was altered")
    # Were the clean folder inside another repository, git would take it for a part of that one.
    variables = {**os.environ, "GIT_CEILING_DIRECTORIES": str(code.parent)}
    done = subprocess.run(
        ["git", "apply", str(path.resolve())], cwd=code, env=variables, capture_output=True, text=True
    )
    if done.returncode:
        raise DataError(f"{path} cannot be applied to commit {commit}: {_last(done.stderr)}")
    return f"{commit} and the recorded difference {patch[:12]}"


def _git(root: Path, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run(["git", "-C", str(root), *words], capture_output=True)


def _last(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no reason given")


def _check_code(chain: list[Job], newest: Job, code: Path, python: str) -> None:
    """Make sure that the checkout gives the code that ran each job.

    Raises
    ------
    DataError
        It does not for one of them: several versions of the code made the chain, or code outside of the commit.
    """
    names = sorted({name for job in chain for name in job.record["code"]["files"]})
    # The checkout's own closure module: what digests mean is part of the recorded code.
    program = (
        "import json, sys; from conceptome.provenance.closure import file_digests; "
        "json.dump(file_digests(json.load(sys.stdin), sys.argv[1]), sys.stdout)"
    )
    done = subprocess.run(
        [python, "-c", program, str(code)],
        input=json.dumps(names),
        env={**os.environ, "PYTHONPATH": str(code / "scripts")},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise DataError(f"commit {newest.record['commit']['id']} cannot tell digests of its code: {_last(done.stderr)}")
    there = json.loads(done.stdout)
    for job in chain:
        for name, value in job.record["code"]["files"].items():
            if there[name] != value:
                own, last = (_spell_commit(one) for one in (job, newest))
                raise DataError(
                    f"{job.title} was made by {own}, and {newest.title} by {last}, which has "
                    f"{'no' if there[name] is None else 'another'} {name}: no single version of the code made this "
                    "chain; run it again with one"
                )


def _spell_commit(job: Job) -> str:
    commit = job.record["commit"]
    return f"commit {str(commit['id'])[:12]}{' with changes' if commit['dirty'] else ''}"


def _interpreter(history: History, chain: list[Job], newest: Job, code: Path, place: Path) -> tuple[str, str]:
    """Give a Python with the recorded packages, and how it was come by.

    Raises
    ------
    DataError
        The running packages are others, and the recorded lock is not that of the commit; or pip fails.
    """
    recorded = _packages(history.folder, newest.record["environment"])
    here = ProvenanceFolder(place / "environment-here")
    running = _packages(here, describe_environment(here))
    differing = sorted(name for name in recorded.keys() | running.keys() if recorded.get(name) != running.get(name))
    others = sorted({job.title for job in chain if _packages(history.folder, job.record["environment"]) != recorded})
    note = f"; {', '.join(others)} had been run with others" if others else ""
    if not differing:
        return sys.executable, f"those that are installed here: equal to the recorded ones{note}"
    lock = code / "requirements.lock"
    if not lock.is_file() or sha256_file(lock) != newest.record["lock"]:
        raise DataError(
            f"the packages installed here are not the recorded ones ({', '.join(differing[:5])}"
            f"{' and more' if len(differing) > 5 else ''}), and requirements.lock of commit "
            f"{newest.record['commit']['id']} is not the recorded lock: nothing to install them from"
        )
    print(f"packages differ ({len(differing)}): setting up those of the recorded lock, which takes minutes", flush=True)
    variables = {
        **os.environ,
        "PYTHON": getattr(sys, "_base_executable", sys.executable),
        "VENV": str(place / "environment"),
    }
    done = subprocess.run(
        ["bash", "scripts/setup_environment.sh"],
        cwd=code,
        env=variables,
        stdout=sys.stderr,
        stderr=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        raise DataError(f"the packages of the recorded lock cannot be installed: {_last(done.stderr)}")
    return str(place / "environment/bin/python"), f"those of the recorded lock, newly installed{note}"


def _packages(folder: ProvenanceFolder, key: str) -> dict[str, tuple]:
    """Read a list of distributions: name → (version, sha256 of RECORD), Python among them."""
    path = folder.environments / f"{key}.json"
    if not _HEX.fullmatch(key) or not path.is_file():
        raise DataError(f"{path}: the list of installed packages that records name is not there")
    content = read_json(path)
    if digest(content) != key:
        raise DataError(f"{path}: not the list of packages that its name stands for: it was altered")
    found = {item["name"]: (item["version"], item["record"]) for item in content["distributions"]}
    found.pop(OURS, None)
    return {**found, "Python": (content["python"],)}


def _copy(history: History, item: Artifact, work: Path, place: Path) -> dict[str, str]:
    """Copy a raw input of the user's own; one that is named by its absolute path is read where it lies."""
    source = history.locate(item.path)
    if not source.is_file():
        raise DataError(f"{source}: raw input that is no longer there: put the file with sha256 {item.sha256} back")
    found = sha256_file(source)
    if found != item.sha256:
        raise DataError(f"{source}: raw input that is another file now (sha256 {found}, recorded {item.sha256})")
    if Path(item.path).is_absolute():
        return {"path": item.path, "sha256": found, "how": "read in place: the configuration names its absolute path"}
    there = (work / item.path).resolve()
    if not there.is_relative_to(place) or there.is_relative_to(place / "code"):
        raise DataError(f"{item.path}: raw input outside of the folder of the run: name it by its absolute path")
    there.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, there)
    return {"path": item.path, "sha256": found, "how": "copied"}


def _run(target: str, newest: Job, code: Path, work: Path, python: str, cores: str, results: str) -> None:
    """Have Snakemake make the target.

    Raises
    ------
    ConceptomeError
        It could not.
    """
    workflow = new_workflow()
    variables = environment(code, workflow)
    for name in RECORDED_VARIABLES:
        variables.pop(name, None)
    variables |= newest.record["variables"]
    variables[MIRROR_VARIABLE] = os.pathsep.join(str(folder.resolve()) for folder in mirrors())
    # The run is nobody's: no server hears of it (--no-hooks below: no ingest, no signature).
    for name in ("MLFLOW_TRACKING_URI", RESULTS_VARIABLE):
        variables.pop(name, None)
    request = Request(cores=cores, directory=str(work), extra=("--no-hooks", target))
    words = [python, *snakemake_command(code, Choice(Path(DEFAULT), "recorded"), request)[1:]]
    output, status = watch(words, variables, ProvenanceFolder(work / results), workflow)
    if status == INTERRUPTED:
        raise KeyboardInterrupt
    if status:
        problem = (output.errors or [_last("\n".join(output.last))])[0].removeprefix("error: ")
        raise ConceptomeError(f"the run again failed: {problem} (with --directory DIR its logs are kept)")


def _compare(
    history: History, chain: list[Job], again: History, work: Path
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Compare each output of each job with what came out again; gives the files and the reasons to differ that hold."""
    files: list[dict[str, Any]] = []
    reasons: dict[str, dict[str, str]] = {}
    for job in chain:
        own = {name: why for source in history.sources(job) for name, why in reasons[source.name].items()}
        reasons[job.name] = own
        for item in job.outputs:
            other, made = again.outputs.get(item.path, (None, None))
            if made is None and job.record["parameters"].get("temporary"):
                continue  # a part of an embedding: cut otherwise, it gives the same whole
            if other is not None:
                own.update(_why(job.record, other.record))
            files.append(
                {"path": item.path, "rule": job.rule, "recorded": item.sha256, **_judge(history, item, made, work, own)}
            )
    return files, {name: why for job in chain for name, why in reasons[job.name].items()}


def _why(recorded: Mapping[str, Any], again: Mapping[str, Any]) -> dict[str, str]:
    """Give the entries of `REASONS` that hold between two records."""
    found = {}
    for name, (value, what) in REASONS.items():
        one, two = value(recorded), value(again)
        if one != two:
            if name == "processor":
                one, two = recorded["machine"]["cpu"], again["machine"]["cpu"]
            found[name] = f"{_short(one)} then, {_short(two)} now: {what}"
    return found


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else f"{text[:117]}…"


def _judge(
    history: History, item: Artifact, made: Artifact | None, work: Path, reasons: Mapping[str, str]
) -> dict[str, Any]:
    """Judge one file: identical, within tolerance, altered, different or not made."""
    result = {"reproduced": made.sha256 if made else None, "largest_difference": None, "reason": None}
    original = history.locate(item.path)
    now = sha256_file(original) if original.is_file() else None
    if now not in (None, item.sha256):
        like = {item.sha256: "as the record", now: "as the file"}.get(made.sha256 if made else None, "like neither")
        detail = f"not the recorded bytes (sha256 {now}, recorded {item.sha256}); what came out again is {like}"
        return {**result, "verdict": "altered", "detail": detail}
    if made is None:
        return {**result, "verdict": "not made", "detail": "the run again wrote no such file"}
    if made.sha256 == item.sha256:
        return {**result, "verdict": "identical", "detail": ""}
    if now is None:
        detail = f"other bytes (sha256 {made.sha256}, recorded {item.sha256}), and no file is left to compare with"
        return {**result, "verdict": "different", "detail": detail}
    difference = compare(original, work / item.path)
    largest = difference.largest
    apart = (
        f"largest difference {largest:.2g} of the scale, {difference.where}"
        if largest is not None
        else difference.where
    )
    result |= {"largest_difference": largest, "reason": "; ".join(reasons) or None}
    if difference.within_tolerance and reasons:
        why = f"{apart} (tolerance {TOLERANCE:g}), explained by: {', '.join(reasons)}"
        return {**result, "verdict": "within tolerance", "detail": why}
    excuse = f"; more than {', '.join(reasons)} may explain" if reasons else "; nothing recorded explains it"
    return {**result, "verdict": "different", "detail": apart + excuse}
