"""An scVI model (Lopez et al. 2018, doi:10.1038/s41592-018-0229-2) trained here on the data set's counts."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conceptome.errors import DataError
from conceptome.models.base import (
    Embedding,
    dense_batches,
    need_counts,
    table,
    torch_threads,
    training_counts,
    variable_genes,
)

if TYPE_CHECKING:
    from conceptome.config.models import Scvi
    from conceptome.datasets import Dataset

log = logging.getLogger(__name__)

NOISY_LOGGERS = ("scvi", "lightning", "lightning.pytorch", "lightning.fabric", "pytorch_lightning")


def embed(config: Scvi, dataset: Dataset, *, threads: int, weights: Path | None) -> Embedding:
    """Train scVI on the training split and encode every sample.

    Activations are either the encoder's last hidden layer after its activation function (`layer: encoder`,
    n × n_hidden) or the mean of the latent distribution (`layer: latent`, n × n_latent), in evaluation mode: no
    dropout, running batch-norm statistics. No batch covariate enters the model.

    Raises
    ------
    DataError
        The data set has no raw counts or marks no highly variable genes, or training diverged.
    """
    adata = table(dataset, "scvi")
    need_counts(adata, "scvi")
    if "highly_variable" not in adata.var or not adata.var["highly_variable"].any():
        raise DataError(
            "model 'scvi' is trained on highly variable genes, but this data set marks none: prepare it again"
        )
    counts, chosen, sizes = training_counts(adata, dataset, "scvi")
    with torch_threads(threads):
        model, training = _train(config, counts[chosen], threads)
    training |= sizes
    card = {
        "layer": config.layer,
        "training": training,
        "decoder": {"genes": [str(name) for name in adata.var_names[variable_genes(adata)]]},
        "notes": [f"trained on {len(chosen)} cells of the training split × {sizes['n_genes']} highly variable genes"],
    }
    return Embedding(_encode(model, config.layer, counts, threads), card, decoder_arrays(model))


def decoder_arrays(model: Any) -> dict[str, np.ndarray]:
    """Take from a trained model what leads from its hidden layer to expression.

    Returns
    -------
    dict
        latent.weight and latent.bias (hidden layer → latent mean); per hidden layer i of the decoder hidden.i.weight
        and .bias and, where it is normalised, .scale, .shift, .mean, .variance and .epsilon; share.weight and
        share.bias.
    """
    from torch import nn

    def arrays(prefix: str, layer: Any) -> dict[str, np.ndarray]:
        values = {f"{prefix}.weight": layer.weight, f"{prefix}.bias": layer.bias}
        return {name: value.detach().numpy().copy() for name, value in values.items()}

    found = arrays("latent", model.module.z_encoder.mean_encoder)
    for number, layer in enumerate(model.module.decoder.px_decoder.fc_layers):
        for part in layer:
            prefix = f"hidden.{number}"
            if isinstance(part, nn.Linear):
                found |= arrays(prefix, part)
            elif isinstance(part, nn.BatchNorm1d):
                values = {
                    "scale": part.weight,
                    "shift": part.bias,
                    "mean": part.running_mean,
                    "variance": part.running_var,
                }
                found |= {f"{prefix}.{name}": value.detach().numpy().copy() for name, value in values.items()}
                found[f"{prefix}.epsilon"] = np.array([part.eps], dtype=np.float32)
    return found | arrays("share", model.module.decoder.px_scale_decoder[0])


class Decoder:
    """From a hidden layer or a latent mean to the expression that a trained scVI model expects, by its weights alone.

    Parameters
    ----------
    arrays
        From `decoder_arrays`.
    layer
        What it starts from: encoder (the hidden layer) or latent.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], layer: str):
        self.arrays, self.layer = dict(arrays), layer

    def __call__(self, activations: np.ndarray) -> np.ndarray:
        """Give log(1 + 10,000 × expected share of counts), float32 (n, genes), of activations (n, d).

        Raises
        ------
        DataError
            The activations are not of that layer's width.
        """
        import torch

        weights = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in self.arrays.items()}
        first = "latent" if self.layer == "encoder" else "hidden.0"
        width = weights[f"{first}.weight"].shape[1]
        if activations.ndim != 2 or activations.shape[1] != width:
            raise DataError(f"the scVI decoder takes {width} dimensions but is given shape {activations.shape}")
        with torch.inference_mode():
            h = torch.from_numpy(np.ascontiguousarray(activations, dtype=np.float32))
            if self.layer == "encoder":
                h = torch.nn.functional.linear(h, weights["latent.weight"], weights["latent.bias"])
            number = 0
            while (prefix := f"hidden.{number}") + ".weight" in weights:
                h = torch.nn.functional.linear(h, weights[f"{prefix}.weight"], weights[f"{prefix}.bias"])
                if f"{prefix}.mean" in weights:
                    parts = (weights[f"{prefix}.{name}"] for name in ("mean", "variance", "scale", "shift"))
                    h = torch.nn.functional.batch_norm(h, *parts, eps=float(weights[f"{prefix}.epsilon"]))
                h, number = torch.relu(h), number + 1
            share = torch.softmax(torch.nn.functional.linear(h, weights["share.weight"], weights["share.bias"]), dim=-1)
            return torch.log1p(1e4 * share).numpy()


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the training framework's notices; our own progress goes through logging."""
    import lightning.pytorch  # noqa: F401  importing them sets the levels of their loggers
    import scvi as scvi_tools  # noqa: F401

    loggers = [logging.getLogger(name) for name in NOISY_LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _progress(epochs: int) -> Any:
    from lightning.pytorch.callbacks import Callback

    every = max(1, epochs // 10)

    class Progress(Callback):
        """Log about ten lines per training."""

        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            """Log where training stands."""
            done = trainer.current_epoch + 1
            if done % every == 0 or done == epochs:
                loss = trainer.callback_metrics.get("train_loss_epoch", trainer.callback_metrics.get("train_loss"))
                log.info("scvi: epoch %d of %d, loss %.1f", done, epochs, float("nan") if loss is None else float(loss))

    return Progress()


def _train(config: Scvi, counts: Any, threads: int) -> tuple[Any, dict[str, Any]]:
    """Train on (cells × genes) counts; the same seed and number of threads give the same bits."""
    with _quiet():
        import anndata
        import scvi as scvi_tools
        import torch

        scvi_tools.settings.seed = config.seed
        scvi_tools.settings.num_threads = threads
        adata = anndata.AnnData(X=counts)
        scvi_tools.model.SCVI.setup_anndata(adata)
        model = scvi_tools.model.SCVI(
            adata, n_hidden=config.n_hidden, n_latent=config.n_latent, n_layers=config.n_layers
        )
        with tempfile.TemporaryDirectory() as scratch:
            model.train(
                max_epochs=config.max_epochs,
                batch_size=config.batch_size,
                train_size=1.0,
                accelerator="cpu",
                devices=1,
                enable_progress_bar=False,
                enable_checkpointing=False,
                default_root_dir=scratch,
                callbacks=[_progress(config.max_epochs)],
                # Batch normalisation cannot take a last batch of a single cell.
                datasplitter_kwargs={"drop_last": adata.n_obs % config.batch_size == 1 and adata.n_obs > 1},
            )
    elbo = model.history["elbo_train"]["elbo_train"].astype(float)
    parameters = torch.cat([parameter.detach().ravel() for parameter in model.module.parameters()])
    if not (np.isfinite(elbo).all() and torch.isfinite(parameters).all()):
        raise DataError("model 'scvi': training diverged (NaN loss); check the counts, or lower model.max_epochs")
    every = max(1, len(elbo) // 20)
    curve = [[int(epoch) + 1, float(value)] for epoch, value in list(elbo.items())[::every]]
    return model, {"epochs": len(elbo), "final_elbo": float(elbo.iloc[-1]), "elbo": curve}


def _encode(model: Any, layer: str, counts: Any, threads: int) -> Iterator[np.ndarray]:
    import torch

    encoder = model.module.z_encoder
    model.module.eval()
    with torch_threads(threads), torch.inference_mode():
        for block in dense_batches(counts):
            # The encoder was trained on log(1 + counts) with no covariates.
            hidden = encoder.encoder(torch.log1p(torch.from_numpy(block)))
            yield (encoder.mean_encoder(hidden) if layer == "latent" else hidden).numpy()
