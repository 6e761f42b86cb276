"""Jobs under a file-access trace: what is declared passes, what is not fails, also when compiled code does it."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from workspace import REPOSITORY, environment

from conceptome.provenance.trace import Declared, parse


def can_trace() -> bool:
    return shutil.which("strace") is not None and not subprocess.run(["strace", "-qq", "true"]).returncode


# Conceptome runs without strace, so its tests do too; make test says which ones were left out, and why.
pytestmark = pytest.mark.skipif(not can_trace(), reason="strace is not installed, or may not trace in this sandbox")

SNAKEFILE = """
    import os
    from conceptome.provenance.closure import closure
    os.environ["CONCEPTOME_RESULTS"] = "results"
    configfile: "config/default.yaml"
    rule all:
        input: expand("results/used/{kind}.txt", kind=["clean", "relative", "absolute", "write", "folder"])
    rule make:
        output: "results/x.h5", "results/other.parquet", "results/unread.txt"
        log: "results/logs/make.log"
        script: "scripts/make.py"
    rule use:
        input: "results/x.h5", "results/unread.txt"
        output: "results/used/{kind}.txt"
        log: "results/logs/use/{kind}.log"
        params: here=workflow.basedir, code=closure(os.path.join(workflow.basedir, "scripts/use.py"))
        script: "scripts/use.py"
"""
MAKE = """
    from conceptome.provenance.record import job
    with job(snakemake):
        import h5py, pandas
        with h5py.File(snakemake.output[0], "w") as handle:
            handle["x"] = 1.5
        pandas.DataFrame({"y": [2]}).to_parquet(snakemake.output[1])
        open(snakemake.output[2], "w").close()
"""
USE = """
    from conceptome.provenance.record import job
    with job(snakemake):
        import h5py, os, pyarrow.parquet, subprocess
        with h5py.File(snakemake.input[0]) as handle:
            value = handle["x"][()]
        kind = snakemake.wildcards.kind
        if kind == "relative":
            value += pyarrow.parquet.read_table("results/other.parquet")["y"][0].as_py()
        if kind == "absolute":
            value += pyarrow.parquet.read_table(snakemake.params.here + "/results/other.parquet")["y"][0].as_py()
        if kind == "write":
            subprocess.run(["sh", "-c", "cd results && echo 1 > 'stray \\u00e9.txt'"], check=True)
        if kind == "folder":
            value += len(os.listdir(snakemake.params.here + "/results"))
        with open(snakemake.output[0] + ".new", "w") as handle:
            handle.write(str(value))
        os.rename(snakemake.output[0] + ".new", snakemake.output[0])
