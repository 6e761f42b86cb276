"""Run by the Python of the validators: validate_crate.py CRATE CONTEXT PROFILE… prints the violations as JSON.

roc-validator fetches the JSON-LD context of RO-Crate 1.1 from the network. Here it finds the file CONTEXT in its own
HTTP cache, and is told to stay offline.
"""

import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import requests
from requests_cache import CachedSession
from urllib3.response import HTTPResponse

URL = "https://w3id.org/ro/crate/1.1/context"


def plant(cache: Path, content: bytes) -> None:
    """Put the context where the validator looks for what it fetched before."""
    session = CachedSession(cache_name=str(cache), backend="sqlite", expire_after=-1)
    response = requests.Response()
    response.status_code, response.url, response._content = 200, URL, content
    response.headers["Content-Type"] = "application/ld+json"
    # The headers count: with others the validator would not find it again.
    headers = {"Accept": "application/ld+json, application/json, */*;q=0.1"}
    response.request = session.prepare_request(requests.Request("GET", URL, headers=headers))
    response.raw = HTTPResponse(io.BytesIO(content), response.headers, 200, preload_content=False, request_url=URL)
    response.raw.read()
    session.cache.save_response(response)


def validate(crate: str, profile: str, cache: Path) -> dict:
    """One profile, all its REQUIRED checks and those of the profiles it builds on."""
    out = cache.with_name(f"{profile}.json")
    command = [str(Path(sys.executable).with_name("rocrate-validator")), "--no-interactive", "validate", crate]
    command += ["--profile-identifier", profile, "--requirement-severity", "required", "--offline"]
    command += ["--cache-path", str(cache), "--output-format", "json", "--output-file", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    if not out.exists():
        raise SystemExit(f"{profile}: {done.stdout}\n{done.stderr}")
    report = json.loads(out.read_text())
    return {
        "profile": report["validation_settings"]["profile_identifier"],
        "passed": report["passed"],
        "checks": report["statistics"]["total_checks"],
        "issues": [f"{issue.get('violatingEntity')}: {issue['message']}" for issue in report["issues"]],
    }


if __name__ == "__main__":
    crate, context, *profiles = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        plant(cache, Path(context).read_bytes())
        print(json.dumps([validate(crate, profile, cache) for profile in profiles]))
