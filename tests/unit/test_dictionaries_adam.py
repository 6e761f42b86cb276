"""Adam against the reference implementation in torch."""

import numpy as np
import pytest
import torch
from planted import mixture

from conceptome.dictionaries import fit
from conceptome.dictionaries.training import Adam


@pytest.mark.parametrize("beta2", [0.999, 0.9])
def test_steps_are_those_of_torch(beta2):
    rng = np.random.default_rng(0)
    start = {name: rng.standard_normal(shape) for name, shape in {"a": (4, 3), "b": (5,)}.items()}
    ours = {name: value.copy() for name, value in start.items()}
    theirs = {name: torch.tensor(value).requires_grad_() for name, value in start.items()}
    adam = Adam(ours, epsilon=1e-6, betas=(0.9, beta2))
    reference = torch.optim.Adam(theirs.values(), eps=1e-6, betas=(0.9, beta2))
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


@pytest.mark.parametrize("method", ["topk", "batch_topk", "icfl"])
def test_adam_beta2_reaches_the_steps(method):
    """As a default it changes nothing; another one moves the atoms otherwise."""
    X, _ = mixture()
    budget = {"rounds": 2, "columns": 2} if method == "icfl" else {"k": 4}
    atoms = [
        fit(method, X, m=40, steps=20, batch_size=100, **budget, **options).atoms
        for options in ({}, {"adam_beta2": 0.999}, {"adam_beta2": 0.9})
    ]
    np.testing.assert_array_equal(atoms[0], atoms[1])
    assert (atoms[0] != atoms[2]).mean() > 0.9
