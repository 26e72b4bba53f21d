"""What the reference tests of DSAC and DSAC-T share, in NumPy and float64: networks with their backward passes, the
temperature's loss, Polyak averages, and the collecting half of an update on the toy environment.

Written from the mathematics and sharing no code with `rlsuite`, as `numpy_nets.py` is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy_nets import HIGH, LOW, START, TIME_LIMIT, FloatArray, Tree, cast, exact, mlp, normal, toy_transition
from scipy.special import ndtr

from envs.core import EpisodeState
from rlsuite.pieces import replay
from rlsuite.pieces.rollout import EnvCarry

HIDDEN = (8, 7)
OBS_DIM = ACTION_DIM = 3
BATCH = 64
WIDE = (-19.9, 0.4, -1.0)
"""Where the actor's three log standard deviations lie: around the lower bound, around the upper one, between them."""
MODERATE = (-2.0, 0.4, -1.0)
"""The same for float32, where mean + exp(-20) noise rounds to the mean, so that no such comparison has a meaning."""


class Batch(NamedTuple):
    """A minibatch, `[batch, ...]`."""

    obs: FloatArray
    action: FloatArray
    reward: FloatArray
    next_obs: FloatArray
    terminated: Any
    truncated: Any


# Perceptrons with exact GELU.

Cache = list[tuple[FloatArray, FloatArray]]
"""(the input of a layer, what that input was before the activation), for every layer"""


def gelu_forward(net: Tree, x: FloatArray) -> tuple[FloatArray, Cache]:
    """`[batch, in]` -> the output `[batch, out]`, and what the backward pass needs."""
    cache, before = [], x
    for i in range(len(net)):
        if i > 0:
            x = before * ndtr(before)
        cache.append((x, before))
        before = x @ net[f"Dense_{i}"]["kernel"] + net[f"Dense_{i}"]["bias"]
    return before, cache


def gelu_backward(net: Tree, cache: Cache, d_out: FloatArray) -> tuple[Tree, FloatArray]:
    """d loss / d output `[batch, out]` -> the gradient of all weights, and d loss / d x `[batch, in]`."""
    grads = {}
    for i in reversed(range(len(net))):
        x, before = cache[i]
        grads[f"Dense_{i}"] = {"kernel": x.T @ d_out, "bias": d_out.sum(axis=0)}
        d_out = d_out @ net[f"Dense_{i}"]["kernel"].T
        if i > 0:
            # (x Phi(x))' = Phi(x) + x phi(x)
            d_out = d_out * (ndtr(before) + before * np.exp(-(before**2) / 2.0) / np.sqrt(2.0 * np.pi))
    return grads, d_out


class Drawn(NamedTuple):
    """A sampled action and all that its derivative needs."""

    action: FloatArray
    log_prob: FloatArray
    u: FloatArray
    """before squashing"""
    noise_part: FloatArray
    """std * noise"""
    raw_log_std: FloatArray
    cache: Cache


def sampled(actor: Tree, obs: FloatArray, noise: FloatArray) -> Drawn:
    """A tanh-squashed Gaussian action in the box, and its log-probability by the change of variables."""
    out, cache = gelu_forward(actor["params"], obs)
    mean, raw_log_std = out[:, :ACTION_DIM], out[:, ACTION_DIM:]
    log_std = np.minimum(np.maximum(raw_log_std, -20.0), 0.5)
    u = mean + np.exp(log_std) * noise
    action = (HIGH + LOW) / 2.0 + (HIGH - LOW) / 2.0 * np.tanh(u)
    # d action / d u = half width / cosh(u)^2, with the logarithm of cosh written so that it cannot overflow.
    log_slope = np.log((HIGH - LOW) / 2.0) - 2.0 * (np.logaddexp(u, -u) - np.log(2.0))
    log_density = -0.5 * noise**2 - log_std - 0.5 * np.log(2.0 * np.pi)
    return Drawn(action, (log_density - log_slope).sum(1), u, np.exp(log_std) * noise, raw_log_std, cache)


