"""What is not finite, and what does not end: one definition of divergence from the trainer to the page, and evaluations
that no environment can hold up. The environments here are made up, and fail on purpose."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest
from flax import struct
from written import REFERENCE, read, write_shard

import analysis
from analysis.curves import sample_efficiency_curves
from analysis.report import document
from analysis.tables import summarise
from envs import gymnasium
from envs.core import Box, EpisodeState, Space, TimeStep
from rlsuite.algorithms.off_policy import sac
from rlsuite.core import Algorithm, Clock, Metrics, Task
from rlsuite.errors import UserError
from rlsuite.pieces.replay import Replay
from rlsuite.pieces.rollout import EnvCarry
from rlsuite.pieces.value_bias import Critique, value_bias
from rlsuite.sweeping import collect
from rlsuite.sweeping.job import resolve
from rlsuite.sweeping.store import Store
from rlsuite.sweeping.sweep import Cell
from rlsuite.training import batch, host, progress, train
from rlsuite.training.evaluate import Episodes, over_finite
from rlsuite.training.train import Evaluation, Learning, Pause, Training, nonfinite, nonfinite_names

pytestmark = pytest.mark.xdist_group("divergence")

Array = jax.Array

LIMIT, EPISODES, RUNS = 4, 16, 3
UNLUCKY = 0.8
"""Episodes that begin above it fail: about a fifth of them."""


@struct.dataclass
class Failing:
    """Pays 1 a step for `LIMIT` steps, wherever it begins between 0 and 1; `failure` says what goes wrong.

    `endless` never ends, `reward` pays NaN in unlucky episodes, `observation` shows NaN there once and no more.
    """

    failure: str = struct.field(pytree_node=False)
    id: str = struct.field(pytree_node=False, default="made-up/Failing-v0")
    max_episode_steps: int = struct.field(pytree_node=False, default=LIMIT)

    @property
    def obs_dim(self) -> int:
        return 1

    @property
    def action_space(self) -> Space:
        return Box((-1.0,), (1.0,))

    def reset(self, key: Array) -> tuple[EpisodeState, Array]:
        start = jax.random.uniform(key, (1,))
        return EpisodeState(start, jnp.int32(0)), start

    def step(self, key: Array, state: EpisodeState, action: Array) -> tuple[EpisodeState, TimeStep]:
        steps, unlucky = state.steps + 1, state.physics[0] > UNLUCKY
        reward = jnp.where(unlucky & (self.failure == "reward"), jnp.nan, 1.0) + 0.0 * action[0]
        hidden = unlucky & (steps == 2) & (self.failure == "observation")
        ends = (steps >= self.max_episode_steps) & (self.failure != "endless")
        shown = TimeStep(jnp.where(hidden, jnp.nan, state.physics), reward, jnp.bool_(False), ends)
        return EpisodeState(state.physics, steps), shown


class Hypers(NamedTuple):
    breaks: float = 1e9
    """the update that makes a parameter NaN"""


def init(key: Array, task: Task, hypers: Hypers) -> dict[str, Array]:
    return {"weight": jnp.ones(1)}


def update(key: Array, task: Task, state: Any, hypers: Hypers, clock: Clock) -> tuple[Any, Metrics]:
    weight = jnp.where(clock.update >= hypers.breaks, jnp.nan, state["weight"])
    return {"weight": weight}, {"weight": jnp.sum(weight)}


def act(key: Array, task: Task, state: Any, obs: Array) -> Array:
    return state["weight"] * obs


LINEAR = Algorithm(init, update, act, steps_per_update=1)


@functools.cache
def programs(failure: str) -> train.Programs:
    task = Task(Failing(failure))
    return batch.compile_programs(LINEAR, task, Hypers(), RUNS, EPISODES, jax.local_devices()[:1]).programs


def evaluations(failure: str, breaks: tuple[float, ...] = (1e9,) * RUNS) -> list[Evaluation]:
    """Of three runs, after 0, 1, 2 and 3 updates."""
    pauses = train.train(programs(failure), range(RUNS), [Hypers(each) for each in breaks], 3, [0, 1, 2, 3])
    return [pause.training.evaluation for pause in pauses if pause.evaluated]


# --- One definition ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("part", train.PARTS)
def test_what_of_a_run_is_not_finite_is_told(part: str, value: float) -> None:
    def of(name: str) -> Array:
        return jnp.asarray([1.0, value if name == part else 2.0])

    state = {
        "params": of("parameters"),
        "buffer": Replay(of("buffer"), jnp.zeros(1)),
        "envs": EnvCarry(EpisodeState(jnp.zeros(1), jnp.int32(0)), of("environments")),
        "counts": jnp.arange(3),
    }
    learning = Learning(state, {"loss": of("metrics")})
    assert nonfinite_names(int(nonfinite(learning))) == part
    assert not train.is_finite(learning)


def test_a_healthy_run_is_finite() -> None:
    learning = Learning({"params": jnp.ones(2)}, {"loss": jnp.zeros(())})
    assert train.is_finite(learning) and nonfinite_names(int(nonfinite(learning))) is None


@pytest.mark.parametrize(("failure", "cause"), [("reward", "rewards"), ("observation", "observations")])
def test_an_episode_that_is_not_finite_is_left_out_counted_and_harms_no_run(failure: str, cause: str) -> None:
    found = evaluations(failure)
    for evaluation in found:
        lost = ~np.isfinite(evaluation.returns)
        assert 0 < lost.sum() < lost.size / 2 and not evaluation.diverged.any()
        assert evaluation.nonfinite_episodes.tolist() == lost.sum(axis=1).tolist()
        assert evaluation.mean_returns.tolist() == [LIMIT] * RUNS
        assert [nonfinite_names(bits) for bits in evaluation.nonfinite] == [cause if n else None for n in lost.sum(1)]
    # Other episodes are lost each time: a run goes on being evaluated.
    assert len({tuple(np.isfinite(evaluation.returns).ravel()) for evaluation in found}) == len(found)


def test_what_was_lost_first_stays_known_and_is_no_episodes_doing() -> None:
    """The first run's parameters are NaN from its second update on; all that its episodes show then is their doing."""
    found = evaluations("none", (1.0, 1e9, 1e9))
    assert [e.diverged.tolist() for e in found] == [[False] * 3] * 2 + [[True, False, False]] * 2
    names = [[nonfinite_names(bits) for bits in e.nonfinite] for e in found]
    assert names == [[None] * 3] * 2 + [["parameters, metrics", None, None]] * 2
    assert all(e.mean_returns.tolist() == [LIMIT] * RUNS and not e.nonfinite_episodes.any() for e in found)


