"""Atoms against annotated residues: precision, domain-adjusted recall and F1 of atoms for protein concepts.

After InterPLM (Simon and Zou): an atom, scaled by its maximum, is "on" where it exceeds a threshold. Precision counts
residues, TP / (TP + FP). Recall counts domains: those with at least one residue that is on, of all domains; for point
concepts, whose domains are single residues, that is the recall of residues. The maximum is taken on training proteins.
The threshold of every atom–concept pair, and which pairs are reported, are chosen on validation proteins and stay
frozen on test proteins, which every reported number but `f1_validation` comes from.

The null shifts an atom's pattern around each protein (circularly, by an offset of its own): how much of a protein the
atom marks, how its marks cluster, and the annotated domains all stay as they are; only where they meet is left to
chance. An atom that fires all over the proteins that carry a domain gains nothing against this null.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from conceptome.errors import DataError
from conceptome.measures.rows import seeded
from conceptome.statistics import benjamini_hochberg, bootstrap_groups, interval

if TYPE_CHECKING:
    import pandas as pd
    from scipy import sparse

    from conceptome.config.evidence import Enrichment

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Proteins:
    """The residues of one split, in order, and what is annotated on them.

    Attributes
    ----------
    rows
        (n,) int64, positions of the residues in obs, proteins one after the other.
    starts
        (P + 1,) int64, where each protein begins in `rows`.
    residues
        (n, c) bool CSR: residues of each concept.
    domains
        (n, D) bool CSR: residues of each domain (one annotation of one concept).
    concept
        (D,) int64, the concept of each domain, ascending.
    protein
        (D,) int64, the protein of each domain.
    """

    rows: np.ndarray
    starts: np.ndarray
    residues: sparse.csr_matrix
    domains: sparse.csr_matrix
    concept: np.ndarray
    protein: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """(P,) residues per protein."""
        return np.diff(self.starts)

    def owner(self) -> np.ndarray:
        """(n,) int64, the protein of each residue."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)


@dataclass(frozen=True)
class Concepts:
    """Concepts that occur often enough, and the residues of every split.

    Attributes
    ----------
    names, types, notes
        Concept: an annotation type, or "type|note"; notes are None for whole types.
    parts
        train, validation, test → residues.
    """

    names: list[str]
    types: list[str]
    notes: list[str | None]
    parts: dict[str, Proteins]


