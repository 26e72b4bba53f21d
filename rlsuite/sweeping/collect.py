"""Datasets made here: an agent is trained, and policies from along its way are recorded inside a compiled program.

Episodes are recorded from the first step on, and none is chosen for its length. Each tier has exactly as many
transitions as were asked for, so that a learner's program serves them all; the last episode of a policy may be cut off
for that, and is known as incomplete. Datasets are written below `catalogue.folder()` in Minari's format.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from envs import dataset_files
from envs.core import Box, Env, Reference
from envs.datasets import DatasetError, Records
from rlsuite import algorithms
from rlsuite.core import Algorithm, Task, Transition
from rlsuite.errors import UserError, check_updates
from rlsuite.pieces import rollout
from rlsuite.sweeping import catalogue, policies
from rlsuite.sweeping.catalogue import FOLDER_VARIABLE, Found, folder
from rlsuite.sweeping.recipes import FIRST_SEED, RECIPES, TIERS, Recipe
from rlsuite.training import batch, device, train
from rlsuite.training.evaluate import check_ended
from rlsuite.training.progress import quantity, say

Array = jax.Array

MEDIUM = 1 / 3
"""of the way from the random return to the expert's, as in D4RL"""
LANES = 64
"""episodes that are recorded at once"""
EVAL_EPISODES = 16
"""of each run at each checkpoint"""


class Policy(NamedTuple):
    """One policy from along the way."""

    leaves: list[np.ndarray]
    """what `explore` reads of the state"""
    mean_return: float
    """of the exploring policy, over `EVAL_EPISODES` episodes"""
    step: int
    seed: int


def ensure(dataset_id: str, env: Env) -> Found:
    """The dataset of this id, which is made if it is not there and can be made here.

    Raises:
        UserError: it is not there and cannot be made, or as `make`.
    """
    found = catalogue.find(dataset_id)
    if found is None:
        catalogue.check(dataset_id, env)
        make(env, RECIPES[env.id], tuple(TIERS))  # all at once, since training the agent is what costs
        found = catalogue.find(dataset_id)
        assert found is not None
    return found


