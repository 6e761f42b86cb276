"""`conceptome trace`: run one job under strace and compare what it reads and writes with what its rule declares.

The job runs in a scratch folder that holds copies of its declared inputs and nothing else of the results folder: the
results cannot be altered, and an undeclared read fails there, besides being listed. The trace sees the system calls of
compiled libraries (HDF5, Arrow) too, which Python's audit hooks miss.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conceptome.errors import ConceptomeError, DataError
from conceptome.provenance.closure import repository
from conceptome.provenance.folder import RESULTS_VARIABLE, new_workflow
from conceptome.provenance.history import History, Job
from conceptome.provenance.run import Request, checkout, choose, environment, snakemake_command
from conceptome.sources import mirrors
from conceptome.sources.entries import MIRROR_VARIABLE

CALLS = "%file,fchdir,ftruncate,clone,clone3,fork,vfork"
# Calls that change what lies under the path (or paths) they name. `open` and its kin are judged by their flags.
_WRITING = re.compile(
    r"(creat|mkdir|rmdir|unlink|rename|(sym)?link|truncate|mknod|f?chmod|[fl]?chown|utimes?|utimens|futimes|l?setxattr)(at2?)?"
)
_CALL = re.compile(r"(\w+)\((.*)\)\s+= (-?\d+|\?)(.*)$", re.DOTALL)
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
_FOLDER = re.compile(r"^(?:AT_FDCWD|\d+)<((?:[^<>\\]|\\.)*)>$")
_ESCAPE = re.compile(rb"\\(?:x([0-9a-fA-F]{2})|([0-7]{1,3})|(.))", re.DOTALL)
_NAMED = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"v": b"\v", b"f": b"\f"}
_HALF = re.compile(r"\.(.+?)(?:\.\d+)?\.partial(\.[^.]+)?")
_JOB_SCRIPT = re.compile(r"/\.snakemake/scripts/[^/]+\.py$")


@dataclass
class Access:
    """What the processes of a job did to files, by absolute path.

    Attributes
    ----------
    reads
        How often a file was opened to be read (or executed).
    missing
        Files that could not be opened to be read.
    absent
        Paths that were asked for and do not exist: how libraries that look before they open meet an undeclared input.
    listings
        Folders whose content was listed.
    renamed
        Where a path was renamed to.
    writes
        What was created, opened to be written, renamed, removed, or given other rights or times: path → calls.
    """

    reads: dict[str, int] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)
    absent: set[str] = field(default_factory=set)
    listings: set[str] = field(default_factory=set)
    renamed: dict[str, str] = field(default_factory=dict)
    writes: dict[str, set[str]] = field(default_factory=dict)


def command(arguments: argparse.Namespace) -> int:
    """Run `conceptome trace`; gives the exit code."""
    wildcards = dict(item.split("=", 1) for item in arguments.wildcards.split(",") if "=" in item)
    report = trace(arguments.rule, arguments.results, config=arguments.config, wildcards=wildcards)
    if arguments.json:
        print(json.dumps(report, ensure_ascii=False))
    else:
        show(report)
    return 0 if report["clean"] else 1


def trace(
    rule: str,
    results: str | os.PathLike = "results",
    *,
    config: str | None = None,
    wildcards: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Run one job of a rule under strace.

    Parameters
    ----------
    rule
        Name of the rule. The results folder holds the record of a job of it, and that job's inputs.
    results
        The results folder.
    config
        Configuration file; None: the one that `conceptome run` would take.
    wildcards
        Which job: values that its wildcards must have; the first of those that fit is taken.

    Returns
    -------
    The report: clean, findings (undeclared reads and writes, and whether the job failed), unread (declared inputs that
    the script did not open), job, wildcards, reads and writes (numbers of declared ones).

    Raises
    ------
    ConceptomeError
        strace is missing or may not trace, no such job is on record, or its inputs are gone.
    """
    if shutil.which("strace") is None:
        raise ConceptomeError(
            "strace is not on the PATH: install it (Debian, Ubuntu: apt install strace; conda: strace)"
        )
    history = History(results)
    job = _choose_job(history, rule, dict(wildcards or {}))
    recorded = Path(history.recorded_results)
    if recorded.is_absolute():
        raise DataError(f"the run wrote to {recorded}: only a results folder below the folder of a run can be traced")
    root = checkout()
    choice = choose(root, history.locate("."), config, record=False)
    with tempfile.TemporaryDirectory(prefix="conceptome-trace-") as folder:
        scratch = Path(folder).resolve()
        work = scratch / "work"
        for item in job.inputs:
            _copy(history.locate(item.path), work / item.path)
        (scratch / "temporary").mkdir()
        _run(root, job, history, choice, work, scratch)
        made = _record(work / recorded)
        access = parse(scratch / "trace", work)
        return _judge(access, job, made, history, root, work, scratch)


