"""With --state a run that was killed goes on where it stopped, to the same bytes; a longer one does not begin anew."""

import fcntl
import json
import os
import random
import struct
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest

FAST = ("--skip-checks", "--dtype", "float64")
LINES = ("--along", "random", "--along", "filter-normalized", "--points", 4)
COMMANDS = {
    "spectrum": ("spectrum", "--method", "hutchinson", "--probes", 3, "--steps", 6),
    "trace": ("trace", "--method", "hutch++", "--probes", 9),
    "eigs": ("eigs", "--method", "lanczos", "-k", 2),
    "diag": ("diag", "--method", "hutchinson", "--probes", 6),
    "saddle": ("saddle", "--method", "lanczos"),
    "direction": ("direction", "--along", "eigenvector:1"),
    "landscape": ("landscape", *LINES),
    "influence": ("influence", "--remove", "--queries", "0:3", "--solver", "cg", "--damping", 0.1),
    "influence --verify": ("influence", "--remove", "--queries", "0:3", "--verify", 3),
    "step": ("step", "--method", "hessian-free", "--steps", 2),
    "compare": ("compare", "--method", "sampled", "--matrices", "hessian,ggn,diagonal"),
}
PLAIN = ("trace", "--method", "hutchinson", "--probes", 8, "--skip-checks", "--dtype", "float64")
LONGER = {
    "spectrum": ("spectrum", "--method", "hutchinson"),
    "trace": ("trace", "--method", "hutchinson"),
    "influence": ("influence", "--remove", "--solver", "cg", "--damping", 0.1),
}
FILES = ["lock", "problem.copy.json", "problem.json", "records"]
LARGER = (*COMMANDS["spectrum"], *FAST)
NOISY = """
import jax
import numpy as np
from curvcli.zoo import MLP

random = np.random.default_rng(0)


class Noisy(MLP):
    def __call__(self, x):
        noise = jax.pure_callback(lambda _: np.asarray(random.normal(), x.dtype), jax.ShapeDtypeStruct((), x.dtype), 0)
        return super().__call__(x) * (1 + 0.1 * jax.lax.stop_gradient(noise))
"""
DOUBLED = """
from curvcli.zoo import MLP


class Net(MLP):
    def __call__(self, x):
        return 2 * super().__call__(x)
"""


