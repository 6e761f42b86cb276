"""Results folders with records in them, without running jobs."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from pathlib import Path

from conceptome.figures.style import SVG_PREFIX
from conceptome.files import sha256_file, write_json
from conceptome.provenance.folder import digest, media_type
from conceptome.provenance.ledger import append


def write_record(results: Path, job: str, /, *, workflow: str = "w1", final: bool = True, **values) -> Path:
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


# A small workflow on two data sets: rule, wildcards, names of inputs and outputs below the results folder.
STEPS = [
    ("retrieve", {"source": "raw.csv"}, [], ["sources/raw.csv"]),
    *(
        step
        for d in ("cells", "wells")
        for step in (
            ("prepare_matrix", {"dataset": d}, ["sources/raw.csv"], [f"data/{d}/card.json"]),
            ("embed", {"dataset": d, "model": "m"}, [f"data/{d}/card.json"], [f"activations/{d}/m/card.json"]),
            *(
                (
                    "learn",
                    {"dataset": d, "model": "m", "whitening": "none", "dictionary": name},
                    [f"activations/{d}/m/card.json"],
                    [f"codes/{d}/m/none/{name}/seed{seed}/codes.parquet" for seed in (0, 1)],
                )
                for name in ("topk", "icfl")
            ),
            (
                "measure",
                {"dataset": d, "model": "m", "whitening": "none"},
                [f"codes/{d}/m/none/{name}/seed{seed}/codes.parquet" for name in ("topk", "icfl") for seed in (0, 1)],
                [f"evidence/{d}/m/none/selectivity.parquet"],
            ),
        )
    ),
    (
        "figure_selectivity",
        {},
        [f"evidence/{d}/m/none/selectivity.parquet" for d in ("cells", "wells")],
        [f"studies/s/figures/selectivity/selectivity.{suffix}" for suffix in ("svg", "csv")],
    ),
]
# Panel a: one dictionary and its null; panel b: the other data set, one seed; panel c: both data sets.
PANELS = """panel,dataset,model,whitening,dictionary,seed,value
a,cells,m,none,topk,,0.5
a,cells,m,,,,0.1
b,wells,m,none,icfl,1,0.5
c,cells,m,none,topk,,0.5
c,wells,m,none,icfl,,0.5
"""
ENTRY = {"name": "raw.csv", "url": "https://example.org/raw.csv", "licence": "CC0", "citation": "A. Nobody (2020)"}


def write_chain(
    results: Path,
    workflow: str = "w1",
    *,
    at: int = 0,
    change: Callable[[str, dict[str, str]], dict] = lambda rule, wildcards: {},
    rules: Collection[str] | None = None,
    random: str = "",
) -> None:
    """Run `STEPS` without running anything: files whose bytes depend on what went into them, and their records.

    Parameters
    ----------
    at
        Number of the run: later ones start later.
    change
        Values of a job's record that differ from the others', by rule and wildcards.
    rules
        Rules that run; None: all.
    random
        A rule whose outputs come out different in each run for no recorded reason.
    """

    def described(name: str, path: str) -> dict:
        return {**output(results / path, name), "path": f"results/{path}"}

    for number, (rule, wildcards, inputs, outputs) in enumerate(STEPS):
        if rules is not None and rule not in rules:
            continue
        job = f"20260101T{at:02d}{number:02d}00-{rule}-{number:08d}"
        values = {
            "parameters": {"entry": ENTRY} if rule == "retrieve" else {rule: {"k": 8, "out": f"results/{outputs[0]}"}},
            "inputs": [described("read", path) for path in inputs],
            **change(rule, wildcards),
        }
        recipe = digest([rule, wildcards, values["parameters"], values.get("code"), values["inputs"]])
        for path in outputs:
            (results / path).parent.mkdir(parents=True, exist_ok=True)
            told = f"{path} {digest(values)} {workflow if rule == random else ''}"
            if path.endswith(".svg"):
                told = f"<svg><dc:identifier>{SVG_PREFIX}{recipe}</dc:identifier>{told}</svg>"
            (results / path).write_text(PANELS if path.endswith(".csv") and rule != "retrieve" else told)
        write_record(
            results,
            job,
            workflow=workflow,
            rule=rule,
            wildcards=wildcards,
            started=1_700_000_000.0 + 3600 * at + 10 * number,
            ended=1_700_000_005.0 + 3600 * at + 10 * number,
            outputs=[described("written", path) for path in outputs],
            recipe=recipe,
            **{**values, "results": "results"},
        )
    append(results)


def read_lines(path: Path) -> list[dict]:
    """Entries of a ledger."""
    return [json.loads(line) for line in path.read_text().splitlines()]
