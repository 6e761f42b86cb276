"""Embedding in parts: the bytes of one job, whatever their number; a bad part or shard is named and re-made alone."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_checkpoints import CASES, proteins, write_esm2

from conceptome.activations import Store, StoreWriter
from conceptome.config.base import rebuild
from conceptome.config.models import Model
from conceptome.errors import ConfigError, DataError
from conceptome.models import MODELS, SCATTERED, bounds, embed, gather
from conceptome.workflow import Plan

pytest.importorskip("torch")

# Windows of several batches, shards that end within them, and one more layer of the same pass.
OPTIONS = {"adapter": "esm2", "layer": 2, "also_layers": [1], "rows_per_shard": 7, "tokens_per_batch": 2}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("esm2")
    return rebuild(Model, OPTIONS | write_esm2(folder) | {"path": str(folder), **OPTIONS})


def in_parts(config, dataset, folder: Path, number: int, **options) -> list[Path]:
    made = [folder / f"{i}-of-{number}" for i in range(1, number + 1)]
    for i, path in enumerate(made, 1):
        embed(config, dataset, path, threads=1, part=(i, number), **options)
    return made


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "options", [{}, {"dtype": "bfloat16", "tokens_per_batch": 64}, {"pool": "mean", "rows_per_shard": 2}]
)
def test_bytes_do_not_depend_on_the_number_of_parts(checkpoint, tmp_path, options):
    config = rebuild(Model, checkpoint.model_dump(mode="json") | options)
    dataset = proteins(None)
    whole = content(embed(config, dataset, tmp_path / "whole", threads=1).folder)
    rows = Store(tmp_path / "whole").shape[0]
    for number in (1, 3, min(7, rows)):
        parts = in_parts(config, dataset, tmp_path / f"parts{number}", number)
        assert [len(Store(path).obs) for path in parts] == [
            stop - start for start, stop in (bounds(rows, i, number) for i in range(1, number + 1))
        ]
        assert content(gather(config, parts, tmp_path / f"gathered{number}", dataset.obs).folder) == whole


def test_a_bad_part_is_named_and_re_made_alone(checkpoint, tmp_path):
    dataset = proteins(None)
    whole = content(embed(checkpoint, dataset, tmp_path / "whole", threads=1).folder)
    parts = in_parts(checkpoint, dataset, tmp_path / "parts", 3)
    before = [content(path) for path in parts]
    shard = parts[1] / "shard-00000.npy"
    damaged = bytearray(shard.read_bytes())
    damaged[-1] ^= 1
    shard.write_bytes(damaged)
    with pytest.raises(DataError, match=rf"{shard} is not the file that was written .*: delete {parts[1]} and run"):
        gather(checkpoint, parts, tmp_path / "gathered", dataset.obs)
    assert not (tmp_path / "gathered" / "card.json").exists()
    shutil.rmtree(parts[1])
    with pytest.raises(DataError, match=f"{parts[1]} holds no finished activation store"):
        gather(checkpoint, parts, tmp_path / "gathered", dataset.obs)
    embed(checkpoint, dataset, parts[1], threads=1, part=(2, 3))
    assert [content(path) for path in parts] == before
    assert content(gather(checkpoint, parts, tmp_path / "gathered", dataset.obs).folder) == whole


def test_a_bad_shard_of_an_interrupted_part_is_re_made_alone(checkpoint, tmp_path, monkeypatch, caplog):
    dataset = proteins(None)
    rows = len(dataset.obs)
    first, last = bounds(rows, 2, 2)
    whole = content(embed(checkpoint, dataset, tmp_path / "whole", threads=1, part=(2, 2)).folder)
    finish = StoreWriter.finish

    def stopped(self, decoder=None):
        raise KeyboardInterrupt

    monkeypatch.setattr(StoreWriter, "finish", stopped)
    with pytest.raises(KeyboardInterrupt):
        embed(checkpoint, dataset, tmp_path / "store", threads=1, part=(2, 2), unfinished=tmp_path / "unfinished")
    bad = tmp_path / "unfinished" / "layers" / "1" / "shard-00001.npy"
    bad.write_bytes(b"x")
    monkeypatch.setattr(StoreWriter, "finish", finish)
    written = []
    begin = StoreWriter._begin_shard
    monkeypatch.setattr(StoreWriter, "_begin_shard", lambda self: (written.append(self._row), begin(self))[1])
    with caplog.at_level(logging.WARNING):
        store = embed(
            checkpoint, dataset, tmp_path / "store", threads=1, part=(2, 2), unfinished=tmp_path / "unfinished"
        )
    assert f"{bad} is not the file that was written" in caplog.text
    # One pass gives both layers: the shard is written for each, and no other one.
    assert written == [7, 7]
    assert last - first > 14
    assert content(store.folder) == whole


def test_parts_that_do_not_belong_together(checkpoint, tmp_path):
    dataset = proteins(None)
    parts = in_parts(checkpoint, dataset, tmp_path / "parts", 3)
    with pytest.raises(DataError, match="does not go on where the part before it ends"):
        gather(checkpoint, [parts[0], parts[2]], tmp_path / "gathered", dataset.obs)
    with pytest.raises(DataError, match="the 2 parts hold"):
        gather(checkpoint, parts[:2], tmp_path / "gathered", dataset.obs)
    with pytest.raises(DataError, match="is no part of an embedding"):
        gather(checkpoint, [embed(checkpoint, dataset, tmp_path / "w", threads=1).folder], tmp_path / "g", dataset.obs)


def test_more_parts_than_samples():
    with pytest.raises(ConfigError, match="4 samples cannot be cut into 5 parts: lower `scatter`"):
        bounds(4, 1, 5)
    with pytest.raises(ConfigError, match="no part 4 of 3"):
        bounds(9, 4, 3)


def test_every_sample_is_in_one_part():
    for n in (7, 10, 64):
        for number in range(1, 8):
            spans = [bounds(n, i, number) for i in range(1, number + 1)]
            np.testing.assert_array_equal(np.concatenate([np.arange(*span) for span in spans]), np.arange(n))


def test_adapters_of_ready_weights_are_scattered():
    assert set(SCATTERED) <= set(MODELS)
    named = {case.name for case in CASES}
    # Cases of several transformers share one adapter.
    assert set(SCATTERED) - {"transformers_vision"} <= named


def test_models_that_are_fitted_here_have_no_parts(tmp_path, monkeypatch):
    from conceptome.models.base import Embedding

    class Data:
        obs = proteins(None).obs

    monkeypatch.setattr("conceptome.models.pca.embed", lambda *_, **__: Embedding([], {}))
    with pytest.raises(ConfigError, match="'pca' is fitted here and has no parts"):
        embed(rebuild(Model, {"adapter": "pca"}), Data(), tmp_path / "x", part=(1, 2))
    assert "pca" not in SCATTERED
    assert hasattr(Plan, "scattered")
