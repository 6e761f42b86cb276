import ast
import csv
import re
import runpy
from importlib import import_module
from itertools import combinations
from pathlib import Path

import figure_tables
import numpy as np
import pandas as pd
import pytest
from fake_job import fake_job

import conceptome.figures
from conceptome.config.evidence import FIGURES
from conceptome.config.run import Run
from conceptome.errors import ConfigError, DataError
from conceptome.figures import TABLES, captions, draw, gene_sets, panels, style
from conceptome.files import write_json, write_parquet

RUN = Run(studies=["kang2018"], dpi=80)
# Per figure, columns of the plotted table whose values must be seen in the panel of their letter.
SHOWN = {
    "activations": ["pc1", "pc2", "eigenvalue", "null"],
    "reconstruction": ["l0", "fvu", "null", "dead_percent"],
    "selectivity": ["value"],
    "probes": ["balanced_accuracy", "low", "high", "null"],
    "labels": ["auroc"],
    "gene_sets": ["effect", "correlation"],
    "residues": ["count", "f1", "neuron_f1", "near"],
    "stability": ["share", "mean_cosine", "coherence", "coherence_null"],
    "recovery": ["best_correlation", "share"],
    "coverage": ["f1", "low", "high", "null", "in_sample"],
    "absorption": ["absorbed", "low", "high", "null", "any"],
    "identifiability": ["score", "low", "high", "null"],
    "monosemanticity": ["score", "low", "high", "null"],
    "isolation": ["score", "low", "high", "null"],
    "space_probes": ["balanced_accuracy", "low", "high", "null"],
    "sparse_probes": ["balanced_accuracy", "low", "high", "null"],
    "diversity": ["value", "mean_cosine", "effective_rank", "rank_null"],
    "data_stability": ["mean_cosine", "low", "high", "rank_low", "rank_high", "rank_null"],
    "agreement": ["mmcs", "null"],
    "plausibility": ["ood", "low", "high", "null"],
    "families": ["value", "low", "high", "null"],
    "latent_scaling": ["value", "low", "high", "nu_error", "nu_reconstruction"],
    "model_similarity": ["value", "low", "high", "null"],
    "variance_partition": ["share", "biological", "technical_share"],
    "multidimensional": ["score", "x", "y", "correlation"],
    "intrinsic_dimension": ["dimension", "low", "high", "null"],
    "layers": ["validation", "validation_low", "test", "test_high", "dimension", "low", "null"],
    "spread": ["value", "low", "high", "null"],
    "lobes": ["ami", "x", "y", "null"],
    "crystals": ["silhouette", "x", "y", "null"],
    "eigenvalue_slope": ["slope", "null"],
    "explanations": ["value", "low", "high", "null"],
    "steering": ["effect", "low", "high", "null", "matched"],
    "factorial": ["value"],
    "perturbations": ["effect"],
    "dose_curves": ["mean", "low", "high", "null", "null_low", "null_high"],
    "galleries": ["purity", "low", "high", "null", "null_low", "null_high"],
}
# Intervals over atoms, not over samples.
ATOM_LEVEL = ("stability", "diversity", "data_stability", "agreement", "plausibility", "model_similarity")


@pytest.fixture(scope="module")
def drawn():
    """Every figure, drawn once by its module, with the tables it was drawn from."""
    out = {}
    for name in FIGURES:
        tables = figure_tables.tables(name)
        with style.look():
            drawing = import_module(f"conceptome.figures.{name}").draw(tables, figure_tables.cards())
            drawing.figure.set_dpi(80)
            drawing.figure.draw_without_rendering()
        out[name] = drawing, tables
    return out


def caption(drawing):
    return "\n".join([drawing.title, *drawing.sentences])


def by_letter(figure):
    """Axes by panel letter."""
    out = {}
    for axes in figure.findobj(lambda artist: hasattr(artist, "get_xlim")):
        for text in axes.texts:
            if text.get_fontweight() == "bold":
                out[text.get_text()] = axes
    return out


