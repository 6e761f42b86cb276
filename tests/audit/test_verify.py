"""`conceptome verify` on small folders: what counts as recorded, what may lie there, the cache, packages."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_records import output, write_record

from conceptome.__main__ import main
from conceptome.errors import DataError
from conceptome.files import read_json, write_json
from conceptome.provenance import ledger, packages
from conceptome.provenance.folder import CACHE_FROM_BYTES, SETTLED_NS, ProvenanceFolder, digest
from conceptome.provenance.verify import EXEMPT, Verification, exempt


def settled() -> None:
    """Wait until a file's time stamps tell of every later change."""
    time.sleep(2 * SETTLED_NS / 1e9)


def job(results: Path, name: str, outputs: dict[str, bytes], inputs: tuple[str, ...] = (), **values) -> Path:
    """Write files below the results folder and the record of a job that did so, and close the ledger over it."""
    for path, content in outputs.items():
        (results / path).parent.mkdir(parents=True, exist_ok=True)
        (results / path).write_bytes(content)
    number = len(list((results / ".provenance/records").glob("*.final.json")))
    return write_record(
        results,
        name,
        inputs=[output(results / path if not os.path.isabs(path) else Path(path)) for path in inputs],
        outputs=[output(results / path) for path in outputs],
        started=1_700_000_000.0 + 10 * number,
        ended=1_700_000_009.0 + 10 * number,
        **{"environment": environment(results), "code": {"digest": "c" * 64, "files": {}}, **values},
    )


def environment(results: Path) -> str:
    content = {"distributions": [], "python": "CPython"}
    write_json(results / f".provenance/environments/{digest(content)}.json", content)
    return digest(content)


@pytest.fixture
def results(tmp_path, monkeypatch):
    """One job's raw input outside, its output, and a second job that read that."""
    monkeypatch.setattr(packages, "installed", dict)
    monkeypatch.setattr(Verification, "_tracking", lambda self: iter(()))
    folder = tmp_path / "results"
    (tmp_path / "own data.csv").write_bytes(b"raw")
    job(folder, "job1", {"data/a.bin": b"a" * CACHE_FROM_BYTES}, (str(tmp_path / "own data.csv"),), rule="prepare")
    job(folder, "job2", {"codes/b.bin": b"b"}, ("data/a.bin",))
    ledger.append(folder)
    settled()
    return folder


def found(results: Path, **options) -> dict[str, str]:
    return {item.path: item.message for item in Verification(results, **options).run().findings}


def test_a_clean_folder_and_what_was_trusted(results):
    first, second = Verification(results).run(), Verification(results).run()
    assert first.findings == second.findings == []
    assert first.counts["files"] == 3
    assert (first.counts["trusted"], second.counts["trusted"]) == (0, 1)
    assert first.counts["hashed_bytes"] == first.counts["bytes"] == CACHE_FROM_BYTES + 4
    assert second.counts["hashed_bytes"] == 4
    assert Verification(results, cold=True).run().counts["trusted"] == 0


def test_a_users_own_input_that_changed_or_went_is_found(results, tmp_path):
    own = tmp_path / "own data.csv"
    own.write_bytes(b"war")
    assert found(results)[str(own)].endswith(
        f"(3 bytes), but job1 read {hashlib.sha256(b'raw').hexdigest()[:12]}… (3 bytes)"
    )
    own.unlink()
    assert found(results)[str(own)].startswith("missing, though job1 read it")


def test_a_forged_cache_misleads_until_cold(results):
    path = results / "data/a.bin"
    path.write_bytes(b"x" * CACHE_FROM_BYTES)
    settled()
    assert str(path) in found(results)
    entry, _ = ProvenanceFolder(results).cached_sha256(path)
    entry.write_text(hashlib.sha256(b"a" * CACHE_FROM_BYTES).hexdigest())
    assert found(results) == {}  # docs/provenance.md: what --cold is for
    cold = found(results, cold=True)
    assert cold.keys() == {str(path), str(entry)}
    assert "the cache was altered" in cold[str(entry)]


