"""The record of one job: complete on success, kept on failure, one line on the terminal."""

import errno
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from fake_job import fake_job

from conceptome.errors import DataError
from conceptome.provenance.folder import CACHE_FROM_BYTES, ProvenanceFolder
from conceptome.provenance.record import job, peak_memory

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch):
    monkeypatch.setenv("CONCEPTOME_WORKFLOW", "w1")
    monkeypatch.delenv("CONCEPTOME_RESULTS", raising=False)
    monkeypatch.setenv("CONCEPTOME_PROGRESS", "")


def final_record(folder: Path, results: str = "results") -> dict:
    (path,) = (folder / results / ".provenance" / "records").glob("*.final.json")
    return json.loads(path.read_text())


def make(folder: Path, **options):
    source = folder / "in.txt"
    source.write_text("raw")
    return fake_job(folder, inputs={"raw": str(source)}, outputs={"made": str(folder / "out.txt")}, **options)


def test_a_finished_job_has_a_complete_record(tmp_path):
    given = make(
        tmp_path,
        params={
            "whitening": {"method": "pca", "seed": 7},
            "seeds": [0, 1],
            "code": {"digest": "c" * 64, "files": {"a.py": "a" * 64}},
        },
        wildcards={"dataset": "kang2018", "model": "scvi"},
    )
    with job(given) as context:
        (tmp_path / "out.txt").write_text("result")
        context.metrics["kept"] = np.float64(0.5)
    record = final_record(tmp_path)
    assert record["status"] == "success"
    assert record["workflow"] == "w1"
    assert record["rule"] == "whiten"
    assert record["wildcards"] == {"dataset": "kang2018", "model": "scvi"}
    expected = {
        "name": "raw",
        "path": str(tmp_path / "in.txt"),
        "size": 3,
        "sha256": hashlib.sha256(b"raw").hexdigest(),
        "media_type": "text/plain",
    }
    assert record["inputs"] == [expected]
    assert record["outputs"][0]["sha256"] == hashlib.sha256(b"result").hexdigest()
    assert record["parameters"] == {"whitening": {"method": "pca", "seed": 7}, "seeds": [0, 1]}
    assert record["seeds"] == ["0", "1", "7"]
    assert record["code"]["digest"] == "c" * 64
    assert record["metrics"] == {"kept": 0.5}
    assert record["ended"] >= record["started"]
    assert record["peak_memory_bytes"] > 10_000_000
    assert record["inputs_changed"] == []
    start = tmp_path / "results/.provenance/records" / f"{record['job']}.start.json"
    assert hashlib.sha256(start.read_bytes()).hexdigest() == record["start_record"]
    listing = json.loads((tmp_path / "results/.provenance/environments" / f"{record['environment']}.json").read_text())
    installed = {item["name"]: item for item in listing["distributions"]}
    assert installed["numpy"]["version"] == np.__version__
    listing_of_numpy = next(file for file in importlib.metadata.files("numpy") if file.name == "RECORD").locate()
    assert installed["numpy"]["record"] == hashlib.sha256(Path(listing_of_numpy).read_bytes()).hexdigest()
    assert listing["python"] == record["python"] == f"CPython {platform.python_version()}"
    assert record["results"] == str(tmp_path / "results")
    assert "host" not in record
    assert record["machine"]["name"] == platform.node()
    assert record["machine"]["memory_bytes"] > 1 << 28
    assert record["machine"]["features"]
    assert any(item["user_api"] == "blas" and item["version"] for item in record["blas"])
    assert record["determinism"]["PYTHONHASHSEED"] == os.environ.get("PYTHONHASHSEED")
    assert record["hash_seconds"] > 0
    assert record["hashed_bytes"] == len("raw") + len("result")
    assert not list((tmp_path / "results/.provenance/progress").iterdir())


