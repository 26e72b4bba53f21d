"""The statistics of the regression gate on made-up curves: what passes, what fails and what is left open."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis import ResultsError, regression, tables
from analysis.regression import Verdict
from analysis.scores import TaskScores

STEPS = np.arange(0, 1100, 100)
UNTRAINED, TRAINED = -1000.0, -200.0
LEARNED = TRAINED - UNTRAINED
SHAPE = np.array([0.0, 0.2, 0.5, 0.8, 0.9, 0.95, *[1.0] * 5])
LOOKS = 3


def task(
    runs: int, *, shift: float = 0.0, spread: float = 0.04, seed: int = 0, first_seed: int = 0, diverged: int = 0
) -> TaskScores:
    """Runs that learn, `shift` of what the reference learns above it, each with a level of its own.

    The last `diverged` of them became non-finite before they learned.
    """
    rng = np.random.default_rng(seed)
    level = 1.0 + shift + spread * rng.standard_normal((runs, 1)) + spread * rng.standard_normal((runs, len(STEPS)))
    curves = UNTRAINED + LEARNED * SHAPE * level
    is_diverged = np.arange(runs) >= runs - diverged
    curves[is_diverged] = UNTRAINED
    return TaskScores(
        label="learner",
        environment="task",
        offline=False,
        steps=STEPS,
        curves=curves,
        evaluated=np.ones(curves.shape, bool),
        diverged=is_diverged,
        running=np.zeros(runs, bool),
        seeds=np.arange(first_seed, first_seed + runs),
        hypers=pd.DataFrame(index=range(runs)),
        planned=runs,
        steps_per_second=1.0,
    )


REFERENCE = task(128)


def verdicts(new: TaskScores, reference: TaskScores = REFERENCE) -> dict[str, Verdict]:
    """The verdict of each claim, and that of the cell."""
    (one,) = regression.judge({"cell": reference}, {"cell": new}, {}, LOOKS)
    found = {claim.measure: verdict for claim, verdict in zip(one.claims, one.verdicts, strict=True)}
    return {**found, "cell": one.verdict}


def cell_verdict(new: TaskScores, reference: TaskScores = REFERENCE) -> Verdict:
    return verdicts(new, reference)["cell"]


# --- Verdicts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("shift", "runs", "verdict"),
    [
        (0.0, 48, Verdict.PASS),
        (0.3, 48, Verdict.PASS),
        (-0.3, 16, Verdict.FAIL),
        (-0.1, 48, Verdict.FAIL),
    ],
)
def test_shift(shift: float, runs: int, verdict: Verdict, seed: int) -> None:
    assert cell_verdict(task(runs, shift=shift, seed=100 + seed)) is verdict


def test_few_noisy_runs_are_inconclusive_whatever_they_score() -> None:
    for shift in (-0.2, 0.0, 0.03):
        assert cell_verdict(task(8, shift=shift, spread=0.6, seed=7)) is Verdict.INCONCLUSIVE
    # Not significant is no pass; certain of many runs, it is one.
    assert cell_verdict(task(2048, spread=0.2, seed=7), task(2048, spread=0.2)) is Verdict.PASS


def test_a_loss_within_the_margin_passes_even_beyond_chance() -> None:
    """With hundreds of runs a loss of 2 % is certain, and may be."""
    reference, new = task(512), task(512, shift=-0.02, seed=1)
    assert all(claim.worse < 1e-6 for claim in regression.claims(reference, new)[:2])
    assert cell_verdict(new, reference) is Verdict.PASS


def test_a_loss_as_large_as_the_margin_is_not_passed_by_many_runs() -> None:
    for seed in range(5):
        assert cell_verdict(task(256, shift=-0.06, seed=seed + 1), task(256)) is not Verdict.PASS


def test_the_margin_of_a_cell() -> None:
    new = task(48, shift=-0.08, seed=3)
    strict, lenient = (
        regression.judge({"cell": REFERENCE}, {"cell": new}, margins, LOOKS)[0] for margins in ({}, {"cell": 0.2})
    )
    assert (strict.verdict, lenient.verdict) == (Verdict.FAIL, Verdict.PASS)
    assert [claim.margin for claim in lenient.claims] == [0.2, 0.4, 0.0]


def test_identical_curves_pass_at_once_however_few() -> None:
    for runs in (1, 2, 16):
        same = REFERENCE.select_runs(slice(runs))
        assert cell_verdict(same) is Verdict.PASS
        # Off by the last bit of one evaluation, or of other seeds: these are other runs.
        other = same.curves.copy()
        other[0, -1] = np.nextafter(other[0, -1], 0.0)
        assert not regression.are_identical(REFERENCE, dataclasses.replace(same, curves=other))
        assert not regression.are_identical(REFERENCE, dataclasses.replace(same, seeds=same.seeds + 1000))
        if runs < regression.MINIMUM_RUNS:
            assert cell_verdict(dataclasses.replace(same, curves=other)) is Verdict.INCONCLUSIVE


@pytest.mark.parametrize("shift", [-0.9, 0.0])
def test_one_seed_is_inconclusive(shift: float) -> None:
    assert cell_verdict(task(1, shift=shift, seed=1)) is Verdict.INCONCLUSIVE


def test_all_runs_at_the_ceiling() -> None:
    """No spread on either side is no reason to be uncertain, except of one or two runs."""
    reference = task(64, spread=0.0)
    assert cell_verdict(task(16, spread=0.0, first_seed=500), reference) is Verdict.PASS
    assert cell_verdict(task(16, spread=0.0, first_seed=500, shift=-0.2), reference) is Verdict.FAIL
    assert cell_verdict(task(2, spread=0.0, first_seed=500, shift=-0.2), reference) is Verdict.INCONCLUSIVE


# --- Claims -----------------------------------------------------------------------------------------------------------


def test_only_the_area_is_worse() -> None:
    """A learner that takes twice as long and comes as far."""
    new = task(48, seed=5)
    slow = np.array([0.0, 0.0, 0.0, 0.1, 0.1, 0.2, *[1.0] * 5])
    new = dataclasses.replace(new, curves=UNTRAINED + (new.curves - UNTRAINED) / np.maximum(SHAPE, 0.1) * slow)
    assert verdicts(new) | {"cell": None} == {
        "final": Verdict.PASS,
        "area": Verdict.FAIL,
        "diverged": Verdict.PASS,
        "cell": None,
    }


def test_only_the_end_is_worse() -> None:
    new = task(48, seed=5)
    new.curves[:, -tables.LAST :] -= 0.1 * LEARNED
    assert verdicts(new)["final"] is Verdict.FAIL
    assert verdicts(new)["area"] is Verdict.PASS


def test_diverged_runs_count() -> None:
    """A fifth of the runs at the floor hardly moves the IQM; that they diverged is a claim of its own."""
    found = verdicts(task(48, seed=5, diverged=10))
    assert found["final"] is not Verdict.FAIL
    assert found["diverged"] is found["cell"] is Verdict.FAIL
    one = verdicts(task(48, seed=5, diverged=1))
    assert one["diverged"] is one["cell"] is Verdict.INCONCLUSIVE
    assert verdicts(task(48, seed=5, diverged=2), task(128, diverged=8))["diverged"] is Verdict.PASS


def test_diverged_with_a_last_score_that_is_good_is_diverged_all_the_same() -> None:
    new = task(48, seed=5)
    late = dataclasses.replace(new, diverged=np.arange(48) < 12)
    assert verdicts(late)["final"] is Verdict.PASS
    assert cell_verdict(late) is Verdict.FAIL


def test_runs_without_any_finite_score_count_as_the_lowest_of_the_reference() -> None:
    lost = task(16, seed=5, diverged=16)
    lost = dataclasses.replace(lost, curves=np.full_like(lost.curves, np.nan))
    assert set(verdicts(lost).values()) == {Verdict.FAIL}


def test_the_difference_is_a_share_of_what_was_learned() -> None:
    final, area, diverged = regression.claims(task(64, spread=0.0), task(64, spread=0.0, shift=-0.25))
    assert final.difference == pytest.approx(-0.25)
    assert area.difference == pytest.approx(-0.25)  # of the reference's own area
    assert (final.reference, final.new) == (pytest.approx(TRAINED), pytest.approx(TRAINED - 0.25 * LEARNED))
    assert diverged.difference == 0.0


def test_the_standard_error_is_that_of_independent_sides() -> None:
    """Of means of normal scores it is known: the IQM's is 1.09 times the mean's."""
    rng = np.random.default_rng(3)
    reference, new = task(400, spread=0.0), task(100, spread=0.0)
    for side in (reference, new):
        side.curves[:, -tables.LAST :] += LEARNED * 0.1 * rng.standard_normal((side.runs, 1))
    final = regression.claims(reference, new)[0]
    assert final.error == pytest.approx(1.09 * 0.1 * np.sqrt(1 / 400 + 1 / 100), rel=0.15)


def test_a_reference_that_has_not_learned_is_refused() -> None:
    flat = dataclasses.replace(REFERENCE, curves=REFERENCE.curves[:, ::-1].copy())
    with pytest.raises(ResultsError, match="learned nothing that could be lost; give the cell more steps"):
        regression.claims(flat, REFERENCE)


def test_missing_evaluations_are_refused() -> None:
    lacking = task(16, seed=1)
    lacking.evaluated[3, -1] = False
    with pytest.raises(ResultsError, match="1 of 16 new runs lack evaluations; run the same command again"):
        cell_verdict(lacking)
    with pytest.raises(ResultsError, match="1 of 16 reference runs lack evaluations; refresh the reference"):
        cell_verdict(REFERENCE, lacking)


def test_other_evaluations_are_refused() -> None:
    new = dataclasses.replace(task(16, seed=1), steps=STEPS * 2)
    with pytest.raises(ResultsError, match=r"evaluated at steps 0, 200, 400, ... 2000, but its reference at 0, 100"):
        cell_verdict(new)


# --- Several cells and several looks ----------------------------------------------------------------------------------


def test_holm_against_the_definition() -> None:
    p_values = [0.03, 0.001, 0.013, 0.2, 0.011]
    # 0.001 <= 0.01, 0.011 <= 0.0125, 0.013 <= 0.0167, 0.03 > 0.025
    assert regression.holm(p_values, 0.05) == [False, True, True, False, True]
    assert regression.holm([0.02, 0.02], 0.03) == [False, False]
    assert regression.holm([0.014, 0.02], 0.03) == [True, True]


def test_more_cells_and_more_looks_ask_for_more() -> None:
    """One and the same borderline loss fails alone, and not among many cells or planned looks."""
    reference = task(128, spread=0.2)
    new = task(48, shift=-0.08, spread=0.2, seed=11)
    claims = regression.claims(reference, new)
    p_value = claims[0].worse
    assert regression.ALPHA / 3 / 60 < p_value < regression.ALPHA / 3, p_value
    fine = regression.claims(reference, task(48, spread=0.2, seed=12))
    assert Verdict.FAIL in regression.decide([claims], looks=1)[0]
    assert Verdict.FAIL not in regression.decide([claims, *[fine] * 20], looks=1)[0]
    assert Verdict.FAIL not in regression.decide([claims], looks=40)[0]
    assert claims[0].low(looks=1) > claims[0].low(looks=3)


def test_the_whole_is_its_worst_cell() -> None:
    reference = {"good": REFERENCE, "bad": REFERENCE, "open": REFERENCE}
    new = {
        "open": task(8, spread=0.6, seed=7),
        "bad": task(48, shift=-0.3, seed=1),
        "good": task(48, seed=2),
    }
    judged = regression.judge(reference, new, {}, LOOKS)
    assert [(one.name, one.verdict) for one in judged] == [
        ("open", Verdict.INCONCLUSIVE),
        ("bad", Verdict.FAIL),
        ("good", Verdict.PASS),
    ]
    assert regression.worst([one.verdict for one in judged]) is Verdict.FAIL
    assert regression.worst([Verdict.PASS, Verdict.INCONCLUSIVE]) is Verdict.INCONCLUSIVE
    assert regression.worst([Verdict.PASS]) is Verdict.PASS


def test_rates_of_error_on_normal_scores() -> None:
    """Nothing changed: next to nothing fails. A loss of the margin: next to nothing passes. 100 times each, where the
    limit is 1 %: four or more would come up twice in a hundred times at the limit, and hardly ever below it.
    """
    rng = np.random.default_rng(0)
    failed = passed = 0
    for _ in range(100):
        reference, new = (task(runs, spread=0.08, seed=int(rng.integers(1 << 30))) for runs in (128, 32))
        cell_claims = regression.claims(reference, new, repetitions=200)
        failed += Verdict.FAIL in regression.decide([cell_claims], looks=1)[0]
        lost = new.curves - regression.MARGIN * LEARNED
        cell_claims = regression.claims(reference, dataclasses.replace(new, curves=lost), repetitions=200)
        passed += regression.decide([cell_claims], looks=1)[0][0] is Verdict.PASS
    assert failed < 4
    assert passed < 4


# --- Files and figures ------------------------------------------------------------------------------------------------


def write(folder: Path, shard: str, scores: TaskScores, **manifest: object) -> None:
    """A finished shard of these curves, as `rlsuite` writes it."""
    folder.mkdir(exist_ok=True)
    runs, points = scores.curves.shape
    same = {"experiment": "check", "label": "learner", "algorithm": "sac", "environment": "task", "config_hash": "0abc"}
    facts = {"format": 1, "shard": shard, **same, "steps": 1000, "seeds": scores.seeds.tolist()}
    columns = {
        **{name: [value] * (runs * points) for name, value in same.items()},
        "run": np.tile(np.arange(runs), points),
        "seed": np.tile(scores.seeds, points),
        "step": np.repeat(scores.steps, runs),
        "wall_seconds": np.repeat(scores.steps / 10.0, runs),
        "return_mean": scores.curves.T.ravel(),
        "diverged": np.tile(scores.diverged, points),
    }
    pq.write_table(pa.table(columns), folder / f"{shard}.parquet")
    (folder / f"{shard}.json").write_text(json.dumps(facts | manifest))


def test_from_files_to_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    references, results = tmp_path / "references", tmp_path / "results"
    write(references, "learner__task", REFERENCE)
    write(results, "learner__task__1", task(16, shift=-0.3, seed=1))
    write(results, "learner__task__2", task(16, shift=-0.3, seed=2, first_seed=16))
    shards = {"learner__task": ["learner__task__1", "learner__task__2"]}
    judged = regression.from_files(references, results, shards, {}, LOOKS)
    assert judged[0].new.runs == 32
    np.testing.assert_array_equal(judged[0].reference.curves, REFERENCE.curves)
    assert regression.report(judged, results, LOOKS, tables.make_console()) is Verdict.FAIL
    printed = capsys.readouterr().out
    assert "FAIL: learner__task" in printed and "32/128" in printed
    figure = results / "learner__task.png"
    assert figure.read_bytes().startswith(b"\x89PNG") and str(figure) in printed
    rows = pd.read_csv(results / "check.csv")
    assert rows.measure.tolist() == ["final", "area", "diverged"]
    assert rows.claim.tolist() == ["FAIL", "FAIL", "PASS"]
    assert rows.improvement[0] < 0.05
    # Once it passes, the figure goes.
    write(results, "learner__task__3", task(48, seed=2, first_seed=16))
    judged = regression.from_files(references, results, {"learner__task": ["learner__task__3"]}, {}, LOOKS)
    assert regression.report(judged, results, LOOKS, tables.make_console()) is Verdict.PASS
    assert not figure.exists() and "PASS: none of 1 cells" in capsys.readouterr().out


def test_an_inconclusive_report_says_that_it_is_no_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judged = regression.judge({"cell": REFERENCE}, {"cell": task(8, spread=0.6, seed=7)}, {}, LOOKS)
    assert regression.report(judged, tmp_path, LOOKS, tables.make_console()) is Verdict.INCONCLUSIVE
    assert "INCONCLUSIVE: cell" in (printed := capsys.readouterr().out) and "This is no pass" in printed
    assert (tmp_path / "cell.png").exists()


def test_exit_codes() -> None:
    assert [verdict.value for verdict in (Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE)] == [0, 1, 3]


@pytest.mark.parametrize("name", [name for name in regression.SAME if name != "label"])
def test_a_reference_of_another_cell_is_refused(name: str) -> None:
    manifest = {key: "same" for key in regression.SAME}
    regression.check_same(manifest, manifest | {"seeds": [1], "created": "now"}, "refresh it")
    with pytest.raises(ResultsError, match=f"its {name} is 'same', now 'other'; refresh it"):
        regression.check_same(manifest, manifest | {name: "other"}, "refresh it")
    # What is found out in running a cell is not known before, nor to references from before it was recorded.
    for either in ({}, {name: None}):
        if name in regression.FOUND_OUT:
            others = {key: value for key, value in manifest.items() if key != name} | either
            regression.check_same(others, manifest, "refresh it")
            regression.check_same(manifest, others, "refresh it")


def test_a_shard_that_is_not_there(tmp_path: Path) -> None:
    write(tmp_path, "learner__task__1", REFERENCE)
    with pytest.raises(ResultsError, match="no results of learner__task__2"):
        regression.read(tmp_path, {"learner__task": ["learner__task__1", "learner__task__2"]})
