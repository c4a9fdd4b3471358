"""What goes wrong is told in two lines on stderr with the agreed exit code, and stdout stays empty."""

import numpy as np
import pytest

from tests.cli.broken import MODELS, refuses, spec, truncate

FAST = ("spectrum", "--skip-checks")
NAN = np.full(8, np.nan, np.float32)
WIDE = np.ones((8, 4), np.float32)

CASES = {
    "no probes": (2, ("--probes", 0), None, "--probes 0"),
    "unknown option": (2, ("--probs", 3), None, "--probs"),
    "unknown matrix": (2, ("--matrix", "foo"), None, "foo"),
    "not a number": (2, ("--probes", "many"), None, "'--probes'", "integer"),
    "negative damping": (2, ("--damping", -1), None, "--damping -1"),
    "damping nan": (2, ("--damping", "nan"), None, "--damping nan"),
    "negative l2": (2, ("--l2", -1), None, "--l2 -1"),
    "not a size": (2, ("--max-memory", "huge-typo"), None, "--max-memory huge-typo: not a size"),
    "no memory": (2, ("--max-memory", 0), None, "--max-memory 0"),
    "confidence": (2, ("--confidence", 1), None, "--confidence 1"),
    "seed": (2, ("--seed", 2**32), None, "--seed"),
    "one step": (2, ("--steps", 1), None, "--steps 1"),
    "argument without =": (2, ("--model-arg", "features"), None, "features: not of the form K=V"),
    "argument without quotes": (2, ("--model-arg", "activation=relu"), None, 'activation="relu"'),
    "glob": (2, ("--params", "Conv*"), None, "Dense_0/bias"),
    "nothing left": (2, ("--exclude", "*"), None, "--exclude"),
    "too many examples": (2, ("--num-examples", 61), None, "has 60 examples"),
    "step of a file": (2, ("--step", 1), None, "--step"),
    "label too high": (65, (), lambda p: p.data(y=np.where(p.y == 2, 3, p.y)), "label 3", "0 … 2"),
    "label negative": (65, (), lambda p: p.data(y=p.y - 1), "label -1", "ignore_label"),
    "labels as floats": (65, (), lambda p: p.data(y=p.y.astype(np.float32)), "float32"),
    "lengths differ": (65, (), lambda p: p.data(y=p.y[:59]), "59", "60"),
    "nan in the data": (65, (), lambda p: p.data(x=np.where(p.x == p.x[7, 1], np.nan, p.x)), "row 7"),
    "data truncated": (65, (), lambda p: truncate(p.data()), "data.npz"),
    "misshapen leaf": (65, (), lambda p: p.checkpoint(Dense_1__kernel=WIDE), "Dense_1/kernel", "[8, 3]"),
    "missing leaf": (65, (), lambda p: p.checkpoint(Dense_1__bias=None), "Dense_1/bias [3] is missing"),
    "extra leaf": (65, (), lambda p: p.checkpoint(Dense_2__bias=np.ones(3, "f4")), "Dense_2/bias"),
    "nan in the weights": (65, (), lambda p: p.checkpoint(Dense_0__bias=NAN), "Dense_0/bias"),
    "checkpoint truncated": (65, (), lambda p: truncate(p.checkpoint()), "model.npz"),
    "checkpoint empty": (65, (), lambda p: p.write("model.npz", ""), "empty"),
    "pickle": (65, (), lambda p: (p.folder / "model.npz").write_bytes(b"\x80\x04\x95\x00N."), "pickle"),
    "no checkpoint": (66, ("modle.npz",), None, "did you mean model.npz"),
    "no data": (66, ("--data", "none.npz"), None, "none.npz"),
    "no specification": (66, ("--spec", "none.toml"), None, "none.toml"),
    "no model file": (66, ("--model", "none.py:Net"), None, "none.py"),
    "memory": (71, ("--method", "hutchinson", "--max-memory", "10kB"), None, "10 kB"),
    "no folder": (74, ("-o", "missing/report.json"), None, "mkdir -p missing"),
    "unknown key": (78, (), spec("target", "traget"), "[model] traget", "target"),
    "unknown table": (78, (), spec("[loss]", "[lost]"), "lost"),
    "wrong type": (78, (), spec('"data.npz"', "3"), "[data] path"),
    "not toml": (78, (), spec("[data]", "[data"), "curv.toml"),
    "missing column": (78, ("--targets", "labels"), None, "labels"),
    "unknown loss": (78, ("--loss", "squared_eror"), None, "did you mean squared_error?"),
    "no loss": (78, (), spec('name = "softmax_cross_entropy"', ""), "no loss is given", "--loss"),
    "no such module": (78, ("--model", "nonexistent_module:Net"), None, "nonexistent_module"),
    "no such attribute": (78, ("--model", "curvcli.zoo:MPL"), None, "MPL"),
    "wrong argument": (78, ("--model-arg", "depth=3"), None, "depth"),
    "model raises": (78, ("--model", "models.py:Raises"), None, "ValueError: no such luck"),
    "model exits": (78, ("--model", "models.py:Exits"), None, "xit"),
    "model returns two": (78, ("--model", "models.py:Tuple"), None, "tuple"),
    "not a model": (78, ("--model", "models.py:not_a_model"), None, "not_a_model"),
    "loss not finite": (3, ("--model", "models.py:Broken"), None, "the loss is nan"),
}


