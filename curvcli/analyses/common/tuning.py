"""How products are computed: examples in a batch, vectors at once or one by one, linear maps kept or made afresh.

The answer is the same but for rounding. A way is chosen from sizes alone, which costs nothing and is always the same,
or by timing a few (`measured`), which pays where many products follow.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, Literal, Protocol

import jax
import numpy as np

from curvcli.analyses.common.planning import human_bytes, memory_limit, working_bytes
from curvcli.curvature import build
from curvcli.curvature.jaxprs.work import Work, network_work
from curvcli.curvature.operators import linear_map_bytes
from curvcli.devices import greatest
from curvcli.errors import CurvError, SpecError
from curvcli.linalg.probes import sphere
from curvcli.problem import Batches, Problem
from curvcli.problem import Way as ProblemWay
from curvcli.schema.matrices import MATRICES
from curvcli.schema.plan import Way
from curvcli.schema.settings import AnalysisSettings

EXPECTED_BLOCK = 8

BLOCK_BYTES = 32 << 20
"""Intermediate values of a batch times the vectors of a block, for `vmap`: about what the caches of a CPU hold.
Measured: 448 to 896 examples are best for a 26,000-parameter network in blocks of 8."""

MAX_BATCH = 1024
"""Examples in a batch for `vmap`."""

SINGLE_BYTES = 8 << 20
"""The same for `map`, where one vector is in flight."""

USES = 4096
"""Examples, times the places where each weight is used in one (positions, tokens), that make a batch for `map` worth
its own sums over all parameters. Measured: the Hessian of an MLP of 10 million parameters takes a fifth less time with
4,096 examples in a batch than with 1,024; a transformer does not care between 8 and 32 sequences of 128 tokens."""

LARGEST_BYTES = 512 << 20
"""No batch's intermediate values take more."""

SINGLE_FLOPS = 1e8
"""Forward operations of a batch beyond which a single vector keeps a CPU's cores busy."""

SHARE = 4
"""Linear maps are kept, and data stay on the device, if they take at most this part of the memory; intermediate values
of a batch never take more. What is left is for vectors."""


WORTH = 60.0
"""Expected seconds of products from which timing some beforehand pays."""

RATE = 3e10
"""Floating-point operations a second, low for any machine: for `WORTH` alone."""

MARGIN = 0.9
"""A way must take this part of the best one's time to replace it: timings scatter, choices should not."""

Chosen = Literal["default", "measured", "remembered", "given"]


class Store(Protocol):
    """Where measured ways are remembered."""

    def get(self) -> Way | None:
        """The way found earlier for this problem on this machine."""
        ...

    def put(self, way: Way) -> None:
        """Remember it."""
        ...


def planned(
    problem: Problem,
    settings: AnalysisSettings,
    *,
    given: Way | None = None,
    store: Store | None = None,
    timing: Literal["never", "if worth it", "always"] = "never",
) -> Problem:
    """The problem with its batches and the way its products are computed.

    Parameters
    ----------
    given
        The user's own choice, over all others.
    store
        Of measured ways; without one, none is timed unasked, so that equal runs do equal work.
    timing
        Whether to time ways that are not remembered; `always` also those that are.
    """
    if given is not None:
        return with_way(problem, settings, given, "given")
    free = settings.batch_size is None and not problem.batches.coupled
    if free and timing != "always" and store is not None and (found := store.get()) is not None:
        return with_way(problem, settings, found, "remembered")
    default = default_way(problem, settings)
    if not free:
        return with_way(problem, settings, default, "given")
    worth = store is not None and timing == "if worth it" and expected_seconds(problem, settings) >= WORTH
    if timing != "always" and not worth:
        return with_way(problem, settings, default, "default")
    best = measured(problem, settings, default)
    if store is not None:
        store.put(best)
    return with_way(problem, settings, best, "measured")


def with_way(problem: Problem, settings: AnalysisSettings, way: Way, chosen: Chosen) -> Problem:
    """The problem with products computed this way; a remembered one keeps linear maps only where they fit today.

    Batches are cut smaller where their intermediate values would take more than a part of the memory.
    """
    batch_size = _cut(min(way.batch_size, problem.batches.num_examples), _fitting_batch(problem, settings))
    problem = replace(problem, batches=_with_room(problem.batches.resized(batch_size), settings))
    kept = _kept_bytes(problem, settings) if way.residuals == "kept" else 0
    if chosen == "remembered" and not _may_be_kept(kept, settings):
        kept = 0
    width = _width(problem, way)
    return replace(problem, way=ProblemWay(way.application, kept, width, chosen))


