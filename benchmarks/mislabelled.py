"""How well `curv influence --label-perturb` finds wrong labels, beside the loss and the gradient norm.

Every tenth label of the digits is moved to another class, a network is trained on them, and the command is asked which
labels its fit leans on. `python benchmarks/mislabelled.py [seeds]`; needs the extra `samples`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "sample_models"))

import common
import jax
import jax.numpy as jnp
import numpy as np

from curvcli.zoo import MLP

SHARE = 0.1
NETWORKS = {  # hidden widths, activation, l2, how the command solves
    "softmax regression": ((), 1e-3, []),
    "MLP, one layer of 32": ((32,), 1e-4, ["--solver", "dense"]),
    "MLP, one layer of 32, more l2": ((32,), 3e-3, ["--solver", "dense"]),
    "digits_mlp, two layers of 128": ((128, 128), 1e-4, ["--samples", "64"]),
}
RANKINGS = ("influence", "loss", "gradient-norm")


def flipped(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels of which a share is moved to another class, each other class alike, and which were left."""
    rng = np.random.default_rng(seed)
    wrong = rng.choice(len(labels), round(SHARE * len(labels)), replace=False)
    moved, clean = labels.copy(), np.ones(len(labels), bool)
    moved[wrong] = (labels[wrong] + rng.integers(1, 10, len(wrong))) % 10
    clean[wrong] = False
    return moved, clean


def trained(x: np.ndarray, y: np.ndarray, widths: tuple[int, ...], l2: float, seed: int) -> tuple[Any, float]:
    """Parameters at a minimum, and the share of labels that they fit."""
    model = MLP((*widths, 10), "tanh")

    def objective(params: Any) -> Any:
        logits = model.apply({"params": params}, x)
        return jnp.mean(common.cross_entropy(logits, y)) + l2 / 2 * common.squared_norm(params)

    start = model.init(jax.random.key(seed), x[:1])["params"]
    params = common.cast(common.minimise(objective, start, iterations=3000, gtol=1e-7), jnp.float32)
    return params, float(np.mean(np.argmax(np.asarray(model.apply({"params": params}, x)), axis=1) == y))


def asked(folder: Path, widths: tuple[int, ...], l2: float, mode: str, words: list[str]) -> Any:
    """The report of the command."""
    command = [
        sys.executable, "-m", "curvcli", "influence", str(folder / "weights.npz"), f"--{mode}",
        "--model", "curvcli.zoo:MLP", "--model-arg", f"features={[*widths, 10]}", "--data", str(folder / "digits.npz"),
        "--loss", "softmax_cross_entropy", "--l2", str(l2), "--format", "json", *words,
    ]  # fmt: skip
    return json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    """One table row for each network, seed and perturbation."""
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    x, y = common.digits()
    print("| network | l2 | seed | fitted | asked | AUC of influence | of the loss | of the gradient norm | s |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for name, (widths, l2, words) in NETWORKS.items():
        for seed in range(seeds):
            labels, clean = flipped(y, seed)
            params, fitted = trained(x, labels, widths, l2, seed)
            with tempfile.TemporaryDirectory() as there:
                folder = Path(there)
                flat = {f"{layer}/{leaf}": a for layer, leaves in params.items() for leaf, a in leaves.items()}
                np.savez(folder / "weights.npz", **flat)
                np.savez(folder / "digits.npz", x=x, y=labels, clean=clean)
                for mode in ("label-perturb", "remove"):
                    start = time.perf_counter()
                    report = asked(folder, widths, l2, mode, words)
                    seconds = time.perf_counter() - start
                    found = {one["name"]: one["auc"] for one in report["result"]["baselines"]}
                    areas = [
                        f"{found[one]['value']:.4f} [{found[one]['interval'][0]:.3f}, {found[one]['interval'][1]:.3f}]"
                        for one in RANKINGS
                    ]
                    row = (name, f"{l2:g}", seed, f"{fitted:.1%}", mode, *areas, f"{seconds:.0f}")
                    print("| " + " | ".join(map(str, row)) + " |", flush=True)


if __name__ == "__main__":
    main()
