"""`conceptome diff`: which change explains each output that differs between two states of results."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conceptome.errors import DataError
from conceptome.provenance.display import printer
from conceptome.provenance.folder import canonical
from conceptome.provenance.history import Artifact, History, Job

# What of a machine can change bytes; its name, memory and number of processors cannot.
MACHINE = ("system", "cpu")
_SHOWN, _CAUSES = 3, 12  # paths and causes that the text names per group; --json names all


@dataclass(frozen=True)
class Cause:
    """One recorded difference: of what kind, in which rule, what, and its value on either side."""

    kind: str
    rule: str | None
    what: str
    a: Any
    b: Any

    @property
    def sentence(self) -> str:
        """The cause in words."""
        where = f" of rule {self.rule}" if self.rule else ""
        if self.kind in ("only in A", "only in B"):
            return f"written {self.kind}, by rule {self.rule}"
        if self.kind == "not reproducible":
            return f"nothing recorded differs in rule {self.rule}: not reproducible"
        return f"{self.kind} {self.what}{where}: {_short(self.a)} → {_short(self.b)}"


# Causes of a difference, each with the titles of the jobs where it began.
Explanation = dict[Cause, frozenset[str]]


@dataclass
class State:
    """What lay in a results folder at the end of a workflow run (or lies there now), and whose records say so."""

    name: str
    history: History
    workflow: str | None
    outputs: dict[str, tuple[Job, Artifact]]

    def relative(self, path: str) -> str:
        """Spell a recorded path relative to the results folder, so that two folders can be compared."""
        root = Path(self.history.recorded_results)
        return Path(path).relative_to(root).as_posix() if Path(path).is_relative_to(root) else path

    def neutral(self, value: Any) -> Any:
        """Spell a parameter without the name of the results folder."""
        root = self.history.recorded_results
        if isinstance(value, str) and (value == root or value.startswith(f"{root}/")):
            return "{results}" + value[len(root) :]
        return [self.neutral(item) for item in value] if isinstance(value, list) else value


def runs(history: History) -> list[str]:
    """Workflow runs in order of time, those that had nothing to do included (by their ids, which begin with it)."""
    first = {identity: jobs[0].name for identity, jobs in history.workflows().items() if identity}
    known = list(first)
    for identity in sorted({path.stem for path in history.folder.workflows.glob("*.json")} - first.keys()):
        later = (place for place, item in enumerate(known) if first.get(item, item) > identity)
        known.insert(next(later, len(known)), identity)
    return known


def state(history: History, name: str) -> State:
    """Find the state that `name` means: `last`, `last-N`, a workflow run's id (or its beginning), a results folder.

    The state at the end of a run is all that jobs up to and of that run wrote.

    Raises
    ------
    DataError
        No such run.
    """
    known = runs(history)
    counted = re.fullmatch(r"last(?:-(\d+))?", name)
    if counted:
        back = int(counted[1] or 0)
        if back >= len(known):
            raise DataError(f"{name}: {history.folder.results} records {len(known)} workflow run(s)")
        return _after(history, name, known, known[-1 - back])
    found = [item for item in known if item == name] or [item for item in known if item.startswith(name)]
    if not found and Path(name).is_dir():
        return _after(History(name), name, [], None)
    if len(found) != 1:
        among = ", ".join((found or known)[-5:]) or "none"
        problem = "names more than one workflow run" if found else "is neither a results folder nor a workflow run"
        raise DataError(f"{name}: {problem} of {history.folder.results} ({among})")
    return _after(history, name, known, found[0])


def _after(history: History, name: str, known: list[str], workflow: str | None) -> State:
    """What lay there at the end of a workflow run, which is one of those `known`; None: what lies there now."""
    later = set(known[known.index(workflow) + 1 :]) if workflow else set()
    result = State(name, history, workflow, {})
    for job in history.jobs.values():
        if job.status == "success" and job.record.get("workflow") not in later:
            result.outputs.update({result.relative(item.path): (job, item) for item in job.outputs})
    return result


class Comparison:
    """Two states, and why the outputs that differ between them do."""

    def __init__(self, a: State, b: State):
        self.a, self.b = a, b
        self._known: dict[tuple[str, str], Explanation] = {}

    def differing(self) -> list[str]:
        """Paths (relative to the results folder) whose bytes differ or that one side lacks."""
        paths = sorted(self.a.outputs.keys() | self.b.outputs.keys())
        return [path for path in paths if self.digest(self.a, path) != self.digest(self.b, path)]

    @staticmethod
    def digest(side: State, path: str) -> str | None:
        """Sha256 of an output on one side; None where that side lacks it."""
        return side.outputs[path][1].sha256 if path in side.outputs else None

    def explain(self, path: str) -> Explanation:
        """Name the causes of one differing output, each with the jobs where it began."""
        a, b = ((side.outputs.get(path) or (None, None))[0] for side in (self.a, self.b))
        return self.jobs(a, b) if a and b else _lone(a, b)

    def jobs(self, a: Job, b: Job) -> Explanation:
        """Name what explains that two jobs wrote different bytes: their own differences, and those of their inputs."""
        key = (a.name, b.name)
        if key not in self._known:
            self._known[key] = {}  # should records point in a circle
            found = _merged([_began(self._own(a, b), b), *self._upstream(a, b)])
            found = found or _began(_facts("commit", _commit(a), _commit(b)), b)
            self._known[key] = found or _began([Cause("not reproducible", b.rule, "", None, None)], b)
        return self._known[key]

    def _own(self, a: Job, b: Job) -> Iterator[Cause]:
        """Differences of two jobs that are not their inputs' and not the commit (code counts by its syntax trees)."""
        first, second = a.record, b.record
        yield from _facts("rule", {"name": a.rule}, {"name": b.rule})
        left, right = (
            {key: side.neutral(value) for key, value in _flat(job.record.get("parameters") or {})}
            for side, job in ((self.a, a), (self.b, b))
        )
        yield from _facts("parameter", left, right, b.rule)
        yield from _code(first, second, b.rule)
        yield from _facts("kernels", _kernels(first), _kernels(second))
        packages = list(_packages(self.a, a, self.b, b))
        yield from packages
        if not packages:
            # The lock matters by what is installed from it; alone it still is a recorded difference.
            yield from _facts("lock", {"digest": first.get("lock")}, {"digest": second.get("lock")})
        for section in ("variables", "determinism", "blas"):
            # What a record of an older version lacks says nothing.
            if section in first and section in second:
                yield from _facts(section, _listed(first[section]), _listed(second[section]))
        yield from _facts("threads", {"number": first.get("threads")}, {"number": second.get("threads")})
        yield from _machines(first, second)

    def _upstream(self, a: Job, b: Job) -> Iterator[Explanation]:
        """Causes of the inputs that differ, followed to the jobs where they began."""
        left, right = (
            {(item.name, side.relative(item.path)): item for item in job.inputs}
            for side, job in ((self.a, a), (self.b, b))
        )
        for key in sorted(left.keys() | right.keys()):
            mine, theirs = left.get(key), right.get(key)
            if mine and theirs and mine.sha256 == theirs.sha256:
                continue
            before = self.a.history.producer(mine, a) if mine else None
            after = self.b.history.producer(theirs, b) if theirs else None
            if before and after:
                yield self.jobs(before, after)
            elif (before or after) and not (mine and theirs):
                yield _lone(before, after)
            else:
                digests = [item.sha256 if item else None for item in (mine, theirs)]
                yield _began([Cause("input", b.rule, key[1], *digests)], b)

    def groups(self) -> list[tuple[Explanation, list[str]]]:
        """Differing outputs by what explains them, the largest group first."""
        found: dict[frozenset[Cause], tuple[list[Explanation], list[str]]] = {}
        for path in self.differing():
            explanation = self.explain(path)
            told, paths = found.setdefault(frozenset(explanation), ([], []))
            told.append(explanation)
            paths.append(path)
        groups = [(_merged(told), paths) for told, paths in found.values()]
        return sorted(groups, key=lambda group: (-len(group[1]), group[1]))


