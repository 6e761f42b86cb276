"""How alike two models see the same samples: CKA, and representations relative to the same anchors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from conceptome.errors import DataError
from conceptome.measures.rows import choose_rows, seeded
from conceptome.measures.tables import ESTIMATE, PLACE
from conceptome.statistics import group_codes, interval, jackknife

if TYPE_CHECKING:
    import pandas as pd

    from conceptome.config.further import ModelSimilarity
    from conceptome.measures.space import Space

TABLES = {
    "model_similarity": {
        **PLACE,
        "other": "object",
        "statistic": "object",
        "value": "float64",
        **ESTIMATE,
        "anchors": "int64",
        "n": "int64",
    },
}
STATISTICS = ("cka", "relative_cosine", "relative_retrieval")


def gram(X: np.ndarray) -> np.ndarray:
    """Linear kernel of centred rows X (n, d), (n, n) float64, scaled to mean 1 on the diagonal, diagonal then zero."""
    centred = X.astype(np.float64) - X.mean(axis=0, dtype=np.float64)
    found = centred @ centred.T
    found /= np.trace(found) / len(found)
    np.fill_diagonal(found, 0.0)
    return found


def hsic(K: np.ndarray, L: np.ndarray) -> float:
    """Unbiased HSIC of two kernels (n, n) with zero diagonals.

        [tr KL + 1ᵀK1·1ᵀL1 / ((n − 1)(n − 2)) − 2·1ᵀKL1 / (n − 2)] / (n(n − 3))

    References
    ----------
    Song et al. 2012, equation 5.
    """
    n = len(K)
    rows, columns = K.sum(axis=0), L.sum(axis=0)
    crossed = (K * L).sum() + rows.sum() * columns.sum() / ((n - 1) * (n - 2)) - 2 * (rows @ columns) / (n - 2)
    return float(crossed / (n * (n - 3)))


def cka(K: np.ndarray, L: np.ndarray) -> float:
    """HSIC(K, L) / √(HSIC(K, K)·HSIC(L, L)), unbiased: about 0 for unrelated models, also where d exceeds n.

    References
    ----------
    Kornblith et al. 2019; Nguyen, Raghu and Kornblith 2021 (unbiased HSIC).
    """
    scale = hsic(K, K) * hsic(L, L)
    return hsic(K, L) / np.sqrt(scale) if scale > 0 else float("nan")


def relative(X: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """Cosines of rows X (n, d) with anchors (a, d), both seen from the anchors' mean: (n, a) float64.

    References
    ----------
    Moschella et al. 2023, equation 1 (there without centring; activations far from zero are all alike without it).
    """
    centre = anchors.mean(axis=0, dtype=np.float64)
    units = []
    for rows in (X, anchors):
        moved = rows.astype(np.float64) - centre
        lengths = np.linalg.norm(moved, axis=1, keepdims=True)
        units.append(np.divide(moved, lengths, out=np.zeros_like(moved), where=lengths > 0))
    return units[0] @ units[1].T


def _standardised(R: np.ndarray) -> np.ndarray:
    """Relative representations (n, a) less their mean over samples, as unit rows."""
    R = R - R.mean(axis=0)
    lengths = np.linalg.norm(R, axis=1, keepdims=True)
    return np.divide(R, lengths, out=np.zeros_like(R), where=lengths > 0)


def compare(K: np.ndarray, L: np.ndarray, R: np.ndarray, S: np.ndarray) -> np.ndarray:
    """`STATISTICS` of two models' kernels (n, n) and relative representations (n, a).

    relative_cosine: mean cosine of a sample's two relative representations, less the mean over samples.
    relative_retrieval: mean reciprocal rank of a sample's own among all samples' in the other model.
    """
    cosine = _standardised(R) @ _standardised(S).T
    own = np.diagonal(cosine)
    rank = 1 + (cosine > own[:, None]).sum(axis=1)
    return np.array([cka(K, L), own.mean(), (1.0 / rank).mean()])


def measure(space: Space, config: ModelSimilarity) -> dict[str, list[pd.DataFrame]]:
    """Similarity of this model to others on test samples; anchors are training samples, the same for both.

    Activations are taken as the models give them: whitenings play no part. Interval: jackknife over blocks of groups.
    Null: the other model's samples permuted, anchors among themselves and test samples among themselves.

    Returns
    -------
    dict
        `model_similarity`: one row per other model and statistic.

    Raises
    ------
    DataError
        Fewer than two groups of test samples, or fewer than eight samples.
    """
    import pandas as pd

    rows = choose_rows(space.split == "test", config.max_rows, seeded(config.seed, "model_similarity", "test"))
    anchors = choose_rows(space.split == "train", config.anchors, seeded(config.seed, "model_similarity", "anchors"))
    groups, names = group_codes(space.groups[rows])
    if len(names) < 2 or len(rows) < 8:
        raise DataError(
            "measures.model_similarity needs at least eight test samples of two groups: check dataset.split"
        )
    blocks = min(config.blocks, len(names))
    order = np.random.default_rng(seeded(config.seed, "model_similarity", "blocks")).permutation(len(names))
    dealt = np.empty(len(names), dtype=np.int64)
    dealt[order] = np.arange(len(names)) % blocks
    block = dealt[groups]
    X, A = space.raw(rows), space.raw(anchors)
    K, R = gram(X), relative(X, A)
    found = []
    for name, store in space.others.items():
        Y, B = store.read(rows), store.read(anchors)
        L, S = gram(Y), relative(Y, B)
        value, left_out = compare(K, L, R, S), []
        for number in range(blocks):
            kept = np.flatnonzero(block != number)
            part = np.ix_(kept, kept)
            left_out.append(compare(K[part], L[part], R[kept], S[kept]))
        low, high = jackknife(value, np.array(left_out), config.confidence)
        null = []
        for draw in range(config.permutations):
            rng = np.random.default_rng(seeded(config.seed, "model_similarity", "null", name, draw))
            mixed, other_anchors = rng.permutation(len(rows)), rng.permutation(len(anchors))
            null.append(compare(K, L[np.ix_(mixed, mixed)], R, S[mixed][:, other_anchors]))
        null_low, null_high = interval(np.array(null), config.confidence)
        found.append(
            pd.DataFrame(
                {
                    "other": name,
                    "statistic": STATISTICS,
                    "value": value,
                    "low": low,
                    "high": high,
                    "null": np.mean(null, axis=0),
                    "null_low": null_low,
                    "null_high": null_high,
                    "anchors": len(anchors),
                    "n": len(rows),
                }
            )
        )
    return {"model_similarity": found}
