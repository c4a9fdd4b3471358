"""`curv influence` as people and scripts use it."""

import json
import math
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from safetensors.numpy import load_file

from curvcli.schema.influence import InfluenceReport
from tests.cli.test_terminal import ESCAPE, Terminal, finished, plain, start  # noqa: F401

FAST = ("influence", "--skip-checks")
CONTRACT = {"mode", "target", "units", "scores", "top", "solves", "damping", "validity", "baselines"}


@pytest.fixture
def with_test_split(project):
    """The project's data with a test split of 7 examples."""
    random = np.random.default_rng(1)
    project.data(x_test=random.normal(size=(7, 4)).astype(np.float32), y_test=random.integers(0, 3, 7))
    return project


# --- the report -------------------------------------------------------------------------------------------


def test_one_line_of_json_that_fits_its_schema(project, curv, schema_of):
    answered = curv("influence", "--remove", "--queries", "3:5", "--self", "--leverage", "--damping-sweep")
    report = answered.report
    verdict = report["result"]["validity"]["words"]  # the weights are at no minimum
    assert (answered.code, answered.err, report["warnings"]) == (0, f"warning: {verdict}\n", [verdict])
    jsonschema.validate(report, schema_of("influence"), jsonschema.Draft202012Validator)
    assert InfluenceReport.model_validate(report).to_json() + "\n" == answered.out
    assert (report["schema"], report["matrix"]) == ("curv.influence/1", "ggn")
    result = report["result"]
    assert set(result) >= CONTRACT
    assert result["target"] == {"measure": "loss", "source": "data", "rows": [3, 5], "outputs": None}
    assert (result["mode"], result["units"]) == ("remove", "nats of the query's loss per removed example")
    assert np.shape(result["scores"]) == (2, 60) == tuple(result["shape"])
    assert result["axes"] == ["query", "example"]
    assert [(one["of"], one["status"]) for one in result["solves"][:3]] == [
        ("query 3", "converged"), ("query 4", "converged"), ("gradient", "converged")
    ]  # fmt: skip
    assert set(result["solves"][0]) >= {"residual", "iterations", "status"}
    for row, ranking in enumerate(result["top"]):
        scores = np.array(result["scores"][row])
        assert ranking["query"] == 3 + row
        assert [one["example"] for one in ranking["highest"]] == np.argsort(-scores, kind="stable")[:10].tolist()
        assert [one["example"] for one in ranking["lowest"]] == np.argsort(scores, kind="stable")[:10].tolist()
    # Without itself a query that was trained on is fitted worse.
    assert all(result["scores"][row][3 + row] > 0 for row in (0, 1))
    assert result["damping"] == 0
    assert (result["damping_choice"]["chosen"], "l2 = 0.001" in result["damping_choice"]["reason"]) == ("auto", True)
    assert all(check["passed"] for check in report["checks"].values())
    assert report["cost"]["products"] >= 67


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes(project, curv):
    asked = (*FAST, "--label-perturb", "--solver", "cg", "--samples", 8)
    first, second, third = (json.dumps(curv(*asked, "--seed", seed).report["result"]) for seed in (3, 3, 4))
    assert first == second != third


def test_for_people(project, curv, monkeypatch):
    for columns in (80, 120):
        monkeypatch.setenv("COLUMNS", str(columns))
        lines = curv(*FAST, "--label-perturb", "--queries", "0:6", "--format", "text").out.splitlines()
        assert lines[0] == "Influence of the labels of 60 examples on the loss of data 0:6"
        assert max(map(len, lines)) <= columns
        for part in ("damping", "solves", "Query 0", "→", "2 rankings more", "gradient-norm", "products"):
            assert any(part in line for line in lines), part


@pytest.mark.slow
def test_on_a_terminal(project, start):  # noqa: F811
    out, err = Terminal(80), Terminal(80)
    process = start("influence --skip-checks --remove --queries 0 --solver cg", stdout=out.theirs, stderr=err.theirs)
    assert finished(process, out, err) == 0
    text = plain(out.read(0))
    assert ESCAPE in out.read(0)
    assert text.splitlines()[0].startswith("Influence of taking away 60 examples on the loss of data 0:1")
    assert max(map(len, text.splitlines())) <= 80
    assert "{" not in text
    assert "Influence of" not in err.read(0)