def actor_gradient(actor: Tree, drawn: Drawn, d_action: FloatArray, alpha: FloatArray) -> Tree:
    """The gradient of mean(alpha log pi) plus a loss whose derivative by the action is `d_action`."""
    n = len(d_action)
    # Log pi falls by the log slope, whose derivative is -2 tanh(u).
    d_u = d_action * (HIGH - LOW) / 2.0 / np.cosh(drawn.u) ** 2 + alpha / n * 2.0 * np.tanh(drawn.u)
    # u moves with the mean by 1 and with log std by std * noise; log pi also holds -log std. Clipping stops the latter.
    inside = (drawn.raw_log_std > -20.0) & (drawn.raw_log_std < 0.5)
    d_log_std = np.where(inside, d_u * drawn.noise_part - alpha / n, 0.0)
    return {"params": gelu_backward(actor["params"], drawn.cache, np.concatenate([d_u, d_log_std], axis=1))[0]}


class Valued(NamedTuple):
    """The distribution of the return, and all that its derivative needs."""

    mean: FloatArray
    std: FloatArray
    raw_std: FloatArray
    cache: Cache


def valued(net: Tree, obs: FloatArray, action: FloatArray) -> Valued:
    """Mean and standard deviation `[batch]` of the return by one critic's layers."""
    out, cache = gelu_forward(net, np.concatenate([obs, action], axis=1))
    return Valued(out[:, 0], np.logaddexp(0.0, out[:, 1]), out[:, 1], cache)


def critic_gradient(net: Tree, value: Valued, d_mean: FloatArray, d_std: FloatArray) -> tuple[Tree, FloatArray]:
    """From d loss / d mean and d loss / d std `[batch]` to the gradient of the layers and d loss / d action."""
    d_raw = d_std / (1.0 + np.exp(-value.raw_std))
    grads, d_inputs = gelu_backward(net, value.cache, np.stack([d_mean, d_raw], axis=1))
    return grads, d_inputs[:, OBS_DIM:]


def alpha_reference(log_alpha: FloatArray, log_prob: FloatArray, target_entropy: float) -> tuple[float, FloatArray]:
    """The temperature's loss and its derivative by log alpha: too little entropy must raise alpha."""
    slack = np.mean(-log_prob) - target_entropy
    return float(log_alpha * slack), np.asarray(slack)


def polyak(target: Tree, online: Tree, tau: float) -> Tree:
    """The target after it has moved."""
    return jax.tree.map(lambda old, new: (1.0 - tau) * old + tau * new, target, online)


# Random problems.


def random_actor(rng: np.random.Generator, log_stds: tuple[float, ...]) -> Tree:
    actor = mlp(rng, OBS_DIM, *HIDDEN, 2 * ACTION_DIM)
    actor["Dense_2"]["kernel"][:, ACTION_DIM:] *= 4.0
    actor["Dense_2"]["bias"][ACTION_DIM:] = log_stds
    return {"params": jax.tree.map(exact, actor)}


def random_critic(rng: np.random.Generator) -> Tree:
    """Layers of one critic, whose mean is around 0 and whose standard deviation spreads around 0.7."""
    net = mlp(rng, OBS_DIM + ACTION_DIM, *HIDDEN, 2)
    net["Dense_2"]["kernel"][:, 1] *= 6.0
    somewhere = np.concatenate([rng.normal(size=(99, OBS_DIM)), rng.uniform(LOW, HIGH, (99, ACTION_DIM))], axis=1)
    net["Dense_2"]["bias"] -= np.mean(gelu_forward(net, somewhere)[0], axis=0)
    return jax.tree.map(exact, net)


