import numpy as np
import pandas as pd
import pytest
from planted_space import plain_space
from scipy import sparse
from scipy.stats import norm

from conceptome.config.further import Multidimensional
from conceptome.dictionaries.linear import Identity
from conceptome.errors import DataError
from conceptome.measures import multidimensional
from conceptome.measures.multidimensional import (
    G2M_GENES,
    S_GENES,
    cell_cycle_scores,
    indices,
    mixture_index,
    mutual_informations,
)
from conceptome.measures.tables import assemble

# What the planted codes are of has no encoder.
QUICK = Multidimensional(clusters=4, permutations=12, folds=5, bootstraps=40, components=3, null="codes")


def circle(n, rng, noise=0.05):
    angle = rng.random(n) * 2 * np.pi
    return np.column_stack([np.cos(angle), np.sin(angle)]) + noise * rng.normal(size=(n, 2)), angle


def test_mutual_information_of_independent_and_identical_coordinates():
    rng = np.random.default_rng(0)
    independent = rng.random((4000, 2))
    # Upward bias of the plug-in estimate: (bins − 1)² / 2n nats.
    assert mutual_informations(independent)[0] == pytest.approx(81 / 8000, abs=0.004)
    x = rng.random(4000)
    assert mutual_informations(np.column_stack([x, x]))[0] == pytest.approx(np.log(10), abs=0.01)


def test_mixture_index_closed_forms():
    rng = np.random.default_rng(1)
    # Of a Gaussian, every slab through the middle holds 2Φ(ε) − 1.
    share = mixture_index(rng.normal(size=(20000, 2)), 0.1)
    assert share == pytest.approx(2 * norm.cdf(0.1) - 1, abs=0.012)
    # Of two features of which one is active at a time, half of the samples lie on the line of the other.
    which = rng.random(4000) < 0.5
    lines = np.where(which[:, None], [1.0, 0.0], [0.0, 1.0]) * rng.uniform(1, 2, 4000)[:, None]
    assert mixture_index(lines - lines.mean(axis=0), 0.1) > 0.45


def test_indices_tell_a_circle_from_separable_and_mixed_planes():
    rng = np.random.default_rng(2)
    s, m = indices(circle(2000, rng)[0], 0.1)
    assert s > 0.4
    # The densest slab of a circle is its edge: with c = .88 and a reach of .12, arccos(.76)/π = .22 of the samples.
    assert m == pytest.approx(0.21, abs=0.03)
    turned = rng.random((2000, 2)) @ np.array([[np.cos(0.6), -np.sin(0.6)], [np.sin(0.6), np.cos(0.6)]])
    assert indices(turned, 0.1)[0] < 0.05