def numbers(axes):
    """Every number that the artists of one panel show."""
    parts = []
    for line in axes.lines:
        parts += [np.asarray(line.get_xdata(), float).ravel(), np.asarray(line.get_ydata(), float).ravel()]
    for collection in axes.collections:
        parts += [np.asarray(collection.get_offsets(), float).ravel()]
        parts += [np.ma.filled(np.ma.asarray(collection.get_array(), float), np.nan).ravel()] * (
            collection.get_array() is not None
        )
        parts += [path.vertices.ravel() for path in collection.get_paths()]
    parts += [np.array([patch.get_width()], float) for patch in axes.patches if hasattr(patch, "get_width")]
    return set(np.round(np.concatenate(parts), 9))


@pytest.mark.parametrize("name", FIGURES)
def test_the_csv_holds_what_is_drawn(drawn, name):
    drawing, _ = drawn[name]
    table, panels_ = drawing.table(), by_letter(drawing.figure)
    assert list(table["panel"].unique()) == list(panels_)
    for letter, rows in table.groupby("panel"):
        seen, checked = numbers(panels_[letter]), 0
        for column in SHOWN[name]:
            values = set(rows[column].dropna().round(9)) if column in rows else set()
            assert values <= seen, (letter, column, sorted(values - seen)[:5])
            checked += len(values)
        assert checked, f"panel {letter} shows none of {SHOWN[name]}"


def texts(figure):
    """Every text that is drawn."""
    holders = [figure, *figure.subfigs]
    found = [text for holder in holders for text in holder.texts]
    found += [text for holder in holders for legend in holder.legends for text in legend.get_texts()]
    for axes in figure.findobj(lambda artist: hasattr(artist, "get_xlim")):
        if axes.axison:
            found += [axes.xaxis.label, axes.yaxis.label]
            for axis in (axes.xaxis, axes.yaxis):
                found += [tick.label1 for tick in axis._update_ticks() if tick.label1.get_visible()]
        found += [axes.title, axes._left_title, axes._right_title, *axes.texts]
        found += axes.get_legend().get_texts() if axes.get_legend() else []
    return [text for text in found if text.get_visible() and text.get_text().strip()]


@pytest.mark.parametrize("name", FIGURES)
def test_no_text_overlaps_or_leaves_the_page_or_is_too_small(drawn, name):
    figure = drawn[name][0].figure
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts(figure)]
    for text in texts(figure):
        assert text.get_fontsize() >= 6.5, text.get_text()
    page = figure.bbox
    for label, box in boxes:
        assert box.x0 >= -1, label
        assert box.x1 <= page.x1 + 1, label
        assert box.y0 >= -1, label
        assert box.y1 <= page.y1 + 1, label
    for (one, a), (other, b) in combinations(boxes, 2):
        wide = min(a.x1, b.x1) - max(a.x0, b.x0)
        high = min(a.y1, b.y1) - max(a.y0, b.y0)
        assert not (wide > 1.5 and high > 1.5), (one, other)
    assert page.width / figure.dpi == pytest.approx(180 / 25.4)


@pytest.mark.parametrize("name", FIGURES)
def test_captions_tell_n_interval_null_and_warnings(drawn, name):
    text = caption(drawn[name][0])
    assert re.search(r"\bn( test samples)?[:=]? ", text)
    assert "Interval" in text
    assert "95 %" in text
    assert "Null" in text
    expected = {"kang2018": "cell-level", "cell_injury": "plate-level", "yeast": "protein-level"}
    data = {row for table in drawn[name][1].values() if "dataset" in table for row in table["dataset"].unique()}
    for dataset in data & set(expected) if name not in ATOM_LEVEL else ():
        unit = expected[dataset].removesuffix("-level")
        assert re.search(rf"{expected[dataset]} \((bootstrap|jackknife) by {unit}", text)
    shows_simulated = name in ("reconstruction", "stability", "recovery", "factorial")
    assert ("SIMULATED" in text) == shows_simulated
    of_residues = ("activations", "reconstruction", "residues", "stability", "factorial", "layers")
    assert ("STAND-IN" in text) == (name in of_residues)
    assert ("esm2†" in " ".join(t.get_text() for t in texts(drawn[name][0].figure))) == ("STAND-IN" in text)


