"""The two sides of the embedding benchmark give the same numbers, or its ratio means nothing."""

import embedding
import numpy as np
import pytest

pytest.importorskip("transformers", reason="the plain loop is one of transformers; it is in requirements.lock")


def test_both_sides_give_the_same_rows(tmp_path):
    folder = embedding.checkpoint(tmp_path / "esm2", 2, 64)
    proteins = embedding.ragged(5)
    ours = np.concatenate(list(embedding.ours(folder, proteins, 1024, 2, 1)()))
    plain = np.concatenate(list(embedding.plain(folder, proteins, 2)()))
    np.testing.assert_allclose(ours, plain, atol=1e-5)


def test_both_sides_give_the_same_crops(tmp_path):
    pytest.importorskip("onnxruntime")
    path = embedding.backbone(tmp_path / "backbone.onnx", 2, 16, 28)
    data = embedding.crops(3)
    ours = list(embedding.our_images(path, data, 28, 1)())
    plain = list(embedding.plain_images(path, data.crops(), 28, 1)())
    assert [len(block) for block in ours] == [1, 1, 1]
    np.testing.assert_allclose(np.concatenate(ours), np.concatenate(plain), atol=1e-4, rtol=1e-4)
    found = embedding.paired(lambda: iter(ours), lambda: iter(plain), 2)
    assert found["ratio_low"] <= found["ratio"] <= found["ratio_high"]


def test_the_page_names_ratio_and_padding():
    row = {"rows_per_second": 2000, "plain_rows_per_second": 1000, "ratio": 2.0, "ratio_low": 1.9, "ratio_high": 2.1}
    found = {
        "one_by_one": row,
        "images": row,
        "in_batches": row,
        "padding": 0.055,
        "mebibytes_more_for_four_times_the_proteins": 3,
    }
    text = "\n".join(embedding.lines(found))
    assert "2.00× [1.90, 2.10]" in text
    assert "Padding 5.5 %" in text
