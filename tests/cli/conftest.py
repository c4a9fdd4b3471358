"""A tiny project, and `curv` run in it: in this process, or as a process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import curvcli
from curvcli.cli.main import run
from curvcli.schema.report import load_json

REPOSITORY = Path(curvcli.__file__).parents[1]
SPEC = """
[model]
target = "curvcli.zoo:MLP"
kwargs = { features = [8, 3] }
[checkpoint]
path = "model.npz"
[data]
path = "data.npz"
[loss]
name = "softmax_cross_entropy"
l2 = 1e-3
"""


@dataclass(frozen=True)
class Outcome:
    """Exit code and both streams of one command line; the line with the settings from a file apart."""

    code: int
    out: str
    err: str
    settings: str = ""

    @classmethod
    def of(cls, code: int, out: str, err: str) -> "Outcome":
        """From what was written, progress and its control characters left as they are."""
        lines = err.splitlines(keepends=True)
        told = [line for line in lines if line.startswith("settings from ")]
        return cls(code, out, "".join(line for line in lines if line not in told), "".join(told))

    @property
    def lines(self) -> list[Any]:
        """stdout as JSON, one value a line, nothing else."""
        assert self.out.endswith("\n")
        return [load_json(line) for line in self.out.removesuffix("\n").split("\n")]

    @property
    def report(self) -> Any:
        """The one report."""
        (report,) = self.lines
        return report

    @property
    def error(self) -> str:
        """What was said of a failure: two lines, and nothing on stdout."""
        assert self.out == ""
        first, second = self.err.splitlines()
        assert first.startswith("error: ")
        assert second.startswith("hint: ")
        assert len(first) > 10
        assert len(second) > 9
        return self.err


@dataclass(frozen=True)
class Project:
    """A folder with a linen MLP 4-8-3, 60 random examples, and a curv.toml."""

    folder: Path
    params: dict[str, np.ndarray]
    x: np.ndarray
    y: np.ndarray

    def write(self, name: str, text: str) -> Path:
        """A file in the folder."""
        path = self.folder / name
        path.write_text(text)
        return path

    def checkpoint(self, name: str = "model.npz", **changed: np.ndarray | None) -> Path:
        """The weights as a file, some of them changed (`Dense_0__kernel`) or left out."""
        new = {key.replace("__", "/"): value for key, value in changed.items()}
        arrays = {key: value for key, value in {**self.params, **new}.items() if value is not None}
        np.savez(self.folder / name, **{f"params/{key}": value for key, value in arrays.items()})  # type: ignore[arg-type]
        return self.folder / name

    def data(self, name: str = "data.npz", **arrays: np.ndarray) -> Path:
        """The examples as a file."""
        np.savez(self.folder / name, **{"x": self.x, "y": self.y, **arrays})  # type: ignore[arg-type]
        return self.folder / name

    def steps(self, name: str, steps: range) -> Path:
        """A folder of an Orbax checkpoint manager, the weights of step s being 1 + s/10 times the project's."""
        import orbax.checkpoint as ocp

        root = self.folder / name
        with ocp.CheckpointManager(root) as manager:
            for step in steps:
                tree: dict[str, Any] = {}
                for key, value in self.params.items():
                    layer, leaf = key.split("/")
                    tree.setdefault(layer, {})[leaf] = value * np.float32(1 + step / 10)
                manager.save(step, args=ocp.args.StandardSave({"params": tree}))
        return root


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The project, which is also the current folder."""
    random = np.random.default_rng(0)
    params = {}
    for layer, (fan_in, width) in enumerate([(4, 8), (8, 3)]):
        kernel = random.normal(size=(fan_in, width)) / np.sqrt(fan_in)
        params[f"Dense_{layer}/kernel"] = kernel.astype(np.float32)
        params[f"Dense_{layer}/bias"] = random.normal(size=width).astype(np.float32)
    x = random.normal(size=(60, 4)).astype(np.float32)
    folder = tmp_path / "project"
    folder.mkdir()
    made = Project(folder, params, x, random.integers(0, 3, 60))
    made.checkpoint()
    made.data()
    made.write("curv.toml", SPEC)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", sys.path[:])  # the folders of targets join it
    return made


@pytest.fixture
def curv(capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """`curv("spectrum", "--seed", 1)`, in this process."""

    def call(*arguments: object) -> Outcome:
        capfd.readouterr()
        code = run([str(argument) for argument in arguments])
        return Outcome.of(code, *capfd.readouterr())

    return call


@pytest.fixture
def process_environment() -> dict[str, str]:
    """For `$CURV` in a process of its own."""
    return {
        **{k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR", "FORCE_COLOR")},
        "PYTHONPATH": str(REPOSITORY), "CURV": f"{sys.executable} -m curvcli", "TERM": "xterm-256color",
    }  # fmt: skip


@pytest.fixture
def shell(process_environment: dict[str, str]) -> Callable[..., Outcome]:
    """`shell("$CURV spectrum >&-")`: a command line of bash, in a process of its own."""

    def call(command: str, **environment: str) -> Outcome:
        done = subprocess.run(
            ["bash", "-c", f"set -o pipefail; {command}"], env={**process_environment, **environment},
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        return Outcome.of(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture
def schema_of(curv: Callable[..., Outcome]) -> Callable[[str], Any]:
    """`curv schema NAME`, read."""

    def call(name: str) -> Any:
        answered = curv("schema", name)
        assert (answered.code, answered.err) == (0, "")
        return json.loads(answered.out)

    return call
