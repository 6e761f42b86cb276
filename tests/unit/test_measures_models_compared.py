"""Measures that compare two models of the same samples: latent scaling and model similarity."""

import numpy as np
import pandas as pd
import pytest
from further_space import observations, space, tables

from conceptome.config.further import LatentScaling, ModelSimilarity
from conceptome.errors import DataError
from conceptome.measures import latent_scaling, model_similarity
from conceptome.measures.atoms import random_unit
from conceptome.measures.model_similarity import cka, gram, relative

N, GROUPS = 2400, 240
SHARED, ALONE = 8, 4
SCALING = LatentScaling(models=["second"], m=24, k=2, steps=500, bootstraps=8, permutations=1)
SIMILARITY = ModelSimilarity(models=["second", "unrelated"], max_rows=200, anchors=32, permutations=10)


@pytest.fixture(scope="module")
def planted():
    """Two models that see 8 concepts in common and 4 each alone, in unlike spaces; and one that sees none of it."""
    rng = np.random.default_rng(0)
    total = SHARED + 2 * ALONE
    Z = (rng.random((N, total)) < 0.08) * (0.5 + rng.gamma(4, 0.5, (N, total)))
    first, second = random_unit(total, 20, rng), random_unit(total, 24, rng)
    first[SHARED + ALONE :] = 0
    second[SHARED : SHARED + ALONE] = 0
    X = Z @ first + 0.02 * rng.normal(size=(N, 20)) + 3
    Y = 50 * (Z @ second + 0.02 * rng.normal(size=(N, 24))) - 20
    others = {"second": Y, "unrelated": rng.normal(size=(N, 30))}
    truth = np.repeat(["shared", "own", "other"], [SHARED, ALONE, ALONE])
    return X, Y, others, first, second, truth


@pytest.fixture(scope="module")
def scaled(planted):
    X, _, others, *_ = planted
    return tables(latent_scaling, space(X, observations(N, GROUPS), {}, others={"second": others["second"]}), SCALING)


def test_planted_shared_and_specific_concepts_are_told_apart(scaled):
    table = scaled["latent_scaling"].set_index("kind")
    # Planted: half shared, a quarter each of one model alone; some atoms stand for two concepts.
    assert table.loc["shared", "value"] == pytest.approx(0.5, abs=0.2)
    assert table.loc["own", "value"] == pytest.approx(0.25, abs=0.15)
    assert table.loc["other", "value"] == pytest.approx(0.25, abs=0.15)
    assert table["value"].sum() == pytest.approx(1)
    assert (table["low"] <= table["value"] + 1e-9).all()
    assert (table["value"] <= table["high"] + 1e-9).all()
    # Samples that do not belong together share nothing.
    assert table.loc["shared", "null"] < table.loc["shared", "low"]
    atoms = scaled["latent_scaling_atoms"].query("kind != 'silent'")
    assert set(atoms.loc[atoms["own_norm"] > 0.95, "kind"]) == {"own"}
    assert set(atoms.loc[atoms["own_norm"] < 0.05, "kind"]) == {"other"}
    assert set(atoms.loc[(atoms["own_norm"] - 0.48).abs() < 0.05, "kind"]) == {"shared"}


def test_atoms_carry_their_ratios(scaled):
    atoms = scaled["latent_scaling_atoms"]
    own, shared = (atoms[atoms["kind"] == kind] for kind in ("own", "shared"))
    assert (own["nu_error"] < 0.2).all()
    assert (own["nu_reconstruction"] < 0.5).all()
    assert shared["nu_error"].median() > 0.5
    # What samples that do not belong together reach lies between what is one model's own and what is shared.
    for part in ("error", "reconstruction"):
        assert 0 < atoms[f"nu_{part}_null_high"].iloc[0] < shared[f"nu_{part}_low"].median()
    assert own["own_norm"].mean() > shared["own_norm"].mean()
    assert (atoms["n_active"] > 0).sum() == scaled["latent_scaling"]["atoms"].iloc[0]


@pytest.fixture(scope="module")
def similar(planted):
    X, _, others, *_ = planted
    return tables(model_similarity, space(X, observations(N, GROUPS), {}, others=others), SIMILARITY)[
        "model_similarity"
    ]


def test_related_models_are_alike_and_unrelated_ones_lie_at_the_null(similar):
    related, unrelated = (similar[similar["other"] == name] for name in ("second", "unrelated"))
    assert (related["low"] > related["null_high"]).all()
    assert (related["low"] <= related["value"]).all()
    for row in unrelated.itertuples():
        reach = row.null_high - row.null_low
        assert row.null_low - reach < row.value < row.null_high + reach
    assert abs(unrelated.set_index("statistic").loc["cka", "value"]) < 0.05


def test_a_rotated_model_is_the_same_model():
    rng = np.random.default_rng(1)
    X = rng.normal(size=(60, 12)) * np.linspace(1, 3, 12) + 5
    turned = 7 * X @ np.linalg.qr(rng.normal(size=(12, 12)))[0] - 2
    assert cka(gram(X), gram(turned)) == pytest.approx(1)
    np.testing.assert_allclose(relative(X, X[:9]), relative(turned, turned[:9]), atol=1e-9)
    table = tables(
        model_similarity,
        space(X, observations(60, 60), {}, others={"second": turned}),
        ModelSimilarity(models=["second"]),
    )["model_similarity"]
    np.testing.assert_allclose(table["value"], 1.0)


def test_unbiased_cka_of_unrelated_wide_models_is_zero():
    rng = np.random.default_rng(2)
    found = [cka(gram(rng.normal(size=(40, 200))), gram(rng.normal(size=(40, 200)))) for _ in range(20)]
    assert abs(np.mean(found)) < 0.03


def test_models_of_other_samples_are_refused(planted):
    X = planted[0]
    obs = observations(N, GROUPS)
    one = space(X, obs, {}, others={"second": X})
    one.others["second"].obs = obs.iloc[::-1]
    with pytest.raises(DataError, match="do not have the same samples in the same order"):
        type(one)(one.dataset, one.store, one.whitening, {}, {}, one.place, one.others)


def test_the_same_inputs_give_the_same_table(planted, similar):
    X, _, others, *_ = planted
    again = tables(model_similarity, space(X, observations(N, GROUPS), {}, others=others), SIMILARITY)
    pd.testing.assert_frame_equal(again["model_similarity"], similar)
