"""Running a chain again: identical, altered, or one line that says why it cannot be run."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_records import output, write_record
from workspace import REPOSITORY, environment

from conceptome.config.run import load, read_yaml, resolve
from conceptome.errors import DataError
from conceptome.files import read_json, sha256_file, write_json
from conceptome.provenance import reproduce as module
from conceptome.provenance.closure import file_digests
from conceptome.provenance.comparison import TOLERANCE
from conceptome.provenance.configuration import keep, kept, write_as_files
from conceptome.provenance.environment import environment as describe_environment
from conceptome.provenance.folder import ProvenanceFolder, digest
from conceptome.provenance.history import History


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Records of two jobs by the code, packages and configuration of here: raw.csv → data.csv → figure F3."""
    monkeypatch.chdir(tmp_path)
    results = Path("results")
    figure = results / "studies/small/figures/selectivity/selectivity.svg"
    figure.parent.mkdir(parents=True)
    for path, text in ((Path("raw.csv"), "1"), (results / "data.csv", "2"), (figure, "<svg/>")):
        path.write_text(text)
    head = subprocess.run(["git", "-C", REPOSITORY, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    files = file_digests(["scripts/whiten.py", "kernels/cpu/topk.cpp"], REPOSITORY)
    known = {
        "commit": {"id": head, "dirty": False, "diff": None},
        "code": {"digest": digest(files), "files": files},
        "environment": describe_environment(ProvenanceFolder(results)),
        "lock": sha256_file(REPOSITORY / "requirements.lock"),
    }
    first = write_record(
        results, "a", rule="prepare", inputs=[output(Path("raw.csv"))], outputs=[output(results / "data.csv")], **known
    )
    second = write_record(
        results,
        "b",
        rule="figure",
        started=1_700_000_020.0,
        ended=1_700_000_030.0,
        inputs=[output(results / "data.csv")],
        outputs=[output(figure)],
        **known,
    )
    monkeypatch.setattr(module, "checkout", lambda: REPOSITORY)
    monkeypatch.setenv("CONCEPTOME_WORKFLOW", "w1")
    values = {
        "name": "small",
        "studies": ["simulated_small"],
        "override": {"simulated_small": {"models": {"ae_w2": None}}},
    }
    keep(resolve(values, REPOSITORY / "config"), ["small.yaml"])
    return first, second


def edit(path: Path, **values) -> None:
    write_json(path, {**read_json(path), **values})


def refusal(**options) -> str:
    with pytest.raises(DataError) as caught:
        module.reproduce("results", "F3", **options)
    return str(caught.value)


def test_the_configuration_that_was_kept_is_the_one_that_ran(run, tmp_path):
    """Also the order of mappings: it is the order of the panels."""
    (tmp_path / "config/studies").mkdir(parents=True)
    content = kept(ProvenanceFolder("results"), "w1")
    write_as_files(content, tmp_path / "config")
    again = load([tmp_path / "config/default.yaml"], tmp_path / "config")
    assert json.dumps(again.model_dump(mode="json")) == json.dumps(content)
    assert list(content["studies"]["simulated_small"]["dictionaries"]) == list(
        read_yaml(REPOSITORY / "config/studies/simulated_small.yaml")["dictionaries"]
    )
    facts = read_json("results/.provenance/workflows/w1.json")
    assert (facts["name"], facts["configuration"]) == ("small", "small.yaml")


def test_an_altered_configuration_is_refused(run):
    (path,) = Path("results/.provenance/configurations").iterdir()
    path.write_text(path.read_text().replace('"seeds": [', '"seeds": [ '))
    assert "it was altered" in refusal()


def test_a_commit_that_is_not_here_is_one_line(run):
    commit = {"id": "f" * 40, "dirty": False, "diff": None}
    for path in run:
        edit(path, commit=commit)
    assert f"commit {'f' * 40}, which made figure" in refusal()
    done = subprocess.run(
        [sys.executable, "-m", "conceptome", "reproduce", "F3", "--json"],
        env={**environment(), "PYTHONPATH": str(REPOSITORY / "scripts")}, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: commit ffff")
    assert len(done.stderr.splitlines()) == 1
    edit(run[1], commit={"id": None, "dirty": None, "diff": None})
    assert "names no commit" in refusal()
    edit(run[1], commit={"id": "--output=x", "dirty": False, "diff": None})
    assert "is not in the repository" in refusal()


def test_a_lost_or_altered_difference_to_the_commit_is_refused(run):
    commit = read_json(run[1])["commit"]
    edit(run[1], commit={**commit, "dirty": True})
    assert "were not kept" in refusal()
    edit(run[1], commit={**commit, "dirty": True, "diff": "a" * 64})
    assert "is missing or was altered" in refusal()
    Path("results/.provenance/diffs").mkdir(exist_ok=True)
    Path(f"results/.provenance/diffs/{'a' * 64}.diff").write_text("--- a/x\n")
    assert "is missing or was altered" in refusal()


def test_a_chain_of_several_codes_is_refused_and_the_job_is_named(run):
    code = read_json(run[0])["code"]
    edit(run[0], code={**code, "files": {**code["files"], "scripts/whiten.py": "0" * 64}})
    assert "prepare (dataset=kang2018, model=scvi) was made by commit" in refusal()
    assert "has another scripts/whiten.py" in refusal()
    edit(run[0], code={**code, "files": {**code["files"], "scripts/conceptome/lost.py": "0" * 64}})
    assert "has no scripts/conceptome/lost.py" in refusal()


def test_other_packages_come_from_the_recorded_lock_or_not_at_all(run, monkeypatch, tmp_path):
    history = History("results")
    chain = history.chain(history.find("F3")[0])
    code = tmp_path / "code"
    (code / "scripts").mkdir(parents=True)
    (code / "requirements.lock").write_bytes((REPOSITORY / "requirements.lock").read_bytes())
    assert module._interpreter(history, chain, chain[-1], code, tmp_path)[0] == sys.executable
    listing = read_json(f"results/.provenance/environments/{chain[-1].record['environment']}.json")
    swapped = [{**item, "record": "0" * 64} if item["name"] == "numpy" else item for item in listing["distributions"]]
    listing = {**listing, "distributions": swapped}
    write_json(f"results/.provenance/environments/{digest(listing)}.json", listing)
    for path in run:
        edit(path, environment=digest(listing))
    history = History("results")
    chain = history.chain(history.find("F3")[0])
    (code / "scripts/setup_environment.sh").write_text('mkdir -p "$VENV/bin" && ln -s "$PYTHON" "$VENV/bin/python"\n')
    python, how = module._interpreter(history, chain, chain[-1], code, tmp_path)
    assert (python, how) == (str(tmp_path / "environment/bin/python"), "those of the recorded lock, newly installed")
    (code / "scripts/setup_environment.sh").write_text("echo no network >&2; exit 1\n")
    with pytest.raises(DataError, match="cannot be installed: no network"):
        module._interpreter(history, chain, chain[-1], code, tmp_path)
    (code / "requirements.lock").write_text("numpy==0\n")
    with pytest.raises(DataError, match=r"not the recorded ones \(numpy\), and requirements.lock"):
        module._interpreter(history, chain, chain[-1], code, tmp_path)


def test_raw_files_are_checked_and_do_not_leave_the_folder(run, tmp_path):
    history = History("results")
    (item,) = module._raw(history, history.chain(history.find("F3")[0]))
    work = tmp_path / "place/work"
    assert module._copy(history, item, work, tmp_path / "place")["how"] == "copied"
    assert (work / "raw.csv").read_text() == "1"
    outside = module.Artifact(item.name, "../../raw.csv", item.sha256, item.size, item.media_type)
    (tmp_path.parent.parent / "raw.csv").write_text("1")
    with pytest.raises(DataError, match="outside of the folder"):
        module._copy(history, outside, work, tmp_path / "place")
    Path("raw.csv").write_text("3")
    with pytest.raises(DataError, match="another file now"):
        module._copy(history, item, work, tmp_path / "place")
    Path("raw.csv").unlink()
    with pytest.raises(DataError, match="no longer there"):
        module._copy(history, item, work, tmp_path / "place")


def test_a_broken_chain_and_an_old_record_are_named(run):
    record = read_json(run[0])
    edit(run[0], outputs=[{**record["outputs"][0], "sha256": "0" * 64}])
    assert "results/data.csv: read by figure" in refusal()
    assert "no record says who wrote these bytes" in refusal()
    edit(run[1], lock=None)
    old = {key: value for key, value in record.items() if key not in ("machine", "lock")}
    write_json(run[0], old)
    assert "records of an earlier version do not say enough (lock, machine)" in refusal()


def test_the_folder_to_work_in_must_be_new(run, tmp_path):
    assert "is not empty" in refusal(directory=str(tmp_path))


@pytest.mark.parametrize(
    ("shift", "reasons", "verdict"),
    [
        (0.0, {}, "identical"),
        (TOLERANCE / 2, {"processor": "other"}, "within tolerance"),
        (TOLERANCE / 2, {}, "different"),
        (TOLERANCE * 2, {"processor": "other"}, "different"),
    ],
)
def test_a_difference_needs_a_reason_and_a_bound(run, tmp_path, shift, reasons, verdict):
    work = tmp_path / "again"
    (work / "results").mkdir(parents=True)
    Path("results/data.csv").write_text("auroc\n1.0\n0.5\n")
    (work / "results/data.csv").write_text(f"auroc\n1.0\n{0.5 + shift}\n")
    paths = (Path("results/data.csv"), work / "results/data.csv")
    item, made = (module.Artifact(**{**output(path), "path": "results/data.csv"}) for path in paths)
    found = module._judge(History("results"), item, made, work, reasons)
    assert found["verdict"] == verdict
    Path("results/data.csv").write_text("auroc\n1.0\n0.6\n")
    found = module._judge(History("results"), item, made, work, reasons)
    assert found["verdict"] == "altered"
    assert ("is as the record" in found["detail"]) == (shift == 0)
    assert module._judge(History("results"), item, None, work, reasons)["verdict"] == "altered"


def test_reasons_are_read_off_the_two_records(run):
    record = read_json(run[0])
    assert module._why(record, record) == {}
    other = {**record, "machine": {**record["machine"], "features": ["avx512f"], "cpu": "y"}}
    assert list(module._why(record, other)) == ["processor"]
    assert "x then, y now" in module._why(record, other)["processor"]
    assert list(module._why(record, {**record, "python": "CPython 3.12.1"})) == ["Python"]
    assert list(module._why(record, {**record, "kernels": {"build": None, "variant": "torch"}})) == ["kernels"]


TABLE = "evidence/simulated_small/ae_w4/none/recovery.parquet"


def reproduce(workspace, target: str) -> tuple[int, dict]:
    command = [sys.executable, "-m", "conceptome", "reproduce", str(workspace.path(target)), "--json", "--cores", "2"]
    variables = {**environment(), "PYTHONPATH": os.pathsep.join(str(REPOSITORY / it) for it in ("scripts", "kernels"))}
    done = subprocess.run(
        [*command, "--results", str(workspace.path())], cwd=REPOSITORY, env=variables, capture_output=True, text=True
    )
    assert done.stdout.startswith("{"), done.stderr
    return done.returncode, json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_recovery_table_comes_out_again_from_raw_bytes(finished):
    started = time.monotonic()
    code, report = reproduce(finished, TABLE)
    print(f"reproduced {report['jobs']} jobs in {time.monotonic() - started:.0f} s")
    assert {file["verdict"] for file in report["files"]} == {"identical"}, report["findings"]
    assert (code, report["clean"], report["findings"]) == (0, True, [])
    assert {file["rule"] for file in report["files"]} == {"prepare_simulated", "embed", "whiten", "learn", "measure"}
    assert len(report["files"]) > 30
    assert report["directory"] is None


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_exactly_the_altered_file_is_named(copy_of_finished):
    path = copy_of_finished.path("data/simulated_small/X.h5ad")
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    code, report = reproduce(copy_of_finished, "whitening/simulated_small/ae_w4/none/whitening.safetensors")
    assert code == 1
    (finding,) = report["findings"]
    assert finding.startswith("results/test/data/simulated_small/X.h5ad: altered")
    assert "is as the record" in finding
