"""Attacks and faults, each on a copy of one finished run: `conceptome verify` names the file and the difference.

Attackers put time stamps back; what is recorded in docs/provenance.md as not detected is shown to be so, too.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from contextlib import chdir, closing, contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_records import read_lines, write_record
from workspace import REPOSITORY, Workspace, environment

from conceptome.activations import Store, write_store
from conceptome.dictionaries import load
from conceptome.errors import DataError, SourceError
from conceptome.files import read_json, sha256_file, write_json
from conceptome.models.esm2_checkpoint import weight_files
from conceptome.provenance import ledger, mlflow, packages, signature, statement
from conceptome.provenance.folder import digest
from conceptome.provenance.verify import Verification

FIGURE = "studies/test/figures/{0}/{0}.svg"
LEARNED = "simulated_small/ae_w4/none/topk/seed0"


@pytest.fixture(autouse=True)
def _own_store(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    # Comparing 40,000 installed files with their RECORDs takes seconds: left to the tests that are about it.
    monkeypatch.setattr(packages, "altered", lambda *_, **__: [])


def clone(source: Path, target: Path) -> Path:
    subprocess.run(["cp", "-a", "--reflink=auto", str(source), str(target)], check=True)
    return target


def verify(folder: Path, **options) -> list:
    return Verification(folder, **options).run().findings


@pytest.fixture(scope="module")
def witnessed(finished, tmp_path_factory) -> Path:
    """The finished run, for those who only read it."""
    return clone(finished.folder / "results", tmp_path_factory.mktemp("witnessed") / "results") / "test"


@pytest.fixture
def results(witnessed, tmp_path) -> Path:
    """A copy for one attack."""
    return clone(witnessed.parent, tmp_path / "results") / "test"


@contextmanager
def stamps_kept(path: Path):
    """Put access and modification time back, as a careful attacker does."""
    status = path.stat()
    yield
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def flip(path: Path) -> None:
    """Turn one bit in the middle."""
    with stamps_kept(path), path.open("r+b") as handle:
        middle = path.stat().st_size // 2
        handle.seek(middle)
        byte = handle.read(1)[0]
        handle.seek(middle)
        handle.write(bytes([byte ^ 1]))


def record_of(results: Path, output: str) -> Path:
    """The final record of the job that wrote an output, by the end of its path."""
    for path in (results / ".provenance/records").glob("*.final.json"):
        if any(item["path"].endswith(output) for item in read_json(path)["outputs"]):
            return path
    raise AssertionError(f"nobody wrote {output}")


def add_run(results: Path, number: int) -> None:
    """Add the record of a later run that wrote nothing."""
    with chdir(results.parents[1]):
        name = f"2999010{number}T000000"
        write_record(Path("results/test"), f"{name}-learn-00000000", workflow=f"{name}-00000000")


def rewrite_ledger(results: Path, lines: list[dict]) -> None:
    """Write the chain anew over these entries, as somebody does who knows how it is made."""
    previous = ledger.GENESIS
    for number, entry in enumerate(lines):
        entry |= {"sequence": number, "previous": previous}
        entry.pop("digest")
        entry["digest"] = previous = digest(entry)
    (results / "ledger.jsonl").write_text("".join(json.dumps(entry, sort_keys=True) + "\n" for entry in lines))


def change_record(path: Path) -> tuple[str, str]:
    """Claim another parameter; gives the sha256 before and after."""
    before = sha256_file(path)
    with stamps_kept(path):
        record = read_json(path)
        write_json(path, {**record, "parameters": {**record["parameters"], "forged": True}})
    return before, sha256_file(path)


def change_record_and_ledger(results: Path, path: Path) -> tuple[str, str]:
    """Change a record and every entry of the ledger that depends on it."""
    before, after = change_record(path)
    lines = read_lines(results / "ledger.jsonl")
    for entry in lines:
        for item in entry["records"]:
            item["sha256"] = after if item["sha256"] == before else item["sha256"]
    rewrite_ledger(results, lines)
    return before, after


def sql(results: Path, statement: str, *values) -> int:
    with closing(sqlite3.connect(results / "mlflow.db")) as connection, connection:
        return connection.execute(statement, values).rowcount


def change_mlflow_too(results: Path, old: list[dict], before: str, after: str) -> None:
    """Bring MLflow's witness into line with a forged record and ledger."""
    assert sql(results, "UPDATE tags SET value = ? WHERE value = ?", after, before) == 1
    for was, now in zip(old, read_lines(results / "ledger.jsonl"), strict=True):
        assert sql(results, "UPDATE tags SET value = ? WHERE value = ?", now["digest"], was["digest"]) > 0


