"""Results folders with records in them, without running jobs."""

from __future__ import annotations

import json
from pathlib import Path

from conceptome.files import sha256_file, write_json
from conceptome.provenance.folder import media_type


def write_record(results: Path, job: str, *, workflow: str = "w1", final: bool = True, **values) -> Path:
    """Write the record of one job; with `final` false only its start, by a process that is gone."""
    folder = results / ".provenance" / "records"
    start = {
        "schema_version": 2,
        "job": job,
        "workflow": workflow,
        "results": str(results),
        "rule": "learn",
        "wildcards": {"dataset": "kang2018", "model": "scvi"},
        "started": 1_700_000_000.0,
        "host": {"name": "elsewhere"},
        "process": {"pid": 1, "started": 0},
        "scheduler_id": None,
        "log": "results/logs/learn.log",
    }
    write_json(folder / f"{job}.start.json", start)
    path = folder / f"{job}.start.json"
    if final:
        record = {
            **{key: value for key, value in start.items() if key != "host"},
            "start_record": sha256_file(path),
            "status": "success",
            "error": None,
            "ended": 1_700_000_010.0,
            "inputs": [],
            "outputs": [],
            "parameters": {"dictionary": {"method": "topk", "m": 512, "k": 32}},
            "seeds": ["0"],
            "code": {"digest": "c" * 64, "files": {"scripts/learn.py": "a" * 64}},
            "kernels": {"build": "b" * 64, "variant": "generic"},
            "commit": {"id": "f" * 40, "dirty": False, "diff": None},
            "recipe": "r" * 64,
            "environment": "e" * 64,
            "lock": "d" * 64,
            "threads": 1,
            "variables": {"PYTHONHASHSEED": "0"},
            "python": "CPython 3.11.7",
            "machine": {
                "name": "elsewhere",
                "system": "Linux",
                "cpu": "x",
                "features": ["avx2", "fma"],
                "cpus": 2,
                "memory_bytes": 8 << 30,
            },
            "blas": [],
            "determinism": {"PYTHONHASHSEED": "0", "SOURCE_DATE_EPOCH": "0", "torch_deterministic": None},
            "inputs_changed": [],
            "metrics": {},
            "peak_memory_bytes": 100,
            "cpu_seconds": 9.0,
            "hash_seconds": 0.01,
            "hashed_bytes": 1000,
            **values,
        }
        path = folder / f"{job}.final.json"
        write_json(path, record)
    return path


def output(path: Path, name: str = "out") -> dict:
    """Describe a file as a record does."""
    return {
        "name": name,
        "path": str(path),
        "sha256": sha256_file(path),
        "size": path.stat().st_size,
        "media_type": media_type(path),
    }


def read_lines(path: Path) -> list[dict]:
    """Entries of a ledger."""
    return [json.loads(line) for line in path.read_text().splitlines()]