def test_the_recipe_is_known_before_the_job_and_moves_with_what_matters(tmp_path):
    def recipe(name, params):
        folder = tmp_path / name
        folder.mkdir()
        with job(make(folder, params=params)) as context:
            (folder / "out.txt").write_text(name)
            assert len(context.recipe) == 64
        assert final_record(folder)["recipe"] == context.recipe
        return context.recipe

    code = {"digest": "x", "files": {"a.py": "a"}}
    first = recipe("a", {"k": 1, "code": code})
    assert recipe("b", {"k": 1, "code": code}) == first
    assert recipe("c", {"k": 2, "code": code}) != first
    assert recipe("d", {"k": 1, "code": {**code, "digest": "y"}}) != first


def test_folders_are_expanded_to_their_files(tmp_path):
    shards = tmp_path / "shards"
    given = fake_job(tmp_path, outputs={"shards": str(shards)})
    with job(given):
        (shards / "sub").mkdir(parents=True)
        (shards / "b.npy").write_text("b")
        (shards / "sub" / "a.npy").write_text("a")
        (shards / ".snakemake_timestamp").touch()
    assert [Path(item["path"]).name for item in final_record(tmp_path)["outputs"]] == ["b.npy", "a.npy"]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (DataError("column 'x' of obs\nis missing"), "error: rule whiten (dataset=a): column 'x' of obs is missing\n"),
        (OSError(errno.ENOSPC, "No space left on device", "big.npy"), "disk full while writing big.npy: free space"),
        (RuntimeError("io: No space left on device (os error 28)"), "disk full while writing {out}: free space"),
        (OSError("100000 requested and 10224 written"), "disk full while writing {out}: free space"),
        (MemoryError(), "out of memory"),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero (traceback: {log})"),
    ],
)
def test_a_failed_job_says_one_line_and_keeps_a_record(tmp_path, capfd, error, line):
    given = make(tmp_path, wildcards={"dataset": "a"})

    def script():
        with job(given):
            os.write(1, b"noise of a library")  # as compiled code does, past sys.stdout
            raise error

    with pytest.raises(SystemExit) as stopped:
        script()
    assert stopped.value.code == 1
    shown = capfd.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert line.format(out=tmp_path / "out.txt", log=given.log[0]) in shown.err
    record = final_record(tmp_path)
    assert record["status"] == "failure"
    assert record["error"] in shown.err
    assert record["outputs"] == []
    log = Path(given.log[0]).read_text()
    assert "Traceback" in log
    assert "noise of a library" in log


def test_a_full_disk_before_the_job_is_one_line_too(tmp_path, capfd, monkeypatch):
    def full(path, value):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    given = make(tmp_path)
    monkeypatch.setattr("conceptome.provenance.record.write_json", full)
    with pytest.raises(SystemExit), job(given):
        raise AssertionError("the job must not begin")
    assert capfd.readouterr().err.startswith("error: rule whiten: disk full while writing")


def test_a_job_without_its_final_record_has_not_succeeded(tmp_path, capfd, monkeypatch):
    from conceptome.files import write_json

    def full_at_the_end(path, value):
        if str(path).endswith(".final.json"):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write_json(path, value)

    monkeypatch.setattr("conceptome.provenance.record.write_json", full_at_the_end)
    with pytest.raises(SystemExit), job(make(tmp_path)):
        (tmp_path / "out.txt").write_text("made")
    assert "disk full" in capfd.readouterr().err


def test_a_missing_output_is_a_failure(tmp_path, capfd):
    with pytest.raises(SystemExit), job(make(tmp_path)):
        pass
    assert final_record(tmp_path)["status"] == "failure"


def test_an_input_that_changes_meanwhile_is_named(tmp_path):
    with job(make(tmp_path)):
        (tmp_path / "in.txt").write_text("changed")
        (tmp_path / "out.txt").write_text("made")
    assert final_record(tmp_path)["inputs_changed"] == [str(tmp_path / "in.txt")]


