"""Compute kernels of the dictionaries, and the float64 reference that specifies them.

Nothing is compiled or loaded, and torch is not imported, until a kernel is used or `available()` is asked.
"""

from conceptome_kernels.loader import KernelError, available, build_digest, share_openmp, variant

__all__ = ["KernelError", "available", "build_digest", "share_openmp", "variant"]
