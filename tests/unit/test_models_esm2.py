"""ESM-2: checkpoints as they lie on disk, layers, batches, the shuffled null, and every refusal."""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conceptome.config.base import rebuild
from conceptome.config.models import Model
from conceptome.errors import ConfigError, DataError, SourceError
from conceptome.files import sha256_file
from conceptome.models import embed
from conceptome.models.esm2_checkpoint import load_encoder, read_vocabulary, shuffle
from conceptome.models.sequences import WINDOW, micro_batches

torch = pytest.importorskip("torch")

TOKENS = [*["<cls>", "<pad>", "<eos>", "<unk>"], *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>"]
LAYERS = 3
CONFIG = {
    "architectures": ["EsmForSequenceClassification"],
    "attention_probs_dropout_prob": 0.0,
    "emb_layer_norm_before": False,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "hidden_size": 32,
    "initializer_range": 0.5,
    "intermediate_size": 48,
    "is_folding_model": False,
    "layer_norm_eps": 1e-05,
    "mask_token_id": 32,
    "max_position_embeddings": 1026,
    "model_type": "esm",
    "num_attention_heads": 2,
    "num_hidden_layers": LAYERS,
    "pad_token_id": 1,
    "position_embedding_type": "rotary",
    "token_dropout": True,
    "torch_dtype": "float32",
    "transformers_version": "4.29.2",
    "vocab_size": 33,
}
SEQUENCES = {"P1": "MKTAYIAKQR", "P2": "MV", "P3": "MSDERLGWCHHNPQIFYTVKAAAAAAGG", "P4": "MLLLSERXB"}


def make_state() -> dict[str, Any]:
    """Random weights under the names a fine-tuned sequence classifier of transformers 4 has on disk."""
    from transformers import EsmConfig, EsmForSequenceClassification

    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = EsmForSequenceClassification(EsmConfig(**{k: v for k, v in CONFIG.items() if k != "torch_dtype"}))
        for parameter in model.parameters():  # biases and norms start at 0 and 1, which would hide mistakes
            torch.nn.init.normal_(parameter, std=0.3)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    frequencies = state.pop("esm.rotary_embeddings.inv_freq")
    for block in range(LAYERS):
        state[f"esm.encoder.layer.{block}.attention.self.rotary_embeddings.inv_freq"] = frequencies.clone()
    state["esm.embeddings.position_ids"] = torch.arange(1026)[None]
    state["esm.embeddings.position_embeddings.weight"] = torch.zeros(1026, 32)
    assert "esm.contact_head.regression.weight" in state
    assert "classifier.dense.weight" in state
    return state


@pytest.fixture(scope="session")
def state() -> dict[str, Any]:
    return make_state()


def write_checkpoint(
    folder: Path, state: dict[str, Any], kind: str = "bin", config: dict[str, Any] | None = None
) -> Path:
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or CONFIG))
    (folder / "vocab.txt").write_text("\n".join(TOKENS))
    if kind == "bin":
        torch.save(state, folder / "pytorch_model.bin")
    elif kind == "safetensors":
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    elif kind == "parts":
        names = sorted(state)
        parts = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
        for part, members in parts.items():
            torch.save({name: state[name] for name in members}, folder / part)
        where = {name: part for part, members in parts.items() for name in members}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


@pytest.fixture
def checkpoint(tmp_path, state) -> Path:
    return write_checkpoint(tmp_path / "tiny", state)


@dataclass
class FakeProteins:
    chains: dict[str, str]
    obs: pd.DataFrame
    card: dict[str, Any]

    def sequences(self) -> dict[str, str]:
        return self.chains


def proteins(chains: dict[str, str] | None = None) -> FakeProteins:
    chains = SEQUENCES if chains is None else chains
    rows = [(f"{p}:{i}", p, i, residue) for p, chain in chains.items() for i, residue in enumerate(chain, 1)]
    obs = pd.DataFrame(rows, columns=["sample_id", "protein", "position", "residue"]).set_index("sample_id")
    obs["control"], obs["group"], obs["split"] = True, obs["protein"], "train"
    return FakeProteins(chains, obs, {"modality": "proteins"})


def model(path: Path | str = "x", **options):
    return rebuild(Model, {"adapter": "esm2", "path": str(path), **options})


def reference(folder: Path, chain: str, layer: int) -> np.ndarray:
    """Hidden states of one protein alone, as transformers itself returns them."""
    from transformers import EsmModel

    whole = EsmModel.from_pretrained(folder, add_pooling_layer=False).eval()
    ids = torch.tensor([[TOKENS.index("<cls>"), *map(TOKENS.index, chain), TOKENS.index("<eos>")]])
    with torch.inference_mode():
        states = whole(ids, attention_mask=torch.ones_like(ids), output_hidden_states=True).hidden_states
    return states[layer][0, 1:-1].numpy()


