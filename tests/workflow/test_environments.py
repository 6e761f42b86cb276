"""The conda-forge environments pin what requirements.lock pins, hold what rules import; profiles name real rules."""

import ast
import importlib.metadata
import re
import sys
from functools import cache
from itertools import chain
from pathlib import Path

import pytest
import yaml
from workspace import REPOSITORY

from conceptome.provenance.closure import PACKAGES, closure

# What conda-forge calls a package whose name on PyPI is another.
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base", "huggingface-hub": "huggingface_hub"}
LOCK_NAMES = {conda: name for name, conda in CONDA_NAMES.items()}
# Imported only where there is a GPU, or only to say that it is missing.
OPTIONAL = {"triton", "torchvision"}


def lock() -> dict[str, str]:
    text = (REPOSITORY / "requirements.lock").read_text()
    pins = re.findall(r"^([A-Za-z0-9_.-]+)==([^\s\\]+)", text, re.MULTILINE)
    return {name.lower().replace("_", "-"): version for name, version in pins}


def locked_pins(path: Path) -> dict[str, str]:
    """Package (as the lock calls it) → version of an environment, pip's part included."""
    dependencies = yaml.safe_load(path.read_text())["dependencies"]
    by_pip = list(chain.from_iterable(item["pip"] for item in dependencies if isinstance(item, dict)))
    by_conda = [item for item in dependencies if not isinstance(item, dict) and item != "pip"]
    pins = [re.fullmatch(r"([a-z0-9_.-]+)==(\S+)", pin) for pin in [*by_conda[1:], *by_pip]]
    assert by_conda[0] == "python>=3.11"
    assert all(pins)
    found = {LOCK_NAMES.get(pin[1], pin[1]): pin[2] for pin in pins}
    assert len(found) == len(pins)
    return found


@pytest.mark.parametrize("path", sorted((REPOSITORY / "envs").glob("*.yaml")), ids=lambda path: path.stem)
def test_pins_equal_the_lock(path):
    assert yaml.safe_load(path.read_text())["channels"] == ["conda-forge", "nodefaults"]
    pins, locked = locked_pins(path), lock()
    assert len(pins) > 5
    assert pins == {name: locked.get(name) for name in pins}


@cache
def distributions() -> dict[str, set[str]]:
    """Module → packages of the lock that bring it."""
    found = importlib.metadata.packages_distributions()
    return {module: {name.lower().replace("_", "-") for name in names} for module, names in found.items()}


@cache
def imported(file: Path) -> frozenset[str]:
    """Modules of others that a file imports at run time, and those that it looks up by a constant name."""
    tree = ast.parse(file.read_text())
    unused = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            unused.update(id(inner) for inner in chain.from_iterable(map(ast.walk, node.body)))
    names = set()
    for node in ast.walk(tree):
        if id(node) in unused:
            continue
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("find_spec") and node.args:
            asked = node.args[0].value if isinstance(node.args[0], ast.Constant) else "torch"
            # Whether torch is there decides how kernels are built, where both answers are right.
            names.update({asked} - {"torch"})
    tops = {name.split(".")[0] for name in names}
    return frozenset(tops - sys.stdlib_module_names - set(PACKAGES) - OPTIONAL)


def scripts_of_environments() -> dict[str, set[str]]:
    """Environment → scripts of the rules that name it."""
    found: dict[str, set[str]] = {}
    for path in (REPOSITORY / "rules").glob("*.smk"):
        pairs = re.findall(r'"\.\./envs/([a-z]+)\.yaml"|"\.\./scripts/([a-z_]+\.py)"', path.read_text())
        for (environment, _), (_, script) in zip(pairs[::2], pairs[1::2], strict=True):
            found.setdefault(environment, set()).add(script)
    return found


