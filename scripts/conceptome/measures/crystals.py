"""Crystals: whether the step between two classes, or their atoms, is the same vector beside every other class."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from conceptome.measures.rows import choose_rows, class_name, described_label, seeded
from conceptome.measures.tables import ESTIMATE, PLACE
from conceptome.statistics import bootstrap_groups, group_codes, interval

if TYPE_CHECKING:
    import pandas as pd
    from scipy import sparse

    from conceptome.config.further import Crystals
    from conceptome.measures.space import Space

logger = logging.getLogger(__name__)

TABLES: dict[str, dict[str, str]] = {
    "crystals": {
        **PLACE,
        "points": "object",
        "dictionary": "object",
        "method": "object",
        "seed": "float64",
        "step": "object",
        "beside": "object",
        "shape": "object",
        "projection": "object",
        "silhouette": "float64",
        **ESTIMATE,
        "p": "float64",
        "random": "float64",
        "random_low": "float64",
        "random_high": "float64",
        "p_random": "float64",
        "n_relations": "int64",
        "n_columns": "int64",
        "n_steps": "int64",
        "n_pairings": "int64",
        "n": "int64",
    },
    "crystals_steps": {
        **PLACE,
        "step": "object",
        "beside": "object",
        "relation": "object",
        "column": "object",
        "x": "float64",
        "y": "float64",
        "projection": "object",
    },
}
PROJECTIONS = ("none", "LDA")
# Steps of one kind that are the same vector make parallelograms; steps that only share their direction, trapezoids.
SHAPES = ("parallelogram", "trapezoid")


@dataclass(frozen=True)
class Grid:
    """Class means of two labels, and the steps between them.

    Attributes
    ----------
    cell
        (n,) int64, which cell of the grid each sample is in, row · columns + column; −1: none.
    filled
        (rows, columns) bool: cells with enough samples.
    relations
        (r, 2) int64 pairs of rows (from, to) that are seen beside enough columns.
    rows, columns
        Names of the classes.
    """

    cell: np.ndarray
    filled: np.ndarray
    relations: np.ndarray
    rows: list[str]
    columns: list[str]

    def means(self, x: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        """Mean of x (n, d) in each cell: (rows, columns, d); NaN where a cell is empty."""
        inside = self.cell >= 0
        weight = np.ones(inside.sum()) if weights is None else weights[inside].astype(np.float64)
        total = np.zeros((self.filled.size, x.shape[1]))
        # Cells are few: one pass per cell over its own samples is faster than an unbuffered add.
        order = np.argsort(self.cell[inside], kind="stable")
        cells, starts = np.unique(self.cell[inside][order], return_index=True)
        total[cells] = np.add.reduceat(x[inside][order] * weight[order, None], starts, axis=0)
        count = np.bincount(self.cell[inside], weights=weight, minlength=self.filled.size)
        mean = np.divide(total, count[:, None], out=np.full(total.shape, np.nan), where=count[:, None] > 0)
        return mean.reshape(*self.filled.shape, x.shape[1])

    def steps(self, means: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Difference vectors (s, d) of all relations beside all columns, with their relation (s,) and column (s,)."""
        vectors, relation, column = [], [], []
        for number, (start, stop) in enumerate(self.relations):
            both = self.filled[start] & self.filled[stop]
            both &= ~np.isnan(means[start, :, 0]) & ~np.isnan(means[stop, :, 0])
            vectors.append(means[stop, both] - means[start, both])
            relation.append(np.full(both.sum(), number))
            column.append(np.flatnonzero(both))
        return np.concatenate(vectors), np.concatenate(relation), np.concatenate(column)

    def pairings(self, draws: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Rows permuted within every column on its own: the pairing is lost, the points are not.

        Two rows in few columns have few pairings; all of them are then given once, but for the true one (the same with
        both rows exchanged everywhere is no other). Otherwise they are drawn at random.

        Returns
        -------
        list of numpy.ndarray
            Each (rows, columns) int64: which row's mean stands in each cell.
        """
        shape = self.filled.shape
        plain = np.repeat(np.arange(shape[0])[:, None], shape[1], axis=1)
        whole = np.flatnonzero(self.filled.all(axis=0))
        if shape[0] == 2 and 2 ** (len(whole) - 1) - 1 <= draws:
            found = []
            for number in range(1, 2 ** (len(whole) - 1)):
                flipped = whole[1:][(number >> np.arange(len(whole) - 1)) & 1 == 1]
                found.append(plain.copy())
                found[-1][:, flipped] = [[1], [0]]
            return found
        found = []
        for _ in range(draws):
            found.append(plain.copy())
            for column in range(shape[1]):
                there = np.flatnonzero(self.filled[:, column])
                found[-1][there, column] = rng.permutation(there)
        return found


def grid(space: Space, rows: np.ndarray, step: str, beside: str, config: Crystals) -> Grid | None:
    """Lay out the cells of two labels on `rows`; None where no step is seen beside enough classes.

    With one relation only, its reverse is the second: a silhouette needs two groups.

    Raises
    ------
    DataError
        A label is missing from the data set or numeric.
    """
    import pandas as pd

    coded, names = [], []
    for label in (step, beside):
        described_label(space.obs, space.card, label)
        code, found = pd.factorize(space.obs[label].iloc[rows], sort=True)
        coded.append(code)
        names.append([class_name(value) for value in found])
    shape = (len(names[0]), len(names[1]))
    cell = np.where((coded[0] >= 0) & (coded[1] >= 0), coded[0] * shape[1] + coded[1], -1)
    filled = np.bincount(cell[cell >= 0], minlength=shape[0] * shape[1]).reshape(shape) >= config.min_samples
    cell = np.where(filled.ravel()[cell] & (cell >= 0), cell, -1)
    pairs = [(a, b) for a in range(shape[0]) for b in range(a + 1, shape[0])]
    seen = [int((filled[a] & filled[b]).sum()) for a, b in pairs]
    kept = [pairs[i] for i in np.argsort(-np.array(seen, dtype=int), kind="stable") if seen[i] >= config.min_columns]
    if not kept:
        return None
    relations = sorted(kept[: config.max_relations])
    if len(relations) == 1:
        relations.append(relations[0][::-1])
    return Grid(cell, filled, np.array(relations), *names)


def discriminant(vectors: np.ndarray, relation: np.ndarray, shrinkage: float) -> np.ndarray:
    """Directions (d, r − 1) that tell relations apart best against the spread within each: regularised LDA.

    Parameters
    ----------
    vectors, relation
        (s, d) steps and the relation of each, (s,).
    shrinkage
        The within-relation covariance is moved this far towards a multiple of the identity.

    References
    ----------
    Fisher, Annals of Eugenics 7 (1936); Friedman, JASA 84 (1989): shrinkage.
    """
    kinds = np.unique(relation)
    mean = np.stack([vectors[relation == kind].mean(axis=0) for kind in kinds])
    within = vectors - mean[np.searchsorted(kinds, relation)]
    # Steps are fewer than dimensions: all happens in the space that they span, which changes no distance.
    _, strength, basis = np.linalg.svd(vectors, full_matrices=False)
    basis = basis[strength > 1e-9 * strength[0]].T
    within, mean = within @ basis, mean @ basis
    covariance = within.T @ within / len(vectors)
    ridge = np.trace(covariance) / len(covariance)
    covariance = (1.0 - shrinkage) * covariance + (shrinkage * ridge + 1e-12) * np.eye(len(covariance))
    values, axes = np.linalg.eigh(covariance)
    whitener = axes / np.sqrt(values)
    _, _, turn = np.linalg.svd((mean - mean.mean(axis=0)) @ whitener, full_matrices=False)
    return basis @ whitener @ turn[: len(kinds) - 1].T


def held_out_silhouette(
    vectors: np.ndarray, relation: np.ndarray, column: np.ndarray, fold: np.ndarray, shrinkage: float
) -> np.ndarray:
    """Silhouette of steps beside classes of a column fold among the steps beside the other folds' classes.

    Parameters
    ----------
    vectors, relation, column
        (s, d), (s,), (s,) from `Grid.steps`.
    fold
        (columns,) the fold of each column.

    Returns
    -------
    numpy.ndarray
        (2, 2) mean silhouette of the steps, and of their directions (steps of unit length), each without a projection
        and in a discriminant projection learned on the other folds.

    References
    ----------
    Rousseeuw, Journal of Computational and Applied Mathematics 20 (1987).
    """
    from scipy.spatial.distance import cdist

    values: list[list[np.ndarray]] = [[], [], [], []]
    for number in np.unique(fold[column]):
        judged = fold[column] == number
        kinds = np.unique(relation[~judged])
        judged &= np.isin(relation, kinds)
        others = fold[column] != number
        if len(kinds) < 2 or not judged.any():
            continue
        directions = discriminant(vectors[others], relation[others], shrinkage)
        own = np.searchsorted(kinds, relation[judged])
        at = np.arange(len(own))
        # Column i averages over the known steps of kind i.
        share = relation[others][:, None] == kinds
        share = share / share.sum(axis=0)
        for place in range(4):
            known, new = vectors[others], vectors[judged]
            if place % 2:
                known, new = known @ directions, new @ directions
            if place >= 2:
                known, new = (each / np.maximum(np.linalg.norm(each, axis=1), 1e-300)[:, None] for each in (known, new))
            mean = cdist(new, known) @ share
            within = mean[at, own]
            mean[at, own] = np.inf
            nearest = mean.min(axis=1)
            values[place].append((nearest - within) / np.maximum(np.maximum(nearest, within), 1e-300))
    return np.array([np.concatenate(each).mean() if each else np.nan for each in values]).reshape(2, 2)


@dataclass(frozen=True)
class Atoms:
    """One dictionary's atoms as points of a grid: of each cell the atom that stands for it.

    Attributes
    ----------
    layout
        The grid.
    codes, squares
        (n, a) sparse, codes of the atoms that fire on these samples, and their squares.
    atoms
        (a, d) float64 unit rows.
    """

    layout: Grid
    codes: sparse.csr_matrix
    squares: sparse.csr_matrix
    atoms: np.ndarray

    @classmethod
    def of(cls, layout: Grid, codes: sparse.csr_matrix, atoms: np.ndarray) -> Atoms | None:
        """Take the atoms that fire in the grid's cells; None where they are fewer than the cells."""
        inside = codes[np.flatnonzero(layout.cell >= 0)]
        alive = np.flatnonzero(np.bincount(inside.indices, weights=inside.data != 0, minlength=codes.shape[1]))
        if len(alive) < layout.filled.sum():
            return None
        codes = codes[:, alive].astype(np.float64)
        return cls(layout, codes, codes.multiply(codes).tocsr(), np.asarray(atoms, dtype=np.float64)[alive])

    def chosen(self, weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Cells that hold samples, (c,), and the atom of each, (c,): no atom twice.

        Atom and cell go together by the mean code inside the cell, less the mean over all cells, in units of the code's
        deviation; the assignment with the largest sum is taken.
        """
        from scipy import sparse
        from scipy.optimize import linear_sum_assignment

        rows = np.flatnonzero(self.layout.cell >= 0)
        weight = np.ones(len(rows)) if weights is None else weights[rows].astype(np.float64)
        shape = (self.layout.filled.size, self.codes.shape[0])
        of_cell = sparse.csr_matrix((weight, (self.layout.cell[rows], rows)), shape=shape)
        count = np.asarray(of_cell.sum(axis=1)).ravel()
        cells = np.flatnonzero(count > 0)
        of_cell, count = of_cell[cells], count[cells]
        total = (of_cell @ self.codes).toarray()
        mean = total.sum(axis=0) / count.sum()
        square = np.asarray((of_cell @ self.squares).sum(axis=0)).ravel() / count.sum()
        deviation = np.sqrt(np.maximum(square - mean**2, 0.0))
        score = total / count[:, None] - mean
        score = np.divide(score, deviation, out=np.zeros_like(score), where=deviation > 1e-9 * deviation.max())
        return cells, linear_sum_assignment(score, maximize=True)[1]

    def at(self, cells: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """Lay atoms on cells: (rows, columns, d), NaN elsewhere."""
        points = np.full((self.layout.filled.size, self.atoms.shape[1]), np.nan)
        points[cells] = self.atoms[chosen]
        return points.reshape(*self.layout.filled.shape, -1)

    def points(self, weights: np.ndarray | None = None) -> np.ndarray:
        """Lay the atom of each cell on it, samples weighted: (rows, columns, d)."""
        return self.at(*self.chosen(weights))

    def drawn(self, draws: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """Lay other atoms on the cells, drawn at random from the dictionary's."""
        cells = np.flatnonzero(self.layout.filled.ravel())
        for _ in range(draws):
            yield self.at(cells, rng.permutation(len(self.atoms))[: len(cells)])


@dataclass(frozen=True)
class Judge:
    """What all points on one grid share: folds of columns, draws of groups, other pairings.

    Attributes
    ----------
    layout
        The grid.
    fold
        (columns,) the fold of each column.
    weights
        (b, n) bootstrap weights of the samples; b = 0 with one group.
    pairings
        From `Grid.pairings`.
    """

    layout: Grid
    fold: np.ndarray
    weights: np.ndarray
    pairings: list[np.ndarray]
    config: Crystals

    def silhouettes(self, points: np.ndarray) -> np.ndarray:
        """(shapes, projections) of points (rows, columns, d)."""
        return held_out_silhouette(*self.layout.steps(points), self.fold, self.config.shrinkage)

    def rows(self, place: Callable[..., np.ndarray], others: Iterator[np.ndarray]) -> pd.DataFrame:
        """Rows of table `crystals`, but for what names the points.

        Parameters
        ----------
        place
            The points (rows, columns, d), given weights of the samples or nothing.
        others
            Points of the random null; none for class means.
        """
        import pandas as pd

        confidence = self.config.confidence
        points = place()
        value = self.silhouettes(points)
        low = high = np.full(value.shape, np.nan)
        if len(self.weights):
            low, high = interval(np.stack([self.silhouettes(place(each)) for each in self.weights]), confidence)
        every_column = np.arange(len(self.layout.columns))
        null = np.stack([self.silhouettes(points[each, every_column]) for each in self.pairings])
        null_low, null_high = interval(null, confidence)
        random = np.array([self.silhouettes(each) for each in others]).reshape(-1, *value.shape)
        random_low = random_high = random_mean = p_random = np.full(value.shape, np.nan)
        if len(random):
            random_low, random_high = interval(random, confidence)
            random_mean = random.mean(axis=0)
            p_random = (1 + (random >= value).sum(axis=0)) / (1 + len(random))
        vectors, _, column = self.layout.steps(points)
        columns = {
            "silhouette": value,
            "low": low,
            "high": high,
            "null": np.nanmean(null, axis=0),
            "null_low": null_low,
            "null_high": null_high,
            "p": (1 + (null >= value).sum(axis=0)) / (1 + len(null)),
            "random": random_mean,
            "random_low": random_low,
            "random_high": random_high,
            "p_random": p_random,
        }
        return pd.DataFrame(
            {
                "shape": np.repeat(SHAPES, len(PROJECTIONS)),
                "projection": np.tile(PROJECTIONS, len(SHAPES)),
                **{name: each.ravel() for name, each in columns.items()},
                "n_relations": len(self.layout.relations),
                "n_columns": len(np.unique(column)),
                "n_steps": len(vectors),
                "n_pairings": len(null),
                "n": int((self.layout.cell >= 0).sum()),
            }
        )


def measure(space: Space, config: Crystals) -> dict[str, list[pd.DataFrame]]:
    """Ask whether steps between classes are parallel: control → stimulated beside every cell type, and the like.

    The points are class means of the (whitened) activations, and, dictionary by dictionary, decoder atoms: of each pair
    of classes the one atom that stands for it (`Atoms.chosen`). From them, one step for each relation (a pair of
    classes of the first label) beside each class of the second. Steps of one relation that are the same vector make
    parallelograms, and cluster: their silhouette is near 1; steps that share their direction but not their length
    make trapezoids, and cluster once they have unit length. Directions in which points differ for other reasons
    (distractors) hide this; a linear discriminant analysis of the relations projects them away. It could make any few
    steps agree in many dimensions, so it is learned beside some classes of the second label and judged beside the
    others, and so is the value without it.

    Null: points permuted among the classes of the first label, within each class of the second, so that points stay and
    pairs do not. p counts these; two classes beside c others have 2^(c − 1) pairings, below the inverse of which p
    cannot fall. Atoms have a second null, `random`: other atoms of the dictionary, drawn at random, in their place.
    Intervals: bootstrap of the groups behind class means, and behind the choice of atoms (the atoms themselves are
    fixed: what another training would give, the seeds show).

    Raises
    ------
    DataError
        A label is missing or numeric.

    References
    ----------
    Li, Michaud, Baek, Engels, Sun and Tegmark, "The Geometry of Concepts" (arXiv 2410.19750, Entropy 2025), section 3
    (the atom scale), where single words stand for class means, and clusters of all differences of atoms are looked at
    without labels. There is no null.
    """
    found, shown = [], []
    judges = []
    for step, beside in config.pairs:
        words = ("crystals", step, beside)
        rows = choose_rows(np.ones(len(space.split), dtype=bool), config.max_rows, seeded(config.seed, *words))
        layout = grid(space, rows, step, beside, config)
        if layout is None:
            logger.warning("crystals: no step of %s is seen beside %d classes of %s", step, config.min_columns, beside)
            continue
        x, groups = space.white(rows).astype(np.float64), space.groups[rows]
        fold = np.random.default_rng(seeded(config.seed, *words, "folds")).permutation(len(layout.columns))
        fold %= config.column_folds
        number, names = group_codes(groups)
        draws = bootstrap_groups(groups, config.bootstraps, seeded(config.seed, *words, "draws"))
        weights = draws[:, number] if len(names) > 1 else np.empty((0, len(rows)), dtype=np.int64)
        rng = np.random.default_rng(seeded(config.seed, *words, "null"))
        judge = Judge(layout, fold, weights, layout.pairings(config.permutations, rng), config)
        judges.append((step, beside, rows, judge))

        def means(weights: np.ndarray | None = None, layout: Grid = layout, x: np.ndarray = x) -> np.ndarray:
            return layout.means(x, weights)

        named = {"points": "classes", "dictionary": "", "method": "", "seed": np.nan, "step": step, "beside": beside}
        found.append(judge.rows(means, iter(())).assign(**named))
        shown.append(steps_shown(judge, means()).assign(step=step, beside=beside))

    seen: dict[tuple, list[pd.DataFrame]] = {}
    if not judges or config.dictionaries == []:
        return {"crystals": found, "crystals_steps": shown}
    for name, seed, dictionary, codes in space.each_fit():
        if config.dictionaries is not None and name not in config.dictionaries:
            continue
        # Deterministic methods give the same atoms and codes for every seed.
        atoms = np.asarray(dictionary.atoms)
        mark = (atoms.shape, codes.nnz, *(zlib.crc32(np.ascontiguousarray(each)) for each in (atoms, codes.data)))
        if mark not in seen:
            seen[mark] = []
            for step, beside, rows, judge in judges:
                points = Atoms.of(judge.layout, codes[rows], atoms)
                if points is None:
                    cells = judge.layout.filled.sum()
                    logger.info("crystals: %s has fewer than %d atoms, one for each %s × %s", name, cells, step, beside)
                    continue
                rng = np.random.default_rng(seeded(config.seed, "crystals", step, beside, "random"))
                frame = judge.rows(points.points, points.drawn(config.permutations, rng))
                seen[mark].append(frame.assign(points="atoms", step=step, beside=beside))
        named = {"dictionary": name, "method": space.methods[name], "seed": float(seed)}
        found += [frame.assign(**named) for frame in seen[mark]]
    return {"crystals": found, "crystals_steps": shown}


def steps_shown(judge: Judge, points: np.ndarray) -> pd.DataFrame:
    """Every step as a point of two directions, columns of table `crystals_steps`.

    Parameters
    ----------
    points
        (rows, columns, d).
    """
    import pandas as pd

    layout, shrinkage = judge.layout, judge.config.shrinkage
    vectors, relation, column = layout.steps(points)
    fold = judge.fold[column]
    named = np.array([f"{layout.rows[a]} → {layout.rows[b]}" for a, b in layout.relations], dtype=object)
    _, _, principal = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
    shown = []
    for projection in PROJECTIONS:
        place = np.zeros((len(vectors), 2))
        if projection == "none":
            place[:, : min(2, len(principal))] = vectors @ principal[:2].T
        else:
            reference = discriminant(vectors, relation, shrinkage)[:, :2]
            for each in np.unique(fold):
                # Each step is shown in directions that were learned without its column, brought to one frame.
                judged = fold == each
                turn = discriminant(vectors[~judged], relation[~judged], shrinkage)[:, :2]
                left, _, right = np.linalg.svd(turn.T @ reference)
                place[judged, : turn.shape[1]] = vectors[judged] @ turn @ left @ right
        # The first relation points to the right: a direction has no sign of its own.
        place[:, 0] *= 1.0 if place[relation == 0, 0].mean() >= 0 else -1.0
        names = {"relation": named[relation], "column": np.array(layout.columns, dtype=object)[column]}
        shown.append(pd.DataFrame({**names, "x": place[:, 0], "y": place[:, 1], "projection": projection}))
    return pd.concat(shown, ignore_index=True)
