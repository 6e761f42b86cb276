"""The command line: quick help, one-line errors, the schema."""

import json
import subprocess
import sys

import pytest

from conceptome.__main__ import main
from conceptome.config.run import Config
from conceptome.provenance.closure import repository


def test_help_loads_nothing_heavy():
    code = "import sys; from conceptome.__main__ import build_parser; build_parser().format_help(); print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numpy", "pydantic", "rich", "mlflow", "snakemake", "torch"} & set(shown)


def test_a_folder_without_results_is_one_line(tmp_path, capsys):
    assert main(["mlflow", "ingest", "--results", str(tmp_path / "none")]) == 1
    assert capsys.readouterr().err == f"error: no results folder {tmp_path / 'none'}: name it with --results\n"


def test_arguments_for_snakemake_belong_to_run(capsys):
    with pytest.raises(SystemExit):
        main(["schema", "--", "-n"])
    assert "after --" in capsys.readouterr().err


def test_schema_is_written_from_the_models(tmp_path, monkeypatch):
    (tmp_path / "Snakefile").touch()
    (tmp_path / "config").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["schema"]) == 0
    assert json.loads((tmp_path / "config/schema.json").read_text()) == Config.model_json_schema()


def test_the_schema_in_the_repository_is_up_to_date():
    path = repository() / "config" / "schema.json"
    assert json.loads(path.read_text()) == Config.model_json_schema(), "run `make schema`"
