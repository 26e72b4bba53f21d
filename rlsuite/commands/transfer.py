"""A trained policy in real Gymnasium: its return there next to its return here."""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

import envs
from envs import gymnasium
from rlsuite.errors import MOST_RUNS, UserError, check_at_most
from rlsuite.sweeping import policies
from rlsuite.sweeping.policies import Policy, Trained
from rlsuite.training import train
from rlsuite.training.evaluate import Episodes, check_ended, evaluate
from rlsuite.training.progress import quantity, say

Array = jax.Array

Seed: TypeAlias = int | Literal["first", "all"]

LEVEL = 0.95
"""of all intervals"""
FILM_FPS = 30.0
"""Frames a second of a film at most; more steps than that are left out evenly."""
FILMS = (".mp4", ".gif")


class Estimate(NamedTuple):
    """A mean and the interval that covers it with probability LEVEL, were the values normal."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:10.2f}  [{self.low:.2f}, {self.high:.2f}]"


@np.errstate(over="ignore", invalid="ignore")  # returns that are not finite give NaN, which is shown
def mean_of(values: np.ndarray) -> Estimate:
    """Student's interval for the mean of `[n]`, n >= 2."""
    return around(values.mean(), values.var(ddof=1) / len(values), len(values) - 1)


@np.errstate(over="ignore", invalid="ignore")
def difference_of(a: np.ndarray, b: np.ndarray) -> Estimate:
    """Welch's interval for mean(a) - mean(b), of two independent samples of at least 2."""
    share_a, share_b = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    squares = share_a**2 / (len(a) - 1) + share_b**2 / (len(b) - 1)
    freedom = (share_a + share_b) ** 2 / squares if squares > 0 else np.inf
    return around(a.mean() - b.mean(), share_a + share_b, freedom)


def around(mean: float, variance: float, freedom: float) -> Estimate:
    """The interval for an estimate of this variance with these degrees of freedom."""
    half = float(stats.t.ppf(0.5 + LEVEL / 2, freedom) * np.sqrt(variance))
    return Estimate(float(mean), float(mean) - half, float(mean) + half)


def start_seeds(seed: int, run: int, num_episodes: int) -> list[int]:
    """Gymnasium's seeds for the episodes of one run, by the run's own seed and its number in the shard.

    Each run has start states of its own. Were they in common, so would be the luck with them, and the differences of
    runs would vary less than their mean does. The number matters where a grid trains several runs with one seed.
    """
    return np.random.SeedSequence((seed, run)).generate_state(num_episodes).tolist()


def mean_difference(differences: np.ndarray) -> Estimate:
    """The mean over runs `[num_runs]` of what the episodes of each differ by, as for further runs and episodes.

    Runs vary, and so do the episodes of a run. Each run's difference holds both, and the differences of two runs have
    nothing in common (`start_seeds`), so that Student's interval of them alone is right for both levels together:
    with r runs of n episodes, the variance of their mean is (variance between runs + variance within / n) / r.
    """
    return mean_of(differences)


