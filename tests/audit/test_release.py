"""A release, opened as its reader would open it."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from fake_records import output, write_record
from planted_run import CONTENT, SOURCE, plant

from conceptome.__main__ import main
from conceptome.errors import DataError
from conceptome.files import sha256_file
from conceptome.provenance import ledger, release
from conceptome.provenance.citation import citation
from conceptome.provenance.closure import repository
from conceptome.provenance.history import History
from conceptome.provenance.published import base

FIGURE = "studies/small/figures/selectivity/selectivity.svg"


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "results"
    plant(folder, lock=sha256_file(repository() / "requirements.lock"))
    return folder


@pytest.fixture
def opened(results, tmp_path):
    """The released archive, unpacked."""
    assert main(["release", "small", "--results", str(results), "--out", str(tmp_path / "small.zip")]) == 0
    with zipfile.ZipFile(tmp_path / "small.zip") as archive:
        archive.extractall(tmp_path / "opened")
    return tmp_path / "opened"


def test_it_holds_figures_tables_cards_and_what_it_takes_to_run_again(opened, results):
    found = {path.relative_to(opened).as_posix() for path in opened.rglob("*") if path.is_file()}
    assert found - {name for name in found if name.startswith("config/")} == {
        *(f"figures/selectivity/selectivity.{kind}" for kind in ("svg", "png", "csv")),
        "figures/selectivity/caption.md",
        "tables/planted/pca/none/selectivity.parquet",
        "cards/data/planted/card.json",
        "cards/dictionaries/planted/pca/none/topk/seed0/card.json",
        *("crate.zip", "requirements.lock", "REPRODUCE.md", ".zenodo.json", "CITATION.cff", "LICENSE", "SHA256SUMS"),
    }
    assert {"config/test.yaml", "config/studies/simulated_small.yaml", "config/sources.yaml"} <= found
    assert (opened / "figures/selectivity/selectivity.svg").read_bytes() == (results / FIGURE).read_bytes()
    for name in ("requirements.lock", "CITATION.cff", "config/test.yaml"):
        assert (opened / name).read_bytes() == (repository() / name).read_bytes()


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="no sha256sum here")
def test_sha256sum_checks_every_file(opened):
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=opened, check=True, capture_output=True)
    listed = {line.split("  ", 1)[1] for line in (opened / "SHA256SUMS").read_text().splitlines()}
    found = {path.relative_to(opened).as_posix() for path in opened.rglob("*") if path.is_file()}
    assert listed == found - {"SHA256SUMS"}


def test_reproduce_names_commands_sources_machine_and_digests(opened, results):
    page = (opened / "REPRODUCE.md").read_text()
    for expected in (
        ".venv/bin/conceptome run --config config/test.yaml --studies simulated_small --name small",
        SOURCE["url"],
        SOURCE["licence"],
        sha256_file(results / "sources/raw data.csv"),
        f"| figures/selectivity/selectivity.svg | `{sha256_file(results / FIGURE)}` |",
        "- cpu: x",
    ):
        assert expected in page
    assert "elsewhere" not in page  # the name of the machine is nobody's business


def test_zenodo_gets_the_authors_of_the_citation_file_and_nobody_else(opened):
    told = json.loads((opened / ".zenodo.json").read_text())
    assert told["creators"] == [{"name": author.name} for author in citation().authors]
    assert told["license"] == citation().licence
    assert {"identifier": SOURCE["url"], "relation": "isDerivedFrom"} in told["related_identifiers"]
    assert {"identifier": "10.1000/planted", "relation": "cites"} in told["related_identifiers"]
    assert SOURCE["licence"] in told["description"]
    assert told["publication_date"] == "2023-11-14"


def test_the_crate_in_it_tells_the_chain_and_no_more(opened, tmp_path):
    with zipfile.ZipFile(opened / "crate.zip") as archive:
        archive.extractall(tmp_path / "crate")
    jobs = History(tmp_path / "crate" / "results").jobs
    assert [name.split("-")[1] for name in jobs] == [
        "retrieve", "prepare_matrix", "learn", "measure", "figure_selectivity",
    ]  # fmt: skip


def test_a_file_has_the_same_address_in_a_crate_of_all_jobs_and_of_some(results, tmp_path):
    assert base(History(results)) == base(History(results).only([]))


@pytest.mark.slow
def test_the_code_in_the_crate_runs(opened, tmp_path):
    """What REPRODUCE.md says to do, as far as a test may go: without an environment of its own, and dry."""
    folder = tmp_path / "conceptome"
    with zipfile.ZipFile(opened / "crate.zip") as archive:
        archive.extractall(folder, [name for name in archive.namelist() if not name.startswith("results/")])
    variables = {**os.environ, "PYTHONPATH": f"{folder / 'scripts'}{os.pathsep}{folder / 'kernels'}"}
    command = [sys.executable, "-m", "conceptome", "run", "--dry-run", "--config", "config/test.yaml"]
    command += ["--studies", "simulated_small", "--name", "small", "--cores", "1"]
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "figure_recovery" in done.stdout


def test_equal_results_give_equal_bytes(results, tmp_path):
    for name in ("a.zip", "b.zip"):
        release.write(results, "small", tmp_path / name)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


@pytest.mark.parametrize("name", [FIGURE, "evidence/planted/pca/none/selectivity.parquet", "data/planted/card.json"])
def test_a_changed_file_is_refused(results, tmp_path, capsys, name):
    (results / name).write_text(CONTENT[name] + " ")
    assert main(["release", "small", "--results", str(results), "--out", str(tmp_path / "small.zip")]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert str(results / name) in line
    assert "changed since it was recorded" in line
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


@pytest.fixture
def galleries(tmp_path):
    """The planted run with a gallery beside its figure; gives the function that plants it for a source's terms."""

    def make(**terms) -> Path:
        folder = tmp_path / f"galleries{len(terms)}"
        made = plant(folder, lock=sha256_file(repository() / "requirements.lock"))
        raw = made["sources/raw data.csv"]
        entry = {**SOURCE, "sha256": raw["sha256"], **terms}
        names = [
            "evidence/planted/pca/none/galleries.parquet",
            "evidence/planted/pca/none/galleries_crops.parquet",
            *(f"studies/small/figures/galleries/{name}" for name in ("galleries.svg", "galleries.csv", "caption.md")),
        ]
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(f"galleries {name}")
        *tables, svg, numbers, caption = (output(folder / name, Path(name).suffix[1:]) for name in names)
        values = {"commit": {"id": None, "dirty": None, "diff": None}, "wildcards": {}}
        values["lock"] = sha256_file(repository() / "requirements.lock")
        jobs = [
            {"rule": "retrieve", "parameters": {"entry": entry}, "outputs": [raw]},
            {"rule": "measure_galleries", "inputs": [raw], "outputs": tables},
            {"rule": "figure_galleries", "inputs": tables, "outputs": [svg, numbers, caption]},
        ]
        for number, job in enumerate(jobs, start=7):
            times = {"started": 1.7e9 + 10 * number, "ended": 1.7e9 + 10 * number + 5}
            write_record(folder, f"{number}-{job['rule']}", **job, **values, **times)
        ledger.append(folder)
        return folder

    return make


