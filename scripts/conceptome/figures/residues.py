"""F7: protein concepts found in residues, against neurons and a model with shuffled weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from conceptome.figures import captions, style
from conceptome.figures.panels import (
    KEYS,
    Drawing,
    dictionaries,
    headline,
    is_null_model,
    models,
    need,
    unique,
    usable,
    whitenings,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

NAMED = 16
NEAR = 10  # atoms of which nearness in space is drawn
Q = 0.05
SIZES = ["n_concepts", "min_proteins", "n_proteins", "n_groups", "n"]
# UniProt's flat-file keywords in words.
TYPES = {
    "ACT_SITE": "Active site",
    "BINDING": "Binding site",
    "CARBOHYD": "Glycosylation",
    "CA_BIND": "Calcium binding",
    "COILED": "Coiled coil",
    "COMPBIAS": "Compositional bias",
    "CROSSLNK": "Cross-link",
    "DISULFID": "Disulfide bond",
    "DNA_BIND": "DNA binding",
    "INIT_MET": "Initiator methionine",
    "INTRAMEM": "Intramembrane",
    "LIPID": "Lipidation",
    "METAL": "Metal binding",
    "MOD_RES": "Modified residue",
    "MUTAGEN": "Mutagenesis",
    "NP_BIND": "Nucleotide binding",
    "PROPEP": "Propeptide",
    "SIGNAL": "Signal peptide",
    "TOPO_DOM": "Topological domain",
    "TRANSIT": "Transit peptide",
    "TRANSMEM": "Transmembrane",
    "ZN_FING": "Zinc finger",
}


def draw(tables: Mapping[str, pd.DataFrame], cards: Mapping[str, Mapping[str, Any]]) -> Drawing:
    """Draw F7: per data set the numbers of concepts and of atoms with F1 above the bar, and the best concepts.

    Below, where structures were given, atoms that are active near their strongest residue in space.
    """
    columns = [*KEYS, "seed", "atom", "concept", "f1", "low", "high"]
    frame = usable(tables, "residues", columns, "residues")
    bounds = ["count", "low", "high", "null", "null_low", "null_high"]
    every = usable(tables, "residue_counts", [*KEYS, "seed", "what", "split_by", *bounds, *SIZES], "residues")
    datasets = [
        data
        for data in unique(frame["dataset"])
        if not all(is_null_model(cards[data], model) for model in frame.loc[frame["dataset"] == data, "model"].unique())
    ] or unique(frame["dataset"])
    frame, every = (each[each["dataset"].isin(datasets)] for each in (frame, every))
    spaces = {data: whitenings(every[every["dataset"] == data]) for data in datasets}
    rows = {data: dictionaries(every[every["dataset"] == data]) for data in datasets}
    looks = style.looks(dictionaries(every))
    near = {data: _near(tables.get("residue_structure"), cards[data], data) for data in datasets}
    # Bars beside named concepts, which need their room too.
    height = [max(14 + 2 * (14 + 5.6 * len(rows[data])), 26 + 4.2 * NAMED) for data in datasets]
    below = [20 + 4.2 * NEAR if near[data] else 0.0 for data in datasets]
    figure = style.new_figure(sum(height) + 8 + sum(below))
    pages = iter(
        figure.subfigures(
            len(datasets) + sum(map(bool, below)),
            1,
            squeeze=False,
            height_ratios=[each for pair in zip(height, below) for each in pair if each],
        )[:, 0]
    )
    drawing = Drawing(figure, "Protein concepts in atoms, against neurons and a weight-shuffled model")
    letters = style.letters()
    facts, sizes, drawn = [], [], []
    has_null = False
    for data in datasets:
        card, block = cards[data], next(pages)
        bar = captions.settings(card, "enrichment").min_f1
        here, counted = (each[each["dataset"] == data] for each in (frame, every))
        main = models(counted, card)[0]
        drawn.append((data, main))
        nulls = [model for model in unique(counted["model"]) if is_null_model(card, model)]
        has_null |= bool(nulls)
        counts = _counts(counted[counted["model"].isin([main, *nulls])], nulls)
        split_by = counts["split_by"].iloc[0]
        parts = block.subfigures(1, 2, width_ratios=[1.25, 1])
        shown = spaces[data]
        axes = parts[0].subplots(2, len(shown), squeeze=False, sharex="row")
        for line, what in zip(axes, ("concepts", "atoms")):
            for panel, whitening in zip(line, shown):
                table = counts[(counts["what"] == what) & (counts["whitening"] == whitening)]
                letter = next(letters)
                _bars(panel, table, rows[data], looks, counts[counts["what"] == what]["high"].max())
                panel.set_xlabel(f"{what} with F1 > {bar:g} (test)")
                if panel is not line[0]:
                    panel.set_yticklabels([])
                heading = f"{data} · {main}" + ("†" if (card.get("models", {}).get(main, {}).get("stand_in")) else "")
                heading += f" · split by {split_by}"
                head = heading + "\n" if what == "concepts" and whitening == shown[0] else ""
                style.mark(panel, letter, head + style.whitening_label(whitening), wrap=60 // len(shown))
                drawing.add(letter, table)
        chosen = headline(here[here["model"] == main])
        named = _named(here[here["model"] == main], chosen)
        panel = parts[1].subplots()
        letter = next(letters)
        _best(panel, named, bar)
        first = chosen.iloc[0]
        which = f"{style.dictionary_label(first['dictionary'], first['method'])}, " + style.whitening_label(
            first["whitening"]
        )
        style.mark(panel, letter, f"best concepts\n{which}, seed {first['seed']}")
        drawing.add(letter, named)
        if near[data]:
            for panel, table in zip(next(pages).subplots(1, len(near[data]), squeeze=False)[0], near[data]):
                letter = next(letters)
                _nearness(panel, table)
                one = table.iloc[0]
                head = f"{data} · near in space\n{style.dictionary_label(one['dictionary'], one['method'])}, "
                style.mark(panel, letter, f"{head}{style.whitening_label(one['whitening'])}, seed {one['seed']}")
                drawing.add(letter, table)
        facts.append(f"{data} (split by {split_by}) concepts " + _summary(counts))
        sizes.append(_sizes(data, counts, here[here["model"] == main]))
    handles = [
        _patch("trained model", style.REFERENCE_COLOUR, None),
        *([_patch("shuffled model", "white", "//////")] if has_null else []),
        style.method_handles([("identity", "identity")], line=False)[0],
        style.band_handle("null: shifted annotation", alpha=1.0),
    ]
    handles[-2].set_label("best neuron")
    style.legend_below(figure, handles)
    seeds = every["seed"].nunique()
    drawing.sentences = [
        "Concepts (annotation types and notes) whose best atom on validation proteins reaches the F1 on TEST proteins, "
        "and atoms that reach it for some concept on both. F1 (no unit) is the harmonic mean of precision over "
        "residues and recall over annotated domains; thresholds were frozen on validation proteins. "
        f"n: {captions.several(sizes)}. {captions.several(facts)}.",
        *_told(near),
        captions.interval(cards, datasets, "enrichment")
        + f" Bars are medians and small dots single values over {seeds} seed(s); lines reach from the lowest lower to "
        "the highest upper bound over seeds.",
        "Nulls: neurons (one atom per dimension, both signs), the same dictionaries on a model with shuffled weights "
        "(hatched), random atoms, and annotation shifted within its proteins (grey: the interval of the count when "
        "choice and test are repeated on it; in the panel of best concepts, the mean F1).",
        *captions.warnings(cards, datasets, dict.fromkeys(drawn)),
        *captions.notes(cards, datasets),
    ]
    return drawing


def _counts(frame: pd.DataFrame, nulls: Sequence[str]) -> pd.DataFrame:
    """Summarise counts over seeds: median, outermost bounds, the null's mean and outermost bounds."""
    frame = frame.assign(null_model=frame["model"].isin(list(nulls)))
    keys = [*KEYS, "null_model", "what", "split_by"]
    return (
        frame.groupby(keys, sort=False)
        .agg(
            values=("count", lambda values: " ".join(map(str, values))),
            count=("count", "median"),
            low=("low", "min"),
            high=("high", "max"),
            n_seeds=("count", "size"),
            null=("null", "mean"),
            null_low=("null_low", "min"),
            null_high=("null_high", "max"),
            **{name: (name, "first") for name in SIZES},
        )
        .reset_index()
    )


