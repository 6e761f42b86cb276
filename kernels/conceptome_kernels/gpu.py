"""The kernels of kernels/gpu as the package `conceptome_kernels.gpu`: Triton, on torch tensors of a GPU.

Its modules bear the names of the CPU forms (topk, sparse, training, pursuit, contingency) and have their functions.
They import torch and Triton, so import one only where it is used.
"""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parents[1] / "gpu")]
