"""The picture and tables of docs/proximal.md: one new point, learnt near the old weights or near the old function.

After Grosse, *Neural Net Training Dynamics* (CSC 2541), chapter 4, figure 1.
`python benchmarks/proximal.py [PICTURE]`; needs matplotlib.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.flatten_util import ravel_pytree

from curvcli.zoo import MLP

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "sample_models/tanh_regression.ckpt"
KWARGS = {"features": [16, 16, 1], "activation": "tanh"}
NEW = (1.0, 2.0)
"""The new point: its input, and by how much its label lies above the old curve."""

WEIGHTS = {"weights": (1.0, 0.1, 0.01), "function": (10.0, 1.0, 0.1)}
SHOWN = {"weights": 0.1, "function": 1.0}
GRID = np.linspace(-3.3, 3.3, 221)[:, None]
CLOSE = 0.01
"""Of the way down from the old weights that may be left: there a minimiser has arrived."""

RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
MOST = 20_000

CODE = """import jax.numpy as jnp
import numpy as np

with np.load("{folder}/old.npz") as file:
    OLD = dict(file)


def proximity(params):
    layers = [(params[name][kind], OLD[f"params/{{name}}/{{kind}}"]) for name in params for kind in params[name]]
    return {weight} / 2 * sum(jnp.sum((now - old) ** 2) for now, old in layers)
"""

SPEC = """[model]
target = "curvcli.zoo:MLP"
kind = "linen"
kwargs = {{ features = [16, 16, 1], activation = "tanh" }}

[checkpoint]
path = "old.npz"
params = "params"

[data]
path = "{data}.npz"
mask = "weight"

[loss]
name = "squared_error"
reduction = "sum"
{regulariser}
"""


class Task(NamedTuple):
    """Where files are, and the old network."""

    folder: Path
    old: np.ndarray  # [D]
    unravel: Callable[[Any], Any]
    x: np.ndarray  # [N, 1]

    def predict(self, flat: Any, x: Any) -> Any:
        """The network's outputs [n, 1]."""
        return MLP(**KWARGS).apply({"params": self.unravel(flat)}, x)


def main() -> None:
    """Print the tables; draw where a file is given."""
    jax.config.update("jax_enable_x64", True)
    with tempfile.TemporaryDirectory() as folder:
        task = prepare(Path(folder))
        rows = [row for near in WEIGHTS for row in exact(task, near)]
        print("near | λ | share not learnt | rms change at the old inputs | ‖δ‖ | HF | best Adam (rate) | minimum")
        for row in rows:
            print(row["near"], row["weight"], *(f"{row[key]:.3g}" for key in ("left", "moved", "norm")),
                  row["hessian-free"], row["adam"], f"{row['least']:.3g}", sep=" | ")  # fmt: skip
        single = [row for near, weight in SHOWN.items() for row in one_step(task, near, weight)]
        for row in single:
            print(row["near"], row["weight"], row["method"], *(f"{row[key]:.3g}" for key in ("left", "moved", "norm")),
                  f"{row['gradients']:.1f}", sep=" | ")  # fmt: skip
        if len(sys.argv) > 1:
            draw(task, rows, single, Path(sys.argv[1]))


def prepare(folder: Path) -> Task:
    """The old weights, and the two problems for every weight of the proximity."""
    tree = ocp.StandardCheckpointer().restore(MODEL)["params"]
    flat, unravel = ravel_pytree(tree)
    with np.load(MODEL / "points.npz") as points:
        x = points["x"]
    names = {f"params/{layer}/{kind}": leaf for layer, leaves in tree.items() for kind, leaf in leaves.items()}
    np.savez(folder / "old.npz", **{name: np.asarray(leaf) for name, leaf in names.items()})
    task = Task(folder, np.asarray(flat), unravel, x)
    before = np.asarray(task.predict(task.old, x))
    place = np.array([[NEW[0]]])
    label = np.asarray(task.predict(task.old, place)) + NEW[1]
    np.savez(folder / "new.npz", x=place, y=label, weight=np.ones(1))
    for weight in WEIGHTS["weights"]:
        (folder / f"near_{weight:g}.py").write_text(CODE.format(folder=folder, weight=weight))
        spec = SPEC.format(data="new", regulariser=f'regulariser = "near_{weight:g}.py:proximity"')
        (folder / f"weights_{weight:g}.toml").write_text(spec)
    for weight in WEIGHTS["function"]:
        weights = np.r_[1.0, np.full(len(x), weight / len(x))]
        np.savez(folder / f"all_{weight:g}.npz", x=np.r_[place, x], y=np.r_[label, before], weight=weights)
        (folder / f"function_{weight:g}.toml").write_text(SPEC.format(data=f"all_{weight:g}", regulariser=""))
    return task


def exact(task: Task, near: str) -> Iterator[dict[str, Any]]:
    """The minimum of the proximal objective for every weight, and what two minimisers spend on their way there."""
    for weight in WEIGHTS[near]:
        result, moved = step(task, near, weight, "--method", "gauss-newton", "--steps", "300")
        least = result["final_loss"]
        result, _ = step(task, near, weight, "--method", "hessian-free", "--steps", "60")
        losses = [one["loss"] for one in result["steps"]] + [result["final_loss"]]
        spent = np.cumsum([one["passes"] for one in result["steps"]])
        arrived = next((i for i, loss in enumerate(losses) if loss <= close_to(least)), None)
        free = f"more than {spent[-1]:.0f}" if arrived is None else f"{spent[arrived - 1]:.0f} ({arrived} steps)"
        yield described(task, moved) | {
            "near": near, "weight": weight, "hessian-free": free, "least": least,
            "adam": adam(task, near, weight, least),
        }  # fmt: skip


