"""Rule `measure_<name>`: activations, whitening, dictionaries and codes → the tables of one further measure.

input: as rule `measure`, others (stores of the models that the measure compares with, if any) and own (a user's files
that its section names, read by their paths), for a measure that runs the model again also weights; output: one Parquet
per table, by name; params: measure (its name), settings (its section), fits = [[dictionary, seed], …] in the order of
the inputs, methods = {dictionary: method}; for a measure that runs the model again also model.
"""

from pathlib import Path

from conceptome.provenance.record import job

with job(snakemake) as context:
    from conceptome import datasets, whitening
    from conceptome.activations import Store
    from conceptome.config.base import rebuild
    from conceptome.config.evidence import Measures
    from conceptome.config.models import Model
    from conceptome.measures.fits import FitFiles
    from conceptome.measures.space import Space, measure

    name = snakemake.params.measure
    weights = snakemake.input.get("weights", [])  # a list: empty for measures and models that have no checkpoint
    options = snakemake.params.get("model")
    space = Space(
        datasets.load(Path(snakemake.input.data[0]).parent),
        Store(snakemake.input.activations),
        whitening.load(Path(snakemake.input.whitening).parent),
        FitFiles(snakemake.params.fits, snakemake.input.dictionaries, snakemake.input.codes),
        snakemake.params.methods,
        {key: getattr(snakemake.wildcards, key) for key in ("dataset", "model", "whitening")},
        {Path(folder).name: Store(folder) for folder in snakemake.input.get("others", [])},
        model=(rebuild(Model, options), Path(weights[0]) if weights else None) if options else None,
        threads=snakemake.threads,
    )
    settings = rebuild(Measures.model_fields[name].annotation, snakemake.params.settings)
    measure(name, space, settings, Path(snakemake.output[0]).parent)
