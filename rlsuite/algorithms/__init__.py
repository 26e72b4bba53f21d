"""The registry: a name a method. Everything else (command line, sweeps, contract tests) works from this.

A method is a module in a room of this folder, imported when it is first asked for; `SPEC` at its end declares it. What
lists show of it is read from its source, so that a list imports no method.

An algorithm may also come with another package, by an entry point of the group `rlsuite.algorithms` that has its name
and names its `AlgorithmSpec`. Such packages are looked for when a name is not one of ours, or when all are listed.
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib
import importlib.metadata
import re
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from rlsuite.errors import UserError
from rlsuite.evidence import Source

if TYPE_CHECKING:  # they import JAX, which a list does without
    from envs.core import Env
    from envs.plugins import Package
    from rlsuite.core import AlgorithmSpec

METHODS = (
    "off_policy.ddpg",
    "off_policy.dsac",
    "off_policy.dsac_t",
    "off_policy.mdpo_off_policy",
    "off_policy.sac",
    "off_policy.td3",
    "offline.a2pr",
    "offline.awac",
    "offline.bc",
    "offline.cql",
    "offline.edac",
    "offline.iql",
    "offline.prdc",
    "offline.rebrac",
    "offline.td3_bc",
    "on_policy.mdpo",
    "on_policy.ppo",
    "on_policy.ppo_buffer",
    "on_policy.props",
    "on_policy.ros",
)
"""Room and module of each method; a name is that of its module."""

CORRECTED = "+cdsa"
"""Any offline learner's name may end so. One stands for all in the registry; `get` makes the others when asked."""
CORRECTED_EXAMPLE = "td3_bc" + CORRECTED

ENTRY_POINTS = "rlsuite.algorithms"
"""the group of entry points in which other packages name their algorithms"""

MODULES = {method.split(".")[1]: f"{__name__}.{method}" for method in METHODS}
"""Name -> the module that declares it."""


def __getattr__(name: str) -> ModuleType:
    """`rlsuite.algorithms.ppo`, whatever its room."""
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(MODULES[name])


class Card(NamedTuple):
    """The summary of a method that a list shows."""

    name: str
    room: str
    """the folder it lies in, such as `offline`; `other` for one of another package"""
    summary: str
    actions: tuple[str, ...]
    """kinds of action that it takes, such as `Box`"""
    offline: bool
    """it learns from a dataset"""
    source: Source | None


def names() -> list[str]:
    """The names of our own methods, sorted. Imports nothing."""
    return sorted([*MODULES, CORRECTED_EXAMPLE])


def registered() -> dict[str, AlgorithmSpec]:
    """Name -> what it declares, of every algorithm, those of other packages included, sorted. Imports all of them.

    An algorithm of a package that cannot be used is left out, with a warning that names it.
    """
    return {name: get(name) for name in sorted([*names(), *_from_other_packages()])}


def get(name: str) -> AlgorithmSpec:
    """The declaration of the algorithm of this name, or of an offline learner with `CORRECTED` after its name.

    Raises:
        UserError: there is none; the message names the nearest one.
    """
    if name in MODULES:
        spec: AlgorithmSpec = importlib.import_module(MODULES[name]).SPEC
        return spec
    base = name.removesuffix(CORRECTED)
    if base in MODULES and base != name:
        return _corrected(base)
    others = _from_other_packages()
    if name in others:
        return others[name][0]
    if base in others and base != name:
        return _corrected(base)
    offline = {card.name for card in cards() if card.offline and not card.name.endswith(CORRECTED)}
    every = sorted({*names(), *others, *(other + CORRECTED for other in offline)})
    near = difflib.get_close_matches(name, every, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(sorted([*names(), *others]))}"
    raise UserError(f"unknown algorithm '{name}'; {hint}")


def package(name: str) -> Package | None:
    """The other package that brings the algorithm of this name, which there is; None for ours."""
    base = name.removesuffix(CORRECTED)
    return None if name in MODULES or base in MODULES else _from_other_packages()[base][1]


@functools.cache
def _corrected(base: str) -> AlgorithmSpec:
    """Made once, so that every caller gets the same classes."""
    from rlsuite.algorithms.offline import cdsa

    return cdsa.around(base, get(base))


def cards() -> list[Card]:
    """The summaries of all algorithms, sorted by name."""
    own = [_card(method) for method in (*METHODS, "offline.cdsa")]
    others = [
        Card(name, "other", spec.summary, tuple(s.__name__ for s in spec.action_spaces), spec.offline, spec.source)
        for name, (spec, _) in _from_other_packages().items()
    ]
    return sorted([*own, *others])


def _card(method: str) -> Card:
    """Read from the `SPEC` at the end of the method's source; +cdsa has `DECLARED`, what all its `SPEC`s share."""
    room, module = method.split(".")
    source = (Path(__file__).parent / room / f"{module}.py").read_text("utf-8")
    (declared,) = re.findall(r"^(?:SPEC|DECLARED) = (\w+\(.*?^\))", source, re.M | re.S)
    (call,) = ast.parse(declared).body
    assert isinstance(call, ast.Expr) and isinstance(call.value, ast.Call)
    given = {keyword.arg: keyword.value for keyword in call.value.keywords}

    def literal(name: str, default: Any) -> Any:
        return ast.literal_eval(given[name]) if name in given else default

    spaces = given.get("action_spaces")
    actions = (
        tuple(name.id for name in ast.walk(spaces) if isinstance(name, ast.Name)) if spaces else ("Discrete", "Box")
    )
    declared_source = given["source"]
    assert isinstance(declared_source, ast.Call)
    fields = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in declared_source.keywords}
    name = CORRECTED_EXAMPLE if module == "cdsa" else module
    return Card(name, room, literal("summary", ""), actions, literal("offline", False), Source(**fields))


@functools.cache
def _from_other_packages() -> dict[str, tuple[AlgorithmSpec, Package]]:
    """Name -> (declaration, package) of every usable algorithm of other installed packages."""
    found: dict[str, tuple[AlgorithmSpec, Package]] = {}
    if not importlib.metadata.entry_points(group=ENTRY_POINTS):
        return found
    from envs import plugins
    from rlsuite.core import AlgorithmSpec

    def add(name: str, spec: object, package: Package) -> None:
        if not isinstance(spec, AlgorithmSpec):
            raise TypeError(f"expected an AlgorithmSpec, got {type(spec).__name__}")
        if not re.fullmatch(r"\w+", name, re.ASCII):  # it becomes a part of file names, and a plus sign has a meaning
            raise ValueError("its name must consist of letters, digits and underscores")
        if name in {*MODULES, *found}:
            raise ValueError("there is an algorithm of this name already")
        found[name] = spec, package

    plugins.load(ENTRY_POINTS, "algorithm", add)
    return found


def check_actions(name: str, env: Env) -> None:
    """Raise UserError unless the algorithm can take this environment's kind of action."""
    spec = get(name)
    if type(env.action_space) not in spec.action_spaces:
        needs = " or ".join(space.__name__ for space in spec.action_spaces)
        able = [card.name for card in cards() if type(env.action_space).__name__ in card.actions]
        raise UserError(
            f"'{name}' needs {needs} actions, but '{env.id}' has {type(env.action_space).__name__} actions; "
            f"algorithms that take them: {', '.join(able)}"
        )
