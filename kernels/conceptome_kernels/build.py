"""Compile the C++ kernels: one shared object per variant, cached by what went into it.

A cached file's name holds the digest of the sources, the compiler's version and the flags, so that it never has to be
checked for age, and a folder shared between machines may hold many. No `-march=native`: a variant runs wherever the
processor has its instructions. No `-ffast-math`: it hides NaN and changes the order of sums.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

SOURCES = Path(__file__).resolve().parents[1] / "cpu"
FLAGS = (
    *("-std=c++17", "-O3", "-fPIC", "-shared", "-fopenmp", "-fvisibility=hidden"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-Wall", "-Wextra", "-Wno-psabi"),
)
AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mprefer-vector-width=512")
# Variant → its own flags; the best first. The processor flags that each needs are in loader.py.
VARIANTS: dict[str, tuple[str, ...]] = {
    "avx512vnni": (*AVX512, "-mavx512vnni"),
    "avx512": AVX512,
    "avx2": ("-mavx2", "-mfma"),
    "generic": (),
}
TIMEOUT = 600.0  # seconds for one compilation; a few are usual


class BuildError(RuntimeError):
    """The kernels cannot be compiled here; the message says why in one line."""


def cache_folder() -> Path:
    """Where builds are kept: $CONCEPTOME_KERNEL_CACHE, else ~/.cache/conceptome/kernels."""
    given = os.environ.get("CONCEPTOME_KERNEL_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "conceptome" / "kernels"


@cache
def compiler() -> tuple[str, str]:
    """Path of the C++ compiler ($CXX, g++ or c++) and what it says of its version.

    Raises
    ------
    BuildError
        There is none, or it does not run.
    """
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "c++"]
    path = next((found for name in names if (found := shutil.which(name))), None)
    if path is None:
        raise BuildError(f"no C++ compiler ({' or '.join(names)} is not on the path)")
    try:
        version = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"the C++ compiler {path} does not run: {error}") from None
    return path, version


@cache
def digest(variant: str) -> str:
    """Hex sha256 of the sources, the compiler's version and the flags of one variant.

    Raises
    ------
    BuildError
        No compiler, or no sources beside the package.
    """
    sources = sorted(file for file in SOURCES.glob("*") if file.suffix in (".cpp", ".h"))
    if not sources:
        raise BuildError(f"no kernel sources in {SOURCES}: install from a checkout (pip install --editable)")
    parts = [" ".join((*FLAGS, *VARIANTS[variant])).encode(), compiler()[1].encode()]
    for file in sources:
        parts += [file.name.encode(), file.read_bytes()]
    whole = hashlib.sha256()
    for part in parts:
        whole.update(len(part).to_bytes(8, "little") + part)
    return whole.hexdigest()


def build(variant: str) -> Path:
    """Compile one variant unless the cache holds it; return the shared object's path.

    Several processes may ask at once: one compiles behind a file lock and renames the finished file into place.

    Raises
    ------
    BuildError
        No compiler, no sources, a failed compilation, or a cache folder that cannot be written to.
    """
    path = cache_folder() / f"{variant}-{digest(variant)}.so"
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path.parent / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                _compile(variant, path)
    except OSError as error:
        raise BuildError(
            f"the kernel cache {path.parent} cannot be written to ({error}): set CONCEPTOME_KERNEL_CACHE"
        ) from None
    return path


def _compile(variant: str, path: Path) -> None:
    command, sources = compiler()[0], sorted(map(str, SOURCES.glob("*.cpp")))
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".build-") as folder:
        target = Path(folder) / path.name
        try:
            subprocess.run(
                [command, *FLAGS, *VARIANTS[variant], *sources, "-o", str(target)],
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
                check=True,
            )
        except subprocess.CalledProcessError as error:
            lines = error.stderr.splitlines()
            first = next((line for line in lines if "error" in line), lines[-1] if lines else "no message")
            raise BuildError(f"compiling the {variant} kernels with {command} failed: {first.strip()}") from None
        except subprocess.TimeoutExpired:
            raise BuildError(f"compiling the {variant} kernels took more than {TIMEOUT:.0f} s") from None
        os.replace(target, path)
