"""Help is quick and agrees with the settings."""

import re
import sys
import typing

import pytest

from curvcli.cli.main import COMMANDS
from curvcli.cli.options import model_arguments, parse_size
from curvcli.schema.inspect import InspectSettings
from curvcli.schema.settings import FIXED, InitSettings
from curvcli.schema.spectrum import SpectrumSettings

HEAVY = {"jax", "jaxlib", "numpy", "flax", "orbax", "scipy", "pyarrow", "tensorstore"}
SETTINGS = {"spectrum": SpectrumSettings, "inspect": InspectSettings, "init": InitSettings}
NOT_SETTINGS = {
    "spec", "model", "model-arg", "kind", "data", "inputs", "targets", "loss", "l2", "reduction", "step", "all-steps",
    "trust", "output", "format", "quiet", "verbose", "debug", "no-cache", "profile", "dry-run", "help",
}  # fmt: skip


@pytest.fixture
def help_of(curv, monkeypatch):
    """The help text in one line without its frame."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments):
        answered = curv(*arguments, "--help")
        assert (answered.code, answered.err) == (0, "")
        return answered.out

    return call


@pytest.mark.parametrize("arguments", ["--help", "spectrum --help", "schema spectrum"])
def test_what_needs_no_engine_imports_none(shell, arguments):
    answered = shell(f"{{ $CURV {arguments} >/dev/null; }} 2>&1", CURV=f"{sys.executable} -X importtime -m curvcli")
    assert answered.code == 0
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in answered.out.splitlines()}
    assert "curvcli" in imported
    assert not imported & HEAVY


@pytest.mark.parametrize("command", COMMANDS)
def test_help_leads_with_an_example(help_of, command):
    lines = [line.strip() for line in help_of(command).splitlines() if line.strip()]
    assert lines[0].startswith("Usage: curv " + command)
    assert lines[1].startswith(f"curv {command} ")


def test_help_of_curv_leads_with_an_example_and_names_every_command(help_of):
    text = help_of()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    assert lines[1].startswith("curv spectrum model.ckpt ")
    for command, summary in COMMANDS.items():
        assert re.search(rf"│ {command}\s+{re.escape(summary)}", text)


@pytest.mark.parametrize("command", SETTINGS)
def test_options_and_settings_are_the_same_with_the_same_defaults(help_of, command):
    rows: dict[str, str] = {}
    for line in help_of(command).splitlines():
        match = re.match(r"│\s+--([a-z0-9-]+)", line)
        name = match[1] if match else next(reversed(rows), "")
        rows[name] = rows.get(name, "") + " " + " ".join(line.strip("│╭╰─ \n").split())
    fields = {name: one for name, one in SETTINGS[command].model_fields.items() if one.json_schema_extra != FIXED}
    options = {name.removeprefix("no-").replace("-", "_") if name == "no-regulariser" else name.replace("-", "_")
               for name in rows if name and name not in NOT_SETTINGS}  # fmt: skip
    assert options == set(fields)
    for name, field in fields.items():
        text = rows["no-regulariser" if name == "regulariser" else name.replace("_", "-")]
        shown = re.findall(r"\(default: ([^)]*)\)", text)
        default = None if field.default_factory else field.default
        if default is None or isinstance(default, bool):
            assert not any(_parses(value) for value in shown)
        else:
            assert [type(default)(value) for value in shown] == [default]
        if typing.get_origin(field.annotation) is typing.Literal:
            for choice in typing.get_args(field.annotation):
                assert choice in text


def _parses(text):
    try:
        float(text)
    except ValueError:
        return False
    return True


def test_version(curv):
    from curvcli import __version__

    assert curv("--version").out == f"curv {__version__}\n"


@pytest.mark.parametrize(
    ("text", "size"), [("1", 1), ("2kB", 2000), ("2 KiB", 2048), (".5 gb", 5 * 10**8), ("1.5MiB", 3 * 2**19)]
)
def test_sizes(text, size):
    assert parse_size(text) == size


def test_a_size_beyond_all_floats():
    assert parse_size("9" * 400 + "TB") == sys.maxsize
    assert parse_size("9" * 5000) == sys.maxsize


def test_model_arguments():
    values = model_arguments(["features=[8, 3]", 'activation = "a=b"', "on=true", "rate=1e-3"])
    assert values == {"features": [8, 3], "activation": "a=b", "on": True, "rate": 1e-3}
