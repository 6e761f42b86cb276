"""Conceptome as a contestant, and plain torch beside its pursuit: `python ours.py NAME`.

CONCEPTOME_KERNELS chooses the variant of the kernels, or torch for none.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
from sets import LARGEST, SMALLEST, gene_names, gene_sets
from worker import Built, Learned, Setting, encoding, quality, serve

SEED = 0
# What docs/dictionaries.md advises for a training of some hundred steps.
SHORT_TRAINING = {"encoder_scale": 0.3, "adam_beta2": 0.97, "warm_down": 0.3, "dead_after": 5000, "k_aux": 256}
PURSUIT_ROWS = 2048


class _Captured(Exception):
    """The trainer that a method's `fit` hands to the training loop."""

    def __init__(self, trainer: Any, deviation: float):
        self.trainer, self.deviation = trainer, deviation


def trainer_of(method: str, X: np.ndarray, s: Setting) -> tuple[Any, float]:
    """Give the trainer that `fit` makes for this method, and the deviation that its loop divides rows by.

    The loop is replaced while `fit` runs, so that any method is measured with the state that it really starts from.
    """
    from conceptome.dictionaries import METHODS, fit, training

    def capture(trainer: Any, rows: Any, options: Any, *, deviation: float, **_: Any) -> None:
        raise _Captured(trainer, deviation)

    import_module(METHODS[method][0])
    loop = training.train
    patched = [
        module
        for name, module in list(sys.modules.items())
        if name.startswith("conceptome.dictionaries") and getattr(module, "train", None) is loop
    ]
    for module in patched:
        module.train = capture
    try:
        fit(method, X, m=s.m, k=s.k, seed=SEED, batch_size=s.batch)
    except _Captured as caught:
        return caught.trainer, caught.deviation
    finally:
        for module in patched:
            module.train = loop
    raise RuntimeError(f"{method}: fit did not call the training loop")


def train(method: str) -> Callable[[np.ndarray, Setting], Learned]:
    """Training steps of one method."""

    def make(X: np.ndarray, s: Setting) -> Learned:
        trainer, _ = trainer_of(method, X, s)
        trainer.optimiser.learning_rate = 1e-4
        dead = np.zeros(s.m, dtype=bool)
        state = {"step": 0}

        def step(x: np.ndarray) -> None:
            trainer.step(x, dead, state["step"])
            state["step"] += 1

        return Learned(step, sum(value.size for value in trainer.parameters.values()))

    return make


