"""Rule `figure`: evidence tables and cards → one figure as SVG, PNG, CSV and caption."""

from pathlib import Path

from conceptome.provenance.record import job

with job(snakemake) as context:
    import pandas as pd

    from conceptome.config import parse
    from conceptome.figures import TABLES, draw
    from conceptome.files import read_json, read_parquet

    figure = snakemake.params.figure
    # R/evidence/{dataset}/{model}/{whitening}/{table}.parquet, in the order of the configuration
    paths = [Path(path) for path in snakemake.input.tables]
    tables = {}
    for name in TABLES[figure]:
        frames = [read_parquet(path) for path in paths if path.stem == name]
        frames = [frame for frame in frames if len(frame)]
        tables[name] = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
    # R/data/{dataset}/card.json and R/activations/{dataset}/{model}/card.json
    cards = {Path(path).parent.name: read_json(path) for path in snakemake.input.cards}
    for dataset, card in cards.items():
        card["study"] = snakemake.params.studies.get(dataset, {})
        card["models"] = {}
    for path in map(Path, snakemake.input.model_cards):
        cards[path.parents[1].name]["models"][path.parent.name] = read_json(path)

    draw(figure, tables, cards, parse("run", snakemake.params.run), Path(snakemake.output.csv).parent)
