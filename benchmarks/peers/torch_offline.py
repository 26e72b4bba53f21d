"""PyTorch's side of the table that compare.py makes, offline: learns what a JSON job says and prints how long it took.

    cd docs; python -m peers.torch_offline '{"algorithm": "td3_bc", "runs": 16, "rows": 100000, "config": {...}, ...}'

TD3+BC, IQL, PRDC and A2PR on transitions.py's transitions, which are held as normalised already. The arrangement,
for one run and for many, with what led to it (256 x 256 networks, batch 256, two cores with AVX2 that others used too):

- All runs in one set of tensors, on a leading axis that also holds the twin critics: `torch.baddbmm` layers, each run
  with a batch of its own. 16 runs on two threads: baddbmm 103 GFLOP/s, matmul 99, einsum 92, a loop over the runs 84;
  on one thread all are alike. One run's twin critics: 1.04 times as fast as two `nn.Sequential` with the same Adam on
  one thread, 1.4 times on two, 1.6 times with 64 x 64 networks and a batch of 64.
- One Adam with `fused=True`: 0.27 ms a step of two critics on one thread, `foreach` 0.8 ms, plain 1.1 ms.
- `torch._foreach_lerp_` for the targets: 0.035 ms, a multiplication and an addition for each tensor 0.1 ms.
- One backward pass for the sum of all losses that belong to one moment, only into the parameters that learn from it;
  one table of transitions and one gather for a batch. These two do less work and were not timed apart.

With a job's `device` "cuda" the same runs on the GPU, with matrix products in TF32, as JAX does them there; with
`graphs` the launches of a gradient step are captured once and replayed. PRDC asks its tree on the host and stays eager.

Needs torch, and SciPy for PRDC's k-d tree; neither JAX nor rlsuite. PRDC and A2PR are for a single run.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from peers.answer import Job, Training, answer_of
from peers.transitions import ACTION_DIM, OBS_DIM, followers, smooth
from scipy.spatial import KDTree

COLUMNS = (OBS_DIM, ACTION_DIM, OBS_DIM, 1, 1)
"""of the table: obs, action, next_obs, reward, terminated"""
LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0
WARM_UP = 10
"""gradient steps of a learner that is thrown away: threads start and memory is taken before anything is timed"""

Tensor = torch.Tensor
Step = Callable[[int], None]


class Learner(NamedTuple):
    """What learns, in two parts of which the second stays on the device."""

    schedule: Step
    """sets the learning rates of the gradient step of this number"""
    step: Step
    """one gradient step of every run, given its number modulo `period`"""
    period: int
    """gradient steps after which the same is done again"""


class Batch(NamedTuple):
    """`[runs, batch, ...]` each; reward and terminated `[runs, batch]`."""

    obs: Tensor
    action: Tensor
    next_obs: Tensor
    reward: Tensor
    terminated: Tensor
    obs_action: Tensor
    """both side by side, as critics take them"""


def make_table(rows: int, device: str) -> Tensor:
    """Transitions `[rows, sum of COLUMNS]` with random rewards."""
    obs, action = smooth(rows)
    reward = np.random.default_rng(1).normal(size=(rows, 1))
    parts = (obs, action, obs[followers(rows)], reward, np.zeros((rows, 1)))
    return torch.as_tensor(np.concatenate(parts, axis=1, dtype=np.float32)).to(device)


def sample(table: Tensor, runs: int, batch_size: int) -> Batch:
    """Transitions drawn with replacement, others for each run."""
    drawn = torch.randint(len(table), (runs * batch_size,), device=table.device)
    rows = table.index_select(0, drawn).view(runs, batch_size, -1)
    obs, action, next_obs, reward, terminated = rows.split(COLUMNS, dim=-1)
    return Batch(obs, action, next_obs, reward[..., 0], terminated[..., 0], rows[..., : OBS_DIM + ACTION_DIM])


class MLP:
    """`copies` networks with ReLU between their layers: `[copies, batch, in]` -> `[copies, batch, out]`."""

    def __init__(self, copies: int, sizes: Sequence[int], device: str = "cpu") -> None:
        """PyTorch's default initialisation."""
        self.layers: list[tuple[Tensor, Tensor]] = []
        for fan_in, fan_out in itertools.pairwise(sizes):
            bound = fan_in**-0.5
            weight, bias = (torch.empty(copies, n, fan_out, device=device).uniform_(-bound, bound) for n in (fan_in, 1))
            self.layers.append((weight.requires_grad_(), bias.requires_grad_()))

    def __call__(self, x: Tensor) -> Tensor:
        for weight, bias in self.layers[:-1]:
            x = torch.baddbmm(bias, x, weight).relu_()
        weight, bias = self.layers[-1]
        return torch.baddbmm(bias, x, weight)

    @property
    def parameters(self) -> list[Tensor]:
        return [tensor for layer in self.layers for tensor in layer]

    def constant(self, copies: int) -> MLP:
        """The first `copies` of the networks in the same memory, without gradients."""
        same = MLP(0, ())
        same.layers = [(weight.detach()[:copies], bias.detach()[:copies]) for weight, bias in self.layers]
        return same

    def clone(self) -> MLP:
        same = MLP(0, ())
        same.layers = [(weight.detach().clone(), bias.detach().clone()) for weight, bias in self.layers]
        return same


