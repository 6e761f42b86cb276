"""A rule's job without Snakemake around it: the object that a script is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from snakemake.iocontainers import InputFiles, Log, OutputFiles, Params, ResourceList, Snakemake, Wildcards


def fake_job(
    folder: Path,
    *,
    rule: str = "whiten",
    inputs: dict[str, Any] | None = None,
    outputs: dict[str, Any] | None = None,
    params: dict[str, Any] | None = None,
    wildcards: dict[str, str] | None = None,
    results: str = "results",
) -> Snakemake:
    """Build the object that Snakemake gives to a script; paths are below `folder`/results unless absolute."""
    return Snakemake(
        InputFiles(fromdict=inputs or {}),
        OutputFiles(fromdict=outputs or {}),
        Params(fromdict=params or {}),
        Wildcards(fromdict=wildcards or {}),
        1,
        ResourceList(fromdict={}),
        Log([str(folder / results / "logs" / f"{rule}.log")]),
        {"results": str(folder / results)},
        rule,
        None,
        None,
    )
