"""Gene set tests: equal to literal ones; calibrated where they claim to be, and shown where they are not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from conceptome.config.evidence import Enrichment
from conceptome.enrichment.gene_sets import Expression, Part
from conceptome.enrichment.gmt import index_sets
from conceptome.enrichment.set_tests import (
    camera_log10_p,
    naive_log10_p,
    ora_log10_p,
    ora_odds,
    rank_effects,
    residual_correlation,
    stable_order,
    top_overlap,
)
from conceptome.statistics import benjamini_hochberg, normal_log10_p

N, G, SIZE, MODULES = 150, 400, 25, 8


def names(genes) -> list[str]:
    return [f"G{gene}" for gene in genes]


@pytest.fixture(scope="module")
def correlated():
    """Cells whose genes come in modules with a correlation of about .3, sets that are modules, and mixed sets."""
    rng = np.random.default_rng(0)
    factors = rng.standard_normal((N, MODULES))
    expression = rng.standard_normal((N, G))
    for module in range(MODULES):
        expression[:, module * SIZE : (module + 1) * SIZE] += 0.65 * factors[:, [module]]
    modules = {f"module {m}": names(range(m * SIZE, (m + 1) * SIZE)) for m in range(MODULES)}
    mixed = {f"mixed {i}": names(rng.choice(G, SIZE, replace=False)) for i in range(12)}
    sets = index_sets({"planted": modules, "mixed": mixed}, names(range(G)), 5, 500)
    return expression.astype(np.float32), sets, factors


def log10_p_of(expression, sets, codes, part):
    """log10 p (a, s) by test."""
    association = expression.association(codes)
    effects = rank_effects(association, sets)
    residual = residual_correlation(association, sets, expression.spread)
    found = {
        "naive": naive_log10_p(effects, sets, G),
        "camera": camera_log10_p(effects, residual, sets, G, len(codes) - 2),
        "ora": np.minimum(np.log10(2) + ora_log10_p(top_overlap(association, sets, 40), sets, G, 40), 0.0),
    }
    stratum = np.zeros(codes.shape[1], dtype=np.int64)
    return found | {"permuted": normal_log10_p(part.null.z(effects, expression.coherence(codes), stratum))}


@pytest.fixture(scope="module")
def calibrated(correlated):
    """Expression and the null of permuted codes, from codes of their own."""
    from scipy import sparse

    matrix, sets, _ = correlated
    expression = Expression(matrix, sets)
    part = Part(np.arange(N), expression, 40, np.arange(N))
    fit = sparse.csc_matrix(np.random.default_rng(5).random((N, 20)).astype(np.float32))
    part.calibrate([fit], Enrichment(null_draws=400), [0])
    return expression, part


def test_permuted_labels_are_discovered_only_where_genes_are_taken_as_independent(correlated, calibrated):
    expression, part = calibrated
    codes = np.random.default_rng(6).random((N, 200)).astype(np.float32)
    found = log10_p_of(expression, correlated[1], codes, part)
    families = {
        name: sum(bool((benjamini_hochberg(10**row) < 0.05).any()) for row in log10_p)
        for name, log10_p in found.items()
    }
    # 200 permutations, a family each: 10 expected, 21 or fewer with a probability of .9997.
    assert families["permuted"] <= 21
    assert families["camera"] <= 21
    # Genes of a module move together, and both tests that ignore it call sets all the time.
    assert families["naive"] > 100
    assert families["ora"] > 42
    # Not by staying silent: p values of the permuted codes are uniform where they should be.
    assert 0.03 < (found["permuted"] < np.log10(0.05)).mean() < 0.07


def test_planted_programmes_are_found_by_the_calibrated_tests(correlated, calibrated):
    expression, part = calibrated
    _, sets, factors = correlated
    rng = np.random.default_rng(7)
    hits = {"permuted": 0, "camera": 0}
    for module in range(MODULES):
        codes = (factors[:, [module]] + 0.8 * rng.standard_normal((N, 25))).astype(np.float32)
        found = log10_p_of(expression, sets, codes, part)
        for name in hits:
            hits[name] += sum(benjamini_hochberg(10**row)[module] < 0.05 for row in found[name])
    assert hits["permuted"] / 200 >= 0.8
    assert hits["camera"] / 200 >= 0.8


def test_camera_agrees_with_a_literal_one(correlated):
    matrix, sets, factors = correlated
    expression = Expression(matrix, sets)
    code = (factors[:, 0] + np.random.default_rng(8).standard_normal(N)).astype(np.float32)
    association = expression.association(code[:, None])
    correlation = residual_correlation(association, sets, expression.spread)[0]
    # By hand: regress the code out of every standardised gene, then covariances over variances of what is left.
    y = stats.zscore(matrix.astype(np.float64), axis=0)
    x = stats.zscore(code.astype(np.float64))
    residual = y - np.outer(x, x @ y / N)
    for s in (0, 3, 12):
        inside = sets.members[s].indices
        left = np.cov(residual[:, inside].T, bias=True)
        off = (left.sum() - np.trace(left)) / (SIZE * (SIZE - 1))
        assert correlation[s] == pytest.approx(off / (np.trace(left) / SIZE), abs=1e-5)
        # Wu and Smyth take the mean of the residuals' correlations: almost the same number.
        plain = np.corrcoef(residual[:, inside].T)
        assert correlation[s] == pytest.approx((plain.sum() - SIZE) / (SIZE * (SIZE - 1)), abs=0.02)
    effects = rank_effects(association, sets)
    # Without correlation the variance is the Mann-Whitney one, and Student's t replaces the normal.
    z = (abs(effects[0, 5] - 0.5) * SIZE * (G - SIZE) - 0.5) / np.sqrt(SIZE * (G - SIZE) * (G + 1) / 12)
    plain = camera_log10_p(effects, np.zeros_like(effects), sets, G, 30)
    assert 10 ** plain[0, 5] == pytest.approx(2 * stats.t.sf(z, 30))
    assert (camera_log10_p(effects, np.full_like(effects, 0.2), sets, G, 30) >= plain).all()


def test_variance_of_the_corrected_test_is_that_of_correlated_genes():
    rng = np.random.default_rng(9)
    size, others, rho = 12, 60, 0.3
    shared = rng.standard_normal((4000, 1))
    inside = np.sqrt(rho) * shared + np.sqrt(1 - rho) * rng.standard_normal((4000, size))
    values = np.concatenate([inside, rng.standard_normal((4000, others))], axis=1).astype(np.float32)
    sets = index_sets({"c": {"s": names(range(size))}}, names(range(size + others)), 2, 500)
    effects = rank_effects(values, sets)
    p = 10 ** camera_log10_p(effects, np.full_like(effects, rho), sets, size + others, 10_000)
    # The deviation that the formula stands for, against that of the draws.
    score = (np.abs(effects[0, 0] - 0.5) * size * others - 0.5) / (size * others) / stats.t.isf(p[0, 0] / 2, 70)
    assert score == pytest.approx(effects.std(), rel=0.03)
    assert 0.02 < (p < 0.05).mean() < 0.06
    assert (10 ** naive_log10_p(effects, sets, size + others) < 0.05).mean() > 0.2


def test_naive_and_over_representation_agree_with_scipy(correlated):
    _, sets, _ = correlated
    association = np.random.default_rng(10).standard_normal((3, G)).astype(np.float32)
    effects = rank_effects(association, sets)
    naive = naive_log10_p(effects, sets, G)
    overlap = top_overlap(association, sets, 40)
    log10_p = ora_log10_p(overlap, sets, G, 40)
    odds, low, high = ora_odds(overlap, sets.n_overlap, G, 40, 0.9)
    for a in range(3):
        top = set(np.argsort(-association[a])[:40])
        for s in (0, 9, 15):
            inside = np.isin(np.arange(G), sets.members[s].indices)
            by_hand = stats.mannwhitneyu(association[a][inside], association[a][~inside], method="asymptotic")
            assert effects[a, s] == pytest.approx(by_hand.statistic / (inside.sum() * (~inside).sum()), abs=1e-6)
            assert 10 ** naive[a, s] == pytest.approx(by_hand.pvalue, rel=1e-4)
            hit = len(top & set(np.flatnonzero(inside)))
            table = np.array([[hit, 40 - hit], [SIZE - hit, G - 40 - SIZE + hit]])
            assert overlap[a, s] == hit
            assert 10 ** log10_p[a, s] == pytest.approx(stats.fisher_exact(table, "greater").pvalue)
            half = table + 0.5
            assert odds[a, s] == pytest.approx(half[0, 0] * half[1, 1] / (half[0, 1] * half[1, 0]))
            reach = stats.norm.ppf(0.95) * np.sqrt((1 / half).sum())
            assert np.log([low[a, s], high[a, s]]) == pytest.approx(np.log(odds[a, s]) + np.array([-reach, reach]))


def test_equal_values_keep_their_order():
    values = np.random.default_rng(11).integers(-3, 4, (20, 300)).astype(np.float32) / 7
    values[values == 0] = np.where(np.arange((values == 0).sum()) % 2, 0.0, -0.0)
    assert (stable_order(values) == np.argsort(values, axis=1, kind="stable")).all()


def test_a_rank_test_does_not_underflow():
    sets = index_sets({"c": {"s": names(range(3000))}}, names(range(9000)), 2, 9000)
    found = naive_log10_p(rank_effects(-np.arange(9000, dtype=np.float32)[None], sets), sets, 9000)
    z = 0.5 * 3000 * 6000 / np.sqrt(3000 * 6000 * 9001 / 12)
    assert found[0, 0] == pytest.approx(-(z**2) / 2 / np.log(10), rel=0.01)
    assert found[0, 0] < -1000
