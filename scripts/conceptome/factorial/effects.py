"""How much of the variance over all cells each factor accounts for: what matters, and what does not.

For every data set and endpoint the cells form a balanced design y[e, d, w, s] of encoder, dictionary, whitening and
seed. A seed's fit is read by all encoders, so the design is a split plot: dictionary and whitening vary between fits,
and are judged against the variance of fits that share both (`seed`); the encoder varies within a fit, and is judged
against what is left there (`seed × encoder`). With SS the sums of squares of the orthogonal terms and MS = SS/df,

    share(T) = (SS_T − df_T · MS_error(T)) / SS_total,

which is ε² (Kelley 1935): unlike η² = SS_T / SS_total it is 0 on average where T does nothing (and may then be
slightly negative). `seed` is what fits vary beyond what varies within them; what is taken off goes back to the error
it came from, so that the shares of all terms sum to 1.

Interval: a bootstrap that in every draw resamples the seeds within each dictionary × whitening and takes the cells'
values under one resampling of test groups, the same for all cells. Resampled means carry their noise twice, which
lifts every share; the draws are shifted so that their mean is the estimate. Null: residuals of the model without the
term, permuted over what it varies between (Freedman and Lane 1983): over fits, or over the encoders of a fit. The null
of the rest is that nothing matters: all cells permuted, which leaves it about everything; it has no p.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from conceptome.errors import DataError
from conceptome.factorial.endpoints import DESCRIPTIVE
from conceptome.measures.rows import seeded
from conceptome.statistics import interval

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

    from conceptome.config.factorial import Factorial

# Axis of each factor among the last four of a design.
AXES = {"encoder": -4, "dictionary": -3, "whitening": -2}
BETWEEN = {
    "dictionary": ("dictionary",),
    "whitening": ("whitening",),
    "dictionary × whitening": ("dictionary", "whitening"),
}
WITHIN = {
    "encoder": ("encoder",),
    "encoder × dictionary": ("encoder", "dictionary"),
    "encoder × whitening": ("encoder", "whitening"),
    "encoder × dictionary × whitening": ("encoder", "dictionary", "whitening"),
}
SEED, REST = "seed", "seed × encoder"
TERMS = (
    "encoder",
    "dictionary",
    "whitening",
    "encoder × dictionary",
    "encoder × whitening",
    "dictionary × whitening",
    "encoder × dictionary × whitening",
    SEED,
    REST,
)
FACTORS = {**BETWEEN, **WITHIN}

EFFECTS: dict[str, str] = {
    "dataset": "object",
    "model": "object",
    "endpoint": "object",
    "label": "object",
    "term": "object",
    "share": "float64",
    "low": "float64",
    "high": "float64",
    "null": "float64",
    "null_low": "float64",
    "null_high": "float64",
    "p": "float64",
    "df": "int64",
    "n_cells": "int64",
    "n_seeds": "int64",
    "verdict": "object",
}
LEVELS: dict[str, str] = {
    "dataset": "object",
    "model": "object",
    "endpoint": "object",
    "label": "object",
    "factor": "object",
    "level": "object",
    "mean": "float64",
    "mean_low": "float64",
    "mean_high": "float64",
    "effect": "float64",
    "low": "float64",
    "high": "float64",
    "null_low": "float64",
    "null_high": "float64",
    "n_cells": "int64",
}
SUMMARY: dict[str, str] = {
    "endpoint": "object",
    "term": "object",
    "level": "object",
    "value": "float64",
    "low": "float64",
    "high": "float64",
    "null": "float64",
    "null_low": "float64",
    "null_high": "float64",
    "n_datasets": "int64",
    "verdict": "object",
}
TABLES = {"factorial_effects": EFFECTS, "factorial_levels": LEVELS, "factorial_summary": SUMMARY}


def components(y: np.ndarray) -> dict[str, np.ndarray]:
    """Split designs (…, E, D, W, S) into their orthogonal terms, each broadcastable to y; they sum to y less its mean.

    The means of a term's factors, less the terms within it (Fisher's decomposition of a balanced design).
    """
    axes = tuple(AXES.values())
    of_fits = y.mean(axis=-1, keepdims=True)
    found: dict[frozenset[str], np.ndarray] = {}
    parts = {frozenset(): of_fits.mean(axis=axes, keepdims=True)}
    for name, factors in sorted(FACTORS.items(), key=lambda item: len(item[1])):
        others = tuple(axis for factor, axis in AXES.items() if factor not in factors)
        own = of_fits.mean(axis=others, keepdims=True) if others else of_fits
        inside = [part for key, part in parts.items() if key < frozenset(factors)]
        found[name] = parts[frozenset(factors)] = own - sum(inside)
    deviation = y - of_fits
    found[SEED] = deviation.mean(axis=AXES["encoder"], keepdims=True)
    found[REST] = deviation - found[SEED]
    return found


def degrees(shape: Sequence[int]) -> dict[str, int]:
    """Degrees of freedom of each term of a design (E, D, W, S)."""
    e, d, w, s = shape[-4:]
    levels = {"encoder": e - 1, "dictionary": d - 1, "whitening": w - 1}
    found = {name: int(np.prod([levels[factor] for factor in factors])) for name, factors in FACTORS.items()}
    return {**found, SEED: d * w * (s - 1), REST: (e - 1) * d * w * (s - 1)}


def _left(shape: Sequence[int]) -> str:
    """The term that is left when all others are taken off: of a design without encoders, the seeds."""
    return REST if shape[-4] > 1 else SEED


@dataclass(frozen=True)
class Decomposition:
    """Shares of the variance (ε²) and F ratios: term → (…); NaN where all cells are equal, or a term has no freedom."""

    share: dict[str, np.ndarray]
    ratio: dict[str, np.ndarray]


def decompose(y: np.ndarray) -> Decomposition:
    """Split the variance of designs (…, E, D, W, S) with S ≥ 2 seeds (module docstring)."""
    shape, df = y.shape[-4:], degrees(y.shape)
    size = float(np.prod(shape))
    squares = {}
    for name, part in components(y).items():
        repeated = size / np.prod(part.shape[-4:])
        squares[name] = (part**2).sum(axis=(-4, -3, -2, -1)) * repeated
    total = sum(squares.values())
    # Rounding alone is no variance.
    total = np.where(total > 1e-12 * size * np.maximum((y**2).mean(axis=(-4, -3, -2, -1)), 1e-300), total, np.nan)
    share, ratio, means = {}, {}, {}
    for error, terms in ((REST, WITHIN), (SEED, BETWEEN)):
        mean = means[error] = squares[error] / df[error] if df[error] else np.full_like(total, np.nan)
        for name in terms:
            used = df[name] > 0
            share[name] = (squares[name] - df[name] * mean) / total if used else np.full_like(total, np.nan)
            ratio[name] = squares[name] / df[name] / np.maximum(mean, 1e-300) if used else share[name]
    # Between fits there is also what varies within them; without encoders nothing does.
    between = df[SEED] + sum(df[name] for name in BETWEEN)
    within = means[REST] if df[REST] else 0.0
    share[SEED] = between * (means[SEED] - within) / total
    ratio[SEED] = means[SEED] / np.maximum(means[REST], 1e-300)
    known = np.nansum(list(share.values()), axis=0)
    share[REST] = np.where(np.isnan(total), np.nan, 1.0 - known) if df[REST] else np.full_like(total, np.nan)
    return Decomposition(share, ratio)


def resample(y: np.ndarray, draws: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Bootstrap designs: draw b takes the values under the b-th resampling of groups, and seeds within each D × W.

    Parameters
    ----------
    y
        (E, D, W, S) estimates.
    draws
        (B, E, D, W, S) under resampled groups; where an endpoint has none (NaN) the estimate stands.
    """
    draws = np.where(np.isnan(draws), y, draws)
    b, _, d, w, s = draws.shape
    chosen = rng.integers(0, s, size=(b, 1, d, w, s))
    return np.take_along_axis(draws, np.broadcast_to(chosen, draws.shape), axis=-1)


