"""The decomposition of the factorial study: planted effects are found, absent ones are not."""

import numpy as np
import pandas as pd
import pytest

from conceptome.config.factorial import Factorial
from conceptome.errors import DataError
from conceptome.factorial.effects import TERMS, analyse, components, decompose, degrees, effects, permuted, verdict

SHAPE = (5, 4, 3, 5)


def config(**keys):
    study = {"model": "x", "m": 8, "k": 4}
    return Factorial.model_validate(
        {
            "encoders": ["own", "topk", "mp", "omp", "icfl"],
            "dictionaries": ["topk", "batch_topk", "icfl", "mp_sae"],
            "whitenings": ["none", "pca", "pca_all"],
            "studies": {"one": study},
            **keys,
        }
    )


def levels(settings):
    return {"encoder": settings.encoders, "dictionary": settings.dictionaries, "whitening": settings.whitenings}


def planted(rng, *, encoder=0.0, dictionary=0.0, whitening=0.0, crossed=0.0, seed=0.0, rest=1.0):
    """A design with effects of given variance (each centred and scaled exactly), and noise."""

    def exact(shape, axes, variance):
        values = rng.normal(size=shape)
        for axis in axes:
            values -= values.mean(axis=axis, keepdims=True)
        return values * np.sqrt(variance / max((values**2).mean(), 1e-300))

    e, d, w, s = SHAPE
    return (
        exact((e, 1, 1, 1), (0,), encoder)
        + exact((1, d, 1, 1), (1,), dictionary)
        + exact((1, 1, w, 1), (2,), whitening)
        + exact((e, d, 1, 1), (0, 1), crossed)
        + np.sqrt(seed) * rng.normal(size=(1, d, w, s))
        + np.sqrt(rest) * rng.normal(size=SHAPE)
    )


def test_components_are_orthogonal_and_sum_to_the_design():
    y = np.random.default_rng(0).normal(size=SHAPE)
    parts = {name: np.broadcast_to(part, SHAPE) for name, part in components(y).items()}
    assert set(parts) == set(TERMS)
    np.testing.assert_allclose(sum(parts.values()), y - y.mean(), atol=1e-12)
    for name, part in parts.items():
        for other, second in parts.items():
            if name < other:
                assert abs((part * second).sum()) < 1e-9
    assert sum(degrees(SHAPE).values()) == y.size - 1


def test_sums_of_squares_are_those_of_statsmodels():
    from statsmodels.formula.api import ols
    from statsmodels.stats.anova import anova_lm

    y = planted(np.random.default_rng(1), encoder=1.0, dictionary=0.5, crossed=0.3)[:3, :2, :2, :3]
    place = np.stack(np.meshgrid(*map(np.arange, y.shape), indexing="ij"), axis=-1).reshape(-1, 4)
    frame = pd.DataFrame(place, columns=list("edws")).astype(str).assign(y=y.ravel())
    table = anova_lm(ols("y ~ C(e) * C(d) * C(w)", frame).fit())
    total = ((y - y.mean()) ** 2).sum()
    parts = components(y)
    for name, row in (
        ("encoder", "C(e)"),
        ("dictionary", "C(d)"),
        ("whitening", "C(w)"),
        ("encoder × dictionary", "C(e):C(d)"),
        ("encoder × dictionary × whitening", "C(e):C(d):C(w)"),
    ):
        squares = (np.broadcast_to(parts[name], y.shape) ** 2).sum()
        assert squares == pytest.approx(table.loc[row, "sum_sq"])
    residual = sum((np.broadcast_to(parts[name], y.shape) ** 2).sum() for name in ("seed", "seed × encoder"))
    assert residual == pytest.approx(table.loc["Residual", "sum_sq"])
    assert sum(float(share) for share in decompose(y).share.values()) == pytest.approx(1)
    assert decompose(y).share["encoder"] < (np.broadcast_to(parts["encoder"], y.shape) ** 2).sum() / total


def test_planted_shares_are_recovered_without_bias():
    rng = np.random.default_rng(2)
    truth = {"encoder": 4.0, "dictionary": 2.0, "encoder × dictionary": 1.0, "seed": 1.0, "seed × encoder": 2.0}
    y = np.stack([planted(rng, encoder=4.0, dictionary=2.0, crossed=1.0, seed=1.0, rest=2.0) for _ in range(300)])
    found = decompose(y).share
    for name in TERMS:
        assert np.mean(found[name]) == pytest.approx(truth.get(name, 0) / 10, abs=0.01), name


def test_intervals_cover_and_the_null_is_not_exceeded_where_nothing_matters():
    settings = config(bootstraps=100, permutations=99)
    rng = np.random.default_rng(3)
    covered, beyond = [], []
    for number in range(30):
        y = planted(rng, seed=1.0, rest=1.0)
        draws = y + 0.05 * rng.normal(size=(100, *SHAPE))
        for row in analyse(y, draws, levels(settings), settings, [str(number)]).effects:
            if row["term"] not in ("seed", "seed × encoder"):
                covered.append(row["low"] <= 0 <= row["high"])
                beyond.append(row["p"] <= 0.05)
    assert np.mean(covered) > 0.9
    # 210 tests at 5 %: 22 or more are a chance of about one in 1,000.
    assert sum(beyond) <= 21


