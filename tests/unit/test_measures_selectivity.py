import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from conceptome.config.evidence import Measures
from conceptome.measures.rows import Classes
from conceptome.measures.selectivity import activity, selectivity

CONFIG = Measures(bootstraps=100, permutations=40)


def make_classes(y, groups, split, names=("a", "b", "c")):
    return Classes(
        label="state",
        role="biological",
        rows=np.arange(len(y)),
        y=np.asarray(y),
        names=list(names),
        groups=np.asarray(groups).astype(str),
        split=np.asarray(split),
        excluded=[],
    )


def random_classes(n=600, seed=0):
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 30, n)
    split = np.array(["train", "train", "train", "validation", "test"])[groups % 5]
    return make_classes(rng.integers(0, 3, n), groups, split)


def brute(active, classes, part):
    """avg and max, class by class, straight from the definition."""
    avg, peak = np.empty((2, 3, active.shape[1]))
    for i in range(3):
        inside = active[part & (classes.y == i)].mean(axis=0)
        avg[i] = inside - active[part & (classes.y != i)].mean(axis=0)
        peak[i] = inside - np.max([active[part & (classes.y == j)].mean(axis=0) for j in range(3) if j != i], axis=0)
    return avg, peak


def test_values_equal_the_definition_with_the_class_chosen_off_test():
    classes = random_classes()
    active = np.random.default_rng(1).random((600, 20)) < 0.3
    table, _ = selectivity(sparse.csr_matrix(active), "nonzero", classes, CONFIG)
    test = classes.part("test")
    chosen_avg, chosen_peak = brute(active, classes, ~test)
    avg, peak = brute(active, classes, test)
    best, best_max = chosen_avg.argmax(axis=0), chosen_peak.argmax(axis=0)
    assert [classes.names[i] for i in best] == list(table["best_class"])
    assert [classes.names[i] for i in best_max] == list(table["best_class_max"])
    np.testing.assert_allclose(table["avg"], avg[best, np.arange(20)], atol=1e-6)
    np.testing.assert_allclose(table["max"], peak[best_max, np.arange(20)], atol=1e-6)
    np.testing.assert_array_equal(table["n_active"], active[test].sum(axis=0))
    assert (table["avg_low"] <= table["avg"] + 1e-6).all()
    assert (table["avg_high"] >= table["avg"] - 1e-6).all()


def test_an_atom_active_exactly_on_a_class_has_selectivity_one():
    classes = random_classes()
    active = np.stack([classes.y == 1, np.ones(600, bool), np.zeros(600, bool), classes.y != 2], axis=1)
    table, _ = selectivity(sparse.csr_matrix(active), "nonzero", classes, CONFIG)
    assert table["best_class"][0] == "b"
    for column in ("avg", "avg_low", "avg_high", "max", "max_low", "max_high"):
        np.testing.assert_allclose(table[column][:3], [1, 0, 0], atol=1e-6)
    # Shared by two classes: selective on average for neither fully, and no maximum selectivity at all.
    assert 0.4 < table["avg"][3] < 0.6
    np.testing.assert_allclose(table["max"][3], 0, atol=1e-6)


def test_noise_lies_within_the_null_curves():
    classes = random_classes()
    active = np.random.default_rng(2).random((600, 300)) < 0.2
    table, null = selectivity(sparse.csr_matrix(active), "nonzero", classes, CONFIG)
    for statistic in ("avg", "max"):
        curve = null[null["statistic"] == statistic]
        np.testing.assert_array_equal(curve["rank"], np.arange(300))
        assert (curve["low"] <= curve["median"]).all()
        ordered = -np.sort(-table[statistic].to_numpy())
        inside = (ordered >= curve["low"].to_numpy() - 1e-9) & (ordered <= curve["high"].to_numpy() + 1e-9)
        assert inside.mean() > 0.8


def test_a_planted_class_beats_the_null_curve():
    classes = random_classes()
    active = np.random.default_rng(3).random((600, 50)) < 0.2
    active[:, 7] = np.where(np.random.default_rng(4).random(600) < 0.9, classes.y == 0, active[:, 7])
    table, null = selectivity(sparse.csr_matrix(active), "nonzero", classes, CONFIG)
    top = null[(null["statistic"] == "avg") & (null["rank"] == 0)]["high"].iloc[0]
    assert list(np.flatnonzero(table["avg"] > top)) == [7]
    assert table["avg_low"][7] > top


def test_the_null_moves_whole_groups():
    """Atoms that mark groups look selective for a label that is constant in groups: the null must say so."""
    rng = np.random.default_rng(5)
    groups = np.repeat(np.arange(30), 20)
    split = np.array(["train", "train", "train", "validation", "test"])[groups % 5]
    y = (groups // 5) % 3
    active = (rng.random((30, 60)) < 0.3)[groups]
    grouped, single = (
        selectivity(sparse.csr_matrix(active), "nonzero", make_classes(y, unit, split), CONFIG)[1]
        for unit in (groups, np.arange(600))
    )
    wide, narrow = (
        null[(null["statistic"] == "avg") & (null["rank"] == 0)]["high"].iloc[0] for null in (grouped, single)
    )
    assert wide > 2 * narrow


def test_a_single_test_group_gives_no_interval():
    rng = np.random.default_rng(6)
    groups = np.repeat(["g1", "g2", "g3"], 40)
    split = np.repeat(["train", "validation", "test"], 40)
    active = sparse.csr_matrix(rng.random((120, 5)) < 0.3)
    table, _ = selectivity(active, "nonzero", make_classes(rng.integers(0, 3, 120), groups, split), CONFIG)
    assert table[["avg_low", "avg_high", "max_low", "max_high"]].isna().all().all()
    assert table["avg"].notna().all()


def test_dense_codes_are_active_in_their_tails():
    rng = np.random.default_rng(7)
    dense = rng.normal(size=(2000, 100)).astype(np.float32)
    train = np.arange(2000) < 1000
    active, rule = activity(sparse.csr_matrix(dense), train, 10)
    assert rule == "tails"
    assert active[1000:].sum() / 1000 == pytest.approx(10, abs=1)
    for atom in (0, 57):
        loud = np.abs(dense[:, atom])[active[:, [atom]].toarray().ravel()]
        quiet = np.abs(dense[:, atom])[~active[:, [atom]].toarray().ravel()]
        assert loud.min() > np.quantile(quiet, 0.9)


def test_sparse_codes_are_active_where_they_are_not_zero():
    codes = sparse.random(50, 40, density=0.1, random_state=0, format="csr")
    codes.data[::2] *= -1
    active, rule = activity(codes, np.ones(50, bool), 5)
    assert rule == "nonzero"
    np.testing.assert_array_equal(active.toarray(), codes.toarray() != 0)


def test_counts_are_the_same_with_and_without_compiled_kernels(monkeypatch):
    classes = random_classes()
    active = sparse.csr_matrix(np.random.default_rng(5).random((600, 300)) < 0.05)
    tables = [selectivity(active, "nonzero", classes, CONFIG)]
    monkeypatch.setenv("CONCEPTOME_KERNELS", "torch")
    tables.append(selectivity(active, "nonzero", classes, CONFIG))
    for ours, theirs in zip(*tables):
        pd.testing.assert_frame_equal(ours, theirs, check_exact=True)
