"""The sections of the geometry measures: what a study may ask for, and what is refused before anything runs."""

from pathlib import Path

import pytest

from conceptome.config.run import resolve
from conceptome.errors import ConfigError

CONFIG = Path(__file__).resolve().parents[2] / "config"


def kang2018(**measures):
    values = {"studies": ["kang2018"], "override": {"kang2018": {"measures": measures}}}
    return resolve(values, CONFIG).studies["kang2018"].measures


def test_geometry_is_off_unless_asked_for_and_takes_its_defaults():
    off = kang2018()
    assert off.crystals is None
    assert off.spread is None
    on = kang2018(crystals={"pairs": [["condition", "cell_type_transferred"]]}, spread={}, lobes={"clusters": [3]})
    assert on.crystals.pairs == [["condition", "cell_type_transferred"]]
    assert on.spread.max_rows == 2_000
    assert on.lobes.clusters == [3]


@pytest.mark.parametrize(
    ("measures", "said"),
    [
        ({"crystals": {"pairs": [["condition", "cel_type"]]}}, "crystals.pairs names label 'cel_type'"),
        ({"crystals": {"pairs": [["condition"]]}}, "crystals.pairs"),
        ({"multidimensional": {"labels": ["dose"]}}, "multidimensional.labels names label 'dose'"),
        ({"lobes": {"dictionaries": ["topkk"]}}, "lobes.dictionaries names 'topkk'"),
        ({"spread": {"fold": 3}}, "did you mean 'folds'"),
    ],
)
def test_a_mistake_is_said_in_one_line(measures, said):
    with pytest.raises(ConfigError, match=said) as raised:
        kang2018(**measures)
    assert "\n" not in str(raised.value)
