"""Datasets: what `build` accepts and refuses, units and statistics, and how transitions are drawn."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_critics import OBS_DIM
from numpy_nets import HIGH, LOW, Toy, exact
from numpy_offline import ENDS, LENGTHS, records, unit

from envs import datasets
from envs.core import Box, Discrete, Reference
from envs.datasets import Dataset, DatasetError, Records
from rlsuite.core import Task
from rlsuite.pieces import offline

SPACE = Box(tuple(LOW.tolist()), tuple(HIGH.tolist()))
N, EPISODES = sum(LENGTHS), len(LENGTHS)


def build(changed: Records | None = None, space: Any = SPACE) -> Dataset:
    return datasets.build("toy", changed or records(), space, source="a test", reference=Reference(0.0, 1.0, "a", "b"))


def at(field: str, row: int, value: Any) -> Records:
    """The records with another value in one row of one field."""
    column = getattr(records(), field).copy()
    column[row] = value
    return records()._replace(**{field: column})


# What is kept.


def test_transitions_are_those_of_the_records_with_actions_in_units_of_the_box() -> None:
    dataset, r = build(), records()
    assert dataset.size == N and dataset.rows.dtype == np.float32 and dataset.obs_dim == OBS_DIM
    kept = dataset.transitions
    for name in ("obs", "reward", "next_obs", "terminated", "truncated"):
        np.testing.assert_array_equal(getattr(kept, name), getattr(r, name))
    np.testing.assert_array_equal(kept.action, unit(r.action))
    np.testing.assert_array_equal(kept.next_action, unit(r.next_action))
    assert kept.terminated.dtype == kept.truncated.dtype == bool
    assert int(np.sum(kept.terminated)) == ENDS.count("terminated")
    assert int(np.sum(kept.truncated)) == ENDS.count("truncated")


def test_a_batch_of_any_shape_is_unpacked_alike() -> None:
    dataset = build()
    batch = dataset.unpack(np.asarray(dataset.rows)[:24].reshape(4, 6, -1))
    assert batch.obs.shape == batch.next_obs.shape == (4, 6, OBS_DIM) and batch.reward.shape == (4, 6)
    np.testing.assert_array_equal(batch.action.reshape(24, -1), dataset.transitions.action[:24])
    np.testing.assert_array_equal(batch.truncated.reshape(24), dataset.transitions.truncated[:24])


def test_episodes_and_statistics() -> None:
    dataset, r = build(), records()
    np.testing.assert_array_equal(dataset.episode, r.episode)
    first = np.cumsum([0, *LENGTHS[:-1]])
    np.testing.assert_array_equal(dataset.start_obs, r.obs[first])
    np.testing.assert_allclose(dataset.episode_return, [np.sum(r.reward[r.episode == e]) for e in range(EPISODES)])
    mean = sum(r.obs) / N
    deviation = np.sqrt(sum((r.obs - mean) ** 2) / N)  # of all of them, not an estimate from a sample
    np.testing.assert_allclose(dataset.obs_mean, mean, rtol=1e-6)
    np.testing.assert_allclose(dataset.obs_std, deviation, rtol=1e-6)
    got = dataset.normalize(np.asarray(r.obs, np.float32))
    np.testing.assert_allclose(got, (r.obs - mean) / (deviation + 1e-3), rtol=1e-5, atol=1e-6)
    assert all(len(leaf) == 0 for leaf in (dataset.threshold, dataset.alias))


def test_an_observation_that_never_changes_does_not_divide_by_zero() -> None:
    constant = records().obs.copy()
    constant[:, 1] = 4.0
    dataset = build(records()._replace(obs=constant))
    assert dataset.obs_std[1] == 0.0
    np.testing.assert_allclose(dataset.normalize(np.array([0.0, 4.5, 0.0], np.float32))[1], 500.0, rtol=1e-6)


def test_statistics_keep_their_digits_far_from_zero() -> None:
    """In float32 sums the deviation of such observations would be lost."""
    far = records().obs + 1e4
    dataset = build(records()._replace(obs=far))
    np.testing.assert_allclose(dataset.obs_std, build().obs_std, rtol=1e-6)


def test_the_checksum_is_of_the_transitions() -> None:
    dataset = build()
    rows = np.ascontiguousarray(np.asarray(dataset.rows))
    assert dataset.checksum == hashlib.sha256(rows.tobytes()).hexdigest()[:16]
    assert build().checksum == dataset.checksum
    for field, value in {"obs": 0.5, "action": 0.6, "reward": 3.0, "terminated": True}.items():
        assert build(at(field, 3, value)).checksum != dataset.checksum


def test_rounding_outside_of_the_box_is_clipped() -> None:
    beyond = records().action.copy()
    beyond[0], beyond[1] = HIGH + 1e-5, LOW - 1e-5
    kept = build(records()._replace(action=beyond)).transitions.action
    np.testing.assert_array_equal(kept[0], np.ones(3))
    np.testing.assert_array_equal(kept[1], -np.ones(3))


def test_units_and_back() -> None:
    task = Task(Toy(), build())
    np.testing.assert_allclose(
        datasets.to_unit(np.stack([LOW, HIGH, (LOW + HIGH) / 2]), SPACE), [[-1.0] * 3, [1.0] * 3, [0.0] * 3]
    )
    there = datasets.to_unit(records().action, SPACE)
    np.testing.assert_allclose(offline.to_box(task, jnp.asarray(there)), records().action, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(offline.to_box(task, jnp.array([[-1.5] * 3, [7.0] * 3])), [exact(LOW), exact(HIGH)])


# What is refused. Every message names the dataset, and what is wrong.

REFUSED: dict[str, tuple[Records, Any, str]] = {
    "discrete actions": (
        records(),
        Discrete(2),
        "dataset 'toy' has discrete actions; offline learners here need continuous ones",
    ),
    "no transition": (
        Records(*(x[:0] for x in records())),
        SPACE,
        "dataset 'toy' holds no transition; record some, or name another",
    ),
    "flat observations": (
        records()._replace(obs=records().obs[:, 0]),
        SPACE,
        "dataset 'toy': observations are (34,), expected [n, obs_dim]",
    ),
    "actions of another environment": (
        records(),
        Box((-1.0,), (1.0,)),
        "dataset 'toy': action is [34, 3], expected [34, 1]; it is damaged, or of another environment",
    ),
    "next observations of another size": (
        records()._replace(next_obs=records().next_obs[:, :2]),
        SPACE,
        "dataset 'toy': next_obs is [34, 2], expected [34, 3]; it is damaged, or of another environment",
    ),
    "next actions cut short": (
        records()._replace(next_action=records().next_action[:-1]),
        SPACE,
        "dataset 'toy': next_action is [33, 3], expected [34, 3]; it is damaged, or of another environment",
    ),
    "rewards in a column": (
        records()._replace(reward=records().reward[:, None]),
        SPACE,
        "dataset 'toy': reward is [34, 1], expected [34]; it is damaged, or of another environment",
    ),
    **{
        f"{name} cut short": (
            records()._replace(**{name: getattr(records(), name)[:-1]}),
            SPACE,
            f"dataset 'toy': {name} is [33], expected [34]; it is damaged, or of another environment",
        )
        for name in ("terminated", "truncated", "episode")
    },
    **{
        f"{name} not finite": (
            at(name, row, value),
            SPACE,
            f"dataset 'toy': {name} of transition {row} is not finite; remove that episode or record again",
        )
        for name, row, value in (
            ("obs", 5, [0.0, np.nan, 0.0]),
            ("action", 0, np.inf),
            ("reward", N - 1, -np.inf),
            ("next_obs", 7, np.nan),
            ("next_action", 9, np.nan),
        )
    },
    "a return not finite": (
        records()._replace(episode_return=np.array([0.0, 1.0, np.nan, 0.0, 0.0])),
        SPACE,
        "dataset 'toy': the return of episode 2 is not finite; remove that episode or record again",
    ),
    "an action outside of the box": (
        at("action", 4, [0.0, 1.0, 3.1]),
        SPACE,
        "dataset 'toy': action [0.0, 1.0, 3.1] of transition 4 lies outside of the action box [-2.0, 0.5, -1.0] .. "
        "[1.0, 2.0, 3.0]; take --clip-actions, or its own environment",
    ),
    "episodes that go back": (
        at("episode", 20, 0),
        SPACE,
        "dataset 'toy': episodes are not numbered 0, 1, 2, ... in the order of their rows",
    ),
    "episodes that skip a number": (
        records()._replace(episode=records().episode + (records().episode > 2)),
        SPACE,
        "dataset 'toy': episodes are not numbered 0, 1, 2, ... in the order of their rows",
    ),
    "episodes that begin at 1": (
        records()._replace(episode=records().episode + 1),
        SPACE,
        "dataset 'toy': episodes are not numbered 0, 1, 2, ... in the order of their rows",
    ),
    "too few returns": (
        records()._replace(episode_return=records().episode_return[1:]),
        SPACE,
        "dataset 'toy': 5 episodes, but 4 returns of episodes",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_refused_in_one_line(name: str) -> None:
    changed, space, message = REFUSED[name]
    with pytest.raises(DatasetError, match=f"^{re.escape(message)}$"):
        build(changed, space)


# How transitions are drawn.


def likelihood(dataset: Dataset) -> np.ndarray:
    """The probability `[n]` of each row, put together from the two tables of the alias method."""
    threshold, alias = np.asarray(dataset.threshold, np.float64), np.asarray(dataset.alias)
    probability = threshold / dataset.size
    np.add.at(probability, alias, (1.0 - threshold) / dataset.size)
    return probability


def weighted(values: np.ndarray, temperature: float) -> np.ndarray:
    """The formulas of arXiv 2306.13085 and its code: one value a trajectory, broadcast to its transitions, mapped onto
    [0, 1] over the transitions, then a softmax over the transitions."""
    row_values = values[records().episode]
    scaled = (row_values - np.min(row_values)) / (np.max(row_values) - np.min(row_values))
    return np.exp(scaled / temperature) / np.sum(np.exp(scaled / temperature))


def regression(start: np.ndarray, returns: np.ndarray) -> np.ndarray:
    """Ordinary least squares with an intercept, as scikit-learn's: on centred numbers."""
    centred = start - np.mean(start, axis=0)
    slope = np.linalg.lstsq(centred, returns - np.mean(returns), rcond=None)[0]
    fitted: np.ndarray = np.mean(returns) + centred @ slope
    return fitted


