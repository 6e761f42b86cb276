"""Conversions of published files to formats that load without executing code.

Each takes a file whose sha256 has been verified: that, and nothing else, is why the pickles among them are opened.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path


def torch_to_safetensors(published: Path, final: Path) -> None:
    """Convert a PyTorch checkpoint (`.bin`, read with weights_only=True) to safetensors, names and dtypes kept."""
    import torch
    from safetensors.torch import save_file

    state = torch.load(published, map_location="cpu", weights_only=True)
    # Clones: safetensors refuses tensors that share memory, and views would drag their whole storage along.
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}
    save_file(tensors, final, metadata={"format": "pt"})


def pickled_frame_to_csv(published: Path, final: Path) -> None:
    """Convert an xz-compressed pickled data frame to CSV (UTF-8, no index, shortest exact decimals)."""
    import pandas as pd

    pd.read_pickle(published, compression="xz").to_csv(final, index=False, lineterminator="\n")


def _domains(published: Path) -> list[dict[str, str]]:
    with open(published, encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle, delimiter="\t"))


def domains_to_fasta(published: Path, final: Path) -> None:
    """Write the sequences of a transmembrane-domain benchmark table (columns entry, sequence) as FASTA."""
    with open(final, "w", encoding="utf-8", newline="\n") as handle:
        for row in _domains(published):
            lines = [row["sequence"][start : start + 60] for start in range(0, len(row["sequence"]), 60)]
            handle.write(f">{row['entry']}\n" + "\n".join(lines) + "\n")


def domains_to_table(published: Path, final: Path) -> None:
    """Write the domains of a transmembrane-domain benchmark table as annotations.

    Columns protein, type, note, start, end; 1-based, inclusive. The membrane span is TRANSMEM; the ten residues on
    its N- and C-terminal side, as the table cuts them out, are REGION with the note juxtamembrane N or C.
    """
    with open(final, "w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(["protein", "type", "note", "start", "end"])
        for row in _domains(published):
            start, stop = int(row["tmd_start"]), int(row["tmd_stop"])
            before, after = len(row["jmd_n"]), len(row["jmd_c"])
            writer.writerow([row["entry"], "REGION", "juxtamembrane N", start - before, start - 1])
            writer.writerow([row["entry"], "TRANSMEM", "", start, stop])
            writer.writerow([row["entry"], "REGION", "juxtamembrane C", stop + 1, stop + after])


CONVERSIONS: dict[str, Callable[[Path, Path], None]] = {
    "torch_to_safetensors": torch_to_safetensors,
    "pickled_frame_to_csv": pickled_frame_to_csv,
    "domains_to_fasta": domains_to_fasta,
    "domains_to_table": domains_to_table,
}