def test_numbers_in_captions_follow_the_tables():
    tables = figure_tables.tables("residues")
    with style.look():
        module = import_module("conceptome.figures.residues")
        before = caption(module.draw(tables, figure_tables.cards()))
        frame = tables["residue_counts"]
        frame.loc[frame["method"] == "icfl", ["count", "low", "high"]] = 0
        after = caption(module.draw(tables, figure_tables.cards()))
    assert not re.search(r"raw: ICFL 0 ", before)
    assert re.search(r"raw: ICFL 0 \(0 to 0; null 1\.4\), shuffled 0", after)


@pytest.mark.parametrize("name", ["activations"])
def test_two_drawings_have_the_same_bytes(tmp_path, name):
    for folder in ("one", "two"):
        draw(name, figure_tables.tables(name), figure_tables.cards(), RUN, tmp_path / folder)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == sorted([f"{name}.svg", f"{name}.png", f"{name}.csv", "caption.md"])
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    assert b"dc:date" not in (tmp_path / "one" / f"{name}.svg").read_bytes()
    with (tmp_path / "one" / f"{name}.csv").open(newline="") as handle:
        assert next(csv.reader(handle))[0] == "panel"


def small(name):
    """One seed, one data set, few atoms or terms, one whitening."""
    tables = figure_tables.tables(name)
    first = tables[TABLES[name][0]]["dataset"].iloc[0]
    # The factorial study shows its further methods under one whitening.
    shown = "pca" if name == "factorial" else "none"
    for key, frame in tables.items():
        frame = frame[frame["dataset"] == first] if "dataset" in frame else frame
        frame = frame[frame["whitening"] == shown] if "whitening" in frame else frame
        frame = frame[frame["seed"].isin([0, np.nan])] if "seed" in frame else frame
        frame = frame[frame["atom"] < 3] if "atom" in frame else frame
        tables[key] = frame[frame["model"].isin(frame["model"].head(1))] if "model" in frame else frame
    return tables


@pytest.mark.parametrize("name", FIGURES)
def test_one_seed_one_data_set_few_atoms(name):
    with style.look():
        drawing = import_module(f"conceptome.figures.{name}").draw(small(name), figure_tables.cards())
        drawing.figure.set_dpi(60)
        drawing.figure.draw_without_rendering()
    assert len(drawing.table())


@pytest.mark.parametrize(
    ("name", "absent"),
    [
        ("selectivity", "selectivity_null"),
        ("gene_sets", "gene_sets_best"),
        ("gene_sets", "gene_programmes"),
        ("residues", "residue_structure"),
        ("stability", "stability_atoms"),
    ],
)
def test_a_second_table_may_be_absent(name, absent):
    tables = figure_tables.tables(name)
    tables[absent] = pd.DataFrame()
    with style.look():
        assert len(import_module(f"conceptome.figures.{name}").draw(tables, figure_tables.cards()).table())


def test_stability_is_drawn_by_width_where_a_study_holds_several():
    tables = figure_tables.tables("stability")
    frame = tables["stability"][tables["stability"]["dataset"] == "cell_injury"].assign(shared_low=0.1, shared_high=0.3)
    narrow = frame[frame["method"] == "topk"].assign(dictionary="topk_64", m=64, k=8, shared=0.1234)
    frame = pd.concat([frame, narrow], ignore_index=True)
    with style.look():
        drawing = import_module("conceptome.figures.stability").draw({"stability": frame}, figure_tables.cards())
    axes = by_letter(drawing.figure)
    assert list(axes) == ["a", "b"]
    rows = drawing.table().query("panel == 'b'")
    assert set(rows["m"]) == {64, 512}
    assert set(rows["shared"].round(9)) <= numbers(axes["b"])
    assert "one line per method and k" in caption(drawing)
    assert "matched by atoms alone: icfl, ica, random." in caption(drawing)


