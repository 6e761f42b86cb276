"""Studies that extend others: what is laid over what, and what is computed once."""

import shutil
from pathlib import Path

import pytest
import yaml

from conceptome.config.run import resolve
from conceptome.errors import ConfigError
from conceptome.provenance.configuration import write_as_files
from conceptome.sources import load_sources
from conceptome.workflow import Plan

CONFIG = Path(__file__).resolve().parents[2] / "config"


@pytest.fixture
def folder(tmp_path):
    """A folder of studies in which one extends the cell injury study."""
    shutil.copytree(CONFIG / "studies", tmp_path / "studies")
    return tmp_path


def study(folder, name="narrow", **content):
    (folder / "studies" / f"{name}.yaml").write_text(yaml.safe_dump({"extends": "cell_injury", **content}))


def plan(folder, *names, **values):
    return Plan(resolve({"studies": list(names), **values}, folder), load_sources(CONFIG / "sources.yaml"))


def test_what_agrees_is_read_below_the_study_that_is_extended(folder):
    study(folder, dictionaries={"topk": {"steps": 7}, "ica": None}, whitenings={"pca": {"n_components": 9}})
    found = plan(folder, "narrow")
    assert found.datasets == ["narrow"]
    assert found.study("cell_injury").dictionaries["topk"].steps != 7
    assert "ica" not in found.study("narrow").dictionaries
    assert found.data_files("narrow") == found.data_files("cell_injury")
    assert found.activations("narrow", "profiles") == "results/activations/cell_injury/profiles"
    assert found.whitening_home("narrow", "profiles", "none") == "cell_injury"
    assert found.whitening_home("narrow", "profiles", "pca") == "narrow"
    codes = found.fit_files("codes", "narrow", "profiles", "none")
    assert "results/codes/narrow/profiles/none/topk/seed0/codes.parquet" in codes
    assert "results/codes/cell_injury/profiles/none/icfl/seed0/codes.parquet" in codes
    assert all("/narrow/" in path for path in found.fit_files("codes", "narrow", "profiles", "pca"))
    assert all("/narrow/" in path for path in found.evidence_files("labels"))


def test_another_split_is_another_data_set(folder):
    study(folder, dataset={"split": {"seed": 5}})
    found = plan(folder, "narrow")
    assert found.data_home("narrow") == "narrow"
    assert found.activations("narrow", "profiles") == "results/activations/narrow/profiles"


def test_an_overlay_of_the_extended_study_reaches_the_one_that_extends_it(folder):
    study(folder)
    found = plan(folder, "narrow", override={"cell_injury": {"dataset": {"subsample": 70}}})
    assert found.study("narrow").dataset.subsample == 70
    assert found.data_home("narrow") == "cell_injury"


def test_a_kept_configuration_resolves_to_the_same(folder, tmp_path):
    study(folder, dictionaries={"ica": None}, whitenings={"none": None}, null_models={})
    config = resolve({"studies": ["narrow"]}, folder)
    again = tmp_path / "again"
    (again / "studies").mkdir(parents=True)
    write_as_files(config.model_dump(mode="json"), again)
    assert resolve(yaml.safe_load((again / "default.yaml").read_text()), again) == config


@pytest.mark.parametrize(
    ("base", "message"),
    [("cell_injry", "study 'narrow' extends 'cell_injry', which has no file"), ("narrow", "in a circle")],
)
def test_a_base_that_cannot_be_is_refused(folder, base, message):
    study(folder, extends=base)
    with pytest.raises(ConfigError, match=message):
        plan(folder, "narrow")


def test_gene_sets_and_an_ontology_of_ones_own_are_inputs(folder):
    own = {"own_gene_sets": {"factors": "tf.gmt"}, "ontology": "go.obo"}
    found = plan(folder, "kang2018", override={"kang2018": {"enrichment": own}})
    sets = found.gene_sets("kang2018")
    assert sets["factors"] == "tf.gmt"
    assert sets["h.all.v7.0.symbols.gmt"] == "results/sources/h.all.v7.0.symbols.gmt"
    assert list(sets)[-1] == "factors"
    assert found.ontology("kang2018") == ["go.obo"]
    assert found.own_terms("kang2018") == ["tf.gmt", "go.obo"]
    assert "tf.gmt" not in found.needed_sources()


def test_an_ontology_of_a_measure_is_its_input(folder):
    absorption = {"ontologies": {"cell_type_transferred": {"path": "cl.obo", "relations": ["is_a", "part_of"]}}}
    found = plan(folder, "kang2018", override={"kang2018": {"measures": {"absorption": absorption, "spread": {}}}})
    assert found.measure_files("kang2018", "absorption") == ["cl.obo"]
    assert found.measure_files("kang2018", "spread") == []
