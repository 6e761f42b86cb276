"""`conceptome export`: the provenance in a form that other tools read."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from conceptome.errors import ConceptomeError
from conceptome.provenance.pack import write_and_tell


def command(arguments: argparse.Namespace) -> int:
    """Write a crate, a PROV document or a signed statement, and say what it holds."""
    from conceptome.provenance import crate, prov_document, statement
    from conceptome.provenance.history import History

    form = next(name for name in ("crate", "prov", "intoto") if getattr(arguments, name))
    out = Path(getattr(arguments, form))
    if arguments.signing_key and form != "intoto":
        raise ConceptomeError("--signing-key goes with --intoto: a crate and a PROV document are not signed")

    def write() -> Mapping[str, int]:
        if form == "intoto":
            path = statement.export(arguments.results, out, arguments.signing_key)
            return {"subjects": len(statement.read(path)["subject"])}
        return {"crate": crate.write, "prov": prov_document.write}[form](History(arguments.results), out)

    write_and_tell(arguments, write, out, form, form=form)
    return 0
