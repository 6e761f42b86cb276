"""From records to MLflow: one writer, after the workflow, as often as one likes.

Jobs never import MLflow. `ingest` first closes the ledger over the new records and then writes one MLflow run per
record that MLflow does not hold yet: a run that was left half-written by an ingest that died is thrown away and
written again. Studies are experiments; jobs that serve several studies (retrieval, figures) are kept in the experiment
that carries the run's name. In each experiment the jobs of one workflow run hang under one parent run.

The store is the SQLite file results/mlflow.db, unless MLFLOW_TRACKING_URI names another.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlparse

from conceptome.files import atomic_path, read_json, read_parquet, sha256_file, write_json
from conceptome.provenance import ledger
from conceptome.provenance.folder import ProvenanceFolder, digest, lock

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.tracking import MlflowClient

logger = logging.getLogger(__name__)

RECORD_TAG = "conceptome.record"
WORKFLOW_TAG = "conceptome.workflow"
STATUS = {"success": "FINISHED", "failure": "FAILED", "interrupted": "KILLED", "crashed": "FAILED"}

# Limits of MLflow's API: entities in a batch, characters of a parameter and of a dataset's digest.
BATCH_METRICS = 900
BATCH_PARAMS = 90
PARAM_CHARACTERS = 6000
DATASET_DIGEST_CHARACTERS = 36
CURVE_POINTS = 200
FDR = 0.05

# Evidence table → columns that tell its rows apart, and how each value is summed up over the rest (seeds, atoms).
SUMMARIES: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "reconstruction": (("dictionary", "k"), {"fvu": "mean", "r2": "mean", "l0": "mean", "dead": "mean"}),
    "probes": (("dictionary", "label"), {"balanced_accuracy": "mean", "null": "mean"}),
    "stability": (("dictionary",), {"mean_cosine": "mean", "shared": "mean", "null": "mean"}),
    "selectivity": (("dictionary", "label"), {"avg": "mean", "max": "mean"}),
    "recovery": (("dictionary", "layer"), {"best_correlation": "mean", "recovered": "mean"}),
    "labels": (("dictionary", "label"), {"auroc": "max", "q": "significant"}),
    "gene_sets": (("dictionary", "collection"), {"effect": "max", "q": "significant"}),
    "residues": (("dictionary",), {"f1": "max", "q": "significant"}),
}


@dataclass
class Ingested:
    """What one ingest did."""

    uri: str
    added: int = 0
    already: int = 0
    crashed: list[str] = field(default_factory=list)
    entries: int = 0


@dataclass
class Job:
    """One record on its way to MLflow."""

    name: str
    path: Path
    sha256: str
    record: dict[str, Any]
    status: str

    @property
    def title(self) -> str:
        """Rule and wildcard values, as people call the job."""
        return f"{self.record['rule']} {'/'.join(map(str, self.record['wildcards'].values()))}".strip()


def ingest(results: str | os.PathLike, *, run_name: str | None = None) -> Ingested:
    """Close the ledger over the new records and write them to MLflow.

    Parameters
    ----------
    run_name
        Experiment of the jobs that serve several studies; None: the name in the workflow's own file, else "conceptome".
    """
    folder = ProvenanceFolder(results)
    with lock(folder.path / "ingest.lock"):
        added = ledger.append(results)
        for entry in added:
            for item in entry["crashed"]:
                for leftover in folder.progress.glob(f"{item['job']}.*"):
                    leftover.unlink(missing_ok=True)
        client, uri = connect(folder)
        done = Ingested(uri, entries=len(added))
        done.crashed = [item["job"] for entry in added for item in entry["crashed"]]
        _write(client, folder, done, run_name)
    return done


def connect(folder: ProvenanceFolder) -> tuple[MlflowClient, str]:
    """Open the tracking store; a new SQLite file is built under another name first, so that it is whole or absent."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    # MLflow configures its own and alembic's logging on import, unless told not to, and narrates every migration.
    os.environ.setdefault("MLFLOW_CONFIGURE_LOGGING", "false")
    from mlflow.tracking import MlflowClient

    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        from sqlalchemy import event
        from sqlalchemy.engine import Engine

        if not event.contains(Engine, "connect", _without_sync):
            event.listen(Engine, "connect", _without_sync)
        path = folder.database.absolute()
        uri = f"sqlite:///{path}"
        if not path.exists():
            from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

            with atomic_path(path) as temporary:
                artifacts = folder.artifacts.absolute().as_uri()
                SqlAlchemyStore(f"sqlite:///{temporary.absolute()}", artifacts).engine.dispose()
    return MlflowClient(uri), uri


