"""Starting kernels, and the checks at their boundary: what reaches one is on one GPU, contiguous and of the right type.

With TRITON_INTERPRET=1, set before Triton is imported, kernels run in Triton's interpreter on tensors of the CPU: for
tests. Every message names the argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import triton

INTERPRETED = triton.knobs.runtime.interpret


def run(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Start `grid` programs of a kernel on the GPU of its first argument; none where the grid is empty."""
    if 0 in grid:
        return
    device = arguments[0].device
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[grid](*arguments, **constants)


def power(least: int, low: int, high: int) -> int:
    """The power of two at or above `least`, held between two others: tiles have such sides."""
    return min(max(triton.next_power_of_2(least), low), high)


def array(
    name: str,
    value: torch.Tensor,
    shape: Sequence[int | None],
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> torch.Tensor:
    """Return `value` if it is a contiguous tensor of this type and shape; None in the shape stands for any length.

    Parameters
    ----------
    device
        Where it must be; None: on any GPU, or on the CPU where kernels are interpreted.

    Raises
    ------
    TypeError
        Not a tensor, or of another type.
    ValueError
        Of another shape, not contiguous, or elsewhere.
    """
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be a torch tensor, not {type(value).__name__}")
    if value.dtype != dtype:
        raise TypeError(f"{name} must be {_plain(dtype)}, not {_plain(value.dtype)}")
    fits = value.ndim == len(shape) and all(want in (None, have) for want, have in zip(shape, value.shape))
    if not fits:
        wanted = " × ".join("any" if want is None else str(want) for want in shape)
        raise ValueError(f"{name} must have shape {wanted}, not {' × '.join(map(str, value.shape)) or 'none'}")
    if not value.is_contiguous():
        raise ValueError(f"{name} must be contiguous: use .contiguous()")
    if device is not None and value.device != device:
        raise ValueError(f"{name} must be on {device}, as the others, not on {value.device}")
    if device is None and value.device.type != "cuda" and not INTERPRETED:
        raise ValueError(f"{name} must be on a GPU, not on {value.device}: use .to('cuda')")
    return value


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def finite(name: str, value: torch.Tensor) -> torch.Tensor:
    """Return `value` if it holds neither NaN nor infinity.

    Raises
    ------
    ValueError
        It does.
    """
    if not torch.isfinite(value).all():
        raise ValueError(f"{name} holds NaN or infinite values")
    return value


def codes(indices: torch.Tensor, values: torch.Tensor, m: int, device: torch.device) -> tuple[int, int]:
    """Return n and k of fixed-width codes over m atoms.

    Raises
    ------
    TypeError, ValueError
        Not int32 and float32 (n, k), elsewhere, or an index that is no atom's.
    """
    n, k = array("indices", indices, (None, None), torch.int32, device).shape
    array("values", values, (n, k), device=device)
    in_range("indices", indices, m)
    return n, k


def in_range(name: str, value: torch.Tensor, size: int) -> torch.Tensor:
    """Return `value` if all of it lies between 0 and size − 1.

    Raises
    ------
    ValueError
        It does not.
    """
    if value.numel():
        low, high = torch.aminmax(value)
        if low < 0 or high >= size:
            raise ValueError(f"{name} must lie between 0 and {size - 1}")
    return value
