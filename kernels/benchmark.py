"""`make benchmark`: the compiled kernels beside the torch path and scikit-learn, interleaved in one run.

Prints and writes docs/performance.md: medians of rows per second, their spread, and ratios, which are what counts, as
rates drift with the machine. Data are simulated: a Zipf superposition of 2,000 unit features, 24 active, 5 % noise.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import orthogonal_mp_gram

import conceptome_kernels
from conceptome.config.dictionaries import OPTIONS
from conceptome.dictionaries import icfl
from conceptome.dictionaries.topk import KernelTrainer, TopK, TorchTrainer
from conceptome.dictionaries.training import random_atoms
from conceptome_kernels.loader import VARIABLE
from conceptome_kernels.pursuit import gram_matrix, icfl_pursuit, matching_pursuit, orthogonal_matching_pursuit

PAGE = Path(__file__).resolve().parents[1] / "docs" / "performance.md"
FEATURES, ACTIVE, NOISE = 2000, 24, 0.05
SKLEARN_ROWS = 16


@dataclass(frozen=True)
class Setting:
    """Sizes of one comparison."""

    d: int
    m: int
    k: int
    rows: int
    rounds: int
    columns: int


SETTINGS = (Setting(640, 8192, 32, 4096, 20, 5), Setting(320, 1024, 32, 4096, 8, 4))


def superposition(n: int, d: int, seed: int = 0) -> np.ndarray:
    """Simulated activations, float32 (n, d), of unit deviation."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((FEATURES, d), dtype=np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    frequency = 1.0 / np.arange(1, FEATURES + 1)
    keys = rng.random((n, FEATURES)) ** (1.0 / frequency)
    chosen = np.argpartition(-keys, ACTIVE, axis=1)[:, :ACTIVE]
    strength = (rng.random(chosen.shape) + 0.5).astype(np.float32)
    X = np.einsum("na,nad->nd", strength, features[chosen]) + NOISE * rng.standard_normal((n, d), dtype=np.float32)
    return np.ascontiguousarray(X / X.std(), dtype=np.float32)


@contextmanager
def path(name: str | None):
    """Run the block on a forced variant of the kernels (`torch`: none)."""
    before = os.environ.pop(VARIABLE, None)
    if name:
        os.environ[VARIABLE] = name
    try:
        yield
    finally:
        os.environ.pop(VARIABLE, None)
        if before is not None:
            os.environ[VARIABLE] = before


def contestants(setting: Setting) -> dict[str, dict[str, tuple[int, Callable[[], object]]]]:
    """Work → who does it → (rows, call)."""
    s = setting
    X = superposition(s.rows, s.d)
    atoms = random_atoms(s.m, s.d, 0)
    none = np.zeros(s.m, dtype=bool)

    def trainer(kind):
        parameters = {"atoms": atoms.copy(), "encoder": atoms.copy(), "encoder_bias": np.zeros(s.m, np.float32)}
        options = OPTIONS["topk"](method="topk", m=s.m, k=s.k, aux_coefficient=0.0)
        made = kind({**parameters, "bias": X.mean(axis=0)}, options)
        made.optimiser.learning_rate = 1e-4
        return made

    kernels, plain = trainer(KernelTrainer), trainer(TorchTrainer)
    parameters = {"atoms": atoms, "encoder": atoms, "encoder_bias": np.zeros(s.m), "bias": X.mean(axis=0)}
    topk = TopK(parameters, {"k": s.k})
    weights, centred = torch.from_numpy(atoms), np.ascontiguousarray(X - X.mean(axis=0))
    gram = gram_matrix(atoms)
    rounds = [s.columns] * s.rounds
    few = centred[: max(64, s.rows // 8)]

    def encode(name):
        with path(name):
            topk.encode(X)

    def pursue(gram):
        with torch.inference_mode():
            icfl.pursue(torch.from_numpy(few), weights, rounds, None if gram is None else torch.from_numpy(gram))

    sample = centred[:SKLEARN_ROWS].astype(np.float64)
    atoms64, gram64 = atoms.astype(np.float64), gram.astype(np.float64)
    return {
        "TopK training step": {
            "kernels": (s.rows, lambda: kernels.step(X, none, 0)),
            "torch path": (s.rows, lambda: plain.step(X, none, 0)),
        },
        f"TopK encode, k = {s.k}": {
            "kernels": (s.rows, lambda: encode(None)),
            "torch path": (s.rows, lambda: encode("torch")),
            "torch mm + topk": (s.rows, lambda: torch.topk(torch.from_numpy(centred) @ weights.T, s.k)),
        },
        f"ICFL encode, {s.rounds} × {s.columns}": {
            "kernels": (len(few), lambda: icfl_pursuit(few, atoms, rounds, gram=gram)),
            "torch path, Gram": (len(few), lambda: pursue(gram)),
            "torch path, recompute": (len(few), lambda: pursue(None)),
        },
        f"MP encode, k = {s.k}": {
            "kernels": (len(few), lambda: matching_pursuit(few, atoms, s.k, gram=gram)),
        },
        f"OMP encode, k = {s.k}": {
            "kernels": (len(few), lambda: orthogonal_matching_pursuit(few, atoms, s.k, gram=gram)),
            "scikit-learn, Gram": (
                SKLEARN_ROWS,
                lambda: orthogonal_mp_gram(gram64, atoms64 @ sample.T, n_nonzero_coefs=s.k, copy_Gram=False),
            ),
        },
    }


def measure(work: dict[str, tuple[int, Callable[[], object]]], repeats: int) -> dict[str, np.ndarray]:
    """Rows per second of each contestant, `repeats` times in turn after one warm-up."""
    for _, call in work.values():
        call()
    rates: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(repeats):
        for name, (rows, call) in work.items():
            start = time.perf_counter()
            call()
            rates[name].append(rows / (time.perf_counter() - start))
    return {name: np.array(values) for name, values in rates.items()}


def machine() -> str:
    """Describe the processor, in one line."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{model}, {os.cpu_count()} cores; kernels: {conceptome_kernels.variant()}; torch {torch.__version__}"


def main() -> None:
    """Measure, print, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    if not conceptome_kernels.available():
        raise SystemExit("error: there are no compiled kernels to measure: install a C++ compiler")
    torch.set_num_threads(arguments.threads)
    lines = [
        "# Performance",
        "",
        "Written by `make benchmark`. Rows per second, median of "
        f"{arguments.repeats} interleaved repeats [lowest, highest], {arguments.threads} threads, simulated data "
        f"(Zipf superposition). {machine()}.",
        "",
        "The ratio is the kernels' median over the contestant's in the same run. Published peers (sae-lens, "
        "dictionary-learning, sparsify, overcomplete, spams) are not measured here yet.",
    ]
    for setting in SETTINGS:
        lines += ["", f"## d = {setting.d}, m = {setting.m:,}, batch {setting.rows:,}", ""]
        lines += ["| work | who | rows/s | ratio |", "|---|---|---|---|"]
        for work, who in contestants(setting).items():
            rates = measure(who, arguments.repeats)
            ours = np.median(rates["kernels"])
            for name, values in rates.items():
                ratio = "" if name == "kernels" else f"{ours / np.median(values):.1f}×"
                spread = f"{np.median(values):,.0f} [{values.min():,.0f}, {values.max():,.0f}]"
                lines.append(f"| {work} | {name} | {spread} | {ratio} |")
                print(lines[-1], flush=True)
    temporary = PAGE.with_suffix(".partial")
    temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    temporary.replace(PAGE)
    print(f"written: {PAGE}")


if __name__ == "__main__":
    main()
