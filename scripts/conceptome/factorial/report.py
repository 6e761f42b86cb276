"""The page of a factorial study: one Markdown table of what matters, one of levels, one of all methods."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conceptome.factorial.effects import AXES, TERMS
from conceptome.factorial.endpoints import ENDPOINTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import pandas as pd

    from conceptome.config.factorial import Factorial


def markdown(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Lay out a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(value) for value in line) + " |" for line in lines)


def _number(value: float, digits: int = 2) -> str:
    return "–" if value != value else f"{value:.{digits}f}"


def _estimate(row: object, digits: int = 2) -> str:
    return f"{_number(row.value, digits)} [{_number(row.low, digits)}, {_number(row.high, digits)}]"


def _share(row: object, mark: str) -> str:
    # Were nothing to matter, what is left would be everything: its null is about 1, those of the others about 0.
    null = f"≥ {_number(row.null_low)}" if row.null > 0.5 else f"≤ {_number(row.null_high)}"
    return f"{mark}{_estimate(row)}{mark} (null {null})"


def page(tables: Mapping[str, pd.DataFrame], config: Factorial) -> str:
    """Write the page from the study's tables; the same tables give the same text."""
    summary, cells = tables["factorial_summary"], tables["factorial"]
    names = [name for name in ENDPOINTS if name in set(summary["endpoint"])]
    shares = {(row.endpoint, row.term): row for row in summary[summary["level"] == ""].itertuples()}
    mark = {"matters": "**", "does not matter": "", "unclear": "*", "": ""}
    rows = []
    for term in TERMS:
        found = [shares.get((name, term)) for name in names]
        texts = ["–" if row is None else _share(row, mark[row.verdict]) for row in found]
        rows.append([term, *texts])
    levels = {(row.endpoint, row.term, row.level): row for row in summary[summary["level"] != ""].itertuples()}
    of_factor = {"encoder": config.encoders, "dictionary": config.dictionaries, "whitening": config.whitenings}
    level_rows = []
    for factor in AXES:
        for level in of_factor[factor]:
            found = [levels.get((name, factor, level)) for name in names]
            level_rows.append([factor, level, *("–" if row is None else _estimate(row) for row in found)])
    titles = [ENDPOINTS[name][0] + ("" if ENDPOINTS[name][1] else " (less is better)") for name in names]
    parts = [
        "# Factorial study",
        f"{len(config.encoders)} encoders × {len(config.dictionaries)} dictionaries × {len(config.whitenings)} "
        f"whitenings at one L0 on {', '.join(cells['dataset'].unique())}. Every number is that of test samples.",
        "## What matters",
        f"Share of the variance over cells (ε²), mean over data sets, with its {100 * config.confidence:g} % interval "
        "and the upper end of its permutation null (of what is left, the lower end: were nothing to matter, it would "
        f"be everything). **Bold**: surely above {config.matters_above:g}; *italic*: not decided.",
        markdown(["term", *titles], rows),
        "## Levels",
        "Deviation of each level from the mean of all cells, in standard deviations of the cells, mean over data sets.",
        markdown(["factor", "level", *titles], level_rows),
        "## All methods",
        f"Own encoder, whitening {config.baseline_whitening}; mean over seeds [lowest lower, highest upper bound].",
        _methods(cells, config),
    ]
    return "\n\n".join(parts) + "\n"


def _methods(cells: pd.DataFrame, config: Factorial) -> str:
    """One row per data set and method, one column per endpoint (a label's endpoints by label)."""
    own = cells[cells["encoder"].isin(["own", ""]) & (cells["whitening"] == config.baseline_whitening)]
    own = own.assign(column=own["endpoint"] + own["label"].map(lambda label: f" ({label})" if label else ""))
    order = {name: place for place, name in enumerate(ENDPOINTS)}
    columns = sorted(own["column"].unique(), key=lambda name: (order[name.split(" (")[0]], name))
    grouped = own.groupby(["dataset", "dictionary", "column"], sort=False)
    value = grouped.agg(value=("value", "mean"), low=("low", "min"), high=("high", "max"))
    found = {row.Index: row for row in value.itertuples()}
    rows = []
    for dataset, dictionary in own[["dataset", "dictionary"]].drop_duplicates().itertuples(index=False):
        texts = [found.get((dataset, dictionary, column)) for column in columns]
        rows.append([dataset, dictionary, *("–" if row is None else _estimate(row) for row in texts)])
    return markdown(["data set", "method", *columns], rows)
