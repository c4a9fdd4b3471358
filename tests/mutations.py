"""Contents of files changed on purpose: by bytes, and by what is in them."""

from __future__ import annotations

import csv
import io
import json
import re
import tomllib
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tomli_w
from flax import serialization
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from curvcli.registry import schemas
from curvcli.schema.report import analysis_of

Random = np.random.Generator


def _nested(levels: int, inside: Any = 1) -> Any:
    for level in range(levels):
        inside = [inside] if level % 2 else {"a": inside}
    return inside


VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 10**18, 2**63, 10**400, -(10**400), 0.5, 1e308, -1e308, 1e-320, 1e99, -1e99, 1e200,
    float("nan"), float("inf"), "", "0.5", "a", "x" * 3000, "\0", "\x1b]0;title\x07\u202e", "\ud800", "../../x",
    "/dev/zero", [], {}, [[]], [0.0], [1e308, -1e308], [None], ["a"], {"value": 1, "interval": None},
    {"name": [1]},
)  # fmt: skip
"""What a value of JSON or TOML is replaced by; `_nested` values join them."""


def any_value(random: Random) -> Any:
    """One of these, or a deeply nested one."""
    if random.random() < 0.04:
        return _nested(int(random.choice([30, 120, 400, 1500])))
    return VALUES[random.integers(len(VALUES))]


def flipped(content: bytes, random: Random) -> bytes:
    """One to four bytes are others."""
    changed = bytearray(content)
    for place in random.integers(len(content), size=random.integers(1, 5)):
        changed[place] ^= int(random.integers(1, 256))
    return bytes(changed)


def as_bytes(content: bytes, random: Random) -> bytes:
    """Bytes flipped, cut off, put in, doubled, or all of them others."""
    place = int(random.integers(len(content) + 1))
    length = int(random.integers(1, 65))
    changes: list[Callable[[], bytes]] = [
        lambda: content[:place],
        lambda: content[:place] + random.bytes(length) + content[place:],
        lambda: content[:place] + content[place + length :],
        lambda: content[:place] + bytes(length) + content[place + length :],
        lambda: content + content,
        lambda: random.bytes(length),
        lambda: b"",
    ]
    if content and random.random() < 0.5:
        return flipped(content, random)
    return changes[random.integers(len(changes))]()


def changed_value(value: Any, random: Random) -> Any:
    """The value with something in it replaced, removed, doubled or added."""
    if not isinstance(value, dict | list) or not value or random.random() < 0.08:
        return _replaced(value, random)
    what = random.random()
    if isinstance(value, dict):
        keys = list(value)
        key = keys[random.integers(len(keys))]
        if what < 0.08:
            return {name: entry for name, entry in value.items() if name != key}
        if what < 0.12:
            return {**value, str(any_value(random))[:2000]: any_value(random)}
        if what < 0.15:
            return {(f"{key}\0/" if name == key else name): entry for name, entry in value.items()}
        return {name: changed_value(entry, random) if name == key else entry for name, entry in value.items()}
    place = int(random.integers(len(value)))
    if what < 0.08:
        return value[:place] + value[place + 1 :]
    if what < 0.14:
        return value[:place] + [value[place]] * int(random.choice([2, 3, 3000])) + value[place + 1 :]
    if what < 0.18:
        return value[::-1]
    return [changed_value(entry, random) if i == place else entry for i, entry in enumerate(value)]


def _replaced(value: Any, random: Random) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool) and random.random() < 0.5:
        factor = random.choice([-1.0, 0.0, 1e-300, 1e12, 1e90, 2.0])
        return type(value)(value * factor) if abs(value) < 1e100 else -value
    return any_value(random)


def as_json(content: bytes, random: Random) -> bytes:
    """Values of JSON, one a line, with something in them changed."""
    lines = [json.loads(line) for line in content.decode().splitlines()]
    for _ in range(random.integers(1, 3)):
        place = random.integers(len(lines))
        lines[place] = changed_value(lines[place], random)
    try:
        text = "\n".join(map(json.dumps, lines)) + "\n"
    except (RecursionError, ValueError):  # too deep for the writer
        text = "[" * 3000
    if random.random() < 0.1:
        text = re.sub(r"\d+\.\d+", lambda found: "1e999" if random.random() < 0.05 else found[0], text)
    return text.encode()