@pytest.mark.parametrize("layer", range(LAYERS + 1))
def test_every_layer_agrees_with_transformers(tmp_path, checkpoint, layer):
    store = embed(model(checkpoint, layer=layer), proteins(), tmp_path / "a", threads=1)
    expected = np.concatenate([reference(checkpoint, chain, layer) for chain in SEQUENCES.values()])
    assert store.shape == (sum(map(len, SEQUENCES.values())), 32)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(store.read(), expected, atol=1e-5)
    assert store.card["layer"] == layer
    assert store.card["n_layers"] == LAYERS


@pytest.mark.parametrize("tokens_per_batch", [1, 24, 4096])
def test_a_protein_alone_is_as_in_a_batch(tmp_path, checkpoint, tokens_per_batch):
    config = model(checkpoint, layer=2, tokens_per_batch=tokens_per_batch)
    together = embed(config, proteins(), tmp_path / "all", threads=1)
    for name, chain in SEQUENCES.items():
        alone = embed(config, proteins({name: chain}), tmp_path / name, threads=1).read()
        np.testing.assert_allclose(together.read((together.obs["protein"] == name).to_numpy()), alone, atol=1e-5)


@pytest.mark.parametrize("kind", ["safetensors", "parts"])
def test_forms_of_a_checkpoint_are_equal(tmp_path, checkpoint, state, kind):
    other = write_checkpoint(tmp_path / kind, state, kind)
    a = embed(model(checkpoint), proteins(), tmp_path / "a", threads=1)
    b = embed(model(other), proteins(), tmp_path / "b", threads=1)
    np.testing.assert_array_equal(a.read(), b.read())
    assert len(b.card["weights_sha256"]) == (2 if kind == "parts" else 1)


def test_a_bare_encoder_and_computed_frequencies(tmp_path, checkpoint, state):
    bare = {k.removeprefix("esm."): v for k, v in state.items() if k.startswith("esm.") and "inv_freq" not in k}
    other = write_checkpoint(tmp_path / "bare", bare, "safetensors")
    a = embed(model(checkpoint), proteins(), tmp_path / "a", threads=1)
    np.testing.assert_array_equal(a.read(), embed(model(other), proteins(), tmp_path / "b", threads=1).read())


def test_names_of_norms_as_transformers_5_writes_them(tmp_path, checkpoint, state):
    def old(name: str) -> str:
        return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    frequencies = state["esm.encoder.layer.0.attention.self.rotary_embeddings.inv_freq"]
    renamed = {old(name): tensor for name, tensor in state.items() if "inv_freq" not in name}
    renamed["esm.encoder.layer.*.attention.self.rotary_embeddings.inv_freq"] = frequencies
    assert set(renamed) != set(state)
    other = write_checkpoint(tmp_path / "old", renamed, "safetensors")
    a = embed(model(checkpoint), proteins(), tmp_path / "a", threads=1)
    np.testing.assert_array_equal(a.read(), embed(model(other), proteins(), tmp_path / "b", threads=1).read())


def test_two_runs_give_equal_bytes_and_no_path_in_the_card(tmp_path, checkpoint):
    config = model(checkpoint, tokens_per_batch=24, rows_per_shard=20, stand_in="a tiny random model")
    for name in ("a", "b"):
        embed(config, proteins(), tmp_path / name, threads=1)
    for path in (tmp_path / "a").iterdir():
        assert sha256_file(path) == sha256_file(tmp_path / "b" / path.name), path.name
    card = (tmp_path / "a" / "card.json").read_text()
    assert str(tmp_path) not in card
    assert json.loads(card)["stand_in"] == "a tiny random model"
    assert json.loads(card)["weights_sha256"] == {"pytorch_model.bin": sha256_file(checkpoint / "pytorch_model.bin")}


def test_only_the_layers_asked_for_are_kept(checkpoint):
    encoder, total = load_encoder(checkpoint, 1, read_vocabulary(checkpoint))
    assert (len(encoder.encoder.layer), total) == (1, LAYERS)
    assert not encoder.training