def many(seed: int, episodes: int = 40) -> Dataset:
    """A dataset with more episodes than observation dimensions, so that the regression leaves something over."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 9, episodes)
    episode = np.arange(episodes).repeat(lengths)
    n = len(episode)
    obs, action = rng.normal(size=(n, OBS_DIM)), rng.uniform(LOW, HIGH, (n, 3))
    reward = rng.normal(size=n) + obs[:, 0]
    done = np.append(np.diff(episode) > 0, True)
    returns, complete = np.bincount(episode, weights=reward), np.ones(episodes, bool)
    return build(Records(obs, action, reward, obs, action, done, np.zeros(n, bool), episode, returns, complete))


@pytest.mark.parametrize("temperature", [0.1, 0.2, 3.0])
def test_trajectories_are_weighted_by_return(temperature: float) -> None:
    dataset = datasets.draw(build(), f"return_weighted={temperature}")
    want = weighted(records().episode_return, temperature)
    np.testing.assert_allclose(likelihood(dataset), want, atol=1e-7)
    # Of two transitions of one trajectory none is the likelier: a trajectory counts by its length, too.
    given = datasets.trajectory_weights(records().episode_return, records().episode, temperature)
    np.testing.assert_allclose(given, want, rtol=1e-12)


def test_trajectories_are_weighted_by_what_their_start_does_not_explain() -> None:
    dataset = many(0)
    start, returns = np.asarray(dataset.start_obs, np.float64), np.asarray(dataset.episode_return, np.float64)
    fitted = regression(start, returns)
    np.testing.assert_allclose(datasets.predicted_returns(start, returns), fitted, rtol=1e-9, atol=1e-9)
    left = (returns - fitted)[np.asarray(dataset.episode)]
    scaled = (left - left.min()) / (left.max() - left.min())
    want = np.exp(scaled / 0.1) / np.sum(np.exp(scaled / 0.1))
    by_advantage = datasets.draw(dataset, "advantage_weighted=0.1")
    np.testing.assert_allclose(likelihood(by_advantage), want, atol=1e-7)
    by_return = likelihood(datasets.draw(dataset, "return_weighted=0.1"))
    assert np.max(np.abs(by_return - want)) > 0.01


@pytest.mark.parametrize("start", [np.ones((6, 2)), np.zeros((6, 2)), np.arange(6.0)[:, None] * [1.0, 2.0]])
def test_starts_that_explain_nothing_twice_over_are_no_trouble(start: np.ndarray) -> None:
    """Environments with one start have the same first observation in every episode."""
    returns = np.array([3.0, 1.0, 4.0, 1.0, 5.0, 9.0])
    np.testing.assert_allclose(datasets.predicted_returns(start, returns), regression(start, returns), atol=1e-9)


def test_equal_trajectories_are_as_likely() -> None:
    given = datasets.trajectory_weights(np.full(EPISODES, 7.0), records().episode, 0.1)
    np.testing.assert_allclose(given, np.full(N, 1 / N))


def test_a_temperature_near_zero_leaves_the_best() -> None:
    dataset = datasets.draw(build(), "return_weighted=1e-4")
    best = records().episode == np.argmax(records().episode_return)
    np.testing.assert_allclose(likelihood(dataset), best / np.sum(best), atol=1e-7)


@pytest.mark.parametrize("seed", range(5))
def test_alias_tables_hold_exactly_the_probabilities(seed: int) -> None:
    rng = np.random.default_rng(seed)
    dataset = many(seed)
    probability = rng.random(dataset.size) ** 8
    probability[rng.random(dataset.size) < 0.2] = 0.0
    probability /= np.sum(probability)
    tables = datasets.weigh(dataset, probability)
    assert np.asarray(tables.threshold).shape == np.asarray(tables.alias).shape == (dataset.size,)
    assert np.all(np.asarray(tables.threshold) >= 0.0) and np.all(np.asarray(tables.threshold) <= 1.0)
    got = likelihood(tables)
    np.testing.assert_allclose(got, probability, atol=1e-7)
    np.testing.assert_array_equal(got[probability == 0.0], 0.0)


def test_draws_have_the_given_probabilities() -> None:
    dataset = datasets.draw(build(), "return_weighted=0.3")
    draws = 400_000
    index = np.asarray(jax.jit(lambda key: offline.indices(key, dataset, (draws,)))(jax.random.key(0)))
    assert index.dtype == np.int32
    want = weighted(records().episode_return, 0.3) * draws
    # Pearson's statistic: N - 1 on average, with a standard deviation of sqrt(2 (N - 1)).
    statistic = np.sum((np.bincount(index, minlength=N) - want) ** 2 / want)
    assert statistic < N - 1 + 5.0 * np.sqrt(2.0 * (N - 1)), statistic
    pairs = np.bincount(index[:-1] * N + index[1:], minlength=N * N)  # no draw depends on the one before
    expected = np.outer(want, want).ravel() / draws
    statistic = np.sum((pairs - expected) ** 2 / expected)
    assert statistic < N * N + 5.0 * np.sqrt(2.0 * N * N), statistic


def test_uniform_draws_are_uniform() -> None:
    dataset, draws = datasets.draw(build(), "uniform"), 100_000
    index = np.asarray(jax.jit(lambda key: offline.indices(key, dataset, (draws,)))(jax.random.key(1)))
    statistic = np.sum((np.bincount(index, minlength=N) - draws / N) ** 2 / (draws / N))
    assert statistic < N - 1 + 5.0 * np.sqrt(2.0 * (N - 1)), statistic


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("sampling", ["uniform", "return_weighted=0.5"])
def test_a_sample_is_whole_rows_of_the_drawn_index(sampling: str, normalize: bool) -> None:
    dataset = datasets.draw(build(), sampling)
    task, key = Task(Toy(), dataset), jax.random.key(2)
    index = np.asarray(offline.indices(key, dataset, (5, 8)))
    batch = offline.sample(key, task, (5, 8), normalize)
    obs, next_obs = (np.asarray(x)[index] for x in (dataset.transitions.obs, dataset.transitions.next_obs))
    if normalize:
        obs, next_obs = dataset.normalize(obs), dataset.normalize(next_obs)
    np.testing.assert_allclose(batch.obs, obs, rtol=1e-6)
    np.testing.assert_allclose(batch.next_obs, next_obs, rtol=1e-6)
    for name in ("action", "reward", "next_action", "terminated", "truncated"):
        np.testing.assert_array_equal(getattr(batch, name), np.asarray(getattr(dataset.transitions, name))[index])
    shown = offline.observe(task, jnp.asarray(records().obs[0], jnp.float32), normalize)
    np.testing.assert_allclose(shown, dataset.normalize(records().obs[0]) if normalize else records().obs[0], rtol=1e-5)


@pytest.mark.parametrize(("share", "count"), [(0.01, 1), (0.2, 1), (0.4, 2), (1.0, 5)])
def test_top_keeps_whole_trajectories_and_their_statistics(share: float, count: int) -> None:
    r, dataset = records(), datasets.draw(build(), f"top={share}")
    best = set(np.argsort(r.episode_return)[-count:].tolist())
    kept = np.array([episode in best for episode in r.episode])
    assert dataset.size == np.sum(kept)
    np.testing.assert_array_equal(dataset.transitions.obs, r.obs[kept])
    np.testing.assert_array_equal(dataset.transitions.terminated, r.terminated[kept])
    numbers = {episode: i for i, episode in enumerate(sorted(best))}
    np.testing.assert_array_equal(dataset.episode, [numbers[episode] for episode in r.episode[kept]])
    np.testing.assert_allclose(dataset.episode_return, r.episode_return[sorted(best)], rtol=1e-6)
    first = np.cumsum([0, *LENGTHS[:-1]])[sorted(best)]
    np.testing.assert_array_equal(dataset.start_obs, r.obs[first])
    np.testing.assert_allclose(dataset.obs_mean, np.mean(r.obs[kept], axis=0), rtol=1e-6)
    np.testing.assert_allclose(dataset.obs_std, np.std(r.obs[kept], axis=0), rtol=1e-6)
    # Uniformly from what is left.
    assert len(dataset.alias) == 0
    assert dataset.checksum == build().checksum


def test_of_equal_trajectories_the_first_are_the_top() -> None:
    dataset = build(records()._replace(episode_return=np.array([1.0, 2.0, 2.0, 2.0, 0.0])))
    np.testing.assert_array_equal(datasets.top(dataset, 0.4).transitions.obs, records().obs[7 : 7 + 1 + 12])


# A record that is cut off early has lost little, where rewards are negative: it must not pass for a good episode.

CUT_OFF = np.array([True, True, False, True, True])
"""whether the episodes of `with_a_cut` are complete"""


def with_a_cut(complete: np.ndarray = CUT_OFF) -> Records:
    """The third episode seems the best by far, and is not whole."""
    returns = np.where(np.arange(EPISODES) == 2, 1e3, records().episode_return)
    return records()._replace(episode_return=returns, complete=complete)


def complete_weights(values: np.ndarray) -> np.ndarray:
    """The weights `[n]` at temperature 0.3, those of what is cut off as of the worst of the complete ones."""
    known = values[CUT_OFF]
    weight = np.exp((np.where(CUT_OFF, values, known.min()) - known.min()) / (known.max() - known.min()) / 0.3)
    row_weights: np.ndarray = weight[records().episode] / np.sum(weight[records().episode])
    return row_weights


@pytest.mark.parametrize("share", [0.01, 0.5, 1.0])
def test_the_top_are_complete_trajectories(share: float) -> None:
    dataset = datasets.draw(build(with_a_cut()), f"top={share}")
    ranked = [e for e in np.argsort(-records().episode_return) if e != 2]
    best = ranked[: max(1, round(share * 4))]  # a share of the complete ones
    np.testing.assert_array_equal(dataset.transitions.obs, records().obs[np.isin(records().episode, best)])
    assert dataset.complete.all() and len(dataset.complete) == len(best)


def test_what_is_cut_off_weighs_as_the_worst_return() -> None:
    given = likelihood(datasets.draw(build(with_a_cut()), "return_weighted=0.3"))
    np.testing.assert_allclose(given, complete_weights(records().episode_return), atol=1e-7)


def test_what_is_cut_off_weighs_as_the_worst_advantage() -> None:
    dataset = many(0)
    returns, complete = np.array(dataset.episode_return, np.float64), np.ones(len(dataset.complete), bool)
    complete[::7], returns[::7] = False, 1e3
    cut = dataclasses.replace(dataset, episode_return=returns, complete=complete)
    left = returns[complete] - regression(np.asarray(dataset.start_obs, np.float64)[complete], returns[complete])
    every = np.full(len(complete), left.min())
    every[complete] = left
    weight = np.exp((every - left.min()) / (left.max() - left.min()) / 0.3)[np.asarray(dataset.episode)]
    given = likelihood(datasets.draw(cut, "advantage_weighted=0.3"))
    np.testing.assert_allclose(given, weight / np.sum(weight), atol=1e-7)


def test_the_scale_of_rewards_is_of_complete_trajectories() -> None:
    some_complete, none_complete = (build(with_a_cut(complete)) for complete in (CUT_OFF, np.zeros(EPISODES, bool)))
    known = records().episode_return[CUT_OFF]
    scale = 1000.0 / (known.max() - known.min())
    np.testing.assert_allclose(jax.jit(offline.reward_scale)(Task(Toy(), some_complete)), scale, rtol=1e-5)
    assert offline.reward_scale(Task(Toy(), none_complete)) == 1.0


@pytest.mark.parametrize("sampling", ["top=0.1", "return_weighted=0.1", "advantage_weighted=0.1"])
def test_where_no_trajectory_is_complete_there_is_no_return_to_go_by(sampling: str) -> None:
    dataset = build(with_a_cut(np.zeros(EPISODES, bool)))
    message = f"dataset 'toy' has no complete episode, so that '{sampling}' has no return to go by: all 5 end before"
    with pytest.raises(DatasetError, match=f"^{re.escape(message)}.*sample uniformly, or give .*--max-episode-steps$"):
        datasets.draw(dataset, sampling)
    assert datasets.draw(dataset, "uniform").size == N


# What is finite as it is recorded, and not as it is kept.


@pytest.mark.parametrize("field", ["obs", "action", "reward", "next_obs", "next_action"])
def test_numbers_are_finite_in_the_precision_that_they_are_kept_in(field: str) -> None:
    message = rf"dataset 'toy': {field} of transition 5 is not finite in float32 \(-?1e\+39\); remove that episode or"
    for value in (1e39, -1e39):
        with pytest.raises(DatasetError, match=message):
            build(at(field, 5, value))
    whole = np.ones_like(getattr(records(), field), np.int64)  # whole numbers are numbers
    assert np.isfinite(build(records()._replace(**{field: whole})).rows).all()


def test_a_return_is_finite_in_the_precision_that_it_is_kept_in() -> None:
    message = r"the return of episode 3 is not finite in float32 \(1e\+39\)"
    with pytest.raises(DatasetError, match=message):
        build(records()._replace(episode_return=np.array([0.0, 0.0, 0.0, 1e39, 0.0])))


@pytest.mark.parametrize(
    ("field", "column", "message"),
    [
        ("reward", np.array(["much"] * N), "reward of transition 0 is of type <U4, no number"),
        ("terminated", np.full(N, 0.5), "terminated of transition 0 is 0.5; expected 0 or 1"),
        ("truncated", np.arange(N), "truncated of transition 2 is 2; expected 0 or 1"),
        ("episode", records().episode + 0.5, "episodes are not numbered 0, 1, 2"),
        ("complete", np.ones(3, bool), "5 episodes, but 3 marks of complete"),
    ],
)
def test_nothing_is_converted_that_would_be_something_else(field: str, column: np.ndarray, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        build(records()._replace(**{field: column}))


def test_more_rows_than_can_be_numbered_are_refused() -> None:
    with pytest.raises(DatasetError, match="holds 2147483648 transitions, more than 2147483647; use a part of it"):
        build(records()._replace(obs=np.broadcast_to(np.float32(0.0), (2**31, OBS_DIM))))


def test_actions_outside_of_the_box_are_clipped_if_asked_to() -> None:
    for field in ("action", "next_action"):
        beyond = at(field, 4, [0.0, 1.0, 3.1])
        with pytest.raises(DatasetError, match=rf"{field} \[0\.0, 1\.0, 3\.1\] of transition 4 lies outside"):
            build(beyond)
        kept = datasets.build("toy", beyond, SPACE, source="a test", clip_actions=True)
        np.testing.assert_array_equal(getattr(kept.transitions, field)[4], unit(np.array([0.0, 1.0, 3.0])))
    plain = datasets.build("toy", records(), SPACE, source="a test", clip_actions=True)
    np.testing.assert_array_equal(plain.rows, build().rows)


SAMPLING_ERRORS = {
    "best=0.1": "unknown sampling 'best=0.1'; there are: uniform, advantage_weighted=T, return_weighted=T, top=SHARE",
    "uniform=1": "unknown sampling 'uniform=1'; there are: uniform, advantage_weighted=T, return_weighted=T, top=SHARE",
    **{
        f"{name}{value}": f"sampling '{name}{value}' needs a temperature above 0, such as {name}=0.1"
        for name in ("advantage_weighted", "return_weighted")
        for value in ("", "=", "=0", "=-1", "=inf", "=nan", "=warm")
    },
    **{
        f"top{value}": f"sampling 'top{value}' needs a share above 0 and at most 1, such as top=0.1"
        for value in ("", "=0", "=-0.1", "=1.1", "=nan", "=ten")
    },
}


@pytest.mark.parametrize("sampling", SAMPLING_ERRORS)
def test_what_is_no_way_to_draw_is_refused_in_one_line(sampling: str) -> None:
    with pytest.raises(DatasetError, match=f"^{re.escape(SAMPLING_ERRORS[sampling])}$"):
        datasets.draw(build(), sampling)


def test_every_way_to_draw_that_is_listed_works() -> None:
    for listed in datasets.SAMPLINGS:
        drawn = datasets.draw(build(), re.sub("=(T|SHARE)$", "=0.5", listed))
        assert drawn.size > 0
        # What may differ is in the arrays, so that no other way to draw is another program by its name.
        assert jax.tree.structure(drawn) == jax.tree.structure(build())


def test_only_the_transitions_drawn_are_what_sampling_changes() -> None:
    plain, by_weight = build(), datasets.draw(build(), "return_weighted=0.1")
    for field in dataclasses.fields(plain):
        if field.name not in ("threshold", "alias", "sampling"):
            np.testing.assert_array_equal(getattr(plain, field.name), getattr(by_weight, field.name))
