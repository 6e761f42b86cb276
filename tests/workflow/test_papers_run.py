"""The published studies: their configuration names what exists, and the run sets every number beside the paper's."""

from pathlib import Path

import pandas as pd
import pytest
from workspace import REPOSITORY, Workspace

from conceptome.config.run import load
from conceptome.papers import outline, quantities
from conceptome.sources import load_sources
from conceptome.workflow import Plan

CONFIG = REPOSITORY / "config"


def plan(*files: str) -> Plan:
    return Plan(load([CONFIG / name for name in files], CONFIG), load_sources(CONFIG / "sources.yaml"))


def test_every_number_has_a_table_that_the_run_writes():
    papers = plan("default.yaml", "papers.yaml")
    assert papers.paper_tables()
    assert len(papers.papers()) == 9
    assert set(plan("default.yaml", "test_papers.yaml").papers()) < set(papers.papers())


def test_the_pages_in_the_docs_are_those_of_the_configuration():
    for study, paper in plan("default.yaml", "papers.yaml").papers().items():
        assert (REPOSITORY / "docs/studies" / f"{study}.md").read_text() == outline(study, paper), "run `make schema`"


def test_every_dictionary_that_a_number_names_is_fitted():
    papers = plan("default.yaml", "papers.yaml")
    for study, paper in papers.papers().items():
        for quantity in quantities(paper):
            named, where = quantity.study or study, quantity.where
            models = [where["model"]] if "model" in where else list(papers.study(named).models)
            assert set(models) <= set(papers.study(named).models), (study, quantity)
            if "dictionary" in where:
                assert any(where["dictionary"] in papers.dictionaries(named, model) for model in models), where
            if "whitening" in where:
                assert any(where["whitening"] in papers.whitenings(named, model) for model in models), where


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_papers_are_regenerated_subsampled(tmp_path):
    workspace = Workspace(tmp_path, config="config/test_papers.yaml", results="results/test_papers")
    workspace.snakemake()
    folder = workspace.path("studies", "papers", "papers")
    numbers = pd.read_parquet(folder / "numbers.parquet")
    told = numbers[numbers["quantity"] != ""]
    assert len(told) > 40
    whole = ["value", "low", "high", "null", "n", "n_seeds"]
    assert told[whole].notna().all(axis=None), told[told[whole].isna().any(axis=1)]
    assert (told["low"] <= told["value"]).all()
    assert (told["value"] <= told["high"]).all()
    assert set(numbers["status"]) == {"reproduced", "proxy", "impossible"}
    for study in numbers["study"].unique():
        assert (folder / f"{study}.md").read_text().startswith("# ")
    assert Path(folder / "papers.md").read_text().count("\n| [") == len(numbers.drop_duplicates(["study", "item"]))
    assert workspace.planned() == {}
