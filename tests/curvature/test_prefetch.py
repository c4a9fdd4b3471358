"""Batches that stream: the same as they are, read ahead, and no thread left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from curvcli.curvature.products import prefetch, sums
from curvcli.curvature.products.prefetch import Prefetched
from curvcli.problem import Batch, Batches, let_go
from tests.problems import mlp_problem

BATCHES = mlp_problem(batch_size=4).batches


class Watched(Batches):
    """Tells which batches have been read, and may fail at one."""

    read: list[int]
    fails_at: int

    def __init__(self, fails_at: int = -1) -> None:
        super().__init__(BATCHES.inputs, BATCHES.targets, BATCHES.weight, BATCHES.batch_size, BATCHES.cast)
        object.__setattr__(self, "read", [])
        object.__setattr__(self, "fails_at", fails_at)

    def __iter__(self) -> Iterator[Batch]:
        for i, batch in enumerate(super().__iter__()):
            if i == self.fails_at:
                raise OSError("the disk is gone")
            self.read.append(i)
            yield batch


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("reading")]


def settled(read: list[int], count: int) -> list[int]:
    """What has been read when nothing more is."""
    for _ in range(200):
        if len(read) >= count:
            break
        time.sleep(0.01)
    time.sleep(0.05)
    return read


def test_the_same_batches_every_time() -> None:
    streamed = Prefetched(BATCHES)
    assert len(streamed) == len(BATCHES) == 6
    for _ in range(2):
        for found, expected in zip(streamed, BATCHES, strict=True):
            jax.tree.map(np.testing.assert_array_equal, found, expected)
            assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(found))
    assert not readers()


def test_two_batches_ahead_and_no_more() -> None:
    batches = Watched()
    going = iter(Prefetched(batches))
    next(going)
    assert settled(batches.read, 3) == [0, 1, 2]
    next(going)
    assert settled(batches.read, 4) == [0, 1, 2, 3]
    assert len(readers()) == 1
    going.close()
    assert not readers()
    assert len(batches.read) == 4


def test_an_error_of_the_reading_thread_comes_to_the_consumer() -> None:
    going = iter(Prefetched(Watched(fails_at=3)))
    assert [int(next(going).index[0]) for _ in range(3)] == [0, 4, 8]
    with pytest.raises(OSError, match="the disk is gone"):
        next(going)
    assert not readers()


def test_parts_of_a_memory_map_are_read_by_the_thread(tmp_path) -> None:
    np.save(tmp_path / "x.npy", np.arange(24, dtype=np.int32).reshape(8, 3))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    batch = next(iter(Batches(mapped, mapped, np.ones(8), 4, np.dtype("float64"))))
    assert not batch.inputs.flags.owndata
    assert prefetch._read(batch.inputs).flags.owndata


def test_precision_of_the_consumers_thread() -> None:
    with jax.enable_x64(False):
        assert next(iter(Prefetched(BATCHES))).inputs.dtype == np.float32
    with jax.enable_x64(True):
        assert next(iter(Prefetched(BATCHES))).inputs.dtype == np.float64


def test_only_data_beyond_the_limit_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(sums.resident(BATCHES), tuple)
    monkeypatch.setattr(sums, "RESIDENT_BYTES", BATCHES.nbytes - 1)
    assert isinstance(sums.resident(BATCHES), Prefetched)


def test_what_was_read_of_a_map_is_given_back_and_what_was_written_kept(tmp_path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((600, 1000)))

    def held() -> int:
        lines = (Path("/proc/self/smaps")).read_text().split("x.npy")[1].splitlines()
        return int(next(line for line in lines if line.startswith("Rss:")).split()[1])

    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert mapped.sum() == 0
    before = held()
    let_go({"x": mapped[3:]})
    assert held() < before / 2
    assert mapped.sum() == 0
    written = np.load(tmp_path / "x.npy", mmap_mode="c")
    written[0] = 1
    let_go(written)
    assert written.sum() == 1000
