"""The first tier covers what the whole suite covers: every command, matrix, loss and exit code.

A test names a facet where its source, or a value it is parametrised by, holds it as a string or, for an exit code, a
number that is compared with a code. Facets are read from the package's own registries, so that a new one without a test
of the first tier fails here.
"""

from __future__ import annotations

import ast
import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from curvcli import errors
from curvcli.cli.main import COMMANDS
from curvcli.losses import LOSSES
from curvcli.schema.matrices import MATRICES as FACTS
from tests.conftest import EVERY_TEST, is_case
from tests.test_docs import known_options

TESTS = Path(__file__).parent
MATRICES = [name for name, facts in FACTS.items() if facts.matrix == "taken"]
EXIT_CODES = sorted({0, *(kind.exit_code for kind in vars(errors).values() if hasattr(kind, "exit_code"))})


@dataclass(frozen=True)
class Named:
    """Words in strings, and numbers that exit codes are compared with."""

    words: set[str]
    codes: set[int]


@pytest.fixture(scope="module")
def tests_of(request: pytest.FixtureRequest) -> dict[bool, list[pytest.Item]]:
    """Tests of the first tier (True) and the slow ones (False); skips where only a part of the suite was collected."""
    every = request.config.stash[EVERY_TEST]
    files = {test.path for test in every}
    if any(path not in files for path in TESTS.rglob("test_*.py")):
        pytest.skip("only a part of the suite was collected")
    tiers: dict[bool, list[pytest.Item]] = {True: [], False: []}
    for test in every:
        if test.path.is_relative_to(TESTS) and test.get_closest_marker("nightly") is None:
            tiers[test.get_closest_marker("slow") is None].append(test)
    return tiers


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_quick_test_on_the_command_line(tests_of, command):
    assert any(command in _words(test) for test in tests_of[True] if "cli" in test.path.parts)


@pytest.mark.parametrize("name", [*MATRICES, *LOSSES])
def test_every_matrix_and_loss_has_a_quick_test(tests_of, name):
    assert any(name in _words(test) for test in tests_of[True])


@pytest.mark.parametrize("code", EXIT_CODES)
def test_every_exit_code_has_a_quick_test(tests_of, code):
    assert any(code in _codes(test) for test in tests_of[True] if "cli" in test.path.parts)


def test_no_combination_is_tested_by_slow_tests_alone(tests_of):
    """Command × matrix, command × loss, matrix × loss, command × exit code."""
    quick, slow = _combinations(tests_of[True]), _combinations(tests_of[False])
    assert {pair: slow[pair] for pair in slow.keys() - quick.keys()} == {}


def test_cases_that_are_named_for_the_first_tier_exist(tests_of):
    every = [*tests_of[True], *tests_of[False]]
    named = {
        (test.path, test.originalname, name)
        for test in every
        for mark in test.iter_markers("first_tier")
        for name in mark.args
    }
    cases = defaultdict(list)
    for test in every:
        cases[test.path, test.originalname].append(test)
    assert [case for case in named if not any(is_case(test, case[2]) for test in cases[case[:2]])] == []


def test_what_a_test_names_is_read_from_its_source_and_its_parameters():
    helper = "def fails(outcome):\n    assert outcome.code == 65\n"
    named = _functions(f"{helper}def test_it(curv, name):\n    fails(curv('trace', name))\n")["test_it"]
    assert named == Named({"trace"}, {65})
    assert set(_values({"name": ["hessian", ("poisson", 78)]})) == {"name", "hessian", "poisson", 78}


def _combinations(tests: Iterable[pytest.Item]) -> dict[tuple[Any, Any], str]:
    """Pairs of facets that some test names, each with one such test."""
    named: dict[tuple[Any, Any], str] = {}
    for test in tests:
        words = _words(test)
        facets = [words & set(COMMANDS), words & set(MATRICES), words & set(LOSSES), _codes(test)]
        for left, right in itertools.combinations(facets, 2):
            named.update(dict.fromkeys(itertools.product(left, right), test.nodeid))
    without = [command for command in COMMANDS if not known_options(command) & {"--matrix", "--matrices"}]
    return {pair: test for pair, test in named.items() if pair not in set(itertools.product(without, MATRICES))}


def _words(test: pytest.Item) -> set[Any]:
    """Strings of a test's source and of its parameters, and the command that its file is named after."""
    of_file = {command for command in COMMANDS if test.path.stem.startswith(f"test_{command}")}
    return of_file | _function(test).words | set(_parameters(test))


def _codes(test: pytest.Item) -> set[int]:
    """Exit codes that a test compares with, or that it is given as `code`."""
    return (_function(test).codes | set(_parameters(test, "code"))) & set(EXIT_CODES)


def _function(test: pytest.Item) -> Named:
    return _file(test.path)[test.originalname]  # type: ignore[attr-defined]


def _parameters(test: pytest.Item, *names: str) -> Iterator[Any]:
    parameters = test.callspec.params if hasattr(test, "callspec") else {}  # type: ignore[attr-defined]
    return _values([value for name, value in parameters.items() if not names or name in names])


@cache
def _file(path: Path) -> dict[str, Named]:
    return _functions(path.read_text())


def _functions(source: str) -> dict[str, Named]:
    """What each function of a file names, itself or by the functions of the file that it uses."""
    functions = {node.name: node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)}

    def used(name: str, seen: set[str]) -> set[str]:
        seen.add(name)
        for node in ast.walk(functions[name]):
            if isinstance(node, ast.Name) and node.id in functions.keys() - seen:
                used(node.id, seen)
        return seen

    return {
        name: Named(
            set().union(*(_strings(functions[user]) for user in used(name, set()))),
            set().union(*(_compared(functions[user]) for user in used(name, set()))),
        )
        for name in functions
    }


def _strings(function: ast.AST) -> set[str]:
    constants = (node.value for node in ast.walk(function) if isinstance(node, ast.Constant))
    return {word for text in constants if isinstance(text, str) for word in text.replace(",", " ").split()}


def _compared(function: ast.AST) -> set[int]:
    """Whole numbers in comparisons with something called `code`, and `Error.exit_code` in them."""
    comparisons = [node for node in ast.walk(function) if isinstance(node, ast.Compare) and "code" in ast.unparse(node)]
    inside = [node for comparison in comparisons for node in ast.walk(comparison)]
    numbers = {node.value for node in inside if isinstance(node, ast.Constant) and isinstance(node.value, int)}
    return numbers | {
        getattr(errors, node.value.id).exit_code
        for node in inside
        if isinstance(node, ast.Attribute) and node.attr == "exit_code" and isinstance(node.value, ast.Name)
        if hasattr(errors, node.value.id)
    }


def _values(value: Any) -> Iterator[Any]:
    """The strings, word by word, and the whole numbers in nested lists, tuples and dictionaries."""
    if isinstance(value, str):
        yield from value.replace(",", " ").split()
    elif isinstance(value, int):
        yield value
    elif isinstance(value, dict):
        yield from _values([*value, *value.values()])
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _values(part)
