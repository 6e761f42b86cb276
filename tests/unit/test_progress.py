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


def test_a_reporter_serves_as_a_hook_and_survives_a_lost_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "INTERVAL_SECONDS", 0)
    report = progress.Reporter("step", path=tmp_path / "steps.json")
    report(5, 20)
    assert json.loads((tmp_path / "steps.json").read_text()) == {"done": 5, "total": 20, "description": "step"}
    progress.Reporter("step", path=tmp_path / "gone" / "steps.json")(1, 2)
