"""The kernels' tests once more, on builds that stop at a wrong access or at undefined behaviour, in every variant."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conceptome_kernels import build, loader

pytestmark = pytest.mark.slow
HERE = Path(__file__).resolve().parent
FLAGS = "-O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all"


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory):
    """Environment of a process that builds and loads instrumented kernels."""
    compiler, folder = build.compiler()[0], tmp_path_factory.mktemp("sanitizers")
    runtime = subprocess.run(
        [compiler, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    # A compiler that lacks the library prints the bare name back.
    if not Path(runtime).is_absolute():
        pytest.skip(f"{compiler} has no AddressSanitizer")
    wrapper = folder / "instrumenting"
    wrapper.write_text(f'#!/bin/sh\nexec "{compiler}" "$@" {FLAGS}\n')
    wrapper.chmod(0o755)
    paths = [str(HERE.parents[1] / "scripts"), str(HERE.parents[1] / "kernels"), os.environ.get("PYTHONPATH", "")]
    return {
        **{name: value for name, value in os.environ.items() if name != loader.VARIABLE},
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "CXX": str(wrapper),
        "CONCEPTOME_KERNEL_CACHE": str(folder / "cache"),
        "LD_PRELOAD": runtime,
        "ASAN_OPTIONS": "detect_leaks=0",
        "OMP_NUM_THREADS": "2",
    }


def run(command, environment):
    """Run it; give its exit status and all it printed."""
    done = subprocess.run(
        [sys.executable, *command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return done.returncode, done.stdout


def test_a_wrong_access_is_noticed(sanitized):
    """The check can fail: a sort told of more places than there are reads past their end."""
    code = (
        "import numpy as np; from conceptome_kernels.loader import call;"
        "i, v, ends = np.zeros((3, 1), np.int32), np.ones((3, 1), np.float32), np.zeros(5, np.int64);"
        "call('conceptome_sort', i, v, v, 10**6, 1, 4, ends, i.copy(), v.copy(), v.copy(), 1)"
    )
    status, output = run(["-c", code], {**sanitized, loader.VARIABLE: "generic"})
    assert status != 0
    assert "AddressSanitizer" in output


@pytest.mark.parametrize("name", ["topk", "sparse", "pursuit", "covariance", "contingency"])
def test_no_wrong_access_and_nothing_undefined(name, sanitized):
    status, output = run(
        ["-m", "pytest", "-q", "-x", "-s", "-p", "no:cacheprovider", HERE / f"test_{name}.py"], sanitized
    )
    assert status == 0, output[-4000:]
    assert " passed" in output
    builds = list(Path(sanitized["CONCEPTOME_KERNEL_CACHE"]).glob("*.so"))
    assert builds
    assert all(b"__asan_" in file.read_bytes() and b"__ubsan_" in file.read_bytes() for file in builds)
