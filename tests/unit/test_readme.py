"""The README's example runs as it stands there."""

import re
from pathlib import Path

README = Path(__file__).resolve().parents[2] / "README.md"


def test_the_library_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    names: dict = {}
    exec(compile(example, str(README), "exec"), names)
    codes = names["codes"].to_scipy()
    assert codes.shape == (2_000, 64)
    assert codes.getnnz(axis=1).max() <= 4
    assert names["X_hat"].shape == names["X"].shape
