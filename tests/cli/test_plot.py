"""`curv plot` as people and scripts use it: every analysis in every format, and the page in a browser."""

import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from html import unescape
from pathlib import Path

import numpy as np
import pytest

FAST = ("--skip-checks", "-q")
ANALYSES = {
    "spectrum": ["--method", "xtrace", "--probes", 6, "--steps", 12],
    "dense": ["spectrum"],
    "trace": ["--method", "hutchinson", "--probes", 8],
    "eigs": ["-k", 4],
    "diag": ["--prune", 0.3],
    "saddle": ["--learning-rate", 0.1],
    "direction": ["--along", "gradient", "--along", "random", "--points", 7],
    "line": ["landscape", "--along", "random", "--points", 7],
    "landscape": ["--along", "eigenvector:1", "--along", "random", "--points", 6],
    "influence": ["--label-perturb", "--queries", "0:2", "--verify", 3],
    "step": ["--method", "hessian-free", "--steps", 3],
    "compare": ["--matrices", "hessian,ggn,kfac", "-k", 2],
    "inspect": [],
}
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture
def made(project, curv):
    """`made("trace")`: the report of an analysis of the project, in trace.json."""

    def make(name: str) -> Path:
        arguments = [*ANALYSES[name]]
        command = arguments.pop(0) if arguments and arguments[0] in ANALYSES else name
        done = curv(command, *FAST, *arguments, "-o", f"{name}.json")
        assert (done.code, done.err) == (0, ""), done.err
        return project.folder / f"{name}.json"

    return make


@pytest.mark.first_tier("trace", "landscape", "inspect")
@pytest.mark.parametrize("name", ANALYSES)
def test_every_analysis_in_every_format(made, curv, name):
    report = made(name)
    done = curv("plot", report, "-o", "a.png", "-o", "a.svg", "-o", "a.pdf", "-o", "a.html")
    assert (done.code, done.err) == (0, "")
    assert done.out.split() == ["a.png", "a.svg", "a.pdf", "a.html"]
    assert Path("a.png").read_bytes().startswith(b"\x89PNG")
    assert Path("a.pdf").read_bytes().startswith(b"%PDF")
    text = "".join(ET.parse("a.svg").getroot().itertext())
    page = Path("a.html").read_text(encoding="utf-8")
    titles = [unescape(title) for title in re.findall(r"<h2>(.*?)</h2>", page)]
    assert titles
    assert [title for title in titles if title not in text] in ([], ["Warnings"])
    check_page(page, [report])


def check_page(page: str, reports: list[Path]) -> None:
    """It stands alone, is read by machines too, and no two things in it have one name."""
    body, scripts = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL), page
    assert not re.search(r"\b(?:src|href|action)\s*=|url\((?!#)|@import|https?:", body)
    assert not re.search(r"\bfetch\(|XMLHttpRequest|import\(|https?:", scripts.replace("http://www.w3.org", ""))
    assert "metadata" not in body
    assert len(set(names := re.findall(r'\bid="([^"]+)"', body))) == len(names)
    assert set(re.findall(r"url\(#([^)]+)\)", body)) <= set(names)
    assert all(f'id="{name}"' in body for name in re.findall(r'aria-describedby="([^"]+)"', body))
    embedded = re.findall(r'<script type="application/json" class="report">(.*?)</script>', page, re.DOTALL)
    assert [json.loads(one) for one in embedded] == [json.loads(one.read_text()) for one in reports]
    assert not re.search(r"\bNaN\b|\bInfinity\b", re.findall(r'id="data">(.*?)</script>', page, re.DOTALL)[0])


def test_a_page_of_a_spectrum_is_small(made, curv):
    """Of as many numbers as ten probes of 80 steps make, which is what `curv spectrum` does unasked."""
    report = json.loads(made("spectrum").read_text())
    random, result = np.random.default_rng(0), report["result"]
    result["nodes"] = np.sort(random.lognormal(-9, 3, (10, 80))).tolist()
    result["weights"] = random.dirichlet(np.ones(80), 10).tolist()
    grid = np.sort(random.lognormal(-6, 4, 560)).tolist()
    shares = [np.sort(random.uniform(size=560).round(2)) for _ in range(2)]
    lower, upper = (side.tolist() for side in (np.minimum(*shares), np.maximum(*shares)))
    result["cumulative"] = {"grid": grid, "lower": lower, "upper": upper}
    Path("s.json").write_text(json.dumps(report))
    assert curv("plot", "s.json", "-o", "s.html").code == 0
    assert 100_000 < Path("s.html").stat().st_size < 200_000


