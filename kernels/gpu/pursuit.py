"""Pursuits on a GPU: greedy sparse codes of centred rows over unit atoms, all rows of a block a round at a time.

Functions and codes are those of `conceptome_kernels.pursuit`. With the Gram matrix G = D·Dᵀ, 4·m² bytes, a round is
one pass over the rows' correlations, c −= Σ a·G[j], that leaves each tile's largest; without it the residuals are
multiplied with all atoms anew, and only the largest are kept. The small least squares are torch's, in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import triton
import triton.language as tl

from conceptome_kernels.checks import count
from conceptome_kernels.gpu import launch
from conceptome_kernels.gpu.sparse import code_gradient, decode_residual, gather
from conceptome_kernels.gpu.topk import COLUMNS, LOWEST, ROWS, SIDES, _key, _scores, largest, unpack_keys
from conceptome_kernels.pursuit import GRAM_BUDGET
from conceptome_kernels.reference import DONE, PIVOT, RIDGE

ROOM = 2**26  # numbers of a block of rows kept at a time: correlations, or atoms of its systems
SPAN = 1024  # correlations of a row that one program moves and searches
CODES = 8


def gram_matrix(atoms: torch.Tensor) -> torch.Tensor:
    """D·Dᵀ, float32 (m, m), without TF32.

    Raises
    ------
    TypeError, ValueError
        `atoms` is not a contiguous, finite float32 tensor (m, d).
    """
    launch.finite("atoms", launch.array("atoms", atoms, (None, None)))
    return _product(atoms, atoms)


def icfl_pursuit(
    residual: torch.Tensor,
    atoms: torch.Tensor,
    rounds: Sequence[int],
    *,
    gram: torch.Tensor | None = None,
    gram_budget: int = GRAM_BUDGET,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes of iterative codebook feature learning (Donhauser et al. 2025, arXiv 2412.16247).

    Each round takes the atoms of largest signed correlation with the residual, solves the least squares of the residual
    on them, adds the solution to the codes (an atom may be taken again) and subtracts the fit.

    Parameters
    ----------
    residual
        (n, d) float32 centred rows.
    atoms
        (m, d) float32 unit rows.
    rounds
        Number of atoms taken in each round, each between 1 and m.
    gram
        (m, m) float32 of `gram_matrix(atoms)`; None computes it for this call if it fits `gram_budget`.
    gram_budget
        Bytes that a Gram matrix computed here may take; 0 for none.

    Returns
    -------
    indices, values
        (n, min(Σ rounds, m)) int32 and float32.

    Raises
    ------
    TypeError, ValueError
        An argument is of another type or shape, elsewhere, not contiguous, not finite, or out of range.
    """
    m = _checked(residual, atoms, gram)
    columns = [count("rounds", each, 1, m) for each in rounds]
    if not columns:
        raise ValueError("rounds must name at least one round")
    return _rounds(residual, atoms, columns, gram, gram_budget, magnitude=False)