class Twins:
    """Two critics a run: the first of all runs, then the second of all runs."""

    def __init__(self, net: MLP) -> None:
        self.net = net

    def __call__(self, obs_action: Tensor) -> Tensor:
        """`[runs, batch, in]` -> `[2, runs, batch]`."""
        return self.net(torch.cat([obs_action, obs_action]))[..., 0].unflatten(0, (2, -1))


def descend(optimizer: torch.optim.Adam, parameters: list[Tensor], loss: Tensor) -> None:
    """A step on these parameters; nothing else that the loss depends on gets a gradient."""
    optimizer.zero_grad()
    loss.backward(inputs=parameters)
    optimizer.step()


def adam(rate: float, parameters: list[Tensor]) -> torch.optim.Adam:
    return torch.optim.Adam(parameters, lr=rate, fused=True, capturable=parameters[0].is_cuda)


@torch.no_grad()
def follow(targets: list[Tensor], online: list[Tensor], tau: float) -> None:
    torch._foreach_lerp_(targets, online, tau)


class TD3:
    """What TD3+BC, PRDC and A2PR share."""

    def __init__(self, job: Job, hidden: Sequence[int], critic_hidden: Sequence[int]) -> None:
        runs, self.hypers, self.delay = job["runs"], job["hypers"], job["config"]["policy_delay"]
        self.actor = MLP(runs, (OBS_DIM, *hidden, ACTION_DIM), job["device"])
        critics = MLP(2 * runs, (OBS_DIM + ACTION_DIM, *critic_hidden, 1), job["device"])
        self.critics, self.first_critic = Twins(critics), critics.constant(runs)
        self.target_actor, self.target_critics = self.actor.clone(), Twins(critics.clone())
        self.actor_opt = adam(self.hypers["actor_learning_rate"], self.actor.parameters)
        self.critic_opt = adam(self.hypers["critic_learning_rate"], critics.parameters)

    def learn_critics(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """One step of the critics: (the smoothed next action, the target)."""
        with torch.no_grad():
            bound = self.hypers["target_noise_clip"]
            noise = (self.hypers["target_noise"] * torch.randn_like(batch.action)).clamp_(-bound, bound)
            next_action = torch.tanh(self.target_actor(batch.next_obs)).add_(noise).clamp_(-1.0, 1.0)
            next_value = self.target_critics(torch.cat([batch.next_obs, next_action], dim=-1)).amin(0)
            target = batch.reward + self.hypers["discount"] * (1.0 - batch.terminated) * next_value
        error = self.critics(batch.obs_action) - target
        descend(self.critic_opt, self.critics.net.parameters, error.square().sum() / error.shape[-1])
        return next_action, target

    def learn_actor(self, batch: Batch, distance: Callable[[Tensor], Tensor]) -> None:
        """One step of the actor, which is kept near something by `distance(its action)`, and of the targets."""
        action = torch.tanh(self.actor(batch.obs))
        q = self.first_critic(torch.cat([batch.obs, action], dim=-1))[..., 0]
        scale = self.hypers["alpha"] / q.detach().abs().mean(dim=-1)
        descend(self.actor_opt, self.actor.parameters, (distance(action) - scale * q.mean(dim=-1)).sum())
        targets = [*self.target_actor.parameters, *self.target_critics.net.parameters]
        follow(targets, [*self.actor.parameters, *self.critics.net.parameters], self.hypers["tau"])


def mean_square(x: Tensor) -> Tensor:
    """`[runs, batch, n]` -> `[runs]`."""
    return x.square().mean(dim=(-2, -1))


def constant_rates(index: int) -> None:
    """A schedule that leaves all learning rates."""


def td3_bc(table: Tensor, job: Job) -> Learner:
    config = job["config"]
    learner = TD3(job, config["hidden_sizes"], config["hidden_sizes"])

    def step(index: int) -> None:
        batch = sample(table, job["runs"], config["batch_size"])
        learner.learn_critics(batch)
        if index % learner.delay == 0:
            learner.learn_actor(batch, lambda action: mean_square(action - batch.action))

    return Learner(constant_rates, step, learner.delay)


def prdc(table: Tensor, job: Job) -> Learner:
    config, beta = job["config"], job["hypers"]["beta"]
    learner = TD3(job, config["hidden_sizes"], config["hidden_sizes"])
    obs, actions, *_ = table.split(COLUMNS, dim=1)
    tree = KDTree(torch.cat([beta * obs, actions], dim=1).cpu().numpy())

    def step(index: int) -> None:
        batch = sample(table, 1, config["batch_size"])
        learner.learn_critics(batch)

        def distance(action: Tensor) -> Tensor:
            query = torch.cat([beta * batch.obs, action.detach()], dim=-1).cpu().numpy()
            _, row = tree.query(query, k=[config["k"]], workers=job["threads"])
            return mean_square(action - actions[torch.as_tensor(row[..., 0]).to(actions.device)])

        if index % learner.delay == 0:
            learner.learn_actor(batch, distance)

    return Learner(constant_rates, step, learner.delay)


def iql(table: Tensor, job: Job) -> Learner:
    config, hypers, runs, device = job["config"], job["hypers"], job["runs"], job["device"]
    hidden = config["hidden_sizes"]
    actor, value = MLP(runs, (OBS_DIM, *hidden, ACTION_DIM), device), MLP(runs, (OBS_DIM, *hidden, 1), device)
    critics = Twins(MLP(2 * runs, (OBS_DIM + ACTION_DIM, *hidden, 1), device))
    target_critics = Twins(critics.net.clone())
    log_std = torch.zeros(runs, 1, ACTION_DIM, requires_grad=True, device=device)
    groups = [
        {"params": [*actor.parameters, log_std], "lr": hypers["actor_learning_rate"]},
        {"params": value.parameters, "lr": hypers["value_learning_rate"]},
        {"params": critics.net.parameters, "lr": hypers["critic_learning_rate"]},
    ]
    on_gpu = table.is_cuda
    if on_gpu:  # where a captured step reads it
        groups[0]["lr"] = torch.tensor(groups[0]["lr"], device=device)
    optimizer = torch.optim.Adam(groups, fused=True, capturable=on_gpu)
    parameters = [parameter for group in groups for parameter in group["params"]]

    def schedule(index: int) -> None:
        rate = hypers["actor_learning_rate"] * 0.5 * (1.0 + math.cos(math.pi * index / job["updates"]))
        group = optimizer.param_groups[0]
        if on_gpu:
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate

    def step(index: int) -> None:
        batch = sample(table, runs, config["batch_size"])
        with torch.no_grad():
            next_value = value(batch.next_obs)[..., 0]
            q_data = target_critics(batch.obs_action).amin(0)
            target = batch.reward + hypers["discount"] * (1.0 - batch.terminated) * next_value
        advantage = q_data - value(batch.obs)[..., 0]
        value_loss = (hypers["expectile"] - (advantage.detach() < 0.0).float()).abs() * advantage.square()
        critic_loss = (critics(batch.obs_action) - target).square().mean(0)
        weight = (hypers["beta"] * advantage.detach()).exp_().clamp_(max=hypers["max_weight"])
        bounded = log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)
        error = (batch.action - torch.tanh(actor(batch.obs))) * (-bounded).exp()
        log_prob = (-0.5 * error.square() - bounded - 0.5 * math.log(2.0 * math.pi)).sum(dim=-1)
        # All three are of the networks before this step and share none that learns: one backward pass and one Adam.
        loss = (value_loss + critic_loss - weight * log_prob).sum() / config["batch_size"]
        descend(optimizer, parameters, loss)
        follow(target_critics.net.parameters, critics.net.parameters, hypers["tau"])

    return Learner(schedule, step, 1)