def _began(causes: Iterable[Cause], job: Job) -> Explanation:
    return {cause: frozenset([job.title]) for cause in causes}


def _lone(a: Job | None, b: Job | None) -> Explanation:
    """Name the job that only one side ran."""
    job = a or b
    return _began([Cause("only in A" if a else "only in B", job.rule, "", None, None)], job)


def _merged(explanations: Iterable[Explanation]) -> Explanation:
    """All causes in order of their wording, each with all jobs where it began."""
    found: dict[Cause, frozenset[str]] = {}
    for explanation in explanations:
        for cause, jobs in explanation.items():
            found[cause] = found.get(cause, frozenset()) | jobs
    return dict(sorted(found.items(), key=lambda item: item[0].sentence))


def _facts(kind: str, a: Mapping[str, Any], b: Mapping[str, Any], rule: str | None = None) -> Iterator[Cause]:
    """One cause per key whose values differ."""
    for key in sorted(a.keys() | b.keys()):
        if a.get(key) != b.get(key):
            yield Cause(kind, rule, key, _frozen(a.get(key)), _frozen(b.get(key)))


def _frozen(value: Any) -> Any:
    """Spell a value so that equal causes are one: lists as tuples, mappings as JSON."""
    if isinstance(value, Mapping):
        return canonical(value).decode()
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Give every value of a nested mapping by its dotted key."""
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            yield from _flat(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item


def _listed(value: Mapping[str, Any] | list[Mapping[str, Any]]) -> dict[str, Any]:
    """Flatten a section of a record; a list of libraries is keyed by their files."""
    if isinstance(value, list):
        value = {item["file"]: {key: fact for key, fact in item.items() if key != "file"} for item in value}
    return dict(_flat(value))


def _code(a: Mapping[str, Any], b: Mapping[str, Any], rule: str) -> Iterator[Cause]:
    """Files of the code closure that differ; the closure's digest where a record of version 1 lists no digests."""
    left, right = a.get("code") or {}, b.get("code") or {}
    if left.get("digest") == right.get("digest"):
        return
    if isinstance(left.get("files"), Mapping) and isinstance(right.get("files"), Mapping):
        files = list(_facts("code", left["files"], right["files"]))
        if files:
            yield from files
            return
    yield Cause("code", rule, "closure", left.get("digest"), right.get("digest"))


