"""The report: the page's figures are those of the tables, nothing in the results can break out of it, and in a real
browser it shows what is pointed at, hides what is switched off, and asks no network for anything."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select
from written import REFERENCE, STEPS, ramp, read, write_shard

from analysis import __main__ as command
from analysis import bootstrap, load, manifests
from analysis import report as pages
from analysis.__main__ import main
from analysis.curves import THRESHOLDS, performance_profiles, sample_efficiency_curves
from analysis.tables import AGGREGATES, MARKS, latex, summarise

ROOT = Path(__file__).resolve().parent.parent
REPETITIONS = 60
SEED = 3
HOSTILE = "sac </script><img src=http://example.invalid/x.png onerror=alert(1)><b>$x_1$ & 100% \\"
PPO = "ppo"


def write_results(folder: Path) -> None:
    """Two labels on tasks `a` and `b`, and the first one on `c` too; on `a` it has two learning rates, and the last run
    of the other one diverges."""
    rng = np.random.default_rng(0)
    returns = np.array([[10.0, 30.0 + 5 * run, 40.0 + 6 * run] for run in range(8)])
    rates = np.tile(np.repeat([0.1, 0.2], 4), len(STEPS))
    facts = {
        "compile_seconds": 3.5,
        "run_seconds": 12.0,
        "peak_memory_bytes": 2**30,
        "plan": {"width": 4, "devices": 2},
        "device": "2 x cpu (cpu)",
        "hypers": [{"lr": 0.1}, {"lr": 0.2}],
    }
    write_shard(folder, PPO, "a", returns, extra={"hyper/lr": rates}, **facts)
    lost = ramp(8, 60)
    lost[-1, 1:] = np.nan
    write_shard(folder, HOSTILE, "a", lost, shard="sac-a", diverged=np.isnan(lost))
    for label, shard in ((PPO, "ppo-b"), (HOSTILE, "sac-b")):
        write_shard(
            folder, label, "b", rng.normal(-500, 200, (24, 3)), shard=shard, reference={"low": -1000, "high": 0}
        )
    write_shard(folder, PPO, "c", 1000 + ramp(3) / 20, reference=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results with their report."""
    folder = tmp_path_factory.mktemp("report") / "quick"
    write_results(folder)
    assert main([str(folder), "--repetitions", str(REPETITIONS), "--seed", str(SEED)]) == 0
    return folder


