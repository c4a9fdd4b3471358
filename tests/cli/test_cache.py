"""The folder of what is kept between runs: damaged, full, or not a folder; nothing is said of it, and nothing waits."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax._src
import numpy as np
import pytest
from jax._src import compilation_cache

from curvcli import jax_internals
from curvcli.run.cache import Programs
from curvcli.run.plans import RememberedWay
from curvcli.schema.plan import Way
from tests.cli.conftest import Outcome, Project
from tests.full_disk import file_size_limit

PROGRAM = np.random.default_rng(0).bytes(20_000)


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A cache for this test alone; other tests have JAX's own again."""
    monkeypatch.setenv("CURV_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(compilation_cache, "get_file_cache", compilation_cache.get_file_cache)
    before = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    jax.clear_caches()
    yield
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def undigested(path: Path) -> None:
    path.write_bytes(path.read_bytes()[32:])


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def circle(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "inside").write_bytes(b"")


DAMAGES = (truncated, flipped, empty, undigested, fifo, device, circle, folder)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_program_is_none_and_is_replaced(damage: Callable[[Path], None], tmp_path: Path) -> None:
    programs = Programs(tmp_path)
    programs.put("jit_f-1", PROGRAM)
    assert programs.get("jit_f-1") == PROGRAM
    damage(tmp_path / "jit_f-1-cache")
    assert programs.get("jit_f-1") is None
    programs.put("jit_f-1", PROGRAM)
    assert programs.get("jit_f-1") == (None if damage is folder else PROGRAM)
    assert [path.name for path in tmp_path.iterdir()] == ["jit_f-1-cache"]


@pytest.mark.parametrize("key", ["../outside", "a/b", "\0", "a" * 300])
def test_names_that_are_no_files_of_the_folder(key: str, tmp_path: Path) -> None:
    (tmp_path / "programs").mkdir()
    programs = Programs(tmp_path / "programs")
    programs.put(key, PROGRAM)
    assert programs.get(key) is None
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_the_least_recently_used_go(tmp_path: Path) -> None:
    largest = 9 * (len(PROGRAM) + 32)
    (tmp_path / "of-another-kind").write_bytes(PROGRAM)
    (tmp_path / "folder").mkdir()
    os.utime(tmp_path / "of-another-kind", (1, 1))
    programs = Programs(tmp_path, largest)
    for number in range(8):
        programs.put(f"f-{number}", PROGRAM)
        os.utime(tmp_path / f"f-{number}-cache", (number + 2, number + 2))
    assert programs.get("f-0") == PROGRAM
    for again in (Programs(tmp_path, largest), programs):
        again.put(f"g-{id(again)}", PROGRAM)
    assert sum(path.stat().st_size for path in tmp_path.iterdir() if path.is_file()) <= largest
    assert programs.get("f-0") == PROGRAM
    assert programs.get("f-1") is None
    assert not (tmp_path / "of-another-kind").exists()


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    programs = Programs(tmp_path)
    with file_size_limit(4096):
        programs.put("f", PROGRAM)
    assert list(tmp_path.iterdir()) == []
    assert programs.get("f") is None


def test_a_folder_that_is_gone_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "missing", tmp_path / "file"):
        programs = Programs(path)
        programs.put("f", PROGRAM)
        assert programs.get("f") is None


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("cache/jax-*/jit_*-cache"))


def answered(curv: Callable[..., Outcome]) -> Any:
    jax.clear_caches()
    outcome = curv("trace", "-q", "--skip-checks")
    assert (outcome.code, outcome.err) == (0, "")
    return outcome.report["result"]


def test_a_run_with_damaged_programs_is_quiet_and_mends_them(
    project: Project, curv: Callable[..., Outcome], tmp_path: Path
) -> None:
    expected = answered(curv)
    files = entries(tmp_path)
    kept = {path: path.read_bytes() for path in files}
    assert len(files) > len(DAMAGES)
    (files[0].parent / "jit_other-0000-cache").write_bytes(b"x")
    for path, damage in zip(files, DAMAGES, strict=False):
        damage(path)
    assert answered(curv) == expected
    for path, content in kept.items():
        assert path.is_dir() or len(path.read_bytes()) == pytest.approx(len(content), rel=0.1)
    compiled = {path: path.stat().st_ino for path in files}
    assert answered(curv) == expected
    assert {path: path.stat().st_ino for path in files} == compiled  # read, not compiled again


def test_a_program_that_cannot_be_loaded_is_compiled_anew(
    project: Project, curv: Callable[..., Outcome], tmp_path: Path
) -> None:
    expected = answered(curv)
    path = entries(tmp_path)[0]
    Programs(path.parent).put(path.name.removesuffix("-cache"), b"not a program")
    assert answered(curv) == expected
    assert path.stat().st_size > 100


def test_a_run_on_a_full_disk_is_quiet(project: Project, curv: Callable[..., Outcome], tmp_path: Path) -> None:
    with file_size_limit(8192):
        answered(curv)
    assert all(path.stat().st_size <= 8192 for path in entries(tmp_path))


@pytest.mark.parametrize("put", [lambda path: path.write_bytes(b""), os.mkfifo])
def test_a_cache_that_is_no_folder(
    put: Callable[[Path], Any], project: Project, curv: Callable[..., Outcome], tmp_path: Path
) -> None:
    put(tmp_path / "cache")
    answered(curv)


def test_a_release_that_asks_for_no_cache_by_this_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax_internals, "KNOWN", ())
    monkeypatch.setattr(jax._src, "compilation_cache", SimpleNamespace())
    jax_internals.keep_programs(object())


def test_a_remembered_way_that_is_a_fifo() -> None:
    way = Way(batch_size=3, application="vmap", residuals="kept")
    remembered = RememberedWay({"model": "a"})
    assert remembered.path is not None
    os.mkfifo(remembered.path)
    assert remembered.get() is None
    remembered.put(way)
    assert remembered.get() == way
