"""The documentation holds: links lead somewhere, and every command line in it is one that curv understands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from curvcli.cli.main import COMMANDS, command_of
from curvcli.schema.spectrum import SpectrumReport, SpectrumResult
from docs.pages import options

ROOT = Path(__file__).parent.parent
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert "://" in link or (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_command_lines_are_understood(page: Path) -> None:
    text = re.sub(r"\\\n\s*", "", page.read_text(encoding="utf-8"))
    for line in re.findall(r"(?:^ {4}|^\$ |&& |/)(curv .*)", text, re.MULTILINE):
        words = shlex.split(re.split(r"[|…]| && ", line)[0])
        assert words[1] in COMMANDS, line
        given = {word.partition("=")[0] for word in words if word.startswith("--")}
        known = known_options(words[1])
        if words[1] == "watch":  # hands on what is not its own
            known |= known_options(next((word for word in words[3:] if word in COMMANDS), "spectrum"))
        assert given <= known, line


def known_options(command: str) -> set[str]:
    """Every flag of a command."""
    return {flag for option in options(command_of(command)) for flag in option.flags}


def test_every_command_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in COMMANDS if f"curv {name}" not in readme] == []


def test_every_field_of_the_spectrum_is_explained() -> None:
    page = (ROOT / "docs/report.md").read_text(encoding="utf-8")
    fields = {*SpectrumResult.model_fields, *SpectrumReport.model_fields} - {"schema_name", "curv"}
    assert [name for name in sorted(fields) if f"`{name}`" not in page] == []


def test_no_page_names_a_machine_or_a_registry() -> None:
    for page in [*PAGES, ROOT / "pyproject.toml", ROOT / ".ci/run"]:
        assert not re.search(r"/(home|root|work|Users)/|index.url|/simpl[e]\b", page.read_text(encoding="utf-8")), page
