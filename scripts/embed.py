"""One model's activations of every sample of a data set.

input: dataset (its files), weights (a checkpoint's folder, or nothing); params: model; output: activations (folder).
"""

from pathlib import Path

from conceptome.provenance.record import job

with job(snakemake):
    from conceptome.config import parse
    from conceptome.datasets import load
    from conceptome.models import embed

    weights = snakemake.input.weights  # a list: empty for models that have no checkpoint
    embed(
        parse("model", snakemake.params.model),
        load(Path(snakemake.input.dataset[0]).parent),
        snakemake.output.activations,
        threads=snakemake.threads,
        weights=Path(weights[0]) if weights else None,
    )
