"""A decoder of 30 million parameters by the command line, each answer beside JAX's own: `python benchmarks/decoder.py`.

32 sequences of different lengths, a loss a token: the spectrum with 2 probes of 20 steps, the trace, and influences of
labels on a block of layers. Every command runs in a process of its own; its seconds and peak of memory are printed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import scipy.linalg
from jax.flatten_util import ravel_pytree

from curvcli.zoo import CharTransformer

SIZES = {"vocabulary": 16_384, "length": 64, "width": 512, "layers": 4, "heads": 8}
SEQUENCES, TRAINING, DAMPING = 32, 20, 3e-2
BLOCK = "CausalSelfAttention_3"
"""One million of the parameters."""

SPEC = """
[model]
target = "curvcli.zoo:CharTransformer"
kind = "linen"
kwargs = {{ {kwargs} }}

[checkpoint]
path = "checkpoint"
params = "params"

[data]
path = "data.npz"
inputs = "x"
targets = "y"
mask = "mask"

[loss]
name = "softmax_cross_entropy"
reduction = "tokens"
"""


def main() -> None:
    """Train, ask, compare; an answer that is off is an AssertionError."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        decoder = Decoder(Path(folder))
        print(f"{decoder.size:,} parameters, trained in {time.perf_counter() - start:.0f} s", flush=True)
        for part in (spectrum, trace, influence):
            part(decoder)
    print(f"all of it: {time.perf_counter() - start:.0f} s")


def spectrum(decoder: Decoder) -> None:
    """The largest eigenvalue beside that of a plain Lanczos process of JAX's products."""
    found = decoder.run("spectrum", "--probes", "2", "--steps", "20")["result"]
    flat, whole = ravel_pytree(decoder.params)
    product = decoder.hessian(whole)
    expected = lanczos(lambda v: product(flat, v), flat.size, steps=12)
    compared("lambda_max", found["lambda_max"]["value"], expected, within=0.01)


def trace(decoder: Decoder) -> None:
    """The trace of a block beside Hutchinson's estimate by JAX's products."""
    decoder.run("trace", "--probes", "16")
    found = decoder.run("trace", "--params", f"{BLOCK}/*", "--probes", "48")["result"]["trace"]
    flat, whole = decoder.block()
    product, rng = decoder.hessian(whole), np.random.default_rng(1)
    signs = [jnp.asarray(rng.choice([-1.0, 1.0], flat.size), "float32") for _ in range(24)]
    samples = [float(v @ product(flat, v)) for v in signs]
    error = np.std(samples, ddof=1) / np.sqrt(len(samples))
    half = (found["interval"][1] - found["interval"][0]) / 4  # two standard errors to a side
    compared("trace", found["value"], np.mean(samples), within=4 * np.hypot(error, half) / abs(np.mean(samples)))


def influence(decoder: Decoder) -> None:
    """Influences of labels beside (G + λI)⁻¹ by a plain conjugate gradient method, and one derivative along it."""
    scores = decoder.folder / "scores.npz"
    options = ("--damping", str(DAMPING), "--queries", "0:1", "--label-perturb", "--tol", "1e-4")
    decoder.run("influence", "--params", f"{BLOCK}/*", *options, "--scores", str(scores))
    stored = np.load(scores)
    found = max((stored[name] for name in stored.files), key=np.size)  # of the one query, for every label
    flat, whole = decoder.block()
    x, y, mask = decoder.data
    tokens = mask.sum()

    def query(vector: Any, x: Any, y: Any, mask: Any) -> Any:
        losses = optax.softmax_cross_entropy_with_integer_labels(decoder.outputs(whole(vector), x), y)
        return jnp.sum(losses * mask)

    @jax.jit
    def product(vector: Any, x: Any, mask: Any) -> Any:
        z, forward = jax.linearize(lambda p: decoder.outputs(whole(p), x), flat)
        dz, p = forward(vector), jax.nn.softmax(z)
        inner = mask[..., None] * p * (dz - jnp.sum(p * dz, axis=-1, keepdims=True)) / tokens
        return jax.linear_transpose(forward, flat)(inner)[0] + DAMPING * vector

    slope = jax.grad(query)(flat, x[:1], y[:1], mask[:1])
    solution, _ = jax.scipy.sparse.linalg.cg(lambda v: product(v, x, mask), slope, tol=1e-5, maxiter=300)
    _, expected = jax.jvp(lambda p: decoder.outputs(whole(p), x), (flat,), (solution,))
    expected = np.asarray(expected * mask[..., None] / tokens)
    off = np.linalg.norm(found.reshape(expected.shape) - expected) / np.linalg.norm(expected)
    print(f"  influences of {found.size:,} labels: off by {off:.1e}", flush=True)
    assert off < 1e-2


def compared(name: str, found: float, expected: float, within: float) -> None:
    """Print both; relative difference."""
    print(f"  {name}: curv {found:.6g}, JAX {expected:.6g}, allowed ±{within:.1%}", flush=True)
    assert abs(found - expected) <= within * abs(expected)


