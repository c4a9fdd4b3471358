"""Files are written whole or not at all, and no report tells of a file that is not there."""

import os
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from curvcli import atomic
from curvcli.cli import output
from curvcli.errors import OutputError, UsageError
from curvcli.run import files
from curvcli.schema.report import load_json
from tests.full_disk import file_size_limit

ARRAYS = {"scores": np.arange(3000.0).reshape(2, 1500)}
AXES = {"scores": ["query", "example"]}


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("extension", ["npz", "safetensors", "parquet", "json"])
def test_a_full_disk_leaves_what_was_there(tmp_path, extension):
    path = tmp_path / f"file.{extension}"
    path.write_text("old")
    write = partial(files.write_file, content="long" * 1000)
    if extension != "json":
        write = partial(files.write_arrays, arrays=ARRAYS, axes=AXES)
    with file_size_limit(1000), pytest.raises(OutputError, match="File too large") as caught:
        write(path)
    assert caught.value.exit_code == 74
    assert (path.read_text(), names_in(tmp_path)) == ("old", [path.name])
    assert atomic._unfinished == set()


def test_arrays_come_back(tmp_path):
    files.write_arrays(tmp_path / "a.npz", ARRAYS, AXES)
    with np.load(tmp_path / "a.npz") as found:
        np.testing.assert_array_equal(found["scores"], ARRAYS["scores"])
    files.write_arrays(tmp_path / "a.parquet", ARRAYS, AXES)
    table = pytest.importorskip("pyarrow.parquet").read_table(tmp_path / "a.parquet")
    assert table.column_names == ["query", "example", "scores"]
    np.testing.assert_array_equal(table["scores"].to_numpy(), ARRAYS["scores"].reshape(-1))


def test_reports_are_on_the_disk_one_by_one(tmp_path):
    path = tmp_path / "reports.jsonl"
    path.write_text("old")
    with files.ReportFile(path) as reports:
        assert path.read_text() == "old"
        reports.add("first")
        assert path.read_text() == "first\n"
        reports.add("second")
        with file_size_limit(len("first\nsecond\nthi")), pytest.raises(OutputError, match="File too large"):
            reports.add("third")
    assert path.read_text() == "first\nsecond\n"
    assert names_in(tmp_path) == ["reports.jsonl"]


def test_a_pipe_is_read_as_reports_are_finished(tmp_path):
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)

    def reader():
        with pipe.open() as stream:
            read.extend(stream)

    thread = threading.Thread(target=reader)
    thread.start()
    with files.ReportFile(pipe) as reports:
        reports.add("first")
        reports.add("second")
    thread.join(10)
    assert read == ["first\n", "second\n"]


def test_links_permissions_and_names(tmp_path):
    (tmp_path / "kept").write_text("old")
    (tmp_path / "kept").chmod(0o640)
    (tmp_path / "link").symlink_to("kept")
    files.write_file(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "kept").read_text() == "new"
    assert (tmp_path / "kept").stat().st_mode & 0o777 == 0o640
    (tmp_path / "dangling").symlink_to("made")
    files.write_file(tmp_path / "dangling", "new")
    assert (tmp_path / "made").read_text() == "new"
    for name in (os.fsdecode(b"\xff.json"), "n" * 255):
        files.check_writable(tmp_path / name)
        files.write_file(tmp_path / name, "new")
        assert (tmp_path / name).read_text() == "new"


@pytest.mark.parametrize("name", ["missing/file", "file/file", "loop", "folder"])
def test_places_that_are_refused_before_the_work(tmp_path, name):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    before = names_in(tmp_path)
    with pytest.raises(OutputError):
        files.check_writable(tmp_path / name)
    with pytest.raises(OutputError):
        files.write_file(tmp_path / name, "new")
    assert names_in(tmp_path) == before


def test_a_read_only_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(output.os, "access", lambda *_: False)
    with pytest.raises(OutputError, match="not writable"):
        files.check_writable(tmp_path / "file")
    files.check_writable(Path("/dev/null"))


FULL = OSError(28, "No space left on device")


@pytest.fixture
def full_for(monkeypatch):
    """`full_for("name")`: whatever takes the place of a file of that name finds the disk full."""

    def call(name):
        def replacing(target, *, whole=atomic.replacing):
            if target.name == name:
                raise FULL
            return whole(target)

        monkeypatch.setattr(atomic, "replacing", replacing)

    return call


@pytest.mark.parametrize(
    ("command", "option", "name"),
    [
        ("eigs", "--vectors", "vectors.npz"),
        ("diag", "--arrays", "diagonal.safetensors"),
        ("eigs --vectors vectors.npz", "-o", "report.json"),
    ],
)
def test_no_report_of_a_file_that_could_not_be_written(project, curv, full_for, command, option, name):
    before = names_in(project.folder)
    full_for(name)
    answered = curv(*command.split(), "--skip-checks", "-q", option, name)
    assert answered.code == 74
    assert f"{name} could not be written: No space left on device" in answered.error
    assert not {"report.json", name} & set(names_in(project.folder))
    assert set(names_in(project.folder)) - set(before) <= {"vectors.npz"}


def test_no_report_of_a_checkpoint_that_could_not_be_written(project, curv, monkeypatch):
    def full(_):
        raise FULL

    before = names_in(project.folder)
    monkeypatch.setattr(atomic, "sync", full)
    answered = curv("step", "--method", "gauss-newton", "--save", "moved.npz", "--skip-checks", "-q")
    assert answered.code == 74
    assert "moved.npz could not be written: No space left on device" in answered.error
    assert names_in(project.folder) == before


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("-o", "model.npz"), "-o model.npz would replace the checkpoint"),
        (("-o", "linked.npz"), "-o linked.npz would replace the data"),
        (("-o", "curv.toml"), "-o curv.toml would replace the specification"),
        (("--vectors", "data.npz"), "--vectors data.npz would replace the data"),
        (("--vectors", "both.npz", "-o", "./both.npz"), "--vectors and -o name the same file"),
    ],
)
def test_what_was_read_is_not_written_over(project, curv, arguments, text):
    (project.folder / "linked.npz").symlink_to("data.npz")
    before = {path: path.read_bytes() for path in project.folder.iterdir()}
    answered = curv("eigs", "--skip-checks", *arguments)
    assert answered.code == UsageError.exit_code
    assert text in answered.error
    assert {path: path.read_bytes() for path in project.folder.iterdir()} == before


def test_reports_before_a_failure_stay_in_the_file(project, curv, monkeypatch):
    finished, append = [], files._append

    def full_at_the_third(stream, data):
        finished.append(data)
        if len(finished) == 2:  # the first line takes the file's place
            raise FULL
        append(stream, data)

    monkeypatch.setattr(files, "_append", full_at_the_third)
    answered = curv("trace", "--skip-checks", "-q", *["model.npz"] * 3, "-o", "reports.jsonl")
    assert answered.code == 74
    lines = (project.folder / "reports.jsonl").read_text().splitlines()
    assert [load_json(line)["schema"] for line in lines] == ["curv.trace/1"] * 2
