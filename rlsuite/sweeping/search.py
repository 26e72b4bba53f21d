"""Which hyperparameters a cell compares: every combination of some values, or random draws.

Both functions give a tuple of Hypers for `sweep.Cell(hypers=...)`, and tuples add up: `grid(...) + sample(...)`. All
settings are trained in one compiled program.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import math
import zlib
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from rlsuite.errors import MOST_RUNS, UserError, check_at_most, check_positive, is_float32
from rlsuite.sweeping.checks import check_type

HypersT = TypeVar("HypersT", bound=tuple[Any, ...])
"""An algorithm's `Hypers`, a named tuple of floats."""
Shares: TypeAlias = NDArray[np.float64]
Values: TypeAlias = Sequence[float] | NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Uniform:
    """Any number from `low` to `high`, all equally likely."""

    low: float
    high: float

    def check(self, name: str) -> None:
        """Raise UserError, with the hyperparameter's name, unless low < high and both are finite."""
        _check_bounds(name, self)

    def quantile(self, share: Shares) -> Shares:
        """`[count]` shares in [0, 1) -> `[count]` values, in float64."""
        # Not low + share * (high - low), whose difference may overflow.
        return np.clip((1.0 - share) * self.low + share * self.high, self.low, self.high)


@dataclasses.dataclass(frozen=True)
class LogUniform:
    """Any number from `low` to `high`, every factor equally likely: as many below the geometric mean as above it."""

    low: float
    high: float

    def check(self, name: str) -> None:
        """Raise UserError, with the hyperparameter's name, unless 0 < low < high and both are finite."""
        _check_bounds(name, self)
        if self.low <= 0:
            raise UserError(f"{name}={self} must have low above 0, where the logarithm begins; or use Uniform")

    def quantile(self, share: Shares) -> Shares:
        """`[count]` shares in [0, 1) -> `[count]` values, in float64."""
        # exp(log(low)) may be a digit below low.
        logarithm = (1.0 - share) * math.log(self.low) + share * math.log(self.high)
        return np.clip(np.exp(logarithm), self.low, self.high)


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of these values, all equally likely."""

    values: Values

    def check(self, name: str) -> None:
        """Raise UserError, with the hyperparameter's name, unless there are values and all are finite."""
        _numbers(name, self.values)

    def quantile(self, share: Shares) -> Shares:
        """`[count]` shares in [0, 1) -> `[count]` values, in float64."""
        values = np.array([*self.values], np.float64)
        return values[(share * values.size).astype(np.int64)]


Distribution: TypeAlias = Uniform | LogUniform | Choice


def grid(base: HypersT, /, **values: Values) -> tuple[HypersT, ...]:
    """Every combination of the values: `grid(ppo.Hypers(), learning_rate=(1e-3, 3e-4), discount=(0.99, 0.997))`.

    Args:
        base: an algorithm's `Hypers`, with the value of each hyperparameter that is not named.
        values: hyperparameter -> what it may be.

    Returns:
        The product of all values, in their order; the last name varies fastest.

    Raises:
        UserError: a name that `base` does not have, no value, one that is not a finite number in float32 too, or more
            combinations than a cell has runs.
    """
    _check_names(base, values)
    axes = [_numbers(name, some) for name, some in values.items()]
    check_at_most(MOST_RUNS, combinations=math.prod(map(len, axes)))
    return tuple(_with(base, dict(zip(values, point, strict=True))) for point in itertools.product(*axes))


def sample(base: HypersT, /, *, count: int, seed: int = 0, **distributions: Distribution) -> tuple[HypersT, ...]:
    """Random search: `sample(ppo.Hypers(), count=64, learning_rate=LogUniform(1e-5, 1e-2))`.

    Every name has a random stream of its own, so that its draws do not depend on which other names are given, and the
    first settings of a larger sample are those of a smaller one.

    Args:
        base: an algorithm's `Hypers`, with the value of each hyperparameter that is not named.
        count: number of settings.
        seed: of the draws, 0 or more.
        distributions: hyperparameter -> `Uniform`, `LogUniform` or `Choice`.

    Returns:
        `count` settings, drawn independently. Where all are of a `Choice`, some may be the same, which a sweep refuses:
        `tuple(dict.fromkeys(...))` keeps each once.

    Raises:
        UserError: a name that `base` does not have, a distribution without values or with bounds that cannot be,
            `count` below 1, `seed` below 0.
    """
    check_type("count", count, 1)
    check_type("seed", seed, 1)
    check_positive(count=count)
    check_at_most(MOST_RUNS, count=count)
    if seed < 0:
        raise UserError(f"seed={seed} must be at least 0")
    _check_names(base, distributions)
    for name, distribution in distributions.items():
        if not isinstance(distribution, Distribution):
            raise UserError(f"{name}={distribution!r} must be Uniform, LogUniform or Choice, such as Uniform(0.9, 1.0)")
        distribution.check(name)
    draws = {
        # A checksum of the name, because Python's own hash of a string differs from process to process.
        name: distribution.quantile(np.random.default_rng([seed, zlib.crc32(name.encode())]).random(count)).tolist()
        for name, distribution in distributions.items()
    }
    return tuple(_with(base, {name: drawn[i] for name, drawn in draws.items()}) for i in range(count))


def _with(base: HypersT, changed: dict[str, float]) -> HypersT:
    setting: HypersT = base._replace(**changed)  # type: ignore[attr-defined]
    return setting


def _check_names(base: Any, names: Iterable[str]) -> None:
    if not isinstance(base, tuple) or not hasattr(base, "_fields"):
        raise UserError(f"{base!r} must be an algorithm's Hypers, such as ppo.Hypers()")
    for name in names:
        if name not in base._fields:
            near = difflib.get_close_matches(name, base._fields, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(base._fields)}"
            raise UserError(f"unknown hyperparameter '{name}'; {hint}")


def _numbers(name: str, values: Any) -> tuple[float, ...]:
    """The values as floats. Raises UserError unless there are some and all are finite numbers."""
    if not isinstance(values, Sequence | np.ndarray):
        raise UserError(f"{name}={values!r} must be a tuple of numbers, such as (0.1, 0.2)")
    numbers = tuple(values)
    if not numbers:
        raise UserError(f"{name} has no values, expected one or more numbers; leave it out to keep the base's value")
    for value in numbers:
        _check_finite(name, value)
    return tuple(float(value) for value in numbers)


def _check_finite(name: str, value: Any) -> None:
    if not isinstance(value, int | float) or not is_float32(value):
        raise UserError(f"{name}={value!r} must be a finite number, such as 0.5")


def _check_bounds(name: str, bounds: Uniform | LogUniform) -> None:
    _check_finite(f"low of {name}", bounds.low)
    _check_finite(f"high of {name}", bounds.high)
    if bounds.low >= bounds.high:
        raise UserError(f"{name}={bounds} must have low below high; for a single value, set it in the base")
