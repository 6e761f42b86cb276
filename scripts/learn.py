"""Fit one dictionary with every seed and encode every sample.

input: activations (folder), whitening (file in its folder); params: dictionary, seeds;
output: dictionaries, cards, codes (one file each per seed, in the order of the seeds).
"""

from pathlib import Path

from conceptome.provenance.record import job

with job(snakemake) as context:
    from conceptome.activations import Store
    from conceptome.codes import Codes
    from conceptome.dictionaries import fit
    from conceptome.progress import Reporter
    from conceptome.whitening import load

    store = Store(snakemake.input.activations)
    whitening = load(Path(snakemake.input.whitening).parent)
    rows = (store.obs["split"] == "train").to_numpy()
    options = dict(snakemake.params.dictionary)
    method = options.pop("method")
    for number, seed in enumerate(snakemake.params.seeds):
        reporter = Reporter(1.0, f"{method}, seed {seed}: share of steps")
        dictionary = fit(
            method, store, rows=rows, whitening=whitening, seed=seed, threads=context.threads,
            progress=lambda done, steps, reporter=reporter: reporter.update(done / steps), **options,
        )  # fmt: skip
        parts = [dictionary.encode(whitening.transform(block)) for block in store.batches(8192)]
        Codes.concatenate(parts).save(snakemake.output.codes[number], store.obs)
        dictionary.save(Path(snakemake.output.cards[number]).parent)
