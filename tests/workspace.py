"""Running the real DAG on the real data, subsampled, in a folder of the test's own."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

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

    def snakemake(self, *arguments: str, cores: int = 2, check: bool = True, **options) -> subprocess.CompletedProcess:
        """Run Snakemake on the repository's Snakefile, with this folder as the working directory."""
        command = [
            sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "Snakefile"),
            "--directory", str(self.folder), "--profile", str(REPOSITORY / "config/profiles/default"),
            "--configfile", str(REPOSITORY / self.config), "--cores", str(cores), *arguments,
        ]  # fmt: skip
        done = subprocess.run(command, text=True, capture_output=True, env=environment(), **options)
        if check and done.returncode:
            raise AssertionError(f"snakemake failed:\n{done.stdout}\n{done.stderr}")
        return done

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


def environment() -> dict[str, str]:
    """This process's environment, with the mirror that the repository would use made explicit."""
    mirror = os.environ.get("CONCEPTOME_MIRROR")
    default = REPOSITORY.parent / "shared" / "data"
    extra = {"CONCEPTOME_MIRROR": str(default)} if mirror is None and default.is_dir() else {}
    return {**os.environ, **extra}