def _scaled(value: Any, factor: float) -> Any:
    """All numbers in a value times a factor, which keeps them within their intervals."""
    if isinstance(value, dict):
        return {key: _scaled(entry, factor) for key, entry in value.items()}
    if isinstance(value, list):
        made = [_scaled(entry, factor) for entry in value]
        pair = len(made) == 2 and all(isinstance(entry, float) for entry in made)
        return sorted(made) if pair and factor < 0 else made
    return value * factor if isinstance(value, float) and abs(value) < 1e100 else value


def _changed_within(value: Any, random: Random) -> Any:
    """The value with something in it changed such that a schema may still permit it."""
    if not isinstance(value, dict | list) or not value or random.random() < 0.25:
        what = random.random()
        if what < 0.4:
            return _scaled(value, float(random.choice([1e95, 1e-310, 1e-120, -1.0, 0.0, 1e40, 1e-30, 0.999])))
        if what < 0.55 and isinstance(value, list):
            return [[], value[:1], value * 3, value * 400, value[::-1], [value[0] if value else 0.0] * 5][
                random.integers(6)
            ]
        if what < 0.65 and isinstance(value, int) and not isinstance(value, bool):
            return int(random.choice([0, 1, 10**6, 2**62]))
        if what < 0.75 and isinstance(value, str):
            return str(random.choice(["", "x" * 3000, "\x1b[2J", "a/" * 200, "$x_{", "<b>&", "\u6f22\u5b57", "a\nb"]))
        if what < 0.9:
            return None
        return any_value(random)
    if isinstance(value, dict):
        key = list(value)[random.integers(len(value))]
        return {name: _changed_within(entry, random) if name == key else entry for name, entry in value.items()}
    place = int(random.integers(len(value)))
    return [_changed_within(entry, random) if i == place else entry for i, entry in enumerate(value)]


def as_report(content: bytes, random: Random) -> bytes:
    """A report with up to eight changes of what its schema permits."""
    reports = [json.loads(line) for line in content.decode().splitlines()]
    for _ in range(random.integers(1, 9)):
        for _ in range(40):
            place = int(random.integers(len(reports)))
            part = "result" if random.random() < 0.8 else list(reports[place])[random.integers(len(reports[place]))]
            made = {**reports[place], part: _changed_within(reports[place][part], random)}
            try:
                schemas()[analysis_of(made["schema"])].model_validate(made)
            except (ValueError, RecursionError, TypeError, AttributeError, LookupError):
                continue
            reports[place] = made
            break
    return ("\n".join(map(json.dumps, reports)) + "\n").encode()


def as_json_or_report(content: bytes, random: Random) -> bytes:
    """JSON, of which most that are reports are changed as their schema permits."""
    if b'"schema": "curv.' in content[:40] and random.random() < 0.75:
        return as_report(content, random)
    return as_json(content, random)


def as_toml(content: bytes, random: Random) -> bytes:
    """Tables of TOML with something in them changed."""
    tables = tomllib.loads(content.decode())
    for _ in range(random.integers(1, 3)):
        made = changed_value(tables, random)
        tables = made if isinstance(made, dict) else {"a": made}
    try:
        return tomli_w.dumps(tables).encode()
    except (TypeError, RecursionError, ValueError, UnicodeEncodeError):  # no value of TOML
        return as_bytes(content, random)


NAMES = ("", "\0", "a/" * 500 + "b", "../x", "/", "a" * 3000, "\x1b[2J", "params", "params/Dense_0", "__proto__", "ä")
"""What an array or a column is called."""