def test_an_input_that_was_altered_after_its_job_is_refused(tmp_path, capfd):
    folder, reader = tmp_path / "shards", tmp_path / "read.txt"
    with job(fake_job(tmp_path, rule="embed", outputs={"shards": str(folder)})):
        folder.mkdir()
        (folder / "0.npy").write_bytes(b"a shard")
        (folder / "1.npy").write_bytes(b"another")

    def read():
        with job(fake_job(tmp_path, inputs={"shards": str(folder)}, outputs={"made": str(reader)})):
            reader.write_text("read")

    read()
    (path,) = (tmp_path / "results/.provenance/records").glob("*-whiten-*.final.json")
    listed = json.loads(path.read_text())["inputs"]
    assert [(item["name"], Path(item["path"]).name) for item in listed] == [("shards", "0.npy"), ("shards", "1.npy")]
    status = (folder / "1.npy").stat()
    (folder / "1.npy").write_bytes(b"anothes")
    os.utime(folder / "1.npy", ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(SystemExit):
        read()
    assert re.fullmatch(
        rf"error: rule whiten: {folder} was altered after job \S+-embed-\S+ wrote it: [^\n]*\n", capfd.readouterr().err
    )


def test_a_folder_is_listed_as_sha256sum_does(tmp_path):
    folder, listing = tmp_path / "act" / "a model", tmp_path / "act" / "a model.sha256"
    with job(fake_job(tmp_path, outputs={"activations": str(folder), "listing": str(listing)})):
        folder.mkdir(parents=True)
        (folder / "card.json").write_text("{}")
        (folder / "0.npy").write_text("0")
    check = ["sha256sum", "--check", "--strict", listing.name]
    done = subprocess.run(check, cwd=listing.parent, capture_output=True, text=True)
    assert done.stdout == "a model/0.npy: OK\na model/card.json: OK\n"
    assert [Path(item["path"]).name for item in final_record(tmp_path)["outputs"]][-1] == listing.name


def test_a_clock_that_is_set_back_makes_no_job_end_before_it_began(tmp_path, monkeypatch):
    now, real = 1_800_000_000.0, time.strftime
    monkeypatch.setattr("time.time", lambda: now)
    monkeypatch.setattr("time.strftime", lambda form, moment: real(form, time.gmtime(now)))
    names = []
    for back in (0, 3600, 3600):
        now -= back
        folder = tmp_path / str(len(names))
        folder.mkdir()
        with job(make(folder)):
            now -= 60
            (folder / "out.txt").write_text("made")
        record = final_record(folder)
        assert record["ended"] >= record["started"]
        names.append(record["job"])
    assert len(set(names)) == 3
    assert names == sorted(names, reverse=True)


def test_the_schedulers_id_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    with job(make(tmp_path)):
        (tmp_path / "out.txt").write_text("made")
    assert final_record(tmp_path)["scheduler_id"] == "4711"


FULL_DISK = """
    import sys
    sys.path.insert(0, {tests!r})
    from pathlib import Path
    from fake_job import fake_job
    from conceptome.provenance.record import job
    folder = Path({folder!r})
    def fill():
        with open(folder / "fill", "wb", buffering=0) as handle:
            try:
                while handle.write(b"x" * 512):
                    pass
            except OSError:
                pass
    if {when!r} == "before":
        fill()
    with job(fake_job(folder, outputs={{"made": str(folder / "out.txt")}})):
        (folder / "out.txt").write_text("made")
        fill()
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_record_meets_a_disk_that_is_full(tmp_path, when):
    """On a file system of 256 kB of its own: one line, and no half record."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("no mount namespace can be made here (unshare -rm is refused)")
    (tmp_path / "small").mkdir()
    code = textwrap.dedent(
        FULL_DISK.format(tests=str(Path(__file__).parent), folder=str(tmp_path / "small"), when=when)
    )
    (tmp_path / "script.py").write_text(code)
    inside = (
        f"mount -t tmpfs -o size=256k tmpfs {tmp_path}/small && {sys.executable} {tmp_path}/script.py; code=$?; "
        f"find {tmp_path}/small/results/.provenance -type f -size -1; "
        f"find {tmp_path}/small -name '*.partial*' -o -name '*.final.json'; exit $code"
    )
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS)}
    done = subprocess.run(["unshare", "-rm", "bash", "-c", inside], text=True, capture_output=True, env=environment)
    assert done.returncode == 1
    assert re.fullmatch(r"error: rule whiten: disk full while writing \S+: free space and run again\n", done.stderr)
    assert done.stdout == ""


