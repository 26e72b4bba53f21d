"""The settings of a method and of what wraps it, as one `Config` and one `Hypers` for command line and files."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any, NamedTuple

from rlsuite.core import AlgorithmSpec
from rlsuite.errors import UserError


class JointSettings(NamedTuple):
    """Classes with the fields of the base and then those of the wrapper."""

    spec: AlgorithmSpec
    """of the base"""
    own_config: type
    config: type
    hypers: type

    def join_config(self, config: Any, own: Any) -> Any:
        """The config of both."""
        return self.config(**_fields(config, self.spec.config), **_fields(own, self.own_config))

    def split_config(self, config: Any) -> tuple[Any, Any]:
        """The base's config, and the wrapper's."""
        return self.spec.config(**_fields(config, self.spec.config)), self.own_config(
            **_fields(config, self.own_config)
        )

    def split_hypers(self, hypers: Any) -> Any:
        """The base's hyperparameters among all of them."""
        return self.spec.hypers(*hypers[: len(self.spec.hypers()._fields)])


def _fields(config: Any, owner: type) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(owner)}


def joined(name: str, spec: AlgorithmSpec, wrapper: str, config: type, hypers: type) -> JointSettings:
    """The settings of the base `name` and those of its wrapper, `config` and `hypers`.

    Raises:
        UserError: both have a setting of the same name.
    """
    base_hypers, own_hypers = spec.hypers(), hypers()
    twice = {field.name for field in dataclasses.fields(spec.config)} | set(base_hypers._fields)
    twice &= {field.name for field in dataclasses.fields(config)} | set(own_hypers._fields)
    if twice:
        raise UserError(f"'{name}' and {wrapper} both have a setting '{min(twice)}'; rename the one of '{name}'")
    suffix = f"With{wrapper.upper()}"
    # No class in a file has these names, so `inspect.getsource`, which the help uses, reads their bases.
    config_class = dataclasses.make_dataclass(f"Config{suffix}", [], bases=(config, spec.config), frozen=True)
    namedtuple: Any = collections.namedtuple  # which type checkers want literals for
    fields = (*base_hypers._fields, *own_hypers._fields)
    both = namedtuple(f"Hypers{suffix}", fields, defaults=(*base_hypers, *own_hypers))
    # The bases bring the types and texts of the fields; the fields themselves are all those of the first one.
    hypers_class: Any = type(f"Hypers{suffix}", (both, hypers, spec.hypers), {"__slots__": ()})
    return JointSettings(spec, config, config_class, hypers_class)
