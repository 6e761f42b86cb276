"""F6: gene sets of the top atoms, and the top term's best atom in every dictionary."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from conceptome.figures import captions, style
from conceptome.figures.panels import (
    KEYS,
    Drawing,
    dataset_title,
    dictionaries,
    dot_rows,
    headline,
    is_null_model,
    main_models,
    need,
    over_seeds,
    unique,
    usable,
    whitenings,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

ATOMS = 12
TERMS = 12
PROGRAMMES = 3  # atoms whose genes are drawn
GENES = 5  # genes in each direction
Q = 0.05
# Words of Hallmark names that stay in capitals.
ACRONYMS = frozenset(("AKT", "DN", "DNA", "JAK", "KRAS", "MTOR", "MYC", "NFKB", "TGF", "TNFA", "UP", "UV", "WNT"))
SIZE_LEVELS = (1.3, 3.0, 10.0)
# What the side panels show of the best atoms, with the value that means no association.
EFFECTS = {"effect": "effect (AUROC)", "correlation": "correlation r"}
NEUTRAL = {"effect": 0.5, "correlation": 0.0}
LARGEST = 12.0  # −log10 q at which a dot stops growing


def draw(tables: Mapping[str, pd.DataFrame], cards: Mapping[str, Mapping[str, Any]]) -> Drawing:
    """Draw F6: per data set a dot plot (top terms × top atoms) and the top term's best atom by dictionary, two ways.

    Below, where there are gene programmes, the genes of the first atoms of the dot plot.
    """
    import pandas as pd

    columns = [*KEYS, "seed", "atom", "collection", "term", "effect", "low", "high", "q", "n_genes"]
    frame = usable(tables, "gene_sets", columns, "gene_sets")
    every = {data: unique(frame.loc[frame["dataset"] == data, "model"]) for data in unique(frame["dataset"])}
    frame = main_models(frame, cards)
    best = tables.get("gene_sets_best", pd.DataFrame())
    datasets = unique(frame["dataset"])
    chosen = {data: _top(headline(frame[frame["dataset"] == data])) for data in datasets}
    heights = [max(7, cells["y"].nunique()) for cells in chosen.values()]

    programmes = {data: _programmes(tables.get("gene_programmes"), cells) for data, cells in chosen.items()}
    lines = [20 + 6.6 * height for height in heights]
    below = [17 + 7.2 * GENES if len(genes) else 0.0 for genes in programmes.values()]
    figure = style.new_figure(22 + sum(lines) + sum(below))
    pages = iter(
        figure.subfigures(
            len(datasets) + sum(map(bool, below)),
            1,
            squeeze=False,
            height_ratios=[height for pair in zip(lines, below) for height in pair if height],
        )[:, 0]
    )
    drawing = Drawing(figure, "Gene sets of atoms")
    letters = style.letters()
    colours = _colours(chosen.values())
    facts, drawn = [], []
    mesh = None
    for data in datasets:
        page = next(pages)
        dots, side, beside = page.subplots(1, 3, width_ratios=[1.5, 0.75, 0.75])
        cells = chosen[data]
        first = cells.iloc[0]
        drawn.append((data, first["model"]))
        letter = next(letters)
        mesh = _dots(dots, cells, *colours)
        which = (
            f"{style.dictionary_label(first['dictionary'], first['method'])}, "
            f"{style.whitening_label(first['whitening'])}, seed {first['seed']}"
        )
        style.mark(dots, letter, f"{dataset_title(cards[data], data, first['model'])}\n{which}", wrap=56)
        drawing.add(letter, cells)
        facts.append(f"{data}: {len(cells)} pairs of {cells['atom'].nunique()} atoms and {cells['y'].nunique()} terms")
        own = frame[frame["dataset"] == data]
        winner = top_term(own)
        name = readable(winner["term"], winner["collection"])
        titles = ("top term:\n" + _two_lines(winner["term"], winner["collection"], 24), "code against\nthe set's score")
        tables = []
        for panel, title, (effect, label) in zip((side, beside), titles, EFFECTS.items()):
            found = _best_rows(best, own, winner, effect)
            if effect not in found or found[effect].isna().all():
                panel.set_visible(False)
                continue
            table = over_seeds(found, KEYS, effect, nulls=True)
            letter = next(letters)
            dot_rows(panel, table, effect, dictionaries(table), seeds=found)
            panel.axvline(NEUTRAL[effect], color=style.REFERENCE_COLOUR, linestyle=":", lw=0.8, zorder=0)
            panel.set_xlabel(label)
            style.mark(panel, letter, title)
            named = {"collection": winner["collection"], "term": winner["term"]}
            drawing.add(letter, table.assign(**named), found[[*KEYS, "seed", "atom", effect]].assign(**named))
            tables.append(_verdict(table, effect))
        beside.set_yticklabels([])
        if data == datasets[-1]:
            bar = page.colorbar(mesh, ax=dots, location="bottom", shrink=0.6, aspect=25, pad=0.02)
            bar.set_label("effect (AUROC of genes in the set; 0.5 = none)")
            bar.outline.set_linewidth(0.4)
        if len(programmes[data]):
            of = list(programmes[data].groupby("atom", sort=False))
            for panel, (atom, genes) in zip(next(pages).subplots(1, len(of), squeeze=False)[0], of):
                letter = next(letters)
                _genes(panel, genes)
                style.mark(panel, letter, f"genes of atom {atom}")
                drawing.add(letter, genes)
        facts.append(f"{data}, {name}: " + "; ".join([*tables, *_tests(winner)]))
    handles = [
        *_size_handles(),
        *_camera_handle(chosen.values()),
        *style.whitening_handles(whitenings(frame), markers=True),
    ]
    handles.append(style.null_handle("null: permuted"))
    style.legend_below(figure, handles)

    genes = captions.several(
        f"{data}: sets of {captions.span(cells['n_genes'].tolist())} genes"
        + (f", background {captions.span(cells['background'].tolist())} genes" if "background" in cells else "")
        for data, cells in chosen.items()
    )
    drawing.sentences = [
        "For every atom the genes are ranked by the association of their expression with the atom's code; the effect "
        "is "
        "the AUROC (no unit) of that rank for the genes in a set against the other genes of the background. Dot size: "
        f"−log10 q, growing up to {LARGEST:g}; colour: effect. Both q and rings (q < {Q}) are of the test against "
        "permuted codes, Benjamini-Hochberg over all atoms × terms; a point in the middle: q < .05 also by the rank "
        "test corrected for the correlation between a set's genes (camera). Of terms that share most of their genes "
        "the best stands for all. "
        "The dictionary is chosen by a fixed order (whitened before raw, ICFL before TopK, lowest seed); atoms by "
        "their "
        f"best q, each with a best term of its own. n: {genes}. {captions.several(facts)}.",
        "The term on the right is picked by the data: the smallest q, then the largest effect, over all terms and all "
        "atoms of the learned dictionaries; then every dictionary's best atom for that term (chosen on training and "
        "validation cells) is shown twice: by the effect, and by the correlation r, over test cells, of its code with "
        "the set's score (mean standardised expression of its genes minus that of all others).",
        *_told(programmes),
        captions.interval(cards, datasets, "enrichment")
        + " Small ticks are seeds. "
        + captions.seeds_sentence(frame["seed"].nunique()),
        "Null (grey): the best atom under permuted codes or labels. Random atoms, PCA, ICA and neurons are the "
        "baselines.",
        *captions.notes(cards, datasets),
        *captions.warnings(cards, datasets, dict.fromkeys(drawn)),
    ]
    rest = captions.left_out(
        {data: [m for m in names if not is_null_model(cards[data], m)] for data, names in every.items()}, drawn
    )
    drawing.sentences += [rest] if rest else []
    return drawing


def collection_label(name: str) -> str:
    """Short name of a collection's file."""
    lowered = name.lower()
    for key, label in (("h.all", "Hallmark"), ("hallmark", "Hallmark"), ("biological_process", "GO BP")):
        if key in lowered:
            return label
    return "Reactome" if "reactome" in lowered else name.removesuffix(".gmt").removesuffix(".symbols")


