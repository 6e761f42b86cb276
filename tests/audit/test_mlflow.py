"""From records to MLflow: complete, once, and again after an ingest that died."""

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from contextlib import closing

import pandas as pd
import pytest
from fake_records import output, write_record

from conceptome.files import read_json, sha256_file, write_json, write_parquet
from conceptome.provenance import ledger, mlflow, tracking


@pytest.fixture(autouse=True)
def _own_store(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """An empty results folder with a fresh database, made once: creating the tables takes seconds."""
    folder = tmp_path_factory.mktemp("template") / "results"
    folder.mkdir()
    done = mlflow.ingest(folder)
    assert (done.added, done.entries) == (0, 0)
    return folder


@pytest.fixture
def results(template, tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "mlflow.db").write_bytes((template / "mlflow.db").read_bytes())
    return folder


def runs(folder) -> dict:
    """Runs by name, over all experiments."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    found = client.search_runs([item.experiment_id for item in client.search_experiments()])
    names = {item.experiment_id: item.name for item in client.search_experiments()}
    return {(names[run.info.experiment_id], run.info.run_name): run for run in found}


def test_a_record_becomes_a_run_with_all_that_it_holds(results, tmp_path):
    card = tmp_path / "card.json"
    write_json(card, {"m": 512, "method": "topk", "training": {"fvu": [0.9, 0.5, 0.4], "dead": 3}})
    evidence = tmp_path / "reconstruction.parquet"
    rows = [("topk", 32, 0, 0.4), ("topk", 32, 1, 0.2), ("topk", 8, 0, 0.6), ("random", 32, 0, 0.9)]
    write_parquet(evidence, pd.DataFrame(rows, columns=["dictionary", "k", "seed", "fvu"]))
    labels = tmp_path / "labels.parquet"
    hits = pd.DataFrame(
        {"dictionary": "topk", "label": "type", "seed": [0, 0, 1], "q": [0.01, 0.9, 0.01], "auroc": [0.9, 0.5, 0.8]}
    )
    write_parquet(labels, hits)
    data = tmp_path / "x.npy"
    data.write_text("x")
    path = write_record(
        results,
        "job1",
        inputs=[output(data, "activations")],
        outputs=[output(card), output(evidence), output(labels)],
        parameters={"dictionary": {"method": "topk", "k": 32}, "long": "y" * 10_000},
        metrics={"kept": 0.5},
    )
    mlflow.ingest(results, run_name="default")
    run = runs(results)["kang2018", "learn kang2018/scvi"]
    assert run.info.status == "FINISHED"
    assert run.info.end_time - run.info.start_time == 10_000
    assert run.data.params["dictionary.method"] == "topk"
    assert run.data.params["dictionary.k"] == "32"
    assert run.data.params["long"].startswith("yyy")
    assert "sha256" in run.data.params["long"]
    metrics = run.data.metrics
    assert metrics["reconstruction/fvu/topk/k32"] == pytest.approx(0.3)
    assert metrics["reconstruction/fvu/random/k32"] == pytest.approx(0.9)
    assert metrics["labels/significant/topk/type"] == 1.0
    assert metrics["labels/auroc/topk/type"] == 0.9
    assert metrics["card/training.dead"] == 3
    assert metrics["curve/fvu"] == 0.4
    assert metrics["kept"] == 0.5
    assert metrics["cost/seconds"] == 10
    assert run.data.tags["conceptome.record_sha256"] == sha256_file(path)
    (dataset,) = run.inputs.dataset_inputs
    assert dataset.dataset.digest == sha256_file(data)[:36]
    assert {tag.key: tag.value for tag in dataset.tags}["sha256"] == sha256_file(data)
    parent = runs(results)["kang2018", "workflow w1"]
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert parent.data.tags["conceptome.ledger_entry"] == ledger.head(results)
    kept = read_json(results / "mlflow-artifacts/kang2018" / run.info.run_id / "artifacts/record.json")
    assert kept["outputs"][0]["sha256"] == sha256_file(card)


def test_a_card_that_was_overwritten_since_is_not_read(results, tmp_path):
    card = tmp_path / "card.json"
    write_json(card, {"m": 512})
    described = output(card)
    write_json(card, {"m": 1024})
    write_record(results, "job1", outputs=[described])
    mlflow.ingest(results)
    assert "card/m" not in runs(results)["kang2018", "learn kang2018/scvi"].data.metrics


def test_ingesting_again_adds_nothing_and_new_records_join_their_parent(results):
    write_record(results, "job1")
    write_record(
        results, "job2", status="failure", error="no control rows", wildcards={"dataset": "kang2018", "model": "pca"}
    )
    assert mlflow.ingest(results).added == 2
    assert len(runs(results)) == 4
    again = mlflow.ingest(results)
    assert (again.added, again.already, again.entries) == (0, 2, 0)
    write_record(results, "job3", wildcards={"dataset": "kang2018", "model": "third"})
    assert mlflow.ingest(results).added == 1
    found = runs(results)
    assert len(found) == 5
    assert found["kang2018", "learn kang2018/pca"].info.status == "FAILED"
    assert found["kang2018", "learn kang2018/pca"].data.tags["conceptome.error"] == "no control rows"
    assert found["kang2018", "workflow w1"].data.metrics == {"jobs": 3, "jobs_failed": 1}


def test_a_crashed_job_is_said_once_and_kept_as_failed(results):
    write_record(results, "job1", final=False)
    leftover = results / ".provenance/progress/job1.job.json"
    write_json(leftover, {})
    assert mlflow.ingest(results).crashed == ["job1"]
    assert not leftover.exists()
    assert mlflow.ingest(results).crashed == []
    run = runs(results)["kang2018", "learn kang2018/scvi"]
    assert run.info.status == "FAILED"
    assert run.data.tags["conceptome.status"] == "crashed"


def test_an_ingest_that_died_is_completed(results, monkeypatch):
    write_record(results, "job1")
    write_record(results, "job2", wildcards={"dataset": "kang2018", "model": "pca"})
    whole = mlflow.parameters

    def die_at_the_second(record):
        if record["job"] == "job2":
            raise RuntimeError("power cut")
        return whole(record)

    monkeypatch.setattr(mlflow, "parameters", die_at_the_second)
    with pytest.raises(RuntimeError, match="power cut"):
        mlflow.ingest(results)
    monkeypatch.setattr(mlflow, "parameters", whole)
    assert mlflow.ingest(results).added == 2
    assert mlflow.ingest(results).added == 0
    found = runs(results)
    assert len(found) == 4
    assert all(run.info.status == "FINISHED" for run in found.values())


def test_figures_are_copied_and_shared_jobs_go_to_the_runs_own_experiment(results, tmp_path):
    folder = tmp_path / "studies/default/figures/probes"
    folder.mkdir(parents=True)
    for name in ("probes.svg", "caption.rst"):
        (folder / name).write_text(name)
    write_json(results / ".provenance/workflows/w1.json", {"id": "w1", "name": "autumn"})
    outputs = [output(folder / name) for name in ("probes.svg", "caption.rst")]
    write_record(results, "job1", rule="draw", wildcards={"figure": "probes"}, outputs=outputs)
    mlflow.ingest(results)
    run = runs(results)["autumn", "draw probes"]
    copied = results / "mlflow-artifacts/autumn" / run.info.run_id / "artifacts/figures/probes"
    assert sorted(path.name for path in copied.iterdir()) == ["caption.rst", "probes.svg"]


def test_a_new_database_is_whole_or_absent(tmp_path, monkeypatch):
    from mlflow.store.tracking import sqlalchemy_store

    def die(uri, artifacts):
        raise KeyboardInterrupt

    monkeypatch.setattr(sqlalchemy_store, "SqlAlchemyStore", die)
    with pytest.raises(KeyboardInterrupt):
        mlflow.ingest(tmp_path)
    assert not list(tmp_path.glob("*mlflow*"))


def test_two_hundred_records_are_written_once(results, tmp_path):
    data = tmp_path / "x.npy"
    data.write_text("x")
    metrics = {f"metric/{number}": number / 7 for number in range(50)}
    for number in range(200):
        wildcards = {"dataset": f"study{number % 4}", "model": str(number)}
        write_record(results, f"job{number:03d}", wildcards=wildcards, inputs=[output(data)], metrics=metrics)
    assert mlflow.ingest(results).added == 200
    assert mlflow.ingest(results).added == 0


def dictionary_record(results, folder, job, seed_bytes, **values):
    """Record of a job that learned one dictionary per item of `seed_bytes`, with its card and curve."""
    outputs = []
    for seed, content in enumerate(seed_bytes):
        place = folder / f"seed{seed}"
        place.mkdir(parents=True, exist_ok=True)
        (place / "dictionary.safetensors").write_bytes(content)
        curve = {"step": [50, 60], "fvu": [0.5, 0.25 + seed]}
        write_json(place / "card.json", {"method": "topk", "seed": seed, "training": {"fvu": 0.25, "curve": curve}})
        outputs += [output(place / name) for name in ("dictionary.safetensors", "card.json")]
    keys = {"dataset": "kang2018", "model": "scvi", "whitening": "pca", "dictionary": "topk"}
    return write_record(results, job, wildcards=keys, outputs=outputs, **values)


def test_what_mlflow_holds_is_what_ledger_records_and_outputs_say(results, tmp_path):
    path = dictionary_record(results, tmp_path / "topk", "job1", [b"one", b"two"], metrics={"kept": 0.5})
    crashed = write_record(results, "job2", final=False)
    mlflow.ingest(results)
    held = mlflow.anchors(results)
    assert held["head"] == ledger.head(results)
    assert held["entries"] == {"w1": ledger.head(results)}
    assert held["records"] == {"job1": sha256_file(path), "job2": sha256_file(crashed)}
    assert held["metrics"]["job1"] == mlflow.expected_metrics(read_json(path))
    assert held["metrics"]["job1"]["curve/seed1/fvu"] == 1.25
    assert held["metrics"]["job1"]["curve/seed1/fvu@50"] == 0.5
    write_record(results, "job3", workflow="w2")
    mlflow.ingest(results)
    held = mlflow.anchors(results)
    assert list(held["entries"]) == ["w1", "w2"]
    assert held["head"] == held["entries"]["w2"] == ledger.head(results)


@pytest.mark.parametrize(("table", "key"), [("latest_metrics", "kept"), ("metrics", "curve/seed0/fvu@60")])
def test_a_metric_edited_by_sql_is_seen(results, tmp_path, table, key):
    path = dictionary_record(results, tmp_path / "topk", "job1", [b"one", b"two"], metrics={"kept": 0.5})
    mlflow.ingest(results)
    name, _, step = key.partition("@")
    with sqlite3.connect(results / "mlflow.db") as database:
        changed = database.execute(f"UPDATE {table} SET value = 0.9 WHERE key = ? AND step = ?", (name, step or 0))
        assert changed.rowcount == 1
    held, expected = mlflow.anchors(results)["metrics"]["job1"], mlflow.expected_metrics(read_json(path))
    assert {name for name in expected if held[name] != expected[name]} == {key}


def test_numbers_are_read_where_the_results_lie_now(results, tmp_path):
    path = dictionary_record(results, results / "dictionaries/topk", "job1", [b"one", b"two"])
    write_json(path, {**read_json(path), "results": str(results)})
    moved = tmp_path / "elsewhere"
    results.rename(moved)
    mlflow.ingest(moved)
    assert mlflow.anchors(moved)["metrics"]["job1"]["card/seed1/training.fvu"] == 0.25


def test_each_distinct_dictionary_is_one_version_with_its_card(results, tmp_path):
    from mlflow.tracking import MlflowClient

    dictionary_record(results, tmp_path / "topk", "job1", [b"one", b"two"])
    dictionary_record(results, tmp_path / "again", "job2", [b"two", b"three"])
    mlflow.ingest(results)
    mlflow.ingest(results)
    client = MlflowClient(f"sqlite:///{results / 'mlflow.db'}")
    (model,) = client.search_registered_models()
    assert model.name == "kang2018.scvi.pca.topk"
    versions = sorted(client.search_model_versions(), key=lambda item: int(item.version))
    files = [tmp_path / name / "dictionary.safetensors" for name in ("topk/seed0", "topk/seed1", "again/seed1")]
    assert [item.source for item in versions] == [file.as_uri() for file in files]
    assert [item.tags["sha256"] for item in versions] == [sha256_file(file) for file in files]
    assert versions[1].tags["fvu"] == "0.25"
    assert '"method": "topk"' in versions[1].description
    assert client.get_run(versions[1].run_id).data.tags["conceptome.job"] == versions[1].tags["job"] == "job1"


def test_a_job_taken_for_crashed_that_ended_after_all_is_kept_once(results):
    write_record(results, "job1", final=False)
    mlflow.ingest(results)
    path = write_record(results, "job1")
    assert mlflow.ingest(results).added == 1
    assert mlflow.anchors(results)["records"] == {"job1": sha256_file(path)}
    assert runs(results)["kang2018", "learn kang2018/scvi"].info.status == "FINISHED"
    assert len(runs(results)) == 3


def test_what_contradicts_mlflow_is_reported_and_not_written(results):
    path = write_record(results, "job1")
    mlflow.ingest(results)
    before = mlflow.anchors(results)
    write_json(path, {**read_json(path), "seeds": ["7"]})
    (results / "ledger.jsonl").unlink()
    done = mlflow.ingest(results)
    assert done.added == 0
    assert any(str(path) in line for line in done.altered)
    assert any("ledger entry" in line for line in done.altered)
    assert mlflow.anchors(results) == before
    assert before["head"] != ledger.head(results)


def test_report_and_crate_are_copied_again_only_when_they_change(results, monkeypatch):
    write_json(results / ".provenance/workflows/w1.json", {"id": "w1", "name": "autumn"})
    write_record(results, "job1")
    mlflow.ingest(results)
    (results / "report.html").write_text("first")
    crate = results / "studies/autumn/crate"
    crate.mkdir(parents=True)
    (crate / "ro-crate-metadata.json").write_text("{}")
    mlflow.ingest(results)
    parent = runs(results)["autumn", "workflow w1"]
    copied = results / "mlflow-artifacts/autumn" / parent.info.run_id / "artifacts"
    assert (copied / "report.html").read_text() == "first"
    assert (copied / "crate/ro-crate-metadata.json").read_text() == "{}"
    copies = []
    monkeypatch.setattr(tracking.Database, "copy", lambda self, uri, path, folder: copies.append(path.name))
    (results / "report.html").write_text("second")
    mlflow.ingest(results)
    mlflow.ingest(results)
    assert copies == ["report.html"]


def test_outputs_are_named_by_sha256_size_and_media_type(results, tmp_path):
    data = tmp_path / "x.npy"
    data.write_text("x")
    described = {**output(data), "media_type": "application/x-npy"}
    write_record(results, "job1", outputs=[described])
    mlflow.ingest(results)
    run = runs(results)["kang2018", "learn kang2018/scvi"]
    assert run.data.tags["conceptome.output_sha256"] == described["sha256"]
    table = read_json(results / "mlflow-artifacts/kang2018" / run.info.run_id / "artifacts/outputs.json")
    assert dict(zip(table["columns"], table["data"][0], strict=True)) == {**described, "copied": False}


def run_ingest(folder, **variables) -> subprocess.Popen:
    """Start `conceptome mlflow ingest` on its own."""
    command = [sys.executable, "-m", "conceptome", "mlflow", "ingest", "--results", str(folder)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **variables}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_runs(database, number: int, process: subprocess.Popen) -> None:
    """Wait until so many runs are there, while the process that writes them is still at it."""
    while True:
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
            if connection.execute("SELECT count(*) FROM runs").fetchone()[0] >= number:
                return
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)


def count(results, table: str) -> int:
    """Rows of a table of the database."""
    with closing(sqlite3.connect(results / "mlflow.db")) as database:
        return database.execute(f"SELECT count(*) FROM {table}").fetchone()[0]


def many_records(results, number: int) -> dict[str, str]:
    """Write records of jobs with some metrics; gives job → sha256."""
    metrics = {f"metric/{index}": index / 7 for index in range(20)}
    names = [f"job{index:05d}" for index in range(number)]
    return {
        name: sha256_file(
            write_record(results, name, wildcards={"dataset": f"study{index % 4}", "model": name}, metrics=metrics)
        )
        for index, name in enumerate(names)
    }


def assert_complete(results, expected: dict[str, str]) -> None:
    """Each record is there once, whole, with its metrics."""
    held = mlflow.anchors(results)
    assert held["records"] == expected
    assert held["head"] == ledger.head(results)
    for job in expected:
        record = read_json(results / ".provenance/records" / f"{job}.final.json")
        assert held["metrics"][job] == mlflow.expected_metrics(record)


@pytest.mark.slow
def test_an_ingest_killed_in_the_middle_is_completed(results):
    expected = many_records(results, 1000)
    process = run_ingest(results)
    wait_for_runs(results / "mlflow.db", 200, process)
    process.kill()
    process.wait()
    assert mlflow.ingest(results).added > 0
    assert_complete(results, expected)
    assert count(results, "runs") == 1000 + 5
    assert mlflow.ingest(results).added == 0


@pytest.mark.slow
def test_two_first_ingests_at_once_write_everything_once(tmp_path):
    results = tmp_path / "results"
    expected = many_records(results, 100)
    processes = [run_ingest(results) for _ in range(2)]
    answers = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], answers
    assert sorted(answer.split("jobs written")[0].split()[-1] for answer in answers) == ["0", "100"]
    assert_complete(results, expected)
    assert count(results, "runs") == 100 + 5


class TrackingServer:
    """A real `mlflow server` on 127.0.0.1, over a database of its own."""

    def __init__(self, folder, database):
        self.database = folder / "mlflow.db"
        self.database.write_bytes(database.read_bytes())
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self):
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.database}"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, cwd=self.folder)
        while True:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                    return
            except OSError:
                assert self.process.poll() is None, (self.folder / "log").read_text()
                time.sleep(0.1)

    def kill(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def server(template, tmp_path_factory):
    server = TrackingServer(tmp_path_factory.mktemp("server"), template / "mlflow.db")
    yield server
    server.kill()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_server_that_dies_in_the_middle_is_completed_by_the_next_ingest(results, server, monkeypatch):
    expected = many_records(results, 30)
    process = run_ingest(results, MLFLOW_TRACKING_URI=server.uri, MLFLOW_HTTP_REQUEST_MAX_RETRIES="1")
    wait_for_runs(server.database, 10, process)
    server.kill()
    answer = process.communicate()[0]
    assert process.returncode == 1
    assert answer.startswith("error: ")
    assert answer.count("\n") == 1
    assert "nothing is lost" in answer
    server.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    done = mlflow.ingest(results)
    assert 0 < done.added < 30
    assert_complete(results, expected)
    assert mlflow.ingest(results).added == 0


@pytest.mark.slow
def test_a_server_holds_what_the_database_holds(results, server, tmp_path, monkeypatch):
    dictionary_record(
        results, tmp_path / "topk", "job1", [b"one", b"two"], inputs=[output(results / "mlflow.db")], metrics={"a": 1}
    )
    write_record(results, "job2", final=False)
    write_record(results, "job3", status="interrupted", error="stopped", wildcards={})
    mlflow.ingest(results)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    mlflow.ingest(results)
    assert contents(server.uri) == contents(f"sqlite:///{results / 'mlflow.db'}")


def contents(uri: str) -> dict:
    """All that a store holds, but for its own identities and addresses."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    names = {item.experiment_id: item.name for item in client.search_experiments()}
    found = {}
    for run in client.search_runs(list(names)):
        key = (names[run.info.experiment_id], run.info.run_name)
        tags = {key: value for key, value in run.data.tags.items() if key != "mlflow.parentRunId"}
        inputs = [item.to_dictionary() for item in run.inputs.dataset_inputs]
        history = {
            name: [
                (point.step, point.value, point.timestamp) for point in client.get_metric_history(run.info.run_id, name)
            ]
            for name in run.data.metrics
        }
        files = sorted((item.path, item.file_size) for item in client.list_artifacts(run.info.run_id))
        info = (run.info.status, run.info.start_time, run.info.end_time, "mlflow.parentRunId" in run.data.tags)
        found[key] = (info, tags, run.data.params, run.data.metrics, history, inputs, files)
    for item in client.search_model_versions():
        found[item.name, str(item.version)] = (item.tags, item.description)
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_thousand_records_are_written_once(results, tmp_path):
    """A quarter of the jobs learn: two dictionaries each, with cards and curves; the others report fifty numbers."""
    metrics = {f"metric/{index}": index / 7 for index in range(50)}
    parameters = {f"parameter{index}": index for index in range(20)}
    data = tmp_path / "x.npy"
    data.write_text("x")
    for number in range(10_000):
        job = f"job{number:05d}"
        values = {"inputs": [output(data)], "metrics": metrics, "parameters": parameters}
        if number % 4:
            write_record(results, job, wildcards={"dataset": f"study{number % 9}", "model": job}, **values)
        else:
            dictionary_record(results, tmp_path / job, job, [f"{job} {seed}".encode() for seed in range(2)], **values)
    begin, cpu = time.perf_counter(), time.process_time()
    assert mlflow.ingest(results).added == 10_000
    print(f"\n10,000 records: {time.perf_counter() - begin:.0f} s, {time.process_time() - cpu:.0f} s of processor time")
    begin = time.perf_counter()
    assert mlflow.ingest(results).added == 0
    assert len(mlflow.anchors(results)["records"]) == 10_000
    print(f"ingested again and read back: {time.perf_counter() - begin:.0f} s")
    assert count(results, "runs") == 10_000 + 11
    assert count(results, "model_versions") == 5_000
