"""Random streams: their numbers, and that nothing is drawn beside them."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import jax
import numpy as np
import pytest

import curvcli
from curvcli.streams import Stream

PACKAGE = Path(curvcli.__file__).parent

SHARED = {
    frozenset({Stream.EXAMPLE_ERRORS, Stream.RANDOM_DIRECTIONS}),
    frozenset({Stream.LAYER_ERRORS, Stream.FILTER_DIRECTIONS, Stream.PRECONDITIONED_STARTS}),
}
"""Streams of one number, which no analysis draws from together: their draws are part of results that were published."""


def test_no_number_is_used_twice() -> None:
    by_number: dict[int, set[Stream]] = defaultdict(set)
    for stream in Stream:
        by_number[stream.number].add(stream)
    assert {frozenset(streams) for streams in by_number.values() if len(streams) > 1} == SHARED


def test_a_key_is_that_of_the_seed_and_the_number() -> None:
    keys = [jax.random.key_data(Stream.BOOTSTRAP.key(seed)) for seed in (3, 4)]
    np.testing.assert_array_equal(keys[0], jax.random.key_data(jax.random.fold_in(jax.random.key(3), (1 << 21) + 1)))
    assert np.any(keys[0] != keys[1])


@pytest.mark.parametrize("file", [file for file in sorted(PACKAGE.rglob("*.py")) if file.name != "streams.py"])
def test_no_file_folds_in_a_number_of_its_own(file: Path) -> None:
    """A number, or a constant of the file; indices of vectors and examples are variables."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "fold_in":
            index = node.args[1]
            names = {inner.id for inner in ast.walk(index) if isinstance(inner, ast.Name)}
            assert any(name.islower() for name in names), f"line {node.lineno}: draw from a Stream instead"


def test_every_stream_is_drawn_from() -> None:
    text = "".join(file.read_text(encoding="utf-8") for file in PACKAGE.rglob("*.py"))
    assert [stream.name for stream in Stream if f"Stream.{stream.name}" not in text] == []