def readable(term: str, collection: str) -> str:
    """Term as prose: no prefix, no underscores, no accession; the collection in brackets."""
    text = re.sub(r"\s*\((GO:\d+|R-[A-Z]{3}-[\d.]+)\)$", "", str(term))
    for prefix in ("HALLMARK_", "GOBP_", "REACTOME_"):
        text = text.removeprefix(prefix)
    if text.isupper() or "_" in text:
        words = text.replace("_", " ").split()
        text = " ".join(word if word in ACRONYMS or re.search(r"\d", word) else word.lower() for word in words)
    # mRNA and tRNA keep their small letter.
    first = text[:1] if text[1:2].isupper() else text[:1].upper()
    return f"{first}{text[1:]} [{collection_label(collection)}]"


def top_term(frame: pd.DataFrame) -> pd.Series:
    """Row of the top term over all atoms of the learned dictionaries: smallest q, then largest effect."""
    learned = frame[frame["method"].isin(style.LEARNED)]
    frame = learned if len(learned) else frame
    return frame.sort_values(["q", "effect"], ascending=[True, False], kind="stable").iloc[0]


def _top(frame: pd.DataFrame) -> pd.DataFrame:
    """Cells of the dot plot: top atoms by their best q with distinct best terms, and the terms that they carry."""
    import numpy as np

    frame = frame.sort_values(["q", "effect"], ascending=[True, False], kind="stable")
    if "representative" in frame:
        frame = frame[frame["representative"]]
    atoms: dict[Any, None] = {}
    terms: dict[tuple[str, str], None] = {}
    firsts = frame.drop_duplicates("atom")
    for row in firsts.itertuples():
        if len(atoms) < ATOMS and (row.collection, row.term) not in terms:
            atoms.setdefault(row.atom)
            terms.setdefault((row.collection, row.term))
    for row in firsts.itertuples():
        if len(atoms) < ATOMS:
            atoms.setdefault(row.atom)
    for row in frame[frame["atom"].isin(atoms)].itertuples():
        if len(terms) < TERMS:
            terms.setdefault((row.collection, row.term))
    position = {atom: index for index, atom in enumerate(atoms)}
    ranks = {term: index for index, term in enumerate(terms)}
    keys = list(zip(frame["collection"], frame["term"]))
    kept = frame[frame["atom"].isin(atoms) & np.array([key in ranks for key in keys])].copy()
    kept["x"] = kept["atom"].map(position)
    kept["y"] = [ranks[key] for key in zip(kept["collection"], kept["term"])]
    kept["minus_log10_q"] = -kept["log10_q"] if "log10_q" in kept else -np.log10(kept["q"].clip(lower=1e-300))
    columns = [*KEYS, "seed", "atom", "collection", "term", "effect", "low", "high", "q", "minus_log10_q", "n_genes"]
    beside = ("q_naive", "q_camera", "q_ora", "inter_gene_correlation", "ora_overlap", "ora_odds", "ora_genes")
    columns += [name for name in ("background", "n_overlap", "top_genes", *beside) if name in kept]
    return kept[[*columns, "x", "y"]].sort_values(["y", "x"]).reset_index(drop=True)


