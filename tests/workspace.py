"""Running the real DAG on the real data, subsampled, in a folder of the test's own."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
# What is not a rule's output: what a run writes about itself (times differ), and Snakemake's own folder.
EXEMPT = (".provenance", "logs", "mlflow-artifacts")
EXEMPT_FILES = ("ledger.jsonl", "statement.dsse.json", "mlflow.db", "report.html", ".snakemake_timestamp")


@dataclass
class Workspace:
    """A folder in which the workflow runs, with the retrieved sources shared between tests."""

    folder: Path
    config: str = "config/test.yaml"
    results: str = "results/test"
    repository: Path = REPOSITORY

    def snakemake(self, *arguments: str, cores: int = 2, check: bool = True, **options) -> subprocess.CompletedProcess:
        """Run Snakemake on the repository's Snakefile, with this folder as the working directory."""
        command = [
            sys.executable, "-m", "snakemake", "--snakefile", str(self.repository / "Snakefile"),
            "--directory", str(self.folder), "--profile", str(self.repository / "config/profiles/default"),
            "--configfile", str(self.repository / self.config), "--cores", str(cores), *arguments,
        ]  # fmt: skip
        options = {"env": environment(self.repository), **options}
        done = subprocess.run(command, text=True, capture_output=True, **options)
        if check and done.returncode:
            raise AssertionError(f"snakemake failed:\n{done.stdout}\n{done.stderr}")
        return done

    def planned(self, *arguments: str) -> dict[str, int]:
        """What a run would do now: rule → number of jobs, without the target; empty when there is nothing to do."""
        done = self.snakemake("--dry-run", *arguments)
        _, _, statistics = done.stdout.partition("Job stats:")
        pairs = re.findall(r"^(\w+) +(\d+)$", statistics.partition("\n\n")[0], re.MULTILINE)
        assert pairs or "Nothing to be done" in done.stdout + done.stderr, done.stdout + done.stderr
        return {rule: int(count) for rule, count in pairs if rule not in ("all", "total")}

    def path(self, *parts: str) -> Path:
        """A path inside the results folder."""
        return self.folder.joinpath(self.results, *parts)

    def digests(self) -> dict[str, str]:
        """The sha256 of every rule output, by path relative to the results folder."""
        root = self.path()
        found = {}
        for path in sorted(root.rglob("*")):
            relative = path.relative_to(root)
            if path.is_file() and relative.parts[0] not in EXEMPT and path.name not in EXEMPT_FILES:
                found[str(relative)] = hashlib.sha256(path.read_bytes()).hexdigest()
        return found


def copy_of_repository(folder: Path) -> Path:
    """Copy what a run is made of, so that a test may edit it."""
    for name in ("scripts", "kernels", "rules", "config", "envs"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "build"))
    for name in ("Snakefile", "requirements.lock"):
        shutil.copy(REPOSITORY / name, folder)
    return folder


def environment(repository: Path = REPOSITORY) -> dict[str, str]:
    """This process's environment, with the mirror that the repository would use made explicit."""
    mirror = os.environ.get("CONCEPTOME_MIRROR")
    default = REPOSITORY.parent / "shared" / "data"
    extra = {"CONCEPTOME_MIRROR": str(default)} if mirror is None and default.is_dir() else {}
    path = os.pathsep.join(str(repository / name) for name in ("scripts", "kernels"))
    return {**os.environ, **extra, "PYTHONPATH": path}


def needs_index(name: str, done: subprocess.CompletedProcess, what: str) -> None:
    """Skip where pip reaches no index that has a package; fail where it does and yet could not do its work."""
    if done.returncode:
        with tempfile.TemporaryDirectory() as folder:
            asked = subprocess.run(
                [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, name],
                capture_output=True, text=True,
            )  # fmt: skip
        if "No matching distribution" in asked.stderr:
            pytest.skip(f"pip cannot reach the package index, which has {name}")
        pytest.fail(f"{what}: {done.stderr[-2000:]}")


def tools(pins: str, name: str) -> Path:
    """Python of an environment made once from a list in envs/, which has the package `name`."""
    folder = REPOSITORY / f".venv-{Path(pins).stem}"
    setup = ["bash", str(REPOSITORY / "scripts/setup_tools.sh"), sys.executable, str(folder), f"envs/{pins}"]
    needs_index(name, subprocess.run(setup, capture_output=True, text=True), f"envs/{pins}")
    return folder / "bin" / "python"
