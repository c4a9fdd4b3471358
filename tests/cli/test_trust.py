"""Code from a curv.toml that the user did not name runs only once it is trusted; settings tell where they come from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curvcli.cli.main import run
from tests.cli.conftest import Project

FAST = ("spectrum", "--probes", 1, "--steps", 2, "--skip-checks")
ZOO = ("--model", "curvcli.zoo:MLP", "--model-arg", "features=[8, 3]", "--data", "data.npz")
ZOO = (*ZOO, "--loss", "softmax_cross_entropy")
NET = """
from pathlib import Path
from curvcli.zoo import MLP
Path("trace").touch()
def model(features):
    return MLP(features)
"""


@pytest.fixture
def coded(project: Project) -> Project:
    """The project with a network of its own, named by its curv.toml."""
    project.write("net.py", NET)
    text = (project.folder / "curv.toml").read_text()
    project.write("curv.toml", text.replace("curvcli.zoo:MLP", "net.py:model"))
    return project


def ran(project: Project) -> bool:
    """Whether the code ran since this was last asked."""
    trace = project.folder / "trace"
    there = trace.exists()
    trace.unlink(missing_ok=True)
    return there


def test_code_runs_only_once_it_is_trusted(coded: Project, curv: Any) -> None:
    refused = curv(*FAST)
    assert refused.code == 78
    assert "names code to run: net.py:model" in refused.error
    assert f"curv trust {coded.folder / 'curv.toml'}" in refused.error
    assert not ran(coded)
    trusted = curv("trust", "curv.toml")
    assert (trusted.code, trusted.err) == (0, "")
    assert "model.target: net.py:model (net.py)" in trusted.out
    assert not ran(coded)  # it is not imported by being trusted
    assert curv(*FAST).code == 0
    assert curv("trust", "curv.toml", "--revoke").code == 0
    assert curv(*FAST).code == 78


@pytest.mark.parametrize("name", ["net.py", "curv.toml"])
def test_a_change_ends_the_trust(coded: Project, curv: Any, name: str) -> None:
    assert curv("trust", coded.folder).code == 0
    assert curv(*FAST).code == 0
    with (coded.folder / name).open("a") as file:
        file.write("\n# changed\n" if name == "net.py" else "reduction = 'sum'\n")
    assert curv(*FAST).code == 78
    assert curv(*FAST, "--trust").code == 0
    assert curv(*FAST).code == 0  # remembered


def test_modules_of_the_folder_are_part_of_the_digest(coded: Project, curv: Any) -> None:
    text = (coded.folder / "curv.toml").read_text()
    coded.write("curv.toml", text.replace("net.py:model", "trusted_net:model"))
    coded.write("trusted_net.py", NET)  # a name that no other test imports
    assert curv("trust", "curv.toml").code == 0
    assert curv(*FAST).code == 0
    coded.write("trusted_net.py", NET + "# changed\n")
    assert curv(*FAST).code == 78


def test_packages_of_a_module_are_part_of_the_digest(coded: Project, curv: Any) -> None:
    (coded.folder / "trusted_models").mkdir()
    for name in ("__init__.py", "net.py"):
        coded.write(f"trusted_models/{name}", NET)
    text = (coded.folder / "curv.toml").read_text()
    coded.write("curv.toml", text.replace("net.py:model", "trusted_models.net:model"))
    trusted = curv("trust", "curv.toml").out
    assert "trusted_models/__init__.py, " in trusted
    assert curv(*FAST).code == 0
    coded.write("trusted_models/__init__.py", NET + "# changed\n")
    assert curv(*FAST).code == 78


def test_what_is_not_remembered(coded: Project, curv: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert curv(*FAST, "--trust", "--no-cache").code == 0
    assert curv(*FAST).code == 78
    assert curv(*FAST, "--spec", "curv.toml").code == 0  # named, so it needs no trust
    assert curv(*FAST).code == 78
    shared = coded.folder.parent / "shared"
    (shared / "trusted").mkdir(parents=True)
    (shared / "trusted").chmod(0o777)  # others could trust for the user
    monkeypatch.setenv("CURV_CACHE_DIR", str(shared))
    assert curv("trust", "curv.toml").code == 74
    assert curv(*FAST, "--trust").code == 0
    assert curv(*FAST).code == 78


def test_a_specification_that_init_wrote_is_trusted(coded: Project, curv: Any) -> None:
    (coded.folder / "curv.toml").unlink()
    options = ("--model", "net.py:model", *ZOO[2:])
    assert curv("init", "model.npz", *options).code == 0
    assert curv(*FAST).code == 0


def test_code_of_a_parent_runs_only_once_it_is_trusted(coded: Project, curv: Any, monkeypatch: Any) -> None:
    below = coded.folder / "below"
    below.mkdir()
    monkeypatch.chdir(below)
    assert curv(*FAST).code == 78
    assert curv("trust", "../curv.toml").code == 0
    assert curv(*FAST).code == 0


@pytest.mark.parametrize("name", [".git", "pyproject.toml"])
def test_the_search_ends_at_the_root_of_a_project(project: Project, curv: Any, monkeypatch: Any, name: str) -> None:
    below = project.folder / "below" / "further"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert curv(*FAST).code == 0
    project.write(name, "")  # a folder that holds the mark may hold the file
    assert curv(*FAST).code == 0
    (below.parent / name).touch()
    assert "is not read: " in (error := curv(*FAST).error)
    assert f"{below.parent} is the root of a project" in error


@pytest.mark.parametrize("place", [".", ".."])
def test_the_search_ends_at_a_folder_that_all_may_write_to(
    project: Project, curv: Any, monkeypatch: Any, place: str
) -> None:
    below = project.folder / "below"
    below.mkdir()
    monkeypatch.chdir(below)
    (below / place).chmod(0o1777)
    assert "all users may write to " in curv(*FAST).error


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("foreign", [".", "curv.toml"])
def test_the_search_ends_at_another_owner(project: Project, curv: Any, monkeypatch: Any, foreign: str) -> None:
    below = project.folder / "below"
    below.mkdir()
    monkeypatch.chdir(below)
    os.chown(project.folder / foreign, 12345, -1)
    assert "belongs to another user" in curv(*FAST).error


def test_the_search_ends_at_another_file_system(project: Project, curv: Any, monkeypatch: Any) -> None:
    below = project.folder / "below"
    below.mkdir()
    monkeypatch.chdir(below)
    plain = Path.stat

    def mounted(path: Path, **more: Any) -> os.stat_result:
        state = plain(path, **more)
        fields = list(state)
        fields[2] += path == below  # st_dev
        return os.stat_result(fields)

    monkeypatch.setattr(Path, "stat", mounted)
    assert "is on another file system" in curv(*FAST).error


def test_every_setting_says_where_it_comes_from(project: Project, curv: Any, monkeypatch: Any) -> None:
    below = project.folder / "below"
    below.mkdir()
    monkeypatch.chdir(below)
    monkeypatch.setenv("CURV_SEED", "3")
    monkeypatch.setenv("CURV_REDUCTION", "sum")
    answered = curv(*FAST, "--l2", 0.5, "--model-arg", "activation='tanh'")
    file = str(project.folder / "curv.toml")
    origins = answered.report["settings_from"]
    expected = {
        "model.target": file, "model.kwargs.features": file, "model.kwargs.activation": "flag", "data.path": file,
        "data.inputs": "default", "loss.name": file, "loss.l2": "flag", "loss.reduction": "environment",
        "checkpoint.path": file, "seed": "environment", "probes": "flag", "dtype": "default",
    }  # fmt: skip
    assert {name: origins[name] for name in expected} == expected
    assert set(answered.report["settings"]) <= set(origins)
    assert answered.settings == (
        f"settings from {file}: model.target, model.kwargs.features, checkpoint.path, data.path, loss.name\n"
    )
    assert curv(*FAST, "-q").settings == ""


PARTS = {
    "checkpoint.params": '[checkpoint]\nparams = "ema_params"',
    "data.inputs": '[data]\ninputs = "x2"',
    "model.kwargs.activation": '[model]\nkwargs = { activation = "sigmoid" }',
    "loss.l2": "[loss]\nl2 = 0.1",
}


@pytest.mark.parametrize("setting", PARTS)
def test_what_a_file_adds_to_a_whole_command_line_is_a_warning(
    project: Project, curv: Any, monkeypatch: Any, setting: str
) -> None:
    (project.folder / "below").mkdir()
    project.data("below/data.npz", x2=project.x[::-1])
    weights = {f"{top}/{key}": value for top in ("params", "ema_params") for key, value in project.params.items()}
    np.savez(project.folder / "below/model.npz", **weights)  # type: ignore[arg-type]
    file = project.write("curv.toml", PARTS[setting] + "\n")
    monkeypatch.chdir(project.folder / "below")
    answered = curv(*FAST[:1], "model.npz", *FAST[1:], *ZOO)
    assert f"settings from {file}: {setting}" in answered.report["warnings"]
    assert answered.settings == ""  # the warning says it
    assert f"warning: settings from {file}: {setting}\n" in answered.err


def test_an_error_names_the_file_of_its_setting(project: Project, curv: Any) -> None:
    text = (project.folder / "curv.toml").read_text()
    project.write("curv.toml", text.replace('path = "data.npz"', 'path = "data.npz"\ninputs = "absent"'))
    assert f"settings from {project.folder / 'curv.toml'}: " in curv(*FAST).error


def test_settings_of_a_python_call_say_so() -> None:
    from curvcli import Objective

    x = np.random.default_rng(0).normal(size=(20, 3))
    line = Objective(lambda params, x: x @ params["w"], (x, x @ np.ones((3, 1))), "squared_error", l2=0.1)
    origins = line.spectrum({"w": np.zeros((3, 1))}, dtype="float64").report.settings_from
    assert (origins["dtype"], origins["loss.l2"], origins["probes"]) == ("argument", "argument", "default")


def test_the_command_says_what_it_cannot_find(project: Project, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["trust", "nowhere.toml"]) == 66
    assert run(["trust", "model.npz"]) == 66
    assert "no curv.toml at model.npz" in capfd.readouterr().err
