"""The learning contract: what an algorithm must give so that everything else (training loop, batching over runs,
evaluation, results, command line, contract tests) works with it unseen."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import jax

from envs.core import Box, Discrete, Env, Space
from rlsuite.evidence import Source as Source

Array: TypeAlias = jax.Array
State: TypeAlias = Any
Metrics: TypeAlias = dict[str, Array]
"""Name -> `[]` float32. The names are the same at every update."""


def added(default: Any) -> Any:
    """A field of a `Config` that came after results were stored: at its default it leaves shard names alone."""
    return dataclasses.field(default=default, metadata={ADDED: True})


ADDED = "added"
"""the mark that `added` leaves on a field"""


def identity(config: Any) -> dict[str, Any]:
    """The fields of a `Config` that tell it from others, in names and digests of results."""
    marked = {field.name: field.default for field in dataclasses.fields(config) if ADDED in field.metadata}
    values = dataclasses.asdict(config)
    return {name: value for name, value in values.items() if name not in marked or value != marked[name]}


class Transition(NamedTuple):
    """One environment step. Leading axes, if any, are the same for all six: `[time, num_envs]` or `[batch]`."""

    obs: Array
    """`[..., obs_dim]`"""
    action: Array
    """`[..., action_dim]` float32, or `[...]` int32 for discrete actions: what the environment was given."""
    reward: Array
    """`[...]` float32"""
    next_obs: Array
    """`[..., obs_dim]`: where the action led, NEVER the observation after a reset."""
    terminated: Array
    """`[...]` bool: bootstrap with 0."""
    truncated: Array
    """`[...]` bool: bootstrap with V(next_obs), but do not continue a return or trace across it."""


class Task(NamedTuple):
    """What is trained on. Passed as an argument, never closed over, and never batched over runs."""

    env: Env
    dataset: Any = None
    """None online; offline ONE copy of the dataset, shared by every run of a batch."""


class Clock(NamedTuple):
    """The training loop's own time. Never batched, so a `lax.cond` on it stays a conditional inside a batch of runs,
    where one on anything that a run computes becomes a select that pays for both branches."""

    update: Array
    """`[]` int32: updates done before this one."""
    progress: Array
    """`[]` float32 in [0, 1): update / (updates in the whole budget), for schedules."""


Report: TypeAlias = Callable[[Array, Task, State, Any], Metrics]
"""(key, task, state, hypers) -> what is measured only when a run is evaluated, because it takes episodes of its own."""


class Algorithm(NamedTuple):
    """A method with its `Config` fixed. Pure functions of one run; nothing in here knows that runs are batched."""

    init: Callable[[Array, Task, Any], State]
    """(key, task, hypers) -> state: networks, optimisers, first environment states, buffers."""
    update: Callable[[Array, Task, State, Any, Clock], tuple[State, Metrics]]
    """(key, task, state, hypers, clock) -> (state, metrics): collect and learn online, learn only offline."""
    act: Callable[[Array, Task, State, Array], Array]
    """(key, task, state, obs [obs_dim]) -> action inside `task.env.action_space`: the policy that evaluation uses."""
    steps_per_update: int
    """Environment steps that one update takes (gradient steps, offline)."""
    value: Callable[[Array, Task, State, Array], Array] | None = None
    """(key, task, state, obs [obs_dim]) -> [] the learner's own estimate of the undiscounted-reward-scale value of obs
    under its policy; None where a method has none. The probe tests compare it with closed-form values."""
    report: Report | None = None
    """more metrics, measured at every evaluation; None where there are none, or nobody asked for them"""
    explore: Callable[[Array, Task, State, Array], Array] | None = None
    """as `act`, with the randomness that a learner collects with: what `rlsuite collect` records; None where a method
    is no source of datasets"""


class Trial(NamedTuple):
    """A small setting in which an algorithm must reach the known value of every probe environment that it applies to.
    The contract tests train it; a new algorithm brings its own."""

    config: Any
    """a `Config` with small networks and buffers"""
    hypers: Any
    """`Hypers`; a discount around 0.5 keeps values small and learning short"""
    updates: int
    """updates after which the values must be right"""


class Preset(NamedTuple):
    """Settings that are known to suit one environment, used by default where it is named."""

    config: Any
    """the algorithm's `Config`"""
    hypers: Any
    """its `Hypers`"""
    source: str
    """who published them, for the manifest"""


