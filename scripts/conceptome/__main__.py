"""The command line: `conceptome run` and the smaller doors beside it."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from conceptome import __version__
from conceptome.errors import ConceptomeError

# Libraries that dictionaries are exchanged with.
LIBRARIES = ("sae-lens",)


def build_parser() -> argparse.ArgumentParser:
    """Describe every command. Nothing heavy is imported: `conceptome --help` answers at once."""
    parser = argparse.ArgumentParser(prog="conceptome", description="From raw biological data to concepts.")
    parser.add_argument("--version", action="version", version=f"conceptome {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="run the pipeline", description="Everything after -- goes to Snakemake.")
    _add_config(run)
    run.add_argument("--name", help="name of this run, and of its folder in results/studies/")
    run.add_argument("--cores", help="number of cores (default: all; with --profile, what the profile says)")
    run.add_argument("--profile", metavar="DIR", help="how Snakemake runs, e.g. config/profiles/slurm (docs/hpc.md)")
    run.add_argument("--dry-run", action="store_true", help="say what would be run, and run nothing")
    run.add_argument("--directory", default=".", metavar="DIR", help="folder to work in (default: this one)")
    run.set_defaults(function=_run)

    sources = commands.add_parser("sources", help="the source files").add_subparsers(required=True, metavar="COMMAND")
    check = sources.add_parser("check", help="tell which source files are reachable")
    check.set_defaults(function=_sources_check)

    mlflow = commands.add_parser("mlflow", help="the tracking database").add_subparsers(
        required=True, metavar="COMMAND"
    )
    ingest = mlflow.add_parser("ingest", help="write new records into the ledger and MLflow; safe to repeat")
    _add_results(ingest)
    ingest.add_argument("--name", help="experiment of the jobs that serve several studies (default: the run's name)")
    ingest.add_argument("--signing-key", metavar="FILE", help="sign the outputs and the ledger: statement.dsse.json")
    ingest.set_defaults(function=_mlflow_ingest)

    costs = commands.add_parser("costs", help="CPU seconds of the factorial study's fits and encodings, as a table")
    _add_results(costs)
    costs.set_defaults(function=_costs)

    overhead = commands.add_parser("overhead", help="what a run spent on Snakemake and on starting jobs")
    _add_results(overhead)
    overhead.add_argument("--run", metavar="ID", help="workflow run (default: the newest that ended well)")
    overhead.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    overhead.set_defaults(function=_audit_command, module="conceptome.provenance.overhead")

    plan = commands.add_parser("plan", help="time, memory, disk and cost of each stage of a study at another size")
    plan.add_argument("study", metavar="STUDY", help="a study of config/studies, e.g. yeast")
    plan.add_argument("--rows", type=float, required=True, help="rows of activations, e.g. 1e9")
    plan.add_argument("--nodes", type=int, default=1, help="machines (default: 1)")
    plan.add_argument("--cores", type=int, help="cores of each (default: as many as the rates were measured with)")
    plan.add_argument("--gpus", type=int, default=0, help="GPUs of each (default: none)")
    plan.add_argument("--hardware", help="name of the measured machine (default: the only one of its kind)")
    plan.add_argument("--rates", metavar="FILE", help="measured rates (default: docs/rates.json)")
    plan.add_argument("--config", metavar="FILE", help="configuration (default: config/default.yaml)")
    plan.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    plan.set_defaults(function=_audit_command, module="conceptome.plan")

    _add_audit(commands)

    dictionary = commands.add_parser("dictionary", help="dictionaries of other libraries").add_subparsers(
        required=True, metavar="COMMAND"
    )
    export = dictionary.add_parser("export", help="write a learned dictionary as another library's folder")
    export.add_argument("--to", required=True, choices=LIBRARIES, help="the library that is to read it")
    _add_folders(export)
    export.set_defaults(function=_dictionary_export)
    importer = dictionary.add_parser("import", help="save another library's folder as a dictionary")
    importer.add_argument("--from", required=True, dest="source", choices=LIBRARIES, help="the library that wrote it")
    _add_folders(importer)
    importer.set_defaults(function=_dictionary_import)
    compare = dictionary.add_parser("compare", help="how far two dictionaries of one space agree, both ways")
    compare.add_argument("folder", metavar="A", help="folder of a dictionary")
    compare.add_argument("other", metavar="B", help="folder of another, of the same model and whitening")
    compare.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    compare.set_defaults(function=_dictionary_compare)

    atom = commands.add_parser("atom", help="the card of one atom: what it stands for, and what says so")
    atom.add_argument("place", metavar="DATASET/MODEL/WHITENING/DICTIONARY", help="which dictionary")
    atom.add_argument("atom", metavar="ATOM", type=int, help="its number, from 0")
    atom.add_argument("--seed", type=int, help="seed of the fit (default: the first)")
    _add_results(atom)
    atom.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    atom.set_defaults(function=_audit_command, module="conceptome.explanations.door")

    dag = commands.add_parser("dag", help="draw the graph of rules")
    _add_config(dag)
    dag.add_argument("--output", metavar="FILE", help="default: dag.svg in the results folder")
    dag.set_defaults(function=_dag)

    report = commands.add_parser("report", help="write Snakemake's report, one HTML file that needs no network")
    _add_config(report)
    report.set_defaults(function=_report)

    unlock = commands.add_parser("unlock", help="remove the lock that a killed run left behind")
    unlock.add_argument("--directory", default=".", metavar="DIR", help="folder to unlock (default: this one)")
    unlock.set_defaults(function=_unlock)

    schema = commands.add_parser(
        "schema", help="write what is generated from the configuration: schema.json, README.md, docs/studies"
    )
    schema.set_defaults(function=_schema)
    return parser


def _add_audit(commands: argparse._SubParsersAction) -> None:
    """Add the commands that answer an auditor: each names the module whose `command(arguments)` gives the exit code."""
    why = _audit(commands, "why", "where a file comes from: every step back to the raw bytes")
    why.add_argument("target", metavar="FILE|FIGURE", help="a file, also a copy from elsewhere; F3; F3b (a panel)")
    why.add_argument("--graph", metavar="SVG", help="draw the chain")

    verify = _audit(commands, "verify", "whether anything was altered since it was recorded")
    verify.add_argument("--cold", action="store_true", help="hash every file again, trust no cache")
    verify.add_argument("--public-key", metavar="FILE", help="key that the statement must be signed with")

    reproduce = _audit(commands, "reproduce", "run the chain again from raw bytes, elsewhere, and compare")
    reproduce.add_argument("target", metavar="FILE|FIGURE", help="a file of the results folder, or F3")
    reproduce.add_argument("--directory", metavar="DIR", help="new folder to work in (default: a temporary one)")
    reproduce.add_argument("--cores", default="all", help="number of cores (default: all)")

    diff = _audit(commands, "diff", "which input, code, parameter, package or machine explains each difference")
    diff.add_argument("run_a", metavar="RUN_A", help="a workflow run's id, `last`, `last-1`, or a results folder")
    diff.add_argument("run_b", metavar="RUN_B", help="the same, of the run to compare with")

    trace = _audit(commands, "trace", "run one job and fail on any read or write that its rule does not declare")
    trace.add_argument("rule", metavar="RULE", help="the rule to run")
    trace.add_argument("--config", metavar="FILE", help="configuration file (default: chosen on the first run)")
    trace.add_argument("--wildcards", default="", metavar="KEY=VALUE,…", help="which job (default: the first)")

    export = _audit(commands, "export", "write the provenance in a standard form")
    form = export.add_mutually_exclusive_group(required=True)
    form.add_argument("--crate", metavar="OUT", help="a Workflow Run RO-Crate (Provenance Run Crate), folder or .zip")
    form.add_argument("--prov", metavar="OUT", help="W3C PROV-JSON")
    form.add_argument("--intoto", metavar="OUT", help="a signed in-toto statement in a DSSE envelope")
    export.add_argument("--signing-key", metavar="FILE", help="for --intoto (default: as the last ingest signed)")

    release = _audit(commands, "release", "what one attaches to a paper: figures, tables, cards, crate, lock")
    release.add_argument("study", metavar="STUDY", help="a folder of results/studies, e.g. default")
    release.add_argument("--out", metavar="OUT", help="folder or .zip to write (default: STUDY.zip here)")

    key = commands.add_parser("key", help="keys that sign the ledger").add_subparsers(required=True, metavar="COMMAND")
    new = key.add_parser("new", help="write a new Ed25519 key pair: FILE and FILE.pub")
    new.add_argument("file", metavar="FILE", help="must not exist")
    new.set_defaults(function=_audit_command, module="conceptome.provenance.signature")


def _audit(commands: argparse._SubParsersAction, name: str, help: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}. Exit code 0: all is well.")
    _add_results(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.set_defaults(function=_audit_command, module=f"conceptome.provenance.{name}")
    return parser


def _audit_command(arguments: argparse.Namespace) -> int:
    return importlib.import_module(arguments.module).command(arguments)


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", help="configuration file (default: chosen on the first run)")
    parser.add_argument("--studies", metavar="A,B", help="only these studies")


def _add_folders(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="what is read")
    parser.add_argument("out", metavar="OUT", help="folder to write; must be new or empty")


def _add_results(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--results", default="results", metavar="DIR", help="results folder (default: results)")


def _request(arguments: argparse.Namespace, extra: Sequence[str] = ()):
    from conceptome.provenance.run import Request

    return Request(
        config=arguments.config,
        studies=tuple(item for item in (arguments.studies or "").split(",") if item),
        name=getattr(arguments, "name", None),
        cores=getattr(arguments, "cores", "1"),
        profile=getattr(arguments, "profile", None),
        dry_run=getattr(arguments, "dry_run", False),
        directory=getattr(arguments, "directory", "."),
        extra=tuple(extra),
    )


def _run(arguments: argparse.Namespace) -> int:
    from conceptome.provenance.run import run

    return run(_request(arguments, arguments.extra))


def _dag(arguments: argparse.Namespace) -> int:
    from conceptome.provenance.drawing import draw_rules

    print(f"graph of rules: {draw_rules(_request(arguments), arguments.output)}")
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from conceptome.provenance.drawing import write_report

    print(f"report: {write_report(_request(arguments))}")
    return 0


def _unlock(arguments: argparse.Namespace) -> int:
    from conceptome.provenance.run import unlock

    return unlock(arguments.directory)


def _sources_check(arguments: argparse.Namespace) -> int:
    from conceptome.provenance.run import checkout
    from conceptome.sources import check, load_sources, mirrors

    found = check(load_sources(checkout() / "config" / "sources.yaml").values(), mirrors())
    for status in found:
        print(status)
    return 0 if all(status.reachable for status in found) else 1


def _mlflow_ingest(arguments: argparse.Namespace) -> int:
    from conceptome.provenance.mlflow import ingest

    if not Path(arguments.results).is_dir():
        raise ConceptomeError(f"no results folder {arguments.results}: name it with --results")
    done = ingest(arguments.results, run_name=arguments.name)
    entries = f"{done.entries} ledger entries added"
    print(f"provenance: {done.added} jobs written to MLflow, {done.already} were there; {entries}")
    for name in done.crashed:
        print(f"provenance: job {name} started and never ended (killed?)")
    for line in done.altered:
        print(f"provenance: not written: {line}; `conceptome verify` tells more")
    # What was altered gets no signature: it would turn the attacker's word into ours.
    if arguments.signing_key and not done.altered:
        from conceptome.provenance.statement import write

        print(f"provenance: signed: {write(arguments.results, arguments.signing_key)}")
    return 0


def _costs(arguments: argparse.Namespace) -> int:
    from conceptome.provenance.costs import costs

    print(costs(arguments.results))
    return 0


def _dictionary_export(arguments: argparse.Namespace) -> int:
    from conceptome.dictionaries.interchange import export

    export(arguments.folder, arguments.out, to=arguments.to)
    print(f"{arguments.to}: {arguments.out}")
    return 0


def _dictionary_import(arguments: argparse.Namespace) -> int:
    from conceptome.dictionaries.interchange import import_from

    import_from(arguments.folder, arguments.out, source=arguments.source)
    print(f"dictionary: {arguments.out}")
    return 0


def _dictionary_compare(arguments: argparse.Namespace) -> int:
    from conceptome.measures.agreement import report

    found = report(arguments.folder, arguments.other)
    if arguments.json:
        import json

        print(json.dumps(found))
        return 0
    for name in ("a", "b"):
        one = found[name]
        print(f"{name.upper()}: {one['method']}, {one['m']} atoms of {one['d']} dimensions")
    print("cosines without their sign" if found["signless"] else "cosines with their sign")
    for way, arrow in (("forward", "A → B"), ("backward", "B → A")):
        one = found[way]
        print(
            f"MMCS {arrow}: {one['mmcs']:.3f} [{one['low']:.3f}, {one['high']:.3f}], random dictionaries "
            f"{one['null']:.3f} [{one['null_low']:.3f}, {one['null_high']:.3f}]"
        )
    one = found["forward"]
    print(
        f"matched one to one: {one['hungarian']:.3f} [{one['hungarian_low']:.3f}, {one['hungarian_high']:.3f}], random "
        f"{one['hungarian_null']:.3f}; {100 * one['shared']:.1f} % above .7, random {100 * one['shared_null']:.1f} %"
    )
    return 0


def _schema(arguments: argparse.Namespace) -> int:
    import json

    from conceptome.config.reference import render
    from conceptome.config.run import Config, load
    from conceptome.files import atomic_path
    from conceptome.papers import outline
    from conceptome.provenance.run import checkout

    path = checkout() / "config" / "schema.json"
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(Config.model_json_schema(), indent=1, ensure_ascii=False) + "\n", "utf-8")
    page = checkout() / "config" / "README.md"
    with atomic_path(page) as temporary:
        temporary.write_text(render(), "utf-8")
    print(f"schema: {path}\nreference: {page}")
    config = checkout() / "config"
    if not (config / "papers.yaml").is_file():
        return 0
    for name, study in load([config / "default.yaml", config / "papers.yaml"], config).studies.items():
        if study.paper is not None:
            with atomic_path(checkout() / "docs" / "studies" / f"{name}.md") as temporary:
                temporary.write_text(outline(name, study.paper), "utf-8")
    return 0


def _refused(error: PermissionError) -> str:
    """Say whose file it is that this user may not touch, and what to do."""
    from conceptome.provenance.folder import user_name

    path = Path(error.filename or ".").absolute()
    existing = next(folder for folder in (path, *path.parents) if os.path.exists(folder))
    return (
        f"{user_name(os.getuid())} has no right to {path} ({existing} belongs to {user_name(existing.stat().st_uid)}): "
        "ask for it, or work in a folder of your own (--directory)"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; gives the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    extra: list[str] = []
    if "--" in words:
        position = words.index("--")
        words, extra = words[:position], words[position + 1 :]
    parsed = build_parser().parse_args(words)
    if extra and parsed.command != "run":
        build_parser().error("only `conceptome run` takes arguments for Snakemake after --")
    parsed.extra = extra
    try:
        return parsed.function(parsed)
    except ConceptomeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except PermissionError as error:
        print(f"error: {_refused(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader (head, less) has gone; without this Python complains once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        # SQLite reports a full disk in an error of its own, which comes wrapped.
        if "disk is full" not in str(error):
            raise
        print("error: the disk is full: free space, then run `conceptome mlflow ingest`", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
