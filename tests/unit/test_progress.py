"""Progress of a long stage: written where a job asks for it, and no burden where none does."""

import json

from conceptome import progress


def test_nothing_is_written_unless_a_job_asks(tmp_path, monkeypatch):
    monkeypatch.delenv(progress.VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    assert list(progress.track(range(3))) == [0, 1, 2]
    assert not list(tmp_path.iterdir())


def test_steps_are_written_at_most_twice_a_second(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    path = tmp_path / "steps.json"
    monkeypatch.setenv(progress.VARIABLE, str(path))
    seen = []
    for number in progress.track(range(10), description="epoch"):
        if path.exists():
            seen.append((number, json.loads(path.read_text())))
        now[0] += 0.2
    assert [state["done"] for _, state in seen] == [3, 3, 3, 6, 6, 6, 9]
    assert seen[0] == (3, {"done": 3, "total": 10, "description": "epoch"})


def test_a_pace_counts_from_where_it_was_first_asked(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    pace = progress.Pace("rows", 512)
    assert pace(400, 1000) == ""
    now[0] += 10
    assert pace(450, 1000) == "2,560 rows/s, 1 min 50 s left"
    assert progress.Pace("cells")(3, None) == ""
    report = progress.Reporter("training, step", path=tmp_path / "steps.json", pace=pace)
    now[0] += 10
    report(500, 1000)
    state = json.loads((tmp_path / "steps.json").read_text())
    assert state == {
        "done": 500,
        "total": 1000,
        "description": "training, step",
        "pace": "2,560 rows/s, 1 min 40 s left",
    }
    assert [progress.duration(seconds) for seconds in (59, 61, 7300)] == ["59 s", "1 min 1 s", "2 h 1 min"]


def test_a_reporter_serves_as_a_hook_and_survives_a_lost_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "INTERVAL_SECONDS", 0)
    report = progress.Reporter("step", path=tmp_path / "steps.json")
    report(5, 20)
    assert json.loads((tmp_path / "steps.json").read_text()) == {"done": 5, "total": 20, "description": "step"}
    progress.Reporter("step", path=tmp_path / "gone" / "steps.json")(1, 2)
