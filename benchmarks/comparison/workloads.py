"""The networks, weights and data of the comparison, written as files that curv and the torch twins both read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
DIGITS = HERE.parent.parent / "sample_models" / "digits_mlp.ckpt"
Data = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Workload:
    """A network and its data.

    Parameters
    ----------
    title
        For people.
    target, kwargs
        The network, as in curv.toml.
    data
        Makes inputs and labels.
    density
        Probes and steps of the density's comparison.
    heavy
        Seconds a product, not milliseconds: fewer repeats.
    kind
        `mlp`, `conv` or `transformer`.
    checkpoint
        Trained weights; None: drawn at random, by the seed.
    scale
        Of the random weights.
    small
        A workload of the same kind on which agreement is seen where this one is too large for it.
    apart
        Layers whose outputs no later layer mixes over tokens: on others curvlinops' exact factors let the outputs of
        different tokens interfere. Empty: all layers.
    """

    title: str
    target: str
    data: Callable[[], Data]
    kind: str
    density: tuple[int, int] = (10, 80)
    heavy: bool = False
    kwargs: dict[str, Any] = field(default_factory=dict)
    checkpoint: Path | None = None
    scale: float = 1.0
    small: str | None = None
    apart: tuple[str, ...] = ()


def _digits() -> Data:
    data = np.load(DIGITS / "digits.npz")
    return data["x"].astype(np.float32), data["y"].astype(np.int32)


def _classes(count: int, shape: tuple[int, ...], spread: float = 0.5) -> Callable[[], Data]:
    """Gaussian inputs around ten random means (none where `spread` is 0)."""

    def make() -> Data:
        random = np.random.default_rng(0)
        means = spread * random.normal(size=(10, *shape))
        labels = random.integers(0, 10, count)
        return (means[labels] + random.normal(size=(count, *shape))).astype(np.float32), labels.astype(np.int32)

    return make


def _sequences(count: int, length: int, vocabulary: int) -> Callable[[], Data]:
    def make() -> Data:
        ids = np.random.default_rng(0).integers(0, vocabulary, (count, length + 1)).astype(np.int32)
        return ids[:, :-1], ids[:, 1:]

    return make


WORKLOADS: dict[str, Workload] = {
    "W1": Workload(
        "64-128-128-10 tanh MLP, 1,797 digits, trained", "curvcli.zoo:MLP", _digits, "mlp",
        kwargs={"features": [128, 128, 10], "activation": "tanh"}, checkpoint=DIGITS,
    ),
    "W2": Workload(
        "conv net 5×5 1→16→32, 512-512-128-10, 2,048 images of 16×16", f"{HERE / 'networks.py'}:LeNet",
        _classes(2048, (16, 16, 1)), "conv",
    ),
    "W3": Workload(
        "decoder, 4 layers of width 256, 8 heads, vocabulary 512, 32 sequences of 128", "curvcli.zoo:CharTransformer",
        _sequences(32, 128, 512), "transformer", density=(2, 20), heavy=True, small="decoder",
        kwargs={"vocabulary": 512, "length": 128, "width": 256, "layers": 4, "heads": 8},
    ),
    "W4": Workload(
        "784-2048-2048-2048-10 tanh MLP, 4,096 inputs", "curvcli.zoo:MLP", _classes(4096, (784,)), "mlp",
        density=(2, 40), heavy=True, kwargs={"features": [2048, 2048, 2048, 10], "activation": "tanh"},
    ),
    "decoder": Workload(
        "W3's decoder, 2 layers of width 16, vocabulary 11, 4 sequences of 8", "curvcli.zoo:CharTransformer",
        _sequences(4, 8, 11), "transformer",
        kwargs={"vocabulary": 11, "length": 8, "width": 16, "layers": 2, "heads": 2},
        apart=("CausalSelfAttention_1/projection", "Dense_2", "Dense_3", "logits"),
    ),
    "words": Workload(
        "decoder, 2 layers of width 64, vocabulary 50,000, 8 sequences of 128", "curvcli.zoo:CharTransformer",
        _sequences(8, 128, 50_000), "transformer", heavy=True,
        kwargs={"vocabulary": 50_000, "length": 128, "width": 64, "layers": 2, "heads": 4},
    ),
    "flat": Workload(
        "untrained softmax regression 784-10 on 8,192 white inputs: a flat spectrum", "curvcli.zoo:MLP",
        _classes(8192, (784,), spread=0.0), "mlp", kwargs={"features": [10]}, scale=0.01,
    ),
}  # fmt: skip
"""By name; `flat` is for the trace alone, `decoder` for the agreement of factors, `words` for `vocabulary.py`."""

TOML = """
[model]
target = "{target}"
kind = "linen"
kwargs = {{ {kwargs} }}

[checkpoint]
path = "params.npz"

[data]
path = "data.npz"

[loss]
name = "softmax_cross_entropy"
reduction = "{reduction}"
"""


def write(name: str, folder: Path) -> Path:
    """The folder with curv.toml, params.npz and data.npz of one workload; made once."""
    path = folder / name
    if (path / "curv.toml").exists():
        return path
    path.mkdir(parents=True, exist_ok=True)
    workload = WORKLOADS[name]
    x, y = workload.data()
    np.savez(path / "data.npz", x=x, y=y)
    np.savez(path / "params.npz", **_weights(workload, x))
    toml = TOML.format(
        target=workload.target,
        kwargs=", ".join(f"{key} = {json.dumps(value)}" for key, value in workload.kwargs.items()),
        reduction="tokens" if y.ndim > 1 else "mean",
    )
    (path / "curv.toml").write_text(toml, encoding="utf-8")
    return path


def read(folder: Path) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Parameters by path, inputs and labels."""
    data = np.load(folder / "data.npz")
    params = np.load(folder / "params.npz")
    return {key: params[key] for key in params.files}, data["x"], data["y"]


def _weights(workload: Workload, x: np.ndarray) -> dict[str, np.ndarray]:
    """Trained weights, or random ones that keep the activations' size; biases and scales are not quite 0 and 1."""
    from . import ours

    if workload.checkpoint is not None:
        return ours.checkpoint_params(workload.checkpoint)
    random = np.random.default_rng(1)
    gain = 1.0 if workload.kind == "transformer" else 1.4
    params = {}
    for path, shape in ours.parameter_shapes(workload.target, workload.kwargs, x[:1]).items():
        noise = random.normal(size=shape)
        if path.endswith("scale"):
            leaf = 1 + 0.1 * noise
        elif path.endswith("kernel"):
            leaf = workload.scale * gain * noise / np.sqrt(np.prod(shape[:-1]))
        else:
            leaf = 0.1 * workload.scale * noise
        params[path] = leaf.astype(np.float32)
    return params
