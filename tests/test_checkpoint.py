"""Snapshots: what comes back, which one wins, and what a damaged one does."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlsuite.errors import UserError
from rlsuite.training.checkpoint import KEPT, Snapshot, Snapshots
from rlsuite.training.train import Evaluation, Learning, Training

WIDTH = 4


def snapshot(update: int) -> Snapshot:
    """Three runs and one of padding, with every kind of leaf that a state has."""
    rng = np.random.default_rng(update)
    state = {
        "parameters": [jnp.asarray(rng.normal(size=(WIDTH, 3, 2)), jnp.float32)],
        "key": jnp.asarray(rng.integers(0, 2**32, (WIDTH, 2)), jnp.uint32),
        "done": jnp.asarray(rng.integers(0, 2, WIDTH), bool),
        "nothing": jnp.zeros((WIDTH, 0)),
        "not a number": jnp.full(WIDTH, jnp.nan),
    }
    learning = Learning(state, {"loss": jnp.asarray(rng.normal(size=WIDTH), jnp.float32)})
    evaluation = Evaluation(
        update=update,
        step=16 * update,
        wall_seconds=0.1 + update,
        returns=rng.normal(size=(3, 5)).astype(np.float32),
        lengths=rng.integers(1, 9, (3, 5)).astype(np.int32),
        metrics={"loss": rng.normal(size=3).astype(np.float32)} if update else {},
        diverged=np.array([False, True, False]),
        nonfinite=np.array([0, 9, 32], np.uint8),
    )
    return Snapshot(6, 9, Training(learning, update, evaluation, 16 * update, 0.3 + update))


def holding(state: Any) -> Snapshot:
    """A snapshot whose state is this array."""
    given = snapshot(1)
    return given._replace(training=given.training._replace(learning=Learning(state, {})))


SHAPES: Learning = jax.eval_shape(lambda: snapshot(0).training.learning)


def assert_same(a: Snapshot | None, b: Snapshot) -> None:
    assert a is not None
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)
        assert np.asarray(x).dtype == np.asarray(y).dtype


@pytest.mark.parametrize("update", [0, 7])
def test_everything_comes_back_in_another_process(tmp_path: Path, update: int) -> None:
    writer = Snapshots(tmp_path / "snapshot")
    writer.save(snapshot(update))
    writer.close()
    read, damaged = Snapshots(tmp_path / "snapshot").newest(SHAPES)
    assert_same(read, snapshot(update))
    assert not damaged


def test_the_newest_wins_and_old_ones_go(tmp_path: Path) -> None:
    for updates in ([3, 9], [4, 5]):  # a chunk that comes later may have fewer updates
        writer = Snapshots(tmp_path / "snapshot")
        for update in updates:
            writer.save(snapshot(update))
        writer.close()
    assert_same(Snapshots(tmp_path / "snapshot").newest(SHAPES)[0], snapshot(5))
    assert len([path for path in (tmp_path / "snapshot").iterdir() if path.name.isdigit()]) == KEPT


def test_without_a_snapshot_there_is_none(tmp_path: Path) -> None:
    assert Snapshots(tmp_path / "snapshot").newest(SHAPES) == (None, [])


def test_what_is_saved_is_what_was_there_at_that_moment(tmp_path: Path) -> None:
    """Training goes on and overwrites its donated buffers while Orbax is still writing."""
    big = jnp.arange(WIDTH * 250_000, dtype=jnp.float32).reshape(WIDTH, -1)
    expected = np.array(big)
    writer = Snapshots(tmp_path / "snapshot")
    writer.save(holding(big))
    overwrite = jax.jit(lambda x: x * 0.0 - 1.0, donate_argnums=0)
    for _ in range(3):
        big = overwrite(big)
    writer.close()
    read, _ = Snapshots(tmp_path / "snapshot").newest(jax.eval_shape(lambda: Learning(big, {})))
    assert read is not None
    np.testing.assert_array_equal(read.training.learning.state, expected)


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_a_truncated_snapshot_gives_way_to_the_one_before(tmp_path: Path) -> None:
    """Each of its files in turn, at several lengths: what is read is right, wherever the damage is."""
    folder = tmp_path / "snapshot"
    writer = Snapshots(folder)
    for update in (3, 9):
        writer.save(snapshot(update))
    writer.close()
    newest = max((path for path in folder.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
    gave_way = 0
    for path in files_of(newest):
        whole = path.read_bytes()
        for length in {0, len(whole) // 2, len(whole) - 1}:
            path.write_bytes(whole[:length])
            read, damaged = Snapshots(folder).newest(SHAPES)
            assert_same(read, snapshot(3) if damaged else snapshot(9))
            if damaged:
                gave_way += 1
                assert str(newest) in damaged[0] and "\n" not in damaged[0]
        path.write_bytes(whole)
    assert gave_way >= 6, "no file that matters was found"
    assert_same(Snapshots(folder).newest(SHAPES)[0], snapshot(9))


def test_a_snapshot_of_another_program_is_none(tmp_path: Path) -> None:
    writer = Snapshots(tmp_path / "snapshot")
    writer.save(snapshot(3))
    writer.close()
    wider = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2 * WIDTH, *x.shape[1:]), x.dtype), SHAPES)
    read, damaged = Snapshots(tmp_path / "snapshot").newest(wider)
    assert read is None and len(damaged) == 1 and "expected" in damaged[0]


def test_a_full_disk_is_one_line_and_keeps_what_was_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Snapshots(tmp_path / "snapshot")
    writer.save(snapshot(3))
    writer.wait()

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer._manager, "save", full)
    with pytest.raises(UserError, match=r"cannot be written .*No space left.*intact"):
        writer.save(snapshot(9))
    assert_same(Snapshots(tmp_path / "snapshot").newest(SHAPES)[0], snapshot(3))


@pytest.mark.parametrize("name", ["save", "wait_until_finished", "close"])
def test_an_error_of_orbax_says_what_the_system_has_said(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At any time: what was written in the background may fail once more when the folder is let go of."""
    writer = Snapshots(tmp_path / "snapshot")

    def full(*arguments: Any, **options: Any) -> None:
        raise ValueError("RESOURCE_EXHAUSTED: Error opening a driver: a page of text [os_error_code='28'] and more")

    monkeypatch.setattr(writer._manager, name, full)
    with pytest.raises(
        UserError, match=r"cannot be written \(No space left on device\); what was saved before is intact"
    ):
        writer.close() if name == "close" else writer.save(snapshot(3))


def test_a_disk_that_fills_up_in_the_background_is_told_at_the_next_chance(tmp_path: Path) -> None:
    writer = Snapshots(tmp_path / "snapshot")
    writer.save(snapshot(3))
    writer.wait()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(UserError, match=r"cannot be written \(File too large\); .*intact"):
            writer.save(holding(jnp.asarray(np.random.default_rng(0).normal(size=(WIDTH, 250_000)))))
            writer.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert_same(Snapshots(tmp_path / "snapshot").newest(SHAPES)[0], snapshot(3))
