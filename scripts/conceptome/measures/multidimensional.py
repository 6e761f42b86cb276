"""Multi-dimensional features: planes in which a cluster of atoms is one feature that no two directions explain."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from conceptome.errors import DataError
from conceptome.measures.rows import choose_rows, seeded
from conceptome.measures.tables import ESTIMATE, FIT
from conceptome.statistics import (
    RankedCodes,
    benjamini_hochberg,
    bootstrap_groups,
    group_codes,
    interval,
    jackknife_groups,
    permutations,
)

if TYPE_CHECKING:
    import pandas as pd
    from scipy import sparse

    from conceptome.config.further import Multidimensional
    from conceptome.dictionaries import Dictionary
    from conceptome.measures.space import Space

logger = logging.getLogger(__name__)

TABLES: dict[str, dict[str, str]] = {
    "multidimensional": {
        **FIT,
        "rank": "int64",
        "cluster": "int64",
        "plane": "object",
        "score": "float64",
        **ESTIMATE,
        "excess": "float64",
        "p": "float64",
        "q": "float64",
        "separability": "float64",
        "separability_null": "float64",
        "mixture": "float64",
        "mixture_null": "float64",
        "atoms": "object",
        "n_atoms": "int64",
        "n": "int64",
    },
    "multidimensional_labels": {
        **FIT,
        "label": "object",
        "cluster": "float64",
        "plane": "object",
        "rank": "float64",
        "correlation": "float64",
        **ESTIMATE,
        "n": "int64",
        "excluded": "object",
    },
    "multidimensional_points": {
        **FIT,
        "cluster": "int64",
        "plane": "object",
        "sample_id": "object",
        "x": "float64",
        "y": "float64",
        "shade": "float64",
        "shade_label": "object",
    },
}

# Genes of S and of G2/M in proliferating human cells: Tirosh et al., Science 352 (2016), from Macosko et al. 2015.
# Where a symbol has been renamed, the later one stands behind a slash.
S_GENES = tuple(
    """
    MCM5 PCNA TYMS FEN1 MCM2 MCM4 RRM1 UNG GINS2 MCM6 CDCA7 DTL PRIM1 UHRF1 MLF1IP/CENPU HELLS RFC2 RPA2 NASP RAD51AP1
    GMNN WDR76 SLBP CCNE2 UBR7 POLD3 MSH2 ATAD2 RAD51 RRM2 CDC45 CDC6 EXO1 TIPIN DSCC1 BLM CASP8AP2 USP1 CLSPN POLA1
    CHAF1B BRIP1 E2F8
    """.split()  # noqa: SIM905
)
G2M_GENES = tuple(
    """
    HMGB2 CDK1 NUSAP1 UBE2C BIRC5 TPX2 TOP2A NDC80 CKS2 NUF2 CKS1B MKI67 TMPO CENPF TACC3 FAM64A/PIMREG SMC4 CCNB2
    CKAP2L CKAP2 AURKB BUB1 KIF11 ANP32E TUBB4B GTSE1 KIF20B HJURP CDCA3 HN1/JPT1 CDC20 TTK CDC25C KIF2C RANGAP1 NCAPD2
    DLGAP5 CDCA2 CDCA8 ECT2 KIF23 HMMR AURKA PSRC1 ANLN LBR CKAP5 CENPE CTCF NEK2 G2E3 GAS2L3 CBX5 CENPA
    """.split()  # noqa: SIM905
)

ROTATIONS = 16  # angles of a quarter turn: the mutual information repeats after it
DIRECTIONS = 24  # angles of a half turn, over which the slab of the mixture index is laid
OFFSETS = 33  # quantiles through which the slab is laid
BINS = 10  # of each axis, at most
SAME = 0.99  # atoms of a larger cosine are one direction, and so one one-dimensional feature


def mutual_informations(xy: np.ndarray) -> np.ndarray:
    """Mutual information, in nats, of the two coordinates of a plane at each of `ROTATIONS` rotations.

    Histograms over the range of the data, 10 × 10 bins, or fewer where that would leave under 5 samples per bin.

    Parameters
    ----------
    xy
        (n, 2) float64.

    Returns
    -------
    numpy.ndarray
        (ROTATIONS,) float64; the rotation of place i is by i/ROTATIONS of a quarter turn.
    """
    n = len(xy)
    bins = int(np.clip(np.sqrt(n / 5.0), 2, BINS))
    angle = np.arange(ROTATIONS) * (np.pi / 2.0 / ROTATIONS)
    turned = np.stack([xy @ np.stack([np.cos(angle), np.sin(angle)]), xy @ np.stack([-np.sin(angle), np.cos(angle)])])
    low = turned.min(axis=1, keepdims=True)
    width = np.maximum(turned.max(axis=1, keepdims=True) - low, 1e-300)
    place = np.minimum((turned - low) * (bins / width), bins - 1).astype(np.int64)
    flat = (np.arange(ROTATIONS) * bins + place[0]) * bins + place[1]
    joint = np.bincount(flat.ravel(), minlength=ROTATIONS * bins**2).reshape(ROTATIONS, bins, bins) / n
    product = joint.sum(axis=2, keepdims=True) * joint.sum(axis=1, keepdims=True)
    ratio = np.divide(joint, product, out=np.ones_like(joint), where=joint > 0)
    return (joint * np.log(ratio)).sum(axis=(1, 2))


def mixture_index(xy: np.ndarray, epsilon: float) -> float:
    """Largest share of samples in one slab |v·x + b| < ε √E[(v·x + b)²].

    The source looks for v and b by gradient ascent on a smoothed share; a plane is small enough to look everywhere:
    `DIRECTIONS` directions, and slabs through `OFFSETS` quantiles of the samples along each.

    Parameters
    ----------
    xy
        (n, 2) float64.
    """
    angle = np.arange(DIRECTIONS) * (np.pi / DIRECTIONS)
    along = np.sort(xy @ np.stack([np.cos(angle), np.sin(angle)]), axis=0)
    centre = along[np.linspace(0, len(xy) - 1, OFFSETS).astype(np.int64)]
    half = epsilon * np.sqrt(along.var(axis=0) + (along.mean(axis=0) - centre) ** 2)
    most = 0
    for column, middle, reach in zip(along.T, centre.T, half.T):
        inside = np.searchsorted(column, middle + reach, "left") - np.searchsorted(column, middle - reach, "right")
        most = max(most, int(inside.max()))
    return most / len(xy)


def indices(xy: np.ndarray, epsilon: float) -> tuple[float, float]:
    """Separability index S and mixture index M of a plane of samples xy (n, 2)."""
    return float(mutual_informations(xy).min()), mixture_index(xy, epsilon)


def cluster_atoms(atoms: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """Spectral clusters of atoms (m, d) by angle, affinity 1 − arccos(cosine)/π: (m,) int64."""
    from sklearn.cluster import SpectralClustering

    cosine = np.clip(atoms @ atoms.T, -1.0, 1.0).astype(np.float64)
    method = SpectralClustering(clusters, affinity="precomputed", assign_labels="cluster_qr", random_state=seed)
    return method.fit_predict(1.0 - np.arccos((cosine + cosine.T) / 2.0) / np.pi).astype(np.int64)


@dataclass(frozen=True)
class Plane:
    """Samples of both parts in one plane of one cluster.

    Attributes
    ----------
    cluster, plane
        Number of the cluster; the two components, 1-based, as "1–2".
    atoms
        (a,) int64, the atoms of the cluster.
    fitting, judged
        Positions, in the rows of each part, of the samples on which the cluster is active.
    xy_fitting, xy
        (·, 2) float64 coordinates of these samples, each with unit variance in the fitting part.
    """

    cluster: int
    plane: str
    atoms: np.ndarray
    fitting: np.ndarray
    judged: np.ndarray
    xy_fitting: np.ndarray
    xy: np.ndarray


@dataclass(frozen=True)
class Cluster:
    """Atoms that point alike.

    Attributes
    ----------
    number
        Of the cluster.
    atoms
        (a,) int64.
    directions
        (a, r) float64: the atoms in an orthonormal basis of the space that they span.
    """

    number: int
    atoms: np.ndarray
    directions: np.ndarray

    def planes(
        self, fitting: sparse.csc_matrix, judged: sparse.csc_matrix, config: Multidimensional
    ) -> dict[str, Plane]:
        """Reconstruct from the cluster alone, and take planes of neighbouring principal components, by their names.

        The components are fitted on the samples of one part on which the cluster is active; both parts are projected,
        and scaled to unit variance. A rotation cannot tell apart two independent features along atoms that are not
        orthogonal, and atoms of one cluster never are; after the scaling it can. Empty where too few samples are
        active.

        Parameters
        ----------
        fitting, judged
            (·, m) codes of the two parts.
        """
        parts = [part[:, self.atoms].toarray() for part in (fitting, judged)]
        active = [np.flatnonzero((part != 0).any(axis=1)) for part in parts]
        if min(len(rows) for rows in active) < config.min_active:
            return {}
        images = [part[rows].astype(np.float64) @ self.directions for part, rows in zip(parts, active)]
        mean = images[0].mean(axis=0)
        values, axes = np.linalg.eigh(np.cov(images[0] - mean, rowvar=False, ddof=0).reshape(2 * [len(mean)]))
        values, axes = values[::-1], axes[:, ::-1].T
        axes = axes[: min(config.components, int((values > 1e-10 * max(values[0], 1e-300)).sum()))]
        axes = axes * np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])[:, None]
        scores = [(image - mean) @ axes.T / np.sqrt(values[: len(axes)]) for image in images]
        found = {}
        for first in range(len(axes) - 1):
            pair, name = slice(first, first + 2), f"{first + 1}–{first + 2}"
            found[name] = Plane(self.number, name, self.atoms, *active, scores[0][:, pair], scores[1][:, pair])
        return found


def cluster(atoms: np.ndarray, fitting: sparse.csc_matrix, config: Multidimensional) -> list[Cluster]:
    """Cluster the atoms (m, d) that fire in `fitting` (·, m); a cluster has two atoms at least."""
    alive = np.flatnonzero(np.diff(fitting.indptr) > 0)
    if len(alive) < 4:
        return []
    number = cluster_atoms(atoms[alive], min(config.clusters, len(alive) // 2), config.seed)
    found = []
    for each in range(number.max() + 1):
        chosen = alive[number == each]
        if len(chosen) > 1:
            left, strength, _ = np.linalg.svd(atoms[chosen].astype(np.float64), full_matrices=False)
            found.append(Cluster(each, chosen, left * strength))
    return found


@dataclass(frozen=True)
class Independent:
    """Samples of which every atom is a one-dimensional feature that knows nothing of the others.

    Attributes
    ----------
    dictionary
        With which they are encoded.
    codes, activations
        Per part: (n, m) dense codes, and the (n, d) activations that they are of.
    groups
        Per part: (n,) group of each sample.
    """

    dictionary: Dictionary
    codes: list[np.ndarray]
    activations: list[np.ndarray]
    groups: list[np.ndarray]

    def draw(
        self, seed: list[int], config: Multidimensional, features: Sequence[np.ndarray] = ()
    ) -> list[sparse.csc_matrix]:
        """Codes of one draw, for each part.

        Every atom's codes are permuted over the samples, apart from those of the others (but for atoms of one
        direction, which move together, as do those of each of `features`), whole groups together. With `config.null`
        'encoded' these are then decoded, what the dictionary left of another sample is added, and the dictionary's own
        encoder gives the codes: atoms that point alike compete for a sample, so that their codes are not independent
        although the features are.
        """
        from scipy import sparse
        from scipy.sparse.csgraph import connected_components

        atoms, bias = np.asarray(self.dictionary.atoms), self.dictionary.bias
        count, direction = connected_components(atoms @ atoms.T > SAME)
        for each in features:
            own = np.unique(direction[each])
            direction[np.isin(direction, own)] = own[0]
        drawn = []
        for part, (codes, x, groups) in enumerate(zip(self.codes, self.activations, self.groups)):
            n = len(codes)
            own = None if len(np.unique(groups)) == n else groups
            order = permutations(np.arange(n), count + 1, [*seed, part], own)
            moved = np.take_along_axis(codes, order[direction].T, axis=0)
            if config.null == "encoded":
                rest = (x - codes @ atoms - bias)[order[count]]
                moved = self.dictionary.encode((moved @ atoms + bias + rest).astype(np.float32)).to_scipy()
            drawn.append(sparse.csc_matrix(moved))
        return drawn


@dataclass(frozen=True)
class _Test:
    """A plane's score against its null: mean and interval, p and q, and the means of both indices."""

    null: float = np.nan
    low: float = np.nan
    high: float = np.nan
    p: float = 1.0
    q: float = 1.0
    separability: float = np.nan
    mixture: float = np.nan

    @classmethod
    def of(cls, score: float, null: np.ndarray, config: Multidimensional) -> _Test:
        """Test a score against the indices (draws, 2) of its null."""
        from scipy.stats import t as student

        # Without the cluster's competitors or companions too few samples may be active: then there is no null.
        null = null[~np.isnan(null).any(axis=1)]
        if len(null) < 10:
            return cls()
        drawn = (1.0 - null[:, 1]) * null[:, 0]
        low, high = interval(drawn, config.confidence)
        # Few draws cannot give a small p by counting: they give the moments of a null that is close to normal.
        deviation = drawn.std(ddof=1) * np.sqrt(1.0 + 1.0 / len(drawn))
        p = float(student.sf((score - drawn.mean()) / max(deviation, 1e-12), len(drawn) - 1))
        return cls(float(drawn.mean()), float(low), float(high), p, 1.0, *(float(mean) for mean in null.mean(axis=0)))


