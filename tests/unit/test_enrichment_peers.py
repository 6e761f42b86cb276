"""Gene set tests against gseapy and decoupler themselves, in an environment of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from conceptome.enrichment.gmt import index_sets
from conceptome.enrichment.set_tests import naive_log10_p, ora_log10_p, ora_odds, rank_effects, top_overlap
from conceptome.provenance.closure import repository
from conceptome.statistics import benjamini_hochberg

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ATOMS, GENES, CHOSEN = 5, 800, 60


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """Python of an environment with gseapy and decoupler, made from their list unless `make benchmark` has left one."""
    root = repository()
    if (root / ".venv-gene-set-peers" / ".complete").exists():
        return root / ".venv-gene-set-peers" / "bin" / "python"
    folder = tmp_path_factory.mktemp("peers") / "venv"
    setup = ["bash", str(root / "scripts/setup_tools.sh"), sys.executable, str(folder), "envs/gene-set-peers.txt"]
    made = subprocess.run(setup, capture_output=True, text=True)
    if made.returncode:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), "gseapy"]
        if subprocess.run(pip, capture_output=True).returncode:
            pytest.skip("pip cannot reach the package index, which has gseapy and decoupler")
        pytest.fail(f"envs/gene-set-peers.txt cannot be installed: {made.stderr[-2000:]}")
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def compared(python, tmp_path_factory):
    """What we find and what they find on the same associations, sets and background."""
    base = tmp_path_factory.mktemp("compared")
    rng = np.random.default_rng(0)
    names = [f"G{gene}" for gene in range(GENES)]
    sets = {f"set {i}": sorted(rng.choice(names, rng.integers(8, 90), replace=False).tolist()) for i in range(40)}
    association = rng.standard_normal((ATOMS, GENES)).astype(np.float32)
    for atom in range(ATOMS):
        # A set that stands out, up or down, in every atom.
        where = [names.index(gene) for gene in sets[f"set {atom}"]]
        association[atom, where] += 1.5 if atom % 2 else -1.0
    frame = pd.DataFrame(association, columns=names, index=[f"atom {atom}" for atom in range(ATOMS)])
    frame.to_csv(base / "association.csv")
    (base / "sets.json").write_text(json.dumps(sets))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [str(python), str(Path(__file__).with_name("gene_set_peers_side.py")), str(base), str(CHOSEN)],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert not done.returncode, done.stderr[-2000:]
    read = pd.read_csv(base / "association.csv", index_col=0).to_numpy(dtype=np.float32)
    index = index_sets({"c": sets}, names, 2, 500)
    assert list(index.term) == list(sets)
    theirs = {path.stem: pd.read_csv(path, index_col=0).to_numpy() for path in base.glob("*_*.csv")}
    return read, index, theirs


def test_over_representation_is_gseapys(compared):
    association, sets, theirs = compared
    overlap = top_overlap(association, sets, CHOSEN)
    p = 10 ** ora_log10_p(overlap, sets, GENES, CHOSEN)
    listed = ~np.isnan(theirs["gseapy_enrich"])
    # gseapy names only sets that share a gene with the list.
    assert (listed == (overlap > 0)).all()
    np.testing.assert_allclose(p[listed], theirs["gseapy_enrich"][listed], rtol=1e-8)


def test_over_representation_is_decouplers(compared):
    association, sets, theirs = compared
    overlap = top_overlap(association, sets, CHOSEN)
    odds, _, _ = ora_odds(overlap, sets.n_overlap, GENES, CHOSEN)
    np.testing.assert_allclose(np.log(odds), theirs["decoupler_ora"], rtol=1e-5, atol=1e-5)
    # Its p is two-sided, and adjusted over the sets of an atom.
    for atom in range(ATOMS):
        rest = sets.n_overlap - overlap[atom]
        tables = np.array([[overlap[atom], CHOSEN - overlap[atom]], [rest, GENES - CHOSEN - rest]])
        p = np.array([stats.fisher_exact(table).pvalue for table in tables.transpose(2, 0, 1)])
        np.testing.assert_allclose(theirs["decoupler_ora_adjusted"][atom], benjamini_hochberg(p), rtol=1e-4)


def test_the_rank_test_is_decouplers_linear_model_on_ranks(compared):
    association, sets, theirs = compared
    effects = rank_effects(association, sets)
    t = theirs["decoupler_ulm"]
    r = t / np.sqrt(GENES - 2 + t**2)
    n1 = sets.n_overlap
    deviation = np.sqrt((GENES**2 - 1) / 12)
    np.testing.assert_allclose(effects, 0.5 + r * deviation / np.sqrt(n1 * (GENES - n1)), atol=1e-4)
    # The score of the rank-sum test is r √(G − 1), but for the half that it takes off for continuity.
    z = stats.norm.isf(10 ** naive_log10_p(effects, sets, GENES) / 2)
    assert np.abs(z - np.abs(r) * np.sqrt(GENES - 1)).max() < 0.05


def test_the_rank_test_orders_sets_as_gseapys_running_sum(compared):
    association, sets, theirs = compared
    effects, scores = rank_effects(association, sets), theirs["gseapy_prerank"]
    for atom in range(ATOMS):
        planted = np.abs(effects[atom] - 0.5).argmax()
        assert planted == np.abs(scores[atom]).argmax() == atom
        assert stats.spearmanr(effects[atom], scores[atom]).statistic > 0.6
        # Sets of noise have running sums of either sign; the planted ones agree in it.
        assert np.sign(effects[atom, planted] - 0.5) == np.sign(scores[atom, planted])