def _kernels(record: Mapping[str, Any]) -> dict[str, Any]:
    """Variant and build digest; version 1 of the record joined them with a hyphen."""
    kernels = record.get("kernels") or {}
    return dict(kernels) if isinstance(kernels, Mapping) else dict(zip(("variant", "build"), kernels.split("-", 1)))


def _packages(a: State, first: Job, b: State, second: Job) -> Iterator[Cause]:
    """Distributions that differ in version or, version being equal, in the digest of their RECORD; and Python."""
    yield from _facts("Python", {"version": first.record.get("python")}, {"version": second.record.get("python")})
    keys = [job.record.get("environment") for job in (first, second)]
    if keys[0] == keys[1]:
        return
    left, right = a.history.installed(first), b.history.installed(second)
    if left is None or right is None:
        yield Cause("environment", None, "(a list is missing)", *keys)
        return
    for name in sorted(left.keys() | right.keys()):
        mine, theirs = left.get(name), right.get(name)
        if mine and theirs and mine[0] == theirs[0]:
            if None not in (mine[1], theirs[1]):
                yield from _facts(
                    "package", {f"{name} {mine[0]}, RECORD": mine[1]}, {f"{name} {mine[0]}, RECORD": theirs[1]}
                )
        elif mine != theirs:
            yield Cause("package", None, name, mine and mine[0], theirs and theirs[0])


