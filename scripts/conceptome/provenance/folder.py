"""Where the witness keeps its papers, and sha256 of files with a cache that trusts nothing but the inode's own word."""

from __future__ import annotations

import hashlib
import json
import mimetypes
import os
import platform
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from conceptome.errors import ConceptomeError
from conceptome.files import atomic_path, sha256_file

RESULTS_VARIABLE = "CONCEPTOME_RESULTS"
WORKFLOW_VARIABLE = "CONCEPTOME_WORKFLOW"

CACHE_FROM_BYTES = 1 << 18  # below this, reading a cache entry costs as much as hashing the file
SETTLED_NS = 50_000_000  # a file younger than this may still change without its time stamps showing it
# The formats of this field that Python does not know, or that only some of its versions do.
MEDIA_TYPES = {
    ".fasta": "text/x-fasta",
    ".gmt": "text/tab-separated-values",
    ".gz": "application/gzip",
    ".h5": "application/x-hdf5",
    ".h5ad": "application/x-hdf5",
    ".jsonl": "application/jsonl",
    ".md": "text/markdown",
    ".npy": "application/x-npy",
    ".parquet": "application/vnd.apache.parquet",
    ".safetensors": "application/octet-stream",
    ".yaml": "application/yaml",
}
# Written by Snakemake into every directory output after the job has ended: no content of ours.
IGNORED_NAMES = frozenset({".snakemake_timestamp"})


def canonical(value: Any) -> bytes:
    """Give the one JSON spelling of a value, so that equal values have equal digests."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def digest(value: Any) -> str:
    """Hex sha256 of a JSON value's canonical spelling."""
    return hashlib.sha256(canonical(value)).hexdigest()


def plain(value: Any) -> Any:
    """Turn what a rule carries in its params into JSON: mappings, lists, numbers, strings; NaN becomes text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        items = [plain(item) for item in value]
        return sorted(items, key=str) if isinstance(value, set | frozenset) else items
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if hasattr(value, "item") and callable(value.item):
        return plain(value.item())
    return str(value)


def new_workflow() -> str:
    """Make the name of a workflow run: time in UTC and eight random hex digits."""
    return f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(4)}"


@cache
def _known_types() -> mimetypes.MimeTypes:
    # An own table: the module's functions also read the machine's lists, and the answer must not depend on them.
    return mimetypes.MimeTypes()


def media_type(path: str | os.PathLike) -> str:
    """IANA media type by the file's suffix; application/octet-stream where nobody has named one."""
    suffix = Path(path).suffix.lower()
    if suffix in MEDIA_TYPES:
        return MEDIA_TYPES[suffix]
    return _known_types().types_map[True].get(suffix, "application/octet-stream")