# ---- files ----


def answer(results: Path, *options: str) -> tuple[int, dict]:
    command = [sys.executable, "-m", "conceptome", "verify", "--json", "--results", str(results), *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    return done.returncode, json.loads(done.stdout)


def test_an_untouched_run_is_clean(results):
    code, found = answer(results)
    assert (code, found["clean"], found["findings"]) == (0, True, [])
    assert found["files"] > 200
    assert found["packages"] > 100
    assert "metrics compared" in found["mlflow"]


@pytest.mark.slow
def test_an_untouched_run_is_clean_when_everything_is_read_again(results):
    assert answer(results)[0] == 0
    code, found = answer(results, "--cold")
    assert (code, found["findings"], found["trusted"]) == (0, [], 0)
    assert found["hashed_bytes"] == found["bytes"] > 50_000_000


@pytest.mark.parametrize(
    "name",
    [
        "sources/pbmc_stim.RData",
        "activations/yeast/esm2/shard-00000.npy",
        f"codes/{LEARNED}/codes.parquet",
        FIGURE.format("probes"),
    ],
)
def test_one_bit_is_found_though_the_time_stamps_were_put_back(results, name):
    path = results / name
    assert verify(results) == []  # the cache now knows this copy's inodes
    before = sha256_file(path)
    flip(path)
    (finding,) = verify(results)
    assert (finding.kind, finding.path) == ("file", str(path))
    assert (finding.recorded, finding.found) == (before, sha256_file(path))
    size = f"{path.stat().st_size:,}"
    assert finding.message.startswith(f"altered: sha256 {finding.found[:12]}… ({size} bytes), but ")
    assert finding.message.endswith(f" recorded {before[:12]}… ({size} bytes)")


def test_a_figure_of_another_place_is_recognised(results):
    path, other = results / FIGURE.format("labels"), results / FIGURE.format("probes")
    shutil.copy2(other, path)
    (finding,) = verify(results)
    assert finding.path == str(path)
    assert f"these are the bytes of results/test/{FIGURE.format('probes')} as " in finding.message


def test_added_missing_and_linked_files_are_named(results, tmp_path):
    outside = tmp_path / "outside.svg"
    shutil.move(results / FIGURE.format("labels"), outside)
    (results / FIGURE.format("labels")).symlink_to(outside)
    (results / FIGURE.format("probes")).unlink()
    (results / "evidence/new.parquet").write_bytes(b"planted")
    found = {(item.kind, item.path): item.message for item in verify(results)}
    assert found == {
        ("link", str(results / FIGURE.format("labels"))): f"a symbolic link to {outside}, outside of {results}",
        ("file", str(results / "evidence/new.parquet")): "no job wrote it",
        ("file", str(results / FIGURE.format("probes"))): found["file", str(results / FIGURE.format("probes"))],
    }
    assert found["file", str(results / FIGURE.format("probes"))].startswith("missing, though ")


def test_another_published_file_in_the_catalogue_is_found(results, tmp_path, monkeypatch):
    (tmp_path / "checkout/config").mkdir(parents=True)
    (tmp_path / "checkout/Snakefile").touch()
    catalogue = tmp_path / "checkout/config/sources.yaml"
    name, recorded = "pbmc_stim.RData", sha256_file(results / "sources/pbmc_stim.RData")
    catalogue.write_text((REPOSITORY / "config/sources.yaml").read_text().replace(recorded, "f" * 64))
    monkeypatch.chdir(tmp_path / "checkout")
    (finding,) = verify(results)
    assert (finding.kind, finding.path) == ("source", str(results / "sources" / name))
    assert finding.message == f"retrieved as sha256 {recorded[:12]}…, but {catalogue} says {'f' * 12}…"


# ---- records, ledger, MLflow, signature ----


def test_a_deleted_record_is_named(results):
    path = record_of(results, FIGURE.format("labels"))
    path.unlink()
    found = {item.path: item.message for item in verify(results)}
    assert found[str(path)] == f"missing, though {results / 'ledger.jsonl'}, line 1 names it"
    assert found[str(results / FIGURE.format("labels"))] == "no job wrote it"


def test_an_edited_record_is_named(results):
    path = record_of(results, FIGURE.format("labels"))
    before, after = change_record(path)
    (finding,) = [item for item in verify(results) if item.kind == "record"]
    assert (finding.path, finding.recorded, finding.found) == (str(path), before, after)
    assert finding.message == (
        f"altered: sha256 {after[:12]}…, but {results / 'ledger.jsonl'}, line 1 says {before[:12]}…"
    )


def test_a_record_that_is_no_json_any_more_is_named(results):
    path = record_of(results, FIGURE.format("labels"))
    path.write_text("{")
    answer = Verification(results).run()
    assert [item.path for item in answer.findings if item.kind == "record"] == [str(path)]
    assert "an altered record cannot be read" in answer.notes[0]


def test_a_record_edited_together_with_the_ledger_is_found_by_mlflow(results):
    path = record_of(results, FIGURE.format("labels"))
    before, after = change_record_and_ledger(results, path)
    assert ledger.verify(results) == []
    found = {item.path: item for item in verify(results)}
    assert found.keys() == {str(path), str(results / "ledger.jsonl")}
    assert found[str(path)].message == f"the ledger says sha256 {after[:12]}…, but MLflow holds {before[:12]}…"
    assert "line 1: digest " in found[str(results / "ledger.jsonl")].message


def test_when_mlflow_was_forged_too_only_the_signature_tells(results, tmp_path):
    key = tmp_path / "key"
    signature.new_key(key)
    public = tmp_path / "key.pub"
    statement.write(results, key)
    assert verify(results, public_key=public) == []
    old = read_lines(results / "ledger.jsonl")
    before, after = change_record_and_ledger(results, record_of(results, FIGURE.format("labels")))
    change_mlflow_too(results, old, before, after)
    (finding,) = verify(results, public_key=public)
    assert (finding.kind, finding.path) == ("signature", str(results / "statement.dsse.json"))
    assert finding.message == "ledger entry 1 is not the one that was signed: the chain was written anew"
    # Signed anew with the attacker's own key: not with the one that the auditor has.
    signature.new_key(tmp_path / "other")
    statement.write(results, tmp_path / "other")
    (finding,) = verify(results, public_key=public)
    assert f"not signed with {public}" in finding.message
    (results / "statement.dsse.json").unlink()
    (finding,) = verify(results, public_key=public)
    assert finding.message.startswith("no statement")
    # As docs/provenance.md says: without a key that the auditor has, whoever rewrites everything is not detected.
    assert verify(results) == []


def test_an_edited_statement_does_not_verify(results, tmp_path):
    signature.new_key(tmp_path / "key")
    path = statement.write(results, tmp_path / "key")
    content = read_json(path)
    write_json(path, {**content, "payload": content["payload"][::-1]})
    (finding,) = verify(results, public_key=tmp_path / "key.pub")
    assert (finding.kind, finding.path) == ("signature", str(path))
    assert "altered" in finding.message


@pytest.fixture(scope="module")
def three(witnessed, tmp_path_factory) -> Path:
    """A ledger of three entries."""
    folder = clone(witnessed.parent, tmp_path_factory.mktemp("three") / "results") / "test"
    for number in (1, 2):
        add_run(folder, number)
        mlflow.ingest(folder)
    return folder


@pytest.fixture
def three_entries(three, tmp_path) -> Path:
    return clone(three.parent, tmp_path / "results") / "test"


@pytest.mark.parametrize(
    ("kept", "line", "kind"),
    [
        ((0, 2), "line 2: sequence 2 instead of 1: entries removed or reordered", "removed"),
        ((0, 2, 1), "line 2: sequence 2 instead of 1: entries removed or reordered", "reordered"),
        ((0, 1), "no entry of workflow 29990102T000000-00000000, though MLflow holds ", "cut off"),
    ],
)
def test_a_ledger_with_entries_removed_reordered_or_cut_off(three_entries, kept, line, kind):
    path = three_entries / "ledger.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    with stamps_kept(path):
        path.write_text("".join(lines[position] for position in kept))
    if kind == "cut off":  # with the records that it named, so that nothing else tells
        for record in (three_entries / ".provenance/records").glob("29990102*"):
            record.unlink()
        assert ledger.verify(three_entries) == []
    assert any(item.path == str(path) and item.message.startswith(line) for item in verify(three_entries))


def test_a_metric_edited_in_mlflow_is_named(results):
    query = "SELECT run_uuid, value FROM latest_metrics WHERE key = 'cost/cpu_seconds' ORDER BY run_uuid LIMIT 1"
    with closing(sqlite3.connect(results / "mlflow.db")) as connection:
        run, value = connection.execute(query).fetchone()
    assert sql(results, "UPDATE latest_metrics SET value = 0.5 WHERE key = 'cost/cpu_seconds' AND run_uuid = ?", run)
    (finding,) = verify(results)
    assert (finding.kind, finding.path) == ("mlflow", str(results / "mlflow.db"))
    assert finding.message.startswith("metric cost/cpu_seconds of job ")
    assert finding.message.endswith(f" is 0.5, but record and results say {value}")


def test_a_missing_or_broken_database_is_a_finding(results):
    path = results / "mlflow.db"
    path.write_bytes(b"no database")
    (finding,) = verify(results)
    assert (finding.kind, finding.path) == ("mlflow", str(path))
    assert "file is not a database" in finding.message
    path.unlink()
    (finding,) = verify(results)
    assert f"{path}: missing" in finding.message


def test_a_clock_that_was_set_back_is_named(results, monkeypatch):
    past = time.time() - 400 * 86400
    add_run(results, 1)
    with monkeypatch.context() as patch:
        patch.setattr("time.time", lambda: past)
        ledger.append(results)
    mlflow.ingest(results)
    (finding,) = verify(results)
    assert (finding.kind, finding.path) == ("clock", str(results / "ledger.jsonl"))
    assert finding.message == "line 2: written before the line above it: the clock was set back"


# ---- code and packages ----


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the repository's code."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("scripts", "kernels"):
        clone(REPOSITORY / name, folder / name)
    return folder


def test_code_edited_after_the_run_is_named_module_by_module(checkout, witnessed, monkeypatch):
    monkeypatch.setattr("conceptome.provenance.closure.repository", lambda: checkout)
    monkeypatch.setattr("conceptome.provenance.verify.repository", lambda: checkout)
    module = checkout / "scripts/conceptome/measures/probes.py"
    source = module.read_text()
    with stamps_kept(module):
        module.write_text(f"# a comment changes nothing\n{source}")
    assert verify(witnessed) == []
    with stamps_kept(module):
        module.write_text(f"{source}\nFORGED = 1\n")
    (finding,) = verify(witnessed)
    assert (finding.kind, finding.path) == ("code", str(module))
    assert finding.message.endswith(" were made by a version that differs from the code here")
    assert "measure)" in finding.message
    module.unlink()
    (finding,) = verify(witnessed)
    assert finding.message.endswith(" were made by a version that is not here")


def test_a_package_swapped_for_another_of_the_same_version_is_named(witnessed, tmp_path, monkeypatch):
    real = packages.installed()["numpy"]
    fake = tmp_path / "site-packages" / real.path.name
    fake.mkdir(parents=True)
    shutil.copy2(real.path / "METADATA", fake)
    (fake / "RECORD").write_text("numpy/__init__.py,sha256=UXx0N0vzOVYlsT_rdJAGZMeTzo5fBDYKSjvs-Vs7y-k,14\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site-packages"))
    (finding,) = verify(witnessed)
    assert (finding.kind, finding.path) == ("package", str(fake / "RECORD"))
    assert finding.message.startswith(f"numpy {real.version} is another build than the one that made results")
    assert (finding.recorded, finding.found) == (real.record, sha256_file(fake / "RECORD"))


