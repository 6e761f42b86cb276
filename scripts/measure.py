"""Rule `measure`: activations, whitening, dictionaries and codes → one evidence table per measure.

input: data (files of the data set), activations (folder), whitening (file), dictionaries and codes (one each per fit);
output: one Parquet per table, by name; params: measures, fits = [[dictionary, seed], …] in the order of the inputs.
"""

from pathlib import Path

from conceptome.provenance.record import job

with job(snakemake) as context:
    from conceptome import datasets, whitening
    from conceptome.activations import Store
    from conceptome.config.base import rebuild
    from conceptome.config.evidence import Measures
    from conceptome.measures.core import measure
    from conceptome.measures.fits import FitFiles
    from conceptome.measures.tables import headline

    folder = Path(snakemake.output.reconstruction).parent
    measure(
        datasets.load(Path(snakemake.input.data[0]).parent),
        Store(snakemake.input.activations),
        whitening.load(Path(snakemake.input.whitening).parent),
        FitFiles(snakemake.params.fits, snakemake.input.dictionaries, snakemake.input.codes),
        rebuild(Measures, snakemake.params.measures),
        folder,
        place={key: getattr(snakemake.wildcards, key) for key in ("dataset", "model", "whitening")},
    )
    context.metrics.update(headline(folder))
