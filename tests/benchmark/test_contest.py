"""The benchmark's program: turns, memory, and contestants that are missing, fail or die."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from bars import BARS, OURS, SPARSIFY, Contest, contests, fastest, ratio
from contest import Contestant, Result, compete
from data import standardised, superposition
from page import Measured, bar_rows, write
from roof import Roof
from worker import Setting, learning, quality

SETTING = Setting(d=4, m=8, k=2, batch=16)


@pytest.fixture
def field(tmp_path):
    """Contestants by kind, ended after the test."""
    made = {}

    def give(*kinds):
        for kind in kinds:
            python = tmp_path / "none" if kind == "nowhere" else Path(sys.executable)
            made[kind] = Contestant(kind, python, "fake_contestant.py", kind, tmp_path)
        return [made[kind] for kind in kinds]

    yield give
    for contestant in made.values():
        contestant.stop(kill=True)


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.npy"
    np.save(path, np.ones((64, 4), dtype=np.float32))
    return path


def test_everybody_takes_turns_and_who_cannot_is_named(field, rows):
    everybody = field("fast", "slow", "broken", "mortal", "absent", "nowhere")
    results = compete("train topk", everybody, SETTING, rows, threads=1, rounds=3, seconds=0.0)
    assert len(results["fast"].rates) == len(results["slow"].rates) == 3
    # What the rounds took: a sleeping contestant takes time and no processor, and every process holds some memory.
    assert results["slow"].wall > results["slow"].processor >= 0
    assert results["slow"].peak > 2**20
    assert results["fast"].median > results["slow"].median
    assert results["broken"].reason == "ValueError: cannot be built"
    assert results["absent"].reason == "ModuleNotFoundError: No module named 'absent'"
    assert results["nowhere"].reason == "its environment is missing"
    # Two warm-up calls and one turn, then it ended.
    assert len(results["mortal"].rates) == 1
    assert results["mortal"].reason
    # It is started again for the next work, and a contestant that lives is not.
    process = everybody[0].process
    again = compete("encode topk", everybody[:4:3], SETTING, rows, threads=1, rounds=1, seconds=0.0)
    assert len(again["fast"].rates) == len(again["mortal"].rates) == 1
    assert everybody[0].process is process


def test_memory_that_a_contestant_takes_is_seen(field, rows):
    results = compete("encode topk", field("fast"), SETTING, rows, threads=1, rounds=1, seconds=0.0)
    assert 30 * 2**20 < results["fast"].growth < 70 * 2**20


def test_a_work_that_is_not_offered_is_no_failure(field, rows):
    results = compete("encode mp", field("fast"), SETTING, rows, threads=1, rounds=1, seconds=0.0)
    assert results["fast"] == Result(reason="does not offer this")


def test_ratios_are_of_medians_with_the_range_of_the_rounds():
    results = {OURS: Result([10.0, 30.0, 20.0]), SPARSIFY: Result([5.0, 5.0, 4.0]), "sae-lens": Result(reason="none")}
    assert fastest(results) == SPARSIFY
    assert ratio(results, OURS, SPARSIFY) == (4.0, 2.0, 6.0)
    assert ratio(results, OURS, "sae-lens") is None


def test_the_page_tells_what_is_met_and_what_is_missing(tmp_path):
    measured = Measured(2, roof=Roof(1e12, 1e11))
    step = next(each for each in contests(False) if each.key == "step")
    growth = 200 * 2**20
    measured.contests.append(
        (step, {OURS: Result([1000.0], growth), SPARSIFY: Result([100.0]), "sae-lens": Result(reason="no environment")})
    )
    measured.quality = pd.DataFrame(
        [
            {"data": "rows", "who": who, "m": 8, "reason": "", "fvu": fvu, "l0": 2.0, "dead": dead, "rate": "default"}
            for who, fvu, dead in ((f"{OURS}, TopK", 0.2, 1), (SPARSIFY, 0.3, 0))
        ]
    )
    verdicts = {(row[0], row[1].split(" (")[0]): row[-1] for row in bar_rows(measured)}
    title = f"{step.title}, {step.sizes}"
    assert verdicts[title, "the fastest peer"] == "met"
    assert verdicts[title, "sae-lens"] == "not measured"
    assert verdicts["Memory growth during training", "data, parameters, moments"] == "**not met**"
    assert verdicts["TopK training step", "float32 floor"] == "**not met**"
    assert verdicts["FVU at equal rows, rows", "the best peer"] == "met"
    assert verdicts["Dead atoms, rows", "the best peer"] == "**not met**"
    write(measured, tmp_path / "performance.md")
    text = (tmp_path / "performance.md").read_text()
    assert "10.0× [10.0×, 10.0×] | met" in text
    assert "sae-lens: no environment" in text
    assert text.count("left out") > len(BARS) // 2


def test_every_bar_belongs_to_a_contest_that_its_rivals_take_part_in():
    by_key: dict[str, Contest] = {each.key: each for each in contests(False)}
    for bar in BARS:
        assert bar.who in by_key[bar.contest].who
        assert bar.against == "the fastest peer" or bar.against in by_key[bar.contest].who
    assert [each.key for each in contests(True)] == list(by_key)


def test_quality_of_a_known_reconstruction():
    rng = np.random.default_rng(0)
    train, test = standardised(
        rng.standard_normal((500, 4)).astype("f4") + 3, rng.standard_normal((300, 4)).astype("f4")
    )
    np.testing.assert_allclose(train.mean(axis=0), 0, atol=1e-6)

    def halve(x):
        active = np.zeros((len(x), 3), dtype=bool)
        active[:, :2] = True
        return x - np.float32(0.5) * (x - test.mean(axis=0)), active

    found = quality(halve, train, test)
    assert found["fvu"] == pytest.approx(0.25, rel=1e-5)
    assert (found["l0"], found["dead"]) == (2.0, 1)


def test_learning_sees_the_rows_in_the_order_given():
    from worker import Learned

    seen = []
    learn = learning(lambda X, s: Learned(lambda x: seen.append(x[:, 0].tolist()), 0, lambda x: (x, x > 0)))
    X = np.arange(8, dtype=np.float32).reshape(4, 2)
    learn(X, X, np.array([[3, 0], [1, 2]]), SETTING)
    assert seen == [[6.0, 0.0], [2.0, 4.0]]


def test_superposition_is_sparse_in_its_features():
    X = superposition(300, 64, seed=2)
    assert X.shape == (300, 64)
    assert X.std() == pytest.approx(1, rel=1e-3)
    np.testing.assert_array_equal(X, superposition(300, 64, seed=2))
    # Frequent features dominate: a few directions hold much more than their share.
    values = np.linalg.svd(X, compute_uv=False) ** 2
    assert values[:8].sum() / values.sum() > 0.3
