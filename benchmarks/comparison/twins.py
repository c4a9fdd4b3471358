"""The same networks in torch, with flax's names, so that weights and vectors can be carried over."""

from __future__ import annotations

import math
import os

import numpy as np
import torch
from torch import nn
from torch.nn import functional

THREADS = len(os.sched_getaffinity(0))
torch.set_num_threads(THREADS)


class MLP(nn.Module):
    """`curvcli.zoo:MLP` with tanh."""

    def __init__(self, inputs: int, features: list[int], activation: str = "tanh") -> None:
        super().__init__()
        assert activation == "tanh"
        for index, width in enumerate(features):
            self.add_module(f"Dense_{index}", nn.Linear(inputs, width))
            inputs = width
        self.depth = len(features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for index in range(self.depth - 1):
            x = torch.tanh(getattr(self, f"Dense_{index}")(x))
        return getattr(self, f"Dense_{self.depth - 1}")(x)


class LeNet(nn.Module):
    """`networks.py:LeNet`; images come as [b, height, width, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv_0, self.Conv_1 = nn.Conv2d(1, 16, 5, padding=2), nn.Conv2d(16, 32, 5, padding=2)
        self.Dense_0, self.Dense_1, self.Dense_2 = nn.Linear(512, 512), nn.Linear(512, 128), nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.permute(0, 3, 1, 2)
        for convolution in (self.Conv_0, self.Conv_1):
            x = functional.max_pool2d(functional.relu(convolution(x)), 2)
        x = x.permute(0, 2, 3, 1).flatten(1)
        x = functional.relu(self.Dense_0(x))
        return self.Dense_2(functional.relu(self.Dense_1(x)))


class Attention(nn.Module):
    """`curvcli.zoo:CausalSelfAttention`."""

    def __init__(self, width: int, heads: int, length: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.projection = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.register_buffer("future", torch.ones(length, length, dtype=torch.bool).triu(1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, length, width = x.shape
        q, k, v = self.qkv(x).reshape(b, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-1, -2)) / math.sqrt(width // self.heads)
        weights = torch.softmax(scores.masked_fill(self.future, -math.inf), -1)
        return self.projection((weights @ v).transpose(1, 2).reshape(b, length, width))


class CharTransformer(nn.Module):
    """`curvcli.zoo:CharTransformer` with its tokens as rows: ids `[b, T] -> [b·T, vocabulary]`."""

    def __init__(self, vocabulary: int, length: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        for index in range(layers):
            self.add_module(f"CausalSelfAttention_{index}", Attention(width, heads, length))
            self.add_module(f"Dense_{2 * index}", nn.Linear(width, 4 * width))
            self.add_module(f"Dense_{2 * index + 1}", nn.Linear(4 * width, width))
        for index in range(2 * layers + 1):
            self.add_module(f"LayerNorm_{index}", nn.LayerNorm(width, eps=1e-6))
        self.logits, self.layers = nn.Linear(width, vocabulary), layers

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        module = self.get_submodule
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        for index in range(self.layers):
            x = x + module(f"CausalSelfAttention_{index}")(module(f"LayerNorm_{2 * index}")(x))
            hidden = module(f"Dense_{2 * index}")(module(f"LayerNorm_{2 * index + 1}")(x))
            x = x + module(f"Dense_{2 * index + 1}")(functional.gelu(hidden, approximate="tanh"))
        return self.logits(module(f"LayerNorm_{2 * self.layers}")(x)).flatten(0, 1)


class Twin:
    """A network with a workload's weights, its data as tensors, and vectors to and from curv's order.

    Parameters
    ----------
    target, kwargs
        The network, as in curv.toml.
    params, x, y
        Weights by path, inputs and labels; tokens become rows.
    """

    def __init__(self, target: str, kwargs: dict, params: dict, x: np.ndarray, y: np.ndarray) -> None:
        name = target.rpartition(":")[2]
        if name == "MLP":
            kwargs = {"inputs": x.shape[1], **kwargs}
        self.model = {"MLP": MLP, "LeNet": LeNet, "CharTransformer": CharTransformer}[name](**kwargs)
        self.x = torch.from_numpy(x.astype(np.int64) if np.issubdtype(x.dtype, np.integer) else x)
        self.y = torch.from_numpy(y.astype(np.int64)).reshape(-1)
        self.criterion = nn.CrossEntropyLoss()
        self.params = list(self.model.parameters())
        self.dim = sum(one.numel() for one in self.params)
        kinds = dict(self.model.named_modules())
        self.leaves = []
        """Path, shape and order of axes of each parameter, in torch's order."""
        for full, tensor in self.model.named_parameters():
            owner, _, leaf = full.rpartition(".")
            kind, axes = kinds[owner], tuple(range(tensor.ndim))
            if leaf == "weight":
                leaf = {nn.Embedding: "embedding", nn.LayerNorm: "scale"}.get(type(kind), "kernel")
                axes = {nn.Linear: (1, 0), nn.Conv2d: (2, 3, 1, 0)}.get(type(kind), axes)
            path = f"{owner.replace('.', '/')}/{leaf}"
            self.leaves.append((path, tuple(tensor.shape), axes))
            with torch.no_grad():
                tensor.copy_(torch.from_numpy(np.transpose(params[path], np.argsort(axes)).copy()))
        assert {path for path, _, _ in self.leaves} == set(params)

    def loss(self) -> torch.Tensor:
        """J."""
        return self.criterion(self.model(self.x), self.y)

    def gradient(self) -> tuple[torch.Tensor, ...]:
        """∇J."""
        return torch.autograd.grad(self.loss(), self.params)

    def to_curv(self, vector: np.ndarray) -> np.ndarray:
        """A flat vector in torch's order in the order of curv: paths sorted."""
        pieces, start = {}, 0
        for path, shape, axes in self.leaves:
            size = math.prod(shape)
            pieces[path] = np.transpose(vector[start : start + size].reshape(shape), axes).reshape(-1)
            start += size
        return np.concatenate([pieces[path] for path in sorted(pieces)])

    def from_curv(self, vector: np.ndarray) -> np.ndarray:
        """The inverse of `to_curv`."""
        order = self.to_curv(np.arange(self.dim))
        found = np.empty_like(vector)
        found[order] = vector
        return found

    def split(self, vector: torch.Tensor) -> list[torch.Tensor]:
        """A flat vector as tensors of the parameters' shapes."""
        parts = vector.split([one.numel() for one in self.params])
        return [part.reshape(one.shape) for part, one in zip(parts, self.params, strict=True)]
