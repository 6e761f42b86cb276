"""Fit a whitening on the training split: on its control samples, or on all.

input: activations (folder); params: whitening; output: whitening (folder), or the files in it.
"""

from pathlib import Path

from conceptome.provenance.record import job

with job(snakemake):
    from conceptome.activations import Store
    from conceptome.config.base import rebuild
    from conceptome.config.models import Whitening
    from conceptome.whitening import fit, fitted_rows

    store = Store(snakemake.input.activations)
    config = rebuild(Whitening, snakemake.params.whitening)
    rows = fitted_rows(store.columns(["split", "control"]), config)
    first = Path(snakemake.output[0])
    folder = first.parent if first.suffix else first
    fit(store, rows, config).save(folder)
