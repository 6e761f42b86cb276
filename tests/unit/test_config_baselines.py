"""Baselines: models with full evidence that are taken through some whitenings and dictionaries only."""

from pathlib import Path

import pytest

from conceptome.config.run import load
from conceptome.errors import ConfigError
from conceptome.sources import load_sources
from conceptome.workflow import Plan

CONFIG = Path(__file__).parents[2] / "config"


def plan(**override):
    config = load([CONFIG / "default.yaml"], CONFIG, studies=["bbbc021"], override={"bbbc021": override})
    return Plan(config, load_sources(CONFIG / "sources.yaml"))


def test_a_baseline_is_taken_through_what_it_names_and_has_full_evidence():
    found = plan()
    spaces = found.spaces()
    assert [space for space in spaces if space[1] == "intensity"] == [("bbbc021", "intensity", "standardize")]
    assert found.dictionaries("bbbc021", "intensity") == ["identity"]
    assert ("bbbc021", "vit", "pca") in spaces
    assert any("/intensity/" in path for path in found.evidence_files("probes"))
    assert found.evidence_settings("probes")["bbbc021"]["baselines"] == {
        "intensity": {"whitenings": ["standardize"], "dictionaries": ["identity"]}
    }


def test_images_have_their_rule_and_only_galleries_are_given_the_model_again():
    found = plan()
    assert found.of_modality("images") == ["bbbc021"]
    assert [Path(path).name for path in found.data_files("bbbc021")] == ["card.json", "obs.parquet", "crops.npy"]
    assert found.measure_weights("bbbc021", "vit", "galleries") == ["results/sources/vit_s_focus.onnx"]
    assert found.measure_weights("bbbc021", "vit", "dose_curves") == []
    assert found.measure_model("bbbc021", "vit", "galleries")["adapter"] == "onnx"
    assert found.measure_model("bbbc021", "vit", "coverage") is None
    assert found.image_files("bbbc021") == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"baselines": {"other": {"whitenings": ["pca"], "dictionaries": ["pca"]}}}, "baselines names 'other'"),
        (
            {"baselines": {"vit": {"whitenings": ["zca"], "dictionaries": ["pca"]}}},
            r"baselines.vit.whitenings names 'zca'",
        ),
        (
            {"null_models": {"intensity": {"whitenings": ["pca"], "dictionaries": ["pca"]}}},
            "is under null_models and under",
        ),
        ({"measures": {"dose_curves": {"label": "dose"}}}, r"measures.dose_curves.label names label 'dose'"),
        ({"measures": {"galleries": {"dictionaries": ["nmf"]}}}, r"measures.galleries.dictionaries names 'nmf'"),
    ],
)
def test_what_a_study_does_not_hold_is_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        plan(**override)


def test_images_that_a_table_names_are_inputs_of_the_reader(tmp_path):
    import yaml
    from images import fields, fields_study

    fields(tmp_path)
    inputs = {"load_data": {"path": str(tmp_path / "load_data.csv")}}
    config, _ = fields_study(tmp_path, inputs=inputs)
    study = {
        "dataset": config.model_dump(mode="json"),
        "models": {"intensity": {"adapter": "intensity"}},
        "whitenings": {"none": {"method": "none"}},
        "dictionaries": {"identity": {"method": "identity"}},
    }
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "mine.yaml").write_text(yaml.safe_dump(study))
    (tmp_path / "run.yaml").write_text("studies: [mine]")
    found = Plan(load([tmp_path / "run.yaml"], tmp_path), {})
    names = [Path(path).relative_to(tmp_path).as_posix() for path in found.image_files("mine")]
    assert names == [f"images/f{number}_{channel}.tif" for channel in ("DNA", "actin") for number in range(4)]
    (tmp_path / "images" / "f0_DNA.tif").unlink()
    assert len(found.image_files("mine")) == 7


def test_a_baseline_is_taken_away_by_null():
    assert ("bbbc021", "intensity", "pca") in plan(baselines={"intensity": None}).spaces()


def test_only_what_trains_on_a_gpu_asks_for_one():
    name, override = "simulated_small", {"dictionaries": {"topk": {"device": "cuda"}}}
    config = load([CONFIG / "default.yaml"], CONFIG, studies=[name], override={name: override})
    found = Plan(config, load_sources(CONFIG / "sources.yaml"))
    assert [found.gpus(name, dictionary) for dictionary in ("topk", "icfl", "pca")] == [1, 0, 0]