def planted(seed=0, n=1500):
    """Three bundles of atoms around far directions: a circle, two independent strengths, a mixture of two lines."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(16, 16)))[0]
    atoms, codes = [], []
    _ring, angle = circle(n, rng)
    steps = np.arange(8) * 2 * np.pi / 8
    for step in steps:
        atoms.append(2 * basis[0] + np.cos(step) * basis[1] + np.sin(step) * basis[2])
        codes.append(np.maximum(np.cos(angle - step), 0) ** 2 + 0.02 * rng.random(n))
    strengths = rng.uniform(0.2, 1.2, size=(n, 2))
    for i in (0, 1):
        for _ in range(3):
            atoms.append(2 * basis[3] + basis[4 + i])
            codes.append(strengths[:, i] / 3)
    which = rng.random(n) < 0.5
    size = rng.uniform(0.2, 1.2, n)
    for i in (0, 1):
        for _ in range(3):
            atoms.append(2 * basis[6] + basis[7 + i] + 0.01 * rng.normal(size=16))
            codes.append(size * (which == bool(i)) / 3)
    atoms, codes = np.array(atoms), np.column_stack(codes)
    return atoms / np.linalg.norm(atoms, axis=1, keepdims=True), codes, angle


@pytest.fixture(scope="module")
def found():
    atoms, codes, angle = planted()
    other, noise, _ = planted(1)
    rng = np.random.default_rng(3)
    day = np.floor(angle / (2 * np.pi) * 6)
    space = plain_space(
        codes @ atoms,
        [("good", 0, atoms, codes), ("bad", 0, other, rng.permuted(noise, axis=0))],
        columns={"day": day, "chance": rng.integers(0, 5, len(day)).astype(float), "kind": "a"},
        labels={"day": {"kind": "ordinal"}, "chance": {"kind": "ordinal"}, "kind": {"kind": "categorical"}},
    )
    config = QUICK.model_copy(update={"clusters": 3, "labels": ["day", "chance"]})
    return {
        table: assemble(table, multidimensional.TABLES[table], frames, space.place)
        for table, frames in multidimensional.measure(space, config).items()
    }


def test_the_planted_circle_comes_first_and_separable_planes_are_rejected(found):
    table = found["multidimensional"]
    good = table[table["dictionary"] == "good"]
    first = good.iloc[0]
    assert first["rank"] == 1
    assert set(first["atoms"].split()) == {str(i) for i in range(8)}
    assert first["q"] < 0.1
    assert first["low"] > first["null_high"]
    assert first["low"] < first["score"] < first["high"]
    separable_plane = good[good["atoms"] == "8 9 10 11 12 13"].sort_values("plane").iloc[0]
    assert separable_plane["score"] < 0.15 * first["score"]
    assert separable_plane["p"] > 0.01
    assert separable_plane["excess"] < 0.15 * first["excess"]
    mixed = good[good["atoms"] == "14 15 16 17 18 19"].sort_values("plane").iloc[0]
    assert mixed["mixture"] > 0.4
    assert mixed["score"] < 0.6 * mixed["separability"]
    assert mixed["excess"] < 0.8 * first["excess"]


def test_atoms_that_fire_independently_give_no_feature(found):
    table = found["multidimensional"]
    bad = table[table["dictionary"] == "bad"]
    good = table[table["dictionary"] == "good"]
    assert bad["excess"].max() < 0.2 * good["excess"].max()


def features(seed, ring=False, n=1600):
    """Samples that mix independent one-dimensional features, four bundles of four that point alike, with noise.

    With `ring`, the second bundle is eight atoms around a circle, on which half of the samples lie. Codes are those of
    orthogonal matching pursuit: atoms compete.
    """
    rng = np.random.default_rng([seed, 5])
    basis = np.linalg.qr(rng.normal(size=(24, 24)))[0]
    atoms = [1.5 * basis[5 * bundle] + basis[5 * bundle + 1 : 5 * bundle + 5] for bundle in range(4)]
    strength = rng.gamma(4, 0.25, (n, 16)) * (rng.random((n, 16)) < 0.2)
    x = strength @ np.concatenate(atoms) / np.sqrt(3.25) + 0.05 * rng.normal(size=(n, 24))
    if ring:
        x = x - strength[:, 4:8] @ atoms[1] / np.sqrt(3.25)
        angle = np.arange(8) * np.pi / 4
        atoms[1] = 1.5 * basis[5] + np.cos(angle)[:, None] * basis[6] + np.sin(angle)[:, None] * basis[7]
        around = circle(n, rng)[0]
        x += (rng.random(n) < 0.5)[:, None] * (1.5 * basis[5] + around @ basis[6:8])
    atoms = np.concatenate(atoms)
    atoms = (atoms / np.linalg.norm(atoms, axis=1, keepdims=True)).astype(np.float32)
    card = {"k": 4, "d": 24, "m": len(atoms), "options": {"encoder": "omp", "k": 4}}
    dictionary = Identity({"atoms": atoms, "bias": np.zeros(24, dtype=np.float32)}, card)
    space = plain_space(x, [("pursuit", 0, atoms, dictionary.encode(x.astype(np.float32)).to_scipy().toarray())])
    space.fits["pursuit", 0] = dictionary, space.fits["pursuit", 0][1]
    return space


@pytest.mark.parametrize("null", ["codes", "encoded"])
def test_planes_of_independent_features_are_not_rejected(null):
    config = QUICK.model_copy(update={"folds": 2, "null": null})
    tables = [multidimensional.measure(features(seed), config)["multidimensional"][0] for seed in range(6)]
    p = pd.concat(tables)["p"]
    assert len(p) >= 40
    # One in twenty, with room for three times that: 48 planes, binomial.
    assert (p < 0.05).mean() < 0.15
    assert sum((table["q"] < 0.05).any() for table in tables) <= 1
    # Such planes have mutual information all the same, which a shuffled coordinate has not.
    assert pd.concat(tables)["separability"].median() > 0.1


RING = {str(atom) for atom in range(4, 12)}


def ring_and_others(seed):
    """The first plane of samples with a circle, and the planes without any of its atoms."""
    config = QUICK.model_copy(update={"folds": 2, "null": "encoded"})
    table = multidimensional.measure(features(seed, ring=True), config)["multidimensional"][0]
    apart = [not RING & set(atoms.split()) for atoms in table["atoms"]]
    return table[table["rank"] == 1].iloc[0], table[apart]


def test_a_circle_among_independent_features_is_found_and_they_are_not():
    first, others = ring_and_others(0)
    assert set(first["atoms"].split()) == RING
    assert first["q"] < 0.05
    # The circle takes the others' place in half of the samples; the null that keeps it whole covers that.
    assert len(others) >= 4
    assert (others["q"] >= 0.05).all()


@pytest.mark.slow
def test_circles_are_found_with_power_and_hardly_ever_anything_beside_them():
    found = [ring_and_others(seed) for seed in range(20)]
    assert sum(first["q"] < 0.05 and set(first["atoms"].split()) <= RING for first, _ in found) >= 16
    # 20 families at .05: more than four have a probability below .003 (binomial).
    assert sum((others["q"] < 0.05).any() for _, others in found) <= 4


def test_a_cluster_set_apart_moves_as_a_whole():
    space = features(1, ring=True, n=300)
    dictionary, codes = space.fits["pursuit", 0]
    dense = codes.to_scipy().toarray()
    groups = np.arange(len(dense)).astype(str)
    independent = multidimensional.Independent(dictionary, [dense], [np.zeros((len(dense), 24))], [groups])
    atoms = np.arange(4, 12)
    moved = independent.draw([0], QUICK, [atoms])[0].toarray()
    np.testing.assert_allclose(moved[:, atoms].T @ moved[:, atoms], dense[:, atoms].T @ dense[:, atoms], rtol=1e-4)
    np.testing.assert_allclose(np.sort(moved, axis=0), np.sort(dense, axis=0))
    # The others left it, and each other.
    assert not np.allclose(moved[:, 0] @ moved[:, 4:12], dense[:, 0] @ dense[:, 4:12])


def test_the_label_laid_around_the_circle_is_read_and_a_random_one_is_not(found):
    labels = found["multidimensional_labels"].set_index(["dictionary", "label"])
    assert labels.loc[("good", "day"), "low"] > 0.8
    assert labels.loc[("good", "day"), "rank"] == 1
    chance = labels.loc[("good", "chance")]
    assert chance["null_low"] - 0.05 <= chance["correlation"] <= chance["null_high"] + 0.05
    assert abs(labels.loc[("bad", "day"), "correlation"]) < 0.2
    points = found["multidimensional_points"]
    assert (points["shade_label"] == "day").all()
    assert points["shade"].notna().all()


def test_a_categorical_or_unknown_label_is_refused():
    atoms, codes, _ = planted(n=300)
    space = plain_space(
        codes @ atoms, [("good", 0, atoms, codes)], columns={"kind": "a"}, labels={"kind": {"kind": "categorical"}}
    )
    for label in ("kind", "nothing"):
        with pytest.raises(DataError, match=label):
            multidimensional.measure(space, QUICK.model_copy(update={"labels": [label]}))


def cells(n=300, seed=0, genes=True):
    """Cells of which a third express the S genes and a third the G2/M genes more than others."""
    from anndata import AnnData

    rng = np.random.default_rng(seed)
    names = [name.split("/")[-1] for name in (*S_GENES, *G2M_GENES)] if genes else []
    names += [f"GENE{i}" for i in range(400)]
    phase = np.arange(n) % 3
    x = rng.gamma(2.0, 0.5, size=(n, len(names)))
    if genes:
        x[:, : len(S_GENES)] += 1.5 * (phase == 1)[:, None]
        x[:, len(S_GENES) : len(S_GENES) + len(G2M_GENES)] += 1.5 * (phase == 2)[:, None]
    obs = pd.DataFrame(index=[f"s{i}" for i in range(n)])
    return AnnData(sparse.csr_matrix(x.astype(np.float32)), obs=obs, var=pd.DataFrame(index=names)), phase


def test_cell_cycle_scores_find_the_phases_and_say_when_genes_are_missing():
    assert len(set(S_GENES)) == 43
    assert len(set(G2M_GENES)) == 54
    adata, phase = cells()
    scores, why = cell_cycle_scores(adata, 20, 0)
    assert why == ""
    s, g2m = scores.values()
    assert s[phase == 1].min() > s[phase != 1].max()
    assert g2m[phase == 2].min() > g2m[phase != 2].max()
    assert "S_score" not in adata.obs
    scores, why = cell_cycle_scores(cells(genes=False)[0], 20, 0)
    assert scores == {}
    assert "0 of 43 S genes" in why


def test_missing_cell_cycle_genes_are_said_in_the_table():
    atoms, codes, _ = planted(n=300)
    space = plain_space(codes @ atoms, [("good", 0, atoms, codes)])
    space.dataset.anndata = lambda: cells(genes=False)[0]
    config = QUICK.model_copy(update={"cell_cycle": True, "permutations": 10, "min_active": 50})
    rows = multidimensional.measure(space, config)["multidimensional_labels"][0]
    assert rows["label"].tolist() == ["cell cycle"]
    assert "20 of each are needed" in rows["excluded"][0]


def test_equal_inputs_give_equal_tables():
    atoms, codes, _ = planted(n=400)
    once, again = (
        multidimensional.measure(plain_space(codes @ atoms, [("good", 0, atoms, codes)]), QUICK)["multidimensional"][0]
        for _ in range(2)
    )
    assert once.equals(again)
