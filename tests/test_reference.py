"""The harness of the reference tests: its gradients are those of central differences and of closed forms."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from numpy_nets import Tree, dot, mlp, perceptron, slope
from reference import absolute, assert_reached, grad, held, log_cosh, log_sum_exp, softplus, value_and_grad
from scipy.special import expit, ndtr, softmax


def loss(params: Tree, x: Any) -> Any:
    """Something of every operation that references are made of."""
    out = [perceptron(params["net"], x, activation) for activation in ("tanh", "relu")]
    size = np.exp(params["log_size"])
    smaller = np.minimum(*out) + np.where(out[0] < out[1], out[0] ** 3, size * out[1])
    cut = np.clip(out[0], -0.5, 0.5) + absolute(out[1]) / size
    smooth = ndtr(out[0]) * softplus(out[1]) + log_cosh(out[0]) + log_sum_exp(out[1], axis=1)[:, None]
    return np.mean(smaller + cut + smooth) + np.sum(out[0] ** 2) ** 0.7


def problem() -> tuple[Tree, Any]:
    rng = np.random.default_rng(0)
    return {"net": mlp(rng, 3, 5, 4, 2), "log_size": np.float64(0.3)}, rng.normal(size=(8, 3))


def test_a_gradient_is_that_of_central_differences() -> None:
    params, x = problem()
    value, grads = value_and_grad(lambda p: loss(p, x), params)
    assert value == loss(params, x)
    assert jax.tree.structure(grads) == jax.tree.structure(params)
    rng = np.random.default_rng(1)
    for _ in range(5):
        direction = jax.tree.map(lambda leaf: rng.normal(size=np.shape(leaf)), params)
        numeric = slope(lambda p: loss(p, x), params, direction)
        assert numeric == pytest.approx(dot(grads, direction), rel=1e-7)


def test_a_gradient_has_all_digits() -> None:
    """As a closed form has, also where the loss is so large that a difference would lose them."""
    x = np.linspace(-4.0, 4.0, 9)
    for function, derivative in (
        (np.tanh, 1.0 / np.cosh(x) ** 2),
        (ndtr, np.exp(-(x**2) / 2.0) / np.sqrt(2.0 * np.pi)),
        (softplus, expit(x)),
        (log_cosh, np.tanh(x)),
        (lambda x: log_sum_exp(x, axis=0), softmax(x)),
        (np.exp, np.exp(x)),
        (lambda x: absolute(x + 0.5), np.sign(x + 0.5)),
        (lambda x: np.maximum(x, 0.5), x > 0.5),
        (lambda x: np.clip(x, -1.5, 2.5), (x > -1.5) & (x < 2.5)),
    ):
        got = grad(lambda x, function=function: 1e6 + np.sum(function(x)), x)
        np.testing.assert_allclose(got, np.asarray(derivative, float), rtol=1e-12, atol=1e-15)


def test_what_is_held_is_a_constant() -> None:
    params = {"a": np.array([2.0, 3.0]), "b": np.float64(5.0)}

    def product(p: Tree) -> Any:
        return np.sum(p["a"] * held(p)["a"]) * p["b"]

    grads = grad(product, params)
    np.testing.assert_array_equal(grads["a"], [10.0, 15.0])
    assert grads["b"] == 13.0
    np.testing.assert_array_equal(params["a"], [2.0, 3.0])


def test_no_function_overflows() -> None:
    x = np.array([-1e3, 1e3])
    np.testing.assert_allclose(softplus(x), [0.0, 1e3])
    np.testing.assert_allclose(log_cosh(x), 1e3 - np.log(2.0))
    np.testing.assert_allclose(log_sum_exp(np.array([x, x]), axis=0), x + np.log(2.0))


def test_a_branch_that_is_missed_is_named() -> None:
    problems = [{"first": np.array([True, False]), "second": False}, {"first": True, "second": True}]
    assert_reached(problems, 1)
    with pytest.raises(AssertionError, match="'second': 1"):
        assert_reached(problems, 2)