def _machines(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[Cause]:
    """Differences of the machines; of the processor's features those that one side lacks."""
    a, b = (dict(record.get("machine") or record.get("host") or {}) for record in (first, second))
    if "features" in a and "features" in b:
        mine, theirs = set(a.pop("features")), set(b.pop("features"))
        yield from _facts("machine", {"features": sorted(mine - theirs)}, {"features": sorted(theirs - mine)})
    for key in MACHINE:
        if key in a and key in b:
            yield from _facts("machine", {key: a[key]}, {key: b[key]})


def _commit(job: Job) -> dict[str, Any]:
    return {key: value for key, value in (job.record.get("commit") or {}).items() if value is not None}


def _short(value: Any) -> str:
    """Spell a value on part of a line."""
    if value is None:
        return "none"
    text = str(list(value) if isinstance(value, tuple) else value)
    if re.fullmatch(r"[0-9a-f]{40,}", text):
        return text[:12] + "…"
    return text if len(text) <= 60 else text[:59] + "…"


def command(arguments: argparse.Namespace) -> int:
    """Answer `conceptome diff`."""
    folders = [name for name in (arguments.run_a, arguments.run_b) if Path(name).is_dir()]
    # Two folders are compared without a third that --results would name.
    history = History(folders[0] if len(folders) == 2 else arguments.results)
    a, b = (state(history, name) for name in (arguments.run_a, arguments.run_b))
    comparison = Comparison(a, b)
    groups = comparison.groups()
    findings = [_finding(causes, paths) for causes, paths in groups]
    compared = len(a.outputs.keys() | b.outputs.keys())
    if arguments.json:
        import json

        answer = {
            "command": "diff",
            "clean": not findings,
            "findings": findings,
            **{key: {"name": side.name, "workflow": side.workflow, "results": str(side.history.folder.results),
                     "outputs": len(side.outputs)} for key, side in (("a", a), ("b", b))},
            "compared": compared,
            "differing": sum(len(paths) for _, paths in groups),
            "groups": [
                {
                    "causes": [
                        {"kind": cause.kind, "rule": cause.rule, "what": cause.what, "a": cause.a, "b": cause.b,
                         "began_in": sorted(jobs)}
                        for cause, jobs in causes.items()
                    ],
                    "outputs": [
                        {"path": path, "a": Comparison.digest(a, path), "b": Comparison.digest(b, path)}
                        for path in paths
                    ],
                }
                for causes, paths in groups
            ],
        }  # fmt: skip
        print(json.dumps(answer, indent=1, ensure_ascii=False))
    else:
        show(comparison, groups, compared)
    return 1 if findings else 0


def _finding(causes: Explanation, paths: list[str]) -> str:
    noun = "output differs" if len(paths) == 1 else "outputs differ"
    return f"{len(paths)} {noun} ({paths[0]}{', …' if len(paths) > 1 else ''}): " + "; ".join(
        cause.sentence for cause in causes
    )


def show(comparison: Comparison, groups: list[tuple[Explanation, list[str]]], compared: int) -> None:
    """Print the answer for people: one numbered group per explanation."""
    _, say = printer()
    for letter, side in (("A", comparison.a), ("B", comparison.b)):
        run = f"end of run {side.workflow}" if side.workflow else "last state"
        say(f"{letter}: {side.history.folder.results}, {run}, {len(side.outputs)} outputs")
    differing = sum(len(paths) for _, paths in groups)
    say()
    if not groups:
        say(f"clean: none of {compared} outputs differs")
        return
    say(f"{differing} of {compared} outputs differ", style="bold")
    for number, (causes, paths) in enumerate(groups, 1):
        say()
        say(f"{number}. {len(paths)} {'output' if len(paths) == 1 else 'outputs'}", style="bold")
        for cause, jobs in list(causes.items())[:_CAUSES]:
            say(cause.sentence, 3, hang=2)
            began = sorted(jobs)
            more = f" and {len(began) - 1} more jobs" if len(began) > 1 else ""
            say(f"began in {began[0]}{more}", 5, "dim", hang=2)
        if len(causes) > _CAUSES:
            say(f"and {len(causes) - _CAUSES} more causes (--json names all)", 3)
        for path in paths[:_SHOWN]:
            say(path, 3, "dim")
        if len(paths) > _SHOWN:
            say(f"and {len(paths) - _SHOWN} more (--json names all)", 3, "dim")