def test_what_a_run_was_frozen_with_is_not_counted_again() -> None:
    found = evaluations("reward", (1.0, 1e9, 1e9))
    assert found[1].nonfinite_episodes[0] == np.sum(~np.isfinite(found[2].returns[0])) > 0
    assert [e.nonfinite_episodes[0] for e in found[2:]] == [0, 0]


@pytest.mark.parametrize(
    ("ours", "numpys"),
    [(np.nanmean, np.mean), (np.nanstd, np.std), (np.nanmin, np.min), (np.nanmax, np.max)],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_over_finite_episodes_alone_statistics_are_numpys_to_the_bit(ours: Any, numpys: Any, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    for count in (1, 16, 100, 1000):
        returns = (1e3 * rng.normal(size=(50, count))).astype(dtype)
        np.testing.assert_array_equal(over_finite(ours, returns), numpys(returns, axis=1), strict=True)


@pytest.mark.filterwarnings("error")
def test_without_a_finite_episode_there_is_no_score() -> None:
    returns = np.array([[np.nan, np.inf], [1.0, -np.inf], [1.0, 3.0]])
    np.testing.assert_array_equal(over_finite(np.nanmean, returns), [np.nan, 1.0, 2.0])


# --- From the trainer to the page -------------------------------------------------------------------------------------

SHARD = resolve(
    "one", Cell("ppo", "probe/action/discrete", 3 * 2048, seeds=RUNS, evaluations=3, eval_episodes=EPISODES)
)


def written(folder: Path, found: list[Evaluation], old: bool = False) -> Store:
    """These evaluations as results; `old` ones lack what was not recorded once, and have the mean of all episodes."""
    store = Store(folder / "one")
    with store.open(SHARD).claim():
        for evaluation in found:
            store.open(SHARD).write_rows(0, evaluation)
        store.open(SHARD).write_manifest({"diverged": int(found[-1].diverged.sum())})
        store.open(SHARD).finish([evaluation.update for evaluation in found])
    if old:
        table = pq.read_table(store.open(SHARD).path).drop_columns(["nonfinite_episodes", "nonfinite"])
        means = [float(np.mean(np.asarray(returns, np.float64))) for returns in table["episode_returns"].to_pylist()]
        at = table.column_names.index("return_mean")
        pq.write_table(table.set_column(at, "return_mean", [means]), store.open(SHARD).path)
    return store


def reported(store: Store) -> dict[str, Any]:
    """The page's document."""
    frame, shards = analysis.load(store.folder), analysis.manifests(store.folder)
    scores = analysis.score(frame, shards)
    summary = summarise(scores, repetitions=40)
    return document(scores, frame, shards, summary, sample_efficiency_curves(scores, repetitions=40), {},
                    repetitions=40, seed=0)  # fmt: skip


@pytest.mark.parametrize("old", [False, True])
def test_trainer_manifest_progress_table_and_page_say_one_number(
    old: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One run diverges at its second update; all others learn on with a few episodes that are not finite."""
    found = evaluations("reward", (1.0, 1e9, 1e9))
    store = written(tmp_path, found, old)
    page = reported(store)
    shown = progress.Progress(runs=RUNS, total_steps=3, done=0, diverged=0)
    shown.pause(0, RUNS, Pause(Training(None, 3, found[-1], 3, 1.0), evaluated=True))
    assert "return IQM      4.00" in (line := capsys.readouterr().out) and "DIVERGED 1/3" in line
    numbers = [
        int(found[-1].diverged.sum()),
        json.loads(store.open(SHARD).manifest_path.read_text())["diverged"],
        page["table"][0]["diverged"],
        page["diverged"]["total"],
        sum(run["diverged"] for run in page["cells"][0]["runs"]),
    ]
    assert numbers == [1] * 5
    [run] = page["diverged"]["runs"]
    assert (run["seed"], run["step"], run["score"]) == (0, found[2].step, LIMIT)
    # Its episodes were not finite before it was, which is what came first.
    first = (None, None) if old else ("rewards", 0)
    assert (run["cause"], run["cause_step"]) == first
    lost = sum(int(evaluation.nonfinite_episodes.sum()) for evaluation in found)
    [note] = [note for note in page["notes"] if "not finite" in note]
    assert f": {lost} evaluation episodes of 3 runs are not finite" in note
    assert page["table"][0]["final"][0] == LIMIT


def test_an_evaluation_without_a_finite_episode_is_noted_and_its_run_goes_on(tmp_path: Path) -> None:
    found = evaluations("none")
    returns = found[1].returns.copy()
    returns[0] = np.nan
    found[1] = found[1]._replace(returns=returns, nonfinite=np.array([32, 0, 0], np.uint8))
    page = reported(written(tmp_path, found))
    assert page["diverged"] == {"total": 0, "runs": []}
    [note] = [note for note in page["notes"] if "not finite" in note]
    assert "16 evaluation episodes of 1 runs" in note and "in 1 evaluations nothing was left" in note


def test_parameters_that_are_lost_first_are_named(tmp_path: Path) -> None:
    [run] = reported(written(tmp_path, evaluations("none", (1e9, 2.0, 1e9))))["diverged"]["runs"]
    assert (run["seed"], run["cause"], run["cause_step"]) == (1, "parameters, metrics", run["step"])


def test_results_that_never_said_it_are_read(tmp_path: Path) -> None:
    returns = [[1.0, np.nan, 3.0], [1.0, 2.0, 3.0]]
    write_shard(tmp_path / "old", "ppo", "a", returns, reference=REFERENCE)
    scores = read(tmp_path / "old")
    assert scores.tasks["ppo", "a"].final.tolist() == [3.0, 3.0]
    assert not scores.tasks["ppo", "a"].diverged.any()
    assert any("2 evaluation episodes of 1 runs" in note for note in scores.notes)


# --- What does not end ------------------------------------------------------------------------------------------------

ENDLESS = r"'made-up/Failing-v0' neither terminated nor truncated .* episodes within its time limit of 4 steps; have"


def test_an_environment_that_never_ends_is_named_at_the_first_evaluation() -> None:
    with pytest.raises(UserError, match=ENDLESS):
        evaluations("endless")


def test_runs_that_play_nothing_have_ended() -> None:
    compiled = programs("endless")
    runs = compiled.runs(range(RUNS), [Hypers()] * RUNS)
    checked = compiled.checkup(runs, compiled.init(runs), 0, 0, np.ones(RUNS, bool))
    assert np.asarray(checked.episodes.ended).all() and not np.asarray(checked.episodes.lengths).any()


def test_the_host_waits_no_longer_either() -> None:
    """Two environments that never end: `ended` says so after the steps that they had."""
    stepped = []
    simulator = SimpleNamespace(
        physics=(np.zeros((2, 1)), np.array([[0.0], [np.nan]])),
        reset=lambda qpos, qvel, which: None,
        step=lambda control, which: stepped.append(which.tolist()),
    )
    ended, seen = np.zeros((1, 2), bool), np.ones((1, 2), bool)
    playing = host.Playing(None, None, Episodes(np.zeros((1, 2)), np.ones((1, 2), np.int32), ended, seen))
    step = (playing, np.zeros((1, 2, 1)))
    stubs = host.Programs(lambda: (np.zeros((1, 2, 1)),) * 2, lambda physics: step, lambda t, playing, physics: step)
    episodes = host.play(simulator, stubs, np.zeros(1, bool), LIMIT)
    assert stepped == [[True, True]] * LIMIT
    assert episodes.ended.tolist() == [[False, False]] and episodes.seen.tolist() == [[True, False]]


def test_nothing_is_recorded_of_an_environment_that_never_ends() -> None:
    algorithm = sac.make(sac.Config(hidden_sizes=(4,), buffer_size=64, batch_size=4, warmup_steps=8))
    play = collect.recorder(algorithm, Task(Failing("endless")), sac.Hypers())
    with pytest.raises(UserError, match=ENDLESS):
        play(None, jax.random.key(0))


@pytest.mark.parametrize(("failure", "known"), [("endless", False), ("none", True)])
def test_no_bias_is_known_of_episodes_that_never_end(failure: str, known: bool) -> None:
    def critique(key: Array, obs: Array) -> Critique:
        return Critique(jnp.zeros(1), jnp.float32(0), jnp.float32(0))

    found = value_bias(jax.random.key(0), Failing(failure), critique, 0.5, 2)
    assert [bool(np.isfinite(metric)) for metric in found.values()] == [known] * 2


class Outside:
    """Stands for an environment of Gymnasium whose own wrapper forgets the time limit."""

    metadata = {"render_fps": 30}  # noqa: RUF012

    def reset(self, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
        return np.zeros(1), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return np.zeros(1), 1.0, False, False, {}

    def render(self) -> np.ndarray:
        return np.ones((4, 4, 3), np.uint8)

    def close(self) -> None:
        pass


@pytest.mark.parametrize("how", ["played", "filmed"])
def test_gymnasiums_own_environments_are_not_waited_for(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gymnasium, "make", lambda env_id, like, **options: Outside())
    like, policy = Failing("none"), lambda obs, t: np.zeros((len(obs), 1))
    with pytest.raises(gymnasium.OutsideError, match=r"'Endless-v0' neither terminated nor truncated .* of 4 steps"):
        if how == "played":
            gymnasium.play("Endless-v0", like, policy, [0, 1])
        else:
            list(gymnasium.film("Endless-v0", like, policy, 0, 30.0).frames)
