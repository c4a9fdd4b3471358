"""Every source of data, and every way in which data can be bad."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from curvcli import errors
from curvcli.loading.data import arrays
from tests.loading.datasets import RELAXED, X, Y, csv_file, fails, load, npz_with, same

# --- .npz ---------------------------------------------------------------------------------------------------


def test_npz(tmp_path):
    np.savez(tmp_path / "d.npz", x=X, y=Y, w=np.ones(6))
    found = load(tmp_path, "d.npz", mask="w")
    same(found.inputs, X)
    same(found.targets, Y)
    same(found.mask, np.ones(6))
    assert (found.num_examples, found.path) == (6, "d.npz")
    assert len(found.sha256) == 64
    assert load(tmp_path, "d.npz").mask is None
    assert load(Path("/"), str(tmp_path / "d.npz")).num_examples == 6


def test_npz_keeps_dtypes(tmp_path):
    for dtype in (np.uint8, np.bool_, np.int16, np.float16, np.float64):
        np.savez_compressed(tmp_path / "d.npz", x=X.astype(dtype), y=Y)
        same(load(tmp_path, "d.npz").inputs, X.astype(dtype))


def test_other_byte_order_becomes_native(tmp_path):
    np.savez(tmp_path / "d.npz", x=X.astype(">f4"), y=Y.astype(">i8"))
    found = load(tmp_path, "d.npz")
    same(found.inputs, X)
    same(found.targets, Y)
    assert found.inputs.dtype.isnative


def test_npz_several_inputs_and_targets(tmp_path):
    np.savez(tmp_path / "d.npz", a=X, b=X[:, :2], y=Y, z=-Y, **{"c,d": X + 1})
    found = load(tmp_path, "d.npz", inputs="a, b", targets="y,z")
    assert list(found.inputs) == ["a", "b"]
    same(found.inputs["b"], X[:, :2])
    same(found.targets, np.stack([Y, -Y], 1))
    same(load(tmp_path, "d.npz", inputs="c,d").inputs, X + 1)
    assert list(load(tmp_path, "d.npz", inputs="[ab]").inputs) == ["a", "b"]
    fails(errors.SpecError, tmp_path, "d.npz", "several targets", inputs="a", targets="y,a")


def test_npz_split(tmp_path):
    np.savez(tmp_path / "d.npz", x_train=X, y_train=Y, x_test=X[:2], y_test=Y[:2], mask_train=np.ones((6, 3)))
    assert load(tmp_path, "d.npz", split="test").num_examples == 2
    same(load(tmp_path, "d.npz", split="train", mask="mask").mask, np.ones((6, 3)))
    fails(errors.SpecError, tmp_path, "d.npz", "no array 'x_valid'", "'x_train'", "'x_test'", split="valid")
    fails(errors.SpecError, tmp_path, "d.npz", "'mask_test'", split="test", mask="mask")
    fails(errors.SpecError, tmp_path, "d.npz", 'split = "train"')


def test_npz_missing_array(tmp_path):
    np.savez(tmp_path / "d.npz", features=X, y=Y)
    error = fails(errors.SpecError, tmp_path, "d.npz", "'feature'", "'features', 'y'", inputs="feature")
    assert error.exit_code == 78
    assert "did you mean 'features'" in error.hint
    assert "--inputs" in error.hint
    fails(errors.SpecError, tmp_path, "d.npz", "'mask'", inputs="features", mask="mask")
    fails(errors.SpecError, tmp_path, "d.npz", "remove `split`", inputs="features", split="train")
    fails(errors.SpecError, tmp_path, "d.npz", inputs=" , ")
    fails(errors.SpecError, tmp_path, "d.npz", "did you mean 'y'", inputs="features", targets="Y")


def test_npz_pickle(tmp_path):
    np.savez(tmp_path / "d.npz", x=np.array([{}, []], object), y=Y)
    assert fails(errors.DataError, tmp_path, "d.npz", "'x'", "pickle").exit_code == 65
    same(load(tmp_path, "d.npz", inputs="y").inputs, Y)  # what is not asked for is not read
    (tmp_path / "d.npz").write_bytes(pickle.dumps({"x": X}))
    fails(errors.DataError, tmp_path, "d.npz")


def test_npz_damage(tmp_path):
    np.savez_compressed(tmp_path / "d.npz", x=np.random.default_rng(0).normal(size=(50, 4)), y=np.zeros(50))
    whole = (tmp_path / "d.npz").read_bytes()
    for size in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "d.npz").write_bytes(whole[:size])
        fails(errors.DataError, tmp_path, "d.npz")
    flipped = bytearray(whole)
    flipped[500] ^= 1
    (tmp_path / "d.npz").write_bytes(flipped)
    fails(errors.DataError, tmp_path, "d.npz")


def test_npz_header_that_lies(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (2**39, 1)})
    npz_with(tmp_path, header.getvalue() + bytes(48))
    fails(errors.DataError, tmp_path, "d.npz", "should have 4398046511104 bytes and has 48")
    npz_with(tmp_path, b"hello")
    fails(errors.DataError, tmp_path, "d.npz")
    npz_with(tmp_path, b"\x93NUMPY\x01\x00" + struct.pack("<H", 12) + b"[" * 12)
    fails(errors.DataError, tmp_path, "d.npz")


@pytest.mark.parametrize("bad", [np.array(["a"] * 6), np.ones(6, complex), np.ones(6, "M8[s]"), np.ones(6, "i4,f4")])
def test_not_numbers(tmp_path, bad):
    np.savez(tmp_path / "d.npz", x=X, y=bad)
    fails(errors.DataError, tmp_path, "d.npz", "array 'y'", "not numbers")


def test_lengths(tmp_path):
    np.savez(tmp_path / "d.npz", x=X, y=Y[:5], e=np.zeros((0, 4)), s=1.0, f=np.zeros((6, 0)))
    fails(errors.DataError, tmp_path, "d.npz", "'x' has 6", "'y' has 5 examples")
    fails(errors.DataError, tmp_path, "d.npz", "'y' has 5", targets="x", mask="y")
    fails(errors.DataError, tmp_path, "d.npz", "'e' is empty", inputs="e")
    fails(errors.DataError, tmp_path, "d.npz", "'f' is empty", inputs="f")
    fails(errors.DataError, tmp_path, "d.npz", "'s' is a single number", targets="s")


def test_not_finite(tmp_path):
    bad = X.copy()
    bad[3, 1], bad[5] = np.nan, np.inf
    np.savez(tmp_path / "d.npz", x=bad, y=Y, t=np.where(Y == 2, np.nan, 0))
    fails(errors.DataError, tmp_path, "d.npz", "array 'x' has 5 values", "first in row 3")
    fails(errors.DataError, tmp_path, "d.npz", "'t' has 2", "first in row 2", inputs="y", targets="t")
    assert load(tmp_path, "d.npz", n=3).num_examples == 3


def test_mask(tmp_path):
    masks = {"neg": np.array([1, 1, -1.0, 1, 1, 1]), "zero": np.zeros(6), "nan": np.full(6, np.nan)}
    np.savez(tmp_path / "d.npz", x=X, y=Y, b=Y > 0, deep=np.ones((6, 1, 1)), **masks)
    same(load(tmp_path, "d.npz", mask="b").mask, Y > 0)
    fails(errors.DataError, tmp_path, "d.npz", "mask 'neg'", "row 2", mask="neg")
    fails(errors.DataError, tmp_path, "d.npz", "mask 'zero'", "0 everywhere", mask="zero")
    fails(errors.DataError, tmp_path, "d.npz", "NaN", mask="nan")
    fails(errors.DataError, tmp_path, "d.npz", "(6, 1, 1)", mask="deep")
    fails(errors.DataError, tmp_path, "d.npz", "one of 2", mask="b,zero")


def test_num_examples(tmp_path):
    np.savez(tmp_path / "d.npz", x=X, y=Y)
    found = load(tmp_path, "d.npz", n=2)
    same(found.inputs, X[:2])
    same(found.targets, Y[:2])
    assert found.num_examples == 2
    assert found.sha256 != load(tmp_path, "d.npz").sha256
    assert load(tmp_path, "d.npz", n=6).sha256 == load(tmp_path, "d.npz").sha256
    assert fails(errors.UsageError, tmp_path, "d.npz", "7", "6", n=7).exit_code == 2
    fails(errors.UsageError, tmp_path, "d.npz", "0", n=0)


# --- paths --------------------------------------------------------------------------------------------------


def test_not_found(tmp_path):
    np.savez(tmp_path / "digits.npz", x=X, y=Y)
    assert fails(errors.NotFoundError, tmp_path, "digit.npz", "did you mean 'digits.npz'").exit_code == 66
    fails(errors.NotFoundError, tmp_path, "away/digits.npz", "folder that should hold it")
    fails(errors.NotFoundError, tmp_path, "digits.npz/x")
    fails(errors.NotFoundError, tmp_path, "d" * 5000 + ".npz")
    fails(errors.NotFoundError, tmp_path, "d\0.npz")
    fails(errors.NotFoundError, tmp_path, "a:digits.npz")
    fails(errors.NotFoundError, tmp_path, "https://example.org/d.npz", "download")
    fails(errors.NotFoundError, tmp_path, ".", "'digits.npz'")
    (tmp_path / "empty").mkdir()
    fails(errors.NotFoundError, tmp_path, "empty")
    fails(errors.SpecError, tmp_path, None, "--data")


def test_kinds_of_files(tmp_path):
    (tmp_path / "d.pkl").write_bytes(pickle.dumps(1))
    fails(errors.SpecError, tmp_path, "d.pkl", "not a kind of data")
    np.save(tmp_path / "x.npy", X)
    fails(errors.SpecError, tmp_path, "x.npy", "folder of .npy")
    os.mkfifo(tmp_path / "d.csv")
    fails(errors.DataError, tmp_path, "d.csv", "not a regular file")


def test_file_whose_name_looks_like_a_target(tmp_path):
    (tmp_path / "a:b").mkdir()
    np.save(tmp_path / "a:b" / "x.npy", X)
    np.save(tmp_path / "a:b" / "y.npy", Y)
    same(load(tmp_path, "a:b").inputs, X)


@pytest.mark.parametrize("name", ["d.npz", "d.csv", "d.parquet"])
def test_permission(tmp_path, monkeypatch, name):
    np.savez(tmp_path / "d.npz", x=X, y=Y)
    (tmp_path / "d.csv").write_text("x,y\n1,2\n")
    pq.write_table(pa.table({"x": [1], "y": [2]}), tmp_path / "d.parquet")

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied", name)

    # Patched, since the superuser may read everything.
    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(zipfile, "is_zipfile", refuse)
    monkeypatch.setattr(pq, "ParquetFile", refuse)
    assert fails(errors.PermissionDeniedError, tmp_path, name, name).exit_code == 77


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_permission_for_real(tmp_path):
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", Y)
    (tmp_path / "x.npy").chmod(0)
    fails(errors.PermissionDeniedError, tmp_path, ".", "x.npy")


def test_memory(tmp_path, monkeypatch):
    np.savez(tmp_path / "d.npz", x=X, y=Y)

    def refuse(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(np.lib.format, "read_array", refuse)
    assert fails(errors.MemoryLimitError, tmp_path, "d.npz", ".npy").exit_code == 71


# --- folder of .npy -----------------------------------------------------------------------------------------


def npy_folder(tmp_path: Path, **arrays: np.ndarray) -> None:
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)


def test_npy_folder_stays_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "_BLOCK", 40)
    npy_folder(tmp_path, x=X, y=Y, x_test=X[:2], y_test=Y[:2])
    (tmp_path / "curv.toml").touch()
    found = load(tmp_path, ".")
    assert isinstance(found.inputs, np.memmap)
    assert isinstance(load(tmp_path, ".", n=3).inputs, np.memmap)
    same(np.asarray(found.inputs), X)
    assert load(tmp_path, ".", split="test").num_examples == 2
    digest = found.sha256
    npy_folder(tmp_path, x=np.asfortranarray(X))
    assert load(tmp_path, ".").sha256 == digest
    monkeypatch.undo()
    assert load(tmp_path, ".").sha256 != digest  # of one block: the numbers themselves are digested
    fails(errors.SpecError, tmp_path, ".", "no array 'z'", inputs="z")


def test_npy_folder_not_finite_in_a_later_block(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "_BLOCK", 16)
    bad = X.copy()
    bad[4] = np.nan
    npy_folder(tmp_path, x=bad, y=Y)
    fails(errors.DataError, tmp_path, ".", "4 values", "row 4")


def test_npy_folder_damage(tmp_path):
    npy_folder(tmp_path, x=X, y=Y)
    whole = (tmp_path / "x.npy").read_bytes()
    for content in (whole[:-1], whole[:50], b"", pickle.dumps(X), whole.replace(b"(6, 4)", b"(9, 9)")):
        (tmp_path / "x.npy").write_bytes(content)
        fails(errors.DataError, tmp_path, ".", "x.npy")
    np.save(tmp_path / "x.npy", np.array([{}]))
    fails(errors.DataError, tmp_path, ".", "x.npy", "Python objects")
    npy_folder(tmp_path, x=X[:0])
    fails(errors.DataError, tmp_path, ".", "empty")


# --- digest, and properties ---------------------------------------------------------------------------------


def test_digest_tells_every_change(tmp_path):
    mask = np.ones(6)
    seen = {load(tmp_path, "m:f", (X, Y, mask)).sha256}
    for part in range(3):
        arrays = [X.copy(), Y.copy(), mask.copy()]
        raw = arrays[part].reshape(-1).view(np.uint8)
        for at in (0, len(raw) - 8):
            raw[at] ^= 1
            seen.add(load(tmp_path, "m:f", tuple(arrays)).sha256)
            raw[at] ^= 1
    seen |= {load(tmp_path, "m:f", made).sha256 for made in ((X, Y), (X.reshape(6, 2, 2), Y), (X.view(np.int32), Y))}
    assert len(seen) == 10
    assert load(tmp_path, "m:f", (X, Y)).sha256 == "6e4671990fbf4c72dee70ccb7db3a7944421992edad65e6675dc57f9746150f8"


@RELAXED
@given(
    x=hnp.arrays(
        st.sampled_from([np.float32, np.float64, np.int64, np.uint8, np.bool_]),
        hnp.array_shapes(min_dims=1, max_dims=3, max_side=5),
    )
)
def test_npz_round_trip(tmp_path, x):
    np.savez(tmp_path / "d.npz", x=x, y=np.arange(len(x)))
    if np.isfinite(x).all():
        same(load(tmp_path, "d.npz").inputs, x)
    else:
        fails(errors.DataError, tmp_path, "d.npz", "NaN or infinite")


FINITE = st.floats(allow_nan=False, allow_infinity=False)


@RELAXED
@given(rows=st.lists(st.tuples(FINITE, FINITE, st.integers(-(2**63), 2**63 - 1)), min_size=1, max_size=8))
def test_csv_round_trip(tmp_path, rows):
    csv_file(tmp_path, "a,b,y\n" + "".join(f"{a!r},{b!r},{y}\n" for a, b, y in rows))
    found = load(tmp_path, "d.csv", inputs="a,b")
    same(found.inputs, np.array([row[:2] for row in rows]))
    same(found.targets, np.array([row[2] for row in rows], np.int64))


@RELAXED
@given(content=st.binary(max_size=200) | st.text('x,y\n\r"1.e-', max_size=40).map(lambda s: f"x,y\n{s}".encode()))
@pytest.mark.parametrize("name", ["d.csv", "d.npz", "d.parquet", "x.npy"])
def test_any_bytes(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    if name == "x.npy":
        np.save(tmp_path / "y.npy", Y)
    with contextlib.suppress(errors.CurvError):
        assert load(tmp_path, "." if name == "x.npy" else name).num_examples > 0


@RELAXED
@given(at=st.integers(0, 10**6), byte=st.integers(0, 255))
@pytest.mark.parametrize("name", ["d.npz", "d.parquet"])
def test_any_byte_changed(tmp_path, name, at, byte):
    np.savez(tmp_path / "d.npz", x=X, y=Y)
    pq.write_table(pa.table({"x": X.tolist(), "y": Y}), tmp_path / "d.parquet")
    content = bytearray((tmp_path / name).read_bytes())
    content[at % len(content)] = byte
    (tmp_path / name).write_bytes(content)
    with contextlib.suppress(errors.CurvError):
        assert load(tmp_path, name).num_examples > 0