@pytest.mark.slow
def test_what_a_network_prints_is_not_in_the_report(project, shell):
    project.write("net.py", "from curvcli import zoo\nprint('hello from the model')\nMLP = zoo.MLP\n")
    answered = shell("$CURV influence --skip-checks --remove --queries 0 --model net.py:MLP 2>err")
    assert answered.code == 0
    assert answered.report["schema"] == "curv.influence/1"
    assert "hello from the model" in Path("err").read_text()


# --- queries ----------------------------------------------------------------------------------------------


def test_queries_come_from_the_test_split_where_there_is_one(with_test_split, curv):
    result = curv(*FAST, "--remove", "--queries", "5:").report["result"]
    assert result["target"]["source"] == "test"
    assert result["target"]["rows"] == [5, 7]
    assert [one["query"] for one in result["top"]] == [5, 6]
    answered = curv(*FAST, "--remove", "--queries", "5:8")
    assert answered.code == 2
    assert "test split" in answered.error


@pytest.mark.parametrize("rows", ["3:3", "5:2", "-1:2", "a", "1:2:3", "60", "0:61"])
def test_rows_that_are_none(project, curv, rows):
    answered = curv(*FAST, "--remove", f"--queries={rows}")
    assert answered.code == 2
    assert f"--queries {rows}" in answered.error


# --- scores in files --------------------------------------------------------------------------------------

SHAPES = {"--remove": (), "--label-perturb": (3,), "--input-perturb": (4,)}


@pytest.mark.first_tier("loss---remove", "output---label-perturb", "margin---input-perturb")
@pytest.mark.parametrize("mode", SHAPES)
@pytest.mark.parametrize("measure", ["loss", "output", "margin"])
def test_shapes_of_the_scores(project, curv, mode, measure):
    outputs, rest = (3,) if measure == "output" else (), SHAPES[mode]
    asked = curv(*FAST, mode, "--queries", "0:2", "--measure", measure, "--scores", "kept.npz").report["result"]
    scores = np.load("kept.npz")["scores"]
    assert scores.shape == (2, *outputs, 60, *rest) == tuple(asked["shape"])
    assert len(asked["axes"]) == scores.ndim
    # A float32 number is written in as many digits as it takes to read it again.
    np.testing.assert_array_equal(np.array(asked["scores"], np.float32), scores)
    assert len(asked["top"]) == 2 * math.prod(outputs)
    own = curv(*FAST, mode, "--measure", measure, "--scores", "own.npz").report["result"]
    arrays = np.load("own.npz")
    assert arrays["scores"].shape == (60, *outputs, *rest) == tuple(own["shape"])
    # What an example does to itself stands in the whole table of all queries.
    np.testing.assert_allclose(arrays["scores"][:2], [scores[i, ..., i] if not rest else np.take(
        scores[i], i, axis=len(outputs)) for i in (0, 1)], rtol=2e-3, atol=1e-5)  # fmt: skip
    assert own["target"] is None


@pytest.mark.first_tier(".npz")
@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".parquet"])
def test_formats_of_score_files(project, curv, suffix):
    file = project.folder / f"scores{suffix}"
    asked = ("--remove", "--measure", "output", "--queries", "0:2", "--leverage", "--scores", file)
    scores = np.array(curv(*FAST, *asked).report["result"]["scores"], np.float32)
    if suffix == ".parquet":
        table = pytest.importorskip("pyarrow.parquet").read_table(file).to_pydict()
        assert list(table) == ["query", "output", "example", "scores", "corrected"]
        placed = np.array(table["query"]), np.array(table["output"]), np.array(table["example"])
        np.testing.assert_array_equal(scores[placed], np.array(table["scores"], np.float32))
        assert len(table["scores"]) == scores.size
        return
    arrays = load_file(file) if suffix == ".safetensors" else np.load(file)
    np.testing.assert_array_equal(arrays["scores"], scores)
    assert arrays["corrected"].shape == scores.shape


