"""What a sparse autoencoder's step is made of, on compiled kernels or on torch: the same mathematics.

Codes are the arrays of a CSR matrix, as many per row as a method wants. The encoder's scores are the only dense work;
decoding and every gradient touch only the active atoms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import scipy.sparse as sp

import conceptome_kernels
from conceptome.dictionaries.selection import largest
from conceptome.dictionaries.sparse import Batch, Scores, compact
from conceptome.dictionaries.training import Adam, normalise, project_gradient
from conceptome_kernels import sparse, topk
from conceptome_kernels.training import Moved, Part, Rates, update


@dataclass(frozen=True)
class Active:
    """Active places of n rows as the arrays of a CSR matrix: int64 (n + 1,), int32 (nnz,), float32 (nnz,)."""

    indptr: np.ndarray
    indices: np.ndarray
    values: np.ndarray

    @classmethod
    def of_csr(cls, csr: sp.csr_matrix) -> Active:
        """From a scipy matrix."""
        return cls(csr.indptr.astype(np.int64), csr.indices.astype(np.int32), csr.data)

    @property
    def rows(self) -> np.ndarray:
        """Row of every place: int64 (nnz,)."""
        return np.repeat(np.arange(len(self.indptr) - 1), np.diff(self.indptr))

    def csr(self, m: int) -> sp.csr_matrix:
        """As a scipy matrix (n, m)."""
        return sp.csr_matrix((self.values, self.indices, self.indptr), shape=(len(self.indptr) - 1, m))

    def where(self, keep: np.ndarray) -> Active:
        """Only the places with keep (nnz,)."""
        indptr = np.concatenate([[0], np.cumsum(keep)])[self.indptr]
        return Active(indptr, self.indices[keep], self.values[keep])

    def with_values(self, values: np.ndarray) -> Active:
        """Other values (nnz,) at the same places."""
        return Active(self.indptr, self.indices, values.astype(np.float32, copy=False))

    def largest_of_rows(self, k: int) -> Active:
        """At most the k largest of each row; among equal ones the lower atom wins."""
        counts = np.diff(self.indptr)
        if not len(counts) or counts.max() <= k:
            return self
        order = np.lexsort((self.indices, -self.values, self.rows))
        keep = np.zeros(len(self.values), dtype=bool)
        keep[order] = np.arange(len(order)) - np.repeat(self.indptr[:-1], counts) < k
        return self.where(keep)

    def sums(self, m: int, weights: np.ndarray) -> np.ndarray:
        """Sum of weights (nnz,) over each atom's places: float32 (m,)."""
        return np.bincount(self.indices, weights=weights, minlength=m).astype(np.float32)


@dataclass(frozen=True)
class Term:
    """One term of a loss.

    Attributes
    ----------
    active
        The codes; they meet the atoms in z·D.
    gradient
        Gradient of the loss in every active place's score, float32 (nnz,); 0 where the code is 0.
    error
        float32 (n, d): scale · error is the gradient in z·D.
    scale
        0 where the term does not move the atoms.
    """

    active: Active
    gradient: np.ndarray
    error: np.ndarray
    scale: float

    @property
    def in_bias(self) -> np.ndarray:
        """Gradient in b where it is added to z·D: float64 (d,)."""
        return self.scale * self.error.sum(axis=0, dtype=np.float64)