# ---- faults ----

TARGET = "results/test/whitening/simulated_small/ae_w4/none/card.json"


def command(folder: Path, target: str = TARGET) -> list[str]:
    return [
        sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "Snakefile"), "--directory", str(folder),
        "--profile", str(REPOSITORY / "config/profiles/default"), "--configfile", str(REPOSITORY / "config/test.yaml"),
        "--cores", "2", target,
    ]  # fmt: skip


@pytest.fixture
def workspace(finished, tmp_path) -> Workspace:
    """A copy in which one small job has to be done again."""
    folder = clone(finished.folder, tmp_path / "run")
    (folder / TARGET).unlink()
    return Workspace(folder)


def started_job(workspace: Workspace, known: set[Path]) -> dict:
    """Wait until a job has written its start record."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for path in set(workspace.path(".provenance/records").glob("*-whiten-*.start.json")) - known:
            return read_json(path)
        time.sleep(0.005)
    raise AssertionError("no job started")


def starts(workspace: Workspace) -> set[Path]:
    return set(workspace.path(".provenance/records").glob("*.start.json"))


def test_after_a_killed_job_the_next_run_completes_and_is_clean(workspace):
    known = starts(workspace)
    running = subprocess.Popen(
        command(workspace.folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment()
    )
    job = started_job(workspace, known)
    os.kill(job["process"]["pid"], signal.SIGKILL)
    assert running.wait(timeout=300) != 0
    assert read_lines(workspace.path("ledger.jsonl"))[-1]["crashed"][0]["job"] == job["job"]
    assert str(workspace.folder / TARGET) in {item.path for item in verify(workspace.path())}
    workspace.snakemake(TARGET)
    assert verify(workspace.path()) == []


@pytest.mark.slow
def test_after_a_killed_snakemake_the_next_run_completes_and_is_clean(workspace):
    known = starts(workspace)
    running = subprocess.Popen(
        command(workspace.folder),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(),
        start_new_session=True,
    )
    job = started_job(workspace, known)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait(timeout=60)
    # The job was killed with Snakemake; a process with much memory takes a moment to die.
    deadline = time.monotonic() + 60
    while ledger.is_running(job) and time.monotonic() < deadline:
        time.sleep(0.05)
    record = workspace.path(f".provenance/records/{job['job']}.start.json")
    message = f"job {job['job']} started and never ended; `conceptome mlflow ingest` notes it"
    assert message in {item.message for item in verify(workspace.path()) if item.path == str(record)}
    subprocess.run([*command(workspace.folder), "--unlock"], check=True, capture_output=True, env=environment())
    workspace.snakemake(TARGET)
    assert verify(workspace.path()) == []


def test_two_workflows_at_once_leave_one_clean_run(workspace):
    both = [
        subprocess.Popen(
            command(workspace.folder), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment()
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=300)[0] for process in both]
    codes = sorted(process.returncode for process in both)
    # The second is refused by Snakemake's lock, or finds nothing left to do.
    assert codes in ([0, 0], [0, 1]), said
    assert codes == [0, 0] or any("cannot be locked" in text for text in said)
    assert verify(workspace.path()) == []


@pytest.mark.parametrize("moment", ["ledger.jsonl", "mlflow.db"])
def test_after_a_killed_ingest_the_next_one_completes(results, moment):
    add_run(results, 1)
    before = (results / moment).stat().st_mtime_ns
    process = subprocess.Popen(
        [sys.executable, "-m", "conceptome", "mlflow", "ingest", "--results", str(results)], stdout=subprocess.DEVNULL
    )
    while process.poll() is None and (results / moment).stat().st_mtime_ns == before:
        time.sleep(0.001)
    process.kill()
    process.wait()
    mlflow.ingest(results)
    assert verify(results) == []


def test_a_full_disk_while_a_record_is_written(tmp_path):
    """A file system of a few pages, in a mount namespace of its own: the job fails, and the next one is clean."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("no mount namespace can be made here (unshare -rm is refused)")
    script = f"""
        import os, sys
        from pathlib import Path
        sys.path[:0] = [{str(REPOSITORY / "tests/unit")!r}, {str(REPOSITORY / "scripts")!r}]
        from conceptome.provenance import packages
        packages.installed = dict
        from fake_job import fake_job
        from conceptome.provenance import ledger
        from conceptome.provenance.record import job
        from conceptome.provenance.verify import Verification
        root = Path(sys.argv[1])
        def work(fill):
            try:
                with job(fake_job(root, outputs={{"made": str(root / "results/data/out.txt")}})):
                    (root / "results/data").mkdir(exist_ok=True)
                    (root / "results/data/out.txt").write_text("made")
                    if fill:
                        with open(root / "filler", "wb", buffering=0) as handle:
                            try:
                                while handle.write(bytes(4096)):
                                    pass
                            except OSError:
                                pass
            except SystemExit as stopped:
                print("exit", stopped.code)
        def check():
            ledger.append(root / "results")
            for item in Verification(root / "results").run().findings:
                if item.kind not in ("package", "mlflow"):
                    print(item.path, "|", item.message)
        work(True)
        (root / "filler").unlink()
        check()
        work(False)
        print("again")
        check()
    """
    (tmp_path / "script.py").write_text(textwrap.dedent(script))
    place = tmp_path / "small"
    place.mkdir()
    inside = f"mount -t tmpfs -o size=400k tmpfs {place} && {sys.executable} {tmp_path}/script.py {place}"
    done = subprocess.run(["unshare", "-rm", "bash", "-c", inside], text=True, capture_output=True, cwd=REPOSITORY)
    assert "disk full while writing" in done.stderr, done.stderr
    assert done.stdout.splitlines() == ["exit 1", f"{place}/results/data/out.txt | no job wrote it", "again"]