def test_planted_factors_matter_and_others_do_not():
    settings = config(bootstraps=100, permutations=99)
    rng = np.random.default_rng(4)
    y = planted(rng, encoder=6.0, crossed=1.0, seed=0.1, rest=0.1)
    draws = y + 0.02 * rng.normal(size=(100, *SHAPE))
    rows = {row["term"]: row for row in analyse(y, draws, levels(settings), settings, ["planted"]).effects}
    assert rows["encoder"]["verdict"] == "matters"
    assert rows["encoder × dictionary"]["verdict"] == "matters"
    assert rows["encoder"]["p"] == rows["encoder × dictionary"]["p"] == 0.01
    assert rows["encoder"]["low"] > rows["encoder"]["null_high"]
    for name in ("dictionary", "whitening", "dictionary × whitening", "encoder × whitening"):
        assert rows[name]["verdict"] == "does not matter", name
        assert rows[name]["p"] > 0.01
    # Were nothing to matter, the rest would be everything; here it is hardly anything, and that is no test.
    rest = rows["seed × encoder"]
    assert 0.9 < rest["null_low"] <= rest["null"] <= rest["null_high"] < 1.1
    assert rest["high"] < 0.1
    assert np.isnan(rest["p"])


def test_encoders_effect_does_not_pass_for_one_of_dictionaries():
    rng = np.random.default_rng(5)
    y = planted(rng, encoder=9.0, seed=0.5, rest=0.5)
    ratios = decompose(permuted(y, "dictionary", 199, rng)).ratio["dictionary"]
    # The null is that of an F ratio of 3 and 48 degrees of freedom.
    from scipy.stats import f

    assert np.quantile(ratios, 0.95) == pytest.approx(f.ppf(0.95, 3, 48), rel=0.35)


def test_level_means_and_standardised_effects():
    settings = config(bootstraps=60, permutations=49)
    y = np.zeros(SHAPE) + 0.01 * np.random.default_rng(6).normal(size=SHAPE)
    y[2] += 1.0
    draws = np.repeat(y[None], 60, axis=0)
    rows = analyse(y, draws, levels(settings), settings, ["levels"]).levels
    by_level = {row["level"]: row for row in rows if row["factor"] == "encoder"}
    assert by_level["mp"]["mean"] == pytest.approx(1, abs=0.02)
    assert by_level["mp"]["effect"] == pytest.approx(2, abs=0.05)  # 0.8 of a deviation of 0.4
    assert by_level["mp"]["low"] > by_level["mp"]["null_high"]
    assert all(abs(row["effect"]) < 0.01 for row in rows if row["factor"] != "encoder")


def table(settings, seeds, datasets=("one",), constant=False):
    rng = np.random.default_rng(7)
    rows = []
    for data in datasets:
        for e, encoder in enumerate(settings.encoders):
            for dictionary in settings.dictionaries:
                for whitening in settings.whitenings:
                    for seed in seeds:
                        value = 0.5 if constant else e + 0.1 * rng.normal()
                        rows.append((data, "x", "fvu", "", encoder, dictionary, whitening, seed, value))
    columns = ["dataset", "model", "endpoint", "label", "encoder", "dictionary", "whitening", "seed", "value"]
    frame = pd.DataFrame(rows, columns=columns).assign(design="factorial")
    frame["draws"] = [np.full(20, value, dtype=np.float32) for value in frame["value"]]
    return frame.sample(frac=1, random_state=0)


def test_tables_of_two_data_sets_and_their_summary():
    settings = config(bootstraps=20, permutations=19)
    cells = table(settings, [0, 1, 2], ("one", "two"))
    found = effects(cells, settings, [0, 1, 2])
    shares = found["factorial_effects"]
    assert len(shares) == 2 * len(TERMS)
    summary = found["factorial_summary"].set_index(["term", "level"])
    assert summary.loc[("encoder", ""), "n_datasets"] == 2
    mean = shares.loc[shares["term"] == "encoder", "share"].mean()
    assert summary.loc[("encoder", ""), "value"] == pytest.approx(mean)
    again = effects(cells, settings, [0, 1, 2])
    for name, frame in found.items():
        pd.testing.assert_frame_equal(frame, again[name])


def test_equal_cells_have_no_shares():
    settings = config(bootstraps=20, permutations=19)
    found = effects(table(settings, [0, 1], constant=True), settings, [0, 1])
    assert found["factorial_effects"]["share"].isna().all()
    assert (found["factorial_effects"]["verdict"] == "").all()
    assert found["factorial_summary"].empty


def test_missing_cells_and_single_seeds_are_refused():
    settings = config(bootstraps=20, permutations=19)
    with pytest.raises(DataError, match="balanced"):
        effects(table(settings, [0, 1]).iloc[1:], settings, [0, 1])
    with pytest.raises(DataError, match="two or more"):
        effects(table(settings, [0]), settings, [0])


def test_verdicts():
    assert verdict(0.1, 0.3, 0.05) == "matters"
    assert verdict(-0.01, 0.02, 0.05) == "does not matter"
    assert verdict(0.01, 0.3, 0.05) == "unclear"
    assert verdict(float("nan"), 0.3, 0.05) == ""
