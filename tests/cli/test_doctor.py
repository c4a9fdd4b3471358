"""`curv doctor`: what is there, and what will be in the way."""

import jsonschema
import pytest

from curvcli.analyses.common import machine
from curvcli.schema.doctor import Memory


@pytest.fixture(autouse=True)
def _briefly(monkeypatch):
    whole = machine.speed
    monkeypatch.setattr(machine, "speed", lambda: whole(0.01))


def test_what_is_there(curv, schema_of):
    answered = curv("doctor")
    assert (answered.code, answered.err) == (0, "")
    record = answered.report
    jsonschema.validate(record, schema_of("doctor"), jsonschema.Draft202012Validator)
    assert record["problems"] == []
    assert record["packages"]["jax"]
    assert record["speed"]["products"] >= 8
    assert 0 < record["memory"]["limit"] <= record["memory"]["available"]


def test_for_people(curv, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shown = curv("doctor", "--format", "text").out.splitlines()
    assert shown[0] == "Nothing wrong was found"
    assert max(map(len, shown)) <= 80


def test_what_will_be_in_the_way(curv, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CURV_CACHE_DIR", str(tmp_path / "file"))
    monkeypatch.setattr(machine, "sums_rightly", lambda: False)
    monkeypatch.setattr(machine, "memory", lambda: Memory(available=10**8, limit=10**8))
    record = curv("doctor").report
    assert record["cache"] is None
    found = " ".join(record["problems"])
    assert all(text in found for text in ("sums wrongly", "CURV_CACHE_DIR", "only 100 MB"))
