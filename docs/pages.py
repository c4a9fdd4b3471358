"""The pages of docs/commands: option tables from the help texts, and worked examples with what they print.

    python docs/pages.py [NAME…]            write both anew
    python docs/pages.py --check [NAME…]    write nothing; exit code 1 where a page is not what curv says now

A page is written by hand but for what stands between `<!-- options -->` and `<!-- end -->`, and in blocks tagged
`console` below lines that start with `$ `. Examples are shown as at a terminal of 80 columns; `sample_models` lies in
the current folder. Needs the extra `plot`.
"""

from __future__ import annotations

import argparse
import inspect
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs/commands"
sys.path.insert(0, str(ROOT))

from curvcli.cli.main import COMMANDS, command_of  # noqa: E402
from curvcli.cli.options import analysis  # noqa: E402
from curvcli.schema.settings import AnalysisSettings  # noqa: E402

INDEX = "README"
Run = Callable[[str], str]
"""A command line as typed -> what the terminal shows of it."""


@dataclass(frozen=True)
class Option:
    """An option or argument of a command, as its help has it."""

    flags: tuple[str, ...]
    stands_for: str
    default: str
    help: str
    panel: str | None

    def row(self) -> str:
        """Of a table in Markdown."""
        flags = ", ".join(f"`{flag}`" for flag in self.flags[:-1])
        last = f"`{' '.join(filter(None, (self.flags[-1], self.stands_for)))}`"
        cells = [", ".join(filter(None, (flags, last))), self.default, self.help]
        return "| " + " | ".join(re.sub(r"([|*])", r"\\\1", cell) for cell in cells) + " |"


def options(command: Callable[..., Any]) -> list[Option]:
    """Of a command's function, in the order of its help."""
    found = []
    for name, parameter in inspect.signature(command, eval_str=True).parameters.items():
        kind, *infos = get_args(parameter.annotation) or (parameter.annotation,)
        for info in infos:
            # Inside Annotated, the first flag lands in typer's `default`.
            flags = tuple(flag for flag in (info.default, *(info.param_decls or ())) if isinstance(flag, str))
            argument = type(info).__name__ == "ArgumentInfo"
            text, default = info.help, "" if parameter.default in (None, False, parameter.empty) else parameter.default
            if said := re.fullmatch(r"(.*) \(default: ([^()]*)\)", text):
                text, default = said[1], said[2]
            found.append(
                Option(
                    flags=(info.metavar,) if argument else flags or (f"--{name.replace('_', '-')}",),
                    stands_for="" if argument else info.metavar or _stands_for(kind),
                    default=f"{default:g}" if isinstance(default, float) else str(default),
                    help=text, panel=info.rich_help_panel,
                )
            )  # fmt: skip
    return found


def _stands_for(kind: Any) -> str:
    """What follows the flag of an option of this type."""
    kinds = [one for one in get_args(kind) if one is not type(None)]
    if get_origin(kind) is Literal:
        return "|".join(kinds)
    if kinds:
        return _stands_for(kinds[0])
    return "" if kind is bool else f"<{kind.__name__}>"


def shared() -> list[Option]:
    """The options that every analysis has."""

    def any_analysis(request: Any) -> None: ...

    return options(analysis(AnalysisSettings)(any_analysis))


def tables(name: str) -> str:
    """The options of a command that are its own, or of another default or help than elsewhere; of the index, all."""
    if name == INDEX:
        panels = dict.fromkeys(one.panel for one in shared())
        return "\n".join(
            (f"### {panel}\n\n" if panel else "") + _table([one for one in shared() if one.panel == panel])
            for panel in panels
        )
    has, common = options(command_of(name)), shared()
    own = [one for one in has if one not in common]
    text = _table(own) if own else ""
    if len(own) == len(has):
        return text
    flags = {one.flags for one in has}
    missing = [one for one in common if one.flags not in flags]
    of_matrix = [one for one in common if one.panel == "The analysis"]
    if set(of_matrix) <= set(missing):  # a command that is about no matrix
        missing = [one for one in missing if one not in of_matrix]
        rest = (
            "Of the [options of every analysis](README.md#options-of-every-analysis) those of the problem, of how much "
        )
        rest += "of it, and of output and run"
    else:
        rest = "Besides these " if own else ""
        rest += "[the options of every analysis](README.md#options-of-every-analysis)"
    rest += ", but for " + ", ".join(f"`{one.flags[-1]}`" for one in missing) if missing else ""
    return f"{text}\n{rest}.\n".lstrip("\n")


def _table(rows: list[Option]) -> str:
    return "\n".join(["| option | default | |", "|---|---|---|", *(one.row() for one in rows)]) + "\n"


