"""The end of a training step in one pass on a GPU: gradients, Adam, unit atoms; no gradient matrices."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from conceptome_kernels.gpu import launch
from conceptome_kernels.gpu.sparse import ByAtom, gather, total
from conceptome_kernels.gpu.topk import Packed, pack
from conceptome_kernels.training import Rates

ATOMS = 4  # atoms per program: each adds one row to the gradient in b
TILE = 8192  # numbers of codes' rows that are read at a time
MOST = 8192  # dimensions: a program holds whole atoms in its registers


@dataclass(frozen=True)
class Moved:
    """A parameter and its first and second moment, float32 of one shape, all changed in place."""

    value: torch.Tensor
    first: torch.Tensor
    second: torch.Tensor


@dataclass(frozen=True)
class Part:
    """One term of the loss: its active codes by atom, and scale · error (n, d), its gradient in z·D."""

    codes: ByAtom
    error: torch.Tensor
    scale: float


def update(
    main: Part,
    aux: Part | None,
    inputs: torch.Tensor,
    atoms: Moved,
    encoder: Moved,
    encoder_bias: Moved,
    packed: Packed | None,
    rates: Rates,
) -> torch.Tensor:
    """Take one optimiser step on atoms, encoder and encoder_bias.

    The part of each atom's gradient along the atom is removed (Gao et al. 2024), Adam (Kingma and Ba 2015) moves all
    three, and each atom is scaled back to unit norm. Atoms without active codes have gradient 0, and move by what their
    moments hold.

    Parameters
    ----------
    main, aux
        The terms of the loss; gradients are those of both together.
    inputs
        x − b, float32 (n, d).
    atoms, encoder, encoder_bias
        Shapes (m, d), (m, d), (m,); changed in place.
    packed
        `topk.pack(encoder)`, where it is in use; brought up to date in place.

    Returns
    -------
    torch.Tensor
        float64 (d,): the gradient in b through the encoder.

    Raises
    ------
    TypeError, ValueError
        A wrong type, shape or device, a tensor that is not contiguous, more than 8,192 dimensions.
    """
    m, d = launch.array("atoms.value", atoms.value, (None, None)).shape
    if d > MOST:
        raise ValueError(f"atoms must have at most {MOST} dimensions here, not {d}")
    device = atoms.value.device
    n = len(launch.array("inputs", inputs, (None, d), device=device))
    tensors = []
    for name, given, shape in (
        ("atoms", atoms, (m, d)),
        ("encoder", encoder, (m, d)),
        ("encoder_bias", encoder_bias, (m,)),
    ):
        for part in ("value", "first", "second"):
            tensors.append(launch.array(f"{name}.{part}", getattr(given, part), shape, device=device))
    terms = [
        *_term("main", main, n, m, d, device),
        *(_term("aux", aux, n, m, d, device) if aux else (None, None, None, None, None, 0.0)),
    ]
    block = launch.power(d, 16, MOST)
    panels = triton.cdiv(m, ATOMS)
    in_bias = torch.empty((panels, d), device=device)
    # 1 − β in float64: its float32 is not that of 1 − float32(β).
    numbers = (1 - rates.keep_first, rates.keep_second, 1 - rates.keep_second, rates.size, rates.epsilon)
    launch.run(
        _update, (panels,), inputs, *terms, *tensors, in_bias, m, d, *map(float, numbers),
        ATOMS=ATOMS, CODES=min(TILE // block, 64), BLOCK=block, num_warps=8,
    )  # fmt: skip
    if packed is not None:
        pack(encoder.value, out=packed)
    return in_bias.sum(dim=0, dtype=torch.float64)


def _term(name: str, part: Part, n: int, m: int, d: int, device: torch.device) -> tuple:
    codes = part.codes
    offsets = launch.array(f"{name}.codes.offsets", codes.offsets, (m + 1,), torch.int64, device)
    active = int(offsets[-1])
    rows = launch.array(f"{name}.codes.rows", codes.rows, (active,), torch.int32, device)
    launch.in_range(f"{name}.codes.rows", rows, n)
    values = launch.array(f"{name}.codes.values", codes.values, (active,), device=device)
    gradient = launch.array(f"{name}.codes.gradient", codes.gradient, (active,), device=device)
    error = launch.array(f"{name}.error", part.error, (n, d), device=device)
    return error, offsets, rows, values, gradient, float(part.scale)


@triton.jit
def _update(
    inputs, error, offsets, rows, values, gradient, scale,
    aux_error, aux_offsets, aux_rows, aux_values, aux_gradient, aux_scale,
    atoms, first_atoms, second_atoms, encoder, first_encoder, second_encoder, biases, first_biases, second_biases,
    in_bias, m, d, to_first, keep_second, to_second, size, epsilon,
    ATOMS: tl.constexpr, CODES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Take one step on ATOMS atoms, one after the other; what they add to the gradient in b."""
    panel = tl.program_id(0)
    places = tl.arange(0, BLOCK)
    inside = places < d
    through = tl.zeros((BLOCK,), dtype=tl.float32)
    for atom in range(panel * ATOMS, tl.minimum(panel * ATOMS + ATOMS, m)):
        start, end = tl.load(offsets + atom), tl.load(offsets + atom + 1)
        in_atom = scale * gather(rows, values, error, start, end, 0, d, CODES, BLOCK)
        in_encoder = gather(rows, gradient, inputs, start, end, 0, d, CODES, BLOCK)
        in_encoder_bias = total(gradient, start, end, 64)
        if aux_error is not None:
            start, end = tl.load(aux_offsets + atom), tl.load(aux_offsets + atom + 1)
            in_atom += aux_scale * gather(aux_rows, aux_values, aux_error, start, end, 0, d, CODES, BLOCK)
            in_encoder += gather(aux_rows, aux_gradient, inputs, start, end, 0, d, CODES, BLOCK)
            in_encoder_bias += total(aux_gradient, start, end, 64)
        in_encoder_bias = in_encoder_bias.to(tl.float32)
        at = tl.cast(atom, tl.int64) * d + places
        row = tl.load(encoder + at, mask=inside, other=0.0)
        through -= in_encoder_bias * row
        _adam(encoder + at, row, first_encoder + at, second_encoder + at, in_encoder, inside,
              to_first, keep_second, to_second, size, epsilon)  # fmt: skip
        row = tl.load(atoms + at, mask=inside, other=0.0)
        in_atom -= tl.sum(in_atom * row, axis=0) * row
        row = _adam(atoms + at, row, first_atoms + at, second_atoms + at, in_atom, inside,
                    to_first, keep_second, to_second, size, epsilon)  # fmt: skip
        norm = tl.sqrt(tl.sum(tl.where(inside, row * row, 0.0), axis=0))
        tl.store(atoms + at, row / norm, mask=inside)
        value = tl.load(biases + atom)
        _adam(biases + atom, value, first_biases + atom, second_biases + atom, in_encoder_bias, atom < m,
              to_first, keep_second, to_second, size, epsilon)  # fmt: skip
    tl.store(in_bias + panel.to(tl.int64) * d + places, through, mask=inside)


@triton.jit
def _adam(to, value, first_at, second_at, gradient, mask, to_first, keep_second, to_second, size, epsilon):
    """Move a value and its moments by the gradient; give the moved value."""
    first = tl.load(first_at, mask=mask, other=0.0)
    second = tl.load(second_at, mask=mask, other=0.0)
    first += to_first * (gradient - first)
    second = keep_second * second + to_second * gradient * gradient
    value -= size * (first / (tl.sqrt(second) + epsilon))
    tl.store(first_at, first, mask=mask)
    tl.store(second_at, second, mask=mask)
    tl.store(to, value, mask=mask)
    return value
