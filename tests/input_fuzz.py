"""Every kind of file that a command reads, changed on purpose; and what becomes of the command, counted.

A `Scene` is a folder with a command line that works, and the files that are changed. Each change ends in one of:
`answered`, `refused` with an error that says what is wrong, or a fault: a bug's exit code, a traceback, a warning of
Python's, a hang, a crash, or a file that changed without being an output.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tests.fuzz import CHECKPOINTS, DATA, PARAMS, X, Y, orbax_with
from tests.mutations import mutated
from tests.worker import Ended, Worker

REFUSED = (2, 65, 66, 71, 73, 77, 78)
RAW = re.compile(r"Traceback|Warning:|warnings\.warn|^  File ", re.MULTILINE)
"""What Python says by itself."""

SPEC = """[model]
target = "net.py:apply"
[checkpoint]
path = "{checkpoint}"
[data]
path = "{data}"
inputs = "{inputs}"
targets = "y"
[loss]
name = "softmax_cross_entropy"
l2 = 1e-3
"""

NET = """import jax.numpy as jnp


def apply(params, x):
    for index in range(2):
        layer = params[f"Dense_{index}"]
        x = x @ layer["kernel"] + layer["bias"]
        x = jnp.tanh(x) if index == 0 else x
    return x


def shift(params, s):
    return {name: {key: leaf + s * leaf for key, leaf in layer.items()} for name, layer in params.items()}


def loss(outputs, targets):
    return jnp.sum(outputs**2, axis=-1)


def changed(outputs, targets, theta):
    return theta * jnp.sum(outputs**2, axis=-1)


def examples():
    import numpy as np

    return np.ones((4, 3), np.float32), np.zeros(4, int)
"""

FAST = ["-q", "--skip-checks"]


def bind_socket(path: Path) -> None:
    """A socket's name in a folder."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


SPECIAL: dict[str, Callable[[Path], object]] = {
    "FIFO": os.mkfifo,
    "link to a FIFO": lambda path: (os.mkfifo(path.with_name("pipe")), path.symlink_to("pipe")),
    "socket": bind_socket,
    "endless device": lambda path: path.symlink_to("/dev/zero"),
    "empty device": lambda path: path.symlink_to("/dev/null"),
    "circle of links": lambda path: path.symlink_to(path.name),
    "folder": lambda path: path.mkdir(),
    "nothing": lambda path: None,
}
"""What a file is replaced by."""


@dataclass(frozen=True)
class Scene:
    """A command line that works, and what is changed of what it reads.

    Parameters
    ----------
    changed
        Files and folders of the scene's own folder.
    command
        The command line.
    setup
        Command lines that write files that it reads.
    prepare
        Writes further files into the folder.
    outputs
        Files and folders that the command may write or change.
    suffix
        What the changed files end in, where their names do not tell.
    codes
        Exit codes beside 0 and those of a refusal.
    """

    name: str
    changed: tuple[str, ...]
    command: list[str]
    setup: tuple[list[str], ...] = ()
    prepare: Callable[[Path], None] = lambda folder: None
    outputs: tuple[str, ...] = ()
    suffix: str = ""
    checkpoint: str = "npz"
    data: str = "data-npz"
    codes: tuple[int, ...] = (0, 3)


@dataclass
class Tally:
    """How many changes had each outcome, and the faults in words."""

    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


# --- scenes ------------------------------------------------------------------------------------------------


TRACE = ["trace", *FAST]
REPORTS = {
    "spectrum": ["--method", "xtrace", "--probes", "6", "--steps", "8"],
    "trace": ["--method", "hutchinson", "--probes", "8"],
    "eigs": ["-k", "3"],
    "diag": ["--prune", "0.3"],
    "saddle": ["--learning-rate", "0.1"],
    "direction": ["--along", "gradient", "--along", "random", "--points", "7"],
    "landscape": ["--along", "eigenvector:1", "--along", "random", "--points", "5"],
    "line": ["--along", "random", "--points", "7"],
    "influence": ["--label-perturb", "--queries", "0:2", "--verify", "3"],
    "groups": ["--remove", "--queries", "0:2", "--group", "groups.txt", "--self", "--damping-sweep"],
    "step": ["--method", "hessian-free", "--steps", "3"],
    "compare": ["--matrices", "hessian,ggn,kfac", "-k", "2", "--laplace", "kfac"],
    "inspect": [],
}
COMMAND = {"line": "landscape", "groups": "influence"}
"""Of reports that are not called after their command."""


