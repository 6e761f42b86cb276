"""Published studies beside this run: every figure and table with its status, and the paper's numbers beside ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from conceptome.config.papers import Correction, Paper, Quantity, Status
from conceptome.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

STATUSES: tuple[str, ...] = get_args(Status)

COLUMNS = {
    "study": "object",
    "item": "object",
    "shows": "object",
    "status": "object",
    "because": "object",
    "figure": "object",
    "quantity": "object",
    "paper": "float64",
    "paper_text": "object",
    "value": "float64",
    "low": "float64",
    "high": "float64",
    "null": "float64",
    "n": "float64",
    "n_seeds": "float64",
    "digits": "int64",
}
CORRECTION_COLUMNS = {
    "study": "object",
    "flaw": "object",
    "correction": "object",
    **{
        f"{which}{part}": "float64"
        for which in ("original", "corrected")
        for part in ("", "_low", "_high", "_null", "_n", "_n_seeds")
    },
    "digits": "int64",
}


class Tables:
    """Evidence tables by study and name, each over all models and whitenings of its study.

    Parameters
    ----------
    keys
        (study, table) of every file.
    paths
        The Parquet files, in the same order.
    """

    def __init__(self, keys: Sequence[Sequence[str]], paths: Sequence[str | Path]):
        self._paths: dict[tuple[str, str], list[Path]] = {}
        for (study, table), path in zip(keys, paths, strict=True):
            self._paths.setdefault((study, table), []).append(Path(path))
        self._read: dict[tuple[str, str], pd.DataFrame] = {}

    def __call__(self, study: str, table: str) -> pd.DataFrame:
        """The rows of one table."""
        import pandas as pd

        from conceptome.files import read_parquet

        key = study, table
        if key not in self._read:
            self._read[key] = pd.concat([read_parquet(path) for path in self._paths[key]], ignore_index=True)
        return self._read[key]


def quantities(paper: Paper) -> Iterator[Quantity]:
    """Give every quantity that a paper's page rests on, nulls included."""
    found = [number.ours for item in paper.items for number in item.numbers]
    found += [each for flaw in paper.corrections for each in (flaw.original, flaw.corrected) if each is not None]
    for quantity in found:
        yield quantity
        if isinstance(quantity.against, Quantity):
            yield quantity.against


def evaluate(quantity: Quantity, study: str, tables: Tables) -> dict[str, float]:
    """Compute one quantity.

    Parameters
    ----------
    quantity
        Rows, column and how they are taken together.
    study
        The study that asks; its own tables are meant where the quantity names no other.
    tables
        The evidence tables.

    Returns
    -------
    dict
        value (median over seeds), low and high (the lowest lower and the highest upper bound over seeds, wider than
        any seed's own interval; the range of the seeds where rows have none), null (median over seeds), n (smallest
        over the rows) and n_seeds. NaN where there is none.

    Raises
    ------
    DataError
        A column is missing (that of the interval or the null too), or no row is meant.
    """
    study = quantity.study or study
    rows = tables(study, quantity.table)
    own_null = quantity.against if isinstance(quantity.against, str) else None
    named = (*quantity.where, quantity.column, quantity.low, quantity.high, own_null)
    for column in filter(None, named):
        if column not in rows:
            raise DataError(f"study {study}: table {quantity.table} has no column '{column}': correct the paper's item")
    for column, value in quantity.where.items():
        rows = rows[rows[column] == value]
    if rows.empty and quantity.rows != "distinct":
        meant = ", ".join(f"{column} = {value}" for column, value in quantity.where.items())
        raise DataError(f"study {study}: table {quantity.table} has no row with {meant}: correct the paper's item")
    # A seed without rows counts as none in a number of different values.
    seeds = sorted(tables(study, quantity.table)["seed"].unique()) if "seed" in rows else []
    parts = [
        part for part in (rows[rows["seed"] == seed] for seed in seeds) if len(part) or quantity.rows == "distinct"
    ]
    parts = parts or [rows]

    def of(column: str | None) -> list[float]:
        return [_combine(part[column], quantity) for part in parts] if column else []

    values, lows, highs = of(quantity.column), of(quantity.low), of(quantity.high)
    if isinstance(quantity.against, Quantity):
        # Of a null only its value counts: no null of its own is looked up.
        null = evaluate(quantity.against.model_copy(update={"against": None}), study, tables)["value"]
    else:
        null = _median(of(own_null))
    return {
        "value": _median(values),
        "low": min([*lows, *values]),
        "high": max([*highs, *values]),
        "null": null,
        "n": float(rows[quantity.n].min()) if quantity.n in rows else float(min(len(part) for part in parts)),
        "n_seeds": float(len(parts)),
    }


