"""Rule `figure`: evidence tables and cards → one figure as SVG, PNG, CSV and caption.

input: tables (evidence tables, in the order of the configuration), cards (of the data sets), activations (folders);
output: csv beside the other three; params: figure, run, studies (settings behind intervals and nulls, by data set),
datasets (in the order of the cards), places = [[data set, model], …] in the order of the activations.
"""

from pathlib import Path

from conceptome.provenance.record import job

with job(snakemake) as context:
    import pandas as pd

    from conceptome.config.base import rebuild
    from conceptome.config.run import Run
    from conceptome.figures import TABLES, draw
    from conceptome.files import read_json, read_parquet

    figure = snakemake.params.figure
    paths = [Path(path) for path in snakemake.input.tables]
    tables = {}
    for name in TABLES[figure]:
        frames = [read_parquet(path) for path in paths if path.stem == name]
        frames = [frame for frame in frames if len(frame)]
        tables[name] = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()

    cards = {dataset: read_json(path) for dataset, path in zip(snakemake.params.datasets, snakemake.input.cards)}
    for dataset, card in cards.items():
        card["study"] = snakemake.params.studies.get(dataset, {})
        card["models"] = {}
    for (dataset, model), folder in zip(snakemake.params.places, snakemake.input.activations):
        cards[dataset]["models"][model] = read_json(Path(folder) / "card.json")

    folder = Path(snakemake.output.csv).parent
    draw(figure, tables, cards, rebuild(Run, snakemake.params.run), folder, context.recipe)