def _without_sync(connection: Any, _: object) -> None:
    """Let SQLite not wait for the disk after each of some ten commits a job, which takes longer than all the rest.

    A killed ingest still leaves a sound database; after a power cut, delete the file and ingest again: the records are
    the truth, and MLflow's copy is made from them.
    """
    connection.execute("PRAGMA synchronous=OFF")


def _write(client: MlflowClient, folder: ProvenanceFolder, done: Ingested, run_name: str | None) -> None:
    names = _workflow_names(folder)
    experiments = {item.name: item.experiment_id for item in _all_experiments(client)}
    present, parents = _present(client, list(experiments.values()))
    waiting: dict[tuple[str, str | None], list[Job]] = defaultdict(list)
    for job in _jobs(folder):
        if job.sha256 in present:
            done.already += 1
            continue
        workflow = job.record["workflow"]
        study = job.record["wildcards"].get("dataset") or run_name or names.get(workflow) or "conceptome"
        waiting[study, workflow].append(job)
    head = ledger.head(folder.results)
    for (study, workflow), jobs in waiting.items():
        if study not in experiments:
            location = (folder.artifacts.absolute() / study).as_uri() if _is_local(done.uri) else None
            experiments[study] = client.create_experiment(study, artifact_location=location)
        experiment = experiments[study]
        parent = parents.get((experiment, workflow)) or _create_parent(client, experiment, workflow, jobs)
        for job in jobs:
            _write_job(client, experiment, parent, job)
            done.added += 1
        _close_parent(client, parent, jobs, head)


def _is_local(uri: str) -> bool:
    return uri.startswith("sqlite:")


def _workflow_names(folder: ProvenanceFolder) -> dict[str, str]:
    """Workflow id → run name, from the files that the front door leaves."""
    return {path.stem: read_json(path).get("name") for path in folder.workflows.glob("*.json")}