def choose_concepts(obs: pd.DataFrame, annotations: pd.DataFrame, min_proteins: int) -> Concepts:
    """Find the concepts that enough proteins of each split carry.

    A "type|note" that covers all annotations of its type is the type itself, and is not counted a second time.

    Parameters
    ----------
    obs
        One row per residue: protein, position (1-based), split.
    annotations
        protein, type, note, start, end (1-based, inclusive).
    min_proteins
        Proteins with the concept in each of train, validation and test.

    Raises
    ------
    DataError
        A column is missing; an annotation lies beyond the residues; a split has no protein; no concept is left.
    """
    import pandas as pd
    from scipy import sparse

    for column in ("protein", "position", "split"):
        if column not in obs:
            raise DataError(f"residues: obs has no column '{column}': prepare the proteins again")
    protein = obs["protein"].astype(str).to_numpy()
    position = obs["position"].to_numpy(dtype=np.int64)
    split = obs["split"].astype(str).to_numpy()
    where = pd.Series(np.arange(len(obs)), index=pd.MultiIndex.from_arrays([protein, position]))

    table = annotations[annotations["protein"].astype(str).isin(set(protein))].reset_index(drop=True)
    of_protein = pd.Series(split, index=protein)
    table = table.assign(split=table["protein"].astype(str).map(of_protein[~of_protein.index.duplicated()]))
    whole = table.assign(concept=table["type"].astype(str), name=None)
    noted = table[table["note"].notna() & (table["note"].astype(str) != "")]
    noted = noted.assign(concept=noted["type"].astype(str) + "|" + noted["note"].astype(str), name=noted["note"])
    same = noted.groupby("concept")["type"].size() == noted.groupby("concept")["type"].first().map(
        table.groupby("type").size()
    )
    noted = noted[~noted["concept"].map(same).astype(bool)]
    every = pd.concat([whole, noted], ignore_index=True)
    carriers = every.groupby(["concept", "split"])["protein"].nunique().unstack(fill_value=0)
    carriers = carriers.reindex(columns=list(SPLITS), fill_value=0)
    names = sorted(carriers.index[(carriers >= min_proteins).all(axis=1)])
    logger.info("residues: %d of %d concepts have %d proteins in every split", len(names), len(carriers), min_proteins)
    if not names:
        raise DataError(
            f"residues: no annotation is carried by {min_proteins} proteins in each of train, validation and test: "
            "give more proteins or lower enrichment.min_proteins"
        )
    every = every[every["concept"].isin(names)]
    number = {name: i for i, name in enumerate(names)}
    first = every.drop_duplicates("concept").set_index("concept")

    parts = {}
    for part in SPLITS:
        rows = np.flatnonzero(split == part)
        if not len(rows):
            raise DataError(f"residues: no protein is in the {part} split: check dataset.split")
        changes = np.flatnonzero(protein[rows][1:] != protein[rows][:-1]) + 1
        starts = np.concatenate([[0], changes, [len(rows)]]).astype(np.int64)
        order = {name: i for i, name in enumerate(protein[rows[starts[:-1]]])}
        if len(order) != len(starts) - 1:
            raise DataError(
                "residues: the residues of a protein are not in consecutive rows: prepare the proteins again"
            )
        domains = every[every["split"] == part]
        domains = domains.assign(number=domains["concept"].map(number))
        # Two databases of evidence may annotate the very same stretch twice: one domain.
        domains = domains.drop_duplicates(["number", "protein", "start", "end"])
        domains = domains.sort_values(["number", "protein", "start", "end"], kind="stable")
        length = (domains["end"] - domains["start"] + 1).to_numpy(dtype=np.int64)
        column = np.repeat(np.arange(len(domains)), length)
        offset = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
        at = pd.MultiIndex.from_arrays(
            [
                domains["protein"].astype(str).to_numpy()[column],
                domains["start"].to_numpy(dtype=np.int64)[column] + offset,
            ]
        )
        found = where.index.get_indexer(at)
        if (found < 0).any():
            name, place = at[int(np.argmax(found < 0))]
            raise DataError(
                f"residues: an annotation of protein '{name}' covers position {place}, which has no residue"
            )
        local = np.searchsorted(rows, found)
        concept = domains["number"].to_numpy(dtype=np.int64)
        true = np.ones(len(local), dtype=bool)
        residues = sparse.csr_matrix((true, (local, concept[column])), shape=(len(rows), len(names)))
        residues.data[:] = True
        parts[part] = Proteins(
            rows=rows,
            starts=starts,
            residues=residues,
            domains=sparse.csr_matrix((true, (local, column)), shape=(len(rows), len(domains))),
            concept=concept,
            protein=domains["protein"].astype(str).map(order).to_numpy(dtype=np.int64),
        )
    return Concepts(
        names=names,
        types=[str(first.loc[name, "type"]) for name in names],
        notes=[None if first.loc[name, "name"] is None else str(first.loc[name, "name"]) for name in names],
        parts=parts,
    )


