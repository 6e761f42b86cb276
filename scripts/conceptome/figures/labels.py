"""F5: atoms × labels heat map, and the best atom of every class with its interval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from conceptome.figures import captions, style
from conceptome.figures.panels import (
    KEYS,
    Drawing,
    dataset_title,
    headline,
    is_null_model,
    label_title,
    main_models,
    unique,
    usable,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

ATOMS = 24
TERMS = 24
Q = 0.05


def draw(tables: Mapping[str, pd.DataFrame], cards: Mapping[str, Mapping[str, Any]]) -> Drawing:
    """Draw F5: per data set a heat map (classes × top atoms) and beside it each class's best atom with interval."""
    from matplotlib.colors import TwoSlopeNorm

    need = [
        *KEYS,
        "seed",
        "atom",
        "label",
        "role",
        "term",
        "auroc",
        "low",
        "high",
        "q",
        "n_term",
        "unit",
        "n_groups",
        "n",
    ]
    frame = usable(tables, "labels", need, "labels")
    every = {data: unique(frame.loc[frame["dataset"] == data, "model"]) for data in unique(frame["dataset"])}
    whole, frame = frame, main_models(frame, cards)
    datasets = unique(frame["dataset"])
    chosen = {data: _top(headline(frame[frame["dataset"] == data]), cards[data]) for data in datasets}
    heights = [max(5, rows["row"].nunique()) for rows, _ in chosen.values()]

    figure = style.new_figure(16 + sum(16 + 3.9 * height for height in heights))
    axes = figure.subplots(len(datasets), 2, squeeze=False, width_ratios=[3.1, 1], height_ratios=heights)
    drawing = Drawing(figure, "Atoms against labels")
    letters = style.letters()
    spread = max(0.1, max(float((cells["auroc"] - 0.5).abs().max()) for cells, _ in chosen.values()))
    norm = TwoSlopeNorm(0.5, 0.5 - spread, 0.5 + spread)
    facts = []
    mesh = None
    for (heat, side), data in zip(axes, datasets):
        cells, best = chosen[data]
        first = cells.iloc[0]
        letter = next(letters)
        mesh = _heat(heat, cells, norm)
        which = f"{style.dictionary_label(first['dictionary'], first['method'])}, " + style.whitening_label(
            first["whitening"]
        )
        style.mark(heat, letter, f"{dataset_title(cards[data], data, first['model'])} · {which}, seed {first['seed']}")
        drawing.add(letter, cells)
        letter = next(letters)
        _best(side, best)
        style.mark(side, letter, "best atom per class")
        drawing.add(letter, best)
        top = best.loc[best["auroc"].idxmax()]
        marked = int(cells["significant"].sum())
        facts.append(
            f"{data}: {marked} of {len(cells)} cells drawn are marked; highest AUROC {captions.number(top['auroc'])} "
            f"[{captions.number(top['low'])}, {captions.number(top['high'])}], "
            + (f"null {captions.number(top['null_auroc'])} " if "null_auroc" in top else "")
            + f"(atom {top['atom']}, {top['row']}); "
            f"n = {captions.count(first['n'])} test samples, {captions.span(cells['n_term'].tolist())} per class"
        )
    bar = figure.colorbar(mesh, ax=axes[:, 0].tolist(), location="bottom", shrink=0.4, aspect=30, pad=0.01)
    bar.set_label("AUROC of the code for the class (0.5 = no association)")
    bar.outline.set_linewidth(0.4)
    handles = [style.dot_handle(f"q < {Q} and above the null"), style.band_handle("null: permuted labels", alpha=1.0)]
    style.legend_below(figure, handles)
    alpha = captions.settings(cards[datasets[0]], "enrichment").confidence
    drawing.sentences = [
        "AUROC (no unit) with which an atom's code tells a class from all other test samples. The dictionary is "
        "chosen by "
        "a fixed order (whitened before raw, ICFL before TopK, lowest seed), not by its result. Atoms: taken in turn "
        f"over the classes by q, then effect, up to {ATOMS}. Dots: q < {Q} and above the permuted-label null; q is of "
        "the rank-sum test on the size of the code (Mann-Whitney, samples taken as independent; Benjamini-Hochberg "
        f"over all atoms × classes). {_grouped(frame)}{captions.several(facts)}.",
        captions.interval(cards, datasets, "enrichment")
        + " They are drawn for the best atom (its number beside) of every class; that atom "
        "was picked on the same samples, so its estimate leans high: compare it with the null, picked the same way.",
        f"Null (grey bars): {100 * alpha:g} % quantile of the highest AUROC over all atoms under permuted labels. "
        "Classes of a technical label (batch, plate) are set in italics: they warn, they are no finding.",
        *(_single_sentence(cards, datasets)),
        *captions.baselines(cards, whole, "auroc", ["label", "term"], 0.5),
        *captions.notes(cards, datasets),
        *captions.warnings(cards, datasets, dict.fromkeys(zip(frame["dataset"], frame["model"]))),
    ]
    rest = captions.left_out(
        {data: [m for m in names if not is_null_model(cards[data], m)] for data, names in every.items()},
        zip(frame["dataset"], frame["model"]),
    )
    drawing.sentences += [rest] if rest else []
    return drawing


