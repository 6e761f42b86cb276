"""The record of one job: `with job(snakemake):` around a script writes down what went in, what ran and what came out.

A start record is written before anything else and one final record after success, failure or interruption, both
atomically under results/.provenance/records/; a start without an end is a job that was killed. Whatever the libraries
say goes to the rule's log file, and an error reaches the terminal as one line.

The results folder is named by the variable CONCEPTOME_RESULTS (the Snakefile sets it from run.results), else by the
`results` key of the configuration, else it is "results". CONCEPTOME_WORKFLOW names the workflow run.
"""

from __future__ import annotations

import errno
import importlib
import logging
import os
import platform
import re
import resource
import secrets
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from conceptome.errors import ConceptomeError, DataError
from conceptome.files import atomic_path, read_json, sha256_file, write_json
from conceptome.progress import VARIABLE as PROGRESS_VARIABLE
from conceptome.provenance.closure import closure, repository
from conceptome.provenance.environment import (
    RECORDED_VARIABLES,
    THREAD_VARIABLES,
    blas,
    commit,
    determinism,
    environment,
    machine,
    python,
)
from conceptome.provenance.folder import (
    RESULTS_VARIABLE,
    WORKFLOW_VARIABLE,
    ProvenanceFolder,
    digest,
    fingerprint,
    plain,
)

SCHEMA_VERSION = 2
# Name of the output that lists a folder's files with their sha256. Snakemake tells a folder's age and not its content:
# whoever reads the folder takes the listing as an input too, and the folder itself as `ancient`.
LISTING = "listing"
# What libraries say of a full disk in exceptions of their own: HDF5, Arrow, safetensors; numpy.save; torch.save.
_DISK_FULL = re.compile(
    r"No space left on device|Disk quota exceeded|\d+ requested and \d+ written|PytorchStreamWriter failed writing"
)


class Interrupted(BaseException):
    """The job was asked to stop by SIGTERM."""


class JobContext:
    """What a script may use of its own record.

    Attributes
    ----------
    job
        Name of the job, unique within a results folder.
    threads
        Threads the rule was given.
    recipe
        Digest of everything that goes into the job (see `recipe`): figures carry it.
    metrics
        Numbers worth a column in the tracking database; the script may add to it.
    """

    def __init__(self, job: str, threads: int):
        self.job = job
        self.threads = threads
        self.recipe = ""
        self.metrics: dict[str, float] = {}


