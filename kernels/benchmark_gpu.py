"""The Triton kernels on a GPU beside torch and torch.compile, and against the GPU's own limits, in one run.

    python kernels/benchmark_gpu.py [--d 640 --m 8192 --k 32 --rows 4096 --repeats 20]

Peaks of float32 and bfloat16 products and of memory traffic are measured first. The bound of a work is the larger of
its operations over their peak and its bytes over that of memory; the roofline fraction is bound / measured. Prints a
table for docs/gpu.md; without a GPU there is nothing to measure, and it says so.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from conceptome.config.dictionaries import OPTIONS
from conceptome.dictionaries.topk_gpu import GpuTrainer
from conceptome.dictionaries.training import random_atoms

FEATURES, ACTIVE, NOISE = 2000, 24, 0.05
ROUNDS, TAKEN = 20, 5  # of ICFL
SIDE = 8192  # of the matrices that measure the peaks


@dataclass(frozen=True)
class Setting:
    """Sizes of the works."""

    d: int
    m: int
    k: int
    rows: int


@dataclass(frozen=True)
class Peaks:
    """Operations per second of float32 and bfloat16 products, bytes per second of memory."""

    float32: float
    bfloat16: float
    memory: float


@dataclass(frozen=True)
class Work:
    """One work's call, its operations in either precision and the bytes that it must move at least."""

    call: Callable[[], object]
    float32: float
    bfloat16: float
    moved: float

    def bound(self, peaks: Peaks) -> float:
        """Seconds that it takes at least."""
        return max(self.float32 / peaks.float32 + self.bfloat16 / peaks.bfloat16, self.moved / peaks.memory)


def superposition(n: int, d: int, device: str) -> torch.Tensor:
    """Simulated activations, float32 (n, d), of unit deviation: a Zipf superposition of unit features."""
    generator = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn((FEATURES, d), generator=generator), dim=1)
    chosen = torch.multinomial((1 / torch.arange(1, FEATURES + 1)).expand(n, -1), ACTIVE, generator=generator)
    Z = torch.zeros((n, FEATURES)).scatter_(1, chosen, torch.rand(chosen.shape, generator=generator) + 0.5)
    X = Z @ features + NOISE * torch.randn((n, d), generator=generator)
    return (X / X.std()).to(device)


