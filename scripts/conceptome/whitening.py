"""Whitening: a linear map fitted on rows of the training split, applied to all activations while streaming.

For control rows with mean μ and covariance Σ = V diag(λ) Vᵀ the `pca` method maps x to (x − μ) V diag(λ)^(−1/2), so
that controls have unit covariance (Kessy, Lewin & Strimmer 2018, "Optimal whitening and decorrelation"; fitted on
controls only as in Donhauser et al. 2025, arXiv 2412.16247). `standardize` uses the diagonal of Σ alone, `none` is the
identity. With `fit_on: all` the rows are all training rows instead of the controls.
"""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conceptome.activations import Store, describe_not_finite
from conceptome.config.models import Whitening as WhiteningConfig
from conceptome.errors import ConfigError, DataError
from conceptome.files import atomic_path, read_json, write_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import pandas as pd

SCHEMA_VERSION = 1
ROWS = 8192
# Rows fitted on whose moments are one partial sum: who sums a partial, and where, does not change a digit.
BLOCK = 128 * ROWS

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Moments:
    """Number of rows, mean (d,) and centred second moments of a stream, in float64.

    `scatter` is Σ(x−μ)(x−μ)ᵀ (d, d), or only its diagonal (d,).
    """

    n: int
    mean: np.ndarray
    scatter: np.ndarray

    @property
    def variances(self) -> np.ndarray:
        """Unbiased variance of every dimension, (d,)."""
        diagonal = np.diagonal(self.scatter) if self.scatter.ndim == 2 else self.scatter
        return diagonal / max(self.n - 1, 1)

    @property
    def covariance(self) -> np.ndarray:
        """Unbiased covariance, (d, d)."""
        return self.scatter / (self.n - 1)

    def join(self, other: Moments) -> Moments:
        """Moments of both streams together (Chan, Golub & LeVeque 1983); the order decides on the last digits."""
        n, delta = self.n + other.n, other.mean - self.mean
        weight = self.n * other.n / n
        change = np.outer(delta, delta) if self.scatter.ndim == 2 else delta**2
        return Moments(
            n, self.mean + delta * (other.n / n), self.scatter + other.scatter + np.multiply(change, weight, out=change)
        )


def merge(partials: Iterable[Moments]) -> Moments:
    """Join partial sums in the order of their blocks."""
    return functools.reduce(Moments.join, partials)


def accumulate(batches: Iterator[np.ndarray], width: int, *, full: bool) -> Moments:
    """Mean and scatter of a stream in one pass, by the pairwise update of Chan, Golub & LeVeque (1983).

    Each batch is centred by its own mean before its products are summed, so that a large common mean costs no digits.

    Parameters
    ----------
    batches
        Arrays (rows, width) of any float type.
    width
        d.
    full
        Whether the whole scatter matrix is wanted, or only its diagonal.

    Raises
    ------
    DataError
        NaN or infinite values.
    """
    n = 0
    mean = np.zeros(width)
    scatter = np.zeros((width, width) if full else width)
    for batch in batches:
        rows = len(batch)
        if not rows:
            continue
        block = batch.astype(np.float64)
        finite = np.isfinite(block)
        if not finite.all():
            raise DataError(describe_not_finite((~finite).sum(axis=0)))
        block_mean = block.mean(axis=0)
        block -= block_mean
        delta = block_mean - mean
        weight = n * rows / (n + rows)
        if full:
            scatter += block.T @ block
            scatter += weight * np.outer(delta, delta)
        else:
            scatter += np.einsum("ij,ij->j", block, block)
            scatter += weight * delta**2
        mean += delta * (rows / (n + rows))
        n += rows
    return Moments(n, mean, scatter)


def block_moments(store: Store, chosen: np.ndarray, number: int, *, full: bool) -> Moments:
    """Moments of one block of the rows that are fitted on; `merge` joins those of all blocks.

    Parameters
    ----------
    chosen
        Positions of all rows that are fitted on, ascending.
    number
        Of the block, from 0 to ⌈len(chosen) / BLOCK⌉ − 1.
    """
    block = chosen[number * BLOCK : (number + 1) * BLOCK]
    pieces = (store.read(_span(block[start : start + ROWS])) for start in range(0, len(block), ROWS))
    return accumulate(pieces, store.shape[1], full=full)


def _span(positions: np.ndarray) -> np.ndarray | slice:
    """Neighbouring rows as a slice, which is read in one go."""
    first, last = int(positions[0]), int(positions[-1]) + 1
    return slice(first, last) if last - first == len(positions) else positions


