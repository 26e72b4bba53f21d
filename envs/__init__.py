"""What is trained on: one adapter or environment a file, all behind the contract of `envs.core`.

env = envs.make("gymnax/CartPole-v1")
state, obs = env.reset(key)
state, shown = env.step(key, state, action)
"""

from envs.core import Box, Discrete, Env, EnvState, Space, TimeStep
from envs.registry import MissingPackageError, UnknownEnvironmentError, describe, info, make, registered

__all__ = [
    "Box",
    "Discrete",
    "Env",
    "EnvState",
    "MissingPackageError",
    "Space",
    "TimeStep",
    "UnknownEnvironmentError",
    "describe",
    "info",
    "make",
    "registered",
]
