"""The policies of finished runs, kept next to their results: the numbers that `act` reads, and no others.

A state also holds what only learning needs: optimisers, critics, replay buffers, environments. Which leaves of it
matter follows from the program: a leaf that no operation of `act` takes cannot change an action. So no algorithm has to
say it, and none can say it wrongly. A leaf that is taken in vain, such as PPO's value network, is kept along.

On disk they are columns of an Arrow file, `leaf0003` for the fourth leaf of the state (`trained.disk_order`), one row
per run: plain numbers, in a size of about four bytes for each parameter of the policy (PPO's default networks on
Hopper: 40 kB a run; SAC's: 280 kB).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pyarrow as pa

import envs
from envs.core import Env
from envs.datasets import Dataset
from rlsuite import algorithms
from rlsuite.core import Algorithm, State, Task
from rlsuite.errors import UserError
from rlsuite.pieces.trained import disk_order
from rlsuite.sweeping import catalogue, entry, provenance
from rlsuite.training import train
from rlsuite.training.progress import say

Array = jax.Array

PREFIX = "leaf"


def state_shapes(algorithm: Algorithm, task: Task, hypers: Any) -> State:
    """The shapes and dtypes of one run's state. Nothing is compiled."""
    return jax.eval_shape(partial(train.init, algorithm), task, jnp.uint32(0), hypers).state


def read_by_act(algorithm: Algorithm, task: Task, shapes: State) -> list[int]:
    """The positions, among the leaves of the state, of those that the policy computes with."""
    leaves, structure = jax.tree.flatten(shapes)

    def act(leaves: list[Array], obs: Array) -> Array:
        return algorithm.act(jax.random.key(0), task, jax.tree.unflatten(structure, leaves), obs)

    obs = jax.ShapeDtypeStruct((task.env.obs_dim,), jnp.float32)
    program = jax.make_jaxpr(act)(leaves, obs).jaxpr
    taken = {id(value) for operation in program.eqns for value in operation.invars}
    taken |= {id(value) for value in program.outvars}
    return [i for i, value in enumerate(program.invars[: len(leaves)]) if id(value) in taken]


def leaves(algorithm: Algorithm, task: Task, hypers: Any, state: State) -> dict[str, Array]:
    """The columns for these runs' state, `[runs, ...]` each. `hypers` is an example."""
    every, names = jax.tree.leaves(state), columns(state)
    kept = read_by_act(algorithm, task, state_shapes(algorithm, task, hypers))
    return {names[i]: every[i] for i in kept if every[i].size}


def columns(state: State) -> list[str]:
    """The name of each leaf's column, in the order of the leaves; see `disk_order`."""
    names = {position: f"{PREFIX}{number:04}" for number, position in enumerate(disk_order(state))}
    return [names[position] for position in range(len(names))]


class Policy(NamedTuple):
    """What one run has learned."""

    run: int
    seed: int
    update: int
    """updates that it has learned for"""
    diverged: bool
    """its numbers are not all finite"""
    leaves: list[Array]
    """the kept ones"""


class Trained(NamedTuple):
    """A finished shard whose policies were saved, ready to act."""

    manifest: dict[str, Any]
    algorithm: Algorithm
    task: Task
    table: pa.Table
    """one row per run"""
    structure: Any
    shapes: list[jax.ShapeDtypeStruct]
    """of all leaves of the state"""
    names: list[str]
    """of their columns"""
    kept: list[int]
    """positions of `Policy.leaves` among them"""

    def policy(self, row: int) -> Policy:
        """The policy in this row of the table."""
        one = self.table.slice(row, 1)

        def leaf(i: int) -> Array:
            values = one[self.names[i]].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            return jnp.asarray(values.reshape(self.shapes[i].shape))

        facts = {name: one[name][0].as_py() for name in ("run", "seed", "update", "diverged")}
        return Policy(**facts, leaves=[leaf(i) for i in self.kept])

    def state(self, leaves: list[Array]) -> State:
        """A state that acts as the policy with these leaves; zeros are where `act` does not look. To be traced."""
        every = [jnp.zeros(shape.shape, shape.dtype) for shape in self.shapes]
        for i, leaf in zip(self.kept, leaves, strict=True):
            every[i] = leaf
        return jax.tree.unflatten(self.structure, every)