@pytest.mark.slow
def test_a_path_with_spaces_quotes_and_unicode(finished, tmp_path):
    folder = tmp_path / """it's an "odd" näme 数据 100% [x]"""
    workspace = Workspace(folder)
    folder.mkdir()
    workspace.snakemake(TARGET)
    assert verify(workspace.path()) == []
    planted = workspace.path("data/simulated_small/new\nline 'quoted' ü.csv")
    planted.write_text("1")
    path = workspace.path("activations/simulated_small/ae_w4/shard-00000.npy")
    flip(path)
    found = {item.path: item.message for item in verify(workspace.path())}
    assert found.keys() == {str(planted), str(path)}


# ---- crafted folders ----


class Payload:
    """A pickle of this creates the file when it is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def pickled_array(path: Path, payload: Payload) -> None:
    np.save(path, np.array([[payload]], dtype=object), allow_pickle=True)


def pickled(path: Path, payload: Payload) -> None:
    path.write_bytes(pickle.dumps(payload))


@pytest.fixture
def store(tmp_path) -> Path:
    obs = pd.DataFrame({"control": [True] * 4}, index=pd.Index(list("abcd"), name="sample_id"))
    write_store(tmp_path / "store", [np.ones((4, 3), np.float32)], obs, {}, rows_per_shard=4)
    return tmp_path / "store"


@pytest.mark.parametrize("craft", [pickled_array, pickled])
def test_a_pickle_in_an_activation_folder_is_refused_and_never_executed(store, tmp_path, craft):
    craft(store / "shard-00000.npy", Payload(tmp_path / "executed"))
    with pytest.raises(DataError, match=r"shard-00000\.npy cannot be read"):
        Store(store).read()
    assert not (tmp_path / "executed").exists()
    np.load(store / "shard-00000.npy", allow_pickle=True)
    assert (tmp_path / "executed").exists()  # it would have been


def test_a_pickle_in_a_dictionary_is_refused_and_never_executed(tmp_path):
    folder = tmp_path / "dictionary"
    folder.mkdir()
    write_json(folder / "card.json", {"schema_version": 1, "method": "topk"})
    pickled(folder / "dictionary.safetensors", Payload(tmp_path / "executed"))
    with pytest.raises(DataError, match=r"dictionary\.safetensors cannot be read"):
        load(folder)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["../shard-00000.npy", "/etc/passwd", "deeper/shard.npy"])
def test_a_card_that_names_files_elsewhere_is_refused(store, name):
    card = read_json(store / "card.json")
    card["shards"][0]["file"] = name
    write_json(store / "card.json", card)
    with pytest.raises(DataError, match=r"card\.json names the shard .* refused"):
        Store(store)


def test_an_index_of_weights_that_names_files_elsewhere_is_refused(tmp_path):
    write_json(tmp_path / "model.safetensors.index.json", {"weight_map": {"a": "../../weights.safetensors"}})
    with pytest.raises(SourceError, match=r"names '../../weights\.safetensors', which is no name of a"):
        weight_files(tmp_path)
