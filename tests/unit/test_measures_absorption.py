"""Absorption: planted absorption and splitting are found; atoms that keep to their concept absorb nothing."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from planted_concepts import PlantedSpace, topk, unit
from scipy import sparse
from sklearn.metrics import f1_score

from conceptome.config.further import Absorption
from conceptome.datasets.ontology import families, find_terms, read_ontology
from conceptome.errors import DataError
from conceptome.measures.absorption import TABLES, absorbers, best_cut, hierarchies, measure
from conceptome.measures.tables import assemble

CONFIG = Absorption(nested=[["kingdom", "species"]], bootstraps=50, permutations=10, strength=1.0)


def planted(n=4000, seed=0):
    """Two parents with three children each, the first rare; each sample is parent + child + others."""
    rng = np.random.default_rng([seed, 9])
    D = unit(rng.standard_normal((12, 40)))  # 0, 1: parents; 2–7: children; 8–11: others
    parent, child = rng.integers(0, 2, n), rng.choice(3, n, p=[0.05, 0.5, 0.45])
    strength = rng.gamma(20, 0.1, (n, 12)) + 0.5
    on = np.zeros((n, 12), dtype=bool)
    on[np.arange(n), parent] = True
    on[np.arange(n), 2 + 3 * parent + child] = True
    on[:, 8:] = rng.random((n, 4)) < 0.3
    Z = np.where(on, strength, 0)
    X = Z @ D + 0.02 * rng.standard_normal((n, 40))
    # Absorbing: where the first child of parent 0 is, parent 0's atom is silent and the child's atom holds both.
    absorbing, atoms = Z.copy(), D.copy()
    absorbed = (parent == 0) & (child == 0)
    atoms[2] = unit((D[0] + D[2])[None])[0]
    absorbing[absorbed, 2] = np.linalg.norm(D[0] + D[2]) * Z[absorbed, 0]
    absorbing[absorbed, 0] = 0
    # Splitting: parent 0 has two atoms that fire in turn, whatever the child.
    turn = rng.random(n) < 0.5
    split = np.concatenate([Z, (Z[:, 0] * turn)[:, None]], axis=1)
    split[turn, 0] = 0
    fits = {
        "clean": (D, Z),
        "absorbing": (atoms, absorbing),
        "splitting": (np.concatenate([D, D[:1]]), split),
        "random": (unit(rng.standard_normal((12, 40))), topk(rng.standard_normal((n, 12)), 2)),
    }
    kingdom = np.array(["A", "B"], dtype=object)[parent]
    species = np.array([f"{k}{c}" for k, c in zip(kingdom, child)], dtype=object)
    return PlantedSpace(Z, X, fits, {"kingdom": kingdom, "species": species}, group_size=4), absorbed


@pytest.fixture(scope="module")
def found():
    space, absorbed = planted()
    tables = measure(space, CONFIG)
    return {name: assemble(name, TABLES[name], tables[name], space.place) for name in TABLES}, space, absorbed


def test_planted_absorption_is_found_and_nothing_else(found):
    tables, space, absorbed = found
    frame = tables["absorption_parents"].set_index(["dictionary", "parent"])
    test = space.split == "test"
    share = (absorbed & test).sum() / ((space.obs["kingdom"] == "A") & test).sum()
    row = frame.loc[("absorbing", "A")]
    assert row["absorbed"] == pytest.approx(share, abs=0.01)
    assert row["any"] == pytest.approx(share, abs=0.01)
    assert row["low"] > row["null_high"]
    for name in ("clean", "splitting"):
        for parent in "AB":
            assert frame.loc[(name, parent), "absorbed"] <= 0.002
            assert frame.loc[(name, parent), "any"] <= 0.002
    assert frame.loc[("random", "A"), "absorbed"] <= frame.loc[("random", "A"), "null_high"] + 0.05
    summary = tables["absorption"].set_index("dictionary")
    assert summary.loc["absorbing", "absorbed"] == pytest.approx(share / 2, abs=0.01)
    assert summary.loc["absorbing", "low"] > summary.loc["absorbing", "null_high"]
    assert summary.loc["clean", "absorbed"] <= 0.002


def test_planted_splitting_is_found(found):
    frame = found[0]["absorption_parents"].set_index(["dictionary", "parent"])
    assert frame.loc[("splitting", "A"), "split"] == 2
    assert set(frame.loc[("splitting", "A"), "main"].split()) == {"0", "12"}
    assert frame.loc[("splitting", "A"), "f1_split"] > frame.loc[("splitting", "A"), "f1_one"] + 0.03
    # Two classes that exclude each other: the other's atom would tell by its silence, but does not stand for it.
    assert list(frame.loc["clean", "main"]) == ["0", "1"]


def test_the_rule_sample_by_sample():
    atoms = np.eye(3)
    direction = np.array([0.8, 0.6, 0.0])
    codes = sparse.csr_matrix(
        [
            [1.0, 0.0, 0.0],  # the main atom is active
            [0.0, 2.0, 0.0],  # absorbed: carries 1.2 of 1.2
            [0.0, 0.5, 3.0],  # carries 0.3 of 1.2: too little
            [0.0, 0.0, 2.0],  # no cosine with the probe
            [0.0, 0.0, 0.0],  # nothing is active
        ]
    )
    config = CONFIG.model_copy(update={"min_cosine": 0.1})
    absorber, silent = absorbers(codes, np.full(5, 1.2), np.array([0]), atoms, direction, config)
    np.testing.assert_array_equal(absorber, [-1, 1, -1, -1, -1])
    np.testing.assert_array_equal(silent, [False, True, True, True, True])


def test_the_cut_has_the_highest_f1():
    rng = np.random.default_rng(5)
    y = rng.random(200) < 0.1
    scores = np.round(rng.standard_normal(200) + 2 * y, 1)
    found = f1_score(y, scores > best_cut(scores, y))
    assert found == pytest.approx(max(f1_score(y, scores > cut) for cut in np.append(np.unique(scores), -99)))


def test_parents_from_a_table_are_the_same_as_nested_labels():
    space, _ = planted(3000)
    table = {"species": {"A": ["A0", "A1", "A2"], "B": ["B0", "B1", "B2"]}}
    nested, named = (
        hierarchies(space, config)[0] for config in (CONFIG, CONFIG.model_copy(update={"nested": [], "parents": table}))
    )
    np.testing.assert_array_equal(nested.labels.members, named.labels.members)
    np.testing.assert_array_equal(nested.child, named.child)
    assert nested.children == named.children == [["A0", "A1", "A2"], ["B0", "B1", "B2"]]


OBO = """format-version: 1.2
data-version: releases/2024-01-01
ontology: t

