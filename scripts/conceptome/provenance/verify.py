"""`conceptome verify`: whether a results folder is what its records say, and the records what was anchored elsewhere.

Each check gives findings that name a file and a difference; the answer is clean only without any.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path

from conceptome.errors import ConceptomeError, DataError
from conceptome.files import read_json, sha256_file
from conceptome.provenance import ledger, packages
from conceptome.provenance.closure import code_digests, repository
from conceptome.provenance.findings import Finding, short
from conceptome.provenance.folder import ProvenanceFolder, digest
from conceptome.provenance.history import Artifact, History, Job

# What may lie in a results folder though no job wrote it (patterns of the path below it), and why that is no finding.
EXEMPT = {
    ".provenance/*": "the records themselves: checked through the ledger",
    "ledger.jsonl": "checked as a chain, and against MLflow and the statement",
    "statement.dsse.json": "checked by its signature",
    "mlflow.db*": "made from the records, and compared with them",
    "mlflow-artifacts/*": "copies for MLflow's pages; nothing reads them again",
    "logs/*": "what jobs said; nothing reads them again",
    "checkpoints/*": "state of a training under way; its own digest guards it",
    "report.html": "Snakemake's report, made anew by `make report`",
    "dag.svg": "drawing of the rules, made anew by `make dag`",
    "README.md": "the page that says what lies where",
    "*.snakemake_timestamp": "Snakemake's mark in a folder; it is empty",
    ".*.partial*": "half-written by a job that was killed; cleared by the next",
    "*/.*.partial*": "half-written by a job that was killed; cleared by the next",
}
# Kinds of findings that leave the results as recorded: other code or packages than those that made them are here.
OUTDATED = ("code", "package")
SHOWN = 20
CLOCK_SECONDS = 1.0  # a clock that is kept right may be set back by less


@dataclass
class Answer:
    """What one verification found and how far it looked."""

    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    mlflow: str = "not checked"
    signature: str = "none"

    @property
    def clean(self) -> bool:
        """Whether nothing differs."""
        return not self.findings


class Verification:
    """The checks of one results folder.

    Parameters
    ----------
    results
        The results folder.
    cold
        Hash every file; trust no hash found earlier.
    public_key
        File with the key that the statement must be signed with.
    progress
        Called with (bytes done, bytes in all) while files are hashed.
    """

    def __init__(
        self,
        results: str | os.PathLike,
        *,
        cold: bool = False,
        public_key: str | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ):
        self.folder = ProvenanceFolder(results)
        self.cold, self.public_key, self.progress = cold, public_key, progress
        self.answer = Answer()
        self.threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def run(self) -> Answer:
        """Make every check.

        Raises
        ------
        DataError
            There is no results folder, or no record in it.
        """
        if not self.folder.records.is_dir():
            raise DataError(f"{self.folder.results}: no records of a run here; name the folder with --results")
        found = self.answer.findings
        found += self._papers()
        try:
            self.history = History(self.folder.results)
            for job in self.history.jobs.values():
                if job.status == "crashed" and ledger.is_running(job.record):
                    self.answer.notes.append(f"{job.name} is running: what it writes is not recorded yet")
            found += self._files()
            found += self._jobs()
            found += self._sources()
            found += self._code()
            found += self._environment()
            found += self._tracking()
            found += self._statement()
        except (DataError, KeyError, TypeError, AttributeError) as error:
            # Only an altered record may be unreadable: anything else is a mistake of ours, and no finding.
            if not any(item.kind == "record" for item in found):
                raise
            self.answer.notes.append(f"not everything could be checked: an altered record cannot be read ({error})")
        return self.answer

    def _papers(self) -> list[Finding]:
        """The ledger, the records that it names, and the papers that are called by their own digest."""
        found = ledger.verify(self.folder.results)
        for path in sorted(self.folder.environments.glob("*.json")):
            try:
                identity = digest(read_json(path))
            except ValueError:
                identity = sha256_file(path)
            if identity != path.stem:
                found.append(
                    Finding("record", str(path), f"altered: its digest is {short(identity)}", path.stem, identity)
                )
        for path in sorted(self.folder.path.glob("diffs/*.diff")):
            if (identity := sha256_file(path)) != path.stem:
                found.append(
                    Finding("record", str(path), f"altered: its sha256 is {short(identity)}", path.stem, identity)
                )
        return found

    # ---- files ----

    def _files(self) -> Iterator[Finding]:
        """Compare every file of the folder, and every raw input beside it, with what the records say."""
        outputs = self.history.outputs
        latest = {(job.rule, _key(job)): job for job in self.history.jobs.values() if job.status == "success"}
        inside, links = self._walk()
        yield from links
        # By content too: an input that changed between two jobs agrees with one of them at most.
        raw = {
            (item.path, item.sha256): (job, item)
            for job in self._current
            for item in job.inputs
            if item.path not in outputs
        }
        places = {path: self.history.locate(path) for path in [*outputs, *(path for path, _ in raw)]}
        there = [path for path in places if places[path].is_file()]
        hashes = self._hash({path: places[path] for path in there})
        for job, item in [*outputs.values(), *raw.values()]:
            path = item.path
            if path in hashes:
                if hashes[path] != item.sha256:
                    yield self._altered(
                        places[path], item, job, hashes[path], "recorded" if path in outputs else "read"
                    )
            elif path not in outputs:
                message = f"missing, though {job.name} read it (sha256 {short(item.sha256)})"
                yield Finding("file", str(places[path]), message, item.sha256)
            # Outputs that the same job no longer writes (fewer seeds, fewer shards) may be gone, and temporary ones.
            elif latest[job.rule, _key(job)] is job and not job.record["parameters"].get("temporary"):
                message = f"missing, though {job.name} wrote it (sha256 {short(item.sha256)})"
                yield Finding("file", str(places[path]), message, item.sha256)
        known = {os.path.abspath(place) for place in places.values()}
        for path in inside:
            if os.path.abspath(path) not in known:
                # Only plain files are opened: a pipe would wait for ever.
                origin = self._elsewhere(sha256_file(path)) if path.is_file() else "; it is no plain file"
                yield Finding("file", str(path), f"no job wrote it{origin}")
        self.answer.counts["files"] = len(hashes)

    def _altered(self, place: Path, item: Artifact, job: Job, found: str, verb: str) -> Finding:
        message = (
            f"altered: sha256 {short(found)} ({place.stat().st_size:,} bytes), "
            f"but {job.name} {verb} {short(item.sha256)} ({item.size:,} bytes){self._elsewhere(found)}"
        )
        return Finding("file", str(place), message, item.sha256, found)

    def _elsewhere(self, sha256: str) -> str:
        """Tell where bytes come from that lie in the wrong place."""
        held = self.history.holders(sha256)
        return f"; these are the bytes of {held[-1][1].path} as {held[-1][0].name} wrote it" if held else ""

    @cached_property
    def _current(self) -> list[Job]:
        """Jobs that wrote what lies in the folder now, in order."""
        names = {job.name for job, _ in self.history.outputs.values()}
        return [job for name, job in self.history.jobs.items() if name in names]

    def _walk(self) -> tuple[list[Path], list[Finding]]:
        """Files that a job should have written, and links that lead out of the folder."""
        root, real = self.folder.results, os.path.realpath(self.folder.results)
        files: list[Path] = []
        links: list[Finding] = []
        for place, folders, names in os.walk(root):
            if place != str(root) and ".provenance" in folders:
                self.answer.notes.append(f"{place}: another results folder; verify it by itself")
                folders.clear()
                continue
            for name in [*folders, *names]:
                path = Path(place, name)
                if path.is_symlink():
                    target = os.path.realpath(path)
                    if not Path(target).is_relative_to(real):
                        links.append(Finding("link", str(path), f"a symbolic link to {target}, outside of {root}"))
                        continue
                if name in names and not exempt(path.relative_to(root).as_posix()):
                    files.append(path)
        return sorted(files), links

    def _hash(self, places: dict[str, Path]) -> dict[str, str]:
        """Hash files on all processors, the largest first."""
        sizes = {path: place.stat().st_size for path, place in places.items()}
        total, done, trusted, read = sum(sizes.values()), 0, 0, 0
        hashes = {}

        def one(path: str) -> tuple[str, str, bool]:
            cached = self.folder.cached_sha256(places[path])
            if cached is not None and not self.cold:
                return path, cached[1], True
            if cached is None:
                return path, self.folder.sha256(places[path]), False
            value = sha256_file(places[path])
            if cached[1] != value:
                message = f"a hash of {places[path]} that is not its own: the cache was altered, remove it"
                self.answer.findings.append(Finding("cache", str(cached[0]), message, cached[1], value))
            return path, value, False

        with ThreadPoolExecutor(self.threads) as pool:
            for path, value, cached in pool.map(one, sorted(sizes, key=sizes.get, reverse=True)):
                hashes[path] = value
                done += sizes[path]
                trusted += cached
                read += 0 if cached else sizes[path]
                self.progress(done, total)
        self.answer.counts |= {"trusted": trusted, "bytes": total, "hashed_bytes": read}
        return hashes

    # ---- records against each other ----

    def _jobs(self) -> Iterator[Finding]:
        """Each present result was made from what lies there now, of inputs that held still, in an order of time."""
        outputs = self.history.outputs
        for job in self._current:
            where = str(job.path)
            for path in job.record.get("inputs_changed") or []:
                yield Finding("file", str(self.history.locate(path)), f"changed while {job.name} read it: run again")
            if job.record["ended"] < job.record["started"]:
                message = f"{job.name} ended before it started: the clock was set back"
                yield Finding("clock", where, message, str(job.record["started"]), str(job.record["ended"]))
            for item in job.inputs:
                if item.path not in outputs:
                    continue
                maker, made = outputs[item.path]
                if made.sha256 != item.sha256:
                    message = (
                        f"{job.name} made its results from {item.path} with sha256 {short(item.sha256)}, "
                        f"but {maker.name} wrote {short(made.sha256)} there since: run again"
                    )
                    yield Finding("file", where, message, item.sha256, made.sha256)
                    continue
                # The same bytes may have been made again since: what counts is whether anybody had made them before.
                source = self.history.producer(item, job)
                if _host(source) == _host(job) and source.record["ended"] > job.record["started"] + CLOCK_SECONDS:
                    message = f"{job.name} read {item.path} before {source.name} had made it: the clock was set back"
                    yield Finding("clock", where, message, str(source.record["ended"]), str(job.record["started"]))

    # ---- raw sources ----

    def _sources(self) -> Iterator[Finding]:
        """Compare retrieved sources with config/sources.yaml."""
        from conceptome.provenance.run import checkout
        from conceptome.sources import load_sources

        base = self.folder.results / "sources"
        retrieved = {
            path: (job, item)
            for path, (job, item) in self.history.outputs.items()
            # A listing is made of the folder beside it, whose files are compared one by one.
            if self.history.locate(path).is_relative_to(base) and item.name != "listing"
        }
        if not retrieved:
            return
        try:
            catalogue = checkout() / "config" / "sources.yaml"
            entries = load_sources(catalogue)
        except ConceptomeError as error:
            yield Finding("source", str(base), f"cannot be compared with config/sources.yaml: {error}")
            return
        self.answer.counts["sources"] = len(retrieved)
        for path, (job, item) in retrieved.items():
            place = self.history.locate(path)
            name, *inner = place.relative_to(base).parts
            entry = entries.get(name)
            content = entry.contents().get("/".join(inner) or name) if entry else None
            if content is None:
                yield Finding("source", str(place), f"{catalogue} does not name it")
                continue
            # What was converted has other bytes than what was published; then the record says what was asked for.
            then = (job.record["parameters"].get("entry") or {}) if content.convert else {}
            asked = (
                (then.get("files") or {}).get("/".join(inner), then).get("sha256") if content.convert else item.sha256
            )
            if asked != content.sha256:
                message = f"retrieved as sha256 {short(asked)}, but {catalogue} says {short(content.sha256)}"
                yield Finding("source", str(place), message, content.sha256, asked)

    # ---- what made the results, and what would make them now ----

    def _code(self) -> Iterator[Finding]:
        """Compare the code of present results with this checkout, module by module."""
        users: dict[tuple[str, str], list[Job]] = defaultdict(list)
        silent = []
        for job in self._current:
            files = (job.record.get("code") or {}).get("files")
            if not isinstance(files, dict):
                silent.append(job)
                continue
            for name, value in files.items():
                users[name, value].append(job)
        if silent:
            message = f"records of version 1 do not tell the code of {len(silent)} jobs module by module: run again"
            yield Finding("code", str(self.folder.records), message)
        now = code_digests({name for name, _ in users})
        self.answer.counts["modules"] = len(now)
        for (name, recorded), jobs in sorted(users.items()):
            if now[name] != recorded:
                state = "is not here" if now[name] is None else "differs from the code here"
                rules = ", ".join(sorted({job.rule for job in jobs}))
                message = f"{len(jobs)} jobs ({rules}) were made by a version that {state}"
                yield Finding("code", str(repository() / name), message, recorded, now[name])

    def _environment(self) -> Iterator[Finding]:
        """Compare the packages of present results with those installed here, and these with their RECORD."""
        environments = Counter(job.record.get("environment") for job in self._current)
        here = packages.installed()
        seen: set[tuple[str, str]] = set()
        for identity in environments:
            path = self.folder.environments / f"{identity}.json"
            if not path.is_file():
                yield Finding("record", str(path), f"missing, though {environments[identity]} records name it")
                continue
            content = read_json(path)
            if not isinstance(content, dict):
                yield Finding("package", str(path), "a list of version 1, without the packages' RECORDs: run again")
                continue
            for finding in packages.differences(content["distributions"], here):
                if (finding.path, finding.message) not in seen:
                    seen.add((finding.path, finding.message))
                    yield finding
        with ThreadPoolExecutor(self.threads) as pool:
            checked = pool.map(lambda item: packages.altered(item, self.folder, cold=self.cold), here.values())
            yield from (finding for findings in checked for finding in findings)
        self.answer.counts["packages"] = len(here)

    # ---- anchors ----

    def _tracking(self) -> Iterator[Finding]:
        """Compare MLflow with the ledger and the records; the ledger itself may be what was altered."""
        from conceptome.provenance.mlflow import anchors

        place = os.environ.get("MLFLOW_TRACKING_URI") or str(self.folder.database)
        try:
            held = anchors(self.folder.results)
        except Exception as error:  # a database or a server fails in many ways, and each leaves the question open
            self.answer.mlflow = "not checked"
            yield Finding("mlflow", place, f"cannot be read, so that nothing could be compared ({error})")
            return
        entries = ledger.entries(self.folder.results)
        last = {entry["workflow"]: (number, entry["digest"]) for number, entry in enumerate(entries, 1)}
        path = str(self.folder.ledger)
        for workflow, (number, identity) in last.items():
            if held["entries"].get(workflow) != identity:
                known = held["entries"].get(workflow)
                state = f"holds {short(known)}" if known else "knows no entry"
                message = f"line {number}: digest {short(identity)}, but MLflow {state} of workflow {workflow}"
                yield Finding("mlflow", path, message, known, identity)
        for workflow in held["entries"].keys() - last.keys():
            known = held["entries"][workflow]
            message = f"no entry of workflow {workflow}, though MLflow holds {short(known)}: cut off or removed"
            yield Finding("mlflow", path, message, known)
        named = {
            item["job"]: item["sha256"] for entry in entries for kind in ("crashed", "records") for item in entry[kind]
        }
        for job in sorted(named.keys() | held["records"].keys()):
            if named.get(job) != held["records"].get(job):
                kind = "final" if self.folder.final_path(job).exists() or job not in self.history.jobs else "start"
                known = held["records"].get(job)
                message = f"the ledger says sha256 {short(named.get(job))}, but MLflow holds {short(known)}"
                record = str(self.folder.records / f"{job}.{kind}.json")
                yield Finding("mlflow", record, message, known, named.get(job))
        compared = 0
        current = {job.name for job in self._current}
        for name, values in held["metrics"].items():
            expected = self._expected(name)
            compared += len(expected)
            for metric, value in expected.items():
                # A job whose files were replaced and came back the same was perhaps ingested while they were away.
                if values.get(metric, None if name in current else value) == value:
                    continue
                message = f"metric {metric} of job {name} is {values.get(metric)}, but record and results say {value}"
                yield Finding("mlflow", place, message, repr(value), repr(values.get(metric)))
        self.answer.mlflow = f"{len(named)} records, {len(entries)} entries, {compared} metrics compared with {place}"

    def _expected(self, name: str) -> dict[str, float]:
        """Metrics that a job's record and the results say, wherever this folder lies now."""
        from conceptome.provenance.mlflow import expected_metrics

        job = self.history.jobs.get(name)
        return {} if job is None else expected_metrics(job.record, self.history.locate)

    def _statement(self) -> Iterator[Finding]:
        """Compare the signed statement with the ledger and the records."""
        from conceptome.provenance import statement

        path = self.folder.statement
        if not path.exists() and self.public_key is None:
            return
        try:
            stated = statement.read(path, self.public_key)
        except DataError as error:
            self.answer.signature = "does not hold"
            yield Finding("signature", str(path), str(error).removeprefix(f"{path}: "))
            return
        self.answer.signature = (
            f"holds for {self.public_key}" if self.public_key else "not checked: name the key with --public-key"
        )
        for line in statement.differences(self.folder.results, stated):
            yield Finding("signature", str(path), line)


