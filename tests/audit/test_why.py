"""Where a file comes from: the chain, its restriction to a panel, copies from elsewhere, and what was altered."""

import json
import shutil

import pytest
from fake_records import ENTRY, PANELS, STEPS, read_lines, write_chain

from conceptome.__main__ import main
from conceptome.files import read_json, sha256_file, write_json

FIGURE = "studies/s/figures/selectivity/selectivity"


@pytest.fixture
def results(tmp_path):
    write_chain(tmp_path / "results")
    return tmp_path / "results"


@pytest.fixture
def ask(results, capsys):
    """Ask why; gives the exit code and the JSON answer."""

    def ask(target, *more):
        code = main(["why", str(target), "--results", str(results), "--json", *more])
        return code, json.loads(capsys.readouterr().out)

    return ask


def steps(answer):
    return [(step["rule"], *step["wildcards"].values()) for step in answer["steps"]]


def test_a_figure_is_followed_to_the_raw_bytes(ask, results):
    code, answer = ask("F3")
    assert (code, answer["clean"], answer["findings"]) == (0, True, [])
    assert answer["subject"]["sha256"] == sha256_file(results / f"{FIGURE}.svg")
    assert len(answer["steps"]) == len(STEPS)
    first = answer["steps"][0]
    assert (first["number"], first["rule"], first["seconds"]) == (1, "figure_selectivity", 5.0)
    assert [item["started"] for item in answer["steps"]] == sorted(
        (item["started"] for item in answer["steps"]), reverse=True
    )
    # Every input names the step that wrote it, and the whole record is there.
    jobs = {step["job"]: step for step in answer["steps"]}
    for step in answer["steps"]:
        for item in step["inputs"]:
            assert item["sha256"] in {out["sha256"] for out in jobs[item["from"]]["outputs"]}
            assert item["state"] == "unchanged"
        assert {"code", "parameters", "seeds", "threads", "machine", "environment", "kernels", "commit"} <= step.keys()
        assert step["record_sha256"] == sha256_file(step["record_path"])
    (raw,) = answer["raw"]
    assert raw["path"] == "results/sources/raw.csv"
    assert raw["sha256"] == sha256_file(results / "sources/raw.csv")
    assert (raw["address"], raw["licence"], raw["citation"]) == (ENTRY["url"], ENTRY["licence"], ENTRY["citation"])
    assert sorted({jobs[name]["rule"] for name in raw["read_by"]}) == ["prepare_matrix"]


def test_codes_have_only_their_own_chain(ask, results):
    _, answer = ask(results / "codes/wells/m/none/icfl/seed1/codes.parquet")
    assert [step[0] for step in steps(answer)] == ["learn", "embed", "prepare_matrix", "retrieve"]
    assert answer["subject"]["recognised"] == "path"


@pytest.mark.parametrize(
    ("panel", "spaces", "fits", "seeds"),
    [
        # The null of panel a names no dictionary: it is of those that the panel draws.
        ("a", {"cells"}, {("cells", "topk")}, None),
        ("b", {"wells"}, {("wells", "icfl")}, ["1"]),
        # Two rows, two fits: the other two combinations of data set and dictionary have no part in them.
        ("c", {"cells", "wells"}, {("cells", "topk"), ("wells", "icfl")}, None),
    ],
)
def test_a_panel_has_only_what_its_rows_can_come_from(ask, panel, spaces, fits, seeds):
    code, answer = ask(f"F3{panel}")
    assert code == 0
    found = steps(answer)
    assert {step[1] for step in found if step[0] == "measure"} == spaces  # wildcards are recorded in order of name
    assert {
        (step["wildcards"]["dataset"], step["wildcards"]["dictionary"])
        for step in answer["steps"]
        if step["rule"] == "learn"
    } == fits
    assert {step[0] for step in found} == {step[0] for step in STEPS}
    assert answer["restriction"]["seeds"] == seeds
    assert f"panel = {panel}" in answer["restriction"]["made"]
    read = {item["path"] for step in answer["steps"] if step["rule"] == "measure" for item in step["inputs"]}
    expected = seeds or ["0", "1"]
    assert {path.split("/")[6] for path in read} == {f"seed{seed}" for seed in expected}
    figure = answer["steps"][0]
    assert figure["inputs_left_out"] == 2 - len(spaces)


def test_a_panel_that_the_table_lacks_and_an_altered_table_are_refused(results, capsys):
    assert main(["why", "F3z", "--results", str(results)]) == 1
    error = capsys.readouterr().err
    assert "figure selectivity has no panel z" in error
    assert "names a, b, c" in error
    (results / f"{FIGURE}.csv").write_text(PANELS.replace("topk", "icfl"))
    assert main(["why", "F3a", "--results", str(results)]) == 1
    assert "altered, so it cannot tell what a panel draws" in capsys.readouterr().err