def test_what_a_later_run_no_longer_writes_may_be_gone_or_stay(results):
    job(results, "job3", {"many/0": b"0", "many/1": b"1"}, rule="embed")
    job(results, "job4", {"many/0": b"0"}, rule="embed")
    ledger.append(results)
    assert found(results) == {}
    (results / "many/1").unlink()
    assert found(results) == {}
    (results / "many/0").unlink()
    assert found(results).keys() == {str(results / "many/0")}


def test_a_result_made_from_what_was_replaced_since_is_found(results):
    job(results, "job3", {"data/a.bin": b"other"}, rule="prepare")
    ledger.append(results)
    (message,) = found(results).values()
    assert message.startswith("job2 made its results from ")
    assert "but job3 wrote " in message


def test_the_same_bytes_made_again_later_are_no_difference(results):
    job(
        results,
        "job3",
        {"data/a.bin": b"a" * CACHE_FROM_BYTES},
        (str(results.parent / "own data.csv"),),
        rule="prepare",
    )
    ledger.append(results)
    assert found(results) == {}


def test_an_input_that_changed_under_the_job_is_found(results):
    path = job(results, "job3", {"c": b"c"}, ("data/a.bin",), inputs_changed=[str(results / "data/a.bin")])
    ledger.append(results)
    assert found(results) == {str(results / "data/a.bin"): "changed while job3 read it: run again"}
    assert path.exists()


def test_times_that_cannot_be_are_found(results):
    early = job(results, "job3", {"c": b"c"}, ("codes/b.bin",))
    write_json(early, {**read_json(early), "started": 1.0, "ended": 0.0})
    ledger.append(results)
    kinds = [(item.kind, item.path) for item in Verification(results).run().findings]
    assert kinds == [("clock", str(early))] * 2


def test_the_order_of_the_ledger_holds_when_the_clock_was_set_back(results):
    """A later run with an earlier name: what lies there now is its work."""
    job(results, "job0", {"codes/b.bin": b"newer"}, ("data/a.bin",))
    ledger.append(results)
    assert found(results) == {}


def test_altered_papers_are_named(results):
    (path,) = (results / ".provenance/environments").glob("*.json")
    write_json(path, {"distributions": [], "python": "PyPy"})
    (results / ".provenance/diffs").mkdir()
    diff = results / f".provenance/diffs/{'0' * 64}.diff"
    diff.write_text("forged")
    messages = found(results)
    assert messages[str(path)].startswith("altered: its digest is ")
    assert messages[str(diff)].startswith("altered: its sha256 is ")


def test_records_of_version_1_get_a_clear_line(results):
    job(results, "job3", {"c": b"c"}, code={"digest": "c" * 64, "files": ["scripts/learn.py"]})
    ledger.append(results)
    (message,) = found(results).values()
    assert message == "records of version 1 do not tell the code of 1 jobs module by module: run again"


def test_links_and_folders_inside(results, tmp_path):
    (results / "inside").symlink_to(results / "codes")
    assert found(results) == {}
    (results / "outside").symlink_to(tmp_path)
    (results / "nowhere").symlink_to(tmp_path / "nothing")
    messages = found(results)
    assert messages[str(results / "outside")] == f"a symbolic link to {tmp_path}, outside of {results}"
    assert messages[str(results / "nowhere")].startswith("a symbolic link to ")
    (results / "test/.provenance/records").mkdir(parents=True)
    (results / "test/anything").touch()
    answer = Verification(results).run()
    assert str(results / "test/anything") not in {item.path for item in answer.findings}
    assert answer.notes == [f"{results / 'test'}: another results folder; verify it by itself"]


def test_only_the_listed_places_need_no_record():
    listed = ("logs/learn/a.log", ".provenance/records/x", "mlflow.db", "mlflow-artifacts/1/f.svg", "ledger.jsonl")
    assert all(exempt(path) for path in (*listed, "data/.snakemake_timestamp", "codes/.codes.12.partial.parquet"))
    not_listed = (
        "data/x",
        "logs.csv",
        "deeper/logs/x",
        "deeper/ledger.jsonl",
        "codes/x.partial.parquet",
        "a/mlflow.db",
    )
    assert not any(exempt(path) for path in not_listed)
    assert all(EXEMPT.values())


