"""A wrong configuration gets one clear line and a non-zero exit, before anything runs."""

import pytest
import yaml
from workspace import REPOSITORY, Workspace

CASES = {
    "misspelt run key": ({"seedz": [0]}, ["seedz", "did you mean 'seeds'"]),
    "misspelt study key": ({"override": {"kang2018": {"dictionnaries": {}}}}, ["dictionnaries", "dictionaries"]),
    "misspelt option": (
        {"override": {"kang2018": {"dictionaries": {"topk": {"learning_rat": 0.1}}}}},
        ["learning_rat", "learning_rate"],
    ),
    "wrong type": ({"seeds": "zero"}, ["seeds", "list"]),
    "wrong type of an option": (
        {"override": {"kang2018": {"dictionaries": {"topk": {"m": "many"}}}}},
        ["m", "integer"],
    ),
    "m below k": (
        {"override": {"kang2018": {"dictionaries": {"topk": {"m": 16, "k": 32}}}}},
        ["at least k", "raise m"],
    ),
    "m below rounds × columns": (
        {"override": {"kang2018": {"dictionaries": {"icfl": {"m": 16, "rounds": 8, "columns": 4}}}}},
        ["rounds × columns"],
    ),
    "unknown study": ({"studies": ["kang2019"]}, ["kang2019", "kang2018"]),
    "unknown label": ({"override": {"kang2018": {"measures": {"probes": ["donor"]}}}}, ["donor", "condition"]),
    "unknown source": (
        {"override": {"kang2018": {"dataset": {"inputs": {"counts": {"source": "nothing.RData"}}}}}},
        ["nothing.RData", "sources.yaml"],
    ),
    "unknown method": ({"override": {"kang2018": {"dictionaries": {"topk": {"method": "topkk"}}}}}, ["topkk"]),
}


@pytest.mark.parametrize("case", CASES)
def test_one_clear_line(case, tmp_path):
    values, expected = CASES[case]
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(values))
    workspace = Workspace(tmp_path)
    done = workspace.snakemake("--configfile", str(tmp_path / "bad.yaml"), "--dry-run", check=False)
    output = done.stdout + done.stderr
    assert done.returncode != 0
    lines = [line for line in output.splitlines() if "error: " in line]
    assert len(lines) == 1, output
    for word in expected:
        assert word in lines[0], lines[0]
    assert "Traceback" not in output
    assert not (tmp_path / "results").exists()


def test_the_schema_on_disk_is_the_models_schema():
    import json

    from conceptome.config.run import Config

    assert json.loads((REPOSITORY / "config/schema.json").read_text()) == json.loads(
        json.dumps(Config.model_json_schema())
    )


def test_the_reference_page_is_the_models_page():
    from conceptome.config.reference import render

    assert (REPOSITORY / "config/README.md").read_text() == render()