def _area(minus_log10_q: Any) -> Any:
    """Area of a dot in square points."""
    import numpy as np

    return 4.0 + 6.5 * np.clip(minus_log10_q, 0, LARGEST)


def _two_lines(term: str, collection: str, width: int = 36) -> str:
    """Term on at most two lines; a longer one is cut before its collection."""
    text = readable(term, collection)
    tag = text[text.rindex(" [") :]
    words = text.removesuffix(tag)
    while len(textwrap.wrap(words + tag, width)) > 2:
        words = words.removesuffix("…").rpartition(" ")[0] + "…"
    return textwrap.fill(words + tag, width)


def _colours(parts: Iterable[pd.DataFrame]) -> tuple[object, object]:
    """Colour map and norm of effects: red from 0.5 up, and blue below only where an effect lies below."""
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap, Normalize

    effects = np.concatenate([part["effect"].to_numpy() for part in parts])
    spread = max(0.1, float(np.abs(effects - 0.5).max()))
    if effects.min() < 0.5:
        return colormaps[style.DIVERGING], Normalize(0.5 - spread, 0.5 + spread)
    return ListedColormap(colormaps[style.DIVERGING](np.linspace(0.5, 1.0, 256))), Normalize(0.5, 0.5 + spread)


def _dots(axes: Axes, cells: pd.DataFrame, colours: object, norm: object) -> object:
    """Terms × atoms; size −log10 q, colour effect, a ring where q is significant, a point where camera's is too."""
    mesh = axes.scatter(
        cells["x"],
        cells["y"],
        s=_area(cells["minus_log10_q"]),
        c=cells["effect"],
        cmap=colours,
        norm=norm,
        edgecolors=["black" if q < Q else "none" for q in cells["q"]],
        linewidths=0.4,
        zorder=2,
    )
    if "q_camera" in cells:
        too = cells[cells["q_camera"] < Q]
        axes.scatter(too["x"], too["y"], s=1.5, c="black", linewidths=0, zorder=3)
    atoms = cells.drop_duplicates("x").sort_values("x")
    terms = cells.drop_duplicates("y").sort_values("y")
    names = [_two_lines(term, kind) for term, kind in zip(terms["term"], terms["collection"])]
    axes.set_yticks(terms["y"], names, linespacing=1.1)
    axes.set_xticks(atoms["x"], atoms["atom"].astype(str), rotation=90)
    axes.set_xlim(-0.6, atoms["x"].max() + 0.6)
    axes.set_ylim(terms["y"].max() + 0.6, -0.6)
    axes.grid(color="#EEEEEE", lw=0.5)
    axes.set_axisbelow(True)
    axes.set_xlabel("atom")
    return mesh


