"""With part of the examples every number says whether it is of all of them, or of these."""

import json

import pytest

FAST = ("--skip-checks", "--num-examples", 20)


def test_the_terminal_says_which_numbers_are_of_all_examples(project, curv):
    shown = curv("spectrum", *FAST, "--format", "text").out
    headline = " ".join(shown.split("\n\n")[0].split())
    assert "for all examples; gradient descent is stable to lr" in headline
    assert "20 of 60 examples" in headline
    assert "±" not in headline
    rows = {line.split("  ")[0]: " ".join(line.split()) for line in shown.splitlines() if "  " in line}
    for name in ("λ_max", "trace", "Frobenius norm", "2/λ_max"):
        assert rows[name].count("for all examples") == 1
    assert rows[next(name for name in rows if name.startswith("eigenvalues <"))].endswith("of these 20 examples)")
    whole = curv("spectrum", "--skip-checks", "--format", "text").out
    assert "for all examples" not in whole
    assert "of these" not in whole


@pytest.mark.first_tier("command2")
@pytest.mark.parametrize(
    "command",
    [
        ("saddle",),
        ("direction",),
        ("landscape",),
        ("step",),
        ("compare", "--matrices", "ggn,empirical-fisher"),
        ("diag",),
        ("eigs",),
        ("influence", "--remove"),
        ("inspect",),
    ],
)
def test_every_other_headline_names_its_examples(project, curv, command):
    answered = curv(*command, "--num-examples", 20, *(() if command[0] == "inspect" else ("--skip-checks",)))
    report = answered.report
    assert (report["problem"]["data"]["subsampled"], report["problem"]["data"]["population"]) == (True, 60)
    assert any("20 of 60 examples were used" in warning for warning in report["warnings"])
    shown = curv(*command, "--num-examples", 20, "--format", "text").out
    assert "of these 20 examples)" in " ".join(shown.split("\n\n")[0].split())


def test_pictures_name_their_examples(project, curv):
    for command, title in (("spectrum", "of these 20 examples"), ("eigs", "with intervals for all examples")):
        curv(command, *FAST, "-o", "part.json")
        assert curv("plot", "part.json", "-o", "part.svg").code == 0
        assert title in (project.folder / "part.svg").read_text()


def test_differences_know_what_was_left_out(project, curv):
    for name, count in (("a", 20), ("b", 40), ("all", 60)):
        curv("spectrum", "--skip-checks", "--num-examples", count, "-o", f"{name}.json")
    a, b = (json.loads((project.folder / f"{name}.json").read_text())["result"]["lambda_max"] for name in ("a", "b"))
    found = {row["name"]: row for row in curv("diff", "a.json", "b.json").report["differences"]}
    low, _ = found["lambda_max"]["interval"]
    assert low < found["lambda_max"]["change"] - (a["interval"][1] - a["value"]) * 0.9
    assert not found["lambda_max"]["significant"]
    assert found["negative_mass"]["interval"] is None  # its error is not known
    assert found["negative_mass"]["significant"] is None
    found = {row["name"]: row for row in curv("diff", "a.json", "all.json").report["differences"]}
    assert not found["trace"]["significant"]
    grown = {name.replace("/", "__"): 1.02 * leaf for name, leaf in project.params.items()}
    project.checkpoint("grown.npz", **grown)
    curv("spectrum", "grown.npz", *FAST, "-o", "grown.json")
    row = {row["name"]: row for row in curv("diff", "a.json", "grown.json").report["differences"]}["lambda_max"]
    assert row["significant"]  # the same examples: what was left out is no error of the difference
    assert row["interval"][1] - row["interval"][0] < 1e-3 * abs(b["value"])