@contextmanager
def job(snakemake: Any) -> Iterator[JobContext]:
    """Record a rule's job.

    Raises
    ------
    SystemExit
        The block raised: 1 after an error, 130 after Ctrl-C, 143 after SIGTERM. The error line is already on the
        terminal, the traceback in the log.
    """
    folder = ProvenanceFolder(results_folder(snakemake))
    name = new_name(snakemake.rule)
    context = JobContext(name, int(snakemake.threads))
    title = describe(snakemake)
    log = snakemake.log[0] if len(snakemake.log) else None
    started, began = time.time(), time.monotonic()
    record: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "job": name,
        "workflow": os.environ.get(WORKFLOW_VARIABLE),
        "results": str(folder.results),
        "rule": snakemake.rule,
        "wildcards": plain(dict(snakemake.wildcards.items())),
        "started": started,
        "host": {"name": platform.node()},
        "process": {"pid": os.getpid(), "started": process_start(os.getpid())},
        "scheduler_id": os.environ.get("SLURM_JOB_ID"),
        "log": log,
    }
    with terminal_to_log(log) as terminal, stop_signals():
        status, problem, error = "success", None, None
        outputs: list[dict[str, Any]] = []
        seen: dict[str, tuple | None] = {}
        try:
            write_json(folder.start_path(name), record)
            record["start_record"] = sha256_file(folder.start_path(name))
            set_threads(context.threads)
            announce(folder, name, record)
            record.update(recipe(snakemake, folder, seen))
            context.recipe = record["recipe"]
            try:
                yield context
            except SystemExit as early:
                # A script may end early of its own accord; it still has to have written what it promised.
                if early.code:
                    raise
            for key, path in named(snakemake.output):
                if key == LISTING:
                    write_listing(path, outputs)
                described = folder.describe(key, path)
                remember(folder, path, described, name)
                outputs.extend(described)
        except BaseException as raised:
            ignore_signals()
            error = raised
            status, problem = explain(raised, snakemake, log)
            logging.getLogger("conceptome").error("%s", "".join(traceback.format_exception(raised)))
        ignore_signals()
        del record["host"]
        record.update(
            status=status,
            error=problem,
            # One reading of the clock a job: whoever sets it back meanwhile makes no job end before it began.
            ended=started + (time.monotonic() - began),
            outputs=outputs,
            inputs_changed=[path for path, mark in seen.items() if mark != _mark(path)],
            metrics=plain(context.metrics),
            peak_memory_bytes=peak_memory(),
            cpu_seconds=cpu_seconds(),
            hash_seconds=round(folder.hash_seconds, 6),
            hashed_bytes=folder.hashed_bytes,
            machine=machine(),
            blas=blas(),
            determinism=determinism(),
        )
        try:
            write_json(folder.final_path(name), record)
        except OSError as trouble:
            # Without its record a job has not succeeded: provenance would have a hole.
            if status == "success":
                status, problem = explain(trouble, snakemake, log)
        with suppress(OSError):
            for path in folder.progress.glob(f"{name}.*"):
                path.unlink(missing_ok=True)
        if problem:
            os.write(terminal, f"error: {title}: {problem}\n".encode())
    if status != "success":
        raise SystemExit({"interrupted": 143 if isinstance(error, Interrupted) else 130}.get(status, 1))


def results_folder(snakemake: Any) -> str:
    """Name the results folder of this job (see the module's docstring)."""
    return os.environ.get(RESULTS_VARIABLE) or str(dict(snakemake.config or {}).get("results") or "results")


def new_name(rule: str) -> str:
    """Make a name that sorts by time and that no other job has: time in UTC, rule, eight random hex digits."""
    return f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{rule}-{secrets.token_hex(4)}"


def describe(snakemake: Any) -> str:
    """Name a job for people: rule and wildcards."""
    wildcards = ", ".join(f"{key}={value}" for key, value in snakemake.wildcards.items())
    return f"rule {snakemake.rule}" + (f" ({wildcards})" if wildcards else "")


def named(files: Any) -> Iterator[tuple[str, str]]:
    """Give (name, path) of each input or output; unnamed ones are called by their position."""
    for position, (name, value) in enumerate(files._allitems()):
        for path in [value] if isinstance(value, str | os.PathLike) else value:
            yield name or str(position), str(path)


def recipe(snakemake: Any, folder: ProvenanceFolder, seen: dict[str, tuple]) -> dict[str, Any]:
    """Everything known before the job: inputs, parameters, seeds, code, environment, and the digest over them.

    `seen` is filled with each input's inode, size and time stamps, to notice a change under the job's feet.
    """
    inputs = []
    for key, path in named(snakemake.input):
        described = folder.describe(key, path)
        check_unaltered(folder, path, described)
        seen.update((item["path"], _mark(item["path"])) for item in described)
        inputs.extend(described)
    parameters = plain(dict(snakemake.params.items()))
    # These two make Snakemake run a rule again; the record has them under names of their own.
    code = parameters.pop("code", None)
    parameters.pop("lock", None)
    if code is None:
        script = Path(str(getattr(snakemake, "scriptdir", None) or ""), f"{snakemake.rule}.py")
        code = closure(script) if script.is_file() else {"digest": None, "files": {}}
    wildcards = plain(dict(snakemake.wildcards.items()))
    seeds = sorted({*_seeds(parameters), *_seeds(wildcards)}, key=str)
    lock = repository() / "requirements.lock"
    known = {
        "parameters": parameters,
        "seeds": seeds,
        "code": code,
        "kernels": kernels(code),
        "lock": sha256_file(lock) if lock.is_file() else None,
    }
    contents = sorted([item["name"], item["sha256"]] for item in inputs)
    return {
        **known,
        "inputs": inputs,
        "recipe": digest(
            {
                **known,
                "code": code["digest"],
                "kernels": (known["kernels"] or {}).get("build"),
                "rule": snakemake.rule,
                "wildcards": wildcards,
                "inputs": contents,
            }
        ),
        "threads": int(snakemake.threads),
        "variables": {key: os.environ[key] for key in RECORDED_VARIABLES if key in os.environ},
        "python": python(),
        "environment": environment(folder),
        "commit": commit(folder),
    }


