"""Runs from scratch give the same bytes, also after an interruption; a full disk leaves nothing half-written."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from workspace import REPOSITORY, Workspace, environment


def differing(first: dict[str, str], second: dict[str, str]) -> list[str]:
    return sorted(path for path in first.keys() | second.keys() if first.get(path) != second.get(path))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_run_that_is_interrupted_and_goes_on_with_one_core_gives_the_bytes_of_a_run_with_two(finished, tmp_path):
    workspace = Workspace(tmp_path)
    command = [
        sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "Snakefile"), "--directory", str(tmp_path),
        "--profile", str(REPOSITORY / "config/profiles/default"), "--configfile", str(REPOSITORY / workspace.config),
        "--cores", "2",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, env=environment(), start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    learned = workspace.path("dictionaries")
    deadline = time.monotonic() + 300
    while not any(learned.rglob("dictionary.safetensors")) and time.monotonic() < deadline:
        assert process.poll() is None, "the run ended before it could be interrupted"
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=120) != 0
    assert not [path for path in workspace.digests() if ".partial" in path], "a half-written file stayed behind"
    workspace.snakemake(cores=1)
    assert len(workspace.digests()) > 100
    assert differing(finished.digests(), workspace.digests()) == []


@pytest.mark.timeout(300)
def test_a_full_disk_gets_one_clear_line_and_leaves_nothing_half_written(finished, tmp_path):
    """The prepared data of a study are written into a file system of 1 MB, made in a mount namespace of its own."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("no mount namespace can be made here (unshare -rm is refused)")
    small = tmp_path / "small"
    small.mkdir()
    source = finished.path("sources")
    inside = (
        f"mount -t tmpfs -o size=1m tmpfs {small} && mkdir -p {small}/results/test && "
        f"ln -s {source} {small}/results/test/sources && "
        f"{sys.executable} -m snakemake --snakefile {REPOSITORY}/Snakefile --directory {small} "
        f"--profile {REPOSITORY}/config/profiles/default --configfile {REPOSITORY}/config/test.yaml --cores 1 "
        f"results/test/data/kang2018/X.h5ad; code=$?; find {small}/results/test/data -type f; exit $code"
    )
    done = subprocess.run(["unshare", "-rm", "bash", "-c", inside], text=True, capture_output=True, env=environment())
    output = done.stdout + done.stderr
    assert done.returncode != 0
    assert "disk full while writing" in output, output
    assert not [line for line in done.stdout.splitlines() if line.endswith("X.h5ad") or ".partial" in line], output