def changed_array(array: np.ndarray, random: Random) -> np.ndarray:
    """The array with other values, of another shape or type."""
    with np.errstate(all="ignore"):
        kinds: list[Callable[[], Any]] = [
            lambda: array[:-1] if array.ndim else array[None],
            lambda: array.T,
            lambda: array[None],
            lambda: array[..., None],
            lambda: np.zeros(0, array.dtype),
            lambda: np.zeros((0, *array.shape[1:]), array.dtype),
            lambda: np.array(1.5),
            lambda: array.astype(random.choice(["f2", "f8", "i1", "u8", "?", "c8", "i8", "f4"])),
            lambda: array.astype("S8"),
            lambda: array.astype("U8"),
            lambda: np.full(array.shape, random.choice([np.nan, np.inf, 1e30, -1e30, 1e-40, -1.0, 0.0, 1e9])),
            lambda: np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
            lambda: np.array(["2020-01-01"], "datetime64[D]"),
            lambda: array.astype(">f8"),
            lambda: np.broadcast_to(array, (3, *array.shape)),
            lambda: np.asfortranarray(array),
        ]
        made = np.array(kinds[random.integers(len(kinds))]())
        if random.random() < 0.4 and array.size and array.dtype.kind in "biuf":
            made = np.array(array)
            made.flat[random.integers(made.size)] = random.choice([0, 1, 7, 100]) if made.dtype.kind != "f" else (
                random.choice([np.nan, np.inf, -np.inf, 3e38, 1e-45, 0.0, 1e9])
            )  # fmt: skip
    return made


def changed_arrays(arrays: dict[str, np.ndarray], random: Random) -> dict[str, np.ndarray]:
    """Arrays by name, one of them changed, renamed, removed, or one added."""
    names = list(arrays)
    name, what = names[random.integers(len(names))], random.random()
    other = NAMES[random.integers(len(NAMES))]
    if what < 0.1:
        return {key: array for key, array in arrays.items() if key != name}
    if what < 0.25:
        return {**arrays, other: arrays[name]}
    if what < 0.35:
        return {(other if key == name else key): array for key, array in arrays.items()}
    return {**arrays, name: changed_array(arrays[name], random)}


def as_npz(content: bytes, random: Random) -> bytes:
    """Arrays of an .npz."""
    with np.load(io.BytesIO(content)) as archive:
        arrays = changed_arrays(dict(archive), random)
    stream = io.BytesIO()
    if random.random() < 0.1:
        arrays = {**arrays, "object": np.array([{}], dtype=object)}
    np.savez(stream, **{name or "a": array for name, array in arrays.items() if "\0" not in name})  # type: ignore[arg-type]
    return stream.getvalue()


def as_npy(content: bytes, random: Random) -> bytes:
    """The array of an .npy."""
    stream = io.BytesIO()
    np.save(stream, changed_array(np.load(io.BytesIO(content)), random))
    return stream.getvalue()


def as_safetensors(content: bytes, random: Random) -> bytes:
    """Arrays of a .safetensors, or its header."""
    if random.random() < 0.3:
        length = int.from_bytes(content[:8], "little")
        header = as_json(content[8 : 8 + length].strip() + b"\n", random).strip()
        return len(header).to_bytes(8, "little") + header + content[8 + length :]
    kept = {
        name: np.ascontiguousarray(array)
        for name, array in changed_arrays(load_safetensors(content), random).items()
        if array.dtype.kind in "fiub" and array.dtype.isnative
    }
    return save_safetensors(kept)


def as_msgpack(content: bytes, random: Random) -> bytes:
    """A tree of Flax."""
    tree = serialization.msgpack_restore(content)
    made = _changed_tree(tree, random)
    try:
        return serialization.msgpack_serialize(made)
    except (TypeError, ValueError, OverflowError, RecursionError, UnicodeEncodeError):
        return as_bytes(content, random)


def _changed_tree(tree: Any, random: Random) -> Any:
    if isinstance(tree, np.ndarray):
        return changed_array(tree, random) if random.random() < 0.8 else any_value(random)
    if isinstance(tree, dict) and tree and random.random() < 0.85:
        keys = list(tree)
        key = keys[random.integers(len(keys))]
        return {name: _changed_tree(leaf, random) if name == key else leaf for name, leaf in tree.items()}
    return changed_value(tree, random)


