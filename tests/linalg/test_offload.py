"""Bases kept outside of the device: the same numbers, bit for bit, and nothing left behind."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from curvcli.errors import MemoryLimitError
from curvcli.linalg.iterate import Silent, iterate
from curvcli.linalg.krylov import basis as bases
from curvcli.linalg.krylov import offload, slq
from curvcli.linalg.krylov import spaces as krylov
from curvcli.linalg.krylov.eigen import ThickRestart
from curvcli.linalg.krylov.lanczos import Lanczos
from curvcli.linalg.krylov.offload import Store
from curvcli.linalg.operator import dense_operator

DIM, STEPS = 90, 37
VALUES = np.concatenate([[-4.0, 9.0, 12.0], np.linspace(-0.5, 1.0, DIM - 3)])
VECTORS = np.linalg.qr(np.random.default_rng(0).normal(size=(DIM, DIM)))[0]
OPERATOR = dense_operator(jnp.asarray(VECTORS * VALUES @ VECTORS.T))
START = np.linalg.qr(np.random.default_rng(1).normal(size=(DIM, 2)))[0].T


@pytest.fixture(params=["host", "disk"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store() if request.param == "host" else Store(tmp_path)


def lanczos(store: Store | None) -> Any:
    return iterate(Lanczos(jnp.asarray(START), STEPS, "full", store), OPERATOR, None, monitor=Silent(), stage="")


def test_lanczos_and_what_is_built_from_its_basis(store: Store) -> None:
    mine, plain = lanczos(store), lanczos(None)
    np.testing.assert_array_equal(mine.alphas, plain.alphas)
    np.testing.assert_array_equal(mine.betas, plain.betas)
    assert all(isinstance(chunk, np.ndarray) for chunk in mine.basis.chunks)
    assert [chunk.shape for chunk in mine.basis.chunks] == [(2, 16, DIM)] * 3
    for chunk, other in zip(mine.basis.chunks, plain.basis.chunks, strict=True):
        np.testing.assert_array_equal(chunk, other)
    found, expected = (krylov.compress(krylov.from_lanczos(state, 1), (5, 15)) for state in (mine, plain))
    assert found.basis.store == store
    assert all(isinstance(chunk, np.ndarray) for chunk in found.basis.chunks)
    np.testing.assert_array_equal(np.concatenate(found.basis.chunks, 1), np.concatenate(expected.basis.chunks, 1))
    ends = [
        search.result(iterate(search, OPERATOR, None, monitor=Silent(), stage=""))
        for space in (found, expected)
        for search in [ThickRestart(1, 1, 1e-9, 30, 200, space)]
    ]
    np.testing.assert_array_equal(ends[0].values, ends[1].values)
    np.testing.assert_array_equal(ends[0].vectors, ends[1].vectors)
    np.testing.assert_allclose(ends[0].values, [-4, 12], rtol=1e-12)


def test_quadrature_with_outliers_of_a_round(store: Store) -> None:
    key, collected = jax.random.key(0), [slq.Collected(), slq.Collected()]
    for one, where in zip(collected, (store, None), strict=True):
        slq.Slq(STEPS, "full", True, where).round(OPERATOR, key, 3, one, Silent(), 0)
    assert collected[0].outliers
    assert all(isinstance(rows, np.ndarray) for _, _, rows in collected[0].outliers)
    found, expected = (slq.quadrature(one, key, OPERATOR).estimate(lambda x: x, 0.05, DIM) for one in collected)
    assert found == expected


def test_files_have_no_names_and_are_gone(tmp_path: Path) -> None:
    kept = Store(tmp_path).keep(np.ones((2, 3)))
    assert isinstance(kept, np.memmap)
    np.testing.assert_array_equal(kept, np.ones((2, 3)))
    assert not list(tmp_path.iterdir())


def test_full_disk_is_an_error_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(offload.os, "posix_fallocate", full)
    with pytest.raises(MemoryLimitError, match=r"no room for .* No space left"):
        Store(tmp_path).zeros((2, 3), "float32")


def test_chunks_are_brought_in_order() -> None:
    chunks = [np.full(2, i) if i % 2 else jnp.full(2, i) for i in range(5)]
    assert [int(one[0]) for one in offload.brought(chunks)] == [0, 1, 2, 3, 4]
    assert not list(offload.brought(()))
    basis = bases.append(bases.empty(3)._replace(store=Store()), jnp.ones((1, 3)))
    assert isinstance(basis.chunks[0], np.ndarray)
