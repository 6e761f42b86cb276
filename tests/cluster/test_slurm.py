"""The workflow on a real SLURM of two nodes, and every way in which a cluster lets a job down."""

import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from slurm_host import NODES, SlurmHost, environment, wait_for, why_not
from workspace import REPOSITORY, Workspace
from workspace import environment as of_a_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

PROFILE = REPOSITORY / "config/profiles/slurm"
# The test's jobs are short: looked at every second and without waiting for a slow file system, except where that is it.
QUICK = ["--slurm-init-seconds-before-status-checks", "1"]

# Seconds after which what a test waits for will not come any more; on a quiet machine it is there in a few.
PATIENCE = 300

FAULTS = """
def memory(megabytes):
    return lambda wildcards, attempt: megabytes * 2 ** (attempt - 1)

rule all:
    input: "time", "memory", "after", "lost", "late", "gpu"

# Longer than its minute allows; notes the limit it has, and that it was asked to end before it was killed.
rule time:
    output: "time"
    resources: mem_mb=500, runtime=memory(1), attempt=lambda wildcards, attempt: attempt
    shell:
        '''squeue -h -j $SLURM_JOB_ID -o %l > {output}
        [ {resources.attempt} -gt 1 ] || {{ trap 'touch asked' TERM; sleep 600; false; }}'''

# 600 MB where 400 were asked for; notes the limit it has.
rule memory:
    output: "memory"
    resources: mem_mb=memory(400), runtime=5
    shell:
        '''PYTHON -c "import time; block = b'x' * 600_000_000; time.sleep(4)"
        scontrol show job $SLURM_JOB_ID | grep -o 'MinMemoryNode=[^ ]*' > {output}'''

# Ends on a node that was set to drain meanwhile; the next one must go elsewhere.
rule before:
    output: "before"
    resources: mem_mb=500, runtime=10
    shell: "echo $SLURMD_NODENAME > {output}.node; until [ -e drained ]; do sleep 0.5; done; mv {output}.node {output}"

rule after:
    input: "before"
    output: "after"
    resources: mem_mb=500, runtime=10
    shell: "echo $SLURMD_NODENAME > {output}"

# Notes each start; its node goes down under it.
rule lost:
    output: "lost"
    resources: mem_mb=500, runtime=10
    shell: "echo $SLURMD_NODENAME >> starts; until [ -e downed ]; do sleep 0.5; done; cp starts {output}"

# Notes where it is and what it was lent.
rule gpu:
    output: "gpu"
    resources: mem_mb=500, runtime=10, gpu=1
    shell: "(echo $SLURMD_NODENAME; scontrol show job $SLURM_JOB_ID | grep -o 'TresPerJob=[^ ]*') > {output}"

# Ends before its output can be seen, as on NFS.
rule late:
    output: "late"
    resources: mem_mb=500, runtime=10
    shell: "(sleep 12; echo seen > {output}) > /dev/null 2>&1 &"
"""

MANY = """
rule all:
    input: expand("{number}", number=range(12)), "one"

rule learn:
    output: "{number}"
    resources: mem_mb=500, runtime=10
    shell: "sleep 600"

use rule learn as single with:
    output: "one"
"""


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    reason = why_not()
    if reason:
        pytest.skip(reason)
    host = SlurmHost(tmp_path_factory.mktemp("slurm"))
    try:
        host.start()
        yield host
    finally:
        host.stop()


@pytest.fixture(scope="module")
def python(host):
    """Python of .venv-hpc: what these tests run with, and the executor on top."""
    folder = REPOSITORY / ".venv-hpc"
    setup = ["bash", str(REPOSITORY / "scripts/setup_tools.sh"), sys.executable, str(folder), "envs/hpc.txt", "over"]
    done = subprocess.run(setup, capture_output=True, text=True)
    if done.returncode:
        missing = "No matching distribution" in done.stderr
        (pytest.skip if missing else pytest.fail)(f"envs/hpc.txt could not be installed: {done.stderr[-500:]}")
    return str(folder / "bin" / "python")


def start(python: str, folder: Path, snakefile: str, *arguments: str) -> subprocess.Popen:
    """Start Snakemake with our profile on a small workflow of the test's own; what it says goes to the file `said`."""
    (folder / "Snakefile").write_text(snakefile.replace("PYTHON", shlex.quote(python)))
    command = [python, "-m", "snakemake", "--profile", str(PROFILE), *QUICK, *arguments]
    with (folder / "said").open("w") as said:
        return subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=environment(of_a_run())
        )