@pytest.mark.parametrize("name", FIGURES)
def test_no_data_set_at_all_is_an_error_that_says_what_to_do(tmp_path, name):
    empty = {key: pd.DataFrame() for key in TABLES[name]}
    with pytest.raises(DataError, match=f"figure '{name}'.*'{TABLES[name][0]}'.*take '{name}' out of 'figures'"):
        draw(name, empty, figure_tables.cards(), RUN, tmp_path)
    assert not list(tmp_path.iterdir())


def test_missing_column_unknown_figure_and_missing_card(tmp_path):
    tables = figure_tables.tables("probes")
    with pytest.raises(ConfigError, match="unknown figure 'probe'"):
        draw("probe", tables, figure_tables.cards(), RUN, tmp_path)
    with pytest.raises(DataError, match="'cell_injury' of table 'probes' has no card"):
        draw("probes", tables, {"kang2018": figure_tables.cards()["kang2018"]}, RUN, tmp_path)
    tables["probes"] = tables["probes"].drop(columns="chance")
    with pytest.raises(DataError, match=r"'probes' lacks column.*chance"):
        draw("probes", tables, figure_tables.cards(), RUN, tmp_path)


def test_a_null_model_never_gets_the_panel_of_its_data_set():
    frame = figure_tables.tables("residues")["residues"]
    turned = frame.sort_values("model", ascending=False, kind="stable")
    assert set(panels.main_models(turned, figure_tables.cards())["model"]) == {"esm2"}
    by_card = {"yeast": {"models": {"esm2_shuffled": {"options": {"shuffle_weights": True}}}}}
    assert set(panels.main_models(turned, by_card)["model"]) == {"esm2"}


def test_headline_follows_a_fixed_order_and_never_the_outcome():
    frame = figure_tables.tables("labels")["labels"]
    frame.loc[frame["method"] == "random", "auroc"] = 1.0
    chosen = panels.headline(frame)
    assert set(zip(chosen["whitening"], chosen["dictionary"], chosen["seed"])) == {("pca", "icfl", 0)}


def test_over_seeds_takes_the_outermost_bounds_and_never_less_than_the_seeds():
    frame = pd.DataFrame({"key": "a", "value": [0.4, 0.6], "low": [0.3, np.nan], "high": [0.5, 0.55]})
    row = panels.over_seeds(frame, ["key"], "value").iloc[0]
    assert row["value"] == pytest.approx(0.5)
    assert (row["low"], row["high"], row["n_seeds"]) == (0.3, 0.6, 2)


def test_the_top_term_is_picked_by_the_data_and_named():
    tables = figure_tables.tables("gene_sets")
    frame = tables["gene_sets"]
    best = (frame["term"] == "Neutrophil degranulation") & (frame["method"] == "icfl")
    frame.loc[best, ["q", "effect"]] = [1e-200, 0.99]
    with style.look():
        drawing = gene_sets.draw(tables, figure_tables.cards())
    titles = " ".join(" ".join(text.get_text() for text in texts(drawing.figure)).split())
    assert "top term: Neutrophil degranulation [Reactome]" in titles
    baseline = frame["method"].isin(["random", "pca"]) & (frame["term"] == "Eukaryotic Translation Elongation")
    frame.loc[baseline, ["q", "effect"]] = [0.0, 1.0]
    assert gene_sets.top_term(frame)["term"] == "Neutrophil degranulation"