def _tests(winner: pd.Series) -> list[str]:
    """Q of the winning atom and term by every test that was made, in words."""
    import numpy as np

    names = {
        "": "against permuted codes",
        "_camera": "corrected for correlated genes",
        "_ora": "over-representation, genes taken as independent",
        "_naive": "ranks, genes taken as independent",
    }
    said = [
        f"{10 ** winner['log10_q' + test]:.0e} ({name})"
        if winner["log10_q" + test] > -300
        else f"10^{winner['log10_q' + test]:.0f} ({name})"
        for test, name in names.items()
        if "log10_q" + test in winner and np.isfinite(winner["log10_q" + test])
    ]
    return [f"q of its best atom (atom {winner['atom']}) by test: {', '.join(said)}"] if said else []


def _best_rows(best: pd.DataFrame, frame: pd.DataFrame, winner: pd.Series, effect: str) -> pd.DataFrame:
    """Best atom for the winning term, one row per dictionary, whitening and seed, with an effect and its null."""
    if len(best):
        need(best, "gene_sets_best", [*KEYS, "seed", "collection", "term", "effect", "correlation"])
        rows = best[(best["dataset"] == winner["dataset"]) & (best["model"] == winner["model"])]
        rows = rows[(rows["collection"] == winner["collection"]) & (rows["term"] == winner["term"])]
    else:
        rows = frame[(frame["collection"] == winner["collection"]) & (frame["term"] == winner["term"])]
    rows = rows.sort_values("effect", ascending=False, kind="stable")
    rows = rows.drop_duplicates([*KEYS, "seed"]).sort_index()
    if effect == "effect":
        old = {"null_effect": "null", "null_effect_low": "null_low", "null_effect_high": "null_high"}
        return rows.rename(columns=old)
    bounds = ("low", "high", "null", "null_low", "null_high")
    return rows.assign(**{name: rows.get(f"{effect}_{name}", float("nan")) for name in bounds})


def _verdict(table: pd.DataFrame, effect: str) -> str:
    """Say by how much the best learned dictionary's atom differs from the baselines' and the null's."""

    def said(row: pd.Series) -> str:
        value, low, high = (captions.number(row[name]) for name in (effect, "low", "high"))
        return f"{style.dictionary_label(row['dictionary'], row['method'])} {value} [{low}, {high}]"

    learned = table[table["method"].isin(style.LEARNED)]
    others = table[~table["method"].isin(style.LEARNED)]
    row = (learned if len(learned) else table).sort_values(effect).iloc[-1]
    text = f"{EFFECTS[effect]} of {said(row)} ({style.whitening_label(row['whitening'])})"
    if len(others):
        rest = others.sort_values(effect, ascending=False).drop_duplicates("dictionary")
        text += " against " + ", ".join(said(other) for _, other in rest.iterrows())
    if "null" in table and table["null"].notna().any():
        top = table["null_high"].max() if "null_high" in table else table["null"].max()
        text += f", null at most {captions.number(top)}"
    return text


