"""Embedding in parts and training in several processes, as the workflow runs them."""

import json
import re

import pytest
import yaml
from workspace import REPOSITORY, Workspace

from conceptome.provenance.verify import Verification


def workspace(folder, **changes):
    values = yaml.safe_load((REPOSITORY / "config/test.yaml").read_text()) | {"studies": ["yeast"], **changes}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return Workspace(folder, config=str(path))


def test_rules_for_parts_and_processes(tmp_path):
    values = yaml.safe_load((REPOSITORY / "config/test.yaml").read_text())["override"]
    values["yeast"]["dictionaries"]["topk"]["processes"] = 2
    done = workspace(tmp_path, scatter=3, override=values).snakemake("--dry-run")
    counts = dict(re.findall(r"^(\w+) +(\d+)$", done.stdout + done.stderr, re.MULTILINE))
    # Two models, the second of which is a null; each has the dictionary that two processes train.
    assert counts["embed_part"] == "6"
    assert counts["embed"] == "2"
    assert counts["learn_distributed"] == "2"
    assert int(counts["learn"]) > 0


@pytest.mark.slow
def test_a_scattered_run_gives_the_same_store_and_verifies(tmp_path):
    stores = []
    for number in (1, 3):
        folder = tmp_path / str(number)
        folder.mkdir()
        run = workspace(folder)
        target = "results/test/activations/yeast/esm2"
        run.snakemake("--set-scatter", f"embed={number}", "--", target)
        stores.append({path.name: path.read_bytes() for path in run.path("activations/yeast/esm2").iterdir()})
        stores[-1].pop(".snakemake_timestamp", None)
        assert not list(run.path("parts").rglob("*.npy"))
    assert stores[0] == stores[1]
    records = [json.loads(path.read_text()) for path in run.path(".provenance/records").glob("*embed*.final.json")]
    assert sorted(record["rule"] for record in records) == ["embed", "embed_part", "embed_part", "embed_part"]
    missing = [one for one in Verification(run.path()).run().findings if "missing" in str(one)]
    assert not [one for one in missing if "/parts/" in str(one)]
