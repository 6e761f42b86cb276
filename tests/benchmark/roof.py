"""The machine's limits, measured: peak of float32 multiply-adds, and memory bandwidth; and the bounds they set."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from worker import Setting

from conceptome_kernels.build import VARIANTS, compiler
from conceptome_kernels.loader import supported

SOURCE = Path(__file__).with_name("roof.cpp")
STREAM_FLOATS = 2**26


@dataclass(frozen=True)
class Roof:
    """Floating point operations and bytes per second, of all threads together."""

    flops: float
    bandwidth: float

    def training_step(self, s: Setting) -> float:
        """Least seconds of a TopK training step in float32.

        The encoder's dense product at the peak. Then, at full bandwidth: both matrices and their two moments read and
        written once, and k atoms of length d per row gathered once forward (z·D) and once backward.
        """
        product = 2.0 * s.batch * s.d * s.m / self.flops
        return product + (2 * s.m * s.d * 6 * 4 + 2 * s.batch * s.k * s.d * 4) / self.bandwidth

    def icfl_rows(self, s: Setting) -> float:
        """Most rows per second of ICFL on a Gram matrix: after every round but the last, `columns` rows of m floats."""
        return self.bandwidth / (4.0 * s.m * sum(s.rounds[:-1]))


def measure(threads: int) -> Roof:
    """Compile and run the two loops; the better of three runs each."""
    variant = supported()[0]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "roof.so"
        flags = ("-std=c++17", "-O3", "-ffp-contract=fast", "-fopenmp", "-fPIC", "-shared", *VARIANTS[variant])
        subprocess.run([compiler()[0], *flags, str(SOURCE), "-o", str(path)], check=True, capture_output=True)
        library = ctypes.CDLL(str(path))
    library.roof_multiply_add.restype = library.roof_stream.restype = ctypes.c_double
    sink = np.zeros(threads, dtype=np.float32)
    flops = max(
        library.roof_multiply_add(ctypes.c_double(0.5), ctypes.c_int64(threads), ctypes.c_void_p(sink.ctypes.data))
        for _ in range(3)
    )
    a, b = np.ones(STREAM_FLOATS, np.float32), np.ones(STREAM_FLOATS, np.float32)
    arguments = (a.ctypes.data, b.ctypes.data)
    bandwidth = library.roof_stream(*map(ctypes.c_void_p, arguments), *map(ctypes.c_int64, (STREAM_FLOATS, 9, threads)))
    return Roof(flops, bandwidth)
