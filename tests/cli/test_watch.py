"""`curv watch`: steps as they are written."""

import threading

import jax
import pytest

from curvcli.cli import interrupts
from curvcli.cli.following import Following
from curvcli.errors import NotFoundError

FAST = ("--skip-checks", "--dtype", "float64")


def test_steps_that_come_while_it_waits(project, curv, schema_of):
    root = project.steps("run", range(2))
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if event.endswith("backend_compile_duration") else None
    )
    later = threading.Timer(1.0, lambda: project.steps("run", range(2, 4)))
    # What Orbax has not committed, which must be left alone.
    (root / "9.orbax-checkpoint-tmp-1").mkdir()
    later.start()
    answered = curv("watch", root, "trace", *FAST, "--every", 0.05, "--until", 3)
    later.join()
    assert answered.code == 0
    assert [one["problem"]["checkpoint"]["step"] for one in answered.lines] == [0, 1, 2, 3]
    assert all(one["schema"] == "curv.trace/1" for one in answered.lines)
    assert [one["cost"]["compile_seconds"] for one in answered.lines[1:]] == [0, 0, 0]
    once = curv("trace", root, "--all-steps", *FAST).lines
    assert [one["result"] for one in once] == [one["result"] for one in answered.lines]


def test_spectrum_is_the_default_and_the_rest_is_the_analysis_own(project, curv):
    root = project.steps("run", range(1))
    answered = curv("watch", root, "--matrix", "ggn", *FAST, "--until", 0)
    assert (answered.report["schema"], answered.report["matrix"]) == ("curv.spectrum/1", "ggn")


def test_ctrl_c_while_it_waits_has_nothing_to_wait_for(project, curv, monkeypatch):
    answerable = []

    def waited(_):
        answerable.append(interrupts.current.answerable)
        raise KeyboardInterrupt

    monkeypatch.setattr("curvcli.cli.following.time.sleep", waited)
    answered = curv("watch", project.steps("run", range(1)), "trace", "--method", "hutchinson", *FAST)
    assert (answered.code, len(answered.lines), answerable) == (130, 1, [False])


def test_a_run_that_ends(project, curv):
    root = project.steps("run", range(1))
    assert len(curv("watch", root, "trace", *FAST, "--every", 0.01, "--idle", 0).lines) == 1
    none = curv("watch", root, "trace", *FAST, "--every", 0.01, "--idle", 0.05, "--new")
    assert (none.code, "no step was written within 0.05 s" in none.error) == (66, True)


def test_what_cannot_be_watched(project, curv):
    assert "no analysis of checkpoints" in curv("watch", "run", "inspect").error
    assert curv("watch", "run", "trace", "--step", 1, "--idle", 0).code == 2
    assert "--probs" in curv("watch", "run", "--probs", 3).error


def test_each_step_once():
    looks = iter([[1], [1, 2], [2, 3], [2, 3], [2, 3, 7]])
    how = Following(every=0, idle=None, until=7, new=False)
    assert list(how.steps(lambda: next(looks))) == [1, 2, 3, 7]
    looks = iter([[1], [1], [1, 2], [1, 2, 4]])
    assert list(Following(0, None, 3, new=True).steps(lambda: next(looks))) == [2]
    with pytest.raises(NotFoundError):
        list(Following(0, 0, None, new=False).steps(list))