def test_a_mailed_copy_is_known_by_its_bytes_whatever_its_name(ask, results, tmp_path):
    copy = shutil.copy(results / f"{FIGURE}.svg", tmp_path / "Fig. 3 (final) ü.svg")
    code, answer = ask(copy)
    assert (code, len(answer["steps"])) == (0, len(STEPS))
    assert answer["subject"]["path"] == f"results/{FIGURE}.svg"
    assert answer["subject"]["recognised"].startswith("bytes")


def test_an_altered_copy_is_known_by_its_recipe_and_said_to_differ(ask, results, tmp_path):
    copy = tmp_path / "figure.svg"
    copy.write_text((results / f"{FIGURE}.svg").read_text() + "<!-- edited -->")
    code, answer = ask(copy)
    assert (code, answer["clean"]) == (1, False)
    (finding,) = answer["findings"]
    assert "same recipe, other bytes" in finding
    assert "altered after it was written, or made on another machine" in finding
    assert sha256_file(copy)[:12] in finding
    assert len(answer["steps"]) == len(STEPS)


def test_a_stranger_is_refused_in_one_line(results, tmp_path, capsys):
    stranger = tmp_path / "stranger.svg"
    stranger.write_text("<svg/>")
    assert main(["why", str(stranger), "--results", str(results)]) == 1
    assert "wrote these bytes" in capsys.readouterr().err
    text = (results / f"{FIGURE}.svg").read_text()
    recipe = next(step for step in results.glob(".provenance/records/*-figure_*.final.json"))
    stranger.write_text(text.replace(read_json(recipe)["recipe"], "0" * 64))
    assert main(["why", str(stranger), "--results", str(results)]) == 1
    assert "has the recipe that it carries (000000000000…)" in capsys.readouterr().err
    assert main(["why", str(results / "data"), "--results", str(results)]) == 1
    assert "is a folder: name one of its files, such as results/data/cells/card.json" in capsys.readouterr().err


def test_each_alteration_of_the_chain_is_named(ask, results):
    raw, codes = results / "sources/raw.csv", results / "codes/cells/m/none/topk/seed0/codes.parquet"
    before = sha256_file(raw)
    raw.write_text("other")
    other = results / "codes/wells/m/none/topk/seed0/codes.parquet"
    shutil.copy(other, codes)
    (results / "data/wells/card.json").unlink()
    code, answer = ask("F3")
    assert code == 1
    found = {line.split(": ")[0]: line for line in answer["findings"]}
    assert set(found) == {str(raw), str(codes), str(results / "data/wells/card.json")}
    assert found[str(raw)].endswith(f"sha256 {sha256_file(raw)[:12]}…, recorded {before[:12]}…: altered")
    assert "replaced by what" in found[str(codes)]
    assert "codes/wells/m/none/topk/seed0" in found[str(codes)]
    assert found[str(results / "data/wells/card.json")].endswith("missing")
    assert [item["state"] for item in answer["raw"]] == ["changed"]
    # A chain that holds only one of them names only that one.
    assert [line.split(": ")[0] for line in ask(results / "data/cells/card.json")[1]["findings"]] == [str(raw)]


def test_a_chain_of_an_older_state_says_so(ask, results):
    write_chain(results, "w2", at=1, rules={"learn"}, change=lambda *_: {"parameters": {"learn": {"k": 16}}})
    code, answer = ask("F3")
    assert code == 1
    assert len(answer["findings"]) == 8
    assert all("written again since, by 20260101T01" in line for line in answer["findings"])


def test_a_record_that_the_ledger_does_not_name_is_a_finding(ask, results):
    record = next(results.glob(".provenance/records/*-embed-*.final.json"))
    write_json(record, {**read_json(record), "threads": 7})
    code, answer = ask("F3")
    assert (code, answer["findings"]) == (
        1,
        [f"{record}: the ledger does not name this record: altered, or not ingested yet"],
    )
    lines = read_lines(results / "ledger.jsonl")
    assert len(lines) == 1
    (results / "ledger.jsonl").unlink()
    assert [line.split(": ")[1] for line in ask("F3")[1]["findings"]] == ["missing"]


def test_an_input_that_changed_under_a_job_and_a_lost_record_are_findings(results, ask, tmp_path):
    shutil.rmtree(results)
    card = "results/data/cells/card.json"
    write_chain(results, change=lambda rule, _: {"inputs_changed": [card]} if rule == "embed" else {})
    assert any(line.startswith(f"{card}: changed while") for line in ask("F3")[1]["findings"])
    for path in results.glob(".provenance/records/*-retrieve-*"):
        path.unlink()
    _, answer = ask("F3")
    assert any(line.startswith("results/sources/raw.csv: no record tells which job") for line in answer["findings"])


