"""Which concepts two models of the same samples share, and which belong to one alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from conceptome.dictionaries.crosscoder import SPECIFIC_ERROR, SPECIFIC_RECONSTRUCTION
from conceptome.measures.rows import choose_rows, seeded
from conceptome.measures.tables import ESTIMATE, FIT
from conceptome.statistics import bootstrap_groups, group_codes, interval

if TYPE_CHECKING:
    import pandas as pd

    from conceptome.config.further import LatentScaling
    from conceptome.dictionaries.crosscoder import Crosscoder
    from conceptome.measures.space import Space

TABLES = {
    "latent_scaling": {
        **FIT,
        "other": "object",
        "kind": "object",
        "value": "float64",
        **ESTIMATE,
        "atoms": "int64",
        "n": "int64",
    },
    "latent_scaling_atoms": {
        **FIT,
        "other": "object",
        "atom": "int64",
        "own_norm": "float64",
        "nu_error": "float64",
        "nu_error_low": "float64",
        "nu_error_high": "float64",
        "nu_error_null_high": "float64",
        "nu_reconstruction": "float64",
        "nu_reconstruction_low": "float64",
        "nu_reconstruction_high": "float64",
        "nu_reconstruction_null_high": "float64",
        "kind": "object",
        "n_active": "int64",
    },
}
KINDS = ("shared", "own", "other")
# A ratio to what is hardly there says no more than this.
LARGEST = 1e3


def presence(dictionary: Crosscoder, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How strongly each atom's code is present in each model's error (without the atom) and reconstruction.

        b_j = f_jᵀY / ‖f_j‖²,   β_j² = ‖b_j‖² − tr Cov(Y − f_j b_j) / ‖f_j‖²   (f_j and Y centred)

    b_j is the slope of Y on the code in the direction that fits best. Chance gives any direction a slope: the second
    term is what a code that has nothing to do with Y reaches on average, so that β² is unbiased; below 0 it is 0.
    Without centring, what codes that are never negative share with Y's mean would count as presence.

    Parameters
    ----------
    X
        (n, d) rows, the two models side by side.

    Returns
    -------
    error, reconstruction
        β, float64 (m, 2), in units of each model's scale; NaN where the atom is silent.
    """
    codes = dictionary.encode(X, encoder="own").to_scipy().toarray().astype(np.float64)
    atoms = dictionary.atoms.astype(np.float64)
    decoded = codes @ atoms
    codes -= codes.mean(axis=0)
    energy = np.square(codes).sum(axis=0)
    left = X - dictionary.bias - decoded
    found = []
    for rows, own in ((left - left.mean(axis=0), True), (decoded - decoded.mean(axis=0), False)):
        products, squares = codes.T @ rows, np.square(rows).sum(axis=0)
        betas = []
        for columns, scale in zip(dictionary.parts, dictionary.parameters["scales"]):
            part = products[:, columns]
            with np.errstate(divide="ignore", invalid="ignore"):
                # Putting the atom back moves the slope by its direction, and leaves what the code does not explain.
                slope = part / energy[:, None] + (atoms[:, columns] if own else 0.0)
                rest = squares[columns].sum() - np.square(part).sum(axis=1) / energy
                squared = np.square(slope).sum(axis=1) - rest / (len(X) - 2) / energy
            betas.append(np.sqrt(np.maximum(squared, 0.0)) / scale)
        found.append(np.stack(betas, axis=1))
    silent = energy <= 1e-12 * max(energy.max(initial=0.0), 1e-300)
    for each in found:
        each[silent] = np.nan
    return found[0], found[1]


