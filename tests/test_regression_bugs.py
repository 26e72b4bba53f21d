"""A bug planted in PPO's advantages turns the gate red, on a cell and with the reference that we ship."""

from __future__ import annotations

from pathlib import Path

import jax
import pytest

from rlsuite.commands import cli
from rlsuite.pieces import returns

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent
CELL = "ppo__gymnax-CartPole-v1"

Array = jax.Array
real_gae = returns.gae


def without_discount(
    reward: Array, value: Array, next_value: Array, terminated: Array, truncated: Array, discount: Array, lam: Array
) -> Array:
    """A discount of 1, whatever was asked for."""
    return real_gae(reward, value, next_value, terminated, truncated, discount * 0.0 + 1.0, lam)


def test_a_planted_bug_turns_the_gate_red(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(returns, "gae", without_discount)
    assert cli.main(["check", "--cells", CELL, "--results", str(tmp_path)]) == 1
    assert f"FAIL: {CELL}" in capsys.readouterr().out
    assert len(list(tmp_path.glob(f"check/*/{CELL}.png"))) == 1
