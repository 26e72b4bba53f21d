"""Gradient steps per second of offline learners in one PyTorch process on the CPU: the other side of offline_speed.py.

    python docs/offline_speed_torch.py '{"algorithm": "td3_bc", "rows": 100000, "threads": 1, "batch_size": 256, ...}'

Plain PyTorch, one run, as a researcher would write it: every step samples a batch from one tensor of transitions and
learns from it. Needs torch, and SciPy for PRDC's k-d tree; neither JAX nor rlsuite. Prints a JSON object.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.spatial import KDTree
from torch import nn
from torch.nn import functional

OBS_DIM, ACTION_DIM = 11, 3
DISCOUNT, TAU, ALPHA, TARGET_NOISE, TARGET_NOISE_CLIP, POLICY_DELAY = 0.99, 0.005, 2.5, 0.2, 0.5, 2
EXPECTILE, BETA = 0.7, 3.0
PRDC_BETA = 2.0
MASK, VAE_WEIGHT = 0.5, 1.0
SEGMENTS, SEGMENT_SECONDS = 5, 2.0
"""as in rlsuite/bench.py: the fastest of so many segments, each of about so many seconds"""

Tensor = torch.Tensor


class Data(NamedTuple):
    """`[n, ...]` each; observations are normalised already."""

    obs: Tensor
    action: Tensor
    reward: Tensor
    next_obs: Tensor
    terminated: Tensor

    def sample(self, batch_size: int) -> Data:
        index = torch.randint(len(self.obs), (batch_size,))
        return Data(*(column[index] for column in self))


def random_data(rows: int) -> Data:
    """Random numbers of Hopper's sizes."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Tensor:
        return torch.as_tensor(rng.normal(size=shape).astype(np.float32))

    action = torch.as_tensor(rng.uniform(-1.0, 1.0, (rows, ACTION_DIM)).astype(np.float32))
    return Data(normal(rows, OBS_DIM), action, normal(rows), normal(rows, OBS_DIM), torch.zeros(rows))


