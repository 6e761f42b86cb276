"""The front door: choose the configuration, start Snakemake, show how far it is, say what is where."""

from __future__ import annotations

import importlib.util
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conceptome.errors import ConceptomeError, ConfigError
from conceptome.files import read_json, write_json
from conceptome.progress import duration
from conceptome.provenance.closure import repository
from conceptome.provenance.display import SnakemakeOutput, steps_of, view
from conceptome.provenance.folder import WORKFLOW_VARIABLE, AlreadyLocked, ProvenanceFolder, lock, new_workflow
from conceptome.provenance.signature import signer_of

POLL_SECONDS = 0.2
PROFILE = "config/profiles/default"
DEFAULT = "config/default.yaml"
OFFLINE = "config/offline.yaml"
INTERRUPTED = 130


@dataclass(frozen=True)
class Choice:
    """Which configuration file runs, and why."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path} ({self.reason})"


@dataclass(frozen=True)
class Request:
    """What was asked for on the command line."""

    config: str | None = None
    studies: tuple[str, ...] = ()
    name: str | None = None
    cores: str | None = None
    profile: str | None = None
    dry_run: bool = False
    directory: str = "."
    extra: tuple[str, ...] = ()

    def overrides(self) -> dict[str, Any]:
        """Keys laid over the configuration file."""
        values: dict[str, Any] = {}
        if self.studies:
            values["studies"] = list(self.studies)
        if self.name:
            values["name"] = self.name
        return values


def checkout() -> Path:
    """Find the folder with the Snakefile: here, else where this package lies.

    Raises
    ------
    ConfigError
        Neither has one.
    """
    for folder in (Path.cwd(), repository()):
        if (folder / "Snakefile").is_file():
            return folder
    raise ConfigError("no Snakefile here: go to the folder of your Conceptome checkout and run again")


def choose(root: Path, directory: Path, config: str | None, record: bool = True) -> Choice:
    """Choose the configuration file.

    A file that was named is taken. Else the first run decides between the default and the offline configuration by
    what is reachable, and records it, so that later runs never switch by themselves.

    Raises
    ------
    ConfigError, SourceError
        The named file does not exist; some of the default's sources are reachable and some are not.
    """
    if config is not None:
        path = Path(config)
        if not path.is_file():
            raise ConfigError(f"configuration file {config} does not exist")
        return Choice(_short(path.resolve(), root), "named on the command line")
    from conceptome.config.run import read_yaml

    if not (root / DEFAULT).is_file():
        raise ConfigError(f"{root / DEFAULT} does not exist: name a configuration with --config")
    results = read_yaml(root / DEFAULT).get("results", "results")
    memory = ProvenanceFolder(directory / results).configuration
    if memory.exists():
        chosen = read_json(memory)
        return Choice(Path(chosen["configuration"]), f"as on the first run: {chosen['reason']}")
    choice = _first(root)
    if record:
        write_json(memory, {"configuration": str(choice.path), "reason": choice.reason, "time": time.time()})
    return choice


def _first(root: Path) -> Choice:
    from conceptome.config.run import load
    from conceptome.sources import first_run_choice, load_sources, mirrors
    from conceptome.workflow import Plan

    entries = load_sources(root / "config" / "sources.yaml")
    plan = Plan(load([root / DEFAULT], root / "config"), entries)
    if first_run_choice([entries[name] for name in plan.needed_sources()], mirrors()) == "offline":
        return Choice(Path(OFFLINE), "no source file outside packages is reachable, neither in a mirror nor by network")
    return Choice(Path(DEFAULT), "the default; its sources are reachable")


def _short(path: Path, root: Path) -> Path:
    return path.relative_to(root) if path.is_relative_to(root) else path


def snakemake_command(root: Path, choice: Choice, request: Request) -> list[str]:
    """Spell the command that runs the workflow."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(root / "Snakefile")]
    command += ["--directory", str(Path(request.directory).resolve())]
    if request.profile is not None:
        command += ["--profile", str(_profile(root, request.profile))]
    elif (root / PROFILE).is_dir() and not any(item.startswith("--profile") for item in request.extra):
        command += ["--profile", str(root / PROFILE)]
    command += ["--configfile", str(root / choice.path)]
    settings = []
    if request.studies:
        settings.append(f"studies=[{', '.join(request.studies)}]")
    if request.name:
        settings.append(f"name={request.name}")
    if settings:
        command += ["--config", *settings]
    # --configfile and --config take every word up to the next option: this one stands between them and `extra`.
    command.append("--nocolor")
    if request.cores is not None or request.profile is None:
        command += ["--cores", request.cores or "all"]
    if request.dry_run:
        command.append("--dry-run")
    return [*command, *request.extra]


