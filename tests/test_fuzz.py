"""Damaged checkpoints and data: an error or the same numbers, never a crash; with digests never other numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz import KINDS, fuzz

SAMPLE = [kind for kind in KINDS if not kind.startswith("orbax")]


@pytest.mark.parametrize("kind", SAMPLE)
def test_damaged_files(kind: str, tmp_path: Path) -> None:
    tally = fuzz((kind,), tmp_path, seed=0, flips=12)
    assert not tally.faults
    assert tally.outcomes["refused"] >= 16


def test_a_damaged_orbax_checkpoint(tmp_path: Path) -> None:
    tally = fuzz(("orbax",), tmp_path, seed=0, flips=1, cuts=2)
    assert not tally.faults
    assert tally.outcomes["refused"] >= 4


def test_without_digests_flipped_bytes_can_be_other_numbers(tmp_path: Path) -> None:
    tally = fuzz(("safetensors", "data-npy"), tmp_path, seed=0, flips=12, pinned=False)
    assert tally.outcomes["changed"] == len(tally.faults) >= 4


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_many_damaged_files(kind: str, seed: int, tmp_path: Path) -> None:
    flips = 8 if kind.startswith("orbax") else 400
    assert not fuzz((kind,), tmp_path, seed=seed, flips=flips).faults