def _programmes(programmes: pd.DataFrame | None, cells: pd.DataFrame) -> pd.DataFrame:
    """Genes of the first atoms of the dot plot, as chosen off test, strongest first in each direction."""
    import pandas as pd

    if programmes is None or programmes.empty:
        return pd.DataFrame()
    columns = [*KEYS, "seed", "atom", "direction", "rank", "gene", "effect", "low", "high", "q", "null_effect", "n"]
    need(programmes, "gene_programmes", columns)
    atoms = unique(cells.sort_values("x")["atom"])[:PROGRAMMES]
    own = programmes[columns].merge(cells[[*KEYS, "seed"]].head(1), on=[*KEYS, "seed"])
    own = own[own["atom"].isin(atoms) & (own["rank"] <= GENES)]
    turn = own["atom"].map({atom: number for number, atom in enumerate(atoms)})
    down = own["direction"] == "down"
    # Genes that rise from the strongest on, then those that fall, the strongest last.
    place = own["rank"].where(~down, -own["rank"])
    own = own.assign(turn=turn, down=down, place=place).sort_values(["turn", "down", "place"], kind="stable")
    return own.drop(columns=["turn", "down", "place"]).reset_index(drop=True)


def _genes(axes: Axes, genes: pd.DataFrame) -> None:
    """Correlation of an atom's genes with its code, with intervals, over the largest of all genes by chance."""
    look = style.method(genes["method"].iloc[0])
    for y, row in enumerate(genes.itertuples()):
        axes.hlines(y, -row.null_effect, row.null_effect, color=style.NULL_COLOUR, lw=3.2, zorder=1)
        axes.hlines(y, row.low, row.high, color=look.colour, lw=0.9, zorder=2)
        axes.plot([row.effect], [y], marker=look.marker, linestyle="none", color=look.colour, zorder=3)
    axes.axvline(0, color=style.REFERENCE_COLOUR, linestyle=":", lw=0.8, zorder=0)
    axes.set_yticks(range(len(genes)), list(genes["gene"]))
    axes.set_ylim(len(genes) - 0.4, -0.6)
    axes.set_xlim(-1, 1)
    axes.set_xticks([-0.5, 0, 0.5])
    axes.set_xlabel("correlation r (test)")


def _told(programmes: Mapping[str, pd.DataFrame]) -> list[str]:
    """What the panels of genes show; nothing where there are none."""
    drawn = {data: genes for data, genes in programmes.items() if len(genes)}
    if not drawn:
        return []
    sizes = captions.several(f"{data} {captions.count(genes['n'].iloc[0])}" for data, genes in drawn.items())
    found = captions.several(
        f"{data} {int((genes['effect'].abs() > genes['null_effect']).sum())} of {len(genes)}"
        for data, genes in drawn.items()
    )
    return [
        f"Last row: of the first {PROGRAMMES} atoms of the dot plot, the {GENES} genes that rise and the {GENES} that "
        "fall most with the code, chosen on training and validation cells, with their correlation over test cells; "
        "null: up to the quantile of the largest absolute correlation over ALL genes under permuted codes, so that a "
        f"gene outside it counts however many were looked at. Genes outside: {found}. n test cells: {sizes}."
    ]


def _camera_handle(parts: Iterable[pd.DataFrame]) -> list[Any]:
    """Legend entry for the points, where the corrected test was made."""
    from matplotlib.lines import Line2D

    if not any("q_camera" in part for part in parts):
        return []
    return [Line2D([], [], marker=".", linestyle="none", color="black", ms=2.5, label=f"camera's q < {Q} too")]


def _size_handles() -> list[Any]:
    """Legend entries for dot sizes."""
    from matplotlib.lines import Line2D

    return [
        Line2D(
            [],
            [],
            marker="o",
            linestyle="none",
            color=style.NULL_COLOUR,
            markeredgecolor="black",
            mew=0.4,
            ms=float(_area(level)) ** 0.5,
            label=f"−log10 q = {level:g}",
        )
        for level in SIZE_LEVELS
    ]
