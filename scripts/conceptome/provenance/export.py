"""`conceptome export`: the provenance in a form that other tools read."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from conceptome.errors import ConceptomeError, DataError
from conceptome.files import sha256_file


def command(arguments: argparse.Namespace) -> int:
    """Write a crate, a PROV document or a signed statement, and say what it holds."""
    from conceptome.provenance import crate, prov_document, statement
    from conceptome.provenance.history import History

    form = next(name for name in ("crate", "prov", "intoto") if getattr(arguments, name))
    out = Path(getattr(arguments, form))
    if arguments.signing_key and form != "intoto":
        raise ConceptomeError("--signing-key goes with --intoto: a crate and a PROV document are not signed")
    try:
        if form == "intoto":
            path = statement.export(arguments.results, out, arguments.signing_key)
            numbers = {"subjects": len(statement.read(path)["subject"])}
        else:
            numbers = {"crate": crate.write, "prov": prov_document.write}[form](History(arguments.results), out)
    except OSError as error:
        raise DataError(f"{out} could not be written: {error.strerror or error}") from None
    told = {"command": "export", "clean": True, "findings": [], "form": form, "path": str(out), **numbers}
    if out.is_file():
        told["sha256"] = sha256_file(out)
    if arguments.json:
        print(json.dumps(told))
    else:
        print(f"{form}: {out} ({', '.join(f'{count} {name}' for name, count in numbers.items())})")
    return 0
