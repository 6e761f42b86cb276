"""Dose curves and galleries: planted doses and planted crops are found, and nulls stay null."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from further_space import fitted, observations, space, tables
from scipy.stats import spearmanr

from conceptome.config.further import DoseCurves, Galleries
from conceptome.config.models import Onnx
from conceptome.errors import DataError
from conceptome.measures import dose_curves, galleries
from conceptome.measures.atoms import random_unit

N, D, M, GROUPS = 480, 6, 8, 96
LABELS = {
    "dose": {"kind": "ordinal", "role": "biological", "title": "dose"},
    "treated": {"kind": "categorical", "role": "biological", "title": "treated"},
}
DOSES = DoseCurves(label="dose", atoms=2, bootstraps=100, permutations=50)
SHOWN = Galleries(label="treated", atoms=1, crops=4, controls=2, bootstraps=100)


def planted(seed=0, effect=1.0):
    """Codes in which atom 3 grows with the dose; four plates, of which the last two hold controls only."""
    rng = np.random.default_rng(seed)
    group = np.arange(N) % GROUPS
    # Splits go by group % 6; plates and doses must occur in all of them.
    plate = group // 6 % 4
    dose = np.where(plate < 2, np.array([0.0, 5.0, 15.0, 50.0])[group // 24], 0.0)
    codes = rng.gamma(1, 1, (N, M)) * (rng.random((N, M)) < 0.5)
    codes[:, 3] = np.maximum(0, effect * np.log1p(dose) + rng.normal(0, 0.7, N))
    obs = observations(N, GROUPS, dose=dose, treated=np.where(dose > 0, "drug", "DMSO"))
    obs["control"] = dose == 0
    obs["batch"] = [f"P{number}" for number in plate]
    atoms = random_unit(M, D, rng)
    fits = {("topk", 0): (fitted(atoms), codes), ("random", 0): (fitted(atoms, "random"), rng.permutation(codes))}
    return space(rng.normal(size=(N, D)), obs, fits, labels=LABELS), codes


def with_crops(made, codes, bright=False):
    """Give a space crops whose first pixel says their row; the mean follows atom 3 where `bright`."""
    crops = np.random.default_rng(9).integers(0, 50, (N, 2, 4, 4)).astype(np.uint16)
    crops[:, 0, 0, 0] = np.arange(N)
    if bright:
        crops[:, 1] = (100 * codes[:, 3]).astype(np.uint16)[:, None, None] + 500
    made.dataset.crops = lambda: crops
    made.card["modality"] = "images"
    return crops


def test_the_atom_that_follows_the_dose_is_found_on_train_and_told_on_test():
    made, codes = planted()
    found = tables(dose_curves, made, DOSES)
    best = found["dose_curves_atoms"].query("dictionary == 'topk' and rank == 1").iloc[0]
    assert best["atom"] == 3
    assert best["low"] < best["effect"] < best["high"]
    assert best["low"] > best["null_high"]
    assert best["n"] == (made.split == "test").sum()
    # The highest dose differs from controls of its plates; controls of two plates do not differ from each other.
    assert best["auroc_low"] > best["control_auroc_high"] > best["control_auroc"] >= 0.5
    assert best["control_pairs"] == 6
    curve = found["dose_curves"].query("dictionary == 'topk' and atom == 3").sort_values("dose")
    assert list(curve["dose"]) == [0, 5, 15, 50]
    assert curve["mean"].is_monotonic_increasing
    rows = (made.split == "test") & (made.obs["dose"] == 50).to_numpy()
    assert curve["mean"].iloc[-1] == pytest.approx(codes[rows, 3].mean(), rel=1e-5)
    assert curve["mean"].iloc[-1] > curve["null_high"].iloc[-1]
    assert ((curve["low"] <= curve["mean"]) & (curve["mean"] <= curve["high"])).all()


def test_codes_without_a_dose_stay_within_their_null():
    inside = []
    for seed in range(4):
        made, _ = planted(seed, effect=0.0)
        table = tables(dose_curves, made, DOSES)["dose_curves_atoms"]
        inside += list((table["null_low"] <= table["effect"]) & (table["effect"] <= table["null_high"]))
    assert np.mean(inside) > 0.75


def test_the_names_of_a_model_s_own_dimensions_are_told():
    made, _ = planted()
    made.store.card["dimension_names"] = [f"feature {number}" for number in range(M)]
    made.methods["topk"] = "identity"
    found = tables(dose_curves, made, DOSES)["dose_curves_atoms"]
    assert found.query("dictionary == 'topk' and rank == 1")["name"].iloc[0] == "feature 3"
    assert found.query("dictionary == 'random'")["name"].str.isdigit().all()


def test_a_label_that_is_no_dose_is_refused():
    made, _ = planted()
    with pytest.raises(DataError, match="label 'treated' is not an ordinal or numeric label"):
        dose_curves.measure(made, DoseCurves(label="treated"))
    made.obs["dose"] = 1.0
    with pytest.raises(DataError, match="'dose' has fewer than two values on the training split"):
        dose_curves.measure(made, DOSES)


def test_the_crops_of_a_gallery_are_those_with_the_largest_codes():
    made, codes = planted()
    crops = with_crops(made, codes)
    found = tables(galleries, made, SHOWN)
    atom = found["galleries"].query("dictionary == 'topk'").iloc[0]
    assert (atom["atom"], atom["best_class"]) == (3, "drug")
    assert atom["purity"] == 1.0
    assert atom["low"] > atom["null_high"]
    test = np.flatnonzero(made.split == "test")
    assert atom["null"] == pytest.approx((made.obs["treated"].iloc[test] == "drug").mean())
    assert atom["n_top"] == round(0.05 * len(test))
    shown = found["galleries_crops"].query("dictionary == 'topk'")
    top = shown[shown["kind"] == "top"]
    expected = test[np.argsort(-codes[test, 3], kind="stable")[:4]]
    assert list(top["sample_id"]) == list(made.obs.index[expected])
    np.testing.assert_allclose(top["code"], codes[expected, 3], rtol=1e-6)
    for row, held in zip(expected, top["pixels"]):
        np.testing.assert_array_equal(np.frombuffer(held, "<u2").reshape(2, 4, 4), crops[row])
    control = shown[shown["kind"] == "control"]
    assert len(control) == 2
    assert set(control["class"]) == {"DMSO"}
    assert set(control["batch"]) <= set(top["batch"])
    assert (shown["patches"] == 0).all()


def test_purity_of_an_atom_that_says_nothing_is_that_of_its_class():
    rng = np.random.default_rng(0)
    member, groups = rng.random(2000) < 0.3, np.arange(2000) % 100
    inside = 0
    for seed in range(20):
        told = galleries.purity(np.random.default_rng(seed).random(2000), member, groups, SHOWN, [seed])
        inside += told["null_low"] <= told["purity"] <= told["null_high"]
        assert told["low"] <= told["purity"] <= told["high"]
    assert inside >= 17


def test_an_atom_of_brightness_is_said_to_be_one():
    made, codes = planted()
    with_crops(made, codes, bright=True)
    assert tables(galleries, made, SHOWN)["galleries"].query("dictionary == 'topk'")["brightness"].iloc[0] > 0.95
    with_crops(made, codes)
    assert abs(tables(galleries, made, SHOWN)["galleries"].query("dictionary == 'topk'")["brightness"].iloc[0]) < 0.4


def test_the_baseline_of_a_gallery_is_brightness_chosen_on_training_crops():
    """Pixels that follow the atom separate its class as it does; pixels that follow nothing do as chance does."""
    made, codes = planted()
    with_crops(made, codes, bright=True)
    atom = tables(galleries, made, SHOWN)["galleries"].query("dictionary == 'topk'").iloc[0]
    assert atom["baseline"] == 1.0
    assert atom["baseline_low"] > atom["null_high"]
    with_crops(made, codes)
    atom = tables(galleries, made, SHOWN)["galleries"].query("dictionary == 'topk'").iloc[0]
    assert atom["baseline_low"] <= atom["null"] <= atom["baseline_high"]


def test_brightness_has_the_interval_and_the_null_of_whole_groups():
    rng = np.random.default_rng(4)
    groups = np.repeat(np.arange(40), 10)
    bright = rng.normal(size=40)[groups] + 0.2 * rng.normal(size=400)
    told = galleries.brightness(bright + 0.3 * rng.normal(size=400), bright, groups, SHOWN, [0])
    assert told["brightness"] > 0.9
    assert told["brightness_null_high"] < told["brightness_low"] < told["brightness"] < told["brightness_high"]
    inside = 0
    for seed in range(20):
        # As many independent values as groups, not as crops: a null of permuted crops would be three times too narrow.
        code = np.random.default_rng([seed, 1]).normal(size=40)[groups]
        found = galleries.brightness(code, bright, groups, SHOWN, [seed])
        assert found["brightness"] == pytest.approx(spearmanr(code, bright).statistic)
        inside += found["brightness_null_low"] <= found["brightness"] <= found["brightness_null_high"]
    assert inside >= 16
    assert np.isnan(galleries.brightness(np.zeros(400), bright, groups, SHOWN, [0])["brightness"])


def test_the_map_is_the_code_of_each_patch_token(monkeypatch):
    made, codes = planted()
    with_crops(made, codes)
    made.model = (Onnx(adapter="onnx", path="x.onnx", layer="tokens"), None)
    rng = np.random.default_rng(1)
    tokens = rng.normal(size=(N, 9, D)).astype(np.float32)
    monkeypatch.setattr("conceptome.models.vision.token_reader", lambda *_: lambda row: tokens[row])
    for dictionary, _ in made.fits.values():
        dictionary.encode = lambda X, held=dictionary: SimpleNamespace(
            to_scipy=lambda: __import__("scipy.sparse").sparse.csr_matrix(np.maximum(X @ held.atoms.T, 0))
        )
    shown = tables(galleries, made, SHOWN)["galleries_crops"].query("dictionary == 'topk'")
    for each in shown.itertuples():
        row = made.obs.index.get_loc(each.sample_id)
        expected = np.maximum(tokens[row] @ made.fits["topk", 0][0].atoms[3], 0)
        np.testing.assert_allclose(np.frombuffer(each.map, "<f4"), expected, atol=1e-5)
        assert each.patches == 9


def test_galleries_of_what_is_no_image_are_refused_and_none_shown_is_an_empty_table():
    made, codes = planted()
    made.card["modality"] = "wells"
    with pytest.raises(DataError, match=r"galleries needs images, but the data set is of wells"):
        galleries.measure(made, SHOWN)
    with_crops(made, codes)
    found = tables(galleries, made, SHOWN.model_copy(update={"dictionaries": ["icfl"]}))
    assert found["galleries"].empty
    assert "purity" in found["galleries"]


@pytest.mark.parametrize(("module", "config"), [(dose_curves, DOSES), (galleries, SHOWN)])
def test_the_same_inputs_give_the_same_tables(module, config):
    one, two = (planted() for _ in range(2))
    for made, codes in (one, two):
        with_crops(made, codes)
    for name, table in tables(module, one[0], config).items():
        pd.testing.assert_frame_equal(table, tables(module, two[0], config)[name])
