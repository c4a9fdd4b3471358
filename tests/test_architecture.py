"""The house rules: who may import whom, how long a file may be, and that help does not start the engine."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "curvcli"
FILES = sorted(PACKAGE.rglob("*.py"))

# What each room may import of the package, besides itself, `errors`, `printable`, `schema` (but for those of
# `WITHOUT_SCHEMA`) and the package's own head.
WITHOUT_SCHEMA = {"linalg"}
EVERYWHERE = {"compiling", "jax_internals", "streams"}
ALLOWED = {
    "schema": set(),
    "errors": set(),
    "printable": set(),
    "xla": set(),
    "compiling": {"xla"},
    "jax_internals": set(),
    "streams": set(),
    "stopwatch": set(),
    "journal": {"devices"},
    "atomic": {"sources"},
    "sources": set(),
    "losses": set(),
    "devices": {"compiling"},
    "problem": {"losses", "devices"},
    "zoo": set(),
    "linalg": {"stopwatch", "devices"},
    "curvature": {"problem", "losses", "linalg", "stopwatch", "journal", "devices"},
    "analyses": {"curvature", "problem", "losses", "linalg", "journal", "devices"},
    "loading": {"problem", "losses", "atomic", "devices", "sources"},
    "registry": set(),
    "figures": {"registry"},
    "run": {"registry", "loading", "analyses", "atomic", "sources", "stopwatch", "journal", "devices", "xla"},
    "cli": {"run", "registry", "figures", "loading", "analyses", "atomic", "sources", "stopwatch", "devices", "xla"},
    "api": {"run", "registry", "loading", "analyses", "stopwatch", "xla"},
    "__main__": {"cli"},
}
ENGINE = {"jax", "jaxlib", "flax", "orbax", "numpy", "scipy", "optax"}
STARTS_LATE = ("run", "cli", "api")
"""Import the engine inside functions only."""
LIGHT = ("schema", "errors", "printable", "xla", "atomic", "sources", "registry")
"""Standard library and pydantic only."""


def room(path: Path) -> str:
    """The first part of a file's path in the package."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> set[str]:
    """Full names of all modules that a tree imports."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module or ""}
    return names


def top_level(path: Path) -> ast.Module:
    """The file without function bodies and `if TYPE_CHECKING` blocks: what importing it imports."""

    class Strip(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

        def visit_If(self, node: ast.If) -> ast.AST | None:
            return None if getattr(node.test, "id", "") == "TYPE_CHECKING" else self.generic_visit(node)

    return Strip().visit(ast.parse(path.read_text(encoding="utf-8")))


def inside(names: set[str]) -> set[str]:
    """The rooms among imported names."""
    return {name.split(".")[1] for name in names if name.startswith("curvcli.")}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_allowed_rooms_are_imported(path: Path) -> None:
    own = room(path)
    if own == "__init__":
        return
    whole = inside(imports(ast.parse(path.read_text(encoding="utf-8"))))
    always = {own, "errors", "printable", "__version__"} | (set() if own in WITHOUT_SCHEMA else {"schema"})
    below = EVERYWHERE if ALLOWED[own] else set()
    assert whole <= always | ALLOWED[own] | below, f"{path.name} may import {ALLOWED[own] | below}"
    if own in STARTS_LATE:
        assert not inside(imports(top_level(path))) & {"loading", "analyses"}


@pytest.mark.parametrize("path", [p for p in FILES if room(p) in LIGHT], ids=lambda path: path.name)
def test_schemas_do_not_import_the_engine(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports(ast.parse(path.read_text(encoding="utf-8")))} & ENGINE


def test_the_engine_does_not_know_the_terminal() -> None:
    for path in FILES:
        if room(path) not in ("cli", "__main__"):
            names = {name.split(".")[0] for name in imports(ast.parse(path.read_text(encoding="utf-8")))}
            assert not names & {"typer", "rich"}, path


@pytest.mark.parametrize("folder", ["curvcli", "tests", "benchmarks", "sample_models"])
def test_no_file_over_450_lines(folder: str) -> None:
    long = {str(path): n for path in (ROOT / folder).rglob("*.py") if (n := len(path.read_text().splitlines())) > 450}
    assert not long


@pytest.mark.parametrize(
    "arguments", [["--help"], ["spectrum", "--help"], ["inspect", "--help"], ["schema", "spectrum"]]
)
def test_help_and_schema_do_not_import_the_engine(arguments: list[str]) -> None:
    code = (
        "import sys; from curvcli.cli.main import run; run(sys.argv[1:]);"
        "print(sorted({name.split('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout
    assert not ENGINE & set(ast.literal_eval(done.stderr.strip().splitlines()[-1]))


def test_no_public_function_is_without_docstring() -> None:
    bare = [
        f"{path.relative_to(PACKAGE)}:{node.name}"
        for path in FILES
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef))
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert not bare
