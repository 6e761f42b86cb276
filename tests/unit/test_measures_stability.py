import numpy as np
import pytest

from conceptome.config.evidence import Measures
from conceptome.dictionaries import fit
from conceptome.measures.atoms import match
from conceptome.measures.stability import Fitted, Matched, Nulls, Spread, random_matches, stability

CONFIG = Measures(bootstraps=100, stability_draws=6)


def unit(m=40, d=16, seed=0):
    atoms = np.random.default_rng(seed).normal(size=(m, d))
    return (atoms / np.linalg.norm(atoms, axis=1, keepdims=True)).astype(np.float32)


def of(atoms):
    return {key: Fitted(each) for key, each in atoms.items()}


def test_matching_finds_a_planted_permutation():
    atoms, order = unit(), np.random.default_rng(1).permutation(40)
    partner, cosine = match(atoms, atoms[order])
    np.testing.assert_array_equal(order[partner], np.arange(40))
    np.testing.assert_allclose(cosine, 1.0, atol=1e-6)


def test_signs_count_for_sparse_dictionaries_and_not_for_components():
    atoms = unit(10, 16)
    flipped = atoms * np.where(np.arange(10) % 2, 1, -1)[:, None]
    pairs, _ = stability(
        of({("pca", 0): atoms, ("pca", 1): flipped, ("topk", 0): atoms, ("topk", 1): flipped}),
        {"pca": "pca", "topk": "topk"},
        CONFIG,
    )
    found = pairs.set_index("dictionary")["mean_cosine"]
    assert found["pca"] == pytest.approx(1.0, abs=1e-6)
    assert found["topk"] < 0.9


def test_half_shared_atoms_are_counted_as_half():
    a, b = unit(60, 64, 0), unit(60, 64, 1)
    b[:30] = a[30:]
    pairs, matched = stability(of({("topk", 0): a, ("topk", 1): b}), {"topk": "topk"}, CONFIG)
    row = pairs.iloc[0]
    assert row["shared"] == 0.5
    assert 0.3 < row["shared_low"] < 0.5 < row["shared_high"] < 0.7
    assert row["low"] < row["mean_cosine"] < row["high"]
    assert row["mean_cosine"] > row["null_high"]
    assert row["shared_null"] == row["shared_null_high"] == 0.0
    np.testing.assert_array_equal(matched["partner"][30:], np.arange(30))
    assert matched["cosine"].mean() == pytest.approx(row["mean_cosine"])
    np.testing.assert_array_equal(matched["shared"], np.arange(60) >= 30)


def test_an_atom_is_shared_only_where_encoder_and_decoder_agree():
    atoms, encoder = unit(40, 64, 0), unit(40, 64, 1)
    swapped = encoder[[1, 0, *range(2, 40)]]
    fits = {("topk", 0): Fitted(atoms, encoder, 4), ("topk", 1): Fitted(atoms, swapped, 4)}
    pairs, matched = stability(
        fits | of({("icfl", s): atoms for s in (0, 1)}), {"topk": "topk", "icfl": "icfl"}, CONFIG
    )
    row, alone = pairs.iloc[0], pairs.iloc[1]
    assert (row["matched_on"], alone["matched_on"]) == ("decoder and encoder", "decoder")
    assert row["mean_cosine"] == pytest.approx(1.0)
    assert row["encoder_cosine"] == pytest.approx(1.0)
    assert row["agree"] == row["shared"] == 38 / 40
    np.testing.assert_array_equal(matched["shared"][:40], np.arange(40) >= 2)
    assert alone["shared"] == 1.0
    assert np.isnan(alone["agree"])
    assert (row["k"], row["m"]) == (4, 40)


def test_a_disagreement_does_not_count_against_what_the_threshold_refuses():
    found = Matched(np.arange(3), np.array([0.9, 0.6, 0.9]), np.ones(3), np.array([True, True, False]))
    assert found.shared(0.7).tolist() == [True, False, False]


