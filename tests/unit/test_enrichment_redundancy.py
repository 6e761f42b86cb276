"""Redundant gene sets: overlap by κ against scikit-learn, parents and children, and the best of a cluster."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from conceptome.datasets.ontology import read_ontology
from conceptome.enrichment.gmt import index_sets
from conceptome.enrichment.redundancy import cluster, clusters_of, kappa, related
from conceptome.errors import DataError

GENES = [f"G{i}" for i in range(60)]
SETS = {
    "wide (GO:0000001)": GENES[:20],
    "twin (GO:0000002)": GENES[1:21],
    "child (GO:0000003)": GENES[:4],
    "apart": GENES[40:50],
}
OBO = """format-version: 1.2

[Term]
id: GO:0000001
name: wide

[Term]
id: GO:0000003
is_a: GO:0000009 ! between

[Term]
id: GO:0000009
relationship: part_of GO:0000001 ! wide

[Term]
id: GO:0000004
is_obsolete: true
is_a: GO:0000001

[Typedef]
id: part_of
"""


@pytest.fixture
def sets():
    return index_sets({"c": SETS}, GENES, 2, 50)


def test_kappa_is_cohens(sets):
    found = kappa(sets, np.arange(4))
    inside = sets.members.toarray().astype(int)
    by_hand = [[cohen_kappa_score(a, b) for b in inside] for a in inside]
    np.testing.assert_allclose(found, by_hand, atol=1e-12)


def test_the_best_of_similar_sets_represents_them(sets):
    columns = clusters_of(np.zeros(4), np.arange(4), np.array([-3.0, -8.0, -5.0, -1.0]), sets, 0.35)
    assert list(columns["cluster"]) == [1, 1, 2, 3]
    assert list(columns["representative"]) == [False, True, True, True]


def test_atoms_are_clustered_by_themselves(sets):
    atoms, which = np.array([5, 5, 7, 7]), np.array([0, 1, 0, 3])
    columns = clusters_of(atoms, which, np.array([-3.0, -2.0, -1.0, -2.0]), sets, 0.35)
    assert list(columns["cluster"]) == [1, 1, 2, 1]
    assert list(columns["representative"]) == [True, False, True, True]


def test_a_set_joins_the_first_leader_and_no_chain_forms():
    similar = np.eye(3, dtype=bool)
    similar[0, 1] = similar[1, 0] = similar[1, 2] = similar[2, 1] = True
    number, representative = cluster(np.array([0, 1, 2]), similar)
    # The third resembles the second, which represents nothing.
    assert list(number) == [1, 1, 2]
    assert list(representative) == [True, False, True]


def test_parents_and_children_are_redundant(sets, tmp_path):
    path = tmp_path / "go.obo"
    path.write_text(OBO)
    ontology = read_ontology(path)
    assert set(ontology.edges) == {("GO:0000003", "GO:0000009"), ("GO:0000009", "GO:0000001")}
    found = related(list(SETS), ontology)
    assert found[0, 2]
    assert found[2, 0]
    assert not found[1, 2]
    assert not found[3, :3].any()
    columns = clusters_of(np.zeros(4), np.arange(4), np.array([-3.0, -2.0, -5.0, -1.0]), sets, 0.35, ontology)
    # The child is best and represents its parent; the parent's twin stands alone, since only its leader counts.
    assert list(columns["cluster"]) == [1, 2, 1, 3]


@pytest.mark.parametrize(("content", "complaint"), [(b"\xff\xfe\x00", "no text|not a text"), (b"[Term]\n", "no term")])
def test_what_is_no_ontology_is_refused(tmp_path, content, complaint):
    path = tmp_path / "go.obo"
    path.write_bytes(content)
    with pytest.raises(DataError, match=complaint):
        read_ontology(path)