def test_several_reports_are_laid_over_each_other(project, curv):
    for matrix in ("hessian", "ggn"):
        assert curv("eigs", *FAST, "-k", 3, "--matrix", matrix, "-o", f"{matrix}.json").code == 0
    assert curv("plot", "hessian.json", "ggn.json", "-o", "both.html").code == 0
    page = Path("both.html").read_text()
    assert re.findall(r"</span>(\w+)</button>", page)[:2] == ["Hessian", "GGN"]
    check_page(page, [Path("hessian.json"), Path("ggn.json")])


@pytest.mark.slow
def test_a_run_is_drawn_over_its_steps(project, curv):
    root = project.steps("run", range(0, 40, 10))
    done = curv("spectrum", root, "--all-steps", *FAST, "--spec", "curv.toml", "-o", "run.jsonl")
    assert done.code == 0, done.err
    done = curv("plot", "run.jsonl", "--learning-rate", 0.5, "-o", "run.svg", "-o", "run.html")
    assert (done.code, done.err) == (0, "")
    assert "Spectra of the Hessian over the run" in Path("run.svg").read_text()
    (data,) = re.findall(r'id="data">(.*?)</script>', Path("run.html").read_text(), re.DOTALL)
    panels = json.loads(data)
    assert panels[0]["mesh"]["xNames"] == ["0", "10", "20", "30"]
    rates = next(one for one in panels[0]["series"] if one["name"] == "2/lr")
    assert rates["y"] == [4.0] * 4
    reports = [json.loads(line) for line in Path("run.jsonl").read_text().splitlines()]
    assert panels[1]["series"][0]["y"] == pytest.approx([one["problem"]["loss_value"] for one in reports], rel=1e-3)
    # Each column of the map holds all eigenvalues but those that the smoothing carries over the edge.
    for column in zip(*panels[0]["mesh"]["z"], strict=True):
        assert sum(one or 0 for one in column) == pytest.approx(reports[0]["result"]["dim"], abs=2)


def test_steps_that_failed_are_left_out_and_told(project, made, curv):
    report = made("trace").read_text()
    failed = {"schema": "curv.error/1", "checkpoint": "x", "step": 1, "error": "e", "hint": "h", "exit_code": 65}
    project.write("some.jsonl", report + json.dumps(failed) + "\n")
    done = curv("plot", "some.jsonl")
    assert (done.code, done.out) == (0, "some.png\n")
    assert "1 checkpoint without a report" in done.err
    project.write("none.jsonl", json.dumps(failed) + "\n")
    assert curv("plot", "none.jsonl").code == 65


def test_stdin_and_stdout(made, shell):
    report = made("trace")
    done = shell(f"cat {report} | $CURV plot - -o - --format svg")
    assert (done.code, done.err) == (0, "")
    assert ET.fromstring(done.out).tag.endswith("svg")
    other = shell(f"$CURV plot {report} -o /dev/stdout --format svg")
    assert (other.code, other.out) == (0, done.out)


def test_reports_as_other_tools_write_them(project, made, curv):
    """Over many lines, without a line between them, with the marks of Windows, and with U+2028 in a name."""
    report = json.loads(made("trace").read_text())
    report["problem"]["checkpoint"]["path"] = "a\u2028b"
    plain = json.dumps(report, ensure_ascii=False)
    printed = json.dumps(report, ensure_ascii=False, indent=2)
    text = f"\ufeff{printed}\r\n{plain}\r\n{printed}\r\n\r\n{plain}{plain}"
    Path("r.json").write_text(text, encoding="utf-8", newline="")
    assert curv("plot", "r.json", "-o", "r.html").code == 0
    assert Path("r.html").read_text(encoding="utf-8").count('class="report"') == 5
    project.write("broken.jsonl", f"{plain}\n{{]\n")
    assert "line 2 column 2" in curv("plot", "broken.jsonl").error


def test_inputs_that_are_images_are_drawn(project, curv):
    project.data(x=project.x)
    curv("influence", "--remove", "--queries", "1:2", *FAST, "-o", "i.json")
    assert curv("plot", "i.json", "--image-shape", "2x2", "-o", "i.html", "-o", "i.png").code == 0
    page = Path("i.html").read_text()
    images = re.findall(
        r'<canvas width="2" height="2" data-channels="1" data-pixels="(\w+)".*?aria-label="(.*?)"', page
    )
    shown = [project.x[int(label.split()[-1])] for _, label in images]
    low, extent = np.min(shown), np.ptp(shown)
    assert images[0][1] == "input data 1"
    for (pixels, _), row in zip(images, shown, strict=True):
        seen = [int(pixels[i : i + 2], 16) for i in range(0, 8, 2)]
        np.testing.assert_allclose(seen, 255 * (row - low) / extent, atol=0.51)
    # Other data are not shown as if they were those of the report.
    project.data(x=project.x + 1)
    done = curv("plot", "i.json", "--image-shape", "2x2", "-o", "i.html")
    assert "has changed since the report" in done.err
    assert "<canvas" not in Path("i.html").read_text()


