"""How time and memory of `curv spectrum` grow over 16×: `python benchmarks/growth.py [--json FILE] [--plot FILE]`.

Examples, parameters, probes and steps grow one at a time from one small task, an MLP on random data. Each is
run twice in a process of its own: the first run gives the peak of memory beyond a bare process, which is held against
the forecast of `curv inspect`, the second the time without compilation. Exponents are fitted by least squares on the
logarithms. Needs the peers' environment (matplotlib).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from comparison import environment, jobs, timing

FACTORS = (1, 2, 4, 8, 16)
INPUTS, CLASSES = 64, 10
SMALLEST = {"probes": 2, "steps": 5}
"""Where an axis begins, if not at the task's own size."""
TOML = """
[model]
target = "curvcli.zoo:MLP"
kwargs = {{ features = [{width}, {width}, 10], activation = "tanh" }}

[checkpoint]
path = "params.npz"

[data]
path = "data.npz"

[loss]
name = "softmax_cross_entropy"
"""


@dataclass(frozen=True)
class Task:
    """One run; `dim` is met as nearly as a whole width permits."""

    examples: int = 2048
    dim: int = 20_000
    probes: int = 4
    steps: int = 20

    @property
    def width(self) -> int:
        """Of both hidden layers."""
        linear = INPUTS + 2 + CLASSES
        return round((-linear + (linear**2 + 4 * self.dim) ** 0.5) / 2)

    def write(self, folder: Path) -> int:
        """Files of the task; the number of parameters."""
        random, width = np.random.default_rng(0), self.width
        params = {}
        for index, (one, following) in enumerate(((INPUTS, width), (width, width), (width, CLASSES))):
            kernel = random.normal(size=(one, following)) / np.sqrt(one)
            params |= {f"Dense_{index}/kernel": kernel, f"Dense_{index}/bias": np.zeros(following)}
        np.savez(folder / "params.npz", **{name: leaf.astype(np.float32) for name, leaf in params.items()})
        x = random.normal(size=(self.examples, INPUTS)).astype(np.float32)
        np.savez(folder / "data.npz", x=x, y=random.integers(0, CLASSES, self.examples).astype(np.int32))
        (folder / "curv.toml").write_text(TOML.format(width=width))
        return sum(leaf.size for leaf in params.values())


def main() -> None:
    """Run all tasks, fit, print a table, write JSON and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=Path("growth.json"))
    parser.add_argument("--plot", type=Path, default=Path("growth.svg"), help=".png or .svg")
    parser.add_argument("--axes", default="examples,dim,probes,steps")
    parser.add_argument("--venv", type=Path, default=environment.DEFAULT)
    options = parser.parse_args()
    environment.enter(options.venv)

    start = time.perf_counter()
    found: dict[str, Any] = {"machine": timing.machine(), "axes": {}}
    done: dict[Task, dict[str, Any]] = {}
    for axis in options.axes.split(","):
        smallest = SMALLEST.get(axis, getattr(Task(), axis))
        tasks = [replace(Task(), **{axis: smallest * factor}) for factor in FACTORS]
        for task in tasks:
            if task not in done:
                done[task] = run(task)
            print(f"{axis} {getattr(task, axis)}: {done[task]}", file=sys.stderr, flush=True)
        found["axes"][axis] = fitted(axis, [done[task] for task in tasks])
    found["seconds"] = time.perf_counter() - start
    options.json.write_text(json.dumps(found, indent=1))
    plot(found["axes"], options.plot)
    print(table(found["axes"]))


def run(task: Task) -> dict[str, Any]:
    """Seconds, products and bytes of one task, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        dim = task.write(Path(folder))
        answer = jobs.ask("warm", folder=folder, probes=task.probes, steps=task.steps)
    if "failed" in answer:
        raise SystemExit(answer["failed"])
    return {"examples": task.examples, "dim": dim, "probes": task.probes, "steps": task.steps, **answer}


def fitted(axis: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Exponents with their standard errors, and memory over forecast."""
    sizes = [one[axis] for one in runs]
    kinds = ("seconds", "products", "bytes", "forecast_bytes")
    exponents = {kind: exponent(sizes, [one[kind] for one in runs]) for kind in kinds}
    ratios = [one["bytes"] / one["forecast_bytes"] for one in runs]
    return {"runs": runs, "exponents": exponents, "memory_over_forecast": ratios}


def exponent(sizes: list[float], values: list[float]) -> dict[str, float]:
    """Slope of the logarithms and its standard error."""
    x, y = np.log(sizes), np.log(np.maximum(values, 1e-9))
    x = x - x.mean()
    slope = float(x @ y / (x @ x))
    rest = y - y.mean() - slope * x
    return {"value": slope, "stderr": float(np.sqrt(rest @ rest / (len(x) - 2) / (x @ x)))}


def table(axes: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        "| 16× more | exponent of time | of products | of memory | memory / forecast |",
        "|---|---|---|---|---|",
    ]
    for axis, one in axes.items():
        shown = [f"{e['value']:.2f} ± {e['stderr']:.2f}" for e in one["exponents"].values()]
        low, high = min(one["memory_over_forecast"]), max(one["memory_over_forecast"])
        lines.append(f"| {axis} | {shown[0]} | {shown[1]} | {shown[2]} | {low:.2f} – {high:.2f} |")
    return "\n".join(lines)


def plot(axes: dict[str, Any], path: Path) -> None:
    """Time, and memory with its forecast, over the size, each relative to the smallest."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for axis, one in axes.items():
        runs = one["runs"]
        sizes = [run[axis] / runs[0][axis] for run in runs]
        fit = one["exponents"]["seconds"]
        label = f"{axis}: {fit['value']:.2f} ± {fit['stderr']:.2f}"
        left.plot(sizes, [run["seconds"] / runs[0]["seconds"] for run in runs], "o-", label=label)
        (line,) = right.plot(sizes, [run["bytes"] / 1e6 for run in runs], "o-", label=axis)
        right.plot(sizes, [run["forecast_bytes"] / 1e6 for run in runs], ":", color=line.get_color())
    left.plot(FACTORS, FACTORS, "k--", linewidth=0.8, label="linear")
    left.set(xlabel="size / smallest", ylabel="seconds / those of the smallest", xscale="log", yscale="log")
    right.set(xlabel="size / smallest", ylabel="MB beyond a bare process; dotted: forecast", xscale="log", yscale="log")
    for panel in (left, right):
        panel.set_xticks(FACTORS, [str(factor) for factor in FACTORS])
        panel.legend(frameon=False)
    figure.savefig(path)


if __name__ == "__main__":
    main()
