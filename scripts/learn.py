"""Fit one dictionary with every seed and encode every sample.

input: activations (folder), whitening (a file in its folder); params: dictionary, seeds, checkpoints (a folder);
output: dictionaries, cards, codes (one file each per seed, in the order of the seeds).
"""

from pathlib import Path

from conceptome.provenance.record import job

with job(snakemake) as context:
    from conceptome.activations import Store
    from conceptome.codes import Codes
    from conceptome.dictionaries import learn
    from conceptome.progress import Pace, Reporter
    from conceptome.whitening import load

    store = Store(snakemake.input.activations)
    options = dict(snakemake.params.dictionary)
    fits = learn(
        options.pop("method"),
        store,
        load(Path(snakemake.input.whitening).parent),
        rows=(store.columns(["split"])["split"] == "train").to_numpy(),
        seeds=snakemake.params.seeds,
        threads=context.threads,
        progress=Reporter("training, step", pace=Pace("rows", options.get("batch_size", 1))),
        checkpoint=snakemake.params.checkpoints,
        stream=True,
        **options,
    )
    outputs = zip(snakemake.output.cards, snakemake.output.codes, strict=True)
    for (card, path), (dictionary, codes) in zip(outputs, fits, strict=True):
        dictionary.save(Path(card).parent)
        codes.save(path, store.obs if isinstance(codes, Codes) else store.folder / "obs.parquet")
