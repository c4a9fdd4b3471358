"""Equal runs give equal bytes: commands that have no such test in a file of their own."""

import json

import pytest

from curvcli.schema.report import load_json

COMMANDS = {
    "compare": ("--method", "sampled", "--matrices", "hessian,ggn", "--probes", 4, "-k", 1),
    "direction": ("--along", "random", "--points", 3),
    "landscape": ("--along", "filter-normalized", "--along", "random", "--points", 3),
}


@pytest.mark.first_tier("landscape")
@pytest.mark.parametrize("name", COMMANDS)
def test_the_same_seed_gives_the_same_bytes(project, curv, name):
    one, again, other = (
        json.dumps(curv(name, "--skip-checks", "-q", *COMMANDS[name], "--seed", seed).report["result"])
        for seed in (3, 3, 4)
    )
    assert one == again
    assert one != other


@pytest.mark.slow
def test_the_same_threads_give_the_same_bytes(project, shell):
    command = "$CURV trace --skip-checks -q --method hutchinson --probes 4 --threads 2"
    one, again = (load_json(shell(command).out)["result"] for _ in range(2))
    assert json.dumps(one) == json.dumps(again)