@dataclass(frozen=True)
class Scale:
    """Atoms in units of their maximum on training residues.

    If any training code is negative (raw neurons, PCA, ICA, signed sparse codes), the negated atoms follow as further
    atoms; those without a positive value on the training residues are left out.

    Attributes
    ----------
    atom, sign
        (a,) int64: which atom, and +1 or −1.
    top
        (a,) float32: the largest value on the training residues.
    """

    atom: np.ndarray
    sign: np.ndarray
    top: np.ndarray

    @classmethod
    def of(cls, train: sparse.csr_matrix) -> Scale:
        """Take the maxima of training codes (n, m)."""
        highest = train.max(axis=0).toarray().ravel()
        lowest = train.min(axis=0).toarray().ravel()
        up, down = np.flatnonzero(highest > 0), np.flatnonzero(lowest < 0)
        return cls(
            np.concatenate([up, down]),
            np.repeat(np.array([1, -1]), [len(up), len(down)]),
            np.concatenate([highest[up], -lowest[down]]).astype(np.float32),
        )

    def apply(self, codes: sparse.csr_matrix) -> sparse.csc_matrix:
        """Scale codes (n, m): (n, a) float32 of their positive values."""
        from scipy import sparse

        values = codes.tocsc()
        parts = []
        for sign in (1, -1):
            own = self.sign == sign
            # Slicing copies: where all atoms stay, as in dense codes, it would only cost memory.
            chosen = values if own.sum() == values.shape[1] else values[:, self.atom[own]]
            keep = chosen.data > 0 if sign > 0 else chosen.data < 0
            indptr = np.concatenate([[0], np.cumsum(keep)])[chosen.indptr]
            data = chosen.data[keep] * np.repeat((sign / self.top[own]).astype(np.float32), np.diff(indptr))
            parts.append(sparse.csc_matrix((data, chosen.indices[keep], indptr), shape=(codes.shape[0], own.sum())))
        return sparse.hstack(parts, format="csc")


def above(values: sparse.csc_matrix, threshold: float) -> sparse.csc_matrix:
    """Where (n, a) positive values exceed a threshold ≥ 0: float32 indicator."""
    from scipy import sparse

    keep = values.data > threshold
    indptr = np.concatenate([[0], np.cumsum(keep)])[values.indptr]
    return sparse.csc_matrix((np.ones(int(keep.sum()), np.float32), values.indices[keep], indptr), shape=values.shape)


def f1_score(true: np.ndarray, on: np.ndarray, hits: np.ndarray, domains: np.ndarray) -> tuple[np.ndarray, ...]:
    """Precision, recall and F1.

    Parameters
    ----------
    true, on
        Residues that are on and annotated; residues that are on.
    hits, domains
        Domains with at least one residue on; all domains.

    Returns
    -------
    precision, recall, f1
        float64, 0 where undefined.
    """
    true, on, hits, domains = np.broadcast_arrays(*(np.asarray(x, dtype=np.float64) for x in (true, on, hits, domains)))
    precision = np.divide(true, on, out=np.zeros(true.shape), where=on > 0)
    recall = np.divide(hits, domains, out=np.zeros(true.shape), where=domains > 0)
    total = precision + recall
    return precision, recall, np.divide(2.0 * precision * recall, total, out=np.zeros(true.shape), where=total > 0)