def _sidecar(folder: Path) -> None:
    (folder / "curv.toml").rename(folder / "ckpt.curv.toml")


def _given(folder: Path) -> None:
    shutil.copy(folder / "curv.toml", folder / "given.toml")


def _groups(folder: Path) -> None:
    (folder / "groups.txt").write_text("\n".join("abcd"[index % 4] for index in range(len(X))) + "\n")


def _report(name: str, file: str, *more: str) -> list[str]:
    return [COMMAND.get(name, name), *FAST, *REPORTS[name], *more, "-o", file]


def _split(folder: Path) -> None:
    np.savez(
        folder / "data.npz", x=X, y=Y, x_test=X[:5], y_test=Y[:5], clean=np.ones(len(Y)), mask=np.ones(len(Y), "f4")
    )


def _changes(folder: Path) -> None:
    random = np.random.default_rng(1)
    np.savez(folder / "weights.npz", weight=random.normal(size=len(X)))
    np.save(folder / "labels.npy", random.normal(size=(len(X), 2)))


def _run(folder: Path) -> None:
    """A run of three steps."""
    import orbax.checkpoint as ocp

    with ocp.CheckpointManager((folder / "run").absolute()) as manager:
        for step in range(3):
            manager.save(step, args=ocp.args.StandardSave({"params": PARAMS}))


def _adam(folder: Path) -> None:
    """A checkpoint with the state of Adam."""
    import jax
    import optax

    state = optax.adam(1e-3).init(PARAMS)
    _, state = optax.adam(1e-3).update(jax.tree.map(np.ones_like, PARAMS), state, PARAMS)
    orbax_with(folder / "adam", {"params": PARAMS, "opt_state": state})


def _statistics(folder: Path) -> None:
    """A network with batch normalisation, two checkpoints of it and images."""
    import jax
    from flax import serialization

    from curvcli.zoo import CNN

    random = np.random.default_rng(0)
    images = random.normal(size=(8, 4, 4, 1)).astype("f4")
    np.savez(folder / "images.npz", x=images, y=random.integers(0, 2, 8))
    for seed, name in enumerate(["cnn.msgpack", "other.msgpack"]):
        variables = CNN(features=(2,), classes=2).init(jax.random.key(seed), images)
        (folder / name).write_bytes(serialization.to_bytes(variables))
    (folder / "cnn.toml").write_text(
        '[model]\ntarget = "curvcli.zoo:CNN"\nkwargs = { features = [2], classes = 2 }\n[checkpoint]\n'
        'path = "cnn.msgpack"\n[data]\npath = "images.npz"\n[loss]\nname = "softmax_cross_entropy"\n'
    )


