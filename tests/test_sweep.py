"""From an experiment to shards and through the local executor, with made-up programs: nothing is compiled here."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import h5py
import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from jax import ShapeDtypeStruct
from test_store import another_process

from rlsuite import algorithms
from rlsuite.algorithms.off_policy import sac
from rlsuite.algorithms.on_policy import ppo
from rlsuite.commands import cli
from rlsuite.core import Preset
from rlsuite.errors import Stopped, UserError
from rlsuite.sweeping import catalogue, checks, chunk, job, local, manifest, policies, sweep
from rlsuite.sweeping.catalogue import Found
from rlsuite.sweeping.entry import Entry
from rlsuite.sweeping.job import Job
from rlsuite.sweeping.rows import Part
from rlsuite.sweeping.settings import Settings
from rlsuite.sweeping.store import Store
from rlsuite.sweeping.sweep import Cell, Experiment, Reference
from rlsuite.training import batch, memory, plan, progress
from rlsuite.training import train as training
from rlsuite.training.evaluate import Episodes
from rlsuite.training.plan import Limits
from rlsuite.training.progress import duration, interquartile_mean, quantity
from rlsuite.training.train import Checkup, Evaluation, Learning, Pause, Programs, Training

ROOT = Path(__file__).resolve().parent.parent
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
    names = [job.resolve("mine", cell).name for cell in cells]
    assert len(set(names)) == len(names) == len(OTHERS) + 1, names


def test_every_field_of_a_cell_is_thought_of() -> None:
    """A new field either changes the name, and has a line in OTHERS, or has a reason not to.

    What evaluations are played on does change it, see tests/test_host.py, which has the environments for it; so do the
    dataset, its sampling and the clipping of its actions, see tests/test_offline.py.
    """
    changed = {field for other in OTHERS.values() for field in other}
    assert {field.name for field in dataclasses.fields(Cell)} == changed | {
        *("reference", "evaluation_physics", "dataset", "sampling", "clip_actions")
    }


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
    assert job.resolve("mine", dataclasses.replace(CELL, **same)).name == job.resolve("mine", CELL).name


def test_whole_hyperparameters_are_floats() -> None:
    names = {
        job.resolve("mine", dataclasses.replace(CELL, hypers=ppo.Hypers(discount=discount))).name
        for discount in (1, 1.0)
    }
    assert len(names) == 1


def test_props_shards_keep_the_names_of_the_time_when_ros_was_a_setting_of_it() -> None:
    props = algorithms.get("props")
    cell = Cell("props", "probe/action/discrete", 512, seeds=2, evaluations=2, eval_episodes=2)
    cell = dataclasses.replace(cell, config=props.trial.config, hypers=props.trial.hypers)
    assert job.resolve("mine", cell).name == "props__probe-action-discrete__ea974ecc"  # as commit cde63a0 names it


def test_a_policy_of_a_setting_that_is_gone_is_refused_by_its_value() -> None:
    former = algorithms.get("props").former
    assert policies.without_former({"behavior": "props", "num_envs": 4}, former) == {"num_envs": 4}
    with pytest.raises(ValueError, match="behavior='ros', a method of its own now: `rlsuite list algorithms`"):
        policies.without_former({"behavior": "ros", "num_envs": 4}, former)


def test_the_name_begins_with_label_and_environment() -> None:
    assert job.resolve("mine", CELL).name.startswith("ppo__probe-action-discrete__")
    labelled = dataclasses.replace(CELL, label="PPO, no clip (v1.0)")
    assert job.resolve("mine", labelled).name.startswith("PPO, no clip (v1.0)__probe-action-discrete__")


def experiment_file(path: Path, name: str) -> Path:
    path.write_text(
        "from rlsuite.sweeping.sweep import Cell, Experiment\n"
        f"EXPERIMENT = Experiment({name!r}, 'text', (Cell('ppo', 'probe/action/discrete', 4096, seeds=4),))\n"
    )
    return path


def test_a_file_may_define_several_experiments(tmp_path: Path) -> None:
    path = experiment_file(tmp_path / "both.py", "small")
    path.write_text(path.read_text() + "import dataclasses\nFULL = dataclasses.replace(EXPERIMENT, name='large')\n")
    assert sweep.load(path).name == "small"
    assert sweep.load(f"{path}:FULL").name == "large"
    message = refusal(lambda: sweep.load(f"{path}:HUGE"))
    assert "must define HUGE" in message and f"{path}:EXPERIMENT, {path}:FULL" in message


def test_the_name_depends_on_neither_experiment_nor_folder(tmp_path: Path) -> None:
    experiments = [sweep.load(experiment_file(tmp_path / f"{name}.py", name)) for name in ("one", "two")]
    [one], [two] = map(job.resolve_all, experiments)
    assert (one.experiment, two.experiment) == ("one", "two")
    assert Store(tmp_path / "a").open(one).path.name == Store(tmp_path / "b").open(two).path.name


def test_every_setting_has_every_seed() -> None:
    low, high = ppo.Hypers(learning_rate=1e-4), ppo.Hypers(learning_rate=1e-3)
    cell = dataclasses.replace(CELL, seeds=2, first_seed=7, hypers=(low, high))
    assert job.resolve("mine", cell).runs == ((7, low), (8, low), (7, high), (8, high))


TUNED = Preset(ppo.Config(num_envs=4), ppo.Hypers(learning_rate=1e-3), "somebody's paper")


@pytest.fixture
def tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    """PPO has settings for one environment."""
    spec = dataclasses.replace(algorithms.get("ppo"), presets={"gymnax/CartPole": TUNED})
    monkeypatch.setattr(ppo, "SPEC", spec)


@pytest.mark.usefixtures("tuned")
@pytest.mark.parametrize("env_id", ["gymnax/CartPole-v1", "gymnax/CartPole-v1+reward_scale=2.0"])
def test_settings_of_the_environment_are_the_default(env_id: str) -> None:
    shard = job.resolve("mine", Cell("ppo", env_id, 4096, seeds=1))
    assert (shard.config, shard.runs) == (TUNED.config, ((0, TUNED.hypers),))
    assert shard.describe()["preset"] == "somebody's paper"


@pytest.mark.usefixtures("tuned")
@pytest.mark.parametrize("given", [{"config": ppo.Config()}, {"hypers": (TUNED.hypers, ppo.Hypers())}])
def test_settings_that_are_given_are_nobodys_preset(given: dict[str, Any]) -> None:
    shard = job.resolve("mine", Cell("ppo", "gymnax/CartPole-v1", 4096, seeds=1, **given))
    assert shard.config == given.get("config", TUNED.config)
    assert shard.describe()["preset"] is None


@pytest.mark.usefixtures("tuned")
def test_another_environment_has_the_defaults() -> None:
    shard = job.resolve("mine", Cell("ppo", "gymnax/Acrobot-v1", 4096, seeds=1))
    assert (shard.config, shard.runs) == (ppo.Config(), ((0, ppo.Hypers()),))
    assert shard.describe()["preset"] == "defaults"


def test_the_place_of_a_cell_is_described_and_no_part_of_its_name() -> None:
    cells = tuple(dataclasses.replace(CELL, label=label) for label in ("b", "c", "a"))
    shards = job.resolve_all(Experiment("mine", "three labels", cells))
    assert [(each.describe()["label"], each.describe()["cell"]) for each in shards] == [("b", 0), ("c", 1), ("a", 2)]
    assert shards[2].name == job.resolve("mine", cells[2]).name


def test_label_and_reference_are_described() -> None:
    described = job.resolve("mine", dataclasses.replace(CELL, label="mine too", reference=REFERENCE)).describe()
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
    "sizes below 1": ({"config": ppo.Config(hidden_sizes=(-4,))}, ["hidden_sizes=(-4,)", "at least 1", "(64, 64)"]),
    "sizes in halves": ({"config": ppo.Config(hidden_sizes=(16.5,))}, ["hidden_sizes=(16.5,)", "whole numbers"]),  # type: ignore[arg-type]
    "sizes in words": ({"config": ppo.Config(hidden_sizes=("16",))}, ["hidden_sizes=('16',)", "whole numbers"]),  # type: ignore[arg-type]
    "time limit as text": ({"max_episode_steps": "5"}, ["max_episode_steps='5'", "of type int"]),
    "time limit": ({"max_episode_steps": 0}, ["max_episode_steps must be at least 1, got 0"]),
    "algorithm as a number": ({"algorithm": 1}, ["algorithm=1", "of type str"]),
    "environment of none": ({"environment": None}, ["environment=None", "of type str"]),
    "dataset as a path": ({"dataset": Path("x")}, ["dataset=PosixPath('x')", "of type str"]),
    "sampling as a number": ({"sampling": 0.1}, ["sampling=0.1", "of type str"]),
    "label as a number": ({"label": 3}, ["label 3", "file name"]),
    "config that cannot work": ({"config": ppo.Config(num_minibatches=7)}, ["num_minibatches=7", "divisor"]),
    "hypers of another": ({"hypers": sac.Hypers()}, ["hypers of 'ppo'", "its Hypers"]),
    "hypers in a list": ({"hypers": [ppo.Hypers()]}, ["hypers of 'ppo'", "got list"]),
    "no hypers": ({"hypers": ()}, ["one or more different settings", "got ()"]),
    "same hypers twice": ({"hypers": (None, ppo.Hypers())}, ["different settings", "twice"]),
    "NaN": ({"hypers": ppo.Hypers(discount=float("nan"))}, ["discount=nan", "finite", "0.99"]),
    "text": ({"hypers": ppo.Hypers(discount="0.9")}, ["discount='0.9'", "finite number"]),  # type: ignore[arg-type]
    "learning rate": ({"hypers": ppo.Hypers(learning_rate=-1)}, ["learning_rate=-1", "at least 0", "0.0003"]),
    "discount": ({"hypers": ppo.Hypers(discount=1.01)}, ["discount=1.01", "from 0 to 1", "0.99"]),
    "lambda": ({"hypers": ppo.Hypers(gae_lambda=-0.1)}, ["gae_lambda=-0.1", "from 0 to 1"]),
    "reference as a tuple": ({"reference": (0, 1)}, ["reference=(0, 1)", "must be a Reference, such as Ref"]),
    "reference upside down": ({"reference": Reference(1, 0, "a", "b")}, ["Reference(low=1, high=0", "low below high"]),
    "empty reference": ({"reference": Reference(1, 1, "a", "b")}, ["high=1", "low below high"]),
    "endless reference": ({"reference": Reference(0, float("inf"), "a", "b")}, ["high=inf", "finite numbers"]),
    "reference as text": ({"reference": Reference("0", 1, "a", "b")}, ["low='0'", "finite numbers"]),  # type: ignore[arg-type]
    "reference from nowhere": ({"reference": Reference(0, 1, None, "b")}, ["low_source=None", "in words"]),  # type: ignore[arg-type]
    "empty label": ({"label": ""}, ["label ''"]),
    "label that escapes": ({"label": "../x"}, ["label '../x'", "file name"]),
    "label of two lines": ({"label": "a\nb"}, ["label 'a\\nb'"]),
    "label too long": ({"label": "x" * 81}, ["at most 80"]),
}


@pytest.mark.parametrize("name", CELL_ERRORS)
def test_a_cell_that_cannot_work_is_refused(name: str) -> None:
    changes, expected = CELL_ERRORS[name]
    message = refusal(lambda: job.resolve("mine", dataclasses.replace(CELL, **changes)))
    assert [part for part in expected if part not in message] == [], message


@pytest.mark.parametrize("change", [{"tau": 1.5}, {"critic_learning_rate": -1e-3}], ids=str)
def test_ranges_are_those_of_every_algorithm(change: dict[str, float]) -> None:
    cell = Cell("sac", "probe/action/continuous", 4096, hypers=sac.Hypers(**change))
    [name] = change
    assert refusal(lambda: job.resolve("mine", cell)).startswith(f"{name}={change[name]} must be ")


@pytest.mark.parametrize("name", algorithms.registered())
def test_no_setting_of_a_learner_is_out_of_range(name: str) -> None:
    spec = algorithms.get(name)
    for hypers in (spec.hypers(), spec.trial.hypers, *(preset.hypers for preset in spec.presets.values())):
        for field, value in hypers._asdict().items():
            checks.check_hyper(field, value, 0.5)


def test_the_ends_of_a_range_are_in_it() -> None:
    ends = (ppo.Hypers(0.0, 0.0, 0.0), ppo.Hypers(discount=1.0, gae_lambda=1))
    assert len(job.resolve("mine", dataclasses.replace(CELL, hypers=ends)).runs) == 8


@pytest.mark.parametrize("name", [3, "", ".", "..", "../x", "a/b", "/tmp/x", "a\\b", ".hidden", "a\n", "x" * 81])
def test_an_experiment_stays_in_its_folder(name: Any) -> None:
    assert f"experiment name {name!r}" in refusal(lambda: job.resolve_all(Experiment(name, "text", (CELL,))))


@pytest.mark.parametrize("cells", [(), CELL, None], ids=["none", "one without its comma", "nothing"])
def test_an_experiment_needs_a_tuple_of_cells(cells: Any) -> None:
    assert "(Cell(...),)" in refusal(lambda: job.resolve_all(Experiment("mine", "text", cells)))


def test_a_cell_that_is_none_is_named() -> None:
    experiment = Experiment("mine", "text", (CELL, "ppo"))  # type: ignore[arg-type]
    assert (
        refusal(lambda: job.resolve_all(experiment)) == "cell 1 of experiment 'mine': expected a Cell(...), got 'ppo'"
    )


def test_a_network_may_have_no_hidden_layer() -> None:
    assert job.resolve("mine", dataclasses.replace(CELL, config=ppo.Config(hidden_sizes=()))).config.hidden_sizes == ()


def test_identical_cells_are_refused_and_a_label_tells_them_apart() -> None:
    spelled_out = dataclasses.replace(CELL, config=ppo.Config())
    message = refusal(lambda: job.resolve_all(Experiment("mine", "text", (CELL, spelled_out))))
    assert "two identical cells" in message and job.resolve("mine", CELL).name in message
    labelled = dataclasses.replace(CELL, label="again")
    assert len(job.resolve_all(Experiment("mine", "text", (CELL, labelled)))) == 2


def test_an_error_names_its_cell() -> None:
    bad = dataclasses.replace(CELL, steps=-1)
    message = refusal(lambda: job.resolve_all(Experiment("mine", "text", (CELL, bad))))
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


class Clock:
    """Stands in for the module `time`: seconds pass only where a test lets them."""

    def __init__(self) -> None:
        self.now = 0.0
        self.on_sleep: Callable[[], None] = lambda: None

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.on_sleep()


class MadeUp:
    """Programs that need no compiler, under the real loop, executor, snapshots and store.

    Compiling takes 90 seconds, starting takes one and so does every update; evaluations and all else take no time. What
    a run computes depends on its seed and on the order of all its updates.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.clock = Clock()
        self.started: list[tuple[int, ...]] = []
        """the seeds of every chunk that was trained, as a whole or to its end"""
        self.updates: list[tuple[int, int]] = []
        """(first seed, index) of every update of a chunk"""
        self.before_update: Callable[[int, int], None] = lambda first_seed, index: None
        self.diverging = 0
        """that many of the last runs of a chunk are not finite after the first update"""
        for module in (local, progress, training):
            patch.setattr(module, "time", self.clock)
        patch.setattr(batch, "compile_programs", self.compile)
        patch.setattr(batch, "learning_bytes", lambda algorithm, task, hypers, devices: 8)
        patch.setattr(manifest, "git_revision", lambda: None)  # which asks git about the whole tree
        patch.setattr(memory, "peak_bytes", lambda: 10**9)
        patch.setattr(memory, "peak_with", lambda device_bytes, devices: 2 * 10**9)

    def compile(
        self, algorithm: Any, task: Any, hypers: Any, width: int, num_episodes: int, devices: Any = None
    ) -> batch.Compiled:
        self.clock.now += 90

        def runs(seeds: Sequence[int], hypers: Any) -> np.ndarray:
            self.started.append(tuple(seeds))
            return np.array([*seeds, *[seeds[-1]] * (width - len(seeds))], np.int64)

        def init(runs: np.ndarray) -> Learning:
            self.clock.now += 1
            return Learning({"value": 1.0 * runs, "unused": np.zeros((width, 0))}, {"loss": np.zeros(width)})

        def segment(
            runs: np.ndarray, learning: Learning, start: int, stop: int, total: int, evaluated: int
        ) -> Learning:
            value = learning.state["value"]
            loss = learning.sums["loss"] * (start != evaluated)
            for index in range(start, stop):
                self.before_update(int(runs[0]), index)
                self.updates.append((int(runs[0]), index))
                self.clock.now += 1
                value = 0.5 * value + runs + index
                loss = loss + value
            return Learning({**learning.state, "value": value}, {"loss": loss})

        def checkup(runs: np.ndarray, learning: Learning, index: int, updates: int, frozen: np.ndarray) -> Checkup:
            returns = learning.state["value"][:, None] + np.arange(num_episodes)
            there = np.ones((width, num_episodes), bool)
            episodes = Episodes(returns, np.ones((width, num_episodes), np.int32), there, there)
            chunk = len(self.started[-1])
            lost = np.arange(width) >= chunk - (self.diverging if index else 0)
            metrics = {"loss": learning.sums["loss"] / max(updates, 1)}
            return Checkup(episodes, metrics, lost.astype(np.uint8))

        learning = Learning(
            {"value": ShapeDtypeStruct((width,), np.float64), "unused": ShapeDtypeStruct((width, 0), np.float64)},
            {"loss": ShapeDtypeStruct((width,), np.float64)},
        )
        programs = Programs(width, runs, init, segment, checkup, lambda learning: learning, algorithm.steps_per_update)
        return batch.Compiled(programs, learning, batch.Memory(learning=8, peak=64), 90.0, None)


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> MadeUp:
    return MadeUp(monkeypatch)


