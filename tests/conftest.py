"""Tests run stricter than users do: float64, no silent rank promotion, warnings as errors (pyproject.toml)."""

import gc
import os
import tempfile
from collections.abc import Iterator
from fnmatch import fnmatchcase
from importlib import metadata
from pathlib import Path

from curvcli.xla import guard_environment

# Most of the time of these tests is compilation of small programs, which need not be fast. XLA's older emitters take
# half as long to compile as its newer ones; a release without them would abort. XLA_FLAGS from outside win.
QUICK = "--xla_backend_optimization_level=0"
if metadata.version("jaxlib").startswith("0.10."):
    QUICK += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{QUICK} {os.environ.get('XLA_FLAGS', '')}".strip()
guard_environment()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The tests' matrices are small: OpenBLAS's other threads would only wait for work, on a core that a worker needs.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Sidecar folders of compiled programs are the user's; tests neither read nor fill them.
os.environ.pop("CURV_CACHE_DIR", None)

import jax
import pytest

jax.config.update("jax_enable_x64", True)
# Devices that share one process's threads: what is cut across several is tested in every process.
jax.config.update("jax_num_cpu_devices", 8)
# The same small programs are compiled again and again, for every problem that a test makes anew.
jax.config.update("jax_compilation_cache_dir", tempfile.mkdtemp(prefix="curv-tests-"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
jax.config.update("jax_numpy_rank_promotion", "raise")
# JAX opens its cache at the first program. Were that one of a `curv` run in this process, the cache would have a
# largest size, and JAX would read the age of every entry whenever it writes one.
jax.jit(lambda: 0)()


# Thousands of loaded programs exhaust the memory maps that a process may have (65,530 by default), and XLA crashes.
MOST_MAPS = 12_000


EVERY_TEST = pytest.StashKey[list[pytest.Item]]()
"""The tests that were collected, before `-m` leaves some out."""


def is_case(test: pytest.Item, name: str) -> bool:
    """Whether a case of a parametrised test has the id `name`, in which * stands for anything."""
    case = test.callspec.id  # type: ignore[attr-defined]
    return case == name or fnmatchcase(case, name)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the cases slow that `first_tier` does not name, and keep the tests of both tiers for `test_tiers.py`."""
    for item in items:
        first = item.get_closest_marker("first_tier")
        if first and not any(is_case(item, name) for name in first.args):
            item.add_marker(pytest.mark.slow)
    config.stash[EVERY_TEST] = list(items)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Take what was imported out of garbage collection, which otherwise visits it at every pass."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture(autouse=True, scope="module")
def _programs_are_given_up() -> Iterator[None]:
    """Drop the compiled programs once they take many memory maps; until then the next module reuses them."""
    yield
    maps = Path("/proc/self/maps")
    if not maps.exists() or maps.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()


@pytest.fixture(autouse=True)
def _no_environment_settings(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """CURV_* variables of whoever runs the tests do not count, and each file of tests has a cache folder of its own."""
    for name in list(os.environ):
        if name.startswith("CURV_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("CURV_CACHE_DIR", str(tmp_path_factory.getbasetemp() / f"cache-{request.path.stem}"))
