"""Five tiny environments whose values are known in closed form: a learner that fails one has a named bug.

Each comes in two action flavours, `probe/<name>/discrete` (two actions) and `probe/<name>/continuous` (one action in
[-1, 1]). `values` gives the closed forms, and each docstring says which part of a learner its probe isolates. The idea
of a ladder of probes, each adding one difficulty, is Andy Jones', "Debugging RL, Without the Agonizing Pain" (2021).

The four probes that terminate do so within two steps, well below their time limit.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import struct

from envs.core import Array, Box, Discrete, EpisodeState, Space, TaskInfo, TimeStep

PACKAGE: str | None = None
INSTALL = ""


@struct.dataclass
class Probe:
    """What all probes share: `obs` `[1]` is the whole state, and no key is needed after the reset."""

    id: str = struct.field(pytree_node=False)
    max_episode_steps: int = struct.field(pytree_node=False)

    @property
    def obs_dim(self) -> int:
        return 1

    @property
    def action_space(self) -> Space:
        return Discrete(2) if self.id.endswith("/discrete") else Box((-1.0,), (1.0,))

    def reset(self, key: Array) -> tuple[EpisodeState, Array]:
        obs = self.start(key)
        return EpisodeState(obs, jnp.int32(0)), obs

    def step(self, key: Array, state: EpisodeState, action: Array) -> tuple[EpisodeState, TimeStep]:
        obs, reward, terminated = self.transition(state.physics, action)
        steps = state.steps + 1
        shown = TimeStep(obs, jnp.float32(reward), jnp.bool_(terminated), steps >= self.max_episode_steps)
        return EpisodeState(obs, steps), shown

    def start(self, key: Array) -> Array:
        """The first observation `[1]`."""
        raise NotImplementedError

    def transition(self, obs: Array, action: Array) -> tuple[Array, Array | float, Array | bool]:
        """(obs `[1]`, action) -> (next obs `[1]`, reward, terminated)."""
        raise NotImplementedError


@struct.dataclass
class Constant(Probe):
    """One observation [0], one step, reward 1. V([0]) = 1.

    A learner that fails has a broken value head, value loss or optimiser.
    """

    def start(self, key: Array) -> Array:
        return jnp.zeros(1)

    def transition(self, obs: Array, action: Array) -> tuple[Array, Array | float, Array | bool]:
        return obs, 1.0, True


@struct.dataclass
class Observation(Probe):
    """The observation is [-1] or [1] at random; one step, whose reward is the observation. V([x]) = x.

    A learner that passes `constant` and fails here does not see its observations, or mixes up their order.
    """

    def start(self, key: Array) -> Array:
        return jax.random.rademacher(key, (1,), jnp.float32)

    def transition(self, obs: Array, action: Array) -> tuple[Array, Array | float, Array | bool]:
        return obs, obs[0], True


@struct.dataclass
class Discount(Probe):
    """Two steps, at [0] and then at [1], with rewards 0 and then 1. V([0]) = discount, V([1]) = 1.

    A learner that passes `observation` and fails here has a broken backup: no discount, or the next value misplaced.
    """

    def start(self, key: Array) -> Array:
        return jnp.zeros(1)

    def transition(self, obs: Array, action: Array) -> tuple[Array, Array | float, Array | bool]:
        return jnp.ones(1), obs[0], obs[0] > 0


@struct.dataclass
class Truncation(Probe):
    """The first step is at [0] with reward 0, every later one at [1] with reward 1; only the time limit (5) ends it.

    V([1]) = 1 / (1 - discount) and V([0]) = discount / (1 - discount). A learner that passes `discount` and fails here
    reads `truncated` as `terminated` (both values too small) or bootstraps from the observation after the reset, which
    is [0] again.
    """

    def start(self, key: Array) -> Array:
        return jnp.zeros(1)

    def transition(self, obs: Array, action: Array) -> tuple[Array, Array | float, Array | bool]:
        return jnp.ones(1), obs[0], False


@struct.dataclass
class Action(Probe):
    """The observation x is -1 or 1 at random; one step. V([x]) = 1 under the optimal policy.

    Discrete: reward 1 for action 1 at x = 1 and for action 0 at x = -1, otherwise 0. Continuous: reward
    1 - (action - x/2)^2, whose optimum x/2 lies inside the box. A learner that passes the others and fails here has a
    broken policy loss, or pairs observations with the wrong actions.
    """

    def start(self, key: Array) -> Array:
        return jax.random.rademacher(key, (1,), jnp.float32)

    def transition(self, obs: Array, action: Array) -> tuple[Array, Array | float, Array | bool]:
        if isinstance(self.action_space, Discrete):
            return obs, action == (obs[0] > 0), True
        return obs, 1.0 - (action[0] - 0.5 * obs[0]) ** 2, True


_CLASSES: dict[str, type[Probe]] = {
    "constant": Constant,
    "observation": Observation,
    "discount": Discount,
    "truncation": Truncation,
    "action": Action,
}
_RANDOM_START = ("observation", "action")

TASKS: dict[str, TaskInfo] = {
    f"probe/{name}/{actions}": TaskInfo(
        f"probe with a known value: {name}",
        max_episode_steps=5,
        obs_dim=1,
        num_actions=2 if actions == "discrete" else 1,
        discrete=actions == "discrete",
        backend="JAX",
        starts="discrete" if name in _RANDOM_START else "fixed",
    )
    for name in _CLASSES
    for actions in ("discrete", "continuous")
}


def build(env_id: str, max_episode_steps: int) -> Probe:
    """The probe `env_id`, a key of `TASKS`."""
    return _CLASSES[_name(env_id)](id=env_id, max_episode_steps=max_episode_steps)


def values(env_id: str, discount: float) -> list[tuple[tuple[float, ...], float]]:
    """Every observation that a policy acts on, with its value under the optimal policy (any policy, but for `action`).

    The values hold for every time limit, since truncation bootstraps. Raises ValueError if `env_id` is no probe or if
    discount is outside [0, 1).
    """
    name = _name(env_id)
    if not 0.0 <= discount < 1.0:
        raise ValueError(f"discount must be in [0, 1), where the values are finite; got {discount}")
    closed_form: dict[str, list[tuple[tuple[float, ...], float]]] = {
        "constant": [((0.0,), 1.0)],
        "observation": [((-1.0,), -1.0), ((1.0,), 1.0)],
        "discount": [((0.0,), discount), ((1.0,), 1.0)],
        "truncation": [((0.0,), discount / (1.0 - discount)), ((1.0,), 1.0 / (1.0 - discount))],
        "action": [((-1.0,), 1.0), ((1.0,), 1.0)],
    }
    return closed_form[name]


def optimal_action(env_id: str, obs: Sequence[float]) -> int | tuple[float, ...]:
    """The best action of `probe/action/*` at obs `[1]`: an int if discrete, a tuple of length 1 if continuous.

    Raises ValueError for any other id: at the other probes every action is as good.
    """
    if _name(env_id) != "action":
        raise ValueError(
            f"every action is optimal in {env_id!r}; only 'probe/action/discrete' and "
            "'probe/action/continuous' have one optimal action"
        )
    return int(obs[0] > 0) if env_id.endswith("/discrete") else (0.5 * float(obs[0]),)


def _name(env_id: str) -> str:
    if env_id not in TASKS:
        raise ValueError(f"{env_id!r} is not a probe; expected one of {', '.join(TASKS)}")
    return env_id.split("/")[1]
