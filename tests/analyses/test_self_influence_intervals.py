"""Intervals of sampled self-influence, by how often they cover."""

from __future__ import annotations

import numpy as np
import pytest

from curvcli.analyses.influence.self_influence import sampled_interval


@pytest.mark.parametrize("samples", [3, 8, 64])
@pytest.mark.parametrize("correlation", [1.0, 0.7, 0.0])
def test_products_of_normal_variables(samples: int, correlation: float) -> None:
    """Of squares (removals) as often as they say; ± 1.96 standard errors hold the truth of 3 samples in 0.68."""
    random, runs = np.random.default_rng(0), 1500
    x = random.normal(size=(runs, samples))
    y = correlation * x + (1 - correlation**2) ** 0.5 * random.normal(size=x.shape)
    means, errors = (x * y).mean(axis=1), (x * y).std(axis=1, ddof=1) / samples**0.5
    ends = [
        sampled_interval(float(mean), float(error), samples, 0.95, squares=correlation == 1)
        for mean, error in zip(means, errors, strict=True)
    ]
    held = np.mean([low <= correlation <= high for low, high in ends])
    assert held >= 0.93
    assert all(low <= mean <= high for (low, high), mean in zip(ends, means, strict=True))
    if correlation == 1:
        assert held <= 0.965
        assert np.mean(np.abs(means - 1) <= 1.96 * errors) < 0.93