def test_score_files_that_cannot_be_written(project, curv):
    for file, code in (("scores.csv", 2), ("nowhere/scores.npz", 74)):
        answered = curv(*FAST, "--remove", "--queries", "0", "--scores", file)
        assert answered.code == code
        assert file.split("/")[0] in answered.error
    assert curv(*FAST, project.folder / "model.npz", "model.npz", "--remove", "--scores", "s.npz").code == 2


@pytest.mark.slow
def test_many_scores_are_in_the_file_alone(project, curv):
    asked = (*FAST, "--label-perturb", "--queries", "0:56", "--damping", "0.1")  # 56 · 60 · 3 = 10,080
    result = curv(*asked).report["result"]
    assert result["scores"] is None
    assert result["shape"] == [56, 60, 3]
    assert len(result["top"]) == 56
    result = curv(*asked, "--scores", "all.npz").report["result"]
    assert result["scores"] == "all.npz"
    assert np.load("all.npz")["scores"].shape == (56, 60, 3)
    fewer = curv(*FAST, "--label-perturb", "--queries", "0:55", "--damping", "0.1").report["result"]["scores"]
    assert np.shape(fewer) == (55, 60, 3)


# --- modes, solvers, damping ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "--remove"),
        (("--remove", "--label-perturb"), "give one of"),
        (("--remove", "--hyper", "l2"), "give one of"),
        (("--remove", "--per-iteration"), "--perturb"),
        (("--label-perturb", "--leverage"), "--remove"),
        (("--remove", "--group", "g.txt"), "--queries"),
        (("--remove", "--damping-sweep"), "--queries"),
        (("--hyper", "l2", "--verify", "3"), "--verify"),
        (("--hyper", "l3"), "known are"),
        (("--remove", "--verify", "2"), "--verify 2"),
        (("--remove", "--damping", "-1"), "--damping -1"),
        (("--remove", "--damping", "much"), "--damping much"),
        (("--remove", "--matrix", "ntk"), "ntk"),
        (("--remove", "--solver", "lissa"), "lissa"),
        (("--remove", "--top", "0"), "--top 0"),
        (("--input-perturb", "--rtol", "0.1"), "rtol"),
    ],
)
def test_what_is_no_question_is_refused(project, curv, options, says):
    answered = curv(*FAST, *options)
    assert answered.code == 2
    assert says in answered.error


@pytest.mark.first_tier("dense")
@pytest.mark.parametrize("solver", ["cg", "minres", "neumann", "dense"])
def test_solvers(project, curv, solver):
    asked = (*FAST, "--remove", "--queries", "0:3", "--damping", "0.05", "--solver", solver, "--tol", "1e-3")
    answered = curv(*asked)
    result = answered.report["result"]
    assert (answered.code, answered.err) == (0, f"warning: {result['validity']['words']}\n")
    assert result["solver"] == solver
    assert all(one["status"] == "converged" and one["residual"] <= 2e-2 for one in result["solves"])
    exact = np.array(curv(*asked, "--solver", "dense").report["result"]["scores"])
    assert np.abs(result["scores"] - exact).max() < 0.02 * np.abs(exact).max()


def test_negative_curvature(project, curv):
    asked = ("--remove", "--queries", "0", "--matrix", "hessian", "--damping", "0")
    refused = curv(*FAST, *asked, "--solver", "cg")
    assert refused.code == 3
    assert "minres" in refused.error
    answered = curv(*FAST, *asked)
    assert answered.code == 0
    assert "indefinite" in answered.err
    assert answered.report["result"]["validity"]["verdict"] == "not-at-minimum"