def _profile(root: Path, name: str) -> Path:
    """Find a profile, here or in the checkout, and see that what it submits jobs with is installed.

    Raises
    ------
    ConfigError
        There is no such profile, or the plugin of its executor is missing.
    """
    from conceptome.config.run import read_yaml

    folder = next((path for path in (Path(name).resolve(), root / name) if (path / "config.yaml").is_file()), None)
    if folder is None:
        raise ConfigError(f"profile {name} does not exist: name a folder with a config.yaml")
    executor = read_yaml(folder / "config.yaml").get("executor", "local")
    plugin = f"snakemake_executor_plugin_{executor.replace('-', '_')}"
    if executor != "local" and importlib.util.find_spec(plugin) is None:
        package = plugin.replace("_", "-")
        mend = "run `make slurm`, or pip install 'conceptome[hpc]'" if executor == "slurm" else f"pip install {package}"
        raise ConfigError(f"profile {name} needs {package}, which is not installed: {mend}")
    return folder


def environment(root: Path, workflow: str) -> dict[str, str]:
    """Environment of the Snakemake process: the library's folders on the path, and the name of this run."""
    folders = [str(root / "scripts"), str(root / "kernels"), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(item for item in folders if item),
        "PYTHONUNBUFFERED": "1",
        WORKFLOW_VARIABLE: workflow,
    }


def run(request: Request) -> int:
    """Run the workflow; gives the exit code.

    Raises
    ------
    ConceptomeError
        The configuration is wrong, or another run is going on in the same folder.
    """
    from conceptome.config.run import load

    started = time.monotonic()
    root = checkout()
    directory = Path(request.directory).resolve()
    choice = choose(root, directory, request.config, record=not request.dry_run)
    print(f"configuration: {choice}", flush=True)
    config = load([root / choice.path], root / "config", **request.overrides())
    if config.run.signing_key:
        signer_of(directory / Path(config.run.signing_key).expanduser())  # not found out when the run is over
    folder = ProvenanceFolder(directory / config.run.results)
    workflow = new_workflow()
    command = snakemake_command(root, choice, request)
    with nullcontext(()) if request.dry_run else run_lock(directory, folder) as descriptors:
        facts = {
            "id": workflow,
            "name": config.run.name,
            "configuration": str(choice.path),
            "reason": choice.reason,
            "studies": list(config.studies),
            "started": time.time(),
        }
        if not request.dry_run:
            write_json(folder.workflows / f"{workflow}.json", facts)
        output, code = watch(command, environment(root, workflow), folder, workflow, descriptors)
        if not request.dry_run:
            path = folder.workflows / f"{workflow}.json"
            if output.nothing_to_do:
                path.unlink(missing_ok=True)  # no job ran: nothing to tell of this run
            else:
                # Read again: the Snakefile has added the configuration that it resolved to.
                write_json(path, {**read_json(path), "ended": time.time(), "exit_code": code})
    if request.dry_run and code == 0:
        show_plan(output)
    elif code == 0:
        show_end(folder, config.run.name, output, time.monotonic() - started, directory)
    else:
        show_failure(output, code, directory)
    print(f"configuration: {choice}", flush=True)
    return code


@contextmanager
def run_lock(directory: Path, folder: ProvenanceFolder | None = None) -> Iterator[tuple[int, ...]]:
    """Hold the folder, and the results, for this run: the locks die with us and with Snakemake, which inherits them.

    Results may be shared by runs in several folders (`results: /absolute/path`), each with Snakemake's lock of its own.
    """
    paths = [directory / ".snakemake" / "conceptome.lock"] + ([folder.path / "run.lock"] if folder else [])
    with ExitStack() as locks:
        held = []
        for path, place in zip(paths, (directory, folder and folder.results)):
            try:
                held.append(locks.enter_context(lock(path, wait=False)))
            except AlreadyLocked as error:
                raise ConceptomeError(
                    f"another run is going on in {place} ({error}): wait until it ends, or stop it with Ctrl-C there"
                ) from None
        yield tuple(held)


def unlock(directory: str = ".") -> int:
    """Remove Snakemake's lock after a run was killed; refuses while one is going on."""
    root = checkout()
    with run_lock(Path(directory).resolve()):
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(root / "Snakefile"), "--unlock"]
        command += ["--directory", str(Path(directory).resolve())]
        done = subprocess.run(command, env=environment(root, ""), capture_output=True, text=True)
    if done.returncode:
        raise ConceptomeError(f"could not unlock: {_last(done.stderr.splitlines())}")
    print("unlocked; `make run` continues where the killed run stopped")
    return 0


