"""Choose the variant that fits the processor, build it when it is missing, and load it with ctypes.

`CONCEPTOME_KERNELS` forces a variant: generic, avx2, avx512 or avx512vnni, or torch for no compiled kernels at all. A
forced variant that cannot be had is an error; without it, a machine that has no compiler gets one warning and the torch
path.
"""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from conceptome_kernels.build import VARIANTS, BuildError, build, digest

# Set-up compiles before anything is installed: numpy is only named here.
if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger(__name__)

VARIABLE = "CONCEPTOME_KERNELS"
TORCH = "torch"
# Flags of /proc/cpuinfo that a variant needs.
NEEDED: dict[str, frozenset[str]] = {
    "avx512vnni": frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx2", "fma"}),
    "avx512": frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx2", "fma"}),
    "avx2": frozenset({"avx2", "fma"}),
    "generic": frozenset(),
}


class KernelError(RuntimeError):
    """The kernels that were asked for cannot be had; the message is one line."""


@cache
def processor_flags() -> frozenset[str]:
    """Flags of the first processor in /proc/cpuinfo; none where there is no such file."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), []))


def supported() -> list[str]:
    """Variants that this processor can run, the best first."""
    return [name for name in VARIANTS if NEEDED[name] <= processor_flags()]


def variant() -> str:
    """The variant to use here: `CONCEPTOME_KERNELS` where it is set, else the best that the processor can run.

    Raises
    ------
    KernelError
        The variable names no variant, or one that this processor cannot run.
    """
    forced = os.environ.get(VARIABLE)
    if not forced:
        return supported()[0]
    if forced != TORCH and forced not in VARIANTS:
        raise KernelError(f"{VARIABLE}={forced} is not known: use {', '.join(VARIANTS)} or {TORCH}, or unset it")
    if forced in VARIANTS and forced not in supported():
        lacking = ", ".join(sorted(NEEDED[forced] - processor_flags()))
        raise KernelError(f"{VARIABLE}={forced}, but this processor lacks {lacking}: use {supported()[0]}, or unset it")
    return forced


def library() -> ctypes.CDLL | None:
    """Load the kernels; None when the torch path is to be used.

    Raises
    ------
    KernelError
        `CONCEPTOME_KERNELS` asks for what cannot be had.
    """
    name = variant()
    if name == TORCH:
        return None
    if os.environ.get(VARIABLE):
        try:
            return _open(name)
        except BuildError as error:
            raise KernelError(f"{VARIABLE}={name}: {error}") from None
    return _open_or_warn(name)


def available() -> bool:
    """Whether the compiled kernels can be used; builds them when they are missing."""
    return library() is not None


def build_digest() -> str | None:
    """Variant and digest of the build in use, None for the torch path."""
    name = variant()
    return f"{name}-{digest(name)}" if available() else None


@cache
def _open_or_warn(name: str) -> ctypes.CDLL | None:
    """Load a variant that nobody insisted on; warn once and give None where it cannot be built."""
    try:
        return _open(name)
    except BuildError as error:
        log.warning("%s: dictionaries use the slower torch path", error)
        return None


@cache
def _open(name: str) -> ctypes.CDLL:
    path = build(name)
    share_openmp()
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise BuildError(f"the built kernels cannot be loaded ({error})") from None


@cache
def share_openmp() -> None:
    """Load the OpenMP runtime that torch brings, so that one pool of threads serves both; torch is not imported.

    From then on, threadpoolctl limits the kernels' threads too.
    """
    spec = importlib.util.find_spec("torch")
    folders = spec.submodule_search_locations if spec else None
    for folder in folders or ():
        for file in sorted(Path(folder, "lib").glob("libgomp*.so*")):
            ctypes.CDLL(str(file))


def loaded() -> ctypes.CDLL:
    """Return the loaded library.

    Raises
    ------
    KernelError
        The torch path is in use, so that there is none: ask `available()` first.
    """
    handle = library()
    if handle is None:
        raise KernelError("the compiled kernels are not available here: use the torch path")
    return handle


def call(name: str, *arguments: np.ndarray | int | float | None) -> int:
    """Call a function of the library; the interpreter's lock is released meanwhile.

    Parameters
    ----------
    name
        As exported: takes only pointers, int64_t and double, and returns int64_t.
    arguments
        Arrays go as pointers to their first element (checked by the caller), None as the null pointer, integers as
        int64_t, floats as double.
    """
    found = getattr(loaded(), name)
    found.restype = ctypes.c_int64
    return found(*map(_plain, arguments))


def _plain(value: np.ndarray | int | float | None) -> ctypes._SimpleCData:
    memory = getattr(value, "ctypes", None)
    if memory is not None:
        return ctypes.c_void_p(memory.data)
    if value is None:
        return ctypes.c_void_p(None)
    if isinstance(value, float):
        return ctypes.c_double(value)
    return ctypes.c_int64(value)