def _fitting_batch(problem: Problem, settings: AnalysisSettings) -> int:
    """Examples whose intermediate values, with one vector in flight, take a share of the memory; at least 1."""
    return max(memory_limit(settings.max_memory) // SHARE // (4 * max(network_work(problem).bytes, 1)), 1)


def _cut(size: int, largest: int) -> int:
    """A batch cut into the fewest micro-batches of at most `largest` examples."""
    return -(-size // -(-size // largest))


def _with_room(batches: Batches, settings: AnalysisSettings) -> Batches:
    """Data that would take more than a share of the memory are read at every pass, although they might stay."""
    return replace(batches, streamed=batches.nbytes > memory_limit(settings.max_memory) // SHARE)


def remarks(problem: Problem, settings: AnalysisSettings) -> list[str]:
    """What the user should know of the way that was taken: where it is not what was asked for."""
    size, asked = problem.batches.batch_size, settings.batch_size
    if asked is None or size >= min(asked, problem.batches.num_examples):
        return []
    limit = memory_limit(settings.max_memory)
    return [
        f"batches of {asked} examples do not fit into {human_bytes(limit)}: they are cut into micro-batches of {size}; "
        "the answer differs by rounding alone"
    ]


def _width(problem: Problem, way: Way) -> int:
    """Vectors of a block whose tangents fit the caches together with a batch's values."""
    if way.application == "map" or jax.default_backend() != "cpu":
        return ProblemWay().width
    values = max(network_work(problem).bytes * problem.batches.batch_size, 1)
    return int(np.clip(BLOCK_BYTES // values - 2, EXPECTED_BLOCK, ProblemWay().width))


def way_of(problem: Problem) -> Way:
    """The way that a problem's products are computed, for its report."""
    return Way(
        batch_size=problem.batches.batch_size,
        application=problem.way.application,
        residuals="kept" if problem.way.kept_bytes else "fresh",
    )


def default_way(problem: Problem, settings: AnalysisSettings) -> Way:
    """The way chosen from sizes alone; a batch size in the settings is kept.

    The batch divides the examples evenly, so that the last one has little padding.
    """
    total, work = problem.batches.num_examples, network_work(problem)
    together, single = _batch_together(work), _batch_alone(problem, work)
    busy = work.flops * min(single, total) > SINGLE_FLOPS
    alone = MATRICES[settings.matrix].rows == "parameters" and busy and jax.default_backend() == "cpu"
    mesh = problem.batches.mesh
    largest = (single if alone else together) * (1 if mesh is None else mesh.size)
    batch_size = min(settings.batch_size or _even(total, largest), total)
    if problem.batches.coupled:
        batch_size = problem.batches.batch_size
    application: Literal["vmap", "map"] = "map" if alone else "vmap"
    resized = replace(problem, batches=problem.batches.resized(batch_size))
    kept = _kept_bytes(resized, settings)
    residuals = "kept" if _may_be_kept(kept, settings) else "fresh"
    return Way(batch_size=batch_size, application=application, residuals=residuals)


def _may_be_kept(kept: int, settings: AnalysisSettings) -> bool:
    return 0 < kept <= memory_limit(settings.max_memory) // SHARE


def _even(total: int, largest: int) -> int:
    """Examples in a batch so that all batches are nearly full: at most `largest`, or a fourth more for less padding."""
    fewest = -(-total // largest)
    choices = [-(-total // count) for count in (fewest, fewest - 1) if count and total <= 1.25 * largest * count]
    return min(choices, key=lambda size: -total % size)


def _batch_together(work: Work) -> int:
    return int(np.clip(BLOCK_BYTES // (max(work.bytes, 1) * (EXPECTED_BLOCK + 2)), 1, MAX_BATCH))


def _batch_alone(problem: Problem, work: Work) -> int:
    uses = max(work.flops / (2 * problem.dim), 1.0)
    wanted = max(USES / uses, SINGLE_BYTES / max(work.bytes, 1))
    return int(np.clip(wanted, 1, max(LARGEST_BYTES // max(work.bytes, 1), 1)))


def _kept_bytes(problem: Problem, settings: AnalysisSettings) -> int:
    """What the linear maps of all batches would take. The products are traced here for the first time.

    Raises
    ------
    SpecError
        The network cannot be differentiated as the matrix asks.
    """
    try:
        one = linear_map_bytes(problem, settings.matrix, mc_samples=settings.mc_samples, seed=settings.seed)
    except CurvError:
        raise
    except Exception as error:
        raise SpecError(
            f"the {settings.matrix} of this model cannot be computed: {' '.join(str(error).split())[:200]}",
            "JAX must be able to differentiate its call, forwards too; --debug shows where it cannot",
        ) from error
    return one * len(problem.batches)


def expected_seconds(problem: Problem, settings: AnalysisSettings) -> float:
    """Roughly what the products will take."""
    products = settings.max_probes * getattr(settings, "steps", 1)
    products = max(products, 10 * getattr(settings, "k", 0))
    return products * product_seconds(problem)


def product_seconds(problem: Problem) -> float:
    """Roughly what a product takes: that with a Hessian is six forward passes."""
    return 6 * network_work(problem).flops * problem.batches.num_examples / RATE


def measured(problem: Problem, settings: AnalysisSettings, default: Way) -> Way:
    """The fastest way found by timing: the other application, then smaller and larger batches.

    Cost: some ten blocks of products of one batch, and the compilation of three to six programs.
    """
    seconds = {_named(default): seconds_per_vector(problem, settings, default)}
    best = default
    for change in (_other_application, _smaller, _larger):
        while (way := change(best, settings)) is not None and _named(way) not in seconds:
            if not _fits(problem, settings, way):
                break
            seconds[_named(way)] = seconds_per_vector(problem, settings, way)
            if seconds[_named(way)] > MARGIN * seconds[_named(best)]:
                break
            best = way
    return best


def _named(way: Way) -> tuple[int, str]:
    return way.batch_size, way.application


def _other_application(way: Way, settings: AnalysisSettings) -> Way | None:
    if MATRICES[settings.matrix].rows == "outputs":
        return None
    return way.model_copy(update={"application": "map" if way.application == "vmap" else "vmap"})


def _smaller(way: Way, settings: AnalysisSettings) -> Way | None:
    return way.model_copy(update={"batch_size": way.batch_size // 2}) if way.batch_size > 1 else None


def _larger(way: Way, settings: AnalysisSettings) -> Way | None:
    return way.model_copy(update={"batch_size": way.batch_size * 2})


def _fits(problem: Problem, settings: AnalysisSettings, way: Way) -> bool:
    """Whether the batch is no larger than the data, or is the problem's own, and a block of vectors has the memory."""
    batches = problem.batches
    if way.batch_size > batches.num_examples or (batches.coupled and way.batch_size != batches.batch_size):
        return False
    trial = with_way(problem, settings, way, "measured")
    return working_bytes(trial, settings, problem.dim)(EXPECTED_BLOCK) <= memory_limit(settings.max_memory)


def seconds_per_vector(problem: Problem, settings: AnalysisSettings, way: Way) -> float:
    """Seconds of a product with one vector and one example, by blocks of products of the first batch."""
    size, batches = way.batch_size, problem.batches

    def first(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf[:size], tree)

    inputs, targets, weight = first((batches.inputs, batches.targets, batches.weight))
    part = replace(batches, inputs=inputs, targets=targets, weight=weight, batch_size=size)
    operator = build(
        with_way(replace(problem, batches=part), settings, way, "measured"),
        settings.matrix,
        with_regulariser=False,
        mc_samples=settings.mc_samples,
        seed=settings.seed,
    )
    vectors = sphere(jax.random.key(settings.seed), 0, EXPECTED_BLOCK, operator.dim, operator.dtype)
    shortest, spent = np.inf, 0.0
    for run in range(6):
        start = time.perf_counter()
        jax.block_until_ready(operator.matmat(vectors))
        seconds = time.perf_counter() - start
        if run > 1:  # the first compiles, the second keeps
            shortest, spent = min(shortest, seconds), spent + seconds
            if greatest(spent) > 2:
                break
    return greatest(shortest) / (size * EXPECTED_BLOCK)