def close_to(least: float) -> float:
    """The objective of a minimiser that has arrived; the old weights have ½·NEW[1]², the new point's loss alone."""
    return least + CLOSE * (0.5 * NEW[1] ** 2 - least)


def one_step(task: Task, near: str, weight: float) -> Iterator[dict[str, Any]]:
    """What single steps of methods that only know derivatives at the old weights make of the same objective."""
    for method in ("gauss-newton", "hessian-free"):
        result, moved = step(task, near, weight, "--method", method)
        found = {"near": near, "weight": weight, "method": method, "gradients": result["passes"]["in_gradients"]}
        yield described(task, moved) | found


def step(task: Task, near: str, weight: float, *words: str) -> tuple[dict[str, Any], np.ndarray]:
    """The report of `curv step`, and the weights that it leads to."""
    moved = task.folder / "moved.npz"
    moved.unlink(missing_ok=True)
    command = [sys.executable, "-m", "curvcli", "step", "--spec", str(task.folder / f"{near}_{weight:g}.toml"),
               "--dtype", "float64", "--format", "json", "-q", "--trust", "--save", str(moved), *words]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if not done.stdout:
        raise SystemExit(done.stderr)
    with np.load(moved) as file:
        tree: dict[str, Any] = {}
        for name, leaf in file.items():
            _, layer, kind = name.split("/")
            tree.setdefault(layer, {})[kind] = leaf
    return json.loads(done.stdout)["result"], np.asarray(ravel_pytree(tree)[0])


def described(task: Task, moved: np.ndarray) -> dict[str, Any]:
    """What was learnt and what it cost elsewhere."""
    place = np.array([[NEW[0]]])
    risen = float((task.predict(moved, place) - task.predict(task.old, place))[0, 0])
    elsewhere = np.asarray(task.predict(moved, task.x) - task.predict(task.old, task.x))
    return {
        "left": 1 - risen / NEW[1], "moved": float(np.sqrt(np.mean(elsewhere**2))),
        "norm": float(np.linalg.norm(moved - task.old)), "curve": np.asarray(task.predict(moved, GRID))[:, 0],
    }  # fmt: skip


def adam(task: Task, near: str, weight: float, least: float) -> str:
    """Gradients until Adam has come 99 % of the way down, at the best of five rates."""
    with np.load(task.folder / ("new.npz" if near == "weights" else f"all_{weight:g}.npz")) as file:
        x, y, weights = file["x"], file["y"], file["weight"]

    def objective(w: Any) -> Any:
        fit = 0.5 * jnp.sum(weights * (task.predict(w, x) - y)[:, 0] ** 2)
        return fit + (weight / 2 * jnp.sum((w - task.old) ** 2) if near == "weights" else 0.0)

    def count(rate: float) -> int:
        rule = optax.adam(rate)

        @jax.jit
        def until(w: Any) -> Any:
            def going(carry: Any) -> Any:
                w, _, number = carry
                return (objective(w) > close_to(least)) & (number < MOST)

            def move(carry: Any) -> Any:
                w, state, number = carry
                change, state = rule.update(jax.grad(objective)(w), state)
                return w + change, state, number + 1

            return jax.lax.while_loop(going, move, (w, rule.init(w), 0))[2]

        return int(until(jnp.asarray(task.old)))

    counts = {rate: count(rate) for rate in RATES}
    best = min(counts, key=counts.__getitem__)
    return f"{counts[best]} ({best:g})" if counts[best] < MOST else f"more than {MOST}"


def draw(task: Task, rows: list[dict[str, Any]], single: list[dict[str, Any]], path: Path) -> None:
    """Old curve, exact proximal updates and single steps, near the weights and near the function."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    before = np.asarray(task.predict(task.old, GRID))[:, 0]
    for axis, (near, title) in zip(
        axes, (("weights", "near the old weights"), ("function", "near the old function")), strict=True
    ):
        axis.plot(GRID[:, 0], before, color="0.6", lw=3, label="before")
        axis.plot(task.x[:, 0], np.asarray(task.predict(task.old, task.x))[:, 0], "|", color="0.3", ms=9)
        for row, style in zip([one for one in rows if one["near"] == near], (":", "-", "--"), strict=True):
            axis.plot(GRID[:, 0], row["curve"], style, color="C0", label=f"minimum, λ = {row['weight']:g}")
        one = next(row for row in single if row["near"] == near and row["method"] == "gauss-newton")
        axis.plot(GRID[:, 0], one["curve"], color="C1", label=f"one Gauss–Newton step, λ = {one['weight']:g}")
        place = np.array([[NEW[0]]])
        axis.plot(
            NEW[0], float(task.predict(task.old, place)[0, 0]) + NEW[1], "*", color="C3", ms=12, label="new point"
        )
        axis.set_title(title)
        axis.set_xlabel("x")
        axis.legend(fontsize=7, frameon=False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