def test_terms_become_prose():
    hallmark = "h.all.v7.0.symbols.gmt"
    assert gene_sets.readable("HALLMARK_INTERFERON_ALPHA_RESPONSE", hallmark) == "Interferon alpha response [Hallmark]"
    assert gene_sets.readable("HALLMARK_MYC_TARGETS_V1", hallmark) == "MYC targets V1 [Hallmark]"
    term = gene_sets.readable("defense response (GO:0006952)", "enrichr.GO_Biological_Process_2021.gmt")
    assert term == "Defense response [GO BP]"
    assert gene_sets.readable("mRNA splicing (GO:0000398)", "GO_Biological_Process") == "mRNA splicing [GO BP]"


def test_one_colour_per_method_and_one_line_per_whitening():
    looks = list(style.METHODS.values())
    assert len({look.colour for look in looks}) == len({look.marker for look in looks}) == len(looks)
    assert len({line for _, line in style.WHITENINGS.values()}) == len(style.WHITENINGS)
    assert style.METHODS["identity"].label == "neurons"


def test_dictionaries_of_one_method_can_be_told_apart():
    pairs = [("topk_k8", "topk"), ("topk", "topk"), ("icfl_wide", "icfl"), *((f"topk_{i}", "topk") for i in range(33))]
    looks = style.looks(pairs)
    assert list(looks) == pairs
    assert looks["topk", "topk"] == style.METHODS["topk"]
    # A method's first dictionary stands for it where none is called as the method.
    assert looks["icfl_wide", "icfl"][1:] == style.METHODS["icfl"][1:]
    assert looks["topk_k8", "topk"].label == "topk_k8"
    assert len({look[1:] for look in looks.values()}) == len(pairs)
    with style.look():
        drawing = import_module("conceptome.figures.diversity").draw(_variants("diversity"), figure_tables.cards())
    (legend,) = drawing.figure.legends
    handles = [handle for handle in legend.legend_handles if handle.get_label().startswith(("TopK", "topk"))]
    assert [handle.get_label() for handle in handles] == ["TopK", "topk_k8", "topk_low_rate"]
    assert len({(handle.get_color(), handle.get_marker()) for handle in handles}) == 3


def _variants(name):
    """The made-up tables of a figure with two further dictionaries of one method."""
    tables = figure_tables.tables(name)
    for key, frame in tables.items():
        own = frame[frame["method"] == "topk"]
        tables[key] = pd.concat([frame, *(own.assign(dictionary=name) for name in ("topk_k8", "topk_low_rate"))])
    return tables


def test_many_columns_stand_in_blocks_of_at_most_five():
    assert panels.in_blocks("abcde") == [list("abcde")]
    assert [len(block) for block in panels.in_blocks(range(12))] == [4, 4, 4]
    assert [number for block in panels.in_blocks(range(12)) for number in block] == list(range(12))


def test_a_legend_takes_no_more_columns_than_the_page_holds():
    assert style._columns(["ICFL", "TopK", "PCA"], 8) == 3
    assert 1 <= style._columns(["archetypal_common_start"] * 16, 8) < 6


def test_eight_studies_stand_in_two_blocks():
    tables = figure_tables.tables("stability")
    first = {key: frame[frame["dataset"] == "kang2018"] for key, frame in tables.items()}
    names = [f"study{number}" for number in range(8)]
    many = {key: pd.concat([frame.assign(dataset=name) for name in names]) for key, frame in first.items()}
    cards = dict.fromkeys(names, figure_tables.cards()["kang2018"])
    with style.look():
        drawing = import_module("conceptome.figures.stability").draw(many, cards)
    assert list(by_letter(drawing.figure)) == list("abcdefghijklmnop")
    assert [list(rows["dataset"].unique()) for _, rows in drawing.table().groupby("panel")] == [
        [name] for block in (names[:4], names[:4], names[4:], names[4:]) for name in block
    ]


