"""What code computed a result: recorded, and looked at wherever a shard is kept, resumed or trained again."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import contributing
import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from test_new_algorithm import template
from test_registry import POINT
from test_sweep import CELL, MadeUp, at_once, long_shard, names_in, refusal, rows_of, three_shards
from written import cut

from envs import registry
from envs.plugins import Package
from rlsuite import algorithms
from rlsuite.errors import Stopped
from rlsuite.sweeping import extend, job, local, policies, provenance, worker
from rlsuite.sweeping.entry import BEFORE, Entry
from rlsuite.sweeping.job import Job
from rlsuite.sweeping.settings import Settings
from rlsuite.sweeping.shard import Layout
from rlsuite.sweeping.store import Store
from rlsuite.sweeping.sweep import Cell

EDITS = ["the learner", "a file beside it", "a new file", "only the version"]


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> MadeUp:
    return MadeUp(monkeypatch)


def forget() -> None:
    """As in a new process."""
    registry._from_other_packages.cache_clear()
    algorithms._from_other_packages.cache_clear()
    algorithms._corrected.cache_clear()
    provenance.sources.cache_clear()
    for name in list(sys.modules):
        if name.split(".")[0] in ("my_algorithms", "my_tasks"):
            del sys.modules[name]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with two packages: one brings the algorithm `a2c`, the other the environment `point/Regulate`."""
    folder = tmp_path / "site"
    folder.mkdir()
    install_algorithms = functools.partial(contributing.install, group="rlsuite.algorithms")
    install_algorithms(
        folder, "my_algorithms", entry_points={"a2c": "my_algorithms.a2c:SPEC"}, a2c=template(), parts="LOSS = 1"
    )
    contributing.install(
        folder, "my_tasks", group="rlsuite.environments", entry_points={"point": "my_tasks.point"}, point=POINT
    )
    monkeypatch.syspath_prepend(folder)
    forget()
    yield folder
    forget()


def edit(folder: Path, what: str, package: str = "my_algorithms") -> None:
    """As a developer of the package does between two commands."""
    metadata = folder / f"{package}-0.1.dist-info" / "METADATA"
    module = {"my_algorithms": "a2c.py", "my_tasks": "point.py"}[package]
    file = folder / package / {"the learner": module, "a file beside it": "__init__.py"}.get(what, "more.py")
    if what == "only the version":
        metadata.write_text(metadata.read_text().replace("0.1", "0.2"))
    else:
        file.write_text((file.read_text() if file.exists() else "") + "\n# another thought\n")
    forget()


def foreign(environment: str = "probe/action/discrete", algorithm: str = "a2c", **changes: Any) -> Job:
    """Four runs of an algorithm of `installed`, or on an environment of it."""
    return job.resolve("mine", dataclasses.replace(Cell(algorithm, environment, 4096, 4, evaluations=2), **changes))


PARTS = {
    "my_algorithms": ("algorithm", {}),
    "my_tasks": ("environment", {"algorithm": "ppo", "environment": "point/Regulate"}),
}
"""package -> what it brings to a shard, and the shard"""


def digest_of(store: Store, one: Job, what: str) -> str:
    digest: str = store.open(one).manifest()["packages"][what]["sources"]
    return digest


def snapshot_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- What is recorded -------------------------------------------------------------------------------------------------


def test_the_manifest_says_which_code_computed(tmp_path: Path, made_up: MadeUp, installed: Path) -> None:
    store, ours, theirs = Store(tmp_path / "results"), three_shards()[0], foreign(environment="point/Regulate",
                                                                                   algorithm="ppo")  # fmt: skip
    local.run([ours, theirs, foreign()], store, at_once(4))
    assert store.open(ours).manifest()["packages"] == {}
    package = {"version": "0.1", "sources": provenance.sources(Package("my-tasks", "0.1", "my_tasks.point"))}
    assert store.open(theirs).manifest()["packages"] == {"environment": {"name": "my-tasks", **package}}
    assert store.open(foreign()).manifest()["packages"]["algorithm"]["name"] == "my-algorithms"
    [session] = store.open(ours).manifest()["sessions"]
    assert session["rlsuite_sources"] == store.open(ours).manifest()["rlsuite_sources"] == provenance.own_sources()
    assert (session["rlsuite"], session["jax"]) == (store.open(ours).manifest()["versions"]["rlsuite"], jax.__version__)


