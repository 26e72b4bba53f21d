"""`rlsuite check` from the command to the exit code: on a probe environment, and with planted bugs on its own cells."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import pyarrow.parquet as pq
import pytest

import analysis
from analysis import regression
from rlsuite.commands import check as checking
from rlsuite.commands import check_references, check_speed, cli
from rlsuite.commands.check_speed import Speed
from rlsuite.errors import UserError
from rlsuite.pieces import returns
from rlsuite.sweeping import job, local, manifest
from rlsuite.sweeping.settings import Settings
from rlsuite.sweeping.store import Store
from rlsuite.sweeping.sweep import Cell, Experiment
from rlsuite.training.plan import Limits

ROOT = Path(__file__).resolve().parent.parent

# One worker, so that its program is compiled once.
pytestmark = pytest.mark.xdist_group("check")

NAME = "ppo__probe-action-discrete"
FILE = """
from rlsuite.algorithms.on_policy import ppo
from rlsuite.commands.check import Check
from rlsuite.sweeping.sweep import Cell, Experiment

CONFIG = ppo.Config(num_envs=8, num_steps=16, num_epochs=2, num_minibatches=2, hidden_sizes=(8,))
CHECK = Check(
    Experiment("small", "PPO learns which action is right", (
        Cell("ppo", "probe/action/discrete", 128 * 20, seeds=8, config=CONFIG, evaluations=5, eval_episodes=32,
             hypers=ppo.Hypers(learning_rate=3e-2, discount=0.5, entropy_coef=0.0)),
    )),
    reference_seeds=8,
    rounds=2,
)
"""
real_gae = returns.gae


def useless_gae(*arguments: Any) -> jax.Array:
    """Advantages with the wrong sign."""
    return -real_gae(*arguments)


# The program that `check_speed` measures too, so that it is compiled once.
SETTINGS = Settings(Limits(width=8, devices=1))


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "SETTINGS", SETTINGS)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A check with its references."""
    path = tmp_path_factory.mktemp("check") / "small.py"
    path.write_text(FILE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checking, "SETTINGS", SETTINGS)
        patch.setattr(check_speed, "measure", lambda shard: Speed(1.0, 1000, "a device", "0.0"))
        assert command(path, "--refresh", "--reason", " the first ") == 0
    yield path


def command(path: Path, *arguments: str, results: str = "results") -> int:
    """The exit code of `rlsuite check`."""
    return cli.main(["check", str(path), "--results", str(path.parent / results), *arguments])


def edited(path: Path, name: str, old: str, new: str) -> Path:
    """The check with something else in it, beside the same references."""
    assert old in path.read_text()
    other = path.with_name(name)
    other.write_text(path.read_text().replace(old, new))
    return other