def learn(method: str) -> Callable[..., dict[str, float]]:
    """Fit as a user does, with as many rows seen as the order of batches has, and measure quality."""

    def call(X: np.ndarray, test: np.ndarray, order: np.ndarray, s: Setting) -> dict[str, float]:
        from conceptome.dictionaries import fit

        options = SHORT_TRAINING | ({} if s.rate is None else {"learning_rate": s.rate})
        dictionary = fit(method, X, m=s.m, k=s.k, seed=SEED, steps=len(order), batch_size=order.shape[1], **options)

        def reconstruct(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            codes = dictionary.encode(x)
            return dictionary.decode(codes), codes.to_scipy().toarray() != 0

        return quality(reconstruct, X, test)

    return call


def encode_topk(X: np.ndarray, s: Setting) -> Built:
    """Encode with a TopK dictionary of random atoms."""
    from conceptome.dictionaries.topk import TopK

    atoms = _random_atoms(s)
    parameters = {"atoms": atoms, "encoder": atoms, "encoder_bias": np.zeros(s.m), "bias": X.mean(axis=0)}
    return encoding(TopK(parameters, {"k": s.k}).encode, X, s.batch)


def pursue(name: str) -> Callable[[np.ndarray, Setting], Built]:
    """Encode with a pursuit on a Gram matrix made beforehand, as a dictionary keeps one while it encodes."""

    def make(X: np.ndarray, s: Setting) -> Built:
        from conceptome_kernels import pursuit

        atoms = _random_atoms(s)
        gram = pursuit.compact_gram(atoms)
        calls: dict[str, Callable] = {
            "mp": lambda x: pursuit.matching_pursuit(x, atoms, s.k, gram=gram, nonnegative=True),
            "omp": lambda x: pursuit.orthogonal_matching_pursuit(x, atoms, s.k, gram=gram),
            "icfl": lambda x: pursuit.icfl_pursuit(x, atoms, list(s.rounds), gram=gram),
        }
        return encoding(calls[name], X, PURSUIT_ROWS)

    return make


def enrich(test: str) -> Callable[[np.ndarray, Setting], Built]:
    """Gene sets of atoms: the association with every gene in, p values of every set out, in log space."""

    def make(X: np.ndarray, s: Setting) -> Built:
        from conceptome.enrichment.gmt import index_sets
        from conceptome.enrichment.set_tests import naive_log10_p, ora_log10_p, rank_effects, top_overlap

        index = index_sets({"random": gene_sets(s.m, s.d)}, gene_names(s.d), SMALLEST, LARGEST)
        calls: dict[str, Callable] = {
            "ora": lambda x: ora_log10_p(top_overlap(x, index, s.k), index, s.d, s.k),
            "rank": lambda x: naive_log10_p(rank_effects(x, index), index, s.d),
        }
        return encoding(calls[test], X, s.batch)

    return make


def recompute(product: str) -> Callable[[np.ndarray, Setting], Built]:
    """ICFL in batched torch, which takes the correlations of all atoms anew in every round."""

    def make(X: np.ndarray, s: Setting) -> Built:
        import torch

        atoms = torch.from_numpy(_random_atoms(s))
        if product == "onednn":
            # The only way to oneDNN's float32 product; not a public operator.
            inner = torch.ops.mkldnn._linear_pointwise
            correlate = lambda r: inner(r, atoms, None, "none", [], "")  # noqa: E731
        else:
            correlate = lambda r: r @ atoms.T  # noqa: E731

        def encode(x: np.ndarray) -> torch.Tensor:
            with torch.inference_mode():
                residual = torch.from_numpy(x).clone()
                codes = torch.zeros(len(x), s.m)
                for columns in s.rounds:
                    index = correlate(residual).topk(columns, dim=1).indices
                    chosen = atoms[index]
                    gram = chosen @ chosen.transpose(1, 2)
                    right = (chosen @ residual[:, :, None])[:, :, 0]
                    gram.diagonal(dim1=1, dim2=2).add_(1e-5)
                    values = torch.linalg.solve_ex(gram, right).result
                    codes.scatter_add_(1, index, values)
                    residual -= (values[:, None, :] @ chosen)[:, 0]
                return codes

        return encoding(encode, X, PURSUIT_ROWS)

    return make


def _random_atoms(s: Setting) -> np.ndarray:
    atoms = np.random.default_rng(SEED).standard_normal((s.m, s.d), dtype=np.float32)
    return atoms / np.linalg.norm(atoms, axis=1, keepdims=True)


def works(name: str) -> dict[str, Callable]:
    """What each contestant of this file can do."""
    from conceptome.dictionaries import METHODS

    if name != "conceptome":
        return {"encode icfl": recompute(name)}
    offered: dict[str, Callable] = {}
    for method in ("topk", "batch_topk"):
        if method in METHODS:
            offered |= {f"train {method}": train(method), f"learn {method}": learn(method)}
    offered |= {f"encode {each}": pursue(each) for each in ("mp", "omp", "icfl")}
    return {**offered, "encode topk": encode_topk, **{f"enrich {each}": enrich(each) for each in ("ora", "rank")}}


def set_threads(number: int) -> None:
    """Limit the kernels, BLAS, and torch where it is used."""
    import torch
    from threadpoolctl import threadpool_limits

    from conceptome_kernels import available

    available()
    torch.set_num_threads(number)
    threadpool_limits(number)


if __name__ == "__main__":
    serve(lambda: works(sys.argv[1]), set_threads)
