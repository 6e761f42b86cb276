"""`conceptome release STUDY`: what one attaches to a paper, in one folder or archive."""

from __future__ import annotations

import argparse
import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from conceptome.errors import DataError
from conceptome.files import sha256_file, write_json
from conceptome.provenance import crate, ledger, published
from conceptome.provenance.citation import Citation, citation
from conceptome.provenance.closure import repository
from conceptome.provenance.history import Artifact, History, Job
from conceptome.provenance.pack import new_package, write_and_tell

DOI = re.compile(r"doi:(10\.\S+?)[.,;)]*(?=\s|$)")


def command(arguments: argparse.Namespace) -> int:
    """Write the release and say what is in it."""
    out = Path(arguments.out or f"{arguments.study}.zip")
    write_and_tell(
        arguments, lambda: write(arguments.results, arguments.study, out), out, "release", study=arguments.study
    )
    if not arguments.json:
        print("REPRODUCE.md in it says how to run it again; `sha256sum -c SHA256SUMS` checks it")
    return 0


def write(results: str | os.PathLike, study: str, out: str | os.PathLike) -> dict[str, int]:
    """Write the figures of a study with everything that they rest on; equal results give equal bytes.

    Parameters
    ----------
    study
        A folder of results/studies.
    out
        Folder or .zip; must not exist.

    Returns
    -------
    Numbers of `figures`, `tables`, `cards`, `jobs`, and files `left_out` because of a source's terms.

    Raises
    ------
    DataError
        No job drew a figure of the study; the ledger does not hold; a file was changed since it was recorded; the lock
        is not the one that was recorded; CITATION.cff names no authors.
    """
    history = History(results)
    prefix = f"results/studies/{study}/figures/"
    drawn = [
        job for job, item in history.outputs.values() if published.below_results(history, item.path).startswith(prefix)
    ]
    if not drawn:
        found = sorted(path.name for path in (history.folder.results / "studies").glob("*"))
        raise DataError(f"{results}: no figures of study {study} (there are: {', '.join(found) or 'none'})")
    broken = ledger.verify(results)
    if broken:
        raise DataError(f"{broken[0]}; `conceptome verify` tells all: nothing was released")
    part = history.only(job for figure in drawn for job in history.chain(figure))
    cited = citation()
    places = {
        place: item for path, (_, item) in part.outputs.items() if (place := _place(part, path, prefix)) is not None
    }
    withheld = published.withheld(part)
    left_out = {place: item for place, item in places.items() if item.path in withheld}
    places = {place: item for place, item in places.items() if place not in left_out}
    last = max(drawn, key=lambda job: job.name)
    facts = published.facts(part, last.record.get("workflow"))
    with new_package(out) as folder:
        for place, item in places.items():
            _put(folder, place, published.checked(part, item).read_bytes())
        code = published.repository_files((last.record.get("commit") or {}).get("id"))
        _put(folder, "requirements.lock", _lock(last, code))
        for name, content in _configuration(facts, code).items():
            _put(folder, name, content)
        for name in ("LICENSE", "CITATION.cff"):
            _put(folder, name, (repository() / name).read_bytes())
        crate.write(part, folder / "crate.zip")
        _put(folder, "REPRODUCE.md", _reproduce(part, study, last, facts, places, left_out).encode())
        write_json(folder / ".zenodo.json", _zenodo(part, study, cited))
        sums = sorted((path.relative_to(folder).as_posix(), sha256_file(path)) for path in _files(folder))
        _put(folder, "SHA256SUMS", "".join(f"{digest}  {name}\n" for name, digest in sums).encode())
    kinds = [place.split("/", 1)[0] for place in places]
    figures = {place.split("/")[1] for place in places if place.startswith("figures/")}
    return {
        "figures": len(figures), "tables": kinds.count("tables"), "cards": kinds.count("cards"), "jobs": len(part.jobs),
        **({"left_out": len(left_out)} if left_out else {}),
    }  # fmt: skip


def _place(history: History, path: str, figures: str) -> str | None:
    """Where an output goes in the release; None: it is only named there."""
    place = published.below_results(history, path)
    if place.startswith(figures):
        return f"figures/{place.removeprefix(figures)}"
    if place.startswith("results/evidence/"):
        return f"tables/{place.removeprefix('results/evidence/')}"
    return f"cards/{place.removeprefix('results/')}" if place.endswith("/card.json") else None


