"""Rows that stay in their files: what numpy says of the whole array holds of them, and so do digests and checks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curvcli import errors
from curvcli.curvature.products.prefetch import Prefetched
from curvcli.loading.data import stored
from curvcli.loading.data.stored import Rows
from curvcli.problem import Batches
from tests.loading.datasets import fails, load, same

RNG = np.random.default_rng(0)
X = RNG.normal(size=(53, 2, 3)).astype(np.float32)
Y = RNG.integers(0, 5, 53)


def rows_of(array: np.ndarray, log: list[tuple[int, int]] | None = None) -> Rows:
    def read(start: int, stop: int) -> np.ndarray:
        if log is not None:
            log.append((start, stop))
        return array[start:stop]

    return Rows(read, array.shape, array.dtype)


KEYS: list[Any] = [
    slice(None), slice(3, 11), slice(50, 99), slice(20, 5), slice(-4, None), slice(None, None, 7), 5, -1, np.int64(9),
    np.array([4, 4, 0, 52, -1, 30]), np.array([], int), np.arange(53)[::-1], Y > 2,
    (slice(2, 9), None), (slice(2, 9), 1), (np.array([7, 3]), slice(None), 2), (4, 1),
]  # fmt: skip


@pytest.mark.parametrize("key", KEYS, ids=repr)
def test_indexed_as_numpy_does(key: Any) -> None:
    found = rows_of(X)[key]
    if isinstance(found, Rows):
        assert (found.shape, found.ndim, found.size, found.nbytes) == (
            X[key].shape, X[key].ndim, X[key].size, X[key].nbytes,
        )  # fmt: skip
    same(np.asarray(found), X[key])


def test_a_slice_of_a_slice_and_rows_beyond_the_end() -> None:
    part = rows_of(X)[10:30][5:]
    same(np.asarray(part), X[15:30])
    same(part[np.array([0, 14])], X[[15, 29]])
    for key in (15, -16, np.array([15])):
        with pytest.raises(IndexError):
            part[key]
    assert len(list(part)) == 15


def test_chosen_rows_are_read_in_few_pieces_in_the_order_of_the_file() -> None:
    log: list[tuple[int, int]] = []
    rows_of(X, log)[np.array([40, 2, 41, 5, 20])]
    assert log == [(2, 6), (20, 21), (40, 42)]


def parquet(folder: Path, parts: list[pa.Table], rows: int = 5) -> None:
    for i, part in enumerate(parts):
        pq.write_table(part, folder / f"part-{i}.parquet", row_group_size=rows)


def hugging_face(folder: Path, parts: list[pa.Table]) -> None:
    names = [f"data-{i}.arrow" for i in range(len(parts))]
    for name, part in zip(names, parts, strict=True):
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, part.schema) as writer:
            writer.write_table(part, max_chunksize=4)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))


def parts() -> list[pa.Table]:
    """Two files: lists, tensors, numbers, and a column of another width in each."""
    made = []
    for rows, kind in ((slice(0, 22), pa.int16()), (slice(22, 53), pa.int64())):
        columns = {"x": X[rows].tolist(), "y": pa.array(Y[rows], kind), "a": X[rows, 0, 0], "b": X[rows, 1, 1]}
        columns["t"] = pa.FixedShapeTensorArray.from_numpy_ndarray(X[rows].copy())
        made.append(pa.table(columns))
    return made


@pytest.mark.parametrize("write", [parquet, hugging_face])
@pytest.mark.parametrize("inputs", ["x", "t", "a,b", "a"])
def test_as_when_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Any, inputs: str) -> None:
    write(tmp_path, parts())
    for limit in (None, 30):
        monkeypatch.undo()
        whole = load(tmp_path, ".", inputs=inputs, n=limit)
        monkeypatch.setattr(stored, "WHOLE_BYTES", 0)
        used = load(tmp_path, ".", inputs=inputs, n=limit)
        assert isinstance(whole.inputs, np.ndarray)
        assert isinstance(used.inputs, Rows)
        assert used.sha256 == whole.sha256
        same(np.asarray(used.inputs), whole.inputs)
        same(np.asarray(used.targets), whole.targets)

    def cut(data: Any) -> Batches:
        return Batches(data.inputs, data.targets, np.ones(30), 7, np.dtype("float64"))

    chosen = np.array([29, 3, 4, 17, 3, 0])
    for found, expected in ((cut(used), cut(whole)), (cut(used).chosen(chosen), cut(whole).chosen(chosen))):
        assert found.nbytes == expected.nbytes
        for one, other in zip(Prefetched(found), expected, strict=True):
            jax.tree.map(np.testing.assert_array_equal, one, other)


def test_row_groups_are_decoded_once_a_pass_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "WHOLE_BYTES", 0)
    parquet(tmp_path, [pa.table({"x": X[i : i + 9].tolist(), "y": Y[i : i + 9]}) for i in range(0, 45, 9)], rows=9)
    inputs, decoded, read = load(tmp_path, ".").inputs, [], pq.ParquetFile.read_row_group
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", lambda *a, **k: decoded.append(a) or read(*a, **k))
    for _ in range(2):
        decoded.clear()
        for start in range(0, 45, 4):
            np.asarray(inputs[start : start + 4])
        assert len(decoded) == 5


def test_what_is_wrong_is_found_in_later_pieces_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "WHOLE_BYTES", 0)
    bad = X.reshape(53, 6).copy()
    bad[47, 2] = np.nan
    holes, lists = [*Y.tolist()[:44], None, *Y.tolist()[45:]], X.reshape(53, 6).tolist()
    lists[31] = lists[31][:5]
    parquet(tmp_path, [pa.table({"x": bad.tolist(), "y": Y, "h": holes, "l": lists})])
    fails(errors.DataError, tmp_path, "part-0.parquet", "NaN or infinite", "row 47")
    fails(errors.DataError, tmp_path, "part-0.parquet", "no value in row 44", inputs="h", targets="y")
    fails(errors.DataError, tmp_path, "part-0.parquet", "row 31", "5 numbers", inputs="l")
    assert load(tmp_path, "part-0.parquet", inputs="l", n=31).num_examples == 31


def test_large_arrays_of_an_npz_stay_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "WHOLE_BYTES", 0)
    np.savez(tmp_path / "d.npz", x=np.asfortranarray(X), y=Y)
    np.savez_compressed(tmp_path / "c.npz", x=X, y=Y)
    found, squeezed = load(tmp_path, "d.npz"), load(tmp_path, "c.npz")
    assert isinstance(found.inputs, np.memmap)
    assert not isinstance(squeezed.inputs, np.memmap)
    same(found.inputs, X)
    same(found.targets, Y)