def at_once(width: int, save_every: float = 300.0) -> Settings:
    """So many runs at once, on one device."""
    return Settings(Limits(width=width, devices=1), save_every)


def three_shards() -> list[Job]:
    """Of four runs and two updates each."""
    cells = tuple(dataclasses.replace(CELL, first_seed=4 * i, reference=REFERENCE) for i in range(3))
    return job.resolve_all(Experiment("mine", "text", cells))


def long_shard() -> Job:
    """Five runs of twelve updates, evaluated after 0, 4, 8 and 12."""
    return job.resolve("mine", dataclasses.replace(CELL, steps=12 * 2048, seeds=5, evaluations=3))


def rows_of(store: Store, shard: Job, clock: bool = False) -> list[dict[str, Any]]:
    """The finished rows, without the one column that may differ, or with it."""
    table = pq.read_table(store.open(shard).path)
    return (table if clock else table.drop_columns(["wall_seconds"])).to_pylist()


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def undisturbed(tmp_path: Path, made_up: MadeUp) -> list[dict[str, Any]]:
    """The rows of `long_shard` from one process that nothing stops, two runs at once; their clock included."""
    store = Store(tmp_path / "undisturbed")
    local.run([long_shard()], store, at_once(2))
    made_up.started.clear()
    made_up.updates.clear()
    return rows_of(store, long_shard(), clock=True)