def _draw_nulls(
    clusters: list[Cluster],
    planes: list[Plane],
    independent: Independent,
    features: list[np.ndarray],
    config: Multidimensional,
) -> np.ndarray:
    """S and M of planes on samples of independent atoms (but for `features`): (planes, permutations, 2) or NaN."""
    null = np.full((len(planes), config.permutations, 2), np.nan)
    wanted = {plane.cluster for plane in planes}
    for draw in range(config.permutations):
        moved = independent.draw(seeded(config.seed, "multidimensional", "null", draw), config, features)
        drawn = {
            (each.number, name): indices(plane.xy, config.epsilon)
            for each in clusters
            if each.number in wanted
            for name, plane in each.planes(*moved, config).items()
        }
        for place, plane in enumerate(planes):
            null[place, draw] = drawn.get((plane.cluster, plane.plane), np.nan)
    return null


def score_planes(
    clusters: list[Cluster],
    codes: list[sparse.csc_matrix],
    independent: Independent,
    groups: np.ndarray,
    config: Multidimensional,
) -> tuple[pd.DataFrame, list[Plane]]:
    """S, M and (1 − M)·S of every plane on the held-out part, with intervals and the null.

    Parameters
    ----------
    codes
        (·, m) codes of the two parts, fitting and held out.
    independent
        What the null is drawn from.
    groups
        Groups of all samples of the held-out part.

    Returns
    -------
    table, planes
        Columns of table `multidimensional` without the fit's, one row per plane. A cluster of samples that is not
        one feature has a positive S too, for mutual information from a histogram is biased upwards; `excess` is the
        score less the mean of its null, and ranks the planes. `p` is one-sided, from Student's t of the score against
        the mean and the standard deviation of the null; `q` corrects over the planes that were tested together.

        Planes are tested in steps. A plane that is a feature takes its atoms' place in many samples, and so makes the
        atoms that compete with them dependent: to a null without any feature, planes beside a feature look like
        features too. Where a step rejects, the cluster of the smallest p is a feature: its planes are settled, its
        atoms move together in the null from there on, and the planes of the other clusters are tested again; until a
        step rejects nothing, or `config.features` clusters have been set apart.
    """
    import pandas as pd

    found = [plane for each in clusters for plane in each.planes(*codes, config).values()]
    scores = np.array([indices(plane.xy, config.epsilon) for plane in found]).reshape(-1, 2)
    products = (1.0 - scores[:, 1]) * scores[:, 0]
    tests: list[_Test] = [_Test() for _ in found]
    left, features = np.arange(len(found)), []
    while len(left):
        nulls = _draw_nulls(clusters, [found[place] for place in left], independent, features, config)
        together = [_Test.of(products[place], null, config) for place, null in zip(left, nulls)]
        p = np.array([test.p for test in together])
        q = benjamini_hochberg(p)
        for place, test, adjusted in zip(left, together, q):
            tests[place] = replace(test, q=float(adjusted))
        first = int(np.lexsort((-products[left], p))[0])
        if q[first] >= 1.0 - config.confidence or len(features) == config.features:
            break
        number = found[left[first]].cluster
        features.append(found[left[first]].atoms)
        left = np.array([place for place in left if found[place].cluster != number], dtype=np.int64)
    rows = []
    for plane, test, product, (s, m) in zip(found, tests, products, scores):
        xy, epsilon = plane.xy, config.epsilon

        def score(chosen: np.ndarray, xy: np.ndarray = xy, epsilon: float = epsilon) -> float:
            part = indices(xy[chosen], epsilon)
            return (1.0 - part[1]) * part[0]

        low, high = jackknife_groups(
            score,
            groups[plane.judged],
            product,
            folds=config.folds,
            confidence=config.confidence,
            seed=seeded(config.seed, "multidimensional", "folds"),
        )
        rows.append(
            {
                "cluster": plane.cluster,
                "plane": plane.plane,
                "score": product,
                "low": float(low),
                "high": float(high),
                "null": test.null,
                "null_low": test.low,
                "null_high": test.high,
                "excess": product - test.null,
                "p": test.p,
                "q": test.q,
                "separability": s,
                "separability_null": test.separability,
                "mixture": m,
                "mixture_null": test.mixture,
                "atoms": " ".join(str(atom) for atom in plane.atoms),
                "n_atoms": len(plane.atoms),
                "n": len(xy),
            }
        )
    table = pd.DataFrame(rows)
    if len(table):
        order = np.lexsort((np.arange(len(table)), -table["excess"].fillna(-np.inf).to_numpy()))
        table.loc[order, "rank"] = np.arange(1, len(table) + 1)
        table["rank"] = table["rank"].astype(np.int64)
    return table, found


