"""Families of atoms: trees of those that occur together, broad ones above specific ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from conceptome.measures.rows import choose_rows, seeded
from conceptome.measures.tables import ESTIMATE, FIT
from conceptome.statistics import bootstrap_groups, group_codes, interval

if TYPE_CHECKING:
    import pandas as pd
    from scipy import sparse

    from conceptome.config.further import Families
    from conceptome.measures.space import Space

TABLES = {
    "families": {
        **FIT,
        "statistic": "object",
        "value": "float64",
        **ESTIMATE,
        "families": "int64",
        "atoms": "int64",
        "n": "int64",
    },
    "families_members": {
        **FIT,
        "family": "int64",
        "atom": "int64",
        "parent": "int64",
        "depth": "int64",
        "size": "int64",
        "density": "float64",
        "weight": "float64",
        "low": "float64",
        "high": "float64",
        "null_high": "float64",
    },
}
STATISTICS = ("atoms_in_families", "mean_weight", "largest_family")


@dataclass(frozen=True)
class Forest:
    """Trees over m atoms.

    Attributes
    ----------
    parent
        (m,) int64: the atom above; −1 for roots and for atoms in no family.
    family
        (m,) int64: number of the family, by size; −1 in none.
    depth
        (m,) int64: steps below the root.
    weight
        (m,) float64: normalised co-occurrence with the parent; NaN without one.
    """

    parent: np.ndarray
    family: np.ndarray
    depth: np.ndarray
    weight: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """Number of atoms of each family."""
        return np.bincount(self.family[self.family >= 0])

    def statistics(self, atoms: int) -> dict[str, float]:
        """`STATISTICS`, of `atoms` atoms that were looked at.

        Share of the atoms that are in a family; mean co-occurrence with the parent (0 without a family); share of the
        atoms that are in the largest family.
        """
        inside = self.family >= 0
        joined = inside & (self.parent >= 0)
        return {
            "atoms_in_families": float(inside.sum()) / max(atoms, 1),
            "mean_weight": float(self.weight[joined].mean()) if joined.any() else 0.0,
            "largest_family": float(self.sizes.max(initial=0)) / max(atoms, 1),
        }


def cooccurrence(counts: np.ndarray) -> np.ndarray:
    """Normalised co-occurrence of atoms from counts of samples on which both are active.

        C_ij = N_ij / min(N_ii, N_jj)

    the share of the rarer atom's samples on which the other one is active too. Zero on the diagonal.

    Parameters
    ----------
    counts
        (m, m) co-activation counts; the diagonal holds each atom's own.
    """
    own = np.diagonal(counts).astype(np.float64)
    smaller = np.minimum(own[:, None], own[None, :])
    found = np.divide(counts, smaller, out=np.zeros(counts.shape), where=smaller > 0)
    np.fill_diagonal(found, 0.0)
    return found


def excess(counts: np.ndarray, n: float) -> np.ndarray:
    """Co-occurrence above chance: (C_ij − p) / (1 − p), p the larger of the two atoms' frequencies; at least 0.

    0 for atoms that meet as often as independent ones do, 1 where the rarer atom is never without the other. Without
    this an atom that is always active would be the parent of everything.
    """
    frequency = np.diagonal(counts) / n
    larger = np.maximum(frequency[:, None], frequency[None, :])
    above = cooccurrence(counts) - larger
    found = np.divide(above, 1.0 - larger, out=np.zeros_like(above), where=larger < 1)
    np.fill_diagonal(found, 0.0)
    return np.maximum(found, 0.0)


def grow(weights: np.ndarray, density: np.ndarray, threshold: float, min_size: int) -> Forest:
    """Join atoms into the maximum spanning forest of their co-occurrence, and hang each tree from its densest atom.

    Parameters
    ----------
    weights
        (m, m) symmetric, zero diagonal. Pairs below `threshold` are not joined.
    density
        (m,) frequency of each atom. Edges point from the denser to the rarer atom: a tree is cut where an edge of the
        spanning tree would lead from a child up to a denser atom that is not its parent, so that every family has one
        root, its densest atom, and depth follows density.
    min_size
        Smaller trees are no families.
    """
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import minimum_spanning_tree

    m = len(weights)
    kept = np.triu(np.where(weights >= threshold, weights, 0.0), 1)
    # Largest weight first; a minimum over positive costs that all are above 0 is the maximum spanning forest.
    rows, columns = np.nonzero(kept)
    # In a chain of nested atoms all weights are 1: of equal ones the atom next in density is the parent.
    gap = np.abs(density[rows] - density[columns])
    cost = csr_matrix((2.0 - kept[rows, columns] + 1e-6 * gap, (rows, columns)), shape=(m, m))
    tree = minimum_spanning_tree(cost).tocoo()
    parent, weight = np.full(m, -1, dtype=np.int64), np.full(m, np.nan)
    rank = np.empty(m, dtype=np.int64)
    rank[np.lexsort((np.arange(m), -density))] = np.arange(m)
    # Of the denser neighbours in the tree, the one that occurs together most is the parent.
    edges = sorted(zip(tree.data.tolist(), tree.row.tolist(), tree.col.tolist()))
    for _, one, two in edges:
        upper, lower = (one, two) if rank[one] < rank[two] else (two, one)
        if parent[lower] < 0:
            parent[lower], weight[lower] = upper, weights[upper, lower]
    root, depth = np.arange(m), np.zeros(m, dtype=np.int64)
    for atom in np.argsort(rank):
        if parent[atom] >= 0:
            root[atom], depth[atom] = root[parent[atom]], depth[parent[atom]] + 1
    sizes = np.bincount(root, minlength=m)
    big = sizes[root] >= min_size
    order = sorted(np.unique(root[big]).tolist(), key=lambda own: (-sizes[own], own))
    number = {own: at for at, own in enumerate(order)}
    family = np.array([number.get(own, -1) for own in root.tolist()], dtype=np.int64)
    parent[~big], weight[~big], depth[~big] = -1, np.nan, 0
    return Forest(parent, family, depth, weight)


def measure(space: Space, config: Families) -> dict[str, list[pd.DataFrame]]:
    """Families of every fit whose codes are sparse.

    Atoms that are active on at least `min_samples` samples are joined by their co-occurrence above chance (`excess`)
    into a maximum spanning forest, directed from the denser to the rarer atom; its trees of at least `min_size` atoms
    are the families. Fits whose atoms are active on more than half of the samples on average (PCA, ICA, neurons) have
    no occurrence to speak of, and are left out.

    Interval: bootstrap over `blocks` of groups, of the co-occurrence along the edges of the forest found, and of the
    statistics of forests grown anew, moved by the bootstrap's bias. Null: codes permuted within each atom, which keeps
    frequencies and breaks company, and forests grown anew; `null_high` of an edge is the largest weight that such codes
    give.

    Returns
    -------
    dict
        `families`: per fit the statistics of `Forest.statistics`. `families_members`: one row per atom of a family.

    References
    ----------
    O'Neill et al. 2024 (feature families: co-occurrence, threshold, maximum spanning tree, direction by density; here
    normalised by the rarer atom and chance, and grown once instead of with parents removed in turn).
    """
    import pandas as pd

    rows = choose_rows(np.ones(len(space.groups), dtype=bool), config.max_rows, seeded(config.seed, "families"))
    groups, _ = group_codes(space.groups[rows])
    count = int(groups.max()) + 1
    order = np.random.default_rng(seeded(config.seed, "families", "blocks")).permutation(count)
    dealt = np.empty(count, dtype=np.int64)
    dealt[order] = np.arange(count) % min(config.blocks, count)
    blocks = dealt[groups]
    drawn = bootstrap_groups(blocks, config.bootstraps, seeded(config.seed, "families", "bootstrap"))
    summaries, members = [], []
    for name, seed, _, matrix in space.each_fit():
        codes = matrix[rows]
        if codes.nnz > 0.5 * codes.shape[0] * codes.shape[1]:
            continue
        found = _of_fit(
            codes, blocks, drawn, np.random.default_rng(seeded(config.seed, "families", name, seed)), config
        )
        key = {"dictionary": name, "method": space.methods[name], "seed": seed}
        summaries.append(found[0].assign(**key))
        members.append(found[1].assign(**key))
    return {"families": [pd.concat(summaries)] if summaries else [], "families_members": members}


def _counts(active: sparse.csr_matrix) -> np.ndarray:
    """Samples on which each pair of atoms is active: (m, m) float32."""
    return (active.T @ active).toarray()


def _of_fit(
    codes: sparse.csr_matrix, blocks: np.ndarray, drawn: np.ndarray, rng: np.random.Generator, config: Families
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Statistics and members of one fit's families."""
    import pandas as pd
    from scipy import sparse

    n = codes.shape[0]
    looked = np.flatnonzero(np.bincount(codes.indices, minlength=codes.shape[1]) >= config.min_samples)
    active = codes[:, looked].astype(bool).astype(np.float32)
    density = np.asarray(active.sum(axis=0)).ravel() / n

    def planted(counts: np.ndarray, samples: float) -> tuple[np.ndarray, Forest]:
        found = excess(counts, samples)
        return found, grow(found, np.diagonal(counts) / samples, config.threshold, config.min_size)

    parts = np.stack([_counts(active[blocks == block]) for block in range(drawn.shape[1])])
    sizes = np.bincount(blocks, minlength=drawn.shape[1])
    _, forest = planted(parts.sum(axis=0), n)
    value = forest.statistics(len(looked))
    children = np.flatnonzero(forest.parent >= 0)
    edges, statistics = [], []
    for weights in drawn.astype(np.float32):
        found, again = planted(np.tensordot(weights, parts, axes=1), float(weights @ sizes))
        edges.append(found[children, forest.parent[children]])
        statistics.append(again.statistics(len(looked)))
    columns, nulls, largest = active.tocsc(), [], []
    for _ in range(config.permutations):
        indices = [rng.choice(n, size=length, replace=False) for length in np.diff(columns.indptr)]
        indices = np.concatenate(indices) if indices else np.zeros(0, dtype=np.int64)
        mixed = sparse.csc_matrix((columns.data, indices, columns.indptr), shape=columns.shape).tocsr()
        found, alone = planted(_counts(mixed), n)
        nulls.append(alone.statistics(len(looked)))
        largest.append(float(found.max(initial=0.0)))
    summary = []
    for name in STATISTICS:
        values = np.array([each[name] for each in statistics])
        bias = values.mean() - value[name]
        low, high = np.clip(interval(values - bias, config.confidence), 0.0, 1.0)
        null = np.array([each[name] for each in nulls])
        null_low, null_high = interval(null, config.confidence)
        summary.append(
            {
                "statistic": name,
                "value": value[name],
                "low": float(low),
                "high": float(high),
                "null": float(null.mean()),
                "null_low": float(null_low),
                "null_high": float(null_high),
                "families": len(forest.sizes),
                "atoms": len(looked),
                "n": n,
            }
        )
    low, high = np.full((2, len(looked)), np.nan)
    if len(children):
        low[children], high[children] = interval(np.stack(edges), config.confidence)
    inside = np.flatnonzero(forest.family >= 0)
    above = np.where(forest.parent >= 0, looked[forest.parent], -1)
    table = pd.DataFrame(
        {
            "family": forest.family[inside],
            "atom": looked[inside],
            "parent": above[inside],
            "depth": forest.depth[inside],
            "size": forest.sizes[forest.family[inside]] if len(inside) else np.zeros(0, dtype=np.int64),
            "density": density[inside],
            "weight": forest.weight[inside],
            "low": low[inside],
            "high": high[inside],
            "null_high": max(largest),
        }
    )
    return pd.DataFrame(summary), table