class Scripts(HTMLParser):
    """The text of every script element, and the names of all elements."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: set[str] = set()
        self.inside = False

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)
        if tag == "script":
            self.texts.append("")
        self.inside = tag == "script"

    def handle_endtag(self, tag: str) -> None:
        self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.texts[-1] += data


def document_of(page: Path) -> dict[str, Any]:
    scripts = Scripts()
    scripts.feed(page.read_text())
    return json.loads(scripts.texts[0])


@pytest.fixture(scope="module")
def document(folder: Path) -> dict[str, Any]:
    return document_of(folder / "report.html")


def make(folder: Path) -> dict[str, Any]:
    """The document of these results, without figures and files."""
    frame, shards, scores = load(folder), manifests(folder), read(folder)
    settings = {"repetitions": 40, "seed": 0}
    summary = summarise(scores, **settings)
    curves, profiles = sample_efficiency_curves(scores, **settings), performance_profiles(scores, **settings)
    return pages.document(scores, frame, shards, summary, curves, profiles, repetitions=40, seed=0)


def cell_of(document: dict[str, Any], label: str, task: str) -> dict[str, Any]:
    names = [each["name"] for each in document["labels"]], [each["name"] for each in document["tasks"]]
    (found,) = (c for c in document["cells"] if (names[0][c["label"]], names[1][c["task"]]) == (label, task))
    return found


def or_none(values: Any) -> list[float | None]:
    """As JSON has them."""
    return [float(value) if np.isfinite(value) else None for value in values]


# --- The document -----------------------------------------------------------------------------------------------------


def test_aggregates_and_probabilities_are_those_of_the_bootstrap(folder: Path, document: dict[str, Any]) -> None:
    scores = read(folder)
    assert [label["name"] for label in document["labels"]] == scores.labels == [PPO, HOSTILE]
    settings = {"repetitions": REPETITIONS, "seed": SEED}
    for kind in ("final", "auc"):
        normalised = scores.normalised(["a", "b"], kind)
        for statistic, function in AGGREGATES.items():
            found = bootstrap.interval(normalised, function, **settings)
            assert document["aggregates"][kind][statistic] == [[*found[label], ""] for label in scores.labels]
        better = bootstrap.improvement(*normalised.values(), **settings)
        matrix = document["improvements"][kind]
        survives = bootstrap.improvement_p_value(*normalised.values()) < 0.05  # the only pair: nothing to correct
        assert matrix[0][1] == [*better, "", survives] and matrix[1][0][3:] == ["", survives]
        assert matrix[1][0][:3] == pytest.approx([1 - better.estimate, 1 - better.high, 1 - better.low])
        assert matrix[0][0] is None


def test_curves_and_profiles_are_those_of_the_bootstrap(folder: Path, document: dict[str, Any]) -> None:
    scores = read(folder)
    settings = {"repetitions": REPETITIONS, "seed": SEED}
    for (label, task), found in scores.tasks.items():
        cell = cell_of(document, label, task)
        band = bootstrap.curve([found.curves], bootstrap.iqm, name=f"{label} {task}", **settings)
        assert cell["x"] == list(STEPS)
        assert all(cell[name] == or_none(values) for name, values in band._asdict().items())
    for kind in ("final", "auc"):
        profile = document["profiles"][kind]
        thresholds = np.array(profile["x"])
        assert thresholds.size == THRESHOLDS and thresholds[0] <= 0 < 1 <= thresholds[-1]
        for index, (label, tasks) in enumerate(scores.normalised(["a", "b"], kind).items()):
            band = bootstrap.profile(tasks, thresholds, name=label, **settings)
            shown = profile["bands"][index]
            assert all(shown[name] == or_none(values) for name, values in band._asdict().items())


def test_the_table_is_that_of_the_csv_file(folder: Path, document: dict[str, Any]) -> None:
    csv = pd.read_csv(folder / "report.csv", float_precision="round_trip")
    assert len(document["table"]) == 5
    for row in document["table"]:
        label, task = document["labels"][row["label"]]["name"], document["tasks"][row["task"]]["name"]
        there = csv[(csv["label"] == label) & (csv["environment"] == task)].set_index("statistic")
        for name in ("untrained", "final", "last", "auc"):
            found = there.loc[f"{name}_iqm"]
            assert row[name][:3] == or_none(found[["estimate", "low", "high"]])
            assert row[name][3] == MARKS.get(found["no_interval"], "")
            assert (row[name][3] == "*") == (task == "c")
        assert row["runs"] == there["runs"].iloc[0] and row["diverged"] == there["diverged"].iloc[0]


def test_single_runs_say_which_they_are(document: dict[str, Any]) -> None:
    cell = cell_of(document, PPO, "a")
    assert cell["varied"] == ["lr"]
    assert [run["seed"] for run in cell["runs"]] == list(range(8))
    assert [run["hypers"] for run in cell["runs"]] == [{"lr": 0.1}] * 4 + [{"lr": 0.2}] * 4
    assert [run["returns"] for run in cell["runs"]] == [[10, 30 + 5 * run, 40 + 6 * run] for run in range(8)]
    assert cell_of(document, PPO, "c")["varied"] == []


def test_shown_runs_are_spread_over_the_ranks_of_their_final_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finals = [50, 10, 40, 20, 60, 30, 70]
    write_shard(tmp_path / "x", PPO, "a", [[0, 5, final] for final in finals])
    monkeypatch.setattr(pages, "MAX_RUNS", 3)
    cell = make(tmp_path / "x")["cells"][0]
    assert {run["returns"][-1] for run in cell["runs"]} == {10, 40, 70}
    assert cell["run_count"] == 7


def test_many_evaluations_are_thinned_for_single_runs_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = tuple(range(0, 1001, 100))
    write_shard(tmp_path / "x", PPO, "a", np.arange(33.0).reshape(3, 11), steps=steps)
    monkeypatch.setattr(pages, "MAX_EVALUATIONS", 3)
    cell = make(tmp_path / "x")["cells"][0]
    assert cell["x"] == list(steps)
    assert cell["steps"] == [0, 500, 1000]
    assert cell["runs"][1]["returns"] == [11, 16, 21]


def test_diverged_runs_are_listed_with_step_and_score(
    document: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert document["diverged"]["total"] == 1
    (run,) = document["diverged"]["runs"]
    assert (document["labels"][run["label"]]["name"], document["tasks"][run["task"]]["name"]) == (HOSTILE, "a")
    assert (run["seed"], run["step"], run["counted"]) == (7, 500, True)
    assert run["score"] == pytest.approx(ramp(8, 60)[7, 0])
    # Flagged from the last evaluation on although finite; never finite; and of a shard that goes on.
    flags = [[False, False, True], [False] * 3, [True] * 3]
    write_shard(tmp_path / "x", PPO, "a", [[1, 2, 3], [1, 2, 4], [np.nan] * 3], diverged=flags)
    lost = np.array([[1, 2, 3]] * 3 + [[np.nan] * 3])
    write_shard(tmp_path / "x", "sac", "a", lost, running=[3, 3, 2, 2], diverged=np.isnan(lost))
    listed = make(tmp_path / "x")["diverged"]["runs"]
    assert [(run["seed"], run["step"], run["score"], run["counted"]) for run in listed] == [
        (0, 1000, 3, True),
        (2, 0, REFERENCE["low"], True),
        (3, 0, REFERENCE["low"], False),
    ]
    monkeypatch.setattr(pages, "MAX_DIVERGED", 2)
    shortened = make(tmp_path / "x")["diverged"]
    assert (shortened["total"], shortened["runs"]) == (3, listed[:2])


def test_speed_and_memory_come_from_the_manifests(document: dict[str, Any], tmp_path: Path) -> None:
    names = ("compile_seconds", "run_seconds", "peak_memory_bytes", "width", "devices", "steps_per_second")
    assert [cell_of(document, PPO, "a")[name] for name in names] == [3.5, 12, 2**30, [4], [2], 8 * 1000 / 4]
    assert [cell_of(document, HOSTILE, "a")[name] for name in names] == [None, None, None, [], [], 8 * 1000 / 4]
    for index, (width, peak) in enumerate(((4, 10), (2, 30))):
        facts = {"run_seconds": 2.0, "peak_memory_bytes": peak, "plan": {"width": width, "devices": 1}}
        seeds = range(2 * index, 2 * index + 2)
        write_shard(tmp_path / "x", PPO, "a", ramp(2), shard=f"{index}", seeds=seeds, compile_seconds=1.0, **facts)
    cell = make(tmp_path / "x")["cells"][0]
    assert [cell[name] for name in names[:5]] == [2, 4, 30, [2, 4], [1]]


def test_manifests_are_told_once_where_they_agree_and_shortened(document: dict[str, Any], tmp_path: Path) -> None:
    found = document["manifests"]
    assert found["common"]["experiment"] == "quick" and "shard" not in found["common"]
    assert [shard["shard"] for shard in found["shards"]] == ["ppo-a", "ppo-b", "ppo-c", "sac-a", "sac-b"]
    assert found["shards"][0]["seeds"] == "0-7"
    assert found["shards"][0]["hypers"] == {"lr": "2 values from 0.1 to 0.2"}
    assert found["shards"][0]["settings"] == 2
    assert found["shards"][0]["device"] == "2 x cpu (cpu)"
    write_shard(tmp_path / "x", PPO, "a", ramp(2), config={"entropy": [float("nan")]}, hypers=[{"lr": float("inf")}])
    common = json.loads(json.dumps(make(tmp_path / "x"), allow_nan=False))["manifests"]["common"]
    assert (common["config"], common["hypers"]) == ({"entropy": ["nan"]}, {"lr": "inf"})
    assert pages._ranges([3, 1, 2, 7, 7, 9, 10]) == "1-3, 7, 9-10"


def test_offline_the_task_is_the_dataset_and_manifests_stay_as_they_are(tmp_path: Path) -> None:
    for name in ("medium", "expert"):
        facts = {"dataset": f"a/{name}", "extra": {"dataset": f"a/{name}"}, "compile_seconds": 2.0}
        write_shard(tmp_path / "x", PPO, "a", ramp(2), shard=name, **facts)
    document = make(tmp_path / "x")
    assert [(task["name"], task["offline"]) for task in document["tasks"]] == [("a/expert", True), ("a/medium", True)]
    assert [cell["compile_seconds"] for cell in document["cells"]] == [2, 2]
    assert document["manifests"]["common"]["environment"] == "a"
    assert [shard["dataset"] for shard in document["manifests"]["shards"]] == ["a/expert", "a/medium"]


def test_two_experiments_of_one_label_stay_apart(tmp_path: Path) -> None:
    for experiment, seconds in (("one", 1.0), ("two", 2.0)):
        write_shard(tmp_path / experiment, PPO, "a", ramp(2), compile_seconds=seconds)
    document = make(tmp_path)
    assert document["title"] == "one, two"
    assert [label["name"] for label in document["labels"]] == ["one/ppo", "two/ppo"]
    assert [cell["compile_seconds"] for cell in document["cells"]] == [1, 2]


def test_a_running_sweep_has_a_report(tmp_path: Path) -> None:
    write_shard(tmp_path / "x", PPO, "a", ramp(4), running=[3, 3, 1, 0])
    write_shard(tmp_path / "x", "sac", "a", ramp(4))
    document = make(tmp_path / "x")
    cell = document["cells"][0]
    assert (cell["run_count"], cell["counted"], cell["planned"]) == (3, 2, 4)
    assert cell["complete"] == [False] * 3
    assert cell["runs"][2]["returns"][1:] == [None, None]
    assert any("still running" in note for note in document["notes"])


def test_nothing_in_the_results_ends_the_script_element(folder: Path, document: dict[str, Any]) -> None:
    page = (folder / "report.html").read_text()
    scripts = Scripts()
    scripts.feed(page)
    assert len(scripts.texts) == 2
    assert not scripts.tags & {"img", "b", "link", "iframe"}
    assert document["labels"][1]["name"] == HOSTILE
    assert page.count("</script>") == 2
    # What stands for a part of the page in the template may be in the results too.
    named = pages.page({"labels": ["/* SCRIPT */ /* DATA */ </style>"]})
    assert named.count("/* SCRIPT */") == 1 and named.count("</style>") == 1


def test_the_page_is_part_of_the_package() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = settings["package-data"]["analysis"]
    packed = {file.name for pattern in patterns for file in (ROOT / "analysis").glob(pattern)}
    assert packed == {"report.html", "report.css", "report.js"}


# --- Files for papers -------------------------------------------------------------------------------------------------


def test_latex_has_the_figures_and_no_special_character_of_a_name(folder: Path) -> None:
    text = (folder / "report.tex").read_text()
    escaped = (
        r"sac \textless{}/script\textgreater{}\textless{}img src=http://example.invalid/x.png "
        r"onerror=alert(1)\textgreater{}\textless{}b\textgreater{}\$x\_1\$ \& 100\% \textbackslash{}"
    )
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert sum(escaped in row for row in rows) == 4
    bare = re.sub(r"\\[\\a-z]*(\{\})?|\\[&%$#_{}]|[{}]|\$-\$", "", text.replace(escaped, ""))
    assert not set(bare.replace("&", "")) & set("\\$#_~^")
    assert text.count("{") == text.count("}")
    # Every row has as many cells as its table has columns.
    for columns, table in re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", text, re.S):
        rows = [row for row in table.splitlines() if row.endswith(r"\\")]
        assert {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows} == {len(columns)}
    csv = pd.read_csv(folder / "report.csv")
    csv = csv[(csv["section"] == "aggregate") & (csv["score"] == "auc") & (csv["label"] == PPO)]
    iqm = csv.set_index("statistic").loc["iqm"]
    assert f"AUC & ppo & {{{iqm['estimate']:.3f} [{iqm['low']:.3f}, {iqm['high']:.3f}]}} &" in text


def test_latex_without_a_comparable_task_or_an_interval(tmp_path: Path) -> None:
    write_shard(tmp_path / "x", PPO, "a", [[1, 2, 3]], reference=None)
    scores = read(tmp_path / "x")
    text = latex(scores, summarise(scores, repetitions=40))
    assert text.count(r"\begin{tabular}") == 1
    assert r"a & ppo & 1 & {3.000 *} & {2.500 *} \\" in text
    assert "% * no interval, fewer than 5 runs on a task" in text


def test_pdf_figures_have_embedded_fonts(folder: Path) -> None:
    for file in folder.glob("*.pdf"):
        content = file.read_bytes()
        assert b"/FontFile2" in content and b"/Type3" not in content


def test_a_report_that_cannot_be_written_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "FIGURES", ())
    write_shard(tmp_path / "x", PPO, "a", ramp(2))
    (tmp_path / "x" / "report.html").mkdir()
    assert main([str(tmp_path / "x"), "--repetitions", "40"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "report.html' (Is a directory); choose another folder with --out" in error
    assert not list((tmp_path / "x").glob(".*"))


# --- In a browser, which `make test` does without ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.fail(
            "the report is tested in a real browser, and there is no chromium with chromedriver on the path; install "
            "both, on Debian: apt-get install chromium chromium-driver"
        )
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("headless=new", "disable-gpu", "disable-dev-shm-usage", "host-resolver-rules=MAP * ~NOTFOUND"):
        options.add_argument(f"--{argument}")
    if os.geteuid() == 0:  # Chromium refuses its sandbox to root
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with webdriver.Chrome(options=options, service=Service(driver)) as running:
        yield running


def test_make_test_needs_no_browser() -> None:
    """Whatever asks for one is left to `make browser`, which a machine with Python and make alone does not call."""
    files = [file for file in (ROOT / "tests").glob("test_*.py") if "import webdriver" in file.read_text()]
    # Those of a `make` that runs this test, such as PYTEST_ARGS.
    outside = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}

    def fixtures(target: str) -> set[str]:
        shown = subprocess.check_output(
            ["make", "-n", target, f"PYTHON={sys.executable}"], cwd=ROOT, env=outside, text=True
        )
        (line,) = (line for line in shown.splitlines() if " -m pytest " in line)
        words = shlex.split(line)
        markers = words[len(words) - words[::-1].index("-m")]
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--fixtures-per-test", "-m", markers]
        listed = subprocess.check_output([*command, *map(str, files)], cwd=ROOT, text=True)
        return set(re.findall(r"^(\w+) -- ", listed, re.M))

    assert "browser" not in fixtures("test") and "folder" in fixtures("test")
    assert "browser" in fixtures("browser")


def show(browser: webdriver.Chrome, page: Path, width: int = 1280, scheme: str = "light") -> None:
    """Open a page, and see that it complains of nothing, asks for nothing but itself, and draws what are numbers."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.get_log("performance")  # which empties it
    browser.get(page.as_uri())
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert requests == [page.as_uri()]
    drawn = [chart.get_attribute("outerHTML") or "" for chart in browser.find_elements(By.TAG_NAME, "svg")]
    assert drawn and not [chart for chart in drawn if "NaN" in chart or "undefined" in chart]


