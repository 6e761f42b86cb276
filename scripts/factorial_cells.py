"""Rule `factorial_cells`: one method under one whitening, fitted with every seed and read by every encoder.

input: data (files of the data set), activations (folder), whitening (file); output: one Parquet of cells; params:
factorial (the study's settings, this data set's and this method's alone), seeds. The CPU seconds of fits and encodings
differ from run to run: they are metrics of the job's record, not an output.
"""

from pathlib import Path

from conceptome.provenance.record import job

with job(snakemake) as context:
    from conceptome import datasets, whitening
    from conceptome.activations import Store
    from conceptome.config.base import rebuild
    from conceptome.config.factorial import Factorial
    from conceptome.factorial.evaluate import COLUMNS, evaluate
    from conceptome.files import write_parquet

    place = {key: getattr(snakemake.wildcards, key) for key in ("dataset", "model", "whitening")}
    cells, costs = evaluate(
        datasets.load(Path(snakemake.input.data[0]).parent),
        Store(snakemake.input.activations),
        whitening.load(Path(snakemake.input.whitening).parent),
        place["dataset"],
        snakemake.wildcards.method,
        rebuild(Factorial, snakemake.params.factorial),
        snakemake.params.seeds,
        threads=context.threads,
    )
    write_parquet(Path(snakemake.output[0]), cells.assign(**place)[list(COLUMNS)].astype(COLUMNS))
    for (step, encoder), part in costs.groupby(["step", "encoder"]):
        name = f"cost/{step}_seconds" + (f"/{encoder}" if encoder else "")
        context.metrics[name] = float(part["cpu_seconds"].mean())
