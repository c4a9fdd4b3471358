"""A decoder of 30 million parameters through the command line: minutes, and gigabytes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "decoder.py"


@pytest.mark.nightly
def test_every_answer_is_jaxs_own() -> None:
    """Compiled as a user has it: the tests' own flags are for small programs."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run([sys.executable, str(SCRIPT)], env=environment, capture_output=True, text=True, timeout=3600)
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-2000:]
