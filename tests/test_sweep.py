"""From an experiment to shards and through the local executor, with made-up training: nothing is compiled here."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from rlsuite import batch, local, sweep
from rlsuite.algorithms import ppo, sac
from rlsuite.core import UserError
from rlsuite.progress import duration, evaluation_line, interquartile_mean, quantity
from rlsuite.store import Store
from rlsuite.sweep import Cell, Experiment, Reference, Shard
from rlsuite.train import Evaluation, evaluation_points

CELL = Cell("ppo", "probe/action/discrete", 4096, seeds=4, evaluations=2, eval_episodes=3)
REFERENCE = Reference(0.5, 1.0, "the uniform policy", "the optimal policy")


# --- Identity ---------------------------------------------------------------------------------------------------------

OTHERS: dict[str, dict[str, Any]] = {
    "algorithm": {"algorithm": "sac", "environment": "probe/action/continuous"},
    "environment": {"environment": "probe/action/continuous"},
    "steps": {"steps": 4097},
    "seeds": {"seeds": 5},
    "first_seed": {"first_seed": 1},
    "evaluations": {"evaluations": 3},
    "eval_episodes": {"eval_episodes": 4},
    "max_episode_steps": {"max_episode_steps": 9},
    "config": {"config": ppo.Config(clip_value=False)},
    "sizes": {"config": ppo.Config(hidden_sizes=(64, 65))},
    "hypers": {"hypers": ppo.Hypers(discount=0.98)},
    "more hypers": {"hypers": (ppo.Hypers(), ppo.Hypers(discount=0.98))},
    "label": {"label": "baseline"},
}


def test_all_that_the_rows_depend_on_is_in_the_name() -> None:
    cells = [CELL, *(dataclasses.replace(CELL, **other) for other in OTHERS.values())]
    names = [sweep.shard("mine", cell).name for cell in cells]
    assert len(set(names)) == len(names) == len(OTHERS) + 1, names


def test_every_field_of_a_cell_is_thought_of() -> None:
    """A new field either changes the name, and has a line in OTHERS, or has a reason not to."""
    changed = {field for other in OTHERS.values() for field in other}
    assert {field.name for field in dataclasses.fields(Cell)} == changed | {"reference"}


@pytest.mark.parametrize(
    "same",
    [
        {"config": ppo.Config()},
        {"hypers": ppo.Hypers()},
        {"hypers": (None,)},
        {"label": "ppo"},
        # Only how scores are read.
        {"reference": REFERENCE},
    ],
    ids=str,
)
def test_what_is_spelled_out_or_only_shown_is_the_same_shard(same: dict[str, Any]) -> None:
    assert sweep.shard("mine", dataclasses.replace(CELL, **same)).name == sweep.shard("mine", CELL).name


def test_whole_hyperparameters_are_floats() -> None:
    names = {
        sweep.shard("mine", dataclasses.replace(CELL, hypers=ppo.Hypers(discount=discount))).name
        for discount in (1, 1.0)
    }
    assert len(names) == 1


def test_the_name_begins_with_label_and_environment() -> None:
    assert sweep.shard("mine", CELL).name.startswith("ppo__probe-action-discrete__")
    labelled = dataclasses.replace(CELL, label="PPO, no clip (v1.0)")
    assert sweep.shard("mine", labelled).name.startswith("PPO, no clip (v1.0)__probe-action-discrete__")


def experiment_file(path: Path, name: str) -> Path:
    path.write_text(
        "from rlsuite.sweep import Cell, Experiment\n"
        f"EXPERIMENT = Experiment({name!r}, 'text', (Cell('ppo', 'probe/action/discrete', 4096, seeds=4),))\n"
    )
    return path


def test_the_name_depends_on_neither_experiment_nor_folder(tmp_path: Path) -> None:
    experiments = [sweep.load(experiment_file(tmp_path / f"{name}.py", name)) for name in ("one", "two")]
    [one], [two] = map(sweep.shards, experiments)
    assert (one.experiment, two.experiment) == ("one", "two")
    assert Store(tmp_path / "a").path(one).name == Store(tmp_path / "b").path(two).name


def test_every_setting_has_every_seed() -> None:
    low, high = ppo.Hypers(learning_rate=1e-4), ppo.Hypers(learning_rate=1e-3)
    cell = dataclasses.replace(CELL, seeds=2, first_seed=7, hypers=(low, high))
    assert sweep.shard("mine", cell).runs == ((7, low), (8, low), (7, high), (8, high))


def test_label_and_reference_are_described() -> None:
    described = sweep.shard("mine", dataclasses.replace(CELL, label="mine too", reference=REFERENCE)).describe()
    assert described["label"] == "mine too"
    assert described["reference"] == {
        "low": 0.5,
        "high": 1.0,
        "low_source": "the uniform policy",
        "high_source": "the optimal policy",
    }
    assert json.loads(json.dumps(described))["reference"]["high"] == 1.0


# --- Errors -----------------------------------------------------------------------------------------------------------


def refusal(act: Callable[[], object]) -> str:
    with pytest.raises(UserError) as raised:
        act()
    message = str(raised.value)
    assert "\n" not in message
    return message


CELL_ERRORS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "algorithm": ({"algorithm": "pp"}, ["unknown algorithm 'pp'", "did you mean 'ppo'?"]),
    "environment": ({"environment": "probe/acton/discrete"}, ["did you mean 'probe/action/discrete'?"]),
    "steps as a float": ({"steps": 1e6}, ["steps=1000000.0", "of type int"]),
    "seeds as a flag": ({"seeds": True}, ["seeds=True", "of type int"]),
    "seeds": ({"seeds": 0}, ["seeds=0", "at least 1"]),
    "first seed": ({"first_seed": 2**32 - 3}, ["first_seed=4294967293 with 4 seeds", "smaller"]),
    "config of another": ({"config": sac.Config()}, ["config of 'ppo'", "its Config"]),
    "sizes as a list": ({"config": ppo.Config(hidden_sizes=[8])}, ["hidden_sizes=[8]", "tuple", "(64, 64)"]),  # type: ignore[arg-type]
    "size as text": ({"config": ppo.Config(num_envs="8")}, ["num_envs='8'", "of type int"]),  # type: ignore[arg-type]
    "config that cannot work": ({"config": ppo.Config(num_minibatches=7)}, ["num_minibatches=7", "divisor"]),
    "hypers of another": ({"hypers": sac.Hypers()}, ["hypers of 'ppo'", "its Hypers"]),
    "hypers in a list": ({"hypers": [ppo.Hypers()]}, ["hypers of 'ppo'", "got list"]),
    "no hypers": ({"hypers": ()}, ["one or more different settings", "got ()"]),
    "same hypers twice": ({"hypers": (None, ppo.Hypers())}, ["different settings", "twice"]),
    "NaN": ({"hypers": ppo.Hypers(discount=float("nan"))}, ["discount=nan", "finite", "0.99"]),
    "text": ({"hypers": ppo.Hypers(discount="0.9")}, ["discount='0.9'", "finite number"]),  # type: ignore[arg-type]
    "empty label": ({"label": ""}, ["label ''"]),
    "label that escapes": ({"label": "../x"}, ["label '../x'", "file name"]),
    "label of two lines": ({"label": "a\nb"}, ["label 'a\\nb'"]),
    "label too long": ({"label": "x" * 81}, ["at most 80"]),
}


@pytest.mark.parametrize("name", CELL_ERRORS)
def test_a_cell_that_cannot_work_is_refused(name: str) -> None:
    changes, expected = CELL_ERRORS[name]
    message = refusal(lambda: sweep.shard("mine", dataclasses.replace(CELL, **changes)))
    assert [part for part in expected if part not in message] == [], message


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "/tmp/x", "a\\b", ".hidden", "a\n", "x" * 81])
def test_an_experiment_stays_in_its_folder(name: str) -> None:
    assert f"experiment name {name!r}" in refusal(lambda: sweep.shards(Experiment(name, "text", (CELL,))))


@pytest.mark.parametrize("cells", [(), CELL, None], ids=["none", "one without its comma", "nothing"])
def test_an_experiment_needs_a_tuple_of_cells(cells: Any) -> None:
    assert "(Cell(...),)" in refusal(lambda: sweep.shards(Experiment("mine", "text", cells)))


def test_identical_cells_are_refused_and_a_label_tells_them_apart() -> None:
    spelled_out = dataclasses.replace(CELL, config=ppo.Config())
    message = refusal(lambda: sweep.shards(Experiment("mine", "text", (CELL, spelled_out))))
    assert "two identical cells" in message and sweep.shard("mine", CELL).name in message
    labelled = dataclasses.replace(CELL, label="again")
    assert len(sweep.shards(Experiment("mine", "text", (CELL, labelled)))) == 2


def test_an_error_names_its_cell() -> None:
    bad = dataclasses.replace(CELL, steps=-1)
    message = refusal(lambda: sweep.shards(Experiment("mine", "text", (CELL, bad))))
    assert message.startswith("cell 1 of experiment 'mine': steps=-1")


def test_a_missing_file_shows_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert refusal(lambda: sweep.load("quik.py")) == "no experiment file 'quik.py'; give its path"
    (tmp_path / "experiments").mkdir()
    for name in ("__init__", "quick", "main"):
        (tmp_path / "experiments" / f"{name}.py").touch()
    expected = "no experiment file 'quik.py'; there are: experiments/main.py, experiments/quick.py"
    assert refusal(lambda: sweep.load("quik.py")) == expected
    assert "no experiment file 'experiments'" in refusal(lambda: sweep.load("experiments"))


# --- The local executor -----------------------------------------------------------------------------------------------


def made_up(diverged: int = 0) -> Callable[..., Iterator[Evaluation]]:
    """A `train` that takes a second an evaluation and learns nothing; the last runs diverge after the first one."""

    def train(programs: tuple[int, int], total_updates: int, num_evaluations: int) -> Iterator[Evaluation]:
        runs, episodes = programs
        for i, update in enumerate(evaluation_points(total_updates, num_evaluations)):
            yield Evaluation(
                update=update,
                step=update * 2048,
                wall_seconds=i + 1.0,
                returns=np.ones((runs, episodes), np.float32),
                lengths=np.ones((runs, episodes), np.int32),
                metrics={},
                diverged=np.arange(runs) >= runs - (diverged if update else 0),
            )

    return train


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Training replaced by a made-up one; the seeds of every shard that was started."""
    started: list[tuple[int, ...]] = []

    def compile_programs(algorithm: Any, task: Any, seeds: Any, hypers: Any, episodes: int) -> tuple[Any, float]:
        started.append(tuple(seeds))
        return (len(seeds), episodes), 90.0

    monkeypatch.setattr(batch, "compile_programs", compile_programs)
    monkeypatch.setattr(local, "train", made_up())
    return started


