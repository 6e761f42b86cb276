"""The ledger: results/ledger.jsonl, one line per workflow run, each line holding the digest of the line before.

An entry names the jobs' records by sha256, so that a record which is edited or removed later is noticed, and so is an
entry that is edited, removed from the middle or moved. What the chain alone cannot notice is an end that was cut off,
or a whole chain written anew: for that its head has to be known elsewhere (it is written to MLflow with each ingest).
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from conceptome.errors import DataError
from conceptome.files import atomic_path, read_json, sha256_file
from conceptome.provenance.findings import Finding, short
from conceptome.provenance.folder import ProvenanceFolder, canonical, digest
from conceptome.provenance.record import process_start

GENESIS = "0" * 64


def entries(results: str | os.PathLike) -> list[dict[str, Any]]:
    """Read the ledger without judging it.

    Raises
    ------
    DataError
        A line is not JSON.
    """
    path = ProvenanceFolder(results).ledger
    if not path.exists():
        return []
    read = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            read.append(json.loads(line))
        except json.JSONDecodeError:
            raise DataError(f"{path}, line {number}: not a JSON entry; the ledger was altered") from None
    return read


def head(results: str | os.PathLike) -> str:
    """Digest of the last entry; 64 zeros for an empty ledger."""
    read = entries(results)
    return read[-1]["digest"] if read else GENESIS


def is_running(start: dict[str, Any]) -> bool:
    """Tell whether the process that wrote a start record still runs; on another host nobody can tell: no."""
    process = start["process"]
    return start["host"]["name"] == platform.node() and process_start(process["pid"]) == process["started"] is not None


def append(results: str | os.PathLike) -> list[dict[str, Any]]:
    """Add one entry per workflow run that has records which no entry names yet, and give the new entries.

    Jobs that started, have no final record and no longer run are named as crashed, by their start record. What the
    front door wrote down about the run (its configuration and why that one, its studies) goes into the entry. The
    caller holds the ingest lock: the ledger has one writer at a time.
    """
    folder = ProvenanceFolder(results)
    read = entries(results)
    known = {item["sha256"] for entry in read for kind in ("records", "crashed") for item in entry[kind]}
    groups: dict[str | None, dict[str, list]] = defaultdict(lambda: {"records": [], "crashed": []})
    for job, (start, final) in folder.jobs().items():
        path = final or start
        identity = sha256_file(path)
        if identity in known:
            continue
        content = read_json(path)
        if final is None and is_running(content):
            continue
        kind = "records" if final else "crashed"
        groups[content["workflow"]][kind].append({"job": job, "sha256": identity})
    added = []
    previous = read[-1]["digest"] if read else GENESIS
    for identity in sorted(groups, key=lambda item: min(job["job"] for kind in groups[item].values() for job in kind)):
        entry = {
            "sequence": len(read) + len(added),
            "previous": previous,
            "time": round(time.time(), 3),
            "workflow": identity,
            "facts": _facts(folder, identity),
            **groups[identity],
        }
        entry["digest"] = previous = digest(entry)
        added.append(entry)
    if added:
        lines = b"".join(canonical(entry) + b"\n" for entry in added)
        # Copied and renamed rather than appended in place: a crash or a full disk leaves no half line.
        with atomic_path(folder.ledger) as temporary:
            before = folder.ledger.read_bytes() if folder.ledger.exists() else b""
            temporary.write_bytes(before + lines)
    return added


def _facts(folder: ProvenanceFolder, workflow: str | None) -> dict[str, Any] | None:
    path = folder.workflows / f"{workflow}.json"
    return read_json(path) if workflow and path.exists() else None


def verify(results: str | os.PathLike) -> list[Finding]:
    """Check the chain and the papers it names; an empty list means that all is well.

    What the chain itself cannot show is an end that was cut off together with its records, or a chain that was written
    anew: `conceptome.provenance.verify` compares it with its copies in MLflow and in the signed statement.
    """
    folder = ProvenanceFolder(results)
    try:
        read = entries(results)
    except DataError as error:
        return [Finding("ledger", str(folder.ledger), str(error))]
    findings = list(_check_chain(folder, read))
    named: set[str] = set()
    for position, entry in enumerate(read, 1):
        line = f"line {position}"
        findings += _check_facts(folder, entry, line)
        for kind, suffix in (("records", "final"), ("crashed", "start")):
            for item in entry.get(kind, []):
                path = folder.records / f"{item['job']}.{suffix}.json"
                named.add(path.name)
                findings += _check_record(path, item["sha256"], f"{folder.ledger}, {line}")
    for job, (start, final) in folder.jobs().items():
        if final is not None and final.name not in named:
            message = "no ledger entry names this record; `conceptome mlflow ingest` adds it"
            findings.append(Finding("ledger", str(final), message))
        elif final is None and start.name not in named and not is_running(read_json(start)):
            message = f"job {job} started and never ended; `conceptome mlflow ingest` notes it"
            findings.append(Finding("ledger", str(start), message))
    return findings


def _check_chain(folder: ProvenanceFolder, read: list[dict[str, Any]]) -> Iterator[Finding]:
    previous, latest = GENESIS, 0.0
    for position, entry in enumerate(read):
        path, line = str(folder.ledger), f"line {position + 1}"
        stated, identity = entry.get("digest"), digest({key: entry[key] for key in entry if key != "digest"})
        if stated != identity:
            message = f"{line}: the entry was edited (its digest is not that of its content)"
            yield Finding("ledger", path, message, stated, identity)
        if entry.get("sequence") != position:
            message = f"{line}: sequence {entry.get('sequence')} instead of {position}: entries removed or reordered"
            yield Finding("ledger", path, message)
        if entry.get("previous") != previous:
            message = f"{line}: does not follow the entry before it ({short(previous)}): removed, reordered or edited"
            yield Finding("ledger", path, message, entry.get("previous"), previous)
        if entry.get("time", 0) < latest:
            message = f"{line}: written before the line above it: the clock was set back"
            yield Finding("clock", path, message, str(latest), str(entry.get("time")))
        previous, latest = stated, entry.get("time", 0)


def _check_facts(folder: ProvenanceFolder, entry: Mapping[str, Any], line: str) -> list[Finding]:
    """Compare what the front door wrote about a run with what went into the ledger (it adds its end later)."""
    facts = entry.get("facts")
    path = folder.workflows / f"{entry.get('workflow')}.json"
    if not facts:
        return []
    if not path.exists():
        return [Finding("record", str(path), f"missing, though {folder.ledger}, {line} holds what it said")]
    now = read_json(path)
    return [
        Finding("record", str(path), f"{key} is {now.get(key)!r}, but {folder.ledger}, {line} says {value!r}")
        for key, value in facts.items()
        if now.get(key) != value
    ]


def _check_record(path: Path, expected: str, where: str) -> list[Finding]:
    if not path.exists():
        return [Finding("record", str(path), f"missing, though {where} names it", expected, None)]
    found = sha256_file(path)
    if found != expected:
        message = f"altered: sha256 {short(found)}, but {where} says {short(expected)}"
        return [Finding("record", str(path), message, expected, found)]
    if not path.name.endswith(".final.json"):
        return []
    start = path.with_name(path.name.replace(".final.", ".start."))
    expected = read_json(path).get("start_record")
    return [] if expected is None else _check_record(start, expected, str(path))
