"""How far MJX is from C MuJoCo, as Gymnasium runs it: prints the tables in docs/parity.md.

    python benchmarks/parity.py [--states N] [--episodes N] [--horizon N] [--precision 32 64] [TASK ...]
    python benchmarks/parity.py --trained results/run/<shard> ...
    python benchmarks/parity.py --settings [--states N] TASK ...

One step: Gymnasium plays episodes with random actions, or with those of the trained policies of a finished shard (each
run's in turn, an episode each); from each of its states MJX takes the same step, and observation and reward are
compared, in float32 as programs compute and in float64. An error of the observation is that of its worst entry,
relative to that entry where it is above 1.

Returns: both play the same number of episodes with the same random actions from the same initial states. Their
difference is given with the 95 % interval of its mean; episodes part after a while, since contacts amplify rounding.
(`rlsuite evaluate` compares the returns of trained policies.)

Settings: the error of one step with each of `SETTINGS`, in float32, and the speed of that very program on the states of
the episodes, in which feet touch the ground. Speeds are the best of short rounds in which all settings take turns, so
that little is left of what else the machine does.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import time
import warnings
from collections.abc import Callable
from typing import Any, TypeAlias

import gymnasium
import jax
import mujoco
import numpy as np
from mujoco import mjx

from envs import lapack, wrappers
from envs import mujoco as adapter
from envs.mujoco_tasks import Physics
from envs.registry import make
from rlsuite.sweeping import policies

LANES = 50
"""environments that MJX steps at once"""

SETTINGS = (
    "",
    "+solver_iterations=4",
    "+solver_iterations=2",
    "+solver_iterations=1",
    "+linesearch_iterations=8",
    "+linesearch_iterations=4",
    "+linesearch_iterations=1",
    "+solver_iterations=1+linesearch_iterations=4",
    "+solver=cg",
    "+solver=cg+solver_iterations=8",
    "+integrator=euler",
    "+integrator=euler+solver_iterations=1+linesearch_iterations=4",
)
"""of which the cost is shown: nothing relaxed, one thing after the other, and together"""

ROUNDS, ROUND_SECONDS = 5, 0.3
"""in which speeds are measured, and of one core"""

Act: TypeAlias = Callable[[int, np.ndarray], np.ndarray]
"""(number of the episode, observation) -> action"""


def random_actions(task: str) -> Act:
    """Uniform in the box."""
    space, rng = gymnasium_env(task).action_space, np.random.default_rng(0)
    return lambda episode, obs: rng.uniform(space.low, space.high).astype(np.float32)


def trained_actions(trained: policies.Trained) -> Act:
    """The evaluation policy of one run after the other."""
    every = [policy for policy in map(trained.policy, range(len(trained.table))) if not policy.diverged]

    @jax.jit
    def act(leaves: list[jax.Array], obs: jax.Array) -> jax.Array:
        return trained.algorithm.act(jax.random.key(0), trained.task, trained.state(leaves), obs)

    return lambda episode, obs: np.asarray(act(every[episode % len(every)].leaves, np.float32(obs)))


def gymnasium_env(task: str) -> Any:
    """Gymnasium's task without its time limit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return gymnasium.make(task).unwrapped


def built(task: str) -> Any:
    """MJX' task with its settings, in the precision that JAX computes in now; `make` would remember another one."""
    base, *settings = task.split("+")
    env: Any = adapter.build(f"mujoco/{base}", 1000)
    for chosen in wrappers.read(f"mujoco/{base}", settings, adapter.WRAPPERS):
        env = chosen.apply(env)
    return env


def position_of(env: Any, template: adapter.Template) -> float:
    """`Rules.position` of what Gymnasium's task shows, in float64."""
    fields = {name: np.array(getattr(env.data, name)) for name in template.rules.reads}
    physics: Any = Physics(np.array(env.data.qpos), np.array(env.data.qvel), **fields)
    with jax.enable_x64(True):
        return float(template.rules.position(physics))


