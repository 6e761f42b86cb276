"""Figures: evidence tables in; SVG, PNG, the plotted table and a computed caption out."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from conceptome.config.evidence import FIGURES
from conceptome.config.run import Run
from conceptome.errors import ConfigError, DataError
from conceptome.files import atomic_path
from conceptome.measures.registry import MEASURES

if TYPE_CHECKING:
    import pandas as pd


class Reads(NamedTuple):
    """What a figure is drawn from.

    Attributes
    ----------
    tables
        Evidence tables; a figure is drawn from the data sets that have the first one.
    fits
        What its rows owe to the dictionaries that were fitted: each row to its own fit alone ("own"), each to all fits
        of its space ("all"), or nothing ("none").
    """

    tables: tuple[str, ...]
    fits: str = "own"


# A figure of a further measure reads that measure's first table, and its rows rest on their own fits, unless it is
# named here. Gene sets: the null is calibrated on the codes of all fits; residues: neurons stand beside.
_READS: dict[str, Reads] = {
    **{name: Reads(tables[:1]) for name, tables in MEASURES.items()},
    "activations": Reads(("activations", "spectrum"), "none"),
    "reconstruction": Reads(("reconstruction",)),
    "selectivity": Reads(("selectivity", "selectivity_null")),
    "probes": Reads(("probes",)),
    "labels": Reads(("labels",)),
    "gene_sets": Reads(("gene_sets", "gene_sets_best", "gene_programmes"), "all"),
    "residues": Reads(("residues", "residue_counts", "residue_structure"), "all"),
    "stability": Reads(("stability", "stability_atoms")),
    "recovery": Reads(("recovery",)),
    "perturbations": Reads(("perturbations", "label_trends")),
    "space_probes": Reads(MEASURES["space_probes"]),
    "diversity": Reads(("diversity", "stability")),
    "agreement": Reads(("agreement",), "all"),
    "variance_partition": Reads(("variance_partition_mean", "variance_partition_atoms")),
    "latent_scaling": Reads(MEASURES["latent_scaling"], "none"),
    "model_similarity": Reads(MEASURES["model_similarity"], "none"),
    "multidimensional": Reads(MEASURES["multidimensional"]),
    "intrinsic_dimension": Reads(MEASURES["intrinsic_dimension"], "none"),
    "spread": Reads(MEASURES["spread"], "none"),
    "lobes": Reads(MEASURES["lobes"]),
    "crystals": Reads(MEASURES["crystals"]),
    "eigenvalue_slope": Reads(MEASURES["eigenvalue_slope"]),
    "dose_curves": Reads(MEASURES["dose_curves"]),
    "galleries": Reads(MEASURES["galleries"]),
    "layers": Reads(MEASURES["layers"], "none"),
    "explanations": Reads(("explanations",)),
    "steering": Reads(("steering",)),
    "factorial": Reads(("factorial_effects", "factorial_levels", "factorial_summary", "factorial"), "all"),
}
# Names and their order are those of `conceptome.config.FIGURES`; a name without an entry above fails here.
TABLES: dict[str, tuple[str, ...]] = {name: _READS[name].tables for name in FIGURES}
FITS: dict[str, str] = {name: _READS[name].fits for name in FIGURES}

__all__ = ["FIGURES", "FITS", "TABLES", "Reads", "draw"]


def draw(
    figure: str,
    tables: Mapping[str, pd.DataFrame],
    cards: Mapping[str, Mapping[str, Any]],
    run: Run,
    folder: Path,
    recipe: str | None = None,
) -> None:
    """Draw one figure and write `figure`.svg, `figure`.png, `figure`.csv (exactly what is drawn) and caption.md.

    Parameters
    ----------
    figure
        One of `conceptome.config.FIGURES`.
    tables
        Evidence tables by name (`TABLES[figure]`), concatenated over data sets, models and whitenings in the order
        of the configuration; every table has the columns dataset, model, whitening and, where it applies,
        dictionary, method, seed.
    cards
        Per data set its card, with two additions: `models` (model → card of its activations: stand_in, options) and
        `study` (null_models, measures, enrichment: the settings behind intervals and nulls).
    run
        The run: dpi of the PNG.
    folder
        Where the four files go; equal inputs give equal bytes.
    recipe
        Digest of the recipe of the job that draws; SVG and PNG carry it. None: they carry none.

    Raises
    ------
    ConfigError
        An unknown figure.
    DataError
        No data set has rows for this figure, a table lacks a column, or a data set has no card.
    """
    from conceptome.figures import style

    if figure not in TABLES:
        raise ConfigError(f"unknown figure '{figure}': one of {', '.join(TABLES)}")
    for name in TABLES[figure]:
        frame = tables.get(name)
        for dataset in [] if frame is None or "dataset" not in frame else frame["dataset"].unique():
            if dataset not in cards:
                raise DataError(f"figure '{figure}': data set '{dataset}' of table '{name}' has no card")
    folder = Path(folder)
    module = import_module(f"conceptome.figures.{figure}")
    with style.look():
        drawing = module.draw(tables, cards)
        style.save(drawing.figure, folder, figure, run.dpi, recipe)
    with atomic_path(folder / f"{figure}.csv") as path:
        drawing.table().to_csv(path, index=False, lineterminator="\n")
    with atomic_path(folder / "caption.md") as path:
        paragraphs = [f"**{drawing.title}**", *drawing.sentences]
        path.write_text("\n\n".join(paragraphs) + "\n", encoding="utf-8")
