"""Geneformer (Theodoris et al. 2023, doi:10.1038/s41586-023-06139-9): a cell as its genes in order of expression.

A checkpoint is a folder with config.json and the weights; the dictionaries lie in it or in a folder of their own:
token_dictionary*.pkl (accession → token), gene_median_dictionary*.pkl (accession → median), and
gene_name_id_dict*.pkl (symbol → accession), each as a plain pickle or as .json. Models with <cls> and <eos> in their
dictionary (V2) are given them, those without (V1) are not.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from conceptome.errors import ConfigError, SourceError
from conceptome.models.base import Embedding, torch_threads
from conceptome.models.checkpoint import (
    checkpoint_card,
    find_folder,
    load_pretrained,
    read_dictionary,
    weight_files,
)
from conceptome.models.gene_tokens import gene_obs, inverse, match_genes, nonempty, pool_note, read_counts
from conceptome.models.sequences import Sequences, tapped_batches
from conceptome.models.taps import Stack, blocks_needed, chosen_layers

if TYPE_CHECKING:
    import torch

    from conceptome.config.models import Geneformer
    from conceptome.datasets import Dataset

DICTIONARIES = {"token": "token_dictionary*", "median": "gene_median_dictionary*", "name": "gene_name_id_dict*"}
# Counts of a cell are scaled to this sum before they are divided by the genes' medians.
TARGET_SUM = 10_000.0


def read_dictionaries(folder: Path) -> tuple[dict[str, dict], list[Path]]:
    """Read the three dictionaries, and the files they are in.

    Raises
    ------
    SourceError
        One is missing or there twice, or cannot be read.
    """
    found: dict[str, dict] = {}
    files = []
    for kind, pattern in DICTIONARIES.items():
        paths = [path for path in sorted(folder.glob(pattern)) if path.suffix in (".pkl", ".json")]
        if len(paths) != 1:
            what = "is missing" if not paths else f"is there {len(paths)} times"
            raise SourceError(
                f"{folder / pattern} {what}: model 'geneformer' needs one token, median and name dictionary "
                "(model.dictionaries names their folder)"
            )
        found[kind] = read_dictionary(paths[0])
        files += paths
    return found, files


class Ranked:
    """Cells as their genes' tokens, from the largest count over the gene's median to the smallest.

    Parameters
    ----------
    dictionaries
        From `read_dictionaries`.
    input_size
        Tokens that the model reads at most, special ones included; later genes are dropped.

    Notes
    -----
    A value is count / total of the cell × 10,000 / median of the gene. Equal values keep the order of their tokens,
    so that a cell's tokens do not depend on the sorting algorithm.
    """

    def __init__(self, dataset: Dataset, dictionaries: dict[str, dict], input_size: int):
        from scipy import sparse

        self.tokens, medians, names = (dictionaries[kind] for kind in ("token", "median", "name"))

        def token_of(gene: str) -> int | None:
            accession = gene if gene in medians else names.get(gene)
            known = accession in medians and accession in self.tokens
            return int(self.tokens[accession]) if known else None

        adata, counts = read_counts(dataset, "geneformer")
        gather, genes = match_genes(list(map(str, adata.var_names)), token_of, "geneformer")
        self.n_known = int(gather.sum())
        accession = inverse({name: token for name, token in self.tokens.items() if name in medians})
        total = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
        median = np.array([float(medians[accession[token]]) for token in genes])
        self._genes = genes
        self._values = sparse.csr_matrix((counts @ gather).astype(np.float64))
        row = np.repeat(np.arange(self._values.shape[0]), np.diff(self._values.indptr))
        # In the authors' order of operations, so that rounding ranks as theirs does.
        self._values.data = self._values.data / total[row] * TARGET_SUM / median[self._values.indices]
        self._values.eliminate_zeros()
        self._values.sort_indices()
        self.special = "<cls>" in self.tokens and "<eos>" in self.tokens
        self._symbol = {accession: symbol for symbol, accession in names.items()}
        self._accession = accession
        most = input_size - 2 * self.special
        kept = np.diff(self._values.indptr)
        nonempty(kept, dataset, "geneformer")
        self.truncated = int((kept > most).sum())
        self._kept = np.minimum(kept, most)

    def ranked(self, cell: int) -> np.ndarray:
        """Tokens of a cell's genes, without special ones."""
        low, high = self._values.indptr[cell : cell + 2]
        order = np.argsort(-self._values.data[low:high], kind="stable")[: self._kept[cell]]
        return self._genes[self._values.indices[low:high][order]]

    def encode(self, cell: int) -> tuple[np.ndarray]:
        """Tokens of a cell, int64."""
        genes = self.ranked(cell)
        if self.special:
            genes = np.concatenate([[self.tokens["<cls>"]], genes, [self.tokens["<eos>"]]])
        return (genes.astype(np.int64),)

    def symbols(self, cell: int) -> list[str]:
        """Names of a cell's genes in their order: symbols, or accessions where there is none."""
        accessions = [self._accession[token] for token in self.ranked(cell)]
        return [self._symbol.get(name, name) for name in accessions]

    def sequences(self) -> Sequences:
        """All cells."""
        ends = int(self.special)
        return Sequences((self._kept + 2 * ends).tolist(), self.encode, (self.tokens["<pad>"],), (ends, ends))


