"""Run by each of several processes: what they compute together equals what this one computes alone.

python -m tests.several ADDRESS PROCESSES RANK [NAME ...]
"""

from __future__ import annotations

import sys

from curvcli.xla import guard_environment


def main(address: str, count: int, rank: int, names: list[str]) -> None:
    """Join the others, and compare analyses."""
    guard_environment()
    import jax

    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_num_cpu_devices", 1)
    jax.distributed.initialize(address, count, rank, coordinator_bind_address=address)
    from curvcli.analyses.common.tuning import planned
    from curvcli.devices import from_all, from_first, greatest, least, mesh_of
    from curvcli.problem import spread
    from curvcli.schema.spectrum import SpectrumSettings
    from tests.test_devices import ANALYSES, COMMON, assert_same, problem_of

    assert greatest(float(rank)) == count - 1
    assert least(float(rank)) == 0
    assert from_all(bytes([rank, 7])) == [bytes([one, 7]) for one in range(count)]
    assert from_first(f"from {rank}".encode()) == b"from 0"
    mesh = mesh_of(None)
    assert mesh is not None
    assert mesh.size == count
    problem, settings = problem_of(sizes=(4, 5, 3), count=21), SpectrumSettings(**COMMON, batch_size=9)
    for cut in (False, True):
        for name in names or ANALYSES:
            together = ANALYSES[name](planned(spread(problem, mesh, shard_params=cut), settings))
            assert_same(ANALYSES[name](planned(problem, settings)), together)
            print(f"{name} {'cut ' if cut else ''}equal", flush=True)
    jax.distributed.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
