"""Raw files → one data set in the common schema.

input: the files of `params.dataset.inputs`, in that order; params: dataset; output: files in one folder, or the folder.
"""

from pathlib import Path

from conceptome.provenance.record import job

with job(snakemake):
    from conceptome.config import parse
    from conceptome.datasets import prepare

    config = parse("dataset", snakemake.params.dataset)
    # By position, not by name: a user may call an input whatever she likes, also what Snakemake reserves.
    inputs = dict(zip(config.inputs, map(Path, snakemake.input), strict=True))
    first = Path(snakemake.output[0])
    prepare(config, inputs, first if first.suffix == "" else first.parent)
