"""One file from which an interrupted training goes on, to the same bytes as if nothing had happened."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from conceptome.files import atomic_path

log = logging.getLogger(__name__)

SCHEMA_VERSION = 2


class Stopped(BaseException):
    """A training was asked to stop and has written its state."""


class Checkpoint:
    """Arrays and a JSON-able state in one safetensors file, which is renamed into place; the one before it is kept.

    One writer at a time; what a killed writer left half-written is removed when the next one opens the checkpoint.

    Attributes
    ----------
    path, previous
        The file, and the one before it: what training goes on from where the file is damaged.
    stop
        Set when the training is to write its state and end (see `until_saved`).
    origin
        The file that the last `read` took its answer from.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.previous = self.path.with_name(f"{self.path.stem}.previous{self.path.suffix}")
        self.stop = threading.Event()
        self.origin = self.path

    def read(self, digest: str) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """Arrays and state, or None where there is no checkpoint of this very training.

        Parameters
        ----------
        digest
            Of all that the training depends on; a file with another one is left alone, and a warning says so.
        """
        for leftover in self.path.parent.glob(f".{self.path.stem}.*.partial{self.path.suffix}"):
            leftover.unlink(missing_ok=True)
        for path, otherwise in (
            (self.path, "training goes on from the one before it, if there is one"),
            (self.previous, "training starts anew"),
        ):
            try:
                self.origin = path
                return _read(path, digest)
            except FileNotFoundError:
                continue
            except _Damaged as damage:
                log.warning("checkpoint %s cannot be read (%s) and is removed: %s", path, damage, otherwise)
                # Else the next one written would put it in the place of the good one.
                path.unlink()
        return None

    def write(self, digest: str, arrays: dict[str, np.ndarray], state: dict[str, Any]) -> None:
        """Replace the checkpoint."""
        from safetensors.numpy import save_file

        arrays = {name: np.asarray(value, order="C") for name, value in arrays.items()}
        header = {
            "schema_version": str(SCHEMA_VERSION),
            "digest": digest,
            "state": json.dumps(state),
            # A flipped bit would go unnoticed into the result.
            "content": digest_of(state, arrays),
        }
        with atomic_path(self.path) as temporary:
            save_file(arrays, temporary, header)
            # The name must not reach the disk before the bytes do.
            with open(temporary, "rb") as handle:
                os.fsync(handle.fileno())
            if self.path.exists():
                os.rename(self.path, self.previous)

    def remove(self) -> None:
        """Remove the files, and their folder if that is empty then."""
        self.path.unlink(missing_ok=True)
        self.previous.unlink(missing_ok=True)
        if self.path.parent.is_dir() and not any(self.path.parent.iterdir()):
            self.path.parent.rmdir()


class _Damaged(Exception):
    """A checkpoint is not what was written."""


def _read(path: Path, digest: str) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """Arrays and state of one file, or None where it is of another training.

    Raises
    ------
    FileNotFoundError
        There is none.
    _Damaged
        Cut short, or altered since.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            if header.get("digest") != digest or header.get("schema_version") != str(SCHEMA_VERSION):
                log.warning("checkpoint %s is of other options, another seed or other data: training starts anew", path)
                return None
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            state = json.loads(header["state"])
    except FileNotFoundError:
        raise
    except (OSError, SafetensorError, ValueError) as error:
        raise _Damaged(str(error)) from None
    if digest_of(state, arrays) != header.get("content"):
        raise _Damaged("its content is not what was written")
    return arrays, state


@contextmanager
def until_saved(checkpoints: Iterable[Checkpoint | None]) -> Iterator[None]:
    """Hold SIGTERM back in the block, so that trainings write their state first, and deliver it when the block ends.

    A scheduler sends SIGTERM some time (mostly 30 s) before it kills. Each training notices `stop` after its next step.
    Ctrl-C is not held back. Outside the main thread, where Python takes no signals, this does nothing, and so it does
    where there is nothing to be saved.
    """
    kept = [one for one in checkpoints if one is not None]
    if not kept or threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = []

    def ask(number: int, frame: object) -> None:
        asked.append(number)
        for one in kept:
            one.stop.set()

    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        if asked:
            signal.raise_signal(signal.SIGTERM)


def digest_of(settings: dict[str, Any], arrays: dict[str, np.ndarray]) -> str:
    """Hex sha256 of settings (JSON-able) and arrays."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()
