"""A small run, planted: a retrieved source, a dictionary with its card, a table, a figure, and a failed job."""

from __future__ import annotations

from pathlib import Path

from fake_records import output, write_record

from conceptome.files import write_json
from conceptome.provenance import ledger
from conceptome.provenance.folder import ProvenanceFolder

SOURCE = {
    "name": "raw data.csv",
    "description": "Planted numbers.",
    "licence": "CC0 1.0",
    "citation": "Nobody (2020), doi:10.1000/planted.",
    "url": "https://example.org/raw%20data.csv",
    "size": 12,
}
CONTENT = {
    "sources/raw data.csv": "raw data",
    "data/planted/card.json": '{"name": "planted"}',
    "dictionaries/planted/pca/none/topk/seed0/dictionary.safetensors": "large",
    "dictionaries/planted/pca/none/topk/seed0/card.json": "{}",
    "evidence/planted/pca/none/selectivity.parquet": "table",
    **{f"studies/small/figures/selectivity/selectivity.{kind}": kind for kind in ("svg", "png", "csv")},
    "studies/small/figures/selectivity/caption.md": "A caption.",
}


def plant(results: Path, lock: str | None = None) -> dict[str, dict]:
    """Write the files, the records and the ledger; gives each file as a record describes it, by path below results."""
    made = {}
    for name, text in CONTENT.items():
        (results / name).parent.mkdir(parents=True, exist_ok=True)
        (results / name).write_text(text)
        made[name] = output(results / name, Path(name).suffix.lstrip("."))
    raw, card, dictionary, dictionary_card, table, *figure = made.values()
    facts = {"id": "w1", "name": "small", "configuration": "config/test.yaml", "studies": ["simulated_small"]}
    write_json(ProvenanceFolder(results).workflows / "w1.json", {**facts, "started": 1.7e9, "ended": 1.7e9 + 60})
    environment = {"distributions": [{"name": "snakemake", "version": "9.9", "record": None}], "python": "CPython 3"}
    write_json(ProvenanceFolder(results).environments / f"{'e' * 64}.json", environment)
    entry = {**SOURCE, "sha256": raw["sha256"]}

    def job(number: int, rule: str, **values) -> None:
        values = {"started": 1.7e9 + 10 * number, "ended": 1.7e9 + 10 * number + 5, "wildcards": {}, **values}
        commit = {"id": None, "dirty": None, "diff": None}  # no git: the code is taken as it lies here
        write_record(results, f"{number}-{rule}", rule=rule, commit=commit, lock=lock, **values)

    def code(*scripts: str) -> dict:
        return {"code": {"digest": "c" * 64, "files": dict.fromkeys(scripts, "a" * 64)}}

    job(1, "retrieve", parameters={"entry": entry}, outputs=[raw], **code("scripts/retrieve.py"))
    job(2, "prepare_matrix", parameters={}, inputs=[raw], outputs=[card], **code("scripts/prepare.py"))
    learned = {"k": 8, "rate": 0.5, "unset": None, "steps": [1, 2]}
    job(
        3, "learn", parameters={"dictionary": learned}, wildcards={"seed": "0"}, inputs=[raw, card],
        outputs=[dictionary, dictionary_card], **code("scripts/learn.py", "scripts/conceptome/errors.py"),
    )  # fmt: skip
    job(4, "enrich", status="failure", error="out of memory", inputs=[dictionary], **code("scripts/enrich.py"))
    job(5, "measure", parameters={}, inputs=[dictionary], outputs=[table], **code("scripts/measure.py"))
    job(6, "figure_selectivity", inputs=[table], outputs=figure, **code("scripts/draw_figure.py"))
    ledger.append(results)
    return made