def three_shards() -> list[Shard]:
    cells = tuple(dataclasses.replace(CELL, first_seed=4 * i, reference=REFERENCE) for i in range(3))
    return sweep.shards(Experiment("mine", "text", cells))


def test_only_what_is_missing_runs(
    tmp_path: Path, compiled: list[tuple[int, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    store, shards = Store(tmp_path), three_shards()
    local.run(shards[1:2], store)
    assert compiled == [(4, 5, 6, 7)]
    there = store.path(shards[1]).read_bytes()
    capsys.readouterr()

    local.run(shards, store)
    assert compiled[1:] == [(0, 1, 2, 3), (8, 9, 10, 11)]
    assert store.path(shards[1]).read_bytes() == there
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("[")] == [
        "[1/3] ppo on probe/action/discrete, 4 runs x 4.1k steps",
        "[2/3] ppo on probe/action/discrete, 4 runs: done before, kept",
        "[3/3] ppo on probe/action/discrete, 4 runs x 4.1k steps",
    ]
    assert lines[-1].startswith(f"3 of 3 shards in {tmp_path} after ")
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{one.name}{suffix}" for one in shards for suffix in (".parquet", ".json")
    }


def test_a_failing_shard_leaves_the_finished_ones(
    tmp_path: Path, compiled: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, shards = Store(tmp_path), three_shards()
    write_table = pq.write_table

    def full(table: Any, target: str, **options: Any) -> None:
        if shards[1].name in target:
            raise OSError(28, "No space left on device")
        write_table(table, target, **options)

    monkeypatch.setattr(pq, "write_table", full)
    message = refusal(lambda: local.run(shards, store))
    assert shards[1].name in message and "No space left on device" in message
    assert [store.has(one) for one in shards] == [True, False, False]
    assert not store.partial_path(shards[1]).exists()


def test_the_manifest_of_a_finished_shard(tmp_path: Path, compiled: list[tuple[int, ...]]) -> None:
    store, shards = Store(tmp_path), three_shards()
    local.run(shards[:1], store)
    manifest = json.loads((tmp_path / f"{shards[0].name}.json").read_text())
    assert (manifest["compile_seconds"], manifest["run_seconds"], manifest["total_updates"]) == (90.0, 3.0, 2)
    assert manifest["reference"] == REFERENCE._asdict()
    assert manifest["diverged"] == 0


# --- Progress ---------------------------------------------------------------------------------------------------------


def test_compile_time_is_shown_apart_from_speed_and_eta(
    tmp_path: Path,
    compiled: list[tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(local, "train", made_up(diverged=3))
    [one, *_] = three_shards()
    local.run([one], Store(tmp_path))
    # 2048 steps of 4 runs in 2 seconds, 4096 in 3: the 90 seconds of compiling are in neither speed nor ETA.
    assert capsys.readouterr().out.splitlines()[1:5] == [
        "  compiled in 1m30s",
        "    0%  step     0  return IQM      1.00",
        "   50%  step 2.05k  return IQM      1.00   4.1k steps/s  ETA 2.0s  DIVERGED 3/4",
        "  100%  step  4.1k  return IQM      1.00  5.46k steps/s  DIVERGED 3/4",
    ]
    manifest = json.loads((tmp_path / f"{one.name}.json").read_text())
    assert manifest["diverged"] == 3


def test_a_run_that_diverged_does_not_hide_the_others() -> None:
    shard = sweep.shard("mine", CELL)
    returns = np.array([[np.nan], [1.0], [3.0], [np.inf]])
    evaluation = Evaluation(1, 2048, 1.0, returns, np.ones((4, 1)), {}, np.array([True, False, False, True]))
    line = evaluation_line(shard, evaluation, 8192)
    assert "return IQM      2.00" in line and "DIVERGED 2/4" in line and "ETA 3.0s" in line


def test_the_interquartile_mean_is_of_the_middle_half() -> None:
    assert interquartile_mean(np.array([1000.0, 2.0, 1.0, -1000.0])) == 1.5
    assert np.isnan(interquartile_mean(np.array([np.nan, np.inf])))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0s"),
        (4.23, "4.2s"),
        (59.94, "59.9s"),
        (59.96, "1m00s"),
        (185, "3m05s"),
        (3599.6, "1h00m"),
        (7620, "2h07m"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (12.34, "12.3"),
        (950, "950"),
        (999.4, "999"),
        (999.9, "1k"),
        (12_345, "12.3k"),
        (999_900, "1M"),
        (4_560_000, "4.56M"),
        (2e9, "2G"),
        (3e12, "3T"),
        (-1500, "-1.5k"),
    ],
)
def test_quantities(value: float, text: str) -> None:
    assert quantity(value) == text
