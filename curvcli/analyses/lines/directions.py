"""Directions by name: those that the problem itself defines are found, those from files are taken as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from curvcli.analyses import eigs
from curvcli.analyses.common import planning
from curvcli.analyses.common.context import Context
from curvcli.analyses.spectrum import eigenvalue, noise, tolerance
from curvcli.compiling import jit
from curvcli.curvature import curves_the_loss
from curvcli.curvature.batch_norm import Statistics
from curvcli.curvature.flatten import Layout
from curvcli.curvature.jaxprs.taps import find_layers
from curvcli.errors import MemoryLimitError, NumericsError, UsageError, suggest_float64
from curvcli.linalg.iterate import Monitor
from curvcli.linalg.operator import LinearOperator
from curvcli.linalg.probes import sphere
from curvcli.linalg.reductions import nonzero_rows, row_dots
from curvcli.linalg.solvers import minres
from curvcli.linalg.solvers.solution import Solution
from curvcli.problem import Params, Problem
from curvcli.schema.eigs import EigsSettings
from curvcli.schema.estimate import Eigenvalue
from curvcli.schema.lines import Along, LineSettings, Solve, Undefined
from curvcli.schema.matrices import refusal
from curvcli.schema.settings import AnalysisSettings
from curvcli.streams import Stream

NUDGES = (1, -1, 2, -2, 3, -3)
"""Changes of every weight in its last digit, by which the rounding of a loss is measured."""

BASIS_BYTES = 1 << 30
"""Bases up to this size are kept by the Newton solve, which reorthogonalised needs fewer products."""


@dataclass(frozen=True)
class Inputs:
    """What lines take beside the problem.

    Parameters
    ----------
    vectors
        Directions from outside the problem, by the text that asks for them.
    statistics
        Batch statistics of the checkpoints among them, by the same.
    """

    vectors: Mapping[str, Params] = field(default_factory=dict)
    statistics: Mapping[str, Statistics] = field(default_factory=dict)


class NoDirectionError(Exception):
    """A direction that does not exist at these weights."""


@dataclass(frozen=True)
class Direction:
    """A vector with what is known of how it was found."""

    name: str
    index: int  # its place among those asked for
    vector: Array  # [dim]
    norm: float
    solve: Solve | None = None
    eigenvalue: Eigenvalue | None = None


@dataclass
class Finder:
    """Finds directions; what one needs that another has found already is not computed again.

    Parameters
    ----------
    gradient
        ∇J, [dim].
    given
        Those from files, by the text that asks for them.
    warnings
        Takes what a user should know of them.
    """

    problem: Problem
    operator: LinearOperator
    settings: LineSettings
    gradient: Array
    given: Mapping[str, Params]
    monitor: Monitor
    warnings: list[str]
    _pairs: dict[bool, eigs.Pairs] = field(default_factory=dict)
    _newton: Solution | None = None

    def all(self) -> tuple[list[Direction], list[Undefined]]:
        """Every direction asked for, and those that do not exist here.

        Raises
        ------
        NumericsError
            None exists.
        """
        found, undefined = [], []
        for index, (text, along) in enumerate(zip(self.settings.along, self.settings.directions, strict=True)):
            try:
                found.append(self._one(index, text, along))
            except NoDirectionError as error:
                undefined.append(Undefined(direction=text, reason=str(error)))
        if not found:
            raise NumericsError(
                "; ".join(f"--along {one.direction}: {one.reason}" for one in undefined),
                "ask for another direction, such as --along random",
            )
        self.warnings += [f"--along {one.direction} is left out: {one.reason}" for one in undefined]
        return found, undefined

    def _one(self, index: int, text: str, along: Along) -> Direction:
        solve = eigenvalue = None
        if text in self.given:
            vector = Layout.of(self.problem.params).ravel(self.given[text])
            vector = jnp.asarray(vector, self.problem.dtype)
        elif along.kind == "gradient":
            vector = self._sloping()
        elif along.kind == "newton":
            vector, solve = self._solution()
        elif along.kind == "eigenvector":
            vector, eigenvalue = self._eigenvector(along.rank)
        else:
            # Asked for twice, there are two.
            earlier = self.settings.along[:index].count(text)
            draw: Callable[[int], Array] = self._random if along.kind == "random" else self._filter_normalized
            vector = draw(earlier)
        norm = float(np.linalg.norm(np.asarray(vector, np.float64)))
        if not np.isfinite(norm) or norm == 0:
            raise NoDirectionError("the vector is zero" if norm == 0 else "the vector is not finite")
        return Direction(text, index, vector, norm, solve, eigenvalue)

    def _sloping(self) -> Array:
        """∇J, where it is not zero."""
        if not nonzero_rows(self.gradient[None])[0]:
            raise NoDirectionError("the gradient of the loss is exactly zero")
        return self.gradient

    def _random(self, draw: int) -> Array:
        key = Stream.RANDOM_DIRECTIONS.key(self.settings.seed)
        return sphere(key, draw, 1, self.problem.dim, self.problem.dtype)[0]

    def _filter_normalized(self, draw: int) -> Array:
        """Random, each filter (what reaches one output unit) as long as the weights' own; biases and scales stay.

        Source: Li et al. (2018), *Visualizing the loss landscape of neural nets*.
        """
        params, layout = self.problem.params, Layout.of(self.problem.params)
        key = Stream.FILTER_DIRECTIONS.key(self.settings.seed)
        filters = _filters(self.problem)
        if not filters:
            raise NoDirectionError("no parameter has filters: all are biases, scales, or have one axis")
        random = sphere(key, draw, 1, layout.dim, self.problem.dtype)[0]
        return _as_long(layout, random, params, {name: jnp.asarray(rows) for name, rows in filters.items()})

    def _solution(self) -> tuple[Array, Solve]:
        """The Newton direction of the matrix asked for: A d = −∇J."""
        gradient, tol = self._sloping(), tolerance(self.settings)
        if self._newton is None:
            steps = min(self.settings.max_probes, self.operator.dim)
            self._newton = minres.solve(
                self.operator, -gradient[None], tol=tol, max_steps=steps, monitor=self.monitor,
                reorthogonalize="full" if keeps_basis(self.problem, self.settings) else "none",
            )  # fmt: skip
            status, residual = self._newton.status[0], float(self._newton.residuals[0])
            if status == "least-squares":
                self.warnings.append(
                    f"newton: the {self.settings.matrix} is singular within the tolerance and −∇J does not lie in its "
                    f"range: the direction solves the least-squares problem, relative residual {residual:.2g}; "
                    "--damping makes the matrix regular"
                )
            elif status == "not-converged":
                spent = self._newton.iterations[0] >= steps
                cure = "allow more with --probes, or use --damping" if spent else (
                    "this is rounding: " + suggest_float64(self.settings.dtype, "use --damping")
                )  # fmt: skip
                self.warnings.append(
                    f"newton has not converged after {self._newton.iterations[0]} products: relative residual "
                    f"{residual:.2g}, asked for {tol:.2g}; {cure}"
                )
            if self._newton.lowest[0] < -noise(self.settings) * self._newton.norm[0]:
                self.warnings.append(
                    f"newton: the {self.settings.matrix} has negative curvature (an eigenvalue below "
                    f"{self._newton.lowest[0]:.2g}), so that the step need not go downhill"
                )
        found = self._newton
        status: Any = found.status[0]  # MINRES never says `indefinite`, which the schema does not know
        record = Solve(
            status=status, residual=float(found.residuals[0]), iterations=int(found.iterations[0]),
            lowest_curvature=float(found.lowest[0]),
        )  # fmt: skip
        return found.x[0], record

    def _eigenvector(self, rank: int) -> tuple[Array, Eigenvalue]:
        """The eigenvector of the K-th largest eigenvalue, or the |K|-th smallest, in the sense that goes downhill."""
        if abs(rank) > self.operator.dim:
            raise NoDirectionError(f"the matrix has {self.operator.dim} eigenvalues")
        pairs = self._extreme(rank > 0)
        place = rank - 1 if rank > 0 else rank
        if abs(rank) > len(pairs.values):
            raise NoDirectionError("it was not reached with the products allowed")
        value, residual = float(pairs.values[place]), float(pairs.residuals[place])
        converged = residual <= tolerance(self.settings) * pairs.norm
        if not converged:
            self.warnings.append(
                f"eigenvector:{rank} has not converged (residual {residual:.2g}): allow more products with --probes"
            )
        vector = jnp.asarray(pairs.vectors[place])
        uphill = float(row_dots(vector[None], self.gradient[None])[0]) > 0
        return -vector if uphill else vector, eigenvalue(value, residual, converged, None)

    def _extreme(self, largest: bool) -> eigs.Pairs:
        """The pairs at one end, as many as any direction asks for."""
        if largest not in self._pairs:
            wanted = eigs_settings(self.settings, largest)
            plan = eigs.memory_plan(self.problem, wanted)
            self._pairs[largest] = eigs.extreme_pairs(self.operator, wanted, plan, self.monitor)
            self.warnings += self._pairs[largest].warnings
        return self._pairs[largest]


def _filters(problem: Problem) -> dict[str, np.ndarray]:
    """The flat indices [fan_in, filters] of the filters in each parameter that has some.

    As the equations of the network use it: of an attention kernel [embed, heads, head_dim] one for each column (head,
    dimension). Of what enters otherwise (kernels inside `scan`, or with their norm divided out) the last axis counts
    the filters, where there are two axes, and the name is not that of a bias or scale.
    """
    network, found = find_layers(problem), {}
    for name, leaf in problem.params.items():
        if name in network.filters:
            found[name] = network.filters[name]
        elif leaf.ndim > 1 and name not in network.biases and name.rpartition("/")[2] not in ("bias", "scale"):
            found[name] = np.arange(leaf.size, dtype=np.int32).reshape(-1, leaf.shape[-1])
    return found


@jit(static_argnums=0)
def _as_long(layout: Layout, random: Array, params: Params, filters: dict[str, Array]) -> Array:
    """A vector [dim] whose filters have the length of those of the parameters; zero outside of them."""
    leaves = layout.unravel(random)

    def scaled(name: str, weight: Array) -> Array:
        if name not in filters:
            return jnp.zeros_like(weight)
        drawn, own = (leaf.reshape(-1)[filters[name]] for leaf in (leaves[name], weight))
        norms = [jnp.sqrt(jnp.sum(jnp.square(columns), axis=0, keepdims=True)) for columns in (drawn, own)]
        entries = jnp.zeros(weight.size, weight.dtype).at[filters[name]].set(drawn * (norms[1] / norms[0]))
        return entries.reshape(weight.shape)

    return layout.ravel({name: scaled(name, weight) for name, weight in params.items()})


def eigs_settings(settings: LineSettings, largest: bool) -> EigsSettings:
    """What `curv eigs` would be told to find the eigenvectors at one end."""
    ranks = [one.rank for one in settings.directions if one.kind == "eigenvector"]
    count = max(abs(rank) for rank in ranks if (rank > 0) == largest)
    shared = {name: getattr(settings, name) for name in AnalysisSettings.model_fields}
    return EigsSettings(**shared, k=count, which="largest" if largest else "smallest")


def keeps_basis(problem: Problem, settings: LineSettings) -> bool:
    """Whether the Newton solve keeps the basis that it orthogonalises against."""
    return min(settings.max_probes, problem.dim) * problem.dim * problem.dtype.itemsize <= BASIS_BYTES


def check(problem: Problem, settings: LineSettings) -> int:
    """The bytes that the directions and the work along them take.

    Raises
    ------
    UsageError
        The matrix does not act on the parameters.
    MemoryLimitError
        It does not fit.
    """
    if (why := refusal(settings.matrix, "lines")) is not None:
        raise UsageError(
            f"--matrix {settings.matrix} has no directions in the parameters: {why}", "use --matrix ggn, or hessian"
        )
    kinds = {one.kind for one in settings.directions}
    rows = 2 * len(settings.along) + 6
    if "newton" in kinds:
        rows += 8 + (min(settings.max_probes, problem.dim) if keeps_basis(problem, settings) else 0)
    working = planning.working_bytes(problem, settings, problem.dim)(max(len(settings.along), 2))
    needed = rows * problem.dim * problem.dtype.itemsize + working
    limit = planning.memory_limit(settings.max_memory)
    if needed > limit:
        raise MemoryLimitError(
            f"{rows} vectors of {problem.dim:,} numbers and a batch take {planning.human_bytes(needed)}, "
            f"the limit is {planning.human_bytes(limit)}",
            "use a smaller --batch-size, fewer directions or --probes, or --params for a block of the parameters",
        )
    for largest in (True, False):
        if any(one.kind == "eigenvector" and (one.rank > 0) == largest for one in settings.directions):
            needed = max(needed, eigs.memory_plan(problem, eigs_settings(settings, largest)).bytes)
    return needed


def products(problem: Problem, settings: LineSettings) -> int:
    """At most how many products finding the directions takes."""
    kinds = [one.kind for one in settings.directions]
    count = min(settings.max_probes, problem.dim) + 1 if "newton" in kinds else 0
    for largest in (True, False):
        if any(one.kind == "eigenvector" and (one.rank > 0) == largest for one in settings.directions):
            count += eigs.forecast(Context(problem), eigs_settings(settings, largest))[1].products
    return count


def not_a_curvature(settings: LineSettings) -> list[str]:
    """A warning where the quadratic is no model of the loss."""
    if curves_the_loss(settings.matrix):
        return []
    return [f"the {settings.matrix} is not the curvature of the loss: the quadratic is no model of it"]


def with_nudge(problem: Problem, vectors: Array, seed: int) -> Array:
    """Vectors [d, dim], and one more that moves every weight by its own size, up or down: [d + 1, dim]."""
    key = Stream.NUDGES.key(seed)
    signs = jax.random.rademacher(key, (problem.dim,), problem.dtype)
    return jnp.concatenate([vectors, (signs * Layout.of(problem.params).ravel(problem.params))[None]])


def reference_points(problem: Problem, directions: int) -> np.ndarray:
    """The weights themselves, and nudged by the last digits of each: [1 + nudges, directions + 1]."""
    points = np.zeros((1 + len(NUDGES), directions + 1))
    points[1:, -1] = float(np.finfo(problem.dtype).eps) * np.array(NUDGES)
    return points


def rounding(problem: Problem, losses: np.ndarray) -> float:
    """Differences of losses that are no more than rounding, from the losses of `reference_points`.

    Twice the largest change by a nudge, at least eps·J. Measured and not reckoned from eps·J alone: a small residual of
    large outputs has the rounding of the outputs.
    """
    changes = np.abs(losses[1:] - losses[0])
    largest = float(np.max(changes[np.isfinite(changes)], initial=0.0))
    return max(2 * largest, float(np.finfo(problem.dtype).eps) * abs(float(losses[0])))


def grid(bounds: tuple[float, float], points: int) -> np.ndarray:
    """Equally spaced, both ends included: [points]. What is zero but for rounding is zero."""
    values = np.linspace(*bounds, points)
    return np.where(np.abs(values) < 1e-9 * max(abs(bounds[0]), abs(bounds[1])), 0.0, values)


def finite(values: np.ndarray) -> list[Any]:
    """As nested lists, None for what is not finite."""
    return [finite(one) if np.ndim(one) else (float(one) if np.isfinite(one) else None) for one in values]