def record(task: str, template: adapter.Template, states: int, act: Act) -> dict[str, np.ndarray]:
    """Gymnasium's steps with these actions: the states before, the actions, and what they led to."""
    env = gymnasium_env(task)
    spec = gymnasium.spec(task)
    rows: list[dict[str, Any]] = []
    seed, steps = 0, 0
    obs, _ = env.reset(seed=seed)
    while len(rows) < states:
        row: dict[str, Any] = {
            "qpos": env.data.qpos.copy(),
            "qvel": env.data.qvel.copy(),
            "qacc_warmstart": env.data.qacc_warmstart.copy(),
            "position": position_of(env, template),
            "action": act(seed, obs),
        }
        row["obs"], row["reward"], row["terminated"], _, _ = env.step(row["action"])
        obs = row["obs"]
        rows.append(row)
        steps += 1
        if row["terminated"] or steps == spec.max_episode_steps:
            seed, steps = seed + 1, 0
            obs, _ = env.reset(seed=seed)
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def one_step(env: adapter.Mujoco, simulation: adapter.Simulation, action: jax.Array) -> tuple[Any, Any, Any]:
    """Observation, reward and end after one step of MJX, in the precision that JAX computes in."""
    rules = env.template.rules
    physics, _ = env.simulate(simulation, action)
    reward, terminated = rules.judge(physics, (rules.position(physics) - simulation.position) / env.template.dt, action)
    return rules.observe(physics), reward, terminated


def batched_step(task: str) -> Any:
    """jit: (simulations, actions) of LANES states -> what `one_step` gives, in the precision JAX computes in now."""
    return jax.jit(jax.vmap(functools.partial(one_step, built(task))))


def in_batches(rows: dict[str, np.ndarray], dtype: Any) -> list[tuple[adapter.Simulation, np.ndarray]]:
    """The states and actions of these steps, LANES at a time."""
    batches = []
    for first in range(0, len(rows["action"]), LANES):
        chunk = {name: values[first : first + LANES] for name, values in rows.items()}
        simulation = adapter.Simulation(*(chunk[name].astype(dtype) for name in adapter.Simulation._fields))
        batches.append((simulation, chunk["action"].astype(dtype)))
    return batches


def errors(step: Any, rows: dict[str, np.ndarray], dtype: Any) -> tuple[np.ndarray, np.ndarray, int]:
    """Errors `[states]` of observation and reward, and in how many states the ends differ."""
    found = [jax.device_get(step(*batch)) for batch in in_batches(rows, dtype)]
    obs, reward, terminated = (np.concatenate(parts) for parts in zip(*found, strict=True))
    obs_error = np.abs(obs - rows["obs"]) / np.maximum(1.0, np.abs(rows["obs"]))
    return obs_error.max(axis=1), np.abs(reward - rows["reward"]), int((terminated != rows["terminated"]).sum())


def speeds(steps: list[Any], rows: dict[str, np.ndarray]) -> list[float]:
    """Steps per second of one core with each of these programs, measured in turns."""
    batches = in_batches(rows, np.float32)
    batches = [batch for batch in batches if len(batch[1]) == LANES]  # another size would compile again
    rounds = []
    for _ in range(ROUNDS):
        measured = []
        for step in steps:
            calls, began = 0, time.process_time()
            for batch in itertools.cycle(batches):
                jax.block_until_ready(step(*batch))
                calls += 1
                if (seconds := time.process_time() - began) > ROUND_SECONDS:
                    break
            measured.append(calls * LANES / seconds)
        rounds.append(measured)
    return [float(speed) for speed in np.median(rounds, axis=0)]


