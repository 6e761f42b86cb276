"""What protein language models share: the data set they read, letters to tokens, rows of residues or of proteins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from conceptome.errors import DataError
from conceptome.models.base import Embedding
from conceptome.models.sequences import Sequences, tapped_batches

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from conceptome.config.models import Esm2, ProteinModel
    from conceptome.datasets import Dataset
    from conceptome.models.taps import Stack


@dataclass(frozen=True)
class Letters:
    """From amino-acid letters to tokens.

    Attributes
    ----------
    tokens
        Letter → token.
    before, after
        Special tokens at both ends.
    pad
        Token that fills up.
    """

    tokens: Mapping[str, int]
    before: Sequence[int]
    after: Sequence[int]
    pad: int

    def encode(self, name: str, sequence: str, model: str) -> np.ndarray:
        """Tokens of a sequence between its special ones, int64.

        Raises
        ------
        DataError
            A letter has no token, or the sequence is empty.
        """
        if not sequence:
            raise DataError(f"protein '{name}' has an empty sequence")
        found = [self.tokens.get(letter, -1) for letter in sequence]
        if -1 in found:
            first = found.index(-1)
            raise DataError(
                f"protein '{name}' has {found.count(-1)} letter(s) that the vocabulary of model '{model}' does not "
                f"know, first '{sequence[first]}' at position {first + 1}: drop the protein "
                "(dataset.non_standard_residues) or mend the sequence"
            )
        return np.array([*self.before, *found, *self.after], dtype=np.int64)


def read_proteins(dataset: Dataset, adapter: str) -> dict[str, str]:
    """Sequences of a data set of proteins, whose residues are its samples.

    Raises
    ------
    DataError
        The data set is not of proteins, or its obs and sequences disagree.
    """
    if dataset.card["modality"] != "proteins":
        raise DataError(f"model '{adapter}' reads protein sequences, but the data set is of {dataset.card['modality']}")
    sequences = dataset.sequences()
    check_residues(dataset, sequences)
    return sequences


def check_residues(dataset: Dataset, sequences: Mapping[str, str]) -> None:
    """Refuse obs that are not the residues of the sequences, protein by protein and position by position."""
    lengths = np.array([len(sequence) for sequence in sequences.values()], dtype=np.int64)
    obs = dataset.obs
    agree = len(obs) == lengths.sum()
    if agree:
        position = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths) + 1
        agree = bool(
            (obs["protein"].to_numpy() == np.repeat(np.array(list(sequences), dtype=object), lengths)).all()
            and (obs["position"].to_numpy() == position).all()
        )
    if not agree:
        raise DataError(
            f"the {len(obs)} rows of obs.parquet are not the {int(lengths.sum())} residues of sequences.fasta in "
            "order: prepare the data set again"
        )


def tokenised(sequences: Mapping[str, str], letters: Letters, adapter: str) -> Sequences:
    """Proteins as token sequences; every letter is looked at before the model is loaded."""
    tokens = [letters.encode(name, sequence, adapter) for name, sequence in sequences.items()]
    skip = len(letters.before), len(letters.after)
    return Sequences([len(t) for t in tokens], lambda index: (tokens[index],), (letters.pad,), skip)


def pooled_obs(dataset: Dataset, pool: str) -> pd.DataFrame | None:
    """One row per protein where activations are pooled: the columns that all residues of a protein agree in."""
    if pool == "tokens":
        return None
    obs = dataset.obs
    constant = [name for name in obs.columns if name not in ("position", "residue")]
    several = obs.groupby("protein", observed=True, sort=False)[constant].nunique(dropna=False).gt(1).any()
    kept = obs.drop_duplicates("protein")[[name for name in constant if not several[name]]]
    return kept.set_index(kept["protein"].astype(str).rename("sample_id"))


def notes(pool: str) -> list[str]:
    """What the activations are, for the card."""
    one = "one row per residue" if pool == "tokens" else "one row per protein: the mean of its residues"
    return [f"{one}; start and end tokens dropped"]


def embed_proteins(
    dataset: Dataset,
    config: ProteinModel | Esm2,
    model: torch.nn.Module,
    stack: Stack,
    layers: Sequence[int],
    sequences: Sequences,
    card: dict[str, Any],
    threads: int,
) -> Embedding:
    """Run an encoder of transformers' interface over tokenised proteins; activations at `layers`, the first one first.

    Parameters
    ----------
    model
        Takes input_ids and attention_mask, both (batch, longest) int64.
    """
    batches = tapped_batches(
        sequences,
        lambda inputs, mask: model(input_ids=inputs[0], attention_mask=mask.long()),
        stack,
        layers,
        config,
        threads,
    )
    return Embedding(batches(0), card, obs=pooled_obs(dataset, config.pool), also=tuple(layers[1:]), from_row=batches)
