"""Data-parallel training: every process takes its part of each batch, gradients are averaged, parameters stay equal.

    torchrun --nproc-per-node 4 -m conceptome.dictionaries.distributed topk STORE OUTPUT --option m=8192 --option k=32

All processes read the same batches in the same order and keep their parts, so that the result is that of one process
but for the rounding of sums in another order. A method takes part if its step hands explicit gradients to `Adam.step`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conceptome.errors import ConceptomeError, ConfigError

if TYPE_CHECKING:
    import torch


class Alone:
    """One process: everything stays as it is."""

    rank = 0
    size = 1

    def part(self, x: np.ndarray) -> np.ndarray:
        """The rows of a batch that this process takes.

        Raises
        ------
        ConfigError
            The batch cannot be cut into equal parts.
        """
        return x

    def mean(self, value: np.ndarray) -> np.ndarray:
        """The mean of an array over all processes, of its shape and dtype."""
        return value


class Group(Alone):
    """The processes of torch.distributed's default group."""

    def __init__(self):
        import torch.distributed as dist

        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        # NCCL moves memory of GPUs only.
        self.device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if dist.get_backend() == "nccl" else "cpu"

    def part(self, x: np.ndarray) -> np.ndarray:
        """As `Alone.part` says."""
        if len(x) % self.size:
            raise ConfigError(f"batches of {len(x)} rows cannot be shared by {self.size} processes: mend batch_size")
        rows = len(x) // self.size
        return x[self.rank * rows : (self.rank + 1) * rows]

    def mean(self, value: np.ndarray) -> np.ndarray:
        """As `Alone.mean` says; equal bits in all processes."""
        import torch
        import torch.distributed as dist

        tensor: torch.Tensor = torch.tensor(value, device=self.device)
        dist.all_reduce(tensor)
        return (tensor / self.size).cpu().numpy()


def current() -> Alone:
    """The group that this process belongs to."""
    # torch is not imported to be asked: a process that has not done so belongs to none.
    dist = sys.modules.get("torch.distributed")
    return Group() if dist is not None and dist.is_available() and dist.is_initialized() else Alone()


@contextmanager
def processes(backend: str = "gloo") -> Iterator[Alone]:
    """Join the processes that torchrun started; `fit` within the block is shared by all of them.

    Parameters
    ----------
    backend
        "gloo", or "nccl" where each process has a GPU.

    Raises
    ------
    ConfigError
        Not started by torchrun.
    """
    import torch
    import torch.distributed as dist

    if "RANK" not in os.environ:
        raise ConfigError("data-parallel training is started by torchrun, which tells each process its number")
    if backend == "nccl":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(backend)
    try:
        yield current()
    finally:
        dist.destroy_process_group()


def _option(text: str) -> tuple[str, Any]:
    key, _, value = text.partition("=")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        raise argparse.ArgumentTypeError(f"'{text}' is not KEY=VALUE with a JSON value") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Fit one dictionary on the training split of a store, in all processes together; the first one writes it."""
    parser = argparse.ArgumentParser(prog="conceptome.dictionaries.distributed", description=main.__doc__)
    parser.add_argument("method")
    parser.add_argument("store", type=Path, help="folder of activations")
    parser.add_argument("output", type=Path, help="folder of the dictionary")
    parser.add_argument("--whitening", type=Path, help="folder of a fitted whitening")
    parser.add_argument("--option", action="append", type=_option, default=[], metavar="KEY=VALUE", help="m=8192, say")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--checkpoint", type=Path, help="folder that all processes see; a new start goes on from there")
    parser.add_argument("--backend", choices=("gloo", "nccl"), default="gloo")
    given = parser.parse_args(arguments)

    from conceptome.activations import Store
    from conceptome.dictionaries import fit
    from conceptome.whitening import load

    try:
        with processes(given.backend) as group:
            store = Store(given.store)
            dictionary = fit(
                given.method,
                store,
                rows=(store.obs["split"] == "train").to_numpy() if "split" in store.obs else None,
                whitening=load(given.whitening) if given.whitening else None,
                seed=given.seed,
                threads=given.threads,
                checkpoint=given.checkpoint,
                **dict(given.option),
            )
            if group.rank == 0:
                dictionary.save(given.output)
    except ConceptomeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