def _bars(
    axes: Axes,
    table: pd.DataFrame,
    rows: Sequence[tuple[str, str]],
    looks: Mapping[tuple[str, str], style.Method],
    highest: float,
) -> None:
    """Horizontal bars per dictionary with interval over the null's; trained model filled, shuffled model hatched."""
    for position, (dictionary, method) in enumerate(rows):
        look = looks[dictionary, method]
        for null, offset in ((False, -0.2), (True, 0.2)):
            here = table[(table["dictionary"] == dictionary) & (table["null_model"] == null)]
            if here.empty:
                continue
            row = here.iloc[0]
            y = position + offset
            face = {"facecolor": "white", "hatch": "//////"} if null else {"facecolor": look.colour}
            axes.barh(y, row["count"], height=0.36, edgecolor=look.colour, **face, zorder=2)
            axes.barh(
                y,
                row["null_high"] - row["null_low"],
                left=row["null_low"],
                height=0.14,
                color=style.NULL_COLOUR,
                edgecolor="white",
                lw=0.3,
                zorder=3,
            )
            values = [int(value) for value in row["values"].split()]
            # White around the line: it must be seen on a dark bar too.
            axes.plot([row["low"], row["high"]], [y, y], color="white", lw=1.7, zorder=4, solid_capstyle="butt")
            axes.plot([row["low"], row["high"]], [y, y], color="black", lw=0.7, zorder=5, solid_capstyle="butt")
            if len(values) > 1:
                axes.plot(values, [y] * len(values), "o", color="black", ms=2.2, mec="white", mew=0.3, zorder=6)
            axes.annotate(
                f"{row['count']:.0f}",
                (max(row["high"], row["count"]), y),
                (2.5, 0),
                textcoords="offset points",
                va="center",
                fontsize=style.SMALL_FONT,
            )
    axes.set_yticks(range(len(rows)), [style.dictionary_label(*row) for row in rows])
    axes.set_ylim(len(rows) - 0.45, -0.55)
    axes.set_xlim(0, 1.22 * max(float(highest), 4.0))
    axes.locator_params(axis="x", nbins=4, integer=True)


