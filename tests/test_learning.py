"""Learning curves: the experiments that we ship, run as a user runs them, reach what docs/quick.md says.

Scores are read as a user reads them, through `analysis`.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import analysis
from analysis import bootstrap
from rlsuite.commands import cli

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("learning")]
REPOSITORY = Path(__file__).parent.parent


@functools.cache
def results(experiment: str) -> pd.DataFrame:
    folder = tempfile.mkdtemp(prefix="rlsuite-learning-")
    assert cli.main(["sweep", str(REPOSITORY / "experiments" / f"{experiment}.py"), "--results", folder]) == 0
    return analysis.load(Path(folder) / experiment)


def iqm(experiment: str, label: str, environment: str, *, untrained: bool = False) -> tuple[float, float, float]:
    """The interquartile mean over runs at the first or last evaluation, and its 95 % interval."""
    frame = results(experiment)
    frame = frame[(frame.label == label) & (frame.environment == environment)]
    step = frame.step.min() if untrained else frame.step.max()
    scores = frame[frame.step == step].return_mean.to_numpy()
    assert len(scores) >= 32
    found = bootstrap.interval([scores], bootstrap.iqm, seed=0, withhold=False)
    return found.estimate, found.low, found.high


def test_ppo_solves_cartpole() -> None:
    assert iqm("cartpole", "ppo", "gymnax/CartPole-v1")[0] >= 475.0


def test_sac_solves_pendulum() -> None:
    assert iqm("quick", "sac", "gymnax/Pendulum-v1")[0] >= -200.0


FAR_ABOVE = [
    ("quick", "ppo", "gymnax/Pendulum-v1"),
    ("quick", "sac", "gymnax/Pendulum-v1"),
    ("quick", "ppo", "brax/inverted_pendulum/generalized"),
    ("quick", "sac", "brax/inverted_pendulum/generalized"),
    ("quick", "sac", "brax/hopper/spring"),
    # PPO's untrained policy does next to nothing, with which the hopper stands for long: quick is too short for it.
    ("hopper", "ppo", "brax/hopper/spring"),
]


@pytest.mark.parametrize(("experiment", "label", "environment"), FAR_ABOVE)
def test_learning_is_far_above_the_untrained_policy(experiment: str, label: str, environment: str) -> None:
    """The intervals are apart by more than either is wide."""
    _, untrained_low, untrained_high = iqm(experiment, label, environment, untrained=True)
    _, low, high = iqm(experiment, label, environment)
    assert low - untrained_high > max(high - low, untrained_high - untrained_low)


def test_ppo_is_above_the_untrained_policy_on_hopper_in_the_quick_sweep() -> None:
    """The intervals do not meet."""
    assert iqm("quick", "ppo", "brax/hopper/spring")[1] > iqm("quick", "ppo", "brax/hopper/spring", untrained=True)[2]


def test_no_run_diverged() -> None:
    for experiment in ("cartpole", "quick", "hopper"):
        assert not results(experiment).diverged.any()
        assert np.isfinite(results(experiment).return_mean).all()
