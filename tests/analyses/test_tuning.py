"""The way products are computed: chosen from sizes, given, timed, remembered."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

from curvcli.analyses.common import tuning
from curvcli.curvature import build
from curvcli.curvature.products import sums
from curvcli.curvature.products.prefetch import Prefetched
from curvcli.errors import SpecError
from curvcli.linalg.operator import to_dense
from curvcli.schema.plan import Way
from curvcli.schema.settings import AnalysisSettings
from tests.problems import make_problem, mlp_problem

SETTINGS = AnalysisSettings(dtype="float64")
PROBLEM = mlp_problem(count=50)
DEFAULT = tuning.default_way(PROBLEM, SETTINGS)


class Remembered:
    """A store in memory."""

    def __init__(self, way: Way | None = None) -> None:
        self.way = way

    def get(self) -> Way | None:
        return self.way

    def put(self, way: Way) -> None:
        self.way = way


def timings(monkeypatch: pytest.MonkeyPatch, seconds: Any) -> list[Way]:
    """Let `seconds(way)` stand for a clock; the ways that were timed."""
    timed: list[Way] = []

    def clock(problem: Any, settings: Any, way: Way) -> float:
        timed.append(way)
        return seconds(way)

    monkeypatch.setattr(tuning, "seconds_per_vector", clock)
    return timed


def test_small_network_takes_its_vectors_together_and_keeps_its_linear_maps() -> None:
    assert Way(batch_size=50, application="vmap", residuals="kept") == DEFAULT


def test_large_layers_take_one_vector_at_a_time() -> None:
    problem = mlp_problem(sizes=(500, 500, 10), count=2000, dtype="float32")
    way = tuning.default_way(problem, AnalysisSettings())
    assert way.application == "map"
    assert 1000 <= way.batch_size <= 2000


@pytest.mark.parametrize(("total", "largest", "size"), [(32, 7, 8), (100, 30, 25), (10, 3, 3), (5, 100, 5), (7, 1, 1)])
def test_batches_are_nearly_full(total: int, largest: int, size: int) -> None:
    assert tuning._even(total, largest) == size


def test_linear_maps_that_do_not_fit_are_made_afresh() -> None:
    kept = tuning.with_way(PROBLEM, SETTINGS, DEFAULT, "default").way.kept_bytes
    tight = SETTINGS.model_copy(update={"max_memory": tuning.SHARE * kept - 1})
    assert tuning.default_way(PROBLEM, tight).residuals == "fresh"
    assert tuning.default_way(PROBLEM, SETTINGS.model_copy(update={"max_memory": tuning.SHARE * kept})) == DEFAULT


def test_batch_size_of_the_user_is_kept() -> None:
    problem = tuning.planned(PROBLEM, SETTINGS.model_copy(update={"batch_size": 13}), store=Remembered(DEFAULT))
    assert problem.batches.batch_size == 13
    assert problem.way.chosen == "given"


def test_user_beats_memory_beats_sizes() -> None:
    way = Way(batch_size=7, application="map", residuals="fresh")
    other = Way(batch_size=9, application="map", residuals="kept")
    for given, store, chosen, expected in (
        (way, Remembered(other), "given", way),
        (None, Remembered(other), "remembered", other),
        (None, Remembered(), "default", DEFAULT),
        (None, None, "default", DEFAULT),
    ):
        problem = tuning.planned(PROBLEM, SETTINGS, given=given, store=store, timing="if worth it")
        assert (problem.way.chosen, tuning.way_of(problem)) == (chosen, expected)


def test_timing_takes_the_fastest_and_remembers_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cost = {("map", 25): 1.0, ("map", 12): 0.5, ("map", 6): 0.49}
    timed = timings(monkeypatch, lambda way: cost.get((way.application, way.batch_size), 2.0))
    store = Remembered()
    start = Way(batch_size=25, application="vmap", residuals="kept")
    monkeypatch.setattr(tuning, "default_way", lambda problem, settings: start)
    problem = tuning.planned(PROBLEM, SETTINGS, store=store, timing="always")
    assert problem.way.chosen == "measured"
    # 6 is not clearly faster than 12; 24 is slower, and nothing is timed twice.
    assert tuning.way_of(problem) == store.way == Way(batch_size=12, application="map", residuals="kept")
    assert len(timed) == len({(way.application, way.batch_size) for way in timed}) == 5


def test_a_slightly_faster_way_does_not_replace_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    timings(monkeypatch, lambda way: 1.0 if way == DEFAULT else 0.95)
    assert tuning.measured(PROBLEM, SETTINGS, DEFAULT) == DEFAULT


def test_short_runs_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = timings(monkeypatch, lambda way: 1.0)
    tuning.planned(PROBLEM, SETTINGS, store=Remembered(), timing="if worth it")
    assert not timed
    monkeypatch.setattr(tuning, "RATE", 1.0)
    tuning.planned(PROBLEM, SETTINGS, store=None, timing="if worth it")
    tuning.planned(PROBLEM, SETTINGS, store=Remembered(), timing="never")
    assert not timed
    tuning.planned(PROBLEM, SETTINGS, store=Remembered(), timing="if worth it")
    assert timed


@pytest.mark.first_tier("hessian", "fisher-mc")
@pytest.mark.parametrize("matrix", ["hessian", "fisher-mc", "gradient-covariance", "ntk"])
def test_a_timed_way_gives_the_same_matrix(matrix: Any) -> None:
    settings = SETTINGS.model_copy(update={"matrix": matrix, "mc_samples": 2})
    problem = tuning.planned(PROBLEM, settings, timing="always")
    np.testing.assert_allclose(
        to_dense(build(problem, matrix, mc_samples=2)), to_dense(build(PROBLEM, matrix, mc_samples=2)),
        rtol=1e-10, atol=1e-12,
    )  # fmt: skip


def test_a_network_that_jax_cannot_differentiate() -> None:
    def outside(x: Any) -> Any:
        return jax.pure_callback(lambda z: z, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    problem = make_problem(
        lambda p, x: outside(x @ p["w"]), {"w": np.eye(3)}, np.ones((4, 3)), np.ones((4, 3)), batch_size=4
    )
    with pytest.raises(SpecError, match="ggn of this model cannot be computed"):
        tuning.planned(problem, SETTINGS.model_copy(update={"matrix": "ggn"}))


def test_batch_larger_than_the_data_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = timings(monkeypatch, lambda way: 1.0)
    tuning.measured(PROBLEM, SETTINGS, DEFAULT)
    assert max(way.batch_size for way in timed) == 50


def test_data_shared_by_two_sizes_of_batch_are_the_same() -> None:
    small = tuning.with_way(PROBLEM, SETTINGS, DEFAULT.model_copy(update={"batch_size": 7}), "given")
    assert small.batches.num_examples == PROBLEM.batches.num_examples
    assert replace(small, way=PROBLEM.way, batches=PROBLEM.batches) == PROBLEM


def test_batches_that_do_not_fit_are_cut_and_it_is_said() -> None:
    limit = 4 * tuning.SHARE * tuning.network_work(PROBLEM).bytes * 8
    asked = SETTINGS.model_copy(update={"batch_size": 20, "max_memory": limit})
    problem = tuning.planned(PROBLEM, asked)
    assert problem.batches.batch_size == 7  # three micro-batches of a batch of 20
    (warning,) = tuning.remarks(problem, asked)
    assert "batches of 20 examples do not fit" in warning
    assert "micro-batches of 7" in warning
    np.testing.assert_allclose(
        to_dense(build(problem, "hessian")), to_dense(build(PROBLEM, "hessian")), rtol=1e-10, atol=1e-12
    )
    for settings in (asked.model_copy(update={"batch_size": None}), asked.model_copy(update={"max_memory": None})):
        problem = tuning.planned(PROBLEM, settings)
        assert problem.batches.batch_size <= (8 if settings.batch_size is None else 20)
        assert not tuning.remarks(problem, settings)
    assert tuning.planned(PROBLEM, asked.model_copy(update={"max_memory": 1})).batches.batch_size == 1


def test_data_that_would_take_the_memory_stream() -> None:
    nbytes = PROBLEM.batches.resized(50).nbytes
    for limit, streamed in ((tuning.SHARE * nbytes, False), (tuning.SHARE * nbytes - 1, True)):
        problem = tuning.planned(PROBLEM, SETTINGS.model_copy(update={"max_memory": limit, "batch_size": 1}))
        assert problem.batches.streamed is streamed
        assert isinstance(sums.resident(problem.batches), Prefetched) is streamed
        assert sums.held_bytes(problem.batches) == (4 * nbytes // 50 if streamed else nbytes)
