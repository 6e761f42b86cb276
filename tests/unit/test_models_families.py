"""What is particular to a family of models: pools, vocabularies, ranks and bins, dictionaries that would run code."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import tiny_checkpoints as tiny
from test_models_esm2 import Evil

from conceptome.config.base import rebuild
from conceptome.config.models import Model
from conceptome.errors import ConfigError, DataError, SourceError
from conceptome.models import embed
from conceptome.models.checkpoint import read_dictionary
from conceptome.models.geneformer import Ranked, read_dictionaries
from conceptome.models.protein_t5 import read_letters
from conceptome.models.scgpt import Binned, binned
from conceptome.models.sequences import padding

pytest.importorskip("torch")


def run(folder: Path, options: dict, data, to: Path, **more):
    return embed(rebuild(Model, options | {"path": str(folder)} | more), data, to, threads=1)


def test_the_mean_of_a_protein_is_that_of_its_residues(tmp_path):
    options = tiny.write_unirep(tmp_path / "unirep")
    residues = run(tmp_path / "unirep", options, tiny.proteins(), tmp_path / "a")
    pooled = run(tmp_path / "unirep", options, tiny.proteins(), tmp_path / "b", pool="mean")
    assert list(pooled.obs.index) == list(tiny.SEQUENCES)
    assert "position" not in pooled.obs
    assert {"control", "group", "split", "protein"} <= set(pooled.obs)
    for row, name in enumerate(tiny.SEQUENCES):
        own = residues.read((residues.obs["protein"] == name).to_numpy())
        np.testing.assert_allclose(pooled.read([row])[0], own.mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("write", [tiny.write_geneformer, tiny.write_scgpt], ids=["geneformer", "scgpt"])
def test_genes_of_a_cell_are_rows_of_their_own(tmp_path, write):
    options = write(tmp_path / "model")
    tokens = run(tmp_path / "model", options, tiny.cells(), tmp_path / "a", pool="tokens")
    mean = run(tmp_path / "model", options, tiny.cells(), tmp_path / "b", pool="mean")
    assert set(tokens.obs["gene"]) <= set(tiny.GENES)
    assert tokens.obs.index[0] == "cell0:1"
    assert tokens.obs.index.is_unique
    for row, cell in enumerate(mean.obs.index):
        own = tokens.obs["group"] == cell
        expressed = int((tiny.cells().counts[row][: len(tiny.ACCESSIONS)] > 0).sum())
        assert own.sum() == min(expressed, 8 if options["adapter"] == "geneformer" else 99)
        np.testing.assert_allclose(mean.read([row])[0], tokens.read(own.to_numpy()).mean(axis=0), atol=1e-5)


def test_a_dictionary_with_code_is_not_executed(tmp_path):
    options = tiny.write_geneformer(tmp_path / "model")
    path = tmp_path / "model" / "gene_median_dictionary_gc104M.pkl"
    mark = tmp_path / "was_executed"
    path.write_bytes(pickle.dumps({"ENSG1": Evil(mark)}))
    with pytest.raises(SourceError, match="is no plain value"):
        run(tmp_path / "model", options, tiny.cells(), tmp_path / "a")
    assert not mark.exists()
    path.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(SourceError, match="holds no dictionary"):
        read_dictionary(path)


def test_two_versions_of_a_dictionary_are_ambiguous(tmp_path):
    options = tiny.write_geneformer(tmp_path / "model")
    (tmp_path / "model" / "token_dictionary_gc30M.pkl").write_bytes(pickle.dumps({"<pad>": 0}))
    with pytest.raises(SourceError, match=r"token_dictionary\* is there 2 times"):
        run(tmp_path / "model", options, tiny.cells(), tmp_path / "a")


def test_genes_are_found_by_symbol_or_accession_and_copies_are_summed(tmp_path):
    tiny.write_geneformer(tmp_path / "model")
    dictionaries, _ = read_dictionaries(tmp_path / "model")
    data = tiny.cells()
    by_symbol = Ranked(data, dictionaries, 100)
    names = [tiny.ACCESSIONS.get(name, name) + (".7" if name in tiny.ACCESSIONS else "") for name in tiny.GENES]
    adata = data.anndata()
    adata.var_names = names
    data.anndata = lambda: adata
    by_accession = Ranked(data, dictionaries, 100)
    for cell in range(tiny.CELLS):
        np.testing.assert_array_equal(by_symbol.ranked(cell), by_accession.ranked(cell))
    # Two rows of one accession: their counts add up.
    names[-1] = names[0]
    adata.var_names = names
    summed = Ranked(data, dictionaries, 100)
    assert summed.n_known == by_symbol.n_known + 1
    adata.var_names = [f"x{i}" for i in range(len(names))]
    with pytest.raises(DataError, match="none of the data set's 11 genes"):
        Ranked(data, dictionaries, 100)


def test_without_special_tokens_there_is_no_class_token(tmp_path):
    options = tiny.write_geneformer(tmp_path / "model")
    path = tmp_path / "model" / "token_dictionary_gc104M.pkl"
    tokens = {name: token for name, token in pickle.loads(path.read_bytes()).items() if name not in ("<cls>", "<eos>")}
    path.write_bytes(pickle.dumps(tokens))
    store = run(tmp_path / "model", options, tiny.cells(), tmp_path / "a", pool="tokens")
    assert store.obs.groupby("group").size().max() == len(tiny.ACCESSIONS)
    with pytest.raises(ConfigError, match="this version has no class token"):
        run(tmp_path / "model", options, tiny.cells(), tmp_path / "b", pool="cls")


def test_values_fall_into_bins_of_their_own_quantiles():
    rng = np.random.default_rng(0)
    values = np.random.default_rng(1).permutation(np.arange(1.0, 1001.0))
    bins = binned(values, 51, rng)
    assert bins.min() == 1
    assert bins.max() == 50
    assert (np.diff(bins[np.argsort(values)]) >= 0).all()
    assert np.abs(np.bincount(bins.astype(int))[1:50] - 1000 / 49).max() <= 1.5
    # A value that most genes share spans bins, and is spread over them rather than put into one.
    tied = binned(np.array([1.0] * 900 + [2.0] * 100), 51, rng)
    assert len(np.unique(tied[:900])) > 20
    assert tied[:900].max() <= tied[900:].max()


def test_a_cell_that_is_too_long_is_sampled_alike_in_every_data_set():
    config = rebuild(Model, {"adapter": "scgpt", "path": "x", "max_length": 5})
    forward = Binned(config, tiny.cells(), tiny.VOCABULARY, -2.0)
    backward = Binned(config, tiny.cells(list(reversed(range(tiny.CELLS)))), tiny.VOCABULARY, -2.0)
    assert forward.sampled > 0
    for cell in range(tiny.CELLS):
        for a, b in zip(forward.encode(cell), backward.encode(tiny.CELLS - 1 - cell), strict=True):
            np.testing.assert_array_equal(a, b)
        assert len(forward.encode(cell)[0]) <= 5
    other = Binned(config.model_copy(update={"seed": 1}), tiny.cells(), tiny.VOCABULARY, -2.0)
    assert any(not np.array_equal(forward.encode(i)[0], other.encode(i)[0]) for i in range(tiny.CELLS))


def test_a_cell_without_known_genes_is_named(tmp_path):
    options = tiny.write_scgpt(tmp_path / "model")
    data = tiny.cells()
    data.counts[3, : len(tiny.ACCESSIONS)] = 0
    with pytest.raises(DataError, match=r"1 cell\(s\) have no counts in genes that model 'scgpt' knows, first 'cell3'"):
        run(tmp_path / "model", options, data, tmp_path / "a")


def test_cells_without_counts_and_other_modalities_are_refused(tmp_path):
    options = tiny.write_scgpt(tmp_path / "model")
    data = tiny.cells()
    adata = data.anndata()
    del adata.layers["counts"]
    data.anndata = lambda: adata
    with pytest.raises(DataError, match="reads raw counts, and this data set has none"):
        run(tmp_path / "model", options, data, tmp_path / "a")
    with pytest.raises(DataError, match="reads single cells, but the data set is of proteins"):
        run(tmp_path / "model", options, tiny.proteins(), tmp_path / "a")


def test_vocabularies_of_ankh_and_prott5(tmp_path):
    (tmp_path / "spiece.model").write_bytes(tiny.sentencepiece(tiny.PIECES))
    prott5 = read_letters(tmp_path)
    assert prott5.tokens["A"] == tiny.PIECES.index("▁A")
    assert prott5.tokens["U"] == prott5.tokens["X"]
    assert prott5.after == [1]
    # tokenizer.json goes before, and its pieces have no mark of a word.
    pieces = [["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0], *([letter, -1.0] for letter in "ALGVSREDTIPKFQNYMHWCX")]
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"type": "Unigram", "vocab": pieces}}))
    assert read_letters(tmp_path).tokens["L"] == 4
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": pieces[:-2]}}))
    with pytest.raises(SourceError, match="has no piece for amino acid"):
        read_letters(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "spiece.model").write_bytes(b"\x0a\xff\xff\xff")
    with pytest.raises(SourceError, match=r"spiece\.model|has no piece"):
        read_letters(tmp_path)


def test_like_lengths_share_batches():
    """Lengths as proteins have them: at most a tenth is padding, where batches in file order are a third and more."""
    lengths = np.clip(np.random.default_rng(0).lognormal(np.log(300), 0.6, 400), 30, 1000).astype(int).tolist()
    assert padding(lengths, 4096) <= 0.10
    plain = 1 - sum(lengths) / sum(len(part) * max(part) for part in (lengths[i : i + 8] for i in range(0, 400, 8)))
    assert plain > 0.3


def test_what_says_nothing_is_not_written_down():
    """An ESM-2 of before these keys has the same options as ever, so that nothing runs again for them."""
    written = rebuild(Model, {"adapter": "esm2", "path": "x"}).model_dump(mode="json")
    assert list(written) == [
        *("dtype", "rows_per_shard", "seed", "adapter", "source", "path", "hub", "revision", "layer"),
        *("shuffle_weights", "tokens_per_batch", "stand_in"),
    ]
    more = rebuild(Model, {"adapter": "esm2", "path": "x", "also_layers": [1], "site": "residual", "pool": "mean"})
    written = more.model_dump(mode="json")
    assert (written["also_layers"], written["site"], written["pool"]) == ([1], "residual", "mean")


def test_a_hub_needs_a_revision_and_remote_code_has_no_key():
    with pytest.raises(ValueError, match="needs 'revision'"):
        rebuild(Model, {"adapter": "esmc", "hub": "biohub/ESMC-300M"})
    with pytest.raises(ValueError, match="Extra inputs"):
        rebuild(Model, {"adapter": "timm", "path": "x", "trust_remote_code": True})
