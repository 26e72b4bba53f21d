"""`rlsuite bench`: what its processes find is shown and written, and it keeps no accelerator from them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rlsuite.commands import bench
from rlsuite.commands.bench_row import Row
from rlsuite.training.plan import Limits

ROW = Row(2, 2, 1, 1000.0, 2000.0, 1.5, 3.0, 10_000_000, 20_000_000)

WITHOUT_A_DEVICE = """
from jax._src import xla_bridge
from rlsuite.commands import bench
from rlsuite.training.plan import Limits

def in_new_process(name, runs, limits):
    return bench.Row(runs, runs, 1, 1.0, 1.0, 1.0, 1.0, 1, 1), "a device"

bench.in_new_process = in_new_process
bench.bench(["sac-small"], [1, 2], Limits())
print("started", xla_bridge.backends_are_initialized())
"""


def test_rows_are_shown_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "in_new_process", lambda name, runs, limits: (ROW._replace(runs=runs), "a device"))
    bench.bench(["ppo", "sac"], [1, 2], Limits(), tmp_path / "rows.json")
    shown = capsys.readouterr()
    lines = (shown.out + shown.err).splitlines()
    assert sum("a device" in line for line in lines) == 1 and sum("1.50x" in line for line in lines) == 4, lines
    written = json.loads((tmp_path / "rows.json").read_text())
    assert written["device"] == "a device"
    assert [(row["benchmark"], row["runs"]) for row in written["rows"]] == [
        (name, runs) for name in ("ppo", "sac") for runs in (1, 2)
    ]


def test_the_process_that_only_asks_starts_no_device() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_A_DEVICE], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "started False", done.stdout + done.stderr


def test_the_process_that_measures_imports_no_more_than_training_takes() -> None:
    """Its time until it is ready and its peak memory are in the table."""
    others = "('rlsuite.sweeping', 'pyarrow')"
    program = f"import sys, rlsuite.commands.bench_row; print([m for m in {others} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