def exempt(path: str) -> bool:
    """Tell whether a file, by its path below the results folder, needs no record."""
    return any(fnmatchcase(path, pattern) for pattern in EXEMPT)


def _host(job: Job) -> str:
    return (job.record.get("machine") or job.record["host"])["name"]


def _key(job: Job) -> str:
    return json.dumps(job.record["wildcards"], sort_keys=True)


def command(arguments: argparse.Namespace) -> int:
    """`conceptome verify`."""
    started = time.monotonic()
    with _progress(sys.stderr.isatty() and not arguments.json) as progress:
        answer = Verification(
            arguments.results, cold=arguments.cold, public_key=arguments.public_key, progress=progress
        ).run()
    seconds = time.monotonic() - started
    if arguments.json:
        findings = [asdict(item) for item in answer.findings]
        content = {"command": "verify", "clean": answer.clean, "findings": findings, "notes": answer.notes}
        counts = {**answer.counts, "seconds": round(seconds, 3), "cold": arguments.cold}
        print(
            json.dumps(
                {**content, **counts, "mlflow": answer.mlflow, "signature": answer.signature}, ensure_ascii=False
            )
        )
    else:
        _show(answer, arguments, seconds)
    return 0 if answer.clean else 1


@contextmanager
def _progress(wanted: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar over the hashed bytes, on a terminal only."""
    if not wanted:
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("hashing"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("hashing", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _show(answer: Answer, arguments: argparse.Namespace, seconds: float) -> None:
    from rich.console import Console

    # Paths are not to be broken, marked up or coloured by what they happen to contain.
    console = Console(soft_wrap=True, highlight=False, markup=False)
    counts = Counter(answer.counts)
    for title, kinds in (
        ("altered, or not as recorded", {item.kind for item in answer.findings} - set(OUTDATED)),
        ("as recorded, but made by other code or packages than those here", set(OUTDATED)),
    ):
        chosen = [item for item in answer.findings if item.kind in kinds]
        if chosen:
            console.print(f"{len(chosen)} {title}:", style="bold red")
        for item in chosen[:SHOWN]:
            console.print(f"  {item.kind:9s} {item}")
        if len(chosen) > SHOWN:
            console.print(f"  … and {len(chosen) - SHOWN} more: --json lists all")
    for note in answer.notes:
        console.print(f"note: {note}")
    hashed = f"{counts['hashed_bytes'] / 1e9:.2f} of {counts['bytes'] / 1e9:.2f} GB hashed"
    trust = (
        "no cache trusted" if arguments.cold else f"{counts['trusted']} files trusted from the cache, --cold reads them"
    )
    console.print(f"{counts['files']} files: {hashed}, {trust}")
    console.print(
        f"{counts['sources']} raw sources, {counts['modules']} modules, {counts['packages']} packages compared"
    )
    console.print(f"MLflow: {answer.mlflow}; signature: {answer.signature}; {seconds:.1f} s")
    verdict = "clean: nothing differs" if answer.clean else f"not clean: {len(answer.findings)} findings"
    console.print(f"{arguments.results}: {verdict}", style="bold green" if answer.clean else "bold red")