def test_only_what_is_missing_runs(tmp_path: Path, made_up: MadeUp, capsys: pytest.CaptureFixture[str]) -> None:
    store, shards = Store(tmp_path), three_shards()
    local.run(shards[1:2], store, at_once(4))
    assert made_up.started == [(4, 5, 6, 7)]
    there = store.open(shards[1]).path.read_bytes()
    capsys.readouterr()

    local.run(shards, store, at_once(4))
    assert made_up.started[1:] == [(0, 1, 2, 3), (8, 9, 10, 11)]
    assert store.open(shards[1]).path.read_bytes() == there
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("[")] == [
        "[1/3] ppo on probe/action/discrete, 4 runs x 4.1k steps",
        "[2/3] ppo on probe/action/discrete, 4 runs: done before, kept",
        "[3/3] ppo on probe/action/discrete, 4 runs x 4.1k steps",
    ]
    assert lines[-1].startswith(f"3 of 3 shards in {tmp_path} after ")
    assert names_in(tmp_path) == {f"{one.name}{suffix}" for one in shards for suffix in (".parquet", ".json")}


def test_a_failing_shard_leaves_the_finished_ones(
    tmp_path: Path, made_up: MadeUp, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, shards = Store(tmp_path), three_shards()
    write_table = pq.write_table

    def full(table: Any, target: str, **options: Any) -> None:
        if shards[1].name in target:
            raise OSError(28, "No space left on device")
        write_table(table, target, **options)

    with monkeypatch.context() as patch:
        patch.setattr(pq, "write_table", full)
        message = refusal(lambda: local.run(shards, store, at_once(4)))
    assert shards[1].name in message and "No space left on device" in message
    assert [store.open(one).finished() for one in shards] == [True, False, False]
    assert store.open(shards[1]).parts() == []
    # With space again, the same command does the rest, and nothing is left of the failure.
    local.run(shards, store, at_once(4))
    assert names_in(tmp_path) == {f"{one.name}{suffix}" for one in shards for suffix in (".parquet", ".json")}
    assert made_up.started == [(0, 1, 2, 3), (4, 5, 6, 7), (4, 5, 6, 7), (8, 9, 10, 11)]


def test_the_manifest_of_a_finished_shard(tmp_path: Path, made_up: MadeUp) -> None:
    store, shards = Store(tmp_path), three_shards()
    local.run(shards[:1], store, at_once(4))
    manifest = json.loads((tmp_path / f"{shards[0].name}.json").read_text())
    # Neither compiling nor starting is training.
    assert (manifest["compile_seconds"], manifest["run_seconds"], manifest["total_updates"]) == (90.0, 2.0, 2)
    assert manifest["plan"] == {"width": 4, "devices": 1, "peak_memory_bytes": 2 * 10**9}
    assert manifest["peak_memory_bytes"] == 10**9
    assert manifest["reference"] == REFERENCE._asdict()
    assert manifest["diverged"] == 0
    assert len(manifest["sessions"]) == 1


def test_a_finished_shard_gets_the_reference_that_its_cell_has_now(
    tmp_path: Path, made_up: MadeUp, capsys: pytest.CaptureFixture[str]
) -> None:
    store, [one, two, _] = Store(tmp_path), three_shards()
    local.run([one, two], store, at_once(4))
    before, rows, second_manifest = (
        store.open(one).manifest(),
        store.open(one).path.read_bytes(),
        store.open(two).manifest_path.read_bytes(),
    )
    for reference, text in ((Reference(0, 2, "a", "b"), "0 (a) to 2 (b)"), (None, "none")):
        changed = job.resolve("mine", dataclasses.replace(one.cell, reference=reference))
        capsys.readouterr()
        local.run([changed, two], store, at_once(4))
        assert capsys.readouterr().out.splitlines()[:3] == [
            "[1/2] ppo on probe/action/discrete, 4 runs: done before, kept",
            f"  its reference returns have changed, and its manifest with them: now {text}",
            "[2/2] ppo on probe/action/discrete, 4 runs: done before, kept",
        ]
        assert store.open(one).manifest() == {**before, "reference": reference and reference._asdict()}
    assert store.open(one).path.read_bytes() == rows
    assert store.open(two).manifest_path.read_bytes() == second_manifest
    assert len(made_up.started) == 2
    assert names_in(tmp_path) == {f"{each.name}{suffix}" for each in (one, two) for suffix in (".parquet", ".json")}


def test_a_finished_shard_without_its_manifest_gets_none(tmp_path: Path, made_up: MadeUp) -> None:
    store, [one, *_] = Store(tmp_path), three_shards()
    local.run([one], store, at_once(4))
    store.open(one).manifest_path.unlink()
    local.run([one], store, at_once(4))
    assert names_in(tmp_path) == {f"{one.name}.parquet"}


def test_a_damaged_result_is_neither_kept_nor_replaced(tmp_path: Path, made_up: MadeUp) -> None:
    store, [one, *_] = Store(tmp_path), three_shards()
    local.run([one], store, at_once(4))
    store.open(one).path.write_bytes(store.open(one).path.read_bytes()[:-1])
    before = store.open(one).path.read_bytes()
    assert "cannot be read" in refusal(lambda: local.run([one], store, at_once(4)))
    assert store.open(one).path.read_bytes() == before
    assert len(made_up.started) == 1


# --- Datasets of finished shards --------------------------------------------------------------------------------------


def write_dataset(file: Path, reward: float) -> None:
    with h5py.File(file, "w") as opened:
        for name, array in {
            "observations": np.zeros((20, 1)),
            "actions": np.zeros((20, 1)),
            "rewards": np.full(20, reward),
            "terminals": np.arange(20) % 5 == 4,
        }.items():
            opened[name] = array


@pytest.fixture
def offline(tmp_path: Path, made_up: MadeUp) -> tuple[Path, Store, Job]:
    """A dataset, and the store with a finished shard that has learned from it."""
    file, store = tmp_path / "data.hdf5", Store(tmp_path / "results")
    write_dataset(file, reward=1.0)
    one = job.resolve("mine", Cell("bc", "probe/action/continuous", 4, seeds=4, evaluations=2, dataset=str(file)))
    local.run([one], store, at_once(4))
    return file, store, one


def fingerprint(dataset_id: str) -> str:
    """Of a dataset that is there."""
    found = catalogue.find(dataset_id)
    assert found is not None
    return found.fingerprint


def test_a_dataset_is_read_again_only_if_its_file_has_changed(
    offline: tuple[Path, Store, Job], made_up: MadeUp, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, store, one = offline
    read, reads = Found.read, list[str]()

    def counted(found: Found, *arguments: Any, **options: Any) -> Any:
        reads.append(found.id)
        return read(found, *arguments, **options)

    monkeypatch.setattr(Found, "read", counted)
    before = store.open(one).manifest()
    local.run([one], store, at_once(4))
    assert (reads, store.open(one).manifest()) == ([], before)
    os.utime(file, (1, 1))  # as a copy may have it
    for _ in range(2):
        local.run([one], store, at_once(4))
    assert reads == [str(file)]
    assert store.open(one).manifest() == {**before, "dataset_files": fingerprint(str(file))}
    assert len(made_up.started) == 1


@pytest.fixture
def beyond(tmp_path: Path) -> Cell:
    """A cell whose dataset has one action that lies outside of the box."""
    file = tmp_path / "beyond.hdf5"
    write_dataset(file, reward=1.0)
    with h5py.File(file, "r+") as opened:
        opened["actions"][7] = 1.01
    return Cell("bc", "probe/action/continuous", 4, seeds=4, evaluations=2, dataset=str(file))


def test_data_with_actions_outside_of_the_box_are_used_if_asked_to(
    beyond: Cell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    message = "action [1.01] of transition 7 lies outside of the action box [-1.0] .. [1.0]; take --clip-actions, or"
    assert message in refusal(lambda: chunk.given_to(job.resolve("mine", beyond)))
    read = chunk.given_to(job.resolve("mine", dataclasses.replace(beyond, clip_actions=True)))
    assert read is not None
    np.testing.assert_array_equal(read.dataset.transitions.action[:, 0], np.arange(19) == 7)
    assert beyond.dataset is not None
    given: list[Job] = []

    def seen(shards: list[Job], *_: Any) -> None:
        given.extend(shards)
        raise UserError("seen")

    monkeypatch.setattr(local, "run", seen)
    named = [beyond.dataset, "--env", beyond.environment]
    for more, clipped in ((["--clip-actions"], True), ([], False)):
        assert cli.main(["run", "bc", "--dataset", *named, *more]) == 2
        assert given[-1].cell.clip_actions is clipped
        assert given[-1].describe()["clip_actions"] is clipped
    capsys.readouterr()
    assert cli.main(["dataset", *named]) == 2
    assert message in capsys.readouterr().err
    assert cli.main(["dataset", *named, "--clip-actions"]) == 0


def test_what_was_learned_from_clipped_actions_is_kept(
    beyond: Cell, tmp_path: Path, made_up: MadeUp, capsys: pytest.CaptureFixture[str]
) -> None:
    store, one = Store(tmp_path / "results"), job.resolve("mine", dataclasses.replace(beyond, clip_actions=True))
    assert beyond.dataset is not None
    for _ in range(2):
        local.run([one], store, at_once(4))
        os.utime(beyond.dataset, (1, 1))  # so that it is read again
    assert len(made_up.started) == 1
    assert store.open(one).manifest()["dataset_files"] == fingerprint(beyond.dataset)
    assert "cannot be told" not in capsys.readouterr().out


def test_a_finished_shard_is_not_kept_with_other_data(offline: tuple[Path, Store, Job], made_up: MadeUp) -> None:
    file, store, one = offline
    before = {path.name: path.read_bytes() for path in store.folder.iterdir()}
    write_dataset(file, reward=2.0)
    message = refusal(lambda: local.run([one], store, at_once(4)))
    was = json.loads(before[f"{one.name}.json"])["dataset_checksum"]
    assert message.startswith(f"dataset '{file}' has changed (checksum ")
    assert f"was {was}) since '{one.name}'" in message
    assert message.endswith(f"was trained; restore it, or delete '{store.open(one).path}' to begin again")
    assert {path.name: path.read_bytes() for path in store.folder.iterdir()} == before
    # As the message says.
    store.open(one).path.unlink()
    local.run([one], store, at_once(4))
    assert len(made_up.started) == 2 and store.open(one).manifest()["dataset_checksum"] != was


def test_a_finished_shard_stays_without_its_dataset(
    offline: tuple[Path, Store, Job], capsys: pytest.CaptureFixture[str]
) -> None:
    file, store, one = offline
    before = store.open(one).manifest()
    file.write_bytes(b"damaged")
    capsys.readouterr()
    local.run([one], store, at_once(4))
    said = f"whether dataset '{file}' has changed since '{one.name}' was trained cannot be told: '{file}' can"
    assert said in capsys.readouterr().out
    file.unlink()
    local.run([one], store, at_once(4))
    assert "done before, kept" in capsys.readouterr().out
    assert store.open(one).manifest() == before
    changed = dataclasses.replace(one, cell=dataclasses.replace(one.cell, reference=REFERENCE))
    local.run([changed], store, at_once(4))
    assert store.open(one).manifest() == {**before, "reference": REFERENCE._asdict()}


# --- Chunks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "planned", "chunks"),
    [
        (1, "1 runs at once, 5 chunks", [(0,), (1,), (2,), (3,), (4,)]),
        (2, "2 runs at once, 3 chunks", [(0, 1), (2, 3), (4,)]),
        # Two chunks of nearly the same size rather than one of four and one of one.
        (4, "3 runs at once, 2 chunks", [(0, 1, 2), (3, 4)]),
        (5, "5 runs at once", [(0, 1, 2, 3, 4)]),
        (64, "5 runs at once", [(0, 1, 2, 3, 4)]),
    ],
)
def test_the_width_is_kept_and_changes_no_row(
    width: int,
    planned: str,
    chunks: list[tuple[int, ...]],
    tmp_path: Path,
    made_up: MadeUp,
    undisturbed: list[dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    store, one = Store(tmp_path), long_shard()
    capsys.readouterr()
    local.run([one], store, at_once(width))
    assert capsys.readouterr().out.splitlines()[1] == f"  compiled in 1m30s; {planned}; peak memory 2GB planned"
    assert made_up.started == chunks
    got = rows_of(store, one)
    assert [(row["update"], row["run"]) for row in got] == [(u, run) for u in (0, 4, 8, 12) for run in range(5)]
    assert got == [{name: row[name] for name in row if name != "wall_seconds"} for row in undisturbed]


def test_a_device_that_refuses_the_width_gets_half_of_it(
    tmp_path: Path, made_up: MadeUp, undisturbed: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(first_seed: int, index: int) -> None:
        if len(made_up.started[-1]) > 2 and index > 4:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.")

    made_up.before_update = refuse
    store, one = Store(tmp_path), long_shard()
    capsys.readouterr()
    local.run([one], store, at_once(4))
    assert "  the device refused 3 runs at once; going on with 2\n" in capsys.readouterr().out
    assert made_up.started == [(0, 1, 2), (0, 1), (2, 3), (4,)]
    assert rows_of(store, one, clock=True) == undisturbed
    assert store.open(one).manifest()["compile_seconds"] == 180.0  # of both programs


def test_a_device_that_refuses_one_run_is_an_error(tmp_path: Path, made_up: MadeUp) -> None:
    def refuse(first_seed: int, index: int) -> None:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nwhile trying")

    made_up.before_update = refuse
    message = refusal(lambda: local.run([long_shard()], Store(tmp_path), at_once(2)))
    assert made_up.started == [(0, 1), (0,)]
    assert message.startswith("ppo on probe/action/discrete: the device has no memory for even one run (RESOURCE_EXHAU")
    assert "smaller" in message


def test_another_error_of_the_device_is_no_reason_for_another_width(tmp_path: Path, made_up: MadeUp) -> None:
    def fail(first_seed: int, index: int) -> None:
        raise jax.errors.JaxRuntimeError("INTERNAL: fell over")

    made_up.before_update = fail
    with pytest.raises(jax.errors.JaxRuntimeError, match="fell over"):
        local.run([long_shard()], Store(tmp_path), at_once(2))
    assert made_up.started == [(0, 1)]


# --- Stopped and resumed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_after_saving_and_the_rest_is_done_later(
    number: signal.Signals,
    tmp_path: Path,
    made_up: MadeUp,
    undisturbed: list[dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stop_the_second_chunk(first_seed: int, index: int) -> None:
        if (first_seed, index) == (2, 5):
            os.kill(os.getpid(), number)

    made_up.before_update = stop_the_second_chunk
    store, one = Store(tmp_path), long_shard()
    handlers = [signal.getsignal(other) for other in (signal.SIGTERM, signal.SIGINT)]
    capsys.readouterr()
    with pytest.raises(Stopped) as raised:
        local.run([one], store, at_once(2))
    assert (raised.value.number, raised.value.signal_name) == (number, number.name)
    assert [signal.getsignal(other) for other in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert f"{number.name}: finishing the segment and saving; once more to leave at once\n" in capsys.readouterr().out
    assert [part for part in store.open(one).parts() if part.first == 2] == [Part(2, 4, 0), Part(2, 4, 4)]
    assert names_in(store.open(one).snapshots(2, 4)) == {"1"}

    made_up.before_update = lambda first_seed, index: None
    local.run([one], store, at_once(2))
    printed = capsys.readouterr().out
    assert "  2 of 5 runs were done before, kept\n" in printed
    [update] = re.findall(r"^  runs 2-3 go on from update (\d+) of 12$", printed, re.MULTILINE)
    assert int(update) > 5
    assert made_up.started == [(0, 1), (2, 3), (2, 3), (4,)]
    # Every update was done once, in its order, in all.
    assert made_up.updates == [(first_seed, index) for first_seed in (0, 2, 4) for index in range(12)]
    assert rows_of(store, one, clock=True) == undisturbed
    assert names_in(tmp_path) - {"undisturbed"} == {f"{one.name}.parquet", f"{one.name}.json"}
    assert len(store.open(one).manifest()["sessions"]) == 2


def test_going_on_with_another_number_of_devices_is_said_and_recorded(
    tmp_path: Path, made_up: MadeUp, capsys: pytest.CaptureFixture[str]
) -> None:
    store, one = Store(tmp_path), job.resolve("mine", dataclasses.replace(CELL, steps=200 * 2048, seeds=5))

    def go_on(devices: int, to_the_end: bool = False) -> list[str]:
        """A process that stops in its first segment of the second chunk."""
        sent: list[int] = []

        def before_update(first_seed: int, index: int) -> None:
            if first_seed == 4 and not (sent or to_the_end):
                sent.append(index)
                signal.raise_signal(signal.SIGINT)

        made_up.before_update = before_update
        with contextlib.nullcontext() if to_the_end else pytest.raises(Stopped):
            local.run([one], store, Settings(Limits(width=1, devices=devices)))
        return [line for line in capsys.readouterr().out.splitlines() if "goes on with" in line]

    assert go_on(4) == []
    assert go_on(4) == []
    # As a version before this one left it.
    manifest = store.open(one).manifest()
    for session in manifest["sessions"]:
        del session["devices"]
    store.open(one).write_manifest(manifest)
    [line] = go_on(2)
    assert line.startswith("  goes on with 2 device(s), not 4 as before: ") and "last bit" in line
    [line] = go_on(1)
    assert line.startswith("  goes on with 1 device(s), not 2 as before: ")
    assert go_on(1) == []
    [line] = go_on(4, to_the_end=True)
    assert line.startswith("  goes on with 4 device(s), not 1 as before: ")
    assert [session.get("devices") for session in store.open(one).manifest()["sessions"]] == [None, None, 2, 1, 1, 4]


def test_a_second_signal_does_not_wait(tmp_path: Path, made_up: MadeUp, undisturbed: list[dict[str, Any]]) -> None:
    def twice(first_seed: int, index: int) -> None:
        if index == 5:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    made_up.before_update = twice
    store, one = Store(tmp_path), long_shard()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a worker of pytest-xdist ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            local.run([one], store, at_once(2))
    finally:
        signal.signal(signal.SIGINT, before)
    assert store.open(one).parts() == [Part(0, 2, 0), Part(0, 2, 4)]
    made_up.before_update = lambda first_seed, index: None
    local.run([one], store, at_once(2))
    assert rows_of(store, one, clock=True) == undisturbed


def test_a_signal_between_two_shards_is_heard(tmp_path: Path, made_up: MadeUp) -> None:
    """The last update of a shard is followed by no snapshot: the shard is finished first."""

    def stop_at_the_end(first_seed: int, index: int) -> None:
        if index == 1:
            signal.raise_signal(signal.SIGTERM)

    made_up.before_update = stop_at_the_end
    store, shards = Store(tmp_path), three_shards()
    with pytest.raises(Stopped):
        local.run(shards, store, at_once(4))
    assert [store.open(one).finished() for one in shards] == [True, False, False]
    assert names_in(tmp_path) == {f"{shards[0].name}.parquet", f"{shards[0].name}.json"}


@pytest.mark.parametrize(
    ("save_every", "resumed"), [(0.0, 10), (4.0, 8), (300.0, None)], ids=["at every pause", "at times", "never"]
)
def test_a_crash_costs_what_came_after_the_newest_snapshot(
    save_every: float,
    resumed: int | None,
    tmp_path: Path,
    made_up: MadeUp,
    undisturbed: list[dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def crash(first_seed: int, index: int) -> None:
        if index == 11:
            raise RuntimeError("the device fell over")

    made_up.before_update = crash
    store, one = Store(tmp_path), long_shard()
    with pytest.raises(RuntimeError, match="fell over"):
        local.run([one], store, at_once(2, save_every))
    assert store.open(one).parts() == [Part(0, 2, 0), Part(0, 2, 4), Part(0, 2, 8)]
    made_up.before_update = lambda first_seed, index: None
    made_up.updates.clear()
    capsys.readouterr()
    local.run([one], store, at_once(2))
    expected = [] if resumed is None else [str(resumed)]
    assert re.findall(r"^  runs 0-1 go on from update (\d+) of 12$", capsys.readouterr().out, re.MULTILINE) == expected
    assert made_up.updates[0] == (0, resumed or 0)
    assert rows_of(store, one) == [{n: row[n] for n in row if n != "wall_seconds"} for row in undisturbed]


def test_a_snapshot_without_its_rows_is_not_resumed(
    tmp_path: Path, made_up: MadeUp, undisturbed: list[dict[str, Any]]
) -> None:
    """What it has evaluated would be missing in the end."""
    made_up.before_update = lambda first_seed, index: signal.raise_signal(signal.SIGTERM) if index == 9 else None
    store, one = Store(tmp_path), long_shard()
    with pytest.raises(Stopped):
        local.run([one], store, at_once(2))
    path = store.open(one).partial / Part(0, 2, 4).file_name
    path.write_bytes(path.read_bytes()[:-1])
    made_up.before_update = lambda first_seed, index: None
    made_up.updates.clear()
    local.run([one], store, at_once(2))
    assert made_up.updates == [(first_seed, index) for first_seed in (0, 2, 4) for index in range(12)]
    assert rows_of(store, one, clock=True) == undisturbed


def crashed(store: Store, made_up: MadeUp) -> None:
    """The first chunk has left a snapshot early in its updates, and rows of later ones."""

    def slow_then_crash(first_seed: int, index: int) -> None:
        if (first_seed, index) == (0, 1):
            made_up.clock.now += 100
        if (first_seed, index) == (0, 9):
            raise RuntimeError("the device fell over")

    made_up.before_update = slow_then_crash
    with pytest.raises(RuntimeError, match="fell over"):
        local.run([long_shard()], store, at_once(2, save_every=50.0))
    assert names_in(store.open(long_shard()).snapshots(0, 2)) == {"1"}
    made_up.before_update = lambda first_seed, index: None
    made_up.updates.clear()


def test_a_snapshot_of_other_runs_is_not_resumed(
    tmp_path: Path, made_up: MadeUp, undisturbed: list[dict[str, Any]]
) -> None:
    store, entry = Store(tmp_path), Store(tmp_path).open(long_shard())
    crashed(store, made_up)
    entry.snapshots(0, 2).rename(entry.snapshots(2, 4))
    local.run([long_shard()], store, at_once(2))
    assert made_up.updates == [(first_seed, index) for first_seed in (0, 2, 4) for index in range(12)]
    assert rows_of(store, long_shard()) == [{n: row[n] for n in row if n != "wall_seconds"} for row in undisturbed]


def test_a_snapshot_where_earlier_versions_put_it_is_resumed(
    tmp_path: Path, made_up: MadeUp, undisturbed: list[dict[str, Any]]
) -> None:
    store, entry = Store(tmp_path), Store(tmp_path).open(long_shard())
    crashed(store, made_up)
    entry.snapshots(0, 2).rename(entry.old_snapshots())
    local.run([long_shard()], store, at_once(2))
    first_seed, index = made_up.updates[0]
    assert first_seed == 0 and 0 < index < 9
    assert made_up.updates[-24:] == [(first_seed, index) for first_seed in (2, 4) for index in range(12)]
    assert rows_of(store, long_shard()) == [{n: row[n] for n in row if n != "wall_seconds"} for row in undisturbed]


def test_runs_that_an_orphan_trains_are_waited_for(
    tmp_path: Path, made_up: MadeUp, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker of a driver that has died has the lock of its runs alone."""
    store, entry = Store(tmp_path), Store(tmp_path).open(long_shard())
    entry.partial.mkdir(parents=True)
    orphan = contextlib.ExitStack()
    assert orphan.enter_context(entry.claim_runs(2, 4))
    monkeypatch.setattr(local.time, "sleep", lambda seconds: orphan.close())
    local.run([long_shard()], store, at_once(2))
    assert capsys.readouterr().out.count("a worker of a cluster still trains runs 2-3; waiting for it") == 1
    assert made_up.started == [(0, 1), (2, 3), (4,)]


def test_a_shard_goes_on_with_the_width_it_was_begun_with(
    tmp_path: Path, made_up: MadeUp, undisturbed: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    made_up.before_update = lambda first_seed, index: signal.raise_signal(signal.SIGTERM) if index == 5 else None
    store, one = Store(tmp_path), long_shard()
    with pytest.raises(Stopped):
        local.run([one], store, at_once(2))
    made_up.before_update = lambda first_seed, index: None
    capsys.readouterr()
    local.run([one], store, at_once(5))
    assert "  goes on with 2 runs a device, as it was begun; --width 5 is for" in capsys.readouterr().out
    assert made_up.started == [(0, 1), (0, 1), (2, 3), (4,)]
    assert rows_of(store, one, clock=True) == undisturbed


def test_a_shard_that_goes_on_says_that_its_reference_has_changed(
    tmp_path: Path, made_up: MadeUp, capsys: pytest.CaptureFixture[str]
) -> None:
    made_up.before_update = lambda first_seed, index: signal.raise_signal(signal.SIGTERM) if index == 5 else None
    store, one = Store(tmp_path), long_shard()
    with pytest.raises(Stopped):
        local.run([one], store, at_once(2))
    assert "reference" not in capsys.readouterr().out
    made_up.before_update = lambda first_seed, index: None
    local.run([job.resolve("mine", dataclasses.replace(one.cell, reference=REFERENCE))], store, at_once(2))
    expected = "now 0.5 (the uniform policy) to 1 (the optimal policy)\n"
    assert f"  its reference returns have changed, and its manifest with them: {expected}" in capsys.readouterr().out
    assert store.open(one).manifest()["reference"] == REFERENCE._asdict()


def test_outside_of_the_main_thread_signals_are_left_alone(tmp_path: Path, made_up: MadeUp) -> None:
    """Python lets no other thread handle them."""
    store, [one, *_] = Store(tmp_path), three_shards()
    thread = threading.Thread(target=local.run, args=([one], store, at_once(4)))
    thread.start()
    thread.join()
    assert store.open(one).finished()


# --- Several processes ------------------------------------------------------------------------------------------------


def test_a_shard_of_another_process_is_left_to_it_and_done_if_it_dies(
    tmp_path: Path, made_up: MadeUp, capsys: pytest.CaptureFixture[str]
) -> None:
    store, shards = Store(tmp_path), three_shards()
    with another_process(store.open(shards[1])) as other:
        slept: list[bool] = []

        def wait() -> None:
            slept.append(store.open(shards[0]).finished() and store.open(shards[2]).finished())
            if len(slept) == 3:
                other.kill()
                other.wait()

        made_up.clock.on_sleep = wait
        local.run(shards, store, at_once(4))
    assert slept == [True, True, True]
    assert made_up.started == [(0, 1, 2, 3), (8, 9, 10, 11), (4, 5, 6, 7)]
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[2/3]")]
    assert lines == [
        f"[2/3] ppo on probe/action/discrete, 4 runs: process {other.pid} on {platform.node()} runs it; left to it",
        "[2/3] ppo on probe/action/discrete, 4 runs x 4.1k steps",
    ]
    assert names_in(tmp_path) == {f"{one.name}{suffix}" for one in shards for suffix in (".parquet", ".json")}


def test_waiting_for_another_process_can_be_stopped(tmp_path: Path, made_up: MadeUp) -> None:
    store, [one, *_] = Store(tmp_path), three_shards()
    made_up.clock.on_sleep = lambda: signal.raise_signal(signal.SIGTERM)
    with store.open(one).claim() as ours, pytest.raises(Stopped):
        assert ours
        local.run([one], store, at_once(4))
    assert made_up.started == []


def test_what_a_process_left_that_died_while_tidying_up_is_removed(
    tmp_path: Path, made_up: MadeUp, capsys: pytest.CaptureFixture[str]
) -> None:
    """The finished file has its name already, and the partial folder is still there."""
    store, [one, *_] = Store(tmp_path), three_shards()
    local.run([one], store, at_once(4))
    before = store.open(one).path.read_bytes()
    store.open(one).partial.mkdir()
    (store.open(one).partial / Part(0, 4, 2).file_name).write_bytes(before)
    capsys.readouterr()
    local.run([one], store, at_once(4))
    assert "[1/1] ppo on probe/action/discrete, 4 runs: done before, kept\n" in capsys.readouterr().out
    assert len(made_up.started) == 1
    assert names_in(tmp_path) == {f"{one.name}.parquet", f"{one.name}.json"}
    assert store.open(one).path.read_bytes() == before


def test_what_another_process_finishes_meanwhile_is_kept(
    tmp_path: Path, made_up: MadeUp, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Between the look whether the shard is there and the claim."""
    store, [one, *_] = Store(tmp_path), three_shards()
    local.run([one], Store(tmp_path / "other"), at_once(4))
    finished = {path.name: path.read_bytes() for path in (tmp_path / "other").iterdir()}
    claim = Entry.claim

    def just_too_late(entry: Entry) -> AbstractContextManager[bool]:
        for name, data in finished.items():
            (tmp_path / name).write_bytes(data)
        return claim(entry)

    monkeypatch.setattr(Entry, "claim", just_too_late)
    capsys.readouterr()
    local.run([one], store, at_once(4))
    assert capsys.readouterr().out.startswith("[1/1] ppo on probe/action/discrete, 4 runs: done before, kept\n")
    assert made_up.started == [(0, 1, 2, 3)]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == finished
    assert names_in(tmp_path) == {*finished, "other"}


# Both processes have begun a shard before either of them does its first update.
TOGETHER = """
import os, sys, time
from pathlib import Path

import pytest
import test_sweep
from rlsuite.sweeping import local
from rlsuite.sweeping.store import Store

folder = Path(sys.argv[1])


def meet(first_seed, index):
    (folder / f"begun-{os.getpid()}").touch()
    while len(list(folder.glob("begun-*"))) < 2:
        time.sleep(0.02)


with pytest.MonkeyPatch.context() as patch:
    made_up = test_sweep.MadeUp(patch)
    made_up.before_update = meet
    made_up.clock.on_sleep = lambda: time.sleep(0.02)
    local.run(test_sweep.three_shards()[:2], Store(folder / "results"), test_sweep.at_once(4))
"""


def test_two_processes_share_the_shards(tmp_path: Path) -> None:
    paths = [str(ROOT), str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TOGETHER, str(tmp_path)],
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    try:
        ends = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], ends
    store, shards = Store(tmp_path / "results"), three_shards()[:2]
    trained = [re.findall(r"^\[(\d)/2\] .* x 4.1k steps$", printed, re.MULTILINE) for printed, _ in ends]
    assert sorted(trained) == [["1"], ["2"]]
    assert all(printed.splitlines()[-1].startswith("2 of 2 shards in ") for printed, _ in ends)
    assert names_in(store.folder) == {f"{one.name}{suffix}" for one in shards for suffix in (".parquet", ".json")}
    assert [len(store.open(one).manifest()["sessions"]) for one in shards] == [1, 1]
    assert [len(rows_of(store, one)) for one in shards] == [12, 12]


# --- Progress ---------------------------------------------------------------------------------------------------------


def test_compile_time_is_shown_apart_from_speed_and_eta(
    tmp_path: Path, made_up: MadeUp, capsys: pytest.CaptureFixture[str]
) -> None:
    made_up.diverging = 3
    [one, *_] = three_shards()
    local.run([one], Store(tmp_path), at_once(4))
    # 2048 steps of 4 runs in 2 seconds, 4096 in 3: the 90 seconds of compiling are in neither speed nor ETA.
    assert capsys.readouterr().out.splitlines()[1:5] == [
        "  compiled in 1m30s; 4 runs at once; peak memory 2GB planned",
        "    0%  step     0  return IQM      2.50  peak 1GB",
        "   50%  step 2.05k  return IQM      2.50   4.1k steps/s  ETA 2.0s  peak 1GB  DIVERGED 3/4",
        "  100%  step  4.1k  return IQM      2.50  5.46k steps/s  peak 1GB  DIVERGED 3/4",
    ]
    manifest = json.loads((tmp_path / f"{one.name}.json").read_text())
    assert manifest["diverged"] == 3


def test_compile_time_is_that_of_all_widths_that_are_tried(
    tmp_path: Path, made_up: MadeUp, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(work: Any, compiled: batch.Compiled) -> float:
        made_up.clock.now += 5
        return compiled.programs.width / 1000

    monkeypatch.setattr(plan, "measure", measure)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store, one = Store(tmp_path / "results"), long_shard()
    local.run([one], store, Settings(Limits(devices=1)))
    # All five at once, which is faster, then two.
    assert "  compiled in 3m10s; 5 runs at once; peak" in capsys.readouterr().out
    assert store.open(one).manifest()["compile_seconds"] == 190.0


def test_a_terminal_shows_that_programs_are_compiled_until_they_are(
    tmp_path: Path, made_up: MadeUp, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    [one, *_] = three_shards()
    local.run([one], Store(tmp_path), at_once(4))
    compiling = "  compiling, and measuring how many runs at once are fastest ..."
    assert f" x 4.1k steps\n{compiling}\r{progress.CLEAR}  compiled in 1m30s; 4 runs" in capsys.readouterr().out


def test_a_run_that_diverged_does_not_hide_the_others(made_up: MadeUp, capsys: pytest.CaptureFixture[str]) -> None:
    returns = np.array([[np.nan], [1.0], [3.0], [np.inf]])
    diverged = np.array([True, False, False, True])
    evaluation = Evaluation(1, 2048, 1.0, returns, np.ones((4, 1)), {}, diverged, diverged.astype(np.uint8))
    shown = progress.Progress(runs=4, total_steps=8192, done=0, diverged=0)
    shown.pause(0, 4, Pause(Training(None, 0, evaluation, 0, 0.0), evaluated=False))
    made_up.clock.now += 1
    shown.pause(0, 4, Pause(Training(None, 1, evaluation, 2048, 1.0), evaluated=True))
    [line] = capsys.readouterr().out.splitlines()
    assert "return IQM      2.00" in line and "DIVERGED 2/4" in line and "ETA 3.0s" in line


def test_chunks_show_how_many_runs_are_done_and_that_they_live(
    tmp_path: Path, made_up: MadeUp, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line at the end of each chunk, and within one only after a long silence."""

    def slow(first_seed: int, index: int) -> None:
        if (first_seed, index) == (2, 5):
            made_up.clock.now += progress.QUIET_SECONDS

    made_up.before_update = slow
    local.run([long_shard()], Store(tmp_path), at_once(2))
    shares = re.findall(r"^ *(\d+)%  runs (\d)/5 done  step +(\S+) ", capsys.readouterr().out, re.MULTILINE)
    assert shares == [("40", "2", "24.6k"), ("60", "2", "8.19k"), ("80", "4", "24.6k"), ("100", "5", "24.6k")]


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


def test_a_field_that_came_later_leaves_the_names_of_shards_alone_at_its_default() -> None:
    cell = Cell("sac", "gymnax/Pendulum-v1", steps=1000, config=sac.Config())
    changed = dataclasses.replace(cell, config=sac.Config(cleanrl=True))
    # The name that this cell had before SAC had the field.
    assert job.resolve("x", cell).name == "sac__gymnax-Pendulum-v1__84500728"
    assert "cleanrl" not in job.resolve("x", cell).describe()["config"]
    assert job.resolve("x", changed).name != job.resolve("x", cell).name
    assert job.resolve("x", changed).describe()["config"]["cleanrl"] is True
