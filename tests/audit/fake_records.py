"""Results folders with records in them, without running jobs."""

from __future__ import annotations

import json
from pathlib import Path

from conceptome.files import sha256_file, write_json


def write_record(results: Path, job: str, *, workflow: str = "w1", final: bool = True, **values) -> Path:
    """Write the record of one job; with `final` false only its start, by a process that is gone."""
    folder = results / ".provenance" / "records"
    start = {
        "schema_version": 1,
        "job": job,
        "workflow": workflow,
        "rule": "learn",
        "wildcards": {"dataset": "kang2018", "model": "scvi"},
        "started": 1_700_000_000.0,
        "host": {"name": "elsewhere", "system": "Linux", "cpu": "x", "cpus": 2},
        "process": {"pid": 1, "started": 0},
        "scheduler_id": None,
        "log": "results/logs/learn.log",
    }
    write_json(folder / f"{job}.start.json", start)
    path = folder / f"{job}.start.json"
    if final:
        record = {
            **start,
            "status": "success",
            "error": None,
            "ended": 1_700_000_010.0,
            "inputs": [],
            "outputs": [],
            "parameters": {"dictionary": {"method": "topk", "m": 512, "k": 32}},
            "seeds": ["0"],
            "code": {"digest": "c" * 64, "files": []},
            "commit": {"id": "f" * 40, "dirty": False},
            "recipe": "r" * 64,
            "environment": "e" * 64,
            "lock": None,
            "threads": 1,
            "metrics": {},
            "peak_memory_bytes": 100,
            "cpu_seconds": 9.0,
            **values,
        }
        path = folder / f"{job}.final.json"
        write_json(path, record)
    return path


def output(path: Path, name: str = "out") -> dict:
    """Describe a file as a record does."""
    return {"name": name, "path": str(path), "sha256": sha256_file(path), "size": path.stat().st_size}


def read_lines(path: Path) -> list[dict]:
    """Entries of a ledger."""
    return [json.loads(line) for line in path.read_text().splitlines()]