SCRIPT = """
    import sys, time
    sys.path.insert(0, {tests!r})
    from pathlib import Path
    from fake_job import fake_job
    from conceptome.provenance.record import job
    with job(fake_job(Path({folder!r}), outputs={{"made": {folder!r} + "/out.txt"}})):
        from conceptome.progress import track
        Path({folder!r}, "ready").touch()
        for _ in track(range(1000), description="step"):
            time.sleep(0.05)
"""


def begin(folder: Path) -> subprocess.Popen:
    code = textwrap.dedent(SCRIPT.format(tests=str(Path(__file__).parent), folder=str(folder)))
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS)}
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, env=environment)
    wait_for(lambda: (folder / "ready").exists())
    return process


def wait_for(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_job_is_recorded_as_interrupted(tmp_path, number, code):
    process = begin(tmp_path)
    process.send_signal(number)
    _, shown = process.communicate(timeout=20)
    assert process.returncode == code
    assert shown == "error: rule whiten: interrupted; the next run takes it up again\n"
    assert final_record(tmp_path)["status"] == "interrupted"


def test_a_killed_job_leaves_a_start_without_an_end_and_progress_showed(tmp_path):
    process = begin(tmp_path)
    progress = tmp_path / "results/.provenance/progress"
    wait_for(lambda: list(progress.glob("*.steps.json")))
    (steps,) = progress.glob("*.steps.json")
    state = json.loads(steps.read_text())
    assert state["total"] == 1000
    assert 0 < state["done"] < 1000
    process.kill()
    process.communicate(timeout=20)
    ((start, final),) = ProvenanceFolder(tmp_path / "results").jobs().values()
    assert start.exists()
    assert final is None


def test_hashes_are_cached_until_the_file_changes(tmp_path, monkeypatch):
    folder = ProvenanceFolder(tmp_path / "results")
    big = tmp_path / "big.bin"
    big.write_bytes(b"a" * CACHE_FROM_BYTES)
    time.sleep(0.06)  # past the time in which a change might not show in the time stamps
    first = folder.sha256(big)
    reads = []
    monkeypatch.setattr("conceptome.provenance.folder.sha256_file", lambda path: reads.append(path) or "0" * 64)
    assert folder.sha256(big) == first == hashlib.sha256(b"a" * CACHE_FROM_BYTES).hexdigest()
    assert reads == []
    status = big.stat()
    big.write_bytes(b"b" * CACHE_FROM_BYTES)
    os.utime(big, ns=(status.st_atime_ns, status.st_mtime_ns))  # the size and mtime of before; ctime tells
    assert folder.sha256(big) == "0" * 64
    assert reads == [big]


def test_peak_memory_follows_an_allocation():
    before = peak_memory()
    block = np.ones(60_000_000 // 8 + before // 8)
    assert peak_memory() > before + 30_000_000
    del block


def test_the_kernels_build_is_recorded_only_where_code_reaches_them(monkeypatch):
    import conceptome_kernels
    from conceptome.provenance.closure import closure
    from conceptome.provenance.record import kernels

    monkeypatch.setattr(conceptome_kernels, "build_digest", lambda: "generic-abc")
    assert kernels({"files": {"scripts/retrieve.py": "a"}}) is None
    reached = {"files": {"kernels/cpu/topk.cpp": "a", "scripts/learn.py": "b"}}
    assert kernels(reached) == {"build": "abc", "variant": "generic"}
    monkeypatch.setattr(conceptome_kernels, "build_digest", lambda: None)
    assert kernels(reached) == {"build": None, "variant": "torch"}
    assert not any(name.startswith("kernels/") for name in closure("scripts/retrieve.py")["files"])
    assert "kernels/cpu/topk.cpp" in closure("scripts/learn.py")["files"]
