"""Atoms against gene sets: whether the genes of a set go with an atom's code more than other genes do.

For every atom the genes of the background are ranked by the Pearson correlation, over cells, of their log-normalised
expression with the code. The effect of a set is the AUROC of that ranking for its genes against all others.

Genes are correlated with each other, so the Mann-Whitney test over genes, which takes them as independent, calls far
too many sets (Barry, Nobel and Wright 2008; Wu and Smyth 2012). Here the AUROC is compared with that of PERMUTED CODES,
which are independent of expression but meet the same genes with the same correlations. Ranks do not depend on how
strong the correlations are overall, so an atom that carries much biology does not make every set significant: the genes
of the set must stand out beyond what a random direction in expression space does to them.

What the code itself explains of a set's coherence is taken out of the null's variance, as the residuals of the design
are what counts in Wu and Smyth: the permuted codes meet the correlations that are left when the code is regressed out.
To first order that shrinks the null's deviation by √(1 − ρ²), ρ being the correlation, over cells, of the code with the
set's score (mean standardised expression of its genes minus that of all others). An independent code has ρ ≈ 0, so the
test keeps its level.

Three more tests stand beside it, each with p, log10 p and q: `naive`, the Mann-Whitney test that takes genes as
independent; `camera`, the same with its variance corrected for the mean correlation of the set's genes (Wu and Smyth
2012); `ora`, over-representation among the genes most associated with the atom (`set_tests`). What is kept, ranked and
drawn follows the permuted codes alone.

Atoms are chosen on training and validation cells; effects, p and q are those of test cells.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from conceptome.enrichment.gmt import SetIndex, index_sets
from conceptome.enrichment.redundancy import clusters_of
from conceptome.enrichment.set_tests import (
    camera_log10_p,
    naive_log10_p,
    ora_log10_p,
    ora_odds,
    rank_effects,
    residual_correlation,
    top_overlap,
)
from conceptome.errors import DataError
from conceptome.measures.rows import choose_rows, seeded
from conceptome.progress import track
from conceptome.statistics import (
    RankedCodes,
    benjamini_hochberg_log10,
    bootstrap_groups,
    group_codes,
    interval,
    normal_log10_p,
    permutations,
)

if TYPE_CHECKING:
    import networkx as nx
    import pandas as pd
    from scipy import sparse

    from conceptome.config.evidence import Enrichment

logger = logging.getLogger(__name__)

# Atoms are calibrated with permuted codes of a similar firing rate: strata of a factor 4.
STRATUM_FACTOR = 4.0
BLOCK = 256
TOP_GENES = 8
SIGNIFICANT = 0.05
MIN_RESIDUAL = 0.05
TAILS = (0.05, 0.01, 0.001, 0.0001)


def _standardise(values: np.ndarray) -> np.ndarray:
    """Columns of mean 0 and deviation 1, float32; constant columns become 0."""
    values = values - values.mean(axis=0, dtype=np.float64)
    deviation = np.sqrt(np.square(values).mean(axis=0))
    return (values / np.where(deviation > 1e-12, deviation, 1.0)).astype(np.float32)


class Expression:
    """Standardised expression of the cells of one part of the data.

    Parameters
    ----------
    matrix
        (n, G) log-normalised expression, dense or sparse.
    sets
        Gene sets over these G genes.
    """

    def __init__(self, matrix: Any, sets: SetIndex):
        from scipy import sparse

        dense = matrix.toarray() if sparse.issparse(matrix) else np.array(matrix)
        self.values = np.ascontiguousarray(_standardise(dense))
        self.sets = sets
        n1 = sets.n_overlap.astype(np.float32)
        inside = np.ascontiguousarray((sets.members @ self.values.T).T)
        # Σ over pairs of genes of a set of their correlation, for `residual_correlation`.
        self.spread = np.square(inside, dtype=np.float64).mean(axis=0)
        total = self.values.sum(axis=1, keepdims=True)
        self.scores = _standardise(inside / n1 - (total - inside) / np.maximum(self.values.shape[1] - n1, 1.0))

    def association(self, codes: np.ndarray) -> np.ndarray:
        """Pearson correlation of codes (n, a) with genes: (a, G) float32."""
        return _standardise(codes).T @ self.values / np.float32(len(codes))

    def coherence(self, codes: np.ndarray) -> np.ndarray:
        """Pearson correlation ρ of codes (n, a) with the sets' scores: (a, s) float32."""
        return _standardise(codes).T @ self.scores / np.float32(len(codes))

    def effects(self, association: np.ndarray) -> np.ndarray:
        """AUROC of the genes in each set against the others, for associations (a, G): (a, s) float64."""
        return rank_effects(association, self.sets)