def works(setting: Setting, device: str) -> dict[str, Work]:
    """Every work by name."""
    from conceptome_kernels.gpu import pursuit, sparse, topk

    n, d, m, k = setting.rows, setting.d, setting.m, setting.k
    X = superposition(n, d, device)
    atoms = random_atoms(m, d, 0)
    D, c, b = torch.from_numpy(atoms).to(device), torch.zeros(m, device=device), X.mean(dim=0)
    packed, gram = topk.pack(D), pursuit.gram_matrix(D)
    indices, values = topk.encode_topk(X, D, c, b, k)
    centred = (X - b).contiguous()
    host, none = X.cpu().numpy(), np.zeros(m, dtype=bool)
    start = {
        "atoms": atoms,
        "encoder": atoms.copy(),
        "encoder_bias": np.zeros(m, np.float32),
        "bias": host.mean(axis=0),
    }
    trainer = GpuTrainer(start, OPTIONS["topk"](method="topk", m=m, k=k, aux_coefficient=0.0), device)
    trainer.optimiser.learning_rate = 1e-4

    def dense() -> torch.Tensor:
        return torch.addmm(c, X - b, D.T).topk(k, dim=1).values

    def residual() -> object:
        return sparse.decode_residual(X, indices, values, D, b)

    def backward() -> object:
        return sparse.sparse_backward(centred, indices, values, D, centred)

    def orthogonal() -> object:
        return pursuit.orthogonal_matching_pursuit(centred, D, k, gram=gram)

    product, active = 2 * n * m * d, 2 * n * k * d
    rows, codes, parameters, correlations = 4 * n * d, 8 * n * k, 4 * m * d, 4 * n * m
    encoded = rows + parameters + codes
    screened = rows + parameters / 2 + codes
    read = 2 * rows + codes + min(k * rows, parameters)
    # Two parameters and their moments are read and written; the encoder's product is the only dense one.
    stepped = 4 * rows + 12 * parameters
    # A step of a pursuit reads the Gram matrix's rows of what was taken, and reads and writes the correlations.
    return {
        "TopK encode, float32": Work(lambda: topk.encode_topk(X, D, c, b, k), product, 0, encoded),
        "TopK encode, screened": Work(
            lambda: topk.encode_topk(X, D, c, b, k, packed=packed), active, product, screened
        ),
        "TopK encode, torch": Work(dense, product, 0, encoded),
        "TopK encode, torch.compile": Work(torch.compile(dense), product, 0, encoded),
        "threshold encode": Work(
            lambda: topk.encode_threshold(X, D, c, b, 3.0), 2 * product, 0, 2 * (rows + parameters)
        ),
        "decode and residual": Work(residual, active, 0, read),
        "sparse backward": Work(backward, 3 * active, 0, 2 * rows + 3 * parameters),
        "TopK training step": Work(lambda: trainer.step(host, none, 0), 4 * active, product, stepped),
        "matching pursuit": Work(
            lambda: pursuit.matching_pursuit(centred, D, k, gram=gram), product, 0, 3 * k * correlations
        ),
        "orthogonal matching pursuit": Work(orthogonal, product, 0, k * (k + 3) / 2 * correlations),
        f"ICFL, {ROUNDS} × {TAKEN}": Work(
            lambda: pursuit.icfl_pursuit(centred, D, [TAKEN] * ROUNDS, gram=gram),
            product,
            0,
            ROUNDS * (TAKEN + 2) * correlations,
        ),
    }


def seconds(call: Callable[[], object], repeats: int) -> list[float]:
    """Times of a call after three that warm up, the GPU's work included."""
    for _ in range(3):
        call()
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return times


def peaks(repeats: int) -> Peaks:
    """Measure the GPU's limits with torch's own products, without TF32, and a copy."""
    torch.backends.cuda.matmul.allow_tf32 = False
    rates = []
    for dtype in (torch.float32, torch.bfloat16):
        A = torch.randn((SIDE, SIDE), device="cuda", dtype=dtype)
        rates.append(2 * SIDE**3 / min(seconds(lambda A=A: A @ A, repeats)))
    A = torch.empty(2**28, device="cuda")
    B = torch.empty_like(A)
    return Peaks(*rates, 8 * 2**28 / min(seconds(lambda: B.copy_(A), repeats)))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("d", 640), ("m", 8192), ("k", 32), ("rows", 4096), ("repeats", 20)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = vars(parser.parse_args())
    if not torch.cuda.is_available():
        raise SystemExit("error: torch sees no GPU here, so there is nothing to measure")
    repeats = given.pop("repeats")
    setting, limits = Setting(**given), peaks(repeats)
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}; d = {setting.d}, m = {setting.m:,}, "
        f"k = {setting.k}, batch {setting.rows:,}. Measured peaks: float32 {limits.float32 / 1e12:.1f} TFLOP/s, "
        f"bfloat16 {limits.bfloat16 / 1e12:.1f} TFLOP/s, memory {limits.memory / 1e9:.0f} GB/s.\n"
    )
    print("| work | rows/s, median [lowest, highest] | share of the roofline |\n|---|---|---|")
    for name, work in works(setting, "cuda").items():
        times = seconds(work.call, repeats)
        middle = statistics.median(times)
        low, high = setting.rows / max(times), setting.rows / min(times)
        share = work.bound(limits) / middle
        print(f"| {name} | {setting.rows / middle:,.0f} [{low:,.0f}, {high:,.0f}] | {share:.0%} |", flush=True)


if __name__ == "__main__":
    main()