def test_scores_in_a_file_make_the_label_matrices(project, curv):
    done = curv("influence", "--label-perturb", "--queries", "0:2", "--scores", "scores.npz", *FAST, "-o", "l.json")
    assert done.code == 0, done.err
    assert curv("plot", "l.json", "-o", "l.html").code == 0
    (data,) = re.findall(r'id="data">(.*?)</script>', Path("l.html").read_text(), re.DOTALL)
    mesh = next(one for one in json.loads(data) if one and one["mesh"])["mesh"]
    scores = np.load("scores.npz")["scores"][0]
    rows = [int(name) for name in mesh["yNames"]]
    np.testing.assert_allclose(mesh["z"], scores[rows], rtol=1e-3)


@pytest.mark.first_tier("arguments0-*", "arguments1-*", "arguments3-*", "arguments5-*")
@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["missing.json"], 66, "no report missing.json"),
        (["curv.toml"], 65, "is no JSON"),
        (["a.json", "-o", "a.gif"], 2, "not a format for pictures"),
        (["a.json", "-o", "a.json", "--format", "png"], 2, "would replace the report"),
        (["a.json", "-o", "no/where.png"], 74, "its folder does not exist"),
        (["a.json", "b.json"], 2, "reports of trace and eigs"),
        (["-", "-"], 2, "stdin is read once"),
        (["deep.json"], 65, "is no JSON"),
        (["a.json", "--image-shape", "8x8"], 2, "for reports of influence"),
        (["a.json", "--image-shape", "8"], 2, "no shape of an image"),
        ([], 2, "Missing argument"),
    ],
)
def test_what_cannot_be_plotted(project, made, curv, arguments, code, said):
    made("trace").rename(project.folder / "a.json")
    made("eigs").rename(project.folder / "b.json")
    project.write("deep.json", "[" * 200_000)
    before = sorted(project.folder.iterdir())
    done = curv("plot", *arguments)
    assert done.code == code
    assert said in done.error
    assert sorted(project.folder.iterdir()) == before


def test_without_matplotlib_the_extra_is_named(made, curv, monkeypatch):
    report = made("trace")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = curv("plot", report)
    assert done.code == 78
    assert "curvcli[plot]" in done.error


@pytest.mark.parametrize("name", ["spectrum", "saddle"])
def test_a_matrix_of_zeros(project, curv, name):
    """The first layer's, where all inputs are zero: no scale is left but that of one."""
    project.data(x=0 * project.x)
    project.write("curv.toml", Path("curv.toml").read_text().replace("l2 = 1e-3", ""))
    assert curv(name, *FAST, "--params", "Dense_0/kernel", "-o", "zero.json").code == 0
    done = curv("plot", "zero.json", "-o", "zero.html")
    assert (done.code, done.err) == (0, "")


def test_a_gradient_of_zero(made, curv):
    report = json.loads(made("eigs").read_text())
    for one in report["result"]["eigenvalues"]:
        one["gradient_cosine_squared"] = 0.0
    Path("e.json").write_text(json.dumps(report))
    done = curv("plot", "e.json", "-o", "e.html")
    assert (done.code, done.err) == (0, "")
    assert [title for title in re.findall(r"<h2>(.*?)</h2>", Path("e.html").read_text()) if "gradient" in title]


def test_names_are_drawn_as_they_are(made, curv):
    """Neither as formulas nor as markup; what cannot be shown is written as an escape."""
    report = json.loads(made("trace").read_text())
    names = ["$\\frac$", "</script><b>&\"'", "漢字", "a\x1b\udcff"]
    report["result"]["layers"] = [{**report["result"]["layers"][0], "name": name} for name in names]
    report["problem"]["checkpoint"]["path"] = "/runs/$\\x$\udcff.npz"
    Path("n.json").write_text(json.dumps(report))
    done = curv("plot", "n.json", "-o", "n.png", "-o", "n.svg", "-o", "n.html")
    assert (done.code, done.err) == (0, "")
    drawn = "".join(ET.parse("n.svg").getroot().itertext())
    assert all(name in drawn for name in [*names[:3], "a\\x1b\\udcff", "$\\x$\\udcff.npz"])
    check_page(Path("n.html").read_text(encoding="utf-8"), [Path("n.json")])


