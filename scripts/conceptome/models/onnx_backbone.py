"""Any vision backbone in ONNX: its graph is cut at the tensor asked for and run by onnxruntime."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from conceptome.datasets.tables import suggest
from conceptome.errors import ConfigError, SourceError
from conceptome.files import sha256_file
from conceptome.models.base import Embedding
from conceptome.models.vision import channel_rows, embed_batches, pool_tokens

if TYPE_CHECKING:
    from conceptome.config.models import Onnx
    from conceptome.datasets import Dataset


def embed(config: Onnx, dataset: Dataset, *, threads: int, weights: Path | None) -> Embedding:
    """Run the graph up to `config.layer` over every crop and pool its tokens; further layers come of the same pass.

    Raises
    ------
    ConfigError
        The layer is not in the graph, or gives no tokens.
    SourceError
        The file is missing or is no ONNX model.
    DataError
        The data set is not of images, or its channels do not fit.
    """
    channel_rows(config, dataset)
    layers = [config.layer, *config.also_layers]
    run, path = _session(config, weights, threads, layers)
    intensity = config.intensity
    card = {
        "layer": config.layer,
        "stand_in": config.stand_in,
        "weights": config.source or path.name,
        "weights_sha256": {path.name: sha256_file(path)},
        "notes": [
            "mean of the patch tokens" if config.pool == "mean" else "first token",
            f"pixels: {intensity.method} {intensity.low:g} to {intensity.high:g}{', log' if intensity.log else ''}, "
            f"reference {intensity.reference}; crops resized to {config.input_size} × {config.input_size}",
        ],
    }
    if config.also_layers:
        card["layer_number"] = len(layers)

    def batches(start: int = 0) -> Iterator[np.ndarray]:
        return embed_batches(config, dataset, lambda view: [pool_tokens(config, values) for values in run(view)], start)

    return Embedding(batches(0), card, also=tuple(range(1, len(layers))), from_row=batches)


def backbone(config: Onnx, weights: Path | None, threads: int) -> tuple[Callable[[np.ndarray], np.ndarray], Path]:
    """Open an ONNX file and cut it at `config.layer`; see `embed` for the errors.

    Returns
    -------
    run : callable
        float32 (b, c, h, w) → the layer's values, float32.
    path : Path
        The file.
    """
    run, path = _session(config, weights, threads, [config.layer])
    return lambda images: run(images)[0], path


def _session(
    config: Onnx, weights: Path | None, threads: int, layers: Sequence[str]
) -> tuple[Callable[[np.ndarray], list[np.ndarray]], Path]:
    """Open an ONNX file and cut it at some tensors: what maps images to the values of each, and the file.

    Raises
    ------
    ConfigError
        The graph has no such tensor (the nearest name is given), or reads more than images.
    SourceError
        The file is missing or is no ONNX model.
    """
    import onnx
    import onnxruntime

    path = Path(config.path) if config.path else weights
    if path is None or not path.is_file():
        raise SourceError(f"ONNX model {path or config.source} does not exist: name a file, or a source that is one")
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf and the checker raise several kinds
        reason = str(error).strip().split("\n")[0]
        raise SourceError(f"{path} is not a readable ONNX model ({reason}): supply the file again") from None
    made = [name for node in model.graph.node for name in node.output if name]
    for layer in layers:
        if layer not in made:
            raise ConfigError(f"layer '{layer}' is no tensor of {path.name}; {suggest(layer, made)}")
    stored = {item.name for item in model.graph.initializer}
    read = [item.name for item in model.graph.input if item.name not in stored]
    if len(read) != 1:
        raise ConfigError(f"{path.name} reads {len(read)} inputs ({', '.join(read)}): a backbone reads images alone")
    cut = _cut(model, layers)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(cut, options, providers=["CPUExecutionProvider"])

    def run(images: np.ndarray) -> list[np.ndarray]:
        return session.run(list(layers), {read[0]: np.ascontiguousarray(images, np.float32)})

    return run, path


def _cut(model: object, layers: Sequence[str]) -> bytes:
    """Return the model with these tensors as its only outputs, without the nodes behind them."""
    import onnx

    graph = model.graph
    makes = {name: node for node in graph.node for name in node.output}
    needed, open_names, nodes = set(), list(layers), set()
    while open_names:
        name = open_names.pop()
        if name in needed:
            continue
        needed.add(name)
        node = makes.get(name)
        if node is not None and id(node) not in nodes:
            nodes.add(id(node))
            open_names += _reads(node)
    kept = [node for node in graph.node if id(node) in nodes]
    weights = [item for item in graph.initializer if item.name in needed]
    inputs = [item for item in graph.input if item.name in needed]
    outputs = [onnx.helper.make_empty_tensor_value_info(layer) for layer in layers]
    part = onnx.helper.make_graph(kept, graph.name, inputs, outputs, weights)
    return onnx.helper.make_model(
        part, opset_imports=model.opset_import, ir_version=model.ir_version, functions=model.functions
    ).SerializeToString()


def _reads(node: object) -> list[str]:
    """Names that a node reads, those that its own subgraphs (of an If or a Loop) take from around it included."""
    names = [item for item in node.input if item]
    for attribute in node.attribute:
        for graph in [attribute.g, *attribute.graphs] if attribute.g.node or attribute.graphs else []:
            names += [name for inner in graph.node for name in _reads(inner)]
    return names
