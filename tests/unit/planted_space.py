"""A space by hand: what a further measure reads, without files."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
from scipy import sparse

from conceptome.measures.space import Space


def plain_space(x, fits=(), *, split=None, groups=None, labels=None, columns=None, control=None):
    """Space over activations x (n, d) whose whitening changes nothing.

    Parameters
    ----------
    fits
        (name, seed, atoms (m, d), codes (n, m)) of each fit; the method is the name.
    split, groups, control
        (n,) each; by default two fifths train, one fifth validation, two fifths test; every sample its own group.
    labels
        Label → its entry in the card.
    columns
        Columns of obs beside the reserved ones.
    """
    x = np.asarray(x, dtype=np.float32)
    n = len(x)
    obs = pd.DataFrame(
        {
            "control": np.arange(n) % 2 == 0 if control is None else control,
            "group": [f"g{i}" for i in range(n)] if groups is None else groups,
            "batch": "b",
            "split": np.resize(["train", "test", "train", "test", "validation"], n) if split is None else split,
            **(columns or {}),
        },
        index=pd.Index([f"s{i}" for i in range(n)], name="sample_id"),
    )
    loaded = {
        (name, seed): (
            SimpleNamespace(atoms=np.asarray(atoms, dtype=np.float32), bias=np.float32(0), card={"method": name}),
            SimpleNamespace(to_scipy=lambda codes=codes: sparse.csr_matrix(codes, dtype=np.float32)),
        )
        for name, seed, atoms, codes in fits
    }
    return Space(
        SimpleNamespace(card={"labels": labels or {}}),
        SimpleNamespace(read=lambda rows: x[rows], obs=obs, shape=x.shape),
        SimpleNamespace(transform=lambda rows: rows, card={"method": "none"}),
        loaded,
        {name: name for name, *_ in fits},
        {"dataset": "d", "model": "m", "whitening": "w"},
    )
