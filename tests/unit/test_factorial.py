"""The factorial study's cells: samples, matched L0, endpoints with planted truths."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from conceptome.config.factorial import Factorial
from conceptome.config.run import Config, load
from conceptome.dictionaries import fit
from conceptome.errors import ConfigError, DataError
from conceptome.factorial import endpoints
from conceptome.factorial.design import choose_samples, samples
from conceptome.factorial.evaluate import COLUMNS, evaluate
from conceptome.factorial.matched import matched, threshold_at

N, D, M, K = 600, 8, 16, 3


def settings(**study):
    return Factorial.model_validate(
        {
            "encoders": ["own", "topk", "mp", "omp", "icfl"],
            "dictionaries": ["topk", "batch_topk"],
            "whitenings": ["none", "pca"],
            "remaining": ["random", "jumprelu", "relu_l1"],
            "bootstraps": 40,
            "null_draws": 2,
            "options": {
                name: {"steps": 60, "batch_size": 128} for name in ("topk", "batch_topk", "jumprelu", "relu_l1")
            },
            "studies": {"planted": {"model": "x", "m": M, "k": K, "columns": 1, "labels": ["kind"], **study}},
        }
    )


@pytest.fixture(scope="module")
def planted():
    """Samples made of 3 of 16 atoms; the label is which of atoms 0, 1, 2 is among them."""
    rng = np.random.default_rng(0)
    atoms = rng.normal(size=(M, D))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    kind = rng.integers(0, 3, size=N)
    truth = np.zeros((N, M))
    truth[np.arange(N), kind] = rng.uniform(2, 3, size=N)
    for row in truth:
        row[rng.choice(np.arange(3, M), size=2, replace=False)] = rng.uniform(0.5, 1, size=2)
    group = np.arange(N) // 10
    names = np.array(["train", "train", "train", "validation", "test"])[group % 5]
    obs = pd.DataFrame(
        {"group": group.astype(str), "split": names, "control": kind == 0, "kind": np.array(list("abc"))[kind]},
        index=[f"s{i}" for i in range(N)],
    )
    x = (truth @ atoms).astype(np.float32)
    card = {"labels": {"kind": {"kind": "categorical", "role": "biological"}}}
    variables = pd.DataFrame(truth[:, :4], index=obs.index, columns=[f"v:{i}" for i in range(4)])
    dataset = SimpleNamespace(card=card, truth=lambda: variables, annotations=lambda: None)
    store = SimpleNamespace(obs=obs, read=lambda rows: x[rows], shape=x.shape)
    return SimpleNamespace(dataset=dataset, store=store, x=x, atoms=atoms, codes=sp.csr_matrix(truth), obs=obs)


def chosen(planted, config):
    return samples(planted.dataset, planted.obs, planted.dataset.card, config.studies["planted"], config)


def test_samples_are_whole_groups_of_every_split(planted):
    rows = choose_samples(planted.obs, 300, [0])
    assert len(rows) <= 300
    here = planted.obs.iloc[rows]
    assert (here.groupby("group").size() == 10).all()
    share = here["split"].value_counts(normalize=True)
    assert share["train"] == pytest.approx(0.6, abs=0.05)
    assert set(share.index) == {"train", "validation", "test"}
    assert np.array_equal(choose_samples(planted.obs, N, [0]), np.arange(N))
    with pytest.raises(DataError, match="max_rows"):
        choose_samples(planted.obs, 20, [0])


def test_the_best_atom_and_the_probe_find_a_planted_label(planted):
    config = settings()
    here = chosen(planted, config)
    classes = here.classes[0]
    auroc = endpoints.best_atom_auroc(planted.codes, classes, here, config)
    accuracy = endpoints.probe(planted.codes, classes, here, config)
    assert auroc.value == pytest.approx(1)
    assert accuracy.value > 0.98
    for found, chance in ((auroc, 0.5), (accuracy, 1 / 3)):
        assert found.null[1] <= chance + 0.05
        assert found.null[2] >= chance - 0.05
        assert found.null[2] < found.value - 0.2
        assert found.draws.shape == (40,)
        assert found.n == 12


def test_codes_without_the_label_read_nothing(planted):
    config = settings()
    here = chosen(planted, config)
    rng = np.random.default_rng(1)
    noise = sp.random(N, M, density=0.2, random_state=1, data_rvs=lambda n: rng.uniform(0.1, 1, n)).tocsr()
    auroc = endpoints.best_atom_auroc(noise, here.classes[0], here, config)
    accuracy = endpoints.probe(noise, here.classes[0], here, config)
    assert abs(auroc.value - 0.5) < 0.1
    assert abs(accuracy.value - 1 / 3) < 0.12


def test_signed_codes_count_on_their_own_side(planted):
    config = settings()
    here = chosen(planted, config)
    assert endpoints.best_atom_auroc(-planted.codes, here.classes[0], here, config).value == pytest.approx(1)


def test_the_discriminant_is_that_of_scikit_learn():
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    rng = np.random.default_rng(2)
    y = np.repeat([0, 1, 2], [30, 60, 90])
    x = (rng.normal(size=(180, 5)) @ rng.normal(size=(5, 5)) + y[:, None]).astype(np.float32)
    x -= x.mean(axis=0)
    coefficients, intercepts = endpoints.Discriminant(x).fit(y, 3, 0.2)
    # scikit-learn divides the within-class scatter by n and shrinks each class's covariance: give it ours.
    within = sum(np.cov(x[y == c].T.astype(float)) * (np.sum(y == c) - 1) for c in range(3)) / 177
    within = 0.8 * within + 0.2 * np.trace(within) / 5 * np.eye(5)

    class Known:
        def fit(self, X):
            self.covariance_ = within
            return self

    model = LinearDiscriminantAnalysis(solver="lsqr", covariance_estimator=Known(), priors=[1 / 3] * 3).fit(x, y)
    expected = model.decision_function(x)
    found = x @ coefficients + intercepts
    np.testing.assert_allclose(found - found.mean(axis=1, keepdims=True),
                               expected - expected.mean(axis=1, keepdims=True), rtol=1e-3, atol=1e-3)  # fmt: skip


def test_hidden_variables_are_recovered_by_their_own_codes_only(planted):
    config = settings(recovery=True)
    here = chosen(planted, config)
    found = endpoints.best_atom_recovery(planted.codes, here, config)
    assert found.value == pytest.approx(1)
    assert abs(found.null[0]) < 0.15
    rng = np.random.default_rng(3)
    noise = sp.csr_matrix(rng.normal(size=(N, M)))
    assert abs(endpoints.best_atom_recovery(noise, here, config).value) < 0.2


def test_f1_of_planted_residues():
    """Atom 0 marks a domain of every protein; what it says is lost when patterns are shifted."""
    rng = np.random.default_rng(4)
    proteins, length = 30, 60
    protein = np.repeat([f"p{i}" for i in range(proteins)], length)
    split = np.repeat(np.array(["train", "validation", "test"])[np.arange(proteins) % 3], length)
    obs = pd.DataFrame(
        {"protein": protein, "group": protein, "position": np.tile(np.arange(1, length + 1), proteins), "split": split}
    )
    start = rng.integers(1, 40, size=proteins)
    table = pd.DataFrame(
        {
            "protein": [f"p{i}" for i in range(proteins)],
            "type": "Domain",
            "note": None,
            "start": start,
            "end": start + 9,
        }
    )
    codes = np.zeros((len(obs), 4), dtype=np.float32)
    for i in range(proteins):
        codes[i * length + start[i] - 1 : i * length + start[i] + 9, 0] = 1
    codes[:, 1:] = rng.uniform(size=(len(obs), 3)) * (rng.uniform(size=(len(obs), 3)) < 0.2)
    config = settings(labels=[], concepts=True)
    dataset = SimpleNamespace(annotations=lambda: table)
    here = samples(dataset, obs, {}, config.studies["planted"], config)
    found = endpoints.best_atom_f1(sp.csr_matrix(codes), here, config)
    assert found.value == pytest.approx(1)
    np.testing.assert_allclose(found.draws, 1)
    assert found.null[2] < 0.8
    silent = endpoints.best_atom_f1(sp.csr_matrix(codes.shape), here, config)
    assert silent.value == 0


def test_stability_and_diversity():
    config = settings()
    rng = np.random.default_rng(5)
    atoms = rng.normal(size=(40, 20)).astype(np.float32)
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    other = rng.normal(size=(40, 20)).astype(np.float32)
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    same = endpoints.stability(atoms, [atoms[::-1]], False, config)
    assert same.value == pytest.approx(1, abs=1e-5)
    apart = endpoints.stability(atoms, [other], False, config)
    assert apart.null[1] - 0.05 < apart.value < apart.null[2] + 0.05
    assert endpoints.stability(atoms, [-atoms], True, config).value == pytest.approx(1, abs=1e-5)
    flat = np.repeat(atoms[:1], 40, axis=0)
    assert endpoints.diversity(flat, config).value == pytest.approx(1 / 20, abs=0.01)
    assert endpoints.diversity(np.eye(20, dtype=np.float32), config).value == pytest.approx(1)


def test_thresholds_leave_as_many_codes_as_wanted():
    values = np.array([0.5, 0.1, 0.3, 0.0, -1.0, 0.4])
    assert threshold_at(values, 2) == 0.3
    assert (values > threshold_at(values, 3)).sum() == 3
    assert threshold_at(values, 9) == 0


@pytest.mark.parametrize("method", ["topk", "batch_topk", "matryoshka", "jumprelu", "relu_l1", "gated", "mp_sae"])
def test_every_own_encoder_comes_to_the_l0_asked_for(planted, method):
    options = {"k": K} if method not in ("relu_l1", "gated") else {"l1_coefficient": 0.01}
    dictionary = fit(method, planted.x, m=M, seed=0, steps=80, batch_size=128, **options)
    for encoder in ("own", "topk", "mp", "omp", "icfl"):
        codes = matched(dictionary, encoder, K, planted.x).encode(planted.x)
        assert codes.nnz / N == pytest.approx(K, abs=0.4), (method, encoder)


@pytest.mark.parametrize(("method", "encoders"), [("topk", 5), ("random", 1)])
def test_cells_of_a_method(planted, method, encoders):
    from conceptome.config.models import Whitening
    from conceptome.whitening import Whitening as Fitted

    ones = np.ones(D)
    whitening = Fitted(np.zeros(D), ones, ones, False, {"p": D, "unit_norm": False})
    assert Whitening(method="none").fit_on == "control"
    config = settings(recovery=True)
    cells, costs = evaluate(planted.dataset, planted.store, whitening, "planted", method, config, [0, 1])
    again, _ = evaluate(planted.dataset, planted.store, whitening, "planted", method, config, [0, 1])
    pd.testing.assert_frame_equal(cells, again)
    assert set(COLUMNS) - set(cells) == {"dataset", "model", "whitening"}
    assert set(cells["encoder"]) - {""} == set(config.encoders[:encoders])
    assert (cells["design"] == ("factorial" if encoders > 1 else "remaining")).all()
    expected = {"gain", "fvu", "fvu_raw", "fvu_unscaled", "l0", "dead", "balanced_accuracy", "auroc", "recovery"}
    assert set(cells["endpoint"]) == expected | {"stability", "diversity"}
    same = cells.pivot_table(index=["encoder", "seed"], columns="endpoint", values="value")
    np.testing.assert_allclose(same["fvu"].dropna(), same["fvu_raw"].dropna(), rtol=1e-5)
    inside = cells.dropna(subset=["low", "value"])
    assert (inside["low"] <= inside["high"]).all()
    assert set(costs["step"]) == {"fit", "encode"}
    if method == "topk":
        fvu = same["fvu"].unstack("seed").mean(axis=1)
        assert fvu["omp"] < fvu["topk"] < 1


def test_whitening_on_all_rows_is_fitted_on_all_training_rows(planted):
    from conceptome.config.models import Whitening
    from conceptome.whitening import fitted_rows

    control = fitted_rows(planted.obs, Whitening(method="pca"))
    every = fitted_rows(planted.obs, Whitening(method="pca", fit_on="all"))
    train = (planted.obs["split"] == "train").to_numpy()
    assert np.array_equal(every, train)
    assert np.array_equal(control, train & planted.obs["control"].to_numpy())


def configuration(tmp_path, **changes) -> Config:
    from pathlib import Path

    import conceptome

    folder = Path(conceptome.__file__).parents[2] / "config"
    return load([folder / "factorial.yaml"], folder, **changes)


def test_the_factorial_run_is_the_design_that_it_says(tmp_path):
    from conceptome.workflow import Plan

    config = configuration(tmp_path)
    factorial = config.run.factorial
    assert len(factorial.encoders) == len(factorial.dictionaries) == len(config.run.seeds) == 5
    assert list(factorial.whitenings) == ["none", "pca", "pca_all"]
    assert factorial.max_rows <= 20_000
    for name in factorial.studies:
        assert factorial.studies[name].m <= 1024
    plan = Plan(config, {name: None for name in _sources(config)})
    jobs = len(factorial.whitenings) * len(factorial.dictionaries) + len(factorial.remaining)
    assert len(plan.factorial_cells()) == jobs * len(config.studies)
    assert plan.whitening("kang2018", "pca_all").fit_on == "all"
    assert plan.whitening("kang2018", "pca").fit_on == "control"
    assert plan.figures() == ["factorial"]


def _sources(config):
    found = set()
    for study in config.studies.values():
        found |= {item.source for item in study.dataset.inputs.values() if item.source}
        found |= {model.source for model in study.models.values() if getattr(model, "source", None)}
        found |= set(study.enrichment.gene_sets)
    return found


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"studies": {"kang2018": {"model": "none"}}}, "no model 'none'"),
        ({"whitenings": ["none", "pca", "zca"]}, "no whitening 'zca'"),
        ({"studies": {"kang2018": {"labels": ["donor"]}}}, "does not declare 'donor'"),
        ({"studies": {"kang2018": {"columns": 3}}}, r"columns \(3\) must divide k"),
        ({"dictionaries": ["topk", "pca"], "remaining": []}, "has no seeds"),
        ({"options": {"topk": {"step": 3}}}, "did you mean 'steps'"),
        ({"options": {"sae": {}}}, "method 'sae'"),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path, section, message):
    with pytest.raises(ConfigError, match=message) as caught:
        configuration(tmp_path, factorial=section)
    assert "\n" not in str(caught.value)


def test_costs_are_those_of_the_newest_records_that_ended_well(tmp_path):
    from conceptome.files import write_json
    from conceptome.provenance.costs import costs
    from conceptome.provenance.folder import ProvenanceFolder

    folder = ProvenanceFolder(tmp_path)
    with pytest.raises(DataError, match="no record of a factorial study"):
        costs(tmp_path)
    for number, (status, seconds) in enumerate([("success", 9.0), ("success", 2.5), ("failure", 7.0)]):
        record = {
            "rule": "factorial_cells",
            "status": status,
            "wildcards": {"dataset": "planted", "model": "x", "whitening": "pca", "method": "topk"},
            "metrics": {"cost/fit_seconds": seconds, "cost/encode_seconds/omp": 0.25},
            "cpu_seconds": 3 * seconds,
        }
        write_json(folder.final_path(f"job{number}"), record)
    text = costs(tmp_path)
    assert "| planted | pca | topk | 2.500 | 0.250 | 7.5 |" in text
    assert text.endswith("CPU seconds of all 1 jobs: 8.")
