"""The crate before the judges of the field: roc-validator for three profiles, and runcrate as a reader."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from planted_run import plant
from workspace import needs_index, tools

from conceptome.__main__ import main
from conceptome.provenance.history import History

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

PROFILES = ["process-run-crate", "workflow-run-crate", "provenance-run-crate"]
CONTEXT = "rocrate==0.9.0"  # the last release that carries the context of RO-Crate 1.1


@pytest.fixture(scope="module")
def python():
    """Python of .venv-validators, made from envs/validators.txt once."""
    return tools("validators.txt", "roc-validator")


@pytest.fixture(scope="module")
def validate(python, tmp_path_factory):
    """Validate a crate for the three profiles, offline, with the context of RO-Crate 1.1 at hand."""
    folder = tmp_path_factory.mktemp("context")
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), CONTEXT]
    needs_index(CONTEXT, subprocess.run(download, capture_output=True, text=True), CONTEXT)
    [wheel] = folder.glob("*.whl")
    context = folder / "context.jsonld"
    context.write_bytes(zipfile.ZipFile(wheel).read("rocrate/data/ro-crate.jsonld"))
    assert json.loads(context.read_text())["@id"] == "https://w3id.org/ro/crate/1.1/context"

    def run(crate, profiles=PROFILES):
        script = Path(__file__).with_name("validate_crate.py")
        variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        done = subprocess.run(
            [python, script, crate, context, *profiles], capture_output=True, text=True, env=variables
        )
        assert done.returncode == 0, done.stderr + done.stdout
        return json.loads(done.stdout)

    return run


def test_a_finished_run_violates_nothing_and_runcrate_reads_it(finished, python, validate, tmp_path, capsys):
    out = tmp_path / "crate"
    assert main(["export", "--crate", str(out), "--results", str(finished.path())]) == 0
    for told in validate(out):
        print(told["profile"], told["checks"], "checks")
        assert told["passed"] is True
        assert told["issues"] == []
        assert told["checks"] > 30
    read = [python.with_name("runcrate"), "report", out]
    report = subprocess.run(read, capture_output=True, text=True, check=True).stdout
    jobs = History(finished.path()).jobs
    assert {line.removeprefix("action: #job/") for line in report.splitlines() if line.startswith("action: #job/")} == (
        set(jobs)
    )
    assert report.startswith("action: #run/")


@pytest.mark.parametrize(
    ("profile", "spoil"),
    [
        ("process-run-crate", lambda graph: graph["#job/3-learn"].pop("instrument")),
        ("workflow-run-crate", lambda graph: graph["#output/scripts/learn.py/json"].pop("additionalType")),
        ("provenance-run-crate", lambda graph: graph["#engine-run/w1"].pop("result")),
    ],
)
def test_the_validator_would_have_found_it(validate, tmp_path, profile, spoil):
    plant(tmp_path / "results")
    out = tmp_path / "crate"
    assert main(["export", "--crate", str(out), "--results", str(tmp_path / "results")]) == 0
    [told] = validate(out, [profile])
    assert told["passed"] is True
    metadata = json.loads((out / "ro-crate-metadata.json").read_text())
    spoil({entity["@id"]: entity for entity in metadata["@graph"]})
    (out / "ro-crate-metadata.json").write_text(json.dumps(metadata))
    [told] = validate(out, [profile])
    assert told["passed"] is False
    assert told["issues"]
