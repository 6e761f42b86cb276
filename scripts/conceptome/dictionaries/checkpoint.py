"""One file from which an interrupted training goes on, to the same bytes as if nothing had happened."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np

from conceptome.files import atomic_path

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1


class Checkpoint:
    """Arrays and a JSON-able state in one safetensors file, which is renamed into place.

    One writer at a time; what a killed writer left half-written is removed when the next one opens the checkpoint.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def read(self, digest: str) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """Arrays and state, or None where there is no checkpoint of this very training.

        Parameters
        ----------
        digest
            Of all that the training depends on; a file with another one is left alone, and a warning says so.
        """
        from safetensors import SafetensorError, safe_open

        for leftover in self.path.parent.glob(f".{self.path.stem}.*.partial{self.path.suffix}"):
            leftover.unlink(missing_ok=True)
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, framework="numpy") as file:
                header = file.metadata() or {}
                if header.get("digest") != digest or header.get("schema_version") != str(SCHEMA_VERSION):
                    log.warning(
                        "checkpoint %s is of other options, another seed or other data: training starts anew", self.path
                    )
                    return None
                return {name: file.get_tensor(name) for name in file.keys()}, json.loads(header["state"])  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            log.warning("checkpoint %s cannot be read (%s): training starts anew", self.path, error)
            return None

    def write(self, digest: str, arrays: dict[str, np.ndarray], state: dict[str, Any]) -> None:
        """Replace the checkpoint."""
        from safetensors.numpy import save_file

        header = {"schema_version": str(SCHEMA_VERSION), "digest": digest, "state": json.dumps(state)}
        with atomic_path(self.path) as temporary:
            save_file({name: np.asarray(value, order="C") for name, value in arrays.items()}, temporary, header)
            # The name must not reach the disk before the bytes do.
            with open(temporary, "rb") as handle:
                os.fsync(handle.fileno())

    def remove(self) -> None:
        """Remove the file, and its folder if that is empty then."""
        self.path.unlink(missing_ok=True)
        if self.path.parent.is_dir() and not any(self.path.parent.iterdir()):
            self.path.parent.rmdir()


def digest_of(settings: dict[str, Any], arrays: dict[str, np.ndarray]) -> str:
    """Hex sha256 of settings (JSON-able) and arrays."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()