def _combine(column: pd.Series, quantity: Quantity) -> float:
    """Make one number of the rows of one seed."""
    if quantity.rows == "distinct":
        return quantity.scale * float(column.nunique())
    if quantity.rows == "count":
        above = int((column > quantity.above).sum())
        return quantity.scale * (above / len(column) if quantity.share else above)
    return quantity.scale * float(getattr(column, quantity.rows)())


def _median(values: list[float]) -> float:
    import numpy as np

    return float(np.median(values)) if values else float("nan")


def status(study: str, paper: Paper, tables: Tables) -> pd.DataFrame:
    """Set a paper's items beside this run's numbers: one row per number, one for an item without.

    Parameters
    ----------
    study
        Name of the paper's study.
    tables
        The evidence tables.

    Returns
    -------
    pandas.DataFrame
        The columns of `COLUMNS`.
    """
    import pandas as pd

    rows = []
    for item in paper.items:
        shared = {"study": study, **item.model_dump(include={"item", "shows", "status", "because", "figure"})}
        for number in item.numbers:
            found = evaluate(number.ours, study, tables)
            told = {"quantity": number.quantity, "paper": number.paper, "paper_text": number.paper_text}
            rows.append({**shared, **told, **found, "digits": number.digits})
        if not item.numbers:
            rows.append({**shared, "digits": 0})
    text = [name for name, kind in COLUMNS.items() if kind == "object"]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.assign(**table[text].fillna("")).astype(COLUMNS)


def corrections(study: str, paper: Paper, tables: Tables) -> pd.DataFrame:
    """Set the numbers with and without each known flaw side by side: the columns of `CORRECTION_COLUMNS`.

    Each number has its interval, null, n and seeds, as in `evaluate`.
    """
    import pandas as pd

    def numbers(flaw: Correction) -> Iterator[tuple[str, float]]:
        for which in ("original", "corrected"):
            quantity = getattr(flaw, which)
            if quantity is not None:
                found = evaluate(quantity, study, tables)
                yield which, found["value"]
                yield from ((f"{which}_{part}", found[part]) for part in ("low", "high", "null", "n", "n_seeds"))

    rows = [
        {"study": study, "flaw": flaw.flaw, "correction": flaw.correction, "digits": flaw.digits, **dict(numbers(flaw))}
        for flaw in paper.corrections
    ]
    return pd.DataFrame(rows, columns=list(CORRECTION_COLUMNS)).astype(CORRECTION_COLUMNS)


def _number(value: float, digits: int) -> str:
    return "" if value != value else f"{value:,.{digits}f}"


def _between(value: float, low: float, high: float, digits: int) -> str:
    if value != value:
        return ""
    return f"{_number(value, digits)} [{_number(low, digits)}, {_number(high, digits)}]"


def _pair(row: Any, part: str) -> str:
    """A count of both numbers of a correction, once where they agree."""
    both = (_number(getattr(row, f"{which}_{part}"), 0) for which in ("original", "corrected"))
    return ", ".join(dict.fromkeys(filter(None, both)))


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(str(cell).replace("|", "∣") for cell in line) + " |" for line in lines]


def _head(study: str, paper: Paper) -> list[str]:
    """What a paper is, and every item with its status: the part of its page that needs no run."""
    every = [item.status for item in paper.items]
    told = ", ".join(f"{every.count(name)} {name}" for name in STATUSES if name in every)
    rows = [
        [item.item, item.shows, item.status, item.because, f"`{item.figure}`" if item.figure else ""]
        for item in paper.items
    ]
    return [
        f"# {paper.title}",
        "",
        f"{paper.authors}, {paper.reference}. Study `{study}`.",
        "",
        paper.about.strip(),
        "",
        f"Figures and tables: {told}.",
        "",
        *_table(["figure or table", "shows", "status", "what stands for what, or why not", "our figure"], rows),
        "",
    ]


