"""Encoders with a dense product on a GPU: the k largest scores of each row, or all scores above a threshold.

Scores are (x − b)·Wᵀ + c, in float32 without TF32. Each program takes the product of some rows with a tile of atoms and
writes down only the largest of its scores, as 64-bit keys (score, then column) that no two columns share; the k largest
of a row's keys are its codes. Where a tile may have hidden one of these, the row is encoded anew with k keys a tile.

With `packed` the product is taken in bfloat16 first. A score of bfloat16 differs from the float32 one by at most
‖δx‖‖w‖ + ‖x̂‖‖δw‖ and the rounding of the sums (δ: what rounding took away, x̂: the rounded row). The atoms with the
largest upper bounds are scored again in float32; a row is done when its k-th score lies above every other atom's upper
bound, and is encoded in float32 otherwise. So the selection is exact for the scores returned, in either way.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from conceptome_kernels.checks import count
from conceptome_kernels.gpu import launch

ROWS, COLUMNS, DEPTH = 64, 128, 32  # a tile: rows × atoms, and the dimensions multiplied at a time
SIDES = {"ROWS": ROWS, "COLUMNS": COLUMNS, "DEPTH": DEPTH, "num_warps": 8}
ROOM = 2**23  # keys kept at a time: 64 MiB
RESCORED = 32  # atoms beyond k that are scored again, at least
SUM_ROUNDING = 2.0**-21  # per term, of sums that the tensor cores may truncate
SMALLEST = 2.0**-149
LOWEST: tl.constexpr = tl.constexpr(-(2**63))  # the key of no column
LAST: tl.constexpr = tl.constexpr(2**31 - 1)


@dataclass(frozen=True)
class Packed:
    """Rows in bfloat16, and what the bound of their products needs.

    Attributes
    ----------
    rounded
        bfloat16 (m, d).
    length, error
        float32 (m,), at least the lengths of the rows and of what rounding took from them.
    """

    rounded: torch.Tensor
    length: torch.Tensor
    error: torch.Tensor


def pack(encoder: torch.Tensor, *, out: Packed | None = None) -> Packed:
    """Round the encoder, float32 (m, d), for the screen of `encode_topk`; `out` is an earlier result to overwrite.

    Raises
    ------
    TypeError, ValueError
        A wrong type or shape, or a tensor that is not contiguous.
    """
    m, d = launch.array("encoder", encoder, (None, None)).shape
    if out is None:
        lengths = torch.empty((2, m), device=encoder.device)
        out = Packed(torch.empty((m, d), dtype=torch.bfloat16, device=encoder.device), lengths[0], lengths[1])
    _check_packed(out, m, d, encoder.device)
    _round(encoder, out)
    return out


def _round(rows: torch.Tensor, out: Packed) -> None:
    for at in range(0, len(rows), 8192):
        part = slice(at, at + 8192)
        out.rounded[part] = rows[part]
        exact = rows[part].double()
        # Up by more than the conversion to float32 may take off, denormals too.
        out.length[part] = exact.norm(dim=1) * (1 + 1e-6) + SMALLEST
        out.error[part] = (exact - out.rounded[part].double()).norm(dim=1) * (1 + 1e-6) + SMALLEST


def _check_packed(packed: Packed, m: int, d: int, device: torch.device) -> None:
    launch.array("packed.rounded", packed.rounded, (m, d), torch.bfloat16, device)
    launch.array("packed.length", packed.length, (m,), device=device)
    launch.array("packed.error", packed.error, (m,), device=device)


def encode_topk(
    X: torch.Tensor,
    encoder: torch.Tensor,
    encoder_bias: torch.Tensor,
    bias: torch.Tensor,
    k: int,
    *,
    packed: Packed | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """ReLU(TopK_k((x − b)·Wᵀ + c)).

    Parameters
    ----------
    X
        float32 (n, d).
    encoder
        W, float32 (m, d).
    encoder_bias, bias
        c, float32 (m,); b, float32 (d,).
    k
        1 ≤ k ≤ m.
    packed
        `pack(encoder)`: take the product in bfloat16 first. None: in float32 at once.

    Returns
    -------
    indices, values
        int32 (n, k), the columns of the k largest scores, ascending, the lower column where scores are equal; and
        float32 (n, k), the scores, 0 for those below 0.

    Raises
    ------
    TypeError, ValueError
        A wrong type, shape, device or k, a tensor that is not contiguous, NaN or infinite values in X, encoder_bias or
        bias.
    FloatingPointError
        NaN among the scores: the encoder holds NaN, or products overflow.
    """
    _, m, d = _encoder(X, encoder, encoder_bias, bias)
    k = count("k", k, 1, m)
    if packed is None:
        top = largest(X, encoder, k, shift=bias, offset=encoder_bias)
    else:
        _check_packed(packed, m, d, X.device)
        top = _screened(X, encoder, encoder_bias, bias, k, packed)
    columns, scores = unpack_keys(top)
    columns, order = columns.sort(dim=1)
    return columns.to(torch.int32), scores.gather(1, order).clamp_min(0)


def _encoder(
    X: torch.Tensor, encoder: torch.Tensor, encoder_bias: torch.Tensor, bias: torch.Tensor
) -> tuple[int, int, int]:
    """Check what every encoder takes; give n, m and d."""
    n, d = launch.array("X", X, (None, None)).shape
    device = X.device
    (m,) = launch.array("encoder_bias", encoder_bias, (None,), device=device).shape
    launch.finite("encoder_bias", encoder_bias)
    launch.finite("bias", launch.array("bias", bias, (d,), device=device))
    if not d or not m:
        raise ValueError(f"encoder must have atoms and dimensions, not {m} × {d}")
    launch.array("encoder", encoder, (m, d), device=device)
    launch.finite("X", X)
    return n, m, d


def largest(
    rows: torch.Tensor,
    atoms: torch.Tensor,
    k: int,
    *,
    shift: torch.Tensor | None = None,
    offset: torch.Tensor | None = None,
    closed: torch.Tensor | None = None,
    magnitude: bool = False,
) -> torch.Tensor:
    """Keys of the k largest scores (row − shift)·atomsᵀ + offset of each row, descending; see `unpack_keys`.

    Parameters
    ----------
    rows, atoms
        float32 (n, d) and (m, d), as checked.
    shift, offset
        float32 (d,) and (m,), or None.
    closed
        bool (n, m): columns that a row may not have; where it closes more than m − k, −inf fills the row.
    magnitude
        Choose by the score's magnitude, which is then what the key holds.

    Returns
    -------
    torch.Tensor
        int64 (n, k).

    Raises
    ------
    FloatingPointError
        NaN among the scores.
    """
    tiles = triton.cdiv(len(atoms), COLUMNS)
    most = min(k, COLUMNS)
    kept = min(most, triton.cdiv(3 * k, tiles) + 6)
    top = torch.empty((len(rows), k), dtype=torch.int64, device=rows.device)

    def fill(which: torch.Tensor | slice, kept: int) -> torch.Tensor:
        """Find the keys of some rows; return whether they are surely the largest."""
        shut = None if closed is None else closed[which].contiguous().view(torch.uint8)
        keys = _keys(rows[which].contiguous(), atoms, shift, offset, shut, magnitude, kept)
        found = keys.flatten(1).topk(k, dim=1).values
        top[which] = found
        # Entries that a tile did not give have smaller keys than the last one that it gave.
        return (keys[:, :, -1] < found[:, -1:]).all(dim=1)

    for part in _parts(len(rows), tiles * kept):
        sure = fill(part, kept)
        if kept < most:
            unsure = torch.nonzero(~sure)[:, 0] + part.start
            for again in _parts(len(unsure), tiles * most):
                fill(unsure[again], most)
    return top


def _parts(n: int, width: int) -> list[slice]:
    """Rows to take at a time where each needs room for `width` keys."""
    size = max(ROOM // width // ROWS, 1) * ROWS
    return [slice(at, min(at + size, n)) for at in range(0, n, size)]


def _keys(
    rows: torch.Tensor,
    atoms: torch.Tensor,
    shift: torch.Tensor | None,
    offset: torch.Tensor | None,
    closed: torch.Tensor | None,
    magnitude: bool,
    kept: int,
) -> torch.Tensor:
    """The `kept` largest keys of each row in each tile of columns, descending: int64 (n, tiles, kept)."""
    (n, d), m = rows.shape, len(atoms)
    tiles = triton.cdiv(m, COLUMNS)
    keys = torch.empty((n, tiles, kept), dtype=torch.int64, device=rows.device)
    grid = (triton.cdiv(n, ROWS), tiles)
    nan = torch.zeros(grid, dtype=torch.int32, device=rows.device)
    launch.run(
        _tile_keys, grid, rows, shift, atoms, offset, closed, keys, nan, n, m, d, tiles,
        MAGNITUDE=magnitude, KEPT=kept, **SIDES,
    )  # fmt: skip
    if nan.any():
        raise FloatingPointError("scores hold NaN")
    return keys


def unpack_keys(keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Columns, int64, and scores, float32, of keys."""
    order = (keys >> 32).to(torch.int32)
    bits = torch.where(order < 0, order ^ LAST.value, order)
    return LAST.value - (keys & LAST.value), bits.view(torch.float32)


