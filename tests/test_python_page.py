"""docs/python.md: its program runs as it stands, and does what the page says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PAGE = Path(__file__).resolve().parent.parent / "docs" / "python.md"


def test_the_program_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    [program] = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)
    names: dict[str, Any] = {}
    exec(compile(program, str(PAGE), "exec"), names)

    frame, final, episodes = names["frame"], names["final"], names["episodes"]
    assert names["shard"].name == Path(frame["shard"].iloc[0]).stem and set(frame["seed"]) == set(range(8))
    # Every evaluation of every run, the untrained one included; and it has learned something.
    assert len(frame) == 8 * 5
    np.testing.assert_allclose(final, frame[frame["step"] == frame["step"].max()]["return_mean"])
    assert final.mean() > 2 * frame[frame["step"] == 0]["return_mean"].mean()
    assert int(names["action"]) in (0, 1)
    # CartPole pays 1 a step.
    assert episodes.returns.tolist() == episodes.lengths.tolist() and len(episodes.returns) == 3
    assert (tmp_path / "results" / "mine" / "report.html").exists()
    assert "Final evaluation" in capsys.readouterr().out