def _named(frame: pd.DataFrame, chosen: pd.DataFrame) -> pd.DataFrame:
    """Best atom of each concept (picked on validation where known), the best neuron beside it; top concepts by F1."""
    pick = "f1_validation" if "f1_validation" in chosen else "f1"

    def best(rows: pd.DataFrame) -> pd.DataFrame:
        return rows.sort_values(pick, ascending=False, kind="stable").drop_duplicates("concept")

    top = best(chosen).sort_values("f1", ascending=False, kind="stable").head(NAMED)
    columns = [*KEYS, "seed", "concept", "atom", "f1", "low", "high"]
    columns += [name for name in ("precision", "recall", "null_f1", "q", "n_domains_test") if name in top]
    top = top[columns].reset_index(drop=True)
    neurons = best(frame[(frame["method"] == "identity") & (frame["whitening"] == top["whitening"].iloc[0])])
    neurons = neurons.set_index("concept")
    for name in ("f1", "low", "high"):
        top[f"neuron_{name}"] = top["concept"].map(neurons[name])
    top["y"] = range(len(top))
    return top


def _best(axes: Axes, named: pd.DataFrame, bar: float) -> None:
    """Test F1 of the best atom of each concept with interval, the best neuron and the null."""
    look, neuron = style.method(named["method"].iloc[0]), style.method("identity")
    y = named["y"]
    if "null_f1" in named:
        axes.hlines(y, 0, named["null_f1"], color=style.NULL_COLOUR, lw=3.4, zorder=1)
    axes.hlines(y + 0.17, named["neuron_low"], named["neuron_high"], color=neuron.colour, lw=0.6, zorder=2)
    axes.plot(named["neuron_f1"], y + 0.17, linestyle="none", marker=neuron.marker, color=neuron.colour, ms=2.6, mew=0)
    axes.hlines(y - 0.17, named["low"], named["high"], color=look.colour, lw=1.0, zorder=3)
    axes.plot(named["f1"], y - 0.17, linestyle="none", marker=look.marker, color=look.colour, ms=3.4, zorder=4)
    axes.axvline(bar, color=style.REFERENCE_COLOUR, linestyle=":", lw=0.8, zorder=0)
    names = [_readable(concept) for concept in named["concept"]]
    axes.set_yticks(y, names)
    axes.set_ylim(max(len(named), 6) - 0.5, -0.6)
    axes.set_xlim(0, 1.02)
    axes.set_xlabel("F1 (test)")


def _near(structure: pd.DataFrame | None, card: Mapping[str, Any], data: str) -> list[pd.DataFrame]:
    """Top atoms by nearness in space, one table per whitening: the same fixed choice of dictionary as elsewhere."""
    if structure is None or structure.empty:
        return []
    columns = ["seed", "atom", "sign", "near", "low", "high", "null", "null_low", "null_high", "q"]
    need(structure, "residue_structure", [*KEYS, *columns, "n_proteins", "n_atoms"])
    here = structure[structure["dataset"] == data]
    here = here[here["model"] == models(here, card)[0]] if len(here) else here
    found = []
    for whitening in whitenings(here):
        own = headline(here[here["whitening"] == whitening])
        top = own.assign(above=own["near"] - own["null"], significant=int((own["q"] < Q).sum()))
        top = top.sort_values(["q", "above"], ascending=[True, False], kind="stable").head(NEAR)
        found.append(top[[*KEYS, *columns, "n_proteins", "n_atoms", "significant"]].reset_index(drop=True))
    return found


