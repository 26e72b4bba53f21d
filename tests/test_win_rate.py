"""Score intervals of P(X > Y), against SciPy, against a plain loop, and by how often they hold the truth."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats
from benchmark_scripts import load
from statsmodels.stats.multitest import multipletests

from analysis import bootstrap, win_rate
from analysis.win_rate import WinRate

benchmark = load("intervals")


def rate(x: np.ndarray, y: np.ndarray) -> WinRate:
    """Of one task."""
    return win_rate.from_scores([x], [y])


def scores(seed: int, x_runs: int, y_runs: int, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(0.4, 1, x_runs), rng.normal(0, 2, y_runs)
    return (x.round(), y.round()) if ties else (x, y)


@pytest.mark.parametrize("ties", [False, True])
def test_estimate_and_variance_are_those_of_brunner_and_munzel(ties: bool) -> None:
    x, y = scores(0, 7, 11, ties)
    found = rate(x, y)
    expected = scipy.stats.brunnermunzel(y, x).statistic  # of P(Y < X) + ties / 2
    assert (found.estimates[0] - 0.5) / np.sqrt(found.variances[0]) == pytest.approx(expected, rel=1e-12)
    mann_whitney = scipy.stats.mannwhitneyu(x, y).statistic / (x.size * y.size)
    assert found.estimates[0] == pytest.approx(mann_whitney, rel=1e-12)


def test_counts_of_values_are_as_many_runs() -> None:
    values, rng = np.array([0.0, 1.0, 2.0, 5.0]), np.random.default_rng(1)
    wins = (values[:, None] > values) + (values[:, None] == values) / 2
    x_counts, y_counts = rng.integers(1, 5, (3, 4)), rng.integers(1, 5, (3, 4))
    estimates, variances = win_rate.from_counts(wins, x_counts, y_counts)
    for row in range(3):
        found = rate(np.repeat(values, x_counts[row]), np.repeat(values, y_counts[row]))
        assert estimates[row] == pytest.approx(found.estimates[0], rel=1e-12)
        assert variances[row] == pytest.approx(found.variances[0], rel=1e-12)


def test_the_variance_of_equal_distributions_is_the_exact_one() -> None:
    for m, n in ((3, 3), (5, 9), (40, 7)):
        found = win_rate._same_form_variance(np.array([0.5]), np.array([m]), np.array([n]))
        assert found[0] == pytest.approx((m + n + 1) / (12 * m * n), rel=1e-12)


def plain_interval(x: np.ndarray, y: np.ndarray) -> list[float]:
    """By a loop over a grid of probabilities."""
    m, n = len(x), len(y)
    wins = [[1.0 if a > b else 0.5 if a == b else 0.0 for b in y] for a in x]
    p = sum(map(sum, wins)) / (m * n)
    x_places, y_places = [sum(row) / n for row in wins], [sum(column) / m for column in zip(*wins, strict=True)]
    own = sum((v - p) ** 2 for v in x_places) / (m - 1) / m + sum((v - p) ** 2 for v in y_places) / (n - 1) / n

    def form(q: float) -> float:
        return q * (1 - q) * (1 + ((m + n) / 2 - 1) * ((1 - q) / (2 - q) + q / (1 + q))) / (m * n)

    wider = max(1.0, own / form(p)) if 0 < p < 1 else 1.0
    held = []
    for q in np.linspace(0, 1, 20001):
        variance = min(form(q) * wider, max(q * (1 - q) / min(m, n), form(q)))
        if abs(p - q) <= scipy.stats.t.ppf(0.975, m + n - 2) * np.sqrt(variance):
            held.append(q)
    return [min(held), max(held)]


@pytest.mark.parametrize(("m", "n", "ties"), [(3, 3, False), (5, 5, True), (4, 12, False), (30, 20, True)])
def test_bounds_are_those_of_a_plain_loop(m: int, n: int, ties: bool) -> None:
    x, y = scores(m, m, n, ties)
    np.testing.assert_allclose(np.ravel(win_rate.interval(rate(x, y))), plain_interval(x, y), atol=1e-4)
    np.testing.assert_allclose(np.ravel(win_rate.interval(rate(x + 50, y))), plain_interval(x + 50, y), atol=1e-4)


def test_the_other_way_round_is_the_rest() -> None:
    tasks = [scores(seed, 5, 8, ties=seed == 1) for seed in range(3)]
    xs, ys = zip(*tasks, strict=True)
    low, high = win_rate.interval(win_rate.from_scores(xs, ys))
    other_low, other_high = win_rate.interval(win_rate.from_scores(ys, xs))
    assert (low, high) == (pytest.approx(1 - other_high, abs=1e-9), pytest.approx(1 - other_low, abs=1e-9))
    assert 0 < low < high < 1


def test_what_an_interval_excludes_is_outside_of_it() -> None:
    for seed, value in itertools.product(range(12), (0.2, 0.5, 0.7)):
        found = win_rate.from_scores(*zip(*[scores(10 * seed + task, 6, 9) for task in range(2)], strict=True))
        low, high = win_rate.interval(found)
        assert win_rate.excludes(found, value) == (1 if low > value else -1 if high < value else 0)


def test_tasks_with_equal_scores_are_nearly_as_many_runs() -> None:
    x, y = scores(3, 20, 20)
    low, high = win_rate.interval(win_rate.from_scores([x] * 4, [y] * 4))
    one_low, one_high = win_rate.interval(rate(x, y))
    assert (high - low) / (one_high - one_low) == pytest.approx(0.5, rel=0.05)


def test_too_few_runs_have_no_interval() -> None:
    x = np.arange(3.0)
    assert np.isfinite(bootstrap.improvement([x], [x]).low)
    assert np.isnan(bootstrap.improvement([x[:2]], [x]).low) and np.isnan(bootstrap.improvement([x, x], [x, x[:2]]).low)
    assert np.isfinite(bootstrap.improvement([x[:2]], [x[:2]], withhold=False).low)
    assert np.isnan(bootstrap.improvement([x[:1]], [x], withhold=False).low)
    with pytest.raises(ValueError, match="unknown method 'bca', expected 'score' or 'percentile'"):
        bootstrap.improvement([x], [x], method="bca")


def test_p_values_are_those_of_the_intervals() -> None:
    for seed in range(20):
        tasks = [scores(100 * seed + task, 5, 7) for task in range(2)]
        xs, ys = zip(*tasks, strict=True)
        found = win_rate.from_scores(xs, ys)
        p_value = bootstrap.improvement_p_value(xs, ys)
        assert p_value == win_rate.p_value(found)
        # One half is the bound of the interval with just that confidence.
        low, high = win_rate.interval(found, 1 - p_value)
        assert min(abs(low - 0.5), abs(high - 0.5)) < 1e-8
    assert np.isnan(bootstrap.improvement_p_value([np.arange(2.0)], [np.arange(9.0)]))


def test_correction_is_that_of_statsmodels() -> None:
    rng = np.random.default_rng(0)
    for count in (1, 2, 7, 30):
        values = rng.random(count) ** 3
        np.testing.assert_allclose(bootstrap.holm(values), multipletests(values, method="holm")[1], rtol=1e-12)
    corrected = bootstrap.holm([0.02, np.nan, 0.01])
    assert corrected.tolist()[::2] == [0.02, 0.02] and np.isnan(corrected[1])
    assert bootstrap.holm([]).size == 0


def test_equal_labels_seldom_differ_once_corrected() -> None:
    """Four labels of five runs each, six pairs: without correction one of them differs far more often than 5 %."""
    rng = np.random.default_rng(0)
    sets = 600
    plain = corrected = 0
    for _ in range(sets):
        runs = rng.normal(size=(4, 5))
        p_values = [bootstrap.improvement_p_value([x], [y]) for x, y in itertools.combinations(runs, 2)]
        plain += min(p_values) < 0.05
        corrected += bootstrap.holm(p_values).min() < 0.05
    assert corrected / sets < 0.05 < plain / sets


SETS = 1000
SLACK = 2.6 * np.sqrt(0.93 * 0.07 / SETS)
"""What chance takes from a share of 93 % once in two hundred tests."""


@pytest.mark.parametrize("name", benchmark.PAIRS)
@pytest.mark.parametrize("runs", [3, 5, 10])
def test_the_truth_is_held_from_three_runs_on(name: str, runs: int) -> None:
    x_sample, y_sample = benchmark.PAIRS[name]
    rng = np.random.default_rng(runs)
    [truth] = win_rate.from_scores([x_sample(rng, 200_000)], [y_sample(rng, 200_000)]).estimates
    rates = [rate(x_sample(rng, runs), y_sample(rng, runs)) for _ in range(SETS)]
    estimates, variances = (np.stack([getattr(each, part) for each in rates]) for part in ("estimates", "variances"))
    low, high = win_rate.interval(rates[0]._replace(estimates=estimates, variances=variances))
    assert np.mean((low <= truth) & (truth <= high)) >= 0.93 - SLACK


@pytest.mark.parametrize("name", ["normal", "heavy-tailed (t, 3 degrees)", "skewed (exponential)"])
@pytest.mark.parametrize("runs", [5, 8])
def test_intervals_of_few_runs_hold_the_truth(name: str, runs: int) -> None:
    distribution = benchmark.DISTRIBUTIONS[name]
    rng = np.random.default_rng(0)
    truth = distribution.quantile((np.arange(250_000, 750_000) + 0.5) / 1_000_000).mean()
    settings = {"repetitions": 500}
    held = np.zeros(2)
    for seed in range(SETS):
        x, y = ([distribution.sample(rng, runs)] for _ in range(2))
        iqm = bootstrap.interval(x, bootstrap.iqm, seed=seed, **settings)
        difference = bootstrap.difference(x, y, bootstrap.iqm, seed=seed, **settings)
        held += [iqm.low <= truth <= iqm.high, difference.low <= 0 <= difference.high]
    assert (held / SETS >= 0.93 - SLACK).all(), held
