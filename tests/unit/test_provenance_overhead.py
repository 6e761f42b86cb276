"""What a run spends on Snakemake and on starting jobs, on planted times."""

import json

import pytest

from conceptome.__main__ import main
from conceptome.errors import DataError
from conceptome.provenance.overhead import measure, overhead

RUN = {"id": "r", "started": 100.0, "ended": 160.0, "exit_code": 0}


def job(name, started, ended, inputs=(), outputs=(), threads=1):
    return {
        "job": name, "workflow": "r", "status": "success", "started": started, "ended": ended, "threads": threads,
        "inputs": [{"path": path} for path in inputs], "outputs": [{"path": path} for path in outputs],
    }  # fmt: skip


# Two cores. a begins 5 s after the run; b has waited for a and begins 2 s after it; c and d take both cores;
# e waits for d, which has its core until 140, and begins 3 s later; the run ends 10 s after e.
JOBS = [
    job("a", 105, 115, outputs=["a"]),
    job("b", 117, 120, inputs=["a"], outputs=["b"]),
    job("c", 121, 145, inputs=["b"]),
    job("d", 121, 140, inputs=["b"], outputs=["d"]),
    job("e", 143, 150, inputs=["d"]),
]


def test_delays_are_told_from_waiting():
    found = measure(RUN, JOBS)
    assert (found.jobs, found.cores, found.wall_seconds) == (5, 2, 60)
    assert found.working == 10 + 3 + 24 + 19 + 7
    assert found.first == 5
    assert found.starting == 2 + 1 + 1 + 3
    assert found.last == 2 * 10
    assert found.share == pytest.approx((5 + 7 + 20) / 120)
    assert found.waiting == pytest.approx(120 - 63 - 5 - 7 - 20)


def test_a_job_waits_for_a_core_and_not_for_the_scheduler():
    found = measure(RUN, [job("a", 101, 110), job("b", 101, 120), job("c", 111, 130), job("wide", 131, 160, threads=2)])
    assert found.cores == 2
    assert found.first == 2
    assert found.starting == 1 + 2 * 1
    assert found.last == 0


def test_the_command_takes_the_newest_run_that_ended_well(tmp_path, capsys):
    folder = tmp_path / ".provenance"
    for name in ("workflows", "records"):
        (folder / name).mkdir(parents=True)
    with pytest.raises(DataError, match="holds no run that ended well"):
        overhead(tmp_path)
    (folder / "workflows" / "r.json").write_text(json.dumps(RUN))
    (folder / "workflows" / "s.json").write_text(json.dumps(RUN | {"id": "s", "exit_code": 1}))
    with pytest.raises(DataError, match="no records of jobs"):
        overhead(tmp_path)
    for record in JOBS:
        (folder / "records" / f"{record['job']}.final.json").write_text(json.dumps(record))
    assert main(["overhead", "--results", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["workflow"] == "r"
    assert found["share"] == pytest.approx(32 / 120)
    assert main(["overhead", "--results", str(tmp_path)]) == 0
    assert "5 jobs in 60 s on 2 cores; Snakemake and start-up: 26.7 % of the cores' time" in capsys.readouterr().out
    assert main(["overhead", "--results", str(tmp_path), "--run", "s"]) == 1