def permuted(y: np.ndarray, term: str, n: int, rng: np.random.Generator) -> np.ndarray:
    """Draw designs (n, E, D, W, S) in which a term does nothing (Freedman and Lane 1983).

    What the other terms explain stays; what the term and its error leave is permuted: over fits for what varies between
    them, over the encoders of each fit for what varies within, over the seeds of each encoder for `seed`. For what
    is left when all others are taken off, all cells are permuted: then nothing but it does anything.
    """
    if term == _left(y.shape):
        return rng.permuted(np.broadcast_to(y.ravel(), (n, y.size)), axis=1).reshape(n, *y.shape)
    parts = components(y)
    e, d, w, s = y.shape
    error = SEED if term in BETWEEN else REST
    free = np.broadcast_to(parts[term] + parts[error], y.shape)
    rest = y - free
    if term in BETWEEN:
        flat = free.reshape(e, -1)
        order = rng.random((n, flat.shape[1])).argsort(axis=1)
        return rest + np.moveaxis(flat[:, order], 0, 1).reshape(n, e, d, w, s)
    axis = -1 if term == SEED else 1
    order = rng.random((n, e, d, w, s)).argsort(axis=axis)
    return rest + np.take_along_axis(np.broadcast_to(free, (n, *y.shape)), order, axis=axis)