def scenes() -> Iterator[Scene]:
    """All of them."""
    for name in CHECKPOINTS:
        yield Scene(f"checkpoint-{name}", ("ckpt",), TRACE, checkpoint=name,
                    suffix=f".{name}" if name in ("msgpack", "safetensors", "npz") else "")  # fmt: skip
    for name, (file, _) in DATA.items():
        yield Scene(name, (file,), TRACE, data=name)
    yield Scene("spec", ("curv.toml",), TRACE)
    yield Scene("spec-of-init", ("given.toml",), ["init", "ckpt", "--spec", "given.toml", "--pin", "-o", "new.toml"],
                prepare=_given,
                outputs=("new.toml",))  # fmt: skip
    yield Scene("sidecar", ("ckpt.curv.toml",), [*TRACE, "ckpt", "--trust"],
                prepare=_sidecar)  # fmt: skip
    yield Scene("model", ("net.py",), TRACE)
    yield Scene("loss", ("net.py",), [*TRACE, "--loss", "net.py:loss"])
    yield Scene("data-function", ("net.py",), [*TRACE, "--data", "net.py:examples"])
    yield Scene("tangent", ("net.py",), ["direction", *FAST, "--along", "tangent:net.py:shift", "--points", "3"])
    yield Scene("hyper", ("net.py",), ["influence", *FAST, "--hyper", "loss:net.py:changed", "--queries", "0:2"])
    yield Scene("plan", ("plan.json",), [*TRACE, "--plan", "plan.json"], setup=(["inspect", *FAST, "-o", "plan.json"],))
    yield Scene("state", ("state",), [*TRACE, "--method", "hutchinson", "--probes", "4", "--state", "state"],
                setup=([*TRACE, "--method", "hutchinson", "--probes", "4", "--state", "state", "-o", "first.json"],),
                outputs=("state",))  # fmt: skip
    yield Scene("direction", ("vector.npz",), ["direction", *FAST, "--along", "array:vector.npz", "--points", "3"],
                setup=(["step", *FAST, "--arrays", "vector.npz"],))  # fmt: skip
    yield Scene("eigenvectors", ("pairs.safetensors",),
                ["direction", *FAST, "--along", "array:pairs.safetensors#2", "--points", "3"],
                setup=(["eigs", *FAST, "-k", "2", "--vectors", "pairs.safetensors"],))  # fmt: skip
    yield Scene("other-checkpoint", ("other.npz",),
                ["direction", *FAST, "--along", "checkpoint:other.npz", "--points", "3"],
                setup=(["step", *FAST, "--save", "other.npz"],))  # fmt: skip
    yield Scene("momentum", ("vector.npz",), ["step", *FAST, "--momentum", "vector.npz"],
                setup=(["step", *FAST, "--arrays", "vector.npz"],))  # fmt: skip
    factors = ["step", *FAST, "--method", "kfac"]
    yield Scene("factors", ("factors.npz",), [*factors, "--factors-from", "factors.npz"],
                setup=([*factors, "--save-factors", "factors.npz"],))  # fmt: skip
    yield Scene("factors-of-influence", ("factors.safetensors",),
                ["influence", *FAST, "--remove", "--queries", "0:2", "--solver", "kfac", "--factors-from",
                 "factors.safetensors"],
                setup=([*factors, "--save-factors", "factors.safetensors"],))  # fmt: skip
    yield Scene("queries", ("data.npz",), ["influence", *FAST, "--remove", "--queries", "0:3"], prepare=_split)
    yield Scene("clean", ("data.npz",), ["influence", *FAST, "--label-perturb"], prepare=_split)
    yield Scene("groups", ("groups.txt",),
                ["influence", *FAST, "--remove", "--queries", "0:2", "--group", "groups.txt"], prepare=_groups,
                suffix=".csv")  # fmt: skip
    yield Scene("weights", ("weights.npz",), ["influence", *FAST, "--remove", "--perturb", "weights.npz"],
                prepare=_changes)  # fmt: skip
    yield Scene("labels", ("labels.npy",), ["influence", *FAST, "--label-perturb", "--perturb", "labels.npy"],
                prepare=_changes)  # fmt: skip
    yield Scene("statistics", ("other.msgpack",),
                ["direction", *FAST, "--spec", "cnn.toml", "--along", "checkpoint:other.msgpack", "--batch-stats",
                 "interpolate", "--points", "3"], prepare=_statistics)  # fmt: skip
    yield Scene("optimizer", ("adam",), ["saddle", "adam", *FAST, "--optimizer-state"], prepare=_adam)
    yield Scene("run", ("run",), [*TRACE, "run", "--all-steps"], prepare=_run)
    yield Scene("watch", ("run",), ["watch", "run", "trace", *FAST, "--every", "0.01", "--idle", "0.02"], prepare=_run)
    for name in REPORTS:
        setup = (_report(name, "report.json"),)
        yield Scene(f"plot-{name}", ("report.json",),
                    ["plot", "report.json", "-o", "a.png", "-o", "a.svg", "-o", "a.html"],
                    setup, _groups, outputs=("a.png", "a.svg", "a.html"))  # fmt: skip
        yield Scene(f"diff-{name}", ("b.json",), ["diff", "report.json", "b.json"],
                    (*setup, _report(name, "b.json", "--seed", "1")), _groups)  # fmt: skip
    yield Scene("plot-several", ("a.json", "b.json"), ["plot", "a.json", "b.json", "-o", "a.svg"],
                (_report("spectrum", "a.json"), _report("spectrum", "b.json", "--seed", "1")),
                outputs=("a.svg",))  # fmt: skip
    yield Scene("plot-run", ("run.jsonl",), ["plot", "run.jsonl", "-o", "a.svg"],
                (["spectrum", "run", *FAST, *REPORTS["spectrum"], "--all-steps", "-o", "run.jsonl"],), _run,
                outputs=("a.svg",))  # fmt: skip
    yield Scene("plot-scores", ("scores.npz",), ["plot", "report.json", "-o", "a.svg"],
                (["influence", *FAST, "--label-perturb", "--queries", "0:2", "--scores", "scores.npz", "-o",
                  "report.json"],), outputs=("a.svg",))  # fmt: skip
    yield Scene("plot-inputs", ("images.npz",), ["plot", "report.json", "-o", "a.html", "-o", "a.png"],
                (["influence", *FAST, "--spec", "cnn.toml", "--remove", "--queries", "0:2", "-o", "report.json"],),
                _statistics, outputs=("a.html", "a.png"))  # fmt: skip
    yield Scene("diff-text", ("b.json",), ["diff", "report.json", "b.json", "--format", "text"],
                (_report("spectrum", "report.json"), _report("spectrum", "b.json", "--seed", "1")))  # fmt: skip