def test_shuffled_weights_keep_every_tensors_values(tmp_path, checkpoint):
    vocabulary = read_vocabulary(checkpoint)
    plain, shuffled = (load_encoder(checkpoint, 2, vocabulary)[0] for _ in range(2))
    shuffle(shuffled, 0)
    for (name, a), (_, b) in zip(plain.named_parameters(), shuffled.named_parameters(), strict=True):
        assert torch.equal(a.flatten().sort().values, b.flatten().sort().values), name
        assert not torch.equal(a, b), name
    null = embed(model(checkpoint, layer=2, shuffle_weights=True), proteins(), tmp_path / "a", threads=1)
    real = embed(model(checkpoint, layer=2), proteins(), tmp_path / "b", threads=1)
    assert np.abs(null.read() - real.read()).max() > 0.1
    again = embed(model(checkpoint, layer=2, shuffle_weights=True), proteins(), tmp_path / "c", threads=1)
    np.testing.assert_array_equal(null.read(), again.read())
    other = embed(model(checkpoint, layer=2, shuffle_weights=True, seed=1), proteins(), tmp_path / "d", threads=1)
    assert not np.allclose(null.read(), other.read())
    assert any("NULL MODEL" in note for note in null.card["notes"])


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=200), limit=st.integers(1, 100))
def test_micro_batches_hold_every_protein_once_within_the_limit(lengths, limit):
    windows = list(micro_batches(lengths, limit))
    order = [sorted(index for batch in batches for index in batch) for batches in windows]
    assert [index for window in order for index in window] == list(range(len(lengths)))
    for batches in windows:
        held = sum(lengths[index] for batch in batches for index in batch)
        assert held <= WINDOW * limit or sum(map(len, batches)) == 1
        for batch in batches:
            assert len(batch) * max(lengths[index] for index in batch) <= limit or len(batch) == 1


def test_a_letter_beyond_the_vocabulary(tmp_path, checkpoint):
    with pytest.raises(DataError, match=r"'P9' has 2 letter\(s\) .* first 'J' at position 3"):
        embed(model(checkpoint), proteins({"P1": "MKV", "P9": "MKJAJ"}), tmp_path / "a", threads=1)


@pytest.mark.parametrize("letter", ["-", ".", "*", "m", "é", "α"])
def test_marks_and_small_letters_are_no_residues(checkpoint, letter):
    with pytest.raises(DataError, match="vocabulary does not know"):
        read_vocabulary(checkpoint).encode("P", f"MK{letter}")


def test_an_empty_sequence(checkpoint):
    with pytest.raises(DataError, match="'P' has an empty sequence"):
        read_vocabulary(checkpoint).encode("P", "")


def test_unknown_layer(tmp_path, checkpoint):
    with pytest.raises(ConfigError, match="layer 4 does not exist; this checkpoint has layers 0 to 3"):
        embed(model(checkpoint, layer=4), proteins(), tmp_path / "a", threads=1)


def test_cells_have_no_sequences(tmp_path, checkpoint):
    data = proteins()
    data.card["modality"] = "cells"
    with pytest.raises(DataError, match="data set is of cells"):
        embed(model(checkpoint), data, tmp_path / "a", threads=1)


@pytest.mark.parametrize("damage", ["order", "missing"])
def test_obs_must_be_the_residues(tmp_path, checkpoint, damage):
    data = proteins()
    data.obs = data.obs.iloc[::-1] if damage == "order" else data.obs.iloc[:-1]
    with pytest.raises(DataError, match="are not the 49 residues"):
        embed(model(checkpoint), data, tmp_path / "a", threads=1)


def test_missing_weights(tmp_path, checkpoint):
    (checkpoint / "pytorch_model.bin").unlink()
    with pytest.raises(SourceError, match=r"holds no weights: model\.safetensors or pytorch_model\.bin"):
        embed(model(checkpoint), proteins(), tmp_path / "a", threads=1)


@pytest.mark.parametrize("name", ["config.json", "vocab.txt"])
def test_missing_files(tmp_path, checkpoint, name):
    (checkpoint / name).unlink()
    with pytest.raises(SourceError, match=f"{name} is missing; a checkpoint folder needs"):
        embed(model(checkpoint), proteins(), tmp_path / "a", threads=1)


def test_a_missing_part(tmp_path, state):
    folder = write_checkpoint(tmp_path / "parts", state, "parts")
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(SourceError, match="names pytorch_model-00002-of-00002"):
        embed(model(folder), proteins(), tmp_path / "a", threads=1)


def test_weights_of_a_source_that_was_not_retrieved(tmp_path):
    config = rebuild(Model, {"adapter": "esm2", "source": "esm2_tiny"})
    with pytest.raises(SourceError, match="source 'esm2_tiny' were not retrieved"):
        embed(config, proteins(), tmp_path / "a", threads=1)


def test_weights_have_exactly_one_origin_and_a_hub_a_revision():
    for options in ({}, {"source": "a", "path": "b"}, {"hub": "facebook/esm2_t6_8M_UR50D"}):
        with pytest.raises(ValueError, match=r"exactly one of|needs 'revision'"):
            rebuild(Model, {"adapter": "esm2", **options})


@pytest.mark.parametrize("block", [0, LAYERS - 1])
def test_a_missing_encoder_weight_is_never_initialised_at_random(tmp_path, state, block):
    name = f"esm.encoder.layer.{block}.output.dense.weight"
    folder = write_checkpoint(tmp_path / "bad", {k: v for k, v in state.items() if k != name}, "safetensors")
    with pytest.raises(SourceError, match=f"lacks 1 encoder weight.*layer.{block}.output.dense.weight"):
        embed(model(folder, layer=1), proteins(), tmp_path / "a", threads=1)


