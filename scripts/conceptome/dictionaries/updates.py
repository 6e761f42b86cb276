"""Pieces of a training step that several methods share, in numpy and scipy: they touch only the active codes."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

import conceptome_kernels
from conceptome.dictionaries.engine import Active, Term, gradients
from conceptome.dictionaries.sparse import compact, largest_positive
from conceptome_kernels.sparse import code_gradient_csr
from conceptome_kernels.topk import encode_topk

GATHERED = 2**22  # float32 values that a gather of atoms may hold: 16 MiB


class Restarts:
    """What a trainer keeps whose silent atoms start anew: how many did."""

    restarts = 0

    def state(self) -> dict[str, np.ndarray]:
        """What the optimiser does not hold."""
        return {"restarts": np.array([self.restarts])}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Take up a `state`."""
        self.restarts = int(state["restarts"][0])


def worst_explained(residual: np.ndarray, count: int) -> np.ndarray:
    """Unit directions of the `count` longest residuals, or of as many as there are: float32 (≤ count, d).

    Aharon et al. (2006) give them to atoms that nothing uses: what is explained worst needs an atom most.

    Parameters
    ----------
    residual
        (B, d): what a batch's codes leave.
    """
    lengths = np.linalg.norm(residual, axis=1)
    order = np.argsort(-lengths, kind="stable")[:count]
    order = order[lengths[order] > 0]
    return residual[order] / lengths[order, None]


def orient(atoms: np.ndarray, codes: sp.csr_matrix) -> None:
    """Turn atoms round, in place, whose codes (n, m) sum to less than 0: with signed codes an atom's sign is free."""
    atoms[np.asarray(codes.sum(axis=0)).ravel() < 0] *= -1


def largest_scores(
    x: np.ndarray, encoder: np.ndarray, encoder_bias: np.ndarray, bias: np.ndarray, k: int
) -> sp.csr_matrix:
    """ReLU(TopK_k((x − b)·Wᵀ + c)) of an encoder that changes from call to call: CSR (B, m).

    Parameters
    ----------
    x, encoder, encoder_bias, bias
        float32 (B, d), (m, d), (m,), (d,); finite.
    """
    if conceptome_kernels.available():
        return compact(*encode_topk(x, encoder, encoder_bias, bias, k), len(encoder))
    return largest_positive((x - bias) @ encoder.T + encoder_bias, k)


def code_gradient(active: Active, error: np.ndarray, atoms: np.ndarray) -> np.ndarray:
    """⟨e_i, D_j⟩ at the active places (i, j) only: float32 (nnz,).

    Parameters
    ----------
    error, atoms
        Gradient of the loss in z·D, float32 (B, d); float32 (m, d).
    """
    if conceptome_kernels.available():
        return code_gradient_csr(error, active.indptr, active.indices, np.ones_like(active.values), atoms)
    rows, values = active.rows, np.empty(len(active.values), dtype=np.float32)
    size = max(1, GATHERED // atoms.shape[1])
    for at in range(0, len(values), size):
        part = slice(at, at + size)
        np.einsum("pd,pd->p", error[rows[part]], atoms[active.indices[part]], out=values[part])
    return values


def backward(
    codes: sp.csr_matrix, error: np.ndarray, inputs: np.ndarray, atoms: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of a loss through x̂ = z·D + b and scores inputs·Wᵀ + c that became codes where they are active.

    Parameters
    ----------
    codes
        (B, m) CSR.
    error
        float32 (B, d): gradient of the loss in x̂.
    inputs
        What the encoder was applied to, float32 (B, d).
    atoms
        float32 (m, d).

    Returns
    -------
    in_atoms, in_encoder, in_encoder_bias
        float32 (m, d), (m, d), (m,).
    """
    active = Active.of_csr(codes)
    return gradients(Term(active, code_gradient(active, error, atoms), error, 1.0), None, inputs, len(atoms))
