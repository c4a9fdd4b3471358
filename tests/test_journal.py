"""What is recalled are the same questions about the same problem, and nothing else."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

from curvcli import journal
from curvcli.analyses.common.context import Context
from curvcli.analyses.lines import landscape
from curvcli.analyses.lines.directions import Inputs as LineInputs
from curvcli.curvature import along, build
from curvcli.journal import Journal
from curvcli.linalg.iterate import Silent
from curvcli.problem import Problem
from curvcli.schema.landscape import LandscapeSettings
from tests.problems import mlp_problem


class Memory:
    """A store whose `run` is one process: what it keeps is found by later ones only."""

    def __init__(self) -> None:
        self.kept: list[tuple[bytes, Any]] = []
        self.left = 10**6

    def run(self, problem: Problem, *, keeps: int = 10**6) -> Journal:
        """A process that is killed when it has kept so many records."""
        self.places: dict[bytes, deque[Any]] = defaultdict(deque)
        for key, row in self.kept:
            self.places[key].append(row)
        self.left = keeps
        return Journal(self, problem)

    def take(self, keys: Sequence[bytes], *, finished: bool = False) -> list[Any]:
        return [self.places[key].popleft() if self.places[key] else None for key in keys]

    def holds(self, key: bytes) -> bool:
        return bool(self.places[key])

    def exhausted(self) -> bool:
        return not any(self.places.values())

    def keep(self, keys: Iterable[bytes], rows: Any) -> None:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        self.kept += zip(keys, rows, strict=True)


@pytest.fixture
def network() -> Problem:
    return mlp_problem(sizes=(3, 4, 3), l2=0.01, batch_size=7)


@pytest.fixture
def vectors(network: Problem) -> Any:
    return jax.random.normal(jax.random.key(0), (3, network.dim))


def recalled(memory: Memory, about: Problem, problem: Problem, matrix: str, vectors: Any, **settings: Any) -> int:
    """Rows of the product that a later process recalls."""
    process = memory.run(about)
    with process.open():
        image = build(problem, matrix, **settings).matmat(vectors)
    np.testing.assert_array_equal(image, build(problem, matrix, **settings).matmat(vectors))
    return process.recalled


def test_the_same_products_and_no_others(network: Problem, vectors: Any) -> None:
    memory = Memory()
    assert recalled(memory, network, network, "hessian", vectors) == 0
    before = list(memory.kept)

    def again(problem: Problem, matrix: str, vectors: Any, **settings: Any) -> int:
        memory.kept = list(before)
        return recalled(memory, network, problem, matrix, vectors, **settings)

    assert again(network, "hessian", vectors) == 3
    assert again(network, "ggn", vectors) == 0
    assert again(network, "hessian", vectors, damping=0.1) == 0
    assert again(network, "hessian", vectors, with_regulariser=False) == 0
    assert again(network, "hessian", vectors.at[:, 0].add(1e-15)) == 0
    assert again(network, "hessian", vectors[:, ::-1]) == 0
    moved = replace(network, params={name: 1.01 * leaf for name, leaf in network.params.items()})
    assert again(moved, "hessian", vectors) == 0
    # Other data are another problem, which the journal is not about, and must not be answered from it.
    fewer = replace(network, batches=network.batches.chosen(np.arange(5)))
    assert again(fewer, "hessian", vectors) == 0
    assert memory.kept == before


def test_new_rows_beside_known_ones(network: Problem, vectors: Any) -> None:
    memory = Memory()
    recalled(memory, network, network, "hessian", vectors[:2])
    process = memory.run(network)
    with process.open():
        image = build(network, "hessian").matmat(vectors)
    assert process.recalled == 2
    np.testing.assert_allclose(image, build(network, "hessian").matmat(vectors), rtol=1e-12, atol=1e-13)


def test_a_process_does_not_recall_its_own(network: Problem, vectors: Any) -> None:
    memory = Memory()
    for expected in (0, 6):
        process = memory.run(network)
        with process.open():
            operator = build(network, "hessian")
            operator.matmat(vectors), operator.matmat(vectors)
        assert process.recalled == expected
        assert len(memory.kept) == 6


def test_a_killed_landscape_goes_on(network: Problem) -> None:
    settings = LandscapeSettings(dtype="float64", skip_checks=True, along=["random", "gradient"], points=4)

    def run(problem: Problem = network) -> Any:
        return landscape.run(Context(problem, Silent(), LineInputs({})), settings).result

    whole, memory = run(), Memory()
    for _ in range(2):
        with memory.run(network, keeps=2).open(), pytest.raises(KeyboardInterrupt):
            run()
    last = memory.run(network)
    with last.open():
        assert run() == whole
    assert last.recalled > 0


def test_work_that_was_given_up_is_not_kept(network: Problem, vectors: Any) -> None:
    memory = Memory()
    with memory.run(network).open():
        assert along.losses(network, vectors[:1], np.ones((2, 1)), stop=lambda: "time limit") is None
    assert memory.kept == []


def test_what_only_finished_runs_have(network: Problem, vectors: Any) -> None:
    assert journal.finished_rows(network, vectors, "name") == [None] * 3
    memory = Memory()
    with memory.run(network).open():
        journal.keep_rows(network, vectors[:2], np.eye(2), "name")
    with memory.run(network).open():
        journal.keep_rows(network, vectors, np.eye(3), "name")
        assert len(memory.kept) == 3
    with memory.run(network).open():
        found = journal.finished_rows(network, vectors, "name")
    np.testing.assert_array_equal(found[0], [1, 0])
    assert journal.finished_rows(network, vectors, "another") == [None] * 3
