"""UniProtKB by its REST interface: every entry that a query finds, as FASTA, TSV or flat file.

The interface gives at most 500 entries a page, the address of the next page in the Link header, the number of entries
in X-Total-Results and the release in X-UniProt-Release (https://www.uniprot.org/help/api_queries). Pages are asked for
in the order of accessions, so that equal releases give equal bytes.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conceptome.errors import SourceError
from conceptome.sources.transfer import Unavailable, get

if TYPE_CHECKING:
    from conceptome.config.archives import Uniprot

FORMATS = {"fasta": "fasta", "tsv": "tsv", "flat": "txt"}


def retrieve(request: Uniprot, target: Path) -> dict[str, Any]:
    """Write the entries and give what the receipt holds beside the request. See `conceptome.archives.retrieve`."""
    if request.format == "tsv" and "accession" not in request.fields:
        raise SourceError("uniprot: fields lacks 'accession', by which features are told apart: add it")
    address = f"{request.address.rstrip('/')}/uniprotkb/search"
    question = {
        "query": request.query,
        "format": FORMATS[request.format],
        "size": str(request.page),
        "sort": "accession asc",
        **({"fields": ",".join(request.fields)} if request.format == "tsv" else {}),
    }
    release = total = None
    entries = 0
    pages = []
    with open(target, "wb") as sink:
        while address:
            try:
                answer = get(address, params=question)
            except Unavailable as reason:
                hint = ": the query or a field is not understood" if reason.status == 400 else ""
                raise SourceError(
                    f"uniprot: page {len(pages) + 1} of query '{request.query}': {reason}{hint}"
                ) from None
            told = answer.headers.get("X-UniProt-Release")
            release = release or told
            _check_release(request, release, told)
            total = total or _number(answer.headers.get("X-Total-Results"))
            text = answer.content
            entries += _count(text, request.format)
            sink.write(_without_header(text) if request.format == "tsv" and pages else text)
            pages.append({"url": answer.url, "size": len(text), "sha256": hashlib.sha256(text).hexdigest()})
            # The address of the next page carries the whole question.
            address, question = answer.links.get("next", {}).get("url"), None
    if not entries:
        raise SourceError(f"uniprot: query '{request.query}' finds no entry: check it on www.uniprot.org")
    if total is not None and entries != total:
        raise SourceError(
            f"uniprot: query '{request.query}' finds {total:,} entries but its {len(pages)} pages hold {entries:,}: "
            "try again"
        )
    return {"release": release, "entries": entries, "files": pages}


def _check_release(request: Uniprot, first: str | None, told: str | None) -> None:
    if request.release is not None and told != request.release:
        raise SourceError(
            f"uniprot: release {told or 'unknown'} answers, but the configuration asks for {request.release}: take the "
            "new release into `archive.release`, or the file from ftp.uniprot.org (previous_releases)"
        )
    if told != first:
        raise SourceError(f"uniprot: the release changed from {first} to {told} between two pages: try again")


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None


def _count(text: bytes, kind: str) -> int:
    """Count the entries of a page."""
    lines = text.splitlines()
    if kind == "tsv":
        return max(0, sum(bool(line.strip()) for line in lines) - 1)
    return sum(line.startswith(b">" if kind == "fasta" else b"//") for line in lines)


def _without_header(text: bytes) -> bytes:
    return text.partition(b"\n")[2]
