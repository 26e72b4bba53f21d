"""The registry: one line an algorithm. Everything else (command line, sweeps, contract tests) works from this.

An algorithm may also come with another package, by an entry point of the group `rlsuite.algorithms` that has its name
and names its `AlgorithmSpec`. Such packages are looked for when a name is not one of ours, or when all are listed.
"""

from __future__ import annotations

import difflib
import functools
import re

from envs import plugins
from envs.core import Box, Env
from envs.datasets import with_blocks
from envs.plugins import Package
from rlsuite.algorithms.off_policy import ddpg, dsac, dsac_t, mdpo_off_policy, sac, td3
from rlsuite.algorithms.offline import a2pr, awac, bc, cdsa, cql, edac, iql, prdc, rebrac, td3_bc
from rlsuite.algorithms.on_policy import mdpo, ppo, ppo_buffer, props
from rlsuite.core import AlgorithmSpec
from rlsuite.errors import UserError

REGISTRY: dict[str, AlgorithmSpec] = {
    "a2pr": AlgorithmSpec(
        a2pr.Config,
        a2pr.Hypers,
        a2pr.make,
        a2pr.TRIAL,
        action_spaces=(Box,),
        offline=True,
        presets=a2pr.PRESETS,
    ),
    "awac": AlgorithmSpec(
        awac.Config, awac.Hypers, awac.make, awac.TRIAL, action_spaces=(Box,), presets=awac.PRESETS, offline=True
    ),
    "bc": AlgorithmSpec(bc.Config, bc.Hypers, bc.make, bc.TRIAL, action_spaces=(Box,), offline=True),
    "cql": AlgorithmSpec(
        cql.Config, cql.Hypers, cql.make, cql.TRIAL, action_spaces=(Box,), offline=True, presets=cql.PRESETS
    ),
    "ddpg": AlgorithmSpec(ddpg.Config, ddpg.Hypers, ddpg.make, ddpg.TRIAL, action_spaces=(Box,), fit=ddpg.fit),
    "dsac": AlgorithmSpec(dsac.Config, dsac.Hypers, dsac.make, dsac.TRIAL, action_spaces=(Box,), fit=dsac.fit),
    "dsac_t": AlgorithmSpec(
        dsac_t.Config, dsac_t.Hypers, dsac_t.make, dsac_t.TRIAL, action_spaces=(Box,), fit=dsac_t.fit
    ),
    "edac": AlgorithmSpec(
        edac.Config, edac.Hypers, edac.make, edac.TRIAL, action_spaces=(Box,), offline=True, presets=edac.PRESETS
    ),
    "iql": AlgorithmSpec(
        iql.Config, iql.Hypers, iql.make, iql.TRIAL, action_spaces=(Box,), presets=iql.PRESETS, offline=True
    ),
    "mdpo": AlgorithmSpec(mdpo.Config, mdpo.Hypers, mdpo.make, mdpo.TRIAL),
    "mdpo_off_policy": AlgorithmSpec(
        mdpo_off_policy.Config,
        mdpo_off_policy.Hypers,
        mdpo_off_policy.make,
        mdpo_off_policy.TRIAL,
        action_spaces=(Box,),
        fit=mdpo_off_policy.fit,
    ),
    "ppo": AlgorithmSpec(ppo.Config, ppo.Hypers, ppo.make, ppo.TRIAL),
    "ppo_buffer": AlgorithmSpec(
        ppo_buffer.Config, ppo_buffer.Hypers, ppo_buffer.make, ppo_buffer.TRIAL, presets=ppo_buffer.PRESETS
    ),
    "prdc": AlgorithmSpec(
        prdc.Config,
        prdc.Hypers,
        prdc.make,
        prdc.TRIAL,
        action_spaces=(Box,),
        presets=prdc.PRESETS,
        prepare=with_blocks,
        offline=True,
    ),
    "props": AlgorithmSpec(props.Config, props.Hypers, props.make, props.TRIAL, presets=props.PRESETS),
    "rebrac": AlgorithmSpec(
        rebrac.Config,
        rebrac.Hypers,
        rebrac.make,
        rebrac.TRIAL,
        action_spaces=(Box,),
        presets=rebrac.PRESETS,
        offline=True,
    ),
    "sac": AlgorithmSpec(sac.Config, sac.Hypers, sac.make, sac.TRIAL, action_spaces=(Box,), fit=sac.fit),
    "td3": AlgorithmSpec(td3.Config, td3.Hypers, td3.make, td3.TRIAL, action_spaces=(Box,), fit=td3.fit),
    "td3_bc": AlgorithmSpec(
        td3_bc.Config, td3_bc.Hypers, td3_bc.make, td3_bc.TRIAL, action_spaces=(Box,), offline=True
    ),
}