def a2pr(table: Tensor, job: Job) -> Learner:
    config, hypers = job["config"], job["hypers"]
    learner = TD3(job, config["hidden_sizes"], config["critic_hidden_sizes"])
    hidden, device = config["vae_hidden_sizes"], job["device"]
    value = MLP(1, (OBS_DIM, *config["value_hidden_sizes"], 1), device)
    encoder = MLP(1, (OBS_DIM + ACTION_DIM, *hidden, 4 * ACTION_DIM), device)
    decoder = MLP(1, (OBS_DIM + 2 * ACTION_DIM, *hidden, ACTION_DIM), device)
    vae = [*encoder.parameters, *decoder.parameters]
    value_opt = adam(hypers["value_learning_rate"], value.parameters)
    vae_opt = adam(hypers["vae_learning_rate"], vae)

    def reconstruct(obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_std = encoder(torch.cat([obs, action], dim=-1)).chunk(2, dim=-1)
        std = log_std.clamp(-4.0, 15.0).exp()
        latent = mean + std * torch.randn_like(std)
        return torch.tanh(decoder(torch.cat([obs, latent], dim=-1))), mean, std

    def step(index: int) -> None:
        batch = sample(table, 1, config["batch_size"])
        next_action, target = learner.learn_critics(batch)
        with torch.no_grad():
            next_value = learner.critics(torch.cat([batch.next_obs, next_action], dim=-1)).amin(0)
            online = batch.reward + hypers["discount"] * (1.0 - batch.terminated) * next_value
        v = value(batch.obs)[..., 0]
        descend(value_opt, value.parameters, (v - torch.minimum(online, target)).square().mean())
        v = v.detach()
        q_data = learner.first_critic(batch.obs_action)[..., 0]
        action, mean, std = reconstruct(batch.obs, batch.action)
        weight = hypers["vae_weight"] * (q_data > v).float()[..., None]
        kl = -0.5 * (1.0 + std.square().log() - mean.square() - std.square()).mean()
        descend(vae_opt, vae, (weight * (action - batch.action).square()).mean() + 0.5 * kl)

        def distance(action: Tensor) -> Tensor:
            offered, _, _ = reconstruct(batch.obs, action)
            with torch.no_grad():
                q_offered = learner.first_critic(torch.cat([batch.obs, offered], dim=-1))[..., 0]
            better = torch.where((q_offered >= q_data)[..., None], offered, batch.action)
            some = hypers["mask"] * ((q_offered >= v) | (q_data > v)).float()
            return (some[..., None] * (action - better).square()).mean(dim=(-2, -1))

        if index % learner.delay == 0:
            learner.learn_actor(batch, distance)

    return Learner(constant_rates, step, learner.delay)


LEARNERS = {"a2pr": a2pr, "iql": iql, "prdc": prdc, "td3_bc": td3_bc}
STACKED = ("iql", "td3_bc")
CAPTURED = ("a2pr", "iql", "td3_bc")


def check(job: Job) -> None:
    """Exit with one line if this file does not do what the job asks for."""
    if job["algorithm"] not in LEARNERS:
        sys.exit(f"algorithm={job['algorithm']!r} is not written in PyTorch here; choose one of {sorted(LEARNERS)}")
    if job["runs"] > 1 and job["algorithm"] not in STACKED:
        sys.exit(f"runs={job['runs']}: {job['algorithm']} is written for one run; only {STACKED} are stacked")
    if job["graphs"] and job["algorithm"] not in CAPTURED:
        sys.exit(f"{job['algorithm']} asks the host in every step, which no CUDA graph holds; leave graphs off")
    as_written = {"deterministic": False, "normalize_reward": False, "detach_reconstruction": False}
    as_written |= {"sample_candidates": False, "reward_shift": 0.0, "reward_scale": 1.0}
    for name, value in {**job["config"], **job["hypers"]}.items():
        if value != as_written.get(name, value):
            sys.exit(f"{name}={value} is not written in PyTorch here; leave it at {as_written[name]}")


def captured(learner: Learner) -> Step:
    """The learner's step as CUDA graphs, one for each step of its period."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for index in range(WARM_UP * learner.period):
            learner.step(index)
    torch.cuda.current_stream().wait_stream(aside)
    graphs = [torch.cuda.CUDAGraph() for _ in range(learner.period)]
    for index, graph in enumerate(graphs):
        with torch.cuda.graph(graph):
            learner.step(index)
    return lambda index: graphs[index % learner.period].replay()


def measure(job: Job) -> dict[str, Any]:
    """Learn for the job's gradient steps, `repeats` times from the beginning."""
    check(job)
    torch.set_num_threads(job["threads"])
    torch.manual_seed(0)
    table = make_table(job["rows"], job["device"])
    if table.is_cuda:
        torch.set_float32_matmul_precision("high")
    finish = torch.cuda.synchronize if table.is_cuda else lambda: None
    capturing = []

    def learn(updates: int) -> float:
        learner = LEARNERS[job["algorithm"]](table, job)
        began = time.perf_counter()
        step = captured(learner) if job["graphs"] else learner.step
        finish()
        capturing.append(time.perf_counter() - began)
        began = time.perf_counter()
        for index in range(updates):
            learner.schedule(index)
            step(index)
        finish()
        return time.perf_counter() - began

    learn(WARM_UP)
    arrangement = f"{job['runs']} stacked" if job["runs"] > 1 else "one"
    versions = {"torch": torch.__version__}
    peak = torch.cuda.max_memory_allocated if table.is_cuda else None
    return answer_of(job, lambda _: Training(learn(job["updates"])), versions, capturing[0], arrangement, peak)


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
