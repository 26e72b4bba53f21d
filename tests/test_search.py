"""Hyperparameter settings: a grid is the product, a sample keeps its draws whatever else is asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rlsuite.algorithms.on_policy import ppo
from rlsuite.errors import UserError
from rlsuite.sweeping import job, sweep
from rlsuite.sweeping.search import Choice, LogUniform, Uniform, grid, sample

ROOT = Path(__file__).resolve().parent.parent
BASE = ppo.Hypers(entropy_coef=0.25)


def drawn(settings: tuple[ppo.Hypers, ...], name: str) -> list[float]:
    return [setting._asdict()[name] for setting in settings]


def test_a_grid_is_the_product_and_the_last_name_varies_fastest() -> None:
    settings = grid(BASE, learning_rate=(1e-3, 3e-4), discount=[1, 0.99, 0.9])
    expected = [(1e-3, 1.0), (1e-3, 0.99), (1e-3, 0.9), (3e-4, 1.0), (3e-4, 0.99), (3e-4, 0.9)]
    assert [(setting.learning_rate, setting.discount) for setting in settings] == expected
    assert settings[0] == BASE._replace(learning_rate=1e-3, discount=1.0)
    assert grid(BASE) == (BASE,)
    assert drawn(grid(BASE, discount=np.linspace(0.0, 1.0, 3)), "discount") == [0.0, 0.5, 1.0]


def test_grids_and_samples_are_settings_of_a_cell() -> None:
    hypers = grid(ppo.Hypers(), discount=(0.9, 0.99)) + sample(ppo.Hypers(), count=3, discount=Uniform(0.9, 1.0))
    shard = job.resolve("x", sweep.Cell("ppo", "probe/action/discrete", steps=4096, seeds=4, hypers=hypers))
    assert [hypers for _, hypers in shard.runs[::4]] == list(hypers)
    assert len(shard.runs) == 5 * 4
    twice = sweep.Cell("ppo", "probe/action/discrete", steps=4096, hypers=hypers + grid(ppo.Hypers(), discount=(0.9,)))
    with pytest.raises(UserError, match="twice"):
        job.resolve("x", twice)


def test_draws_follow_their_distributions() -> None:
    count = 4000
    settings = sample(
        BASE,
        count=count,
        learning_rate=LogUniform(1e-5, 1e-1),
        discount=Choice((0.9, 0.99, 0.999)),
        gae_lambda=Uniform(0.5, 0.9),
    )
    assert set(drawn(settings, "entropy_coef")) == {0.25}
    # A share of n draws has a standard deviation of at most 0.5 / sqrt(n): 5 of them are 0.04.
    for name, (low, high), middle in (
        ("learning_rate", (1e-5, 1e-1), 1e-3),
        ("gae_lambda", (0.5, 0.9), 0.7),
    ):
        values = np.array(drawn(settings, name))
        assert low <= values.min() and values.max() <= high
        assert np.mean(values < middle) == pytest.approx(0.5, abs=0.04)
    rates = np.log10(drawn(settings, "learning_rate"))
    assert [np.mean(rates < exponent) for exponent in (-4, -2)] == pytest.approx([0.25, 0.75], abs=0.04)
    discounts = np.array(drawn(settings, "discount"))
    assert [np.mean(discounts == value) for value in (0.9, 0.99, 0.999)] == pytest.approx([1 / 3] * 3, abs=0.04)
    # Streams of their own are independent of each other.
    lambdas = drawn(settings, "gae_lambda")
    assert abs(np.corrcoef(rates, lambdas)[0, 1]) < 5 / np.sqrt(count)
    # Plain floats, which a manifest can hold.
    assert {type(value) for setting in settings for value in setting} == {float}


@pytest.mark.parametrize("distribution", [Uniform(0.5, 0.6), LogUniform(0.5, 0.6), Choice((0.5, 0.6))])
def test_no_draw_leaves_its_range(distribution: Uniform | LogUniform | Choice) -> None:
    shares = np.array([0.0, np.nextafter(1.0, 0.0)])
    low, high = distribution.quantile(shares)
    assert low == 0.5 and 0.6 * (1 - 1e-15) <= high <= 0.6


def test_draws_of_a_name_depend_on_the_seed_alone() -> None:
    rates = {"learning_rate": LogUniform(1e-5, 1e-2)}
    alone = drawn(sample(BASE, count=8, seed=3, **rates), "learning_rate")
    among = sample(BASE, count=8, seed=3, discount=Choice((0.9, 0.99)), **rates, gae_lambda=Uniform(0.0, 1.0))
    assert drawn(among, "learning_rate") == alone
    assert sample(BASE, count=5, seed=3, **rates) == sample(BASE, count=8, seed=3, **rates)[:5]
    assert drawn(sample(BASE, count=8, seed=4, **rates), "learning_rate") != alone
    assert sample(BASE, count=8, **rates) == sample(BASE, count=8, seed=0, **rates)


def test_another_process_draws_the_same() -> None:
    program = (
        "from rlsuite.algorithms import ppo\nfrom rlsuite.sweeping.search import Uniform, sample\n"
        "print([h.discount for h in sample(ppo.Hypers(), count=4, discount=Uniform(0.0, 1.0))])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "12345"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    here = drawn(sample(ppo.Hypers(), count=4, discount=Uniform(0.0, 1.0)), "discount")
    assert done.stdout.strip() == str(here)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: grid(BASE, discuont=(0.9,)), "unknown hyperparameter 'discuont'; did you mean 'discount'?"),
        (lambda: sample(BASE, count=1, tau=Uniform(0, 1)), "unknown hyperparameter 'tau'; there are: learning_rate, "),
        (lambda: grid(None, discount=(0.9,)), "None must be an algorithm's Hypers, such as ppo.Hypers()"),
        (lambda: grid(BASE, discount=()), "discount has no values, expected one or more numbers"),
        (lambda: grid(BASE, discount=None), "discount=None must be a tuple of numbers"),
        (lambda: grid(BASE, discount=(0.9, NAN)), "discount=nan must be a finite number"),
        (lambda: grid(BASE, discount="0.9"), "discount='0' must be a finite number"),
        (lambda: sample(BASE, count=1, discount=Choice(())), "discount has no values"),
        (lambda: sample(BASE, count=1, discount=Choice((0.9, INF))), "discount=inf must be a finite number"),
        (lambda: sample(BASE, count=1, discount=None), "discount=None must be Uniform, LogUniform or Choice"),
        (lambda: sample(BASE, count=1, discount=Uniform(0.9, INF)), "high of discount=inf must be a finite number"),
        (lambda: sample(BASE, count=1, discount=Uniform(NAN, 1.0)), "low of discount=nan must be a finite number"),
        (lambda: sample(BASE, count=1, discount=Uniform(0.9, 0.9)), "low=0.9, high=0.9) must have low below high"),
        (lambda: sample(BASE, count=1, discount=LogUniform(1.0, 0.9)), "low=1.0, high=0.9) must have low below high"),
        (lambda: sample(BASE, count=1, discount=LogUniform(0.0, 0.9)), "low=0.0, high=0.9) must have low above 0"),
        (lambda: sample(BASE, count=0, discount=Uniform(0.0, 0.9)), "count=0 must be at least 1"),
        (lambda: sample(BASE, count=2.0, discount=Uniform(0.0, 0.9)), "count=2.0 must be of type int"),
        (lambda: sample(BASE, count=1, seed=-1, discount=Uniform(0.0, 0.9)), "seed=-1 must be at least 0"),
    ],
)
def test_what_cannot_be_is_refused_on_one_line(call: Callable[[], object], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        call()
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