def test_factors_of_another_command(project, curv):
    saving = ("step", "--skip-checks", "--method", "kfac", "--damping", 0.1, "--save-factors", "k.npz", "--quiet")
    assert curv(*saving).code == 0
    options = ("--remove", "--queries", "0:2", "--damping", 0.1, "--solver", "kfac", "--quiet")
    own = curv(*FAST, *options).report
    taken = curv(*FAST, *options, "--factors-from", "k.npz").report
    np.testing.assert_allclose(taken["result"]["scores"], own["result"]["scores"], rtol=1e-6)
    assert taken["cost"]["data_passes"] == own["cost"]["data_passes"] - 1
    project.checkpoint("other.npz", Dense_0__bias=np.ones(8, np.float32))
    with np.load("k.npz") as kept:
        parts = dict(kept)
    np.savez("part.npz", **{name: one for name, one in parts.items() if name != "inputs/Dense_1/kernel"})
    refused = {
        "other weights": (2, "other.npz", "--factors-from", "k.npz"),
        "60 examples, and here are 40": (2, "--num-examples", 40, "--factors-from", "k.npz"),
        "(sampled, expand, cotangents: 1)": (2, "--factors", "exact", "--factors-from", "k.npz"),
        "inputs/Dense_1/kernel": (65, "--factors-from", "part.npz"),
        "no file of arrays": (65, "--factors-from", "curv.toml"),
        "none.npz": (66, "--factors-from", "none.npz"),
        "goes with kfac or ekfac": (2, "--solver", "cg", "--factors-from", "k.npz"),
    }
    for says, (code, *given) in refused.items():
        answered = curv(*FAST, *options, *given)
        assert (answered.code, says in answered.error) == (code, True), answered.err
    unused = curv(*FAST, "--remove", "--queries", "0:2", "--precondition", "kfac", "--factors-from", "k.npz")
    assert "the solver is dense, and the factors are not used" in unused.err


def test_integers_cannot_be_moved(project, curv):
    project.write("ids.py", "import jax.numpy as jnp\ndef net(p, x):\n    return p['w'][x] + 0 * p['b'][None]\n")
    np.savez("ids.npz", x=np.arange(9) % 5, y=np.arange(9) % 3)
    np.savez("table.npz", w=np.ones((5, 3), np.float32), b=np.zeros(3, np.float32))
    named = ("--model", "ids.py:net", "--data", "ids.npz", "--spec", project.write("ids.toml", ""))
    named += ("--loss", "softmax_cross_entropy", "--l2", "0.1")
    answered = curv(*FAST, "table.npz", *named, "--input-perturb")
    assert answered.code == 2
    assert "integers" in answered.error
    assert curv(*FAST, "table.npz", *named, "--label-perturb").report["result"]["shape"] == [9, 3]


# --- files beside the problem -----------------------------------------------------------------------------


def test_self_ranking_finds_labels_that_are_not_clean(project, curv):
    project.data(clean=np.arange(60) % 4 > 0)
    result = curv(*FAST, "--remove").report["result"]
    assert result["target"] is None
    assert [one["name"] for one in result["baselines"]] == ["influence", "loss", "gradient-norm"]
    for one in result["baselines"]:
        assert one["auc"]["interval"][0] < one["auc"]["value"] < one["auc"]["interval"][1]
        assert one["auc"]["method"] == "DeLong"
    assert result["self_influence"]["method"] == "exact"
    assert result["top"][0]["query"] is None
    assert min(result["scores"]) > 0
    project.data(clean=np.ones(60))
    answered = curv(*FAST, "--remove")
    assert "there is no AUC" in answered.err
    assert answered.report["result"]["baselines"][0]["auc"] is None


def test_groups(project, curv):
    names = project.write("groups.txt", "".join(f"{'odd' if i % 2 else 'even'}\n" for i in range(60)))
    result = curv(*FAST, "--remove", "--queries", "0:2", "--group", names).report["result"]
    assert [(one["name"], one["size"]) for one in result["groups"]] == [("even", 30), ("odd", 30)]
    sums = [np.sum(np.array(result["scores"])[:, first::2], axis=1) for first in (0, 1)]
    for one, expected in zip(result["groups"], sums, strict=True):
        np.testing.assert_allclose(one["first_order"], expected, rtol=1e-4, atol=1e-5)
        assert one["status"] == "converged"
    project.write("groups.txt", "one\ntwo\n")
    answered = curv(*FAST, "--remove", "--queries", "0:2", "--group", names)
    assert answered.code == 65
    assert "60 examples" in answered.error


