"""How runs get into MLflow and out again: through its client to any server, in bulk where the store is a database.

MLflow's client spends some 40 ms of processor time on one run, in object mapping and some sixteen transactions. A store
that is a database is therefore read and written by a few bulk statements on MLflow's own tables, one transaction for
each batch of runs: that takes a tenth, and a killed writer leaves no half-written run. A server gets one run after the
other; there, a run that is still called RUNNING is one that was left half-written.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conceptome.files import write_json

if TYPE_CHECKING:
    from mlflow.entities import Dataset
    from mlflow.tracking import MlflowClient

TAG_PREFIX = "conceptome."
WORKFLOW_TAG = "conceptome.workflow"
CURVE = "curve/"
# Limits of MLflow's API, and of the number of variables in one SQL statement.
BATCH_METRICS = 900
BATCH_PARAMS = 90
BATCH_IDS = 500
PAGE = 1000


@dataclass(frozen=True)
class Run:
    """One run on its way to MLflow.

    Attributes
    ----------
    metrics
        (name, value, step).
    datasets
        Input data sets and their tags.
    files
        Name of an artifact → its JSON value.
    copies
        Files to copy, each with its folder among the artifacts.
    """

    experiment: str
    name: str
    status: str
    start_time: int
    end_time: int
    tags: Mapping[str, str]
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Sequence[tuple[str, float, int]] = ()
    datasets: Sequence[tuple[Dataset, Mapping[str, str]]] = ()
    files: Mapping[str, Any] = field(default_factory=dict)
    copies: Sequence[tuple[Path, str]] = ()


@dataclass(frozen=True)
class Held:
    """A run of ours that MLflow holds, with those tags that are ours."""

    run_id: str
    experiment: str
    status: str
    tags: Mapping[str, str]


def open_tracking(client: MlflowClient) -> Server:
    """Give the way to the client's store."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    # The client hides its store, and only the store tells a database from a server.
    store = client._tracking_client.store
    return Database(client, store) if isinstance(store, SqlAlchemyStore) else Server(client)


class SqliteFile:
    """A store that is a SQLite file, read without importing MLflow (which takes seconds) and never written to.

    Raises
    ------
    sqlite3.Error
        The file is missing, or no database of MLflow's.
    """

    def __init__(self, path: str | os.PathLike):
        self.address = f"{Path(path).absolute().as_uri()}?mode=ro"

    def _rows(self, query: str, values: Sequence[Any] = ()) -> list[tuple]:
        with closing(sqlite3.connect(self.address, uri=True)) as connection:
            return connection.execute(query, values).fetchall()

    def held(self) -> Iterator[Held]:
        """Every run that an ingest wrote and nobody deleted."""
        query = (
            "SELECT r.run_uuid, r.experiment_id, r.status, t.key, t.value FROM runs r JOIN tags t USING (run_uuid) "
            "WHERE r.lifecycle_stage = 'active' AND t.key LIKE ?"
        )
        yield from _held(self._rows(query, (f"{TAG_PREFIX}%",)))

    def metrics(self, run_ids: Iterable[str]) -> dict[str, dict[str, float]]:
        """Latest value of each metric of each run, and each point of its curves as `name@step`."""
        found: dict[str, dict[str, float]] = {run_id: {} for run_id in run_ids}
        for run_id, key, value in self._rows("SELECT run_uuid, key, value FROM latest_metrics"):
            if run_id in found:
                found[run_id][key] = value
        query = "SELECT run_uuid, key, step, value FROM metrics WHERE key LIKE ?"
        for run_id, key, step, value in self._rows(query, (f"{CURVE}%",)):
            if run_id in found:
                found[run_id][f"{key}@{step}"] = value
        return found


def _held(rows: Iterable[tuple]) -> Iterator[Held]:
    """Gather rows of one tag each into runs."""
    tags: dict[tuple[str, str, str], dict[str, str]] = defaultdict(dict)
    for run_id, experiment, status, key, value in rows:
        tags[run_id, str(experiment), status][key] = value
    for (run_id, experiment, status), ours in tags.items():
        if WORKFLOW_TAG in ours:
            yield Held(run_id, experiment, status, ours)