def returns(task: str, episodes: int, horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns `[episodes]` in Gymnasium and on MJX, with the same starts and actions, of at most `horizon` steps."""
    env: Any = make(f"mujoco/{task}")
    template, base = env.template, task.split("+")[0]
    keys = jax.random.split(jax.random.key(0), episodes)
    state, _ = jax.jit(jax.vmap(env.reset))(keys)
    qpos, qvel = np.float64(state.physics.qpos), np.float64(state.physics.qvel)
    low, high = np.float32(env.action_space.low), np.float32(env.action_space.high)
    actions = np.random.default_rng(1).uniform(low, high, (horizon, episodes, len(low))).astype(np.float32)

    theirs = np.zeros(episodes)
    reference = gymnasium_env(base)
    for episode in range(episodes):
        mujoco.mj_resetData(reference.model, reference.data)
        reference.set_state(qpos[episode], qvel[episode])
        for action in actions[:, episode]:
            _, reward, terminated, _, _ = reference.step(action)
            theirs[episode] += reward
            if terminated:
                break

    step = jax.jit(jax.vmap(lambda state, action: env.step(keys[0], state, action)))
    ours, going_on = np.zeros(episodes), np.ones(episodes, bool)
    for first in range(0, episodes, LANES):
        lanes = slice(first, first + LANES)
        here = jax.tree.map(lambda leaf, lanes=lanes: leaf[lanes], state)
        for action in actions[:, lanes]:
            here, shown = step(here, action)
            ours[lanes] += np.where(going_on[lanes], shown.reward, 0.0)
            going_on[lanes] &= ~np.asarray(shown.terminated)
            if not going_on[lanes].any():
                break
    assert template.dt == reference.dt
    return theirs, ours


def interval(values: np.ndarray) -> str:
    """Mean and half the width of its 95 % interval."""
    return f"{values.mean():.4g} ± {1.96 * values.std(ddof=1) / np.sqrt(len(values)):.2g}"


def cells(numbers: tuple[np.ndarray, np.ndarray, int]) -> str:
    """What `errors` found, as cells of a table."""
    *both, ends = numbers
    shown = [f(e) for e in both for f in (np.median, lambda e: np.quantile(e, 0.99), np.max)]
    return " | ".join([*(f"{number:.1e}" for number in shown), str(ends)])


def one_step_rows(task: str, states: int, act: Act, policy: str, precisions: list[int]) -> None:
    """Print what one step of this many states shows, in these precisions."""
    base = task.split("+")[0]
    rows = record(base, built(base).template, states, act)
    for precision in precisions:
        with jax.enable_x64(precision == 64):
            found = errors(batched_step(task), rows, np.float64 if precision == 64 else np.float32)
        print(f"| {task} | {policy} | float{precision} | {cells(found)} |", flush=True)


def settings_rows(task: str, states: int) -> None:
    """Print error and speed of this task with each of `SETTINGS` that changes anything."""
    model = built(task).model
    rows = record(task, built(task).template, states, random_actions(task))
    settings = [text for text in SETTINGS if "euler" not in text or model.opt.integrator != mjx.IntegratorType.EULER]
    steps = [batched_step(task + setting) for setting in settings]
    found = [cells(errors(step, rows, np.float32)) for step in steps]
    for setting, shown, speed in zip(settings, found, speeds(steps, rows), strict=True):
        print(f"| {task}{setting} | {shown} | {speed:.3g} |", flush=True)


def main() -> None:
    """Print the rows of both tables, task by task."""
    parser = argparse.ArgumentParser(description="How far MJX is from C MuJoCo.")
    parser.add_argument("tasks", nargs="*", help="all of them by default; with settings such as +solver_iterations=4")
    parser.add_argument("--states", type=int, default=10_000)
    parser.add_argument("--episodes", type=int, default=100, help=f"a multiple of {LANES}")
    parser.add_argument("--horizon", type=int, default=200)
    parser.add_argument("--trained", nargs="+", default=[], metavar="SHARD", help="states of these policies instead")
    parser.add_argument("--settings", action="store_true", help="error and speed with each setting of the solver")
    parser.add_argument("--precision", nargs="+", type=int, choices=(32, 64), default=[32, 64], help="bits of a float")
    options = parser.parse_args()
    lapack.one_matrix_at_a_time()  # `built` goes past the registry, which would have seen to it
    print(f"jax {jax.__version__}, MuJoCo {mujoco.__version__}, Gymnasium {gymnasium.__version__}")
    columns = "obs: median | 99 % | worst | reward: median | 99 % | worst | other end |"
    if options.settings:
        print(f"| task | {columns} steps per core-second |")
        for task in options.tasks:
            settings_rows(task, options.states)
        return
    print(f"| task | policy | precision | {columns}")
    for shard in options.trained:
        trained = policies.load(shard)
        task = trained.task.env.id.removeprefix("mujoco/")
        one_step_rows(task, options.states, trained_actions(trained), trained.manifest["label"], options.precision)
    if options.trained:
        return
    for task in options.tasks or [name.removeprefix("mujoco/") for name in sorted(adapter.TASKS)]:
        base = task.split("+")[0]
        one_step_rows(task, options.states, random_actions(base), "random", options.precision)
        if options.episodes:
            theirs, ours = returns(task, options.episodes, options.horizon)
            print(f"returns | {task} | {interval(theirs)} | {interval(ours)} | {interval(ours - theirs)} |", flush=True)


if __name__ == "__main__":
    main()
