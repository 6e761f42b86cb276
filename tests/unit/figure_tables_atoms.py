"""Made-up tables of the measures of dictionaries themselves (see figure_tables)."""

from __future__ import annotations

import numpy as np
import pandas as pd

PLACES = {"kang2018": ("scvi", 60, 32), "cell_injury": ("profiles", 400, 128)}
LEVEL = {"topk": 0.5, "icfl": 0.7, "pca": 1.0, "ica": 0.8, "random": 0.3}


def fits(seeds=2):
    """(key of a fit, number of atoms, of dimensions)."""
    for data, (model, m, d) in PLACES.items():
        for whitening in ("none", "pca"):
            for method in LEVEL:
                for seed in range(seeds):
                    place = {"dataset": data, "model": model, "whitening": whitening}
                    yield place | {"dictionary": method, "method": method, "seed": seed}, m, d


def spread(value, reach):
    """A value with interval."""
    return {"low": value - reach, "high": value + reach}


def stability_rows(rng):
    return pd.DataFrame(
        [
            key
            | {"mean_cosine": (value := LEVEL[key["method"]] + 0.01 * rng.normal()), **spread(value, 0.03), "m": m}
            | {"null": 0.3, "null_low": 0.28, "null_high": 0.32}
            for key, m, _ in fits()
        ]
    )


def diversity(rng):
    rows = []
    for key, m, d in fits():
        common = {"m": m, "k": 8, "d": d, "n": m}
        for r in (1, 2, 4, 8, 16):
            value = LEVEL[key["method"]] * r**0.8 * (1 + 0.05 * rng.normal())
            null = 0.4 * r**0.8
            rows.append(
                key | common | {"statistic": "babel", "r": r, "value": value, **spread(value, 0.1), "null": null}
                | {"null_low": 0.9 * null, "null_high": 1.1 * null, "interval": "seeds"}
            )  # fmt: skip
        for statistic, value in (("effective_rank", 0.8 * d), ("code_effective_rank", 0.3 * d), ("connectivity", 0.4)):
            value *= 1 + 0.05 * rng.normal()
            rows.append(
                key | common | {"statistic": statistic, "r": 0, "value": value, **spread(value, 0.02 * value)}
                | {"null": 0.9 * d, "null_low": 0.88 * d, "null_high": 0.92 * d, "interval": "atoms"}
            )  # fmt: skip
    return {"diversity": pd.DataFrame(rows), "stability": stability_rows(rng)}


def data_stability(rng):
    rows = []
    for key, m, d in fits(1):
        if key["method"] == "random":
            continue
        for differs, less in (("seed", 1.0), ("data", 0.9), ("both", 0.8)):
            value = LEVEL[key["method"]] * less * (1 + 0.02 * rng.normal())
            rows.append(
                key | {"repeat": 0, "differs": differs, "mean_cosine": value, **spread(value, 0.04)}
                | {"shared": value / 2, "null": 0.3, "null_low": 0.28, "null_high": 0.32, "coherence": 0.8}
                | {"effective_rank": (rank := d * rng.uniform(0.6, 1)), "m": m, "n_a": 500, "n_b": 510}
                | {"effective_rank_low": 0.95 * rank, "effective_rank_high": 1.05 * rank}
                | {"effective_rank_null": 0.9 * d}
            )  # fmt: skip
    return {"data_stability": pd.DataFrame(rows)}


def variance_partition(rng):
    means, atoms = [], []
    for key, m, _ in fits():
        biological, technical = rng.beta(1, 6, m), rng.beta(1, 12, m)
        flag = technical > biological + 0.1
        sources = {"injury": "biological", "batch": "technical", "all biological": "biological"}
        sources |= {"all technical": "technical", "residual": "residual"}
        for source, role in sources.items():
            value = {"biological": biological.mean(), "technical": technical.mean()}.get(role, 0.7)
            means.append(
                key | {"source": source, "role": role, "share": value, **spread(value, 0.02), "n": 2000}
                | {"null": 0.0, "null_low": -0.004, "null_high": 0.004, "atoms": m, "technical_atoms": flag.sum()}
            )  # fmt: skip
        atoms.append(
            pd.DataFrame(
                key
                | {"atom": np.arange(m), "biological": biological, "technical_share": technical, "technical": flag}
                | {"biological_low": 0.8 * biological, "biological_high": 1.2 * biological}
                | {"technical_low": 0.8 * technical, "technical_high": 1.2 * technical}
                | {"technical_null_high": 0.01, "n": 2000}
            )
        )
    return {
        "variance_partition_mean": pd.DataFrame(means),
        "variance_partition_atoms": pd.concat(atoms, ignore_index=True),
    }


def agreement(rng):
    rows = []
    for key, m, d in fits(1):
        for other in LEVEL:
            if other == key["method"] == "pca":
                continue
            value = rng.uniform(0.3, 0.9)
            rows.append(
                key | {"other": other, "other_method": other, "other_seed": 1, "mmcs": value, **spread(value, 0.02)}
                | {"null": 0.31, "null_low": 0.3, "null_high": 0.32, "hungarian": value - 0.1, "shared": 0.2}
                | {"m": m, "other_m": m, "d": d}
            )  # fmt: skip
    return {"agreement": pd.DataFrame(rows)}


