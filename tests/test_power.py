"""How many seeds a comparison needs: against the closed form, against the report's own intervals, and the command."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm
from test_analysis import REFERENCE, write_shard

from analysis import bootstrap, power
from analysis.power import Pilot
from rlsuite.commands import cli

NORMAL = norm.ppf((np.arange(24) + 0.5) / 24)
"""Quantiles of a normal distribution: a pilot whose spread is known."""


def test_power_is_that_of_the_normal_test() -> None:
    # The IQM of n normal scores has variance 1.195 / n (that of a mean trimmed by a quarter at each end); the interval
    # excludes 0 where the estimate is beyond z of its standard errors.
    for difference, runs in ((0.3, 80), (-0.3, 200)):
        standard_error = np.sqrt(2 * 1.195 / runs)
        expected = norm.cdf(abs(difference) / standard_error - norm.ppf(0.975))
        found = power.power(Pilot([NORMAL + difference], [NORMAL], difference), runs)
        # Beside the Monte Carlo error, two points for the percentile interval, which is a little narrow.
        assert found.iqm == pytest.approx(expected, abs=4 * power.error(expected) + 0.02)
    needed = 2 * 1.195 * (norm.ppf(0.975) + norm.ppf(0.8)) ** 2 / 0.3**2
    pilot = Pilot([NORMAL + 0.3], [NORMAL], 0.3)
    assert power.approximate_runs(pilot, 0.8, 0.95) == pytest.approx(needed, rel=0.1)


def test_power_over_tasks_is_that_of_as_many_runs() -> None:
    # Four tasks with the same scores are one with four times the runs.
    one = power.power(Pilot([NORMAL + 0.3], [NORMAL], 0.3), 80)
    four = power.power(Pilot([NORMAL + 0.3] * 4, [NORMAL] * 4, 0.3), 20)
    for a, b in ((one.iqm, four.iqm), (one.improvement, four.improvement)):
        assert a == pytest.approx(b, abs=4 * np.sqrt(2) * power.error(a))


def test_power_is_how_often_the_intervals_of_the_report_exclude_no_difference() -> None:
    rng = np.random.default_rng(0)
    # Some runs fail, some tie: no normal scores. On two tasks, with pilots of different sizes.
    x = [rng.choice([0.0, 0.9, 1.0, 1.2], 12), rng.normal(0.6, 0.4, 9)]
    y = [rng.choice([0.0, 0.0, 0.9, 1.0], 10), rng.normal(0.3, 0.4, 11)]
    difference = bootstrap.estimate(x, bootstrap.iqm) - bootstrap.estimate(y, bootstrap.iqm)
    runs, comparisons = 14, 300
    seen = np.zeros(2)
    for seed in range(comparisons):
        in_x, in_y = ([rng.choice(task, runs) for task in tasks] for tasks in (x, y))
        seen[0] += bootstrap.difference(in_x, in_y, bootstrap.iqm, repetitions=400, seed=seed).low > 0
        seen[1] += bootstrap.improvement(in_x, in_y, repetitions=400, seed=seed).low > 0.5
    found = power.power(Pilot(x, y, difference), runs)
    for plain, fast in zip(seen / comparisons, found[1:], strict=True):
        assert 0.1 < plain < 0.95
        assert fast == pytest.approx(plain, abs=4 * np.hypot(power.error(fast), np.sqrt(fast * (1 - fast) / 300)))


def test_the_iqm_of_counts_is_that_of_the_runs_drawn() -> None:
    rng = np.random.default_rng(2)
    tasks = [rng.normal(size=7), rng.integers(0, 3, 5).astype(float)]
    counts = [rng.multinomial(13, np.full(task.size, 1 / task.size), size=20) for task in tasks]
    drawn = [
        [np.repeat(task, task_counts[i]) for task, task_counts in zip(tasks, counts, strict=True)] for i in range(20)
    ]
    expected = [bootstrap.estimate(each, bootstrap.iqm) for each in drawn]
    np.testing.assert_allclose(power._iqm(tasks, 13)(counts), expected, rtol=1e-12)


def test_simulations_are_reproducible() -> None:
    pilot = Pilot([NORMAL[::2] + 0.5], [NORMAL[::2]], 0.5)
    assert power.power(pilot, 30) == power.power(pilot, 30)
    assert power.power(pilot, 30, seed=1) != power.power(pilot, 30)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two labels on two tasks, 24 runs each; `b` has no reference returns."""
    rng = np.random.default_rng(1)
    for label, mean in (("ppo", 60.0), ("sac", 50.0)):
        for environment, reference in (("a", REFERENCE), ("b", None)):
            final = mean + 10.0 * rng.normal(size=24)
            returns = np.stack([0 * final, final / 2, final], axis=1)
            write_shard(tmp_path / "quick", label, environment, returns, reference=reference)
    return tmp_path / "quick"