def watch(
    command: Sequence[str],
    variables: dict[str, str],
    folder: ProvenanceFolder,
    workflow: str,
    descriptors: Sequence[int] = (),
) -> tuple[SnakemakeOutput, int]:
    """Run a command, show its progress, pass Ctrl-C on to it; gives what it said and its exit code.

    `descriptors` are open files that the command keeps: locks that it holds on after this process.
    """
    output = SnakemakeOutput()
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        # Started in the background by a shell that ignores Ctrl-C for us: Snakemake would inherit it, and could not be
        # told to end its jobs.
        with suppress(ValueError):
            signal.signal(signal.SIGINT, signal.default_int_handler)
    # In a process group of its own, so that Ctrl-C reaches it once, through us, and not its jobs behind its back.
    process = subprocess.Popen(
        command,
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        pass_fds=tuple(descriptors),
    )
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    reader = threading.Thread(target=_read, args=(process, lines), daemon=True)
    reader.start()
    stops = 0
    with view() as screen, _stop_as_interrupt():
        while True:
            try:
                if not _drain(lines, output, screen):
                    break
                screen.refresh(output, steps_of(folder.progress, workflow))
            except KeyboardInterrupt:
                number = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)[min(stops, 2)]
                stops += 1
                screen.say("stopping: running jobs are being ended, finished ones are kept")
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
    output.close()
    code = process.wait()
    return output, INTERRUPTED if stops else code


def _read(process: subprocess.Popen, lines: queue.SimpleQueue) -> None:
    for line in process.stdout:
        lines.put(line)
    lines.put(None)


def _drain(lines: queue.SimpleQueue, output: SnakemakeOutput, screen: Any) -> bool:
    """Take what has been said in the last moments; False at its end."""
    deadline = time.monotonic() + POLL_SECONDS
    while (left := deadline - time.monotonic()) > 0:
        try:
            line = lines.get(timeout=left)
        except queue.Empty:
            return True
        if line is None:
            return False
        finished = output.feed(line)
        if finished is not None and finished.rule != "all":
            screen.finished(output, finished)
    return True


@contextmanager
def _stop_as_interrupt() -> Iterator[None]:
    """Take SIGTERM and a closed terminal as Ctrl-C: Snakemake must end with us."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    names = (signal.SIGTERM, signal.SIGHUP)
    try:
        saved = {number: signal.signal(number, stop) for number in names}
    except ValueError:  # not in the main thread, where Python takes no signals
        yield
        return
    try:
        yield
    finally:
        for number, handler in saved.items():
            signal.signal(number, handler)


def show_plan(output: SnakemakeOutput) -> None:
    """Say what a run would do."""
    if output.nothing_to_do or not output.counts:
        print("nothing to be done: every result is there and up to date")
        return
    for rule, count in output.counts.items():
        print(f"  {count:5d}  {rule}")
    print(f"  {output.total:5d}  jobs in all; nothing was run")


def show_end(folder: ProvenanceFolder, name: str, output: SnakemakeOutput, seconds: float, directory: Path) -> None:
    """Say what is where and how to open it."""
    if output.nothing_to_do:
        print("nothing to be done: every result is there and up to date")
    else:
        print(f"done: {output.done} steps in {duration(seconds)}")
    for note in output.notes:
        print(note)
    results = _short(folder.results.resolve(), directory)
    places = {
        "figures": results / "studies" / name / "figures",
        "tables": results / "evidence",
        "report": f"{results / 'report.html'} (written by `make report`)",
        "MLflow": f"mlflow ui --backend-store-uri sqlite:///{results / 'mlflow.db'}",
        "ledger": f"{results / 'ledger.jsonl'} (checked by `conceptome verify`)",
    }
    for label, place in places.items():
        print(f"  {label:8s} {place}")


def show_failure(output: SnakemakeOutput, code: int, directory: Path) -> None:
    """Say in as few lines as possible what went wrong and where to read more."""
    if code == INTERRUPTED:
        print("interrupted: nothing is lost, the next run continues where this one stopped", file=sys.stderr)
        return
    if output.locked:
        print(
            "error: the folder is locked: a run that was killed left its lock, or Snakemake runs here by itself; "
            "if none is running, `make unlock` removes it",
            file=sys.stderr,
        )
        return
    for line in output.errors:
        print(line, file=sys.stderr)
    for title, log, reason in output.failed:
        if not any(line.startswith(f"error: rule {title.split()[0]}") for line in output.errors):
            # A job on a node has no terminal: its own line is in what SLURM has written.
            for line in _errors_in(log, directory) if reason else ():
                print(line, file=sys.stderr)
            ending = reason or "ended without a word (killed, or out of memory?)"
            print(f"error: rule {title}: {ending}", file=sys.stderr)
        if log:
            print(f"  log: {log}", file=sys.stderr)
    if not output.errors and not output.failed:
        print(f"error: Snakemake ended with exit code {code}:", file=sys.stderr)
        for line in output.last:
            print(f"  {line}", file=sys.stderr)
    elif output.failed:
        print("finished jobs are kept: mend this and run again", file=sys.stderr)


def _errors_in(logs: str, directory: Path) -> list[str]:
    """Our one-line errors in the log files of a job, as Snakemake names them."""
    lines = []
    for path in logs.split(", "):
        with suppress(OSError):
            text = (directory / path).read_text(encoding="utf-8", errors="replace")
            lines += [line for line in text.splitlines() if line.startswith("error: ")]
    return lines


def _last(lines: Sequence[str]) -> str:
    return next((line.strip() for line in reversed(lines) if line.strip()), "no reason given")