def plausibility(rng):
    rows = []
    for key, m, d in fits():
        value = 0.9 - 0.5 * LEVEL[key["method"]] * rng.uniform(0.9, 1)
        rows.append(
            key | {"ood": value, **spread(value, 0.02), "null": 0.8, "null_low": 0.79, "null_high": 0.81}
            | {"shuffled": 0.75, "implausible": 0.2, "m": m, "d": d, "n": 400}
        )  # fmt: skip
    return {"plausibility": pd.DataFrame(rows)}


def families(rng):
    rows = []
    for key, m, _ in fits():
        if key["method"] in ("pca", "ica"):
            continue
        for statistic in ("atoms_in_families", "mean_weight", "largest_family"):
            value = LEVEL[key["method"]] * rng.uniform(0.8, 1)
            rows.append(
                key | {"statistic": statistic, "value": value, **spread(value, 0.03), "families": 9, "atoms": m}
                | {"null": 0.05, "null_low": 0.03, "null_high": 0.07, "n": 2000}
            )  # fmt: skip
    return {"families": pd.DataFrame(rows)}


def pairs(rng, column, names):
    """Rows of kang2018's two models compared with each other, under both whitenings."""
    rows = []
    for model, other in (("scvi", "pca"), ("pca", "scvi")):
        for whitening in ("none", "pca"):
            for name in names:
                value = rng.uniform(0.2, 0.8)
                rows.append(
                    {"dataset": "kang2018", "model": model, "whitening": whitening, "other": other, column: name}
                    | {"value": value, **spread(value, 0.05), "null": 0.1, "null_low": 0.05, "null_high": 0.15}
                    | {"anchors": 64, "n": 400, "atoms": 60, "seed": 0}
                )  # fmt: skip
    return pd.DataFrame(rows)


def model_similarity(rng):
    return {"model_similarity": pairs(rng, "statistic", ("cka", "relative_cosine", "relative_retrieval"))}


def latent_scaling(rng):
    frame = pairs(rng, "kind", ("shared", "own", "other"))
    atoms = []
    for model, other in (("scvi", "pca"), ("pca", "scvi")):
        key = {"dataset": "kang2018", "model": model, "whitening": "none", "other": other, "seed": 0}
        values = {}
        for name in ("nu_error", "nu_reconstruction"):
            nu = rng.gamma(2, 0.6, 60)
            values |= {name: nu, f"{name}_low": 0.8 * nu, f"{name}_high": 1.2 * nu, f"{name}_null_high": 0.15}
        kind = rng.choice(["shared", "own", "other"], 60)
        atoms.append(pd.DataFrame({**key, "atom": np.arange(60), **values, "kind": kind}))
    return {"latent_scaling": frame, "latent_scaling_atoms": pd.concat(atoms, ignore_index=True)}


def dose_curves(rng):
    curves, atoms = [], []
    for key, _, _ in fits(1):
        for rank in (1, 2, 3):
            own = key | {"label": "dose_uM", "atom": rank - 1, "name": str(rank - 1), "rank": rank}
            for dose in (0.0, 5.0, 15.0, 50.0):
                value = rng.uniform(0.5, 1) * (1 + dose / 20)
                curves.append(
                    own | {"dose": dose, "mean": value, **spread(value, 0.1), "null": 1.2, "null_low": 1.0}
                    | {"null_high": 1.4, "n_groups": 4, "n": 120}
                )  # fmt: skip
            atoms.append(
                own | {"effect_train": 0.7, "effect": 0.6, **spread(0.6, 0.1), "null": 0.0, "null_low": -0.2}
                | {"null_high": 0.2, "auroc": 0.8, "auroc_low": 0.7, "auroc_high": 0.9, "control_auroc": 0.55}
                | {"control_auroc_high": 0.65, "control_pairs": 15, "n_active": 300, "n": 480}
            )  # fmt: skip
    return {"dose_curves": pd.DataFrame(curves), "dose_curves_atoms": pd.DataFrame(atoms)}


def galleries(rng):
    atoms, crops = [], []
    for key, _, _ in fits(1):
        for rank in (1, 2):
            own = key | {"atom": rank, "rank": rank}
            value = rng.uniform(0.6, 0.8)
            atoms.append(
                own | {"label": "compound", "best_class": "cycloheximide", "auroc_train": 0.9, "purity": value}
                | {**spread(value, 0.1), "null": 0.4, "null_low": 0.3, "null_high": 0.5, "brightness": 0.8}
                | {"baseline": 0.7, "baseline_low": 0.6, "baseline_high": 0.8}
                | {"brightness_low": 0.7, "brightness_high": 0.9}
                | {"brightness_null_low": -0.2, "brightness_null_high": 0.2}
                | {"n_top": 37, "n_active": 200, "n": 746}
            )  # fmt: skip
            for position in range(5):
                pixels = rng.integers(100, 4000, (3, 16, 16)).astype("<u2")
                crops.append(
                    own | {"kind": "top" if position < 3 else "control", "position": position % 3, "sample_id": "s1"}
                    | {"class": "cycloheximide", "batch": "P1", "group": "f1", "code": rng.uniform(0.1, 20)}
                    | {"pixels": pixels.tobytes(), "shape": "3×16×16", "patches": 16}
                    | {"map": rng.random(16).astype("<f4").tobytes()}
                )  # fmt: skip
    return {"galleries": pd.DataFrame(atoms), "galleries_crops": pd.DataFrame(crops)}