@pytest.mark.parametrize("environment", sorted(scripts_of_environments()))
def test_an_environment_holds_what_its_rules_import(environment):
    provided = set(locked_pins(REPOSITORY / "envs" / f"{environment}.yaml"))
    missing = []
    for script in sorted(scripts_of_environments()[environment]):
        for file in closure(f"scripts/{script}", root=REPOSITORY)["files"]:
            for module in imported(REPOSITORY / file) if file.endswith(".py") else ():
                if not distributions().get(module, {module}) & provided:
                    missing.append(f"{script} reaches {file}, which imports {module}")
    assert not missing, missing[:5]


def test_torch_is_pinned_without_a_hash():
    text = (REPOSITORY / "requirements.lock").read_text()
    assert re.search(r"^torch==2\.13\.0\n(?!    --hash)", text, re.MULTILINE)


def test_the_lock_names_no_address():
    assert "://" not in (REPOSITORY / "requirements.lock").read_text()


def test_every_rule_environment_exists():
    named = set()
    for path in (REPOSITORY / "rules").glob("*.smk"):
        named |= set(re.findall(r'"\.\./envs/([a-z]+)\.yaml"', path.read_text()))
    assert named == {path.stem for path in (REPOSITORY / "envs").glob("*.yaml")}


def pins(name):
    """Package → version of a list for scripts/setup_tools.sh: exact versions, and no address."""
    text = (REPOSITORY / "envs" / name).read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line) for line in lines)
    found = dict(line.split("==") for line in lines)
    assert len(found) == len(lines)
    return found


@pytest.mark.parametrize("name", ["conda.txt", "remote.txt", "s3-server.txt"])
def test_tools_that_tests_run_beside_the_lock_agree_with_it(name):
    locked = lock()
    assert {package: locked.get(package, version) for package, version in pins(name).items()} == pins(name)


def test_the_validators_are_pinned():
    assert {"roc-validator", "runcrate", "rocrate", "rdflib", "pyshacl"} <= set(pins("validators.txt"))


def test_the_peers_are_pinned():
    found = pins("peers.txt")
    assert found["torch"] == lock()["torch"]
    assert {"sae-lens", "dictionary-learning", "eai-sparsify", "overcomplete", "scikit-learn", "spams-bin"} <= set(
        found
    )


def test_the_peers_of_the_gene_sets_are_pinned():
    assert {"gseapy", "decoupler", "numba", "anndata"} <= set(pins("gene-set-peers.txt"))


def test_the_executor_for_slurm_is_pinned_and_not_in_the_lock():
    found = pins("hpc.txt")
    assert set(found) == {"snakemake-executor-plugin-slurm", "snakemake-executor-plugin-slurm-jobstep"}
    assert not set(found) & set(lock())


def profile(name):
    return yaml.safe_load((REPOSITORY / "config/profiles" / name / "config.yaml").read_text())


def test_what_is_not_about_slurm_is_as_in_the_default_profile():
    slurm, default = profile("slurm"), profile("default")
    assert {key for key in default if slurm.get(key) != default[key]} == {"max-jobs-per-timespan"}


def test_every_rule_has_memory_and_time_by_attempt_and_every_group_a_size():
    rules = "".join(path.read_text() for path in sorted((REPOSITORY / "rules").glob("*.smk")))
    blocks = re.findall(r"resources:\n((?: +\w+=.*\n)+)", rules)
    assert len(blocks) >= len(re.findall(r"^ +script:$", rules, re.MULTILINE)) > 15
    for block in blocks:
        assert re.fullmatch(r" +mem_mb=.*memory\(.*,\n +runtime=minutes\(\d+\),\n( +gpu=.*\n)?", block), block
    sizes = dict(item.split("=") for item in profile("slurm")["group-components"])
    assert set(re.findall(r'short\("(.+)"\)', rules)) == set(sizes)
    for rule in profile("slurm")["slurm-array-jobs"].split(", "):
        assert re.search(rf"^ *(rule|use rule \w+ as) {rule}\b", rules, re.MULTILINE), rule
