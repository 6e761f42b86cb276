"""A paper's numbers beside this run's: what is read, how seeds are taken together, and what is refused."""

import numpy as np
import pandas as pd
import pytest

from conceptome.config.papers import Correction, Item, Number, Paper, Quantity
from conceptome.errors import DataError
from conceptome.papers import COLUMNS, Tables, corrections, evaluate, page, status, write

ROWS = pd.DataFrame(
    {
        "dictionary": ["icfl"] * 6 + ["topk"] * 2,
        "seed": [0, 0, 1, 1, 2, 2, 0, 1],
        "avg": [0.9, 0.1, 0.6, 0.7, 0.2, 0.8, 0.3, 0.3],
        "low": [0.8, 0.0, 0.4, 0.6, 0.1, 0.3, 0.2, 0.2],
        "high": [1.0, 0.6, 0.7, 0.8, 0.3, 0.9, 0.4, 0.4],
        "null": [0.1, 0.2, 0.1, 0.2, 0.1, 0.2, 0.6, 0.6],
        "n": [50, 50, 40, 40, 30, 30, 20, 20],
    }
)
ICFL = {"dictionary": "icfl"}


def quantity(**keys):
    return Quantity(**{"table": "selectivity", "where": ICFL, "column": "avg", **keys})


@pytest.fixture
def tables(tmp_path):
    ROWS.to_parquet(tmp_path / "selectivity.parquet")
    return Tables([["paper", "selectivity"]], [tmp_path / "selectivity.parquet"])


def test_rows_become_one_number_per_seed_and_seeds_a_median(tables):
    found = evaluate(quantity(rows="max"), "paper", tables)
    assert found == {"value": 0.8, "low": 0.3, "high": 1.0, "null": 0.2, "n": 30.0, "n_seeds": 3.0}


def test_a_count_has_the_counts_of_its_bounds_as_interval(tables):
    found = evaluate(quantity(rows="count", above=0.5), "paper", tables)
    assert (found["value"], found["low"], found["high"], found["null"]) == (1.0, 0.0, 2.0, 0.0)
    share = evaluate(quantity(rows="count", above=0.5, share=True, scale=100), "paper", tables)
    assert (share["value"], share["low"], share["high"]) == (50.0, 0.0, 100.0)


def test_another_quantity_can_be_the_null(tables):
    found = evaluate(quantity(against=quantity(where={"dictionary": "topk"})), "paper", tables)
    assert found["null"] == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"where": {"dictionary": "ksvd"}}, "no row with dictionary = ksvd"),
        ({"column": "maximum"}, "no column 'maximum'"),
        ({"where": {"label": "x"}}, "no column 'label'"),
        ({"low": "lowest"}, "no column 'lowest'"),
        ({"against": "chance"}, "no column 'chance'"),
    ],
)
def test_what_is_not_there_is_refused(tables, keys, message):
    with pytest.raises(DataError, match=message):
        evaluate(quantity(**keys), "paper", tables)


def test_an_impossible_item_has_no_numbers_and_a_possible_one_has_something():
    shared = {"item": "Figure", "shows": "x", "because": "y"}
    with pytest.raises(ValueError, match="neither numbers nor a figure"):
        Item(**shared, status="impossible", figure="labels")
    with pytest.raises(ValueError, match="or say impossible"):
        Item(**shared, status="proxy")
    with pytest.raises(ValueError, match="go together"):
        quantity(above=0.5)


def test_no_number_goes_without_its_null():
    alone = quantity(against=None)
    with pytest.raises(ValueError, match="every number has its null"):
        Number(quantity="atoms", ours=alone)
    with pytest.raises(ValueError, match="every number has its null"):
        Correction(flaw="max", correction="median", original=alone)
    # A null is a quantity too, and has none of its own.
    assert Number(quantity="atoms", ours=quantity(against=alone)).ours.against == alone


def paper():
    number = {"quantity": "atoms above .5", "paper": 73, "digits": 0}
    return Paper(
        title="Atoms",
        authors="A. Author",
        reference="Journal 1",
        about="About.",
        original="Run it.",
        items=[
            {
                "item": "Table",
                "shows": "atoms",
                "status": "proxy",
                "because": "other data | other model",
                "numbers": [{**number, "ours": {**quantity(rows="count", above=0.5).model_dump()}}],
            },
            {"item": "Figure", "shows": "cells", "status": "impossible", "because": "not public"},
        ],
        corrections=[
            {
                "flaw": "max",
                "correction": "median",
                "original": quantity(rows="max"),
                "corrected": quantity(rows="median"),
            }
        ],
    )


def test_the_page_tells_every_item_with_both_numbers(tables, tmp_path):
    items = status("paper", paper(), tables)
    assert list(items) == list(COLUMNS)
    assert items["status"].tolist() == ["proxy", "impossible"]
    assert np.isnan(items["value"][1])
    text = page("paper", paper(), items, corrections("paper", paper(), tables))
    assert "Figures and tables: 1 proxy, 1 impossible." in text
    assert "| Table | atoms above .5 | 73 | 1 [0, 2] | 0 | 30 | 3 |" in text
    assert "other data ∣ other model" in text
    assert "| max | median | 0.80 [0.30, 1.00] | 0.20 | 0.50 [0.20, 0.80] | 0.15 | 30 | 3 |" in text
    write({"paper": paper()}, tables, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "corrections.parquet",
        "numbers.parquet",
        "paper.md",
        "papers.md",
    ]
    row = (
        "| [paper](paper.md) | Table | proxy | atoms above .5 | 73 | 1 [0, 2] | 0 | 30 | 3 | other data ∣ other model |"
    )
    assert row in (tmp_path / "out" / "papers.md").read_text()
