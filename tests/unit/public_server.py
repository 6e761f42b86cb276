"""A server on 127.0.0.1 that answers in the shapes of S3, of UniProt's REST interface and of CELLxGENE Discover."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import parse_qs, quote, urlsplit
from xml.sax.saxutils import escape

S3_PAGE = 3


class PublicServer(http.server.ThreadingHTTPServer):
    """What it holds, what it was asked, and which troubles are still to come."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.objects: dict[str, bytes] = {}
        self.documents: dict[str, object] = {}
        self.entries: list[str] = []
        self.releases = ["2026_03"]
        # Path → list of troubles, each met once: a status, (status, Retry-After), 'cut', 'damaged'.
        self.troubles: dict[str, list] = {}
        self.asked: list[str] = []
        self.signed: list[str] = []


@contextmanager
def public_server() -> Iterator[PublicServer]:
    """Run the server in a thread."""
    with PublicServer() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: PublicServer

    def log_message(self, *arguments):
        pass

    def give(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None, trouble=None):
        announced = len(body)
        if trouble == "cut":
            body = body[: len(body) // 2]
        if trouble == "damaged":
            body = body[:-1] + bytes([body[-1] ^ 1])
        self.send_response(status)
        self.send_header("Content-Length", str(announced))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        if trouble == "cut":
            self.close_connection = True

    def do_GET(self):
        place = urlsplit(self.path)
        self.server.asked.append(self.path)
        if "Authorization" in self.headers or "X-Amz-Signature" in self.path:
            self.server.signed.append(self.path)
        trouble = next(iter(self.server.troubles.get(place.path, [])), None)
        if trouble is not None:
            self.server.troubles[place.path].pop(0)
        if isinstance(trouble, int):
            return self.give(b"trouble", trouble)
        if isinstance(trouble, tuple):
            return self.give(b"trouble", trouble[0], {"Retry-After": str(trouble[1])})
        question = {name: values[0] for name, values in parse_qs(place.query).items()}
        if "list-type" in question:
            return self.give(self.listing(place.path.strip("/"), question))
        if place.path == "/uniprotkb/search":
            return self.proteins(question)
        if place.path in self.server.documents:
            return self.give(json.dumps(self.server.documents[place.path]).encode())
        body = self.server.objects.get(place.path.lstrip("/"))
        if body is None:
            return self.give(b"<Error><Code>NoSuchKey</Code></Error>", 404)
        return self.give(body, 200, {"ETag": f'"{hashlib.md5(body).hexdigest()}"'}, trouble)

    def listing(self, bucket: str, question: dict[str, str]) -> bytes:
        """Answer ListObjectsV2."""
        prefix, delimiter = question.get("prefix", ""), question.get("delimiter")
        names = sorted(key.removeprefix(f"{bucket}/") for key in self.server.objects if key.startswith(f"{bucket}/"))
        names = [name for name in names if name.startswith(prefix)]
        if delimiter:
            rest = [name[len(prefix) :] for name in names]
            names = sorted({prefix + name.split("/")[0] + "/" for name in rest if "/" in name})
        start = int(question.get("continuation-token", "0"))
        page, more = names[start : start + S3_PAGE], start + S3_PAGE < len(names)
        items = "".join(
            f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" if delimiter
            else f"<Contents><Key>{escape(name)}</Key></Contents>" for name in page
        )  # fmt: skip
        token = f"<NextContinuationToken>{start + S3_PAGE}</NextContinuationToken>" if more else ""
        return (
            '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{items}</ListBucketResult>"
        ).encode()

    def proteins(self, question: dict[str, str]) -> None:
        """Answer a search in UniProtKB: one page, and the address of the next."""
        if "accession" not in question.get("sort", "") or question["query"] == "nonsense:":
            return self.give(b'{"messages":["invalid"]}', 400)
        start, size = int(question.get("cursor", "0")), int(question["size"])
        chosen = self.server.entries[start : start + size]
        page = start // size
        headers = {
            "X-Total-Results": str(len(self.server.entries)),
            "X-UniProt-Release": self.server.releases[min(page, len(self.server.releases) - 1)],
        }
        if start + size < len(self.server.entries):
            rest = {**question, "cursor": str(start + size)}
            query = "&".join(f"{name}={quote(value)}" for name, value in rest.items())
            headers["Link"] = f'<{self.server.url}/uniprotkb/search?{query}>; rel="next"'
        if question["format"] == "fasta":
            text = "".join(f">sp|{name}|{name}_TEST test\nMKTAYIAKQR\n" for name in chosen)
        elif question["format"] == "txt":
            text = "".join(
                f"ID   {name}_TEST   Reviewed;   10 AA.\nAC   {name};\nFT   DOMAIN          2..5\n"
                f'FT                   /note="SH3"\nSQ   SEQUENCE   10 AA;\n     MKTAYIAKQR\n//\n'
                for name in chosen
            )
        else:
            assert question["fields"].split(",")[0] == "accession"
            text = "Entry\tSequence\tDomain [FT]\n" + "".join(
                f'{name}\tMKTAYIAKQR\tDOMAIN 2..5; /note="SH3"; /evidence="ECO:0000255"\n' for name in chosen
            )
        return self.give(text.encode(), 200, headers)
