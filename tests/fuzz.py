"""Checkpoints and data damaged on purpose, and what becomes of them, counted.

`fuzz` damages every file of a project in turn: it is cut at every sixteenth of its length, and bytes of it are flipped.
What curv then reads has one of four outcomes: `refused` with an error that is the user's to understand, the `same`
numbers as before, `changed` numbers without a word, or a `crash`: any other exception, or an error that is a bug.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from flax import serialization
from safetensors.numpy import save_file

from curvcli.errors import CurvError
from curvcli.loading.checkpoints.trees import flatten_tree
from curvcli.loading.resolve import Loaded, load_problem
from curvcli.loading.spec.files import FoundSpec, merge
from curvcli.schema.settings import DataSettings

CUTS = 16
_RANDOM = np.random.default_rng(0)


def save_npz(path: Path) -> None:
    """The parameters as .npz, whatever the name."""
    with path.open("wb") as stream:
        np.savez(stream, **flatten_tree({"params": PARAMS}))


PARAMS = {
    f"Dense_{layer}": {"kernel": _RANDOM.normal(size=(a, b)).astype("f4"), "bias": _RANDOM.normal(size=b).astype("f4")}
    for layer, (a, b) in enumerate([(3, 8), (8, 2)])
}
X, Y = _RANDOM.normal(size=(40, 3)).astype("f4"), _RANDOM.integers(0, 2, 40)


@dataclass
class Tally:
    """How many inputs had each outcome, and where those happened that must not.

    Parameters
    ----------
    outcomes
        Counts of `refused`, `same`, `changed` and `crash`.
    faults
        The inputs that `changed` or led to a `crash`, in words.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    @property
    def tried(self) -> int:
        """Inputs in all."""
        return self.outcomes.total()


# --- what is damaged --------------------------------------------------------------------------------------


def orbax_with(path: Path, tree: Any, **options: Any) -> None:
    """A checkpoint of Orbax with this tree."""
    import orbax.checkpoint as ocp

    with ocp.PyTreeCheckpointer(**options) as checkpointer:
        checkpointer.save(path.absolute(), tree)


def _orbax(path: Path, **options: Any) -> None:
    orbax_with(path, {"params": PARAMS}, **options)


def _manager(path: Path) -> None:
    import orbax.checkpoint as ocp

    with ocp.CheckpointManager(path.absolute()) as manager:
        manager.save(3, args=ocp.args.StandardSave({"params": PARAMS}))


CHECKPOINTS: dict[str, Callable[[Path], Any]] = {
    "msgpack": lambda path: path.write_bytes(serialization.to_bytes({"params": PARAMS})),
    "safetensors": lambda path: save_file(flatten_tree({"params": PARAMS}), path),
    "npz": save_npz,
    "orbax": _orbax,
    "orbax-zarr": lambda path: _orbax(path, use_ocdbt=False),
    "orbax-manager": _manager,
}
"""How the weights are stored, at a path."""


def _table() -> pa.Table:
    return pa.table({**{f"x{i}": column for i, column in enumerate(X.T)}, "y": Y})


def _npy(path: Path) -> None:
    path.mkdir()
    np.save(path / "x.npy", X)
    np.save(path / "y.npy", Y)


def _csv(path: Path) -> None:
    rows = [f"{','.join(map(str, x.tolist()))},{y}" for x, y in zip(X, Y, strict=True)]
    path.write_text("\n".join(["x0,x1,x2,y", *rows, ""]))


def _saved(path: Path) -> None:
    """As `save_to_disk` of Hugging Face's datasets writes it."""
    path.mkdir()
    with pa.ipc.new_stream(path / "data-00000-of-00001.arrow", _table().schema) as stream:
        stream.write_table(_table())
    (path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    (path / "dataset_info.json").write_text("{}")


DATA: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "data-npz": ("data.npz", lambda path: np.savez(path, x=X, y=Y)),
    "data-npy": ("data", _npy),
    "data-csv": ("data.csv", _csv),
    "data-parquet": ("data.parquet", lambda path: pq.write_table(_table(), path)),
    "data-arrow": ("data", _saved),
}
"""How the examples are stored: the name, and what writes it."""

