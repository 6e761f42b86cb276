"""The crate, the PROV document and the signed statement of a planted run, read back with the libraries' own readers."""

import json
import subprocess
import zipfile

import pytest
from fake_records import output, write_record
from planted_run import CONTENT, SOURCE, plant

from conceptome.__main__ import main
from conceptome.files import sha256_file
from conceptome.provenance import ledger, statement
from conceptome.provenance.closure import repository
from conceptome.provenance.signature import new_key

LARGE = "dictionaries/planted/pca/none/topk/seed0/dictionary.safetensors"


@pytest.fixture
def results(tmp_path):
    plant(tmp_path / "my results")
    return tmp_path / "my results"


def export(results, form, out, *more):
    return main(["export", f"--{form}", str(out), "--results", str(results), *map(str, more)])


@pytest.fixture
def crate(results, tmp_path):
    from rocrate.rocrate import ROCrate

    assert export(results, "crate", tmp_path / "crate") == 0
    return ROCrate(tmp_path / "crate")


def listed(value):
    return value if isinstance(value, list) else [value]


def test_the_crate_names_its_profiles_its_authors_and_its_licence(crate):
    root = crate.root_dataset
    assert {item.id for item in root["conformsTo"]} == {
        "https://w3id.org/ro/wfrun/process/0.5",
        "https://w3id.org/ro/wfrun/workflow/0.5",
        "https://w3id.org/ro/wfrun/provenance/0.5",
        "https://w3id.org/workflowhub/workflow-ro-crate/1.0",
    }
    assert crate.metadata["conformsTo"][0] == "https://w3id.org/ro/crate/1.1"
    assert root["license"].id == "https://spdx.org/licenses/MIT"
    assert root["author"]["name"] == "The Conceptome developers"  # as in CITATION.cff; nobody else is named
    assert root["author"].type == "Organization"
    assert not [item for item in crate.contextual_entities if item.type == "Person" or "agent" in item]
    assert root["datePublished"] == "2023-11-14T22:14:25.000+00:00"  # when the last job ended
    assert root["name"].endswith("small")


def test_small_files_are_in_the_crate_and_large_ones_are_named(crate, results, tmp_path):
    for name in CONTENT:
        place = tmp_path / "crate" / "results" / name
        if name == LARGE or name.startswith("sources/"):
            assert not place.exists()
            [entity] = [item for item in crate.data_entities if item.get("name") == f"results/{name}"]
            assert entity.id.startswith("arcp://uuid,")
        else:
            assert place.read_bytes() == (results / name).read_bytes()
            entity = crate.get(f"results/{name}")
        assert entity["sha256"] == sha256_file(results / name)
        assert entity["contentSize"] == str((results / name).stat().st_size)
        assert entity["encodingFormat"]
    for name in ("ledger.jsonl", ".provenance/workflows/w1.json", ".provenance/records/3-learn.final.json"):
        assert (tmp_path / "crate/results" / name).read_bytes() == (results / name).read_bytes()
    for name in ("Snakefile", "requirements.lock", "config/test.yaml", "scripts/learn.py", "LICENSE"):
        assert (tmp_path / "crate" / name).read_bytes() == (repository() / name).read_bytes()


def test_the_workflow_its_tools_and_its_steps(crate):
    workflow = crate.mainEntity
    assert set(workflow.type) == {"File", "SoftwareSourceCode", "ComputationalWorkflow", "HowTo"}
    assert workflow["programmingLanguage"]["name"] == "Snakemake"
    assert {item.id for item in workflow["hasPart"]} >= {"scripts/learn.py", "scripts/draw_figure.py"}
    steps = {step["name"]: step["workExample"].id for step in workflow["step"]}
    assert steps["figure_selectivity"] == "scripts/draw_figure.py"
    assert steps["learn"] == "scripts/learn.py"


