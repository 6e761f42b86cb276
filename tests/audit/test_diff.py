"""Two runs compared: each planted change is named as the cause of exactly what it changed."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from fake_records import ENTRY, STEPS, write_chain
from workspace import REPOSITORY, environment

from conceptome.__main__ import main
from conceptome.files import read_json, write_json

TOPK = {"dataset": "cells", "dictionary": "topk", "model": "m", "whitening": "none"}
DOWNSTREAM = {
    "codes/cells/m/none/topk/seed0/codes.parquet",
    "codes/cells/m/none/topk/seed1/codes.parquet",
    "evidence/cells/m/none/selectivity.parquet",
    "studies/s/figures/selectivity/selectivity.svg",
}
EVERYTHING = {path for *_, outputs in STEPS for path in outputs if not path.endswith("selectivity.csv")}


@pytest.fixture
def ask(tmp_path, capsys):
    """Compare the last two runs in results, or two folders; gives the exit code and the JSON answer."""

    def ask(a="last-1", b="last", folder="results"):
        code = main(["diff", str(a), str(b), "--results", str(tmp_path / folder), "--json"])
        return code, json.loads(capsys.readouterr().out)

    return ask


@pytest.fixture
def results(tmp_path):
    write_chain(tmp_path / "results")
    return tmp_path / "results"


def causes(group):
    return [(cause["kind"], cause["rule"], cause["what"], cause["a"], cause["b"]) for cause in group["causes"]]


def paths(group):
    return {item["path"] for item in group["outputs"]}


def only(rule, wildcards, values):
    """Change the records of one rule (and wildcards)."""
    return lambda name, found: values if name == rule and wildcards in ({}, found) else {}


def test_the_same_again_is_clean(results, ask):
    write_chain(results, "w2", at=1)
    code, answer = ask()
    assert (code, answer["clean"], answer["groups"], answer["findings"]) == (0, True, [], [])
    assert answer["compared"] == sum(len(outputs) for *_, outputs in STEPS)
    assert (answer["a"]["workflow"], answer["b"]["workflow"]) == ("w1", "w2")


def test_a_changed_parameter_explains_all_that_follows_from_it(results, ask):
    changed = {"parameters": {"learn": {"k": 16, "out": "results/codes/cells/m/none/topk/seed0/codes.parquet"}}}
    write_chain(results, "w2", at=1, change=only("learn", TOPK, changed))
    code, answer = ask()
    assert code == 1
    (group,) = answer["groups"]
    assert causes(group) == [("parameter", "learn", "learn.k", 8, 16)]
    assert group["causes"][0]["began_in"] == ["learn (dataset=cells, dictionary=topk, model=m, whitening=none)"]
    assert paths(group) == DOWNSTREAM
    assert answer["differing"] == len(DOWNSTREAM)
    assert all(item["a"] != item["b"] for item in group["outputs"])
    assert answer["findings"][0].endswith("parameter learn.k of rule learn: 8 → 16")


def test_a_run_that_ran_only_a_part_is_compared_with_all_that_lay_there(results, ask):
    changed = {"parameters": {"learn": {"k": 16, "out": "results/codes/cells/m/none/topk/seed0/codes.parquet"}}}
    write_chain(results, "w2", at=1, rules={"figure_selectivity"})
    write_chain(
        results, "w3", at=2, change=only("learn", TOPK, changed), rules={"learn", "measure", "figure_selectivity"}
    )
    assert ask("w1", "w2")[0] == 0
    for a, b in (("last-1", "last"), ("last-2", "w3"), ("w1", "last")):
        _, answer = ask(a, b)
        (group,) = answer["groups"]
        assert causes(group) == [("parameter", "learn", "learn.k", 8, 16)]
        assert paths(group) == DOWNSTREAM
        assert answer["compared"] == sum(len(outputs) for *_, outputs in STEPS)


def test_two_changes_are_told_apart_and_share_what_follows_from_both(results, ask):
    def change(rule, wildcards):
        if rule == "learn" and wildcards == TOPK:
            return {"threads": 4}
        return {"code": {"digest": "d" * 64, "files": {"scripts/measure.py": "b" * 64}}} if rule == "measure" else {}

    write_chain(results, "w2", at=1, change=change)
    _, answer = ask()
    code = [("code", None, "scripts/learn.py", "a" * 64, None), ("code", None, "scripts/measure.py", None, "b" * 64)]
    threads = [("threads", None, "number", 1, 4)]
    # A cause says where it began for the outputs of its group, not for others that it explains too.
    (wells,) = (group for group in answer["groups"] if "wells" in group["outputs"][0]["path"])
    assert wells["causes"][0]["began_in"] == ["measure (dataset=wells, model=m, whitening=none)"]
    found = {frozenset(causes(group)): paths(group) for group in answer["groups"]}
    assert found == {
        frozenset(threads): {path for path in DOWNSTREAM if path.startswith("codes")},
        frozenset(code): {"evidence/wells/m/none/selectivity.parquet"},
        frozenset(threads + code): DOWNSTREAM - {path for path in DOWNSTREAM if path.startswith("codes")},
    }


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            {"code": {"digest": "d" * 64, "files": {"scripts/learn.py": "b" * 64}}},
            [("code", None, "scripts/learn.py", "a" * 64, "b" * 64)],
        ),
        # A record of version 1 lists files without their digests.
        (
            {"code": {"digest": "d" * 64, "files": ["scripts/learn.py"]}},
            [("code", "embed", "closure", "c" * 64, "d" * 64)],
        ),
        (
            {"kernels": {"build": "f" * 64, "variant": "avx512vnni"}},
            [("kernels", None, "build", "b" * 64, "f" * 64), ("kernels", None, "variant", "generic", "avx512vnni")],
        ),
        ({"lock": "f" * 64}, [("lock", None, "digest", "d" * 64, "f" * 64)]),
        ({"python": "CPython 3.12.1"}, [("Python", None, "version", "CPython 3.11.7", "CPython 3.12.1")]),
        ({"variables": {"PYTHONHASHSEED": "7"}}, [("variables", None, "PYTHONHASHSEED", "0", "7")]),
        # Other code cannot hide behind a commit, but a commit explains nothing where the code is the same.
        (
            {"commit": {"id": "0" * 40, "dirty": False}, "threads": 2},
            [("threads", None, "number", 1, 2)],
        ),
        ({"commit": {"id": "0" * 40, "dirty": False}}, [("commit", None, "id", "f" * 40, "0" * 40)]),
        (
            {"machine": {"name": "other", "system": "Linux", "cpu": "y", "features": ["avx2"], "cpus": 8}},
            [("machine", None, "cpu", "x", "y"), ("machine", None, "features", ["fma"], [])],
        ),
        (
            {"blas": [{"file": "libopenblas.so", "architecture": "SkylakeX", "num_threads": 1}]},
            [
                ("blas", None, "libopenblas.so.architecture", None, "SkylakeX"),
                ("blas", None, "libopenblas.so.num_threads", None, 1),
            ],
        ),
    ],
)
def test_each_kind_of_change_is_named(results, ask, values, expected):
    write_chain(results, "w2", at=1, change=only("embed", {}, values))
    code, answer = ask()
    (group,) = answer["groups"]
    assert (code, causes(group)) == (1, expected)
    assert paths(group) == {path for path in EVERYTHING if not path.startswith(("sources", "data"))}


def test_parameters_that_are_lists_or_mappings_are_compared(results, ask):
    entry = {**ENTRY, "files": [["a.txt", {"size": 1}]], "convert": {}}
    write_chain(results, "w2", at=1, change=only("retrieve", {}, {"parameters": {"entry": entry}}))
    (group,) = ask()[1]["groups"]
    assert paths(group) == EVERYTHING
    assert causes(group) == [
        ("parameter", "retrieve", "entry.convert", None, "{}"),
        ("parameter", "retrieve", "entry.files", None, [["a.txt", '{"size":1}']]),
    ]


def test_packages_are_compared_by_version_and_by_the_digest_of_their_files(results, ask):
    environments = results / ".provenance/environments"
    for key, numpy, torch, extra in (("e", "2.4.6", "a", []), ("1", "2.4.7", "b", ["new"])):
        listed = [{"name": "numpy", "version": numpy, "record": key * 64}]
        listed += [{"name": "torch", "version": "2.13.0", "record": torch * 64}]
        listed += [{"name": name, "version": "1.0", "record": None} for name in extra]
        write_json(environments / f"{key * 64}.json", {"distributions": listed, "python": "CPython 3.11.7"})
    write_chain(results, "w2", at=1, change=lambda *_: {"environment": "1" * 64, "lock": "f" * 64})
    _, answer = ask()
    (group,) = answer["groups"]
    assert paths(group) == EVERYTHING
    assert causes(group) == [
        ("package", None, "new", None, "1.0"),
        ("package", None, "numpy", "2.4.6", "2.4.7"),
        ("package", None, "torch 2.13.0, RECORD", "a" * 64, "b" * 64),
    ]
    (environments / f"{'1' * 64}.json").unlink()
    (group,) = ask()[1]["groups"]
    assert ("environment", None, "(a list is missing)", "e" * 64, "1" * 64) in causes(group)


def test_what_no_record_explains_is_a_finding_of_its_own(results, ask):
    write_chain(results, "w2", at=1, random="embed")
    code, answer = ask()
    (group,) = answer["groups"]
    assert code == 1
    assert causes(group) == [("not reproducible", "embed", "", None, None)]
    assert len(group["causes"][0]["began_in"]) == 2
    assert answer["findings"][0].endswith("nothing recorded differs in rule embed: not reproducible")


def test_outputs_and_inputs_of_one_side_are_said_to_be_so(results, ask, tmp_path):
    other = tmp_path / "other" / "results"
    shutil.copytree(results, other)
    for path in other.glob(".provenance/records/*-learn-*.final.json"):
        record = read_json(path)
        if record["wildcards"]["dictionary"] == "icfl":
            path.unlink()
    code, answer = ask(results, other)
    (group,) = answer["groups"]
    assert (code, causes(group)) == (1, [("only in A", "learn", "", None, None)])
    assert len(paths(group)) == 4
    assert causes(ask(other, results)[1]["groups"][0]) == [("only in B", "learn", "", None, None)]


def test_a_job_that_only_one_run_had_explains_what_reads_from_it(results, ask):
    changed = {"inputs": [], "parameters": {"measure": {"fits": ["topk"]}}}
    wells = {"dataset": "wells", "model": "m", "whitening": "none"}
    write_chain(results, "w2", at=1, change=only("measure", wells, changed))
    (group,) = ask()[1]["groups"]
    assert len(paths(group)) == 2
    assert "evidence/wells/m/none/selectivity.parquet" in paths(group)
    assert ("only in A", "learn", "", None, None) in causes(group)
    assert ("parameter", "measure", "measure.fits", None, ["topk"]) in causes(group)


def test_raw_bytes_without_a_job_are_an_input_that_differs(results, ask):
    inputs = [{"name": "read", "path": "own.csv", "sha256": None, "size": 1, "media_type": "text/csv"}]
    for at, mark in ((1, "1"), (2, "2")):
        own = [{**inputs[0], "sha256": mark * 64}]
        write_chain(results, f"w{at + 1}", at=at, change=only("prepare_matrix", {}, {"inputs": own}))
    (group,) = ask()[1]["groups"]
    assert causes(group) == [("input", "prepare_matrix", "own.csv", "1" * 64, "2" * 64)]
    assert paths(group) == EVERYTHING - {"sources/raw.csv"}


def rename(results):
    """Let the records of a folder say that it was called runs."""
    for path in results.glob(".provenance/records/*.json"):
        path.write_text(path.read_text().replace('"results/', '"runs/').replace(': "results"', ': "runs"'))


def test_two_folders_are_compared_whatever_they_are_called(results, ask, tmp_path):
    other = tmp_path / "another" / "runs"
    shutil.copytree(results, other)
    for path in other.glob(".provenance/records/*.json"):
        path.write_text(
            path.read_text().replace('"results/', '"runs/').replace('"results": "results"', '"results": "runs"')
        )
    code, answer = ask(results, other)
    assert (code, answer["clean"], answer["b"]["results"]) == (0, True, str(other))
    # Without the neutral spelling the parameter `out` would differ in every job.
    write_chain(other, "w2", at=1, random="embed")
    for path in other.glob(".provenance/records/*T01*.json"):
        path.write_text(
            path.read_text().replace('"results/', '"runs/').replace('"results": "results"', '"results": "runs"')
        )
    (group,) = ask(results, other)[1]["groups"]
    assert causes(group) == [("not reproducible", "embed", "", None, None)]


def test_unknown_and_ambiguous_runs_are_refused_in_one_line(results, capsys, tmp_path):
    write_chain(results, "w2", at=1)
    for name, said in (
        ("w9", "is neither a results folder nor a workflow run"),
        ("w", "names more than one workflow run"),
        ("last-7", "records 2 workflow run(s)"),
        (str(tmp_path), "no records of a run here"),
    ):
        assert main(["diff", name, "last", "--results", str(results)]) == 1
        assert said in capsys.readouterr().err


def test_a_run_that_had_nothing_to_do_counts_as_a_run(results, ask):
    write_chain(results, "w2", at=1, random="embed")
    for name in ("w1", "20260101T003000-idle", "20260101T990000-idle"):
        write_json(results / f".provenance/workflows/{name}.json", {"id": name})
    order = [ask("last", f"last-{back}")[1]["b"]["workflow"] for back in range(4)]
    assert order == ["20260101T990000-idle", "w2", "20260101T003000-idle", "w1"]
    assert ask("w1", "last-2")[0] == 0
    assert ask("w2", "last")[0] == 0
    assert ask("last-2", "last")[0] == 1


def test_the_text_groups_outputs_by_cause_within_80_columns(results, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    changed = {"parameters": {"learn": {"k": 16, "out": "results/codes/cells/m/none/topk/seed0/codes.parquet"}}}
    write_chain(results, "w2", at=1, change=only("learn", TOPK, changed))
    assert main(["diff", "last-1", "last", "--results", str(results)]) == 1
    text = capsys.readouterr().out
    for line in ("4 of 17 outputs differ", "1. 4 outputs", "   parameter learn.k of rule learn: 8 → 16"):
        assert line in text.splitlines()
    assert "and 1 more (--json names all)" in text
    # A path of the machine that runs the tests may be longer.
    assert max(len(line) for line in text.splitlines()[3:] if str(results) not in line) <= 80
    assert main(["diff", "last", "last", "--results", str(results)]) == 0
    assert "clean: none of 17 outputs differs" in capsys.readouterr().out


def test_a_record_of_version_1_differs_in_what_it_says_and_not_in_what_it_lacks(results, ask):
    def old(rule, wildcards):
        if rule != "embed":
            return {}
        host = {"name": "elsewhere", "system": "Linux", "cpu": "y", "cpus": 2}
        return {"machine": None, "host": host, "kernels": f"generic-{'b' * 64}", "threads": 1}

    write_chain(results, "w2", at=1, change=old)
    for path in results.glob(".provenance/records/*T01*-embed-*.final.json"):
        record = read_json(path)
        for key in ("machine", "blas", "determinism"):
            del record[key]
        write_json(path, record)
    (group,) = ask()[1]["groups"]
    assert causes(group) == [("machine", None, "cpu", "x", "y")]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_changed_parameter_and_an_edited_module_of_real_runs_are_named(tmp_path, ask):
    copy = tmp_path / "copy"
    for name in ("config", "envs", "kernels", "rules", "scripts"):
        shutil.copytree(REPOSITORY / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Snakefile", "requirements.lock"):
        shutil.copy(REPOSITORY / name, copy / name)

    def run():
        command = [sys.executable, "-m", "conceptome", "run", "--config", "config/test.yaml"]
        command += ["--studies", "simulated_small", "--directory", str(tmp_path), "--cores", "2"]
        variables = {**environment(), "PYTHONPATH": f"{copy / 'scripts'}{os.pathsep}{copy / 'kernels'}"}
        subprocess.run(command, cwd=copy, env=variables, check=True, capture_output=True)

    def edit(path, before, after):
        text = (copy / path).read_text()
        assert text.count(before) == 1
        (copy / path).write_text(text.replace(before, after))

    run()
    edit("config/test.yaml", "      topk: {steps: 60}\n", "      topk: {steps: 60, k: 2}\n")
    run()
    (group,) = ask(folder="results/test")[1]["groups"]
    assert causes(group) == [("parameter", "learn", "dictionary.k", 3, 2)]
    place = "codes/simulated_small/ae_w4/none/"
    assert {path for path in paths(group) if path.startswith(place)} == {
        f"{place}topk/seed{seed}/codes.parquet" for seed in (0, 1)
    }

    module = "scripts/conceptome/measures/projection.py"
    edit(module, "(x.astype(np.float64) - origin) @ directions.T\n", "2.0 * (x - origin) @ directions.T\n")
    edit("scripts/conceptome/activations.py", "from __future__", "# A comment re-runs nothing.\nfrom __future__")
    run()
    (group,) = ask(folder="results/test")[1]["groups"]
    ((kind, _, what, before, after),) = causes(group)
    assert (kind, what) == ("code", module)
    assert before != after
    assert "evidence/simulated_small/ae_w4/none/activations.parquet" in paths(group)
    assert not any(path.startswith(("codes", "dictionaries")) for path in paths(group))