KINDS = (*CHECKPOINTS, *DATA)


# --- how ---------------------------------------------------------------------------------------------------


def damaged(content: bytes, random: np.random.Generator, *, cuts: int, flips: int) -> Iterator[tuple[str, bytes]]:
    """The content cut at every part of its length, and with one to three bytes flipped, each with what was done."""
    for part in range(cuts):
        yield f"cut at {part}/{cuts}", content[: len(content) * part // cuts]
    for _ in range(flips if content else 0):
        places = random.integers(len(content), size=random.integers(1, 4))
        changed = bytearray(content)
        for place in places:
            changed[place] ^= int(random.integers(1, 256))
        yield f"flipped at {sorted(set(places.tolist()))}", bytes(changed)


def fuzz(
    kinds: tuple[str, ...], folder: Path, *, seed: int, flips: int, cuts: int = CUTS, pinned: bool = True
) -> Tally:
    """Damage every file of projects of these kinds, one at a time.

    Parameters
    ----------
    kinds
        Of `KINDS`.
    folder
        Empty; the projects are written into it.
    flips, cuts
        Of every file.
    pinned
        Whether curv.toml has the digests of what was written.
    """
    tally = Tally()
    for kind in kinds:
        place = folder / kind
        place.mkdir()
        subject, spec = _project(place, kind)
        first = _read(place, spec)
        known = _numbers(first)
        if pinned:
            spec["checkpoint"]["sha256"], spec["data"]["sha256"] = first.checkpoint.sha256, first.data.sha256
        random = np.random.default_rng(seed)
        for file in sorted(file for file in [subject, *subject.rglob("*")] if file.is_file()):
            content = file.read_bytes()
            for what, changed in damaged(content, random, cuts=cuts, flips=flips):
                file.write_bytes(changed)
                outcome, told = _outcome(place, spec, known)
                tally.outcomes[outcome] += 1
                if outcome in ("changed", "crash"):
                    tally.faults.append(f"{kind}, {file.relative_to(place)} {what}: {told}")
            file.write_bytes(content)
    return tally


def _project(place: Path, kind: str) -> tuple[Path, dict[str, dict[str, Any]]]:
    """The file or folder to damage, and the tables of a curv.toml; what is not damaged is .npz."""
    name, write = DATA[kind] if kind in DATA else DATA["data-npz"]
    store = CHECKPOINTS[kind] if kind in CHECKPOINTS else CHECKPOINTS["npz"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write(place / name)
        store(place / "ckpt")
    columns = name.endswith((".csv", ".parquet")) or kind == "data-arrow"
    spec: dict[str, dict[str, Any]] = {
        "model": {"target": "curvcli.zoo:MLP", "kwargs": {"features": [8, 2]}},
        "checkpoint": {"path": "ckpt"},
        "data": {"path": name, "inputs": "x0,x1,x2" if columns else "x"},
        "loss": {"name": "softmax_cross_entropy"},
    }
    return (place / name if kind in DATA else place / "ckpt"), spec


def _read(place: Path, spec: dict[str, dict[str, Any]]) -> Loaded:
    found = FoundSpec(spec, place, "curv.toml", trusted=True)
    return load_problem(merge(found, {}), found, place / "ckpt", DataSettings(), step=None, trust=False)


def _numbers(loaded: Loaded) -> list[bytes]:
    """Every number that the answer rests on."""
    batches = loaded.problem.batches
    arrays = [
        *(leaf for _, leaf in sorted(loaded.problem.params.items())),
        batches.inputs,
        batches.targets,
        batches.weight,
    ]
    return [np.ascontiguousarray(array).tobytes() for array in arrays]


def _outcome(place: Path, spec: dict[str, dict[str, Any]], known: list[bytes]) -> tuple[str, str]:
    try:
        found = _numbers(_read(place, spec))
    except CurvError as error:
        clear = error.exit_code in (65, 66, 71, 77, 78) and error.message and error.hint
        return "refused" if clear else "crash", error.message
    except Exception as error:
        return "crash", f"{type(error).__name__}: {error}"
    return ("same", "") if found == known else ("changed", "other numbers, without a word")
