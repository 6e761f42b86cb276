import re
from importlib import import_module
from pathlib import Path

import figure_tables
import pytest
import test_figures

from conceptome.config.evidence import FIGURES, Measures
from conceptome.figures import FITS
from conceptome.figures import TABLES as FIGURE_TABLES
from conceptome.measures.registry import MEASURES
from conceptome.measures.tables import TABLES as CORE

DOCS = Path(__file__).resolve().parents[2] / "docs" / "figures.md"
PLACE = ["dataset", "model", "whitening"]


@pytest.mark.parametrize("name", MEASURES)
def test_a_further_measure_has_one_name_everywhere(name):
    module = import_module(f"conceptome.measures.{name}")
    assert set(module.TABLES) == set(MEASURES[name])
    assert Measures.model_fields[name].default is None
    assert name in FIGURES
    assert FIGURE_TABLES[name][0] == MEASURES[name][0]
    for columns in module.TABLES.values():
        assert list(columns)[:3] == PLACE


@pytest.mark.parametrize(("number", "name"), enumerate(FIGURES, 1))
def test_a_figure_has_all_its_pieces(number, name):
    heading = f"F{number} `{name}`: "
    pieces = {
        f"a module scripts/conceptome/figures/{name}.py with a function draw": callable(
            getattr(import_module(f"conceptome.figures.{name}"), "draw", None)
        ),
        "tables in _READS of scripts/conceptome/figures/__init__.py": FIGURE_TABLES.get(name),
        f"a heading '{heading}…' in docs/figures.md": re.search(rf"^##+ {re.escape(heading)}", DOCS.read_text(), re.M),
        f"a function {name} in tests/unit/figure_tables.py": set(figure_tables.tables(name))
        >= set(FIGURE_TABLES[name]),
        "columns in SHOWN of tests/unit/test_figures.py": test_figures.SHOWN.get(name),
    }
    missing = [piece for piece, there in pieces.items() if not there]
    assert not missing, f"figure '{name}' (F{number}) lacks {'; '.join(missing)}"


def test_the_page_of_figures_explains_no_others_and_counts_them():
    found = re.findall(r"^##+ F(\d+) `(\w+)`:", DOCS.read_text(), re.M)
    assert found == [(str(number), name) for number, name in enumerate(FIGURES, 1)]
    assert f"all {len(FIGURES)}," in DOCS.read_text()


def test_what_figures_rest_on_is_one_of_three():
    assert set(FITS) == set(FIGURES)
    assert set(FITS.values()) == {"own", "all", "none"}


def test_no_table_has_two_measures():
    names = [*CORE, *(table for tables in MEASURES.values() for table in tables)]
    assert len(names) == len(set(names))
