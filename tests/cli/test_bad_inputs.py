"""Every bad input, in the commands that can meet it: refused in two lines, or answered with a warning."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.cli.broken import MODELS, arrays, both, file, refuses, spec

FAST = ("spectrum", "--skip-checks")
NAMED = (*FAST, "--spec", "curv.toml")  # whose code may run
REMOVE = ("influence", "--remove", "--skip-checks")
QUERY = (*REMOVE, "--queries", "0:1")
KFAC = ("step", "--method", "kfac", "--skip-checks")
HYPER = ("influence", "--queries", "0:1", "--hyper")
DEEP, DIGITS, LONG = "[" * 100_000, "9" * 5000, "a" * 5000
OBJECTS = np.array([{}] * 60, object)
NO_ARGUMENTS = spec("kwargs = { features = [8, 3] }", "")


def with_mask(mask: Any) -> Any:
    return both(spec('path = "data.npz"', 'path = "data.npz"\nmask = "m"'), lambda p: p.data(m=np.asarray(mask)))


def leaf(name: str, change: Any) -> Any:
    """A checkpoint with one array changed."""
    return lambda p: p.checkpoint(**{name.replace("/", "__"): change(p.params[name])})


def direction(change: Any) -> Any:
    """dir.npz with every array of the weights changed."""
    return lambda p: np.savez(p.folder / "dir.npz", **{name: change(one) for name, one in p.params.items()})


def whole_numbers(p: Any) -> None:
    p.checkpoint(**{name.replace("/", "__"): leaf.astype(int) for name, leaf in p.params.items()})


def uncommitted(p: Any) -> None:
    (p.folder / "run" / "7.orbax-checkpoint-tmp-3" / "default").mkdir(parents=True)


def two_candidates(p: Any) -> None:
    (p.folder / "two").mkdir()
    for name in ("a.msgpack", "b.safetensors"):
        (p.folder / "two" / name).write_bytes((p.folder / "model.npz").read_bytes())


def damaged_step(p: Any) -> None:
    (p.steps("run", range(2)) / "1" / "default" / "_METADATA").unlink()


def sidecar(old: str = "", new: str = "") -> Any:
    """The specification beside the checkpoint, in place of the current folder's."""

    def change(p: Any) -> None:
        text = (p.folder / "curv.toml").read_text().replace(old, new)
        (p.folder / "curv.toml").rename(p.folder / "model.npz.curv.toml").write_text(text)

    return change


