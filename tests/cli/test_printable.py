"""Names that somebody else chose reach no terminal and no page as they are."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from curvcli.errors import DataError
from curvcli.printable import printable
from curvcli.schema.base import printable_values
from curvcli.schema.report import Check

NASTY = ["\x1b]0;PWNED\x07", "\x1b[2J", "\u202eabc", "\u2066", "\x9b31m", "\x7f", "\u2028", "\udcff", "[/]", "[red]"]


@pytest.mark.parametrize("text", NASTY)
def test_nothing_that_a_terminal_obeys_is_left(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert printable(f"Schrödinger {text} λ_max ‖A‖") == f"Schrödinger {shown} λ_max ‖A‖"
    assert DataError(f"no {text}!", text).message.isprintable()


def test_keys_and_nested_values_too() -> None:
    check = Check(passed=True, value=1.0, threshold=2.0)
    value = {"a\x1b": [("\x07", 1.5, None), check], "numbers": [0.5, 1.5]}
    assert printable_values(value) == {"a\\x1b": [("\\x07", 1.5, None), check], "numbers": [0.5, 1.5]}


A = ("--model", "net.py:apply", "--data", "data.npz", "--loss", "softmax_cross_entropy")
NET = """
import jax.numpy as jnp


def apply(params, x):
    second = params["Dense_1"]
    first = next(layer for name, layer in params.items() if name != "Dense_1")
    return jnp.tanh(x @ first["kernel"] + first["bias"][None]) @ second["kernel"] + second["bias"][None]
"""


@pytest.fixture
def named(project):
    """The project with a plain function as its model, whose layers may have any name."""
    (project.folder / "curv.toml").unlink()
    project.write("net.py", NET)

    def make(name: str) -> str:
        arrays = {f"params/{key.replace('Dense_0', name)}": value for key, value in project.params.items()}
        np.savez(project.folder / "named.npz", **arrays)
        return "named.npz"

    return make


@pytest.mark.first_tier("A\\u202e", "A[bold]x")
@pytest.mark.parametrize("name", ["A\x1b]0;PWNED\x07\x1b[2J", "A\u202e", "A[bold]x", "A[red]x", "A:smile:"])
def test_a_summary_shows_names_as_escapes(named, curv, name: str) -> None:
    outcome = curv("trace", named(name), *A, "--format", "text", "-q")
    assert outcome.code == 0
    assert all(line.isprintable() for line in outcome.out.splitlines())
    assert printable(name)[:6] in outcome.out  # the rest may be shortened
    wrong = curv("trace", named(name), "--model", "curvcli.zoo:MLP", "--model-arg", "features=[8,3]", *A[2:])
    assert all(line.isprintable() for line in wrong.err.splitlines())


@pytest.mark.first_tier("a  \\n  b", "<script>")
@pytest.mark.parametrize("name", ['a xmlns="b', "a\x1b", "#010101", "a  \n  b", "<script>", "A\ufffe"])
def test_a_page_keeps_its_tags(named, curv, name: str) -> None:
    pytest.importorskip("matplotlib")
    assert curv("trace", named(name), *A, "-q", "-o", "x.json").code == 0
    assert curv("plot", "x.json", "-o", "x.html").code == 0
    page = Path("x.html").read_text(encoding="utf-8")
    pictures = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert pictures
    texts = [text for picture in pictures for text in ET.fromstring(picture).iter("text")]
    assert texts
    assert "xmlns" not in re.sub(r"[^<]*(?=<)", "", pictures[0])