def test_the_command_prints_a_table_and_the_smallest_number(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["power", str(results), "--label", "ppo", "--against", "sac", "--difference", "0.05"]
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    assert "Power to see a difference of 0.05 in IQM: ppo and sac" in printed
    rows = {int(n): float(share) for n, share in re.findall(r"^ +(\d+) +([\d.]+)% ±", printed, re.MULTILINE)}
    assert len(rows) == len(power.STEPS)
    smallest = min(n for n, share in rows.items() if share >= 80)
    assert f"with a power of 80%, by IQM: {smallest} runs of each label on each task." in printed
    # A run's standard deviation is 0.1 of the reference's range, give or take what 24 runs leave open.
    needed = 2 * 1.195 * 0.1**2 * (norm.ppf(0.975) + norm.ppf(0.8)) ** 2 / 0.05**2
    assert needed / 1.8 < smallest < needed * 1.8
    assert cli.main([*command, "--runs", "8,10"]) == 0
    assert "by IQM: more than 10 runs" in capsys.readouterr().out


def test_differences_are_in_shares_of_the_reference_or_in_returns(results: Path) -> None:
    shares = power.make_pilot(results, "ppo", "sac", difference=-0.2)
    returns = power.make_pilot(results, "ppo", "sac", return_difference=-20.0, environment="a")
    np.testing.assert_allclose(returns.x[0], 100 * shares.x[0])
    for pilot in (shares, returns):
        found = bootstrap.estimate(pilot.x, bootstrap.iqm) - bootstrap.estimate(pilot.y, bootstrap.iqm)
        assert found == pytest.approx(pilot.difference)
    observed = power.make_pilot(results, "ppo", "sac")
    assert 0.05 < observed.difference < 0.15
    assert power.make_pilot(results, "ppo", difference=0.1).y[0].size == 24
    assert len(power.make_pilot(results, "ppo", "sac", return_difference=5.0, environment="b").x) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--label", "pppo"], "no label 'pppo' in .*; there are: ppo, sac"),
        (["--label", "ppo"], "'ppo' alone shows no difference"),
        (["--label", "ppo", "--difference", "0"], "a difference of 0 cannot be seen"),
        (["--label", "ppo", "--difference", "nan"], "a difference of nan cannot be seen"),
        (["--label", "ppo", "--difference", "1e-9"], "would need about .* runs of each label"),
        (["--label", "ppo", "--env", "c", "--difference", "0.1"], "no task 'c' in .*; there are: a, b"),
        (["--label", "ppo", "--env", "b", "--difference", "0.1"], "b has no reference returns"),
        (["--label", "ppo", "--return-difference", "5"], "needs one task of a, b; choose it with --env"),
        (["--label", "ppo", "--difference", "1", "--return-difference", "5"], "not allowed with"),
        (["--label", "ppo", "--difference", "1", "--power", "80"], "'80' must be a share between 0 and 1"),
        (["--label", "ppo", "--difference", "1", "--runs", "2"], "--runs 2 must be at least 5"),
        (["--label", "ppo", "--difference", "1", "--seed", "-1"], "--seed -1 must be 0 or more"),
    ],
)
def test_what_cannot_be_answered_is_one_line(
    results: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert cli.main(["power", str(results), *arguments]) == 2
    captured = capsys.readouterr().err
    assert captured.count("\n") == 1 and re.search(message, captured), captured


def test_a_run_does_not_beat_its_own_copy() -> None:
    # A shift that is nothing beside the spread of the runs cannot be seen, although every run is above itself.
    scores = NORMAL[::4]
    pilot = Pilot([scores + 1e-6], [scores], 1e-6, copy=True)
    found = power.power(pilot, 200)
    # Chance gives 2.5 % on this side; four standard errors of that are 2.8 points.
    assert 0.0 < found.iqm < 0.053 and 0.0 < found.improvement < 0.053
    assert power.power(pilot._replace(copy=False), 200).improvement > 0.2


def test_ties_are_noted(tmp_path: Path) -> None:
    write_shard(tmp_path / "quick", "ppo", "a", [[0, 1, 50 + min(run, 8)] for run in range(12)])
    notes = power.make_pilot(tmp_path / "quick", "ppo", difference=0.1).notes
    assert len(notes) == 1 and notes[0].startswith("3 runs of 'ppo' score the same as another one")


def test_a_small_pilot_is_noted(tmp_path: Path) -> None:
    write_shard(tmp_path / "quick", "ppo", "a", [[0, 1, 50], [0, 1, 60], [0, 1, 55]])
    assert "the pilot has 3 runs on a task" in power.make_pilot(tmp_path / "quick", "ppo", difference=0.1).notes[0]
