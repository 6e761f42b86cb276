"""Adam against the reference implementation in torch."""

import numpy as np
import torch

from conceptome.dictionaries.training import Adam


def test_steps_are_those_of_torch():
    rng = np.random.default_rng(0)
    start = {name: torch.tensor(rng.standard_normal(shape)) for name, shape in {"a": (4, 3), "b": (5,)}.items()}
    ours = {name: value.clone() for name, value in start.items()}
    theirs = {name: value.clone().requires_grad_() for name, value in start.items()}
    adam = Adam(ours, epsilon=1e-6)
    reference = torch.optim.Adam(theirs.values(), eps=1e-6)
    for number in range(20):
        gradients = {name: torch.tensor(rng.standard_normal(value.shape)) for name, value in start.items()}
        adam.learning_rate = reference.param_groups[0]["lr"] = 0.1 / (number + 1)
        for name, value in theirs.items():
            value.grad = gradients[name]
        reference.step()
        adam.step(gradients)
    for name in start:
        assert not torch.equal(ours[name], start[name])
        torch.testing.assert_close(ours[name], theirs[name].detach(), rtol=1e-12, atol=1e-12)
