"""The Cell Painting Gallery: profiles, tables of image sets, and images of plates, from its public S3 bucket.

Every project has the same folders (https://broadinstitute.github.io/cellpainting-gallery/data_structure.html):

    {project}/{source}/workspace/profiles/{batch}/{plate}/{plate}_{profile}.csv.gz (or .csv, .parquet)
    {project}/{source}/workspace/load_data_csv/{batch}/{plate}/load_data.csv (or .csv.gz, .parquet)

A table of image sets has one row per field and for every channel either its address (`URL_Orig{channel}`) or its folder
and file (`PathName_Orig{channel}`, `FileName_Orig{channel}`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from conceptome.datasets.tables import need_column, read_table, suggest
from conceptome.errors import SourceError
from conceptome.files import write_parquet
from conceptome.sources.transfer import Unavailable, download, keys

if TYPE_CHECKING:
    import pandas as pd

    from conceptome.config.archives import CellPaintingGallery

FORMATS = (".parquet", ".csv.gz", ".csv")


def retrieve(request: CellPaintingGallery, target: Path, images: Path | None = None) -> dict[str, Any]:
    """Write the table (and images) and give what the receipt holds beside it. See `conceptome.archives.retrieve`."""
    import pandas as pd

    tables, receipts = [], []
    for plate in request.plates:
        table, received = _plate_table(request, plate, target.parent)
        tables.append(table if request.content == "profiles" else _with_addresses(table, plate))
        receipts.append(received)
    first = tables[0]
    for plate, table in zip(request.plates, tables):
        different = set(table.columns) ^ set(first.columns)
        if different:
            raise SourceError(
                f"cell_painting_gallery: plates {request.plates[0]} and {plate} have different columns, such as "
                f"'{min(different)}' ({len(different)} in one only): ask for another `profile`, or for one plate"
            )
    stacked = pd.concat([table[first.columns] for table in tables], ignore_index=True)
    if request.content == "profiles":
        write_parquet(target, stacked)
        return {"files": receipts}
    if images is not None:
        stacked, more = _with_images(_chosen(stacked, request), request, images)
        receipts += more
    stacked.to_csv(target, index=False, lineterminator="\n")
    return {"files": receipts}


def _plate_table(request: CellPaintingGallery, plate: str, scratch: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Read the table of one plate, in whichever format the gallery holds it."""
    kind = "profiles" if request.content == "profiles" else "load_data_csv"
    batch = f"{request.project}/{request.source}/workspace/{kind}/{request.batch}/"
    if kind == "profiles":
        stem = plate if request.profile is None else f"{plate}_{request.profile}"
    else:
        stem = "load_data_with_illum" if request.illumination else "load_data"
    try:
        held = [key.rsplit("/", 1)[-1] for key in keys(request.bucket, f"{batch}{plate}/")]
        name = next((stem + suffix for suffix in FORMATS if stem + suffix in held), None)
        if name is None:
            raise SourceError(_missing(request, plate, batch, stem, held))
        address = f"s3://{request.bucket}/{batch}{plate}/{name}"
        local = scratch / f"{plate}-{name}"
        received = download(address, local).receipt()
    except Unavailable as reason:
        raise SourceError(f"cell_painting_gallery: plate {plate}, s3://{request.bucket}/{batch}: {reason}") from None
    table = read_table(local)
    local.unlink()
    return table, received


def _missing(request: CellPaintingGallery, plate: str, batch: str, stem: str, held: list[str]) -> str:
    """Say in one line which part of the path does not exist, and what does."""
    if held:
        return (
            f"cell_painting_gallery: plate {plate} has no {stem} ({', '.join(FORMATS)}) in s3://{request.bucket}/{batch}"
            f"{plate}/; {suggest(stem, held)}"
        )
    plates = [folder.rstrip("/").rsplit("/", 1)[-1] for folder in keys(request.bucket, batch, folders=True)]
    if plates:
        return (
            f"cell_painting_gallery: there is no plate '{plate}' in s3://{request.bucket}/{batch}; "
            f"{suggest(plate, plates)}"
        )
    above = batch.removesuffix(f"{request.batch}/")
    batches = [folder.rstrip("/").rsplit("/", 1)[-1] for folder in keys(request.bucket, above, folders=True)]
    if batches:
        return (
            f"cell_painting_gallery: there is no batch '{request.batch}' in s3://{request.bucket}/{above}; "
            f"{suggest(request.batch, batches)}"
        )
    return f"cell_painting_gallery: s3://{request.bucket}/{above} holds nothing: check project and source"


