"""Rule `measure`: activations, whitening, dictionaries and codes → one evidence table per measure.

input: data (files of the data set), activations (folder), whitening (file), dictionaries and codes (one each per fit);
output: one Parquet per table, by name; params: measures, fits = [[dictionary, seed], …] in the order of the inputs.
"""

from pathlib import Path

from conceptome.provenance.record import job

with job(snakemake):
    from conceptome import datasets, whitening
    from conceptome.activations import Store
    from conceptome.config import parse
    from conceptome.measures import measure
    from conceptome.measures.fits import FitFiles

    measure(
        datasets.load(Path(snakemake.input.data[0]).parent),
        Store(snakemake.input.activations),
        whitening.load(Path(snakemake.input.whitening).parent),
        FitFiles(snakemake.params.fits, snakemake.input.dictionaries, snakemake.input.codes),
        parse("measures", snakemake.params.measures),
        Path(snakemake.output.reconstruction).parent,
        place={key: snakemake.wildcards[key] for key in ("dataset", "model", "whitening")},
    )