def remember(folder: ProvenanceFolder, path: str, described: Sequence[Mapping[str, Any]], name: str) -> None:
    """Leave word of what a job wrote to an output (a file or a folder), for the jobs that will read it."""
    contents = {item["path"]: item["sha256"] for item in described}
    write_json(folder.written_path(path), {"job": name, "digest": digest(contents)})


def check_unaltered(folder: ProvenanceFolder, path: str, described: Sequence[Mapping[str, Any]]) -> None:
    """Refuse an input that is not what the job before left there.

    Raises
    ------
    DataError
        It was altered since.
    """
    try:
        written = read_json(folder.written_path(path))
    except FileNotFoundError:
        return  # a user's own file
    if written["digest"] != digest({item["path"]: item["sha256"] for item in described}):
        raise DataError(
            f"{path} was altered after job {written['job']} wrote it: delete it and run again, it is then made anew "
            "(`conceptome verify` names every altered file)"
        )


def write_listing(path: str | os.PathLike, outputs: Sequence[Mapping[str, Any]]) -> None:
    """Write the listing of a folder's files as `sha256sum` does and `sha256sum --check` reads, in order of path."""
    root = Path(path).parent
    with atomic_path(path) as temporary:
        lines = [f"{item['sha256']}  {Path(item['path']).relative_to(root).as_posix()}\n" for item in outputs]
        temporary.write_text("".join(lines), encoding="utf-8")


def _mark(path: str) -> tuple | None:
    try:
        return fingerprint(path)
    except OSError:
        return None


