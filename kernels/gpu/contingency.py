"""Counts behind enrichment on a GPU: tables of codes above thresholds by label."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from conceptome_kernels.gpu import launch

SIDE, CODES = 16, 64  # thresholds, and labels, of a tile of a table; codes looked at together


def contingency(
    indptr: torch.Tensor, rows: torch.Tensor, values: torch.Tensor, labels: torch.Tensor, thresholds: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Count the samples on which each atom exceeds each threshold, and those of them that have each label.

    Parameters
    ----------
    indptr, rows, values
        Codes by atom (CSC): (m + 1,) int64, (nnz,) int32 samples, (nnz,) float32.
    labels
        (n, c) bool.
    thresholds
        (t,) float32 for all atoms, or (m, t) for each; ascending and not negative, so that zeros never exceed one.

    Returns
    -------
    active, both
        (m, t) and (m, t, c) int64.

    Raises
    ------
    TypeError, ValueError
        An argument is of another type or shape, elsewhere, not contiguous, not finite, or out of range.
    """
    n, c = launch.array("labels", labels, (None, None), torch.bool).shape
    device = labels.device
    m = len(launch.array("indptr", indptr, (None,), torch.int64, device)) - 1
    stored = len(launch.array("rows", rows, (None,), torch.int32, device))
    launch.finite("values", launch.array("values", values, (stored,), device=device))
    if m < 0 or indptr[0] != 0 or indptr[-1] != stored or (indptr.diff() < 0).any():
        raise ValueError(f"indptr must ascend from 0 to the {stored} stored values")
    launch.in_range("rows", rows, n)
    shared = isinstance(thresholds, torch.Tensor) and thresholds.ndim == 1
    launch.finite("thresholds", launch.array("thresholds", thresholds, (None,) if shared else (m, None), device=device))
    if (thresholds < 0).any() or (thresholds.diff(dim=-1) < 0).any():
        raise ValueError("thresholds must ascend and not be negative")
    t = thresholds.shape[-1]
    active = torch.zeros((m, t), dtype=torch.int64, device=device)
    both = torch.zeros((m, t, c), dtype=torch.int64, device=device)
    # The first tile of labels counts the active samples too, so that there is one even without labels.
    grid = (m, triton.cdiv(t, SIDE), max(triton.cdiv(c, SIDE), 1))
    arguments = (indptr, rows, values, labels.view(torch.uint8), thresholds, active, both, 0 if shared else t, t, c)
    launch.run(_tables, grid, *arguments, SIDE=SIDE, CODES=CODES)
    return active, both


@triton.jit
def _tables(
    indptr, rows, values, labels, thresholds, active, both, stride, t, c, SIDE: tl.constexpr, CODES: tl.constexpr
):
    """One atom's counts for SIDE thresholds and SIDE labels."""
    atom = tl.program_id(0).to(tl.int64)
    level, label = tl.program_id(1) * SIDE + tl.arange(0, SIDE), tl.program_id(2) * SIDE + tl.arange(0, SIDE)
    bar = tl.load(thresholds + atom * stride + level, mask=level < t, other=float("inf"))
    above_count = tl.zeros((SIDE,), dtype=tl.int64)
    both_count = tl.zeros((SIDE, SIDE), dtype=tl.int64)
    end = tl.load(indptr + atom + 1)
    for first in range(tl.load(indptr + atom), end, CODES):
        which = first + tl.arange(0, CODES)
        value = tl.load(values + which, mask=which < end, other=0.0)
        row = tl.load(rows + which, mask=which < end, other=0).to(tl.int64)
        mask = (which < end)[:, None] & (label < c)[None, :]
        has = tl.load(labels + row[:, None] * c + label[None, :], mask=mask, other=0)
        above = value[None, :] > bar[:, None]
        above_count += tl.sum(above.to(tl.int64), axis=1)
        # Sums of at most CODES ones are exact in float16 products with float32 sums.
        both_count += tl.dot(above.to(tl.float16), has.to(tl.float16)).to(tl.int64)
    if tl.program_id(2) == 0:
        tl.store(active + atom * t + level, above_count, mask=level < t)
    to = (atom * t + level)[:, None] * c + label[None, :]
    tl.store(both + to, both_count, mask=(level < t)[:, None] & (label < c)[None, :])
