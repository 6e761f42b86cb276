"""Tests of gene sets on genes that are ranked or chosen, all sets and atoms at once, in float64 and log space.

Competitive tests: the genes of a set against the other genes of an explicit background. `naive` takes genes as
independent of each other, which they are not; `camera` corrects its variance for the mean correlation of the set's
genes; the third, against permuted codes, needs the samples and lives in `gene_sets`.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from conceptome.statistics import (
    hypergeometric_log10_sf,
    mann_whitney_z,
    normal_log10_p,
    odds_ratio,
    student_log10_p,
)
from conceptome_kernels import available
from conceptome_kernels.checks import threads

if TYPE_CHECKING:
    from conceptome.enrichment.gmt import SetIndex

# Rows of associations that are ranked together: their ranks stay in the cache while sets are summed.
BLOCK = 32


def rank_effects(association: np.ndarray, sets: SetIndex) -> np.ndarray:
    """AUROC of the genes in each set against all others, by their association with each atom.

    Parameters
    ----------
    association
        (a, G) float, larger for genes that go with the atom; equal values are ranked by position.
    sets
        s gene sets over these G genes.

    Returns
    -------
    numpy.ndarray
        (a, s) float64, within [0, 1].

    References
    ----------
    Mann and Whitney, Annals of Mathematical Statistics 18 (1947): U / (n₁ n₀) from the sum of ranks.
    """
    n_atoms, n_genes = association.shape
    n1 = sets.n_overlap.astype(np.float64)
    n0 = n_genes - n1
    found = np.empty((n_atoms, len(sets)))
    # float32 sums of ranks are exact only up to 2^24; ranks scaled into (0, 1) are accurate enough anywhere.
    steps = ((np.arange(n_genes) + 0.5) / n_genes).astype(np.float32)

    def work(block: slice) -> None:
        order = stable_order(association[block])
        ranks = np.empty(order.shape, dtype=np.float32)
        for row, genes in enumerate(order):
            ranks[row, genes] = steps
        # Genes × atoms: a gene's ranks are added to the sums of all its sets as one run of memory.
        effects = (sets.members @ np.ascontiguousarray(ranks.T)).T.astype(np.float64)
        effects *= n_genes / (n1 * n0)
        effects -= n1 / (2.0 * n0)
        # Rounding may step over the ends.
        np.clip(effects, 0.0, 1.0, out=found[block])

    _over_blocks(n_atoms, work)
    return found


def _over_blocks(n_atoms: int, work: Callable[[slice], None]) -> None:
    """Call `work` for every block of atoms, on as many threads as the kernels take; each writes rows of its own."""
    blocks = [slice(start, start + BLOCK) for start in range(0, n_atoms, BLOCK)]
    workers = min(threads(None) if available() else 1, len(blocks))
    if workers < 2:
        for block in blocks:
            work(block)
        return
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(work, blocks))


def stable_order(values: np.ndarray) -> np.ndarray:
    """Positions of each row's values in ascending order, equal ones in the order they stand in: (a, G) uint32.

    The same as a stable `argsort` of float32 values without NaN, but by sorting whole numbers, which is several times
    as fast: the bits of a value, turned so that they sort as the value does, above its position.
    """
    # Adding 0 turns −0 into 0, whose bits differ though the values are equal.
    bits = (np.asarray(values, dtype=np.float32) + np.float32(0.0)).view(np.uint32)
    turned = np.where(bits >> 31, ~bits, bits | np.uint32(0x80000000))
    keys = turned.astype(np.uint64) << np.uint64(32) | np.arange(values.shape[1], dtype=np.uint64)
    keys.sort(axis=1)
    return keys.astype(np.uint32)


def naive_log10_p(effects: np.ndarray, sets: SetIndex, n_genes: int) -> np.ndarray:
    """log10 of the two-sided Mann-Whitney p over genes (a, s), each gene taken as independent of the others.

    Genes of a set are correlated, so this p is too small; it stands beside the others for comparison only.
    """
    found = np.empty(effects.shape)

    def work(block: slice) -> None:
        found[block] = normal_log10_p(mann_whitney_z(effects[block], sets.n_overlap, n_genes - sets.n_overlap))

    _over_blocks(len(effects), work)
    return found


def residual_correlation(association: np.ndarray, sets: SetIndex, spread: np.ndarray) -> np.ndarray:
    """Mean correlation between the genes of each set that is left when an atom's code is regressed out.

    With standardised genes C_gh their correlation and r_g that of gene g with the code, the residuals of a regression
    on the code have covariance C_gh − r_g r_h and variance 1 − r_g²; given is the mean covariance of two genes of the
    set over their mean variance.

    Parameters
    ----------
    association
        (a, G) float32, correlation of standardised genes with codes.
    sets
        s gene sets over these G genes.
    spread
        (s,) float64, Σ C_gh over all pairs of genes of the set, each gene with itself included.

    Returns
    -------
    numpy.ndarray
        (a, s) float64.

    References
    ----------
    Wu and Smyth, Nucleic Acids Research 40 (2012) e133, "Estimating the inter-gene correlation": there the mean of the
    correlations of residuals, here the ratio of means, which all atoms and sets share the work for.
    """
    n1 = sets.n_overlap.astype(np.float64)
    turned = np.ascontiguousarray(association.T)
    total = (sets.members @ turned).T.astype(np.float64)
    own = n1 - (sets.members @ np.square(turned)).T
    between = spread - np.square(total) - own
    return between / np.maximum((n1 - 1.0) * own, 1e-12)


def camera_log10_p(effects: np.ndarray, correlation: np.ndarray, sets: SetIndex, n_genes: int, df: int) -> np.ndarray:
    """log10 of the two-sided p (a, s) of a rank-sum test whose genes within the set are correlated.

    Parameters
    ----------
    effects
        (a, s) AUROC, as `rank_effects` gives it.
    correlation
        (a, s) mean correlation between the genes of a set; negative ones count as 0.
    df
        Residual degrees of freedom of the samples; the score is compared with Student's t.

    References
    ----------
    Barry, Nobel and Wright, Annals of Applied Statistics 2 (2008), and Wu and Smyth 2012, rank version of camera: with
    ρ inside the set and independence elsewhere, Var U = n₁n₀/2π · [asin 1 + (n₀ − 1) asin ½ +
    (n₁ − 1)(n₀ − 1) asin(ρ/2) + (n₁ − 1) asin((1 + ρ)/2)], which is n₁n₀(n₁ + n₀ + 1)/12 at ρ = 0.
    """
    rho = np.clip(correlation, 0.0, 1.0)
    n1 = sets.n_overlap.astype(np.float64)
    n0 = n_genes - n1
    inner = np.pi / 2.0 + (n0 - 1.0) * np.pi / 6.0
    inner = inner + (n1 - 1.0) * ((n0 - 1.0) * np.arcsin(rho / 2.0) + np.arcsin((1.0 + rho) / 2.0))
    deviation = np.sqrt(n1 * n0 / (2.0 * np.pi) * inner)
    distance = np.maximum(np.abs(effects - 0.5) * n1 * n0 - 0.5, 0.0)
    return student_log10_p(distance / deviation, min(df, n_genes - 2))


def top_overlap(association: np.ndarray, sets: SetIndex, n_chosen: int) -> np.ndarray:
    """How many genes of each set are among the `n_chosen` most associated with each atom, (a, s) int64.

    `association` is (a, G) float, larger for genes that go with the atom; its G genes are the background.
    """
    n_atoms, n_genes = association.shape
    found = np.empty((n_atoms, len(sets)), dtype=np.int64)

    def work(block: slice) -> None:
        part = association[block]
        chosen = np.zeros((n_genes, len(part)), dtype=np.float32)
        top = np.argpartition(part, n_genes - n_chosen, axis=1)[:, n_genes - n_chosen :]
        chosen[top, np.arange(len(part))[:, None]] = 1.0
        found[block] = np.rint(sets.members @ chosen).T

    _over_blocks(n_atoms, work)
    return found


def ora_log10_p(overlap: np.ndarray, sets: SetIndex, n_genes: int, n_chosen: int) -> np.ndarray:
    """log10 of the one-sided p (a, s) of over-representation, given `top_overlap`.

    References
    ----------
    Hypergeometric tail (Fisher's exact test, greater) on an explicit background: Rivals et al., Bioinformatics 23
    (2007). Genes are taken as independent.
    """
    # The tail depends on the size of the set and the overlap alone.
    sizes, which = np.unique(sets.n_overlap, return_inverse=True)
    most = int(min(n_chosen, sizes.max(initial=0)))
    table = hypergeometric_log10_sf(np.arange(most + 1)[None], n_genes, sizes[:, None], n_chosen)
    return table[which[None], overlap]


def ora_odds(
    overlap: np.ndarray, n_overlap: np.ndarray, n_genes: int, n_chosen: int, confidence: float = 0.95
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Odds ratio of over-representation, one half added to every cell, with its Wald interval on the log scale.

    Parameters
    ----------
    overlap, n_overlap
        Genes of the set among the chosen ones, and in the background; the arrays broadcast.
    n_genes, n_chosen
        Genes of the background, and those chosen.
    confidence
        Coverage of the interval. It takes genes as independent, as the test does: genes of one set are correlated, so
        that it is too narrow.

    Returns
    -------
    odds, low, high
        float64 each.

    References
    ----------
    Haldane, Annals of Human Genetics 20 (1956); Woolf, Annals of Human Genetics 19 (1955), by `odds_ratio`.
    """
    a, b = overlap, n_chosen - overlap
    c = n_overlap - overlap
    cells = np.broadcast_arrays(a, b, c, n_genes - n_chosen - c)
    return odds_ratio(np.stack(cells, axis=-1).reshape(*cells[0].shape, 2, 2), confidence)
