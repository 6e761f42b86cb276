"""Cards, descriptions and scores: planted truths are found and score 1, chance gets no evidence; explainers and "
"pages."""

import argparse
import json
import re
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import sparse

from conceptome.codes import Codes
from conceptome.config.evidence import Enrichment
from conceptome.config.explanations import Explainer, Explanations
from conceptome.config.run import resolve
from conceptome.errors import ConfigError, DataError
from conceptome.explanations import TABLES, explain, headline, write
from conceptome.explanations.claims import Activity, Claims, balanced_accuracy, choose, make_claims, overlap
from conceptome.explanations.describe import NOTHING, Claim, Evidence, describe
from conceptome.explanations.door import command, find
from conceptome.explanations.explainer import OpenAIExplainer, TemplateExplainer, make_explainer
from conceptome.explanations.pages import page_warnings, write_pages
from conceptome.explanations.scores import decoy_samples, rates, score
from conceptome.measures.space import Space
from conceptome.sources import load_sources
from conceptome.workflow import Plan

CONFIGURATION = Path(__file__).resolve().parents[2] / "config"
N = 900
CONFIG = Explanations(bootstraps=30, permutations=20, null_runs=3)
PLACE = {"dataset": "wells", "model": "profiles", "whitening": "none"}


def make_obs(groups=90, seed=0):
    rng = np.random.default_rng(seed)
    group = np.arange(N) % groups
    state = rng.choice(["x", "y", "z"], N)
    return pd.DataFrame(
        {
            "control": state == "x",
            "group": [f"g{each:03d}" for each in group],
            "split": np.array(["train", "train", "train", "validation", "test"])[group % 5],
            "state": state,
            "batch": np.where(group % 2 == 0, "one", "two"),
        },
        index=pd.Index([f"s{i}" for i in range(N)], name="sample_id"),
    )


LABELS = {"state": {"kind": "categorical", "role": "biological"}, "batch": {"kind": "categorical", "role": "technical"}}


def planted_codes(obs, seed=2):
    """Atom 0 is class y, 1 is batch two, 2 is random, 3 is silent, 4 is y on half of its samples, 5 is dense noise."""
    rng = np.random.default_rng(seed)
    y, two = (obs["state"] == "y").to_numpy(), (obs["batch"] == "two").to_numpy()
    active = np.stack(
        [y, two, rng.random(N) < 0.3, np.zeros(N, bool), y & (rng.random(N) < 0.5), np.ones(N, bool)], axis=1
    )
    return sparse.csr_matrix(np.where(active, rng.gamma(4, 0.5, active.shape) + 0.1, 0).astype(np.float32))


def make_space(obs, codes, **card):
    dataset = SimpleNamespace(card={"labels": LABELS, "modality": "wells"} | card, annotations=None, anndata=None)
    store = SimpleNamespace(obs=obs, shape=(len(obs), 4))
    atoms = np.zeros((codes.shape[1], 4), dtype=np.float32)
    fits = {("topk", seed): (SimpleNamespace(atoms=atoms, card={}), Codes(codes)) for seed in (0, 1)}
    return Space(dataset, store, None, fits, {"topk": "topk"}, PLACE)


@pytest.fixture(scope="module")
def obs():
    return make_obs()


@pytest.fixture(scope="module")
def tables(obs):
    space = make_space(obs, planted_codes(obs))
    stability = pd.DataFrame(
        {
            "dictionary": "topk",
            "seed_a": 0,
            "seed_b": 1,
            "atom": [0, 1, 2],
            "partner": [1, 0, 2],
            "cosine": [0.9, 0.8, 0.1],
        }
    ).assign(null_cosine=0.2)
    labels = pd.DataFrame(
        {"dictionary": "topk", "seed": 0, "atom": 0, "label": "state", "term": ["x", "y"], "auroc": [0.1, 1.0]}
        | {"low": 0.9, "high": 1.0, "null_auroc": 0.6, "odds_ratio": 99.0, "q": 1e-9}
    )
    evidence = {"labels": labels, "stability_atoms": stability}
    return explain(space, Enrichment(labels=["state", "batch"]), CONFIG, evidence=evidence)