def _pack_keys(columns: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Keys of columns and scores: as `_key` makes them on the GPU."""
    bits = torch.where(scores == 0, 0.0, scores).view(torch.int32)
    order = torch.where(bits < 0, bits ^ LAST.value, bits).long()
    return (order << 32) | (LAST.value - columns.long())


def _screened(
    X: torch.Tensor,
    encoder: torch.Tensor,
    encoder_bias: torch.Tensor,
    bias: torch.Tensor,
    k: int,
    packed: Packed,
) -> torch.Tensor:
    """Keys (n, k) of the largest scores, as `largest` finds them, by way of a product in bfloat16."""
    (n, d), m = X.shape, len(encoder)
    tiles = triton.cdiv(m, COLUMNS)
    kept = min(k + RESCORED, COLUMNS, triton.cdiv(3 * (k + RESCORED), tiles) + 6)
    width = min(k + max(RESCORED, k // 2), m, tiles * kept)
    top = torch.empty((n, k), dtype=torch.int64, device=X.device)
    for part in _parts(n, tiles * kept):
        rows = X[part].contiguous()
        size = len(rows)
        centred = rows - bias
        lengths = torch.empty((2, size), device=X.device)
        low = Packed(torch.empty((size, d), dtype=torch.bfloat16, device=X.device), lengths[0], lengths[1])
        _round(centred, low)
        keys = torch.empty((size, tiles, kept), dtype=torch.int64, device=X.device)
        launch.run(
            _tile_bounds, (triton.cdiv(size, ROWS), tiles),
            *(_bits(each) for each in (low.rounded, packed.rounded)), low.length, low.error, packed.length,
            packed.error, encoder_bias, keys, size, m, d, tiles, (d + 8) * SUM_ROUNDING, (d + 8) * 2 * SMALLEST,
            BITS=launch.INTERPRETED, KEPT=kept, **{**SIDES, "DEPTH": 2 * DEPTH},
        )  # fmt: skip
        hopeful = keys.flatten(1).topk(min(width + 1, tiles * kept), dim=1).values
        columns, _ = unpack_keys(hopeful)
        # A tile that is not full gives keys of no column: atom 0 in their place, whose score does not count.
        empty = hopeful == LOWEST.value
        columns = torch.where(empty, 0, columns)[:, :width].to(torch.int32).contiguous()
        scores = torch.empty((size, width), device=X.device)
        launch.run(
            _rescore, (size,), rows, bias, encoder, encoder_bias, columns, scores, d, width,
            CODES=16, BLOCK=launch.power(d, 16, 256),
        )  # fmt: skip
        rescored = torch.where(empty[:, :width], LOWEST.value, _pack_keys(columns, scores))
        found = rescored.topk(k, dim=1).values
        kth = unpack_keys(found)[1][:, -1]
        # What was not scored again lies at or below these upper bounds.
        sure = torch.isfinite(scores).all(dim=1)
        for last in ([keys[:, :, -1].amax(dim=1)] if kept < COLUMNS else []) + list(hopeful[:, width:].T):
            sure &= (kth > unpack_keys(last)[1]) | (last == LOWEST.value)
        top[part] = found
        unsure = torch.nonzero(~sure)[:, 0]
        top[unsure + part.start] = largest(rows[unsure], encoder, k, shift=bias, offset=encoder_bias)
    return top


def _bits(rounded: torch.Tensor) -> torch.Tensor:
    """Bfloat16 as kernels take it: the interpreter would multiply its bits as integers, so it gets them as such."""
    return rounded.view(torch.int16) if launch.INTERPRETED else rounded


def encode_threshold(
    X: torch.Tensor,
    encoder: torch.Tensor,
    encoder_bias: torch.Tensor,
    bias: torch.Tensor,
    threshold: torch.Tensor | float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """All scores (x − b)·Wᵀ + c that lie above their atom's threshold, as the arrays of a CSR matrix (n, m).

    The product is taken twice: to count, and, once the places are known, to write.

    Parameters
    ----------
    threshold
        One number, or float32 (m,); −inf keeps all scores, inf none. The others are as in `encode_topk`.

    Returns
    -------
    indptr, indices, values
        int64 (n + 1,); int32 and float32 (nnz,), columns ascending in each row.

    Raises
    ------
    TypeError, ValueError, FloatingPointError
        As in `encode_topk`; NaN among the thresholds.
    """
    n, m, d = _encoder(X, encoder, encoder_bias, bias)
    if not isinstance(threshold, torch.Tensor) or threshold.ndim == 0:
        threshold = torch.full((m,), float(threshold), device=X.device)
    if launch.array("threshold", threshold, (m,), device=X.device).isnan().any():
        raise ValueError("threshold holds NaN")
    tiles = triton.cdiv(m, COLUMNS)
    counts = torch.zeros((n, tiles), dtype=torch.int64, device=X.device)
    grid = (triton.cdiv(n, ROWS), tiles)
    nan = torch.zeros(grid, dtype=torch.int32, device=X.device)
    given = (X, bias, encoder, encoder_bias, threshold)
    launch.run(_count_above, grid, *given, counts, nan, n, m, d, tiles, **SIDES)
    if nan.any():
        raise FloatingPointError("scores hold NaN")
    ends = counts.flatten().cumsum(0)
    starts = (ends - counts.flatten()).view(n, tiles)
    indptr = torch.cat([ends.new_zeros(1), ends.view(n, tiles)[:, -1]])
    indices = torch.empty(int(indptr[-1]), dtype=torch.int32, device=X.device)
    values = torch.empty(len(indices), device=X.device)
    if len(indices):
        launch.run(_write_above, grid, *given, starts, indices, values, n, m, d, tiles, **SIDES)
    return indptr, indices, values


@triton.jit
def _scores(X, bias, W, c, rows, columns, n, m, d, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr):
    """(x − b)·Wᵀ + c of a tile, float32; each score sums its dimensions in order, whatever the tile."""
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    row_starts = rows.to(tl.int64)[:, None] * d
    atom_starts = columns.to(tl.int64)[:, None] * d
    for at in range(0, d, DEPTH):
        places = at + tl.arange(0, DEPTH)
        inside = (places < d)[None, :]
        x = tl.load(X + row_starts + places[None, :], mask=(rows < n)[:, None] & inside, other=0.0)
        if bias is not None:
            x -= tl.load(bias + places, mask=places < d, other=0.0)[None, :]
        w = tl.load(W + atom_starts + places[None, :], mask=(columns < m)[:, None] & inside, other=0.0)
        total = tl.dot(x, tl.trans(w), total, input_precision="ieee")
    if c is not None:
        total += tl.load(c + columns, mask=columns < m, other=0.0)[None, :]
    return total


@triton.jit
def _key(score, columns):
    """64-bit integers in the order of scores; of equal scores (−0 equals 0) the lower column's is larger."""
    bits = tl.where(score == 0, 0.0, score).to(tl.int32, bitcast=True)
    order = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)
    return (order << 32) | (0x7FFFFFFF - columns).to(tl.int64)