def stack_of(model: torch.nn.Module) -> Stack:
    """Where activations are taken; BERT normalises after each residual sum."""
    blocks = list(model.encoder.layer)
    return Stack(
        blocks=blocks,
        attention=[block.attention.output.dense for block in blocks],
        feed_forward=[block.output.dense for block in blocks],
    )


def embed(config: Geneformer, dataset: Dataset, *, threads: int, weights: Path | None) -> Embedding:
    """Run the encoder over every cell; layer 0 is the embedding, i the output of block i.

    The authors take the last layer but one for embeddings, and the mean over genes.

    Raises
    ------
    ConfigError
        The layer does not exist, no weights are declared, or `pool: cls` of a model without a class token.
    SourceError
        Files of the checkpoint are missing or unreadable, or are of another model.
    DataError
        The data set is not of cells, has no raw counts, or no gene of the model's.
    """
    from transformers import BertModel

    folder = find_folder(config, weights, ["*config.json", "*.pkl"])
    if config.subfolder is not None:
        folder = folder / config.subfolder
    dictionaries, files = read_dictionaries(Path(config.dictionaries) if config.dictionaries else folder)
    with torch_threads(threads):
        model = load_pretrained(BertModel, folder, "geneformer", ["bert"], add_pooling_layer=False)
    if model.config.vocab_size < max(map(int, dictionaries["token"].values())) + 1:
        raise SourceError(
            f"{files[0]} has tokens beyond the {model.config.vocab_size} of the model: they are of different versions"
        )
    cells = Ranked(dataset, dictionaries, model.config.max_position_embeddings)
    if config.pool == "cls" and not cells.special:
        raise ConfigError("model 'geneformer': this version has no class token: take 'pool: mean'")
    total = len(model.encoder.layer)
    layers = chosen_layers(config, total)
    model.encoder.layer = model.encoder.layer[: blocks_needed(layers, config.site, total)]
    told = [
        pool_note(config, "special tokens dropped" if cells.special else "this version has no special tokens"),
        f"{cells.n_known} genes of the data set are in the vocabulary",
    ]
    if cells.truncated:
        told.append(f"{cells.truncated} cells have more genes than the model reads: the lowest were dropped")
    card = checkpoint_card(config, folder, layers, total, told, files=[*weight_files(folder), *files])
    sequences = cells.sequences()
    batches = tapped_batches(
        sequences,
        lambda inputs, mask: model(input_ids=inputs[0], attention_mask=mask.long()),
        stack_of(model),
        layers,
        config,
        threads,
    )
    obs = gene_obs(dataset, sequences.rows("tokens"), cells.symbols) if config.pool == "tokens" else None
    return Embedding(batches(0), card, obs=obs, also=tuple(layers[1:]), from_row=batches)