def make(env: Env, recipe: Recipe, tiers: tuple[str, ...]) -> None:
    """Record random actions, train the recipe's agent, record the other tiers of it and write all into `folder()`.

    Random actions need no agent: they are there before it is trained, and get the reference returns after that.

    Raises:
        UserError: an unknown tier or algorithm, one that is no source of datasets, discrete actions, or training that
            leads to nothing better than random actions.
    """
    for tier in tiers:
        if tier not in TIERS:
            raise UserError(f"unknown tier '{tier}'; there are: {', '.join(TIERS)}")
    device.check_writable(folder(), "datasets", FOLDER_VARIABLE)  # before an agent is trained for it
    there = [tier for tier in tiers if catalogue.find(f"{env.id}/{tier}")]
    for tier in there:
        say(made_before(f"{env.id}/{tier}", recipe.transitions))
    tiers = tuple(tier for tier in tiers if tier not in there)
    if not tiers:
        return
    if not isinstance(env.action_space, Box):
        raise UserError(f"'{env.id}' has discrete actions; offline learners here need continuous ones")
    task = Task(env)
    spec = algorithms.get(recipe.algorithm)
    algorithm = spec.make(spec.fit(recipe.config, recipe.steps))
    check_updates(recipe.steps, algorithm.steps_per_update)
    if algorithm.explore is None:
        raise UserError(f"'{recipe.algorithm}' is no source of datasets; those are: ppo, sac")
    say(f"making {', '.join(f'{env.id}/{tier}' for tier in tiers)}")
    play = recorder(algorithm, task, recipe.hypers)
    seed = jnp.uint32(FIRST_SEED)
    whole = whole_episodes(lambda key: play(None, key), train.stream_key(seed, RANDOM_STREAM, 0), recipe.transitions)
    random = first_of(whole, recipe.transitions)
    low = float(known_returns(random if random.complete.any() else whole).mean())
    if "random" in tiers:
        write(env, "random", random, None, f"{TIERS['random']} on {env.id}", "random", FIRST_SEED)
        tiers = tuple(tier for tier in tiers if tier != "random")
    if not tiers:
        return
    along = checkpoints(algorithm, task, recipe)
    expert = max((policy for policy in along if policy.step == along[-1].step), key=lambda policy: policy.mean_return)
    # The best of several noisy means is too high a mean: these episodes are new, and choose nobody.
    high = float(play(expert.leaves, train.stream_key(seed, EXPERT_STREAM, 0)).episode_return.mean())
    if not high > low:
        raise UserError(
            f"{recipe.algorithm} ends at a return of {high:.4g} on '{env.id}', random actions at {low:.4g}; take more "
            "--steps or other settings"
        )
    own = [policy for policy in along if policy.seed == expert.seed]
    # The expert itself, if even its own few episodes were worse than that.
    up_to = next((i for i, p in enumerate(own) if p.mean_return >= low + MEDIUM * (high - low)), len(own) - 1)
    medium = own[up_to]
    say(
        f"  returns: random {low:.4g}, medium {medium.mean_return:.4g} after {quantity(medium.step)} steps, expert "
        f"{high:.4g} after {quantity(expert.step)}"
    )

    def of(policy: Policy, index: int, transitions: int) -> Records:
        key = train.stream_key(seed, POLICY_STREAM, index)
        return collected(lambda key: play(policy.leaves, key), key, transitions)

    reference = Reference(
        low,
        high,
        "mean episode return of uniformly random actions, measured here",
        f"the best of {recipe.seeds} runs of {recipe.algorithm} after {expert.step} steps, exploring: mean return of "
        f"{LANES} episodes that did not choose it, measured here",
    )
    for tier in tiers:
        records = records_of_tier(tier, recipe.transitions, random, expert, own[: up_to + 1], of)
        source = (
            f"{TIERS[tier] if not tier.startswith('random-expert') else tier}; {recipe.algorithm} on {env.id}, "
            f"{recipe.steps} steps, seed {expert.seed}"
        )
        write(env, tier, records, reference, source, recipe.algorithm, expert.seed)
    try:
        dataset_files.complete(f"{env.id}/random", folder(), reference)
    except DatasetError as error:
        raise UserError(str(error)) from error


