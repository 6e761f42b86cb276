"""The measure `layers`: a planted best layer is chosen, on validation alone."""

from __future__ import annotations

import further_space
import numpy as np
import pytest

from conceptome.config.further import Layers
from conceptome.errors import DataError
from conceptome.measures import layers

CONFIG = Layers(labels=["biology"], bootstraps=50, permutations=4, dimension_rows=300, folds=5, null_draws=2)
N, D = 720, 12


def planted(strength: dict[int, float], seed: int = 1, shift: dict[int, float] | None = None):
    """A space whose model is the first layer, the others named; `shift` moves the classes of test samples alone."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 2, 180)
    obs = further_space.observations(N, 180)
    label = classes[np.arange(N) % 180]
    obs["biology"] = np.where(label == 1, "case", "rest")
    obs["plate"] = np.where(np.arange(N) % 5 == 0, "p1", "p2")
    test = (obs["split"] == "test").to_numpy()
    found = {}
    for layer, value in strength.items():
        X = rng.normal(size=(N, D))
        X[:, 0] += value * (2 * label - 1)
        if shift and layer in shift:
            X[test, 0] += shift[layer] * (2 * label[test] - 1)
        found[layer] = X
    first = next(iter(found))
    others = {f"layer{layer}": X for layer, X in found.items() if layer != first}
    space = further_space.space(found[first], obs, {}, others=others)
    for layer, store in zip(found, [space.store, *space.others.values()]):
        store.card = {"layer": layer}
    return space


def test_the_planted_layer_is_chosen_and_the_null_stays_at_chance():
    config = CONFIG.model_copy(update={"permutations": 12})
    found = further_space.tables(layers, planted({0: 0.0, 1: 0.4, 2: 1.5, 3: 0.5}), config)
    table = found["layers"].set_index("layer")
    assert table.index[table["chosen"]].tolist() == [2]
    assert table.loc[2, "test"] > 0.85
    assert table.loc[2, "test_low"] > table.loc[2, "test_null_high"]
    assert table.loc[0, "test_low"] < table.loc[0, "test_null_high"]
    assert table.loc[0, "test_high"] > table.loc[0, "test_null_low"]
    assert np.abs(table["test_null"] - 0.5).max() < 0.12
    assert found["layers_dimension"].set_index("layer")["chosen"].tolist() == [False, False, True, False]
    assert (found["layers_dimension"]["low"] < found["layers_dimension"]["null_high"]).all()


def test_test_groups_have_no_say():
    """A layer that is useless on validation and perfect on test is not chosen."""
    table = layers.measure(planted({1: 1.0, 2: 0.0}, shift={2: 5.0}), CONFIG)["layers"][0].set_index("layer")
    assert table.loc[1, "chosen"]
    assert not table.loc[2, "chosen"]
    same = layers.measure(planted({1: 1.0, 2: 0.0}), CONFIG)["layers"][0].set_index("layer")
    columns = ["validation", "validation_low", "validation_null", "strength", "chosen"]
    assert table[columns].equals(same[columns])


def test_the_earliest_layer_that_is_as_good():
    space = planted({1: 0.2, 2: 1.2, 3: 1.3})
    best = layers.measure(space, CONFIG)["layers"][0]
    earliest = layers.measure(space, CONFIG.model_copy(update={"criterion": "earliest"}))["layers"][0]
    assert earliest.loc[earliest["chosen"], "layer"].unique().tolist() == [2]
    assert best.loc[best["chosen"], "layer"].iloc[0] >= 2


def test_technical_labels_do_not_choose():
    config = CONFIG.model_copy(update={"labels": ["plate"]})
    with pytest.raises(DataError, match="no biological label"):
        layers.measure(planted({1: 1.0, 2: 0.0}), config)


def test_one_layer_is_no_curve_and_two_of_one_number_are_refused():
    assert layers.measure(planted({1: 1.0}), CONFIG) == {}
    space = planted({1: 1.0, 2: 0.0})
    space.store.card = {"layer": "encoder"}
    with pytest.raises(DataError, match="which is no number"):
        layers.measure(space, CONFIG)
    space.store.card = {"layer": 2}
    with pytest.raises(DataError, match="layer 2 is there twice"):
        layers.measure(space, CONFIG)


def test_a_shuffled_model_is_not_another_layer_of_the_real_one():
    space = planted({1: 1.0, 2: 0.0})
    space.others["layer2"].card = {"layer": 2, "options": {"shuffle_weights": True, "layer": 2}}
    assert layers.measure(space, CONFIG) == {}
    space.store.card = {"layer": 1, "options": {"shuffle_weights": True, "layer": 1}}
    assert len(layers.measure(space, CONFIG)["layers"][0]) == 2
    named = CONFIG.model_copy(update={"models": [space.place["model"]]})
    assert layers.measure(space, named) == {}


def test_equal_runs_give_equal_tables():
    a, b = (layers.measure(planted({1: 1.0, 2: 0.3}), CONFIG) for _ in range(2))
    for name in a:
        assert a[name][0].equals(b[name][0])
