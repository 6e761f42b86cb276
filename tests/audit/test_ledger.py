"""The ledger: every alteration that it promises to notice, one by one."""

import errno
import json
import os
import platform
import subprocess
from pathlib import Path

import pytest
from fake_records import read_lines, write_record

from conceptome.errors import DataError
from conceptome.files import read_json, write_json
from conceptome.provenance import ledger
from conceptome.provenance.folder import digest
from conceptome.provenance.record import process_start


@pytest.fixture
def results(tmp_path):
    """Three workflow runs of two jobs each, each with its ledger entry."""
    folder = tmp_path / "results"
    for run in range(3):
        for number in range(2):
            write_record(folder, f"job{run}{number}", workflow=f"w{run}")
        assert len(ledger.append(folder)) == 1
    return folder


def said(folder) -> list[str]:
    return [str(finding) for finding in ledger.verify(folder)]


def rewrite(folder, lines):
    (folder / "ledger.jsonl").write_text("".join(json.dumps(line, sort_keys=True) + "\n" for line in lines))


def test_an_untouched_ledger_is_clean_and_names_every_record(results):
    assert ledger.verify(results) == []
    lines = read_lines(results / "ledger.jsonl")
    assert [line["workflow"] for line in lines] == ["w0", "w1", "w2"]
    assert [item["job"] for line in lines for item in line["records"]] == [
        f"job{r}{n}" for r in range(3) for n in range(2)
    ]
    assert lines[0]["previous"] == ledger.GENESIS
    assert ledger.head(results) == lines[-1]["digest"]


def test_appending_again_adds_nothing(results):
    before = (results / "ledger.jsonl").read_bytes()
    assert ledger.append(results) == []
    assert (results / "ledger.jsonl").read_bytes() == before


def test_new_entries_leave_the_old_bytes_alone(results):
    before = (results / "ledger.jsonl").read_bytes()
    write_record(results, "job90", workflow="w9")
    write_json(results / ".provenance/workflows/w9.json", {"id": "w9", "configuration": "config/offline.yaml"})
    ledger.append(results)
    assert (results / "ledger.jsonl").read_bytes().startswith(before)
    assert read_lines(results / "ledger.jsonl")[-1]["facts"]["configuration"] == "config/offline.yaml"


def test_an_edited_record_is_found(results):
    path = results / ".provenance/records/job10.final.json"
    write_json(path, {**read_json(path), "cpu_seconds": 1.0})
    (finding,) = ledger.verify(results)
    assert (finding.kind, finding.path) == ("record", str(path))
    assert finding.message.startswith("altered: sha256 ")
    assert f"{results / 'ledger.jsonl'}, line 2 says {finding.recorded[:12]}…" in finding.message


def test_a_deleted_record_is_found(results):
    (results / ".provenance/records/job21.final.json").unlink()
    assert any("job21.final.json: missing" in line for line in said(results))


def test_an_entry_removed_from_the_middle_is_found(results):
    lines = read_lines(results / "ledger.jsonl")
    rewrite(results, [lines[0], lines[2]])
    assert any("line 2: does not follow" in line for line in said(results))


def test_a_reordered_ledger_is_found(results):
    lines = read_lines(results / "ledger.jsonl")
    rewrite(results, [lines[1], lines[0], lines[2]])
    assert any("line 1: sequence 1 instead of 0" in line for line in said(results))


def test_an_edited_entry_is_found_even_with_its_digest_made_anew(results):
    lines = read_lines(results / "ledger.jsonl")
    lines[1]["workflow"] = "forged"
    rewrite(results, lines)
    assert any("line 2: the entry was edited" in line for line in said(results))
    lines[1].pop("digest")
    lines[1]["digest"] = digest(lines[1])
    rewrite(results, lines)
    assert any("line 3: does not follow" in line for line in said(results))


def test_a_cut_end_shows_by_records_that_no_entry_names(results):
    rewrite(results, read_lines(results / "ledger.jsonl")[:2])
    assert any("job20.final.json: no ledger entry names this record" in line for line in said(results))


def test_a_broken_line_is_named(results):
    with (results / "ledger.jsonl").open("a") as handle:
        handle.write('{"sequence": 3, "prev')
    assert "line 4: not a JSON entry" in said(results)[0]
    with pytest.raises(DataError, match="line 4"):
        ledger.append(results)


def test_a_killed_job_is_named_once_and_a_running_one_waits(results):
    write_record(results, "killed", workflow="w3", final=False)
    path = write_record(results, "running", workflow="w3", final=False)
    live = {"host": {"name": platform.node()}, "process": {"pid": os.getpid(), "started": process_start(os.getpid())}}
    write_json(path, {**read_json(path), **live})
    (entry,) = ledger.append(results)
    assert [item["job"] for item in entry["crashed"]] == ["killed"]
    assert ledger.append(results) == []
    assert ledger.verify(results) == []


def test_a_later_process_of_the_same_number_is_not_taken_for_the_job(results):
    path = write_record(results, "gone", workflow="w3", final=False)
    live = {
        "host": {"name": platform.node()},
        "process": {"pid": os.getpid(), "started": process_start(os.getpid()) - 1},
    }
    write_json(path, {**read_json(path), **live})
    (entry,) = ledger.append(results)
    assert [item["job"] for item in entry["crashed"]] == ["gone"]


def test_a_changed_start_record_and_a_changed_story_of_the_run_are_found(results):
    workflow = results / ".provenance/workflows/w9.json"
    write_json(workflow, {"id": "w9", "configuration": "config/offline.yaml"})
    write_record(results, "job90", workflow="w9")
    ledger.append(results)
    write_json(workflow, {"id": "w9", "configuration": "config/offline.yaml", "ended": 1.0})
    assert ledger.verify(results) == []
    write_json(workflow, {"id": "w9", "configuration": "config/default.yaml"})
    path = results / ".provenance/records/job90.start.json"
    write_json(path, {**read_json(path), "started": 0.0})
    story, start = ledger.verify(results)
    assert story.path == str(workflow)
    assert "configuration is 'config/default.yaml', but" in story.message
    assert "line 4 says 'config/offline.yaml'" in story.message
    assert start.path == str(path)
    assert "job90.final.json says" in start.message


def test_a_clock_that_was_set_back_shows_in_the_ledger(results, monkeypatch):
    monkeypatch.setattr("time.time", lambda: 1.0)
    write_record(results, "job90", workflow="w9")
    ledger.append(results)
    (finding,) = ledger.verify(results)
    assert finding.kind == "clock"
    assert "line 4: written before the line above it" in finding.message


def test_a_full_disk_leaves_the_ledger_as_it_was(results, monkeypatch):
    before = (results / "ledger.jsonl").read_bytes()
    write_record(results, "job90", workflow="w9")
    monkeypatch.setattr(
        "os.replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device"))
    )
    with pytest.raises(OSError, match="No space"):
        ledger.append(results)
    assert (results / "ledger.jsonl").read_bytes() == before
    monkeypatch.undo()
    assert len(ledger.append(results)) == 1
    assert ledger.verify(results) == []


def test_a_dead_process_runs_no_more_though_its_parent_has_not_asked_for_it():
    child = subprocess.Popen(["sleep", "60"])
    assert process_start(child.pid) is not None
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, and still in the table of processes
    assert Path(f"/proc/{child.pid}/stat").exists()
    assert process_start(child.pid) is None
    child.wait()