@dataclass(frozen=True)
class Whitening:
    """A fitted map.

    Attributes
    ----------
    mean
        (d,) float64, subtracted before the map; zeros for `none`.
    forward
        (d, p) float64 for `pca`; (d,) float64 factors for `standardize` and `none`.
    backward
        (p, d) float64 for `pca`; (d,) float64 factors otherwise: undoes `forward` on the kept axes.
    unit_norm
        Whether rows are scaled to unit length after the map.
    card
        Method, n_fitted, d, p, eigenvalues, mean_to_deviation = ‖μ‖/‖σ‖ and what was adjusted.
    """

    mean: np.ndarray
    forward: np.ndarray
    backward: np.ndarray
    unit_norm: bool = False
    card: dict[str, Any] = field(default_factory=dict)

    def transform(self, X: np.ndarray) -> np.ndarray:
        """Map activations (n, d) to float32 (n, p); computed in float64.

        A row that the map sends to zero stays zero under `unit_norm`, since it has no direction.

        Raises
        ------
        DataError
            Another number of dimensions than fitted, or NaN or infinite values.
        """
        X = np.asarray(X)
        if X.ndim != 2 or X.shape[1] != len(self.mean):
            raise DataError(f"whitening was fitted on {len(self.mean)} dimensions but is given shape {X.shape}")
        finite = np.isfinite(X)
        if not finite.all():
            raise DataError(describe_not_finite((~finite).sum(axis=0)))
        centred = X - self.mean
        Z = centred @ self.forward if self.forward.ndim == 2 else centred * self.forward
        if self.unit_norm:
            length = np.linalg.norm(Z, axis=1, keepdims=True)
            Z = np.divide(Z, length, out=Z, where=length > 0)
        return Z.astype(np.float32)

    def inverse_transform(self, Z: np.ndarray) -> np.ndarray:
        """Map whitened rows (n, p) back to float32 (n, d).

        With all axes kept this undoes `transform`; with fewer it gives the projection onto the kept axes. Under
        `unit_norm` the rows' lengths are lost in `transform` and are not restored: only the direction from the mean is.
        """
        Z = np.asarray(Z, dtype=np.float64)
        p = self.backward.shape[0]
        if Z.ndim != 2 or Z.shape[1] != p:
            raise DataError(f"the inverse of this whitening takes {p} dimensions but is given shape {Z.shape}")
        X = Z @ self.backward if self.backward.ndim == 2 else Z * self.backward
        return (X + self.mean).astype(np.float32)

    def save(self, folder: str | Path) -> None:
        """Write whitening.safetensors, then card.json."""
        from safetensors.numpy import save_file

        folder = Path(folder)
        (folder / "card.json").unlink(missing_ok=True)
        tensors = {"mean": self.mean, "forward": self.forward, "backward": self.backward}
        with atomic_path(folder / "whitening.safetensors") as temporary:
            save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, temporary)
        write_json(folder / "card.json", self.card)


def load(folder: str | Path) -> Whitening:
    """Read a fitted whitening.

    Raises
    ------
    DataError
        The folder holds no finished whitening.
    """
    from safetensors.numpy import load_file

    folder = Path(folder)
    if not (folder / "card.json").exists():
        raise DataError(f"{folder} holds no finished whitening (card.json is missing): fit it again")
    card = read_json(folder / "card.json")
    tensors = load_file(folder / "whitening.safetensors")
    return Whitening(tensors["mean"], tensors["forward"], tensors["backward"], card["unit_norm"], card)


def fitted_rows(obs: pd.DataFrame, config: WhiteningConfig) -> np.ndarray:
    """Rows of the training split that a whitening is fitted on: (n,) bool; `obs` holds control and split."""
    train = (obs["split"] == "train").to_numpy()
    return train if config.fit_on == "all" else obs["control"].to_numpy(dtype=bool) & train


def _check_rows(n: int, width: int, config: WhiteningConfig) -> None:
    """Refuse a fit that the rows cannot support."""
    if config.method == "none":
        return
    if n == 0 and config.fit_on == "all":
        raise DataError("whitening is fitted on the training split, and it is empty: mend dataset.split")
    if n == 0:
        raise DataError(
            "whitening is fitted on control samples of the training split, and there are none: "
            "mend dataset.control or dataset.split, or use whitening method 'none'"
        )
    if n < 2:
        raise DataError("whitening needs at least 2 control samples in the training split; there is 1")
    if config.method != "pca":
        return
    if config.n_components is not None and config.n_components > width:
        raise ConfigError(
            f"whitening: n_components ({config.n_components}) exceeds the activations' {width} dimensions; lower it"
        )
    wanted = config.n_components or width
    # n rows span at most n − 1 directions about their mean.
    if config.shrinkage == 0 and n - 1 < wanted:
        raise DataError(
            f"{n} {'' if config.fit_on == 'all' else 'control '}samples in the training split cannot determine "
            f"{wanted} whitened components: "
            "set whitening.shrinkage above 0 (for instance 0.01), or lower n_components"
        )


