"""What pursuits share: the Gram matrix where it pays, and the rounds of ICFL, which read any dictionary."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from conceptome.codes import Codes
from conceptome.dictionaries.base import Dictionary
from conceptome.dictionaries.selection import largest
from conceptome.dictionaries.sparse import Batch, compact
from conceptome_kernels import available

if TYPE_CHECKING:
    import torch

# A row is done once no selected correlation exceeds this share of its length: what is left is float32 rounding.
DONE = 1e-5
# Selected atoms are dependent when a Cholesky pivot of their Gram matrix (unit diagonal) is below PIVOT.
PIVOT = 1e-4
RIDGE = 1e-5
# Measured on one thread: a Gram matrix of many atoms pays only beside wide activations, not where it outgrows memory
# (4·m² bytes), and only where it saves more products of a row with all atoms than this many times m, what it costs.
GRAM_ATOMS_SMALL = 1024
GRAM_ATOMS = 8192
GRAM_WIDTH = 128
GRAM_COST = 1.5


class PursuitDictionary(Dictionary):
    """A dictionary whose own encoder is a pursuit: all blocks of rows of a call share one Gram matrix."""

    # The Gram matrix while a call of `encode` runs: it may take as much as 256 MiB and is not kept for longer.
    _gram: np.ndarray | None = None
    _rows = 0

    def encode(self, X: np.ndarray, k: int | None = None, *, encoder: str | None = None) -> Codes:
        """Sparse codes of activations; see `Dictionary.encode`."""
        self._rows = len(X)
        try:
            return super().encode(X, k, encoder=encoder)
        finally:
            self._gram = None

    def gram(self, rounds: int) -> np.ndarray | None:
        """`gram_of` the atoms for all rows of a call, made once."""
        if self._gram is None:
            self._gram = gram_of(self.atoms, self._rows, rounds)
        return self._gram


def plan(k: int, columns: int) -> list[int]:
    """Columns of each round for a budget of k: full rounds, then one with the remainder."""
    return [columns] * (k // columns) + ([k % columns] if k % columns else [])


def gram_of(atoms: np.ndarray, rows: int, rounds: int) -> np.ndarray | None:
    """D·Dᵀ where making it and updating correlations with it is faster than taking them anew in each round, else None.

    With compiled kernels in the integers of `compact_gram`, and codes are the same bytes with and without; else
    float32.

    Raises
    ------
    FloatingPointError
        NaN or infinite values in `atoms`: training diverged.
    """
    m, d = atoms.shape
    if (m > GRAM_ATOMS_SMALL and (m > GRAM_ATOMS or d < GRAM_WIDTH)) or rows * (rounds - 1) < GRAM_COST * m:
        return None
    if available():
        from conceptome_kernels.pursuit import compact_gram

        if not np.isfinite(atoms).all():
            raise FloatingPointError("pursuit: NaN or infinite values")
        return compact_gram(atoms)
    import torch

    rows = torch.from_numpy(atoms)
    return (rows @ rows.T).numpy()


def pursue_rows(residual: np.ndarray, atoms: np.ndarray, rounds: list[int], gram: np.ndarray | None) -> Batch:
    """Encode centred rows with the compiled kernel, or with torch where there is none.

    Parameters
    ----------
    residual, atoms, rounds, gram
        As in `pursue`, as contiguous float32 arrays.

    Raises
    ------
    FloatingPointError
        NaN or infinite values in `residual` or `atoms`: training diverged.
    """
    if not available():
        import torch

        with torch.inference_mode():
            given = None if gram is None else torch.from_numpy(gram)
            try:
                return pursue(torch.from_numpy(residual), torch.from_numpy(atoms), rounds, given)
            except torch.linalg.LinAlgError as error:
                raise FloatingPointError(f"pursuit: {error}") from None
    from conceptome_kernels.pursuit import icfl_pursuit

    if not (np.isfinite(residual).all() and np.isfinite(atoms).all()):
        raise FloatingPointError("pursuit: NaN or infinite values")
    indices, values = icfl_pursuit(residual, atoms, rounds, gram=gram, gram_budget=0)
    return Batch(compact(indices, values, len(atoms)))


def pursue(residual: torch.Tensor, atoms: torch.Tensor, rounds: list[int], gram: torch.Tensor | None = None) -> Batch:
    """Encode centred rows.

    Parameters
    ----------
    residual
        (B, d): x − b.
    atoms
        (m, d) unit rows.
    rounds
        Number of columns taken in each round.
    gram
        (m, m) D·Dᵀ, or None: correlations are then taken from the residual in every round.
    """
    import torch

    size, m = len(residual), len(atoms)
    floor = DONE * residual.norm(dim=1, keepdim=True)
    correlations = residual @ atoms.T
    picked, solved = [], []
    for number, columns in enumerate(rounds):
        if number:
            flat = picked[-1].contiguous(), solved[-1].contiguous()
            if gram is None:
                residual = residual - _weighted(flat, atoms)
                torch.mm(residual, atoms.T, out=correlations)
            else:
                correlations -= _weighted(flat, gram)
        chosen = torch.from_numpy(largest(correlations.numpy(), columns))
        right = correlations.gather(1, chosen)
        if gram is None:
            selected = atoms[chosen]
            system = selected @ selected.transpose(1, 2)
        else:
            system = gram[chosen[:, :, None], chosen[:, None, :]]
        values = solve(system.double(), right.double()).float()
        values[right.abs().amax(dim=1) <= floor[:, 0]] = 0
        picked.append(chosen)
        solved.append(values)
    columns, values = torch.cat(picked, dim=1).numpy(), torch.cat(solved, dim=1).numpy()
    indptr = np.arange(0, columns.size + 1, columns.shape[1])
    csr = sp.csr_matrix((values.ravel(), columns.ravel(), indptr), shape=(size, m))
    csr.sum_duplicates()
    csr.eliminate_zeros()
    return Batch(csr)


def _weighted(codes: tuple[torch.Tensor, torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
    """Σ_j values[:, j] · rows[columns[:, j]]: (B, width of rows)."""
    import torch

    return torch.nn.functional.embedding_bag(codes[0], rows, per_sample_weights=codes[1], mode="sum")


def solve(system: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Solve many small least squares G z = c, with a ridge only where the atoms of a row are dependent.

    Parameters
    ----------
    system
        (B, L, L) float64 Gram matrices of unit atoms.
    right
        (B, L) float64 correlations.

    Returns
    -------
    torch.Tensor
        (B, L) float64.
    """
    import torch

    factor, info = torch.linalg.cholesky_ex(system)
    pivots = factor.diagonal(dim1=1, dim2=2).square().amin(dim=1)
    dependent = torch.nonzero((info != 0) | ~(pivots >= PIVOT))[:, 0]
    if len(dependent):
        eye = torch.eye(system.shape[1], dtype=system.dtype)
        factor[dependent] = torch.linalg.cholesky(system[dependent] + RIDGE * eye)
    return torch.cholesky_solve(right[:, :, None], factor)[:, :, 0]
