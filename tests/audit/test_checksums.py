"""Snakemake takes a file's checksum from the cache of the jobs' records."""

import asyncio
import os
import time
from types import SimpleNamespace

import pytest
from snakemake.io import IOFile

from conceptome.files import sha256_file
from conceptome.provenance import folder as provenance_folder
from conceptome.provenance.checksums import share_checksums
from conceptome.provenance.folder import CACHE_FROM_BYTES, ProvenanceFolder


@pytest.fixture
def shared(tmp_path, monkeypatch):
    """A results folder whose cache Snakemake uses, and the list of the files read in earnest."""
    from snakemake.io import _IOFile

    monkeypatch.setattr(_IOFile, "checksum", _IOFile.checksum)
    read = []

    def reading(path, *arguments):
        read.append(str(path))
        return sha256_file(path, *arguments)

    monkeypatch.setattr(provenance_folder, "sha256_file", reading)
    share_checksums(ProvenanceFolder(tmp_path / "results"))
    return read


def checksum(path, threshold=1 << 40):
    """What Snakemake gets for a path, outside a rule."""
    item = IOFile(str(path), rule=None)
    cache = SimpleNamespace(active=False, exists_local={}, size={}, mtime={})
    item.rule = SimpleNamespace(workflow=SimpleNamespace(iocache=cache))
    return asyncio.run(item.checksum(threshold))


def large(path, byte=b"a"):
    """A file large enough for the cache, written long enough ago."""
    path.write_bytes(byte * CACHE_FROM_BYTES)
    past = time.time() - 3600
    os.utime(path, (past, past))
    return path


def test_a_large_file_is_read_once_and_the_value_is_snakemakes_own(tmp_path, shared, monkeypatch):
    monkeypatch.setattr(provenance_folder, "SETTLED_NS", -(1 << 62))
    path = large(tmp_path / "shard.bin")
    values = {checksum(path) for _ in range(5)}
    assert values == {f"sha256:{sha256_file(path)}"}
    assert shared == [str(path)]


def test_a_file_written_again_is_read_again(tmp_path, shared, monkeypatch):
    monkeypatch.setattr(provenance_folder, "SETTLED_NS", -(1 << 62))
    path = large(tmp_path / "shard.bin")
    first = checksum(path)
    large(path, b"b")
    assert checksum(path) != first
    assert checksum(path) == f"sha256:{sha256_file(path)}"


def test_a_folder_and_a_file_above_the_threshold_have_no_checksum(tmp_path, shared):
    assert checksum(tmp_path) is None
    assert checksum(large(tmp_path / "shard.bin"), threshold=10) is None
    assert shared == []


def test_sharing_twice_does_not_stack(tmp_path, shared):
    from snakemake.io import _IOFile

    plain = _IOFile.checksum.__wrapped__
    share_checksums(ProvenanceFolder(tmp_path / "other"))
    assert _IOFile.checksum.__wrapped__ is plain