def load(run: str | Path) -> Trained:
    """The policies of the shard `run`: a path without ending, such as `results/run/<shard>`, or of one of its files,
    or of the folder, if there is one shard only.

    Raises:
        UserError: there is no such shard, it is not finished, its policies were not saved or are damaged, or they are
            those of another version of the algorithm.
    """
    base = find(Path(run))
    manifest = json.loads(base.with_name(base.name + ".json").read_text())
    path = base.with_name(base.name + entry.POLICIES)
    if not path.exists():
        state = "has no saved policies" if base.with_name(base.name + ".parquet").exists() else "is not finished"
        raise UserError(
            f"'{base}' {state}; train it to its end without --no-save-policies, for example under another --name"
        )
    spec = algorithms.get(manifest["algorithm"])
    try:
        given = {k: tuple(v) if isinstance(v, list) else v for k, v in manifest["config"].items()}
        config = spec.config(**without_former(given, spec.former))
        hypers = spec.hypers(**without_former(manifest["hypers"][0], spec.former_hypers))
        env = envs.make(manifest["environment"], max_episode_steps=manifest["max_episode_steps"])
        task = Task(env, dataset_of(manifest, env))
    except (TypeError, ValueError, ImportError) as error:
        raise UserError(f"'{base}' cannot be used with this version of rlsuite ({error})") from error
    if changed := provenance.changed_since(manifest):
        say(f"played with other code than '{base.name}' was trained with: {changed}")
    algorithm = spec.make(spec.fit(config, manifest["steps"]))
    shapes, structure = jax.tree.flatten(state_shapes(algorithm, task, hypers))
    kept = [i for i in read_by_act(algorithm, task, jax.tree.unflatten(structure, shapes)) if shapes[i].size]
    table = entry.read_policies(path)
    names = columns(jax.tree.unflatten(structure, shapes))
    widths = {names[i]: shapes[i].size for i in kept}
    there = {field.name: field.type.list_size for field in table.schema if pa.types.is_fixed_size_list(field.type)}
    if there != widths:
        raise UserError(
            f"'{path}' holds the policies of another version of '{manifest['algorithm']}'; train it again, for example "
            "under another --name"
        )

    return Trained(manifest, algorithm, task, table, structure, shapes, names, kept)


def without_former(values: dict[str, Any], former: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an old manifest without those that are gone and had the value that they always have now.

    Raises:
        ValueError: one that is gone had another value, with which the method is another one now.
    """
    for name, value in former.items():
        if values.get(name, value) != value:
            raise ValueError(
                f"trained with {name}={values[name]!r}, a method of its own now: `rlsuite list algorithms` names it"
            )
    return {name: value for name, value in values.items() if name not in former}


def dataset_of(manifest: dict[str, Any], env: Env) -> Dataset | None:
    """What an offline policy learned from, which it needs to see observations as it did then; None online.

    Raises:
        UserError: it is not there any more, or another one has its name.
    """
    if "dataset" not in manifest:
        return None
    clip_actions = manifest.get("clip_actions", False)
    dataset = catalogue.read(manifest["dataset"], env, manifest["sampling"], clip_actions)
    if dataset.checksum != manifest["dataset_checksum"]:
        raise UserError(
            f"dataset '{dataset.id}' has the checksum {dataset.checksum}, but the policy learned from "
            f"{manifest['dataset_checksum']}; restore the one that it learned from"
        )
    return dataset


def find(path: Path) -> Path:
    """The path of a shard without an ending. Raises UserError where there is none, or more than one."""
    for ending in (entry.POLICIES, ".parquet", ".json", ""):
        base = path.with_name(path.name.removesuffix(ending)) if path.name else path
        if base.name and base.with_name(base.name + ".json").is_file():
            return base
    found = sorted(path.glob(f"*{entry.POLICIES}")) if path.is_dir() else []
    if len(found) == 1:
        return found[0].with_name(found[0].name.removesuffix(entry.POLICIES))
    if found:
        names = ", ".join(file.name.removesuffix(entry.POLICIES) for file in found[:4])
        raise UserError(f"'{path}' holds {len(found)} shards with policies; name one of them, such as {names}")
    raise UserError(
        f"no finished shard '{path}'; expected a path such as results/run/<shard>, trained by 'rlsuite run' or 'sweep'"
    )
