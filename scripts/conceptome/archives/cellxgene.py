"""CELLxGENE: the .h5ad of a data set, as Discover has it now or had it, or as a release of Census froze it.

Discover's curation interface lists the versions of a data set, newest first, each with its files and their sizes
(GET /curation/v1/datasets/{dataset_id}/versions, /curation/v1/dataset_versions/{dataset_version_id}). Census publishes
a list of releases with the S3 folder of their source files.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from conceptome.errors import SourceError
from conceptome.sources.transfer import Unavailable, download, get

if TYPE_CHECKING:
    from conceptome.config.archives import Cellxgene


def retrieve(request: Cellxgene, target: Path) -> dict[str, Any]:
    """Write the file and give what the receipt holds beside the request. See `conceptome.archives.retrieve`."""
    if request.census is not None:
        return _from_census(request, target)
    return _from_discover(request, target)


def _from_discover(request: Cellxgene, target: Path) -> dict[str, Any]:
    base = f"{request.discover.rstrip('/')}/curation/v1"
    if request.version is not None:
        what = f"version {request.version}"
        found = _json(f"{base}/dataset_versions/{request.version}", what)
        if found.get("dataset_id") != request.dataset:
            raise SourceError(
                f"cellxgene: {what} is of data set {found.get('dataset_id')}, not of {request.dataset}: correct one"
            )
    else:
        what = f"data set {request.dataset}"
        versions = _json(f"{base}/datasets/{request.dataset}/versions", what)
        if not versions:
            raise SourceError(f"cellxgene: {what} has no published version")
        found = versions[0]
    files = [item for item in found.get("assets", []) if item.get("filetype") == "H5AD"]
    if not files:
        kinds = ", ".join(str(item.get("filetype")) for item in found.get("assets", [])) or "none"
        raise SourceError(f"cellxgene: {what} has no H5AD file (it has: {kinds})")
    received = _bring(files[0]["url"], target, what, size=files[0].get("filesize"))
    return {
        "version": found.get("dataset_version_id"),
        "title": found.get("title"),
        "citation": found.get("citation"),
        "files": [received],
    }


def _from_census(request: Cellxgene, target: Path) -> dict[str, Any]:
    releases = _json(request.releases, "the list of Census releases")
    name = request.census
    # 'stable' and 'latest' are names of other entries.
    while isinstance(releases.get(name), str):
        name = releases[name]
    if name not in releases:
        dated = sorted(key for key, entry in releases.items() if isinstance(entry, dict))
        raise SourceError(f"cellxgene: Census has no release {request.census}; there are: {', '.join(dated[-8:])}")
    place = releases[name]["h5ads"]
    what = f"data set {request.dataset} of Census {name}"
    address = f"{place['uri'].rstrip('/')}/{request.dataset}.h5ad"
    received = _bring(address, target, what, region=place.get("s3_region"))
    return {"release": name, "files": [received]}


def _json(address: str, what: str) -> Any:
    try:
        return get(address).json()
    except Unavailable as reason:
        hint = ": there is none of that identifier" if reason.status == 404 else ""
        raise SourceError(f"cellxgene: {what}: {address}: {reason}{hint}") from None
    except ValueError:
        raise SourceError(f"cellxgene: {what}: {address} did not answer with JSON") from None


def _bring(address: str, target: Path, what: str, **options: Any) -> dict[str, Any]:
    try:
        return download(address, target, **options).receipt()
    except Unavailable as reason:
        hint = ": this release does not hold it" if reason.status in (403, 404) else ""
        raise SourceError(f"cellxgene: {what}: {address}: {reason}{hint}") from None
