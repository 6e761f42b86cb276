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
    unique,
    usable,
    whitenings,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

NAMED = 16
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
    """Draw F7: per data set the numbers of concepts and of atoms with F1 above the bar, and the best concepts."""
    need = [*KEYS, "seed", "atom", "concept", "f1", "low", "high"]
    frame = usable(tables, "residues", need, "residues")
    datasets = [
        data
        for data in unique(frame["dataset"])
        if not all(is_null_model(cards[data], model) for model in frame.loc[frame["dataset"] == data, "model"].unique())
    ] or unique(frame["dataset"])
    frame = frame[frame["dataset"].isin(datasets)]
    shown = whitenings(frame)
    rows = dictionaries(frame)
    height = 14 + 2 * (14 + 5.6 * len(rows))
    figure = style.new_figure(height * len(datasets) + 8)
    blocks = figure.subfigures(len(datasets), 1, squeeze=False)[:, 0]
    drawing = Drawing(figure, "Protein concepts in atoms, against neurons and a weight-shuffled model")
    letters = style.letters()
    facts, sizes, drawn = [], [], []
    has_null = False
    for block, data in zip(blocks, datasets):
        card = cards[data]
        bar = captions.settings(card, "enrichment").min_f1
        here = frame[frame["dataset"] == data]
        main = models(here, card)[0]
        drawn.append((data, main))
        nulls = [model for model in unique(here["model"]) if is_null_model(card, model)]
        has_null |= bool(nulls)
        counts = _counts(here[here["model"].isin([main, *nulls])], bar, nulls)
        parts = block.subfigures(1, 2, width_ratios=[1.25, 1])
        axes = parts[0].subplots(2, len(shown), squeeze=False, sharex="row")
        for line, what in zip(axes, ("concepts", "atoms")):
            for panel, whitening in zip(line, shown):
                table = counts[(counts["what"] == what) & (counts["whitening"] == whitening)]
                letter = next(letters)
                _bars(panel, table, rows, counts[counts["what"] == what]["seed_high"].max())
                panel.set_xlabel(f"{what} with F1 > {bar:g} (test)")
                if panel is not line[0]:
                    panel.set_yticklabels([])
                heading = f"{data} · {main}" + ("†" if (card.get("models", {}).get(main, {}).get("stand_in")) else "")
                head = heading + "\n" if what == "concepts" and whitening == shown[0] else ""
                style.mark(panel, letter, head + style.whitening_label(whitening))
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
        facts.append(f"{data} concepts " + _summary(counts))
        sizes.append(_sizes(data, here[here["model"] == main], card))
    handles = [
        _patch("trained model", style.REFERENCE_COLOUR, None),
        *([_patch("shuffled model", "white", "//////")] if has_null else []),
        style.band_handle(f"lower bound also > {bar:g}", "black", 0.35),
        style.method_handles([("identity", "identity")], line=False)[0],
        style.band_handle("null: permuted annotation", alpha=1.0),
    ]
    handles[-2].set_label("best neuron")
    style.legend_below(figure, handles)
    seeds = frame["seed"].nunique()
    drawing.sentences = [
        "Concepts (annotation types and notes) that at least one atom finds, and atoms that find one. F1 (no unit) is "
        "the "
        "harmonic mean of precision over residues and recall over annotated domains; its threshold was frozen on "
        f"validation proteins and F1 is reported on TEST proteins. n: {captions.several(sizes)}. "
        f"{captions.several(facts)}.",
        captions.interval(cards, datasets, "enrichment")
        + f" Bars are means and small dots single values over {seeds} seed(s); the dark part of a bar counts only "
        "those "
        "whose lower bound lies above the threshold as well.",
        "Nulls: neurons (one atom per dimension, both signs), the same dictionaries on a model with shuffled weights "
        "(hatched), random atoms, and F1 with permuted annotation (grey). Atoms are picked by validation F1, so test "
        "F1 "
        "does not profit from the choice."
        if "f1_validation" in frame
        else "Nulls: neurons, the model with shuffled weights (hatched), random atoms, permuted annotation (grey).",
        *captions.warnings(cards, datasets, dict.fromkeys(drawn)),
        *captions.notes(cards, datasets),
    ]
    return drawing


