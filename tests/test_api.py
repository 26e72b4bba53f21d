"""The public functions of `rlsuite`: they train, keep, report and load as the commands do, from any thread."""

from __future__ import annotations

import ast
import inspect
import os
import re
import signal
import subprocess
import sys
import threading
import tomllib
from pathlib import Path

import numpy as np
import pytest

import rlsuite
from analysis import Scores
from rlsuite.algorithms.on_policy import ppo
from rlsuite.commands import api
from rlsuite.commands.options import field_texts
from rlsuite.sweeping import local

ROOT = Path(__file__).resolve().parent.parent
CONFIG = {"num_envs": 2, "num_steps": 4, "num_epochs": 1, "num_minibatches": 1, "hidden_sizes": (4,)}
SETTINGS = rlsuite.Settings(rlsuite.Limits(width=2, devices=1), save_policies=True)
ENV = "probe/constant/discrete"


def train(folder: Path, seeds: int = 2, **options: object) -> rlsuite.Run:
    """A few updates of a small PPO."""
    given = {"config": CONFIG, "settings": SETTINGS, "evaluations": 2, "eval_episodes": 2, **options}
    return rlsuite.run("ppo", ENV, steps=32, seeds=seeds, results=folder, **given)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> rlsuite.Run:
    return train(tmp_path_factory.mktemp("api"), hypers={"learning_rate": (1e-3, 1e-2), "discount": 0.5})


def python(program: str, **variables: str) -> str:
    """What a program prints in a process of its own."""
    there = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, check=True, capture_output=True, text=True, env={**there, **variables}).stdout


# --- The names --------------------------------------------------------------------------------------------------------


def test_importing_it_imports_nothing_that_takes_time() -> None:
    heavy = "{'jax', 'numpy', 'pandas', 'envs', 'analysis'}"
    assert python(f"import sys, rlsuite; dir(rlsuite); print({heavy} & set(sys.modules))") == "set()\n"


def test_type_checkers_see_the_names_that_programs_import() -> None:
    tree = ast.parse(Path(rlsuite.__file__).read_text("utf-8"))
    [for_types] = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.name: node.module for node in for_types.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert seen == rlsuite._MODULES and set(seen) == set(rlsuite.__all__) <= set(dir(rlsuite))
    assert all(getattr(rlsuite, name) is not None for name in rlsuite.__all__)


def test_there_is_no_other_name() -> None:
    with pytest.raises(AttributeError, match="'rlsuite' has no attribute 'nosuch'"):
        _ = rlsuite.nosuch


@pytest.mark.parametrize("name", rlsuite.__all__)
def test_every_public_name_says_what_it_is(name: str) -> None:
    """A record each of its fields; a function each of its arguments, but for those of a cell, and what it raises."""
    thing = getattr(rlsuite, name)
    assert inspect.getdoc(thing)
    if inspect.isclass(thing):
        fields = {*getattr(thing, "__dataclass_fields__", ()), *getattr(thing, "_fields", ())}
        assert fields == {field for field in fields if field_texts(thing).get(field)}
    shown = [thing] if inspect.isfunction(thing) else [vars(thing)[key] for key in vars(thing) if key[0] != "_"]
    for function in filter(inspect.isfunction, shown):
        text = inspect.getdoc(function) or ""
        elsewhere = {"self", *(rlsuite.Cell.__dataclass_fields__ if "See `Cell`" in text else ())}
        assert {*inspect.signature(function).parameters} - elsewhere <= {*re.findall(r"\w+", text)}
        assert "Raises:" in text


@pytest.mark.parametrize("package", ["analysis", "envs", "experiments", "rlsuite"])
def test_type_checkers_read_the_types_of_each_package(package: str) -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    assert settings["package-data"]["*"] == ["py.typed"] and package in settings["packages"]
    assert (ROOT / package / "py.typed").read_text() == ""


# --- Training ---------------------------------------------------------------------------------------------------------


def test_run_trains_every_setting_at_every_seed(trained: rlsuite.Run) -> None:
    table = trained.table()
    assert len(table) == 2 * 2 * 3  # settings, seeds, evaluations
    assert set(table["hyper/learning_rate"]) == {1e-3, 1e-2} and set(table["hyper/discount"]) == {0.5}
    assert trained.folder.name == "run" and set(table["shard"]) == set(trained.shards)


