"""Every further measure, cards and steering on the real DAG and the real data, subsampled."""

import pandas as pd
import pytest
import yaml
from workspace import REPOSITORY, Workspace

from conceptome.config.run import merge
from conceptome.measures.registry import MEASURES

STUDIES = ["kang2018", "cell_injury", "yeast", "simulated_small"]
# What pixels and several layers of one model are for: tests/workflow/test_images_run.py.
OF_IMAGES = {"dose_curves", "galleries", "layers"}
FEW = {"bootstraps": 10, "permutations": 10}


def small(section: dict) -> dict:
    """The further measures of a study with few draws."""
    return {
        name: {**keys, "permutations": 10} if name in ("lobes", "crystals") else keys for name, keys in section.items()
    }


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_every_measure_runs_and_is_drawn(tmp_path):
    quick = yaml.safe_load((REPOSITORY / "config/test.yaml").read_text())
    full = yaml.safe_load((REPOSITORY / "config/evidence.yaml").read_text())
    override = {name: merge(quick["override"][name], full["override"][name]) for name in STUDIES}
    for content in override.values():
        content["measures"] = small(content["measures"])
        if "none" in content.get("whitenings", {}) or "pca" in content.get("whitenings", {}):
            content["whitenings"]["none"] = None
    # Too few wells and proteins for a class with two frequent children; cells have them.
    for name in ("cell_injury", "yeast"):
        override[name]["measures"]["absorption"] = None
    # Two models of one data set are compared.
    override["kang2018"]["models"]["pca"] = {"adapter": "pca", "n_components": 20}
    override["kang2018"]["steering"] |= {"null_draws": 5, "bootstraps": 10}
    override["kang2018"]["explanations"] = {**FEW, "null_runs": 1}
    override["cell_injury"]["explanations"] = {**FEW, "null_runs": 1}
    override["cell_injury"]["steering"] |= {"null_draws": 5, "bootstraps": 10}
    override["yeast"]["explanations"] = {**FEW, "null_runs": 1, "labels": ["residue"]}
    override["yeast"]["steering"] |= {"null_draws": 5, "bootstraps": 10, "max_proteins": 3}
    config = {
        **full,
        "results": "results/evidence",
        "studies": STUDIES,
        "seeds": [0, 1],
        "dpi": 60,
        "override": override,
    }
    (tmp_path / "evidence.yaml").write_text(yaml.safe_dump(config))
    workspace = Workspace(tmp_path, config=str(tmp_path / "evidence.yaml"), results="results/evidence")
    workspace.snakemake("--keep-going")
    drawn = {path.parent.name for path in workspace.path("studies/evidence/figures").glob("*/*.svg")}
    assert {*MEASURES, "explanations", "steering"} - OF_IMAGES <= drawn
    for measure in MEASURES.keys() - OF_IMAGES:
        tables = MEASURES[measure]
        found = [pd.read_parquet(path) for path in workspace.path("evidence").rglob(f"{tables[0]}.parquet")]
        assert sum(map(len, found)), measure
    assert workspace.planned() == {}