def test_a_job_is_an_action_with_files_parameters_and_times(crate):
    job = crate.get("#job/3-learn")
    assert job["instrument"].id == "scripts/learn.py"
    assert (job["startTime"], job["endTime"]) == ("2023-11-14T22:13:50.000+00:00", "2023-11-14T22:13:55.000+00:00")
    assert job["actionStatus"] == "http://schema.org/CompletedActionStatus"
    values = {item["name"]: item["value"] for item in job["object"] if item.type == "PropertyValue"}
    assert values == {"dictionary.k": 8, "dictionary.rate": 0.5, "dictionary.steps": "[1,2]", "wildcard.seed": "0"}
    formal = {item["name"]: item["exampleOfWork"] for item in job["object"] if item.type == "PropertyValue"}
    assert formal["dictionary.k"]["additionalType"] == "Integer"
    assert formal["dictionary.k"] in job["instrument"]["input"]
    read = {item["name"] for item in job["object"] if item.type == "File"}
    assert read == {"results/sources/raw data.csv", "results/data/planted/card.json"}
    assert {item["name"] for item in job["result"]} == {f"results/{LARGE}", f"results/{LARGE[:-22]}card.json"}
    assert job["subjectOf"].id == "results/.provenance/records/3-learn.final.json"


def test_a_failed_job_says_why(crate):
    job = crate.get("#job/4-enrich")
    assert job["actionStatus"] == "http://schema.org/FailedActionStatus"
    assert job["error"] == "out of memory"
    assert "result" not in job


def test_the_run_holds_its_jobs_its_configuration_and_its_figures(crate):
    run, engine = crate.get("#run/w1"), crate.get("#engine-run/w1")
    assert run["instrument"] is crate.mainEntity
    assert {item.id for item in run["object"]} >= {"config/test.yaml", SOURCE["url"]}
    assert {item["name"].rsplit(".")[-1] for item in run["result"]} == {"svg", "png", "csv", "md"}
    assert engine["result"] is run
    assert engine["instrument"]["softwareVersion"] == "9.9"
    assert {control["object"].id for control in engine["object"]} == {
        "#job/1-retrieve", "#job/2-prepare_matrix", "#job/3-learn", "#job/4-enrich", "#job/5-measure",
        "#job/6-figure_selectivity",
    }  # fmt: skip
    mentioned = {item.id for item in crate.root_dataset["mentions"]}
    assert mentioned == {"#run/w1", *(control["object"].id for control in engine["object"])}


def test_a_source_has_its_address_licence_and_citation(crate, results):
    source = crate.get(SOURCE["url"])
    assert source in listed(crate.get("#job/1-retrieve")["object"])
    assert source["license"]["name"] == "CC0 1.0"
    assert source["citation"]["name"] == SOURCE["citation"]
    assert source["sha256"] == sha256_file(results / "sources/raw data.csv")


def test_the_crate_answers_why_like_the_folder(crate, tmp_path):
    from conceptome.provenance.history import History

    history = History(tmp_path / "crate" / "results")
    assert [job.rule for job in history.chain(history.find("F3")[0])] == [
        "retrieve", "prepare_matrix", "learn", "measure", "figure_selectivity",
    ]  # fmt: skip


def test_equal_results_give_equal_bytes_and_the_zip_opens(results, tmp_path, capsys):
    assert export(results, "crate", tmp_path / "a.zip", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["clean"] is True
    assert told["sha256"] == sha256_file(tmp_path / "a.zip")
    assert export(results, "crate", tmp_path / "b.zip") == 0
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.testzip() is None
        assert "ro-crate-metadata.json" in archive.namelist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.write_text("other"), "changed since it was recorded"),
        (lambda path: path.unlink(), "recorded, but missing"),
    ],
)
def test_a_changed_file_is_not_exported(results, tmp_path, capsys, change, message):
    change(results / "studies/small/figures/selectivity/selectivity.svg")
    assert export(results, "crate", tmp_path / "crate.zip") == 1
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["my results"]


def test_nothing_is_overwritten(results, tmp_path, capsys):
    (tmp_path / "crate").mkdir()
    assert export(results, "crate", tmp_path / "crate") == 1
    assert "exists" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_one_line(results, tmp_path, capsys):
    (tmp_path / "file").touch()
    for form in ("crate", "prov"):
        assert export(results, form, tmp_path / "file" / "out.zip") == 1
        assert "could not be written" in capsys.readouterr().err


def test_a_commit_that_is_not_here_is_one_line(results, tmp_path, capsys):
    write_record(results, "7-learn", rule="learn", commit={"id": "f" * 40, "dirty": False, "diff": None})
    assert export(results, "crate", tmp_path / "crate") == 1
    assert capsys.readouterr().err.startswith(f"error: commit {'f' * 12} of the run is not in ")


