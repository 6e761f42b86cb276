"""The resolved configuration of each workflow run, kept once per content: what `conceptome reproduce` runs again."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conceptome.errors import DataError
from conceptome.files import atomic_path, read_json, sha256_file, write_json
from conceptome.provenance.folder import WORKFLOW_VARIABLE, ProvenanceFolder

if TYPE_CHECKING:
    from collections.abc import Iterable

    from conceptome.config.run import Config


def keep(config: Config, files: Iterable[str]) -> None:
    """Keep the configuration that a workflow run resolved to, and name it in the run's facts.

    The Snakefile calls it when jobs are about to run: Snakemake alone knows what its own arguments made of the files.
    Where no front door has written facts of this run (Snakemake was started by itself), they are written here.

    Parameters
    ----------
    config
        The resolved configuration.
    files
        The configuration files that it was read from.
    """
    folder = ProvenanceFolder(config.run.results)
    # Not sorted: the order of dictionaries is the order of rows and panels.
    text = json.dumps(config.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    key = hashlib.sha256(text.encode()).hexdigest()
    if not (folder.configurations / f"{key}.json").is_file():
        with atomic_path(folder.configurations / f"{key}.json") as temporary:
            temporary.write_text(text, encoding="utf-8")
    workflow = os.environ[WORKFLOW_VARIABLE]
    path = folder.workflows / f"{workflow}.json"
    own = {
        "id": workflow,
        "name": config.run.name,
        "configuration": ", ".join(map(str, files)),
        "reason": "Snakemake was started by itself",
        "studies": list(config.studies),
        "started": time.time(),
    }
    write_json(path, {**(read_json(path) if path.is_file() else own), "resolved": key})


def kept(folder: ProvenanceFolder, workflow: str | None) -> dict[str, Any]:
    """Read the configuration that a workflow run resolved to: run, studies by name, and bases (what these extend).

    Raises
    ------
    DataError
        The run's facts name none (a record of an earlier version), or it was altered.
    """
    facts = folder.workflows / f"{workflow}.json"
    key = read_json(facts).get("resolved") if facts.is_file() else None
    path = folder.configurations / f"{key}.json"
    if key is None or not path.is_file():
        raise DataError(f"{facts}: the configuration of this run was not kept: run again with this version")
    if sha256_file(path) != key:
        raise DataError(f"{path}: not the configuration that its name stands for: it was altered")
    return read_json(path)


def write_as_files(content: dict[str, Any], folder: Path) -> None:
    """Write a kept configuration as the YAML files of a checkout's config `folder`: default.yaml and its studies."""
    import yaml

    from conceptome.config.run import REMOVABLE

    studies = {**content.get("bases", {}), **content["studies"]}
    files = {folder / "default.yaml": content["run"]}
    for name, study in studies.items():
        base = studies.get(study.get("extends"), {})
        # A study is laid over the one that it extends: what it had left out of it must be left out again.
        left_out = {key: dict.fromkeys(set(base.get(key, {})) - set(study[key])) for key in REMOVABLE}
        files[folder / "studies" / f"{name}.yaml"] = {
            **study,
            **{key: {**study[key], **dict(sorted(names.items()))} for key, names in left_out.items()},
        }
    for path, values in files.items():
        with atomic_path(path) as temporary:
            temporary.write_text(yaml.safe_dump(values, allow_unicode=True, sort_keys=False), encoding="utf-8")
