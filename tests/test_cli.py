"""The command line as a user meets it: what it refuses, what it explains, and what a run leaves behind."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import io
import json
import os
import pwd
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from written import contents

import analysis.__main__
import envs
import rlsuite
from envs import Reference, gymnax
from rlsuite import algorithms
from rlsuite.algorithms.on_policy import ppo
from rlsuite.commands import cli, report
from rlsuite.commands.options import Parser, add_options, field_texts
from rlsuite.core import Preset
from rlsuite.errors import Stopped
from rlsuite.sweeping import chunk, extend, job, local, provenance, sweep
from rlsuite.sweeping.settings import Settings
from rlsuite.training import batch, plan
from rlsuite.training.plan import Limits
from rlsuite.training.train import Pause
from rlsuite.training.train import train as real_train

ROOT = Path(__file__).resolve().parent.parent

# One worker, so that TINY is compiled once.
pytestmark = pytest.mark.xdist_group("cli")

# One tiny program for all tests that train: two updates of 2 x 8 steps on an environment of one step an episode.
ENV = ["--env", "probe/action/discrete"]
TINY = ["run", "ppo", *ENV, "--num-envs", "2", "--num-steps", "8", "--num-minibatches", "2", "--num-epochs", "1"]
TINY += ["--hidden-sizes", "8,4", "--no-clip-value", "--learning-rate", "1e-2", "--discount", "0.9", "--steps", "32"]
TINY += ["--seeds", "2", "--first-seed", "5", "--evaluations", "2", "--eval-episodes", "3"]
# Left to itself, the plan would depend on the machine, and another width or number of devices is another program.
PLANNED = ["--width", "2", "--devices", "1"]
TINY += PLANNED

EXPERIMENT = """
from rlsuite.algorithms.on_policy import ppo
from rlsuite.sweeping.sweep import Cell, Experiment

CONFIG = ppo.Config(num_envs=2, num_steps=8, num_minibatches=2, num_epochs=1, hidden_sizes=(8, 4), clip_value=False)
HYPERS = ppo.Hypers(learning_rate=1e-2, discount=0.9)


def cell(first_seed):
    return Cell("ppo", "probe/action/discrete", 32, seeds=2, first_seed=first_seed, config=CONFIG, hypers=HYPERS,
                evaluations=2, eval_episodes=3)


