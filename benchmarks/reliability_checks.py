"""False alarms of the self-checks: `python benchmarks/reliability_checks.py [seeds] [MODEL …] [--float64]`.

Sound networks, the sample models and ReLU networks of several shapes, are checked with many seeds; everything is
compiled once a network. A row a network: how many of the seeds failed any check, and for each check the largest error
as a share of what is allowed. Above 1 is an alarm.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from curvcli.run.runtime import prepare_jax

SEEDS = 200
SAMPLES = (
    "digits_mlp.ckpt", "digits_run", "linear_autoencoder.ckpt", "tanh_regression.ckpt", "digits_cnn.ckpt",
    "char_transformer.ckpt",
)  # fmt: skip
BLOCK = 8


class Alarms(NamedTuple):
    """What the self-checks of one network said."""

    seeds: int
    alarms: int  # seeds with a check that failed
    worst: dict[str, float]  # by check: the largest error over its threshold


def alarms(problem: Any, seeds: Iterable[int], *, matrix: str = "hessian") -> Alarms:
    """The self-checks of one problem at many seeds, everything compiled once."""
    from curvcli.analyses.common.checks import self_checks
    from curvcli.curvature import build
    from curvcli.schema.settings import AnalysisSettings

    operator, count, failed, worst = build(problem, matrix), 0, 0, {}
    for seed in seeds:
        settings = AnalysisSettings(matrix=matrix, seed=seed, dtype=str(problem.dtype))  # type: ignore[arg-type]
        checks, warnings = self_checks(problem, operator, settings, BLOCK)
        for name, check in checks.items():
            worst[name] = max(worst.get(name, 0.0), check.value / check.threshold)
        count, failed = count + 1, failed + bool(warnings)
    return Alarms(count, failed, worst)


def relu_problem(widths: tuple[int, ...], *, dtype: str, seed: int = 0, count: int = 200) -> Any:
    """A ReLU network with He's initial weights on random inputs and labels."""
    import jax.numpy as jnp
    import numpy as np

    from curvcli.losses import LOSSES
    from curvcli.problem import Batches, Problem, Regulariser

    random = np.random.default_rng(seed)
    layers = list(itertools.pairwise(widths))
    params = {}
    for index, (fan_in, fan_out) in enumerate(layers):
        params[f"{index}/kernel"] = jnp.asarray(random.normal(size=(fan_in, fan_out)) * (2 / fan_in) ** 0.5, dtype)
        params[f"{index}/bias"] = jnp.asarray(0.1 * random.normal(size=fan_out), dtype)

    def predict(p: Any, frozen: Any, x: Any) -> Any:
        for index in range(len(layers)):
            x = x @ p[f"{index}/kernel"] + p[f"{index}/bias"][None]
            x = jnp.maximum(x, 0) if index < len(layers) - 1 else x
        return x

    x = random.normal(size=(count, widths[0])).astype(dtype)
    y = random.integers(0, widths[-1], count).astype(np.int32)
    batches = Batches(x, y, np.ones(count, dtype), count, np.dtype(dtype))
    frozen = {"params": {}, "collections": {}}
    return Problem(
        params, frozen, predict, lambda p: p, LOSSES["softmax_cross_entropy"], batches, count, Regulariser()
    )  # fmt: skip


def networks(dtype: str) -> dict[str, Callable[[], Any]]:
    """What is checked, by name."""
    from samples import SAMPLES as FOLDER
    from samples import load

    from curvcli.schema.settings import AnalysisSettings

    settings = AnalysisSettings(dtype=dtype)  # type: ignore[arg-type]
    found: dict[str, Callable[[], Any]] = {
        name.removesuffix(".ckpt"): lambda name=name: load(FOLDER / name, settings) for name in SAMPLES
    }
    for widths in ((20, 50, 10), (20, 200, 200, 10), (8, *(30,) * 8, 4)):
        found["relu " + "-".join(map(str, widths))] = lambda widths=widths: relu_problem(widths, dtype=dtype)
    return found


def main(arguments: list[str]) -> int:
    """Print the table; 1 if there was an alarm."""
    dtype = "float64" if "--float64" in arguments else "float32"
    words = [word for word in arguments if not word.startswith("--")]
    count = int(words.pop(0)) if words and words[0].isdigit() else SEEDS
    prepare_jax(dtype, None, cache=True)
    total = 0
    for name, make in networks(dtype).items():
        if words and name not in words:
            continue
        told = alarms(make(), range(count))
        shares = ", ".join(f"{check} {share:.2g}" for check, share in told.worst.items())
        print(f"{name}: {told.alarms} of {told.seeds} seeds; {shares}", flush=True)
        total += told.alarms
    return int(total > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
