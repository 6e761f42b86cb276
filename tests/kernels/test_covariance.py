"""Streaming mean and scatter against float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import conceptome_kernels
from conceptome_kernels import loader, reference
from conceptome_kernels.covariance import covariance

pytestmark = pytest.mark.skipif(not conceptome_kernels.available(), reason="no compiled kernels here")
SETTINGS = settings(max_examples=40, deadline=None, derandomize=True)
VARIANTS = loader.supported()


@SETTINGS
@given(st.data())
def test_scatter_of_a_stream(data):
    rows = data.draw(st.lists(st.sampled_from([0, 1, 2, 7, 255, 256, 300]), min_size=1, max_size=3))
    d = data.draw(st.sampled_from([1, 2, 15, 16, 17, 40]))
    scale = data.draw(st.sampled_from([1.0, 1e12, 1e-12, 1e-30]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    X = (scale * (rng.standard_normal((sum(rows), d)) + data.draw(st.sampled_from([0, 100])))).astype(np.float32)
    half = data.draw(st.booleans())
    if half:
        stored = torch.from_numpy(X).bfloat16()
        X = stored.float().numpy()
        blocks = np.split(stored.view(torch.uint16).numpy(), np.cumsum(rows)[:-1])
    else:
        blocks = np.split(X, np.cumsum(rows)[:-1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(loader.VARIABLE, data.draw(st.sampled_from(VARIANTS)))
        n, mean, scatter = covariance(blocks, threads=1)
        again = covariance(blocks, threads=2)
    assert n == len(X)
    assert mean.tobytes() == again[1].tobytes()
    assert scatter.tobytes() == again[2].tobytes()
    if n:
        expected_mean, expected = reference.covariance(X.astype(np.float64))
        size = max(np.abs(X).max(), 1e-300)
        np.testing.assert_allclose(mean, expected_mean, rtol=1e-12, atol=1e-12 * size)
        spread = np.sqrt(np.diag(expected))
        assert (np.abs(scatter - expected) <= 1e-12 * (np.outer(spread, spread) + n * size**2 * 1e-3)).all()


def test_refusals():
    with pytest.raises(ValueError, match="at least one block"):
        covariance([])
    with pytest.raises(ValueError, match="block must have shape any × 2"):
        covariance([np.zeros((3, 2), np.float32), np.zeros((3, 1), np.float32)])
    with pytest.raises(TypeError, match="block must be float32"):
        covariance([np.zeros((3, 2))])
    for bad in (np.full((1, 2), np.inf, np.float32), np.full((1, 2), 0x7F80, np.uint16)):
        with pytest.raises(ValueError, match="block holds NaN or infinite"):
            covariance([bad])
