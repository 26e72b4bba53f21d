"""`rlsuite export`: real writers of TensorBoard, W&B and MLflow, read back and compared with the Parquet rows."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb
from benchmark_scripts import load as load_benchmark
from mlflow import MlflowClient
from mlflow.store.tracking.file_store import FileStore
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import metadata as hparams_metadata
from tensorboard.summary.writer.record_writer import RecordWriter
from written import ramp, write_shard

from analysis import export as exporting
from analysis import to_mlflow, to_tensorboard, to_wandb
from analysis.export import Sent, State, Target, export, follow, look
from rlsuite.commands import cli

ROOT = Path(__file__).resolve().parent.parent
benchmark = load_benchmark("export")

# One worker, so that the packages are imported once.
pytestmark = pytest.mark.xdist_group("export")
TARGETS = ("tensorboard", "wandb", "mlflow")
HYPERS = {"hyper/learning_rate": 3e-4, "hyper/discount": 0.99}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to work in, without a network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    yield tmp_path
    wandb.teardown()


@pytest.fixture
def results(here: Path) -> Path:
    return here / "quick"


def make(name: str, here: Path) -> Target:
    """The target of this name below a folder, as a process finds it that has just started."""
    if name == "tensorboard":
        return to_tensorboard.TensorBoard(here / "tensorboard")
    return to_wandb.Wandb("suite") if name == "wandb" else to_mlflow.Mlflow(str(here / "mlflow"), here / "quick")


def found(name: str, here: Path) -> dict[tuple[str, str, str], list[tuple[str, int, float]]]:
    """All points that a target has; one that is there twice is so here."""
    wandb.teardown()
    points: dict[tuple[str, str, str], list[tuple[str, int, float]]] = {
        "tensorboard": lambda: benchmark.tensorboard_points(here / "tensorboard"),
        "wandb": lambda: benchmark.wandb_points(here / "wandb"),
        "mlflow": lambda: benchmark.mlflow_points(here / "mlflow"),
    }[name]()
    return {key: series for key, series in points.items() if series}


def wanted(name: str, results: Path) -> dict[tuple[str, str, str], list[tuple[str, int, float]]]:
    points = benchmark.written_points(results)
    return benchmark.rounded(points) if name == "tensorboard" else points


def run_shard(results: Path, running: Sequence[int] | None, **more: Any) -> str:
    """Eight runs of PPO, that have come so far, with metrics, of which some numbers are none."""
    shard = write_shard(results, "ppo", "gymnax/CartPole-v1", ramp(8), running=running, extra=metrics(), **more)
    if running is None:
        shutil.rmtree(results / f"{shard}.partial", ignore_errors=True)
    return shard


def metrics() -> dict[str, Any]:
    kl, entropy = np.arange(24.0), np.sqrt(np.arange(24.0)).astype(np.float32)
    kl[[9, 12, 20]] = [np.nan, np.inf, -np.inf]
    kl[:8] = entropy[:8] = np.nan  # no update has been made before the first evaluation
    return {**HYPERS, "metric/kl": kl, "metric/entropy": entropy}


# --- What is sent -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TARGETS)
def test_every_number_is_there_and_no_other(name: str, here: Path, results: Path) -> None:
    run_shard(results, None)
    write_shard(results, "sac", "gymnax/CartPole-v1", ramp(9, 60), extra={"metric/alpha": 0.1}, seeds=range(5, 14))
    write_shard(results, "sac, wide", "a", ramp(4), running=[3, 2, 1, 0], extra={"metric/alpha": 0.1})
    sent = export(look(results), make(name, here))
    assert found(name, here) == wanted(name, results)
    points = sum(map(len, wanted(name, results).values()))
    # No IQM of those that are still running: four runs are planned, three are there.
    assert sent == Sent(8 + 9 + 3, 2, points)
    assert len(found(name, here)["sac", "gymnax/CartPole-v1", "IQM of 9 runs"]) == 3 * 3


@pytest.mark.parametrize("name", TARGETS)
def test_aggregates_alone_and_the_runs_later(name: str, here: Path, results: Path) -> None:
    run_shard(results, None)
    assert export(look(results, runs=False), make(name, here)) == Sent(0, 1, 9)
    assert [series for _, _, series in found(name, here)] == ["IQM of 8 runs"]
    assert export(look(results), make(name, here)).aggregates == 0
    assert found(name, here) == wanted(name, results)


def test_an_iqm_of_few_runs_has_no_interval(here: Path, results: Path) -> None:
    write_shard(results, "ppo", "a", ramp(3))
    export(look(results, runs=False), make("mlflow", here))
    assert {name for name, _, _ in found("mlflow", here)["ppo", "a", "IQM of 3 runs"]} == {"return/iqm"}


def test_hyperparameters_and_manifest_in_tensorboard(here: Path, results: Path) -> None:
    run_shard(results, None, config={"num_envs": 4, "hidden_sizes": [8, 8], "huber": False}, device="a toaster")
    export(look(results), make("tensorboard", here))
    [folder] = (here / "tensorboard/ppo/gymnax/CartPole-v1").glob("seed 3-*")
    events = EventAccumulator(str(folder)).Reload()
    start = hparams_metadata.parse_session_start_info_plugin_data(
        events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    )
    hparams = {key: value.WhichOneof("kind") and str(value) for key, value in start.hparams.items()}
    assert hparams == {
        "algorithm": 'string_value: "ppo"\n',
        "environment": 'string_value: "gymnax/CartPole-v1"\n',
        "seed": "number_value: 3\n",
        "hyper/learning_rate": "number_value: 0.0003\n",
        "hyper/discount": "number_value: 0.99\n",
        "config/num_envs": "number_value: 4\n",
        "config/hidden_sizes": 'string_value: "[8, 8]"\n',
        "config/huber": "bool_value: false\n",
    }
    [text] = [event.tensor_proto.string_val[0].decode() for event in events.Tensors("manifest")]
    assert json.loads(text)["device"] == "a toaster" and "seeds" not in json.loads(text)
    [facts] = [event.tensor_proto.string_val[0].decode() for event in events.Tensors("facts")]
    assert json.loads(facts) == {"finished": True, "diverged": False}
    [folder] = (here / "tensorboard/ppo/gymnax/CartPole-v1").glob("IQM of 8 runs-*")
    [event] = EventAccumulator(str(folder)).Reload().Tensors("custom_scalars__config__")
    [series] = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0]).category[0].chart[0].margin.series
    assert (series.value, series.lower, series.upper) == ("return/iqm", "return/iqm_low", "return/iqm_high")


def test_hyperparameters_and_manifest_in_wandb(here: Path, results: Path) -> None:
    diverged = np.zeros((8, 3), bool)
    diverged[3, 2] = True
    run_shard(results, None, diverged=diverged, config={"hidden_sizes": [8, 8]}, device="a toaster")
    export(look(results), make("wandb", here))
    wandb.teardown()
    kinds = {}
    for file in (here / "wandb").glob("offline-run-*/*.wandb"):
        records = list(benchmark.wandb_records(file))
        [run] = [record.run for record in records if record.WhichOneof("record_type") == "run"]
        kinds[run.display_name] = run.job_type
        assert (run.project, run.run_group) == ("suite", "ppo gymnax/CartPole-v1")
        if run.display_name.endswith("seed 3"):
            config = {item.key: json.loads(item.value_json) for item in run.config.update}
            summary = {
                item.key or item.nested_key[0]: json.loads(item.value_json)
                for record in records
                for item in record.summary.update
            }
    assert kinds["ppo gymnax/CartPole-v1 IQM of 8 runs"] == "aggregate" and len(kinds) == 9
    assert kinds["ppo gymnax/CartPole-v1 seed 3"] == "run"
    assert (config["seed"], config["hyper/discount"], config["config/hidden_sizes"]) == (3, 0.99, "[8, 8]")
    assert config["manifest"]["device"] == "a toaster"
    assert (summary["diverged"], summary["finished"]) == (True, True)


def test_hyperparameters_and_manifest_in_mlflow(here: Path, results: Path) -> None:
    run_shard(results, [3] * 7 + [2], config={"hidden_sizes": [8, 8]}, device="a toaster")
    export(look(results), make("mlflow", here))
    client = MlflowClient(tracking_uri=str(here / "mlflow"))
    experiment = client.get_experiment_by_name("quick")
    assert experiment is not None

    def seed_3() -> Any:
        [run] = client.search_runs([experiment.experiment_id], "params.seed = '3'")
        return run

    run = seed_3()
    assert run.info.run_name == "ppo gymnax/CartPole-v1 seed 3"
    params = {"seed": "3", "hyper/learning_rate": "0.0003", "hyper/discount": "0.99", "config/hidden_sizes": "[8, 8]"}
    assert run.data.params == {**params, "algorithm": "ppo", "environment": "gymnax/CartPole-v1"}
    assert json.loads(run.data.tags["manifest"])["device"] == "a toaster"
    assert (run.data.tags["finished"], run.info.status) == ("False", "RUNNING")
    run_shard(results, None, config={"hidden_sizes": [8, 8]}, device="a toaster")
    export(look(results), make("mlflow", here))
    assert (seed_3().data.tags["finished"], seed_3().info.status) == ("True", "FINISHED")


@pytest.mark.parametrize("name", TARGETS)
def test_curves_without_times_are_sent(name: str, here: Path, results: Path) -> None:
    write_shard(results, "ppo", "a", ramp(2), extra={"wall_seconds": np.nan}, created="some day", sessions=[])
    export(look(results), make(name, here))
    assert found(name, here) == wanted(name, results)


def test_calls_are_few_and_none_is_too_large(here: Path, results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = tuple(range(400))
    write_shard(results, "ppo", "a", np.zeros((2, 400)), steps=steps, budget=399)
    sizes = []
    real = MlflowClient.log_batch

    def log_batch(client: Any, run: str, metrics: Any = (), params: Any = (), tags: Any = ()) -> None:
        sizes.append(len(metrics) + len(params) + len(tags))
        real(client, run, metrics, params, tags)

    monkeypatch.setattr(MlflowClient, "log_batch", log_batch)
    export(look(results), make("mlflow", here))
    assert found("mlflow", here) == wanted("mlflow", results)
    assert len(sizes) == 2 * 2 + 1 and max(sizes) == 1000


# --- What was sent before ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TARGETS)
def test_only_what_is_new_is_added(name: str, here: Path, results: Path) -> None:
    total = 0
    for running in ([2, 2, 1, 1, 1, 1, 0, 0], [2] * 8, [2] * 8, None, None):
        run_shard(results, running)
        before = found(name, here)
        sent = export(look(results), make(name, here))
        points = found(name, here)
        assert points == wanted(name, results)
        total += sent.points
        assert total == sum(map(len, points.values()))
        assert (sent == Sent(0, 0, 0)) == (points == before)
    assert total > 0


@pytest.mark.parametrize("name", TARGETS)
def test_a_run_that_is_trained_again_is_another_one(name: str, here: Path, results: Path) -> None:
    sessions = [{"created": "2025-01-01T00:00:00+00:00"}, {"created": "2025-01-02T00:00:00+00:00"}]
    run_shard(results, None, sessions=sessions[:1])
    export(look(results), make(name, here))
    # Another session of the same training changes nothing, not even with another first line of the manifest.
    run_shard(results, None, sessions=sessions, created="2025-01-02T00:00:00")
    assert export(look(results), make(name, here)) == Sent(0, 0, 0)
    run_shard(results, None, sessions=sessions[1:])
    assert export(look(results), make(name, here)).runs == 8
    assert found(name, here) == {key: sorted(2 * series) for key, series in wanted(name, results).items()}


def test_more_seeds_make_another_aggregate(here: Path, results: Path) -> None:
    write_shard(results, "ppo", "a", ramp(8))
    export(look(results), make("mlflow", here))
    before = found("mlflow", here)
    write_shard(results, "ppo", "a", ramp(8, 50), seeds=range(8, 16), shard="more")
    assert export(look(results), make("mlflow", here))[:2] == (8, 1)
    assert found("mlflow", here) == {**before, **wanted("mlflow", results)}
    assert {key for key in before if key[2].startswith("IQM")} == {("ppo", "a", "IQM of 8 runs")}


def test_a_file_that_is_gone_or_shorter_is_written_again(here: Path, results: Path) -> None:
    run_shard(results, None)
    export(look(results), make("tensorboard", here))
    first, second, *_ = sorted((here / "tensorboard").rglob("events*"))
    first.unlink()
    second.write_bytes(second.read_bytes()[:-1])
    assert sum(export(look(results), make("tensorboard", here))[:2]) == 2
    assert found("tensorboard", here) == wanted("tensorboard", results)
    shutil.rmtree(here / "tensorboard")
    assert export(look(results), make("tensorboard", here))[:2] == (8, 1)


class Killed(BaseException):
    """Nothing is done any more, as after SIGKILL."""


@contextlib.contextmanager
def killed(owner: Any, method: str, call: int, after: bool) -> Iterator[None]:
    """At a call of a method, the process ends: before it, or after it."""
    real, calls = getattr(owner, method), []

    def counted(*arguments: Any, **named: Any) -> Any:
        calls.append(method)
        if len(calls) == call and not after:
            raise Killed
        answer = real(*arguments, **named)
        if len(calls) == call:
            raise Killed
        return answer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, method, counted)
        with pytest.raises(Killed):
            yield


PLACES = {
    "tensorboard": [(RecordWriter, "write"), (to_tensorboard.TensorBoard, "send"), (State, "write")],
    "wandb": [(wandb.Run, "log"), (to_wandb.Wandb, "send"), (State, "write")],
    "mlflow": [(MlflowClient, "create_run"), (FileStore, "_log_run_metric"), (to_mlflow.Mlflow, "send")],
}


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(("name", "place"), [(name, place) for name in TARGETS for place in range(3)])
def test_an_export_that_was_killed_neither_loses_nor_doubles(
    name: str, place: int, after: bool, here: Path, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "BATCH", 3)
    run_shard(results, [1] * 4 + [0] * 4)
    owner, method = PLACES[name][place]
    with killed(owner, method, 3, after):
        export(look(results), make(name, here))
    for evaluations in (1, 2):
        run_shard(results, [evaluations] * 4 + [0] * 4)
        export(look(results), make(name, here))
    # It has gone on, and an export that adds to what is there is killed, too.
    run_shard(results, None)
    with killed(owner, method, 5, after):
        export(look(results), make(name, here))
    export(look(results), make(name, here))
    assert found(name, here) == wanted(name, results)
    assert not State(make(name, here).state).doubtful


def test_a_real_kill_leaves_the_same(here: Path, results: Path) -> None:
    run_shard(results, None)
    program = """