def _seeds(value: Any, key: str = "") -> Iterator[Any]:
    """Find every value called seed or seeds."""
    if key in ("seed", "seeds"):
        yield from (str(item) for item in (value if isinstance(value, list) else [value]))
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _seeds(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from _seeds(item)


def kernels(code: Mapping[str, Any]) -> dict[str, str | None] | None:
    """Digest of the compiled kernels' build and the variant in use; None where a job's code does not reach them."""
    if not any(file.startswith("kernels/") for file in code["files"]):
        return None
    # Not an import statement: every job has a record, and only those that compute with kernels depend on them.
    variant, _, build = (importlib.import_module("conceptome_kernels").build_digest() or "torch").partition("-")
    return {"build": build or None, "variant": variant}


def process_start(pid: int) -> int | None:
    """Start of a process in clock ticks since boot, which tells a live process from a later one of the same number.

    None where there is none, or only the entry of a dead one that its parent has not taken note of yet.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return None
    state, *numbers = text.rpartition(")")[2].split()
    return None if state in "ZX" else int(numbers[18])


def peak_memory() -> int:
    """Largest resident memory of this process, in bytes.

    getrusage inherits the peak of the process that forked this one, so the kernel's own mark for this address space
    comes first.
    """
    with suppress(OSError), open("/proc/self/status", encoding="utf-8") as handle:
        for line in handle:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def cpu_seconds() -> float:
    """Processor time of this process and the children it waited for, in seconds."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return round(sum(item.ru_utime + item.ru_stime for item in usage), 3)


def set_threads(threads: int) -> None:
    """Hold numerical libraries to the rule's number of threads, as far as they are not loaded yet."""
    if "numpy" not in sys.modules:
        os.environ.update({name: str(threads) for name in THREAD_VARIABLES})
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


def announce(folder: ProvenanceFolder, name: str, record: Mapping[str, Any]) -> None:
    """Tell watchers that the job runs, and the library where to write how far it has come."""
    folder.progress.mkdir(parents=True, exist_ok=True)
    write_json(
        folder.progress / f"{name}.job.json",
        {key: record[key] for key in ("job", "workflow", "rule", "wildcards", "started", "host", "process")},
    )
    os.environ[PROGRESS_VARIABLE] = str((folder.progress / f"{name}.steps.json").absolute())


@contextmanager
def terminal_to_log(log: str | None) -> Iterator[int]:
    """Send standard output, standard error and all logging to the log file; yields the terminal's file descriptor.

    Done on the file descriptors, since compiled libraries and child processes write there too.
    """
    terminal = os.dup(2)
    try:
        stream = _open_log(log)
        if stream is None:
            yield terminal
        else:
            with _redirected(stream):
                yield terminal
    finally:
        os.close(terminal)


def _open_log(log: str | None) -> TextIO | None:
    """Open the log; None without one, or when the disk takes no more (the start record's failure will say so)."""
    if log is None:
        return None
    with suppress(OSError):
        Path(log).parent.mkdir(parents=True, exist_ok=True)
        return open(log, "w", encoding="utf-8", buffering=1)
    return None


@contextmanager
def _redirected(stream: TextIO) -> Iterator[None]:
    saved = {number: os.dup(number) for number in (1, 2)}
    root = logging.getLogger()
    level = root.level
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    _flush()
    for number in saved:
        os.dup2(stream.fileno(), number)
    try:
        yield
    finally:
        _flush()
        for number, original in saved.items():
            os.dup2(original, number)
            os.close(original)
        logging.captureWarnings(False)
        root.removeHandler(handler)
        root.setLevel(level)
        # On a full disk the last lines of the log are lost; what went wrong is on the terminal.
        with suppress(OSError):
            stream.close()


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()


@contextmanager
def stop_signals() -> Iterator[None]:
    """Turn SIGTERM into an exception for the time of the block, and put the handlers back afterwards."""

    def stop(number: int, frame: object) -> None:
        raise Interrupted

    try:
        saved = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not in the main thread, where Python takes no signals
        yield
        return
    try:
        yield
    finally:
        for number, handler in saved.items():
            signal.signal(number, handler)


def ignore_signals() -> None:
    """Let the final record be written in peace: a stop is already under way, or there is nothing left to stop."""
    with suppress(ValueError):
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)


def explain(error: BaseException, snakemake: Any, log: str | None) -> tuple[str, str]:
    """Give (status, one line for the terminal) for what ended a job."""
    where = f" (traceback: {log})" if log else ""
    if isinstance(error, KeyboardInterrupt | Interrupted):
        return "interrupted", "interrupted; the next run takes it up again"
    if isinstance(error, ConceptomeError):
        return "failure", str(error)
    chain = list(_chain(error))
    for item in chain:
        if _is_disk_full(item):
            output = next((path for _, path in named(snakemake.output)), "its output")
            target = getattr(item, "filename", None) or output
            return "failure", f"disk full while writing {target}: free space and run again"
    if any(isinstance(item, MemoryError) or "can't allocate memory" in str(item) for item in chain):
        peak = peak_memory() / 2**30
        return "failure", f"out of memory (this job had {peak:.1f} GiB): use fewer cores, fewer samples or more memory"
    if isinstance(error, SystemExit):
        return "failure", f"the script ended with exit code {error.code}{where}"
    text = " ".join(str(error).split())[:300]
    return "failure", f"{type(error).__name__}: {text}{where}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _is_disk_full(error: BaseException) -> bool:
    """Tell a full disk: by number, or by text for libraries that report it in exceptions of their own."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return bool(_DISK_FULL.search(str(error)))
