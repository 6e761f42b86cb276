"""Adam against the reference implementation in torch."""

import numpy as np
import torch

from conceptome.dictionaries.training import Adam


def test_steps_are_those_of_torch():
    rng = np.random.default_rng(0)
    start = {name: rng.standard_normal(shape) for name, shape in {"a": (4, 3), "b": (5,)}.items()}
    ours = {name: value.copy() for name, value in start.items()}
    theirs = {name: torch.tensor(value).requires_grad_() for name, value in start.items()}
    adam = Adam(ours, epsilon=1e-6)
    reference = torch.optim.Adam(theirs.values(), eps=1e-6)
    for number in range(20):
        gradients = {name: rng.standard_normal(value.shape) for name, value in start.items()}
        adam.learning_rate = reference.param_groups[0]["lr"] = 0.1 / (number + 1)
        for name, value in theirs.items():
            value.grad = torch.tensor(gradients[name])
        reference.step()
        adam.step(gradients)
    for name in start:
        assert (ours[name] != start[name]).all()
        np.testing.assert_allclose(ours[name], theirs[name].detach().numpy(), rtol=1e-12, atol=1e-12)
