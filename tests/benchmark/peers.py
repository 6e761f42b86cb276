"""The peers, each with its documented setting, in their own environment: `python peers.py NAME`.

Every training step is the library's own: forward with its auxiliary loss for dead atoms, backward, its treatment of
atom norms, clipping where it clips, Adam. Only the source of the rows is ours.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from worker import Built, Learned, Setting, encoding, serve

# Seed of every peer's first parameters.
SEED = 0
# Rows of one call of what is slow, so that a call lasts about a second.
PURSUIT_ROWS = 1024
SLOW_ROWS = 32


def count(model: torch.nn.Module) -> int:
    """Number of trained parameters."""
    return sum(each.numel() for each in model.parameters() if each.requires_grad)


def warm_up(steps: int) -> int:
    """Steps in which a learning rate rises: 5 %, as in Conceptome."""
    return max(1, steps // 20)


def random_atoms(setting: Setting) -> np.ndarray:
    """Random unit rows (m, d): what all pursuits encode with."""
    atoms = np.random.default_rng(SEED).standard_normal((setting.m, setting.d), dtype=np.float32)
    return atoms / np.linalg.norm(atoms, axis=1, keepdims=True)


def sae_lens(*, autocast: bool = False, sparse: bool = False) -> dict[str, Callable]:
    """sae-lens: `SAETrainer` on training SAEs, inference SAEs for encoding.

    With `sparse` codes decoder rows have any length: its two settings for both do not work together on a processor.
    """
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.saes.matching_pursuit_sae import MatchingPursuitSAE, MatchingPursuitSAEConfig
    from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig, TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    def train(kind: type, options: type) -> Callable:
        def make(X: np.ndarray, s: Setting) -> Learned:
            torch.manual_seed(SEED)
            own = {"use_sparse_activations": True, "rescale_acts_by_decoder_norm": False} if sparse else {}
            sae = kind(options(d_in=s.d, d_sae=s.m, k=s.k, **own))
            config = SAETrainerConfig(
                total_training_samples=s.steps * s.batch,
                train_batch_size_samples=s.batch,
                lr=s.rate or 3e-4,
                lr_end=(s.rate or 3e-4) / 10,
                lr_warm_up_steps=warm_up(s.steps),
                lr_decay_steps=s.steps // 5,
                autocast=autocast,
            )
            trainer = SAETrainer(config, sae, iter(()))

            def step(x: np.ndarray) -> None:
                trainer.step(torch.from_numpy(x))
                trainer.n_training_steps += 1

            def reconstruct(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
                with torch.no_grad():
                    codes = sae.encode(torch.from_numpy(x))
                    return sae.decode(codes).numpy(), (codes > 0).numpy()

            return Learned(step, count(sae), reconstruct)

        return make

    def encode(X: np.ndarray, s: Setting) -> Built:
        sae = TopKSAE(TopKSAEConfig(d_in=s.d, d_sae=s.m, k=s.k))
        return encoding(inference(sae.encode), X, s.batch)

    def pursue(X: np.ndarray, s: Setting) -> Built:
        options = MatchingPursuitSAEConfig(
            d_in=s.d, d_sae=s.m, max_iterations=s.k, residual_threshold=0.0, stop_on_duplicate_support=False
        )
        sae = MatchingPursuitSAE(options)
        sae.W_dec.data = torch.from_numpy(random_atoms(s))
        return encoding(inference(sae.encode), X, PURSUIT_ROWS)

    works = {"train topk": train(TopKTrainingSAE, TopKTrainingSAEConfig)}
    if not sparse:
        works["train batch_topk"] = train(BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig)
    return works if autocast or sparse else {**works, "encode topk": encode, "encode mp": pursue}


def dictionary_learning() -> dict[str, Callable]:
    """dictionary-learning: its trainers' `update`."""
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.top_k import AutoEncoderTopK, TopKTrainer

    def train(kind: type) -> Callable:
        def make(X: np.ndarray, s: Setting) -> Learned:
            trainer = kind(
                steps=s.steps,
                activation_dim=s.d,
                dict_size=s.m,
                k=s.k,
                layer=0,
                lm_name="none",
                lr=s.rate,
                warmup_steps=warm_up(s.steps),
                decay_start=s.steps // 2,
                seed=SEED,
                device="cpu",
            )
            state = {"step": 0}

            def step(x: np.ndarray) -> None:
                trainer.update(state["step"], torch.from_numpy(x))
                state["step"] += 1

            def reconstruct(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
                with torch.no_grad():
                    codes = trainer.ae.encode(torch.from_numpy(x), use_threshold=False)
                    return trainer.ae.decode(codes).numpy(), (codes > 0).numpy()

            return Learned(step, count(trainer.ae), reconstruct)

        return make

    def encode(X: np.ndarray, s: Setting) -> Built:
        return encoding(inference(AutoEncoderTopK(s.d, s.m, s.k).encode), X, s.batch)

    return {"train topk": train(TopKTrainer), "train batch_topk": train(BatchTopKTrainer), "encode topk": encode}


def sparsify() -> dict[str, Callable]:
    """sparsify: the step of its trainer with Adam and AuxK; the trainer itself takes language models only."""
    from sparsify import SparseCoder, SparseCoderConfig
    from transformers import get_linear_schedule_with_warmup

    aux, dead_after = 1 / 32, 10_000_000

    def make(X: np.ndarray, s: Setting) -> Learned:
        torch.manual_seed(SEED)
        coder = SparseCoder(s.d, SparseCoderConfig(num_latents=s.m, k=s.k), dtype=torch.float32)
        adam = torch.optim.Adam(coder.parameters(), lr=s.rate or 2e-4 / (s.m / 2**14) ** 0.5)
        schedule = get_linear_schedule_with_warmup(adam, warm_up(s.steps), s.steps)
        silent = torch.zeros(s.m, dtype=torch.long)
        state = {"first": True}

        def step(x: np.ndarray) -> None:
            x = torch.from_numpy(x)
            if state["first"]:
                coder.b_dec.data = x.mean(0)
                state["first"] = False
            coder.set_decoder_norm_to_unit_norm()
            variance = (x - x.mean(0)).pow(2).sum()
            out = coder(x=x, y=x, dead_mask=silent > dead_after, total_variance=variance)
            fired = torch.zeros(s.m, dtype=torch.bool)
            fired[out.latent_indices.flatten()] = True
            (out.fvu + aux * out.auxk_loss + out.multi_topk_fvu / 8).backward()
            coder.remove_gradient_parallel_to_decoder_directions()
            adam.step()
            adam.zero_grad()
            schedule.step()
            silent.add_(len(x))
            silent[fired] = 0

        def reconstruct(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            with torch.no_grad():
                values, indices, _ = coder.encode(torch.from_numpy(x))
                active = np.zeros((len(x), s.m), dtype=bool)
                np.put_along_axis(active, indices.numpy(), values.numpy() > 0, axis=1)
                return coder.decode(values, indices).numpy(), active

        return Learned(step, count(coder), reconstruct)

    def encode(X: np.ndarray, s: Setting) -> Built:
        coder = SparseCoder(s.d, SparseCoderConfig(num_latents=s.m, k=s.k), dtype=torch.float32)
        return encoding(inference(coder.encode), X, s.batch)

    return {"train topk": make, "encode topk": encode}


def overcomplete() -> dict[str, Callable]:
    """overcomplete: the step of its `train_sae` with its documented loss, the mean squared error."""
    # The package's front page imports image models, which nothing here needs: an empty one stands in for it.
    spec = importlib.util.find_spec("overcomplete")
    front = types.ModuleType("overcomplete")
    front.__path__ = list(spec.submodule_search_locations)
    sys.modules["overcomplete"] = front
    from overcomplete.sae import OMPSAE, BatchTopKSAE, MpSAE, TopKSAE
    from overcomplete.sae.trackers import DeadCodeTracker

    def train(kind: type, per_batch: bool) -> Callable:
        def make(X: np.ndarray, s: Setting) -> Learned:
            torch.manual_seed(SEED)
            sae = kind(s.d, nb_concepts=s.m, top_k=s.k * (s.batch if per_batch else 1), device="cpu")
            adam = torch.optim.Adam(sae.parameters(), lr=s.rate or 5e-4)
            tracker = DeadCodeTracker(s.m, "cpu")
            sae.train()

            def step(x: np.ndarray) -> None:
                x = torch.from_numpy(x)
                adam.zero_grad()
                _, codes, x_hat = sae(x)
                loss = (x - x_hat).square().mean()
                tracker.update(codes)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
                adam.step()

            def reconstruct(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
                sae.eval()
                with torch.no_grad():
                    _, codes, x_hat = sae(torch.from_numpy(x))
                sae.train()
                return x_hat.numpy(), (codes > 0).numpy()

            return Learned(step, count(sae), reconstruct)

        return make

    def encode(X: np.ndarray, s: Setting) -> Built:
        sae = TopKSAE(s.d, nb_concepts=s.m, top_k=s.k, device="cpu").eval()
        return encoding(inference(sae.encode), X, s.batch)

    def pursue(kind: type, rows: int) -> Callable:
        def make(X: np.ndarray, s: Setting) -> Built:
            sae = kind(s.d, nb_concepts=s.m, k=s.k, device="cpu")
            sae.dictionary._weights.data = torch.from_numpy(random_atoms(s))
            return encoding(inference(sae.eval().encode), X, rows)

        return make

    return {
        "train topk": train(TopKSAE, False),
        "train batch_topk": train(BatchTopKSAE, True),
        "encode topk": encode,
        "encode mp": pursue(MpSAE, PURSUIT_ROWS),
        "encode omp": pursue(OMPSAE, SLOW_ROWS),
    }


def spams() -> dict[str, Callable]:
    """spams: `omp` with its own Gram matrix."""
    import spams as library

    def make(X: np.ndarray, s: Setting) -> Built:
        atoms = np.asfortranarray(random_atoms(s).T)
        threads = torch.get_num_threads()
        return encoding(
            lambda x: library.omp(np.asfortranarray(x.T), atoms, L=s.k, numThreads=threads), X, 4 * PURSUIT_ROWS
        )

    return {"encode omp": make}


def scikit_learn() -> dict[str, Callable]:
    """scikit-learn: `orthogonal_mp_gram` with a Gram matrix made beforehand."""
    from sklearn.linear_model import orthogonal_mp_gram

    def make(X: np.ndarray, s: Setting) -> Built:
        atoms = random_atoms(s).astype(np.float64)
        gram = atoms @ atoms.T

        def encode(x: np.ndarray) -> Any:
            return orthogonal_mp_gram(gram, atoms @ x.T.astype(np.float64), n_nonzero_coefs=s.k, copy_Gram=False)

        return encoding(encode, X, 4)

    return {"encode omp": make}


def inference(encode: Callable) -> Callable[[np.ndarray], Any]:
    """Encode numpy rows without gradients."""

    def call(x: np.ndarray) -> Any:
        with torch.inference_mode():
            return encode(torch.from_numpy(x))

    return call


NAMES: dict[str, Callable[[], dict[str, Callable]]] = {
    "sae-lens": sae_lens,
    "sae-lens, bf16 autocast": lambda: sae_lens(autocast=True),
    "sae-lens, sparse codes": lambda: sae_lens(sparse=True),
    "dictionary-learning": dictionary_learning,
    "sparsify": sparsify,
    "overcomplete": overcomplete,
    "spams": spams,
    "scikit-learn": scikit_learn,
}


def set_threads(number: int) -> None:
    """Limit torch and BLAS."""
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(number)
    threadpool_limits(number)


if __name__ == "__main__":
    serve(NAMES[sys.argv[1]], set_threads)
