"""A results folder as a Workflow Run RO-Crate (Provenance Run Crate profile 0.5), written with the rocrate library.

Sources: RO-Crate 1.1, https://w3id.org/ro/crate/1.1; Provenance Run Crate 0.5, https://w3id.org/ro/wfrun/provenance/0.5
(Leo et al. 2024, PLoS ONE 19:e0309210, doi:10.1371/journal.pone.0309210).

Figures, evidence tables, cards, records, ledger, configuration and code lie in the crate; large data are named by path
(an arcp URI), sha256 and size. The crate's results/ can be asked like the folder itself: `conceptome why F3 --results
CRATE/results`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

from conceptome import __version__
from conceptome.files import sha256_file
from conceptome.provenance import published
from conceptome.provenance.citation import citation
from conceptome.provenance.closure import repository
from conceptome.provenance.folder import canonical, digest, media_type
from conceptome.provenance.history import Artifact, History, Job
from conceptome.provenance.pack import new_package

PROFILES = {
    "https://w3id.org/ro/wfrun/process/0.5": "Process Run Crate",
    "https://w3id.org/ro/wfrun/workflow/0.5": "Workflow Run Crate",
    "https://w3id.org/ro/wfrun/provenance/0.5": "Provenance Run Crate",
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0": "Workflow RO-Crate",
}
BIOSCHEMAS = "https://bioschemas.org/profiles"
RO_CRATE = "1.1"  # what the profiles are written for
# Not a term of the RO-Crate 1.1 context; spelt out here, so that a reader needs no further context from the network.
TERMS = {"sha256": "https://w3id.org/ro/terms/workflow-run#sha256"}


def is_packed(path: str) -> bool:
    """Whether an output (path below results/) is small and meant for readers: it lies in the crate itself."""
    return path.startswith(("results/studies/", "results/evidence/")) or path.endswith("/card.json")


def write(history: History, out: str | Path) -> dict[str, int]:
    """Write the crate of a history to the folder or .zip `out`; equal results give equal bytes.

    Returns
    -------
    Numbers of `files`, `jobs` and `runs` described.

    Raises
    ------
    DataError
        No job succeeded; `out` exists; a file that goes into the crate is missing or was changed since it was recorded;
        the run's commit is not in this checkout.
    """
    with new_package(out) as folder:
        crate = Crate(history)
        crate.build()
        crate.crate.write(folder)
    return {"files": len(crate.files), "jobs": len(history.jobs), "runs": len(history.workflows())}


class Crate:
    """The crate of a history, built entity by entity; `crate` is rocrate's object."""

    def __init__(self, history: History):
        from rocrate.rocrate import ROCrate

        self.history = history
        self.crate = ROCrate(version=RO_CRATE)
        self.crate.metadata.extra_terms.update(TERMS)
        self.files: dict[tuple[str, str], Any] = {}
        self.withheld = published.withheld(history)
        self.last = published.last_success(history)
        scripts = {}
        for job in history.jobs.values():
            for path in published.code_files(job):
                if re.fullmatch(r"scripts/[^/]+\.py", path):
                    scripts[job.rule] = path
        self.scripts = scripts  # rule → script, of rules with a job that came as far as to say so
        self.entities: dict[str, Any] = {}
        self.tools: dict[str, Any] = {}
        self.steps: dict[str, Any] = {}
        self.parameters: dict[str, Any] = {}
        self.examples: dict[str, dict[str, Any]] = {}

    def build(self) -> None:
        """Add everything."""
        self._root()
        self._code()
        self._papers()
        for workflow, jobs in self.history.workflows().items():
            self._run(workflow, jobs)
        for identity, examples in self.examples.items():
            parameter = self.parameters[identity]
            parameter["workExample"] = [examples[key] for key in sorted(examples)]
            for example in parameter["workExample"]:
                example.append_to("exampleOfWork", parameter)
        self.workflow["hasPart"] = list(self.tools.values())
        self.workflow["step"] = list(self.steps.values())
        for entity in self.crate.get_entities():  # a single value is no list, says the specification
            for key, value in entity.properties().items():
                if isinstance(value, list) and len(value) == 1:
                    entity.properties()[key] = value[0]

    def _entity(self, identity: str, kind: str | list[str], **values: Any) -> Any:
        """Add a contextual entity, once."""
        from rocrate.model.contextentity import ContextEntity

        # Not asked of the crate: it looks through all its entities for one that it does not have.
        if identity not in self.entities:
            given = {key: value for key, value in values.items() if value not in (None, "", [])}
            self.entities[identity] = ContextEntity(self.crate, identity, {"@type": kind, **given})
            self.crate.add(self.entities[identity])
        return self.entities[identity]

    def _root(self) -> None:
        cited, root = citation(), self.crate.root_dataset
        facts = published.facts(self.history, self.last.record.get("workflow"))
        title = facts.get("name") or Path(self.history.recorded_results).name
        self.licence = self._entity(f"https://spdx.org/licenses/{cited.licence}", "CreativeWork", name=cited.licence)
        self.authors = [
            self._entity(
                author.orcid or f"#author/{digest(author.name)[:16]}",
                "Person" if author.person else "Organization",
                name=author.name,
                affiliation=author.affiliation,
            )
            for author in cited.authors
        ]
        root["name"] = f"Conceptome results: {title}"
        root["description"] = (
            "Figures, evidence tables, cards, code, configuration and provenance records of a Conceptome run. Data too "
            "large for the crate, or not to be passed on, are named by path, sha256 and size. Each raw source has the "
            "licence of its publisher."
        )
        root["datePublished"] = published.iso(self.last.record["ended"])  # of the results, so that bytes repeat
        root["license"] = self.licence
        root["author"] = self.authors
        root["conformsTo"] = [
            self._entity(uri, "CreativeWork", name=name, version=uri.rsplit("/", 1)[1])
            for uri, name in PROFILES.items()
        ]

    def _add_bytes(self, path: str, content: bytes, **values: Any) -> Any:
        return self.crate.add_file(BytesIO(content), path, properties={**_described(path, content), **values})

    def _code(self) -> None:
        commit = self.last.record.get("commit") or {}
        code = published.repository_files(commit.get("id"))
        self.code = set(code)
        self.version = f"{commit.get('id') or __version__}{' with local changes' if commit.get('dirty') else ''}"
        installed = published.distributions(self.history, self.last)
        self.engine = self._entity(
            "#engine/snakemake",
            "SoftwareApplication",
            name="Snakemake",
            url="https://snakemake.github.io",
            softwareVersion=installed.get("snakemake"),
        )
        for path in ("LICENSE", "CITATION.cff"):
            self._add_bytes(path, (repository() / path).read_bytes())
        tools = set(self.scripts.values())
        for path, content in code.items():
            if path == "Snakefile":
                self.workflow = self.crate.add_workflow(
                    BytesIO(content),
                    path,
                    properties={
                        **_described(path, content),
                        "@type": ["File", "SoftwareSourceCode", "ComputationalWorkflow", "HowTo"],
                        "name": "Conceptome",
                        "version": self.version,
                        "license": self.licence,
                        "author": self.authors,
                        "conformsTo": {"@id": f"{BIOSCHEMAS}/ComputationalWorkflow/1.0-RELEASE"},
                    },
                    main=True,
                    lang="snakemake",
                    lang_version=installed.get("snakemake"),
                )
            elif path in tools:
                self.tools[path] = self._add_bytes(
                    path,
                    content,
                    **{"@type": ["File", "SoftwareSourceCode"]},
                    version=self.version,
                    programmingLanguage=self._entity("https://www.python.org", "ComputerLanguage", name="Python"),
                )
            else:
                self._add_bytes(path, content)

    def _papers(self) -> None:
        """Add the ledger, the statement, and what the witness kept of these jobs."""
        folder = self.history.folder
        found = [folder.ledger, folder.statement]
        for job in self.history.jobs.values():
            record = job.record
            found += [folder.start_path(job.name), folder.final_path(job.name)]
            found.append(folder.workflows / f"{record.get('workflow')}.json")
            found.append(folder.environments / f"{record.get('environment')}.json")
            found.append(folder.diffs / f"{(record.get('commit') or {}).get('diff')}.diff")
        for path in sorted({path for path in found if path.is_file()}):
            place = (Path("results") / path.relative_to(folder.results)).as_posix()
            properties = {"name": place, "sha256": sha256_file(path), "contentSize": str(path.stat().st_size)}
            self.crate.add_file(path, place, properties={**properties, "encodingFormat": _media_type(place)})

    def _file(self, item: Artifact) -> Any:
        """Add one version of a file: as a file of the crate, or named by its address."""
        key = (item.path, item.sha256)
        if key not in self.files:
            current = self.history.outputs.get(item.path)
            place = published.below_results(self.history, item.path)
            properties = {
                "name": place,
                "sha256": item.sha256,
                "contentSize": str(item.size),
                "encodingFormat": item.media_type,
            }
            inside = is_packed(place) and item.path not in self.withheld
            if current and current[1].sha256 == item.sha256 and inside:
                source = published.checked(self.history, item)
                self.files[key] = self.crate.add_file(source, place, properties=properties)
            else:
                self.files[key] = self.crate.add_file(published.address(self.history, item), properties=properties)
        return self.files[key]

    def _source(self, source: published.Source) -> Any:
        key = (source.address, source.sha256)
        if key not in self.files:
            self.files[key] = self.crate.add_file(
                source.address,
                properties={
                    "name": source.name,
                    "description": source.description + (f" Stand-in: {source.stand_in}" if source.stand_in else ""),
                    "sha256": source.sha256,
                    "contentSize": str(source.size),
                    "encodingFormat": media_type(source.name),
                    "license": self._entity(
                        f"#licence/{digest(source.licence)[:16]}", "CreativeWork", name=source.licence
                    ),
                    "citation": self._entity(
                        f"#citation/{digest(source.citation)[:16]}", "CreativeWork", name=source.citation
                    ),
                },
            )
        return self.files[key]

    def _tool(self, rule: str) -> Any:
        """The script of a rule; for a rule none of whose jobs came so far as to name one, an entity of its own."""
        script = self.scripts.get(rule, f"#tool/{rule}")
        if script not in self.tools:
            self.tools[script] = self._entity(script, "SoftwareApplication", name=rule, softwareVersion=self.version)
        return self.tools[script]

    def _step(self, rule: str) -> Any:
        if rule not in self.steps:
            self.steps[rule] = self._entity(
                f"#step/{rule}",
                "HowToStep",
                name=rule,
                position=str(len(self.steps) + 1),
                workExample=self._tool(rule),
            )
        return self.steps[rule]

    def _parameter(self, tool: Any, role: str, name: str, kind: str, example: Any) -> None:
        """Note that `example` is what a tool took as its input or parameter `name`, or gave as its output."""
        identity = f"#{role}/{tool.id.lstrip('#')}/{name}"
        if identity not in self.parameters:
            self.parameters[identity] = self._entity(
                identity,
                "FormalParameter",
                name=name,
                additionalType=kind,
                conformsTo={"@id": f"{BIOSCHEMAS}/FormalParameter/1.0-RELEASE"},
            )
            self.examples[identity] = {}
            tool.append_to("output" if role == "output" else "input", self.parameters[identity])
        elif (known := self.parameters[identity]["additionalType"]) != kind:
            numbers = {known, kind} <= {"Integer", "Float", "Number"}
            self.parameters[identity]["additionalType"] = "Number" if numbers else "Text"
        self.examples[identity][example.id] = example

    def _values(self, job: Job, tool: Any) -> Iterator[Any]:
        given = {"wildcard": job.record.get("wildcards"), **(job.record.get("parameters") or {})}
        for name, value in _leaves(given):
            # One entity for all jobs of the tool that had this value.
            known = self._entity(
                f"#value/{digest([tool.id, name, value])[:16]}", "PropertyValue", name=name, value=value
            )
            self._parameter(tool, "parameter", name, _type(value), known)
            yield known

    def _job(self, job: Job) -> Any:
        tool = self._tool(job.rule)
        read, wrote = [], []
        for item in job.inputs:
            read.append(self._file(item))
            self._parameter(tool, "input", item.name, "File", read[-1])
        for source in published.sources(job):
            read.append(self._source(source))
            self._parameter(tool, "input", "source", "File", read[-1])
        for item in job.outputs:
            wrote.append(self._file(item))
            self._parameter(tool, "output", item.name, "File", wrote[-1])
        place = f"results/{job.path.relative_to(self.history.folder.results).as_posix()}"
        error = None if job.status == "success" else job.record.get("error") or "killed: it wrote no final record"
        return self._entity(
            f"#job/{job.name}",
            "CreateAction",
            name=job.title,
            description=f"Job {job.name} of rule {job.rule}: {job.status}",
            instrument=tool,
            object=_once([*read, *self._values(job, tool)]),
            result=_once(wrote),
            startTime=published.iso(job.record["started"]),
            endTime=published.iso(job.record["ended"]) if "ended" in job.record else None,
            actionStatus=_status(error is None),
            error=error,
            subjectOf=self.crate.get(place),
        )

    def _configuration(self, facts: Mapping[str, Any]) -> list[Any]:
        """Configuration and study files of a run; one that is in no commit is taken from the disk, and says so."""
        for place, path in published.untracked(facts, self.code).items():
            told = "In no commit of the repository; as it was when this crate was written."
            self._add_bytes(place, path.read_bytes(), description=told)
            self.code.add(place)
        return [self.crate.get(quote(place)) for place in published.configuration(facts) if place in self.code]

    def _run(self, workflow: str | None, jobs: list[Job]) -> None:
        """Add a workflow run: the engine's action, the workflow's action, and a control action for each job."""
        facts = published.facts(self.history, workflow)
        identity = workflow or "unnamed"
        actions = [self._job(job) for job in jobs]
        for job in jobs:
            self._step(job.rule)
        controls = [
            self._entity(
                f"#control/{job.name}",
                "ControlAction",
                name=f"Snakemake runs {job.title}",
                instrument=self.steps[job.rule],
                object=action,
            )
            for job, action in zip(jobs, actions, strict=True)
        ]
        figures = [self._file(item) for job in jobs for item in job.outputs if job.rule.startswith("figure_")]
        raw = [self._source(source) for job in jobs for source in published.sources(job)]
        configuration = self._configuration(facts)
        for role, name, items in (
            ("input", "configuration", configuration),
            ("input", "sources", raw),
            ("output", "figures", figures),
        ):
            for item in items:
                self._parameter(self.workflow, role, name, "File", item)
        ends = [job.record["ended"] for job in jobs if "ended" in job.record]
        good = facts.get("exit_code", 0) == 0 and all(job.status == "success" for job in jobs)
        times = {
            "startTime": published.iso(facts.get("started", min(job.record["started"] for job in jobs))),
            "endTime": published.iso(facts.get("ended", max(ends))) if ends or "ended" in facts else None,
            "actionStatus": _status(good),
            "error": None if good else "not all jobs succeeded",
        }
        run = self._entity(
            f"#run/{identity}",
            "CreateAction",
            name=f"Conceptome run {facts.get('name', identity)}",
            description=f"Workflow run {identity}: {len(jobs)} jobs",
            instrument=self.workflow,
            object=_once([*configuration, *raw]),
            result=_once(figures) or _once([self._file(item) for job in jobs for item in job.outputs]),
            **times,
        )
        self._entity(
            f"#engine-run/{identity}",
            "OrganizeAction",
            name=f"Snakemake runs the workflow, run {identity}",
            instrument=self.engine,
            object=controls,
            result=run,
            **times,
        )
        self.crate.root_dataset.append_to("mentions", [run, *actions])


def _described(path: str, content: bytes, name: str | None = None) -> dict[str, str]:
    return {
        "name": name or path,
        "sha256": hashlib.sha256(content).hexdigest(),
        "contentSize": str(len(content)),
        "encodingFormat": _media_type(path),
    }


def _media_type(path: str) -> str:
    """IANA media type of a file that no record describes: code is text, also where its suffix says nothing."""
    guess = media_type(path)
    return "text/plain" if guess == "application/octet-stream" else guess


def _leaves(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Name each value of nested parameters: dictionary.k; lists as JSON; what is not set is left out."""
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from _leaves(item, f"{prefix}{key}.")
        elif isinstance(item, list):
            yield f"{prefix}{key}", canonical(item).decode()
        elif item is not None:
            yield f"{prefix}{key}", item


def _type(value: Any) -> str:
    names = {bool: "Boolean", int: "Integer", float: "Float"}
    return names.get(type(value), "Text")


def _once(entities: list[Any]) -> list[Any]:
    return list({entity.id: entity for entity in entities}.values())


def _status(good: bool) -> str:
    return f"http://schema.org/{'Completed' if good else 'Failed'}ActionStatus"
