"""Fit a whitening on the control samples of the training split.

input: activations (folder); params: whitening; output: whitening (folder), or the files in it.
"""

from pathlib import Path

from conceptome.provenance.record import job

with job(snakemake):
    from conceptome.activations import Store
    from conceptome.config import parse
    from conceptome.whitening import fit

    store = Store(snakemake.input.activations)
    rows = (store.obs["control"] & (store.obs["split"] == "train")).to_numpy()
    first = Path(snakemake.output[0])
    folder = first.parent if first.suffix else first
    fit(store, rows, parse("whitening", snakemake.params.whitening)).save(folder)
