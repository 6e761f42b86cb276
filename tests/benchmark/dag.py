"""A graph of 3,000 jobs: how long Snakemake and the Snakefile take until they know what there is to do."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from contest import ROOT

JOBS, LONGEST_S = 3_000, 15.0
# The studies of the default run, so many times over under names of their own.
COPIES = 25
PARTS = ("Snakefile", "rules", "config", "scripts", "kernels", "envs", "requirements.lock")


def measure(copies: int = COPIES) -> dict[str, Any]:
    """Time a whole dry run from the start of the process, on a copy of the repository without any results."""
    with tempfile.TemporaryDirectory(prefix="dag-") as name:
        repository, folder = Path(name) / "repository", Path(name) / "run"
        repository.mkdir()
        folder.mkdir()
        for part in PARTS:
            (shutil.copytree if (ROOT / part).is_dir() else shutil.copy)(ROOT / part, repository / part)
        run = yaml.safe_load((ROOT / "config/default.yaml").read_text())
        studies = []
        for study in run["studies"]:
            for number in range(copies):
                studies.append(f"{study}_{number}")
                shutil.copy(ROOT / f"config/studies/{study}.yaml", repository / f"config/studies/{studies[-1]}.yaml")
        configuration = Path(name) / "run.yaml"
        configuration.write_text(yaml.safe_dump({**run, "studies": studies, "name": "copies", "results": "results"}))
        command = [
            sys.executable, "-m", "snakemake", "--snakefile", str(repository / "Snakefile"), "--directory", str(folder),
            "--profile", str(repository / "config/profiles/default"), "--configfile", str(configuration),
            "--cores", "2", "--dry-run", "--quiet", "rules",
        ]  # fmt: skip
        paths = os.pathsep.join(str(repository / part) for part in ("scripts", "kernels"))
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths})
        seconds = time.perf_counter() - start
    total = re.search(r"^total +(\d+)$", done.stdout + done.stderr, re.MULTILINE)
    if done.returncode or total is None:
        raise RuntimeError((done.stderr.strip().splitlines() or ["the dry run said nothing"])[-1])
    return {"jobs": int(total[1]), "seconds": round(seconds, 2)}


def lines(found: dict[str, Any]) -> list[str]:
    """What docs/performance.md says of it."""
    return [
        f"- A dry run of {found['jobs']:,} jobs, from the start of the process to the list of jobs: "
        f"{found['seconds']:.1f} s (at most {LONGEST_S:.0f} s for {JOBS:,})."
    ]


def main() -> int:
    """Measure, print, and fail where the bar is missed."""
    found = measure()
    print(json.dumps(found))
    return int(found["seconds"] > LONGEST_S or found["jobs"] < JOBS)


if __name__ == "__main__":
    sys.exit(main())
