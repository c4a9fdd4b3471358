"""Products of conjugate gradients by preconditioner: `python benchmarks/preconditioned.py [CKPT] [--blocks]`.

For (G + λI) x = −∇J to a relative residual of 1e-4 in float64. `--blocks` adds the exact diagonal blocks of G, which
all Kronecker factors approximate; they take minutes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from samples import SAMPLES, load

from curvcli.analyses.common.preconditioners import ggn_diagonal
from curvcli.curvature import build
from curvcli.curvature.flatten import Layout
from curvcli.curvature.kronecker.kfac import Recipe, cotangents, kfac
from curvcli.curvature.products import outputs
from curvcli.curvature.products.sums import objective_and_gradient
from curvcli.linalg.iterate import Silent
from curvcli.linalg.solvers import cg
from curvcli.problem import Problem
from curvcli.run.runtime import prepare_jax
from curvcli.schema.influence import InfluenceSettings

SETTINGS = InfluenceSettings(remove=True, dtype="float64")
DAMPINGS = (1e-3, 1e-1)
TOL, MOST = 1e-4, 1000

Root = Callable[[Any], Any]


def main() -> None:
    """A row a preconditioner, a column a damping."""
    given = [word for word in sys.argv[1:] if not word.startswith("--")]
    prepare_jax("float64", None, cache=True)
    problem = load(Path(given[0]) if given else SAMPLES / "digits_cnn.ckpt", SETTINGS)
    print("preconditioner", *(f"λ = {damping:g}" for damping in DAMPINGS), sep=" | ")
    for name, root in preconditioners(problem):
        print(name, *(products(problem, damping, root(damping)) for damping in DAMPINGS), sep=" | ", flush=True)


def preconditioners(problem: Problem) -> Iterator[tuple[str, Callable[[float], Root | None]]]:
    """Names, and what makes the root of the inverse for a damping."""
    yield "none", lambda damping: None
    diagonal = ggn_diagonal(problem, SETTINGS) + problem.regulariser.l2
    yield "diagonal", lambda damping: scaled(1 / np.sqrt(diagonal + damping))
    for name, sampling in (("kfac", "sampled"), ("kfac", "exact"), ("ekfac", "exact")):
        factors = kfac(problem, Recipe(sampling), corrected=name == "ekfac")  # type: ignore[arg-type]
        yield f"{name}, {sampling}", lambda damping, made=factors: made.damped(damping).function(lambda v: v**-0.5)
    if "--blocks" in sys.argv:
        yield "exact blocks", Blocks(problem).root


def scaled(root: np.ndarray) -> Root:
    """Products with a diagonal."""
    return lambda vectors: vectors * jnp.asarray(root)[None]


class Blocks:
    """The exact diagonal block of every parameter, in eigenvectors; float32, which λ is far above."""

    def __init__(self, problem: Problem) -> None:
        self.layout = Layout.of(problem.params)
        found = self._written(problem)
        self.pairs = [scipy.linalg.eigh(block, driver="evd", overwrite_a=True) for block in found]
        self.shift = problem.regulariser.l2

    def _written(self, problem: Problem) -> list[np.ndarray]:
        """Σ over examples and cotangents of the gradients' outer products, a parameter at a time."""
        recipe = Recipe("exact")
        keys = outputs.draw_keys(0, 1)

        @jax.jit
        def gradients(params: Any, frozen: Any, batch: Any) -> list[Any]:
            given = cotangents(problem.loss, recipe, keys, problem.predict(params, frozen, batch.inputs), batch)

            def one(inputs: Any, own: Any) -> Any:
                single = jax.tree.map(lambda leaf: leaf[None], inputs)
                _, back = jax.vjp(lambda some: problem.predict(some, frozen, single)[0], params)
                return jax.vmap(lambda row: back(row)[0])(own)

            found = jax.vmap(one)(batch.inputs, jnp.moveaxis(given, 1, 0))
            sizes = zip(self.layout.names, self.layout.sizes, strict=True)
            return [found[name].reshape(-1, size).astype("float32") for name, size in sizes]

        total = [np.zeros((size, size), np.float32) for size in self.layout.sizes]
        for batch in problem.batches.resized(64):
            for block, rows in zip(total, gradients(problem.params, problem.frozen, batch), strict=True):
                block += np.asarray(rows).T @ np.asarray(rows)
        return [block / np.float32(problem.normaliser) for block in total]

    def root(self, damping: float) -> Root:
        """(G_l + λI)^(−1/2) of every block."""

        def apply(vectors: Any) -> Any:
            given, start, turned = np.asarray(vectors), 0, []
            for values, basis in self.pairs:
                rows = given[:, start : start + len(values)]
                scale = (np.maximum(values.astype(np.float64), 0) + self.shift + damping) ** -0.5
                turned.append(((rows @ basis) * scale) @ basis.T)
                start += len(values)
            return jnp.asarray(np.concatenate(turned, axis=1))

        return apply


def products(problem: Problem, damping: float, root: Root | None) -> int:
    """Until the residual is there."""
    operator = build(problem, "ggn")
    plain = operator.matmat
    damped = replace(operator, matmat=lambda vectors: plain(vectors) + damping * vectors)
    _, gradient = objective_and_gradient(problem, Layout.of(problem.params))
    found = cg.solve(damped, -gradient[None], tol=TOL, max_steps=MOST, monitor=Silent(), root=root)
    return int(jax.device_get(found.iterations[0]))


if __name__ == "__main__":
    main()
