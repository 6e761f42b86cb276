"""What a job runs in: installed distributions, machine, linear algebra, determinism, and the commit of the code."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from conceptome.files import atomic_path, sha256_file, write_json
from conceptome.provenance.closure import repository
from conceptome.provenance.folder import ProvenanceFolder, digest, fingerprint

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)
# Never the whole environment: it may hold secrets.
RECORDED_VARIABLES = (
    *THREAD_VARIABLES,
    "PYTHONHASHSEED",
    "SOURCE_DATE_EPOCH",
    "CONCEPTOME_KERNELS",
    "CUDA_VISIBLE_DEVICES",
    "CUBLAS_WORKSPACE_CONFIG",
    "LANG",
    "LC_ALL",
)
# What decides the results, below the checkout: a draft of the documentation makes no tree dirty.
CODE = ("Snakefile", "rules", "scripts", "kernels", "config", "requirements.lock")


def python() -> str:
    """Implementation and version of Python."""
    return f"{platform.python_implementation()} {platform.python_version()}"


def environment(folder: ProvenanceFolder) -> str:
    """Digest of Python and the installed distributions, which are kept once in a file of that name.

    Each distribution is named with the sha256 of its RECORD, the installer's list of every file with its sha256. The
    digest of all is cached by the files' inodes, sizes and time stamps: hashing some 250 lists takes 0.1 s, asking for
    their stamps 2 ms.
    """
    found = list(_metadata_folders())
    marks = [[path, _mark(f"{path}/RECORD")] for path in found]
    entry = folder.hashes / "environments" / digest([python(), marks])
    with suppress(OSError):
        known = entry.read_text(encoding="ascii").strip()
        if (folder.environments / f"{known}.json").is_file():
            return known
    distributions = sorted(
        (_distribution(Path(path)) for path in found), key=lambda item: (item["name"], item["version"])
    )
    content = {"distributions": distributions, "python": python()}
    key = digest(content)
    write_json(folder.environments / f"{key}.json", content)
    with suppress(OSError), atomic_path(entry) as temporary:
        temporary.write_text(key + "\n", encoding="ascii")
    return key


def _metadata_folders() -> Iterator[str]:
    """Find the installers' metadata by a listing: importlib.metadata would read each, a third of a second in all."""
    for entry in dict.fromkeys(sys.path):
        if entry.endswith(("/site-packages", "/dist-packages")) and os.path.isdir(entry):
            names = (item for item in sorted(os.listdir(entry)) if item.endswith((".dist-info", ".egg-info")))
            yield from (f"{entry}/{item}" for item in names)


def _mark(path: str) -> list[int] | None:
    try:
        return list(fingerprint(path))
    except OSError:
        return None


def _distribution(path: Path) -> dict[str, Any]:
    name, _, version = path.name.rpartition(".")[0].removesuffix(".egg").partition("-")
    listing = path / "RECORD"
    return {
        "name": name.lower().replace("_", "-"),
        "version": version,
        "record": sha256_file(listing) if listing.is_file() else None,
    }


def machine() -> dict[str, Any]:
    """Name the machine: host name, system, processor model and features, number of processors, bytes of memory."""
    model, features = os.uname().machine, []
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as handle:
        # The first processor is enough, and on large machines the file holds hundreds.
        for line in handle:
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            elif key.strip() in ("flags", "Features"):
                features = sorted(value.split())
            elif not key.strip():
                break
    # platform.platform() would start a process and read the interpreter's whole file to say the same.
    system = os.uname()
    library = os.confstr("CS_GNU_LIBC_VERSION") if "CS_GNU_LIBC_VERSION" in os.confstr_names else "unknown C library"
    return {
        "name": system.nodename,
        "system": f"{system.sysname} {system.release} {system.machine} ({library})",
        "cpu": model,
        "features": features,
        "cpus": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


def blas() -> list[dict[str, Any]]:
    """Linear algebra and OpenMP libraries that this process has loaded; none where numpy was never imported."""
    if "numpy" not in sys.modules:
        return []
    from threadpoolctl import threadpool_info

    kept = ("user_api", "internal_api", "prefix", "version", "threading_layer", "architecture", "num_threads")
    found = [
        {**{key: item[key] for key in kept if key in item}, "file": Path(item["filepath"]).name}
        for item in threadpool_info()
    ]
    return sorted(found, key=lambda item: item["file"])


def determinism() -> dict[str, Any]:
    """What makes the same job give the same bytes: seeds of hashing and dates, torch's switch (None: not imported)."""
    torch = sys.modules.get("torch")
    return {
        "PYTHONHASHSEED": os.environ.get("PYTHONHASHSEED"),
        "SOURCE_DATE_EPOCH": os.environ.get("SOURCE_DATE_EPOCH"),
        "torch_deterministic": torch.are_deterministic_algorithms_enabled() if torch else None,
    }


def commit(folder: ProvenanceFolder) -> dict[str, Any]:
    """Commit of the checkout, whether its code or configuration differs, and the sha256 of the difference.

    The difference (new files included) is kept once, as results/.provenance/diffs/<sha256>.diff: applied to the commit,
    it gives the code that ran. All values are None outside a git checkout.
    """
    if not (repository() / ".git").exists():
        return {"id": None, "dirty": None, "diff": None}
    try:
        lines = _git("status", "--porcelain=v2", "--branch", "--untracked-files=all", "--", *CODE).decode().splitlines()
        dirty = any(not line.startswith("#") for line in lines)
        text = _difference() if dirty else None
    except (OSError, subprocess.SubprocessError):
        return {"id": None, "dirty": None, "diff": None}
    key = None
    if text is not None:
        key = hashlib.sha256(text).hexdigest()
        path = folder.diffs / f"{key}.diff"
        if not path.is_file():
            with atomic_path(path) as temporary:
                temporary.write_bytes(text)
    identity = next((line.split()[-1] for line in lines if line.startswith("# branch.oid")), None)
    return {"id": identity, "dirty": dirty, "diff": key}


def _difference() -> bytes:
    """Give the patch from the commit to the working tree; new files are marked in a copy of the index, not in it."""
    index = repository() / os.fsdecode(_git("rev-parse", "--git-path", "index").strip())
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "index"
        copy.write_bytes(index.read_bytes())
        present = [name for name in CODE if (repository() / name).exists()]
        _git("add", "--intent-to-add", "--", *present, GIT_INDEX_FILE=str(copy))
        return _git("diff", "--binary", "--no-color", "--no-ext-diff", "HEAD", "--", *CODE, GIT_INDEX_FILE=str(copy))


def _git(*words: str, **variables: str) -> bytes:
    # A status call refreshes the index unless told not to, and jobs that run side by side would race for its lock.
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", **variables}
    command = ["git", "-C", str(repository()), *words]
    return subprocess.run(command, capture_output=True, timeout=10, check=True, env=environment).stdout