def records_of_tier(
    tier: str,
    n: int,
    random: Records,
    expert: Policy,
    own: list[Policy],
    of: Callable[[Policy, int, int], Records],
) -> Records:
    """The `n` transitions of a tier. `own` are the expert's policies up to the medium one, and `of` plays a policy: its
    number among all and how many transitions to record are given."""
    if tier == "expert":
        return of(expert, 0, n)
    if tier == "medium":
        return of(own[-1], 1, n)
    if tier == "medium-expert":
        return joined([of(own[-1], 1, n // 2), of(expert, 0, n - n // 2)])
    if tier == "medium-replay":
        shares = np.diff(np.linspace(0, n, len(own) + 1).astype(int))
        return joined([of(policy, 2 + i, shares[i]) for i, policy in enumerate(own)])
    share = int(tier.rsplit("-", 1)[1]) / 100
    expert_records = of(expert, 0, max(1, round(share * n)))
    return joined([first_of(random, n - len(expert_records.obs)), expert_records])


def made_before(dataset_id: str, transitions: int) -> str:
    """What to say of a dataset that is there already, when `transitions` were asked for. Raises UserError."""
    try:
        size = dataset_files.size(dataset_id, folder())
    except DatasetError as error:
        raise UserError(str(error)) from error
    differs = "" if size == transitions else f", not {transitions:,}; delete its folder to make it again"
    return f"{dataset_id}: made before, kept with its {size:,} transitions{differs}"


def write(
    env: Env, tier: str, records: Records, reference: Reference | None, source: str, algorithm: str, seed: int
) -> None:
    """Write one tier into `folder()` and say so. Raises UserError."""
    try:
        dataset_files.write(
            f"{env.id}/{tier}",
            records,
            env,
            folder(),
            reference=reference,
            source=source,
            algorithm=algorithm,
            seed=seed,
        )
    except DatasetError as error:
        raise UserError(str(error)) from error
    returns = known_returns(records)
    say(
        f"  {env.id}/{tier}: {quantity(len(records.obs))} transitions, {len(records.episode_return)} episodes, "
        + (f"mean return {returns.mean():.4g}" if returns.size else "none of them complete")
    )


RANDOM_STREAM, POLICY_STREAM, EXPERT_STREAM = 10, 11, 12
"""Streams of keys next to those of `rlsuite/training/train.py`."""


def checkpoints(algorithm: Algorithm, task: Task, recipe: Recipe) -> list[Policy]:
    """Train the recipe's runs and keep all their policies at every evaluation, in the order of time."""
    updates = -(-recipe.steps // algorithm.steps_per_update)
    assert algorithm.explore is not None
    there = jax.local_devices()
    devices = there[: max(n for n in range(1, len(there) + 1) if recipe.seeds % n == 0)]
    # Judged by what is recorded, which explores: without its noise a policy may be much better, or none at all.
    exploring = algorithm._replace(act=algorithm.explore)
    compiled = batch.compile_programs(exploring, task, recipe.hypers, recipe.seeds, EVAL_EPISODES, devices)
    seeds = range(FIRST_SEED, FIRST_SEED + recipe.seeds)
    points = train.evaluation_points(updates, recipe.checkpoints)
    kept = read_by_explore(algorithm, task, recipe.hypers)
    found = []
    for pause in train.train(compiled.programs, seeds, [recipe.hypers] * recipe.seeds, updates, points):
        if not pause.evaluated:
            continue
        every = jax.tree.leaves(pause.training.learning.state)
        leaves = [np.asarray(every[i]) for i in kept]
        evaluation = pause.training.evaluation
        # What a run that has diverged shows is of an earlier policy.
        returns = np.where(evaluation.diverged, np.nan, evaluation.mean_returns)
        say(f"  {quantity(pause.training.step)} of {quantity(recipe.steps)} steps, best return {best(returns):.4g}")
        for run, seed in enumerate(seeds):
            if np.isfinite(returns[run]):
                found.append(Policy([x[run] for x in leaves], float(returns[run]), pause.training.step, seed))
    return found


def best(returns: np.ndarray) -> float:
    """The highest finite return of `[runs]`; -inf where all have diverged."""
    return float(np.max(returns, where=np.isfinite(returns), initial=-np.inf))


def read_by_explore(algorithm: Algorithm, task: Task, hypers: Any) -> list[int]:
    """Which leaves of the state `explore` computes with."""
    assert algorithm.explore is not None
    exploring = algorithm._replace(act=algorithm.explore)
    return policies.read_by_act(exploring, task, policies.state_shapes(algorithm, task, hypers))


def recorder(algorithm: Algorithm, task: Task, hypers: Any) -> Callable[[list[np.ndarray] | None, Array], Records]:
    """(leaves of a policy, key) -> the first episode of each of `LANES` environments; without a policy, random actions.

    Episodes are whole, and none is chosen for its length. The function raises UserError where one does not end within
    the environment's time limit.
    """
    env = task.env
    space = env.action_space
    assert isinstance(space, Box)
    low, high = jnp.asarray(space.low), jnp.asarray(space.high)
    shapes, structure = jax.tree.flatten(policies.state_shapes(algorithm, task, hypers))
    kept = read_by_explore(algorithm, task, hypers)

    def steps(policy: rollout.Policy, key: Array) -> Transition:
        start_key, key = jax.random.split(key)
        carry = rollout.start(start_key, env, LANES)
        return rollout.collect(key, env, carry, policy, env.max_episode_steps)[1]

    @jax.jit
    def explore(leaves: list[Array], key: Array) -> Transition:
        every = [jnp.zeros(shape.shape, shape.dtype) for shape in shapes]
        for i, leaf in zip(kept, leaves, strict=True):
            every[i] = leaf
        state = jax.tree.unflatten(structure, every)
        assert algorithm.explore is not None
        each = jax.vmap(algorithm.explore, (0, None, None, 0))

        def policy(key: Array, obs: Array) -> tuple[Array, None]:
            return each(jax.random.split(key, LANES), task, state, obs), None

        return steps(policy, key)

    @jax.jit
    def randomly(key: Array) -> Transition:
        def policy(key: Array, obs: Array) -> tuple[Array, None]:
            return jax.random.uniform(key, (LANES, space.dim), minval=low, maxval=high), None

        return steps(policy, key)

    def play(leaves: list[np.ndarray] | None, key: Array) -> Records:
        transitions = randomly(key) if leaves is None else explore(leaves, key)
        check_ended(np.any(transitions.terminated | transitions.truncated, axis=0), env)
        return records_of(transitions, most=1)

    return play


def collected(play: Callable[[Array], Records], key: Array, transitions: int) -> Records:
    """So many transitions, recorded in as many rounds as it takes."""
    return first_of(whole_episodes(play, key, transitions), transitions)


def whole_episodes(play: Callable[[Array], Records], key: Array, transitions: int) -> Records:
    """Rounds of whole episodes with at least `transitions` transitions."""
    rounds: list[Records] = []
    while sum(len(records.obs) for records in rounds) < transitions:
        rounds.append(play(jax.random.fold_in(key, len(rounds))))
    return joined(rounds)


def first_of(records: Records, transitions: int) -> Records:
    """The first `transitions` rows; the last one is truncated, and its episode incomplete, where that went on."""
    episode_fields = ("episode_return", "complete")
    rows = {name: field[:transitions].copy() for name, field in records._asdict().items() if name not in episode_fields}
    episodes = rows["episode"][-1] + 1
    complete = records.complete[:episodes].copy()
    complete[-1] &= rows["terminated"][-1] | rows["truncated"][-1]
    rows["truncated"][-1] = not rows["terminated"][-1]
    rows["next_action"][-1] = rows["action"][-1]
    return Records(**rows, episode_return=np.bincount(rows["episode"], weights=rows["reward"]), complete=complete)


def known_returns(records: Records) -> np.ndarray:
    """The returns of the complete episodes, `[complete episodes]`."""
    return records.episode_return[records.complete]


def joined(parts: list[Records]) -> Records:
    """One after the other, their episodes numbered on."""
    offsets = np.cumsum([0, *(len(part.episode_return) for part in parts)])
    numbered = [part._replace(episode=part.episode + n) for part, n in zip(parts, offsets, strict=False)]
    return Records(*(np.concatenate(fields) for fields in zip(*numbered, strict=True)))


def records_of(transitions: Transition, most: int | None = None) -> Records:
    """Complete episodes of `[time, num_envs, ...]` steps that `rollout.collect` took, environment after environment.

    What comes after the last end of an environment is left out: its episode was not played to the end. `most` takes no
    more than `most` episodes of each environment.
    """
    steps = {name: np.asarray(field) for name, field in transitions._asdict().items()}
    done = steps["terminated"] | steps["truncated"]
    time, num_envs = done.shape
    kept: list[dict[str, np.ndarray]] = []
    returns: list[np.ndarray] = []
    for env in range(num_envs):
        ends = np.flatnonzero(done[:, env])[:most]
        if not ends.size:
            continue
        length = ends[-1] + 1
        rows = {name: field[:length, env] for name, field in steps.items()}
        following = np.minimum(np.arange(length) + 1, length - 1)
        following[ends] = ends
        number = np.searchsorted(ends, np.arange(length))
        kept.append(rows | {"next_action": rows["action"][following], "episode": number + sum(map(len, returns))})
        returns.append(np.bincount(number, weights=rows["reward"]))
    if not kept:
        raise ValueError(f"no episode ended within {time} steps of {num_envs} environments; take more steps")
    together = {name: np.concatenate([rows[name] for rows in kept]) for name in kept[0]}
    # Both flags are set where an episode terminates on its last step; then it terminated.
    together["truncated"] = together["truncated"] & ~together["terminated"]
    episode_return = np.concatenate(returns)
    return Records(**together, episode_return=episode_return, complete=np.ones(len(episode_return), bool))