def _columns(arrays: dict[str, Any], random: Random) -> dict[str, Any]:
    names = list(arrays)
    name, count = names[random.integers(len(names))], len(next(iter(arrays.values())))
    others: list[Any] = [
        [None] * count, ["a"] * count, [[1.0, 2.0]] * count, [{"a": 1}] * count, [True] * count, [b"\xff\x00"] * count,
        [float("nan")] * count, [10**18] * count, [[]] * count, [[1.0]] + [[1.0, 2.0]] * (count - 1), ["1.5"] * count,
    ]  # fmt: skip
    what = random.random()
    if what < 0.15:
        return {key: column for key, column in arrays.items() if key != name}
    if what < 0.25:
        return {key: column[:0] for key, column in arrays.items()}
    if what < 0.35:
        return {(NAMES[random.integers(len(NAMES))] if key == name else key): column for key, column in arrays.items()}
    return {**arrays, name: others[random.integers(len(others))]}


def as_parquet(content: bytes, random: Random) -> bytes:
    """Columns of a .parquet."""
    table = pa.table(_columns(pq.read_table(io.BytesIO(content)).to_pydict(), random))
    stream = io.BytesIO()
    pq.write_table(table, stream)
    return stream.getvalue()


def as_arrow(content: bytes, random: Random) -> bytes:
    """Columns of an Arrow stream."""
    with pa.ipc.open_stream(io.BytesIO(content)) as reader:
        table = pa.table(_columns(reader.read_all().to_pydict(), random))
    stream = io.BytesIO()
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    return stream.getvalue()


CELLS = ("", "nan", "inf", "1e999", "-1", "a", '"', "1,5", "0x10", "\0", "9" * 400, " 1 ", "1_0", "٣", "1e-400", "\n")


def as_csv(content: bytes, random: Random) -> bytes:
    """Cells and rows of a table of text."""
    rows = list(csv.reader(io.StringIO(content.decode())))
    i = int(random.integers(len(rows)))
    what = random.random()
    if what < 0.15:
        rows[i] = rows[i][:-1]
    elif what < 0.25:
        rows[i] = []
    elif what < 0.3:
        rows = rows[:1]
    elif what < 0.35:
        rows[i] = rows[i] * 3
    else:
        rows[i][random.integers(len(rows[i]))] = str(random.choice(CELLS))
    text = "\n".join(",".join(row) for row in rows) + "\n"
    return ("\ufeff" + text.replace("\n", "\r\n") if random.random() < 0.1 else text).encode()


LINES = (
    "import sys; sys.exit(3)", "raise ValueError('\\x1b[2J\\ud800')", "return None", "print('x' * 10**5)", "1/0",
    "import os; os.remove", "x = (", "\0", "def apply(*a): return a", "import no_such_module_at_all", "while False: 1",
    "raise MemoryError", "raise RecursionError",
)  # fmt: skip


def as_python(content: bytes, random: Random) -> bytes:
    """Lines of a program replaced, put in, or indented otherwise."""
    lines = content.decode().splitlines()
    place = int(random.integers(len(lines)))
    indent = re.match(r"\s*", lines[place])
    new = (indent[0] if indent else "") + str(random.choice(LINES))
    what = random.random()
    if what < 0.4:
        lines[place] = new
    elif what < 0.8:
        lines.insert(place, new)
    elif what < 0.9:
        del lines[place]
    else:
        lines[place] = " " + lines[place]
    return ("\n".join(lines) + "\n").encode()


STRUCTURED: dict[str, Callable[[bytes, Random], bytes]] = {
    ".json": as_json_or_report, ".jsonl": as_json_or_report, ".toml": as_toml, ".npz": as_npz, ".npy": as_npy,
    ".safetensors": as_safetensors, ".msgpack": as_msgpack, ".parquet": as_parquet, ".arrow": as_arrow, ".csv": as_csv,
    ".py": as_python,
}  # fmt: skip
"""How the content of a file is changed by what is in it, by the end of its name."""


def mutated(content: bytes, suffix: str, random: Random) -> bytes:
    """The content changed by its structure, where it has one, or by its bytes."""
    structured = STRUCTURED.get(suffix)
    if structured is None or random.random() < 0.35:
        return as_bytes(content, random)
    try:
        return structured(content, random)
    except ValueError as error:  # what was changed cannot be written in this format
        if "unexpected" in str(error):
            raise
        return as_bytes(content, random)