def kinds(dictionary: Crosscoder, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sort the atoms of a crosscoder of two models by latent scaling on rows X (n, d).

    Returns
    -------
    kind
        (m,) int64, position in `KINDS`: "own" is specific to the first model (ν_error < .2 and ν_reconstruction < .5 of
        the second relative to the first), "other" to the second, "shared" is not shown to be either's; −1 for atoms
        that are silent or present in neither.
    nu
        (2, m): ν of error and of reconstruction, the second model relative to the first, at most `LARGEST`.
    """
    limits = np.array([[SPECIFIC_ERROR], [SPECIFIC_RECONSTRUCTION]])
    both = np.stack(presence(dictionary, X))
    with np.errstate(divide="ignore", invalid="ignore"):
        nu, back = (
            np.minimum(ratio, LARGEST) for ratio in (both[:, :, 1] / both[:, :, 0], both[:, :, 0] / both[:, :, 1])
        )
    kind = np.zeros(nu.shape[1], dtype=np.int64)
    kind[(nu < limits).all(axis=0)] = 1
    kind[(back < limits).all(axis=0)] = 2
    kind[np.isnan(nu).any(axis=0)] = -1
    return kind, nu


def shares(kind: np.ndarray) -> np.ndarray:
    """Share of each of `KINDS` among the atoms that fire, (3,); NaN without any."""
    alive = kind[kind >= 0]
    return np.bincount(alive, minlength=len(KINDS)) / len(alive) if len(alive) else np.full(len(KINDS), np.nan)


def measure(space: Space, config: LatentScaling) -> dict[str, list[pd.DataFrame]]:
    """Fit a crosscoder of this model and each other one on paired training samples, and scale its atoms on test ones.

        ν = β of the other model / β of this one   (`presence`)

    An atom belongs to one model alone when ν of the other is below .2 (error) and .5 (reconstruction). Minder et al.
    compare a network with its further training, and measure β along the atom's own direction; models of different kinds
    share no space, so that here each model has the direction that fits best, and β what chance fits taken away.
    Activations are taken as the models give them: the crosscoder scales each, and whitenings play no part, so that the
    tables of all whitenings of a model are alike.

    Interval: bootstrap by group over test samples, moved by its bias. Null: crosscoders of pairs of samples that do not
    belong together (the other model's samples permuted in both splits): what is shared then is shared by chance; of ν,
    the upper bound over all atoms of those that are more this model's than the other's.

    Returns
    -------
    dict
        `latent_scaling`: per other model the share of atoms that are shared, this model's own, the other's own.
        `latent_scaling_atoms`: per atom, with ν.

    References
    ----------
    Minder et al. 2025 (latent scaling; thresholds .2 and .5); `crosscoder.latent_scaling` has their direction.
    """
    import pandas as pd

    train = choose_rows(space.split == "train", config.max_rows, seeded(config.seed, "latent_scaling", "train"))
    test = choose_rows(space.split == "test", config.max_rows, seeded(config.seed, "latent_scaling", "test"))
    groups, _ = group_codes(space.groups[test])
    drawn = bootstrap_groups(groups, config.bootstraps, seeded(config.seed, "latent_scaling", "bootstrap"))[:, groups]
    own = {"train": space.raw(train), "test": space.raw(test)}
    key = {"dictionary": "crosscoder", "method": "crosscoder", "seed": config.seed}
    summaries, atoms = [], []
    for name, store in space.others.items():
        other = {"train": store.read(train), "test": store.read(test)}
        dictionary = _fitted(own["train"], other["train"], config)
        X = np.concatenate([own["test"], other["test"]], axis=1)
        kind, nu = kinds(dictionary, X)
        draws = [kinds(dictionary, np.repeat(X, weights, axis=0)) for weights in drawn]
        value = shares(kind)
        drawn_shares = np.stack([shares(each) for each, _ in draws])
        # Samples drawn twice fit any direction better, which moves ν and with it the shares: the bias is taken away.
        low, high = interval(drawn_shares - drawn_shares.mean(axis=0) + value, config.confidence)
        low, high = np.clip(np.minimum(low, value), 0, 1), np.clip(np.maximum(high, value), 0, 1)
        nu_low, nu_high = interval(np.stack([each for _, each in draws]), config.confidence)
        null, nu_null = [], []
        for draw in range(config.permutations):
            rng = np.random.default_rng(seeded(config.seed, "latent_scaling", "null", name, draw))
            mixed = {part: rows[rng.permutation(len(rows))] for part, rows in other.items()}
            chance = _fitted(own["train"], mixed["train"], config)
            kind_null, each = kinds(chance, np.concatenate([own["test"], mixed["test"]], axis=1))
            null.append(shares(kind_null))
            # An atom of what does not belong together is one model's: ν there is what the other reaches by chance.
            nu_null.append(each[:, (each < 1).all(axis=0)])
        null_low, null_high = interval(np.stack(null), config.confidence)
        by_chance = np.concatenate(nu_null, axis=1)
        highest = np.quantile(by_chance, (1 + config.confidence) / 2, axis=1) if by_chance.size else [np.nan, np.nan]
        summaries.append(
            pd.DataFrame(
                {
                    **key,
                    "other": name,
                    "kind": KINDS,
                    "value": value,
                    "low": low,
                    "high": high,
                    "null": np.mean(null, axis=0),
                    "null_low": null_low,
                    "null_high": null_high,
                    "atoms": int((kind >= 0).sum()),
                    "n": len(test),
                }
            )
        )
        atoms.append(
            pd.DataFrame(
                {
                    **key,
                    "other": name,
                    "atom": np.arange(len(kind)),
                    "own_norm": dictionary.norms[:, 0],
                    "nu_error": nu[0],
                    "nu_error_low": nu_low[0],
                    "nu_error_high": nu_high[0],
                    "nu_error_null_high": highest[0],
                    "nu_reconstruction": nu[1],
                    "nu_reconstruction_low": nu_low[1],
                    "nu_reconstruction_high": nu_high[1],
                    "nu_reconstruction_null_high": highest[1],
                    "kind": np.array([*KINDS, "silent"])[kind],
                    "n_active": dictionary.encode(X).counts(),
                }
            )
        )
    return {"latent_scaling": summaries, "latent_scaling_atoms": atoms}


def _fitted(own: np.ndarray, other: np.ndarray, config: LatentScaling) -> Crosscoder:
    """Crosscoder of two models' training rows, side by side."""
    from conceptome.dictionaries import fit

    return fit(
        "crosscoder",
        np.concatenate([own, other], axis=1),
        m=config.m,
        k=config.k,
        seed=config.seed,
        widths=[own.shape[1], other.shape[1]],
        steps=config.steps,
        batch_size=config.batch_size,
    )