def card(tables, atom, seed=0):
    frame = tables["cards"]
    return frame[(frame["atom"] == atom) & (frame["seed"] == seed)].iloc[0]


def test_an_atom_that_is_a_class_is_described_so_and_scores_one(tables):
    found = card(tables, 0)
    assert (found["claim_kind"], found["claim_source"], found["claim_term"]) == ("class", "state", "y")
    assert "marks samples whose state is y" in found["description"]
    for name in ("detection", "fuzzing", "precision", "recall", "specificity"):
        assert found[[name, f"{name}_low", f"{name}_high"]].tolist() == [1.0, 1.0, 1.0]
    assert found["detection_null"] < 0.95
    assert found["technical"] == "no"
    assert (found["label"], found["label_term"], found["label_auroc"]) == ("state", "y", 1.0)


def test_an_atom_of_a_batch_is_technical(tables):
    found = card(tables, 1)
    assert found["claim_term"] == "two"
    assert (found["technical"], found["technical_from"]) == ("yes", "label batch")
    assert found["description"].endswith(
        "; this may be technical; other seeds have it at cosine 0.80 (random atoms 0.20)."
    )


def test_a_variance_partition_decides_what_is_technical_where_there_is_one(obs):
    flags = pd.DataFrame({"dictionary": "topk", "seed": 0, "atom": [0, 1], "technical": [True, False]})
    evidence = {"variance_partition_atoms": flags}
    found = explain(make_space(obs, planted_codes(obs)), Enrichment(labels=["state"]), CONFIG, evidence=evidence)
    assert [card(found, atom)["technical"] for atom in (0, 1, 2)] == ["yes", "no", "unknown"]
    assert card(found, 0)["technical_from"] == "variance partition"
    assert card(found, 0)["description"].endswith("; this may be technical.")
    assert card(found, 0, seed=1)["technical"] == "no"  # no flags of that seed: by the label


def test_random_and_dense_atoms_have_no_evidence_and_silent_ones_are_silent(tables):
    for atom in (2, 5):
        found = card(tables, atom)
        assert NOTHING in found["description"]
        assert found["claim_kind"] is None
        assert np.isnan(found["detection"])
    assert card(tables, 5)["active_rule"] == "top 10 %"
    assert card(tables, 5)["firing_rate"] == pytest.approx(0.1, abs=0.005)
    assert "is silent on all 540 training samples" in card(tables, 3)["description"]
    assert json.loads(card(tables, 3)["top_samples"]) == []


def test_an_atom_of_half_a_class_has_full_recall_and_the_precision_that_counting_gives(obs, tables):
    found = card(tables, 4)
    test, y = ((obs[key] == value).to_numpy() for key, value in (("split", "test"), ("state", "y")))
    active = planted_codes(obs).toarray()[:, 4] > 0
    assert found["claim_term"] == "y"
    assert found["recall"] == 1.0
    assert found["precision"] == pytest.approx(active[test & y].mean())
    assert found["specificity"] == pytest.approx((~y)[test & ~active].mean())
    assert found["base_rate"] == pytest.approx(active[test].mean())
    assert found["precision_low"] < found["precision"] < found["precision_high"]
    # Its decoys are samples of other atoms: atom 0 is active on the other half of y, so that y tells less of it.
    assert found["fuzzing"] < found["detection"]


def test_the_summary_counts_live_atoms_and_means_over_described_ones(tables):
    frame = tables["explanations"].query("seed == 0").set_index("score")
    assert frame.loc["described", "value"] == pytest.approx(3 / 5)  # the silent atom is not counted
    assert (frame.loc["described", "n_atoms"], frame.loc["described", "n_described"]) == (5, 3)
    assert frame.loc["described", "null"] <= 0.2
    assert frame.loc["detection", "null"] < frame.loc["detection", "low"]
    detected = tables["cards"].query("seed == 0")["detection"].mean()
    assert frame.loc["detection", "value"] == pytest.approx(detected)
    assert headline(tables)["topk/described"] == pytest.approx(3 / 5)


