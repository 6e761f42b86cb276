"""Rank statistics of sparse codes: exact AUROC with ties, and the Mann-Whitney test."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from conceptome_kernels import available

if TYPE_CHECKING:
    from scipy import sparse


MOST_WEIGHT = 2**24  # integers up to here are exact in float32


class RankedCodes:
    """Codes sorted once, so that many labels, permutations and bootstraps only cost a sparse product.

    Zeros are one block of ties between the negative and the positive values; they are never stored.

    Parameters
    ----------
    codes
        (n, m) sparse matrix; stored zeros count as zeros. Values must be finite.
    """

    def __init__(self, codes: sparse.spmatrix):
        from scipy import sparse

        csc = sparse.csc_matrix(codes)
        if not csc.has_canonical_format or (csc.data == 0).any():
            csc = csc.copy()
            csc.sum_duplicates()
            csc.eliminate_zeros()
        self.shape: tuple[int, int] = csc.shape
        column = np.repeat(np.arange(self.shape[1]), np.diff(csc.indptr))
        order = np.lexsort((csc.data, column))
        value = csc.data[order]
        self._row = csc.indices[order]
        self._indptr = csc.indptr
        # Within an atom the negative values come first: each atom is two segments, below and above its zeros.
        negative = np.bincount(column[value < 0], minlength=self.shape[1])
        self._negative_end = csc.indptr[:-1] + negative
        self._segments = np.stack([negative, np.diff(csc.indptr) - negative], axis=1).ravel()
        # A block is a run of equal values within one atom.
        starts = np.ones(len(value), dtype=bool)
        starts[1:] = (value[1:] != value[:-1]) | (column[1:] != column[:-1])
        self._block = np.concatenate([np.flatnonzero(starts), [len(value)]])
        self._block_column = column[self._block[:-1]]
        # Filled with the ranks of one weighting at a time.
        self._matrix = sparse.csr_matrix((np.zeros(len(value)), self._row, csc.indptr), shape=self.shape[::-1])

    def _above_zero(self, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Midrank (weight below + half that tied) of every stored value minus that of zero, and that of zero (m,)."""
        w = np.ones(len(self._row)) if weights is None else weights[self._row]
        total = float(self.shape[0]) if weights is None else float(weights.sum())
        running = np.concatenate([[0.0], np.cumsum(w)])
        base = running[self._indptr[:-1]]
        zeros = total - (running[self._indptr[1:]] - base)
        zero_rank = running[self._negative_end] - base + zeros / 2.0
        if len(self._block) == len(running):
            rank = running[:-1] + w / 2.0
        else:
            edge = running[self._block]
            rank = np.repeat((edge[:-1] + edge[1:]) / 2.0, np.diff(self._block))
        shift = np.stack([-base - zero_rank, zeros - base - zero_rank], axis=1).ravel()
        rank += np.repeat(shift, self._segments)
        return rank, zero_rank

    def auroc(self, labels: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        """Probability that a sample with the label has the larger code, ties counted half.

        Parameters
        ----------
        labels
            (n, c) or (n,) bool.
        weights
            (n,) non-negative integer weights (a bootstrap): the result is that of the repeated samples.

        Returns
        -------
        numpy.ndarray
            (m, c) float64; NaN for a class with no samples or no others.

        References
        ----------
        Mann and Whitney, Annals of Mathematical Statistics 18 (1947); U from midranks.
        """
        labels = self._checked(labels)
        weights = None if weights is None else np.asarray(weights, dtype=np.float64)
        weighted = labels.astype(np.float64) if weights is None else labels * weights[:, None]
        # Only the difference to the rank of zero is stored, so the product touches the non-zero codes alone.
        self._matrix.data, zero_rank = self._above_zero(weights)
        positive = weighted.sum(axis=0)
        total = float(self.shape[0]) if weights is None else weights.sum()
        # Positives against positives (themselves included) contribute exactly half of positive².
        u = self._matrix @ weighted + zero_rank[:, None] * positive - positive**2 / 2.0
        pairs = positive * (total - positive)
        return np.divide(u, pairs, out=np.full(u.shape, np.nan), where=pairs > 0)

    def auroc_draws(self, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """`auroc` under many weightings at once.

        Parameters
        ----------
        labels
            (n, c) or (n,) bool.
        weights
            (B, n) non-negative integer weights, one row for each draw of a bootstrap.

        Returns
        -------
        numpy.ndarray
            (B, m, c) float64; NaN for a class with no samples or no others.
        """
        labels, weights = self._checked(labels), np.asarray(weights)
        if weights.ndim != 2 or weights.shape[1] != self.shape[0]:
            raise ValueError(f"weights have shape {weights.shape}, codes {self.shape[0]} rows: give (draws, rows)")
        # The kernel counts whole samples, in 32 bits; anything else takes the general way.
        if weights.dtype.kind in "iu" and weights.size and np.abs(weights).max() <= MOST_WEIGHT and available():
            from conceptome_kernels.contingency import rank_auroc

            return rank_auroc(
                *self.structure, np.ascontiguousarray(labels), np.ascontiguousarray(weights, dtype=np.int32)
            )
        drawn = [self.auroc(labels, each) for each in weights]
        return np.stack(drawn) if drawn else np.empty((0, self.shape[1], labels.shape[1]))

    @cached_property
    def structure(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """What `conceptome_kernels.contingency.rank_auroc` takes: rows, starts, indptr, negative_end."""
        starts = np.zeros(len(self._row), dtype=bool)
        starts[self._block[:-1]] = True
        ends = self._negative_end.astype(np.int64)
        return self._row.astype(np.int32), starts, self._indptr.astype(np.int64), ends

    def _checked(self, labels: np.ndarray) -> np.ndarray:
        labels = np.asarray(labels, dtype=bool)
        labels = labels[:, None] if labels.ndim == 1 else labels
        if len(labels) != self.shape[0]:
            raise ValueError(f"labels have {len(labels)} rows, codes {self.shape[0]}")
        return labels

    def spearman(self, values: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        """Spearman's rank correlation of every atom with each column of values, with midranks for ties.

        Parameters
        ----------
        values
            (n, c) or (n,) float.
        weights
            (n,) non-negative integer weights (a bootstrap): the result is that of the repeated samples.

        Returns
        -------
        numpy.ndarray
            (m, c) float64; NaN where an atom or a column has one value only.

        References
        ----------
        Kendall, Rank Correlation Methods (1970), chapter 3 (ties).
        """
        values = np.asarray(values, dtype=np.float64)
        values = values[:, None] if values.ndim == 1 else values
        if len(values) != self.shape[0]:
            raise ValueError(f"values have {len(values)} rows, codes {self.shape[0]}")
        weights = None if weights is None else np.asarray(weights, dtype=np.float64)
        w = np.ones(len(values)) if weights is None else weights
        total = w.sum()
        centred = np.stack([_midranks(column, w) for column in values.T], axis=1) - total / 2.0
        weighted = centred * w[:, None]
        # The centred ranks of the values sum to zero, so the rank of an atom's zeros drops out of the product.
        self._matrix.data, _ = self._above_zero(weights)
        # With n samples and ties of t samples, midranks have (n³ − Σ t³) / 12 as their sum of squares.
        own = w[self._row]
        blocks = np.add.reduceat(own, self._block[:-1]) if len(own) else own
        firing = np.bincount(self._block_column, weights=blocks, minlength=self.shape[1])
        ties = np.bincount(self._block_column, weights=blocks**3, minlength=self.shape[1]) + (total - firing) ** 3
        spread = np.maximum(total**3 - ties, 0.0) / 12.0
        flat = spread <= 1e-12 * total**3
        scale = np.sqrt(np.where(flat, 0.0, spread)[:, None] * (weighted * centred).sum(axis=0))
        return np.divide(self._matrix @ weighted, scale, out=np.full(scale.shape, np.nan), where=scale > 0)

    def kendall(self, values: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        """Kendall's τ_b of every atom with each column of values: arguments and result as for `spearman`.

        References
        ----------
        Kendall, Rank Correlation Methods (1970), chapter 3: (C − D) / √(pairs with different codes · pairs with
        different values), C and D the concordant and the discordant pairs.
        """
        excess, codes_differ, values_differ = self._concordance(values, weights)
        return _ratio(excess, np.sqrt(codes_differ[:, None] * values_differ))

    def jonckheere(self, values: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        """Jonckheere and Terpstra's statistic between −1 and 1: arguments and result as for `spearman`.

        J adds the Mann-Whitney counts of every two levels of the values, ties counted half; given is 2J/(pairs with
        different values) − 1, the share of such pairs in which the higher value has the larger code, less the share in
        which it has the smaller one (Somers' D of code on value).

        References
        ----------
        Jonckheere, Biometrika 41 (1954); Somers, American Sociological Review 27 (1962).
        """
        excess, codes_differ, values_differ = self._concordance(values, weights)
        return _ratio(excess, np.where(codes_differ > 0, 1.0, 0.0)[:, None] * values_differ)

    def _concordance(self, values: np.ndarray, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Concordant less discordant pairs (m, c), pairs with different codes (m,), and with different values (c,)."""
        values = np.asarray(values)
        values = values[:, None] if values.ndim == 1 else values
        if len(values) != self.shape[0]:
            raise ValueError(f"values have {len(values)} rows, codes {self.shape[0]}")
        w = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=np.float64)
        total = w.sum()
        own = w[self._row]
        blocks = np.add.reduceat(own, self._block[:-1]) if len(own) else own
        firing = np.bincount(self._block_column, weights=blocks, minlength=self.shape[1])
        ties = np.bincount(self._block_column, weights=blocks**2, minlength=self.shape[1]) + (total - firing) ** 2
        codes_differ = np.maximum(total**2 - ties, 0.0) / 2.0
        codes_differ[codes_differ <= 1e-12 * total**2] = 0.0
        excess = np.zeros((self.shape[1], values.shape[1]))
        values_differ = np.zeros(values.shape[1])
        for column in range(values.shape[1]):
            for level in np.unique(values[:, column])[:-1]:
                # What each sample of a higher level has below it, of this level.
                here, above = w * (values[:, column] == level), w * (values[:, column] > level)
                self._matrix.data, zero_rank = self._above_zero(here)
                pairs = here.sum() * above.sum()
                excess[:, column] += 2.0 * (self._matrix @ above + zero_rank * above.sum()) - pairs
                values_differ[column] += pairs
        return excess, codes_differ, values_differ

    def group_means(self, group: np.ndarray) -> np.ndarray:
        """Mean midrank of the samples of each group.

        Parameters
        ----------
        group
            (n,) int64, the group of each sample, 0 … G − 1.

        Returns
        -------
        numpy.ndarray
            (m, G) float64.
        """
        from scipy import sparse

        n, size = self.shape[0], np.bincount(group)
        share = sparse.csr_matrix((1.0 / size[group], (np.arange(n), group)), shape=(n, len(size)))
        self._matrix.data, zero_rank = self._above_zero(None)
        return (self._matrix @ share).toarray() + zero_rank[:, None]

    def skewness(self) -> np.ndarray:
        """Skewness of the midranks of each atom, (m,) float64; 0 where an atom has one value only."""
        rank, zero_rank = self._above_zero(None)
        n = self.shape[0]
        offset = zero_rank - n / 2.0
        column = np.repeat(np.arange(self.shape[1]), np.diff(self._indptr))
        centred = rank + offset[column]
        zeros = n - np.diff(self._indptr)
        square = np.bincount(column, weights=centred**2, minlength=self.shape[1]) + zeros * offset**2
        cube = np.bincount(column, weights=centred**3, minlength=self.shape[1]) + zeros * offset**3
        spread = (square / max(n, 1)) ** 1.5
        return np.divide(cube / max(n, 1), spread, out=np.zeros(self.shape[1]), where=spread > 1e-12 * max(n, 1) ** 3)

    def tie_terms(self) -> np.ndarray:
        """Σ (t³ − t) over the blocks of ties of each atom, (m,) float64."""
        block, zeros = np.diff(self._block).astype(np.float64), self.shape[0] - np.diff(self._indptr).astype(np.float64)
        ties = np.bincount(self._block_column, weights=block**3 - block, minlength=self.shape[1])
        return ties + zeros**3 - zeros


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Quotient, NaN where the denominator is 0."""
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)


def _midranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Midrank of each value (n,): the weight below it and half of the weight tied with it."""
    _, place = np.unique(values, return_inverse=True)
    tied = np.bincount(place, weights=weights)
    return (np.cumsum(tied) - tied / 2.0)[place]


def auroc_matrix(codes: sparse.spmatrix, labels: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Exact AUROC of every atom for every label, with ties.

    Parameters
    ----------
    codes
        (n, m) sparse matrix; zeros, stored or not, are one block of ties; negative values rank below it.
    labels
        (n, c) bool.
    weights
        (n,) integer weights of the samples (bootstrap counts), or None.

    Returns
    -------
    numpy.ndarray
        (m, c) float64; NaN for a class with no samples or no others. For many labels or draws on the same codes
        keep one `RankedCodes` instead.
    """
    return RankedCodes(codes).auroc(labels, weights)


def tie_terms(codes: sparse.spmatrix) -> np.ndarray:
    """Σ (t³ − t) over the blocks of ties of each atom of sparse `codes` (n, m): (m,) float64."""
    return RankedCodes(codes).tie_terms()


def mann_whitney_z(
    auroc: np.ndarray, n1: np.ndarray, n0: np.ndarray, tie_term: np.ndarray | float = 0.0, *, continuity: bool = True
) -> np.ndarray:
    """Size of the standard score of the Mann-Whitney test, with the correction for ties.

    Parameters
    ----------
    auroc
        AUROC, e.g. (m, c).
    n1, n0
        Number of samples with and without the label; broadcast against `auroc`.
    tie_term
        Σ (t³ − t) over blocks of ties; broadcast against `auroc` (give `tie_terms(codes)[:, None]`).
    continuity
        Subtract one half from |U − E[U]|.

    Returns
    -------
    numpy.ndarray
        |z|, float64: 0 where every value is tied, NaN where a class is empty.

    References
    ----------
    Hollander, Wolfe and Chicken, Nonparametric Statistical Methods (3rd ed.), equation 4.13 and its tie correction.
    """
    auroc, n1, n0, tie_term = (np.asarray(each, dtype=np.float64) for each in (auroc, n1, n0, tie_term))
    total = n1 + n0
    # What does not depend on the AUROC is computed once for all of them.
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = n1 * n0 / 12.0 * (total + 1.0 - tie_term / (total * (total - 1.0)))
        deviation = np.sqrt(np.maximum(variance, 0.0))
        z = np.empty(np.broadcast_shapes(auroc.shape, variance.shape))
        np.abs(np.subtract(auroc, 0.5, out=z), out=z)
        z *= n1 * n0
        z -= 0.5 if continuity else 0.0
        np.maximum(z, 0.0, out=z)
        z /= deviation
    # All values tied leaves a variance of rounding errors: no evidence.
    flat, empty = variance <= 1e-9 * n1 * n0 * total, (n1 <= 0) | (n0 <= 0)
    if (flat | empty).any():
        z = np.where(empty | np.isnan(auroc), np.nan, np.where(flat, 0.0, z))
    return z


def mann_whitney_p(
    auroc: np.ndarray, n1: np.ndarray, n0: np.ndarray, tie_term: np.ndarray | float = 0.0, *, continuity: bool = True
) -> np.ndarray:
    """Two-sided p value of the Mann-Whitney test, normal approximation with the correction for ties.

    Arguments as in `mann_whitney_z`. Returns p values, float64: 1 where every value is tied, NaN where a class is
    empty; `normal_log10_p(mann_whitney_z(...))` is their logarithm without underflow.
    """
    from scipy.stats import norm

    return np.minimum(2.0 * norm.sf(mann_whitney_z(auroc, n1, n0, tie_term, continuity=continuity)), 1.0)
