"""Numbers that no program can hold are refused in one line before they are converted: to int32, and to float32."""

from __future__ import annotations

import dataclasses
import re
import typing
from pathlib import Path
from typing import Any

import pytest

import envs
from envs import Reference
from rlsuite import algorithms
from rlsuite.algorithms.on_policy import ppo
from rlsuite.commands import check, cli, report
from rlsuite.commands.check import Check
from rlsuite.core import Task
from rlsuite.errors import UserError
from rlsuite.sweeping import collect, job, local, search, sweep
from rlsuite.sweeping.search import Choice, LogUniform, Uniform
from rlsuite.sweeping.sweep import Cell, Experiment
from rlsuite.training import batch, memory, plan
from rlsuite.training.plan import Limits, Work
from rlsuite.training.train import evaluation_points

MOST = 2**31 - 1
MANY = 1_000_000
HUGE = (2**31, 2**63, 10**30)
BEYOND_FLOAT32 = (3.5e38, 1e39, -1e39, 10**39, 10**400, float("inf"), float("nan"))

CLUSTER = ["sweep", "experiments/quick.py", "--executor", "slurm"]
RUN = ["run", "ppo", "--env", "probe/action/discrete"]


def cell(name: str, **changes: Any) -> Cell:
    """One that is right but for the changes."""
    if algorithms.get(name).offline:
        changes = {"dataset": "gymnax/Pendulum-v1/medium", **changes}
    return Cell(name, "gymnax/Pendulum-v1", **{"steps": 4096, **changes})


# --- On the command line ----------------------------------------------------------------------------------------------

OPTIONS: dict[str, tuple[list[str], tuple[int, ...]]] = {
    "steps": (RUN, (10**16, 2**63, 10**30)),
    "seeds": (RUN, (MANY + 1, *HUGE)),
    "first_seed": (RUN, (2**32, 2**63, 10**30)),
    "evaluations": (RUN, (MANY + 1, *HUGE)),
    "eval_episodes": (RUN, HUGE),
    "max_episode_steps": (RUN, HUGE),
    "num_envs": (RUN, HUGE),
    "num_steps": (RUN, HUGE),
    "num_epochs": (RUN, HUGE),
    "num_minibatches": (RUN, HUGE),
    "hidden_sizes": (RUN, HUGE),
    "learning_rate": (RUN, (10**39, 10**400)),
    "transitions": (["collect", "gymnax/Pendulum-v1"], HUGE),
    "collect seeds": (["collect", "gymnax/Pendulum-v1"], (MANY + 1, *HUGE)),
    "collect steps": (["collect", "gymnax/Pendulum-v1"], (2**62, 10**30)),
    "episodes": (["evaluate", "nosuch", "--gymnasium", "CartPole-v1"], (MANY + 1, *HUGE)),
    "bench runs": (["bench"], (MANY + 1, *HUGE)),
    "power runs": (["power", "nosuch", "--label", "a", "--difference", "1"], (100_001, *HUGE)),
    "repetitions": (["report", "nosuch"], (MANY + 1, *HUGE)),
    **{name: ([*CLUSTER], HUGE) for name in ("workers", "cpus", "gpus", "time", "mem")},
}


def reached(*arguments: Any, **options: Any) -> None:
    raise AssertionError("the number was taken")