def test_cards_are_of_every_atom_and_seed_and_stability_of_both_ends_of_a_pair(tables):
    for name, columns in TABLES.items():
        frame = tables[name]
        assert list(frame.columns) == list(columns)
        assert {column: str(kind) for column, kind in frame.dtypes.items()} == columns
    assert tables["cards"].groupby("seed")["atom"].apply(list).tolist() == [list(range(6))] * 2
    assert card(tables, 0)["stability"] == 0.9
    assert card(tables, 1, seed=1)["stability"] == 0.9
    assert np.isnan(card(tables, 4)["stability"])


def test_top_samples_are_the_largest_training_codes_of_different_groups(obs, tables):
    shown = json.loads(card(tables, 0)["top_samples"])
    codes = planted_codes(obs).toarray()[:, 0]
    train = (obs["split"] == "train").to_numpy()
    assert shown[0]["value"] == pytest.approx(codes[train].max(), abs=1e-4)
    assert len({obs.loc[sample["id"], "group"] for sample in shown}) == len(shown) == CONFIG.top_samples
    assert {sample["state"] for sample in shown} == {"y"}
    assert {obs.loc[sample["id"], "split"] for sample in shown} == {"train"}


def test_equal_inputs_give_equal_tables(obs, tables):
    again = explain(make_space(obs, planted_codes(obs)), Enrichment(labels=["state", "batch"]), CONFIG, evidence={})
    for column in ("description", "detection_null", "fuzzing_low", "precision_high"):
        same = tables["cards"][column] if column != "description" else again["cards"][column]
        pd.testing.assert_series_equal(again["cards"][column], same)


def test_nothing_but_chance_is_described_at_no_more_than_the_level():
    shares = []
    for seed in range(20):
        obs = make_obs(groups=45, seed=100 + seed)
        rng = np.random.default_rng(seed)
        # Whole groups are active or not: samples of a group are no independent witnesses.
        active = rng.random((45, 30))[np.arange(N) % 45] < 0.3
        claims = make_claims(obs, {"labels": LABELS}, Enrichment(labels=["state", "batch"]), CONFIG)
        found = choose(Activity.of(sparse.csr_matrix(active, dtype=np.float32), claims, CONFIG), claims, CONFIG, [seed])
        shares.append((found.primary >= 0).any())
    assert np.mean(shares) <= 0.3


def test_a_dense_atom_is_active_in_its_top_share_also_below_zero(obs):
    rng = np.random.default_rng(5)
    values = -rng.gamma(4, 0.5, (N, 2)).astype(np.float32)
    values[rng.random(N) < 0.05, 0] = 0  # the largest of all: zeros that are not stored
    claims = make_claims(obs, {"labels": LABELS}, Enrichment(labels=["state"]), CONFIG)
    found = Activity.of(sparse.csr_matrix(values), claims, CONFIG)
    assert found.dense.all()
    for split, rows in claims.rows.items():
        part = found.parts[split].toarray() > 0
        cut = np.quantile(values[claims.rows["train"]], 0.9, axis=0)
        np.testing.assert_array_equal(part, values[rows] > cut)


def test_overlap_and_rates_are_what_counting_gives():
    rng = np.random.default_rng(0)
    active, holds = rng.random((50, 4)) < 0.4, rng.random((50, 3)) < 0.5
    which = np.array([2, 0, 1, 2])
    expected = (active & holds[:, which]).sum(axis=0)
    np.testing.assert_array_equal(overlap(sparse.csc_matrix(active), holds, which), expected)
    order = rng.permutation(50)
    expected = (active & holds[order][:, which]).sum(axis=0)
    np.testing.assert_array_equal(overlap(sparse.csc_matrix(active), holds, which, order), expected)
    found = rates(*(np.array([float(x)]) for x in (6, 10, 8, 30, 2, 5)))
    assert found["detection"] == pytest.approx((0.6 + 18 / 20) / 2)
    assert found["fuzzing"] == pytest.approx((1 + 0.6 - 0.4) / 2)
    assert (found["precision"], found["recall"], found["specificity"]) == (6 / 8, 0.6, pytest.approx(0.9))
    assert balanced_accuracy(6, 10, 8, 30) == found["detection"]
    empty = rates(*(np.array([float(x)]) for x in (0, 10, 0, 30, 0, 0)))
    assert empty["precision"] == 0.0
    assert np.isnan(empty["fuzzing"])