def gradients(main: Term, aux: Term | None, inputs: np.ndarray, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of the terms in atoms (m, d), encoder (m, d) and encoder_bias (m,), formed and added up: float32.

    Parameters
    ----------
    inputs
        As in `Engine.update`.
    """
    in_atoms, in_encoder = np.zeros((2, m, inputs.shape[1]), dtype=np.float32)
    in_encoder_bias = np.zeros(m, dtype=np.float32)
    for term in (main, aux):
        if term is None:
            continue
        if term.scale:
            in_atoms += (term.active.csr(m).T @ term.error) * np.float32(term.scale)
        in_encoder += term.active.with_values(term.gradient).csr(m).T @ inputs
        in_encoder_bias += term.active.sums(m, term.gradient)
    return in_atoms, in_encoder, in_encoder_bias


class Engine(Protocol):
    """The operations; every array is float32."""

    def above(self, x: np.ndarray, threshold: np.ndarray | float) -> Active:
        """Scores (x − b)·Wᵀ + c of rows (n, d) above a threshold, or one per atom (m,)."""
        ...

    def largest(self, x: np.ndarray, columns: np.ndarray, k: int) -> Active:
        """Of the atoms in `columns` only: the k largest positive scores of each row."""
        ...

    def largest_of_batch(self, x: np.ndarray, k: int) -> Active:
        """The n·k largest positive scores of all rows together."""
        ...

    def reconstruct(
        self, x: np.ndarray, active: Active, bias: np.ndarray, scale: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Residual x − b − z·D (n, d), its rows' squared lengths (n,), and scale · residual·Dᵀ at the places (nnz,)."""
        ...

    def decode(self, active: Active) -> np.ndarray:
        """z·D: (n, d)."""
        ...

    def code_gradient(self, error: np.ndarray, active: Active, scale: float) -> np.ndarray:
        """Give scale · error·Dᵀ at the active places, whatever their values: (nnz,)."""
        ...

    def update(
        self,
        main: Term,
        aux: Term | None,
        inputs: np.ndarray,
        step: tuple[float, float],
        in_encoder_bias: np.ndarray | None,
    ) -> np.ndarray:
        """Move atoms, encoder and encoder_bias by the terms' gradients; give that in b through the encoder, (d,).

        Parameters
        ----------
        inputs
            x − b: what the encoder was applied to, with as many rows as the terms.
        step
            Adam's size and root.
        in_encoder_bias
            Gradient in the encoder's bias where it is not the sum of the terms'.
        """
        ...

    def repack(self) -> None:
        """Take notice that the parameters were changed from outside."""
        ...


class TorchEngine:
    """The operations where there is no compiler."""

    def __init__(self, optimiser: Adam):
        self.optimiser, self.parameters = optimiser, optimiser.parameters

    def above(self, x: np.ndarray, threshold: np.ndarray | float) -> Active:
        """See `Engine`."""
        return _above(self._scores(x), threshold)

    def largest(self, x: np.ndarray, columns: np.ndarray, k: int) -> Active:
        """See `Engine`."""
        scores = self._scores(x, columns)
        chosen = largest(scores, k)
        values = np.maximum(np.take_along_axis(scores, chosen, axis=1), 0)
        return Active.of_csr(compact(columns[chosen], values, len(self.parameters["atoms"])))

    def largest_of_batch(self, x: np.ndarray, k: int) -> Active:
        """See `Engine`."""
        return _largest_of_batch(_above(self._scores(x), 0.0), len(x) * k)

    def reconstruct(
        self, x: np.ndarray, active: Active, bias: np.ndarray, scale: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See `Engine`."""
        residual = x - bias - self.decode(active)
        squares = np.square(residual, dtype=np.float64).sum(axis=1)
        return residual, squares, self.code_gradient(residual, active, scale)

    def decode(self, active: Active) -> np.ndarray:
        """See `Engine`."""
        import torch

        atoms = torch.from_numpy(self.parameters["atoms"])
        return Batch(active.csr(len(atoms))).decode(atoms).numpy()

    def code_gradient(self, error: np.ndarray, active: Active, scale: float) -> np.ndarray:
        """See `Engine`."""
        import torch

        atoms = torch.from_numpy(self.parameters["atoms"])
        found = Batch(active.csr(len(atoms))).code_gradient(torch.from_numpy(error), atoms)
        return (found * scale).numpy()

    def update(
        self,
        main: Term,
        aux: Term | None,
        inputs: np.ndarray,
        step: tuple[float, float],
        in_encoder_bias: np.ndarray | None,
    ) -> np.ndarray:
        """See `Engine`."""
        atoms, encoder = self.parameters["atoms"], self.parameters["encoder"]
        in_atoms, in_encoder, sums = gradients(main, aux, inputs, len(atoms))
        in_bias = -(sums @ encoder)
        project_gradient(atoms, in_atoms)
        self.optimiser.move("atoms", in_atoms, *step)
        normalise(atoms)
        self.optimiser.move("encoder", in_encoder, *step)
        self.optimiser.move("encoder_bias", sums if in_encoder_bias is None else in_encoder_bias, *step)
        return in_bias

    def repack(self) -> None:
        """See `Engine`."""

    def _scores(self, x: np.ndarray, columns: np.ndarray | slice = slice(None)) -> np.ndarray:
        parameters = self.parameters
        return _scores(x, parameters["encoder"][columns], parameters["encoder_bias"][columns], parameters["bias"])


class KernelEngine:
    """The operations on compiled kernels; their bytes do not depend on the number of threads."""

    def __init__(self, optimiser: Adam):
        self.optimiser, self.parameters = optimiser, optimiser.parameters
        self.packed = topk.pack(self.parameters["encoder"])

    def above(self, x: np.ndarray, threshold: np.ndarray | float) -> Active:
        """See `Engine`."""
        return Active(*topk.encode_threshold(x, *self._encoder(), threshold, packed=self.packed))

    def largest(self, x: np.ndarray, columns: np.ndarray, k: int) -> Active:
        """See `Engine`."""
        encoder, encoder_bias, bias = self._encoder()
        chosen, values = topk.encode_topk(x, encoder[columns], encoder_bias[columns], bias, k)
        return Active.of_csr(compact(columns[chosen], values, len(encoder)))

    def largest_of_batch(self, x: np.ndarray, k: int) -> Active:
        """See `Engine`."""
        return Active(*topk.encode_batch_topk(x, *self._encoder(), k, packed=self.packed)[:3])

    def reconstruct(
        self, x: np.ndarray, active: Active, bias: np.ndarray, scale: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See `Engine`."""
        places = (active.indptr, active.indices, active.values)
        return sparse.decode_residual_csr(x, *places, self.parameters["atoms"], bias, scale=scale)

    def decode(self, active: Active) -> np.ndarray:
        """See `Engine`."""
        atoms = self.parameters["atoms"]
        nothing = np.zeros((len(active.indptr) - 1, atoms.shape[1]), dtype=np.float32)
        places = (active.indptr, active.indices, active.values)
        residual, _ = sparse.decode_residual_csr(nothing, *places, atoms, np.zeros_like(nothing, shape=len(atoms[0])))
        return np.negative(residual, out=residual)

    def code_gradient(self, error: np.ndarray, active: Active, scale: float) -> np.ndarray:
        """See `Engine`."""
        # The kernel passes over places whose value is 0.
        ones = np.ones(len(active.values), dtype=np.float32)
        return sparse.code_gradient_csr(
            error, active.indptr, active.indices, ones, self.parameters["atoms"], scale=scale
        )

    def update(
        self,
        main: Term,
        aux: Term | None,
        inputs: np.ndarray,
        step: tuple[float, float],
        in_encoder_bias: np.ndarray | None,
    ) -> np.ndarray:
        """See `Engine`."""
        size, root = step
        optimiser = self.optimiser
        # The kernel leaves the root out of √second / root + epsilon: both sides of the fraction are multiplied by it.
        rates = Rates(*optimiser.betas, size * root, optimiser.epsilon * root)
        atoms, encoder, encoder_bias = (
            Moved(self.parameters[name], *optimiser.moments[name]) for name in ("atoms", "encoder", "encoder_bias")
        )
        if in_encoder_bias is not None:
            # The kernel moves a bias by the sum of the terms: here one that nobody reads.
            encoder_bias = Moved(*np.zeros((3, len(in_encoder_bias)), dtype=np.float32))
        parts = (None if term is None else self._part(term) for term in (main, aux))
        in_bias = update(*parts, inputs, atoms, encoder, encoder_bias, self.packed, rates)
        if in_encoder_bias is not None:
            optimiser.move("encoder_bias", in_encoder_bias, *step)
        return in_bias

    def repack(self) -> None:
        """See `Engine`."""
        topk.pack(self.parameters["encoder"], out=self.packed)

    def _encoder(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return tuple(self.parameters[name] for name in ("encoder", "encoder_bias", "bias"))

    def _part(self, term: Term) -> Part:
        active, m = term.active, len(self.parameters["atoms"])
        codes = sparse.by_atom_csr(active.indptr, active.indices, active.values, term.gradient, m)
        return Part(codes, term.error, term.scale)


def engine_of(optimiser: Adam) -> Engine:
    """The operations on the optimiser's parameters, on compiled kernels where there are any."""
    return (KernelEngine if conceptome_kernels.available() else TorchEngine)(optimiser)


class Scorer:
    """A trained encoder, laid out for the compiled kernels once per variant of them.

    Parameters
    ----------
    encoder, encoder_bias, bias
        float32 (m, d), (m,), (d,); they must not change afterwards.
    """

    def __init__(self, encoder: np.ndarray, encoder_bias: np.ndarray, bias: np.ndarray):
        self.arrays = (encoder, encoder_bias, bias)
        self.packed: dict[str, np.ndarray] = {}

    def above(self, X: np.ndarray, threshold: np.ndarray | float) -> Active:
        """As `Engine.above`."""
        if not conceptome_kernels.available():
            return _above(_scores(X, *self.arrays), threshold)
        variant = conceptome_kernels.variant()
        if variant not in self.packed:
            self.packed[variant] = topk.pack(self.arrays[0])
        return Active(*topk.encode_threshold(X, *self.arrays, threshold, packed=self.packed[variant]))


def _scores(x: np.ndarray, encoder: np.ndarray, encoder_bias: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """(x − b)·Wᵀ + c: (n, m)."""
    import torch

    with torch.inference_mode():
        score = Scores(torch.from_numpy(encoder), torch.from_numpy(encoder_bias))
        return score(torch.from_numpy(x - bias)).numpy()


def _above(scores: np.ndarray, threshold: np.ndarray | float) -> Active:
    if np.isnan(scores).any():
        raise FloatingPointError("scores hold NaN")
    keep = scores > threshold
    indptr = np.concatenate([[0], np.cumsum(keep.sum(axis=1))])
    return Active(indptr, np.nonzero(keep)[1].astype(np.int32), scores[keep])


def _largest_of_batch(positive: Active, count: int) -> Active:
    """The `count` largest of some positive places; of equal ones the earlier, by row and then by atom."""
    values, total = positive.values, len(positive.values)
    if total <= count:
        return positive
    smallest = np.partition(values, total - count)[total - count]
    keep = values > smallest
    keep[np.flatnonzero(values == smallest)[: count - keep.sum()]] = True
    return positive.where(keep)