def _grouped(frame: pd.DataFrame) -> str:
    """Name the labels that were tested between groups."""
    found = frame[frame["unit"] == "group"].drop_duplicates(["dataset", "label"])
    if found.empty:
        return ""
    names = captions.several(
        f"{row['label']} ({row['dataset']}, {row['n_groups']} groups)" for row in found.to_dict("records")
    )
    return f"Constant in their groups, and so tested by a permutation of groups: {names}. "


def _single(card: Mapping[str, Any], label: str) -> list[str]:
    """Classes of a label that rest on a single instance (one compound, say)."""
    return [str(name) for name in card.get("labels", {}).get(label, {}).get("single_instance_classes", [])]


def _single_sentence(cards: Mapping[str, Mapping[str, Any]], datasets: list[str]) -> list[str]:
    """Explain the double dagger, where one is drawn."""
    if any(_single(cards[data], label) for data in datasets for label in cards[data].get("labels", {})):
        return ["‡ A class with a single instance (one compound): the class cannot be told from that instance."]
    return []


def _top(frame: pd.DataFrame, card: Mapping[str, Any]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Choose classes and atoms; return the heat map's cells and the best atom of each class."""
    import numpy as np
    import pandas as pd

    frame = frame.copy()
    frame["row"] = frame["term"].astype(str)
    # Classes of two labels that are called alike, or by a bare number, carry their label's name.
    unclear = frame.groupby("row")["label"].transform("nunique") > 1
    unclear |= frame["row"].str.fullmatch(r"[\d.,]+")
    names = frame["label"].map(lambda label: label_title(card, label))
    frame.loc[unclear, "row"] = names + " " + frame["row"]
    for label in frame["label"].unique():
        alone = (frame["label"] == label) & frame["term"].astype(str).isin(_single(card, label))
        frame.loc[alone, "row"] += " ‡"
    frame["effect"] = (frame["auroc"] - 0.5).abs()
    terms = frame[["label", "role", "row", "n_term"]].drop_duplicates("row")
    if len(terms) > TERMS:
        terms = terms.sort_values("n_term", ascending=False, kind="stable").head(TERMS).sort_index()
    terms = terms.sort_values("role", kind="stable")
    frame = frame[frame["row"].isin(terms["row"])]
    queues = {
        row: part.sort_values(["q", "effect", "atom"], ascending=[True, False, True])["atom"].tolist()
        for row, part in frame.groupby("row", sort=False)
    }
    order: dict[int, None] = {}
    depth = 0
    while len(order) < min(ATOMS, frame["atom"].nunique()):
        for row in terms["row"]:
            if depth < len(queues[row]) and len(order) < ATOMS:
                order.setdefault(queues[row][depth])
        depth += 1
    cells = frame[frame["atom"].isin(order)].copy()
    null = cells["null_auroc"] if "null_auroc" in cells else pd.Series(0.5, index=cells.index)
    beyond = cells["effect"] > (null.fillna(0.5) - 0.5)
    cells["significant"] = (cells["q"] < Q) & beyond
    # Atoms stand in the order of the class they tell best, so that the map reads along its diagonal.
    ranks = {row: index for index, row in enumerate(terms["row"])}
    peak = cells.loc[cells.groupby("atom")["auroc"].idxmax()]
    peak = peak.assign(position=peak["row"].map(ranks)).sort_values(["position", "auroc"], ascending=[True, False])
    columns = {atom: index for index, atom in enumerate(peak["atom"])}
    cells["x"] = cells["atom"].map(columns)
    cells["y"] = cells["row"].map(ranks)
    best = frame.loc[frame.groupby("row", sort=False)["auroc"].idxmax()].copy()
    best["y"] = best["row"].map(ranks)
    columns_kept = [*KEYS, "seed", "label", "role", "row", "atom", "auroc", "low", "high", "q", "n_term", "n", "y"]
    if "null_auroc" in frame:
        columns_kept.append("null_auroc")
    cells = cells[[*columns_kept, "x", "significant"]].sort_values(["y", "x"])
    assert np.isfinite(cells["x"]).all()
    return cells.reset_index(drop=True), best[columns_kept].sort_values("y").reset_index(drop=True)


def _heat(axes: Axes, cells: pd.DataFrame, norm: object) -> object:
    """Classes × atoms, coloured by AUROC, significant cells dotted."""
    grid = cells.pivot(index="y", columns="x", values="auroc")
    mesh = axes.pcolormesh(grid.to_numpy(), cmap=style.DIVERGING, norm=norm, edgecolors="white", linewidth=0.3)
    axes.invert_yaxis()
    marked = cells[cells["significant"]]
    strong = (marked["auroc"] - 0.5).abs() > 0.5 * (norm.vmax - 0.5)
    for dark, colour in ((True, "white"), (False, "black")):
        part = marked[strong == dark]
        axes.scatter(part["x"] + 0.5, part["y"] + 0.5, s=2.5, color=colour, linewidths=0)
    rows = cells.drop_duplicates("y").sort_values("y")
    axes.set_yticks(rows["y"] + 0.5, _short(rows["row"]))
    for text, role in zip(axes.get_yticklabels(), rows["role"]):
        text.set_style("italic" if role == "technical" else "normal")
    atoms = cells.drop_duplicates("x").sort_values("x")
    axes.set_xticks(atoms["x"] + 0.5, atoms["atom"].astype(str), rotation=90)
    axes.tick_params(length=0)
    axes.set_xlabel("atom")
    for spine in axes.spines.values():
        spine.set_visible(False)
    return mesh


def _best(axes: Axes, best: pd.DataFrame) -> None:
    """Best atom per class with its interval, over the permuted-label null."""
    look = style.method(best["method"].iloc[0])
    y = best["y"] + 0.5
    if "null_auroc" in best:
        axes.hlines(y, 0.5, best["null_auroc"], color=style.NULL_COLOUR, lw=3.2, zorder=1)
    axes.hlines(y, best["low"], best["high"], color=look.colour, lw=0.9, zorder=2)
    axes.plot(best["auroc"], y, linestyle="none", marker=look.marker, color=look.colour, zorder=3)
    for row, at in zip(best.itertuples(), y):
        axes.annotate(
            str(row.atom), (row.high, at), (3, 0), textcoords="offset points", va="center", fontsize=style.SMALL_FONT
        )
    axes.set_ylim(best["y"].max() + 1, 0)
    axes.set_yticks([])
    axes.set_xlim(min(0.48, float(best["low"].min()) - 0.02), 1.0 + 0.14)
    axes.set_xticks([0.5, 0.75, 1.0])
    axes.set_xlabel("AUROC")


def _short(names: pd.Series, most: int = 30) -> list[str]:
    """Cut names that would leave no room for the map."""
    return [name if len(name) <= most else name[: most - 1] + "…" for name in names]
