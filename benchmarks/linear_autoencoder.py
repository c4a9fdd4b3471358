"""The pictures of docs/linear-autoencoder.md, drawn from what the command line says.

`python benchmarks/linear_autoencoder.py`; needs matplotlib.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
MODEL = "sample_models/linear_autoencoder.ckpt"
RESCALE, ROTATE = "tangent:curvcli.zoo:rescale", "tangent:curvcli.zoo:rotate"


def curv(*words: str) -> Any:
    """The result of one command line."""
    command = [sys.executable, "-m", "curvcli", *words, "--dtype", "float64", "--format", "json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)["result"]


def slow_rotation(axes: Any) -> None:
    """The loss over each direction, and how long gradient descent takes along them."""
    found = curv("direction", MODEL, "--along", RESCALE, "--along", ROTATE, "--along", "eigenvector:1",
                 "--range=-0.5:0.5", "--range=-0.5:0.5", "--range=-1:1", "--points", "41")["directions"]  # fmt: skip
    *lines, top = found
    rate = 1 / top["eigenvalue"]["value"]
    steps = np.logspace(0, 4.7, 200)
    for one, name, colour in zip(lines, ("rescale", "rotate"), ("tab:red", "tab:blue"), strict=True):
        curvature, profile = one["rayleigh_quotient"], one["profile"]
        s = np.array(profile["s"]) * one["norm"]
        excess = np.array(profile["loss"]) - profile["loss"][len(s) // 2]
        axes[0].plot(s, excess, color=colour, label=f"{name}: curvature {curvature:.4g}")
        axes[0].plot(s, np.array(profile["quadratic"]) - profile["quadratic"][len(s) // 2], ":", color=colour)
        share = (1 - rate * curvature) ** steps
        axes[1].loglog(
            steps, np.maximum(share, 1e-6), color=colour, label=f"{name}: {1 / (rate * curvature):,.0f} steps"
        )
    axes[0].set(xlabel="distance moved, s‖v‖", ylabel="loss above the optimum", ylim=(-0.05, 2.6))
    axes[0].legend(title="solid: loss, dotted: quadratic", loc="upper center")
    axes[1].set(
        xlabel="steps of gradient descent, rate 1/λ_max", ylabel="share of the displacement left", ylim=(1e-3, 2)
    )
    axes[1].legend(title="falls to 1/e in")


def valley(axes: Any) -> Any:
    """The loss over both directions."""
    found = curv("landscape", MODEL, "--along", RESCALE, "--along", ROTATE, "--range=-0.3:0.3", "--range=-0.6:0.6",
                 "--points", "41")  # fmt: skip
    steps = [np.array(found[axis]) * one["norm"] for axis, one in zip("ab", found["directions"], strict=True)]
    least = found["loss_at_weights"]
    levels = np.logspace(-4, 0.3, 14)
    for axis, name in zip(axes, ("loss", "quadratic"), strict=True):
        excess = np.maximum(np.array(found[name]) - least, 1e-12).T
        drawn = axis.contourf(*steps, excess, levels=levels, norm="log", extend="max")
        axis.set(xlabel="along rescale", ylabel="along rotate", title=name, aspect="equal")
    return drawn


def main() -> None:
    """Both pictures."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    slow_rotation(axes)
    figure.savefig(ROOT / "docs/linear-autoencoder-rotation.png", dpi=90)
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 5), layout="constrained")
    figure.colorbar(valley(axes), ax=axes, label="loss above the optimum", format="%.0e")
    figure.savefig(ROOT / "docs/linear-autoencoder-valley.png", dpi=90)


if __name__ == "__main__":
    main()