def end(process: subprocess.Popen) -> None:
    """Press Ctrl-C, if it is not over: on SIGTERM Snakemake would wait for its jobs."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()


@pytest.fixture(scope="module")
def survived(host, python, tmp_path_factory):
    """Everything that goes wrong, at once: folder of the run, the node that was drained, the node that went down."""
    folder = tmp_path_factory.mktemp("faults")
    process = start(python, folder, FAULTS)
    try:
        wait_for((folder / "before.node").exists, PATIENCE, "the first job does not start")
        drained = (folder / "before.node").read_text().strip()
        host.set_node(drained, "drain")
        (folder / "drained").touch()
        wait_for((folder / "after").exists, PATIENCE, "no job goes to the other node")
        wait_for(lambda: "rule_after" not in host.comments().values(), PATIENCE, "that job does not end")
        host.set_node(drained, "resume")
        wait_for((folder / "starts").exists, PATIENCE, "the job whose node is to go does not start")
        downed = (folder / "starts").read_text().strip()
        [job] = [job for job, comment in host.comments().items() if comment == "rule_lost"]
        host.set_node(downed, "down")
        wait_for(lambda: job not in host.queue() or host.queue()[job] != "RUNNING", PATIENCE, "the job does not notice")
        # SLURM waits two minutes before it starts the node's jobs again; an administrator need not.
        for one, state in host.queue().items():
            if state == "PENDING":
                host.ask("scontrol", "update", f"jobid={one}", "starttime=now")
        host.set_node(downed, "resume")
        wait_for(lambda: len((folder / "starts").read_text().split()) > 1, PATIENCE, "the job is not started again")
        (folder / "downed").touch()
        assert process.wait(timeout=400) == 0, (folder / "said").read_text()
    finally:
        end(process)
        for node, state in host.states().items():
            if state.startswith(("down", "drain")):
                host.set_node(node, "resume")
    return folder, drained, downed


def test_a_job_that_runs_out_of_time_gets_twice_as_much(survived):
    folder, _, _ = survived
    assert (folder / "time").read_text().strip() == "2:00"
    assert "TIMEOUT" in (folder / "said").read_text()
    assert (folder / "asked").exists()


def test_a_job_that_runs_out_of_memory_gets_twice_as_much(survived):
    folder, _, _ = survived
    assert (folder / "memory").read_text().strip() == "MinMemoryNode=800M"


def test_a_job_that_asks_for_a_gpu_gets_one(survived):
    folder, _, _ = survived
    node, lent = (folder / "gpu").read_text().split()
    assert node == NODES[1]
    assert re.fullmatch(r"TresPerJob=gres[:/]gpu:1", lent)


def test_a_draining_node_finishes_its_job_and_gets_no_other(survived):
    folder, drained, _ = survived
    assert (folder / "before").read_text().strip() == drained
    assert (folder / "after").read_text().strip() in set(NODES) - {drained}


def test_a_job_whose_node_goes_down_starts_again(survived):
    folder, _, downed = survived
    starts = (folder / "lost").read_text().split()
    assert starts[0] == downed
    assert len(starts) == 2


def test_an_output_that_is_seen_late_is_waited_for(survived):
    folder, _, _ = survived
    assert (folder / "late").read_text() == "seen\n"
    assert "MissingOutputException" not in (folder / "said").read_text()


def test_ctrl_c_empties_the_queue(host, python, tmp_path):
    process = start(python, tmp_path, MANY)
    try:
        wait_for(lambda: len(host.queue()) > 1 and "RUNNING" in host.queue().values(), PATIENCE, "no job starts")
        assert any("_" in job for job in host.queue()), "the twelve are not an array"
    finally:
        end(process)
    assert process.wait() != 0
    wait_for(lambda: not host.queue(), PATIENCE, "jobs are left in the queue")


def test_the_run_is_the_same_bytes_as_on_one_machine(host, python, tmp_path):
    """A whole study through the front door, against the same by Snakemake here."""
    (tmp_path / "cluster").mkdir()
    command = [
        python, "-m", "conceptome", "run", "--profile", "config/profiles/slurm", "--config", "config/test.yaml",
        "--studies", "simulated_small", "--directory", str(tmp_path / "cluster"), "--", *QUICK,
    ]  # fmt: skip
    done = subprocess.run(command, cwd=REPOSITORY, env=environment(of_a_run()), capture_output=True, text=True)
    logs = [path.read_text() for path in (tmp_path / "cluster/slurm_logs").rglob("*.log")]
    assert done.returncode == 0, "\n".join([done.stdout, done.stderr, *logs])
    cluster, here = Workspace(tmp_path / "cluster"), Workspace(tmp_path / "here")
    here.folder.mkdir()
    here.snakemake("--no-hooks", "--config", "studies=[simulated_small]")
    assert len(here.digests()) > 10
    assert cluster.digests() == here.digests()
    records = [path.read_text() for path in cluster.path(".provenance/records").glob("*.final.json")]
    ran = [record for record in records if '"scheduler_id": null' not in record]
    assert len(ran) == len(records) > 5, "a job did not run on the cluster"