def cell_cycle_scores(adata: Any, least: int, seed: int) -> tuple[dict[str, np.ndarray], str]:
    """S and G2/M scores of every cell (scanpy's `score_genes_cell_cycle` on log-normalised expression).

    Returns
    -------
    scores, excluded
        Name → (n,) float64, and an empty text; or no scores, and why.

    References
    ----------
    Tirosh et al., Science 352 (2016): gene lists. Satija et al., Nature Biotechnology 33 (2015): the score.
    """
    names = set(adata.var_names)
    lists = [[next((n for n in g.split("/") if n in names), "") for g in genes] for genes in (S_GENES, G2M_GENES)]
    s_genes, g2m_genes = ([gene for gene in genes if gene] for genes in lists)
    if min(len(s_genes), len(g2m_genes)) < least:
        return {}, (
            f"{len(s_genes)} of {len(S_GENES)} S genes and {len(g2m_genes)} of {len(G2M_GENES)} G2/M genes are "
            f"measured, {least} of each are needed"
        )
    import scanpy

    scored = adata.copy()
    scanpy.tl.score_genes_cell_cycle(scored, s_genes=s_genes, g2m_genes=g2m_genes, random_state=seed)
    columns = {"cell cycle: S score": "S_score", "cell cycle: G2/M score": "G2M_score"}
    return {name: scored.obs[column].to_numpy(dtype=np.float64) for name, column in columns.items()}, ""