def _all_experiments(client: MlflowClient) -> Iterator[Any]:
    token = None
    while True:
        page = client.search_experiments(max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _present(client: MlflowClient, experiments: list[str]) -> tuple[set[str], dict[tuple[str, str | None], str]]:
    """Give the digests that MLflow holds and the parent run of each (experiment, workflow); drop half-written runs."""
    present: set[str] = set()
    parents: dict[tuple[str, str | None], str] = {}
    for experiment in experiments:
        token = None
        while True:
            page = client.search_runs([experiment], max_results=5000, page_token=token)
            for run in page:
                tags = run.data.tags
                if RECORD_TAG in tags:
                    if run.info.status == "RUNNING":
                        client.delete_run(run.info.run_id)
                    else:
                        present.add(tags[RECORD_TAG])
                elif WORKFLOW_TAG in tags:
                    parents[experiment, tags[WORKFLOW_TAG] or None] = run.info.run_id
            token = page.token
            if not token:
                break
    return present, parents


def _jobs(folder: ProvenanceFolder) -> Iterator[Job]:
    for name, (start, final) in folder.jobs().items():
        path = final or start
        record = read_json(path)
        if final is None and ledger.is_running(record):
            continue
        yield Job(name, path, sha256_file(path), record, record["status"] if final else "crashed")


def _milliseconds(seconds: float) -> int:
    return int(seconds * 1000)


def _end(record: Mapping[str, Any]) -> float:
    return record.get("ended", record["started"])


def _create_parent(client: MlflowClient, experiment: str, workflow: str | None, jobs: list[Job]) -> str:
    started = min(job.record["started"] for job in jobs)
    tags = {WORKFLOW_TAG: workflow or "", "conceptome.kind": "workflow"}
    run = client.create_run(experiment, _milliseconds(started), tags, run_name=f"workflow {workflow or 'unnamed'}")
    return run.info.run_id


def _close_parent(client: MlflowClient, parent: str, jobs: list[Job], head: str) -> None:
    from mlflow.entities import Metric, RunTag

    run = client.get_run(parent)
    now = _milliseconds(max(_end(job.record) for job in jobs))
    failed = sum(job.status != "success" for job in jobs)
    totals = {
        "jobs": run.data.metrics.get("jobs", 0) + len(jobs),
        "jobs_failed": run.data.metrics.get("jobs_failed", 0) + failed,
    }
    metrics = [Metric(key, float(value), now, 0) for key, value in totals.items()]
    client.log_batch(parent, metrics=metrics, tags=[RunTag("conceptome.ledger_head", head)])
    client.set_terminated(parent, "FAILED" if totals["jobs_failed"] else "FINISHED", now)


def _write_job(client: MlflowClient, experiment: str, parent: str, job: Job) -> None:
    from mlflow.entities import Metric, Param

    record = job.record
    run = client.create_run(
        experiment, _milliseconds(record["started"]), {**_tags(job), "mlflow.parentRunId": parent}, run_name=job.title
    )
    identity = run.info.run_id
    end = _milliseconds(_end(record))
    params = [Param(key, value) for key, value in parameters(record).items()]
    metrics = [Metric(key, value, end, step) for key, value, step in measured(record)]
    for position in range(0, max(len(params), 1), BATCH_PARAMS):
        first = metrics[:BATCH_METRICS] if position == 0 else []
        client.log_batch(identity, params=params[position : position + BATCH_PARAMS], metrics=first)
    for position in range(BATCH_METRICS, len(metrics), BATCH_METRICS):
        client.log_batch(identity, metrics=metrics[position : position + BATCH_METRICS])
    datasets = _datasets(record)
    if datasets:
        client.log_inputs(identity, datasets)
    _write_artifacts(client, identity, run.info.artifact_uri, record)
    # Last, since a run that is still called RUNNING is one that was left half-written.
    client.set_terminated(identity, STATUS[job.status], end)


def _tags(job: Job) -> dict[str, str]:
    record = job.record
    commit = record.get("commit") or {}
    values = {
        RECORD_TAG: job.sha256,
        WORKFLOW_TAG: record["workflow"] or "",
        "conceptome.job": job.name,
        "conceptome.status": job.status,
        "conceptome.rule": record["rule"],
        "conceptome.recipe": record.get("recipe"),
        "conceptome.code": (record.get("code") or {}).get("digest"),
        "conceptome.environment": record.get("environment"),
        "conceptome.lock": record.get("lock"),
        "conceptome.error": record.get("error"),
        "conceptome.log": record.get("log"),
        "conceptome.host": (record.get("machine") or record["host"])["name"],
        "conceptome.scheduler_id": record["scheduler_id"],
        "conceptome.dirty": commit.get("dirty"),
        "mlflow.source.name": record["rule"],
        "mlflow.source.type": "JOB",
        "mlflow.source.git.commit": commit.get("id"),
        **{f"wildcard.{key}": value for key, value in record["wildcards"].items()},
    }
    return {key: str(value)[:5000] for key, value in values.items() if value is not None}


def parameters(record: Mapping[str, Any]) -> dict[str, str]:
    """Flatten a record's parameters to dotted names; what MLflow cannot hold is cut and marked with its digest."""
    flat: dict[str, str] = {}
    for key, value in _leaves(record.get("parameters") or {}):
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        if len(text) > PARAM_CHARACTERS:
            text = f"{text[: PARAM_CHARACTERS - 100]}… (cut; sha256 {digest(value)})"
        flat[_name(key)[:250]] = text
    flat["threads"] = str(record.get("threads"))
    if record.get("seeds"):
        flat["seeds"] = ", ".join(record["seeds"])
    return flat


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def _name(text: str) -> str:
    """Keep the characters that MLflow allows in a name."""
    return "".join(letter if letter.isalnum() or letter in "_-./ " else "_" for letter in text)


def measured(record: Mapping[str, Any]) -> list[tuple[str, float, int]]:
    """Give a job's numbers as (name, value, step): cost, what the script reported, its cards and evidence tables."""
    found: list[tuple[str, float, int]] = []
    if "ended" in record:
        found.append(("cost/seconds", record["ended"] - record["started"], 0))
        found.append(("cost/cpu_seconds", record["cpu_seconds"], 0))
        found.append(("cost/peak_memory_bytes", record["peak_memory_bytes"], 0))
    found.extend((str(key), value, 0) for key, value in (record.get("metrics") or {}).items())
    for item in record.get("outputs") or []:
        path = Path(item["path"])
        if not path.is_file() or sha256_file(path) != item["sha256"]:
            # Overwritten by a later job since: its numbers belong to that job's record.
            continue
        if path.name == "card.json":
            found.extend(from_card(read_json(path)))
        elif path.suffix == ".parquet" and path.stem in SUMMARIES:
            found.extend((name, value, 0) for name, value in from_evidence(path.stem, read_parquet(path)))
    unique: dict[tuple[str, int], float] = {}
    for name, value, step in found:
        if isinstance(value, int | float) and math.isfinite(value):
            unique[_name(name)[:250], step] = float(value)
    return [(name, value, step) for (name, step), value in unique.items()]


def from_card(card: Mapping[str, Any]) -> Iterator[tuple[str, float, int]]:
    """Give the numbers of a card; a list of numbers below `training` is a curve over logged steps."""
    for key, value in _leaves(card):
        if isinstance(value, bool):
            continue
        if isinstance(value, int | float):
            yield f"card/{key}", value, 0
        elif key.startswith("training") and isinstance(value, list):
            yield from _curve(key, value)


def _curve(key: str, points: list) -> Iterator[tuple[str, float, int]]:
    stride = max(1, math.ceil(len(points) / CURVE_POINTS))
    for position in range(0, len(points), stride):
        point = points[position]
        if isinstance(point, Mapping):
            step = int(point.get("step", position))
            yield from ((f"{key}/{name}", value, step) for name, value in point.items() if name != "step")
        elif isinstance(point, int | float):
            yield key, point, position


def from_evidence(table: str, frame: pd.DataFrame) -> Iterator[tuple[str, float]]:
    """Sum up an evidence table by dictionary (and label, budget, …), over seeds and atoms."""
    keys, values = SUMMARIES[table]
    keys = [key for key in keys if key in frame]
    if frame.empty or not keys:
        return
    for group, rows in frame.groupby(keys, sort=True, dropna=False):
        place = "/".join(f"k{item}" if key == "k" else str(item) for key, item in zip(keys, group, strict=True))
        for column, how in values.items():
            if column not in rows:
                continue
            if how == "significant":
                seeds = max(rows["seed"].nunique(), 1) if "seed" in rows else 1
                yield f"{table}/significant/{place}", float((rows[column] < FDR).sum()) / seeds
            else:
                yield f"{table}/{column}/{place}", float(rows[column].astype(float).agg(how))


def _datasets(record: Mapping[str, Any]) -> list[Any]:
    """Give one MLflow dataset per named input, with a digest over all its files."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for item in record.get("inputs") or []:
        groups[item["name"]].append(item)
    datasets = []
    for name, items in groups.items():
        whole = items[0]["sha256"] if len(items) == 1 else digest(sorted([i["path"], i["sha256"]] for i in items))
        place = items[0]["path"] if len(items) == 1 else os.path.commonpath([item["path"] for item in items])
        profile = {"files": len(items), "bytes": sum(item["size"] for item in items)}
        entity = Dataset(
            name=f"{name}: {place}"[:500],
            digest=whole[:DATASET_DIGEST_CHARACTERS],
            source_type="local",
            source=json.dumps({"uri": place}),
            profile=json.dumps(profile),
        )
        datasets.append(DatasetInput(entity, [InputTag("sha256", whole), InputTag("mlflow.data.context", name)]))
    return datasets


def _write_artifacts(client: MlflowClient, run: str, uri: str, record: Mapping[str, Any]) -> None:
    """Name every input and output by path, size and sha256; copy figures with their captions and tables."""
    outputs = record.get("outputs") or []
    figures = [Path(item["path"]) for item in outputs if "figures" in Path(item["path"]).parts]
    if uri.startswith("file:"):
        # The local artifact store is a plain folder: writing there directly saves 25 ms a job.
        target = Path(unquote(urlparse(uri).path))
        write_json(target / "record.json", record)
    else:
        client.log_dict(run, record, "record.json")
    for path in _existing(figures):
        client.log_artifact(run, str(path), f"figures/{path.parent.name}")


def _existing(paths: Iterable[Path]) -> Iterator[Path]:
    yield from (path for path in paths if path.is_file())
