"""Products that touch only the active atoms, on a GPU: decode, residual, gradients.

Codes have a fixed width: `indices` int32 (n, k), ascending in each row, and `values` float32 (n, k); a place whose
value is 0 is empty. Every element of a result is summed by one program, in one order: no atomics, and so the same bytes
each time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from conceptome_kernels.gpu import launch

CODES = 8  # codes whose atoms are read at a time
WIDEST = 1024  # dimensions of an atom that are read at a time


def decode(indices: torch.Tensor, values: torch.Tensor, atoms: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """z·D + b.

    Parameters
    ----------
    indices, values
        Codes (n, k).
    atoms, bias
        D, float32 (m, d); b, float32 (d,).

    Returns
    -------
    torch.Tensor
        float32 (n, d).

    Raises
    ------
    TypeError, ValueError
        A wrong type, shape or device, a tensor that is not contiguous, an index that is no atom's.
    """
    n, k, d = _codes(indices, values, atoms, bias)
    out = torch.empty((n, d), device=atoms.device)
    launch.run(_decode, (n,), out, None, indices, values, atoms, bias, None, k, d, CODES=CODES, BLOCK=_block(d))
    return out


def decode_residual(
    X: torch.Tensor,
    indices: torch.Tensor,
    values: torch.Tensor,
    atoms: torch.Tensor,
    bias: torch.Tensor,
    *,
    scale: float | None = None,
) -> tuple[torch.Tensor, ...]:
    """Residual x − b − z·D and its squared length.

    Parameters
    ----------
    X
        float32 (n, d). The others are as in `decode`.
    scale
        Where it is given, `code_gradient` of the residual comes third.

    Returns
    -------
    residual, squares, and gradient where asked for
        float32 (n, d); float64 (n,); float32 (n, k).

    Raises
    ------
    TypeError, ValueError
        As in `decode`.
    """
    n, k, d = _codes(indices, values, atoms, bias)
    launch.array("X", X, (n, d), device=atoms.device)
    residual = torch.empty((n, d), device=X.device)
    squares = torch.empty(n, dtype=torch.float64, device=X.device)
    arguments = (residual, X, indices, values, atoms, bias, squares, k, d)
    launch.run(_decode, (n,), *arguments, CODES=CODES, BLOCK=_block(d))
    if scale is None:
        return residual, squares
    return residual, squares, _code_gradient(residual, indices, values, atoms, float(scale))


def code_gradient(
    error: torch.Tensor, indices: torch.Tensor, values: torch.Tensor, atoms: torch.Tensor, *, scale: float = 1.0
) -> torch.Tensor:
    """Gradient in the codes, scale · e·D_jᵀ at the active places, 0 elsewhere.

    Parameters
    ----------
    error
        float32 (n, d): with `scale`, the gradient of the loss in z·D. The others are as in `decode`.

    Returns
    -------
    torch.Tensor
        float32 (n, k).

    Raises
    ------
    TypeError, ValueError
        As in `decode`.
    """
    n, _, d = _codes(indices, values, atoms, None)
    launch.array("error", error, (n, d), device=atoms.device)
    return _code_gradient(error, indices, values, atoms, float(scale))


def _codes(
    indices: torch.Tensor, values: torch.Tensor, atoms: torch.Tensor, bias: torch.Tensor | None
) -> tuple[int, int, int]:
    """Check codes, atoms and, where there is one, the bias; give n, k and d."""
    m, d = launch.array("atoms", atoms, (None, None)).shape
    if bias is not None:
        launch.array("bias", bias, (d,), device=atoms.device)
    return *launch.codes(indices, values, m, atoms.device), d


def _block(d: int) -> int:
    return launch.power(d, 16, WIDEST)


def _code_gradient(
    error: torch.Tensor, indices: torch.Tensor, values: torch.Tensor, atoms: torch.Tensor, scale: float
) -> torch.Tensor:
    (n, d), k = error.shape, indices.shape[1]
    gradient = torch.empty((n, k), device=error.device)
    arguments = (error, indices, values, atoms, gradient, scale, k, d)
    launch.run(_in_codes, (n,), *arguments, CODES=CODES, BLOCK=_block(d))
    return gradient


@dataclass(frozen=True)
class ByAtom:
    """Active codes sorted by atom, rows ascending: atom j's are the places offsets[j] to offsets[j + 1].

    Attributes
    ----------
    offsets
        int64 (m + 1,).
    rows, values, gradient
        int32, float32 and float32 (active codes,): row, value, and gradient of the loss in the code.
    """

    offsets: torch.Tensor
    rows: torch.Tensor
    values: torch.Tensor
    gradient: torch.Tensor


def by_atom(indices: torch.Tensor, values: torch.Tensor, gradient: torch.Tensor, m: int) -> ByAtom:
    """Sort codes and their gradients by atom (torch's stable sort).

    Parameters
    ----------
    indices, values
        Codes (n, k) over m atoms.
    gradient
        float32 (n, k), as `code_gradient` gives it.

    Raises
    ------
    TypeError, ValueError
        A wrong type, shape or device, a tensor that is not contiguous, an index that is no atom's.
    """
    device = launch.array("values", values, (None, None)).device
    n, k = launch.codes(indices, values, m, device)
    launch.array("gradient", gradient, (n, k), device=device)
    places = torch.nonzero(values.flatten())[:, 0]
    atoms, order = torch.sort(indices.flatten()[places], stable=True)
    places = places[order]
    offsets = torch.searchsorted(atoms, torch.arange(m + 1, dtype=atoms.dtype, device=device))
    rows = (places // max(k, 1)).to(torch.int32)
    return ByAtom(offsets, rows, values.flatten()[places], gradient.flatten()[places])


def sparse_backward(
    error: torch.Tensor,
    indices: torch.Tensor,
    values: torch.Tensor,
    atoms: torch.Tensor,
    inputs: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of a loss through x̂ = z·D + b and z = ReLU(TopK(inputs·Wᵀ + c)).

    Parameters
    ----------
    error
        float32 (n, d): gradient of the loss in x̂.
    indices, values
        Codes (n, k).
    atoms
        D, float32 (m, d).
    inputs
        What the encoder was applied to, x − b, float32 (n, d).

    Returns
    -------
    in_atoms, in_encoder, in_encoder_bias, in_codes
        float32 (m, d), (m, d), (m,) and (n, k); the last 0 where a place is empty.

    Raises
    ------
    TypeError, ValueError
        A wrong type, shape or device, a tensor that is not contiguous, an index that is no atom's.
    """
    in_codes = code_gradient(error, indices, values, atoms)
    m, d = atoms.shape
    launch.array("inputs", inputs, (len(indices), d), device=atoms.device)
    codes = by_atom(indices, values, in_codes, m)
    in_atoms, in_encoder = torch.empty_like(atoms), torch.empty_like(atoms)
    in_encoder_bias = torch.empty(m, device=atoms.device)
    block = _block(d)
    launch.run(
        _in_atoms, (m, triton.cdiv(d, block)),
        error, inputs, codes.offsets, codes.rows, codes.values, codes.gradient, in_atoms, in_encoder, in_encoder_bias,
        d, CODES=CODES, BLOCK=block,
    )  # fmt: skip
    return in_atoms, in_encoder, in_encoder_bias, in_codes


def column_sums(X: torch.Tensor) -> torch.Tensor:
    """Sums of float32 X (n, d) over its rows: float64 (d,), the same bytes each time."""
    n, d = launch.array("X", X, (None, None)).shape
    sums = torch.empty(d, dtype=torch.float64, device=X.device)
    launch.run(_column_sums, (triton.cdiv(d, 32),), X, sums, n, d, ROWS=64, COLUMNS=32)
    return sums


@triton.jit
def gather(rows, weights, source, start, end, at, d, CODES: tl.constexpr, BLOCK: tl.constexpr):
    """Σ weights[i] · source[rows[i]] for i from start to end, in order, of BLOCK dimensions from `at` on."""
    places = at + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for first in range(start, end, CODES):
        which = first + tl.arange(0, CODES)
        weight = tl.load(weights + which, mask=which < end, other=0.0)
        row = tl.load(rows + which, mask=which < end, other=0).to(tl.int64)
        # An empty place reads nothing.
        mask = (weight != 0)[:, None] & (places < d)[None, :]
        part = tl.load(source + row[:, None] * d + places[None, :], mask=mask, other=0.0)
        total += tl.sum(weight[:, None] * part, axis=0)
    return total


@triton.jit
def _decode(out, X, indices, values, atoms, bias, squares, k, d, CODES: tl.constexpr, BLOCK: tl.constexpr):
    """z·D + b of one row; with X, x − b − z·D and the square of its length."""
    row = tl.program_id(0).to(tl.int64)
    length = tl.zeros((BLOCK,), dtype=tl.float64)
    for at in range(0, d, BLOCK):
        places = at + tl.arange(0, BLOCK)
        part = gather(indices, values, atoms, row * k, row * k + k, at, d, CODES, BLOCK)
        shift = tl.load(bias + places, mask=places < d, other=0.0)
        if X is not None:
            part = tl.load(X + row * d + places, mask=places < d, other=0.0) - shift - part
            length += part.to(tl.float64) * part.to(tl.float64)
        else:
            part += shift
        tl.store(out + row * d + places, part, mask=places < d)
    if X is not None:
        tl.store(squares + row, tl.sum(length, axis=0))


@triton.jit
def _in_codes(error, indices, values, atoms, gradient, scale, k, d, CODES: tl.constexpr, BLOCK: tl.constexpr):
    """Gradient scale · e·D_jᵀ at the active places of one row."""
    row = tl.program_id(0).to(tl.int64)
    for first in range(0, k, CODES):
        which = first + tl.arange(0, CODES)
        active = tl.load(values + row * k + which, mask=which < k, other=0.0) != 0
        atom = tl.load(indices + row * k + which, mask=which < k, other=0).to(tl.int64)
        total = tl.zeros((CODES,), dtype=tl.float32)
        for at in range(0, d, BLOCK):
            places = at + tl.arange(0, BLOCK)
            part = tl.load(error + row * d + places, mask=places < d, other=0.0)
            mask = active[:, None] & (places < d)[None, :]
            total += tl.sum(tl.load(atoms + atom[:, None] * d + places[None, :], mask=mask, other=0.0) * part, axis=1)
        tl.store(gradient + row * k + which, tl.where(active, scale * total, 0.0), mask=which < k)


@triton.jit
def _in_atoms(
    error, inputs, offsets, rows, values, gradient, in_atoms, in_encoder, in_encoder_bias, d,
    CODES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients in one atom, its encoder row and its encoder bias."""
    atom, at = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK
    start, end = tl.load(offsets + atom), tl.load(offsets + atom + 1)
    places = at + tl.arange(0, BLOCK)
    to = atom * d + places
    tl.store(in_atoms + to, gather(rows, values, error, start, end, at, d, CODES, BLOCK), mask=places < d)
    tl.store(in_encoder + to, gather(rows, gradient, inputs, start, end, at, d, CODES, BLOCK), mask=places < d)
    if at == 0:
        tl.store(in_encoder_bias + atom, total(gradient, start, end, CODES).to(tl.float32))


@triton.jit
def total(values, start, end, CODES: tl.constexpr):
    """Σ values[i] for i from start to end, float64."""
    held = tl.zeros((CODES,), dtype=tl.float64)
    for first in range(start, end, CODES):
        which = first + tl.arange(0, CODES)
        held += tl.load(values + which, mask=which < end, other=0.0).to(tl.float64)
    return tl.sum(held, axis=0)


@triton.jit
def _column_sums(X, sums, n, d, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    held = tl.zeros((ROWS, COLUMNS), dtype=tl.float64)
    for first in range(0, n, ROWS):
        rows = first + tl.arange(0, ROWS)
        mask = (rows < n)[:, None] & (columns < d)[None, :]
        held += tl.load(X + rows.to(tl.int64)[:, None] * d + columns[None, :], mask=mask, other=0.0).to(tl.float64)
    tl.store(sums + columns, tl.sum(held, axis=0), mask=columns < d)
