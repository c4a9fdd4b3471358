"""What does not fit is refused before it is spent, and the hint names what does."""

import re

import pytest

FORECAST = ("--dry-run", "-o", "-")
GROWING = {
    "trace": (("trace", "--method", "xtrace"), "--probes", 60),
    "diag": (("diag", "--method", "xdiag"), "--probes", 60),
    "eigs": (("eigs", "--method", "lanczos"), "-k", 50),
    "compare": (("compare", "--method", "sampled"), "-k", 10),
}


@pytest.mark.first_tier("diag", "compare")
@pytest.mark.parametrize("name", GROWING)
def test_the_hint_names_the_largest_setting_that_fits(project, curv, name):
    command, option, much = GROWING[name]
    planned = curv(*command, option, much, *FORECAST).report["forecast"]
    size, refused = planned["bytes"] - planned["runtime_bytes"], None
    while refused is None or refused.code == 0:  # less memory first costs narrower blocks
        size = int(0.9 * size)
        limit = ("--max-memory", size)
        refused = curv(*command, option, much, *limit, *FORECAST)
    assert refused.code == 71
    largest = int(re.search(rf"use {option} (\d+)", refused.error)[1])
    assert 2 <= largest < much
    assert curv(*command, option, largest, *limit, *FORECAST).code == 0
    assert curv(*command, option, largest + 1, *limit, *FORECAST).code == 71


def test_a_basis_that_does_not_fit_is_kept_elsewhere_before_anything_is_refused(project, curv):
    command = ("spectrum", "--method", "xtrace", "--probes", 1, "--steps", 64)
    planned = curv(*command, *FORECAST).report
    size, seen = planned["forecast"]["bytes"] - planned["forecast"]["runtime_bytes"], [planned["plan"]["basis"]]
    while (found := curv(*command, "--max-memory", size, *FORECAST)).code == 0:
        seen.append(found.report["plan"]["basis"])
        size = int(0.8 * size)
    assert found.code == 71
    assert "use --params" in found.error
    assert list(dict.fromkeys(seen))[:2] == ["device", "disk"]


def test_where_nothing_fits_no_number_is_named(project, curv):
    refused = curv("trace", "--method", "xtrace", "--max-memory", "1kB", *FORECAST)
    assert refused.code == 71
    assert "--params for a block of the parameters" in refused.error
    assert "--probes" not in refused.error
