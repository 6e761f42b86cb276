"""The Triton kernels where Triton is not installed: its pinned version is fetched for these tests alone."""

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
# Two minutes each on a machine that has nothing else to do.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Variables under which Triton can be imported."""
    paths = [str(REPOSITORY / name) for name in ("scripts", "kernels")]
    if importlib.util.find_spec("triton") is None:
        extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        folder = tmp_path_factory.mktemp("triton")
        pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(folder), *extras["gpu-test"]]
        done = subprocess.run(pip, capture_output=True, text=True, timeout=240)
        said = done.stdout + done.stderr
        if done.returncode and re.search(r"from versions: none|connection broken|[Tt]imed out", said):
            pytest.skip(f"pip cannot reach a package index: {said.strip().splitlines()[-1]}")
        assert done.returncode == 0, said
        paths.insert(0, str(folder))
    # Compiled kernels are kept apart from those of the user.
    kept = {"PYTHONPATH": os.pathsep.join(paths), "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("cache"))}
    return {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | kept


def test_kernels_in_the_interpreter(environment):
    """Or on a GPU where there is one: as tests/kernels/test_gpu.py says."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/kernels/test_gpu.py"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=environment, timeout=1400)
    assert done.returncode == 0, done.stdout[-4000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 30, done.stdout[-4000:]


def test_kernels_compile_for_gpus(environment):
    """The interpreter lets pass what the compiler refuses; it needs no GPU."""
    command = [sys.executable, "tests/kernels/compile_gpu.py", "80"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=environment, timeout=1400)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert done.stdout.count("registers") == len(done.stdout.splitlines()) >= 15