def test_an_unexplained_weight(tmp_path, state):
    extra = state | {"esm.encoder.layer.3.output.dense.bias": torch.zeros(32)}
    folder = write_checkpoint(tmp_path / "bad", extra)
    with pytest.raises(SourceError, match=r"holds 1 weight.*'encoder.layer.3.output.dense.bias'"):
        embed(model(folder), proteins(), tmp_path / "a", threads=1)


def test_a_weight_of_another_shape(tmp_path, state):
    name = "esm.encoder.layer.0.output.dense.weight"
    folder = write_checkpoint(tmp_path / "bad", state | {name: torch.zeros(32, 47)})
    with pytest.raises(SourceError, match=r"shape \(32, 47\), but config.json asks for \(32, 48\)"):
        embed(model(folder), proteins(), tmp_path / "a", threads=1)


def test_truncated_weights(tmp_path, state):
    for kind, name in (("bin", "pytorch_model.bin"), ("safetensors", "model.safetensors")):
        path = write_checkpoint(tmp_path / kind, state, kind) / name
        path.write_bytes(path.read_bytes()[:2000])
        with pytest.raises(SourceError, match="truncated, corrupt"):
            embed(model(path.parent), proteins(), tmp_path / "a", threads=1)


class Evil:
    """An object whose unpickling touches a file."""

    def __init__(self, mark: Path):
        self.mark = str(mark)

    def __reduce__(self):
        return (open, (self.mark, "w"))


def test_a_pickle_with_code_is_not_executed(tmp_path, state):
    mark = tmp_path / "was_executed"
    folder = write_checkpoint(tmp_path / "evil", state, "none")
    torch.save(state | {"x": Evil(mark)}, folder / "pytorch_model.bin")
    with pytest.raises(SourceError, match="not a plain checkpoint"):
        embed(model(folder), proteins(), tmp_path / "a", threads=1)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Evil(mark)))  # the attack is a working one
    assert mark.exists()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"model_type": "bert"}, "not describe an ESM-2 model"),
        ({"position_embedding_type": "absolute"}, "not describe an ESM-2 model"),
        ({"is_folding_model": True}, "ESMFold"),
        ({"vocab_size": 34}, "34 tokens, vocab.txt 33"),
    ],
)
def test_other_models(tmp_path, state, change, complaint):
    folder = write_checkpoint(tmp_path / "other", state, config=CONFIG | change)
    with pytest.raises(SourceError, match=complaint):
        embed(model(folder), proteins(), tmp_path / "a", threads=1)


def test_weights_with_nan_are_refused(tmp_path, state):
    name = "esm.encoder.layer.0.output.dense.bias"
    broken = state[name].clone()
    broken[5] = float("nan")
    folder = write_checkpoint(tmp_path / "nan", state | {name: broken})
    with pytest.raises(DataError, match="NaN or infinite"):
        embed(model(folder, layer=1), proteins(), tmp_path / "a", threads=1)


class Hub:
    """Stand in for the hub's client: copies from a local folder what the patterns allow."""

    def __init__(self, folder: Path, cache: Path):
        self.folder, self.cache, self.asked = folder, cache, []

    def __call__(self, name: str, *, revision: str, allow_patterns: list[str]) -> str:
        import fnmatch

        self.asked.append((name, revision))
        self.cache.mkdir(exist_ok=True)
        for path in self.folder.iterdir():
            if any(fnmatch.fnmatch(path.name, pattern) for pattern in allow_patterns):
                (self.cache / path.name).write_bytes(path.read_bytes())
        return str(self.cache)


def test_hub_weights_come_from_the_pinned_revision(tmp_path, checkpoint, monkeypatch):
    import huggingface_hub

    hub = Hub(checkpoint, tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    config = rebuild(Model, {"adapter": "esm2", "hub": "facebook/esm2_t6_8M_UR50D", "revision": "c731040f"})
    store = embed(config, proteins(), tmp_path / "a", threads=1)
    assert set(hub.asked) == {("facebook/esm2_t6_8M_UR50D", "c731040f")}
    assert store.card["weights"] == {"hub": "facebook/esm2_t6_8M_UR50D", "revision": "c731040f"}


def test_a_hub_out_of_reach_is_one_line(tmp_path, monkeypatch):
    import huggingface_hub

    def unreachable(*_, **__):
        raise OSError("no route to host\nand much more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    config = rebuild(Model, {"adapter": "esm2", "hub": "facebook/esm2_t6_8M_UR50D", "revision": "c731040f"})
    with pytest.raises(SourceError, match=r"cannot be had from the hub \(no route to host\); download it elsewhere"):
        embed(config, proteins(), tmp_path / "a", threads=1)
