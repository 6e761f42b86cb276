"""What the test of the interchange has sae-lens do, in sae-lens's environment.

`encode FOLDER X OUT` loads a folder and saves the codes and reconstruction of X; `save FOLDER ARCHITECTURE D M K` saves
an autoencoder of its own with random parameters.
"""

import sys

import numpy as np
import torch
from sae_lens import SAE
from sae_lens.registry import get_sae_class


def encode(folder, rows, out):
    sae = SAE.load_from_disk(folder)
    with torch.no_grad():
        codes = sae.encode(torch.from_numpy(np.load(rows)))
        np.savez(out, codes=codes.numpy(), reconstruction=sae.decode(codes).numpy(), kind=type(sae).__name__)


def save(folder, architecture, d, m, k):
    kind, options = get_sae_class(architecture)
    further = {
        "topk": {"k": int(k), "rescale_acts_by_decoder_norm": True},
        "matching_pursuit": {"max_iterations": int(k), "residual_threshold": 0.0, "stop_on_duplicate_support": False},
    }
    torch.manual_seed(0)
    sae = kind(options(d_in=int(d), d_sae=int(m), **further.get(architecture, {})))
    for name, value in sae.named_parameters():
        value.data = torch.rand_like(value) + 0.1 if name == "threshold" else 0.5 * torch.randn_like(value)
    if architecture == "matching_pursuit":
        sae.W_dec.data /= sae.W_dec.data.norm(dim=1, keepdim=True)
    sae.save_model(folder)


if __name__ == "__main__":
    {"encode": encode, "save": save}[sys.argv[1]](*sys.argv[2:])