def fingerprint(path: str | os.PathLike) -> tuple[int, int, int, int, int]:
    """Device, inode, size in bytes, mtime and ctime in ns: equal as long as nobody wrote to the file."""
    status = os.stat(path)
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class ProvenanceFolder:
    """The folder `results`/.provenance and what lies in it."""

    def __init__(self, results: str | os.PathLike):
        self.results = Path(results)
        self.path = self.results / ".provenance"
        self.records = self.path / "records"
        self.hashes = self.path / "hashes"
        self.environments = self.path / "environments"
        self.diffs = self.path / "diffs"
        self.written = self.path / "written"
        self.progress = self.path / "progress"
        self.workflows = self.path / "workflows"
        self.configurations = self.path / "configurations"
        self.configuration = self.path / "configuration.json"
        self.ledger = self.results / "ledger.jsonl"
        self.statement = self.results / "statement.dsse.json"
        self.database = self.results / "mlflow.db"
        self.artifacts = self.results / "mlflow-artifacts"
        self.hash_seconds = 0.0
        self.hashed_bytes = 0

    def start_path(self, job: str) -> Path:
        """Path of the record that a job writes first."""
        return self.records / f"{job}.start.json"

    def final_path(self, job: str) -> Path:
        """Path of the record that a job writes last."""
        return self.records / f"{job}.final.json"

    def written_path(self, output: str) -> Path:
        """Path of the note of which job wrote an output last, and what."""
        return self.written / f"{hashlib.sha256(output.encode()).hexdigest()}.json"

    def jobs(self) -> dict[str, tuple[Path, Path | None]]:
        """Every job that ever started, in order: its start record and its final record (None: none was written)."""
        finals = {path.name.removesuffix(".final.json"): path for path in self.records.glob("*.final.json")}
        starts = {path.name.removesuffix(".start.json"): path for path in self.records.glob("*.start.json")}
        names = sorted(finals.keys() | starts.keys())
        return {job: (starts.get(job, self.start_path(job)), finals.get(job)) for job in names}

    def cached_sha256(self, path: str | os.PathLike) -> tuple[Path, str] | None:
        """Cache entry and hex sha256 of a file that was hashed before and has kept inode, size, mtime and ctime."""
        mark = fingerprint(path)
        if mark[2] < CACHE_FROM_BYTES:
            return None
        key = hashlib.sha256(repr(mark).encode()).hexdigest()
        entry = self.hashes / key[:2] / key[2:]
        with suppress(OSError):
            cached = entry.read_text(encoding="ascii").strip()
            return (entry, cached) if len(cached) == 64 else None
        return None

    def sha256(self, path: str | os.PathLike) -> str:
        """Hex sha256 of a file, from the cache when its inode, size, mtime and ctime are those of a file hashed before.

        `hash_seconds` and `hashed_bytes` (read, not found in the cache) add up what it cost.

        The cache holds one small file per hashed file and is written atomically: jobs need no lock, and a lost or
        half-copied cache only costs time.
        """
        started = time.perf_counter()
        try:
            return self._sha256(path)
        finally:
            self.hash_seconds += time.perf_counter() - started

    def _sha256(self, path: str | os.PathLike) -> str:
        before = fingerprint(path)
        if before[2] < CACHE_FROM_BYTES:
            self.hashed_bytes += before[2]
            return sha256_file(path)
        key = hashlib.sha256(repr(before).encode()).hexdigest()
        entry = self.hashes / key[:2] / key[2:]
        with suppress(OSError):
            cached = entry.read_text(encoding="ascii").strip()
            if len(cached) == 64:
                return cached
        settled = time.time_ns() - max(before[3], before[4]) > SETTLED_NS
        value = sha256_file(path)
        self.hashed_bytes += before[2]
        if settled and fingerprint(path) == before:
            # The cache is a convenience: a full disk must not turn a finished job into a failed one.
            with suppress(OSError), atomic_path(entry) as temporary:
                temporary.write_text(value + "\n", encoding="ascii")
        return value

    def describe(self, name: str, path: str | os.PathLike) -> list[dict[str, Any]]:
        """List a file, or every file below a folder in order of path: sha256, size in bytes, media type."""
        path = Path(path)
        if path.is_dir():
            found = (item for item in path.rglob("*") if item.is_file() and item.name not in IGNORED_NAMES)
            files = sorted(found, key=lambda item: item.as_posix())
        else:
            files = [path]
        return [
            {
                "name": name,
                "path": file.as_posix(),
                "sha256": self.sha256(file),
                "size": file.stat().st_size,
                "media_type": media_type(file),
            }
            for file in files
        ]


class AlreadyLocked(ConceptomeError):
    """Another process holds the lock; the message says which."""


@contextmanager
def lock(path: Path, wait: bool = True) -> Iterator[int]:
    """Hold an exclusive lock that the system takes back when the process dies; yields its file descriptor.

    Raises
    ------
    AlreadyLocked
        Somebody else holds it and `wait` is false.
    """
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            handle.seek(0)
            raise AlreadyLocked(handle.read().strip() or "another process") from None
        handle.seek(0)
        handle.truncate()
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        handle.write(f"{user_name(os.getuid())} on {platform.node()}, process {os.getpid()} since {since}")
        handle.flush()
        try:
            yield handle.fileno()
        finally:
            # Who it was is nobody's business once it is over.
            handle.seek(0)
            handle.truncate()


def user_name(number: int) -> str:
    """Name of a user; on a node without the cluster's list of users, the number."""
    import pwd

    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"