def test_run_is_the_shard_of_the_cell(trained: rlsuite.Run) -> None:
    settings = tuple(ppo.Hypers()._replace(learning_rate=rate, discount=0.5) for rate in (1e-3, 1e-2))
    config = ppo.Config(**CONFIG)  # type: ignore[arg-type]
    cell = rlsuite.Cell("ppo", ENV, 32, 2, config=config, hypers=settings, evaluations=2, eval_episodes=2)
    experiment = rlsuite.Experiment("run", "as a cell", (cell,))
    file = trained.folder / f"{trained.shards[0]}.parquet"
    before = file.stat().st_mtime_ns
    assert rlsuite.sweep(experiment, results=trained.folder.parent, settings=SETTINGS) == trained
    assert file.stat().st_mtime_ns == before


def test_more_seeds_train_only_the_new_ones(trained: rlsuite.Run) -> None:
    more = train(trained.folder.parent, 3, hypers={"learning_rate": (1e-3, 1e-2), "discount": 0.5})
    assert trained.shards[0] == more.shards[0] and len(more.shards) == 2
    assert len(more.table()) == 2 * 3 * 3 and len(trained.table()) == 2 * 2 * 3
    with pytest.raises(rlsuite.UserError, match="there are 2 shards; load the policy of one"):
        rlsuite.load_policy(more)


def test_sweep_reads_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import rlsuite\nfrom rlsuite.algorithms.on_policy import ppo\n"
        f"cell = rlsuite.Cell('ppo', '{ENV}', 8, 1, config=ppo.Config(**{CONFIG}), evaluations=1, eval_episodes=1)\n"
        "EXPERIMENT = rlsuite.Experiment('mine', 'one cell', (cell,))\n"
    )
    found = rlsuite.sweep(tmp_path / "mine.py", results=tmp_path / "results", settings=SETTINGS)
    assert found.folder == tmp_path / "results" / "mine" and len(found.table()) == 2


def test_run_trains_on_every_core(tmp_path: Path) -> None:
    """In a process of its own, since JAX takes the number of its devices before it computes anything."""
    shown = python(
        "import rlsuite, jax\n"
        f"rlsuite.run('ppo', 'gymnax/CartPole-v1', steps=8, seeds=2, config={CONFIG}, evaluations=1, eval_episodes=1,"
        f" results={str(tmp_path)!r}, settings=rlsuite.Settings(rlsuite.Limits(width=1)))\n"
        "from rlsuite.training import memory\n"
        "print(jax.local_device_count() == memory.num_cores())\n",
        JAX_PLATFORMS="cpu",
    )
    assert shown.endswith("True\n")


def test_run_works_in_a_thread(tmp_path: Path) -> None:
    found: list[rlsuite.Run] = []
    thread = threading.Thread(target=lambda: found.append(train(tmp_path)))
    thread.start()
    thread.join()
    assert len(found[0].table()) == 2 * 3


@pytest.mark.parametrize("call", ["run", "sweep"])
def test_a_call_tells_every_evaluation_and_goes_on_after_an_error(call: str, tmp_path: Path) -> None:
    cell = rlsuite.Cell("ppo", ENV, 32, 2, config=ppo.Config(**CONFIG), evaluations=2, eval_episodes=2)  # type: ignore[arg-type]
    told: list[rlsuite.ChunkEvaluation] = []

    def tell(evaluation: rlsuite.ChunkEvaluation) -> None:
        told.append(evaluation)
        if len(told) == 2:
            raise RuntimeError("enough")

    def again() -> rlsuite.Run:
        if call == "run":
            return train(tmp_path, on_evaluation=tell)
        experiment = rlsuite.Experiment("run", "one cell", (cell,))
        return rlsuite.sweep(experiment, results=tmp_path, settings=SETTINGS, on_evaluation=tell)

    with pytest.raises(RuntimeError, match="enough"):
        again()
    table = again().table()
    assert [one.update for one in told] == [0, 2, 4] and told[1].seeds.tolist() == [0, 1]
    assert np.concatenate([one.mean_returns for one in told]).tolist() == table["return_mean"].tolist()
    assert told[2].returns.shape == (2, 2) and told[2].metrics["policy_loss"].shape == (2,)
    assert told[2].hypers["learning_rate"].tolist() == table["hyper/learning_rate"].tolist()[-2:]


