"""Retrieve one input from a public archive: params.archive → output.file, its receipt, and output.images if any."""

from conceptome.provenance.record import job

with job(snakemake):
    from pathlib import Path

    from conceptome.archives import retrieve
    from conceptome.config.archives import Request
    from conceptome.config.base import rebuild

    images = getattr(snakemake.output, "images", None)
    retrieve(
        rebuild(Request, snakemake.params.archive),
        Path(snakemake.output.file),
        Path(snakemake.output.receipt),
        Path(images) if images else None,
    )