def matching_pursuit(
    residual: torch.Tensor,
    atoms: torch.Tensor,
    k: int,
    *,
    gram: torch.Tensor | None = None,
    nonnegative: bool = False,
    gram_budget: int = GRAM_BUDGET,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes of k steps of matching pursuit (Mallat and Zhang 1993; as an encoder: Costa et al. 2025, MP-SAE).

    Each step takes the atom whose correlation with the residual is largest in magnitude (`nonnegative`: largest, and
    positive), adds the correlation to its code and subtracts the projection; an atom may be taken again.

    Parameters
    ----------
    residual, atoms, gram, gram_budget
        As in `icfl_pursuit`.
    k
        Number of steps, at least 1.
    nonnegative
        Take positive correlations only.

    Returns
    -------
    indices, values
        (n, min(k, m)) int32 and float32.

    Raises
    ------
    TypeError, ValueError
        As in `icfl_pursuit`.
    """
    _checked(residual, atoms, gram)
    columns = [1] * count("k", k, 1, 2**20)
    return _rounds(residual, atoms, columns, gram, gram_budget, magnitude=not nonnegative, matching=True)


def orthogonal_matching_pursuit(
    residual: torch.Tensor,
    atoms: torch.Tensor,
    k: int,
    *,
    gram: torch.Tensor | None = None,
    gram_budget: int = GRAM_BUDGET,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes of orthogonal matching pursuit with k atoms (Pati et al. 1993; Rubinstein et al. 2008, Batch-OMP).

    Each step takes the atom whose correlation with the residual is largest in magnitude and solves the least squares
    of the row on all atoms taken. An atom that depends on those taken (Cholesky pivot below 1e-4) is passed over.

    Parameters
    ----------
    residual, atoms, gram, gram_budget
        As in `icfl_pursuit`.
    k
        Number of atoms, between 1 and m.

    Returns
    -------
    indices, values
        (n, k) int32 and float32.

    Raises
    ------
    TypeError, ValueError
        As in `icfl_pursuit`.
    """
    m = _checked(residual, atoms, gram)
    k = count("k", k, 1, m)
    gram = _within_budget(atoms, gram, gram_budget)
    return _blocks(residual, max(m, k * k, k), k, lambda rows: _orthogonal(rows, atoms, k, gram))


def _checked(residual: torch.Tensor, atoms: torch.Tensor, gram: torch.Tensor | None) -> int:
    """Check what all pursuits take; return m."""
    m, d = launch.array("atoms", atoms, (None, None)).shape
    launch.finite("atoms", atoms)
    if not m:
        raise ValueError("atoms must have at least one row")
    launch.finite("residual", launch.array("residual", residual, (None, d), device=atoms.device))
    if gram is not None:
        launch.array("gram", gram, (m, m), device=atoms.device)
    return m


def _within_budget(atoms: torch.Tensor, gram: torch.Tensor | None, gram_budget: int) -> torch.Tensor | None:
    """Return the given Gram matrix, or one computed here if it fits the budget, else None."""
    if gram is None and 4 * len(atoms) ** 2 <= gram_budget:
        return _product(atoms, atoms)
    return gram


def _blocks(
    residual: torch.Tensor, each: int, width: int, encode: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode rows in blocks, where one needs room for `each` numbers."""
    size = max(ROOM // each, 1)
    indices = torch.empty((len(residual), width), dtype=torch.int32, device=residual.device)
    values = torch.empty((len(residual), width), device=residual.device)
    for at in range(0, len(residual), size):
        part = slice(at, at + size)
        indices[part], values[part] = encode(residual[part])
    return indices, values


def _rounds(
    residual: torch.Tensor,
    atoms: torch.Tensor,
    columns: list[int],
    gram: torch.Tensor | None,
    gram_budget: int,
    *,
    magnitude: bool,
    matching: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    m, d = atoms.shape
    gram = _within_budget(atoms, gram, gram_budget)
    width, most = min(sum(columns), m), max(columns)
    return _blocks(
        residual,
        max(m if gram is not None else 0, most * max(d, most), sum(columns)),
        width,
        lambda rows: _block_rounds(rows, atoms, columns, gram, width, magnitude, matching),
    )


def _block_rounds(
    residual: torch.Tensor,
    atoms: torch.Tensor,
    columns: list[int],
    gram: torch.Tensor | None,
    width: int,
    magnitude: bool,
    matching: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes of one block of rows: ICFL's rounds, or steps of matching pursuit."""
    n, device = len(residual), residual.device
    nowhere = torch.zeros(atoms.shape[1], device=device)
    floor = DONE * residual.double().norm(dim=1)
    correlations = None if gram is None else _product(residual, atoms)
    picked = torch.full((n, sum(columns)), -1, dtype=torch.int32, device=device)
    values = torch.zeros((n, sum(columns)), device=device)
    used, chosen, solved = 0, None, None
    for wanted in columns:
        if gram is not None:
            top = _move_and_search(correlations, correlations, chosen, solved, gram, wanted, magnitude, None)
        else:
            if chosen is not None:
                residual, _ = decode_residual(residual, chosen, solved, atoms, nowhere)
            top = largest(residual, atoms, wanted, magnitude=magnitude)
        chosen, score = unpack_keys(top)
        chosen, order = chosen.to(torch.int32).sort(dim=1)
        if gram is not None:
            right = correlations.gather(1, chosen.long())
        elif magnitude:
            right = code_gradient(residual, chosen, torch.ones_like(score), atoms)
        else:
            right = score.gather(1, order)
        solved = right if matching else _solve(_systems(chosen, atoms, gram), right.double()).float()
        # Without magnitudes the largest signed correlation decides for matching pursuit, any of the round's for ICFL.
        size = right if matching and not magnitude else right.abs()
        solved = torch.where((size.amax(dim=1).double() > floor)[:, None], solved, 0).contiguous()
        used = _add(picked, values, used, chosen, solved)
    return _canonical(picked, values, width)


def _add(picked: torch.Tensor, values: torch.Tensor, used: int, chosen: torch.Tensor, solved: torch.Tensor) -> int:
    """Add a round's values where their atom was picked before, else in places of their own; give the places used."""
    wanted = chosen.shape[1]
    fresh = torch.arange(used, used + wanted, device=chosen.device).expand_as(chosen)
    same = picked[:, :used, None] == chosen[:, None, :]
    known = same.any(dim=1)
    # A round picks no atom twice, so that no two of its values go to one place.
    to = torch.where(known, same.to(torch.uint8).argmax(dim=1), fresh) if used else fresh
    picked.scatter_(1, to, chosen)
    values.scatter_(1, to, values.gather(1, to) + solved)
    return used + wanted


def _canonical(picked: torch.Tensor, values: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Atoms picked (−1: none) and their values, ascending; places left go to the lowest free atoms, with value 0."""
    n, device = len(picked), picked.device
    taken = picked >= 0
    free = torch.ones((n, width + 1), dtype=torch.bool, device=device)
    # Atoms at or above the width, and none, go to a column that is not looked at.
    free.scatter_(1, torch.where(taken & (picked < width), picked, width).long(), False)
    free = free[:, :width]
    needed = free & (free.cumsum(dim=1) <= width - taken.sum(dim=1, keepdim=True))
    lowest = torch.arange(width, dtype=torch.int32, device=device).expand(n, width)
    past = torch.iinfo(torch.int32).max
    indices = torch.cat([torch.where(taken, picked, past), torch.where(needed, lowest, past)], dim=1)
    indices, order = indices.sort(dim=1)
    values = torch.cat([values, values.new_zeros((n, width))], dim=1).gather(1, order)
    return indices[:, :width].contiguous(), values[:, :width].contiguous()


def _systems(chosen: torch.Tensor, atoms: torch.Tensor, gram: torch.Tensor | None) -> torch.Tensor:
    """Gram matrices of the chosen atoms of each row: float64 (n, L, L)."""
    chosen = chosen.long()
    if gram is not None:
        return gram[chosen[:, :, None], chosen[:, None, :]].double()
    selected = atoms[chosen].double()
    return selected @ selected.transpose(1, 2)


def _solve(systems: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Solve small systems, with a ridge only where the atoms of a row are dependent; all float64."""
    factor, info = torch.linalg.cholesky_ex(systems)
    pivots = factor.diagonal(dim1=1, dim2=2).square().amin(dim=1)
    dependent = (info != 0) | ~(pivots >= PIVOT)
    ridge = RIDGE * torch.eye(systems.shape[1], dtype=systems.dtype, device=systems.device)
    mended, _ = torch.linalg.cholesky_ex(systems + ridge)
    factor = torch.where(dependent[:, None, None], mended, factor)
    return torch.cholesky_solve(right[:, :, None], factor)[:, :, 0]


def _orthogonal(
    residual: torch.Tensor, atoms: torch.Tensor, k: int, gram: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes of one block of rows: orthogonal matching pursuit."""
    (n, d), m, device = residual.shape, len(atoms), residual.device
    nowhere = torch.zeros(d, device=device)
    floor = DONE * residual.double().norm(dim=1)
    every = torch.arange(n, device=device)
    taken = torch.zeros(n, dtype=torch.int64, device=device)
    picked = torch.full((n, k), -1, dtype=torch.int32, device=device)
    values = torch.zeros((n, k), device=device)
    right = torch.zeros((n, k), dtype=torch.float64, device=device)
    # Cholesky factors of the systems of atoms taken, with a unit diagonal in the places still free.
    factor = torch.eye(k, dtype=torch.float64, device=device).repeat(n, 1, 1)
    closed = torch.zeros((n, m), dtype=torch.bool, device=device)
    first = None if gram is None else _product(residual, atoms)
    moved = None if gram is None else torch.empty_like(first)
    left = residual
    while True:
        at = picked.clamp_min(0)
        if gram is not None:
            top = _move_and_search(first, moved, at, values, gram, 1, True, closed)
        else:
            top = largest(left, atoms, 1, closed=closed, magnitude=True)
        best, score = unpack_keys(top)
        best = best[:, 0]
        going = (taken < k) & (score[:, 0].double() > floor)
        if not going.any():
            return _canonical(picked, values, k)
        closed[every, best] = True
        # The atom's row of the factor; its products with the atoms taken, 0 in the free places.
        active = (picked >= 0).float()
        if gram is not None:
            products = gram[best[:, None], at.long()] * active
            own, with_row = gram[best, best].double(), first.gather(1, best[:, None])[:, 0]
        else:
            products = code_gradient(atoms[best], at, active, atoms)
            own = atoms[best].double().square().sum(dim=1)
            with_row = code_gradient(residual, best[:, None].to(torch.int32), torch.ones_like(score), atoms)[:, 0]
        row = torch.linalg.solve_triangular(factor, products.double()[:, :, None], upper=False)[:, :, 0]
        pivot = own - row.square().sum(dim=1)
        new = torch.nonzero(going & (pivot >= PIVOT))[:, 0]
        place = taken[new]
        row[new, place] = pivot[new].sqrt()
        factor[new, place] = row[new]
        picked[new, place] = best[new].to(torch.int32)
        right[new, place] = with_row[new].double()
        taken[new] += 1
        values[new] = torch.cholesky_solve(right[new][:, :, None], factor[new])[:, :, 0].float()
        if gram is None:
            left, _ = decode_residual(residual, picked.clamp_min(0), values, atoms, nowhere)


def _product(rows: torch.Tensor, atoms: torch.Tensor) -> torch.Tensor:
    """rows·atomsᵀ, float32 (n, m), each element summed in one order: that with the Gram matrix is symmetric."""
    (n, d), m = rows.shape, len(atoms)
    out = torch.empty((n, m), device=rows.device)
    launch.run(_store_scores, (triton.cdiv(n, ROWS), triton.cdiv(m, COLUMNS)), rows, atoms, out, n, m, d, **SIDES)
    return out


def _move_and_search(
    start: torch.Tensor,
    out: torch.Tensor,
    chosen: torch.Tensor | None,
    solved: torch.Tensor | None,
    gram: torch.Tensor,
    wanted: int,
    magnitude: bool,
    closed: torch.Tensor | None,
) -> torch.Tensor:
    """Set out = start − Σ solved·gram[chosen]; give the keys of its `wanted` largest entries per row, descending."""
    n, m = start.shape
    tiles = triton.cdiv(m, SPAN)
    kept = min(wanted, SPAN)
    keys = torch.empty((n, tiles * kept), dtype=torch.int64, device=start.device)
    shut = None if closed is None else closed.view(torch.uint8)
    width = 0 if chosen is None else chosen.shape[1]
    launch.run(
        _move, (n, tiles), start, out, chosen, solved, gram, shut, keys, m, width, tiles,
        MAGNITUDE=magnitude, KEPT=kept, SPAN=SPAN, CODES=CODES,
    )  # fmt: skip
    return keys.topk(wanted, dim=1).values


@triton.jit
def _store_scores(X, W, out, n, m, d, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    score = _scores(X, None, W, None, rows, columns, n, m, d, ROWS, COLUMNS, DEPTH)
    mask = (rows < n)[:, None] & (columns < m)[None, :]
    tl.store(out + rows.to(tl.int64)[:, None] * m + columns[None, :], score, mask=mask)


@triton.jit
def _move(
    start, out, chosen, solved, gram, closed, keys, m, width, tiles,
    MAGNITUDE: tl.constexpr, KEPT: tl.constexpr, SPAN: tl.constexpr, CODES: tl.constexpr,
):  # fmt: skip
    """SPAN correlations of one row: less the fit's, where there is one; and the largest of them."""
    row, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    columns = tile * SPAN + tl.arange(0, SPAN)
    valid = columns < m
    score = tl.load(start + row * m + columns, mask=valid, other=0.0)
    if chosen is not None:
        score -= gather(chosen, solved, gram, row * width, row * width + width, tile * SPAN, m, CODES, SPAN)
        tl.store(out + row * m + columns, score, mask=valid)
    if MAGNITUDE:
        score = tl.abs(score)
    if closed is not None:
        score = tl.where(tl.load(closed + row * m + columns, mask=valid, other=1) != 0, float("-inf"), score)
    key = tl.where(valid, _key(score, columns), LOWEST)
    for place in range(KEPT):
        best = tl.max(key, axis=0)
        tl.store(keys + (row * tiles + tile) * KEPT + place, best)
        key = tl.where(key == best, LOWEST, key)