REFUSED = {
    # the checkpoint
    "checkpoint unfinished": (65, (*FAST, "run"), uncommitted, "not finished"),
    "two candidates": (65, (*FAST, "two"), two_candidates, "a.msgpack, b.safetensors"),
    "step damaged": (65, (*FAST, "run"), damaged_step, "_METADATA is missing", "copy the whole checkpoint"),
    "no such step": (66, (*FAST, "run", "--step", 5), lambda p: p.steps("run", range(2)), "no step 5", "0, 1"),
    "leaf of integers": (65, FAST, leaf("Dense_0/kernel", lambda a: a.astype(int)), "Dense_0/kernel holds int64"),
    "leaf complex": (65, FAST, leaf("Dense_0/kernel", lambda a: a * 1j), "Dense_0/kernel holds complex"),
    "leaf of text": (65, FAST, leaf("Dense_0/bias", lambda a: a.astype(str)), "Dense_0/bias [8] is missing"),
    "leaf of objects": (65, FAST, leaf("Dense_0/bias", lambda a: a.astype(object)), "Dense_0/bias"),
    "leaf too large": (65, FAST, leaf("Dense_0/bias", lambda a: a.astype(float) + 1e300), "--dtype float64"),
    "leaf without axes": (65, FAST, leaf("Dense_0/bias", lambda a: a[0]), "Dense_0/bias is [], the model has [8]"),
    "no arrays": (65, FAST, arrays("model.npz"), "holds no arrays"),
    "no real numbers": (
        65, (*FAST, "--model", "models.py:by_hand"),
        both(NO_ARGUMENTS, whole_numbers),
        "no real numbers", "[checkpoint] params",
    ),
    "checkpoint is data": (65, (*FAST, "data.npz"), None, "Dense_0/bias [8] is missing"),
    "checkpoint is text": (65, (*FAST, "curv.toml"), None, "not a checkpoint that can be read"),
    "no subtree": (78, FAST, spec('path = "model.npz"', 'path = "model.npz"\nparams = "ema"'), "'ema'", "params"),
    "digest of weights": (65, FAST, spec('"model.npz"', '"model.npz"\nsha256 = "0"'), "[checkpoint] sha256"),
    "digest of data": (65, FAST, spec('"data.npz"', '"data.npz"\nsha256 = "0"'), "data.npz", "[data] sha256"),
    # the data
    "column or row": (65, FAST, lambda p: p.data(y=p.y[:, None]), "[N, 1]", "[N, 3]", "reshape"),
    "no examples": (65, FAST, lambda p: p.data(x=p.x[:0], y=p.y[:0]), "'x' is empty", "at least one"),
    "complex": (65, FAST, lambda p: p.data(x=p.x * 1j), "complex"),
    "objects": (65, FAST, lambda p: p.data(x=p.x.astype(object)), "Python objects", "float32"),
    "labels as text": (65, FAST, lambda p: p.data(y=p.y.astype(str)), "'y'", "not numbers"),
    "label beyond 32 bits": (65, FAST, lambda p: p.data(y=p.y + 2**40), "label 1099511627", "0 … 2"),
    "too large": (65, FAST, lambda p: p.data(x=p.x.astype(float) * 1e300), "does not fit float32", "--dtype float64"),
    "infinite": (65, FAST, lambda p: p.data(x=np.where(p.x > 2, np.inf, p.x)), "infinite", "row 3"),
    "one number": (65, FAST, lambda p: p.data(y=np.array(3)), "'y' is a single number"),
    "width": (65, FAST, lambda p: p.data(x=p.x[:, :3]), "Dense_0/kernel is [4, 8], the model has [3, 8]"),
    "pickle for data": (65, FAST, file("data.npz", b"\x80\x04\x95\x00N."), "not an .npz archive"),
    "no name of inputs": (78, (*FAST, "--inputs", ""), None, "--inputs", "'x', 'y'"),
    "mask missing": (78, FAST, spec('path = "data.npz"', 'path = "data.npz"\nmask = "m"'), "'m' for the mask"),
    "mask negative": (65, FAST, with_mask(-np.ones(60)), "mask 'm' is negative", "0 and above"),
    "mask zero": (65, FAST, with_mask(np.zeros(60)), "mask 'm' is 0 everywhere"),
    "mask misshapen": (65, FAST, with_mask(np.ones((60, 4))), "the mask has shape [60, 4]"),
    "all ignored": (
        65, FAST, both(spec("l2 = 1e-3", "ignore_label = 1"), lambda p: p.data(y=np.ones(60, int))), "ignore_label"
    ),
    "split": (78, FAST, spec('path = "data.npz"', 'path = "data.npz"\nsplit = "train"'), "x_train", "remove `split`"),
    "function of data fails": (78, (*FAST, "--data", "models.py:no_data"), None, "RuntimeError: the disk is away"),
    "function of data exits": (78, (*FAST, "--data", "models.py:exits"), None, "SystemExit"),
    "function gives nothing": (78, (*FAST, "--data", "models.py:nothing"), None, "NoneType, not data", "(inputs,"),
    # curv.toml
    "no end": (78, FAST, file("curv.toml", "a = " + DEEP), "not valid TOML", "curv init"),
    "digits": (78, FAST, file("curv.toml", "a = " + DIGITS), "not valid TOML"),
    "no UTF-8": (78, FAST, file("curv.toml", b"\xff\xfe"), "not valid TOML"),
    "number in quotes": (78, FAST, spec("l2 = 1e-3", 'l2 = "1e-3"'), "[loss] l2", "valid number"),
    "truth for a number": (78, FAST, spec("l2 = 1e-3", "l2 = true"), "[loss] l2"),
    "infinite l2": (78, FAST, spec("l2 = 1e-3", "l2 = inf"), "[loss] l2", "finite"),
    "null byte": (66, FAST, spec('"data.npz"', '"a\\u0000b"'), "no such file"),
    "sidecar with code": (78, (*FAST, "model.npz"), sidecar("curvcli.zoo", "models"), "names code", "--trust"),
    "sidecar with far data": (78, (*FAST, "model.npz"), sidecar("data.npz", "/etc/passwd"), "outside of", "--trust"),
    # the model, the loss
    "model scalar": (78, (*FAST, "--model", "models.py:Scalar"), None, "without an axis of examples"),
    "model for one": (78, (*FAST, "--model", "models.py:One"), None, "returns shape [3]", "[batch, …]"),
    "model of integers": (78, (*FAST, "--model", "models.py:Integers"), None, "int", "floating outputs"),
    "model of text": (78, (*FAST, "--model", "models.py:Text"), None, "a str", "floating outputs"),
    "dropout on": (78, (*FAST, "--model", "models.py:Dropout"), None, "dropout is on", "deterministic=True"),
    "statistics on": (78, (*FAST, "--model", "models.py:Statistics"), None, "batch_stats"),
    "no derivative": (78, (*FAST, "--model", "models.py:no_derivative"), NO_ARGUMENTS, "differentiate", "--debug"),
    "kind": (78, (*FAST, "--kind", "nnx"), None, "no nnx module", "--kind linen"),
    "argument of the wrong type": (78, (*FAST, "--model-arg", "features=8"), None, "the model fails"),
    "argument without end": (2, (*FAST, "--model-arg", "features=" + DEEP), None, "not a TOML value"),
    "loss fails": (78, (*FAST, "--loss", "models.py:raises"), None, "the loss fails", "fn(outputs, targets)"),
    "loss reduced": (78, (*FAST, "--loss", "models.py:scalar"), None, "not one loss an example", "--reduction"),
    "loss no function": (78, (*FAST, "--loss", "curvcli.zoo:SMALLEST_KEPT_VARIANCE"), None, "is no function"),
    "regulariser fails": (78, NAMED, spec("l2 = 1e-3", 'regulariser = "models.py:raises"'), "[loss] regulariser"),
    "regulariser vector": (78, NAMED, spec("l2 = 1e-3", 'regulariser = "models.py:vector"'), "return a scalar"),
    # numbers of options
    "confidence 0": (2, ("trace", "--confidence", 0), None, "--confidence 0"),
    "too few products": (2, ("trace", "--method", "xtrace", "--probes", 1), None, "--probes 4"),
    "too few for a diagonal": (2, ("diag", "--method", "xdiag", "--probes", 1), None, "--probes 4"),
    "no pairs": (2, ("eigs", "-k", 0), None, "-k 0"),
    "prune all": (2, ("diag", "--prune", 1), None, "--prune 1"),
    "epsilon": (2, ("saddle", "--epsilon", -1), None, "--epsilon -1"),
    "one point": (2, ("direction", "--points", 1), None, "--points 1"),
    "points without end": (2, ("landscape", "--points", 10**9), None, "--points"),
    "samples without end": (2, ("trace", "--matrix", "fisher-mc", "--mc-samples", 10**9), None, "--mc-samples"),
    "range backwards": (2, ("direction", "--range", "1:0"), None, "LO < HI"),
    "range too far": (2, ("direction", "--range", "0:1e300"), None, "1e+30"),
    "one matrix": (2, ("compare", "--matrices", "hessian"), None, "two names or more"),
    "matrix of a step": (2, ("step", "--matrix", "hessian"), None, "--matrix"),
    "basis and memory": (71, ("eigs", "--method", "lanczos", "--max-memory", "5kB"), None, "5 kB", "--batch-size"),
    "indefinite": (
        3, (*QUERY, "--matrix", "hessian", "--solver", "cg", "--damping", 0), None, "negative curvature", "minres"
    ),
    "zero gradient": (
        3, ("direction", "--along", "newton", "--loss", "models.py:flat", "--l2", 0), None, "exactly zero"
    ),
    # files of options
    "plan missing": (2, ("eigs", "--plan", "plan.json"), None, "plan.json", "curv inspect"),
    "plan garbage": (2, ("eigs", "--plan", "data.npz"), None, "not a plan"),
    "plan without end": (2, ("eigs", "--plan", "deep.json"), file("deep.json", DEEP), "not a plan"),
    "queries backwards": (2, (*REMOVE, "--queries", "5:3"), None, "--queries 5:3"),
    "queries beyond": (2, (*REMOVE, "--queries", "59:61"), None, "0 to 59", "--queries 0:10"),
    "group missing": (66, (*QUERY, "--group", "g.txt"), None, "no file g.txt"),
    "group a folder": (66, (*QUERY, "--group", "."), None, "no file ."),
    "group short": (65, (*QUERY, "--group", "g.txt"), file("g.txt", "a\nb\n"), "60 examples"),
    "group binary": (65, (*QUERY, "--group", "g.txt"), file("g.txt", b"\xff\xfe\x00"), "UTF-8"),
    "group pickled": (65, (*QUERY, "--group", "g.npz"), arrays("g.npz", group=OBJECTS), "g.npz"),
    "change missing": (66, (*REMOVE, "--perturb", "c.npy"), None, "no file c.npy"),
    "change misshapen": (65, (*REMOVE, "--perturb", "c.npz"), arrays("c.npz", weight=np.ones(3)), "[3]", "[60]"),
    "change complex": (65, (*REMOVE, "--perturb", "c.npz"), arrays("c.npz", weight=np.ones(60) * 1j), "finite numbers"),
    "change nan": (65, (*REMOVE, "--perturb", "c.npz"), arrays("c.npz", weight=np.full(60, np.nan)), "finite numbers"),
    "hyper fails": (78, (*HYPER, "loss:models.py:scalar"), None, "--hyper loss:models.py:scalar fails", "theta"),
    "hyper misshapen": (78, (*HYPER, "regulariser:models.py:vector"), None, "returns shape [8]", "fn(params, theta)"),
    "array missing": (66, ("direction", "--along", "array:none.npz"), None, "no array file none.npz"),
    "array garbage": (65, ("direction", "--along", "array:curv.toml"), None, "curv.toml: no file of arrays"),
    "array of text": (65, ("direction", "--along", "array:dir.npz"), direction(lambda a: a.astype(str)), "not numbers"),
    "array complex": (65, ("direction", "--along", "array:dir.npz"), direction(lambda a: a * 1j), "complex"),
    "array zero": (65, ("direction", "--along", "array:dir.npz"), direction(np.zeros_like), "the direction is zero"),
    "no such row": (66, ("direction", "--along", f"array:data.npz#{DIGITS}"), None, "no array file"),
    "the same checkpoint": (65, ("direction", "--along", "checkpoint:model.npz"), None, "the same in both"),
    "tangent fails": (78, ("direction", "--along", "tangent:models.py:raises"), None, "T(params, s)"),
    "tangent moves": (78, ("landscape", "--along", "tangent:models.py:moves"), None, "not the identity"),
    "factors missing": (66, (*KFAC, "--factors-from", "f.npz"), None, "no array file f.npz"),
    "factors garbage": (65, (*KFAC, "--factors-from", "curv.toml"), None, "no file of arrays"),
    "factors of others": (2, (*KFAC, "--factors-from", "data.npz"), None, "--stale-factors"),
    "factors none": (65, (*KFAC, "--factors-from", "data.npz", "--stale-factors"), None, "--save-factors"),
    "momentum missing": (66, ("step", "--momentum", "m.npz"), None, "no array file m.npz"),
    "momentum misshapen": (65, ("step", "--momentum", "dir.npz"), direction(lambda a: a[:1]), "the weights are"),
    "no Adam": (65, ("saddle", "--optimizer-state"), None, "no Optax Adam state"),
    "saved over": (2, ("step", "--save", "model.npz"), None, "model.npz exists already"),
    "no folder for the escape": (74, ("saddle", "--escape", "none/x"), None, "mkdir -p none"),
    "format of arrays": (2, ("diag", "--arrays", "a.txt"), None, ".npz or .safetensors"),
    "name too long": (2, ("inspect", "-o", LONG), None, "too long"),
    "inspect nothing": (66, ("inspect", "modle.npz"), None, "did you mean model.npz"),
    "init over": (2, ("init", "model.npz"), None, "curv.toml exists already", "-o FILE"),
    "init without data": (66, ("init", "model.npz", "-o", "new.toml", "--data", "none"), None, "none: no such file"),
    "init a part": (2, ("init", "model.npz", "-o", "new.toml", "--pin", "--num-examples", 3), None, "--num-examples"),
    "init of a run": (
        2, ("init", "run", "-o", "new.toml", "--pin"), lambda p: p.steps("run", range(2)), "several steps", "run/1"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_input_is_refused(project: Any, curv: Any, case: str) -> None:
    code, command, prepare, *texts = REFUSED[case]
    refuses(project, curv, code, command, prepare, texts)


ANSWERED = {
    "one class": (FAST, lambda p: p.data(y=np.zeros(60, int)), "every label is 0"),
    "images of bytes": (FAST, lambda p: p.data(x=np.ones((60, 2, 2), np.uint8)), "uint8"),
    "more pairs than rows": (("eigs", "-k", 100), None, "all 67 pairs are given"),
    "not converged": (("eigs", "--method", "lanczos", "--probes", 5, "-k", 3), None, "--probes"),
    "not convex": ((*FAST, "--loss", "models.py:not_convex", "--matrix", "ggn"), None, "the ggn is indefinite"),
    "no tangents": ((*FAST, "--model", "models.py:backwards_only"), NO_ARGUMENTS, "custom_vjp"),
    "step of zero gradient": (("step", "--loss", "models.py:flat", "--l2", 0), None, "the step is zero"),
}


@pytest.mark.first_tier("one class", "not converged", "no tangents")
@pytest.mark.parametrize("case", ANSWERED)
def test_a_doubtful_input_is_answered_with_a_warning(project: Any, curv: Any, case: str) -> None:
    command, prepare, text = ANSWERED[case]
    project.write("models.py", MODELS)
    if prepare is not None:
        prepare(project)
    answered = curv(*command)
    assert answered.code == 0, answered.err
    assert any(text in warning for warning in answered.report["warnings"])
    assert text in answered.err


def test_what_is_odd_and_no_error(project: Any, curv: Any) -> None:
    """One example; one probe, whose interval is wide and not absent; a model that prints."""
    project.write("models.py", MODELS)
    project.data(x=project.x[:1], y=project.y[:1])
    assert curv(*FAST).report["problem"]["data"]["num_examples"] == 1
    low, high = curv("trace", "--method", "hutchinson", "--probes", 1).report["result"]["trace"]["interval"]
    assert low < high
    printed = curv(*FAST, "--model", "models.py:Prints")
    assert printed.report["schema"] == "curv.spectrum/1"
    assert "from Python\nfrom a child\n" in printed.err
