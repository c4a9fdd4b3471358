"""Free memory as control groups and ulimit leave it, the page cache not counted."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from curvcli.analyses.common import free_memory as available

ENTRY = "4:memory:/jobs/one\n0::/jobs/one\n"


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(available, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(available, "PROCESS", tmp_path)
    (tmp_path / "cgroup").write_text(ENTRY)
    return tmp_path / "groups"


def group(folder: Path, limit: str, used: int, cached: int, first: bool) -> None:
    names = (
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_") if first else ("memory.max", "memory.current", "")
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"{names[2]}inactive_file {cached}\n{names[2]}active_file 1\n")


@pytest.mark.parametrize("first", [True, False])
def test_the_tightest_group_above_the_process(groups: Path, first: bool) -> None:
    root = groups / "memory" if first else groups
    group(root / "jobs" / "one", "4000", 3500, 3000, first)
    assert available.free_host_bytes() == 4000 - 3500 + 3001
    group(root / "jobs", "2000", 1900, 900, first)
    assert available.free_host_bytes() == 2000 - 1900 + 901
    group(root / "jobs" / "other", "10", 5, 0, first)
    group(root, "max", 5, 0, first)
    assert available.free_host_bytes() == 1001
    group(root / "jobs", "2000", 9000, 0, first)
    assert available.free_host_bytes() == 0


def test_no_groups_at_all(groups: Path) -> None:
    (groups.parent / "cgroup").unlink()
    assert available.free_host_bytes() > 1e6


def test_ulimit(groups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (groups.parent / "statm").write_text("3 1 1 1 0 1 0\n")
    page = available.os.sysconf("SC_PAGE_SIZE")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (10 * page, resource.RLIM_INFINITY))
    assert available.free_host_bytes() == 7 * page
