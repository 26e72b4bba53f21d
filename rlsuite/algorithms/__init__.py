"""The registry: one line an algorithm. Everything else (command line, sweeps, contract tests) works from this."""

from __future__ import annotations

import difflib

from envs.core import Box, Env
from rlsuite.algorithms import ppo, sac
from rlsuite.core import AlgorithmSpec, UserError

REGISTRY: dict[str, AlgorithmSpec] = {
    "ppo": AlgorithmSpec(ppo.Config, ppo.Hypers, ppo.make, ppo.TRIAL),
    "sac": AlgorithmSpec(sac.Config, sac.Hypers, sac.make, sac.TRIAL, action_spaces=(Box,), fit=sac.fit),
}


def get(name: str) -> AlgorithmSpec:
    """The registry entry of this name.

    Raises:
        UserError: there is none; the message names the nearest one.
    """
    if name not in REGISTRY:
        near = difflib.get_close_matches(name, REGISTRY, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(sorted(REGISTRY))}"
        raise UserError(f"unknown algorithm '{name}'; {hint}")
    return REGISTRY[name]


def check_actions(name: str, env: Env) -> None:
    """Raise UserError unless the algorithm can take this environment's kind of action."""
    spec = get(name)
    if type(env.action_space) not in spec.action_spaces:
        needs = " or ".join(space.__name__ for space in spec.action_spaces)
        able = sorted(other for other, s in REGISTRY.items() if type(env.action_space) in s.action_spaces)
        raise UserError(
            f"'{name}' needs {needs} actions, but '{env.id}' has {type(env.action_space).__name__} actions; "
            f"algorithms that take them: {', '.join(able)}"
        )