def test_no_records_is_one_line(tmp_path):
    with pytest.raises(DataError, match="no records of a run here; name the folder with --results"):
        Verification(tmp_path).run()
    command = [sys.executable, "-m", "conceptome", "verify", "--results", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1


def test_the_answer_as_json_and_its_exit_code(results, monkeypatch, capsys):
    command = ["verify", "--json", "--results", str(results)]
    assert main(command) == 0
    clean = json.loads(capsys.readouterr().out)
    assert (clean["command"], clean["clean"], clean["findings"], clean["files"]) == ("verify", True, [], 3)
    monkeypatch.undo()  # now with the question to MLflow: there is no database, which is a finding
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(packages, "installed", dict)
    os.mkfifo(results / "pipe")
    assert main(command) == 1
    answer = json.loads(capsys.readouterr().out)
    pipe = {"kind": "file", "path": str(results / "pipe"), "message": "no job wrote it; it is no plain file"}
    assert answer["findings"][0] == {**pipe, "recorded": None, "found": None}
    assert (answer["clean"], answer["mlflow"]) == (False, "not checked")
    assert [item["path"] for item in answer["findings"]] == [pipe["path"], str(results / "mlflow.db")]


def test_readable_output_keeps_paths_whole(results, capsys):
    name = "a [bold]very long name with spaces, 'quotes' and ü " + "x" * 80
    (results / name).touch()
    assert main(["verify", "--results", str(results)]) == 1
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "1 altered, or not as recorded:"
    assert shown[1] == f"  file      {results / name}: no job wrote it"
    assert shown[-1] == f"{results}: not clean: 1 findings"


# ---- packages ----


@pytest.fixture
def distribution(tmp_path):
    site = tmp_path / "site-packages"
    (site / "small-1.0.dist-info").mkdir(parents=True)
    (site / "small.py").write_text("x = 1\n")
    value = base64.urlsafe_b64encode(hashlib.sha256(b"x = 1\n").digest()).decode().rstrip("=")
    record = f'small.py,sha256={value},6\n"small-1.0.dist-info/RECORD",,\n'
    (site / "small-1.0.dist-info/RECORD").write_text(record)
    return packages.Distribution("small", "1.0", site / "small-1.0.dist-info")


def test_a_file_of_a_package_is_compared_with_its_record(distribution, tmp_path):
    folder = ProvenanceFolder(tmp_path / "results")
    path = distribution.path.parent / "small.py"
    assert packages.altered(distribution, folder) == []
    status = path.stat()
    path.write_text("x = 2\n")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    (finding,) = packages.altered(distribution, folder)
    assert (finding.kind, finding.path) == ("package", str(path))
    path.unlink()
    (finding,) = packages.altered(distribution, folder)
    assert finding.message == "missing, though small 1.0 installed it"


def test_packages_differ_by_presence_version_and_build(distribution):
    here = {"small": distribution}
    same = {"name": "Small", "version": "1.0", "record": distribution.record}
    assert list(packages.differences([same], here)) == []
    others = [{**same, "name": "gone"}, {**same, "version": "0.9"}, {**same, "record": "0" * 64}]
    messages = [finding.message for finding in packages.differences(others, here)]
    assert messages[0] == "gone 1.0 made results, and is not installed here"
    assert messages[1] == "small 0.9 made results, and 1.0 is installed here"
    assert messages[2].startswith("small 1.0 is another build than the one that made results")


@pytest.mark.slow
def test_half_a_gigabyte_is_read_once_and_then_trusted(results):
    path = results / "activations/big.npy"
    path.parent.mkdir()
    block = os.urandom(1 << 20)
    with path.open("wb") as handle:
        for _ in range(512):
            handle.write(block)
    settled()
    write_record(
        results,
        "job3",
        outputs=[output(path)],
        environment=environment(results),
        code={"digest": "c" * 64, "files": {}},
    )
    ledger.append(results)
    cold, warm = Verification(results, cold=True).run(), Verification(results).run()
    assert cold.findings == warm.findings == []
    assert cold.counts["hashed_bytes"] == cold.counts["bytes"] == (512 << 20) + CACHE_FROM_BYTES + 4
    warm = Verification(results).run()
    assert warm.counts["hashed_bytes"] == 4
