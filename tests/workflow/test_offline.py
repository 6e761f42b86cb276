"""The configuration for a machine that reaches nothing but packages runs to its figures."""

import pytest
import yaml
from workspace import REPOSITORY, Workspace

FEW = {"bootstraps": 20, "permutations": 5}
QUICK = {
    "dictionaries": {"topk": {"steps": 60}, "icfl": {"steps": 40}, "ica": None},
    "measures": FEW,
    "enrichment": FEW,
}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_offline_studies_run_without_a_mirror(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("CONCEPTOME_MIRROR", str(tmp_path / "empty"))
    config = yaml.safe_load((REPOSITORY / "config/offline.yaml").read_text())
    config["seeds"] = [0]
    config["override"] = {name: dict(QUICK) for name in config["studies"]}
    config["override"]["proteins_offline"]["dataset"] = {"n_proteins": 40, "max_residues": 10_000}
    (tmp_path / "offline.yaml").write_text(yaml.safe_dump(config))
    workspace = Workspace(tmp_path, config=str(tmp_path / "offline.yaml"), results="results")
    workspace.snakemake()
    drawn = {path.parent.name for path in workspace.path("studies/offline/figures").glob("*/*.svg")}
    assert drawn == {"activations", "reconstruction", "selectivity", "probes", "labels", "residues"}
    assert not workspace.path("data", "kang2018").exists()
