"""A Krylov basis that does not fit: fewer probes, outside of the device, none; the answers stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from curvcli.analyses import spectrum
from curvcli.analyses.common import krylov_memory
from curvcli.analyses.common.context import Context
from curvcli.analyses.common.planning import MemoryPlan
from curvcli.errors import MemoryLimitError
from curvcli.linalg.iterate import Silent
from curvcli.schema.inspect import InspectSettings
from curvcli.schema.spectrum import SpectrumSettings
from tests.problems import mlp_problem

PROBLEM = mlp_problem(sizes=(30, 40, 5), count=12, l2=1e-3, batch_size=3)
OPTIONS: dict[str, Any] = {"dtype": "float64", "skip_checks": True, "method": "xtrace", "probes": 4, "steps": 24}


def planned(limit: int | None, **settings: Any) -> MemoryPlan:
    return spectrum.memory_plan(PROBLEM, SpectrumSettings(**{**OPTIONS, "max_memory": limit, **settings}))


def run(limit: int | None = None, **settings: Any) -> Any:
    return spectrum.run(Context(PROBLEM, Silent()), SpectrumSettings(**{**OPTIONS, "max_memory": limit, **settings}))


PLENTY = planned(None)


def limit_for(basis: str, **settings: Any) -> int:
    """The largest of some limits with which a basis is where it is asked for."""
    for share in np.geomspace(1, 0.02, 60):
        try:
            if planned(int(PLENTY.bytes * share), **settings).basis == basis:
                return int(PLENTY.bytes * share)
        except MemoryLimitError:
            break
    raise AssertionError(basis)


@pytest.fixture
def no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full."""
    monkeypatch.setattr(krylov_memory, "_outside", lambda *_: None)


def same_answers(found: Any, plain: Any) -> None:
    for name in ("lambda_max", "lambda_min", "trace", "frobenius_norm"):
        assert getattr(found, name).value == pytest.approx(getattr(plain, name).value, rel=1e-9)
    for mine, other in zip(found.nodes, plain.nodes, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-8, atol=1e-10)


def test_the_order_of_ways_out() -> None:
    assert (PLENTY.at_once, PLENTY.basis, PLENTY.reason) == (4, "device", "")
    taken = []
    for share in np.geomspace(1, 0.1, 40):
        limit = int(PLENTY.bytes * share)
        try:
            found = planned(limit)
        except MemoryLimitError:
            break
        assert found.bytes <= limit
        taken.append((found.basis, found.at_once))
    bases = list(dict.fromkeys(basis for basis, _ in taken))
    assert bases == ["device", "disk"]
    for basis in bases:
        counts = [count for one, count in taken if one == basis]
        assert counts == sorted(counts, reverse=True)


@pytest.mark.slow
def test_basis_on_the_disk_gives_the_same_answers(tmp_path) -> None:
    limit = limit_for("disk")
    answer = run(limit, state=str(tmp_path))
    same_answers(answer.result, run().result)
    (warning,) = (one for one in answer.warnings if "basis" in one)
    assert "one probe of 24 steps takes" in warning
    assert "is kept on the disk" in warning
    assert not list(tmp_path.iterdir())


def test_on_an_accelerator_the_basis_is_in_the_hosts_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(krylov_memory.jax, "default_backend", lambda: "gpu")
    limit = limit_for("host")
    monkeypatch.setattr(krylov_memory, "free_host_bytes", lambda: 1000)
    assert planned(limit).basis == "none"
    monkeypatch.undo()
    plan = MemoryPlan(2, 0, "host", "for the test")
    monkeypatch.setattr(spectrum, "memory_plan", lambda *_: plan)
    answer = run()
    monkeypatch.undo()
    assert "for the test" in answer.warnings
    same_answers(answer.result, run().result)


def test_without_any_room_there_is_no_basis_and_it_is_said(no_room: None) -> None:
    limit = limit_for("none")
    answer, plain = run(limit), run(reorthogonalize="none")
    same_answers(answer.result, plain.result)
    (warning,) = (one for one in answer.warnings if "basis" in one or "reorthogonalisation" in one)
    assert "without reorthogonalisation" in warning
    assert answer.result.lambda_max.beyond is None
    assert answer.result.deflated == 0


def test_who_insists_is_refused(no_room: None) -> None:
    limit = limit_for("none")
    with pytest.raises(MemoryLimitError, match="one probe of 24 steps"):
        planned(limit, reorthogonalize="full")
    with pytest.raises(MemoryLimitError, match="vectors of"):
        planned(1000)


def test_a_forecast_says_which_and_why() -> None:
    settings = InspectSettings(**{**OPTIONS, "max_memory": limit_for("disk")})
    plan, _ = spectrum.forecast(Context(PROBLEM), settings)
    assert plan.basis == "disk"
    assert plan.reason is not None
    assert "the limit is" in plan.reason
    plan, _ = spectrum.forecast(Context(PROBLEM), InspectSettings(**OPTIONS))
    assert (plan.basis, plan.reason) == ("device", None)