def lanczos(product: Callable[[Any], Any], dim: int, steps: int) -> float:
    """The largest Ritz value, all vectors orthogonalised."""
    v = np.random.default_rng(2).normal(size=dim).astype(np.float32)
    basis, diagonal, beside = [v / np.linalg.norm(v)], [], []
    for _ in range(steps):
        image = np.asarray(product(jnp.asarray(basis[-1])))
        diagonal.append(float(basis[-1] @ image))
        for one in [*basis, *basis]:
            image = image - (one @ image) * one
        beside.append(float(np.linalg.norm(image)))
        basis.append(image / beside[-1])
    return float(scipy.linalg.eigh_tridiagonal(diagonal, beside[:-1])[0][-1])


class Decoder:
    """The network, briefly trained, its files in a folder, and its objective by JAX alone."""

    def __init__(self, folder: Path) -> None:
        rng, vocabulary, length = np.random.default_rng(0), SIZES["vocabulary"], SIZES["length"]
        self.folder, self.model = folder, CharTransformer(**SIZES)
        # Frequent and rare words, as in a text; sequences of different lengths, one of them masked as a whole.
        words = np.minimum(rng.zipf(1.3, (SEQUENCES, length + 1)) - 1, vocabulary - 1).astype(np.int32)
        mask = (np.arange(length) < rng.integers(length // 4, length + 1, (SEQUENCES, 1))).astype(np.float32)
        mask[-1] = 0
        self.data = words[:, :-1], words[:, 1:], mask
        params = self.model.init(jax.random.key(0), words[:1, :-1])["params"]
        method = optax.adam(1e-3)

        @jax.jit
        def step(params: Any, state: Any, *data: Any) -> Any:
            change, state = method.update(jax.grad(self.objective)(params, *data), state)
            return optax.apply_updates(params, change), state

        state = method.init(params)
        for _ in range(TRAINING):
            params, state = step(params, state, *self.data)
        self.params = params
        self.size = sum(leaf.size for leaf in jax.tree.leaves(params))
        with ocp.StandardCheckpointer() as writer:
            writer.save(folder / "checkpoint", {"params": params})
        np.savez(folder / "data.npz", **dict(zip(("x", "y", "mask"), self.data, strict=True)))
        (folder / "curv.toml").write_text(SPEC.format(kwargs=", ".join(f"{k} = {v}" for k, v in SIZES.items())))

    def outputs(self, params: Any, x: Any) -> Any:
        """Logits [b, T, V]."""
        return self.model.apply({"params": params}, x)

    def objective(self, params: Any, x: Any, y: Any, mask: Any) -> Any:
        """The mean loss of a token."""
        losses = optax.softmax_cross_entropy_with_integer_labels(self.outputs(params, x), y)
        return jnp.sum(losses * mask) / self.data[2].sum()

    def block(self) -> tuple[Any, Callable[[Any], Any]]:
        """The block's parameters in one vector, and all parameters with such a vector in their place."""
        flat, unravel = ravel_pytree(self.params[BLOCK])
        return flat, lambda vector: {**self.params, BLOCK: unravel(vector)}

    def hessian(self, whole: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
        """Products with the Hessian of the objective as a function of a vector, four sequences at a time."""

        @jax.jit
        def piece(flat: Any, vector: Any, *data: Any) -> Any:
            return jax.jvp(jax.grad(lambda p: self.objective(whole(p), *data)), (flat,), (vector,))[1]

        def product(flat: Any, vector: Any) -> Any:
            parts = (piece(flat, vector, *(one[i : i + 4] for one in self.data)) for i in range(0, SEQUENCES, 4))
            return sum(parts)

        return product

    def run(self, command: str, *options: str) -> Any:
        """The report of a command; what it took is printed."""
        report, start = self.folder / f"{command}.json", time.perf_counter()
        spec = str(self.folder / "curv.toml")
        asked = ["-m", "curvcli", command, "--spec", spec, "-q", "--no-cache", "-o", str(report), *options]
        running, peak = subprocess.Popen([sys.executable, *asked]), 0
        while (code := running.poll()) is None:
            time.sleep(0.1)
            # Not ru_maxrss: in a process that a larger one starts, it begins at that one's size.
            status = Path(f"/proc/{running.pid}/status").read_text()
            peak = max([peak, *(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))])
        seconds = time.perf_counter() - start
        shown = " ".join(options).replace(str(self.folder), ".")
        if not report.exists():
            raise SystemExit(f"curv {command} {shown}: exit code {code}")
        found = json.loads(report.read_text())
        cost = {key: found["cost"][key] for key in ("products", "forms", "way") if key in found["cost"]}
        print(f"curv {command} {shown}: {seconds:.0f} s, peak {peak / 1e6:.1f} GB, exit {code}, {cost}")
        print("  ", *found["warnings"], sep="\n    ", flush=True)
        return found


if __name__ == "__main__":
    main()
