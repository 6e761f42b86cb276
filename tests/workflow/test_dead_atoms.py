"""On real activations, with a method's defaults, hardly an atom stays dead."""

import numpy as np
import pytest
from workspace import Workspace

from conceptome.activations import Store
from conceptome.dictionaries import fit

# Real embeddings of the default run: two minutes.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

STORES = {"kang2018": "scvi", "yeast": "esm2"}
BLOCK = 4096


@pytest.fixture(scope="module")
def embedded(tmp_path_factory) -> Workspace:
    """The default run, as far as the activations."""
    workspace = Workspace(tmp_path_factory.mktemp("embedded"), config="config/default.yaml", results="results")
    workspace.snakemake(*(f"results/activations/{dataset}/{model}.sha256" for dataset, model in STORES.items()))
    return workspace


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("method", ["topk", "batch_topk"])
@pytest.mark.parametrize("dataset", STORES)
def test_at_most_one_atom_in_twenty_fires_on_no_training_row(embedded, dataset, method, seed):
    """A fit centres its rows itself. At a learning rate of .02 more than half of TopK's atoms die on yeast."""
    store = Store(embedded.path("activations", dataset, STORES[dataset]))
    rows = np.flatnonzero(store.obs["split"].to_numpy() == "train")
    X = store.read(rows)
    dictionary = fit(method, X, seed=seed)
    assert dictionary.m == 512
    fired = np.zeros(dictionary.m, dtype=bool)
    for start in range(0, len(X), BLOCK):
        fired[dictionary.encode(X[start : start + BLOCK]).to_scipy().indices] = True
    print(f"{dataset}, {method}, seed {seed}: {np.sum(~fired)} of {dictionary.m} atoms are dead, {len(X)} rows")
    assert np.mean(~fired) <= 0.05
