"""The study of real pixels as a workflow, subsampled: every rule once, tables and figures, and nothing to do after."""

import json

import numpy as np
import pandas as pd
import pytest
from workspace import Workspace

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
SPACE = ("evidence", "bbbc021", "vit", "pca")


@pytest.fixture(scope="module")
def finished_images(tmp_path_factory) -> Workspace:
    """The subsampled run on 300 crops, once from scratch, with the real weights."""
    folder = tmp_path_factory.mktemp("images")
    workspace = Workspace(folder, config="config/test_images.yaml", results="results/test_images")
    workspace.snakemake()
    return workspace


def test_sixteen_bits_become_384_dimensions(finished_images):
    crops = np.load(finished_images.path("data", "bbbc021", "crops.npy"), mmap_mode="r")
    assert (crops.dtype, crops.shape) == (np.uint16, (300, 3, 68, 68))
    card = json.loads(finished_images.path("activations", "bbbc021", "vit", "card.json").read_text())
    assert card["shape"] == [300, 384]
    assert "standing in" in card["stand_in"]
    assert list(card["weights_sha256"].values()) == ["198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"]


def test_plates_are_held_out_and_the_confounding_is_said(finished_images):
    obs = pd.read_parquet(finished_images.path("data", "bbbc021", "obs.parquet"))
    assert obs.groupby("plate")["split"].nunique().max() == 1
    card = json.loads(finished_images.path("data", "bbbc021", "card.json").read_text())
    assert {item["label"] for item in card["confounded"]} == {"compound", "dose_uM"}
    for figure in ("dose_curves", "galleries", "labels", "layers"):
        caption = finished_images.path("studies", "test_images", "figures", figure, "caption.md").read_text()
        assert "CONFOUNDED" in caption, figure
        assert "STAND-IN" in caption, figure


def test_brightness_stands_beside_and_maps_cover_the_crop(finished_images):
    labels = finished_images.path("studies", "test_images", "figures", "labels", "caption.md").read_text()
    assert "bbbc021/intensity" in labels
    probes = pd.read_csv(finished_images.path("studies", "test_images", "figures", "probes", "probes.csv"))
    assert {"vit", "intensity"} <= set(probes["model"])
    crops = pd.read_parquet(finished_images.path(*SPACE, "galleries_crops.parquet"))
    assert (crops["patches"] == 256).all()
    assert all(np.isfinite(np.frombuffer(each, "<f4")).all() for each in crops["map"])
    atoms = pd.read_parquet(finished_images.path(*SPACE, "dose_curves_atoms.parquet"))
    assert (atoms["control_pairs"] == 15).all()
    assert atoms["auroc"].between(0.5, 1).all()


def test_a_second_run_has_nothing_to_do(finished_images):
    assert finished_images.planned() == {}