@pytest.fixture
def opened(browser: webdriver.Chrome, folder: Path) -> webdriver.Chrome:
    show(browser, folder / "report.html")
    return browser


def panels_of(browser: webdriver.Chrome, label: int) -> set[str]:
    """Where something of this label is drawn."""
    return set(
        browser.execute_script(
            "return [...document.querySelectorAll(`#main [data-label='${arguments[0]}']`)]"
            ".map((node) => node.closest('[data-chart]')?.dataset.chart ?? node.closest('section').id)",
            label,
        )
    )


def place_on(browser: webdriver.Chrome, line: str, share: float = 1.0) -> list[float]:
    """The point of the window at a share of the length of a drawn line, which is scrolled into sight."""
    # Scrolling takes the tooltip away, a frame later: the place is asked for when that is over.
    return browser.execute_async_script(
        "const [selector, share, done] = arguments, line = document.querySelector(selector);"
        "line.closest('svg').scrollIntoView({block: 'center'});"
        "requestAnimationFrame(() => requestAnimationFrame(() => {"
        "const {x, y} = line.getPointAtLength(line.getTotalLength() * share).matrixTransform(line.getScreenCTM());"
        "done([x, y]); }));",
        line,
        share,
    )


def move_to(browser: webdriver.Chrome, x: float, y: float) -> str:
    """Point at a place; gives what the tooltip says."""
    browser.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": x, "y": y})
    return browser.find_element(By.ID, "tooltip").text


