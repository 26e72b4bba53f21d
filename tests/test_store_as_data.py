"""The store as data: as pandas, Arrow and polars, and as versions of rlsuite wrote it that are gone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import polars
import pyarrow as pa
import pyarrow.compute as pc
from test_analysis import ramp, write_shard

from analysis import bootstrap, load, load_arrow, manifests, score

FORMAT_1 = Path(__file__).resolve().parent / "fixtures" / "format_1"
"""Written by the store of November 2026 from made-up evaluations: every run scores 100 more at each update and 10 more
than the run before. The last run of each finished shard diverged. One shard was still running."""


def test_results_of_format_1_stay_readable() -> None:
    scores = score(load(FORMAT_1), manifests(FORMAT_1))
    online, offline = scores.tasks["ppo", "gymnax/CartPole-v1"], scores.tasks["bc", "gymnax/Pendulum-v1/medium"]
    running = scores.tasks["ppo", "gymnax/Acrobot-v1"]
    assert len(scores.tasks) == 3 and len(scores.notes) == 4
    assert online.curves.tolist() == [[base + 10 * run for base in (0, 100, 200)] for run in range(8)]
    assert (online.steps.tolist(), online.seeds.tolist()) == ([0, 256, 512], [0, 1, 2, 3] * 2)
    assert online.hypers["learning_rate"].tolist() == [1e-3] * 4 + [3e-4] * 4
    assert online.diverged.tolist() == [False] * 7 + [True]
    assert bootstrap.estimate([online.final], bootstrap.iqm) == 235.0
    assert (offline.offline, offline.auc.tolist()) == (True, [300, 310, 320, 330])
    reference = scores.references["gymnax/Pendulum-v1/medium"]
    assert reference.normalise(offline.final).tolist() == [0.8, 0.82, 0.84, 0.86]
    assert (running.counted.tolist(), running.planned) == ([True, True, False, False], 4)
    assert load(FORMAT_1, episodes=True)["episode_returns"].iloc[-1].tolist() == [265.0, 275.0]


def test_arrow_and_polars_hold_what_pandas_holds() -> None:
    frame, table = load(FORMAT_1), load_arrow(FORMAT_1)
    assert isinstance(table, pa.Table)
    pd.testing.assert_frame_equal(table.to_pandas(), frame)
    polars_frame = polars.from_arrow(table)
    assert isinstance(polars_frame, polars.DataFrame)
    assert polars_frame.columns == list(frame.columns) and polars_frame.height == len(frame)
    finals = polars_frame.filter(polars.col("step") == 512).group_by("shard").agg(polars.col("return_mean").mean())
    expected = frame[frame["step"] == 512].groupby("shard")["return_mean"].mean()
    assert dict(finals.iter_rows()) == expected.to_dict()
    # What a shard lacks is null there, not a number.
    online = table.filter(pc.equal(table["algorithm"], "ppo"))
    assert online["dataset"].null_count == online.num_rows
    nested = polars.from_arrow(load_arrow(FORMAT_1, episodes=True))
    assert isinstance(nested, polars.DataFrame)
    assert nested["episode_returns"].list.len().unique().to_list() == [2]


def test_labels_of_several_experiments_are_told_apart_in_arrow_too(tmp_path: Path) -> None:
    write_shard(tmp_path / "one", "ppo", "a", ramp(2))
    write_shard(tmp_path / "two", "ppo", "a", ramp(2))
    assert load_arrow(tmp_path)["label"].unique().to_pylist() == ["one/ppo", "two/ppo"]
    assert load_arrow(tmp_path / "one")["label"].unique().to_pylist() == ["ppo"]


def test_every_run_knows_its_hyperparameters(tmp_path: Path) -> None:
    rates = np.tile([0.1, 0.2, 0.3], 3)
    write_shard(tmp_path / "quick", "ppo", "a", ramp(3), extra={"hyper/rate": rates})  # type: ignore[dict-item]
    write_shard(tmp_path / "quick", "sac", "a", ramp(2))
    tasks = score(load(tmp_path / "quick"), manifests(tmp_path / "quick")).tasks
    assert tasks["ppo", "a"].hypers.to_dict("list") == {"rate": [0.1, 0.2, 0.3]}
    assert tasks["sac", "a"].hypers.shape == (2, 0)