import os, signal, sys
import wandb
from rlsuite.commands import cli
real, calls = wandb.Run.log, []
def log(run, *arguments, **named):
    real(run, *arguments, **named)
    calls.append(1)
    if len(calls) == 8:
        os.kill(os.getpid(), signal.SIGKILL)
wandb.Run.log = log
cli.main(sys.argv[1:])
"""
    command = ["export", str(results), "--wandb", "suite"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program, *command], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert 2 <= len(list((here / "wandb").glob("offline-run-*"))) < 9
    assert cli.main(command) == 0
    assert found("wandb", here) == wanted("wandb", results)


def test_a_damaged_state_and_a_second_exporter_are_one_line(
    here: Path, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_shard(results, None)
    command = ["export", str(results), "--tensorboard", str(here / "tensorboard")]
    target = make("tensorboard", here)
    with exporting._claimed(target.state):
        assert cli.main(command) == 2
    assert "another process is exporting" in capsys.readouterr().err
    assert cli.main(command) == 0
    target.state.write_text('{"sent"')
    assert cli.main(command) == 2
    assert "rlsuite-export.json', which says what was exported, is damaged" in capsys.readouterr().err


# --- Following --------------------------------------------------------------------------------------------------------


def test_follow_ends_with_the_sweep(here: Path, results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_shard(results, [0] * 8)  # it has no evaluation yet
    looks = []

    def later(seconds: float) -> None:
        assert seconds == 7.0
        looks.append(seconds)
        match len(looks):
            case 1:
                run_shard(results, [2] * 8)
            case 2:
                run_shard(results, None)
            case 3:  # between two cells, no shard has been unfinished for a moment
                write_shard(results, "sac", "a", ramp(2), running=[1, 1])
            case 4:
                write_shard(results, "sac", "a", ramp(2))
                shutil.rmtree(results / "sac-a.partial")

    monkeypatch.setattr(time, "sleep", later)
    sent = list(follow(results, make("tensorboard", here), runs=True, seconds=7.0))
    assert len(looks) == 5
    assert [(each.runs, each.aggregates) for each in sent] == [(8, 1), (8, 1), (2, 1), (2, 1), (0, 0)]
    assert found("tensorboard", here) == wanted("tensorboard", results)


def test_follow_leaves_at_ctrl_c_and_goes_on(
    here: Path, results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_shard(results, [2] * 8)

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupted)
    command = ["export", str(results), "--tensorboard", "board", "--follow", "--every", "0.5"]
    assert cli.main(command) == 130
    shown = capsys.readouterr()
    assert shown.out.endswith(" points (runs: 8, aggregates: 1)\n")
    assert shown.err == "rlsuite: interrupted; the same command goes on with what is not sent yet\n"
    (here / "board").rename(here / "tensorboard")
    run_shard(results, None)
    export(look(results), make("tensorboard", here))
    assert found("tensorboard", here) == wanted("tensorboard", results)


# --- The command ------------------------------------------------------------------------------------------------------


def test_the_command_says_what_it_sent(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE")  # without it, MLflow refuses a folder
    write_shard(results, "ppo", "a", ramp(8))
    command = ["export", str(results), "--mlflow", "runs", "--no-runs"]
    assert cli.main(command) == 0
    assert cli.main(command) == 0
    assert capsys.readouterr().out == "runs: 9 points (runs: 0, aggregates: 1)\nruns: nothing new\n"


def test_what_a_server_was_sent_is_known_in_the_results(here: Path, results: Path) -> None:
    run_shard(results, None)
    for sent in (9, 0):
        target = to_mlflow.Mlflow(f"file://{here}/mlflow", results)
        assert sum(export(look(results), target)[:2]) == sent
    other = to_mlflow.Mlflow(f"file://{here}/other", results)
    assert sum(export(look(results), other)[:2]) == 9
    assert found("mlflow", here) == wanted("mlflow", results)
    assert {file.suffix for file in results.glob(".export-mlflow-*")} == {".json", ".lock"}


@pytest.mark.parametrize("name", TARGETS)
def test_a_missing_package_is_one_line(
    name: str, results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_shard(results, None)

    class Missing:
        @staticmethod
        def find_spec(module: str, *arguments: Any) -> None:
            if module == name:
                raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    with monkeypatch.context() as patch:
        for module in [module for module in sys.modules if module.split(".")[0] == name]:
            patch.delitem(sys.modules, module)
        patch.delitem(sys.modules, f"analysis.to_{name}")
        patch.setattr(sys, "meta_path", [Missing, *sys.meta_path])
        assert cli.main(["export", str(results), f"--{name}", "there"]) == 2
    assert capsys.readouterr().err == (
        f"rlsuite: --{name} needs a package ({name} is missing): pip install 'rlsuite[{name}]'\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one of the arguments --tensorboard --wandb --mlflow is required"),
        (["--tensorboard", "a", "--wandb", "b"], "not allowed with argument"),
        (["--tensorboard", "a", "--follow", "--every", "0"], "'0' must be seconds above 0"),
        (["--tensorboard", "a", "--follow", "--every", "nan"], "'nan' must be seconds above 0"),
        (["--tensorboard", "a"], "no such results folder"),
        (["--tensorboard", "a", "--follow"], "no such results folder"),
        (["--wandb", "a/b"], "'a/b' is no name of a W&B project"),
        (["--tensorboard", "file"], "cannot write to 'file'"),
        (["--mlflow", "nosuch://runs"], "MLflow does not take 'nosuch://runs'"),
    ],
)
def test_what_cannot_be_is_one_line(
    arguments: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "file").touch()
    if "file" in arguments:
        run_shard(here / "nosuch", None)
    assert cli.main(["export", "nosuch", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("rlsuite: ") and error.count("\n") == 1


def test_the_benchmark_finds_no_difference(here: Path) -> None:
    results = here / "made_up"
    benchmark.make_results(results, 8, 3, 2)
    for name in TARGETS:
        row = benchmark.measured(name, here / name, results, benchmark.written_points(results))
        assert int(row[-2].replace(",", "")) > 8 * 3 * 4 and row[-1] == "0", name
    wanted = benchmark.written_points(results)
    wanted["ppo", "gymnax/CartPole-v1", "seed 0"].pop()
    (here / "again").mkdir()
    assert benchmark.measured("mlflow", here / "again" / "mlflow", results, wanted)[-1] != "0"
