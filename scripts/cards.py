"""Rule `cards`: data set, codes and evidence → a card per atom, and the scores of the descriptions.

input: as rule `measure`, and labels, gene_sets, residues, stability_atoms (evidence tables), sources (table of a
further measure that flags technical atoms, or nothing), collections (GMT files); output: cards, explanations; params:
explanations and enrichment (sections), fits, methods, collections = names of the GMT files in order.
"""

from pathlib import Path

from conceptome.provenance.record import job

with job(snakemake) as context:
    from conceptome import datasets, whitening
    from conceptome.activations import Store
    from conceptome.config.base import rebuild
    from conceptome.config.evidence import Enrichment
    from conceptome.config.explanations import Explanations
    from conceptome.enrichment import read_gmt
    from conceptome.explanations import explain, headline, write
    from conceptome.files import read_parquet
    from conceptome.measures.fits import FitFiles
    from conceptome.measures.space import Space

    space = Space(
        datasets.load(Path(snakemake.input.data[0]).parent),
        Store(snakemake.input.activations),
        whitening.load(Path(snakemake.input.whitening).parent),
        FitFiles(snakemake.params.fits, snakemake.input.dictionaries, snakemake.input.codes),
        snakemake.params.methods,
        {key: getattr(snakemake.wildcards, key) for key in ("dataset", "model", "whitening")},
    )
    evidence = {name: read_parquet(snakemake.input[name]) for name in ("labels", "gene_sets", "residues")}
    evidence["stability_atoms"] = read_parquet(snakemake.input.stability_atoms)
    for path in snakemake.input.sources:
        evidence["variance_partition_atoms"] = read_parquet(path)
    collections = zip(snakemake.params.collections, snakemake.input.collections)
    tables = explain(
        space,
        rebuild(Enrichment, snakemake.params.enrichment),
        rebuild(Explanations, snakemake.params.explanations),
        evidence=evidence,
        gene_sets={name: read_gmt(path) for name, path in collections},
    )
    write(tables, Path(snakemake.output.cards).parent)
    context.metrics.update(headline(tables))
