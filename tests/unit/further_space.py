"""A space of planted codes for the tests of further measures."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
from scipy import sparse

from conceptome.codes import Codes
from conceptome.measures.space import Space, assemble


class Rows:
    """Activations in memory, read like a store."""

    def __init__(self, X, obs):
        self._X, self.obs, self.shape, self.card = X, obs, X.shape, {}

    def read(self, rows=None):
        return self._X if rows is None else self._X[rows]


def observations(n, groups, **labels):
    """Obs of n samples in equal groups; two thirds of the groups train, the others validate and test."""
    group = np.arange(n) % groups
    return pd.DataFrame(
        {
            "control": np.arange(n) % 3 == 0,
            "group": [f"g{number:03d}" for number in group],
            "batch": None,
            "split": np.array(["train", "train", "train", "train", "validation", "test"])[group % 6],
            **labels,
        },
        index=pd.Index([f"s{number}" for number in range(n)], name="sample_id"),
    )


def fitted(atoms, method="topk", k=None, encoder_rows=None, bias=None, **options):
    """What measures read of a dictionary."""
    card = {"method": method, "m": len(atoms), "d": atoms.shape[1], "k": k, "options": {"k": k, **options}}
    bias = np.zeros(atoms.shape[1]) if bias is None else bias
    return SimpleNamespace(
        atoms=atoms.astype(np.float32), card=card, encoder_rows=encoder_rows, bias=bias, m=len(atoms)
    )


def space(X, obs, fits, labels=None, others=None):
    """Space of (name, seed) → (dictionary, codes (n, m) array); others: name → activations of other models."""
    labels = {"biology": {"role": "biological"}, "plate": {"role": "technical"}} if labels is None else labels
    dataset = SimpleNamespace(card={"labels": labels, "group_is": "group"}, obs=obs)
    whitening = SimpleNamespace(transform=lambda rows: np.asarray(rows, dtype=np.float32))
    fits = {key: (each, Codes(sparse.csr_matrix(codes, dtype=np.float32))) for key, (each, codes) in fits.items()}
    methods = {name: str(dictionary.card["method"]) for (name, _), (dictionary, _) in fits.items()}
    place = {"dataset": "planted", "model": "model", "whitening": "none"}
    others = {name: Rows(np.asarray(rows, dtype=np.float32), obs) for name, rows in (others or {}).items()}
    return Space(dataset, Rows(np.asarray(X, dtype=np.float32), obs), whitening, fits, methods, place, others)


def tables(module, space, config):
    """The tables of a measure as they would be written."""
    found = module.measure(space, config)
    return {name: assemble(name, columns, found.get(name, []), space.place) for name, columns in module.TABLES.items()}
