"""The examples in docs/your-own-data.md are what they claim to be: complete studies that can be read."""

import re
from pathlib import Path

import pytest
import yaml

from conceptome.config.base import validate
from conceptome.config.run import Study
from conceptome.datasets import load, prepare

DOCUMENT = Path(__file__).parents[2] / "docs" / "your-own-data.md"
BLOCKS = {
    title: text for title, text in re.findall(r'```\w+ title="([^"]+)"\n(.*?)```', DOCUMENT.read_text(), re.DOTALL)
}


@pytest.fixture
def studies(tmp_path, monkeypatch):
    """Write every file that the document shows, run its script, and prepare its studies."""
    monkeypatch.chdir(tmp_path)
    for title, text in BLOCKS.items():
        path = tmp_path / title
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    exec(compile(BLOCKS["make_cells.py"], "make_cells.py", "exec"), {})
    found = {}
    for title, text in BLOCKS.items():
        if title.startswith("config/studies/"):
            study = validate(Study, yaml.safe_load(text), title)
            inputs = {name: Path(item.path) for name, item in study.dataset.inputs.items()}
            folder = tmp_path / "results" / Path(title).stem
            prepare(study.dataset, inputs, folder)
            found[Path(title).stem] = load(folder)
    return found


def test_examples_are_read(studies):
    assert sorted(studies) == ["my_cells", "my_proteins", "my_screen"]

    cells = studies["my_cells"]
    assert cells.anndata().shape == (40, 30)
    assert cells.anndata().var_names[0] == "GENE0"
    assert cells.anndata().var["highly_variable"].sum() == 20
    assert cells.obs["control"].sum() == 20
    assert cells.card["interval_level"] == "donor-level"

    screen = studies["my_screen"]
    assert screen.obs.index[0] == "P1:A1"
    assert screen.anndata().shape == (9, 3)
    assert screen.obs["dose_uM"].dropna().unique().tolist() == [0.625]
    assert screen.obs.groupby("group")["split"].nunique().max() == 1

    proteins = studies["my_proteins"]
    assert list(proteins.sequences()) == ["P00001", "two", "three", "four"]
    assert len(proteins) == 88
    table = proteins.annotations()
    assert table[table["type"] == "DOMAIN"]["note"].unique().tolist() == ["Kinase"]
    assert table[table["type"] == "DISULFID"][["start", "end"]].to_numpy().tolist() == [[15, 15], [18, 18]]
    assert table[table["type"] == "ACT_SITE"]["end"].tolist() == [5]