def test_an_interrupted_call_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a notebook, whose interrupt is a signal to the main thread."""
    before = signal.getsignal(signal.SIGINT)
    whole = local.run_shard

    def interrupted(*arguments: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        whole(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(rlsuite.Stopped, match="SIGINT"):
        patch.setattr(local, "run_shard", interrupted)
        train(tmp_path)
    assert signal.getsignal(signal.SIGINT) is before
    assert len(train(tmp_path).table()) == 2 * 3


# --- Reading ----------------------------------------------------------------------------------------------------------


def test_scores_and_report_are_of_the_runs(trained: rlsuite.Run, capsys: pytest.CaptureFixture[str]) -> None:
    scores = trained.scores()
    assert isinstance(scores, Scores) and scores.tasks["ppo", ENV].final.shape == (4,)
    page = trained.report()
    assert page == trained.folder / "report.html" and page.exists()
    assert "Final evaluation" in capsys.readouterr().out


def test_report_writes_where_it_is_told(trained: rlsuite.Run, tmp_path: Path) -> None:
    page = rlsuite.report(str(trained.folder), labels=["ppo"], out=tmp_path / "page", repetitions=100)
    assert page == tmp_path / "page" / "report.html" and page.exists()


def test_a_policy_acts_and_plays(trained: rlsuite.Run) -> None:
    policy = rlsuite.load_policy(trained, seed=1)
    assert (policy.seed, policy.update) == (1, 4)
    assert rlsuite.load_policy(trained.folder / trained.shards[0]).seed == 0
    assert policy.act(np.zeros(policy.env.obs_dim)).item() in range(2)
    played = policy.play(episodes=3)
    # The evaluation of a run is of the same policy; the probe pays the same whatever is done.
    assert played.returns.tolist() == [trained.table()["return_mean"].iloc[-1]] * 3


# --- Errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda at: rlsuite.run("pppo", ENV, results=at), "unknown algorithm 'pppo'; did you mean 'ppo'?"),
        (
            lambda at: rlsuite.run("ppo", "probe/constant/discreet", results=at),
            "did you mean 'probe/constant/discrete'",
        ),
        (lambda at: train(at, hypers={"learning_rat": 1.0}), "did you mean 'learning_rate'?"),
        (lambda at: train(at, hypers={"discount": "1"}), "discount='1' must be a finite number"),
        (
            lambda at: train(at, config={"num_env": 2}),
            "unknown setting 'num_env' of the config; did you mean 'num_envs'",
        ),
        (lambda at: train(at, config={"num_envs": 2.0}), "num_envs=2.0 must be of type int"),
        (
            lambda at: train(at, settings=rlsuite.Settings(rlsuite.Limits(width=0))),
            "width 0 must be at least 1; leave it out",
        ),
        (
            lambda at: train(at, settings=rlsuite.Settings(rlsuite.Limits(memory_share=75.0))),
            "memory_share 75.0 must be above 0 and at most 1",
        ),
        (lambda at: train(at, settings=rlsuite.Settings(save_every=-1.0)), "save_every -1.0 must be 0"),
        (lambda at: train(at, name="a/b"), "experiment name 'a/b' becomes a file name"),
        (lambda at: rlsuite.sweep(at / "none.py"), "no experiment file"),
        (lambda at: rlsuite.sweep(rlsuite.Experiment("empty", "", ())), "must have a tuple of cells"),
        (lambda at: rlsuite.report(at / "none"), "none"),
        (lambda at: rlsuite.report(at, repetitions=0), "repetitions=0 must be at least 1"),
        (lambda at: rlsuite.load_policy(at / "none"), "no finished shard"),
        (lambda at: api.Run(at, ("none",)).table(), "no results"),
    ],
)
def test_what_a_user_can_fix_is_one_line(tmp_path: Path, call: object, message: str) -> None:
    with pytest.raises(rlsuite.UserError) as raised:
        call(tmp_path)  # type: ignore[operator]
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_policies_say_which_are_there(trained: rlsuite.Run) -> None:
    with pytest.raises(rlsuite.UserError, match="no run has the seed 7; there are 0 to 1"):
        rlsuite.load_policy(trained, seed=7)
    with pytest.raises(rlsuite.UserError, match=r"obs has the shape \(9,\)"):
        rlsuite.load_policy(trained).act(np.zeros(9))
    with pytest.raises(rlsuite.UserError, match="episodes=0 must be at least 1"):
        rlsuite.load_policy(trained).play(0)