def colours(browser: webdriver.Chrome, selector: str) -> tuple[float, float]:
    """Luminance of text and of what is behind it, as in the Web Content Accessibility Guidelines."""
    found = browser.execute_script(
        "const node = document.querySelector(arguments[0]);"
        "let behind = node;"
        "while (getComputedStyle(behind).backgroundColor === 'rgba(0, 0, 0, 0)') behind = behind.parentElement;"
        "return [getComputedStyle(node).color, getComputedStyle(behind).backgroundColor];",
        selector,
    )
    luminances = []
    for colour in found:
        channels = np.array([int(value) / 255 for value in re.findall(r"\d+", colour)[:3]])
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        luminances.append(float(linear @ [0.2126, 0.7152, 0.0722]))
    return luminances[0], luminances[1]


@pytest.mark.browser
@pytest.mark.xdist_group("browser")
class TestBrowser:
    """One group, so that one browser is started however many processes test."""

    def test_every_part_is_there(self, opened: webdriver.Chrome) -> None:
        assert opened.title == "quick: rlsuite report"
        headings = {heading.text for heading in opened.find_elements(By.CSS_SELECTOR, "section h2")}
        assert headings == {
            *("What is compared", "Over all compared tasks", "Sample efficiency", "Performance profiles"),
            *("Probability of improvement", "Task by task", "Diverged runs", "Speed and memory", "What was run"),
        }
        everywhere = {"task-0", "task-1", "all-tasks", "profile", "iqm", "mean", "median", "optimality_gap"}
        sections = {"improvements", "tables", "speed"}
        assert panels_of(opened, 0) == everywhere | sections | {"task-2"}
        assert panels_of(opened, 1) == everywhere | sections | {"diverged"}
        text = opened.find_element(By.ID, "choices").text
        assert "ppo on a: lr" in text, "hyperparameters that vary"
        assert "c: no run of" in text, "what is left out"
        assert "b: 0 is \N{MINUS SIGN}1000" in text, "what scores are normalised by"
        assert "60 resamples" in text and "seed 3" in text

    def test_names_are_text(self, opened: webdriver.Chrome) -> None:
        assert not opened.find_elements(By.CSS_SELECTOR, "img, b, iframe")
        names = [label.text for label in opened.find_elements(By.CSS_SELECTOR, "#algorithms label")]
        assert names == [PPO, HOSTILE]

    def test_a_toggle_hides_its_algorithm_everywhere(self, opened: webdriver.Chrome) -> None:
        before = panels_of(opened, 0)
        opened.find_element(By.CSS_SELECTOR, "[data-toggle='1']").click()
        assert panels_of(opened, 1) == set()
        assert panels_of(opened, 0) == before
        opened.find_element(By.ID, "none").click()
        assert panels_of(opened, 0) == set()
        opened.find_element(By.ID, "all").click()
        assert panels_of(opened, 0) == before
        assert panels_of(opened, 1)
        assert opened.get_log("browser") == []

    def test_pointing_at_a_run_tells_which_it_is(self, opened: webdriver.Chrome) -> None:
        opened.find_element(By.CSS_SELECTOR, "[data-toggle='1']").click()
        # The runs of `ppo` on `a` in the order of their seeds; the one of seed 6 ends far from all others.
        runs = "[data-chart='task-0'] .run[data-label='0']"
        assert len(opened.find_elements(By.CSS_SELECTOR, runs)) == 8
        text = move_to(opened, *place_on(opened, f"{runs}:nth-of-type(7)"))
        assert text.splitlines() == ["ppo", "seed 6", "lr 0.2", "step 1,000", "return 76.00"]
        iqm = move_to(opened, *place_on(opened, "[data-chart='task-0'] .iqm[data-label='0']"))
        assert iqm.splitlines()[:3] == ["ppo", "8 runs", "step 1,000"]
        assert re.search(r"IQM 61.*\npointwise \[.*\]\nsimultaneous \[.*\]", iqm)
        assert move_to(opened, 2, 2) == ""

    def test_arrow_keys_step_through_points_and_curves(self, opened: webdriver.Chrome) -> None:
        chart = opened.find_element(By.CSS_SELECTOR, "[data-chart='task-0']")
        opened.execute_script("arguments[0].focus()", chart)

        def press(*keys: str) -> str:
            ActionChains(opened).send_keys(*keys).perform()
            return opened.find_element(By.ID, "spoken").get_attribute("textContent") or ""

        assert press(Keys.ARROW_RIGHT).startswith("ppo, 8 runs, step 0")
        assert press(Keys.ARROW_RIGHT).startswith("ppo, 8 runs, step 500")
        assert press(Keys.ARROW_DOWN, Keys.ARROW_DOWN).startswith("ppo, seed 0, lr 0.1, step 500")
        assert press(Keys.ARROW_LEFT, Keys.ARROW_UP).startswith("sac </script>")
        assert opened.find_element(By.ID, "tooltip").is_displayed()
        press(Keys.ESCAPE)
        assert not opened.find_element(By.ID, "tooltip").is_displayed()

    def test_logarithmic_axes(self, opened: webdriver.Chrome) -> None:
        def line(chart: str) -> np.ndarray:
            path = opened.find_element(By.CSS_SELECTOR, f"[data-chart='{chart}'] .iqm[data-label='0']")
            return np.array(re.findall(r"[ML]([-\d.]+),([-\d.]+)", path.get_attribute("d") or ""), dtype=float)

        linear = line("task-0"), line("task-1")
        opened.find_element(By.ID, "log-y").click()
        assert len(line("task-0")) == 3
        # Of values of one sign and of negative ones: the higher return stays higher.
        for before, after in zip(linear, (line("task-0"), line("task-1")), strict=True):
            assert np.isfinite(after).all() and not np.allclose(before[:, 1], after[:, 1])
            assert np.argsort(before[:, 1]).tolist() == np.argsort(after[:, 1]).tolist()
        opened.find_element(By.ID, "log-x").click()
        assert len(line("task-0")) == 2, "step 0 has no logarithm"
        # From 1002 to 1004 there is no power of ten, nor two, three digits.
        ticks = opened.find_elements(By.CSS_SELECTOR, "[data-chart='task-2'] text[text-anchor='end']")
        assert len({tick.text for tick in ticks}) == len(ticks) >= 3
        assert opened.get_log("browser") == []

    def test_score_and_band_can_be_chosen(self, opened: webdriver.Chrome, document: dict[str, Any]) -> None:
        def forest() -> str:
            return opened.find_element(By.CSS_SELECTOR, "[data-chart='iqm']").text

        def band() -> str:
            path = opened.find_element(By.CSS_SELECTOR, "[data-chart='profile'] .band[data-label='0']")
            return path.get_attribute("d") or ""

        final, auc = (f"{document['aggregates'][kind]['iqm'][0][0]:.3f}" for kind in ("final", "auc"))
        assert final in forest() and final != auc
        pointwise = band()
        opened.find_element(By.CSS_SELECTOR, "input[value='simultaneous']").click()
        assert band() != pointwise
        opened.find_element(By.CSS_SELECTOR, "input[value='auc']").click()
        assert auc in forest()
        assert "area under the curve" in opened.find_element(By.CSS_SELECTOR, "#improvements p").text
        opened.find_element(By.ID, "runs").click()
        assert not opened.find_elements(By.CSS_SELECTOR, ".run")

    def test_tables_sort_by_a_heading(self, opened: webdriver.Chrome, document: dict[str, Any]) -> None:
        def order() -> list[str]:
            return [cell.text for cell in opened.find_elements(By.CSS_SELECTOR, ".task:first-child tbody th")]

        final = {r["label"]: r["final"][0] for r in document["table"] if r["task"] == 0}
        assert final[0] > final[1]
        heading = opened.find_element(By.XPATH, "//div[@class='task'][1]//th[button='final']")
        assert heading.get_attribute("aria-sort") is None
        for direction, expected in (("descending", [PPO, HOSTILE]), ("ascending", [HOSTILE, PPO])):
            opened.execute_script("arguments[0].firstChild.click()", heading)
            assert heading.get_attribute("aria-sort") == direction
            assert order() == expected

    @pytest.mark.parametrize("width", [1280, 700, 390])
    def test_names_in_interval_panels_begin_with_their_first_letter(
        self, browser: webdriver.Chrome, tmp_path: Path, width: int
    ) -> None:
        names = ["WWWW MMMM", "SAC with a learning rate of 0.001, wide", "ppo", "W" * 60, "TD3_BC_AWAC_WIDE"]
        for seed, name in enumerate(names):
            write_shard(tmp_path / "x", name, "a", 1e4 * ramp(8, 70, seed), shard=f"{seed}")
        pages.write(make(tmp_path / "x"), tmp_path / "report.html")
        show(browser, tmp_path / "report.html", width=width)
        found = browser.execute_script(
            "return [...document.querySelectorAll('#forest svg')].map((chart) => ["
            "chart.getBoundingClientRect().left, chart.getBoundingClientRect().right,"
            "...['.name', '.value', '.marker'].map((each) => [...chart.querySelectorAll(each)].map("
            "(node) => { const box = node.getBoundingClientRect(); return [box.left, box.right, node.textContent]; }))"
            "]);"
        )
        assert len(found) == 4
        for left, right, name_boxes, value_boxes, markers in found:
            assert all(left <= box[0] for box in name_boxes)
            assert {box[2] for box in name_boxes} >= {"WWWW MMMM", "ppo"}
            for name, value, marker in zip(name_boxes, value_boxes, markers, strict=True):
                assert value[1] <= right and name[1] <= value[0]
                assert left <= marker[0] and marker[1] <= right
                # Wide, all is on one line: name, interval, numbers.
                assert width < 700 or name[1] <= marker[0] <= marker[1] <= value[0]

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_light_and_dark_are_readable(self, browser: webdriver.Chrome, folder: Path, scheme: str) -> None:
        show(browser, folder / "report.html", scheme=scheme)
        other = "dark" if scheme == "light" else "light"
        for chosen, expected in (("light dark", scheme), (other, other)):
            Select(browser.find_element(By.ID, "theme")).select_by_value(chosen)
            for selector in ("body", "p.quiet", "legend", "#matrix td", "#algorithms label", "thead button"):
                text, behind = colours(browser, selector)
                assert (behind > text) == (expected == "light"), selector
                assert (max(text, behind) + 0.05) / (min(text, behind) + 0.05) >= 4.5, selector

    def test_a_phone_scrolls_tables_and_not_the_page(self, browser: webdriver.Chrome, folder: Path) -> None:
        show(browser, folder / "report.html", width=390)
        widths = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
        assert widths == [390, 390]
        boxes = browser.execute_script(
            "return [...document.querySelectorAll('.scroll')].filter((box) => box.scrollWidth > box.clientWidth).length"
        )
        assert boxes > 0, "nothing is wide here, so that this test shows nothing"

    def test_without_reference_returns_labels_are_compared_run_by_run(
        self, browser: webdriver.Chrome, tmp_path: Path
    ) -> None:
        for label, top in ((PPO, 70), ("sac", 71)):
            write_shard(tmp_path / "x", label, "a", ramp(6, top, top), reference=None)
        document = make(tmp_path / "x")
        pages.write(document, tmp_path / "report.html")
        show(browser, tmp_path / "report.html")
        assert panels_of(browser, 0) == {"task-0", "improvements", "tables", "speed"}
        estimate = document["improvements"]["final"][0][1][0]
        assert f"{estimate:.2f}" in browser.find_element(By.ID, "matrix").text
        assert "needs no reference returns and is over a." in browser.find_element(By.ID, "choices").text
        browser.find_element(By.CSS_SELECTOR, "input[value='auc']").click()
        assert "area under the curve" in browser.find_element(By.CSS_SELECTOR, "#improvements p").text
        assert not browser.find_element(By.ID, "aggregates").is_displayed()

    def test_results_without_anything_to_compare(self, browser: webdriver.Chrome, tmp_path: Path) -> None:
        write_shard(tmp_path / "x", PPO, "a", [[1.0, 2.0, 3.0]], reference=None, running=[2])
        lost = np.full((2, 3), np.nan)
        write_shard(tmp_path / "x", "sac", "b", lost, reference=None, diverged=np.isnan(lost))
        pages.write(make(tmp_path / "x"), tmp_path / "report.html")
        show(browser, tmp_path / "report.html")
        assert panels_of(browser, 0) == {"task-0", "tables", "speed"}
        assert panels_of(browser, 1) >= {"tables", "speed", "diverged"}, "no finite score, and told all the same"
        shown = [
            each.get_attribute("id") for each in browser.find_elements(By.TAG_NAME, "section") if each.is_displayed()
        ]
        assert shown == ["choices", "curves", "tables", "diverged", "speed", "manifests"]
        assert "1 of 1 runs have come to step 500" in browser.find_element(By.ID, "notes").text