class Reduction(NamedTuple):
    """A setting in which a method is another one: given the same keys, both give the same bits.

    What both have has one value: that of the method's `trial`, with the changes that are named here. The contract test
    trains both and compares actions, values, parameters and metrics, all that both have by one name.
    """

    base: str
    """the other one's name; the method's own where one of its settings is what another one is"""
    config: Mapping[str, Any] = MappingProxyType({})
    """field of the method's `Config` -> its value"""
    hypers: Mapping[str, float] = MappingProxyType({})
    """field of the method's `Hypers` -> its value"""
    base_config: Mapping[str, Any] = MappingProxyType({})
    """field of the base's `Config` -> its value, where it is not that of the method"""
    base_hypers: Mapping[str, float] = MappingProxyType({})
    """the same of the base's `Hypers`"""


@dataclasses.dataclass(frozen=True)
class AlgorithmSpec:
    """What an algorithm module declares of itself, as `SPEC` at its end."""

    config: type
    """Frozen dataclass: all that changes shapes or program structure. Another value compiles another program."""
    hypers: type
    """NamedTuple of floats: all that may differ between the runs of one compiled program."""
    make: Callable[[Any], Algorithm]
    """config -> Algorithm. Raises UserError for a config that cannot work, naming the value and the remedy."""
    trial: Trial
    action_spaces: tuple[type[Space], ...] = (Discrete, Box)
    """The kinds of action it can take."""
    fit: Callable[[Any, int], Any] = lambda config, total_steps: config
    """(config, environment steps in the budget) -> a config that gives identical results with no more memory than the
    budget can fill, for example a smaller replay buffer."""
    presets: Mapping[str, Preset] = dataclasses.field(default_factory=dict)
    """Environment id without its version, such as `mujoco/Hopper` -> the settings for it. Offline the dataset counts,
    as `dataset_name` writes it, such as `halfcheetah-medium`."""
    prepare: Callable[[Any], Any] = lambda dataset: dataset
    """dataset -> the dataset with what this method needs to have computed of it, once on the host, such as an order in
    which near transitions are found"""
    offline: bool = False
    """It learns from `Task.dataset` alone; `steps_per_update` are gradient steps."""
    label: str | None = None
    """What its curve is called in reports, where a cell does not say; None is its name in the registry."""
    summary: str = ""
    """One line for people."""
    source: Source | None = None
    """Where it comes from; None where a package of somebody else does not say."""
    former: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Fields that the `Config` had when results were stored, with the value that what is left of it always had: names
    of shards still count them."""
    former_hypers: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """The same of `Hypers`."""
    read_with: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    """Field of `Config` or `Hypers` -> the settings of `Config` with which it is read, where not with all of them."""
    reduces_to: Reduction | None = None
    """The setting in which a variant is its base; None for a base, and where there is no such setting."""

    def preset(self, env_id: str, dataset_id: str | None = None) -> Preset:
        """The settings for this environment, or for this dataset; without any of its own, the defaults of `Config` and
        `Hypers`."""
        name = re.sub(r"-v\d+$", "", env_id.split("+")[0]) if dataset_id is None else dataset_name(dataset_id)
        return self.presets.get(name) or Preset(self.config(), self.hypers(), "defaults")


def dataset_name(dataset_id: str) -> str:
    """How `presets` call a dataset: `hopper-medium` is ours of `mujoco/Hopper-v5/medium`, Minari's
    `mujoco/hopper/medium-v0` and D4RL's `hopper-medium-v2`, by these ids or as a file or folder of such a name."""
    path = dataset_id.lower().rstrip("/")
    name = path.removesuffix(".hdf5").removesuffix(".h5")
    if found := re.search(r"(?:^|/)(?:mujoco|d4rl)/([^/]+/[^/]+)$", name):
        name = re.sub(r"-v\d+/", "/", found[1])  # a task and a tier
    elif name != path or re.search(rf"/(?:{D4RL_TASKS})[-_][^/]*$", name):
        name = name.rsplit("/", 1)[-1]
    return re.sub(r"[/_]", "-", re.sub(r"-v\d+$", "", name))


D4RL_TASKS = "halfcheetah|hopper|walker2d|antmaze"
"""what the names of D4RL's datasets begin with, where there are published settings"""
