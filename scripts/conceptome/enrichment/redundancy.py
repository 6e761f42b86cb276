"""Redundant gene sets: sets that share most of their genes, or are parent and child in an ontology, form a cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from conceptome.datasets.ontology import IDENTIFIER

if TYPE_CHECKING:
    import networkx as nx

    from conceptome.enrichment.gmt import SetIndex


def kappa(sets: SetIndex, which: np.ndarray) -> np.ndarray:
    """Cohen's κ between gene sets: how far two sets agree on the genes of the background beyond chance.

    Parameters
    ----------
    which
        (u,) positions of the sets.

    Returns
    -------
    numpy.ndarray
        (u, u) float64, 1 for the same genes, 0 for an overlap as chance has it.

    References
    ----------
    Cohen 1960; as a similarity of gene sets: Huang et al., Genome Biology 8 (2007) R183 (DAVID).
    """
    members = sets.members[which].astype(np.float64)
    total = members.shape[1]
    both = (members @ members.T).toarray()
    size = sets.n_overlap[which].astype(np.float64)
    observed = (total - size[:, None] - size + 2.0 * both) / total
    expected = (np.outer(size, size) + np.outer(total - size, total - size)) / total**2
    return (observed - expected) / np.maximum(1.0 - expected, 1e-12)


def related(terms: Sequence[str], ontology: nx.DiGraph) -> np.ndarray:
    """Which terms are the same as, or an ancestor or a descendant of, which others: (u, u) bool, symmetric.

    A term's identifier is taken from its name, e.g. "response to virus (GO:0009615)"; one without is related to none.
    """
    import networkx as nx

    found = np.eye(len(terms), dtype=bool)
    place: dict[str, list[int]] = {}
    for position, term in enumerate(terms):
        match = IDENTIFIER.search(str(term))
        if match and match.group(1) in ontology:
            place.setdefault(match.group(1), []).append(position)
    for identifier, positions in place.items():
        for other in nx.descendants(ontology, identifier) | {identifier}:
            found[np.ix_(positions, place.get(other, []))] = True
    return found | found.T


def cluster(order: np.ndarray, similar: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give each set to the first better one that it resembles.

    Parameters
    ----------
    order
        (u,) positions, the best set first.
    similar
        (u, u) bool.

    Returns
    -------
    number
        (u,) int64, from 1: the cluster of each set, numbered by their best.
    representative
        (u,) bool: whether a set is the best of its cluster.
    """
    number = np.zeros(len(order), dtype=np.int64)
    representative = np.zeros(len(order), dtype=bool)
    leaders: list[int] = []
    for position in order:
        own = next((place for place, leader in enumerate(leaders, 1) if similar[position, leader]), None)
        if own is None:
            leaders.append(position)
            representative[position] = True
            own = len(leaders)
        number[position] = own
    return number, representative


def clusters_of(
    atoms: np.ndarray,
    which: np.ndarray,
    log10_p: np.ndarray,
    sets: SetIndex,
    above: float,
    ontology: nx.DiGraph | None = None,
) -> Mapping[str, np.ndarray]:
    """Columns cluster and representative for pairs of atom and set, atom by atom.

    Parameters
    ----------
    atoms, which, log10_p
        (r,) atom, set and log10 p of each pair.
    above
        Sets with a larger κ are redundant.
    ontology
        From `datasets.ontology.read_ontology`: ancestors and descendants are redundant as well, whatever their κ.
    """
    used, place = np.unique(which, return_inverse=True)
    similar = kappa(sets, used) > above
    if ontology is not None:
        similar |= related([sets.term[s] for s in used], ontology)
    number, representative = np.zeros(len(atoms), dtype=np.int64), np.zeros(len(atoms), dtype=bool)
    for atom in np.unique(atoms):
        rows = np.flatnonzero(atoms == atom)
        own = place[rows]
        order = np.argsort(log10_p[rows], kind="stable")
        number[rows], representative[rows] = cluster(order, similar[np.ix_(own, own)])
    return {"cluster": number, "representative": representative}