class Server:
    """Any tracking server, through MLflow's client."""

    is_database = False

    def __init__(self, client: MlflowClient):
        self.client = client

    def held(self) -> Iterator[Held]:
        """Every run that an ingest wrote and nobody deleted."""
        for run in self._search():
            ours = {key: value for key, value in run.data.tags.items() if key.startswith(TAG_PREFIX)}
            yield Held(run.info.run_id, run.info.experiment_id, run.info.status, ours)

    def metrics(self, run_ids: Iterable[str]) -> dict[str, dict[str, float]]:
        """Latest value of each metric of each run, and each point of its curves as `name@step`."""
        wanted = set(run_ids)
        found = {}
        for run in self._search():
            if run.info.run_id in wanted:
                found[run.info.run_id] = values = dict(run.data.metrics)
                for key in [key for key in values if key.startswith(CURVE)]:
                    for point in self.client.get_metric_history(run.info.run_id, key):
                        values[f"{key}@{point.step}"] = point.value
        return found

    def write(self, runs: Iterable[Run]) -> list[str]:
        """Write runs and give their identities."""
        return [self._write(run) for run in runs]

    def _search(self) -> Iterator[Any]:
        experiments = [item.experiment_id for item in pages(self.client.search_experiments)]
        for experiment in experiments:

            def search(experiment: str = experiment, **page: Any) -> Any:
                return self.client.search_runs([experiment], f"tags.`{WORKFLOW_TAG}` LIKE '%'", **page)

            yield from pages(search)

    def _write(self, run: Run) -> str:
        from mlflow.entities import DatasetInput, InputTag, Metric, Param

        info = self.client.create_run(run.experiment, run.start_time, dict(run.tags), run_name=run.name).info
        params = [Param(key, value) for key, value in run.params.items()]
        metrics = [Metric(key, value, run.end_time, step) for key, value, step in run.metrics]
        batches = zip_longest(_batches(params, BATCH_PARAMS), _batches(metrics, BATCH_METRICS), fillvalue=())
        for some_params, some_metrics in batches:
            self.client.log_batch(info.run_id, params=some_params, metrics=some_metrics)
        if run.datasets:
            inputs = [DatasetInput(item, [InputTag(*tag) for tag in tags.items()]) for item, tags in run.datasets]
            self.client.log_inputs(info.run_id, inputs)
        self._write_artifacts(info.artifact_uri, run)
        # Last, see the module's docstring.
        self.client.set_terminated(info.run_id, run.status, run.end_time)
        return info.run_id

    def _write_artifacts(self, uri: str, run: Run) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for name, value in run.files.items():
                write_json(Path(folder) / name, value)
                self.copy(uri, Path(folder) / name, "")
        for path, place in run.copies:
            self.copy(uri, path, place)

    def copy(self, uri: str, path: Path, folder: str) -> None:
        """Copy a file or a folder to a folder below a run's artifact address ("": to the address itself)."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        repository = get_artifact_repository(uri, tracking_uri=self.client.tracking_uri)
        if path.is_dir():
            repository.log_artifacts(str(path), os.path.join(folder, path.name))
        else:
            repository.log_artifact(str(path), folder or None)


class Database(Server):
    """A store that is a database, SQLite or another, on MLflow's own tables."""

    is_database = True

    def __init__(self, client: MlflowClient, store: Any):
        super().__init__(client)
        self.store = store

    def held(self) -> Iterator[Held]:
        """Every run that an ingest wrote and nobody deleted."""
        from mlflow.store.tracking.dbmodels.models import SqlRun, SqlTag
        from sqlalchemy import select

        columns = (SqlRun.run_uuid, SqlRun.experiment_id, SqlRun.status, SqlTag.key, SqlTag.value)
        query = (
            select(*columns)
            .join(SqlTag, SqlTag.run_uuid == SqlRun.run_uuid)
            .where(SqlRun.lifecycle_stage == "active", SqlTag.key.startswith(TAG_PREFIX))
        )
        with self.store.ManagedSessionMaker() as session:
            yield from _held(session.execute(query).all())

    def metrics(self, run_ids: Iterable[str]) -> dict[str, dict[str, float]]:
        """Latest value of each metric of each run, and each point of its curves as `name@step`."""
        from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlMetric
        from sqlalchemy import select

        found: dict[str, dict[str, float]] = {run_id: {} for run_id in run_ids}
        with self.store.ManagedSessionMaker() as session:
            for ids in _batches(list(found), BATCH_IDS):
                columns = (SqlLatestMetric.run_uuid, SqlLatestMetric.key, SqlLatestMetric.value)
                for run_id, key, value in session.execute(select(*columns).where(SqlLatestMetric.run_uuid.in_(ids))):
                    found[run_id][key] = value
                points = select(SqlMetric.run_uuid, SqlMetric.key, SqlMetric.step, SqlMetric.value).where(
                    SqlMetric.run_uuid.in_(ids), SqlMetric.key.startswith(CURVE)
                )
                for run_id, key, step, value in session.execute(points):
                    found[run_id][f"{key}@{step}"] = value
        return found

    def write(self, runs: Iterable[Run]) -> list[str]:
        """Write runs, all in one transaction, and give their identities."""
        from mlflow.store.tracking.dbmodels import models
        from mlflow.utils.uri import append_to_uri_path
        from sqlalchemy import insert

        runs = list(runs)
        identities = [uuid.uuid4().hex for _ in runs]
        rows: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        locations = {item: self.client.get_experiment(item).artifact_location for item in {i.experiment for i in runs}}
        for identity, run in zip(identities, runs, strict=True):
            uri = append_to_uri_path(locations[run.experiment], identity, self.store.ARTIFACTS_FOLDER_NAME)
            self._write_artifacts(uri, run)
            rows[models.SqlRun].append(
                {
                    "run_uuid": identity,
                    "name": run.name,
                    "artifact_uri": uri,
                    "experiment_id": run.experiment,
                    "status": run.status,
                    "start_time": run.start_time,
                    "end_time": run.end_time,
                    "lifecycle_stage": "active",
                    "source_type": "UNKNOWN",
                    "source_name": "",
                    "entry_point_name": "",
                    "source_version": "",
                    "user_id": "unknown",
                }
            )
            tags = {**run.tags, "mlflow.runName": run.name}
            rows[models.SqlTag] += [{"run_uuid": identity, "key": key, "value": tags[key]} for key in tags]
            rows[models.SqlParam] += [
                {"run_uuid": identity, "key": key, "value": run.params[key]} for key in run.params
            ]
            latest: dict[str, dict[str, Any]] = {}
            for key, value, step in run.metrics:
                row = {"run_uuid": identity, "key": key, "value": value, "step": step, "is_nan": False}
                row["timestamp"] = run.end_time
                rows[models.SqlMetric].append(row)
                if key not in latest or latest[key]["step"] <= step:
                    latest[key] = row
            rows[models.SqlLatestMetric] += latest.values()
        with self.store.ManagedSessionMaker(read_only=False) as session:
            self._add_inputs(session, rows, identities, runs)
            for table, values in rows.items():
                if values:
                    session.execute(insert(table), values)
        return identities

    def _add_inputs(self, session: Any, rows: dict[Any, list[dict[str, Any]]], identities: list[str], runs: list[Run]):
        """Add the rows of the runs' inputs; a data set of an experiment has one row however many runs read it."""
        from mlflow.store.tracking.dbmodels.models import SqlDataset, SqlInput, SqlInputTag
        from sqlalchemy import select

        known: dict[tuple[str, str, str], str] = {}
        for names in _batches(sorted({item.name for run in runs for item, _ in run.datasets}), BATCH_IDS):
            columns = (SqlDataset.experiment_id, SqlDataset.name, SqlDataset.digest, SqlDataset.dataset_uuid)
            for experiment, name, digest, identity in session.execute(
                select(*columns).where(SqlDataset.name.in_(names))
            ):
                known[str(experiment), name, digest] = identity
        for run_id, run in zip(identities, runs, strict=True):
            for dataset, tags in run.datasets:
                key = (run.experiment, dataset.name, dataset.digest)
                if key not in known:
                    known[key] = uuid.uuid4().hex
                    rows[SqlDataset].append(
                        {
                            "dataset_uuid": known[key],
                            "experiment_id": run.experiment,
                            "name": dataset.name,
                            "digest": dataset.digest,
                            "dataset_source_type": dataset.source_type,
                            "dataset_source": dataset.source,
                            "dataset_profile": dataset.profile,
                        }
                    )
                link = uuid.uuid4().hex
                rows[SqlInput].append(
                    {
                        "input_uuid": link,
                        "source_type": "DATASET",
                        "source_id": known[key],
                        "destination_type": "RUN",
                        "destination_id": run_id,
                    }
                )
                rows[SqlInputTag] += [{"input_uuid": link, "name": key, "value": tags[key]} for key in tags]


def _batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for position in range(0, len(items), size):
        yield items[position : position + size]


def pages(search: Callable[..., Any]) -> Iterator[Any]:
    """Every item of a search that gives its answers page by page."""
    token = None
    while True:
        page = search(max_results=PAGE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return
