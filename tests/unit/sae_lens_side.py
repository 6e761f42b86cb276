"""What the test of the interchange has sae-lens do, in sae-lens's environment: `python sae_lens_side.py FOLDER`.

Saves an autoencoder of its own with random parameters in FOLDER/saved/ARCHITECTURE, for each of FOLDER/saved.json; then
loads every folder of FOLDER/saved and FOLDER/exported, and writes its codes and reconstruction of FOLDER/rows.npy
beside it.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from sae_lens import SAE
from sae_lens.registry import get_sae_class


def save(folder, architecture, options):
    kind, config = get_sae_class(architecture)
    torch.manual_seed(0)
    sae = kind(config(**options))
    for name, value in sae.named_parameters():
        value.data = torch.rand_like(value) + 0.1 if name == "threshold" else 0.5 * torch.randn_like(value)
    if architecture == "matching_pursuit":
        sae.W_dec.data /= sae.W_dec.data.norm(dim=1, keepdim=True)
    sae.save_model(folder / architecture)


def encode(folder, X):
    sae = SAE.load_from_disk(folder)
    with torch.no_grad():
        codes = sae.encode(torch.from_numpy(X))
        out = {"codes": codes.numpy(), "reconstruction": sae.decode(codes).numpy(), "kind": type(sae).__name__}
        np.savez(folder.with_suffix(".npz"), **out)


if __name__ == "__main__":
    base = Path(sys.argv[1])
    for architecture, options in json.loads((base / "saved.json").read_text()).items():
        save(base / "saved", architecture, options)
    for folder in sorted(path for path in base.glob("*/*") if path.is_dir()):
        encode(folder, np.load(base / "rows.npy"))