"""


def conceptome(*words, cwd, **options):
    command = [sys.executable, "-m", "conceptome", *words]
    paths = os.pathsep.join(str(REPOSITORY / folder) for folder in ("scripts", "kernels"))
    variables = {**environment(), "PYTHONPATH": paths, **options}
    return subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A finished run of a workflow whose rule `use` declares too little for some of its wildcards."""
    folder = tmp_path_factory.mktemp("toy é")
    for name, text in {
        "Snakefile": SNAKEFILE,
        "config/default.yaml": "name: toy\nstudies: []\n",
        "scripts/make.py": MAKE,
        "scripts/use.py": USE,
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(textwrap.dedent(text))
    command = [sys.executable, "-m", "snakemake", "--cores", "2"]
    variables = {**environment(), "PYTHONPATH": str(REPOSITORY / "scripts")}
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def trace(folder: Path, kind: str) -> dict:
    before = {path: path.read_bytes() for path in (folder / "results").rglob("*") if path.is_file()}
    words = ["trace", "use", "--wildcards", f"kind={kind}", "--config", "config/default.yaml", "--json"]
    done = conceptome(*words, cwd=folder)
    assert done.stdout.startswith("{"), done.stderr
    report = json.loads(done.stdout)
    assert done.returncode == (0 if report["clean"] else 1)
    after = {path: path.read_bytes() for path in (folder / "results").rglob("*") if path.is_file()}
    assert after == before, "the results were altered"
    return report


def test_a_job_that_keeps_to_its_declaration_is_clean(toy):
    report = trace(toy, "clean")
    assert report["findings"] == []
    assert report["unread"] == ["results/unread.txt"]
    assert (report["reads"], report["writes"]) == (1, 1)


def test_an_undeclared_read_by_compiled_code_is_found_though_the_file_is_not_there(toy):
    findings = trace(toy, "relative")["findings"]
    assert any(line.startswith("undeclared read: results/other.parquet") for line in findings)
    assert any(line.startswith("the job failed") for line in findings)


def test_an_undeclared_read_around_the_scratch_folder_is_found(toy):
    assert trace(toy, "absolute")["findings"] == ["undeclared read: results/other.parquet"]


def test_an_undeclared_write_of_a_child_process_is_found(toy):
    (finding,) = trace(toy, "write")["findings"]
    assert finding.startswith("undeclared write: results/stray é.txt")


def test_an_undeclared_listing_is_found(toy):
    assert trace(toy, "folder")["findings"] == ["undeclared read: results (listed)"]


def test_what_cannot_be_traced_is_one_line(toy):
    def problem(*words, **variables):
        done = conceptome("trace", *words, "--config", "config/default.yaml", cwd=toy, **variables)
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        return line

    assert "no job of rule paint is on record" in problem("paint")
    assert "no job of rule use has {'kind': 'none'}" in problem("use", "--wildcards", "kind=none")
    assert "apt install strace" in problem("use", PATH=str(toy))


def test_paths_are_followed_through_folders_threads_and_children(tmp_path):
    script = tmp_path / ".snakemake" / "scripts" / "x.py"
    script.parent.mkdir(parents=True)
    script.write_text(
        textwrap.dedent("""
        import os, subprocess, threading
        os.mkdir("sub folder")
        os.chdir("sub folder")
        open('one "é"', "w").close()
        os.rename('one "é"', "two")
        thread = threading.Thread(target=lambda: open("three", "w").close())
        thread.start(); thread.join()
        subprocess.run(["cat", "../read by a child"], check=True)
        folder = os.open("..", os.O_RDONLY)
        os.close(os.open("four", os.O_CREAT | os.O_WRONLY, dir_fd=folder))
        """)
    )
    (tmp_path / "read by a child").write_text("")
    (tmp_path / "before").write_text("")
    (tmp_path / "trace").mkdir()
    start = f"cat before; exec {sys.executable} {script}"
    subprocess.run(
        ["strace", "-ff", "-f", "--seccomp-bpf", "-y", "-s", "4096", "-qq", "-e", "signal=none", "-e",
         "trace=%file,fchdir,ftruncate,clone,clone3,fork,vfork", "-o", "trace/calls", "sh", "-c", start],
        check=True, cwd=tmp_path,
    )  # fmt: skip
    access = parse(tmp_path / "trace", tmp_path)
    sub = f"{tmp_path}/sub folder"
    mine = {path for path in access.writes if path.startswith(str(tmp_path))}
    assert mine == {sub, f'{sub}/one "é"', f"{sub}/two", f"{sub}/three", f"{tmp_path}/four"}
    assert access.renamed == {f'{sub}/one "é"': f"{sub}/two"}
    assert access.reads[f"{tmp_path}/read by a child"] == 1
    assert f"{tmp_path}/before" not in access.reads


def test_half_written_files_belong_to_the_output_that_they_become():
    declared = Declared({"/r/X.h5ad", "/r/genes.all.v7.gmt"}, {"/r/store"})
    inside = ["/r/X.h5ad", "/r/.X.412.partial.h5ad", "/r/store/a", "/r/.genes.all.v7.gmt.partial/complete", "/r/store"]
    inside += ["/r/.store.partial/complete/.x.7.partial.json"]
    assert [path for path in inside if path not in declared] == []
    outside = ["/r/X.h5ad.bak", "/r/.Y.412.partial.h5ad", "/r/.X.h5ad", "/s/.X.412.partial.h5ad", "/r/stores"]
    assert [path for path in outside if path in declared] == []


SMALL = {"whiten": "dataset=simulated_small", "learn": "dataset=simulated_small,dictionary=icfl"}


def trace_rule(finished, rule: str, wildcards: str) -> None:
    words = ["--wildcards", wildcards, "--config", str(REPOSITORY / finished.config), "--results", str(finished.path())]
    done = conceptome("trace", rule, *words, cwd=REPOSITORY)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("rule", SMALL)
def test_rules_keep_to_their_declarations(finished, rule):
    trace_rule(finished, rule, SMALL[rule])


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_rule_keeps_to_its_declaration(finished):
    records = map(json.loads, (path.read_text() for path in finished.path(".provenance/records").glob("*.final.json")))
    rules = sorted({record["rule"] for record in records})
    assert len(rules) > 15
    for rule in rules:
        trace_rule(finished, rule, "")