def shifted(draws: np.ndarray, estimate: np.ndarray) -> np.ndarray:
    """Shift draws (B, …) so that their mean is the estimate."""
    return draws if np.isnan(draws).all() else draws - np.nanmean(draws, axis=0) + estimate


def verdict(low: float, high: float, above: float) -> str:
    """matters: surely above; does not: surely not above; unclear: the interval holds it."""
    if not np.isfinite(low + high):
        return ""
    return "matters" if low > above else "does not matter" if high < above else "unclear"


@dataclass(frozen=True)
class _Analysis:
    """One data set and endpoint: rows of the two tables, and the draws that the summary averages."""

    effects: list[dict]
    levels: list[dict]
    draws: dict[tuple[str, str], tuple[float, np.ndarray, np.ndarray]]  # (term, level) → estimate, draws, null


def analyse(
    y: np.ndarray, draws: np.ndarray, names: Mapping[str, Sequence[str]], config: Factorial, words: Sequence[str]
) -> _Analysis:
    """Shares of all terms and means of all levels of one design, with intervals and nulls.

    Parameters
    ----------
    y, draws
        (E, D, W, S) and (B, E, D, W, S).
    names
        Factor → names of its levels, in the order of the axes.
    words
        Name the randomness of this analysis.
    """
    rng = np.random.default_rng(seeded(config.seed, "factorial", "effects", *words))
    df, n_cells = degrees(y.shape), int(y.size)
    found = decompose(y)
    sampled = resample(y, draws, rng)
    boot = decompose(sampled)
    deviation, mean = y.std(), y.mean()
    effects, levels, kept = [], [], {}
    for term in TERMS:
        if not df[term]:
            continue
        estimate = float(found.share[term])
        spread = shifted(boot.share[term], estimate)
        low, high = map(float, interval(spread, config.confidence))
        null, p = np.full(config.permutations, np.nan), np.nan
        if np.isfinite(estimate):
            without = permuted(y, term, config.permutations, rng)
            by_chance = decompose(without)
            null = by_chance.share[term]
            if term != _left(y.shape):
                beyond = by_chance.ratio[term] >= found.ratio[term] * (1 - 1e-9)
                p = (1 + int(beyond.sum())) / (1 + config.permutations)
            if term in AXES:
                levels += _levels(y, sampled, without, term, names[term], config, kept, mean, deviation)
        null_low, null_high = map(float, interval(null, config.confidence))
        effects.append(
            {
                "term": term,
                "share": estimate,
                "low": low,
                "high": high,
                "null": float(np.mean(null)),
                "null_low": null_low,
                "null_high": null_high,
                "p": p,
                "df": df[term],
                "n_cells": n_cells,
                "n_seeds": y.shape[-1],
                "verdict": verdict(low, high, config.matters_above),
            }
        )
        kept[term, ""] = (estimate, spread, null)
    return _Analysis(effects, levels, kept)


