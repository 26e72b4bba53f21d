"""A remedy for jaxlib 0.10, in which two batched factorisations at once can hang a processor for ever.

There a LAPACK kernel on a batch hands parts of it to the thread pool that it runs on itself, and waits for them. When
as many kernels wait as the pool has threads, nobody is left to do the work: simulators that factorise mass matrices and
Hessians of many environments at once (MJX, brax generalized) came to a stop on two cores, sometimes after seconds,
sometimes after minutes. jaxlib 0.11 computes such a batch on one thread, and so does this, with the same results to
the last bit. A loop costs half a microsecond a matrix, which is lost in what these simulators take anyway. One matrix
alone, and every accelerator, is served as before.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jaxlib
from jax.interpreters import mlir

Array = jax.Array

PRIMITIVES = (jax.lax.linalg.cholesky_p, jax.lax.linalg.triangular_solve_p)
"""what the simulators use"""


def has_the_fault() -> bool:
    """Whether this jaxlib may hang."""
    return tuple(map(int, jaxlib.__version__.split(".")[:2])) < (0, 11)


@functools.cache
def one_matrix_at_a_time() -> None:
    """From now on compile batches of LAPACK's work for processors as a loop, where that is needed."""
    if has_the_fault():
        for primitive in PRIMITIVES:
            mlir.register_lowering(primitive, _serial(primitive), platform="cpu")


def _serial(primitive: Any) -> Any:
    """The rule that compiles `primitive`: as JAX does for one matrix, a loop over them for a batch."""
    lowering = mlir._platform_specific_lowerings["cpu"][primitive].rule

    def rule(ctx: Any, *operands: Any, **settings: Any) -> Any:
        if ctx.avals_in[0].ndim == 2:
            return lowering(ctx, *operands, **settings)

        def loop(*matrices: Array) -> Array:
            batch = matrices[0].shape[:-2]
            flat = tuple(x.reshape(math.prod(batch), *x.shape[-2:]) for x in matrices)
            solved: Array = jax.lax.map(lambda one: primitive.bind(*one, **settings), flat)
            return solved.reshape(*batch, *solved.shape[1:])

        return mlir.lower_fun(loop, multiple_results=False)(ctx, *operands)

    return rule
