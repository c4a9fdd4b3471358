"""Who watches a run in a test."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from curvcli.linalg.iterate import Silent


class StopAfter(Silent):
    """A deadline that passes after some questions."""

    def __init__(self, questions: int) -> None:
        self.left = questions

    def stop(self) -> str | None:
        self.left -= 1
        return "time limit" if self.left < 0 else None


@contextlib.contextmanager
def collected_compilations(names: list[str]) -> Iterator[None]:
    """Collects what JAX says it compiles, under `jax.log_compiles()`."""
    handler = logging.Handler()
    handler.emit = lambda record: names.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("jax._src.interpreters.pxla")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