def show(report: Mapping[str, Any]) -> None:
    """Print the report for people."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    for line in report["findings"]:
        console.print(line, style="bold red", markup=False)
    for line in report["unread"]:
        console.print(f"warning: declared and not read by the script: {line}", style="yellow", markup=False)
    verdict = "reads and writes what it declares" if report["clean"] else f"{len(report['findings'])} findings"
    console.print(
        f"{report['title']}: {verdict}; {report['reads']} declared inputs read, {report['writes']} outputs written",
        style="green" if report["clean"] else "bold red",
        markup=False,
    )


def _choose_job(history: History, rule: str, wildcards: dict[str, str]) -> Job:
    """Give the first job of the rule on record that has these wildcards."""
    ran = [job for job in history.jobs.values() if job.status == "success"]
    # The latest job with the same wildcards stands for all earlier ones.
    jobs = {json.dumps(job.record["wildcards"]): job for job in ran if job.rule == rule}
    for job in jobs.values():
        if wildcards.items() <= job.record["wildcards"].items():
            return job
    if jobs:
        known = "; ".join(", ".join(f"{k}={v}" for k, v in job.record["wildcards"].items()) for job in jobs.values())
        raise DataError(f"no job of rule {rule} has {wildcards}: {known[:400]}")
    rules = ", ".join(sorted({job.rule for job in ran}))
    raise DataError(
        f"no job of rule {rule} is on record in {history.folder.results}: run it first (on record: {rules})"
    )


def _copy(source: Path, target: Path) -> None:
    if not source.is_file():
        raise DataError(f"{source}: an input of the job, and it is not there: run the workflow first")
    if target == source:  # named by its absolute path: read where it lies
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target)


def _run(root: Path, job: Job, history: History, choice: Any, work: Path, scratch: Path) -> None:
    """Have Snakemake run the job, and it alone, under strace."""
    variables = environment(root, new_workflow())
    variables.pop(RESULTS_VARIABLE, None)
    variables[MIRROR_VARIABLE] = os.pathsep.join(str(folder.resolve()) for folder in mirrors())
    variables["TMPDIR"] = str(scratch / "temporary")
    traced = [
        "strace",
        "-ff",
        "-f",
        "--seccomp-bpf",
        "-y",
        "-s",
        "4096",
        "-qq",
        "-e",
        f"trace={CALLS}",
        "-e",
        "signal=none",
    ]
    (scratch / "trace").mkdir()
    extra = ("--no-hooks", "--nolock", "--allowed-rules", job.rule, "--", job.target)
    words = snakemake_command(root, choice, Request(directory=str(work), extra=extra))
    done = subprocess.run(
        [*traced, "-o", str(scratch / "trace" / "calls"), *words], env=variables, capture_output=True, text=True
    )
    if "ptrace" in done.stderr.lower() and "not permitted" in done.stderr.lower():
        raise ConceptomeError("strace may not trace here (ptrace is not permitted): run outside of this sandbox")
    # A job that failed has left its record; without one, Snakemake has not come as far.
    if done.returncode and not (work / history.recorded_results / ".provenance" / "records").is_dir():
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        error = next(
            (line.removeprefix("error: ") for line in lines if line.startswith("error: ")), " ".join(lines[-6:])
        )
        raise ConceptomeError(f"{job.title} could not be started with {choice.path}: {error[:400]}")


def _record(results: Path) -> Job:
    """Give the job that ran in the scratch folder."""
    return list(History(results).jobs.values())[-1]


def parse(folder: Path, start: Path) -> Access:
    """Read the calls of each process (strace -ff: one file each) and keep those of the job's script and its children.

    Parameters
    ----------
    folder
        Where the files calls.PID lie.
    start
        Folder in which the first process was started.
    """
    calls = {int(path.suffix[1:]): path for path in folder.glob("calls.*")}
    seen: set[int] = set()
    access = Access()
    # Children are named by their parents: whoever nobody names is the first.
    listed = {pid: list(_calls(path)) for pid, path in calls.items()}
    children = {int(value) for lines in listed.values() for name, _, value in lines if _forks(name) and value[0] != "-"}
    waiting = [(pid, str(start), False) for pid in listed if pid not in children]
    while waiting:
        pid, cwd, inside = waiting.pop()
        if pid in seen:
            continue
        seen.add(pid)
        for name, words, value in listed.get(pid, []):
            failed = value.startswith("-")
            if _forks(name):
                if not failed:
                    waiting.append((int(value), cwd, inside))
                continue
            paths = _paths(words, cwd)
            if name in ("chdir", "fchdir") and not failed:
                cwd = paths[0]
            elif name in ("execve", "execveat"):
                script = [_absolute(_unescape(item), cwd) for item in _STRING.findall(words)]
                # Not the shell that is told to start it: that one's own reads are Snakemake's.
                by_python = os.path.basename(paths[0]).startswith("python")
                inside = inside or (by_python and any(_JOB_SCRIPT.search(item) for item in script))
                program = "git" if os.path.basename(paths[0]) == "git" else "pip" if '"-m", "pip"' in words else None
                if inside and not failed and program:
                    # Programs with settings of their own, which read what they like: the record asks git for the
                    # commit, and retrieval has pip bring a package, the bytes of which are checked.
                    break
                if inside and not failed:
                    access.reads[paths[0]] = access.reads.get(paths[0], 0) + 1
            elif inside:
                _count(access, name, words, paths, value)
    return access


def _forks(name: str) -> bool:
    return name in ("clone", "clone3", "fork", "vfork")


def _calls(path: Path) -> Iterator[tuple[str, str, str]]:
    """Give (name, arguments, value; with the error where it failed) of each call of one process."""
    for line in path.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        match = _CALL.match(line)
        if match and match[3] != "?":
            yield match[1], match[2], match[3] if not match[3].startswith("-") else match[3] + match[4]


def _unescape(text: str) -> str:
    def one(match: re.Match) -> bytes:
        if match[1]:
            return bytes([int(match[1], 16)])
        return bytes([int(match[2], 8)]) if match[2] else _NAMED.get(match[3], match[3])

    return os.fsdecode(_ESCAPE.sub(one, text.encode("utf-8", "surrogateescape")))


def _absolute(path: str, folder: str) -> str:
    return os.path.normpath(os.path.join(folder, path))


def _paths(words: str, cwd: str) -> list[str]:
    """Give the absolute paths that a call names, each relative to the folder descriptor before it."""
    found, base = [], cwd
    for word in re.findall(r'"(?:[^"\\]|\\.)*"|(?:AT_FDCWD|\d+)<(?:[^<>\\]|\\.)*>', words):
        if word.startswith('"'):
            found.append(_absolute(_unescape(word[1:-1]), base) if word != '""' else base)
        else:
            base = _unescape(_FOLDER.match(word)[1])
    return found or [base]


def _count(access: Access, name: str, words: str, paths: list[str], value: str) -> None:
    failed = value.startswith("-")
    if _WRITING.fullmatch(name):
        if not failed:
            for path in paths:
                access.writes.setdefault(path, set()).add(name)
            if name.startswith("rename"):
                access.renamed[paths[0]] = paths[1]
        return
    if name not in ("open", "openat", "openat2"):
        if failed and "ENOENT" in value:
            access.absent.add(paths[0])
        return
    flags, path = _STRING.sub("", words), paths[0]
    if "O_PATH" in flags:
        return
    if any(flag in flags for flag in ("O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC")):
        if not failed:
            access.writes.setdefault(path, set()).add(name)
    elif failed:
        access.missing.add(path)
    elif "O_DIRECTORY" in flags:
        access.listings.add(path)
    else:
        access.reads[path] = access.reads.get(path, 0) + 1


class Allowed:
    """What a job may read and write without declaring it, and why.

    Parameters
    ----------
    root
        The checkout.
    work, scratch
        The folder that the job ran in, and the one around it that is thrown away.
    results
        The results folder, relative to `work`.
    original
        The results folder that the inputs were copied from.
    made
        The job that ran.
    """

    def __init__(self, root: Path, work: Path, scratch: Path, results: Path, original: Path, made: Job):
        self.results = [work / results, original]
        # Here nothing may be read because of where it lies, whatever the folder around it is.
        self.guarded = [work, original, root]
        # The interpreter, its packages and the machine: the record names them by digest, version and model.
        machine = ("/usr", "/lib", "/lib64", "/bin", "/sbin", "/etc", "/proc", "/sys", "/dev")
        self.libraries = [*machine, sys.prefix, sys.base_prefix, *sysconfig.get_paths().values()]
        # Written by the record (its papers, the log), by Snakemake (the script's text) or for the time of the job.
        papers = [work / results / ".provenance", work / ".snakemake", scratch / "temporary"]
        self.papers = [*papers, *([work / made.record["log"]] if made.record["log"] else [])]
        # Left by a killed job for the next one; gone when a job ends well.
        if "checkpoints" in (made.record.get("parameters") or {}):
            self.papers.append(work / made.record["parameters"]["checkpoints"])
        # Named by what went into them (kernels), or without influence on a result (fonts that were found).
        self.caches = [_kernel_cache(), Path.home() / ".cache" / "matplotlib", Path.home() / ".config" / "matplotlib"]
        self.devices = ["/dev", "/proc"]
        # Sources come from mirrors, and only rules without inputs retrieve them.
        self.mirrors = [] if made.inputs else mirrors()
        # What the record reads: the lock's digest, the index for the difference to the commit.
        bases = list(dict.fromkeys((root, repository())))
        self.checkout = [path for base in bases for path in (base / "requirements.lock", *_git_folder(base))]
        names = (made.record.get("code") or {"files": ()})["files"]
        code = [base / name for base in bases for name in names]
        self.code = {*map(str, code), *(str(path) for source in code for path in _compiled(source))}

    def read(self, path: str) -> bool:
        """Whether a file may be read."""
        if path in self.code or _below(path, (*self.papers, *self.caches, *self.mirrors, *self.checkout)):
            return True
        # A virtual environment may lie inside the checkout, and the checkout inside a folder of the machine.
        inner = [place for place in self.libraries if _below(os.path.realpath(place), self.guarded)]
        return _below(path, inner) or (_below(path, self.libraries) and not _below(path, self.guarded))

    def write(self, path: str) -> bool:
        """Whether a file may be written."""
        return _below(path, (*self.papers, *self.caches, *self.devices)) or "__pycache__" in Path(path).parts

    def above(self) -> set[str]:
        """Every folder above what the record, Snakemake and the job keep."""
        return {str(parent) for path in self.papers for parent in Path(path).parents}


def _kernel_cache() -> Path:
    given = os.environ.get("CONCEPTOME_KERNEL_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "conceptome" / "kernels"


def _git_folder(base: Path) -> list[str]:
    done = subprocess.run(["git", "-C", str(base), "rev-parse", "--absolute-git-dir"], capture_output=True, text=True)
    return done.stdout.splitlines()


def _compiled(source: Path) -> Iterator[Path]:
    if source.suffix == ".py":
        yield source.parent / "__pycache__" / f"{source.stem}.{sys.implementation.cache_tag}.pyc"


def _below(path: str, places: Any) -> bool:
    return any(path == (place := os.path.realpath(item)) or path.startswith(f"{place.rstrip('/')}/") for item in places)


def _judge(
    access: Access, job: Job, made: Job, history: History, root: Path, work: Path, scratch: Path
) -> dict[str, Any]:
    """Compare what was done with what is declared."""
    results = Path(history.recorded_results)
    original = Path(os.path.realpath(history.folder.results))
    allowed = Allowed(root, work, scratch, results, original, made)
    outputs = {str(work / item.path) for item in (*job.outputs, *made.outputs)}
    # Snakemake marks a folder that it was promised as a whole, once the job has ended.
    marks = [
        path.parent.relative_to(base)
        for base in (work / results, original)
        for path in base.rglob(".snakemake_timestamp")
    ]
    folders = {str(work / results / folder) for folder in marks}
    declared = Declared(
        outputs, {folder for folder in folders if any(item.startswith(f"{folder}/") for item in outputs)}
    )
    inputs = {os.path.realpath(work / item.path) for item in made.inputs or job.inputs}
    bases = (work, Path(os.path.realpath(history.locate("."))), root)
    findings = [f"the job failed: {made.record.get('error') or made.status}"] if made.status != "success" else []
    findings += [
        f"undeclared read: {_spell(path, bases)}{how}" for path, how in _reads(access, declared, inputs, allowed)
    ]
    findings += [f"undeclared write: {_spell(path, bases)} ({how})" for path, how in _writes(access, declared, allowed)]
    # Listings stand for a folder's content before Snakemake: a script reads the folder.
    listed = Counter(
        os.path.realpath(work / item.path) for item in made.inputs if item.name not in ("listing", "listings")
    )
    reads: Counter[str] = Counter()
    for path, count in access.reads.items():
        reads[os.path.realpath(path)] += count
    # The record opens each input once, to hash it: the script's own reads come on top.
    unread = [_spell(path, bases) for path, times in listed.items() if reads[path] <= times]
    return {
        "command": "trace",
        "clean": not findings,
        "findings": findings,
        "unread": unread,
        "rule": job.rule,
        "title": job.title,
        "wildcards": dict(job.record["wildcards"]),
        "job": job.name,
        "reads": len(listed) - len(unread),
        "writes": len(made.outputs),
    }


@dataclass(frozen=True)
class Declared:
    """The outputs of a rule: files, and folders that it writes as a whole (absolute paths)."""

    files: set[str]
    folders: set[str]

    def __contains__(self, path: str) -> bool:
        """Whether a path is a declared output, lies in a declared folder, or is the half-written file of one."""
        if path in self.files or any(path == folder or path.startswith(f"{folder}/") for folder in self.folders):
            return True
        # Half-written files and folders are called .NAME.PID.partial.SUFFIX or .NAME.partial, beside the whole one.
        for half in (Path(path), *Path(path).parents):
            match = _HALF.fullmatch(half.name)
            if match and str(half.with_name(match[1] + (match[2] or ""))) in self.files | self.folders:
                return True
        return False

    def above(self) -> set[str]:
        """Every folder above an output."""
        return {str(parent) for path in (*self.files, *self.folders) for parent in Path(path).parents}


def _reads(access: Access, declared: Declared, inputs: set[str], allowed: Allowed) -> Iterator[tuple[str, str]]:
    """Give (path, how) of each read that nothing declares or allows."""
    own = {os.path.realpath(path) for path in access.writes}
    above = declared.above() | allowed.above()
    for path in sorted({*access.reads, *access.missing, *access.absent, *access.listings}):
        real = os.path.realpath(path)
        if real in inputs or real in own or path in declared or allowed.read(real):
            continue
        # (An editable installation has an entry of this name on the module path, which is no file.)
        missing = path in access.missing and _below(real, allowed.guarded) and "__editable__." not in path
        absent = path in access.absent and _below(real, allowed.results) and path not in above
        if path in access.reads:
            yield path, ""
        elif missing or absent:
            yield path, " (it was not there: the scratch folder holds declared inputs only)"
        elif path in access.listings and _below(real, allowed.results[1:]):
            yield path, " (listed)"


def _writes(access: Access, declared: Declared, allowed: Allowed) -> Iterator[tuple[str, str]]:
    """Give (path, calls) of each write that nothing declares or allows."""
    above = declared.above() | allowed.above()
    for path in sorted(access.writes):
        # Some writers make a file of their own invention and rename it when it is complete.
        final = _final(access, path)
        made_folder = path in above and access.writes[path] <= {"mkdir", "mkdirat"}
        if final not in declared and not made_folder and not allowed.write(os.path.realpath(final)):
            yield path, ", ".join(sorted(access.writes[path]))


def _final(access: Access, path: str) -> str:
    seen = set()
    while path in access.renamed and path not in seen:
        seen.add(path)
        path = access.renamed[path]
    return path


def _spell(path: str, bases: Iterable[Path]) -> str:
    return next((str(Path(path).relative_to(base)) for base in bases if Path(path).is_relative_to(base)), path)
