"""PyTorch's side of the table that compare.py makes, online: trains what a JSON job says and prints how long it took.

    cd docs; python -m peers.torch_online '{"algorithm": "ppo", "environment": "CartPole-v1", "config": {...}, ...}'

One run of PPO on CartPole or of SAC on Pendulum, in one file and with the details that CleanRL's scripts have and this
suite's docstrings name, on Gymnasium's own environments. Written to be fast in plain PyTorch: values of a whole rollout
in one pass, twin critics in one set of tensors, fused Adam, `torch._foreach_lerp_` for the targets, gradients only for
what learns, one gather for a batch of the replay buffer. Needs torch and gymnasium; neither JAX nor rlsuite.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from peers.answer import Job, Training, answer_of
from torch import nn
from torch.nn import functional

LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0
CLIP = 10.0
"""of normalised observations and rewards, in standard deviations"""

Tensor = torch.Tensor
Act = Callable[[Tensor], np.ndarray]
"""The evaluation policy: observations `[n, obs_dim]` -> actions."""


class Trained(NamedTuple):
    """What a training leaves."""

    warmup_seconds: float
    """before the first update"""
    seconds: float
    """of all updates"""
    act: Act


def make_envs(name: str, num_envs: int) -> SyncVectorEnv:
    """Environments that begin again within the step that ends an episode, so that no step is lost."""
    makers = [lambda: gymnasium.make(name, disable_env_checker=True) for _ in range(num_envs)]
    return SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)


def led_to(next_obs: np.ndarray, over: np.ndarray, info: dict[str, Any]) -> np.ndarray:
    """The observations that a step led to, where `next_obs` has those of a reset."""
    if not over.any():
        return next_obs
    shown = next_obs.copy()
    shown[over] = np.stack(info["final_obs"][over])
    return shown


def evaluate(name: str, act: Act, episodes: int) -> float:
    """Mean return of so many episodes, played side by side."""
    envs = make_envs(name, episodes)
    obs, _ = envs.reset(seed=1)
    returns, over = np.zeros(episodes), np.zeros(episodes, bool)
    while not over.all():
        obs, reward, terminated, truncated, _ = envs.step(act(torch.as_tensor(obs)))
        returns += np.where(over, 0.0, reward)
        over |= terminated | truncated
    return float(returns.mean())


# PPO.


class RunningStats:
    """Mean and variance of all that was seen, as in Gymnasium's wrappers, merged once per update."""

    def __init__(self, *shape: int) -> None:
        self.mean, self.var, self.weight = torch.zeros(shape), torch.ones(shape), 1e-4

    def update(self, batch: Tensor) -> None:
        n, delta = len(batch), batch.mean(dim=0) - self.mean
        weight = self.weight + n
        m2 = self.var * self.weight + batch.var(dim=0, correction=0) * n + delta**2 * (self.weight * n / weight)
        self.mean, self.var, self.weight = self.mean + delta * (n / weight), m2 / weight, weight


