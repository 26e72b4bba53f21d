"""Harness of the reference tests: gradients of NumPy losses by complex steps, and comparisons in both precisions.

A reference is a loss in NumPy and float64, written from the mathematics. Nobody derives its gradient by hand: the
derivative by a parameter is the imaginary part of loss(parameter + ih) over h (Squire and Trapp 1998). No two nearby
numbers are subtracted, so that h = 1e-30 loses no digit, and no kink is crossed, since real parts alone choose a side.

A loss must be made of what NumPy continues to complex numbers: arithmetic, exp, log, tanh, comparisons, `where`,
`minimum`, `maximum`, `clip`, `ndtr`. NumPy orders complex numbers by their real parts. Not among them are `np.abs`,
`np.sign`, `np.std` and `np.var`, which take moduli, and `np.logaddexp`; there are functions below.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
import pytest
from numpy_nets import FloatArray, Tree

STEP = 1e-30

# Gradients.


def held(tree: Tree) -> Tree:
    """A constant of the gradient: what a method stops the gradient at."""
    return jax.tree.map(np.real, tree)


def grad(loss: Callable[[Tree], Any], params: Tree) -> Tree:
    """The gradient of `loss(params)`, a number, by every parameter."""
    leaves, structure = jax.tree.flatten(params)
    slopes = [np.zeros(np.shape(leaf)) for leaf in leaves]
    for i, leaf in enumerate(leaves):
        moved = np.array(leaf, np.complex128)
        tree = jax.tree.unflatten(structure, [*leaves[:i], moved, *leaves[i + 1 :]])
        for j in range(moved.size):
            moved.flat[j] += 1j * STEP
            slopes[i].flat[j] = np.imag(loss(tree)) / STEP
            moved.flat[j] = np.real(moved.flat[j])
    return jax.tree.unflatten(structure, slopes)


def value_and_grad(loss: Callable[[Tree], Any], params: Tree) -> tuple[float, Tree]:
    """`loss(params)` and its gradient."""
    return float(loss(params)), grad(loss, params)


# Functions that NumPy does not continue to complex numbers.


def absolute(x: FloatArray) -> FloatArray:
    """|x|"""
    return np.where(x < 0.0, -x, x)


def log_cosh(x: FloatArray) -> FloatArray:
    """log cosh x, which does not overflow."""
    size = absolute(x)
    return size + np.log1p(np.exp(-2.0 * size)) - np.log(2.0)


def softplus(x: FloatArray) -> FloatArray:
    """log(1 + exp x), which does not overflow."""
    return np.maximum(x, 0.0) + np.log1p(np.exp(-absolute(x)))


def log_sum_exp(x: FloatArray, axis: int) -> FloatArray:
    """log sum exp x along an axis, which does not overflow."""
    largest = np.max(np.real(x), axis=axis, keepdims=True)
    return np.squeeze(largest, axis) + np.log(np.sum(np.exp(x - largest), axis=axis))


# Comparisons.


def precisions(in_float64: float, in_float32: float = 1e-5) -> pytest.MarkDecorator:
    """Parameters of a test: a type, and how far results in it may be off."""
    pairs = [(np.float64, in_float64), (np.float32, in_float32)]
    return pytest.mark.parametrize(("dtype", "tolerance"), pairs, ids=["float64", "float32"])


@contextlib.contextmanager
def computing(dtype: Any) -> Iterator[None]:
    """JAX computes in this type, with all of its digits."""
    with jax.enable_x64(dtype is np.float64), jax.default_matmul_precision("highest"):
        yield


def assert_metrics(got: dict[str, Any], want: dict[str, Any], tolerance: float) -> None:
    """Means of terms of order 1 that may cancel, so the tolerance is absolute as well as relative."""
    wanted = {name: float(x) for name, x in want.items()}
    assert {name: float(x) for name, x in got.items()} == pytest.approx(wanted, rel=tolerance, abs=tolerance)


def assert_reached(problems: Iterable[dict[str, Any]], at_least: int) -> None:
    """Every case, named with whether each sample is one, is met so often in all problems together."""
    reached: dict[str, int] = {}
    for cases in problems:
        for name, hits in cases.items():
            reached[name] = reached.get(name, 0) + int(np.sum(hits))
    assert min(reached.values()) >= at_least, reached