def mlp(fan_in: int, hidden: Sequence[int], fan_out: int) -> nn.Sequential:
    """ReLU between linear layers."""
    sizes = [fan_in, *hidden, fan_out]
    layers: list[nn.Module] = []
    for i, size in enumerate(sizes[1:]):
        layers += [nn.Linear(sizes[i], size), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def adam(rate: float, *modules: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam([p for module in modules for p in module.parameters()], lr=rate)


def descend(optimizer: torch.optim.Adam, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@torch.no_grad()
def follow(target: nn.Module, online: nn.Module) -> None:
    for old, new in zip(target.parameters(), online.parameters(), strict=True):
        old.mul_(1.0 - TAU).add_(new, alpha=TAU)


def copy_of(module: nn.Module, make: Callable[[], nn.Module]) -> nn.Module:
    copied = make()
    copied.load_state_dict(module.state_dict())
    return copied


class Twin(nn.Module):
    """Two critics."""

    def __init__(self, hidden: Sequence[int]) -> None:
        super().__init__()
        self.first, self.second = (mlp(OBS_DIM + ACTION_DIM, hidden, 1) for _ in range(2))

    def forward(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        inputs = torch.cat([obs, action], dim=1)
        return self.first(inputs)[:, 0], self.second(inputs)[:, 0]

    def q_1(self, obs: Tensor, action: Tensor) -> Tensor:
        values: Tensor = self.first(torch.cat([obs, action], dim=1))
        return values[:, 0]


class TD3:
    """What TD3+BC, PRDC and A2PR share."""

    def __init__(self, hidden: Sequence[int], critic_hidden: Sequence[int]) -> None:
        self.actor, self.critics = mlp(OBS_DIM, hidden, ACTION_DIM), Twin(critic_hidden)
        self.target_actor = copy_of(self.actor, lambda: mlp(OBS_DIM, hidden, ACTION_DIM))
        self.target_critics = copy_of(self.critics, lambda: Twin(critic_hidden))
        self.actor_opt, self.critic_opt = adam(3e-4, self.actor), adam(3e-4, self.critics)

    def learn_critics(self, batch: Data) -> tuple[Tensor, Tensor]:
        """One step of the critics: (the smoothed next action, the target)."""
        with torch.no_grad():
            noise = (TARGET_NOISE * torch.randn_like(batch.action)).clamp(-TARGET_NOISE_CLIP, TARGET_NOISE_CLIP)
            next_action = (torch.tanh(self.target_actor(batch.next_obs)) + noise).clamp(-1.0, 1.0)
            next_value = torch.minimum(*self.target_critics(batch.next_obs, next_action))
            target = batch.reward + DISCOUNT * (1.0 - batch.terminated) * next_value
        q_1, q_2 = self.critics(batch.obs, batch.action)
        descend(self.critic_opt, functional.mse_loss(q_1, target) + functional.mse_loss(q_2, target))
        return next_action, target

    def learn_actor(self, batch: Data, distance: Callable[[Tensor], Tensor]) -> None:
        """One step of the actor, which is kept near something by `distance(its action)`, and of the targets."""
        action = torch.tanh(self.actor(batch.obs))
        q = self.critics.q_1(batch.obs, action)
        scale = ALPHA / q.abs().mean().detach()
        descend(self.actor_opt, -scale * q.mean() + distance(action))
        follow(self.target_actor, self.actor)
        follow(self.target_critics, self.critics)


Step = Callable[[int], None]
"""One gradient step, given its number."""


def td3_bc(data: Data, config: dict[str, Any]) -> Step:
    learner = TD3(config["hidden_sizes"], config["hidden_sizes"])

    def step(index: int) -> None:
        batch = data.sample(config["batch_size"])
        learner.learn_critics(batch)
        if index % POLICY_DELAY == 0:
            learner.learn_actor(batch, lambda action: functional.mse_loss(action, batch.action))

    return step


def prdc(data: Data, config: dict[str, Any]) -> Step:
    learner = TD3(config["hidden_sizes"], config["hidden_sizes"])
    tree = KDTree(torch.cat([PRDC_BETA * data.obs, data.action], dim=1).numpy())

    def step(index: int) -> None:
        batch = data.sample(config["batch_size"])
        learner.learn_critics(batch)

        def distance(action: Tensor) -> Tensor:
            query = torch.cat([PRDC_BETA * batch.obs, action.detach()], dim=1).numpy()
            _, row = tree.query(query, k=1, workers=-1)
            return functional.mse_loss(action, data.action[torch.as_tensor(row)])

        if index % POLICY_DELAY == 0:
            learner.learn_actor(batch, distance)

    return step


def iql(data: Data, config: dict[str, Any]) -> Step:
    hidden = config["hidden_sizes"]
    actor, value, critics = mlp(OBS_DIM, hidden, ACTION_DIM), mlp(OBS_DIM, hidden, 1), Twin(hidden)
    log_std = nn.Parameter(torch.zeros(ACTION_DIM))
    target_critics = copy_of(critics, lambda: Twin(hidden))
    actor_opt = torch.optim.Adam([*actor.parameters(), log_std], lr=3e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(actor_opt, 1_000_000)
    value_opt, critic_opt = adam(3e-4, value), adam(3e-4, critics)

    def step(index: int) -> None:
        batch = data.sample(config["batch_size"])
        with torch.no_grad():
            next_value = value(batch.next_obs)[:, 0]
            q_data = torch.minimum(*target_critics(batch.obs, batch.action))
        advantage = q_data - value(batch.obs)[:, 0]
        descend(value_opt, ((EXPECTILE - (advantage < 0.0).float()).abs() * advantage**2).mean())
        target = batch.reward + DISCOUNT * (1.0 - batch.terminated) * next_value
        q_1, q_2 = critics(batch.obs, batch.action)
        descend(critic_opt, functional.mse_loss(q_1, target) + functional.mse_loss(q_2, target))
        follow(target_critics, critics)
        weight = (BETA * advantage.detach()).exp().clamp(max=100.0)
        policy = torch.distributions.Normal(torch.tanh(actor(batch.obs)), log_std.clamp(-20.0, 2.0).exp())
        descend(actor_opt, -(weight * policy.log_prob(batch.action).sum(dim=1)).mean())
        schedule.step()

    return step


def a2pr(data: Data, config: dict[str, Any]) -> Step:
    learner = TD3(config["hidden_sizes"], config["critic_hidden_sizes"])
    value, hidden = mlp(OBS_DIM, config["value_hidden_sizes"], 1), config["vae_hidden_sizes"]
    encoder = mlp(OBS_DIM + ACTION_DIM, hidden, 4 * ACTION_DIM)
    decoder = mlp(OBS_DIM + 2 * ACTION_DIM, hidden, ACTION_DIM)
    value_opt, vae_opt = adam(3e-4, value), adam(1e-3, encoder, decoder)

    def reconstruct(obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_std = encoder(torch.cat([obs, action], dim=1)).chunk(2, dim=1)
        std = log_std.clamp(-4.0, 15.0).exp()
        latent = mean + std * torch.randn_like(std)
        return torch.tanh(decoder(torch.cat([obs, latent], dim=1))), mean, std

    def step(index: int) -> None:
        batch = data.sample(config["batch_size"])
        next_action, target = learner.learn_critics(batch)
        with torch.no_grad():
            next_value = torch.minimum(*learner.critics(batch.next_obs, next_action))
            online = batch.reward + DISCOUNT * (1.0 - batch.terminated) * next_value
        v = value(batch.obs)[:, 0]
        descend(value_opt, functional.mse_loss(v, torch.minimum(online, target)))
        v = v.detach()
        with torch.no_grad():
            q_data = learner.critics.q_1(batch.obs, batch.action)
        action, mean, std = reconstruct(batch.obs, batch.action)
        weight = VAE_WEIGHT * (q_data > v).float()[:, None]
        kl = -0.5 * (1.0 + (std**2).log() - mean**2 - std**2).mean()
        descend(vae_opt, (weight * (action - batch.action) ** 2).mean() + 0.5 * kl)

        def distance(action: Tensor) -> Tensor:
            offered, _, _ = reconstruct(batch.obs, action)
            with torch.no_grad():
                q_offered = learner.critics.q_1(batch.obs, offered)
            better = torch.where((q_offered >= q_data)[:, None], offered, batch.action)
            some = MASK * ((q_offered >= v) | (q_data > v)).float()
            return (some[:, None] * (action - better) ** 2).mean()

        if index % POLICY_DELAY == 0:
            learner.learn_actor(batch, distance)

    return step


LEARNERS = {"a2pr": a2pr, "iql": iql, "prdc": prdc, "td3_bc": td3_bc}


def rate(step: Step) -> float:
    """Gradient steps per second: the fastest of several segments."""
    done = 0

    def segment(count: int) -> float:
        nonlocal done
        began = time.perf_counter()
        for index in range(done, done + count):
            step(index)
        done += count
        return time.perf_counter() - began

    count = 4
    segment(count)
    while (seconds := segment(count)) < SEGMENT_SECONDS / 4:
        count *= 4
    count = max(1, round(count * SEGMENT_SECONDS / seconds))
    return count / min(segment(count) for _ in range(SEGMENTS))


def main() -> None:
    """One measurement."""
    job = json.loads(sys.argv[1])
    torch.set_num_threads(job["threads"])
    torch.manual_seed(0)
    step = LEARNERS[job["algorithm"]](random_data(job["rows"]), job)
    print(json.dumps({"torch": torch.__version__, "updates_per_second": rate(step)}))


if __name__ == "__main__":
    main()
