"""The Hessian of `digits_mlp.ckpt` by curv, by matfree and by curvlinops with ARPACK: `python benchmarks/peers.py`.

Same weights, data and loss in float64; the losses must agree to 1e-9 before anything else is compared. Needs
`benchmarks/requirements.txt`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import scipy.sparse.linalg
import torch

from curvcli.xla import guard_environment

guard_environment()

import jax
import jax.flatten_util
import jax.numpy as jnp
from curvlinops import HessianLinearOperator
from matfree import decomp

from curvcli.linalg.probes import sphere
from curvcli.loading.checkpoints.reading import load_checkpoint

SAMPLE = Path(__file__).resolve().parent.parent / "sample_models" / "digits_mlp.ckpt"
L2, PROBES, STEPS = 1e-4, 5, 40


def main() -> None:
    """Print losses, extremes and moments beside each other."""
    jax.config.update("jax_enable_x64", True)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), load_checkpoint(SAMPLE).tree["params"])
    data = np.load(SAMPLE / "digits.npz")
    x, y = data["x"].astype(float), data["y"]

    start = time.perf_counter()
    command = ["spectrum", str(SAMPLE), "--dtype", "float64", "--probes", str(PROBES), "--steps", str(STEPS)]
    done = subprocess.run([sys.executable, "-m", "curvcli", *command], capture_output=True, check=True)
    report, ours = json.loads(done.stdout), time.perf_counter() - start
    result = report["result"]

    objective, weights = jax_objective(params, x, y)
    operator, loss = torch_hessian(params, x, y)
    losses = {"curv": report["problem"]["loss_value"], "jax": float(objective(weights)), "torch": loss}
    print("loss", losses)
    assert max(losses.values()) - min(losses.values()) < 1e-9

    start = time.perf_counter()
    top = scipy.sparse.linalg.eigsh(operator, k=1, which="LA", tol=1e-8)[0][0]
    # The lowest eigenvalue is 1e-6 of the highest: ARPACK, whose tolerance is relative to the eigenvalue itself, would
    # not end; so it is asked for the highest of λ_max I − A.
    flipped = top * scipy.sparse.linalg.aslinearoperator(scipy.sparse.identity(operator.shape[0])) - operator
    bottom = top - scipy.sparse.linalg.eigsh(flipped, k=1, which="LA", ncv=60, tol=1e-5)[0][0]
    theirs = time.perf_counter() - start
    for name, value in (("lambda_max", top), ("lambda_min", bottom)):
        found = result[name]
        print(f"{name}: curv {found['value']:.10g} ± {found['residual']:.1g}, curvlinops + eigsh {value:.10g}")
        assert abs(found["value"] - value) <= (1e-6 if name == "lambda_max" else 1e-5) * top
    print(f"seconds: curv, whole process {ours:.1f}; eigsh alone, both ends {theirs:.1f}")

    product = jax.jit(lambda v: jax.jvp(jax.grad(objective), (weights,), (v,))[1])
    starts = sphere(jax.random.key(0), 0, PROBES, len(weights), "float64")
    for power in (1, 2, 3):
        moments = matfree_moments(product, starts, power)
        own = [float(np.dot(w, np.power(n, power))) for n, w in zip(result["nodes"], result["weights"], strict=True)]
        difference = np.max(np.abs(np.subtract(own, moments)) / np.abs(moments))
        print(f"moment {power}: curv {np.mean(own):.12g}, matfree {np.mean(moments):.12g}, difference {difference:.1g}")
        assert difference < 1e-8


def matfree_moments(product, starts, power: int) -> list[float]:
    """vᵀ Aᵖ v by matfree's Lanczos."""
    found = []
    for v in starts:
        decomposition = decomp.tridiag_sym(STEPS)(product, v)
        tridiagonal = decomposition.J_small
        values, vectors = np.linalg.eigh(np.asarray(tridiagonal))
        found.append(float(np.square(vectors[0]) @ values**power))
    return found


def jax_objective(params, x, y):
    """J of the flat parameters, in the order that curv has them."""
    flat = {f"{layer}/{name}": leaf for layer, leaves in params.items() for name, leaf in leaves.items()}
    names = sorted(flat)
    shapes = [flat[name].shape for name in names]

    def objective(w):
        pieces = jnp.split(w, np.cumsum([np.prod(shape) for shape in shapes])[:-1])
        p = {name: piece.reshape(shape) for name, piece, shape in zip(names, pieces, shapes, strict=True)}
        h = jnp.tanh(x @ p["Dense_0/kernel"] + p["Dense_0/bias"])
        h = jnp.tanh(h @ p["Dense_1/kernel"] + p["Dense_1/bias"])
        z = h @ p["Dense_2/kernel"] + p["Dense_2/bias"]
        cross_entropy = jax.scipy.special.logsumexp(z, axis=1) - z[jnp.arange(len(y)), y]
        return jnp.mean(cross_entropy) + 0.5 * L2 * jnp.sum(w**2)

    return objective, jnp.concatenate([flat[name].reshape(-1) for name in names])


def torch_hessian(params, x, y):
    """curvlinops' Hessian plus the l2 term as a scipy operator, and the loss."""
    network = torch.nn.Sequential(
        torch.nn.Linear(64, 128), torch.nn.Tanh(), torch.nn.Linear(128, 128), torch.nn.Tanh(), torch.nn.Linear(128, 10)
    ).double()
    with torch.no_grad():
        for i, layer in enumerate(("Dense_0", "Dense_1", "Dense_2")):
            network[2 * i].weight.copy_(torch.from_numpy(np.array(params[layer]["kernel"]).T))
            network[2 * i].bias.copy_(torch.from_numpy(np.array(params[layer]["bias"])))
    data = [(torch.from_numpy(x), torch.from_numpy(y.astype(np.int64)))]
    weights = [p for p in network.parameters() if p.requires_grad]
    cross_entropy = torch.nn.CrossEntropyLoss()
    with torch.no_grad():
        norm = sum(float((p**2).sum()) for p in weights)
        loss = float(cross_entropy(network(data[0][0]), data[0][1])) + 0.5 * L2 * norm
    hessian = HessianLinearOperator(network, cross_entropy, weights, data).to_scipy(dtype=np.float64)
    shift = scipy.sparse.linalg.aslinearoperator(L2 * scipy.sparse.identity(hessian.shape[0]))
    return hessian + shift, loss


if __name__ == "__main__":
    main()
