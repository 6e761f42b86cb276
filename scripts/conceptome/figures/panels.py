"""What several figures share: choosing what to draw, summarising over seeds, and the dot-and-interval panel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from conceptome.errors import DataError
from conceptome.figures import style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KEYS = ["dataset", "model", "whitening", "dictionary", "method"]


@dataclass
class Drawing:
    """A drawn figure: the matplotlib figure, the table of each panel, and the caption's parts."""

    figure: Figure
    title: str
    panels: list[pd.DataFrame] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)

    def add(self, letter: str, table: pd.DataFrame, seeds: pd.DataFrame | None = None) -> None:
        """Keep the rows that panel `letter` draws; single seeds, where drawn, are marked in the column `what`."""
        if seeds is not None:
            self.panels.append(_lettered(letter, table.assign(what="mean over seeds")))
            self.panels.append(_lettered(letter, seeds.assign(what="single seed")))
        else:
            self.panels.append(_lettered(letter, table))

    def table(self) -> pd.DataFrame:
        """All panels' rows, one below the other, with the column `panel` first."""
        import pandas as pd

        kept = [panel.dropna(axis=1, how="all") for panel in self.panels if len(panel)]
        return pd.concat(kept, ignore_index=True)


def _lettered(letter: str, table: pd.DataFrame) -> pd.DataFrame:
    """Put the column `panel` first."""
    table = table.copy()
    table.insert(0, "panel", letter)
    return table


def need(frame: pd.DataFrame, table: str, columns: Sequence[str]) -> None:
    """Refuse a table that lacks a column.

    Raises
    ------
    DataError
        Names the table and the columns that it lacks.
    """
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise DataError(f"evidence table '{table}' lacks column(s) {', '.join(missing)}: run its measure again")


def usable(tables: Mapping[str, pd.DataFrame], name: str, columns: Sequence[str], figure: str) -> pd.DataFrame:
    """Return the table `name` with the columns that a figure draws.

    Raises
    ------
    DataError
        No data set has rows in that table, or a column is missing.
    """
    frame = tables.get(name)
    if frame is None or frame.empty:
        raise DataError(
            f"figure '{figure}': no data set of this run has rows in the evidence table '{name}': "
            f"take '{figure}' out of 'figures', or ask for its measure in a study"
        )
    need(frame, name, columns)
    return frame.reset_index(drop=True)


def unique(values: pd.Series) -> list[Any]:
    """Distinct values in the order in which they first appear (the order of the configuration)."""
    return list(dict.fromkeys(values.dropna()))


def is_null_model(card: Mapping[str, Any], model: str) -> bool:
    """Say whether a model serves only as a null (its weights are shuffled), by the study or by the model's card."""
    if model in card.get("study", {}).get("null_models", []):
        return True
    options = card.get("models", {}).get(model, {}).get("options") or {}
    return bool(options.get("shuffle_weights", False))


def models(frame: pd.DataFrame, card: Mapping[str, Any]) -> list[str]:
    """Models of one data set that are not nulls, in the order of the configuration; all, if there are only nulls."""
    present = unique(frame["model"])
    return [model for model in present if not is_null_model(card, model)] or present


