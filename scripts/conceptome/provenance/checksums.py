"""Snakemake's checksums from the cache that the jobs' records share."""

from __future__ import annotations

from functools import wraps

from conceptome.provenance.folder import ProvenanceFolder


def share_checksums(folder: ProvenanceFolder) -> None:
    """Let this process's Snakemake look a file's sha256 up before it reads the file.

    Snakemake 9 reads every input of a finished job once for each of its outputs, in the process that starts the jobs:
    twenty tables made from 1 GB are 20 GB, and meanwhile nothing starts. `ProvenanceFolder.sha256` has the digest of
    every file that a job has read and that nobody has written to since. The values are the same as Snakemake's own.

    Parameters
    ----------
    folder
        The provenance folder of the run's results.

    Raises
    ------
    AttributeError
        Where Snakemake has no such method: another release than the locked one.
    """
    from snakemake.io import _IOFile

    plain = getattr(_IOFile.checksum, "__wrapped__", _IOFile.checksum)

    @wraps(plain)
    async def checksum(self, threshold=None, force=False, algorithm=None):
        eligible = algorithm is None and not self.is_storage
        if eligible and (force or await self.is_checksum_eligible(threshold)):
            return f"sha256:{folder.sha256(self.file)}"
        return await plain(self, threshold, force, algorithm)

    _IOFile.checksum = checksum
