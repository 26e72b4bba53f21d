"""Families of environments: those of other packages, found by their entry points, and wrappers of their own."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import contributing
import pytest
from contributing import blocks, process

import envs
from envs import gymnax, registry, wrappers
from envs.core import Env
from envs.wrappers import Argument, Wrapper

(POINT,) = (block for block in blocks("python") if '"point/Regulate"' in block)
"""the environment that CONTRIBUTING.md gives as an example"""
(PYPROJECT,) = (block for block in blocks("toml") if "rlsuite.environments" in block)
"""what makes a package of it"""


install = functools.partial(contributing.install, group="rlsuite.environments")


def listed(folder: Path) -> tuple[list[str], str]:
    """(the ids that `rlsuite list envs` shows, what it writes to stderr)."""
    done = process(folder, "-m", "rlsuite.commands.cli", "list", "envs")
    assert done.returncode == 0, done.stderr
    rows = done.stdout.split("wrappers")[0].splitlines()[2:]  # below the title and the heads of the columns
    return [row.split()[0] for row in rows], done.stderr


OWN = envs.registered()
"""what is there without other packages"""


@pytest.fixture
def point(tmp_path: Path) -> Path:
    """A folder with the package that CONTRIBUTING.md describes."""
    project: dict[str, Any] = tomllib.loads(PYPROJECT)["project"]
    entry_points = project["entry-points"]["rlsuite.environments"]
    ((package, module),) = (target.split(".") for target in entry_points.values())
    assert package == project["name"].replace("-", "_")
    install(tmp_path, package, entry_points=entry_points, **{module: POINT})
    return tmp_path


@pytest.fixture
def here(point: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The same folder on this process' own path, with nothing found yet and nothing kept."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(point)
    registry._from_other_packages.cache_clear()
    yield point
    registry._from_other_packages.cache_clear()
    for name in set(sys.modules) - before:
        if name.split(".")[0] in {path.name for path in point.iterdir()}:
            del sys.modules[name]


def test_an_environment_of_another_package_is_listed_and_made(point: Path) -> None:
    assert listed(point) == (sorted([*OWN, "point/Regulate"]), "")
    program = "import envs; env = envs.make('point/Regulate+reward_scale=2'); print(env.id, envs.info(env.id).obs_dim)"
    assert process(point, "-c", program).stdout == "point/Regulate+reward_scale=2 2\n"
    misspelt = process(point, "-m", "rlsuite.commands.cli", "run", "ppo", "--env", "point/Regulat")
    assert misspelt.stderr == "rlsuite: unknown environment 'point/Regulat'; did you mean 'point/Regulate'?\n"


def test_algorithms_train_on_an_environment_of_another_package(point: Path) -> None:
    options = "--num-envs 2 --num-steps 8 --num-minibatches 2 --num-epochs 1 --hidden-sizes 8 --steps 32 --seeds 2"
    options += " --evaluations 1 --eval-episodes 2 --max-episode-steps 7 --width 2 --devices 1"
    env_id = "point/Regulate+scale_actions+observation_noise=0.10"
    done = process(point, "-m", "rlsuite.commands.cli", "run", "ppo", "--env", env_id, *options.split())
    assert done.returncode == 0, done.stderr
    assert f"ppo on {env_id[:-1]}" in done.stdout
    (manifest,) = (point / "results" / "run").glob("*.json")
    assert json.loads(manifest.read_text())["environment"] == env_id[:-1]
    assert manifest.with_suffix(".parquet").exists()


TASK = """
from envs.core import TaskInfo
PACKAGE, INSTALL, build = None, "", None
TASKS = {"broken/Task": TaskInfo("a task", 10, 1, 1, False, "JAX")}
"""

BROKEN: dict[str, tuple[str, str]] = {
    "an error on import": ("raise RuntimeError('first\\nsecond')", "RuntimeError: first second"),
    "an exit on import": ("raise SystemExit('enough')", "SystemExit: enough"),
    "a missing import": ("import nosuch", "ModuleNotFoundError: No module named 'nosuch'"),
    "an older TaskInfo": (
        "from envs.core import TaskInfo\nTASKS = {'broken/Task': TaskInfo('a task', 10)}",
        "TypeError: .* missing 4 required positional arguments: .*",
    ),
    "nothing": ("", "TypeError: module 'broken.family' has no TASKS and no PACKAGE and no INSTALL and no build"),
    "no task": (TASK + "TASKS = {}", "ValueError: module 'broken.family' has no environment in TASKS"),
    "a task in other words": (TASK + "TASKS = {'broken/Task': 'a task'}", "TypeError: .* must be a TaskInfo, got str"),
    "a name in place of tasks": (TASK + "TASKS = 'broken'", "AttributeError: .*"),
    "an id with a plus sign": (
        TASK + "TASKS['broken/A+B'] = TASKS['broken/Task']",
        "ValueError: the id 'broken/A[+]B' must be like 'family/Task-v1'",
    ),
    "an id that leaves its folder": (
        TASK + "TASKS['/etc/passwd'] = TASKS['broken/Task']",
        "ValueError: the id '/etc/passwd' must be like 'family/Task-v1'",
    ),
    "an id that is taken": (
        TASK + "TASKS['gymnax/CartPole-v1'] = TASKS['broken/Task']",
        "ValueError: the ids 'gymnax/CartPole-v1' are taken",
    ),
    "an alias that is taken": (
        TASK + "TASKS['brax/hopper'] = TASKS['broken/Task']",
        "ValueError: the ids 'brax/hopper' are taken",
    ),
    "a wrapper that is there": (
        TASK + "from envs.wrappers import WRAPPERS",
        "ValueError: there is a wrapper 'clip_actions' already",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_package_is_left_out_with_a_warning(name: str, here: Path) -> None:
    source, reason = BROKEN[name]
    install(here, "broken", entry_points={"mine": "broken.family"}, family=source)
    message = rf"^left out: environments 'mine' of the package 'broken' \({reason}\); repair or uninstall it$"
    with pytest.warns(UserWarning, match=message) as warned:
        assert envs.registered() == tuple(sorted([*OWN, "point/Regulate"]))
    assert len(warned) == 1
    envs.make("point/Regulate")


def test_an_entry_point_must_name_a_module(here: Path) -> None:
    install(here, "broken", entry_points={"mine": "broken.family:TASKS"}, family=TASK)
    with pytest.warns(UserWarning, match=r"\(TypeError: expected a module, got dict\)"):
        assert envs.registered() == tuple(sorted([*OWN, "point/Regulate"]))


def test_two_packages_cannot_bring_the_same_environment(here: Path) -> None:
    install(here, "second", entry_points={"point": "second.point"}, point=POINT)
    with pytest.warns(UserWarning, match=r"\(ValueError: the ids 'point/Regulate' are taken\)"):
        assert envs.registered() == tuple(sorted([*OWN, "point/Regulate"]))


def test_our_own_environments_ask_no_other_package(here: Path) -> None:
    install(here, "broken", entry_points={"mine": "broken.family"}, family="raise RuntimeError('imported')")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        envs.make("probe/constant/discrete+reward_scale=2")
        envs.info("brax/hopper")
    assert "broken" not in sys.modules


def test_the_commands_work_beside_a_broken_package(point: Path) -> None:
    install(point, "broken", entry_points={"mine": "broken.family"}, family="raise RuntimeError('first\\nsecond')")
    names, warned = listed(point)
    assert names == sorted([*OWN, "point/Regulate"])
    assert "left out: environments 'mine' of the package 'broken' (RuntimeError: first second)" in warned
    assert "Traceback" not in warned


# Wrappers of one family.


def heavier(env: Any, factor: float) -> Env:
    """A pendulum whose mass is `factor` times as large."""
    changed: Env = env.replace(
        params=env.params.replace(m=env.params.m * factor), id=wrappers.wrapped_id(env.id, "heavier", factor)
    )
    return changed


@pytest.fixture
def family(monkeypatch: pytest.MonkeyPatch) -> None:
    """gymnax with two wrappers of its own."""
    argument = Argument("FACTOR", wrappers.number_above_zero, "a number above 0, such as 2")
    own = {
        "heavier": Wrapper("the mass is FACTOR times as large", heavier, argument, keeps_reference=True),
        "same": Wrapper("nothing changes", lambda env: env.replace(id=wrappers.wrapped_id(env.id, "same"))),
    }
    monkeypatch.setattr(gymnax, "WRAPPERS", own, raising=False)


def test_a_family_has_wrappers_of_its_own(family: None) -> None:
    env: Any = envs.make("gymnax/Pendulum-v1+same+heavier=3.0+reward_scale=2")
    plain: Any = envs.make("gymnax/Pendulum-v1")
    assert env.id == "gymnax/Pendulum-v1+same+heavier=3+reward_scale=2"
    assert float(env.env.params.m) == 3.0 * float(plain.params.m)
    shown = envs.describe_wrappers()
    assert shown["+heavier=FACTOR"] == "the mass is FACTOR times as large (only gymnax/...)"
    assert shown["+same"] == "nothing changes (only gymnax/...)"


def test_wrappers_of_a_family_are_for_its_own_tasks(family: None) -> None:
    with pytest.raises(envs.WrapperError, match="unknown wrapper 'heavier' for 'probe/constant/discrete'; there are: "):
        envs.make("probe/constant/discrete+heavier=2")


def test_wrappers_of_a_family_come_first(family: None) -> None:
    with pytest.raises(envs.WrapperError) as error:
        envs.make("gymnax/Pendulum-v1+reward_scale=2+heavier=3")
    assert str(error.value) == (
        "wrapper 'heavier' changes the simulator of 'gymnax/Pendulum-v1'; write it before 'reward_scale'"
    )


def test_gymnax_loads_no_plotting_library_until_somebody_draws() -> None:
    script = """
import sys, envs
envs.make("gymnax/CartPole-v1")
assert not {"seaborn", "matplotlib", "matplotlib.pyplot"} & sys.modules.keys(), "loaded, or a stand-in left behind"
from gymnax.environments.misc import pong
import matplotlib.pyplot, seaborn
assert pong.sns.color_palette is seaborn.color_palette
assert pong.plt.subplots is matplotlib.pyplot.subplots
assert pong.colors.ListedColormap is matplotlib.colors.ListedColormap
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_what_a_simulator_prints_stays_out_of_the_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def build(task_id: str, max_episode_steps: int) -> Env:
        print("Failed to import warp")
        return cartpole

    cartpole = envs.make("gymnax/CartPole-v1")
    monkeypatch.setattr(gymnax, "build", build)
    envs.make("gymnax/Acrobot-v1", max_episode_steps=7)
    registry._make.cache_clear()
    shown = capsys.readouterr()
    assert shown.out == "" and "Failed to import warp" in shown.err