def _counts(frame: pd.DataFrame, bar: float, nulls: Sequence[str]) -> pd.DataFrame:
    """Count concepts and atoms above the bar per dictionary; a pair counts by its point estimate, or by its bound."""
    import pandas as pd

    frame = frame.copy()
    frame["null_model"] = frame["model"].isin(list(nulls))
    keys = [*KEYS, "null_model"]
    every = frame[[*keys, "seed"]].drop_duplicates()
    parts = []
    for what, column in (("concepts", "concept"), ("atoms", "atom")):
        counts = every.copy()
        for name, above in (("count", frame["f1"] > bar), ("sure", (frame["f1"] > bar) & (frame["low"] > bar))):
            found = frame[above].groupby([*keys, "seed"])[column].nunique().rename(name).reset_index()
            counts = counts.merge(found, on=[*keys, "seed"], how="left")
        counts[["count", "sure"]] = counts[["count", "sure"]].fillna(0).astype(int)
        grouped = counts.groupby(keys, sort=False)
        table = grouped.agg(
            count=("count", "mean"),
            sure=("sure", "mean"),
            seed_low=("count", "min"),
            seed_high=("count", "max"),
            n_seeds=("count", "size"),
            values=("count", lambda values: " ".join(map(str, values))),
        ).reset_index()
        parts.append(table.assign(what=what))
    return pd.concat(parts, ignore_index=True)


def _bars(axes: Axes, table: pd.DataFrame, rows: Sequence[tuple[str, str]], highest: float) -> None:
    """Horizontal bars per dictionary: trained model filled, shuffled model hatched, dark part sure, dots seeds."""
    for position, (dictionary, name) in enumerate(rows):
        look = style.method(name)
        for null, offset in ((False, -0.2), (True, 0.2)):
            here = table[(table["dictionary"] == dictionary) & (table["null_model"] == null)]
            if here.empty:
                continue
            row = here.iloc[0]
            y = position + offset
            face = {"facecolor": "white", "hatch": "//////"} if null else {"facecolor": look.colour}
            axes.barh(y, row["count"], height=0.36, edgecolor=look.colour, **face, zorder=2)
            axes.barh(y, row["sure"], height=0.36, color="black", alpha=0.35, lw=0, zorder=3)
            values = [int(value) for value in row["values"].split()]
            axes.plot([row["seed_low"], row["seed_high"]], [y, y], color="black", lw=0.7, zorder=4)
            if len(values) > 1:
                axes.plot(values, [y] * len(values), ".", color="black", ms=2.5, mew=0, zorder=5)
            axes.annotate(
                f"{row['count']:.0f}",
                (max(row["seed_high"], row["count"]), y),
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


def _readable(concept: str, most: int = 34) -> str:
    """Concept as 'type: note', cut to the room there is."""
    kind, _, note = str(concept).partition("|")
    kind = TYPES.get(kind, kind.replace("_", " ").capitalize() if kind.isupper() else kind)
    text = f"{kind}: {note}" if note else kind
    return text if len(text) <= most else text[: most - 1].rstrip(" .,(") + "…"


def _summary(counts: pd.DataFrame) -> str:
    """Concept counts per dictionary, trained and shuffled."""
    parts = []
    for whitening in whitenings(counts):
        here = counts[(counts["what"] == "concepts") & (counts["whitening"] == whitening)]
        named = []
        for dictionary, name in dictionaries(here):
            rows = here[here["dictionary"] == dictionary]
            trained = rows.loc[~rows["null_model"], "count"]
            shuffled = rows.loc[rows["null_model"], "count"]
            text = f"{style.dictionary_label(dictionary, name)} {captions.number(trained.mean(), 0)}"
            named.append(text + (f" (shuffled {captions.number(shuffled.mean(), 0)})" if len(shuffled) else ""))
        parts.append(f"{style.whitening_label(whitening)}: " + ", ".join(named))
    return "; ".join(parts)


def _sizes(data: str, frame: pd.DataFrame, card: Mapping[str, Any]) -> str:
    """How many concepts and test residues stand behind the counts."""
    text = f"{data} {frame['concept'].nunique()} concepts with an atom in the table"
    if "n_residues_test" in frame:
        text += f", {captions.span(frame['n_residues_test'].dropna().tolist())} test residues"
    if "n_domains_test" in frame:
        text += f", {captions.span(frame['n_domains_test'].dropna().tolist())} test domains per concept"
    return text


def _patch(label: str, colour: str, hatch: str | None) -> Any:
    from matplotlib.patches import Patch

    return Patch(facecolor=colour, edgecolor=style.REFERENCE_COLOUR, hatch=hatch, label=label)