@pytest.mark.first_tier("label-perturb-shape1")
@pytest.mark.parametrize(("mode", "shape"), [("remove", (60,)), ("label-perturb", (60, 3)), ("input-perturb", (60, 4))])
def test_one_change_and_what_it_does(project, curv, mode, shape):
    change = np.random.default_rng(0).normal(size=shape)
    np.save("change.npy", change)
    asked = (*FAST, f"--{mode}", "--queries", "0:3", "--dtype", "float64")
    response = curv(*asked, "--perturb", "change.npy", "--scores", "moved.npz").report["result"]["responses"][0]
    scores = np.array(curv(*asked).report["result"]["scores"]).reshape(3, -1)
    sign = -1 if mode == "remove" else 1  # a score is of the weight taken away
    np.testing.assert_allclose(response["change"], sign * scores @ change.ravel(), rtol=1e-6, atol=1e-9)
    moved = np.load("moved.npz")
    assert {f"dw/{name}" for name in project.params} <= set(moved.files)
    norms = [np.linalg.norm(moved[f"dw/{name}"]) for name in project.params]
    assert response["norm"] == pytest.approx(np.linalg.norm(norms))
    assert set(response["layers"]) == {"Dense_0", "Dense_1"}
    np.save("change.npy", change[:-1])
    wrong = curv(*asked, "--perturb", "change.npy")
    assert wrong.code == 65
    assert str(list(shape)) in wrong.error
    assert curv(*asked, "--perturb", "none.npy").code == 66


def test_hyperparameters(project, curv):
    project.write("terms.py", "def ridge(params, theta):\n    return theta * 0.5 * sum((w ** 2).sum() for l in "
                  "params.values() for w in l.values())\nnumber = 3\n")  # fmt: skip
    asked = ("--hyper", "l2", "--hyper", "class-weights", "--hyper", "regulariser:terms.py:ridge")
    result = curv(*FAST, *asked, "--queries", "0:3").report["result"]
    names = [one["name"] for one in result["responses"]]
    assert names == ["l2", *(f"class-weights {k}" for k in range(3)), "regulariser:terms.py:ridge"]
    np.testing.assert_allclose(result["responses"][0]["change"], result["responses"][-1]["change"], rtol=1e-4)
    wrong = curv(*FAST, "--hyper", "loss:terms.py:number")
    assert wrong.code == 78
    assert "function" in wrong.error


# --- many checkpoints, deadlines, forecasts ---------------------------------------------------------------


def test_a_line_for_each_step(project, curv):
    root = project.steps("run", range(2))
    answered = curv(*FAST, root, "--all-steps", "--remove", "--queries", "0")
    assert answered.code == 0
    assert [line["problem"]["checkpoint"]["step"] for line in answered.lines] == [0, 1]
    assert answered.lines[0]["result"]["scores"] != answered.lines[1]["result"]["scores"]
    assert curv(*FAST, root, "--all-steps", "--remove", "--scores", "s.npz").code == 2


def test_a_deadline_is_answered(project, curv):
    asked = ("--remove", "--queries", "0:4", "--solver", "cg", "--tol", "1e-6", "--time-limit", "1e-3")
    answered = curv(*FAST, *asked)
    assert answered.code == 0
    result = answered.report["result"]
    assert "stopped early (time limit)" in answered.err
    assert np.shape(result["scores"]) == (4, 60)
    assert {one["status"] for one in result["solves"]} == {"not-converged"}
    assert result["validity"]["verdict"] == "unknown"


@pytest.mark.first_tier("dense")
@pytest.mark.parametrize("solver", ["dense", "cg"])
def test_a_forecast_is_of_the_size_of_what_is_spent(project, curv, solver):
    asked = (*FAST, "--remove", "--queries", "0:8", "--solver", solver)
    forecast = curv(*asked, "--dry-run").report["forecast"]
    spent = curv(*asked).report["cost"]["products"]
    assert 0.3 * spent <= forecast["products"] <= 3 * spent
    assert forecast["bytes"] > 0
    own = curv(*FAST, "--remove", "--solver", solver, "--dry-run").report["forecast"]
    assert (own["products"] > forecast["products"]) == (solver == "cg")  # samples cost solves
    refused = curv(*asked, "--dry-run", "--max-memory", "1kB")
    assert refused.code == 71


def test_help_names_every_option(project, shell):
    text = shell("COLUMNS=200 $CURV influence --help").out
    for option in ("--label-perturb", "--queries", "--measure", "--group", "--perturb", "--self ", "--damping-sweep"):
        assert option in text
    assert "--self_" not in text
    assert "--rtol" not in text
