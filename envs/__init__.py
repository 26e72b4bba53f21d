"""What is trained on: one adapter or environment a file, all under the contract of `envs.core`.

env = envs.make("gymnax/CartPole-v1")
state, obs = env.reset(key)
state, shown = env.step(key, state, action)
"""

from envs.core import Box, Discrete, Env, EnvState, Reference, Space, TaskInfo, TimeStep
from envs.registry import (
    MissingPackageError,
    UnknownEnvironmentError,
    describe_wrappers,
    info,
    make,
    package,
    registered,
)
from envs.wrappers import WrapperError

__all__ = [
    "Box",
    "Discrete",
    "Env",
    "EnvState",
    "MissingPackageError",
    "Reference",
    "Space",
    "TaskInfo",
    "TimeStep",
    "UnknownEnvironmentError",
    "WrapperError",
    "describe_wrappers",
    "info",
    "make",
    "package",
    "registered",
]
