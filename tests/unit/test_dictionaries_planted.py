"""Learned dictionaries find planted atoms that overlap, depend on each other, or differ in frequency."""

import numpy as np
import pytest
from planted import mean_maximum_cosine, superpositions

from conceptome.dictionaries import TRAINED, fit

KINDS = ("plain", "tree", "correlated", "heavy")
COMMON = {"m": 64, "steps": 800, "batch_size": 256}
OPTIONS = {
    "topk": {"k": 4},
    "icfl": {"rounds": 4, "columns": 1, "steps": 500},
    "batch_topk": {"k": 4},
    "matryoshka": {"k": 4},
    "relu_l1": {},
    "p_annealing": {},
    "jumprelu": {"k": 4},
    "gated": {"l1_coefficient": 0.4},
    "mp_sae": {"k": 4, "steps": 500},
    "ksvd": {"k": 4, "steps": 100},
    "archetypal": {"k": 4},
    "crosscoder": {"k": 4, "widths": [16, 16]},
}


def recovered(atoms, truth):
    """Share of planted atoms that a learned one matches at a cosine above .9, whatever its sign."""
    return float((np.abs(truth @ atoms.T).max(axis=1) > 0.9).mean())


def test_every_trained_method_is_tried():
    assert set(OPTIONS) == set(TRAINED)


# At least this share of the atoms, by kind: atoms that depend on each other are told apart by few methods.
FLOOR = {"plain": 0.9, "tree": 0.6, "correlated": 0.3, "heavy": 0.9}
# ICFL reads rows by least squares on signed correlations, and Matryoshka's first atoms have to stand for many.
LOWER = {
    ("icfl", "plain"): 0.5,
    ("icfl", "correlated"): 0.1,
    ("ksvd", "tree"): 0.4,
    ("matryoshka", "plain"): 0.5,
    ("matryoshka", "tree"): 0.25,
    ("matryoshka", "correlated"): 0.05,
    ("matryoshka", "heavy"): 0.3,
}


@pytest.mark.parametrize("kind", [KINDS[0], *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[1:])])
@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_planted_atoms_are_recovered(name, kind):
    X, truth = superpositions(kind)
    atoms = fit(name, X, seed=0, threads=1, **COMMON | OPTIONS[name]).atoms
    null = fit("random", X, m=COMMON["m"], k=4).atoms
    print(f"{name:12s} {kind:11s} MMCS {mean_maximum_cosine(atoms, truth):.3f} recovered {recovered(atoms, truth):.2f}")
    assert recovered(null, truth) == 0
    assert recovered(atoms, truth) >= LOWER.get((name, kind), FLOOR[kind])
