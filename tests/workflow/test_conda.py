"""envs/*.yaml as Snakemake uses them: they parse, solve and activate, against packages made from requirements.lock.

No conda channel is asked. Each locked package becomes an empty conda package of its version that depends on what the
installed distribution says it needs; so the pins must agree with each other, and with the lock. That conda-forge has
these builds is not shown here (docs/hpc.md).
"""

import importlib.metadata
import io
import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from test_environments import CONDA_NAMES, lock
from workspace import REPOSITORY, environment, tools

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

ENVIRONMENTS = sorted((REPOSITORY / "envs").glob("*.yaml"))
ACTIVATE = 'export CONDA_PREFIX="$1"\nexport PATH="$1/bin:$PATH"\n'


def depends(name: str, versions: dict[str, str]) -> list[str]:
    """What an installed distribution requires of other locked ones, as conda writes it."""
    needs = []
    for text in importlib.metadata.requires(name) or ():
        requirement = Requirement(text)
        other = canonicalize_name(requirement.name)
        if other in versions and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
            # A local version label such as +cpu is no part of a conda version.
            limits = ",".join(str(limit).removeprefix("===") for limit in requirement.specifier)
            needs.append(f"{CONDA_NAMES.get(other, other)} {limits}".strip())
    return needs


def package(channel: Path, name: str, version: str, needs: list[str], files: dict[str, str]) -> dict:
    """Write one conda package that holds `files` (path → content), and give its entry of repodata.json."""
    index = {"name": name, "version": version, "build": "0", "build_number": 0, "subdir": "noarch", "depends": needs}
    paths = [{"_path": path, "path_type": "hardlink", "sha256": None, "size_in_bytes": 0} for path in files]
    members = {
        "info/index.json": json.dumps(index),
        "info/paths.json": json.dumps({"paths": [{"_path": i["_path"], "path_type": "hardlink"} for i in paths],
                                       "paths_version": 1}),
        "info/files": "".join(f"{path}\n" for path in files),
        **files,
    }  # fmt: skip
    with tarfile.open(channel / "noarch" / f"{name}-{version}-0.tar.bz2", "w:bz2") as archive:
        for path, content in members.items():
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(content.encode()), 0o755
            archive.addfile(entry, io.BytesIO(content.encode()))
    return index


@pytest.fixture(scope="module")
def conda(tmp_path_factory):
    """Variables with a `conda` on PATH whose one channel holds the packages of the lock."""
    python = tools("conda.txt", "py-rattler")
    folder = tmp_path_factory.mktemp("conda")
    channel, own = folder / "channel", folder / "own"
    for part in (channel / "noarch", own / "bin"):
        part.mkdir(parents=True)
    versions = lock()
    interpreter = f'#!/bin/sh\nexec "{sys.executable}" "$@"\n'
    entries = [
        package(channel, "python", ".".join(map(str, sys.version_info[:3])), [], {"bin/python": interpreter}),
        package(channel, "pip", "26.0", [], {}),
    ]
    for name, version in versions.items():
        needs = depends(name, versions)
        marker = {f"share/locked/{name}": version}
        entries.append(package(channel, CONDA_NAMES.get(name, name), version, needs, marker))
        entries.append(package(channel, f"pip-{name}", version, needs, marker))
    packages = {f"{entry['name']}-{entry['version']}-0.tar.bz2": entry for entry in entries}
    (channel / "noarch" / "repodata.json").write_text(
        json.dumps({"info": {"subdir": "noarch"}, "packages": packages, "packages.conda": {}})
    )
    (own / "bin" / "activate").write_text(ACTIVATE)
    stand_in = own / "bin" / "conda"
    script = Path(__file__).with_name("conda_stand_in.py")
    stand_in.write_text(f'#!/bin/sh\nexec env -u PYTHONPATH "{python}" "{script}" "{own}" "{channel}" "$@"\n')
    stand_in.chmod(0o755)
    known = environment()
    return {**known, "PATH": f"{own / 'bin'}{os.pathsep}{known['PATH']}"}


def snakemake(conda, *arguments, snakefile, folder):
    command = [
        sys.executable, "-m", "snakemake", "--snakefile", str(snakefile), "--directory", str(folder),
        "--sdm", "conda", "--cores", "2", *arguments,
    ]  # fmt: skip
    return subprocess.run(command, text=True, capture_output=True, env=conda)


def one_rule_each(folder: Path, environments: list[Path]) -> Path:
    """A Snakefile with one rule per environment, that lists the packages of the environment it runs in."""
    rules = [f"rule all:\n    input: {[f'{path.stem}.txt' for path in environments]!r}"]
    for path in environments:
        rules.append(
            f"rule:\n    output: '{path.stem}.txt'\n    conda: '{path}'\n"
            "    shell: 'python -c \"import os; print(*sorted(os.listdir(os.environ[\\'CONDA_PREFIX\\'] + "
            "\\'/conda-meta\\')), sep=chr(10))\" > {output}'"
        )
    (folder / "Snakefile").write_text("\n\n".join(rules) + "\n")
    return folder / "Snakefile"


def test_every_environment_solves_and_activates_with_exactly_its_pins(conda, tmp_path):
    done = snakemake(conda, snakefile=one_rule_each(tmp_path, ENVIRONMENTS), folder=tmp_path)
    assert done.returncode == 0, done.stderr + done.stdout
    for path in ENVIRONMENTS:
        installed = set((tmp_path / f"{path.stem}.txt").read_text().split())
        pinned = []
        for item in yaml.safe_load(path.read_text())["dependencies"]:
            pinned += [f"pip-{pin}" for pin in item["pip"]] if isinstance(item, dict) else [item]
        exact = [pin for pin in pinned if "==" in pin]
        assert len(exact) > 10
        assert {f"{pin.replace('==', '-')}-0.json" for pin in exact} <= installed
        # What the pins bring along is solved, too, and to the locked version: there is no other.
        assert len(installed) > len(exact) + 5


def test_a_pin_that_the_lock_does_not_have_fails(conda, tmp_path):
    wrong = tmp_path / "data.yaml"
    wrong.write_text(re.sub(r"- scanpy==.*", "- scanpy==1.11.4", (REPOSITORY / "envs/data.yaml").read_text()))
    done = snakemake(conda, snakefile=one_rule_each(tmp_path, [wrong]), folder=tmp_path)
    assert done.returncode != 0
    assert "Could not create conda environment" in done.stderr
    assert "No candidates were found for scanpy ==1.11.4" in done.stderr
    assert not (tmp_path / "data.txt").exists()


def test_the_workflow_runs_a_rule_in_its_environment(conda, tmp_path):
    arguments = [
        *(
            "--configfile",
            str(REPOSITORY / "config/test.yaml"),
            "--profile",
            str(REPOSITORY / "config/profiles/default"),
        ),
        "results/test/data/simulated_small/card.json",
    ]
    done = snakemake(conda, *arguments, snakefile=REPOSITORY / "Snakefile", folder=tmp_path)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "Activating conda environment" in done.stderr + done.stdout
    [made] = (tmp_path / ".snakemake/conda").glob("*.yaml")
    assert made.read_text() == (REPOSITORY / "envs/data.yaml").read_text()
    assert (tmp_path / "results/test/data/simulated_small/card.json").exists()
