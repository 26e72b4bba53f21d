"""`envs/lapack.py`: no batch reaches a LAPACK kernel of a jaxlib that may hang, and the numbers stay the same."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs
from envs import lapack

BATCH, SIZE = 6, 5


def positive_definite() -> np.ndarray:
    """`[BATCH, SIZE, SIZE]` float32"""
    x = np.random.default_rng(0).normal(size=(BATCH, SIZE, SIZE)).astype(np.float32)
    return x @ x.swapaxes(1, 2) + SIZE * np.eye(SIZE, dtype=np.float32)


def solve(a: Any, b: Any) -> Any:
    """The way MJX and brax solve: `[SIZE, SIZE]`, `[SIZE]` -> `[SIZE]`."""
    return jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(a), b)


def kernels(program: Any) -> list[str]:
    """The type of the first operand of every LAPACK kernel in a lowered program."""
    return re.findall(r"@lapack_\w+\([^)]*\).*? : \(tensor<([^>]*)>", program.as_text())


@pytest.mark.parametrize("stacked", [1, 2], ids=["a batch", "a batch of batches"])
def test_a_batch_is_solved_as_its_matrices_are(stacked: int) -> None:
    envs.make("mujoco/InvertedPendulum-v5")  # whoever can make an environment is served
    a, b = positive_definite(), np.random.default_rng(1).normal(size=(BATCH, SIZE)).astype(np.float32)
    alone = jax.jit(solve)
    expected = np.stack([alone(*one) for one in zip(a, b, strict=True)])
    batched = jax.vmap(solve)
    if stacked == 2:
        a, b, batched = a.reshape(2, 3, SIZE, SIZE), b.reshape(2, 3, SIZE), jax.vmap(batched)
    program = jax.jit(batched).lower(a, b)
    np.testing.assert_array_equal(np.reshape(program.compile()(a, b), (BATCH, SIZE)), expected)
    found = kernels(program)
    assert len(found) >= 3, "a factorisation and two triangular systems"
    if lapack.has_the_fault():
        assert {kernel.count("x") for kernel in found} == {2}, f"a kernel works on a batch: {found}"


def test_a_matrix_that_is_not_positive_definite_leaves_its_neighbours_alone() -> None:
    envs.make("mujoco/InvertedPendulum-v5")
    a = positive_definite()
    a[1] = -a[1]
    factors = np.asarray(jax.jit(jax.vmap(jnp.linalg.cholesky))(a))
    assert np.isnan(factors[1]).any()
    assert np.isfinite(factors[[0, 2, 3, 4, 5]]).all()
