"""What holds for every test."""

import shutil
import signal

import pytest
from workspace import Workspace

# A program that a shell starts in the background inherits that Ctrl-C is ignored, and so do the programs it starts
# itself: the tests that press Ctrl-C would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)


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
