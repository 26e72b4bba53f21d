"""MuJoCo Warp: MJX' implementation in NVIDIA's Warp, made for many environments on a GPU.

It is chosen by `mujoco/Hopper-v5+implementation=warp`. The physics are those of `envs/mujoco.py`, whose Runge-Kutta
method serves here too, because Warp's own adds up angular velocities as MJX' does, and the frames of steep capsules,
which it takes as MJX does, are mended in `envs/warp_contacts.py`. All is float32. On a processor it works too, but
slower than MJX in JAX, so that there it serves tests alone.

Warp keeps the contacts of all environments in one array and drops those that find no place in it. Its length must be
known when the program is traced: `knowing_how_many` finds out how many environments there are, and `most_contacts`
bounds the contacts of each, so that none is ever dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

SIMPLE_CONTACTS, OTHER_CONTACTS = 2, 8
"""The most contacts between two geoms: planes, spheres and capsules among themselves, and any others"""


def unavailable() -> str | None:
    """Why MuJoCo Warp cannot run here and what to do, or None if it can."""
    try:
        import warp  # noqa: F401
    except (ImportError, RuntimeError) as error:
        return f"the package 'warp' cannot be imported ({error}); install it with: pip install warp-lang"
    if jax.default_backend() not in ("cpu", "gpu"):
        return f"it needs a CUDA GPU or a processor, and JAX runs on {jax.default_backend()!r}"
    if jnp.result_type(float) == jnp.float64:
        return "it computes in float32 alone, and JAX is set to 64 bits; unset JAX_ENABLE_X64"
    return None


def knowing_how_many(compute: Callable[..., Any], *arguments: Any) -> Any:
    """`compute(number, *arguments)`, where `number` is how many of it `jax.vmap` computes at once, over all its levels.

    What is not batched in `arguments` stays so.
    """
    leaves, tree = jax.tree.flatten(arguments)

    def at_once(number: int | None, axes: tuple[int | None, ...]) -> Any:
        """The function of these leaves, those with the axis 0 for `number` of it, if that is not None."""

        def single(*leaves: jax.Array) -> Any:
            return compute(number or 1, *jax.tree.unflatten(tree, leaves))

        call = jax.custom_batching.custom_vmap(single if number is None else jax.vmap(single, in_axes=axes))

        @call.def_vmap
        def rule(size: int, batched: list[bool], *leaves: jax.Array) -> tuple[Any, Any]:
            new_axes = tuple(0 if new or axis == 0 else None for new, axis in zip(batched, axes, strict=True))
            if number is None:
                found = at_once(size, new_axes)(*leaves)
            else:
                # Both batches become one, `[size * number, ...]`; what was in one of them is repeated over the other.
                merged = []
                for leaf, new, axis in zip(leaves, batched, axes, strict=True):
                    if new or axis == 0:
                        leaf = leaf if new else leaf[None]
                        leaf = leaf if axis == 0 else leaf[:, None]
                        shape = leaf.shape[2:]
                        leaf = jnp.broadcast_to(leaf, (size, number, *shape)).reshape(size * number, *shape)
                    merged.append(leaf)
                found = at_once(size * number, new_axes)(*merged)
                found = jax.tree.map(lambda x: x.reshape(size, number, *x.shape[1:]), found)
            return found, jax.tree.map(lambda _: True, found)

        return call

    return at_once(None, (None,) * len(leaves))(*leaves)


def most_contacts(mj_model: Any) -> tuple[int, int]:
    """Upper bounds of an environment's contacts and of its constraints, for models with friction pyramids."""
    import mujoco
    from mujoco.mjx._src import collision_driver  # the pairs that MuJoCo would look at have no public name

    simple = {mujoco.mjtGeom.mjGEOM_PLANE, mujoco.mjtGeom.mjGEOM_SPHERE, mujoco.mjtGeom.mjGEOM_CAPSULE}
    contacts = rows = 0
    for first, second, _ in collision_driver.geom_pairs(mj_model):
        types = {mujoco.mjtGeom(mj_model.geom_type[geom]) for geom in (first, second)}
        number = SIMPLE_CONTACTS if types <= simple else OTHER_CONTACTS
        dimensions = max(mj_model.geom_condim[first], mj_model.geom_condim[second])
        contacts += number
        rows += number * max(1, 2 * (int(dimensions) - 1))
    rows += int(mj_model.jnt_limited.sum() + (mj_model.dof_frictionloss > 0).sum())
    return contacts, rows


def make_data(mj_model: Any, number: int) -> Any:
    """One environment's mjx.Data among `number` that share their contacts."""
    from mujoco import mjx

    contacts, rows = most_contacts(mj_model)
    with jax.ensure_compile_time_eval():
        return mjx.make_data(mj_model, impl="warp", naconmax=max(1, contacts) * number, njmax=max(1, rows))


def model_like(mj_model: Any, model: Any) -> Any:
    """Warp's model with the parameters and options of `model`, MJX' model in JAX of the same `mj_model`."""
    import warp
    from mujoco import mjx

    from envs import warp_contacts

    warp_contacts.align()
    warp.config.log_level = warp.LOG_WARNING  # no line for each kernel that it compiles
    with jax.ensure_compile_time_eval():
        ours = mjx.put_model(mj_model, impl="warp")
    option = ours.opt.replace(**shared(ours.opt, model.opt))
    option = option.replace(_impl=option._impl.replace(run_rne_postconstraint=True))
    return ours.replace(**shared(ours, model), opt=option)


def shared(ours: Any, theirs: Any) -> dict[str, Any]:
    """What both keep, but the parts of their own: arrays of `theirs` in the shapes of `ours`, and plain numbers."""
    found = {}
    for field in type(ours).fields():
        old, new = vars(ours)[field.name], vars(theirs)[field.name]
        if isinstance(old, jax.Array) and isinstance(new, jax.Array):
            found[field.name] = new.reshape(old.shape).astype(old.dtype)
        elif isinstance(old, int):  # also the kinds of solver and integrator
            found[field.name] = new
    return found