def test_fitted_dictionaries_bring_their_encoder():
    X = np.random.default_rng(0).normal(size=(200, 6)).astype(np.float32)
    own, other = (
        fit("topk", X, m=12, k=2, steps=5, batch_size=50, **more) for more in ({}, {"encoder": "omp", "encoder_k": 2})
    )
    encoder = Fitted.of(own).encoder
    np.testing.assert_allclose(np.linalg.norm(encoder, axis=1), 1.0, atol=1e-6)
    assert Fitted.of(own).k == 2
    assert Fitted.of(other).encoder is None
    assert Fitted.of(fit("random", X, m=12, k=2)).encoder is None


def test_diversity_stands_beside_stability():
    copies = np.repeat(unit(10, 16), 4, axis=0)
    pairs, _ = stability(of({("topk", 0): copies, ("topk", 1): copies}), {"topk": "topk"}, CONFIG)
    row = pairs.iloc[0]
    assert row["shared"] == 1.0
    assert row["coherence"] == pytest.approx(1.0)
    assert row["effective_rank"] < 10
    assert Spread.of(np.eye(8)) == Spread(0.0, pytest.approx(8), pytest.approx(8))


def test_random_dictionaries_lie_at_the_null():
    pairs, _ = stability(of({("random", s): unit(seed=s) for s in (3, 4)}), {"random": "random"}, CONFIG)
    row = pairs.iloc[0]
    assert row["shared"] < 0.2
    assert abs(row["mean_cosine"] - row["null"]) < 0.03
    assert row["null_low"] <= row["null"] <= row["null_high"]


def test_all_pairs_of_seeds_and_no_identity_and_no_single_seed():
    atoms = {("topk", s): unit(seed=s) for s in (0, 1, 2)}
    atoms |= {("identity", s): np.eye(16, dtype=np.float32) for s in (0, 1)} | {("icfl", 0): unit()}
    pairs, matched = stability(of(atoms), {"topk": "topk", "identity": "identity", "icfl": "icfl"}, CONFIG)
    assert [tuple(pair) for pair in pairs[["seed_a", "seed_b"]].to_numpy()] == [(0, 1), (0, 2), (1, 2)]
    assert set(pairs["dictionary"]) == {"topk"}
    assert len(matched) == 3 * 40


def test_nothing_to_compare_gives_empty_tables():
    assert all(table.empty for table in stability(of({("topk", 0): unit()}), {"topk": "topk"}, CONFIG))


def test_the_null_repeats():
    one, two = (random_matches(20, 8, signless=False, config=CONFIG) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert one.shape == (6, 20)


def test_by_chance_two_matchings_hardly_agree():
    agree = Nulls(CONFIG).of(40, 16, signless=False, encoder=True).agree
    assert agree.shape == (6, 40)
    assert agree.mean() < 0.15


def test_diversity_of_random_atoms_lies_at_its_null_and_that_of_copies_does_not():
    config = Measures(bootstraps=10, stability_draws=40)
    copies = unit(40, 16, 2)
    copies[20:] = copies[:20]
    fits = of(
        {("random", 0): unit(40, 16, 0), ("random", 1): unit(40, 16, 1), ("topk", 0): copies, ("topk", 1): copies}
    )
    pairs, _ = stability(fits, {"random": "random", "topk": "topk"}, config)
    rows = pairs.set_index("dictionary")
    for name in ("coherence", "stable_rank", "effective_rank"):
        row = rows.loc["random"]
        low, high = row[f"{name}_null_low"], row[f"{name}_null_high"]
        assert low < row[f"{name}_null"] < high
        assert low - 0.5 * (high - low) < row[name] < high + 0.5 * (high - low)
    assert rows.loc["topk", "coherence"] > rows.loc["topk", "coherence_null_high"]
    assert rows.loc["topk", "effective_rank"] < rows.loc["topk", "effective_rank_null_low"]
