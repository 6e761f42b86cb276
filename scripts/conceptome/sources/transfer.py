"""One way of asking a public server: patient where the trouble may pass, exact about the bytes that came.

`s3://bucket/key` stands for the public (unsigned) HTTPS address of that object. Where AWS_ENDPOINT_URL_S3 or
AWS_ENDPOINT_URL is set, as the AWS tools have it, that server is asked in place of Amazon's.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode
from xml.etree import ElementTree

ATTEMPTS = 4
RETRY_PAUSE_S = 0.5
# A server that asks to wait longer than this is not waited for: a cluster job pays for the time.
LONGEST_WAIT_S = 120.0
# Seconds to wait for a connection, and for the next bytes on it.
TIMEOUT_S = (5, 30)
# Bytes as stored: with a content encoding, the announced length would not be the file's.
HEADERS = {"Accept-Encoding": "identity", "User-Agent": "conceptome"}
CHUNK = 1 << 20
# Keys in one page of a listing: the most that S3 gives.
LISTED = 1000
MD5 = re.compile(r'^"?([0-9a-f]{32})"?$')


class Unavailable(Exception):
    """A place did not give what it was asked for, for the stated reason. `status` is its HTTP status, if it had one."""

    def __init__(self, reason: str, status: int | None = None):
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True)
class Received:
    """What a server gave: where it lay, how many bytes, their sha256, and what the server said about them."""

    url: str
    size: int
    sha256: str
    headers: Mapping[str, str]

    def receipt(self) -> dict[str, Any]:
        """As it is written down: address, size, digest, and the server's marks of this version of the file."""
        marks = {name: self.headers[name] for name in ("ETag", "Last-Modified") if name in self.headers}
        return {"url": self.url, "size": self.size, "sha256": self.sha256, **marks}


def http_address(url: str, region: str | None = None) -> str:
    """Give the address to ask: `s3://bucket/key` as the public HTTPS address of that object, any other as it is."""
    if not url.startswith("s3://"):
        return url
    bucket, _, key = url.removeprefix("s3://").partition("/")
    return f"{_bucket_address(bucket, region)}/{quote(key)}"


def _bucket_address(bucket: str, region: str | None = None) -> str:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        return f"{endpoint.rstrip('/')}/{bucket}"
    host = f"s3.{region}.amazonaws.com" if region else "s3.amazonaws.com"
    # Amazon's certificate covers one level below its host: a bucket with a dot goes into the path.
    return f"https://{host}/{bucket}" if "." in bucket else f"https://{bucket}.{host}"


def get(url: str, *, params: Mapping[str, str] | None = None) -> Any:
    """Ask for a short answer (a page of results, a listing), and give it as a `requests.Response`.

    Raises
    ------
    Unavailable
        The server refuses (HTTP 4xx), or the trouble lasts: broken connections, truncated answers, HTTP 408, 429, 5xx.
    """
    return _patiently(lambda: _answer(url, params))


def download(url: str, target: Path, *, size: int | None = None, region: str | None = None) -> Received:
    """Bring one file to `target`; what is broken off, truncated or damaged on the way is asked for again.

    Parameters
    ----------
    url
        `http(s)://…`, or `s3://bucket/key` of a public object.
    size
        Bytes that the file must have, where that is known.
    region
        Region of an S3 bucket, where that is known.

    Raises
    ------
    Unavailable
        As `get`; or the bytes are not those that the server announces (Content-Length; the MD5 in an S3 ETag).
    """
    return _patiently(lambda: _write(url, http_address(url, region), target, size))