EXPERIMENT = Experiment("run", "two cells, of which TINY is the first", (cell(5), cell(7)))
"""


def one_line(stderr: str) -> str:
    """The message, having checked that it is a single line of ours."""
    assert re.fullmatch(r"rlsuite: [^\n]+\n", stderr), stderr
    return stderr


def test_the_command_line_answers_before_anything_heavy_is_imported() -> None:
    heavy = "('jax', 'numpy', 'pandas', 'pyarrow')"
    light = "[cli.command(name) for name in ('list', 'report', 'export', 'power', 'tune')]"  # the other commands train
    program = f"import sys; from rlsuite.commands import cli; {light}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, so that the default results folder would be seen."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- Errors -----------------------------------------------------------------------------------------------------------

ERRORS: dict[str, tuple[list[str], list[str]]] = {
    "unknown command": (["nosuch"], ["unknown command 'nosuch'", ", ".join(cli.COMMANDS)]),
    "misspelt command": (["rum"], ["'rum'", "did you mean 'run'?"]),
    "unknown algorithm": (["run", "nosuch", *ENV], ["unknown algorithm 'nosuch'", "ppo", "sac"]),
    "misspelt algorithm": (["run", "sacc"], ["unknown algorithm 'sacc'", "did you mean 'sac'?"]),
    "algorithm of two lines": (["run", "no\nsuch"], ["unknown algorithm 'no such'"]),
    "no algorithm": (["run", *ENV], ["expected an algorithm before '--env'", ", ".join(algorithms.registered())]),
    "misspelt environment": (
        ["run", "ppo", "--env", "gymnax/CartPol-v1"],
        ["unknown environment 'gymnax/CartPol-v1'", "did you mean 'gymnax/CartPole-v1'?"],
    ),
    "unknown environment": (["run", "ppo", "--env", "zzz"], ["unknown environment 'zzz'", "rlsuite list"]),
    "no environment": (["run", "ppo"], ["--env", "rlsuite run ppo --help"]),
    "text for a number": (["run", "ppo", *ENV, "--steps", "many"], ["--steps", "'many'", "int"]),
    "fraction for a number": (["run", "ppo", *ENV, "--seeds", "2.5"], ["--seeds", "'2.5'", "int"]),
    "text for a hyperparameter": (
        ["run", "ppo", *ENV, "--discount", "high"],
        ["--discount", "'high'", "must be numbers, such as 0.9 or 0.9,0.99"],
    ),
    "text among hyperparameters": (["run", "ppo", *ENV, "--discount", "0.9,x"], ["--discount", "'0.9,x'", "numbers"]),
    "hyperparameters with a gap": (["run", "ppo", *ENV, "--discount", "0.9,,1"], ["--discount", "'0.9,,1'", "numbers"]),
    "a setting twice": (["run", "ppo", *ENV, "--discount", "0.9,0.9"], ["discount=0.9", "twice"]),
    "negative seeds": (["run", "ppo", *ENV, "--seeds", "-3"], ["seeds=-3", "at least 1"]),
    "no seeds": (["run", "ppo", *ENV, "--seeds", "0"], ["seeds=0", "at least 1"]),
    "negative first seed": (["run", "ppo", *ENV, "--first-seed", "-1"], ["first_seed=-1", "0 .. 4294967295"]),
    "seeds beyond 32 bits": (["run", "ppo", *ENV, "--first-seed", "4294967290"], ["first_seed=4294967290", "smaller"]),
    "half a reference": (["run", "ppo", *ENV, "--reference", "1"], ["--reference", "2 arguments"]),
    "a reference in words": (["run", "ppo", *ENV, "--reference", "0", "best"], ["--reference", "'best'"]),
    "a reference upside down": (["run", "ppo", *ENV, "--reference", "9", "-9.5"], ["low=9.0, high=-9.5", "low below"]),
    "no steps": (["run", "ppo", *ENV, "--steps", "0"], ["steps=0", "at least 1"]),
    "more updates than are counted": (["run", "ppo", *ENV, "--steps", str(10**16)], [f"steps={10**16}", "fewer"]),
    "no evaluations": (["run", "ppo", *ENV, "--evaluations", "0"], ["evaluations=0", "at least 1"]),
    "no episodes": (["run", "ppo", *ENV, "--eval-episodes", "0"], ["eval_episodes=0", "at least 1"]),
    "no time": (["run", "ppo", *ENV, "--max-episode-steps", "0"], ["max_episode_steps", "at least 1", "got 0"]),
    "unknown option": (["run", "ppo", *ENV, "--nosuch", "1"], ["--nosuch", "rlsuite run ppo --help"]),
    "abbreviated option": (["run", "ppo", *ENV, "--step", "1"], ["--step 1", "rlsuite run ppo --help"]),
    "another algorithm's option": (["run", "ppo", *ENV, "--tau", "0.1"], ["--tau"]),
    "option without a value": (["run", "ppo", "--env"], ["--env", "expected one argument"]),
    "discrete actions for SAC": (
        ["run", "sac", "--env", "gymnax/CartPole-v1"],
        ["'sac' needs Box actions", "'gymnax/CartPole-v1' has Discrete", "ppo"],
    ),
    "config that cannot work": (
        ["run", "ppo", *ENV, "--num-envs", "3", "--num-steps", "5", "--num-minibatches", "4"],
        ["num_minibatches=4", "15", "divisor"],
    ),
    "config out of range": (["run", "ppo", *ENV, "--num-epochs", "0"], ["num_epochs=0", "at least 1"]),
    "malformed sizes": (["run", "ppo", *ENV, "--hidden-sizes", "a,b"], ["--hidden-sizes", "'a,b'", "such as 64,64"]),
    "sizes with a gap": (["run", "ppo", *ENV, "--hidden-sizes", "64,"], ["--hidden-sizes", "'64,'"]),
    "size of zero": (["run", "ppo", *ENV, "--hidden-sizes", "64,0"], ["--hidden-sizes", "'64,0'", "at least 1"]),
    "hyperparameter NaN": (["run", "ppo", *ENV, "--learning-rate", "nan"], ["learning_rate=nan", "finite"]),
    "NaN among hyperparameters": (["run", "ppo", *ENV, "--discount", "0.9,nan"], ["discount=nan", "finite"]),
    "hyperparameter infinite": (["run", "ppo", *ENV, "--max-grad-norm", "inf"], ["max_grad_norm=inf", "finite"]),
    "experiment name that escapes": (["run", "ppo", *ENV, "--name", "../x"], ["experiment name '../x'", "letters"]),
    "experiment name empty": (["run", "ppo", *ENV, "--name", ""], ["experiment name ''"]),
    "label with a folder": (["run", "ppo", *ENV, "--label", "a/b"], ["label 'a/b'", "letters"]),
    "label empty": (["run", "ppo", *ENV, "--label", ""], ["label ''"]),
    "results below a file": ([*TINY, "--results", __file__], [__file__, "cannot be written", "--results"]),
    "results in /proc": ([*TINY, "--results", "/proc/rlsuite"], ["/proc/rlsuite/run", "cannot be written"]),
    "sweep without a file": (["sweep"], ["experiment", "rlsuite sweep --help"]),
    "sweep of a missing file": (["sweep", "nosuch.py"], ["no experiment file 'nosuch.py'"]),
    "report on nothing": (["report"], ["RESULTS", "rlsuite report --help"]),
    "report on a missing folder": (["report", "nosuch"], ["no such results folder 'nosuch'"]),
    "report on an empty folder": (["report", "."], ["no results in '.'"]),
    "no width": (["run", "ppo", *ENV, "--width", "0"], ["--width 0", "at least 1", "leave it out"]),
    "negative width": (["sweep", "nosuch.py", "--width", "-2"], ["--width -2", "at least 1", "leave it out"]),
    "fraction for a width": (["run", "ppo", *ENV, "--width", "1.5"], ["--width", "'1.5'", "int"]),
    "no devices": (["run", "ppo", *ENV, "--devices", "0"], ["--devices 0", "at least 1", "leave it out"]),
    "no memory": (["run", "ppo", *ENV, "--memory-share", "0"], ["--memory-share 0.0", "above 0 and at most 1", "0.75"]),
    "memory in percent": (["sweep", "nosuch.py", "--memory-share", "75"], ["--memory-share 75.0", "at most 1", "0.75"]),
    "memory NaN": (["run", "ppo", *ENV, "--memory-share", "nan"], ["--memory-share nan", "at most 1"]),
    "saving before": (
        ["run", "ppo", *ENV, "--save-every", "-1"],
        ["--save-every -1.0", "0 (at every pause)", "seconds"],
    ),
    "saving at no time": (["sweep", "nosuch.py", "--save-every", "nan"], ["--save-every nan", "seconds"]),
    "saving in words": (["run", "ppo", *ENV, "--save-every", "5min"], ["--save-every", "'5min'", "float"]),
    "list of what there is not": (["list", "nosuch"], ["'nosuch'", "algorithms", "envs", "rlsuite list --help"]),
    "list of a room that there is not": (
        ["list", "algorithms", "zzz"],
        ["unknown room 'zzz'", "off_policy, offline, on_policy"],
    ),
    "list of a misspelt room": (["list", "algorithms", "offlin"], ["unknown room 'offlin'; did you mean 'offline'?"]),
    "list of a room of environments": (["list", "envs", "brax"], ["'brax'", "envs", "rlsuite list --help"]),
    "misspelt wrapper": (
        ["run", "ppo", "--env", "probe/action/discrete+reward_scal=2"],
        ["unknown wrapper 'reward_scal'", "did you mean 'reward_scale'?"],
    ),
    "wrapper for other actions": (
        ["run", "ppo", "--env", "probe/action/discrete+clip_actions"],
        ["'clip_actions' needs Box actions", "'probe/action/discrete' has Discrete"],
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_what_cannot_be_is_one_line_and_leaves_nothing(
    name: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, expected = ERRORS[name]
    assert cli.main(arguments) == 2
    shown = capsys.readouterr()
    message = one_line(shown.err)
    assert [part for part in expected if part not in message] == [], message
    assert shown.out == ""
    assert contents(here) == {}


def test_a_missing_simulator_names_the_extra_that_brings_it(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mujoco_playground", None)  # the import now fails as if it were not there
    # The odd time limit is one that no other test asks for: what was built once is kept.
    command = ["run", "ppo", "--env", "playground/CartpoleBalance", "--max-episode-steps", "7"]
    assert cli.main(command) == 2
    message = one_line(capsys.readouterr().err)
    assert "playground/CartpoleBalance" in message and "pip install 'rlsuite[playground]'" in message
    assert contents(here) == {}


EXPERIMENT_ERRORS: dict[str, tuple[str, list[str]]] = {
    "syntax": ("EXPERIMENT = (", ["does not run", "SyntaxError"]),
    "exception of two lines": ("raise RuntimeError('first\\nsecond')", ["does not run", "RuntimeError: first second"]),
    "exit": ("import sys; sys.exit('enough')", ["does not run", "SystemExit: enough"]),
    "nothing": ("", ["must define EXPERIMENT"]),
    "something else": ("EXPERIMENT = ['ppo']", ["must define EXPERIMENT"]),
    "cell that cannot work": (EXPERIMENT.replace("cell(7)", "cell(-7)"), ["cell 1 of experiment 'run'", "first_seed"]),
    "same cell twice": (EXPERIMENT.replace("cell(7)", "cell(5)"), ["two identical cells", "ppo__probe-action"]),
}


@pytest.mark.parametrize("name", EXPERIMENT_ERRORS)
def test_an_experiment_file_that_cannot_be_run_leaves_nothing(
    name: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, expected = EXPERIMENT_ERRORS[name]
    Path("mine.py").write_text(source)
    assert cli.main(["sweep", "mine.py"]) == 2
    shown = capsys.readouterr()
    message = one_line(shown.err)
    assert [part for part in expected if part not in message] == [], message
    assert shown.out == ""
    assert list(contents(here)) == ["mine.py"]


def as_user(here: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "rlsuite.commands.cli", *arguments],
        cwd=here,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", ["misspelt environment", "discrete actions for SAC", "results in /proc"])
def test_the_same_in_a_process_of_its_own(name: str, here: Path) -> None:
    """Where a library could add warnings of its own."""
    arguments, expected = ERRORS[name]
    done = as_user(here, *arguments)
    assert done.returncode == 2
    message = one_line(done.stderr)
    assert [part for part in expected if part not in message] == [], message
    assert done.stdout == ""
    assert contents(here) == {}


# --- Help -------------------------------------------------------------------------------------------------------------


def text_of_help(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int = 300
) -> str:
    """What --help prints in a terminal of so many columns, having checked its exit status and width."""
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit) as left:
        cli.main([*arguments, "--help"])
    shown = capsys.readouterr()
    assert left.value.code == 0
    assert shown.err == ""
    assert max(map(len, shown.out.splitlines())) <= 100
    return shown.out


def test_help_shows_every_command_with_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = text_of_help([], capsys, monkeypatch)
    for command, (_, summary) in cli.COMMANDS.items():
        assert re.search(rf"^  {command} +{re.escape(summary)}$", text, re.MULTILINE), text


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "usage: " in text_of_help([command], capsys, monkeypatch, columns=100)


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    """As in `rlsuite list | head -1`."""
    listing = subprocess.Popen(
        [sys.executable, "-m", "rlsuite.commands.cli", "list"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert listing.stdout and listing.stderr
    listing.stdout.close()
    assert listing.stderr.read() == ""
    assert listing.wait() == 128 + signal.SIGPIPE


@pytest.mark.parametrize("name", algorithms.registered())
def test_help_of_run_names_every_field_with_its_default(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = text_of_help(["run", name], capsys, monkeypatch)
    # Option -> its whole entry, with line breaks undone.
    entries = {entry.split()[0]: " ".join(entry.split()) for entry in re.split(r"^  (?=--)", text, flags=re.MULTILINE)}
    spec = algorithms.get(name)
    fields = {field.name: field.default for field in dataclasses.fields(spec.config)} | spec.hypers._field_defaults
    for field, default in fields.items():
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
        entry = entries["--" + field.replace("_", "-")]
        assert entry.count(f"({shown})") == 1, entry
    for field in spec.hypers._fields:  # type: ignore[attr-defined]
        assert entries["--" + field.replace("_", "-")].split()[1] == "X,X,..."
    texts = field_texts(spec.config)
    assert set(texts) == {field.name for field in dataclasses.fields(spec.config)}, "every field is explained"
    for field, explanation in texts.items():
        assert explanation in entries["--" + field.replace("_", "-")]


def test_help_of_run_shows_the_settings_of_the_environment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned = Preset(ppo.Config(num_envs=4), ppo.Hypers(learning_rate=0.125), "somebody's paper")
    spec = dataclasses.replace(algorithms.get("ppo"), presets={"gymnax/CartPole": tuned})
    monkeypatch.setattr(ppo, "SPEC", spec)
    text = text_of_help(["run", "ppo", "--env", "gymnax/CartPole-v1"], capsys, monkeypatch)
    assert "somebody's paper" in text
    assert re.search(r"--num-envs N[^-]*\(4\)", text) and re.search(r"--learning-rate X,X,...[^-]*\(0.125\)", text)


class Explained(NamedTuple):
    """A class as Hypers are."""

    share: float = 0.5
    """50 % of it,
    over two lines"""
    plain: float = 1.0


def test_the_text_below_a_field_is_its_help() -> None:
    assert field_texts(Explained) == {"share": "50 % of it, over two lines"}
    parser = Parser(prog="x")
    add_options(parser, Explained._field_defaults, Explained)
    assert "50 % of it, over two lines (0.5)" in parser.format_help()


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out == f"rlsuite {rlsuite.__version__}\n"


def test_no_argument_shows_the_help_as_a_user_sees_it(here: Path) -> None:
    done = as_user(here)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: rlsuite COMMAND")


def test_list_shows_every_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list"]) == 0
    words = capsys.readouterr().out.split()
    assert {"ppo", "sac", "gymnax/CartPole-v1", "probe/action/discrete", "+reward_scale=FACTOR"} <= set(words)


def test_list_algorithms_shows_no_environment(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "algorithms"]) == 0
    lines = capsys.readouterr().out.splitlines()
    cards = sorted(algorithms.cards(), key=lambda card: (card.room, card.name))
    assert [line.split()[0] for line in lines] == ["algorithms", "name", *(card.name for card in cards), "evidence:"]
    for card, line in zip(cards, lines[2:-1], strict=True):
        assert card.source
        shown = [card.name, card.room, card.source.level, *card.actions, "the environment", card.summary]
        shown[-2] = "a dataset" if card.offline else shown[-2]
        assert line.split() == " ".join([*shown, card.source.paper]).split()
    assert lines[-1].endswith("+cdsa may follow the name of any that learns from a dataset")


def test_cards_say_what_the_modules_declare() -> None:
    """They are read from the sources, without importing a method."""
    for card in algorithms.cards():
        spec = algorithms.get(card.name)
        assert (card.summary, card.source, card.offline) == (spec.summary, spec.source, spec.offline)
        assert card.actions == tuple(space.__name__ for space in spec.action_spaces)


def test_list_algorithms_of_one_room(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "algorithms", "on_policy"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:-1]] == ["mdpo", "ppo", "ppo_buffer", "props", "ros"]


def test_list_shows_one_algorithm_with_its_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "prdc"]) == 0
    shown = capsys.readouterr().out
    assert "Ran et al. 2023, arXiv 2306.06569" in shown and "LAMDA-RL/PRDC 9f38464" in shown
    assert re.search(r"^  policy_delay +2 +\S", shown, re.M) and re.search(r"^  beta +2\.0 +\S", shown, re.M)
    assert "halfcheetah-medium" in shown


def test_a_list_of_algorithms_imports_none_of_them(here: Path) -> None:
    program = (
        "import sys; from rlsuite.commands import cli; cli.main(['list', 'algorithms']); print(sorted(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    imported = set(ast.literal_eval(done.stdout.splitlines()[-1]))
    assert not imported & {"jax", "envs", "flax", "optax", "rlsuite.core", "rlsuite.algorithms.on_policy.ppo"}


def test_list_envs_shows_a_row_for_each_environment_and_wrapper(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "envs"]) == 0
    title, heads, *lines = capsys.readouterr().out.splitlines()
    assert title == "environments"
    assert heads.split() == ["id", "obs", "actions", "limit", "backend", "returns", "task"]
    after = len(envs.registered())
    assert lines[after].startswith("wrappers")
    for env_id, line in zip(envs.registered(), lines[:after], strict=True):
        task = envs.info(env_id)
        reference = task.reference
        returns = f"{reference.low:g} .. {reference.high:g}" if reference else "-"
        kind = "disc." if task.discrete else "cont."
        expected = (env_id, task.obs_dim, task.num_actions, kind, task.max_episode_steps, task.backend, returns)
        assert line.split() == " ".join(map(str, (*expected, task.summary))).split()
        # Every column begins below its head.
        assert all(line[heads.index(head) - 1] == " " != line[heads.index(head)] for head in heads.split())
    for (name, summary), line in zip(envs.describe_wrappers().items(), lines[after + 1 :], strict=True):
        assert line.split() == [name, *summary.split()]


def test_list_envs_shows_reference_returns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pendulum = envs.info("gymnax/Pendulum-v1")._replace(reference=Reference(-1234.5, -150.0, "here", "there"))
    monkeypatch.setitem(gymnax.TASKS, "gymnax/Pendulum-v1", pendulum)
    assert cli.main(["list", "envs"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^  gymnax/Pendulum-v1 +3 +1 cont\. +200 +JAX +-1234\.5 \.\. -150 ", printed, re.MULTILINE)


def test_list_envs_imports_no_simulator(here: Path) -> None:
    program = "import sys; from rlsuite.commands import cli; cli.main(['list', 'envs']); print(sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    imported = set(ast.literal_eval(done.stdout.splitlines()[-1]))
    assert "envs" in imported
    assert not imported & {"brax", "gymnax", "mujoco", "mujoco_playground", "rlsuite.core", "optax"}


# --- A real run -------------------------------------------------------------------------------------------------------


class Finished(NamedTuple):
    """A run of TINY: its folder, what it printed, and its only shard."""

    folder: Path
    printed: str
    shard: str

    @property
    def table(self) -> pa.Table:
        return pq.read_table(self.folder / f"{self.shard}.parquet")

    @property
    def manifest(self) -> dict[str, Any]:
        manifest: dict[str, Any] = json.loads((self.folder / f"{self.shard}.json").read_text())
        return manifest


def run_here(command: list[str]) -> str:
    """What a command prints that succeeds in this process."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert cli.main(command) == 0
    return printed.getvalue()


