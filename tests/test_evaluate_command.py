"""Out again: what runs have learned is kept beside their results, and `rlsuite evaluate` plays it in real Gymnasium."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as real_gymnasium
import imageio.v3 as imageio
import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy import stats

import envs
from envs import gymnasium
from rlsuite import algorithms
from rlsuite.commands import cli, report, transfer
from rlsuite.core import Task
from rlsuite.errors import UserError
from rlsuite.sweeping import entry, policies
from rlsuite.sweeping.entry import Entry
from rlsuite.sweeping.job import resolve
from rlsuite.sweeping.store import Store
from rlsuite.sweeping.sweep import Cell
from rlsuite.training import batch, train
from rlsuite.training.evaluate import evaluate

pytestmark = pytest.mark.xdist_group("evaluate")

LIMIT = 20
TINY = ["run", "ppo", "--env", "gymnax/CartPole-v1", "--max-episode-steps", str(LIMIT), "--num-envs", "2"]
TINY += ["--num-steps", "8", "--num-minibatches", "2", "--num-epochs", "1", "--hidden-sizes", "8,4", "--steps", "32"]
TINY += ["--evaluations", "2", "--eval-episodes", "3", "--width", "2", "--devices", "1"]
# Four runs in two chunks: with the second learning rate, nothing stays finite.
TINY += ["--seeds", "2", "--first-seed", "5", "--learning-rate", "1e-2,1e38"]


def command(*arguments: str) -> tuple[int, str, str]:
    """Exit status and what is printed."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main(list(arguments))
    return status, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def compiled() -> list[batch.Compiled]:
    return []


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, compiled: list[batch.Compiled]) -> Path:
    """The folder with TINY's shard."""
    compile_programs = batch.compile_programs

    def kept(*arguments: Any) -> batch.Compiled:
        compiled.append(compile_programs(*arguments))
        return compiled[0]

    results = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch, "compile_programs", kept)
        patch.setattr(report, "report_after", lambda folder: 0)
        status, _, err = command(*TINY, "--results", str(results))
    assert status == 0, err
    return results / "run"