@pytest.mark.parametrize("case", CASES)
def test_an_error_is_two_lines_and_a_code(project, curv, case):
    code, arguments, prepare, *texts = CASES[case]
    refuses(project, curv, code, (*FAST, *arguments), prepare, texts)


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (("spectrun", "model.npz"), ("no command 'spectrun'", "did you mean: curv spectrum")),
        (("xyzzy",), ("the commands are: spectrum",)),
        (("--nonsense",), ("--nonsense",)),
        (("schema", "spectra"), ("no schema 'spectra'",)),
        (("init",), ("takes one checkpoint",)),
        (("spectrum", "--format", "yaml"), ("yaml",)),
        (("spectrum", "--seed"), ("--seed",)),
    ],
)
def test_usage_errors_of_the_command_line(project, curv, arguments, texts):
    answered = curv(*arguments)
    assert answered.code == 2
    for text in texts:
        assert text in answered.error


def test_outside_of_a_project(curv, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "no checkpoint is given" in curv("spectrum").error
    assert curv("spectrum").code == 2


def test_no_command_shows_the_help(curv):
    answered = curv()
    assert answered.code == 2
    assert answered.err == ""
    assert "curv spectrum model.ckpt" in answered.out


def test_code_beside_a_checkpoint_runs_only_when_trusted(project, curv, tmp_path, monkeypatch):
    project.write("models.py", MODELS)
    project.write("model.npz.curv.toml", (project.folder / "curv.toml").read_text().replace("curvcli.zoo", "models.py"))
    monkeypatch.chdir(tmp_path)
    refused = curv(*FAST, "project/model.npz")
    assert refused.code == 78
    assert "--trust" in refused.error
    assert curv(*FAST, "project/model.npz", "--trust", "--dry-run").code == 0


def test_a_failed_self_check_marks_the_report(project, curv):
    project.write("models.py", MODELS)
    answered = curv("spectrum", "--model", "models.py:Stops")
    assert answered.code == 3
    report = answered.report
    assert report["untrusted"] is True
    assert not report["checks"]["product_vs_gradient"]["passed"]
    assert "warning: self-check 'product_vs_gradient' failed" in answered.err
    assert "found in the model or loss: stop_gradient" in answered.err
    shown = curv("spectrum", "--model", "models.py:Stops", "--format", "text")
    assert shown.code == 3
    assert "UNTRUSTED: self-check failed:" in shown.out


@pytest.mark.parametrize("how", ["flag", "environment"])
def test_debug_shows_where(project, curv, monkeypatch, how):
    if how == "environment":
        monkeypatch.setenv("CURV_DEBUG", "1")
    answered = curv("spectrum", "none", *(["--debug"] if how == "flag" else []))
    assert answered.code == 66
    assert "Traceback (most recent call last)" in answered.err
    assert answered.err.splitlines()[-2:] == ["error: no checkpoint none", "hint: check the path"]


def test_a_bug_of_ours_says_so(project, curv, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("curvcli.analyses.spectrum.run", broken)
    answered = curv("spectrum")
    assert answered.code == 70
    assert "error: ZeroDivisionError: ours" in answered.error
    several = curv("spectrum", "model.npz", "model.npz")
    assert several.code == 70
    assert [line["exit_code"] for line in several.lines] == [70, 70]
