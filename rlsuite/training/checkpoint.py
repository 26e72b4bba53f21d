"""Exact resume: snapshots of everything that a chunk of runs needs to go on, written by Orbax while training goes on.

A snapshot is one flat table of arrays, so that it can be read without the program that made it: the leaves of
`train.Learning` by their number, see `trained.disk_order`, and the last evaluation. It becomes visible under its number
only when it is whole; the newest whole one wins, and older ones than the last two are removed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from rlsuite.errors import UserError
from rlsuite.pieces.trained import disk_order
from rlsuite.training.train import Evaluation, Learning, Training

KEPT = 2
"""Snapshots that are kept: the newest, and the one before it in case that one cannot be read."""

LEAF, EPISODES, METRIC = "learning/", "evaluation/", "metric/"
EVALUATION_ARRAYS = ("returns", "lengths", "diverged", "nonfinite")


class Snapshot(NamedTuple):
    """A chunk of a shard, stopped between two segments."""

    first: int
    """position of the chunk's first run in the shard"""
    stop: int
    """one past its last run"""
    training: Training


class CannotSave(UserError):
    """A snapshot cannot be written; those written before stay."""


class Snapshots:
    """The snapshots of one chunk, in a folder of their own.

    Raises:
        CannotSave: a snapshot cannot be written; those written before stay. A failure in the background is raised by
            the next `save` or by `wait`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Orbax logs, with a page of traceback each, the errors that it raises as well.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        options = ocp.CheckpointManagerOptions(max_to_keep=KEPT, cleanup_tmp_directories=True)
        with self._writing():
            self._manager = ocp.CheckpointManager(folder.absolute(), options=options)
        self._number = max(self._manager.all_steps(), default=0)

    def save(self, snapshot: Snapshot) -> None:
        """Copy the snapshot into host memory, then write it in the background."""
        self.wait()
        training = snapshot.training
        evaluation = training.evaluation
        # Views; Orbax copies them before it returns, and none may outlive this call, or donation would copy instead.
        leaves = jax.tree.leaves(training.learning)
        numbered = enumerate(leaves[position] for position in disk_order(training.learning))
        arrays = {f"{LEAF}{number:04}": np.asarray(leaf) for number, leaf in numbered if leaf.size}
        del leaves, numbered
        arrays |= {EPISODES + name: np.asarray(getattr(evaluation, name)) for name in EVALUATION_ARRAYS}
        arrays |= {METRIC + name: np.asarray(value) for name, value in evaluation.metrics.items()}
        facts = {
            "first": snapshot.first,
            "stop": snapshot.stop,
            "training": {name: getattr(training, name) for name in ("update", "step", "seconds")},
            "evaluation": {name: getattr(evaluation, name) for name in ("update", "step", "wall_seconds")},
        }
        self._number += 1
        parts = ocp.args.Composite(arrays=ocp.args.StandardSave(arrays), facts=ocp.args.JsonSave(facts))
        with self._writing():
            self._manager.save(self._number, args=parts, force=True)

    def wait(self) -> None:
        """Until nothing is being written."""
        with self._writing():
            self._manager.wait_until_finished()

    def newest(self, learning: Learning) -> tuple[Snapshot | None, list[str]]:
        """The newest snapshot that can be read, and a line about each newer one that cannot.

        `learning` gives the structure, shapes `[width, ...]` and dtypes that the arrays must have.
        """
        damaged: list[str] = []
        for number in sorted(self._manager.all_steps(), reverse=True):
            try:
                return self._read(number, learning), damaged
            except Exception as error:  # whatever a damaged file makes of its reader
                reason = " ".join(str(error).split())[:120]
                damaged.append(f"snapshot '{self.folder / str(number)}' cannot be read ({reason})")
        return None, damaged

    def close(self) -> None:
        """Finish writing and let go of the folder."""
        with self._writing():  # Orbax raises here again what `wait` has raised
            self._manager.close()

    def _read(self, number: int, learning: Learning) -> Snapshot:
        parts = ocp.args.Composite(arrays=ocp.args.StandardRestore(), facts=ocp.args.JsonRestore())
        restored = self._manager.restore(number, args=parts)
        arrays: dict[str, Any] = restored.arrays
        facts: dict[str, Any] = restored.facts
        leaves, structure = jax.tree.flatten(learning)
        found = list(leaves)
        for number, position in enumerate(disk_order(learning)):
            leaf = leaves[position]
            value = np.asarray(arrays[f"{LEAF}{number:04}"]) if leaf.size else np.zeros(leaf.shape, leaf.dtype)
            if value.shape != leaf.shape or value.dtype != leaf.dtype:
                raise ValueError(f"leaf {number} is {value.dtype}{value.shape}, expected {leaf.dtype}{leaf.shape}")
            found[position] = value
        # Snapshots from before this was kept do not have it.
        nothing = np.zeros(len(arrays[EPISODES + "diverged"]), np.uint8)
        evaluation = Evaluation(
            **facts["evaluation"],
            returns=np.asarray(arrays[EPISODES + "returns"]),
            lengths=np.asarray(arrays[EPISODES + "lengths"]),
            diverged=np.asarray(arrays[EPISODES + "diverged"]),
            nonfinite=np.asarray(arrays.get(EPISODES + "nonfinite", nothing)),
            metrics={
                name.removeprefix(METRIC): np.asarray(value)
                for name, value in sorted(arrays.items())
                if name.startswith(METRIC)
            },
        )
        training = Training(jax.tree.unflatten(structure, found), evaluation=evaluation, **facts["training"])
        return Snapshot(facts["first"], facts["stop"], training)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            raise CannotSave(
                f"snapshot in '{self.folder}' cannot be written ({reason(error)}); what was saved before is intact. "
                "Free some space or choose another folder with --results, then run the same command again"
            ) from error


def reason(error: Exception) -> str:
    """Why a snapshot cannot be written, in a line: of a page of Orbax's, what the system has said."""
    text = " ".join(str(error).split())
    found = re.search(r"os_error_code='(\d+)'", text)
    return os.strerror(int(found[1])) if found else text[:200]