def _channels(table: pd.DataFrame, kind: str) -> list[str]:
    """Channels of a table, in the order of its columns; kind is Orig or Illum."""
    found = {}
    for name in table.columns:
        for prefix in (f"URL_{kind}", f"FileName_{kind}"):
            if name.startswith(prefix):
                found[name.removeprefix(prefix)] = None
    return list(found)


def _with_addresses(table: pd.DataFrame, plate: str) -> pd.DataFrame:
    """Give every channel the column URL_…; folder and file columns, which name places of others, go."""
    table = table.copy()
    if not _channels(table, "Orig"):
        raise SourceError(
            f"cell_painting_gallery: load_data of plate {plate} names no image: neither URL_Orig… nor "
            "FileName_Orig… columns"
        )
    for kind in ("Orig", "Illum"):
        for channel in _channels(table, kind):
            address, folder, file = (f"{part}_{kind}{channel}" for part in ("URL", "PathName", "FileName"))
            if address not in table.columns:
                need_column(folder, table.columns, "folder", "load_data")
                table[address] = table[folder].str.rstrip("/") + "/" + table[file]
            wrong = table[address][~table[address].astype(str).str.match(r"^(s3|https?)://[^/]+/.")]
            if len(wrong):
                raise SourceError(
                    f"cell_painting_gallery: load_data of plate {plate}: '{wrong.iloc[0]}' in column '{address}' is no "
                    "address (s3://… or https://…)"
                )
            table = table.drop(columns=[name for name in (folder, file) if name in table.columns])
    return table


def _chosen(table: pd.DataFrame, request: CellPaintingGallery) -> pd.DataFrame:
    """Keep the wells and sites that are asked for; each must be there."""
    for key, column in (("wells", "Metadata_Well"), ("sites", "Metadata_Site")):
        wanted = getattr(request, key)
        if wanted is None:
            continue
        values = table[need_column(column, table.columns, key, "load_data")].astype(str)
        for value in map(str, wanted):
            if value not in set(values):
                raise SourceError(
                    f"cell_painting_gallery: load_data of {', '.join(request.plates)} has no {column} {value}; "
                    f"{suggest(value, sorted(set(values)))}"
                )
        table = table[values.isin(list(map(str, wanted)))]
    if table.empty:
        raise SourceError(
            "cell_painting_gallery: no field has one of the wells and one of the sites that are asked for"
        )
    return table.reset_index(drop=True)


def _with_images(
    table: pd.DataFrame, request: CellPaintingGallery, images: Path
) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """Download the images of a table; its FileName_… columns then name them, relative to the table."""
    known = _channels(table, "Orig")
    wanted = request.channels or known
    for channel in wanted:
        if channel not in known:
            raise SourceError(f"cell_painting_gallery: load_data has no channel '{channel}'; {suggest(channel, known)}")
    table = table.copy()
    local: dict[str, str] = {}
    receipts = []
    for kind in ("Orig", "Illum"):
        for channel in _channels(table, kind):
            addresses = table.pop(f"URL_{kind}{channel}")
            if channel not in wanted:
                continue
            for address in dict.fromkeys(addresses):
                if address not in local:
                    local[address] = _local_name(address)
                    receipts.append(_image(address, images / local[address]))
            table[f"FileName_{kind}{channel}"] = [f"images/{local[address]}" for address in addresses]
    return table, receipts


def _local_name(address: str) -> str:
    """The whole path below the bucket: plates of one batch have images of equal names."""
    return "/".join(address.split("://", 1)[1].split("/")[1:])


def _image(address: str, path: Path) -> dict[str, Any]:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return download(address, path).receipt()
    except Unavailable as reason:
        raise SourceError(f"cell_painting_gallery: image {address}: {reason}") from None
