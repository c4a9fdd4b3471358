"""Helpers of the tests of data files."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from curvcli import errors
from curvcli.loading.data.dataset import Dataset, load_dataset
from curvcli.schema.spec import DataSpec

X = np.arange(24, dtype=np.float32).reshape(6, 4)
Y = np.array([0, 1, 2, 0, 1, 2])
RELAXED = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def load(base: Path, path: str | None, made: Any = None, *, n: int | None = None, **names: Any) -> Dataset:
    return load_dataset(DataSpec(path=path, **names), base=base, call_target=lambda _: lambda: made, num_examples=n)


def fails(kind: type[errors.CurvError], base: Path, path: str | None, *says: str, **more: Any) -> errors.CurvError:
    with pytest.raises(kind) as caught:
        load(base, path, **more)
    assert type(caught.value) is kind
    told = f"{caught.value.message} | {caught.value.hint}"
    for part in says:
        assert part in told, told
    assert caught.value.hint
    assert "\n" not in told
    assert str(base) not in told
    return caught.value


def same(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(np.asarray(found), expected, strict=True)


def npz_with(tmp_path: Path, content: bytes) -> None:
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("x.npy", content)
        buffer = io.BytesIO()
        np.save(buffer, Y)
        archive.writestr("y.npy", buffer.getvalue())


def csv_file(tmp_path: Path, content: str | bytes) -> None:
    (tmp_path / "d.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