def transfer(run: str | Path, env_id: str, num_episodes: int, seed: Seed = "first", video: Path | None = None) -> None:
    """Play fresh episodes of a finished run here and in Gymnasium's `env_id`, and print both scores.

    `seed` chooses among the runs of the shard; `video` films the first of them.

    Raises:
        UserError: the run or the environment cannot be used, an episode does not end, or no film can be made.
    """
    if num_episodes < 2:
        raise UserError(f"episodes={num_episodes} must be at least 2, for an interval")
    check_at_most(MOST_RUNS, episodes=num_episodes)
    if video is not None:
        check_film(video)
        gymnasium.expect_no_screen()
    trained = policies.load(run)
    chosen = choose(trained, seed)
    task = trained.task
    try:
        outside = gymnasium.make(env_id, task.env)
    except gymnasium.OutsideError as error:
        raise UserError(str(error)) from error
    own_limit = gymnasium.time_limit(outside)
    outside.close()

    @jax.jit
    def here(leaves: list[Array], key: Array) -> Episodes:
        return evaluate(key, trained.algorithm, task, trained.state(leaves), num_episodes)

    @jax.jit
    def act(leaves: list[Array], key: Array, obs: Array) -> Array:
        keys = jax.random.split(key, len(obs))
        return jax.vmap(trained.algorithm.act, (0, None, None, 0))(keys, task, trained.state(leaves), obs)

    def act_with(policy: Policy, key: Array) -> gymnasium.Act:
        return lambda obs, t: np.asarray(act(policy.leaves, jax.random.fold_in(key, t), jnp.asarray(obs)))

    steps = trained.manifest["total_updates"] * trained.manifest["steps_per_update"]
    limit = task.env.max_episode_steps
    say(
        f"{trained.manifest['label']} after {quantity(steps)} steps: mean return of {num_episodes} episodes of at most "
        f"{limit} steps [{LEVEL:.0%} interval]"
    )
    if own_limit != limit:
        ends = f"ends after {own_limit} steps" if own_limit else "has no time limit"
        say(f"{env_id} {ends} in Gymnasium; played for {limit}, as it was trained")
    names = (
        f"{task.env.id} in {envs.info(task.env.id).backend}",
        f"{env_id}{gymnasium.applied(task.env)} in {gymnasium.backend()}",
    )
    width = max(map(len, names))
    if settings := gymnasium.left_out(task.env):
        say(f"{' and '.join(settings)}: of our simulator alone; Gymnasium has its own settings")
    differences = []
    for policy in chosen:
        # An index that training does not use: these episodes are new to everybody.
        key = train.stream_key(jnp.uint32(policy.seed), train.EVALUATION_STREAM, policy.update + 1)
        key = jax.random.fold_in(key, policy.run)
        episodes = here(policy.leaves, key)
        check_ended(episodes.ended, task.env)
        ours = np.asarray(episodes.returns, np.float64)
        seeds = start_seeds(policy.seed, policy.run, num_episodes)
        try:
            theirs = gymnasium.play(env_id, task.env, act_with(policy, key), seeds).returns
        except gymnasium.OutsideError as error:
            raise UserError(str(error)) from error
        say(f"run {policy.run}, seed {policy.seed}")
        for name, returns in zip(names, (ours, theirs), strict=True):
            say(f"  {name:<{width}} {mean_of(returns)}")
        say(f"  {'difference':<{width}} {difference_of(theirs, ours)}")
        differences.append(theirs.mean() - ours.mean())
    if len(differences) > 1:
        say(f"mean difference of {len(differences)} runs {mean_difference(np.asarray(differences))}")
    if video is not None:
        key = jax.random.key(chosen[0].seed)
        shoot(video, lambda: gymnasium.film(env_id, task.env, act_with(chosen[0], key), 0, FILM_FPS))


def choose(trained: Trained, seed: Seed) -> list[Policy]:
    """The policies of the runs with this seed, without those that have diverged.

    Raises:
        UserError: there is none.
    """
    seeds: list[int] = trained.table["seed"].to_pylist()
    diverged: list[bool] = trained.table["diverged"].to_pylist()
    asked = [row for row, row_seed in enumerate(seeds) if seed in ("all", row_seed)] if seed != "first" else [0]
    if not asked:
        raise UserError(f"no run has the seed {seed}; there are {min(seeds)} to {max(seeds)}")
    usable = [row for row in asked if not diverged[row]]
    if not usable:
        which = "every run" if seed == "all" else f"the run of seed {seeds[asked[0]]}"
        raise UserError(f"{which} has diverged, so there is no policy to play with; choose another --seed or shard")
    if len(usable) < len(asked):
        say(f"{len(asked) - len(usable)} of {len(asked)} runs have diverged and play nothing")
    return [trained.policy(row) for row in usable]


# --- Film -------------------------------------------------------------------------------------------------------------


def check_film(path: Path) -> None:
    """Raise UserError unless a film of this name can be written, as far as can be seen before it is made."""
    if path.suffix.lower() not in FILMS:
        raise UserError(f"video '{path}' must end in {' or '.join(FILMS)}")
    if not path.parent.is_dir():
        raise UserError(f"video '{path}' cannot be written, there is no folder '{path.parent}'; make it first")
    for package in ("imageio", "imageio_ffmpeg") if path.suffix.lower() == ".mp4" else ("imageio",):
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"video '{path}' needs the package '{package}'; install it with: pip install 'rlsuite[video]'"
            )


def shoot(path: Path, film: Callable[[], gymnasium.Film]) -> None:
    """Write a film. What was there under this name is replaced when the new one is whole."""
    import imageio.v2 as imageio

    suffix = path.suffix.lower()
    temporary = path.with_name(f".{os.getpid()}{suffix}")
    try:
        taken = film()
        # A gif keeps every picture as it is, so it gets small ones.
        options: dict[str, Any] = {"duration": 1000 / taken.fps, "loop": 0}
        if suffix == ".mp4":
            options = {"fps": taken.fps, "macro_block_size": 2}  # the codec needs even numbers of pixels
        count = 0
        writer: Any
        with warnings.catch_warnings(), imageio.get_writer(temporary, **options) as writer:
            # Python warns of any process that is started next to JAX; this one becomes ffmpeg at once.
            warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
            for frame in taken.frames:
                writer.append_data(frame if suffix == ".mp4" else frame[::2, ::2])
                count += 1
        os.replace(temporary, path)
    except (gymnasium.OutsideError, OSError) as error:
        raise UserError(f"no video '{path}': {' '.join(str(error).split())}") from error
    finally:
        temporary.unlink(missing_ok=True)
    say(f"Video: {path} ({count} frames, {quantity(path.stat().st_size)}B)")