def run_tiny(results: Path) -> Finished:
    printed = run_here([*TINY, "--results", str(results)])
    [finished] = (results / "run").glob("*.parquet")
    return Finished(results / "run", printed, finished.stem)


@pytest.fixture(scope="module")
def compiled() -> list[batch.Compiled]:
    """What `finished` has compiled."""
    return []


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, compiled: list[batch.Compiled]) -> Finished:
    compile_programs = batch.compile_programs

    def kept(*arguments: Any) -> batch.Compiled:
        compiled.append(compile_programs(*arguments))
        return compiled[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch, "compile_programs", kept)
        return run_tiny(tmp_path_factory.mktemp("finished"))


@pytest.fixture
def ready(finished: Finished, compiled: list[batch.Compiled], monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out compiling, which takes longer than all else: the programs of TINY do for every run of its config."""
    [programs] = compiled
    monkeypatch.setattr(batch, "compile_programs", lambda *arguments: programs)


@pytest.mark.usefixtures("ready")
def test_a_run_with_reference_returns_has_normalised_scores(finished: Finished, tmp_path: Path) -> None:
    assert finished.manifest["reference"] is None
    printed = run_here([*TINY, "--results", str(tmp_path), "--reference", "-1.5", "2"])
    again = Finished(tmp_path / "run", printed, finished.shard)
    source = "given with --reference"
    assert again.manifest["reference"] == {"low": -1.5, "high": 2.0, "low_source": source, "high_source": source}
    scores = analysis.score(analysis.load(again.folder), analysis.manifests(again.folder))
    [label_scores] = scores.normalised(["probe/action/discrete"], "final").values()
    assert label_scores[0].tolist() == pytest.approx(
        ((scores.tasks["ppo", "probe/action/discrete"].final + 1.5) / 3.5).tolist()
    )
    assert "Normalised final scores" in printed and "Normalised final scores" not in finished.printed


@pytest.fixture
def results(finished: Finished, tmp_path: Path) -> Path:
    """A results folder of its own that holds the finished shard."""
    (tmp_path / "run").mkdir()
    for suffix in (".parquet", ".json"):
        (tmp_path / "run" / (finished.shard + suffix)).write_bytes(
            (finished.folder / (finished.shard + suffix)).read_bytes()
        )
    return tmp_path


def test_lists_of_hyperparameters_are_a_grid_of_settings(
    here: Path, monkeypatch: pytest.MonkeyPatch, no_report: None
) -> None:
    asked: list[job.Job] = []
    monkeypatch.setattr(local, "run", lambda shards, store, settings: asked.extend(shards))
    command = ["run", "ppo", *ENV, "--seeds", "2", "--first-seed", "5"]
    assert cli.main([*command, "--learning-rate", "1e-3,3e-4", "--discount", "0.99,0.997"]) == 0
    assert cli.main([*command, "--learning-rate", "1e-3"]) == 0
    several, single = asked
    assert [(seed, hypers.learning_rate, hypers.discount) for seed, hypers in several.runs] == [
        (seed, rate, discount) for rate in (1e-3, 3e-4) for discount in (0.99, 0.997) for seed in (5, 6)
    ]
    hypers = algorithms.get("ppo").hypers
    assert {hypers.gae_lambda for _, hypers in several.runs} == {0.95}
    # One value is the same shard, under the same name, as the cell of an experiment file that has these Hypers alone.
    cell = sweep.Cell("ppo", ENV[1], 100_000, seeds=2, first_seed=5, hypers=hypers(learning_rate=1e-3))
    assert single.name == job.resolve("run", cell).name


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ([], Settings(Limits(width=None, devices=None, memory_share=0.75), save_every=300.0, save_policies=True)),
        (
            ["--width", "64", "--devices", "3", "--memory-share", "0.5", "--save-every", "0", "--no-save-policies"],
            Settings(Limits(width=64, devices=3, memory_share=0.5), save_every=0.0),
        ),
        (["--retrain"], Settings(save_policies=True, retrain=True)),
    ],
    ids=["default", "given", "again"],
)
def test_execution_options_reach_the_executor(
    options: list[str], settings: Settings, here: Path, monkeypatch: pytest.MonkeyPatch, no_report: None
) -> None:
    Path("mine.py").write_text(EXPERIMENT)
    asked: list[tuple[int, Settings]] = []
    monkeypatch.setattr(local, "run", lambda shards, store, settings: asked.append((len(shards), settings)))
    assert cli.main(["run", "ppo", *ENV, *options]) == 0
    assert cli.main(["sweep", "mine.py", *options]) == 0
    assert asked == [(1, settings), (2, settings)]


def test_both_commands_train_only_the_seeds_that_are_missing(
    here: Path, monkeypatch: pytest.MonkeyPatch, no_report: None
) -> None:
    Path("mine.py").write_text(EXPERIMENT)
    asked: list[job.Job] = []
    monkeypatch.setattr(local, "run", lambda shards, store, settings: asked.extend(shards))
    monkeypatch.setattr(extend, "extending", lambda ones, store: [ones[0].at_seeds(0, 2), ones[0].at_seeds(2, 3)])
    assert cli.main(["run", "ppo", *ENV, "--seeds", "5"]) == 0
    assert [(one.cell.first_seed, one.cell.seeds) for one in asked] == [(0, 2), (2, 3)]
    asked.clear()
    assert cli.main(["sweep", "mine.py"]) == 0
    assert [(one.cell.first_seed, one.cell.seeds) for one in asked] == [(0, 2), (2, 3)]  # of both cells the same


def test_an_interrupted_command_says_how_it_goes_on(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*arguments: Any) -> None:
        raise Stopped(signal.SIGINT)

    monkeypatch.setattr(local, "run", stopped)
    assert cli.main(["run", "ppo", *ENV, "--retrain"]) == 128 + signal.SIGINT
    said = "rlsuite: SIGINT; all is saved, the same command without --retrain goes on from here\n"
    assert capsys.readouterr().err == said


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the report, whose plot takes longer than the training."""
    monkeypatch.setattr(report, "report_after", lambda folder, shards=None: 0)


TEXT, REAL = pa.string(), pa.float64()
COLUMNS = {
    **dict.fromkeys(("experiment", "label", "algorithm", "environment", "config_hash"), TEXT),
    **{"run": pa.int32(), "seed": pa.int64()},
    **{f"hyper/{name}": REAL for name in algorithms.get("ppo").hypers._fields},  # type: ignore[attr-defined]
    **{"step": pa.int64(), "update": pa.int64(), "wall_seconds": REAL},
    **dict.fromkeys(("return_mean", "return_std", "return_min", "return_max"), REAL),
    **{"episode_returns": pa.list_(pa.float32()), "episode_lengths": pa.list_(pa.int32())},
    **dict.fromkeys(
        (f"metric/{name}" for name in ("policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction")),
        pa.float32(),
    ),
    **{"diverged": pa.bool_(), "nonfinite": TEXT, "nonfinite_episodes": pa.int32()},
}


def test_a_run_writes_the_documented_columns(finished: Finished) -> None:
    schema = finished.table.schema
    assert dict(zip(schema.names, schema.types, strict=True)) == COLUMNS


def test_a_run_writes_a_row_for_every_run_and_evaluation(finished: Finished) -> None:
    rows = finished.table.to_pylist()
    # The evaluation of the untrained policies, and two more; two runs in each.
    assert [(row["update"], row["step"], row["run"], row["seed"]) for row in rows] == [
        (update, update * 16, run, 5 + run) for update in (0, 1, 2) for run in (0, 1)
    ]
    seconds = finished.table["wall_seconds"].to_pylist()
    assert 0 < seconds[0] == seconds[1] < seconds[2] == seconds[3] < seconds[4] == seconds[5]
    for row in rows:
        returns = row["episode_returns"]
        assert len(returns) == 3 and set(returns) <= {0.0, 1.0}
        assert row["episode_lengths"] == [1, 1, 1]
        assert (row["return_min"], row["return_max"]) == (min(returns), max(returns))
        assert row["return_mean"] == pytest.approx(sum(returns) / 3, rel=1e-12)
        metrics = [value for name, value in row.items() if name.startswith("metric/")]
        assert all((value is None) == (row["update"] == 0) for value in metrics)
        assert row["diverged"] is False and row["nonfinite"] is None and row["nonfinite_episodes"] == 0
        assert (row["experiment"], row["label"], row["algorithm"]) == ("run", "ppo", "ppo")
        assert row["environment"] == "probe/action/discrete"
        assert row["config_hash"] == finished.manifest["config_hash"]


def test_typed_options_reach_config_and_hypers(finished: Finished) -> None:
    manifest = finished.manifest
    changed = {"num_envs": 2, "num_steps": 8, "num_minibatches": 2, "num_epochs": 1}
    changed |= {"hidden_sizes": [8, 4], "clip_value": False}
    defaults = json.loads(json.dumps(dataclasses.asdict(algorithms.get("ppo").config())))
    assert manifest["config"] == defaults | changed
    hypers = algorithms.get("ppo").hypers()._asdict() | {"learning_rate": 1e-2, "discount": 0.9}
    assert manifest["hypers"] == [hypers]
    for name, value in hypers.items():
        assert set(finished.table[f"hyper/{name}"].to_pylist()) == {value}


def test_the_manifest_says_all_that_was_run(finished: Finished) -> None:
    manifest = finished.manifest
    measured = {"compile_seconds", "run_seconds", "peak_memory_bytes"}
    assert {name for name in measured if manifest[name] <= 0} == set()
    described = {"config", "config_hash", "hypers", "device", "matmul_precision", "versions", "git_revision"}
    described |= {"command", "created", "plan", "sessions", "rlsuite_sources"}
    assert {name: value for name, value in manifest.items() if name not in measured | described} == {
        "format": 1,
        "shard": finished.shard,
        "experiment": "run",
        "cell": 0,
        "label": "ppo",
        "evidence": "B",
        "algorithm": "ppo",
        "environment": "probe/action/discrete",
        "preset": None,
        "seeds": [5, 6],
        "steps": 32,
        "evaluations": 2,
        "eval_episodes": 3,
        "max_episode_steps": None,
        "reference": None,
        "evaluation_physics": "JAX",
        "total_updates": 2,
        "steps_per_update": 16,
        "diverged": 0,
        "packages": {},
    }
    assert described <= set(manifest)
    assert manifest["versions"]["rlsuite"] == rlsuite.__version__
    assert manifest["run_seconds"] == finished.table["wall_seconds"].to_pylist()[-1]
    planned = manifest["plan"].pop("peak_memory_bytes")
    assert manifest["plan"] == {"width": 2, "devices": 1}
    assert planned > 0
    surroundings = {name: manifest[name] for name in ("created", "device", "git_revision")}
    assert manifest["sessions"] == [{**surroundings, **provenance.session(), "devices": 1}]
    assert manifest["rlsuite_sources"] == provenance.own_sources()


def test_a_run_shows_compile_time_apart_and_ends_with_the_report(finished: Finished) -> None:
    lines = finished.printed.splitlines()
    assert lines[0] == "[1/1] ppo on probe/action/discrete, 2 runs x 32 steps"
    assert re.fullmatch(r"  compiled in \S+s; 2 runs at once; peak memory \S+B planned", lines[1])
    assert [line.split()[0] for line in lines[2:5]] == ["0%", "50%", "100%"]
    assert "ETA" in lines[3] and "steps/s" in lines[3] and "ETA" not in lines[4]
    assert all(re.search(r"  peak \S+B$", line) for line in lines[2:5])
    assert lines[5].startswith(f"1 of 1 shards in {finished.folder} after ")
    assert lines[-1] == f"Report:  {finished.folder / 'report.html'}"
    assert (finished.folder / "report.html").is_file()


def test_only_whole_files_are_left(finished: Finished) -> None:
    reports = {f"report.{ending}" for ending in ("csv", "html", "tex")}
    figures = {"sample_efficiency.png", "sample_efficiency.pdf"}
    assert set(contents(finished.folder)) == {*reports, *figures, *files_of(finished.shard)}


def test_the_same_command_elsewhere_gives_the_same_rows(finished: Finished, tmp_path: Path, no_report: None) -> None:
    again = run_tiny(tmp_path / "elsewhere")
    assert again.shard == finished.shard
    clock = ["wall_seconds"]
    assert again.table.drop_columns(clock).equals(finished.table.drop_columns(clock))


def test_what_is_done_is_not_trained_again(
    results: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, no_report: None
) -> None:
    before = contents(results)
    monkeypatch.delattr(batch, "compile_programs")
    assert cli.main([*TINY, "--results", str(results)]) == 0
    assert "ppo on probe/action/discrete, 2 runs: done before, kept\n" in capsys.readouterr().out
    assert contents(results) == before


def test_an_error_leaves_earlier_results_as_they_were(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(results)
    assert cli.main([*TINY, "--discount", "nan", "--results", str(results)]) == 2
    one_line(capsys.readouterr().err)
    assert contents(results) == before


def test_a_sweep_runs_only_the_cell_that_is_missing(
    results: Path,
    finished: Finished,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    ready: None,
    no_report: None,
) -> None:
    trained: list[tuple[int, ...]] = []

    def watched(programs: Any, seeds: Any, *arguments: Any) -> Iterator[Pause]:
        trained.append(tuple(seeds))
        return real_train(programs, seeds, *arguments)

    monkeypatch.setattr(chunk, "train", watched)
    there = (results / "run" / f"{finished.shard}.parquet").read_bytes()
    (results / "mine.py").write_text(EXPERIMENT)
    assert cli.main(["sweep", str(results / "mine.py"), "--results", str(results), *PLANNED]) == 0
    assert trained == [(7, 8)]
    assert (results / "run" / f"{finished.shard}.parquet").read_bytes() == there
    [added] = set((results / "run").glob("*.parquet")) - {results / "run" / f"{finished.shard}.parquet"}
    assert set(pq.read_table(added)["seed"].to_pylist()) == {7, 8}
    printed = capsys.readouterr().out
    assert "nor in the report" not in printed
    assert printed.startswith("run: two cells, of which TINY is the first\n[1/2] ")
    assert "[1/2] ppo on probe/action/discrete, 2 runs: done before, kept\n[2/2] " in printed


def test_a_sweep_says_which_shards_of_its_folder_are_not_its_own(
    results: Path, finished: Finished, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a hyperparameter was edited: the report is of the file's own cells."""
    reported: list[str] = []

    def report_after(folder: Path, shards: list[str]) -> int:
        print("the report")
        reported[:] = shards
        return 0

    monkeypatch.setattr(local, "run", lambda shards, store, settings: None)
    monkeypatch.setattr(report, "report_after", report_after)
    file, folder = results / "mine.py", results / "run"
    file.write_text(EXPERIMENT.replace("discount=0.9)", "discount=0.8)"))
    (folder / "another__shard.partial").mkdir()
    assert cli.main(["sweep", str(file), "--results", str(results)]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        f"rlsuite: shards in '{folder}' that are not in '{file}', nor in the report: 2 (another__shard, "
        f"{finished.shard}); `rlsuite report {folder}` is of all",
        "the report",
    ]
    own = [shard.name for shard in job.resolve_all(sweep.load(file))]
    assert reported == own and finished.shard not in own
    for number in range(5):
        (folder / f"another__{number}.partial").mkdir()
    assert cli.main(["sweep", str(file), "--results", str(results)]) == 0
    printed = capsys.readouterr().out
    assert "report: 7 (" in printed and "another__4, ...); `rlsuite report" in printed


def partial(folder: Path, shard: str) -> dict[str, bytes | None]:
    """What there is of a shard that is not finished: no other file than these may be there."""
    found = contents(folder)
    assert {name.split("/")[0] for name in found} == {f"{shard}.partial", f"{shard}.json"}
    return contents(folder / f"{shard}.partial")


def files_of(shard: str) -> set[str]:
    """Those of a shard that is finished."""
    return {f"{shard}{ending}" for ending in (".parquet", ".policies.arrow", ".json")}


def part(update: int) -> str:
    """The file of one evaluation of both runs."""
    return f"runs000000-000001.update{update:012}.parquet"


def test_rows_are_saved_at_every_evaluation(
    tmp_path: Path, finished: Finished, monkeypatch: pytest.MonkeyPatch, ready: None, no_report: None
) -> None:
    seen: list[set[str]] = []
    folder = tmp_path / "run"

    def watched(*arguments: Any) -> Iterator[Pause]:
        for pause in real_train(*arguments):
            yield pause
            # The loop comes back here once the evaluation is written.
            seen.append({name for name in partial(folder, finished.shard) if name.endswith(".parquet")})
            for update in range(len(seen)):
                saved = pq.read_table(folder / f"{finished.shard}.partial" / part(update))
                assert saved["run"].to_pylist() == [0, 1] and set(saved["update"].to_pylist()) == {update}

    monkeypatch.setattr(chunk, "train", watched)
    assert run_tiny(tmp_path).shard == finished.shard
    assert seen == [{part(0)}, {part(0), part(1)}, {part(0), part(1), part(2)}]
    assert set(contents(folder)) == files_of(finished.shard)


def test_a_crash_keeps_what_was_computed_and_a_rerun_completes_it(
    tmp_path: Path, finished: Finished, ready: None, no_report: None
) -> None:
    def crashing(*arguments: Any) -> Iterator[Pause]:
        yield next(real_train(*arguments))
        raise RuntimeError("the device fell over")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="fell over"):
        patch.setattr(chunk, "train", crashing)
        cli.main([*TINY, "--results", str(tmp_path)])
    assert set(partial(tmp_path / "run", finished.shard)) == {part(0), "layout.json", "lock", "snapshot000000-000001"}
    clock = ["wall_seconds"]
    kept = pq.read_table(tmp_path / "run" / f"{finished.shard}.partial" / part(0))
    shared = [name for name in COLUMNS if not name.startswith("metric/") and name not in clock]
    assert kept.select(shared).equals(finished.table.slice(0, 2).select(shared))

    again = run_tiny(tmp_path)
    assert set(contents(tmp_path / "run")) == files_of(finished.shard)
    assert again.table.drop_columns(clock).equals(finished.table.drop_columns(clock))


# The same program as TINY's for some seconds, with an evaluation now and then.
LONG = [*TINY, "--steps", "96000", "--evaluations", "10", "--save-every", "300"]


def stopped_after(here: Path, lines: int, number: signal.Signals) -> tuple[int, str, str]:
    """LONG in a process that gets the signal once it has shown so many evaluations: its status and what it printed."""
    command = [sys.executable, "-m", "rlsuite.commands.cli", *LONG]
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=here, env=variables, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            assert process.stdout is not None
            printed = ""
            while len(re.findall(r"^ +\d+%  step ", printed, re.MULTILINE)) < lines:
                line = process.stdout.readline()
                assert line, printed + process.communicate()[1]
                printed += line
            process.send_signal(number)
            rest, errors = process.communicate()
        finally:
            process.kill()
    return process.returncode, printed + rest, errors


def test_a_signal_saves_and_the_same_command_goes_on(
    here: Path, finished: Finished, ready: None, no_report: None
) -> None:
    """SIGTERM, as from a cluster's scheduler, then Ctrl-C, then to the end: the rows are those of a run undisturbed."""
    went_on: list[int] = []
    for number, status in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        returned, printed, errors = stopped_after(here, 2, number)
        assert returned == status, printed + errors
        assert one_line(errors) == (f"rlsuite: {number.name}; all is saved, the same command goes on from here\n")
        went_on += map(int, re.findall(r"^  runs 0-1 go on from update (\d+) of 6000$", printed, re.MULTILINE))
        assert "100%" not in printed
        [running] = (here / "results" / "run").glob("*.partial")
        assert [folder for folder in (running / "snapshot000000-000001").iterdir() if folder.is_dir()] != []
        assert list((here / "results" / "run").glob("*.parquet")) == []
    printed = run_here([*LONG, "--results", str(here / "results")])
    went_on += map(int, re.findall(r"^  runs 0-1 go on from update (\d+) of 6000$", printed, re.MULTILINE))
    assert len(went_on) == 2
    assert 600 <= went_on[0] < went_on[1] < 6_000
    assert list((here / "results" / "run").glob("*.partial")) == []

    run_here([*LONG, "--results", str(here / "undisturbed")])
    [got] = (here / "results" / "run").glob("*.parquet")
    [expected] = (here / "undisturbed" / "run").glob("*.parquet")
    assert got.name == expected.name
    interrupted, undisturbed = pq.read_table(got), pq.read_table(expected)
    assert interrupted.num_rows == 2 * 11
    clock = ["wall_seconds"]
    assert interrupted.drop_columns(clock).equals(undisturbed.drop_columns(clock))
    seconds = interrupted["wall_seconds"].to_pylist()
    assert seconds == sorted(seconds)


def test_ctrl_c_is_no_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(batch, "compile_programs", interrupted)
    assert cli.main([*TINY, "--results", str(tmp_path)]) == 130
    assert "interrupted" in one_line(capsys.readouterr().err)


def test_without_the_analysis_extra_a_run_succeeds_and_a_report_says_what_to_install(
    results: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "analysis.__main__", None)
    assert cli.main([*TINY, "--results", str(results)]) == 0
    shown = capsys.readouterr()
    assert shown.err == "" and "pip install 'rlsuite[analysis]'" in shown.out and str(results / "run") in shown.out
    assert cli.main(["report", str(results)]) == 2
    assert "pip install 'rlsuite[analysis]'" in one_line(capsys.readouterr().err)


@pytest.mark.parametrize("option", [["--devices", "99"], ["--memory-share", "1e-9"]])
def test_what_the_machine_does_not_have_leaves_nothing(
    option: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", "ppo", *ENV, *option, "--results", str(tmp_path / "results")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert [name for name, data in contents(tmp_path).items() if data is not None] == []


# --- Homes and folders ------------------------------------------------------------------------------------------------

FILES = {
    "demo": ["--results"],
    "run": ["--results"],
    "sweep": ["experiment", "--results"],
    "evaluate": ["run", "--video"],
    "report": ["results", "--out"],
    "power": ["results"],
    "tune": ["results"],
    "check": ["check", "--references", "--results"],
    "bench": ["--output"],
    "import": ["files", "--to"],
}
"""Command -> its options and arguments that name files and folders."""
NAMES = {"--env", "env", "--sampling", "--name", "--label", "--tiers", "--algorithm", "--gymnasium", "--against"}
NAMES |= {"--source", "what", "room", "--wandb", "--address", "--partition", "--slurm"}
NAMES |= {
    "--labels",
    "--tasks",
    "--cells",
    "--reason",
    "benchmarks",
    "--metric",
    "--dataset",
    "id",
    "--reference-dataset",
}
"""What takes any text and names none; of datasets, what names one is found out later."""


class Asked(Exception):
    """A parser would read the command line now."""


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_a_tilde_is_the_home_in_all_that_names_a_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shells leave it in `--results=~/runs`. A new option that takes any text must be in one of the lists above."""
    parsers: list[Any] = []

    def parse_args(parser: Any, *arguments: Any) -> None:
        parsers.append(parser)
        raise Asked

    monkeypatch.setattr(Parser, "parse_args", parse_args)
    monkeypatch.setattr(analysis.__main__._Parser, "parse_args", parse_args)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(Asked):
        cli.command(name)(["ppo"])
    options = {(action.option_strings or [action.dest])[0]: action for action in parsers[0]._actions}
    for option in FILES.get(name, []):
        reader = options[option].type
        assert str(reader("~/runs")) == str(tmp_path / "runs"), option
        assert str(reader("runs/~x")) == "runs/~x"
    any_text = {name for name, action in options.items() if action.nargs != 0 and not (action.type or action.choices)}
    assert any_text - NAMES == set()


QUIET = """
from rlsuite.training.device import prepare_jax
prepare_jax()
import jax
jax.jit(lambda x: x + 1)(1.0)
from analysis import plots
"""


@pytest.mark.parametrize("where", ["HOME", "XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"])
def test_where_the_home_cannot_be_written_one_line_says_so(where: str, tmp_path: Path) -> None:
    """In place of the warnings of JAX and Matplotlib."""
    nowhere = tmp_path / "file"
    nowhere.touch()
    names = ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "JAX_COMPILATION_CACHE_DIR", "MPLCONFIGDIR")
    rest = {name: value for name, value in os.environ.items() if name not in names}
    environment = {**rest, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT), where: str(nowhere / "inside")}
    done = subprocess.run((sys.executable, "-c", QUIET), env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert re.fullmatch(r"rlsuite: compiled programs are not kept; cache folder '.*file/inside.*\n", done.stdout)


def test_a_user_without_a_home_has_no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert plan.cache_folder() == tmp_path / "rlsuite"
    for unset in ("", None):
        monkeypatch.setenv("XDG_CACHE_HOME", "") if unset == "" else monkeypatch.delenv("XDG_CACHE_HOME")
        with pytest.raises(OSError):
            plan.cache_folder().mkdir(parents=True)


def test_the_cache_is_below_a_home_that_is_written_as_a_tilde(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "~/other")
    assert plan.cache_folder() == tmp_path / "other" / "rlsuite"
