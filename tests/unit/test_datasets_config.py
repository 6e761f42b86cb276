import pytest

from conceptome.config.base import rebuild
from conceptome.config.datasets import Dataset
from conceptome.datasets import READERS, outputs

BASE = {"title": "t", "inputs": {}}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"reader": "h5ad", "inputs": {"file": {"path": "x"}}}, "this reader's inputs are {h5ad} .given: file"),
        ({"reader": "profiles"}, "this reader needs at least one input"),
        ({"reader": "proteins", "inputs": {"sequences": {"path": "x"}}}, "inputs are {sequences, annotations} or"),
        ({"reader": "simulated_small", "inputs": {"x": {"path": "x"}}}, "this reader's inputs are {}"),
        ({"reader": "simulated_small", "labels": {"split": {}}}, "label 'split' has a reserved name"),
    ],
)
def test_inputs_and_labels_are_checked_early(keys, message):
    with pytest.raises(ValueError, match=message):
        rebuild(Dataset, BASE | keys)


def test_every_reader_says_what_it_writes():
    for reader in READERS:
        assert {"card.json", "obs.parquet"} < set(outputs(reader))