def tanh_mlp(sizes: Sequence[int], gain: float) -> nn.Sequential:
    """Orthogonal weights, zero biases, `gain` for the last layer."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        linear = nn.Linear(fan_in, fan_out)
        nn.init.orthogonal_(linear.weight, math.sqrt(2.0))
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.Tanh()]
    nn.init.orthogonal_(layers[-2].weight, gain)
    return nn.Sequential(*layers[:-1])


def ppo(job: Job) -> Trained:
    config, hypers, updates = job["config"], job["hypers"], job["updates"]
    num_envs, num_steps = config["num_envs"], config["num_steps"]
    size = num_envs * num_steps
    minibatch = size // config["num_minibatches"]
    discount, epsilon = hypers["discount"], hypers["clip_epsilon"]
    envs = make_envs(job["environment"], num_envs)
    obs_dim, num_actions = envs.single_observation_space.shape[0], int(envs.single_action_space.n)
    policy = tanh_mlp((obs_dim, *config["hidden_sizes"], num_actions), 0.01)
    critic = tanh_mlp((obs_dim, *config["hidden_sizes"], 1), 1.0)
    parameters = [*policy.parameters(), *critic.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=hypers["learning_rate"], eps=1e-5, fused=True)
    obs_stats, return_stats = RunningStats(obs_dim), RunningStats()

    def seen(obs: Tensor) -> Tensor:
        if not config["normalize_obs"]:
            return obs
        return ((obs - obs_stats.mean) * (obs_stats.var + 1e-8).rsqrt()).clamp_(-CLIP, CLIP)

    obs, _ = envs.reset(seed=0)
    discounted_return = np.zeros(num_envs)
    all_obs, all_next_obs = (np.zeros((num_steps, num_envs, obs_dim), np.float32) for _ in range(2))
    rewards, sums, terminations, truncations = (np.zeros((num_steps, num_envs), np.float32) for _ in range(4))

    def update(index: int) -> None:
        nonlocal obs, discounted_return
        actions, log_probs = [], []
        with torch.no_grad():
            for t in range(num_steps):
                all_log_probs = policy(seen(torch.as_tensor(obs))).log_softmax(dim=1)
                action = torch.multinomial(all_log_probs.exp(), 1)
                actions.append(action[:, 0])
                log_probs.append(all_log_probs.gather(1, action)[:, 0])
                all_obs[t] = obs
                obs, rewards[t], terminated, truncated, info = envs.step(action[:, 0].numpy())
                over = terminated | truncated
                all_next_obs[t] = led_to(obs, over, info)
                terminations[t], truncations[t] = terminated, truncated
                discounted_return = discount * discounted_return + rewards[t]
                sums[t] = discounted_return
                discounted_return[over] = 0.0
            return_stats.update(torch.as_tensor(sums).reshape(-1))
            reward = torch.as_tensor(rewards)
            if config["normalize_reward"]:
                reward = (reward * (return_stats.var + 1e-8).rsqrt()).clamp(-CLIP, CLIP)
            inputs = seen(torch.as_tensor(all_obs))
            value, next_value = critic(inputs)[..., 0], critic(seen(torch.as_tensor(all_next_obs)))[..., 0]
            ended = torch.as_tensor(terminations)
            # A truncated step bootstraps with the value of where it led to; only the sum over later steps ends.
            delta = reward + discount * (1.0 - ended) * next_value - value
            carry_on = discount * hypers["gae_lambda"] * (1.0 - ended) * (1.0 - torch.as_tensor(truncations))
            advantage, following = torch.zeros_like(delta), torch.zeros(num_envs)
            for t in reversed(range(num_steps)):
                following = delta[t] + carry_on[t] * following
                advantage[t] = following
            rows = [inputs.view(size, -1)]
            rows += [torch.cat(actions), torch.cat(log_probs), value.view(-1), advantage.view(-1)]
            rows.append((advantage + value).view(-1))

        if config["anneal_learning_rate"]:
            optimizer.param_groups[0]["lr"] = hypers["learning_rate"] * (1.0 - index / updates)
        for _ in range(config["num_epochs"]):
            for chosen in torch.randperm(size).split(minibatch):
                learn(*(column[chosen] for column in rows))
        obs_stats.update(torch.as_tensor(all_obs).view(size, -1))

    def learn(
        obs: Tensor, action: Tensor, old_log_prob: Tensor, old_value: Tensor, adv: Tensor, target: Tensor
    ) -> None:
        all_log_probs = policy(obs).log_softmax(dim=1)
        ratio = (all_log_probs.gather(1, action[:, None])[:, 0] - old_log_prob).exp()
        if config["normalize_advantage"]:
            adv = (adv - adv.mean()) / (adv.std() + 1e-8)
        policy_loss = -torch.minimum(ratio * adv, ratio.clamp(1.0 - epsilon, 1.0 + epsilon) * adv).mean()
        value = critic(obs)[:, 0]
        error = (value - target).square()
        if config["clip_value"]:
            near = old_value + (value - old_value).clamp(-epsilon, epsilon)
            error = torch.maximum(error, (near - target).square())
        entropy = -(all_log_probs.exp() * all_log_probs).sum(dim=1).mean()
        loss = policy_loss + hypers["value_coef"] * 0.5 * error.mean() - hypers["entropy_coef"] * entropy
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, hypers["max_grad_norm"])
        optimizer.step()

    began = time.perf_counter()
    for index in range(updates):
        update(index)
    seconds = time.perf_counter() - began

    @torch.no_grad()
    def act(obs: Tensor) -> np.ndarray:
        return policy(seen(obs)).argmax(dim=1).numpy()

    return Trained(0.0, seconds, act)


# SAC.


class MLP:
    """`copies` networks with ReLU between their layers: `[copies, batch, in]` -> `[copies, batch, out]`."""

    def __init__(self, copies: int, sizes: Sequence[int]) -> None:
        """PyTorch's default initialisation."""
        self.weights, self.biases = [], []
        for fan_in, fan_out in itertools.pairwise(sizes):
            bound = fan_in**-0.5
            for tensors, rows in ((self.weights, fan_in), (self.biases, 1)):
                tensors.append(torch.empty(copies, rows, fan_out).uniform_(-bound, bound))

    def __call__(self, x: Tensor) -> Tensor:
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = torch.baddbmm(bias, x, weight).relu_()
        return torch.baddbmm(self.biases[-1], x, self.weights[-1])

    @property
    def parameters(self) -> list[Tensor]:
        return [*self.weights, *self.biases]