def grid(values: sparse.csc_matrix, part: Proteins, thresholds: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Best F1 over the thresholds, and the (lowest) threshold that reaches it, for all atoms × concepts.

    Parameters
    ----------
    values
        (n, a) scaled codes of the residues of `part`.

    Returns
    -------
    f1, choice
        (a, c) float32, and (a, c) int8 index into `thresholds`.
    """
    from scipy import sparse

    c = part.residues.shape[1]
    n_domains = np.bincount(part.concept, minlength=c)
    owner = sparse.csr_matrix(
        (np.ones(len(part.concept), np.float32), (np.arange(len(part.concept)), part.concept)),
        shape=(len(part.concept), c),
    )
    residues, domains = part.residues.astype(np.float32), part.domains.astype(np.float32)
    best = np.full((values.shape[1], c), -1.0, dtype=np.float32)
    choice = np.zeros(best.shape, dtype=np.int8)
    for i, threshold in enumerate(thresholds):
        on = above(values, threshold)
        transposed = on.T.tocsr()
        true = (transposed @ residues).toarray()
        touched = transposed @ domains
        touched.data[:] = 1.0
        hits = (touched @ owner).toarray()
        _, _, f1 = f1_score(true, np.diff(on.indptr)[:, None], hits, n_domains[None])
        better = f1 > best
        best[better] = f1[better]
        choice[better] = i
    return best, choice


def shift_p(on: np.ndarray, annotated: np.ndarray, starts: np.ndarray) -> float:
    """Exact p of as many annotated residues being on, when the pattern is shifted around every protein.

    The number of hits at each of a protein's circular shifts is a correlation (by FFT); the shifts of proteins are
    independent and uniform, so the distribution of the total is the convolution of theirs.

    Parameters
    ----------
    on, annotated
        (n,) bool.
    starts
        (P + 1,) where each protein begins.

    Returns
    -------
    float
        P(total ≥ observed), the observed arrangement being one of the shifts.
    """
    from scipy.fft import irfft, next_fast_len, rfft

    both = np.flatnonzero(np.logical_or.reduceat(on, starts[:-1]) & np.logical_or.reduceat(annotated, starts[:-1]))
    if not len(both):
        return 1.0
    lengths = np.diff(starts)[both]
    place = np.arange(lengths.max())
    inside = place < lengths[:, None]
    at = np.where(inside, starts[both][:, None] + place, 0)
    # Filled up with zeros, all proteins are transformed at once; what then runs over the end is laid over the start.
    n = next_fast_len(2 * len(place), real=True)
    straight = irfft(rfft(inside & on[at], n) * rfft(inside & annotated[at], n).conj(), n)
    around = np.take_along_axis(straight, (place - lengths[:, None]) % n, axis=1)
    hits = np.rint(straight[:, : len(place)] + around).astype(np.int64)
    distribution = np.ones(1)
    for of_protein, length in zip(hits, lengths):
        distribution = np.convolve(distribution, np.bincount(of_protein[:length]) / length)
    return float(min(distribution[hits[:, 0].sum() :].sum(), 1.0))


def shifted(starts: np.ndarray, n: int, seed: list[int]) -> np.ndarray:
    """Draw circular shifts within proteins: (n_draws, n_residues) int64, where each residue goes to."""
    rng = np.random.default_rng(seed)
    lengths = np.diff(starts)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    within = np.arange(starts[-1]) - starts[owner]
    # From 1 on: a shift of nothing is the observation itself, not its null.
    offsets = np.stack([rng.integers(np.minimum(1, lengths - 1), lengths) for _ in range(n)])
    return starts[owner] + (within - offsets[:, owner]) % lengths[owner]


def enrich_residues(codes: sparse.csr_matrix, concepts: Concepts, config: Enrichment) -> pd.DataFrame:
    """F1 of atoms for concepts on test proteins, thresholds and pairs chosen on validation proteins.

    Kept are the pairs with F1 above `config.min_f1` on validation, and the best atom of every concept there. Intervals:
    percentiles of a bootstrap over test proteins. p: exact, over independent circular shifts of the atom's pattern
    within proteins (`shift_p`); q: Benjamini-Hochberg over ALL atoms × concepts, the pairs that validation did not keep
    counting as p = 1. `null_f1`, `null_low`, `null_high`: mean and interval of F1 under such shifts.

    Parameters
    ----------
    codes
        (N, m) codes of all residues.
    concepts
        From `choose_concepts`.

    Returns
    -------
    pandas.DataFrame
        The columns of table `residues`, without dataset … seed; sorted by concept, then atom.

    References
    ----------
    Simon and Zou, InterPLM (2024). There the threshold is chosen again on the test set; here it is not.
    """
    import pandas as pd
    from scipy import sparse

    validation, test = concepts.parts["validation"], concepts.parts["test"]
    scale = Scale.of(codes[concepts.parts["train"].rows])
    atom, sign = scale.atom, scale.sign
    if not len(atom):
        return pd.DataFrame()
    f1, choice = grid(scale.apply(codes[validation.rows]), validation, config.residue_thresholds)
    kept = f1 > config.min_f1
    best = np.argmax(f1, axis=0)
    every = np.arange(len(concepts.names))
    kept[best, every] = f1[best, every] > 0
    column, concept = np.nonzero(kept)
    if not len(column):
        return pd.DataFrame()
    threshold = np.asarray(config.residue_thresholds)[choice[column, concept]]

    values = scale.apply(codes[test.rows])
    owner = test.owner()
    n_proteins = len(test.lengths)
    residues = test.residues.tocsc()
    n_domains = np.zeros((len(every), n_proteins))
    np.add.at(n_domains, (test.concept, test.protein), 1.0)
    bounds = np.searchsorted(test.concept, np.arange(len(every) + 1))
    domains = [test.domains[:, bounds[c] : bounds[c + 1]].astype(np.float32) for c in every]
    targets = shifted(test.starts, config.permutations, seeded(config.seed, "residues", "null"))
    counts = np.zeros((3, len(column), n_proteins))  # true, on, hits per protein
    p = np.empty(len(column))
    null = np.empty((len(column), config.permutations))
    last, on, places = None, None, None
    for i in np.lexsort((concept, threshold, column)):
        c = concept[i]
        if last != (column[i], threshold[i]):
            last = (column[i], threshold[i])
            inside = slice(values.indptr[column[i]], values.indptr[column[i] + 1])
            places = values.indices[inside][values.data[inside] > threshold[i]]
            on = np.zeros(values.shape[0], dtype=bool)
            on[places] = True
        annotated = np.zeros(len(on), dtype=bool)
        annotated[residues.indices[residues.indptr[c] : residues.indptr[c + 1]]] = True
        counts[0, i] = np.bincount(owner[places[annotated[places]]], minlength=n_proteins)
        counts[1, i] = np.bincount(owner[places], minlength=n_proteins)
        hit = np.unique(domains[c][places].indices)
        counts[2, i] = np.bincount(test.protein[bounds[c] + hit], minlength=n_proteins)
        p[i] = shift_p(on, annotated, test.starts)
        # Shifts stay within proteins: in those without the concept nothing is met.
        moved = targets[:, places[n_domains[c][owner[places]] > 0]]
        ends = np.arange(len(moved) + 1) * moved.shape[1]
        met = sparse.csr_matrix((np.ones(moved.size, np.float32), moved.ravel(), ends), shape=(len(moved), len(on)))
        _, _, null[i] = f1_score(
            annotated[moved].sum(axis=1), len(places), np.diff((met @ domains[c]).indptr), n_domains[c].sum()
        )

    precision, recall, measured = f1_score(*counts.sum(axis=2), n_domains[concept].sum(axis=1))
    weights = bootstrap_groups(np.arange(n_proteins), config.bootstraps, seeded(config.seed, "residues", "bootstrap"))
    weights = weights.astype(np.float64)
    _, _, drawn = f1_score(*(weights @ each.T for each in counts), weights @ n_domains[concept].T)
    # A draw without any protein that carries the concept says nothing about it.
    low, high = interval(np.where(weights @ n_domains[concept].T > 0, drawn, np.nan), config.confidence)
    null_low, null_high = interval(null, config.confidence, axis=1)
    family = np.ones(f1.size)
    family[: len(p)] = p
    per_concept = np.asarray(test.residues.sum(axis=0)).ravel()
    table = pd.DataFrame(
        {
            "atom": atom[column],
            "sign": sign[column],
            "concept": np.array(concepts.names, dtype=object)[concept],
            "type": np.array(concepts.types, dtype=object)[concept],
            "note": np.array(concepts.notes, dtype=object)[concept],
            "threshold": threshold,
            "precision": precision,
            "recall": recall,
            "f1_validation": f1[column, concept].astype(np.float64),
            "f1": measured,
            "low": low,
            "high": high,
            "p": p,
            "q": benjamini_hochberg(family)[: len(p)],
            "null_f1": null.mean(axis=1),
            "null_low": null_low,
            "null_high": null_high,
            "best_of_concept": best[concept] == column,
            "n_domains_test": n_domains[concept].sum(axis=1).astype(np.int64),
            "n_residues_test": per_concept[concept],
            "n_proteins_test": (n_domains[concept] > 0).sum(axis=1),
            "n_atoms": len(atom),
            "n_concepts": len(concepts.names),
            "n": len(test.rows),
            "split": "test",
        }
    )
    return table.sort_values(["concept", "atom", "sign"], kind="stable", ignore_index=True)