SCRIPT = """
<script>
const outcome = {errors: window.problems, panels: []};
document.querySelectorAll("section.panel").forEach((section) => {
  const picture = section.querySelector(".picture"), said = section.querySelector(".said");
  const visible = () => [...picture.querySelectorAll("svg")].filter((one) => one.getBoundingClientRect().width > 0);
  const one = {title: section.querySelector("h2").textContent, before: visible().length, scales: [], said: []};
  section.querySelectorAll("button.scale").forEach((button) => {
    button.click();
    one.scales.push([visible().length, visible()[0].dataset.x, visible()[0].dataset.y, button.textContent]);
    button.click();
  });
  for (const key of ["Home", "ArrowRight", "End"]) {
    picture.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
    const mark = section.querySelector(".mark");
    one.said.push([said.textContent, mark && [Number(mark.getAttribute("cx")), Number(mark.getAttribute("cy"))]]);
  }
  const box = visible()[0].getBoundingClientRect(), view = visible()[0].viewBox.baseVal;
  const mark = section.querySelector(".mark");
  if (mark) {
    const at = {clientX: box.left + mark.getAttribute("cx") * box.width / view.width,
                clientY: box.top + mark.getAttribute("cy") * box.height / view.height};
    picture.dispatchEvent(new PointerEvent("pointermove", {...at, bubbles: true}));
    one.tip = section.querySelector(".tip").hidden ? null : section.querySelector(".tip").textContent;
  }
  const button = section.querySelector("button.series");
  if (button) {
    const all = () => [...visible()[0].querySelectorAll(".series-0")];
    const drawn = () => all().filter((x) => x.getBoundingClientRect().width > 0);
    one.drawn = [drawn().length];
    button.click();
    one.drawn.push(drawn().length);
    button.click();
    one.drawn.push(drawn().length);
  }
  section.querySelector("details").open = true;
  outcome.panels.push(one);
});
outcome.order = [...document.querySelectorAll("button, summary, [tabindex], a, input")].map((x) => [x.tabIndex, x.id ||
  x.className || x.tagName]);
const before = getComputedStyle(document.body).backgroundColor;
document.getElementById("theme").click();
outcome.theme = [before, getComputedStyle(document.body).backgroundColor];
setTimeout(() => {
  outcome.values = [...document.querySelectorAll(".values")].map((one) => one.querySelectorAll("tr").length);
  const found = document.createElement("pre");
  found.id = "outcome";
  found.textContent = JSON.stringify(outcome);
  document.body.append(found);
}, 50);
</script>
</body>"""


def browse(folder: Path) -> tuple[dict, str]:
    """What the script saw of `a.html` in a browser, and what the browser wrote on stderr."""
    watching = "window.problems = []; addEventListener('error', (e) => problems.push(e.message));"
    page = Path("a.html").read_text(encoding="utf-8").replace("</head>", f"<script>{watching}</script></head>")
    (folder / "test.html").write_text(page.replace("</body>", SCRIPT), encoding="utf-8")
    done = subprocess.run(
        [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000", "--dump-dom",
         "--enable-logging=stderr", f"--user-data-dir={folder}/browser", f"file://{folder}/test.html"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    found = re.search(r'<pre id="outcome">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found is not None, done.stdout[-2000:]
    return json.loads(unescape(found[1])), done.stderr


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("name", ["spectrum", "compare", "step", "landscape"])
def test_the_page_in_a_browser(made, curv, tmp_path, name):
    report = made(name)
    assert curv("plot", report, "-o", "a.html").code == 0
    outcome, said = browse(tmp_path)
    assert "CONSOLE" not in said, said
    assert outcome["errors"] == []
    assert outcome["panels"]
    for panel in outcome["panels"]:
        assert panel["before"] == 1
        assert all(count == 1 for count, *_ in panel["scales"])
        (first, _), _, (last, at) = panel["said"]
        assert first
        assert last
        assert 0 < at[0] < 520
        assert panel["tip"]
        if "drawn" in panel:
            assert panel["drawn"][0] > panel["drawn"][1] == 0
            assert panel["drawn"][2] == panel["drawn"][0]
    assert all(index == 0 for index, _ in outcome["order"])  # the order of Tab is that of the page
    assert outcome["order"][0][1] == "theme"
    assert outcome["order"][-1][1] == "save"
    assert min(outcome["values"]) > 1
    assert outcome["theme"][0] != outcome["theme"][1]


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_the_page_reads_the_values_that_the_report_has(made, curv, tmp_path):
    report = json.loads(made("eigs").read_text())
    assert curv("plot", "eigs.json", "-o", "a.html").code == 0
    outcome, _ = browse(tmp_path)
    said = [float(re.search(r": ([\d.eE+-]+) in", text)[1]) for text, _ in outcome["panels"][0]["said"]]  # type: ignore[index]
    values = [one["value"] for one in report["result"]["eigenvalues"]]
    assert said == pytest.approx([values[0], values[1], values[-1]], rel=1e-3)
    # What is marked lies where the picture has it: heights in the order of the values.
    heights = [at[1] for _, at in outcome["panels"][0]["said"]]
    assert heights == sorted(heights)