CORRECTED = "+cdsa"
"""Any offline learner's name may end so. One stands for all in the registry; `get` makes the others when asked."""
REGISTRY["td3_bc" + CORRECTED] = cdsa.around("td3_bc", REGISTRY["td3_bc"])


ENTRY_POINTS = "rlsuite.algorithms"
"""the group of entry points in which other packages name their algorithms"""


def registered() -> dict[str, AlgorithmSpec]:
    """Name -> entry of every algorithm, those of other packages included, sorted.

    An algorithm of a package that cannot be used is left out, with a warning that names it.
    """
    others = {name: spec for name, (spec, _) in _from_other_packages().items()}
    return dict(sorted({**REGISTRY, **others}.items()))


def get(name: str) -> AlgorithmSpec:
    """The registry entry of this name, or of an offline learner with `CORRECTED` behind its name.

    Raises:
        UserError: there is none; the message names the nearest one.
    """
    if name in REGISTRY:
        return REGISTRY[name]
    base = name.removesuffix(CORRECTED)
    there = REGISTRY if base in REGISTRY else registered()
    if name in there:
        return there[name]
    if base in there and not base.endswith(CORRECTED):
        return _corrected(base)
    offline = {other for other, spec in there.items() if spec.offline and not other.endswith(CORRECTED)}
    names = sorted({*there, *(other + CORRECTED for other in offline)})
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(there)}"
    raise UserError(f"unknown algorithm '{name}'; {hint}")


def package(name: str) -> Package | None:
    """The other package that brings the algorithm of this name, which there is; None for ours."""
    if name in REGISTRY:
        return None
    base = name.removesuffix(CORRECTED)
    return None if base in REGISTRY else _from_other_packages()[base][1]


@functools.cache
def _corrected(base: str) -> AlgorithmSpec:
    """Made once, since its classes must be the same whoever asks."""
    return cdsa.around(base, registered()[base])


@functools.cache
def _from_other_packages() -> dict[str, tuple[AlgorithmSpec, Package]]:
    """Name -> entry and who brings it, of all that other installed packages bring and that can be used."""
    found: dict[str, tuple[AlgorithmSpec, Package]] = {}

    def add(name: str, spec: object, package: Package) -> None:
        if not isinstance(spec, AlgorithmSpec):
            raise TypeError(f"expected an AlgorithmSpec, got {type(spec).__name__}")
        if not re.fullmatch(r"\w+", name, re.ASCII):  # it becomes a part of file names, and a plus sign has a meaning
            raise ValueError("its name must consist of letters, digits and underscores")
        if name in {**REGISTRY, **found}:
            raise ValueError("there is an algorithm of this name already")
        found[name] = spec, package

    plugins.load(ENTRY_POINTS, "algorithm", add)
    return found


def check_actions(name: str, env: Env) -> None:
    """Raise UserError unless the algorithm can take this environment's kind of action."""
    spec = get(name)
    if type(env.action_space) not in spec.action_spaces:
        needs = " or ".join(space.__name__ for space in spec.action_spaces)
        able = [other for other, s in registered().items() if type(env.action_space) in s.action_spaces]
        raise UserError(
            f"'{name}' needs {needs} actions, but '{env.id}' has {type(env.action_space).__name__} actions; "
            f"algorithms that take them: {', '.join(able)}"
        )
