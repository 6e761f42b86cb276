"""What holds for every test."""

import re
import shutil
import signal
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from workspace import Workspace
from xdist.scheduler import LoadScopeScheduling

# A program that a shell starts in the background inherits that Ctrl-C is ignored, and so do the programs it starts
# itself: the tests that press Ctrl-C would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)


class ByFile(LoadScopeScheduling):
    """Tests of a file stay together, and those of the finished run on one worker, which makes it once."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "finished" if _reads_finished(self.config.rootpath / file) else file


@cache
def _reads_finished(file: Path) -> bool:
    return re.search(r"def \w+\([^)]*\b(copy_of_)?finished\b", file.read_text(encoding="utf-8")) is not None


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    """Run where tests are spread over workers."""
    return ByFile(config, log)


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Workspace:
    """The test configuration, run once from scratch."""
    workspace = Workspace(tmp_path_factory.mktemp("finished"))
    workspace.snakemake()
    return workspace


@pytest.fixture
def copy_of_finished(finished, tmp_path) -> Workspace:
    """A copy of the finished run that a test may change."""
    shutil.copytree(finished.folder, tmp_path / "copy", symlinks=True)
    return Workspace(tmp_path / "copy")
