"""Raw files → one data set in the common schema.

input: the files of `params.dataset.inputs`, in that order, then the images that a table among them names; params:
dataset; output: files in one folder, or the folder.
"""

from pathlib import Path

from conceptome.provenance.record import job

with job(snakemake):
    from conceptome.config.base import rebuild
    from conceptome.config.datasets import Dataset
    from conceptome.datasets import prepare

    config = rebuild(Dataset, snakemake.params.dataset)
    # By position, not by name: a user may call an input whatever she likes, also what Snakemake reserves.
    # Image files, which a table names, come after them.
    inputs = dict(zip(config.inputs, map(Path, snakemake.input[: len(config.inputs)]), strict=True))
    first = Path(snakemake.output[0])
    prepare(config, inputs, first if first.suffix == "" else first.parent)
