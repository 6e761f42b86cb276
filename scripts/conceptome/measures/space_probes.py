"""Linear probes on what lies before, in and beside the codes, and against the number of active atoms."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from conceptome.config.evidence import Measures
from conceptome.measures.probes import probe
from conceptome.measures.rows import Classes, classes_of
from conceptome.measures.tables import FIT, PLACE
from conceptome.measures.tables import TABLES as CORE

if TYPE_CHECKING:
    import pandas as pd
    from scipy import sparse

    from conceptome.config.further import SpaceProbes
    from conceptome.measures.space import Space

_PROBE = {name: kind for name, kind in CORE["probes"].items() if name not in (*FIT, *PLACE)}
TABLES: dict[str, dict[str, str]] = {
    "space_probes": {**FIT, "part": "object", "source": "object", **_PROBE, "n": "int64", "variance": "float64"},
    "space_probes_sparsity": {
        **FIT,
        "part": "object",
        "source": "object",
        "k": "int64",
        "l0": "float64",
        **_PROBE,
        "n": "int64",
    },
}
# Share of the variance below which a residual is rounding.
ROUNDING = 1e-6
# What the activations themselves give stands in the tables as a dictionary of its own.
BEFORE = {"activations": "activations", "whitened": "whitened"}


def tails(values: np.ndarray, train: np.ndarray, k: int) -> sparse.csr_matrix:
    """Mark features in their two tails, so that about k of the 2d marks of a sample are set.

    A feature below its α quantile, or above its 1 − α quantile, of the training samples is marked; the two tails are
    two marks, so that a linear probe can weigh them apart. α = k / (2d).

    Parameters
    ----------
    values
        (n, d) features.
    train
        (n,) bool: the samples of the quantiles.
    k
        Marks per sample, on average over training samples.

    Returns
    -------
    scipy.sparse.csr_matrix
        (n, 2d) float32 of 0 and 1: lower tails, then upper tails.

    References
    ----------
    Donhauser et al. 2025 (arXiv 2412.16247): the baseline of binarised CellProfiler features.
    """
    from scipy import sparse

    alpha = min(k / (2.0 * values.shape[1]), 0.5)
    low, high = np.quantile(values[train], [alpha, 1.0 - alpha], axis=0)
    return sparse.csr_matrix(np.concatenate([values < low, values > high], axis=1).astype(np.float32))


def largest(codes: sparse.csr_matrix, k: int) -> sparse.csr_matrix:
    """Keep the k values of largest magnitude of each sample."""
    from conceptome.codes import Codes

    return Codes(codes).truncate(k).to_scipy()


def _settings(config: SpaceProbes) -> Measures:
    """The same settings under the names of the core probe."""
    return Measures(
        bootstraps=config.bootstraps,
        confidence=config.confidence,
        seed=config.seed,
        probe_strengths=config.strengths,
        probe_permutations=config.permutations,
        probe_max_iterations=config.max_iterations,
    )


def _explained(part: np.ndarray, whole: np.ndarray) -> float:
    """Variance of a part of the activations, in units of that of the whole."""
    return float(part.var(axis=0).sum() / max(whole.var(axis=0).sum(), np.finfo(np.float64).tiny))


def measure(space: Space, config: SpaceProbes) -> dict[str, list[pd.DataFrame]]:
    """Probe the activations, the codes, and what a dictionary keeps and leaves of the activations.

    Balanced accuracy of class-balanced logistic regressions, penalty chosen on validation, as in the core's probes
    (`probes.probe`: test groups, permuted-label null, bootstrap by group), on

    activations: x as the model gives it; whitened: W(x), in which dictionaries live; codes: z;
    reconstruction: x̂ = zD + b, the part of W(x) in the space that the dictionary reaches; residual: W(x) − x̂, the rest.

    Donhauser et al. split by projection on the row space of the map from encoder to decoder, and probe what lies in
    that space and in its null space. A dictionary with more atoms than dimensions spans everything, so that its row
    space as a matrix is the whole space and its null space empty. What such a dictionary reaches for a sample is the
    span of the few atoms active there, and the projection on it is the reconstruction: that is the split taken here.
    `variance` is the share of the variance of W(x) that each part has: two parts with unequal shares are compared at
    equal footing only through the random dictionary, which splits at the same k without having learned anything. A
    residual with less than `ROUNDING` of it counts as empty.

    Against sparsity (`space_probes_sparsity`): codes cut to the k values of largest magnitude per sample, and, as
    part 'tails', activations marked where they lie in the tails of their training distribution, about k marks per
    sample: the baseline of binarised CellProfiler features.

    Parameters
    ----------
    space
        The dictionaries' space. The first `config.seeds` seeds of each dictionary are probed.

    Raises
    ------
    DataError
        A label is missing or numeric.

    References
    ----------
    Donhauser et al., ICML 2025 (arXiv 2412.16247): probing tasks, row and null space, accuracy against sparsity.
    """
    from scipy import sparse

    settings = _settings(config)
    group_is = str(space.card.get("group_is", "group"))
    every = [classes_of(space, config, label, "classes") for label in config.labels]
    found: dict[str, list[pd.DataFrame]] = {name: [] for name in TABLES}

    def probed(x: np.ndarray | sparse.csr_matrix, classes: Classes, **columns) -> pd.DataFrame:
        frame = probe(sparse.csr_matrix(x), classes, settings, group_is)
        return frame.assign(source=classes.label, n=frame["n_test"], **columns)

    for classes in every:
        before = {"activations": space.raw(classes.rows), "whitened": space.white(classes.rows)}
        for part, x in before.items():
            fit = {"dictionary": BEFORE[part], "method": BEFORE[part], "seed": 0}
            if part in config.parts:
                found["space_probes"].append(probed(x, classes, part=part, variance=1.0, **fit))
        for k in config.k:
            # At 2d marks per sample every value would lie in a tail.
            if k <= before["activations"].shape[1]:
                marks = tails(before["activations"], classes.part("train"), k)
                fit = {"dictionary": "activations", "method": "activations", "seed": 0}
                l0 = marks.nnz / max(marks.shape[0], 1)
                found["space_probes_sparsity"].append(probed(marks, classes, part="tails", k=k, l0=l0, **fit))

    taken: dict[str, int] = {}
    for name, seed, dictionary, codes in space.each_fit():
        taken[name] = taken.get(name, 0) + 1
        if taken[name] > config.seeds:
            continue
        fit = {"dictionary": name, "method": space.methods[name], "seed": seed}
        for classes in every:
            part = codes[classes.rows]
            white = space.white(classes.rows).astype(np.float64)
            rebuilt = part @ dictionary.atoms.astype(np.float64) + dictionary.bias
            pieces = {"codes": (part, np.nan), "reconstruction": (rebuilt, _explained(rebuilt, white))}
            rest = _explained(white - rebuilt, white)
            # A probe scales its input: what rounding leaves beside a perfect reconstruction would be read as well.
            pieces["residual"] = (white - rebuilt if rest > ROUNDING else np.zeros_like(white), rest)
            for kind, (x, variance) in pieces.items():
                if kind in config.parts:
                    found["space_probes"].append(probed(x, classes, part=kind, variance=variance, **fit))
            most = int(np.diff(part.indptr).max(initial=0))
            for k in config.k:
                if k <= most:
                    cut = largest(part, k)
                    l0 = cut.nnz / max(cut.shape[0], 1)
                    found["space_probes_sparsity"].append(probed(cut, classes, part="codes", k=k, l0=l0, **fit))
    return found