def test_the_digest_of_our_own_sources_is_of_every_file() -> None:
    files = {name for module in ("rlsuite", "envs") for name, _ in provenance.files_of(module)}
    assert {"algorithms/on_policy/ppo.py", "training/train.py", "mujoco.py", "wrappers.py"} <= files
    assert re.fullmatch(r"[0-9a-f]{12}", provenance.own_sources())


def test_a_digest_changes_with_every_byte_and_name(tmp_path: Path) -> None:
    for name, text in (("one", "a"), ("two", "b"), ("three", "ab")):
        (tmp_path / name).write_text(text)
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    sets = [
        [("x", one)],
        [("x", two)],
        [("y", one)],
        [("x", one), ("y", two)],
        [("x", two), ("y", one)],
        [("x", three)],
    ]
    digests = [provenance.digest(files) for files in sets]
    assert len(set(digests)) == len(sets)
    assert provenance.digest(sets[0]) == digests[0]


def test_a_learner_that_is_corrected_is_of_its_package(installed: Path) -> None:
    assert algorithms.package("a2c") == Package("my-algorithms", "0.1", "my_algorithms.a2c")
    assert algorithms.package("bc+cdsa") is None and algorithms.package("td3_bc+cdsa") is None
    assert registry.package("point/Regulate+reward_scale=2") == Package("my-tasks", "0.1", "my_tasks.point")
    assert registry.package("gymnax/Pendulum-v1+clip_actions") is None