def _put(folder: Path, name: str, content: bytes) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _files(folder: Path) -> Iterable[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def _lock(last: Job, code: Mapping[str, bytes]) -> bytes:
    """The lock that the record names: the commit's, or the checkout's where the tree was changed."""
    here = repository() / "requirements.lock"
    for content in (code.get("requirements.lock"), here.read_bytes() if here.is_file() else None):
        if content is not None and hashlib.sha256(content).hexdigest() == last.record.get("lock"):
            return content
    raise DataError(
        f"{here}: not the lock of the run (sha256 {str(last.record.get('lock'))[:12]}…): check it out again"
    )


def _configuration(facts: Mapping[str, Any], code: Mapping[str, bytes]) -> dict[str, bytes]:
    """Every file of config/ as the run had it."""
    found = {name: content for name, content in code.items() if name.startswith("config/")}
    found.update({name: path.read_bytes() for name, path in published.untracked(facts, code).items()})
    return found


def _sources(history: History) -> list[published.Source]:
    found = {source.address: source for job in history.jobs.values() for source in published.sources(job)}
    return [found[address] for address in sorted(found)]


def _commands(last: Job, facts: Mapping[str, Any]) -> list[str]:
    """What a reader types, one per line."""
    commit = last.record.get("commit") or {}
    lines = ["sha256sum -c SHA256SUMS", "unzip crate.zip -x 'results/*' -d conceptome"]
    if commit.get("diff"):
        lines.append(f"unzip -p crate.zip results/.provenance/diffs/{commit['diff']}.diff | patch -p1 -d conceptome")
    lines += ["cd conceptome", "make setup    # exactly the packages of requirements.lock"]
    if "configuration" not in facts:
        return [*lines, "# Snakemake was started by itself: `make run CONFIG=…` with a file of config/"]
    name, path = next(iter(published.configuration(facts).items()))
    if path.is_file() and "signing_key:" in path.read_text(encoding="utf-8"):
        lines.append(f"sed -i /^signing_key:/d {name}    # the key is its author's")
    studies = ",".join(facts["studies"])
    return [*lines, f".venv/bin/conceptome run --config {name} --studies {studies} --name {facts['name']}"]


def _table(head: str, rows: Iterable[str], otherwise: str) -> list[str]:
    rows = list(rows)
    return [head, "|---" * (head.count("|") - 1) + "|", *rows] if rows else [otherwise]


def _reproduce(
    history: History,
    study: str,
    last: Job,
    facts: Mapping[str, Any],
    places: Mapping[str, Artifact],
    left_out: Mapping[str, Artifact],
) -> str:
    record, commit = last.record, last.record.get("commit") or {}
    machine = record.get("machine") or record.get("host") or {}  # host: schema version 1
    inputs = [item for job in history.jobs.values() for item in job.inputs if item.path not in history.outputs]
    lines = [
        f"# How to reproduce the figures of study {study}",
        "",
        f"Drawn from {published.iso(min(job.record['started'] for job in history.jobs.values()))} to "
        f"{published.iso(record['ended'])} by {len(history.jobs)} jobs, whose records are in crate.zip "
        "(results/.provenance/records).",
        "",
        "## Commands",
        "",
        f"Code: commit `{commit.get('id') or 'unknown (no git checkout)'}`"
        f"{' with local changes' if commit.get('dirty') else ''}; crate.zip holds it.",
        "",
        "```console",
        *_commands(last, facts),
        "```",
        "",
        "Where a figure comes from: `conceptome why F3 --results results` in an unpacked crate.zip.",
        "",
        "## Raw sources",
        "",
        *_table(
            "| published file | sha256 | bytes | address | licence | citation |",
            (
                f"| {source.name}{f' (stand-in: {source.stand_in})' if source.stand_in else ''} | `{source.sha256}` | "
                f"{source.size} | {source.address} | {source.licence} | {source.citation} |"
                for source in _sources(history)
            ),
            "No job retrieved a file.",
        ),
        "",
        "## Files of one's own",
        "",
        *_table(
            "| file | sha256 |",
            sorted({f"| {published.below_results(history, item.path)} | `{item.sha256}` |" for item in inputs}),
            "No job read a file that neither was retrieved nor came from another job.",
        ),
        "",
        "## Where it ran",
        "",
        f"- {record.get('python', 'Python')}, {record['threads']} thread(s) a job; kernels: "
        f"{_kernels(history) or 'not used'}",
        *(f"- {key}: {machine[key]}" for key in ("system", "cpu", "cpus", "memory_bytes") if key in machine),
        "",
        "Equal bytes are promised for the same code, packages, threads and kernel variant; on another kind of",
        "processor the last digits of numbers may differ.",
        "",
        "## Expected figures",
        "",
        *_table(
            "| file | sha256 |",
            (f"| {place} | `{places[place].sha256}` |" for place in sorted(places) if place.startswith("figures/")),
            "None.",
        ),
    ]
    if left_out:
        lines += [
            "",
            "## Left out",
            "",
            "These show samples of a source whose terms do not let us pass them on; a run of one's own writes them.",
            "",
            *_table(
                "| file | sha256 |",
                (f"| {place} | `{left_out[place].sha256}` |" for place in sorted(left_out)),
                "None.",
            ),
        ]
    return "\n".join(lines) + "\n"


def _kernels(history: History) -> str:
    """Kernel builds that the jobs used."""
    found = [job.record.get("kernels") for job in history.jobs.values() if job.record.get("kernels")]
    return ", ".join(sorted({item["variant"] if isinstance(item, Mapping) else item for item in found}))


def _zenodo(history: History, study: str, cited: Citation) -> dict[str, Any]:
    """Metadata for Zenodo; creators are the authors of CITATION.cff.

    Source: https://developers.zenodo.org/#representation.
    """
    sources = _sources(history)
    related = {source.address: "isDerivedFrom" for source in sources if source.address.startswith("http")}
    related.update({doi: "cites" for source in sources for doi in DOI.findall(source.citation)})
    wildcards = [job.record["wildcards"] for job in history.jobs.values()]
    data = sorted({item["dataset"] for item in wildcards if "dataset" in item})
    listed = "; ".join(f"{source.name}: {source.licence}" for source in sources)
    over = f"the Conceptome study {study} ({', '.join(data)})" if data else f"the Conceptome study {study}"
    return {
        "upload_type": "dataset",
        "title": f"Figures, evidence tables and provenance of {over}",
        "description": (
            f"<p>Figures and evidence tables of {over}, cards of its data sets, activations and dictionaries, and an "
            "RO-Crate with the code and the provenance records. REPRODUCE.md holds the commands.</p>"
            f"<p>Raw sources keep the licences of their publishers: {listed or 'none'}.</p>"
        ),
        "creators": [
            {key: value for key, value in vars(author).items() if key != "person" and value} for author in cited.authors
        ],
        "license": cited.licence,
        "keywords": cited.content.get("keywords") or ["Conceptome", *data],
        "publication_date": published.iso(published.last_success(history).record["ended"])[:10],
        "related_identifiers": [{"identifier": key, "relation": related[key]} for key in sorted(related)],
    }
