"""Calibration: under permuted labels hardly any discovery, and planted effects are found.

Where the null holds, Benjamini-Hochberg at .05 lets at most one permutation in twenty discover anything: 10 of 200 on
average, and more than 21 with a probability below 10⁻³ (binomial).
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats

from conceptome.config.evidence import Enrichment
from conceptome.config.further import VariancePartition
from conceptome.enrichment.gene_sets import GeneSets
from conceptome.enrichment.labels import Label, enrich_labels
from conceptome.enrichment.residues import enrich_residues
from conceptome.measures.residue_concepts import choose_concepts
from conceptome.measures.variance_partition import Bench, Partition, Source

PERMUTATIONS, MOST, POWER = 200, 21, 0.8
LEVEL = 0.05


def test_the_bound_is_that_of_the_binomial():
    assert stats.binom.sf(MOST, PERMUTATIONS, LEVEL) < 1e-3


def first(found):
    """The table of discoveries, whatever a function gives beside it."""
    if isinstance(found, dict):
        found = next(iter(found.values()))
    return found[0] if isinstance(found, tuple) else found


def codes_like(rng, n, m, rate=0.3):
    return sparse.csr_matrix((rng.gamma(2, 1, (n, m)) * (rng.random((n, m)) < rate)).astype(np.float32))


def label(y, names):
    n = len(y)
    return Label("kind", "biological", np.arange(n), np.array([f"s{i}" for i in range(n)]), y, names)


FAST = Enrichment(bootstraps=1, permutations=1, labels=["kind"])


def test_permuted_labels_are_no_discovery():
    rng = np.random.default_rng(0)
    n = 240
    codes, y, names = codes_like(rng, n, 15), np.arange(n) % 3, ["a", "b", "c"]
    found = 0
    for _ in range(PERMUTATIONS):
        table = enrich_labels(codes, [label(rng.permutation(y), names)], np.zeros(n, dtype=bool), FAST)
        found += bool((table["q"] < LEVEL).any())
    assert found <= MOST


def test_a_planted_class_is_found():
    rng = np.random.default_rng(1)
    n, draws, found = 240, 50, 0
    y = np.arange(n) % 3
    for _ in range(draws):
        codes = codes_like(rng, n, 15).toarray()
        # Atom 4 is active on half of class b, and on a fifth of the others.
        codes[:, 4] = rng.gamma(2, 1, n) * (rng.random(n) < np.where(y == 1, 0.5, 0.2))
        table = enrich_labels(sparse.csr_matrix(codes), [label(y, ["a", "b", "c"])], np.zeros(n, dtype=bool), FAST)
        row = table[(table["atom"] == 4) & (table["term"] == "b")].iloc[0]
        found += bool(row["q"] < LEVEL and row["auroc"] > 0.5)
    assert found >= POWER * draws


def plates(rng, groups=24, m=12, shift=None):
    """Wells of plates of unequal size, each of which has its own rate of activity for every atom.

    Returns codes (n, m), and the plate of each well; `shift` (groups,) moves the rate of atom 4.
    """
    plate = np.repeat(np.arange(groups), rng.integers(6, 20, groups))
    level = 0.9 * rng.standard_normal((groups, m)) - 0.8
    level[:, 4] += 0.0 if shift is None else shift
    # One atom is active on three plates only.
    level[3:, 0] = -9.0
    rate = stats.norm.cdf(level)[plate]
    codes = rng.gamma(2, 1, rate.shape) * (rng.random(rate.shape) < rate)
    return sparse.csr_matrix(codes.astype(np.float32)), plate


def of_plates(kind, plate):
    """A label that is constant in every plate."""
    groups = np.array([f"p{g:02d}" for g in plate])
    return Label("kind", "biological", np.arange(len(plate)), groups, kind[plate], ["a", "b", "c"])


@pytest.mark.parametrize("balanced", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_labels_permuted_between_groups_are_no_discovery(balanced):
    rng = np.random.default_rng([9, balanced])
    codes, plate = plates(rng)
    kind = np.arange(24) % 3 if balanced else np.repeat([0, 1, 2], [16, 5, 3])
    counts = {"group": 0, "sample": 0}
    for draw in range(PERMUTATIONS):
        moved = of_plates(rng.permutation(kind), plate)
        for unit in counts if draw < 40 else ["group"]:
            config = FAST if unit == "group" else FAST.model_copy(update={"label_unit": unit})
            table = enrich_labels(codes, [moved], np.zeros(len(plate), dtype=bool), config)
            assert set(table["unit"]) == {unit}
            counts[unit] += bool((table[["q", "q_fisher"]] < LEVEL).any(axis=None))
    assert counts["group"] <= MOST
    # Wells taken as independent are discoveries nearly always.
    assert counts["sample"] > 30


def test_a_planted_class_of_plates_is_found():
    rng = np.random.default_rng(10)
    draws, found = 50, 0
    kind = np.arange(24) % 3
    for _ in range(draws):
        codes, plate = plates(rng, shift=np.where(kind == 1, 2.0, 0.0))
        table = enrich_labels(codes, [of_plates(kind, plate)], np.zeros(len(plate), dtype=bool), FAST)
        row = table[(table["atom"] == 4) & (table["term"] == "b")].iloc[0]
        found += bool(row["q"] < LEVEL and row["auroc"] > 0.5)
    assert found >= POWER * draws


@pytest.fixture(scope="module")
def cells():
    """Cells with modules of co-expressed genes: correlated genes are what makes naive tests fail."""
    rng = np.random.default_rng(2)
    n, genes, modules = 300, 240, 12
    factors = rng.standard_normal((n, modules))
    expression = rng.standard_normal((n, genes)) + 3.0
    for module in range(modules):
        expression[:, module * 20 : (module + 1) * 20] += 0.5 * factors[:, [module]]
    names = [f"G{i}" for i in range(genes)]
    data = SimpleNamespace(X=sparse.csr_matrix(np.maximum(expression, 0), dtype=np.float32), var_names=pd.Index(names))
    split = np.where(np.arange(n) % 5 < 2, "train", np.where(np.arange(n) % 5 == 2, "validation", "test"))
    obs = pd.DataFrame(
        {"control": np.arange(n) % 2 == 0, "group": [f"c{i}" for i in range(n)], "split": split},
        index=[f"c{i}" for i in range(n)],
    )
    sets = {f"module {i}": names[i * 20 : (i + 1) * 20] for i in range(modules)}
    sets |= {f"mixed {i}": list(rng.choice(names, 20, replace=False)) for i in range(18)}
    return data, obs, {"planted": sets}, factors


GENES = Enrichment(
    bootstraps=10, permutations=10, gene_set_bootstraps=10, null_draws=256, min_genes=5, max_terms=1, top_terms=1
)


def discoveries(cells, fits):
    """(dictionary, atom, term) of all gene sets found at LEVEL."""
    data, obs, sets, _ = cells
    genes = GeneSets(data, obs, sets, GENES)
    for name, codes in fits.items():
        genes.add((name, 0), codes, name)
    table = pd.concat(first(genes.run()), ignore_index=True)
    return table[table["q"] < LEVEL]


@pytest.mark.slow
def test_permuted_codes_have_no_gene_sets(cells):
    rng = np.random.default_rng(3)
    codes = codes_like(rng, 300, 5).toarray()
    codes[:, 0] = np.maximum(cells[3][:, 0], 0)
    fits = {f"p{i}": sparse.csr_matrix(codes[rng.permutation(300)]) for i in range(PERMUTATIONS)}
    assert discoveries(cells, fits)["dictionary"].nunique() <= MOST


def test_a_planted_module_is_found(cells):
    rng = np.random.default_rng(4)
    draws, fits = 25, {}
    for draw in range(draws):
        codes = codes_like(rng, 300, 5).toarray()
        codes[:, 2] = np.maximum(2.0 * cells[3][:, draw % 12] + rng.standard_normal(300), 0)
        fits[f"d{draw}"] = sparse.csr_matrix(codes, dtype=np.float32)
    found = discoveries(cells, fits)
    hits = {
        row.dictionary
        for row in found[found["atom"] == 2].itertuples()
        if row.term == f"module {int(row.dictionary[1:]) % 12}"
    }
    assert len(hits) >= POWER * draws


@pytest.fixture(scope="module")
def proteins():
    """Proteins of 50 residues with one domain of 10 and three points each."""
    rng = np.random.default_rng(5)
    obs, notes = [], []
    for number, split in enumerate(["train"] * 8 + ["validation"] * 10 + ["test"] * 10):
        name = f"P{number}"
        obs += [(f"{name}:{at}", name, at, split, name) for at in range(1, 51)]
        start = int(rng.integers(1, 40))
        notes.append((name, "DOMAIN", "kinase", start, start + 9))
        notes += [(name, "METAL", "zinc", int(at), int(at)) for at in rng.choice(50, 3, replace=False) + 1]
    obs = pd.DataFrame(obs, columns=["sample_id", "protein", "position", "split", "group"]).set_index("sample_id")
    annotations = pd.DataFrame(notes, columns=["protein", "type", "note", "start", "end"])
    return obs, annotations, choose_concepts(obs, annotations, 3)


def shifted_within(values, rng):
    """Codes (n, m) moved around every protein of 50 residues: runs stay runs."""
    proteins = values.reshape(-1, 50, values.shape[1])
    return np.concatenate([np.roll(each, int(rng.integers(50)), axis=0) for each in proteins])


RESIDUES = Enrichment(bootstraps=2, permutations=2, min_f1=0.05, residue_thresholds=[0.0, 0.5])


def of_domain(proteins, rng, inside, outside):
    """An atom that is on in runs of two: on a share `inside` of domain residues, `outside` elsewhere."""
    obs, annotations, _ = proteins
    domain = np.zeros(len(obs), dtype=bool)
    place = {name: at for at, name in enumerate(dict.fromkeys(obs["protein"]))}
    for row in annotations[annotations["type"] == "DOMAIN"].itertuples():
        domain[place[row.protein] * 50 + row.start - 1 : place[row.protein] * 50 + row.end] = True
    return np.where(rng.random(len(obs)) < np.where(domain, inside, outside), 1.0 + rng.random(len(obs)), 0.0)


@pytest.mark.slow
def test_shifted_codes_have_no_concepts(proteins):
    rng = np.random.default_rng(6)
    runs = np.repeat(rng.random((len(proteins[0]) // 5, 6)) < 0.2, 5, axis=0) * rng.uniform(1, 2, (len(proteins[0]), 6))
    found = 0
    for _ in range(PERMUTATIONS):
        table = first(
            enrich_residues(sparse.csr_matrix(shifted_within(runs, rng), dtype=np.float32), proteins[2], RESIDUES)
        )
        found += bool(len(table) and (table["q"] < LEVEL).any())
    assert found <= MOST


def test_a_planted_domain_is_found(proteins):
    rng = np.random.default_rng(7)
    draws, found = 25, 0
    for _ in range(draws):
        codes = codes_like(rng, len(proteins[0]), 6, 0.1).toarray()
        codes[:, 3] = of_domain(proteins, rng, 0.5, 0.1)
        table = first(enrich_residues(sparse.csr_matrix(codes, dtype=np.float32), proteins[2], RESIDUES))
        found += bool(((table["atom"] == 3) & (table["concept"] == "DOMAIN") & (table["q"] < LEVEL)).any())
    assert found >= POWER * draws


def technical_atoms(codes, plate, biology, settings):
    """Flag of every atom of codes (n, m); plates are the groups."""
    sources = [Source("biology", "biological", biology, 3), Source("plate", "technical", plate, plate.max() + 1)]
    return Bench(Partition(sources), plate, settings).tables(sparse.csr_matrix(codes))["variance_partition_atoms"]


def test_permuted_codes_are_not_technical_and_planted_ones_are():
    rng = np.random.default_rng(8)
    n, plates, m = 400, 20, 6
    plate, biology = np.arange(n) % plates, rng.integers(0, 3, n)
    settings = VariancePartition(sources=["biology", "plate"], bootstraps=60, permutations=20)
    codes = codes_like(rng, n, m).toarray()
    # All permutations at once: atoms are partitioned one by one.
    permuted = np.concatenate([codes[rng.permutation(n)] for _ in range(PERMUTATIONS)], axis=1)
    flags = technical_atoms(permuted, plate, biology, settings)["technical"].to_numpy().reshape(PERMUTATIONS, m)
    assert flags.any(axis=1).sum() <= MOST
    shift = rng.normal(size=(plates, 50))[plate] * 0.8
    planted = technical_atoms(shift + rng.normal(size=(n, 50)), plate, biology, settings)
    assert planted["technical"].mean() >= POWER
    of_biology = np.array([0.0, 1.0, 2.0])[biology][:, None] + rng.normal(size=(n, 50))
    assert not technical_atoms(of_biology, plate, biology, settings)["technical"].any()