def sac(job: Job) -> Trained:
    config, hypers = job["config"], job["hypers"]
    num_envs, delay = config["num_envs"], config["policy_delay"]
    envs = make_envs(job["environment"], num_envs)
    space = envs.single_action_space
    obs_dim, dim = envs.single_observation_space.shape[0], space.shape[0]
    middle = torch.as_tensor((space.high + space.low) / 2.0)
    half_width = torch.as_tensor((space.high - space.low) / 2.0)
    log_volume = half_width.log().sum()
    actor = MLP(1, (obs_dim, *config["hidden_sizes"], 2 * dim))
    critics, targets = (MLP(2, (obs_dim + dim, *config["hidden_sizes"], 1)) for _ in range(2))
    with torch.no_grad():
        torch._foreach_copy_(targets.parameters, critics.parameters)
    log_alpha = torch.tensor(math.log(hypers["initial_alpha"]))
    target_entropy = -hypers["target_entropy_scale"] * dim
    actor_parameters = [*actor.parameters, *([log_alpha] if config["learn_alpha"] else [])]
    for parameter in (*actor_parameters, *critics.parameters):
        parameter.requires_grad_()
    groups = [{"params": actor.parameters, "lr": hypers["actor_learning_rate"]}]
    if config["learn_alpha"]:
        groups.append({"params": [log_alpha], "lr": hypers["alpha_learning_rate"]})
    actor_opt = torch.optim.Adam(groups, fused=True)
    critic_opt = torch.optim.Adam(critics.parameters, lr=hypers["critic_learning_rate"], fused=True)

    def draw(obs: Tensor) -> tuple[Tensor, Tensor]:
        """An action `[batch, dim]` and its log-probability `[batch]`."""
        mean, log_std = actor(obs[None])[0].chunk(2, dim=1)
        log_std = log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)
        noise = torch.randn_like(mean)
        u = mean + log_std.exp() * noise
        # The logarithm of tanh's derivative, 1 - tanh(u)^2, without its cancellation.
        log_det = 2.0 * (math.log(2.0) - u - functional.softplus(-2.0 * u))
        log_prob = (-0.5 * noise.square() - 0.5 * math.log(2.0 * math.pi) - log_std - log_det).sum(dim=1)
        return middle + half_width * torch.tanh(u), log_prob - log_volume

    def q_values(nets: MLP, obs: Tensor, action: Tensor) -> Tensor:
        """`[2, batch]`"""
        return nets(torch.cat([obs, action], dim=1).expand(2, -1, -1))[..., 0]

    def descend(optimizer: torch.optim.Adam, parameters: list[Tensor], loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward(inputs=parameters)
        optimizer.step()

    columns = (obs_dim, dim, obs_dim, 1, 1)
    warmup_updates = -(-config["warmup_steps"] // num_envs)
    rows = min(config["buffer_size"], (warmup_updates + job["updates"]) * num_envs)
    buffer, written = torch.zeros(rows // num_envs * num_envs, sum(columns)), 0

    def gradient_step(index: int) -> None:
        chosen = torch.randint(min(written, len(buffer)), (config["batch_size"],))
        obs, action, next_obs, reward, terminated = buffer.index_select(0, chosen).split(columns, dim=1)
        with torch.no_grad():
            next_action, next_log_prob = draw(next_obs)
            next_value = q_values(targets, next_obs, next_action).amin(0) - log_alpha.exp() * next_log_prob
            target = reward[:, 0] + hypers["discount"] * (1.0 - terminated[:, 0]) * next_value
        error = q_values(critics, obs, action) - target
        descend(critic_opt, critics.parameters, error.square().sum() / len(target))
        if index % delay == 0:
            for _ in range(delay):
                action, log_prob = draw(obs)
                q = q_values(critics, obs, action).amin(0)
                loss = (log_alpha.detach().exp() * log_prob - q).mean()
                # The temperature's loss shares no parameter with the actor's: one backward pass serves both.
                if config["learn_alpha"]:
                    loss = loss - log_alpha * (log_prob.detach().mean() + target_entropy)
                descend(actor_opt, actor_parameters, loss)
        with torch.no_grad():
            torch._foreach_lerp_(targets.parameters, critics.parameters, hypers["tau"])

    obs, _ = envs.reset(seed=0)
    rng = np.random.default_rng(0)

    def collect(uniform: bool) -> None:
        nonlocal obs, written
        if uniform:
            action = rng.uniform(space.low, space.high, (num_envs, dim)).astype(np.float32)
        else:
            with torch.no_grad():
                action = draw(torch.as_tensor(obs))[0].numpy()
        next_obs, reward, terminated, truncated, info = envs.step(action)
        shown = led_to(next_obs, terminated | truncated, info)
        row = np.concatenate([obs, action, shown, reward[:, None], terminated[:, None]], axis=1, dtype=np.float32)
        begin = written % len(buffer)
        buffer[begin : begin + num_envs] = torch.from_numpy(row)
        obs, written = next_obs, written + num_envs

    began = time.perf_counter()
    for _ in range(warmup_updates):
        collect(uniform=True)
    warm = time.perf_counter()
    for index in range(job["updates"]):
        collect(uniform=False)
        for i in range(config["gradient_steps"]):
            gradient_step(index * config["gradient_steps"] + i)
    seconds = time.perf_counter() - warm

    @torch.no_grad()
    def act(obs: Tensor) -> np.ndarray:
        mean, _ = actor(obs[None])[0].chunk(2, dim=1)
        return (middle + half_width * torch.tanh(mean)).numpy()

    return Trained(warm - began, seconds, act)


LEARNERS = {"ppo": (ppo, "CartPole-v1"), "sac": (sac, "Pendulum-v1")}


def check(job: Job) -> None:
    """Exit with one line if this file does not do what the job asks for."""
    if job["algorithm"] not in LEARNERS:
        sys.exit(f"algorithm={job['algorithm']!r} is not written in PyTorch here; choose one of {sorted(LEARNERS)}")
    environment = LEARNERS[job["algorithm"]][1]
    if job["environment"] != environment:
        sys.exit(f"environment={job['environment']!r}: {job['algorithm']} is written for {environment}")
    if job["runs"] > 1:
        sys.exit(f"runs={job['runs']}: online PyTorch is written for one run; start a process for each")


def measure(job: Job) -> dict[str, Any]:
    """Train and evaluate, `repeats` times from the beginning."""
    check(job)
    torch.set_num_threads(job["threads"])

    def train(seed: int) -> Training:
        torch.manual_seed(seed)
        trained = LEARNERS[job["algorithm"]][0](job)
        began = time.perf_counter()
        score = evaluate(job["environment"], trained.act, job["eval_episodes"]) if job["eval_episodes"] else None
        return Training(trained.seconds + time.perf_counter() - began, trained.warmup_seconds, score)

    return answer_of(job, train, {"torch": torch.__version__, "gymnasium": gymnasium.__version__})


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
