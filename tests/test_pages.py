"""The page of every command holds: its options are those of the help, and its examples print what it shows."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from curvcli.cli.main import COMMANDS, run
from docs.pages import FOLDER, INDEX, ROOT, environment, examples, with_outputs, with_tables, words


def page(name: str) -> str:
    """The text of a page."""
    return (FOLDER / f"{name}.md").read_text(encoding="utf-8")


@pytest.fixture
def terminal(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[str], str]:
    """Runs a command line, `curv` in this process, in a folder where the sample models are; what it shows."""
    (tmp_path / "sample_models").symlink_to(ROOT / "sample_models")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])  # the folders of targets join it

    def call(line: str) -> str:
        command, *arguments = shlex.split(line)
        if command != "curv":
            return subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True).stdout
        arguments, target = (arguments[:-2], arguments[-1]) if ">" in arguments else (arguments, None)
        capfd.readouterr()
        with monkeypatch.context() as patch:
            for name, value in environment(line).items():
                patch.setenv(name, value)
            code = run(arguments)
        out, err = capfd.readouterr()
        assert code == 0, err
        if target is not None:
            Path(target).write_text(out, encoding="utf-8")
            out = ""
        return err + out

    return call


def test_every_command_has_a_page_and_every_page_a_command() -> None:
    assert {path.stem for path in FOLDER.glob("*.md")} == {INDEX, *COMMANDS}


@pytest.mark.parametrize("name", [INDEX, *COMMANDS])
def test_tables_say_what_the_help_says(name: str) -> None:
    text = page(name)
    assert text.count("<!-- options -->\n") == text.count("<!-- end -->") - (name == INDEX) == 1
    assert with_tables(text, name) == text  # else: python docs/pages.py


@pytest.mark.first_tier("trace", "landscape", "watch", "plot", "init", "schema")
@pytest.mark.parametrize("name", COMMANDS)
def test_examples_print_what_the_page_shows(name: str, terminal: Callable[[str], str]) -> None:
    shown = examples(page(name))
    assert any(shlex.split(command)[:2] == ["curv", name] for command, _ in shown)
    for command, output in shown:
        assert words(terminal(command)) == words(output), command  # else: python docs/pages.py


def test_a_changed_word_is_noticed_and_a_changed_digit_is_not() -> None:
    said = "λ_max  4.1175 ± 3.9e-06 (95%, 4 probes)\n 1e+04 │ ▂█ ▇\n       └────\n12,345 products\n"
    assert words(said) == words(said.replace("4.1175", "-4.12").replace("▂█", "▁▂█").replace("12,345", "9"))
    for word in ("λ_max", "probes", "products", "±", "│"):
        assert words(said) != words(said.replace(word, "?")), word


def test_outputs_are_written_below_their_commands() -> None:
    text = "# a\n\n```console\n$ curv a \\\n    --b\nold\n$ curv c\n```\n\n```\n$ not this\n```\n"
    written = with_outputs(text, lambda command: f"<{command}>  \n")
    assert examples(written) == [("curv a --b", "<curv a --b>\n"), ("curv c", "<curv c>\n")]
    assert written.endswith("\n```\n\n```\n$ not this\n```\n")