def outline(study: str, paper: Paper) -> str:
    """Write what a paper's page holds before any run: items, the paper's numbers, flaws, the original setting.

    Kept in docs/studies; a run writes the page with its own numbers beside (`page`).
    """
    rows = [
        [item.item, number.quantity, number.paper_text or ("" if number.paper is None else f"{number.paper:g}")]
        for item in paper.items
        for number in item.numbers
    ]
    lines = [
        *_head(study, paper),
        "## Numbers that a run sets beside the paper's",
        "",
        "`make studies` writes them, with interval, null, n and seeds, to "
        f"`results/papers/studies/papers/papers/{study}.md`.",
        "",
        *_table(["figure or table", "quantity", "paper"], rows),
        "",
    ]
    if paper.corrections:
        rows = [[flaw.flaw, flaw.correction] for flaw in paper.corrections]
        lines += ["## Corrected", "", *_table(["the original", "here"], rows), ""]
    return "\n".join([*lines, "## The original setting", "", paper.original.strip(), ""])


def page(study: str, paper: Paper, items: pd.DataFrame, flaws: pd.DataFrame) -> str:
    """Write a paper's page in Markdown: what it is, every item with its status and numbers, and the corrections.

    Parameters
    ----------
    items, flaws
        Tables of `status` and `corrections`.
    """
    lines = _head(study, paper)
    rows = [
        [
            row.item,
            row.quantity,
            row.paper_text or _number(row.paper, row.digits),
            _between(row.value, row.low, row.high, row.digits),
            _number(row.null, row.digits),
            f"{row.n:,.0f}",
            f"{row.n_seeds:.0f}",
        ]
        for row in items[items["quantity"] != ""].itertuples()
    ]
    if rows:
        header = ["figure or table", "quantity", "paper", "here [interval]", "null", "n", "seeds"]
        lines += ["## Numbers", "", *_table(header, rows), ""]
        lines += [
            "Here: median over seeds; interval: from the lowest lower to the highest upper bound over seeds; n: the "
            "smallest number of samples (or rows counted) behind a seed's value.",
            "",
        ]
    if len(flaws):
        rows = [
            [
                row.flaw,
                row.correction,
                _between(row.original, row.original_low, row.original_high, row.digits),
                _number(row.original_null, row.digits),
                _between(row.corrected, row.corrected_low, row.corrected_high, row.digits),
                _number(row.corrected_null, row.digits),
                *(_pair(row, part) for part in ("n", "n_seeds")),
            ]
            for row in flaws.itertuples()
        ]
        header = ["the original", "here", "as the original", "null", "corrected", "null", "n", "seeds"]
        lines += ["## Corrected", "", *_table(header, rows), ""]
    lines += ["## The original setting", "", paper.original.strip(), ""]
    return "\n".join(lines)


def summary(papers: Mapping[str, Paper], items: Mapping[str, pd.DataFrame]) -> str:
    """Write all papers' figures and tables as one Markdown table, with the first of each item's numbers."""
    rows = []
    for study, table in items.items():
        for row in table.drop_duplicates("item").itertuples():
            here = _between(row.value, row.low, row.high, row.digits)
            theirs = row.paper_text or _number(row.paper, row.digits)
            beside = [_number(row.null, row.digits), _number(row.n, 0), _number(row.n_seeds, 0)]
            place = [f"[{study}]({study}.md)", row.item, row.status]
            rows.append([*place, row.quantity, theirs, here, *beside, row.because])
    header = ["paper", "figure or table", "status", "first number", "paper", "here [interval]", "null", "n", "seeds"]
    header.append("what stands for what")
    titles = [f"- `{study}`: {paper.authors}, {paper.title}, {paper.reference}" for study, paper in papers.items()]
    return "\n".join(["# Papers", "", *titles, "", *_table(header, rows), ""])


def write(papers: Mapping[str, Paper], tables: Tables, folder: Path) -> None:
    """Write numbers.parquet, corrections.parquet, papers.md and {study}.md for every paper into `folder`.

    Parameters
    ----------
    papers
        Study → paper.
    tables
        The evidence tables that the papers' items name.

    Raises
    ------
    DataError
        As `evaluate`.
    """
    import pandas as pd

    from conceptome.files import atomic_path, write_parquet

    items = {study: status(study, paper, tables) for study, paper in papers.items()}
    flaws = {study: corrections(study, paper, tables) for study, paper in papers.items()}
    texts = {study: page(study, paper, items[study], flaws[study]) for study, paper in papers.items()}
    write_parquet(folder / "numbers.parquet", pd.concat(items.values(), ignore_index=True))
    write_parquet(folder / "corrections.parquet", pd.concat(flaws.values(), ignore_index=True))
    for name, text in {**texts, "papers": summary(papers, items)}.items():
        with atomic_path(folder / f"{name}.md") as temporary:
            temporary.write_text(text, encoding="utf-8")
