"""What is given as a file and is none: an error in two lines, never a wait, never one of curv's own."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

FAST = ("-q", "--skip-checks")
READING = [
    ["trace", "@"], ["trace", "@", "--all-steps"], ["trace", "--spec", "@"], ["trace", "--model", "@.py:f"],
    ["trace", "--data", "@"], ["trace", "--loss", "@.py:f"], ["trace", "--plan", "@"], ["trace", "--state", "@"],
    ["direction", "--along", "array:@"], ["direction", "--along", "checkpoint:@"],
    ["direction", "--along", "tangent:@.py:f"], ["step", "--momentum", "@"],
    ["step", "--method", "kfac", "--factors-from", "@"], ["influence", "--remove", "--queries", "0:2", "--group", "@"],
    ["influence", "--remove", "--perturb", "@"], ["influence", "--hyper", "loss:@.py:f"], ["saddle", "@"],
    ["plot", "@"], ["diff", "@", "@"], ["init", "@", "-o", "new.toml"],
]  # fmt: skip
WRITING = [
    ["direction", "--arrays", "@"], ["eigs", "--vectors", "@"], ["step", "--save", "@"], ["saddle", "--escape", "@"],
    ["step", "--method", "kfac", "--save-factors", "@"], ["influence", "--remove", "--scores", "@"],
    ["trace", "-o", "@"],
]  # fmt: skip


def arguments(form: list[str], value: str) -> list[str]:
    quick = FAST if form[0] not in ("plot", "diff", "init") else ()
    return [form[0], *quick, *(one.replace("@", value) for one in form[1:])]


@pytest.mark.parametrize("form", READING, ids=" ".join)
def test_a_name_that_leads_to_no_file(form, project, curv):
    for suffix in ("", ".py"):
        os.mkfifo(project.folder / f"pipe{suffix}")
        (project.folder / f"zero{suffix}").symlink_to("/dev/zero")
        (project.folder / f"circle{suffix}").symlink_to(f"circle{suffix}")
    for value in ("pipe", "zero", "circle", "a\0b", "x/" * 3000, "a" * 300, "/proc/self/mem"):
        outcome = curv(*arguments(form, value))
        assert outcome.code in (2, 65, 66, 74, 77, 78), (value, outcome)
        assert outcome.error


@pytest.mark.parametrize("form", WRITING, ids=" ".join)
@pytest.mark.parametrize("value", ["", "a\0b"])
def test_a_name_that_no_file_can_have(form, value, project, curv):
    before = sorted(project.folder.iterdir())
    outcome = curv(*arguments(form, value))
    assert outcome.code in (2, 74), outcome
    assert outcome.error
    assert sorted(project.folder.iterdir()) == before


def test_factors_in_either_format_are_read_again(project, curv):
    for name in ("factors.npz", "factors.safetensors"):
        assert curv("step", *FAST, "--method", "kfac", "--save-factors", name).code == 0
        again = curv("step", *FAST, "--method", "kfac", "--factors-from", name)
        assert (again.code, again.err) == (0, "")
    with np.load("factors.npz") as archive:
        stored = load_file(Path("factors.safetensors"))
        assert {key: array.shape for key, array in stored.items()} == {key: archive[key].shape for key in archive.files}
