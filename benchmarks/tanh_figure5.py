"""The picture of docs/tanh-regression.md: how a fitted curve follows one label, by the command line and by refitting.

After Grosse, *Neural Net Training Dynamics* (CSC 2541), chapter 2, figure 5.
`python benchmarks/tanh_figure5.py [EXAMPLE]`; needs matplotlib.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.flatten_util import ravel_pytree

from curvcli.linalg.solvers.trust_region import Point, minimise
from curvcli.zoo import MLP

ROOT = Path(__file__).resolve().parent.parent
MODEL = "sample_models/tanh_regression.ckpt"
L2 = 1e-4
STEPS = (1, 2, 5, 10, 20, 40)
MOVE = 0.3
MOVES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
GRID = np.linspace(-3.3, 3.3, 221)[:, None]

jax.config.update("jax_enable_x64", True)


def response(x: np.ndarray, y: np.ndarray, change: np.ndarray, *words: str) -> tuple[Any, dict[str, np.ndarray]]:
    """What `curv influence` says of the curve on the grid when the labels move by `change` [N, 1], and its arrays."""
    with tempfile.TemporaryDirectory() as folder:
        data, moved = Path(folder) / "points.npz", Path(folder) / "change.npy"
        np.savez(data, x=x, y=y, x_test=GRID, y_test=np.zeros_like(GRID))
        np.save(moved, change)
        scores = Path(folder) / "scores.npz"
        command = [sys.executable, "-m", "curvcli", "influence", MODEL, "--dtype", "float64", "--format", "json",
                   "--data", str(data), "--label-perturb", "--perturb", str(moved),
                   "--queries", f"0:{len(GRID)}", "--measure", "output", "--scores", str(scores), *words]  # fmt: skip
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        with np.load(scores) as arrays:
            return json.loads(done.stdout)["result"], dict(arrays)


class Fit:
    """The network fitted again from the weights of the checkpoint, with the labels moved along `change`."""

    def __init__(self, params: Any, x: np.ndarray, y: np.ndarray, change: np.ndarray) -> None:
        flat, unravel = ravel_pytree(params)
        self.w, self.y, self.change = np.asarray(flat), y, change
        self.predict = lambda w, x: MLP((16, 16, 1), "tanh").apply({"params": unravel(w)}, x)

        def objective(w: Any, t: Any) -> Any:
            return 0.5 * jnp.mean(jnp.sum((self.predict(w, x) - t) ** 2, axis=1)) + L2 / 2 * w @ w

        self.slope, self.hessian = jax.jit(jax.value_and_grad(objective)), jax.jit(jax.hessian(objective))

    def moved(self, size: float) -> np.ndarray:
        """By how much the curve on the grid moves."""
        labels = self.y + size * self.change

        def point(w: np.ndarray) -> Point:
            value, gradient = self.slope(w, labels)
            hessian = np.asarray(self.hessian(w, labels))
            return Point(float(value), np.asarray(gradient), lambda v: hessian @ v)

        radius = 0.01 * float(np.linalg.norm(self.w))
        found = minimise(
            point,
            self.w,
            point(self.w),
            gtol=1e-7 * size,
            radius=radius,
            budget=200_000,
            eps=np.finfo(float).eps,
        )
        assert found.converged
        return np.asarray(self.predict(found.w, GRID) - self.predict(self.w, GRID))[:, 0]


def main() -> None:
    """The picture, and the numbers of the page."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with np.load(ROOT / MODEL / "points.npz") as points:
        x, y = points["x"], points["y"]
    example = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    with ocp.StandardCheckpointer() as checkpointer:
        params = checkpointer.restore((ROOT / MODEL).resolve())["params"]
    change = np.zeros_like(y)
    change[example] = 1.0
    fit = Fit(params, x, y, change)

    iterated, arrays = response(
        x, y, change, "--matrix", "hessian", "--damping", "0", "--per-iteration", "--tol", "1e-8"
    )
    path = arrays["iterations"][:, :, 0]
    exact = {
        name: response(x, y, change, "--matrix", name, "--damping", "0", "--solver", "dense")[1]["change"][0, :, 0]
        for name in ("hessian", "ggn")
    }
    print(f"example {example} at x = {x[example, 0]:.2f}; validity: {iterated['validity']['words']}")
    last = len(path) - 1
    missing = [missed(one, exact["hessian"]) for one in path]
    print("iterations: share of the response that is missing")
    print(", ".join(f"{step}: {missing[step]:.2g}" for step in sorted({*STEPS, 60, 80, last}) if step <= last))
    damping = 0.1 * iterated["damping_choice"]["mean"]
    damped = response(x, y, change, "--matrix", "hessian", "--damping", str(damping), "--solver", "dense")[1]["change"]
    print(f"with a damping of {damping:.2g}, {missed(damped[0, :, 0], exact['hessian']):.2g}")
    refits = {size: fit.moved(size) for size in MOVES}
    off = {name: [missed(size * exact[name], refits[size]) for size in MOVES] for name in exact}
    for name, values in off.items():
        print(f"{name}: " + ", ".join(f"{size:g}: {value:.2g}" for size, value in zip(MOVES, values, strict=True)))

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained", width_ratios=[1.6, 1])
    colours = pyplot.get_cmap("viridis")(np.linspace(0.9, 0.2, len(STEPS)))
    axes[0].axhline(0, color="0.8", lw=0.8)
    for step, colour in zip(STEPS, colours, strict=True):
        axes[0].plot(GRID, MOVE * path[step], color=colour, lw=1.2, label=f"{step} iteration{'s' * (step > 1)}")
    axes[0].plot(GRID, MOVE * exact["hessian"], color="tab:red", lw=2, label="converged")
    axes[0].plot(GRID, refits[MOVE], "k--", label="refit")
    axes[0].plot(x, np.zeros_like(x), "|", color="0.4", ms=8)
    axes[0].axvline(x[example, 0], color="0.6", ls=":")
    axes[0].set(xlabel="x", ylabel="change of the curve", title=f"one label moved by {MOVE}")
    axes[0].legend(fontsize=8)
    for name, values in off.items():
        axes[1].loglog(MOVES, values, "o-", label=f"--matrix {name}")
    axes[1].set(xlabel="how far the label is moved", title="linear response beside the refit", ylim=(1e-4, 2))
    axes[1].set_ylabel("rms difference / rms of the refit")
    axes[1].legend()
    figure.savefig(ROOT / "docs/tanh-regression.png", dpi=90)


def missed(one: np.ndarray, other: np.ndarray) -> float:
    """‖one − other‖ / ‖other‖."""
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


if __name__ == "__main__":
    main()
