"""Where the time of a run goes, for those who ask: JAX computes ahead of the host, so each part is waited for."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")
_running: ContextVar[Stopwatch | None] = ContextVar("stopwatch", default=None)


@dataclass
class Stopwatch:
    """Seconds by kind of work; `compiling` is fed from outside and is no part of the others."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    compiling: float = 0.0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """What `timed` meets until the end of the block is measured here."""
        token = _running.set(self)
        try:
            yield
        finally:
            _running.reset(token)


def timed(kind: str, function: Callable[..., T], *args: Any) -> T:
    """`function(*args)`; under a running stopwatch its time, compilation taken out, counts as `kind`."""
    watch = _running.get()
    if watch is None:
        return function(*args)
    import jax

    jax.block_until_ready(args)
    compiling, start = watch.compiling, time.perf_counter()
    result = jax.block_until_ready(function(*args))
    watch.seconds[kind] += time.perf_counter() - start - (watch.compiling - compiling)
    return result
