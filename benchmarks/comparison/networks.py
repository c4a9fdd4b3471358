"""The network of the convolutional workload, as a linen module."""

from __future__ import annotations

from typing import Any

import flax.linen as nn


class LeNet(nn.Module):
    """Two 5×5 convolutions with ReLU and 2×2 maxima, then 512-512-128-10: images `[b, 16, 16, 1] -> [b, 10]`."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        for channels in (16, 32):
            x = nn.relu(nn.Conv(channels, (5, 5))(x))
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = x.reshape(len(x), -1)
        for width in (512, 128):
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(10)(x)