def test_decoys_fire_where_the_atom_does_not_and_are_of_its_rate():
    rng = np.random.default_rng(1)
    rate = np.array([0.5, 0.48, 0.05, 0.045, 0.0])
    parts = {split: sparse.csc_matrix(rng.random((400, 5)) < rate, dtype=np.float32) for split in ("train", "test")}
    found = decoy_samples(Activity(parts, np.zeros(5, bool)), np.array([0, 2]), 1).toarray().astype(bool)
    test = parts["test"].toarray().astype(bool)
    np.testing.assert_array_equal(found[:, 0], test[:, 1] & ~test[:, 0])
    np.testing.assert_array_equal(found[:, 1], test[:, 3] & ~test[:, 2])


def test_a_fit_without_a_description_has_no_scores(obs):
    claims = make_claims(obs, {"labels": LABELS}, Enrichment(labels=["state"]), CONFIG)
    activity = Activity.of(planted_codes(obs), claims, CONFIG)
    assert score(activity, claims, np.full(6, -1), CONFIG, [0]) is None
    frame = explain(make_space(obs, planted_codes(obs)[:, [2, 3]]), Enrichment(labels=["state"]), CONFIG, evidence={})
    assert set(frame["explanations"]["score"]) == {"described"}


def test_no_claims_at_all_is_an_error_that_says_what_to_do(obs):
    with pytest.raises(DataError, match=r"no label, gene set or annotation.*under enrichment"):
        explain(make_space(obs, planted_codes(obs)), Enrichment(), CONFIG, evidence={})


def test_gene_sets_are_claims_of_cells_that_score_high(obs):
    anndata = pytest.importorskip("anndata")
    rng = np.random.default_rng(3)
    y = (obs["state"] == "y").to_numpy()
    expression = rng.poisson(1.0, (N, 60)).astype(np.float32)
    expression[:, :15] += 3 * y[:, None]
    data = anndata.AnnData(expression)
    data.var_names = [f"G{i}" for i in range(60)]
    sets = {"sets": {"response": [f"G{i}" for i in range(15)], "other": [f"G{i}" for i in range(30, 50)]}}
    settings = Enrichment(labels=["batch"], min_genes=5)
    claims = make_claims(obs, {"labels": LABELS}, settings, CONFIG, expression=data, gene_sets=sets)
    activity = Activity.of(planted_codes(obs), claims, CONFIG)
    found = choose(activity, claims, CONFIG, [0])
    assert claims.term[found.primary[0]] == "response"
    assert claims.kind[found.primary[0]] == "gene_set"
    # High is the top fifth of training cells, so that a class of a third of them is not all of it.
    assert claims.holds["train"][:, found.primary[0]].mean() == pytest.approx(CONFIG.high_share, abs=0.01)


def proteins(n=60, length=40, seed=4):
    """Residues of proteins with one annotated stretch of 8 each."""
    rng = np.random.default_rng(seed)
    name = np.repeat([f"P{i}" for i in range(n)], length)
    obs = pd.DataFrame(
        {
            "control": False,
            "group": name,
            "split": np.repeat(np.array(["train", "validation", "test"])[np.arange(n) % 3], length),
            "protein": name,
            "position": np.tile(np.arange(1, length + 1), n),
        },
        index=[f"{p}:{i}" for p, i in zip(name, np.tile(np.arange(1, length + 1), n))],
    )
    start = rng.integers(1, length - 8, n)
    annotations = pd.DataFrame({"protein": [f"P{i}" for i in range(n)], "type": "HELIX", "note": None})
    annotations = annotations.assign(start=start, end=start + 7)
    inside = (obs["position"].to_numpy() >= np.repeat(start, length)) & (
        obs["position"].to_numpy() < np.repeat(start + 8, length)
    )
    return obs, annotations, inside, rng