@triton.jit
def _store_largest(key, keys, rows, tile, n, tiles, KEPT: tl.constexpr):
    """Write the KEPT largest of each row's keys, descending."""
    to = keys + (rows.to(tl.int64) * tiles + tile) * KEPT
    for place in range(KEPT):
        best = tl.max(key, axis=1)
        tl.store(to + place, best, mask=rows < n)
        key = tl.where(key == best[:, None], LOWEST, key)


@triton.jit
def _any_nan(score, rows, columns, n, m):
    bad = (score != score) & (rows < n)[:, None] & (columns < m)[None, :]
    return tl.max(tl.max(bad.to(tl.int32), axis=1), axis=0)


@triton.jit
def _tile_keys(
    X, bias, W, c, closed, keys, nan, n, m, d, tiles,
    MAGNITUDE: tl.constexpr, KEPT: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """The largest keys of a tile in float32; whether it holds NaN."""
    block, tile = tl.program_id(0), tl.program_id(1)
    rows, columns = block * ROWS + tl.arange(0, ROWS), tile * COLUMNS + tl.arange(0, COLUMNS)
    score = _scores(X, bias, W, c, rows, columns, n, m, d, ROWS, COLUMNS, DEPTH)
    tl.store(nan + block * tiles + tile, _any_nan(score, rows, columns, n, m))
    valid = (rows < n)[:, None] & (columns < m)[None, :]
    if MAGNITUDE:
        score = tl.abs(score)
    if closed is not None:
        shut = tl.load(closed + rows.to(tl.int64)[:, None] * m + columns[None, :], mask=valid, other=1)
        score = tl.where(shut != 0, float("-inf"), score)
    key = tl.where(valid, _key(score, columns[None, :]), LOWEST)
    _store_largest(key, keys, rows, tile, n, tiles, KEPT)


@triton.jit
def _tile_bounds(
    X, W, x_length, x_error, w_length, w_error, c, keys, n, m, d, tiles, rounding, smallest,
    BITS: tl.constexpr, KEPT: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """The largest keys of a tile's upper bounds: scores of bfloat16 and what they may be short of the float32 ones."""
    block, tile = tl.program_id(0), tl.program_id(1)
    rows, columns = block * ROWS + tl.arange(0, ROWS), tile * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    row_starts = rows.to(tl.int64)[:, None] * d
    atom_starts = columns.to(tl.int64)[:, None] * d
    for at in range(0, d, DEPTH):
        places = at + tl.arange(0, DEPTH)
        inside = (places < d)[None, :]
        x = tl.load(X + row_starts + places[None, :], mask=(rows < n)[:, None] & inside, other=0)
        w = tl.load(W + atom_starts + places[None, :], mask=(columns < m)[:, None] & inside, other=0)
        if BITS:
            x = (x.to(tl.int32) << 16).to(tl.float32, bitcast=True)
            w = (w.to(tl.int32) << 16).to(tl.float32, bitcast=True)
        total = tl.dot(x, tl.trans(w), total)
    xl, xe = tl.load(x_length + rows, mask=rows < n, other=0.0), tl.load(x_error + rows, mask=rows < n, other=0.0)
    wl = tl.load(w_length + columns, mask=columns < m, other=0.0)
    we = tl.load(w_error + columns, mask=columns < m, other=0.0)
    offset = tl.load(c + columns, mask=columns < m, other=0.0)
    # ‖x̂‖ ≤ ‖x‖ + ‖δx‖; `rounding` covers the sums of both products, and with the last term their underflow.
    short = xe[:, None] * wl[None, :] + (xl + xe)[:, None] * (we + rounding * wl)[None, :]
    upper = total + offset[None, :] + short * 1.001 + tl.abs(offset)[None, :] * 1e-6 + smallest
    upper = tl.where(upper == upper, upper, float("inf"))
    valid = (rows < n)[:, None] & (columns < m)[None, :]
    key = tl.where(valid, _key(upper, columns[None, :]), LOWEST)
    _store_largest(key, keys, rows, tile, n, tiles, KEPT)


@triton.jit
def _rescore(X, bias, W, c, columns, scores, d, width, CODES: tl.constexpr, BLOCK: tl.constexpr):
    """Scores of one row for the atoms named in `columns` (n, width)."""
    row = tl.program_id(0).to(tl.int64)
    for start in range(0, width, CODES):
        which = start + tl.arange(0, CODES)
        atom = tl.load(columns + row * width + which, mask=which < width, other=0)
        total = tl.zeros((CODES,), dtype=tl.float32)
        for at in range(0, d, BLOCK):
            places = at + tl.arange(0, BLOCK)
            x = tl.load(X + row * d + places, mask=places < d, other=0.0)
            x -= tl.load(bias + places, mask=places < d, other=0.0)
            w = tl.load(W + atom.to(tl.int64)[:, None] * d + places[None, :], mask=(places < d)[None, :], other=0.0)
            total += tl.sum(w * x[None, :], axis=1)
        total += tl.load(c + atom)
        tl.store(scores + row * width + which, total, mask=which < width)


@triton.jit
def _count_above(
    X, bias, W, c, threshold, counts, nan, n, m, d, tiles,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """How many scores of each row in a tile lie above their thresholds; whether the tile holds NaN."""
    block, tile = tl.program_id(0), tl.program_id(1)
    rows, columns = block * ROWS + tl.arange(0, ROWS), tile * COLUMNS + tl.arange(0, COLUMNS)
    score = _scores(X, bias, W, c, rows, columns, n, m, d, ROWS, COLUMNS, DEPTH)
    tl.store(nan + block * tiles + tile, _any_nan(score, rows, columns, n, m))
    bar = tl.load(threshold + columns, mask=columns < m, other=float("inf"))
    above = score > bar[None, :]
    tl.store(counts + rows.to(tl.int64) * tiles + tile, tl.sum(above.to(tl.int64), axis=1), mask=rows < n)


@triton.jit
def _write_above(
    X, bias, W, c, threshold, starts, indices, values, n, m, d, tiles,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Columns and scores of a tile above their thresholds, from the place `starts` (n, tiles) of each row on."""
    block, tile = tl.program_id(0), tl.program_id(1)
    rows, columns = block * ROWS + tl.arange(0, ROWS), tile * COLUMNS + tl.arange(0, COLUMNS)
    score = _scores(X, bias, W, c, rows, columns, n, m, d, ROWS, COLUMNS, DEPTH)
    bar = tl.load(threshold + columns, mask=columns < m, other=float("inf"))
    above = (score > bar[None, :]) & (rows < n)[:, None]
    place = tl.cumsum(above.to(tl.int32), axis=1) - 1
    to = tl.load(starts + rows.to(tl.int64) * tiles + tile, mask=rows < n, other=0)[:, None] + place
    tl.store(indices + to, tl.broadcast_to(columns[None, :], (ROWS, COLUMNS)), mask=above)
    tl.store(values + to, score, mask=above)