def main_models(frame: pd.DataFrame, cards: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Rows of each data set's first model; the figure has one panel per data set."""
    import pandas as pd

    kept = []
    for dataset in unique(frame["dataset"]):
        rows = frame[frame["dataset"] == dataset]
        kept.append(rows[rows["model"] == models(rows, cards[dataset])[0]])
    return pd.concat(kept)


def dictionaries(frame: pd.DataFrame) -> list[tuple[str, str]]:
    """Distinct (dictionary, method) in the fixed order of methods."""
    pairs = list(dict.fromkeys(zip(frame["dictionary"], frame["method"])))
    return sorted(pairs, key=lambda pair: style.method_rank(pair[1]))


def whitenings(frame: pd.DataFrame) -> list[str]:
    """Distinct whitenings, raw first."""
    return sorted(unique(frame["whitening"]), key=lambda name: name != style.RAW)


def headline(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of the one dictionary that a detailed panel shows: whitened before raw, ICFL before TopK, first seed.

    The choice follows a fixed order, never the outcome, so that it cannot flatter the figure.
    """
    shown = whitenings(frame)
    frame = frame[frame["whitening"] == shown[min(1, len(shown) - 1)]]
    dictionary = dictionaries(frame)[0][0]
    frame = frame[frame["dictionary"] == dictionary]
    return frame[frame["seed"] == frame["seed"].min()]


def rows_of_lines(tables: Sequence[pd.DataFrame], columns: int) -> list[list[tuple[str, str]]]:
    """Dictionaries of each line of panels, which share its names: those of the tables drawn in it, `columns` a line."""
    import pandas as pd

    return [dictionaries(pd.concat(tables[start : start + columns])) for start in range(0, len(tables), columns)]


def in_blocks(columns: Sequence[Any], most: int = 5) -> list[list[Any]]:
    """Share the columns of a figure out over as few blocks as hold at most `most` each, as evenly as can be."""
    import numpy as np

    parts = np.array_split(np.arange(len(columns)), -(-len(columns) // most))
    return [[columns[number] for number in part] for part in parts]


def over_seeds(
    frame: pd.DataFrame, keys: Sequence[str], value: str, *, keep: Sequence[str] = (), nulls: bool = False
) -> pd.DataFrame:
    """Summarise a measure over seeds.

    Parameters
    ----------
    frame
        Rows per seed with `value` and, where intervals exist, `low` and `high`.
    keys
        What names a row of the result (everything but the seed).
    keep
        Columns whose seed mean is kept beside.
    nulls
        Also summarise null (mean), null_low (lowest) and null_high (highest).

    Returns
    -------
    One row per key: `value` (mean over seeds), `low` and `high` (the lowest lower and highest upper bound over seeds:
    wider than any single seed's interval), `seed_low`, `seed_high` (range of the estimates), `n_seeds`.
    """
    frame = frame.copy()
    for bound in ("low", "high"):
        if bound not in frame.columns:
            frame[bound] = float("nan")
    spec = {
        value: (value, "mean"),
        "low": ("low", "min"),
        "high": ("high", "max"),
        "seed_low": (value, "min"),
        "seed_high": (value, "max"),
        "n_seeds": (value, "size"),
    }
    if nulls:
        for column, how in (("null", "mean"), ("null_low", "min"), ("null_high", "max")):
            if column in frame.columns:
                spec[column] = (column, how)
    spec.update({column: (column, "mean") for column in keep if column in frame.columns})
    out = frame.groupby(list(keys), sort=False, dropna=False).agg(**spec).reset_index()
    # Without an interval of its own (or inside a seed range that is wider), the bar spans the seeds.
    out["low"] = out[["low", "seed_low"]].min(axis=1)
    out["high"] = out[["high", "seed_high"]].max(axis=1)
    return out


def dataset_title(card: Mapping[str, Any], dataset: str, model: str | None = None) -> str:
    """Title of a data set's panel: its name, 'simulated' where it is, the model (a dagger marks a stand-in).

    Where the name does not tell the study (a paper's study may take another's data), the study's key comes first.
    """
    title = str(card.get("title", dataset))
    letters, key = ("".join(filter(str.isalnum, text.lower())) for text in (title, dataset))
    if key not in letters:
        title = f"{dataset}: {title}"
    if card.get("simulated") and "simulated" not in title.lower():
        title += " (simulated)"
    if model is not None:
        title += f" · {model}" + ("†" if stand_in(card, model) else "")
    return title


def short_title(card: Mapping[str, Any], dataset: str, model: str | None = None) -> str:
    """Title for a narrow panel: the data set's key in place of its long title."""
    title = dataset
    if card.get("simulated") and "simulated" not in title.lower():
        title += " (simulated)"
    if model is not None:
        title += f"\n{model}" + ("†" if stand_in(card, model) else "")
    return title


def label_title(card: Mapping[str, Any], label: str) -> str:
    """Return what readers call a label: its title on the card, or its column."""
    return str(card.get("labels", {}).get(label, {}).get("title") or label)


def stand_in(card: Mapping[str, Any], model: str) -> str | None:
    """Return what a model's checkpoint really is, when it stands in for another."""
    return card.get("models", {}).get(model, {}).get("stand_in") or None


def dot_rows(
    axes: Axes,
    table: pd.DataFrame,
    value: str,
    rows: Sequence[tuple[str, str]],
    *,
    seeds: pd.DataFrame | None = None,
    looks: Mapping[tuple[str, str], style.Method] | None = None,
) -> None:
    """Draw one value per dictionary and whitening as a dot with its interval, over the null's interval.

    Parameters
    ----------
    table
        dictionary, method, whitening, `value`, low, high and optionally null, null_low, null_high.
    rows
        (dictionary, method) from top to bottom.
    seeds
        Values of single seeds (dictionary, whitening, `value`), drawn as ticks.
    looks
        Of the whole figure, where panels hold different dictionaries; None: those of `rows`.
    """
    import numpy as np

    shown = whitenings(table)
    offsets = dict(zip(shown, np.linspace(-0.2, 0.2, len(shown)) if len(shown) > 1 else [0.0]))
    looks = looks or style.looks(rows)
    for position, (dictionary, name) in enumerate(rows):
        look = looks[dictionary, name]
        for whitening in shown:
            here = table[(table["dictionary"] == dictionary) & (table["whitening"] == whitening)]
            if here.empty:
                continue
            row = here.iloc[0]
            y = position + offsets[whitening]
            if "null_low" in row and np.isfinite(row["null_low"]):
                axes.plot(
                    [row["null_low"], row["null_high"]],
                    [y, y],
                    color=style.NULL_COLOUR,
                    lw=3.2,
                    zorder=1,
                    solid_capstyle="butt",
                )
            if "null" in row and np.isfinite(row["null"]):
                axes.plot([row["null"]], [y], color=style.REFERENCE_COLOUR, marker="|", ms=4, mew=0.8, zorder=2)
            axes.plot([row["low"], row["high"]], [y, y], color=look.colour, lw=0.9, zorder=3, solid_capstyle="butt")
            if seeds is not None:
                own = seeds[(seeds["dictionary"] == dictionary) & (seeds["whitening"] == whitening)][value]
                axes.plot(own, np.full(len(own), y), "|", color=look.colour, ms=3.6, mew=0.5, zorder=4)
            axes.plot(
                [row[value]],
                [y],
                marker=look.marker,
                linestyle="none",
                color=look.colour,
                markerfacecolor=style.whitening_fill(whitening, look.colour),
                mew=0.8,
                zorder=5,
            )
    axes.set_yticks(range(len(rows)), [style.dictionary_label(*row) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="y", color="#EEEEEE", lw=0.6)
    axes.set_axisbelow(True)


def null_ticks(axes: Axes, values: pd.Series) -> None:
    """Mark where the null of the horizontal axis lies: grey ticks on its line, one per distinct value.

    For panels in which dictionaries of different sizes stand together: each size has its own null, and bands of all of
    them would hide the points.
    """
    for value in sorted(set(values.dropna().round(9))):
        axes.plot(
            [value],
            [0.0],
            marker="|",
            ms=7,
            mew=2.0,
            color=style.NULL_COLOUR,
            linestyle="none",
            transform=axes.get_xaxis_transform(),
            clip_on=False,
            zorder=1,
        )
