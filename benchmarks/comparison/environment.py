"""The peers' own virtual environment: made once, then reused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent.parent
DEFAULT = REPOSITORY / ".venv-peers"
REQUIREMENTS = REPOSITORY / "benchmarks" / "requirements.txt"
RECORD = "not_installed.json"


def enter(folder: Path) -> None:
    """Go on inside the environment: the program starts again there, unless it is there already."""
    if Path(sys.prefix).resolve() == folder.resolve():
        return
    python = folder / "bin" / "python"
    if not (folder / RECORD).exists():
        _make(folder, python)
    os.execv(python, [str(python), *sys.argv])


def _make(folder: Path, python: Path) -> None:
    """Each requirement by itself, torch first and kept at its version: one that does not install is recorded."""
    print(f"making {folder.name} (minutes)", file=sys.stderr, flush=True)
    if not python.exists():
        venv.create(folder, with_pip=True)
    lines = [line.split("#")[0].strip() for line in REQUIREMENTS.read_text().splitlines()]
    failures, pinned = {}, folder / "pinned.txt"
    pinned.write_text("\n".join(line for line in lines if "==" in line) + "\n")
    for what in [*filter(None, lines), "curvcli"]:
        print(f"  installing {what}", file=sys.stderr, flush=True)
        arguments = ["-e", str(REPOSITORY)] if what == "curvcli" else [what]
        command = [python, "-m", "pip", "install", "-q", "-c", str(pinned), *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            failures[what] = (errors or done.stderr.splitlines() or ["?"])[0][:300]
    if "curvcli" in failures:
        raise SystemExit(f"curv itself could not be installed: {failures['curvcli']}")
    (folder / RECORD).write_text(json.dumps(failures))


def failures(modules: list[str]) -> dict[str, str]:
    """Which peers were not installed, or cannot be imported, and why."""
    record = Path(sys.prefix) / RECORD
    found = json.loads(record.read_text()) if record.exists() else {}
    for module in modules:
        done = subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True, text=True)
        if done.returncode:
            found[module] = (done.stderr.splitlines() or ["?"])[-1][:300]
    return found


def conflicts() -> list[str]:
    """What pip finds wrong with the environment."""
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True)
    return done.stdout.splitlines() if done.returncode else []
