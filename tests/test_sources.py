"""What a command reads is not written over: by any name, in either order."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from curvcli import sources
from curvcli.errors import DataError, UsageError


def hard(source: Path, name: Path) -> Path:
    os.link(source, name)
    return name


def soft(source: Path, name: Path) -> Path:
    name.symlink_to(source)
    return name


@pytest.mark.parametrize("link", [lambda source, name: source, hard, soft])
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("first", ["read", "write"])
def test_in_either_order_by_any_name(link, inside, first, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    file = folder / "x.npy"
    file.write_text("1")
    target, source = link(file, tmp_path / "link"), folder if inside else file
    with sources.registry():
        calls = [lambda: sources.register(source, "the data"), lambda: sources.will_write(target, "-o")]
        earlier, later = calls if first == "read" else reversed(calls)
        earlier()
        with pytest.raises(UsageError, match=rf"-o .* would replace {'a file of ' if inside else ''}the data"):
            later()


def test_what_is_elsewhere_new_or_of_another_command_is_not_in_the_way(tmp_path):
    file = tmp_path / "x"
    file.write_text("1")
    with sources.registry():
        sources.register(file, "the data")
    sources.check_not_read(file)
    with sources.registry():
        sources.register(file, "the data")
        sources.will_write(tmp_path / "new", "-o")
        sources.will_write(Path(os.devnull), "-o")


def test_the_source_of_an_imported_module(tmp_path):
    with pytest.raises(UsageError, match="imported module"):
        sources.check_not_read(Path(__file__))
    assert sys.modules[__name__]


def test_a_fifo_is_an_error_and_not_a_wait(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="FIFO"):
        sources.register(tmp_path / "pipe", "the data")
    with pytest.raises(DataError, match="device"):
        sources.check_regular(Path("/dev/zero"))


def pipe(path):
    os.mkfifo(path)


def link_to_pipe(path):
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


def device(path):
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [pipe, link_to_pipe, device])
@pytest.mark.parametrize("through_a_link", [False, True])
def test_what_could_block_inside_a_folder_is_refused(make, through_a_link, tmp_path):
    folder, inner = tmp_path / "data", tmp_path / "data" / "a" / "b"
    inner.mkdir(parents=True)
    (inner / "circle").symlink_to(folder)
    (inner / "broken").symlink_to("nowhere")
    (inner / "x.npy").write_text("1")
    with sources.registry():
        sources.register(folder, "the data")
    target = inner
    if through_a_link:
        target = tmp_path / "elsewhere"
        target.mkdir()
        (inner / "link").symlink_to(target)
    make(target / "y.npy")
    with sources.registry(), pytest.raises(DataError, match="is not a regular file"):
        sources.register(folder, "the data")
