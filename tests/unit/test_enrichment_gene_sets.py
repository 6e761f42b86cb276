"""Gene sets: a planted programme is found, permuted codes find nothing, and the reasons for the calibration hold."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats

from conceptome.config.evidence import Enrichment
from conceptome.enrichment.gene_sets import Expression, GeneSets, tail_inflation
from conceptome.enrichment.gmt import index_sets, read_gmt
from conceptome.errors import DataError

N, G, GROUPS = 500, 600, 12


def config(**changes) -> Enrichment:
    return Enrichment(**{"null_draws": 128, "bootstraps": 50, "permutations": 20, "min_genes": 5, **changes})


@pytest.fixture(scope="module")
def cells():
    """Cells with 12 modules of co-expressed genes; module 0 answers to the stimulus."""
    rng = np.random.default_rng(0)
    control = np.arange(N) % 2 == 0
    factors = rng.standard_normal((N, GROUPS))
    factors[:, 0] = np.where(control, -1.0, 1.0) + 0.3 * rng.standard_normal(N)
    expression = rng.standard_normal((N, G)) + 4.0
    for group in range(GROUPS):
        expression[:, group * 30 : (group + 1) * 30] += 0.7 * factors[:, [group]]
    expression = np.maximum(expression, 0.0).astype(np.float32)
    names = [f"G{i}" for i in range(G)]
    data = SimpleNamespace(X=sparse.csr_matrix(expression), var_names=pd.Index(names))
    obs = pd.DataFrame(
        {
            "control": control,
            "group": [f"c{i}" for i in range(N)],
            "split": np.where(np.arange(N) % 5 < 3, "train", np.where(np.arange(N) % 5 == 3, "validation", "test")),
        },
        index=[f"c{i}" for i in range(N)],
    )
    modules = {f"module {g}": names[g * 30 : (g + 1) * 30] for g in range(GROUPS)}
    mixed = {f"mixed {i}": list(rng.choice(names, 30, replace=False)) for i in range(60)}
    return data, obs, {"planted": modules, "random": mixed}, factors


def run(cells, fits, settings=None):
    data, obs, sets, _ = cells
    genes = GeneSets(data, obs, sets, settings or config())
    for key, codes in fits.items():
        genes.add(key, sparse.csr_matrix(np.asarray(codes, dtype=np.float32)), key[0])
    found = genes.run()
    return tuple(pd.concat(found[name], ignore_index=True) for name in ("gene_sets", "gene_sets_best"))


def test_planted_programme_is_found_by_itself(cells):
    _, _, sets, factors = cells
    rng = np.random.default_rng(1)
    codes = np.maximum(rng.standard_normal((N, 8)), 0)
    codes[:, 3] = np.maximum(factors[:, 0], 0)
    rows, best = run(cells, {("good", 0): codes})
    top = rows.loc[rows["q"].idxmin()]
    assert (top["atom"], top["term"]) == (3, "module 0")
    assert top["q"] < 0.001
    assert top["effect"] > 0.95
    assert top["low"] <= top["effect"] <= top["high"]
    assert set(top["top_genes"].split(",")) <= set(sets["planted"]["module 0"])
    found = best[best["term"] == "module 0"].iloc[0]
    assert found["top_term"]
    assert found["term_rank"] == 1
    assert found["atom"] == 3
    assert found["low"] > found["null_high"]
    assert found["auroc_control"] > 0.95 > found["auroc_control_null"]
    assert found["correlation_low"] > found["correlation_null"]


def test_permuted_codes_find_nothing_where_the_naive_test_does(cells):
    rng = np.random.default_rng(2)
    found, naive, tests = [], 0, 0
    for seed in range(10):
        codes = np.maximum(rng.standard_normal((N, 12)), 0) * (rng.random((N, 12)) < 0.4)
        rows, _ = run(cells, {("null", seed): codes}, config(max_terms=1000, seed=seed))
        found.append((rows["q"] < 0.05).any())
        naive += (rows["p_naive"] < 0.01).sum()
        tests += len(rows)
    # The family-wise error is 5 %; of 10 families 3 or more with a discovery has a probability of 1 %.
    assert sum(found) <= 2
    # Genes of a module move together, so the test that takes them as independent is wrong far too often.
    assert naive > 0.05 * tests


def test_scores_of_null_codes_are_standard_normal(cells):
    data, obs, sets, _ = cells
    genes = GeneSets(data, obs, sets, config(null_draws=400))
    rng = np.random.default_rng(3)
    genes.add(("a", 0), sparse.csr_matrix(np.maximum(rng.standard_normal((N, 40)), 0).astype(np.float32)), "a")
    part = genes.parts["test"]
    part.calibrate([genes.fits[0].test], genes.config, [0])
    fresh = sparse.csc_matrix(np.maximum(rng.standard_normal((len(part.rows), 400)), 0).astype(np.float32))
    swept = genes._sweep(fresh, part)
    z = part.null.z(swept.effect, swept.coherence, part.strata(fresh))
    assert abs(z.mean()) < 0.05
    assert 0.9 < z.std() < 1.1
    assert 0.035 < (2 * stats.norm.sf(np.abs(z)) < 0.05).mean() < 0.06


def test_effect_is_the_auroc_of_the_association(cells):
    data, _, sets, _ = cells
    index = index_sets(sets, list(data.var_names), 5, 500)
    expression = Expression(data.X, index)
    code = np.random.default_rng(4).random((N, 2))
    association = expression.association(code)
    by_hand = [[stats.pearsonr(code[:, a], data.X.toarray()[:, g]).statistic for g in range(G)] for a in range(2)]
    np.testing.assert_allclose(association, by_hand, atol=1e-5)
    effects = expression.effects(association)
    for s in (0, 20):
        inside = index.members[s].toarray()[0] > 0
        u = stats.mannwhitneyu(association[1][inside], association[1][~inside]).statistic
        assert effects[1, s] == pytest.approx(u / (inside.sum() * (~inside).sum()), abs=1e-5)


def test_signed_codes_may_point_either_way_and_others_not(cells):
    factors = cells[3]
    signed = -factors[:, :4]
    one_sided = np.maximum(-factors[:, :4], 0)
    _, best = run(cells, {("signed", 0): signed, ("one-sided", 0): one_sided})
    best = best[best["term"] == "module 0"].set_index("dictionary")
    assert best.loc["signed", "sign"] == -1
    assert best.loc["signed", "effect"] > 0.95
    assert best.loc["signed", "low"] <= best.loc["signed", "effect"] <= best.loc["signed", "high"]
    assert best.loc["signed", "auroc_control"] > 0.95
    assert best.loc["one-sided", "sign"] == 1
    assert best.loc["one-sided", "effect"] < 0.7


def test_equal_codes_are_tested_once_and_silent_atoms_are_left_out(cells):
    codes = np.zeros((N, 3))
    codes[:, 0] = np.random.default_rng(5).random(N)
    codes[:4, 1] = 1.0
    data, obs, sets, _ = cells
    genes = GeneSets(data, obs, sets, config())
    for seed in (0, 1):
        genes.add(("pca", seed), sparse.csr_matrix(codes.astype(np.float32)), "same")
    rows = genes.run()["gene_sets"]
    assert len(genes.fits) == 1
    assert sorted({(frame["dictionary"].iloc[0], frame["seed"].iloc[0]) for frame in rows}) == [("pca", 0), ("pca", 1)]
    assert set(pd.concat(rows)["atom"]) == {0}
    assert (pd.concat(rows)["n_atoms"] == 1).all()


def test_tail_inflation_sees_heavy_tails():
    rng = np.random.default_rng(6)
    assert tail_inflation(rng.standard_normal(200_000)) < 1.03
    assert tail_inflation(rng.standard_t(4, 200_000) / np.sqrt(2.0)) > 1.3
    assert tail_inflation(np.array([100.0])) == 1.0


def test_p_and_q_stand_in_log_space_for_every_test(cells):
    factors = cells[3]
    rows, best = run(cells, {("good", 0): np.maximum(factors[:, :3], 0)}, config(max_terms=1000))
    for frame in (rows, best):
        for test in ("", "_naive", "_camera", "_ora"):
            for kind in ("p", "q"):
                np.testing.assert_allclose(np.log10(frame[kind + test]), frame["log10_" + kind + test], atol=1e-9)
            assert (frame["log10_q" + test] >= frame["log10_p" + test] - 1e-12).all()
    top = best[best["term"] == "module 0"].iloc[0]
    # The correction for correlated genes takes most of its claim from the naive test.
    assert top["log10_p_naive"] < top["log10_p_camera"] < -2
    assert (top["ora_genes"], top["ora_overlap"]) == (100, 30)
    assert top["ora_odds"] > 100
    assert top["ora_odds"] > top["ora_odds_low"] > 20
    assert top["ora_odds_high"] > top["ora_odds"]
    assert top["log10_p_ora"] == pytest.approx(np.log10(2 * stats.hypergeom.sf(29, G, 30, 100)))


def test_programmes_are_the_genes_that_go_with_the_atom(cells):
    data, obs, sets, factors = cells
    rng = np.random.default_rng(7)
    codes = np.stack([np.maximum(factors[:, 0], 0), np.maximum(rng.standard_normal(N), 0)], axis=1)
    genes = GeneSets(data, obs, sets, config(programme_genes=6))
    genes.add(("a", 0), sparse.csr_matrix(codes.astype(np.float32)), "a")
    table = genes.run()["gene_programmes"][0]
    assert list(table.groupby(["atom", "direction"]).size()) == [6, 6, 6, 6]
    up = table[(table["atom"] == 0) & (table["direction"] == "up")]
    assert set(up["gene"]) <= set(sets["planted"]["module 0"])
    assert (up["q"] < 1e-3).all()
    assert (up["effect"] > up["null_effect"]).all()
    assert up["effect_selection"].is_monotonic_decreasing
    test = (obs["split"] == "test").to_numpy()
    gene = list(data.var_names).index(up["gene"].iloc[0])
    by_hand = stats.pearsonr(codes[test, 0], data.X.toarray()[test, gene]).statistic
    assert up["effect"].iloc[0] == pytest.approx(by_hand, abs=1e-4)
    assert up["low"].iloc[0] < by_hand < up["high"].iloc[0]
    # The random atom's genes, chosen on other cells, do not stand the test.
    assert (table.loc[table["atom"] == 1, "q"] > 0.05).all()


def test_cells_of_a_group_move_together_in_the_null(cells):
    data, obs, sets, _ = cells
    grouped = obs.assign(group=[f"donor{i % 40}" for i in range(N)])
    part = GeneSets(data, grouped, sets, config()).parts["test"]
    donors = part.groups
    number = np.unique(donors, return_inverse=True)[1].astype(float)
    moved = part.permuted(np.stack([number] * 5, axis=1), np.random.default_rng(0))
    assert (np.sort(moved, axis=0) == np.sort(number)[:, None]).all()
    assert (moved != number[:, None]).any()
    sizes = [len(np.unique(moved[donors == donor, column])) for donor in np.unique(donors) for column in range(5)]
    # All cells of a donor get those of one other donor, but for seams between groups of unequal size.
    assert np.mean(sizes) < 1.5
    assert GeneSets(data, obs, sets, config()).parts["test"].groups is None


def test_a_collection_of_ones_own_stands_beside_the_others(cells, tmp_path):
    data, obs, sets, factors = cells
    # Targets of transcription factors with weights, as exports of such collections carry them.
    path = tmp_path / "factors.gmt"
    targets = {"TF-A": range(0, 25), "TF-B": range(35, 55), "TF-C": range(400, 430)}
    path.write_text("".join(f"{tf}\t\t" + "\t".join(f"G{g},1.0" for g in own) + "\n" for tf, own in targets.items()))
    genes = GeneSets(data, obs, {**sets, "transcription factors": read_gmt(path)}, config())
    genes.add(("a", 0), sparse.csr_matrix(np.maximum(factors[:, :2], 0).astype(np.float32)), "a")
    rows = genes.run()["gene_sets"][0]
    own = rows[(rows["collection"] == "transcription factors") & rows["top_term"]].set_index("atom")
    assert own.loc[[0, 1], "term"].tolist() == ["TF-A", "TF-B"]
    assert (own.loc[[0, 1], "q"] < 0.05).all()
    # Its genes are those of module 0: one finding, of which the better stands for both.
    pair = rows[(rows["atom"] == 0) & rows["term"].isin(["TF-A", "module 0"])]
    assert pair["cluster"].nunique() == 1
    assert pair["representative"].sum() == 1


def test_gmt_is_read(tmp_path):
    path = tmp_path / "sets.gmt"
    path.write_text("a (GO:1)\t\tX,1.0\tY\tX\nb\tR-1\tY\nb\tR-2\tZ\n\n")
    assert read_gmt(path) == {"a (GO:1)": ["X", "Y"], "b": ["Y"], "b (R-2)": ["Z"]}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"no genes\there\n", "line 1: a GMT line is name"),
        (b"a\tx\tG\na\tx\tG\na\tx\tG\n", "occurs twice"),
        (b"", "holds no gene set"),
        (b"\xff\xfe\x00a", "not a text file"),
    ],
)
def test_bad_gmt_is_refused(tmp_path, content, complaint):
    path = tmp_path / "bad.gmt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=complaint):
        read_gmt(path)


def test_size_bounds_count_genes_of_the_background():
    index = index_sets({"c": {"small": ["A", "Q"], "fits": ["A", "B", "Q"], "large": ["A", "B", "C"]}}, "ABCD", 2, 2)
    assert list(index.term) == ["fits"]
    assert (index.n_genes[0], index.n_overlap[0]) == (3, 2)


def test_foreign_symbols_are_refused(cells):
    data, obs, _, _ = cells
    with pytest.raises(DataError, match="0 of 2 symbols"):
        GeneSets(data, obs, {"mouse": {"a": ["Isg15", "Ifit1"]}}, config())


def test_unexpressed_genes_are_refused(cells):
    _, obs, sets, _ = cells
    empty = SimpleNamespace(
        X=sparse.csr_matrix((N, G), dtype=np.float32), var_names=pd.Index([f"G{i}" for i in range(G)])
    )
    with pytest.raises(DataError, match="no gene is expressed"):
        GeneSets(empty, obs, sets, config())
