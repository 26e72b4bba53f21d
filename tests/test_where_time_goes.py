"""What benchmarks/where_time_goes.py reads out of a compiled program, against products that are counted by hand."""

from __future__ import annotations

from types import ModuleType

import benchmark_scripts
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen as nn

BATCH, WIDTH, OUT, RUNS = 32, 48, 16, 3


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return benchmark_scripts.load("where_time_goes")


def program() -> str:
    """The text of one gradient step of a layer, for some runs at once."""
    layer, adam = nn.Dense(OUT), optax.adam(1e-3)

    def step(params: dict, opt: tuple, x: jax.Array) -> tuple:
        grads = jax.grad(lambda params: jnp.mean(layer.apply(params, x) ** 2))(params)
        update, opt = adam.update(grads, opt)
        return optax.apply_updates(params, update), opt

    x = jnp.ones((RUNS, BATCH, WIDTH))
    params = jax.vmap(lambda key: layer.init(key, x[0]))(jax.random.split(jax.random.key(0), RUNS))
    opt = jax.vmap(adam.init)(params)
    text: str = jax.jit(jax.vmap(step)).lower(params, opt, x).compile().as_text()
    return text


def test_products_are_counted_and_belong_to_the_networks(script: ModuleType) -> None:
    found = script.instructions(program())
    # In a fused computation the product stands again; only what is executed by itself has a time in a trace.
    products = {name: each for name, each in found.items() if each.opcode in ("dot", "fusion") and each.is_product}
    forward = 2 * RUNS * BATCH * WIDTH * OUT
    assert {each.operations for each in products.values()} == {forward}, products  # the weights' gradient takes as many
    assert {each.part for each in products.values()} == {"networks"}


def test_the_optimiser_is_recognised_by_its_file(script: ModuleType) -> None:
    found = script.instructions(program())
    assert any(each.part == "optimiser and targets" and each.opcode == "fusion" for each in found.values())


def test_bytes_are_those_of_operands_and_result(script: ModuleType) -> None:
    text = jax.jit(lambda x, y: x @ y).lower(jnp.ones((8, 16)), jnp.ones((16, 4))).compile().as_text()
    products = {each[2:4] for each in script.instructions(text).values() if each.is_product}
    assert products == {(2 * 8 * 16 * 4, 4 * (8 * 16 + 16 * 4 + 8 * 4))}