@pytest.mark.first_tier("spectrum")
@pytest.mark.parametrize("command", COMMANDS)
def test_cut_off_anywhere_it_ends_in_the_same_bytes(project, curv, command):
    line = (*COMMANDS[command], *FAST)
    whole = json.dumps(curv(*line).report["result"])
    first = curv(*line, "--state", "kept").report
    assert json.dumps(first["result"]) == whole
    assert first["cost"]["recalled"] == 0
    records = project.folder / "kept/records"
    kept = records.read_bytes()
    for cut in (0, len(kept) // 3, len(kept) - 100):
        records.write_bytes(kept[:cut])
        report = curv(*line, "--state", "kept").report
        assert json.dumps(report["result"]) == whole
        assert records.read_bytes() == kept
    recalled = curv(*line, "--state", "kept").report
    assert json.dumps(recalled["result"]) == whole
    assert recalled["cost"]["products"] <= recalled["cost"]["recalled"]
    assert records.read_bytes().startswith(kept)  # and another mark of a run that came to its end


def test_a_damaged_value_is_computed_again(project, curv):
    line = (*COMMANDS["spectrum"], *FAST, "--state", "kept")
    first = curv(*line).report
    records = project.folder / "kept/records"
    kept = bytearray(records.read_bytes())
    kept[-200] ^= 1  # among the numbers of the last record
    records.write_bytes(kept)
    again = curv(*line).report
    assert again["result"] == first["result"]
    assert 0 < again["cost"]["recalled"] < first["cost"]["products"]


def test_self_checks_are_repeated_though_products_are_kept(project, curv):
    """A product asked for twice is computed twice: otherwise no randomness would be seen."""
    project.write("noisy.py", NOISY)
    answered = curv("spectrum", "--model", "noisy.py:Noisy", "--state", "kept", *PLAIN[1:-3])
    assert answered.code == 3
    assert not answered.report["checks"]["deterministic"]["passed"]


@pytest.mark.first_tier("trace-fewer2-more2-8")
@pytest.mark.parametrize(
    ("command", "fewer", "more", "saved"),
    [
        ("spectrum", ("--probes", 2, "--steps", 4), ("--probes", 4, "--steps", 4), 8),
        ("spectrum", ("--probes", 2, "--steps", 4), ("--probes", 2, "--steps", 8), 8),
        ("trace", ("--probes", 8), ("--probes", 16), 8),
        ("influence", ("--queries", "0:2"), ("--queries", "0:4"), 8),
    ],
)
def test_more_of_it_does_not_begin_anew(project, curv, command, fewer, more, saved):
    line = (*LONGER[command], *FAST)
    assert curv(*line, *fewer, "--state", "kept").code == 0
    longer, fresh = curv(*line, *more, "--state", "kept").report, curv(*line, *more).report
    spent = longer["cost"]["products"] - longer["cost"]["recalled"]
    assert spent <= fresh["cost"]["products"] - saved
    values = [
        one["result"]["scores"] if command == "influence" else one["result"]["trace"]["value"]
        for one in (longer, fresh)
    ]
    np.testing.assert_allclose(*values, rtol=1e-6, atol=1e-4 if command == "influence" else 0)


def test_state_of_something_else_is_refused(project, curv):
    plane = (*COMMANDS["landscape"], *FAST)
    assert curv(*plane, "--state", "kept").code == 0
    assert "settings.seed changed" in curv(*plane, "--state", "kept", "--seed", 1).error
    assert "settings.points" in curv(*plane, "--state", "kept", "--points", 5).error
    project.checkpoint(Dense_1__bias=np.ones(3, np.float32))
    changed = curv(*plane, "--state", "kept")
    assert (changed.code, "checkpoint.sha256" in changed.error) == (65, True)
    project.checkpoint()
    project.data(x=2 * project.x)
    assert "data.sha256" in curv(*plane, "--state", "kept").error
    project.data()
    assert "settings." in curv(*COMMANDS["trace"], *FAST, "--state", "kept").error


def test_changed_code_of_the_model_is_refused(project, curv, monkeypatch):
    project.write("net.py", "from curvcli.zoo import MLP as Net\n")
    line = (*PLAIN, "--model", "net.py:Net", "--state", "kept")
    assert curv(*line).code == 0
    project.write("net.py", DOUBLED)
    for name in [name for name, module in sys.modules.items() if "net.py" in str(getattr(module, "__file__", ""))]:
        monkeypatch.delitem(sys.modules, name)
    assert "code of model, loss or regulariser changed" in curv(*line).error


def test_a_damaged_description_has_a_copy(project, curv):
    first = curv(*PLAIN, "--state", "kept").report["result"]
    (project.folder / "kept/problem.json").write_text("{")
    again = curv(*PLAIN, "--state", "kept").report
    assert (again["result"], again["cost"]["recalled"] > 0) == (first, True)
    (project.folder / "kept/problem.copy.json").write_text("{")
    refused = curv(*PLAIN, "--state", "kept")
    assert (refused.code, "damaged" in refused.error) == (65, True)
    for name in ("problem.json", "problem.copy.json"):
        (project.folder / "kept" / name).unlink()
    # Values of which nobody can say what they were computed from are not used.
    anew = curv(*PLAIN, "--state", "kept", "--seed", 1).report
    assert anew["cost"]["recalled"] == 0


def test_people_see_what_came_from_the_folder(project, curv):
    curv(*PLAIN, "--state", "kept")
    (project.folder / "kept/.curv-0123.tmp").write_text("{")  # of a process killed as it wrote
    shown = curv(*PLAIN, "--state", "kept", "--format", "text").out
    assert "8 products (8 kept)" in shown
    assert sorted(one.name for one in (project.folder / "kept").iterdir()) == FILES


def test_folders_that_cannot_be_used(project, curv):
    assert curv(*PLAIN, "--state", "nowhere/kept").code == 74
    (project.folder / "file").write_text("")
    assert curv(*PLAIN, "--state", "file").code == 74
    (project.folder / "kept").mkdir()
    with (project.folder / "kept/lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        locked = curv(*PLAIN, "--state", "kept")
    assert (locked.code, "in use" in locked.error) == (73, True)
    assert curv(*PLAIN, "--state", "kept", "model.npz", "model.npz").code == 2


def test_a_full_disk_leaves_what_was_kept(project, curv, monkeypatch):
    first = curv(*PLAIN, "--state", "kept").report["result"]
    records = project.folder / "kept/records"
    kept = records.read_bytes()
    records.write_bytes(kept[: len(kept) // 2])
    whole = records_in(records)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("curvcli.run.records.os.write", full)
        refused = curv(*PLAIN, "--state", "kept")
    assert (refused.code, "No space left" in refused.error, "same command again" in refused.error) == (74, True, True)
    assert len(records.read_bytes()) == whole
    assert curv(*PLAIN, "--state", "kept").report["result"] == first


@pytest.mark.slow
def test_killed_ten_times_it_ends_in_the_same_bytes(project, curv, process_environment):
    """Real processes, each killed a moment later than the last one had got to."""
    line = [str(one) for one in (*LARGER, "--state", "kept")]
    whole = json.dumps(curv(*LARGER).report["result"])
    records, moments = project.folder / "kept/records", random.Random(0)
    survived = 0
    for _ in range(10):
        process = subprocess.Popen(
            [*process_environment["CURV"].split(), *line], env=process_environment,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        before = records.stat().st_size if records.exists() else 0
        while process.poll() is None and (records.stat().st_size if records.exists() else 0) <= before:
            time.sleep(0.01)
        time.sleep(moments.random() * 0.3)
        survived += process.poll() is None
        process.kill()
        process.communicate()
    assert survived
    assert json.dumps(curv(*LARGER, "--state", "kept").report["result"]) == whole


def records_in(path):
    """Bytes of the whole records of a file."""
    from curvcli.run.records import Records

    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    Records(copy).close()
    return copy.stat().st_size


@pytest.mark.parametrize("name", ["lock", "records", "problem.json", "notes"])
def test_a_folder_of_somebody_else_s_is_left_alone(project, curv, name):
    folder = project.folder / "theirs"
    folder.mkdir()
    (folder / name).write_text("mine")
    outcome = curv(*PLAIN, "--state", "theirs")
    assert (outcome.code, "not a state folder" in outcome.error) == (2, True)
    assert [(path.name, path.read_text()) for path in folder.iterdir()] == [(name, "mine")]


@pytest.mark.first_tier("link-records", "hard link-problem.json", "fifo-lock", "folder-problem.copy.json")
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["link", "hard link", "fifo", "folder"])
def test_links_and_pipes_in_a_state_folder_are_refused(project, curv, name, kind):
    assert curv(*PLAIN, "--state", "kept").code == 0
    precious, path = project.write("precious", "mine"), project.folder / "kept" / name
    path.unlink()
    if kind == "link":
        path.symlink_to(precious)
    elif kind == "hard link":
        path.hardlink_to(precious)
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    outcome = curv(*PLAIN, "--state", "kept")
    if not name.startswith("problem"):  # the other description is whole
        assert outcome.code in (2, 65)
    assert precious.read_text() == "mine"


HEAD = struct.Struct("<4sII")


def record(text):
    return HEAD.pack(b"curv", len(text), zlib.crc32(text)) + text


@pytest.mark.first_tier("description0", "description3", "description5")
@pytest.mark.parametrize(
    "description",
    [
        {"keys": []}, {"size": -60}, {"size": 1}, [],
        {"keys": ["zz"], "size": 8, "crc": 0, "dtype": "<f8", "shape": [1]},
        {"keys": ["0" * 32], "size": 8, "crc": 0, "dtype": "O", "shape": [1]},
        {"keys": ["0" * 32], "size": 8, "crc": 0, "dtype": "<f8", "shape": [2]},
        {"keys": ["0" * 32] * 2, "size": 16, "crc": 0, "dtype": "<f8", "shape": [1, 2]},
    ],
)  # fmt: skip
def test_a_record_that_makes_no_sense_is_an_error_and_stays(project, curv, description):
    assert curv(*PLAIN, "--state", "kept").code == 0
    records = project.folder / "kept/records"
    content = record(json.dumps(description).encode())
    records.write_bytes(content)
    outcome = curv(*PLAIN, "--state", "kept")
    assert (outcome.code, "records is damaged" in outcome.error) == (65, True)
    assert records.read_bytes() == content


@pytest.mark.parametrize("change", [{"soft": None}, {"way": None}, {"memory": "a"}, {"more": 1}, None, "[" * 5000])
def test_a_description_that_makes_no_sense_is_an_error(project, curv, change):
    assert curv(*PLAIN, "--state", "kept").code == 0
    for name in ("problem.json", "problem.copy.json"):
        path = project.folder / "kept" / name
        said = json.loads(path.read_text())
        path.write_text(change if isinstance(change, str) else json.dumps(change and {**said, **change}))
    outcome = curv(*PLAIN, "--state", "kept")
    assert (outcome.code, "problem.json is damaged" in outcome.error) == (65, True)


def test_an_empty_name_is_no_folder(project, curv):
    assert curv(*PLAIN, "--state", "").code == 2