def _targets(space: Space, config: Multidimensional) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Values (n,) float64 by name, NaN where a sample has none; and names that have none at all, with the reason."""
    import pandas as pd

    values: dict[str, np.ndarray] = {}
    excluded: dict[str, str] = {}
    for label in config.labels:
        described: Mapping[str, Any] | None = space.card.get("labels", {}).get(label)
        if described is None or label not in space.obs:
            known = ", ".join(sorted(space.card.get("labels", {}))) or "none"
            raise DataError(f"measures.multidimensional.labels: '{label}' is not in the data set (labels: {known})")
        if described.get("kind") == "categorical":
            raise DataError(
                f"measures.multidimensional.labels: '{label}' is categorical, but a plane is compared with an order: "
                "name an ordinal or numeric label"
            )
        values[label] = pd.to_numeric(space.obs[label], errors="coerce").to_numpy(dtype=np.float64)
    if config.cell_cycle:
        adata = space.dataset.anndata()
        scores, why = cell_cycle_scores(adata, config.min_cell_cycle_genes, config.seed)
        if why:
            excluded["cell cycle"] = why
            logger.warning("multidimensional: no cell cycle scores: %s", why)
        place = pd.Index(adata.obs_names).get_indexer(space.obs.index)
        values.update({name: score[place] for name, score in scores.items()})
    return values, excluded


def _design(xy: np.ndarray) -> np.ndarray:
    """Position in a plane as regressors (n, 6): one, x, y, distance, and the sine and cosine of the angle."""
    distance = np.hypot(xy[:, 0], xy[:, 1])
    unit = xy / np.maximum(distance, 1e-300)[:, None]
    return np.column_stack([np.ones(len(xy)), xy, distance, unit])


def _follow(design: np.ndarray, target: np.ndarray, held: np.ndarray) -> tuple[float, np.ndarray]:
    """Least squares of target on design: correlation on these samples, and predictions for `held`."""
    weights, *_ = np.linalg.lstsq(design, target, rcond=1e-8)
    fitted = design @ weights
    spread = fitted.std() * target.std()
    agreement = float(((fitted - fitted.mean()) * (target - target.mean())).mean() / spread) if spread > 1e-12 else 0.0
    return agreement, held @ weights


def follow_label(
    found: list[Plane],
    fitting: np.ndarray,
    judged: np.ndarray,
    fitting_groups: np.ndarray,
    groups: np.ndarray,
    label: str,
    config: Multidimensional,
) -> dict[str, Any] | None:
    """How well the position in one plane tells an ordinal value.

    The ranks of the value are regressed on position, distance and angle in each plane; the plane that fits best on the
    fitting part is judged on the held-out part, by Spearman's correlation of prediction and value. The null does the
    same, choice included, with values permuted in both parts, by group.

    Parameters
    ----------
    fitting, judged
        Values of the samples of the two parts, NaN where missing.
    fitting_groups, groups
        Groups of the samples of the two parts.

    Returns
    -------
    dict or None
        Columns of table `multidimensional_labels`; None where no plane has both parts.
    """
    from scipy import sparse
    from scipy.stats import rankdata

    usable = []
    for plane in found:
        mine, theirs = ~np.isnan(fitting[plane.fitting]), ~np.isnan(judged[plane.judged])
        if min(mine.sum(), theirs.sum()) >= config.min_active and len(np.unique(judged[plane.judged][theirs])) > 1:
            designs = _design(plane.xy_fitting[mine]), _design(plane.xy[theirs])
            usable.append((plane, plane.fitting[mine], plane.judged[theirs], *designs))
    if not usable:
        return None

    def best(values: np.ndarray) -> tuple[int, np.ndarray]:
        fits = [_follow(design, rankdata(values[rows]), held) for _, rows, _, design, held in usable]
        chosen = int(np.argmax([agreement for agreement, _ in fits]))
        return chosen, fits[chosen][1]

    chosen, predicted = best(fitting)
    plane, _, rows, _, _ = usable[chosen]
    ranked = RankedCodes(sparse.csr_matrix(predicted[:, None]))
    code, names = group_codes(groups[rows])
    low = high = np.nan
    if len(names) > 1:
        draws = bootstrap_groups(groups[rows], config.bootstraps, seeded(config.seed, "multidimensional", label))
        drawn = [ranked.spearman(judged[rows], each[code])[0, 0] for each in draws]
        low, high = (float(bound) for bound in interval(drawn, config.confidence))
    null = []
    moved = [
        _within(values, config.permutations, seeded(config.seed, "multidimensional", label, part), of)
        for part, values, of in (("fitting", fitting, fitting_groups), ("judged", judged, groups))
    ]
    for mine, theirs in zip(*moved):
        pick, guess = best(mine)
        null.append(RankedCodes(sparse.csr_matrix(guess[:, None])).spearman(theirs[usable[pick][2]])[0, 0])
    null_low, null_high = interval(null, config.confidence)
    return {
        "label": label,
        "cluster": float(plane.cluster),
        "plane": plane.plane,
        "correlation": float(ranked.spearman(judged[rows])[0, 0]),
        "low": low,
        "high": high,
        "null": float(np.nanmean(null)),
        "null_low": float(null_low),
        "null_high": float(null_high),
        "n": len(rows),
        "excluded": "",
    }


def _within(values: np.ndarray, draws: int, seed: list[int], groups: np.ndarray) -> np.ndarray:
    """Permute the values that there are, by group; NaN stays where it is: (draws, n)."""
    present = np.flatnonzero(~np.isnan(values))
    moved = np.full((draws, len(values)), np.nan)
    single = len(np.unique(groups[present])) == len(present)
    moved[:, present] = permutations(values[present], draws, seed, None if single else groups[present])
    return moved


def measure(space: Space, config: Multidimensional) -> dict[str, list[pd.DataFrame]]:
    """Rank planes of clusters of atoms by how little two independent directions, or a mixture, explain them.

    A feature of two dimensions is reducible when it is two independent features (separable), or now one and now the
    other (a mixture). Atoms are clustered by the angle between them; what a cluster alone reconstructs is projected on
    its principal components, and each plane of two neighbouring ones gets the separability index S, the least mutual
    information of its two coordinates over rotations, and the mixture index M_ε, the largest share of samples in one
    slab of ε RMS. Planes are ranked by (1 − M_ε)·S, less the mean of its null. Components are fitted on training
    samples, scores are those of validation and test samples. Intervals: jackknife over groups.

    Null: samples of which every atom is a one-dimensional feature, independent of all others, with the codes that it
    has (`Independent`), clustered alike and scored from the choice of active samples on. Shuffling one coordinate of
    the plane would reject nearly every plane of independent features, for three reasons: samples are looked at where
    one of the cluster's atoms is active, which makes independent codes dependent (where the one is silent, another is
    not); a plane of principal components mixes more than two features, which no rotation of the plane undoes; and
    atoms that point alike compete for a sample.

    Raises
    ------
    DataError
        A label is missing or categorical.

    References
    ----------
    Engels, Michaud, Liao, Gurnee and Tegmark, "Not All Language Model Features Are One-Dimensionally Linear",
    ICLR 2025 (arXiv 2405.14860), definitions of section 3. Its published code has no null, does not scale the plane,
    and averages the planes of a cluster; here each plane stands for itself. Berkson, Biometrics
    Bulletin 2 (1946): looking only where one of two independent things is present.
    """
    import pandas as pd

    values, excluded = _targets(space, config)
    parts = [
        choose_rows(mask, config.max_rows, seeded(config.seed, "multidimensional", name))
        for name, mask in (("fitting", space.split == "train"), ("judged", space.split != "train"))
    ]
    frames: dict[str, list[pd.DataFrame]] = {table: [] for table in TABLES}
    shade = next(iter(values), "")
    for name, seed, dictionary, codes in space.each_fit():
        if config.dictionaries is not None and name not in config.dictionaries:
            continue
        keys = {"dictionary": name, "method": space.methods[name], "seed": seed}
        own = [codes[rows].tocsc() for rows in parts]
        clusters = cluster(np.asarray(dictionary.atoms), own[0], config)
        independent = Independent(
            dictionary,
            [part.toarray() for part in own],
            [space.white(rows) for rows in parts],
            [space.groups[rows] for rows in parts],
        )
        table, found = score_planes(clusters, own, independent, space.groups[parts[1]], config)
        if table.empty:
            logger.warning("multidimensional: %s, seed %d: no cluster is active on enough samples", name, seed)
            continue
        frames["multidimensional"].append(table.sort_values("rank").assign(**keys))
        rank = dict(zip(zip(table["cluster"], table["plane"]), table["rank"]))
        followed = [
            follow_label(
                found, score[parts[0]], score[parts[1]], *(space.groups[rows] for rows in parts), label, config
            )
            for label, score in values.items()
        ]
        followed = [row | {"rank": float(rank[row["cluster"], row["plane"]])} for row in followed if row]
        lacking = {key: np.nan for key in ("cluster", "rank", "correlation", "low", "high")}
        lacking |= {key: np.nan for key in ("null", "null_low", "null_high")}
        followed += [
            {"label": label, "plane": "", "n": 0, "excluded": why, **lacking} for label, why in excluded.items()
        ]
        if followed:
            frames["multidimensional_labels"].append(pd.DataFrame(followed).assign(**keys))
        first = found[int(table["rank"].argmin())]
        kept = choose_rows(np.ones(len(first.xy), dtype=bool), config.shown, seeded(config.seed, "shown"))
        rows = parts[1][first.judged[kept]]
        frames["multidimensional_points"].append(
            pd.DataFrame(
                {
                    "cluster": first.cluster,
                    "plane": first.plane,
                    "sample_id": space.obs.index.astype(str).to_numpy()[rows],
                    "x": first.xy[kept, 0],
                    "y": first.xy[kept, 1],
                    "shade": values[shade][rows] if shade else np.nan,
                    "shade_label": shade,
                }
            ).assign(**keys)
        )
    return frames
