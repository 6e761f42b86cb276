"""The in-toto statement of a results folder: every output by sha256, the raw sources, and the head of the ledger.

With a signing key each ingest writes it to results/statement.dsse.json. Sources: in-toto Attestation Framework,
Statement v1 and Link v0.3, https://github.com/in-toto/attestation.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conceptome.errors import DataError
from conceptome.files import atomic_path, read_json, write_json
from conceptome.provenance import published, signature
from conceptome.provenance.folder import ProvenanceFolder, canonical, lock
from conceptome.provenance.history import History
from conceptome.provenance.ledger import GENESIS, entries

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://in-toto.io/attestation/link/v0.3"


def statement(results: str | os.PathLike) -> dict[str, Any]:
    """State what the records say: equal records and an equal ledger give an equal statement.

    Returns
    -------
    Subjects: every current output, path as recorded. Predicate: `materials` (the retrieved sources with their
    addresses) and `byproducts.ledger` (`head`: digest of the last entry, `entries`: how many).

    Raises
    ------
    DataError
        The folder holds no records, or a record or the ledger cannot be read.
    """
    history = History(results)
    read = entries(results)
    materials = {
        source.address: {"name": source.name, "uri": source.address, "digest": {"sha256": source.sha256}}
        for job in history.jobs.values()
        for source in published.sources(job)
    }
    return {
        "_type": STATEMENT_TYPE,
        "subject": [
            {"name": path, "digest": {"sha256": item.sha256}} for path, (_, item) in sorted(history.outputs.items())
        ],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "name": "conceptome",
            "command": [],
            "materials": [materials[address] for address in sorted(materials)],
            "byproducts": {"ledger": {"head": read[-1]["digest"] if read else GENESIS, "entries": len(read)}},
            "environment": {},
        },
    }


def write(results: str | os.PathLike, key_path: str | os.PathLike, out: str | os.PathLike | None = None) -> Path:
    """Sign the results folder as the ledger has it now, in a DSSE envelope; gives the file written."""
    folder = ProvenanceFolder(results)
    path = Path(out) if out else folder.statement
    with lock(folder.path / "ingest.lock"):  # no ledger entry may be added between reading and writing
        write_json(path, signature.sign(canonical(statement(results)), PAYLOAD_TYPE, key_path))
    return path


def export(results: str | os.PathLike, out: str | os.PathLike, key_path: str | os.PathLike | None = None) -> Path:
    """Write a signed statement elsewhere: a new one, or without a key the one that the last ingest signed.

    Raises
    ------
    DataError
        Without a key: no ingest signed the results, or something changed since. A DSSE envelope without a signature
        is none, so that none is written.
    """
    if key_path is not None:
        return write(results, key_path, out)
    kept = ProvenanceFolder(results).statement
    if not kept.is_file():
        raise DataError(
            f"{results}: nothing was signed here: name a key with --signing-key (`conceptome key new FILE`)"
        )
    changed = differences(results, read(kept))
    if changed:
        raise DataError(f"{kept} no longer holds: {changed[0]}; sign anew with --signing-key FILE")
    with atomic_path(out) as temporary:
        temporary.write_bytes(kept.read_bytes())
    return Path(out)


def read(path: str | os.PathLike, public_key: str | os.PathLike | None = None) -> dict[str, Any]:
    """Read a statement from its envelope; with a public key, only if that key signed it.

    Raises
    ------
    DataError
        It is missing or no statement, or its signature does not hold.
    """
    try:
        found = read_json(path)
        payload = signature.verify(found, public_key) if public_key else base64.b64decode(found["payload"])
        content = json.loads(payload)
    except OSError as error:
        raise DataError(f"{path}: no statement: {error.strerror}") from None
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{path}: not a DSSE envelope; it was altered") from None
    if found["payloadType"] != PAYLOAD_TYPE or content.get("predicateType") != PREDICATE_TYPE:
        raise DataError(f"{path}: a signed {content.get('predicateType')}, not the statement of a results folder")
    return content


def differences(results: str | os.PathLike, stated: Mapping[str, Any]) -> list[str]:
    """Compare a statement with the records and the ledger of a results folder: one line per difference."""
    told = stated["predicate"]["byproducts"]["ledger"]
    chain = [GENESIS, *(entry["digest"] for entry in entries(results))]
    if len(chain) <= told["entries"]:
        return [f"the ledger has {len(chain) - 1} entries, but {told['entries']} were signed: its end was cut off"]
    if chain[told["entries"]] != told["head"]:
        return [f"ledger entry {told['entries']} is not the one that was signed: the chain was written anew"]
    if len(chain) - 1 > told["entries"]:
        added = len(chain) - 1 - told["entries"]
        return [f"{added} ledger entries were added after signing: `conceptome mlflow ingest --signing-key` signs them"]
    signed = {item["name"]: item["digest"]["sha256"] for item in stated["subject"]}
    now = {path: item.sha256 for path, (_, item) in History(results).outputs.items()}
    return [
        f"{path}: signed with sha256 {signed.get(path, 'none')[:12]}, recorded now with {now.get(path, 'none')[:12]}"
        for path in sorted(signed.keys() | now.keys())
        if signed.get(path) != now.get(path)
    ]