def keys(bucket: str, prefix: str, *, folders: bool = False, region: str | None = None) -> Iterator[str]:
    """List the keys of a public S3 bucket that begin with `prefix`, page by page, without credentials.

    Parameters
    ----------
    folders
        Give the next level of folders below `prefix` (each ends in '/') in place of the keys.
    """
    question = {"list-type": "2", "max-keys": str(LISTED), "prefix": prefix, **({"delimiter": "/"} if folders else {})}
    while True:
        # Sorted and quoted as S3 has it: some servers take '+' in a query for itself.
        address = f"{_bucket_address(bucket, region)}/?{urlencode(sorted(question.items()), quote_via=quote)}"
        try:
            page = ElementTree.fromstring(get(address).content)
        except ElementTree.ParseError:
            raise Unavailable("what answered is no S3 listing") from None
        for item in page.findall("{*}CommonPrefixes/{*}Prefix" if folders else "{*}Contents/{*}Key"):
            yield item.text or ""
        token = page.findtext("{*}NextContinuationToken")
        if page.findtext("{*}IsTruncated") != "true" or not token:
            return
        question["continuation-token"] = token


class _TryAgain(Exception):
    """A trouble that may pass; `wait` is what the server asked for, in seconds."""

    def __init__(self, reason: str, wait: float | None = None, status: int | None = None):
        super().__init__(reason)
        self.wait = wait
        self.status = status


def _patiently(ask: Any) -> Any:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return ask()
        except _TryAgain as trouble:
            if attempt == ATTEMPTS:
                raise Unavailable(f"{trouble}, {ATTEMPTS} attempts", trouble.status) from None
            if trouble.wait is not None and trouble.wait > LONGEST_WAIT_S:
                raise Unavailable(f"{trouble}: it asks to wait {trouble.wait:,.0f} s", trouble.status) from None
            pause = RETRY_PAUSE_S * 2 ** (attempt - 1)
            time.sleep(pause if trouble.wait is None else max(trouble.wait, pause))
    raise AssertionError("unreachable")


def _answer(url: str, params: Mapping[str, str] | None, *, stream: bool = False) -> Any:
    import requests

    try:
        answer = requests.get(url, params=params, timeout=TIMEOUT_S, headers=HEADERS, stream=stream)
    except requests.RequestException as error:
        raise _TryAgain(_problem(error)) from None
    status = answer.status_code
    if status in (408, 429) or status >= 500:
        raise _TryAgain(f"HTTP {status}", _asked_wait(answer.headers.get("Retry-After")), status)
    if status >= 400:
        raise Unavailable(f"HTTP {status}", status)
    return answer


def _write(url: str, address: str, target: Path, size: int | None) -> Received:
    import requests

    sha256, md5, received = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
    with _answer(address, None, stream=True) as answer, open(target, "wb") as sink:
        try:
            for block in answer.iter_content(CHUNK):
                sink.write(block)
                sha256.update(block)
                md5.update(block)
                received += len(block)
        except requests.RequestException as error:
            announced = answer.headers.get("Content-Length", "")
            of = f" of {int(announced):,}" if announced.isdigit() else ""
            raise _TryAgain(f"truncated: {_problem(error)} before all{of} bytes had come") from None
        headers = dict(answer.headers)
    announced = headers.get("Content-Length", "")
    wanted = int(announced) if announced.isdigit() and "Content-Encoding" not in headers else size
    for expected in (wanted, size):
        if expected is not None and received < expected:
            raise _TryAgain(f"truncated: {received:,} of {expected:,} bytes")
        if expected is not None and received > expected:
            raise Unavailable(f"another file: {received:,} bytes, expected {expected:,}")
    # S3 gives the MD5 of an object as its ETag where it was uploaded in one part and not encrypted with a key.
    tag = MD5.match(headers.get("ETag", "")) if _is_s3(url, headers) else None
    if tag and tag[1] != md5.hexdigest():
        raise _TryAgain(f"wrong checksum: the bytes have MD5 {md5.hexdigest()}, the server announces {tag[1]}")
    return Received(url, received, sha256.hexdigest(), headers)


def _is_s3(url: str, headers: Mapping[str, str]) -> bool:
    return url.startswith("s3://") and "kms" not in headers.get("x-amz-server-side-encryption", "")


def _problem(error: Exception) -> str:
    import requests

    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection broke off"
    return "no answer in time" if isinstance(error, requests.Timeout) else "no connection"


def _asked_wait(text: str | None) -> float | None:
    """Seconds that a Retry-After header asks for (a number, or a date)."""
    if not text:
        return None
    if text.strip().isdigit():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None
