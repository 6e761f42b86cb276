"""Labels, and the orchestrator that writes all tables."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats

from conceptome.config.evidence import Enrichment
from conceptome.enrichment import TABLES, enrich
from conceptome.enrichment.labels import choose, choose_ordinal, enrich_labels, enrich_trends
from conceptome.errors import DataError

N = 600


class Coded:
    """Codes as the codes room gives them, as far as enrichment needs them."""

    def __init__(self, matrix):
        self.matrix = sparse.csr_matrix(np.asarray(matrix, dtype=np.float32))

    def to_scipy(self):
        return self.matrix


@pytest.fixture(scope="module")
def samples():
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(
        {
            "control": rng.random(N) < 0.5,
            "group": [f"plate{i % 30}" for i in range(N)],
            "split": np.where(np.arange(N) % 30 < 15, "train", np.where(np.arange(N) % 30 < 20, "validation", "test")),
            "kind": rng.choice(["a", "b", "c"], N),
            "dose": rng.choice([0.5, 2.0], N),
        },
        index=[f"s{i}" for i in range(N)],
    )
    obs.loc[obs.index[:4], "kind"] = "rare"
    obs.loc[obs.index[10:20], "kind"] = None
    card = {
        "modality": "wells",
        "labels": {
            "kind": {"kind": "categorical", "role": "biological"},
            "dose": {"kind": "ordinal", "role": "technical"},
            "size": {"kind": "numeric"},
        },
    }
    codes = np.maximum(rng.standard_normal((N, 6)), 0) * (rng.random((N, 6)) < 0.3)
    codes[:, 2] = np.where((obs["kind"] == "b") & (rng.random(N) < 0.8), 1.0 + rng.random(N), 0.0)
    codes[:, 5] = 0.0
    return obs, card, codes


def config(**changes) -> Enrichment:
    return Enrichment(
        **{"bootstraps": 60, "permutations": 40, "labels": ["kind", "dose"], "perturbations": ["kind"], **changes}
    )


def test_planted_label_atom(samples):
    obs, card, codes = samples
    labels = choose(obs, card, config())
    # The dose is ordinal: it is no set of classes.
    assert [label.names for label in labels] == [["a", "b", "c"]]
    train = (obs["split"] == "train").to_numpy()
    table = enrich_labels(sparse.csr_matrix(codes.astype(np.float32)), labels, train, config())
    top = table.loc[table["q"].idxmin()]
    assert (top["atom"], top["label"], top["term"], top["role"]) == (2, "kind", "b", "biological")
    assert top["low"] > top["null_auroc"] > 0.5
    assert top["odds_low"] > 10
    assert top["low"] <= top["auroc"] <= top["high"]
    assert 5 not in set(table["atom"])
    others = table[table["atom"] != 2]
    assert (others["q"] > 0.01).all()
    assert ((others["auroc"] - 0.5).abs() + 0.5 < others["null_auroc"] + 0.05).all()


def test_numbers_agree_with_scipy(samples):
    obs, card, codes = samples
    label = choose(obs, card, config())[0]
    assert (obs["split"].iloc[label.rows] == "test").all()
    train = (obs["split"] == "train").to_numpy()
    table = enrich_labels(sparse.csr_matrix(codes.astype(np.float32)), [label], train, config())
    row = table[(table["atom"] == 0) & (table["term"] == "c")].iloc[0]
    test = obs[(obs["split"] == "test") & obs["kind"].notna()]
    code = codes[obs.index.get_indexer(test.index), 0].astype(np.float32)
    inside = (test["kind"] == "c").to_numpy()
    by_hand = stats.mannwhitneyu(code[inside], code[~inside], method="asymptotic")
    assert row["auroc"] == pytest.approx(by_hand.statistic / (inside.sum() * (~inside).sum()))
    assert row["p"] == pytest.approx(by_hand.pvalue)
    counts = [((code > 0) == a)[inside == b].sum() + 0.5 for a in (True, False) for b in (True, False)]
    assert row["odds_ratio"] == pytest.approx(counts[0] * counts[3] / (counts[1] * counts[2]))
    assert (row["n"], row["n_term"]) == (len(test), inside.sum())
    table = np.array([[((code > 0) == a)[inside == b].sum() for b in (True, False)] for a in (True, False)])
    tails = [stats.fisher_exact(table, side).pvalue for side in ("greater", "less")]
    assert row["p_fisher"] == pytest.approx(min(1.0, 2 * min(tails)))
    assert row["log_odds"] == pytest.approx(np.log(row["odds_ratio"]))
    assert row["log_odds_low"] <= row["log_odds"] <= row["log_odds_high"]
    for name in ("p", "q", "p_fisher", "q_fisher"):
        assert row["log10_" + name] == pytest.approx(np.log10(row[name]))


def test_the_unit_follows_the_label(samples):
    obs, _, codes = samples
    plates = obs["group"].str[5:].astype(int)
    obs = obs.assign(side=np.where(plates % 2, "left", "right"), mostly=np.where(plates % 2, "left", "right"))
    obs.loc[obs.index[::25], "mostly"] = "left"
    described = {name: {"kind": "categorical"} for name in ("side", "mostly", "kind")}
    labels = choose(obs, {"labels": described}, config(labels=["side", "mostly", "kind"]))
    train = (obs["split"] == "train").to_numpy()
    matrix = sparse.csr_matrix(codes.astype(np.float32))
    table = enrich_labels(matrix, labels, train, config())
    assert dict(zip(table["label"], table["unit"])) == {"side": "group", "mostly": "group", "kind": "sample"}
    assert set(table["n_groups"]) == {10}
    # Ten plates, five on either side: no p below 2 of 252 ways.
    assert table.loc[table["label"] == "side", "p"].min() >= 2 / 252 - 1e-12
    for unit in ("group", "sample"):
        assert set(enrich_labels(matrix, labels, train, config(label_unit=unit))["unit"]) == {unit}
    # Where every sample is its own group there is nothing to move together.
    single = choose(obs.assign(group=obs.index), {"labels": described}, config(labels=["side"]))
    assert set(enrich_labels(matrix, single, train, config())["unit"]) == {"sample"}


def test_an_ordinal_label_is_a_trend(samples):
    obs, card, codes = samples
    rng = np.random.default_rng(1)
    dose = rng.choice([0.1, 1.0, 10.0, 100.0], N)
    codes = codes.copy()
    # More with the dose, but in no straight line; and less with it.
    codes[:, 0] = np.maximum(np.log10(dose) ** 3 + rng.standard_normal(N), 0)
    codes[:, 1] = np.maximum(2.0 - np.log10(dose) + rng.standard_normal(N), 0)
    labels = choose_ordinal(obs.assign(dose=dose), card, config())
    assert [(label.name, label.role, len(np.unique(label.values))) for label in labels] == [("dose", "technical", 4)]
    table = enrich_trends(sparse.csr_matrix(codes.astype(np.float32)), labels, config()).set_index("atom")
    assert list(table.index) == [0, 1, 2, 3, 4]
    by_hand = stats.spearmanr(codes[labels[0].rows, 0].astype(np.float32), dose[labels[0].rows]).statistic
    assert table.loc[0, "effect"] == pytest.approx(by_hand)
    assert table.loc[0, "low"] > table.loc[0, "null_high"] > 0
    assert table.loc[1, "high"] < table.loc[1, "null_low"] < 0
    assert (table.loc[[0, 1], "q"] < 0.001).all()
    assert (table.loc[[2, 3, 4], "q"] > 0.05).all()
    assert np.log10(table["q"]).to_numpy() == pytest.approx(table["log10_q"].to_numpy())
    assert set(table["statistic"]) == {"spearman"}
    pairs = enrich_trends(sparse.csr_matrix(codes.astype(np.float32)), labels, config(trend="kendall"))
    assert set(pairs["statistic"]) == {"kendall"}
    by_hand = stats.kendalltau(codes[labels[0].rows, 0].astype(np.float32), dose[labels[0].rows]).statistic
    assert pairs["effect"].iloc[0] == pytest.approx(by_hand)
    assert choose_ordinal(obs.assign(dose=1.0), card, config()) == []


def test_wrong_labels_are_refused(samples):
    obs, card, _ = samples
    with pytest.raises(DataError, match="label 'colour' is not in the data set"):
        choose(obs, card, config(labels=["colour"]))
    with pytest.raises(DataError, match="label 'size' is numeric"):
        choose(obs.assign(size=1.0), card, config(labels=["size"]))


def test_every_table_is_written(samples, tmp_path):
    obs, card, codes = samples
    dataset = SimpleNamespace(card=card, name="wells")
    fits = {("topk", 0): Coded(codes), ("topk", 1): Coded(codes), ("pca", 0): Coded(codes - 0.1)}
    for folder in ("one", "two"):
        enrich(dataset, obs, fits, config(), tmp_path / folder / "d" / "m" / "w", methods={"topk": "TOPK"})
    for name, columns in TABLES.items():
        paths = [tmp_path / folder / "d" / "m" / "w" / f"{name}.parquet" for folder in ("one", "two")]
        assert paths[0].read_bytes() == paths[1].read_bytes()
        assert list(pd.read_parquet(paths[0]).columns) == list(columns)
    table = pd.read_parquet(tmp_path / "one" / "d" / "m" / "w" / "labels.parquet")
    assert set(zip(table["dictionary"], table["method"], table["seed"])) == {
        ("topk", "TOPK", 0),
        ("topk", "TOPK", 1),
        ("pca", "pca", 0),
    }
    assert (table["dataset"] + table["model"] + table["whitening"] == "dmw").all()
    assert table.loc[table["dictionary"] == "topk", "q"].notna().all()
    trends = pd.read_parquet(tmp_path / "one" / "d" / "m" / "w" / "label_trends.parquet")
    assert set(trends["label"]) == {"dose"}
    perturbed = pd.read_parquet(tmp_path / "one" / "d" / "m" / "w" / "perturbations.parquet")
    assert set(perturbed["term"]) == {"a", "b", "c"}


def test_dictionaries_can_be_left_out(samples, tmp_path):
    obs, card, codes = samples
    fits = {("topk", 0): Coded(codes), ("pca", 0): Coded(codes)}
    enrich(SimpleNamespace(card=card), obs, fits, config(dictionaries=["pca"]), tmp_path / "d" / "m" / "w")
    assert set(pd.read_parquet(tmp_path / "d" / "m" / "w" / "labels.parquet")["dictionary"]) == {"pca"}


def test_what_does_not_fit_is_refused(samples, tmp_path):
    obs, card, codes = samples
    dataset = SimpleNamespace(card=card)
    with pytest.raises(DataError, match="needs single cells, but the data set holds wells"):
        enrich(dataset, obs, {}, config(), tmp_path, gene_sets={"c": {"s": ["A"]}})
    with pytest.raises(DataError, match="needs proteins, but the data set holds wells"):
        enrich(dataset, obs, {}, config(residues=True), tmp_path)
    with pytest.raises(DataError, match="have 10 rows, but there are 600 samples"):
        enrich(dataset, obs, {("topk", 0): Coded(codes[:10])}, config(), tmp_path)
    with pytest.raises(DataError, match="no sample is in the test split"):
        enrich(dataset, obs.assign(split="train"), {}, config(), tmp_path)
