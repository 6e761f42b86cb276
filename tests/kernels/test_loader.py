"""Building, choosing and loading the compiled kernels."""

import logging
import os
import subprocess
import sys

import numpy as np
import pytest

import conceptome_kernels
from conceptome_kernels import __main__, build, checks, loader


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """An empty cache, no forced variant, and nothing loaded yet."""
    monkeypatch.setenv("CONCEPTOME_KERNEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(loader.VARIABLE, raising=False)
    cached = (build.compiler, build.digest, loader._open, loader._open_or_warn)
    for function in cached:
        function.cache_clear()
    yield tmp_path / "cache"
    for function in cached:
        function.cache_clear()


@pytest.mark.parametrize("name", build.VARIANTS)
def test_every_variant_builds_and_can_be_forced(name, monkeypatch):
    monkeypatch.setenv(loader.VARIABLE, name)
    if name not in loader.supported():
        with pytest.raises(loader.KernelError, match="lacks avx"):
            loader.library()
        return
    assert loader.call("conceptome_width") == {"generic": 4, "avx2": 8}.get(name, 16)
    assert conceptome_kernels.build_digest() == f"{name}-{build.digest(name)}"


def test_the_best_supported_variant_is_the_default(monkeypatch):
    monkeypatch.delenv(loader.VARIABLE, raising=False)
    assert loader.variant() == loader.supported()[0]
    monkeypatch.setattr(loader, "processor_flags", lambda: frozenset({"sse2", "avx2", "fma"}))
    assert loader.variant() == "avx2"
    monkeypatch.setattr(loader, "processor_flags", frozenset)
    assert loader.variant() == "generic"


def test_torch_means_no_library(monkeypatch):
    monkeypatch.setenv(loader.VARIABLE, "torch")
    assert not conceptome_kernels.available()
    assert conceptome_kernels.build_digest() is None
    with pytest.raises(loader.KernelError, match="not available"):
        loader.loaded()


def test_an_unknown_variant_is_one_clear_error(monkeypatch):
    monkeypatch.setenv(loader.VARIABLE, "avx1024")
    with pytest.raises(
        loader.KernelError, match=r"CONCEPTOME_KERNELS=avx1024 is not known: use avx512vnni, avx512, avx2, generic"
    ):
        conceptome_kernels.available()


def test_a_build_is_kept_and_renamed_into_place(fresh):
    path = build.build("generic")
    stamp = path.stat().st_mtime_ns
    assert path.name == f"generic-{build.digest('generic')}.so"
    assert build.build("generic").stat().st_mtime_ns == stamp
    assert sorted(file.name for file in fresh.iterdir()) == [".lock", path.name]


def test_the_digest_tells_sources_and_variants_apart(fresh, monkeypatch, tmp_path):
    before = {name: build.digest(name) for name in build.VARIANTS}
    assert len(set(before.values())) == len(before)
    copy = tmp_path / "cpu"
    copy.mkdir()
    for file in build.SOURCES.glob("*.*"):
        (copy / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(build, "SOURCES", copy)
    build.digest.cache_clear()
    assert {name: build.digest(name) for name in build.VARIANTS} == before
    (copy / "common.h").write_text((copy / "common.h").read_text() + "\n// changed\n")
    build.digest.cache_clear()
    assert build.digest("generic") != before["generic"]


def test_without_a_compiler_there_is_one_warning(fresh, monkeypatch, caplog):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with caplog.at_level(logging.WARNING):
        assert not conceptome_kernels.available()
        assert not conceptome_kernels.available()
    assert [record.message for record in caplog.records] == [
        "no C++ compiler (no-such-compiler is not on the path): dictionaries use the slower torch path"
    ]
    monkeypatch.setenv(loader.VARIABLE, "generic")
    with pytest.raises(loader.KernelError, match="no C\\+\\+ compiler"):
        conceptome_kernels.available()


def test_a_failed_compilation_names_the_error(fresh, monkeypatch, tmp_path):
    (tmp_path / "broken.cpp").write_text("int broken( {\n")
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    with pytest.raises(build.BuildError, match=r"compiling the generic kernels .* failed: .*broken.cpp.*error"):
        build.build("generic")
    assert not list(fresh.glob("*.so"))


def test_importing_loads_neither_torch_nor_the_library():
    code = "import sys, conceptome_kernels; assert 'torch' not in sys.modules and 'ctypes' in sys.modules"
    code += "; conceptome_kernels.available(); assert 'torch' not in sys.modules"
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )


def test_checks_name_the_argument():
    good = np.zeros((3, 4), dtype=np.float32)
    assert checks.array("X", good, (None, 4)) is good
    for value, error, message in (
        (good.tolist(), TypeError, "X must be a numpy array, not list"),
        (good.astype(np.float64), TypeError, "X must be float32, not float64"),
        (good[:, :2], ValueError, "X must have shape any × 4, not 3 × 2"),
        (np.zeros((4, 8), np.float32)[:, ::2], ValueError, "X must be contiguous"),
    ):
        with pytest.raises(error, match=message):
            checks.array("X", value, (None, 4))
    good[1, 2] = np.nan
    with pytest.raises(ValueError, match="X holds NaN"):
        checks.finite("X", good)
    assert checks.finite("X", np.full(9, 3e38, dtype=np.float32)).size == 9
    with pytest.raises(ValueError, match="k must lie between 1 and 4, not 5"):
        checks.count("k", 5, 1, 4)
    with pytest.raises(TypeError, match="k must be an integer"):
        checks.count("k", 2.0, 1, 4)
    assert checks.count("k", np.int64(2), 1, 4) == 2


def test_threads_follow_torch():
    import torch

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert checks.threads(None) == 1
    finally:
        torch.set_num_threads(before)
    assert checks.threads(3) == 3


def test_set_up_builds_and_says_so(fresh, monkeypatch, capsys):
    monkeypatch.setenv(loader.VARIABLE, "generic")
    __main__.main()
    assert capsys.readouterr().out.startswith("  kernels: built generic in ")
    assert len(list(fresh.glob("generic-*.so"))) == 1
    monkeypatch.setenv(loader.VARIABLE, "torch")
    __main__.main()
    assert capsys.readouterr().out == "  kernels: none, as asked for (torch)\n"
    monkeypatch.delenv(loader.VARIABLE)
    monkeypatch.setenv("CXX", "no-such-compiler")
    build.compiler.cache_clear()
    build.digest.cache_clear()
    __main__.main()
    expected = "  kernels: no C++ compiler (no-such-compiler is not on the path): the torch path will be used\n"
    assert capsys.readouterr().out == expected
    monkeypatch.setenv(loader.VARIABLE, "avx1024")
    with pytest.raises(SystemExit, match="error: CONCEPTOME_KERNELS=avx1024"):
        __main__.main()
