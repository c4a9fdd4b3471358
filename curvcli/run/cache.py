"""The cache folder, which belongs to the user and is kept between runs."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

LARGEST = 1 << 30
"""Maximum number of bytes of compiled programs; the least recently used are removed."""


def folder(name: str) -> Path | None:
    """Return a folder of the cache, accessible to its user alone; None if it cannot be made."""
    base = os.environ.get("CURV_CACHE_DIR")
    with contextlib.suppress(OSError, RuntimeError):  # the latter: there is no home folder
        root = Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "curv"
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = root / name
        path.mkdir(mode=0o700, exist_ok=True)
        if path.stat().st_uid == os.getuid():  # a compiled program is code: never take another user's
            return path
    return None


def enable_compilation_cache(jax: Any) -> None:
    """Keep compiled programs between runs, where the cache folder can be made."""
    programs = folder(f"jax-{jax.__version__}")
    if programs is not None:
        jax.config.update("jax_compilation_cache_dir", str(programs))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_compilation_cache_max_size", LARGEST)
