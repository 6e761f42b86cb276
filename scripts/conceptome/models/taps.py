"""Taking activations out of a stack of transformer layers: any layers, at one site, in one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from conceptome.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from conceptome.config.models import Esm2, Layered


@dataclass(frozen=True)
class Stack:
    """The parts of a model that activations are taken from.

    Attributes
    ----------
    blocks
        Layers in order; block i reads hidden state i and gives hidden state i + 1.
    attention, feed_forward
        Per block, the module whose output that half of the layer adds to the residual stream.
    norms
        Per block, the norm that reads its input. Empty where norms come after the residual sum, so that hidden states
        are normalised already.
    final
        The norm after the last block; None where there is none, or where the last block is not the model's last.
    scale
        What the outputs of `attention` and `feed_forward` are multiplied by before they are added.
    """

    blocks: Sequence[torch.nn.Module]
    attention: Sequence[torch.nn.Module]
    feed_forward: Sequence[torch.nn.Module]
    norms: Sequence[torch.nn.Module] = ()
    final: torch.nn.Module | None = None
    scale: float = 1.0


def chosen_layers(config: Layered | Esm2, total: int) -> list[int]:
    """The layer and the further ones, in that order; null is the last.

    Raises
    ------
    ConfigError
        A layer does not exist, or is given twice.
    """
    layers = [total if config.layer is None else config.layer, *config.also_layers]
    for layer in layers:
        if not 0 <= layer <= total:
            raise ConfigError(
                f"model '{config.adapter}': layer {layer} does not exist; this checkpoint has layers 0 to {total}"
            )
    if len(set(layers)) < len(layers):
        raise ConfigError(f"model '{config.adapter}': layer {layers[0]} is also in also_layers: give it once")
    if config.site in ("attention", "feed_forward") and 0 in layers:
        raise ConfigError(f"model '{config.adapter}': layer 0 is the embedding and has no {config.site}")
    return layers


def described(config: Layered | Esm2, layers: Sequence[int], total: int) -> dict[str, Any]:
    """Entries of the activation card: which layer, of how many, at which site."""
    entries: dict[str, Any] = {"layer": layers[0], "n_layers": total}
    if config.site != "hidden":
        entries["site"] = config.site
    if len(layers) > 1:
        entries["also_layers"] = list(layers[1:])
    return entries


def blocks_needed(layers: Sequence[int], site: str, total: int) -> int:
    """How many blocks must run; at least one, since a model without any cannot be built.

    >>> blocks_needed([2, 1], "hidden", 6)
    2
    >>> blocks_needed([2], "normalised", 6)
    3
    """
    return min(max([*layers, 1]) + (site == "normalised"), total)


@contextmanager
def tapped(stack: Stack, layers: Sequence[int], site: str, adapter: str) -> Iterator[Callable[[], list[torch.Tensor]]]:
    """Attach to the layers inside the block; the function given returns what the last forward pass left, in order.

    Raises
    ------
    ConfigError
        `normalised` of a model whose hidden states are normalised already.
    """
    if site == "normalised" and not stack.norms:
        raise ConfigError(
            f"model '{adapter}' normalises after each residual sum: its hidden states are normalised already; take "
            "'site: hidden'"
        )
    held: dict[int, torch.Tensor] = {}

    def first(value: Any) -> torch.Tensor:
        return value[0] if isinstance(value, tuple) else value

    def keep_output(layer: int, scale: float = 1.0) -> Callable[..., None]:
        def hook(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            held[layer] = first(output) if scale == 1.0 else first(output) * scale

        return hook

    def keep_input(layer: int) -> Callable[..., None]:
        def hook(module: torch.nn.Module, inputs: Any, named: dict[str, Any]) -> None:
            held[layer] = inputs[0] if inputs else named["hidden_states"]

        return hook

    handles = []
    for layer in layers:
        last = layer == len(stack.blocks)
        if site == "normalised" or (site == "hidden" and last and stack.final is not None):
            norm = stack.final if last else stack.norms[layer]
            handles.append(norm.register_forward_hook(keep_output(layer)))
        elif site in ("attention", "feed_forward"):
            module = getattr(stack, site)[layer - 1]
            handles.append(module.register_forward_hook(keep_output(layer, stack.scale)))
        elif layer == 0:
            handles.append(stack.blocks[0].register_forward_pre_hook(keep_input(layer), with_kwargs=True))
        else:
            handles.append(stack.blocks[layer - 1].register_forward_hook(keep_output(layer)))

    def collect() -> list[torch.Tensor]:
        found = [held[layer] for layer in layers]
        held.clear()
        return found

    try:
        yield collect
    finally:
        for handle in handles:
            handle.remove()