SCENES = {scene.name: scene for scene in scenes()}


# --- runs --------------------------------------------------------------------------------------------------


class Stage:
    """A scene set up in a folder.

    Raises
    ------
    AssertionError
        Its command does not work before anything is changed.
    """

    def __init__(self, scene: Scene, folder: Path, worker: Worker) -> None:
        self.scene, self.folder, self._worker = scene, folder, worker
        folder.mkdir()
        file, write = DATA[scene.data]
        write(folder / file)
        CHECKPOINTS[scene.checkpoint](folder / "ckpt")
        columns = file.endswith((".csv", ".parquet")) or scene.data == "data-arrow"
        inputs = "x0,x1,x2" if columns else "x"
        (folder / "curv.toml").write_text(SPEC.format(checkpoint="ckpt", data=file, inputs=inputs))
        (folder / "net.py").write_text(NET)
        scene.prepare(folder)
        for command in (*scene.setup, scene.command):
            ended = worker.run(folder, command)
            noise = [line for line in ended.err.splitlines() if not line.startswith("settings from ")]
            assert (ended.code, noise) == (0, []), (scene.name, command, ended)
        self._remove_outputs()
        self._kept = self._files()
        inside = [folder / one for one in scene.changed]
        self.targets = sorted(
            path.relative_to(folder) for one in inside for path in ([one] if one.is_file() else one.rglob("*"))
            if path.is_file()
        )  # fmt: skip
        assert self.targets, scene.name

    def trial(self, random: np.random.Generator) -> tuple[str, str]:
        """The outcome of one change of a file's content, and what was changed and said."""
        target = self.targets[random.integers(len(self.targets))]
        content = mutated(self._kept[target], self.scene.suffix or target.suffix, random)
        (self.folder / target).write_bytes(content)
        outcome, said = self._outcome(target, content, str(target))
        if outcome == "fault":
            self._keep(target, content)
        return outcome, said

    def special(self, target: Path, kind: str) -> tuple[str, str]:
        """The outcome where something else stands in a file's place."""
        (self.folder / target).unlink()
        SPECIAL[kind](self.folder / target)
        return self._outcome(target, None, f"{target} is a {kind}")

    def _outcome(self, target: Path, content: bytes | None, what: str) -> tuple[str, str]:
        ended = self._worker.run(self.folder, self.scene.command)
        fault = self._fault(target, content, ended)
        self._restore(target)
        outcome = "fault" if fault else "refused" if ended.code in REFUSED else "answered"
        return outcome, f"{self.scene.name}, {what}: {fault}: {ended.code} {ended.err[-600:]}"

    def _fault(self, target: Path, content: bytes | None, ended: Ended) -> str:
        """What must not be; empty where all is well."""
        changed = [
            path for path, kept in {**self._kept, target: content}.items()
            if kept is not None and not self._is_output(path) and self._content(path) != kept
        ]  # fmt: skip
        new = [path for path in self._files() if path not in self._kept and not self._is_output(path)]
        if ended.code not in (*self.scene.codes, *REFUSED):
            return "exit code"
        if RAW.search(ended.err) or RAW.search(ended.out):
            return "raw"
        lines = ended.err.splitlines()
        if ended.code in REFUSED and not ended.out and not (
            len(lines) >= 2 and lines[-2].startswith("error: ") and lines[-1].startswith("hint: ")
        ):  # fmt: skip
            return "no error and hint"
        return f"changed {changed + new}" if changed or new else ""

    def _is_output(self, path: Path) -> bool:
        return path.parts[0] in (*self.scene.outputs, "__pycache__")

    def _content(self, path: Path) -> bytes | None:
        file = self.folder / path
        return file.read_bytes() if file.is_file() else None

    def _files(self) -> dict[Path, bytes]:
        return {
            path.relative_to(self.folder): path.read_bytes() for path in self.folder.rglob("*") if path.is_file()
        }  # fmt: skip

    def _remove_outputs(self) -> None:
        for name in self.scene.outputs:
            if name not in self.scene.changed:
                (self.folder / name).unlink(missing_ok=True)

    def _restore(self, target: Path) -> None:
        path = self.folder / target
        path.with_name("pipe").unlink(missing_ok=True)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif not path.is_file() or path.is_symlink():
            path.unlink(missing_ok=True)
        for path in self._files():
            if path not in self._kept:
                (self.folder / path).unlink()
        for path, content in self._kept.items():
            if self._content(path) != content:
                (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
                (self.folder / path).write_bytes(content)

    def _keep(self, target: Path, content: bytes) -> None:
        """The content of a fault stays beside the scene's folder."""
        kept = self.folder.parent / "faults"
        kept.mkdir(exist_ok=True)
        number = len(list(kept.iterdir()))
        (kept / f"{number:03d}-{self.scene.name}{target.suffix}").write_bytes(content)
        (kept / f"{number:03d}-{self.scene.name}.command").write_text(json.dumps(self.scene.command))


def fuzz_scene(name: str, folder: Path, worker: Worker, *, seed: int, trials: int, specials: int) -> Tally:
    """Change the files of a scene.

    Parameters
    ----------
    folder
        Where it is set up; what led to a fault stays in its `faults`.
    trials
        Changes of contents.
    specials
        Files that each `SPECIAL` takes the place of.
    """
    tally, stage = Tally(), Stage(SCENES[name], folder / name, worker)
    random = np.random.default_rng([seed, *name.encode()])
    chosen = random.permutation(len(stage.targets))[:specials]
    ends = [stage.trial(random) for _ in range(trials)]
    ends += [stage.special(stage.targets[index], kind) for index in chosen for kind in SPECIAL]
    for outcome, said in ends:
        tally.outcomes[outcome] += 1
        if outcome == "fault":
            tally.faults.append(said)
    return tally