def test_residues_are_described_against_shifts_around_their_protein():
    obs, annotations, inside, rng = proteins()
    # Atom 0 is the stretch; atom 1 fires in stretches of 8 too, anywhere.
    start = rng.integers(1, 32, 60)
    elsewhere = (obs["position"].to_numpy() >= np.repeat(start, 40)) & (
        obs["position"].to_numpy() < np.repeat(start + 8, 40)
    )
    codes = sparse.csr_matrix(np.stack([inside, elsewhere], axis=1).astype(np.float32))
    card = {"labels": {}, "modality": "proteins"}
    claims = make_claims(obs, card, Enrichment(min_proteins=3), CONFIG, annotations=annotations)
    assert claims.term.tolist() == ["HELIX"]
    found = choose(Activity.of(codes, claims, CONFIG), claims, CONFIG, [0])
    assert found.primary.tolist() == [0, -1]
    # Against independent residues the stretch elsewhere would look less of an accident, or more, than it is.
    assert claims.shuffles("validation", 3, [0]).shape == (3, len(claims.rows["validation"]))


def test_whole_proteins_are_chosen_where_there_are_too_many_residues():
    obs, annotations, _, _ = proteins()
    card = {"labels": {}, "modality": "proteins"}
    few = Explanations(max_rows=200)
    claims = make_claims(obs, card, Enrichment(min_proteins=3), few, annotations=annotations)
    for rows in claims.rows.values():
        assert len(rows) == 200
        assert obs["protein"].iloc[rows].value_counts().eq(40).all()


def evidence(*claims, **values):
    return Evidence(atom=7, active=30, n=300, claims=list(claims), **values)


Y = Claim("class", "state", "y", "biological", 0.9, 1e-9, 1e-8)


def test_sentences_hold_the_evidence_and_nothing_else():
    assert describe(evidence()) == f"Atom 7, active on 10 % of training samples, has {NOTHING}."
    text = describe(evidence(Y, Claim("residue", "ZN_FING", "ZN_FING|C2H2-type", "biological", 0.7, 0.01, 0.02)))
    assert text == (
        "Atom 7, active on 10 % of training samples, marks samples whose state is y (balanced accuracy 0.90 on "
        "validation, q 1e-08), and also residues annotated ZN_FING (C2H2-type) (0.70)."
    )
    assert describe(evidence(Y, stability=0.8, stability_null=0.3)).endswith("cosine 0.80 (random atoms 0.30).")


class Stub:
    """A chat endpoint on 127.0.0.1 that answers with what it is given, in order, and keeps what it was asked."""

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                stub.asked.append((self.path, self.headers.get("Authorization"), json.loads(body)))
                status, text, wait = stub.answers.pop(0) if len(stub.answers) > 1 else stub.answers[0]
                stub.released.wait(wait)
                try:
                    self.send_response(status)
                    self.end_headers()
                    self.wfile.write(text.encode())
                except OSError:
                    pass  # the client has given up

            def log_message(self, *arguments):
                pass

        self.released = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def settings(self, **values):
        return Explainer(
            kind="openai",
            base_url=f"http://127.0.0.1:{self.server.server_port}/v1/",
            model="m",
            **{"retries": 0} | values,
        )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.released.set()
        self.server.shutdown()
        self.server.server_close()


def chat(content):
    return json.dumps({"choices": [{"message": {"content": content}}]})


GOOD = chat(json.dumps({"description": "A feature of\n state y."}))


def test_the_model_is_asked_at_temperature_zero_and_prompt_and_reply_are_kept(monkeypatch):
    monkeypatch.setenv("STUB_KEY", "secret")
    with Stub((200, GOOD, 0)) as stub:
        said = make_explainer(stub.settings(api_key_variable="STUB_KEY")).explain(evidence(Y))
    path, key, body = stub.asked[0]
    assert (path, key) == ("/v1/chat/completions", "Bearer secret")
    assert (body["model"], body["temperature"]) == ("m", 0)
    assert describe(evidence(Y)) in body["messages"][1]["content"]
    assert said.text == "A feature of state y."
    assert said.explainer == "openai:m"
    assert json.loads(said.prompt) == body["messages"]
    assert said.reply == GOOD
    assert "secret" not in said.prompt


def test_an_atom_without_evidence_is_never_sent():
    with Stub((500, "", 0)) as stub:
        assert make_explainer(stub.settings()).explain(evidence()) == TemplateExplainer().explain(evidence())
    assert stub.asked == []


