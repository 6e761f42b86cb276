"""The training step of a TopK autoencoder on a GPU: that of `topk.KernelTrainer` on the Triton kernels.

Parameters and moments live on the GPU; the arrays of the optimiser are copies of them that `state` brings up to date.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from conceptome.dictionaries.training import Adam
from conceptome.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from conceptome.config.dictionaries import TopK as Options
    from conceptome_kernels.gpu.training import Moved, Part
    from conceptome_kernels.training import Rates

LEARNED = ("atoms", "encoder", "encoder_bias")


def check_device(device: str) -> None:
    """See whether training can run there.

    Raises
    ------
    ConfigError
        It cannot; the message says what is missing.
    """
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device '{device}' is not there ({reason}): use device='cpu'") from None
    try:
        from conceptome_kernels.gpu import launch
    except ImportError as error:
        raise ConfigError(f"device '{device}' needs Triton, which cannot be imported ({error})") from None
    if torch.device(device).type == "cpu" and not launch.INTERPRETED:
        raise ConfigError("Triton's kernels run on the CPU only in its interpreter: set TRITON_INTERPRET=1")


class GpuTrainer:
    """The step on a GPU; the same bytes each time, but not those of the CPU.

    Parameters
    ----------
    parameters
        atoms, encoder, encoder_bias, bias as float32 arrays.
    device
        As torch names it; "cpu" only where Triton interprets.
    """

    def __init__(self, parameters: dict[str, np.ndarray], options: Options, device: str):
        import torch

        from conceptome_kernels.gpu.topk import pack

        check_device(device)
        self.options, self.device = options, torch.device(device)
        self.m, d = parameters["atoms"].shape
        self.variance = float(d)
        self.parameters = parameters
        self.optimiser = Adam(parameters, epsilon=6.25e-10)
        self._on_device = {name: self._moved(name) for name in parameters}
        self._packed = pack(self._on_device["encoder"].value)

    def _moved(self, name: str) -> Moved:
        import torch

        from conceptome_kernels.gpu.training import Moved

        arrays = (self.parameters[name], *self.optimiser.moments[name])
        return Moved(*(torch.tensor(array, device=self.device) for array in arrays))

    def state(self) -> dict[str, np.ndarray]:
        """Bring the optimiser's arrays up to date; there is nothing beyond them."""
        for name, moved in self._on_device.items():
            arrays = (self.parameters[name], *self.optimiser.moments[name])
            for array, tensor in zip(arrays, (moved.value, moved.first, moved.second)):
                array[...] = tensor.cpu().numpy()
        return {}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Take the optimiser's arrays, which were changed in place."""
        from conceptome_kernels.gpu.topk import pack

        self._on_device = {name: self._moved(name) for name in self.parameters}
        pack(self._on_device["encoder"].value, out=self._packed)

    def step(self, x: np.ndarray, dead: np.ndarray, number: int) -> tuple[float, np.ndarray]:
        """As `training.Trainer` says."""
        import torch

        from conceptome_kernels.gpu.sparse import column_sums
        from conceptome_kernels.gpu.topk import encode_topk
        from conceptome_kernels.gpu.training import update
        from conceptome_kernels.training import Rates

        options, moved = self.options, self._on_device
        encoder, encoder_bias, bias = (moved[name].value for name in ("encoder", "encoder_bias", "bias"))
        if not (torch.isfinite(encoder_bias).all() and torch.isfinite(bias).all()):
            raise FloatingPointError("the biases are not finite")
        X = torch.from_numpy(np.ascontiguousarray(x)).to(self.device)
        codes = encode_topk(X, encoder, encoder_bias, bias, options.k, packed=self._packed)
        size = len(x) * self.variance
        main, squares = self._part(X, *codes, bias, -2 / size)
        residual, squared = main.error, float(squares.sum())
        aux = None
        if options.aux_coefficient > 0 and dead.any() and squared > 0:
            columns = torch.from_numpy(np.flatnonzero(dead)).to(self.device)
            k = min(options.k_aux, len(columns))
            indices, values = encode_topk(X, encoder[columns], encoder_bias[columns], bias, k)
            indices = columns[indices.long()].to(torch.int32)
            # The residual is the target and carries no gradient of its own.
            scale = -2 * options.aux_coefficient / squared
            aux, _ = self._part(residual, indices, values, torch.zeros_like(bias), scale)
        step, root = self.optimiser.advance()
        # The kernel leaves the root out of √second / root + epsilon: both sides of the fraction are multiplied by it.
        rates = Rates(*self.optimiser.betas, step * root, self.optimiser.epsilon * root)
        in_bias = update(main, aux, X - bias, *(moved[name] for name in LEARNED), self._packed, rates)
        in_bias += main.scale * column_sums(residual)
        self._move_bias(in_bias.float(), rates)
        return squared / size, main.codes.offsets.diff().cpu().numpy()

    def _part(
        self, X: torch.Tensor, indices: torch.Tensor, values: torch.Tensor, bias: torch.Tensor, scale: float
    ) -> tuple[Part, torch.Tensor]:
        """One term of the loss, whose gradient in z·D is scale · (X − b − z·D); and the rows' squared residuals."""
        from conceptome_kernels.gpu.sparse import by_atom, decode_residual
        from conceptome_kernels.gpu.training import Part

        atoms = self._on_device["atoms"].value
        error, squares, gradient = decode_residual(X, indices, values, atoms, bias, scale=scale)
        return Part(by_atom(indices, values, gradient, self.m), error, scale), squares

    def _move_bias(self, gradient: torch.Tensor, rates: Rates) -> None:
        """Adam on b, which no atom owns."""
        bias = self._on_device["bias"]
        bias.first.lerp_(gradient, 1 - rates.keep_first)
        bias.second.mul_(rates.keep_second).add_(gradient.square(), alpha=1 - rates.keep_second)
        bias.value.sub_(rates.size * bias.first / (bias.second.sqrt() + rates.epsilon))
