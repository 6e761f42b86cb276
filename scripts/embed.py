"""One model's activations of every sample of a data set.

input: dataset (folder, or files in it), weights (optional folder); params: model; output: activations (folder).
"""

from pathlib import Path

from conceptome.provenance.record import job

with job(snakemake):
    from conceptome.config import parse
    from conceptome.datasets import load
    from conceptome.models import embed

    given = Path(snakemake.input.dataset if isinstance(snakemake.input.dataset, str) else snakemake.input.dataset[0])
    weights = snakemake.input.get("weights")
    embed(
        parse("model", snakemake.params.model),
        load(given if given.is_dir() else given.parent),
        snakemake.output.activations,
        threads=snakemake.threads,
        weights=Path(weights) if weights else None,
    )