@pytest.fixture
def ready(finished: Path, compiled: list[batch.Compiled], monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out compiling: the programs of TINY do for every run of it."""
    monkeypatch.setattr(batch, "compile_programs", lambda *arguments: compiled[0])


def bytes_of(folder: Path) -> bytes:
    [path] = folder.glob(f"*{entry.POLICIES}")
    return path.read_bytes()


# --- What is kept -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ppo", "sac"])
def test_what_is_kept_acts_as_the_state_does(name: str) -> None:
    """And is a small part of it: SAC's buffer, critics and optimisers stay behind."""
    spec = algorithms.get(name)
    algorithm, task, hypers = (
        spec.make(spec.trial.config),
        Task(envs.make("probe/action/continuous")),
        spec.trial.hypers,
    )
    shapes, structure = jax.tree.flatten(policies.state_shapes(algorithm, task, hypers))
    numbers = np.random.default_rng(0)
    every = [np.asarray(numbers.uniform(0, 0.1, shape.shape), shape.dtype) for shape in shapes]
    state = jax.tree.unflatten(structure, every)
    kept = policies.read_by_act(algorithm, task, jax.tree.unflatten(structure, shapes))
    spoilt = [leaf if i in kept else np.full_like(leaf, 7) for i, leaf in enumerate(every)]
    obs = jnp.linspace(-1.0, 1.0, task.env.obs_dim)
    key = jax.random.key(1)
    act = jax.jit(algorithm.act)
    action = act(key, task, state, obs)
    assert abs(action[0]) < 0.99, "an action at the end of the box would not show what is spoilt"
    np.testing.assert_array_equal(act(key, task, jax.tree.unflatten(structure, spoilt), obs), action)
    assert set(policies.leaves(algorithm, task, hypers, state)) == {f"leaf{i:04}" for i in kept}
    size, whole = batch.total_bytes([every[i] for i in kept]), batch.total_bytes(state)
    assert 0 < size < (0.5 if name == "ppo" else 0.1) * whole


def test_the_last_evaluation_comes_out_again(finished: Path) -> None:
    """From the files alone, for every run that did not diverge, in both chunks."""
    trained = policies.load(finished)
    assert trained.table.num_rows == 4
    assert trained.table["run"].to_pylist() == [0, 1, 2, 3]
    assert trained.table["seed"].to_pylist() == [5, 6, 5, 6]
    assert trained.table["update"].to_pylist() == [2] * 4
    assert trained.table["diverged"].to_pylist() == [False, False, True, True]
    [path] = finished.glob("*.parquet")
    last = [row for row in pq.read_table(path).to_pylist() if row["update"] == 2]
    for run in (0, 1):
        policy = trained.policy(run)
        key = train.stream_key(jnp.uint32(policy.seed), train.EVALUATION_STREAM, 2)
        episodes = evaluate(key, trained.algorithm, trained.task, trained.state(policy.leaves), 3)
        assert episodes.returns.tolist() == last[run]["episode_returns"]
    assert not np.array_equal(*[trained.policy(run).leaves[-1] for run in (0, 1)])


def test_an_interrupted_run_keeps_the_same_policies(
    finished: Path, tmp_path: Path, ready: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk whose last rows are there is not trained again, so its policies must be there before."""
    write_rows = Entry.write_rows

    def dying(self: Entry, first: int, evaluation: train.Evaluation) -> None:
        if (first, evaluation.update) == (2, 2):
            names = {path.name for path in self.partial.glob("policies*")}
            assert names == {"policies000000-000001.arrow", "policies000002-000003.arrow"}
            raise RuntimeError("out of power")
        write_rows(self, first, evaluation)

    monkeypatch.setattr(report, "report_after", lambda folder: 0)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="out of power"):
        patch.setattr(Entry, "write_rows", dying)
        command(*TINY, "--results", str(tmp_path))
    assert list((tmp_path / "run").glob(f"*{entry.POLICIES}")) == []
    assert command(*TINY, "--results", str(tmp_path))[0] == 0
    assert bytes_of(tmp_path / "run") == bytes_of(finished)
    assert list((tmp_path / "run").glob("*.partial")) == []


def test_policies_that_begin_anew_are_gone(tmp_path: Path) -> None:
    """Those of chunks of another width, too: no run may be there twice."""
    four = resolve("e", Cell("ppo", "probe/action/discrete", 32, seeds=4))
    running = Store(tmp_path).open(four)
    with running.claim():
        for first, stop in ((0, 2), (2, 4)):
            leaves = {"leaf0000": np.full((stop - first, 2, 3), first, np.float32)}
            running.write_policies(first, 2, np.zeros(stop - first, bool), leaves)
        running.forget(3, 4)
        names = {path.name for path in running.partial.glob("policies*")}
    assert names == {"policies000000-000001.arrow"}


def test_a_policy_of_another_package_as_it_was_is_named(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in finished.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    policies.load(tmp_path)
    assert capsys.readouterr().out == ""
    [manifest] = tmp_path.glob("*.json")
    package = {"name": "mine", "version": "0.1", "sources": "5eed"}
    facts = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**facts, "packages": {"algorithm": package}}))
    policies.load(tmp_path)
    assert capsys.readouterr().out == (
        f"played with other code than '{manifest.stem}' was trained with: the package of the algorithm is rlsuite's "
        "own, was mine 0.1 (sources 5eed)\n"
    )


# --- The command ------------------------------------------------------------------------------------------------------


def test_both_scores_and_their_difference_are_shown(finished: Path) -> None:
    status, out, err = command("evaluate", str(finished), "--gymnasium", "CartPole-v1", "--episodes", "30")
    assert (status, err) == (0, "")
    number = r"-?\d+\.\d\d"
    row = rf" +({number})  \[({number}), ({number})\]"
    lines = out.splitlines()
    assert lines[0] == "ppo after 32 steps: mean return of 30 episodes of at most 20 steps [95% interval]"
    assert lines[1] == "CartPole-v1 ends after 500 steps in Gymnasium; played for 20, as it was trained"
    assert lines[2] == "run 0, seed 5"
    found = []
    names = ("gymnax/CartPole-v1 in JAX", "CartPole-v1 in Gymnasium " + real_gymnasium.__version__, "difference")
    for line, name in zip(lines[3:], names, strict=True):
        match = re.fullmatch(rf"  {re.escape(name)}{row}", line)
        assert match, line
        found.append([float(group) for group in match.groups()])
    here, there, difference = found
    assert difference[0] == pytest.approx(there[0] - here[0], abs=0.011)
    for mean, low, high in found:
        assert low < mean < high
    # The same task by two hands. Returns are 8 to 20, so an interval that misses 0 by a whole step is a fault.
    assert difference[1] - 1 < 0 < difference[2] + 1
    assert 8 <= here[0] <= LIMIT


@pytest.mark.parametrize(
    ("limit", "line"),
    [(LIMIT, "run 0"), (None, "CartPole-v1 has no time limit in Gymnasium; played for 20, as it was trained")],
)
def test_a_time_limit_that_is_overridden_is_told(
    limit: int | None, line: str, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gymnasium, "time_limit", lambda outside: limit)
    status, out, _ = command("evaluate", str(finished), "--gymnasium", "CartPole-v1", "--episodes", "2")
    assert status == 0 and out.splitlines()[1].startswith(line)


def test_gymnasiums_own_time_limit() -> None:
    like = envs.make("gymnax/CartPole-v1", max_episode_steps=45)
    for env_id, limit in (("CartPole-v0", 200), ("CartPole-v1", 500)):
        assert gymnasium.time_limit(gymnasium.make(env_id, like)) == limit


def test_all_runs_and_what_has_diverged(finished: Path) -> None:
    [path] = finished.glob("*.parquet")
    status, out, _ = command("evaluate", str(path), "--gymnasium", "CartPole-v1", "--episodes", "2", "--seed", "all")
    assert status == 0
    lines = out.splitlines()
    assert lines[0] == "2 of 4 runs have diverged and play nothing"
    assert [line for line in lines if line.startswith("run ")] == ["run 0, seed 5", "run 1, seed 6"]
    assert re.fullmatch(r"mean difference of 2 runs +\S+  \[.+\]", lines[-1])


def test_intervals_are_those_of_scipy() -> None:
    a, b = np.array([1.0, 2.0, 4.0, 8.0]), np.array([0.0, 3.0, 3.5])
    interval = stats.ttest_1samp(a, 0).confidence_interval(0.95)
    np.testing.assert_allclose(transfer.mean_of(a), (a.mean(), interval.low, interval.high))
    interval = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    np.testing.assert_allclose(transfer.difference_of(a, b), (a.mean() - b.mean(), interval.low, interval.high))
    same = np.ones(3)
    assert transfer.difference_of(same, same) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("odd", [np.inf, -np.inf, np.nan])
def test_an_interval_of_returns_that_are_not_finite_makes_no_warning(odd: float) -> None:
    with warnings.catch_warnings(action="error"):
        for one in (transfer.mean_of(np.array([odd, odd])), transfer.difference_of(np.array([odd, 1]), np.ones(2))):
            assert np.isnan(one.low) and np.isnan(one.high)


def by_angle(obs: np.ndarray, t: int) -> np.ndarray:
    """Push to the side that the pole falls to."""
    return (obs[:, 2] > 0).astype(np.int64)


def test_gymnasium_plays_whole_episodes_each_from_its_own_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    like = envs.make("gymnax/CartPole-v1", max_episode_steps=45)
    seeds = [3, 2**32 - 1, 0, 77, 4, 5, 6]
    lengths = []
    for seed in seeds:
        env = real_gymnasium.make("CartPole-v1", max_episode_steps=45)
        obs, over, length = env.reset(seed=seed)[0], False, 0
        while not over:
            obs, _, terminated, truncated, _ = env.step(int(obs[2] > 0))
            over, length = terminated or truncated, length + 1
        lengths.append(length)
    assert len(set(lengths)) > 2
    for at_once in (100, 3):
        monkeypatch.setattr(gymnasium, "SIDE_BY_SIDE", at_once)
        played = gymnasium.play("CartPole-v1", like, by_angle, seeds)
        assert played.lengths.tolist() == lengths
        assert played.returns.tolist() == lengths


# --- The mean difference of runs --------------------------------------------------------------------------------------


def test_no_two_runs_play_from_the_same_start_states(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []
    reset = real_gymnasium.Env.reset

    def noted(self: Any, *, seed: int | None = None, options: Any = None) -> Any:
        used.extend([] if seed is None else [seed])
        return reset(self, seed=seed, options=options)

    monkeypatch.setattr(real_gymnasium.Env, "reset", noted)
    status, *_ = command("evaluate", str(finished), "--gymnasium", "CartPole-v1", "--episodes", "5", "--seed", "all")
    assert status == 0
    assert len(used) == len(set(used)) == 2 * 5


def test_runs_of_a_grid_that_share_a_seed_share_no_start_state() -> None:
    seeds = [transfer.start_seeds(seed, run, 100) for run, seed in enumerate([0, 1, 0, 1])]
    assert len({one for run_seeds in seeds for one in run_seeds}) == 400
    assert transfer.start_seeds(1, 3, 100) == seeds[3]


RUNS, EPISODES, EXPERIMENTS = 6, 10, 4000


def covered(seeds: list[list[int]]) -> int:
    """In how many experiments the interval of the mean difference holds the truth, if runs play from these seeds.

    Runs differ from each other, and in each experiment the return depends on the start state in another way. A start
    state is a seed of Gymnasium's; those that are played here are everybody's own.
    """
    numbers = np.random.default_rng(0)
    distinct, which = np.unique(seeds, return_inverse=True)
    truth, count = 0.7, 0
    for _ in range(EXPERIMENTS):
        there = (
            truth + 0.3 * numbers.normal(size=(RUNS, 1)) + numbers.normal(size=len(distinct))[which.reshape(RUNS, -1)]
        )
        here = numbers.normal(size=(RUNS, EPISODES))
        interval = transfer.mean_difference(there.mean(axis=1) - here.mean(axis=1))
        count += interval.low <= truth <= interval.high
    return count


def test_the_interval_of_the_mean_difference_covers_the_truth_as_often_as_it_says() -> None:
    """Not more than chance away from it: one in ten thousand. With start states in common it is far off."""
    least, most = stats.binom.interval(0.9999, EXPERIMENTS, transfer.LEVEL)
    assert least <= covered([transfer.start_seeds(run % 3, run, EPISODES) for run in range(RUNS)]) <= most
    assert covered([list(range(EPISODES))] * RUNS) < least


# --- Policies of changed tasks ----------------------------------------------------------------------------------------

STEPS = 30


class Expected(NamedTuple):
    """What a wrapper makes of an episode of Gymnasium's, in NumPy."""

    env_id: str
    action: Callable[[np.ndarray], np.ndarray] = lambda action: action
    """what is done -> what reaches Gymnasium, `[time, dim]` each"""
    obs: Callable[[np.ndarray], np.ndarray] = lambda obs: obs
    """what Gymnasium shows -> what the policy sees, `[time + 1, obs_dim]` each"""
    reward: Callable[[np.ndarray], np.ndarray] = lambda reward: reward
    """what Gymnasium pays -> what counts, `[time]` each"""


def paid_late(reward: np.ndarray) -> np.ndarray:
    """Every 7 steps and at the end."""
    paid = np.zeros(STEPS)
    for first in range(0, STEPS, 7):
        stop = min(first + 7, STEPS)
        paid[stop - 1] = reward[first:stop].sum()
    return paid


AROUND: dict[str, Expected] = {
    # This car's reward charges for all that it is asked to do.
    "clip_actions": Expected("gymnax/MountainCarContinuous-v0+clip_actions", action=lambda action: action.clip(-1, 1)),
    "scale_actions": Expected("gymnax/Pendulum-v1+scale_actions", action=lambda action: 2 * action),
    "observation_delay": Expected(
        "gymnax/Pendulum-v1+observation_delay=3", obs=lambda obs: np.concatenate([obs[[0, 0, 0]], obs[:-3]])
    ),
    "observation_noise": Expected("gymnax/Pendulum-v1+observation_noise=0.5"),
    "reward_scale": Expected("gymnax/Pendulum-v1+reward_scale=0.1", reward=lambda reward: 0.1 * reward),
    "sparse_reward": Expected("gymnax/Pendulum-v1+sparse_reward=7", reward=paid_late),
}
"""What is around Gymnasium's episodes too."""
SETTINGS = {
    "solver_iterations": "solver_iterations=4",
    "linesearch_iterations": "linesearch_iterations=4",
    "solver": "solver=cg",
    "integrator": "integrator=euler",
    "implementation": "implementation=warp",
}
"""What is of our simulator alone."""


def test_it_is_decided_of_every_wrapper_what_it_is_in_gymnasium() -> None:
    registered = {re.findall(r"\w+", shown)[0] for shown in envs.describe_wrappers()}
    assert registered == AROUND.keys() | SETTINGS.keys()


def played_with(env_id: str, name: str, seeds: list[int], monkeypatch: pytest.MonkeyPatch) -> tuple[Any, ...]:
    """The returns `[n]`, the observations that a policy saw `[n, time, obs_dim]`, the rewards `[n, time]`, of actions
    that do not depend on them `[n, time, dim]`, and these."""
    like = envs.make(env_id, max_episode_steps=STEPS)
    done = np.random.default_rng(1).uniform(-1.5, 1.5, (len(seeds), STEPS, 1)).astype(np.float32)
    seen, rewards = [], []

    def act(obs: np.ndarray, t: int) -> np.ndarray:
        seen.append(obs.copy())
        return done[:, t]

    judge = gymnasium.Wrappers.judge

    def noted(self: gymnasium.Wrappers, actions: np.ndarray) -> Any:
        shown = judge(self, actions)
        rewards.append(shown.reward.copy())
        return shown

    monkeypatch.setattr(gymnasium.Wrappers, "judge", noted)
    played = gymnasium.play(name, like, act, seeds)
    monkeypatch.setattr(gymnasium.Wrappers, "judge", judge)
    assert played.lengths.tolist() == [STEPS] * len(seeds)
    return played.returns, np.stack(seen, 1), np.stack(rewards, 1), done


@pytest.mark.parametrize("name", AROUND)
def test_a_wrapper_is_around_gymnasiums_episodes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, seeds = AROUND[name], [4, 9]
    plain_id = expected.env_id.split("+")[0]
    gymnasium_id = plain_id.removeprefix("gymnax/")
    like = envs.make(expected.env_id)
    assert (gymnasium.applied(like), gymnasium.left_out(like)) == (expected.env_id.removeprefix(plain_id), ())
    returns, seen, rewards, done = played_with(expected.env_id, gymnasium_id, seeds, monkeypatch)
    for i, seed in enumerate(seeds):
        env = real_gymnasium.make(gymnasium_id, max_episode_steps=STEPS, disable_env_checker=True)
        obs, reward = [env.reset(seed=seed)[0]], []
        for action in expected.action(done[i]):
            step = env.step(action)
            obs.append(step[0])
            reward.append(float(step[1]))
        if name == "observation_noise":
            noise = seen[i] - np.stack(obs)[:-1]
            assert abs(noise.std() - 0.5) < 5 * 0.5 / np.sqrt(2 * noise.size)
            assert abs(noise.mean()) < 5 * 0.5 / np.sqrt(noise.size)
            assert len(set(noise.ravel().tolist())) == noise.size
        else:
            np.testing.assert_allclose(seen[i], expected.obs(np.stack(obs))[:-1], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(rewards[i], expected.reward(np.asarray(reward)), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(returns[i], expected.reward(np.asarray(reward)).sum(), rtol=1e-5)
    if name == "observation_noise":
        again = played_with(expected.env_id, gymnasium_id, seeds, monkeypatch)
        np.testing.assert_array_equal(again[1], seen)
        assert not np.allclose(*(seen - played_with(plain_id, gymnasium_id, seeds, monkeypatch)[1]))


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_of_our_simulator_is_left_out_and_named(name: str) -> None:
    like = envs.make(f"mujoco/InvertedPendulum-v5+{SETTINGS[name]}+reward_scale=0.5", max_episode_steps=STEPS)
    assert gymnasium.left_out(like) == (SETTINGS[name],)
    assert gymnasium.applied(like) == "+reward_scale=0.5"


def test_the_command_says_which_wrappers_are_around_both(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy of CartPole, as if it had been trained for a tenth of the rewards."""
    [path] = copied.glob("*.json")
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "environment": "gymnax/CartPole-v1+reward_scale=0.1"}))
    monkeypatch.setattr(gymnasium, "left_out", lambda env: ("solver=cg", "integrator=euler"))
    status, out, err = command("evaluate", str(copied), "--gymnasium", "CartPole-v1", "--episodes", "30")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[2] == "solver=cg and integrator=euler: of our simulator alone; Gymnasium has its own settings"
    means = []
    for line, name in zip(
        lines[4:6], ("gymnax/CartPole-v1+reward_scale=0.1 in", "CartPole-v1+reward_scale=0.1 in"), strict=True
    ):
        assert line.startswith(f"  {name} "), line
        means.append(float(line.split("[")[0].split()[-1]))
    for mean in means:
        assert 0.8 <= mean <= LIMIT / 10


# --- Errors -----------------------------------------------------------------------------------------------------------

ERRORS: dict[str, tuple[list[str], list[str]]] = {
    "no run": (["nosuch", "--gymnasium", "CartPole-v1"], ["no finished shard 'nosuch'", "results/run/<shard>"]),
    "no environment": (["RUN"], ["--gymnasium", "rlsuite evaluate --help"]),
    "misspelt environment": (["RUN", "--gymnasium", "CartPol-v1"], ["'CartPol-v1'", "doesn't exist"]),
    "other observations": (
        ["RUN", "--gymnasium", "Acrobot-v1"],
        ["'Acrobot-v1'", "shape (6,)", "4 numbers", "gymnax/CartPole-v1", "choose the same task"],
    ),
    "no observation vector": (["RUN", "--gymnasium", "FrozenLake-v1"], ["'FrozenLake-v1'", "Discrete"]),
    "one episode": (["RUN", "--gymnasium", "CartPole-v1", "--episodes", "1"], ["episodes=1", "at least 2"]),
    "no such seed": (["RUN", "--gymnasium", "CartPole-v1", "--seed", "9"], ["seed 9", "5 to 6"]),
    "no seed": (["RUN", "--gymnasium", "CartPole-v1", "--seed", "x"], ["--seed", "'x'", "'all'"]),
    "no film": (["RUN", "--gymnasium", "CartPole-v1", "--video", "a.avi"], ["'a.avi'", ".mp4 or .gif"]),
    "no folder": (["RUN", "--gymnasium", "CartPole-v1", "--video", "x/a.gif"], ["'x/a.gif'", "no folder 'x'"]),
}


@pytest.mark.parametrize("case", ERRORS)
def test_what_cannot_be_is_said_in_one_line(
    case: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, said = ERRORS[case]
    status, _, err = command("evaluate", *[str(finished) if word == "RUN" else word for word in arguments])
    assert status == 2
    assert re.fullmatch(r"rlsuite: [^\n]+\n", err), err
    assert [part for part in said if part not in err] == []
    assert list(tmp_path.iterdir()) == []


def test_other_actions_are_refused() -> None:
    like: Any = envs.make("mujoco/InvertedPendulum-v5")
    with pytest.raises(gymnasium.OutsideError, match=r"takes Box\(-2.0, 2.0.*\(3.0,\)\); choose the same task"):
        gymnasium.make("Pendulum-v1", like.replace(obs_dim=3))
    for wrapped in ("", "+scale_actions"):
        gymnasium.make("Pendulum-v1", envs.make(f"gymnax/Pendulum-v1{wrapped}")).close()
    with pytest.raises(gymnasium.OutsideError, match=r"takes Discrete\(3\)"):
        gymnasium.make("MountainCar-v0", envs.make("gymnax/MountainCarContinuous-v0"))


def test_what_gymnasium_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(gymnasium.OutsideError, match=r"needs the package 'gymnasium'.*pip install"):
        gymnasium.make("CartPole-v1", envs.make("gymnax/CartPole-v1"))


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """The shard in a folder of its own, whose files may be damaged."""
    for path in finished.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_a_shard_without_policies_says_so(copied: Path) -> None:
    [path] = copied.glob(f"*{entry.POLICIES}")
    path.unlink()
    base = str(path).removesuffix(entry.POLICIES)
    with pytest.raises(UserError, match="has no saved policies; train it to its end without --no-save-policies"):
        policies.load(base)
    Path(base + ".parquet").unlink()
    with pytest.raises(UserError, match="is not finished; "):
        policies.load(base)


def test_damaged_policies_say_so(copied: Path) -> None:
    [path] = copied.glob(f"*{entry.POLICIES}")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"policies '.*' cannot be read"):
        policies.load(copied)


def test_policies_of_another_version_are_refused(copied: Path) -> None:
    [path] = copied.glob("*.json")
    text = path.read_text()
    changed = re.sub(r'("hidden_sizes": \[\s*)8,', r"\g<1>9,", text)
    assert changed != text
    path.write_text(changed)
    with pytest.raises(UserError, match="policies of another version of 'ppo'"):
        policies.load(copied)


def test_one_of_several_shards_must_be_named(copied: Path) -> None:
    for path in list(copied.iterdir()):
        (copied / f"b{path.name}").write_bytes(path.read_bytes())
    with pytest.raises(UserError, match="holds 2 shards with policies; name one of them, such as bppo"):
        policies.load(copied)


def test_policies_need_not_be_saved(tmp_path: Path, ready: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "report_after", lambda folder: 0)
    assert command(*TINY, "--no-save-policies", "--results", str(tmp_path))[0] == 0
    assert sorted(path.suffix for path in (tmp_path / "run").iterdir()) == [".json", ".parquet"]


# --- Film -------------------------------------------------------------------------------------------------------------


class Filmed:
    """Stands for an environment of Gymnasium: five steps of pictures that grow brighter, at 50 steps a second."""

    metadata = {"render_fps": 50}  # noqa: RUF012

    def __init__(self, render: Callable[[int], Any]) -> None:
        self.t = 0
        self._render = render

    def reset(self, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
        return np.zeros(4), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return np.zeros(4), 1.0, self.t == 5, False, {}

    def render(self) -> Any:
        return self._render(self.t)

    def close(self) -> None:
        pass


def picture(t: int) -> np.ndarray:
    return np.full((8, 6, 3), 40 * t + 10, np.uint8)


def shoot(path: Path, render: Callable[[int], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gymnasium, "make", lambda env_id, like, **options: Filmed(render))
    like = envs.make("gymnax/CartPole-v1")
    transfer.shoot(path, lambda: gymnasium.film("CartPole-v1", like, by_angle, 0, transfer.FILM_FPS))


def test_a_film_shows_one_episode_in_real_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 50 steps a second every other one is shown, since 30 pictures a second are enough; a gif is half as wide."""
    shoot(tmp_path / "a.gif", picture, monkeypatch)
    assert [path.name for path in tmp_path.iterdir()] == ["a.gif"]
    frames = imageio.imread(tmp_path / "a.gif", index=None)
    assert frames.shape == (3, 4, 3, 3)
    assert [int(frame.mean()) for frame in frames] == [10, 90, 170]
    assert imageio.immeta(tmp_path / "a.gif", index=0)["duration"] == 40


def raising(t: int) -> Any:
    if t:
        raise RuntimeError("no OpenGL\nhere")
    return picture(t)


@pytest.mark.parametrize("render", [raising, lambda t: np.zeros((8, 6, 3), np.uint8), lambda t: None])
def test_where_nothing_can_be_drawn_no_file_is_left(
    render: Callable[[int], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"no video '.*a.gif': nothing can be drawn off-screen here .*MUJOCO_GL=egl"):
        shoot(tmp_path / "a.gif", render, monkeypatch)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "package"), [("a.gif", "imageio"), ("a.mp4", "imageio_ffmpeg")])
def test_what_a_film_needs_is_named(name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda asked: None if asked == package else find_spec(asked))
    with pytest.raises(
        UserError, match=rf"needs the package '{package}'; install it with: pip install 'rlsuite\[video"
    ):
        transfer.check_film(tmp_path / name)