def random_batch(rng: np.random.Generator, size: int) -> Batch:
    """Some rewards are so large that every bound on a temporal difference is exceeded somewhere."""
    return Batch(
        obs=normal(rng, size, OBS_DIM),
        action=exact(rng.uniform(LOW, HIGH, size=(size, ACTION_DIM))),
        reward=exact(normal(rng, size) * rng.choice([1.0, 100.0], size)),
        next_obs=normal(rng, size, OBS_DIM),
        terminated=rng.random(size) < 0.4,
        truncated=rng.random(size) < 0.4,
    )


def endings(batch: Batch) -> dict[str, Any]:
    """Which of the samples end how."""
    return {
        "terminated only": batch.terminated & ~batch.truncated,
        "truncated only": batch.truncated & ~batch.terminated,
        "terminated and truncated": batch.terminated & batch.truncated,
        "neither": ~batch.terminated & ~batch.truncated,
    }


# The collecting half of an update.

NUM_ENVS, NUM_STEPS = 2, 2
BUFFER_STEPS = 7
"""No multiple of `NUM_STEPS`, so that a rollout is written around the buffer's end."""


class Experience:
    """All transitions that two toy environments have shown, `NUM_STEPS` more of each at every `collect`."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.obs, self.steps = normal(rng, NUM_ENVS, OBS_DIM), np.zeros(NUM_ENVS, int)
        self.obs[0, 0] = 2.0  # terminates at once; episodes from `START` mostly run out of time
        self.rows: list[Batch] = []

    def carry(self) -> EnvCarry:
        """The environments, for the learner; call it inside `jax.enable_x64(True)`."""
        obs = jnp.asarray(self.obs)
        return EnvCarry(EpisodeState(obs, jnp.asarray(self.steps, jnp.int32)), obs)

    def buffer(self) -> replay.Replay:
        """An empty buffer for the learner, in which what was never written is NaN."""
        layout = replay.Layout(OBS_DIM, ACTION_DIM, TIME_LIMIT)
        empty = replay.init(layout, NUM_ENVS, NUM_ENVS * BUFFER_STEPS)
        return cast(jax.tree.map(lambda x: np.full(x.shape, np.nan), empty), jnp.float64)

    def collect(self, key: jax.Array, policy: Callable[[FloatArray, FloatArray], FloatArray]) -> None:
        """Step with `policy(obs, noise)`. Random numbers come from JAX by the learner's own key schedule."""
        for step_key in jax.random.split(key, NUM_STEPS):
            policy_key, _ = jax.random.split(step_key)
            action = policy(self.obs, np.asarray(jax.random.normal(policy_key, (NUM_ENVS, ACTION_DIM))))
            next_obs, reward, terminated = toy_transition(self.obs, action)
            truncated = self.steps + 1 >= TIME_LIMIT
            # The buffer keeps actions in float32.
            self.rows.append(Batch(self.obs, exact(action), reward, next_obs, terminated, truncated))
            done = terminated | truncated
            self.obs = np.where(done[:, None], START, next_obs)
            self.steps = np.where(done, 0, self.steps + 1)

    def sample(self, key: jax.Array, shape: tuple[int, int]) -> list[Batch]:
        """The minibatches of the newest `BUFFER_STEPS` steps."""
        filled = min(len(self.rows), BUFFER_STEPS)
        places = np.asarray(jax.random.randint(key, shape, 0, jnp.int32(filled * NUM_ENVS)))
        newest_in = {step % BUFFER_STEPS: row for step, row in enumerate(self.rows)}
        return [
            Batch(
                *(
                    np.stack([newest_in[place // NUM_ENVS][column][place % NUM_ENVS] for place in chosen])
                    for column in range(len(Batch._fields))
                )
            )
            for chosen in places
        ]


def moves(after: Tree, before: Tree) -> Tree:
    """What changed: updates are small beside parameters, and would hide there."""
    return jax.tree.map(lambda x, y: np.asarray(x) - np.asarray(y), after, before)
