"""Tables: .csv, .parquet, Hugging Face folders."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curvcli import errors
from curvcli.loading.data import stored, tables
from tests.loading.datasets import X, Y, csv_file, fails, load, same

# --- .csv ---------------------------------------------------------------------------------------------------


def test_csv(tmp_path):
    csv_file(tmp_path, '\ufeffid,a, "b, too",y\r\nu,1,0.5,2\r\n\r\n"v",2,-1e3,0\r\n')
    found = load(tmp_path, "d.csv", inputs="a", targets="y")
    same(found.inputs, np.array([[1], [2]]))
    same(found.targets, np.array([2, 0]))
    same(load(tmp_path, "d.csv", inputs="[ab]*").inputs, np.array([[1, 0.5], [2, -1000]]))
    same(load(tmp_path, "d.csv", inputs="b, too", targets="b, too").targets, np.array([0.5, -1000]))
    same(load(tmp_path, "d.csv", inputs="y,a").inputs, np.array([[2, 1], [0, 2]]))
    error = fails(errors.SpecError, tmp_path, "d.csv", "no column 'label'", "'id', 'a'", inputs="a", targets="label")
    assert error.exit_code == 78
    assert "x_train" in fails(errors.SpecError, tmp_path, "d.csv", split="train").message


def test_csv_takes_no_more_than_asked(tmp_path):
    csv_file(tmp_path, "x,y\n1,0\n2,1\nbad,1\n")
    same(load(tmp_path, "d.csv", n=2).inputs, np.array([[1], [2]]))
    csv_file(tmp_path, "x,y\n1,0\n2,1\n")
    fails(errors.UsageError, tmp_path, "d.csv", "5", "has 2", n=5)


def test_csv_type_over_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "_CELLS_AT_ONCE", 2)
    csv_file(tmp_path, "x,y\n" + "".join(f"{i},{i}{'.5' if i == 7 else ''}\n" for i in range(9)))
    found = load(tmp_path, "d.csv")
    same(found.inputs, np.arange(9)[:, None])
    assert found.targets.dtype == np.float64


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("x,y\n", "is empty"),
        ("1,2\n3,4\n", "first line holds numbers"),
        ("x,y\n1,2\n3\n", "line 3 has 1 cells"),
        ("x,y\n1,2\n3\n", "nothing in column 'y'"),
        ("x,y\n1,2,3\n", "line 2 has 3 cells"),
        ("x,y\n\n1,2\n1,abc\n", "line 4, column 'y': 'abc' is not a number"),
        ("x,y\n1,\n", "line 2, column 'y': the cell is empty"),
        ("x,y\n1_000,1\n", "line 2, column 'x': '1_000'"),
        ("x,y\n1,2\nnan,2\n", "column 'x' has 1 values that are NaN"),
        ("x,y\n1,1e999\n", "column 'y' has 1 values"),
        (b"x,y\n1,2\n\xff\xfe,1\n", "not UTF-8"),
        ("x,y\n".encode("utf-16"), "not UTF-8"),
        ('x,y\n"1"2,2\n', "line 2"),
        ('x,y\n1,"2\n', "line 2"),
        ("x,x,y\n1,1,1\n", "several columns are named 'x'"),
        ("x,y\n" + "9" * 5000 + ",1\n", "infinite"),
        ("x,y\n1,\0\n", "line 2"),
        ("x,y\n1,'" + "5" * 140000 + "\n", "field larger"),
    ],
)
def test_csv_bad(tmp_path, content, says):
    csv_file(tmp_path, content)
    fails(errors.DataError, tmp_path, "d.csv", says)


def test_csv_large_integers(tmp_path):
    csv_file(tmp_path, f"x,y\n{2**63 - 1},1\n")
    same(load(tmp_path, "d.csv").inputs, np.array([[2**63 - 1]]))
    csv_file(tmp_path, f"x,y\n{2**63},1\n")
    same(load(tmp_path, "d.csv").inputs, np.array([[2.0**63]]))


@pytest.fixture(params=["whole", "as used"])
def reads(request, monkeypatch):
    """Columns read at once, as small ones are, and as their rows are used."""
    if request.param == "as used":
        monkeypatch.setattr(stored, "WHOLE_BYTES", 0)
    return request.param


# --- .parquet -----------------------------------------------------------------------------------------------


def test_parquet(tmp_path, reads):
    columns = {
        "a": pa.array(X[:, 0]),
        "b": pa.array(Y),
        "y": pa.array(Y, pa.int32()),
        "s": pa.array(list("abcdef")),
    }
    columns["l"] = pa.FixedSizeListArray.from_arrays(pa.array(X.ravel()), 4)
    columns["img"] = pa.array(np.arange(36).reshape(6, 2, 3).tolist(), pa.list_(pa.list_(pa.uint8())))
    columns["w"] = pa.array([True, False] * 3)
    columns["t"] = pa.FixedShapeTensorArray.from_numpy_ndarray(X.reshape(6, 2, 2).copy())
    pq.write_table(pa.table(columns), tmp_path / "d.parquet", row_group_size=4)
    found = load(tmp_path, "d.parquet", inputs="l", mask="w")
    same(found.inputs, X)
    same(found.targets, Y.astype(np.int32))
    same(found.mask, np.array([True, False] * 3))
    same(load(tmp_path, "d.parquet", inputs="a,b").inputs, np.stack([X[:, 0], Y], 1, dtype=np.float64))
    same(load(tmp_path, "d.parquet", inputs="a").inputs, X[:, :1])
    same(load(tmp_path, "d.parquet", inputs="a", targets="a").targets, X[:, 0])
    same(load(tmp_path, "d.parquet", inputs="img").inputs, np.arange(36, dtype=np.uint8).reshape(6, 2, 3))
    same(load(tmp_path, "d.parquet", inputs="t").inputs, X.reshape(6, 2, 2))
    assert list(load(tmp_path, "d.parquet", inputs="l,a").inputs) == ["l", "a"]
    fails(errors.DataError, tmp_path, "d.parquet", "column 's'", "string", inputs="s")
    fails(errors.SpecError, tmp_path, "d.parquet", "no column 'x'", "'img'")


def test_parquet_in_the_data_folder_of_a_clone(tmp_path, reads):
    folder = tmp_path / "hub" / "data"
    folder.mkdir(parents=True)
    (tmp_path / "hub" / "README.md").write_text("---\n---\n")
    for part in range(2):
        rows = slice(3 * part, 3 * part + 3)
        columns = {"x": list(X[rows]), "y": Y[rows]}
        pq.write_table(pa.table(columns), folder / f"train-0000{part}-of-00002.parquet")
    for split in (None, "train"):
        same(load(tmp_path, "hub", split=split).inputs, X)


def test_parquet_ragged_null_image(tmp_path, reads):
    pq.write_table(
        pa.table(
            {
                "y": [1, 2, 3],
                "ragged": [[1, 2], [3, 4], [5]],
                "deep": [[[1, 2], [3, 4]], [[1, 2], [3]], [[1, 2], [3, 4]]],
                "null": [1.0, None, 2.0],
                "inner": [[1, 2], [3, 4], [5, None]],
                "image": [{"bytes": b"\x89PNG", "path": "a.png"}] * 3,
                "empty": pa.array([[], [], []], pa.list_(pa.int64())),
            }
        ),
        tmp_path / "d.parquet",
        row_group_size=2,
    )
    fails(errors.DataError, tmp_path, "d.parquet", "'ragged': row 2", "1 numbers", "have 2", inputs="ragged")
    fails(errors.DataError, tmp_path, "d.parquet", "'deep': row 1", inputs="deep")
    fails(errors.DataError, tmp_path, "d.parquet", "'null': no value in row 1", inputs="null")
    fails(errors.DataError, tmp_path, "d.parquet", "'inner': no value in row 2", inputs="inner")
    fails(errors.DataError, tmp_path, "d.parquet", "encoded images", "arrays", inputs="image")
    fails(errors.DataError, tmp_path, "d.parquet", "empty", inputs="empty")


def test_parquet_folder(tmp_path, reads):
    table = pa.table({"x": X.tolist(), "y": Y})
    for name, part in (("part-0", table[:4]), ("part-1", table[4:])):
        pq.write_table(part, tmp_path / f"{name}.parquet")
    np.testing.assert_array_equal(load(tmp_path, ".").inputs, X)
    assert load(tmp_path, ".", n=5).num_examples == 5
    pq.write_table(table.select(["x"]), tmp_path / "part-2.parquet")
    fails(errors.DataError, tmp_path, ".", "part-2.parquet has no column 'y'")
    assert load(tmp_path, ".", n=5).num_examples == 5


def test_parquet_folder_of_splits(tmp_path):
    table = pa.table({"x": X.tolist(), "y": Y})
    for name, part in (
        ("train-00000-of-00002", table[:2]),
        ("train-00001-of-00002", table[2:4]),
        ("test", table[4:]),
    ):
        pq.write_table(part, tmp_path / f"{name}.parquet")
    assert load(tmp_path, ".", split="train").num_examples == 4
    assert load(tmp_path, ".", split="test").num_examples == 2
    assert load(tmp_path, "test.parquet", split="test").num_examples == 2
    fails(errors.SpecError, tmp_path, ".", "several splits: 'test', 'train'")
    fails(errors.SpecError, tmp_path, ".", "'dev'", "test.parquet", split="dev")


def test_parquet_damage(tmp_path, reads):
    pq.write_table(pa.table({"x": X[:, 0], "y": Y}), tmp_path / "d.parquet")
    whole = (tmp_path / "d.parquet").read_bytes()
    for content in (b"", whole[:-1], whole[:40], b"PAR1" * 20):
        (tmp_path / "d.parquet").write_bytes(content)
        fails(errors.DataError, tmp_path, "d.parquet")


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    pq.write_table(pa.table({"x": X[:, 0], "y": Y}), tmp_path / "d.parquet")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    fails(errors.SpecError, tmp_path, "d.parquet", "pyarrow", "curvcli[tables]")


# --- Hugging Face folders -----------------------------------------------------------------------------------


def saved(folder: Path, table: pa.Table, split: str | None = None, shards: int = 2, **state: Any) -> None:
    """Write what `Dataset.save_to_disk` writes."""
    folder.mkdir(parents=True)
    names = [f"data-{i:05d}-of-{shards:05d}.arrow" for i in range(shards)]
    for i, name in enumerate(names):
        part = table[i * len(table) // shards : (i + 1) * len(table) // shards]
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(part, max_chunksize=2)
    files = [{"filename": name} for name in names]
    (folder / "state.json").write_text(json.dumps({"_data_files": files, "_split": split} | state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": {}}))


HF = pa.table({"x": X.tolist(), "y": Y, "image": [{"bytes": b"", "path": None}] * 6})


def test_saved_dataset(tmp_path, reads):
    saved(tmp_path / "d", HF, "train")
    found = load(tmp_path, "d")
    np.testing.assert_array_equal(found.inputs, X)
    same(found.targets, Y)
    assert load(tmp_path, "d", split="train", n=2).num_examples == 2
    fails(errors.SpecError, tmp_path, "d", "no split 'test'", "'train'", split="test")
    fails(errors.SpecError, tmp_path, "d", "no column 'label'", targets="label")
    fails(errors.DataError, tmp_path, "d", "encoded images", inputs="image")
    saved(tmp_path / "i", HF, _indices_data_files=[{"filename": "indices.arrow"}])
    fails(errors.DataError, tmp_path, "i", "flatten_indices")


def test_saved_dataset_dict(tmp_path):
    saved(tmp_path / "d" / "train", HF, "train")
    saved(tmp_path / "d" / "test", HF[:3], "test", shards=1)
    (tmp_path / "d" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert load(tmp_path, "d", split="train").num_examples == 6
    assert load(tmp_path, "d", split="test").num_examples == 3
    fails(errors.SpecError, tmp_path, "d", "several splits: 'train', 'test'")
    fails(errors.SpecError, tmp_path, "d", "no split 'dev'", "'train', 'test'", split="dev")
    (tmp_path / "d" / "dataset_dict.json").write_text('{"splits": ["test"]}')
    assert load(tmp_path, "d").num_examples == 3


def test_saved_damage(tmp_path, reads):
    saved(tmp_path / "d", HF, "train", shards=1)
    (file,) = (tmp_path / "d").glob("*.arrow")
    whole = file.read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"ARROW1" + bytes(50), bytes(100)):
        file.write_bytes(content)
        fails(errors.DataError, tmp_path, "d")
    file.unlink()
    fails(errors.NotFoundError, tmp_path, "d", file.name)
    for state in ("{", "[]", "{}", '{"_data_files": 3}'):
        (tmp_path / "d" / "state.json").write_text(state)
        fails(errors.DataError, tmp_path, "d")
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, HF.schema) as writer:
        writer.write_table(HF)
    (tmp_path / "d" / "state.json").unlink()
    assert load(tmp_path, "d").num_examples == 6


def test_saved_stays_in_its_folder(tmp_path):
    saved(tmp_path / "other", HF, shards=1)
    saved(tmp_path / "d", HF, shards=1, _data_files=[{"filename": "../other/data-00000-of-00001.arrow"}])
    (tmp_path / "d" / "data-00000-of-00001.arrow").unlink()
    fails(errors.NotFoundError, tmp_path, "d")


def test_saved_bits_flipped(tmp_path):
    saved(tmp_path / "d", HF, shards=1)
    (file,) = (tmp_path / "d").glob("*.arrow")
    whole = bytearray(file.read_bytes())
    for at in np.random.default_rng(0).integers(0, len(whole), 200):
        content = whole.copy()
        content[at] ^= 0xFF
        file.write_bytes(content)
        with contextlib.suppress(errors.CurvError):
            assert load(tmp_path, "d").num_examples > 0