def index() -> str:
    """A line a command."""
    rows = (f"| [`curv {name}`]({name}.md) | {summary} |" for name, summary in COMMANDS.items())
    return "\n".join(["| command | |", "|---|---|", *rows]) + "\n"


def with_tables(text: str, name: str) -> str:
    """The text of a page with what the help says now."""
    made = {"options": tables, "commands": lambda name: index()}
    return re.sub(
        r"(<!-- (options|commands) -->\n).*?(?=<!-- end -->)", lambda m: m[1] + made[m[2]](name), text, flags=re.DOTALL
    )


def examples(text: str) -> list[tuple[str, str]]:
    """Every command line shown in a page, and what is shown below it."""
    blocks = re.findall(r"^```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    found = (re.findall(r"^\$ ((?:.*\\\n)*.*\n)((?:(?!\$ ).*\n)*)", block, re.MULTILINE) for block in blocks)
    return [(re.sub(r"\\\n\s*", "", command).strip(), output) for one in found for command, output in one]


def with_outputs(text: str, run: Run) -> str:
    """The text of a page with what its examples print now."""

    def block(found: re.Match[str]) -> str:
        return re.sub(r"^\$ ((?:.*\\\n)*.*\n)(?:(?!\$ ).*\n)*", line, found[0][:-3], flags=re.MULTILINE) + "```"

    def line(found: re.Match[str]) -> str:
        shown = found[0][: found.end(1) - found.start()]
        return shown + tidy(run(re.sub(r"\\\n\s*", "", found[1]).strip()))

    return re.sub(r"^```console\n.*?^```$", block, text, flags=re.MULTILINE | re.DOTALL)


def tidy(output: str) -> str:
    """Without the blanks at the ends of lines."""
    return re.sub(r"[ \t]+$", "", output, flags=re.MULTILINE)


def words(output: str) -> list[str]:
    """What an output says, without what another machine, or another way of rounding, changes.

    Every number counts as `#`, with its sign and the blanks around it; of a drawn picture only that there is one; of
    what `curv doctor` says of a machine only what the row is called.
    """
    machine = r"^(curv|packages|devices|memory|cache|speed)  .*(?:\n +.*)*"
    output = re.sub(machine, r"\1 …", re.sub(r"^not installed  .*(?:\n +.*)*", "", output, flags=re.M), flags=re.M)
    output = re.sub(r"(?:^.*[│|└].*\n)(?:.*[│|└].*\n)*", "(picture)\n", output, flags=re.M)
    number = r"(?<![\w.])[-+−]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?(?!\w)"
    return re.sub(number, "#", output).split()


def environment(command: str) -> dict[str, str]:
    """Variables by which a command writes as at a terminal of 80 columns, or, of `… > FILE`, as into a file."""
    return {"COLUMNS": "80"} if " > " in command else {"COLUMNS": "80", "CURV_FORMAT": "text"}


def in_a_shell(folder: Path, home: Path) -> Run:
    """Each command as a process in a folder; where that lies is not shown."""

    def run(command: str) -> str:
        done = subprocess.run(
            ["bash", "-c", f'curv() {{ "{sys.executable}" -m curvcli "$@"; }}; {command}'], cwd=folder,
            env={k: v for k, v in os.environ.items() if not k.startswith("CURV_")}
            | {"PYTHONPATH": str(ROOT), "CURV_CACHE_DIR": str(home / ".cache/curv"), **environment(command)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"$ {command}\n{done.stdout}exit code {done.returncode}")
        return done.stdout.replace(str(home), "~")

    return run


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{INDEX} or a command; default: all")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where a page is stale")
    asked = parser.parse_args()
    stale = 0
    with tempfile.TemporaryDirectory() as top:
        for name in asked.names or [INDEX, *COMMANDS]:
            folder, page = Path(top) / name, FOLDER / f"{name}.md"
            folder.mkdir()
            (folder / "sample_models").symlink_to(ROOT / "sample_models")
            before = page.read_text(encoding="utf-8")
            text = with_outputs(with_tables(before, name), in_a_shell(folder, Path(top)))
            if asked.check:
                same = with_tables(before, name) == before and words(text) == words(before)
                stale += not same
                print(f"{page.relative_to(ROOT)}: {'as it was' if same else 'stale'}")
                continue
            page.write_text(text, encoding="utf-8")
            for picture in re.findall(r"!\[[^]]*\]\(([^/)]+)\)", text):
                shutil.copy(folder / picture, FOLDER / picture)
    return min(stale, 1)


if __name__ == "__main__":
    sys.exit(main())
