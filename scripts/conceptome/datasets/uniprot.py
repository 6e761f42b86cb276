"""Protein sequences and their annotation as UniProt writes them: FASTA, flat file, TSV export; and plain tables.

Every reader of annotation gives the same raw table: protein, type, note (str or None), start, end (str or number as
written, end may be missing), isoform (str or None). What the positions mean is decided in one place, `locate`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from conceptome.datasets.tables import need_column, open_text, read_table
from conceptome.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ["protein", "type", "note", "start", "end", "isoform"]
FEATURE = re.compile(r"^([A-Z_]{3,9})\s+(\S+)$")
QUALIFIER = re.compile(r'/(\w+)="((?:[^"]|"")*)"')
GUESS = "(?:Potential|Probable|By similarity)"
EVIDENCE = re.compile(rf"\s*\{{ECO:[^}}]*\}}|\s*\({GUESS}\)|^{GUESS}\.|\s*/FTId=\S+")


def read_fasta(path: Path) -> dict[str, str]:
    """Read protein sequences.

    The identifier is the accession of a UniProt header (`>sp|Q04847|ROY1_YEAST …` → Q04847), or else the first word.
    Letters are upper-cased; one '*' at the end (a stop) is dropped.

    Returns
    -------
    dict
        identifier → sequence, in file order.

    Raises
    ------
    DataError
        The file is empty, does not begin with '>', names a protein twice, or holds a header without sequence.
    """
    records: dict[str, list[str]] = {}
    lines: list[str] | None = None
    with open_text(path) as text:
        for number, line in enumerate(text, 1):
            line = line.strip()
            if line.startswith(">"):
                words = line[1:].split()
                if not words:
                    raise DataError(f"{path.name}, line {number}: a header without a name")
                parts = words[0].split("|")
                name = parts[1] if len(parts) >= 3 and parts[0] in ("sp", "tr") else words[0]
                if name in records:
                    raise DataError(f"{path.name}, line {number}: protein '{name}' occurs twice")
                records[name] = lines = []
            elif line:
                if lines is None:
                    raise DataError(f"{path.name} is not a FASTA file: line {number} comes before any '>' header")
                lines.append(line)
    if not records:
        raise DataError(f"{path.name} is an empty FASTA file: it holds no '>' header")
    sequences = {name: "".join(parts).upper().removesuffix("*") for name, parts in records.items()}
    for name, sequence in sequences.items():
        if not sequence:
            raise DataError(f"{path.name}: protein '{name}' has a header but no sequence")
    return sequences


def read_annotation_table(path: Path, columns: dict[str, str]) -> pd.DataFrame:
    """Read a table with one annotation a row.

    Parameters
    ----------
    columns
        Our name → the table's column. `protein`, `type` and `start` must exist; `note`, `end` and `isoform` may be
        absent unless they are declared.
    """
    import pandas as pd

    table = read_table(path)
    found = {}
    for name in COLUMNS:
        column = columns.get(name, name)
        if name in columns or name in ("protein", "type", "start") or column in table.columns:
            found[name] = table[need_column(column, table.columns, name, path.name)]
    raw = pd.DataFrame(found).reindex(columns=COLUMNS).astype(object)
    for name in ("protein", "type", "start"):
        empty = raw[name].isna()
        if empty.any():
            raise DataError(
                f"{path.name}: column '{columns.get(name, name)}' is empty in {int(empty.sum())} rows "
                f"(first: row {int(empty.to_numpy().argmax()) + 1})"
            )
    return raw.where(raw.notna(), None)


def read_tsv(path: Path) -> tuple[dict[str, str] | None, pd.DataFrame]:
    """Read UniProt's TSV export.

    Feature columns ('Domain [FT]', 'Transmembrane', 'Active site' …) are recognised by their content, such as
    `DOMAIN 3..49; /note="F-box"; /evidence="…"`.

    Returns
    -------
    sequences : dict or None
        From the column 'Sequence', if there is one.
    raw : pandas.DataFrame
        The annotations.
    """
    import pandas as pd

    table = read_table(path, "\t", quoted=False)
    need_column("Entry", table.columns, "entry", path.name)
    entries = table["Entry"].astype(str)
    repeated = entries[entries.duplicated()]
    if len(repeated):
        raise DataError(f"{path.name}: protein '{repeated.iloc[0]}' occurs twice in column 'Entry'")
    rows: list[tuple[Any, ...]] = []
    feature_columns = 0
    for column in table.columns:
        cells = table[column].dropna()
        if cells.empty or not cells.map(_is_feature_cell).all():
            continue
        feature_columns += 1
        for protein, cell in zip(entries[cells.index], cells):
            rows.extend((protein, *feature) for feature in _features_of_cell(cell))
    if not feature_columns:
        raise DataError(
            f"{path.name}: no feature column: export some, such as 'Domain [FT]', 'Transmembrane' or 'Active site'"
        )
    sequences = None
    if "Sequence" in table.columns:
        sequences = dict(zip(entries, table["Sequence"].astype(str).str.upper()))
    return sequences, pd.DataFrame(rows, columns=COLUMNS, dtype=object)


def _is_feature_cell(cell: object) -> bool:
    match = FEATURE.match(str(cell).split(";", 1)[0].strip())
    return match is not None and re.search(r"\d|\?", match[2]) is not None


def _features_of_cell(cell: str) -> Iterator[tuple[Any, ...]]:
    """Take the features out of one cell; a ';' inside quotation marks does not divide."""
    pending: list[Any] | None = None
    for part in re.findall(r'(?:[^;"]|"[^"]*")+', cell):
        part = part.strip()
        feature, qualifier = FEATURE.match(part), QUALIFIER.match(part)
        if feature:
            if pending is not None:
                yield tuple(pending)
            pending = [feature[1], None, *split_location(feature[2])]
        elif qualifier and qualifier[1] == "note" and pending is not None:
            pending[1] = qualifier[2].replace('""', '"')
    if pending is not None:
        yield tuple(pending)


def split_location(location: str) -> tuple[str, str | None, str | None]:
    """Divide '3..49', '12', 'P12345-2:3..49' into start, end and isoform, as written."""
    isoform, _, positions = location.rpartition(":")
    start, _, end = positions.partition("..")
    return start, end or None, isoform or None


def read_flat(path: Path) -> tuple[dict[str, str], pd.DataFrame]:
    """Read a UniProt flat file: ID, AC, FT and SQ lines, features in the syntax before or since December 2019.

    Returns
    -------
    sequences : dict
        First accession → sequence.
    raw : pandas.DataFrame
        The annotations.

    Raises
    ------
    DataError
        No entry is found, an entry has no accession or no sequence, or the last one is cut short.
    """
    import pandas as pd

    sequences: dict[str, str] = {}
    rows: list[tuple[Any, ...]] = []
    with open_text(path) as text:
        for entry in _entries(text, path):
            accession = entry["accession"]
            if accession in sequences:
                raise DataError(f"{path.name}: protein '{accession}' occurs twice")
            if not entry["sequence"]:
                raise DataError(f"{path.name}: protein '{accession}' has no sequence")
            sequences[accession] = entry["sequence"]
            rows.extend((accession, *feature) for feature in entry["features"])
    if not sequences:
        raise DataError(f"{path.name} is not a UniProt flat file: it holds no entry (ID … //)")
    return sequences, pd.DataFrame(rows, columns=COLUMNS, dtype=object)


def _entries(text: IO[str], path: Path) -> Iterator[dict[str, Any]]:
    """Take one entry after the other, each closed by '//'."""
    lines: list[str] = []
    for line in text:
        if line.startswith("//"):
            yield _parse_entry(lines, path)
            lines = []
        elif line.strip():
            lines.append(line.rstrip("\n"))
    if lines:
        raise DataError(f"{path.name}: the last entry is not closed by '//': the file is cut short, or no flat file")


def _parse_entry(lines: list[str], path: Path) -> dict[str, Any]:
    accession = None
    sequence: list[str] = []
    blocks: list[list[str]] = []
    in_sequence = False
    for line in lines:
        code = line[:2]
        if code == "AC" and accession is None:
            accession = line[5:].split(";")[0].strip()
        elif code == "FT":
            if line[5:13].strip():
                blocks.append([line[5:]])
            elif blocks:
                blocks[-1].append(line[5:])
        elif code == "SQ":
            in_sequence = True
        elif in_sequence and code == "  ":
            sequence.append(line.replace(" ", ""))
    if not accession:
        raise DataError(f"{path.name}: an entry has no AC line ('{lines[0] if lines else ''}')")
    features = [_parse_feature(block, accession, path) for block in blocks]
    return {"accession": accession, "sequence": "".join(sequence).upper(), "features": features}


def _parse_feature(block: list[str], accession: str, path: Path) -> tuple[Any, ...]:
    """Parse one feature; the old syntax has two positions behind the key, the new one a location."""
    fields = block[0].split(None, 3)
    more = " ".join(line.strip() for line in block[1:])
    if len(fields) == 2:
        qualifiers = {name: text.replace('""', '"') for name, text in QUALIFIER.findall(more)}
        return (fields[0], qualifiers.get("note"), *split_location(fields[1]))
    if len(fields) < 3:
        raise DataError(f"{path.name}: protein '{accession}': unreadable feature line 'FT   {block[0].strip()}'")
    text = EVIDENCE.sub("", " ".join([*fields[3:], more])).strip().removesuffix(".").strip()
    return (fields[0], text or None, fields[1], fields[2], None)


def locate(raw: pd.DataFrame, where: str) -> tuple[pd.DataFrame, dict[str, int]]:
    """Turn positions as written into numbers.

    '<3' and '>49' (the feature goes on beyond what is known) count as 3 and 49, an empty end is the start. Left out and
    counted: positions that are not known ('?'), and positions on another isoform than the one whose sequence is given.

    Returns
    -------
    annotations : pandas.DataFrame
        protein, type, note, start, end (int64; 1-based, inclusive).
    reports : dict
        `on_other_isoforms`, `of_unknown_position`: how many were left out.

    Raises
    ------
    DataError
        A position is no whole number of 1 or more, or the end comes before the start.
    """
    import pandas as pd

    other = raw["isoform"].notna()
    rest = raw[~other]
    text = {name: rest[name].map(_position_text) for name in ("start", "end")}
    text["end"] = text["end"].where(text["end"] != "", text["start"])
    unknown = text["start"].str.contains("?", regex=False) | text["end"].str.contains("?", regex=False)
    rest = rest[~unknown]
    annotations = rest[["protein", "type", "note"]].copy()
    for name in ("start", "end"):
        values = text[name][~unknown]
        numbers = pd.to_numeric(values, errors="coerce")
        wrong = numbers.isna() | (numbers < 1) | (numbers % 1 != 0)
        if wrong.any():
            row = rest[wrong].iloc[0]
            raise DataError(
                f"{where}: {row['type']} of protein '{row['protein']}' has {name} '{values[wrong].iloc[0]}': positions "
                "are whole numbers, counted from 1"
            )
        annotations[name] = numbers.astype("int64")
    backwards = annotations["end"] < annotations["start"]
    if backwards.any():
        row = annotations[backwards].iloc[0]
        raise DataError(
            f"{where}: {row['type']} {row['start']}..{row['end']} of protein '{row['protein']}' ends before it starts"
        )
    annotations["protein"] = annotations["protein"].astype(str)
    annotations["type"] = annotations["type"].astype(str)
    return annotations, {"on_other_isoforms": int(other.sum()), "of_unknown_position": int(unknown.sum())}


def _position_text(value: object) -> str:
    if value is None or value != value:
        return ""
    return str(value).strip().lstrip("<>")


def plain_note(note: str | None, *, merge_numbered: bool) -> str | None:
    """Tidy a note, and (with `merge_numbered`) take away what only tells copies of one concept apart.

    'RRM 2' → 'RRM', 'C2H2-type 3; degenerate' → 'C2H2-type; degenerate', 'Helical; Name=S4' → 'Helical', '1' → None.
    """
    if note is None or note != note:
        return None
    note = " ".join(str(note).split())
    if merge_numbered:
        note = re.sub(r"; (?:Name=[^;]*|alternate)(?=;|$)", "", note)
        note = re.sub(r"(?:^|\s+)\d+(?=;|$)", "", note)
    return note.strip("; ") or None
