"""From records to MLflow: complete, once, and again after an ingest that died."""

import json

import pandas as pd
import pytest
from fake_records import output, write_record

from conceptome.files import sha256_file, write_json, write_parquet
from conceptome.provenance import ledger, mlflow


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
    kept = json.loads((results / "mlflow-artifacts/kang2018" / run.info.run_id / "artifacts/record.json").read_text())
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
