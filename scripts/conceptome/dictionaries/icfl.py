"""Iterative codebook feature learning (Donhauser et al. 2025, arXiv 2412.16247): a batched pursuit and its dictionary.

The encoder has no parameters of its own. From r = x − b, each round takes the `columns` atoms with the largest signed
correlation ⟨D_j, r⟩, solves the least squares of r on them, adds the solution to the codes (an atom may be taken again
in a later round: its values add up) and subtracts the fit from r. With the codes fixed, D and b follow the gradient of
Σ‖x − z·D − b‖²; atoms are kept at unit length, and of two atoms with a cosine above `reset_cosine` one starts anew.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from conceptome.codes import Codes
from conceptome.dictionaries.base import Dictionary
from conceptome.dictionaries.checkpoint import Checkpoint
from conceptome.dictionaries.rows import Rows
from conceptome.dictionaries.selection import largest
from conceptome.dictionaries.sparse import Batch, compact
from conceptome.dictionaries.training import (
    Adam,
    Progress,
    measure_scale,
    normalise,
    project_gradient,
    random_atoms,
    train,
)
from conceptome_kernels import available

if TYPE_CHECKING:
    import torch

    from conceptome.config.dictionaries import Icfl as Options

RESETS = 4
# A row is done once no selected correlation exceeds this share of its length: what is left is float32 rounding.
DONE = 1e-5
# Selected atoms are dependent when a Cholesky pivot of their Gram matrix (unit diagonal) is below PIVOT.
PIVOT = 1e-4
RIDGE = 1e-5
# Measured on one thread: a small m×m Gram matrix always pays off; a larger one only beside wide activations, and not
# where it outgrows memory (4·m² bytes).
GRAM_ATOMS_SMALL = 1024
GRAM_ATOMS = 8192
GRAM_WIDTH = 128
# No atom starts anew in the last part of training, where the learning rate no longer lets it settle.
LAST_RESET = 0.75


class PursuitDictionary(Dictionary):
    """A dictionary whose own encoder is a pursuit: all blocks of rows of a call share one Gram matrix."""

    # The Gram matrix while a call of `encode` runs: it may take as much as 256 MiB and is not kept for longer.
    _gram: np.ndarray | None = None

    def encode(self, X: np.ndarray, k: int | None = None, *, encoder: str | None = None) -> Codes:
        """Sparse codes of activations; see `Dictionary.encode`."""
        try:
            return super().encode(X, k, encoder=encoder)
        finally:
            self._gram = None

    def gram(self) -> np.ndarray | None:
        """`gram_of` the atoms, made once in a call."""
        if self._gram is None:
            self._gram = gram_of(self.atoms)
        return self._gram


class Icfl(PursuitDictionary):
    """An ICFL dictionary; parameters atoms (m, d), bias (d,)."""

    method = "icfl"

    def _encode(self, X: np.ndarray, k: int) -> sp.csr_matrix:
        return pursue_rows(X - self.bias, self.atoms, plan(k, self.card["options"]["columns"]), self.gram()).csr


def plan(k: int, columns: int) -> list[int]:
    """Columns of each round for a budget of k: full rounds, then one with the remainder."""
    return [columns] * (k // columns) + ([k % columns] if k % columns else [])


def gram_of(atoms: np.ndarray) -> np.ndarray | None:
    """D·Dᵀ where updating correlations with it is faster than taking them anew, else None.

    With compiled kernels in the integers of `compact_gram`, else float32.

    Raises
    ------
    FloatingPointError
        NaN or infinite values in `atoms`: training diverged.
    """
    m, d = atoms.shape
    if m > GRAM_ATOMS_SMALL and (m > GRAM_ATOMS or d < GRAM_WIDTH):
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


def near_duplicates(atoms: np.ndarray, cosine: float, block: int = 2048) -> np.ndarray:
    """Atoms to start anew: of every pair above `cosine` the later one, unless its partner already starts anew.

    Parameters
    ----------
    atoms
        (m, d) unit rows.

    Returns
    -------
    numpy.ndarray
        int64 positions, ascending.
    """
    pairs = []
    for start in range(0, len(atoms), block):
        close = atoms[start : start + block] @ atoms.T > cosine
        first, second = np.nonzero(close)
        first = first + start
        pairs.append(np.stack([first, second], axis=1)[first < second])
    gone: set[int] = set()
    for first, second in np.concatenate(pairs):
        if int(first) not in gone:
            gone.add(int(second))
    return np.array(sorted(gone), dtype=np.int64)


class _Trainer:
    shares = True

    def __init__(self, atoms: np.ndarray, bias: np.ndarray, options: Options, seed: int):
        self.options, self.resets = options, 0
        self.m, d = atoms.shape
        self.variance = float(d)
        self.rng = np.random.default_rng([seed, RESETS])
        self.atoms, self.bias = atoms, bias
        self.optimiser = Adam({"atoms": atoms, "bias": bias})

    def state(self) -> dict[str, np.ndarray]:
        generator = json.dumps(self.rng.bit_generator.state).encode()
        return {"resets": np.array(self.resets), "generator": np.frombuffer(generator, dtype=np.uint8)}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        self.resets = int(state["resets"])
        self.rng.bit_generator.state = json.loads(state["generator"].tobytes())

    def step(self, x: np.ndarray, dead: np.ndarray, number: int) -> tuple[float, np.ndarray]:
        options, atoms, bias = self.options, self.atoms, self.bias
        centred = x - bias
        codes = pursue_rows(centred, atoms, [options.columns] * options.rounds, gram_of(atoms))
        residual = centred - codes.csr @ atoms
        size = len(x) * self.variance
        error = residual * np.float32(-2 / size)
        in_atoms = codes.by_atom @ error
        project_gradient(atoms, in_atoms)
        self.optimiser.step({"atoms": in_atoms, "bias": error.sum(axis=0)})
        normalise(atoms)
        if (number + 1) % options.reset_every == 0 and number + 1 <= LAST_RESET * options.steps:
            self._reset(near_duplicates(atoms, options.reset_cosine))
        return float(np.vdot(residual, residual)) / size, codes.counts

    def _reset(self, which: np.ndarray) -> None:
        """Give some atoms a random direction and no memory of past gradients."""
        if not len(which):
            return
        self.resets += len(which)
        fresh = self.rng.standard_normal((len(which), self.atoms.shape[1]))
        self.atoms[which] = fresh / np.linalg.norm(fresh, axis=1, keepdims=True)
        for moment in self.optimiser.moments["atoms"]:
            moment[which] = 0


def fit(
    rows: Rows,
    options: Options,
    seed: int,
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Fit on training rows; return the arrays and the card's `training` part."""
    scale = measure_scale(rows, seed, lambda X: X.mean(axis=0))
    trainer = _Trainer(
        random_atoms(options.m, rows.shape[1], seed),
        (scale.centre / scale.deviation).astype(np.float32),
        options,
        seed,
    )
    training = train(
        trainer, rows, options, seed=seed, deviation=scale.deviation, progress=progress, checkpoint=checkpoint
    )
    bias = trainer.bias * np.float32(scale.deviation)
    return {"atoms": trainer.atoms, "bias": bias}, {**training, "resets": trainer.resets}