def test_the_code_is_that_of_the_recorded_commit(results, tmp_path):
    shown = subprocess.run(["git", "-C", str(repository()), "rev-parse", "HEAD"], capture_output=True, text=True)
    if shown.returncode:
        pytest.skip("not a git checkout")
    commit = shown.stdout.strip()
    code = {"digest": "c" * 64, "files": {"scripts/learn.py": "a" * 64}}
    write_record(results, "7-learn", rule="learn", code=code, commit={"id": commit, "dirty": False, "diff": None})
    assert export(results, "crate", tmp_path / "crate") == 0
    committed = subprocess.run(["git", "-C", str(repository()), "show", f"{commit}:Snakefile"], capture_output=True)
    assert (tmp_path / "crate/Snakefile").read_bytes() == committed.stdout


def test_a_killed_job_and_an_older_version_of_a_file_are_described(results, tmp_path):
    from rocrate.rocrate import ROCrate

    table = results / "evidence/planted/pca/none/selectivity.parquet"
    table.write_text("newer")
    write_record(results, "7-measure", rule="measure", outputs=[output(table)], commit={"id": None})
    write_record(results, "8-whiten", rule="whiten", final=False)
    assert export(results, "crate", tmp_path / "crate") == 0
    crate = ROCrate(tmp_path / "crate")
    assert (tmp_path / "crate/results/evidence/planted/pca/none/selectivity.parquet").read_text() == "newer"
    [old] = listed(crate.get("#job/5-measure")["result"])
    assert old.id.endswith(f"selectivity.parquet?sha256={old['sha256']}")
    assert "killed" in crate.get("#job/8-whiten")["error"]
    assert crate.get("#run/w1")["actionStatus"] == "http://schema.org/FailedActionStatus"


def test_prov_is_read_back_by_the_library(results, tmp_path):
    from prov.model import ProvDocument

    assert export(results, "prov", tmp_path / "a.json") == 0
    assert export(results, "prov", tmp_path / "b.json") == 0
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    document = ProvDocument.deserialize(str(tmp_path / "a.json"), format="json")
    [table] = [item for item in document.get_records() if str(item.identifier).endswith("selectivity.parquet")]
    assert table.get_attribute("schema:sha256") == {
        sha256_file(results / "evidence/planted/pca/none/selectivity.parquet")
    }
    assert table.identifier.uri.startswith("arcp://uuid,")
    relations = {
        (str(item.get_type()), *(str(value) for _, value in item.formal_attributes)) for item in document.get_records()
    }
    assert (
        "prov:Generation",
        "file:results/evidence/planted/pca/none/selectivity.parquet",
        "job:5-measure",
        "None",
    ) in {(*item, "None")[:4] for item in relations}
    assert any(item[:3] == ("prov:Usage", "job:5-measure", f"file:results/{LARGE}") for item in relations)
    assert any(item[:2] == ("prov:Association", "job:5-measure") for item in relations)


def test_a_statement_is_only_exported_signed(results, tmp_path, capsys):
    out = tmp_path / "statement.json"
    assert export(results, "intoto", out) == 1
    assert "--signing-key" in capsys.readouterr().err
    assert not out.exists()
    new_key(tmp_path / "key")
    assert export(results, "intoto", out, "--signing-key", tmp_path / "key") == 0
    stated = statement.read(out, tmp_path / "key.pub")
    assert len(stated["subject"]) == len(CONTENT)
    assert export(results, "prov", tmp_path / "p.json", "--signing-key", tmp_path / "key") == 1
    assert "not signed" in capsys.readouterr().err


def test_the_last_ingests_statement_is_exported_while_it_holds(results, tmp_path, capsys):
    new_key(tmp_path / "key")
    kept = statement.write(results, tmp_path / "key")
    assert export(results, "intoto", tmp_path / "a.json") == 0
    assert (tmp_path / "a.json").read_bytes() == kept.read_bytes()
    write_record(results, "7-learn", workflow="w2")
    ledger.append(results)
    assert export(results, "intoto", tmp_path / "b.json") == 1
    assert "no longer holds" in capsys.readouterr().err
