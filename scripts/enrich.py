"""Rule `enrich`: data set, codes and gene sets → one table per kind of enrichment.

input: data (files of the data set), activations (folder), codes (one per fit), gene_sets (GMT files), ontology (at most
one OBO file), structures (PDB or mmCIF files); output: one file per table of `conceptome.enrichment.tables`; params:
enrichment, gene_sets = names of the GMT files in order, fits = [[dictionary, seed], …] in the order of the codes,
methods = {dictionary: method}.
"""

from pathlib import Path

from conceptome.provenance.record import job

with job(snakemake) as context:
    from conceptome import datasets
    from conceptome.activations import Store
    from conceptome.codes import CodeFiles
    from conceptome.config.base import rebuild
    from conceptome.config.evidence import Enrichment
    from conceptome.enrichment import enrich, headline, read_gmt, read_ontology

    folder = Path(snakemake.output.labels).parent
    enrich(
        datasets.load(Path(snakemake.input.data[0]).parent),
        Store(snakemake.input.activations).obs,
        CodeFiles(snakemake.params.fits, snakemake.input.codes),
        rebuild(Enrichment, snakemake.params.enrichment),
        folder,
        gene_sets={name: read_gmt(path) for name, path in zip(snakemake.params.gene_sets, snakemake.input.gene_sets)},
        structures=snakemake.input.get("structures", []),
        ontology=next(map(read_ontology, snakemake.input.ontology), None),
        methods=snakemake.params.get("methods"),
        place={key: getattr(snakemake.wildcards, key) for key in ("dataset", "model", "whitening")},
    )
    context.metrics.update(headline(folder))