[Term]
id: T:0000001
name: root

[Term]
id: T:0000010
name: Kingdom A
is_a: T:0000001 ! root

[Term]
id: T:0000011
name: order of A
is_a: T:0000010 {is_inferred="true"} ! Kingdom A

[Term]
id: T:0000100
name: species a zero
synonym: "A0" EXACT [PMID:1]
is_a: T:0000011 ! order of A

[Term]
id: T:0000101
name: a1
alt_id: T:0000109
is_a: T:0000011 ! order of A

[Term]
id: T:0000102
name: third species
synonym: "A2" RELATED []
is_a: T:0000001 ! root
relationship: part_of T:0000010 ! Kingdom A

[Term]
id: T:0000103
name: B0
is_a: T:0000001 ! root

[Term]
id: T:0000104
name: B1
is_a: T:0000010 ! Kingdom A
is_obsolete: true

[Typedef]
id: part_of
name: part of
is_transitive: true
"""


def test_parents_from_an_ontology(tmp_path):
    (tmp_path / "t.obo").write_text(OBO)
    space, _ = planted(3000)
    ontology = {"path": str(tmp_path / "t.obo"), "terms": {"A2": "T:0000102"}}

    def trees(**changes):
        keys = {"ontologies": {"species": ontology | changes}, "bootstraps": 10, "permutations": 5}
        return hierarchies(space, Absorption(**keys))[0]

    # A2 is part of the kingdom, not a kind of it; above A0 and A1 alone, the order is lower than the kingdom.
    plain = trees()
    assert plain.labels.names == ["order of A (T:0000011)"]
    assert plain.children == [["A0", "A1"]]
    both = trees(relations=["is_a", "part_of"])
    assert both.labels.names == ["Kingdom A (T:0000010)", "order of A (T:0000011)"]
    assert both.children == [["A0", "A1", "A2"], ["A0", "A1"]]
    table = {"species": {"Kingdom A": ["A0", "A1", "A2"], "order": ["A0", "A1"]}}
    named = hierarchies(space, CONFIG.model_copy(update={"nested": [], "parents": table}))[0]
    np.testing.assert_array_equal(both.labels.members, named.labels.members)
    np.testing.assert_array_equal(both.child, named.child)


def test_a_class_may_be_a_parent_itself(tmp_path):
    (tmp_path / "t.obo").write_text(OBO)
    graph = read_ontology(tmp_path / "t.obo", ["is_a", "part_of"])
    terms, unknown = find_terms(graph, ["kingdom a", "A0", "x (T:0000109)", "B0", "nowhere"], {})
    assert terms == {"kingdom a": "T:0000010", "A0": "T:0000100", "x (T:0000109)": "T:0000101", "B0": "T:0000103"}
    assert unknown == ["nowhere"]
    assert families(graph, terms) == {
        "Kingdom A (T:0000010)": (["A0", "kingdom a", "x (T:0000109)"], ["A0", "x (T:0000109)"]),
        "order of A (T:0000011)": (["A0", "x (T:0000109)"], ["A0", "x (T:0000109)"]),
    }


@pytest.mark.parametrize(
    ("ontology", "complaint"),
    [
        ({"path": "t.obo", "terms": {"A9": "T:0000102"}}, "ontologies.species: terms names class 'A9'"),
        ({"path": "t.obo", "terms": {"A2": "T:0000999"}}, "the term T:0000999, which the ontology lacks"),
        ({"path": "none.obo"}, "there is no ontology none.obo"),
        ({"path": "flat.obo"}, "no two share a parent"),
    ],
)
def test_a_wrong_ontology_is_refused(tmp_path, monkeypatch, ontology, complaint):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.obo").write_text(OBO)
    (tmp_path / "flat.obo").write_text("[Term]\nid: T:0000001\nname: A0\nis_a: T:0000002\n")
    space, _ = planted(300)
    with pytest.raises(DataError, match=complaint):
        hierarchies(space, Absorption(ontologies={"species": ontology}))


def test_types_and_notes_of_residues_are_parents_and_children():
    rng = np.random.default_rng(1)
    rows, notes = [], []
    for i in range(30):
        split = ["train", "train", "train", "validation", "test"][i % 5]
        rows += [(f"P{i}:{p}", f"P{i}", p, split) for p in range(1, 41)]
        for note, start in zip(("zinc", "iron"), rng.choice(35, 2, replace=False) + 1):
            notes.append((f"P{i}", "METAL", note, int(start), int(start) + 2))
        notes.append((f"P{i}", "HELIX", None, 5, 15))
    obs = pd.DataFrame(rows, columns=["sample_id", "protein", "position", "split"]).set_index("sample_id")
    obs["group"] = obs["protein"]
    space, _ = planted(len(obs))
    space.obs = obs
    space.split, space.groups = obs["split"].to_numpy(), obs["protein"].to_numpy()
    table = pd.DataFrame(notes, columns=["protein", "type", "note", "start", "end"])
    space.dataset.annotations = lambda: table
    (tree,) = hierarchies(space, CONFIG.model_copy(update={"nested": [], "residues": True, "min_positives": 3}))
    assert tree.labels.names == ["METAL"]
    assert tree.children == [["METAL|iron", "METAL|zinc"]]
    assert any("HELIX (0 frequent children)" in text for text in tree.labels.excluded)
    inside = tree.child[:, 0] >= 0
    assert tree.labels.members[inside, 0].all()


def test_what_cannot_be_measured_is_an_error():
    space, _ = planted(400)
    with pytest.raises(DataError, match="has no class Z9: correct the names"):
        hierarchies(space, CONFIG.model_copy(update={"nested": [], "parents": {"species": {"A": ["A0", "Z9"]}}}))
    with pytest.raises(DataError, match="no parent has two children"):
        hierarchies(space, CONFIG.model_copy(update={"min_positives": 300}))
    with pytest.raises(DataError, match="is not a pair"):
        hierarchies(space, CONFIG.model_copy(update={"nested": [["kingdom"]]}))
    shuffled, _ = planted(400)
    shuffled.X = np.random.default_rng(0).standard_normal(shuffled.X.shape).astype(np.float32)
    with pytest.raises(DataError, match=r"reaches F1 0\.9 on validation"):
        measure(shuffled, CONFIG.model_copy(update={"min_probe_f1": 0.9}))
