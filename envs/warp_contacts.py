"""The contact of a plane with a capsule as MuJoCo frames it, for MuJoCo Warp; see `mujocos_contacts` in
`envs/mujoco.py`, whose remedy this is once more. To be imported where Warp is there.

Warp translates the source of the function below, and reads its annotations as they are: no postponed ones here.
"""

import functools
from typing import Any

import warp as wp
from mujoco.mjx.third_party.mujoco_warp._src import collision_primitive, collision_primitive_core

own: Any = collision_primitive_core.plane_capsule


@wp.func
def plane_capsule(  # type: ignore[no-untyped-def]
    plane_normal: wp.vec3,
    plane_pos: wp.vec3,
    capsule_pos: wp.vec3,
    capsule_axis: wp.vec3,
    capsule_radius: float,
    capsule_half_length: float,
):
    """Distances, positions and frame of both contacts: the first tangent lies along the capsule, however steep."""
    dist, pos, frame = own(plane_normal, plane_pos, capsule_pos, capsule_axis, capsule_radius, capsule_half_length)
    n = plane_normal
    across = capsule_axis - n * wp.dot(n, capsule_axis)
    length = wp.length(across)  # type: ignore[call-overload]
    if length > 1.0e-15:
        b = across / length
        c = wp.cross(n, b)
        frame = wp.mat33(n[0], n[1], n[2], b[0], b[1], b[2], c[0], c[1], c[2])  # type: ignore[index]
    return dist, pos, frame


@functools.cache
def align() -> None:
    """From now on let all that Warp compiles for MuJoCo in this process use `plane_capsule`."""
    collision_primitive.plane_capsule = plane_capsule