def _nearness(axes: Axes, table: pd.DataFrame) -> None:
    """Activation near the strongest residue with interval, over that of shifted patterns; filled where q is small."""
    look = style.method(table["method"].iloc[0])
    for y, row in enumerate(table.itertuples()):
        axes.hlines(y, row.null_low, row.null_high, color=style.NULL_COLOUR, lw=3.2, zorder=1)
        axes.plot([row.null], [y], "|", color=style.REFERENCE_COLOUR, ms=4, mew=0.8, zorder=2)
        axes.hlines(y, row.low, row.high, color=look.colour, lw=0.9, zorder=3)
        fill = look.colour if row.q < Q else "white"
        axes.plot([row.near], [y], look.marker, color=look.colour, markerfacecolor=fill, mew=0.8, zorder=4)
    axes.set_yticks(range(len(table)), [f"atom {row.atom} ({row.n_proteins})" for row in table.itertuples()])
    axes.set_ylim(max(len(table), 3) - 0.4, -0.6)
    axes.set_xlim(left=0)
    axes.set_xlabel("activation near the peak")


def _told(near: Mapping[str, list[pd.DataFrame]]) -> list[str]:
    """What the panels of nearness show; nothing where no structures were given."""
    found = captions.several(
        f"{data} {style.whitening_label(table['whitening'].iloc[0])} {table['significant'].iloc[0]} of "
        f"{table['n_atoms'].iloc[0]} atoms"
        for data, tables in near.items()
        for table in tables
    )
    if not found:
        return []
    return [
        f"Last row: mean activation (in units of the atom's maximum) of the residues near an atom's strongest one in "
        "space and not in sequence, over test proteins with a structure (their number in brackets), of the "
        f"{NEAR} atoms with the smallest q; filled: q < {Q} (Benjamini-Hochberg over all atoms tested; so many: "
        f"{found}). Its null (grey): the same pattern shifted around the protein."
    ]


def _readable(concept: str, most: int = 34) -> str:
    """Concept as 'type: note', cut to the room there is."""
    kind, _, note = str(concept).partition("|")
    kind = TYPES.get(kind, kind.replace("_", " ").capitalize() if kind.isupper() else kind)
    text = f"{kind}: {note}" if note else kind
    return text if len(text) <= most else text[: most - 1].rstrip(" .,(") + "…"


def _summary(counts: pd.DataFrame) -> str:
    """Concept counts per dictionary with interval and null, trained and shuffled."""
    parts = []
    for whitening in whitenings(counts):
        here = counts[(counts["what"] == "concepts") & (counts["whitening"] == whitening)]
        named = []
        for dictionary, name in dictionaries(here):
            rows = here[here["dictionary"] == dictionary]
            trained, shuffled = rows[~rows["null_model"]], rows[rows["null_model"]]
            text = style.dictionary_label(dictionary, name)
            if len(trained):
                row = trained.iloc[0]
                text += f" {captions.number(row['count'], 0)} ({row['low']:.0f} to {row['high']:.0f}; null "
                text += f"{row['null']:.1f})"
            if len(shuffled):
                text += f", shuffled {captions.number(shuffled['count'].iloc[0], 0)}"
            named.append(text)
        parts.append(f"{style.whitening_label(whitening)}: " + ", ".join(named))
    return "; ".join(parts)


def _sizes(data: str, counts: pd.DataFrame, frame: pd.DataFrame) -> str:
    """How many concepts, proteins, groups and residues stand behind the counts."""
    first = counts.iloc[0]
    text = f"{data} {first['n_concepts']} concepts on at least {first['min_proteins']} proteins; test: "
    text += f"{first['n_proteins']} proteins in {first['n_groups']} groups, {first['n']} residues"
    if "n_domains_test" in frame:
        text += f", {captions.span(frame['n_domains_test'].dropna().tolist())} domains per concept"
    return text


def _patch(label: str, colour: str, hatch: str | None) -> Any:
    from matplotlib.patches import Patch

    return Patch(facecolor=colour, edgecolor=style.REFERENCE_COLOUR, hatch=hatch, label=label)
