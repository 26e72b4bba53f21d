"""A machine that dies costs the minutes since the last snapshot, and not a digit of any result."""

from __future__ import annotations

from pathlib import Path

import pytest
from soak import soak


@pytest.mark.slow
def test_rows_of_a_sweep_killed_at_random_are_those_of_an_undisturbed_one(tmp_path: Path) -> None:
    """SAC, whose state has everything: networks, optimisers, environments, replay. `make soak` takes PPO as well."""
    outcome = soak(kills=20, seed=0, folder=tmp_path, algorithms=("sac",))
    assert outcome.kills == 20
    assert outcome.resumed, "no kill came between two snapshots: the moments are chosen badly"
