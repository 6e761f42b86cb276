"""Rule `factorial_effects`: the cells of all data sets → how much each factor matters.

input: cells; output: effects, levels, summary, cells (Parquet), page (Markdown); params: factorial, seeds.
"""

from pathlib import Path

from conceptome.provenance.record import job

with job(snakemake) as context:
    import pandas as pd

    from conceptome.config.base import rebuild
    from conceptome.config.factorial import Factorial
    from conceptome.factorial.effects import effects
    from conceptome.factorial.report import page
    from conceptome.files import atomic_path, read_parquet, write_parquet

    config = rebuild(Factorial, snakemake.params.factorial)
    cells = pd.concat([read_parquet(path) for path in snakemake.input], ignore_index=True)
    found = effects(cells, config, snakemake.params.seeds)
    for key, table in (
        ("effects", "factorial_effects"),
        ("levels", "factorial_levels"),
        ("summary", "factorial_summary"),
    ):
        write_parquet(Path(snakemake.output[key]), found[table])
    found["factorial"] = cells.drop(columns="draws")
    write_parquet(Path(snakemake.output.cells), found["factorial"])
    with atomic_path(Path(snakemake.output.page)) as temporary:
        temporary.write_text(page(found, config), encoding="utf-8")
    shares = found["factorial_summary"].query("level == ''")
    context.metrics.update({f"{row.endpoint}/{row.term}": row.value for row in shares.itertuples()})