SHOWN = {"figures/galleries/galleries.svg", "tables/planted/pca/none/galleries_crops.parquet"}


def test_what_shows_samples_that_may_not_be_passed_on_is_left_out(galleries, tmp_path):
    numbers = release.write(galleries(redistribute=False), "small", tmp_path / "out")
    assert numbers["left_out"] == len(SHOWN)
    found = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*")}
    assert not SHOWN & found
    assert {"figures/galleries/caption.md", "tables/planted/pca/none/galleries.parquet"} <= found
    with zipfile.ZipFile(tmp_path / "out/crate.zip") as archive:
        inside = archive.namelist()
    assert "results/evidence/planted/pca/none/galleries.parquet" in inside
    assert not [name for name in inside if name.endswith(("galleries.svg", "galleries_crops.parquet"))]
    page = (tmp_path / "out/REPRODUCE.md").read_text().split("## Left out")[1]
    assert all(name in page for name in SHOWN)


def test_galleries_of_free_samples_are_released(galleries, tmp_path):
    numbers = release.write(galleries(), "small", tmp_path / "out")
    assert "left_out" not in numbers
    assert all((tmp_path / "out" / name).is_file() for name in SHOWN)
    assert "Left out" not in (tmp_path / "out/REPRODUCE.md").read_text()


def test_an_edited_record_is_refused(results, tmp_path):
    record = results / ".provenance/records/3-learn.final.json"
    record.write_text(record.read_text().replace('"k": 8', '"k": 9'))
    with pytest.raises(DataError, match=r"3-learn\.final\.json: altered"):
        release.write(results, "small", tmp_path / "small")


def test_another_lock_is_refused(tmp_path):
    plant(tmp_path / "results", lock="0" * 64)
    with pytest.raises(DataError, match="not the lock of the run"):
        release.write(tmp_path / "results", "small", tmp_path / "small")


def test_an_unknown_study_is_one_line(results, capsys):
    assert main(["release", "none", "--results", str(results)]) == 1
    assert "no figures of study none (there are: small)" in capsys.readouterr().err


def test_a_run_that_was_not_ingested_is_refused(results, tmp_path):
    write_record(results, "7-learn", workflow="w2")
    with pytest.raises(DataError, match="conceptome mlflow ingest"):
        release.write(results, "small", tmp_path / "small")
    ledger.append(results)
    assert release.write(results, "small", tmp_path / "small")["figures"] == 1


def test_a_citation_without_authors_is_refused(tmp_path):
    (tmp_path / "CITATION.cff").write_text("title: x\nlicense: MIT\nauthors: []\n")
    with pytest.raises(DataError, match="no authors"):
        citation(tmp_path / "CITATION.cff")


def test_a_person_is_named_family_name_first(tmp_path):
    (tmp_path / "CITATION.cff").write_text(
        "title: x\nlicense: MIT\nauthors:\n- {family-names: Curie, given-names: Marie}\n- {name: A group}\n"
    )
    people = citation(tmp_path / "CITATION.cff").authors
    assert [(author.name, author.person) for author in people] == [("Curie, Marie", True), ("A group", False)]
