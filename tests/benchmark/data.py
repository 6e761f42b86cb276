"""What everybody is given: simulated superposition, and the residues' activations of a finished run."""

from __future__ import annotations

from pathlib import Path

import numpy as np

FEATURES, ACTIVE, NOISE = 2000, 24, 0.05
BLOCK = 4096


def superposition(n: int, d: int, seed: int = 0) -> np.ndarray:
    """Zipf superposition of 2,000 unit features, 24 active, and 5 % noise: float32 (n, d) of unit deviation."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((FEATURES, d), dtype=np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    rarity = np.arange(1, FEATURES + 1, dtype=np.float32)
    X = np.empty((n, d), dtype=np.float32)
    for at in range(0, n, BLOCK):
        size = min(BLOCK, n - at)
        # The largest u^(1/p) are a weighted sample without replacement with weights p (Efraimidis and Spirakis 2006).
        keys = np.log(rng.random((size, FEATURES), dtype=np.float32) + 1e-30) * rarity
        chosen = np.argpartition(-keys, ACTIVE, axis=1)[:, :ACTIVE]
        codes = np.zeros((size, FEATURES), dtype=np.float32)
        np.put_along_axis(codes, chosen, rng.random(chosen.shape, dtype=np.float32) + np.float32(0.5), axis=1)
        X[at : at + size] = codes @ features + NOISE * rng.standard_normal((size, d), dtype=np.float32)
    return X / X.std()


def yeast(folder: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """Training and test rows of ESM-2's activations of yeast proteins, where a finished run has left them."""
    if not (folder / "card.json").exists():
        return None
    from conceptome.activations import Store

    store = Store(folder)
    split = store.obs["split"].to_numpy()
    return store.read(np.flatnonzero(split == "train")), store.read(np.flatnonzero(split == "test"))


def standardised(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both with the training rows' mean removed and divided by their deviation, one number for all dimensions."""
    mean = train.mean(axis=0, dtype=np.float64).astype(np.float32)
    deviation = np.float32((train - mean).std())
    return (train - mean) / deviation, (test - mean) / deviation
