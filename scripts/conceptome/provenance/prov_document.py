"""The records of a results folder as a W3C PROV document, written as PROV-JSON with the prov library.

Sources: PROV-DM, https://www.w3.org/TR/prov-dm; PROV-JSON, https://www.w3.org/submissions/prov-json.
Files carry the same arcp addresses as in the RO-Crate.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from conceptome import __version__
from conceptome.files import write_json
from conceptome.provenance import published
from conceptome.provenance.history import Artifact, History, Job

if TYPE_CHECKING:
    from prov.model import ProvDocument


def write(history: History, out: str | os.PathLike) -> dict[str, int]:
    """Write PROV-JSON; equal records give equal bytes. Gives the numbers of `files` and `jobs` described."""
    made = document(history)
    write_json(out, json.loads(made.serialize(format="json")))
    return {"files": len(set(_addresses(history))), "jobs": len(history.jobs)}


def document(history: History) -> ProvDocument:
    """Describe files as entities, jobs and runs as activities, Conceptome at each commit as a software agent."""
    from prov.model import PROV, ProvDocument

    made = ProvDocument()
    made.add_namespace("schema", "http://schema.org/")
    root = published.base(history)
    files = made.add_namespace("file", root)
    jobs = made.add_namespace("job", f"{root}#job/")
    runs = made.add_namespace("run", f"{root}#run/")
    agents = made.add_namespace("agent", f"{root}#agent/")
    known: set[Any] = set()

    def file(item: Artifact) -> Any:
        name = files[published.address(history, item).removeprefix(root)]
        if name not in known:
            known.add(name)
            place = published.below_results(history, item.path)
            about = {"schema:encodingFormat": item.media_type, **_content(item.sha256, item.size)}
            made.entity(name, {PROV["label"]: place, **about})
        return name

    def agent(job: Job) -> Any:
        commit = job.record.get("commit") or {}
        version = f"{commit.get('id') or __version__}{'-changed' if commit.get('dirty') else ''}"
        name = agents[f"conceptome-{version}"]
        if name not in known:
            known.add(name)
            told = {"schema:name": "Conceptome", "schema:softwareVersion": version}
            made.agent(name, {PROV["type"]: PROV["SoftwareAgent"], **told})
        return name

    for workflow, members in history.workflows().items():
        facts = published.facts(history, workflow)
        run = made.activity(
            runs[workflow or "unnamed"], _time(facts.get("started")), _time(facts.get("ended")),
            {PROV["label"]: f"workflow run {workflow or 'unnamed'}"},
        )  # fmt: skip
        for job in members:
            record, recipe = job.record, job.record.get("recipe")
            activity = made.activity(
                jobs[job.name], _time(record["started"]), _time(record.get("ended")),
                {PROV["label"]: job.title, "schema:actionStatus": job.status, "schema:identifier": recipe},
            )  # fmt: skip
            made.wasStartedBy(activity, starter=run)
            made.wasAssociatedWith(activity, agent(job))
            for item in job.inputs:
                made.used(activity, file(item), other_attributes={PROV["role"]: item.name})
            for source in published.sources(job):
                name = files[f"sources/{source.sha256}"]
                if name not in known:
                    known.add(name)
                    about = {"schema:url": source.address, "schema:license": source.licence}
                    made.entity(name, {PROV["label"]: source.name, **about, **_content(source.sha256, source.size)})
                made.used(activity, name, other_attributes={PROV["role"]: "source"})
            for item in job.outputs:
                made.wasGeneratedBy(file(item), activity, other_attributes={PROV["role"]: item.name})
    return made


def _addresses(history: History) -> list[str]:
    jobs = history.jobs.values()
    return [published.address(history, item) for job in jobs for item in [*job.inputs, *job.outputs]]


def _content(sha256: str, size: int) -> dict[str, Any]:
    from prov.model import XSD, Literal

    # Spelt out, because the library takes every whole number for a 32-bit one.
    return {"schema:sha256": sha256, "schema:contentSize": Literal(str(size), XSD["long"])}


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