def _levels(
    y: np.ndarray,
    sampled: np.ndarray,
    without: np.ndarray,
    factor: str,
    names: Sequence[str],
    config: Factorial,
    kept: dict,
    mean: float,
    deviation: float,
) -> list[dict]:
    """Mean of each level of a factor, and its deviation from all cells in their standard deviations."""
    others = tuple(axis for axis in (-4, -3, -2, -1) if axis != AXES[factor])
    rows = []
    # Resampling S seeds gives means the variance of S − 1.
    wider = np.sqrt(y.shape[-1] / (y.shape[-1] - 1))
    own, drawn, chance = (each.mean(axis=others) for each in (y, sampled, without))
    grand, grand_null = (each.mean(axis=(-4, -3, -2, -1)) for each in (sampled, without))
    for place, level in enumerate(names):
        effect = float((own[place] - mean) / deviation)
        # Resampling groups moves all cells together: the effect is against each draw's own mean.
        spread = effect + wider * ((drawn[:, place] - grand) / deviation - effect)
        null = (chance[:, place] - grand_null) / deviation
        low, high = interval(spread, config.confidence)
        mean_low, mean_high = interval(own[place] + wider * (drawn[:, place] - own[place]), config.confidence)
        null_low, null_high = interval(null, config.confidence)
        kept[factor, level] = (effect, spread, null)
        rows.append(
            {
                "factor": factor,
                "level": level,
                "mean": float(own[place]),
                "mean_low": float(mean_low),
                "mean_high": float(mean_high),
                "effect": effect,
                "low": float(low),
                "high": float(high),
                "null_low": float(null_low),
                "null_high": float(null_high),
                "n_cells": int(y.size // len(names)),
            }
        )
    return rows


def designs(cells: pd.DataFrame, config: Factorial, seeds: Sequence[int]) -> list[tuple[dict, np.ndarray, np.ndarray]]:
    """Lay out each data set's and endpoint's cells as a design: (place, y, draws), as `analyse` takes them.

    Raises
    ------
    DataError
        A cell is missing or twice there.
    """
    cells = cells[(cells["design"] == "factorial") & ~cells["endpoint"].isin(DESCRIPTIVE)]
    found = []
    for keys, part in cells.groupby(["dataset", "model", "endpoint", "label"], sort=False):
        place = dict(zip(("dataset", "model", "endpoint", "label"), keys))
        encoders = [""] if (part["encoder"] == "").all() else list(config.encoders)
        order = (encoders, config.dictionaries, config.whitenings, list(seeds))
        shape = tuple(map(len, order))
        position = np.zeros(len(part), dtype=np.int64)
        for column, levels in zip(("encoder", "dictionary", "whitening", "seed"), order):
            number = {level: index for index, level in enumerate(levels)}
            position = position * len(levels) + part[column].map(number).to_numpy()
        if len(part) != np.prod(shape) or len(np.unique(position)) != len(part):
            raise DataError(
                f"factorial: {place['dataset']}, endpoint {place['endpoint']} {place['label']}: {len(part)} cells, not "
                f"{int(np.prod(shape))}: the design is balanced; run the missing methods or seeds again"
            )
        ranked = part.iloc[np.argsort(position)]
        y = ranked["value"].to_numpy(dtype=np.float64).reshape(shape)
        draws = np.stack(ranked["draws"].to_list()).astype(np.float64)
        found.append((place, y, np.moveaxis(draws, -1, 0).reshape(-1, *shape)))
    return found


def effects(cells: pd.DataFrame, config: Factorial, seeds: Sequence[int]) -> dict[str, pd.DataFrame]:
    """What matters: the tables of `TABLES` from the cells of all data sets.

    The summary averages shares, and standardised effects of levels, over data sets (over a data set's labels first),
    and its interval and null their draws: it holds for these data sets, not for a population of them.

    Parameters
    ----------
    cells
        As `evaluate.evaluate` gives them, of all data sets, methods and whitenings; `draws` (bootstraps,) each.
    seeds
        Of the run.

    Raises
    ------
    DataError
        As `designs`; fewer than two seeds.
    """
    import pandas as pd

    if len(seeds) < 2:
        raise DataError(
            "factorial: with one seed there is no error to judge a factor against: give run.seeds two or more"
        )
    effect_rows, level_rows = [], []
    pooled: dict[tuple[str, str, str], dict[str, list]] = {}
    names = {"dictionary": config.dictionaries, "whitening": config.whitenings}
    for place, y, draws in designs(cells, config, seeds):
        encoders = config.encoders if y.shape[0] > 1 else [""]
        analysis = analyse(y, draws, {**names, "encoder": encoders}, config, list(place.values()))
        effect_rows += [{**place, **row} for row in analysis.effects]
        level_rows += [{**place, **row} for row in analysis.levels]
        for (term, level), values in analysis.draws.items():
            per_dataset = pooled.setdefault((place["endpoint"], term, level), {})
            if np.isfinite(values[0]):
                per_dataset.setdefault(place["dataset"], []).append(values)
    rows = []
    for (endpoint, term, level), per_dataset in pooled.items():
        if not per_dataset:
            continue
        estimate, spread, null = (
            np.mean([np.mean([each[i] for each in own], axis=0) for own in per_dataset.values()], axis=0)
            for i in range(3)
        )
        low, high = map(float, interval(spread, config.confidence))
        null_low, null_high = map(float, interval(null, config.confidence))
        rows.append(
            {
                "endpoint": endpoint,
                "term": term,
                "level": level,
                "value": float(estimate),
                "low": low,
                "high": high,
                "null": float(np.mean(null)),
                "null_low": null_low,
                "null_high": null_high,
                "n_datasets": len(per_dataset),
                "verdict": "" if level else verdict(low, high, config.matters_above),
            }
        )
    tables = {"factorial_effects": effect_rows, "factorial_levels": level_rows, "factorial_summary": rows}
    return {
        name: pd.DataFrame(found, columns=list(TABLES[name])).astype(TABLES[name]) for name, found in tables.items()
    }
