"""Whatever is given to an option: an error of usage in two lines, never one of curv's own."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from curvcli.cli.main import COMMANDS

ODD = st.sampled_from(
    [
        "",
        " ",
        "-1",
        "0",
        "1e400",
        "nan",
        "inf",
        "-inf",
        "9" * 30,
        "9" * 5000,
        "1:0",
        "a:b",
        ":",
        "/",
        "=",
        "[",
        "a" * 5000,
    ]
)
VALUE = ODD | st.text(st.characters(blacklist_categories=["Cs", "Cc"]), max_size=12)
ANALYSES = sorted(COMMANDS.keys() - {"schema", "doctor", "trust"})


@pytest.fixture(scope="module")
def options() -> Callable[[str], list[str]]:
    """The options of a command that take a value."""
    import typer.main

    from curvcli.cli.main import build_app

    def call(command: str) -> list[str]:
        group: Any = typer.main.get_command(build_app(command))
        return [one.opts[0] for one in group.commands[command].params if one.opts[0][0] == "-" and not one.is_flag]

    return call


@pytest.mark.parametrize("command", ANALYSES)
@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_of_any_option(
    command: str, data: st.DataObject, options: Any, curv: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where there is no checkpoint: what can be said of the options alone is said
    given_ = data.draw(st.lists(st.tuples(st.sampled_from(options(command)), VALUE), min_size=1, max_size=2))
    answered = curv(
        command, *[f"{name}={value}" if name.startswith("--") else f"{name}{value}" for name, value in given_]
    )
    assert answered.code in (2, 65, 66, 74, 77, 78), answered.err
    assert re.fullmatch(r"error: .+\nhint: .+\n", answered.err)
    assert answered.out == ""
    assert list(tmp_path.iterdir()) == []
