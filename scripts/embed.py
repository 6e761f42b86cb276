"""One model's activations of every sample of a data set, or of a part of them; or such parts put together.

input: dataset (its files), weights (a checkpoint's folder, or nothing), parts (stores of parts, or nothing); params:
model, checkpoints (a folder that is no output: shards of an interrupted job); wildcards: scatteritem (i-of-N: which
part is wanted) or none; output: activations (folder).
"""

from pathlib import Path

from conceptome.provenance.record import job

with job(snakemake):
    from conceptome.config.base import rebuild
    from conceptome.config.models import Model
    from conceptome.datasets import load
    from conceptome.models import embed, gather

    config = rebuild(Model, snakemake.params.model)
    dataset = load(Path(snakemake.input.dataset[0]).parent)
    parts = list(snakemake.input.get("parts", []))
    if parts:
        gather(config, parts, snakemake.output.activations, dataset.obs)
    else:
        # A list, the checkpoint first: empty for models that have none, or have it from a hub.
        held = getattr(config, "source", None) or getattr(config, "path", None)
        weights = snakemake.input.weights if held else []
        item = dict(snakemake.wildcards.items()).get("scatteritem")
        embed(
            config,
            dataset,
            snakemake.output.activations,
            threads=snakemake.threads,
            weights=Path(weights[0]) if weights else None,
            unfinished=snakemake.params.get("checkpoints"),
            part=tuple(map(int, item.split("-of-"))) if item else None,
        )