def test_the_study_is_told_where_the_title_does_not():
    card = {"title": "Cell Painting, cell injury (U2OS)"}
    assert panels.dataset_title(card, "cell_injury") == "Cell Painting, cell injury (U2OS)"
    assert panels.dataset_title(card, "fel2025") == "fel2025: Cell Painting, cell injury (U2OS)"


def test_the_style_is_left_behind(tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    with style.look():
        assert matplotlib.rcParams["svg.hashsalt"] == "conceptome"
    assert dict(matplotlib.rcParams) == before


def test_the_confidence_of_the_study_is_told():
    card = figure_tables.cards()["cell_injury"] | {"study": {"measures": {"confidence": 0.9, "bootstraps": 30}}}
    assert captions.interval({"x": card}, ["x"]) == ("Intervals: x 90 %, plate-level (bootstrap by plate, 30 draws).")


def test_figures_never_import_torch():
    folder = Path(conceptome.figures.__file__).parent
    for path in folder.glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        names += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
        assert not [name for name in names if name.split(".")[0] in ("torch", "scanpy", "sklearn")], path


@pytest.mark.parametrize("name", FIGURES)
def test_captions_read_as_restructured_text_too(drawn, name):
    # The workflow's report renders captions with docutils, which trips over |…| and a closing underscore.
    docutils = pytest.importorskip("docutils.core")
    page = docutils.publish_parts(caption(drawn[name][0]), writer="html", settings_overrides={"report_level": 1})
    assert "system-message" not in page["body"]
    assert "problematic" not in page["body"]


def test_the_script_reads_tables_and_cards_where_the_rule_puts_them(tmp_path):
    tables, cards = figure_tables.tables("residues"), figure_tables.cards()
    results = tmp_path / "results"
    frame, paths = tables["residues"], []
    for (data, model, whitening), rows in frame.groupby(["dataset", "model", "whitening"], sort=False):
        paths.append(results / "evidence" / data / model / whitening / "residues.parquet")
        write_parquet(paths[-1], rows)
    for (data, model, whitening), rows in tables["residue_counts"].groupby(["dataset", "model", "whitening"]):
        paths.append(results / "evidence" / data / model / whitening / "residue_counts.parquet")
        write_parquet(paths[-1], rows)
    empty = results / "evidence" / "kang2018" / "scvi" / "none" / "residues.parquet"
    write_parquet(empty, frame.iloc[:0])
    folders = []
    for model, card in cards["yeast"].pop("models").items():
        folders.append(results / "activations" / "yeast" / model)
        write_json(folders[-1] / "card.json", card)
    study = cards["yeast"].pop("study")
    for data in ("yeast", "kang2018"):
        write_json(results / "data" / data / "card.json", cards[data])
    out = results / "studies" / "default" / "figures" / "residues"
    given = fake_job(
        tmp_path,
        rule="figure_residues",
        outputs={"csv": str(out / "residues.csv"), "caption": str(out / "caption.md")},
        params={
            "figure": "residues",
            "run": RUN.model_dump(mode="json"),
            "studies": {"yeast": study},
            "datasets": ["kang2018", "yeast"],
            "places": [["yeast", folder.name] for folder in folders],
        },
    )
    for name, files in (
        ("tables", [empty, *paths]),
        ("cards", [results / "data" / data / "card.json" for data in ("kang2018", "yeast")]),
        ("activations", folders),
    ):
        start = len(given.input)
        given.input.extend(str(file) for file in files)
        given.input._set_name(name, start, end=len(given.input))
    script = Path(conceptome.figures.__file__).parents[2] / "draw_figure.py"
    runpy.run_path(str(script), init_globals={"snakemake": given})
    assert (out / "residues.svg").stat().st_size > 10_000
    assert (out / "residues.png").read_bytes().startswith(b"\x89PNG")
    assert "STAND-IN checkpoint (yeast/esm2)" in (out / "caption.md").read_text(encoding="utf-8")
    assert pd.read_csv(out / "residues.csv")["panel"].tolist()[0] == "a"
