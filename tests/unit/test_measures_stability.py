import numpy as np
import pytest

from conceptome.config.evidence import Measures
from conceptome.measures.stability import coherence, match, random_matches, stability

CONFIG = Measures(bootstraps=100, stability_draws=6)


def unit(m=40, d=16, seed=0):
    atoms = np.random.default_rng(seed).normal(size=(m, d))
    return (atoms / np.linalg.norm(atoms, axis=1, keepdims=True)).astype(np.float32)


def test_matching_finds_a_planted_permutation():
    atoms, order = unit(), np.random.default_rng(1).permutation(40)
    partner, cosine = match(atoms, atoms[order])
    np.testing.assert_array_equal(order[partner], np.arange(40))
    np.testing.assert_allclose(cosine, 1.0, atol=1e-6)


def test_signs_count_for_sparse_dictionaries_and_not_for_components():
    atoms = unit(10, 16)
    flipped = atoms * np.where(np.arange(10) % 2, 1, -1)[:, None]
    pairs, _ = stability(
        {("pca", 0): atoms, ("pca", 1): flipped, ("topk", 0): atoms, ("topk", 1): flipped},
        {"pca": "pca", "topk": "topk"},
        CONFIG,
    )
    found = pairs.set_index("dictionary")["mean_cosine"]
    assert found["pca"] == pytest.approx(1.0, abs=1e-6)
    assert found["topk"] < 0.9


def test_half_shared_atoms_are_counted_as_half():
    a, b = unit(60, 64, 0), unit(60, 64, 1)
    b[:30] = a[30:]
    pairs, matched = stability({("topk", 0): a, ("topk", 1): b}, {"topk": "topk"}, CONFIG)
    row = pairs.iloc[0]
    assert row["shared"] == 0.5
    assert 0.3 < row["shared_low"] < 0.5 < row["shared_high"] < 0.7
    assert row["low"] < row["mean_cosine"] < row["high"]
    assert row["mean_cosine"] > row["null_high"]
    np.testing.assert_array_equal(matched["partner"][30:], np.arange(30))
    assert matched["cosine"].mean() == pytest.approx(row["mean_cosine"])


def test_random_dictionaries_lie_at_the_null():
    pairs, _ = stability({("random", s): unit(seed=s) for s in (3, 4)}, {"random": "random"}, CONFIG)
    row = pairs.iloc[0]
    assert row["shared"] < 0.2
    assert abs(row["mean_cosine"] - row["null"]) < 0.03
    assert row["null_low"] <= row["null"] <= row["null_high"]


def test_all_pairs_of_seeds_and_no_identity_and_no_single_seed():
    atoms = {("topk", s): unit(seed=s) for s in (0, 1, 2)}
    atoms |= {("identity", s): np.eye(16, dtype=np.float32) for s in (0, 1)} | {("icfl", 0): unit()}
    pairs, matched = stability(atoms, {"topk": "topk", "identity": "identity", "icfl": "icfl"}, CONFIG)
    assert [tuple(pair) for pair in pairs[["seed_a", "seed_b"]].to_numpy()] == [(0, 1), (0, 2), (1, 2)]
    assert set(pairs["dictionary"]) == {"topk"}
    assert len(matched) == 3 * 40


def test_nothing_to_compare_gives_empty_tables():
    assert all(table.empty for table in stability({("topk", 0): unit()}, {"topk": "topk"}, CONFIG))


def test_coherence_is_the_largest_absolute_cosine():
    assert coherence(np.eye(4)) == 0.0
    assert coherence(np.array([[1.0, 0], [0, 1], [-0.6, 0.8]])) == pytest.approx(0.8)
    assert np.isnan(coherence(np.ones((1, 1))))


def test_the_null_repeats():
    one, two = (random_matches(20, 8, signless=False, config=CONFIG) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert one.shape == (6, 20)
