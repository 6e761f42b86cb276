"""Rule `steer`: activations, whitening, dictionaries and codes → what edited atoms change further on.

input: as rule `measure`, and weights (a checkpoint's folder, or nothing); output: steering; params: steering (section),
model (of the study), fits, methods.
"""

from pathlib import Path

from conceptome.provenance.record import job

with job(snakemake) as context:
    from conceptome import datasets, whitening
    from conceptome.activations import Store
    from conceptome.config.base import rebuild
    from conceptome.config.models import Model
    from conceptome.config.steering import Steering
    from conceptome.files import write_parquet
    from conceptome.measures.fits import FitFiles
    from conceptome.measures.space import Space
    from conceptome.steering import headline, steer

    space = Space(
        datasets.load(Path(snakemake.input.data[0]).parent),
        Store(snakemake.input.activations),
        whitening.load(Path(snakemake.input.whitening).parent),
        FitFiles(snakemake.params.fits, snakemake.input.dictionaries, snakemake.input.codes),
        snakemake.params.methods,
        {key: getattr(snakemake.wildcards, key) for key in ("dataset", "model", "whitening")},
    )
    weights = snakemake.input.weights  # a list: empty for models that have no checkpoint
    tables = steer(
        space,
        rebuild(Steering, snakemake.params.steering),
        rebuild(Model, snakemake.params.model),
        weights=Path(weights[0]) if weights else None,
        threads=snakemake.threads,
    )
    write_parquet(snakemake.output.steering, tables["steering"])
    context.metrics.update(headline(tables))