@dataclass(frozen=True)
class Null:
    """What permuted codes reach, by stratum of firing rate.

    Attributes
    ----------
    mean, deviation
        (strata, s) of the AUROC of permuted codes.
    inflation
        (strata,) at least 1: by how much the pooled tails of the standardised null are wider than a normal's.
    gene_deviation
        (strata, G) of the correlation of permuted codes with genes, tails as above taken into account.
    gene_extreme
        (strata, draws) largest correlation, up or down, of each permuted code with any gene, sorted.
    """

    mean: np.ndarray
    deviation: np.ndarray
    inflation: np.ndarray
    gene_deviation: np.ndarray
    gene_extreme: np.ndarray

    def z(self, effects: np.ndarray, coherence: np.ndarray, stratum: np.ndarray) -> np.ndarray:
        """Standardise effects (a, s) of atoms in their strata (a,), given ρ (a, s); N(0, 1) under the null."""
        raw = standard_score(effects, coherence, self.mean[stratum], self.deviation[stratum])
        return raw / self.inflation[stratum, None]

    def quantile(self, stratum: np.ndarray, z: float) -> np.ndarray:
        """Effect at a standard score, for each of the strata (a,): (a, s), within [0, 1]."""
        return np.clip(self.mean[stratum] + z * self.inflation[stratum, None] * self.deviation[stratum], 0.0, 1.0)