# --- Kept -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", PARTS)
@pytest.mark.parametrize("what", EDITS)
def test_what_other_code_has_finished_is_not_kept_silently(
    what: str, package: str, tmp_path: Path, made_up: MadeUp, installed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    brings, cell = PARTS[package]
    store, one = Store(tmp_path / "results"), foreign(**cell)
    local.run([one], store, at_once(4))
    local.run([one], store, at_once(4))
    assert "done before, kept" in capsys.readouterr().out
    before, was = snapshot_of(store.folder), digest_of(store, one, brings)
    edit(installed, what, package)
    one = foreign(**cell)
    message = refusal(lambda: local.run([one], store, at_once(4)))
    name = package.replace("_", "-")
    assert f"was trained with: the package of the {brings} is {name} " in message
    assert f"was {name} 0.1 (sources {was}); restore it, or delete '{store.open(one).path}' to begin again" in message
    assert "--retrain" in message
    assert (f"is {name} 0.2 (sources {was})" in message) == (what == "only the version")
    assert snapshot_of(store.folder) == before and len(made_up.started) == 1

    # As the message says.
    local.run([one], store, at_once(4)._replace(retrain=True))
    assert len(made_up.started) == 2
    assert snapshot_of(store.folder / BEFORE) == before
    assert store.open(one).manifest()["packages"] != json.loads(before[f"{one.name}.json"])["packages"]
    local.run([one], store, at_once(4))
    assert len(made_up.started) == 2


def test_a_finished_shard_whose_package_was_not_recorded_is_kept_and_named(
    tmp_path: Path, made_up: MadeUp, installed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As before there was a record."""
    store, [ours, *_] = Store(tmp_path / "results"), three_shards()
    shards = [foreign(), ours]
    local.run(shards, store, at_once(4))
    strip(store, *shards)
    capsys.readouterr()
    local.run(shards, store, at_once(4))
    assert capsys.readouterr().out.splitlines()[:3] == [
        "[1/2] a2c on probe/action/discrete, 4 runs: done before, kept",
        "  which code of 'my-algorithms' it was trained with is not recorded; --retrain starts it over",
        "[2/2] ppo on probe/action/discrete, 4 runs: done before, kept",
    ]
    assert len(made_up.started) == 2


def strip(store: Store, *shards: Job) -> None:
    """Make the manifests those of a version that recorded no code."""
    for one in shards:
        manifest = store.open(one).manifest()
        for key in ("packages", "rlsuite_sources"):
            del manifest[key]
        manifest["sessions"] = [
            {key: each[key] for key in ("created", "device", "git_revision")} for each in manifest["sessions"]
        ]
        store.open(one).manifest_path.write_text(json.dumps(manifest))


# --- Resumed ----------------------------------------------------------------------------------------------------------


def long(algorithm: str = "a2c") -> Job:
    """`long_shard` of another algorithm: five runs, evaluated after 0, 4, 8 and 12 updates."""
    one = foreign(algorithm=algorithm)
    per_update = one.cell.steps and algorithms.get(algorithm).make(one.config).steps_per_update
    return foreign(algorithm=algorithm, steps=12 * per_update, seeds=5, evaluations=3)


@contextlib.contextmanager
def interrupted(made_up: MadeUp) -> Iterator[None]:
    """After the first chunk of two, in the middle of the second."""

    def stop(first_seed: int, index: int) -> None:
        if (first_seed, index) == (2, 5):
            signal.raise_signal(signal.SIGTERM)

    made_up.before_update = stop
    with pytest.raises(Stopped):
        yield
    made_up.before_update = lambda first_seed, index: None


def interrupt(one: Job, store: Store, made_up: MadeUp) -> None:
    """Begin a shard that is interrupted."""
    with interrupted(made_up):
        local.run([one], store, at_once(2))
    made_up.started.clear()
    made_up.updates.clear()


@pytest.mark.parametrize("what", EDITS)
def test_what_other_code_has_begun_is_not_resumed(what: str, tmp_path: Path, made_up: MadeUp, installed: Path) -> None:
    store = Store(tmp_path / "results")
    interrupt(long(), store, made_up)
    before = snapshot_of(store.folder)
    edit(installed, what)
    one = long()
    message = refusal(lambda: local.run([one], store, at_once(2)))
    assert f"other code than '{one.name}' was begun with: the package of the algorithm is my-algorithms" in message
    assert f"or delete '{store.open(one).partial}' to begin again" in message and "--retrain" in message
    assert snapshot_of(store.folder) == before and made_up.started == []

    local.run([one], store, at_once(2)._replace(retrain=True))
    # No run is left of the other code, and each is trained once.
    assert made_up.updates == [(first_seed, index) for first_seed in (0, 2, 4) for index in range(12)]
    [session] = store.open(one).manifest()["sessions"]
    assert session["rlsuite_sources"] == provenance.own_sources()
    set_aside = {name for name in snapshot_of(store.folder / BEFORE) if "runs000000-000001" in name}
    assert len(set_aside) == 4


@pytest.mark.parametrize("package", PARTS)
@pytest.mark.parametrize("what", EDITS)
def test_a_worker_with_other_code_of_a_package_is_refused(what: str, package: str, installed: Path) -> None:
    """On a node where another version of it is installed: the manifest names the driver's."""
    part, changes = PARTS[package]
    one = foreign(**changes)
    session = provenance.session()
    measure = worker.Measure(one, Settings().limits, 4, session)
    train = worker.Train(one, 0, 4, Layout(4, 1), 60.0, False, session, frozenset())
    worker.check_packages(one)
    edit(installed, what, package)
    for refused in (
        refusal(lambda: worker.measure(measure, None)),
        refusal(lambda: worker.train(train, None, None, print, int)),  # type: ignore[arg-type]
    ):
        assert f"other code than the driver: here the package of the {part} is " in refused
        assert refused.endswith("there; install the same on all nodes")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            {"rlsuite_sources": "0ther"},
            "rlsuite {rlsuite} (sources {own}), it was begun with {rlsuite} (sources 0ther)",
        ),
        ({"rlsuite": "0.0"}, "rlsuite {rlsuite} (sources {own}), it was begun with 0.0 (sources {own})"),
        ({"jax": "0.1"}, "JAX {jax}, it was begun with JAX 0.1"),
    ],
    ids=str,
)
def test_other_code_of_ours_goes_on_and_says_so(
    changed: dict[str, str],
    words: str,
    tmp_path: Path,
    made_up: MadeUp,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store, one = Store(tmp_path), long_shard()
    now = provenance.session()
    with monkeypatch.context() as patch:
        patch.setattr(provenance, "session", lambda: {**now, **changed})
        interrupt(one, store, made_up)
    capsys.readouterr()
    local.run([one], store, at_once(2))
    text = words.format(**now, own=now["rlsuite_sources"]).replace("begun with " + now["rlsuite"],
                                                                    "begun with rlsuite " + now["rlsuite"])  # fmt: skip
    text = text.replace("begun with 0.0", "begun with rlsuite 0.0")
    assert f"  goes on with {text}; the report will say so, --retrain starts it over\n" in capsys.readouterr().out
    assert made_up.updates[0][0] == 2 and made_up.updates[0][1] > 5
    sessions = [{key: each[key] for key in now} for each in store.open(one).manifest()["sessions"]]
    assert sessions == [{**now, **changed}, now]


def test_the_same_code_goes_on_without_a_word(
    tmp_path: Path, made_up: MadeUp, capsys: pytest.CaptureFixture[str]
) -> None:
    store, one = Store(tmp_path), long_shard()
    interrupt(one, store, made_up)
    capsys.readouterr()
    local.run([one], store, at_once(2))
    assert "goes on" not in capsys.readouterr().out.replace("runs 2-3 go on from", "")


@pytest.mark.parametrize("algorithm", ["ppo", "a2c"])
def test_what_was_begun_without_a_record_goes_on_and_says_so(
    algorithm: str, tmp_path: Path, made_up: MadeUp, installed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, one = Store(tmp_path / "results"), long(algorithm)
    interrupt(one, store, made_up)
    strip(store, one)
    capsys.readouterr()
    local.run([one], store, at_once(2))
    printed = capsys.readouterr().out
    assert "  goes on; which rlsuite and JAX it was begun with is not recorded, --retrain starts it over\n" in printed
    package_line = "  which code of 'my-algorithms' it was begun with is not recorded; --retrain starts it over\n"
    assert (package_line in printed) == (algorithm == "a2c")
    first, second = store.open(one).manifest()["sessions"]
    assert "rlsuite_sources" not in first and second["rlsuite_sources"] == provenance.own_sources()
    assert made_up.updates[0][0] == 2


# --- Trained again ----------------------------------------------------------------------------------------------------

AGAIN = at_once(2)._replace(retrain=True)


def test_training_again_keeps_what_was_there_aside(tmp_path: Path, made_up: MadeUp) -> None:
    store, shards = Store(tmp_path), three_shards()
    local.run(shards[:1], store, at_once(4))
    before = snapshot_of(tmp_path)
    rows = rows_of(store, shards[0])
    local.run(shards[:2], store, at_once(4)._replace(retrain=True))
    assert made_up.started == [(0, 1, 2, 3), (0, 1, 2, 3), (4, 5, 6, 7)]
    assert rows_of(store, shards[0]) == rows
    assert snapshot_of(tmp_path / BEFORE) == before
    assert names_in(tmp_path) == {BEFORE, *(f"{s.name}{end}" for s in shards[:2] for end in (".json", ".parquet"))}
    assert len(store.open(shards[0]).manifest()["sessions"]) == 1
    assert store.others(shards[:2]) == []


def test_what_is_interrupted_before_its_first_row_loses_nothing(tmp_path: Path, made_up: MadeUp) -> None:
    store, one = Store(tmp_path), long_shard()
    local.run([one], store, at_once(2))
    before = snapshot_of(tmp_path)

    def crash(*arguments: Any) -> None:
        raise RuntimeError("the power is gone")

    made_up.compile = crash  # type: ignore[method-assign,assignment]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rlsuite.training.batch.compile_programs", crash)
        with pytest.raises(RuntimeError, match="the power is gone"):
            local.run([one], store, AGAIN)
    assert snapshot_of(tmp_path / BEFORE) == before
    assert not store.open(one).path.exists()
    # Without the option the same command goes on, and with it as well.
    made_up.started.clear()
    local.run([one], store, at_once(2))
    assert made_up.started == [(0, 1), (2, 3), (4,)]
    assert snapshot_of(tmp_path / BEFORE) == before


def test_training_again_goes_on_where_it_was_interrupted(tmp_path: Path, made_up: MadeUp) -> None:
    store, one = Store(tmp_path), long_shard()
    local.run([one], store, at_once(2))
    before, rows = snapshot_of(tmp_path), rows_of(store, one)

    made_up.updates.clear()
    with interrupted(made_up):
        local.run([one], store, AGAIN)
    local.run([one], store, AGAIN)
    assert made_up.updates == [(first_seed, index) for first_seed in (0, 2, 4) for index in range(12)]
    assert rows_of(store, one) == rows
    assert snapshot_of(tmp_path / BEFORE) == before


def test_what_another_process_trains_again_meanwhile_is_kept(tmp_path: Path, made_up: MadeUp) -> None:
    """Two processes with the same command share its shards."""
    store, [one, *_] = Store(tmp_path), three_shards()
    local.run([one], store, at_once(4))
    with contextlib.ExitStack() as claims:
        assert claims.enter_context(store.open(one).claim())

        def finish() -> None:
            """The other process' turn: it sets the shard aside and ends with new files."""
            table = pq.read_table(store.open(one).path)
            store.open(one).path.unlink()
            pq.write_table(table, store.open(one).path, row_group_size=4)
            claims.close()

        made_up.clock.on_sleep = finish
        local.run([one], store, at_once(4)._replace(retrain=True))
    assert len(made_up.started) == 1


def test_a_damaged_shard_can_be_trained_again(tmp_path: Path, made_up: MadeUp) -> None:
    store, [one, *_] = Store(tmp_path), three_shards()
    local.run([one], store, at_once(4))
    rows = rows_of(store, one)
    store.open(one).path.write_bytes(store.open(one).path.read_bytes()[:-1])
    local.run([one], store, at_once(4)._replace(retrain=True))
    assert rows_of(store, one) == rows


# --- More seeds -------------------------------------------------------------------------------------------------------


def at(first: int, seeds: int, **changes: Any) -> Job:
    return job.resolve("mine", dataclasses.replace(CELL, first_seed=first, seeds=seeds, **changes))


def seeds_of(shards: list[Job]) -> list[tuple[int, int]]:
    return [(one.cell.first_seed, one.cell.seeds) for one in shards]


def run_all(one: Job, store: Store) -> None:
    local.run(extend.extending([one], store), store, Settings(at_once(4).limits))


def test_more_seeds_extend_what_is_there(tmp_path: Path, made_up: MadeUp) -> None:
    store = Store(tmp_path)
    run_all(at(0, 4), store)
    run_all(at(0, 6), store)
    assert made_up.started == [(0, 1, 2, 3), (4, 5)]
    run_all(at(0, 6), store)  # done before
    run_all(at(0, 3), store)  # all of it is there
    run_all(at(2, 3), store)
    assert made_up.started == [(0, 1, 2, 3), (4, 5)]
    # What there is may begin later, and may be in several files.
    run_all(at(8, 2), store)
    assert seeds_of(extend.extending([at(0, 8)], store)) == [(0, 4), (4, 2), (6, 2)]
    assert seeds_of(extend.extending([at(0, 10)], store)) == [(0, 4), (4, 2), (8, 2), (6, 2)]
    # Seeds with gaps are no shard.
    assert seeds_of(extend.extending([at(0, 12)], store)) == [(0, 12)]


def test_settings_are_extended_together(tmp_path: Path, made_up: MadeUp) -> None:
    hypers = algorithms.get("ppo").hypers
    settings = (hypers(learning_rate=1e-3), hypers(learning_rate=3e-4))  # type: ignore[call-arg]
    store = Store(tmp_path)
    run_all(at(0, 2, hypers=settings), store)
    [kept, more] = extend.extending([at(0, 3, hypers=settings)], store)
    assert store.open(kept).path.exists()
    assert more.runs == ((2, settings[0]), (2, settings[1]))
    # Of one setting alone there is nothing.
    assert seeds_of(extend.extending([at(0, 3, hypers=settings[0])], store)) == [(0, 3)]


@pytest.mark.parametrize(
    "other", [{"steps": 4097}, {"label": "other"}, {"max_episode_steps": 9}, {"evaluations": 3}], ids=str
)
def test_seeds_of_another_command_are_not_extended(other: dict[str, Any], tmp_path: Path, made_up: MadeUp) -> None:
    store = Store(tmp_path)
    run_all(at(0, 4), store)
    assert seeds_of(extend.extending([at(0, 6, **other)], store)) == [(0, 6)]


def test_seeds_of_other_code_are_not_extended(tmp_path: Path, made_up: MadeUp, monkeypatch: pytest.MonkeyPatch) -> None:
    store, now = Store(tmp_path), provenance.session()
    run_all(at(0, 4), store)
    with monkeypatch.context() as patch:
        patch.setattr(provenance, "session", lambda: {**now, "rlsuite_sources": "0ther"})
        assert seeds_of(extend.extending([at(0, 6)], store)) == [(0, 6)]
    strip(store, at(0, 4))
    assert seeds_of(extend.extending([at(0, 6)], store)) == [(0, 6)]


def test_what_was_begun_or_finished_as_a_whole_stays_whole(tmp_path: Path, made_up: MadeUp) -> None:
    """As folders of before have it."""
    store = Store(tmp_path)
    local.run([at(0, 4), at(0, 6)], store, Settings(at_once(4).limits))
    assert seeds_of(extend.extending([at(0, 6)], store)) == [(0, 6)]
    store.open(at(0, 6)).path.unlink()
    store.open(at(0, 6)).partial.mkdir()
    assert seeds_of(extend.extending([at(0, 6)], store)) == [(0, 6)]


# --- Rows that go missing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lose", [Path.unlink, cut])
@pytest.mark.parametrize("update", [0, 8, 12])
def test_rows_that_go_missing_while_the_shard_runs_are_trained_again(
    update: int, lose: Any, tmp_path: Path, made_up: MadeUp, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = Store(tmp_path / "whole")
    local.run([long_shard()], whole, at_once(2))
    store, one = Store(tmp_path / "results"), long_shard()
    made_up.started.clear()

    def during_the_last_chunk(first_seed: int, index: int) -> None:
        if (first_seed, index) == (4, 3):
            lose(store.open(one).partial / f"runs000000-000001.update{update:012}.parquet")

    made_up.before_update = during_the_last_chunk
    capsys.readouterr()
    local.run([one], store, at_once(2))
    assert "  rows or policies of 2 runs were lost while the shard was running; they are trained again\n" in (
        capsys.readouterr().out
    )
    assert made_up.started == [(0, 1), (2, 3), (4,), (0, 1)]
    assert rows_of(store, one) == rows_of(whole, one)
    assert store.open(one).manifest()["run_seconds"] == whole.open(one).manifest()["run_seconds"]
    assert store.open(one).manifest()["diverged"] == 0


def test_rows_that_go_missing_again_and_again_are_an_error(tmp_path: Path, made_up: MadeUp) -> None:
    """And no endless loop, and nothing finished."""
    store, one = Store(tmp_path), long_shard()
    write = Entry.write_rows

    def never_there(self: Entry, first: int, evaluation: Any) -> None:
        write(self, first, evaluation)
        if (first, evaluation.update) == (2, 4):
            (store.open(one).partial / "runs000002-000003.update000000000004.parquet").unlink()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Entry, "write_rows", never_there)
        message = refusal(lambda: local.run([one], store, at_once(2)))
    assert "rows of update 4 for 2 of its runs" in message
    assert not store.open(one).path.exists()
    made_up.started.clear()
    local.run([one], store, at_once(2))
    assert made_up.started == [(2, 3)]
    assert len(rows_of(store, one)) == 5 * 4


def test_a_policy_that_goes_missing_is_learned_again(
    tmp_path: Path, made_up: MadeUp, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, one = Store(tmp_path), long_shard()

    def lose(first_seed: int, index: int) -> None:
        if (first_seed, index) == (4, 3):
            (store.open(one).partial / "policies000002-000003.arrow").unlink()

    monkeypatch.setattr(policies, "leaves", lambda *_: {"leaf0000": np.zeros((2, 1))})
    made_up.before_update = lose
    local.run([one], store, at_once(2)._replace(save_policies=True))
    assert made_up.started == [(0, 1), (2, 3), (4,), (2, 3)]
    assert len(rows_of(store, one)) == 5 * 4
    assert store.open(one).policies_path.exists()
