"""The end of a training step in one pass: gradients, Adam, unit atoms, the packed encoder; no gradient matrices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from conceptome_kernels import checks
from conceptome_kernels.loader import call
from conceptome_kernels.sparse import ByAtom
from conceptome_kernels.topk import packed_size


@dataclass(frozen=True)
class Moved:
    """A parameter and its first and second moment, float32 of one shape, all changed in place."""

    value: np.ndarray
    first: np.ndarray
    second: np.ndarray


@dataclass(frozen=True)
class Part:
    """One term of the loss: its active codes by atom, and scale · error (n, d), its gradient in z·D."""

    codes: ByAtom
    error: np.ndarray
    scale: float


@dataclass(frozen=True)
class Rates:
    """Adam's numbers of one step: value −= size · first / (√second + epsilon), moments kept at these rates."""

    keep_first: float
    keep_second: float
    size: float
    epsilon: float


def update(
    main: Part,
    aux: Part | None,
    inputs: np.ndarray,
    atoms: Moved,
    encoder: Moved,
    encoder_bias: Moved,
    packed: np.ndarray,
    rates: Rates,
    *,
    threads: int | None = None,
) -> np.ndarray:
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
        `topk.pack(encoder)`; brought up to date in place.

    Returns
    -------
    numpy.ndarray
        float64 (d,): the gradient in b through the encoder.

    Raises
    ------
    TypeError, ValueError
        A wrong type or shape, or an array that is not contiguous.
    """
    m, d = checks.array("atoms", atoms.value, (None, None)).shape
    n = len(checks.array("inputs", inputs, (None, d)))
    arrays = []
    for name, given, shape in (
        ("atoms", atoms, (m, d)),
        ("encoder", encoder, (m, d)),
        ("encoder_bias", encoder_bias, (m,)),
    ):
        for part in ("value", "first", "second"):
            arrays.append(checks.array(f"{name}.{part}", getattr(given, part), shape))
    size = packed_size(m, d)
    checks.array("packed", packed, (size,))
    terms = [
        *_term("main", main, n, m, d),
        *(_term("aux", aux, n, m, d) if aux else (None, 0.0, None, None, None, None)),
    ]
    # One row per panel of atoms: as many as the packed encoder has.
    in_bias = np.empty((call("conceptome_panels", m), d), dtype=np.float32)
    numbers = (float(rates.keep_first), float(rates.keep_second), float(rates.size), float(rates.epsilon))
    call("conceptome_update", m, d, inputs, *terms, *arrays, *numbers, packed, in_bias, checks.threads(threads))
    return in_bias.sum(axis=0, dtype=np.float64)


def _term(name: str, part: Part, n: int, m: int, d: int) -> tuple:
    codes = part.codes
    offsets = checks.array(f"{name}.codes.offsets", codes.offsets, (m + 1,), np.int64)
    active = int(offsets[-1])
    rows = checks.array(f"{name}.codes.rows", codes.rows, (active,), np.int32)
    if active and not 0 <= rows.min() <= rows.max() < n:
        raise ValueError(f"{name}.codes.rows must lie between 0 and {n - 1}")
    values = checks.array(f"{name}.codes.values", codes.values, (active,))
    gradient = checks.array(f"{name}.codes.gradient", codes.gradient, (active,))
    return checks.array(f"{name}.error", part.error, (n, d)), float(part.scale), offsets, rows, values, gradient