def standard_score(effects: np.ndarray, coherence: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """(effect − mean) / (deviation √(1 − ρ²)), arrays that broadcast; 1 − ρ² is held above `MIN_RESIDUAL`."""
    return (effects - mean) / (deviation * np.sqrt(np.maximum(1.0 - np.square(coherence), MIN_RESIDUAL)))


class Part:
    """The cells of one split, their expression, and the null of permuted codes on them."""

    def __init__(self, rows: np.ndarray, expression: Expression, min_active: int, groups: np.ndarray):
        self.rows = rows
        self.expression = expression
        self.min_active = min_active
        # Cells that are groups of their own are exchangeable as they are; otherwise whole groups move.
        self.groups = None if len(np.unique(groups)) == len(groups) else groups
        self.null: Null | None = None

    def strata(self, codes: sparse.csc_matrix) -> np.ndarray:
        """Stratum of each atom by the number of cells (of this part) on which it is active: (a,) int64."""
        active = np.diff(codes.indptr)
        return np.maximum(np.floor(np.log(np.maximum(active, 1) / self.min_active) / np.log(STRATUM_FACTOR)), 0).astype(
            np.int64
        )

    def calibrate(self, fits: list[sparse.csc_matrix], config: Enrichment, seed: list[int]) -> None:
        """Build the null: codes of these fits, drawn per stratum, each with its cells permuted."""
        strata = [self.strata(codes) for codes in fits]
        count = 1 + max((int(each.max()) for each in strata if len(each)), default=0)
        shape = (count, len(self.expression.sets))
        mean, deviation, inflation = np.full(shape, 0.5), np.full(shape, np.nan), np.ones(count)
        gene_deviation = np.full((count, self.expression.values.shape[1]), np.nan)
        gene_extreme = np.full((count, config.null_draws), np.nan)
        for stratum in track(range(count), description="permuted codes, stratum"):
            pairs = [(f, a) for f, each in enumerate(strata) for a in np.flatnonzero(each == stratum)]
            if not pairs:
                continue
            rng = np.random.default_rng([*seed, stratum])
            drawn = rng.integers(0, len(pairs), config.null_draws)
            effects, coherence, associations = [], [], []
            for start in range(0, len(drawn), BLOCK):
                block = [pairs[i] for i in drawn[start : start + BLOCK]]
                columns = np.column_stack([fits[f][:, [a]].toarray()[:, 0] for f, a in block])
                permuted = self.permuted(columns, rng)
                associations.append(self.expression.association(permuted))
                effects.append(self.expression.effects(associations[-1]))
                coherence.append(self.expression.coherence(permuted))
            effects, coherence = np.concatenate(effects), np.concatenate(coherence)
            association = np.concatenate(associations)
            wide = association.std(axis=0, ddof=1, dtype=np.float64)
            gene_deviation[stratum] = wide * tail_inflation(association / wide)
            gene_extreme[stratum] = np.sort(np.abs(association).max(axis=1))
            mean[stratum] = effects.mean(axis=0)
            deviation[stratum] = effects.std(axis=0, ddof=1)
            inflation[stratum] = tail_inflation(standard_score(effects, coherence, mean[stratum], deviation[stratum]))
        self.null = Null(mean, deviation, inflation, gene_deviation, gene_extreme)

    def permuted(self, columns: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Permute the cells of each column (n, b), whole groups together where cells are grouped."""
        if self.groups is None:
            return rng.permuted(columns, axis=0)
        seed = [int(word) for word in rng.integers(0, 2**32, 2)]
        places = permutations(np.arange(len(columns)), columns.shape[1], seed, self.groups)
        return np.take_along_axis(columns, places.T, axis=0)


def tail_inflation(z: np.ndarray) -> float:
    """By how much the tails of standardised draws (any shape) are wider than a normal's; at least 1."""
    from scipy.stats import norm

    pooled = np.abs(z[np.isfinite(z)])
    levels = [level for level in TAILS if level * len(pooled) >= 20]
    if not levels:
        return 1.0
    ratios = np.quantile(pooled, [1.0 - level for level in levels]) / norm.isf(np.array(levels) / 2.0)
    return float(max(1.0, ratios.max()))


@dataclass
class _Fit:
    """One fit (or several with equal codes) on the way through: its tested atoms and what was found."""

    keys: list[tuple[str, int]]
    atoms: np.ndarray
    signed: bool
    selection: sparse.csc_matrix
    test: sparse.csc_matrix
    rows: pd.DataFrame | None = None
    best: dict[str, np.ndarray] | None = None
    programmes: pd.DataFrame | None = None


@dataclass(frozen=True)
class _Swept:
    """What the associations of a fit's atoms with all genes of a part come to.

    Attributes
    ----------
    effect, coherence
        (a, s) float64, AUROC, and correlation of the code with the set's score.
    residual
        (a, s) float32, mean correlation between the set's genes beyond the code.
    overlap
        (a, s) int32, genes of the set among the most associated ones, in the direction of the effect.
    genes
        (a, 2p) int64, the p genes most associated upwards, strongest first, then downwards.
    """

    effect: np.ndarray
    coherence: np.ndarray
    residual: np.ndarray
    overlap: np.ndarray
    genes: np.ndarray


def _p_values(name: str, log10_p: np.ndarray, log10_q: np.ndarray) -> dict[str, np.ndarray]:
    """Columns of one test: p and q in float64 (0 where that underflows), and log10 of both."""
    return {
        f"p{name}": 10.0**log10_p,
        f"log10_p{name}": log10_p,
        f"q{name}": 10.0**log10_q,
        f"log10_q{name}": log10_q,
    }


def _correlation(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted Pearson correlation of x (n,) with the columns of y (n, g) under weights (B, n) of sum 1: (B, g).

    NaN where a draw leaves the code or the gene constant.
    """
    active = np.flatnonzero(x)
    mean_x, mean_y = weights[:, active] @ x[active], weights @ y
    variance_x = weights[:, active] @ np.square(x[active]) - np.square(mean_x)
    variance_y = weights @ np.square(y) - np.square(mean_y)
    covariance = (weights[:, active] * x[active]) @ y[active] - mean_x[:, None] * mean_y
    with np.errstate(divide="ignore", invalid="ignore"):
        found = covariance / np.sqrt(variance_x[:, None] * variance_y)
    found[(variance_x[:, None] <= 1e-9 * np.square(x).max()) | (variance_y <= 1e-6)] = np.nan
    return np.clip(found, -1.0, 1.0)


class GeneSets:
    """Everything that the fits of one (data set, model, whitening) share, and the fits as they come in.

    Parameters
    ----------
    data
        AnnData; `.X` log-normalised, var index gene symbols, rows as in `obs`.
    obs
        control, group, split.
    gene_sets
        Collection → set name → gene symbols.
    ontology
        Parents of terms, from `datasets.ontology.read_ontology`, or None.

    Raises
    ------
    DataError
        No gene is expressed in enough cells of each part; the symbols are not those of the gene sets.
    """

    def __init__(
        self,
        data: Any,
        obs: pd.DataFrame,
        gene_sets: Mapping[str, Mapping[str, list[str]]],
        config: Enrichment,
        ontology: nx.DiGraph | None = None,
    ):
        self.config = config
        self.ontology = ontology
        split = obs["split"].astype(str).to_numpy()
        chosen = {
            "selection": choose_rows(split != "test", config.max_cells, seeded(config.seed, "genes", "selection")),
            "test": choose_rows(split == "test", config.max_cells, seeded(config.seed, "genes", "test")),
        }
        matrix = data.X
        matrix = matrix.tocsr() if hasattr(matrix, "tocsr") else np.asarray(matrix)
        expressed = np.ones(matrix.shape[1], dtype=bool)
        for rows in chosen.values():
            expressed &= np.asarray((matrix[rows] > 0).sum(axis=0)).ravel() >= config.min_cells
        # Equal associations are ranked by position: a seeded order keeps families of genes from standing together.
        genes = np.random.default_rng(seeded(config.seed, "genes", "order")).permutation(np.flatnonzero(expressed))
        if not len(genes):
            raise DataError(
                f"gene sets: no gene is expressed in at least {config.min_cells} cells of the training and of the test "
                "part: lower enrichment.min_cells or give more cells"
            )
        self.background = np.asarray(data.var_names.astype(str))[genes]
        self.sets = index_sets(gene_sets, self.background, config.min_genes, config.max_genes)
        self.parts = {
            name: Part(
                rows,
                Expression(matrix[rows][:, genes], self.sets),
                config.min_cells,
                obs["group"].astype(str).to_numpy()[rows],
            )
            for name, rows in chosen.items()
        }
        self.obs = obs.iloc[chosen["test"]]
        self.n_chosen = min(config.ora_genes, len(genes) // 2)
        self.fits: list[_Fit] = []
        self._seen: dict[Hashable, _Fit] = {}

    def add(self, key: tuple[str, int], codes: sparse.csr_matrix, mark: Hashable) -> None:
        """Take in the codes (N, m) of one fit; atoms active on too few cells of either part are left out.

        `mark` is equal for equal codes, which are tested once.
        """
        if mark in self._seen:
            self._seen[mark].keys.append(key)
            return
        selection, test = (codes[part.rows].tocsc() for part in (self.parts["selection"], self.parts["test"]))
        enough = np.ones(codes.shape[1], dtype=bool)
        for part in (selection, test):
            # A code that is the same on every cell ranks no genes.
            varies = np.asarray(part.max(axis=0).todense() != part.min(axis=0).todense()).ravel()
            enough &= (np.diff(part.indptr) >= self.config.min_cells) & varies
        atoms = np.flatnonzero(enough)
        if len(atoms) < codes.shape[1]:
            skipped = codes.shape[1] - len(atoms)
            logger.info(
                "gene sets: %s, seed %d: %d of %d atoms not tested (silent or rare)", *key, skipped, len(enough)
            )
        fit = _Fit([key], atoms, bool((codes.data < 0).any()), selection[:, atoms], test[:, atoms])
        self._seen[mark] = fit
        self.fits.append(fit)

    def run(self) -> dict[str, list[pd.DataFrame]]:
        """Test all fits.

        Returns
        -------
        dict
            gene_sets, gene_sets_best, gene_programmes → frames of these tables with dictionary and seed, one or more
            per fit.
        """
        found: dict[str, list[pd.DataFrame]] = {"gene_sets": [], "gene_sets_best": [], "gene_programmes": []}
        fits = [fit for fit in self.fits if len(fit.atoms)]
        if not fits or not len(self.sets):
            return found
        for name, part in self.parts.items():
            codes = [getattr(fit, name) for fit in fits]
            part.calibrate(codes, self.config, seeded(self.config.seed, "genes", "null", name))
        for fit in track(fits, description="gene sets, dictionary"):
            self._test(fit)
        terms, rank = self._terms(fits)
        for fit in track(fits, description="gene sets, intervals of dictionary"):
            tables = (*self._finish(fit, terms, rank), fit.programmes)
            for name, seed in fit.keys:
                for frames, table in zip(found.values(), tables):
                    frames.append(table.assign(dictionary=name, seed=seed))
        return found

    def _sweep(self, codes: sparse.csc_matrix, part: Part) -> _Swept:
        """Everything that needs the association of all genes, block by block of atoms."""
        expression, kept = part.expression, self.config.programme_genes
        kept = min(kept, expression.values.shape[1] // 2)
        blocks = []
        for start in range(0, codes.shape[1], BLOCK):
            block = codes[:, start : start + BLOCK].toarray()
            association = expression.association(block)
            effect = expression.effects(association)
            upwards = top_overlap(association, self.sets, self.n_chosen)
            downwards = top_overlap(-association, self.sets, self.n_chosen)
            order = np.argsort(association, axis=1, kind="stable")
            blocks.append(
                _Swept(
                    effect=effect,
                    coherence=expression.coherence(block).astype(np.float64),
                    residual=residual_correlation(association, self.sets, expression.spread).astype(np.float32),
                    overlap=np.where(effect >= 0.5, upwards, downwards).astype(np.int32),
                    genes=np.concatenate([order[:, : -kept - 1 : -1], order[:, :kept]], axis=1),
                )
            )
        return _Swept(*(np.concatenate([getattr(each, field.name) for each in blocks]) for field in fields(_Swept)))

    def _beside(self, swept: _Swept) -> Iterator[tuple[str, np.ndarray]]:
        """The tests that stand beside the permuted codes, one after the other: name, log10 p (a, s)."""
        n_genes = len(self.background)
        yield "naive", naive_log10_p(swept.effect, self.sets, n_genes)
        df = len(self.parts["test"].rows) - 2
        yield "camera", camera_log10_p(swept.effect, swept.residual, self.sets, n_genes, df)
        # The direction is that of the effect, one of two that might have been.
        one_sided = ora_log10_p(swept.overlap, self.sets, n_genes, self.n_chosen)
        yield "ora", np.minimum(np.log10(2.0) + one_sided, 0.0)

    def _test(self, fit: _Fit) -> None:
        """Find a fit's rows (without intervals) and the best atom for every term."""
        import pandas as pd
        from scipy.stats import norm

        config, sets = self.config, self.sets
        selection, test = (self._sweep(getattr(fit, name), self.parts[name]) for name in ("selection", "test"))
        null = self.parts["test"].null
        stratum = self.parts["test"].strata(fit.test)
        strata = self.parts["selection"].strata(fit.selection)
        z_chosen = self.parts["selection"].null.z(selection.effect, selection.coherence, strata)
        z = null.z(test.effect, test.coherence, stratum)
        log10_p = normal_log10_p(z)
        log10_q = benjamini_hochberg_log10(log10_p)
        significant = log10_q < np.log10(SIGNIFICANT)
        keep = np.zeros(z.shape, dtype=bool)
        top = np.zeros(z.shape, dtype=bool)
        count = np.zeros(z.shape, dtype=np.int64)
        atoms = np.arange(len(fit.atoms))
        leader = {}
        for collection in dict.fromkeys(sets.collection):
            where = np.flatnonzero(sets.collection == collection)
            top[atoms, where[np.argmax(np.abs(z_chosen[:, where]), axis=1)]] = True
            count[:, where] = significant[:, where].sum(axis=1, keepdims=True)
            order = where[np.argsort(-np.abs(z[:, where]), axis=1, kind="stable")[:, : config.max_terms]]
            keep[atoms[:, None], order] = significant[atoms[:, None], order]
            # For the best atom of a term "top" is meant in the direction of the association.
            leader[collection] = {
                1: where[np.argmax(z_chosen[:, where], axis=1)],
                -1: where[np.argmin(z_chosen[:, where], axis=1)],
            }
        a, s = np.nonzero(keep | top)
        # A code that is never negative speaks only upwards; of a signed code the negative is as good an atom.
        oriented = np.abs(z_chosen) if fit.signed else z_chosen
        winner = np.argmax(oriented, axis=0)
        every = np.arange(len(sets))
        sign = np.where(z_chosen[winner, every] < 0, -1, 1) if fit.signed else np.ones(len(sets), dtype=np.int64)
        leads = np.array([leader[sets.collection[i]][int(sign[i])][winner[i]] == i for i in every])
        shared = [
            {
                "effect": test.effect[at],
                "z": z[at],
                "correlation": test.coherence[at],
                "effect_selection": selection.effect[at],
                "inter_gene_correlation": test.residual[at].astype(np.float64),
                "ora_overlap": test.overlap[at],
                **dict(
                    zip(
                        ("ora_odds", "ora_odds_low", "ora_odds_high"),
                        ora_odds(
                            test.overlap[at],
                            sets.n_overlap[at[1]],
                            len(self.background),
                            self.n_chosen,
                            config.confidence,
                        ),
                    )
                ),
                "ora_genes": np.full(len(at[0]), self.n_chosen),
                **_p_values("", log10_p[at], log10_q[at]),
            }
            for at in ((a, s), (winner, every))
        ]
        for name, values in self._beside(test):
            adjusted = benjamini_hochberg_log10(values)
            for found, at in zip(shared, ((a, s), (winner, every))):
                found |= _p_values(f"_{name}", values[at], adjusted[at])
        reach = norm.isf((1.0 - config.confidence) / 2.0)
        side = np.where(test.effect[a, s] >= 0.5, 1.0, -1.0)
        null_effect = (
            null.mean[stratum[a], s] + side * reach * (null.inflation[:, None] * null.deviation)[stratum[a], s]
        )
        fit.rows = pd.DataFrame(
            {
                "position": a,
                "set": s,
                **shared[0],
                "null_effect": np.clip(null_effect, 0.0, 1.0),
                "top_term": top[a, s],
                "n_significant": count[a, s],
            }
        )
        fit.best = {
            "position": winner,
            "sign": sign,
            **shared[1],
            "score": oriented[winner, every],
            "top_term": leads,
            "first": np.flatnonzero((z == z.max()).any(axis=0)),
        }
        fit.programmes = self._programmes(fit, selection.genes)

    def _programmes(self, fit: _Fit, genes: np.ndarray) -> pd.DataFrame:
        """The genes (a, 2 × programme_genes; up, then down) chosen for each atom elsewhere, measured on test cells.

        p: the correlation over its deviation under permuted codes, normal with tails widened; q: Benjamini-Hochberg
        over all chosen pairs of atom and gene.
        """
        import pandas as pd

        config, part = self.config, self.parts["test"]
        number, _ = group_codes(self.obs["group"].astype(str))
        counts = bootstrap_groups(number, config.bootstraps, seeded(config.seed, "genes", "programmes"))
        weights = counts[:, number].astype(np.float32)
        weights /= weights.sum(axis=1, keepdims=True)
        kept = genes.shape[1] // 2
        effects, lows, highs = [], [], []
        selection, test = [self.parts[name].expression.values for name in ("selection", "test")]
        chosen_on = []
        for position, chosen in enumerate(genes):
            x = fit.test[:, [position]].toarray()[:, 0]
            y = test[:, chosen]
            effects.append(_correlation(x, y, np.full((1, len(x)), 1.0 / len(x), dtype=np.float32))[0])
            low, high = interval(_correlation(x, y, weights), config.confidence)
            lows.append(low)
            highs.append(high)
            x = fit.selection[:, [position]].toarray()[:, 0]
            chosen_on.append(
                _correlation(x, selection[:, chosen], np.full((1, len(x)), 1.0 / len(x), dtype=np.float32))[0]
            )
        effect = np.array(effects)
        stratum = part.strata(fit.test)
        log10_p = normal_log10_p(effect / np.take_along_axis(part.null.gene_deviation[stratum], genes, axis=1))
        extreme = np.quantile(part.null.gene_extreme[stratum], config.confidence, axis=1)
        atoms, width = genes.shape
        return pd.DataFrame(
            {
                "atom": np.repeat(fit.atoms, width),
                "direction": np.tile(np.repeat(["up", "down"], kept), atoms),
                "rank": np.tile(np.tile(np.arange(1, kept + 1), 2), atoms),
                "gene": self.background[genes].ravel(),
                "effect": effect.ravel(),
                "low": np.array(lows).ravel(),
                "high": np.array(highs).ravel(),
                **_p_values("", log10_p.ravel(), benjamini_hochberg_log10(log10_p).ravel()),
                "null_effect": np.repeat(extreme, width),
                "effect_selection": np.array(chosen_on).ravel(),
                "n_active": np.repeat(np.diff(fit.test.indptr), width),
                "background": len(self.background),
                "n": len(part.rows),
                "split": "test",
            }
        )

    def _terms(self, fits: list[_Fit]) -> tuple[np.ndarray, np.ndarray]:
        """Choose the terms that all dictionaries are compared on, by the data alone.

        A term's score is its best atom's standard score on training and validation cells: the median over seeds, the
        largest over dictionaries. Beside the `top_terms` of every collection stands each fit's strongest term on test.
        """
        scores: dict[str, list[np.ndarray]] = {}
        for fit in fits:
            for name, _ in fit.keys:
                scores.setdefault(name, []).append(fit.best["score"])
        score = np.max([np.median(each, axis=0) for each in scores.values()], axis=0)
        rank = np.zeros(len(self.sets), dtype=np.int64)
        for collection in dict.fromkeys(self.sets.collection):
            where = np.flatnonzero(self.sets.collection == collection)
            rank[where[np.argsort(-score[where], kind="stable")]] = np.arange(1, len(where) + 1)
        first = np.unique(np.concatenate([fit.best["first"] for fit in fits]))
        return np.union1d(np.flatnonzero(rank <= self.config.top_terms), first), rank

    def _finish(self, fit: _Fit, terms: np.ndarray, rank: np.ndarray) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Add intervals, nulls and what belongs to atoms and sets."""
        import pandas as pd
        from scipy.stats import norm

        config, part = self.config, self.parts["test"]
        best = pd.DataFrame({name: values[terms] for name, values in fit.best.items() if name != "first"}).assign(
            set=terms
        )
        pairs = pd.concat([fit.rows[["position", "set"]], best[["position", "set"]]]).drop_duplicates()
        pairs = pairs.sort_values(["position", "set"], kind="stable", ignore_index=True)
        pairs["error"] = self._errors(fit.test, pairs)
        reach = norm.isf((1.0 - config.confidence) / 2.0)
        tables = []
        for table in (fit.rows, best):
            table = table.merge(pairs, on=["position", "set"], how="left", validate="many_to_one")
            low, high = (np.clip(table["effect"] + side * reach * table["error"], 0.0, 1.0) for side in (-1, 1))
            s = table["set"].to_numpy()
            tables.append(
                table.assign(
                    low=low,
                    high=high,
                    atom=fit.atoms[table["position"]],
                    n_active=np.diff(fit.test.indptr)[table["position"]],
                    collection=self.sets.collection[s],
                    term=self.sets.term[s],
                    n_genes=self.sets.n_genes[s],
                    n_overlap=self.sets.n_overlap[s],
                    background=len(self.background),
                    n_atoms=len(fit.atoms),
                    n=len(part.rows),
                    split="test",
                )
            )
        rows, best = tables
        rows["top_genes"] = self._top_genes(fit.test, rows)
        rows = rows.assign(
            **clusters_of(
                rows["position"].to_numpy(),
                rows["set"].to_numpy(),
                rows["log10_p"].to_numpy(),
                self.sets,
                config.redundant_above,
                self.ontology,
            )
        )
        best["term_rank"] = rank[terms]
        # The best of as many permuted codes as there were atoms (and signs) to choose from, taken as independent.
        tried = len(fit.atoms) * (2 if fit.signed else 1)
        present = np.unique(part.strata(fit.test))
        tail = (1.0 - config.confidence) / 2.0
        for name, u in (("null", 0.5), ("null_low", tail), ("null_high", 1.0 - tail)):
            at = norm.isf(-np.expm1(np.log(u) / tried))
            best[name] = part.null.quantile(present, at)[:, terms].max(axis=0)
        # A negated code puts the genes in the reverse order.
        turned = best["sign"].to_numpy() < 0
        low, high = best["low"].to_numpy(), best["high"].to_numpy()
        best["low"], best["high"] = np.where(turned, 1.0 - high, low), np.where(turned, 1.0 - low, high)
        for name in ("effect", "effect_selection"):
            best[name] = np.where(turned, 1.0 - best[name], best[name])
        for name in ("z", "correlation"):
            best[name] = best[name] * best["sign"]
        return rows, best.join(self._control(fit, best)).join(self._coherence(fit, best))

    def _errors(self, codes: sparse.csc_matrix, pairs: pd.DataFrame) -> np.ndarray:
        """Bootstrap standard error, over groups of cells, of the effect of (position, set) pairs sorted by position.

        Resampling cells adds noise to the ranking of genes, which pulls the drawn AUROCs towards 0.5: their spread is
        used, not their percentiles.
        """
        config, expression = self.config, self.parts["test"].expression
        values = expression.values
        number, _ = group_codes(self.obs["group"].astype(str))
        counts = bootstrap_groups(number, config.gene_set_bootstraps, seeded(config.seed, "genes", "bootstrap"))
        weights = counts[:, number].astype(np.float32)
        weights /= weights.sum(axis=1, keepdims=True)
        mean = weights @ values
        square = weights @ np.square(values) - np.square(mean)
        scale = np.where(square > 1e-6, 1.0 / np.sqrt(np.maximum(square, 1e-6)), 0.0)
        members = self.sets.members
        n_genes = values.shape[1]
        errors = []
        for position, sets in pairs.groupby("position", sort=True)["set"]:
            # Only the cells on which the atom is active contribute.
            cells = codes.indices[codes.indptr[position] : codes.indptr[position + 1]]
            weighted = weights[:, cells] * codes.data[codes.indptr[position] : codes.indptr[position + 1]]
            association = (weighted @ values[cells] - weighted.sum(axis=1, keepdims=True) * mean) * scale
            ordered = np.sort(association, axis=1)
            chosen = members[sets.to_numpy()]
            # Genes are shared between sets, and each is looked up once.
            genes, where = np.unique(chosen.indices, return_inverse=True)
            inside = association[:, genes]
            ranks = np.stack([np.searchsorted(ordered[draw], inside[draw]) for draw in range(len(weights))])
            n1 = np.diff(chosen.indptr).astype(np.float64)
            drawn = np.add.reduceat(ranks[:, where] + 0.5, chosen.indptr[:-1], axis=1)
            drawn = (drawn - n1**2 / 2.0) / (n1 * (n_genes - n1))
            # A draw without any cell on which the atom is active ranks nothing.
            used = np.ptp(association, axis=1) > 0
            errors.append(drawn[used].std(axis=0, ddof=1) if used.sum() > 1 else np.full(len(n1), np.nan))
        return np.concatenate(errors)

    def _top_genes(self, codes: sparse.csc_matrix, rows: pd.DataFrame) -> np.ndarray:
        """Genes of the set that are most associated with the code, in the direction of the effect."""
        expression = self.parts["test"].expression
        positions = np.unique(rows["position"])
        association = expression.association(codes[:, positions].toarray())
        place = dict(zip(positions, range(len(positions))))
        members = self.sets.members
        names = []
        for position, s, effect in zip(rows["position"], rows["set"], rows["effect"]):
            genes = members.indices[members.indptr[s] : members.indptr[s + 1]]
            value = association[place[position], genes] * (1.0 if effect >= 0.5 else -1.0)
            names.append(",".join(self.background[genes[np.argsort(-value, kind="stable")[:TOP_GENES]]]))
        return np.array(names, dtype=object)

    def _coherence(self, fit: _Fit, best: pd.DataFrame) -> pd.DataFrame:
        """Interval and null of the correlation of the best atoms' codes with the sets' scores.

        The null is the largest correlation over as many permuted codes as there were atoms (and signs), its median and
        its interval: by Fisher's z, 1/√(n − 3) the deviation of one, taken as independent.
        """
        import pandas as pd
        from scipy.stats import norm

        config = self.config
        number, _ = group_codes(self.obs["group"].astype(str))
        counts = bootstrap_groups(number, config.bootstraps, seeded(config.seed, "genes", "correlation"))
        weights = counts[:, number].astype(np.float64)
        weights /= weights.sum(axis=1, keepdims=True)
        x = fit.test[:, best["position"].to_numpy()].toarray().astype(np.float64)
        y = self.parts["test"].expression.scores[:, best["set"].to_numpy()].astype(np.float64)
        mean_x, mean_y = weights @ x, weights @ y
        variance = (weights @ x**2 - mean_x**2) * (weights @ y**2 - mean_y**2)
        with np.errstate(divide="ignore", invalid="ignore"):
            drawn = (weights @ (x * y) - mean_x * mean_y) / np.sqrt(variance)
        low, high = interval(drawn * best["sign"].to_numpy(), config.confidence)
        tried = len(fit.atoms) * (2 if fit.signed else 1)
        tail = (1.0 - config.confidence) / 2.0
        found = {"correlation_low": low, "correlation_high": high}
        for name, u in (("null", 0.5), ("null_low", tail), ("null_high", 1.0 - tail)):
            at = norm.isf(-np.expm1(np.log(u) / tried))
            found[f"correlation_{name}"] = np.tanh(at / np.sqrt(max(len(x) - 3, 1)))
        return pd.DataFrame(found, index=best.index)

    def _control(self, fit: _Fit, best: pd.DataFrame) -> pd.DataFrame:
        """How well the best atoms tell non-control from control cells of the test part, with interval and null."""
        import pandas as pd

        config = self.config
        label = ~self.obs["control"].to_numpy(dtype=bool)
        ranked = RankedCodes(fit.test)
        seed = seeded(config.seed, "genes", "control")
        number, _ = group_codes(self.obs["group"].astype(str))
        auroc = ranked.auroc(label)[:, 0]
        counts = bootstrap_groups(number, config.bootstraps, seed)
        drawn = ranked.auroc_draws(label, counts[:, number])[:, :, 0]
        low, high = interval(drawn, config.confidence)
        groups = None if len(np.unique(number)) == len(number) else number
        permuted = permutations(label, config.permutations, [*seed, 1], groups)
        extreme = np.abs(ranked.auroc(permuted.T) - 0.5).max(axis=0) if label.any() and not label.all() else np.nan
        at, turned = best["position"].to_numpy(), best["sign"].to_numpy() < 0
        return pd.DataFrame(
            {
                "auroc_control": np.where(turned, 1.0 - auroc[at], auroc[at]),
                "auroc_control_low": np.where(turned, 1.0 - high[at], low[at]),
                "auroc_control_high": np.where(turned, 1.0 - low[at], high[at]),
                "auroc_control_null": 0.5 + np.quantile(extreme, config.confidence),
            },
            index=best.index,
        )