@pytest.mark.parametrize(("option", "value"), [(o, v) for o, (_, values) in OPTIONS.items() for v in values])
def test_a_number_that_is_too_large_is_one_line(
    option: str, value: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RLSUITE_DATASETS", str(tmp_path))
    for module, name in ((local, "run"), (collect, "recorder"), (report, "report_after")):
        monkeypatch.setattr(module, name, reached)
    monkeypatch.setattr("rlsuite.commands.bench.bench", reached)
    name = option.split()[-1]
    assert cli.main([*OPTIONS[option][0], "--" + name.replace("_", "-"), str(value)]) == 2
    message = capsys.readouterr().err
    assert re.fullmatch(r"rlsuite: [^\n]+\n", message)
    shown = "inf" if value == 10**400 else str(value)
    assert name in message.replace("-", "_") and (shown in message or repr(float(shown)) in message), message


def test_any_width_is_no_more_than_there_are_runs() -> None:
    assert plan.balanced(10**30, 7, 2) == 4


# --- In an experiment -------------------------------------------------------------------------------------------------

NUMBERS = [
    (name, field.name)
    for name, spec in algorithms.registered().items()
    for field in dataclasses.fields(spec.config)
    if typing.get_type_hints(spec.config)[field.name] in (int, float, tuple[int, ...])
]


@pytest.mark.parametrize(("name", "field"), NUMBERS)
def test_every_number_of_a_config_fits_into_32_bits(name: str, field: str) -> None:
    config = algorithms.get(name).config()
    for value in HUGE:
        given: Any = (8, value) if isinstance(getattr(config, field), tuple) else value
        with pytest.raises(UserError, match=rf"^{field}=.*{value}.* at most {MOST}$"):
            job.resolve("x", cell(name, config=dataclasses.replace(config, **{field: given})))


@pytest.mark.parametrize("name", algorithms.registered())
@pytest.mark.parametrize("value", BEYOND_FLOAT32)
def test_every_hyperparameter_is_finite_in_float32(name: str, value: float) -> None:
    hypers = algorithms.get(name).hypers()
    for field in hypers._fields:
        with pytest.raises(UserError, match=rf"^{field}=.* must be a finite number"):
            job.resolve("x", cell(name, hypers=hypers._replace(**{field: value})))


def test_the_largest_numbers_are_taken() -> None:
    """A float that float32 has, and as many runs as there may be."""
    hypers = ppo.Hypers(max_grad_norm=3.4028234663852886e38)
    assert len(job.resolve("x", cell("ppo", seeds=1000, hypers=hypers, eval_episodes=MOST)).runs) == 1000
    assert envs.make("probe/action/discrete", max_episode_steps=MOST).max_episode_steps == MOST


def test_settings_times_seeds_are_runs() -> None:
    settings = tuple(ppo.Hypers(discount=share) for share in (0.1, 0.2))
    with pytest.raises(UserError, match=r"2 settings of hypers with 500001 seeds are more than 1000000 runs"):
        job.resolve("x", cell("ppo", seeds=500_001, hypers=settings))


def test_steps_of_an_update_are_counted_too() -> None:
    config = ppo.Config(num_envs=2**20, num_steps=2**20, num_minibatches=1)
    with pytest.raises(UserError, match=rf"an update takes {2**40} steps and must take at most {MOST}"):
        job.resolve("x", cell("ppo", config=config))


@pytest.mark.parametrize("value", [10**400, float("inf"), float("nan")])
def test_a_reference_is_finite(value: float) -> None:
    with pytest.raises(UserError, match="must have finite numbers"):
        job.resolve("x", cell("ppo", reference=Reference(0.0, value, "a", "b")))


@pytest.mark.parametrize("limit", HUGE)
def test_a_time_limit_fits_into_32_bits(limit: int) -> None:
    with pytest.raises(ValueError, match=f"max_episode_steps must be at most {MOST}, which int32 holds, got {limit}"):
        envs.make("probe/action/discrete", max_episode_steps=limit)


@pytest.mark.parametrize("value", BEYOND_FLOAT32)
def test_what_is_searched_is_finite_in_float32(value: float) -> None:
    for distribution in (Uniform(0.0, value), LogUniform(1.0, value), Choice((1.0, value))):
        with pytest.raises(UserError, match="must be a finite number"):
            search.sample(ppo.Hypers(), count=2, max_grad_norm=distribution)
    with pytest.raises(UserError, match="must be a finite number"):
        search.grid(ppo.Hypers(), max_grad_norm=(1.0, value))


def test_no_more_settings_are_searched_than_there_are_runs() -> None:
    with pytest.raises(UserError, match=f"count={10**30} must be at most {MANY}"):
        search.sample(ppo.Hypers(), count=10**30, discount=Uniform(0.1, 0.9))
    values = [i / 2000 for i in range(1001)]
    with pytest.raises(UserError, match=f"combinations={1001**2} must be at most {MANY}"):
        search.grid(ppo.Hypers(), discount=values, gae_lambda=values)


@pytest.mark.parametrize("changes", [{"reference_seeds": 10**30}, {"reference_seeds": 2, "rounds": 10**30}])
def test_a_check_has_no_more_runs_than_a_cell(changes: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    one = Check(Experiment("x", "y", (cell("ppo"),)), **changes)
    monkeypatch.setattr(sweep, "load_as", lambda *arguments: one)
    with pytest.raises(UserError, match=f"={10**30} must be at most {MANY}"):
        check.load("any.py")


# --- Before a program is made of them ---------------------------------------------------------------------------------


@pytest.mark.parametrize("evaluations", [12, 13, 10**30])
def test_there_are_no_more_evaluations_than_updates(evaluations: int) -> None:
    assert evaluation_points(12, evaluations) == list(range(13))


@pytest.mark.parametrize(("episodes", "num_steps"), [(10**9, 8), (2, 10**9)])
def test_what_fits_into_no_memory_is_never_compiled(
    episodes: int, num_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda devices: 2**34)
    monkeypatch.setattr(batch, "compile_programs", reached)
    config = ppo.Config(num_envs=2, num_steps=num_steps, num_minibatches=2, hidden_sizes=(4,))
    algorithm, task = ppo.make(config), Task(envs.make("probe/action/discrete"))
    work = Work("ppo", config, algorithm, task, ppo.Hypers(), 2, 4, episodes)
    with pytest.raises(UserError, match=r"one run takes .* make its buffer, networks, steps or evaluation episodes"):
        plan.choose(work, Limits(devices=1))
