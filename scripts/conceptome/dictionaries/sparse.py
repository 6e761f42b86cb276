"""Products that touch only the active atoms: decode, decoder gradient, code gradient (torch, CPU).

Everything of a `Batch` works on codes in CSR form. A product of rows×atoms is never formed densely; the encoder's
scores are the only dense work of a training step.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

import conceptome_kernels
from conceptome.dictionaries.selection import largest
from conceptome_kernels import topk

if TYPE_CHECKING:
    import torch


def compact(indices: np.ndarray, values: np.ndarray, m: int) -> sp.csr_matrix:
    """Codes of fixed width (n, k) over m atoms, as the kernels give them, without their empty places: CSR (n, m)."""
    keep = values != 0
    indptr = np.concatenate([[0], np.cumsum(keep.sum(axis=1))])
    return sp.csr_matrix((values[keep], indices[keep], indptr), shape=(len(values), m))


def largest_positive(scores: np.ndarray, k: int) -> sp.csr_matrix:
    """Keep the k largest scores (n, m) of each row, and of those the positive ones: TopK followed by ReLU, CSR."""
    columns = largest(scores, k)
    return compact(columns, np.maximum(np.take_along_axis(scores, columns, axis=1), 0), scores.shape[1])


class Scores:
    """Scores X·Wᵀ + c on torch, by oneDNN where torch has it: twice as fast as its BLAS on some processors.

    Parameters
    ----------
    encoder, encoder_bias
        float32 (m, d), (m,), or another float, which oneDNN does not multiply; they must not change afterwards.
    """

    def __init__(self, encoder: torch.Tensor, encoder_bias: torch.Tensor):
        import torch

        self.parts = (encoder, encoder_bias)
        self.onednn = encoder.dtype == torch.float32 and torch.backends.mkldnn.is_available()
        if self.onednn:
            self.parts = (encoder.to_mkldnn(), encoder_bias.to_mkldnn())

    def __call__(self, X: torch.Tensor) -> torch.Tensor:
        """(n, m) of rows (n, d)."""
        import torch

        encoder, encoder_bias = self.parts
        if self.onednn:
            return torch.ops.aten.mkldnn_linear(X.to_mkldnn(), encoder, encoder_bias).to_dense()
        return torch.addmm(encoder_bias, X, encoder.T)


def largest_positive_on_torch(scores: torch.Tensor, k: int) -> sp.csr_matrix:
    """`largest_positive` of a tensor (n, m), on all of torch's threads."""
    import torch

    n, m = scores.shape
    if k == m or not n:
        return largest_positive(scores.numpy(), k)
    values, columns = scores.topk(k + 1, dim=1)
    if values.isnan().any():
        raise FloatingPointError("scores hold NaN")
    # torch takes any of equal entries: where the last place is contested, the rule for ties decides.
    contested = torch.nonzero(values[:, k - 1] == values[:, k])[:, 0].numpy()
    columns, order = columns[:, :k].sort(dim=1)
    columns, values = columns.numpy(), values.gather(1, order).numpy()
    if len(contested):
        rows = scores.numpy()[contested]
        columns[contested] = largest(rows, k)
        values[contested] = np.take_along_axis(rows, columns[contested], axis=1)
    return compact(columns, np.maximum(values, 0), m)


class Packed:
    """A TopK encoder laid out for the compiled kernels, once per variant of them.

    Parameters
    ----------
    encoder, encoder_bias, bias
        float32 (m, d), (m,), (d,); they must not change afterwards.
    """

    def __init__(self, encoder: np.ndarray, encoder_bias: np.ndarray, bias: np.ndarray):
        self.arrays = (encoder, encoder_bias, bias)
        self.packed: dict[str, np.ndarray] = {}

    def encode(self, X: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Indices and values (n, k) of ReLU(TopK_k((x − b)·Wᵀ + c)); 0 where a place is empty."""
        variant = conceptome_kernels.variant()
        if variant not in self.packed:
            self.packed[variant] = topk.pack(self.arrays[0])
        return topk.encode_topk(X, *self.arrays, k, packed=self.packed[variant])


@dataclass(frozen=True)
class Batch:
    """Codes of one batch: values at ascending atoms per row, as a scipy CSR float32 (B, m)."""

    csr: sp.csr_matrix

    @cached_property
    def _tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return _as_tensors(self.csr)

    @cached_property
    def by_atom(self) -> sp.csr_matrix:
        """The codes sorted by atom, (m, B)."""
        return self.csr.T.tocsr()

    @property
    def counts(self) -> np.ndarray:
        """In how many rows each atom is active, int64 (m,)."""
        return np.bincount(self.csr.indices, minlength=self.csr.shape[1])

    @property
    def fired(self) -> np.ndarray:
        """Which atoms are active in any row, bool (m,)."""
        return self.counts > 0

    def decode(self, atoms: torch.Tensor) -> torch.Tensor:
        """z·D: (B, d)."""
        return _gather_sum(*self._tensors, atoms)

    def atom_gradient(self, error: torch.Tensor, values: torch.Tensor | None = None) -> torch.Tensor:
        """zᵀ·e: (m, d). `values` (nnz,) replaces the codes' own values at the same places."""
        csr = self.csr
        if values is not None:
            csr = sp.csr_matrix((values.numpy(), csr.indices, csr.indptr), shape=csr.shape)
            return _gather_sum(*_as_tensors(csr.T.tocsr()), error)
        return _gather_sum(*_as_tensors(self.by_atom), error)

    def code_gradient(self, error: torch.Tensor, atoms: torch.Tensor) -> torch.Tensor:
        """(e·Dᵀ) at the active places only: (nnz,)."""
        import torch

        indptr, indices, _ = self._tensors
        with warnings.catch_warnings():
            # torch calls its sparse CSR layout beta and says so at first use; sampled_addmm needs no more of it.
            warnings.simplefilter("ignore", UserWarning)
            places = torch.sparse_csr_tensor(
                indptr, indices, torch.zeros(len(indices)), size=self.csr.shape, check_invariants=False
            )
            return torch.sparse.sampled_addmm(places, error, atoms.T, beta=0.0).values()

    def atom_sums(self, values: torch.Tensor) -> torch.Tensor:
        """Sum of `values` (nnz,) per atom: (m,)."""
        import torch

        sums = np.bincount(self.csr.indices, weights=values.numpy(), minlength=self.csr.shape[1])
        return torch.from_numpy(sums.astype(np.float32))


def _as_tensors(csr: sp.csr_matrix) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    import torch

    return (
        torch.from_numpy(csr.indptr.astype(np.int64)),
        torch.from_numpy(csr.indices.astype(np.int64)),
        torch.from_numpy(csr.data),
    )


def _gather_sum(indptr: torch.Tensor, indices: torch.Tensor, values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Σ_j value_j · rows[index_j] for every CSR row: one owner per output row, so bytes do not depend on threads."""
    import torch

    return torch.nn.functional.embedding_bag(
        indices, rows, indptr, per_sample_weights=values, mode="sum", include_last_offset=True
    )