def _spectrum(covariance: np.ndarray, config: WhiteningConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Raw eigenvalues (d,), adjusted eigenvalues (d,) and axes (d, d columns), largest first, with a fixed sign."""
    raw, axes = np.linalg.eigh(covariance)
    raw, axes = np.maximum(raw[::-1], 0.0), axes[:, ::-1]
    # An eigenvector's sign is arbitrary: make its largest entry positive.
    largest = np.argmax(np.abs(axes), axis=0)
    axes = axes * np.where(axes[largest, np.arange(axes.shape[1])] < 0, -1.0, 1.0)
    if raw[0] <= 0:
        raise DataError("whitening: all control samples have the same activations, so there is no variance to scale")
    # Shrinking towards a multiple of the identity moves the eigenvalues and leaves the axes (Ledoit & Wolf 2004).
    adjusted = (1 - config.shrinkage) * raw + config.shrinkage * raw.mean()
    adjusted = np.maximum(adjusted, config.floor * adjusted[0])
    return raw, adjusted, axes


def fit(store: Store, rows: np.ndarray, config: WhiteningConfig) -> Whitening:
    """Fit a whitening on the selected rows of a store, streaming, in float64.

    Parameters
    ----------
    store
        Activations (n, d).
    rows
        (n,) bool: the samples to fit on, as `fitted_rows` gives them.
    config
        Method, number of components, shrinkage, floor, fit_on, unit_norm.

    Raises
    ------
    ConfigError
        More components than dimensions.
    DataError
        No control rows; too few for the components asked for without shrinkage; NaN or infinite values; a dimension
        without variance (`standardize`, or `pca` with neither shrinkage nor floor).
    """
    rows = np.asarray(rows)
    n_all, width = store.shape
    if rows.dtype != bool or rows.shape != (n_all,):
        raise DataError(f"rows must be a boolean mask over {n_all} samples, not {rows.dtype} of shape {rows.shape}")
    _check_rows(int(rows.sum()), width, config)
    fitted_on = f"{'all' if config.fit_on == 'all' else 'control'} samples of the training split"
    if config.method == "none" and not rows.any():
        # Nothing is fitted here; ‖μ‖/‖σ‖ is only reported, and the card says of which rows.
        rows = (store.obs["split"] == "train").to_numpy() if "split" in store.obs else np.ones(n_all, dtype=bool)
        fitted_on = "nothing; mean_to_deviation is that of the training split, which has no control samples"
    chosen, full = np.flatnonzero(rows), config.method == "pca"
    blocks = range(max(1, -(-len(chosen) // BLOCK)))
    moments = merge(block_moments(store, chosen, number, full=full) for number in blocks)
    spread = float(np.sqrt(moments.variances.sum()))
    card: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "method": config.method,
        "n_fitted": moments.n,
        "fitted_on": fitted_on,
        "d": width,
        "unit_norm": config.unit_norm,
        "mean_to_deviation": float(np.linalg.norm(moments.mean)) / spread if spread > 0 else None,
        "total_variance": spread**2,
    }
    if config.method == "none":
        ones = np.ones(width)
        return Whitening(np.zeros(width), ones, ones, config.unit_norm, card | {"p": width})
    if config.method == "standardize":
        return _standardize(store, moments, config, card)
    return _pca(moments, config, card)


def _standardize(store: Store, moments: Moments, config: WhiteningConfig, card: dict[str, Any]) -> Whitening:
    deviation = np.sqrt(moments.variances)
    # Rounding of a constant column leaves a deviation in its last digits, not exactly 0.
    flat = deviation <= 1e-12 * np.maximum(np.abs(moments.mean), np.finfo(np.float64).tiny)
    if flat.any():
        first = int(np.argmax(flat))
        names = store.card.get("dimension_names")
        name = f" ('{names[first]}')" if names else ""
        more = f" (and {int(flat.sum()) - 1} more)" if flat.sum() > 1 else ""
        raise DataError(
            f"standardize: dimension {first}{name} has zero deviation among control samples{more}: "
            "leave it out of the data, or use whitening method 'pca' with shrinkage"
        )
    card["p"] = len(deviation)
    return Whitening(moments.mean, 1 / deviation, deviation, config.unit_norm, card)


def _pca(moments: Moments, config: WhiteningConfig, card: dict[str, Any]) -> Whitening:
    raw, adjusted, axes = _spectrum(moments.covariance, config)
    p = config.n_components or len(raw)
    kept = adjusted[:p]
    usable = int((kept > raw[0] * np.finfo(np.float64).eps).sum())
    if usable < p:
        raise DataError(
            f"whitening: only {usable} of the {p} components asked for have any variance among control samples: "
            "set whitening.shrinkage or floor above 0, or lower n_components"
        )
    root = np.sqrt(kept)
    shrunk = (1 - config.shrinkage) * raw + config.shrinkage * raw.mean()
    card |= {
        "p": p,
        "shrinkage": config.shrinkage,
        "floor": config.floor,
        "eigenvalues": kept.tolist(),
        "eigenvalues_raw": raw[:p].tolist(),
        "n_floored": int((shrunk[:p] < kept).sum()),
        "variance_kept": float(raw[:p].sum() / raw.sum()),
    }
    log.info("whitening: %d of %d components keep %.1f %% of the variance", p, len(raw), 100 * card["variance_kept"])
    return Whitening(moments.mean, axes[:, :p] / root, axes[:, :p].T * root[:, None], config.unit_norm, card)