def message(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on standard error."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


# --- References -------------------------------------------------------------------------------------------------------


def test_a_reference_is_small_and_says_where_it_comes_from(file: Path) -> None:
    folder = file.parent / "references" / "small"
    assert {path.name for path in folder.iterdir()} == {f"{NAME}.parquet", f"{NAME}.json"}
    assert sum(path.stat().st_size for path in folder.iterdir()) < 20_000
    manifest = json.loads((folder / f"{NAME}.json").read_text())
    assert manifest["config_hash"] and manifest["device"] and manifest["versions"]["jax"]
    assert manifest["seeds"] == list(range(8))
    (refreshed,) = manifest["refreshed"]
    assert refreshed["reason"] == "the first" and refreshed["created"] and refreshed["config_hash"]
    assert pq.read_schema(folder / f"{NAME}.parquet").names == [
        *("experiment", "label", "algorithm", "environment", "config_hash", "run", "seed"),
        *("step", "wall_seconds", "return_mean", "diverged"),
    ]


def test_analysis_reads_references_as_it_reads_results(file: Path) -> None:
    folder = file.parent / "references" / "small"
    scores = analysis.score(analysis.load(folder), analysis.manifests(folder))
    task = scores.tasks["ppo", "probe/action/discrete"]
    assert task.runs == 8 and task.evaluated.all() and len(task.steps) == 6
    assert task.final.mean() > 0.9 > 0.7 > task.untrained.mean()


def test_a_second_reason_joins_the_first(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = checking.reference_shards(checking.load(file))[NAME]
    store = Store(next((file.parent / "results" / "small").iterdir()) / "references")
    for reason in ("one", "two"):
        check_references.write(store, NAME, shard, Speed(1.0, 1, "", ""), tmp_path, reason)
    manifest = json.loads((tmp_path / f"{NAME}.json").read_text())
    assert [each["reason"] for each in manifest["refreshed"]] == ["one", "two"]
    assert [path.name for path in tmp_path.glob(".*")] == []


# --- Verdicts ---------------------------------------------------------------------------------------------------------


def test_the_same_program_passes_at_once(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(file) == 0
    printed = capsys.readouterr().out
    assert "identical" in printed and "PASS: none of 1 cells" in printed and "round 2" not in printed
    # Results of the same code are kept, and are where the command says.
    assert command(file) == 0
    printed = capsys.readouterr().out
    assert "done before, kept" in printed
    (table,) = (file.parent / "results" / "small").glob("*/check.csv")
    assert str(table) in printed


def test_a_planted_bug_turns_it_red(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(returns, "gae", useless_gae)
    assert command(file, results="broken") == 1
    assert f"FAIL: {NAME}" in capsys.readouterr().out
    (figure,) = (file.parent / "broken" / "small").glob("*/*.png")
    assert figure.name == f"{NAME}.png"


def test_a_changed_cell_is_no_verdict_but_an_error(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, old, new in (
        ("config_hash", "num_epochs=2", "num_epochs=1"),
        ("steps", "128 * 20", "128 * 21"),
        ("evaluations", "evaluations=5", "evaluations=4"),
        ("hypers", "discount=0.5", "discount=0.6"),
    ):
        assert command(edited(file, f"{name}.py", old, new)) == 2
        said = message(capsys)
        assert f"of another cell: its {name} is" in said and f"--refresh --cells {NAME} --reason 'WHY'" in said


def test_other_code_never_takes_these_results(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check = checking.load(file)
    state = checking.code_state(check)
    assert checking.code_state(check) == state
    assert checking.code_state(dataclasses.replace(check, rounds=3)) != state
    assert checking.code_state(dataclasses.replace(check, margins={NAME: 0.1})) != state
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "versions", lambda: {"jax": "another"})
        assert checking.code_state(check) != state
    real_read = Path.read_bytes
    gae = ROOT / "rlsuite" / "pieces" / "returns.py"
    monkeypatch.setattr(Path, "read_bytes", lambda path: real_read(path) + (b"#" if path == gae else b""))
    assert checking.code_state(check) != state


def test_other_data_never_take_these_results(tmp_path: Path) -> None:
    data = tmp_path / "data.hdf5"
    data.write_bytes(b"one")
    cell = Cell("td3_bc", "gymnax/Pendulum-v1", 10, dataset=str(data))
    check = checking.Check(Experiment("offline", "text", (cell,)), reference_seeds=8)
    state = checking.code_state(check)
    assert checking.code_state(check) == state
    data.write_bytes(b"two")
    assert checking.code_state(check) != state


# --- Rounds -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[str, int, int]]]:
    """(name, first seed, seeds) of the shards of each call of the executor, which trains none."""
    calls: list[list[tuple[str, int, int]]] = []

    def run(shards: list[job.Job], store: Store, settings: Settings) -> None:
        calls.append([(checking.reference_name(s), s.cell.first_seed, s.cell.seeds) for s in shards])

    monkeypatch.setattr(local, "run", run)
    return calls


def test_only_what_is_inconclusive_gets_more_seeds(
    file: Path, tmp_path: Path, trained: list[list[tuple[str, int, int]]]
) -> None:
    check = checking.load(file)
    (cell,) = check.experiment.cells
    cells = (dataclasses.replace(cell, label="a"), dataclasses.replace(cell, label="b", first_seed=100))
    check = dataclasses.replace(check, experiment=dataclasses.replace(check.experiment, cells=cells), rounds=3)
    a, b = checking.choose(check, None)
    looks: list[dict[str, int]] = []

    def judge(there: dict[str, list[job.Job]]) -> list[bool]:
        looks.append({name: len(shards) for name, shards in there.items()})
        return [name == b for name in there]

    store = Store(tmp_path)
    assert checking.run(check, [a, b], store, judge, bool) == [False, True]
    assert trained == [[(a, 0, 8), (b, 100, 8)], [(b, 108, 8)], [(b, 116, 8)]]
    assert looks == [{a: 1, b: 1}, {a: 1, b: 2}, {a: 1, b: 3}]
    trained.clear()
    assert checking.run(check, [a], store, judge, bool) == [False]
    assert trained == [[(a, 0, 8)]]


# --- Speed and memory -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "code", "said"),
    [
        (Speed(0.6, 1200, "a device", "0.0"), 0, "PASS"),
        (Speed(5.0, 10, "a device", "0.0"), 0, "PASS"),
        (Speed(0.4, 1000, "a device", "0.0"), 1, "slower"),
        (Speed(1.0, 1300, "a device", "0.0"), 1, "more memory"),
        (Speed(0.4, 1300, "a device", "0.0"), 1, "slower, more memory"),
        (Speed(0.4, 1300, "another device", "0.0"), 1, "slower (memory not compared: made on a device, jax 0.0)"),
        (Speed(1.0, 1300, "a device", "0.1"), 0, "PASS (memory not compared: made on a device, jax 0.0)"),
    ],
)
def test_speed_and_memory(
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    now: Speed,
    code: int,
    said: str,
) -> None:
    monkeypatch.setattr(check_speed, "measure", lambda shard: now)
    assert command(file, "--speed") == code
    printed = capsys.readouterr().out.splitlines()
    (line,) = [line for line in printed if line.startswith(NAME)]
    assert line.endswith(f"  {said}")
    assert printed[-1].startswith("FAIL: ppo" if code else "PASS: none")


def test_what_is_measured(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    """With a made-up clock: a run-update takes 2 seconds, or 4, and a round of the calibrating program 3."""
    update_seconds = 2.0
    done = []

    def seconds(work: Callable[[int], None], count: int) -> float:
        work(count)
        done.append((work is check_speed.calibrate, count))
        return count * (3.0 if work is check_speed.calibrate else update_seconds * check_speed.WIDTH)

    monkeypatch.setattr(check_speed, "seconds", seconds)
    (shard,) = checking.round_jobs(checking.load(file), 0).values()
    found = check_speed.measure(shard)
    update_seconds = 4.0
    slower = check_speed.measure(shard)
    assert (found.relative, slower.relative) == (3.0 / 2.0, 3.0 / 4.0)
    # In turns, so that other work on the machine slows down both.
    assert [calibrating for calibrating, _ in done[-2 * check_speed.REPEATS :]] == [False, True] * check_speed.REPEATS
    assert found.peak_bytes == slower.peak_bytes > 8 * 4 * 100  # eight runs of a hundred numbers at least
    assert (found.device, found.jax) == (jax.local_devices()[0].device_kind, jax.__version__)


# --- What is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--refresh"], "--refresh needs a reason"),
        (["--refresh", "--reason", "  "], "--refresh needs a reason"),
        (["--reason", "why not"], "--reason is for --refresh"),
        (["--speed", "--refresh", "--reason", "x"], "leave out --speed"),
        (["--cells", "ppo"], f"no cell 'ppo' in check 'small'; there are: {NAME}"),
        (["--references", "nowhere"], f"--refresh --cells {NAME} --reason 'WHY'"),
    ],
)
def test_arguments(file: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    assert command(file, *arguments) == 2
    assert said in message(capsys)


TWO = "hypers=(ppo.Hypers(), ppo.Hypers(discount=0.5))"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("CHECK = ", "OTHER = ", "must define CHECK = rlsuite.commands.check.Check(...)"),
        ("reference_seeds=8", "reference_seeds=0", "reference_seeds=0 must be at least 1"),
        ("rounds=2", "rounds=0", "rounds=0 must be at least 1"),
        ("rounds=2", "rounds=2, margins={'ppo': 0.1}", f"margins of ppo, but the cells are {NAME}"),
        (
            "hypers=ppo.Hypers(learning_rate=3e-2, discount=0.5, entropy_coef=0.0)",
            TWO,
            "a cell of a check has one setting",
        ),
        ("    )),\n", "        Cell('ppo', 'probe/action/discrete', 128),\n    )),\n", f"2 cells called {NAME}"),
    ],
)
def test_checks_that_cannot_be_run(file: Path, old: str, new: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        checking.load(edited(file, "other.py", old, new))
    assert said in str(refused.value)


# --- The cells that we ship -------------------------------------------------------------------------------------------


def test_the_references_that_we_ship_are_of_the_cells_that_we_ship(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in a fresh clone, whose folder has another name."""
    monkeypatch.chdir(ROOT)
    check = checking.load(checking.FILE)
    folder = Path("experiments/references/check")
    shards = checking.round_jobs(check, 0)
    assert {path.stem for path in folder.iterdir()} == set(shards)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 200_000
    references = regression.read(folder, {name: [name] for name in shards})
    for name, shard in shards.items():
        regression.check_same(check_references.read_manifest(folder, name, ""), shard.describe(), "refresh it")
        assert references[name].runs == check.reference_seeds
        regression.check_curves(references[name], references[name])
        regression.claims(references[name], references[name], repetitions=40)  # it has learned something
    offline, on_policy, off_policy = "td3_bc", "ppo", "sac"
    assert {shard.cell.algorithm for shard in shards.values()} >= {offline, on_policy, off_policy}
