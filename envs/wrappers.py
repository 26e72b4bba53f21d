"""Changes of a task that keep it an `Env`, chosen by the id: `gymnax/Pendulum-v1+observation_noise=0.1+clip_actions`.

A wrapper is a pure function of an environment that gives an environment. The id of what it gives says all that was
done, so that results, snapshots and reports tell a wrapped task from the plain one without knowing of wrappers. They
are applied in the order of the id: the last one is what the learner touches. The time limit is not among them, since
`envs.make` takes it as `max_episode_steps`.

A wrapped environment is a frozen pytree like any other: numbers such as the noise's standard deviation are leaves, so
that one batch may hold many of them (`env.replace(std=...)`), and counts, which shape the state, are static. A score
counts the rewards that the wrapped environment pays.

What is a `Wrapped` changes what goes in and out of a simulator, and does the same around another one: C MuJoCo's
(`envs/mujoco_c.py`) and Gymnasium's (`envs/gymnasium.py`). It reads no state of the environment inside. A wrapper of a
family that gives the family's own class is a setting of its simulator, and is left out there, which is said.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from envs.core import Array, Box, Env, EnvState, Space, TimeStep

Value: TypeAlias = float | int | str
"""What may follow the `=` of a wrapper."""

MAX_ID_LENGTH = 150
"""Characters of an id. It becomes a part of file names, which file systems limit to 255."""


class WrapperError(ValueError):
    """A wrapper that is unknown, has no sensible value or does not fit the environment."""


class Argument(NamedTuple):
    """The value that a wrapper takes."""

    name: str
    """as `rlsuite list` shows it, such as `STD`"""
    read: Callable[[str], Value]
    """from the text in the id; raises ValueError for one that makes no sense"""
    expected: str
    """what it accepts, with an example, for the error message"""


class Wrapper(NamedTuple):
    """One way to change a task. A family of environments may have some of its own, see `envs/registry.py`."""

    summary: str
    """one line for people"""
    apply: Callable[..., Env]
    """`(env)`, or `(env, value)` if there is an argument -> the changed environment, whose id is `wrapped_id(...)`"""
    argument: Argument | None = None
    keeps_reference: bool = False
    """whether returns can still be compared with the reference returns of the plain task"""


class Chosen(NamedTuple):
    """A wrapper as an id asks for it."""

    name: str
    wrapper: Wrapper
    value: Value | None
    """None if it takes none"""

    def apply(self, env: Env) -> Env:
        """The changed environment. Raises WrapperError where it does not fit."""
        return self.wrapper.apply(env) if self.value is None else self.wrapper.apply(env, self.value)


def wrapped_id(env_id: str, name: str, value: Value | None = None) -> str:
    """The id of `env_id` changed by the wrapper `name`; equal values give equal ids, however they were typed."""
    if value is None:
        return f"{env_id}+{name}"
    # A plus sign begins the next wrapper, so that 1e+20 has to do without its own.
    text = repr(value).removesuffix(".0").replace("e+", "e") if isinstance(value, float) else str(value)
    return f"{env_id}+{name}={text}"


def read(env_id: str, asked: Sequence[str], own: Mapping[str, Wrapper]) -> tuple[Chosen, ...]:
    """The wrappers that the parts `asked` of an id name, each `name` or `name=value`, in their order.

    Args:
        env_id: the plain task, for messages.
        own: wrappers of this task's family, which change the simulator and come before all others.

    Raises:
        WrapperError: an unknown name, a name given twice, a value that is missing, superfluous or senseless, a
            wrapper of the family after another one, or an id that is too long for a file name.
    """
    known = {**WRAPPERS, **own}
    chosen: list[Chosen] = []
    for part in asked:
        name, equals, text = part.partition("=")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
            raise WrapperError(f"unknown wrapper {name!r} for {env_id!r}; {hint}")
        if name in [earlier.name for earlier in chosen]:
            raise WrapperError(f"wrapper {name!r} is there twice for {env_id!r}; leave one out")
        if name in own and chosen and chosen[-1].name not in own:
            raise WrapperError(
                f"wrapper {name!r} changes the simulator of {env_id!r}; write it before {chosen[-1].name!r}"
            )
        chosen.append(Chosen(name, known[name], _value(name, known[name].argument, text if equals else None)))
    whole = env_id
    for name, _, value in chosen:
        whole = wrapped_id(whole, name, value)
    if len(whole) > MAX_ID_LENGTH:
        raise WrapperError(
            f"environment {whole!r} has {len(whole)} characters, and file names have room for {MAX_ID_LENGTH}; "
            "use fewer wrappers or shorter numbers"
        )
    return tuple(chosen)


def _value(name: str, argument: Argument | None, text: str | None) -> Value | None:
    """Read the text after the name; None is nothing at all, not even an `=`."""
    if argument is None:
        if text is not None:
            raise WrapperError(f"wrapper {name!r} takes no value, got {text!r}; write '+{name}'")
        return None
    if text is None:
        raise WrapperError(f"wrapper {name!r} needs a value; write '+{name}={argument.name}' with {argument.expected}")
    try:
        return argument.read(text)
    except ValueError:
        raise WrapperError(f"wrapper {name}={text!r} needs {argument.expected}") from None


def number_above_zero(text: str) -> float:
    """A number that is above 0 in float32 too. Raises ValueError for any other text."""
    value = float(text)
    limits = np.finfo(np.float32)
    if not float(limits.tiny) <= value <= float(limits.max):
        raise ValueError(text)
    return value


def whole_number(least: int) -> Callable[[str], int]:
    """The reader of whole numbers from `least` to what int32 holds; it raises ValueError for any other text."""

    def reader(text: str) -> int:
        value = int(text)
        if not least <= value < 2**31:
            raise ValueError(text)
        return value

    return reader


@struct.dataclass
class Wrapped:
    """What all wrappers share: the environment inside, and everything that they leave as it is there."""

    env: Env
    id: str = struct.field(pytree_node=False)

    @property
    def obs_dim(self) -> int:
        return self.env.obs_dim

    @property
    def action_space(self) -> Space:
        return self.env.action_space

    @property
    def max_episode_steps(self) -> int:
        return self.env.max_episode_steps

    def reset(self, key: Array) -> tuple[EnvState, Array]:
        return self.env.reset(key)

    def step(self, key: Array, state: EnvState, action: Array) -> tuple[EnvState, TimeStep]:
        return self.env.step(key, state, action)


def innermost(env: Env) -> Env:
    """The task that all wrappers are around."""
    while isinstance(env, Wrapped):
        env = env.env
    return env


def with_innermost(env: Env, task: Env) -> Env:
    """The wrappers of `env`, around another task."""
    return env.replace(env=with_innermost(env.env, task)) if isinstance(env, Wrapped) else task  # type: ignore[attr-defined]


@struct.dataclass
class ClipActions(Wrapped):
    """Actions outside the box are taken for the nearest ones inside; NaN stays NaN."""

    low: tuple[float, ...] = struct.field(pytree_node=False)
    high: tuple[float, ...] = struct.field(pytree_node=False)

    def step(self, key: Array, state: EnvState, action: Array) -> tuple[EnvState, TimeStep]:
        return self.env.step(key, state, jnp.clip(action, jnp.float32(self.low), jnp.float32(self.high)))


def clip_actions(env: Env) -> ClipActions:
    """`env`, with actions outside its box clipped into it; the box is the same. Raises WrapperError if it has none."""
    box = _box(env, "clip_actions")
    return ClipActions(env, wrapped_id(env.id, "clip_actions"), box.low, box.high)


@struct.dataclass
class ScaleActions(Wrapped):
    """Acts in [-1, 1] in every dimension, which is mapped linearly onto the box from `low` to `high`."""

    low: tuple[float, ...] = struct.field(pytree_node=False)
    high: tuple[float, ...] = struct.field(pytree_node=False)

    @property
    def action_space(self) -> Space:
        return Box((-1.0,) * len(self.low), (1.0,) * len(self.low))

    def step(self, key: Array, state: EnvState, action: Array) -> tuple[EnvState, TimeStep]:
        # In this form, -1 and 1 give the ends of the box exactly.
        scaled = 0.5 * ((1.0 - action) * jnp.float32(self.low) + (1.0 + action) * jnp.float32(self.high))
        return self.env.step(key, state, scaled)


def scale_actions(env: Env) -> ScaleActions:
    """`env`, with actions in [-1, 1] that are mapped onto its box.

    Raises:
        WrapperError: it has no box, or one without bounds.
    """
    box = _box(env, "scale_actions")
    if not all(map(math.isfinite, (*box.low, *box.high))):
        raise WrapperError(
            f"wrapper 'scale_actions' needs bounded actions, but those of {env.id!r} lie between {box.low} and "
            f"{box.high}; leave it out"
        )
    return ScaleActions(env, wrapped_id(env.id, "scale_actions"), box.low, box.high)


@struct.dataclass
class ObservationNoise(Wrapped):
    """Every observation that is shown, the first and the last included, is off by Gaussian noise, drawn again for each
    entry and step. The simulator goes on from the true state."""

    std: Array
    """`[]` standard deviation, in the units of the observation"""

    def reset(self, key: Array) -> tuple[EnvState, Array]:
        reset_key, noise_key = jax.random.split(key)
        state, obs = self.env.reset(reset_key)
        return state, self._noisy(noise_key, obs)

    def step(self, key: Array, state: EnvState, action: Array) -> tuple[EnvState, TimeStep]:
        step_key, noise_key = jax.random.split(key)
        state, shown = self.env.step(step_key, state, action)
        return state, shown._replace(obs=self._noisy(noise_key, shown.obs))

    def _noisy(self, key: Array, obs: Array) -> Array:
        return obs + self.std * jax.random.normal(key, obs.shape, jnp.float32)


def observation_noise(env: Env, std: float) -> ObservationNoise:
    """`env`, with Gaussian noise of standard deviation `std` on its observations."""
    return ObservationNoise(env, wrapped_id(env.id, "observation_noise", std), _leaf(std))


class DelayState(NamedTuple):
    """The state of `ObservationDelay`."""

    env: EnvState
    recent: Array
    """`[delay, obs_dim]` float32: the observations that are still to be shown, the oldest first"""


@struct.dataclass
class ObservationDelay(Wrapped):
    """Shows the observation of `delay` steps ago, and the first one until there is one so old. Rewards and the end of
    the episode are shown at once."""

    delay: int = struct.field(pytree_node=False)

    def reset(self, key: Array) -> tuple[DelayState, Array]:
        state, obs = self.env.reset(key)
        return DelayState(state, jnp.tile(obs, (self.delay, 1))), obs

    def step(self, key: Array, state: DelayState, action: Array) -> tuple[DelayState, TimeStep]:
        env_state, shown = self.env.step(key, state.env, action)
        recent = jnp.concatenate([state.recent[1:], shown.obs[None]])
        return DelayState(env_state, recent), shown._replace(obs=state.recent[0])


def observation_delay(env: Env, delay: int) -> ObservationDelay:
    """`env`, with observations that come `delay` steps late.

    Raises:
        WrapperError: an episode is over before a second observation could be seen.
    """
    if delay >= env.max_episode_steps:
        raise WrapperError(
            f"wrapper observation_delay={delay} must be below the time limit of {env.id!r}, which is "
            f"{env.max_episode_steps} steps; choose a smaller delay"
        )
    return ObservationDelay(env, wrapped_id(env.id, "observation_delay", delay), delay)


@struct.dataclass
class RewardScale(Wrapped):
    """Every reward is `factor` times as large."""

    factor: Array
    """`[]`"""

    def step(self, key: Array, state: EnvState, action: Array) -> tuple[EnvState, TimeStep]:
        state, shown = self.env.step(key, state, action)
        return state, shown._replace(reward=self.factor * shown.reward)


def reward_scale(env: Env, factor: float) -> RewardScale:
    """`env`, with rewards multiplied by `factor`."""
    return RewardScale(env, wrapped_id(env.id, "reward_scale", factor), _leaf(factor))


class SparseState(NamedTuple):
    """The state of `SparseReward`."""

    env: EnvState
    unpaid: Array
    """`[]` float32: the sum of the rewards since the last payment"""
    waited: Array
    """`[]` int32: steps since the last payment"""


@struct.dataclass
class SparseReward(Wrapped):
    """Pays the sum of the rewards since the last payment every `interval` steps and at the end of an episode, however
    it ends, and 0 at all other steps. The return of an episode stays as it is."""

    interval: int = struct.field(pytree_node=False)

    def reset(self, key: Array) -> tuple[SparseState, Array]:
        state, obs = self.env.reset(key)
        return SparseState(state, jnp.float32(0), jnp.int32(0)), obs

    def step(self, key: Array, state: SparseState, action: Array) -> tuple[SparseState, TimeStep]:
        env_state, shown = self.env.step(key, state.env, action)
        unpaid, waited = state.unpaid + shown.reward, state.waited + 1
        pays = (waited >= self.interval) | shown.terminated | shown.truncated
        next_state = SparseState(env_state, jnp.where(pays, 0.0, unpaid), jnp.where(pays, 0, waited))
        return next_state, shown._replace(reward=jnp.where(pays, unpaid, 0.0))


def sparse_reward(env: Env, interval: int) -> SparseReward:
    """`env`, with rewards that are paid every `interval` steps and at the end of an episode."""
    return SparseReward(env, wrapped_id(env.id, "sparse_reward", interval), interval)


def _box(env: Env, name: str) -> Box:
    space = env.action_space
    if not isinstance(space, Box):
        raise WrapperError(
            f"wrapper {name!r} needs Box actions, but {env.id!r} has {type(space).__name__} actions; leave it out"
        )
    return space


def _leaf(value: float) -> Array:
    """`[]` float32, concrete even inside a traced function, because `envs.make` keeps what it makes."""
    with jax.ensure_compile_time_eval():
        return jnp.asarray(np.float32(value))


WRAPPERS: dict[str, Wrapper] = {
    "clip_actions": Wrapper("actions outside the box are clipped into it", clip_actions, keeps_reference=True),
    "scale_actions": Wrapper(
        "the policy acts in [-1, 1], which is mapped onto the box", scale_actions, keeps_reference=True
    ),
    "observation_noise": Wrapper(
        "Gaussian noise of standard deviation STD on every observation",
        observation_noise,
        Argument("STD", number_above_zero, "a number above 0, such as 0.1"),
    ),
    "observation_delay": Wrapper(
        "observations come STEPS steps late",
        observation_delay,
        Argument("STEPS", whole_number(1), "a whole number of at least 1, such as 2"),
    ),
    "reward_scale": Wrapper(
        "rewards are multiplied by FACTOR",
        reward_scale,
        Argument("FACTOR", number_above_zero, "a number above 0, such as 0.1"),
    ),
    "sparse_reward": Wrapper(
        "rewards are summed up and paid every INTERVAL steps and at the end of the episode",
        sparse_reward,
        Argument("INTERVAL", whole_number(2), "a whole number of at least 2, such as 10"),
    ),
}
"""The wrappers that fit every family."""