def test_a_server_that_recovers_is_asked_again_and_a_refusal_is_not(monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with Stub((500, "", 0), (429, "", 0), (200, GOOD, 0)) as stub:
        assert OpenAIExplainer(stub.settings(retries=2)).explain(evidence(Y)).text == "A feature of state y."
    assert len(stub.asked) == 3
    with Stub((401, "", 0)) as stub, pytest.raises(DataError, match="HTTP status 401"):
        OpenAIExplainer(stub.settings(retries=2)).explain(evidence(Y))
    assert len(stub.asked) == 1


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((500, "", 0), "HTTP status 500"),
        ((200, "no json {", 0), "no chat completion in JSON"),
        ((200, json.dumps({"choices": []}), 0), "no chat completion in JSON"),
        ((200, chat("state y, clearly"), 0), "not the JSON object with a description"),
        ((200, chat(json.dumps({"description": "  "})), 0), "description is empty"),
        ((200, GOOD, 30), "no answer within 0.2 s"),
    ],
)
def test_every_failure_of_an_endpoint_is_one_line(answer, message):
    with Stub(answer) as stub, pytest.raises(DataError, match=message) as caught:
        OpenAIExplainer(stub.settings(timeout=0.2)).explain(evidence(Y))
    text = str(caught.value)
    assert "\n" not in text
    assert "use kind 'template'" in text


def test_an_unreachable_endpoint_and_a_missing_key_are_one_line(monkeypatch):
    with Stub((200, GOOD, 0)) as stub:
        settings = stub.settings()
    with pytest.raises(DataError, match="cannot be reached"):
        OpenAIExplainer(settings).explain(evidence(Y))
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(ConfigError, match="NO_SUCH_KEY, which should hold the key"):
        OpenAIExplainer(stub.settings(api_key_variable="NO_SUCH_KEY"))
    with pytest.raises(ValueError, match="needs 'base_url' and 'model'"):
        Explainer(kind="openai")
    with pytest.raises(ValueError, match="must begin with http"):
        Explainer(kind="openai", base_url="file:///etc/passwd", model="m")


def test_a_model_words_cards_while_the_claim_and_its_scores_stay_those_of_the_evidence(obs, tables):
    with Stub((200, GOOD, 0)) as stub:
        settings = CONFIG.model_copy(update={"explainer": stub.settings(max_atoms=1)})
        found = explain(
            make_space(obs, planted_codes(obs)), Enrichment(labels=["state", "batch"]), settings, evidence={}
        )
    assert card(found, 0)["description"] == "A feature of state y."
    assert card(found, 0)["reply"] == GOOD
    assert card(found, 1)["explainer"] == "template"
    assert len(stub.asked) == 2  # one per seed
    pd.testing.assert_series_equal(found["cards"]["detection"], tables["cards"]["detection"])


def test_pages_hold_every_card_escape_what_they_show_and_need_nothing_else(tmp_path, tables):
    cards = tables["cards"].copy()
    cards.loc[0, "description"] = "<script>alert(1)</script>"
    written = write_pages(cards, tmp_path, title="wells", warnings=["SIMULATED data"], names=["topk", "icfl"])
    assert [path.name for path in written] == ["topk.html", "icfl.html", "index.html"]
    page = (tmp_path / "topk.html").read_text(encoding="utf-8")
    assert page.count("<article>") == 12
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
    for path in written:
        text = path.read_text(encoding="utf-8")
        assert "SIMULATED data" in text
        assert "http" not in text
        assert " src=" not in text
    assert "<td>12</td><td>6</td>" in (tmp_path / "index.html").read_text(encoding="utf-8")
    before = [path.read_bytes() for path in written]
    again = write_pages(cards, tmp_path, title="wells", warnings=["SIMULATED data"], names=["topk", "icfl"])
    assert [path.read_bytes() for path in again] == before
    assert page_warnings({"simulated": True}, {"stand_in": "another model"}) == [
        "SIMULATED data, not measurements.",
        "STAND-IN checkpoint: another model.",
    ]


