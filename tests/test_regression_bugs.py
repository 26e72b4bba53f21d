"""Bugs planted in PPO's advantages turn the gate red, on a cell and with a reference that we ship."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax
import pytest

from rlsuite import cli, returns

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent
CELL = "ppo__gymnax-CartPole-v1"

Array = jax.Array
Gae = Callable[[Array, Array, Array, Array, Array, Array, Array], Array]
real_gae = returns.gae


def without_discount(
    reward: Array, value: Array, next_value: Array, terminated: Array, truncated: Array, discount: Array, lam: Array
) -> Array:
    """A discount of 1, whatever was asked for."""
    return real_gae(reward, value, next_value, terminated, truncated, discount * 0.0 + 1.0, lam)


def termination_as_truncation(
    reward: Array, value: Array, next_value: Array, terminated: Array, truncated: Array, discount: Array, lam: Array
) -> Array:
    """A pole that has fallen is worth as much as one that still stands."""
    return real_gae(reward, value, next_value, terminated & False, terminated | truncated, discount, lam)


@pytest.mark.parametrize("bug", [without_discount, termination_as_truncation])
def test_a_planted_bug_turns_the_gate_red(
    bug: Gae, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(returns, "gae", bug)
    assert cli.main(["check", "--cells", CELL, "--results", str(tmp_path)]) == 1
    assert f"FAIL: {CELL}" in capsys.readouterr().out
    assert len(list(tmp_path.glob(f"check/*/{CELL}.png"))) == 1