def test_the_text_fits_80_columns_and_names_what_matters(results, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["why", "F3", "--results", str(results)]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert "  1 figure_selectivity" in text
    assert "learn cells/m/none/topk" in text
    assert "k=8" in text
    for line in ENTRY["url"], f"Licence: {ENTRY['licence']}", ENTRY["citation"]:
        assert line in text
    assert "clean: 16 files of the chain are unchanged" in " ".join(text.split())
    (results / "sources/raw.csv").write_text("other")
    assert main(["why", "F3", "--results", str(results)]) == 1
    assert "NOT CLEAN, findings: 1" in capsys.readouterr().out


def test_the_graph_repeats_its_bytes_and_shows_raw_files_steps_and_breaks(results, tmp_path, capsys):
    for name in ("a.svg", "b.svg"):
        assert main(["why", "F3", "--results", str(results), "--graph", str(tmp_path / name)]) == 0
    svg = (tmp_path / "a.svg").read_text()
    assert svg == (tmp_path / "b.svg").read_text()
    assert "cells/m/none/topk" in svg
    assert f"sha256 {sha256_file(results / 'sources/raw.csv')[:12]}" in svg
    assert 'stroke="red"' not in svg
    (results / "sources/raw.csv").write_text("other")
    assert main(["why", "F3", "--results", str(results), "--graph", str(tmp_path / "c.svg")]) == 1
    assert 'stroke="red"' in (tmp_path / "c.svg").read_text()
    capsys.readouterr()
    assert main(["why", "F3", "--results", str(results), "--graph", str(tmp_path / "d.png")]) == 1
    assert "give a name that ends in .svg" in capsys.readouterr().err


def test_many_fits_are_drawn_as_one(results, tmp_path, monkeypatch, capsys):
    from conceptome.provenance import why

    monkeypatch.setattr(why, "NODES", 5)
    assert main(["why", "F3", "--results", str(results), "--graph", str(tmp_path / "a.svg")]) == 0
    svg = (tmp_path / "a.svg").read_text()
    assert svg.count("2 fits") == 2
    assert "icfl, topk" in svg
    assert "cells/m/none/topk" not in svg


def test_every_panel_of_every_figure_is_narrower_than_its_figure(finished, monkeypatch):
    import pandas as pd

    from conceptome.config.evidence import FIGURES
    from conceptome.provenance import why
    from conceptome.provenance.history import History

    monkeypatch.chdir(finished.folder)
    history = History(finished.results)
    assert set(why.FITS) == set(FIGURES)
    drawn = [path.name for path in finished.path("studies/test/figures").iterdir()]
    for number, figure in enumerate(FIGURES, 1):
        if figure not in drawn:
            continue
        job, item = history.find(f"F{number}")
        whole = why.Chain(history, why.Subject(job, item, "", []), lambda *_: True)
        table = pd.read_csv(finished.path("studies/test/figures", figure, f"{figure}.csv"), low_memory=False)
        assert table["panel"].notna().all()
        assert table[["dataset", "model"]].notna().all(axis=None)
        for panel, rows in table.groupby("panel"):
            subject, restriction = why.recognise(history, f"F{number}{panel}")
            chain = why.Chain(history, subject, restriction.keeps)
            assert chain.findings == []
            assert 3 < len(chain.jobs) < len(whole.jobs)
            places = [step.record["wildcards"] for step in chain.jobs]
            assert {(p["dataset"], p["model"]) for p in places if "model" in p} == set(
                rows[["dataset", "model"]].itertuples(index=False, name=None)
            )
            fits = {(p["dataset"], p["model"], p["whitening"], p["dictionary"]) for p in places if "dictionary" in p}
            if why.FITS[figure] == "none":
                assert "dictionary" not in table
                assert not fits
            else:
                named = set(rows[list(why.KEYS)].dropna().itertuples(index=False, name=None))
                assert named == fits if why.FITS[figure] == "own" else named <= fits


def test_real_figures_that_were_saved_again_are_known_by_their_recipe(finished, tmp_path, capsys):
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    figure = finished.path("studies/test/figures/recovery")
    svg, png = tmp_path / "mailed.dat", tmp_path / "mailed.png"
    svg.write_text((figure / "recovery.svg").read_text().replace("</svg>", "<g/></svg>"))
    with Image.open(figure / "recovery.png") as image:
        kept = PngInfo()
        for key, value in image.info.items():
            if isinstance(value, str):
                kept.add_text(key, value)
        image.save(png, pnginfo=kept, compress_level=1)
    for copy, suffix in ((svg, "svg"), (png, "png")):
        assert main(["why", str(copy), "--results", str(finished.path()), "--json"]) == 1
        answer = json.loads(capsys.readouterr().out)
        assert answer["subject"]["path"] == f"results/test/studies/test/figures/recovery/recovery.{suffix}"
        (finding,) = answer["findings"]
        assert "same recipe, other bytes" in finding
