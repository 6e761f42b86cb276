"""Data-parallel training: every process takes its part of each batch, gradients are averaged, parameters stay equal.

    torchrun --nproc-per-node 4 -m conceptome.dictionaries.distributed topk STORE OUTPUT --option m=8192 --option k=32

`launch` does this for one machine, and starts the processes again from the checkpoint when one of them dies.

All processes read the same batches in the same order and keep their parts, so that the result is that of one process
but for the rounding of sums in another order. A method takes part if its step hands explicit gradients to `Adam.step`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conceptome.errors import ConceptomeError, ConfigError, DataError

if TYPE_CHECKING:
    import torch

    from conceptome.activations import Store
    from conceptome.whitening import Whitening

# How often all processes are started again after one of them has died.
RESTARTS = 3
STOP_SECONDS = 30

log = logging.getLogger(__name__)


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


def launch(
    method: str,
    options: Mapping[str, Any],
    store: Store,
    whitening: Whitening,
    *,
    rows: np.ndarray,
    seed: int,
    processes: int,
    threads: int,
    folder: Path,
) -> Path:
    """Fit one dictionary in several processes on this machine, by torch's elastic launch.

    When a process dies, all are started again and go on from the checkpoint: the bytes are those of an undisturbed
    training by as many processes.

    Parameters
    ----------
    method, options, seed
        As in `fit`.
    store, whitening, rows
        Activations, the map that is applied to them, and (n,) bool: the training rows.
    processes, threads
        How many, and the threads of each.
    folder
        For the checkpoint and for what the processes are told; the caller removes it.

    Returns
    -------
    Path
        The folder of the dictionary, inside `folder`.

    Raises
    ------
    DataError
        The training failed: the first error that a process told.
    """
    output, told = folder / f"dictionary{seed}", folder / "told"
    whitening.save(told)
    np.save(told / "rows.npy", rows)
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"),
        *("--nproc-per-node", str(processes), "--max-restarts", str(RESTARTS)),
        *("-m", "conceptome.dictionaries.distributed", method, str(store.folder), str(output)),
        *("--whitening", str(told), "--rows", str(told / "rows.npy"), "--seed", str(seed)),
        *("--threads", str(threads), "--checkpoint", str(folder)),
        *(part for key, value in options.items() for part in ("--option", f"{key}={json.dumps(value)}")),
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "OMP_NUM_THREADS": str(threads),
        # Restarted processes otherwise look for each other at the addresses of their predecessors.
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }
    problem = None
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as started:
        try:
            for line in started.stderr:
                log.info("%s", line.rstrip())
                if problem is None and line.startswith("error: "):
                    problem = line.removeprefix("error: ").strip()
            code = started.wait()
        except BaseException:
            # On SIGTERM the launcher ends its processes; killed, it would leave them behind.
            started.terminate()
            try:
                started.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                started.kill()
            raise
    if code:
        raise DataError(problem or f"training '{method}' in {processes} processes failed: the log tells why")
    return output


def _option(text: str) -> tuple[str, Any]:
    key, _, value = text.partition("=")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        raise argparse.ArgumentTypeError(f"'{text}' is not KEY=VALUE with a JSON value") from None


def _training_split(store: Store) -> np.ndarray | None:
    """Mask of the training split; None where the samples have no splits."""
    try:
        return (store.columns(["split"])["split"] == "train").to_numpy()
    except DataError:
        return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Fit one dictionary on the training split of a store, in all processes together; the first one writes it."""
    parser = argparse.ArgumentParser(prog="conceptome.dictionaries.distributed", description=main.__doc__)
    parser.add_argument("method")
    parser.add_argument("store", type=Path, help="folder of activations")
    parser.add_argument("output", type=Path, help="folder of the dictionary")
    parser.add_argument("--whitening", type=Path, help="folder of a fitted whitening")
    parser.add_argument("--rows", type=Path, help="file of a boolean mask of the training rows (default: split train)")
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
                rows=np.load(given.rows, allow_pickle=False) if given.rows else _training_split(store),
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