def test_the_door_prints_a_card_and_says_what_there_is(tmp_path, tables, capsys):
    write(tables, tmp_path / "evidence" / "wells" / "profiles" / "none")
    place = "wells/profiles/none/topk"
    arguments = {"results": str(tmp_path), "place": place, "atom": 0, "seed": None, "json": False}
    assert command(argparse.Namespace(**arguments)) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "marks samples whose state is y" in text
    assert "detection 1.00 [1.00, 1.00], null" in text
    assert command(argparse.Namespace(**arguments | {"json": True, "seed": 1})) == 0
    assert json.loads(capsys.readouterr().out)["seed"] == 1
    for wrong, message in (
        ({"place": "wells/topk"}, "give DATASET/MODEL/WHITENING/DICTIONARY"),
        ({"place": "wells/profiles/pca/topk"}, "there are: wells/profiles/none"),
        ({"place": "wells/profiles/none/icfl"}, "no cards of dictionary 'icfl': topk"),
        ({"atom": 6}, "atoms are 0 to 5, seeds 0, 1"),
        ({"seed": 9}, "no atom 0 of seed 9"),
    ):
        given = arguments | wrong
        with pytest.raises(DataError, match=message):
            find(given["results"], given["place"], given["atom"], given["seed"])


def test_claims_that_no_split_can_judge_are_left_out():
    obs = make_obs()
    obs.loc[obs["split"] == "test", "state"] = "x"
    claims = make_claims(obs, {"labels": LABELS}, Enrichment(labels=["state", "batch"]), CONFIG)
    assert isinstance(claims, Claims)
    assert set(claims.source) == {"batch"}


@pytest.fixture
def folder(tmp_path):
    """The house's studies, of which two ask for cards or steering."""
    shutil.copytree(CONFIGURATION / "studies", tmp_path / "studies")
    asked = {
        "cards": {"extends": "kang2018", "explanations": {"dictionaries": ["topk", "icfl"]}},
        "moves": {"extends": "cell_injury", "steering": {"labels": {"injury": ["Kinase"]}}},
    }
    for name, content in asked.items():
        (tmp_path / "studies" / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return tmp_path


def plan(folder, *names):
    return Plan(resolve({"studies": list(names), "name": "run"}, folder), load_sources(CONFIGURATION / "sources.yaml"))


def test_only_studies_that_ask_have_cards_pages_and_figures(folder):
    found = plan(folder, "cards", "moves", "yeast")
    spaces = [("cards", model, whitening) for model in ("scvi", "pca") for whitening in ("none", "pca")]
    assert found.explained_spaces() == spaces
    assert found.evidence_files("cards") == [f"results/evidence/{'/'.join(space)}/cards.parquet" for space in spaces]
    assert found.card_pages(*spaces[0]) == [
        f"results/studies/run/cards/cards/scvi/none/{name}.html" for name in ("topk", "icfl", "index")
    ]
    assert len(found.every_card_page()) == 12
    assert {path.split("/")[2] for path in found.evidence_files("steering")} == {"moves"}
    assert {"explanations", "steering"} <= set(found.figures())
    assert found.evidence_settings("steering")["moves"]["steering"]["labels"] == {"injury": ["Kinase"]}
    without = plan(folder, "kang2018", "yeast")
    assert without.every_card_page() == without.evidence_files("cards") == without.evidence_files("steering") == []
    assert not {"explanations", "steering"} & set(without.figures())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"explanations": {"labels": ["mood"]}}, "explanations.labels names label 'mood'"),
        ({"explanations": {"dictionaries": ["mood"]}}, "explanations.dictionaries names 'mood'"),
        ({"steering": {"labels": {"mood": None}}}, "steering.labels names label 'mood'"),
        ({"steering": {"labels": {"condition": None}, "dictionaries": ["mood"]}}, "steering.dictionaries names 'mood'"),
        ({"steering": {}}, "steering names nothing to steer"),
    ],
)
def test_sections_that_name_what_a_study_lacks_are_refused(folder, content, message):
    (folder / "studies" / "cards.yaml").write_text(yaml.safe_dump({"extends": "kang2018", **content}))
    with pytest.raises(ConfigError, match=re.escape(message)):
        plan(folder, "cards")
